"""An ensemble of particles as a density: its state, the one function that advances it, and its run.

Inside, positions are (d, n): the particles are the trailing axis, so that XLA vectorises over them. `evolve`
advances particles for simulation and for training alike. On a CPU the ensemble is cut into blocks, which run
on one thread a core; the random streams belong to the particles, so the cut does not show in the result.
"""

from __future__ import annotations

import contextlib
import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ctrlgen import measure
from ctrlgen.energies.base import Energy
from ctrlgen.energies.feedback import DensityFeedback
from ctrlgen.estimate import Estimate
from ctrlgen.plants import noise
from ctrlgen.plants.base import Failure, Plant, Run
from ctrlgen.precision import float64
from ctrlgen.threads import cores

BLOCK = 4096  # particles a block at most
CACHE = 160_000  # numbers a block may keep at once, where its energy is a network: a core's cache
SMALLEST_BLOCK = 512  # below this a second thread costs more than it brings
EVENTS = 8  # snapshots a compiled call can take
PROBES = 32  # particles at which an unknown stability limit is estimated


class State(eqx.Module):
    """Particles under way: positions, their random streams, the step count, and what the scheme remembers."""

    position: jax.Array  # (d, n)
    lanes: noise.Lanes
    step: jax.Array  # int32, steps taken
    memory: Any = None  # of the scheme: velocities, cached gradients, acceptances; particles are the trailing axis
    command: Any = None  # (m,) what a density feedback holds; None under a static energy


class ParticlePlant(eqx.Module, Plant):
    """A plant whose density is an ensemble of independent particles."""

    kind: ClassVar[Literal["particles", "grid", "gaussian"]] = "particles"
    temperature: eqx.AbstractVar[float]
    step: eqx.AbstractVar[float]
    weak_order: ClassVar[int]

    @abstractmethod
    def prepare(self, energy: Energy, state: State, temperature: jax.Array) -> State:
        """Fill `state.memory` before the first step."""

    @abstractmethod
    def move(self, energy: Energy, state: State, temperature: jax.Array) -> State:
        """One step at the given temperature, a scalar or one a particle; the step count is the caller's."""

    def refresh(self, energy: Energy, state: State, temperature: jax.Array) -> State:
        """What `state.memory` holds of the energy, anew after the energy has changed."""
        return state

    def lanes(self, dim: int) -> int:
        """How many random streams a particle of this dimension needs."""
        return (dim + 1) // 2

    def accepted(self, memory: Any) -> jax.Array | None:
        """How many proposals each particle has accepted, from `State.memory`, for schemes that propose."""
        return None

    def admit(self, position: np.ndarray, dtype: Any) -> tuple[ParticlePlant, np.ndarray]:
        """The plant as it runs with these particles (n, d), and them in working precision.

        Raises:
            ValueError: they may not start there.
        """
        return self, position.astype(dtype)

    @property
    def reference_temperature(self) -> float:
        """ε of the Gibbs measure that the density is measured against."""
        return self.temperature

    def begin(self, energy: Energy, position: jax.Array, key: Any, schedule: Callable | None = None) -> State:
        """Particles at `position` (d, n) with fresh random streams from a seed or a JAX key; JAX-traceable."""
        dim, n = position.shape
        state = State(position, noise.seed_lanes(noise.key_words(key), n, self.lanes(dim)), jnp.int32(0))
        state = self.prepare(energy, state, _temperature(self, schedule, state))
        if not isinstance(energy, DensityFeedback):
            return state
        none = jnp.zeros(len(energy.inputs), position.dtype)
        return eqx.tree_at(lambda s: s.command, state, none, is_leaf=lambda v: v is None)

    def stability_limit(self, curvature: float) -> float:
        """The largest stable step where the largest eigenvalue of the (preconditioned) Hessian is `curvature`."""
        return 2.0 / curvature

    @property
    def reshapes_curvature(self) -> bool:
        """Whether a metric makes the largest eigenvalue of the Hessian alone meaningless for stability."""
        return False

    def coordinates(self, energy: Energy) -> int:
        """How many numbers the state of one particle holds under this energy."""
        return energy.dim

    def warn_if_unstable(self, energy: Energy, x: np.ndarray) -> None:
        """Warn where the step is too long at the initial particles x, (n, ·)."""
        warn_if_unstable(self, energy, x)

    def effective_hessian(self, hessian: np.ndarray, states: np.ndarray) -> np.ndarray:
        """The matrices (n, d, d) whose largest eigenvalue sets the stability limit; Hessians are at states (n, d)."""
        return hessian

    def start(self, energy, initial, *, step, key, particles, schedule, dtype):
        return ParticleRun(self, energy, initial, key=key, particles=particles, schedule=schedule, dtype=dtype)

    def mean_energy(self, state, energy):
        values = energy(np.asarray(state, dtype=np.float64))
        return Estimate(float(values.mean()), float(values.std() / np.sqrt(len(values))))

    def kl(self, state, energy, log_partition=None):
        return measure.kl(state, energy, self.reference_temperature, log_partition=log_partition)

    def dissipation(self, state: Any, energy: Energy) -> Estimate:
        raise ValueError(
            f"dissipation is not defined for {type(self).__name__}: -dV/dt = ε I(ρ‖ρ*) is a law of overdamped loops."
        )

    def free_energy(self, state, energy):
        return measure.free_energy(state, energy, self.reference_temperature)


def evolve(plant: ParticlePlant, energy: Energy, state: State, steps: Any, schedule: Callable | None = None) -> State:
    """Advance particles by `steps` steps of the plant's closed loop: the master dynamics, particle by particle.

    Simulation and the contrastive phase of training both come through here. JAX-traceable.

    Args:
        state: from `plant.begin`.
        steps: how many, an int or a traced integer.
        schedule: t -> factor on the temperature, a scalar or (n,); None for static.
    """

    def body(_: Any, now: State) -> State:
        temperature = _temperature(plant, schedule, now)
        if isinstance(energy, DensityFeedback):
            now = _commanded(plant, energy, now, temperature)
            after = plant.move(energy.under(now.command), now, temperature)
            after = eqx.tree_at(lambda s: s.command, after, now.command, is_leaf=lambda v: v is None)
        else:
            after = plant.move(energy, now, temperature)
        return eqx.tree_at(lambda s: s.step, after, now.step + 1)

    return jax.lax.fori_loop(0, steps, body, state)


def _commanded(plant: ParticlePlant, feedback: DensityFeedback, now: State, temperature: jax.Array) -> State:
    """Particles with the command that holds for this step, a fresh one where its period begins."""

    def fresh(state: State) -> State:
        command = feedback.commanded(state.position)
        state = eqx.tree_at(lambda s: s.command, state, command)
        return plant.refresh(feedback.under(command), state, temperature)

    held = jnp.maximum(jnp.round(feedback.period / plant.step), 1).astype(jnp.int32)
    return jax.lax.cond(now.step % held == 0, fresh, lambda state: state, now)


def _temperature(plant: ParticlePlant, schedule: Callable | None, state: State) -> jax.Array:
    dtype = state.position.dtype
    temperature = jnp.asarray(plant.temperature, dtype)
    if schedule is None:
        return temperature
    return temperature * jnp.asarray(schedule(state.step.astype(dtype) * jnp.asarray(plant.step, dtype)), dtype)


class ParticleRun(Run):
    """Particles under way on this machine's devices, in blocks; made by `ParticlePlant.start`."""

    def __init__(
        self,
        plant: ParticlePlant,
        energy: Energy,
        initial: Any,
        *,
        key: Any = 0,
        particles: int = 10_000,
        schedule: Callable | None = None,
        dtype: Any = np.float32,
    ):
        dtype = np.dtype(dtype)
        if dtype not in (np.float32, np.float64):
            raise ValueError(f"dtype must be float32 or float64; got {dtype}.")
        words = np.asarray(noise.key_words(key))
        self._dtype, self._schedule, self._energy = dtype, schedule, energy
        with self._precision():
            plant, x = plant.admit(_positions(plant, energy, initial, _other_seed(words), particles), dtype)
        self.step, self.done, self._failure = float(plant.step), 0, None
        self._plant = jax.tree.map(lambda leaf: np.asarray(leaf) if isinstance(leaf, float) else leaf, plant)
        self._n = len(x)
        plant.warn_if_unstable(energy, x)
        blocks = 1 if energy.couples else _blocks(self._n, energy.footprint)
        padded = np.pad(x.T, ((0, 0), (0, -self._n % blocks)), mode="edge")
        size = padded.shape[1] // blocks
        with self._precision():
            whole = _begin(self._plant, energy, jnp.asarray(padded), words, schedule)
            # Cutting is host work: the particles are the last axis of every array of the state.
            cut = [slice(b * size, (b + 1) * size) for b in range(blocks)]
            arrays = jax.tree.map(np.asarray, whole)
            if blocks == 1:
                cut = [slice(None)]
            self._states = [jax.tree.map(lambda a, c=c: jnp.asarray(a[..., c] if a.ndim else a), arrays) for c in cut]
        self._segment(self._states[0], np.zeros(EVENTS, np.int32), 0)  # compile once, before the threads start

    def advance(self, counts: Sequence[int]) -> list[np.ndarray]:
        snapshots: list[np.ndarray] = []
        for first in range(0, len(counts), EVENTS):
            group = list(counts[first : first + EVENTS])
            before, start = self._states, self.done
            padded = np.zeros(EVENTS, np.int32)
            padded[: len(group)] = group
            results = self._each(partial(self._segment, counts=padded, used=len(group)), before)
            taken = np.concatenate([r[1][: len(group)] for r in results], axis=-1)[..., : self._n]
            self._states, self.done = [r[0] for r in results], start + sum(group)
            if np.isfinite(taken[-1]).all():
                snapshots += [np.ascontiguousarray(s.T) for s in taken]
                continue
            self._locate(before, start, sum(group))
            ends = start + np.cumsum(group)
            snapshots += [np.ascontiguousarray(s.T) for s, end in zip(taken, ends, strict=True) if end <= self.done]
            break
        return snapshots

    def snapshot(self) -> np.ndarray:
        return np.ascontiguousarray(
            np.concatenate([np.asarray(s.position) for s in self._states], axis=-1)[:, : self._n].T
        )

    def failure(self) -> Failure | None:
        return self._failure

    @property
    def plant(self) -> ParticlePlant:
        """The plant at work."""
        return self._plant

    @property
    def acceptance(self) -> float | None:
        """Fraction of proposals accepted so far, for schemes that propose."""
        counts = [self._plant.accepted(s.memory) for s in self._states]
        if self.done == 0 or any(c is None for c in counts):
            return None
        return float(np.concatenate([np.asarray(c) for c in counts])[: self._n].mean()) / self.done

    def remembered(self, part: Callable[[Any], Any]) -> Any:
        """A part of `State.memory`, its arrays (..., n) over all particles."""
        parts = [part(s.memory) for s in self._states]
        return jax.tree.map(lambda *a: np.concatenate([np.asarray(v) for v in a], axis=-1)[..., : self._n], *parts)

    def _segment(self, state: State, counts: np.ndarray, used: int) -> tuple[State, np.ndarray]:
        with self._precision():
            after, taken = _segment(
                self._plant, self._energy, self._schedule, state, jnp.asarray(counts), jnp.int32(used)
            )
            return after, np.asarray(taken)

    def _locate(self, before: list[State], start: int, limit: int) -> None:
        """Replay the last call with a look at every step, and stand at the last one that was finite."""

        def finite_steps(state: State) -> int:
            with self._precision():
                return int(_finite_steps(self._plant, self._energy, self._schedule, state, jnp.int32(limit)))

        def walk(state: State, steps: int) -> State:
            return self._segment(state, np.array([steps] + [0] * (EVENTS - 1), np.int32), 1)[0]

        good = min(self._each(finite_steps, before))
        self._states, self.done = self._each(lambda s: walk(s, good), before), start + good
        failed = np.concatenate([np.asarray(walk(s, 1).position) for s in self._states], axis=-1)[:, : self._n]
        particles = np.flatnonzero(~np.isfinite(failed).all(axis=0))
        self._failure = Failure(
            step=self.done + 1, particles=tuple(map(int, particles)), reason="positions are no longer finite"
        )

    def _each(self, function: Callable, items: list) -> list:
        if len(items) == 1:
            return [function(items[0])]
        return list(_threads().map(function, items))

    def _precision(self) -> Any:
        return float64() if self._dtype == np.float64 else contextlib.nullcontext()


@eqx.filter_jit
def _begin(plant: ParticlePlant, energy: Energy, position: jax.Array, key: Any, schedule: Any) -> State:
    return plant.begin(energy, position, key, schedule)


@eqx.filter_jit
def _segment(plant: Any, energy: Energy, schedule: Any, state: State, counts: jax.Array, used: jax.Array) -> Any:
    taken = jnp.zeros((EVENTS, *state.position.shape), state.position.dtype)

    def event(i: Any, carry: Any) -> Any:
        now, out = carry
        now = evolve(plant, energy, now, counts[i], schedule)
        return now, out.at[i].set(now.position)

    return jax.lax.fori_loop(0, used, event, (state, taken))


@eqx.filter_jit
def _finite_steps(plant: Any, energy: Energy, schedule: Any, state: State, limit: jax.Array) -> jax.Array:
    def more(carry: Any) -> jax.Array:
        now, steps = carry
        return jnp.isfinite(now.position).all() & (steps <= limit)

    def step(carry: Any) -> Any:
        now, steps = carry
        return evolve(plant, energy, now, 1, schedule), steps + 1

    return jnp.maximum(jax.lax.while_loop(more, step, (state, jnp.int32(0)))[1] - 1, 0)


def warn_if_unstable(plant: ParticlePlant, energy: Energy, x: np.ndarray) -> None:
    """Warn where the step is beyond the plant's stability limit, from the energy's constants or at the start.

    An established bound of the curvature rules it out; where it does not, the curvature at some of the particles `x`
    decides, because the bound may be far from attained (a network's).
    """
    if getattr(plant, "scheme", None) == "mala":
        return  # a step that is too long is rejected, not unstable
    bound = None if plant.reshapes_curvature else energy.properties.hessian_upper
    if bound is not None and (bound <= 0 or plant.step <= plant.stability_limit(bound)):
        return
    if energy.dim > (PROBES if bound is None else PROBES**2):
        return
    probes = min(len(x), max(1, PROBES**3 // max(energy.dim, PROBES) ** 2))
    some = x[:: max(1, len(x) // probes)][:probes].astype(np.float64)
    hessian = plant.effective_hessian(energy.hessian(some), some)
    finite = hessian[np.isfinite(hessian).all(axis=(1, 2))]
    curvature = float(np.linalg.eigvalsh(finite)[:, -1].max()) if len(finite) else 0.0
    origin = f"the largest curvature measured at {probes} initial particles"
    limit = plant.stability_limit(curvature) if curvature > 0 else np.inf
    if plant.step > limit:
        warnings.warn(
            f"step {plant.step:g} is beyond the stability limit {limit:.4g} (from {origin}); "
            f"particles are likely to diverge. Pass step < {limit:.4g}, or scheme='mala'.",
            UserWarning,
            stacklevel=6,
        )


def _positions(plant: Any, energy: Energy, initial: Any, key: int, particles: int) -> np.ndarray:
    fixed = getattr(plant, "dim", None)
    if fixed is not None and fixed != energy.dim:
        raise ValueError(f"plant has a metric or skew of dimension {fixed}, but the energy has dimension {energy.dim}.")
    if hasattr(initial, "sample"):
        if not isinstance(particles, (int, np.integer)) or particles < 1:
            raise ValueError(f"particles must be a positive integer; got {particles!r}.")
        initial = initial.sample(key, int(particles))
    try:
        x = np.asarray(initial, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "initial must be an (n, d) array of particles or a distribution with .sample(key, n) for this plant; "
            f"got {type(initial).__name__}: {error}"
        ) from None
    size = plant.coordinates(energy)
    if x.ndim != 2 or x.shape[1] != size or len(x) == 0:
        whose = "the energy's dimension" if size == energy.dim else "the states of the plant"
        raise ValueError(f"initial must have shape (n, {size}) with n >= 1, to fit {whose}; got shape {x.shape}.")
    bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
    if len(bad):
        raise ValueError(
            f"initial must be finite; {len(bad)} of {len(x)} particles are not, the first at row {bad[0]}."
        )
    return x


def _other_seed(words: np.ndarray) -> int:
    """The seed of the initial draw: the same key must not give the start and the noise the same numbers."""
    return int.from_bytes(words.tobytes(), "little") ^ 0x5DEECE66D


def _blocks(n: int, footprint: int) -> int:
    if jax.default_backend() != "cpu" or n < 2 * SMALLEST_BLOCK or cores() < 2:
        return 1
    size = min(BLOCK, max(SMALLEST_BLOCK, CACHE // footprint))
    return cores() * max(1, round(n / (cores() * size) + 0.25))


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(cores(), thread_name_prefix="ctrlgen-particles")
