"""The Gaussian energies: quadratics and mixtures, with exact normalisation, samples and constants."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ctrlgen.checks import positive, positive_definite, vector
from ctrlgen.energies.base import Energy, Properties, default_states
from ctrlgen.energies.gaussian_bounds import Shaped, mixture_properties, quadratic_properties
from ctrlgen.energies.spectral import spectrum_bounds

__all__ = ["GaussianMixture", "Quadratic", "spectrum_bounds"]

UNROLL = 8  # up to this dimension sums are written out, so that XLA vectorises over the particles
UNROLL_COMPONENTS = 32


class Quadratic(Energy):
    """Energy ½ (x - μ)ᵀ P (x - μ), whose Gibbs measure is Gaussian with covariance ε P⁻¹.

    Args:
        precision: P, (d, d), symmetric positive definite [energy / length²].
        mean: μ, (d,) [length]; the origin when omitted.

    Raises:
        ValueError: precision is not symmetric positive definite, or mean is not (d,).

    Reference: Pavliotis, Stochastic Processes and Applications (2014), ch. 4.
    """

    precision: np.ndarray
    mean: np.ndarray
    dim: int = eqx.field(static=True)

    def __init__(self, precision: Any, mean: Any = None):
        self.precision = positive_definite("precision", precision)
        self.dim = len(self.precision)
        self.mean = np.zeros(self.dim) if mean is None else vector("mean", mean, self.dim)

    def potential(self, x):
        return 0.5 * jnp.sum(_centred(x, self.mean) * self.slope(x), axis=0)

    def _row(self, i, y, dtype):
        return sum(jnp.asarray(self.precision[i, j], dtype) * y[j] for j in range(self.dim))

    def slope(self, x):
        if self.dim > UNROLL:
            return jnp.asarray(self.precision, x.dtype) @ _centred(x, self.mean)
        y = [x[i] - self.mean[i] for i in range(self.dim)]
        return jnp.stack([self._row(i, y, x.dtype) for i in range(self.dim)])

    @property
    def properties(self) -> Properties:
        """The extreme eigenvalues m, L of P, rounded outward; a = m/2 with its best b, ¼ μᵀP(P - aI)⁻¹Pμ."""
        return quadratic_properties(Shaped.of(self.precision), Shaped.of(self.mean))

    def log_partition(self, temperature):
        log_det = float(np.linalg.slogdet(self.precision)[1])
        return 0.5 * (self.dim * np.log(2 * np.pi * temperature) - log_det)

    def symbolic(self, states: Any = None):
        y = [s - float(m) for s, m in zip(default_states(states, self.dim), self.mean, strict=True)]
        d = range(self.dim)
        return sum(float(self.precision[i, j]) * y[i] * y[j] for i in d for j in d) / 2


class GaussianMixture(Energy):
    """Energy -ε log ρ of a Gaussian mixture ρ: its Gibbs measure at that ε is the mixture, with log Z = 0.

    Args:
        means: (K, d) [length].
        covariances: (K, d, d), or (d, d) shared by all, or K variances, or one variance [length²].
        weights: (K,), positive; normalised to sum 1. Equal when omitted.
        temperature: ε > 0 [energy].

    Raises:
        ValueError: shapes disagree, a covariance is not symmetric positive definite, or a weight is not positive.
    """

    means: np.ndarray
    factors: np.ndarray  # (K,), (K, d) or (K, d, d): square roots of the precisions, by shape of the covariances
    offsets: np.ndarray  # (K,): log weight - log normaliser
    covariances: np.ndarray
    weights: np.ndarray
    temperature: float = eqx.field(static=True)
    dim: int = eqx.field(static=True)

    def __init__(self, means: Any, covariances: Any, weights: Any = None, temperature: float = 1.0):
        means = np.asarray(means, dtype=np.float64)
        if means.ndim != 2 or 0 in means.shape or not np.isfinite(means).all():
            raise ValueError(f"means must be finite, of shape (components, d); got shape {means.shape}.")
        count, dim = means.shape
        given = np.asarray(covariances, dtype=np.float64)
        if given.ndim == 0:
            full = np.broadcast_to(given * np.eye(dim), (count, dim, dim))
        elif given.shape == (count,):
            full = given[:, None, None] * np.eye(dim)
        elif given.shape == (dim, dim):
            full = np.broadcast_to(given, (count, dim, dim))
        elif given.shape == (count, dim, dim):
            full = given
        else:
            raise ValueError(
                f"covariances must be a variance, {count} variances, or of shape ({dim}, {dim}) or "
                f"({count}, {dim}, {dim}) to fit means of shape {means.shape}; got shape {given.shape}."
            )
        full = np.stack([positive_definite(f"covariances[{k}]", c) for k, c in enumerate(full)])
        weights = np.ones(count) if weights is None else vector("weights", weights, count)
        if (weights <= 0).any():
            raise ValueError(f"weights must be positive; got {weights}. Leave out components of weight zero.")
        self.means, self.covariances, self.weights = means, full, shares(weights)
        self.temperature, self.dim = positive("temperature", temperature), dim
        cholesky = np.linalg.cholesky(full)
        inverse = np.stack([np.linalg.inv(c) for c in cholesky])
        diagonals = np.diagonal(inverse, axis1=1, axis2=2)
        if not np.allclose(inverse, diagonals[:, :, None] * np.eye(dim), rtol=0, atol=0):
            self.factors = inverse
        elif (diagonals == diagonals[:, :1]).all():
            self.factors = diagonals[:, 0].copy()
        else:
            self.factors = diagonals.copy()
        log_det = 2 * np.log(np.diagonal(cholesky, axis1=1, axis2=2)).sum(axis=1)
        self.offsets = np.log(self.weights) - 0.5 * (log_det + dim * np.log(2 * np.pi))

    def potential(self, x):
        if len(self.means) <= UNROLL_COMPONENTS:
            parts = [
                self._log_component(x, self.means[k], self.factors[k], self.offsets[k]) for k in range(len(self.means))
            ]
            top = jax.lax.stop_gradient(_tree_reduce(jnp.maximum, parts))
            total = sum(jnp.exp(p - top) for p in parts)
        else:
            parts = jax.vmap(lambda m, f, c: self._log_component(x, m, f, c))(self.means, self.factors, self.offsets)
            top = jax.lax.stop_gradient(jnp.max(parts, axis=0))
            total = jnp.sum(jnp.exp(parts - top), axis=0)
        return -self.temperature * (top + jnp.log(total))

    def _log_component(self, x, mean, factor, offset):
        factor, offset = jnp.asarray(factor, x.dtype), jnp.asarray(offset, x.dtype)
        if self.dim > UNROLL:
            y = _centred(x, mean)
            y = factor @ y if factor.ndim == 2 else _column(factor, y) * y
            return offset - 0.5 * jnp.sum(y * y, axis=0)
        y = [x[i] - jnp.asarray(mean[i], x.dtype) for i in range(self.dim)]
        if factor.ndim == 0:
            return offset - (0.5 * factor * factor) * sum(v * v for v in y)
        if factor.ndim == 1:
            return offset - 0.5 * sum((factor[i] * v) ** 2 for i, v in enumerate(y))
        rows = (sum(factor[i, j] * y[j] for j in range(i + 1)) for i in range(self.dim))
        return offset - 0.5 * sum(r * r for r in rows)

    def log_density(self, x: Any) -> Any:
        """log ρ of the mixture: (d,) -> (), (n, d) -> (n,)."""
        return -self(x) / self.temperature

    def sample(self, key: Any, n: int) -> np.ndarray:
        """n exact, independent draws of the mixture, (n, d); the same key gives the same draws."""
        if not isinstance(key, (int, np.integer)):
            key = int(np.asarray(jax.random.bits(key, (), "uint32")))
        rng = np.random.default_rng(int(key))
        label = rng.choice(len(self.means), size=n, p=self.weights)
        noise = rng.standard_normal((n, self.dim))
        return self.means[label] + np.einsum("nij,nj->ni", np.linalg.cholesky(self.covariances)[label], noise)

    @property
    def properties(self) -> Properties:
        """With responsibilities r, ∇²E = ε(E_r[P] - Cov_r(P(x - μ))) ⪯ ε max λ(P).

        A shared covariance: ∇²E = ε(P - Cov_r(Pμ)), and the variance along v is at most a quarter of the squared range
        (Popoviciu), so ∇²E ⪰ ε min over pairs of λ_min(P - ¼ P δ δᵀP), δ = μᵢ - μⱼ: attained for two components.
        Different covariances: not bounded below in general (far out on the surface where two components weigh the
        same). Dissipativity is that of the components, of which ⟨x, ∇E⟩ is a mean.

        The precision is both Σ⁻¹ and the product of the factors that `potential` computes with: bounds hold for either.
        """
        return mixture_properties(
            Shaped.of(self.means), Shaped.of(self.covariances), Shaped.of(self.factors), self.temperature
        )

    def log_partition(self, temperature):
        return 0.0 if temperature == self.temperature else None

    def symbolic(self, states: Any = None):
        import sympy as sp

        total, x = sp.Integer(0), default_states(states, self.dim)
        for mean, covariance, weight in zip(self.means, self.covariances, self.weights, strict=True):
            precision = np.linalg.inv(covariance)
            y = [s - float(m) for s, m in zip(x, mean, strict=True)]
            d = range(self.dim)
            square = sum(float(precision[i, j]) * y[i] * y[j] for i in d for j in d)
            total += float(weight / np.sqrt(np.linalg.det(2 * np.pi * covariance))) * sp.exp(-square / 2)
        return -self.temperature * sp.log(total)


def shares(weights: np.ndarray) -> np.ndarray:
    """Positive weights, scaled to sum 1, however large they are."""
    with np.errstate(over="ignore"):
        total = weights.sum()
    return weights / total if np.isfinite(total) else shares(weights / weights.max())


def _tree_reduce(function, parts):
    while len(parts) > 1:
        parts = [function(*parts[i : i + 2]) if i + 1 < len(parts) else parts[i] for i in range(0, len(parts), 2)]
    return parts[0]


def _column(vector, x):
    return jnp.asarray(vector, x.dtype).reshape((-1,) + (1,) * (x.ndim - 1))


def _centred(x, mean):
    return x - _column(mean, x)
