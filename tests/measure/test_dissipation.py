"""Relative Fisher information and Stein residual: against closed forms and grid quadrature."""

import math

import numpy as np
import pytest

from ctrlgen import datasets, measure
from ctrlgen.datasets import Gaussian
from ctrlgen.energies.analytic import GaussianMixture, Quadratic
from ctrlgen.energies.landscapes import DoubleWell
from ctrlgen.energies.symbolic import CallableEnergy


@pytest.mark.parametrize("dim", [1, 2, 8])
@pytest.mark.parametrize(("mean", "variance", "temperature"), [(0.5, 0.7, 1.0), (0.0, 1.5, 0.3)])
def test_fisher_of_gaussians(dim, mean, variance, temperature):
    data = Gaussian(np.full(dim, mean), variance)
    truth = measure.fisher_gaussians(data.mean, data.covariance, np.zeros(dim), np.eye(dim) * temperature / 2)
    out = measure.fisher(data.sample(1, 3000), Quadratic(np.eye(dim) * 2.0), temperature)
    assert abs(out.value - truth) < 0.03 * truth + 3 * out.error
    assert out.error < 0.15 * truth


def score_distance(data, energy, temperature, count=600):
    """I(ρ‖ρ*) by finite differences of the exact log-density on a grid."""
    axes = [np.linspace(*data.bounds[:, i], count) for i in (0, 1)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
    log_density = data.log_density(points).reshape(count, count)
    step = [a[1] - a[0] for a in axes]
    score = np.stack(np.gradient(log_density, *step), axis=-1)
    push = energy.gradient(points).reshape(count, count, 2) / temperature
    return float((np.exp(log_density) * ((score + push) ** 2).sum(axis=-1)).sum() * step[0] * step[1])


@pytest.mark.parametrize(
    ("energy", "temperature", "shortfall"),
    [
        pytest.param(Quadratic(np.eye(2) / 8), 1.0, 0.12, id="far", marks=pytest.mark.slow),
        pytest.param(
            GaussianMixture(datasets.eight_gaussians.centres, 0.5), 1.0, 0.05, id="wider", marks=pytest.mark.slow
        ),
        pytest.param(GaussianMixture(datasets.eight_gaussians.centres, 0.25), 0.5, 0.05, id="hotter"),
    ],
)
def test_fisher_of_eight_gaussians(energy, temperature, shortfall):
    """A lower bound, short by no more than the stated share."""
    truth = score_distance(datasets.eight_gaussians, energy, temperature)
    out = measure.fisher(datasets.eight_gaussians.sample(2, 10_000), energy, temperature)
    assert -shortfall * truth - 3 * out.error < out.value - truth < 3 * out.error
    assert out.error < 0.05 * truth


def test_fisher_is_zero_at_the_gibbs_measure():
    energy = GaussianMixture(datasets.eight_gaussians.centres, 0.25)
    out = measure.fisher(datasets.eight_gaussians.sample(0, 5000), energy, 1.0)
    assert -0.05 < out.value < 0.02  # the scale of I here: E|∇E|² = 8


def test_fisher_error_bars():
    data, energy = Gaussian([0.5, 0.0], 0.7), Quadratic(np.eye(2) * 2.0)
    truth = measure.fisher_gaussians(data.mean, data.covariance, np.zeros(2), np.eye(2) / 2)
    out = [measure.fisher(data.sample(s, 600), energy, 1.0) for s in range(25)]
    values, errors = np.array([e.value for e in out]), np.array([e.error for e in out])
    assert 0.6 < values.std(ddof=1) / errors.mean() < 1.7  # the choice of the fit scatters too
    assert -0.15 * truth < values.mean() - truth < 3 * errors.mean() / math.sqrt(25)


def test_stein_residual_is_the_drift_of_the_energy():
    """κ = 3, ε = 0.5, ρ = N(m, σ²): ε κ - κ² (m² + σ²), and its standard error over seeds."""
    data, energy = Gaussian(0.4, 0.3), Quadratic([[3.0]])
    truth = 0.5 * 3.0 - 9.0 * (0.4**2 + 0.3)
    out = [measure.stein_residual(data.sample(s, 400), energy, 0.5) for s in range(60)]
    values, errors = np.array([e.value for e in out]), np.array([e.error for e in out])
    assert abs(values.mean() - truth) < 3 * errors.mean() / math.sqrt(60)
    assert 0.75 < values.std(ddof=1) / errors.mean() < 1.3


def test_stein_residual_vanishes_at_the_gibbs_measure():
    energy = DoubleWell()
    grid = np.linspace(-4, 4, 400)
    points = np.stack(np.meshgrid(grid, grid, indexing="ij"), axis=-1).reshape(-1, 2)
    mass = np.exp(-energy(points) / 0.5)
    x = points[np.random.default_rng(0).choice(len(points), 20_000, p=mass / mass.sum())]
    out = measure.stein_residual(x, energy, 0.5)
    assert abs(out.value) < 3 * out.error
    assert out.error < 0.05


def test_stein_residual_in_high_dimension_keeps_the_laplacians_error():
    d = 80  # Hutchinson's probes are shared by all particles
    mixing = np.random.default_rng(0).normal(size=(d, d)) / np.sqrt(d)
    energy = Quadratic(np.eye(d) + mixing @ mixing.T)
    x = np.linalg.solve(
        np.linalg.cholesky(np.asarray(energy.precision)).T, np.random.default_rng(1).normal(size=(d, 2000))
    ).T
    out = measure.stein_residual(x, energy, 1.0)
    estimate = energy.laplacian_estimate(x[0])
    assert out.error >= float(estimate.error) > 0
    assert abs(out.value) < 4 * out.error


def test_divergence_is_named():
    energy = CallableEnergy(lambda x: 1.0 / x[0], 1)
    x = np.linspace(-1, 1, 101)[:, None]
    with pytest.raises(ValueError, match="gradient is not finite at 1 of 101 particles, the first is row 50"):
        measure.stein_residual(x, energy, 1.0)
    with pytest.raises(ValueError, match="x must hold at least 50 points for this measure; got 49"):
        measure.fisher(x[:49], energy, 1.0)
