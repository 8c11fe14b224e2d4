"""Walls and barriers: their values and derivatives, the constants that are established, and what follows from them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy as sp

import ctrlgen as cg
from ctrlgen.certify.existence import gibbs_measure_exists, where_it_escapes
from ctrlgen.certify.initial_kl import initial_kl
from ctrlgen.certify.log_sobolev import log_sobolev
from ctrlgen.constraint import Constraint
from ctrlgen.constraints import Constraints
from ctrlgen.energies.algebra import parted, slope_at_origin
from ctrlgen.energies.safe_sets import barrier_bound, bounded, certain_inside, deep_point, tops
from ctrlgen.energies.walls import LogBarrier, Walls
from ctrlgen.field import Field


def safe(*formulas, states=("x", "y")):
    parts = [Constraint(Field(f, states), name=f"h{j + 1}") for j, f in enumerate(formulas)]
    return Constraints(parts)


BALL = safe("4 - x^2 - y^2")
BOX = safe("1 - x", "x + 1", "2 - y", "y + 2")
HALF = safe("x")
OFF = safe("1 - (x - 5)^2 - y^2")
HOLE = safe("x^2 + y^2 - 1")
EMPTY = safe("x - 1", "-1 - x")
FLAT = safe("x", "-x")
STRIPS = safe("1 - x^2", "4 - y^2")
ELLIPSE = safe("1 - x^2 - x*y - y^2")
LENS = safe("4 - x^2 - y^2", "y + 1 - x/3", "0.7 - y")
QUARTIC = safe("1 - x^4 - y^2")
PENTAGON = safe("1 - x", "x + 1", "2 - y", "y + 2", "2 - x - y")
PROBE = Constraints([Constraint(Field(lambda x: 1 - jnp.sum(jnp.where(x > 0, x, -x) ** 3), ["x", "y"]))])
SETS = {"ball": BALL, "box": BOX, "half-plane": HALF, "far ball": OFF, "hole": HOLE, "strips": STRIPS,
        "ellipse": ELLIPSE, "lens": LENS, "quartic": QUARTIC, "no formula": PROBE}  # fmt: skip
sets = pytest.mark.parametrize("constraints", SETS.values(), ids=SETS.keys())
QUADRATIC = cg.Quadratic(np.diag([2.0, 1.0]), [0.3, 0.0])
CONCAVE = cg.SymbolicEnergy("-x^2 - y^2", ["x", "y"])


def spread(constraints, n=4000, seed=0):
    """Points on both sides of a set, and which are inside."""
    centre = [5.0, 0.0] if constraints is OFF else [0.0, 0.0]
    x = np.random.default_rng(seed).uniform(-2.6, 2.6, (n, 2)) + centre
    return x, (constraints.at(x) > 0).all(axis=1)


# Functions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if n in {"far ball", "ellipse", "lens", "strips"} else []) for n in SETS],
)
def test_values_are_those_of_the_definition(name):
    constraints = SETS[name]
    x, inside = spread(constraints)
    assert 100 < inside.sum() < 3900
    np.testing.assert_array_equal(Walls(constraints)(x), np.where(inside, 0.0, np.inf))
    barrier = LogBarrier(constraints)(x)
    assert (barrier[~inside] == np.inf).all()
    np.testing.assert_allclose(barrier[inside], -np.log(constraints.at(x[inside])).sum(axis=1), rtol=1e-10, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("constraints", [BALL, PENTAGON, PROBE], ids=["ball", "pentagon", "no formula"])
def test_derivatives_are_finite_everywhere_and_right_inside(constraints):
    x, inside = spread(constraints)
    walls, barrier = Walls(constraints), LogBarrier(constraints)
    for energy in (walls, barrier):
        assert np.isfinite(energy.gradient(x)).all()
        assert np.isfinite(energy.hessian(x)).all()
        assert (energy.gradient(x)[~inside] == 0).all()
        # the energy's own differentiation agrees with the slope
        for point in (x[inside][0], x[~inside][0]):
            own = jax.grad(energy.potential)(jnp.asarray(point, jnp.float32))
            np.testing.assert_allclose(own, energy.gradient(point), rtol=2e-4, atol=1e-5)
    assert not walls.gradient(x).any()
    deep = x[inside & (constraints.at(x) > 0.1).all(axis=1)][:50]
    step = 1e-5 * np.eye(2)
    slope = np.stack([(barrier(deep + s) - barrier(deep - s)) / 2e-5 for s in step], axis=1)
    np.testing.assert_allclose(barrier.gradient(deep), slope, rtol=1e-6, atol=1e-6)
    bend = np.stack([(barrier.gradient(deep + s) - barrier.gradient(deep - s)) / 2e-5 for s in step], axis=2)
    np.testing.assert_allclose(barrier.hessian(deep), bend, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(barrier.laplacian(deep), np.trace(bend, axis1=1, axis2=2), rtol=1e-5, atol=1e-5)


def test_at_the_wall_itself_nothing_is_nan():
    x = np.array([[2.0, 0.0], [np.nextafter(2.0, 0.0), 0.0], [0.0, -2.0], [1e300, 0.0]])
    for energy in (Walls(BALL), LogBarrier(BALL), QUADRATIC + Walls(BALL) + 0.1 * LogBarrier(BALL)):
        assert not np.isnan(energy(x[:3])).any()
        assert np.isfinite(energy.gradient(x[:3])).all()
        assert energy(x[3]) == np.inf
    origin = np.zeros((1, 2))  # h = x is 0 there, and so is its rounding
    assert LogBarrier(HALF)(origin)[0] == np.inf
    assert not LogBarrier(HALF).gradient(origin).any()


def test_slack_stands_for_rounding_where_there_is_no_formula():
    x = np.array([[0.999, 0.0], [0.9, 0.0]])
    assert (Walls(PROBE)(x) == 0).all()
    np.testing.assert_array_equal(Walls(PROBE, slack=[0.01])(x), [np.inf, 0.0])
    np.testing.assert_array_equal(np.isinf(LogBarrier(PROBE, slack=[0.01])(x)), [True, False])


def test_symbolic_views():
    x, y = sp.symbols("a b", real=True)
    assert sp.simplify(LogBarrier(BOX).symbolic([x, y]) + sp.log(1 - x) + sp.log(1 + x) + sp.log(2 - y)
                       + sp.log(2 + y)) == 0  # fmt: skip
    with pytest.raises(TypeError, match=r"Walls has no symbolic view: it is .∞ outside"):
        Walls(BOX).symbolic()
    with pytest.raises(TypeError, match="no formula"):
        LogBarrier(PROBE).symbolic()
    assert repr(LogBarrier(BALL)) == "LogBarrier(h1 = -x**2 - y**2 + 4 ≥ 0)"
    assert repr(Walls(BOX, name="room")) == "room(4 constraints)"


# Constants --------------------------------------------------------------------------------------------------------


def test_what_is_established():
    lower = {name: (Walls(c).properties.hessian_lower, LogBarrier(c).properties.hessian_lower) for name, c in
             SETS.items()}  # fmt: skip
    assert lower["ball"] == (0.0, 2 / 4)  # -∇²h = 2 I, h ≤ 4
    assert lower["far ball"] == (0.0, 2.0)
    assert lower["box"] == (0.0, 8 / 4**2)  # the wider side
    assert lower["strips"] == (0.0, 2 / 4)
    assert lower["half-plane"] == (0.0, 0.0)
    assert lower["ellipse"][1] == pytest.approx(1.0, rel=1e-14)  # least eigenvalue of [[2, 1], [1, 2]], h ≤ 1
    assert lower["ellipse"][1] <= 1.0
    assert lower["hole"] == lower["quartic"] == lower["no formula"] == (None, None)
    for c in (EMPTY, FLAT):  # no inside: there is no measure to say anything of
        assert Walls(c).properties.hessian_lower is None
        assert LogBarrier(c).properties.hessian_lower is None
    for c in SETS.values():
        for energy in (Walls(c), LogBarrier(c)):
            known = energy.properties
            assert (known.hessian_upper, known.gradient_bound, known.oscillation, known.dissipativity) == (None,) * 4


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(k, marks=pytest.mark.slow) for k in range(2, 6))])
def test_the_bound_lies_below_every_hessian(seed):
    rng = np.random.default_rng(seed)
    x, y = sp.symbols("x y", real=True)
    a, b, c, u, v = (sp.Rational(int(k), 7) for k in rng.integers(1, 20, 5))
    mixed = sp.Rational(int(rng.integers(-10, 10)), 30) * sp.sqrt(1)
    constraints = safe(c - a * x**2 - b * y**2 - mixed * x * y + x / 5, u - x, x + v, v - y, y + u)
    low = barrier_bound(constraints)
    points = rng.uniform(-3, 3, (20_000, 2))
    barrier = LogBarrier(constraints)
    points = points[np.isfinite(barrier(points))]
    least = np.linalg.eigvalsh(barrier.hessian(points))[:, 0].min()
    assert len(points) > 100
    assert 0 < low <= least


@sets
def test_a_point_inside_and_tops(constraints):
    point = deep_point(constraints)
    assert (constraints.at(point) > 0).all()
    if constraints is not PROBE:
        np.testing.assert_array_equal(certain_inside(constraints), point)
    assert bounded(constraints) == (constraints in (BALL, BOX, OFF, STRIPS, ELLIPSE, LENS))
    x, inside = spread(constraints)
    for top, most in zip(tops(constraints), constraints.at(x[inside]).max(axis=0), strict=True):
        assert top is None or most <= top <= 1.5 * most + 1.2  # LENS is bounded by a box about it


def test_no_point_inside_nothing():
    assert certain_inside(EMPTY) is None
    assert deep_point(EMPTY) is None


def test_slopes_at_the_origin_are_none_beyond_a_wall():
    assert slope_at_origin(Walls(BALL)) == 0.0
    assert slope_at_origin(Walls(OFF)) is None
    assert slope_at_origin(LogBarrier(OFF)) is None
    assert slope_at_origin(LogBarrier(safe("2 - x"))) == pytest.approx(0.5)
    assert (QUADRATIC + Walls(OFF)).properties.dissipativity is None
    a, b = (QUADRATIC + Walls(BALL) + LogBarrier(LENS)).properties.dissipativity
    x, inside = spread(LENS)
    slope = (QUADRATIC + LogBarrier(LENS)).gradient(x[inside])
    assert ((x[inside] * slope).sum(axis=1) >= a * (x[inside] ** 2).sum(axis=1) - b).all()


# The algebra ------------------------------------------------------------------------------------------------------


def test_weights():
    assert (3.0 * Walls(BALL)).weights.tolist() == [1.0]
    assert (0.5 * (QUADRATIC + Walls(BALL))).weights.tolist() == [0.5, 1.0]
    assert (2.0 * LogBarrier(BALL)).weights.tolist() == [2.0]
    assert len(cg.compose([QUADRATIC, Walls(BALL)], [1.0, 0.0]).terms) == 1
    for make in (lambda: -Walls(BALL), lambda: QUADRATIC - LogBarrier(BALL), lambda: -1.0 * (QUADRATIC + Walls(BALL))):
        with pytest.raises(ValueError, match=r"must be positive; got -1. .* has no Gibbs measure"):
            make()
    with pytest.raises(ValueError, match=r"must be positive; got 0. .* is no number"):
        0.0 * Walls(BALL)


def test_parts():
    walls, barrier = Walls(BALL), LogBarrier(BOX)
    found = parted(QUADRATIC + walls + 0.3 * barrier + 2.0 * cg.Ring())
    assert found.walls == (walls,)
    assert found.barriers == ((0.3, barrier),)
    assert found.sets == (walls, barrier)
    x = np.ones((2, 2))
    np.testing.assert_allclose(found.rest(x), QUADRATIC(x) + 2 * cg.Ring()(x))
    assert parted(walls).rest is None
    assert parted(QUADRATIC).sets == ()


def test_no_escape_through_a_wall():
    for c in (BALL, BOX, STRIPS, LENS):
        assert where_it_escapes(CONCAVE + Walls(c)) is None
        assert where_it_escapes(CONCAVE + LogBarrier(c)) is None
    assert where_it_escapes(cg.SymbolicEnergy("-x^2 + y^2", ["x", "y"]) + Walls(safe("1 - x^2"))) is None
    # along the edge, or out of the set: not established
    assert where_it_escapes(cg.compose([cg.SymbolicEnergy("x^2 - y^2", ["x", "y"]), Walls(HALF)])) is None
    for c in (HALF, HOLE):
        with pytest.raises(ValueError, match=r"direction \[1. 0.\] E falls like -1 r²"):
            CONCAVE + Walls(c)


# What follows -----------------------------------------------------------------------------------------------------


def test_log_sobolev_constants():
    ball, barrier = Walls(BALL), LogBarrier(BALL)
    assert log_sobolev(QUADRATIC + ball, 0.5).constant == pytest.approx(1.0 / 0.5, rel=1e-12)
    assert log_sobolev(QUADRATIC + 0.4 * barrier, 0.5).constant == pytest.approx((1.0 + 0.4 * 0.5) / 0.5, rel=1e-12)
    weak = cg.Quadratic(0.1 * np.eye(2)) + cg.SymbolicEnergy("sin(x)/5", ["x", "y"])
    free, walled = log_sobolev(weak, 0.5), log_sobolev(weak + ball, 0.5)
    assert walled.constant == free.constant  # convex walls cost nothing
    assert walled.recheck()
    for c in (HOLE, EMPTY, QUARTIC, PROBE):
        assert log_sobolev(QUADRATIC + Walls(c), 0.5).status is cg.Status.UNDECIDED
        assert log_sobolev(QUADRATIC + LogBarrier(c), 0.5).status is cg.Status.UNDECIDED


@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
def test_the_constant_is_below_the_spectral_gap(power):
    # density (1 - x²)^p on (-1, 1): the gap of finite volumes bounds the log-Sobolev constant from above
    n = 2000
    edge, width = np.linspace(-1, 1, n + 1), 2 / n
    mass, flow = (1 - (edge[:-1] + width / 2) ** 2) ** power, (1 - edge[1:-1] ** 2) ** power
    diagonal = (np.append(flow, 0) + np.append(0, flow)) / mass
    off = -flow / np.sqrt(mass[:-1] * mass[1:])
    from scipy.linalg import eigh_tridiagonal

    gap = eigh_tridiagonal(diagonal, off, eigvals_only=True, select="i", select_range=(1, 1))[0] / width**2
    found = log_sobolev(LogBarrier(safe("1 - x^2", states=["x"])), 1 / power).constant
    assert found == pytest.approx(2 * power, rel=1e-12)
    assert found <= gap < 2 * found + 3


@pytest.mark.parametrize(
    ("make", "how"),
    [
        (lambda: QUADRATIC + Walls(HALF), "walls only cut"),
        (lambda: QUADRATIC + Walls(HOLE) + 0.1 * LogBarrier(HALF), "grow too slowly"),
        (lambda: CONCAVE + Walls(BALL), "bounded and has an inside"),
        (lambda: cg.Funnel() + 0.2 * LogBarrier(BOX), "bounded and has an inside"),
        (lambda: Walls(LENS), "bounded and has an inside"),
        (lambda: cg.MLPEnergy(2, width=4, depth=1, confinement=0.0) + Walls(BALL), "bounded and has an inside"),
        (lambda: QUADRATIC + Walls(QUARTIC) + Walls(HALF), "walls only cut"),
    ],
)
def test_the_measure_exists(make, how):
    found = gibbs_measure_exists(make())
    assert how in found.outcome.reason
    assert found.outcome.certificate.recheck()


@pytest.mark.parametrize(
    "make",
    [
        lambda: QUADRATIC + Walls(EMPTY),
        lambda: QUADRATIC + Walls(FLAT),
        lambda: Walls(HALF),
        lambda: LogBarrier(HALF),
        lambda: cg.compose([CONCAVE, Walls(HALF)], check=False),
        lambda: cg.SymbolicEnergy("-1/x^2", ["x", "y"]) + Walls(BALL),  # not integrable inside
        lambda: QUADRATIC + LogBarrier(safe("exp(x^2) + x")),  # grows faster than the Gaussian falls
        lambda: QUADRATIC + Walls(BALL) + Walls(OFF),  # each has an inside, both have none
        lambda: QUADRATIC + Walls(PROBE),
    ],
)
def test_existence_is_not_established(make):
    assert gibbs_measure_exists(make()) is None


def test_constants_that_walls_do_not_have_are_asked_for():
    for energy in (QUADRATIC + Walls(BALL), QUADRATIC + LogBarrier(BALL), LogBarrier(BALL)):
        with pytest.raises(ValueError, match="hessian_upper"):
            cg.stopping.APriori(0.1).plan(energy, 0.5, initial_mean=[0.0, 0.0], initial_covariance=np.eye(2))
        with pytest.raises(ValueError, match="could not be bounded"):  # a Gaussian start has mass outside: KL is ∞
            initial_kl(energy, 0.5, np.zeros(2), np.eye(2))


def test_refusals():
    moving = Constraints([Constraint(Field("1 - x + t", ["x", "t"]), moving=True, name="door")])
    for kind in (Walls, LogBarrier):
        with pytest.raises(ValueError, match=r"must be at rest.*door moves"):
            kind(moving)
        with pytest.raises(TypeError, match=r"must be a ctrlgen.constraints.Constraints; got str"):
            kind("x")
        with pytest.raises(ValueError, match="slack must be 1 finite numbers"):
            kind(BALL, slack=[1.0, 2.0])
