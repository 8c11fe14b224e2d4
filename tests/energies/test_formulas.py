"""Bounds of formulas on the whole space against samples far and near, and against known values."""

import math
import random

import jax.numpy as jnp
import numpy as np
import pytest
import sympy as sp

import ctrlgen as cg
from ctrlgen.energies.base import Properties
from ctrlgen.energies.decaying import decaying_range, expanded
from ctrlgen.energies.formulas import continuous, twice_differentiable, value_range

X, Y = sp.symbols("x y", real=True)

FORMULAS = [
    "x**2/2 + cos(3*x)/4",
    "0.3*sin(3*x)*cos(y) + y**2",
    "x**4/4 + x**2/2 + y**2 + x*y/3",
    "exp(-x**2) + x**2 + y**2",
    "tanh(x) + x**2 + y**2",
    "1/(1 + x**2) + y**2 + x**2",
    "atan(x)*sin(y) + x**2 + 3*y**2",
    "erf(x) + x**4 + y**4 - x*y",
    "(x**2 - 1)**2 + y**2/2",
    "sin(x + y)**3",
    "x**4 + y**2 + exp(-x**2 - y**2)",
    "(x**2 + y**2)**2 - 3*exp(-(x - 1)**2 - x*y - 2*y**2)",
    "x*y*exp(-x**2 - (y + 1)**2)",
    "sqrt(1 + x**2 + x*y + y**2) + x**4 + y**4",
    "5*log(1 + x**2 + y**2)",
    "x/(1 + x**2 + y**2)**2",
    "x**4 + y**4 + 2*sin(3*x)",
]


@pytest.mark.parametrize("text", FORMULAS)
def test_bounds_hold_at_samples(text):
    energy = cg.SymbolicEnergy(text, ["x", "y"])
    known = energy.properties
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(400, 2)) * size for size in (0.3, 1, 3, 10)])
    eigenvalues = np.linalg.eigvalsh(energy.hessian(x))
    if known.hessian_lower is not None:
        assert (eigenvalues[:, 0] >= known.hessian_lower - 1e-9).all()
    if known.hessian_upper is not None:
        assert (eigenvalues[:, 1] <= known.hessian_upper + 1e-9).all()
    if known.gradient_bound is not None:
        assert (np.linalg.norm(energy.gradient(x), axis=1) <= known.gradient_bound + 1e-9).all()
    if known.oscillation is not None:
        assert np.ptp(energy(x)) <= known.oscillation + 1e-9
    if known.dissipativity is not None:
        a, b = known.dissipativity
        radial = (x * energy.gradient(x)).sum(axis=1)
        assert (radial >= a * (x**2).sum(axis=1) - b - 1e-9).all()


def decaying(k):
    """A random polynomial times a factor that decays, from the seed k."""
    r = random.Random(k)

    def number(least=-12):
        return sp.Rational(r.randint(least, 12), 4)

    def polynomial(degree):
        return sum(number() * X ** r.randint(0, degree) * Y ** r.randint(0, degree) for _ in range(3))

    def quadratic():
        square = number(1) * (X - number()) ** 2 + number(1) * (Y - number()) ** 2
        return square + number() * X * Y / 13 + number()

    q = quadratic()
    return [
        polynomial(2) * sp.exp(-q),
        polynomial(2) * sp.exp(-q) + polynomial(1) * sp.exp(-quadratic()) - number() * sp.exp(-q),
        polynomial(1) * (q + 10) ** -sp.Rational(r.randint(2, 5), 2),
        polynomial(2) * (q + 10) ** -r.randint(2, 4),
    ][k % 4]


@pytest.mark.parametrize("k", range(40))
def test_ranges_of_what_decays_hold_at_samples(k):
    expr = decaying(k)
    known = value_range(expanded(expr))
    rng = np.random.default_rng(k)
    points = np.concatenate([rng.normal(size=(5000, 2)) * size for size in (0.5, 2, 6)])
    values = sp.lambdify((X, Y), expr, "numpy")(*points.T) * np.ones(len(points))
    room = 1e-9 * np.abs(values).max()
    assert float(known[0].lower()) <= values.min() + room
    assert float(known[1].upper()) >= values.max() - room
    assert float(known[1].upper()) - float(known[0].lower()) < 200 * np.ptp(values) + room


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("exp(-x**2 - y**2)", 0, 1),
        ("x*exp(-x**2/2)", -math.exp(-0.5), math.exp(-0.5)),
        ("x**2*exp(-3*x**2)", 0, 1 / (3 * math.e)),
        ("x*y*exp(-x**2 - y**2)", -1 / (2 * math.e), 1 / (2 * math.e)),
        ("3*exp(2*x - x**2)", 0, 3 * math.e),
        ("(x**2 - 2*x + 1)*exp(-(x - 1)**2)", 0, 1 / math.e),
        ("x*(x**2 + 4)**(-1/2)", -1, 1),
        ("exp(-x**2)*exp(2*x)*exp(-1) - 3*exp(-(x - 1)**2)", -2, 0),
    ],
)
def test_ranges_that_are_known(text, low, high):
    known = value_range(cg.SymbolicEnergy(text, ["x", "y"]).symbolic([X, Y]))
    assert float(known[0].mid()) == pytest.approx(low, abs=1e-12)
    assert float(known[1].mid()) == pytest.approx(high, abs=1e-12)


@pytest.mark.parametrize(
    "text",
    ["x*exp(-y**2)", "exp(x**2)", "exp(x**2 - y**2)", "exp(x*y)", "x**2*(1 + x**2)**(-1/2)", "x**3/(1 + x**2 + y**2)",
     "x/(x**2 + y**2)", "1/(x**2 + y**2 - 1)"],
)  # fmt: skip
def test_what_does_not_decay_is_not_bounded(text):
    known = value_range(cg.SymbolicEnergy(text, ["x", "y"]).symbolic([X, Y]))
    assert known is None or not known[1].is_finite()


@pytest.mark.parametrize("part", ["log(x)", "sqrt(x)", "1/x"])
def test_what_cancels_need_not_be_defined(part):
    expr = cg.SymbolicEnergy(f"(x + 1)*{part} - x*{part} - {part}", ["x"]).symbolic([X])
    assert sp.expand(expr) == 0
    assert expr != 0
    assert value_range(expr) is None
    assert not continuous(expr)
    assert cg.SymbolicEnergy(expr, [X]).properties == Properties()


@pytest.mark.parametrize("text", ["sqrt(1 + x**2)", "log(2 + sin(x))", "1/(1 + x**2)", "x**2*abs(x)", "sqrt(x**2)"])
def test_what_is_continuous_everywhere(text):
    assert continuous(cg.SymbolicEnergy(text, ["x"]).symbolic([X]))


def test_the_smallest_eigenvalue_is_not_believed(monkeypatch):
    assert decaying_range(sp.exp(-(X**2) - X * Y - Y**2)) is not None
    monkeypatch.setattr(np.linalg, "eigvalsh", lambda matrix: np.array([0.6, 1.5]))  # it is 0.5
    assert decaying_range(sp.exp(-(X**2) + X * Y - Y**2)) is None


def test_dissipativity_of_a_polynomial_and_what_is_beside_it():
    alone = cg.SymbolicEnergy("x**4", ["x"]).properties.dissipativity
    steep = cg.SymbolicEnergy("x**4 + 2*sin(3*x)", ["x"]).properties.dissipativity  # |∇R| ≤ 6
    assert steep == pytest.approx((alone[0] / 2, alone[1] + 36 / (2 * alone[0])))
    bump = cg.SymbolicEnergy("x**4 + exp(-x**2)", ["x"]).properties.dissipativity  # x R' = -2x² exp(-x²) ≥ -2/e
    assert bump == pytest.approx((alone[0], alone[1] + 2 / math.e))
    assert cg.SymbolicEnergy("x**4 + y**2*sin(x*y)", ["x", "y"]).properties.dissipativity is None


def test_known_values():
    bowl = cg.SymbolicEnergy("x**2/2 + cos(3*x)/4", ["x"]).properties
    assert bowl.hessian_lower == pytest.approx(1 - 9 / 4)
    assert bowl.hessian_upper == pytest.approx(1 + 9 / 4)
    wave = cg.SymbolicEnergy("0.3*sin(3*x)", ["x"]).properties
    assert (wave.gradient_bound, wave.oscillation) == (pytest.approx(0.9), pytest.approx(0.6))
    assert wave.dissipativity is None
    quartic = cg.SymbolicEnergy("x**4/4 + x**2/2", ["x"]).properties
    assert quartic.hessian_lower == 1.0
    assert quartic.hessian_upper is None
    assert quartic.dissipativity == (1.0, 0.0)
    well = cg.SymbolicEnergy("(x**2 - 1)**2", ["x"]).properties
    assert well.hessian_lower == pytest.approx(-4.0)
    assert well.dissipativity is not None
    coupled = cg.SymbolicEnergy("x**2 + y**2 + x*y + x**4", ["x", "y"]).properties
    assert coupled.hessian_lower == pytest.approx(1.0, abs=1e-3)
    assert coupled.hessian_lower <= 1.0
    assert cg.SymbolicEnergy("x**2*y**2", ["x", "y"]).properties.hessian_lower is None  # it falls without bound
    assert cg.SymbolicEnergy("-x**2", ["x"]).properties.dissipativity is None


def test_a_callable_that_is_a_formula_has_its_bounds():
    energy = cg.CallableEnergy(lambda x: x[0] ** 2 + x[1] ** 2 / 2, 2)
    assert energy.properties.hessian_lower == pytest.approx(1.0)
    kinked = cg.CallableEnergy(lambda x: abs(x[0]) + x[1] ** 2, 2)
    assert kinked.properties.hessian_lower is None


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("sin(x)*cos(y)", -1, 1),
        ("2*sin(x)**2 - 1", -1, 1),
        ("exp(-x**2)", 0, 1),
        ("1/(2 + y**2)", 0, 0.5),
        ("-3*tanh(x)", -3, 3),
        ("x**2 + 1", 1, np.inf),
        ("exp(x)", 0, np.inf),
        ("x*sin(y)", -np.inf, np.inf),
        ("cosh(x) - 1", 0, np.inf),
        ("atan(x)", -np.pi / 2, np.pi / 2),
        ("sqrt(2)*sin(x)", -np.sqrt(2), np.sqrt(2)),
    ],
)
def test_ranges(text, low, high):
    x, y = sp.symbols("x y", real=True)
    found = value_range(sp.sympify(text, locals={"x": x, "y": y}))
    ends = [float(end.mid()) if end.is_finite() else (np.inf if end > 0 else -np.inf) for end in found]
    np.testing.assert_allclose(ends, [low, high], atol=1e-12)


@pytest.mark.parametrize("text", ["1/x", "log(x)", "sqrt(x)", "1/sin(x)", "x**sp", "tan(x)"])
def test_what_may_be_undefined_has_no_range(text):
    x, s = sp.symbols("x sp", real=True)
    assert value_range(sp.sympify(text, locals={"x": x, "sp": s})) is None


@pytest.mark.parametrize(
    "expr",
    [
        "x**2 + atan(tan(x))",
        "x**2 + atan2(sin(x), cos(x))",
        "atan2(x, -1)",
        sp.Piecewise((X**2, X > 0), (X**2 + 1, True)),
        X**2 + sp.arg(X),
        sp.acot(X),
    ],
)
def test_a_jump_that_the_derivatives_do_not_show_leaves_nothing_established(expr):
    assert cg.SymbolicEnergy(expr, ["x"]).properties == Properties()


def test_a_callable_with_a_jump_establishes_nothing():
    assert cg.CallableEnergy(lambda x: x[0] ** 2 + jnp.arctan(jnp.tan(x[0])), 1).properties == Properties()


@pytest.mark.parametrize(
    ("text", "smooth"),
    [
        (X**2 + sp.sech(X), True),
        ("log(cosh(x))", True),
        ("1/(2 + sin(x))", True),
        ("1/(sin(x) - 2)", True),
        ("sqrt(2 + cos(x))", True),
        ("x**(5/2)", False),
        ("1/x", False),
        ("log(x)", False),
        ("Abs(x)", False),
        ("sign(x)", False),
    ],
)
def test_what_is_twice_differentiable_by_its_form(text, smooth):
    assert twice_differentiable(cg.SymbolicEnergy(text, ["x"]).field.formula()) == smooth


def test_ends_beyond_what_balls_hold_tell_nothing():
    inner = sp.exp(sp.exp(sp.exp(100 * sp.sin(X))))  # up to exp(exp(e^100))
    assert value_range(sp.tanh(inner)) is None  # it was (1, -0.99)
    assert cg.SymbolicEnergy(sp.tanh(inner), ["x"]).properties.oscillation is None
    steep = cg.SymbolicEnergy(sp.cos(10**200 * X), ["x"]).properties
    assert (steep.hessian_lower, steep.oscillation) == (None, pytest.approx(2.0))


@pytest.mark.parametrize("text", ["5*tanh(sinh(10**80*sin(x))**3)", "1/(1 + sinh(10**80*sin(x))**3)"])
def test_an_odd_power_of_what_overflows_tells_nothing(text):
    energy = cg.SymbolicEnergy(text, ["x"])
    assert energy.properties.oscillation is None
    assert energy.properties.gradient_bound is None
    assert cg.SymbolicEnergy("5*tanh(sinh(x)**3)", ["x"]).properties.oscillation == pytest.approx(10.0)
