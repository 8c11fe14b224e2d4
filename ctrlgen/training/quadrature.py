"""Quadrature for log Z in 1 to 3 dimensions, on cells that are even over the data and stretch beyond it.

A place in the grid is given by cell coordinates k, (d, n), counted from the first cell: x(k) is smooth, so the
integral of f over the box is the mean over shifts s of Σ_k x'(k + s) f(x(k + s)).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_RATIO = 1.2  # growth of the cells outside the data
_RATE = math.log(_RATIO)
_MARGIN = 2  # cells of even size beyond the data on each side


@dataclass(frozen=True, eq=False)
class StretchedGrid:
    """Cells over a box: spacing `cell` over the data, geometric growth outside.

    Args:
        lower: (d,), where the even spacing starts.
        cell: (d,), the even spacing.
        below, inside, above: cells before, in and after the even part, the same on every axis.
    """

    lower: np.ndarray
    cell: np.ndarray
    below: int
    inside: int
    above: int

    @classmethod
    def covering(
        cls, lower: np.ndarray, upper: np.ndarray, low: np.ndarray, high: np.ndarray, points: int
    ) -> StretchedGrid:
        """`points` cells an axis over [lower, upper], and stretched ones that reach at least to [low, high]."""
        cell = (upper - lower) / points
        below, above = float(np.max((lower - low) / cell)), float(np.max((high - upper) / cell))
        return cls(lower - _MARGIN * cell, cell, _cells(below - _MARGIN), points + 2 * _MARGIN, _cells(above - _MARGIN))

    @property
    def size(self) -> int:
        """Cells an axis."""
        return self.below + self.inside + self.above

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.size,) * self.lower.size

    def numbers(self) -> dict[str, np.ndarray]:
        """What `place` needs to know, as arrays, so that a compiled function serves any grid of one shape."""
        counts = np.array([self.below, self.inside], np.float32)
        return {"lower": self.lower.astype(np.float32), "cell": self.cell.astype(np.float32), "counts": counts}


def place(grid: dict[str, Any], k: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cell coordinates (d, n) -> positions (d, n) and log-volumes of a cell there (n,)."""
    below, inside = grid["counts"]
    lower, cell = grid["lower"][:, None], grid["cell"][:, None]
    k = k - below
    out, over = jnp.maximum(-k, 0.0), jnp.maximum(k - inside, 0.0)
    stretched = (jnp.expm1(_RATE * over) - jnp.expm1(_RATE * out)) / _RATE
    position = lower + cell * (jnp.clip(k, 0.0, inside) + stretched)
    return position, jnp.sum(jnp.log(cell) + _RATE * (over + out), axis=0)


def corners(shape: tuple[int, ...]) -> jax.Array:
    """The lower corners of all cells, (d, cells), as cell coordinates."""
    return jnp.stack(
        [a.ravel() for a in jnp.meshgrid(*[jnp.arange(m, dtype=jnp.float32) for m in shape], indexing="ij")]
    )


def proposal(log_mass: jax.Array) -> jax.Array:
    """Probabilities of the cells, (cells,), from which nodes are drawn: the Gibbs masses, widened.

    Seven parts the Gibbs measure itself, two parts its square root (the flanks), one part all cells alike.
    """
    return 0.7 * jax.nn.softmax(log_mass) + 0.2 * jax.nn.softmax(log_mass / 2) + 0.1 / log_mass.size


def stratified(probability: jax.Array, shape: tuple[int, ...], n: int, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """n places drawn from the cells by systematic resampling, uniform within a cell.

    Returns:
        Cell coordinates (d, n), and the log of the expected number of draws in the cell of each, (n,).
    """
    start, within = jax.random.split(key)
    total = jnp.cumsum(probability)
    levels = (jnp.arange(n) + jax.random.uniform(start, dtype=jnp.float32)) / n * total[-1]
    rows = jnp.minimum(jnp.searchsorted(total, levels), probability.size - 1)
    corner = jnp.stack(jnp.unravel_index(rows, shape)).astype(jnp.float32)
    return corner + jax.random.uniform(within, corner.shape, jnp.float32), jnp.log(n * probability[rows])


def _cells(reach: float) -> int:
    """How many growing cells it takes to go `reach` even cells beyond the border."""
    return max(1, math.ceil(math.log1p(max(reach, 0.0) * _RATE) / _RATE))
