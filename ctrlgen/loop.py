"""The closed loop: a plant, a controller block, and the density that they move.

`simulate` knows nothing of how a plant represents its density. It decides when to record, when to ask the
stopping rule, how long a compiled call may take, and how a run ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from ctrlgen.checks import positive
from ctrlgen.energies.base import Energy
from ctrlgen.energies.feedback import DensityFeedback
from ctrlgen.energies.trained import TrainedEnergy
from ctrlgen.feedback import check_feedback, warn_if_locked
from ctrlgen.plants.base import Plant, Run
from ctrlgen.plants.commanded import controller as extra_controller
from ctrlgen.plants.commanded import steered
from ctrlgen.plants.driven import Driven, is_system
from ctrlgen.plants.guarded import guard, recorded
from ctrlgen.plants.particles import Langevin
from ctrlgen.response import DivergenceError, Response, Status
from ctrlgen.safety.filter import SafetyFilter
from ctrlgen.safety.report import report
from ctrlgen.safety.restricted import Restricted

if TYPE_CHECKING:
    from ctrlgen.certify.verdict import Verdict

CALL_SECONDS = 0.2  # a compiled call aims at this: short enough for the progress bar and for Ctrl-C


@dataclass(frozen=True)
class Moment:
    """What a stopping rule may look at: the closed loop at one instant."""

    time: float
    step: int
    state: Any
    factor: float  # of the temperature schedule; 1 when static
    plant: Plant
    energy: Energy


@dataclass(frozen=True)
class Start:
    """What a run begins from, as a stopping rule sees it before any work is done.

    Args:
        plant, energy: of the closed loop.
        initial: what `simulate` was given: particles, masses, a distribution.
        steps: how many the run may take.
        step: time per step.
        schedule: t -> factor on the temperature; None when static.
        particles: how many there are; None where that is not known.
    """

    plant: Plant
    energy: Energy
    initial: Any
    steps: int
    step: float
    schedule: Callable | None = None
    particles: int | None = None

    @classmethod
    def of(cls, response: Response, rule: Any = None) -> Start:
        """What a finished run began from, with the steps that it took, for a rule that is to judge it.

        Raises:
            ValueError: the run had a safety filter, of which the rule knows nothing.
        """
        refuse_filtered(rule, response.filter)
        refuse_driven(rule, response.plant, response.extra)
        own = getattr(response.plant, "step", None)
        step = float(own or (response.time[-1] - response.time[0]) / max(response.steps, 1))
        return cls(
            plant=response.plant, energy=response.energy_block, initial=response.initial, steps=response.steps,
            step=step, schedule=response.schedule,
            particles=len(response.final) if response.plant.kind == "particles" else None,
        )  # fmt: skip


def refuse_filtered(rule: Any, safety: Any) -> None:
    """Raise ValueError for a rule (none is fine) that does not know the law of a filtered step."""
    if safety is not None and rule is not None and not getattr(rule, "filtered", False):
        raise ValueError(
            f"{type(rule).__name__} rests on the law of unfiltered steps, or on identities that walls break. With a "
            "safety filter use stopping.FreeEnergyPlateau, or no rule."
        )


def refuse_driven(rule: Any, plant: Plant, extra: Any) -> None:
    """Raise ValueError for a rule (none is fine) where a python-control system has a part in the loop."""
    if rule is not None and (extra is not None or isinstance(plant, Driven)):
        raise ValueError(
            f"{type(rule).__name__} judges loops of -∇E alone; a python-control system in the loop, as plant or as "
            "extra controller, need not keep the Gibbs measure. Pass stop=None."
        )


class Monitor(Protocol):
    """A stopping rule at work on one run.

    It is asked at every interval of its rule and at the last step; or, where it has an attribute `due` that is not
    None, at the steps listed there, which is looked up anew after every answer.
    """

    def check(self, now: Moment) -> str | None:
        """Why to stop now, or None to go on."""
        ...

    def unmet(self) -> str:
        """What to say of the rule when the run ended without it."""
        ...

    def verdict(self) -> Verdict:
        """What is known of KL at the step where the run ended; UNDECIDED when the rule was not met."""
        ...


class StoppingRule(Protocol):
    """What `simulate(stop=...)` takes; the objects are in `ctrlgen.stopping`."""

    @property
    def interval(self) -> float | None:
        """Time between checks; None for a hundredth of the duration."""
        ...

    # a rule that may judge runs under a safety filter has `filtered = True`

    def monitor(self, start: Start) -> Monitor:
        """A fresh monitor, for one run.

        Raises:
            ValueError: the rule cannot judge this loop; it says what is missing.
        """
        ...


@dataclass(frozen=True)
class ClosedLoop:
    """A plant under a controller block u = -∇E.

    Args:
        plant: how the density moves: Langevin, KineticLangevin, GradientFlow, FokkerPlanckGrid or GaussianPlant; or a
            python-control system, which is `interop.from_control(system)`.
        controller: the energy; or a density feedback (`interop.density_feedback`), which keeps its Gibbs measure.
        safety: a `SafetyFilter`, which keeps particles where its barriers are ≥ 0; or None.
        schedule: factor on the plant's temperature over time, t -> factor; "static" (or None) is 1.
        extra: a python-control system that is driven by what the energy sees and commands beside it, u = -∇E(x) + g:
            d inputs, d outputs. Where it has states, every particle carries its own, from zero. `energy` stays E,
            whose Gibbs measure such a loop need not keep.

    Raises:
        TypeError: plant, controller, safety or extra is something else.
        ValueError: the dimensions disagree, an argument is unknown, or the filter's mode does not fit the plant.
    """

    plant: Plant
    controller: Energy
    safety: SafetyFilter | None = None
    schedule: Callable | Literal["static"] | None = None
    extra: Any = None

    def __post_init__(self):
        if not isinstance(self.plant, Plant) and is_system(self.plant):
            object.__setattr__(self, "plant", Driven(self.plant))
        if not isinstance(self.plant, Plant):
            raise TypeError(f"plant must be a ctrlgen plant; got {type(self.plant).__name__}.")
        if not isinstance(self.controller, Energy):
            raise TypeError(
                f"controller must be an Energy; got {type(self.controller).__name__}. "
                + (
                    "Pass the system as extra= beside an energy."
                    if is_system(self.controller)
                    else "Wrap a function with cg.CallableEnergy(function, dim)."
                )
            )
        if self.safety is not None:
            if not isinstance(self.safety, SafetyFilter):
                raise TypeError(
                    f"safety must be a SafetyFilter or None; got {type(self.safety).__name__}. "
                    "Wrap barriers: cg.SafetyFilter(barriers, gain)."
                )
            self.safety.check_dim(self.controller.dim, "energy")
        if self.schedule is not None and self.schedule != "static" and not callable(self.schedule):
            raise ValueError(f"schedule must be 'static' or a function of time; got {self.schedule!r}.")
        fixed = getattr(self.plant, "dim", None)
        if fixed is not None and fixed != self.controller.dim:
            raise ValueError(
                f"plant and controller must have one dimension; the plant has {fixed}, "
                f"the energy {self.controller.dim}."
            )
        if self.extra is not None and self.safety is not None:
            raise ValueError(
                "safety must be None with extra: what a filter guarantees is of the command -∇E. Saturate the extra "
                "controller, or leave it out."
            )
        if isinstance(self.controller, DensityFeedback):
            check_feedback(self.controller, self.plant, self.safety, self.extra)
        self._whole  # noqa: B018  (raises here where the parts do not fit)

    @cached_property
    def _further(self) -> Any:
        """The equations of the extra controller, as it was when the loop was made; None without one."""
        return None if self.extra is None else extra_controller(self.extra, self.controller.dim)

    @cached_property
    def _whole(self) -> Plant:
        """The plant with its filter or its extra controller."""
        if self._further is not None:
            return steered(self.plant, self._further)
        if self.safety is not None and isinstance(self.plant, Driven):
            raise ValueError(
                "safety must be None for a python-control plant, whose inputs do not move its state directly. Use "
                "Langevin or GradientFlow."
            )
        return guard(self.plant, self.safety)

    @property
    def energy(self) -> Energy:
        """The energy whose Gibbs measure the density is measured against: the controller's, with the filter's part.

        That is infinite outside the safe set, or has the log barrier. Only mode "cbf" does not keep that measure.

        Raises:
            ValueError: μ of the barrier is a function of time.
        """
        return self._static if self.safety is None else self.safety.energy(self._static)

    @property
    def _static(self) -> Energy:
        """The controller's energy without what depends on the density."""
        return self.controller.energy if isinstance(self.controller, DensityFeedback) else self.controller

    @classmethod
    def of(cls, energy: TrainedEnergy, safety: SafetyFilter | None = None) -> ClosedLoop:
        """A trained energy's own closed loop: its temperature, step, scheme, metric, schedule; filtered, if asked."""
        if not isinstance(energy, TrainedEnergy):
            raise TypeError(
                f"energy must be a trained energy, which knows its own loop; got {type(energy).__name__}. "
                "Build ClosedLoop(Langevin(temperature, step), energy) instead."
            )
        plant = Langevin(energy.temperature, energy.step, scheme=energy.scheme, metric=energy.metric)
        return cls(plant, energy, safety=safety, schedule=energy.schedule)

    def simulate(
        self,
        initial: Any,
        duration: float,
        key: Any = 0,
        record: int = 100,
        stop: StoppingRule | None = None,
        progress: bool = False,
        *,
        particles: int = 10_000,
        dtype: Any = np.float32,
        throw: bool = False,
    ) -> Response:
        """Run the closed loop from an initial density.

        The same key gives the same particles whatever `record`, `progress`, or the way the run is cut into calls.
        Ctrl-C returns what there is. Memory grows with `record`, not with the number of steps.

        Args:
            initial: particles (n, d); a distribution with .sample(key, n); for a grid, cell masses or a
                distribution; for a GaussianPlant, a Gaussian.
            duration: how long [time]; rounded up to whole steps.
            key: seed of the noise, an integer or a JAX key.
            record: how many densities to keep, start and end included, at least 2.
            stop: a stopping rule from `ctrlgen.stopping`; what it knows of KL at the end is `response.certificate`.
            progress: show a progress bar.
            particles: how many to draw when `initial` is a distribution.
            dtype: float32 or float64, of particles.
            throw: raise DivergenceError instead of returning a diverged response.

        Raises:
            ValueError: an argument does not fit, or the rule cannot judge this loop, before any work is done.
            DivergenceError: the run left the finite numbers, and throw=True.
        """
        duration = positive("duration", duration)
        if not isinstance(record, (int, np.integer)) or record < 2:
            raise ValueError(f"record must be an integer of at least 2 (the start and the end); got {record!r}.")
        if stop is not None and not callable(getattr(stop, "monitor", None)):
            raise TypeError(f"stop must be a rule from ctrlgen.stopping, or None; got {type(stop).__name__}.")
        schedule = None if self.schedule == "static" else self.schedule
        began = time.perf_counter()
        step = float(getattr(self.plant, "step", None) or duration / (record - 1))
        target = self._static
        if self.safety is not None:
            for time_seen in np.linspace(0, duration, 11):
                self.safety.mu_at(float(time_seen))
            target = self.safety.energy(self._static, duration)
        refuse_filtered(stop, self.safety)
        refuse_driven(stop, self.plant, self.extra)
        if self.controller.couples and stop is not None and not getattr(stop, "filtered", False):
            raise ValueError(
                f"{type(stop).__name__} rests on the law of independent particles under a static energy. With density "
                "feedback use stopping.FreeEnergyPlateau, or no rule."
            )
        start = Start(
            plant=self.plant, energy=target, initial=initial, step=step, schedule=schedule,
            steps=max(1, int(np.ceil(duration / step - 1e-6))),
            particles=particles if hasattr(initial, "sample") else next(iter(np.shape(initial)), None),
        )  # fmt: skip
        monitor = None if stop is None else stop.monitor(start)
        on_grid = self.plant.kind == "grid"
        if on_grid and isinstance(initial, Restricted):
            initial = initial.on_grid(self.plant)
        run = self._whole.start(
            target if on_grid and not self.controller.couples else self.controller,
            initial,
            step=step,
            key=key,
            particles=particles,
            schedule=schedule,
            dtype=dtype,
        )
        return _Simulation(start, run, record, stop, monitor, progress, self).run(began, throw)


class _Simulation:
    """One call of `simulate` under way."""

    def __init__(
        self, start: Start, run: Run, record: int, stop: Any, monitor: Monitor | None, progress: bool,
        loop: ClosedLoop,
    ):  # fmt: skip
        self.loop, self.safety = loop, loop.safety
        self.begin, self.state, self.steps, self.progress = start, run, start.steps, progress
        self.records = {int(k) for k in np.round(np.linspace(0, self.steps, min(record, self.steps + 1)))}
        self.rule, self.monitor, self.every = stop, monitor, self.steps
        if stop is not None:
            interval = stop.interval or self.steps * start.step / 100
            self.every = max(1, round(interval / start.step))
        self.kept: list[tuple[int, Any]] = [(0, run.snapshot())]

    def run(self, began: float, throw: bool) -> Response:
        status, message, stopped_at = "completed", f"ran its {self.steps} steps", None
        try:
            reason = self._advance()
        except KeyboardInterrupt:
            status = "interrupted"
            message = (
                f"interrupted at step {self.state.done} of {self.steps}; the response holds everything up to there"
            )
        else:
            failure = self.state.failure()
            if failure is not None:
                status, message = "diverged", self._explain(failure)
            elif reason is not None:
                status, stopped_at = "stopped", self.state.done * self.state.step
                message = f"{reason} (step {self.state.done}, t = {stopped_at:g})"
        certificate = None
        if self.monitor is not None:
            certificate = self.monitor.verdict()
            if status == "stopped":
                message += f"; known of the law there: {certificate.claim} [{certificate.status.name}]"
            else:
                message += f"; {self.monitor.unmet()}"
                certificate = replace(certificate, reason=message)
        response = self._response(status, message, stopped_at, began, certificate)
        if status == "diverged" and throw:
            raise DivergenceError(message, response)
        return response

    def _advance(self) -> str | None:
        """Go from event to event until the end, a failure, or a reason to stop, which is returned."""
        events = sorted(self.records - {0})
        limit, first = 32, True  # steps a call may take; adapted to the time it takes
        with self._bar() as bar:
            while self.state.done < self.steps:
                start = self.state.done
                check = self._next_check()
                ends = sorted({e for e in [*events, check] if start < e <= start + limit}) or [start + limit]
                ends = [e for e in ends if e <= check and e <= self.steps] or [min(start + limit, self.steps)]
                clock = time.perf_counter()
                snapshots = self.state.advance(np.diff([start, *ends]).tolist())
                seconds = time.perf_counter() - clock
                for end, snapshot in zip(ends, snapshots, strict=False):
                    if end in self.records:
                        self.kept.append((end, snapshot))
                bar.update(self.state.done - start)
                if self.state.failure() is not None:
                    return None
                if ends[-1] == check and self.monitor is not None:
                    reason = self.monitor.check(self._moment(ends[-1], snapshots[-1]))
                    if reason is not None:
                        return reason
                if not first and ends[-1] - start >= limit // 2:
                    limit = max(1, min(int(limit * np.clip(CALL_SECONDS / max(seconds, 1e-9), 0.25, 8)), 2**24))
                first = False
        return None

    def _next_check(self) -> float:
        """The next step at which the rule is asked; ∞ when it is not."""
        if self.monitor is None:
            return np.inf
        done, due = self.state.done, getattr(self.monitor, "due", None)
        if due is not None:
            return min((k for k in due if k > done), default=np.inf)
        return min((done // self.every + 1) * self.every, self.steps)

    def _moment(self, step: int, snapshot: Any) -> Moment:
        now, schedule = step * self.state.step, self.begin.schedule
        factor = 1.0 if schedule is None else float(np.max(np.asarray(schedule(now))))
        return Moment(now, step, snapshot, factor, self.begin.plant, self.begin.energy)

    def _bar(self) -> Any:
        from tqdm import tqdm

        return tqdm(total=self.steps, unit="step", desc="closed loop", disable=not self.progress, leave=False)

    def _explain(self, failure: Any) -> str:
        some = ", ".join(map(str, failure.particles[:5])) + (", ..." if len(failure.particles) > 5 else "")
        who = f"{len(failure.particles)} of {len(self.kept[0][1])} particles ({some}): " if failure.particles else ""
        return (
            f"{who}{failure.reason} at step {failure.step} (t = {failure.step * self.state.step:g}). "
            f"The response ends at step {self.state.done}. A step below {self.state.step:g} is the usual remedy."
        )

    def _response(
        self, status: Status, message: str, stopped_at: float | None, began: float, certificate: Verdict | None
    ) -> Response:
        final = self.state.snapshot()
        if self.kept[-1][0] < self.state.done:
            self.kept.append((self.state.done, final))
        marks, snapshots = zip(*self.kept, strict=True)
        if isinstance(self.loop.controller, DensityFeedback):
            warn_if_locked(self.loop.controller, np.array(marks) * self.state.step, snapshots)
        counted = recorded(self.state)
        return Response(
            plant=self.begin.plant,
            energy_block=self.begin.energy,
            time=np.array(marks) * self.state.step,
            snapshots=snapshots,
            final=final,
            status=status,
            message=message,
            stopped_at=stopped_at,
            steps=self.state.done,
            seconds=time.perf_counter() - began,
            schedule=self.begin.schedule,
            acceptance=getattr(self.state, "acceptance", None),
            certificate=certificate,
            rule=None if self.rule is None else type(self.rule).__name__,
            initial=self.begin.initial,
            controller=self.loop.controller,
            filter=self.safety,
            extra=self.loop.extra,
            safety=None
            if counted is None or self.safety is None
            else report(counted, self.safety, self.state.done, self.state.step, snapshots[1:]),
        )


def generate(
    energy: TrainedEnergy,
    n: int,
    key: Any = 0,
    *,
    duration: float | None = None,
    progress: bool = False,
    safety: SafetyFilter | None = None,
) -> np.ndarray:
    """Draw from a trained energy: its own closed loop from its source, (n, d) in the data's units.

    Args:
        energy: from `load_energy` or `train`.
        n: how many.
        key: an integer seed or a JAX key.
        duration: how long [time]; the energy's own when omitted. Longer must not be worse.
        progress: show a progress bar.
        safety: a filter, inside of which the loop starts and stays.

    Raises:
        TypeError: the energy does not know its own loop.
        ValueError: the filter does not fit the loop.
        DivergenceError: particles left the finite numbers.
    """
    loop = ClosedLoop.of(energy, safety)
    source = energy.source if safety is None else safety.restrict(energy.source)
    span = energy.duration if duration is None else duration
    response = loop.simulate(source, span, key=key, record=2, progress=progress, particles=n, throw=True)
    if response.status == "interrupted":
        raise KeyboardInterrupt
    return response.final
