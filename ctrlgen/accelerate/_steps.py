"""Facts that refute: the counterpart of `certify.premise` where a witness is not a point of a formula's domain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from ctrlgen.certify.premise import Premise
from ctrlgen.certify.verdict import Step
from ctrlgen.prove.claim import Claim, Outcome, Status


@dataclass(frozen=True)
class Refutation(Premise):
    """The certificate that a statement is false: how that is computed again, in exact or ball arithmetic."""

    proves: ClassVar = Status.REFUTED


def not_settled(step: Step) -> Step:
    """A step of one try, of a metric or a rate, as an open one: that the try fails refutes no other."""
    if step.outcome.status is not Status.REFUTED:
        return step
    words = f"this try fails: {step.outcome.reason}".rstrip(": ")
    return Step(step.claim, replace(step.outcome, status=Status.UNDECIDED, witness=None, margin=None, reason=words))


def refuted(text: str, reason: str, check: Callable[[], bool], method: str, margin: float | None = None) -> Step:
    """A statement that is false, as a refuted step of a verdict.

    Args:
        text: the statement.
        reason: why it is false.
        check: computes that again rigorously, for `Verdict.recheck`.
        method: "exact" or "interval".
        margin: how far it is from true, zero or negative.
    """
    claim = Claim(text=text, states=(), strict=False, kind="premise")
    outcome = Outcome(
        status=Status.REFUTED, method=method, reason=reason, margin=margin, certificate=Refutation(claim, check)
    )
    return Step(claim, outcome)
