"""z3 proves what is true, what it refutes is confirmed exactly, and undefined formulas are never proved."""

import pytest
import sympy as sp

from ctrlgen.prove import smt
from ctrlgen.prove.claim import Claim, Deadline, Status
from ctrlgen.prove.witness import violates

x, y = sp.symbols("x y", real=True)
R = sp.Rational
NANO = R(1, 10**9)
ORIGIN = (R(0), R(0))
MOTZKIN = x**4 * y**2 + x**2 * y**4 - 3 * x**2 * y**2 + 1
V = R(3, 2) * x**2 - x * y + y**2
V_DOT = sp.expand(-y * sp.diff(V, x) + (x + (x**2 - 1) * y) * sp.diff(V, y))
PSD = sp.Matrix([[2 + x**2, x * y], [x * y, 1 + y**2]])
LARGE = sp.diag(PSD, sp.Matrix([[3, x], [x, 1 + x**2]]))


def claim(left, strict=True, states=(x, y), **kwargs):
    matrix = left if isinstance(left, sp.MatrixBase) else sp.Matrix([[left]])
    return Claim(text="t", states=states, matrix=matrix, strict=strict, **kwargs)


def cubic(**kwargs):
    """Case 1: f = -x + x³ and V = x², with -V̇ = 2x² - 2x⁴."""
    return claim(2 * x**2 - 2 * x**4, states=(x,), except_at=(R(0),), **kwargs)


TRUE = {
    "case 1 inside its level": cubic(open_guards=(1 - x**2,)),
    "touching zero": claim((x - 1) ** 2, strict=False),
    "above zero by 1e-9": claim((x - 1) ** 2 + NANO),
    "Motzkin": claim(MOTZKIN, strict=False),
    "Van der Pol just inside": claim(-V_DOT, guards=(R("2.30447756") - V,), except_at=ORIGIN),
    "rational": claim(1 - x**2 / (1 + x**2)),
    "reciprocal where it is defined": claim(1 / x, open_guards=(x,)),
    "a guard that is undefined at a point": claim(x, guards=(1 / x,)),
    "a root of two": claim(x - sp.sqrt(2), strict=False, guards=(x**2 - 2, x)),
    "a root": claim(sp.sqrt(x) + 1, guards=(x,)),
    "a root of a square": claim(sp.sqrt(1 + x**2) - sp.Abs(x)),
    "a power with a fraction": claim((1 + x**2) ** R(3, 2) - 1, strict=False),
    "a reciprocal root": claim(1 - (4 + x**2) ** R(-1, 2)),
    "largest": claim(sp.Max(x, y) - x, strict=False),
    "smallest": claim(x - sp.Min(x, y), strict=False),
    "sign": claim(x * sp.sign(x), strict=False),
    "pi": claim(sp.pi**2 - x**2, strict=False, guards=((sp.pi - x) * (x + sp.pi),)),
    "a matrix": claim(PSD),
    "a matrix, touching": claim(PSD - sp.eye(2), strict=False),
    "a larger matrix": claim(LARGE),
    "on a circle": claim(x + y + R("1.41422"), equalities=(x**2 + y**2 - 1,)),
    "in a box": claim(4 - x**2 - y, strict=False, box=((R(-1), R(1)), (None, R(3)))),
}
FALSE = {
    "case 1 on its level": cubic(guards=(1 - x**2,)),
    "case 1 beyond its level": cubic(guards=(R("1.0001") - x**2,)),
    "touching zero, strict": claim((x - 1) ** 2),
    "touching at an irrational point": claim((x**2 - 2) ** 2),
    "touching at a root of a cubic": claim((x**3 - x - 1) ** 2),
    "below zero by 1e-9": claim((x - 1) ** 2 - NANO, strict=False),
    "Motzkin, strict": claim(MOTZKIN),
    "Motzkin by 1e-9": claim(MOTZKIN - NANO, strict=False),
    "Van der Pol just outside": claim(-V_DOT, guards=(R("2.30447757") - V,), except_at=ORIGIN),
    "a root of two": claim(x - sp.sqrt(2), guards=(x**2 - 2, x)),
    "smallest": claim(sp.Min(x, y) - x, strict=False),
    "a matrix": claim(PSD - R("1.0001") * sp.eye(2), strict=False),
    "a matrix with a negative minor that leads to none": claim(sp.diag(0, -1), strict=False),
    "a matrix, touching": claim(PSD - sp.eye(2)),
    "a larger matrix": claim(LARGE - sp.eye(4)),
    "a larger matrix, weak": claim(sp.diag(PSD, sp.Matrix([[1, x], [x, x**2 - R(1, 10**6)]])), strict=False),
    "on a circle": claim(x + y + R("1.41421"), equalities=(x**2 + y**2 - 1,)),
}
UNDEFINED = {
    "a pole inside": claim(1 / x**2),
    "a pole on the boundary": claim(1 / x, guards=(x,)),
    "a pole that a factor hides": claim(1 + x**2 + (y - 1) ** 2 / (y - 1) ** 4),
    "a root of a negative": claim(sp.sqrt(x) + 1),
    "a reciprocal root of zero": claim(1 / sp.sqrt(x), guards=(x,)),
    "a pole of a root": claim(1 + 1 / (1 - sp.sqrt(x)) ** 2, guards=(x,)),
    "a root inside a root": claim(sp.sqrt(1 - sp.sqrt(x)) + 1, guards=(x,)),
}


@pytest.mark.parametrize("name", TRUE)
def test_true_claims_are_proved_and_proved_again(name):
    outcome = smt.decide(TRUE[name], Deadline(20))
    assert outcome.status is Status.PROVED
    assert outcome.certificate.recheck()


@pytest.mark.parametrize("name", FALSE)
def test_false_claims_are_refuted_by_an_exact_witness(name):
    outcome = smt.decide(FALSE[name], Deadline(20))
    assert outcome.status is Status.REFUTED
    assert violates(FALSE[name], outcome.witness)[0]


@pytest.mark.parametrize("name", ["touching zero, strict", "Motzkin, strict", "a matrix"])
def test_a_false_certificate_is_not_confirmed(name):
    assert not smt.Unsat(FALSE[name], "qfnra-nlsat").recheck()


@pytest.mark.parametrize("name", UNDEFINED)
def test_a_formula_that_is_undefined_on_the_set_is_not_proved(name):
    outcome = smt.decide(UNDEFINED[name], Deadline(20))
    assert outcome.status is Status.UNDECIDED
    assert "undefined at a point of the set" in outcome.reason


def test_a_point_that_only_the_bounds_of_pi_allow_is_no_witness():
    outcome = smt.decide(claim(sp.pi**2 - x**2, guards=((sp.pi - x) * (x + sp.pi),)), Deadline(20))
    assert outcome.status is Status.UNDECIDED  # it fails, at x = ±π alone
    assert "not confirmed exactly" in outcome.reason


def test_the_exception_is_left_out():
    assert smt.decide(claim(x**2 + y**2, except_at=ORIGIN), Deadline(20)).status is Status.PROVED
    assert smt.decide(claim(x**2 + y**2, except_at=(R(1), R(0))), Deadline(20)).witness == ORIGIN


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        (claim(sp.sin(x) + 2), "the claim holds sin"),
        (claim(1 + sp.Symbol("k", real=True) ** 2), "the claim holds Symbol"),
        (Claim(text="t", states=(x,), strict=True, function=lambda z: z[0]), "without one"),
    ],
)
def test_what_is_not_real_algebra_is_undecided(statement, reason):
    outcome = smt.decide(statement, Deadline(5))
    assert outcome.status is Status.UNDECIDED
    assert reason in outcome.reason


S = sp.symbols("a:g", real=True)
HARD = 5 + sum(
    S[i] ** 4 * S[i - 1] ** 2 - 3 * S[i] ** 2 * S[i - 1] ** 2 * S[i - 2] ** 2 + S[i - 2] ** 6 + S[i] * S[i - 3] ** 3
    for i in range(7)
)  # z3 would take hours


def test_a_hard_claim_ends_at_its_deadline():
    outcome = smt.decide(claim(HARD, states=S), Deadline(1))
    assert outcome.status is Status.UNDECIDED
    assert outcome.reason.startswith("z3 says")


def test_z3_is_interrupted_where_it_does_not_keep_its_time_out():
    import z3

    context = z3.Context()
    encoder = smt._Encoder(context, S)
    solver = z3.Tactic("qfnra-nlsat", context).solver()  # no time-out is set
    solver.add(encoder.term(HARD) <= 0)
    with smt._ended(context, Deadline(0.5)):
        assert solver.check() == z3.unknown


def test_no_time_is_said_so():
    assert smt.decide(TRUE["Motzkin"], Deadline(0)).reason == "the time was over"
