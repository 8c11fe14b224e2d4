"""Constraints h_j(x, t) ≥ 0 at work on a batch of particles: values, derivatives, rounding, and the way back inside.

States are dimension-first, (d, n), as everywhere inside; t is a scalar. The formulas are the exact ones of a `Field`;
here they are compiled functions, of which rounding is bounded: `floors` says how far above 0 a computed value must be
for the exact one not to be negative. Half-spaces, balls and complements of balls are known by their formula, and are
left by their exact projection or mirror image; any other set by Newton's step along ∇h.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import sympy as sp

from ctrlgen.field import Field
from ctrlgen.formula import derivative, jax_function
from ctrlgen.precision import float64

SWEEPS = 8  # over all constraints, on the way back inside
FEW = 4  # half-spaces that are swept one by one, without a loop
EXACT = jax.lax.Precision.HIGHEST  # of products: the default of some devices rounds to 10 bits
UNROLLED = 16  # rows up to which a sum over them is written out
HALVINGS = 6  # of the step, where sweeps did not lead inside
SAFETY = 4.0  # on the first-order bound of rounding
ULPS = 8  # that an elementary function may be off by
CALIBRATED = 64.0  # times the rounding that was seen, for functions without a formula


@dataclass(frozen=True)
class Shape:
    """What a formula of first or second degree is: h = scale·(offset - normal·x), or ±scale·(radius² - |x - centre|²).

    Args:
        kind: "half-space", "ball" or "outside" (of a ball).
        vector: the unit normal, or the centre, (d,).
        size: the offset, or the radius.
        scale: positive.
    """

    kind: str
    vector: np.ndarray
    size: float
    scale: float


class Constraint:
    """One safe set {x: h(x, t) ≥ 0}.

    Args:
        field: h as a function of the states, or of (*states, t) where `moving`.
        moving: whether the last coordinate of the field is the time.
        name: what messages call it.
    """

    def __init__(self, field: Field, moving: bool = False, name: str = "h"):
        self.field, self.moving, self.name = field, moving, name
        self.dim = field.dim - moving
        self.states = field.states[: self.dim]

    def __repr__(self) -> str:
        text = "a function without formula" if self.field.expr is None else str(self.field.expr)
        return f"{self.name} = {text if len(text) < 100 else text[:97] + '...'}"

    @cached_property
    def shape(self) -> Shape | None:
        """The half-space, ball or complement of a ball that this is, read from its formula."""
        return None if self.moving or self.field.expr is None else _shape(self.field.expr, self.states)

    @cached_property
    def concave(self) -> bool:
        """Whether h is certainly concave, so that its set is convex: an affine formula, or a quadratic one."""
        form = quadratic(self)
        return form is not None and bool((-form[0]).is_positive_semidefinite)

    # Values and derivatives; x (d, ...), t a scalar ----------------------------------------------------------

    def value(self, x: Any, t: Any = 0.0) -> Any:
        """h, (...)."""
        return self.field.columns(self._with_time(x, t))

    def gradient(self, x: Any, t: Any = 0.0) -> Any:
        """∇h, (d, ...)."""
        if self.field.expr is not None:
            return _stacked(self._slopes, self._with_time(x, t))
        return jax.grad(lambda y: jnp.sum(self.value(y, t)))(x)

    def rate(self, x: Any, t: Any = 0.0) -> Any:
        """∂h/∂t, (...); zero for a set at rest."""
        if not self.moving:
            return jnp.zeros(x.shape[1:], x.dtype)
        if self.field.expr is not None:
            return _stacked(self._drift, self._with_time(x, t))[0]
        return jax.jvp(lambda s: self.value(x, s), (jnp.asarray(t, x.dtype),), (jnp.ones((), x.dtype),))[1]

    def curvature(self, x: Any, t: Any = 0.0, mobility: Any = None) -> Any:
        """tr(K ∇²h), (...); Δh where K is None. K is (d,) or (d, d).

        Raises:
            ValueError: the formula is not twice differentiable.
        """
        if self.field.expr is not None:
            diagonal, whole = self._entries
            if mobility is None or np.ndim(mobility) == 1:
                entries = _stacked(diagonal, self._with_time(x, t))
                return total(entries if mobility is None else moved(mobility, entries))
            bends = _stacked(whole(), self._with_time(x, t)).reshape(self.dim, self.dim, *x.shape[1:])
            return jnp.einsum("ij,ij...->...", jnp.asarray(mobility, x.dtype), bends)
        k = jnp.eye(self.dim, dtype=x.dtype) if mobility is None else jnp.asarray(mobility, x.dtype)
        k = jnp.diag(k) if k.ndim == 1 else k

        def row(i: int) -> Any:
            v = jnp.broadcast_to(k[i].reshape(-1, *(1,) * (x.ndim - 1)), x.shape)
            return jax.jvp(lambda y: self.gradient(y, t), (x,), (v,))[1][i]

        return sum(row(i) for i in range(self.dim))

    def floor(self, x: Any, t: Any = 0.0, slack: Any = 0.0) -> Any:
        """How far above 0 the value computed at x has to be for the exact one not to be negative, (...).

        From the formula, by a running error analysis; for a function without one, `slack` (`calibrate`).
        """
        if self.field.expr is None:
            return jnp.broadcast_to(jnp.asarray(slack, x.dtype), x.shape[1:])
        unit = SAFETY * float(np.finfo(np.dtype(x.dtype)).eps) / 2
        return jnp.asarray(unit, x.dtype) * _stacked(self._errors, self._with_time(x, t))[0]

    def calibrate(self, points: np.ndarray) -> float:
        """For a function without a formula: a multiple of what single precision made of it at points (n, d)."""
        if self.field.expr is not None:
            return 0.0
        single = np.asarray(self.value(jnp.asarray(points.T, jnp.float32), 0.0), np.float64)
        exact = self.at(points.astype(np.float32))
        seen = np.abs(single - exact)
        return float(CALIBRATED * max(seen[np.isfinite(seen)].max(initial=0.0), np.finfo(np.float32).eps * 1e-3))

    def at(self, points: Any, t: float = 0.0) -> np.ndarray:
        """h in float64 at points (n, d), (n,)."""
        x = np.atleast_2d(np.asarray(points, np.float64))
        with float64():
            return np.asarray(self.value(jnp.asarray(x.T), t), np.float64)

    def slope_at(self, points: Any, t: float = 0.0) -> np.ndarray:
        """∇h in float64 at points (n, d), (n, d)."""
        x = np.atleast_2d(np.asarray(points, np.float64))
        with float64():
            return np.asarray(self.gradient(jnp.asarray(x.T), t), np.float64).T

    # The way back ----------------------------------------------------------------------------------------------

    def returned(self, x: Any, t: Any, floor: Any, level: Any, mirror: bool, mobility: Any = None) -> Any:
        """x where h ≥ level + 1.5 floor; else its mirror image in, or its projection to, {h = level + 2 floor}.

        Exact for half-spaces and, with the Euclidean metric, for balls and complements of balls; one step of Newton for
        others, along K∇h, the normal in the metric K⁻¹: reflection along it keeps a Gibbs measure.

        Args:
            x: (d, n).
            floor, level: (n,): rounding, and how far the set is open (h ≥ level, level ≤ 0 in a tube).
            mirror: mirror image; else projection.
            mobility: K, (d,) or (d, d); the identity when omitted.
        """
        value = self.value(x, t)
        outside = ~(value >= level + 1.5 * floor)  # more than what `inside` asks: the two are rounded apart
        eps = 2 * jnp.finfo(x.dtype).eps
        if self.shape is None or self.shape.kind == "half-space" or mobility is not None:
            slope = self.gradient(x, t)
            normal = moved(mobility, slope)
            square = total(slope * normal)
            target = level + 2 * floor + eps * total(jnp.abs(slope * x))  # and what rounding the position costs
            push = (1 + mirror) * (target - value) / jnp.where(square > 0, square, 1)
            return jnp.where(outside, x + push * normal, x)
        sign = 1.0 if self.shape.kind == "ball" else -1.0
        centre = jnp.asarray(self.shape.vector, x.dtype).reshape(-1, *(1,) * (x.ndim - 1))
        away = x - centre
        target = level + 2 * floor + (2 * eps * self.shape.scale) * total(jnp.abs(away * x))
        radius = jnp.sqrt(jnp.maximum(self.shape.size**2 - sign * target / self.shape.scale, 0))
        distance = jnp.sqrt(total(away * away))
        wanted = radius
        if mirror and sign > 0:  # along its ray a particle is mirrored at both ends of the chord, as often as it takes
            turns = (distance + radius) / jnp.maximum(4 * radius, jnp.finfo(x.dtype).tiny)
            wanted = radius - 4 * radius * jnp.abs(turns - jnp.floor(turns) - 0.5)
        elif mirror:
            wanted = 2 * radius - distance
        first = jnp.zeros_like(away).at[0].set(1)
        direction = jnp.where(distance > 0, away / jnp.where(distance > 0, distance, 1), first)
        return jnp.where(outside, centre + wanted * direction, x)

    # What formulas are compiled to -----------------------------------------------------------------------------

    def _with_time(self, x: Any, t: Any) -> Any:
        if not self.moving:
            return x
        return jnp.concatenate([x, jnp.broadcast_to(jnp.asarray(t, x.dtype), (1, *x.shape[1:]))])

    def _compile(self, exprs: Sequence[Any]) -> Callable:
        return jax_function(self.field.states, list(exprs))

    @cached_property
    def _slopes(self) -> Callable:
        return self._compile([derivative(self.field.expr, s) for s in self.states])

    @cached_property
    def _drift(self) -> Callable:
        return self._compile([derivative(self.field.expr, self.field.states[-1])])

    @cached_property
    def _entries(self) -> tuple[Callable, Callable]:
        """The diagonal of ∇²h, and a way to all of it."""
        first = [derivative(self.field.expr, s) for s in self.states]
        diagonal = self._compile([derivative(e, s) for e, s in zip(first, self.states, strict=True)])
        return diagonal, lambda: self._compile([derivative(e, s) for e in first for s in self.states])

    @cached_property
    def _errors(self) -> Callable:
        return self._compile([_error(self.field.expr, self.field.states[-1] if self.moving else None)])


def total(rows: Any) -> Any:
    """Sum over the first axis; few rows are added one by one, for XLA's reductions are slow on a CPU."""
    return reduce(jnp.add, [rows[i] for i in range(len(rows))]) if len(rows) <= UNROLLED else jnp.sum(rows, axis=0)


def least(rows: Any) -> Any:
    """Minimum over the first axis."""
    return reduce(jnp.minimum, [rows[i] for i in range(len(rows))]) if len(rows) <= UNROLLED else jnp.min(rows, axis=0)


def every(rows: Any) -> Any:
    """Whether all of the first axis hold."""
    several = [rows[i] for i in range(len(rows))] if len(rows) <= UNROLLED else []
    return reduce(jnp.logical_and, several) if several else jnp.all(rows, axis=0)


def moved(mobility: Any, x: Any) -> Any:
    """K x, (d, ...), for K None (the identity), (d,) or (d, d)."""
    if mobility is None:
        return x
    k = jnp.asarray(mobility, x.dtype)
    return k.reshape(-1, *(1,) * (x.ndim - 1)) * x if k.ndim == 1 else jnp.tensordot(k, x, axes=1)


def along(slopes: Any, vector: Any) -> Any:
    """∇h_j·v for every j: (m, d, n) and (d, n) to (m, n)."""
    m, d = slopes.shape[:2]
    if m * d > UNROLLED:
        return total(jnp.swapaxes(slopes, 0, 1) * vector[:, None])
    return jnp.stack([reduce(jnp.add, [slopes[j, i] * vector[i] for i in range(d)]) for j in range(m)])


class Constraints:
    """Several constraints at once: the safe set is where all of them hold.

    Args:
        parts: at least one, all of one dimension.
    """

    def __init__(self, parts: Sequence[Constraint]):
        self.parts = tuple(parts)
        self.dim = self.parts[0].dim
        self._affine = self._read_affine()

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Any:
        return iter(self.parts)

    @property
    def moving(self) -> bool:
        """Whether a part moves with time."""
        return any(p.moving for p in self.parts)

    @property
    def concave(self) -> bool:
        """Whether the safe set is certainly convex, every h being concave."""
        return all(p.concave for p in self.parts)

    @property
    def _matrix(self) -> tuple[np.ndarray, np.ndarray] | None:
        """(A, b) of many half-spaces, for which one matrix product does; a few are faster one by one."""
        return self._affine if len(self) > FEW else None

    def _read_affine(self) -> tuple[np.ndarray, np.ndarray] | None:
        """(A, b) with h = b - A x where every part is a half-space."""
        if any(p.shape is None or p.shape.kind != "half-space" for p in self.parts):
            return None
        forms = [form for p in self.parts if (form := quadratic(p)) is not None]
        a = -np.array([[float(v) for v in slope] for _, slope, _ in forms])
        return a, np.array([float(constant) for _, _, constant in forms])

    def values(self, x: Any, t: Any = 0.0) -> Any:
        """h, (m, ...)."""
        if self._matrix is not None:
            a, b = (jnp.asarray(v, x.dtype) for v in self._matrix)
            return b.reshape(-1, *(1,) * (x.ndim - 1)) - jnp.tensordot(a, x, axes=1, precision=EXACT)
        return jnp.stack([p.value(x, t) for p in self.parts])

    def gradients(self, x: Any, t: Any = 0.0) -> Any:
        """∇h, (m, d, ...), with trailing axes of length 1 where it is constant."""
        if self._affine is not None:
            return -jnp.asarray(self._affine[0], x.dtype).reshape(len(self), self.dim, *(1,) * (x.ndim - 1))
        return jnp.stack([p.gradient(x, t) for p in self.parts])

    def rates(self, x: Any, t: Any = 0.0) -> Any:
        """∂h/∂t, (m, ...)."""
        return jnp.stack([p.rate(x, t) for p in self.parts])

    def curvatures(self, x: Any, t: Any = 0.0, mobility: Any = None) -> Any:
        """tr(K ∇²h), (m, ...)."""
        if self._affine is not None:
            return jnp.zeros((len(self), *x.shape[1:]), x.dtype)
        return jnp.stack([p.curvature(x, t, mobility) for p in self.parts])

    def floors(self, x: Any, t: Any = 0.0, slack: Any = None) -> Any:
        """How far above 0 the computed values have to be, (m, ...)."""
        if self._matrix is not None:
            a, b = (np.abs(v) for v in self._matrix)
            # a row along one axis with a coefficient of ±1 has an exact product
            terms = np.count_nonzero(a, axis=1)
            terms = np.where((terms == 1) & (a.max(axis=1) == 1), 0, terms + 2)
            size = jnp.asarray(b, x.dtype).reshape(-1, *(1,) * (x.ndim - 1)) + jnp.abs(self.values(x, t))
            size = size + jnp.tensordot(jnp.asarray(terms[:, None] * a, x.dtype), jnp.abs(x), axes=1, precision=EXACT)
            return jnp.asarray(SAFETY * float(np.finfo(np.dtype(x.dtype)).eps) / 2, x.dtype) * size
        slack = np.zeros(len(self)) if slack is None else slack
        return jnp.stack([p.floor(x, t, slack[j]) for j, p in enumerate(self.parts)])

    def calibrate(self, points: np.ndarray) -> np.ndarray:
        """The slack of every part, (m,)."""
        return np.array([p.calibrate(points) for p in self.parts])

    def inside(self, x: Any, t: Any = 0.0, slack: Any = None, levels: Any = 0.0) -> Any:
        """Whether h ≥ level certainly holds for all, (...) bool."""
        return every(self.values(x, t) - levels >= self.floors(x, t, slack))

    def at(self, points: Any, t: float = 0.0) -> np.ndarray:
        """h in float64 at points (n, d), (n, m)."""
        if self._affine is not None:
            return self._affine[1] - np.atleast_2d(np.asarray(points, np.float64)) @ self._affine[0].T
        return np.stack([p.at(points, t) for p in self.parts], axis=-1)

    def returned(
        self, x: Any, before: Any, t: Any, slack: Any, levels: Any, mirror: bool, mobility: Any = None
    ) -> tuple[Any, Any]:
        """Bring a batch back inside, and say which particles had left.

        Sweeps over the constraints, each particle to its mirror image or projection where it violates one; where that
        does not lead inside a set at rest, the step is halved; and at last the particle stays where it was, if that is
        inside. A particle that is no longer finite is left as it is: that is a failure of the run, not of the set.

        Args:
            x, before: (d, n), after and before the step.
            slack, levels: (m,) and (m, n) or 0.
            mirror, mobility: as in `Constraint.returned`.

        Returns:
            (d, n), and (n,) bool.
        """
        start = self.inside(x, t, slack, levels)
        static = not self.moving and np.ndim(levels) == 0
        levels = jnp.broadcast_to(jnp.asarray(levels, x.dtype), (len(self), *x.shape[1:]))

        def more(carry: Any) -> Any:
            _, good, i = carry
            return ~good.all() & (i < SWEEPS + HALVINGS)

        # halving leads to where the particle was, which is inside if the set has not moved
        sweeps = SWEEPS if static else SWEEPS + HALVINGS

        def body(carry: Any) -> Any:
            y, good, i = carry
            swept = self._swept(y, t, slack, levels, mirror, mobility)
            swept = jnp.where(every(jnp.isfinite(swept)), swept, y)
            moved = jnp.where(i < sweeps, swept, before + (y - before) / 2)
            y = jnp.where(good, y, moved)
            return y, self.inside(y, t, slack, levels) | lost, i + 1

        lost = ~every(jnp.isfinite(x))
        y, good, _ = jax.lax.while_loop(more, body, (x, start | lost, jnp.int32(0)))
        return jnp.where(~good & (static | self.inside(before, t, slack, levels)), before, y), ~start

    def _swept(self, x: Any, t: Any, slack: Any, levels: Any, mirror: bool, mobility: Any) -> Any:
        if self._box is not None and np.ndim(mobility) < 2:
            return self._swept_box(x, slack, levels, mirror)
        if self._matrix is not None:
            return self._swept_affine(x, slack, levels, mirror, mobility)
        for j, part in enumerate(self.parts):
            floor = part.floor(x, t, 0.0 if slack is None else slack[j])
            x = part.returned(x, t, floor, levels[j], mirror, mobility)
        return x

    @cached_property
    def _box(self) -> tuple[np.ndarray, np.ndarray] | None:
        """(rows of the tightest lower side, of the upper side) per coordinate, -1 without one; None for other sets."""
        if self._affine is None or (np.count_nonzero(self._affine[0], axis=1) != 1).any():
            return None
        low, high = np.full(self.dim, -1), np.full(self.dim, -1)
        for j, (row, b) in enumerate(zip(*self._affine, strict=True)):
            i = int(np.flatnonzero(row)[0])
            side = high if row[i] > 0 else low
            if side[i] < 0:
                side[i] = j
                continue
            known = self._affine[1][side[i]] / self._affine[0][side[i], i]
            if (b / row[i] < known) == (row[i] > 0):
                side[i] = j
        return low, high

    @property
    def box(self) -> tuple[np.ndarray, np.ndarray] | None:
        """(lower, upper) corners, infinite where there is no side, of a set that is a box; None for other sets."""
        if self._box is None or self._affine is None:
            return None
        a, b = self._affine
        coordinates, bounds = np.arange(self.dim), []
        for rows, none in zip(self._box, (-np.inf, np.inf), strict=True):
            bounds.append(np.where(rows < 0, none, b[rows] / np.where(rows < 0, 1.0, a[rows, coordinates])))
        return bounds[0], bounds[1]

    def _swept_box(self, x: Any, slack: Any, levels: Any, mirror: bool) -> Any:
        assert self._box is not None
        assert self._affine is not None
        floors = self.floors(x, 0.0, slack)
        for rows, sign in zip(self._box, (-1.0, 1.0), strict=True):
            used = rows >= 0
            row = np.where(used, rows, 0)
            a = np.where(used, np.abs(self._affine[0][row, np.arange(self.dim)]), 1.0)
            b = self._affine[1][row]
            shift = (levels[row] + 2 * floors[row]) / jnp.asarray(a, x.dtype)[:, None]
            shift = shift + jnp.asarray(2 * float(jnp.finfo(x.dtype).eps) * np.abs(b / a), x.dtype)[:, None]
            bound = jnp.asarray(sign * b / a, x.dtype)[:, None] - sign * shift
            beyond = jnp.asarray(used)[:, None] & (sign * (x - bound) > 0)
            x = jnp.where(beyond, 2 * bound - x if mirror else bound, x)
        return x

    def _swept_affine(self, x: Any, slack: Any, levels: Any, mirror: bool, mobility: Any) -> Any:
        """Half-space after half-space, in a loop: there may be many."""
        assert self._matrix is not None
        a, b = (jnp.asarray(v, x.dtype) for v in self._matrix)
        normals = moved(mobility, a.T).T
        square = jnp.sum(a * normals, axis=1)
        floors = self.floors(x, 0.0, slack)

        def one(j: Any, y: Any) -> Any:
            value = b[j] - jnp.tensordot(a[j], y, axes=1, precision=EXACT)
            target = levels[j] + 2 * floors[j] + 2 * jnp.finfo(x.dtype).eps * jnp.abs(a[j]) @ jnp.abs(y)
            push = (1 + mirror) * (target - value) / square[j]
            return jnp.where(value >= levels[j] + 1.5 * floors[j], y, y - push * normals[j][:, None])

        return jax.lax.fori_loop(0, len(self), one, x)


def quadratic(part: Constraint) -> tuple[Any, Any, Any] | None:
    """(Q, q, c) with h = ½xᵀQx + qᵀx + c, exact, for a formula of at most second degree; None for others."""
    expr = part.field.expr
    if part.moving or expr is None or not expr.is_polynomial(*part.states):
        return None
    poly, d = sp.Poly(expr, *part.states), part.dim
    if poly.total_degree() > 2:
        return None
    bend, slope, constant = sp.zeros(d, d), sp.zeros(d, 1), sp.S.Zero
    for powers, coefficient in poly.terms():
        where = [i for i, count in enumerate(powers) for _ in range(count)]
        if len(where) == 2:
            i, j = where
            bend[i, j] += coefficient
            bend[j, i] += coefficient
        elif len(where) == 1:
            slope[where[0]] += coefficient
        else:
            constant += coefficient
    return bend, slope, constant


def _shape(expr: Any, states: Sequence[sp.Symbol]) -> Shape | None:
    form = quadratic(Constraint(Field(expr, states)))
    if form is None:
        return None
    bend, slope, constant = form
    q = np.array(slope.tolist(), dtype=np.float64).ravel()
    c = float(constant)
    if bend.is_zero_matrix:
        length = float(np.linalg.norm(q))
        return None if length == 0 else Shape("half-space", -q / length, c / length, length)
    first = bend[0, 0]
    if first == 0 or bend != first * sp.eye(len(states)):
        return None
    centre = -slope / first
    scale = abs(float(first)) / 2
    square = float(centre.dot(centre) - 2 * constant / first)
    if square <= 0:
        return None
    return Shape("ball" if first < 0 else "outside", np.array(centre.tolist(), np.float64).ravel(), square**0.5, scale)


def _error(expr: Any, time: Any) -> Any:
    """What the value of a formula may be off by, in units of rounding, to first order: a running error analysis.

    States are exact, as they are given; the time is rounded once.

    Reference: Higham, Accuracy and Stability of Numerical Algorithms (2002), section 3.3.
    """
    if expr.is_Symbol:
        return sp.Abs(expr) if expr == time else sp.S.Zero
    if expr.is_number:
        return sp.S.Zero if _exact_in_float32(expr) else sp.Abs(expr)
    errors = [_error(a, time) for a in expr.args]
    if expr.is_Add:
        partial = sp.Abs(expr) if len(expr.args) == 2 else (len(expr.args) - 1) * sp.Add(*map(sp.Abs, expr.args))
        return sp.Add(*errors) + partial
    if isinstance(expr, (sp.Min, sp.Max, sp.Abs)):
        return sp.Add(*errors)
    if expr.is_Mul:
        products = sum(a not in (1, -1) for a in expr.args) - 1
        spread = [
            error * sp.Mul(*(sp.Abs(a) for j, a in enumerate(expr.args) if j != i)) for i, error in enumerate(errors)
        ]
        return sp.Add(*spread) + max(products, 0) * sp.Abs(expr)
    if expr.is_Pow and expr.exp.is_Integer and expr.exp > 0:
        base, n = sp.Abs(expr.base), expr.exp
        return n * base ** (n - 1) * errors[0] + n * base**n
    out = ULPS * sp.Abs(expr)
    dummies = [sp.Dummy(real=True) for _ in expr.args]
    own = expr.func(*dummies)
    for dummy, error in zip(dummies, errors, strict=True):
        if error != 0:
            slope = sp.diff(own, dummy).xreplace(dict(zip(dummies, expr.args, strict=True)))
            out += sp.Abs(slope) * error
    return out


def _exact_in_float32(number: Any) -> bool:
    if not number.is_Rational:
        return False
    with np.errstate(over="ignore"):
        near = float(np.float32(number.p / number.q)) if abs(number) < 1e30 else np.inf
    return np.isfinite(near) and sp.Rational(*near.as_integer_ratio()) == number


def _stacked(function: Callable, x: Any) -> Any:
    """The values of a compiled list of formulas, (k, ...), in the type of x."""
    values = function(*(x[i] for i in range(x.shape[0])))
    return jnp.stack([jnp.broadcast_to(jnp.asarray(v, x.dtype), x.shape[1:]) for v in values])
