"""Controller blocks that see the density: E + Σ uⱼφⱼ with inputs u that are a function of the density itself.

A static energy commands -∇E of a state. A density feedback adds control potentials whose weights u are means over the
density, saturated: uⱼ = clip(-(E_ρ[qⱼ] - offsetⱼ), ±limitⱼ). Where u = 0 at the Gibbs measure of E, that stays the
measure of the loop.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import sympy as sp

from ctrlgen.energies.base import Energy, _trace, default_states
from ctrlgen.energies.symbolic import CallableEnergy, SymbolicEnergy
from ctrlgen.precision import float64


def potentials(values: Any, energy: Energy, name: str, states: Sequence[Any] | None = None) -> tuple[Energy, ...]:
    """Functions of the state, each as an energy of the dimension of `energy`.

    Args:
        values: a sequence of energies, formulas (SymPy or strings), or JAX functions (d,) -> scalar.
        energy: the energy whose states they are of; formulas use the names of its own formula, else x1, ..., xd.
        name: what errors call them.
        states: names for formulas, where others are meant.

    Raises:
        ValueError: there are none, or one is not such a function of d states.
    """
    if isinstance(values, (Energy, str, sp.Basic)) or callable(values) or not isinstance(values, Sequence):
        raise ValueError(
            f"{name} must be a list of functions of the state: energies, formulas or JAX functions; "
            f"got {type(values).__name__}. Pass [{name.rstrip('s')}] for a single one."
        )
    if not values:
        raise ValueError(f"{name} must have at least one function; got none.")
    names = state_names(energy) if states is None else states
    out = []
    for k, value in enumerate(values):
        try:
            if isinstance(value, Energy):
                found = value
            elif callable(value) and not isinstance(value, sp.Basic):
                found = CallableEnergy(value, energy.dim)
            else:
                found = SymbolicEnergy(value, names)
        except ValueError as error:
            raise ValueError(f"{name}[{k}]: {error}") from None
        if found.dim != energy.dim:
            raise ValueError(f"{name}[{k}] must be {energy.dim}-dimensional, as the energy is; got {found.dim}.")
        out.append(found)
    return tuple(out)


def state_names(energy: Energy) -> tuple[Any, ...]:
    """The names of the states in the energy's own formula, or x1, ..., xd."""
    inside: list[Any] = [energy]
    while inside:
        part = inside.pop(0)
        if isinstance(part, SymbolicEnergy):
            return tuple(part.field.given)
        for value in vars(part).values():
            inside += [v for v in (value if isinstance(value, tuple) else (value,)) if isinstance(v, Energy)]
    return default_states(None, energy.dim)


class Tilted(Energy):
    """E + Σ uⱼφⱼ, with u as data: what a density feedback commands at one instant.

    Args:
        energy: E.
        inputs: the φⱼ.
        command: u, (m,) [energy / unit of φ].
    """

    energy: Energy
    inputs: tuple[Energy, ...]
    command: Any
    dim: int = eqx.field(static=True)

    def __init__(self, energy: Energy, inputs: Sequence[Energy], command: Any):
        self.energy, self.inputs, self.command, self.dim = energy, tuple(inputs), command, energy.dim

    @property
    def footprint(self) -> int:
        return max(part.footprint for part in (self.energy, *self.inputs))

    def potential(self, x):
        u = jnp.asarray(self.command, x.dtype)
        return sum((u[j] * phi.potential(x) for j, phi in enumerate(self.inputs)), self.energy.potential(x))

    def slope(self, x):
        u = jnp.asarray(self.command, x.dtype)
        return sum((u[j] * phi.slope(x) for j, phi in enumerate(self.inputs)), self.energy.slope(x))


class Observable(eqx.Module):
    """Functions of the state whose means over the density are fed back."""

    @abstractmethod
    def columns(self, x: jax.Array) -> jax.Array:
        """q, (d, n) -> (m, n), in the type of x; JAX-traceable."""

    def table(self, grid: Any) -> np.ndarray:
        """q on the cells of a grid, (N, m), so that its mean is a sum over the cell masses."""
        with float64():
            return np.asarray(_columns(self, jnp.asarray(grid.cells.reshape(-1, grid.dim).T))).T


class Generated(Energy):
    """Lφ = εΔφ - ∇E·∇φ as a function of the state, of mean 0 under ρ*.

    Args:
        energy: E.
        function: φ.
        temperature: ε.
    """

    energy: Energy
    function: Energy
    temperature: float
    dim: int = eqx.field(static=True)

    def __init__(self, energy: Energy, function: Energy, temperature: float):
        self.energy, self.function, self.temperature, self.dim = energy, function, float(temperature), energy.dim

    def potential(self, x):
        along = jnp.sum(self.energy.slope(x) * self.function.slope(x), axis=0)
        return jnp.asarray(self.temperature, x.dtype) * _trace(self.function, x) - along


class Scaled(Observable):
    """qⱼ = kⱼLφⱼ; on a grid its own generator takes the place of L, so that the mean under its ρ* is 0 there too.

    Args:
        functions: Lφ.
        gains: k, (m,).
    """

    functions: tuple[Generated, ...]
    gains: Any

    def columns(self, x):
        gains = jnp.asarray(self.gains, x.dtype)
        return jnp.stack([gains[j] * g.potential(x) for j, g in enumerate(self.functions)])

    def table(self, grid):
        points = grid.cells.reshape(-1, grid.dim)
        columns = [grid.generator(g.energy).T @ np.asarray(g.function(points)) for g in self.functions]
        return np.stack(columns, axis=1) * np.asarray(self.gains)


class DensityFeedback(Energy):
    """The controller block E + Σ uⱼφⱼ with uⱼ = clip(-(E_ρ[qⱼ] - offsetⱼ), ±limitⱼ), ρ the density of the loop.

    As an energy it is E, whose Gibbs measure the loop is measured against; a closed loop asks it for its command. Made
    by `interop.density_feedback`, or of any observable.

    Args:
        energy: E.
        inputs: control potentials φⱼ, m of them, as `potentials` takes them.
        observable: the q, m of them, the gain included.
        limit: (m,) or a number > 0, at which the inputs saturate [energy / unit of φ].
        offset: (m,), E_ρ*[q]; zero when omitted.
        period: how long a command is held, in whole steps of a plant that has a step [time].
        temperature: ε of the Gibbs measure at which the command vanishes, which has to be the plant's; None for any.
        law: the name of the design.
        design: what the design knows of itself, with `.verify(feedback, ...)`; or None.

    Raises:
        TypeError: energy is not a static energy.
        ValueError: an argument has another shape or sign.
    """

    energy: Energy
    inputs: tuple[Energy, ...]
    observable: Observable
    limit: np.ndarray
    offset: np.ndarray
    period: float = eqx.field(static=True)
    temperature: float | None = eqx.field(static=True)
    law: str = eqx.field(static=True)
    design: Any = eqx.field(static=True)
    dim: int = eqx.field(static=True)

    def __init__(
        self, energy: Energy, inputs: Any, observable: Observable, *, limit: Any, offset: Any = None,
        period: float = 0.01, temperature: float | None = None, law: str = "custom", design: Any = None,
    ):  # fmt: skip
        if not isinstance(energy, Energy) or energy.couples:
            raise TypeError(f"energy must be an energy without density feedback; got {type(energy).__name__}.")
        self.energy, self.dim = energy, energy.dim
        self.inputs, self.observable = potentials(inputs, energy, "inputs"), observable
        m = len(self.inputs)
        self.limit = np.broadcast_to(np.asarray(limit, dtype=np.float64), (m,)).copy()
        self.offset = np.zeros(m) if offset is None else np.asarray(offset, dtype=np.float64)
        if not ((self.limit > 0) & np.isfinite(self.limit)).all():
            raise ValueError(
                f"limit must be positive and finite, a number or one for each of the {m} inputs; got {limit!r}."
            )
        if self.offset.shape != (m,) or not np.isfinite(self.offset).all():
            raise ValueError(f"offset must be {m} finite numbers, one for each input; got {offset!r}.")
        if not (np.isfinite(period) and period > 0):
            raise ValueError(f"period must be positive and finite; got {period!r}.")
        self.period, self.law, self.design = float(period), law, design
        self.temperature = None if temperature is None else float(temperature)

    # As an energy it is E -------------------------------------------------------------------------------------------

    @property
    def footprint(self) -> int:
        return max(part.footprint for part in (self.energy, *self.inputs))

    def potential(self, x):
        return self.energy.potential(x)

    def slope(self, x):
        return self.energy.slope(x)

    def log_partition(self, temperature: float) -> float | None:
        return self.energy.log_partition(temperature)

    def symbolic(self, states: Any = None) -> Any:
        raise TypeError("A density feedback has no formula: its command depends on the density. Use .energy for E.")

    @property
    def couples(self) -> bool:
        return True

    def commanded(self, x: jax.Array) -> jax.Array:
        """u of the particles x, (d, n) -> (m,), in the type of x; JAX-traceable."""
        return self._command(jnp.mean(self.observable.columns(x), axis=1))

    def under(self, command: Any) -> Tilted:
        """The static energy under a command u, (m,): E + Σ uⱼφⱼ."""
        return Tilted(self.energy, self.inputs, command)

    # The command ----------------------------------------------------------------------------------------------------

    def command(self, density: Any) -> np.ndarray:
        """u of a density, (m,) [energy / unit of φ]: of particles (n, d), or of a grid density.

        Raises:
            ValueError: particles of another shape.
        """
        grid = getattr(density, "grid", None)
        if grid is not None:
            return self._command(np.asarray(density).ravel() @ self.observable.table(grid))
        x = np.asarray(density, dtype=np.float64)
        if x.ndim != 2 or x.shape[1] != self.dim or not len(x):
            raise ValueError(f"density must be particles (n, {self.dim}) or a grid density; got shape {x.shape}.")
        with float64():
            return self._command(np.asarray(_columns(self.observable, jnp.asarray(x.T))).mean(axis=1))

    def _command(self, mean: Any) -> Any:
        if isinstance(mean, np.ndarray):
            return np.clip(self.offset - mean, -self.limit, self.limit)
        limit = jnp.asarray(self.limit, mean.dtype)
        return jnp.clip(jnp.asarray(self.offset, mean.dtype) - mean, -limit, limit)

    def verify(self, **options: Any) -> Any:
        """Where the closed loop's density tends to the Gibbs measure: a verdict, as the design knows it.

        Raises:
            TypeError: this feedback was not made by a design that knows.
        """
        if self.design is None:
            raise TypeError("This feedback has no design to verify: make it with interop.density_feedback.")
        return self.design.verify(self, **options)

    def __repr__(self) -> str:
        limits = ", ".join(f"{v:.4g}" for v in self.limit)
        return f"DensityFeedback({self.law}, {len(self.inputs)} inputs, limits ±({limits}), of {self.energy!r})"


@eqx.filter_jit
def _columns(observable: Observable, x: jax.Array) -> jax.Array:
    return observable.columns(x)
