"""Gradient and Laplacian in balls: they hold the true values, and no kink or jump is taken for a smooth point."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy as sp
from flint import arb, ctx, fmpq

from ctrlgen.continuity import JumpError
from ctrlgen.precision import float64
from ctrlgen.prove.balls import Undefined, Unsupported
from ctrlgen.prove.claim import Deadline
from ctrlgen.prove.pointwise import FormulaJet, TracedJet, box_around, reading

X, Y = sp.symbols("x y", real=True)


@pytest.mark.parametrize("value", [0.1, -0.3, 1 / 3, 1e-300, 5e-324, 1.7e308, 2.0**39 + 2.0**-10, 123456789.123, 1e22])
def test_a_float_stands_for_its_two_readings(value):
    ball = reading(value)
    with ctx.workprec(3000):
        for exact in (Fraction(value), Fraction(repr(value))):
            number = arb(fmpq(exact.numerator, exact.denominator))
            assert abs(number - ball.mid()) <= ball.rad()
    assert float(ball.rad()) <= max(2e-16 * abs(value), 1e-323)


@pytest.mark.parametrize("value", [0.0, 1.0, -2.5, 0.1875, 1e14, 8191.5])
def test_a_float_that_is_its_decimal_stands_for_itself(value):
    assert reading(value).is_exact()
    assert Fraction(repr(value)) == Fraction(value)


FORMULAS = {
    "polynomial": (X**4 - X * Y + 3 * Y**2 / 7, lambda x: x[0] ** 4 - x[0] * x[1] + 3 * x[1] ** 2 / 7),
    "elementary": (
        sp.exp(-X) * sp.sin(Y) + sp.log(1 + Y**2) / 3,
        lambda x: jnp.exp(-x[0]) * jnp.sin(x[1]) + jnp.log(1 + x[1] ** 2) / 3,
    ),
    "root": (sp.sqrt(1 + X**2 + Y**2), lambda x: jnp.sqrt(1 + x @ x)),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_formula_and_code_hold_the_exact_derivatives(name):
    expr, function = FORMULAS[name]
    point, at = [fmpq(3, 4), fmpq(-5, 8)], {X: sp.Rational(3, 4), Y: sp.Rational(-5, 8)}
    exact = [sp.diff(expr, s) for s in (X, Y)] + [sp.diff(expr, X, 2) + sp.diff(expr, Y, 2)]
    exact = [sp.Rational(str(sp.N(e.subs(at), 40))) for e in exact]
    with ctx.workprec(128):
        box = box_around(point, fmpq(1, 2**64))
    for jet in (FormulaJet(expr, (X, Y)), TracedJet(function, 2)):
        slope, laplacian = jet.around(box, 128, Deadline(10))
        for ball, value in zip([*slope, laplacian], exact, strict=True):
            with ctx.workprec(256):
                assert abs(ball - fmpq(int(value.p), int(value.q))) < fmpq(1, 10**14)
                assert ball.overlaps(arb(fmpq(int(value.p), int(value.q)), 1e-38))


def test_a_box_holds_its_points():
    with ctx.workprec(64):
        (ball,) = box_around([fmpq(1, 3)], fmpq(1, 1000))
    for shift in (fmpq(-1, 1000), fmpq(0), fmpq(1, 1000)):
        assert (fmpq(1, 3) + shift) in ball
    assert (fmpq(1, 3) + fmpq(2, 1000)) not in ball


def test_a_formula_is_smooth_only_where_it_certainly_is():
    jet = FormulaJet(sp.log(X) + Y ** sp.Rational(5, 2), (X, Y))
    with ctx.workprec(128):
        jet.around(box_around([fmpq(1), fmpq(1)], fmpq(1, 2**64)), 128, Deadline(10))
        for x, y in ((0, 1), (-1, 1), (1, -1)):
            with pytest.raises(Undefined):
                jet.around(box_around([fmpq(x), fmpq(y)], fmpq(1, 2**64)), 128, Deadline(10))
    with pytest.raises(JumpError, match="kink"):
        FormulaJet(sp.Abs(X), (X,))


def test_time_and_loops():
    jet = TracedJet(lambda x: jnp.sin(x[0]), 1)
    with ctx.workprec(64), pytest.raises(TimeoutError):
        jet.around([arb(1)], 64, Deadline(0))
    with pytest.raises(Unsupported, match="loop"):
        TracedJet(lambda x: jax.lax.fori_loop(0, 3, lambda k, y: y + x[0] ** 2, 0.0), 1)
    with pytest.raises(Unsupported, match="cannot be traced"):
        TracedJet(lambda x: float(x[0]), 1)


def test_one_jet_at_several_precisions():
    weights = np.random.default_rng(0).normal(size=(40, 3))
    jet = TracedJet(lambda x: jnp.sum(jnp.tanh(jnp.asarray(weights) @ x)), 3)
    found = []
    for bits in (53, 128, 256):
        with ctx.workprec(bits):
            box = box_around([fmpq(1, 3), fmpq(-1, 5), fmpq(2)], fmpq(1, 2**64))
        found.append(jet.around(box, bits, Deadline(10))[1])
    x = np.array([1 / 3, -0.2, 2.0])
    t = np.tanh(weights @ x)
    value = float((-2 * t * (1 - t**2) * (weights**2).sum(axis=1)).sum())
    for ball in found:
        assert abs(float(ball) - value) < 1e-11
        assert all(ball.overlaps(other) for other in found)


KINKED = {
    "where": lambda x: jnp.where(x[0] > 0.25, x[0] ** 2, 0.125 * x[0] + 0.03125),
    "abs": lambda x: jnp.abs(x[0] - 0.25) + x[0] ** 2,
    "max": lambda x: jnp.maximum(x[0] ** 2, 0.0625),
    "relu": lambda x: jax.nn.relu(x[0] - 0.25) + x[0] ** 2,
    "jump": lambda x: jnp.sign(x[0] - 0.25) + x[0] ** 2,
    "power": lambda x: jnp.abs(x[0] - 0.25) ** 1.5 + x[0] ** 2,
}


@pytest.mark.parametrize("name", KINKED)
def test_no_enclosure_at_a_kink_and_one_beside_it(name):
    jet = TracedJet(KINKED[name], 1)
    with ctx.workprec(128):
        for point in (fmpq(1, 4), fmpq(1, 4) + fmpq(1, 2**80), fmpq(1, 4) - fmpq(1, 2**80)):
            with pytest.raises(Undefined):  # the box of half-side 2^-64 around the point holds the kink
                jet.around(box_around([point], fmpq(1, 2**64)), 128, Deadline(10))
        slope, laplacian = jet.around(box_around([fmpq(1, 2)], fmpq(1, 2**64)), 128, Deadline(10))
    with float64():
        assert float(slope[0]) == pytest.approx(float(jax.grad(KINKED[name])(jnp.array([0.5]))[0]), abs=1e-12)
        hessian = float(jax.hessian(KINKED[name])(jnp.array([0.5]))[0, 0])
    assert float(laplacian) == pytest.approx(hessian, abs=1e-12)
