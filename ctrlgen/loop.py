"""The closed loop: a plant, a controller block, and the density that they move.

`simulate` knows nothing of how a plant represents its density. It decides when to record, when to ask the
stopping rule, how long a compiled call may take, and how a run ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from ctrlgen.checks import positive
from ctrlgen.energies.base import Energy
from ctrlgen.energies.trained import TrainedEnergy
from ctrlgen.plants.base import Plant, Run
from ctrlgen.plants.particles import Langevin
from ctrlgen.response import DivergenceError, Response, Status

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


class Monitor(Protocol):
    """A stopping rule at work on one run."""

    def check(self, now: Moment) -> str | None:
        """Why to stop now, or None to go on."""
        ...

    def unmet(self) -> str:
        """What to say of the rule when the run ended without it."""
        ...


class StoppingRule(Protocol):
    """What `simulate(stop=...)` takes; the objects are in `ctrlgen.stopping`."""

    @property
    def interval(self) -> float | None:
        """Time between checks; None for a hundredth of the duration."""
        ...

    def monitor(self) -> Monitor:
        """A fresh monitor, for one run."""
        ...


@dataclass(frozen=True)
class ClosedLoop:
    """A plant under a controller block u = -∇E.

    Args:
        plant: how the density moves: Langevin, KineticLangevin, GradientFlow, FokkerPlanckGrid or GaussianPlant.
        controller: the energy.
        safety: a safety filter. None is available in this version.
        schedule: factor on the plant's temperature over time, t -> factor; "static" (or None) is 1.

    Raises:
        TypeError: plant or controller is something else.
        ValueError: the dimensions disagree, or an argument is unknown.
    """

    plant: Plant
    controller: Energy
    safety: None = None
    schedule: Callable | Literal["static"] | None = None

    def __post_init__(self):
        if not isinstance(self.plant, Plant):
            raise TypeError(f"plant must be a ctrlgen plant; got {type(self.plant).__name__}.")
        if not isinstance(self.controller, Energy):
            raise TypeError(
                f"controller must be an Energy; got {type(self.controller).__name__}. "
                "Wrap a function with cg.CallableEnergy(function, dim)."
            )
        if self.safety is not None:
            raise ValueError("safety must be None: this version has no safety filters.")
        if self.schedule is not None and self.schedule != "static" and not callable(self.schedule):
            raise ValueError(f"schedule must be 'static' or a function of time; got {self.schedule!r}.")
        fixed = getattr(self.plant, "dim", None)
        if fixed is not None and fixed != self.controller.dim:
            raise ValueError(
                f"plant and controller must have one dimension; the plant has {fixed}, "
                f"the energy {self.controller.dim}."
            )

    @classmethod
    def of(cls, energy: TrainedEnergy) -> ClosedLoop:
        """A trained energy's own closed loop: its temperature, step, scheme, metric and schedule."""
        if not isinstance(energy, TrainedEnergy):
            raise TypeError(
                f"energy must be a trained energy, which knows its own loop; got {type(energy).__name__}. "
                "Build ClosedLoop(Langevin(temperature, step), energy) instead."
            )
        plant = Langevin(energy.temperature, energy.step, scheme=energy.scheme, metric=energy.metric)
        return cls(plant, energy, schedule=energy.schedule)

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
            stop: a stopping rule from `ctrlgen.stopping`.
            progress: show a progress bar.
            particles: how many to draw when `initial` is a distribution.
            dtype: float32 or float64, of particles.
            throw: raise DivergenceError instead of returning a diverged response.

        Raises:
            ValueError: an argument does not fit, before any work is done.
            DivergenceError: the run left the finite numbers, and throw=True.
        """
        duration = positive("duration", duration)
        if not isinstance(record, (int, np.integer)) or record < 2:
            raise ValueError(f"record must be an integer of at least 2 (the start and the end); got {record!r}.")
        if stop is not None and not callable(getattr(stop, "monitor", None)):
            raise TypeError(f"stop must be a rule from ctrlgen.stopping, or None; got {type(stop).__name__}.")
        schedule = None if self.schedule == "static" else self.schedule
        began = time.perf_counter()
        own_step = getattr(self.plant, "step", None)
        run = self.plant.start(
            self.controller, initial, step=own_step or duration / (record - 1), key=key, particles=particles,
            schedule=schedule, dtype=dtype,
        )  # fmt: skip
        steps = max(1, int(np.ceil(duration / run.step - 1e-6)))
        return _Simulation(self, run, schedule, steps, record, stop, progress).run(began, throw)


class _Simulation:
    """One call of `simulate` under way."""

    def __init__(self, loop: ClosedLoop, run: Run, schedule: Any, steps: int, record: int, stop: Any, progress: bool):
        self.loop, self.state, self.schedule, self.steps, self.progress = loop, run, schedule, steps, progress
        self.records = {int(k) for k in np.round(np.linspace(0, steps, min(record, steps + 1)))}
        self.monitor = None if stop is None else stop.monitor()
        self.checks: set[int] = set()
        if stop is not None:
            interval = stop.interval or steps * run.step / 100
            self.checks = {*range(0, steps + 1, max(1, round(interval / run.step))), steps} - {0}
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
        if self.monitor is not None and status != "stopped":
            message += f"; {self.monitor.unmet()}"
        response = self._response(status, message, stopped_at, began)
        if status == "diverged" and throw:
            raise DivergenceError(message, response)
        return response

    def _advance(self) -> str | None:
        """Go from event to event until the end, a failure, or a reason to stop, which is returned."""
        events = sorted((self.records | self.checks) - {0})
        limit, first = 32, True  # steps a call may take; adapted to the time it takes
        with self._bar() as bar:
            while self.state.done < self.steps:
                start = self.state.done
                ends = [e for e in events if start < e <= start + limit] or [start + limit]
                ends = [min(e, self.steps) for e in ends]
                if any(e in self.checks for e in ends):
                    ends = ends[: next(i for i, e in enumerate(ends) if e in self.checks) + 1]
                clock = time.perf_counter()
                snapshots = self.state.advance(np.diff([start, *ends]).tolist())
                seconds = time.perf_counter() - clock
                for end, snapshot in zip(ends, snapshots, strict=False):
                    if end in self.records:
                        self.kept.append((end, snapshot))
                bar.update(self.state.done - start)
                if self.state.failure() is not None:
                    return None
                if ends[-1] in self.checks and self.monitor is not None:
                    reason = self.monitor.check(self._moment(ends[-1], snapshots[-1]))
                    if reason is not None:
                        return reason
                if not first and ends[-1] - start >= limit // 2:
                    limit = max(1, min(int(limit * np.clip(CALL_SECONDS / max(seconds, 1e-9), 0.25, 8)), 2**24))
                first = False
        return None

    def _moment(self, step: int, snapshot: Any) -> Moment:
        now = step * self.state.step
        factor = 1.0 if self.schedule is None else float(np.max(np.asarray(self.schedule(now))))
        return Moment(now, step, snapshot, factor, self.loop.plant, self.loop.controller)

    def _bar(self) -> Any:
        from tqdm import tqdm

        return tqdm(total=self.steps, unit="step", desc="closed loop", disable=not self.progress, leave=False)

    def _explain(self, failure: Any) -> str:
        total = len(self.kept[0][1])
        some = ", ".join(map(str, failure.particles[:5])) + (", ..." if len(failure.particles) > 5 else "")
        who = f"{len(failure.particles)} of {total} particles ({some}): " if failure.particles else ""
        return (
            f"{who}{failure.reason} at step {failure.step} (t = {failure.step * self.state.step:g}). "
            f"The response ends at step {self.state.done}. A step below {self.state.step:g} is the usual remedy."
        )

    def _response(self, status: Status, message: str, stopped_at: float | None, began: float) -> Response:
        final = self.state.snapshot()
        if self.kept[-1][0] < self.state.done:
            self.kept.append((self.state.done, final))
        marks, snapshots = zip(*self.kept, strict=True)
        return Response(
            plant=self.loop.plant,
            energy_block=self.loop.controller,
            time=np.array(marks) * self.state.step,
            snapshots=snapshots,
            final=final,
            status=status,
            message=message,
            stopped_at=stopped_at,
            steps=self.state.done,
            seconds=time.perf_counter() - began,
            schedule=self.schedule,
            acceptance=getattr(self.state, "acceptance", None),
        )


def generate(
    energy: TrainedEnergy, n: int, key: Any = 0, *, duration: float | None = None, progress: bool = False
) -> np.ndarray:
    """Draw from a trained energy: its own closed loop from its source, (n, d) in the data's units.

    Args:
        energy: from `load_energy` or `train`.
        n: how many.
        key: an integer seed or a JAX key.
        duration: how long [time]; the energy's own when omitted. Longer must not be worse.
        progress: show a progress bar.

    Raises:
        TypeError: the energy does not know its own loop.
        DivergenceError: particles left the finite numbers.
    """
    loop = ClosedLoop.of(energy)
    response = loop.simulate(
        energy.source, energy.duration if duration is None else duration, key=key, record=2, progress=progress,
        particles=n, throw=True,
    )  # fmt: skip
    if response.status == "interrupted":
        raise KeyboardInterrupt
    return response.final
