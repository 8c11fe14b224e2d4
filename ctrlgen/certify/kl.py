"""V(ρ) = KL(ρ‖ρ*), the Lyapunov functional of the closed loop, for every representation of a density.

Along ∂ρ/∂t = ∇·(ρ∇E) + εΔρ its derivative is V̇ = -εI(ρ‖ρ*); along the deterministic flow ∂ρ/∂t = ∇·(ρ∇E) it is
E_ρ[ΔE] - E_ρ|∇E|²/ε, of either sign. Cell masses and Gaussians under quadratic energies give exact numbers (floats),
symbolic Gaussians formulas, particles an `Estimate`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from itertools import product
from typing import Any, Literal, get_args

import numpy as np
import sympy as sp

from ctrlgen import measure
from ctrlgen.certify.decay import Decay, verify_decay
from ctrlgen.certify.gaussian_family import (
    GaussianFamily,
    SymbolicGaussian,
    fisher_formula,
    gaussian_family,
    kl_formula,
    quadratic_formula,
)
from ctrlgen.checks import positive
from ctrlgen.datasets import Gaussian
from ctrlgen.energies.algebra import parted
from ctrlgen.energies.analytic import Quadratic
from ctrlgen.energies.base import Energy
from ctrlgen.estimate import Estimate
from ctrlgen.plants.gaussian import GaussianPlant, quadratic_form
from ctrlgen.plants.grid import FokkerPlanckGrid, GridDensity

Method = Literal["neighbours", "transition"]
_NODES = {1: (64, 96), 2: (40, 56), 3: (20, 28)}  # Gauss-Hermite nodes an axis: the coarse rule and the fine one


class KLLyapunov:
    """V(ρ) = KL(ρ‖ρ*) with ρ* ∝ exp(-E/ε), and its derivatives along the closed loop and without noise.

    A `state` is one of:

    * a grid density, as a FokkerPlanckGrid returns it, or plain cell masses with `grid=`: exact sums, floats;
    * a `Gaussian`: closed forms, floats, under a quadratic energy; under any other in one to three dimensions
      Gauss-Hermite quadrature, an `Estimate` whose error is the difference of two rules and the error of log Z;
    * a `SymbolicGaussian`, under an energy with a quadratic formula: SymPy expressions;
    * particles (n, d): an `Estimate` with a standard error. Method "neighbours" uses nearest neighbours (any
      dimension, biased where the structure is finer than their distance); "transition" the Gaussian kernel of one
      more Langevin step of length `step`, so that it speaks of the law after that step, with no bandwidth to choose.

    Args:
        energy: E.
        temperature: ε > 0 [energy]; a SymPy expression for symbolic Gaussians only.
        log_partition: log Z [nats], a number or an `Estimate`, where it is known better than it would be found.

    Raises:
        TypeError: energy is not an Energy.
        ValueError: temperature is not positive and finite.

    Reference: Jordan, Kinderlehrer and Otto, SIAM J. Math. Anal. 29 (1998) 1.
    """

    def __init__(self, energy: Energy, temperature: Any, *, log_partition: Any = None):
        if not isinstance(energy, Energy):
            raise TypeError(
                f"energy must be an Energy; got {type(energy).__name__}. "
                "Wrap a function in CallableEnergy(function, dim)."
            )
        self.energy = energy
        self.temperature = temperature if isinstance(temperature, sp.Expr) else positive("temperature", temperature)
        self._given = log_partition

    @staticmethod
    def gaussian(dim: Any = None, *, diagonal: bool = False) -> GaussianFamily:
        """V, V̇ and I of all Gaussians under all quadratic energies as formulas, with the proof that V̇ + εI = 0.

        Args:
            dim: d, at most 3; None or a symbol for any dimension.
            diagonal: diagonal matrices, in any explicit d.
        """
        return gaussian_family(dim, diagonal=diagonal)

    @cached_property
    def log_partition(self) -> Estimate:
        """log Z of exp(-E/ε) [nats]: given, in closed form, by quadrature in up to three dimensions, else by annealed
        importance sampling. Computed once.

        Raises:
            ValueError: no Gibbs measure was found.
        """
        if self._given is not None:
            return self._given if isinstance(self._given, Estimate) else Estimate(float(self._given))
        known = self.energy.log_partition(self._number)
        if known is not None:
            return Estimate(float(known))
        form = quadratic_form(self.energy)
        if form is not None and np.linalg.eigvalsh(form[0])[0] > 0:
            bottom = float(self.energy(np.linalg.solve(*form)))
            volume = self.energy.dim * math.log(2 * math.pi * self._number) - np.linalg.slogdet(form[0])[1]
            return Estimate(float(volume / 2 - bottom / self._number))
        return measure.log_partition(self.energy, self._number)

    # The functional ---------------------------------------------------------------------------------------------

    def value(
        self, state: Any, grid: FokkerPlanckGrid | None = None, *, method: Method = "neighbours", step: Any = None
    ) -> Any:
        """V(ρ) [nats]: a float, an `Estimate` or a SymPy expression (see the class).

        Args:
            state: the density.
            grid: of plain cell masses.
            method: of particles.
            step: h > 0 of the further step, for "transition" [time].

        Raises:
            TypeError: state is no density.
            ValueError: state does not fit the energy, the grid or the temperature; there is no Gibbs measure.
        """
        kind, state, own = self._read(state, grid, method, step)
        if kind == "grid":
            return own.kl(state, self.energy)
        if kind == "symbolic":
            return kl_formula(*self._formula, state.mean, state.covariance, self._symbol)
        if kind == "gaussian":
            quadratic = self._quadratic
            if quadratic is not None:
                return self._plant.kl(state, quadratic)
            return _plus(self._relative(state), self.log_partition)
        return self._particles(state, method, step, self.log_partition)

    def difference(
        self, a: Any, b: Any, grid: FokkerPlanckGrid | None = None, *, method: Method = "neighbours", step: Any = None
    ) -> Any:
        """V(a) - V(b) without log Z, which cancels [nats]; also where there is no Gibbs measure.

        Two densities of one kind or of two; errors are added as of independent samples.

        Args:
            a, b: densities, as for `value`.
            grid: of plain cell masses.
            method, step: as for `value`.
        """
        kinds = [self._read(state, grid, method, step) for state in (a, b)]
        first, second = kinds
        if first[0] == second[0] == "grid" and first[2] is second[2]:
            return first[2].kl(first[1], self.energy) - second[2].kl(second[1], self.energy)
        if "symbolic" in (first[0], second[0]):
            if first[0] != second[0]:
                raise TypeError("difference of a symbolic Gaussian and another kind of density: pass two of one kind.")
            return self.value(a) - self.value(b)
        parts = [self._relative_of(*kind, method, step) for kind in kinds]
        return _plus(parts[0], _times(-1.0, parts[1]))

    def derivative(
        self, state: Any, grid: FokkerPlanckGrid | None = None, *, method: Method = "neighbours", step: Any = None
    ) -> Any:
        """V̇ = -εI(ρ‖ρ*) along the closed loop [nats / time].

        Of particles, I is estimated from below by "neighbours" (`measure.fisher`: the best of a family of fields), so
        V̇ is at most what is returned, up to the error; from above by "transition" (`measure.fisher_transition`, of
        the law after one more step).

        Args and raises: as for `value`.
        """
        kind, state, own = self._read(state, grid, method, step)
        if kind == "grid":
            return -own.dissipation(state, self.energy)
        if kind == "symbolic":
            return -self._symbol * fisher_formula(*self._formula, state.mean, state.covariance, self._symbol)
        if kind == "gaussian":
            self._no_walls("V̇ of a Gaussian")
            if self._quadratic is not None:
                return -self._plant.dissipation(state, self._quadratic)
            inverse = np.linalg.inv(state.covariance)

            def gap(x: np.ndarray) -> np.ndarray:
                score = np.asarray(self.energy.gradient(x)) / self._number - (x - state.mean) @ inverse
                return (score**2).sum(axis=1)

            return _times(-self._number, _hermite(gap, state))
        if method == "transition":
            fisher = measure.fisher_transition(state, self.energy, self._number, step)
        else:
            fisher = measure.fisher(state, self.energy, self._number)
        return _times(-self._number, fisher)

    def dissipation(
        self, state: Any, grid: FokkerPlanckGrid | None = None, *, method: Method = "neighbours", step: Any = None
    ) -> Any:
        """εI(ρ‖ρ*) = -V̇ along the closed loop [nats / time]; of particles with the bias of `derivative`."""
        out = self.derivative(state, grid, method=method, step=step)
        return _times(-1.0, out)

    def flow_derivative(self, state: Any, grid: FokkerPlanckGrid | None = None) -> Any:
        """V̇ = E_ρ[ΔE] - E_ρ|∇E|²/ε along the deterministic flow ẋ = -∇E [nats / time], of either sign.

        On a grid a sum over the cell centres, where the density must vanish at the border; of particles an `Estimate`
        without bias.

        Args and raises: as for `value`.
        """
        kind, state, own = self._read(state, grid, "neighbours", None)
        self._no_walls("V̇ along the flow")
        if kind == "symbolic":
            precision, target = self._formula
            push, spread = precision * (state.mean - target), precision * state.covariance * precision
            return precision.trace() - (spread.trace() + (push.T * push)[0]) / self._symbol
        if kind == "grid":
            points = own.cells.reshape(-1, own.dim)
            return float(np.asarray(state).ravel() @ self._source(points))
        if kind == "gaussian":
            form = None if self._quadratic is None else quadratic_form(self._quadratic)
            if form is None:
                return _hermite(self._source, state)
            precision, push = form
            drift, spread = precision @ state.mean - push, precision @ state.covariance @ precision
            return float(np.trace(precision) - (np.trace(spread) + drift @ drift) / self._number)
        return _times(1 / self._number, measure.stein_residual(state, self.energy, self._number))

    # The certificate --------------------------------------------------------------------------------------------

    def verify(
        self, loop: Any, *, initial: Any = None, key: int = 0, timeout: float = 30.0, measure: bool = True
    ) -> Decay:
        """Is V a Lyapunov functional of this closed loop, V̇ ≤ 0, and at which rate does it fall?

        What is decided is the loop in continuous time; the discretisation of a plant is listed as an assumption.

        Args:
            loop: a ClosedLoop.
            initial, key: start and seed of the run that a rate is fitted to, in more than two dimensions.
            timeout: seconds for the search of a proof; a rate that is measured on grids may take twice as long again.
            measure: measure a rate where none is proved.

        Returns:
            PROVED with `.rate` and `.constant` (α) where `log_sobolev` establishes the energy's constants, for Langevin
            loops with any metric and skew part, grids and Gaussians; SAMPLED with the measured rate elsewhere (twice
            the spectral gap on grids in up to two dimensions, a fitted decay of particles above); REFUTED with a
            witness where the loop does not keep the Gibbs measure: a GradientFlow, another energy or another
            temperature; UNDECIDED for a KineticLangevin and for a temperature that changes.

        Raises:
            TypeError: loop is not a ClosedLoop.
            ValueError: the dimensions disagree; the energy certainly has no Gibbs measure.
        """
        return verify_decay(self.energy, self._number, loop, initial=initial, key=key, timeout=timeout, measure=measure)

    def __repr__(self) -> str:
        return f"KLLyapunov({type(self.energy).__name__} in {self.energy.dim}-D, temperature={self.temperature})"

    def _no_walls(self, what: str) -> None:
        if parted(self.energy).sets:
            raise ValueError(f"{what} is not defined behind walls, where a term at the border is left. Use a grid's V̇.")

    # What a state is --------------------------------------------------------------------------------------------

    def _read(self, state: Any, grid: Any, method: str, step: Any) -> tuple[str, Any, Any]:
        """(kind, state, grid) after all checks."""
        if method not in get_args(Method):
            raise ValueError(f"method must be one of {', '.join(map(repr, get_args(Method)))}; got {method!r}.")
        dim = self.energy.dim
        if isinstance(state, (SymbolicGaussian, Gaussian)):
            if state.dim != dim:
                raise ValueError(f"the Gaussian is {state.dim}-dimensional but the energy is {dim}-dimensional.")
            if isinstance(state, SymbolicGaussian):
                return "symbolic", state, None
            self._number  # noqa: B018  a symbol is refused
            return "gaussian", state, None
        if grid is not None or isinstance(state, GridDensity):
            return "grid", *self._masses(state, grid)
        return "particles", self._points(state, method, step), None

    def _masses(self, state: Any, grid: Any) -> tuple[np.ndarray, FokkerPlanckGrid]:
        own = state.grid if isinstance(state, GridDensity) else None
        grid = own if grid is None else grid
        if not isinstance(grid, FokkerPlanckGrid):
            raise TypeError(f"grid must be a FokkerPlanckGrid; got {type(grid).__name__}.")
        if own is not None and grid is not own and (grid.bounds, grid.shape) != (own.bounds, own.shape):
            raise ValueError(
                f"grid must be the density's own: {own.bounds}, {own.shape}; got {grid.bounds}, {grid.shape}."
            )
        if grid.temperature != self._number:
            raise ValueError(
                f"the grid's temperature must be that of the functional, {self._number:g}; got {grid.temperature:g}. "
                "KL to another Gibbs measure does not obey V̇ = -εI along its closed loop."
            )
        return grid._masses(state), grid

    def _points(self, state: Any, method: str, step: Any) -> np.ndarray:
        dim = self.energy.dim
        if hasattr(state, "sample"):
            raise TypeError(
                f"state must be a density that V can be computed of; got {type(state).__name__}. "
                "Discretise it with grid.discretise(…), or draw particles with its .sample(key, n)."
            )
        try:
            points = np.asarray(state, dtype=np.float64)
        except (TypeError, ValueError):
            raise TypeError(
                "state must be particles (n, d), a grid density, a Gaussian or a SymbolicGaussian; "
                f"got {type(state).__name__}."
            ) from None
        if points.ndim != 2 or points.shape[1] != dim:
            raise ValueError(
                f"state has shape {points.shape}, which is not that of particles (n, {dim}) of this {dim}-dimensional "
                "energy. If it holds cell masses, pass grid=."
            )
        if method == "transition":
            if step is None:
                raise ValueError("step must be given for method='transition': the length h of one more Langevin step.")
            positive("step", step)
        elif step is not None:
            raise ValueError(f"step is for method='transition'; got step={step} with method={method!r}.")
        self._number  # noqa: B018  a symbol is refused
        return points

    # Pieces -----------------------------------------------------------------------------------------------------

    @property
    def _number(self) -> float:
        if isinstance(self.temperature, sp.Expr):
            raise ValueError(
                f"temperature must be a number for this state; it is {self.temperature}. "
                "A symbol goes with a SymbolicGaussian only."
            )
        return self.temperature

    @property
    def _symbol(self) -> sp.Expr:
        if isinstance(self.temperature, sp.Expr):
            return self.temperature
        return sp.Rational(repr(self.temperature))

    @cached_property
    def _plant(self) -> GaussianPlant:
        return GaussianPlant(self._number)

    @cached_property
    def _formula(self) -> tuple[sp.Matrix, sp.Matrix]:
        """(P, μ) of a quadratic formula."""
        form = quadratic_formula(self.energy)
        if form is None:
            raise ValueError(
                "a symbolic Gaussian needs an energy with a quadratic formula (Quadratic, or a SymbolicEnergy of "
                f"degree 2); got {type(self.energy).__name__}. Pass a Gaussian with numbers, or particles."
            )
        precision, push = form
        if precision.is_positive_definite is False:
            raise ValueError(f"V needs a Gibbs measure, but the quadratic form {precision.tolist()} is not positive.")
        return precision, precision.LUsolve(push)

    @cached_property
    def _quadratic(self) -> Energy | None:
        """The energy as one whose moments are exact, or None."""
        if quadratic_form(self.energy) is not None:
            return self.energy
        form = quadratic_formula(self.energy)
        if form is None:
            return None
        precision, push = (np.array(part.tolist(), dtype=np.float64) for part in form)
        return Quadratic(precision, np.linalg.solve(precision, push[:, 0])) if _definite(precision) else None

    def _source(self, x: np.ndarray) -> np.ndarray:
        """ΔE - |∇E|²/ε at points (n, d)."""
        slope = np.asarray(self.energy.gradient(x))
        return np.asarray(self.energy.laplacian(x)) - (slope**2).sum(axis=1) / self._number

    def _particles(self, points: np.ndarray, method: str, step: Any, log_partition: Any) -> Estimate:
        if method == "transition":
            return measure.kl_transition(points, self.energy, self._number, step, log_partition=log_partition)
        return measure.kl(points, self.energy, self._number, log_partition=log_partition)

    def _relative(self, state: Gaussian) -> Estimate:
        """V - log Z of a Gaussian, E_ρ[E]/ε - H."""
        entropy = measure.entropy_gaussian(state.covariance)
        return _plus(_times(1 / self._number, _hermite(lambda x: np.asarray(self.energy(x)), state)), -entropy)

    def _relative_of(self, kind: str, state: Any, grid: Any, method: str, step: Any) -> Any:
        """V - log Z = F/ε of a density."""
        if kind == "grid":
            return grid.free_energy(state, self.energy) / self._number
        if kind == "gaussian":
            if quadratic_form(self.energy) is not None:
                return self._plant.free_energy(state, self.energy) / self._number
            return self._relative(state)
        return self._particles(state, method, step, 0.0)


def _definite(matrix: np.ndarray) -> bool:
    return bool(np.linalg.eigvalsh(matrix)[0] > 0)


def _hermite(function: Callable, state: Gaussian) -> Estimate:
    """The mean of a function (n, d) -> (n,) under a Gaussian in one to three dimensions.

    The error is the difference of two rules.
    """
    dim = state.dim
    if dim not in _NODES:
        raise ValueError(
            "means of a Gaussian under an energy that is not quadratic are found by quadrature in up to 3 dimensions; "
            f"here are {dim}. Draw particles from it: state.sample(key, n)."
        )
    factor, means = np.linalg.cholesky(state.covariance), []
    for count in _NODES[dim]:
        node, weight = np.polynomial.hermite_e.hermegauss(count)
        nodes = np.array(list(product(node, repeat=dim)))
        weights = np.array([math.prod(w) for w in product(weight / weight.sum(), repeat=dim)])
        values = function(state.mean + nodes @ factor.T)
        with np.errstate(invalid="ignore"):
            means.append(float(np.sum(weights * values)))
    if not math.isfinite(means[1]):
        raise ValueError("the energy is not finite where this Gaussian has mass; its mean there is not defined.")
    return Estimate(means[1], abs(means[1] - means[0]))


def _plus(a: Any, b: Any) -> Any:
    if isinstance(a, Estimate) or isinstance(b, Estimate):
        first, second = (v if isinstance(v, Estimate) else Estimate(float(v)) for v in (a, b))
        return Estimate(float(first.value) + float(second.value), math.hypot(float(first.error), float(second.error)))
    return a + b


def _times(factor: float, a: Any) -> Any:
    return Estimate(factor * a.value, abs(factor) * a.error) if isinstance(a, Estimate) else factor * a
