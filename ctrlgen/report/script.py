"""An analysis: a script that asks one question, states its claims, and leaves what it found in a file.

A script has a docstring ("Question: ...", then what is done, then "Run: ..."), a table `CLAIMS` of what it is asked to
establish, {key: statement}, and a function `analyse(options, found)` that returns its answer in one sentence:

    CLAIMS = {"decay": "KL falls at the certified rate."}

    def analyse(options, found):
        ...
        found.claim("decay", rate >= certified, method="grid", numbers={"measured rate": rate})
        found.figure(ax.figure, "KL along the loop.")
        return f"measured {rate:.4f}, certified {certified:.4f}"

    if __name__ == "__main__":
        sys.exit(cg.report.script(__file__, analyse))

Docstring and table are read without running the script, so that a report can say what was not reached.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from ctrlgen.report.findings import Findings

HOLDS, FAILS, BROKEN, INTERRUPTED = 0, 1, 2, 130  # exit codes


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """What is known of a script before it runs.

    Args:
        path: of the script.
        question: it asks.
        about: what is done, the rest of its docstring.
        claims: {key: statement}.
        alone: it measures time, so nothing else may run beside it.
    """

    path: Path
    question: str
    about: str
    claims: dict[str, str]
    alone: bool = False

    @property
    def name(self) -> str:
        """Of the file, without its ending."""
        return self.path.stem


def read_script(path: str | Path) -> Analysis:
    """Question, claims and settings of a script, without running it.

    Raises:
        ValueError: it has no docstring that begins with "Question:", or no table CLAIMS of literal strings.
    """
    path = Path(path)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    paragraphs = [" ".join(p.split()) for p in (ast.get_docstring(tree) or "").split("\n\n")]
    if not paragraphs[0].startswith("Question:"):
        raise ValueError(
            f'{path.name} must have a docstring that begins with "Question:"; it begins {paragraphs[0]!r}.'
        )
    claims, alone = _constant(tree, "CLAIMS"), _constant(tree, "ALONE")
    if not isinstance(claims, dict) or not claims or not all(isinstance(s, str) for s in (*claims, *claims.values())):
        raise ValueError(f"{path.name} must have a table CLAIMS = {{key: statement}} of literal strings.")
    about = "\n\n".join(p for p in paragraphs[1:] if not p.startswith("Run:"))
    question = paragraphs[0].removeprefix("Question:").partition(" Run: ")[0].strip()
    return Analysis(path=path, question=question, about=about, claims=claims, alone=alone is True)


def _constant(tree: ast.Module, name: str) -> Any:
    for node in tree.body:
        if isinstance(node, ast.Assign) and [t.id for t in node.targets if isinstance(t, ast.Name)] == [name]:
            try:
                return ast.literal_eval(node.value)
            except ValueError:
                return None
    return None


class Tee(io.TextIOBase):
    """Text that goes to a stream and is kept."""

    def __init__(self, stream: TextIO):
        self.stream, self.kept = stream, io.StringIO()

    def write(self, text: str) -> int:
        self.kept.write(text)
        return self.stream.write(text)

    def flush(self) -> None:
        self.stream.flush()


def script(
    path: str | Path,
    analyse: Callable[[argparse.Namespace, Findings], str],
    argv: Iterable[str] | None = None,
    extend: Callable[[argparse.ArgumentParser], Any] | None = None,
) -> int:
    """Run an analysis from its command line: `--seed`, `--quick` and `--out`, and what `extend` adds.

    Writes `<out>/<name>.json` and its figures. What was found before an error or an interruption (SIGINT or SIGTERM)
    is in them as well.

    Args:
        path: of the script, `__file__`.
        analyse: its work, from (options, found) to the answer in one sentence.
        argv: arguments; those of the process when omitted.
        extend: called with the parser, to add arguments.

    Returns:
        0 when every claim holds, 1 when one does not or was not reached, 2 after an error, 130 when interrupted.
    """
    about = read_script(path)
    parser = argparse.ArgumentParser(prog=about.path.name, description=about.question)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="smaller numbers of everything, for under a minute")
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder for the figures and the findings")
    if extend is not None:
        extend(parser)
    options = parser.parse_args(None if argv is None else list(argv))
    found = Findings(
        about.name, question=about.question, about=about.about, statements=about.claims, seed=options.seed,
        quick=options.quick, command=_command(about.path.name, options, parser), folder=options.out,
    )  # fmt: skip
    tee, code = Tee(sys.stdout), HOLDS
    from ctrlgen import plot

    with contextlib.redirect_stdout(tee), terminable(), plot.style():
        try:
            found.answer = analyse(options, found)
            print(f"\n{found.answer}\n{found.summary()}")
            found.close("finished", printed=tee.kept.getvalue())
            code = HOLDS if found.holds else FAILS
        except KeyboardInterrupt:
            found.close("interrupted", printed=tee.kept.getvalue())
            code = INTERRUPTED
        except Exception:
            found.close("failed", printed=tee.kept.getvalue(), error=traceback.format_exc())
            traceback.print_exc()
            code = BROKEN
    return code


def _command(name: str, options: argparse.Namespace, parser: argparse.ArgumentParser) -> str:
    """What reruns it; where results go does not change them."""
    words = ["python", f"analysis/{name}", "--seed", str(options.seed)]
    for key, value in vars(options).items():
        if key not in {"seed", "out"} and value != parser.get_default(key):
            words += [f"--{key.replace('_', '-')}", *([] if value is True else [str(value)])]
    return shlex.join(words)


@contextlib.contextmanager
def terminable() -> Any:
    """SIGTERM as an interruption, so that what was found is kept."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
