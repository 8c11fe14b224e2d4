"""The command line: every command is one Python call. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import click

import ctrlgen

OBJECTIVES = ("auto", "maximum-likelihood", "score-matching", "energy-matching", "contrastive-divergence")


class OneLineErrors(click.Group):
    """Commands whose errors are one line on stderr and exit code 1; --debug shows the traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                warnings.simplefilter("default", UserWarning)
                warnings.showwarning = _show_warning
                return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, KeyboardInterrupt):
            raise
        except Exception as error:
            if ctx.params.get("debug"):
                raise
            message = " ".join(str(error).split()) or type(error).__name__
            expected = isinstance(error, (ValueError, TypeError, OSError, ImportError, ArithmeticError))
            if not expected:
                message = f"unexpected {type(error).__name__}: {message} (ctrlgen --debug ... shows where)"
            click.echo(f"Error: {message}", err=True)
            ctx.exit(1)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    click.echo(f"Warning: {' '.join(str(message).split())}", err=True)


def _quiet(function: Any) -> Any:
    return click.option("--progress/--no-progress", default=None, help="Progress bar [default: on a terminal].")(
        function
    )


def _shown(progress: bool | None) -> bool:
    return sys.stderr.isatty() if progress is None else progress


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(ctrlgen.__version__, prog_name="ctrlgen")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Sampling from a trained energy as feedback control of a density."""


@main.command()
@click.option("--model", default="eight_gaussians", show_default=True, help="Name or path of a trained energy.")
@click.option("--out", default="demo", show_default=True, type=click.Path(file_okay=False), help="Folder to write to.")
@click.option("--particles", default=6000, show_default=True, type=click.IntRange(100))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@_quiet
def demo(model: str, out: str, particles: int, seed: int, progress: bool | None) -> None:
    """Close the loop from noise and measure how the density reaches the Gibbs measure.

    Python: ctrlgen.demo.run_demo(...)
    """
    from ctrlgen.demo import run_demo

    click.echo(run_demo(model, out, particles, seed, progress=_shown(progress)))


@main.command()
@click.argument("data", type=click.Path())
@click.option("--name", required=True, help="Of the model.")
@click.option("--objective", default="auto", show_default=True, type=click.Choice(OBJECTIVES))
@click.option("--steps", type=click.IntRange(1), help="Updates of each objective [default: the objective's own].")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option("--width", default=128, show_default=True, type=click.IntRange(1), help="Neurons a hidden layer.")
@click.option("--depth", default=3, show_default=True, type=click.IntRange(1), help="Hidden layers.")
@click.option("--array", help="Which array of an .npz file.")
@click.option("--out", default="models", show_default=True, type=click.Path(file_okay=False), help="Folder of models.")
@click.option("--overwrite", is_flag=True, help="Replace a model of that name.")
@_quiet
def train(data: str, progress: bool | None, **options: Any) -> None:
    """Train an energy on a table: DATA is a .csv, .tsv, .txt, .npy or .npz file.

    Python: ctrlgen.jobs.train_table(...)
    """
    from ctrlgen.jobs import train_table

    report = train_table(data, options.pop("name"), progress=_shown(progress), **options)
    click.echo(report)
    if report.result.status == "diverged":
        raise SystemExit(1)


@main.command()
@click.argument("model")
@click.option("-n", "n", default=1000, show_default=True, type=click.IntRange(1), help="How many rows.")
@click.option(
    "--out", default="samples.csv", show_default=True, type=click.Path(dir_okay=False), help=".csv, .npy or .npz"
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option("--duration", type=float, help="How long to run the closed loop [default: the model's own].")
@_quiet
def simulate(model: str, n: int, out: str, seed: int, duration: float | None, progress: bool | None) -> None:
    """Generate rows from MODEL, a name or a path, by its own closed loop.

    Python: ctrlgen.jobs.simulate_model(...)
    """
    from ctrlgen.jobs import simulate_model, summary

    path, table = simulate_model(model, n, out, seed=seed, duration=duration, progress=_shown(progress))
    click.echo(f"{summary(table)}\nwrote {n} rows to {path}")


@main.command()
@click.option("--quick", is_flag=True, help="Smaller numbers of everything: a few minutes instead of an hour.")
@click.option(
    "--out", default="report", show_default=True, type=click.Path(file_okay=False), help="Folder to write to."
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option("--only", multiple=True, metavar="NAME", help="Run this analysis alone, and keep the others' results.")
@click.option("--jobs", type=click.IntRange(1), help="How many analyses run side by side [default: 2].")
@click.option("--list", "listed", is_flag=True, help="List the analyses and their claims, and run nothing.")
@_quiet
def report(progress: bool | None, listed: bool, **options: Any) -> None:
    """Run every analysis and write one page of what was found: claims, verdicts, figures.

    Python: ctrlgen.report.run_report(...)
    """
    from ctrlgen.report import find_scripts, run_report

    if listed:
        for analysis in find_scripts():
            click.echo(f"{analysis.name}: {analysis.question}")
            click.echo("\n".join(f"  {statement}" for statement in analysis.claims.values()))
        return
    shown = _shown(progress)
    made = run_report(progress=shown, say=None if shown else click.echo, **options)
    click.echo(made)
    if not made.holds:
        raise SystemExit(130 if made.interrupted else 1)


@main.command()
@click.argument("model", required=False)
def models(model: str | None) -> None:
    """List the models, or show the card of MODEL.

    Python: ctrlgen.list_models(), ctrlgen.store.load_card(name)
    """
    from ctrlgen import store

    if model is not None:
        click.echo(store.load_card(model))
        return
    found = store.list_models()
    if not found:
        click.echo("There are no models yet: train one with ctrlgen train, or pass a path.")
        return
    lines = [("name", "dim", "temperature", "size", "what it is")]
    for m in found:
        heat = "-" if m.temperature is None else f"{m.temperature:g}"
        dim = "?" if m.dim is None else str(m.dim)
        lines.append((m.name, dim, heat, f"{m.size / 1024:.0f} KiB", m.description))
    widths = [max(len(line[j]) for line in lines) for j in range(4)]
    for line in lines:
        click.echo("  ".join([c.ljust(w) for c, w in zip(line, widths, strict=False)] + [line[4]]))


if __name__ == "__main__":
    main()
