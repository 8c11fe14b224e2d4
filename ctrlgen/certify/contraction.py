"""Contraction metrics: a metric M(x) in which every two trajectories approach each other at a rate.

With the Jacobian J of ẋ = f(x) and Ṁ the derivative of M along f, the flow contracts at rate λ if M ≻ 0 and
Ṁ + MJ + JᵀM + 2λM ⪯ 0: a curve of length L in M has length at most e^{-λt} L a time t later.

Reference: Lohmiller and Slotine, Automatica 34 (1998) 683; Aylward, Parrilo and Slotine, Automatica 44 (2008) 2163.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import sympy as sp

from ctrlgen.certify.build import check_domain, claims, settle
from ctrlgen.certify.regular import regular
from ctrlgen.certify.spectrum import bounds_of_constant, definite_slack, root_ratio_decay, slowest
from ctrlgen.certify.verdict import Step, Verdict, combine
from ctrlgen.domain import Domain, Piece, exact
from ctrlgen.field import VectorField
from ctrlgen.formula import derivative, read_formula, real_states, symbols
from ctrlgen.prove.claim import Claim, Deadline, Outcome, Status
from ctrlgen.prove.decide import best_bound, candidates, check_method, check_timeout, decide, float_below, shorten
from ctrlgen.prove.witness import round_witness

ABOVE = (1e-15, 1e-12, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
JUMPS = (
    sp.sign, sp.atan2, sp.Heaviside, sp.Piecewise, sp.floor, sp.ceiling, sp.frac, sp.Mod, sp.arg, sp.acot, sp.acoth,
    sp.acsc, sp.asec, sp.acsch, sp.asech,
)  # fmt: skip
KINKS = (sp.Abs, sp.Min, sp.Max, *JUMPS)
CONVEX = "the domain is forward invariant and convex (for distances in M: geodesically convex)"


@dataclass(frozen=True, kw_only=True, repr=False)
class ContractionVerdict(Verdict):
    """What is known of a contraction metric.

    Args:
        rate: [1/time] the rate that was proved, the largest decimal float that is not above `exact_rate`; it may be
            negative; None if none was.
        exact_rate: the rational that was proved.
        refuted_at: [1/time] the smallest rate that is known to be too large, by an exact witness; None if none is.
        found: the metric that a search found, or None.
        metric: the metric that the verdict is about, or None.
        domain: the set that it is about; None is the whole space.
    """

    rate: float | None = None
    refuted_at: float | None = None
    found: ContractionMetric | None = None
    exact_rate: sp.Expr | None = None
    metric: ContractionMetric | None = field(default=None)
    domain: Domain | None = None

    def plot(self, ax: Any = None, **view: Any) -> Any:
        """Draw where the inequality holds, with unit balls of the metric: see `ctrlgen.plot.contraction`."""
        from ctrlgen import plot

        return plot.contraction(self, ax, **view)

    def distance_bound(self, t: Any) -> Any:
        """The factor c with |x(t) - y(t)| ≤ c·|x(0) - y(0)|, as in `ContractionMetric.distance_bound`.

        Raises:
            ValueError: no rate was proved, t is negative, or M has no provable bounds on the domain.
        """
        if self.metric is None or self.exact_rate is None:
            raise ValueError("no rate was proved, so nothing is promised of distances. Print the verdict to see why.")
        return self.metric.distance_bound(t, self.exact_rate, self.domain)


class ContractionMetric:
    """A Riemannian metric M(x) for a contraction certificate.

    Args:
        M: (d, d) symmetric: numbers (array, nested lists, SymPy matrix), or formulas of the states (SymPy or strings).
            Floats are read as the decimals that they print as.
        states: names or symbols, in the order of the coordinates.

    Raises:
        ValueError: M is not (d, d), not symmetric, not differentiable, or holds other symbols than the states.

    `matrix` is M with exact entries.
    """

    def __init__(self, M: Any, states: Sequence[str | sp.Symbol]):
        self.states, self._given = real_states(states), symbols(states)
        self.matrix = _read_matrix(M, self.states)
        self._promise: tuple[sp.Rational, Domain | None] | None = None
        self._limits: dict[Domain | None, tuple[sp.Rational, sp.Rational]] = {}

    @property
    def dim(self) -> int:
        """d, the number of states."""
        return len(self.states)

    @property
    def constant(self) -> bool:
        """Is M the same at all states?"""
        return not self.matrix.free_symbols

    def __repr__(self) -> str:
        return f"ContractionMetric({self.matrix.tolist()}, {[s.name for s in self.states]})"

    def derivative(self, f: Any) -> sp.ImmutableMatrix:
        """Ṁ + MJ + JᵀM, simplified, (d, d); ⪯ -2λM where the metric contracts at rate λ.

        Args:
            f: the right-hand side of ẋ = f(x), as `VectorField` takes it.

        Raises:
            TypeError: f has no formula.
            ValueError: f is not a vector field of these states, or is in discrete time.
        """
        return self._change(f).xreplace(dict(zip(self.states, self._given, strict=True)))

    def _change(self, f: Any) -> sp.ImmutableMatrix:
        """`derivative` in the real states."""
        f = self._flow(f)
        exprs, slope, m = f.formulas(), f.jacobian(), self.matrix
        product = m * slope
        d = range(self.dim)
        along = {
            (i, j): sp.Add(*(derivative(m[i, j], s) * v for s, v in zip(self.states, exprs, strict=True)))
            for i in d
            for j in d
            if i <= j
        }
        upper = {(i, j): tidy(v + product[i, j] + product[j, i]) for (i, j), v in along.items()}
        return sp.ImmutableMatrix(self.dim, self.dim, lambda i, j: upper[min(i, j), max(i, j)])

    def verify(
        self, f: Any, rate: Any, domain: Domain | None = None, method: str = "auto", timeout: float = 30
    ) -> ContractionVerdict:
        """Decide M ≻ 0 and Ṁ + MJ + JᵀM + 2·rate·M ⪯ 0 on the domain.

        A metric that depends on the state is asked to be uniform on an unbounded domain: M ⪰ μI with some μ > 0.

        Args:
            f: the right-hand side of ẋ = f(x), as `VectorField` takes it.
            rate: λ [1/time]; negative for a bound on how fast trajectories may separate.
            domain: the set; None for the whole space. It is assumed to be forward invariant and convex.
            method: "auto" or an engine.
            timeout: seconds.

        Raises:
            ValueError: an argument is none of these, or f is in discrete time.
        """
        start = time.monotonic()
        f, deadline = self._checked(f, domain, method, timeout)
        wanted = exact("rate", rate)
        stopped = self._impossible(f, domain)
        if stopped is not None:
            return stopped
        steps = self._definite(domain, method, deadline.part(0.4))
        steps += self._smooth(f, domain, method, deadline.part(0.4))
        known = all(s.outcome.status is Status.PROVED for s in steps)
        last = self._settle(self._contracting(f, wanted, domain, method), method, deadline)
        refuted = known and any(s.outcome.status is Status.REFUTED for s in last)
        return self._verdict([*steps, *last], wanted, domain, start, refuted_at=float(wanted) if refuted else None)

    def rate(
        self, f: Any, domain: Domain | None = None, method: str = "auto", timeout: float = 30
    ) -> ContractionVerdict:
        """The largest rate that can be proved of this metric.

        Args:
            f, domain, method, timeout: as in `verify`.

        Returns:
            a verdict with `.rate` (None if none was proved) and `.refuted_at`, a larger one that is refuted exactly.

        Raises:
            ValueError: as in `verify`.
        """
        start = time.monotonic()
        f, deadline = self._checked(f, domain, method, timeout)
        stopped = self._impossible(f, domain)
        if stopped is not None:
            return stopped
        steps = self._definite(domain, method, deadline.part(0.4))
        steps += self._smooth(f, domain, method, deadline.part(0.4))
        if any(s.outcome.status is not Status.PROVED for s in steps):
            return self._verdict(steps, None, domain, start)
        change = self._change(f)
        rates, refuted = [], []
        pieces = (Piece((), ((None, None),) * self.dim),) if domain is None else domain.pieces(self.states)
        for k, piece in enumerate(pieces):
            part = deadline.part(1.0 / (len(pieces) - k))
            estimate, where = slowest(change, self.matrix, piece, self.states)
            step, bound, above = self._best(f, domain, k, (estimate, where), method, part)
            steps.append(step)
            rates.append(bound)
            refuted += [above] if above is not None else []
        proved = None if any(r is None for r in rates) else min(rates)
        return self._verdict(steps, proved, domain, start, refuted_at=min(refuted, default=None))

    def distance_bound(self, t: Any, rate: Any = None, domain: Domain | None = None) -> Any:
        """The factor c with |x(t) - y(t)| ≤ c·|x(0) - y(0)| for two trajectories, if the metric contracts at `rate`.

        c = √(sup λ_max(M) / inf λ_min(M)) · e^{-rate·t} over the domain, rounded up; the bounds of M are proved.

        Args:
            t: time, ≥ 0, any shape.
            rate: [1/time]; when omitted that which was proved when this metric was found.
            domain: the set; it matters for an M that depends on the state. None is the whole space, or the set for
                which this metric was found.

        Returns:
            a float, or an array of the shape of t.

        Raises:
            ValueError: t is negative, no rate is known, M is not positive definite, or no bounds of M were proved.
        """
        times = np.asarray(t, dtype=float)
        if not (np.isfinite(times).all() and (times >= 0).all()):
            raise ValueError(f"t must be finite and ≥ 0; got {t!r}.")
        if rate is None:
            if self._promise is None:
                raise ValueError(
                    "rate must be given: none was proved of this metric yet. Pass rate=, or use the verdict of rate()."
                )
            rate, proved_on = self._promise
            domain = proved_on if domain is None else domain
        if domain is not None:
            check_domain("domain", domain, self.states)
        low, high = self._bounds(domain)
        return root_ratio_decay(high / low, exact("rate", rate), times)

    # ---------------------------------------------------------------------------------------------------------

    def promising(self, rate: Any, domain: Domain | None) -> ContractionMetric:
        """The same metric, which carries a rate that was proved of it."""
        out = ContractionMetric(self.matrix, self.states)
        out._promise = (rate, domain)
        return out

    def _flow(self, f: Any) -> VectorField:
        f = VectorField(f, self.states)
        if f.discrete:
            raise ValueError(
                "f must be in continuous time; got a system in discrete time. Contraction of maps is not decided here: "
                "use a Lyapunov function of the difference of two states."
            )
        return f

    def _checked(self, f: Any, domain: Any, method: str, timeout: float) -> tuple[VectorField, Deadline]:
        f = self._flow(f)
        check_method(method)
        deadline = check_timeout(timeout)
        if domain is not None:
            check_domain("domain", domain, self.states)
            if len(domain.pieces(self.states)) != 1:
                raise ValueError(f"domain must be one convex set, not a union of sets; got {domain!r}.")
        return f, deadline

    def _impossible(self, f: VectorField, domain: Domain | None) -> ContractionVerdict | None:
        """A verdict for a vector field whose derivative does not tell how it acts on distances; None for others."""
        reason = ""
        if f.exprs is None:
            reason = f"f has no formula: {f.why_no_formula}"
        else:
            jumps = sorted({type(a).__name__ for e in f.exprs for a in e.atoms(*JUMPS)})
            if jumps:
                reason = f"f holds {', '.join(jumps)}: across a jump the Jacobian says nothing of two trajectories"
        if not reason:
            return None
        step = Step(
            Claim(text="f is continuous, with a formula", states=self.states, strict=False),
            Outcome(status=Status.UNDECIDED, method="symbolic", reason=reason),
        )
        return self._verdict([step], None, domain, time.monotonic())

    def _verdict(self, steps, rate, domain, start, **extra) -> ContractionVerdict:
        where = "on the whole space" if domain is None else f"on {domain!r}"
        shown = "λ" if rate is None else str(rate) if len(str(rate)) < 20 else repr(float(rate))
        verdict = combine(
            f"Ṁ + MJ + JᵀM + 2·({shown})·M ⪯ 0 and M ≻ 0 {where}",
            steps,
            assumptions=() if domain is None else (CONVEX,),
            kind=ContractionVerdict,
            metric=self,
            domain=domain,
            seconds=time.monotonic() - start,
            **extra,
        )
        if verdict.status is Status.PROVED and rate is not None:
            return replace(verdict, exact_rate=rate, rate=float_below(rate))
        return verdict

    def _settle(self, every: Sequence[Claim], method: str, deadline: Deadline) -> list[Step]:
        """As `settle`; a claim that does not depend on the state is refuted at any point of the set."""
        steps: list[Step] = []
        for k, claim in enumerate(every):
            if claim.matrix is not None and not claim.matrix.free_symbols:
                steps.append(_settle_constant(claim, method, deadline.part(1.0 / (len(every) - k))))
            else:
                steps += settle([claim], method, deadline.part(1.0 / (len(every) - k)))
        return steps

    def _definite(self, domain: Domain | None, method: str, deadline: Deadline) -> list[Step]:
        """M ≻ 0, uniformly where the set is unbounded."""
        name = f"M {'≻' if self.dim > 1 else '>'} 0"
        if self.constant:
            where = (
                domain if method == "interval" else None
            )  # branch and bound wants a box, though nothing depends on it
            return self._settle(claims(name, self.states, self.matrix, where, strict=True), method, deadline)
        every = claims(name, self.states, self.matrix, domain, strict=True)
        steps: list[Step] = []
        for k, claim in enumerate(every):
            part = deadline.part(1.0 / (len(every) - k))
            steps += settle([claim], method, part) if claim.bounded else self._uniform(claim, method, part)
        return steps

    def _uniform(self, claim: Claim, method: str, deadline: Deadline) -> list[Step]:
        """M ⪰ μI with the largest μ > 0 that can be proved; or M ≻ 0 refuted."""
        estimate, where = definite_slack(self.matrix, claim)
        if where is not None and estimate < 1e-9 and method in ("auto", "search"):
            point = round_witness(claim, where)
            if point is not None:
                reason = "M is not positive definite there"
                found = Outcome(status=Status.REFUTED, method="search", reason=reason, margin=estimate, witness=point)
                return [Step(claim, found)]

        def make(mu: sp.Rational) -> Claim:
            text = f"M ⪰ {mu}·I: M is uniformly positive definite on an unbounded set"
            return _like(claim, self.matrix - mu * sp.eye(self.dim), text, strict=False)

        last = Outcome(status=Status.UNDECIDED, method=method, reason="no lower bound μ > 0 of M was seen")
        for share in (1.0, 0.1, 0.001) if estimate > 0 else ():
            bound, proved, last = largest(make, share * estimate, method, deadline.part(0.6), least=0)
            if bound is not None and proved is not None:
                return [Step(proved, last)]
        reason = f"M ⪰ μI with μ > 0 is needed on an unbounded set and was not proved: {last.reason}"
        return [Step(claim, Outcome(status=Status.UNDECIDED, method=last.method, reason=reason, margin=estimate))]

    def _contracting(self, f: VectorField, rate: sp.Expr, domain: Domain | None, method: str) -> list[Claim]:
        """-(Ṁ + MJ + JᵀM + 2·rate·M) ⪰ 0, one claim a piece of the domain; one for all if it is of numbers."""
        whole = -(self._change(f) + 2 * rate * self.matrix)
        left = sp.ImmutableMatrix(whole.applyfunc(tidy))
        text = f"-(Ṁ + MJ + JᵀM + 2·({rate})·M) {'⪰' if self.dim > 1 else '≥'} 0"
        where = domain if left.free_symbols or method == "interval" else None
        return claims(text, self.states, left, where, strict=False)

    def _smooth(self, f: VectorField, domain: Domain | None, method: str, deadline: Deadline) -> list[Step]:
        """That f and M are defined and Lipschitz on the domain, where their derivatives might not tell."""
        return regular([("f", f, 1), ("M", self.matrix.flat(), 1)], self.states, domain, method, deadline)

    def _best(self, f, domain, which: int, seen, method: str, deadline: Deadline):
        """(step, largest provable rate or None, a refuted rate or None) on one piece of the domain."""
        estimate, where = seen

        def make(rate: Any) -> Claim:
            every = self._contracting(f, rate, domain, method)
            return every[min(which, len(every) - 1)]

        if not np.isfinite(estimate) or abs(estimate) > 1e12:
            reason = "the rate seems to be unbounded below on the set, or has no estimate: no rate was tried"
            return Step(make(sp.S.Zero), Outcome(status=Status.UNDECIDED, method="search", reason=reason)), None, None
        size = abs(estimate) if abs(estimate) > 1e-9 else 1.0
        bound, claim, outcome = largest(make, estimate, method, deadline, scale=size)
        above = None
        for step in ABOVE if where is not None else ():
            too_much = -shorten(-(estimate + step * size))
            if (bound is None or too_much > bound) and round_witness(make(too_much), where) is not None:
                above = float(too_much)
                break
        return Step(claim or make(sp.S.Zero), outcome), bound, above

    def _bounds(self, domain: Domain | None) -> tuple[sp.Rational, sp.Rational]:
        """Rationals low ≤ λ_min(M), λ_max(M) ≤ high on the domain, proved."""
        if self.constant:
            return bounds_of_constant(self.matrix)
        if domain not in self._limits:
            self._limits[domain] = self._extreme(1, domain), self._extreme(-1, domain)
        return self._limits[domain]

    def _extreme(self, sign: int, domain: Domain | None) -> sp.Rational:
        found = []
        for claim in claims("", self.states, self.matrix, domain, strict=False):

            def make(value: sp.Rational, claim: Claim = claim) -> Claim:
                matrix = (sign * self.matrix - value * sp.eye(self.dim)).applyfunc(tidy)
                return _like(claim, matrix, f"{'M' if sign > 0 else '-M'} ⪰ {value}·I", strict=False)

            estimate, _ = definite_slack(sign * self.matrix, claim)
            bound = None
            if np.isfinite(estimate) and abs(estimate) < 1e12:
                least = sp.S.Zero if sign > 0 else None
                bound, _, _ = largest(make, estimate, "auto", Deadline(10.0), least=least)
            if bound is None:
                side = "below by a μ > 0" if sign > 0 else "above"
                where = "the whole space" if domain is None else repr(domain)
                raise ValueError(
                    f"M must have provable bounds on the domain; none was proved {side} on {where}. "
                    "Pass a smaller domain=, on which M is bounded and positive definite."
                )
            found.append(bound)
        return sign * min(found)


def tidy(expr: Any) -> Any:
    """The formula expanded, or over one denominator, or after trigonometric identities where that is shorter."""
    if expr.is_number:
        return expr
    # a kink of f: the mean of the two slopes is one of the slopes between, and the claim is convex in them
    expr = expr.replace(sp.Heaviside, lambda u, *_: (1 + sp.sign(u)) / 2)
    names = expr.free_symbols
    if expr.is_polynomial(*names):
        return sp.expand(expr)
    if expr.is_rational_function(*names):
        return sp.cancel(expr)
    short = sp.expand(expr)
    if short.has(sp.sin, sp.cos) and sp.count_ops(short) < 150:
        short = min(short, sp.trigsimp(short), key=sp.count_ops)
    return short


def largest(make: Callable[[sp.Rational], Claim], estimate: float, method: str, deadline: Deadline, **kind: Any):
    """As `best_bound`; for what is not polynomial on a bounded set, branch and bound is asked first."""
    sample = make(sp.S.Zero)
    plain = sample.matrix is None or all(e.is_rational_function(*sample.states) for e in sample.matrix)
    if method == "auto" and sample.bounded and not plain:
        nice = next(iter(candidates(estimate, kind.get("scale"))))
        if nice.q <= 1000 and not (kind.get("least") is not None and nice <= kind["least"]):
            outcome = decide(make(nice), "exact", deadline.part(0.2))
            if outcome.status is Status.PROVED:
                return nice, make(nice), outcome
        found = best_bound(make, estimate, "interval", deadline.part(0.6), **kind)
        if found[0] is not None:
            return found
    return best_bound(make, estimate, method, deadline, **kind)


def _read_matrix(matrix: Any, states: tuple[sp.Symbol, ...]) -> sp.ImmutableMatrix:
    d = len(states)
    table = np.array(matrix.tolist() if isinstance(matrix, sp.MatrixBase) else _lists(matrix), dtype=object)
    if table.shape == () and d == 1:
        table = table.reshape(1, 1)
    if table.shape != (d, d):
        raise ValueError(f"M must be ({d}, {d}), one row a state; got shape {table.shape}.")
    rows = [[read_formula(table[i, j], states, f"M[{i}][{j}]") for j in range(d)] for i in range(d)]
    for i in range(d):
        for j in range(i):
            gap = sp.simplify(rows[i][j] - rows[j][i])
            if gap != 0:
                raise ValueError(
                    f"M must be symmetric; M[{i}][{j}] - M[{j}][{i}] is {sp.N(gap, 3)}. "
                    "Pass (M + M.T) / 2 if the skew part is not meant."
                )
            rows[i][j] = rows[j][i]
    out = sp.ImmutableMatrix(rows)
    kinks = sorted({type(a).__name__ for a in out.atoms(*KINKS)}) if out.free_symbols else []
    if kinks:
        raise ValueError(f"M must be differentiable; it holds {', '.join(kinks)}. Use smooth functions.")
    return out


def _lists(matrix: Any) -> Any:
    if isinstance(matrix, (list, tuple)):
        rows = [_lists(row) for row in matrix]
        lengths = {len(r) if isinstance(r, list) else 0 for r in rows}
        if len(lengths) > 1:
            raise ValueError(
                f"M must have rows of one length; got lengths {[len(r) if isinstance(r, list) else 0 for r in rows]}."
            )
        return rows
    if isinstance(matrix, (str, sp.Basic)) or np.ndim(matrix) == 0:
        return matrix
    return np.asarray(matrix).tolist()


def _like(claim: Claim, matrix: Any, text: str, *, strict: bool) -> Claim:
    return Claim(
        text=text,
        states=claim.states,
        matrix=matrix,
        strict=strict,
        guards=claim.guards,
        open_guards=claim.open_guards,
        equalities=claim.equalities,
        box=claim.box,
    )


def _settle_constant(claim: Claim, method: str, deadline: Deadline) -> Step:
    """A claim on a matrix of numbers: it holds everywhere or nowhere."""
    if method in ("auto", "search"):
        point = round_witness(claim, np.zeros(claim.dim), nudge=False)
        if point is not None:
            reason = "the matrix of numbers is indefinite, so it fails at every state"
            return Step(claim, Outcome(status=Status.REFUTED, method="search", reason=reason, witness=point))
    first = "exact" if method == "auto" else method
    outcome = decide(claim, first, deadline.part(0.5))
    if method == "auto" and outcome.status not in (Status.PROVED, Status.REFUTED):
        outcome = decide(claim, "auto", deadline)
    return Step(claim, outcome)
