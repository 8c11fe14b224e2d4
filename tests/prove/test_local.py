"""The hole at the equilibrium is closed where p has a strict minimum there, and nowhere else."""

import itertools

import numpy as np
import pytest
import sympy as sp
from flint import fmpq

from ctrlgen.prove import interval, local
from ctrlgen.prove.claim import Claim, Deadline, Status

X, Y, Z = SYMBOLS = sp.symbols("x y z", real=True)
R = sp.Rational
MINIMA = {
    "round": X**2 + Y**2,
    "pendulum": 1 - sp.cos(X) + Y**2 / 2 + Y * sp.sin(X) / 4,
    "weights 1 and 2": 2 * X**4 + 2 * Y**2,
    "weights with a cross term": X**4 + Y**2 - X**2 * Y,
    "quartic": X**4 + Y**4 - X**2 * Y**2,
    "off the axes": (X + Y) ** 2 + (X - Y) ** 4,
    "off the axes, trigonometric": 1 - sp.cos(X + Y) + (X - 2 * Y) ** 4 * sp.exp(X),
    "bent": (Y - X**2) ** 2 + X**6,
    "bent twice": (Y - X**2 - X**3) ** 2 + X**6,
    "bent, sine": (Y - X**2) ** 2 + sp.sin(X) ** 6,
    "series": sp.sin(X) ** 4 + 1 - sp.cos(Y),
    "rational": X**2 / (1 + Y**2) + Y**4 / (2 + X),
    "hyperbolic": sp.cosh(X) - 1 - X**2 / 2 + sp.tanh(Y) ** 2,
    "sign of the denominator": (X**2 + Y**4) / (X - 3) * -1,
}
ONLY_NEAR = {
    "fifth order": Y**2 + X**4 - 4 * sp.sin(X) ** 5,
    "third order": Y**2 + X**4 - 6 * Y**3,
    "fifth order, other side": Y**2 + X**4 + 3 * X**5,
    "bent, negative beside": (Y - 4 * X**2) ** 2 * (1 - 30 * (Y - 4 * X**2) ** 2) + X**6,
    "pole beside": (X**2 + Y**2) / (X + R(1, 4)),
}
OTHERS = {
    "saddle": X**2 - Y**2,
    "negative": -(X**2) - Y**2,
    "cubic": X**2 + Y**3,
    "flat line": (X - Y) ** 2,
    "touching curve": (Y - X**2) ** 2,
    "tiny ball": (X**2 + Y**2) * (X**2 + Y**2 - R(1, 10**6)),
    "indefinite quartic": X**4 + Y**4 - 3 * X**2 * Y**2,
    "just indefinite": Y**2 - (2 + R(1, 10**9)) * X**2 * Y + X**4,
    "indefinite after bending": (Y - X**2) ** 2 - X**6,
    "sixth order below": (Y - X**2) ** 2 + X**7,
    "not zero": X**2 + Y**2 + R(1, 10**30),
    "sloping": X**2 + Y**2 + X / 10**30,
    "kink": sp.Abs(X) ** 3 - Y**2,
    "essential": sp.sin(X) ** 2 - X**2 + Y**2,
}


def closed(expr, centre=(0, 0), half=(1, 1)):
    return local.close(expr, (X, Y), tuple(map(fmpq, centre)), tuple(map(fmpq, half)), Deadline(10))


TWISTED = pytest.param("off the axes, trigonometric", marks=pytest.mark.slow)  # dear; its claim is decided below


@pytest.mark.parametrize("name", [n if n not in TWISTED.values else TWISTED for n in MINIMA | ONLY_NEAR])
def test_strict_minimum_is_closed_by_a_box_where_it_is_one(name):
    expr = (MINIMA | ONLY_NEAR)[name]
    found = closed(expr)
    assert not found.failed, found.text
    low, high = np.array([[float(v) for v in side] for side in (found.low, found.high)])
    assert (low < 0).all()
    assert (high > 0).all()
    value = sp.lambdify((X, Y), expr, "numpy")
    grid = np.linspace(-1, 1, 41)
    for s, t in itertools.product(grid, grid):
        if s or t:
            x, y = (high if s > 0 else -low)[0] * s, (high if t > 0 else -low)[1] * t
            assert value(x, y) > -1e-15


@pytest.mark.parametrize("name", OTHERS)
def test_no_other_point_is_closed(name):
    assert closed(OTHERS[name]).failed


@pytest.mark.parametrize("name", ["weights 1 and 2", "bent", "pendulum", "rational", TWISTED])
def test_any_centre_and_scale(name):
    at = (R(1, 3), R(-5, 7))
    moved = MINIMA[name].subs({X: (X - at[0]) / 100, Y: (Y - at[1]) / 100}, simultaneous=True)
    found = local.close(
        moved, (X, Y), (fmpq(1, 3), fmpq(-5, 7)), (fmpq(100), fmpq(100)), Deadline(10)
    )  # fmt: skip
    assert not found.failed, found.text
    assert float(found.high[0] - found.low[0]) > 0.1


def test_a_constant_is_zero_only_when_that_is_shown():
    assert local.vanishes(sp.sin(1) ** 2 + sp.cos(1) ** 2 - 1)
    assert local.vanishes(sp.sqrt(2) * sp.sqrt(3) - sp.sqrt(6))
    assert not local.vanishes(sp.sin(1) ** 2 + sp.cos(1) ** 2 - 1 + R(1, 10**60))
    assert not local.vanishes(sp.nan)
    assert not local.vanishes(X)


def test_the_box_is_as_large_as_the_hessian_allows():
    """1 - cos x is convex on |x| < π/2: of the halved boxes of |x| ≤ 4 the third is the first inside."""
    found = local.close(1 - sp.cos(X), (X,), (fmpq(0),), (fmpq(4),), Deadline(5))
    assert found.high == (fmpq(1),)


def claim(expr, states, half=1):
    box = ((-sp.sympify(half), sp.sympify(half)),) * len(states)
    sides = tuple(g for s, (a, b) in zip(states, box, strict=True) for g in (s - a, b - s))
    at = (sp.S.Zero,) * len(states)
    return Claim(
        text=str(expr), states=states, matrix=sp.Matrix([[expr]]), strict=True, guards=sides, box=box, except_at=at
    )


@pytest.mark.parametrize("name", MINIMA)
def test_claims_with_the_hole_closed_are_decided(name):
    outcome = interval.decide(claim(MINIMA[name], (X, Y), R(1, 2)), Deadline(10))
    assert outcome.status is Status.PROVED, outcome.reason
    assert "around the equilibrium" in outcome.reason


@pytest.mark.parametrize("name", OTHERS)
def test_claims_with_an_open_hole_are_never_proved(name):
    true = {"not zero"}
    outcome = interval.decide(claim(OTHERS[name], (X, Y), R(1, 2)), Deadline(1))
    assert (outcome.status is Status.PROVED) == (name in true), outcome.reason


def test_a_semidefinite_hessian_in_three_states():
    """SOSTOOLS' second demonstration: V̇ of V = 3x² + y² + z², multiplied out of its denominator."""
    f = (-(X**3) - X * Z**2, -Y - X**2 * Y, -Z - 3 * Z / (Z**2 + 1) + 3 * X**2 * Z)
    v = 3 * X**2 + Y**2 + Z**2
    rate = -sum(sp.diff(v, s) * g for s, g in zip(SYMBOLS, f, strict=True))
    outcome = interval.decide(claim(rate, SYMBOLS), Deadline(10))
    assert outcome.status is Status.PROVED, outcome.reason


def test_an_equilibrium_on_the_boundary_is_no_excuse():
    """x + x² is positive for 0 < x ≤ 1, but its gradient at 0 is not 0: the argument does not apply, and says so."""
    side = Claim(
        text="x + x² > 0", states=(X,), matrix=sp.Matrix([[X + X**2]]), strict=True, guards=(X, 1 - X),
        box=((sp.S.Zero, sp.S.One),), except_at=(sp.S.Zero,),
    )  # fmt: skip
    outcome = interval.decide(side, Deadline(2))
    assert outcome.status is Status.UNDECIDED
    assert "gradient" in outcome.reason
