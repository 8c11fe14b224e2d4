"""Does a loop with a metric and a skew part keep the Gibbs measure? Decided by formulas, or by one point that says no.

Of dX = (-(K + J)∇E + ε∇·(K + J)) dt + √(2εK) dW, with K symmetric and (∇·K)_i = Σ_j ∂_j K_ij, the stationary flux of
ρ = exp(-E/ε) is ε∇·(Jρ), row by row, whose divergence Σ ∂_i∂_j(J_ij ρ) vanishes because J is skew: for any locally
Lipschitz E, K and J (in the weak sense, where they have kinks). Where one jumps, its derivatives off the jump are not
all of them, and the loop need not keep ρ. Where J is not skew, or the divergences are left out, the flux is ρv with
another v, and the loop keeps ρ if and only if r = ∇·v - v·∇E/ε vanishes, for E, K and J with two derivatives.

Reference: Ma, Chen and Fox, A Complete Recipe for Stochastic Gradient MCMC, NeurIPS 28 (2015) 2917.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import sympy as sp
from sympy.core.relational import Relational

from ctrlgen.accelerate.skew import exactly, is_positive, refuse_walls
from ctrlgen.certify.build import claims, settle
from ctrlgen.certify.constants import OWN_DERIVATIVES, other_gradient
from ctrlgen.certify.existence import TEXT, gibbs_measure_exists, refuse_without_gibbs
from ctrlgen.certify.premise import missing, premise
from ctrlgen.certify.regular import own_functions, regular, smooth_by_form
from ctrlgen.certify.verdict import Step, Verdict, combine
from ctrlgen.checks import positive, positive_definite
from ctrlgen.energies.base import Energy, default_states
from ctrlgen.field import Field
from ctrlgen.formula import rationalise, read_formula, real_states
from ctrlgen.prove.claim import Claim, Deadline, Outcome, Status
from ctrlgen.prove.witness import round_witness, violates
from ctrlgen.trace import NoFormula, to_sympy, trace

SIMPLIFIED = 400  # operations up to which a formula is simplified, to tell an identity from a near miss
SMOOTH = 0.3  # of the time at most, to show that denominators have no zeros and the like
DEFINITE = 5.0  # seconds at most, to show that a metric is positive definite
POINTS = 256  # at which a formula is evaluated in floats, to find a witness
TOUCHING = 1e-9  # below which a witness is taken to lie on a kink
ROUNDING = 1e-12  # of J + Jᵀ, relative, which `Langevin` takes for rounding


def invariance(
    energy: Energy,
    temperature: float,
    *,
    metric: Any = None,
    skew: Any = None,
    states: Any = None,
    correction: bool = True,
    timeout: float = 30,
) -> Verdict:
    """Does dX = (-(K + J)∇E + ε∇·(K + J)) dt + √(2εK) dW, K = M⁻¹, keep ρ* ∝ exp(-E/ε)?

    Args:
        energy: E, of any kind; one without a formula can be decided as long as J is skew.
        temperature: ε > 0 [energy].
        metric: M: numbers, (d,) for a diagonal or (d, d); formulas of the states likewise (SymPy or strings); a JAX
            function of one state, as `Langevin` takes it; the identity when omitted.
        skew: J, (d, d): numbers, formulas or a JAX function; zero when omitted. Numbers that are skew up to rounding
            (1e-12) stand for their skew part, as in `Langevin`.
        states: names or symbols, in the order of the coordinates, for formulas; x1, ..., xd when omitted.
        correction: whether the loop has the terms ε∇·(K + J), which vanish for constant K and J; False asks about the
            loop without them.
        timeout: seconds.

    Returns:
        PROVED by an identity of formulas; REFUTED with `.witness`, a point at which the stationary flux certainly has a
        divergence; UNDECIDED where neither was found, or where E, K or J may jump.

    Raises:
        TypeError: energy is not an Energy.
        ValueError: an argument has another shape, the metric is not symmetric, a constant one not positive definite, or
            the energy has walls or no Gibbs measure.
    """
    if not isinstance(energy, Energy):
        raise TypeError(f"energy must be an Energy; got {type(energy).__name__}.")
    refuse_walls(energy)
    temperature, deadline = positive("temperature", temperature), Deadline(positive("timeout", timeout))
    refuse_without_gibbs(energy)
    loop = _Loop(
        energy, temperature, real_states(default_states(states, energy.dim)), _read("metric", metric, energy, states),
        _read("skew", skew, energy, states), bool(correction),
    )  # fmt: skip
    steps, assumptions = _about_metric(loop, deadline)
    assumptions.append("the loop does not explode")
    decided = _decided(loop)
    if any(s.outcome.status is Status.PROVED for s in decided):
        rough, assumed = _smooth(loop, deadline.part(SMOOTH))
        steps, assumptions = [*steps, *rough], [*assumptions, *assumed]
    exists = gibbs_measure_exists(energy)
    if exists is None:
        assumptions.append(TEXT)
    else:
        steps.append(exists)
    return combine(loop.text, [*decided, *steps], assumptions=assumptions, deadline=deadline)


@dataclass(frozen=True)
class _Table:
    """A metric or a skew part.

    Args:
        given: as numbers, (d, d) floats; None for one that depends on the state.
        formulas: (d, d) exact formulas of the real states; None for a function without any.
        why: the reason, where there are none.
        function: JAX's, of one state, where it was given as code.
    """

    given: np.ndarray | None
    formulas: sp.Matrix | None
    why: str = ""
    function: Callable | None = None

    @property
    def constant(self) -> bool:
        return self.given is not None or (self.formulas is not None and not self.formulas.free_symbols)


@dataclass(frozen=True)
class _Loop:
    """The loop that is asked about; `correction` says whether it has ε∇·(K + J)."""

    energy: Energy
    temperature: float
    states: tuple[sp.Symbol, ...]
    metric: _Table | None
    skew: _Table | None
    correction: bool

    @property
    def still(self) -> bool:
        """Do K and J have no divergence, being constant?"""
        return all(t is None or t.constant for t in (self.metric, self.skew))

    @property
    def text(self) -> str:
        """The claim, in words."""
        parts = [n for n, t in (("K", self.metric), ("J", self.skew)) if t is not None and not t.constant]
        drift = "-(K + J)∇E" if self.skew is not None else "-K∇E"
        if parts and self.correction:
            drift += f" + ε∇·{parts[0] if len(parts) == 1 else '(K + J)'}"
        return (
            f"dX = ({drift}) dt + √(2εK) dW keeps exp(-E/ε), ε = {self.temperature!r}, in {self.energy.dim} dimensions"
        )


# Reading -----------------------------------------------------------------------------------------------------------


def _read(name: str, value: Any, energy: Energy, states: Any) -> _Table | None:
    if value is None:
        return None
    d, real = energy.dim, real_states(default_states(states, energy.dim))
    function: Callable | None = None
    if callable(value) and not isinstance(value, sp.Basic | sp.MatrixBase):
        import jax.numpy as jnp

        def array(x: Any) -> Any:
            return jnp.asarray(value(x))

        function = array
        try:
            table = to_sympy(array, (d,), real)
        except NoFormula as error:
            return _Table(None, None, str(error), function)
    else:
        table = np.array(value.tolist() if isinstance(value, sp.MatrixBase) else value, dtype=object)
    if name == "metric" and table.shape == (d,):
        table = _diagonal(table)
    if table.shape != (d, d):
        also = f"({d},) or " if name == "metric" else ""
        raise ValueError(
            f"{name} must be of shape {also}({d}, {d}), as the energy has dimension {d}; got {table.shape}."
        )
    try:
        given = table.astype(np.float64)
    except (TypeError, ValueError):
        rows = [[read_formula(table[i, j], real, f"{name}[{i}][{j}]") for j in range(d)] for i in range(d)]
        return _Table(None, sp.Matrix(rows), function=function)
    if not np.isfinite(given).all():
        raise ValueError(f"{name} must be finite.")
    return _numbers(name, given)


def _numbers(name: str, given: np.ndarray) -> _Table:
    if name == "metric":
        given = positive_definite(name, given)
    elif np.abs(given + given.T).max() <= ROUNDING * max(1.0, float(np.abs(given).max())):
        given = (given - given.T) / 2
    return _Table(given, sp.Matrix(*given.shape, [rationalise(float(v)) for v in given.ravel()]))


def _diagonal(row: np.ndarray) -> np.ndarray:
    out = np.zeros((len(row), len(row)), object)
    np.fill_diagonal(out, row)
    return out


# Deciding ------------------------------------------------------------------------------------------------------------


def _about_metric(loop: _Loop, deadline: Deadline) -> tuple[list[Step], list[str]]:
    """M = Mᵀ ≻ 0: steps, and what is assumed of it.

    Raises:
        ValueError: its formulas are not symmetric.
    """
    metric = loop.metric
    if metric is None:
        return [], []
    if metric.given is not None:
        exact = exactly(metric.given)
        if not is_positive(exact):
            return [missing("M ≻ 0", "the metric is too ill-conditioned to show that its inverse exists")], []
        return [premise("M = Mᵀ ≻ 0, constant", "its pivots", partial(is_positive, exact), "exact")], []
    if metric.formulas is None:
        return [], ["M(x) is symmetric and positive definite"]
    gap = _skewness(metric.formulas, -1)
    if gap:
        raise ValueError(f"metric must be symmetric; M - Mᵀ holds {gap}. Pass its symmetric part, if that is meant.")
    symmetric = ((metric.formulas + metric.formulas.T) / 2).applyfunc(sp.simplify)
    d = range(symmetric.rows)
    if symmetric.is_diagonal():
        every = [c for i in d for c in claims(f"M[{i}][{i}] > 0", loop.states, symmetric[i, i], None, strict=True)]
    else:
        every = claims("M ≻ 0", loop.states, symmetric, None, strict=True)
    steps = settle(every, "auto", Deadline(min(DEFINITE, deadline.left())))
    if {s.outcome.status for s in steps} - {Status.PROVED} == {Status.UNDECIDED}:
        return [], ["M(x) is positive definite (its formulas are symmetric; the engines did not decide its sign)"]
    return steps, []


def _smooth(loop: _Loop, deadline: Deadline) -> tuple[list[Step], list[str]]:
    """That E, M and J are as smooth as the theorem asks, and have the derivatives that JAX takes: steps, and what is
    assumed where there is no formula. K = M⁻¹ is as smooth as M ≻ 0.
    """
    general = loop.correction or loop.still
    general = general and (loop.skew is None or loop.skew.formulas is None or not _skewness(loop.skew.formulas, 1))
    order = 1 if general else 2
    other = other_gradient(loop.energy)
    steps = [missing("particles follow -∇E", other)] if other else []
    things: list[tuple[str, Any]] = [("E", f) for f in own_functions(loop.energy, loop.states)]
    for name, table in (("M", loop.metric), ("J", loop.skew)):
        if table is None or table.constant:
            continue
        things.append((name, _field(table, loop.states) if table.formulas is None else table.formulas.flat()))
        own = "" if table.function is None else str(trace(table.function, (loop.energy.dim,)))
        found = ", ".join(word for word in OWN_DERIVATIVES if word in own)
        if found:
            steps.append(missing(f"JAX takes the derivatives of {name}", f"{name} holds {found}"))
    steps += regular([(name, thing, order) for name, thing in things], loop.states, None, "auto", deadline)
    unsure = [
        name for name, thing in things if isinstance(thing, Field) and thing.expr is None and smooth_by_form(thing)
    ]
    smooth = "locally Lipschitz" if order == 1 else "twice differentiable"
    return steps, [f"{name} is {smooth}" for name in dict.fromkeys(unsure)]


def _field(table: _Table, states: tuple[sp.Symbol, ...]) -> Field:
    assert table.function is not None
    return Field.of_function(table.function, states, table.why)


def _decided(loop: _Loop) -> list[Step]:
    """The steps that say whether the loop keeps the measure."""
    told = _skew_step(loop)
    if told is not None and told.outcome.status is not Status.PROVED:
        return [told] if loop.skew is not None and loop.skew.formulas is None else _by_residual(loop)
    if loop.correction or loop.still:
        rule = "product rule, pair of coordinates by pair of coordinates; what is left is symmetric times skew"
        what = (
            "Σ_i ∂_i[ρ(-(K + J)∇E + ε∇·(K + J))_i - ε Σ_j ∂_j(K_ij ρ)] = 0 for ρ = exp(-E/ε), E, K, J locally Lipschitz"
        )
        return [*([] if told is None else [told]), premise(what, rule, identity_holds, "symbolic")]
    return _by_residual(loop)


def _skew_step(loop: _Loop) -> Step | None:
    """J + Jᵀ = 0, by exact numbers or by formulas; an open step where it is not so; None without J."""
    skew = loop.skew
    if skew is None:
        return None
    if skew.given is not None:
        given = skew.given
        if (given == -given.T).all():
            return premise("J + Jᵀ = 0", "entry by entry", lambda: bool((given == -given.T).all()), "exact")
        return missing("J + Jᵀ = 0", f"the largest entry of J + Jᵀ is {np.abs(given + given.T).max():.3g}")
    if skew.formulas is None:
        return missing("J + Jᵀ = 0", f"J has no formula: {skew.why}")
    gap = _skewness(skew.formulas, 1)
    if gap:
        return missing("J + Jᵀ = 0", f"J + Jᵀ holds {gap}")
    return premise("J + Jᵀ = 0", "entry by entry", lambda: not _skewness(skew.formulas, 1), "symbolic")


def _skewness(table: Any, sign: int) -> str:
    """An entry of T + sign·Tᵀ that does not simplify to zero, in words; empty where all do."""
    for i in range(table.rows):
        for j in range(i + 1 if sign > 0 else i):
            gap = table[i, j] + sign * table[j, i]
            if gap != 0 and sp.simplify(gap) != 0:
                return str(sp.simplify(gap))[:80]
    return ""


def identity_holds() -> bool:
    """The divergence of the stationary flux is zero for symmetric K(x) and skew J(x), in two dimensions.

    K and J enter linearly and by pairs of coordinates (i, j), so that two dimensions show all of them.
    """
    states = sp.symbols("x y", real=True)
    epsilon = sp.Symbol("epsilon", positive=True)
    a, b, c, j, energy = (sp.Function(name)(*states) for name in ("a", "b", "c", "j", "E"))
    k, skew = sp.Matrix([[a, b], [b, c]]), sp.Matrix([[0, j], [-j, 0]])
    rho = sp.exp(-energy / epsilon)
    slope = sp.Matrix([sp.diff(energy, s) for s in states])
    drift = -(k + skew) * slope + epsilon * _divergence(k + skew, states)
    flux = rho * drift - epsilon * _divergence(k * rho, states)
    return sp.simplify(sp.Add(*(sp.diff(f, s) for f, s in zip(flux, states, strict=True)))) == 0


def _divergence(table: Any, states: Sequence[sp.Symbol]) -> sp.Matrix:
    """Σ_j ∂_j T_ij."""
    return sp.Matrix([sum(sp.diff(table[i, j], s) for j, s in enumerate(states)) for i in range(table.rows)])


# The divergence of the flux, where no general identity says what it is ------------------------------------------


def residual(loop: _Loop) -> Any:
    """r = ∇·v - v·∇E/ε with ρv the stationary flux, an exact formula.

    Raises:
        NoFormula: the energy, the metric or the skew part has none.
    """
    states, d = loop.states, loop.energy.dim
    formula = _formula(loop.energy, states)
    epsilon = rationalise(loop.temperature)
    slope = sp.Matrix([sp.diff(formula, s) for s in states])
    velocity = sp.zeros(d, 1)
    for table, inverse in ((loop.metric, True), (loop.skew, False)):
        if table is None:
            continue
        if table.formulas is None:
            raise NoFormula(table.why)
        if not inverse:
            velocity -= table.formulas * slope
        if not table.constant:
            move = _divergence(table.formulas.inv() if inverse else table.formulas, states)
            # of K the drift lacks its divergence, or has it and the flux takes it away; of J it has it, or not
            velocity += epsilon * move * (int(loop.correction) - int(inverse))
    spread = sum(sp.diff(v, s) for v, s in zip(velocity, states, strict=True))
    return spread - (velocity.T * slope)[0] / epsilon


def _formula(energy: Energy, states: tuple[sp.Symbol, ...]) -> Any:
    try:
        return rationalise(sp.sympify(energy.symbolic(states)))
    except TypeError:
        return to_sympy(energy.potential, (energy.dim,), states)[()]


def _by_residual(loop: _Loop) -> list[Step]:
    """Whether r vanishes: simplified to zero, or refuted at a point."""
    text = "r = ∇·v - v·∇E/ε = 0, with ρv the stationary flux"
    try:
        value = residual(loop)
    except (NoFormula, NotImplementedError, ValueError) as error:
        return [missing(text, f"there is no formula of it: {error}")]
    small = sp.count_ops(value) <= SIMPLIFIED
    if value == 0 or (small and sp.simplify(value) == 0):
        return [premise(text, "it simplifies to zero", lambda: sp.simplify(residual(loop)) == 0, "symbolic")]
    found = _witness(loop, value)
    if found is None:
        return [missing(text, "it was neither simplified to zero nor found to differ from it at a point")]
    claim, point = found
    why = f"r = {violates(claim, point)[1] * (-1 if 'r ≤ 0' in claim.text else 1):.6g} at x = {tuple(map(str, point))}"
    missing_part = "" if loop.correction or loop.still else ": the drift lacks ε∇·(K + J)"
    outcome = Outcome(
        status=Status.REFUTED, method="exact", reason=f"{why}{missing_part}", margin=violates(claim, point)[1],
        witness=point,
    )  # fmt: skip
    return [Step(claim, outcome)]


def _witness(loop: _Loop, value: Any) -> tuple[Claim, Any] | None:
    """A claim r ≥ 0 or r ≤ 0 and a point that violates it exactly, one of those where |r| is large."""
    states = loop.states
    rng = np.random.default_rng(0)
    points = np.concatenate([np.round(rng.normal(size=(POINTS, len(states))) * s, 2) for s in (1.0, 0.3, 3.0)])
    value = value.replace(sp.DiracDelta, lambda *_: sp.S.Zero)  # off the kinks, where a witness lies
    near = sp.lambdify(states, value, "numpy")
    try:
        with np.errstate(all="ignore"):
            floats = np.broadcast_to(np.asarray(near(*points.T), np.float64), (len(points),))
    except (NameError, TypeError, ValueError):  # a derivative that has no formula
        return None
    size = np.where(np.isfinite(floats), np.abs(floats), 0)
    order = np.argsort(-np.minimum(size, 10 * np.median(size[size > 0])) if (size > 0).any() else -size, kind="stable")
    for k in order[:12]:
        if size[k] == 0:
            return None
        positive_there = floats[k] > 0
        claim = Claim(
            text=f"r {'≤' if positive_there else '≥'} 0, with r = ∇·v - v·∇E/ε and ρv the stationary flux of exp(-E/ε)",
            states=states, matrix=sp.Matrix([[-value if positive_there else value]]), strict=False,
        )  # fmt: skip
        point = round_witness(claim, points[k], nudge=False)
        if point is not None and _off_kinks(loop, point):
            return claim, point
    return None


def _off_kinks(loop: _Loop, point: Any) -> bool:
    """Are E, M and J smooth near a point, so that what r is there it is around it too?"""
    tables = [t.formulas for t in (loop.metric, loop.skew) if t is not None and t.formulas is not None]
    at = dict(zip(loop.states, point, strict=True))
    for formula in (_formula(loop.energy, loop.states), *(f for table in tables for f in table.flat())):
        parts: Any = sp.preorder_traversal(formula)
        for part in parts:
            inner: Any = part.args
            gaps: list[Any] = []
            if isinstance(part, (sp.Abs, sp.sign, sp.Heaviside, sp.atan2)):
                gaps = [inner[0]]
            elif isinstance(part, (sp.Min, sp.Max)):
                gaps = [a - b for i, a in enumerate(inner) for b in inner[:i]]
            elif isinstance(part, Relational):
                gaps = [inner[0] - inner[1]]
            elif isinstance(part, (sp.floor, sp.ceiling, sp.Mod, sp.frac, sp.DiracDelta)):
                return False
            if any(abs(sp.N(gap.xreplace(at))) < TOUCHING for gap in gaps):
                return False
    return True
