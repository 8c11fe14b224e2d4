"""Product quadrature for log Z in 1 to 3 dimensions: even over the data, stretched beyond it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

_RATIO = 1.2  # growth of the cells outside the data
_MARGIN = 2.0  # cells of even size beyond the data on each side


@dataclass(frozen=True, eq=False)
class StretchedGrid:
    """Nodes x(k + shift) of a smooth map of the line: spacing `cell` in [lower, upper], geometric growth outside.

    A shift moves every axis by a fraction of a cell; averaged over the shift, the sum Σ x'(k + s) f(x(k + s)) is the
    integral of f over the box.

    Args:
        lower, upper: (d,), where the spacing is even.
        cell: (d,), the spacing there.
        below, above: cells outside [lower, upper] on each side, one number for all axes.
        inside: cells inside.
    """

    lower: np.ndarray
    upper: np.ndarray
    cell: np.ndarray
    below: int
    above: int
    inside: int

    @classmethod
    def covering(
        cls, lower: np.ndarray, upper: np.ndarray, low: np.ndarray, high: np.ndarray, points: int
    ) -> StretchedGrid:
        """A grid with `points` cells an axis over [lower, upper] that reaches at least to [low, high]."""
        cell = (upper - lower) / points
        lower, upper = lower - _MARGIN * cell, upper + _MARGIN * cell
        grid = cls(lower, upper, cell, 0, 0, points + round(2 * _MARGIN))
        counts = [_cells(float(np.max((lower - low) / cell))), _cells(float(np.max((high - upper) / cell)))]
        return cls(lower, upper, cell, *counts, grid.inside)

    def shifted(self, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Nodes and log-weights, both (d, m) float32, for a shift in [0, 1)^d."""
        k = np.arange(-self.below, self.inside + self.above) + np.asarray(shift, np.float64)[:, None]
        out, over = np.maximum(-k, 0.0), np.maximum(k - self.inside, 0.0)
        rate, cell = math.log(_RATIO), self.cell[:, None]
        even = self.lower[:, None] + cell * np.clip(k, 0.0, self.inside)
        nodes = even + cell * (np.expm1(rate * over) - np.expm1(rate * out)) / rate
        return nodes.astype(np.float32), (np.log(cell) + rate * (over + out)).astype(np.float32)


def product(nodes: jax.Array, log_weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(d, m) nodes and log-weights of the axes -> (d, m^d) cells and their (m^d,) log-volumes."""
    axes = jnp.meshgrid(*nodes, indexing="ij")
    volumes = jnp.meshgrid(*log_weights, indexing="ij")
    return jnp.stack([a.ravel() for a in axes]), sum(v.ravel() for v in volumes)  # type: ignore[return-value]


def _cells(reach: float) -> int:
    """How many growing cells it takes to go `reach` even cells beyond the border."""
    return max(1, math.ceil(math.log1p(max(reach, 0.0) * math.log(_RATIO)) / math.log(_RATIO)))
