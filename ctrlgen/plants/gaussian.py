"""The linear plant: under a quadratic energy a Gaussian density stays Gaussian, and its moments are exact.

With E(x) = ½ xᵀPx - bᵀx + c the closed loop is dX = (b - PX) dt + √(2ε) dW, so that mean and covariance obey
linear equations, solved in the eigenbasis of P. Measures are closed forms (plain floats).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from ctrlgen.checks import positive
from ctrlgen.datasets import Gaussian
from ctrlgen.energies.algebra import Composition
from ctrlgen.energies.analytic import Quadratic
from ctrlgen.energies.base import Energy
from ctrlgen.energies.observation import LeastSquares
from ctrlgen.plants.base import Failure, Plant, Run
from ctrlgen.plants.propagators import PIECES, constant_pieces


def quadratic_form(energy: Energy) -> tuple[np.ndarray, np.ndarray] | None:
    """(P, b) of E(x) = ½ xᵀPx - bᵀx + constant for a Quadratic, a LeastSquares or a sum of them; else None.

    P, (d, d), is symmetric and may be indefinite (negative weights); its Gibbs mean is P⁻¹b where P ≻ 0.
    """
    if isinstance(energy, Quadratic):
        precision = np.asarray(energy.precision, dtype=np.float64)
        return precision, precision @ np.asarray(energy.mean, dtype=np.float64)
    if isinstance(energy, LeastSquares):
        return energy.precision, energy.push
    if not isinstance(energy, Composition):
        return None
    precision, push = np.zeros((energy.dim, energy.dim)), np.zeros(energy.dim)
    for weight, term in zip(energy.weights, energy.terms, strict=True):
        form = quadratic_form(term)
        if form is None:
            return None
        precision, push = precision + weight * form[0], push + weight * form[1]
    return precision, push


@dataclass(frozen=True)
class GaussianPlant(Plant):
    """The closed loop of a quadratic energy as mean and covariance, exact at every time.

    Args:
        temperature: ε > 0 [energy].
        step: time per step; when omitted, the time between records. The moments are exact either way; a step only
            sets how long a temperature schedule's value is held.

    With a temperature schedule the temperature is constant on each step (on each of 16 equal parts of the time
    between records when there is no step), at its value in the middle; each part is integrated exactly.

    Raises:
        ValueError: temperature or step is not positive and finite.

    Reference: Pavliotis, Stochastic Processes and Applications (2014), ch. 3 and 4.
    """

    kind: ClassVar[Literal["particles", "grid", "gaussian"]] = "gaussian"

    temperature: float
    step: float | None = None

    def __post_init__(self) -> None:
        positive("temperature", self.temperature)
        if self.step is not None:
            positive("step", self.step)

    def start(
        self,
        energy: Energy,
        initial: Any,
        *,
        step: float,
        key: Any = 0,
        particles: int = 0,
        schedule: Callable | None = None,
        dtype: Any = None,
    ) -> GaussianRun:
        """Make a run from `initial`, a Gaussian of the energy's dimension.

        Raises:
            ValueError: the energy is not quadratic, or initial is of another dimension.
            TypeError: initial is not a Gaussian.
        """
        return GaussianRun(_Flow(energy, self.temperature), _gaussian(initial, energy), self, step, schedule)

    def ula(self, energy: Energy, initial: Gaussian, step: float, steps: int) -> Gaussian:
        """The exact law after `steps` Euler steps x⁺ = x - h∇E(x) + √(2εh) ξ from `initial`, h = `step`.

        Its stationary variance along an eigenvector of P with eigenvalue κ is (ε/κ)/(1 - κh/2), for κh < 2.

        Raises:
            ValueError: as `start`; or step is not positive, or steps is negative.
        """
        h = positive("step", step)
        if steps < 0:
            raise ValueError(f"steps must be at least 0; got {steps}.")
        flow, initial = _Flow(energy, self.temperature), _gaussian(initial, energy)
        rates = flow.rates
        factor = 1.0 - h * rates
        travel = np.array([steps * h if k == 0 else (1 - a**steps) / k for k, a in zip(rates, factor, strict=True)])
        loss = h * rates * (2.0 - h * rates)  # 1 - factor²
        noise = [2 * self.temperature * h * (steps if q == 0 else (1 - a ** (2 * steps)) / q)
                 for q, a in zip(loss, factor, strict=True)]  # fmt: skip
        return flow.image(initial, factor**steps, travel, np.array(noise))

    def mean_energy(self, state: Gaussian, energy: Energy) -> float:
        """E_ρ[E] = E(m) + ½ tr(PC) [energy]."""
        precision, _ = _form(energy)
        state = _gaussian(state, energy)
        return float(energy(state.mean)) + 0.5 * float(np.sum(precision * state.covariance))

    def kl(self, state: Gaussian, energy: Energy) -> float:
        """KL(ρ‖ρ*) between two Gaussians [nats].

        Raises:
            ValueError: the quadratic form is not positive definite, so that there is no Gibbs measure.
        """
        precision, push = _form(energy)
        state = _gaussian(state, energy)
        smallest = float(np.linalg.eigvalsh(precision)[0])
        if smallest <= 0:
            raise ValueError(
                f"kl needs a Gibbs measure, but the energy's quadratic form has the eigenvalue {smallest:.3g} <= 0. "
                "Add a confining term; free_energy and dissipation are defined without one."
            )
        factor = np.linalg.cholesky(state.covariance)
        ratio = np.linalg.eigvalsh(factor.T @ precision @ factor / self.temperature)
        gap = state.mean - np.linalg.solve(precision, push)
        return 0.5 * float(np.sum(ratio - 1 - np.log(ratio)) + gap @ precision @ gap / self.temperature)

    def dissipation(self, state: Gaussian, energy: Energy) -> float:
        """-dKL/dt = ε I(ρ‖ρ*) [nats/time]: ε tr(S C S) + |Pm - b|²/ε with S = P/ε - C⁻¹."""
        precision, push = _form(energy)
        state = _gaussian(state, energy)
        score = precision / self.temperature - np.linalg.inv(state.covariance)
        drift = precision @ state.mean - push
        return self.temperature * float(np.sum((score @ state.covariance) * score)) + drift @ drift / self.temperature

    def free_energy(self, state: Gaussian, energy: Energy) -> float:
        """F(ρ) = E_ρ[E] - ε·(entropy of ρ) [energy]."""
        state = _gaussian(state, energy)
        _, log_volume = np.linalg.slogdet(2 * math.pi * math.e * state.covariance)
        return self.mean_energy(state, energy) - self.temperature * 0.5 * float(log_volume)


class _Flow:
    """The linear equations of one quadratic energy, in the eigenbasis of P."""

    def __init__(self, energy: Energy, temperature: float):
        precision, self._push = _form(energy)
        self.rates, self._basis = np.linalg.eigh(precision)
        self._temperature = temperature

    def exact(self, state: Gaussian, time: float, factor: float) -> Gaussian:
        """The law after `time` at the temperature `factor`·ε."""
        decay = np.exp(-self.rates * time)
        flat = self.rates == 0
        safe = np.where(flat, 1.0, self.rates)
        travel = np.where(flat, time, -np.expm1(-safe * time) / safe)
        spread = np.where(flat, 2 * time, -np.expm1(-2 * safe * time) / safe)
        return self.image(state, decay, travel, factor * self._temperature * spread)

    def image(self, state: Gaussian, decay: np.ndarray, travel: np.ndarray, noise: np.ndarray) -> Gaussian:
        """Modes scaled by decay, pushed by travel·b and with the variance noise added."""
        q = self._basis
        mean = q @ (decay * (q.T @ state.mean) + travel * (q.T @ self._push))
        covariance = decay[:, None] * (q.T @ state.covariance @ q) * decay + np.diag(noise)
        covariance = q @ covariance @ q.T
        return Gaussian(mean, (covariance + covariance.T) / 2)


class GaussianRun(Run):
    """A Gaussian's moments under way. Made by `GaussianPlant.start`."""

    def __init__(self, flow: _Flow, state: Gaussian, plant: GaussianPlant, step: float, schedule: Callable | None):
        self.step, self.done = plant.step or float(step), 0
        self._flow, self._state, self._schedule = flow, state, schedule
        self._pieces = 1 if plant.step is not None else PIECES
        self._failure: Failure | None = None

    def snapshot(self) -> Gaussian:
        return self._state

    def advance(self, counts: Sequence[int]) -> list[Gaussian]:
        snapshots = []
        for count in counts:
            if not self._take(int(count)):
                break
            snapshots.append(self._state)
        return snapshots

    def _take(self, count: int) -> bool:
        state = self._state
        for factor, span in constant_pieces(self._schedule, self.done * self.step, self.step, count, self._pieces):
            try:
                with np.errstate(over="ignore", invalid="ignore"):
                    state = self._flow.exact(state, span, factor)
            except ValueError as error:  # moments beyond float64: an energy that does not confine
                self._failure = Failure(step=self.done + count, particles=(), reason=str(error))
                return False
        self._state, self.done = state, self.done + count
        return True

    def failure(self) -> Failure | None:
        return self._failure


def _form(energy: Energy) -> tuple[np.ndarray, np.ndarray]:
    form = quadratic_form(energy)
    if form is None:
        raise ValueError(
            f"GaussianPlant needs a quadratic energy (Quadratic, or sums and multiples of them); got "
            f"{type(energy).__name__}. Use FokkerPlanckGrid in 1 to 3 dimensions, or Langevin."
        )
    return form


def _gaussian(state: Any, energy: Energy) -> Gaussian:
    if not isinstance(state, Gaussian):
        raise TypeError(
            f"GaussianPlant moves a Gaussian(mean, covariance); got {type(state).__name__}. "
            "Particles belong to Langevin, masses to FokkerPlanckGrid."
        )
    if state.dim != energy.dim:
        raise ValueError(f"the Gaussian is {state.dim}-dimensional but the energy is {energy.dim}-dimensional.")
    return state
