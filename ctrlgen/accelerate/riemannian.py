"""The rate at which a Riemannian Langevin loop contracts: a metric that depends on the state, by Bakry and Émery.

With K = M(x)⁻¹ the loop

    dX = (-K∇E + ε∇·K) dt + sqrt(2εK) dW

has the generator ε e^{E/ε} ∇·(e^{-E/ε} K∇f): it is reversible for the Gibbs measure ∝ exp(-E/ε), whatever M is. In the
geometry of g = M, whose volume is √det M dx, the generator is εΔ_g f - ⟨grad V, grad f⟩_g and the Gibbs measure is
∝ exp(-V/ε) vol_g, with

    V = E + (ε/2) log det M.

If Hess_g V + ε Ric_g ⪰ λM then KL to the Gibbs measure falls at the rate 2λ and W₂ in the geodesic distance of g at λ,
where g is complete. In one dimension, with the flat coordinate y' = √M, that is the second derivative of V by y.

References: Bakry, Gentil and Ledoux, Analysis and Geometry of Markov Diffusion Operators (2014), section 3.3,
theorems 5.2.1 and 9.7.2; Bakry, C. R. Acad. Sci. 303 (1986) 23, for completeness; Girolami and Calderhead, J. R. Stat.
Soc. B 73 (2011) 123.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import sympy as sp

from ctrlgen.accelerate._bounds import Frame, Range, ends_of, holds, over_box
from ctrlgen.accelerate._enclosures import of_matrix
from ctrlgen.accelerate._hessians import exact_formula
from ctrlgen.accelerate._steps import not_settled
from ctrlgen.certify.build import check_domain, claims, settle
from ctrlgen.certify.constants import other_gradient
from ctrlgen.certify.contraction import ABOVE, ContractionMetric, largest, tidy
from ctrlgen.certify.premise import missing, premise
from ctrlgen.certify.regular import regular
from ctrlgen.certify.spectrum import definite_slack, root_ratio_decay, slowest
from ctrlgen.certify.verdict import Step, Verdict, combine
from ctrlgen.domain import Box, Domain, Piece, exact
from ctrlgen.energies.base import Energy
from ctrlgen.energies.spectral import down
from ctrlgen.formula import derivative, real_states
from ctrlgen.prove.claim import Claim, Deadline, Outcome, Status
from ctrlgen.prove.decide import check_method, check_timeout, shorten
from ctrlgen.prove.witness import round_witness

MOST_FULL = 3  # dimensions of a metric that is not diagonal with Mᵢ(xᵢ)
BEYOND = 1e12  # a rate that is larger is no rate
SHORT = 30  # operations
LOOSE = 1e-2  # relative: a proved rate that is farther from the estimate is improved by boxes
LOSSES = (0.5, 0.2, 0.05, 1e-2, 1e-3)  # of the rate that boxes are to prove, relative
BOXES = 20_000
COMPLETE = "the metric is complete: geodesics do not end"
KEPT = "the loop is kept in the domain by reflection, and the domain is geodesically convex in the metric"


@dataclass(frozen=True, kw_only=True, repr=False)
class RiemannianVerdict(Verdict):
    """What is known of the rate of a Riemannian Langevin loop.

    Args:
        rate: λ with Hess_g V + ε Ric_g ⪰ λM [1 / time]: proved, rounded down; it may be negative; None without one.
        exact_rate: the rational that was proved.
        refuted_at: the smallest λ that is known to be too large, by an exact witness; None if none is.
        curvature: Hess_g V + ε Ric_g, (d, d) formulas of the states; None where it was not formed.
        domain: the set that the verdict is about; None for the whole space.
    """

    rate: float | None = None
    exact_rate: Any = None
    refuted_at: float | None = None
    curvature: Any = None
    domain: Domain | None = None

    def kl(self, t: Any) -> Any:
        """The factor e^{-2λt} on KL(ρ_t‖ρ*), in continuous time, rounded up.

        Args:
            t: time ≥ 0, any shape.

        Raises:
            ValueError: no rate was proved, or t is negative.
        """
        return self._decay(2, t)

    def wasserstein(self, t: Any) -> Any:
        """The factor e^{-λt} on W₂(ρ_t, ρ*) in the geodesic distance of the metric, rounded up.

        Args:
            t: time ≥ 0, any shape.

        Raises:
            ValueError: no rate was proved, or t is negative.
        """
        return self._decay(1, t)

    def _decay(self, power: int, t: Any) -> Any:
        if self.status is not Status.PROVED or self.exact_rate is None:
            raise ValueError("no rate was proved, so nothing is promised. Print the verdict to see why.")
        times = np.asarray(t, dtype=float)
        if not (np.isfinite(times).all() and (times >= 0).all()):
            raise ValueError(f"t must be finite and ≥ 0; got {t!r}.")
        factor = root_ratio_decay(sp.S.One, power * self.exact_rate, times)
        if power == 1:
            return factor
        return np.minimum(factor, 1.0) if np.ndim(factor) else min(factor, 1.0)  # KL never grows


def riemannian_rate(
    energy: Energy,
    metric: Any,
    states: Sequence[str | sp.Symbol],
    temperature: float,
    domain: Domain | None = None,
    method: str = "auto",
    timeout: float = 30,
) -> RiemannianVerdict:
    """The largest rate λ with Hess_g V + ε Ric_g ⪰ λM that can be proved of a state-dependent metric.

    Args:
        energy: E, with a formula; its coordinates are the states in their order.
        metric: M, positive definite: (d,) formulas for a diagonal, or (d, d) nested lists or a SymPy matrix; SymPy
            expressions, strings or numbers. Any d where it is diagonal with Mᵢ a function of xᵢ alone (that metric is
            flat), else d ≤ 3.
        states: d names or symbols.
        temperature: ε > 0 [energy].
        domain: the set; None for the whole space. On it the loop is assumed to be reflected at its border, and the set
            to be geodesically convex.
        method: "auto" or an engine.
        timeout: seconds.

    Returns:
        a verdict with `.rate` (None if none was proved) and `.refuted_at`, a larger one that is refuted exactly.
        On the whole space completeness of the metric is an assumption unless M ⪰ cI with c > 0 was proved.

    Raises:
        ValueError: an argument is none of these, or sizes disagree.
    """
    if not isinstance(energy, Energy):
        raise ValueError(f"energy must be an Energy; got {type(energy).__name__}.")
    names = real_states(states)
    if len(names) != energy.dim:
        raise ValueError(f"states must name {energy.dim} coordinates for this energy; got {len(names)}.")
    check_method(method)
    deadline, epsilon = check_timeout(timeout), exact("temperature", temperature)
    if not epsilon > 0:
        raise ValueError(f"temperature must be positive; got {temperature!r}.")
    m = ContractionMetric(_square(metric, energy.dim), names).matrix
    if energy.dim > MOST_FULL and not separable(m, names):
        raise ValueError(
            f"metric must be diagonal with entry i a function of state i alone beyond {MOST_FULL} dimensions; got "
            f"{energy.dim} dimensions and another one."
        )
    if domain is not None:
        check_domain("domain", domain, names)
        if len(domain.pieces(names)) != 1:
            raise ValueError(f"domain must be one set, not a union of sets; got {domain!r}.")
    return _Rate(energy, m, names, epsilon, domain, method, deadline).run()


def _square(metric: Any, dim: int) -> Any:
    """(d,) as a diagonal matrix; all else as it is."""
    if isinstance(metric, sp.MatrixBase):
        return sp.diag(*metric) if 1 in metric.shape and dim > 1 else metric
    if isinstance(metric, (str, sp.Basic)) or np.ndim(np.asarray(metric, dtype=object)) != 1:
        return metric
    entries = list(metric)
    if len(entries) != dim:
        raise ValueError(f"metric must have {dim} entries, one a state, or be ({dim}, {dim}); got {len(entries)}.")
    return [[entries[i] if i == j else 0 for j in range(dim)] for i in range(dim)]


def separable(metric: sp.MatrixBase, states: Sequence[sp.Symbol]) -> bool:
    """Is the metric diagonal, each entry a function of its own state? Then it is flat."""
    d = len(states)
    alone = all(metric[i, i].free_symbols <= {states[i]} for i in range(d))
    return alone and all(metric[i, j] == 0 for i in range(d) for j in range(d) if i != j)


def neat(expr: Any) -> Any:
    """The formula simplified, unless it is neither rational nor short: expanded, such a one is beyond all engines."""
    expr = sp.sympify(expr)
    return tidy(expr) if expr.is_rational_function(*expr.free_symbols) or sp.count_ops(expr) < SHORT else expr


# Geometry -------------------------------------------------------------------------------------------------------------


def christoffel(metric: sp.MatrixBase, states: Sequence[sp.Symbol]) -> list[sp.Matrix]:
    """Γ[k][i, j] = ½ Σ_m g^{km} (∂ᵢ g_{mj} + ∂ⱼ g_{mi} - ∂_m g_{ij}) of the metric g."""
    d = len(states)
    every, inverse = range(d), metric.inv()
    slopes: list[Any] = [metric.applyfunc(lambda e, s=s: derivative(e, s)) for s in states]
    first = [
        sp.Matrix(d, d, lambda i, j, m=m: (slopes[i][m, j] + slopes[j][m, i] - slopes[m][i, j]) / 2) for m in every
    ]
    out: list[Any] = [sp.zeros(d, d) + sum((inverse[k, m] * first[m] for m in every), sp.zeros(d, d)) for k in every]
    return [gamma.applyfunc(neat) for gamma in out]


def ricci(connection: Sequence[sp.Matrix], states: Sequence[sp.Symbol]) -> sp.Matrix:
    """Ric_{ij} = ∂_k Γ^k_{ij} - ∂_j Γ^k_{ik} + Γ^k_{km} Γ^m_{ij} - Γ^k_{jm} Γ^m_{ik}, summed over k and m."""
    d, g = len(states), list[Any](connection)
    every = range(d)

    def entry(i: int, j: int) -> Any:
        out = sp.S.Zero
        for k in every:
            out += sp.diff(g[k][i, j], states[k]) - sp.diff(g[k][i, k], states[j])
            out += sum(g[k][k, m] * g[m][i, j] - g[k][j, m] * g[m][i, k] for m in every)
        return out

    return sp.Matrix(d, d, lambda i, j: entry(min(i, j), max(i, j)))


def weighted_curvature(
    energy: Any, metric: sp.MatrixBase, states: Sequence[sp.Symbol], temperature: Any
) -> sp.ImmutableMatrix:
    """Hess_g V + ε Ric_g with V = E + (ε/2) log det M, (d, d) formulas.

    Args:
        energy: E, a formula of the states.
        metric: M, (d, d) formulas.
        states: d symbols.
        temperature: ε.
    """
    d = len(states)
    connection = christoffel(metric, states)
    flat = separable(metric, states)
    volume = metric.det() if not flat else sp.Mul(*(metric[i, i] for i in range(d)))
    # ∂ log det M = ∂ det M / det M: rational where M is
    slope = [derivative(energy, s) + temperature * neat(sp.diff(volume, s) / volume) / 2 for s in states]
    hessian = sp.Matrix(
        d, d, lambda i, j: derivative(slope[i], states[j]) - sum(connection[k][i, j] * slope[k] for k in range(d))
    )
    total = hessian if flat else hessian + temperature * ricci(connection, states)
    return sp.ImmutableMatrix(d, d, lambda i, j: neat(total[min(i, j), max(i, j)]))


# The search -----------------------------------------------------------------------------------------------------------


@dataclass
class _Rate:
    """One call of `riemannian_rate`."""

    energy: Energy
    metric: Any
    states: tuple[sp.Symbol, ...]
    epsilon: Any
    domain: Domain | None
    method: str
    deadline: Deadline

    def run(self) -> RiemannianVerdict:
        formula = exact_formula(self.energy, self.states)
        if formula is None:
            text = "E has a formula"
            return self._verdict([missing(text, f"{type(self.energy).__name__} has none: curvature needs one")], None)
        trouble = other_gradient(self.energy)
        if trouble:
            return self._verdict([missing("particles follow -∇E", trouble)], None)
        steps = self._definite()
        parts = [("E", [formula], 2), ("M", list(self.metric.flat()), 2)]
        steps += regular(parts, self.states, self.domain, self.method, self.deadline.part(0.2))
        if any(s.outcome.status is not Status.PROVED for s in steps):
            return self._verdict(steps, None)
        self.curvature = weighted_curvature(formula, self.metric, self.states, self.epsilon)
        step, rate, above = self._best()
        complete = self._complete() if self.domain is None else []
        proved = complete and complete[0].outcome.status is Status.PROVED
        assumed = (KEPT,) if self.domain is not None else () if proved else (COMPLETE,)
        return self._verdict([*steps, *(complete if proved else []), step], rate, assumed, above)

    def _definite(self) -> list[Step]:
        """M ≻ 0 on the set."""
        where = self.domain if self.metric.free_symbols else None
        every = claims("M ≻ 0", self.states, self.metric, where, strict=True)
        return settle(every, self.method, self.deadline.part(0.3))

    def _complete(self) -> list[Step]:
        """M ⪰ cI with some c > 0, from which a metric on the whole space is complete; empty where none was proved."""
        claim = claims("M ⪰ 0", self.states, self.metric, None, strict=False)[0]
        if not self.metric.free_symbols:
            return self._definite()
        estimate, _ = definite_slack(self.metric, claim)

        def make(c: Any) -> Claim:
            left = (self.metric - c * sp.eye(len(self.states))).applyfunc(neat)
            return claims(f"M ⪰ {c}·I, so the metric is complete", self.states, left, None, strict=False)[0]

        for share in (1.0, 0.5, 0.01) if np.isfinite(estimate) and estimate > 1e-9 else ():
            bound, proved, outcome = largest(make, share * estimate, self.method, self.deadline.part(0.3), least=0)
            if bound is not None and proved is not None:
                return [Step(proved, outcome)]
        return []

    def _claim(self, rate: Any) -> Claim:
        left = sp.ImmutableMatrix((self.curvature - rate * self.metric).applyfunc(neat))
        where = self.domain if left.free_symbols or self.method == "interval" else None
        return claims(f"Hess_g V + ε Ric_g - ({rate}) M ⪰ 0", self.states, left, where, strict=False)[0]

    def _best(self) -> tuple[Step, Any, float | None]:
        """The step of the largest rate that was proved, that rate, and one that is refuted."""
        free = ((None, None),) * len(self.states)
        piece = Piece((), free) if self.domain is None else self.domain.pieces(self.states)[0]
        estimate, where = slowest(-2 * self.curvature, self.metric, piece, self.states)
        if not np.isfinite(estimate) or abs(estimate) > BEYOND:
            reason = "the rate seems to be unbounded below on the set, or has no estimate: no rate was tried"
            claim = self._claim(sp.S.Zero)
            return Step(claim, Outcome(status=Status.UNDECIDED, method="search", reason=reason)), None, None
        size = abs(estimate) if abs(estimate) > 1e-9 else 1.0
        bound, claim, outcome = largest(self._claim, estimate, self.method, self.deadline.part(0.4), scale=size)
        proved = Step(claim or self._claim(sp.S.Zero), outcome)
        if self.method in ("auto", "interval") and (bound is None or estimate - float(bound) > LOOSE * size):
            other = self._by_boxes(estimate, size, bound)
            if other is not None:
                proved, bound = other
        above = None
        for step in ABOVE if where is not None else ():
            too_much = -shorten(-(estimate + step * size))
            if (bound is None or too_much > bound) and round_witness(self._claim(too_much), where) is not None:
                above = float(too_much)
                break
        return not_settled(proved), bound, above

    def _by_boxes(self, estimate: float, size: float, least: Any) -> tuple[Step, Any] | None:
        """The step of a rate above `least` that interval matrices over boxes prove, and that rate; on a Box."""
        if not isinstance(self.domain, Box) or len(self.states) > MOST_FULL:
            return None
        box, frame = ends_of(self.domain), Frame.of(np.eye(len(self.states)))
        best = None
        for loss in LOSSES:
            rate = shorten(estimate - loss * size)
            if least is not None and rate <= least:
                continue
            matrix = (self.curvature - rate * self.metric).applyfunc(neat)
            inner = of_matrix(matrix, self.states)
            if inner is None or self.deadline.over:
                break
            found = over_box(inner, frame, box, BOXES, self.deadline.part(0.5), (0.0, -np.inf), upper=False)
            if not found.low >= 0:
                break
            again = partial(_holds, matrix, self.states, found, box)
            rule = f"outward rounded enclosures on {len(found.lower)} boxes"
            text = f"Hess_g V + ε Ric_g - ({rate}) M ⪰ 0 on the box"
            best = premise(text, rule, again, "interval"), rate
        return best

    def _verdict(
        self, steps: Sequence[Step], rate: Any, assumed: tuple[str, ...] = (), above: float | None = None
    ) -> RiemannianVerdict:
        where = "on the whole space" if self.domain is None else f"on {self.domain!r}"
        follows = "KL falls at twice that rate, and W₂ in the geodesic distance at it"
        if rate is not None and not rate > 0:
            follows = "W₂ in the geodesic distance grows at no more than minus that rate"
        shown = "λ" if rate is None else str(rate) if len(str(rate)) < 20 else repr(_below(rate))
        found = combine(
            f"Hess_g V + ε Ric_g ⪰ ({shown}) M {where}",
            steps,
            assumptions=assumed,
            meaning=follows,
            kind=RiemannianVerdict,
            deadline=self.deadline,
            refuted_at=above,
            curvature=getattr(self, "curvature", None),
            domain=self.domain,
        )
        if found.status is not Status.PROVED or rate is None:
            return found
        return replace(found, exact_rate=rate, rate=_below(rate))


def _holds(matrix: Any, states: Sequence[sp.Symbol], found: Range, box: np.ndarray) -> bool:
    inner = of_matrix(matrix, states)
    return inner is not None and holds(inner, Frame.of(np.eye(len(states))), found, 0.0, np.inf, box)


def _below(rate: Any) -> float:
    return down(Fraction(int(rate.p), int(rate.q)))
