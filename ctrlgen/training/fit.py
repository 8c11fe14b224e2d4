"""Training: run the phases of one objective or of a chain of them, in compiled blocks of many updates.

Draws and couplings of the next blocks are computed by a thread while the device works. Every draw belongs to its
step (data.generator), every device key too, so neither timing nor interruption changes a bit of the result.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from ctrlgen.energies.base import Energy
from ctrlgen.energies.trained import TrainedEnergy
from ctrlgen.plants.particles import Langevin, evolve
from ctrlgen.training import checkpoint as files
from ctrlgen.training.data import Feed, Standardise, check_table, generator, prepare
from ctrlgen.training.objectives import EnergyMatching, Likelihood, Objective, Phase
from ctrlgen.training.result import TrainingResult, TrainingStatus

AHEAD = 2  # blocks that are drawn ahead
CHECKPOINT_SECONDS = 30.0
EVALUATIONS = 20  # held-out evaluations a phase, unless asked otherwise
LARGEST_EVALUATION = 2000  # points in a held-out W₂, whose cost grows with the cube


class State(eqx.Module):
    """Everything that a step changes: weights, optimiser, running average of the weights, chains."""

    weights: Any
    optimiser: Any
    average: Any
    chains: Any


def train(
    energy: Energy,
    data: Any,
    source: str = "gaussian",
    objective: Objective | Sequence[Objective] | None = None,
    key: int = 0,
    *,
    held_out: Any = None,
    evaluate: int | None = None,
    patience: int | None = None,
    standardise: Standardise = True,
    progress: bool = True,
    checkpoint: str | Path | None = None,
    resume: bool = True,
    record: int = 1,
    name: str = "trained",
    step: float | None = None,
    duration: float | None = None,
    scheme: Literal["euler", "mala"] = "euler",
    schedule: Any = "objective",
) -> TrainingResult:
    """Train an energy so that its Gibbs measure, or its closed loop from the source, has the data's density.

    Training runs in standardised units. Ctrl-C returns what there is. With a checkpoint, the same call continues
    where the last one ended, to bit-identical weights.

    Args:
        energy: usually an `MLPEnergy`; every floating-point JAX array in it is trained. A `TrainedEnergy` is trained
            further, in its own scaling.
        data: (n, d) rows, or a distribution with `.sample(key, n)` and `.dim`, which is drawn afresh in every step.
        source: where generation starts: "gaussian" (the standard normal in standardised units) or a name in
            `ctrlgen.datasets`.
        objective: one, or several to be run one after the other; `EnergyMatching()` when omitted.
        key: seed of everything that is random, >= 0.
        held_out: rows (m, d) that measure quality; or how many to set aside from a table or to draw from a
            distribution.
        evaluate: steps between measurements; a twentieth of the phase when omitted.
        patience: stop the last phase after so many measurements without improvement, and return the best weights.
        standardise: True: mean 0 and deviation 1 in every column; "isotropic": one scale for all; False: none.
        progress: show a bar with the loss.
        checkpoint: file to keep the run in, written every half minute, at the end and when interrupted.
        resume: continue from the checkpoint if it exists; False starts again and overwrites it.
        record: steps that one entry of the history averages.
        name: of the trained energy.
        step, duration, scheme, schedule: of the closed loop that generates [time]; by the objective when omitted.

    Raises:
        TypeError: energy is not an `Energy`, or an objective is not one.
        ValueError: an argument does not fit: shapes, non-finite rows, an unknown source, nothing to train, an
            objective that the dimension excludes, a checkpoint of another run.
    """
    if not isinstance(energy, Energy):
        raise TypeError(f"energy must be an Energy, such as MLPEnergy(dim={np.shape(data)[-1:]}); got {energy!r}.")
    scaling = (energy.center, energy.scale) if isinstance(energy, TrainedEnergy) else None
    network = energy.network if isinstance(energy, TrainedEnergy) else energy
    leaves = jax.tree.leaves(eqx.filter(network, eqx.is_inexact_array))
    if not leaves:
        raise ValueError(f"energy has nothing to train: {energy!r} holds no floating-point JAX array. Use MLPEnergy.")
    if not all(bool(jnp.isfinite(leaf).all()) for leaf in leaves):
        raise ValueError("energy must start from finite weights; some are not.")
    seed = _whole("key", key, 0)
    stages = _stages(objective, network.dim)
    for label, value in (("evaluate", evaluate), ("patience", patience), ("record", record)):
        if value is not None:
            _whole(label, value, 1)
    if patience is not None and held_out is None:
        raise ValueError("patience needs held_out: rows, or how many to set aside, to measure the quality on.")
    last = stages[-1]
    settings = {
        "temperature": float(last.temperature or 1.0),
        "step": float(getattr(last, "langevin_step", 0.01) if step is None else step),
        "duration": float(last.duration if duration is None else duration),
        "schedule": last.schedule() if isinstance(schedule, str) and schedule == "objective" else schedule,
        "scheme": scheme,
        "source": source,
        "name": name,
    }
    data, aside = _set_aside(data, held_out, network.dim, seed)
    feed = prepare(data, network.dim, source, standardise, scaling)
    TrainedEnergy(network, feed.center, feed.scale, **settings)  # its checks, before any work
    run = _Run(network, feed, stages, seed, aside, evaluate, patience, settings, progress)
    if checkpoint is not None:
        run.open(Path(checkpoint), resume)
    status, message = run.execute()
    return TrainingResult(
        energy=TrainedEnergy(run.network, feed.center, feed.scale, **settings),
        status=status,
        message=message,
        history=run.history(record),
        steps=run.done,
        seconds=run.seconds,
        settings={
            "key": seed,
            "source": source,
            "standardise": standardise,
            "objectives": [stage.settings() for stage in stages],
        },
    )


def _whole(label: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{label} must be an integer of at least {least}; got {value!r}.")
    return int(value)


def _stages(objective: Any, dim: int) -> tuple[Objective, ...]:
    """The chain of objectives, each with its temperature settled."""
    chain = (
        (EnergyMatching(),)
        if objective is None
        else (objective,)
        if not isinstance(objective, (list, tuple))
        else objective
    )
    if not chain:
        raise ValueError("objective must not be an empty list.")
    out: list[Objective] = []
    temperature = 1.0
    for item in chain:
        if not isinstance(item, Objective):
            raise TypeError(
                f"objective must be an Objective such as EnergyMatching(), or a list of them; got {item!r}."
            )
        item.check(dim)
        temperature = float(item.temperature or temperature)
        out.append(dataclasses.replace(item, temperature=temperature))
    return tuple(out)


def _set_aside(data: Any, held_out: Any, dim: int, seed: int) -> tuple[Any, np.ndarray | None]:
    """The data to train on and the rows that measure quality."""
    if held_out is None:
        return data, None
    if not isinstance(held_out, (int, np.integer)) or isinstance(held_out, bool):
        return data, check_table(held_out, dim, "held_out")
    count = _whole("held_out", held_out, 10)
    if hasattr(data, "sample"):
        return data, np.asarray(data.sample(int(generator(seed, 0).integers(2**62)), count), np.float64)
    rows = check_table(data, dim)
    if count > len(rows) // 2:
        raise ValueError(f"held_out must leave at least half of the {len(rows)} rows to train on; got {count}.")
    order = generator(seed, 0).permutation(len(rows))
    return rows[order[count:]], rows[order[:count]]


# The compiled update -----------------------------------------------------------------------------------


def _optimiser(objective: Objective) -> optax.GradientTransformation:
    rate: Any = objective.learning_rate
    if objective.decay == "cosine":
        rate = optax.cosine_decay_schedule(rate, objective.length())
    adam = optax.adamw(rate, weight_decay=objective.weight_decay) if objective.weight_decay else optax.adam(rate)
    return optax.chain(optax.clip_by_global_norm(objective.clip), adam) if objective.clip else adam


@eqx.filter_jit
def _advance(
    objective: Objective,
    phase: Phase,
    rest: Any,
    state: State,
    batches: Any,
    count: jax.Array,
    first: jax.Array,
    key: jax.Array,
) -> tuple[State, jax.Array]:
    """`count` updates from step `first`; the log is (block, 2 + terms): loss, gradient norm, terms."""
    optimiser = _optimiser(objective)

    def loss(weights: Any, batch: Any, chains: Any, at: jax.Array) -> Any:
        value, aside = phase.loss(eqx.combine(weights, rest), batch, chains, jax.random.fold_in(key, at))
        return value, aside

    def body(i: jax.Array, carry: tuple[State, jax.Array]) -> tuple[State, jax.Array]:
        state, log = carry
        batch = jax.tree.map(lambda leaf: leaf[i], batches)
        (value, (terms, chains)), slope = jax.value_and_grad(loss, has_aux=True)(
            state.weights, batch, state.chains, first + i
        )
        updates, inner = optimiser.update(slope, state.optimiser, state.weights)
        weights = optax.apply_updates(state.weights, updates)
        average = state.average
        if objective.ema:
            # early on the plain mean, so that the random start is forgotten as fast as it can be
            number = (first + i).astype(jnp.float32)
            decay = jnp.minimum(objective.ema, (1.0 + number) / (10.0 + number))
            average = jax.tree.map(lambda a, w: w + decay * (a - w), average, weights)
        line = jnp.stack([value, optax.global_norm(slope), *terms]).astype(jnp.float32)
        return State(weights, inner, average, chains), log.at[i].set(line)

    log = jnp.zeros((phase.block, 2 + len(phase.terms)), jnp.float32)
    return jax.lax.fori_loop(0, count, body, (state, log))


@eqx.filter_jit
def _generate(plant: Langevin, energy: Energy, start: Any, key: jax.Array, steps: Any, schedule: Any) -> jax.Array:
    return evolve(plant, energy, plant.begin(energy, start, key), steps, schedule).position


def _device_key(seed: int, *path: int) -> jax.Array:
    words = np.random.SeedSequence([100 + len(path), *path, seed]).generate_state(2, np.uint32)
    return jax.random.wrap_key_data(jnp.asarray(words), impl="threefry2x32")


# The run -----------------------------------------------------------------------------------------------


class _Run:
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
        self.at = 0  # index into the plan
        self.step = 0  # within the phase
        self.state: State | None = None
        self.logs: dict[int, list[np.ndarray]] = {i: [] for i in range(len(self.plan))}
        self.quality: list[tuple[int, float]] = []  # global step, held-out quality
        self.best: tuple[float, Any] = (math.inf, None)
        self.waited = 0
        self.seconds = 0.0
        self.finished: tuple[TrainingStatus, str] | None = None

    @property
    def done(self) -> int:
        return sum(len(rows) for logs in self.logs.values() for rows in logs)

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
        if self.state is None:
            self.state = self._initial(fresh_optimiser=True)
        objective, key = self.stages[stage], _device_key(self.seed, stage, part)
        rest = eqx.filter(self.network, eqx.is_inexact_array, inverse=True)
        every = self.evaluate or max(1, phase.steps // EVALUATIONS)
        blocks = _blocks(self.step, phase.steps, phase.block, every if self.aside is not None else None)
        saved = time.perf_counter()
        with ThreadPoolExecutor(1, thread_name_prefix="ctrlgen-draws") as pool:
            ahead: deque = deque()
            try:
                while True:
                    while len(ahead) < AHEAD and (block := next(blocks, None)) is not None:
                        ahead.append((block, pool.submit(_draw, phase, self.feed, self.seed, (stage, part), *block)))
                    if not ahead:
                        return None
                    (first, count), future = ahead.popleft()
                    batches = future.result()
                    state, log = _advance(objective, phase, rest, self.state, batches, *_traced(count, first), key)
                    rows = np.asarray(log)[:count]
                    good = _good_steps(rows, state)
                    if good < count:
                        return self._diverged(good, objective, phase, rest, batches, first, key, rows)
                    self.state, self.step = state, first + count
                    self.logs[self.at].append(rows)
                    bar.update(count)
                    bar.set_postfix_str(f"{phase.name} loss {rows[:, 0].mean():.4g}", refresh=False)
                    if self.aside is not None and (self.step % every == 0 or self.step == phase.steps):
                        outcome = self._judge(bar)
                        if outcome is not None:
                            return outcome
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
        assert self.state is not None
        self.state, log = _advance(objective, phase, rest, self.state, batches, *_traced(good, first), key)
        self.step = first + good
        self.logs[self.at].append(np.asarray(log)[:good])
        what = "the loss" if not np.isfinite(rows[good, 0]) else "its gradient" if good < len(rows) else "the weights"
        return (
            "diverged",
            f"At step {self.done + 1} ({phase.name}) {what} left the finite numbers; the weights are those before it. "
            "Lower learning_rate, set clip, or shorten the chains' steps.",
        )

    def _initial(self, fresh_optimiser: bool) -> State:
        stage, part, phase = self.plan[self.at]
        weights = eqx.filter(self.network, eqx.is_inexact_array)
        objective = self.stages[stage]
        optimiser = _optimiser(objective).init(weights)
        if not fresh_optimiser and self.state is not None:
            weights, optimiser, average = self.state.weights, self.state.optimiser, self.state.average
        else:
            average = weights if objective.ema else None
        return State(weights, optimiser, average, phase.begin(self.feed, generator(self.seed, stage, part)))

    def _next(self) -> None:
        """To the next phase: within an objective the optimiser goes on, a new objective starts from the average."""
        same = self.plan[self.at + 1][0] == self.plan[self.at][0]
        self._settle(best=False)
        self.at, self.step, self.best, self.waited = self.at + 1, 0, (math.inf, None), 0
        self.state = self._initial(fresh_optimiser=not same)

    def _settle(self, best: bool = True) -> None:
        """Put the weights that count into the network: the best ones, the average, or the latest."""
        if self.state is None:
            return
        weights = self.state.weights if self.state.average is None else self.state.average
        if best and self.patience is not None and self.best[1] is not None and self.at + 1 == len(self.plan):
            weights = self.best[1]
        self.network = eqx.combine(weights, eqx.filter(self.network, eqx.is_inexact_array, inverse=True))

    # Held-out quality ----------------------------------------------------------------------------------

    def _judge(self, bar: Any) -> tuple[TrainingStatus, str] | None:
        """Measure the current weights; says so when patience has run out."""
        assert self.state is not None
        weights = self.state.weights if self.state.average is None else self.state.average
        network = eqx.combine(weights, eqx.filter(self.network, eqx.is_inexact_array, inverse=True))
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
        steps = _traced(round(self.settings["duration"] / self.settings["step"]))[0]
        out = _generate(plant, network, start, _device_key(self.seed, 0, 0, 1), steps, self.settings["schedule"])
        made = np.asarray(out, np.float64).T * self.feed.scale + self.feed.center
        return float(wasserstein2(made, rows)) if np.isfinite(made).all() else math.inf

    def history(self, record: int) -> dict[str, np.ndarray]:
        """The log, averaged over `record` steps, with a column for every term that any phase has."""
        terms = list(dict.fromkeys(term for *_, phase in self.plan for term in phase.terms))
        parts: dict[str, list[np.ndarray]] = {name: [] for name in ("step", "phase", "loss", "grad_norm", *terms)}
        before = 0
        for i, (*_, phase) in enumerate(self.plan):
            rows = np.concatenate(self.logs[i]) if self.logs[i] else np.zeros((0, 2 + len(phase.terms)))
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
        shapes = [list(leaf.shape) for leaf in jax.tree.leaves(eqx.filter(self.network, eqx.is_inexact_array))]
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
        if self.path is None or self.state is None:
            return
        tables = {f"log/{i}": np.concatenate(rows) for i, rows in self.logs.items() if rows}
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
        trees = {"state": self.state}
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
        self.at, self.step, self.waited = facts["at"], facts["step"], facts["waited"]
        self.state = files.read_tree(path, "state", self._initial(fresh_optimiser=True))
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


def _traced(*numbers: int) -> tuple[jax.Array, ...]:
    """As arrays: a Python number would be static, and every call a compilation."""
    return tuple(jnp.asarray(number, jnp.int32) for number in numbers)


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
