"""The Gaussian plant against scalar closed forms, the moment equations integrated by SciPy, and simulation by hand."""

import numpy as np
import pytest
from scipy.integrate import solve_ivp

import ctrlgen as cg
from ctrlgen.plants.gaussian import quadratic_form

ENERGY = cg.Quadratic([[2.0, 0.6], [0.6, 1.0]], [0.4, -0.3])
START = cg.Gaussian([1.5, -1.0], [[0.5, 0.2], [0.2, 0.3]])
EPSILON = 0.7


def advance(energy, start, time, schedule=None, step=None, counts=(1,)):
    return cg.GaussianPlant(EPSILON, step).start(energy, start, step=time, schedule=schedule).advance(list(counts))


def integrate(energy, start, time, factor=lambda t: 1.0):
    """Mean and covariance from ṁ = -∇E(m), Ċ = -PC - CP + 2ε(t) I."""
    d = start.dim
    precision = energy.hessian(np.zeros(d))

    def field(t, y):
        c = y[d:].reshape(d, d)
        rate = -precision @ c - c @ precision + 2 * EPSILON * factor(t) * np.eye(d)
        return np.concatenate([-energy.gradient(y[:d]), rate.ravel()])

    y0 = np.concatenate([start.mean, start.covariance.ravel()])
    y = solve_ivp(field, (0, time), y0, rtol=1e-11, atol=1e-12).y[:, -1]
    return y[:d], y[d:].reshape(d, d)


def test_ornstein_uhlenbeck_closed_form():
    kappa, mean, variance = 1.3, 2.0, 0.1
    energy, start = cg.Quadratic([[kappa]]), cg.Gaussian([mean], variance)
    for t, out in zip([0.5, 1.0], advance(energy, start, 0.5, counts=(1, 1)), strict=True):
        stationary = EPSILON / kappa
        expected = stationary + (variance - stationary) * np.exp(-2 * kappa * t)
        assert out.mean[0] == pytest.approx(mean * np.exp(-kappa * t), rel=1e-13)
        assert out.covariance[0, 0] == pytest.approx(expected, rel=1e-13)
        ratio = expected / stationary
        kl = 0.5 * (ratio - 1 - np.log(ratio) + out.mean[0] ** 2 / stationary)
        assert cg.GaussianPlant(EPSILON).kl(out, energy) == pytest.approx(kl, rel=1e-12)


MEMBERS = {
    "quadratic": ENERGY,
    "sum": cg.compose([ENERGY, cg.Quadratic(np.diag([0.5, 2.0]), [1.0, 1.0])], [0.5, 1.5]),
    "indefinite": cg.compose([ENERGY, cg.Quadratic(np.eye(2), [0.2, 0.1])], [1.0, -1.5], check=False),
    "flat": cg.compose(
        [cg.Quadratic(np.eye(2), [1.0, 0.0]), cg.Quadratic(np.diag([1.0, 0.5]), [0.0, 0.3])], [1.0, -1.0], check=False
    ),
}


@pytest.mark.parametrize("name", MEMBERS)
def test_moments_against_the_integrated_equations(name):
    energy = MEMBERS[name]
    (out,) = advance(energy, START, 0.8)
    mean, covariance = integrate(energy, START, 0.8)
    np.testing.assert_allclose(out.mean, mean, rtol=1e-8)
    np.testing.assert_allclose(out.covariance, covariance, rtol=1e-8)


@pytest.mark.parametrize("name", MEMBERS)
def test_measures_are_consistent(name):
    """dF/dt = -ε·dissipation, with or without a Gibbs measure; where there is one, F = εV + constant."""
    energy, plant, h = MEMBERS[name], cg.GaussianPlant(EPSILON), 1e-4
    (middle,) = advance(energy, START, 0.3)
    (before,), (after,) = advance(energy, START, 0.3 - h), advance(energy, START, 0.3 + h)
    slope = (plant.free_energy(after, energy) - plant.free_energy(before, energy)) / (2 * h)
    assert -slope == pytest.approx(EPSILON * plant.dissipation(middle, energy), rel=1e-6)
    if name in ("quadratic", "sum"):
        gap = plant.free_energy(START, energy) - plant.free_energy(middle, energy)
        assert gap == pytest.approx(EPSILON * (plant.kl(START, energy) - plant.kl(middle, energy)), rel=1e-10)


def test_free_energy_of_a_scalar_gaussian():
    energy, state = cg.Quadratic([[3.0]], [0.5]), cg.Gaussian([2.0], 0.25)
    expected = 1.5 * (1.5**2 + 0.25) - EPSILON * 0.5 * np.log(2 * np.pi * np.e * 0.25)
    assert cg.GaussianPlant(EPSILON).free_energy(state, energy) == pytest.approx(expected, rel=1e-13)


def test_mean_energy_by_sampling():
    points = START.sample(0, 200_000)
    values = ENERGY(points)
    error = values.std() / np.sqrt(len(values))
    assert abs(cg.GaussianPlant(EPSILON).mean_energy(START, ENERGY) - values.mean()) < 4 * error


def test_gibbs_measure_is_the_equilibrium():
    precision, push = quadratic_form(MEMBERS["sum"])
    inverse = np.linalg.inv(precision)
    gibbs = cg.Gaussian(inverse @ push, EPSILON * (inverse + inverse.T) / 2)
    plant = cg.GaussianPlant(EPSILON)
    assert abs(plant.kl(gibbs, MEMBERS["sum"])) < 1e-12
    assert abs(plant.dissipation(gibbs, MEMBERS["sum"])) < 1e-12
    (out,) = advance(MEMBERS["sum"], gibbs, 3.0)
    np.testing.assert_allclose(out.covariance, gibbs.covariance, rtol=1e-12)
    np.testing.assert_allclose(out.mean, gibbs.mean, rtol=1e-12)


def test_ula_by_iterating_the_chain():
    h, steps, energy = 0.15, 7, MEMBERS["sum"]
    precision = energy.hessian(np.zeros(2))
    step = np.eye(2) - h * precision
    mean, covariance = START.mean, START.covariance
    for _ in range(steps):
        mean = mean - h * energy.gradient(mean)
        covariance = step @ covariance @ step.T + 2 * EPSILON * h * np.eye(2)
    out = cg.GaussianPlant(EPSILON).ula(energy, START, h, steps)
    np.testing.assert_allclose(out.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(out.covariance, covariance, rtol=1e-12)
    same = cg.GaussianPlant(EPSILON).ula(energy, START, h, 0)
    np.testing.assert_allclose(same.covariance, START.covariance, rtol=1e-12)


@pytest.mark.parametrize("h", [0.01, 0.3, 1.0])
def test_stationary_variance_of_ula(h):
    kappa = 1.6
    out = cg.GaussianPlant(EPSILON).ula(cg.Quadratic([[kappa]]), cg.Gaussian([3.0], 1.0), h, 5000)
    assert out.covariance[0, 0] == pytest.approx((EPSILON / kappa) / (1 - kappa * h / 2), rel=1e-12)
    assert abs(out.mean[0]) < 1e-12


def test_schedule_is_held_at_the_middle_of_each_step():
    schedule = cg.Annealing(4.0, 1.0)
    _, exact = integrate(ENERGY, START, 1.0, lambda t: 4.0 ** max(0.0, 1 - t))
    steps, errors = 1.0 / np.array([4, 8, 16]), []
    for step in steps:
        (out,) = advance(ENERGY, START, 9.0, schedule, float(step), [round(1 / step)])
        errors.append(np.abs(out.covariance - exact).max())
    assert abs(np.polyfit(np.log(steps), np.log(errors), 1)[0] - 2) < 0.1
    (out,) = advance(ENERGY, START, 1.0, schedule)  # no step: 16 parts of the time between records
    assert np.abs(out.covariance - exact).max() == pytest.approx(errors[-1], rel=1e-4)


def test_run_counts_steps_and_does_not_depend_on_records():
    run = cg.GaussianPlant(EPSILON).start(ENERGY, START, step=0.1)
    snapshots = run.advance([1, 2, 3])
    assert run.done == 6
    assert run.snapshot() is snapshots[-1]
    (whole,) = advance(ENERGY, START, 0.6)
    np.testing.assert_allclose(snapshots[-1].covariance, whole.covariance, rtol=1e-12)


def test_overflow_is_reported_and_the_last_state_kept():
    hill = -1.0 * cg.Quadratic([[2.0]])
    run = cg.GaussianPlant(EPSILON).start(hill, cg.Gaussian([1.0], 0.3), step=100.0)
    snapshots = run.advance([1, 5])
    assert len(snapshots) == 1
    failure = run.failure()
    assert failure is not None
    assert failure.step == 6
    assert run.done == 1
    assert np.isfinite(run.snapshot().covariance).all()


def test_quadratic_form_recognises_only_quadratics():
    precision, push = quadratic_form(MEMBERS["indefinite"])
    np.testing.assert_allclose(precision, ENERGY.precision - 1.5 * np.eye(2), rtol=1e-14)
    np.testing.assert_allclose(push, -MEMBERS["indefinite"].gradient(np.zeros(2)), rtol=1e-14)
    well = cg.SymbolicEnergy("(x**2 - 1)**2 + y**2", ["x", "y"])
    assert quadratic_form(well) is None
    assert quadratic_form(ENERGY + well) is None


def test_bad_input():
    plant = cg.GaussianPlant(EPSILON)
    with pytest.raises(ValueError, match="temperature must be positive and finite; got 0"):
        cg.GaussianPlant(0.0)
    with pytest.raises(ValueError, match="step must be positive"):
        cg.GaussianPlant(1.0, step=-1.0)
    with pytest.raises(ValueError, match=r"needs a quadratic energy .* got SymbolicEnergy. Use FokkerPlanckGrid"):
        plant.start(cg.SymbolicEnergy("x**4", ["x"]), cg.Gaussian([0.0], 1.0), step=0.1)
    with pytest.raises(TypeError, match=r"moves a Gaussian\(mean, covariance\); got ndarray"):
        plant.start(ENERGY, np.zeros((10, 2)), step=0.1)
    with pytest.raises(ValueError, match="Gaussian is 1-dimensional but the energy is 2-dimensional"):
        plant.kl(cg.Gaussian([0.0], 1.0), ENERGY)
    with pytest.raises(ValueError, match=r"kl needs a Gibbs measure, but .* eigenvalue -"):
        plant.kl(START, MEMBERS["indefinite"])
    with pytest.raises(ValueError, match="steps must be at least 0; got -1"):
        plant.ula(ENERGY, START, 0.1, -1)
    with pytest.raises(ValueError, match="step must be positive"):
        plant.ula(ENERGY, START, 0.0, 1)
