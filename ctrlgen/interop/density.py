"""The density as a system of python-control: state space about the Gibbs measure, and the bilinear system itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ctrlgen.energies.base import Energy
from ctrlgen.energies.feedback import DensityFeedback, potentials
from ctrlgen.gibbs import Gibbs
from ctrlgen.loop import ClosedLoop
from ctrlgen.modes.base import SlowModes
from ctrlgen.modes.grid import GridModes, grid_modes
from ctrlgen.modes.sampled import sampled_modes
from ctrlgen.plants.ensemble import ParticlePlant
from ctrlgen.plants.finite_volume import FiniteVolume
from ctrlgen.plants.grid import FokkerPlanckGrid

if TYPE_CHECKING:
    import control

SAMPLES = 20_000  # drawn of the Gibbs measure, where none are given


def slow_modes(
    energy: Energy,
    plant: Any,
    order: int = 10,
    *,
    samples: Any = None,
    functions: Sequence[Any] = (),
    key: int = 0,
    **options: Any,
) -> SlowModes:
    """The slowest modes of the density's dynamics, in which it is a linear plant.

    Args:
        energy: E.
        plant: a FokkerPlanckGrid, whose own generator is used; particles (`Langevin`), for modes from samples of the
            Gibbs measure in a space of features, in any dimension; or modes that are there already.
        order: r ≥ 1, how many.
        samples: (n, d) of the Gibbs measure, for particles; drawn by `Gibbs` when omitted.
        functions: further features for particles, as `inputs` of `fokker_planck_ss`.
        key: seed.
        options: `degree` and `bumps` of `modes.sampled_modes`.

    Raises:
        TypeError: plant is none of these.
        ValueError: there are fewer modes, or arguments do not fit.
    """
    _static(energy)
    order = _order(order)
    if isinstance(plant, SlowModes):
        if plant.energy.dim != energy.dim:
            raise ValueError(f"modes must be of {energy.dim} dimensions, as the energy is; got {plant.energy.dim}.")
        return plant.truncated(min(order, plant.order))
    if isinstance(plant, FokkerPlanckGrid):
        return grid_modes(energy, plant, order)
    if not isinstance(plant, ParticlePlant) or plant.temperature <= 0:
        raise TypeError(
            f"plant must be a FokkerPlanckGrid, particles at a temperature > 0, or modes; got {type(plant).__name__}."
        )
    if getattr(plant, "mobility", None) is not None or getattr(plant, "skew", None) is not None:
        raise ValueError("plant must have no metric and no skew: its modes are those of the plain loop.")
    x = Gibbs(energy, plant.temperature).sample(key, SAMPLES) if samples is None else samples
    given = potentials(list(functions), energy, "functions") if len(functions) else ()
    return sampled_modes(energy, plant.temperature, x, order, given, key=key, **options)


def fokker_planck_ss(
    energy: Energy,
    plant: Any,
    inputs: Sequence[Any],
    outputs: Sequence[Any] | None = None,
    order: int = 10,
    *,
    states: Sequence[Any] | None = None,
    feedthrough: bool = False,
    name: str = "fokker_planck",
    **options: Any,
) -> control.StateSpace:
    """Density transport about its Gibbs measure as a python-control state space, in its slow modes.

    ż = Λz + Bu, y = Cz with z the coordinates of the density in the slow modes, u the weights of the control potentials
    (the energy is E + Σuⱼφⱼ) and yᵢ = E_ρ[gᵢ] - E_ρ*[gᵢ]. Signals are named z[k], u[φ] and y[g], with formulas as
    names where they are short, else numbers.

    Args:
        energy: E, static.
        plant: as in `slow_modes`; a FokkerPlanckGrid as a rule.
        inputs: control potentials φⱼ: energies, formulas (SymPy or strings) or JAX functions.
        outputs: functions gᵢ likewise; the modes themselves when omitted.
        order: r ≥ 1.
        states: names of the states in formulas; those of the energy's own formula, or x1, ..., xd, when omitted.
        feedthrough: give the modes that are left out their static response, as D ≠ 0: then the gain at frequency 0 is
            that of the whole plant, -Cov_ρ*(gᵢ, φⱼ)/ε. Without it they are left out altogether.
        name: of the system.
        options: as in `slow_modes`.

    Raises:
        TypeError, ValueError: as `slow_modes`; or inputs and outputs are not such functions.

    Reference: Breiten, Kunisch and Pfeiffer, ESAIM: COCV 24 (2018) 741.
    """
    import control

    phi = potentials(inputs, _static(energy), "inputs", states)
    g = None if outputs is None else potentials(outputs, energy, "outputs", states)
    modes = slow_modes(energy, plant, order, **_with_functions(plant, options, phi, g))
    b, _ = modes.steer(phi)
    c = np.eye(modes.order) if g is None else modes.overlap(g).T
    names = [f"y[{k}]" for k in range(modes.order)] if outputs is None else _names("y", outputs)
    d = np.zeros((len(c), len(phi)))
    if feedthrough and g is not None:
        d = (c @ modes.overlap(phi) - modes.covariance(g, phi)) / modes.temperature
    return control.StateSpace(
        np.diag(modes.rates), b, c, d, inputs=_names("u", inputs), outputs=names,
        states=[f"z[{k}]" for k in range(modes.order)], name=name,
    )  # fmt: skip


def grid_system(
    loop: ClosedLoop,
    inputs: Sequence[Any] | None = None,
    outputs: Sequence[Any] | None = None,
    order: int | None = None,
    *,
    states: Sequence[Any] | None = None,
    name: str | None = None,
) -> control.NonlinearIOSystem:
    """The loop of a grid as a python-control system: the whole bilinear plant, or its slow modes.

    Without `order` the states are the cell masses ρ[k] in C order, ρ̇ = A(E + Σuⱼφⱼ)ρ; that is linear in ρ, and in u up
    to the second order of the cells. With it, z[k]: ż = Λz + Bu + Σ uⱼNⱼz. Outputs are yᵢ = E_ρ[gᵢ] - E_ρ*[gᵢ]. A loop
    under a density feedback is closed, and u is what is added to its command.

    Args:
        loop: on a FokkerPlanckGrid, without filter, schedule and extra controller.
        inputs: control potentials φⱼ; those of the feedback when omitted, none for a static energy.
        outputs: functions gᵢ; the states when omitted.
        order: r ≥ 1; None for all cells.
        states: names of the states in formulas, as in `fokker_planck_ss`.
        name: of the system.

    Raises:
        ValueError: the loop is none of these, or an argument does not fit.
    """
    grid, controller = loop.plant, loop.controller
    if not isinstance(grid, FokkerPlanckGrid):
        raise ValueError(f"inputs, outputs and order are of grid loops; this one is of a {type(grid).__name__}.")
    if loop.safety is not None or loop.extra is not None or loop.schedule not in (None, "static"):
        raise ValueError("loop must have no safety filter, no extra controller and no schedule, to be a plain plant.")
    feedback = controller if isinstance(controller, DensityFeedback) else None
    energy = controller if feedback is None else feedback.energy
    if feedback is not None and inputs is not None:
        raise ValueError("inputs must be omitted under a density feedback, which has its own.")
    phi = feedback.inputs if feedback is not None else potentials(inputs, energy, "inputs", states) if inputs else ()
    g = None if outputs is None else potentials(outputs, energy, "outputs", states)
    named = _names("u", inputs) if inputs else [f"u[{j}]" for j in range(len(phi))]
    if order is None:
        plant: _Cells | _Modes = _Cells(grid, energy, phi, g, feedback)
    else:
        plant = _Modes(grid_modes(energy, grid, _order(order)), phi, g, feedback)
    letter, size = ("ρ", plant.size) if order is None else ("z", plant.size)
    signals = {
        "inputs": named,
        "states": [f"{letter}[{k}]" for k in range(size)],
        "outputs": _names("y", outputs) if outputs is not None else [f"y[{k}]" for k in range(size)],
    }
    return _density_system(plant, signals, name or "fokker_planck")


def _density_system(plant: _Cells | _Modes, signals: dict, name: str) -> control.NonlinearIOSystem:
    import control

    class DensitySystem(control.NonlinearIOSystem):
        """Density transport; `linearize` is exact, and `command` is what a feedback in it commands."""

        def linearize(self, x0, u0=None, t=0, params=None, eps=1e-6, copy_names=False, **kwargs):
            """The linearization at a density and input as a StateSpace, by exact derivatives; `eps` is not used."""
            if isinstance(x0, control.OperatingPoint):
                x0, u0 = x0.states, (x0.inputs if u0 is None else u0)
            x = np.broadcast_to(np.asarray(x0, dtype=np.float64).ravel(), (plant.size,))
            u = np.broadcast_to(
                np.asarray(0.0 if u0 is None else u0, dtype=np.float64).ravel(), (len(signals["inputs"]),)
            )
            linear = control.StateSpace(*plant.matrices(x, u), remove_useless_states=False)
            if copy_names:
                linear._copy_names(self, prefix_suffix_name="linearized")
            return control.StateSpace(linear, **kwargs)

    def rate(t: Any, x: Any, u: Any, params: Any) -> np.ndarray:
        return plant.rate(np.asarray(x), np.atleast_1d(u)[: len(signals["inputs"])])

    def output(t: Any, x: Any, u: Any, params: Any) -> np.ndarray:
        return plant.output(np.asarray(x))

    return DensitySystem(rate, output, name=name, dt=0, **signals)


class _Cells:
    """ρ̇ = A(E + Σuⱼφⱼ)ρ on all cells."""

    def __init__(self, grid: FokkerPlanckGrid, energy: Energy, phi: Any, g: Any, feedback: DensityFeedback | None):
        points = grid.cells.reshape(-1, grid.dim)
        self._grid, self._static = grid, grid._volume(energy)
        self._tilts = [np.asarray(f(points)).reshape(grid.shape) for f in phi]
        self._gibbs = np.asarray(grid.gibbs(energy)).ravel()
        self._read = np.eye(len(points)) if g is None else np.stack([np.asarray(f(points)) for f in g])
        self._law = None if feedback is None else _Law(feedback, feedback.observable.table(grid).T)
        self.size = len(points)

    def _volume(self, u: np.ndarray) -> FiniteVolume:
        tilted = self._static.energy + sum((w * t for w, t in zip(u, self._tilts, strict=True)), 0.0)
        return FiniteVolume(tilted, self._grid.spacing, self._grid.temperature, self._grid.flux == "curved")

    def rate(self, x: np.ndarray, u: np.ndarray) -> np.ndarray:
        total = u if self._law is None else u + self._law.command(x)
        volume = self._static if not total.any() else self._volume(total)
        return volume.generator @ x

    def output(self, x: np.ndarray) -> np.ndarray:
        return self._read @ (x - self._gibbs)

    def matrices(self, x: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, ...]:
        total = u if self._law is None else u + self._law.command(x)
        volume = self._volume(total)
        a = volume.generator.toarray()
        b = np.stack([volume.derivative(t) @ x for t in self._tilts], axis=1) if self._tilts else np.zeros((len(x), 0))
        if self._law is not None:
            a = a + b @ self._law.slope(x)
        return a, b, self._read, np.zeros((len(self._read), b.shape[1]))


class _Modes:
    """ż = Λz + Bu + Σ uⱼNⱼz on the slow modes."""

    def __init__(self, modes: GridModes, phi: Any, g: Any, feedback: DensityFeedback | None):
        r = self.size = modes.order
        self._rates = modes.rates
        self._b, self._n = modes.steer(phi) if phi else (np.zeros((r, 0)), np.zeros((0, r, r)))
        self._read = np.eye(r) if g is None else modes.overlap(g).T
        self._law = None
        if feedback is not None:
            weights, mean = modes.projected(feedback.observable.table(modes.grid))
            self._law = _Law(feedback, weights.T, mean)

    def rate(self, x: np.ndarray, u: np.ndarray) -> np.ndarray:
        total = u if self._law is None else u + self._law.command(x)
        return self._rates * x + self._b @ total + np.einsum("j,jkl,l->k", total, self._n, x)

    def output(self, x: np.ndarray) -> np.ndarray:
        return self._read @ x

    def matrices(self, x: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, ...]:
        total = u if self._law is None else u + self._law.command(x)
        a = np.diag(self._rates) + np.einsum("j,jkl->kl", total, self._n)
        b = self._b + np.einsum("jkl,l->kj", self._n, x)
        if self._law is not None:
            a = a + b @ self._law.slope(x)
        return a, b, self._read, np.zeros((len(self._read), b.shape[1]))


class _Law:
    """u = clip(offset - base - Qx, ±limit): a feedback's command of a state."""

    def __init__(self, feedback: DensityFeedback, weights: np.ndarray, base: Any = 0.0):
        self._offset, self._limit, self._weights = feedback.offset - base, feedback.limit, weights

    def command(self, x: np.ndarray) -> np.ndarray:
        return np.clip(self._offset - self._weights @ x, -self._limit, self._limit)

    def slope(self, x: np.ndarray) -> np.ndarray:
        """du/dx, (m, size): 0 in the rows of inputs that are saturated."""
        free = np.abs(self._offset - self._weights @ x) < self._limit
        return np.where(free[:, None], -self._weights, 0.0)


def _with_functions(plant: Any, options: dict, *functions: Any) -> dict:
    """Control potentials and outputs are good features of a data-driven basis."""
    if not isinstance(plant, ParticlePlant) or "functions" in options:
        return options
    return {**options, "functions": [f for group in functions if group is not None for f in group]}


def _order(order: Any) -> int:
    if isinstance(order, bool) or not isinstance(order, (int, np.integer)) or order < 1:
        raise ValueError(f"order must be an integer of at least 1; got {order!r}.")
    return int(order)


def _static(energy: Any) -> Energy:
    if not isinstance(energy, Energy):
        raise TypeError(
            f"energy must be an Energy; got {type(energy).__name__}. Wrap a function in CallableEnergy(function, dim)."
        )
    if energy.couples:
        raise TypeError("energy must be static; got a density feedback. Pass its .energy.")
    return energy


def _names(letter: str, functions: Sequence[Any]) -> list[str]:
    """Signal names: formulas where they are short names of their own, numbers elsewhere."""
    words = [str(f).replace(" ", "") if not callable(f) or hasattr(f, "free_symbols") else "" for f in functions]
    fit = [0 < len(w) <= 12 and all(c.isalnum() or c in "_*+-/()" for c in w) for w in words]
    out = [f"{letter}[{w}]" if ok else f"{letter}[{k}]" for k, (w, ok) in enumerate(zip(words, fit, strict=True))]
    return out if len(set(out)) == len(out) else [f"{letter}[{k}]" for k in range(len(out))]
