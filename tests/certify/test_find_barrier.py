"""Synthesis of barriers: published cases, the conditions checked again by hand and by simulation, what is refused."""

import jax.numpy as jnp
import numpy as np
import pytest
import sympy as sp
from flint import fmpq
from scipy.integrate import solve_ivp

from ctrlgen.certify.find_barrier import find_barrier
from ctrlgen.certify.unknown import (
    Condition,
    Coordinates,
    Ideal,
    Zeros,
    compatible,
    equilibria,
    kernel,
    setting,
    simple_vectors,
)
from ctrlgen.domain import Ball, Box, Sublevel
from ctrlgen.prove.claim import Status
from ctrlgen.prove.polynomial import ring
from ctrlgen.prove.program import Block

X, XY = ["x"], ["x", "y"]
x, y = sp.symbols("x y", real=True)

# SumOfSquares.jl, "barrier_certificate.jl"
PENDULUM = [y, -x + x**3 / 3 - y]
START, BAD = Ball([1.5, 0], 0.5), Ball([-1, -1], 0.4)
# FOSSIL, "Barr1"
BARR1 = ["y + 2*x*y", "-x - y**2 + 2*x**2"]
BARR1_SETS = (Box([0, 1], [1, 2]), Sublevel("x + y**2", XY), Box([-2, -2], [2, 2]))


def check(verdict, f, initial, unsafe, domain=None, n=20_000):
    """The three inequalities at random points, by SymPy alone and not by the package."""
    h, rng = verdict.found, np.random.default_rng(1)
    assert (h(initial.sample(rng, n)) >= 0).all()
    bad = unsafe if domain is None else unsafe & domain
    assert (h(bad.sample(rng, n, XY)) < 0).all()
    points = rng.normal(size=(n, 2)) * 3 if domain is None else domain.sample(rng, n)
    speed = sp.lambdify([h.states], [sp.sympify(e, locals={"x": x, "y": y}) for e in f], "numpy")
    rate = sp.lambdify([h.states], [sp.diff(h.expr, s) for s in h.states], "numpy")
    change = sum(a * b for a, b in zip(rate(points.T), speed(points.T), strict=True))
    slack = change + float(verdict.gain) * h(points)
    assert slack.min() >= -1e-9 * np.abs(slack).max()


@pytest.mark.parametrize("domain", [None, Box([-3.5, -3.5], [3.5, 3.5])], ids=["everywhere", "box"])
def test_degree_four_where_the_derivative_vanishes(domain):
    """ḣ vanishes at (0, 0) and (±√3, 0), so that no rounding of an unrestricted Gram matrix is nonnegative."""
    verdict = find_barrier(PENDULUM, XY, 4, START, BAD, domain)
    assert verdict.status is Status.PROVED, verdict
    assert verdict.gain == 0
    assert verdict.recheck()
    assert sp.Poly(verdict.found.expr, x, y).total_degree() == 4
    again = verdict.found.verify(PENDULUM, initial=START, unsafe=BAD, domain=domain)
    assert again.status is Status.PROVED, again
    slopes = [sp.diff(verdict.found.expr, s) for s in (x, y)]
    assert all(sp.expand(s.subs({x: r, y: 0})) == 0 for s in slopes for r in (0, sp.sqrt(3)))
    check(verdict, PENDULUM, START, BAD, domain)


def test_trajectories_stay_away():
    """From states with h ≥ 0 near the initial set the flow keeps h ≥ 0, integrated numerically."""
    h = find_barrier(PENDULUM, XY, 4, START, BAD).found
    for state in START.sample(np.random.default_rng(2), 5):
        times = np.linspace(0, 1, 40)
        path = solve_ivp(
            lambda t, z: [z[1], -z[0] + z[0] ** 3 / 3 - z[1]], (0, 1), state, t_eval=times, rtol=1e-9, atol=1e-9
        )
        values = h(path.y.T)
        assert (np.diff(values) >= -1e-7 * np.abs(values).max()).all()


@pytest.mark.parametrize("domain", [None, Box([-3.5, -3.5], [3.5, 3.5])], ids=["everywhere", "box"])
def test_degree_two_does_not_exist(domain):
    verdict = find_barrier(PENDULUM, XY, 2, START, BAD, domain)
    assert verdict.status is Status.UNDECIDED
    assert verdict.found is None
    assert "infeasible" in verdict.reason


@pytest.mark.parametrize("degree", [3, 4])
def test_barr1(degree):
    """The origin rests in the unsafe set, so h grows at a rate: the gain is negative, and the function remembers it."""
    verdict = find_barrier(BARR1, XY, degree, *BARR1_SETS)
    assert verdict.status is Status.PROVED, verdict
    assert verdict.gain < 0
    again = verdict.found.verify(BARR1, *BARR1_SETS)
    assert again.status is Status.PROVED, again
    assert verdict.found.verify(BARR1, *BARR1_SETS, gain=0).status is Status.REFUTED
    check(verdict, BARR1, *BARR1_SETS)


@pytest.mark.parametrize("gain", [0, 1])
def test_barr1_has_no_barrier_of_a_gain_that_is_not_negative(gain):
    """y²/2 + xy² + x²/2 - 2x³/3 is conserved, with closed orbits about the origin: gain 0 would make h a function of
    it, which separates nothing; a positive gain fails at the origin, where ḣ = 0 and h < 0."""
    verdict = find_barrier(BARR1, XY, 4, *BARR1_SETS, gain=gain)
    assert verdict.status is Status.UNDECIDED
    assert verdict.found is None


def test_a_gain_that_is_asked_for():
    """Only a positive gain has a barrier of degree 2 here (found by this search; verified by sampling)."""
    verdict = find_barrier(PENDULUM, XY, 2, START, BAD, gain=1)
    assert verdict.status is Status.PROVED, verdict
    assert verdict.gain == 1
    check(verdict, PENDULUM, START, BAD)


def test_rational_dynamics():
    f, sets = ["-x/(1 + x**2)", "x - y"], (Ball([0, 0], 0.5), ~Ball([0, 0], 2))
    verdict = find_barrier(f, XY, 2, *sets)
    assert verdict.status is Status.PROVED, verdict
    check(verdict, f, sets[0], Ball([0, 0], 3) & sets[1])


def test_discrete_time():
    f, sets = ["x/2 + y/4", "y/2"], (Ball([0, 0], 0.5), ~Ball([0, 0], 2))
    verdict = find_barrier(f, XY, 2, *sets, time="discrete")
    assert verdict.status is Status.PROVED, verdict
    points = np.random.default_rng(0).normal(size=(1000, 2))
    h = verdict.found
    assert (h(points @ np.array([[0.5, 0], [0.25, 0.5]])) - h(points) >= -1e-12).all()


def test_units_do_not_matter():
    """Positions of hundreds beside velocities of one: the program is stated in coordinates of size one."""
    f, sets = ["100*y", "-x/100 - y/10"], (Box([-50, -0.5], [50, 0.5]), Box([300, -3], [400, 3]))
    verdict = find_barrier(f, XY, 2, *sets)
    assert verdict.status is Status.PROVED, verdict
    check(verdict, f, *sets, Box([-500, -4], [500, 4]))


def test_unions():
    f, sets = ["-x", "-y"], (Ball([1, 0], 0.1) | Ball([-1, 0], 0.1), Box([2, -1], [3, 1]) | Box([-3, -1], [-2, 1]))
    verdict = find_barrier(f, XY, 2, *sets)
    assert verdict.status is Status.PROVED, verdict
    check(verdict, f, *sets)


def test_six_states():
    names = [f"a{i}" for i in range(6)]
    f = [f"-a{i} + a{(i + 1) % 6}/2" for i in range(6)]
    verdict = find_barrier(f, names, 2, Ball([0] * 6, 1), ~Ball([0] * 6, 2))
    assert verdict.status is Status.PROVED, verdict


def test_only_the_equilibria_in_the_domain_count():
    """(±√3, 0) lie outside this box, where no condition ∇h = 0 is needed; (0, 0) lies inside."""
    sets = (Ball([0.5, 0], 0.3), Ball([-1, -1], 0.3), Box([-1.5, -1.5], [1.5, 1.5]))
    verdict = find_barrier(PENDULUM, XY, 4, *sets)
    assert verdict.status is Status.PROVED, verdict
    check(verdict, PENDULUM, *sets)


def test_without_a_formula_it_is_undecided():
    verdict = find_barrier(lambda z: -jnp.sort(z), XY, 2, Ball([0, 0], 0.5), Box([2, 2], [3, 3]))
    assert verdict.status is Status.UNDECIDED
    assert verdict.found is None
    assert "no formula" in verdict.reason


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"degree": 0}, "degree must be a positive integer"),
        ({"degree": 2.0}, "degree must be a positive integer"),
        ({"degree": True}, "degree must be a positive integer"),
        ({"initial": None}, "initial must be given"),
        ({"unsafe": Box([0.4], [3])}, "initial and unsafe must not meet"),
        ({"unsafe": Sublevel("x**2 + 1", X)}, "unsafe.*empty"),
        ({"f": ["x", "x"]}, "f must have 1 components"),
        ({"diffusion": 1}, "diffusion and horizon must be given together"),
        ({"horizon": 1}, "diffusion and horizon must be given together"),
        ({"method": "magic"}, "method must be one of"),
        ({"timeout": -1}, "timeout must be"),
    ],
)
def test_bad_input(change, message):
    given = {"f": ["-x"], "states": X, "degree": 2, "initial": Box([-0.5], [0.5]), "unsafe": Box([2], [3]), **change}
    with pytest.raises(ValueError, match=message):
        find_barrier(**given)


# With noise ------------------------------------------------------------------------------------------------------


def test_brownian_motion_has_the_martingale():
    """From 0 it leaves [-1, 1] at 1 with probability 1/2; degree 1 attains that but for what rounding gives up."""
    sets = (Box([-0.1], [0]), Box([1], [2]), Box([-1], [2]))
    verdict = find_barrier([0], X, 1, *sets, diffusion=1, horizon=np.inf)
    assert verdict.status is Status.PROVED, verdict
    assert 0.5 <= verdict.probability <= 0.501
    again = verdict.found.verify([0], 1, *sets, horizon=np.inf)
    assert again.probability == pytest.approx(verdict.probability, rel=1e-6)


def test_a_higher_degree_bounds_better():
    """dX = -X dt + ½ dW from ½ reaches ±2 within 1: 1/8 by x², far less by degree 6, and never below a simulation."""
    sets = (Box([-0.5], [0.5]), Box([-np.inf], [-2]) | Box([2], [np.inf]))
    low = find_barrier(["-x"], X, 2, *sets, diffusion=0.5, horizon=1)
    high = find_barrier(["-x"], X, 6, *sets, diffusion=0.5, horizon=1)
    assert low.probability == pytest.approx(0.125, rel=2e-2)
    assert high.status is Status.PROVED, high
    assert high.probability < 0.004
    rng, state, hit = np.random.default_rng(0), np.full(20_000, 0.5), np.zeros(20_000, bool)
    for _ in range(200):
        state = state - state / 200 + 0.5 * rng.normal(size=state.shape) / np.sqrt(200)
        hit |= np.abs(state) >= 2
    assert hit.mean() + 3 * np.sqrt(hit.mean() / len(hit)) <= high.probability


def test_no_bound_below_one_is_undecided():
    verdict = find_barrier(["x"], X, 2, Box([1.5], [1.9]), Box([2], [3]), Box([-3], [3]), diffusion=1, horizon=10)
    assert verdict.status is Status.UNDECIDED
    assert verdict.found is None
    assert verdict.probability is None


# The pieces ------------------------------------------------------------------------------------------------------


def test_ideal_of_the_equilibria():
    """Up to degree 3 the ideal (y, x³/3 - x) has dimension 10 - 3: three points impose three conditions."""
    context = ring(2)
    s, t = context.gens()
    found = Ideal([t, s**3 / 3 - s], context).up_to(3)
    assert len(found) == 7
    root = np.sqrt(3)
    for poly in found:
        terms = [(int(c.p) / int(c.q), [int(e) for e in m]) for m, c in poly.to_dict().items()]
        at = [sum(c * a ** m[0] * b ** m[1] for c, m in terms) for a, b in ((0, 0), (root, 0), (-root, 0))]
        np.testing.assert_allclose(at, 0, atol=1e-12)
    assert Ideal([t, s**3 / 3 - s], context).up_to(-1) == []


def test_equilibria_and_what_vanishes_there():
    everywhere = equilibria(PENDULUM, (x, y), None)
    np.testing.assert_allclose(sorted(everywhere[:, 0]), [-np.sqrt(3), 0, np.sqrt(3)], atol=1e-9)
    np.testing.assert_allclose(everywhere[:, 1], 0, atol=1e-9)
    inside = equilibria(PENDULUM, (x, y), Box([-1, -1], [1, 1]))
    np.testing.assert_allclose(inside, [[0, 0]], atol=1e-9)
    touching = equilibria([x - 1, y], (x, y), Box([-1, -1], [1, 1]))
    np.testing.assert_allclose(touching, [[1, 0]], atol=1e-9)
    context = ring(2)
    s, t = context.gens()
    assert len(Zeros(everywhere, context).up_to(3)) == 7
    assert len(Zeros(inside, context).up_to(3)) == 9
    assert Zeros(touching, context).up_to(0) == []
    assert {str(p) for p in Zeros(np.array([[0.0, 0.0]]), context).up_to(1)} == {str(s), str(t)}


def test_compatible_coefficients():
    """a + b s + c s² is a multiple of s² only for a = b = 0, and of 1, s, s² always."""
    context = ring(1)
    (s,) = context.gens()
    forms = [s * 0 + 1, s, s**2]
    assert compatible(forms, [Block(s * 0 + 1, [s])], []) == [[0, 0, 1]]
    assert len(compatible(forms, [Block(s * 0 + 1, [s * 0 + 1, s])], [])) == 3
    assert compatible(forms, [Block(s * 0 + 1, [s])], [(s, [s * 0 + 1])]) == [[0, 1, 0], [0, 0, 1]]


def test_kernel():
    rows = [[fmpq(1), fmpq(2), fmpq(3)]]
    found = kernel(rows, 3)
    assert len(found) == 2
    assert all(sum(a * b for a, b in zip(rows[0], v, strict=True)) == 0 for v in found)
    assert len(kernel([], 2)) == 2


def test_short_vectors_come_first():
    vectors = list(simple_vectors(np.array([1.0, -0.3333333, 0.0])))
    assert vectors[0] == [1, fmpq(-3, 10), 0]
    assert vectors[-1][1] == fmpq(-3333333, 10**7)
    assert list(simple_vectors(np.zeros(2))) == []


def test_formulas_as_polynomials():
    """1/(1 + x²) and x over a common denominator D > 0, which is returned as what multiplies a constant."""
    parts = setting((x, y), [1 / (1 + x**2), x], [1 - y**2], ((None, None),) * 2)
    s, t = parts.context.gens()
    ratio = parts.one.coeffs()[0]
    assert parts.one == ratio * (s**2 + 1)
    assert parts.forms == [ratio + s * 0, ratio * s * (s**2 + 1)]
    assert parts.guards == [1 - t**2]
    assert Condition(parts, parts.forms).level == 0


def test_coordinates():
    here = Coordinates.of((x, y), Box([90, -0.5], [110, 1]), [])
    assert here.change == {x: 100 + 8 * x}
    assert sp.expand(here.formula([fmpq(1), fmpq(2)], [(1, 0), (0, 1)]) - ((x - 100) / 8 + 2 * y)) == 0
    assert here.box(((sp.Integer(92), None), (None, sp.Integer(1)))) == [(-1, None), (None, 1)]
    angle = Coordinates.of((x, y), Box([-100, -100], [100, 100]), [], [sp.sin(x), y])
    assert angle.change == {y: 128 * y}
