"""Energies as the schemes of a filtered plant are given them: infinite outside, or with a barrier to be followed."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ctrlgen.constraints import Constraints
from ctrlgen.energies.base import Energy
from ctrlgen.rows import moved, total


class Walled(Energy):
    """E inside, +∞ outside, for a Metropolis step."""

    energy: Energy
    constraints: Constraints = eqx.field(static=True)
    slack: Any
    dim: int = eqx.field(static=True)

    def __init__(self, energy: Energy, constraints: Constraints, slack: Any):
        self.energy, self.constraints, self.slack, self.dim = energy, constraints, slack, energy.dim

    def potential(self, x):
        return jnp.where(self.constraints.inside(x, 0.0, self.slack), self.energy.potential(x), jnp.inf)

    def slope(self, x):
        return self.energy.slope(x)


class Cut(Energy):
    """E - μ Σ log h with a slope that a step can follow.

    In the slope h is cut below at sqrt(room μ ∇h·K∇h), where the barrier would move a particle by its distance. A
    Metropolis step is exact all the same, for its ratio has the proposal's own drift; with the full slope a particle
    near the border would propose to leave for far away, and stay for ever.

    Reference: Roberts and Tweedie, Bernoulli 2 (1996) 341, section 1.4 (the truncated proposal).
    """

    energy: Energy
    constraints: Constraints = eqx.field(static=True)
    slack: Any
    mu: Any
    room: Any
    mobility: Any
    dim: int = eqx.field(static=True)

    def __init__(self, energy: Energy, constraints: Constraints, slack: Any, mu: Any, room: Any, mobility: Any):
        self.energy, self.constraints, self.dim = energy, constraints, energy.dim
        self.slack, self.mu, self.room, self.mobility = slack, mu, room, mobility

    def potential(self, x):
        inside = self.constraints.inside(x, 0.0, self.slack)
        height = -total(jnp.log(jnp.where(inside, self.constraints.values(x), 1)))
        return jnp.where(inside, self.energy.potential(x) + jnp.asarray(self.mu, x.dtype) * height, jnp.inf)

    def slope(self, x):
        return self.energy.slope(x) + self.push(x)

    def push(self, x):
        """-Σ μ ∇h/h, cut: the barrier's part of the slope."""
        mu, room = jnp.asarray(self.mu, x.dtype), jnp.asarray(self.room, x.dtype)
        out = jnp.zeros_like(x)
        for part in self.constraints:
            value, slope = part.value(x), part.gradient(x)
            near = room * mu * total(slope * moved(self.mobility, slope))
            square = jnp.maximum(jnp.where(value > 0, value * value, 0), near)
            out = out - mu * jax.lax.rsqrt(jnp.maximum(square, jnp.finfo(x.dtype).tiny)) * slope
        return out
