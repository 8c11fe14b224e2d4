"""Constrained generation: what keeps the particles of a closed loop in the safe set {h_j(x) ≥ 0 for all j}."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import sympy as sp

from ctrlgen.checks import positive
from ctrlgen.domain import Box, Domain
from ctrlgen.energies.algebra import compose
from ctrlgen.energies.base import Energy
from ctrlgen.energies.walls import LogBarrier, Walls
from ctrlgen.formula import jax_function
from ctrlgen.gain import class_k
from ctrlgen.precision import float64
from ctrlgen.rows import along
from ctrlgen.safety.qp import minimum_norm
from ctrlgen.safety.reading import check_borders, check_not_empty, draws, read_constraints

if TYPE_CHECKING:
    from ctrlgen.certify.stochastic import ProbabilityBound
    from ctrlgen.certify.verdict import Verdict
    from ctrlgen.safety.inputs import InputFilter
    from ctrlgen.safety.report import SafetyReport
    from ctrlgen.safety.restricted import Restricted

Mode = Literal["cbf", "barrier_energy", "reflected"]
Correction = Literal["mirror", "project"]


@dataclass(frozen=True)
class FilteredDrift:
    """A drift, or an input, after the filter; see `SafetyFilter.correct` and `SafetyFilter.inputs`.

    Attributes:
        value: the corrected drift (n, d), or input (n, m).
        correction: δ, of the same shape.
        multipliers: (n, constraints), ≥ 0.
        residual: (n,), of the optimality conditions [the length of δ].
        feasible: (n,) bool: all constraints could be met.
    """

    value: np.ndarray = field(repr=False)
    correction: np.ndarray = field(repr=False)
    multipliers: np.ndarray = field(repr=False)
    residual: np.ndarray
    feasible: np.ndarray


class SafetyFilter:
    """Keeps the particles of a closed loop where every barrier h_j(x) ≥ 0; `ClosedLoop(plant, energy, safety=...)`.

    What each mode does, and promises:

    * "cbf": the drift u = -∇E gets the shortest correction δ with ∇h_j·(u + δ) + ε Δh_j + ∂h_j/∂t ≥ -α(h_j) (no
      Laplacian without noise), a quadratic program solved exactly at every step. It bends the law of the loop: it
      does not keep the Gibbs measure, and `Response.shift` says by how much the density is off.
    * "barrier_energy": the energy becomes E - μ Σ log h_j. The Gibbs measure is explicit, ∝ exp(-E/ε) Π h_j^{μ/ε}, and
      certificates are those of a composition. It tends to the restricted Gibbs measure as μ → 0.
    * "reflected": the energy is infinite outside. The Gibbs measure is that of E restricted to the safe set: exactly,
      up to working precision, with scheme="mala" (a proposal that leaves is rejected), up to the step's error with
      "euler" (a step that leaves is mirrored at the border, weak order 1).

    In every mode a particle that starts inside is inside after each step, and not to first order: a step that leaves is
    brought back (mirror image or projection, Newton's steps, then halving), and a particle that cannot be brought back
    stays where it was. Inside means that h is above the bound of its own rounding. Only a set that moves or a tube,
    which shrinks, may leave a particle behind; the report counts it.

    Infeasible programs are counted, and relaxed: each constraint gets its own slack, a distance, whose sum of squares
    is least, and then δ is shortest.

    Args:
        barriers: `BarrierFunction`, energy (h = E), set (`Box`, `Ball`, `Polytope`, `Sublevel`, `~Ball`, `&` of them),
            or several of these. Half-spaces and balls, in whichever form, have exact projections.
        gain: the class-K function α of "cbf": a number > 0 (times h) [1/time], a callable, or a formula of one symbol.
            With noise it must outweigh the curvature of h where ∇h = 0: gain ≥ 2dε/R² for a ball; `verify` decides it.
        mode: "cbf", "barrier_energy" or "reflected".
        mu: μ > 0 of "barrier_energy" [energy]; or a function of time, t → μ(t) > 0, for continuation.
        tube: for "cbf": the time T [time] in which a particle that starts outside must be let in: it is kept in
            h ≥ -c (1 - t/T)², with c its own depth at the start, so that it is inside from T on.
        correction: of steps that leave: "mirror", or "project", which puts them on the border (the projected Langevin
            scheme with "reflected": it leaves an atom there). Mirror when omitted; a plant without noise projects.

    Raises:
        TypeError: a barrier is of another kind.
        ValueError: gain or mu is not positive, the safe set is empty, ∇h vanishes where h = 0, dimensions differ, a set
            has no smooth barrier, or an argument does not go with the mode.

    References: Ames, Xu, Grizzle and Tabuada, IEEE TAC 62 (2017) 3861 (the program); Clark, Automatica 130 (2021)
    109688 (its stochastic term); Bossy, Gobet and Talay, J. Appl. Probab. 41 (2004) 877 (mirrored steps); Bubeck, Eldan
    and Lehec, Discrete Comput. Geom. 59 (2018) 757 (projected steps).
    """

    def __init__(
        self,
        barriers: Any,
        gain: Any = 1.0,
        mode: Mode = "cbf",
        *,
        mu: float | Callable[[Any], Any] = 0.1,
        tube: float | None = None,
        correction: Correction | None = None,
    ):
        if mode not in get_args(Mode):
            raise ValueError(f"mode must be one of {', '.join(map(repr, get_args(Mode)))}; got {mode!r}.")
        if correction is not None and correction not in get_args(Correction):
            raise ValueError(f"correction must be 'mirror' or 'project'; got {correction!r}.")
        self.mode: Mode = mode
        self.correction = correction
        self.constraints = read_constraints(barriers)
        self.gain = gain
        self.alpha = _alpha(gain)
        self.mu = mu if callable(mu) else positive("mu", mu)
        self.tube = None if tube is None else positive("tube", tube)
        if mode != "cbf" and tube is not None:
            raise ValueError(f"tube must be omitted with mode={mode!r}: only mode='cbf' lets a start outside in.")
        if mode != "cbf" and self.constraints.moving:
            raise ValueError(f"barriers must be at rest with mode={mode!r}: a moving set has no Gibbs measure.")
        check_not_empty(self.constraints)
        check_borders(self.constraints)

    def __repr__(self) -> str:
        more = {"barrier_energy": f", mu={self.mu!r}", "cbf": f", gain={self.gain!r}"}.get(self.mode, "")
        more += "" if self.tube is None else f", tube={self.tube:g}"
        names = ", ".join(map(repr, self.constraints))
        return f"SafetyFilter({len(self.constraints)} barriers: {names}; {self.mode}{more})"

    @property
    def dim(self) -> int:
        """d, the number of states."""
        return self.constraints.dim

    @cached_property
    def slack(self) -> np.ndarray:
        """(m,): how much of h may be rounding, of functions without a formula; zero for formulas."""
        return self.constraints.calibrate(draws(self.dim)[:512])

    @cached_property
    def walls(self) -> Walls:
        """The energy that is 0 inside and infinite outside."""
        return Walls(self.constraints, self.slack)

    @cached_property
    def barrier(self) -> LogBarrier:
        """The energy -Σ log h_j."""
        return LogBarrier(self.constraints, self.slack)

    def energy(self, energy: Energy, time: float = np.inf) -> Energy:
        """The energy whose Gibbs measure is this mode's: E - μ Σ log h_j, or E that is infinite outside.

        In mode "cbf" the loop does not keep the latter; it is what `Response.shift` compares with. While a set moves or
        a tube closes there is no such measure, and the energy is E.

        Args:
            energy: E.
            time: at which μ is taken, where it is a function.
        """
        self.check_dim(energy.dim, "energy")
        if self.mode == "barrier_energy":
            return compose([energy, self.barrier], [1.0, self.mu_at(time)])
        if self.constraints.moving or self.tube is not None:
            return energy
        return compose([energy, self.walls])

    def mu_at(self, time: float) -> float:
        """μ at a time.

        Raises:
            ValueError: μ is a function, and not positive and finite then (or the time is not finite).
        """
        if not callable(self.mu):
            return float(self.mu)
        if not np.isfinite(time):
            raise ValueError("time must be given where mu is a function of it: SafetyFilter.energy(energy, time).")
        value = np.asarray(self.mu(np.float64(time)), np.float64)
        if value.shape != () or not (np.isfinite(value) and value > 0):
            raise ValueError(f"mu must be positive and finite at every time; at t = {time:g} it is {value}.")
        return float(value)

    def walls_on(self, grid: Any) -> np.ndarray:
        """1 on the cells of a grid that are kept, 0 on those that are removed, of the grid's shape."""
        return np.isfinite(np.asarray(self.walls(grid.cells.reshape(-1, self.dim)))).reshape(grid.shape).astype(float)

    def check_dim(self, dim: int, what: str) -> None:
        """Raise ValueError unless `what` has the barriers' dimension."""
        if dim != self.dim:
            raise ValueError(
                f"barriers and {what} must have one dimension; the barriers have {self.dim}, the {what} {dim}."
            )

    # Looking -----------------------------------------------------------------------------------------------------

    def contains(self, x: Any, time: float = 0.0) -> np.ndarray:
        """Whether every h_j ≥ 0 in float64 at points (n, d), (n,) bool."""
        return np.asarray((self.constraints.at(self._points(x), time) >= 0).all(axis=1))

    def values(self, x: Any, time: float = 0.0) -> np.ndarray:
        """h_j in float64 at points (n, d), (n, m)."""
        return self.constraints.at(self._points(x), time)

    def restrict(self, distribution: Any) -> Restricted:
        """The part of a distribution in the safe set, to start a loop from: `.sample(key, n)` draws until n are inside.

        Raises:
            TypeError: it has no `.sample(key, n)`.
        """
        if not callable(getattr(distribution, "sample", None)):
            raise TypeError(f"distribution must have .sample(key, n); got {type(distribution).__name__}.")
        from ctrlgen.safety.restricted import Restricted

        return Restricted(distribution, self)

    def correct(self, drift: Any, x: Any, temperature: float = 0.0, time: float = 0.0) -> FilteredDrift:
        """The drift after the program of mode "cbf", in float64.

        Args:
            drift: an energy, which means -∇E, or an array (n, d).
            x: (n, d) or (d,).
            temperature: ε ≥ 0 of the stochastic term ε Δh.
            time: of moving barriers.

        Raises:
            ValueError: shapes do not fit, or temperature is negative.
        """
        points = self._points(x)
        if not (np.isfinite(temperature) and temperature >= 0):
            raise ValueError(f"temperature must be ≥ 0 and finite; got {temperature}.")
        u = (
            -np.asarray(drift.gradient(points))
            if isinstance(drift, Energy)
            else np.atleast_2d(np.asarray(drift, float))
        )
        if u.shape != points.shape:
            raise ValueError(f"drift must have the shape of x, {points.shape}; got {u.shape}.")
        with float64():
            found = _corrected(self, *(jnp.asarray(v) for v in (u.T, points.T, float(time), float(temperature))))
            delta, multipliers, residual, feasible = (np.asarray(v) for v in found)
        return FilteredDrift(u + delta.T, delta.T, multipliers.T, residual, feasible)

    def inputs(self, f: Any, g: Any, limits: Box | None = None) -> InputFilter:
        """The same program for ẋ = f(x) + g(x) u: a filter of inputs, to call at every step of any simulation.

        Args:
            f: drift, in any form that `VectorField` reads.
            g: input matrix (d, k) of numbers or formulas, or a list of d for one input.
            limits: box of the k inputs.

        Raises:
            ValueError: shapes do not fit.
        """
        from ctrlgen.safety.inputs import InputFilter

        return InputFilter(self, f, g, limits)

    def inspect(self, response: Any) -> SafetyReport:
        """Violations among the recorded states of any response of particles, filtered or not, in float64.

        Raises:
            AttributeError: the response is of another plant.
        """
        from ctrlgen.safety.report import inspect

        return inspect(self, response)

    # What is certain -------------------------------------------------------------------------------------------------

    def verify(
        self, temperature: Any = 0.0, metric: Any = None, domain: Domain | None = None, method: str = "auto",
        timeout: float = 30.0,
    ) -> Verdict:  # fmt: skip
        """Decide that the program of mode "cbf" has a solution at every safe state, whatever the energy.

        Without noise the solution keeps every h ≥ 0 (forward invariance). With noise it keeps 𝓛h ≥ -α(h), which bounds
        means and no path; the correction of each step does that.

        Args:
            temperature: ε ≥ 0 of the stochastic term; 0 for `GradientFlow`.
            metric: M of `Langevin`, whose inverse is K in tr(K∇²h).
            domain: where the safe states are looked at; everywhere when omitted.
            method, timeout: as in `BarrierFunction.verify`.

        Returns:
            PROVED; REFUTED with a safe state at which the program has no solution (so that it is relaxed there); or
            UNDECIDED, always for barriers without a formula, and for moving ones.

        Raises:
            ValueError: temperature is negative, metric has another shape, or the domain is empty.
        """
        from ctrlgen.certify.safe import verify_filter

        return verify_filter(self, temperature, metric, domain, method, timeout)

    def exit_probability(
        self, energy: Energy, temperature: Any, initial: Domain, horizon: Any, domain: Domain | None = None,
        degree: int = 4, timeout: float = 30.0,
    ) -> ProbabilityBound:  # fmt: skip
        """Bound the probability that dX = -∇E dt + √(2ε) dW, without the filter, leaves the safe set within `horizon`.

        A `StochasticBarrier` is looked for and proved, one for each barrier; their bounds add.

        Args:
            energy: E, with a formula.
            temperature: ε > 0.
            initial: where the process starts.
            horizon: T > 0 [time].
            domain: a set that holds the safe set's surroundings; exits of it are not counted.
            degree: of the polynomials that are looked for.
            timeout: seconds.

        Returns:
            PROVED with `.probability`, or UNDECIDED with the reason: for networks always.

        Raises:
            ValueError: dimensions differ, a set is empty, or temperature or horizon is not positive.
        """
        from ctrlgen.certify.safe import exit_probability

        return exit_probability(self, energy, temperature, initial, horizon, domain, degree, timeout)

    # At work inside a loop: dimension-first, traceable --------------------------------------------------------------

    def program(
        self, drift: Any, x: Any, t: Any, temperature: Any, mobility: Any = None, levels: Any = 0.0, rise: Any = 0.0
    ) -> Any:
        """The shortest correction of a drift (d, n) at x (d, n); see `safety.qp.Solution`.

        Args:
            temperature: ε, a scalar or (n,); the stochastic term is ε tr(K ∇²h).
            mobility: K.
            levels, rise: of a tube {h ≥ level}: (m, n), and its derivative in time.
        """
        c = self.constraints

        def problem() -> tuple[Any, Any]:
            slopes = c.gradients(x, t)
            have = along(slopes, drift) + self.alpha(c.values(x, t) - levels) - rise
            if not (isinstance(temperature, (int, float)) and temperature == 0):
                have = have + temperature * c.curvatures(x, t, mobility)
            if c.moving:
                have = have + c.rates(x, t)
            return slopes, -have

        return minimum_norm(*problem(), problem)

    def _points(self, x: Any) -> np.ndarray:
        points = np.atleast_2d(np.asarray(x, dtype=np.float64))
        if points.ndim != 2 or points.shape[1] != self.dim:
            raise ValueError(f"x must be ({self.dim},) or (n, {self.dim}); got shape {np.shape(x)}.")
        return points


@partial(jax.jit, static_argnums=0)
def _corrected(safety: SafetyFilter, drift: Any, x: Any, time: Any, temperature: Any) -> Any:
    return safety.program(drift, x, time, temperature)


def _alpha(gain: Any) -> Callable:
    """α as a JAX function of an array."""
    if isinstance(gain, (bool, np.bool_)) or (
        isinstance(gain, (int, float, np.number)) and not (np.isfinite(gain) and gain > 0)
    ):
        raise ValueError(f"gain must be positive and finite; got {gain}. Zero would let no h fall, even far inside.")
    if isinstance(gain, (int, float, np.number)):
        slope = float(gain)
        return lambda h: slope * h
    z = sp.Symbol("z", real=True)
    formula = class_k("gain", gain)(z)
    if not all(sp.N(formula.subs(z, p)) > 0 for p in (sp.Rational(1, 100), 1, 10)):
        raise ValueError(f"gain must be positive for positive h; got α(h) = {formula}.")
    function = jax_function((z,), [formula])
    return lambda h: jnp.broadcast_to(jnp.asarray(function(h)[0], h.dtype), h.shape)


__all__ = ["FilteredDrift", "SafetyFilter"]
