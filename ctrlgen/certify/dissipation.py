"""Stopping a posteriori: the log-Sobolev inequality turns a bound of the dissipation into one of KL."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from flint import arb, ctx

from ctrlgen import measure
from ctrlgen.certify.apriori import KLBound, require_euler
from ctrlgen.certify.constants import other_gradient
from ctrlgen.certify.initial_kl import column, exact, float_above, split, square
from ctrlgen.certify.log_sobolev import log_sobolev
from ctrlgen.certify.looks import BATCHES, LookMonitor, LookRule, look_error, look_seed
from ctrlgen.certify.premise import premise, shown_down, shown_up
from ctrlgen.certify.verdict import combine
from ctrlgen.datasets import Gaussian
from ctrlgen.energies.base import Energy
from ctrlgen.energies.spectral import down
from ctrlgen.loop import Start
from ctrlgen.prove.claim import Status

BITS = 256


@dataclass(frozen=True)
class DissipationBelow(LookRule):
    """Stop where I(ρ‖ρ*) ≤ 2αδ, from which LSI(α) concludes KL(ρ‖ρ*) ≤ δ.

    α comes from the energy's constants, as `log_sobolev` establishes it; I, the dissipation divided by ε, from the run:

    * a GaussianPlant: I in closed form, in ball arithmetic on the moments as they are: PROVED for that Gaussian;
    * a FokkerPlanckGrid: the exact dissipation of the grid: SAMPLED, because α belongs to the continuum; the grid's own
      KL, which is exact as well, must be below δ too;
    * particles of Langevin(scheme="euler"): an upper confidence bound of I for the law after one more Euler step,
      which the run then takes and ends with: SAMPLED. The chance of ever stopping with KL > δ is at most
      1 - confidence, look number j spending 6(1 - confidence)/(π²j²) of it, as far as the bound, corrected for the
      skewness of the estimate, is what it says.

    Args:
        delta: δ > 0 [nats].
        confidence: of all looks at particles together, in (0, 1).
        interval: time between checks; a hundredth of the duration when omitted.
        points: at most this many particles are used in a look.

    Raises:
        ValueError: an argument is out of its range.
    """

    def monitor(self, start: Start) -> _DissipationMonitor:
        """A fresh monitor, for one run.

        Raises:
            ValueError: no log-Sobolev constant is established, or the rule does not fit the plant.
        """
        temperature = float(start.plant.temperature)
        if start.plant.kind == "particles":
            require_euler("DissipationBelow for particles", start)
            if words := other_gradient(start.energy):
                raise ValueError(f"DissipationBelow needs the gradient of the energy itself; {words}.")
        elif start.schedule is not None:
            raise ValueError("DissipationBelow needs a static temperature; got a loop with a temperature schedule.")
        lsi = log_sobolev(start.energy, temperature)
        if lsi.status is not Status.PROVED or lsi.constant is None:
            raise ValueError(
                "DissipationBelow needs a log-Sobolev constant, which is not established for this energy at "
                f"temperature {temperature:g}: {lsi.reason}. KLBelow needs log Z instead of constants; SteinResidual "
                "needs neither, and certifies nothing."
            )
        return _DissipationMonitor(self, lsi, start)


class _DissipationMonitor(LookMonitor):
    def __init__(self, rule: DissipationBelow, lsi: Any, start: Start):
        super().__init__(rule, start)
        self.lsi = lsi
        self.limit = down(2 * Fraction(lsi.constant) * Fraction(rule.delta))
        self.bound, self.own = math.inf, 0.0
        self.state: Any = None

    def judge(self, state: Any) -> bool:
        """Bound I from above at this state."""
        self.look += 1
        self.state, plant, energy = state, self.start.plant, self.start.energy
        if plant.kind == "gaussian":
            self.bound = gaussian_fisher(state, energy, plant.temperature)
        elif plant.kind == "grid":
            self.bound = float(getattr(plant, "dissipation")(state, energy)) / plant.temperature  # noqa: B009
            self.own = float(getattr(plant, "kl")(state, energy))  # noqa: B009
        else:
            error = look_error(1 - self.rule.confidence, self.look)
            x = np.asarray(state, dtype=np.float64)[: self.rule.points]
            found = measure.fisher_transition(
                x,
                energy,
                plant.temperature,
                self.start.step,
                batches=BATCHES,
                confidence=1 - error,
                key=look_seed(x, self.look),
            )
            self.bound = float(found.upper)
        return self.good

    @property
    def good(self) -> bool:
        return self.bound <= self.limit and self.own <= self.rule.delta

    def why(self) -> str:
        kind = {"gaussian": "proved", "grid": "exact on the grid"}.get(
            self.start.plant.kind, f"an upper bound at {self.rule.confidence:.4g} confidence over all {self.look} looks"
        )
        return f"DissipationBelow: I(ρ‖ρ*) ≤ {shown_up(self.bound)} ({kind}), at most 2αδ = {shown_down(self.limit)}"

    def unmet(self) -> str:
        if self.look == 0:
            return "DissipationBelow was not met: it was never evaluated"
        more = f"; the grid's own KL was {self.own:.4g}" if self.own else ""
        if self.start.plant.kind == "particles":
            more = "; longer steps and more particles make it tighter, and KLBelow bounds KL itself"
        return (
            f"DissipationBelow was not met: the last bound of I(ρ‖ρ*) was {shown_up(self.bound)}, and "
            f"2αδ = {shown_down(self.limit)} was asked{more}"
        )

    def judged(self, law: str, density: str) -> KLBound:
        """The verdict on the state that was judged last."""
        if not self.good:
            return self.undecided(self.unmet())
        plant, energy, bound = self.start.plant, self.start.energy, self.bound
        if plant.kind == "gaussian":
            state = self.state
            fact = premise(
                f"I(ρ‖ρ*) ≤ {shown_up(bound)} ≤ 2αδ", "closed form of two Gaussians, in ball arithmetic on the moments",
                lambda: gaussian_fisher(state, energy, plant.temperature) <= min(bound, self.limit), "interval",
            )  # fmt: skip
            return combine(
                f"KL(ρ‖ρ*) ≤ {self.rule.delta!r} for {density}", [*self.lsi.steps, fact],
                assumptions=("ρ is the Gaussian with the run's moments as they are, rounding included",),
                kind=KLBound, bound=self._kl(),
            )  # fmt: skip
        if plant.kind == "grid":
            return KLBound(
                claim=f"KL(ρ‖ρ*) ≤ {self.rule.delta!r} for {density}", status=Status.SAMPLED, method="grid",
                assumptions=("the log-Sobolev constant of the continuum holds on the grid",),
                reason=f"I(ρ‖ρ*) = {bound:.4g} on the grid, α ≥ {shown_down(self.lsi.constant)}; the "
                f"grid's own KL is {self.own:.4g}",
                bound=max(self._kl(), self.own), steps=self.lsi.steps,
            )  # fmt: skip
        spent = look_error(1 - self.rule.confidence, self.look)
        return KLBound(
            claim=f"KL(ρ‖ρ*) ≤ {self.rule.delta!r} for {law}, at confidence {self.rule.confidence:g} over all looks",
            status=Status.SAMPLED, method="transition",
            assumptions=(
                "the particles are independent draws of their law",
                "the estimate of I is normal about its expectation, with its jackknife error",
            ),
            reason=f"I(ρ‖ρ*) ≤ {shown_up(bound)} at confidence 1 - {spent:.2g} (look {self.look}), "
            f"α ≥ {shown_down(self.lsi.constant)}, KL ≤ I/(2α)",
            bound=self._kl(), steps=self.lsi.steps,
        )  # fmt: skip

    def _kl(self) -> float:
        """I/(2α), rounded up."""
        with ctx.workprec(BITS):
            return float_above(arb(exact(self.bound)) / (2 * arb(exact(self.lsi.constant))))


def gaussian_fisher(state: Gaussian, energy: Energy, temperature: float) -> float:
    """I(N(m, C)‖ρ*) of a quadratic energy [1/length²], rounded up: tr(SCS) + |Pm - b|²/ε², S = P/ε - C⁻¹.

    Computed in ball arithmetic on the floats of the moments; ∞ where C is too near singular for it.

    Raises:
        ValueError: the energy is not quadratic.
    """
    form, rest = split(energy)
    if form is None or rest is not None:
        raise ValueError(f"gaussian_fisher needs a quadratic energy; got {type(energy).__name__}.")
    with ctx.workprec(BITS):
        eps, p, c = arb(exact(temperature)), form.matrix, square(state.covariance)
        try:
            inverse = c.inv()
        except ZeroDivisionError:
            return math.inf
        slope = p * column(state.mean) - column(form.push)
        stretch = (p * c * p).trace() / eps**2 - 2 * p.trace() / eps + inverse.trace()
        return float_above(stretch + (slope.transpose() * slope)[0, 0] / eps**2)
