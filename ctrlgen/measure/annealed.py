"""log Z in any dimension: annealed importance sampling and thermodynamic integration along one path.

The path goes from a Gaussian q to the Gibbs measure: log π_β = (1 - β) log q - β E/ε, in coordinates z in which q is
N(0, I). Pilots (adaptive, with resampling) find q, the ladder of β and the step size at each rung; a trial run says how
fine the ladder must be. The run that is reported takes fresh particles down that ladder as it is, whatever comes out,
so that its weights are independent and their mean is an unbiased estimate of Z.

Reference: Neal, Stat. Comput. 11 (2001) 125; Gelman and Meng, Stat. Sci. 13 (1998) 163.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from ctrlgen.energies.base import Energy
from ctrlgen.estimate import Estimate
from ctrlgen.measure import wells
from ctrlgen.precision import float64

_STREAM = 5_202_011  # apart from the stream of a user who drew x by default_rng(key)
_PILOT = 512  # particles
_PILOTS = 10  # at most
_BETTER = 0.8  # of its summed variances: a pilot is worth it if the next Gaussian leaves less than that
_RUNGS = 500  # of a pilot, at most
_VARIANCE = 0.2  # relative, of the weights of one rung of a pilot
_TUNING, _SETTLING, _SWEEPS = 8, 64, 3  # MALA moves: on a rung of a pilot, at its end, on a rung of the run
_ACCEPT = 0.65  # of proposals, aimed at: near the optimum of MALA (0.574) on its safe side
_WIDER = 1.1  # the standard deviations of q over those of the pilot
_TOTAL = 0.3  # variance of the log weights that the ladder is made for
_FINEST = 4000  # rungs
_FINER = 0.8  # of the error before must be left, or a finer ladder was in vain
_CHUNK = 8  # rungs a compiled call, so that ladders of every length share one compilation
_EVEN = 0.5  # effective share of the particles that carry weight with which the trial is content
_PATIENCE = 5  # seconds before a bar is shown unasked
_FEW = 100  # effective particles below which a standard error means little, whatever their share


@dataclass(frozen=True)
class Annealed(Estimate):
    """log Z by annealing, with what tells whether to believe it.

    Args:
        effective: effective number of particles, (Σw)² / Σw²; below half of those that carry weight, or below 100, the
            standard error means little, and the distance to the other method is added to it in quadrature.
        other: log Z by the other of the two methods from the same particles; nan where the integral does not exist
            because the energy is infinite at some of them. Apart by many errors, the particles have lagged behind the
            path.
        rungs: values of β on the path.
        acceptance: mean share of MALA proposals accepted.
        missed: mass, relative to Z, of wells of the energy that were seen from afar but where no particle came;
            log(1 + missed) is in the error.
    """

    effective: float = field(kw_only=True)
    other: Estimate = field(kw_only=True)
    rungs: int = field(kw_only=True)
    acceptance: float = field(kw_only=True)
    missed: float = field(kw_only=True)


def annealed(
    energy: Energy, temperature: float, particles: int, key: int, integrate: bool, progress: bool | None = None
) -> Annealed:
    """log Z along the path by importance sampling, or by integration; see `log_partition`, which checks arguments."""
    rng = np.random.default_rng([_STREAM, key])
    width = wells.width(energy, temperature)
    found = wells.wells(energy, temperature, width)
    q = _Gaussian(energy, np.asarray(temperature), np.zeros(energy.dim), width * np.eye(energy.dim))
    if len(found):
        q = q.over(found, width)
    wells.check_growth(energy, temperature, q.centre, q.reach)
    path = _pilot(q, rng)
    for _ in range(_PILOTS - 1):
        nearer = q.fitted(path.end)
        new = _pilot(nearer, rng)
        enough = new.spread > _BETTER * path.spread
        if new.spread <= path.spread:
            q, path = nearer, new
        if enough:
            break
    wells.check_growth(energy, temperature, q.centre, q.reach)
    parts = _parts(q, path, particles, rng, integrate, progress)
    run = _run(q, *_refined(path, parts), particles, rng, progress)
    end = run.end[np.isfinite(run.log_weight)]
    share = wells.missed(energy, temperature, found, end, width, run.sampled.value) if len(found) else 0.0
    return run.estimate(integrate, share)


class _Gaussian(eqx.Module):
    """The energy seen from a Gaussian N(centre, root rootᵀ), root lower triangular: x = centre + root z.

    Arrays are dimension-first.
    """

    energy: Energy
    temperature: np.ndarray
    centre: np.ndarray
    root: np.ndarray

    def place(self, z: jax.Array) -> jax.Array:
        """x of z, (d, n)."""
        return jnp.asarray(self.root, z.dtype) @ z + jnp.asarray(self.centre, z.dtype)[:, None]

    def look(self, z: jax.Array) -> _Seen:
        """E/ε and its gradient at z."""

        def total(y: jax.Array) -> tuple[jax.Array, jax.Array]:
            height = self.energy.potential(self.place(y)) / self.temperature
            return jnp.sum(height), height

        slope, height = jax.grad(total, has_aux=True)(z)
        return _Seen(z, height, slope)

    def log_ratio(self, seen: _Seen) -> jax.Array:
        """log of exp(-E/ε) dx over the Gaussian, (n,)."""
        volume = jnp.sum(jnp.log(jnp.diagonal(jnp.asarray(self.root)))) + len(self.centre) / 2 * math.log(2 * math.pi)
        return volume + 0.5 * jnp.sum(seen.z**2, axis=0) - seen.height

    @property
    def reach(self) -> float:
        """The largest standard deviation."""
        return float(np.linalg.norm(self.root, 2))

    def over(self, x: np.ndarray, width: float) -> _Gaussian:
        """The Gaussian of the moments of x (n, d), blurred by a width: the path starts above all wells x."""
        covariance = np.atleast_2d(np.cov(x.T, bias=True)) + width**2 * np.eye(x.shape[1])
        return _Gaussian(self.energy, self.temperature, x.mean(axis=0), np.linalg.cholesky(covariance))

    def fitted(self, x: np.ndarray) -> _Gaussian:
        """The Gaussian of the moments of x (n, d), a little wider."""
        covariance = np.atleast_2d(np.cov(x.T))
        covariance += 1e-6 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        return _Gaussian(self.energy, self.temperature, x.mean(axis=0), _WIDER * np.linalg.cholesky(covariance))


class _Seen(eqx.Module):
    """Particles z (d, n), with E/ε (n,) and its gradient (d, n) there."""

    z: jax.Array
    height: jax.Array
    slope: jax.Array


@dataclass(frozen=True)
class _Path:
    """β from 0 to 1, a step size for each; where a pilot's particles end, (n, d), and the summed variances."""

    ladder: np.ndarray
    steps: np.ndarray
    end: np.ndarray
    spread: float


def _pilot(q: _Gaussian, rng: np.random.Generator) -> _Path:
    """Resampled particles down the path, each rung as far as their weights allow."""
    d = len(q.centre)
    ladder, steps, spread, step = [0.0], [1.0], 0.0, np.asarray(1.0 / d ** (1 / 3))
    with float64():
        z = rng.standard_normal((d, _PILOT))
        z, ratio, step = _tune(q, z, np.asarray(0.0), step, np.asarray(False), _noise(rng, _TUNING, *z.shape))
        while ladder[-1] < 1.0:
            ratio = np.asarray(ratio)
            if np.isnan(ratio).any() or (ratio == np.inf).any():
                raise ValueError("energy is NaN or -inf at particles of the pilot run: no log Z. Mend it there.")
            if np.isneginf(ratio).all():
                raise ValueError("energy is infinite at all particles of the pilot run: no log Z. Mend it there.")
            if len(ladder) > _RUNGS:
                raise wells.no_gibbs(
                    f"{_RUNGS} rungs did not suffice to reach it, the last is at β = {ladder[-1]:.6f} of 1"
                )
            rise, uneven = _next_rung(ladder[-1], ratio)
            weights = np.exp(rise * (ratio - ratio.max()))
            ladder.append(1.0 if rise >= 1.0 - ladder[-1] else ladder[-1] + rise)
            spread += uneven
            z = np.asarray(z)[:, rng.choice(_PILOT, size=_PILOT, p=weights / weights.sum())]
            beta = np.asarray(ladder[-1])  # an array, for a Python number would be compiled in
            for _ in range(1 if beta < 1.0 else _SETTLING // _TUNING):
                z, ratio, step = _tune(q, z, beta, step, np.asarray(True), _noise(rng, _TUNING, *z.shape))
            steps.append(float(step))
        return _Path(np.array(ladder), np.array(steps), q.centre + np.asarray(z).T @ q.root.T, spread)


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
    low = max(low, 1e-12)  # where many a particle is at an infinite energy, only to leave them behind
    return low, variance(low)


def _refined(path: _Path, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """Each interval in equal parts, with step sizes between those at its ends."""
    coarse, fine = np.arange(len(path.ladder)), np.linspace(0, len(path.ladder) - 1, (len(path.ladder) - 1) * parts + 1)
    steps = np.append(path.steps[1], path.steps[1:])
    return np.interp(fine, coarse, path.ladder), np.exp(np.interp(fine, coarse, np.log(steps)))


def _parts(
    q: _Gaussian, path: _Path, particles: int, rng: np.random.Generator, integrate: bool, progress: bool | None
) -> int:
    """Into how many parts an interval of the path is cut: as many as make a trial's weights even."""
    most = max(1, _FINEST // len(path.ladder))
    parts = min(max(1, math.ceil(path.spread / _TOTAL)), most)
    last = math.inf
    while parts < most:
        trial = _run(q, *_refined(path, parts), particles, rng, progress)
        error = (trial.integral if integrate else trial.sampled).error
        if (trial.even and not (integrate and trial.rough)) or error > _FINER * last:
            break
        last, parts = error, min(3 * parts, most)
    return parts


@dataclass(frozen=True)
class _Run:
    """What particles brought down a ladder: where they end (n, d), log weights (n,), areas under log ratios (n,).

    The rule of the integral is the trapezoidal one. `bend` is its end correction: -Δ²/12 times the change of the
    derivative, which is the variance of the log ratio. Particles that lag behind the path make the integral fall short,
    in linear response by half the variance of the log weight less `alone`, the variance on that ladder without a lag.

    Reference: Friel, Hurn and Wyse, Stat. Comput. 24 (2014) 709; Hermans, J. Phys. Chem. 95 (1991) 9029.
    """

    end: np.ndarray
    log_weight: np.ndarray
    area: np.ndarray
    bend: float
    alone: float
    acceptance: float
    rungs: int

    @property
    def weight(self) -> np.ndarray:
        return np.exp(self.log_weight - self.log_weight.max())

    @property
    def effective(self) -> float:
        return float(self.weight.sum() ** 2 / (self.weight**2).sum())

    @property
    def even(self) -> bool:
        return self.effective >= _EVEN * np.isfinite(self.log_weight).sum()

    @property
    def sampled(self) -> Estimate:
        """The log of a mean is low by half the variance of the mean, which is added; the delta method's error."""
        n, mean = len(self.weight), self.weight.mean()
        variance = self.weight.var(ddof=1) / mean**2 / n
        return Estimate(float(self.log_weight.max() + np.log(mean) + variance / 2), math.sqrt(variance))

    @property
    def rough(self) -> bool:
        """Whether a finer ladder would make a better integral: its error exceeds that of sampling."""
        return bool(np.isfinite(self.area).all()) and self.integral.error > 1.5 * self.sampled.error

    @property
    def integral(self) -> Estimate:
        """The error holds what follows the corrections too: half the bend, and the third cumulant behind the lag."""
        if not np.isfinite(self.area).all():
            return Estimate(math.nan, math.nan)
        deviation = self.log_weight - self.log_weight.mean()
        terms = self.area + deviation**2 / 2  # the lag by particle
        scatter = terms.std(ddof=1) / math.sqrt(len(terms))
        third = float(np.mean(deviation**3)) / 6
        return Estimate(
            float(terms.mean() + self.bend - self.alone / 2), math.hypot(float(scatter), third, self.bend / 2)
        )

    def estimate(self, integrate: bool, missed: float) -> Annealed:
        first, other = (self.integral, self.sampled) if integrate else (self.sampled, self.integral)
        if math.isnan(first.value):
            raise ValueError("energy is infinite at particles on the path, so it has no mean; use method='annealed'.")
        error = math.hypot(first.error, math.log1p(missed))
        if not (self.even and self.effective >= _FEW) and not math.isnan(other.value):
            error = math.hypot(error, first.value - other.value)
        return Annealed(
            first.value,
            error,
            effective=self.effective,
            other=other,
            rungs=self.rungs,
            acceptance=self.acceptance,
            missed=missed,
        )


def _run(
    q: _Gaussian, ladder: np.ndarray, steps: np.ndarray, particles: int, rng: np.random.Generator, progress: bool | None
) -> _Run:
    """Fresh particles down the ladder as it is: independent weights."""
    pad = -(len(ladder) - 1) % _CHUNK  # rungs at β = 1, which change no weight
    low = np.concatenate([ladder[:-1], np.ones(pad)]).reshape(-1, _CHUNK)
    high = np.concatenate([ladder[1:], np.ones(pad)]).reshape(-1, _CHUNK)
    step = np.concatenate([steps[1:], np.full(pad, steps[-1])]).reshape(-1, _CHUNK)
    shape, nothing = (len(q.centre), particles), np.zeros(particles)
    carry = (rng.standard_normal(shape), nothing, nothing, *np.zeros(3))
    with float64():
        bar = tqdm(
            total=len(ladder) - 1,
            desc="annealing",
            unit="rung",
            disable=progress is False,
            delay=0 if progress else _PATIENCE,
            leave=False,
        )
        for rungs in zip(low, high, step, strict=True):
            carry = _descend(q, carry, *rungs, _noise(rng, _CHUNK, _SWEEPS, *shape))
            bar.update(min(_CHUNK, bar.total - bar.n))
        bar.close()
        z, log_weight, area, bend, alone, accepted = (np.asarray(a) for a in carry)
    if np.isnan(log_weight).any() or not np.isfinite(log_weight.max()):
        raise ValueError("energy is NaN, or infinite at all particles, along the path: no log Z. Mend it there.")
    end = q.centre + z.T @ q.root.T
    return _Run(end, log_weight, area, float(bend), float(alone), float(accepted) / low.size, len(ladder))


def _noise(rng: np.random.Generator, *shape: int) -> tuple[np.ndarray, np.ndarray]:
    """Of moves, shape (..., d, n): normal, and the logs of uniform numbers (..., n).

    NumPy's own: in a compiled call they would take most of the time to compile it.
    """
    return rng.standard_normal(shape), np.log1p(-rng.random((*shape[:-2], shape[-1])))


def _mala(q: _Gaussian, seen: _Seen, beta: Any, step: Any, noise: Any) -> tuple[_Seen, jax.Array]:
    """One Metropolis-adjusted Langevin move on π_β; the share accepted.

    Reference: Roberts and Tweedie, Bernoulli 2 (1996) 341, for the truncated drift.
    """
    xi, chance = noise

    def drift(at: _Seen) -> jax.Array:
        """Cut off at the length of the noise, or a particle far out on a steep energy would be rejected for ever."""
        full = -(1 - beta) * at.z - beta * at.slope
        longest = 2 * jnp.sqrt(len(full) / step)
        return full * jnp.minimum(1.0, longest / jnp.maximum(jnp.sqrt(jnp.sum(full**2, axis=0)), longest))

    new = q.look(seen.z + step / 2 * drift(seen) + jnp.sqrt(step) * xi)
    back = seen.z - new.z - step / 2 * drift(new)
    rise = (1 - beta) / 2 * jnp.sum(new.z**2 - seen.z**2, axis=0) + beta * (new.height - seen.height)
    log_accept = -rise - jnp.sum(back**2, axis=0) / (2 * step) + jnp.sum(xi**2, axis=0) / 2
    accept = chance < log_accept  # False where it is NaN
    kept = jax.tree.map(lambda a, b: jnp.where(accept, a, b), new, seen)
    return kept, jnp.mean(accept.astype(xi.dtype))


@eqx.filter_jit
def _tune(
    q: _Gaussian, z: Any, beta: Any, step: Any, moving: Any, noise: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """MALA moves whose step size is driven to the acceptance aimed at; none unless `moving`. Also the log ratio."""

    def move(carry: Any, noise: Any) -> tuple[Any, None]:
        seen, log_step = carry
        seen, share = _mala(q, seen, beta, jnp.exp(log_step), noise)
        return (seen, log_step + (share - _ACCEPT)), None

    carry = (q.look(z), jnp.log(jnp.asarray(step, z.dtype)))
    moved = jax.lax.scan(move, carry, noise)[0]
    seen, log_step = jax.tree.map(lambda a, b: jnp.where(moving, a, b), moved, carry)
    return seen.z, q.log_ratio(seen), jnp.exp(log_step)


@eqx.filter_jit
def _descend(q: _Gaussian, carry: Any, lows: Any, highs: Any, steps: Any, noise: Any) -> Any:
    """A chunk of the ladder; carried are z (d, n) and the first five numbers of a `_Run`."""

    def rung(carry: Any, this: Any) -> tuple[Any, None]:
        seen, log_weight, area, bend, alone, accepted = carry
        low, high, step, noise = this
        rise, ratio = high - low, q.log_ratio(seen)

        def sweep(seen: _Seen, noise: Any) -> tuple[_Seen, jax.Array]:
            return _mala(q, seen, high, step, noise)

        seen, share = jax.lax.scan(sweep, seen, noise)
        new = q.log_ratio(seen)

        def plus(total: jax.Array, change: jax.Array) -> jax.Array:
            return jnp.where(rise > 0, total + change, total)  # 0 · inf on a rung of no height

        log_weight = plus(log_weight, rise * ratio)
        area = plus(area, rise / 2 * (ratio + new))
        bend = plus(bend, -(rise**2) / 12 * (jnp.var(new) - jnp.var(ratio)))
        alone = plus(alone, rise**2 * jnp.var(ratio))
        return (seen, log_weight, area, bend, alone, accepted + jnp.mean(share)), None

    z, *sums = carry
    (seen, *sums), _ = jax.lax.scan(rung, (q.look(z), *sums), (lows, highs, steps, noise))
    return seen.z, *sums
