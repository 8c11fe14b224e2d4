"""Observations: against Bayesian linear regression in closed form, exact arithmetic, and quadrature."""

from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

import ctrlgen as cg
from ctrlgen.plants.gaussian import quadratic_form


def regression(rng, d=4, k=3):
    a, prior = rng.normal(size=(k, d)), rng.normal(size=(d, d))
    covariance = prior @ prior.T + 0.5 * np.eye(d)
    return a, rng.normal(size=k), rng.uniform(0.3, 2.0, k), rng.normal(size=d), covariance


def kalman(a, y, sigma, mean, covariance):
    """Posterior mean and covariance by the gain, which inverts no prior, and log p(y)."""
    noise = np.diag(sigma**2)
    innovation = a @ covariance @ a.T + noise
    gain = covariance @ a.T @ np.linalg.inv(innovation)
    evidence = stats.multivariate_normal(a @ mean, innovation).logpdf(y)
    return mean + gain @ (y - a @ mean), covariance - gain @ a @ covariance, evidence


def test_the_gibbs_measure_is_the_posterior(rng):
    a, y, sigma, mean, covariance = regression(rng)
    temperature = 0.3
    prior = cg.Quadratic(temperature * np.linalg.inv(covariance), mean)
    posterior = cg.condition(prior, a, y, sigma, temperature=temperature)
    expected_mean, expected, evidence = kalman(a, y, sigma, mean, covariance)
    plant = cg.GaussianPlant(temperature)
    assert plant.kl(cg.Gaussian(expected_mean, expected), posterior) == pytest.approx(0.0, abs=1e-12)
    settled = cg.ClosedLoop(plant, posterior).simulate(cg.Gaussian(mean, covariance), 1000.0).final
    np.testing.assert_allclose(settled.mean, expected_mean, atol=1e-10)
    np.testing.assert_allclose(settled.covariance, expected, atol=1e-10)
    # the evidence is the ratio of the normalisations
    gain = float(cg.Gibbs(posterior, temperature).log_partition) - float(cg.Gibbs(prior, temperature).log_partition)
    assert gain - np.log(sigma * np.sqrt(2 * np.pi)).sum() == pytest.approx(evidence, abs=1e-10)


def test_without_a_temperature_the_term_is_added_as_it_is(rng):
    a, y, sigma, *_ = regression(rng, d=2)
    x, well = rng.normal(size=(20, 2)), cg.DoubleWell()
    term = 0.5 * (((y - x @ a.T) / sigma) ** 2).sum(axis=1)
    np.testing.assert_allclose(cg.condition(well, a, y, sigma)(x), well(x) + term, rtol=1e-12)
    tempered = cg.condition(well, a, y, sigma, temperature=0.2)
    np.testing.assert_allclose(tempered(x), well(x) + 0.2 * term, rtol=1e-12)
    same = cg.condition(well, a, y, sigma / np.sqrt(0.2))
    np.testing.assert_allclose(tempered(x), same(x), rtol=1e-12)


def test_one_observation_of_one_noise(rng):
    x = rng.normal(size=(20, 3))
    one, row = cg.LeastSquares([1.0, -2.0, 0.5], 0.7, 0.2), np.array([1.0, -2.0, 0.5])
    np.testing.assert_allclose(one(x), 0.5 * ((0.7 - x @ row) / 0.2) ** 2, rtol=1e-12)
    np.testing.assert_allclose(one.hessian(x[0]), np.outer(row, row) / 0.04, rtol=1e-12)
    many = cg.LeastSquares(np.eye(3), [1.0, 2.0, 3.0], 0.5)
    np.testing.assert_allclose(many(x), 2 * ((x - [1.0, 2.0, 3.0]) ** 2).sum(axis=1), rtol=1e-12)


def definite(matrix):
    """Is a symmetric matrix of Fractions positive semidefinite? By elimination, exactly."""
    work = matrix.copy()
    for k in range(len(work)):
        if work[k, k] < 0 or (work[k, k] == 0 and any(v != 0 for v in work[k, k:])):
            return False
        if work[k, k] > 0:
            work[k + 1 :, k:] = work[k + 1 :, k:] - np.outer(work[k + 1 :, k] / work[k, k], work[k, k:])
    return True


def exact(array):
    return np.vectorize(lambda v: Fraction(float(v)), otypes=[object])(array)


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (3, 3), (8, 6)])
def test_eigenvalues_are_enclosed_exactly_and_tightly(shape, rng):
    a, y, sigma = rng.normal(size=shape), rng.normal(size=shape[0]), rng.uniform(0.1, 3.0, shape[0])
    energy = cg.LeastSquares(a, y, sigma)
    weighted = exact(a) / exact(sigma)[:, None]
    gram, push = energy.normal_equations()
    assert (gram == weighted.T @ weighted).all()
    assert (push == weighted.T @ (exact(y) / exact(sigma))).all()
    np.testing.assert_allclose(energy.precision, gram.astype(float), rtol=1e-12)
    np.testing.assert_allclose(energy.push, push.astype(float), rtol=1e-12)
    low, high = energy.properties.hessian_lower, energy.properties.hessian_upper
    identity = exact(np.eye(shape[1]))
    assert definite(gram - Fraction(low) * identity)
    assert definite(Fraction(high) * identity - gram)
    values = np.linalg.eigvalsh(gram.astype(float))
    np.testing.assert_allclose([low, high], values[[0, -1]], rtol=0, atol=1e-11 * values[-1])


def test_a_kernel_gives_zero_and_nothing_below():
    thin, wide = np.array([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]]), np.array([[1.0, 2.0, 3.0]])
    for a in (thin, wide):
        known = cg.LeastSquares(a, np.ones(len(a)), 0.5).properties
        assert known.hessian_lower == 0.0
        assert known.hessian_upper == pytest.approx(4 * np.linalg.norm(a, 2) ** 2, rel=1e-12)
        assert known.dissipativity == (0.0, len(a))  # |y/σ|²/4
        assert cg.LeastSquares(a, np.ones(len(a)), 0.5).log_partition(1.0) is None
    assert cg.LeastSquares(np.zeros((1, 2)), [1.0], 1.0).properties.hessian_upper < 1e-300
    known = cg.LeastSquares(np.eye(2), [0.0, 0.0], [1.0, 0.5]).properties
    assert known.dissipativity == (known.hessian_lower, 0.0)
    assert known.hessian_lower == pytest.approx(1.0, rel=1e-14)


def test_many_dimensions_are_bounded_by_the_trace(rng):
    a = rng.normal(size=(3, 200))
    known = cg.LeastSquares(a, np.ones(3), 2.0).properties
    assert known.hessian_lower == 0.0
    assert known.hessian_upper == pytest.approx((a**2).sum() / 4, rel=1e-12)
    assert known.hessian_upper >= (a**2).sum() / 4 * (1 - 1e-15)


def test_dissipativity_holds_and_is_attained(rng):
    a, y, sigma = rng.normal(size=(2, 3)), np.array([3.0, -2.0]), np.array([0.5, 2.0])
    energy = cg.LeastSquares(a, y, sigma)
    lowest = np.linalg.lstsq(a, y / 2, rcond=None)[0]  # where Ax = y/2
    low, b = energy.properties.dissipativity
    assert low == 0.0
    assert lowest @ energy.gradient(lowest) == pytest.approx(-b, rel=1e-12)
    full = cg.LeastSquares(rng.normal(size=(4, 3)), rng.normal(size=4), 0.3)
    low, b = full.properties.dissipativity
    assert low == full.properties.hessian_lower / 2 > 0
    x = rng.normal(size=(5000, 3)) * rng.choice([0.1, 1.0, 10.0], size=(5000, 1))
    assert ((x * full.gradient(x)).sum(axis=1) - low * (x**2).sum(axis=1) + b).min() >= 0


def test_log_partition_is_the_integral(rng):
    energy = cg.LeastSquares(rng.normal(size=(5, 2)), rng.normal(size=5), [0.5, 1.0, 2.0, 1.0, 1.0])
    axis = (np.arange(600) + 0.5) / 600 * 16 - 8
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    total = np.exp(-energy(points) / 0.4).sum() * (16 / 600) ** 2
    assert energy.log_partition(0.4) == pytest.approx(np.log(total), abs=1e-9)


def test_its_quadratic_form_adds_to_others(rng):
    a, y, sigma, mean, covariance = regression(rng)
    prior = cg.Quadratic(np.linalg.inv(covariance), mean)
    energy = 2 * cg.condition(prior, a, y, sigma)
    precision, push = quadratic_form(energy)
    x = rng.normal(size=(10, 4))
    np.testing.assert_allclose(energy.gradient(x), x @ precision.T - push, rtol=1e-10, atol=1e-10)
    assert quadratic_form(cg.condition(cg.DoubleWell(), [1.0, 0.0], 1.0, 1.0)) is None


def test_constants_of_a_conditioned_energy_add():
    known = cg.condition(cg.DoubleWell(), [0.0, 2.0], 1.0, 0.5, temperature=0.5).properties
    well = cg.DoubleWell().properties
    assert known.hessian_lower == pytest.approx(well.hessian_lower, rel=1e-12)
    assert known.dissipativity == pytest.approx((well.dissipativity[0], well.dissipativity[1] + 0.5 * 4 / 4), rel=1e-9)


def test_subtracting_an_observation_may_leave_no_gibbs_measure():
    term = cg.LeastSquares([1.0, 1.0], 1.0, 1.0)
    with pytest.raises(ValueError, match="no Gibbs measure"):
        cg.Quadratic(np.eye(2)) - term
    assert (cg.Quadratic(np.eye(2)) - 0.4 * term).properties.hessian_lower == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: cg.LeastSquares([[[1.0]]], 1.0, 1.0), ValueError, r"operator must be finite, of shape \(k, d\)"),
        (lambda: cg.LeastSquares([[np.nan]], 1.0, 1.0), ValueError, "operator must be finite"),
        (lambda: cg.LeastSquares(np.zeros((0, 2)), [], 1.0), ValueError, "operator must be finite"),
        (lambda: cg.LeastSquares(np.eye(2), 1.0, 1.0), ValueError, r"observation must be 2 .*got shape \(1,\)"),
        (lambda: cg.LeastSquares(np.eye(2), [1.0, np.inf], 1.0), ValueError, "observation must be 2 finite"),
        (lambda: cg.LeastSquares(np.eye(2), [1.0, 1.0], 0.0), ValueError, "sigma must be positive"),
        (lambda: cg.LeastSquares(np.eye(2), [1.0, 1.0], [1.0] * 3), ValueError, "a number or 2 of them"),
        (lambda: cg.condition(cg.Ring(), np.eye(3), np.ones(3), 1.0), ValueError, "operator must have 2 columns"),
        (lambda: cg.condition(3, np.eye(3), np.ones(3), 1.0), TypeError, "energy must be an Energy; got int"),
        (
            lambda: cg.condition(cg.Ring(), [1.0, 0.0], 1.0, 1.0, temperature=0.0),
            ValueError,
            "temperature must be positive",
        ),
    ],
)
def test_refusals(make, error, message):
    with pytest.raises(error, match=message):
        make()
