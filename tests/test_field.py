"""Formulas: read without eval, the same in SymPy and JAX, derived once."""

import types
from decimal import Decimal
from fractions import Fraction

import control
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy as sp

import ctrlgen as cg
from ctrlgen.field import Field, VectorField, parse, rationalise, symbols
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


def test_fields_are_equal_when_formula_symbols_and_code_are():
    def square(x):
        return x[0] ** 2

    same = [Field("x**2 + x", ["x"]), Field("x + x*x", ["x"])]
    assert same[0] == same[1]
    assert hash(same[0]) == hash(same[1])
    assert Field(square, ["x"]) != Field("x**2", ["x"])  # code beside the formula may hold rules of its own
    for other in ("x**2 + 2*x", "x**2"):
        assert Field(other, ["x"]) != same[0]
    assert Field("y**2 + y", ["y"]) != same[0]
    assert Field("x**2 + x", ["x", "y"]) != same[0]
    assert same[0] != "x**2 + x"


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


# Exact numbers -------------------------------------------------------------------------------------------------------

X, Y = sp.symbols("x y", real=True)
STATES = [X, Y]


@pytest.mark.parametrize(
    ("given", "exact"),
    [
        (0.1, sp.Rational(1, 10)),
        (1e-300, sp.Rational(1, 10**300)),
        (np.float32(0.1), sp.Rational(1, 10)),
        (np.float64(2.5), sp.Rational(5, 2)),
        (np.array(0.25), sp.Rational(1, 4)),
        (np.int64(3), sp.Integer(3)),
        (Fraction(2, 3), sp.Rational(2, 3)),
        (Decimal("0.3"), sp.Rational(3, 10)),
        (0.1 * X**2.0 + sp.sin(0.3 * Y) ** -1.0, X**2 / 10 + 1 / sp.sin(3 * Y / 10)),
        (X**0.5, sp.sqrt(X)),
        (0.5 * sp.pi + sp.sqrt(2), sp.pi / 2 + sp.sqrt(2)),
        (sp.Float("0.1", 5), sp.Rational(1, 10)),
        (sp.Float("0.5", 40) + sp.Float(2, 40) ** -100, sp.Rational(1, 2) + sp.Rational(1, 2**100)),
        (sp.Float(0.1) + sp.Float(0.2), sp.Rational("0.30000000000000004")),
        (sp.Matrix([0.1, X]), sp.Matrix([sp.Rational(1, 10), X])),
    ],
)
def test_floats_are_read_as_the_decimals_that_they_print_as(given, exact):
    assert rationalise(given) == exact
    assert not rationalise(given).has(sp.Float)


def test_a_tiny_float_beyond_doubles_is_exact():
    tiny = sp.Float(2, 53) ** -2000
    assert rationalise(tiny) == sp.Rational(1, 2**2000)


@pytest.mark.parametrize("given", ["0.1", None, True, object(), [0.1]])
def test_only_numbers_and_formulas_are_made_exact(given):
    with pytest.raises(ValueError, match="SymPy expression or a number"):
        rationalise(given)


def test_text_is_computed_with_decimals():
    assert Field("0.1*3*x + 2.5e-1", ["x"]).expr == sp.Rational(3, 10) * symbols(["x"])[0] + sp.Rational(1, 4)
    with pytest.raises(ValueError, match="has '1e309'"):
        parse("1e400", [X])
    with pytest.raises(ValueError, match="takes exactly 1 argument"):
        parse("sin(x, x)", [X])


# The two views -------------------------------------------------------------------------------------------------------

SMOOTH = [
    0.1 * X**3 - 1.2345678901234567 * X * Y**2 + 7,
    sp.sin(3 * X) * sp.cos(Y) + sp.atan(X * Y),
    sp.exp(-(X**2) / 2) * sp.log(2 + Y**2),
    sp.tanh(X - Y) + sp.sinh(X) / sp.cosh(Y),
    sp.sqrt(1 + X**2 + Y**2) + (2 + Y**2) ** sp.Rational(-3, 2),
    (X**2 - Y) / (1 + X**2 + Y**4) + (3 + Y**2) ** -3,
    sp.erf(X) * sp.exp(Y),
    10**30 * X**2 + sp.Rational(10**25, 3) * Y + 3000000000 * X * Y,
    sp.asin(X / 9) + sp.acos(Y / 9) + sp.asinh(X) + sp.atan2(Y + 9, X),
]
KINKED = [abs(X) * Y + abs(X - Y), sp.Max(X, Y) - sp.Min(X, 2 * Y, 1)]


def exactly(expr, point):
    """The value at one double-precision point, to 30 digits, by SymPy and mpmath."""
    return float(sp.N(expr.xreplace({s: sp.Rational(float(p)) for s, p in zip(STATES, point, strict=False)}), 30))


def views_agree(field, expr, points):
    with float64():
        got = np.asarray(field.columns(jnp.asarray(points)))
    np.testing.assert_allclose(got, [exactly(expr, p) for p in points.T], rtol=1e-12)


@pytest.mark.parametrize("expr", [*SMOOTH, *KINKED], ids=str)
def test_both_views_of_the_formula_and_its_gradient_agree(expr, rng):
    field, points = Field(expr, STATES), rng.uniform(-2, 2, size=(2, 5))
    views_agree(field, field.expr, points)
    gradient = field.gradient()
    for i, entry in enumerate(gradient):
        views_agree(Field(entry, STATES), sp.diff(rationalise(expr), STATES[i]), points)
    with float64():
        stacked = gradient.columns(jnp.asarray(points))
    assert stacked.shape == (2, 5)


@pytest.mark.parametrize("expr", SMOOTH, ids=str)
def test_both_views_of_the_laplacian_agree(expr, rng):
    field = Field(expr, STATES)
    exact = sum(sp.diff(rationalise(expr), s, 2) for s in STATES)
    views_agree(field.laplacian(), exact, rng.uniform(-2, 2, size=(2, 3)))


def value_of(x):
    return jnp.exp(-(x[0] ** 2)) * jnp.sin(x[1]) + 0.25 * x @ jnp.array([[1.0, 0.3], [0.3, 2.0]]) @ x + jnp.tanh(x[0])


def flow_of(x):
    return jnp.stack([x[1], -jnp.sin(x[0]) - 0.1 * x[1] ** 3])


V_EXPR = sp.exp(-(X**2)) * sp.sin(Y) + (X**2 + 0.6 * X * Y + 2 * Y**2) / 4 + sp.tanh(X)
F_EXPR = [Y, -sp.sin(X) - 0.1 * Y**3]


def test_a_function_is_read_as_its_formula(rng):
    field, flow = Field(value_of, STATES), VectorField(flow_of, STATES)
    assert sp.simplify(field.expr - rationalise(V_EXPR)) == 0
    assert flow.exprs == (Y, -sp.sin(X) - Y**3 / 10)
    points = rng.normal(size=(2, 6))
    views_agree(field, field.expr, points)
    views_agree(field.lie(flow), sp.diff(V_EXPR, X) * F_EXPR[0] + sp.diff(V_EXPR, Y) * F_EXPR[1], points)


def opaque(function):
    """The same function on this side of 10⁹, through a branch that no formula has."""
    return lambda x: jnp.where(x[0] < 1e9, function(x), 0.0)


DIFFUSIONS = {
    "scalar": (0.3, lambda x: 0.3),
    "vector": ([0.5, X], lambda x: jnp.stack([0.5 * jnp.ones_like(x[0]), x[0]])),
    "matrix": ([[1, Y, 0], [sp.sin(X), 0, 2]], lambda x: jnp.array([[1.0, x[1], 0.0], [jnp.sin(x[0]), 0.0, 2.0]])),
}


def check_columns(pairs, rng, further=lambda points: []):
    """Both of each pair have the same values; in one program, which is compiled once."""

    def both(points):
        return [*[(exact.columns(points), derived.columns(points)) for exact, derived in pairs], *further(points)]

    with float64():
        for exact, derived in jax.jit(both)(jnp.asarray(rng.normal(size=(2, 7)))):
            np.testing.assert_allclose(derived, exact, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", DIFFUSIONS)
def test_autodiff_and_symbolic_generators_are_the_same(kind, rng):
    given, coded = DIFFUSIONS[kind]
    known, hidden = Field(V_EXPR, STATES), Field(opaque(value_of), STATES)
    flow, hidden_flow = VectorField(F_EXPR, STATES), VectorField(opaque(flow_of), STATES)
    first = known.generator(flow, given)
    check_columns([
        (first, hidden.generator(hidden_flow, given)),
        (first, known.generator(flow, coded)),
        (first, known.generator(flow, opaque(coded))),
    ], rng)  # fmt: skip


def test_autodiff_and_symbolic_derivatives_are_the_same(rng):
    known, hidden = Field(V_EXPR, STATES), Field(opaque(value_of), STATES)
    flow, hidden_flow = VectorField(F_EXPR, STATES), VectorField(opaque(flow_of), STATES)
    assert hidden.expr is None
    assert hidden_flow.exprs is None
    assert "branches on a comparison" in hidden.why_no_formula
    with pytest.raises(TypeError, match=r"no formula.*branches"):
        hidden.formula()
    with pytest.raises(TypeError, match=r"no formula.*branches"):
        hidden_flow.jacobian()
    pairs = [
        (known.lie(flow), hidden.lie(flow)),
        (known.lie(flow), known.lie(hidden_flow)),
        (known.after(flow), hidden.after(hidden_flow)),
        (known.laplacian(), hidden.laplacian()),
        (known.after(flow) - known, hidden.after(flow) - known),
        (known * 2 + flow.exprs[0], hidden * 2 + known.states[1]),
        (-known, -hidden),
    ]

    def further(points):
        x = points[:, 0]
        return [
            (known.gradient().columns(points), hidden.gradient().columns(points)),
            (known.hessian_columns(x), hidden.hessian_columns(x)),
            (flow.jacobian_columns(x), hidden_flow.jacobian_columns(x)),
            ((-flow).columns(points), (-hidden_flow).columns(points)),
        ]

    check_columns(pairs, rng, further)


def test_quadratics_along_linear_systems_are_the_textbook_ones():
    a, p = sp.Matrix([[0, 1], [-2, -3]]), sp.Matrix([[3, 1], [1, 1]])
    g, x = sp.Matrix([[1, 2], [0, X]]), sp.Matrix(STATES)
    value = Field((x.T * p * x)[0], STATES)
    assert sp.expand(value.lie(a * x).expr - (x.T * (p * a + a.T * p) * x)[0]) == 0
    assert sp.expand(value.generator(a * x, g).expr - value.lie(a * x).expr - (g * g.T * p).trace()) == 0
    assert sp.expand(value.after(a * x).expr - (x.T * a.T * p * a * x)[0]) == 0
    assert value.hessian() == 2 * p
    assert value.generator(a * x).expr == value.lie(a * x).expr
    eps = sp.Rational(1, 5)
    assert value.generator([0, 0], sp.sqrt(2 * eps)).expr == eps * 2 * p.trace()
    assert Field(X**2, STATES).generator([0, 0], [sp.cos(X), 0]).expr == sp.cos(X) ** 2
    assert Field(X**2 + Y**2, STATES).generator([0, 0], sp.Matrix([[sp.cos(X), sp.sin(X)], [0, 0]])).expr == 1


def test_composition_replaces_all_states_at_once():
    assert Field(X - 2 * Y, STATES).after([Y, X]).expr == Y - 2 * X


def test_exact_values():
    assert Field("x/3 + y", ["x", "y"]).at([0.1, 1]) == sp.Rational(31, 30)
    assert VectorField(["x*y", "x"], ["x", "y"]).at([0.5, sp.sqrt(2)]) == (sp.sqrt(2) / 2, sp.Rational(1, 2))
    with pytest.raises(ValueError, match="point must have 2 components"):
        Field("x", ["x", "y"]).at([1])


def test_kinks_are_told_from_smooth_functions():
    plain_x, plain_y = sp.symbols("x y")
    kinked = Field(abs(plain_x) * plain_y, [plain_x, plain_y])
    x, y = kinked.states
    assert tuple(kinked.gradient()) == (y * sp.sign(x), abs(x))
    # of a plain symbol √x² is not |x| to SymPy, and its second derivative would cancel to 0
    with pytest.raises(ValueError, match="must be differentiable"):
        Field(sp.sqrt(plain_x**2), [plain_x]).laplacian()
    with pytest.raises(ValueError, match="must be differentiable"):
        Field(abs(X), STATES).laplacian()
    with pytest.raises(ValueError, match="must be differentiable"):
        Field(sp.Max(X, Y), STATES).generator([X, Y], 1)
    with pytest.raises(ValueError, match="must be differentiable"):
        Field(sp.sign(X), STATES).lie([X, Y])


@pytest.mark.parametrize("name", ["formula", "function", "energy"])
def test_batches_are_the_trailing_axes(name, rng):
    given = {"formula": V_EXPR, "function": opaque(value_of), "energy": cg.MLPEnergy(2, width=4)}[name]
    field, points = Field(given, STATES), rng.normal(size=(2, 3, 2))
    slope = field.gradient()

    @jax.jit
    def views(x):
        flat = x.reshape(2, -1)
        each = [(field.columns(flat[:, k]), slope.columns(flat[:, k])) for k in range(6)]
        values, slopes = (jnp.stack(v, axis=-1) for v in zip(*each, strict=True))
        return [(field.columns(y), slope.columns(y)) for y in (x, flat)], (values, slopes)

    with float64():
        (block, rows), (values, slopes) = views(jnp.asarray(points))
    for (value, gradient), shape in ((block, (3, 2)), (rows, (6,))):
        assert value.dtype == jnp.float64
        np.testing.assert_allclose(value, values.reshape(shape), rtol=1e-12)
        np.testing.assert_allclose(gradient, slopes.reshape(2, *shape), rtol=1e-11)
    assert jax.eval_shape(field.columns, jax.ShapeDtypeStruct((2, 3), jnp.float32)).dtype == jnp.float32


# Vector fields -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "f",
    [
        [Y, -0.5 * X],
        ("y", "-0.5*x"),
        sp.Matrix([Y, -X / 2]),
        sp.Matrix([[Y, -X / 2]]),
        np.array([[Y], [-0.5 * X]]),
        np.array([Y, -0.5 * X]),
        [Field(Y, STATES).expr, sp.Symbol("x", positive=True) / -2],
        lambda x: jnp.array([[0.0, 1.0], [-0.5, 0.0]]) @ x,
        lambda x: [x[1], -0.5 * x[0]],
        lambda x: np.array([x[1], -0.5 * x[0]]),
        control.ss([[0, 1], [-0.5, 0]], [[0], [1]], [[1, 0]], 0),
        VectorField(["y", "-x/2"], ["x", "y"]),
    ],
    ids=lambda f: type(f).__name__,
)
def test_every_way_to_give_a_vector_field(f):
    field = VectorField(f, STATES)
    assert field.exprs == (Y, -X / 2)
    assert field.jacobian() == sp.Matrix([[0, 1], [sp.Rational(-1, 2), 0]])


def test_scalar_systems_need_no_list():
    assert VectorField("-x^3", ["x"]).exprs == (-(symbols(["x"])[0] ** 3),)


def test_an_energy_means_minus_its_gradient():
    assert VectorField(cg.DoubleWell(2, stiffness=0.5), STATES).exprs == (-4 * X * (X**2 - 1), -Y / 2)
    network = cg.MLPEnergy(2, width=8)
    field = VectorField(network, STATES)
    assert field.exprs is None
    assert "no symbolic view" in field.why_no_formula
    with float64():
        got = field.columns(jnp.array([0.3, -0.7]))
    np.testing.assert_allclose(got, -network.gradient(np.array([0.3, -0.7])), rtol=1e-12)


def pendulum(t, x, u, params):
    return np.array([x[1], -np.sin(x[0]) - params["damping"] * x[1] + u[0] * np.cos(x[0])])


def system(update, **keywords):
    return control.nlsys(update, None, inputs=1, states=2, **keywords)


def test_python_control_systems_are_read():
    field = VectorField(system(pendulum, params={"damping": 0.1}), STATES)
    assert field.exprs == (Y, -sp.sin(X) - Y / 10)
    assert field.discrete is False
    assert VectorField(control.ss([[0.1]], [[1]], [[1]], 0, 0.5), ["x"]).discrete is True
    assert VectorField(control.ss([[0.1]], [[1]], [[1]], 0, None), ["x"]).discrete is None
    assert VectorField([X, Y], STATES).discrete is None
    assert VectorField(field, STATES).discrete is False
    in_jax = system(lambda t, x, u, params: jnp.stack([x[1], -jnp.tanh(x[0])]))
    assert VectorField(in_jax, STATES).exprs == (Y, -sp.tanh(X))


EVERYWHERE = [
    "sin", "cos", "tan", "sinh", "cosh", "tanh", "exp", "arctan", "arcsinh", "square", "expm1", "exp2", "absolute",
    "cbrt",
]  # fmt: skip


@pytest.mark.parametrize("name", EVERYWHERE)
def test_numpy_functions_on_formulas(name, rng):
    function = getattr(np, name)
    (expr, second) = VectorField(lambda x: np.array([function(x[0]), 2.0 / x[1] - 3 ** x[0]]), STATES).exprs
    for value in rng.uniform(-1.4, 1.4, size=4):
        assert exactly(expr, [value, 0.0]) == pytest.approx(function(value), rel=1e-13)
        assert exactly(second, [value, 0.7]) == pytest.approx(2 / 0.7 - 3**value, rel=1e-13)


@pytest.mark.parametrize("name", ["log", "log2", "log10", "log1p", "sqrt", "arcsin", "arccos", "arctanh", "arccosh"])
def test_numpy_functions_on_formulas_in_their_domain(name, rng):
    function, shift = getattr(np, name), 1.5 if name == "arccosh" else 0.0
    (expr,) = VectorField(lambda x: np.array([function(x[0])]), [X]).exprs
    for value in rng.uniform(0.1, 0.9, size=4) + shift:
        assert exactly(expr, [value]) == pytest.approx(function(value), rel=1e-13)


def test_numpy_functions_of_two_formulas():
    f = VectorField(lambda x: np.array([np.arctan2(x[0], x[1]), np.hypot(x[0], 2.0)]), STATES)
    assert f.exprs == (sp.atan2(X, Y), sp.sqrt(X**2 + 4))


def filled(t, x, u, params):
    out = np.zeros(2)
    out[0] = x[1]
    return out


@pytest.mark.parametrize(
    ("f", "message"),
    [
        ([X], "f must have 2 components, one a state; got 1"),
        ([X, Y, X], "f must have 2 components, one a state; got 3"),
        ("x", "f must have 2 components, one a state; got 1"),
        (sp.Matrix([[X, Y], [Y, X]]), r"got shape \(2, 2\).*control.ss"),
        (np.eye(2), r"got shape \(2, 2\).*control.ss"),
        (None, "f must be 2 components.*got NoneType"),
        ({X: Y}, "f must be 2 components.*got dict"),
        ([[X], [Y]], "f must be 2 components.*got list"),
        ([X, sp.Symbol("k")], r"f\[1\] has symbols that are not states: \['k'\]"),
        ([X, sp.I * Y], r"f\[1\] must be real and finite"),
        (["y +", "x"], r"f\[0\] must be a formula; 'y \+' does not parse"),
        ([X, object()], r"f\[1\] must be a SymPy expression, a number or a string; got object"),
        (lambda x: x[0], r"f must have 2 components.*got a function that returns shape \(\)"),
        (lambda x: jnp.concatenate([x, x]), r"f must have 2 components.*shape \(4,\)"),
        (lambda x: x.nonsense, "f must be JAX-traceable on a state of shape.*AttributeError"),
        (lambda x: x * 1j, "f must return real numbers"),
        (control.tf([1], [1, 2, 1]), r"f must have a state; got a TransferFunction. Pass control.ss\(f\)"),
        (control.ss([[1]], [[1]], [[1]], 0), "f must have 2 components, one a state; got a system with 1 states"),
        (cg.Quadratic(np.eye(3)), "f is an energy of dimension 3, but there are 2 states"),
        (system(lambda t, x, u, p: [t * x[1], x[0]]), "depends on time.*Give the right-hand side as formulas"),
        (system(filled), "cannot be compared or made a float. Give the right-hand side as formulas"),
        (system(lambda t, x, u, p: [x[1] if x[0] > 0 else x[0], x[0]]), "cannot be compared"),
        (system(lambda t, x, u, p: [x[1] if x[0] == 0 else x[0], x[0]]), "cannot be compared"),
        (system(lambda t, x, u, p: [x[1] if x[0] else x[0], x[0]]), "cannot be compared"),
        (VectorField(["a", "b"], ["a", "b"]), r"f is a function of the states \['a', 'b'\]; got \['x', 'y'\]"),
    ],
)
def test_bad_vector_fields_are_refused_by_name(f, message):
    with pytest.raises(ValueError, match=message):
        VectorField(f, STATES)


@pytest.mark.parametrize(
    ("expr", "message"),
    [
        (sp.oo, "V must be real and finite"),
        (-sp.oo, "V must be real and finite"),
        (sp.nan, "V must be real and finite"),
        (float("nan"), "V must be real and finite"),
        (3 + 1j, "V must be real and finite"),
        (sp.log(-1 - X**2), "V must be real and finite"),
        (sp.sqrt(-1 - sp.Symbol("x") ** 2), "V must be real and finite"),
        (sp.asin(2 + X**2), "V must be real and finite"),
        (sp.Function("g")(X), r"V has functions without a definition: \['g\(x\)'\]"),
        (X > 0, "V must be a SymPy expression, a number or a string"),
        (sp.Matrix([X, Y]), r"V must be a scalar expression; got a matrix of shape \(2, 1\)"),
        (np.array([1.0, 2.0]), "V must be a SymPy expression, a number or a string; got ndarray"),
        (True, "V must be a SymPy expression, a number or a string; got bool"),
        ("x + k", "V uses 'k', which is not a state"),
        (lambda x: x, r"V must return one scalar, shape \(\), for a state of shape \(2,\); got shape \(2,\)"),
        (cg.Quadratic(np.eye(3)), "V is an energy of dimension 3, but there are 2 states"),
    ],
)
def test_bad_fields_are_refused_by_name(expr, message):
    with pytest.raises(ValueError, match=message):
        Field(expr, STATES, name="V")


@pytest.mark.parametrize(
    "diffusion", [[1, 2, 3], sp.Matrix([[1, 0]]), np.ones((1, 2)), np.ones((3, 3)), lambda x: jnp.ones(3), []]
)
def test_diffusion_of_another_shape_is_refused(diffusion):
    with pytest.raises(ValueError, match=r"diffusion must be a scalar, a vector of 2 entries or a matrix of 2 rows"):
        Field(X**2, STATES).generator([X, Y], diffusion)


def test_diffusion_with_other_symbols_is_refused():
    with pytest.raises(ValueError, match=r"diffusion\[1\] has symbols that are not states"):
        Field(X**2, STATES).generator([X, Y], [1, sp.Symbol("k")])


def test_plain_states_become_real_and_those_that_assume_more_are_refused():
    positive = sp.Symbol("x", positive=True)
    with pytest.raises(ValueError, match=r"states must be real variables and assume no more; x is declared .*positive"):
        Field(sp.sqrt(positive**2), [positive])
    assert Field(sp.Symbol("x") * 2, ["x"]).expr == 2 * symbols(["x"])[0]
    plain = sp.Symbol("x")
    field = Field(sp.sqrt(plain**2), [plain])
    assert field.expr == sp.Abs(sp.Symbol("x", real=True))
    assert field.outward(field.states[0] ** 2) == plain**2
    with pytest.raises(ValueError, match="expr must be real and finite"):
        Field(sp.log(-1 - plain**2), [plain])
    with pytest.raises(ValueError, match="states must be real"):
        Field(1, [sp.Symbol("x", imaginary=True)])


def test_a_state_may_be_named_like_a_function():
    with float64():
        assert float(Field(sp.Symbol("exp") * sp.exp(sp.Symbol("exp")), ["exp"]).columns(jnp.array([0.0]))) == 0.0
        assert float(Field("lambda1^2", ["lambda1"]).columns(jnp.array([3.0]))) == 9.0


def test_an_energy_is_known_by_what_it_does():
    methods = {"potential": lambda x: jnp.sum(x**2, axis=0), "slope": lambda x: 2 * x}
    mock = types.SimpleNamespace(dim=2, symbolic=lambda s: s[0] ** 2 + s[1] ** 2, **methods)
    assert Field(mock, STATES).expr == X**2 + Y**2
    assert VectorField(mock, STATES).exprs == (-2 * X, -2 * Y)


def test_a_large_network_has_no_formula_but_two_derivatives():
    network = cg.MLPEnergy(2, width=64)
    field = Field(network.potential, STATES)
    assert field.expr is None
    assert "more than 3000 scalar operations" in field.why_no_formula
    x = np.array([0.2, -0.4])
    with float64():
        laplacian = jax.jit(field.laplacian().columns)(jnp.asarray(x))
        np.testing.assert_allclose(laplacian, network.laplacian(x), rtol=1e-10)
        assert jax.eval_shape(field.gradient().columns, jnp.zeros((2, 5))).shape == (2, 5)


@pytest.mark.parametrize(
    "function",
    [lambda v: [np.sqrt(v[0]) ** 4], lambda v: np.exp(np.log(v))],
    ids=["root", "logarithm"],
)
def test_numpy_functions_are_held_against_numbers(function):
    with pytest.raises(ValueError, match=r"f must do the same with numbers as with symbols; it returns \[nan\]"):
        VectorField(function, ["x"])
