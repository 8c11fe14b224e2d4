"""Riemannian rates: curvature against Γ₂ of the process itself, against flat coordinates and known spaces."""

import itertools

import numpy as np
import pytest
import sympy as sp
from scipy.linalg import eigh

import ctrlgen as cg
from ctrlgen.accelerate.riemannian import COMPLETE, KEPT, christoffel, ricci, riemannian_rate, weighted_curvature
from ctrlgen.prove.claim import Status

x, y, z = sp.symbols("x y z", real=True)
QUARTIC = cg.SymbolicEnergy("x**4/4 + x**2/2", ["x"])


def taylor(f, states, at, order):
    """The Taylor polynomial of a formula about a point."""
    out = sp.S.Zero
    for powers in itertools.product(range(order + 1), repeat=len(states)):
        if sum(powers) <= order:
            term = sp.S.One
            g = f
            for s, n in zip(states, powers, strict=True):
                g = sp.diff(g, s, n)
                term *= (s - at[s]) ** n / sp.factorial(n)
            out += g.subs(at) * term
    return sp.expand(out)


def process(energy, metric, states, temperature, at):
    """b = -K∇E + ε∇·K and D = εK, as far as two derivatives at a point tell: the equation, and no geometry."""
    d = range(len(states))
    inverse = metric.inv()
    k = sp.Matrix(len(d), len(d), lambda i, j: taylor(inverse[i, j], states, at, 2))
    slope = [taylor(sp.diff(energy, s), states, at, 1) for s in states]
    drift = [sum(-k[i, j] * slope[j] + temperature * sp.diff(k[i, j], states[j]) for j in d) for i in d]
    return [sp.expand(b) for b in drift], temperature * k, slope


PLANE = (
    x**4 / 4 + x * y + y**2,
    sp.Matrix([[2 + x**2, x * y / 3], [x * y / 3, 1 + y**2 + x**2 / 5]]),
    (x, y),
    {x: sp.Rational(1, 3), y: sp.Rational(-1, 2)},
)
SPACE = (
    x**2 + y**2 * z + z**4,
    sp.Matrix([[2 + y**2, z / 4, 0], [z / 4, 1 + x**2, x / 5], [0, x / 5, 3]]),
    (x, y, z),
    {x: sp.Rational(1, 2), y: sp.Rational(1, 3), z: sp.Rational(-1, 4)},
)


@pytest.mark.parametrize("case", [PLANE, pytest.param(SPACE, marks=pytest.mark.slow)], ids=["plane", "space"])
def test_the_curvature_is_that_of_the_process(case):
    """For f without second covariant derivative at a point, Γ₂(f) = ε(Hess V + ε Ric)(∇f, ∇f) there, exactly."""
    energy, metric, states, at = case
    epsilon, d = sp.Rational(2, 5), len(states)
    drift, noise, slope = process(energy, metric, states, epsilon, at)
    pairs = list(itertools.product(range(d), repeat=2))

    def gen(f):
        first = sum(b * sp.diff(f, s) for b, s in zip(drift, states, strict=True))
        return sp.expand(first + sum(noise[i, j] * sp.diff(f, states[i], states[j]) for i, j in pairs))

    # the process leaves exp(-E/ε) in place: its probability flux is zero
    for i in range(d):
        flux = drift[i] - sum(sp.diff(noise[i, j], states[j]) - noise[i, j] * slope[j] / epsilon for j in range(d))
        assert sp.expand(flux.subs(at)) == 0
    claimed = weighted_curvature(energy, metric, states, epsilon).subs(at)
    gamma = [g.subs(at) for g in christoffel(metric, states)]
    k = metric.inv().subs(at)
    off = [s - at[s] for s in states]
    for p in ([1, -1, 1],) if d == 3 else ([2, -1],):  # every entry has its part in the one number
        f = sum(a * o for a, o in zip(p, off, strict=True))
        f += sum(p[m] * gamma[m][i, j] * off[i] * off[j] / 2 for m, i, j in itertools.product(range(d), repeat=3))

        def square(a, b):
            return (gen(a * b) - a * gen(b) - b * gen(a)) / 2

        second = (gen(square(f, f)) / 2 - square(f, gen(f))).subs(at)
        slope = k * sp.Matrix(p)
        assert second == epsilon * (slope.T * claimed * slope)[0]


@pytest.mark.parametrize(
    ("metric", "states", "factor"),
    [
        (sp.eye(2) / y**2, (x, y), -1),  # the half plane
        (sp.eye(3) / z**2, (x, y, z), -2),  # hyperbolic space
        (sp.diag(1, sp.sin(x) ** 2), (x, y), 1),  # the sphere
        (sp.Matrix([[1, y], [y, 1 + y**2]]), (x, y), 0),  # the plane, u = x + y²/2 and v = y
    ],
    ids=["half plane", "hyperbolic", "sphere", "plane"],
)
def test_ricci_of_spaces_of_constant_curvature(metric, states, factor):
    found = ricci(christoffel(metric, states), states)
    assert (found - factor * metric).applyfunc(sp.simplify) == sp.zeros(len(states))


def test_a_flat_coordinate_gives_the_rate():
    """M = 1/(1 + x²), x = sinh y: V(y) = ½ sinh² y - ε log cosh y, whose least second derivative is 1 - ε."""
    verdict = riemannian_rate(cg.SymbolicEnergy("x**2/2", ["x"]), ["1/(1 + x**2)"], ["x"], 0.25)
    assert verdict.status is Status.PROVED
    assert verdict.rate == 0.75
    assert 0.75 < verdict.refuted_at < 0.75 + 1e-6
    assert COMPLETE in verdict.assumptions  # M is not ⪰ cI
    assert verdict.recheck()
    assert verdict.kl(1.0) == pytest.approx(np.exp(-1.5), rel=1e-12)
    assert verdict.wasserstein(1.0) == pytest.approx(np.exp(-0.75), rel=1e-12)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_the_hessian_as_metric(temperature):
    verdict = riemannian_rate(QUARTIC, ["3*x**2 + 1"], ["x"], temperature)
    s = np.linspace(-6, 6, 400_001)
    m, slope = 3 * s**2 + 1, 6 * s
    first = s**3 + s + temperature / 2 * slope / m
    second = 3 * s**2 + 1 + temperature / 2 * (6 / m - slope**2 / m**2)
    true = ((second - first * slope / (2 * m)) / m).min()
    assert verdict.status is Status.PROVED
    assert true - 0.02 * true < verdict.rate <= true + 1e-9
    assert verdict.assumptions == ()  # M ⪰ I was proved, so the metric is complete
    assert verdict.recheck()


@pytest.mark.parametrize("metric", [[2.0, 3.0], [[2.0, 0.5], [0.5, 3.0]]], ids=["diagonal", "full"])
def test_a_constant_metric_has_the_rate_of_its_pencil(metric):
    h = np.array([[2.0, 1.0], [1.0, 3.0]])
    verdict = riemannian_rate(cg.Quadratic(h, [5.0, -2.0]), metric, ["x", "y"], 0.7)
    m = np.diag(metric) if np.ndim(metric) == 1 else np.array(metric)
    assert verdict.status is Status.PROVED
    assert verdict.rate == pytest.approx(eigh(h, m, eigvals_only=True)[0], rel=1e-9)
    assert verdict.assumptions == ()


def test_a_separable_metric_in_four_dimensions():
    energy = cg.Quadratic(np.diag([3.0, 2.0, 1.5, 4.0]))
    verdict = riemannian_rate(energy, ["1/(1 + a**2)", 1, 2, "3"], ["a", "b", "c", "d"], 0.5)
    # by coordinate: 3 - ε from the flat coordinate of the first, then 2/1, 1.5/2 and 4/3
    assert verdict.status is Status.PROVED
    assert verdict.rate == pytest.approx(0.75, abs=1e-9)


def test_on_a_half_plane_curvature_costs_the_temperature():
    box = cg.Box([-1, 0.5], [1, 2])
    cold, hot = (
        riemannian_rate(cg.SymbolicEnergy("x**2 + y**2", ["x", "y"]), ["1/y**2", "1/y**2"], ["x", "y"], t, box)
        for t in (0.1, 1.0)
    )
    for verdict, t in ((cold, 0.1), (hot, 1.0)):
        # V = E - 2ε log y; Γ^x_xy = -1/y, Γ^y_xx = 1/y, Γ^y_yy = -1/y
        a, b = np.meshgrid(np.linspace(-1, 1, 201), np.linspace(0.5, 2, 201), indexing="ij")
        across, up = 2 * a, 2 * b - 2 * t / b
        h = (
            np.array([[2 - up / b, across / b], [across / b, 2 + 2 * t / b**2 + up / b]]) * b**2
            - t * np.eye(2)[..., None, None]
        )
        true = np.linalg.eigvalsh(np.moveaxis(h, (0, 1), (-2, -1)))[..., 0].min()
        assert verdict.status is Status.PROVED
        assert true - 1e-3 < verdict.rate <= true + 1e-9
        assert KEPT in verdict.assumptions
        assert verdict.recheck()


@pytest.mark.slow
def test_where_claims_are_too_large_boxes_prove_a_rate():
    box = cg.Box([-0.3, 0.2], [0.3, 0.6])
    metric = [["1 + x**2 + y**2", "x*y/2"], ["x*y/2", "2 + sin(x)"]]
    energy = cg.SymbolicEnergy("x**2 + y**2", ["x", "y"])
    verdict = riemannian_rate(energy, metric, ["x", "y"], 0.1, box, timeout=12)
    m = sp.Matrix([[1 + x**2 + y**2, x * y / 2], [x * y / 2, 2 + sp.sin(x)]])
    whole = sp.lambdify([x, y], [weighted_curvature(x**2 + y**2, m, (x, y), sp.Rational(1, 10)), m])
    points = np.random.default_rng(0).uniform([-0.3, 0.2], [0.3, 0.6], (400, 2))
    least = min(eigh(*(np.array(v, float) for v in whole(*p)), eigvals_only=True)[0] for p in points)
    assert verdict.status is Status.PROVED
    assert 0.9 * least < verdict.rate <= least
    assert verdict.recheck()


def test_a_negative_rate_promises_no_decay():
    verdict = riemannian_rate(cg.SymbolicEnergy("x**4/4 - x**2/2", ["x"]), [1], ["x"], 1.0)
    assert verdict.status is Status.PROVED
    assert verdict.rate == -1.0
    assert "grows at no more" in verdict.claim
    assert verdict.kl(2.0) == 1.0
    assert verdict.wasserstein(2.0) == pytest.approx(np.exp(2.0))


def test_the_simulated_loop_decays_at_least_at_the_rate():
    """Pairs with the same noise in the flat coordinate y = asinh x, where dY = -V'(Y) dt + √(2ε) dW."""
    verdict = riemannian_rate(cg.SymbolicEnergy("x**2/2", ["x"]), ["1/(1 + x**2)"], ["x"], 0.25)
    rng, step = np.random.default_rng(0), 1e-3
    pair = np.array([[-1.0], [2.0]]) + np.zeros((2, 500))
    for _ in range(1000):
        noise = np.sqrt(2 * 0.25 * step) * rng.normal(size=500)
        pair = pair - step * (np.sinh(pair) * np.cosh(pair) - 0.25 * np.tanh(pair)) + noise
    assert (np.abs(pair[0] - pair[1]) <= 3.0 * verdict.wasserstein(1.0) * (1 + 1e-2)).all()


def test_what_cannot_be_decided_is_undecided():
    network = riemannian_rate(cg.MLPEnergy(1, 4, 1), [1], ["x"], 1.0)
    degenerate = riemannian_rate(QUARTIC, ["x**2"], ["x"], 1.0)
    unbounded = riemannian_rate(cg.SymbolicEnergy("-x**4", ["x"]), [1], ["x"], 1.0, timeout=5)
    assert network.status is Status.UNDECIDED
    assert "has none" in network.reason
    assert degenerate.status is Status.REFUTED
    assert degenerate.witness == pytest.approx([0.0])
    assert unbounded.status is Status.UNDECIDED
    for verdict in (network, degenerate, unbounded):
        assert verdict.rate is None
        with pytest.raises(ValueError, match="no rate was proved"):
            verdict.kl(1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"energy": 3}, "energy must be an Energy; got int"),
        ({"states": ["x", "y"]}, "states must name 1 coordinates for this energy; got 2"),
        ({"temperature": 0.0}, "temperature must be positive; got 0.0"),
        ({"temperature": np.nan}, "temperature must be a finite real number"),
        ({"metric": [1, 1]}, r"metric must have 1 entries, one a state, or be \(1, 1\); got 2"),
        ({"metric": ["1 + abs(x)"]}, "M must be differentiable; it holds Abs"),
        ({"method": "magic"}, "method must be one of"),
        ({"domain": cg.Box([0, 0], [1, 1])}, "domain: .* has 2 coordinates"),
        ({"domain": cg.Box([0], [1]) | cg.Box([2], [3])}, "domain must be one set"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    given = {"energy": QUARTIC, "metric": [1], "states": ["x"], "temperature": 1.0, **arguments}
    with pytest.raises(ValueError, match=message):
        riemannian_rate(**given)


def test_beyond_three_dimensions_the_metric_has_to_be_separable():
    energy = cg.Quadratic(np.eye(4))
    with pytest.raises(ValueError, match="diagonal with entry i a function of state i alone beyond 3 dimensions"):
        riemannian_rate(energy, ["1 + b**2", 1, 1, 1], ["a", "b", "c", "d"], 1.0)
