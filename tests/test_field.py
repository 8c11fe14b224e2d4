"""Formulas: read without eval, the same in SymPy and JAX, derived once."""

import numpy as np
import pytest
import sympy as sp

from ctrlgen.field import Field, parse, symbols
from ctrlgen.precision import float64

CASES = [
    "x**2 + y*x",
    "sin(x)*cos(y) - exp(-x**2)",
    "x/(1 + y^2)",
    "-x + +y - 2.5e-1",
    "sqrt(1 + x**2) + log(2 + y**2) + abs(x)",
    "tanh(x) + atan(y) + pi*E",
    "min(x, y) + max(x, 2)",
]


@pytest.mark.parametrize("text", CASES)
def test_string_sympy_and_jax_agree(text, rng):
    import jax.numpy as jnp

    field = Field(text, ["x", "y"])
    x, y = field.states
    independent = sp.sympify(text.replace("^", "**"), locals={"x": x, "y": y, "min": sp.Min, "max": sp.Max})
    points = rng.normal(size=(2, 9))
    expected = np.array([float(independent.subs({x: a, y: b})) for a, b in points.T])
    with float64():
        got = np.asarray(field.columns(jnp.asarray(points)))
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


def test_derivatives_are_the_textbook_ones():
    field = Field("x**3*y + sin(y)", ["x", "y"])
    x, y = field.states
    assert tuple(field.gradient()) == (3 * x**2 * y, x**3 + sp.cos(y))
    assert sp.simplify(field.laplacian().expr - (6 * x * y - sp.sin(y))) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x +", "does not parse"),
        ("z*x", "'z', which is not a state; the states are \\['x', 'y'\\]"),
        ("eval('1')", "calls 'eval'; known functions are"),
        ("().__class__", "may hold numbers"),
        ("[x for x in (1,)]", "may hold numbers"),
        ("lambda: 1", "may hold numbers"),
        ("x if y else 1", "may hold numbers"),
        ("1j*x", "may hold numbers"),
        ("'a'*9", "may hold numbers"),
        ("x**100000000", "exponent beyond 1000"),
        ("-" * 300 + "x", "nested more than|does not parse"),
        ("x" + "+x" * 300, "nested more than"),
        ("sin(x, key=1)", "calls 'sin'"),
        ("x\x00", "does not parse"),
    ],
)
def test_nothing_but_formulas_is_read(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text, symbols(["x", "y"]))


def test_states_are_named_once_and_at_least_once():
    assert [s.name for s in symbols("a, b c")] == ["a", "b", "c"]
    with pytest.raises(ValueError, match="at least one variable"):
        symbols([])
    with pytest.raises(ValueError, match="distinct names"):
        symbols(["x", "x"])


def test_symbolic_expressions_are_checked():
    x, k = sp.symbols("x k")
    with pytest.raises(ValueError, match=r"not states: \['k'\].*Substitute values for parameters"):
        Field(k * x, [x])
    with pytest.raises(ValueError, match="real and finite"):
        Field(sp.I * x, [x])
    with pytest.raises(ValueError, match=r"scalar expression|SymPy expression"):
        Field(sp.Matrix([x]), [x])
