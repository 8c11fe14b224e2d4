"""Energies and closed loops as python-control systems, and python-control systems as plants.

Signals are named: x[j] is coordinate j of the state, x[i,j] that of particle i where there are several; u[j] = -∂E/∂xⱼ
is what an energy commands, and v[j] (v[i,j]) what is added to the command of a loop. All of it computes in float64.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cached_property
from typing import Any

import control
import jax
import jax.numpy as jnp
import numpy as np
import sympy as sp

from ctrlgen.energies.base import Energy
from ctrlgen.field import Field
from ctrlgen.formula import rationalise
from ctrlgen.loop import ClosedLoop
from ctrlgen.plants.driven import Driven, batched
from ctrlgen.plants.gaussian import GaussianPlant, quadratic_form
from ctrlgen.plants.particles import GradientFlow
from ctrlgen.precision import float64
from ctrlgen.scalars import NoFormula
from ctrlgen.system import Equations, Exprs, equations, is_system, substituted

__all__ = ["ExactSystem", "from_control", "to_nlsys"]


def to_nlsys(system: Any, *, particles: int = 1, name: str | None = None, **density: Any) -> Any:
    """An energy or a closed loop as a python-control system, whose linearization is exact.

    An energy is the controller block: no states, inputs x, outputs u = -∇E(x). A closed loop has the states of its
    particles, the command added to -∇E as its inputs (zero unless connected), and its states as outputs; `scheme` and
    `step` of its plant play no part, for python-control integrates. The loop of a GaussianPlant has mean and covariance
    as states (m[j], c[i,j] with i ≤ j), the loop of a FokkerPlanckGrid cell masses. A python-control system is returned
    with exact derivatives, its names kept.

    Certificates read the result exactly, as they read the energy itself; so do `ClosedLoop` and `ct.interconnect`.

    Args:
        system: an Energy, a ClosedLoop, or a python-control system.
        particles: how many a loop has.
        name: of the system, in python-control.
        density: `inputs`, `outputs`, `order` and `states` of a loop on a grid: control potentials, observables, how
            many slow modes (all cells when omitted), as `fokker_planck_ss` takes them.

    Raises:
        TypeError: system is something else, or `density` is given for one that is not a loop on a grid.
        ValueError: the loop has noise, a safety filter or a density feedback; or particles does not fit.
    """
    if not isinstance(particles, (int, np.integer)) or isinstance(particles, bool) or particles < 1:
        raise ValueError(f"particles must be a positive integer; got {particles!r}.")
    if isinstance(system, ClosedLoop) and system.plant.kind == "grid":
        from ctrlgen.interop.density import grid_system

        return grid_system(system, name=name, **density)
    if density:
        raise TypeError(f"{', '.join(sorted(density))}: only of a loop on a grid; got {type(system).__name__}.")
    if isinstance(system, ClosedLoop):
        return _of_loop(system, int(particles), name)
    if particles != 1:
        raise ValueError(
            f"particles must be 1 for {type(system).__name__}: only a loop has particles; got {particles}."
        )
    if isinstance(system, Energy):
        if system.couples:
            raise ValueError(
                "system must be a static energy; a density feedback commands by the density. Pass its energy, or a "
                "loop of it on a FokkerPlanckGrid."
            )
        d = system.dim
        return ExactSystem(Block(system), name=name, states=[], inputs=_labels("x", 1, d), outputs=_labels("u", 1, d))
    if is_system(system):
        known = equations(system)
        if known.in_python:
            raise ValueError(
                "system must run in JAX or on symbols, for its derivatives; it branches on values, or changes arrays "
                "in place. Write it with jax.numpy."
            )
        states = getattr(system, "state_labels", None) or [f"x[{j}]" for j in range(known.nstates)]
        return ExactSystem(
            known, name=name, states=list(states), inputs=list(system.input_labels), outputs=list(system.output_labels)
        )
    raise TypeError(
        f"system must be an Energy, a ClosedLoop or a python-control system; got {type(system).__name__}. "
        "Wrap a function with cg.CallableEnergy(function, dim)."
    )


def from_control(system: Any, step: float | None = None, temperature: float = 0.0, **options: Any) -> Driven:
    """A python-control system as the plant of a `ClosedLoop`: u = -∇E(y) drives its inputs, once for every particle.

    `ClosedLoop(system, energy)` does the same with the defaults. What a `Driven` plant is, it says itself.

    Args:
        system: a StateSpace, TransferFunction, NonlinearIOSystem or InterconnectedSystem, as many inputs as outputs.
        step: h > 0 [time]; the time between records when omitted, without noise.
        temperature: ε ≥ 0 of the noise √(2ε) on the inputs [energy].
        options: scheme ("adaptive" or "euler"), tolerance, reference_temperature.

    Raises:
        TypeError: it is no python-control system with equations in time.
        ValueError: its sizes do not fit, it has direct feedthrough, or an argument is out of its range.
    """
    return Driven(system, step, temperature, **options)


class ExactSystem(control.NonlinearIOSystem):
    """A NonlinearIOSystem whose equations ctrlgen knows: `linearize` differentiates them, and certificates read them.

    Args:
        known: the equations.
        keywords: name, states, inputs and outputs, as python-control takes them.
    """

    def __init__(self, known: Equations, **keywords: Any):
        self.equations = known
        self._calls = _Calls(known)
        static = known.nstates == 0
        keywords = {**keywords, "dt": None if static else known.dt, "states": None if static else keywords["states"]}
        super().__init__(None if static else self._calls.rate, self._calls.output, **keywords)

    def linearize(self, x0, u0=None, t=0, params=None, eps=1e-6, copy_names=False, **kwargs):
        """The linearization at a state and input as a StateSpace, by automatic differentiation; `eps` is not used."""
        if isinstance(x0, control.OperatingPoint):
            x0, u0 = x0.states, (x0.inputs if u0 is None else u0)
        x = _vector("x0", x0, self.equations.nstates)
        u = _vector("u0", 0.0 if u0 is None else u0, self.equations.ninputs)
        matrices = self._calls.matrices(float(t), x, u)
        linear = control.StateSpace(*matrices, self.dt, remove_useless_states=False)
        if copy_names:
            linear._copy_names(self, prefix_suffix_name="linearized")
        return control.StateSpace(linear, **kwargs)

    def __deepcopy__(self, memo: dict) -> ExactSystem:
        """Names are copied; the equations are not, for they do not change."""
        new = copy.copy(self)
        for label in ("input_index", "output_index", "state_index", "params", "_current_params"):
            setattr(new, label, copy.copy(getattr(self, label)))
        return new


def _real(values: Any) -> Any:
    """Numbers without the imaginary parts, all zero, that python-control's eigenvectors have under newer NumPy."""
    if not np.iscomplexobj(values):
        return values
    if np.imag(values).any():
        raise ValueError(f"states and inputs must be real; got {values!r}.")
    return np.real(values)


class _Calls:
    """Equations as python-control calls them: float64 NumPy arrays, one compiled function each."""

    def __init__(self, known: Equations):
        self._known, n = known, known.nstates
        self._rate = jax.jit(lambda z: known.rate(z[-1], z[:n], z[n:-1]))
        self._output = jax.jit(lambda z: known.output(z[-1], z[:n], z[n:-1]))

    def rate(self, t: Any, x: Any, u: Any, params: Any = None) -> np.ndarray:
        """updfcn."""
        with float64():
            return np.asarray(self._rate(self._packed(t, x, u)))

    def output(self, t: Any, x: Any, u: Any, params: Any = None) -> np.ndarray:
        """outfcn."""
        with float64():
            return np.asarray(self._output(self._packed(t, x, u)))

    def _packed(self, t: Any, x: Any, u: Any) -> np.ndarray:
        z = np.empty(self._known.nstates + self._known.ninputs + 1)
        z[: self._known.nstates], z[self._known.nstates : -1], z[-1] = _real(x)[: self._known.nstates], _real(u), t
        return z

    @cached_property
    def _slopes(self) -> Callable:
        rate, output = self._known.rate, self._known.output

        def slopes(t: Any, x: Any, u: Any) -> Any:
            a, b = jax.jacfwd(rate, (1, 2))(t, x, u)
            return a, b, *jax.jacfwd(output, (1, 2))(t, x, u)

        return jax.jit(slopes)

    def matrices(self, t: float, x: np.ndarray, u: np.ndarray) -> list[np.ndarray]:
        """A, B, C, D."""
        with float64():
            a, b, c, d = self._slopes(jnp.asarray(t), jnp.asarray(x), jnp.asarray(u))
            n, m, p = self._known.nstates, self._known.ninputs, self._known.noutputs
            shapes = (n, n), (n, m), (p, n), (p, m)
            return [np.asarray(s).reshape(shape) for s, shape in zip((a, b, c, d), shapes, strict=True)]


# The equations of energies and loops ------------------------------------------------------------------------------


class Block(Equations):
    """The controller block u = -∇E(x): no states."""

    def __init__(self, energy: Energy):
        self.energy, self.nstates = energy, 0
        self.ninputs = self.noutputs = energy.dim

    @cached_property
    def _force(self) -> tuple[Any, Exprs | None, str]:
        states = [sp.Symbol(f"x{j}", real=True) for j in range(self.energy.dim)]
        slope = Field(self.energy, states).gradient()
        return slope.states, None if slope.exprs is None else [-e for e in slope.exprs], slope.why_no_formula

    def force(self, x: Exprs) -> Exprs:
        """-∇E at formulas."""
        states, exprs, why = self._force
        if exprs is None:
            raise NoFormula(why)
        return substituted(exprs, states, x)

    def rate(self, t, x, u):
        return x

    def output(self, t, x, u):
        return -self.energy.slope(u)

    def rate_formulas(self, t, x, u):
        return []

    def output_formulas(self, t, x, u):
        return self.force(u)

    @property
    def feedthrough(self):
        return np.ones((self.noutputs, self.ninputs), dtype=bool)


class Loop(Equations):
    """The closed loop of n particles; the state of each is that of the plant, and then that of the extra controller."""

    def __init__(self, loop: ClosedLoop, particles: int):
        self.plant = None if isinstance(loop.plant, GradientFlow) else loop.plant.equations  # pyright: ignore
        self.extra = None if loop.extra is None else loop._further
        self.block, self.count, self.dim = Block(loop.controller), particles, loop.controller.dim
        self.own = self.dim if self.plant is None else self.plant.nstates
        self.size = self.own + (0 if self.extra is None else self.extra.nstates)
        self.nstates = self.noutputs = particles * self.size
        self.ninputs = particles * self.dim
        self.dt = 0 if self.plant is None else self.plant.dt

    def rate(self, t, x, u):
        z, v = x.reshape(self.count, self.size).T, u.reshape(self.count, self.dim).T
        q, memory = z[: self.own], z[self.own :]
        plant, extra = self.plant, self.extra
        y = q if plant is None else batched(plant.output)(t, q, jnp.zeros_like(v))
        command = v - self.block.energy.slope(y)
        if extra is not None:
            command = command + batched(extra.output)(t, memory, y)
        out = command if plant is None else batched(plant.rate)(t, q, command)
        if extra is not None and extra.nstates:
            out = jnp.concatenate([out, batched(extra.rate)(t, memory, y)])
        return out.T.reshape(-1)

    def output(self, t, x, u):
        return x

    def rate_formulas(self, t, x, u):
        out: Exprs = []
        for i in range(self.count):
            z, v = x[i * self.size : (i + 1) * self.size], u[i * self.dim : (i + 1) * self.dim]
            out += self._one(t, z[: self.own], z[self.own :], v)
        return out

    def _one(self, t: Any, q: Exprs, memory: Exprs, v: Exprs) -> Exprs:
        y = q if self.plant is None else self.plant.output_formulas(t, q, [sp.Integer(0)] * self.dim)
        command = [a + b for a, b in zip(self.block.force(y), v, strict=True)]
        more: Exprs = []
        if self.extra is not None:
            push = self.extra.output_formulas(t, memory, y)
            command = [a + b for a, b in zip(command, push, strict=True)]
            more = self.extra.rate_formulas(t, memory, y)
        return [*(command if self.plant is None else self.plant.rate_formulas(t, q, command)), *more]

    def output_formulas(self, t, x, u):
        return list(x)

    @property
    def feedthrough(self):
        return np.zeros((self.noutputs, self.ninputs), dtype=bool)

    @property
    def in_python(self):
        return any(part is not None and part.in_python for part in (self.plant, self.extra))


class Moments(Equations):
    """Mean and covariance of the Gaussian closed loop: ṁ = b - Pm + v, Ċ = 2εI - PC - CP."""

    def __init__(self, precision: np.ndarray, push: np.ndarray, temperature: float):
        self.precision, self.push, self.temperature = precision, push, temperature
        d = self.ninputs = len(push)
        self.rows, self.columns = np.triu_indices(d)
        self.nstates = self.noutputs = d + len(self.rows)

    def rate(self, t, x, u):
        d, kind = self.ninputs, x.dtype
        p, upper = jnp.asarray(self.precision, kind), jnp.zeros((d, d), kind).at[self.rows, self.columns].set(x[d:])
        covariance = upper + upper.T - jnp.diag(jnp.diagonal(upper))
        half = -p @ covariance
        spread = half + half.T + 2 * jnp.asarray(self.temperature, kind) * jnp.eye(d, dtype=kind)
        mean = jnp.asarray(self.push, kind) - p @ x[:d] + u
        return jnp.concatenate([mean, spread[self.rows, self.columns]])

    def output(self, t, x, u):
        return x

    def rate_formulas(self, t, x, u):
        d = self.ninputs
        p, b = rationalise(sp.Matrix(self.precision)), rationalise(sp.Matrix(self.push))
        at = {(int(i), int(j)): x[d + k] for k, (i, j) in enumerate(zip(self.rows, self.columns, strict=True))}
        covariance = sp.Matrix(d, d, lambda i, j: at[min(i, j), max(i, j)])
        half = -p * covariance
        spread = half + half.T + 2 * rationalise(float(self.temperature)) * sp.eye(d)
        mean = b - p * sp.Matrix(x[:d]) + sp.Matrix(u)
        return [*mean, *(spread[int(i), int(j)] for i, j in zip(self.rows, self.columns, strict=True))]

    def output_formulas(self, t, x, u):
        return list(x)

    @property
    def feedthrough(self):
        return np.zeros((self.noutputs, self.ninputs), dtype=bool)


def _of_loop(loop: ClosedLoop, particles: int, name: str | None) -> Any:
    plant = loop.plant
    if loop.safety is not None:
        raise ValueError("safety must be None: python-control's integrators know no walls. Pass the loop without it.")
    if loop.controller.couples:
        raise ValueError(
            "controller must be a static energy for a loop of particles; a density feedback commands by the density. "
            "Pass a loop on a FokkerPlanckGrid."
        )
    if isinstance(plant, GaussianPlant):
        return _of_moments(loop, particles, name)
    if not isinstance(plant, (GradientFlow, Driven)) or (isinstance(plant, Driven) and plant.noisy):
        raise ValueError(
            "plant must be without noise, for python-control has no integrator of stochastic equations; got "
            f"{type(plant).__name__} at temperature {float(plant.temperature):g}. Use GradientFlow(step) for one "
            "particle's drift, a FokkerPlanckGrid loop or interop.fokker_planck_ss for the density, or GaussianPlant."
        )
    known = Loop(loop, particles)
    if known.in_python:
        raise ValueError(
            "the loop must run in JAX or on symbols, for its derivatives; a system in it branches on values, or "
            "changes arrays in place. Write it with jax.numpy."
        )
    d = known.dim
    states = _labels("x", particles, known.own)
    if known.extra is not None and known.extra.nstates:
        more = _labels("xi", particles, known.extra.nstates)
        pairs = zip(_chunks(states, known.own), _chunks(more, known.extra.nstates), strict=True)
        states = [label for one, other in pairs for label in (*one, *other)]
    return ExactSystem(known, name=name, states=states, outputs=list(states), inputs=_labels("v", particles, d))


def _of_moments(loop: ClosedLoop, particles: int, name: str | None) -> ExactSystem:
    if particles != 1:
        raise ValueError(f"particles must be 1 for a GaussianPlant, which has moments; got {particles}.")
    if loop.schedule is not None and loop.schedule != "static":
        raise ValueError("schedule must be 'static' for a python-control system of the moments; got a function.")
    form = quadratic_form(loop.controller)
    if form is None:
        raise ValueError(f"controller must be quadratic for a GaussianPlant; got {type(loop.controller).__name__}.")
    known = Moments(*form, float(loop.plant.temperature))
    d = known.ninputs
    pairs = zip(known.rows, known.columns, strict=True)
    states = [*_labels("m", 1, d), *(f"c[{i},{j}]" for i, j in pairs)]
    return ExactSystem(known, name=name, states=states, outputs=list(states), inputs=_labels("v", 1, d))


def _labels(letter: str, particles: int, dim: int) -> list[str]:
    if particles == 1:
        return [f"{letter}[{j}]" for j in range(dim)]
    return [f"{letter}[{i},{j}]" for i in range(particles) for j in range(dim)]


def _chunks(labels: list[str], size: int) -> list[list[str]]:
    return [labels[k : k + size] for k in range(0, len(labels), size)]


def _vector(name: str, value: Any, size: int) -> np.ndarray:
    out = np.asarray(value, dtype=np.float64).reshape(-1)
    if out.size == 1 and size != 1:
        out = np.full(size, out[0])
    if out.shape != (size,) or not np.isfinite(out).all():
        raise ValueError(f"{name} must be {size} finite numbers; got {np.asarray(value)!r}.")
    return out
