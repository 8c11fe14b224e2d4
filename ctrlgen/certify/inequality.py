"""Plain inequalities: p ≥ 0 on a set, the largest provable lower bound of p, and whether p is a sum of squares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from importlib import import_module
from typing import Any, ClassVar

import numpy as np
import sympy as sp
from flint import fmpq

from ctrlgen.certify.build import check_domain, claims, settle
from ctrlgen.certify.regular import regular
from ctrlgen.certify.verdict import Step, Verdict, combine
from ctrlgen.domain import Domain
from ctrlgen.field import Field
from ctrlgen.prove.claim import Claim, Deadline, Outcome, Status
from ctrlgen.prove.decide import best_bound, check_method, check_timeout, float_below
from ctrlgen.prove.exact import SumOfSquares, solve_exactly
from ctrlgen.prove.polynomial import NotPolynomialError, translate
from ctrlgen.prove.program import Block, Program, monomials, pivots


def nonnegative(
    p: Any,
    states: Sequence[str | sp.Symbol],
    domain: Domain | None = None,
    method: str = "auto",
    *,
    strict: bool = False,
    timeout: float = 30.0,
) -> Verdict:
    """Decide p ≥ 0 (or p > 0 with `strict`) on a set.

    Args:
        p: formula of the states.
        states: names or symbols.
        domain: the set; None for the whole space.
        method: "auto", "search", "exact", "smt" or "interval".
        timeout: seconds.

    Raises:
        ValueError: p is not a real formula of the states, or the domain is empty.
    """
    deadline = check_timeout(timeout)
    check_method(method)
    field = Field(p, states, "p")
    if domain is not None:
        check_domain("domain", domain, field.states, volume=False)
    sign = ">" if strict else "≥"
    text = f"p {sign} 0 {'on the whole space' if domain is None else f'on {domain!r}'}"
    steps = settle(claims(f"p {sign} 0", field.states, field, domain, strict=strict), method, deadline)
    if field.expr is not None:
        steps += regular([("p", field, 0)], field.states, domain, method, deadline)
    return combine(text, steps, deadline=deadline)


@dataclass(frozen=True, kw_only=True, repr=False)
class Bound(Verdict):
    """A verdict on a bound.

    Args:
        bound: the largest lower bound that was proved, or None.
    """

    bound: float | None = None


def lower_bound(
    p: Any,
    states: Sequence[str | sp.Symbol],
    domain: Domain | None = None,
    method: str = "auto",
    *,
    timeout: float = 30.0,
) -> Bound:
    """The largest b for which p ≥ b on a set is proved: never above the true minimum.

    Args:
        p, states, domain, method, timeout: as in `nonnegative`.

    Returns:
        A verdict with `.bound`, and as `.witness` a point where p is nearly as small.
    """
    from ctrlgen.prove.search import minimise

    deadline = check_timeout(timeout)
    check_method(method)
    field = Field(p, states, "p")
    if field.expr is None:
        raise ValueError(f"p must have a formula here: {field.why_no_formula}.")
    if domain is not None:
        check_domain("domain", domain, field.states, volume=False)
    expr, steps, where = field.expr, [], None
    lowest: Any = None
    for claim in claims("p ≥ b", field.states, field, domain, strict=False):
        found = minimise(expr, claim.guards, field.states, claim.box)
        if found is None or not np.isfinite(found[1]):
            missing = Outcome(status=Status.UNDECIDED, method="search", reason="no finite minimum was found")
            return combine("p is bounded below", [Step(claim, missing)], kind=Bound, deadline=deadline)
        value, proved, outcome = best_bound(
            lambda b, c=claim: replace(c, text=f"p ≥ {b}", matrix=sp.Matrix([[expr - b]])),
            float(found[1]), method, deadline, scale=max(abs(float(found[1])), 1e-3),
        )  # fmt: skip
        steps.append(Step(proved or claim, outcome))
        if value is None:
            open_ones = combine("p is bounded below", steps, kind=Bound, deadline=deadline)
            return replace(open_ones, status=Status.UNDECIDED, witness=None)
        if lowest is None or value < lowest:
            lowest, where = value, np.asarray(found[0], float)
    steps += regular([("p", field, 0)], field.states, domain, method, deadline)
    if any(s.outcome.status is not Status.PROVED for s in steps):
        return combine("p is bounded below", steps, kind=Bound, deadline=deadline)
    return replace(
        combine(f"p ≥ {lowest}", steps, kind=Bound, deadline=deadline, bound=float_below(lowest)), witness=where
    )


def sum_of_squares(p: Any, states: Sequence[str | sp.Symbol], *, timeout: float = 30.0) -> Verdict:
    """Decide whether a polynomial is a sum of squares of polynomials.

    PROVED comes with a rational Gram matrix. REFUTED comes with a rational linear functional L on polynomials that is
    nonnegative on every square of that degree, and negative on p.

    Raises:
        ValueError: p is not a polynomial with rational coefficients.
    """
    deadline = check_timeout(timeout)
    field = Field(p, states, "p")
    claim = Claim(
        text="p is a sum of squares",
        states=field.states,
        matrix=sp.Matrix([[field.formula()]]),
        strict=False,
        kind="squares",
    )
    try:
        problem = translate(claim)
    except NotPolynomialError as error:
        raise ValueError(f"p must be a polynomial with rational coefficients; {error}.") from None
    if problem.lemmas or len(problem.variables) > len(field.states) or not field.formula().is_polynomial(*field.states):
        raise ValueError(f"p must be a polynomial with rational coefficients; got {field.expr}.")
    target = problem.target
    half = (target.total_degree() + 1) // 2
    basis = [problem.context.from_dict({m: 1}) for m in monomials(len(problem.variables), 0, half)]
    program = Program()
    identity = program.require(target, {}, [Block(target * 0 + 1, basis)])
    margin, words = solve_exactly(program, deadline.part(0.5))
    if margin is not None:
        certificate = SumOfSquares(claim, target * 0 + 1, identity, margin=margin)
        if certificate.recheck():
            reason = certificate.describe()
            proof = Outcome(status=Status.PROVED, method="exact", reason=reason, certificate=certificate, margin=margin)
            return combine(claim.text, [Step(claim, proof)], deadline=deadline)
    functional = _separate(claim, half, deadline)
    if functional is not None and functional.recheck():
        reason = f"a linear functional that is ≥ 0 on squares of degree {2 * half} and {functional.value()} on p"
        return combine(
            claim.text,
            [Step(claim, Outcome(status=Status.REFUTED, method="exact", reason=reason, certificate=functional))],
        )
    return combine(claim.text, [Step(claim, Outcome(status=Status.UNDECIDED, method="exact", reason=words))])


@dataclass(frozen=True)
class Functional:
    """A rational functional L, given on monomials, with L(q²) ≥ 0 for all q of degree ≤ half and L(p) < 0.

    Args:
        claim: that p is a sum of squares.
        half: the degree of the squares' bases; twice it is at least the degree of p.
        moments: L(z^m) of every monomial of degree ≤ 2·half.
    """

    claim: Claim
    half: int
    moments: dict[tuple[int, ...], fmpq]
    kinds: ClassVar = ("squares",)
    proves: ClassVar = Status.REFUTED

    def value(self) -> fmpq:
        """L(p)."""
        terms = translate(self.claim).target.to_dict()
        return sum((c * self.moments[m] for m, c in terms.items()), fmpq(0))

    def recheck(self) -> bool:
        """Verify both properties in rational arithmetic."""
        problem = translate(self.claim)
        if problem.target.total_degree() > 2 * self.half:
            return False
        basis = monomials(len(problem.variables), 0, self.half)
        matrix = [[self.moments[tuple(map(sum, zip(a, b, strict=True)))] for b in basis] for a in basis]
        return pivots(matrix) is not None and self.value() < 0


def _separate(claim: Claim, half: int, deadline: Deadline) -> Functional | None:
    """A functional from the moment program: M(L) ⪰ t I with t as large as possible, L(1) = 1 and L(p) ≤ -t."""
    from scipy import sparse

    from ctrlgen.prove.program import to_float

    clarabel: Any = import_module("clarabel")
    problem = translate(claim)
    n = len(problem.variables)
    basis, every = monomials(n, 0, half), monomials(n, 0, 2 * half)
    place = {m: k for k, m in enumerate(every)}
    terms = problem.target.to_dict()
    size = max(abs(to_float(c)) for c in terms.values())
    t = len(every)
    rows: list[tuple[int, int, float]] = []
    right: list[float] = []
    # trace M = number of rows (a bound), L(p)/size + t ≤ 0, t ≤ 1
    for b in basis:
        rows.append((0, place[tuple(2 * e for e in b)], 1.0))
    right.append(float(len(basis)))
    rows += [(1, place[m], to_float(c) / size) for m, c in terms.items()] + [(1, t, 1.0)]
    right.append(0.0)
    rows.append((2, t, 1.0))
    right.append(1.0)
    r = 3
    for j in range(len(basis)):
        for i in range(j + 1):
            rows.append(
                (r, place[tuple(map(sum, zip(basis[i], basis[j], strict=True)))], -1.0 if i == j else -np.sqrt(2.0))
            )
            if i == j:
                rows.append((r, t, 1.0))
            right.append(0.0)
            r += 1
    i_rows, i_cols, values = zip(*rows, strict=True)
    matrix = sparse.csc_matrix((values, (i_rows, i_cols)), shape=(r, t + 1))
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.max_threads = 1
    settings.time_limit = max(deadline.left(), 1e-3)
    cost = np.zeros(t + 1)
    cost[t] = -1.0
    cones = [clarabel.ZeroConeT(1), clarabel.NonnegativeConeT(2), clarabel.PSDTriangleConeT(len(basis))]
    solution = clarabel.DefaultSolver(
        sparse.csc_matrix((t + 1, t + 1)), cost, matrix, np.array(right), cones, settings
    ).solve()
    moments = np.array(solution.x)
    if not np.isfinite(moments).all() or moments[t] <= 0:
        return None
    exact = [Fraction(round(v * 2**40), 2**40) for v in moments[:t]]
    return Functional(claim, half, {m: fmpq(v.numerator, v.denominator) for m, v in zip(every, exact, strict=True)})
