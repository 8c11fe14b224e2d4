"""What every plant offers a closed loop: a run that advances a density, and the density's measures.

A density is represented by particles (n, d), by cell masses on a grid, or by a Gaussian's moments; the loop
does not look inside. The master dynamics is ∂ρ/∂t = ∇·(ρ∇E) + εΔρ in each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ctrlgen.energies.base import Energy
from ctrlgen.estimate import Estimate


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A run that cannot go on: the step that failed, the particles concerned (if any) and why."""

    step: int
    particles: tuple[int, ...]
    reason: str


class Run(ABC):
    """One density under way: its state now, advanced in whole steps. Made by `Plant.start`."""

    step: float  # time per step
    done: int = 0  # steps taken so far

    @abstractmethod
    def advance(self, counts: Sequence[int]) -> list[Any]:
        """Take counts[0] steps, snapshot, take counts[1] steps, snapshot, ... Return the snapshots.

        A snapshot is the public representation: (n, d) particles, grid masses, or a Gaussian.
        """

    @abstractmethod
    def snapshot(self) -> Any:
        """The density now, in its public representation."""

    def failure(self) -> Failure | None:
        """Whether the last `advance` left the finite numbers; the run then stands at its last finite step."""
        return None


class Plant(ABC):
    """How a density moves under a controller block; frozen, and shared by any number of runs.

    Measures are an Estimate where the density is sampled, and a plain float where they are exact.
    """

    kind: ClassVar[Literal["particles", "grid", "gaussian"]]
    temperature: float

    @abstractmethod
    def start(
        self,
        energy: Energy,
        initial: Any,
        *,
        step: float,
        key: Any,
        particles: int,
        schedule: Callable | None,
        dtype: Any,
    ) -> Run:
        """Check the initial density and make a run.

        Args:
            energy: the controller block.
            initial: what `ClosedLoop.simulate` was given.
            step: the time between records, for plants without a step of their own.
            key: seed of the noise, an int or a JAX key.
            particles: how many to draw when `initial` is a distribution.
            schedule: t -> factor on the temperature, or None for static.
            dtype: of the particles.

        Raises:
            ValueError: the initial density does not fit the plant or the energy.
        """

    @abstractmethod
    def mean_energy(self, state: Any, energy: Energy) -> Estimate | float:
        """E_ρ[E]."""

    @abstractmethod
    def kl(self, state: Any, energy: Energy) -> Estimate | float:
        """V(ρ) = KL(ρ‖ρ*) at this plant's temperature, in nats."""

    @abstractmethod
    def dissipation(self, state: Any, energy: Energy) -> Estimate | float:
        """-V̇ = ε I(ρ‖ρ*), in nats per unit time."""

    @abstractmethod
    def free_energy(self, state: Any, energy: Energy) -> Estimate | float:
        """F(ρ) = E_ρ[E] + ε ∫ρ log ρ."""
