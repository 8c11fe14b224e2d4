"""Finding a contraction metric: matrix inequalities in floating point, then simple rationals, verified from scratch.

M(x) = Σ c_k E_k with monomials of the states in its entries; M - I ⪰ 0 and -(Ṁ + MJ + JᵀM + 2λM) ⪰ 0 are linear in
the c_k. Three ways to c: sums of squares where the formulas are polynomial (or become so), the same inequalities at
points that counterexamples are added to, and exact linear algebra for linear systems. What is found by any of them is
only a candidate: `ContractionMetric.verify` decides.

Reference: Aylward, Parrilo and Slotine, Automatica 44 (2008) 2163; Boyd, El Ghaoui, Feron and Balakrishnan, Linear
Matrix Inequalities in System and Control Theory (1994), ch. 5, for linear systems.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import sympy as sp

from ctrlgen.certify.contraction import ContractionMetric, ContractionVerdict
from ctrlgen.certify.linear_metric import abscissa, linear_metrics
from ctrlgen.certify.metric_programs import Family, scalars
from ctrlgen.certify.spectrum import slowest
from ctrlgen.domain import Domain, exact
from ctrlgen.field import VectorField
from ctrlgen.prove.claim import Deadline, Status
from ctrlgen.prove.decide import candidates
from ctrlgen.prove.exact import solve_exactly
from ctrlgen.prove.polynomial import NotPolynomialError

SLACKS = (0.05, 1e-2, 1e-3, 1e-5)  # rates that are asked for above the rate, relative to it: room for rounding
DIGITS = (1, 2, 3, 4, 6, 9, 12)  # of the rounded coefficients, few first
LEVELS = 3  # of the sums of squares on a domain
ROUNDS = 8  # of adding counterexamples
HALVINGS = 12  # of the bisection for the rate
CONDITION = 1e10  # of a metric: a larger rate that needs a worse one is not taken
BACK = (1e-9, 1e-6, 1e-4, 1e-3, 1e-2, 0.1, 0.5)  # below the best rate of a linear system, relative


def find_contraction_metric(
    f: Any,
    states: Sequence[str | sp.Symbol],
    degree: int = 0,
    rate: Any = None,
    domain: Domain | None = None,
    method: str = "auto",
    timeout: float = 30,
) -> ContractionVerdict:
    """Search for a contraction metric M(x) with polynomial entries, and prove it.

    Args:
        f: the right-hand side of ẋ = f(x), as `VectorField` takes it.
        states: names or symbols, in the order of the coordinates.
        degree: of M's entries in the states; 0 is a constant metric. A linear system gets a constant one.
        rate: λ [1/time]; None for the largest that is found, by bisection.
        domain: the set; None for the whole space. It is assumed to be forward invariant and convex.
        method: the engine that verifies, or "auto".
        timeout: seconds.

    Returns:
        a verdict; `.found` is the metric (a ContractionMetric that knows its rate) or None, `.rate` the rate that was
        proved. A search that finds nothing is UNDECIDED: it refutes nothing.

    Raises:
        ValueError: an argument is none of these, or f is in discrete time.
    """
    start = time.monotonic()
    identity = ContractionMetric(sp.eye(len(VectorField(f, states).states)), states)
    flow, deadline = identity._checked(f, domain, method, timeout)
    if isinstance(degree, bool) or not isinstance(degree, (int, np.integer)) or not 0 <= degree <= 12:
        raise ValueError(f"degree must be an integer from 0 to 12, that of the entries of M; got {degree!r}.")
    wanted = None if rate is None else exact("rate", rate)
    verdict = identity._impossible(flow, domain)
    if verdict is None:
        search = _Search(flow, identity, int(degree), domain, method, deadline)
        linear = not flow.jacobian().free_symbols
        if wanted is None:
            verdict = search.best_linear() if linear else search.best()
        else:
            verdict = search.linear(wanted) if linear else search.at(wanted)
    return replace(verdict, seconds=time.monotonic() - start)


class _Search:
    """One search: the family M = Σ c_k E_k, its inequalities, and the candidates from them."""

    def __init__(self, f: VectorField, identity: ContractionMetric, degree: int, domain, method, deadline: Deadline):
        self.f, self.identity, self.domain, self.method, self.deadline = f, identity, domain, method, deadline
        self.states, self.d = identity.states, identity.dim
        self.family = Family(f, degree, domain)
        self.pieces, self.bounded = self.family.pieces, self.family.bounded
        self.rational = all(e.is_rational_function(*self.states) for e in f.formulas())
        self.words: list[str] = []
        self.verdict: ContractionVerdict | None = None

    # What is asked of a candidate -----------------------------------------------------------------------------

    def accept(self, matrix: Any, rate: Any, estimated: bool = True) -> ContractionVerdict | None:
        """The verdict on a candidate if it is proved; None otherwise."""
        try:
            metric = ContractionMetric(matrix, self.states)
        except ValueError:
            return None
        if estimated:
            estimate, where = self.slowest(metric)
            if not estimate >= float(rate) - 1e-9 * max(1.0, abs(float(rate))):
                self.counterexample = where
                return None
        verdict = metric.verify(self.f, rate, self.domain, self.method, max(0.4 * self.deadline.left(), 0.05))
        self.verdict = verdict
        if verdict.status is not Status.PROVED:
            return None
        found = metric.promising(rate, self.domain)
        return replace(verdict, found=found, metric=found)

    def slowest(self, metric: ContractionMetric) -> tuple[float, np.ndarray | None]:
        """The least rate over the domain, estimated, and where; NaN where the metric is not positive definite."""
        change = metric.derivative(self.f)
        every = [slowest(change, metric.matrix, piece, self.states) for piece in self.pieces]
        return min(every, key=lambda e: e[0] if np.isfinite(e[0]) else -np.inf)

    def rounded(self, c: np.ndarray, rate: Any) -> ContractionVerdict | None:
        """The first rounding of c that is proved."""
        top = float(np.abs(c).max(initial=0.0))
        if not (np.isfinite(top) and top > 0):
            return None
        tried = set()
        for digits in DIGITS:
            values = tuple(sp.Rational(round(float(v) / top * 10**digits), 10**digits) for v in c)
            if values in tried or self.deadline.over:
                continue
            tried.add(values)
            verdict = self.accept(self.family.matrix(values), rate)
            if verdict is not None:
                return verdict
            if len(tried) > 3 and self.verdict is not None and self.verdict.status is Status.UNDECIDED:
                break
        return None

    def nothing(self, rate: Any, reason: str) -> ContractionVerdict:
        """The verdict of a search that found nothing."""
        verdict = self.identity._verdict([], rate, self.domain, time.monotonic())
        if self.verdict is not None and self.verdict.reason:
            reason = f"{reason}; the last candidate: {self.verdict.reason}"
        return replace(verdict, metric=None, method="search", reason=reason[:2000])

    # Linear systems -------------------------------------------------------------------------------------------

    def linear(self, rate: Any) -> ContractionVerdict:
        """A constant metric for ẋ = Ax at this rate."""
        slope = self.f.jacobian()
        for matrix in self.linear_candidates(slope, rate):
            verdict = self.accept(matrix, rate, estimated=False)
            if verdict is not None:
                return verdict
            if self.deadline.over:
                return self.nothing(rate, "time-out")
        top = abscissa(slope)
        if float(rate) > -top:
            return self.nothing(
                rate,
                f"A has an eigenvalue with real part {top:.12g}: some trajectories do not approach each other faster "
                f"than e^({top:.6g}·t), and no metric bounded above and below contracts at the rate {float(rate):.12g}",
            )
        return self.nothing(
            rate,
            "no candidate was proved; at the spectral abscissa itself there is a metric only if the eigenvalues there "
            "are semisimple",
        )

    def linear_candidates(self, slope: sp.ImmutableMatrix, rate: Any) -> Iterator[Any]:
        yield sp.eye(self.d)
        constant = Family(self.f, 0, None)
        room = -abscissa(slope) - float(rate)
        for share in (0.5, 0.1, 0.01):
            c = constant.sampled(float(rate) + share * room, [np.zeros(self.d)], self.deadline) if room > 0 else None
            if c is not None:
                top = float(np.abs(c).max())
                for digits in (1, 2, 4, 8):
                    yield constant.matrix([sp.Rational(round(float(v) / top * 10**digits), 10**digits) for v in c])
                break
        yield from linear_metrics(slope, rate)

    def best_linear(self) -> ContractionVerdict:
        """The largest rate for ẋ = Ax: the spectral abscissa's magnitude, or a little below."""
        best = -abscissa(self.f.jacobian())
        size = max(abs(best), 1e-9)
        nice = Fraction(best).limit_denominator(1000)
        rates = [sp.Rational(nice)] if abs(float(nice) - best) < 1e-9 * size else []
        rates += [next(iter(r for r in [*candidates(best - b * size, size)][-13:])) for b in BACK]
        first: ContractionVerdict | None = None
        for rate in rates:
            verdict = self.linear(rate)
            if verdict.status is Status.PROVED and verdict.found is not None:
                first = verdict if first is None else first
                if np.linalg.cond(np.array(verdict.found.matrix.tolist(), dtype=float)) < CONDITION:
                    return verdict  # a rate that costs more in distances than this is not worth having
            if self.deadline.over:
                break
        if first is not None:
            return first
        return self.nothing(None, "no constant metric was proved at any rate below the spectral abscissa's")

    # The inequalities at points -------------------------------------------------------------------------------

    def by_points(self, rate: Any) -> ContractionVerdict | None:
        """Candidates from the inequalities at points; each that fails adds the point where it does."""
        points = self.family.points()
        size = max(abs(float(rate)), 0.1)
        for slack in SLACKS:
            for _ in range(ROUNDS):
                if self.deadline.over:
                    return None
                c = self.family.sampled(float(rate) + slack * size, points, self.deadline)
                if c is None:
                    self.words.append(
                        f"no metric of this degree has the rate {float(rate) + slack * size:.6g} at points"
                    )
                    break
                self.counterexample = None
                verdict = self.rounded(c, rate)
                if verdict is not None:
                    return verdict
                if self.counterexample is None or not np.isfinite(self.counterexample).all():
                    break
                points.append(self.counterexample)
        return None

    # Sums of squares ------------------------------------------------------------------------------------------

    def by_squares(self, rate: Any, deadline: Deadline) -> ContractionVerdict | None:
        """Candidates from sum-of-squares programs of growing level."""
        size = max(abs(float(rate)), 0.1)
        goal = rate if rate.is_Rational else sp.Rational(repr(float(rate) + 1e-12 * size))
        for level in range(LEVELS):
            for slack in SLACKS:
                if deadline.over:
                    return None
                program = self.family.programs(goal + sp.Rational(repr(slack)) * sp.Rational(repr(size)), level)
                if program is None:
                    return None
                program.objective = self.family.trace()
                c = scalars(program, deadline)
                if c is None:
                    self.words.append(f"level {level}, slack {slack:g}: {program.status}")
                    continue
                verdict = self.rounded(c, rate)
                if verdict is not None:
                    return verdict
            program = self.family.programs(goal, level)
            if program is not None:
                margin, words = solve_exactly(program, deadline)
                if margin is not None and program.found is not None:
                    c = [sp.Rational(int(v.p), int(v.q)) for v in program.found]
                    verdict = self.accept(self.family.matrix(c), rate, estimated=False)
                    if verdict is not None:
                        return verdict
                self.words.append(f"level {level}: {words or 'a metric was found but not proved'}")
        return None

    # In general -----------------------------------------------------------------------------------------------

    def at(self, rate: Any) -> ContractionVerdict:
        """A metric of the degree at this rate."""
        verdict = self.accept(sp.eye(self.d), rate)
        if verdict is not None:
            return verdict
        for way in ("points", "squares") if self.bounded and not self.rational else ("squares", "points"):
            if self.deadline.over:
                break
            if way == "points" and not self.bounded and self.rational and self.words:
                continue  # the sums of squares have answered for the whole space
            if way == "points":
                verdict = self.by_points(rate)
            else:
                try:
                    verdict = self.by_squares(rate, self.deadline.part(0.7))
                except NotPolynomialError as error:
                    self.words.append(str(error))
            if verdict is not None:
                return verdict
        ways = "; ".join(dict.fromkeys(self.words)) or "no candidate was proved"
        return self.nothing(rate, f"no metric of this degree was found and proved: {ways}")

    def feasible(self, rate: float) -> bool:
        """Does floating point say that a metric of the degree has this rate? A guess that guides the bisection."""
        if self.rational or not self.bounded:
            try:
                for level in range(2):
                    program = self.family.programs(sp.Rational(Fraction(rate).limit_denominator(10**9)), level)
                    if program is None:
                        continue
                    if program.solve(self.deadline.part(0.2)) is not None and program.margin > 1e-7:
                        return True
                return False
            except NotPolynomialError:
                pass
        return self.family.sampled(rate, self.family.points(), self.deadline) is not None

    def best(self) -> ContractionVerdict:
        """The largest rate that is found, by bisection, and then whatever its metric can prove."""
        low, _ = self.slowest(self.identity)
        plain = np.isfinite(low) and abs(low) < 1e6
        low = low if plain else 0.0
        step = max(abs(low), 0.25)
        while not plain and not self.feasible(low) and low > -1e3 and not self.deadline.over:
            low, step = low - step, 2 * step
        high = low + step
        while self.feasible(high) and high < 1e6 and not self.deadline.part(0.7).over:
            low, step = high, 2 * step
            high = low + step
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            if self.deadline.over or high - low < 1e-3 * max(abs(low), 1e-3):
                break
            low, high = (middle, high) if self.feasible(middle) else (low, middle)
        best: ContractionVerdict | None = None
        if plain:
            best = self._sharpened(self.identity, None)
        for back in (0.003, 0.02, 0.1, 0.4):
            rate = sp.Rational(Fraction(low - back * max(abs(low), 1e-3)).limit_denominator(1000))
            if self.deadline.over or (best is not None and best.exact_rate is not None and rate <= best.exact_rate):
                break
            verdict = self.at(rate)
            if verdict.status is Status.PROVED and verdict.found is not None:
                best = self._sharpened(verdict.found, verdict)
                break
        if best is not None:
            return best
        words = "; ".join(dict.fromkeys(self.words))
        return self.nothing(None, f"no metric of this degree was proved at rates near {low:.6g}: {words}")

    def _sharpened(self, metric: ContractionMetric, known: ContractionVerdict | None) -> ContractionVerdict | None:
        """The verdict on the largest rate of a metric, if that is proved; else what was known."""
        verdict = metric.rate(self.f, self.domain, self.method, max(0.3 * self.deadline.left(), 0.05))
        rate = verdict.exact_rate
        if rate is None or (known is not None and known.exact_rate is not None and rate < known.exact_rate):
            return known
        found = metric.promising(rate, self.domain)
        return replace(verdict, found=found, metric=found)
