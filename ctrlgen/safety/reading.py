"""How barriers are read, and what is refused before anything runs: sets that are empty, borders without a normal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import sympy as sp

from ctrlgen.constraint import Constraint
from ctrlgen.constraints import Constraints
from ctrlgen.domain import Ball, Box, Complement, Domain, Intersection, Sublevel
from ctrlgen.energies.base import Energy
from ctrlgen.energies.safe_sets import deep_point
from ctrlgen.field import Field
from ctrlgen.formula import derivative
from ctrlgen.polytope import Polytope
from ctrlgen.precision import float64

DRAWS = 4000  # points at which sets and their borders are looked for
WIDTHS = (0.1, 10.0)  # of the Gaussians that they are drawn from
CLIMBS, CLIMB_STEPS = 256, 100  # towards a set that no point was drawn in
STARTS = 64  # descents to points of the border without a normal
STEEP = 1e-6  # |∇h| there, relative to |∇²h| and the size of the coordinates
FLAT = 1e-7  # |h| and |∇h| there, relative to what they are around it


def read_constraints(barriers: Any) -> Constraints:
    """Barrier functions and sets, one or a sequence, as constraints.

    Raises:
        TypeError: something else was given.
        ValueError: there are none, their dimensions differ, or a set has no smooth barriers (a union).
    """
    parts: list[Constraint] = []
    for item in barriers if isinstance(barriers, (list, tuple)) else [barriers]:
        parts += _read(item, len(parts))
    if not parts:
        raise ValueError("barriers must be at least one BarrierFunction or set; got none.")
    dims = [p.dim for p in parts]
    if len(set(dims)) > 1:
        raise ValueError(f"barriers must be functions of the same states; they have dimensions {dims}.")
    return Constraints(parts)


def _read(item: Any, first: int) -> list[Constraint]:
    if isinstance(item, Energy):
        return [Constraint(Field(item, [f"x{i + 1}" for i in range(item.dim)]), name=f"h[{first}]")]
    if isinstance(item, Domain):
        return [Constraint(field, name=f"h[{first + j}]") for j, field in enumerate(_fields(item))]
    if isinstance(getattr(item, "field", None), Field) and hasattr(type(item), "safe_set"):
        return [Constraint(item.field, getattr(item, "time", None) is not None, name=f"h[{first}]")]
    raise TypeError(
        f"barriers must be BarrierFunction objects or sets (Box, Ball, Polytope, Sublevel); got {type(item).__name__}. "
        "Wrap a formula, a function or an energy: cg.BarrierFunction(h, states)."
    )


def _fields(domain: Domain) -> list[Field]:
    """One smooth h a side: a box has 2d of them."""
    if isinstance(domain, Intersection):
        return [field for part in domain.parts for field in _fields(part)]
    states = domain.names or tuple(sp.Symbol(f"x{i + 1}", real=True) for i in range(domain.dim))
    if isinstance(domain, Box):
        sides = zip(states, domain.lower, domain.upper, strict=True)
        out = [g for x, low, high in sides for g, b in ((x - low, low), (high - x, high)) if b.is_finite]
        if not out:
            raise ValueError(f"barriers must restrict the states; {domain!r} is the whole space.")
        return [Field(g, states) for g in out]
    if isinstance(domain, (Ball, Polytope, Sublevel, Complement)):
        return [Field(g, states) for g in domain.guards(states)]
    raise ValueError(
        f"barriers must be differentiable; {domain!r} is a union. Give one smooth h with {{h ≥ 0}} inside it."
    )


def draws(dim: int, seed: int = 0) -> np.ndarray:
    """Points of many scales around the origin, (DRAWS, d)."""
    rng = np.random.default_rng(seed)
    width = np.exp(rng.uniform(*np.log(WIDTHS), size=(DRAWS - 1, 1)))
    return np.concatenate([np.zeros((1, dim)), width * rng.normal(size=(DRAWS - 1, dim))])


def check_not_empty(constraints: Constraints) -> None:
    """Refuse a safe set at rest in which no point is found."""
    if constraints.moving:
        return
    if deep_point(constraints) is not None or _climbed(constraints):
        return
    if all(p.field.expr is not None for p in constraints):
        names = tuple(sp.Symbol(f"x{i + 1}", real=True) for i in range(constraints.dim))
        whole = [
            Sublevel(-p.field.formula().xreplace(dict(zip(p.states, names, strict=True))), names) for p in constraints
        ]
        try:
            Intersection(*whole).interior_point(names)
        except ValueError as error:
            raise ValueError(
                f"barriers must leave a safe set with room in it; none was found, it appears to be empty: {error}"
            ) from None
    else:
        raise ValueError(
            "barriers must leave a safe set with room in it; no point with every h > 0 was found around the origin. "
            "Check the signs: safe is h ≥ 0."
        )


def _climbed(constraints: Constraints) -> bool:
    """Whether Newton's steps towards the border of what is violated most, taken too long, lead to a point inside."""
    functions = [_numeric(part)[:2] for part in constraints]
    x = draws(constraints.dim)[:CLIMBS]
    for _ in range(CLIMB_STEPS):
        with np.errstate(all="ignore"):
            h = np.stack([value(x) for value, _ in functions])
            if (h > 0).all(axis=0).any():
                return True
            g = np.stack([slope(x) for _, slope in functions])
            length = (g**2).sum(axis=2)
            worst = np.argmin(np.nan_to_num(h / np.sqrt(length), nan=np.inf), axis=0)
            at = np.arange(len(x))
            step = -1.2 * (h[worst, at] / length[worst, at])[:, None] * g[worst, at]
        x = np.where(np.isfinite(step), x + step, x)
    return False


def check_borders(constraints: Constraints) -> None:
    """Refuse a barrier whose gradient vanishes somewhere on its border: no push keeps a particle inside there."""
    for part in constraints:
        if part.moving or part.shape is not None:
            continue
        point = flat_point(part)
        if point is not None:
            raise ValueError(
                f"a barrier must have a gradient on its border; {part!r} has h = 0 and ∇h = 0 at about "
                f"{np.array2string(point, precision=6)}. Take an h that crosses zero there (h itself, not a power of "
                "it), or several barriers where two sets meet."
            )


def flat_point(part: Constraint) -> np.ndarray | None:
    """A point with h = 0 and ∇h = 0, (d,), to rounding; None where none was found."""
    value, slope, bend = _numeric(part)
    x = draws(part.dim)
    h = value(x)
    border = _border(value, x, h)
    near = x[np.argsort(np.abs(np.nan_to_num(h, nan=np.inf)))[: STARTS // 2]]
    starts = np.concatenate([border[:: max(1, len(border) // STARTS)][:STARTS], near])
    reach = 2 * np.abs(starts).max() + 1
    scale = _around(value, slope, starts)
    y = starts.copy()
    with np.errstate(all="ignore"):
        for _ in range(40):
            residual = np.concatenate([value(y)[:, None] / scale[0][:, None], slope(y) / scale[1][:, None]], axis=1)
            jacobian = np.concatenate(
                [slope(y)[:, None, :] / scale[0][:, None, None], bend(y) / scale[1][:, None, None]], axis=1
            )
            good = np.isfinite(residual).all(axis=1) & np.isfinite(jacobian).all(axis=(1, 2))
            square = np.einsum("nij,nik->njk", jacobian, jacobian) + 1e-14 * np.eye(part.dim)
            rest = np.einsum("nij,ni->nj", jacobian, residual)
            step = np.zeros_like(y)
            if good.any():
                step[good] = np.linalg.solve(square[good], rest[good][..., None])[..., 0]
            size = np.linalg.norm(step, axis=1, keepdims=True)
            y = y - step * np.minimum(1, 0.5 / np.maximum(size, 1e-300))
        around = _around(value, slope, y)
        flat = (np.abs(value(y)) <= FLAT * around[0]) & (np.linalg.norm(slope(y), axis=1) <= FLAT * around[1])
        bends = np.linalg.norm(bend(y), axis=(1, 2))
        flat &= np.linalg.norm(slope(y), axis=1) <= STEEP * bends * (1 + np.abs(y).max(axis=1))
    flat &= np.abs(y).max(axis=1) <= reach
    return y[np.argmax(flat)] if flat.any() else None


def _around(value: Callable, slope: Callable, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest |h| and |∇h| on a small cross around points (n, d)."""
    reach = 0.1 * (1 + np.abs(x).max(axis=1))
    offsets = np.concatenate([np.eye(x.shape[1]), -np.eye(x.shape[1])])
    points = (x[:, None, :] + reach[:, None, None] * offsets).reshape(-1, x.shape[1])
    with np.errstate(all="ignore"):
        h = np.nan_to_num(np.abs(value(points))).reshape(len(x), -1).max(axis=1)
        g = np.nan_to_num(np.linalg.norm(slope(points), axis=1)).reshape(len(x), -1).max(axis=1)
    return np.maximum(h, 1e-300), np.maximum(g, 1e-300)


def _border(value: Callable, x: np.ndarray, h: np.ndarray) -> np.ndarray:
    """Points of {h = 0} by bisection between points of either sign, (k, d)."""
    inside, outside = x[h > 0][:256], x[h < 0][:256]
    n = min(len(inside), len(outside))
    a, b = inside[:n].copy(), outside[:n].copy()
    for _ in range(60 if n else 0):
        middle = (a + b) / 2
        keep = (value(middle) > 0)[:, None]
        a, b = np.where(keep, middle, a), np.where(keep, b, middle)
    return a


def _numeric(part: Constraint) -> tuple[Callable, Callable, Callable]:
    """h, ∇h and ∇²h on (n, d) in float64, by NumPy where there is a formula that is smooth enough."""
    try:
        first = [derivative(part.field.formula(), s) for s in part.states]
        second = [derivative(e, s) for e in first for s in part.states]
    except (TypeError, ValueError):  # no formula, or one with kinks, whose second derivative is 0 beside them
        bends = jax.jit(jax.vmap(jax.hessian(part.value), in_axes=1, out_axes=0))
        slopes, values = jax.jit(jax.grad(lambda y: jnp.sum(part.value(y)))), jax.jit(part.value)

        def call(function: Callable, x: np.ndarray) -> np.ndarray:
            with float64():
                return np.asarray(function(jnp.asarray(x.T)))

        return lambda x: call(values, x), lambda x: call(slopes, x).T, lambda x: call(bends, x)
    value = _lambdified(part.states, [part.field.expr])
    slope, bend = _lambdified(part.states, first), _lambdified(part.states, second)
    return lambda x: value(x)[:, 0], slope, lambda x: bend(x).reshape(len(x), part.dim, part.dim)


def _lambdified(states: Sequence[sp.Symbol], exprs: Sequence[Any]) -> Callable:
    function = sp.lambdify(list(states), list(exprs), modules=["scipy", "numpy"], cse=True)

    def evaluate(x: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return np.stack([np.broadcast_to(np.real(v), len(x)) for v in function(*x.T)], axis=-1).astype(np.float64)

    return evaluate
