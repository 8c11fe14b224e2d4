"""False claims are refuted, by as little as 1e-9, inside, on faces, on level sets and next to an equilibrium."""

import numpy as np
import pytest
import sympy as sp

from ctrlgen.prove import search
from ctrlgen.prove.claim import Claim, Deadline, Status
from ctrlgen.prove.witness import violates

x, y = sp.symbols("x y", real=True)
R = sp.Rational
NANO = R(1, 10**9)
ORIGIN = (R(0), R(0))
SQUARE = {"guards": ((2 - x) * (x + 2), (2 - y) * (y + 2)), "box": ((R(-2), R(2)),) * 2}
GOLDSTEIN_PRICE = (1 + (x + y + 1) ** 2 * (19 - 14 * x + 3 * x**2 - 14 * y + 6 * x * y + 3 * y**2)) * (
    30 + (2 * x - 3 * y) ** 2 * (18 - 32 * x + 12 * x**2 + 48 * y - 36 * x * y + 27 * y**2)
)
MOTZKIN = x**4 * y**2 + x**2 * y**4 - 3 * x**2 * y**2 + 1
# reversed Van der Pol with V = xᵀPx, P = [[1.5, -0.5], [-0.5, 1]]: the critical level is 2.304477565 (Drake's
# region_of_attraction tutorial reports a larger one, which is refuted)
V = R(3, 2) * x**2 - x * y + y**2
V_DOT = sp.expand(-y * sp.diff(V, x) + (x + (x**2 - 1) * y) * sp.diff(V, y))
PSD = sp.Matrix([[2 + x**2, x * y], [x * y, 1 + y**2]])  # least eigenvalue ≥ 1, attained at y = 0


def claim(left, strict=True, states=(x, y), **kwargs):
    matrix = left if isinstance(left, sp.MatrixBase) else sp.Matrix([[left]])
    return Claim(text="t", states=states, matrix=matrix, strict=strict, **kwargs)


def level(value):
    return claim(-V_DOT, guards=(R(value) - V,), except_at=ORIGIN)


FALSE = {
    "touching zero, strict": claim((x - 1) ** 2 + y**2),
    "touching at an irrational point": claim((x**2 - 2) ** 2, **SQUARE),
    "below zero by 1e-9": claim((x - R(1, 3)) ** 2 * (1 + y**2) + (y - R(2, 7)) ** 2 - NANO, strict=False, **SQUARE),
    "Goldstein-Price above its minimum": claim(GOLDSTEIN_PRICE - R("3.0001"), strict=False),
    "Goldstein-Price, strict": claim(GOLDSTEIN_PRICE - 3),
    "Motzkin, strict": claim(MOTZKIN),
    "Motzkin by 1e-9": claim(MOTZKIN - NANO, strict=False),
    "case 1 beyond its level": claim(2 * x**2 - 2 * x**4, states=(x,), guards=(R("1.0001") - x**2,), except_at=(R(0),)),
    "Van der Pol, 1e-8 too far": level(R("2.30447757") * (1 + R(1, 10**8))),
    "Van der Pol at Drake's level": level("2.3044775719"),
    "a cone of width 3e-5 at the equilibrium": claim((x - 2 * y) ** 2 - NANO * y**2, except_at=ORIGIN),
    "the same, elsewhere": claim(
        sp.expand((x - R(1, 3) - 2 * (y - 1)) ** 2 - NANO * (y - 1) ** 2), except_at=(R(1, 3), R(1))
    ),
    "only next to the equilibrium": claim(
        (x**2 + y**2) * (x**2 + y**2 - R(1, 10**4)), except_at=ORIGIN, strict=False, **SQUARE
    ),
    "only within 1e-5 of an equilibrium": claim(
        sp.expand(
            (x - 1 - 2 * (y - R(1, 3))) ** 2
            + 10**4 * ((x - 1) ** 2 + (y - R(1, 3)) ** 2) ** 2
            - R(1, 10**4) * (y - R(1, 3)) ** 2
        ),
        except_at=(R(1), R(1, 3)),
        **SQUARE,
    ),
    "on a face": claim(2 - x + 3 * (y - R(1, 9)) ** 2 - NANO, strict=False, **SQUARE),
    "on an equality": claim(x + y + R("1.41421"), equalities=(x**2 + y**2 - 1,)),
    "far away": claim(500 - x + y**2, strict=False),
    "a matrix": claim(PSD - R("1.0001") * sp.eye(2), strict=False),
    "a matrix, touching": claim(PSD - sp.eye(2)),
    "exponential by 1e-9": claim(sp.exp(x) - 1 - x - NANO + y**2, strict=False),
    "pendulum past the top": claim(
        1 - sp.cos(x) + y**2 / 2, guards=((7 - x) * (x + 7),), except_at=ORIGIN, box=((R(-7), R(7)), (None, None))
    ),
}
TRUE = {
    "touching zero, weak": claim((x - 1) ** 2, strict=False),
    "Goldstein-Price": claim(GOLDSTEIN_PRICE - 3, strict=False),
    "Motzkin": claim(MOTZKIN, strict=False),
    "case 1 at its level": claim(2 * x**2 - 2 * x**4, states=(x,), open_guards=(1 - x**2,), except_at=(R(0),)),
    "Van der Pol just inside": level("2.30447756"),
    "cubic damping": claim(sp.expand(2 * x**4 - 2 * x * y + 2 * y * (x + y)), except_at=ORIGIN),
    "a matrix": claim(PSD - sp.eye(2), strict=False),
    "on an equality": claim(x + y + R("1.41422"), equalities=(x**2 + y**2 - 1,)),
    "pendulum": claim(1 - sp.cos(x) + y**2 / 2, guards=(9 - x**2,), except_at=ORIGIN),
    "undefined outside": claim(sp.log(x) + 2, guards=(x - 1,)),
}


@pytest.mark.parametrize("name", FALSE)
def test_false_claims_are_refuted_by_an_exact_witness(name):
    outcome = search.decide(FALSE[name], Deadline(10))
    assert outcome.status is Status.REFUTED
    assert violates(FALSE[name], outcome.witness)[0]
    assert outcome.margin <= 0
    assert outcome.method == "search"


@pytest.mark.parametrize("name", TRUE)
def test_true_claims_are_never_refuted_nor_proved(name):
    outcome = search.decide(TRUE[name], Deadline(10))
    assert outcome.status is Status.UNDECIDED
    assert outcome.reason.startswith("no violation in")
    assert outcome.margin > -1e-9
    assert outcome.witness is None


def test_goldstein_price_is_refuted_at_its_minimiser():
    px, py = search.decide(FALSE["Goldstein-Price above its minimum"], Deadline(10)).witness
    assert float(px) == pytest.approx(0, abs=1e-3)
    assert float(py) == pytest.approx(-1, abs=1e-3)


def test_eight_states():
    states = sp.symbols("a:h", real=True)
    chain = sum((states[i] - states[i - 1] / 2) ** 2 for i in range(8))  # least eigenvalue (1 - 1/2)² = 1/4
    squares = sum(s**2 for s in states)
    exception = {"states": states, "except_at": (R(0),) * 8}
    true = search.decide(claim(sp.expand(chain - squares / 4 * (1 - R(1, 10**6))), **exception), Deadline(10))
    false = search.decide(claim(sp.expand(chain - squares / 4 * (1 + R(1, 10**6))), **exception), Deadline(10))
    assert true.status is Status.UNDECIDED
    assert false.status is Status.REFUTED


def test_the_same_claim_gives_the_same_answer():
    first, second = (search.decide(FALSE["Van der Pol at Drake's level"], Deadline(10)) for _ in range(2))
    assert first.witness == second.witness


def test_a_function_without_formula_is_reported_and_not_refuted():
    import jax.numpy as jnp

    def bowl(z):
        return jnp.sum((z - 0.25) ** 2) - 1e-4

    statement = Claim(text="t", states=(x, y), strict=True, function=bowl, **SQUARE)
    outcome = search.decide(statement, Deadline(10))
    assert outcome.status is Status.UNDECIDED
    assert outcome.margin == pytest.approx(-1e-4, rel=1e-6)
    assert "at (0.25, 0.25) in float64" in outcome.reason


def test_what_has_no_code_is_undecided():
    outcome = search.decide(claim(sp.besselj(0, x)), Deadline(1))
    assert outcome.status is Status.UNDECIDED
    assert "besselj" in outcome.reason


def test_no_descent_is_started_after_the_deadline():
    outcome = search.decide(TRUE["Motzkin"], Deadline(0))
    assert outcome.reason.endswith(" 0 descents")


def test_minimise_finds_the_minimum_of_goldstein_price():
    point, value = search.minimise(GOLDSTEIN_PRICE, (), (x, y))
    assert value == pytest.approx(3, rel=1e-9)
    assert point == pytest.approx([0, -1], abs=1e-5)


def test_minimise_finds_the_critical_level_of_van_der_pol():
    _, value = search.minimise(V, (V - R(1, 2),), (x, y), equalities=(V_DOT,))
    assert value == pytest.approx(2.304477565, rel=1e-8)


def test_minimise_under_guards_and_a_box():
    box = ((R(0), None), (R(-1), R(1)))
    point, value = search.minimise(x + 2 * y, (4 - x**2 - y**2, y - x + 1), (x, y), box=box)
    assert point == pytest.approx([0, -1], abs=1e-8)
    assert value == pytest.approx(-2, rel=1e-8)
    nowhere, value = search.minimise(x, (-1 - x**2,), (x, y))
    assert nowhere is None
    assert np.isinf(value)


def test_minimise_takes_the_least_eigenvalue_of_a_matrix():
    _, value = search.minimise(PSD, ((y - 2) * (3 - y),), (x, y), box=((None, None), (R(2), R(3))))
    dense = [np.linalg.eigvalsh([[2 + a * a, 2 * a], [2 * a, 5.0]])[0] for a in np.linspace(-5, 5, 2001)]
    assert value <= min(dense) + 1e-7
