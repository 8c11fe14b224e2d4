"""Networks and other code as claims: true bounds are proved, false ones refuted, no wrong derivative is believed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy as sp
from flint import arb

import ctrlgen
from ctrlgen.prove import interval
from ctrlgen.prove.balls import Undefined
from ctrlgen.prove.claim import Claim, Deadline, Status
from ctrlgen.prove.traced import Traced

X, Y = STATES = sp.symbols("x y", real=True)


def claim(function, half=2, *, dim=2, origin=False, guards=()):
    states = STATES[:dim]
    side = sp.Integer(half)
    return Claim(
        text="a function > 0", states=states, function=function, strict=True,
        guards=(*(g for s in states for g in (side - s, side + s)), *guards), box=((-side, side),) * dim,
        except_at=(sp.S.Zero,) * dim if origin else None,
    )  # fmt: skip


def decide(*args, **more):
    return interval.decide(claim(*args, **more), Deadline(20))


def ball(low, high):
    return arb(low).union(arb(high))


@pytest.fixture(scope="module")
def energy():
    return ctrlgen.MLPEnergy(2, width=16)


def test_lower_bounds_of_a_network(energy):
    axis = np.linspace(-2, 2, 81)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    least = float(np.min(np.asarray(energy(grid))))
    proof = decide(lambda x: energy(x) - (least - 0.02))
    assert proof.status is Status.PROVED, proof.reason
    assert 0 < proof.margin <= 0.02
    assert proof.certificate.recheck()
    false = decide(lambda x: energy(x) - (least + 0.01))
    assert false.status is Status.REFUTED, false.reason
    point = np.array([float(w) for w in false.witness])
    assert float(energy(point)) < least + 0.01
    assert false.margin < 0


def test_slopes_hold_the_gradient(energy):
    traced = Traced(energy, 2)
    x = [ball(0.3, 0.4), ball(-0.2, -0.1)]
    slopes = traced.slopes(x)
    for point in np.random.default_rng(3).uniform([0.3, -0.2], [0.4, -0.1], (50, 2)):
        for enclosure, slope in zip(slopes, np.asarray(energy.gradient(point)), strict=True):
            assert float(enclosure.lower()) - 1e-5 <= slope <= float(enclosure.upper()) + 1e-5
    assert max(float(s.rad()) for s in slopes) < 0.2


@jax.custom_jvp
def lying(x):
    return x * x


lying.defjvp(lambda primals, tangents: (lying(primals[0]), 0.0 * tangents[0]))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: lying(x[0]) - 0.5,
        lambda x: jax.lax.stop_gradient(x[0]) ** 3 + 1.0,
        lambda x: jnp.where(x[0] > 1 / 3, 1.0, -1.0),
        lambda x: jnp.sign(x[0] - 1 / 3) + 0.5,
        lambda x: jnp.arctan2(x[0], -1.0 - x[0] ** 2) + 1.0,
        lambda x: jnp.floor(x[0]) + 1.5,
        lambda x: (x[0] > 1 / 3) * 2.0 - 1.0,
    ],
    ids=["custom rule", "stopped gradient", "where", "sign", "atan2", "floor", "comparison"],
)
def test_false_claims_whose_automatic_gradient_says_nothing(function):
    """Each is below 0 on a part of [-2, 2] and has, by automatic differentiation, too small a gradient."""
    assert decide(function, dim=1).status is not Status.PROVED


@pytest.mark.parametrize(
    "function",
    [
        lambda x: jnp.where(x[0] > 1 / 3, 1.0, -1.0) + x[0],
        lambda x: jnp.sign(x[0] - 1 / 3),
        lambda x: jnp.arctan2(x[0] - 1 / 3, x[0] - 2.0),
    ],
    ids=["where", "sign", "atan2"],
)
def test_there_are_slopes_only_where_no_jump_is_possible(function):
    traced = Traced(function, 1)
    assert traced.slopes([ball(0, 1)]) is None
    assert traced.slopes([ball(0.5, 1)]) is not None


def test_a_rule_of_the_users_own_is_not_used():
    (slope,) = Traced(lambda x: lying(x[0]), 1).slopes([ball(1, 2)])
    assert slope.contains(2)
    assert slope.contains(4)


def test_kinks_are_no_obstacle():
    outcome = decide(lambda x: jax.nn.relu(x[0]) + jax.nn.relu(-x[0]) + jnp.abs(x[1] - x[0]) + 0.01)
    assert outcome.status is Status.PROVED, outcome.reason


def test_zero_at_the_equilibrium_is_not_shown_but_an_excluded_ball_is_enough():
    square = lambda x: jnp.sum(jnp.tanh(x) * x)  # noqa: E731
    open_hole = decide(square, origin=True)
    assert open_hole.status is Status.UNDECIDED
    assert "cannot be shown" in open_hole.reason
    useless = decide(square, origin=True, guards=(X + Y + 3,))
    assert useless.status is Status.UNDECIDED
    outside = decide(square, origin=True, guards=(X**2 + Y**2 - sp.Rational(1, 16),))
    assert outside.status is Status.PROVED, outside.reason


def test_a_pole_and_a_loop():
    with pytest.raises(Undefined):
        Traced(lambda x: 1.0 / x[0], 1).wide([ball(-1, 2)])
    assert decide(lambda x: 1.0 / x[0] ** 2, dim=1).status is Status.UNDECIDED
    outcome = decide(lambda x: jax.lax.fori_loop(0, 3, lambda i, s: s + x[0] ** 2, 1.0), dim=1)
    assert outcome.status is Status.PROVED, outcome.reason
