"""The response: its measures against closed forms, its exports, what it says."""

from dataclasses import replace

import control as ct
import numpy as np
import pytest

import ctrlgen as cg

OU = cg.Quadratic([[1.0, 0.0], [0.0, 2.0]])
EPS = 0.5


def gaussian_kl(variance, mean=0.0, target=None):
    target = EPS / np.array([1.0, 2.0]) if target is None else target
    variance, mean = np.broadcast_to(variance, (2,)), np.broadcast_to(mean, (2,))
    return 0.5 * np.sum(variance / target + mean**2 / target - 1 - np.log(variance / target))


@pytest.fixture(scope="module")
def response():
    loop = cg.ClosedLoop(cg.Langevin(EPS, 0.01), OU)
    start = np.random.default_rng(0).normal(size=(8000, 2)) * 2
    return loop.simulate(start, 2.0, record=5)


def test_lyapunov_curve_against_the_gaussian_law(response):
    t, k = response.time[:, None], np.array([1.0, 2.0])
    variance = EPS / k + (4.0 - EPS / k) * np.exp(-2 * k * t)
    exact = np.array([gaussian_kl(v) for v in variance])
    # statistical error plus ULA's bias, h L/2 = 1 % of the variance
    assert (np.abs(response.kl - exact) < 4 * response.kl_error + 0.02 * (1 + exact)).all()
    np.testing.assert_allclose(response.energy, 0.5 * (variance * k).sum(axis=1), rtol=0.06)
    free = response.energy - EPS * (1 + np.log(2 * np.pi) + 0.5 * np.log(variance.prod(axis=1)))
    assert (np.abs(response.free_energy - free) < 4 * response.free_energy_error + 0.03).all()


def test_dissipation_is_minus_the_slope_of_the_curve(response):
    t, k = response.time[:, None], np.array([1.0, 2.0])
    target = EPS / k
    variance = target + (4.0 - target) * np.exp(-2 * k * t)
    exact = EPS * np.sum(variance * (1 / target - 1 / variance) ** 2, axis=1)
    off = np.abs(response.dissipation - exact)
    assert (off < 4 * response.dissipation_error + 0.05 * exact + 0.02).all()


def test_dissipation_in_a_metric_is_that_of_the_metric():
    """-V̇ = ε E[s·M⁻¹s] with s = ∇log(ρ/ρ*), for a Gaussian in closed form; the skew part does not enter."""
    metric = np.array([[2.0, 0.5], [0.5, 0.4]])
    precision, covariance = np.diag([1.0, 2.0]), np.diag([1.5, 0.7])
    a = precision / EPS - np.linalg.inv(covariance)
    exact = EPS * np.trace(a @ np.linalg.inv(metric) @ a @ covariance)
    x = np.random.default_rng(4).normal(size=(8000, 2)) * np.sqrt([1.5, 0.7])
    for options in ({"metric": metric}, {"metric": metric, "skew": [[0.0, 2.0], [-2.0, 0.0]]}):
        estimate = cg.Langevin(EPS, 0.01, **options).dissipation(x, OU)
        assert abs(estimate.value - exact) < 4 * estimate.error + 0.02 * exact
    diagonal = cg.Langevin(EPS, 0.01, metric=np.diag(metric)).dissipation(x, OU)
    assert abs(diagonal.value - EPS * np.trace(a @ np.diag(1 / np.diag(metric)) @ a @ covariance)) < 0.3


def test_dissipation_of_the_deterministic_flow_has_either_sign_and_of_the_kinetic_loop_none():
    flow = cg.GradientFlow(0.01, reference_temperature=1.0)
    for sigma in (0.5, 2.0):  # V̇ = E[ΔE] - E|∇E|²/ε = d - σ² d for E = |x|²/2
        x = sigma * np.random.default_rng(5).normal(size=(20_000, 2))
        estimate = flow.dissipation(x, cg.Quadratic(np.eye(2)))
        assert abs(estimate.value - (2 * sigma**2 - 2)) < 4 * estimate.error
        assert (estimate.value > 0) == (sigma > 1)
    with pytest.raises(ValueError, match="not defined for KineticLangevin"):
        cg.KineticLangevin(1.0, 1.0, 0.1).dissipation(np.zeros((60, 2)), OU)


def test_measures_are_computed_once(response, monkeypatch):
    first = response.kl
    monkeypatch.setattr(type(response.plant), "kl", lambda *a, **k: pytest.fail("computed again"))
    np.testing.assert_array_equal(response.kl, first)


def test_moments_and_prints(response):
    np.testing.assert_allclose(response.mean, response.states.mean(axis=1), atol=1e-4)
    np.testing.assert_allclose(response.covariance[2], np.cov(response.states[2].T), rtol=1e-4, atol=1e-4)
    text = str(response)
    assert "Langevin (8000 particles)" in text
    assert "completed: ran its 200 steps" in text


def test_exports(response):
    data = response.to_xarray()
    assert data["state"].dims == ("time", "particle", "coordinate")
    np.testing.assert_array_equal(data["state"].values, response.states)
    assert data.attrs["status"] == "completed"
    control = response.to_control()
    np.testing.assert_allclose(control.time, response.time)
    np.testing.assert_allclose(control.outputs, response.mean.T)
    few = cg.ClosedLoop(cg.GradientFlow(0.1), OU).simulate([[1.0, 2.0], [0.0, 1.0]], 1.0, record=4).to_control()
    assert few.states.shape == (4, 4)
    assert list(few.state_labels) == ["x[0,0]", "x[0,1]", "x[1,0]", "x[1,1]"]


def test_each_representation_has_the_same_curve():
    """Particles, grid and Gaussian moments: one closed loop, three plants, one KL."""
    start = cg.Gaussian([1.0, 0.5], 0.3 * np.eye(2))
    grid_plant = cg.FokkerPlanckGrid([(-5, 5), (-4, 4)], (100, 100), EPS)
    grid = cg.ClosedLoop(grid_plant, OU).simulate(start, 1.0, record=3)
    gauss = cg.ClosedLoop(cg.GaussianPlant(EPS), OU).simulate(start, 1.0, record=3)
    cloud = cg.ClosedLoop(cg.Langevin(EPS, 0.005), OU).simulate(start, 1.0, record=3, particles=20_000)
    np.testing.assert_allclose(grid.time, gauss.time)
    np.testing.assert_allclose(grid.kl, gauss.kl, rtol=0.02, atol=1e-3)  # the grid's error is second order in h
    assert (np.abs(cloud.kl - gauss.kl) < 4 * cloud.kl_error + 0.01).all()
    np.testing.assert_allclose(grid.mean, gauss.mean, atol=5e-3)
    np.testing.assert_allclose(grid.covariance, gauss.covariance, atol=1e-2)
    for response in (grid, gauss):
        assert (response.kl_error == 0).all()
        assert response.to_xarray()["energy"].shape == (3,)
        assert response.to_control().outputs.shape == (2, 3)


def test_particle_fields_are_refused_where_there_are_none():
    gauss = cg.ClosedLoop(cg.GaussianPlant(EPS), OU).simulate(cg.Gaussian([0.0, 0.0], np.eye(2)), 1.0)
    with pytest.raises(AttributeError, match="states is for particles plants; this response is of a gaussian plant"):
        gauss.states  # noqa: B018
    with pytest.raises(AttributeError, match="density is for grid plants"):
        gauss.density  # noqa: B018


def test_kl_in_high_dimension_says_what_is_missing():
    energy = cg.MLPEnergy(5, width=4, depth=1)
    response = cg.ClosedLoop(cg.Langevin(1.0, 0.01), energy).simulate(np.zeros((20, 5)), 0.1)
    with pytest.raises(ValueError, match="log Z, which quadrature reaches in up to 3 dimensions"):
        response.kl  # noqa: B018


def test_no_certificate_without_noise():
    """DESIGN 2.2: from Gibbs samples the deterministic flow leaves it, V(t) = (exp(-2κt) - 1 + 2κt)/2 per axis."""
    kappa = 1.0
    energy = cg.Quadratic([[kappa]])
    start = np.random.default_rng(3).standard_normal((20_000, 1))
    plant = cg.GradientFlow(0.01, reference_temperature=1.0)
    response = cg.ClosedLoop(plant, energy).simulate(start, 1.0, record=5)
    t = response.time
    exact = (np.exp(-2 * kappa * t) - 1 + 2 * kappa * t) / 2
    assert (np.abs(response.kl - exact) < 4 * response.kl_error + 0.01).all()
    assert (np.diff(response.kl) > 0).all()


@pytest.mark.parametrize(
    "metric",
    [
        pytest.param(None, id="identity"),
        pytest.param([2.0, 0.5], id="diagonal", marks=pytest.mark.slow),
        pytest.param([[2.0, 0.5], [0.5, 0.4]], id="full"),
    ],
)
def test_effort_of_the_flow_is_the_fall_of_the_energy(metric):
    """-dE/dt = |u|² in the metric, path by path; without noise a step of 1e-3 has a relative error of L·h/2 = 0.2 %."""
    start = np.random.default_rng(0).normal(size=(64, 2))
    loop = cg.ClosedLoop(cg.Langevin(1e-12, 1e-3, metric=metric), OU)
    response = loop.simulate(start, 1.0, record=1001, dtype=np.float64)
    np.testing.assert_allclose(response.effort, OU(start) - OU(response.final), rtol=1e-2)


def test_effort_of_a_trained_energy_along_the_adaptive_flow():
    """Of a network too, path by path; the trapezoid's error falls with the square of the time between records."""
    energy, start = cg.MLPEnergy(2, width=8, depth=2, key=1), 2 * np.random.default_rng(1).normal(size=(32, 2))
    errors = []
    for step in (0.1, 0.05):
        plant = cg.GradientFlow(step, scheme="adaptive", tolerance=1e-9)
        response = cg.ClosedLoop(plant, energy).simulate(start, 2.0, record=1000, dtype=np.float64)
        fall = energy(start) - energy(response.final)
        errors.append(np.abs(response.effort - fall).max() / fall.mean())
    assert errors[1] < 1e-3
    assert 3.5 < errors[0] / errors[1] < 4.5


def test_effort_with_noise_is_what_it_costs_to_hold_the_gibbs_measure(response):
    """E|∇E|² = Σ κ²(var e^{-2κt} + ε/κ (1 - e^{-2κt})) integrated over time; ULA's bias is about 1 %."""
    t, k = np.linspace(0, 2, 2001)[:, None], np.array([1.0, 2.0])
    fine = cg.ClosedLoop(response.plant, OU).simulate(response.states[0], 2.0, record=201)
    exact = np.trapezoid((k**2 * (EPS / k + (4.0 - EPS / k) * np.exp(-2 * k * t))).sum(axis=1), t[:, 0])
    error = fine.effort.std() / np.sqrt(fine.effort.size)
    assert abs(fine.effort.mean() - exact) < 4 * error + 0.02 * exact


def test_effort_counts_the_skew_part():
    """E = |x|²/2 and J = jR turn at constant speed while |x| falls: |u|² = (1 + j²)|x|²; to L·h = 0.2 %."""
    start = np.array([[1.0, 0.0], [0.0, 2.0]])
    plant = cg.Langevin(1e-12, 1e-4, skew=[[0.0, 3.0], [-3.0, 0.0]])
    response = cg.ClosedLoop(plant, cg.Quadratic(np.eye(2))).simulate(start, 0.5, record=501, dtype=np.float64)
    exact = (1 + 3.0**2) * (start**2).sum(axis=1) * (1 - np.exp(-1.0)) / 2
    np.testing.assert_allclose(response.effort, exact, rtol=2e-3)


def test_effort_is_refused_where_more_than_the_energy_commands():
    ball = cg.SafetyFilter([cg.BarrierFunction("4 - x**2 - y**2", ["x", "y"])], gain=1.0)
    plain = cg.ClosedLoop(cg.Langevin(EPS, 0.01), OU).simulate(np.zeros((20, 2)), 0.02)
    assert (plain.effort >= 0).all()
    for part in (
        {"plant": cg.KineticLangevin(EPS, 1.0, 0.01)},
        {"plant": cg.Langevin(EPS, 0.01, metric=lambda x: 1 + x**2)},
        {"filter": ball},
        {"extra": ct.ss([], [], [], -np.eye(2))},
    ):
        with pytest.raises(ValueError, match=r"effort is defined for Langevin with a constant metric and GradientFlow"):
            replace(plain, **part).effort  # noqa: B018


@pytest.mark.slow
def test_effort_of_a_run_under_a_filter_or_an_extra_controller_is_refused():
    ball = cg.SafetyFilter([cg.BarrierFunction("4 - x**2 - y**2", ["x", "y"])], gain=1.0)
    for parts in ({"safety": ball}, {"extra": ct.ss([], [], [], -np.eye(2))}):
        loop = cg.ClosedLoop(cg.Langevin(EPS, 0.01), OU, **parts)
        with pytest.raises(ValueError, match="effort is defined for Langevin"):
            loop.simulate(np.zeros((20, 2)), 0.02).effort  # noqa: B018


def test_effort_on_a_grid_is_refused():
    grid = cg.ClosedLoop(cg.FokkerPlanckGrid([(-4, 4)] * 2, (20, 20), EPS), OU)
    with pytest.raises(AttributeError, match="effort is for particles plants"):
        grid.simulate(cg.Gaussian([0.0, 0.0], 1.0), 0.1).effort  # noqa: B018


def test_effort_under_density_feedback_is_refused():
    grid = cg.FokkerPlanckGrid([(-3, 3)] * 2, (24, 24), 0.5)
    feedback = cg.interop.density_feedback(cg.DoubleWell(2), grid, ["x1"], order=2)
    response = cg.ClosedLoop(cg.Langevin(0.5, 0.01), feedback).simulate(np.ones((50, 2)), 0.02)
    with pytest.raises(ValueError, match=r"effort is defined for .* not for .* density feedback"):
        response.effort  # noqa: B018
