"""log Z in any dimension: annealed importance sampling and thermodynamic integration along one path.

The path goes from a Gaussian q to the Gibbs measure: log π_β = (1 - β) log q - β E/ε, in coordinates z in which q is
N(0, I). Two pilots (adaptive, with resampling) find q, the ladder of β and the step size at each rung. The run that is
reported takes fresh particles down that ladder as it is, so that its weights are independent and their mean is an
unbiased estimate of Z.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ctrlgen.energies.base import Energy
from ctrlgen.estimate import Estimate
from ctrlgen.precision import float64

_PILOT = 512  # particles
_RUNGS = 500  # of a pilot, at most
_VARIANCE = 0.2  # relative, of the weights of one rung of a pilot
_TUNING, _SETTLING, _SWEEPS = 8, 64, 3  # MALA moves: on a rung of a pilot, at its end, on a rung of the run
_ACCEPT = 0.65  # of proposals, aimed at: near the optimum of MALA (0.574) on its safe side
_WIDER = 1.1  # the standard deviations of q over those of the pilot
_TOTAL = 0.3  # variance of the log weights that the ladder is made for
_FINEST = 4000  # rungs
_EVEN = 0.3  # effective share of the particles with which the run is content
_FEW = 100  # effective particles below which a standard error means little
_FAR = 2.0 ** np.arange(4, 11)  # of its width: how far out the energy must rise


@dataclass(frozen=True)
class Annealed(Estimate):
    """log Z by annealing, with what tells whether to believe it.

    Args:
        effective: effective number of particles, (Σw)² / Σw²; below 100 the standard error means little, and the
            distance to the other method is added to it.
        other: log Z by the other of the two methods from the same particles. Apart by many errors, the particles
            have lagged behind the path.
        rungs: temperatures on the path.
        acceptance: mean share of MALA proposals accepted.
    """

    effective: float = field(kw_only=True)
    other: Estimate = field(kw_only=True)
    rungs: int = field(kw_only=True)
    acceptance: float = field(kw_only=True)


def annealed(energy: Energy, temperature: float, particles: int, key: int, integrate: bool) -> Annealed:
    """log Z along the path by importance sampling, or by integration; see `log_partition`, which checks arguments."""
    keys = iter(jax.random.split(jax.random.key(key), 8))
    q = _Gaussian(energy, temperature, np.zeros(energy.dim), _width(energy, temperature) * np.eye(energy.dim))
    _check_growth(q)
    q = q.fitted(_pilot(q, next(keys))[2])
    _check_growth(q)
    ladder, steps, _, spread = _pilot(q, next(keys))
    parts = max(1, math.ceil(spread / _TOTAL))
    while True:
        parts = min(parts, max(1, _FINEST // len(ladder)))
        out = _run(q, *_refined(ladder, steps, parts), particles, next(keys), integrate)
        if out.effective >= _EVEN * particles or parts >= 9 * math.ceil(spread / _TOTAL) or 2 * out.rungs > _FINEST:
            return out
        parts *= 3  # the weights came out uneven: only the last run counts


class _Gaussian(eqx.Module):
    """The energy seen from a Gaussian N(centre, root rootᵀ): x = centre + root z, dimension-first."""

    energy: Energy
    temperature: float
    centre: np.ndarray
    root: np.ndarray

    def place(self, z: jax.Array) -> jax.Array:
        """x of z, (d, n)."""
        return jnp.asarray(self.root, z.dtype) @ z + jnp.asarray(self.centre, z.dtype)[:, None]

    def height(self, z: jax.Array) -> jax.Array:
        """E/ε, (n,)."""
        return self.energy.potential(self.place(z)) / self.temperature

    def log_ratio(self, z: jax.Array) -> jax.Array:
        """log of exp(-E/ε) dx over the Gaussian, (n,)."""
        constant = np.linalg.slogdet(self.root)[1] + len(self.centre) / 2 * math.log(2 * math.pi)
        return constant + 0.5 * jnp.sum(z * z, axis=0) - self.height(z)

    def level(self, z: jax.Array, beta: Any) -> tuple[jax.Array, jax.Array]:
        """log π_β up to a constant, and its gradient."""

        def value(y: jax.Array) -> jax.Array:
            return -(1 - beta) * 0.5 * jnp.sum(y * y, axis=0) - beta * self.height(y)

        return value(z), jax.grad(lambda y: jnp.sum(value(y)))(z)

    def fitted(self, x: np.ndarray) -> _Gaussian:
        """The Gaussian of the moments of x (n, d), a little wider."""
        covariance = np.atleast_2d(np.cov(x.T))
        covariance += 1e-6 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        return _Gaussian(self.energy, self.temperature, x.mean(axis=0), _WIDER * np.linalg.cholesky(covariance))


def _no_gibbs(why: str) -> ValueError:
    return ValueError(f"exp(-E/ε) may have no Gibbs measure: {why}. Confine the energy.")


def _width(energy: Energy, temperature: float) -> float:
    """Of the isotropic Gaussian about the origin that is nearest to the Gibbs measure in KL, to a factor of 2."""
    z = np.random.default_rng(0).standard_normal((64, energy.dim))
    scales = 2.0 ** np.arange(-12, 13)
    with np.errstate(all="ignore"):
        heights = np.array([np.mean(np.asarray(energy(s * z))) for s in scales]) / temperature
    if not np.isfinite(heights).any():
        raise ValueError(
            f"energy is not finite on Gaussians about the origin of widths {scales[0]:.2g} to {scales[-1]:g}, which is "
            "where annealing starts. Mend it there, or move it there."
        )
    return float(scales[np.argmin(np.where(np.isfinite(heights), heights - energy.dim * np.log(scales), np.inf))])


def _check_growth(q: _Gaussian) -> None:
    """Refuse an energy that does not rise faster than ε log|x| in the softest directions that are found."""
    d, width = len(q.centre), float(np.linalg.norm(q.root, 2))
    v = np.concatenate([np.eye(d), -np.eye(d), np.random.default_rng(0).standard_normal((32, d))])
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    lowest = []
    with np.errstate(all="ignore"):
        for radius in _FAR * width:
            v, height = _softest(q, v, radius)
            if (height == -np.inf).any():
                raise _no_gibbs("the energy is -inf far out")
            lowest.append(float(np.nanmin(np.where(np.isnan(height), np.inf, height))))
    half = len(_FAR) // 2
    if not lowest[-1] - lowest[half] > math.log(_FAR[-1] / _FAR[half]):
        at = v[np.nanargmin(height)]
        raise _no_gibbs(
            f"from {_FAR[half] * width:.3g} to {_FAR[-1] * width:.3g} away the energy rises by "
            f"{(lowest[-1] - lowest[half]) * q.temperature:.3g} only, in the direction {np.round(at, 3).tolist()}"
        )


def _softest(q: _Gaussian, v: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Descend E on the sphere about the centre, all directions v (n, d) at once, each with its own step."""
    height, slope = _sphere(q, v, radius)
    angle = np.full(len(v), 0.3)
    for _ in range(60):
        size = np.linalg.norm(slope, axis=1, keepdims=True)
        trial = v - angle[:, None] * np.divide(slope, size, out=np.zeros_like(slope), where=size > 0)
        trial /= np.linalg.norm(trial, axis=1, keepdims=True)
        new, steeper = _sphere(q, trial, radius)
        better = new < height
        v, height = np.where(better[:, None], trial, v), np.where(better, new, height)
        slope, angle = np.where(better[:, None], steeper, slope), angle * np.where(better, 1.5, 0.4)
    return v, height


def _sphere(q: _Gaussian, v: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    x = q.centre + radius * v
    height, slope = (np.asarray(part(x)) / q.temperature for part in (q.energy, q.energy.gradient))
    slope = np.nan_to_num(slope, nan=0.0, posinf=0.0, neginf=0.0)
    return height, slope - (slope * v).sum(axis=1, keepdims=True) * v


def _pilot(q: _Gaussian, key: jax.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """The ladder of β from 0 to 1, a step size a rung, where the particles end (n, d), and the summed variances."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    d = len(q.centre)
    ladder, steps, spread, step = [0.0], [1.0], 0.0, 1.0 / d ** (1 / 3)
    with float64():
        z = jnp.asarray(rng.standard_normal((d, _PILOT)))
        while ladder[-1] < 1.0:
            ratio = np.asarray(_log_ratio(q, z))
            if np.isnan(ratio).any() or (ratio == np.inf).any():
                raise ValueError("energy is NaN or -inf at particles of the pilot run: no log Z. Mend it there.")
            if np.isneginf(ratio).all():
                raise ValueError("energy is infinite at all particles of the pilot run: no log Z. Mend it there.")
            if len(ladder) > _RUNGS:
                raise _no_gibbs(f"{_RUNGS} rungs did not suffice to reach it, the last is at β = {ladder[-1]:.6f} of 1")
            rise, uneven = _next_rung(ladder[-1], ratio)
            weights = np.exp(rise * (ratio - ratio.max()))
            ladder.append(1.0 if rise >= 1.0 - ladder[-1] else ladder[-1] + rise)
            spread += uneven
            z = z[:, rng.choice(_PILOT, size=_PILOT, p=weights / weights.sum())]
            moves = _TUNING if ladder[-1] < 1.0 else _SETTLING
            key, own = jax.random.split(key)
            z, step = _tune(q, z, ladder[-1], step, jax.random.split(own, moves))
            steps.append(float(step))
        return np.array(ladder), np.array(steps), np.asarray(q.place(z)).T, spread


def _next_rung(beta: float, ratio: np.ndarray) -> tuple[float, float]:
    """How far β may rise until the weights exp(rise · ratio) have the relative variance that a rung may have."""

    def variance(rise: float) -> float:
        weights = np.exp(rise * (ratio - ratio.max()))
        return float(weights.var() / weights.mean() ** 2)

    low, high = 0.0, 1.0 - beta
    if variance(high) <= _VARIANCE:
        return high, variance(high)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if variance(middle) <= _VARIANCE else (low, middle)
    return max(low, 1e-12), variance(low)


def _refined(ladder: np.ndarray, steps: np.ndarray, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """Each interval in equal parts, with step sizes between those at its ends."""
    coarse, fine = np.arange(len(ladder)), np.linspace(0, len(ladder) - 1, (len(ladder) - 1) * parts + 1)
    steps = np.append(steps[1], steps[1:])
    return np.interp(fine, coarse, ladder), np.exp(np.interp(fine, coarse, np.log(steps)))


def _run(
    q: _Gaussian, ladder: np.ndarray, steps: np.ndarray, particles: int, key: jax.Array, integrate: bool
) -> Annealed:
    """Fresh particles down the ladder as it is: independent weights."""
    start, moves = jax.random.split(key)
    with float64():
        z = jax.random.normal(start, (len(q.centre), particles), jnp.float64)
        keys = jax.random.split(moves, len(ladder) - 1)
        out = _descend(q, z, jnp.asarray(ladder), jnp.asarray(steps), keys)
        log_weight, area, correction, accepted = (np.asarray(a) for a in out)
    if np.isnan(log_weight).any() or not np.isfinite(log_weight.max()):
        raise ValueError("energy is NaN, or infinite at all particles, along the path: no log Z. Mend it there.")
    weight = np.exp(log_weight - log_weight.max())
    mean, variance = weight.mean(), weight.var(ddof=1) / weight.mean() ** 2
    effective = float(weight.sum() ** 2 / (weight**2).sum())
    # the log of a mean is low by half the variance of the mean; the delta method's error
    sampled = Estimate(
        float(log_weight.max() + np.log(mean) + variance / (2 * particles)), math.sqrt(variance / particles)
    )
    whole = np.isfinite(area).all()
    integral = Estimate(
        float(area.mean() + correction) if whole else math.nan,
        math.hypot(area.std(ddof=1) / math.sqrt(particles), float(correction)) if whole else math.nan,
    )
    first, other = (integral, sampled) if integrate else (sampled, integral)
    if math.isnan(first.value):
        raise ValueError("energy is infinite at particles on the path, so it has no mean; use method='annealed'.")
    error = first.error
    if effective < _FEW and not math.isnan(other.value):
        error = math.hypot(error, first.value - other.value)
    return Annealed(first.value, error, effective=effective, other=other, rungs=len(ladder), acceptance=float(accepted))


@eqx.filter_jit
def _log_ratio(q: _Gaussian, z: jax.Array) -> jax.Array:
    return q.log_ratio(z)


def _mala(q: _Gaussian, z: jax.Array, beta: Any, step: Any, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One Metropolis-adjusted Langevin move on π_β; the share accepted."""
    noise, chance = jax.random.split(key)
    value, slope = q.level(z, beta)
    xi = jax.random.normal(noise, z.shape, z.dtype)
    proposal = z + step / 2 * slope + jnp.sqrt(step) * xi
    new, back_slope = q.level(proposal, beta)
    back = z - proposal - step / 2 * back_slope
    log_accept = new - value - jnp.sum(back**2, axis=0) / (2 * step) + jnp.sum(xi**2, axis=0) / 2
    accept = jnp.log(jax.random.uniform(chance, log_accept.shape, z.dtype)) < log_accept  # False where it is NaN
    return jnp.where(accept, proposal, z), jnp.mean(accept.astype(z.dtype))


@eqx.filter_jit
def _tune(q: _Gaussian, z: jax.Array, beta: Any, step: Any, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    """MALA moves whose step size is driven to the acceptance aimed at."""

    def move(carry: Any, key: jax.Array) -> tuple[Any, None]:
        z, log_step = carry
        z, share = _mala(q, z, beta, jnp.exp(log_step), key)
        return (z, log_step + (share - _ACCEPT)), None

    (z, log_step), _ = jax.lax.scan(move, (z, jnp.log(jnp.asarray(step, z.dtype))), keys)
    return z, jnp.exp(log_step)


@eqx.filter_jit
def _descend(
    q: _Gaussian, z: jax.Array, ladder: jax.Array, steps: jax.Array, keys: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """log weights (n,), each particle's ∫ log ratio dβ by the trapezoidal rule (n,), and its end correction.

    The correction is -Δ²/12 times the change of the derivative, the variance of the log ratio.

    Reference: Friel, Hurn and Wyse, Stat. Comput. 24 (2014) 709.
    """

    def rung(carry: Any, this: Any) -> tuple[Any, jax.Array]:
        z, ratio, log_weight, area, correction = carry
        low, high, step, key = this
        log_weight = log_weight + (high - low) * ratio

        def sweep(z: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            return _mala(q, z, high, step, key)

        z, share = jax.lax.scan(sweep, z, jax.random.split(key, _SWEEPS))
        new = q.log_ratio(z)
        area = area + (high - low) / 2 * (ratio + new)
        correction = correction - (high - low) ** 2 / 12 * (jnp.var(new) - jnp.var(ratio))
        return (z, new, log_weight, area, correction), jnp.mean(share)

    nothing = jnp.zeros(z.shape[1:], z.dtype)
    carry = (z, q.log_ratio(z), nothing, nothing, jnp.zeros((), z.dtype))
    (_, _, log_weight, area, correction), shares = jax.lax.scan(rung, carry, (ladder[:-1], ladder[1:], steps[1:], keys))
    return log_weight, area, correction, jnp.mean(shares)
