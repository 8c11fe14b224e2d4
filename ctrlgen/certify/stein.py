"""Stopping without constants: statistical rules, which say how sure they are and certify nothing about KL."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from scipy.special import log_ndtr, ndtr, ndtri_exp

from ctrlgen import measure
from ctrlgen.certify.verdict import Verdict
from ctrlgen.checks import positive
from ctrlgen.energies.base import Energy
from ctrlgen.loop import Moment, Start
from ctrlgen.prove.claim import Status
from ctrlgen.threads import one_blas_thread

DIRECTIONS = 8  # coordinates that Stein functions are made of; random directions above this dimension
WAVES = 8  # cosines among the Stein functions
GROUP = 256  # particles that a check needs at least, to have a group of its own
MISTAKE = 0.05  # the chance, over all looks, of stopping where a residual is far from zero


def replay(rule: Any, response: Any) -> Verdict:
    """The verdict of a rule that is shown the recorded densities of a finished run, as if it had stopped at the last.

    Raises:
        ValueError: the rule cannot judge this loop.
    """
    time, begun = response.time, Start.of(response, rule)
    monitor = rule.monitor(begun)
    if response.status == "diverged":
        return monitor.undecided(f"the run diverged: {response.message}")
    for t, state in zip(time[1:], response.snapshots[1:], strict=True):
        factor = 1.0 if response.schedule is None else float(np.max(np.asarray(response.schedule(t))))
        monitor.check(Moment(float(t), round(t / begun.step), state, factor, response.plant, response.energy_block))
    return monitor.verdict()


# Stein functions --------------------------------------------------------------------------------------------


class SteinFunctions:
    """Functions φ with E[εΔφ - ∇φ·∇E] = 0 at the Gibbs measure.

    E itself, the coordinates, their products, cosines; and uᵢ/√(1 + |u|²), u the place relative to the particles' mean
    in units of their spread: nearly constant along rays, so that a slow drift around a stiff ring or shell of particles
    is not lost in the noise across it.

    Above 8 dimensions, the coordinates along 8 fixed random orthonormal directions take the place of all.

    Args:
        dim: d.
    """

    def __init__(self, dim: int):
        rng = np.random.default_rng(0)
        self.axes = np.eye(dim) if dim <= DIRECTIONS else np.linalg.qr(rng.standard_normal((dim, DIRECTIONS)))[0]
        r = self.axes.shape[1]
        self.waves, self.phases = rng.standard_normal((r, WAVES)), rng.uniform(0, 2 * np.pi, WAVES)
        self.pairs = [(i, j) for i in range(r) for j in range(i, r)]
        s = [f"x{i + 1}" if dim <= DIRECTIONS else f"(direction {i + 1})" for i in range(r)]
        self.names = ["E", *s, *(f"{s[i]}·{s[j]}" if i != j else f"{s[i]}²" for i, j in self.pairs)]
        self.names += [f"cosine {k + 1}" for k in range(WAVES)] + [f"{name}/√(1 + |x|²)" for name in s]

    @one_blas_thread
    def residuals(self, x: np.ndarray, energy: Energy, temperature: float) -> tuple[np.ndarray, np.ndarray]:
        """The means of εΔφ - ∇φ·∇E over particles x (n, d) and their standard errors, each (K,)."""
        first = measure.stein_residual(x, energy, temperature)
        place, push = x @ self.axes, np.asarray(energy.gradient(x)) @ self.axes
        middle, spread = place.mean(axis=0), place.std(axis=0)
        white = place - middle
        spread = np.where(spread > 0, spread, 1.0)
        waves = self.waves / spread[:, None]
        angle = white @ waves + self.phases
        terms = [
            -push,
            *(
                (2 * temperature * (i == j) - white[:, i] * push[:, j] - white[:, j] * push[:, i])[:, None]
                for i, j in self.pairs
            ),
            (push @ waves) * np.sin(angle) - temperature * (waves**2).sum(axis=0) * np.cos(angle),
            _rays(white, push, temperature),
        ]
        values = np.concatenate(terms, axis=1)
        error = values.std(axis=0, ddof=1) / math.sqrt(len(x))
        return np.append(float(first.value), values.mean(axis=0)), np.append(float(first.error), error)


def _rays(white: np.ndarray, push: np.ndarray, temperature: float) -> np.ndarray:
    """εΔφ - ∇φ·∇E of φᵢ = uᵢ/√(1 + |u|²), (n, r): with q = 1 + |u|², Δφᵢ = uᵢ q^{-5/2} (3|u|² - (r + 2)q)."""
    size = math.sqrt(float(np.mean(white**2))) or 1.0
    u = white / size
    square = (u**2).sum(axis=1, keepdims=True)
    q = 1 + square
    along = (u * push).sum(axis=1, keepdims=True)
    laplacian = u * q**-2.5 * (3 * square - (u.shape[1] + 2) * q) / size**2
    return temperature * laplacian - (push * q**-0.5 - u * along * q**-1.5) / size


def widened(z: float, count: int) -> float:
    """The z that `count` independent normals all stay within as often as one stays within the given z (Šidák)."""
    outside = float(np.log(2.0) + log_ndtr(-z))  # log P(|N| > z)
    each = math.log(-math.expm1(math.log1p(-math.exp(outside)) / count)) if outside > -30 else outside - math.log(count)
    return -float(ndtri_exp(each - math.log(2.0)))


@dataclass(frozen=True)
class SteinResidual:
    """Stop when all Stein residuals ε E[Δφ] - E[∇φ·∇E] are within their own error for several checks in a row.

    They are d/dt E_ρ[φ] along the loop, zero at the Gibbs measure, and need no constant of the energy; φ are E, the
    coordinates, their products and a few bounded functions (`SteinFunctions`). They are zero also in a metastable state
    that exchanges no mass on the time scale of the run: that the rule is met is evidence that these means have settled,
    not a bound on KL.

    What the numbers mean. Of K functions, each must be within z_K standard errors of zero, with z_K such that K
    independent normals all are as often as one is within z (Šidák). Were one of the true residuals θ = z_K + 2 standard
    errors or more from zero, a check would pass with probability p ≤ P(|N(θ, 1)| ≤ z_K) ≈ 0.023. Look number j stops
    only after m_j checks in a row, m_j = max(checks, log(π²j²/(6·0.05)) / log(1/p)) rounded up, so that the chance of
    ever stopping in such a state is at most Σ p^{m_j} ≤ 0.05. That counts successive checks as independent: they are
    made on disjoint groups of particles where there are enough of them (256 a group); otherwise the verdict says so.

    Args:
        z: how many standard errors count as "within", > 0.
        checks: how many checks in a row at least, >= 1. One would stop at the first chance crossing of zero.
        interval: time between checks; a hundredth of the duration when omitted.
        points: at most this many particles are used in a check.

    Raises:
        ValueError: an argument is out of its range.

    Reference: Gorham and Mackey, Measuring Sample Quality with Stein's Method, NeurIPS 2015.
    """

    z: float = 1.0
    checks: int = 4
    interval: float | None = None
    points: int = 4096

    def __post_init__(self):
        if not (np.isfinite(self.z) and self.z > 0):
            raise ValueError(f"z must be positive and finite; got {self.z}.")
        if self.checks < 1:
            raise ValueError(f"checks must be at least 1; got {self.checks}.")
        if self.interval is not None and not self.interval > 0:
            raise ValueError(f"interval must be positive; got {self.interval}.")
        if self.points < 2:
            raise ValueError(f"points must be at least 2; got {self.points}.")

    def needed(self, look: int, limit: float) -> int:
        """m_j: the checks in a row that look number j asks for, with z_K = limit."""
        passes = float(ndtr(-2.0) - ndtr(-2.0 - 2 * limit))  # P(|N(limit + 2, 1)| ≤ limit)
        return max(self.checks, math.ceil(math.log(math.pi**2 * look**2 / (6 * MISTAKE)) / -math.log(passes)))

    def monitor(self, start: Start) -> _SteinMonitor:
        """A fresh monitor, for one run.

        Raises:
            ValueError: the plant is not of particles.
        """
        if start.plant.kind != "particles":
            raise ValueError(
                f"SteinResidual is for particle plants; this loop's plant is a {start.plant.kind}. "
                "Its KL is exact: read response.kl."
            )
        return _SteinMonitor(self, start)

    def verify(self, response: Any) -> Verdict:
        """The same judgement of a finished run, from its recorded densities: SAMPLED where it ends met, else UNDECIDED.

        Raises:
            ValueError: the plant is not of particles.
        """
        return replay(self, response)


class _SteinMonitor:
    def __init__(self, rule: SteinResidual, start: Start):
        self.rule, self.row, self.look, self.last, self.met = rule, 0, 0, "", False
        self.functions = SteinFunctions(start.energy.dim)
        self.limit = widened(rule.z, len(self.functions.names))
        interval = rule.interval or start.steps * start.step / 100
        looks = max(1, round(start.steps * start.step / interval))
        self.most, self.need = rule.needed(looks, self.limit), rule.checks
        self.apart = False

    def check(self, now: Moment) -> str | None:
        if not np.isclose(now.factor, 1.0):
            self.row, self.met = 0, False  # the temperature is not yet the one whose Gibbs measure is meant
            return None
        temperature = getattr(now.plant, "reference_temperature", now.plant.temperature)
        self.look += 1
        x = self._group(np.asarray(now.state, dtype=np.float64))
        value, error = self.functions.residuals(x, now.energy, temperature)
        score = np.abs(value) / np.maximum(error, 1e-300)
        worst = int(np.argmax(np.where(error > 0, score, np.where(value == 0, 0.0, np.inf))))
        self.last = f"{value[worst]:.4g} ± {error[worst]:.1g} (φ = {self.functions.names[worst]})"
        self.row = self.row + 1 if abs(value[worst]) <= self.limit * error[worst] else 0
        self.need = self.rule.needed(self.look, self.limit)
        self.met = self.row >= self.need
        if not self.met:
            return None
        return (
            f"SteinResidual: the residuals of {len(value)} Stein functions, the largest {self.last}, were within "
            f"{self.limit:.3g} standard errors of zero {self.row} checks in a row [statistical: no bound on KL]"
        )

    def _group(self, x: np.ndarray) -> np.ndarray:
        """The particles of this look: a group of their own in every `most` successive looks where there are enough."""
        size = min(self.rule.points, len(x) // self.most)
        self.apart = size >= min(GROUP, self.rule.points)
        if not self.apart:
            return x[: self.rule.points]
        first = self.look % self.most * size
        return x[first : first + size]

    def unmet(self) -> str:
        if self.look == 0:
            return "SteinResidual was not met: it was never evaluated at the final temperature"
        return (
            f"SteinResidual was not met: the last residual was {self.last}, {self.row} checks in a row within "
            f"{self.limit:.3g} standard errors where {self.need} are asked"
        )

    def undecided(self, reason: str) -> Verdict:
        return Verdict(claim="the Stein residuals have settled at zero; no bound on KL", status=Status.UNDECIDED,
                       method="none", reason=reason)  # fmt: skip

    def verdict(self) -> Verdict:
        if not self.met:
            return self.undecided(self.unmet())
        shared = "successive checks are independent, although they share particles"
        return Verdict(
            claim=f"the means of {len(self.functions.names)} Stein functions have settled, to within "
            f"{self.limit + 2:.3g} standard errors; no bound on KL",
            status=Status.SAMPLED,
            method="stein",
            assumptions=("the estimates are normal about the true residuals",) + (() if self.apart else (shared,)),
            reason=f"had one of them been as far off, the rule would have stopped somewhere with probability at most "
            f"{MISTAKE:g}, over all looks; metastable states are not seen",
        )


# Plateau ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FreeEnergyPlateau:
    """Stop when the free energy F(ρ) shows no slope over a window of checks: a heuristic, for comparison.

    A straight line is fitted to the last `window` estimates; the rule is met when the change along it is within
    `tolerance`·ε or within two standard errors. It is met as readily by a slow loop, a metastable state or noisy
    estimates as by a settled one.

    Args:
        window: how many checks, at least 3.
        tolerance: the change over the window that counts as none [nats].
        interval: time between checks; a hundredth of the duration when omitted.
        points: at most this many particles are used in a check.

    Raises:
        ValueError: an argument is out of its range.
    """

    filtered: ClassVar[bool] = True  # F is that of any run; nothing is proved from it
    window: int = 10
    tolerance: float = 0.01
    interval: float | None = None
    points: int = 4096

    def __post_init__(self):
        if self.window < 3:
            raise ValueError(f"window must be at least 3; got {self.window}.")
        if not (np.isfinite(self.tolerance) and self.tolerance >= 0):
            raise ValueError(f"tolerance must be finite and at least 0; got {self.tolerance}.")
        if self.interval is not None:
            positive("interval", self.interval)
        if self.points < 20:
            raise ValueError(f"points must be at least 20; got {self.points}.")

    def monitor(self, start: Start) -> _PlateauMonitor:
        """A fresh monitor, for one run."""
        return _PlateauMonitor(self)

    def verify(self, response: Any) -> Verdict:
        """The same judgement of a finished run, from its recorded densities: SAMPLED if it ends met, else UNDECIDED."""
        return replay(self, response)


class _PlateauMonitor:
    def __init__(self, rule: FreeEnergyPlateau):
        self.rule, self.met, self.change, self.error = rule, False, math.inf, 0.0
        self.seen: deque[tuple[float, float, float]] = deque(maxlen=rule.window)

    def check(self, now: Moment) -> str | None:
        self.met = False
        if not np.isclose(now.factor, 1.0):
            self.seen.clear()
            return None
        state = now.state[: self.rule.points] if now.plant.kind == "particles" else now.state
        value: Any = now.plant.free_energy(state, now.energy)
        self.seen.append((now.time, float(getattr(value, "value", value)), float(getattr(value, "error", 0.0))))
        if len(self.seen) < self.rule.window:
            return None
        time, free, error = np.array(self.seen).T
        centred = time - time.mean()
        span, square = time[-1] - time[0], float(centred @ centred)
        self.change = float(centred @ free) / square * span
        self.error = float(np.sqrt((centred**2) @ error**2)) / square * span
        temperature = getattr(now.plant, "reference_temperature", now.plant.temperature)
        self.met = abs(self.change) <= max(self.rule.tolerance * temperature, 2 * self.error)
        return f"FreeEnergyPlateau: {self._told()} [heuristic: no bound on KL]" if self.met else None

    def _told(self) -> str:
        return f"the free energy changed by {self.change:.3g} ± {self.error:.1g} over {self.rule.window} checks"

    def unmet(self) -> str:
        if len(self.seen) < self.rule.window:
            return (
                f"FreeEnergyPlateau was not met: {len(self.seen)} checks were made, its window has {self.rule.window}"
            )
        return f"FreeEnergyPlateau was not met: {self._told()}"

    def undecided(self, reason: str) -> Verdict:
        return Verdict(claim="the free energy has settled; no bound on KL", status=Status.UNDECIDED, method="none",
                       reason=reason)  # fmt: skip

    def verdict(self) -> Verdict:
        if not self.met:
            return self.undecided(self.unmet())
        return Verdict(
            claim="the free energy has settled; no bound on KL", status=Status.SAMPLED, method="heuristic",
            reason=f"{self._told()}; a heuristic, which slow or metastable loops meet too",
        )  # fmt: skip
