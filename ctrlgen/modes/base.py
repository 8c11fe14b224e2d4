"""Slow modes of density transport: the eigenfunctions of its generator, in which the density is a linear plant.

The backward generator L = εΔ - ∇E·∇ is self-adjoint in L²(ρ*): Lζₖ = λₖζₖ with 0 > λ₁ ≥ λ₂ ≥ ... and ζₖ of mean 0 and
variance 1 under ρ*. The coordinates zₖ = E_ρ[ζₖ] obey żₖ = λₖzₖ; near ρ*, KL = ½Σzₖ² to second order. Control
potentials φⱼ enter as E + Σuⱼφⱼ, which makes ż = Λz + Σⱼ uⱼ(bⱼ + Nⱼz), with bⱼₖ = -E_ρ*[∇φⱼ·∇ζₖ] = λₖE_ρ*[φⱼζₖ]/ε and
Nⱼₖₗ = -E_ρ*[∇φⱼ·∇ζₖ ζₗ] for as many modes as there are.

On a grid (one to three dimensions) they are those of its own generator, exactly. Above, Galerkin's method in a space of
features, with means over samples: with exact means it makes every |λₖ| too large.

References: Breiten, Kunisch and Pfeiffer, ESAIM: COCV 24 (2018) 741 (feedback on Fokker–Planck); Klus et al., Physica
D 406 (2020) 132416 (data-driven generator, gEDMD); Noé and Nüske, Multiscale Model. Simul. 11 (2013) 635 (variational).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ctrlgen.energies.base import Energy
from ctrlgen.energies.feedback import Observable
from ctrlgen.precision import float64


@dataclass(frozen=True, eq=False)
class SlowModes(ABC):
    """r slow modes of one energy at one temperature.

    Attributes:
        energy: E.
        temperature: ε [energy].
        rates: λ, (r,), negative, the slowest first [1 / time].
    """

    energy: Energy
    temperature: float
    rates: np.ndarray

    @property
    def order(self) -> int:
        """r, how many."""
        return len(self.rates)

    @property
    def resolution(self) -> float:
        """The rate below which rounding decides [1 / time]."""
        return 0.0

    @abstractmethod
    def observable(self, weights: Any) -> Observable:
        """q = W ζ, for W (m, r), as functions of the state; of mean 0 under ρ*."""

    @abstractmethod
    def overlap(self, functions: Sequence[Energy]) -> np.ndarray:
        """E_ρ*[ζₖ gᵢ], (r, len(functions))."""

    @abstractmethod
    def mean(self, functions: Sequence[Energy]) -> np.ndarray:
        """E_ρ*[gᵢ], (len(functions),)."""

    @abstractmethod
    def steer(self, inputs: Sequence[Energy]) -> tuple[np.ndarray, np.ndarray]:
        """B, (r, m), and N, (m, r, r), of ż = Λz + Bu + Σ uⱼNⱼz."""

    @abstractmethod
    def truncated(self, order: int) -> SlowModes:
        """The first `order` of them."""

    def energies(self, count: int | None = None) -> tuple[Energy, ...]:
        """The first modes as functions of the state: control potentials that reach them, each its own mode.

        Args:
            count: how many; all when omitted.
        """
        rows = np.eye(self.order)[: self.order if count is None else count]
        return tuple(Mode(self.observable(row[None]), self.energy.dim) for row in rows)

    def covariance(self, functions: Sequence[Energy], others: Sequence[Energy]) -> np.ndarray:
        """Cov_ρ*(gᵢ, φⱼ), (len(functions), len(others))."""
        products = self.mean([Product(g, f) for g in functions for f in others]).reshape(len(functions), -1)
        return products - np.outer(self.mean(functions), self.mean(others))

    def spread(self, functions: Sequence[Energy]) -> np.ndarray:
        """Standard deviation of gᵢ under ρ*, (len(functions),)."""
        return np.sqrt([max(0.0, float(self.covariance([g], [g])[0, 0])) for g in functions])

    def coordinates(self, density: Any) -> np.ndarray:
        """zₖ = E_ρ[ζₖ], (r,), of particles (n, d) or of a grid density."""
        grid = getattr(density, "grid", None)
        if grid is not None:
            return self.at(grid.cells.reshape(-1, grid.dim)).T @ np.asarray(density).ravel()
        return self.at(density).mean(axis=0)

    def at(self, x: Any) -> np.ndarray:
        """ζ at states, (n, d) -> (n, r).

        Raises:
            ValueError: x is not (n, d).
        """
        x = np.asarray(x, dtype=np.float64)
        if x.ndim != 2 or x.shape[1] != self.energy.dim:
            raise ValueError(f"x must have shape (n, {self.energy.dim}); got shape {x.shape}.")
        with float64():
            return np.asarray(columns(self._functions, jnp.asarray(x.T))).T

    def plot(self, axes: Any = None, bounds: Any = None) -> Any:
        """Draw the rates and, in one or two dimensions, the first shapes: see `ctrlgen.plot.slow_modes`."""
        from ctrlgen import plot

        return plot.slow_modes(self, axes, bounds)

    @cached_property
    def _functions(self) -> Observable:
        return self.observable(np.eye(self.order))

    def __repr__(self) -> str:
        rates = ", ".join(f"{v:.4g}" for v in self.rates[:6]) + (", ..." if self.order > 6 else "")
        return f"{type(self).__name__}({self.order} modes, λ = {rates})"


@eqx.filter_jit
def columns(observable: Observable, x: jax.Array) -> jax.Array:
    return observable.columns(x)


class Mode(Energy):
    """One function of an observable, as an energy."""

    observable: Observable
    dim: int = eqx.field(static=True)

    def __init__(self, observable: Observable, dim: int):
        self.observable, self.dim = observable, dim

    def potential(self, x):
        return self.observable.columns(x.reshape(self.dim, -1))[0].reshape(x.shape[1:])


class Product(Energy):
    """f·g, for covariances."""

    first: Energy
    second: Energy
    dim: int = eqx.field(static=True)

    def __init__(self, first: Energy, second: Energy):
        self.first, self.second, self.dim = first, second, first.dim

    def potential(self, x):
        return self.first.potential(x) * self.second.potential(x)
