"""Functions given as code: the formula of the jaxpr is the function, and balls enclose it, wide or thin."""

import flint
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import sympy as sp
from flint import arb

import ctrlgen as cg
from ctrlgen.precision import float64
from ctrlgen.trace import ArbDomain, NoFormula, SympyDomain, interpret, to_sympy, trace

X = sp.symbols("x y z", real=True)
x, y, z = X
TENTH = sp.Rational(1, 10)


def custom(v):
    return v**2


squared = jax.custom_vjp(custom)
squared.defvjp(lambda v: (v**2, v), lambda v, g: (2 * v * g,))

# what JAX computes, and the formula that a person writes for it
PAIRS = {
    "arithmetic": (lambda v: 0.1 * v[0] ** 3 - v[1] / (1 + v[2] ** 2), TENTH * x**3 - y / (1 + z**2)),
    "negative power": (lambda v: (3 + v[0]) ** -3, (3 + x) ** -3),
    "real power": (lambda v: (3 + v[0]) ** 2.5, (3 + x) ** sp.Rational(5, 2)),
    "two powers": (lambda v: (3 + v[0]) ** v[1], (3 + x) ** y),
    "exponentials": (lambda v: jnp.exp(v[0]) + jnp.exp2(v[1]) + jnp.expm1(v[2]), sp.exp(x) + 2**y + sp.exp(z) - 1),
    "logarithms": (lambda v: jnp.log(3 + v[0]) + jnp.log1p(v[1] ** 2), sp.log(3 + x) + sp.log(1 + y**2)),
    "trigonometric": (
        lambda v: jnp.sin(v[0]) * jnp.cos(v[1]) + jnp.tan(v[2] / 3),
        sp.sin(x) * sp.cos(y) + sp.tan(z / 3),
    ),
    "hyperbolic": (lambda v: jnp.sinh(v[0]) + jnp.cosh(v[1]) + jnp.tanh(v[2]), sp.sinh(x) + sp.cosh(y) + sp.tanh(z)),
    "inverses": (
        lambda v: jnp.arcsin(v[0] / 3) + jnp.arccos(v[1] / 3) + jnp.arctan(v[2]) + jnp.arctan2(v[0], 3 + v[1]),
        sp.asin(x / 3) + sp.acos(y / 3) + sp.atan(z) + sp.atan2(x, 3 + y),
    ),
    "hyperbolic inverses": (
        lambda v: jnp.arcsinh(v[0]) + jnp.arccosh(4 + v[1]) + jnp.arctanh(v[2] / 3),
        sp.asinh(x) + sp.acosh(4 + y) + sp.atanh(z / 3),
    ),
    "roots": (lambda v: jnp.sqrt(3 + v[0]) + jax.lax.rsqrt(3 + v[1]), sp.sqrt(3 + x) + 1 / sp.sqrt(3 + y)),
    "error functions": (
        lambda v: jax.scipy.special.erf(v[0]) + jax.scipy.special.erfc(v[1]),
        sp.erf(x) + 1 - sp.erf(y),
    ),
    "activations": (
        lambda v: jax.nn.silu(v[0]) + jax.nn.sigmoid(v[1]) + jax.nn.softplus(v[2]),
        x / (1 + sp.exp(-x)) + 1 / (1 + sp.exp(-y)) + sp.log(1 + sp.exp(z)),
    ),
    "kinks": (
        lambda v: jnp.abs(v[0]) + jax.nn.relu(v[1]) + jnp.clip(v[2], -1, 1) + jnp.min(v),
        sp.Abs(x) + sp.Max(0, y) + sp.Min(1, sp.Max(-1, z)) + sp.Min(x, y, z),
    ),
    "clamp": (
        lambda v: jax.lax.clamp(-0.5, v[0], 0.5) + jnp.max(v),
        sp.Min(sp.Max(x, -sp.Rational(1, 2)), 0.5) + sp.Max(*X),
    ),
    "sums": (lambda v: jnp.sum(v**2) + jnp.prod(v) + jnp.mean(v), x**2 + y**2 + z**2 + x * y * z + (x + y + z) / 3),
    "norm": (lambda v: jnp.linalg.norm(v + 2), sp.sqrt((x + 2) ** 2 + (y + 2) ** 2 + (z + 2) ** 2)),
    "matrices": (
        lambda v: v @ jnp.array([[1.0, 0.1, 0], [0, 2, 0], [3, 0, 1]]) @ v,
        x**2 + TENTH * x * y + 2 * y**2 + 3 * z * x + z**2,
    ),
    "einsum": (lambda v: jnp.einsum("i,j,ij->", v, v[::-1], jnp.arange(9.0).reshape(3, 3)), None),
    "batched product": (
        lambda v: jnp.einsum("bi,bij->bj", jnp.outer(v, v), jnp.arange(27.0).reshape(3, 3, 3))[1, 2],
        None,
    ),
    "stack": (lambda v: jnp.stack([v[-1], v[0] * v[1]])[1] + jnp.array([v[2], 1.0])[0], x * y + z),
    "reversed": (lambda v: (v[::-1] * jnp.arange(3.0))[2] + jnp.roll(v, 1)[0], 2 * x + z),
    "strided": (lambda v: jnp.sum(v[::2]) + jnp.diff(v)[0], x + z + y - x),
    "gather": (lambda v: v[jnp.array([2, 0])] @ jnp.array([1.0, 2.0]), z + 2 * x),
    "dynamic slice": (lambda v: jax.lax.dynamic_slice(v, (jnp.array(1),), (2,))[1] ** 2, z**2),
    "set": (lambda v: jnp.prod(v.at[1].set(v[0] ** 2)), x**3 * z),
    "add at": (lambda v: jnp.prod(jnp.ones(3).at[jnp.array([1, 1])].add(v[:2])), 1 + x + y),
    "padded": (lambda v: jnp.pad(v, 1)[3] + jnp.pad(v, 1)[0], z),
    "cumulative": (lambda v: jnp.cumsum(v)[1] * jnp.cumprod(v)[2] + jnp.cumsum(v[::-1])[0], (x + y) * x * y * z + z),
    "reverse cumulative": (lambda v: jax.lax.cumsum(v, reverse=True)[1], y + z),
    "transposed": (lambda v: jnp.outer(v, v**2).T[0, 2] + v.reshape(3, 1)[1, 0], x**2 * z + y),
    "split": (lambda v: jnp.split(v, 3)[1][0], y),
    "loop": (
        lambda v: jax.lax.fori_loop(0, 2, lambda i, s: s + 0.1 * s**2, v[0]),
        x + TENTH * x**2 + (x + TENTH * x**2) ** 2 / 10,
    ),
    "map": (lambda v: jnp.sum(jax.lax.map(jnp.sin, v) * jnp.arange(3)), sp.sin(y) + 2 * sp.sin(z)),
    "calls": (
        lambda v: jax.jit(jnp.sin)(v[0]) + squared(v[1]) + jax.checkpoint(jnp.cos)(v[2]),
        sp.sin(x) + y**2 + sp.cos(z),
    ),
    "constant branch": (lambda v: jnp.where(jnp.arange(3) > 0, v, 2 * v).sum(), 2 * x + y + z),
    "decided branch": (lambda v: jnp.where(jnp.exp(v[0]) > 0, v[1], v[2]), y),
    "finite": (lambda v: jnp.where(jnp.isfinite(v[0]) & ~jnp.isnan(v[1]), v[0], 0.0), x),
    "all": (lambda v: jnp.where(jnp.all(jnp.isfinite(v)), v[0], 0.0), x),
    "gradient": (lambda v: jax.grad(lambda u: u[0] ** 2 * jnp.sin(u[jnp.array(1)]))(v)[1], x**2 * sp.cos(y)),
    "hessian": (lambda v: jax.hessian(lambda u: u[0] ** 2 * jnp.sin(u[1]))(v)[0, 1], 2 * x * sp.cos(y)),
    "log sum exp": (jax.scipy.special.logsumexp, None),
    "variance": (jnp.var, None),
    "constant": (lambda v: 0.25, sp.Rational(1, 4)),
}


def on_jax(function, points):
    with float64():
        compiled = jax.jit(function)
        return np.array([float(compiled(jnp.asarray(p))) for p in points])


@pytest.mark.parametrize("name", PAIRS)
def test_the_formula_of_the_code_is_the_one_that_a_person_writes(name, rng):
    function, expected = PAIRS[name]
    expr = to_sympy(function, (3,), X)[()]
    points = rng.uniform(-1.5, 1.5, size=(3, 3))
    with mpmath.workdps(30):
        for other in (expr,) if expected is None else (expr, sp.sympify(expected)):
            got = [
                float(sp.N(other.xreplace(dict(zip(X, map(sp.Rational, p), strict=True))), 30)) for p in points.tolist()
            ]
            np.testing.assert_allclose(got, on_jax(function, points), rtol=1e-12)


def test_constants_of_the_formula_are_decimals_and_of_the_balls_exact():
    weights = np.array([0.1, 0.3])
    single = np.float32(0.1)
    assert to_sympy(lambda v: weights @ v[:2] + 0.7, (3,), X)[()] == x / 10 + 3 * y / 10 + sp.Rational(7, 10)
    assert to_sympy(lambda v: jnp.asarray(single) * v[0], (3,), X)[()] == sp.Rational(repr(float(single))) * x
    (ball,) = interpret(trace(lambda v: jnp.asarray(single) * v, (1,)), [[arb(1)]], ArbDomain())
    assert ball[0] == arb(float(single))
    (ball,) = interpret(trace(lambda v: 0.1 + 0 * v, (1,)), [[arb(1)]], ArbDomain())
    assert ball[0] == arb(0.1)


def test_formulas_come_in_the_given_symbols():
    plain = sp.symbols("a b c")
    assert to_sympy(lambda v: jnp.abs(v[0]) * v[2], (3,), plain)[()] == sp.Abs(plain[0]) * plain[2]


def test_vectors_and_matrices_keep_their_shape():
    assert to_sympy(lambda v: jnp.outer(v, v)[:2], (3,), X).shape == (2, 3)
    assert to_sympy(jnp.sin, (3,), X).tolist() == [sp.sin(s) for s in X]
    assert to_sympy(lambda m: m[0, 1] * m[1, 0], (2, 2), sp.symbols("a b c d")).tolist() == sp.symbols(
        "b"
    ) * sp.symbols("c")


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda v: jnp.where(v[0] > 0, v[0], 1.0), "branches on a comparison that depends on the state"),
        (lambda v: jnp.floor(v[0]), "the operation 'floor' has no formula"),
        (lambda v: jnp.cbrt(v[0]), "the operation 'cbrt' has no formula"),
        (lambda v: jnp.linalg.inv(jnp.outer(v, v))[0, 0], "the operation 'lu' has no formula"),
        (lambda v: v[v[0].astype(int)], "casts a number that depends on the state to an integer"),
        (lambda v: v.at[jnp.array([0, 5])].get(mode="fill")[1], "index out of range"),
        (lambda v: jnp.sort(v)[0], "the operation 'sort' has no formula"),
        (lambda v: jax.lax.while_loop(lambda s: s < 1, lambda s: s + 1, v[0]), "the operation 'while' has no formula"),
        (lambda v: jnp.abs(v[0] + 1j * v[1]), "complex numbers"),
        (lambda v: jax.random.normal(jax.random.key(0)) * v[0], "on constants fails"),
        (lambda v: jax.lax.fori_loop(0, 3500, lambda i, s: s + i, v[0] + v[1]), "more than 3000 scalar operations"),
        (lambda v: jax.lax.fori_loop(0, 30, lambda i, s: s + jnp.sin(s), v[0]), "larger than 20000"),
    ],
)
def test_what_has_no_formula_says_why(function, reason):
    with pytest.raises(NoFormula, match=reason):
        to_sympy(function, (3,), X)


def test_the_number_of_operations_counts_every_product():
    big = np.ones((60, 60))
    with pytest.raises(NoFormula, match="3000 scalar operations"):
        to_sympy(lambda v: (big @ (big[:, :3] @ v))[0], (3,), X)
    assert SympyDomain().most == 3000


def test_what_the_output_does_not_need_is_not_traced():
    assert to_sympy(lambda v: (jnp.floor(v[0]), v[1])[1], (3,), X)[()] == y


# Balls ----------------------------------------------------------------------------------------------------------------


def ball(low, high):
    """The smallest ball that flint makes of an interval."""
    return arb(float(low)).union(arb(float(high)))


def enclose(function, boxes, domain=None):
    (out,) = interpret(trace(function, (len(boxes),)), [[ball(*b) for b in boxes]], domain or ArbDomain())
    return out


BOUNDED = [name for name in PAIRS if name != "constant"]


@pytest.mark.parametrize("name", BOUNDED)
def test_balls_enclose_the_function_and_shrink(name, rng):
    function = PAIRS[name][0]
    domain, closed = ArbDomain(), trace(function, (3,))
    for width in (1.0, 1e-3):
        centre = rng.uniform(-0.5, 0.5, size=3)
        low, high = centre - width, centre + width
        (out,) = interpret(closed, [[ball(a, b) for a, b in zip(low, high, strict=True)]], domain)
        corners = np.array(np.meshgrid(*zip(low, high, strict=True))).reshape(3, -1).T
        points = np.concatenate([rng.uniform(low, high, size=(8, 3)), corners])
        values = on_jax(jax.jit(function), points)
        assert out[()].is_finite()
        slack = 1e-12 * (1 + abs(values))
        assert all((arb(v, s)).overlaps(out[()]) for v, s in zip(values, slack, strict=True))
        spread = float(out[()].upper()) - float(out[()].lower())
        assert spread <= 2 * np.ptp(values) + 300 * width  # a ball that is everything encloses as well


def scalar_functions():
    one = [
        "sqrt rsqrt exp exp2 expm1 log log1p sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh logistic erf",
        "erfc abs sign square",
    ]
    own = {
        "rsqrt": lambda t: 1 / mpmath.sqrt(t),
        "exp2": lambda t: mpmath.mpf(2) ** t,
        "log1p": lambda t: mpmath.log(1 + t),
        "logistic": lambda t: 1 / (1 + mpmath.exp(-t)),
        "abs": abs,
        "square": lambda t: t * t,
    }
    return {n: own.get(n) or getattr(mpmath, n) for n in " ".join(one).split()}


RANGES = {
    "sqrt": (0, 9), "rsqrt": (0.01, 9), "log": (0.01, 9), "log1p": (-0.99, 9), "asin": (-1, 1), "acos": (-1, 1),
    "acosh": (1, 9), "atanh": (-0.99, 0.99), "tan": (-1.5, 1.5),
}  # fmt: skip
MONOTONE = set(scalar_functions()) - {"sin", "cos", "tan", "cosh", "abs", "sign", "square"}


@pytest.mark.parametrize("name", scalar_functions())
def test_scalar_functions_of_balls_are_outward_rounded_and_tight(name, rng):
    exact, function = scalar_functions()[name], getattr(ArbDomain(), name)
    least, most = RANGES.get(name, (-7, 7))
    for _ in range(40):
        low, high = np.sort(rng.uniform(least, most, size=2))
        if rng.integers(2):
            high = low + 1e-9 * (most - low)  # a thin one, which goes another way
        box = ball(low, high)
        out = function(box)
        with mpmath.workdps(40):
            values = [exact(mpmath.mpf(t)) for t in [low, high, *np.clip(rng.uniform(low, high, 5), low, high)]]
        with flint.ctx.workprec(150):
            truth = [arb(mpmath.nstr(v, 40)) for v in values]
            assert all(out.overlaps(v + arb(0, 1e-30) * v) for v in truth)
        assert out.is_finite()  # what is not a number overlaps everything
        if name in MONOTONE:
            ends = sorted(float(v) for v in values[:2])
            assert float(out.upper()) - float(out.lower()) <= (ends[1] - ends[0]) * 1.001 + 1e-7 * (1 + abs(ends[1]))


@pytest.mark.parametrize("power", [2, 3, 4, -1, -2, 0])
def test_integer_powers_of_balls(power, rng):
    domain = ArbDomain()
    for _ in range(40):
        low, high = np.sort(rng.uniform(-3, 3, size=2))
        out = domain.integer_pow(ball(low, high), power)
        if power < 0 and low < 0 < high:
            assert not out.is_finite()
            continue
        values = [arb(float(t)) ** power for t in [low, high, *rng.uniform(low, high, 5)]]
        values += [arb(0)] if power > 0 and low < 0 < high else []
        assert out.is_finite()
        assert all(out.overlaps(v) for v in values)
        if power in (2, 4):
            assert float(out.lower()) >= -1e-7 * float(out.upper())
        if power == 0:
            assert out == 1
    assert domain.pow(ball(-2, 3), arb(2)).contains(arb(0))
    assert float(domain.pow(ball(1, 4), arb(0.5)).lower()) == pytest.approx(1, rel=1e-6)
    assert not domain.pow(ball(-2, 3), arb(0.5)).is_finite()


def test_even_functions_of_balls_about_zero_keep_zero():
    # |ball| as a ball starts slightly below 0, where an even function has turned up again
    for radius in (3.0, 1.0, 0.1):
        for low in (-radius, -radius / 3):
            box = ball(low, radius)
            domain = ArbDomain()
            assert domain.square(box).contains(arb(0))
            assert domain.cosh(box).contains(arb(1))
            assert domain.abs(box).contains(arb(0))
            assert float(domain.square(box).lower()) > -1e-6
            assert float(domain.cosh(box).lower()) > 1 - 1e-6


def test_larger_and_smaller_of_balls():
    domain = ArbDomain()
    for (a, b, c, d), (low, high) in {(0, 2, 1, 3): (1, 3), (-1, 1, 0.4, 0.6): (0.4, 1), (0, 1, 5, 6): (5, 6)}.items():
        one, two = ball(a, b), ball(c, d)
        for out in (domain.max(one, two), domain.max(two, one), -domain.min(-one, -two), -domain.min(-two, -one)):
            assert out.contains(ball(low + 1e-6, high - 1e-6))
            assert float(out.lower()) == pytest.approx(low, abs=1e-6)
            assert float(out.upper()) == pytest.approx(high, abs=1e-6)
    assert not domain.max(arb("nan"), arb(1)).is_finite()
    assert not domain.min(arb("nan"), ball(0, 1)).is_finite()
    assert domain.max(arb.neg_inf(), one) is one


@pytest.mark.parametrize(("name", "flipped"), [("lt", "ge"), ("le", "gt"), ("gt", "le"), ("ge", "lt"), ("eq", "ne")])
def test_comparisons_of_balls_are_three_valued(name, flipped):
    domain, nan = ArbDomain(), arb("nan")
    decided = {"lt": (True, False), "le": (True, False), "gt": (False, True), "ge": (False, True), "eq": (False, False)}
    below, above = domain.compare(name, ball(0, 1), ball(2, 3)), domain.compare(name, ball(2, 3), ball(0, 1))
    assert (below, above) == decided[name]
    assert domain.compare(flipped, ball(0, 1), ball(2, 3)) is not below
    assert domain.compare(name, ball(0, 2), ball(1, 3)) is None
    assert domain.compare(flipped, ball(0, 2), ball(1, 3)) is None
    assert domain.compare(name, nan, arb(1)) is None
    assert domain.compare(name, arb(1), arb(1)) is (name in ("le", "ge", "eq"))
    one = ball(0, 1)
    assert domain.compare(name, one, one) is (name in ("le", "ge", "eq"))
    assert domain.compare(name, nan, nan) is None


def test_an_undecided_branch_is_both_of_them():
    step = enclose(lambda v: jnp.where(v[0] > 0.5, 3.0, -1.0), [(0, 1)])[()]
    assert step.contains(arb(3))
    assert step.contains(arb(-1))
    assert enclose(lambda v: jnp.where(v[0] > 0.5, 3.0, -1.0), [(0.6, 1)])[()] == 3
    assert enclose(lambda v: jnp.where(v[0] > 0.5, 3.0, -1.0), [(0, 0.4)])[()] == -1
    both = enclose(lambda v: jnp.where((v[0] > 0.5) & (v[0] < 9), 1, 0) * v[0], [(0, 1)])[()]
    assert both.contains(ball(0, 1).mid())
    counted = enclose(lambda v: jnp.sum(v > 0.5) * 1.0, [(0, 1), (2, 3)])[()]
    assert counted.contains(arb(1))
    assert counted.contains(arb(2))
    either = enclose(lambda v: jnp.where((v[0] > 0.5) | (v[1] > 0), 3.0, -1.0), [(0, 1), (1, 2)])[()]
    assert either == 3
    negated = enclose(lambda v: jnp.where(~(v[0] > 0.5), 3.0, -1.0), [(0, 1)])[()]
    assert negated.contains(arb(3))
    assert negated.contains(arb(-1))


def test_two_inputs_in_one_object_are_two_numbers():
    same = ball(0, 1)
    closed = trace(lambda v: jnp.where(v[0] == v[1], 0.0, 1.0) + v[0] * v[1], (2,))
    (out,) = interpret(closed, [[same, same]], ArbDomain())
    assert out[()].contains(arb(0))
    assert out[()].contains(arb(2))
    (product,) = interpret(trace(lambda v: v[0] * v[1], (2,)), [[ball(-1, 1)] * 2], ArbDomain())
    assert product[()].contains(arb(-1))


def test_what_cannot_be_bounded_is_not_a_number():
    for function, box in [
        (lambda v: 1 / v[0], (-1, 1)),
        (lambda v: jnp.log(v[0]), (-1, 1)),
        (lambda v: jnp.sqrt(v[0]), (-1, 1)),
        (lambda v: jnp.arcsin(v[0]), (0, 2)),
        (lambda v: jnp.maximum(jnp.log(v[0]), 0.0), (-1, 1)),
        (lambda v: jnp.where(v[0] > 0, jnp.log(v[0]), 0.0), (-1, 1)),
        (lambda v: jnp.abs(jnp.log(v[0])) + (1 / v[0]) ** 2, (-1, 1)),
    ]:
        assert not enclose(function, [box])[()].is_finite()


def test_a_division_of_integers_by_the_state_is_refused():
    with pytest.raises(NoFormula, match="divides integers"):
        enclose(lambda v: jax.lax.div(jnp.sum(v > 0.5), 2) * 1.0, [(0, 1), (0, 1)])


@pytest.mark.parametrize("activation", ["silu", "tanh", "softplus", "gelu", "relu"])
def test_networks_and_their_gradients_are_enclosed(activation, rng):
    network = cg.MLPEnergy(2, width=32, activation=activation, key=3)
    value, gradient, domain = trace(network.potential, (2,)), trace(jax.grad(network.potential), (2,)), ArbDomain()
    centre, spreads = rng.normal(size=2), []
    for width in (0.3, 1e-2, 1e-4, 0.0):
        box = [ball(c - width, c + width) for c in centre]
        ((energy,), (slope,)) = (interpret(j, [box], domain) for j in (value, gradient))
        points = rng.uniform(centre - width, centre + width, size=(50, 2))
        for e, g in zip(network(points), network.gradient(points), strict=True):
            assert energy[()].overlaps(arb(e, 1e-12))
            assert slope[0].overlaps(arb(g[0], 1e-12))
            assert slope[1].overlaps(arb(g[1], 1e-12))
        spreads.append(float(energy[()].rad()))
        assert all(s.is_finite() for s in slope)
    assert spreads[2] < 0.05 * spreads[1] < 0.05 * spreads[0]
    assert spreads[3] < 1e-12


def test_matrix_products_are_those_of_the_entries(rng):
    given = rng.normal(size=(20, 20))

    @jax.jit
    def products(w, v):
        return w @ v, v @ w, w.T @ v, w[2:12] @ v, w[5:15] @ v

    with float64():
        weights = jnp.asarray(given)
    closed, domain = trace(lambda v: products(weights, v), (20,)), ArbDomain()
    for _ in range(2):  # the second time from what the domain remembers
        v = rng.normal(size=20)
        expected = (given @ v, v @ given, given.T @ v, given[2:12] @ v, given[5:15] @ v)
        for out, values in zip(interpret(closed, [[arb(t) for t in v]], domain), expected, strict=True):
            assert all(o.overlaps(arb(e, 1e-12)) for o, e in zip(out, values, strict=True))
            assert all(float(o.rad()) < 1e-12 for o in out)


def test_column_major_reshapes_move_what_jax_moves():
    x, y = states = sp.symbols("x y", real=True)
    turned = to_sympy(lambda v: jnp.stack([-v, v]).ravel(order="F"), (2,), states)
    assert list(turned) == [-x, x, -y, y]
    square = to_sympy(lambda v: jnp.stack([-v, v]).reshape((2, 2), order="F").ravel(), (2,), states)
    assert list(square) == [-x, -y, x, y]


def test_a_function_that_is_named_like_jaxs_own_is_not_taken_for_it():
    @jax.jit
    def logaddexp(a, b):
        return -(a * a + b * b)

    x, y = states = sp.symbols("x y", real=True)
    assert to_sympy(lambda v: logaddexp(v[0], v[1]), (2,), states)[()] == -(x**2) - y**2
    own = to_sympy(lambda v: jnp.logaddexp(v[0], v[1]), (2,), states)[()]
    assert float(own.subs({x: 0, y: 0})) == pytest.approx(np.log(2))


def test_small_integers_that_may_overflow_have_no_formula():
    with pytest.raises(NoFormula, match="overflow"):
        to_sympy(lambda v: (v[0] > 0).astype(jnp.int8) * jnp.int8(100) + v[0], (1,), sp.symbols("x:1", real=True))


HIDDEN = {
    "sqrt": (lambda v: jnp.sqrt(v[0]) ** 4, r"'sqrt', which needs x ≥ 0"),
    "rsqrt": (lambda v: jax.lax.rsqrt(v[0]) ** -2, "'rsqrt', which needs x > 0"),
    "log": (lambda v: jnp.exp(jnp.log(v[0])), "'log', which needs x > 0"),
    "log1p": (lambda v: jnp.exp(jnp.log1p(v[0])), r"'log', which needs x \+ 1 > 0"),
    "asin": (lambda v: jnp.sin(jnp.arcsin(v[0] - 1)), "'asin', which needs"),
    "acos": (lambda v: jnp.cos(jnp.arccos(v[0])), r"'acos', which needs 1 - x\*\*2 ≥ 0"),
    "acosh": (lambda v: jnp.cosh(jnp.arccosh(v[0])), "'acosh', which needs x - 1 ≥ 0"),
    "atanh": (lambda v: jnp.tanh(jnp.arctanh(v[0])), r"'atanh', which needs 1 - x\*\*2 > 0"),
    "tan": (lambda v: jnp.tan(v[0]) * 0.0, r"'tan', which needs cos\(x\) ≠ 0"),
    "power": (lambda v: (v[0] ** 1.5) ** 2, "'pow', which needs x ≥ 0"),
    "division": (lambda v: v[0] * (v[1] / v[0]), "'div', which needs x ≠ 0"),
    "integer power": (lambda v: v[0] ** -2 * v[0] ** 2, "'integer_pow', which needs x ≠ 0"),
    "beside a jump": (lambda v: jnp.sqrt(v[0]) ** 2 + jnp.sign(v[1]), "'sqrt', which needs x ≥ 0"),
    "half precision": (lambda v: v[0].astype(jnp.float16).astype(v.dtype), "rounds .* to float16"),
    "bfloat16": (lambda v: v[0].astype(jnp.bfloat16).astype(v.dtype), "rounds .* to bfloat16"),
}


@pytest.mark.parametrize(("function", "message"), HIDDEN.values(), ids=HIDDEN)
def test_a_formula_that_hides_where_the_code_is_not_defined_is_refused(function, message):
    with pytest.raises(NoFormula, match=message):
        to_sympy(function, (3,), X)


@pytest.mark.parametrize(
    ("function", "formula"),
    [
        (lambda v: jnp.linalg.norm(v - 1) ** 2, (x - 1) ** 2 + (y - 1) ** 2 + (z - 1) ** 2),
        (lambda v: jnp.exp(jnp.log(1 + v[0] ** 2)), 1 + x**2),
        (lambda v: jnp.log(2 * v[0]) / (3 * jnp.sqrt(v[0])), sp.log(2 * x) / (3 * sp.sqrt(x))),
        (lambda v: jnp.sqrt(4 * v[0]), 2 * sp.sqrt(x)),
        (
            lambda v: jnp.sqrt(v[0]) * v[0] + jnp.arctan2(v[1], 1 + v[0] ** 2),
            x ** sp.Rational(3, 2) + sp.atan2(y, 1 + x**2),
        ),
        (lambda v: (2 + jnp.cosh(v[0])) / (2 + jnp.cosh(v[0])), sp.Integer(1)),
    ],
)
def test_a_formula_that_tells_it_or_needs_nothing_is_kept(function, formula):
    found = to_sympy(function, (3,), X)[()]
    assert sp.expand(found - formula) == 0
