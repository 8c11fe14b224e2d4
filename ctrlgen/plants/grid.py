"""The density itself as the plant: the Fokker–Planck equation on a box in one to three dimensions.

A density is represented by its cell masses, an array of the grid's shape with sum 1; what the grid itself returns is
a `GridDensity`, which knows its grid. Every measure here is exact for those masses (a plain float), because the Gibbs
masses of a grid are a sum, not an integral.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from scipy import sparse

from ctrlgen.checks import positive
from ctrlgen.energies.base import Energy
from ctrlgen.energies.feedback import DensityFeedback
from ctrlgen.plants.base import Plant, Run
from ctrlgen.plants.finite_volume import TINY, FiniteVolume
from ctrlgen.plants.propagators import PIECES, BackwardEuler, Exponential, constant_pieces

Scheme = Literal["auto", "chebyshev", "implicit"]
Flux = Literal["scharfetter-gummel", "curved"]
BORDER = 1e-3  # mass in the outermost cells, or missing from the box, above which a warning is given
SUM = 1e-6  # how far the sum of given masses may be from 1
OUTSIDE = 1e-12  # initial mass behind walls that is taken for rounding


class GridDensity(np.ndarray):
    """Cell masses that know their grid: an array of the grid's shape, nonnegative, with sum 1, and `.grid`.

    It computes like any array, and what is computed from it is a plain array or scalar: half of a density, a slice or
    a stack of densities is no density. Only a copy, or what was pickled, is one again.

    Args:
        masses: of the grid's shape, copied.
        grid: the FokkerPlanckGrid that they belong to.

    Raises:
        ValueError: the masses do not fit the grid, are negative or not finite, or do not sum to 1.
    """

    grid: FokkerPlanckGrid

    def __new__(cls, masses: Any, grid: FokkerPlanckGrid) -> GridDensity:
        out = np.array(grid._masses(masses), dtype=np.float64).view(cls)
        out.grid = grid
        return out

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        if "out" in options:
            options["out"] = _plain(options["out"])
        return getattr(ufunc, method)(*_plain(inputs), **options)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return func(*_plain(args), **{name: _plain(value) for name, value in kwargs.items()})

    def __getattribute__(self, name: str) -> Any:
        if name in _OF_ARRAYS:
            return getattr(np.ndarray.view(self, np.ndarray), name)
        return super().__getattribute__(name)

    def __getitem__(self, index: Any) -> Any:
        return np.asarray(self)[index]

    def __iter__(self) -> Any:
        return iter(np.asarray(self))

    def copy(self, order: Any = "C") -> GridDensity:
        """The same density, in memory of its own."""
        return GridDensity(np.asarray(self), self.grid)

    def __copy__(self) -> Any:
        return self.copy()

    def __deepcopy__(self, memo: Any) -> Any:
        return self.copy()

    def __reduce__(self) -> tuple:
        return GridDensity, (np.asarray(self), self.grid)


# what a method or a view of a density gives is an array, not a density
_OF_ARRAYS = frozenset(n for n in dir(np.ndarray) if not n.startswith("_")) - {"copy", "dtype", "ndim", "shape", "size"}


def _plain(value: Any) -> Any:
    """Densities as the arrays that they are, in lists and tuples too."""
    if isinstance(value, GridDensity):
        return np.asarray(value)
    if type(value) in (list, tuple):
        return type(value)(map(_plain, value))
    return value


@dataclass(frozen=True, eq=False)
class FokkerPlanckGrid(Plant):
    """∂ρ/∂t = ∇·(ρ∇E) + εΔρ on a box without flux through its border, by finite volumes.

    Scharfetter–Gummel fluxes: mass is conserved, masses stay nonnegative, exp(-E(cell centre)/ε)/Z is an exact
    equilibrium, and the error is of second order in the cell size.

    An energy may be +inf on some cells: hard walls. Such a cell is removed. It holds no mass, nothing flows through its
    faces, and what is exact stays exact on the cells that remain. A wall reflects, as the border does, and stands where
    the faces of removed cells are: one that runs between them, or is curved, is a staircase, and moves results by a
    first order in the cell size. Walls and passages narrower than a cell may be missed.

    Args:
        bounds: (lower, upper) per axis, 1 to 3 axes [length].
        shape: number of cells per axis, at least 3 each.
        temperature: ε > 0 [energy].
        step: time per step; when omitted, the time between records.
        scheme: "chebyshev", exp(tA)ρ to about 1e-12 in L1 whatever the length of the step (see `propagators`);
            "implicit", backward Euler of that step, factorised once: first order, and KL falls at every step;
            "auto", chebyshev when step is omitted and implicit when it is given.
        flux: "scharfetter-gummel"; or "curved", the same with a face weight corrected for the curvature of the
            energy, which has all of the same exact properties and 1.4 to 5 times less error on smooth, well
            resolved energies.

    With a temperature schedule the temperature is constant on each step (on each of 16 equal parts of the time
    between records when there is no step), at its value in the middle; the generator is rebuilt when it changes.

    Raises:
        ValueError: an argument is out of range.

    Reference: Scharfetter and Gummel, IEEE Trans. Electron Devices 16 (1969) 64.
    """

    kind: ClassVar[Literal["particles", "grid", "gaussian"]] = "grid"

    bounds: Sequence[tuple[float, float]]
    shape: Sequence[int]
    temperature: float
    step: float | None = None
    scheme: Scheme = "auto"
    flux: Flux = "scharfetter-gummel"
    _volumes: dict = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        bounds = _pairs(self.bounds)
        shape = _counts(self.shape, len(bounds))
        temperature = positive("temperature", self.temperature)
        step = None if self.step is None else positive("step", self.step)
        for name, choices in (("scheme", Scheme), ("flux", Flux)):
            if getattr(self, name) not in get_args(choices):
                listed = ", ".join(map(repr, get_args(choices)))
                raise ValueError(f"{name} must be one of {listed}; got {getattr(self, name)!r}.")
        object.__setattr__(self, "bounds", bounds)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "temperature", temperature)
        object.__setattr__(self, "step", step)

    def __getstate__(self) -> dict:
        """What is pickled: the arguments, not what was computed for the last energy."""
        return {**self.__dict__, "_volumes": {}}

    # The grid -------------------------------------------------------------------------------------

    @property
    def dim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @cached_property
    def spacing(self) -> tuple[float, ...]:
        """Cell width per axis [length]."""
        return tuple((upper - lower) / n for (lower, upper), n in zip(self.bounds, self.shape, strict=True))

    @cached_property
    def volume(self) -> float:
        """Volume of a cell; mass / volume is a density."""
        return float(np.prod(self.spacing))

    @cached_property
    def axes(self) -> tuple[np.ndarray, ...]:
        """Cell centres along each axis."""
        pairs = zip(self.bounds, self.spacing, self.shape, strict=True)
        return tuple(lower + h * (np.arange(n) + 0.5) for (lower, _), h, n in pairs)

    @cached_property
    def cells(self) -> np.ndarray:
        """Cell centres, (*shape, d)."""
        return np.stack(np.meshgrid(*self.axes, indexing="ij"), axis=-1)

    # The operator of an energy ---------------------------------------------------------------------

    def gibbs(self, energy: Energy) -> GridDensity:
        """The Gibbs masses exp(-E/ε)/Z at the cell centres, shape `shape`, sum 1; 0 where E is +inf."""
        masses = np.exp(self._volume(energy).log_gibbs)
        return GridDensity(masses / masses.sum(), self)

    def generator(self, energy: Energy) -> sparse.csc_matrix:
        """A of dm/dt = A m, sparse (N, N) with cells in C order [1/time]; its columns sum to 0.

        The rows and columns of cells where E is +inf are empty.
        """
        return self._volume(energy).generator.copy()

    def spectrum(self, energy: Energy, k: int = 4) -> np.ndarray:
        """The k slowest eigenvalues of the generator, (k,), from the slowest on [1/time]; the 0 of ρ* is left out.

        They are those of the cells where E is finite. If walls leave these in several parts without connection, mass
        never passes from one to another: the first eigenvalues are 0, exactly, one for each part but one.

        Resolved to about 1e-15 of the generator's norm: a smaller gap is only known to be that small.

        Raises:
            ValueError: k is not between 1 and the number of cells where E is finite - 1.
        """
        volume = self._volume(energy)
        parts = volume.components
        cells = sum(map(len, parts))
        if not 1 <= k < cells:
            where = "" if volume.walls is None else " where the energy is finite"
            raise ValueError(f"k must be between 1 and the number of cells{where} - 1 = {cells - 1}; got {k}.")
        if len(parts) > k:
            return np.zeros(k)
        matrix = volume.symmetric
        if volume.walls is None:
            return self._slowest(matrix, cells, k)
        slowest = [self._slowest(matrix[part][:, part], len(part), k) for part in parts]
        values = [np.zeros(len(parts) - 1), *slowest]
        return np.sort(np.concatenate(values))[::-1][:k]

    def _slowest(self, matrix: sparse.csc_matrix, cells: int, k: int) -> np.ndarray:
        """The k slowest eigenvalues of the symmetrised generator of connected cells, or all, without the 0 of ρ*."""
        if cells <= max(200, 2 * k + 2):
            values = np.linalg.eigvalsh(matrix.toarray())
        else:
            from scipy.sparse.linalg import eigsh

            shift = self.temperature / sum((upper - lower) ** 2 for lower, upper in self.bounds) * 1e-2
            start = np.random.default_rng(0).standard_normal(cells)
            values = eigsh(matrix, k=k + 1, sigma=shift, which="LM", v0=start, return_eigenvectors=False)
        return np.minimum(np.sort(values)[::-1][1 : k + 1], 0.0)

    def _volume(self, energy: Energy, factor: float = 1.0) -> FiniteVolume:
        """The discretised operator; kept for the last energy, which every measure of a response asks for again."""
        if self._volumes.get("energy") is not energy:
            values = self._energies(energy)
            self._volumes.clear()
            self._volumes.update(energy=energy, values=values)
        if factor == 1.0 and "static" in self._volumes:
            return self._volumes["static"]
        curved = self.flux == "curved"
        volume = FiniteVolume(self._volumes["values"], self.spacing, self.temperature * factor, curved)
        if factor == 1.0:
            self._volumes["static"] = volume
        return volume

    def _energies(self, energy: Energy) -> np.ndarray:
        if not isinstance(energy, Energy):
            raise TypeError(
                f"energy must be an Energy; got {type(energy).__name__}. "
                "Wrap a function in CallableEnergy(function, dim)."
            )
        if energy.dim != self.dim:
            raise ValueError(f"energy is {energy.dim}-dimensional but this grid has {self.dim} axes; they must agree.")
        points = self.cells.reshape(-1, self.dim)
        values = np.asarray(energy(points))
        bad = np.flatnonzero(~(values > -np.inf))
        if bad.size:
            raise ValueError(
                f"energy must be finite, or +inf behind a wall, on every cell; it is {values[bad[0]]} at "
                f"x = {points[bad[0]].tolist()} and neither on {bad.size} of {len(points)} cells. "
                "Choose bounds inside its domain."
            )
        if values.min() == np.inf:
            raise ValueError(
                f"energy is +inf on every cell of {list(self.bounds)}: nothing is left of the plant. Choose bounds "
                "around the set where it is finite, or smaller cells."
            )
        return values.reshape(self.shape)

    # Densities -------------------------------------------------------------------------------------

    def discretise(self, density: Any) -> GridDensity:
        """Cell masses, shape `shape`, of a distribution (by its `.log_density` at the cell centres) or of
        particles (n, d) (a histogram).

        Warns:
            UserWarning: the density at the cell centres does not sum to 1 within 1e-3: the box is too small for it,
                or the cells too wide.

        Raises:
            ValueError: particles of another shape, not finite, or outside the box; a density of another dimension,
                or none of whose mass is in the box.
        """
        if not hasattr(density, "log_density"):
            return GridDensity(self._histogram(density), self)
        dim = getattr(density, "dim", self.dim)
        if dim != self.dim:
            raise ValueError(f"the density is {dim}-dimensional but this grid has {self.dim} axes; they must agree.")
        log_density = np.asarray(density.log_density(self.cells.reshape(-1, self.dim)), dtype=np.float64)
        masses = np.exp(log_density).reshape(self.shape) * self.volume
        total = float(masses.sum())
        if not (np.isfinite(total) and total > 0):
            raise ValueError(
                f"the density has no finite mass on the grid (its sum over the cells is {total}). "
                "Choose bounds around it, or smaller cells."
            )
        if abs(total - 1) > BORDER:
            warnings.warn(
                f"The density sums to {total:.4g} over the cells instead of 1, and is normalised: the box leaves out "
                "part of it, or the cells are too wide for it.",
                stacklevel=2,
            )
        return GridDensity(masses / total, self)

    def _histogram(self, points: Any) -> np.ndarray:
        points = np.asarray(points, dtype=np.float64)
        if points.ndim != 2 or points.shape[1] != self.dim or len(points) == 0:
            raise ValueError(f"particles must have shape (n, {self.dim}); got shape {points.shape}.")
        if not np.isfinite(points).all():
            bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
            raise ValueError(f"particles must be finite; {bad.size} of {len(points)} are not, the first is {bad[0]}.")
        lower, upper = np.array(self.bounds).T
        outside = int(np.sum(((points < lower) | (points > upper)).any(axis=1)))
        if outside:
            raise ValueError(
                f"{outside} of {len(points)} particles are outside the box {list(self.bounds)}. Choose larger bounds."
            )
        return np.histogramdd(points, bins=list(self.shape), range=list(self.bounds))[0] / len(points)

    def _masses(self, masses: Any, name: str = "density") -> np.ndarray:
        masses = np.asarray(masses, dtype=np.float64)
        if masses.shape != self.shape:
            raise ValueError(f"{name} must be cell masses of the grid's shape {self.shape}; got shape {masses.shape}.")
        if not np.isfinite(masses).all():
            raise ValueError(f"{name} must be finite; {int(np.sum(~np.isfinite(masses)))} cells are not.")
        if masses.min() < 0:
            raise ValueError(f"{name} must not be negative; its smallest cell mass is {masses.min():.3g}.")
        total = float(masses.sum())
        if abs(total - 1) > SUM:
            raise ValueError(
                f"{name} must be cell masses with sum 1; got sum {total:.6g}. Density values are multiplied by the "
                "cell volume (grid.volume) and divided by their sum."
            )
        return masses

    # Measures --------------------------------------------------------------------------------------

    def moments(self, state: Any) -> tuple[np.ndarray, np.ndarray]:
        """Mean (d,) and covariance (d, d) of the masses at the cell centres."""
        masses = self._masses(state).ravel()
        points = self.cells.reshape(-1, self.dim)
        mean = masses @ points
        centred = points - mean
        return mean, (centred * masses[:, None]).T @ centred

    def mean_energy(self, state: Any, energy: Energy) -> float:
        """E_ρ[E] [energy]; inf if there is mass where E is."""
        volume = self._volume(energy)
        return volume.average(self._masses(state), volume.energy)

    def kl(self, state: Any, energy: Energy) -> float:
        """Σ m log(m/ρ*) against the Gibbs masses [nats]; exact, also where those underflow.

        Mass where E is +inf makes it inf.
        """
        return self._volume(energy).kl(self._masses(state))

    def dissipation(self, state: Any, energy: Energy) -> float:
        """-dKL/dt along dm/dt = A m [nats/time], exact for the discrete equation and never negative.

        An empty cell beside an occupied one makes it infinite; empty cells are taken to hold 2e-308. Mass where E is
        +inf does not move, and adds nothing.
        """
        return self._volume(energy).dissipation(self._masses(state))

    def free_energy(self, state: Any, energy: Energy) -> float:
        """Σ m E + ε Σ m log(m/volume) [energy]; inf if there is mass where E is."""
        masses = self._masses(state)
        entropy = np.sum(masses * np.log(np.maximum(masses, TINY) / self.volume))
        return float(self.mean_energy(masses, energy) + self.temperature * entropy)

    # Runs ------------------------------------------------------------------------------------------

    def start(
        self,
        energy: Energy,
        initial: Any,
        *,
        step: float,
        key: Any = 0,
        particles: int = 10_000,
        schedule: Callable | None = None,
        dtype: Any = None,
    ) -> GridRun:
        """Check the initial density and make a run.

        Args:
            energy: the controller block.
            initial: cell masses of the grid's shape; a distribution with `.log_density`, or else with
                `.sample(key, n)`; or particles (n, d).
            step: time per step of the run, for a grid without a step of its own.
            key, particles: used only where a distribution has to be sampled.
            schedule: t -> factor on the temperature, or None for static.
            dtype: not used; a grid is float64.

        Warns:
            UserWarning: more than 1e-3 of the initial or of the Gibbs mass is in the outermost cells, where no wall of
                the energy stands at the border.

        Raises:
            ValueError: the initial density does not fit the grid, or the energy does not; more than 1e-12 of the
                initial density is on cells where the energy is +inf (less is rounding, and taken away).
            TypeError: energy is not an Energy.
        """
        static = self._volume(energy)
        masses = self._inside(static, self._initial(initial, key, particles))
        for name, density in (("initial density", masses), ("Gibbs measure", np.exp(static.log_gibbs))):
            if (mass := self._border_mass(density)) > BORDER and (mass := self._cut_mass(energy, density)) > BORDER:
                warnings.warn(
                    f"The grid is too small: {mass:.2g} of the {name} is in its outermost cells, where the border "
                    "reflects it. Choose larger bounds.",
                    stacklevel=2,
                )
        if isinstance(energy, DensityFeedback):
            return SteeredGridRun(self, energy, masses, self.step or float(step), schedule)
        return GridRun(self, energy, masses, self.step or float(step), schedule)

    def _initial(self, initial: Any, key: Any, particles: int) -> np.ndarray:
        if hasattr(initial, "log_density"):
            return np.asarray(self.discretise(initial))
        if hasattr(initial, "sample"):
            return self._histogram(initial.sample(key, particles))
        shape = np.shape(initial)
        if shape != self.shape and len(shape) == 2 and shape[1] == self.dim:
            return self._histogram(initial)
        masses = self._masses(initial, "initial density")
        return masses / masses.sum()

    def _inside(self, volume: FiniteVolume, masses: np.ndarray) -> np.ndarray:
        """Masses without what rounding left on removed cells."""
        if volume.walls is None:
            return masses
        outside = float(masses[volume.walls].sum())
        if outside > OUTSIDE:
            raise ValueError(
                f"{outside:.3g} of the initial density is on cells where the energy is +inf, which hold no mass. "
                "Restrict the start to the safe set: set grid.discretise(initial) to 0 where the energy at grid.cells "
                "is +inf, and divide by the sum."
            )
        if outside > 0:
            masses = np.where(volume.walls, 0.0, masses)
            masses = masses / masses.sum()
        return masses

    def _border_mass(self, masses: np.ndarray) -> float:
        return float(masses.sum() - masses[(slice(1, -1),) * self.dim].sum())

    def _cut_mass(self, energy: Energy, masses: np.ndarray) -> float:
        """The mass in outermost cells, without those beyond whose outer faces a wall of the energy stands."""
        cut = np.zeros(self.shape, dtype=bool)
        for axis in range(self.dim):
            for end, side in ((0, -1), (-1, 1)):
                face = (slice(None),) * axis + (end,)
                beyond = self.cells[face].reshape(-1, self.dim) + side * self.spacing[axis] * np.eye(self.dim)[axis]
                cut[face] |= ~np.isposinf(np.asarray(energy(beyond))).reshape(cut[face].shape)
        return float(masses[cut].sum())


class GridRun(Run):
    """Cell masses under way. Made by `FokkerPlanckGrid.start`."""

    def __init__(
        self, plant: FokkerPlanckGrid, energy: Energy, masses: np.ndarray, step: float, schedule: Callable | None
    ):
        self.step, self.done = step, 0
        self._plant, self._energy, self._masses, self._schedule = plant, energy, masses, schedule
        self._implicit = plant.scheme == "implicit" or (plant.scheme == "auto" and plant.step is not None)
        self._pieces = 1 if plant.step is not None else PIECES
        self._built: tuple[Any, Any] = (None, None)

    def snapshot(self) -> GridDensity:
        return GridDensity(self._masses, self._plant)

    def advance(self, counts: Sequence[int]) -> list[GridDensity]:
        snapshots = []
        for count in counts:
            self._take(int(count))
            snapshots.append(self.snapshot())
        return snapshots

    def _take(self, count: int) -> None:
        if self._implicit and self._schedule is None:
            for _ in range(count):
                self._masses = self._propagator(1.0, self.step)(self._masses)
                self.done += 1
            return
        pieces = constant_pieces(self._schedule, self.done * self.step, self.step, count, self._pieces)
        for factor, span in pieces:
            if self._implicit:
                h = self.step / self._pieces
                for _ in range(round(span / h)):
                    self._masses = self._propagator(factor, h)(self._masses)
            else:
                self._masses = self._propagator(factor, None)(self._masses, span)
        self.done += count

    def _propagator(self, factor: float, step: float | None) -> Any:
        """exp(tA), or backward Euler of `step`, at this factor on the temperature: built once, kept while it lasts."""
        if self._built[0] != (factor, step):
            volume = self._plant._volume(self._energy, factor)
            self._built = ((factor, step), Exponential(volume) if step is None else BackwardEuler(volume, step))
        return self._built[1]


class SteeredGridRun(GridRun):
    """Cell masses under a density feedback: each command is held for its period, or for the grid's own step."""

    def __init__(
        self,
        plant: FokkerPlanckGrid,
        energy: DensityFeedback,
        masses: np.ndarray,
        step: float,
        schedule: Callable | None,
    ):
        super().__init__(plant, energy.energy, masses, step, schedule)
        points = plant.cells.reshape(-1, plant.dim)
        self._feedback, self._static = energy, plant._volume(energy.energy).energy
        self._tilts = np.stack([phi(points).reshape(plant.shape) for phi in energy.inputs], axis=-1)
        self._observed = energy.observable.table(plant)
        self._pieces = max(1, int(np.ceil(step / energy.period))) if plant.step is None else 1

    def _take(self, count: int) -> None:
        h = self.step / self._pieces
        for k in range(count * self._pieces):
            factor = 1.0
            if self._schedule is not None:
                ((factor, _),) = constant_pieces(self._schedule, self.done * self.step + k * h, h, 1, 1)
            u = self._feedback._command(self._masses.ravel() @ self._observed)
            plant, values = self._plant, self._static + self._tilts @ u
            volume = FiniteVolume(values, plant.spacing, plant.temperature * factor, plant.flux == "curved")
            if self._implicit:
                self._masses = BackwardEuler(volume, h)(self._masses)
            else:
                self._masses = Exponential(volume)(self._masses, h)
        self.done += count


def _pairs(bounds: Any) -> tuple[tuple[float, float], ...]:
    try:
        out = np.asarray(bounds, dtype=np.float64)
    except (TypeError, ValueError):
        out = np.empty(0)
    if out.ndim != 2 or out.shape[-1] != 2 or not 1 <= len(out) <= 3:
        raise ValueError(
            f"bounds must be one (lower, upper) pair per axis, 1 to 3 axes, as in [(-4, 4), (-4, 4)]; got {bounds!r}."
        )
    pairs = tuple((float(lower), float(upper)) for lower, upper in zip(out[:, 0], out[:, 1], strict=True))
    for axis, (lower, upper) in enumerate(pairs):
        if not (np.isfinite([lower, upper]).all() and lower < upper):
            raise ValueError(f"bounds must be finite with lower < upper; axis {axis} has ({lower}, {upper}).")
    return pairs


def _counts(shape: Any, axes: int) -> tuple[int, ...]:
    numbers = np.atleast_1d(np.asarray(shape))
    counts = [int(n) for n in numbers.ravel()] if np.issubdtype(numbers.dtype, np.integer) else []
    if numbers.ndim != 1 or len(counts) != axes or min(counts) < 3:
        raise ValueError(
            f"shape must be {axes} integers of at least 3, one for each of the {axes} axes of bounds; got {shape!r}."
        )
    return tuple(counts)
