"""Formulas as polynomials: every fact is true of the formula's own values, and the excepted point is told exactly."""

import mpmath
import numpy as np
import pytest
import sympy as sp

from ctrlgen.prove import exact, polynomial
from ctrlgen.prove.claim import Claim, Deadline, Status
from ctrlgen.prove.polynomial import NotPolynomialError, ring, scaled, to_poly, translate

R = sp.Rational
X, Y = XY = sp.symbols("x y", real=True)


def claim(body, box=None, *, strict=False, origin=False, states=XY, **sets):
    """A claim on the plane, or on a box."""
    box = tuple(
        (None if a is None else R(a), None if b is None else R(b)) for a, b in box or ((None, None),) * len(states)
    )
    sides = [s - a for s, (a, _) in zip(states, box, strict=True) if a is not None]
    sides += [b - s for s, (_, b) in zip(states, box, strict=True) if b is not None]
    matrix = body if isinstance(body, sp.MatrixBase) else sp.Matrix([[body]])
    sets["guards"] = (*sides, *sets.get("guards", ()))
    at = (sp.S.Zero,) * len(states) if origin is True else origin or None
    return Claim(text=str(body), states=states, matrix=matrix, strict=strict, box=box, except_at=at, **sets)


def decided(*args, seconds=5, **kwargs):
    return exact.decide(claim(*args, **kwargs), Deadline(seconds))


class Spy(polynomial._Atoms):
    """Remembers the last collection of atoms."""

    last = None

    def __init__(self, made):
        super().__init__(made)
        Spy.last = self


@pytest.fixture
def spied(monkeypatch):
    monkeypatch.setattr(polynomial, "_Atoms", Spy)

    def run(made, keyed=True):
        problem = translate(made, keyed)
        return problem, {s: atom for atom, s in Spy.last.symbols.items()}

    return run


def values(problem, atoms, made, x):
    """The variables' true values at a point, to 40 digits, about their values at the excepted point."""
    out = []
    for v in problem.variables:
        formula = atoms.get(v, v)
        value = formula.subs(dict(zip(made.states, x, strict=True)), simultaneous=True)
        if made.except_at is not None and formula.free_symbols:
            value -= formula.subs(dict(zip(made.states, made.except_at, strict=True)))
        out.append(mpmath.mpf(sp.N(value, 45)))
    return out


def at(poly, numbers):
    total = mpmath.mpf(0)
    for m, c in poly.to_dict().items():
        total += mpmath.mpf(int(c.p)) / int(c.q) * mpmath.fprod(n ** int(e) for n, e in zip(numbers, m, strict=False))
    return total


WIDE = ((-5, 5), (-5, 5))
FORMULAS = {
    "sine": (sp.sin(X) * Y + X, None),
    "angles in a box": (sp.sin(X) + X * sp.cos(Y), ((-1, 2), (-3, 3))),
    "angles on one side": (sp.sin(X) + X * sp.sin(Y), ((0, 3), (-2, 0))),
    "a box beyond half a turn": (sp.sin(X) + X * sp.cos(Y) + Y, WIDE),
    "multiples of an angle": (sp.sin(2 * X) + sp.cos(X - 3 * Y) + X, ((-1, 1), (-1, 1))),
    "an angle that is no state": (sp.cos(X * Y) + sp.sin(X**2) + X * Y, ((-2, 2), (-2, 2))),
    "tangent": (sp.tan(X) + Y, ((-1, 1), (-1, 1))),
    "exponentials": (sp.exp(X) + sp.exp(-2 * X) + sp.exp(X / 2 - Y) - X, WIDE),
    "exponents that expand": (sp.exp(X * (X + 1) - X) + sp.exp(X * (X + 1) - X**2) + sp.exp(2 + Y), ((-2, 2), (-2, 2))),
    "hyperbolic": (sp.sinh(X) + sp.cosh(Y - X), ((-2, 2), (-2, 2))),
    "logarithms": (sp.log(1 + X**2) + X * sp.log(3 + Y), ((-2, 2), (-2, 2))),
    "tanh, atan, asinh": (sp.tanh(X) + sp.atan(X + Y) * sp.asinh(Y), None),
    "roots": (sp.sqrt(1 + X**2) + (2 + Y) ** R(1, 3) + (2 + Y) ** R(-3, 2), ((-1, 1), (-1, 1))),
    "absolute values": (sp.Abs(X) + sp.Abs(X - Y) ** 3, None),
    "extremes": (sp.Max(X, Y, 1) + sp.Min(X, Y**2), None),
    "constants": (sp.pi * X + sp.E * Y + sp.sqrt(2), None),
    "nested": (sp.exp(-(sp.sin(X) ** 2)) + sp.sqrt(1 + sp.Abs(Y)) + sp.tanh(sp.exp(X)), ((-1, 1), (-1, 1))),
    "quotients": ((X - Y) / (1 + X**2) + sp.tanh(1 / (1 + Y**2)), None),
    "quotients of atoms": ((X + sp.sin(Y)) / (2 + sp.sin(X)), ((-1, 1), (-1, 1))),
    "negative denominators": ((X + 1) / (X - 3) ** 3 + Y / (X - 4) ** 2, ((-1, 1), (-1, 1))),
}


IRRATIONAL_AT_THE_ORIGIN = {"logarithms", "roots", "nested", "quotients"}  # log 3, 2^(1/3), tanh 1


@pytest.fixture(autouse=True)
def many_digits():
    with mpmath.workdps(50):
        yield


@pytest.mark.parametrize("origin", [False, True], ids=["as it is", "about the origin"])
@pytest.mark.parametrize("name", FORMULAS)
def test_facts_are_true_and_the_target_has_the_sign_of_the_formula(spied, rng, name, origin):
    body, box = FORMULAS[name]
    made = claim(body, box, origin=origin)
    if origin and name in IRRATIONAL_AT_THE_ORIGIN:
        with pytest.raises(NotPolynomialError, match="not rational at the excepted point"):
            spied(made, keyed=False)
        return
    problem, atoms = spied(made, keyed=False)
    low, high = np.array(box if box else ((-8, 8), (-8, 8)), dtype=float).T
    points = [*rng.uniform(low, high, size=(25, 2)), 1e-4 * rng.uniform(np.maximum(low, -1), np.minimum(high, 1))]
    points += [low, high] if box else [np.array([3e5, -1e-3]), np.array([-1e-3, -2e4])]
    seen = 0
    for point in points:
        x = [R(float(v)) for v in point]
        numbers = values(problem, atoms, made, x)
        assert all(at(g, numbers) > -1e-30 for g in problem.guards)
        assert all(at(g, numbers) > 0 for g in problem.open_guards)
        assert all(abs(at(h, numbers)) < 1e-30 for h in problem.equalities)
        value = sp.N(body.subs(dict(zip(XY, x, strict=True))), 30)
        assert int(sp.sign(value)) == int(mpmath.sign(at(problem.target, numbers)))
        for lemma in problem.lemmas:
            assert sp.N(lemma.expr.subs(dict(zip(XY, x, strict=True))), 30) > 0
        seen += 1
    assert seen >= 26


def test_arcs_are_facts_that_matter():
    """In a box of half a turn, cosines are bounded below and sines signed: what is proved depends on it."""
    assert decided(sp.cos(X) - R(1, 2), ((-1, 1),), states=(X,)).status is Status.PROVED  # cos 1 = 0.5403
    assert decided(sp.cos(X) - R(55, 100), ((-1, 1),), states=(X,)).status is Status.UNDECIDED
    assert decided(sp.sin(X), ((0, 3),), states=(X,)).status is Status.PROVED
    assert decided(sp.sin(X), ((0, 4),), states=(X,)).status is Status.UNDECIDED
    assert decided(sp.sin(X), ((R(-1, 10**9), 3),), states=(X,)).status is Status.UNDECIDED


@pytest.mark.parametrize(
    ("body", "box"),
    [
        (sp.exp(X * (X + 1) - X**2) - 1, ((-4, 4),)),  # exp(x) - 1
        pytest.param(  # exp(x²) - exp(x + 2), negative at 0
            sp.exp(X * (X + 1) - X) - sp.exp(X + 2), ((0, 1),), marks=pytest.mark.slow
        ),
        (X + 2 - sp.cos(sp.sqrt(X)), ((-4, 4),)),  # cos √x = cosh √-x where x < 0
        (X + R(1, 10) + sp.sin(sp.sqrt(X)) ** 2, ((-4, 4),)),
        (X * ((-1) ** R(1, 3) - (-1) ** R(2, 3)), ((-4, 4),)),  # it is x
        (2 + sp.sin(sp.sqrt(X)), ((-4, 4),)),
        (2 + sp.sin(1 / X), ((-4, 4),)),
        (sp.exp(1 / X), ((-4, 4),)),
        (sp.exp(sp.tan(X)), ((-4, 4),)),
        (2 + sp.tanh(sp.log(X)), ((-4, 4),)),
        (sp.sqrt(X) + 1, ((R(-1, 10**9), 4),)),
        ((1 + X**2) / X, ((-1, 2),)),
        ((1 + X**2) / (X + 1), ((-1, 2),)),
        ((X - 1) / (X - 1) ** 3, ((-1, 2),)),
        (1 / (sp.sin(X) + R(84, 100)) + 2, ((-1, 1),)),  # sin 1 = 0.84147
    ],
)
def test_false_or_undefined_is_never_proved(body, box):
    for sides in (box, None):
        assert decided(body, sides, states=(X,), seconds=1).status is Status.UNDECIDED


def test_what_vouches_for_itself_is_not_believed():
    """√x ≥ 2 would say x ≥ 0 of the set; but whether √x is defined is what is asked."""
    assert decided(X - 2, states=(X,), open_guards=(sp.sqrt(X) - 2,)).status is Status.UNDECIDED
    inside = decided(sp.sqrt(X), ((1, 4),), states=(X,), guards=(sp.sqrt(X) - 1,))
    assert inside.status is Status.PROVED


def test_denominators_become_lemmas_with_their_sign():
    (lemma,) = translate(claim((1 + X**2) / (X - 3), ((-1, 1),), states=(X,))).lemmas
    assert lemma.strict
    assert sp.expand(lemma.expr - (3 - X)) == 0
    assert lemma.guards == (X + 1, 1 - X)
    proof = decided((1 + X**2) / (3 - X), ((-1, 1),), states=(X,), strict=True)
    assert proof.status is Status.PROVED
    assert proof.certificate.recheck()
    assert decided((1 + X**2) / (X - 3), ((-1, 1),), states=(X,)).status is Status.UNDECIDED


def test_guards_with_denominators_keep_their_set():
    # 1/x ≥ 1 is 0 < x ≤ 1; x/(x - 2) ≥ 0 is x ≤ 0 or x > 2
    assert decided(X, states=(X,), guards=(1 / X - 1,)).status is Status.PROVED
    assert decided(1 - X, states=(X,), guards=(1 / X - 1,)).status is Status.PROVED
    assert decided(R(1, 2) - X, states=(X,), guards=(1 / X - 1,)).status is Status.UNDECIDED
    assert decided(X * (X - 2), states=(X,), guards=(X / (X - 2),)).status is Status.PROVED
    assert decided(X, states=(X,), guards=(X / (X - 2),)).status is Status.UNDECIDED


# The excepted point ------------------------------------------------------------------------------------------


def test_each_state_is_its_own_key():
    problem = translate(claim(X**2 + Y**2, strict=True, origin=True))
    assert problem.keys == (((0,),), ((1,),))


@pytest.mark.parametrize(
    ("reach", "expected"), [(3, True), (R(62, 10), True), (R(628, 100), True), (R(6284, 1000), False), (7, False)]
)
def test_an_angle_is_known_within_one_turn_only(reach, expected):
    """1 - cos x is zero at 2π as well: on a box that holds it the claim is false."""
    outcome = decided(1 - sp.cos(X), ((-reach, reach),), states=(X,), strict=True, origin=True)
    assert (outcome.status is Status.PROVED) is expected
    if not expected:
        assert "beyond one turn" in outcome.reason


def test_an_angle_about_another_point():
    near = decided(1 + sp.sin(X), ((-4, 4),), states=(X,), strict=True, origin=(sp.S.Zero,))
    assert near.status is Status.UNDECIDED  # zero at -π/2
    assert decided(1 - sp.cos(X), ((-7, 1),), states=(X,), strict=True, origin=True).status is Status.UNDECIDED
    with pytest.raises(NotPolynomialError, match="not rational at the excepted point"):
        translate(claim(1 - sp.cos(X - 1), ((-1, 2),), states=(X,), strict=True, origin=(R(1, 2),)))


def test_a_state_that_does_not_occur_leaves_a_line_of_zeros():
    with pytest.raises(NotPolynomialError, match="y does not occur"):
        translate(claim(X**2, strict=True, origin=True))
    assert decided(X**2, strict=True, origin=True).status is Status.UNDECIDED
    with pytest.raises(NotPolynomialError, match="beyond one turn"):
        translate(claim(2 - sp.cos(X) - sp.cos(Y), ((-3, 3), (None, None)), strict=True, origin=True))


def test_injective_functions_tell_their_state():
    for g in (sp.tanh, sp.atan, sp.asinh):
        assert decided(g(X) ** 2, states=(X,), strict=True, origin=True).status is Status.PROVED
    assert decided((sp.exp(X) - 1) ** 2, states=(X,), strict=True, origin=True).status is Status.PROVED
    assert decided(sp.tanh(X * Y) ** 2 + X**2, strict=True, origin=True).status is Status.UNDECIDED  # zero on x = 0


def test_the_excepted_point_may_be_anywhere():
    body = (X - R(1, 3)) ** 2 + (Y + 2) ** 4
    assert decided(body, strict=True, origin=(R(1, 3), R(-2))).status is Status.PROVED
    assert decided(body, strict=True, origin=(R(1, 3) + R(1, 10**9), R(-2))).status is Status.UNDECIDED


# Forms and numbers -------------------------------------------------------------------------------------------


def test_matrices_become_forms(rng):
    body = sp.Matrix([[1 + X**2, X * Y], [X * Y, 2]])
    problem = translate(claim(body))
    assert problem.size == 2
    x, y = ([R(int(v), 7) for v in rng.integers(-20, 20, 2)] for _ in range(2))
    form = (sp.Matrix(y).T * body.subs(dict(zip(XY, x, strict=True))) * sp.Matrix(y))[0]
    assert (
        abs(at(problem.target, [mpmath.mpf(int(v.p)) / int(v.q) for v in (*x, *y)]) - mpmath.mpf(sp.N(form, 30)))
        < 1e-12
    )


@pytest.mark.parametrize("bad", [sp.sin(X), sp.sqrt(2) * X, X ** R(1, 2), 1 / X, sp.pi * X])
def test_what_is_no_polynomial_is_named(bad):
    with pytest.raises(NotPolynomialError, match="not a polynomial with rational coefficients"):
        to_poly(bad, XY, ring(2))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (sp.erf(X), "erf"),
        (X ** sp.sqrt(2), "exponent that is not rational"),
        (2**X, "exponent that is not rational"),
        (sp.gamma(X), "gamma"),
        ((-1) ** R(1, 3) * X, "not real"),
    ],
)
def test_functions_without_facts_are_named(body, words):
    with pytest.raises(NotPolynomialError, match=words):
        translate(claim(body, states=(X,)))


def test_coefficients_are_exact():
    p = R(10**40 + 1, 3**50) * X**3 - R(1, 7) * Y
    poly = to_poly(p, XY, ring(2))
    assert {m: R(int(c.p), int(c.q)) for m, c in poly.to_dict().items()} == {
        (3, 0): R(10**40 + 1, 3**50),
        (0, 1): R(-1, 7),
    }


def test_scaling_is_by_a_power_of_two():
    poly = to_poly(R(10**20) * X + Y, XY, ring(2))
    small = scaled(poly)
    ratio = poly.coeffs()[0] / small.coeffs()[0]
    assert ratio.q == 1
    assert bin(int(ratio.p)).count("1") == 1
    assert all(small.coeffs()[k] * ratio == poly.coeffs()[k] for k in range(2))
    assert abs(float(R(int(small.coeffs()[0].p), int(small.coeffs()[0].q)))) <= 4


def test_a_claim_of_a_function_has_no_translation():
    nothing = Claim(text="f > 0", states=(X,), strict=True, function=lambda x: x[0])
    with pytest.raises(NotPolynomialError, match="without a formula"):
        translate(nothing)
