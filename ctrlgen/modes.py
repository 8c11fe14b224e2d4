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
from dataclasses import dataclass, field
from functools import cached_property, reduce
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from scipy.sparse.linalg import eigsh, splu

from ctrlgen.energies.base import Energy
from ctrlgen.energies.feedback import Observable
from ctrlgen.estimate import Estimate
from ctrlgen.plants.finite_volume import before
from ctrlgen.plants.grid import FokkerPlanckGrid
from ctrlgen.precision import float64

RARE = 1e-10  # share of the largest Gibbs mass below which √ρ* amplifies the rounding of an eigenvector
DENSE = 400  # cells up to which all eigenvectors are computed
BLOCKS = 10  # of samples, for the error of data-driven rates
ROUNDING = 1e-13  # of the largest rate of a generator: slower modes are lost in it
SEEN = 30.0  # samples that a bump has to cover, or its mean says nothing
INDEPENDENT = 1e-8  # share of the largest variance below which a combination of features counts as none


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
        products = self.mean([_Product(g, f) for g in functions for f in others]).reshape(len(functions), -1)
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
            return np.asarray(_columns(self._functions, jnp.asarray(x.T))).T

    @cached_property
    def _functions(self) -> Observable:
        return self.observable(np.eye(self.order))

    def __repr__(self) -> str:
        rates = ", ".join(f"{v:.4g}" for v in self.rates[:6]) + (", ..." if self.order > 6 else "")
        return f"{type(self).__name__}({self.order} modes, λ = {rates})"


@eqx.filter_jit
def _columns(observable: Observable, x: jax.Array) -> jax.Array:
    return observable.columns(x)


class Mode(Energy):
    """One function of an observable, as an energy."""

    observable: Observable
    dim: int = eqx.field(static=True)

    def __init__(self, observable: Observable, dim: int):
        self.observable, self.dim = observable, dim

    def potential(self, x):
        return self.observable.columns(x.reshape(self.dim, -1))[0].reshape(x.shape[1:])


class _Product(Energy):
    """f·g, for covariances."""

    first: Energy
    second: Energy
    dim: int = eqx.field(static=True)

    def __init__(self, first: Energy, second: Energy):
        self.first, self.second, self.dim = first, second, first.dim

    def potential(self, x):
        return self.first.potential(x) * self.second.potential(x)


# On a grid ------------------------------------------------------------------------------------------------------------


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
        return (self._flat * self._masses) @ self._table(functions)

    def mean(self, functions):
        return self._masses @ self._table(functions)

    def steer(self, inputs):
        volume = self.grid._volume(self.energy)
        columns = self._table(inputs)
        b = self.rates[:, None] / self.temperature * self.overlap(inputs)
        weighted = self._masses[:, None] * self._flat.T
        n = [self._flat @ (volume.derivative(c.reshape(self.grid.shape)) @ weighted) for c in columns.T]
        return b, np.array(n)

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


# From samples ---------------------------------------------------------------------------------------------------------


class Features(Observable):
    """Monomials up to a degree, Gaussian bumps, and given functions, of standardised states.

    Args:
        centre, scale: (d,), of the samples.
        powers: p tuples of d exponents.
        bumps: (b, d), centres of the bumps in standardised states.
        width: of the bumps.
        functions: further features.
    """

    centre: np.ndarray
    scale: np.ndarray
    powers: tuple[tuple[int, ...], ...] = eqx.field(static=True)
    bumps: np.ndarray
    width: float
    functions: tuple[Energy, ...]

    def columns(self, x):
        y = (x - jnp.asarray(self.centre, x.dtype)[:, None]) / jnp.asarray(self.scale, x.dtype)[:, None]
        rows = [reduce(jnp.multiply, [y[i] ** e for i, e in enumerate(power) if e]) for power in self.powers]
        rows += [f.potential(x) for f in self.functions]
        if not len(self.bumps):
            return jnp.stack(rows)
        bumps = jnp.asarray(self.bumps, x.dtype)
        squares = jnp.sum(bumps**2, axis=1)[:, None] + jnp.sum(y * y, axis=0) - 2 * bumps @ y
        return jnp.concatenate([*(row[None] for row in rows), jnp.exp(-squares / (2 * self.width**2))])


class Combined(Observable):
    """W(ψ - mean ψ), linear combinations of features.

    Args:
        features: ψ, q of them.
        weights: W, (m, q).
        mean: (q,).
    """

    features: Features
    weights: np.ndarray
    mean: np.ndarray

    def columns(self, x):
        centred = self.features.columns(x) - jnp.asarray(self.mean, x.dtype)[:, None]
        return jnp.asarray(self.weights, x.dtype) @ centred


@dataclass(frozen=True, eq=False, repr=False)
class SampledModes(SlowModes):
    """Slow modes in the span of features, by means over samples of ρ*; made by `sampled_modes`.

    Attributes:
        samples: (n, d), of ρ*.
        features: ψ, q of them.
        weights: ζ = weights (ψ - mean), (r, q).
        feature_mean: (q,).
        estimates: the rates with their sampling errors. The error of the space of features is not in them: with exact
            means it makes every |λ| too large.
    """

    samples: np.ndarray = field(repr=False)
    features: Features = field(repr=False)
    weights: np.ndarray = field(repr=False)
    feature_mean: np.ndarray = field(repr=False)
    estimates: tuple[Estimate, ...] = ()

    def observable(self, weights):
        return Combined(self.features, np.asarray(weights, np.float64) @ self.weights, self.feature_mean)

    @cached_property
    def _values(self) -> np.ndarray:
        return self.at(self.samples)

    @cached_property
    def _slopes(self) -> np.ndarray:
        """∇ζ at the samples, (n, r, d)."""
        return _gradients(self._functions, self.samples)

    def overlap(self, functions):
        return self._values.T @ self._table(functions) / len(self.samples)

    def mean(self, functions):
        return self._table(functions).mean(axis=0)

    def steer(self, inputs):
        push = np.stack([np.asarray(phi.gradient(self.samples)) for phi in inputs])  # (m, n, d)
        along = -np.einsum("mnd,nrd->mnr", push, self._slopes)
        n = len(self.samples)
        return along.sum(axis=1).T / n, np.einsum("mnk,nl->mkl", along, self._values) / n

    def truncated(self, order):
        return SampledModes(
            self.energy, self.temperature, self.rates[:order], self.samples, self.features, self.weights[:order],
            self.feature_mean, self.estimates[:order],
        )  # fmt: skip

    def _table(self, functions: Sequence[Energy]) -> np.ndarray:
        return np.stack([np.asarray(f(self.samples)) for f in functions], axis=1)


def sampled_modes(
    energy: Energy,
    temperature: float,
    samples: Any,
    order: int,
    functions: Sequence[Energy] = (),
    *,
    degree: int | None = None,
    bumps: int = 80,
    key: int = 0,
) -> SampledModes:
    """The r slowest modes in a space of features, in any dimension.

    Args:
        energy: E.
        temperature: ε [energy].
        samples: of ρ*, (n, d); independent, or nearly so.
        order: r ≥ 1.
        functions: features besides the monomials and bumps: the control potentials say.
        degree: of the monomials; 2 up to twelve dimensions and 1 above when omitted.
        bumps: Gaussian features at samples that are far from one another.
        key: seed of that choice.

    Raises:
        ValueError: samples are not finite (n, d), too few for the features, or the space holds fewer modes.
    """
    x = np.asarray(samples, dtype=np.float64)
    if x.ndim != 2 or x.shape[1] != energy.dim or not np.isfinite(x).all():
        raise ValueError(f"samples must be finite, of shape (n, {energy.dim}); got shape {x.shape}.")
    features = _features(x, functions, degree, bumps, key)
    identity = Combined(features, np.eye(_count(features)), np.zeros(_count(features)))
    with float64():
        values = np.asarray(_columns(identity, jnp.asarray(x.T))).T
    q = values.shape[1]
    if len(x) < 10 * q:
        raise ValueError(
            f"samples must be at least ten for each of the {q} features; got {len(x)}. Draw more, or lower bumps or "
            "degree."
        )
    blocks = [slice(*ends) for ends in zip(*_ends(len(x)), strict=True)]
    sums = []
    for block in blocks:
        slopes = _gradients(identity, x[block])
        stiffness = temperature * np.einsum("nqd,npd->qp", slopes, slopes, optimize=True)
        v = values[block]
        sums.append((len(v), v.sum(axis=0), v.T @ v, stiffness))
    whole = [sum(part[i] for part in sums) for i in range(4)]
    rates, weights, mean = _galerkin(whole, order)
    others = [_galerkin([whole[i] - part[i] for i in range(4)], order)[0] for part in sums]
    spread = np.std(others, axis=0) * np.sqrt(len(blocks) - 1)
    estimates = tuple(Estimate(float(v), float(e)) for v, e in zip(rates, spread, strict=True))
    return SampledModes(energy, float(temperature), rates, x, features, weights, mean, estimates)


def _ends(n: int) -> tuple[np.ndarray, np.ndarray]:
    edges = np.linspace(0, n, BLOCKS + 1).astype(int)
    return edges[:-1], edges[1:]


def _count(features: Features) -> int:
    return len(features.powers) + len(features.bumps) + len(features.functions)


def _features(x: np.ndarray, functions: Sequence[Energy], degree: int | None, bumps: int, key: int) -> Features:
    d = x.shape[1]
    centre, scale = x.mean(axis=0), x.std(axis=0)
    if (scale <= 0).any():
        raise ValueError(f"samples must vary in every coordinate; coordinate {int(np.argmin(scale))} does not.")
    degree = (2 if d <= 12 else 1) if degree is None else degree
    powers = [np.eye(d, dtype=int)[i] for i in range(d)] if degree >= 1 else []
    frontier = list(powers)
    for _ in range(degree - 1):
        frontier = list({tuple(p + e): p + e for p in frontier for e in np.eye(d, dtype=int)}.values())
        powers = powers + frontier
    some = (x - centre) / scale
    some = some[np.random.default_rng(key).choice(len(x), min(len(x), 5000), replace=False)]
    centres, width = _spread_out(some, min(bumps, len(some) // 10))
    gaps = ((centres[:, None] - some[None]) ** 2).sum(axis=-1)
    centres = centres[np.exp(-gaps / (2 * width**2)).sum(axis=1) >= SEEN * len(some) / len(x)]
    exponents = tuple(tuple(int(e) for e in p) for p in powers)
    return Features(centre, scale, exponents, centres, width, tuple(functions))


def _spread_out(points: np.ndarray, count: int) -> tuple[np.ndarray, float]:
    """`count` of the points, each the farthest from those before it, and one and a half times their usual gap.

    They cover the passages between wells, where few samples are and slow modes change.
    """
    chosen = [points[0]] if count > 0 else []
    distance = np.full(len(points), np.inf)
    for _ in range(count - 1):
        distance = np.minimum(distance, ((points - chosen[-1]) ** 2).sum(axis=1))
        chosen.append(points[np.argmax(distance)])
    centres = np.array(chosen).reshape(-1, points.shape[1])
    gaps = ((centres[:, None] - centres[None]) ** 2).sum(axis=-1)
    np.fill_diagonal(gaps, np.inf)
    return centres, 1.5 * float(np.sqrt(np.median(gaps.min(axis=1)))) if count > 1 else 1.0


def _galerkin(sums: Sequence[Any], order: int) -> tuple[np.ndarray, np.ndarray, Any]:
    """Rates (r,), weights (r, q) and the features' mean, from (n, Σψ, Σψψᵀ, Σε∇ψ∇ψᵀ) over samples."""
    n, total, products, stiffness = sums
    mean = total / n
    variance, vectors = np.linalg.eigh(products / n - np.outer(mean, mean))
    kept = variance > INDEPENDENT * variance[-1]
    if kept.sum() < order:
        raise ValueError(f"order must be at most the {int(kept.sum())} independent features; got {order}.")
    white = vectors[:, kept] / np.sqrt(variance[kept])
    values, basis = np.linalg.eigh(white.T @ (stiffness / n) @ white)
    weights = (white @ basis[:, :order]).T
    sign = np.sign(weights[np.arange(order), np.abs(weights).argmax(axis=1)])
    return -values[:order], weights * sign[:, None], mean


def _gradients(observable: Observable, x: np.ndarray) -> np.ndarray:
    """(n, q, d), by forward differentiation in chunks."""
    with float64():
        parts = [
            np.asarray(_jacobians(observable, jnp.asarray(part.T)))
            for part in np.array_split(x, max(1, len(x) // 4096))
        ]
    return np.moveaxis(np.concatenate(parts, axis=1), 1, 0)


@eqx.filter_jit
def _jacobians(observable: Observable, x: jax.Array) -> jax.Array:
    """∂q/∂x, (q, n, d), each column of x a state of its own."""

    def along(direction: jax.Array) -> jax.Array:
        return jax.jvp(observable.columns, (x,), (jnp.broadcast_to(direction[:, None], x.shape),))[1]

    return jax.vmap(along, out_axes=-1)(jnp.eye(x.shape[0], dtype=x.dtype))
