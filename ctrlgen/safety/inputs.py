"""The program of a control barrier function for ẋ = f(x) + g(x) u: the input that is nearest to a wanted one."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ctrlgen.domain import Box
from ctrlgen.field import VectorField
from ctrlgen.precision import float64
from ctrlgen.rows import along
from ctrlgen.safety.filter import FilteredDrift, SafetyFilter
from ctrlgen.safety.qp import minimum_norm


class InputFilter:
    """Call it with a state and a wanted input: the nearest input with ∇h_j·(f + g u) + ∂h_j/∂t ≥ -α(h_j) for every j.

    Limits of the input are always kept: where they contradict the barriers, the relaxed answer is cut to them, and
    `feasible` is False. Made by `SafetyFilter.inputs`; compiled once, so that it may stand in the right-hand side of an
    ODE solver.

    Reference: Ames, Xu, Grizzle and Tabuada, IEEE TAC 62 (2017) 3861.
    """

    def __init__(self, safety: SafetyFilter, f: Any, g: Any, limits: Box | None):
        from ctrlgen.certify.barrier import input_columns

        states = safety.constraints.parts[0].states
        self.safety, self.drift, self.columns = safety, VectorField(f, states), input_columns(g, states)
        k = len(self.columns)
        if limits is not None and (not isinstance(limits, Box) or limits.dim != k):
            raise ValueError(f"limits must be a Box of {k} sides, one an input; got {limits!r}.")
        self.low, self.high = np.full(k, -np.inf), np.full(k, np.inf)
        if limits is not None:
            self.low, self.high = (np.array([float(b) for b in side]) for side in (limits.lower, limits.upper))

    def __call__(self, x: Any, u: Any, time: float = 0.0) -> FilteredDrift:
        """The filtered input.

        Args:
            x: (d,) or (n, d).
            u: the wanted input, (k,) for all, or (n, k).
            time: of moving barriers.

        Raises:
            ValueError: shapes do not fit.
        """
        points, k = np.atleast_2d(np.asarray(x, dtype=np.float64)), len(self.columns)
        if points.ndim != 2 or points.shape[1] != self.safety.dim:
            raise ValueError(f"x must be ({self.safety.dim},) or (n, {self.safety.dim}); got shape {np.shape(x)}.")
        wanted = np.atleast_2d(np.asarray(u, dtype=np.float64))
        if wanted.shape[-1] != k or len(wanted) not in (1, len(points)):
            raise ValueError(f"u must be ({k},) or ({len(points)}, {k}); got shape {np.shape(u)}.")
        wanted = np.broadcast_to(wanted, (len(points), k))
        with float64():
            found = _solved(self, jnp.asarray(points.T), jnp.asarray(wanted.T), jnp.asarray(float(time)))
            delta, multipliers, residual, feasible = (np.asarray(v) for v in found)
        value = np.clip(wanted + delta.T, self.low, self.high)
        own = multipliers[: len(self.safety.constraints)].T
        return FilteredDrift(value, value - wanted, own, residual, feasible)


@partial(jax.jit, static_argnums=0)
def _solved(program: InputFilter, x: Any, u: Any, time: Any) -> Any:
    constraints = program.safety.constraints
    h, slopes = constraints.values(x, time), constraints.gradients(x, time)
    acting = jnp.stack([along(slopes, column.columns(x)) for column in program.columns], axis=1)  # (m, k, n)
    rest = along(slopes, program.drift.columns(x)) + constraints.rates(x, time) + program.safety.alpha(h)
    rows, needs = [acting], [-(rest + along(acting, u))]
    for bound, sign in ((program.low, 1.0), (program.high, -1.0)):
        kept = np.isfinite(bound)
        unit = sign * np.eye(len(bound))[kept]
        rows.append(jnp.broadcast_to(jnp.asarray(unit)[:, :, None], (*unit.shape, x.shape[1])))
        needs.append(sign * (jnp.asarray(bound[kept])[:, None] - u[kept]))
    return minimum_norm(jnp.concatenate(rows), jnp.concatenate(needs))
