"""Inequalities, bounds and sums of squares, against classical polynomials."""

from dataclasses import replace

import numpy as np
import pytest
import sympy as sp
from flint import fmpq

import ctrlgen as cg
from ctrlgen import Status

XY = ["x", "y"]
MOTZKIN = "x**4*y**2 + x**2*y**4 + 1 - 3*x**2*y**2"
GOLDSTEIN_PRICE = (
    "(1 + (x + y + 1)**2*(19 - 14*x + 3*x**2 - 14*y + 6*x*y + 3*y**2))"
    "*(30 + (2*x - 3*y)**2*(18 - 32*x + 12*x**2 + 48*y - 36*x*y + 27*y**2))"
)


def test_motzkin_is_nonnegative_and_no_sum_of_squares():
    verdict = cg.nonnegative(MOTZKIN, XY)
    assert verdict.status is Status.PROVED
    assert verdict.recheck()
    squares = cg.sum_of_squares(MOTZKIN, XY)
    assert squares.status is Status.REFUTED
    assert squares.recheck()
    assert cg.nonnegative(MOTZKIN + " - 1e-9", XY).status is Status.REFUTED  # its zeros are at (±1, ±1)
    assert cg.nonnegative(MOTZKIN, XY, strict=True).status is Status.REFUTED


def test_a_functional_that_separates_nothing_is_noticed():
    functional = cg.sum_of_squares(MOTZKIN, XY).steps[0].outcome.certificate
    assert functional.recheck()
    at_origin = {m: fmpq(int(sum(m) == 0)) for m in functional.moments}  # L(q) = q(0): ≥ 0 on squares, and on p
    assert not replace(functional, moments=at_origin).recheck()
    negative = {**functional.moments, (2, 0): fmpq(-1)}  # L(x²) < 0
    assert not replace(functional, moments=negative).recheck()


def test_a_sum_of_squares_times_a_multiplier_is_none():
    proof = cg.nonnegative(MOTZKIN, XY, method="exact").steps[0].outcome.certificate
    assert proof.recheck()
    assert not replace(proof, claim=replace(proof.claim, kind="squares")).recheck()


def test_a_sum_of_squares_is_recognised():
    verdict = cg.sum_of_squares("2*x**4 + 2*x**3*y - x**2*y**2 + 5*y**4", XY)
    assert verdict.status is Status.PROVED
    assert verdict.recheck()
    # a binary form is a sum of squares if it is nonnegative: it is with -2, and negative at (1.4, -1) with -4
    assert cg.sum_of_squares("2*x**4 + 2*x**3*y - 2*x**2*y**2 + 5*y**4", XY).status is Status.PROVED
    assert cg.sum_of_squares("2*x**4 + 2*x**3*y - 4*x**2*y**2 + 5*y**4", XY).status is Status.REFUTED


def test_goldstein_price_is_never_bounded_above_three():
    box = cg.Box([-2, -2], [2, 2])
    above = cg.nonnegative(f"{GOLDSTEIN_PRICE} - 3.0001", XY, box, timeout=10)
    assert above.status is Status.REFUTED
    assert np.allclose(above.witness, [0, -1], atol=0.01)
    below = cg.nonnegative(f"{GOLDSTEIN_PRICE} - 2.9", XY, box, timeout=30)
    assert below.status is not Status.REFUTED
    bound = cg.lower_bound(GOLDSTEIN_PRICE, XY, box, timeout=15)
    assert bound.bound is None or bound.bound <= 3


@pytest.mark.parametrize(
    ("p", "states", "domain", "expected"),
    [
        ("x**4 - 3*x**2 + x + y**2", XY, None, None),
        ("sin(x) + x**2/4", ["x"], cg.Box([-4], [4]), None),
        ("x*y", XY, cg.Ball([0, 0], 1), -0.5),
        ("-x - y", XY, cg.Box([0, 0], [1, 2]), -3.0),
        ("x**2 - 2*x", ["x"], cg.Box([-5], [0.5]) | cg.Box([3], [4]), -0.75),
        ("x**2 - 2*x", ["x"], cg.Box([3], [4]) | cg.Box([-5], [0.5]), -0.75),
    ],
)
def test_lower_bounds_are_close_and_never_above(p, states, domain, expected):
    verdict = cg.lower_bound(p, states, domain)
    assert verdict.status is Status.PROVED
    assert verdict.recheck()
    if expected is None:  # by brute force on a grid
        grid = np.meshgrid(*[np.linspace(-4, 4, 2001)] * len(states))
        values = sp.lambdify(sp.symbols(states), sp.sympify(p), "numpy")(*grid)
        expected = values.min()
    assert verdict.bound <= expected + 1e-12
    assert verdict.bound == pytest.approx(expected, abs=2e-5)


def test_unbounded_below_has_no_bound():
    verdict = cg.lower_bound("x**3", ["x"], timeout=5)
    assert verdict.status is not Status.PROVED
    assert verdict.bound is None


def test_bad_input():
    with pytest.raises(ValueError, match="p must be a polynomial"):
        cg.sum_of_squares("sin(x)", ["x"])
    with pytest.raises(ValueError, match="p must be a polynomial"):
        cg.sum_of_squares("1/(1 + x**2)", ["x"])
    with pytest.raises(ValueError, match="domain"):
        cg.nonnegative("x", ["x"], cg.Sublevel("x**2", ["x"], -1))
