"""A python-control system as the plant: every particle has the state of the system, and the energy drives its inputs.

Inside, states are (nstates, n). The command is u = -∇E(y) of the outputs y, so the energy's dimension is their number.
"""

from __future__ import annotations

import warnings
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ctrlgen import measure
from ctrlgen.checks import positive
from ctrlgen.energies.base import Energy
from ctrlgen.estimate import Estimate
from ctrlgen.plants import noise
from ctrlgen.plants.ensemble import ParticlePlant, State
from ctrlgen.plants.particles import _adaptive
from ctrlgen.precision import float64
from ctrlgen.system import Equations, equations, is_system

__all__ = ["Driven", "batched", "is_system"]

LOOKED_AT = 8  # initial particles at which the stability of Euler's method is looked at
LARGEST = 64  # states up to which it is


class Driven(ParticlePlant):
    """The system ẋ = f(t, x, u), y = h(t, x), under u = -∇E(y), once for every particle.

    The integrator, control.ss(0, I, I, 0), is the gradient flow, and Langevin with a temperature; a damped double
    integrator is motion with inertia. With a temperature the inputs are noisy: u dt gains √(2ε) dW. Which measure that
    keeps depends on the system; measures of a response are against exp(-E/ε), and are defined where the outputs are the
    states (the energy, everywhere). In `simulate`, `initial` and `response.states` are states of the system.

    Args:
        system: a python-control StateSpace, TransferFunction, NonlinearIOSystem or InterconnectedSystem, as it is now:
            as many inputs as outputs, and no direct feedthrough. What runs neither in JAX nor as formulas is called
            back as Python, row by row, with a warning.
        step: h > 0 [time]; with "adaptive" the interval between states that are kept, and the time between records
            when omitted; in discrete time the sampling time of the system.
        temperature: ε ≥ 0 [energy]; above 0 the noise is Itô's, ∂f/∂u √(2ε) dW, by Euler–Maruyama. In discrete time
            the held command gains √(2ε/h) ξ.
        scheme: "adaptive" (Tsitouras 5(4), each particle with its own steps; the default without noise), or "euler"
            (order 1). Discrete time has no scheme.
        tolerance: relative and absolute, of "adaptive".
        reference_temperature: ε of the Gibbs measure that a response measures against; `temperature`, or 1 if it is 0.

    Raises:
        TypeError: system is no such system.
        ValueError: its sizes do not fit, it has direct feedthrough, or an argument is out of its range.
    """

    temperature: float
    step: Any  # a float; None for the time between records
    reference: float
    scheme: Literal["adaptive", "euler", "discrete"] = eqx.field(static=True)
    tolerance: float = eqx.field(static=True)
    noisy: bool = eqx.field(static=True)
    equations: Equations = eqx.field(static=True)
    weak_order: ClassVar[int] = 1

    def __init__(
        self,
        system: Any,
        step: float | None = None,
        temperature: float = 0.0,
        scheme: Literal["adaptive", "euler"] | None = None,
        tolerance: float = 1e-5,
        reference_temperature: float | None = None,
    ):
        found = self.equations = equations(system)
        _check_sizes(found)
        if not (isinstance(temperature, (int, float, np.number)) and np.isfinite(temperature) and temperature >= 0):
            raise ValueError(f"temperature must be finite and at least 0; got {temperature!r}.")
        self.temperature, self.noisy = float(temperature), float(temperature) > 0
        if scheme not in (None, "adaptive", "euler"):
            raise ValueError(f"scheme must be 'adaptive' or 'euler'; got {scheme!r}.")
        if found.discrete:
            self.scheme, self.step = "discrete", _sampling(found.dt, step, scheme)
        else:
            self.scheme = scheme or ("euler" if self.noisy else "adaptive")
            if self.scheme == "adaptive" and self.noisy:
                raise ValueError("scheme must be 'euler' with temperature > 0: an adaptive method has no noise.")
            if self.scheme == "euler" and step is None:
                raise ValueError("step must be given for scheme='euler' (with temperature > 0 too); got None.")
            self.step = None if step is None else positive("step", step)
        self.tolerance = positive("tolerance", tolerance)
        given = self.temperature or 1.0 if reference_temperature is None else reference_temperature
        self.reference = positive("reference_temperature", given)
        if found.in_python:
            warnings.warn(
                "system has functions that run neither in JAX nor on symbols (they branch on values, or change arrays "
                "in place); they are called row by row, which is slow. Write them with jax.numpy, as jnp.where.",
                UserWarning,
                stacklevel=3,
            )

    @property
    def dim(self) -> int:
        """The number of outputs, which is the energy's dimension."""
        return self.equations.noutputs

    @property
    def reference_temperature(self):
        return self.reference

    def coordinates(self, energy):
        return self.equations.nstates

    def lanes(self, dim):
        return (self.equations.ninputs + 1) // 2 if self.noisy else 0

    def start(self, energy, initial, *, step, **options):
        self.check_energy(energy)
        plant = self
        if self.step is None:
            plant = eqx.tree_at(lambda p: p.step, self, float(step), is_leaf=lambda v: v is None)
        return super(Driven, plant).start(energy, initial, step=step, **options)

    def check_energy(self, energy: Energy) -> None:
        """Raise ValueError for a density feedback that would see states where it expects outputs."""
        if energy.couples and not self.equations.shows_state:
            raise ValueError(
                "controller must be a static energy for a system whose outputs are not its states: a density feedback "
                "sees the density of the states. Use Langevin or GradientFlow."
            )

    def prepare(self, energy, state, temperature):
        return state

    def move(self, energy, state, temperature):
        x, h = state.position, jnp.asarray(self.step, state.position.dtype)
        t = state.step.astype(x.dtype) * h
        if self.scheme == "adaptive":
            return State(_adaptive(self.velocity(energy), x, t, h, self.tolerance, ()), state.lanes, state.step)
        u, kick, lanes = -energy.slope(self.seen(t, x)), None, state.lanes
        if self.noisy:
            xi, lanes = noise.normals(lanes, self.equations.ninputs, x.dtype)
            kick = jnp.sqrt(2 * temperature * h) * xi
        return State(self._stepped(t, x, u, kick, h), lanes, state.step)

    def _stepped(self, t: Any, x: Any, u: Any, kick: Any, h: Any) -> Any:
        rate = batched(self.equations.rate)
        if self.scheme == "discrete":
            return rate(t, x, u if kick is None else u + kick / h)
        if kick is None:
            return x + h * rate(t, x, u)
        drift, noisy = jax.jvp(lambda v: rate(t, x, v), (u,), (kick,))
        return x + h * drift + noisy

    def seen(self, t: Any, x: Any) -> Any:
        """What the controller sees, y: (nstates, ...) -> (dim, ...)."""
        output = self.equations.output
        u = jnp.zeros((self.dim, *x.shape[1:]), x.dtype)
        return output(t, x, u) if x.ndim == 1 else batched(output)(t, x, u)

    def velocity(self, energy: Energy) -> Any:
        """ẋ of one particle as a function (t, x)."""
        return lambda t, x: self.equations.rate(t, x, -energy.slope(self.seen(t, x)))

    def outputs(self, states: Any, time: float = 0.0) -> np.ndarray:
        """y of states of the system, (n, nstates) -> (n, dim)."""
        states = np.asarray(states, dtype=np.float64)
        if states.ndim != 2 or states.shape[1] != self.equations.nstates:
            raise ValueError(f"states must have shape (n, {self.equations.nstates}); got {states.shape}.")
        with float64():
            return np.asarray(self.seen(jnp.asarray(time), jnp.asarray(states.T))).T

    def warn_if_unstable(self, energy, x):
        """Warn where Euler's method turns a decaying mode of the closed loop, at the start, into a growing one."""
        known = self.equations
        if self.scheme != "euler" or known.in_python or known.nstates > LARGEST:
            return
        assert self.step is not None
        some = x[:: max(1, len(x) // LOOKED_AT)][:LOOKED_AT].astype(np.float64)
        with float64():
            slope = jax.jacfwd(lambda y: self.velocity(energy)(jnp.zeros(()), y))
            matrices = np.asarray(jax.vmap(slope)(jnp.asarray(some)))
        modes = np.linalg.eigvals(matrices[np.isfinite(matrices).all(axis=(1, 2))]).ravel()
        falling = modes[modes.real < 0]
        limit = float(np.min(-2 * falling.real / np.abs(falling) ** 2, initial=np.inf))
        if float(self.step) > limit:
            warnings.warn(
                f"step {float(self.step):g} is beyond the stability limit {limit:.4g} of Euler's method (from the "
                f"modes of the closed loop at {len(some)} initial particles). Pass step < {limit:.4g}, or "
                "scheme='adaptive'.",
                UserWarning,
                stacklevel=5,
            )

    def mean_energy(self, state, energy):
        return super().mean_energy(self.outputs(state), energy)

    def kl(self, state, energy, log_partition=None):
        self._need_states("kl")
        return measure.kl(state, energy, self.reference, log_partition=log_partition)

    def free_energy(self, state, energy):
        self._need_states("free_energy")
        return super().free_energy(state, energy)

    def dissipation(self, state: Any, energy: Energy) -> Estimate:
        raise ValueError(
            "dissipation is not defined for a python-control plant: -dV/dt = ε I(ρ‖ρ*) is a law of Langevin's loop. "
            "Use Langevin or GradientFlow where the system is an integrator."
        )

    def _need_states(self, name: str) -> None:
        if not self.equations.shows_state:
            raise ValueError(
                f"{name} is of a density of the energy's argument, and the outputs of this system are not its states. "
                "Pass the outputs: measure.kl(response.plant.outputs(response.final), energy, temperature)."
            )


def batched(function: Any) -> Any:
    """A function of (t, x, u) of one particle as one of x (nstates, n) and u (ninputs, n)."""
    return jax.vmap(function, in_axes=(None, -1, -1), out_axes=-1)


def _check_sizes(system: Equations) -> None:
    if not system.nstates:
        raise ValueError("system must have a state to be a plant; got none. Pass it as extra= of a ClosedLoop.")
    if system.ninputs != system.noutputs or not system.ninputs:
        raise ValueError(
            "system must have as many inputs as outputs, for u = -∇E(y); got "
            f"{system.ninputs} inputs and {system.noutputs} outputs. Choose C (and B) so that they pair."
        )
    if system.feedthrough.any():
        y, u = np.argwhere(system.feedthrough)[0]
        raise ValueError(
            f"system must have no direct feedthrough; output {y} depends at once on input {u}, so that u = -∇E(y) is "
            "an equation for u. Leave D at 0, or put a fast actuator between."
            + (
                " Code that runs only as Python is taken to read u unless it never names it."
                if system.in_python
                else ""
            )
        )


def _sampling(dt: Any, step: float | None, scheme: str | None) -> float:
    """The sampling time; dt = True leaves it open."""
    if scheme is not None:
        raise ValueError(f"scheme must be omitted for a system in discrete time; got {scheme!r}.")
    own = None if dt is True else float(dt)
    if step is None:
        return own or 1.0
    if own is not None and abs(positive("step", step) - own) > 1e-9 * own:
        raise ValueError(f"step must be the sampling time {own:g} of the system, or omitted; got {step!r}.")
    return own or positive("step", step)
