"""The schemes against closed forms: stationary laws, weak orders, exact moments of the chain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ctrlgen as cg
from ctrlgen.plants.particles import evolve

OU = cg.Quadratic([[1.0]])


def final(plant, energy, x, duration, key=1, **options):
    return cg.ClosedLoop(plant, energy).simulate(x, duration, key=key, record=2, **options).final.astype(np.float64)


def variance_within(x, expected, sigmas=4.5):
    """The sample variance of Gaussian draws is `expected` within so many standard errors."""
    return abs(x.var() - expected) < sigmas * expected * np.sqrt(2 / x.size)


@pytest.mark.parametrize(("step", "stiffness", "temperature"), [(0.1, 1.0, 1.0), (0.5, 2.0, 0.3), (1.5, 1.0, 2.0)])
def test_stationary_variance_of_ula_is_exact(step, stiffness, temperature):
    """CASES 13: (ε/κ) / (1 - κh/2), the bias included."""
    expected = temperature / stiffness / (1 - stiffness * step / 2)
    start = np.random.default_rng(0).normal(scale=np.sqrt(expected), size=(100_000, 1))
    x = final(cg.Langevin(temperature, step), cg.Quadratic([[stiffness]]), start, 30 * step)
    assert variance_within(x, expected)
    assert abs(x.mean()) < 4.5 * np.sqrt(expected / x.size)


def test_ornstein_uhlenbeck_from_a_gaussian():
    """CASES 14, at a step whose bias is below the sampling error."""
    kappa, temperature, mean, variance, t = 1.0, 0.5, 3.0, 0.2, 0.8
    start = mean + np.sqrt(variance) * np.random.default_rng(1).standard_normal((50_000, 1))
    x = final(cg.Langevin(temperature, 0.002), cg.Quadratic([[kappa]]), start, t)
    expected = temperature / kappa + (variance - temperature / kappa) * np.exp(-2 * kappa * t)
    assert variance_within(x, expected)
    assert abs(x.mean() - mean * np.exp(-kappa * t)) < 4.5 * np.sqrt(expected / x.size) + 1e-3 * mean


def test_metropolis_has_no_bias_at_a_step_where_ula_is_far_off():
    step, start = 1.0, np.random.default_rng(2).standard_normal((100_000, 1))
    mala = final(cg.Langevin(1.0, step, scheme="mala"), OU, start, 20.0)
    assert variance_within(mala, 1.0)
    assert not variance_within(final(cg.Langevin(1.0, step), OU, start, 20.0), 1.0, sigmas=50)  # its variance is 2


def test_metropolis_keeps_a_mixture_in_a_metric():
    energy = cg.GaussianMixture([[-1.0, 0.0], [1.5, 5.0]], [np.diag([0.3, 9.0]), np.diag([0.5, 4.0])], [1, 2], 0.7)
    start = energy.sample(3, 40_000)
    plant = cg.Langevin(0.7, 0.1, scheme="mala", metric=[1.0, 0.1])
    response = cg.ClosedLoop(plant, energy).simulate(start, 3.0, record=2)
    fresh = energy.sample(4, 40_000)
    for power in (1, 2):
        a, b = response.final.astype(np.float64) ** power, fresh**power
        error = np.sqrt(a.var(axis=0) / len(a) + b.var(axis=0) / len(b))
        assert (np.abs(a.mean(axis=0) - b.mean(axis=0)) < 4.5 * error).all()
    assert 0.5 < response.acceptance < 1.0


def test_acceptance_falls_with_the_step_and_is_none_without_proposals():
    start = np.random.default_rng(2).standard_normal((2000, 1))
    rates = [
        cg.ClosedLoop(cg.Langevin(1.0, h, scheme="mala"), OU).simulate(start, 20 * h, record=2).acceptance
        for h in (0.05, 0.5, 1.5)
    ]
    assert rates[0] > 0.99 > rates[1] > rates[2] > 0.3
    assert cg.ClosedLoop(cg.Langevin(1.0, 0.1), OU).simulate(start, 1.0).acceptance is None


METRIC = np.array([[2.0, 0.4], [0.4, 0.5]])
SKEW = np.array([[0.0, 1.5], [-1.5, 0.0]])


@pytest.mark.parametrize(
    "options", [{"metric": METRIC}, {"metric": [2.0, 0.5]}, {"skew": SKEW}, {"metric": METRIC, "skew": SKEW}], ids=str
)
def test_metric_and_skew_give_the_exact_law_of_the_chain(options):
    """x⁺ = (I - h(K+J)P) x + sqrt(2εh) K^{1/2} ξ: mean and covariance after k steps, by matrix recursion."""
    p, h, temperature, steps = np.array([[1.5, 0.5], [0.5, 1.0]]), 0.1, 0.6, 12
    metric = np.asarray(options.get("metric", np.eye(2)))
    mobility = np.linalg.inv(np.diag(metric) if metric.ndim == 1 else metric)
    step = np.eye(2) - h * (mobility + options.get("skew", np.zeros((2, 2)))) @ p
    mean, covariance = np.array([2.0, -1.0]), np.zeros((2, 2))
    for _ in range(steps):
        mean, covariance = step @ mean, step @ covariance @ step.T + 2 * temperature * h * mobility
    x = final(cg.Langevin(temperature, h, **options), cg.Quadratic(p), np.tile([2.0, -1.0], (60_000, 1)), steps * h)
    error = np.sqrt(np.diag(covariance) / len(x))
    assert (np.abs(x.mean(axis=0) - mean) < 4.5 * error).all()
    spread = np.sqrt((np.outer(np.diag(covariance), np.diag(covariance)) + covariance**2) / len(x))
    assert (np.abs(np.cov(x.T) - covariance) < 4.5 * spread).all()


def chain_variance(plant, energy, kind):
    """The exact stationary variance of a linear scheme: from the affine map of one step, found by probing it."""
    size = 2 if kind == "kinetic" else 1

    def step(z, xi):
        return np.asarray(_one_step(plant, energy, z, xi, kind))

    zero = step(np.zeros(size), 0.0)
    a = np.stack([step(e, 0.0) - zero for e in np.eye(size)], axis=1)
    b = step(np.zeros(size), 1.0) - zero
    q = np.outer(b, b)
    return np.linalg.solve(np.eye(size**2) - np.kron(a, a), q.ravel()).reshape(size, size)[0, 0]


def _one_step(plant, energy, z, xi, kind):
    from unittest import mock

    from ctrlgen.plants import noise
    from ctrlgen.precision import float64

    with float64(), mock.patch.object(noise, "normals", lambda lanes, d, t: (jnp.full((1, 1), xi, t), lanes)):
        state = plant.begin(energy, jnp.full((1, 1), z[0], jnp.float64), 0)
        if kind == "kinetic":
            state = type(state)(
                state.position, state.lanes, state.step, (jnp.full((1, 1), z[1], jnp.float64), state.memory[1])
            )
        state = plant.move(energy, state, jnp.float64(plant.temperature))
        return [float(state.position[0, 0]), *([float(state.memory[0][0, 0])] if kind == "kinetic" else [])]


@pytest.mark.parametrize(
    ("make", "order", "kind"),
    [
        (lambda h: cg.Langevin(1.0, h), 1, "overdamped"),
        (lambda h: cg.Langevin(1.0, h, metric=[2.0]), 1, "overdamped"),
        (lambda h: cg.KineticLangevin(1.0, 1.0, h), None, "kinetic"),
    ],
    ids=["euler", "euler in a metric", "BAOAB"],
)
def test_stationary_bias_has_its_order(make, order, kind):
    """Weak order in the stationary variance of a quadratic; BAOAB's positional variance has no bias at all."""
    steps = 2.0 ** -np.arange(2, 6)
    error = np.array([abs(chain_variance(make(h), OU, kind) - 1.0) for h in steps])
    if order is None:
        assert (error < 1e-12).all()
    else:
        assert abs(np.polyfit(np.log(steps), np.log(error), 1)[0] - order) < 0.1


@pytest.mark.parametrize(
    ("make", "kind"),
    [(lambda h: cg.Langevin(1.0, h), "overdamped"), (lambda h: cg.KineticLangevin(1.0, 1.0, h), "kinetic")],
    ids=["euler", "BAOAB"],
)
def test_weak_order_over_a_finite_time(make, kind):
    """The mean of an Ornstein–Uhlenbeck loop at t = 1, exact for the chain and for the equation."""
    steps, t = 2.0 ** -np.arange(2, 5), 1.0
    if kind == "kinetic":
        # ẍ = -x - γẋ with γ = 1 from x = 1, v = 0
        w = np.sqrt(3) / 2
        exact = np.exp(-t / 2) * (np.cos(w * t) + np.sin(w * t) / (2 * w))
    else:
        exact = np.exp(-t)
    error = []
    for h in steps:
        plant, z = make(h), np.array([1.0, 0.0][: 2 if kind == "kinetic" else 1])
        for _ in range(round(t / h)):
            z = np.asarray(_one_step(plant, OU, z, 0.0, kind))
        error.append(abs(z[0] - exact))
    slope = np.polyfit(np.log(steps), np.log(error), 1)[0]
    assert abs(slope - plant.weak_order) < 0.2


def test_kinetic_stationary_law_by_simulation():
    start = np.random.default_rng(5).normal(size=(60_000, 1)) * np.sqrt(0.5)
    x = final(cg.KineticLangevin(0.5, 1.0, 0.4), OU, start, 12.0)
    assert variance_within(x, 0.5)


def test_gradient_flow_euler_has_order_one_and_adaptive_is_exact():
    energy, start = cg.Quadratic(np.diag([1.0, 3.0])), np.array([[1.0, 1.0], [-2.0, 0.5]])
    exact = start * np.exp(-np.array([1.0, 3.0]))
    steps = 2.0 ** -np.arange(4, 8)
    error = [np.abs(final(cg.GradientFlow(h), energy, start, 1.0, dtype=np.float64) - exact).max() for h in steps]
    assert abs(np.polyfit(np.log(steps), np.log(error), 1)[0] - 1) < 0.1
    adaptive = final(cg.GradientFlow(0.25, "adaptive", tolerance=1e-9), energy, start, 1.0, dtype=np.float64)
    np.testing.assert_allclose(adaptive, exact, atol=1e-7)


def test_schedule_sets_the_temperature_at_each_time():
    """Heated by a factor that falls linearly, without force: Var = 2ε ∫ factor."""
    flat = cg.SymbolicEnergy("0", ["x"])
    loop = cg.ClosedLoop(cg.Langevin(0.5, 0.01), flat, schedule=lambda t: 1.0 - t)
    x = loop.simulate(np.zeros((100_000, 1)), 1.0, record=2).final
    expected = 2 * 0.5 * sum((1 - k * 0.01) * 0.01 for k in range(100))
    assert variance_within(x.astype(np.float64), expected)


def test_annealing_and_ramp_have_the_shape_they_promise():
    cool = cg.Annealing(start=10.0, duration=2.0)
    np.testing.assert_allclose([cool(t) for t in (0.0, 1.0, 2.0, 5.0)], [10.0, np.sqrt(10), 1.0, 1.0], rtol=1e-6)
    ramp = cg.TransportRamp(0.8, 1.0)
    np.testing.assert_allclose([ramp(t) for t in (0.0, 0.8, 0.9, 1.0, 3.0)], [0, 0, 0.5, 1, 1], atol=1e-6)


def test_float64_when_asked_and_float32_otherwise():
    start = np.ones((4, 1))
    assert cg.ClosedLoop(cg.Langevin(1.0, 0.1), OU).simulate(start, 0.5).final.dtype == np.float32
    assert cg.ClosedLoop(cg.Langevin(1.0, 0.1), OU).simulate(start, 0.5, dtype=np.float64).final.dtype == np.float64


def test_evolve_inside_a_users_jit_is_what_simulate_does():
    energy, plant = cg.DoubleWell(), cg.Langevin(0.3, 0.02)
    x = np.random.default_rng(1).normal(size=(200, 2)).astype(np.float32)

    @jax.jit
    def chain(position):
        state = plant.begin(energy, position, 9)
        return evolve(plant, energy, state, 40).position

    np.testing.assert_allclose(np.asarray(chain(jnp.asarray(x.T))).T, final(plant, energy, x, 0.8, key=9), atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cg.Langevin(0.0, 0.1), "temperature must be positive"),
        (lambda: cg.Langevin(1.0, -0.1), "step must be positive"),
        (lambda: cg.Langevin(1.0, 0.1, scheme="heun"), "scheme must be 'euler' or 'mala'; got 'heun'"),
        (lambda: cg.Langevin(1.0, 0.1, metric=[1.0, -1.0]), "metric must be positive"),
        (lambda: cg.Langevin(1.0, 0.1, metric=[[1.0, 2.0], [2.0, 1.0]]), "metric must be positive definite"),
        (lambda: cg.Langevin(1.0, 0.1, skew=np.eye(2)), "skew must be skew-symmetric"),
        (lambda: cg.Langevin(1.0, 0.1, metric=np.eye(3), skew=SKEW), "one size"),
        (lambda: cg.Langevin(1.0, 0.1, scheme="mala", skew=SKEW), "skew must be omitted"),
        (lambda: cg.KineticLangevin(1.0, 0.0, 0.1), "friction must be positive"),
        (lambda: cg.GradientFlow(0.1, "rk4"), "scheme must be 'euler' or 'adaptive'"),
        (lambda: cg.GradientFlow(0.1, reference_temperature=0.0), "reference_temperature must be positive"),
        (lambda: cg.Annealing(0.0, 1.0), "start must be positive"),
        (lambda: cg.TransportRamp(1.0, 0.5), "onset must be >= 0 and below full"),
    ],
)
def test_bad_plants_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
