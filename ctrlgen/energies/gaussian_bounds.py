"""Rigorous constants of quadratics and Gaussian mixtures, rounded outward.

Ball arithmetic up to `BALLS` dimensions; floats with their errors beyond (`ctrlgen.energies.spectral`).
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np

from ctrlgen.energies.base import Properties
from ctrlgen.energies.spectral import (
    BALLS,
    BITS,
    STEPS,
    UNIT,
    ball_matrix,
    down,
    frobenius,
    is_positive,
    lowest_eigenvalue,
    middle,
    norm,
    product,
    shifted,
    spectrum_bounds,
    up,
)

PAIRS = 64  # components up to which the pairs of a mixture are bounded one by one


class Shaped(NamedTuple):
    """An array of floats that can be the key of a cache."""

    shape: tuple[int, ...]
    data: bytes

    @classmethod
    def of(cls, array: Any) -> Shaped:
        """The bytes of an array, in float64."""
        array = np.ascontiguousarray(array, np.float64)
        return cls(array.shape, array.tobytes())

    @property
    def array(self) -> np.ndarray:
        """The array again."""
        return np.frombuffer(self.data).reshape(self.shape)


class Precision(Protocol):
    """A precision matrix P that is known up to rounding, with bounds low, high of its eigenvalues."""

    low: float
    high: float

    def offset(self, means: np.ndarray, a: float) -> float:
        """b with ⟨x, P(x - μ)⟩ ≥ a|x|² - b for each mean μ, for a < low."""
        ...

    def shared(self, means: np.ndarray) -> float:
        """m with P - Cov(Pμ) ⪰ m I, whatever the weights of the means."""
        ...


class _Balls:
    """P in a matrix of balls."""

    def __init__(self, matrix: Any, bounds: tuple[float, float]):
        self.matrix, (self.low, self.high) = matrix, bounds

    def offset(self, means: np.ndarray, a: float) -> float:
        # -min xᵀ(P - aI)x - xᵀPμ = ¼ μᵀP(P - aI)⁻¹Pμ
        from flint import ctx

        with ctx.workprec(BITS):
            pull = self.matrix * ball_matrix(means.T)
            found = pull.transpose() * shifted(self.matrix, a).solve(pull)
            return max(up(found[k, k] / 4) for k in range(len(means)))

    def shared(self, means: np.ndarray) -> float:
        # P - ¼ Pδδᵀ P ⪰ m I holds if P - mI ≻ 0 and δᵀP(P - mI)⁻¹Pδ ≤ 4 (Schur). Balls prove a guess that floats made.
        from flint import ctx

        if len(means) > PAIRS:
            return self.by_diameter(means)
        values, vectors = np.linalg.eigh(middle(self.matrix))
        first, second = (i.tolist() for i in np.triu_indices(len(means), 1))
        parts = ((means[first] - means[second]) @ vectors * values) ** 2
        longest = float(parts.sum(axis=1).max())
        bottom, top = self.low - longest / 4 - self.high, self.low
        for _ in range(80):
            m = (bottom + top) / 2
            holds = m < values[0] and (parts / (values - m)).sum(axis=1).max() <= 4
            bottom, top = (m, top) if holds else (bottom, m)
        with ctx.workprec(BITS):
            x = ball_matrix(means)
            for step in STEPS:
                m = bottom - step * (self.high + longest)
                moved = shifted(self.matrix, m)
                if not (m < self.low and is_positive(moved)):
                    continue
                gram = x * self.matrix * moved.inv() * self.matrix * x.transpose()
                if all(gram[i, i] + gram[j, j] - 2 * gram[i, j] <= 4 for i, j in zip(first, second, strict=True)):
                    return m
        return self.by_diameter(means)

    def by_diameter(self, means: np.ndarray) -> float:
        """As for floats."""
        centre = middle(self.matrix)
        error = max(sum(up(v.rad()) for v in row) for row in self.matrix.tolist())
        error = error * (1 + UNIT * (len(centre) + 8)) + UNIT * frobenius(centre)  # the centre was rounded
        return _Floats(centre, error, (self.low, self.high)).shared(means)


class _Floats:
    """P within `error`, in the spectral norm, of a symmetric matrix of floats."""

    def __init__(self, matrix: np.ndarray, error: float, bounds: tuple[float, float] | None = None):
        self.matrix, self.error = matrix, error
        if bounds is None:
            none = np.zeros_like(matrix)
            low, high = lowest_eigenvalue(matrix, none), -lowest_eigenvalue(-matrix, none)
            bounds = down(Fraction(low) - Fraction(error)), up(Fraction(high) + Fraction(error))
        self.low, self.high = bounds

    def _longest(self, vectors: np.ndarray) -> float:
        """max |P v| over the rows v."""
        found, rounding = product(vectors, self.matrix)
        lengths = (frobenius(np.abs(f) * (1 + UNIT) + r) for f, r in zip(found, rounding, strict=True))
        return max(n + self.error * frobenius(v) for n, v in zip(lengths, vectors, strict=True)) * (1 + 8 * UNIT)

    def offset(self, means: np.ndarray, a: float) -> float:
        # (low - a)|x|² - |Pμ||x| ≥ -|Pμ|²/(4 (low - a))
        return up(Fraction(self._longest(means)) ** 2 / (4 * (Fraction(self.low) - Fraction(a))))

    def shared(self, means: np.ndarray) -> float:
        # The images Pμ lie in a ball, whose radius is at least half of their range in any direction (Popoviciu).
        centre = (means.min(axis=0) + means.max(axis=0)) / 2
        off = means - centre
        moved = UNIT * norm(self.matrix) * frobenius(np.abs(off).max(axis=0))  # off was rounded
        reach = (self._longest(off) + 2 * moved) * (1 + 8 * UNIT)
        return down(Fraction(self.low) - Fraction(reach) ** 2)


@lru_cache(maxsize=256)
def quadratic_properties(precision: Shaped, mean: Shaped) -> Properties:
    """Of ½ (x - μ)ᵀ P (x - μ)."""
    p, mu = precision.array, mean.array
    m, largest = spectrum_bounds(p)
    if m <= 0:
        return Properties(hessian_lower=m, hessian_upper=largest)
    kind = _Balls(ball_matrix(p), (m, largest)) if len(p) <= BALLS else _Floats(p, 0.0, (m, largest))
    dissipativity = (m / 2, kind.offset(mu[None], m / 2)) if mu.any() else (m, 0.0)
    return Properties(hessian_lower=m, hessian_upper=largest, dissipativity=dissipativity)


@lru_cache(maxsize=256)
def mixture_properties(means: Shaped, covariances: Shaped, factors: Shaped, temperature: float) -> Properties:
    """Of -ε log Σ wₖ N(μₖ, Σₖ), whatever the weights."""
    mu, sigma, root, epsilon = means.array, covariances.array, factors.array, Fraction(temperature)
    members: dict[bytes, list[int]] = {}
    for k in range(len(mu)):
        members.setdefault(sigma[k].tobytes() + root[k].tobytes(), []).append(k)
    try:
        kinds = [(_precision(sigma[own[0]], root[own[0]]), mu[own]) for own in members.values()]
    except np.linalg.LinAlgError:
        return Properties()
    low, high = min(p.low for p, _ in kinds), max(p.high for p, _ in kinds)
    upper = up(epsilon * Fraction(high))
    if low <= 0:
        return Properties(hessian_upper=upper)
    b = max(p.offset(own, low / 2) if own.any() else 0.0 for p, own in kinds)
    lower = None
    if len(kinds) == 1:
        lower = down(epsilon * Fraction(low if len(mu) == 1 else kinds[0][0].shared(mu)))
    dissipativity = (down(epsilon * Fraction(low) / 2), up(epsilon * Fraction(b)))
    return Properties(hessian_lower=lower, hessian_upper=upper, dissipativity=dissipativity)


def _precision(covariance: np.ndarray, factor: np.ndarray) -> Precision:
    """Both Σ⁻¹ and FᵀF, which differ by rounding."""
    from flint import arb_mat, ctx

    root, d = factor if factor.ndim == 2 else np.eye(len(covariance)) * factor, range(len(covariance))
    if len(covariance) <= BALLS:
        with ctx.workprec(BITS):
            balls = ball_matrix(root)
            one, other = ball_matrix(covariance).inv(), balls.transpose() * balls
            both = arb_mat([[one[i, j].union(other[i, j]) for j in d] for i in d])
        return _Balls(both, spectrum_bounds(both))
    inverse = np.linalg.inv(covariance)
    inverse = (inverse + inverse.T) / 2
    found, rounding = product(inverse, covariance)
    residual = frobenius(np.abs(found - np.eye(len(covariance))) * (1 + UNIT) + rounding)  # |I - RΣ|
    if not residual < 0.5:
        raise np.linalg.LinAlgError("the inverse of a covariance could not be bounded.")
    square, error = product(np.ascontiguousarray(root.T), root)
    apart = frobenius(np.abs(square - inverse) * (1 + UNIT) + error)
    # Σ⁻¹ = (I - G)⁻¹R, so |Σ⁻¹ - R| ≤ |R| |G|/(1 - |G|)
    return _Floats(inverse, max(apart, 2 * residual * norm(inverse)))
