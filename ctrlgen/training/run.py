"""A training run: the phases of a chain of objectives, in compiled blocks of many updates.

Draws and couplings of the next blocks are computed by a thread while the device works. Every draw belongs to its
step (data.generator), every device key too, so neither timing nor interruption changes a bit of the result.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from ctrlgen.energies.base import Energy
from ctrlgen.plants.particles import Langevin, evolve
from ctrlgen.training import checkpoint as files
from ctrlgen.training.data import Feed, generator
from ctrlgen.training.objectives import Likelihood, Objective, Phase
from ctrlgen.training.result import TrainingStatus
from ctrlgen.training.update import State, advance, optimiser_of, traced, trainable

AHEAD = 2  # blocks that are drawn ahead
CHECKPOINT_SECONDS = 30.0
EVALUATIONS = 20  # held-out evaluations a phase, unless asked otherwise
LARGEST_EVALUATION = 2000  # points in a held-out W₂, whose cost grows with the cube


class Run:
    """One training run under way: where it stands, its history, and its file."""

    def __init__(
        self,
        network: Energy,
        feed: Feed,
        stages: tuple[Objective, ...],
        seed: int,
        aside: np.ndarray | None,
        evaluate: int | None,
        patience: int | None,
        settings: dict[str, Any],
        progress: bool,
    ):
        self.network, self.feed, self.stages, self.seed = network, feed, stages, seed
        self.aside, self.evaluate, self.patience = aside, evaluate, patience
        self.settings, self.progress = settings, progress
        self.path: Path | None = None
        self.plan = [(s, p, phase) for s, o in enumerate(stages) for p, phase in enumerate(o.phases())]
        self.total = sum(phase.steps for *_, phase in self.plan)
        # index into the plan, step within the phase, state: one assignment, which Ctrl-C cannot cut in two
        self.now: tuple[int, int, State | None] = (0, 0, None)
        self.logs: dict[int, list[np.ndarray]] = {i: [] for i in range(len(self.plan))}
        self.quality: list[tuple[int, float]] = []  # global step, held-out quality
        self.best: tuple[float, Any] = (math.inf, None)
        self.waited = 0
        self.seconds = 0.0
        self.finished: tuple[TrainingStatus, str] | None = None

    @property
    def at(self) -> int:
        return self.now[0]

    @property
    def step(self) -> int:
        return self.now[1]

    @property
    def state(self) -> State:
        """The state now; made when it is first needed."""
        if self.now[2] is None:
            self.now = (*self.now[:2], self._initial(fresh_optimiser=True))
        state = self.now[2]
        assert state is not None
        return state

    @property
    def done(self) -> int:
        return sum(phase.steps for *_, phase in self.plan[: self.at]) + self.step

    @property
    def measure(self) -> str:
        return self.stages[-1].quality

    # The loop ------------------------------------------------------------------------------------------

    def execute(self) -> tuple[TrainingStatus, str]:
        """Run to the end, or to whatever ends it; leaves the network that is to be returned in `self.network`."""
        if self.finished is not None:
            self._settle()
            return self.finished
        started, before = time.perf_counter(), self.seconds
        bar = tqdm(total=self.total, initial=self.done, disable=not self.progress, unit="step", dynamic_ncols=True)
        status: TrainingStatus = "completed"
        message = f"All {self.total} steps were made."
        try:
            with bar:
                while self.at < len(self.plan):
                    outcome = self._phase(bar, started, before)
                    if outcome is not None:
                        status, message = outcome
                        break
                    if self.at + 1 == len(self.plan):
                        break
                    self._next()
        except KeyboardInterrupt:
            status = "interrupted"
            again = " The same call continues from the checkpoint." if self.path else ""
            message = f"Interrupted after {self.done} of {self.total} steps; the weights are those so far.{again}"
        self.seconds = before + time.perf_counter() - started
        if status in ("completed", "stopped early"):
            self.finished = (status, message)
        self._save()
        self._settle()
        if status in ("completed", "stopped early"):
            note = self.plan[self.at][2].report(self.network, self.feed)
            message = f"{message} {note[:1].upper()}{note[1:]}." if note else message
        return status, message

    def _phase(self, bar: Any, started: float, before: float) -> tuple[TrainingStatus, str] | None:
        """Run the current phase from the current step; what ended the run, or None at the phase's end."""
        stage, part, phase = self.plan[self.at]
        objective, key = self.stages[stage], _device_key(self.seed, stage, part)
        rest = eqx.filter(self.network, trainable, inverse=True)
        every = self.evaluate or max(1, phase.steps // EVALUATIONS)
        blocks = _blocks(self.step, phase.steps, phase.block, every if self.aside is not None else None)
        saved = time.perf_counter()
        with ThreadPoolExecutor(1, thread_name_prefix="ctrlgen-draws") as pool:
            ahead: deque = deque()
            try:
                while True:
                    if self._due(every, phase) and (outcome := self._judge(bar)) is not None:
                        return outcome
                    while len(ahead) < AHEAD and (block := next(blocks, None)) is not None:
                        ahead.append((block, pool.submit(_draw, phase, self.feed, self.seed, (stage, part), *block)))
                    if not ahead:
                        return None
                    (first, count), future = ahead.popleft()
                    batches = future.result()
                    state, log = advance(objective, phase, rest, self.state, batches, traced(count), traced(first), key)
                    rows = np.asarray(log)[:count]
                    good = _good_steps(rows, state)
                    if good < count:
                        return self._diverged(good, objective, phase, rest, batches, first, key, rows)
                    self._keep(first, rows, state)
                    bar.update(count)
                    bar.set_postfix_str(f"{phase.name} loss {rows[:, 0].mean():.4g}", refresh=False)
                    if self.path is not None and time.perf_counter() - saved > CHECKPOINT_SECONDS:
                        self.seconds = before + time.perf_counter() - started
                        self._save()
                        saved = time.perf_counter()
            finally:
                for _, future in ahead:
                    future.cancel()

    def _diverged(
        self, good: int, objective: Objective, phase: Phase, rest: Any, batches: Any, first: int, key: Any, rows: Any
    ) -> tuple[TrainingStatus, str]:
        """Repeat the block up to the step before the bad one: draws belong to steps, so it is the same block."""
        state, log = advance(objective, phase, rest, self.state, batches, traced(good), traced(first), key)
        self._keep(first, np.asarray(log)[:good], state)
        finite = np.isfinite(rows[good])
        what = "the loss" if not finite[0] else "its gradient" if not finite.all() else "the weights"
        return (
            "diverged",
            f"At step {self.done + 1} ({phase.name}) {what} left the finite numbers; the weights are those before it. "
            "Lower learning_rate, set clip, or shorten the chains' steps.",
        )

    def _keep(self, first: int, rows: np.ndarray, state: State) -> None:
        """Stand at the end of a block; its log comes first, and is cut to the steps that count when it is read."""
        self.logs[self.at] = [*self.logs[self.at], rows]
        self.now = (self.at, first + len(rows), state)

    def _log(self, at: int) -> np.ndarray:
        """(steps, 2 + terms) of one phase."""
        rows = np.concatenate(self.logs[at]) if self.logs[at] else np.zeros((0, 2 + len(self.plan[at][2].terms)))
        return rows[: self.step] if at == self.at else rows

    def _initial(self, fresh_optimiser: bool, at: int | None = None) -> State:
        """The state at the start of a phase, the current one unless told otherwise."""
        stage, part, phase = self.plan[self.at if at is None else at]
        weights = eqx.filter(self.network, trainable)
        objective = self.stages[stage]
        optimiser = optimiser_of(objective).init(weights)
        if not fresh_optimiser:
            weights, optimiser, average = self.state.weights, self.state.optimiser, self.state.average
        else:
            average = weights if objective.ema else None
        return State(weights, optimiser, average, phase.begin(self.feed, generator(self.seed, stage, part)))

    def _next(self) -> None:
        """To the next phase: within an objective the optimiser goes on, a new objective starts from the average."""
        same = self.plan[self.at + 1][0] == self.plan[self.at][0]
        self._settle(best=False)
        self.now = (self.at + 1, 0, self._initial(fresh_optimiser=not same, at=self.at + 1))

    def _settle(self, best: bool = True) -> None:
        """Put the weights that count into the network: the best ones, the average, or the latest."""
        weights = self.state.weights if self.state.average is None else self.state.average
        if best and self.patience is not None and self.best[1] is not None and self.at + 1 == len(self.plan):
            weights = self.best[1]
        self.network = eqx.combine(weights, eqx.filter(self.network, trainable, inverse=True))

    # Held-out quality ----------------------------------------------------------------------------------

    def _due(self, every: int, phase: Phase) -> bool:
        """Whether the weights are to be measured now, and have not been."""
        measured = bool(self.quality) and self.quality[-1][0] == self.done
        return (
            self.aside is not None
            and self.step > 0
            and not measured
            and (self.step % every == 0 or self.step == phase.steps)
        )

    def _judge(self, bar: Any) -> tuple[TrainingStatus, str] | None:
        """Measure the current weights; says so when patience has run out."""
        weights = self.state.weights if self.state.average is None else self.state.average
        network = eqx.combine(weights, eqx.filter(self.network, trainable, inverse=True))
        value = self._measure(network)
        if value is None:
            return None
        self.quality.append((self.done, value))
        bar.set_postfix_str(f"held-out {self.measure} {value:.4g}", refresh=False)
        if self.patience is None or self.at + 1 < len(self.plan):
            return None
        self.waited += 1
        if value < self.best[0]:
            self.best, self.waited = (value, weights), 0
        if self.waited < self.patience:
            return None
        return (
            "stopped early",
            f"Held-out {self.measure} did not improve on {self.best[0]:.4g} for {self.patience} measurements; "
            f"stopped after {self.done} of {self.total} steps with the best weights.",
        )

    def _measure(self, network: Energy) -> float | None:
        assert self.aside is not None
        if self.measure == "nll":
            phase = self.plan[-1][2]
            assert isinstance(phase, Likelihood)
            return phase.negative_log_likelihood(network, self.feed, jnp.asarray(self.feed.inside(self.aside)))
        try:
            from ctrlgen.measure import wasserstein2
        except ImportError:  # without optimal transport there is no such measure
            return None
        rows = self.aside[:LARGEST_EVALUATION]
        plant = Langevin(self.settings["temperature"], self.settings["step"], scheme=self.settings["scheme"])
        start = jnp.asarray(self.feed.noise(generator(self.seed, 1), len(rows)))
        steps = traced(round(self.settings["duration"] / self.settings["step"]))
        out = _generate(plant, network, start, _device_key(self.seed, 0, 0, 1), steps, self.settings["schedule"])
        made = np.asarray(out, np.float64).T * self.feed.scale + self.feed.center
        return float(wasserstein2(made, rows)) if np.isfinite(made).all() else math.inf

    def history(self, record: int) -> dict[str, np.ndarray]:
        """The log, averaged over `record` steps, with a column for every term that any phase has."""
        terms = list(dict.fromkeys(term for *_, phase in self.plan for term in phase.terms))
        parts: dict[str, list[np.ndarray]] = {name: [] for name in ("step", "phase", "loss", "grad_norm", *terms)}
        before = 0
        for i, (*_, phase) in enumerate(self.plan):
            rows = self._log(i)
            cuts = np.arange(0, len(rows), record)
            sizes = np.diff(np.append(cuts, len(rows)))
            means = np.add.reduceat(rows.astype(np.float64), cuts) / sizes[:, None] if len(rows) else rows
            parts["step"].append(before + cuts + sizes)
            parts["phase"].append(np.full(len(cuts), phase.name))
            parts["loss"].append(means[:, 0])
            parts["grad_norm"].append(means[:, 1])
            for term in terms:
                found = term in phase.terms
                parts[term].append(means[:, 2 + phase.terms.index(term)] if found else np.full(len(cuts), np.nan))
            before += len(rows)
        out = {name: np.concatenate(values) for name, values in parts.items()}
        if self.aside is not None:
            table = np.asarray(self.quality, np.float64).reshape(-1, 2)
            out |= {"held_out_step": table[:, 0].astype(int), f"held_out_{self.measure}": table[:, 1]}
        return out

    # The file ------------------------------------------------------------------------------------------

    def _facts(self) -> dict[str, Any]:
        """What must agree for a checkpoint to be continued."""
        shapes = [list(leaf.shape) for leaf in jax.tree.leaves(eqx.filter(self.network, trainable))]
        return {
            "objective": repr(self.stages),
            "key": self.seed,
            "data": self.feed.fingerprint(),
            "energy": f"{type(self.network).__name__} {shapes}",
            "held_out": None if self.aside is None else list(self.aside.shape),
            "evaluate": self.evaluate,
            "patience": self.patience,
        }

    def _save(self) -> None:
        if self.path is None:
            return
        tables = {f"log/{i}": self._log(i) for i, rows in self.logs.items() if rows}
        tables["quality"] = np.asarray(self.quality, np.float64).reshape(-1, 2)
        facts = {
            "run": self._facts(),
            "at": self.at,
            "step": self.step,
            "seconds": self.seconds,
            "best": None if self.best[1] is None else self.best[0],
            "waited": self.waited,
            "finished": self.finished,
        }
        trees: dict[str, Any] = {"state": self.state}
        if self.best[1] is not None:
            trees["best"] = self.best[1]
        files.write(self.path, facts, trees, tables)

    def open(self, path: Path, resume: bool) -> None:
        """Use this file, and go on from what it holds if asked to."""
        self.path = path
        if not (resume and path.exists()):
            return
        facts = files.read_facts(path)
        mine = self._facts()
        wrong = [name for name in mine if facts["run"].get(name) != mine[name]]
        if wrong:
            raise ValueError(
                f"checkpoint {path} belongs to another run: {', '.join(wrong)} differ. Pass resume=False to start "
                "again and overwrite it, or another file."
            )
        state = files.read_tree(path, "state", self._initial(fresh_optimiser=True, at=facts["at"]))
        self.now, self.waited = (facts["at"], facts["step"], state), facts["waited"]
        if facts["best"] is not None:
            self.best = (facts["best"], files.read_tree(path, "best", self.state.weights))
        tables = files.read_tables(path)
        self.logs.update({i: [tables[f"log/{i}"]] for i in self.logs if f"log/{i}" in tables})
        self.quality = [(int(at), float(value)) for at, value in tables["quality"]]
        self.seconds = facts["seconds"]
        self.finished = tuple(facts["finished"]) if facts["finished"] else None


def _blocks(start: int, steps: int, size: int, every: int | None) -> Iterator[tuple[int, int]]:
    """(first step, count) of the compiled calls: at most `size` steps, never across a multiple of `every`."""
    while start < steps:
        end = min(start + size, steps)
        if every is not None:
            end = min(end, (start // every + 1) * every)
        yield start, end - start
        start = end


def _draw(phase: Phase, feed: Feed, seed: int, path: tuple[int, ...], first: int, count: int) -> Any:
    """The batches of a block, stacked and padded to its full size, so that there is one compilation."""
    drawn = [phase.draw(feed, generator(seed, *path, first + i)) for i in range(count)]
    drawn += [drawn[-1]] * (phase.block - count)
    return {name: np.stack([batch[name] for batch in drawn]) for name in drawn[0]}


def _good_steps(rows: np.ndarray, state: State) -> int:
    """How many updates came before the first one that is not finite."""
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if bad.size:
        return int(bad[0])
    finite = all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(state.weights))
    return len(rows) if finite else len(rows) - 1


@eqx.filter_jit
def _generate(plant: Langevin, energy: Energy, start: Any, key: jax.Array, steps: Any, schedule: Any) -> jax.Array:
    return evolve(plant, energy, plant.begin(energy, start, key), steps, schedule).position


def _device_key(seed: int, *path: int) -> jax.Array:
    words = np.random.SeedSequence([100 + len(path), *path, seed]).generate_state(2, np.uint32)
    return jax.random.wrap_key_data(jnp.asarray(words), impl="threefry2x32")
