"""What a simulation returns: the density over time, how the run ended, and its Lyapunov curve.

A response keeps its plant and energy; the measures are derived when they are asked for, and kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ctrlgen import measure
from ctrlgen.energies.base import Energy
from ctrlgen.energies.feedback import DensityFeedback
from ctrlgen.estimate import Estimate
from ctrlgen.plants.base import Plant

if TYPE_CHECKING:
    import control
    import xarray

    from ctrlgen.certify.verdict import Verdict
    from ctrlgen.safety.filter import SafetyFilter
    from ctrlgen.safety.report import SafetyReport

Status = Literal["completed", "stopped", "diverged", "interrupted"]


class DivergenceError(FloatingPointError):
    """A simulation left the finite numbers; `.response` holds everything up to there."""

    def __init__(self, message: str, response: Response):
        super().__init__(message)
        self.response = response


@dataclass(frozen=True)
class DistributionShift:
    """How far a filtered density is from the Gibbs measure restricted to the safe set.

    Attributes:
        kl: KL(ρ‖ρ*|S) [nats], with its standard error.
        w2: W₂ between as many particles and exact samples [length].
        floor: W₂ between two fresh exact samples of that size; w2 is never below it by more than chance.
        samples: how the exact samples were drawn.
    """

    kl: Estimate
    w2: Estimate
    floor: Estimate
    samples: str

    def plot(self, ax: Any = None) -> Any:
        """Draw W₂ to exact samples beside that of two fresh samples: see `ctrlgen.plot.shift`."""
        from ctrlgen import plot

        return plot.shift(self, ax)

    def __repr__(self) -> str:
        return (
            f"DistributionShift: KL {self.kl} nats, W₂ {self.w2} (two fresh samples: {self.floor}); "
            f"exact samples by {self.samples}"
        )


@dataclass(frozen=True, eq=False)
class Response:
    """The closed loop's response from an initial density.

    Attributes:
        time: (k,) recorded times, from 0 [time].
        final: the last density of the run: particles (n, d), cell masses, or a Gaussian.
        status: "completed", "stopped" (by a rule), "diverged" or "interrupted".
        message: the same in words: which rule stopped it and why, or what failed, where, and what to try.
        stopped_at: the time at which a stopping rule ended the run; None when none did.
        steps: steps taken.
        seconds: wall time, compilation included.
        acceptance: fraction of proposals accepted, for schemes that propose; else None.
        certificate: what the stopping rule knows of KL at the last step, a verdict: PROVED or SAMPLED where it was
            met, UNDECIDED with the reason where it was not; None when there was no rule.
        rule: the name of the stopping rule, or None.
        initial: what the run was started from, as `simulate` was given it.
        controller: the energy that the loop was given; `energy_block` has the filter's part as well.
        filter: the safety filter that it ran under, or None.
        safety: what was counted of its safety, a `SafetyReport`; None without a filter, and on a grid, whose cells
            outside are removed.
        extra: the python-control system that commanded beside the energy, or None.
    """

    plant: Plant
    energy_block: Energy
    time: np.ndarray
    snapshots: tuple[Any, ...] = field(repr=False)
    final: Any = field(repr=False)
    status: Status
    message: str
    stopped_at: float | None
    steps: int
    seconds: float
    schedule: Callable | None = None
    acceptance: float | None = None
    certificate: Verdict | None = field(default=None, repr=False)
    rule: str | None = None
    initial: Any = field(default=None, repr=False)
    controller: Energy | None = field(default=None, repr=False)
    filter: SafetyFilter | None = field(default=None, repr=False)
    safety: SafetyReport | None = field(default=None, repr=False)
    extra: Any = field(default=None, repr=False)

    @property
    def states(self) -> np.ndarray:
        """Particles over time, (k, n, d)."""
        self._need("particles", "states")
        return self._stacked

    @property
    def density(self) -> np.ndarray:
        """Cell masses over time, (k, *shape)."""
        self._need("grid", "density")
        return self._stacked

    @property
    def mean(self) -> np.ndarray:
        """Mean of the density over time, (k, d)."""
        return np.stack([m for m, _ in self._moments])

    @property
    def covariance(self) -> np.ndarray:
        """Covariance of the density over time, (k, d, d)."""
        return np.stack([c for _, c in self._moments])

    @cached_property
    def log_partition(self) -> Estimate | None:
        """log Z of the Gibbs measure: a closed form, or quadrature in up to three dimensions; None elsewhere.

        There `measure.log_partition` anneals, which takes seconds, and `measure.kl` accepts what it finds.
        """
        temperature = getattr(self.plant, "reference_temperature", self.plant.temperature)
        known = self.energy_block.log_partition(temperature)
        if known is not None:
            return Estimate(known, 0.0)
        return measure.log_partition(self.energy_block, temperature) if self.energy_block.dim <= 3 else None

    @cached_property
    def inputs(self) -> np.ndarray | None:
        """u over time, (k, m) [energy / unit of φ]: what a density feedback commands at the recorded densities.

        None where the controller is a static energy.
        """
        if not isinstance(self.controller, DensityFeedback):
            return None
        return np.stack([self.controller.command(rho) for rho in self.snapshots])

    @property
    def energy(self) -> np.ndarray:
        """E_ρ[E] over time, (k,) [energy]."""
        return self._values("mean_energy")

    @property
    def kl(self) -> np.ndarray:
        """V = KL(ρ‖ρ*) over time, (k,) [nats]; an estimate for particles, with `kl_error`.

        Raises:
            ValueError: particles in more than three dimensions whose log Z has no closed form.
        """
        return self._values("kl")

    @property
    def free_energy(self) -> np.ndarray:
        """F = E_ρ[E] + ε ∫ρ log ρ over time, (k,) [energy]."""
        return self._values("free_energy")

    @property
    def dissipation(self) -> np.ndarray:
        """ε I(ρ‖ρ*) = -dV/dt over time, (k,) [nats / time]; for particles a lower bound, with an error.

        Raises:
            ValueError: particles under a safety filter: the estimate integrates by parts, and walls leave a term.
        """
        if self.filter is not None and self.plant.kind == "particles":
            raise ValueError("dissipation of particles has a term at walls that is not estimated. Use a grid.")
        return self._values("dissipation")

    @cached_property
    def effort(self) -> np.ndarray:
        """∫ |u|² dt along every particle's path, (n,) [length² / time]: what the controller block spent on it.

        u = -(M⁻¹ + J)∇E is what it commands, without the noise, and |u|² = uᵀMu in the loop's metric M. Without noise
        and skew part it is exactly E(X_0) - E(X_T); with noise, in the mean that and ε∫ tr(M⁻¹∇²E) dt. By
        `measure.path_energy` over the records: record every step (`record=` the number of steps + 1) for all of it.

        Raises:
            AttributeError: the density is not particles.
            ValueError: what commands is more than -∇E of each particle in a constant metric.
        """
        self._need("particles", "effort")
        plant: Any = self.plant
        mobility, skew = getattr(plant, "mobility", None), getattr(plant, "skew", None)
        alone = self.filter is None and self.extra is None and not isinstance(self.controller, DensityFeedback)
        if not (alone and hasattr(plant, "command")) or callable(mobility):
            raise ValueError(
                "effort is defined for Langevin with a constant metric and GradientFlow under an energy alone: not for "
                "other plants, safety filters (see response.safety), density feedback or extra controllers. Pass the "
                "velocities of your loop to measure.path_energy."
            )
        slopes = [np.asarray(self.energy_block.gradient(np.asarray(x, np.float64))) for x in self.snapshots]
        mobility = np.ones(self.energy_block.dim) if mobility is None else mobility
        matrix = (np.diag(mobility) if mobility.ndim == 1 else mobility) + (0.0 if skew is None else skew)
        metric = 1 / mobility if mobility.ndim == 1 else np.linalg.inv(mobility)
        return measure.path_energy(self.time, -np.stack(slopes) @ matrix.T, metric)

    @property
    def energy_error(self) -> np.ndarray:
        """Standard error of `energy`, (k,)."""
        return self._errors("mean_energy")

    @property
    def kl_error(self) -> np.ndarray:
        """Standard error of `kl`, (k,)."""
        return self._errors("kl")

    @property
    def free_energy_error(self) -> np.ndarray:
        """Standard error of `free_energy`, (k,)."""
        return self._errors("free_energy")

    @property
    def dissipation_error(self) -> np.ndarray:
        """Standard error of `dissipation`, (k,)."""
        return self._errors("dissipation")

    def at(self, index: int, name: Literal["mean_energy", "kl", "free_energy", "dissipation"]) -> Estimate:
        """One measure of one recorded density, computed once."""
        k = range(len(self.time))[index]
        if (name, k) not in self._cache:
            arguments = {}
            if name == "kl" and self.plant.kind == "particles":
                if self.log_partition is None:
                    raise ValueError(
                        "kl needs log Z, which quadrature reaches in up to 3 dimensions; this energy has "
                        f"{self.energy_block.dim}. Use free_energy, which differs from ε·kl by a constant, or "
                        "measure.kl(states, energy, temperature), which finds log Z by annealing."
                    )
                arguments["log_partition"] = self.log_partition
            value = getattr(self.plant, name)(self.snapshots[k], self.energy_block, **arguments)
            self._cache[name, k] = value if isinstance(value, Estimate) else Estimate(float(value), 0.0)
        return self._cache[name, k]

    def shift(self, n: int = 2000, key: int = 0) -> DistributionShift:
        """How far the last density is from the Gibbs measure of the controller restricted to the safe set.

        Args:
            n: particles compared in W₂; KL uses all, and as many exact samples.
            key: seed of the exact samples.

        Returns:
            KL [nats], from nearest neighbours of two samples; W₂ [length], and what W₂ is between two fresh samples. On
            a grid KL is exact, and W₂ is of samples drawn from the masses.

        Raises:
            ValueError: the run had no safety filter, or the restricted measure cannot be sampled.
        """
        from ctrlgen.shift import distribution_shift

        return distribution_shift(self, n, key)

    def plot(self, axes: Any = None) -> Any:
        """Draw the response: its Lyapunov curve, energies and, in two dimensions, the transport."""
        from ctrlgen import plot

        return plot.response(self, axes)

    def animate(self, path: Any = None, **options: Any) -> Any:
        """The transport as a moving picture, beside its Lyapunov curve: a GIF, or a page that holds all it shows.

        Args:
            path: a .gif or .html to write; nothing is written when omitted.
            options: `bounds`, `frames`, `fps`, `plane`, `kl`, `most` and `progress`, as in `ctrlgen.plot.animate`.

        Returns:
            A `Movie`, which shows itself in a notebook.

        Raises:
            ValueError: path ends in something else, or an option is out of its range.
        """
        from ctrlgen import plot

        return plot.animate(self, path, **options)

    def to_xarray(self) -> xarray.Dataset:
        """The recorded density and its mean energy as a labelled data set; the run's outcome in the attributes."""
        import xarray

        data: dict[str, Any]
        if self.plant.kind == "particles":
            data = {"state": (("time", "particle", "coordinate"), self.states)}
        elif self.plant.kind == "grid":
            axes = tuple(f"axis_{i}" for i in range(self.density.ndim - 1))
            data = {"density": (("time", *axes), self.density)}
        else:
            data = {"covariance": (("time", "coordinate", "coordinate_2"), self.covariance)}
        data["mean"] = (("time", "coordinate"), self.mean)
        data["energy"] = (("time",), self.energy)
        notes = {"status": self.status, "message": self.message, "steps": self.steps}
        return xarray.Dataset(data, coords={"time": self.time}, attrs=notes)

    def to_control(self) -> control.TimeResponseData:
        """The moments as python-control's TimeResponseData: outputs are the means, states the particles if few.

        Particles (n, d) with n·d ≤ 1000 become states x[particle, coordinate], the commands of a density feedback
        inputs u[j].
        """
        import control

        outputs, states = self.mean.T, None
        if self.plant.kind == "particles" and self._stacked[0].size <= 1000:
            states = self._stacked.reshape(len(self.time), -1).T
        d = outputs.shape[0]
        labels = [f"x[{i},{j}]" for i in range(len(states) // d) for j in range(d)] if states is not None else None
        u = None if self.inputs is None else self.inputs.T
        return control.TimeResponseData(
            self.time, outputs, states=states, inputs=u, issiso=False, output_labels=[f"mean[{j}]" for j in range(d)],
            state_labels=labels, input_labels=None if u is None else [f"u[{j}]" for j in range(len(u))],
            sysname="closed loop", title="ctrlgen closed loop", plot_inputs=u is not None,
        )  # fmt: skip

    def __str__(self) -> str:
        size = f"{len(self.snapshots[0])} particles" if self.plant.kind == "particles" else self.plant.kind
        return (
            f"Response of {type(self.plant).__name__} ({size}), t = 0 to {self.time[-1]:g} in {self.steps} steps, "
            f"{len(self.time)} records, {self.seconds:.2f} s\n{self.status}: {self.message}"
        )

    @cached_property
    def _cache(self) -> dict:
        return {}

    @cached_property
    def _stacked(self) -> np.ndarray:
        return np.stack(self.snapshots)

    @cached_property
    def _moments(self) -> list[tuple[np.ndarray, np.ndarray]]:
        if self.plant.kind == "particles":
            wide = (np.asarray(x, dtype=np.float64) for x in self.snapshots)
            return [(x.mean(axis=0), np.cov(x.T, ddof=min(1, len(x) - 1)).reshape(x.shape[1], -1)) for x in wide]
        if self.plant.kind == "grid":
            return [getattr(self.plant, "moments")(rho) for rho in self.snapshots]  # noqa: B009
        return [(g.mean, g.covariance) for g in self.snapshots]

    def _need(self, kind: str, name: str) -> None:
        if self.plant.kind != kind:
            raise AttributeError(
                f"{name} is for {kind} plants; this response is of a {self.plant.kind} plant. "
                "Use .final, .mean and .covariance, which every response has."
            )

    def _values(self, name: Any) -> np.ndarray:
        return np.array([float(self.at(k, name).value) for k in range(len(self.time))])

    def _errors(self, name: Any) -> np.ndarray:
        return np.array([float(self.at(k, name).error) for k in range(len(self.time))])
