"""Constrained generation: nothing leaves, the law inside is the promised one, what is reported is what happened.

Independent answers: closed forms of one-dimensional flows, truncated normal moments, quadrature, a quadratic program
solved by another solver. Monte Carlo tolerances are in standard errors, with fixed seeds.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

import ctrlgen as cg

XY = ["x", "y"]
DISC = cg.BarrierFunction("9/4 - x**2 - y**2", XY)
SETS = {
    "half-plane": [cg.BarrierFunction("x + 0.5*y + 0.3", XY)],
    "disc": [DISC],
    "annulus": [cg.BarrierFunction("x**2 + y**2 - 1/4", XY), cg.BarrierFunction("4 - x**2 - y**2", XY)],
    "two discs out": [
        cg.BarrierFunction("(x - 1)**2 + y**2 - 1", XY),
        cg.BarrierFunction("(x + 1/2)**2 + y**2 - 1", XY),
    ],
    "quartic": [cg.BarrierFunction("3 - x**4 - y**2 + x*y", XY)],
    "function": [cg.BarrierFunction(lambda x: 2.0 - jnp.sum(jnp.sqrt(1 + x**2)) + jnp.cos(x[0]), XY)],
    "box in 10-D": [cg.Box([-0.5] * 10, [1.0] * 10)],
}
MODES = [
    ("cbf", "euler"),
    ("reflected", "euler"),
    ("reflected", "mala"),
    ("barrier_energy", "euler"),
    ("barrier_energy", "mala"),
]


def energy_for(name):
    if name == "box in 10-D":
        return cg.Quadratic(np.diag(np.linspace(1.0, 4.0, 10)), np.linspace(-1, 1, 10))
    return cg.Quadratic(np.diag([1.0, 4.0]), [0.5, 0.5])


def wide(dim):
    return cg.Gaussian(np.zeros(dim), (0.3**2 if dim > 2 else 1.0) * np.eye(dim))


def none_leaves(name, energy, mode, scheme, step, steps, particles=10_000, dtype=np.float32, temperature=1.0):
    """No violation in the loop, and none in float64 at the recorded states by the test's own formula."""
    safety = cg.SafetyFilter(SETS[name], 5.0, mode=mode)
    loop = cg.ClosedLoop(cg.Langevin(temperature, step, scheme=scheme), energy, safety=safety)
    start = safety.restrict(wide(energy.dim))
    response = loop.simulate(start, steps * step, particles=particles, record=11, dtype=dtype)
    assert response.status == "completed"
    report = response.safety
    assert report.looked == particles * steps
    assert report.violations == 0
    assert report.worst_depth == 0
    for x in response.states[1:].astype(np.float64):
        for h in FORMULAS[name]:
            assert (h(x.T) >= 0).all()
    return response


FORMULAS = {
    "half-plane": [lambda x: x[0] + 0.5 * x[1] + 0.3],
    "disc": [lambda x: 2.25 - x[0] ** 2 - x[1] ** 2],
    "annulus": [lambda x: x[0] ** 2 + x[1] ** 2 - 0.25, lambda x: 4 - x[0] ** 2 - x[1] ** 2],
    "two discs out": [lambda x: (x[0] - 1) ** 2 + x[1] ** 2 - 1, lambda x: (x[0] + 0.5) ** 2 + x[1] ** 2 - 1],
    "quartic": [lambda x: 3 - x[0] ** 4 - x[1] ** 2 + x[0] * x[1]],
    "function": [lambda x: 2 - np.sqrt(1 + x**2).sum(axis=0) + np.cos(x[0])],
    "box in 10-D": [lambda x: x + 0.5, lambda x: 1.0 - x],
}


# looked at in every run of the tests; the others in the slow ones
OFTEN = {("annulus", "cbf", "euler"), ("disc", "reflected", "euler"), ("disc", "barrier_energy", "euler")}


@pytest.mark.parametrize(
    ("name", "mode", "scheme"),
    [
        pytest.param(name, *kind, marks=[] if (name, *kind) in OFTEN else pytest.mark.slow)
        for name in SETS
        for kind in MODES
    ],
)
def test_nothing_leaves_at_the_stability_limit(name, mode, scheme):
    response = none_leaves(name, energy_for(name), mode, scheme, 0.95 * 2 / 4, 50)
    if scheme == "euler":
        assert response.safety.corrected > 0  # it would have left: the test tests something


@pytest.mark.parametrize(
    "name", ["disc", *(pytest.param(s, marks=pytest.mark.slow) for s in ("box in 10-D", "function"))]
)
def test_nothing_leaves_in_double_precision(name):
    none_leaves(name, energy_for(name), "cbf", "euler", 0.2, 50, particles=2000, dtype=np.float64)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["half-plane", "disc", "annulus", "two discs out", "box in 10-D"])
@pytest.mark.parametrize(("mode", "scheme"), MODES)
@pytest.mark.parametrize("share", [0.1, 0.95])
def test_nothing_leaves_in_ten_million_particle_steps(name, mode, scheme, share):
    none_leaves(name, energy_for(name), mode, scheme, share * 2 / 4, 1000)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["eight_gaussians", "two_moons"])
@pytest.mark.parametrize(("mode", "scheme"), MODES)
def test_nothing_leaves_under_trained_energies(model, mode, scheme):
    energy = cg.load_energy(model)
    none_leaves("annulus", energy, mode, scheme, energy.step, 200)


@pytest.mark.slow
def test_a_particle_on_the_border_may_start():
    points = np.array([[1.5, 0.0], [0.0, -1.5], [0.9, 1.2], [0.9, -1.2]])  # |x| = 3/2 exactly
    safety = cg.SafetyFilter(DISC, 5.0)
    loop = cg.ClosedLoop(cg.Langevin(1.0, 0.1), cg.Quadratic(np.eye(2)), safety=safety)
    response = loop.simulate(points, 2.0, record=21)
    assert response.safety.violations == 0
    assert (safety.values(response.states[1:].reshape(-1, 2)) >= 0).all()


def test_a_run_that_diverges_inside_the_set_says_so():
    """A filter holds no particle that runs away along the set: that is a failure, and no safe rest."""
    energy = cg.SymbolicEnergy("-x**4 + y**2", XY)
    safety = cg.SafetyFilter(cg.BarrierFunction("1 - y**2", XY), 1.0)
    loop = cg.ClosedLoop(cg.Langevin(0.1, 0.1), energy, safety=safety)
    response = loop.simulate(np.array([[2.0, 0.0], [0.0, 0.0]]), 5.0)
    assert response.status == "diverged"
    assert 0 in [int(p) for p in response.message.split("(")[1].split(")")[0].split(",")]


# The program of mode "cbf" ----------------------------------------------------------------------------------------


def test_one_barrier_is_corrected_along_its_gradient():
    rng = np.random.default_rng(0)
    x, energy, epsilon, gain = rng.uniform(-1, 1, (200, 2)), cg.Quadratic(np.eye(2), [3.0, 1.0]), 0.3, 1.5
    found = cg.SafetyFilter(DISC, gain).correct(energy, x, epsilon)
    h, slope = 2.25 - (x**2).sum(axis=1), -2 * x
    short = -((slope * -energy.gradient(x)).sum(axis=1) - 4 * epsilon + gain * h)
    square = (slope**2).sum(axis=1)
    expected = np.maximum(short, 0)[:, None] * slope / square[:, None]
    assert 50 < (short > 0).sum() < 150
    np.testing.assert_allclose(found.correction, expected, atol=1e-12 * np.abs(expected).max())
    np.testing.assert_allclose(found.multipliers[:, 0], np.maximum(short, 0) / square, rtol=1e-10, atol=1e-12)
    assert found.feasible.all()
    assert found.residual.max() < 1e-12


def test_the_sign_of_the_stochastic_term_changes_the_answer():
    """Δh = -4: with the wrong sign the drift would be allowed to point outward (a published toolbox had it so)."""
    point, gain, epsilon = np.array([[1.2, 0.0]]), 1.0, 0.25
    energy = cg.Quadratic(1e-9 * np.eye(2))  # hardly any drift of its own
    with_noise = cg.SafetyFilter(DISC, gain).correct(energy, point, epsilon)
    h = 2.25 - 1.44
    # -2.4 v - 4ε ≥ -h  →  v ≤ (h - 1)/2.4 < 0; with the other sign no correction would be needed
    assert with_noise.value[0, 0] == pytest.approx((h - 1) / 2.4, rel=1e-9)
    assert cg.SafetyFilter(DISC, gain).correct(energy, point, 0.0).correction[0, 0] == 0


def test_a_metric_enters_the_stochastic_term():
    epsilon = 0.1
    safety = cg.SafetyFilter(cg.BarrierFunction("1 - x**2 - 10*y**2", XY), 1.0)
    x = jnp.array([[0.3], [0.2]])
    found = jax.jit(lambda y: safety.program(jnp.zeros((2, 1)), y, 0.0, epsilon, np.array([2.0, 0.25])))(x)
    value = 1 - 0.09 - 10 * 0.04
    need = -(epsilon * (2.0 * -2 + 0.25 * -20) + value)
    slope = np.array([-0.6, -4.0])
    np.testing.assert_allclose(found.delta[:, 0], max(need, 0) * slope / (slope @ slope), rtol=1e-5)
    assert need > 0


@pytest.mark.slow
def test_a_constraint_at_work_makes_h_decay_at_the_gain():
    """With the drift far outward the program holds ḣ = -gain·h with equality: h(t) = h(0) e^{-gain t}."""
    gain, duration = 0.8, 2.0
    safety = cg.SafetyFilter(DISC, gain)
    energy = cg.Quadratic(np.eye(2), [100.0, 0.0])
    loop = cg.ClosedLoop(cg.GradientFlow(0.05, scheme="adaptive", tolerance=1e-8), energy, safety=safety)
    response = loop.simulate(np.array([[0.5, 0.0], [1.0, 0.0]]), duration, record=5, dtype=np.float64)
    for time, states in zip(response.time, response.states, strict=True):
        expected = (2.25 - np.array([0.25, 1.0])) * np.exp(-gain * time)
        np.testing.assert_allclose(safety.values(states)[:, 0], expected, rtol=1e-6)
    assert response.safety.active == 2 * 40


def test_a_moving_barrier_pushes():
    """x ≥ vt: while it is at work ẋ - v = -gain (x - vt). Without ∂h/∂t the wall would run over the particle."""
    speed, gain = 2.0, 3.0
    wall = cg.BarrierFunction("x - 2*t", ["x"], time="t")
    assert str(wall.derivative(["-x"])) == "-x - 2"
    safety = cg.SafetyFilter(wall, gain)
    energy = cg.Quadratic([[1.0]], [-50.0])  # pulls against the wall
    loop = cg.ClosedLoop(cg.GradientFlow(0.05, scheme="adaptive", tolerance=1e-8), energy, safety=safety)
    response = loop.simulate(np.array([[1.0]]), 1.5, record=4, dtype=np.float64)
    expected = speed * response.time + np.exp(-gain * response.time)
    np.testing.assert_allclose(response.states[:, 0, 0], expected, rtol=1e-6)
    assert response.safety.violations == 0


@pytest.mark.slow
def test_noise_does_not_cross_a_moving_barrier():
    wall = cg.BarrierFunction("x - t", ["x"], time="t")
    safety = cg.SafetyFilter(wall, 2.0)
    loop = cg.ClosedLoop(cg.Langevin(1.0, 0.05), cg.Quadratic([[1.0]]), safety=safety)
    response = loop.simulate(np.full((2000, 1), 0.1), 3.0, record=31)
    assert response.safety.violations == 0
    assert (response.states[1:, :, 0].astype(np.float64) >= response.time[1:, None] - 1e-6).all()


@pytest.mark.slow
def test_several_barriers_agree_with_another_solver():
    from scipy.optimize import nnls

    rng = np.random.default_rng(1)
    safety = cg.SafetyFilter(SETS["annulus"] + SETS["half-plane"], 0.7)
    start = rng.uniform(-2, 2, (400, 2))
    x = start[safety.contains(start)]
    energy, epsilon = cg.Quadratic(np.diag([1.0, 3.0]), [4.0, -3.0]), 0.2
    found = safety.correct(energy, x, epsilon)
    count = 0
    for k, point in enumerate(x):
        slopes = np.array([2 * point, -2 * point, [1.0, 0.5]])
        h = np.array([point @ point - 0.25, 4 - point @ point, point[0] + 0.5 * point[1] + 0.3])
        need = -(slopes @ -energy.gradient(point) + epsilon * np.array([4.0, -4.0, 0.0]) + 0.7 * h)
        # min ½|δ|², Aδ ≥ b  ⇔  min |[Aᵀ; bᵀ] λ - e|: the classical reduction to non-negative least squares
        stacked = np.vstack([slopes.T, need])
        residual = stacked @ nnls(stacked, np.array([0.0, 0.0, 1.0]))[0] - np.array([0.0, 0.0, 1.0])
        expected = -residual[:2] / residual[2]
        count += np.linalg.norm(expected) > 0
        np.testing.assert_allclose(found.correction[k], expected, atol=1e-7 * (1 + np.linalg.norm(expected)))
    assert count > 30


@pytest.mark.slow
def test_an_infeasible_program_is_counted_and_relaxed():
    """Walls that close upon each other faster than α allows: no δ serves both; the least violation is in the middle."""
    left = cg.BarrierFunction("x + 1 - t", ["x"], time="t")
    right = cg.BarrierFunction("1 - t - x", ["x"], time="t")
    safety = cg.SafetyFilter([left, right], 0.1)
    found = safety.correct(np.zeros((3, 1)), np.array([[0.0], [0.2], [-0.4]]), 0.0, 0.5)
    assert not found.feasible.any()
    # ḣ + α: ±δ - 1 + 0.1 (½ ± x) is least wrong in squares where both are equal: δ = -0.1 x
    np.testing.assert_allclose(found.correction[:, 0], [0.0, -0.02, 0.04], atol=1e-6)
    loop = cg.ClosedLoop(cg.GradientFlow(0.1), cg.Quadratic([[1.0]]), safety=safety)
    response = loop.simulate(np.array([[0.0], [0.3]]), 1.5, record=3)
    assert response.safety.infeasible > 0
    assert response.safety.infeasible_particles.tolist() == [0, 1]
    assert response.safety.violations >= 2 * 5  # the set is empty after t = 1
    assert 0.5 <= response.safety.worst_depth <= 1.1  # half the gap between the walls at least, at most all of it


def test_effort_multipliers_and_activity_of_a_constant_push():
    """A flow at the wall x ≥ 0 under the drift -2: δ = 2 at every step, λ = 2, ∫|δ|² dt = 4T."""
    safety = cg.SafetyFilter(cg.BarrierFunction("x", ["x"]), 1e-6)
    energy = cg.SymbolicEnergy("2*x", ["x"])
    loop = cg.ClosedLoop(cg.GradientFlow(0.01), energy, safety=safety)
    response = loop.simulate(np.array([[1e-3], [5e-4]]), 3.0, record=3)
    report = response.safety
    np.testing.assert_allclose(report.effort, 4 * 3.0, rtol=1e-5)
    np.testing.assert_allclose(report.multipliers, 2.0, rtol=1e-5)
    assert report.active_fraction == 1
    assert report.infeasible == 0
    assert report.kkt_residual < 1e-6
    assert report.mean_effort.value == pytest.approx(12.0, rel=1e-5)


@pytest.mark.slow
def test_long_sums_do_not_lose_their_end():
    """A million small terms in float32, summed plainly, would stop growing."""
    safety = cg.SafetyFilter(cg.BarrierFunction("x", ["x"]), 1e-6)
    loop = cg.ClosedLoop(cg.GradientFlow(1e-5), cg.SymbolicEnergy("2*x", ["x"]), safety=safety)
    response = loop.simulate(np.array([[1e-3]]), 10.0, record=2)
    np.testing.assert_allclose(response.safety.effort, 40.0, rtol=1e-5)


# Tubes ----------------------------------------------------------------------------------------------------------------


def test_a_tube_lets_particles_in_by_its_time():
    safety = cg.SafetyFilter(DISC, 2.0, tube=1.0)
    outside = cg.Gaussian([2.0, 1.0], 0.5 * np.eye(2)).sample(0, 2000)
    assert not safety.contains(outside).all()
    loop = cg.ClosedLoop(cg.Langevin(0.5, 0.02), cg.Quadratic(np.eye(2), [2.0, 0.0]), safety=safety)
    response = loop.simulate(outside, 2.0, record=101)
    assert response.safety.violations == 0
    depth = np.maximum(0, -(2.25 - (outside**2).sum(axis=1)))
    for time, states in zip(response.time, response.states, strict=True):
        level = -depth * max(0.0, 1 - time / 1.0) ** 2
        assert (2.25 - (states.astype(np.float64) ** 2).sum(axis=1) >= level - 1e-4).all()
    inside = [safety.contains(x).mean() for x in response.states]
    assert inside[0] < 0.7
    assert min(inside[51:]) == 1.0  # from t = 1 + one step on


@pytest.mark.slow
def test_a_tube_follows_its_closed_form_without_noise():
    """With the drift outward the flow rides at the level, which closes as (1 - t/T)²: h - level is 0 at the start."""
    gain, span = 2.0, 1.0
    safety = cg.SafetyFilter(cg.BarrierFunction("-x", ["x"]), gain, tube=span)
    loop = cg.ClosedLoop(
        cg.GradientFlow(0.02, scheme="adaptive", tolerance=1e-8), cg.Quadratic([[1.0]], [100.0]), safety=safety
    )
    response = loop.simulate(np.array([[3.0]]), 2.0, record=5, dtype=np.float64)
    expected = 3.0 * np.maximum(0, 1 - response.time / span) ** 2
    np.testing.assert_allclose(response.states[:, 0, 0], expected, atol=1e-5)


# The law inside -----------------------------------------------------------------------------------------------------

LOW, MEAN, SD = 0.4, 0.1, 0.8  # of a normal law cut at LOW
TRUNCATED = stats.truncnorm((LOW - MEAN) / SD, np.inf, loc=MEAN, scale=SD)


def cut_normal(mode, plant, **options):
    """Samples of the loop whose restricted Gibbs measure is the truncated normal law."""
    safety = cg.SafetyFilter(cg.BarrierFunction("x - 0.4", ["x"]), 1.0, mode=mode, **options)
    energy = cg.Quadratic([[plant.temperature / SD**2]], [MEAN])
    start = safety.restrict(cg.Gaussian([MEAN], [[SD**2]]))
    response = cg.ClosedLoop(plant, energy, safety=safety).simulate(start, 8.0, particles=20_000, record=2, key=3)
    return np.asarray(response.final, np.float64)[:, 0]


def agrees(x, first, second, errors=4.0, bias=0.0):
    for values, expected in ((x, first), (x**2, second)):
        error = values.std() / np.sqrt(len(values))
        assert abs(values.mean() - expected) < errors * error + bias, (values.mean(), expected, error)


@pytest.mark.parametrize("step", [pytest.param(0.05, marks=pytest.mark.slow), 0.6])
def test_metropolis_with_the_indicator_keeps_the_restricted_law_at_any_step(step):
    x = cut_normal("reflected", cg.Langevin(0.7, step, scheme="mala"))
    agrees(x, TRUNCATED.moment(1), TRUNCATED.moment(2))
    assert stats.kstest(x, TRUNCATED.cdf).pvalue > 1e-3


def test_kinetic_particles_that_turn_round_keep_the_restricted_law():
    x = cut_normal("reflected", cg.KineticLangevin(0.7, 1.0, 0.1))
    agrees(x, TRUNCATED.moment(1), TRUNCATED.moment(2), bias=2e-3)
    assert stats.kstest(x, TRUNCATED.cdf).pvalue > 1e-4


@pytest.mark.slow
def test_a_mirrored_step_is_of_first_order_and_a_projected_one_of_half():
    """The bias of the mean at h and h/4, against the truncated normal law: ratio 4, and 2."""

    def bias(step, **options):
        x = cut_normal("reflected", cg.Langevin(0.7, step), **options)
        return x.mean() - TRUNCATED.moment(1), x.std() / np.sqrt(len(x))

    mirror = [bias(h) for h in (0.4, 0.1)]
    project = [bias(h, correction="project") for h in (0.4, 0.1)]
    assert abs(mirror[0][0]) > 5 * mirror[0][1]
    assert abs(mirror[1][0]) < abs(mirror[0][0]) / 2.5 + 3 * mirror[1][1]
    assert 1.4 < project[0][0] / project[1][0] < 2.8
    assert abs(mirror[1][0]) < abs(project[1][0]) / 3


@pytest.mark.parametrize("scheme", ["euler", pytest.param("mala", marks=pytest.mark.slow)])
def test_reflection_in_a_metric_keeps_the_restricted_law(scheme):
    """Mirrored along K∇h. Along ∇h alone the tangential mean would be off: the noise of the two directions is tied."""
    metric = np.array([[2.0, 1.2], [1.2, 1.5]])
    safety = cg.SafetyFilter(cg.BarrierFunction("x - 0.2", XY), 1.0, mode="reflected")
    energy = cg.Quadratic(np.array([[1.0, 0.3], [0.3, 1.0]]))
    step = 0.02 if scheme == "euler" else 0.3
    loop = cg.ClosedLoop(cg.Langevin(0.5, step, scheme=scheme, metric=metric), energy, safety=safety)
    start = safety.restrict(cg.Gaussian([0.5, 0.0], 0.5 * np.eye(2)))
    x = np.asarray(loop.simulate(start, 8.0, particles=20_000, record=2).final, np.float64)
    covariance = 0.5 * np.linalg.inv(energy.precision)
    cut = stats.truncnorm(0.2 / np.sqrt(covariance[0, 0]), np.inf, scale=np.sqrt(covariance[0, 0]))
    agrees(x[:, 0], cut.moment(1), cut.moment(2), bias=0.01)
    slope = covariance[0, 1] / covariance[0, 0]
    second = slope**2 * cut.moment(2) + covariance[1, 1] - slope * covariance[0, 1]
    agrees(x[:, 1], slope * cut.moment(1), second, bias=0.01)


@pytest.mark.parametrize(
    "plant",
    [
        pytest.param(cg.Langevin(0.7, 0.02), id="euler", marks=pytest.mark.slow),
        pytest.param(cg.Langevin(0.7, 0.3, scheme="mala"), id="mala"),
    ],
)
@pytest.mark.parametrize("mu", [0.2, pytest.param(1.5, marks=pytest.mark.slow)])
def test_a_barrier_energy_has_its_explicit_law(plant, mu):
    """∝ exp(-E/ε) (x - 0.4)^{μ/ε}, by quadrature; below and above μ = ε, where the border is no longer reached."""
    x = cut_normal("barrier_energy", plant, mu=mu)

    def weight(y):
        return np.exp(-((y - MEAN) ** 2) / (2 * SD**2)) * (y - LOW) ** (mu / 0.7)

    total, first, second = (integrate.quad(lambda y, k=k: y**k * weight(y), LOW, 12)[0] for k in range(3))
    bias = 0.02 if plant.scheme == "euler" else 0.0
    agrees(x, first / total, second / total, bias=bias)


@pytest.mark.slow
def test_continuation_ends_at_the_last_mu():
    schedule = lambda t: 0.05 + 2.0 * jnp.exp(-3.0 * t)  # noqa: E731
    for scheme, step in (("mala", 0.2), ("euler", 0.01)):
        x = cut_normal("barrier_energy", cg.Langevin(0.7, step, scheme=scheme), mu=schedule)

        def weight(y):
            return np.exp(-((y - MEAN) ** 2) / (2 * SD**2)) * (y - LOW) ** (0.05 / 0.7)

        total, first, second = (integrate.quad(lambda y, k=k: y**k * weight(y), LOW, 12)[0] for k in range(3))
        agrees(x, first / total, second / total, bias=0.0 if scheme == "mala" else 0.02)


def test_the_barrier_energy_tends_to_the_restricted_measure_on_a_grid():
    energy = cg.Quadratic(np.diag([1.0, 2.0]), [0.8, 0.0])
    grid = cg.FokkerPlanckGrid([(-1.6, 1.6)] * 2, (80, 80), 0.5)
    walled = cg.SafetyFilter(DISC, 1.0, mode="reflected").energy(energy)
    kls = []
    for mu in (0.5, 0.25, 0.125, 0.0625):
        barrier = cg.SafetyFilter(DISC, 1.0, mode="barrier_energy", mu=mu).energy(energy)
        kls.append(grid.kl(grid.gibbs(barrier), walled))
    ratios = np.array(kls[:-1]) / kls[1:]
    assert (ratios > 2.5).all()  # KL is of second order in μ: ratios tend to 4
    assert 3.0 < ratios[-1] < 4.5


def test_kl_falls_along_the_walled_loop_on_a_grid():
    energy = cg.Quadratic(np.diag([1.0, 2.0]), [0.8, 0.0])
    for mode in ("reflected", "barrier_energy"):
        safety = cg.SafetyFilter(DISC, 1.0, mode=mode, mu=0.3)
        grid = cg.FokkerPlanckGrid([(-1.6, 1.6)] * 2, (40, 40), 0.5)
        start = np.where(safety.contains(grid.cells.reshape(-1, 2)).reshape(40, 40) & (grid.cells[..., 0] < 0), 1.0, 0)
        response = cg.ClosedLoop(grid, energy, safety=safety).simulate(start / start.sum(), 4.0, record=20)
        assert (np.diff(response.kl) < 1e-12).all()
        assert response.kl[-1] < 1e-3 * response.kl[0]
        verdict = cg.KLLyapunov(response.energy_block, 0.5).verify(cg.ClosedLoop(grid, energy, safety=safety))
        assert verdict.status is cg.Status.PROVED
        fall = -np.diff(np.log(response.kl)) / np.diff(response.time)
        assert (fall > 0.98 * verdict.rate).all()


@pytest.mark.slow
def test_metropolis_samples_are_as_near_as_fresh_ones():
    energy = cg.GaussianMixture([[1.0, 0.0], [-1.0, 0.8]], 0.3)
    safety = cg.SafetyFilter(SETS["annulus"], 1.0, mode="reflected")
    loop = cg.ClosedLoop(cg.Langevin(1.0, 0.1, scheme="mala"), energy, safety=safety)
    response = loop.simulate(safety.restrict(wide(2)), 40.0, particles=4000, record=2)
    shift = response.shift(1500)
    assert shift.w2.value < 1.1 * shift.floor.value + 2 * shift.floor.error
    assert abs(shift.kl.value) < 4 * shift.kl.error
    assert "exact" in shift.samples


@pytest.mark.slow
@pytest.mark.parametrize("gain", [pytest.param(2.0, marks=pytest.mark.slow), 10.0])
def test_the_filter_shifts_less_than_the_naive_projection(gain):
    """At equal step, in KL; at a moderate gain in W₂ too."""
    energy = cg.Quadratic(np.eye(2), [1.2, 0.0])
    shifts = []
    for options in ({"gain": gain}, {"mode": "reflected", "correction": "project"}):
        safety = cg.SafetyFilter(cg.BarrierFunction("1 - x**2 - y**2", XY), **options)
        loop = cg.ClosedLoop(cg.Langevin(0.5, 0.1), energy, safety=safety)
        response = loop.simulate(safety.restrict(cg.Gaussian([0.5, 0.0], 0.2 * np.eye(2))), 8.0, record=2)
        shifts.append(response.shift(1000))
    cbf, projected = shifts
    assert cbf.kl.value < 0.3 * projected.kl.value
    if gain > 5:
        assert cbf.w2.value < 0.7 * projected.w2.value


# Inputs of control-affine systems -------------------------------------------------------------------------------------


def test_adaptive_cruise_control_through_python_control():
    """Ames, Grizzle and Tabuada, CDC 2014: a car that follows another keeps its distance whatever its driver asks."""
    import control as ct

    mass, drag, lead, gravity, decel = 1650.0, ("0.1", "5", "0.25"), 14.0, 9.81, 0.3
    barrier = cg.BarrierFunction("z - 1.8*v - (14 - v)**2/(2*0.3*9.81)", ["x", "v", "z"])
    assert barrier(np.array([0.0, 20.0, 100.0])) == pytest.approx(57.883792, abs=5e-7)
    resistance = f"({drag[0]} + {drag[1]}*v + {drag[2]}*v**2)"
    f, g = ["v", f"-{resistance}/1650", "14 - v"], [0, 1 / mass, 0]
    safety = cg.SafetyFilter(barrier, 1.0)
    limits = cg.Box([-decel * mass * gravity], [decel * mass * gravity])
    kept_input = safety.inputs(f, g, limits)

    def update(t, x, u, params):
        wanted = np.clip(mass * 1.0 * (24.0 - x[1]), -decel * mass * gravity, decel * mass * gravity)
        push = kept_input(x, [wanted]).value[0, 0] if params["filtered"] else wanted
        drag_now = 0.1 + 5 * x[1] + 0.25 * x[1] ** 2
        return np.array([x[1], (push - drag_now) / mass, lead - x[1]])

    system = ct.NonlinearIOSystem(update, None, inputs=0, outputs=3, states=3, params={"filtered": True})
    times = np.linspace(0, 30, 61)
    kept = ct.input_output_response(system, times, 0, [0.0, 20.0, 100.0], solve_ivp_kwargs={"rtol": 1e-6})
    free = ct.input_output_response(
        system, times, 0, [0.0, 20.0, 100.0], params={"filtered": False}, solve_ivp_kwargs={"rtol": 1e-6}
    )
    assert barrier(kept.states.T).min() > -1e-4
    assert barrier(free.states.T).min() < -10
    assert kept.states[1, -1] == pytest.approx(lead, abs=0.2)  # it ends behind the leader


@pytest.mark.slow
def test_an_input_is_filtered_as_by_its_closed_form():
    """ẋ = -x + u, h = 1 - x: u ≤ x + gain (1 - x)."""
    safety = cg.SafetyFilter(cg.BarrierFunction("1 - x", ["x"]), 2.0)
    x = np.linspace(-1, 0.99, 7)[:, None]
    found = safety.inputs(["-x"], [1])(x, [5.0])
    np.testing.assert_allclose(found.value, np.minimum(5.0, x + 2.0 * (1 - x)), rtol=1e-12)
    held = safety.inputs(["-x"], [1], cg.Box([-1], [1.3]))(x, [5.0])
    np.testing.assert_allclose(held.value, np.minimum(1.3, x + 2.0 * (1 - x)), rtol=1e-9)
    torn = safety.inputs(["-x"], [1], cg.Box([3], [4]))(np.array([[0.9]]), [5.0])
    assert not torn.feasible[0]
    assert 3.0 <= torn.value[0, 0] <= 4.0


@pytest.mark.slow
def test_a_filtered_loop_in_a_metric_runs():
    # of the second barrier there is no formula
    network = cg.BarrierFunction(lambda x: 2.25 - jnp.sum(jnp.where(x > 0, 1.0, 2.0) * x**2), XY)
    for barrier, metric in ((DISC, [1.0, 2.0]), (network, [[2.0, 0.5], [0.5, 1.0]])):
        safety = cg.SafetyFilter(barrier, 5.0)
        loop = cg.ClosedLoop(cg.Langevin(0.5, 0.05, metric=metric), cg.Quadratic(np.eye(2), [1.5, 0.0]), safety=safety)
        response = loop.simulate(np.zeros((500, 2)), 2.0, record=11)
        assert response.safety.violations == 0
        assert safety.contains(response.states.reshape(-1, 2)).all()
        assert response.safety.active > 0


def test_a_gain_that_is_too_low_is_warned_of():
    """ε·4 of curvature at the centre against gain·9/4."""
    loop = cg.ClosedLoop(cg.Langevin(1.0, 0.05), cg.Quadratic(np.eye(2)), safety=cg.SafetyFilter(DISC, 1.7))
    # raised, as all warnings in tests, before anything runs
    with pytest.raises(UserWarning, match=r"gain is too low for .* at temperature 1: .* = 3\.83 is less than .* = 4"):
        loop.simulate(np.zeros((10, 2)), 0.1)


def test_a_long_step_is_mirrored_through_the_ball():
    """Along its ray, at both ends, as often as it takes; nothing piles up on the border."""
    from ctrlgen.constraint import Constraint
    from ctrlgen.field import Field

    ball = Constraint(Field("1 - x**2 - y**2", XY))
    for s, expected in ((1.5, 0.5), (2.5, -0.5), (3.5, -0.5), (4.5, 0.5), (5.25, 0.75)):
        x = jnp.array([[0.6 * s], [0.8 * s]])
        out = ball.returned(x, 0.0, jnp.zeros(1), jnp.zeros(1), True)
        np.testing.assert_allclose(np.asarray(out)[:, 0], [0.6 * expected, 0.8 * expected], atol=1e-4)


def test_a_trained_energy_generates_inside_and_on_a_grid():
    energy = cg.load_energy("eight_gaussians")
    safety = cg.SafetyFilter(cg.BarrierFunction("x + 1", XY), 1.0, mode="reflected")
    samples = cg.generate(energy, 500, safety=safety)
    assert samples.shape == (500, 2)
    assert (samples[:, 0] >= -1).all()
    grid = cg.FokkerPlanckGrid([(-12, 12)] * 2, (48, 48), 1.0)
    response = cg.ClosedLoop(grid, energy, safety=safety).simulate(safety.restrict(energy.source), 1.0, record=3)
    assert response.density[:, grid.cells[..., 0] < -1].sum() == 0
    assert response.safety is None


def test_a_start_that_is_outside_is_never_taken_for_rounding():
    """At large coordinates, where rounding is coarse, it is refused."""
    eighth = cg.SafetyFilter(cg.BarrierFunction("1 - (x - 5)**8 - (y - 5)**8", XY), mode="reflected")
    ball = cg.SafetyFilter(cg.Ball([500.0, 500.0], 1.0), mode="reflected")
    energy = cg.Quadratic(np.eye(2), [500.0, 500.0])
    for safety, start in ((eighth, [7.0, 5.0]), (ball, [504.0, 500.0]), (ball, [501.0 + 1e-9, 500.0])):
        for dtype in (np.float32, np.float64):
            loop = cg.ClosedLoop(cg.Langevin(0.1, 0.01), energy, safety=safety)
            with pytest.raises(ValueError, match="initial must lie in the safe set"):
                loop.simulate(np.array([start]), 0.05, dtype=dtype)


@pytest.mark.slow
def test_a_start_that_its_cast_moved_outside_is_moved_back():
    ball = cg.SafetyFilter(cg.Ball([500.0, 500.0], 1.0), mode="reflected")
    loop = cg.ClosedLoop(cg.Langevin(0.1, 0.01), cg.Quadratic(np.eye(2), [500.0, 500.0]), safety=ball)
    angles = np.linspace(0, 2 * np.pi, 500)
    border = 500 + (1 - 1e-9) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    response = loop.simulate(border, 0.5, record=6)
    assert response.safety.violations == 0
    assert ball.contains(response.states.reshape(-1, 2)).all()
    tiny = cg.SafetyFilter(cg.Ball([100_000.004] * 2, 1e-3), mode="reflected")
    with pytest.raises(ValueError, match="dtype must resolve the safe set"):
        loop_with(tiny).simulate(np.full((3, 2), 100_000.004), 0.5)


@pytest.mark.parametrize(
    ("centre", "power"),
    [(1000.0, 2), *(pytest.param(*c, marks=pytest.mark.slow) for c in ((10.0, 4), (20.0, 6), (100.0, 2)))],
)
def test_rounding_takes_hardly_anything_from_a_set_far_from_the_origin(centre, power):
    """Second moment of the uniform law on |x|^p + |y|^p ≤ 1, by quadrature; a crude bound would halve the set."""
    text = f"1 - (x - {centre:g})**{power} - (y - {centre:g})**{power}"
    safety = cg.SafetyFilter(cg.BarrierFunction(text, XY), mode="reflected")
    loop = cg.ClosedLoop(
        cg.Langevin(0.3, 0.05, scheme="mala"), cg.Quadratic(1e-4 * np.eye(2), [centre] * 2), safety=safety
    )
    response = loop.simulate(np.full((10_000, 2), centre), 10.0, record=2)
    area = integrate.quad(lambda x: (1 - x**power) ** (1 / power), 0, 1)[0]
    second = integrate.quad(lambda x: x**2 * (1 - x**power) ** (1 / power), 0, 1)[0]
    values = ((response.final.astype(np.float64) - centre) ** 2).sum(axis=1)
    assert abs(values.mean() - 2 * second / area) < 5 * values.std() / 100
    assert safety.contains(response.final).all()


@pytest.mark.parametrize("mode", ["reflected", pytest.param("barrier_energy", marks=pytest.mark.slow)])
def test_metropolis_keeps_the_set_when_a_schedule_ends_at_no_temperature(mode):
    safety = cg.SafetyFilter(cg.Box([-1], [1]), mode=mode)
    energy = cg.Quadratic([[1.0]], [3.0])
    loop = cg.ClosedLoop(
        cg.Langevin(0.5, 0.05, scheme="mala"), energy, safety=safety, schedule=lambda t: jnp.maximum(1 - t, 0.0)
    )
    response = loop.simulate(np.zeros((200, 1)), 2.0)
    assert response.safety.violations == 0
    assert (np.abs(response.states) <= 1).all()


@pytest.mark.parametrize("mu", [pytest.param(0.1, marks=pytest.mark.slow), 0.3])
def test_kinetic_particles_have_the_law_of_the_barrier(mu):
    """∝ e^{-5x} (x (2 - x))^μ on [0, 2], by quadrature: a barrier that only pushed would leave a bias at any step."""
    safety = cg.SafetyFilter(cg.Box([0], [2]), mode="barrier_energy", mu=mu)
    loop = cg.ClosedLoop(cg.KineticLangevin(1.0, 2.0, 0.02), cg.SymbolicEnergy("5*x", ["x"]), safety=safety)
    start = np.random.default_rng(0).uniform(0.05, 0.5, (50_000, 1))
    x = loop.simulate(start, 8.0, record=2).final[:, 0].astype(np.float64)

    def weight(y):
        return np.exp(-5 * y) * (y * (2 - y)) ** mu

    total, first, second = (integrate.quad(lambda y, k=k: y**k * weight(y), 0, 2)[0] for k in range(3))
    agrees(x, first / total, second / total, bias=2e-4)


@pytest.mark.slow
def test_functions_without_a_formula_are_watched_where_the_particles_are():
    def h(x):
        return x[1] - jnp.where(x[0] > 0, jnp.sin(0.3 * x[0]), 0.0)

    safety = cg.SafetyFilter(cg.BarrierFunction(h, XY), mode="reflected", correction="project")
    assert safety.constraints.parts[0].field.expr is None
    rng = np.random.default_rng(0)
    start = np.stack([1e4 + rng.normal(size=2000), np.full(2000, 2.0)], axis=1)
    loop = cg.ClosedLoop(cg.Langevin(1.0, 0.01), cg.Quadratic(np.eye(2), [1e4, -3.0]), safety=safety)
    response = loop.simulate(start, 1.0, record=11)
    seen = sum(int((safety.values(x) < 0).sum()) for x in response.states[1:])
    assert response.safety.violations >= seen
    assert seen == 0


@pytest.mark.slow
def test_shift_is_not_measured_where_it_is_infinite_or_at_another_temperature():
    outside = cg.Gaussian([2.0, 0.0], 0.1 * np.eye(2))
    tube = cg.SafetyFilter(DISC, 5.0, tube=5.0)
    loop = cg.ClosedLoop(cg.Langevin(0.5, 0.05), cg.Quadratic(np.eye(2)), safety=tube)
    with pytest.raises(ValueError, match=r"shift is infinite: .* particles are outside"):
        loop.simulate(outside, 0.5, particles=200, record=2).shift(100)
    walls = cg.SafetyFilter(DISC, mode="reflected")
    cold = cg.ClosedLoop(
        cg.Langevin(1.0, 0.01, scheme="mala"), cg.Quadratic(np.eye(2)), safety=walls,
        schedule=lambda t: jnp.where(t < 0.01, 1.0, 0.05),
    )  # fmt: skip
    shift = cold.simulate(walls.restrict(wide(2)), 3.0, particles=4000, record=2).shift(500)
    assert abs(shift.kl.value) < 5 * shift.kl.error
    assert "DistributionShift: KL" in repr(shift)


def test_steep_barriers_and_energies_are_read():
    for text in ("2 - x**60 - y", "1 - exp(50*x) - y", "1 - x**50/3 - y"):
        cg.SafetyFilter(cg.BarrierFunction(text, XY))  # |∇h| ≥ 1 everywhere: nothing vanishes on the border
    safety = cg.SafetyFilter(cg.SymbolicEnergy("1 - x**2", ["x"]), 1.0)
    assert safety.contains([[0.5], [1.5]]).tolist() == [True, False]


# Reports ----------------------------------------------------------------------------------------------------------


def test_not_recorded_is_not_zero():
    safety = cg.SafetyFilter(DISC, 1.0)
    energy = cg.Quadratic(np.eye(2), [1.5, 0.0])
    free = cg.ClosedLoop(cg.Langevin(1.0, 0.05), energy).simulate(np.zeros((500, 2)), 5.0, record=6)
    assert free.safety is None
    seen = safety.inspect(free)
    assert seen.looked == 5 * 500
    worst = 2.25 - (free.states[1:].astype(float) ** 2).sum(axis=2)
    assert seen.violations == (worst < 0).sum() > 100
    assert seen.worst_depth == pytest.approx(-worst.min())
    assert seen.violation_rate == seen.violations / seen.looked
    assert seen.effort is seen.multipliers is seen.active_fraction is seen.corrected is None
    assert "not recorded" in repr(cg.SafetyReport(mode=None, looked=0, violations=None, worst_depth=None, least=None))
    from dataclasses import replace

    nothing = safety.inspect(replace(free, time=free.time[:1], snapshots=free.snapshots[:1]))
    assert nothing.violations is None
    assert nothing.violation_rate is None


def test_the_report_does_not_depend_on_how_the_run_is_cut():
    safety = cg.SafetyFilter(SETS["annulus"], 2.0)
    loop = cg.ClosedLoop(cg.Langevin(1.0, 0.05), cg.Quadratic(np.eye(2), [2.0, 0.0]), safety=safety)
    start = safety.restrict(wide(2)).sample(0, 3000)
    a, b = (loop.simulate(start, 2.0, record=k, key=5) for k in (2, 41))
    assert (a.final == b.final).all()
    assert a.safety.active == b.safety.active
    assert a.safety.corrected == b.safety.corrected
    np.testing.assert_allclose(a.safety.effort, b.safety.effort, rtol=1e-6)


@pytest.mark.slow
def test_the_same_key_gives_the_same_particles_and_an_idle_filter_changes_nothing():
    far = cg.SafetyFilter(cg.BarrierFunction("1e6 - x**2 - y**2", XY), 5.0)
    plant, energy, start = cg.Langevin(1.0, 0.05), cg.Quadratic(np.eye(2)), np.zeros((300, 2))
    free = cg.ClosedLoop(plant, energy).simulate(start, 2.0, key=9, record=2).final
    kept = cg.ClosedLoop(plant, energy, safety=far).simulate(start, 2.0, key=9, record=2)
    np.testing.assert_allclose(kept.final, free, rtol=1e-5, atol=1e-6)
    assert kept.safety.active == kept.safety.corrected == 0


# Bad input --------------------------------------------------------------------------------------------------------

QUADRATIC = cg.Quadratic(np.eye(2))


def loop_with(safety, plant=None, energy=QUADRATIC):
    return cg.ClosedLoop(plant or cg.Langevin(1.0, 0.1), energy, safety=safety)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cg.SafetyFilter(DISC, 0.0), "gain must be positive and finite; got 0.0"),
        (lambda: cg.SafetyFilter(DISC, -1), "gain must be positive"),
        (lambda: cg.SafetyFilter(DISC, "h**2"), "gain must not decrease"),
        (lambda: cg.SafetyFilter(DISC, 1.0, mode="clip"), "mode must be one of 'cbf', 'barrier_energy', 'reflected'"),
        (lambda: cg.SafetyFilter(DISC, 1.0, mode="barrier_energy", mu=0), "mu must be positive"),
        (lambda: cg.SafetyFilter(DISC, 1.0, mode="reflected", tube=1.0), "tube must be omitted"),
        (lambda: cg.SafetyFilter(DISC, 1.0, tube=-1.0), "tube must be positive"),
        (lambda: cg.SafetyFilter(DISC, 1.0, correction="clip"), "correction must be 'mirror' or 'project'"),
        (lambda: cg.SafetyFilter([], 1.0), "barriers must be at least one"),
        (lambda: cg.SafetyFilter(cg.Ball([0, 0], 1) | cg.Ball([3, 0], 1), 1.0), "is a union"),
        (lambda: cg.SafetyFilter([DISC, cg.BarrierFunction("x", ["x"])], 1.0), "functions of the same states"),
        (lambda: cg.SafetyFilter(cg.BarrierFunction("-1 - x**2 - y**2", XY), 1.0), "appears to be empty"),
        (lambda: cg.SafetyFilter([DISC, cg.BarrierFunction("x - 2", XY)], 1.0), "appears to be empty"),
        (
            lambda: cg.SafetyFilter(cg.BarrierFunction(lambda x: -1 - jnp.sum(x**2) - jnp.where(x[0] > 0, 0, 0.1), XY)),
            "no point",
        ),
        (lambda: cg.SafetyFilter(cg.BarrierFunction("(1 - x**2 - y**2)**3", XY), 1.0), "h = 0 and ∇h = 0"),
        (lambda: cg.SafetyFilter(cg.BarrierFunction("x*y", XY), 1.0), r"h = 0 and ∇h = 0 at about \[-?0"),
        (
            lambda: loop_with(cg.SafetyFilter(cg.BarrierFunction("x", ["x"]), 1.0)),
            "must have one dimension; the barriers have 1, the energy 2",
        ),
        (lambda: loop_with(cg.SafetyFilter(DISC, 1.0), cg.Langevin(1.0, 0.1, scheme="mala")), "no Metropolis ratio"),
        (
            lambda: loop_with(cg.SafetyFilter(DISC, 1.0), cg.KineticLangevin(1.0, 1.0, 0.1)),
            "no drift acts on positions",
        ),
        (lambda: loop_with(cg.SafetyFilter(DISC, 1.0), cg.GaussianPlant(1.0)), "safety must be None for GaussianPlant"),
        (
            lambda: loop_with(cg.SafetyFilter(DISC, 1.0), cg.FokkerPlanckGrid([(-2, 2)] * 2, (10, 10), 1.0)),
            "'reflected' or 'barrier_energy'",
        ),
        (
            lambda: loop_with(
                cg.SafetyFilter(DISC, 1.0, mode="reflected"), cg.Langevin(1.0, 0.1, skew=[[0, 1], [-1, 0]])
            ),
            "skew must be None",
        ),
        (
            lambda: loop_with(cg.SafetyFilter(DISC, 1.0, mode="reflected"), cg.GradientFlow(0.1, scheme="adaptive")),
            "does not stop at walls",
        ),
        (
            lambda: cg.SafetyFilter(cg.BarrierFunction("x - t", ["x"], time="t"), 1.0, mode="reflected"),
            "barriers must be at rest",
        ),
        (lambda: cg.BarrierFunction("x - t", ["x"], time="t").verify(["-x"]), "Make the time a state"),
        (lambda: cg.BarrierFunction("x - t", ["x"], time="t")(np.zeros(1)), "time must be given"),
        (lambda: cg.SafetyFilter(DISC, 1.0).correct(QUADRATIC, np.zeros((3, 1))), r"x must be \(2,\)"),
        (lambda: cg.SafetyFilter(DISC, 1.0).correct(QUADRATIC, np.zeros((3, 2)), -1.0), "temperature must be"),
        (lambda: cg.SafetyFilter(DISC, 1.0).inputs(["0", "0"], [1, 0])(np.zeros(2), [1.0, 2.0]), "u must be"),
        (lambda: cg.Polytope([[1, 0], [0, 0]], [1, 1]), "normals must have no zero row"),
        (lambda: cg.Polytope([[1, 0]], [1, 1]), "offsets must be 1 numbers"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_is_no_barrier_is_refused():
    with pytest.raises(TypeError, match="barriers must be BarrierFunction objects or sets"):
        cg.SafetyFilter("1 - x**2", 1.0)
    with pytest.raises(TypeError, match="safety must be a SafetyFilter or None"):
        cg.ClosedLoop(cg.Langevin(1.0, 0.1), QUADRATIC, safety=DISC)


def test_a_start_outside_is_refused_with_its_particle():
    start = np.zeros((5, 2))
    start[3] = [2.0, 0.0]
    with pytest.raises(
        ValueError, match=r"initial must lie in the safe set; 1 of 5 particles do not, the worst is particle 3 .* -1.75"
    ):
        loop_with(cg.SafetyFilter(DISC, 1.0)).simulate(start, 1.0)
    with pytest.raises(ValueError, match="hardly any of the distribution is in the safe set"):
        cg.SafetyFilter(DISC, 1.0).restrict(cg.Gaussian([50.0, 0.0], np.eye(2))).sample(0, 10)


def test_rules_and_measures_that_do_not_know_walls_say_so():
    safety = cg.SafetyFilter(DISC, 1.0, mode="reflected")
    loop = loop_with(safety, cg.Langevin(1.0, 0.05, scheme="mala"))
    for rule in (cg.stopping.KLBelow(0.1), cg.stopping.APriori(0.1), cg.stopping.SteinResidual(z=2.0)):
        with pytest.raises(ValueError, match="rests on the law of unfiltered steps"):
            loop.simulate(np.zeros((500, 2)), 1.0, stop=rule)
    response = loop.simulate(np.zeros((500, 2)), 1.0, record=3)
    with pytest.raises(ValueError, match="rests on the law of unfiltered steps"):
        cg.stopping.KLBelow(0.1).verify(response)
    with pytest.raises(ValueError, match="has a term at walls"):
        response.dissipation  # noqa: B018
    with pytest.raises(ValueError, match="not estimated behind walls"):
        cg.measure.stein_residual(response.final, response.energy_block, 1.0)
    with pytest.raises(ValueError, match="not defined behind walls"):
        cg.KLLyapunov(response.energy_block, 1.0).derivative(cg.Gaussian([0.0, 0.0], 0.1 * np.eye(2)))
    free = cg.ClosedLoop(cg.Langevin(1.0, 0.05), QUADRATIC).simulate(np.zeros((100, 2)), 0.5)
    with pytest.raises(ValueError, match="shift needs a run under a safety filter"):
        free.shift()


@pytest.mark.slow
def test_a_rule_that_needs_no_law_stops_behind_walls():
    loop = loop_with(cg.SafetyFilter(DISC, 1.0, mode="reflected"), cg.Langevin(1.0, 0.05, scheme="mala"))
    stopped = loop.simulate(np.zeros((2000, 2)), 20.0, stop=cg.stopping.FreeEnergyPlateau(), record=11)
    assert stopped.status == "stopped"
