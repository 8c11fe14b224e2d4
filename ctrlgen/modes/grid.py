"""Slow modes of a grid's own generator, exact for its cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from scipy.sparse.linalg import eigsh, splu

from ctrlgen.energies.base import Energy
from ctrlgen.energies.feedback import Observable
from ctrlgen.modes.base import SlowModes
from ctrlgen.plants.finite_volume import before
from ctrlgen.plants.grid import FokkerPlanckGrid

RARE = 1e-10  # share of the largest Gibbs mass below which √ρ* amplifies the rounding of an eigenvector
DENSE = 400  # cells up to which all eigenvectors are computed
ROUNDING = 1e-13  # of the largest rate of a generator: slower modes are lost in it


class Interpolated(Observable):
    """Functions given at cell centres, multilinear between them and constant beyond the outermost.

    Args:
        values: (m, *shape).
        lower: (d,) the first cell centre.
        spacing: (d,).
    """

    patches: np.ndarray  # (patches, 2^d m): the multilinear coefficients between neighbouring centres
    lower: np.ndarray
    spacing: np.ndarray
    shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, values: np.ndarray, lower: Any, spacing: Any):
        self.lower, self.spacing = np.asarray(lower, np.float64), np.asarray(spacing, np.float64)
        self.shape = tuple(n - 1 for n in values.shape[1:])
        parts = [values]
        for axis in range(1, values.ndim):  # f = Σ over subsets of axes of coefficient · Π (place in the patch)
            parts = [p for v in parts for p in (v[before(axis)], np.diff(v, axis=axis))]
        self.patches = np.stack(parts, axis=-1).reshape(len(values), -1, len(parts)).swapaxes(0, 1).reshape(
            int(np.prod(self.shape)), -1
        )  # fmt: skip

    def columns(self, x):
        dtype, d = x.dtype, len(self.shape)
        share, flat = [], jnp.zeros(x.shape[1], jnp.int32)
        for axis, n in enumerate(self.shape):
            place = (x[axis] - jnp.asarray(self.lower[axis], dtype)) / jnp.asarray(self.spacing[axis], dtype)
            place = jnp.clip(place, 0, n)
            low = jnp.minimum(place.astype(jnp.int32), n - 1)
            share.append(place - low)
            flat = flat * n + low
        rows = jnp.asarray(self.patches, dtype)[flat].T.reshape(-1, 2**d, x.shape[1])
        terms = []
        for k, corner in enumerate(np.ndindex(*(2,) * d)):
            weight = reduce(jnp.multiply, [s for s, up in zip(share, corner, strict=True) if up], jnp.ones((), dtype))
            terms.append(rows[:, k] * weight)
        return reduce(jnp.add, terms)


@dataclass(frozen=True, eq=False, repr=False)
class GridModes(SlowModes):
    """Slow modes of a grid's own generator; made by `grid_modes`.

    Attributes:
        grid: the FokkerPlanckGrid.
        values: ζ at the cells, (r, *shape).
    """

    grid: FokkerPlanckGrid
    values: np.ndarray = field(repr=False)

    @property
    def resolution(self):
        return ROUNDING * float(self.grid._volume(self.energy).outflow.max())

    def coordinates(self, density):
        if np.shape(density) == self.grid.shape:  # plain cell masses of this grid
            return self._flat @ self.grid._masses(density).ravel()
        return super().coordinates(density)

    @cached_property
    def _masses(self) -> np.ndarray:
        return np.asarray(self.grid.gibbs(self.energy)).ravel()

    @cached_property
    def _flat(self) -> np.ndarray:
        return self.values.reshape(self.order, -1)

    def observable(self, weights):
        values = np.tensordot(np.asarray(weights, dtype=np.float64), self.values, axes=1)
        lower = np.array([axis[0] for axis in self.grid.axes])
        return Interpolated(values, lower, np.array(self.grid.spacing))

    def overlap(self, functions):
        return self.projected(self._table(functions))[0]

    def mean(self, functions):
        return self.projected(self._table(functions))[1]

    def steer(self, inputs):
        volume = self.grid._volume(self.energy)
        columns = self._table(inputs)
        b = self.rates[:, None] / self.temperature * self.overlap(inputs)
        weighted = self._masses[:, None] * self._flat.T
        n = [self._flat @ (volume.derivative(c.reshape(self.grid.shape)) @ weighted) for c in columns.T]
        return b, np.array(n)

    def projected(self, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Overlap with the modes, (r, m), and mean, (m,), under ρ* of functions at the cells, (N, m)."""
        return (self._flat * self._masses) @ table, self._masses @ table

    def truncated(self, order):
        return GridModes(self.energy, self.temperature, self.rates[:order], self.grid, self.values[:order])

    def _table(self, functions: Sequence[Energy]) -> np.ndarray:
        """Functions at the cells, (N, m), 0 on removed ones."""
        points = self.grid.cells.reshape(-1, self.grid.dim)
        out = np.stack([np.asarray(f(points)) for f in functions], axis=1)
        return np.where(self._masses[:, None] > 0, out, 0.0)


def grid_modes(energy: Energy, grid: FokkerPlanckGrid, order: int) -> GridModes:
    """The r slowest modes of a grid's generator.

    Args:
        energy: E.
        grid: the plant.
        order: r ≥ 1.

    Raises:
        ValueError: the grid has fewer modes, or walls leave parts between which no mass passes.
    """
    volume = grid._volume(energy)
    parts = volume.components
    if len(parts) > 1:
        raise ValueError(
            f"energy must leave the grid's cells connected; its walls leave {len(parts)} parts, between which no mass "
            "passes, whatever the inputs are. Choose bounds around one of them."
        )
    kept = parts[0]
    if not 1 <= order <= len(kept) - 2:
        raise ValueError(f"order must be between 1 and the number of cells - 2 = {len(kept) - 2}; got {order!r}.")
    matrix = volume.symmetric[kept][:, kept]
    if len(kept) <= DENSE:
        rates, vectors = np.linalg.eigh(matrix.toarray())
    else:
        shift = grid.temperature / sum((upper - lower) ** 2 for lower, upper in grid.bounds) * 1e-2
        start = np.random.default_rng(0).standard_normal(len(kept))
        rates, vectors = eigsh(matrix, k=order + 1, sigma=shift, which="LM", v0=start)
    slowest = np.argsort(rates)[::-1][1 : order + 1]
    rates, vectors = np.minimum(rates[slowest], 0.0), vectors[:, slowest]
    log_masses = volume.log_gibbs.ravel()[kept]
    functions = _backward(volume.generator[kept][:, kept], rates, vectors, log_masses)
    values = np.zeros((order, grid.cells[..., 0].size))
    values[:, kept] = functions.T
    return GridModes(energy, grid.temperature, rates, grid, values.reshape(order, *grid.shape))


def _backward(generator: Any, rates: np.ndarray, vectors: np.ndarray, log_masses: np.ndarray) -> np.ndarray:
    """ζ = v/√ρ*, (N, r); where ρ* is small, and rounding spoils that, Aᵀζ = λζ is solved, given the rest."""
    masses = np.exp(log_masses)
    rare = log_masses < log_masses.max() + np.log(RARE)
    with np.errstate(over="ignore"):
        functions = np.where(rare[:, None], 0.0, vectors * np.exp(-np.maximum(log_masses, -600) / 2)[:, None])
    if rare.any():
        transposed = generator.T.tocsc()
        inside, across = transposed[rare][:, rare], transposed[rare][:, ~rare]
        for k, rate in enumerate(rates):
            shifted = inside.copy()
            shifted.setdiag(shifted.diagonal() - rate)
            functions[rare, k] = splu(shifted.tocsc()).solve(-(across @ functions[~rare, k]))
    functions -= masses @ functions
    functions /= np.sqrt(masses @ functions**2)
    return functions * np.where(functions[np.argmax(np.abs(functions) * masses[:, None], axis=0),
                                          np.arange(functions.shape[1])] < 0, -1.0, 1.0)  # fmt: skip
