"""The energies of a safe set S = {h_j ≥ 0 for all j}: walls, infinite outside, and a logarithmic barrier.

Added to an energy they restrict its Gibbs measure: E + Walls to S; E + μ LogBarrier to S with the factor Π h_j^{μ/ε}.
Their constants are those on S, where they are finite, and established only where S certainly has an inside, for of an
empty set nothing is worth saying. On a convex set a lower Hessian bound there is all that the theorems on log-concave
measures ask for: an energy that is +∞ outside a convex set is the limit of convex ones.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from ctrlgen.constraints import Constraints
from ctrlgen.energies.base import Energy, Properties, default_states
from ctrlgen.energies.safe_sets import barrier_bound, convex_with_inside, deep_point

__all__ = ["LogBarrier", "Walled", "Walls", "deep_point"]


class Walls(Energy):
    """0 on the safe set and +∞ outside, so that the Gibbs measure of E + Walls is that of E restricted to the set.

    A point counts as inside where every computed h_j is above its rounding, so that the exact one is not negative. The
    slope is 0 everywhere: nothing pushes a particle back, a plant must reflect it or reject its step.

    Args:
        constraints: the set, at rest.
        slack: (m,), how far above 0 the computed h_j must be where it has no formula (`Constraints.calibrate`); zeros
            when omitted.
        name: what it is called in print.

    Raises:
        TypeError: constraints is not a `Constraints`.
        ValueError: the set moves, or slack is not (m,) finite numbers ≥ 0.
    """

    constraints: Constraints = eqx.field(static=True)
    slack: np.ndarray
    name: str = eqx.field(static=True)
    dim: int = eqx.field(static=True)

    def __init__(self, constraints: Constraints, slack: Any = None, name: str = "Walls"):
        self.constraints, self.slack, self.name = _at_rest(constraints), _slack(constraints, slack), str(name)
        self.dim = constraints.dim

    def potential(self, x):
        return jnp.where(self.constraints.inside(x, 0.0, self.slack), jnp.zeros((), x.dtype), jnp.inf)

    def slope(self, x):
        return jnp.zeros_like(x)

    @property
    def properties(self) -> Properties:
        """hessian_lower = 0 where S is certainly convex and has an inside; nothing else, for the walls are no slope."""
        return Properties(hessian_lower=0.0 if convex_with_inside(self.constraints) else None)

    def symbolic(self, states: Any = None):
        raise TypeError(
            f"{self.name} has no symbolic view: it is +∞ outside its set, and no formula says that. "
            "LogBarrier(constraints) has one, and keeps to the same set."
        )

    def __repr__(self) -> str:
        return f"{self.name}({_text(self.constraints)})"


class LogBarrier(Energy):
    """-Σ log h_j on the safe set and +∞ outside: with the weight μ it gives a Gibbs measure the factor Π h_j^{μ/ε}.

    Args:
        constraints: the set, at rest.
        slack: (m,), how far above 0 the computed h_j must be where it has no formula (`Constraints.calibrate`); zeros
            when omitted.
        name: what it is called in print.

    Raises:
        TypeError: constraints is not a `Constraints`.
        ValueError: the set moves, or slack is not (m,) finite numbers ≥ 0.

    Reference: Boyd and Vandenberghe, Convex Optimization (2004), section 11.2.
    """

    constraints: Constraints = eqx.field(static=True)
    slack: np.ndarray
    name: str = eqx.field(static=True)
    dim: int = eqx.field(static=True)

    def __init__(self, constraints: Constraints, slack: Any = None, name: str = "LogBarrier"):
        self.constraints, self.slack, self.name = _at_rest(constraints), _slack(constraints, slack), str(name)
        self.dim = constraints.dim

    def _seen(self, x):
        """h, 1 outside, where its derivative is not asked for; and what is inside."""
        values = self.constraints.values(x, 0.0)
        inside = (values >= self.constraints.floors(x, 0.0, self.slack)).all(axis=0) & (values > 0).all(axis=0)
        return jnp.where(inside, values, 1), inside

    def potential(self, x):
        values, inside = self._seen(x)
        return jnp.where(inside, -jnp.sum(jnp.log(values), axis=0), jnp.inf)

    def slope(self, x):
        values, inside = self._seen(x)
        slopes = jnp.where(inside, self.constraints.gradients(x, 0.0), 0)  # (m, d, ...)
        return -jnp.sum(slopes / values[:, None], axis=0) + jnp.zeros_like(x)

    @property
    def properties(self) -> Properties:
        """hessian_lower, where every h_j is certainly concave and S has an inside; nothing else.

        ∇²(-log h) = -∇²h/h + ∇h∇hᵀ/h² ⪰ 0. Of h = -½xᵀPx + qx + c with the maximum h_max it is at least P/h_max, and
        of two half-spaces x_i ≤ u and x_i ≥ l it is at least 8/(u - l)² along x_i. These matrices add.
        """
        return Properties(hessian_lower=barrier_bound(self.constraints))

    def symbolic(self, states: Any = None):
        """-Σ log h_j: the energy where every h_j is positive.

        Raises:
            TypeError: an h_j has no formula.
        """
        import sympy as sp

        states = default_states(states, self.dim)
        terms = []
        for part in self.constraints:
            same = dict(zip(part.states, states, strict=True))
            terms.append(-sp.log(part.field.formula().xreplace(same)))
        return sp.Add(*terms)

    def __repr__(self) -> str:
        return f"{self.name}({_text(self.constraints)})"


Walled = Walls | LogBarrier


def _at_rest(constraints: Any) -> Constraints:
    if not isinstance(constraints, Constraints):
        raise TypeError(f"constraints must be a ctrlgen.constraints.Constraints; got {type(constraints).__name__}.")
    if constraints.moving:
        raise ValueError(
            "constraints must be at rest, for an energy knows no time; "
            f"{', '.join(part.name for part in constraints if part.moving)} moves."
        )
    return constraints


def _slack(constraints: Constraints, slack: Any) -> np.ndarray:
    out = np.zeros(len(constraints)) if slack is None else np.asarray(slack, np.float64)
    if out.shape != (len(constraints),) or not np.isfinite(out).all() or (out < 0).any():
        raise ValueError(f"slack must be {len(constraints)} finite numbers ≥ 0, one a constraint; got {slack!r}.")
    return out


def _text(constraints: Constraints) -> str:
    text = ", ".join(f"{part!r} ≥ 0" for part in constraints)
    return text if len(text) <= 60 else f"{len(constraints)} constraints"
