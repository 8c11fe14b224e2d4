"""One constraint h(x, t) ≥ 0 at work on a batch of particles: values, derivatives, rounding, and the way back inside.

States are dimension-first, (d, n), as everywhere inside; t is a scalar. The formula is the exact one of a `Field`; here
it is a compiled function, of which rounding is bounded: `floor` says how far above 0 a computed value must be for the
exact one not to be negative. Half-spaces, balls and complements of balls are known by their formula, and are left by
their exact projection or mirror image; any other set by Newton's step along ∇h.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import sympy as sp

from ctrlgen.field import Field
from ctrlgen.formula import derivative, jax_function
from ctrlgen.precision import float64
from ctrlgen.rows import moved, total

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
