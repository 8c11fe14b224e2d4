"""Probability bounds against exit probabilities in closed form and by simulation: never below, tight where possible."""

from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest
import sympy as sp

from ctrlgen.certify.stochastic import StochasticBarrier, upward
from ctrlgen.domain import Ball, Box, Sublevel
from ctrlgen.prove.claim import Status

X, XY = ["x"], ["x", "y"]
OUTSIDE = Box([-np.inf], [-2]) | Box([2], [np.inf])


def reached(drift, noise, start, unsafe, horizon, n=4000, steps=500, seed=0):
    """Fraction of n Euler-Maruyama paths in unsafe at some step, and its standard error: a little below the truth."""
    rng = np.random.default_rng(seed)
    x, h = np.tile(np.asarray(start, float), (n, 1)), horizon / steps
    hit = np.zeros(n, bool)
    for _ in range(steps):
        x = x + h * drift(x) + np.sqrt(h) * noise(rng.normal(size=x.shape))
        hit |= unsafe(x)
    share = hit.mean()
    return share, np.sqrt(share * (1 - share) / n)


def test_generator_is_itos_formula():
    x, y = sp.symbols("x y", real=True)
    one = StochasticBarrier("x**2", X).generator(["-x"], 3)
    assert sp.expand(one - (-2 * x**2 + 9)) == 0
    # G = (1, x)ᵀ: ½ (B_xx + 2 x B_xy + x² B_yy) with B = x² y + y²
    two = StochasticBarrier("x**2*y + y**2", XY).generator(["y", "-x"], [1, "x"])
    drift = 2 * x * y * y + (x**2 + 2 * y) * (-x)
    assert sp.expand(two - (drift + (2 * y + 2 * x * 2 * x + 2 * x**2) / 2)) == 0


def test_brownian_exit_is_bounded_exactly():
    """Brownian motion from 0 leaves [-1, 1] at 1 with probability 1/2: B = x + 1 is the martingale that says so."""
    bound = StochasticBarrier("x + 1", X).verify(
        [0], 1, Box([-0.1], [0]), Box([1], [2]), Box([-1], [2]), horizon=np.inf
    )
    assert bound.status is Status.PROVED, bound
    assert 0.5 <= bound.probability <= 0.5 + 1e-9
    assert (bound.gamma, bound.level, bound.c) == pytest.approx((1, 2, 0), abs=1e-8)
    assert bound.recheck()
    assert any("leaves the domain" in a for a in bound.assumptions)


def test_ruin_probability_of_a_drifting_brownian_motion():
    """dX = -dt + dW from ½ ever reaches 2 with probability exp(-2·1.5): B = exp(2x) is the martingale that says so."""
    bound = StochasticBarrier("exp(2*x)", X).verify([-1], 1, Box([0.25], [0.5]), Box([2], [3]), horizon=np.inf)
    assert bound.status is Status.PROVED, bound
    assert np.exp(-3) <= bound.probability <= 1.0001 * np.exp(-3)


def test_ornstein_uhlenbeck_against_simulation():
    """dX = -X dt + 1.5 dW from ½: B = x² has γ = 1/4, λ = 4, c = 9/4."""
    bound = StochasticBarrier("x**2", X).verify(["-x"], 1.5, Box([-0.5], [0.5]), OUTSIDE, horizon=1)
    assert bound.status is Status.PROVED, bound
    assert bound.probability == pytest.approx((0.25 + 2.25) / 4, rel=1e-6)
    share, error = reached(lambda x: -x, lambda z: 1.5 * z, [0.5], lambda x: np.abs(x[:, 0]) >= 2, 1.0)
    assert share + 3 * error <= bound.probability
    assert share - 3 * error > (0.25 + 0) / 4  # a bound that forgot c would be false


def test_oscillator_against_simulation():
    """A damped oscillator that is driven in its velocity only, with B = x² + y²: 𝓛B = -2y² + 1, in two dimensions."""
    disc, far = Ball([0, 0], 0.5), ~Ball([0, 0], 2)
    bound = StochasticBarrier("x**2 + y**2", XY).verify(["y", "-x - y"], sp.Matrix([0, 1]), disc, far, horizon=2)
    assert bound.probability == pytest.approx((0.25 + 2) / 4, rel=1e-6)
    share, error = reached(
        lambda x: np.stack([x[:, 1], -x[:, 0] - x[:, 1]], 1), lambda z: z * [0, 1], [0.5, 0],
        lambda x: np.hypot(x[:, 0], x[:, 1]) >= 2, 2.0,
    )  # fmt: skip
    assert share + 3 * error <= bound.probability


@pytest.mark.parametrize("horizon", [0.5, 1, 2])
def test_bound_grows_with_the_horizon(horizon):
    bound = StochasticBarrier("x**2", X).verify(["-x"], 0.5, Box([-0.5], [0.5]), OUTSIDE, horizon=horizon)
    assert bound.probability == pytest.approx((0.25 + 0.25 * horizon) / 4, rel=1e-6)


def test_a_barrier_that_is_negative_somewhere_is_refuted():
    bound = StochasticBarrier("x**2 - 1e-6", X).verify(["-x"], 0.5, Box([-0.5], [0.5]), OUTSIDE, horizon=1)
    assert bound.status is Status.REFUTED
    assert bound.probability is None
    assert bound.recheck()


def test_for_all_time_only_without_growth():
    bound = StochasticBarrier("x**2", X).verify(["-x"], 0.5, Box([-0.5], [0.5]), OUTSIDE, horizon=np.inf)
    assert bound.status is Status.UNDECIDED
    assert bound.probability is None
    assert "all time" in bound.reason


def test_no_bound_where_the_barrier_vanishes_on_unsafe():
    bound = StochasticBarrier("(x - 3)**2", X).verify(["-x"], 0.5, Box([-0.5], [0.5]), Box([2], [4]), horizon=1)
    assert bound.status is Status.UNDECIDED
    assert bound.probability is None


def test_growth_without_bound_is_undecided():
    bound = StochasticBarrier("x**2", X).verify(["x"], 0.5, Box([-0.5], [0.5]), OUTSIDE, horizon=1, timeout=5)
    assert bound.status is Status.UNDECIDED
    assert bound.probability is None


def test_a_bound_above_one_is_one():
    bound = StochasticBarrier("x**2", X).verify(["-x"], 5, Box([-0.5], [0.5]), OUTSIDE, horizon=10)
    assert bound.status is Status.PROVED
    assert bound.probability == 1.0


def test_the_worst_piece_of_every_set_counts():
    """B = x² is 1/4 and 1 on the parts of initial, 9 and 4 on those of unsafe, and 𝓛B ≤ 1 at the origin's side only."""
    initial, unsafe = Box([-0.5], [0.5]) | Box([0.75], [1]), Box([-5], [-3]) | Box([2], [5])
    bound = StochasticBarrier("x**2", X).verify(["-x"], 1, initial, unsafe, Box([-5], [5]) | Box([6], [7]), horizon=1)
    assert bound.probability == pytest.approx((1 + 1) / 4, rel=1e-6)
    assert (bound.gamma, bound.level, bound.c) == pytest.approx((1, 4, 1), rel=1e-6)


def test_a_drift_without_formula_is_undecided():
    bound = StochasticBarrier("x**2 + y**2", XY).verify(
        lambda z: -jnp.sort(z), 1, Ball([0, 0], 0.5), ~Ball([0, 0], 2), horizon=1
    )
    assert bound.status is Status.UNDECIDED
    assert "no formula" in bound.reason


@pytest.mark.parametrize(
    "value", [sp.Rational(2, 3), sp.Rational(1, 3), sp.Rational(1, 10), sp.Integer(2), -sp.Rational(1, 3)]
)
def test_rounding_is_upward(value):
    exact = Fraction(int(value.p), int(value.q))
    assert Fraction(upward(value)) >= exact
    assert Fraction(np.nextafter(upward(value), -np.inf)) < exact


def test_values():
    barrier = StochasticBarrier("x**2 + y", XY)
    assert barrier([2.0, 1.0]) == 5.0
    np.testing.assert_array_equal(barrier([[2.0, 1.0], [0.0, 3.0]]), [5.0, 3.0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"initial": None}, "initial must be given"),
        ({"unsafe": Sublevel("x**2 + 1", X)}, "unsafe.*empty"),
        ({"horizon": None}, "horizon must be given"),
        ({"horizon": 0}, "horizon must be positive"),
        ({"horizon": -1.0}, "horizon must be positive"),
        ({"diffusion": [1, 2]}, "diffusion must be"),
        ({"f": ["x", "x"]}, "f must have 1 components"),
        ({"domain": Box([5], [6])}, "initial must meet the domain"),
        ({"method": "magic"}, "method must be one of"),
    ],
)
def test_bad_input(change, message):
    given = {"f": ["-x"], "diffusion": 1, "initial": Box([-0.5], [0.5]), "unsafe": OUTSIDE, "horizon": 1, **change}
    with pytest.raises(ValueError, match=message):
        StochasticBarrier("x**2", X).verify(**given)
