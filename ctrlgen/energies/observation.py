"""Conditioning: a linear observation y = Ax + noise as an energy that is added to a prior's."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from ctrlgen.checks import positive
from ctrlgen.energies.algebra import Composition, compose
from ctrlgen.energies.base import Energy, Properties, default_states
from ctrlgen.energies.spectral import spectrum_bounds, up
from ctrlgen.energies.tails import Tail, tail

_SHARP_DIM = 128  # above this the extreme eigenvalues are bounded by 0 and the trace alone
_BITS = 160


class LeastSquares(Energy):
    """Energy ½ Σ ((yᵢ - aᵢ·x)/σᵢ)², a quadratic that is flat along the kernel of A: the term of an observation.

    Its Hessian is AᵀWA with W = diag(1/σ²), positive semidefinite. It has a Gibbs measure of its own only where A has
    full column rank.

    Args:
        operator: A, (k, d); (d,) for one observation.
        observation: y, (k,), or a number for one observation.
        sigma: σ > 0, a number or (k,), in the units of y.

    Raises:
        ValueError: shapes disagree, something is not finite, or a sigma is not positive.
    """

    operator: np.ndarray
    observation: np.ndarray
    sigma: np.ndarray  # (k,)
    dim: int = eqx.field(static=True)

    def __init__(self, operator: Any, observation: Any, sigma: Any):
        a = np.asarray(operator, dtype=np.float64)
        a = a[None] if a.ndim == 1 else a
        if a.ndim != 2 or 0 in a.shape or not np.isfinite(a).all():
            raise ValueError(
                f"operator must be finite, of shape (k, d), or (d,) for one observation; got {np.shape(operator)}."
            )
        y = np.atleast_1d(np.asarray(observation, dtype=np.float64))
        if y.shape != (len(a),) or not np.isfinite(y).all():
            raise ValueError(f"observation must be {len(a)} finite numbers, one a row of A; got shape {y.shape}.")
        s = np.asarray(sigma, dtype=np.float64)
        if s.shape not in ((), (len(a),)) or not np.isfinite(s).all() or (s <= 0).any():
            raise ValueError(f"sigma must be positive and finite, a number or {len(a)} of them; got {sigma}.")
        self.operator, self.observation, self.dim = a, y, a.shape[1]
        self.sigma = np.broadcast_to(s, y.shape).copy()

    def _residual(self, x):
        column = (slice(None),) + (None,) * (x.ndim - 1)
        a, y, s = (jnp.asarray(v, x.dtype) for v in (self.operator, self.observation, self.sigma))
        return a / s[:, None], (a @ x - y[column]) / s[column]

    def potential(self, x):
        r = self._residual(x)[1]
        return 0.5 * jnp.sum(r * r, axis=0)

    def slope(self, x):
        a, r = self._residual(x)
        return a.T @ r

    @property
    def precision(self) -> np.ndarray:
        """AᵀWA, (d, d), symmetric positive semidefinite: the Hessian."""
        scaled = self.operator / self.sigma[:, None]
        return scaled.T @ scaled

    @property
    def push(self) -> np.ndarray:
        """AᵀWy, (d,): minus the gradient at the origin."""
        return (self.operator / self.sigma[:, None]).T @ (self.observation / self.sigma)

    @property
    def properties(self) -> Properties:
        """The extreme eigenvalues of AᵀWA, enclosed in ball arithmetic, and dissipativity.

        With u and v the rows of Ax and y divided by σ, ⟨x, ∇E⟩ = |u|² - ⟨u, v⟩ ≥ (1 - t)|u|² - |v|²/(4t) for every
        0 < t ≤ 1, and |u|² ≥ m|x|². So (a, b) = (m/2, |v|²/2) where m > 0, by t = ½; (0, |v|²/4) where A may have a
        kernel, by t = 1; and (m, 0) where y = 0.
        """
        low, high = _extremes(self.operator.tobytes(), self.sigma.tobytes(), self.operator.shape)
        square = sum((_fraction(y) / _fraction(s)) ** 2 for y, s in zip(self.observation, self.sigma, strict=True))
        a, b = (low, square / 2) if square == 0 else (low / 2, square / 2) if low > 0 else (0.0, square / 4)
        return Properties(hessian_lower=low, hessian_upper=high, dissipativity=(a, up(Fraction(b))))

    def log_partition(self, temperature):
        """In closed form where A has full column rank for certain; None elsewhere, where there is no Gibbs measure."""
        if not self.properties.hessian_lower:
            return None
        scaled = self.operator / self.sigma[:, None]
        least = np.linalg.lstsq(scaled, self.observation / self.sigma, rcond=None)[0]
        log_det = 2 * float(np.log(np.linalg.svd(scaled, compute_uv=False)).sum())
        bottom = float(self(least)) / temperature
        return 0.5 * (self.dim * math.log(2 * math.pi * temperature) - log_det) - bottom

    def normal_equations(self) -> tuple[np.ndarray, np.ndarray]:
        """AᵀWA and AᵀWy, exactly: object arrays of Fractions, (d, d) and (d,)."""
        from flint import fmpq, fmpq_mat

        a, y, s = ([fmpq(*v.as_integer_ratio()) for v in array.ravel().tolist()]
                   for array in (self.operator, self.observation, self.sigma))  # fmt: skip
        k, d = self.operator.shape
        left = fmpq_mat(k, d, a).transpose() * fmpq_mat(
            k, k, [s[i] ** -2 if i == j else 0 for i in range(k) for j in range(k)]
        )
        return _fractions(left * fmpq_mat(k, d, a)), _fractions(left * fmpq_mat(k, 1, y))[:, 0]

    def symbolic(self, states: Any = None):
        import sympy as sp

        x = default_states(states, self.dim)
        total = sp.Integer(0)
        for row, y, s in zip(self.operator.tolist(), self.observation.tolist(), self.sigma.tolist(), strict=True):
            total += ((y - sum((a * v for a, v in zip(row, x, strict=True)), sp.Integer(0))) / s) ** 2
        return total / 2


@tail.register
def _(energy: LeastSquares) -> Tail:
    precision, push = energy.normal_equations()
    return Tail(precision, -push)


def condition(
    energy: Energy, operator: Any, observation: Any, sigma: Any, *, temperature: float | None = None
) -> Composition:
    """The energy conditioned on y = Ax + noise: E + ½ Σ ((yᵢ - aᵢ·x)/σᵢ)², or the exact posterior's energy at ε.

    With the prior's Gibbs measure at temperature ε and Gaussian noise of standard deviation s, Bayes' rule gives
    exp(-E/ε - ½|y - Ax|²/s²), the Gibbs measure at ε of E + ε·½|y - Ax|²/s². So pass `temperature` = ε and the noise's
    standard deviation as sigma; without a temperature the term is added as it is, and is that of noise of standard
    deviation σ√ε.

    Args:
        energy: the prior's E, d-dimensional.
        operator: A, (k, d); (d,) for one observation.
        observation: y, (k,), or a number for one observation.
        sigma: a number or (k,). With a temperature: the noise's standard deviation, in the units of y.
        temperature: ε > 0 [energy], at which the Gibbs measure is to be the posterior.

    Raises:
        TypeError: energy is not an Energy.
        ValueError: shapes disagree, something is not finite or not positive; or the sum has no Gibbs measure.

    Reference: Stuart, Acta Numerica 19 (2010) 451, section 2.
    """
    if not isinstance(energy, Energy):
        raise TypeError(f"energy must be an Energy; got {type(energy).__name__}.")
    factor = 1.0 if temperature is None else positive("temperature", temperature)
    term = LeastSquares(operator, observation, sigma)
    if term.dim != energy.dim:
        raise ValueError(f"operator must have {energy.dim} columns, one a state of the energy; got {term.dim}.")
    return compose([energy, term], [1.0, factor])


@lru_cache(maxsize=64)
def _extremes(operator: bytes, sigma: bytes, shape: tuple[int, int]) -> tuple[float, float]:
    """Floats below the smallest and above the largest eigenvalue of AᵀWA, certainly."""
    from flint import arb, arb_mat, ctx

    k, d = shape
    a, s = np.frombuffer(operator).reshape(shape), np.frombuffer(sigma)
    with ctx.workprec(_BITS):
        scaled = arb_mat(k, d, [arb(v) / arb(w) for row, w in zip(a.tolist(), s.tolist(), strict=True) for v in row])
        trace = up(sum((v * v for v in scaled.entries()), arb(0)))
        if d > _SHARP_DIM:
            return 0.0, trace
        low, high = spectrum_bounds(scaled.transpose() * scaled)
    return max(low, 0.0) if k >= d else 0.0, min(high, trace)  # AᵀWA ⪰ 0 whatever A is


def _fraction(value: Any) -> Fraction:
    return Fraction(float(value))


def _fractions(matrix: Any) -> np.ndarray:
    """A flint matrix of rationals as an object array of Fractions."""
    out = np.empty((matrix.nrows(), matrix.ncols()), object)
    out.ravel()[:] = [Fraction(int(v.p), int(v.q)) for v in matrix.entries()]
    return out
