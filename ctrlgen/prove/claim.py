"""What is to be decided, and what an engine answers.

A claim is one inequality on one set: for all x of the set, F(x) ≻ 0 (strict) or F(x) ⪰ 0, with F a symmetric
matrix of formulas; a scalar inequality is the 1 × 1 case. Every number in a claim is an exact rational or a SymPy
constant: nothing is rounded between the user's formula and the engine's answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any, Literal

import sympy as sp


class Status(Enum):
    """How much a verdict knows. Compare with `is`: `verdict.status is Status.PROVED`.

    PROVED: every step is exact. SAMPLED: numerical evidence, which may be wrong. REFUTED: a witness that was
    re-evaluated exactly violates the claim. UNDECIDED: none of these, and the verdict says why.
    """

    PROVED = "proved"
    SAMPLED = "sampled"
    REFUTED = "refuted"
    UNDECIDED = "undecided"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """For all x with guards ≥ 0, open guards > 0, equalities = 0 and x ≠ except_at: matrix(x) ≻ 0, or ⪰ 0.

    Args:
        text: the claim in words and symbols, for people.
        states: the real variables x, d of them, in order.
        matrix: (k, k) symmetric SymPy matrix, exact numbers only; None when the claim is of a function without formula.
        strict: ≻ when true, ⪰ when false.
        guards: formulas that are ≥ 0 on the set. All of them together with `box` describe the set: a finite box
            is always repeated here as guards, so an engine that ignores `box` is still right.
        open_guards: formulas that are > 0 on the set.
        equalities: formulas that are 0 on the set.
        box: one (lower, upper) a state, rational or None where unbounded, which encloses the set.
        except_at: d rationals: the one point at which nothing is asked (the equilibrium), or None.
        kind: what is said of the left-hand side: its sign; that it tends to ∞ with |x| ("growth"); that it is a sum
            of squares of polynomials ("squares"); or nothing, because the text says it all ("premise"). Engines decide
            signs.
        function: JAX function, (d,) -> (), the left-hand side where there is no formula.
    """

    text: str
    states: tuple[sp.Symbol, ...]
    matrix: Any = None
    strict: bool
    guards: tuple[sp.Expr, ...] = ()
    open_guards: tuple[sp.Expr, ...] = ()
    equalities: tuple[sp.Expr, ...] = ()
    box: tuple[tuple[sp.Rational | None, sp.Rational | None], ...] = ()
    except_at: tuple[sp.Rational, ...] | None = None
    function: Callable | None = None
    kind: Literal["sign", "growth", "squares", "premise"] = "sign"

    def __post_init__(self):
        if not self.box:
            object.__setattr__(self, "box", ((None, None),) * len(self.states))
        if self.matrix is not None:
            object.__setattr__(self, "matrix", sp.ImmutableMatrix(self.matrix))

    @property
    def dim(self) -> int:
        """d, the number of states."""
        return len(self.states)

    @property
    def size(self) -> int:
        """k, the order of the matrix; 1 for a scalar claim."""
        return 1 if self.matrix is None else self.matrix.rows

    @property
    def expr(self) -> sp.Expr:
        """The left-hand side of a scalar claim that has a formula."""
        if self.matrix is None or self.size != 1:
            raise TypeError("this claim is not a scalar formula.")
        return self.matrix[0, 0]

    @cached_property
    def bounded(self) -> bool:
        """Is the set enclosed by a finite box?"""
        return all(low is not None and high is not None for low, high in self.box)

    def __hash__(self) -> int:
        return hash((self.text, self.states, self.strict))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one engine says of one claim.

    Args:
        status: PROVED, REFUTED or UNDECIDED.
        method: the engine's name, "exact", "smt", "interval", "search" or "symbolic".
        reason: how it was decided (degrees, boxes visited), or why it was not: the solver's own words.
        margin: smallest value of the left-hand side (its smallest eigenvalue for a matrix) that was seen or bounded;
            negative or zero where it is refuted; None where there is none.
        witness: d exact numbers at which the claim fails (REFUTED only).
        assumptions: what the proof takes for granted beyond the claim's own words, such as an excluded ball.
        certificate: an object with `recheck() -> bool`, which verifies the proof again without any solver; or None.
        seconds: wall-clock time spent.
    """

    status: Status
    method: str
    reason: str = ""
    margin: float | None = None
    witness: tuple[sp.Expr, ...] | None = None
    assumptions: tuple[str, ...] = ()
    certificate: Any = field(default=None, repr=False)
    seconds: float = 0.0


class Deadline:
    """A point in time that several engines share."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.start = time.monotonic()
        self.end = self.start + seconds

    @property
    def spent(self) -> float:
        """Seconds since it was set."""
        return time.monotonic() - self.start

    def left(self) -> float:
        """Seconds that are left, never negative."""
        return max(0.0, self.end - time.monotonic())

    def part(self, share: float, least: float = 0.0) -> Deadline:
        """A deadline after `share` of what is left (at least `least` seconds of it)."""
        return Deadline(min(self.left(), max(share * self.left(), least)))

    @property
    def over(self) -> bool:
        """Has it passed?"""
        return time.monotonic() >= self.end
