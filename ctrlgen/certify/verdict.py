"""What is known of a claim: a verdict, its evidence, and how it prints itself."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import sympy as sp

from ctrlgen.prove.claim import Claim, Deadline, Outcome, Status
from ctrlgen.prove.witness import violates

WIDTH = 110


@dataclass(frozen=True)
class Step:
    """One inequality of a verdict, and what an engine said of it."""

    claim: Claim
    outcome: Outcome

    def recheck(self) -> bool:
        """Verify the answer again: a proof by its certificate, without its solver, a refutation by its witness."""
        certificate = self.outcome.certificate
        if certificate is not None:
            proves = getattr(certificate, "proves", Status.PROVED)
            kinds = getattr(certificate, "kinds", ("sign",))
            fits = proves is self.outcome.status and self.claim.kind in kinds
            if not (fits and _same(getattr(certificate, "claim", None), self.claim)):
                return False
        if self.outcome.status is Status.PROVED:
            return certificate is not None and bool(certificate.recheck())
        if self.outcome.status is Status.REFUTED and self.outcome.witness is not None:
            return bool(violates(self.claim, self.outcome.witness)[0])
        if self.outcome.status is Status.REFUTED and certificate is not None:
            return bool(certificate.recheck())
        return False


def _same(a: Claim | None, b: Claim) -> bool:
    """Are two claims the same but for their words? A premise is its words."""
    if b.kind == "premise":
        return a == b
    return a is not None and all(getattr(a, f.name) == getattr(b, f.name) for f in fields(Claim) if f.name != "text")


@dataclass(frozen=True, kw_only=True, repr=False)
class Verdict:
    """What is known of a claim, and how. It has no truth value: compare `.status`.

    Args:
        claim: the statement, in words and symbols.
        status: PROVED (every step exact), SAMPLED (numerical evidence), REFUTED (a witness, exactly re-evaluated) or
            UNDECIDED.
        method: the engines that decided, "exact", "smt", "interval", "search", "symbolic"; several are joined by "+".
        assumptions: what is taken for granted.
        margin: the smallest slack seen or bounded; zero or negative where refuted; None where there is none.
        witness: (d,) a point at which the claim fails, when refuted.
        reason: how it was decided, or why it was not.
        seconds: wall-clock time spent.
        steps: the inequalities that the claim consists of, each with its own answer.
    """

    claim: str
    status: Status
    method: str
    assumptions: tuple[str, ...] = ()
    margin: float | None = None
    witness: np.ndarray | None = None
    reason: str = ""
    seconds: float = 0.0
    steps: tuple[Step, ...] = field(default=())

    def __bool__(self) -> bool:
        raise TypeError("A Verdict is not a yes/no answer. Compare verdict.status with Status.PROVED.")

    def recheck(self) -> bool:
        """Verify the verdict again without the search that led to it: every certificate, or the witness.

        True if it stands. A verdict that decided nothing has nothing to check: False. Checked is each step against its
        own claim; that these are the steps which the statement needs, and that a number beside them (a rate, a level)
        is the one in their claims, is the work of the function that returned the verdict.
        """
        if self.status is Status.PROVED:
            return bool(self.steps) and all(step.recheck() for step in self.steps)
        if self.status is Status.REFUTED:
            return any(step.recheck() for step in self.steps if step.outcome.status is Status.REFUTED)
        return False

    def plot(self, ax: Any = None, **view: Any) -> Any:
        """Draw the verdict: its inequality over the state space with the witness, or its steps as a table.

        Args:
            ax: where to draw; a new figure when omitted.
            view: `plane`, `at` and `bounds` of what is drawn, as in `ctrlgen.plot.verdict`.

        Returns:
            The axes.
        """
        from ctrlgen import plot

        return plot.verdict(self, ax, **view)

    def _rows(self) -> list[tuple[str, str]]:
        rows = [("claim", self.claim), ("status", self.status.name), ("method", self.method)]
        rows += [("found", str(value)) for value in [getattr(self, "found", None)] if value is not None]
        for name in ("level", "refuted_at", "rate", "bound", "probability"):
            value = getattr(self, name, None)
            if value is not None:
                rows.append((name, f"{value:.12g}"))
        rows += [("assumes", a) for a in self.assumptions]
        if self.margin is not None:
            rows.append(("margin", f"{self.margin:.6g}"))
        if self.witness is not None:
            rows.append(("witness", np.array2string(np.asarray(self.witness), precision=12)))
        for step in self.steps:
            answer = step.outcome
            rows.append(("step", f"{step.claim.text}: {answer.status.name} [{answer.method}] {answer.reason}".rstrip()))
        if self.reason:
            rows.append(("why", self.reason))
        rows.append(("time", f"{self.seconds:.3f} s"))
        return rows

    def __repr__(self) -> str:
        lines = [type(self).__name__]
        for name, value in self._rows():
            lines += textwrap.wrap(
                value, WIDTH, initial_indent=f"  {name:<12}", subsequent_indent=" " * 14, break_long_words=False
            ) or [f"  {name}"]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left;vertical-align:top'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
            for name, value in self._rows()
        )
        return f"<table><caption>{type(self).__name__}</caption>{rows}</table>"

    def _repr_latex_(self) -> str:
        lines = [rf"\text{{{self.status.name}}}\ (\text{{{_plain(self.method)}}},\ {self.seconds:.3f}\,\mathrm{{s}})"]
        for step in self.steps:
            lines.append(rf"{_formula(step.claim)} \quad \text{{{step.outcome.status.name}}}")
        if self.witness is not None:
            numbers = ",\\ ".join(f"{x:.6g}" for x in np.asarray(self.witness))
            lines.append(rf"\text{{witness}}\ x = ({numbers})")
        if self.margin is not None:
            lines.append(rf"\text{{margin}}\ {self.margin:.6g}")
        lines += [rf"\text{{assumes: {_plain(a)}}}" for a in self.assumptions]
        return "$$\\begin{aligned}" + r" \\ ".join("& " + line for line in lines) + "\\end{aligned}$$"


def _plain(text: str) -> str:
    words = text.replace("→", "goes to").replace("∞", "infinity")
    return "".join("\\" + c if c in "_%&#$" else " " if c in "{}\\^~" else c for c in words)


def _formula(claim: Claim) -> str:
    if claim.matrix is None or "→" in claim.text:
        return rf"\text{{{_plain(claim.text)}}}"
    body = sp.latex(claim.matrix[0, 0] if claim.size == 1 else claim.matrix)
    sign = (">" if claim.strict else r"\ge") if claim.size == 1 else (r"\succ" if claim.strict else r"\succeq")
    guards = [f"{sp.latex(g)} \\ge 0" for g in claim.guards] + [f"{sp.latex(g)} > 0" for g in claim.open_guards]
    where = r"\ \text{where}\ " + ",\\ ".join(guards) if guards else ""
    return f"{body} {sign} 0{where}"


def _methods(outcomes: Sequence[Outcome]) -> str:
    """The engines that decided; a step by form alone is named only where no engine was needed."""
    names = list(dict.fromkeys(o.method for o in outcomes))
    return "+".join([n for n in names if n != "symbolic"] or names) or "none"


def combine(
    claim: str,
    steps: Sequence[Step],
    *,
    assumptions: Sequence[str] = (),
    meaning: str = "",
    kind: Any = Verdict,
    deadline: Deadline | None = None,
    **extra: Any,
):
    """The verdict on a claim that consists of all these steps; `deadline` tells the time spent, else the steps' sum.

    `meaning` is what follows from the claim, said only where it is proved.

    PROVED if every step is; REFUTED if any step is; else UNDECIDED, with the reasons of the steps that are open.
    """
    outcomes = [step.outcome for step in steps]
    refuted = next((o for o in outcomes if o.status is Status.REFUTED), None)
    open_ones = [s for s in steps if s.outcome.status not in (Status.PROVED, Status.REFUTED)]
    if refuted is not None:
        status, told = Status.REFUTED, [refuted]
    elif open_ones or not steps:
        status, told = Status.UNDECIDED, [s.outcome for s in open_ones]
    else:
        status, told = Status.PROVED, outcomes
    margins = [o.margin for o in told if o.margin is not None]
    taken = dict.fromkeys([*assumptions, *(a for o in outcomes for a in o.assumptions)])
    reason = "" if status is Status.PROVED else "; ".join(f"{o.reason}" for o in told if o.reason)
    values = {
        "claim": f"{claim}: {meaning}" if meaning and status is Status.PROVED else claim,
        "status": status,
        "method": _methods(told),
        "assumptions": tuple(taken),
        "margin": min(margins) if margins else None,
        "witness": None
        if refuted is None or refuted.witness is None
        else np.array([float(x) for x in refuted.witness]),
        "reason": reason,
        "seconds": sum(o.seconds for o in outcomes) if deadline is None else deadline.spent,
        "steps": tuple(steps),
    }
    return kind(**{**values, **extra})
