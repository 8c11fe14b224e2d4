"""Stopping a posteriori without constants: a bound of KL itself, from a density that is known exactly or from above."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.stats import t as student

from ctrlgen import measure
from ctrlgen.certify.apriori import KLBound, require_euler
from ctrlgen.certify.existence import refuse_without_gibbs
from ctrlgen.certify.initial_kl import initial_kl
from ctrlgen.certify.looks import BATCHES, LookMonitor, LookRule, look_error, look_seed
from ctrlgen.certify.premise import shown_up
from ctrlgen.certify.verdict import combine
from ctrlgen.estimate import Estimate
from ctrlgen.loop import Start
from ctrlgen.prove.claim import Status


@dataclass(frozen=True)
class KLBelow(LookRule):
    """Stop where KL(ρ‖ρ*) itself is bounded by δ. No constant of the energy is needed, but log Z is.

    * A GaussianPlant: KL in closed form, in ball arithmetic on the moments as they are: PROVED for that Gaussian.
    * A FokkerPlanckGrid: the KL of its masses: SAMPLED, because it is that of the grid.
    * Particles of Langevin(scheme="euler"): KL is convex, so the known mixture of Gaussians that one more Euler step
      makes of the particles has in expectation a larger KL than the law after that step (`measure.kl_transition`). An
      upper confidence bound of it must be below δ; the run then takes that step and ends with it. SAMPLED: the chance
      of ever stopping with KL > δ is at most 1 - confidence, look number j spending 6(1 - confidence)/(π²j²) of it,
      as far as the bound, corrected for the skewness of the estimate, is what it says. In simulations with 100 to 300
      particles it was 0.07 to 0.11 where 0.1 was asked.

    The bound of particles exceeds KL by about V/(2n (8πεh)^(d/2)) for n particles in a volume V: many dimensions, short
    steps and few particles ask for a larger δ.

    Args:
        delta: δ > 0 [nats].
        confidence: of all looks at particles together, in (0, 1).
        interval: time between checks; a hundredth of the duration when omitted.
        points: at most this many particles are used in a look.
        log_partition: log Z, a number or an `Estimate`; in closed form, by quadrature or by annealed importance
            sampling when omitted (`measure.log_partition`).

    Raises:
        ValueError: an argument is out of its range.
    """

    log_partition: Any = field(default=None, kw_only=True)

    def monitor(self, start: Start) -> _KLMonitor:
        """A fresh monitor, for one run.

        Raises:
            ValueError: the rule does not fit the plant, or there is no Gibbs measure.
        """
        refuse_without_gibbs(start.energy)
        log_z = None
        if start.plant.kind == "particles":
            temperature = require_euler("KLBelow for particles", start).temperature
            known = self.log_partition
            known = start.energy.log_partition(temperature) if known is None else known
            known = measure.log_partition(start.energy, temperature) if known is None else known
            log_z = known if isinstance(known, Estimate) else Estimate(float(known))
        elif start.schedule is not None:
            raise ValueError("KLBelow needs a static temperature; got a loop with a temperature schedule.")
        return _KLMonitor(self, start, log_z)


class _KLMonitor(LookMonitor):
    def __init__(self, rule: KLBelow, start: Start, log_z: Estimate | None):
        super().__init__(rule, start)
        self.log_z, self.bound, self.gaussian = log_z, math.inf, None

    def judge(self, state: Any) -> bool:
        self.look += 1
        plant, energy = self.start.plant, self.start.energy
        if plant.kind == "gaussian":
            self.gaussian = initial_kl(energy, plant.temperature, state.mean, state.covariance)
            self.bound = self.gaussian.value
        elif plant.kind == "grid":
            self.bound = float(getattr(plant, "kl")(state, energy))  # noqa: B009
        else:
            x = np.asarray(state, dtype=np.float64)[: self.rule.points]
            found = measure.kl_transition(
                x, energy, plant.temperature, self.start.step, self.log_z, batches=BATCHES, key=look_seed(x, self.look)
            ).upper
            error = look_error(1 - self.rule.confidence, self.look)
            self.bound = found.above(float(student.ppf(1 - error, BATCHES - 1)))
        return self.bound <= self.rule.delta

    def why(self) -> str:
        kind = {"gaussian": "proved", "grid": "exact on the grid"}.get(
            self.start.plant.kind, f"an upper bound at {self.rule.confidence:.4g} confidence over all {self.look} looks"
        )
        return f"KLBelow: KL(ρ‖ρ*) ≤ {shown_up(self.bound)} ({kind}), at most {self.rule.delta:g}"

    def unmet(self) -> str:
        if self.look == 0:
            return "KLBelow was not met: it was never evaluated"
        return (
            f"KLBelow was not met: the last bound of KL was {shown_up(self.bound)}, and {self.rule.delta:g} was asked"
        )

    def judged(self, law: str, density: str) -> KLBound:
        if self.bound > self.rule.delta:
            return self.undecided(self.unmet())
        kind, claim = self.start.plant.kind, f"KL(ρ‖ρ*) ≤ {self.rule.delta!r} for"
        if self.gaussian is not None:
            return combine(
                f"{claim} {density}", self.gaussian.steps, kind=KLBound, bound=self.bound,
                assumptions=("ρ is the Gaussian with the run's moments as they are, rounding included",
                             *self.gaussian.assumptions),
            )  # fmt: skip
        if kind == "grid":
            return KLBound(
                claim=f"{claim} {density}", status=Status.SAMPLED, method="grid", bound=self.bound,
                assumptions=("the grid's masses stand for the density",),
                reason=f"KL of the masses is {shown_up(self.bound)}",
            )  # fmt: skip
        return KLBound(
            claim=f"{claim} {law}, at confidence {self.rule.confidence:g} over all looks",
            status=Status.SAMPLED, method="transition", bound=self.bound,
            assumptions=(
                "the particles are independent draws of their law",
                "the estimate of KL has the error and the skewness that its jackknife finds, and the error of log Z",
            ),
            reason=f"KL ≤ {shown_up(self.bound)} at confidence 1 - "
            f"{look_error(1 - self.rule.confidence, self.look):.2g} (look {self.look}), log Z = {self.log_z}",
        )  # fmt: skip
