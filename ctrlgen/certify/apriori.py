"""The stopping rule whose step is known beforehand: a theorem on the Euler scheme, applied to established constants."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, get_args

import numpy as np

from ctrlgen.certify.euler_theorem import (
    NAMES,
    Bound,
    Constants,
    best_step,
    constants_of,
    floor_at,
    proved_bound,
    steps_needed,
)
from ctrlgen.certify.initial_kl import InitialBound, initial_kl
from ctrlgen.certify.premise import premise, shown_up
from ctrlgen.certify.verdict import Verdict, combine
from ctrlgen.checks import positive
from ctrlgen.datasets import Gaussian
from ctrlgen.energies.base import Energy
from ctrlgen.loop import Moment, Start
from ctrlgen.plants.particles import Langevin
from ctrlgen.prove.claim import Status


@dataclass(frozen=True, kw_only=True, repr=False)
class KLBound(Verdict):
    """A verdict on KL(ρ‖ρ*) ≤ δ.

    Args:
        bound: what KL is certified not to exceed [nats], rounded up; None where nothing is.
    """

    bound: float | None = None

    def plot(self, ax: Any = None, **view: Any) -> Any:
        """Draw the bound beside the KL of `response=`, the run that it is about; without one the steps."""
        from ctrlgen import plot

        return plot.kl_bound(self, ax, **view)


@dataclass(frozen=True)
class Plan:
    """A step and a number of steps after which KL(ρ_k‖ρ*) ≤ δ, proved before the first one.

    Attributes:
        step: h [time].
        steps: k.
        bound: the theorem's bound of KL(ρ_k‖ρ*) there [nats], rounded up, at most δ.
        alpha: the LSI constant used, rounded down [1/length²].
        smoothness: the Lipschitz constant of ∇E used, rounded up [energy/length²].
        initial_kl: the bound of KL(ρ₀‖ρ*) used, rounded up [nats].
        floor: what the bound tends to at this step as the steps grow [nats], rounded up.
        theorem: which bound.
        constants: what the theorem used of the energy.
        verdict: PROVED, with the premises and the theorem's arithmetic as steps that can be checked again.
    """

    step: float
    steps: int
    bound: float
    alpha: float
    smoothness: float
    initial_kl: float
    floor: float
    theorem: Bound
    verdict: KLBound
    constants: Constants | None = field(default=None, repr=False, compare=False)

    def bound_after(self, steps: int) -> float:
        """The theorem's bound of KL after so many steps of this length [nats], rounded up.

        Raises:
            ValueError: steps is negative, or the plan does not carry the constants of its energy.
        """
        if self.constants is None or steps < 0:
            raise ValueError(f"steps must be ≥ 0, of a plan that APriori made; got {steps}.")
        return proved_bound(self.theorem, self.constants, self.step, steps, self.initial_kl)

    def plot(self, ax: Any = None) -> Any:
        """Draw the bound of KL over the steps, with its floor: see `ctrlgen.plot.plan`."""
        from ctrlgen import plot

        return plot.plan(self, ax)

    @property
    def duration(self) -> float:
        """steps · step [time]: what to give `simulate`."""
        return self.steps * self.step

    def __str__(self) -> str:
        return (
            f"Plan: {self.steps} Euler steps of h = {self.step:.6g} (t = {self.duration:.6g}) bring KL below "
            f"{shown_up(self.bound)} from KL(ρ₀‖ρ*) ≤ {shown_up(self.initial_kl)}  [{self.verdict.status.name}]\n"
            f"  {self.theorem}: α = {self.alpha:.6g}, L = {self.smoothness:.6g}; "
            f"no number of steps of this h is certified below {shown_up(self.floor)}"
        )

    __repr__ = __str__


@dataclass(frozen=True, eq=False)
class APriori:
    """Stop where the theorem of Vempala and Wibisono proves KL(ρ_k‖ρ*) ≤ δ, from the energy's constants alone.

    It holds for the law of the Euler scheme (ULA) itself, its discretisation bias included, and needs: a log-Sobolev
    constant of the Gibbs measure, hessian_lower and hessian_upper, and a bound of KL(ρ₀‖ρ*). That is computed for a
    Gaussian start (`simulate(cg.Gaussian(...))`, or particles that were drawn from initial_mean and
    initial_covariance); or is given as initial_kl.

    Args:
        delta: δ > 0 [nats].
        initial_mean, initial_covariance: of the start, where `simulate` is given particles: (d,) and (d, d).
        initial_kl: a bound of KL(ρ₀‖ρ*) that is known otherwise, ≥ 0 [nats].
        bound: "vempala-wibisono", the theorem as published; "sharp", the same proof with its constants kept, which
            needs about 20 times fewer steps (its derivation heads `ctrlgen.certify.euler_theorem`).

    Raises:
        ValueError: an argument is out of its range.
    """

    delta: float
    initial_mean: Any = field(default=None, kw_only=True)
    initial_covariance: Any = field(default=None, kw_only=True)
    initial_kl: float | None = field(default=None, kw_only=True)
    bound: Bound = field(default="vempala-wibisono", kw_only=True)

    def __post_init__(self):
        object.__setattr__(self, "delta", positive("delta", self.delta))
        if self.bound not in get_args(Bound):
            raise ValueError(f"bound must be one of {', '.join(map(repr, get_args(Bound)))}; got {self.bound!r}.")
        if self.initial_kl is not None and not (np.isfinite(self.initial_kl) and self.initial_kl >= 0):
            raise ValueError(f"initial_kl must be finite and at least 0; got {self.initial_kl}.")
        if (self.initial_mean is None) != (self.initial_covariance is None):
            raise ValueError("initial_mean and initial_covariance must be given together.")

    @property
    def interval(self) -> None:
        """Not used: the step at which to stop is known beforehand."""
        return None

    def plan(
        self,
        energy: Energy,
        temperature: float,
        *,
        initial_mean: Any = None,
        initial_covariance: Any = None,
        initial_kl: float | None = None,
        step: float | None = None,
    ) -> Plan:
        """The step and the number of steps that the theorem asks for: the fewest steps, or those of a given step.

        Args:
            energy: E.
            temperature: ε > 0.
            initial_mean, initial_covariance, initial_kl: of the start; those of the rule when omitted.
            step: h, where it is given.

        Raises:
            ValueError: a constant is not established, KL(ρ₀‖ρ*) is not known, or the step is too long for δ.
        """
        if initial_kl is None and initial_mean is None:
            initial_kl, initial_mean = self.initial_kl, self.initial_mean
            initial_covariance = self.initial_covariance
        temperature = positive("temperature", temperature)
        constants = constants_of(energy, temperature)
        start = _start_bound(energy, temperature, initial_mean, initial_covariance, initial_kl)
        return self._plan(constants, start, step)

    def _plan(self, c: Constants, start: InitialBound, step: float | None) -> Plan:
        try:
            h = best_step(self.bound, c, self.delta, start.value) if step is None else positive("step", step)
            steps = steps_needed(self.bound, c, h, self.delta, start.value)
            why = "" if steps is not None else self._too_long(c, h)
        except (OverflowError, ZeroDivisionError):
            raise ValueError(
                f"α = {c.alpha:.4g}, L = {c.smoothness:.4g} and ε = {c.temperature:.4g} are out of reach of float "
                "arithmetic: scale the energy and the temperature, or the states."
            ) from None
        if steps is None:
            raise ValueError(why)
        return self._planned(c, start, h, steps)

    def _too_long(self, c: Constants, step: float) -> str:
        floor = floor_at(self.bound, c, step)
        if floor < self.delta:
            return (
                f"delta = {self.delta:g} needs more than 2^60 steps of {step:g}: the theorem is of no use with these "
                f"constants (α = {c.alpha:.4g}, L = {c.smoothness:.4g})."
            )
        if math.isfinite(floor):
            return (
                f"step {step:g} is too long for delta = {self.delta:g}: the theorem's floor at this step is "
                f"{shown_up(floor)}, which is not below delta. Pass a shorter step, or omit it."
            )
        largest = c.alpha * c.temperature / (4 * c.smoothness**2)
        return (
            f"step {step:g} is outside the theorem's range, which ends at about h = {largest:.3g} "
            f"(α = {c.alpha:.4g}, L = {c.smoothness:.4g}). Pass a shorter step, or omit it."
        )

    def _planned(self, c: Constants, start: InitialBound, step: float, steps: int) -> Plan:
        value = proved_bound(self.bound, c, step, steps, start.value)
        return Plan(
            step=step, steps=steps, bound=value, alpha=c.alpha, smoothness=c.smoothness, initial_kl=start.value,
            floor=floor_at(self.bound, c, step), theorem=self.bound,
            verdict=self._verdict(c, start, step, steps, value), constants=c,
        )  # fmt: skip

    def _verdict(self, c: Constants, start: InitialBound, step: float, steps: int, value: float) -> KLBound:
        claim = f"KL(ρ_k‖ρ*) ≤ {self.delta!r} for the law ρ_k after k = {steps} Euler steps of h = {step!r}"
        if not value <= self.delta:
            return KLBound(
                claim=claim, status=Status.UNDECIDED, method="interval",
                reason=f"the theorem's bound there is {shown_up(value)}, which is above delta",
            )  # fmt: skip
        arithmetic = premise(
            f"the theorem's bound at h = {step!r}, k = {steps} is at most {shown_up(value)}, and h is in its range",
            NAMES[self.bound],
            lambda: proved_bound(self.bound, c, step, steps, start.value) <= min(value, self.delta),
            "interval",
        )
        assumptions = ("the chain is in exact arithmetic: the rounding of particles is not in the theorem",)
        return combine(
            claim, [*c.steps, *start.steps, arithmetic], assumptions=(*assumptions, *start.assumptions), kind=KLBound,
            bound=value,
        )  # fmt: skip

    def monitor(self, start: Start) -> _APrioriMonitor:
        """A fresh monitor, for one run.

        Raises:
            ValueError: the plant is not the Euler scheme of the theorem, a constant is not established, KL(ρ₀‖ρ*) is
                not known, or the plant's step is too long for δ.
        """
        constants, initial = self._premises(start)
        plan = self._plan(constants, initial, start.step)
        return _APrioriMonitor(self, constants, initial, plan, start)

    def _premises(self, start: Start) -> tuple[Constants, InitialBound]:
        plant = require_euler("APriori", start)
        constants = constants_of(start.energy, plant.temperature)
        if isinstance(start.initial, Gaussian):
            mean, covariance, known = start.initial.mean, start.initial.covariance, None
        else:
            mean, covariance, known = self.initial_mean, self.initial_covariance, self.initial_kl
        return constants, _start_bound(start.energy, plant.temperature, mean, covariance, known)

    def verify(self, response: Any) -> KLBound:
        """What the theorem proves of the law at the end of a finished run.

        Raises:
            ValueError: as `monitor`.
        """
        begun = Start.of(response, self)
        constants, initial = self._premises(begun)
        value = proved_bound(self.bound, constants, begun.step, response.steps, initial.value)
        verdict = self._verdict(constants, initial, begun.step, response.steps, value)
        if response.status == "diverged":
            return KLBound(
                claim=verdict.claim,
                status=Status.UNDECIDED,
                method="none",
                reason=f"the run diverged: {response.message}",
            )
        return verdict


def _start_bound(energy: Energy, temperature: float, mean: Any, covariance: Any, known: float | None) -> InitialBound:
    if known is not None:
        value = float(known)
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"initial_kl must be finite and at least 0; got {known}.")
        return InitialBound(value, (), (f"KL(ρ₀‖ρ*) ≤ {shown_up(value)}, as given",))
    if mean is None or covariance is None:
        raise ValueError(
            "APriori needs KL(ρ₀‖ρ*): start from a cg.Gaussian, or pass the rule initial_mean and initial_covariance "
            "of the particles' law, or initial_kl, an upper bound."
        )
    found = initial_kl(energy, temperature, mean, covariance)
    drawn = "ρ₀ is the Gaussian that was given: particles at the start are independent draws of it"
    return InitialBound(found.value, found.steps, (*found.assumptions, drawn))


def require_euler(rule: str, start: Start) -> Langevin:
    """The plant, if it is the Euler scheme of dX = -∇E dt + √(2ε) dW at a static temperature.

    Raises:
        ValueError: it is not.
    """
    plant = start.plant
    what = None
    if not isinstance(plant, Langevin):
        what = type(plant).__name__
    elif plant.scheme != "euler":
        what = f"Langevin with scheme={plant.scheme!r}"
    elif plant.mobility is not None or plant.skew is not None:
        what = "Langevin with a metric or skew"
    elif start.schedule is not None:
        what = "a loop with a temperature schedule"
    if what is not None or not isinstance(plant, Langevin):
        raise ValueError(
            f"{rule} is a theorem about Langevin(scheme='euler') without metric, skew or schedule; got {what}. "
            "SteinResidual judges any particles, and certifies nothing."
        )
    return plant


@dataclass
class _APrioriMonitor:
    rule: APriori
    constants: Constants
    initial: InitialBound
    plan: Plan
    start: Start
    met: bool = False

    @cached_property
    def due(self) -> tuple[int, ...]:
        return (max(self.plan.steps, 1),)

    def check(self, now: Moment) -> str | None:
        self.met = now.step >= self.plan.steps
        if not self.met:
            return None
        return f"APriori: the theorem ({self.rule.bound}) needs no more steps for KL ≤ {self.rule.delta:g}"

    def unmet(self) -> str:
        return (
            f"APriori was not met: KL ≤ {self.rule.delta:g} is proved from step {self.plan.steps} on, which the run "
            "did not reach"
        )

    def verdict(self) -> Verdict:
        if self.met:
            steps = self.due[0]
            value = proved_bound(self.rule.bound, self.constants, self.start.step, steps, self.initial.value)
            return self.rule._verdict(self.constants, self.initial, self.start.step, steps, value)
        claim = f"KL(ρ‖ρ*) ≤ {self.rule.delta!r} at the step where the run ended"
        return KLBound(claim=claim, status=Status.UNDECIDED, method="none", reason=self.unmet())
