"""What is certain of a safe set S = {h_j ≥ 0 for all j}: that it is convex, bounded, has an inside; and a point in it.

What may be called certain rests on exact arithmetic: on h_j of first or second degree with rational coefficients, read
as such, and on balls for other formulas. Points are found by a search in floats, and then looked at exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

from ctrlgen.constraint import Constraint
from ctrlgen.constraints import Constraints
from ctrlgen.energies.spectral import BITS, down, is_positive, spectrum_bounds

REACH = 2.0 ** np.arange(-6, 11)  # how far from the origin a point inside is looked for
SPREAD = 256  # points at each distance
KEPT = 64  # sets whose facts are remembered
ROOM = (2.0**-4, 2.0**-20, 2.0**-40)  # of a point's distance to the walls: a box around it that is inside


# What the formulas say, exactly -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """h = c + q·x - ½ xᵀPx with rational coefficients.

    Args:
        bend: P, (d, d), symmetric, of Fractions; None where it is zero.
        slope: q, (d,), of Fractions.
        constant: c.
    """

    bend: np.ndarray | None
    slope: np.ndarray
    constant: Fraction

    def floats(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """h and ∇h at points (n, d), in float64: (n,) and (n, d)."""
        q, c = self.slope.astype(np.float64), float(self.constant)
        if self.bend is None:
            return c + points @ q, np.broadcast_to(q, points.shape)
        pull = points @ self.bend.astype(np.float64)
        return c + points @ q - (pull * points).sum(axis=1) / 2, q - pull

    def low_on(self, point: np.ndarray, half: Fraction) -> Fraction:
        """A lower bound of h on the box of half-side `half` around a point (d,) of Fractions."""
        pull = self.slope - (self.bend @ point if self.bend is not None else 0)
        twice = sum(((q + p) * v for q, p, v in zip(self.slope, pull, point, strict=True)), Fraction(0))
        bend = sum((abs(v) for v in self.bend.ravel()), Fraction(0)) if self.bend is not None else Fraction(0)
        return self.constant + twice / 2 - half * sum((abs(p) for p in pull), Fraction(0)) - half**2 * bend / 2

    @property
    def top(self) -> Fraction | None:
        """The maximum of h where P ≻ 0, or P ⪰ 0 is diagonal and there is one; None elsewhere."""
        if self.bend is None:
            return None
        at = _solved(self.bend, self.slope)
        if at is None:
            return None
        return self.constant + sum((q * v for q, v in zip(self.slope, at, strict=True)), Fraction(0)) / 2


def _form(part: Constraint) -> Form | None:
    """A formula of at most second degree; None for any other, and where a coefficient is not rational."""
    import sympy as sp

    expr, d = part.field.expr, part.dim
    if part.moving or expr is None or not expr.is_polynomial(*part.states):
        return None
    poly = sp.Poly(expr, *part.states)
    if poly.total_degree() > 2 or not all(c.is_Rational for c in poly.coeffs()):
        return None
    bend, slope, constant = _zeros(d, d) if poly.total_degree() == 2 else None, _zeros(d), Fraction(0)
    for powers, coefficient in poly.terms():
        value = Fraction(int(coefficient.p), int(coefficient.q))
        where = [i for i, n in enumerate(powers) for _ in range(n)]
        if len(where) == 2 and bend is not None:
            i, j = where
            bend[i, j] -= value
            bend[j, i] -= value
        elif len(where) == 1:
            slope[where[0]] += value
        else:
            constant += value
    return Form(bend, slope, constant)


@lru_cache(maxsize=KEPT)
def forms(constraints: Constraints) -> tuple[Form | None, ...]:
    """The forms of all constraints, None for those that have none."""
    return tuple(_form(part) for part in constraints)


def _concave(part: Constraint, form: Form | None) -> bool:
    if form is None:
        return part.concave
    if form.bend is None:
        return True
    return all(v >= 0 for v in np.diag(form.bend)) if _is_diagonal(form.bend) else part.concave


def _sides(found: Sequence[Form | None], dim: int) -> tuple[list[Fraction | None], list[Fraction | None]]:
    """The tightest l_i ≤ x_i and x_i ≤ u_i among half-spaces along a coordinate, None where there is none."""
    low: list[Fraction | None] = [None] * dim
    high: list[Fraction | None] = [None] * dim
    for form in found:
        if form is None or form.bend is not None:
            continue
        used = [i for i, v in enumerate(form.slope) if v]
        if len(used) != 1:
            continue
        i = used[0]
        bound, rises = -form.constant / form.slope[i], form.slope[i] > 0
        old = low[i] if rises else high[i]
        if rises:
            low[i] = bound if old is None else max(old, bound)
        else:
            high[i] = bound if old is None else min(old, bound)
    return low, high


@lru_cache(maxsize=KEPT)
def convex_with_inside(constraints: Constraints) -> bool:
    """Whether S is certainly convex, every h_j being concave, and certainly has an inside."""
    every = zip(constraints, forms(constraints), strict=True)
    return all(_concave(part, form) for part, form in every) and certain_inside(constraints) is not None


@lru_cache(maxsize=KEPT)
def barrier_bound(constraints: Constraints) -> float | None:
    """m ≥ 0 with ∇²(-Σ log h_j) ⪰ m I on S, rounded down; see `LogBarrier.properties`."""
    if not convex_with_inside(constraints):
        return None
    d, found = constraints.dim, forms(constraints)
    total = _zeros(d, d)
    for form in found:
        top = None if form is None else form.top
        if form is not None and form.bend is not None and top is not None and top > 0:
            total = total + form.bend / top
    for i, (low, high) in enumerate(zip(*_sides(found, d), strict=True)):
        if low is not None and high is not None and high > low:
            total[i, i] += 8 / (high - low) ** 2
    if _is_diagonal(total):
        return max(0.0, down(min(np.diag(total))))
    with _precise():
        return max(0.0, float(spectrum_bounds(_balls(total))[0]))


@lru_cache(maxsize=KEPT)
def bounded(constraints: Constraints) -> bool:
    """Whether S is certainly bounded.

    On S the concave h_j of second degree and the products (u - x_i)(x_i - l) of sides are not negative, nor is their
    sum; where the sum's Hessian is negative definite that set is an ellipsoid.
    """
    d, found = constraints.dim, forms(constraints)
    total = _zeros(d, d)
    for part, form in zip(constraints, found, strict=True):
        if form is not None and form.bend is not None and _concave(part, form):
            total = total + form.bend
    for i, (low, high) in enumerate(zip(*_sides(found, d), strict=True)):
        if low is not None and high is not None:
            total[i, i] += 2
    if _is_diagonal(total):
        return all(v > 0 for v in np.diag(total))
    with _precise():
        return is_positive(_balls(total))


@lru_cache(maxsize=KEPT)
def tops(constraints: Constraints) -> tuple[float | None, ...]:
    """About an upper bound of each h_j on S, and never below it; None where none is known."""
    d, found = constraints.dim, forms(constraints)
    sides = _sides(found, d)
    low = np.array([-np.inf if v is None else float(v) for v in sides[0]])
    high = np.array([np.inf if v is None else float(v) for v in sides[1]])
    for form in found:
        if form is None or form.bend is None or not _is_diagonal(form.bend) or form.top is None or form.top <= 0:
            continue
        for i, p in enumerate(np.diag(form.bend)):
            if p > 0:
                middle, reach = float(form.slope[i] / p), float(2 * form.top / p) ** 0.5
                low[i], high[i] = max(low[i], middle - reach), min(high[i], middle + reach)
    out = []
    for form in found:
        most = np.inf
        if form is not None and form.bend is None:
            q = form.slope.astype(np.float64)
            ends = [a * b if a else 0.0 for a, b in zip(q, np.where(q > 0, high, low), strict=True)]
            most = float(form.constant) + sum(ends)
        elif form is not None and form.top is not None:
            most = float(form.top)
        out.append(most + 1e-9 * abs(most) if 0 < most < np.inf else None)
    return tuple(out)


def escapes_into(constraints: Constraints, direction: np.ndarray) -> bool:
    """Whether S certainly holds the far end of every ray in a direction (d,), and of a tube around it.

    Known for half-spaces whose h rises along it, and for sets with a bounded complement.
    """
    u = [Fraction(float(v)) for v in direction]
    for form in forms(constraints):
        if form is None:
            return False
        if form.bend is None:
            if not sum((q * v for q, v in zip(form.slope, u, strict=True)), Fraction(0)) > 0:
                return False
            continue
        with _precise():
            if not is_positive(_balls(-form.bend)):
                return False
    return True


def polynomial(constraints: Constraints) -> bool:
    """Whether every h_j is a polynomial, so that h_j^{μ/ε} grows no faster than a power of |x|."""
    return all(part.field.expr is not None and part.field.expr.is_polynomial(*part.states) for part in constraints)


@lru_cache(maxsize=KEPT)
def joined(*sets: Constraints) -> Constraints:
    """The set in which several hold at once."""
    apart = tuple(dict.fromkeys(sets))
    return apart[0] if len(apart) == 1 else Constraints([part for s in apart for part in s])


# A point inside ---------------------------------------------------------------------------------------------------


@lru_cache(maxsize=KEPT)
def deep_point(constraints: Constraints) -> np.ndarray | None:
    """A point (d,) far from the walls, or 1 from them where S is not known to be bounded; None if none was found."""
    best, depth = None, 0.0
    most = np.inf if bounded(constraints) else 1.0

    def looked_at(points: np.ndarray) -> np.ndarray:
        return np.minimum(depths(constraints, points), most)

    for points in _guesses(constraints):
        if depth >= most:
            break
        found = looked_at(points)
        k = int(found.argmax())
        if found[k] > depth:
            best, depth = points[k], float(found[k])
    if best is None:
        return None
    rng = np.random.default_rng(0)
    step = max(depth, 1e-12)
    for _ in range(60 if depth < most else 0):
        trial = best + step * rng.standard_normal((64, constraints.dim)) / np.sqrt(constraints.dim)
        found = looked_at(trial)
        k = int(found.argmax())
        if found[k] > depth:
            best, depth, step = trial[k], float(found[k]), 1.5 * step
        else:
            step /= 2
    return best


def depths(constraints: Constraints, points: np.ndarray) -> np.ndarray:
    """About the distance from points (n, d) to the nearest wall, negative outside: min h_j/|∇h_j|, at most 1e6."""
    out = np.full(len(points), 1e6)
    for part, form in zip(constraints, forms(constraints), strict=True):
        with np.errstate(all="ignore"):
            value, slope = form.floats(points) if form is not None else (part.at(points), part.slope_at(points))
            length = np.linalg.norm(slope, axis=1)
            out = np.minimum(out, np.where(length > 0, value / length, np.where(value > 0, np.inf, -np.inf)))
    return np.where(np.isnan(out), -np.inf, out)


def _guesses(constraints: Constraints) -> Iterator[np.ndarray]:
    """Points (n, d) at which S may be: centres, the middle of half-spaces, and shells of all sizes."""
    d = constraints.dim
    shapes = [part.shape for part in constraints]
    most = 1e6 if bounded(constraints) else 1.0
    middle = _chebyshev([s for s in shapes if s is not None and s.kind == "half-space"], d, most)
    centres = [np.zeros(d), *(s.vector for s in shapes if s is not None and s.kind != "half-space"), *middle]
    yield np.array(centres)
    yield np.mean(centres, axis=0, keepdims=True)
    rng = np.random.default_rng(0)
    for centre in np.unique(np.array(centres), axis=0)[:8]:
        for reach in REACH:
            yield centre + reach * rng.standard_normal((SPREAD, d)) / np.sqrt(d)


def _chebyshev(planes: Sequence[Any], dim: int, most: float) -> list[np.ndarray]:
    """The centre of the largest ball, of radius at most `most`, inside half-spaces; none where they do not meet."""
    from scipy.optimize import linprog

    if not planes:
        return []
    a = np.array([[*p.vector, 1.0] for p in planes])
    for reach in (2.0, 1e4):
        size = reach * (1 + max(abs(p.size) for p in planes))
        limits = [(-size, size)] * dim + [(0, most)]
        found = linprog([0.0] * dim + [-1.0], A_ub=a, b_ub=[p.size for p in planes], bounds=limits)
        if found.status == 0 and found.x[-1] > 0:
            return [found.x[:dim]]
    return []


@lru_cache(maxsize=KEPT)
def certain_inside(constraints: Constraints) -> np.ndarray | None:
    """A point (d,) with a box around it on which every h_j is certainly positive; None where none was found."""
    point = deep_point(constraints)
    if point is None:
        return None
    depth = float(depths(constraints, point[None])[0])
    sizes = [Fraction(depth * room / np.sqrt(constraints.dim)) for room in ROOM]
    return point if any(positive_around(constraints, point, size) for size in sizes) else None


def positive_around(constraints: Constraints, point: np.ndarray, half: Fraction) -> bool:
    """Whether every h_j is certainly positive on the box of half-side `half` around a point (d,), exactly or in balls.

    False also where an h_j has no formula.
    """
    if any(part.field.expr is None for part in constraints):
        return False
    from flint import ctx, fmpq

    from ctrlgen.prove.balls import Compiled, Undefined, Unsupported
    from ctrlgen.prove.pointwise import box_around

    exact = np.array([Fraction(float(v)) for v in point], object)
    every = list(zip(constraints, forms(constraints), strict=True))
    if not all(form.low_on(exact, half) > 0 for _, form in every if form is not None):
        return False
    with ctx.workprec(BITS):
        box = box_around([fmpq(v.numerator, v.denominator) for v in exact], fmpq(half.numerator, half.denominator))
        try:
            return all(
                value > 0
                for part, form in every
                if form is None
                for value in Compiled([part.field.formula()], part.states).wide(*box)
            )
        except (Undefined, Unsupported):
            return False


# Small exact arithmetic -------------------------------------------------------------------------------------------


def _zeros(*shape: int) -> np.ndarray:
    return np.full(shape, Fraction(0), object)


def _is_diagonal(matrix: np.ndarray) -> bool:
    return not any(v for i, row in enumerate(matrix) for j, v in enumerate(row) if i != j)


def _precise() -> Any:
    from flint import ctx

    return ctx.workprec(BITS)


def _balls(matrix: np.ndarray) -> Any:
    from flint import arb, arb_mat, fmpq

    return arb_mat([[arb(fmpq(v.numerator, v.denominator)) for v in row] for row in matrix])


def _solved(matrix: np.ndarray, right: np.ndarray) -> np.ndarray | None:
    """A maximiser of q·x - ½ xᵀPx, P x = q; None where P ⪰ 0 was not established, or there is none."""
    if _is_diagonal(matrix):
        diagonal = np.diag(matrix)
        if any(p < 0 or (p == 0 and q != 0) for p, q in zip(diagonal, right, strict=True)):
            return None
        return np.array([q / p if p else Fraction(0) for p, q in zip(diagonal, right, strict=True)], object)
    from flint import fmpq, fmpq_mat

    with _precise():
        if not is_positive(_balls(matrix)):
            return None
    n = len(right)
    exact = fmpq_mat(n, n, [fmpq(v.numerator, v.denominator) for v in matrix.ravel()])
    found = exact.solve(fmpq_mat(n, 1, [fmpq(v.numerator, v.denominator) for v in right]))
    return np.array([Fraction(int(found[i, 0].p), int(found[i, 0].q)) for i in range(n)], object)
