"""Branch and bound in ball arithmetic: how one box is settled, and how boxes are split.

The bounding box is mapped to [-1, 1]^d, whose sub-boxes have dyadic corners, so that every split is exact and every
point that is tried is rational. On a sub-box X with a point z of it, a scalar claim p > 0 is settled by the first of:
some guard is negative on X; p(X) > 0; the mean-value form p(z) + ∇p(X)·(X - z) > 0; the same for p - Σ λⱼ gⱼ with
multipliers λⱼ ≥ 0 of the guards that are active on X (of any sign for equalities), which is what settles boxes that a
guard cuts. Every inequality is one between balls: nothing depends on rounding.

References: Neumaier, Interval Methods for Systems of Equations (1990), §2.3 for the mean-value form; Baumann, BIT 28
(1988), for the point z that makes its lower bound largest.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy as sp
from flint import arb, ctx, fmpq

from ctrlgen.prove.balls import POINT_BITS, Compiled, Undefined, positive_definite, rational, to_sympy
from ctrlgen.prove.claim import Claim, Deadline

SLACK = 1 + 2.0**-40
SMALLEST = 2.0**-40
SMALL = 2.0**-8
TINY = 2.0**-900
CHECK_EVERY = 64
ROUNDINGS = (1, 10, 100, 1000, 10**6)
GE, GT, EQ = "≥ 0", "> 0", "= 0"

Box = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Frame:
    """The affine map x = centre + half · t of the cube [-1, 1]^d onto the bounding box."""

    centre: tuple[fmpq, ...]
    half: tuple[fmpq, ...]

    scale: list[float] = field(init=False, repr=False, compare=False)
    middles: list[arb] = field(init=False, repr=False, compare=False)
    halves: list[arb] = field(init=False, repr=False, compare=False)

    @staticmethod
    def around(low: Sequence[fmpq], high: Sequence[fmpq]) -> Frame:
        return Frame(
            tuple((a + b) / 2 for a, b in zip(low, high, strict=True)),
            tuple((b - a) / 2 for a, b in zip(low, high, strict=True)),
        )

    def __post_init__(self):
        object.__setattr__(self, "middles", [arb(c) for c in self.centre])
        object.__setattr__(self, "halves", [arb(h) for h in self.half])
        object.__setattr__(self, "scale", [float(h) for h in self.half])

    def balls(self, low: Sequence[float], high: Sequence[float]) -> list[arb]:
        return [
            c + h * arb(0.5 * (a + b), 0.5 * (b - a))
            for c, h, a, b in zip(self.middles, self.halves, low, high, strict=True)
        ]

    def point(self, t: Sequence[float]) -> list[arb]:
        return [c + h * arb(v) for c, h, v in zip(self.middles, self.halves, t, strict=True)]

    def exact(self, t: Sequence[float]) -> tuple[fmpq, ...]:
        return tuple(c + h * rational(v) for c, h, v in zip(self.centre, self.half, t, strict=True))

    def inverse(self, x: Sequence[fmpq]) -> tuple[fmpq, ...]:
        return tuple((v - c) / h if h else fmpq(0) for v, c, h in zip(x, self.centre, self.half, strict=True))

    @property
    def root(self) -> Box:
        return tuple(-1.0 if h else 0.0 for h in self.half), tuple(1.0 if h else 0.0 for h in self.half)


class Formula:
    """One scalar formula with its enclosures; the parts are callables so that networks can stand in."""

    def __init__(self, expr: sp.Expr, states: Sequence[sp.Symbol], fixed: dict | None = None):
        self.expr = expr
        code = Compiled([expr], states, fixed)
        self.code = code
        self._wide, self._point = code.wide, code.point
        slope = code.derivative()
        self.gradient: Callable | None = None if slope is None else slope.wide

    def wide(self, x: Sequence[arb]) -> arb:
        return self._wide(*x)[0]

    def point(self, x: Sequence[arb]) -> arb:
        return self._point(*x)[0]

    def slopes(self, x: Sequence[arb]) -> Sequence[arb] | None:
        """Enclosures of the partial derivatives on a box; None where there are none."""
        if self.gradient is None:
            return None
        try:
            return self.gradient(*x)
        except Undefined:
            return None

    def sign(self, x: Sequence[fmpq]) -> int | None:
        """The exact sign at a rational point; None where it was not found."""
        sign = self.code.signs(x)[0]
        if sign is None:
            try:
                self.code.at(x, POINT_BITS)
                at = self.expr.subs(dict(zip(self.code.states, map(to_sympy, x), strict=True)))
            except (Undefined, ValueError, TypeError):  # SymPy refuses to compare complex numbers
                return None
            return 0 if at == 0 else None
        return sign


def under(ball: arb) -> float:
    """A float that is below the whole ball."""
    return math.nextafter(float(ball.lower()), -math.inf)


def over(ball: arb) -> float:
    """A float that is above the whole ball."""
    return math.nextafter(float(ball.upper()), math.inf)


def intervals(slopes: Sequence[arb], scale: Sequence[float]) -> list[tuple[float, float]] | None:
    """Slopes in the cube's coordinates as floats (rounded: SLACK covers it); None where one is not finite."""
    out = []
    for slope, h in zip(slopes, scale, strict=True):
        low, high = slope.lower(), slope.upper()
        a, b = h * float(low), h * float(high)
        if not b - a < math.inf:
            return None
        if -TINY < a < TINY:  # an underflow must not hide a negative slope
            a = 0.0 if low >= 0 else -TINY
        if -TINY < b < TINY:
            b = 0.0 if high <= 0 else TINY
        out.append((a, b))
    return out


def lowest(slopes: Sequence[tuple[float, float]], low: Sequence[float], high: Sequence[float]):
    """The mean-value form's best point z and the most that p can fall below p(z) on the box, rounded up."""
    z, fall = [], 0.0
    for (a, b), lo, hi in zip(slopes, low, high, strict=True):
        if a >= 0:
            v = lo
        elif b <= 0:
            v = hi
        else:
            v = min(max((b * lo - a * hi) / (b - a), lo), hi)
        z.append(v)
        fall += max(max(-a, 0.0) * (hi - v), max(b, 0.0) * (v - lo))
    return z, fall * SLACK + (1e-300 if fall else 0.0)


@dataclass
class Step:
    """What became of one box: settled, a witness, or the coordinate to split and the guards still active.

    `bound` is a lower bound of p on the part of the box that is in the set; `best` is where p seems to be lowest;
    `noise` says that the box lies in the set and that p cannot be told from 0 at its best point.
    """

    settled: bool = False
    witness: tuple[fmpq, ...] | None = None
    axis: int = 0
    active: tuple[int, ...] = ()
    noise: bool = False
    best: Sequence[float] = ()
    bound: float = math.inf


class Scalar:
    """p > 0 (or ≥ 0) on {g ≥ 0}: how one box is settled."""

    def __init__(self, formula: Any, frame: Frame, guards: Sequence[tuple[str, Formula]], strict: bool, violates):
        self.formula, self.frame, self.guards, self.strict = formula, frame, tuple(guards), strict
        self.violates = violates

    def positive(self, ball: arb, fall: float = 0.0) -> bool:
        return ball > fall if self.strict else ball >= fall

    def cut(self, x: Sequence[arb], active: Sequence[int]) -> tuple[int, ...] | None:
        """The guards that still cut the box; None when the box is outside the set."""
        rest = []
        for j in active:
            kind, guard = self.guards[j]
            try:
                g = guard.wide(x)
            except Undefined:
                rest.append(j)
                continue
            if g < 0 or (kind == EQ and g > 0) or (kind == GT and g <= 0):
                return None
            if kind == EQ or not g >= 0:
                rest.append(j)
        return tuple(rest)

    def multipliers(self, p0: float, slopes, guards, half) -> list[float]:
        """λ that maximise the mean-value bound of p - Σ λ g at the centre, one guard after the other, in floats."""
        chosen = [0.0] * len(guards)
        current = list(slopes)
        for k, (kind, g0, g) in enumerate(guards):
            best, value = 0.0, -math.inf
            trials = [0.0] + [
                (pa + pb) / (ga + gb) for (pa, pb), (ga, gb) in zip(current, g, strict=True) if abs(ga + gb) > 1e-12
            ]
            for trial in trials:
                if trial < 0 and kind != EQ:
                    continue
                mixed = _mix(current, g, trial)
                bound = p0 - trial * g0 - sum(max(-a, b) * r for (a, b), r in zip(mixed, half, strict=True))
                if bound > value:
                    best, value = trial, bound
            chosen[k], p0, current = best, p0 - best * g0, _mix(current, g, best)
        return chosen

    def examine(self, low, high, active) -> Step:
        frame, formula = self.frame, self.formula
        x = frame.balls(low, high)
        active = self.cut(x, active)
        if active is None:
            return Step(settled=True)
        half = [0.5 * (b - a) for a, b in zip(low, high, strict=True)]
        centre = z = [0.5 * (a + b) for a, b in zip(low, high, strict=True)]
        widest = max(range(len(half)), key=half.__getitem__)
        try:
            value = formula.wide(x)
        except Undefined:
            return Step(axis=widest, active=active, best=centre, bound=-math.inf)
        if self.positive(value):
            return Step(settled=True, bound=under(value))
        bound = under(value)
        arbs = formula.slopes(x)
        slopes = None if arbs is None else intervals(arbs, frame.scale)
        if slopes is None:
            found = self.tried(self.at(formula, z), z, z)
            return Step(witness=found, axis=widest, active=active, best=z, bound=bound)
        z, fall = lowest(slopes, low, high)
        at = self.at(formula, z)
        if at is not None:
            bound = max(bound, under(at - fall))
            if self.positive(at, fall):
                return Step(settled=True, bound=bound)
        if found := self.tried(at, z, centre):
            return Step(witness=found)
        mixed = slopes
        if active:
            mixed, value, fall = self.with_guards(x, low, high, half, active, arbs, slopes)
            if mixed is None:
                return Step(settled=True)
            if value is not None:
                bound = max(bound, under(value - fall))
                if self.positive(value, fall):
                    return Step(settled=True, bound=bound)
        score = [(b - a + 0.05 * max(abs(a), abs(b))) * r for (a, b), r in zip(mixed, half, strict=True)]
        axis = max(range(len(half)), key=score.__getitem__)
        if half[axis] < half[widest] / 256:
            axis = widest
        noise = not active and at is not None and at.contains(0)
        return Step(axis=axis, active=active, noise=noise, best=z, bound=bound)

    def at(self, formula: Formula, t: Sequence[float]) -> arb | None:
        try:
            return formula.point(self.frame.point(t))
        except Undefined:
            return None

    def tried(self, value: arb | None, z, centre) -> tuple[fmpq, ...] | None:
        """A witness when p is certainly negative at z (or at the box's centre) and exact evaluation agrees."""
        for t, ball in ((z, value), (centre, None if centre == z else self.at(self.formula, centre))):
            if ball is None or not ball < 0:
                continue
            x = self.frame.point(t)
            try:
                if any(g.point(x) < 0 for _, g in self.guards):
                    continue
            except Undefined:
                continue
            exact = self.frame.exact(t)
            for denominator in ROUNDINGS:
                rounded = tuple(round_to(v, denominator) for v in exact)
                if self.violates(rounded):
                    return rounded
            if self.violates(exact):
                return exact
        return None

    def with_guards(self, x, low, high, half, active, arbs, slopes):
        """The mean-value form of p - Σ λ g with the best multipliers of the active guards.

        Returns the slopes, the value at the best point and the fall from it; slopes are None when a guard is negative
        on all of the box, and the value is None when no multipliers help.
        """
        centre = [0.5 * (a + b) for a, b in zip(low, high, strict=True)]
        guards, indices, balls = [], [], []
        for j in active:
            kind, guard = self.guards[j]
            try:
                guard.wide(x)
            except Undefined:
                continue
            raw = guard.slopes(x)
            g = None if raw is None else intervals(raw, self.frame.scale)
            if g is None:
                continue
            z, fall = lowest([(-b, -a) for a, b in g], low, high)
            at = self.at(guard, z)
            if at is None:
                continue
            if at < -fall or (kind == GT and at <= -fall):
                return None, None, 0.0
            if kind == EQ:
                z, fall = lowest(g, low, high)
                other = self.at(guard, z)
                if other is not None and other > fall:
                    return None, None, 0.0
            g0 = self.at(guard, centre)
            if g0 is not None:
                guards.append((kind, float(g0), g))
                indices.append(j)
                balls.append(raw)
        p0 = self.at(self.formula, centre)
        if not guards or p0 is None:
            return slopes, None, 0.0
        chosen = self.multipliers(float(p0), slopes, guards, half)
        used = [(self.guards[j][1], b, lam) for j, b, lam in zip(indices, balls, chosen, strict=True) if lam != 0.0]
        if not used:
            return slopes, None, 0.0
        total = list(arbs)
        for _, b, lam in used:
            total = [s - lam * v for s, v in zip(total, b, strict=True)]
        mixed = intervals(total, self.frame.scale)
        if mixed is None:
            return slopes, None, 0.0
        z, fall = lowest(mixed, low, high)
        value = self.at(self.formula, z)
        for guard, _, lam in used:
            at = self.at(guard, z)
            value = None if value is None or at is None else value - lam * at
        return mixed, value, fall


def _mix(p, g, lam: float) -> list[tuple[float, float]]:
    if lam >= 0:
        return [(pa - lam * gb, pb - lam * ga) for (pa, pb), (ga, gb) in zip(p, g, strict=True)]
    return [(pa - lam * ga, pb - lam * gb) for (pa, pb), (ga, gb) in zip(p, g, strict=True)]


def round_to(value: fmpq, denominator: int) -> fmpq:
    scaled = value * denominator + fmpq(1, 2)
    return fmpq(int(scaled.p) // int(scaled.q), denominator)


@dataclass
class Run:
    """How a branch and bound ended: "proved", "refuted", "stuck" (a box became too small) or "time"."""

    end: str
    visited: int
    left: int = 0
    point: tuple[fmpq, ...] | None = None
    bound: float = math.inf
    boxes: tuple = ()


def branch(problem: Any, boxes: Sequence, deadline: Deadline, limit: float = math.inf, hunt: bool = False) -> Run:
    """Settle every box, depth first.

    Args:
        problem: has `.frame` and `.examine(low, high, active) -> Step`.
        boxes: (low, high, active guards) triples, in the cube's coordinates, dyadic.
        deadline: when to stop.
        limit: most boxes to visit.
        hunt: look for a witness only: breadth first, past boxes that are too small to split.
    """
    stack, visited, bound = deque(boxes), 0, math.inf
    take = stack.popleft if hunt else stack.pop
    while stack:
        if visited >= limit or (visited % CHECK_EVERY == 0 and deadline.over):
            return Run("time", visited, len(stack), bound=bound, boxes=tuple(stack))
        low, high, active = take()
        visited += 1
        step = problem.examine(low, high, active)
        if step.settled:
            bound = min(bound, step.bound)
            continue
        if step.witness is not None:
            return Run("refuted", visited, len(stack), step.witness, bound)
        i = step.axis
        width = high[i] - low[i]
        if width < SMALLEST or (step.noise and width < SMALL):
            if hunt:
                continue
            stack.append((low, high, step.active))
            best = step.best or [0.5 * (a + b) for a, b in zip(low, high, strict=True)]
            return Run("stuck", visited, len(stack), problem.frame.exact(best), bound, tuple(stack))
        middle = 0.5 * (low[i] + high[i])
        stack.append((low, (*high[:i], middle, *high[i + 1 :]), step.active))
        stack.append(((*low[:i], middle, *low[i + 1 :]), high, step.active))
    return Run("stuck" if hunt else "proved", visited, bound=bound)


class Minimum(Scalar):
    """The same bounds with nothing to decide: no box is settled by its sign, and no witness is looked for."""

    def __init__(self, formula: Formula, frame: Frame, guards: Sequence[tuple[str, Formula]]):
        super().__init__(formula, frame, guards, True, lambda _: False)

    def positive(self, ball: arb, fall: float = 0.0) -> bool:
        return False

    def tried(self, value, z, centre) -> None:
        return None

    def upper(self, t: Sequence[float]) -> float:
        """p at a point that is certainly in the set, rounded up; ∞ when it may be outside."""
        x = self.frame.point(t)
        try:
            for kind, guard in self.guards:
                g = guard.point(x)
                if kind == EQ or not (g > 0 if kind == GT else g >= 0):
                    return math.inf
            return over(self.formula.point(x))
        except Undefined:
            return math.inf


def least(problem: Minimum, boxes: Sequence, deadline: Deadline, gap: float) -> tuple[float, float]:
    """Floats below and above the infimum, by best-first branch and bound."""
    heap, upper, count, spread = [], math.inf, itertools.count(), 0.0

    def add(low, high, active, bound: float) -> None:
        nonlocal upper
        step = problem.examine(low, high, active)
        if step.settled:  # outside of the set
            return
        centre = [0.5 * (a + b) for a, b in zip(low, high, strict=True)]
        upper = min(upper, problem.upper(centre), problem.upper(step.best))
        if (bound := max(bound, step.bound)) <= upper:
            heapq.heappush(heap, (bound, next(count), low, high, step.active, step.axis))

    for box in boxes:
        add(box[0], box[1], box[2], -math.inf)
    while heap:
        bound, _, low, high, active, i = heap[0]
        spread = spread or (upper - bound if math.isfinite(upper - bound) else 0.0)
        done = upper - bound <= max(gap * max(abs(upper), abs(bound)), 1e-9 * gap * spread)
        if done or high[i] - low[i] < SMALLEST or (next(count) % CHECK_EVERY == 0 and deadline.over):
            return bound, upper
        heapq.heappop(heap)
        middle = 0.5 * (low[i] + high[i])
        add(low, (*high[:i], middle, *high[i + 1 :]), active, bound)
        add((*low[:i], middle, *low[i + 1 :]), high, active, bound)
    return upper, upper


def subtract(low, high, hole: Box) -> list[Box]:
    """The box without the hole's interior, as boxes."""
    inner_low = tuple(max(a, b) for a, b in zip(low, hole[0], strict=True))
    inner_high = tuple(min(a, b) for a, b in zip(high, hole[1], strict=True))
    if any(a >= b for a, b in zip(inner_low, inner_high, strict=True)):
        return [(low, high)]
    pieces = []
    for i in range(len(low)):
        if low[i] < inner_low[i]:
            pieces.append((low, (*high[:i], inner_low[i], *high[i + 1 :])))
        if inner_high[i] < high[i]:
            pieces.append(((*low[:i], inner_high[i], *low[i + 1 :]), high))
        low = (*low[:i], inner_low[i], *low[i + 1 :])
        high = (*high[:i], inner_high[i], *high[i + 1 :])
    return pieces


def violation(claim: Claim, signs: Callable[[Sequence[fmpq]], int | None], guards: Sequence[tuple[str, Formula]]):
    """A test of rational points: is x a point of the set at which the claim is certainly false?"""
    hole = None if claim.except_at is None else tuple(map(rational, claim.except_at))

    box = [(rational(a), rational(b)) for a, b in claim.box] if claim.bounded else []

    def test(x: Sequence[fmpq]) -> bool:
        if any(not a <= v <= b for v, (a, b) in zip(x, box, strict=bool(box))):
            return False
        if hole is not None and tuple(x) == hole:
            return False
        for kind, guard in guards:
            sign = guard.sign(x)
            if sign is None or sign < 0 or (kind == EQ and sign) or (kind == GT and sign == 0):
                return False
        sign = signs(x)
        return sign is not None and (sign < 0 or (sign == 0 and claim.strict))

    return test


class Matrix:
    """F ≻ 0 (or ⪰ 0) on {g ≥ 0}: how one box is settled. `entries` encloses the upper triangle, row by row."""

    def __init__(self, claim: Claim, frame: Frame, guards: Sequence[tuple[str, Formula]]):
        k = claim.size
        self.k, self.frame, self.guards, self.strict = k, frame, tuple(guards), claim.strict
        self.pairs = [(i, j) for i in range(k) for j in range(i, k)]
        self.code = Compiled([claim.matrix[i, j] for i, j in self.pairs], claim.states)
        slope = self.code.derivative()
        self.slope = None if slope is None else slope.wide
        self.violates = violation(claim, self.sign, guards)

    cut = Scalar.cut

    def square(self, entries: Sequence[arb]) -> list[list[Any]]:
        out: list[list[Any]] = [[None] * self.k for _ in range(self.k)]
        for (i, j), value in zip(self.pairs, entries, strict=True):
            out[i][j] = out[j][i] = value
        return out

    def sign(self, x: Sequence[fmpq]) -> int | None:
        """-1 when vᵀF(x)v < 0 for some rational v, else None."""
        import numpy as np

        for bits in (POINT_BITS, 4 * POINT_BITS):
            try:
                matrix = self.square(self.code.at(x, bits))
            except Undefined:
                return None
            _, vectors = np.linalg.eigh(np.array([[float(v) for v in row] for row in matrix]))
            v = [arb(float(c)) for c in vectors[:, 0]]
            with ctx.workprec(bits):
                value = sum((v[i] * matrix[i][j] * v[j] for i in range(self.k) for j in range(self.k)), arb(0))
            if value < 0:
                return -1
            if value > 0:
                return None
        return None

    def examine(self, low, high, active) -> Step:
        x = self.frame.balls(low, high)
        active = self.cut(x, active)
        if active is None:
            return Step(settled=True)
        half = [0.5 * (b - a) for a, b in zip(low, high, strict=True)]
        axis = max(range(len(half)), key=lambda i: half[i])
        try:
            entries = list(self.code.wide(*x))
        except Undefined:
            return Step(axis=axis, active=active)
        if positive_definite(self.square(entries), not self.strict):
            return Step(settled=True)
        centre = [0.5 * (a + b) for a, b in zip(low, high, strict=True)]
        try:
            middle = self.code.point(*self.frame.point(centre))
            slopes = None if self.slope is None else self.slope(*x)
        except Undefined:
            return Step(axis=axis, active=active)
        d, scale = len(half), self.frame.scale
        if slopes is not None:
            spread = [h * arb(0, r) for h, r in zip(self.frame.halves, half, strict=True)]
            for e in range(len(entries)):
                form = middle[e] + sum((slopes[e * d + i] * spread[i] for i in range(d)), arb(0))
                if form.rad() < entries[e].rad():
                    entries[e] = form
            if positive_definite(self.square(entries), not self.strict):
                return Step(settled=True)
            sizes = [
                sum(float(slopes[e * d + i].abs_upper()) for e in range(len(entries))) * scale[i] * half[i]
                for i in range(d)
            ]
            best = max(range(d), key=lambda i: sizes[i])
            axis = best if half[best] >= half[axis] / 256 else axis
        if any(value < 0 for value in _leading_minors(self.square(middle))):
            exact = self.frame.exact(centre)
            for x0 in (*(tuple(round_to(v, q) for v in exact) for q in ROUNDINGS), exact):
                if self.violates(x0):
                    return Step(witness=x0)
        return Step(axis=axis, active=active)


def _leading_minors(matrix: list[list[arb]]) -> list[float]:
    """The smallest eigenvalue in floats, in a list: a hint that the exact test is worth its time."""
    import numpy as np

    values = np.array([[float(v) for v in row] for row in matrix])
    return [float(np.linalg.eigvalsh(values)[0])] if np.isfinite(values).all() else []
