"""The Gibbs measure of an energy as a distribution: its density, its normalisation, its factors, and draws from it.

It stands where any distribution may stand: it starts a closed loop, a grid discretises it, `measure` compares with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, ClassVar

import numpy as np

from ctrlgen import measure
from ctrlgen.checks import positive
from ctrlgen.datasets import Distribution, Gaussian
from ctrlgen.energies.algebra import Composition, parted
from ctrlgen.energies.analytic import GaussianMixture
from ctrlgen.energies.base import EXACT_LAPLACIAN_DIM, Energy
from ctrlgen.energies.mixture import MixtureEnergy
from ctrlgen.energies.safe_sets import depths, tops
from ctrlgen.energies.trained import TrainedEnergy
from ctrlgen.estimate import Estimate
from ctrlgen.loop import ClosedLoop, generate
from ctrlgen.measure.partition import cells
from ctrlgen.measure.restricted import Behind, log_envelope, log_factor
from ctrlgen.plants.gaussian import quadratic_form
from ctrlgen.plants.particles import Langevin

_GRID_DIM = 3  # up to which densities are cut into cells
_MARGIN = 1.1  # of the envelope of a cell over the largest density seen in it
_STEPS = 2000  # of MALA, where nothing better is known
_SHARE = 1e-3  # of draws that are kept behind walls: below it they are made in another way
_PILOT = 8192  # draws that tell that share
_ROUNDS = 200  # of draws, each of as many as are expected to be enough

Draw = Callable[[np.random.Generator, int], np.ndarray]


@dataclass(frozen=True, eq=False, repr=False)
class Gibbs(Distribution):
    """The probability measure ρ* = exp(-E/ε)/Z.

    `.sample` is exact for quadratic energies, for Gaussian mixtures at their temperature and for mixtures of such. It
    is rejection from cells in up to three dimensions, and approximate above: a trained energy's own closed loop at its
    temperature, MALA elsewhere. `.method` says which.

    Behind walls (`Walls` or a `LogBarrier` among the terms) it draws from the measure without them and keeps what is
    inside, a draw at a barrier with the probability Π (h_j/max h_j)^{μ/ε}: exact where that measure is drawn from
    exactly. Where fewer than one draw in a thousand is kept: rejection from cells in up to three dimensions, MALA
    inside the walls above.

    Args:
        energy: E.
        temperature: ε > 0 [energy].

    Raises:
        TypeError: energy is not an Energy.
        ValueError: temperature is not positive, or the energy is quadratic and has no Gibbs measure; from everything
            that needs log Z: none was found; behind walls: no point inside them was found.
    """

    name: ClassVar[str] = "gibbs"

    energy: Energy
    temperature: float

    def __post_init__(self) -> None:
        if not isinstance(self.energy, Energy):
            raise TypeError(f"energy must be an Energy; got {type(self.energy).__name__}.")
        object.__setattr__(self, "temperature", positive("temperature", self.temperature))
        form = quadratic_form(self.energy)
        if form is not None:
            values, vectors = np.linalg.eigh(form[0])
            if values[0] <= 1e-14 * abs(values[-1]):
                raise ValueError(
                    f"energy has no Gibbs measure: its quadratic form has the eigenvalue {values[0]:.3g} along "
                    f"{np.array2string(vectors[:, 0], precision=3, threshold=8)}, so exp(-E/ε) is not integrable. "
                    "Add a confining term."
                )

    @property
    def dim(self) -> int:
        """d, the number of coordinates."""
        return self.energy.dim

    @cached_property
    def bounds(self) -> np.ndarray:  # pyright: ignore[reportIncompatibleVariableOverride]
        """(2, d), corners of a box that holds all but 1e-6 of the mass; above three dimensions for quadratics only."""
        if self._gaussian is not None:
            return self._gaussian.bounds
        if self.dim > _GRID_DIM:
            raise ValueError(f"bounds are known in at most {_GRID_DIM} dimensions; this energy has {self.dim}.")
        found = self._cells[0]
        order = np.argsort(found.value)
        held = order[np.cumsum(found.value[order]) > 1e-7 * found.value.sum()]
        low, high = (found.centre - found.half)[held], (found.centre + found.half)[held]
        return np.stack([low.min(axis=0), high.max(axis=0)])

    def plot(self, ax: Any = None, **view: Any) -> Any:
        """Draw exp(-E/ε), in more than two dimensions over a plane: see `ctrlgen.plot.gibbs`."""
        from ctrlgen import plot

        return plot.gibbs(self, ax, **view)

    @property
    def factors(self) -> tuple[tuple[Energy, float], ...]:
        """(Eᵢ, wᵢ) with ρ* ∝ Π ρᵢ^{wᵢ} and ρᵢ ∝ exp(-Eᵢ/ε): the terms of a composition, or the energy itself.

        A factor need not be integrable: an observation of some coordinates alone is not.
        """
        if isinstance(self.energy, Composition):
            return tuple(zip(self.energy.terms, map(float, self.energy.weights), strict=True))
        return ((self.energy, 1.0),)

    @cached_property
    def components(self) -> tuple[tuple[Gibbs, float], ...]:
        """(ρₖ*, mₖ) with ρ* = Σ mₖ ρₖ*: the terms of a mixture at its temperature, or this measure itself."""
        energy, temperature = self._core
        if not isinstance(energy, MixtureEnergy) or energy.temperature != temperature:
            return ((self, 1.0),)
        parts = [Gibbs(term, temperature) for term in energy.terms]
        logs = energy.offsets + np.array([float(part.log_partition) for part in parts])
        masses = np.exp(logs - logs.max())
        return tuple(zip(parts, (masses / masses.sum()).tolist(), strict=True))

    @cached_property
    def log_partition(self) -> Estimate:
        """log Z = log ∫ exp(-E/ε) dx [nats]: a closed form where there is one, else `measure.log_partition`: quadrature
        in up to three dimensions, annealing above.
        """
        energy, temperature = self._core
        known = energy.log_partition(temperature)
        if known is None and self._gaussian is not None:
            log_det = float(np.linalg.slogdet(2 * math.pi * self._gaussian.covariance)[1])
            known = 0.5 * log_det - float(energy(self._gaussian.mean)) / temperature
        if known is not None:
            return Estimate(float(known))
        if self.dim > _GRID_DIM:
            return measure.log_partition(energy, temperature)
        found, total, error = self._cells
        return Estimate(math.log(total) - found.scaled.lowest, error / total)

    @property
    def method(self) -> str:
        """How `.sample` draws."""
        return self._sampler[0]

    def _log_density(self, x: np.ndarray) -> np.ndarray:
        return -np.asarray(self.energy(x)) / self.temperature - float(self.log_partition)

    def _draw(self, generator: np.random.Generator, n: int) -> np.ndarray:
        return self._sampler[1](generator, n)

    @cached_property
    def _core(self) -> tuple[Energy, float]:
        """The same measure without an outer factor: exp(-wE/ε) is the Gibbs measure of E at ε/w."""
        energy, temperature = self.energy, self.temperature
        while isinstance(energy, Composition) and len(energy.terms) == 1 and energy.weights[0] > 0:
            energy, temperature = energy.terms[0], temperature / float(energy.weights[0])
        return energy, temperature

    @cached_property
    def _gaussian(self) -> Gaussian | None:
        form = quadratic_form(self.energy)
        if form is None:
            return None
        covariance = np.linalg.inv(form[0])
        return Gaussian(np.linalg.solve(*form), self.temperature * (covariance + covariance.T) / 2)

    @property
    def _exact(self) -> bool:
        """Whether draws are exact, and cheap to begin with."""
        energy, temperature = self._core
        mixed = isinstance(energy, GaussianMixture) and energy.temperature == temperature
        return self._gaussian is not None or mixed

    @cached_property
    def _cells(self) -> Any:
        return cells(*self._core)

    @cached_property
    def _sampler(self) -> tuple[str, Draw]:
        energy, temperature = self._core
        if self._gaussian is not None:
            return "exact, a Gaussian", self._gaussian._draw
        if isinstance(energy, GaussianMixture) and energy.temperature == temperature:
            return "exact, a mixture of Gaussians", lambda generator, n: energy.sample(_seed(generator), n)
        if parted(energy).sets:
            return self._behind_walls(energy, temperature)
        if len(self.components) > 1:
            how = "; ".join(dict.fromkeys(part.method for part, _ in self.components))
            return f"a term by its mass, then from the term ({how})", self._draw_components
        if self.dim <= _GRID_DIM:
            return "rejection from cells", _Rejection(self._cells[0])
        if isinstance(energy, TrainedEnergy) and energy.temperature == temperature:
            return "its own closed loop (approximate)", lambda generator, n: generate(energy, n, _seed(generator))
        return f"MALA, {_STEPS} steps from the lowest point found (approximate)", self._draw_chain

    def _behind_walls(self, energy: Energy, temperature: float) -> tuple[str, Draw]:
        behind = Behind(energy)
        _ = behind.deep  # or there is nothing to draw
        kept = _Kept(behind, temperature) if behind.parts.rest is not None else None
        if kept is not None and kept.share >= _SHARE:
            words = "what is inside the walls is kept"
            if behind.barriers:
                words = "kept with the probability Π (h/max h)^{μ/ε}"
            return f"{kept.whole.method}, {words}", kept
        if self.dim <= _GRID_DIM:
            return "rejection from cells", _Rejection(self._cells[0])
        how = f"MALA inside the walls, {_STEPS} steps from the deepest point found (approximate)"
        return how, lambda generator, n: self._draw_inside(behind, generator, n)

    def _draw_inside(self, behind: Behind, generator: np.random.Generator, n: int) -> np.ndarray:
        energy, temperature = self._core
        curvature = 1e-6
        if behind.free is not None:
            curvature = max(float(np.asarray(behind.free.laplacian(behind.deep))) / self.dim, curvature)
        depth = float(depths(behind.constraints, behind.deep[None])[0])
        if not math.isfinite(float(energy(behind.deep))):
            raise ValueError(
                f"energy is not finite at {behind.deep.tolist()}, a point inside its walls: no start there."
            )
        step, xi = self.dim ** (-1 / 3) / curvature, generator.standard_normal((512, self.dim))
        while np.isfinite(np.asarray(energy(behind.deep + math.sqrt(2 * temperature * step) * xi))).mean() < 0.5:
            step /= 2
        radius = depth * generator.random(n) ** (1 / self.dim) / 2
        start = generator.standard_normal((n, self.dim))
        start = behind.deep + radius[:, None] * start / np.linalg.norm(start, axis=1, keepdims=True)
        start = np.where(np.isfinite(np.asarray(energy(start)))[:, None], start, behind.deep)
        loop = ClosedLoop(Langevin(temperature, step, scheme="mala"), energy)
        response = loop.simulate(start, _STEPS * step, key=_seed(generator), record=2, throw=True)
        return np.asarray(response.final, np.float64)

    def _draw_components(self, generator: np.random.Generator, n: int) -> np.ndarray:
        parts, masses = zip(*self.components, strict=True)
        label = generator.choice(len(parts), size=n, p=masses)
        out = np.empty((n, self.dim))
        for k, part in enumerate(parts):
            if (mine := label == k).any():
                out[mine] = part._draw(generator, int(mine.sum()))
        return out

    def _draw_chain(self, generator: np.random.Generator, n: int) -> np.ndarray:
        from scipy.optimize import minimize

        energy, temperature = self._core
        lowest = minimize(energy, np.zeros(self.dim), jac=energy.gradient, method="L-BFGS-B").x
        if self.dim <= EXACT_LAPLACIAN_DIM:
            curvature = float(np.linalg.eigvalsh(energy.hessian(lowest))[-1])
        else:
            curvature = 2 * float(energy.laplacian(lowest)) / self.dim
        curvature = max(curvature, 1e-6)
        step = self.dim ** (-1 / 3) / curvature
        start = lowest + math.sqrt(temperature / curvature) * generator.standard_normal((n, self.dim))
        loop = ClosedLoop(Langevin(temperature, step, scheme="mala"), energy)
        response = loop.simulate(start, _STEPS * step, key=_seed(generator), record=2, throw=True)
        return np.asarray(response.final, np.float64)

    def __repr__(self) -> str:
        words = " · ".join(
            f"exp(-{'' if w == 1 else f'{w:g} '}{getattr(term, 'name', type(term).__name__)}/ε)"
            for term, w in self.factors
        )
        return f"<Gibbs, {self.dim}-D: {words}, ε = {self.temperature:g}>"


class _Kept:
    """Draws from the measure without walls, of which those inside are kept; behind a barrier with Π (h/max h)^{μ/ε}.

    Args:
        behind: the energy's walls, and another term.
        temperature: ε.

    `share` is about the share that is kept: 0 where there is no measure without walls, h has no known maximum, or cells
    of the energy with its walls do better.
    """

    def __init__(self, behind: Behind, temperature: float) -> None:
        self.behind, self.temperature, self.share, self.most = behind, temperature, 0.0, 0.0
        assert behind.parts.rest is not None
        for weight, term in behind.barriers:
            known = [top for top in tops(term.constraints) if top is not None]
            if len(known) < len(term.constraints):
                return
            self.most += weight / temperature * sum(map(math.log, known))
        try:
            self.whole = Gibbs(behind.parts.rest, temperature)
            if behind.dim > _GRID_DIM or self.whole._exact:
                self.share = float(self._looked_at(np.random.default_rng(0), _PILOT)[1].mean())
        except ValueError:  # no measure without walls
            self.share = 0.0

    def _looked_at(self, generator: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        x = self.whole._draw(generator, n)
        return x, np.log(generator.random(n)) < log_factor(self.behind, x, self.temperature) - self.most

    def __call__(self, generator: np.random.Generator, n: int) -> np.ndarray:
        kept: list[np.ndarray] = []
        for _ in range(_ROUNDS):
            missing = n - sum(map(len, kept))
            if missing <= 0:
                return np.concatenate(kept)[:n]
            x, good = self._looked_at(generator, min(int(1.2 * missing / self.share) + 64, 1_000_000))
            kept.append(x[good])
        raise ValueError(f"only {sum(map(len, kept))} of {n} draws were found inside the walls; ask for fewer.")


class _Rejection:
    """Draws from cells: one in proportion to its envelope, a uniform point in it, kept if it is below the density.

    The envelope of a cell is the largest density on a lattice in it, and a margin of a tenth. Where the density rises
    above it the draws fall short; the quadrature over these cells is good to 1e-6, which leaves little room for that.
    In a cell that a wall may cut it is that of the density without the wall, times a bound of h^{μ/ε}.
    """

    def __init__(self, found: Any) -> None:
        self.scaled, self.centre, self.half = found.scaled, found.centre, found.half
        cut, behind = np.zeros(len(self.centre), bool), self.scaled.behind
        if behind is not None:
            low, high = behind.ranges(self.centre, self.half)[:2]
            near = (high >= 0).all(axis=0)
            self.centre, self.half, cut = self.centre[near], self.half[near], (low < 0).any(axis=0)[near]
        lattice = np.array(list(product(np.linspace(-1, 1, 5 if found.scaled.dim < 3 else 3), repeat=found.scaled.dim)))
        points = self.centre[:, None, :] + self.half[:, None, :] * lattice
        top = -self.scaled(points.reshape(-1, points.shape[-1])).reshape(len(points), -1).min(axis=1)
        if behind is not None and cut.any():
            flat = points[cut].reshape(-1, points.shape[-1])
            top[cut] = -self.scaled.rest(flat).reshape(cut.sum(), -1).min(axis=1)
            top[cut] += log_envelope(behind, self.scaled.temperature, self.centre[cut], self.half[cut])
        self.top = top + math.log(_MARGIN)
        weight = np.exp(self.top - self.top.max()) * np.prod(2 * self.half, axis=1)
        self.ladder = np.cumsum(weight) / weight.sum()

    def __call__(self, generator: np.random.Generator, n: int) -> np.ndarray:
        kept: list[np.ndarray] = []
        while (missing := n - sum(map(len, kept))) > 0:
            count = int(1.3 * missing) + 64
            cell = np.minimum(np.searchsorted(self.ladder, generator.random(count), side="right"), len(self.ladder) - 1)
            x = self.centre[cell] + self.half[cell] * generator.uniform(-1, 1, (count, self.centre.shape[1]))
            kept.append(x[np.log(generator.random(count)) < -self.scaled(x) - self.top[cell]])
        return np.concatenate(kept)[:n]


def _seed(generator: np.random.Generator) -> int:
    return int(generator.integers(2**31))
