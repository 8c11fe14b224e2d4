"""A priori stopping: the theorem's bounds against the exact law of the Euler scheme, which they may never undercut."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import ctrlgen as cg
from ctrlgen.certify.euler_theorem import Constants, constants_of, floor_at, proved_bound, steps_needed
from ctrlgen.certify.stopping import APriori
from ctrlgen.energies.trained import TrainedEnergy
from ctrlgen.plants.gaussian import GaussianPlant

BOUNDS = ["vempala-wibisono", "sharp"]
LINE = cg.Quadratic([[1.0]])


def problem(rng):
    """A quadratic of condition number up to 1000 in up to 20 dimensions, its temperature, and a Gaussian start."""
    d, temperature = int(rng.integers(1, 21)), 10 ** rng.uniform(-1, 1)
    rates = np.exp(rng.uniform(0, 3 * np.log(10), d)) if rng.random() < 0.5 else np.exp(rng.uniform(0, 1, d))
    rates *= 10 ** rng.uniform(-1, 1)
    basis = np.linalg.qr(rng.normal(size=(d, d)))[0]
    precision = (basis * rates) @ basis.T
    energy = cg.Quadratic((precision + precision.T) / 2, rng.normal(size=d))
    spread = temperature / np.exp(rng.uniform(np.log(rates.min()), np.log(rates.max())))
    return energy, temperature, cg.Gaussian(3 * rng.uniform() * rng.normal(size=d), spread * np.eye(d))


def constants(alpha, smoothness, dim, temperature=1.0, upper=None):
    return Constants(alpha, smoothness, smoothness if upper is None else upper, temperature, dim, ())


@pytest.mark.slow
def test_never_early_on_200_quadratics():
    """KL of the exact law at the stop is at most δ, every time, at the step of the plan and at shorter ones."""
    rng = np.random.default_rng(0)
    for number in range(200):
        energy, temperature, start = problem(rng)
        delta, bound = 10 ** rng.uniform(-2.5, 0.0), BOUNDS[number % 2]
        moments = {"initial_mean": start.mean, "initial_covariance": start.covariance}
        plan = APriori(delta, bound=bound).plan(energy, temperature, **moments)
        shorter = plan.step * 10 ** rng.uniform(-1.5, 0)
        for p in (plan, APriori(delta, bound=bound).plan(energy, temperature, step=shorter, **moments)):
            law = GaussianPlant(temperature).ula(energy, start, p.step, p.steps)
            kl = GaussianPlant(temperature).kl(law, energy)
            assert kl <= p.bound * (1 + 1e-9)  # the float value of KL is not exact
            assert p.bound <= delta
            assert p.verdict.status is cg.Status.PROVED
            if number % 10 == 0:
                assert p.verdict.recheck()


def test_the_whole_curve_is_below_the_bound_for_an_energy_that_is_not_quadratic():
    """KL_k of the Euler scheme by quadrature of its transition kernel, against both bounds at every k."""
    energy = cg.Quadratic([[1.0]]) + cg.SymbolicEnergy("0.3*sin(2*x)", ["x"])
    c = constants_of(energy, 1.0)
    x = np.linspace(-9, 9, 1801)
    width, potential = x[1] - x[0], np.asarray(energy(x[:, None]))
    gibbs = np.exp(-potential) / (np.exp(-potential).sum() * width)
    for step in (0.02, 0.1):
        middle = x - step * np.asarray(energy.gradient(x[:, None]))[:, 0]
        kernel = np.exp(-((x[:, None] - middle) ** 2) / (4 * step)) / np.sqrt(4 * np.pi * step)
        law = np.exp(-((x - 2.0) ** 2) / 0.5) / np.sqrt(0.5 * np.pi)
        kl = lambda p: float(np.sum(p * np.log(np.maximum(p, 1e-300) / gibbs)) * width)  # noqa: E731
        first = kl(law)
        for k in range(1, 80):
            law = kernel @ law * width
            assert law.sum() * width == pytest.approx(1, abs=1e-6)
            for bound in BOUNDS:
                assert kl(law) <= proved_bound(bound, c, step, k, first)
    assert proved_bound("sharp", c, 0.02, 200, first) < 0.25  # and it says something: 2.2 at the start


def test_published_bound_is_the_theorem():
    c = constants(0.7, 3.0, 4, temperature=0.5)
    alpha, smooth = 0.7, 3.0 / 0.5
    for h in (1e-4, 5e-3):
        eta = 0.5 * h
        for k in (0, 10, 5000):
            expected = np.exp(-alpha * eta * k) * 2.5 + 8 * eta * 4 * smooth**2 / alpha
            assert proved_bound("vempala-wibisono", c, h, k, 2.5) == pytest.approx(expected, rel=1e-12)
    limit = alpha / (4 * smooth**2) / 0.5
    assert np.isfinite(proved_bound("vempala-wibisono", c, limit * 0.999, 1, 2.5))
    assert proved_bound("vempala-wibisono", c, limit * 1.001, 1, 2.5) == np.inf


@pytest.mark.parametrize(
    ("alpha", "smooth", "dim", "h"), [(1.0, 1.0, 1, 0.02), (0.3, 2.0, 7, 0.01), (1.0, 30.0, 3, 1e-4)]
)
@pytest.mark.parametrize("size", [1.0, 4.0])
def test_sharp_bound_is_the_solution_of_its_differential_inequality(alpha, smooth, dim, h, size):
    """√H after one step from above the floor, by a numerical solution of y' = -αy + √(α/2) S(t); not far above it."""
    temperature, upper = 1.7, 0.8 * smooth
    c = constants(alpha, smooth, dim, temperature, upper)
    rough, steep, eta = smooth / temperature, upper / temperature, temperature * h
    y0 = size * math.sqrt(floor_at("sharp", c, h))

    def slope(t, y):
        s = rough * np.sqrt(2 * t * dim + t**2 * dim * steep) + t * rough**2 * np.sqrt(2 / alpha) * y0
        return -alpha * y + np.sqrt(alpha / 2) * s

    # the root at t = 0 is smooth in τ = √t
    solved = solve_ivp(lambda t, y: 2 * t * slope(t * t, y), (0, np.sqrt(eta)), [y0], rtol=1e-10, atol=1e-14)
    exact, shown = float(solved.y[0, -1]), math.sqrt(proved_bound("sharp", c, h, 1, y0**2))
    assert exact <= shown * (1 + 1e-12)
    # what is given away, e^{-α(η-t)} ≤ 1 and √(1+u) ≤ 1 + u/2, is of second order in η
    assert shown - exact <= (0.6 * alpha * eta + 0.01) * alpha * eta * y0
    # where the linear equation may be used: Y ≥ S/√(8α) at the end of the step
    s = rough * np.sqrt(2 * eta * dim + eta**2 * dim * steep) + eta * rough**2 * np.sqrt(2 / alpha) * y0
    assert y0 * np.exp(-alpha * eta) >= s / np.sqrt(8 * alpha) * (1 - 1e-12)


def test_sharp_bound_outside_its_range():
    c = constants(1.0, 1.0, 1)
    assert np.isfinite(proved_bound("sharp", c, 0.7, 10, 1.0))
    assert proved_bound("sharp", c, 1.2, 10, 1.0) == np.inf  # e^{-αη} < L²η/(2α)
    # a start below the floor is raised to it, and stays there
    assert proved_bound("sharp", c, 0.1, 50, 0.0) == floor_at("sharp", c, 0.1)


@pytest.mark.parametrize("bound", BOUNDS)
def test_plan_takes_the_fewest_steps_and_the_longest_step_of_them(bound):
    start = {"initial_mean": [2.0, 0.0], "initial_covariance": np.eye(2)}
    energy, delta = cg.Quadratic(np.diag([1.0, 3.0])), 0.1
    plan = APriori(delta, bound=bound).plan(energy, 0.8, **start)
    c = constants_of(energy, 0.8)
    assert plan.initial_kl == pytest.approx(
        cg.measure.kl_gaussians([2, 0], np.eye(2), [0, 0], 0.8 * np.diag([1, 1 / 3])), rel=1e-12
    )
    for factor in np.exp(np.linspace(-2, 0.5, 60)):
        k = steps_needed(bound, c, plan.step * factor, delta, plan.initial_kl)
        assert k is None or k >= plan.steps
    longer = steps_needed(bound, c, plan.step * (1 + 1e-6), delta, plan.initial_kl)
    assert longer is None or longer > plan.steps
    # the fewest for the step: one less does not do
    assert proved_bound(bound, c, plan.step, plan.steps, plan.initial_kl) == plan.bound <= delta
    assert proved_bound(bound, c, plan.step, plan.steps - 1, plan.initial_kl) > delta
    assert plan.duration == plan.steps * plan.step
    assert (plan.theorem, plan.alpha, plan.smoothness) == (bound, pytest.approx(1 / 0.8), pytest.approx(3.0))
    assert f"{plan.steps} Euler steps" in str(plan)
    given = APriori(delta, bound=bound).plan(energy, 0.8, step=plan.step / 3, **start)
    assert given.step == plan.step / 3
    assert given.floor < plan.floor < delta


def test_sharp_needs_about_twenty_times_fewer_steps():
    rng = np.random.default_rng(3)
    gains = []
    for _ in range(10):
        energy, temperature, start = problem(rng)
        moments = {"initial_mean": start.mean, "initial_covariance": start.covariance}
        published, sharp = (APriori(0.05, bound=b).plan(energy, temperature, **moments) for b in BOUNDS)
        gains.append(published.steps / sharp.steps)
    assert min(gains) > 18
    assert max(gains) < 36


def test_nothing_is_to_be_done_where_the_start_is_good_enough():
    plan = APriori(0.5).plan(LINE, 1.0, initial_mean=[0.1], initial_covariance=[[1.0]])
    assert plan.steps == 0
    response = cg.ClosedLoop(cg.Langevin(1.0, 1e-3), LINE).simulate(
        cg.Gaussian([0.1], [[1.0]]), 0.1, particles=10, stop=APriori(0.5)
    )
    assert (response.status, response.steps) == ("stopped", 1)
    assert response.certificate.status is cg.Status.PROVED


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("kappa", [0.3, 2.0])
def test_never_promises_to_beat_the_discretisation(bound, kappa):
    """ULA on κx²/2 has stationary variance (ε/κ)/(1 - κh/2): no δ below the KL of that is ever claimed."""
    temperature, energy = 0.6, cg.Quadratic([[kappa]])
    moments = {"initial_mean": [0.0], "initial_covariance": [[temperature / kappa]]}
    for x in (1e-3, 0.03, 0.2, 0.6):
        h = x / kappa
        ratio = 1 / (1 - kappa * h / 2)
        stationary = (ratio - 1 - math.log(ratio)) / 2
        law = GaussianPlant(temperature).ula(energy, cg.Gaussian([0.0], [[temperature / kappa]]), h, 100_000)
        assert GaussianPlant(temperature).kl(law, energy) == pytest.approx(stationary, rel=1e-3)
        c = constants_of(energy, temperature)
        assert floor_at(bound, c, h) > stationary
        with pytest.raises(ValueError, match=r"too long for delta|outside the theorem's range"):
            APriori(stationary, bound=bound).plan(energy, temperature, step=h, **moments)


def test_a_step_that_is_too_long_says_by_how_much():
    moments = {"initial_mean": [3.0], "initial_covariance": [[1.0]]}
    with pytest.raises(ValueError, match=r"the theorem's floor at this step is 0\.0800001, which is not below delta"):
        APriori(0.05).plan(LINE, 1.0, step=0.01, **moments)
    with pytest.raises(ValueError, match=r"outside the theorem's range, which ends at about h = 0\.25"):
        APriori(0.05).plan(LINE, 1.0, step=0.3, **moments)


# As a stopping rule -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", BOUNDS)
def test_a_run_stops_where_the_theorem_says(bound):
    energy, start = cg.Quadratic(np.diag([1.0, 2.0])), cg.Gaussian([3.0, 0.0], 0.5 * np.eye(2))
    loop = cg.ClosedLoop(cg.Langevin(0.5, 0.004), energy)
    rule = APriori(1.2, bound=bound)
    plan = rule.plan(energy, 0.5, initial_mean=start.mean, initial_covariance=start.covariance, step=0.004)
    response = loop.simulate(start, 20.0, stop=rule, particles=16, record=3)
    assert (response.status, response.steps) == ("stopped", plan.steps)
    assert f"APriori: the theorem ({bound})" in response.message
    assert f"(step {plan.steps}, t = " in response.message
    assert f"KL(ρ_k‖ρ*) ≤ 1.2 for the law ρ_k after k = {plan.steps} Euler steps of h = 0.004 [PROVED]" in str(response)
    verdict = response.certificate
    assert (verdict.status, verdict.bound) == (cg.Status.PROVED, plan.bound)
    assert verdict.recheck()
    assert rule.verify(response).claim == verdict.claim
    assert any("exact arithmetic" in a for a in verdict.assumptions)
    law = GaussianPlant(0.5).ula(energy, start, 0.004, response.steps)
    assert GaussianPlant(0.5).kl(law, energy) <= 1.2


def test_a_run_that_ends_before_does_not_pretend():
    loop, rule = cg.ClosedLoop(cg.Langevin(1.0, 0.001), LINE), APriori(0.05)
    response = loop.simulate(cg.Gaussian([3.0], 1.0), 0.05, stop=rule, particles=16)
    assert response.status == "completed"
    assert "APriori was not met: KL ≤ 0.05 is proved from step " in response.message
    for verdict in (response.certificate, rule.verify(response)):
        assert verdict.status is cg.Status.UNDECIDED
        assert verdict.bound is None
    assert "the theorem's bound there is" in rule.verify(response).reason
    failed = dataclasses.replace(response, status="diverged", message="not finite", steps=10**6)
    assert rule.verify(failed).status is cg.Status.UNDECIDED
    assert "diverged" in rule.verify(failed).reason


def test_particles_of_a_known_law_or_a_known_kl():
    loop = cg.ClosedLoop(cg.Langevin(1.0, 0.001), LINE)
    x = 1 + np.random.default_rng(0).normal(size=(20, 1))
    known = loop.simulate(x, 9.0, stop=APriori(0.4, initial_mean=[1.0], initial_covariance=[[1.0]]))
    given = loop.simulate(x, 9.0, stop=APriori(0.4, initial_kl=0.5))
    assert known.steps == given.steps > 0
    assert any("independent draws" in a for a in known.certificate.assumptions)
    assert any("as given" in a for a in given.certificate.assumptions)
    with pytest.raises(ValueError, match=r"APriori needs KL\(ρ₀‖ρ\*\): start from a cg.Gaussian, or pass"):
        loop.simulate(x, 9.0, stop=APriori(0.4))
    plan = APriori(0.4, initial_kl=7.0).plan(LINE, 1.0)
    assert plan.initial_kl == 7.0
    assert APriori(0.4, initial_kl=7.0).plan(LINE, 1.0, initial_kl=2.0).initial_kl == 2.0


@pytest.mark.parametrize(
    ("plant", "schedule", "what"),
    [
        (cg.Langevin(1.0, 1e-3, scheme="mala"), None, "scheme='mala'"),
        (cg.Langevin(1.0, 1e-3, metric=[2.0, 1.0]), None, "a metric or skew"),
        (cg.Langevin(1.0, 1e-3, skew=[[0.0, 1.0], [-1.0, 0.0]]), None, "a metric or skew"),
        (cg.Langevin(1.0, 1e-3), cg.Annealing(2.0, 3.0), "a loop with a temperature schedule"),
        (cg.KineticLangevin(1.0, 1.0, 1e-3), None, "KineticLangevin"),
        (cg.GradientFlow(1e-3), None, "GradientFlow"),
        (cg.GaussianPlant(1.0), None, "GaussianPlant"),
    ],
    ids=str,
)
def test_refuses_other_plants(plant, schedule, what):
    loop = cg.ClosedLoop(plant, cg.Quadratic(np.eye(2)), schedule=schedule)
    with pytest.raises(ValueError, match=f"APriori is a theorem about .* got .*{what}"):
        loop.simulate(cg.Gaussian([0.0, 0.0], np.eye(2)), 1.0, stop=APriori(0.1), particles=10)


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_delta_of_another_type_is_the_number_that_it_is(kind):
    """NumPy compares a float with float16(0.05) in the digits of float16: a bound above it would pass."""
    for value in np.linspace(0.05, 0.06, 12):
        plan = APriori(kind(value)).plan(LINE, 1.0, initial_mean=[2.0], initial_covariance=[[1.0]])
        assert plan.verdict.status is cg.Status.PROVED
        assert plan.bound <= float(kind(value))


@pytest.mark.parametrize(("stiffness", "temperature"), [(1e200, 1.0), (1e-200, 1.0), (1.0, 1e-200)])
def test_constants_beyond_float_arithmetic_are_said(stiffness, temperature):
    with pytest.raises(ValueError, match="out of reach of float arithmetic"):
        APriori(0.1).plan(cg.Quadratic([[stiffness]]), temperature, initial_kl=1.0)


def test_refuses_a_function_with_derivatives_of_its_own():
    """Particles would move by half of the gradient, to another law than exp(-E/ε)."""
    half = cg.CallableEnergy(lambda x: 0.5 * x[0] * jax.lax.stop_gradient(x[0]), 1)
    assert half.gradient(np.array([2.0])) == 1.0
    with pytest.raises(ValueError, match="a function holds stop_gradient"):
        APriori(0.02).plan(half, 1.0, initial_kl=1.0)
    for other in (half + LINE, cg.mixture([half, LINE], 1.0), TrainedEnergy(half)):
        with pytest.raises(ValueError, match="a function holds stop_gradient"):
            APriori(0.02).plan(other, 1.0, initial_kl=1.0)


def test_refuses_what_is_not_established_by_name():
    moments = {"initial_mean": [0.0, 0.0], "initial_covariance": np.eye(2)}
    with pytest.raises(ValueError, match=r"not established for this energy: hessian_upper\. KLBelow") as one:
        APriori(0.1).plan(cg.DoubleWell(2), 1.0, **moments)
    assert "log-Sobolev" not in str(one.value)
    with pytest.raises(ValueError, match=r"hessian_lower, hessian_upper, a log-Sobolev constant \("):
        APriori(0.1).plan(cg.Banana(), 1.0, **moments)
    with pytest.raises(ValueError, match="initial_mean must have the energy's dimension 1; got 2"):
        APriori(0.1).plan(LINE, 1.0, **moments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"delta": 0.0}, "delta must be positive"),
        ({"delta": 0.1, "bound": "best"}, "bound must be one of 'vempala-wibisono', 'sharp'; got 'best'"),
        ({"delta": 0.1, "initial_kl": -1.0}, "initial_kl must be finite and at least 0"),
        ({"delta": 0.1, "initial_mean": [0.0]}, "initial_mean and initial_covariance must be given together"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        APriori(**arguments)
