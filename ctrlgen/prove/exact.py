"""The exact engine: sums of squares found in floating point, made rational, and checked in rational arithmetic.

To prove p > 0 or p ≥ 0 on {g ≥ 0, h = 0} it looks for a Positivstellensatz identity

    s · p  =  σ₀ + Σ σ_b · (product of guards) + Σ λ_j h_j,     σ sums of squares,  s = 1 or a positive polynomial,

of growing degree. A strict claim needs a term that is positive wherever p is asked to be: a sum of squares whose
squares vanish together only at the excepted point, times 1 or times open guards.

Reference: Putinar, Indiana Univ. Math. J. 42 (1993) 969; Schmüdgen, Math. Ann. 289 (1991) 203; Reznick, Math. Z. 220
(1995) 75, for the multiplier s.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from math import lcm
from typing import Any, ClassVar

import numpy as np
from flint import Ordering, fmpq, fmpq_mpoly, fmpz_mpoly_ctx, fmpz_mpoly_vec

from ctrlgen.prove.claim import Claim, Deadline, Outcome, Status
from ctrlgen.prove.polynomial import NotPolynomialError, Semialgebraic, scaled, translate
from ctrlgen.prove.program import Block, Identity, Program, monomials, pivots, to_float

LARGEST_BASIS = 90
SPARSE_FROM = 24  # bases larger than this are split along the target's sparsity
LEVELS = 4
FACES = 4  # how often the bases are restricted to a guessed face


def decide(claim: Claim, deadline: Deadline) -> Outcome:
    """Prove the claim by a rational sum-of-squares certificate, or say why that did not succeed. Never refutes."""
    start = time.monotonic()
    outcome = _decide(claim, deadline)
    return replace(outcome, seconds=time.monotonic() - start)


def _decide(claim: Claim, deadline: Deadline) -> Outcome:
    try:
        problem = translate(claim)
    except NotPolynomialError as error:
        return _undecided(f"not a polynomial claim: {error}")
    lemmas = []
    for lemma in problem.lemmas:
        outcome = prove_lemma(lemma, deadline)
        if outcome.status is not Status.PROVED:
            return _undecided(f"needs {lemma.text}, which is {outcome.status.value}: {outcome.reason}")
        lemmas.append(outcome)
    certificate, reason = search_certificate(claim, problem, deadline)
    if certificate is None:
        return _undecided(reason)
    certificate = replace(certificate, lemmas=tuple(lemmas))
    if not certificate.recheck():
        return _undecided("a certificate was found, but it did not survive its own check")
    return Outcome(
        status=Status.PROVED,
        method="exact",
        reason="; ".join([certificate.describe(), *(f"{x.reason}" for x in lemmas)]),
        margin=certificate.margin,
        certificate=certificate,
    )


def prove_lemma(lemma: Claim, deadline: Deadline) -> Outcome:
    """Decide a side claim: exactly, or else by ball arithmetic."""
    outcome = decide(lemma, deadline.part(0.5))
    if outcome.status is Status.PROVED or not lemma.bounded:
        return outcome
    from ctrlgen.prove import interval

    return interval.decide(lemma, deadline.part(0.5))


def _undecided(reason: str) -> Outcome:
    return Outcome(status=Status.UNDECIDED, method="exact", reason=reason)


@dataclass(frozen=True)
class SumOfSquares:
    """A rational certificate: s · p = Σ_b factor_b · wᵀ Q_b w + Σ_j λ_j h_j.

    Args:
        claim: what it proves.
        multiplier: s, as a polynomial in the translation's variables.
        identity: the blocks with their rational Gram matrices, and the multipliers λ.
        lemmas: outcomes of the side claims (signs of denominators), with certificates of their own.
        margin: the smallest eigenvalue of the floating-point Gram matrices (how far from the boundary it was found).
    """

    claim: Claim
    multiplier: fmpq_mpoly
    identity: Identity
    lemmas: tuple[Outcome, ...] = ()
    margin: float | None = None
    kinds: ClassVar = ("sign", "squares")

    def recheck(self) -> bool:
        """Verify everything again in rational arithmetic, from the claim's own formulas; no solver is asked."""
        problem = translate(self.claim)
        if len(problem.lemmas) != len(self.lemmas):
            return False
        plain = self.multiplier.is_one() and not any(block.key for block in self.identity.blocks)
        if self.claim.kind == "squares" and not plain:
            return False
        for lemma, outcome in zip(problem.lemmas, self.lemmas, strict=True):
            certificate = outcome.certificate
            if certificate is None or certificate.claim != lemma or outcome.status is not Status.PROVED:
                return False
            if not certificate.recheck():
                return False
        if not _positive_multiplier(self.multiplier, problem, self.claim.strict):
            return False
        guards = [*problem.open_guards, *problem.guards]
        for block in self.identity.blocks:
            gram, size = block.gram, len(block.basis)
            if gram is None or len(gram) != size or any(len(row) != size for row in gram):
                return False
            if any(gram[i][j] != gram[j][i] for i in range(size) for j in range(i)) or pivots(gram) is None:
                return False
            if not all(0 <= k < len(guards) for k in block.key):
                return False
            product = problem.target * 0 + 1
            for k in block.key:
                product = product * guards[k]
            if block.factor != product:
                return False
        if len(self.identity.free) != len(self.identity.multipliers):
            return False
        if [h for h, _ in self.identity.free] != problem.equalities[: len(self.identity.free)]:
            return False
        if self.identity.constant != self.multiplier * problem.target or self.identity.linear:
            return False
        if not self.identity.holds([]):
            return False
        return not self.claim.strict or strict_enough(self.identity.blocks, problem)

    def describe(self) -> str:
        """Sizes and degrees, in a line."""
        count = Counter(len(b.basis) for b in self.identity.blocks)
        sizes = (
            ", ".join(f"{f'{k} of ' if k > 1 else ''}{n}×{n}" for n, k in sorted(count.items(), reverse=True)) or "none"
        )
        degree = max(
            (2 * w.total_degree() + b.factor.total_degree() for b in self.identity.blocks for w in b.basis), default=0
        )
        times = "" if self.multiplier.is_one() else f" of ({self.multiplier})·p"
        return f"sum of squares{times} of degree {degree} with rational Gram matrices {sizes}"


def _positive_multiplier(s: fmpq_mpoly, problem: Semialgebraic, strict: bool) -> bool:
    """Is s > 0 wherever the claim asks something? s must be a sum of even monomials with positive coefficients."""
    terms = s.to_dict()
    if not terms or any(c <= 0 or any(e % 2 for e in m) for m, c in terms.items()):
        return False
    if (0,) * len(problem.variables or (0,)) in terms:
        return True
    pure = {next(i for i, e in enumerate(m) if e) for m in terms if sum(1 for e in m if e) == 1}
    # zero only where all these variables are: at the excepted point for a strict claim, and for a weak one at a point
    # where p ≥ 0 follows by continuity when nothing but the whole space is claimed
    whole = not (problem.guards or problem.open_guards or problem.equalities or problem.size)
    if not strict:
        return whole and pure == set(range(len(problem.variables)))
    return bool(problem.keys) and not problem.size and all(any(pure >= {*a} for a in key) for key in problem.keys)


# Strictness --------------------------------------------------------------------------------------------------


def strict_enough(blocks: list[Block], problem: Semialgebraic) -> bool:
    """Is some term positive wherever the claim is strict: do its squares vanish together only at the excepted point?"""
    opened = len(problem.open_guards)
    forms: list[fmpq_mpoly] = []
    for block in blocks:
        if all(k < opened for k in block.key):  # factor 1, or a product of open guards: positive on the set
            forms += _squares(block)
    names = len(problem.variables)
    need = [((i,),) for i in range(names - problem.size, names)] if problem.size else list(problem.keys)
    if not need:
        return any(f.is_constant() and not f.is_zero() for f in forms) or _no_common_zero(
            [*forms, *problem.equalities], None
        )

    def forced(i: int) -> bool:
        return any(_pure_power(f, i) for f in forms) or _no_common_zero([*forms, *problem.equalities], i)

    return all(any(all(forced(i) for i in alternative) for alternative in key) for key in need)


def _squares(block: Block) -> list[fmpq_mpoly]:
    """Polynomials whose common zeros are the zeros of wᵀQw: w itself if Q ≻ 0, else the rows of Q w (ker Q as such)."""
    gram = block.gram or []
    found = pivots(gram)
    if found is None:
        return []
    if all(d > 0 for d in found):
        return list(block.basis)
    zero = block.factor * 0
    return [sum((v * q for q, v in zip(row, block.basis, strict=True) if q != 0), zero) for row in gram]


def _pure_power(form: fmpq_mpoly, i: int) -> bool:
    monomial = form.monoms()
    return len(monomial) == 1 and monomial[0][i] > 0 and sum(monomial[0]) == monomial[0][i]


def _no_common_zero(forms: list[fmpq_mpoly], i: int | None) -> bool:
    """Have the forms no common zero, or none with z_i ≠ 0? Decided over C by a Gröbner basis (Rabinowitsch)."""
    forms = [f for f in forms if not f.is_zero()]
    if not forms or len(forms[0].context().names()) > 6 or max(f.total_degree() for f in forms) > 6:
        return False
    n = len(forms[0].context().names())
    context = fmpz_mpoly_ctx.get([f"z{k}" for k in range(n + 1)], Ordering.degrevlex)
    integral = []
    for f in forms:
        terms = f.to_dict()
        common = lcm(*(int(c.q) for c in terms.values()))
        integral.append(context.from_dict({(*m, 0): int(c.p) * (common // int(c.q)) for m, c in terms.items()}))
    if i is not None:
        turn = context.from_dict({(0,) * (n + 1): 1, (*(1 if k == i else 0 for k in range(n)), 1): -1})
        integral.append(turn)
    basis: Any = fmpz_mpoly_vec(integral, context).buchberger_naive(limits=(60, 400, 2000))
    if isinstance(basis, tuple):
        basis = basis[0]  # the elements that were found within the limits lie in the ideal
    return any(g.is_constant() and not g.is_zero() for g in basis)


# The search --------------------------------------------------------------------------------------------------


def search_certificate(claim: Claim, problem: Semialgebraic, deadline: Deadline) -> tuple[SumOfSquares | None, str]:
    """Try identities of growing degree until one is exact; the reason says what each try came to."""
    target = scaled(problem.target)
    if target.is_zero():
        if claim.strict:
            return None, "the left-hand side is identically zero"
        empty = Identity(problem.target, {}, [])
        return SumOfSquares(claim, problem.target * 0 + 1, empty, margin=0.0), ""
    reasons: list[str] = []
    for name, multiplier, blocks, free in attempts(claim, problem, target):
        for sparsity in ("terms", "squares", "") if len(blocks[0].basis) > SPARSE_FROM else ("",):
            if deadline.over:
                reasons.append("time-out")
                return None, "; ".join(reasons)
            program = Program()
            identity = program.require(multiplier * target, {}, [replace(b) for b in blocks], free)
            if sparsity and not program.split(squares=sparsity == "squares", deadline=deadline):
                reasons.append(f"{name}: a basis of {len(blocks[0].basis)} monomials was not split in the time")
                continue
            if max((len(b.basis) for b in identity.blocks), default=0) > LARGEST_BASIS:
                reasons.append(f"{name}: a Gram matrix of more than {LARGEST_BASIS} rows was not tried")
                continue
            margin, words = solve_exactly(
                program,
                deadline.part(0.5) if sparsity else deadline,
                (lambda i=identity: strict_enough(i.blocks, problem)) if claim.strict else None,
            )
            if margin is not None:
                _unscale(identity, problem.target, multiplier)
                return SumOfSquares(claim, multiplier, identity, margin=margin), ""
            reasons.append(f"{name}{f' (split by {sparsity})' if sparsity else ''}: {words}")
    return None, "; ".join(reasons) or "no identity was tried"


def _unscale(identity: Identity, target: fmpq_mpoly, multiplier: fmpq_mpoly) -> None:
    """From the identity of the scaled target to that of the target."""
    ratio = target.coeffs()[0] / scaled(target).coeffs()[0]
    identity.constant = multiplier * target
    for block in identity.blocks:
        block.gram = [[q * ratio for q in row] for row in block.gram or []]
    identity.multipliers = [m * ratio for m in identity.multipliers]


def solve_exactly(program: Program, deadline: Deadline, accept=None) -> tuple[float | None, str]:
    """Solve, round, and check; on a singular Gram matrix restrict to a face and try again.

    Returns:
        (margin, "") with the program's Gram matrices filled in by rationals, or (None, the reason).
    """
    if not program.prune(deadline):
        return None, "time-out" if deadline.over else "no sum of squares (a coefficient has the wrong sign)"
    words = ""
    for face in range(FACES):
        if any(not i.blocks and not i.constant.is_zero() and not i.free and not i.linear for i in program.identities):
            return None, "no squares are left that could make it up"
        values = program.solve(deadline)
        if values is None:
            return None, f"{program.status}"
        margin = program.margin
        if margin > -1e-7:
            free = program.exact(values, deadline)
            if free is not None and (accept is None or accept()):
                return max(margin, 0.0), ""
            words = "not exact" if free is None else "exact, but only weak"
        if margin < -1e-4:
            return None, f"infeasible by {-margin:.1e} ({program.status})"
        if face + 1 == FACES or deadline.over:
            break
        centre = program.solve(deadline, margin=False)
        if centre is None:
            return None, f"{program.status} (at the boundary: margin {margin:.1e})"
        if not program.reduce(centre):
            free = program.exact(centre, deadline)
            if free is not None and (accept is None or accept()):
                return 0.0, ""
            return None, f"margin {margin:.1e}, and no rational face was recognised ({program.status})"
    return None, f"{words or 'infeasible'} (margin {program.margin:.1e}, {program.status})"


def attempts(
    claim: Claim, problem: Semialgebraic, target: fmpq_mpoly
) -> Iterator[tuple[str, fmpq_mpoly, list[Block], list[tuple[fmpq_mpoly, list[fmpq_mpoly]]]]]:
    """Identities to try, cheapest first: (name, multiplier s, blocks, equalities with their monomials)."""
    context, one = problem.context, problem.target * 0 + 1
    n = max(1, len(problem.variables))  # a ring has a variable, even where a claim is of a constant
    forms = problem.size
    guards = [*problem.open_guards, *problem.guards]
    degree = target.total_degree() - (2 if forms else 0)

    def basis(half: int) -> list[fmpq_mpoly]:
        """Monomials of degree ≤ half in x; times y_i for a matrix claim."""
        plain = monomials(n - forms, 0, half)
        if not forms:
            exps = plain
        else:
            exps = [(*m, *(1 if k == i else 0 for k in range(forms))) for i in range(forms) for m in plain]
        return [context.from_dict({m: _power_of_two(slope, m)}) for m in exps]

    def free_part(total: int) -> list[tuple[fmpq_mpoly, list[fmpq_mpoly]]]:
        out = []
        for h in problem.equalities:
            room = total - h.total_degree()
            plain = monomials(n - forms, 0, max(room, 0))
            if forms:
                pairs = [
                    tuple((1 if k == i else 0) + (1 if k == j else 0) for k in range(forms))
                    for i in range(forms)
                    for j in range(i, forms)
                ]
                plain = [(*m, *p) for m in plain for p in pairs]
            out.append((h, [context.from_dict({m: 1}) for m in plain]))
        return out

    def level(total: int, products: int) -> list[Block]:
        blocks = [Block(one, basis(total // 2))]
        for count in range(1, products + 1):
            for key in combinations(range(len(guards)), count):
                factor = one
                for k in key:
                    factor = factor * guards[k]
                room = total - factor.total_degree()
                if room >= 0:
                    blocks.append(Block(factor, basis(room // 2), key))
        return blocks

    slope = _coefficient_slopes(target, n - forms)
    even = degree + degree % 2
    if not guards and not problem.equalities:
        yield "global", one, level(even, 0), []
        if not forms and degree > 2 and n > 1:  # else nonnegative and sum of squares are the same (Hilbert)
            squares = [context.from_dict({tuple(2 if k == i else 0 for k in range(n)): 1}) for i in range(n)]
            total = sum(squares, one * 0)
            multiplier = one
            for r in (1, 2):
                multiplier = multiplier * (total if (problem.keys or not claim.strict) else total + one)
                if _positive_multiplier(multiplier, problem, claim.strict):
                    yield f"multiplier of degree {2 * r}", multiplier, level(even + 2 * r, 0), []
        return
    if not problem.equalities:
        yield "global", one, level(even, 0), []
    highest = max([degree, *(g.total_degree() for g in guards), *(h.total_degree() for h in problem.equalities)])
    first = highest + highest % 2
    if even < first:
        yield f"guards at degree {even}", one, level(even, 1), free_part(even)
    for s in problem.multipliers:
        if _positive_multiplier(s, problem, claim.strict):
            total = highest + s.total_degree()
            total += total % 2
            yield f"times {s}, degree {total}", s, level(total, 1), free_part(total)
    for r in range(LEVELS):
        total = first + 2 * r
        yield f"guards at degree {total}", one, level(total, 1), free_part(total)
        if 2 <= len(guards) <= 5 and r < 2:
            yield f"products of guards at degree {total + 2}", one, level(total + 2, 2), free_part(total + 2)


def _coefficient_slopes(target: fmpq_mpoly, n: int) -> np.ndarray:
    """b with |coefficient of z^m| ≈ 2^(a + b·m): the scale of each variable, for the solver's sake."""
    terms = [(m[:n], abs(to_float(c))) for m, c in target.to_dict().items()]
    powers = np.array([[1.0, *map(float, m)] for m, _ in terms])
    ridge = 0.1 * np.eye(n + 1)
    return np.linalg.lstsq(np.vstack([powers, ridge]), np.append([np.log2(c) for _, c in terms], np.zeros(n + 1)))[0][
        1:
    ]


def _power_of_two(slope: np.ndarray, m: tuple[int, ...]) -> fmpq:
    exponent = round(float(slope @ np.array(m[: len(slope)], float)))
    return fmpq(1 << exponent) if exponent >= 0 else fmpq(1, 1 << -exponent)
