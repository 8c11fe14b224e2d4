"""KL, entropy and Fisher information of the law after one Langevin step: a known mixture, no bandwidth to choose.

One Euler step takes particles x of the density ρ to ρ⁺ = E_ρ N(x - hK∇E(x), 2εhK), K = M⁻¹ the mobility. The
particles themselves give the empirical mixture ρ̂ of n such Gaussians, a known density. Its functionals bracket those of
ρ⁺, because KL and Fisher information are convex in their first argument and the logarithm is concave; no smoothness is
assumed.

Errors come from a jackknife over groups of particles, each deleted with its Gaussians and its draws: it counts that
terms are correlated through the Gaussians that they share, and its expectation is not below the variance (Efron and
Stein, Ann. Statist. 9 (1981) 586), up to the change from n to n - n / batches particles. It needs independent
particles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import t as student

from ctrlgen.checks import positive_definite
from ctrlgen.energies.base import Energy
from ctrlgen.estimate import Estimate
from ctrlgen.measure import _checks as check
from ctrlgen.measure.partition import log_partition as _log_partition
from ctrlgen.precision import float64
from ctrlgen.threads import one_blas_thread

_STREAM = 7_083_051  # apart from the stream of a user who drew x by default_rng(key)
_BLOCK = 2**18  # pairs of draw and Gaussian at a time: 2 MB, which fits a cache


@dataclass(frozen=True)
class UpperBound(Estimate):
    """An estimate that is high in expectation, and a bound that holds with a stated confidence.

    Args:
        upper: the one-sided confidence bound.
        confidence: probability with which `upper` is not below the quantity.
    """

    upper: float = field(kw_only=True)
    confidence: float = field(kw_only=True)


@dataclass(frozen=True)
class Skewed(Estimate):
    """An estimate whose law leans.

    Args:
        skew: its skewness, of the jackknife; 0 where it leans to the right.
    """

    skew: float = field(default=0.0, kw_only=True)

    def above(self, quantile: float) -> float:
        """An upper bound: large and uncertain come together, so Student's quantile q alone is met too seldom.

        q + κ(2q² + 1)/6 is the first order of Cornish and Fisher (Hall, Ann. Statist. 20 (1992) 675). A jackknife of
        few batches finds too small a κ: it is taken twice.
        """
        return float(self.value + (quantile + 2 * self.skew * (2 * quantile**2 + 1) / 6) * self.error)


@dataclass(frozen=True)
class Bracket(Estimate):
    """An estimate between two others, one low and one high in expectation.

    Args:
        lower: an estimate whose expectation does not exceed the quantity, with its sampling error.
        upper: an estimate whose expectation is not below the quantity, with its sampling error.
    """

    lower: Skewed = field(kw_only=True)
    upper: Skewed = field(kw_only=True)


@one_blas_thread
def kl_transition(
    x: Any,
    energy: Energy,
    temperature: float,
    step: float,
    log_partition: Any = None,
    *,
    key: int = 0,
    draws: int = 1,
    batches: int = 20,
    metric: Any = None,
) -> Bracket:
    """KL(ρ⁺‖ρ*) of the law ρ⁺ that the particles x (n, d) have after one more Euler step, to exp(-E/ε)/Z [nats].

    One point (or `draws` of them) is drawn from each Gaussian of the empirical mixture ρ̂. With the point's own Gaussian
    in ρ̂ the mean log-ratio is unbiased for KL(ρ̂‖ρ*), which exceeds KL(ρ⁺‖ρ*) in expectation; without it, it falls
    short in expectation. The leading terms of the two biases are opposite, ±(1/2n)(∫ E[N(y)²]/ρ⁺(y) dy - 1), about
    ±V/(2n (8πεh)^(d/2)) for particles that fill a volume V; the value is the midpoint.

    Args:
        x: independent particles (n, d) of ρ, at least 2 a batch.
        energy: E.
        temperature: ε > 0 [energy].
        step: h > 0 [time]; the larger, the narrower the bracket.
        log_partition: log Z, a number or an `Estimate`; `measure.log_partition` when omitted.
        key: seed of the draws and of the batches.
        draws: points from each Gaussian.
        batches: groups of the jackknife; the error itself is known to 1 / sqrt(2 batches).
        metric: M, positive definite, (d,) for a diagonal or (d, d), of a preconditioned step; omitted: the identity.

    Returns:
        `.lower` and `.upper` bracket KL(ρ⁺‖ρ*) in expectation. `.error` adds, in quadrature, the sampling error of
        the midpoint, that of log Z, and half the gap over sqrt(3), the standard deviation of a bias that may lie
        anywhere in the bracket. Particles whose Gaussians overlap few others (isolated ones, a small step, many
        dimensions) open the gap.

    Raises:
        ValueError: an argument is out of its range, or E or ∇E is not finite at a particle or a draw.
    """
    temperature = check.positive("temperature", temperature)
    check.without_walls("KL of a further step", energy)
    mixture = _Mixture(x, energy, temperature, step, key, draws, batches, metric)
    height = check.at_particles("energy", np.asarray(energy(mixture.points.reshape(-1, energy.dim)))) / temperature
    log_z = _log_partition(energy, temperature) if log_partition is None else log_partition
    log_z = log_z if isinstance(log_z, Estimate) else Estimate(float(log_z))
    return mixture.log_ratio(height.reshape(mixture.points.shape[:2]), log_z)


@one_blas_thread
def entropy_transition(
    x: Any,
    energy: Energy,
    temperature: float,
    step: float,
    *,
    key: int = 0,
    draws: int = 1,
    batches: int = 20,
    metric: Any = None,
) -> Bracket:
    """Differential entropy of the law that the particles x (n, d) have after one more Euler step [nats].

    Arguments, errors and bracket as in `kl_transition`.
    """
    mixture = _Mixture(x, energy, check.positive("temperature", temperature), step, key, draws, batches, metric)
    out = mixture.log_ratio(np.zeros(mixture.points.shape[:2]), Estimate(0.0))
    turned = [Skewed(-e.value, e.error) for e in (out.upper, out.lower)]
    return Bracket(-out.value, out.error, lower=turned[0], upper=turned[1])


@one_blas_thread
def fisher_transition(
    x: Any,
    energy: Energy,
    temperature: float,
    step: float,
    *,
    batches: int = 20,
    confidence: float = 0.95,
    key: int = 0,
    draws: int = 1,
    metric: Any = None,
) -> UpperBound:
    """Relative Fisher information I(ρ⁺‖ρ*) of the law after one more Euler step, from above [1 / length²].

    The value is the mean of |∇log ρ̂ + ∇E/ε|² over draws of the empirical mixture ρ̂ of all n particles. I is convex in
    its first argument, so that E I(ρ̂‖ρ*) ≥ I(ρ⁺‖ρ*) for every n: no smoothness, dimension or sample size is assumed.
    The excess, about V d / (4εh n (8πεh)^(d/2)) for particles that fill a volume V, is narrow for large steps: the
    step need not be that of the loop, for a last step of any size is a law of its own.

    Args:
        x: independent particles (n, d) of ρ, at least 2 a batch.
        energy: E.
        temperature: ε > 0 [energy].
        step: h > 0 [time].
        batches: groups of the jackknife, at least 2.
        confidence: of `upper`, in (0, 1).
        key: seed of the draws and of the batches.
        draws: points from each Gaussian.
        metric: M of a preconditioned step; then the integrand is s·M⁻¹s, and -dV/dt = ε I still.

    Returns:
        `.upper` = value + q · error, with Student's quantile and a correction for skewness (`Skewed.above`). It
        is not below I(ρ⁺‖ρ*) with probability at least `confidence` when (1) the particles are independent draws of ρ
        and (2) the value has the error and the skewness that the jackknife finds (in expectation the error is not too
        small; for a heavy-tailed integrand, few particles or few batches both are approximations). Nothing is known of
        a part of ρ so light that no particle lies in it, and a history of one chain is not independent.

    Raises:
        ValueError: an argument is out of its range, or ∇E is not finite at a particle or a draw.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1; got {confidence!r}.")
    temperature = check.positive("temperature", temperature)
    check.without_walls("the Fisher information of a further step", energy)
    mixture = _Mixture(x, energy, temperature, step, key, draws, batches, metric, means=True)
    found = mixture.fisher(energy, temperature)
    upper = found.above(float(student.ppf(confidence, mixture.batches - 1)))
    return UpperBound(found.value, found.error, upper=upper, confidence=float(confidence))


class _Mixture:
    """The mixture of n Gaussians that one step makes of n particles, and draws from it.

    Everything is in coordinates in which each Gaussian is N(centre, I): y = root · sqrt(2εh) · (coordinate).

    Args:
        means: whether the mean of the Gaussians' posterior at each draw is kept, which the score needs.
    """

    def __init__(
        self,
        x: Any,
        energy: Energy,
        temperature: float,
        step: float,
        key: int,
        draws: int,
        batches: int,
        metric: Any,
        means: bool = False,
    ) -> None:
        step, draws = check.positive("step", step), check.count("draws", draws)
        self.batches = check.count("batches", batches, least=2)
        x = check.states("x", x, dim=energy.dim, least=2 * self.batches)
        self.root, self.log_det = _root(metric, energy.dim)
        slope = check.at_particles("gradient", np.asarray(energy.gradient(x)))
        n, d = x.shape
        rng = np.random.default_rng([_STREAM, key])
        order = rng.permutation(n)  # particles in an order of their own would make unlike batches
        scale = math.sqrt(2 * temperature * step)
        centres = (_solve(self.root, x[order]) - step * (slope[order] @ self.root)) / scale
        middle = centres.mean(axis=0)
        self.centres, self.shift = centres - middle, rng.standard_normal((draws, n, d))
        self.normaliser = d / 2 * math.log(2 * math.pi) + d * math.log(scale) + self.log_det
        self.drawn = self.centres + self.shift  # (draws, n, d)
        self.points = scale * (self.drawn + middle) @ self.root.T
        self.scale, self.size = scale, n
        self.group = np.arange(n) % self.batches
        self.own = -0.5 * (self.shift**2).sum(axis=-1)  # log of the own Gaussian, (draws, n)
        self.within, self.mean = self._pairs(means)

    def _pairs(self, means: bool) -> tuple[np.ndarray, np.ndarray]:
        """log Σ exp(-|y - centre|²/2) over each batch's Gaussians but the draw's own, (draws, n, batches), and the
        mean centre under those weights, (draws, n, batches, d).
        """
        (draws, n, d), rows = self.drawn.shape, max(_BLOCK // self.size, 1)
        members = -(-n // self.batches)
        place = np.arange(members) * self.batches + np.arange(self.batches)[:, None]  # (batches, members)
        pad = -(draws * n) % rows
        y = np.concatenate([self.drawn.reshape(-1, d), np.zeros((pad, d))])
        number = np.concatenate([np.tile(np.arange(n), draws), np.zeros(pad, int)])
        with float64():
            out = _sums(y, number, self.centres[np.minimum(place, n - 1)], np.where(place < n, place, -1), rows, means)
            log_sum, mean = (np.asarray(a)[: draws * n] for a in out)
        return log_sum.reshape(draws, n, -1), mean.reshape(draws, n, *mean.shape[1:])

    @cached_property
    def _others(self) -> np.ndarray:
        """log Σ without one batch, for each batch left out; last, for none: (batches + 1, draws, n)."""
        left = np.logaddexp.accumulate(np.moveaxis(self.within, -1, 0))
        right = np.logaddexp.accumulate(np.moveaxis(self.within, -1, 0)[::-1])[::-1]
        nothing = np.full_like(left[:1], -np.inf)
        before, after = np.concatenate([nothing, left[:-1]]), np.concatenate([right[1:], nothing])
        return np.concatenate([np.logaddexp(before, after), left[-1:]])

    def log_ratio(self, height: np.ndarray, log_z: Estimate) -> Bracket:
        """The mean of log ρ̂ + height + log Z over draws, with and without the own Gaussian."""
        upper, lower = np.empty(self.batches + 1), np.empty(self.batches + 1)
        for b, others in enumerate(self._others):
            kept = self.group != b
            count, h = kept.sum(), height[:, kept] - self.normaliser
            upper[b] = np.mean(np.logaddexp(others, self.own)[:, kept] - math.log(count) + h)
            lower[b] = np.mean(others[:, kept] - math.log(count - 1) + h)
        gap = max(float(upper[-1] - lower[-1]) / 2, 0.0)
        shift, unsure = float(log_z.value), float(log_z.error)
        low, high = (_skewed(e, shift, unsure) for e in (lower, upper))
        error = math.hypot(_jackknife((lower + upper) / 2), unsure, gap / math.sqrt(3))
        return Bracket((low.value + high.value) / 2, error, lower=low, upper=high)

    def fisher(self, energy: Energy, temperature: float) -> Skewed:
        """The mean of |rootᵀ(∇log ρ̂ + ∇E/ε)|² over draws, and its jackknife error."""
        slope = np.asarray(energy.gradient(self.points.reshape(-1, energy.dim)))
        push = check.at_particles("gradient", slope).reshape(self.points.shape) @ self.root * (self.scale / temperature)
        out = np.empty(self.batches + 1)
        for b, others in enumerate(self._others):
            kept = self.group != b
            total = np.logaddexp(others, self.own)[:, kept]
            weight = np.exp(self.within[:, kept] - total[..., None]) * (np.arange(self.batches) != b)
            mean = np.einsum("ing,ingd->ind", weight, self.mean[:, kept])
            mean += np.exp(self.own[:, kept] - total)[..., None] * self.centres[kept]
            score = mean - self.drawn[:, kept] + push[:, kept]
            out[b] = np.mean((score**2).sum(axis=-1)) / self.scale**2
        return _skewed(out, 0.0, 0.0)


def _skewed(values: np.ndarray, shift: float, unsure: float) -> Skewed:
    """The last value, with what the values without each batch say of its law; a normal error is added."""
    own = _jackknife(values)
    error, parts = math.hypot(own, unsure), values[:-1].mean() - values[:-1]
    spread = parts.std()
    lean = max(float((parts**3).mean() / spread**3), 0.0) / math.sqrt(len(parts)) if spread > 0 else 0.0
    return Skewed(float(values[-1]) + shift, error, skew=lean * (own / error) ** 3 if error > 0 else 0.0)


def _jackknife(values: np.ndarray) -> float:
    """Standard error from the estimates without each batch, the last value being of all."""
    parts = values[:-1]
    return math.sqrt((len(parts) - 1) / len(parts) * float(((parts - parts.mean()) ** 2).sum()))


@partial(jax.jit, static_argnames=("rows", "means"))
def _sums(y: Any, number: Any, centres: Any, owner: Any, rows: int, means: bool) -> tuple[jax.Array, jax.Array]:
    """For each y (N, d), by batch of centres (batches, members, d): log Σ exp(-|y - c|²/2) and the mean of c.

    `number` (N,) is the Gaussian of each y, `owner` (batches, members) that of each centre, -1 where there is none.
    """
    batches, members, d = centres.shape
    flat = centres.reshape(-1, d).T
    half = jnp.where(owner.ravel() < 0, jnp.inf, 0.5 * jnp.sum(flat**2, axis=0))
    owner = owner.ravel()

    def block(part: Any) -> tuple[jax.Array, jax.Array]:
        y, number = part
        log = jnp.where(number[:, None] == owner, -jnp.inf, y @ flat - half - 0.5 * jnp.sum(y**2, axis=1)[:, None])
        log = log.reshape(rows, batches, members)
        top = jnp.max(log, axis=2)
        top = jnp.where(jnp.isfinite(top), top, 0.0)
        share = jnp.exp(log - top[:, :, None])
        total = jnp.sum(share, axis=2)
        if not means:
            return top + jnp.log(total), jnp.zeros((rows, batches, 0))
        mean = jnp.stack([jnp.sum(share * c, axis=2) for c in jnp.moveaxis(centres, 2, 0)], axis=2)
        return top + jnp.log(total), mean / jnp.where(total > 0, total, 1.0)[:, :, None]

    log_sum, mean = jax.lax.map(block, (y.reshape(-1, rows, d), number.reshape(-1, rows)))
    return log_sum.reshape(-1, batches), mean.reshape(len(log_sum) * rows, batches, -1 if means else 0)


def _root(metric: Any, dim: int) -> tuple[np.ndarray, float]:
    """root with root rootᵀ = M⁻¹, (d, d), and log |det root|."""
    if metric is None:
        return np.eye(dim), 0.0
    given = np.asarray(metric, dtype=np.float64)
    matrix = positive_definite("metric", np.diag(given) if given.ndim == 1 else given)
    if len(matrix) != dim:
        raise ValueError(f"metric must be of size {dim}, the dimension of the energy; got shape {given.shape}.")
    root = np.linalg.inv(np.linalg.cholesky(matrix)).T
    return root, float(np.log(np.diagonal(root)).sum())


def _solve(root: np.ndarray, x: np.ndarray) -> np.ndarray:
    """root⁻¹ x for rows x."""
    return np.linalg.solve(root, x.T).T
