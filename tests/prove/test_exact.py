"""The exact engine: what it proves is rebuilt by SymPy, what is tampered with is noticed, strict means strict."""

import copy
from dataclasses import replace

import pytest
import sympy as sp
from flint import fmpq

from ctrlgen.prove import exact, interval
from ctrlgen.prove.claim import Claim, Deadline, Outcome, Status
from ctrlgen.prove.polynomial import ring, to_poly, translate

R = sp.Rational
X, Y, Z = XYZ = sp.symbols("x y z", real=True)
MOTZKIN = X**4 * Y**2 + X**2 * Y**4 + 1 - 3 * X**2 * Y**2
ROBINSON = (
    X**6 + Y**6 + 1 - (X**4 * Y**2 + X**2 * Y**4 + X**4 + X**2 + Y**4 + Y**2) + 3 * X**2 * Y**2
)  # nonnegative, no sum of squares


def claim(body, n=2, *, strict=False, origin=False, box=None, **sets):
    states = XYZ[:n]
    box = tuple((R(a), R(b)) for a, b in box) if box else ((None, None),) * n
    sides = tuple(g for s, (a, b) in zip(states, box, strict=True) if a is not None for g in (s - a, b - s))
    matrix = body if isinstance(body, sp.MatrixBase) else sp.Matrix([[body]])
    sets["guards"] = (*sides, *sets.get("guards", ()))
    return Claim(
        text=str(body),
        states=states,
        matrix=matrix,
        strict=strict,
        box=box,
        except_at=(sp.S.Zero,) * n if origin else None,
        **sets,
    )


def decide(*args, seconds=10, **kwargs):
    return exact.decide(claim(*args, **kwargs), Deadline(seconds))


def symbolic(poly, names):
    terms = poly.to_dict().items()
    return sp.Add(*(
        R(int(c.p), int(c.q)) * sp.Mul(*(s**int(e) for s, e in zip(names, m, strict=False))) for m, c in terms
    ))  # fmt: skip


def rebuilt(certificate):
    """Σ factor · wᵀQw + Σ λh by SymPy, after a check that every Q is positive semidefinite."""
    problem = translate(certificate.claim)
    names = problem.variables or (sp.Dummy(),)
    total = sp.S.Zero
    for block in certificate.identity.blocks:
        q = sp.Matrix([[R(int(v.p), int(v.q)) for v in row] for row in block.gram])
        w = sp.Matrix([symbolic(b, names) for b in block.basis])
        assert q.is_symmetric()
        assert q.is_positive_semidefinite
        total += symbolic(block.factor, names) * (w.T * q * w)[0]
    for (h, _), m in zip(certificate.identity.free, certificate.identity.multipliers, strict=True):
        total += symbolic(h, names) * symbolic(m, names)
    return sp.expand(total), symbolic(certificate.multiplier, names), problem, names


PROVED = {
    "a sum of squares": ((X - Y) ** 2 + R(1, 9) * Y**4, {"origin": True, "strict": True}),
    "irrational zeros": ((X**2 - 2) ** 2 + Y**2, {}),
    "two zeros": ((X - 1) ** 2 * (X + 2) ** 2 + (Y - X) ** 2, {}),
    "Motzkin, times a form": (MOTZKIN, {}),
    "Robinson, times a form": (ROBINSON, {}),
    "on a box": (2 - X**2 - X * Y, {"box": [(-1, 1), (-1, 1)]}),
    "strict on a box": (R(21, 10) - X**2 - X * Y, {"box": [(-1, 1), (-1, 1)], "strict": True}),
    "on a disc": (1 - X, {"guards": (1 - X**2 - Y**2,)}),
    "on a circle": (5 - 3 * X - 4 * Y, {"equalities": (X**2 + Y**2 - 1,)}),
    "on an open set": (X * Y, {"open_guards": (X, Y), "strict": True}),
    "over a denominator": ((X**2 - X * Y + Y**2) / (1 + Y**2), {"origin": True, "strict": True}),
    "with a sine": (2 - 2 * sp.cos(X) + Y**2, {"box": [(-3, 3), (-1, 1)], "origin": True, "strict": True}),
    "a matrix": (sp.Matrix([[1 + X**2, X * Y], [X * Y, 1 + Y**2]]), {"strict": True}),
    "a singular matrix": (sp.Matrix([[X**2, X * Y], [X * Y, Y**2]]), {}),
    "a constant": (sp.sqrt(2) - R(7, 5), {"strict": True}),
    "nothing": (sp.S.Zero, {}),
}


@pytest.mark.parametrize("name", PROVED)
def test_certificates_are_identities_of_sympy(name):
    body, options = PROVED[name]
    made = claim(body, **options)
    outcome = exact.decide(made, Deadline(10))
    assert outcome.status is Status.PROVED, outcome.reason
    assert outcome.method == "exact"
    certificate = outcome.certificate
    assert certificate.recheck()
    total, multiplier, problem, names = rebuilt(certificate)
    assert sp.expand(multiplier * symbolic(problem.target, names) - total) == 0
    assert len(outcome.certificate.lemmas) == (1 if "denominator" in name else 0)


NOT_PROVED = {
    "zero at ±√2, strict": ((X**2 - 2) ** 2 + Y**2, {"strict": True}),
    "zero elsewhere, strict": (X**2 * (X - 1) ** 2 + Y**2, {"strict": True, "origin": True}),
    "zero along a line": ((X - Y) ** 2, {"strict": True, "origin": True}),
    "Motzkin, strict": (MOTZKIN, {"strict": True}),
    "Motzkin, less 1e-9": (MOTZKIN - R(1, 10**9), {}),
    "a square less 1e-12": ((X - 3 * Y) ** 2 - R(1, 10**12), {}),
    "zero at a corner, strict": (2 - X - Y, {"box": [(-1, 1), (-1, 1)], "strict": True}),
    "zero on a circle, strict": (5 - 3 * X - 4 * Y, {"equalities": (X**2 + Y**2 - 1,), "strict": True}),
    "an open guard taken as closed": (X, {"guards": (X,), "strict": True}),
    "a matrix, singular at zero": (sp.Matrix([[X**2, 0], [0, 1]]), {"strict": True}),
    "a matrix, indefinite by 1e-9": (sp.Matrix([[X**2, X * Y], [X * Y, Y**2 - R(1, 10**9)]]), {}),
    "zero identically": (sp.S.Zero, {"strict": True}),
    "a negative constant": (sp.sqrt(2) - R(1415, 1000), {}),
    "cubic": (X**3 + Y**2, {}),
    "cubic near zero": (X**2 + Y**2 + 10**6 * X**3, {"origin": True, "strict": True}),
}


@pytest.mark.parametrize("name", NOT_PROVED)
def test_what_is_false_is_never_proved_nor_refuted_here(name):
    body, options = NOT_PROVED[name]
    outcome = decide(body, seconds=3, **options)
    assert outcome.status is Status.UNDECIDED
    assert outcome.reason
    assert outcome.certificate is None


# Tampering ---------------------------------------------------------------------------------------------------


def proof(name):
    body, options = PROVED[name]
    certificate = exact.decide(claim(body, **options), Deadline(10)).certificate
    return replace(certificate, identity=_copied(certificate.identity))


def _copied(identity):
    blocks = [replace(b, basis=list(b.basis), gram=[list(row) for row in b.gram]) for b in identity.blocks]
    return replace(identity, blocks=blocks, multipliers=list(identity.multipliers))


def test_an_untouched_copy_stands():
    for name in PROVED:
        assert proof(name).recheck()


@pytest.mark.parametrize("name", ["a sum of squares", "on a disc", "Motzkin, times a form", "a matrix"])
def test_a_changed_gram_entry_is_noticed(name):
    for step in (fmpq(1, 10**30), fmpq(-1), fmpq(1)):
        changed = proof(name)
        changed.identity.blocks[0].gram[0][0] += step
        assert not changed.recheck()


def test_an_indefinite_gram_matrix_is_noticed():
    # x² + y² + (xy)² written with an indefinite matrix of the same polynomial on (x, y, xy, 1)
    certificate = exact.decide(claim(X**2 * Y**2 + X**2 + Y**2 + 1), Deadline(5)).certificate
    block = certificate.identity.blocks[0]
    place = {tuple(map(int, w.monoms()[0])): k for k, w in enumerate(block.basis)}
    one, x, y, xy = (place[m] for m in ((0, 0), (1, 0), (0, 1), (1, 1)))
    gram = [list(row) for row in block.gram]
    for i, j, value in ((one, xy, 100), (x, y, -100)):  # 1·xy and x·y are the same monomial
        gram[i][j] += value
        gram[j][i] += value
    block.gram = gram
    assert certificate.identity.holds([])
    assert not certificate.recheck()


def test_an_asymmetric_gram_matrix_is_noticed():
    certificate = proof("a sum of squares")
    gram = certificate.identity.blocks[0].gram
    gram[0][1] += fmpq(1)
    gram[1][0] -= fmpq(1)  # the polynomial is the same
    assert certificate.identity.holds([])
    assert not certificate.recheck()


def test_another_claim_is_noticed():
    certificate = proof("on a disc")
    for other in (
        claim(1 - X - R(1, 10**9), guards=(1 - X**2 - Y**2,)),
        claim(1 - X, guards=(1 + R(1, 10**9) - X**2 - Y**2,)),
        claim(1 - X),
        claim(1 - X, equalities=(1 - X**2 - Y**2,)),
    ):
        assert not replace(certificate, claim=other).recheck()
    smaller = claim(1 - X, guards=(1 - X**2 - Y**2, Y))
    assert replace(certificate, claim=smaller).recheck()  # the guards keep their places


def test_strictness_is_part_of_the_claim():
    for name in ("irrational zeros", "two zeros", "on a circle", "a singular matrix", "nothing"):
        certificate = proof(name)
        assert not replace(certificate, claim=replace(certificate.claim, strict=True)).recheck()
    strict = proof("strict on a box")
    assert replace(strict, claim=replace(strict.claim, strict=False)).recheck()


def test_the_excepted_point_is_part_of_the_claim():
    certificate = proof("a sum of squares")
    assert not replace(certificate, claim=replace(certificate.claim, except_at=None)).recheck()
    moved = replace(certificate.claim, except_at=(R(1, 10**9), sp.S.Zero))
    assert not replace(certificate, claim=moved).recheck()


def test_a_multiplier_must_be_positive():
    certificate = proof("Motzkin, times a form")
    assert not certificate.multiplier.is_one()
    one = certificate.multiplier * 0 + 1
    for other in (one, -certificate.multiplier, certificate.multiplier * 0, certificate.multiplier + 1):
        assert not replace(certificate, multiplier=other).recheck()
    # -1 times a negative polynomial is a sum of squares
    negative = claim(-(X**2) - Y**2)
    turned = exact.decide(claim(X**2 + Y**2), Deadline(5)).certificate
    assert not replace(turned, claim=negative, multiplier=-one).recheck()


def test_an_open_guard_is_not_a_closed_one():
    certificate = proof("on an open set")
    closed = replace(certificate.claim, open_guards=(), guards=(X, Y))
    assert not replace(certificate, claim=closed).recheck()
    assert replace(certificate, claim=replace(closed, strict=False)).recheck()


@pytest.mark.parametrize("key", [(0, 0), (5,), (-1,), (1, 0)])
def test_a_block_says_which_guards_it_uses(key):
    certificate = proof("on a disc")
    block = next(b for b in certificate.identity.blocks if b.key)
    block.key = key
    assert not certificate.recheck()


@pytest.mark.parametrize("gram", [None, [], [[fmpq(1)]], [[fmpq(1), fmpq(0)], [fmpq(0)]]])
def test_a_block_without_a_fitting_gram_matrix_proves_nothing(gram):
    certificate = proof("on a disc")
    certificate.identity.blocks[0].gram = gram
    assert not certificate.recheck()


def test_multipliers_that_are_missing_prove_nothing():
    certificate = proof("on a circle")
    certificate.identity.multipliers = []
    assert not certificate.recheck()


def test_equalities_are_those_of_the_claim():
    certificate = proof("on a circle")
    (h, basis), *rest = certificate.identity.free
    identity = replace(certificate.identity, free=[(h * 2, basis), *rest])
    assert not replace(certificate, identity=identity).recheck()
    assert not replace(certificate, claim=replace(certificate.claim, equalities=(X**2 + Y**2 - 2,))).recheck()


def test_free_scalars_have_no_place_in_a_certificate():
    certificate = proof("a sum of squares")
    certificate.identity.linear = {0: certificate.multiplier}
    assert not certificate.recheck()


def test_lemmas_must_be_there_proved_and_about_the_right_thing():
    certificate = proof("over a denominator")
    (lemma,) = certificate.lemmas
    assert not replace(certificate, lemmas=()).recheck()
    assert not replace(certificate, lemmas=(lemma, lemma)).recheck()
    assert not replace(certificate, lemmas=(replace(lemma, certificate=None),)).recheck()
    for status in (Status.UNDECIDED, Status.REFUTED, Status.SAMPLED):
        assert not replace(certificate, lemmas=(replace(lemma, status=status),)).recheck()
    other = exact.decide(claim(2 + Y**2, strict=True), Deadline(5))
    assert not replace(certificate, lemmas=(other,)).recheck()
    broken = replace(lemma.certificate, identity=_copied(lemma.certificate.identity))
    broken.identity.blocks[0].gram[0][0] += fmpq(1)
    assert not replace(certificate, lemmas=(replace(lemma, certificate=broken),)).recheck()


def test_a_lemma_that_is_not_proved_ends_it(monkeypatch):
    unknown = Outcome(status=Status.UNDECIDED, method="exact", reason="it was too hard")
    monkeypatch.setattr(exact, "prove_lemma", lambda *_: unknown)
    outcome = decide((1 + X**2) / (1 + Y**2))
    assert outcome.status is Status.UNDECIDED
    assert "it was too hard" in outcome.reason
    assert "y**2 + 1 > 0" in outcome.reason


def test_a_lemma_may_be_proved_in_balls():
    # sin(3x)/(3 + exp(y)) ... the denominator needs more than the facts of sin at degree two
    lemma = claim(sp.exp(X) - R(1, 3) - X, 1, strict=True, box=[(-1, 1)])
    outcome = exact.prove_lemma(lemma, Deadline(10))
    assert outcome.status is Status.PROVED
    hard = claim(X**2 - sp.cos(5 * X) + R(11, 10) + sp.erf(X) ** 2, 1, strict=True, box=[(-1, 1)])
    outcome = exact.prove_lemma(hard, Deadline(10))
    assert (outcome.status, outcome.method) == (Status.PROVED, "interval")
    assert isinstance(outcome.certificate, interval.IntervalProof)


# The search --------------------------------------------------------------------------------------------------


def test_a_certificate_that_does_not_survive_its_own_check_proves_nothing(monkeypatch):
    monkeypatch.setattr(exact.SumOfSquares, "recheck", lambda self: False)
    outcome = decide(X**2 + Y**2)
    assert outcome.status is Status.UNDECIDED
    assert "did not survive" in outcome.reason


def test_no_time_is_a_reason():
    outcome = decide(MOTZKIN, seconds=0)
    assert outcome.status is Status.UNDECIDED
    assert "time-out" in outcome.reason


def test_large_bases_are_not_tried(monkeypatch):
    monkeypatch.setattr(exact, "LARGEST_BASIS", 2)
    outcome = decide(X**4 + Y**4 + X * Y + 1)
    assert outcome.status is Status.UNDECIDED
    assert "more than 2 rows" in outcome.reason


def test_numbers_of_all_sizes():
    assert (
        decide(R(10**30) * X**4 - 2 * X**2 * Y + R(1, 10**29) * Y**2, origin=True, strict=True).status is Status.PROVED
    )
    assert decide(10**6 * X**2 - 2 * 10**3 * X * Y + Y**2).status is Status.PROVED
    tight = decide(10**6 * X**2 - 2 * 10**3 * X * Y + (1 - R(1, 10**12)) * Y**2)
    assert tight.status is Status.UNDECIDED


def test_it_says_what_it_found():
    outcome = decide(MOTZKIN)
    assert "·p of degree" in outcome.reason
    assert "rational Gram matrices" in outcome.reason
    assert outcome.seconds > 0
    assert copy.copy(outcome.certificate).describe() in outcome.reason


@pytest.mark.parametrize(
    ("forms", "i", "expected"),
    [
        ([X, Y], None, False),
        ([X, Y, X * Y - 1], None, True),
        ([X**2 - Y, Y + 1], None, False),  # ±i: over the complex numbers there is a zero, so nothing is said
        ([X**2 + Y**2 - 1, X**2 + Y**2 - 2], None, True),
        ([X**2, Y], 0, True),
        ([X**2 - X * Y, Y**3], 0, True),
        ([X * Y], 0, False),
        ([X - Y], 0, False),
        ([], None, False),
    ],
)
def test_common_zeros(forms, i, expected):
    assert exact._no_common_zero([to_poly(f, (X, Y), ring(2)) for f in forms], i) is expected


DISC = {"guards": (1 - X**2 - Y**2,)}


@pytest.mark.parametrize(
    ("s", "options", "expected"),
    [
        (X**2 + Y**2, {"strict": True, "origin": True}, True),
        (X**2 + Y**4, {"strict": True, "origin": True, **DISC}, True),
        (X**2, {"strict": True, "origin": True}, False),  # zero along a line on which p > 0 is claimed
        (X**2 + X**2 * Y**2, {"strict": True, "origin": True}, False),
        (X**2 + Y**2, {"strict": True}, False),  # zero at a point where p > 0 is claimed
        (X**2 + Y**2, {}, True),  # p ≥ 0 follows there by continuity
        (X**2, {}, False),
        (X**2 + Y**2, DISC, False),  # the set may have isolated points
        (1 + X**2, {"strict": True}, True),
        (1 + X**2 * Y**4, DISC, True),
        (1 - X**2, {}, False),
        (1 + X * Y, {}, False),
        (1 + X**3, {}, False),
        (sp.S.Zero, {}, False),
    ],
)
def test_which_multipliers_are_positive(s, options, expected):
    problem = translate(claim(X**2 + Y**2, **options))
    made = to_poly(s, problem.variables, problem.context)
    assert exact._positive_multiplier(made, problem, options.get("strict", False)) is expected
