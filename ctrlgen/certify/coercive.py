"""Radial unboundedness: V → ∞ as |x| → ∞, decided."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import sympy as sp

from ctrlgen.certify.verdict import Step
from ctrlgen.field import Field
from ctrlgen.prove.claim import Claim, Deadline, Outcome, Status
from ctrlgen.prove.decide import decide
from ctrlgen.prove.exact import SumOfSquares
from ctrlgen.prove.polynomial import translate
from ctrlgen.prove.program import to_float

TEXT = "V → ∞ as |x| → ∞"


def radially_unbounded(field: Field, positive: Step, deadline: Deadline) -> Step:
    """The step that V → ∞ as |x| → ∞: V ≥ λ Σ xᵢ^{2kᵢ} - b for some λ > 0, or a sum of functions of one state each.

    Args:
        field: V.
        positive: the step that proved V > 0 (or V ≥ 0), whose certificate suggests the powers.
        deadline: for the attempts.
    """
    expr = field.expr
    last = Outcome(status=Status.UNDECIDED, method="exact", reason="V has no formula")
    about = Claim(text=TEXT, states=field.states, matrix=positive.claim.matrix, strict=False, kind="growth")
    if expr is None:
        return Step(about, last)
    if separately_coercive(expr, field.states):
        reason = "a sum of functions of one state each, every one of which grows without bound"
        proof = Outcome(status=Status.PROVED, method="symbolic", reason=reason, certificate=Separate(about))
        return Step(about, proof)
    for below, offset in _lower_bounds(field, positive):
        if deadline.over:
            break
        claim = Claim(
            text=f"{TEXT}: V ≥ {below}{f' - {offset}' if offset else ''}",
            states=field.states,
            matrix=sp.Matrix([[expr - below + offset]]),
            strict=False,
        )
        last = decide(claim, "exact", deadline.part(0.5))
        if last.status is Status.PROVED:
            return Step(claim, last)
    why = "V > 0 everywhere, but it was not established that V → ∞ as |x| → ∞, which global stability needs"
    reason = f"{why} ({last.reason})"
    return Step(about, Outcome(status=Status.UNDECIDED, method="exact", reason=reason))


def _lower_bounds(field: Field, positive: Step):
    """Sums of even powers that V may exceed: those of the certificate's squares first."""
    certificate: Any = positive.outcome.certificate
    if isinstance(certificate, SumOfSquares) and certificate.multiplier.is_one():
        powers = _pure_powers(certificate)
        if powers is not None:
            least = _least_eigenvalue(certificate)
            for scale in (2 ** max(1, 1 - math.floor(math.log2(least))) * k for k in (1, 16, 2**10, 2**20)):
                yield sp.Add(*(s ** (2 * k) for s, k in zip(field.states, powers, strict=True))) / scale, 0
    for scale in (10, 1000):
        for offset in (0, 1, 100):
            yield sp.Add(*(s**2 for s in field.states)) / scale, offset


def _least_eigenvalue(certificate: SumOfSquares) -> float:
    """About the smallest eigenvalue of the unweighted Gram matrix, above 1e-12."""
    least = 1.0
    for block in certificate.identity.blocks:
        if block.factor.is_one() and block.gram:
            gram = np.array([[to_float(q) for q in row] for row in block.gram])
            least = min(least, float(np.linalg.eigvalsh(gram)[0]))
    return max(least, 1e-12)


def _pure_powers(certificate: SumOfSquares) -> list[int] | None:
    """For each state the largest k with x^k among the squares' basis; None if one has none."""
    problem = translate(certificate.claim)
    out = []
    for state in certificate.claim.states:
        if state not in problem.variables:
            return None
        i = problem.variables.index(state)
        found = [
            m[i]
            for block in certificate.identity.blocks
            if block.factor.is_one()
            for w in block.basis
            if len(w) == 1 and sum(m := w.monoms()[0]) == m[i] and m[i] > 0
        ]
        if not found:
            return None
        out.append(max(found))
    return out


@dataclass(frozen=True)
class Separate:
    """The certificate of a sum of coercive functions of one state each: it is checked by its form."""

    claim: Claim
    kinds: ClassVar = ("growth",)

    def recheck(self) -> bool:
        """Look at the form again."""
        return separately_coercive(self.claim.matrix[0, 0], self.claim.states)


def separately_coercive(expr: Any, states: tuple[sp.Symbol, ...]) -> bool:
    """Is expr a growing function of Σ vᵢ(xᵢ), with every vᵢ a positive sum of forms that grow without bound?"""
    expr = expr.as_independent(*states, as_Add=True)[1]
    if expr.is_Mul:
        constant, rest = expr.as_independent(*states, as_Add=False)
        return constant.is_positive is True and rest != expr and separately_coercive(rest, states)
    if len(expr.free_symbols) > 1 and _is_growing(expr):
        return separately_coercive(expr.args[0], states)
    terms: dict[Any, list[Any]] = {s: [] for s in states}
    for term in sp.Add.make_args(expr):
        if len(term.free_symbols) != 1:
            return False
        (s,) = term.free_symbols
        terms[s].append(term)
    return all(parts and _coercive(sp.Add(*parts), s) for s, parts in terms.items())


def _is_growing(expr: Any) -> bool:
    """Is expr = g(u) with g(u) → ∞ as u → ∞?"""
    return isinstance(expr, (sp.log, sp.exp)) or bool(expr.is_Pow and expr.exp.is_Rational and expr.exp > 0)


def _coercive(expr: Any, x: sp.Symbol) -> bool:
    """Does expr(x) → +∞ for x → ±∞? Established by form only; False means "not established"."""
    if expr.is_polynomial(x):
        poly = sp.Poly(expr, x)
        return poly.degree() > 0 and poly.degree() % 2 == 0 and poly.LC().is_positive is True
    if expr.is_Add:
        grows = [_coercive(a, x) for a in expr.args]
        return any(grows) and all(g or _bounded_below(a, x) for g, a in zip(grows, expr.args, strict=True))
    if expr.is_Mul:
        constant, rest = expr.as_independent(x)
        return constant.is_positive is True and rest != expr and _coercive(rest, x)
    inner: Any = expr.args[0]
    if isinstance(expr, sp.cosh):
        return _coercive(inner**2, x)
    if _is_growing(expr):
        return _coercive(expr.args[0], x)
    if isinstance(expr, sp.Abs):
        return _coercive(expr.args[0] ** 2, x)
    return False


def _bounded_below(expr: Any, x: sp.Symbol) -> bool:
    """Is expr(x) bounded below on the line? By form: bounded functions, squares and exponentials."""
    constant, rest = expr.as_independent(x)
    if isinstance(rest, (sp.sin, sp.cos, sp.tanh, sp.atan, sp.erf)):
        return True
    if constant.is_nonnegative is not True:
        return False
    even = rest.is_Pow and rest.exp.is_Integer and rest.exp > 0 and rest.exp % 2 == 0
    return bool(even or isinstance(rest, (sp.Abs, sp.exp, sp.cosh)))
