"""What a constant metric is proved to be worth: low·M ⪯ ∇²E ⪯ M, for a Hessian of each kind that is known.

Each way takes a metric that fits Hessians at points and returns a scaled one of floats, taken exactly, with the rate
that was proved of it and the steps of the proof; None where nothing was proved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import sympy as sp

from ctrlgen.accelerate._bounds import Frame, Range, holds, over_box
from ctrlgen.accelerate._enclosures import Curvature, curvature
from ctrlgen.accelerate._hessians import Between, Formula, again
from ctrlgen.accelerate._programs import rational, roundings, spread
from ctrlgen.accelerate._steps import refuted
from ctrlgen.certify.build import claims, settle
from ctrlgen.certify.contraction import largest, tidy
from ctrlgen.certify.pieces import at_least
from ctrlgen.certify.premise import premise, shown_down
from ctrlgen.certify.regular import regular
from ctrlgen.certify.spectrum import slowest
from ctrlgen.certify.verdict import Step
from ctrlgen.domain import Domain
from ctrlgen.energies.base import Energy
from ctrlgen.energies.intervals import Intervals
from ctrlgen.energies.spectral import UNIT, down
from ctrlgen.energies.tails import fractions
from ctrlgen.prove.claim import Claim, Deadline, Outcome, Status
from ctrlgen.prove.decide import decide
from ctrlgen.prove.program import pivots

EXACT = 24  # rows up to which matrices of rationals are eliminated
SLACKS = (0.0, 1e-15, 1e-13, 1e-11, 1e-9, 1e-7, 1e-5, 1e-3)  # relative, of a proof that is otherwise tight
ABOVE = (0.0, 1e-9, 1e-6, 1e-4, 1e-2, 0.1)  # the same, of a proof that takes time
BUDGET = {1: 2000, 2: 20_000, 3: 20_000}  # boxes by dimension
FEW = 300
NEAR = 3e-3  # relative, to what points show: no more boxes are then looked at


@dataclass(frozen=True)
class Proved:
    """A metric with what was proved of it.

    Args:
        metric: M, (d, d), floats, taken exactly.
        rate: λ > 0 with λM ⪯ ∇²E ⪯ M.
        steps: of the proof.
    """

    metric: np.ndarray
    rate: float
    steps: tuple[Step, ...]


# Constant matrices ----------------------------------------------------------------------------------------------------


def around(known: Between, metric: np.ndarray, energy: Energy, name: str) -> Proved | None:
    """For A ⪯ ∇²E ⪯ B everywhere, with exact A and B: λM ⪯ A and B ⪯ M."""
    same = _same(known, metric)
    found = (metric, 1.0) if same else _by_elimination(known, metric) if len(metric) <= EXACT else None
    method = "exact"
    if found is None:
        found, method = _by_frame(known, metric), "interval"
    if found is None:
        return None
    scaled, rate = found
    exact = known.low is known.high or (known.low == known.high).all()
    words = f"{shown_down(rate)} M ⪯ ∇²E ⪯ M for the Hessian of {name}"
    rule = "one constant matrix" if exact else "constant matrices around the Hessian, from its terms"

    def check() -> bool:
        fresh = again(energy)
        return fresh is not None and _fits(fresh, scaled, rate)

    return Proved(scaled, rate, (premise(words, rule, check, method, known.trust),))


def _same(known: Between, metric: np.ndarray) -> bool:
    """Is the metric the Hessian itself?"""
    exact = fractions(metric)
    return bool((known.low == exact).all() and (known.high == exact).all())


def _fits(known: Between, metric: np.ndarray, rate: float) -> bool:
    if len(metric) <= EXACT or (rate == 1.0 and _same(known, metric)):
        exact = fractions(metric)
        if at_least(exact - known.high, 0.0) and at_least(known.low - Fraction(rate) * exact, 0.0):
            return True
    frame = Frame.of(metric)
    return frame.lowest(_enclosed(known.low))[0] >= rate and frame.highest(_enclosed(known.high))[0] <= 1


def _by_elimination(known: Between, metric: np.ndarray) -> tuple[np.ndarray, float] | None:
    """In rational arithmetic: the metric scaled up as little as makes B ⪯ M, and the largest λ that floats can tell."""
    top = spread(_floats(known.high)[None], metric)[1]
    one = [1.0] if abs(top - 1) < 1e-9 else []  # the metric may be the matrix itself
    for scale in [*one, *(top * (1 + slack) for slack in SLACKS)]:
        scaled = metric * scale
        exact = fractions(scaled)
        if not at_least(exact - known.high, 0.0):
            continue
        low = spread(_floats(known.low)[None], scaled)[0]
        for rate in [*([1.0] if low > 1 - 1e-9 else []), *(min(low, 1.0) * (1 - less) for less in SLACKS)]:
            if rate > 0 and at_least(known.low - Fraction(rate) * exact, 0.0):
                return scaled, rate
        return None
    return None


def _by_frame(known: Between, metric: np.ndarray) -> tuple[np.ndarray, float] | None:
    """The same in interval arithmetic."""
    low, high = _enclosed(known.low), _enclosed(known.high)
    return _scaled(metric, lambda frame: (float(frame.lowest(low)[0]), float(frame.highest(high)[0])))


def _scaled(metric: np.ndarray, bounds: Callable[[Frame], tuple[float, float]]) -> tuple[np.ndarray, float] | None:
    """The metric scaled until its upper bound is 1 at most; and its lower one, if that is positive."""
    try:
        for _ in range(8):
            low, high = bounds(Frame.of(metric))
            if not (low > 0 and np.isfinite(high)):
                return None
            if high <= 1:
                return metric, low
            metric = metric * (high * (1 + 4 * UNIT))
    except ValueError:  # not positive definite beyond rounding
        return None
    return None


def _floats(matrix: np.ndarray) -> np.ndarray:
    return matrix.astype(np.float64)


def _enclosed(matrix: np.ndarray) -> Intervals:
    mid = _floats(matrix)
    gap = np.array([[abs(Fraction(float(m)) - v) > 0 for m, v in zip(*rows, strict=True)]
                    for rows in zip(mid, matrix, strict=True)])  # fmt: skip
    return Intervals(mid[None], np.where(gap, UNIT * np.abs(mid) + 1e-300, 0.0)[None])


# Formulas -------------------------------------------------------------------------------------------------------------


def smoothness(found: Formula, domain: Domain | None, deadline: Deadline) -> list[Step]:
    """Steps that establish that the energy is C² on the domain; none where its form says so."""
    return regular([("E", list(found.given), 2)], found.states, domain, "auto", deadline)


def by_formula(
    found: Formula,
    metric: np.ndarray,
    hessians: np.ndarray,
    domain: Domain | None,
    smooth: Sequence[Step],
    deadline: Deadline,
) -> tuple[Proved | None, list[Step]]:
    """By claims on the formulas: M - ∇²E ⪰ 0, then ∇²E - λM ⪰ 0 with the largest λ that is proved.

    Args:
        found, domain: of what, where.
        metric, hessians: what fits the Hessians at points.
        smooth: the steps of `smoothness`, all proved.
        deadline: when to stop.

    Returns:
        what was proved, and the steps that were not, for their reasons.
    """
    worth = _ratio(hessians, metric)
    # simple numbers first, for what they cost
    simple = next(m for m in roundings(metric) if _ratio(hessians, m) >= worth * (1 - 1e-6))
    upper = _above(found, simple, domain, deadline.part(0.5))
    if upper[0] is None:
        return None, upper[1]
    scaled = upper[0]
    rate, lower = _below(found, scaled, domain, deadline)
    if rate is None:
        return None, lower
    return Proved(scaled, rate, (*smooth, *upper[1], *lower)), []


def _ratio(hessians: np.ndarray, metric: np.ndarray) -> float:
    try:
        low, high = spread(hessians, metric)
    except np.linalg.LinAlgError:
        return -np.inf
    return low / high


def symbolic(metric: np.ndarray) -> sp.ImmutableMatrix:
    """A matrix of floats, exactly."""
    d = len(metric)
    return sp.ImmutableMatrix(d, d, [rational(float(v)) for v in metric.ravel()])


def extremes(
    found: Formula, metric: np.ndarray, domain: Domain | None
) -> list[tuple[float, np.ndarray | None, float, np.ndarray | None]]:
    """By piece of the domain, where M⁻¹∇²E is estimated to have its least and its largest eigenvalue."""
    m = symbolic(metric)
    out = []
    for piece in _pieces(found, domain):
        low, where = slowest(-2 * found.matrix, m, piece, found.states)
        high, there = slowest(2 * found.matrix, m, piece, found.states)
        out.append((low, where, -high, there))
    return out


def _pieces(found: Formula, domain: Domain | None) -> Any:
    from ctrlgen.domain import Piece

    free = (Piece((), ((None, None),) * len(found.states)),)
    return free if domain is None else domain.pieces(found.states)


def _above(
    found: Formula, metric: np.ndarray, domain: Domain | None, deadline: Deadline
) -> tuple[np.ndarray | None, list[Step]]:
    """The metric scaled so that M - ∇²E ⪰ 0 is proved, with its steps; None with the last open ones."""
    high = max(e[2] for e in extremes(found, metric, domain))
    steps: list[Step] = []
    if not (np.isfinite(high) and high > 0):
        return None, steps
    nice = float(Fraction(high).limit_denominator(64))
    tries = [nice] if abs(nice - high) <= 1e-7 * high else []
    for scale in [*tries, *(high * (1 + s) for s in ABOVE)]:
        scaled = metric * scale
        left = (symbolic(scaled) - found.matrix).applyfunc(tidy)
        where = domain if left.free_symbols else None
        steps = settle(claims("M - ∇²E ⪰ 0", found.states, left, where, strict=False), "auto", deadline.part(0.4))
        if all(s.outcome.status is Status.PROVED for s in steps):
            return scaled, steps
        if deadline.over:
            break
    return None, steps


def _below(
    found: Formula, metric: np.ndarray, domain: Domain | None, deadline: Deadline
) -> tuple[float | None, list[Step]]:
    """The largest λ > 0 for which ∇²E - λM ⪰ 0 is proved on every piece, with the steps; None with the open ones."""
    m, steps, rates = symbolic(metric), [], []
    estimates = [e[0] for e in extremes(found, metric, domain)]
    for which, estimate in enumerate(estimates):

        def make(rate: Any, which: int = which) -> Claim:
            left = (found.matrix - rate * m).applyfunc(tidy)
            where = domain if left.free_symbols else None
            every = claims(f"∇²E - ({rate}) M ⪰ 0", found.states, left, where, strict=False)
            return every[min(which, len(every) - 1)]

        if not (np.isfinite(estimate) and estimate > 0):
            claim = make(sp.S.Zero)
            return None, [Step(claim, Outcome(status=Status.UNDECIDED, method="search", reason="no λ > 0 was seen"))]
        part = deadline.part(1.0 / (len(estimates) - which))
        bound, claim, outcome = largest(make, estimate, "auto", part, least=0)
        if bound is None or claim is None:
            return None, [Step(claim or make(sp.S.Zero), outcome)]
        steps.append(Step(claim, outcome))
        rates.append(bound)
    least = min(rates)
    return down(Fraction(int(least.p), int(least.q))), steps


def not_definite(found: Formula, domain: Domain | None, deadline: Deadline) -> list[Step]:
    """Steps of ∇²E ≻ 0 on the domain of which one is refuted at an exact point; none where no such point was found."""
    for claim in claims("∇²E ≻ 0", found.states, found.matrix, domain, strict=True):
        if not found.matrix.free_symbols:
            outcome = _constant(claim, found, domain)
        else:
            outcome = decide(claim, "search", deadline.part(0.5))
        if outcome is not None and outcome.status is Status.REFUTED:
            return [Step(claim, outcome)]
    return []


def _constant(claim: Claim, found: Formula, domain: Domain | None) -> Outcome | None:
    from ctrlgen.prove.witness import violates

    point = tuple(sp.S.Zero for _ in found.states) if domain is None else tuple(domain.interior_point(found.states))
    fails, margin = violates(claim, point)
    if not fails:
        return None
    reason = "the Hessian is the same everywhere and not positive definite"
    return Outcome(status=Status.REFUTED, method="search", reason=reason, margin=min(margin, 0.0), witness=point)


def unbounded(found: Formula) -> list[Step]:
    """On the whole space a polynomial Hessian that is not constant is beyond every constant metric."""
    flat: list[Any] = found.matrix.flat()
    entries = [e for e in flat if e.free_symbols]
    if not entries or not all(e.is_polynomial(*found.states) for e in flat):
        return []

    def check() -> bool:
        return any(sp.Poly(e, *found.states).total_degree() > 0 for e in entries)

    reason = f"its entry {str(entries[0])[:60]} is a polynomial and not constant, so it is unbounded on the whole space"
    return [refuted("∇²E ⪯ M everywhere for some constant M", reason, check, "exact", 0.0)] if check() else []


# Enclosures -----------------------------------------------------------------------------------------------------------


def by_enclosure(
    energy: Energy, metric: np.ndarray, box: np.ndarray, seen: tuple[float, float], deadline: Deadline
) -> Proved | None:
    """By interval Hessians over boxes that cover the box (2, d).

    Args:
        energy, metric, box, deadline: of what, how long.
        seen: the least and the largest eigenvalue of M⁻¹∇²E at points; bounds this near are good enough.

    Raises:
        ValueError: the energy has no enclosure.
    """
    inner, d = curvature(energy), energy.dim
    enough = (seen[0] * (1 - NEAR), seen[1] * (1 + NEAR))
    try:
        boxes = over_box(inner, Frame.of(metric), box, BUDGET.get(d, FEW), deadline.part(0.7), enough)
    except ValueError:
        return None
    if not (boxes.low > 0 and np.isfinite(boxes.high)):
        return None
    found = _scaled(metric * boxes.high, lambda frame: _reused(inner, frame, boxes))
    if found is None:
        return None
    scaled, rate = found
    words = f"{shown_down(rate)} M ⪯ ∇²E ⪯ M on the box, by {len(boxes.lower)} interval Hessians"

    def check() -> bool:
        return holds(curvature(energy), Frame.of(scaled), boxes, rate, 1.0, box)

    return Proved(scaled, rate, (premise(words, "outward rounded enclosures of ∇²E on boxes", check, "interval"),))


def _reused(inner: Curvature, frame: Frame, boxes: Range) -> tuple[float, float]:
    """Bounds on the same boxes in another frame."""
    low, high = np.inf, -np.inf
    for k in range(0, len(boxes.lower), 256):
        h = inner(Intervals.between(boxes.lower[k : k + 256], boxes.upper[k : k + 256]))
        low, high = min(low, float(frame.lowest(h).min())), max(high, float(frame.highest(h).max()))
    return low, high


def not_definite_at(energy: Energy, points: np.ndarray) -> tuple[Step, np.ndarray] | None:
    """A point (d,) at which vᵀ∇²E v ≤ 0 in interval arithmetic, with the step that is refuted by it; None if none.

    Raises:
        ValueError: the energy has no enclosure.
    """
    hessians = np.asarray(energy.hessian(points))
    hessians = np.where(np.isfinite(hessians), hessians, 0.0)
    values, vectors = np.linalg.eigh((hessians + hessians.swapaxes(1, 2)) / 2)
    for k in np.argsort(values[:, 0])[:8]:
        if not values[k, 0] <= 0:
            break
        x, v = points[k], vectors[k, :, 0]

        def form(x: np.ndarray = x, v: np.ndarray = v) -> float:
            h = curvature(energy)(Intervals.exact(x[None]))
            exact = Intervals.exact(v[:, None])
            return float((exact.mT @ h @ exact).high[0, 0, 0])

        value = form()
        if value <= 0:
            reason = f"along one direction the second derivative is at most {value:.3g} there"
            text = f"∇²E ≻ 0 at x = {np.array2string(x, precision=6, threshold=6)}"
            return refuted(text, reason, lambda form=form: form() <= 0, "interval", value), x
    return None


def is_definite(matrix: np.ndarray) -> bool | None:
    """Is a matrix of Fractions ≻ 0? Exactly up to 60 rows; None beyond, where floats see no violation."""
    if len(matrix) > 60:
        return None
    from flint import fmpq

    found = pivots([[fmpq(v.numerator, v.denominator) for v in row] for row in matrix])
    return found is not None and all(v > 0 for v in found)
