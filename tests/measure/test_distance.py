"""Distances between samples: against sorting, assignment, brute force and closed forms."""

import math

import numpy as np
import ot.lp
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from ctrlgen import datasets, measure
from ctrlgen.datasets import Gaussian

NEAR = Gaussian([0.0, 0.0], 1.0)
FAR = Gaussian([1.0, 0.0], [[2.0, 0.3], [0.3, 1.0]])


def test_wasserstein_against_assignment_and_sorting():
    x, y = NEAR.sample(0, 200), FAR.sample(1, 200)
    cost = cdist(x, y, "sqeuclidean")
    rows, columns = linear_sum_assignment(cost)
    assert math.isclose(measure.wasserstein2(x, y).value, math.sqrt(cost[rows, columns].mean()), rel_tol=1e-10)
    line = math.sqrt(((np.sort(x[:, 0]) - np.sort(y[:, 0])) ** 2).mean())
    assert math.isclose(measure.wasserstein2(x[:, :1], y[:, :1]).value, line, rel_tol=1e-10)
    assert math.isclose(measure.sliced_wasserstein2(x[:, :1], y[:, :1]).value, line, rel_tol=1e-12)


def test_a_translation_costs_its_length():
    x = NEAR.sample(0, 300)
    out = measure.wasserstein2(x, x + np.array([3.0, 4.0]))
    assert math.isclose(out.value, 5.0, rel_tol=1e-12)
    assert measure.wasserstein2(x, x).value < 1e-7
    # E over directions of ⟨v, θ⟩² is |v|²/d
    sliced = measure.sliced_wasserstein2(x, x + np.array([3.0, 4.0]), projections=2000)
    assert abs(sliced.value - 5 / math.sqrt(2)) < 0.1


def test_unequal_sizes():
    x, y = NEAR.sample(0, 60), FAR.sample(1, 45)
    # repeating every point to a common size does not change the measures
    rx, ry = np.repeat(x, 3, axis=0), np.repeat(y, 4, axis=0)
    rows, columns = linear_sum_assignment(cdist(rx, ry, "sqeuclidean"))
    expected = math.sqrt(((rx[rows] - ry[columns]) ** 2).sum(axis=1).mean())
    assert math.isclose(measure.wasserstein2(x, y).value, expected, rel_tol=1e-9)
    assert math.isclose(
        measure.sliced_wasserstein2(x, y).value, measure.sliced_wasserstein2(rx, ry).value, rel_tol=1e-12
    )


def test_gaussians_closed_form():
    """W₂² = |m|² + tr(A + B - 2 (A^½ B A^½)^½), with A = I."""
    root = np.linalg.eigvalsh(FAR.covariance) ** 0.5
    truth = math.sqrt(1.0 + ((1 - root) ** 2).sum())
    out = measure.wasserstein2(NEAR.sample(0, 2000), FAR.sample(1, 2000))
    assert abs(out.value - truth) < 0.03 + 3 * out.error


@pytest.mark.parametrize("target", [NEAR, FAR], ids=["null", "apart"])
@pytest.mark.parametrize(
    "distance", [measure.wasserstein2, measure.sliced_wasserstein2, measure.mmd], ids=lambda f: f.__name__
)
def test_error_bars(distance, target):
    out = [distance(NEAR.sample(s, 300), target.sample(1000 + s, 200)) for s in range(40)]
    values, errors = np.array([e.value for e in out]), np.array([e.error for e in out])
    assert 0.6 < values.std(ddof=1) / errors.mean() < 1.4
    if distance is measure.mmd and target is NEAR:
        assert abs(values.mean()) < 3 * errors.mean() / math.sqrt(40)  # unbiased


def test_mmd_against_brute_force_and_closed_form():
    x, y, b = NEAR.sample(0, 30), FAR.sample(1, 20), 0.8

    def kernel(p, q):
        return math.exp(-float(((p - q) ** 2).sum()) / (2 * b * b))

    within = [np.mean([kernel(p, q) for i, p in enumerate(s) for j, q in enumerate(s) if i != j]) for s in (x, y)]
    across = np.mean([kernel(p, q) for p in x for q in y])
    assert math.isclose(measure.mmd(x, y, bandwidth=b).value, sum(within) - 2 * across, rel_tol=1e-12)

    def mean_kernel(shift, covariance):
        total = covariance + b * b * np.eye(2)
        return b * b / math.sqrt(np.linalg.det(total)) * math.exp(-0.5 * shift @ np.linalg.solve(total, shift))

    zero = np.zeros(2)
    truth = mean_kernel(zero, 2 * NEAR.covariance) + mean_kernel(zero, 2 * FAR.covariance)
    truth -= 2 * mean_kernel(FAR.mean, NEAR.covariance + FAR.covariance)
    out = measure.mmd(NEAR.sample(2, 1500), FAR.sample(3, 1500), bandwidth=b)
    assert abs(out.value - truth) < 3 * out.error
    scale = measure.mmd(1e3 * x, 1e3 * y).value  # the median distance scales with the data
    assert math.isclose(scale, measure.mmd(x, y).value, rel_tol=1e-9)


@pytest.mark.parametrize(("bandwidth", "target"), [(0.3, NEAR), (3.0, FAR)], ids=["second order", "first order"])
def test_mmd_error_bars_in_both_regimes(bandwidth, target):
    out = [measure.mmd(NEAR.sample(s, 30), target.sample(1000 + s, 150), bandwidth) for s in range(400)]
    values, errors = np.array([e.value for e in out]), np.array([e.error for e in out])
    assert 0.78 < values.std(ddof=1) / np.median(errors) < 1.18  # 3.5 % for 400 seeds


def test_thinning_is_determined_by_the_key():
    x, y = NEAR.sample(0, 500), FAR.sample(1, 500)
    for distance in (measure.wasserstein2, measure.mmd):
        first = distance(x, y, max_points=100, key=1)
        assert first == distance(x, y, max_points=100, key=1)
        assert first != distance(x, y, max_points=100, key=2)
    assert measure.sliced_wasserstein2(x, y, key=1) != measure.sliced_wasserstein2(x, y, key=2)
    # thinned differently, so that equal inputs do not give a distance of zero by construction
    assert measure.wasserstein2(x, x, max_points=100).value > 0.1


def test_projections_in_blocks(monkeypatch):
    x, y = NEAR.sample(0, 50), FAR.sample(1, 40)
    whole = measure.sliced_wasserstein2(x, y)
    monkeypatch.setattr("ctrlgen.measure.distance._BLOCK", 1000)
    parts = measure.sliced_wasserstein2(x, y)
    assert math.isclose(parts.value, whole.value, rel_tol=1e-12)
    assert math.isclose(parts.error, whole.error, rel_tol=1e-9)


def test_a_failed_solver_is_an_error(monkeypatch):
    real = ot.lp.emd
    monkeypatch.setattr("ot.lp.emd", lambda *a, **k: real(*a, **{**k, "numItermax": 2}))
    with pytest.raises(RuntimeError, match="optimal transport of 50 to 50 points failed: numItermax"):
        measure.wasserstein2(NEAR.sample(0, 50), FAR.sample(1, 50))


def test_sampling_floor():
    floor = measure.sampling_floor(NEAR, 200, repeats=6)
    pairs = [measure.wasserstein2(NEAR.sample(s, 200), NEAR.sample(50 + s, 200)).value for s in range(20)]
    assert abs(floor.value - np.mean(pairs)) < 4 * floor.error + 4 * np.std(pairs) / math.sqrt(20)
    assert floor == measure.sampling_floor(NEAR, 200, repeats=6)
    assert floor != measure.sampling_floor(NEAR, 200, repeats=6, key=1)
    table = measure.sampling_floor(NEAR.sample(0, 5000), 200)
    assert abs(table.value - floor.value) < 5 * math.hypot(table.error, floor.error)
    with pytest.raises(ValueError, match="source must hold at least 2 n = 400 samples; got 399"):
        measure.sampling_floor(NEAR.sample(0, 399), 200)
    with pytest.raises(ValueError, match="repeats must be an integer of at least 2; got 1"):
        measure.sampling_floor(NEAR, 200, repeats=1)


def test_moments():
    out = [measure.moments(FAR.sample(s, 400)) for s in range(60)]
    for truth, parts in ((FAR.mean, [m.mean for m in out]), (FAR.covariance, [m.covariance for m in out])):
        values, errors = np.array([p.value for p in parts]), np.array([p.error for p in parts])
        assert values[0].shape == errors[0].shape == truth.shape
        assert (np.abs(values.mean(axis=0) - truth) < 4 * errors.mean(axis=0) / math.sqrt(60)).all()
        ratio = values.std(axis=0, ddof=1) / errors.mean(axis=0)
        assert ((ratio > 0.7) & (ratio < 1.35)).all()
    x = NEAR.sample(0, 50)
    assert np.allclose(measure.moments(x).covariance.value, np.cov(x.T), rtol=1e-12)


def test_bad_input():
    x = NEAR.sample(0, 50)
    for distance in (measure.wasserstein2, measure.sliced_wasserstein2, measure.mmd):
        with pytest.raises(ValueError, match=r"y must have 2 columns, one for each dimension; got shape \(50, 1\)"):
            distance(x, x[:, :1])
        with pytest.raises(ValueError, match="y must be finite; 1 of 50 rows are not, the first is row 7"):
            distance(x, np.where(np.arange(50)[:, None] == 7, np.inf, x))
        with pytest.raises(ValueError, match="key must be an integer of at least 0; got -1"):
            distance(x, x, key=-1)
    with pytest.raises(ValueError, match="bandwidth must be a finite number above 0; got 0"):
        measure.mmd(x, x, bandwidth=0)
    with pytest.raises(ValueError, match="bandwidth must be given: the median distance of the points is 0"):
        measure.mmd(x * 0, x * 0)
    with pytest.raises(ValueError, match="x must hold at least 2 points for this measure; got 1"):
        measure.moments(x[:1])


def test_floor_of_the_tutorial():
    """PEERS: W₂ of 2000 fresh points against 2000 fresh points of the tutorial's moons is 0.073."""
    x, y = (datasets.tutorial_moons.sample(s, 2000) for s in (0, 1))
    assert abs(measure.wasserstein2(x, y).value - 0.073) < 0.01
