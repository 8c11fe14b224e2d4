"""When to stop a closed loop: rules for `simulate(stop=...)`. All here are statistical, none certifies KL."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ctrlgen import measure
from ctrlgen.loop import Moment


@dataclass(frozen=True, kw_only=True)
class SteinResidual:
    """Stop when the Stein residual ε E[ΔE] - E|∇E|² is within its own error for several checks in a row.

    The residual is d/dt E_ρ[E], zero at the Gibbs measure, and needs no constant of the energy. It is zero also in
    a metastable state that exchanges no mass on the time scale of the run: that the rule is met is evidence that
    the mean energy has settled, not a bound on KL.

    Args:
        z: how many standard errors count as "within", > 0.
        checks: how many checks in a row, >= 1. One would stop at the first chance crossing of zero.
        interval: time between checks; a hundredth of the duration when omitted.
        points: at most this many particles are used in a check.

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

    def monitor(self) -> _SteinMonitor:
        """A fresh monitor, for one run."""
        return _SteinMonitor(self)


class _SteinMonitor:
    def __init__(self, rule: SteinResidual):
        self.rule, self.row, self.last = rule, 0, None

    def check(self, now: Moment) -> str | None:
        if now.plant.kind != "particles":
            raise ValueError(
                f"SteinResidual is for particle plants; this loop's plant is a {now.plant.kind}. "
                "Its KL is exact: read response.kl."
            )
        if not np.isclose(now.factor, 1.0):
            self.row = 0  # the temperature is not yet the one whose Gibbs measure is meant
            return None
        temperature = getattr(now.plant, "reference_temperature", now.plant.temperature)
        self.last = measure.stein_residual(np.asarray(now.state)[: self.rule.points], now.energy, temperature)
        within = abs(self.last.value) <= self.rule.z * self.last.error
        self.row = self.row + 1 if within else 0
        if self.row < self.rule.checks:
            return None
        return (
            f"SteinResidual: the residual {self.last} was within {self.rule.z:g} standard errors of zero "
            f"{self.row} checks in a row [statistical: no bound on KL]"
        )

    def unmet(self) -> str:
        if self.last is None:
            return "SteinResidual was not met: it was never evaluated at the final temperature"
        return (
            f"SteinResidual was not met: the last residual was {self.last}, {self.row} checks in a row within its error"
        )
