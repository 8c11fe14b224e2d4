"""The quadrature against integrals in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logsumexp

from ctrlgen.training import quadrature
from ctrlgen.training.quadrature import StretchedGrid


def grid(dim, points):
    return StretchedGrid.covering(np.full(dim, -2.0), np.full(dim, 3.0), np.full(dim, -9.0), np.full(dim, 8.0), points)


def log_gaussian(x, deviation):
    """log density of N(0.3, deviation²) in every coordinate."""
    d = x.shape[0]
    return -jnp.sum((x - 0.3) ** 2, axis=0) / (2 * deviation**2) - d * np.log(deviation * np.sqrt(2 * np.pi))


@pytest.mark.parametrize(("dim", "points"), [(1, 64), pytest.param(2, 48, marks=pytest.mark.slow), (3, 28)])
@pytest.mark.parametrize("deviation", [0.4, 1.6])
def test_cells_integrate_a_gaussian(dim, points, deviation):
    cells = grid(dim, points)
    x, log_volume = quadrature.place(cells.numbers(), quadrature.corners(cells.shape) + 0.5)
    # cells that stretch by a fifth each are the coarse part: the wider density feels them
    tolerance = 1e-4 if deviation < 1 else 5e-3
    assert float(logsumexp(log_volume + log_gaussian(x, deviation))) == pytest.approx(0.0, abs=tolerance)


def test_cells_reach_the_bounds_and_volumes_add_up_to_the_box():
    cells = grid(2, 40)
    ends = jnp.asarray([[0.0, cells.size], [0.0, cells.size]])  # one row an axis
    low, high = np.asarray(quadrature.place(cells.numbers(), ends)[0]).T
    assert (low <= -9).all()
    assert (high >= 8).all()
    _, log_volume = quadrature.place(cells.numbers(), quadrature.corners(cells.shape) + 0.5)
    assert float(jnp.exp(log_volume).sum()) == pytest.approx(float(np.prod(high - low)), rel=5e-3)


def test_sampled_cells_estimate_the_integral_without_bias():
    cells = grid(2, 40)
    target = lambda x: log_gaussian(x, 0.5)  # noqa: E731
    centre, volume = quadrature.place(cells.numbers(), quadrature.corners(cells.shape) + 0.5)
    # a stale proposal: the masses of another density
    probability = quadrature.proposal(volume + log_gaussian(centre, 0.8))

    def once(key):
        places, log_draws = quadrature.stratified(probability, cells.shape, 256, key)
        x, log_volume = quadrature.place(cells.numbers(), places)
        return jnp.exp(logsumexp(log_volume + target(x) - log_draws))

    draws = np.asarray(jax.lax.map(once, jax.random.split(jax.random.key(0), 400)))
    assert abs(draws.mean() - 1) < 4 * draws.std() / 20 + 1e-4
    assert draws.std() < 0.05  # drawing nodes uniformly over the cells gives 0.3
