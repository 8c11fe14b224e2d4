"""A particle plant with a further controller: the command is u = -∇E(y) + g, g the output of a python-control system.

The system is driven by what the energy sees. Where it has states of its own, every particle carries them.
"""

from __future__ import annotations

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from ctrlgen.energies.base import Energy
from ctrlgen.plants.base import Plant
from ctrlgen.plants.driven import Driven, batched
from ctrlgen.plants.ensemble import ParticlePlant, State
from ctrlgen.plants.particles import GradientFlow, KineticLangevin, Langevin, _adaptive
from ctrlgen.system import Equations, equations


class Pushed(Energy):
    """What commands -∇E + g to a scheme: its slope is that of E less g, which need be no gradient."""

    energy: Energy
    extra: Equations = eqx.field(static=True)
    time: Any
    memory: jax.Array  # ξ, (nξ, n)
    dim: int = eqx.field(static=True)

    def __init__(self, energy: Energy, extra: Equations, time: Any, memory: jax.Array):
        self.energy, self.extra, self.time, self.memory = energy, extra, time, memory
        self.dim = energy.dim

    def potential(self, x):
        raise TypeError("a further controller has no potential; only its command is defined.")

    def slope(self, x):
        output = self.extra.output
        push = output(self.time, self.memory, x) if x.ndim == 1 else batched(output)(self.time, self.memory, x)
        return self.energy.slope(x) - push


class Commanded(ParticlePlant):
    """A plant whose inputs a further controller shares; made by `steered`. `State.memory` is (the plant's, ξ)."""

    plant: ParticlePlant
    temperature: float
    step: Any  # a float; None for the time between records
    extra: Equations = eqx.field(static=True)
    weak_order: ClassVar[int] = 1

    def __init__(self, plant: ParticlePlant, extra: Equations):
        self.plant, self.extra = plant, extra
        self.temperature, self.step = plant.temperature, plant.step

    @property
    def dim(self) -> int:
        """The number of the controller's inputs."""
        return self.extra.ninputs

    @property
    def reference_temperature(self):
        return self.plant.reference_temperature

    def coordinates(self, energy):
        return self.plant.coordinates(energy)

    def lanes(self, dim):
        return self.plant.lanes(dim)

    def admit(self, position, dtype):
        plant, position = self.plant.admit(position, dtype)
        return eqx.tree_at(lambda c: c.plant, self, plant), position

    def warn_if_unstable(self, energy, x):
        self.plant.warn_if_unstable(energy, x)

    def start(self, energy, initial, *, step, **options):
        own = self.plant.step
        if isinstance(self.plant, Driven):
            self.plant.check_energy(energy)
        check_sampling(self.extra, float(step if own is None else own))
        plant = self
        if own is None:
            plant = eqx.tree_at(lambda c: (c.step, c.plant.step), self, (float(step),) * 2, is_leaf=lambda v: v is None)
        return super(Commanded, plant).start(energy, initial, step=step, **options)

    def prepare(self, energy, state, temperature):
        memory = jnp.zeros((self.extra.nstates, state.position.shape[1]), state.position.dtype)
        t = jnp.zeros((), state.position.dtype)
        inner = self.plant.prepare(Pushed(energy, self.extra, t, memory), state, temperature)
        return State(inner.position, inner.lanes, inner.step, (inner.memory, memory))

    def refresh(self, energy, state, temperature):
        inner, memory = state.memory
        now = Pushed(energy, self.extra, self._time(state), memory)
        fresh = self.plant.refresh(now, State(state.position, state.lanes, state.step, inner), temperature)
        return State(state.position, state.lanes, state.step, (fresh.memory, memory))

    def move(self, energy, state, temperature):
        inner, memory = state.memory
        x, t = state.position, self._time(state)
        if getattr(self.plant, "scheme", None) == "adaptive" and not self.extra.discrete:
            x, memory = self._followed(energy, x, memory, t)
            return State(x, state.lanes, state.step, (inner, memory))
        after = self._next(t, x, memory)
        own = State(x, state.lanes, state.step, inner)
        if getattr(self.plant, "scheme", None) == "adaptive":
            return self._held(energy, own, memory, after, t)
        if isinstance(self.plant, KineticLangevin):  # it asks for the force at the end of its step, and keeps it
            command = Pushed(energy, self.extra, t + jnp.asarray(self.step, x.dtype), after)
        else:
            command = Pushed(energy, self.extra, t, memory)
        moved = self.plant.move(command, own, temperature)
        return State(moved.position, moved.lanes, moved.step, (moved.memory, after))

    def _time(self, state: State) -> Any:
        return state.step.astype(state.position.dtype) * jnp.asarray(self.step, state.position.dtype)

    def _seen(self, t: Any, x: Any) -> Any:
        return self.plant.seen(t, x) if isinstance(self.plant, Driven) else x

    def _next(self, t: Any, x: Any, memory: Any) -> Any:
        """ξ a step later: the system's own next state, or Euler's."""
        if not self.extra.nstates:
            return memory
        rate = batched(self.extra.rate)(t, memory, self._seen(t, x))
        return rate if self.extra.discrete else memory + jnp.asarray(self.step, x.dtype) * rate

    def _velocity(self, t: Any, x: Any, u: Any) -> Any:
        return self.plant.equations.rate(t, x, u) if isinstance(self.plant, Driven) else u

    def _followed(self, energy: Energy, x: Any, memory: Any, t: Any) -> tuple[Any, Any]:
        """Plant and controller as one flow."""
        n, extra = x.shape[0], self.extra

        def velocity(s: Any, z: Any) -> Any:
            y = self._seen(s, z[:n])
            u = extra.output(s, z[n:], y) - energy.slope(y)
            return jnp.concatenate([self._velocity(s, z[:n], u), extra.rate(s, z[n:], y)])

        z = self._flow(velocity, jnp.concatenate([x, memory]), t, ())
        return z[:n], z[n:]

    def _held(self, energy: Energy, state: State, memory: Any, after: Any, t: Any) -> State:
        """A flow under a command that is held over the step, as a sampled controller's is."""
        x = state.position
        held = batched(self.extra.output)(t, memory, self._seen(t, x))

        def velocity(s: Any, z: Any, push: Any) -> Any:
            return self._velocity(s, z, push - energy.slope(self._seen(s, z)))

        return State(self._flow(velocity, x, t, (held,)), state.lanes, state.step, (state.memory, after))

    def _flow(self, velocity: Any, z: Any, t: Any, own: tuple) -> Any:
        assert isinstance(self.plant, (Driven, GradientFlow))
        return _adaptive(velocity, z, t, jnp.asarray(self.step, z.dtype), self.plant.tolerance, own)


def steered(plant: Plant, extra: Equations) -> Plant:
    """The plant with a further controller.

    Raises:
        ValueError: the plant moves no particles, or its scheme needs a potential.
    """
    if not isinstance(plant, (Driven, GradientFlow, KineticLangevin, Langevin)):
        raise ValueError(
            f"extra must be None for {type(plant).__name__}: a further controller commands particles, and its command "
            "need be no gradient. Use Langevin, KineticLangevin or GradientFlow."
        )
    if getattr(plant, "scheme", None) == "mala":
        raise ValueError(
            "extra must be None with scheme='mala', whose steps are accepted by a potential: use scheme='euler'."
        )
    if plant.step is not None:
        check_sampling(extra, float(plant.step))
    return Commanded(plant, extra)


def controller(system: Any, dim: int) -> Equations:
    """The equations of a further controller of an energy of this dimension.

    Raises:
        TypeError: it is no python-control system.
        ValueError: it has other numbers of inputs and outputs than the energy has dimensions.
    """
    try:
        found = equations(system)
    except (TypeError, ValueError) as error:
        raise type(error)(f"extra: {error}") from None
    if (found.ninputs, found.noutputs) != (dim, dim):
        raise ValueError(
            f"extra must have {dim} inputs and {dim} outputs, as many as the energy has dimensions; got "
            f"{found.ninputs} inputs and {found.noutputs} outputs."
        )
    return found


def check_sampling(extra: Equations, step: float) -> None:
    """Raise ValueError where a sampled controller has another sampling time than the plant has steps."""
    if extra.discrete and extra.dt is not True and abs(float(extra.dt) - step) > 1e-9 * step:
        raise ValueError(
            f"extra is sampled every {float(extra.dt):g}, but the plant steps by {step:g}. Pass a plant with "
            f"step={float(extra.dt):g}."
        )
