"""A metric that depends on the state: M(x) at particles, its inverse K = M⁻¹ as a mobility, and the divergence of K.

In Itô's calculus dX = (-K(X)∇E + ε ∇·K(X)) dt + √(2εK(X)) dW keeps exp(-E/ε), with (∇·K)_i = Σ_j ∂_j K_ij; without the
second term it does not. Inside, positions are (d, n) and a metric is (d, n) where it is diagonal, else (d, d, n).

References: Girolami and Calderhead, J. R. Stat. Soc. B 73 (2011) 123; Xifara, Sherlock, Livingstone, Byrne and
Girolami, Stat. Probab. Lett. 91 (2014) 14, for the drift.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ctrlgen.precision import float64
from ctrlgen.rows import total

UNROLLED = 8  # dimension up to which sums over coordinates are written out
PROBED = 64  # particles at which a metric is looked at before a run
SYMMETRY = 1e-6  # of a metric at a particle, relative to its largest entry


class Local(eqx.Module):
    """A metric at n particles, by its factor: √M, (d, n), for a diagonal; else the lower L with M = L Lᵀ, (d, d, n)."""

    factor: jax.Array

    @property
    def diagonal(self) -> bool:
        """Whether the metric is diagonal."""
        return self.factor.ndim == 2

    def moved(self, v: jax.Array) -> jax.Array:
        """K v, (d, n)."""
        if self.diagonal:
            return v / (self.factor * self.factor)
        return self._upper(self._lower(v))

    def coloured(self, xi: jax.Array) -> jax.Array:
        """R ξ with R Rᵀ = K, (d, n): noise of covariance K from white noise."""
        return xi / self.factor if self.diagonal else self._upper(xi)

    def square(self, v: jax.Array) -> jax.Array:
        """v·M v, (n,)."""
        if self.diagonal:
            return total((self.factor * v) ** 2)
        d = len(v)
        if d > UNROLLED:
            return jnp.sum(jnp.sum(self.factor * v[:, None], axis=0) ** 2, axis=0)
        return total([sum(self.factor[i, j] * v[i] for i in range(j, d)) ** 2 for j in range(d)])

    @property
    def log_det(self) -> jax.Array:
        """log det M, (n,)."""
        diagonal = self.factor if self.diagonal else jnp.stack([self.factor[i, i] for i in range(len(self.factor))])
        return 2 * total(jnp.log(diagonal))

    def _lower(self, v: jax.Array) -> jax.Array:
        """L⁻¹v."""
        low, d = self.factor, len(v)
        if d > UNROLLED:
            return _substituted(low, v, transposed=False)
        out: list[Any] = []
        for i in range(d):
            out.append((v[i] - sum(low[i, j] * out[j] for j in range(i))) / low[i, i])
        return jnp.stack(out)

    def _upper(self, v: jax.Array) -> jax.Array:
        """L⁻ᵀv."""
        low, d = self.factor, len(v)
        if d > UNROLLED:
            return _substituted(low, v, transposed=True)
        out: list[Any] = [None] * d
        for i in reversed(range(d)):
            out[i] = (v[i] - sum(low[j, i] * out[j] for j in range(i + 1, d))) / low[i, i]
        return jnp.stack(out)


class StateMobility(eqx.Module):
    """K(x) = M(x)⁻¹ of a metric that is a function of the state.

    Args:
        metric: M, a JAX-traceable function of one state, (d,) -> (d,) for a diagonal or (d, d), positive definite and
            once differentiable. Of a (d, d) the symmetric part counts.
    """

    metric: Callable

    def __call__(self, x: Any) -> np.ndarray:
        """K at one state (d,), as (d,) for a diagonal metric or (d, d)."""
        with float64():
            value = np.asarray(self._many(jnp.asarray(np.asarray(x, np.float64)[:, None])))[..., 0]
        return 1 / value if value.ndim == 1 else np.linalg.inv(value)

    def at(self, x: jax.Array) -> Local:
        """The metric at particles, (d, n); NaN where it is not positive definite."""
        return Local(_factor(self._many(x)))

    def look(self, x: jax.Array) -> tuple[Local, jax.Array]:
        """The metric at particles, (d, n), and ∇·K there, (d, n), by automatic differentiation of M.

        ∂_j K = -K ∂_jM K, so that ∇·K = -K w with w = Σ_j ∂_jM K e_j; -∂_i M_i / M_i² for a diagonal.
        """
        d = len(x)
        value, push = jax.linearize(self._many, x)
        local = Local(_factor(value))

        def along(j: Any) -> jax.Array:
            unit = jax.nn.one_hot(j, d, dtype=x.dtype)
            slope = push(jnp.broadcast_to(unit[:, None], x.shape))
            if local.diagonal:
                return slope[j]
            column = local.moved(jnp.broadcast_to(unit[:, None], x.shape))
            if d > UNROLLED:
                return jnp.sum(slope * column, axis=1)
            return jnp.stack([total([slope[i, k] * column[k] for k in range(d)]) for i in range(d)])

        if d <= UNROLLED:
            terms: Any = [along(j) for j in range(d)]
        else:
            terms = jax.lax.map(along, jnp.arange(d))
        if local.diagonal:
            return local, -(jnp.stack(terms) if d <= UNROLLED else terms) / (value * value)
        return local, -local.moved(jnp.sum(jnp.stack(terms) if d <= UNROLLED else terms, axis=0))

    def check(self, states: np.ndarray) -> None:
        """Look at the metric at some of the states (n, d), in float64, before a run.

        Raises:
            TypeError: it is not JAX-traceable.
            ValueError: it has another shape, or is not finite, symmetric and positive definite at one of them.
        """
        some = states[:: max(1, -(-len(states) // PROBED))].astype(np.float64)
        with float64():
            try:
                value = np.asarray(self._many(jnp.asarray(some.T), symmetric=False))
            except (TypeError, jax.errors.ConcretizationTypeError) as error:
                raise TypeError(
                    f"metric must be a JAX-traceable function of one state, (d,) -> (d,) or (d, d); it raised: {error}"
                ) from None
        for x, m in zip(some, np.moveaxis(value, -1, 0), strict=True):
            where = f"at the initial particle {np.array2string(x, precision=4, threshold=8)}"
            if not np.isfinite(m).all():
                raise ValueError(f"metric must be finite; {where} it is not.")
            if m.ndim == 2 and np.abs(m - m.T).max() > SYMMETRY * np.abs(m).max():
                raise ValueError(
                    f"metric must be symmetric; {where} the largest |M - M.T| is {np.abs(m - m.T).max():.1e}."
                )
            least = float(m.min() if m.ndim == 1 else np.linalg.eigvalsh((m + m.T) / 2)[0])
            if least <= 0:
                raise ValueError(
                    f"metric must be positive definite; {where} its smallest eigenvalue is {least:.3g}. "
                    "Add a positive multiple of the identity, or take absolute values of its eigenvalues."
                )

    def whitened(self, hessian: np.ndarray, states: np.ndarray) -> np.ndarray:
        """RᵀHR with R Rᵀ = K(x), for Hessians (n, d, d) at states (n, d); NaN where the metric is not positive."""
        with float64():
            value = np.moveaxis(np.asarray(self._many(jnp.asarray(states.T, jnp.float64))), -1, 0)
        if value.ndim == 2:
            root = np.sqrt(np.where(value > 0, value, np.nan))
            return hessian / root[:, :, None] / root[:, None, :]
        fine = np.array(np.isfinite(value).all(axis=(1, 2)))
        fine[fine] = np.linalg.eigvalsh(value[fine])[:, 0] > 0
        out = np.full_like(hessian, np.nan)
        factor = np.linalg.cholesky(value[fine])
        out[fine] = np.linalg.solve(factor, np.swapaxes(np.linalg.solve(factor, hessian[fine]), 1, 2))
        return out

    def _many(self, x: jax.Array, symmetric: bool = True) -> jax.Array:
        d = len(x)

        def one(y: jax.Array) -> jax.Array:
            value = jnp.asarray(self.metric(y))
            if value.shape not in ((d,), (d, d)):
                raise ValueError(
                    f"metric must return shape ({d},) or ({d}, {d}) for a state of shape ({d},); got {value.shape}."
                )
            value = value.astype(y.dtype)
            return (value + value.T) / 2 if symmetric and value.ndim == 2 else value

        return jax.vmap(one, in_axes=-1, out_axes=-1)(x)


def _factor(value: jax.Array) -> jax.Array:
    if value.ndim == 2:
        return jnp.sqrt(value)
    d = len(value)
    if d > UNROLLED:  # column by column over all particles: LAPACK would take them one by one
        below = jnp.arange(d)[:, None]

        def column(j: Any, low: jax.Array) -> jax.Array:
            rest = value[:, j] - jnp.sum(low * low[j], axis=1)
            return low.at[:, j].set(jnp.where(below >= j, rest / jnp.sqrt(rest[j]), 0))

        return jax.lax.fori_loop(0, d, column, jnp.zeros_like(value))
    zero = jnp.zeros_like(value[0, 0])
    low: list[list[Any]] = [[zero] * d for _ in range(d)]
    for j in range(d):
        low[j][j] = jnp.sqrt(value[j, j] - sum(low[j][k] ** 2 for k in range(j)))
        for i in range(j + 1, d):
            low[i][j] = (value[i, j] - sum(low[i][k] * low[j][k] for k in range(j))) / low[j][j]
    return jnp.stack([jnp.stack(row) for row in low])


def _substituted(low: jax.Array, v: jax.Array, transposed: bool) -> jax.Array:
    """L⁻¹v or L⁻ᵀv, row by row over all particles."""
    d = len(v)

    def row(k: Any, out: jax.Array) -> jax.Array:
        i = d - 1 - k if transposed else k
        line = low[:, i] if transposed else low[i]
        return out.at[i].set((v[i] - jnp.sum(line * out, axis=0)) / low[i, i])

    return jax.lax.fori_loop(0, d, row, jnp.zeros_like(v))
