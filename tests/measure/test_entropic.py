"""Entropy, KL and free energy of particles: against closed forms and quadrature, with calibrated errors."""

import math

import numpy as np
import pytest

from ctrlgen import datasets, measure
from ctrlgen.datasets import Gaussian
from ctrlgen.energies.analytic import GaussianMixture, Quadratic
from ctrlgen.estimate import Estimate
from ctrlgen.measure.neighbours import surprise

SEEDS = range(40)
NARROW = Gaussian([0.5, 0.5], 0.7)  # of the particles
WIDE = Gaussian([0.0, 0.0], 1.0)  # of the target
ENERGY = Quadratic(np.eye(2))
LOG_Z = math.log(2 * math.pi)
TRUE_KL = measure.kl_gaussians(NARROW.mean, NARROW.covariance, WIDE.mean, WIDE.covariance)


def grid_mean(density_of, f, count=400):
    """∫ f ρ by the midpoint rule on the distribution's box."""
    edges = [np.linspace(*density_of.bounds[:, i], count + 1) for i in (0, 1)]
    points = np.stack(np.meshgrid(*[(e[1:] + e[:-1]) / 2 for e in edges], indexing="ij"), axis=-1).reshape(-1, 2)
    return float((np.exp(density_of.log_density(points)) * f(points)).sum() * np.prod([e[1] - e[0] for e in edges]))


def test_gaussian_closed_forms_by_quadrature():
    a, b = Gaussian([0.5, -0.3], [[0.8, 0.2], [0.2, 0.5]]), Gaussian([0.0, 0.1], [[1.0, -0.3], [-0.3, 0.7]])
    four = (a.mean, a.covariance, b.mean, b.covariance)

    def scores(x):
        return [-(x - g.mean) @ np.linalg.inv(g.covariance) for g in (a, b)]

    kl = grid_mean(a, lambda x: a.log_density(x) - b.log_density(x))
    fisher = grid_mean(a, lambda x: ((scores(x)[0] - scores(x)[1]) ** 2).sum(axis=1))
    # the box of the distribution cuts off 1e-8
    assert abs(measure.kl_gaussians(*four) - kl) < 1e-6
    assert abs(measure.fisher_gaussians(*four) - fisher) < 1e-5
    assert abs(measure.entropy_gaussian(a.covariance) + grid_mean(a, a.log_density)) < 1e-6
    assert abs(measure.kl_gaussians(*four[:2], *four[:2])) < 1e-14


@pytest.mark.parametrize(
    ("estimate", "truth", "bias"),
    [
        (lambda x, s: measure.entropy(x), measure.entropy_gaussian(NARROW.covariance), 0.025),
        (lambda x, s: measure.kl(x, ENERGY, 1.0, LOG_Z), TRUE_KL, 0.025),
        (lambda x, s: measure.kl_two_sample(x, WIDE.sample(1000 + s, 1500)), TRUE_KL, 0.025),
    ],
    ids=["entropy", "kl", "kl_two_sample"],
)
def test_calibration(estimate, truth, bias):
    """Bias below the stated number of nats at 1500 particles, scatter as the error bars say."""
    out = [estimate(NARROW.sample(s, 1500), s) for s in SEEDS]
    values, errors = np.array([e.value for e in out]), np.array([e.error for e in out])
    assert abs(values.mean() - truth) < bias
    ratio = values.std(ddof=1) / errors.mean()
    assert 0.7 < ratio < 1.35  # 11 % for 40 seeds


@pytest.mark.parametrize("name", ["eight_gaussians", "rings"])
def test_kl_of_structured_samples(name):
    data = datasets.get(name)
    energy = Quadratic(np.eye(2) / 6)
    log_z = math.log(2 * math.pi * 6)
    x = data.sample(0, 10_000)
    truth = grid_mean(data, lambda p: data.log_density(p) + energy(p) + log_z)
    out = measure.kl(x, energy, 1.0)  # log Z by quadrature
    assert abs(out.value - truth) < 0.03 + 3 * out.error
    assert out.error < 0.02
    assert abs(out.value - measure.kl(x, energy, 1.0, log_z).value) < 1e-5


def test_kl_vanishes_at_the_gibbs_measure():
    mixture = GaussianMixture(datasets.eight_gaussians.centres, 0.25)
    out = measure.kl(datasets.eight_gaussians.sample(3, 10_000), mixture, 1.0)
    assert abs(out.value) < 0.012 + 3 * out.error
    assert out.error < 0.007  # energy and entropy fluctuate together: apart they would have 0.01 each


def test_free_energy_differs_from_kl_by_a_constant():
    x, temperature = NARROW.sample(0, 2000), 0.4
    kl = measure.kl(x, ENERGY, temperature, log_partition=0.3)
    free = measure.free_energy(x, ENERGY, temperature)
    assert math.isclose(free.value, temperature * (kl.value - 0.3), rel_tol=1e-12)
    assert math.isclose(free.error, temperature * kl.error, rel_tol=1e-12)
    expected = np.trace(NARROW.covariance) / 2 + 0.25 - temperature * measure.entropy_gaussian(NARROW.covariance)
    assert abs(free.value - expected) < 0.02 + 3 * free.error


def test_error_of_log_z_is_added():
    x = NARROW.sample(0, 500)
    plain = measure.kl(x, ENERGY, 1.0, LOG_Z)
    unsure = measure.kl(x, ENERGY, 1.0, Estimate(LOG_Z, 0.5))
    assert unsure.value == plain.value
    assert math.isclose(unsure.error, math.hypot(plain.error, 0.5))


def test_scaling_and_dimension():
    x = Gaussian(np.zeros(3), 1.0).sample(0, 4000)
    shift = measure.entropy(5 * x + 1).value - measure.entropy(x).value
    assert abs(shift - 3 * math.log(5)) < 1e-9
    assert abs(measure.entropy(x, k=1).value - measure.entropy(x, k=20).value) < 0.15
    line = Gaussian(0.0, 4.0).sample(0, 4000)
    assert abs(measure.entropy(line).value - measure.entropy_gaussian(4.0)) < 0.06


def test_bad_particles():
    x = NARROW.sample(0, 100)
    with pytest.raises(ValueError, match=r"x must have shape \(n, d\); got shape \(100,\). In one dimension pass x"):
        measure.entropy(x[:, 0])
    with pytest.raises(ValueError, match=r"x must have 2 columns, one for each dimension; got shape \(100, 1\)"):
        measure.kl(x[:, :1], ENERGY, 1.0)
    with pytest.raises(ValueError, match=r"y must have 2 columns"):
        measure.kl_two_sample(x, x[:, :1])
    broken = x.copy()
    broken[[4, 9], 1] = np.nan
    with pytest.raises(ValueError, match="x must be finite; 2 of 100 rows are not, the first is row 4"):
        measure.kl(broken, ENERGY, 1.0)
    with pytest.raises(ValueError, match="x must hold at least 6 points for this measure; got 5"):
        measure.entropy(x[:5])
    with pytest.raises(ValueError, match="x holds 20 duplicates of other points, some more than 5 times over"):
        measure.entropy(np.concatenate([x, np.repeat(x[:1], 20, axis=0)]))
    with pytest.raises(ValueError, match=r"x must be an \(n, d\) array of numbers"):
        measure.entropy([["a", "b"]])
    with pytest.raises(ValueError, match="k must be an integer of at least 1; got 0"):
        measure.entropy(x, k=0)


@pytest.mark.parametrize("temperature", [0.0, -1.0, np.nan, "warm"])
def test_bad_temperature(temperature):
    for function in (measure.kl, measure.free_energy, measure.fisher, measure.stein_residual):
        with pytest.raises(ValueError, match="temperature must be a finite number above 0"):
            function(NARROW.sample(0, 100), ENERGY, temperature)


def test_the_energy_corrects_the_balls():
    """Balls as wide as the modes: of a mixture's own Gibbs measure V = 0, where a quadratic model alone is far off."""
    energy = GaussianMixture(datasets.eight_gaussians.centres, 0.25)
    corrected, plain = [], []
    for seed in range(12):
        x = datasets.eight_gaussians.sample(seed, 800)
        corrected.append(measure.kl(x, energy, 1.0, 0.0).value)
        plain.append((energy(x) - surprise(x, 5)).mean())
    assert abs(np.mean(corrected)) < 0.03  # -0.014 over 24 seeds, ± 0.004
    assert np.mean(plain) > 0.045  # 0.063


def test_bad_gaussians():
    with pytest.raises(ValueError, match=r"cov1 must have shape \(2, 2\)"):
        measure.kl_gaussians([0, 0], np.eye(2), [0, 0], np.eye(3))
    with pytest.raises(ValueError, match="mean0 and mean1 must have one shape"):
        measure.kl_gaussians([0, 0], np.eye(2), [0], np.eye(2))
