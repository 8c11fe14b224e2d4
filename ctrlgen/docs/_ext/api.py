"""The API pages: which name stands on which page, and the pages, written anew from the docstrings at each build.

Names of the top level are listed here; those of the modules that are public as such (`cg.measure`, `cg.plot`, ...) are
asked of the modules, so that a name that is added to one is on its page without an edit here.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from texts import literal, markup, title, write


@dataclass(frozen=True, kw_only=True)
class Page:
    """One page of the API.

    Args:
        name: of its file.
        title: of the page.
        about: what stands there, as reStructuredText.
        names: of the top level, in order.
        module: the public module whose names follow, or "".
        results: "module:Class", what these return and take: classes that are reached through them.
    """

    name: str
    title: str
    about: str
    names: tuple[str, ...] = ()
    module: str = ""
    results: tuple[str, ...] = ()


PAGES = (
    Page(
        name="energies",
        title="Energies",
        about="The controller blocks: u = -∇E. An energy is called on a state (d,) or a batch (n, d), adds and scales.",
        names=(
            "Energy", "Properties", "Quadratic", "GaussianMixture", "DoubleWell", "Banana", "Funnel", "Ring",
            "SymbolicEnergy", "CallableEnergy", "MLPEnergy", "TrainedEnergy", "compose", "mixture", "MixtureEnergy",
            "condition", "LeastSquares", "Gibbs",
        ),
        results=("energies.algebra:Composition",),
    ),
    Page(
        name="plants",
        title="Plants",
        about="What carries the density: particles, cells of a grid, or the two moments of a Gaussian.",
        names=(
            "Langevin", "KineticLangevin", "GradientFlow", "FokkerPlanckGrid", "GaussianPlant", "Annealing",
            "TransportRamp",
        ),
    ),
    Page(
        name="loop",
        title="Closed loop and response",
        about="A plant under a controller block, and what a simulation returns.",
        names=("ClosedLoop", "generate", "Response", "DivergenceError", "Estimate"),
        results=("response:DistributionShift",),
    ),
    Page(
        name="measure",
        title="Measures",
        about="How far a density is from its target. Every number from particles comes with its standard error.",
        module="measure",
    ),
    Page(
        name="certificates",
        title="Certificates of systems",
        about="Lyapunov functions, barriers, contraction metrics and plain inequalities of ordinary systems, decided.",
        names=(
            "Status", "Verdict", "LyapunovFunction", "find_lyapunov", "region_of_attraction", "BarrierFunction",
            "StochasticBarrier", "find_barrier", "ContractionMetric", "find_contraction_metric", "nonnegative",
            "lower_bound", "sum_of_squares", "Domain", "Box", "Ball", "Polytope", "Sublevel",
        ),
        results=(
            "certify.lyapunov:LyapunovVerdict", "certify.find_lyapunov:Synthesis", "certify.lyapunov:FosterLyapunov",
            "certify.region:Region", "certify.barrier:BarrierVerdict", "certify.find_barrier:FoundBarrier",
            "certify.stochastic:ProbabilityBound",
            "certify.contraction:ContractionVerdict", "certify.inequality:Bound", "certify.verdict:Step",
            "prove.claim:Claim", "prove.claim:Outcome",
        ),
    ),
    Page(
        name="density",
        title="Certificates of the density, and stopping",
        about="KL to the Gibbs measure as the Lyapunov functional, where its rate comes from, and when a run may stop.",
        names=("KLLyapunov", "log_sobolev", "no_certificate"),
        module="stopping",
        results=(
            "certify.decay:Decay", "certify.log_sobolev:LogSobolev", "certify.invariance:NoCertificate",
             "certify.gaussian_family:SymbolicGaussian",
            "certify.looks:LookRule",
        ),
    ),
    Page(
        name="safety",
        title="Safety",
        about="What keeps the particles of a closed loop inside a safe set.",
        names=("SafetyFilter", "SafetyReport"),
        results=("safety.restricted:Restricted",),
    ),
    Page(
        name="acceleration",
        title="Faster loops",
        about="Metrics, nonreversible drift and friction: the same Gibbs measure, sooner, and what is proved of it.",
        names=(
            "optimal_metric", "optimal_skew", "optimal_friction", "riemannian_rate", "contraction_region", "invariance",
        ),
        results=(
            "accelerate.metric_verdict:MetricVerdict", "accelerate.skew:SkewVerdict",
            "accelerate.friction:FrictionVerdict", "accelerate.riemannian:RiemannianVerdict",
            "accelerate.region:RegionVerdict",
        ),
    ),
    Page(
        name="interop",
        title="python-control",
        about="Energies, loops and the density as its systems, and its systems as plants and controllers.",
        module="interop",
        results=(
            "interop.design:Design", "energies.feedback:DensityFeedback", "certify.feedback:FeedbackVerdict",
            "modes.base:SlowModes", "modes.base:Mode", "plants.driven:Driven",
        ),
    ),
    Page(
        name="training",
        title="Training",
        about="Energies from data. Objectives are frozen settings; ``train`` takes one or a chain of them.",
        names=(
            "train", "TrainingResult", "EnergyMatching", "MaximumLikelihood", "ScoreMatching", "ContrastiveDivergence",
            "measure_quality",
        ),
        results=("quality:Quality",),
    ),
    Page(
        name="datasets",
        title="Distributions and data",
        about="What is trained on and started from: samples from a key and, where it is known, an exact density.",
        names=("Gaussian",),
        module="datasets",
    ),
    Page(
        name="store",
        title="Models on disk",
        about="A model is a folder of JSON, safetensors and a card; loading one executes nothing that is in it.",
        names=("load_energy", "save_energy", "list_models"),
        results=("store:ModelSummary", "store:load_config", "store:load_card", "records:ModelError"),
    ),
    Page(
        name="plot",
        title="Pictures",
        about="Each function takes a result and axes, and returns the axes. None calls ``show``.",
        module="plot",
    ),
    Page(
        name="report",
        title="Report and command line",
        about="The analyses, the report that is made of them, and the ``ctrlgen`` command.",
        module="report",
        results=("demo:run_demo", "demo:DemoReport", "jobs:train_table", "jobs:TrainingReport", "jobs:simulate_model"),
    ),
)  # fmt: skip

PLAIN = (str, int, float, tuple, list, dict)  # constants, whose docstring is that of their type


def public(module: Any) -> list[str]:
    """The public names of a module: its `__all__`, its lazy names, or what is defined in it without an underscore."""
    declared = getattr(module, "__all__", None) or getattr(module, "_NAMES", None)
    if declared:
        return list(declared)
    return [name for name, thing in vars(module).items() if not name.startswith("_") and _own(module, thing)]


def _own(module: Any, thing: Any) -> bool:
    """Is it defined in the module, or an instance of a class that is?"""
    if inspect.ismodule(thing):
        return False
    home = thing.__module__ if inspect.isclass(thing) or inspect.isroutine(thing) else type(thing).__module__
    return str(home).split(".")[: module.__name__.count(".") + 1] == module.__name__.split(".")


def render(page: Page) -> str:
    """A page as reStructuredText: what it is, a table of its names, and each name's docstring."""
    import ctrlgen

    entries = [(f"ctrlgen.{name}", getattr(ctrlgen, name)) for name in page.names]
    if page.module:
        module = getattr(ctrlgen, page.module)
        own = [(f"ctrlgen.{page.module}.{name}", getattr(module, name)) for name in public(module)]
        entries += [entry for entry in own if not any(entry[1] is known for _, known in entries)]
    extra = [(f"ctrlgen.{path.replace(':', '.')}", _load(path)) for path in page.results]
    extra += [(f"{thing.__module__}.{thing.__name__}", thing) for thing in _other_verdicts(page.name)]
    extra = [entry for entry in extra if not any(entry[1] is known for _, known in entries)]
    entries.sort(key=lambda entry: isinstance(entry[1], PLAIN))  # constants come last
    parts = [*title(page.title), page.about, ""]
    if page.module:
        parts += [f".. py:module:: ctrlgen.{page.module}", ""]
        parts += [*markup(inspect.cleandoc(getattr(ctrlgen, page.module).__doc__ or "")).split("\n"), ""]
    parts += [*_contents([*entries, *extra]), *_directives(entries)]
    if extra:
        parts += [*title("What these return and take", 1), *_directives(extra)]
    if page.name == "report":
        parts += _commands()
    return "\n".join(parts) + "\n"


def _other_verdicts(page: str) -> list[type]:
    """Kinds of verdict that no page lists: they stand with the certificates of systems, and none is left out."""
    if page != "certificates":
        return []
    from ctrlgen.certify.verdict import Verdict

    for package in ("ctrlgen.certify", "ctrlgen.accelerate"):
        for file in iter_modules(import_module(package).__path__, f"{package}."):
            import_module(file.name)
    listed = {path.partition(":")[2] for p in PAGES for path in p.results} | {n for p in PAGES for n in p.names}
    listed |= {name for p in PAGES if p.module for name in public(getattr(import_module("ctrlgen"), p.module))}
    found, pending = [], [Verdict]
    while pending:
        for kind in pending.pop().__subclasses__():
            pending.append(kind)
            if kind.__name__ not in listed and not kind.__name__.startswith("_"):
                found.append(kind)
    return sorted(found, key=lambda kind: kind.__name__)


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(import_module(f"ctrlgen.{module}"), name)


def _contents(entries: list[tuple[str, Any]]) -> list[str]:
    lines = [".. list-table::", "   :widths: auto", "   :class: names", ""]
    for name, thing in entries:
        first = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())
        told = f"``{_short(thing)}``" if isinstance(thing, PLAIN) else markup(first)
        lines += [f"   * - :py:obj:`{name.rpartition('.')[2]} <{name}>`", f"     - {told}"]
    return [*lines, ""]


def _directives(entries: list[tuple[str, Any]]) -> list[str]:
    lines = []
    for name, thing in entries:
        if inspect.isclass(thing):
            lines += [f".. autoclass:: {name}", "   :members:", *_inherits(thing), ""]
        elif inspect.isroutine(thing):
            lines += [f".. autofunction:: {name}", ""]
        elif isinstance(thing, PLAIN):
            lines += [*_data(name), f"   :value: {_short(thing)}", ""]
        else:
            text = markup(inspect.getdoc(thing) or "").split("\n")
            lines += [*_data(name), "", *(f"   {line}".rstrip() for line in text), ""]
    return lines


def _data(name: str) -> list[str]:
    module, _, own = name.rpartition(".")
    return [f".. py:data:: {own}", f"   :module: {module}"]


def _short(value: Any) -> str:
    """A constant in a line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def _inherits(thing: Any) -> list[str]:
    """Say the bases where one of them is public; the hook `docstrings.bases` leaves the others out."""
    import ctrlgen

    known = any(base.__name__ in ctrlgen.__all__ for base in thing.__bases__)
    return ["   :show-inheritance:"] if known else []


def _commands() -> list[str]:
    """The help of the command line, as it prints it."""
    import click

    from ctrlgen.cli import main

    parts = [*title("The command line", 1), "Every command is one call in Python, which its help names.", ""]
    commands: list[tuple[str, click.Command]] = [("ctrlgen", main)]
    commands += [(f"ctrlgen {name}", command) for name, command in main.commands.items()]
    for name, command in commands:
        context = click.Context(command, info_name=name, terminal_width=76, max_content_width=76)
        parts += literal(command.get_help(context))
    return parts


def write_pages(app: Any) -> None:
    """All pages, into the generated folder."""
    folder = Path(app.srcdir) / "_generated" / "api"
    for page in PAGES:
        write(folder / f"{page.name}.rst", render(page))


def setup(app: Any) -> dict[str, Any]:
    """Write the pages when a build begins."""
    app.connect("builder-inited", write_pages)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
