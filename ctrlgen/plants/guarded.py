"""A particle plant under a safety filter: each step is filtered, brought back inside, and recorded."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ctrlgen.constraints import Constraints
from ctrlgen.energies.base import Energy
from ctrlgen.once import once
from ctrlgen.plants import noise
from ctrlgen.plants.base import Plant
from ctrlgen.plants.ensemble import ParticlePlant, State
from ctrlgen.plants.grid import FokkerPlanckGrid
from ctrlgen.plants.particles import GradientFlow, KineticLangevin, Langevin
from ctrlgen.plants.walled import Cut, Walled
from ctrlgen.rows import every, least, total
from ctrlgen.safety.filter import SafetyFilter

TINY = 1e-30  # stands for h where it is not positive: only at a start on the border


class Record(eqx.Module):
    """What a filtered run counts, particle by particle, (n,); None where the mode has no such thing."""

    violated: jax.Array  # int32: steps that ended outside
    lowest: jax.Array  # the least h - level at the end of a step, over all barriers
    corrected: jax.Array | None = None  # int32: steps that were brought back
    active: jax.Array | None = None  # int32: steps with δ ≠ 0
    infeasible: jax.Array | None = None  # int32
    effort: jax.Array | None = None  # (2, n): ∫|δ|² dt, and what its rounding left
    residual: jax.Array | None = None  # worst
    multipliers: jax.Array | None = None  # (m, n): ∫λ dt, a plain sum: good to the rounding of as many terms


class Guarded(ParticlePlant):
    """A plant whose particles are kept in the safe set; made by `guard`."""

    plant: ParticlePlant
    temperature: float
    step: float
    slack: np.ndarray
    filter: SafetyFilter = eqx.field(static=True)
    weak_order: ClassVar[int] = 1

    def __init__(self, plant: ParticlePlant, safety: SafetyFilter):
        self.plant, self.filter, self.slack = plant, safety, safety.slack
        self.temperature, self.step = plant.temperature, plant.step

    @property
    def dim(self) -> int:
        """The dimension of the barriers."""
        return self.filter.dim

    @property
    def scheme(self) -> str | None:
        """That of the plant."""
        return getattr(self.plant, "scheme", None)

    @property
    def reference_temperature(self):
        return self.plant.reference_temperature

    @property
    def reshapes_curvature(self):
        return self.plant.reshapes_curvature

    def lanes(self, dim):
        accepts = isinstance(self.plant, KineticLangevin) and self.filter.mode == "barrier_energy"
        return self.plant.lanes(dim) + accepts

    def stability_limit(self, curvature):
        return self.plant.stability_limit(curvature)

    def effective_hessian(self, hessian, states):
        return self.plant.effective_hessian(hessian, states)

    def accepted(self, memory):
        return self.plant.accepted(memory[0])

    @property
    def constraints(self) -> Constraints:
        """Those of the filter."""
        return self.filter.constraints

    def start(self, energy, initial, **options):
        run = super().start(energy, initial, **options)
        self._warn_of_low_gain()
        return run

    def _warn_of_low_gain(self) -> None:
        """A ball whose centre asks for more than α gives: near it δ is huge, and the program is all but unsolvable."""
        if self.filter.mode != "cbf" or not isinstance(self.plant, Langevin):
            return
        for part in self.constraints:
            if part.shape is None or part.shape.kind != "ball":
                continue
            centre = jnp.asarray(part.shape.vector)[:, None]
            top = part.at(part.shape.vector)
            bend = self.temperature * float(np.asarray(part.curvature(centre, 0.0, self._mobility))[0])
            have = float(np.asarray(self.filter.alpha(jnp.asarray(top)))[0]) + bend
            others = [p for p in self.constraints if p is not part]
            if have < 0 and all(p.at(part.shape.vector)[0] >= 0 for p in others):
                warnings.warn(
                    f"gain is too low for {part!r} at temperature {self.temperature:g}: at its centre α(h) = "
                    f"{have - bend:.3g} is less than -ε tr(K∇²h) = {-bend:.3g}, so that near it corrections are huge "
                    "and the program has no solution. Take a larger gain; SafetyFilter.verify(temperature) decides.",
                    UserWarning,
                    stacklevel=4,
                )

    def admit(self, position, dtype):
        self.plant.admit(position, dtype)
        inside = self.filter.contains(position)
        if self.filter.tube is None and not inside.all():
            h = self.filter.values(position)
            particle, barrier = np.unravel_index(np.argmin(np.where(inside[:, None], np.inf, h)), h.shape)
            raise ValueError(
                f"initial must lie in the safe set; {int((~inside).sum())} of {len(h)} particles do not, the worst is "
                f"particle {particle} with {self.constraints.parts[barrier]!r} = {h[particle, barrier]:.4g}. Draw from "
                "SafetyFilter.restrict(distribution), or let them in by mode='cbf' with tube=<time>."
            )
        cast = position.astype(dtype)
        lost = inside & ~self.filter.contains(cast)
        if lost.any():  # what rounding to the working precision moved out is moved back by as much
            x = jnp.asarray(cast.T)
            back = np.asarray(self.constraints.returned(x, x, 0.0, self.slack, 0.0, False)[0]).T
            cast = np.where(lost[:, None], back, cast)
            still = lost & ~self.filter.contains(cast)
            if still.any():
                raise ValueError(
                    f"dtype must resolve the safe set; rounding to {np.dtype(dtype).name} moves {int(still.sum())} of "
                    f"{len(cast)} particles out of it, and none of that type is near. Pass dtype=np.float64."
                )
        if all(part.field.expr is not None for part in self.constraints):
            return self, cast
        some = np.linspace(0, len(position) - 1, min(len(position), 512)).astype(int)
        seen = self.constraints.calibrate(position[some])
        return eqx.tree_at(lambda g: g.slack, self, np.maximum(self.slack, seen)), cast

    def prepare(self, energy, state, temperature):
        kinetic = isinstance(self.plant, KineticLangevin)
        own = energy if kinetic else self._inner_energy(energy, jnp.zeros((), state.position.dtype))
        lanes, last = noise.cut(state.lanes, self.plant.lanes(self.dim))
        inner = self.plant.prepare(own, State(state.position, lanes, state.step), temperature)
        x, m = state.position, len(self.constraints)
        depth = None
        if self.filter.tube is not None:
            short = 2 * self.constraints.floors(x, 0.0, self.slack) - self.constraints.values(x)
            depth = jnp.maximum(short, 0)
        shape, count = x.shape[1:], jnp.zeros(x.shape[1:], jnp.int32)
        parts: dict[str, Any] = {"violated": count, "lowest": jnp.full(shape, jnp.inf, x.dtype)}
        if self.scheme != "mala" and not isinstance(self.plant, KineticLangevin):
            parts["corrected"] = count
        if self.filter.mode == "cbf":
            parts |= {"active": count, "infeasible": count, "residual": jnp.zeros(shape, x.dtype)}
            parts |= {"effort": jnp.zeros((2, *shape), x.dtype), "multipliers": jnp.zeros((m, *shape), x.dtype)}
        record = Record(**parts)
        return State(inner.position, noise.join(inner.lanes, last), inner.step, (inner.memory, record, depth))

    def move(self, energy, state, temperature):
        memory, record, depth = state.memory
        inner = State(state.position, state.lanes, state.step, memory)
        h = jnp.asarray(self.step, state.position.dtype)
        t = state.step.astype(h.dtype) * h
        levels = self._levels(t + h, depth)[0]
        if isinstance(self.plant, KineticLangevin):
            after, left = self._kinetic(energy, inner, temperature, t), None
        elif self.scheme == "mala":
            energy = self._inner_energy(energy, t)
            if callable(self.filter.mu) and self.filter.mode == "barrier_energy":
                inner = _with_counts(self.plant.prepare(energy, inner, temperature), memory)
            after, left = self.plant.move(energy, inner, temperature), None
        else:
            after, record, left = self._split(energy, inner, temperature, record, depth, t, h)
        record = self._look(record, after.position, t + h, levels, left)
        return State(after.position, after.lanes, after.step, (after.memory, record, depth))

    def _kinetic(self, energy: Energy, state: State, temperature: Any, t: Any) -> State:
        """Free flights that leave are not made; with a barrier a flight is accepted by its ratio of Π h^{μ/ε}."""
        plant, c = self.plant, self.constraints
        assert isinstance(plant, KineticLangevin)
        if self.filter.mode == "reflected":
            return plant.move(energy, state, temperature, lambda k, x, y: c.inside(y, 0.0, self.slack))
        own, last = noise.cut(state.lanes, -1)
        first, last = noise.bits(last)
        second, last = noise.bits(last)
        mu = self._cut(energy, t).mu

        def keep(k: int, x: Any, y: Any) -> Any:
            inside = c.inside(y, 0.0, self.slack)
            ratio = total(jnp.log(jnp.where(inside, c.values(y), 1)) - jnp.log(jnp.maximum(c.values(x), TINY)))
            level = jnp.log(noise.uniform((first, second)[k][0], x.dtype))
            return inside & (level * temperature < jnp.asarray(mu, x.dtype) * ratio)

        after = plant.move(energy, State(state.position, own, state.step, state.memory), temperature, keep)
        return State(after.position, noise.join(after.lanes, last), after.step, after.memory)

    def _split(self, energy, state, temperature, record, depth, t, h) -> tuple[State, Record, Any]:
        """One step by drift and noise, filtered, and brought back."""
        x, plant = state.position, self.plant
        assert isinstance(plant, (Langevin, GradientFlow))
        drift = once(plant.drift(energy, x), state.step)
        if self.filter.mode == "barrier_energy":
            drift = drift + plant.command(self._cut(energy, t).push(x))
        if self.filter.mode == "cbf":
            found = self._program(drift, x, t, temperature, depth)
            record = _recorded(record, found, h)
            drift = drift + found.delta
        if isinstance(plant, Langevin):
            kick, lanes = plant.kick(state.lanes, x, temperature)
            proposal = x + h * drift + kick
        elif plant.scheme == "euler":
            proposal, lanes = x + h * drift, state.lanes
        else:
            proposal, lanes = self._followed(plant, energy, x, t, depth), state.lanes
        levels = self._levels(t + h, depth)[0]
        y, left = self.constraints.returned(proposal, x, t + h, self.slack, levels, self._mirror, self._mobility)
        return State(y, lanes, state.step), record, left

    def _followed(self, plant: GradientFlow, energy: Energy, x: Any, t: Any, depth: Any) -> Any:
        """The filtered flow by an adaptive method: the program is solved at every stage."""

        def velocity(s: Any, y: Any, *own: Any) -> Any:
            column = y[:, None]
            drift = plant.drift(energy, column)
            if self.filter.mode == "cbf":
                drift = drift + self._program(drift, column, s, 0.0, own[0][:, None] if own else None).delta
            else:
                cut = self._cut(energy, s)  # without room: the method finds its own steps
                drift = -eqx.tree_at(lambda c: c.room, cut, jnp.zeros((), column.dtype)).slope(column)
            return drift[:, 0]

        return plant.follow(velocity, x, t, *([] if depth is None else [depth]))

    def _program(self, drift: Any, x: Any, t: Any, temperature: Any, depth: Any) -> Any:
        levels, rise = self._levels(t, depth)
        noisy = isinstance(self.plant, Langevin)
        return self.filter.program(drift, x, t, temperature if noisy else 0, self._mobility, levels, rise)

    def _levels(self, t: Any, depth: Any) -> tuple[Any, Any]:
        """How far the tube is open at a time, ≤ 0, (m, n), and how fast it closes."""
        if depth is None:
            return 0.0, 0.0
        left = jnp.maximum(1 - t / self.filter.tube, 0)
        return -depth * left**2, 2 * depth * left / self.filter.tube

    def _inner_energy(self, energy: Energy, t: Any) -> Energy:
        """The energy that the scheme is given: infinite outside, or with the barrier, cut where steps are too long."""
        if self.filter.mode == "reflected":
            return Walled(energy, self.constraints, self.slack)
        if self.filter.mode == "cbf":
            return energy
        return self._cut(energy, t)

    def _cut(self, energy: Energy, t: Any) -> Cut:
        mu = self.filter.mu(t) if callable(self.filter.mu) else self.filter.mu
        return Cut(energy, self.constraints, self.slack, mu, self.step, self._mobility)

    @property
    def _mobility(self) -> Any:
        return self.plant.mobility if isinstance(self.plant, Langevin) else None

    @property
    def _mirror(self) -> bool:
        chosen = self.filter.correction
        return chosen == "mirror" if chosen is not None else isinstance(self.plant, Langevin)

    def _look(self, record: Record, y: Any, t: Any, levels: Any, left: Any) -> Record:
        short = self.constraints.values(y, t) - levels
        out = ~every(short >= -self.constraints.floors(y, t, self.slack))
        return replace(
            record,
            violated=record.violated + out,
            corrected=None if left is None else _some(record.corrected) + left,
            lowest=jnp.minimum(record.lowest, least(short)),
        )


def guard(plant: Plant, safety: SafetyFilter | None) -> Plant:
    """The plant under a filter; a grid carries its walls in the energy, and is itself.

    Raises:
        ValueError: the filter's mode does not fit the plant.
    """
    if safety is None:
        return plant
    name, mode = type(plant).__name__, safety.mode
    if isinstance(plant, FokkerPlanckGrid):
        if mode == "cbf":
            raise ValueError(
                "safety of a grid must be 'reflected' or 'barrier_energy': a filtered drift is no gradient."
            )
        if callable(safety.mu) and mode == "barrier_energy":
            raise ValueError("mu must be a number for a grid, whose energy is static.")
        safety.check_dim(plant.dim, "plant")
        return plant
    if not isinstance(plant, ParticlePlant):
        raise ValueError(f"safety must be None for {name}, whose density knows no walls. Use particles or a grid.")
    scheme = getattr(plant, "scheme", None)
    if mode == "cbf" and (scheme == "mala" or isinstance(plant, KineticLangevin)):
        why = "no drift acts on positions directly"
        if scheme == "mala":
            why = "a filtered drift has no Metropolis ratio. Or take scheme='euler', with the step that it needs"
        raise ValueError(
            f"mode must be 'reflected' or 'barrier_energy' for {name}{f'({scheme})' if scheme else ''}: {why}."
        )
    if callable(getattr(plant, "mobility", None)) and not (mode == "reflected" and scheme == "mala"):
        raise ValueError(
            f"metric must be constant under a safety filter of mode {mode!r}: what it adds to the drift, and the way "
            "back inside, are worked out for one K. Pass metric=<array>, or scheme='mala' with mode='reflected', which "
            "refuses steps that leave."
        )
    if mode == "cbf" and isinstance(plant, Langevin):
        try:
            safety.constraints.curvatures(jnp.zeros((safety.dim, 1)), 0.0, plant.mobility)
        except ValueError as error:
            raise ValueError(
                f"barriers must be twice differentiable for mode='cbf' with noise, for its term ε tr(K∇²h): {error} "
                "Give one smooth barrier a side, or use another mode."
            ) from None
    if mode == "reflected" and scheme == "adaptive":
        raise ValueError(
            "mode='reflected' needs GradientFlow(scheme='euler'): an adaptive flow does not stop at walls."
        )
    if mode == "reflected" and getattr(plant, "skew", None) is not None:
        raise ValueError(
            "skew must be None with mode='reflected': J∇E flows through the walls, and what they reflect does not "
            "keep the restricted Gibbs measure. Use mode='barrier_energy', whose J∇E_μ runs along them."
        )
    return Guarded(plant, safety)


def recorded(run: Any) -> Record | None:
    """What a run under a filter has counted so far; None for others."""
    return run.remembered(lambda memory: memory[1]) if isinstance(getattr(run, "plant", None), Guarded) else None


def _with_counts(state: State, memory: Any) -> State:
    """A fresh memory of a scheme that proposes, with the count of the old one."""
    return eqx.tree_at(lambda s: s.memory[2], state, memory[2])


def _recorded(record: Record, found: Any, h: Any) -> Record:
    square = total(found.delta * found.delta)
    return replace(
        record,
        active=_some(record.active) + (square > 0),
        infeasible=_some(record.infeasible) + ~found.feasible,
        residual=jnp.maximum(_some(record.residual), found.residual),
        effort=_added(_some(record.effort), (h * square)[None]),
        multipliers=_some(record.multipliers) + h * found.multipliers,
    )


def _some(value: jax.Array | None) -> jax.Array:
    assert value is not None
    return value


def _added(total: jax.Array, term: jax.Array) -> jax.Array:
    """A compensated sum, of any number of steps: the first half of the rows, and what their rounding left."""
    k = term.shape[0]
    value = term + total[k:]
    new = total[:k] + value
    return jnp.concatenate([new, value - (new - total[:k])])
