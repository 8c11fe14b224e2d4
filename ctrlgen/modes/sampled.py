"""Slow modes from samples of the Gibbs measure, in any dimension: Galerkin's method in a space of features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ctrlgen.energies.base import Energy
from ctrlgen.energies.feedback import Observable
from ctrlgen.estimate import Estimate
from ctrlgen.modes.base import SlowModes, columns
from ctrlgen.precision import float64

BLOCKS = 10  # of samples, for the error of data-driven rates
SEEN = 30.0  # samples that a bump has to cover, or its mean says nothing
INDEPENDENT = 1e-8  # share of the largest variance below which a combination of features counts as none


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
        values = np.asarray(columns(identity, jnp.asarray(x.T))).T
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
