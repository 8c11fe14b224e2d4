"""KLBelow: where it stops KL is below δ, its bound is not below KL, and where it cannot know it says so."""

import dataclasses
import math
import warnings

import mpmath
import numpy as np
import pytest
from scipy.stats import t as student

import ctrlgen as cg
from ctrlgen.certify.looks import look_error, look_seed
from ctrlgen.certify.stopping import KLBelow
from ctrlgen.loop import Moment, Start

LINE = cg.Quadratic([[1.0]])
PLANE = cg.Quadratic([[1.5, 0.8], [0.8, 2.0]], [0.3, -0.2])
WELL = cg.DoubleWell(1)
RING = cg.Ring(1.5, 2.0)


# Independent answers ----------------------------------------------------------------------------------------


def exact_kl(state, precision, mean, temperature):
    """KL(N(m, C)‖N(μ, εP⁻¹)) of the floats as they are, to 50 digits."""
    with mpmath.workdps(50):
        p, c = (mpmath.matrix(np.asarray(a).tolist()) for a in (precision, state.covariance))
        gap = mpmath.matrix((np.asarray(state.mean)).tolist()) - mpmath.matrix(np.asarray(mean).tolist())
        ratio, push = p * c / mpmath.mpf(temperature), (gap.T * p * gap)[0] / mpmath.mpf(temperature)
        trace = mpmath.fsum(ratio[i, i] for i in range(p.rows))
        return (trace - p.rows - mpmath.log(mpmath.det(ratio)) + push) / 2


def euler_gaussian(energy, temperature, start, step, steps):
    """KL of the law after so many Euler steps of a quadratic, by the recursion of its moments."""
    precision, middle = np.asarray(energy.precision), np.asarray(energy.mean)
    turn = np.eye(len(middle)) - step * precision
    mean, covariance = start.mean, start.covariance
    for _ in range(steps):
        mean = middle + turn @ (mean - middle)
        covariance = turn @ covariance @ turn.T + 2 * temperature * step * np.eye(len(middle))
    return float(exact_kl(cg.Gaussian(mean, (covariance + covariance.T) / 2), precision, middle, temperature))


def euler_kernel(energy, temperature, start, step, steps, reach):
    """KL of the law after each of so many Euler steps, by their transition kernel on a grid; d ≤ 2."""
    blur = math.sqrt(2 * temperature * step)
    axis = np.linspace(-reach, reach, math.ceil(2 * reach / (0.7 * blur)) + 1)
    points = np.stack(np.meshgrid(*[axis] * energy.dim, indexing="ij"), -1).reshape(-1, energy.dim)
    gibbs = -np.asarray(energy(points)) / temperature
    gibbs -= np.log(np.exp(gibbs).sum())
    law = np.exp(start.log_density(points))
    law /= law.sum()
    moved = points - step * np.asarray(energy.gradient(points))
    push = [np.exp(-((axis[:, None] - m) ** 2) / (2 * blur**2)) for m in moved.T]
    push = [p / np.maximum(p.sum(axis=0), 1e-300) for p in push]
    out = []
    for k in range(steps + 1):
        if k > 0:
            law = push[0] @ law if energy.dim == 1 else ((push[0] * law) @ push[1].T).ravel()
        held = law > 1e-300
        out.append(float(law[held] @ (np.log(law[held]) - gibbs[held])))
    return np.array(out)


def test_the_kernel_of_these_tests_agrees_with_the_recursion():
    start = cg.Gaussian([1.0, 1.0], 0.3 * np.eye(2))
    curve = euler_kernel(PLANE, 1.0, start, 0.1, 30, 7.0)
    for k in (1, 5, 30):
        assert curve[k] == pytest.approx(euler_gaussian(PLANE, 1.0, start, 0.1, k), abs=1e-7)


# Gaussians --------------------------------------------------------------------------------------------------


def test_never_early_for_gaussians_and_proved():
    rng = np.random.default_rng(5)
    for _ in range(20):
        d, temperature = int(rng.integers(1, 8)), 10 ** rng.uniform(-1, 1)
        rates = 10 ** rng.uniform(-1, 1.5, d)
        basis = np.linalg.qr(rng.normal(size=(d, d)))[0]
        precision = (basis * rates) @ basis.T
        precision, middle = (precision + precision.T) / 2, rng.normal(size=d)
        energy, delta = cg.Quadratic(precision, middle), 10 ** rng.uniform(-3, 0)
        start = cg.Gaussian(middle + 2 * rng.normal(size=d), temperature * 10 ** rng.uniform(-2, 0) * np.eye(d))
        loop, end = cg.ClosedLoop(cg.GaussianPlant(temperature), energy), 8 / rates.min()
        response = loop.simulate(start, end, record=201, stop=KLBelow(delta, interval=end / 200))
        assert response.status == "stopped"
        verdict = response.certificate
        assert (verdict.status, verdict.recheck()) == (cg.Status.PROVED, True)
        assert "for the density at the step where the run ended" in verdict.claim
        true = exact_kl(response.final, precision, middle, temperature)
        assert true <= verdict.bound <= delta
        assert verdict.bound == pytest.approx(float(true), rel=1e-9)
        assert exact_kl(response.snapshots[-2], precision, middle, temperature) > delta  # and not late
    after = KLBelow(delta).verify(response)
    assert (after.status, after.bound, after.recheck()) == (cg.Status.PROVED, verdict.bound, True)
    assert f"for the density at step {response.steps}" in after.claim


def test_stops_at_the_first_look_after_the_closed_form():
    response = cg.ClosedLoop(cg.GaussianPlant(1.0), LINE).simulate(cg.Gaussian([3.0], 1.0), 6.0, 0, 61, KLBelow(0.05))
    assert response.stopped_at == pytest.approx(math.ceil(math.log(4.5 / 0.05) / 2 * 10) / 10)  # KL = 4.5 e^{-2t}
    assert response.message.startswith("KLBelow: KL(ρ‖ρ*) ≤ 0.04")
    assert "(proved), at most 0.05" in response.message


def test_a_bound_just_above_delta_is_not_met():
    """Of a law whose KL is known to the last digit, δ on either side."""
    state, plant = cg.Gaussian([0.5], 1.0), cg.GaussianPlant(1.0)  # KL = 1/8 exactly
    monitor = KLBelow(0.125 * (1 + 1e-14)).monitor(Start(plant, LINE, state, 10, 0.1))
    assert monitor.check(Moment(0.1, 1, state, 1.0, plant, LINE)) is not None
    assert 0.125 <= monitor.bound <= 0.125 * (1 + 1e-14)
    monitor = KLBelow(0.125 * (1 - 1e-14)).monitor(Start(plant, LINE, state, 10, 0.1))
    assert monitor.check(Moment(0.1, 1, state, 1.0, plant, LINE)) is None
    assert monitor.verdict().status is cg.Status.UNDECIDED
    assert monitor.verdict().bound is None


# Grids ------------------------------------------------------------------------------------------------------


def test_on_a_grid_its_own_kl_is_meant_and_said():
    loop = cg.ClosedLoop(cg.FokkerPlanckGrid([(-8.0, 8.0)], (400,), 1.0), LINE)
    response = loop.simulate(cg.Gaussian([2.5], 1.0), 6.0, record=61, stop=KLBelow(0.05, interval=0.1))
    assert response.stopped_at == pytest.approx(math.ceil(math.log(3.125 / 0.05) / 2 * 10) / 10)
    verdict = response.certificate
    assert (verdict.status, verdict.method) == (cg.Status.SAMPLED, "grid")
    own = float(np.sum(response.final * np.log(response.final / loop.plant.gibbs(LINE)), where=response.final > 0))
    assert verdict.bound == pytest.approx(own, rel=1e-9)
    assert verdict.bound == pytest.approx(3.125 * math.exp(-2 * response.stopped_at), rel=0.01)
    assert verdict.assumptions == ("the grid's masses stand for the density",)
    assert "(exact on the grid), at most 0.05" in response.message
    after = KLBelow(0.05).verify(response)
    assert (after.status, after.bound) == (cg.Status.SAMPLED, verdict.bound)
    assert KLBelow(0.01).verify(response).status is cg.Status.UNDECIDED


def test_on_a_coarse_grid_it_is_the_continuum_that_is_not_known():
    """A grid that cannot resolve the energy is in its own equilibrium, with KL of the masses 0: that is all it says."""
    loop = cg.ClosedLoop(cg.FokkerPlanckGrid([(-3.0, 3.0)], (6,), 0.2), WELL)
    verdict = loop.simulate(loop.plant.gibbs(WELL), 1.0, stop=KLBelow(0.01)).certificate
    assert verdict.status is cg.Status.SAMPLED  # not PROVED
    assert abs(verdict.bound) < 1e-9


# Particles --------------------------------------------------------------------------------------------------

CHAINS = {  # energy, start, step, duration, half width, δ
    "line": (LINE, cg.Gaussian([2.5], 0.5), 0.1, 8.0, None, 0.05),
    "plane": (PLANE, cg.Gaussian([2.0, 1.0], 0.3 * np.eye(2)), 0.1, 8.0, None, 0.08),
    "double well": (WELL, cg.Gaussian([1.0], 0.05), 0.02, 6.0, 3.0, 0.05),
    "ring": (RING, cg.Gaussian([1.5, 0.0], 0.05 * np.eye(2)), 0.04, 12.0, 4.0, 0.1),
}


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.slow
def test_the_true_law_of_particles_is_below_where_they_stop(name):
    energy, start, step, duration, reach, delta = CHAINS[name]
    loop, rule = cg.ClosedLoop(cg.Langevin(1.0, step), energy), KLBelow(delta, interval=3 * step)
    stops = []
    for key in range(3):
        response = loop.simulate(start, duration, key=key, record=2, particles=2000, stop=rule)
        assert response.status == "stopped"
        assert response.steps % 3 == 0  # the look was at the step before
        verdict = response.certificate
        assert (verdict.status, verdict.method) == (cg.Status.SAMPLED, "transition")
        assert "for the law at the step where the run ended, at confidence 0.95 over all looks" in verdict.claim
        stops.append((response.steps, verdict.bound))
    last = max(steps for steps, _ in stops)
    if reach is None:
        true = {k: euler_gaussian(energy, 1.0, start, step, k) for k, _ in stops}
    else:
        true = dict(enumerate(euler_kernel(energy, 1.0, start, step, last, reach)))
    for steps, bound in stops:
        assert true[steps] <= bound <= delta


def test_the_law_one_step_ahead_is_meant():
    """A point mass has no density; one Euler step makes of it the Gaussian N(-h∇E, 2εh), whose KL is known."""
    h, delta = 0.5, 1.0
    energy = cg.Quadratic([[1.0]], [1.0])
    plant, start = cg.Langevin(1.0, h), np.zeros((500, 1))
    true = float(exact_kl(cg.Gaussian([h], [[2 * h]]), [[1.0]], [1.0], 1.0))  # 0.125: h/2 · h
    monitor = KLBelow(delta).monitor(Start(plant, energy, start, 10, h))
    assert monitor.check(Moment(0.0, 1, start, 1.0, plant, energy)) is None  # goes on for that step
    assert monitor.due == (2,)
    assert true <= monitor.bound <= true + 0.2
    assert monitor.verdict().status is cg.Status.UNDECIDED  # not before the step is made
    assert monitor.check(Moment(0.0, 2, start, 1.0, plant, energy)) is not None
    assert monitor.verdict().status is cg.Status.SAMPLED


def test_afterwards_the_law_one_step_after_the_end_is_judged():
    start = cg.Gaussian([2.5], 0.5)
    response = cg.ClosedLoop(cg.Langevin(1.0, 0.1), LINE).simulate(start, 3.0, key=1, record=2, particles=2000)
    verdict = KLBelow(0.1).verify(response)
    assert verdict.status is cg.Status.SAMPLED
    assert "for the law one step after step 30" in verdict.claim
    assert euler_gaussian(LINE, 1.0, start, 0.1, 31) <= verdict.bound <= 0.1
    early = KLBelow(1e-3).verify(response)
    assert early.status is cg.Status.UNDECIDED
    assert early.bound is None
    assert "KLBelow was not met: the last bound of KL was" in early.reason


def test_an_empty_well_is_seen():
    """Where SteinResidual stops at KL = log 2, the bound of KL knows that half of Z is elsewhere."""
    well, start = cg.DoubleWell(1, barrier=8.0), cg.Gaussian([1.0], 0.01)
    loop = cg.ClosedLoop(cg.Langevin(1.0, 0.004), well)
    response = loop.simulate(start, 1.0, particles=1000, record=2, stop=KLBelow(0.2, interval=0.2))
    assert response.status == "completed"
    assert response.certificate.status is cg.Status.UNDECIDED
    assert float(response.message.split("the last bound of KL was ")[1].split(",")[0]) > 0.65


# Looks ------------------------------------------------------------------------------------------------------


def scripted(monkeypatch, value, error):
    """`kl_transition` replaced by a given upper estimate; what it was asked is recorded."""
    asked = []

    def found(x, energy, temperature, step, log_z, *, batches, key):
        asked.append({"n": len(x), "step": step, "log_z": log_z, "batches": batches, "key": key, "x": x})
        upper = cg.measure.Skewed(value, error)
        return cg.measure.Bracket(value, error, lower=upper, upper=upper)

    monkeypatch.setattr(cg.measure, "kl_transition", found)
    return asked


def test_looks_share_the_error(monkeypatch):
    asked = scripted(monkeypatch, 0.2, 0.01)
    assert sum(look_error(0.05, j) for j in range(1, 100_000)) == pytest.approx(0.05, rel=1e-4)
    plant = cg.Langevin(1.0, 0.1)
    monitor = KLBelow(0.1, confidence=0.9, points=100).monitor(Start(plant, LINE, None, 1000, 0.1))
    assert monitor.due == (9,)  # a hundredth of the duration is ten steps
    x = np.random.default_rng(0).normal(size=(300, 1))
    for j in range(1, 7):
        monitor.check(Moment(0.1 * j, j, x, 1.0, plant, LINE))
        spent = 6 * 0.1 / (math.pi**2 * j**2)
        assert monitor.bound == pytest.approx(0.2 + 0.01 * student.ppf(1 - spent, 39), rel=1e-12)
    assert {(a["n"], a["step"], a["batches"]) for a in asked} == {(100, 0.1, 40)}
    assert len({a["key"] for a in asked}) == 6
    np.testing.assert_array_equal(asked[0]["x"], x[:100])
    assert float(asked[0]["log_z"].value) == pytest.approx(math.log(2 * math.pi) / 2)


@pytest.mark.parametrize(
    ("steps", "every", "looks"), [(10, 2, [1, 3, 5, 7, 9]), (10, 3, [2, 5, 8, 9]), (4, 1, [1, 2, 3])]
)
def test_looks_come_one_step_early_and_before_the_last_step(monkeypatch, steps, every, looks):
    asked = scripted(monkeypatch, 9.0, 0.0)
    plant, seen = cg.Langevin(1.0, 0.1), []
    monitor = KLBelow(0.1, interval=0.1 * every).monitor(Start(plant, LINE, None, steps, 0.1))
    while monitor.due and len(seen) <= steps:
        seen.append(monitor.due[0])
        monitor.check(Moment(0.1 * seen[-1], seen[-1], np.zeros((100, 1)), 1.0, plant, LINE))
    assert seen == looks
    assert len(asked) == len(looks)
    response = cg.ClosedLoop(plant, LINE).simulate(
        np.zeros((100, 1)), 0.1 * steps, stop=KLBelow(0.1, interval=0.1 * every)
    )
    assert len(asked) == 2 * len(looks)
    assert (response.status, response.steps) == ("completed", steps)


def test_the_run_takes_one_more_step_and_ends(monkeypatch):
    scripted(monkeypatch, 0.01, 0.0)
    loop = cg.ClosedLoop(cg.Langevin(1.0, 0.1), LINE)
    for every in (1, 4):
        response = loop.simulate(np.zeros((100, 1)), 2.0, stop=KLBelow(0.1, interval=0.1 * every))
        assert (response.status, response.steps) == ("stopped", max(every, 2))
        assert "an upper bound at 0.95 confidence over all 1 looks" in response.message
    one = loop.simulate(np.zeros((100, 1)), 0.1, stop=KLBelow(0.1))  # no step is left for a look
    assert (one.status, one.certificate.status) == ("completed", cg.Status.UNDECIDED)
    assert "KLBelow was not met: it was never evaluated" in one.message


def test_a_rule_may_be_used_again():
    rule, loop = KLBelow(0.1, interval=0.3), cg.ClosedLoop(cg.Langevin(1.0, 0.1), LINE)
    runs = [loop.simulate(cg.Gaussian([2.0], 0.5), 6.0, key=3, particles=500, stop=rule) for _ in range(2)]
    assert runs[0].certificate.bound == runs[1].certificate.bound
    assert runs[0].steps == runs[1].steps


# log Z ------------------------------------------------------------------------------------------------------


def test_log_partition_is_used_as_given_and_its_error_counts():
    x = np.random.default_rng(2).normal(size=(1000, 1))
    response = cg.ClosedLoop(cg.Langevin(1.0, 0.1), LINE).simulate(x, 0.1, record=2)
    known = math.log(2 * math.pi) / 2
    bound = {z: KLBelow(9.0, log_partition=z).verify(response).bound for z in (None, known, known + 0.3)}
    assert bound[None] == pytest.approx(bound[known], abs=1e-12)
    assert bound[known + 0.3] == pytest.approx(bound[known] + 0.3, abs=1e-12)  # a wrong log Z is a wrong bound
    seed = look_seed(np.asarray(response.final, np.float64), 1)
    upper = cg.measure.kl_transition(response.final, LINE, 1.0, 0.1, known, batches=40, key=seed).upper
    q = student.ppf(1 - 6 * 0.05 / math.pi**2, 39)
    lean = (2 * q**2 + 1) / 6 * 2 * upper.skew
    assert upper.skew >= 0
    assert bound[known] == pytest.approx(upper.value + (q + lean) * upper.error, abs=1e-12)
    unsure = KLBelow(9.0, log_partition=cg.Estimate(known, 0.05)).verify(response)
    error = math.hypot(upper.error, 0.05)
    assert unsure.bound == pytest.approx(upper.value + (q + lean * (upper.error / error) ** 3) * error, abs=1e-12)
    assert "log Z = 0.9189 ± 0.05" in unsure.reason


def test_log_partition_is_found_where_it_is_not_known():
    x = np.random.default_rng(2).normal(size=(500, 1))
    response = cg.ClosedLoop(cg.Langevin(1.0, 0.02), WELL).simulate(x, 0.02, record=2)
    u = np.linspace(-5, 5, 20_001)
    quadrature = math.log(np.trapezoid(np.exp(-((u**2 - 1) ** 2)), u))
    given, found = (KLBelow(9.0, log_partition=z).verify(response).bound for z in (quadrature, None))
    assert found == pytest.approx(given, abs=1e-5)


# What it cannot judge ---------------------------------------------------------------------------------------


def test_a_diverged_run_is_not_met():
    quartic, rule = cg.SymbolicEnergy("cosh(x)", ["x"]), KLBelow(9.0, interval=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the step, which is too long on purpose
        response = cg.ClosedLoop(cg.Langevin(1.0, 1e-3), quartic).simulate(np.full((200, 1), 85.0), 0.1, stop=rule)
    assert response.status == "diverged"
    assert response.certificate.status is cg.Status.UNDECIDED
    assert "no longer finite" in response.certificate.reason
    after = rule.verify(response)
    assert (after.status, after.bound) == (cg.Status.UNDECIDED, None)
    assert "the run diverged" in after.reason


def test_a_diverged_run_of_small_moments_is_not_certified_either():
    response = cg.ClosedLoop(cg.GaussianPlant(1.0), LINE).simulate(cg.Gaussian([0.0], 1.0), 1.0, record=2)
    assert KLBelow(0.1).verify(response).status is cg.Status.PROVED
    failed = dataclasses.replace(response, status="diverged", message="not finite")
    assert KLBelow(0.1).verify(failed).status is cg.Status.UNDECIDED


@pytest.mark.parametrize(
    ("plant", "schedule", "message"),
    [
        (cg.Langevin(1.0, 0.1, "mala"), None, "got Langevin with scheme='mala'"),
        (cg.Langevin(1.0, 0.1, metric=[2.0]), None, "got Langevin with a metric or skew"),
        (cg.Langevin(1.0, 0.1), cg.Annealing(2.0, 1.0), "got a loop with a temperature schedule"),
        (cg.KineticLangevin(1.0, 1.0, 0.1), None, "got KineticLangevin"),
        (cg.GradientFlow(0.1), None, "got GradientFlow"),
    ],
)
def test_other_particles_are_refused_before_any_work(plant, schedule, message):
    loop, start = cg.ClosedLoop(plant, LINE, schedule=schedule), np.zeros((100, 1))
    with pytest.raises(ValueError, match=rf"KLBelow for particles is a theorem about Langevin.*{message}"):
        loop.simulate(start, 1.0, stop=KLBelow(0.1))
    with pytest.raises(ValueError, match=message):
        KLBelow(0.1).verify(loop.simulate(start, 0.1))


@pytest.mark.parametrize(
    "plant", [cg.GaussianPlant(1.0), cg.FokkerPlanckGrid([(-4.0, 4.0)], (40,), 1.0)], ids=["g", "fp"]
)
def test_a_schedule_is_refused(plant):
    loop = cg.ClosedLoop(plant, LINE, schedule=cg.Annealing(2.0, 1.0))
    with pytest.raises(ValueError, match="KLBelow needs a static temperature; got a loop with a temperature schedule"):
        loop.simulate(cg.Gaussian([0.0], 1.0), 1.0, stop=KLBelow(0.1))


@pytest.mark.parametrize(
    "plant", [cg.Langevin(1.0, 0.1), cg.FokkerPlanckGrid([(-4.0, 4.0)], (40,), 1.0)], ids=["x", "fp"]
)
def test_without_a_gibbs_measure_there_is_no_kl(plant):
    tilted = cg.SymbolicEnergy("x", ["x"])
    with pytest.raises(ValueError, match="energy must have a Gibbs measure"):
        cg.ClosedLoop(plant, tilted).simulate(cg.Gaussian([0.0], 1.0), 1.0, stop=KLBelow(0.1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"delta": 0.0}, "delta must be positive"),
        ({"delta": -1.0}, "delta must be positive"),
        ({"delta": math.inf}, "delta must be"),
        ({"delta": 1.0, "confidence": 1.0}, "confidence must be between 0 and 1"),
        ({"delta": 1.0, "confidence": 0.0}, "confidence must be between 0 and 1"),
        ({"delta": 1.0, "interval": 0.0}, "interval must be positive"),
        ({"delta": 1.0, "points": 79}, "points must be at least 80; got 79"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        KLBelow(**arguments)


@pytest.mark.parametrize("rule", [KLBelow(0.1), cg.stopping.DissipationBelow(0.1)], ids=["kl", "dissipation"])
@pytest.mark.parametrize("start", [np.zeros((79, 1)) + np.arange(79)[:, None], cg.Gaussian([0.0], 1.0)])
def test_too_few_particles_are_refused_before_the_run(rule, start):
    loop = cg.ClosedLoop(cg.Langevin(1.0, 0.1), LINE)
    with pytest.raises(ValueError, match="needs at least 80 particles for its error; got 79"):
        loop.simulate(start, 1.0, stop=rule, particles=79)
    assert loop.simulate(np.random.default_rng(0).normal(size=(80, 1)), 1.0, stop=rule).status in (
        "completed",
        "stopped",
    )


# What the confidence is worth ---------------------------------------------------------------------------------


def test_the_draws_of_a_look_are_of_its_particles():
    x = np.random.default_rng(0).normal(size=(100, 1))
    seeds = {look_seed(x, 1), look_seed(x, 2), look_seed(x + 1e-9, 1), look_seed(x[::-1], 1)}
    assert len(seeds) == 4
    assert look_seed(x.copy(), 1) == look_seed(x, 1)


def test_false_stops_are_as_rare_as_they_are_said_to_be():
    """ULA at rest, where KL is 0.130202 at every step and δ is below it; 40 runs of three looks at confidence 0.9.

    Draws that are the same in every run stop falsely in all 40. At the stated 0.1 there are more than 11 with
    probability 0.001.
    """
    h, n = 0.95, 85
    variance = 1 / (1 - h / 2)
    true = (variance - 1 - math.log(variance)) / 2
    loop, rule, stops = cg.ClosedLoop(cg.Langevin(1.0, h), LINE), KLBelow(0.999 * true, confidence=0.9, interval=h), 0
    for run in range(40):
        x = math.sqrt(variance) * np.random.default_rng(run).normal(size=(n, 1))
        stops += loop.simulate(x, 3 * h, key=run, record=2, stop=rule).status == "stopped"
    assert stops <= 11


def test_the_correction_for_skewness_is_that_of_a_mean_of_squares():
    """Upper bounds at 95 % for the mean of 80 χ²₁ by 40 batches: Student's alone covers 0.91."""
    from ctrlgen.measure.transition import _skewed

    rng, covered = np.random.default_rng(3), {True: 0, False: 0}
    q, runs = student.ppf(0.95, 39), 2000
    for _ in range(runs):
        parts = (rng.normal(size=(40, 2)) ** 2).mean(axis=1)
        found = _skewed(np.append((parts.sum() - parts) / 39, parts.mean()), 0.0, 0.0)
        covered[True] += found.above(q) >= 1
        covered[False] += found.value + q * found.error >= 1
    assert covered[False] / runs < 0.93
    assert 0.945 < covered[True] / runs < 0.985  # a standard error is 0.005
    with_log_z = _skewed(np.append((parts.sum() - parts) / 39, parts.mean()), 2.0, 1.0)
    assert with_log_z.value == pytest.approx(parts.mean() + 2)
    assert with_log_z.error == pytest.approx(math.hypot(found.error, 1.0))
    assert with_log_z.skew == pytest.approx(found.skew * (found.error / with_log_z.error) ** 3)
