"""Facts that a theorem rests on, as steps of a verdict: a constant of an energy, or what a rule makes of constants."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from typing import ClassVar

from ctrlgen.certify.verdict import Step
from ctrlgen.prove.claim import Claim, Outcome, Status


@dataclass(frozen=True)
class Premise:
    """The certificate of one fact: how it is computed again, in exact or ball arithmetic.

    Args:
        claim: the fact; its text says all of it.
        check: computes it again; true if it stands.
    """

    claim: Claim
    check: Callable[[], bool] = field(repr=False)
    kinds: ClassVar = ("premise",)

    def recheck(self) -> bool:
        """Compute the fact again."""
        return bool(self.check())


def premise(
    text: str, rule: str, check: Callable[[], bool], method: str = "exact", assumptions: tuple[str, ...] = ()
) -> Step:
    """One established fact as a proved step of a verdict.

    Args:
        text: the fact, in words and symbols.
        rule: how it follows, with its source.
        check: computes it again rigorously, for `Verdict.recheck`.
        method: "exact" (rationals), "interval" (balls) or "symbolic" (a theorem applied to the steps before it).
        assumptions: what is taken for granted.
    """
    claim = Claim(text=text, states=(), strict=False, kind="premise")
    found = Premise(claim, check)
    return Step(
        claim,
        Outcome(status=Status.PROVED, method=method, reason=rule, certificate=found, assumptions=assumptions),
    )


def missing(text: str, reason: str) -> Step:
    """A fact that a theorem needs and that was not established, as an open step."""
    claim = Claim(text=text, states=(), strict=False, kind="premise")
    return Step(claim, Outcome(status=Status.UNDECIDED, method="none", reason=reason))


def shown_up(value: float, digits: int = 6) -> str:
    """A number in words, rounded up to so many digits."""
    return _shown(value, digits, ROUND_CEILING)


def shown_down(value: float, digits: int = 6) -> str:
    """A number in words, rounded down to so many digits."""
    return _shown(value, digits, ROUND_FLOOR)


def _shown(value: float, digits: int, rounding: str) -> str:
    if not math.isfinite(value):
        return str(value)
    return f"{Context(prec=digits, rounding=rounding).create_decimal(Decimal(float(value))).normalize():g}"
