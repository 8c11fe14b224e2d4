"""KL of particles to a known density, side by side with what is usually done: seconds, and bias and scatter in nats.

Problem: 10 000 draws of an eight-Gaussian mixture in two dimensions, against the energy of the same mixture, wider by
a quarter in variance and moved by 0.3. The truth is a quadrature. Bias and scatter are of ten seeds.

Run: python -m pytest tests/bench/test_measure.py --override-ini addopts=
"""

import numpy as np
import pytest
from scipy.spatial import cKDTree
from scipy.special import digamma
from scipy.stats import gaussian_kde

import ctrlgen as cg

pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed (the `bench` extra)")

N, STEP = 10_000, 0.05
CENTRES = cg.datasets.eight_gaussians.centres
LAW = cg.GaussianMixture(CENTRES, 0.2)
ENERGY = cg.GaussianMixture(CENTRES + 0.3, 0.25)
DRAWS = [LAW.sample(seed, N) for seed in range(10)]


def truth(after_a_step=False):
    """KL by a sum over a fine lattice; of the law after one Euler step by drawing it as the mixture that it is."""
    axis = np.linspace(-6, 6, 801)
    x = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    cell = (axis[1] - axis[0]) ** 2
    log_p = -np.asarray(LAW(x))
    if after_a_step:  # each lattice cell is pushed by -h∇E and blurred; binned at a hundredth of the blur's variance
        moved = x - STEP * np.asarray(ENERGY.gradient(x))
        edges = np.append(axis, axis[-1] + axis[1] - axis[0]) - (axis[1] - axis[0]) / 2
        mass = np.histogram2d(*moved.T, bins=[edges, edges], weights=np.exp(log_p) * cell)[0]
        spread = np.exp(-((axis[:, None] - axis) ** 2) / (4 * STEP))
        spread /= spread.sum(axis=0)
        density = (spread @ mass @ spread.T).ravel() / cell
        log_p = np.log(np.maximum(density, 1e-300))
    gap = log_p + np.asarray(ENERGY(x))
    return float(np.sum(np.exp(log_p) * gap) * cell)


def run(benchmark, estimate, after_a_step=False, draws=DRAWS):
    benchmark.group = "KL of 10 000 particles in 2-D"
    values = np.array([float(estimate(x)) for x in draws])
    benchmark(estimate, draws[0])
    off = values - truth(after_a_step)
    benchmark.extra_info["bias"] = round(float(off.mean()), 4)
    benchmark.extra_info["scatter"] = round(float(off.std(ddof=1)), 4)
    return off


def test_ctrlgen_neighbours(benchmark):
    off = run(benchmark, lambda x: cg.measure.kl(x, ENERGY, 1.0, log_partition=0.0))
    assert abs(off.mean()) < 0.02


def test_ctrlgen_transition(benchmark):
    off = run(benchmark, lambda x: cg.measure.kl_transition(x, ENERGY, 1.0, STEP, 0.0), after_a_step=True)
    assert abs(off.mean()) < 0.02


def test_plain_nearest_neighbours(benchmark):
    def estimate(x, k=5):
        radius = cKDTree(x).query(x, k + 1)[0][:, -1]
        entropy = digamma(len(x)) - digamma(k) + np.log(np.pi) + 2 * np.log(radius).mean()
        return np.asarray(ENERGY(x)).mean() - entropy

    assert abs(run(benchmark, estimate).mean()) < 0.1


def test_kernel_density(benchmark):
    def estimate(x, most=2000):
        x = x[:most]
        kernel = gaussian_kde(x.T)
        own = kernel(x.T)
        itself = 1 / (2 * np.pi * np.sqrt(np.linalg.det(kernel.covariance)))
        alone = (most * own - itself) / (most - 1)  # leaving each particle's own kernel out
        return (np.log(np.maximum(alone, 1e-300)) + np.asarray(ENERGY(x))).mean()

    run(benchmark, estimate)
