"""Compiled ball arithmetic encloses every value, says when it does not know, and is tight where it must be."""

import mpmath
import pytest
import sympy as sp
from flint import arb, ctx, fmpq
from hypothesis import given, settings
from hypothesis import strategies as st

from ctrlgen.prove.balls import Compiled, Undefined, Unsupported, positive_definite, rational

X, Y = STATES = sp.symbols("x y", real=True)
R = sp.Rational
UNARY = (
    sp.sin, sp.cos, sp.tan, sp.exp, sp.tanh, sp.sinh, sp.cosh, sp.atan, sp.asinh, sp.erf, sp.Abs, sp.sqrt, sp.log,
    lambda u: u**2, lambda u: u**3, lambda u: u**4, lambda u: 1 / u, lambda u: u**-2, lambda u: u ** R(3, 2),
    lambda u: (1 + u**2) ** R(1, 3), lambda u: sp.asin(u / 4), lambda u: sp.acos(u / 4), sp.cot,
)  # fmt: skip
BINARY = (
    lambda u, v: u + v, lambda u, v: u - v, lambda u, v: u * v, lambda u, v: u / v, sp.Max, sp.Min,
    lambda u, v: u**2 * v**2,
)  # fmt: skip
leaves = st.sampled_from([X, Y, R(1, 3), sp.Integer(2), sp.pi, sp.sqrt(2), R(-7, 5)])
formulas = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(lambda f, u: f(u), st.sampled_from(UNARY), inner),
        st.builds(lambda f, u, v: f(u, v), st.sampled_from(BINARY), inner, inner),
    ),
    max_leaves=6,
)
grid = st.integers(-128, 128)


def ball(low, high):
    return arb(low).union(arb(high))


def exact_value(expr, point):
    """The value to 50 digits by mpmath, or None where it is not a finite real number."""
    with mpmath.workdps(60):
        try:
            value = sp.lambdify(STATES, expr, "mpmath")(*(mpmath.mpf(int(p.p)) / int(p.q) for p in point))
        except (ZeroDivisionError, ValueError, OverflowError):
            return None
        value = mpmath.mpc(value)
        if not mpmath.isfinite(value) or abs(value.imag) > 1e-40:
            return None
        return mpmath.nstr(value.real, 50)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(formulas, st.lists(grid, min_size=6, max_size=6))
def test_enclosures_hold_the_true_value(expr, numbers):
    if expr.has(sp.zoo, sp.nan, sp.oo, sp.I) or expr.is_real is False:
        return
    a, b, s, c, d, t = numbers
    low, high = [fmpq(min(a, b), 64), fmpq(min(c, d), 64)], [fmpq(max(a, b), 64), fmpq(max(c, d), 64)]
    point = [lo + (hi - lo) * fmpq(w + 128, 256) for lo, hi, w in zip(low, high, (s, t), strict=True)]
    code = Compiled([expr], STATES)
    text = exact_value(expr, point)
    for evaluate in (
        lambda: code.wide(*(ball(lo, hi) for lo, hi in zip(low, high, strict=True)))[0],
        lambda: code.wide(*map(arb, point))[0],
        lambda: code.at(point, 64)[0],
        lambda: code.at(point, 300)[0],
    ):
        try:
            found = evaluate()
        except Undefined:
            continue
        assert text is not None
        with ctx.workprec(200):
            truth = arb(text) + arb(0, 1e-45) * (1 + abs(arb(text)))
            assert found.overlaps(truth)
    sign = code.signs(point)[0]
    if sign is not None and text is not None:
        assert abs(float(text)) < 1e-40 if sign == 0 else float(text) * sign > -1e-40


@settings(max_examples=60, deadline=None, derandomize=True)
@given(formulas, st.lists(st.integers(-120, 120), min_size=2, max_size=2))
def test_derivatives_hold_difference_quotients(expr, numbers):
    """Mean value theorem: the chord's slope along a coordinate lies in the derivative's enclosure on the segment."""
    if expr.has(sp.zoo, sp.nan, sp.oo, sp.I) or expr.is_real is False:
        return
    code = Compiled([expr], STATES)
    slope = code.derivative()
    assert slope is not None
    p = [fmpq(n, 64) for n in numbers]
    for i in (0, 1):
        q = [v + fmpq(1, 8) * (j == i) for j, v in enumerate(p)]
        segment = [ball(a, b) for a, b in zip(p, q, strict=True)]
        try:
            code.wide(*segment)
            enclosure = slope.wide(*segment)[i]
        except Undefined:
            continue
        chord = (code.at(q, 300)[0] - code.at(p, 300)[0]) * 8
        assert enclosure.overlaps(chord)


def test_even_powers_have_no_negative_part():
    wide = ball(-1, 2)
    for expr, top in ((X**2, 4), (X**4, 16), (X**2 * Y**2, 16)):
        (value,) = Compiled([expr], STATES).wide(wide, wide)
        assert value.lower() > -1e-6
        assert abs(float(value.upper()) - top) < 1e-6


@pytest.mark.parametrize(
    ("expr", "low", "high"),
    [
        (X**3, -1.0, 8.0),
        (1 / (2 + X), 0.25, 1.0),
        (sp.exp(X), 0.36787944117144, 7.38905609893065),
        (sp.Abs(X), 0.0, 2.0),
    ],
)
def test_monotone_functions_are_enclosed_by_their_ends(expr, low, high):
    (value,) = Compiled([expr], STATES).wide(ball(-1, 2), arb(0))
    assert float(value.lower()) == pytest.approx(low, abs=1e-6)
    assert float(value.upper()) == pytest.approx(high, abs=1e-6)


@pytest.mark.parametrize(
    "expr",
    [
        1 / X,
        X**-2,
        sp.log(X),
        sp.sqrt(X),
        X ** R(1, 3),
        sp.tan(2 * X),
        sp.sin(1 / X),
        sp.atan(1 / X),
        sp.acosh(X),
        sp.cot(X),
    ],
    ids=str,
)
def test_a_formula_undefined_somewhere_in_the_box_has_no_value(expr):
    with pytest.raises(Undefined):
        Compiled([expr], STATES).wide(ball(-1, 2), arb(0))


def test_atan2_is_undefined_on_its_cut():
    code = Compiled([sp.atan2(Y, X)], STATES)
    with pytest.raises(Undefined):
        code.wide(ball(-1, 2), ball(-1, 1))
    assert code.wide(ball(1, 2), ball(-1, 1))[0].contains(0)


def test_root_of_a_nonnegative_formula_is_defined_at_its_zero():
    (value,) = Compiled([sp.sqrt(X**2 + Y**2)], STATES).wide(ball(-3, 3), ball(-4, 4))
    assert abs(float(value.upper()) - 5) < 1e-6
    assert value.lower() >= -1e-6


@pytest.mark.parametrize("expr", [sp.sign(X), sp.atan2(Y, X), sp.Heaviside(X)], ids=str)
def test_jumps_have_no_derivative(expr):
    """sign has the derivative 0 wherever it has one; a mean-value form built on that would be wrong."""
    assert Compiled([expr], STATES).derivative() is None


@pytest.mark.parametrize("expr", [sp.Abs(X), sp.Max(X, Y) ** 2], ids=str)
def test_kinks_have_a_first_derivative_only(expr):
    code = Compiled([expr], STATES)
    slope = code.derivative()
    assert slope is not None
    assert code.derivative(2) is None
    assert float(slope.wide(ball(-1, 1), arb(0.0))[0].upper()) >= 1


def test_unknown_functions_and_floats_are_named():
    with pytest.raises(Unsupported, match="gamma"):
        Compiled([sp.gamma(X)], STATES)
    with pytest.raises(Unsupported, match=r"0\.1"):
        Compiled([X + sp.Float("0.1")], STATES)
    with pytest.raises(Unsupported, match="z"):
        Compiled([X + sp.Symbol("z")], STATES)


def test_signs_are_exact_where_floats_are_not():
    p = [fmpq(1, 3), fmpq(0)]
    tiny = R(1, 10**40)
    assert Compiled([3 * X - 1, 3 * X - 1 + tiny, 3 * X - 1 - tiny], STATES).signs(p) == (0, 1, -1)
    assert Compiled([sp.cos(X) ** 2 + sp.sin(X) ** 2 - 1 - tiny], STATES).signs(p) == (-1,)
    assert Compiled([sp.cos(X) ** 2 + sp.sin(X) ** 2 - 1], STATES).signs(p) == (None,)
    assert Compiled([1 / Y], STATES).signs(p) == (None,)


def test_exact_values_are_rational():
    point = (fmpq(1, 3), fmpq(-1, 2))
    assert Compiled([X**2 / Y + sp.Abs(Y), sp.Max(X, Y)], STATES).exact(point) == (fmpq(5, 18), fmpq(1, 3))
    assert Compiled([sp.sin(X)], STATES).exact(point) is None


def test_fixed_balls_stand_for_unknown_numbers():
    c = sp.Symbol("c", real=True)
    (value,) = Compiled([c * X], STATES, {c: ball(2, 3)}).wide(arb(2), arb(0))
    assert value.contains(4)
    assert value.contains(6)
    assert value < 7


def test_definiteness_of_all_matrices_in_the_enclosure():
    def matrix(spread):
        return [[arb(2), arb(1, spread)], [arb(1, spread), arb(1)]]

    assert positive_definite(matrix(0.05))
    assert not positive_definite(matrix(0.5))  # (2, 1.5; 1.5, 1) has determinant -1/4
    assert not positive_definite([[arb(1), arb(0, 1.5)], [arb(0, 1.5), arb(1)]])
    assert positive_definite([[arb(100), arb(9)], [arb(9), arb(1)]], weak=True)
    singular = [[arb(1), arb(1)], [arb(1), arb(1)]]
    assert not positive_definite(singular)
    assert not positive_definite([[arb(float("nan"))]])
    assert positive_definite([[arb(0)]], weak=True)
    assert not positive_definite([[arb(0)]])


def test_floats_are_read_as_they_are():
    assert rational(0.1) == fmpq(3602879701896397, 36028797018963968)
    assert rational(R(1, 10)) == fmpq(1, 10)
