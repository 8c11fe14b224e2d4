"""Stopping rules: they stop where the law has settled, not before, and say what they know."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from scipy.stats import norm

import ctrlgen as cg
from ctrlgen.certify.dissipation import gaussian_fisher, look_error
from ctrlgen.certify.stein import SteinFunctions, widened
from ctrlgen.certify.stopping import DissipationBelow, FreeEnergyPlateau, KLBelow, SteinResidual
from ctrlgen.loop import Moment, Start

OU = cg.Quadratic(np.diag([1.0, 2.0]))
LINE = cg.Quadratic([[1.0]])
LOOP = cg.ClosedLoop(cg.Langevin(1.0, 0.01), OU)


def far(n=4000):
    return 6 + np.random.default_rng(0).normal(size=(n, 2))


# Stein residuals --------------------------------------------------------------------------------------------


def test_stops_near_equilibrium_and_not_before():
    response = LOOP.simulate(far(), 20.0, stop=SteinResidual(z=1.0, checks=3, interval=0.25))
    assert response.status == "stopped"
    assert "SteinResidual: the residuals of 16 Stein functions" in response.message
    assert "no bound on KL [SAMPLED]" in str(response)
    # KL ≈ 18 e^{-2t} from the slow axis: below 0.01 only after t = 3.7
    assert 2.5 < response.stopped_at < 20.0
    assert response.kl[-1] < 0.1
    assert response.certificate.status is cg.Status.SAMPLED
    assert "no bound on KL" in response.certificate.claim
    assert not any("share particles" in a for a in response.certificate.assumptions)


@pytest.mark.slow
def test_a_single_check_is_more_easily_fooled_than_several_in_a_row():
    when = [
        np.mean([LOOP.simulate(far(1000), 30.0, key=k, stop=SteinResidual(checks=m, interval=0.1)).time[-1]
                 for k in range(3)])
        for m in (1, 8)
    ]  # fmt: skip
    assert when[0] < when[1]


def test_not_met_is_said():
    response = LOOP.simulate(np.full((500, 2), 50.0) + far(500) / 100, 0.5, stop=SteinResidual())
    assert response.status == "completed"
    assert "SteinResidual was not met: the last residual was" in response.message
    for verdict in (response.certificate, SteinResidual().verify(response)):
        assert verdict.status is cg.Status.UNDECIDED
        assert "SteinResidual was not met" in verdict.reason


def test_waits_until_the_schedule_has_reached_the_temperature():
    loop = cg.ClosedLoop(cg.Langevin(1.0, 0.01), OU, schedule=cg.Annealing(2.0, 3.0))
    start = np.random.default_rng(0).normal(size=(2000, 2)) * np.sqrt([2.0, 1.0])  # in equilibrium with factor 2
    response = loop.simulate(start, 8.0, stop=SteinResidual(z=3.0, checks=1, interval=0.5))
    assert response.stopped_at is not None
    assert response.stopped_at >= 3.0
    early = loop.simulate(start, 2.0, stop=SteinResidual())
    assert "never evaluated at the final temperature" in early.message


def test_stein_functions_vanish_at_the_gibbs_measure_and_only_there():
    energy = cg.GaussianMixture([[-1.0, 0.0, 0.5], [1.5, 0.5, 0.0]], [0.6, 1.1], temperature=0.7)
    functions = SteinFunctions(3)
    assert len(functions.names) == 1 + 3 + 6 + 8 + 3
    x = energy.sample(1, 40_000)
    value, error = functions.residuals(x, energy, 0.7)
    assert (np.abs(value) < 4.5 * error).all()
    spread = (value / error).std()  # the errors are those of the values: 21 correlated normals
    assert 0.4 < spread < 2.0
    for wrong in (x + 0.1, 1.1 * x, x * [1.0, 1.1, 1.0]):
        value, error = functions.residuals(wrong, energy, 0.7)
        assert (np.abs(value) > 8 * error).any()
    # each against a difference quotient: d/dt E[φ] along the loop, for φ = x1·x2
    index = functions.names.index("x1·x2")
    wide = 1.2 * x[:4000]
    centred = wide - wide.mean(axis=0)
    flow = -np.asarray(energy.gradient(wide)) * 1e-5
    rate = np.mean((centred[:, 0] + flow[:, 0]) * (centred[:, 1] + flow[:, 1]) - centred[:, 0] * centred[:, 1]) / 1e-5
    value, error = functions.residuals(wide, energy, 0.7)
    assert value[index] == pytest.approx(rate, rel=1e-3, abs=1e-4)


def test_bounded_functions_against_difference_quotients():
    """εΔφ - ∇φ·∇E of the cosines and of uᵢ/√(1 + |u|²), point by point, by central differences of φ."""
    functions, temperature = SteinFunctions(2), 0.7
    energy = cg.Quadratic([[1.0, 0.3], [0.3, 2.0]], [0.2, -0.4])
    x = np.random.default_rng(6).normal(size=(50, 2)) * [1.0, 0.5]
    middle, spread = x.mean(axis=0), x.std(axis=0)
    size = math.sqrt(np.mean((x - middle) ** 2))
    phi = {
        "cosine 3": lambda y: np.cos((y - middle) / spread @ functions.waves[:, 2] + functions.phases[2]),
        "x2/√(1 + |x|²)": lambda y: (y - middle)[:, 1] / np.sqrt(size**2 + ((y - middle) ** 2).sum(axis=1)),
    }
    value, _ = functions.residuals(x, energy, temperature)
    push, t = np.asarray(energy.gradient(x)), 1e-4
    for name, f in phi.items():
        up, down = ([f(x + sign * t * e) for e in np.eye(2)] for sign in (1, -1))
        laplacian = sum(u - 2 * f(x) + v for u, v in zip(up, down, strict=True)) / t**2
        slope = np.stack([(u - v) / (2 * t) for u, v in zip(up, down, strict=True)], axis=1)
        expected = np.mean(temperature * laplacian - (slope * push).sum(axis=1))
        assert value[functions.names.index(name)] == pytest.approx(expected, abs=1e-5)


def test_every_family_of_functions_sees_its_own_deviation():
    functions, rng = SteinFunctions(2), np.random.default_rng(2)
    energy = cg.Quadratic(np.eye(2))

    def score(x):
        value, error = functions.residuals(x, energy, 1.0)
        return dict(zip(functions.names, np.abs(value) / error, strict=True))

    z = rng.normal(size=(20_000, 2))
    assert score(z + np.array([0.1, 0.0]))["x1"] > 8
    assert score(z * [1.0, 1.1])["x2²"] > 8
    turned = z @ np.linalg.cholesky([[1.0, 0.1], [0.1, 1.0]]).T
    assert score(turned)["x1·x2"] > 8
    assert score(1.1 * z)["E"] > 8
    # a ring that is turned slowly: what is bounded along rays sees it where the coordinates do not
    ring, angle = cg.Ring(2.0, 16.0), rng.uniform(0, 2 * np.pi, 20_000)
    angle = angle[rng.random(20_000) < (1 + 0.12 * np.cos(angle)) / 1.12]
    radius = 2 + rng.normal(size=len(angle)) * 0.25
    value, error = functions.residuals(np.stack([np.cos(angle), np.sin(angle)], 1) * radius[:, None], ring, 1.0)
    seen = dict(zip(functions.names, np.abs(value) / error, strict=True))
    assert seen["x1/√(1 + |x|²)"] > 2 * seen["x1"]
    # variance and mean as they should be, tails not: bounded functions alone
    two = rng.choice([-1.0, 1.0], size=(20_000, 2)) * 0.9 + rng.normal(size=(20_000, 2)) * math.sqrt(1 - 0.81)
    seen = score(two)
    assert max(v for k, v in seen.items() if k.startswith("cosine")) > 8
    assert max(seen[k] for k in ("E", "x1", "x2", "x1²", "x1·x2", "x2²")) < 4.5


def test_directions_stand_for_coordinates_in_high_dimension():
    functions = SteinFunctions(40)
    np.testing.assert_allclose(functions.axes.T @ functions.axes, np.eye(8), atol=1e-12)
    x = np.random.default_rng(3).normal(size=(4000, 40)) * 0.8
    value, error = functions.residuals(x, cg.Quadratic(np.eye(40)), 0.64)
    assert (np.abs(value) < 4.5 * error).all()
    assert (np.abs(functions.residuals(1.1 * x, cg.Quadratic(np.eye(40)), 0.64)[0]) > 8 * error).any()


@pytest.mark.parametrize("z", [0.5, 1.0, 3.0, 12.0, 50.0])
def test_the_correction_for_many_functions(z):
    assert widened(z, 1) == pytest.approx(z, rel=1e-9)
    wide = widened(z, 20)
    if z < 8:
        assert (1 - 2 * norm.sf(wide)) ** 20 == pytest.approx(1 - 2 * norm.sf(z), rel=1e-9)
    else:
        assert norm.logsf(wide) == pytest.approx(norm.logsf(z) - math.log(20), rel=1e-9)


def test_the_correction_for_many_looks():
    """Σ p^{m_j} ≤ 0.05, with p the chance that a residual z_K + 2 errors from zero passes a check."""
    rule, limit = SteinResidual(checks=1), widened(1.0, 14)
    p = norm.cdf(-2) - norm.cdf(-2 - 2 * limit)
    rows = [rule.needed(j, limit) for j in range(1, 20_000)]
    assert sum(p ** np.array(rows)) < 0.05
    assert rows[0] == 1
    assert rows == sorted(rows)
    for j in (1, 50, 19_000):  # as many as are needed and no more
        assert p ** rows[j - 1] <= 0.05 * 6 / (math.pi**2 * j**2)
        assert rows[j - 1] == 1 or p ** (rows[j - 1] - 1) > 0.05 * 6 / (math.pi**2 * j**2)
    assert SteinResidual(checks=7).needed(3, limit) == 7


def looks(rule, n, count, seed, shift):
    """A monitor that is shown fresh particles of N(shift, 1) again and again under E = x²/2: did it ever stop?"""
    plant = cg.Langevin(1.0, 0.1)
    monitor = rule.monitor(Start(plant, LINE, None, count, 1.0, None))
    rng = np.random.default_rng(seed)
    states = (shift + rng.normal(size=(n, 1)) for _ in range(count))
    return any(monitor.check(Moment(float(k), k, x, 1.0, plant, LINE)) for k, x in enumerate(states, 1))


def test_stops_at_a_wrong_law_as_rarely_as_it_says():
    rule, count = SteinResidual(checks=1), 20
    limit = widened(1.0, 1 + 1 + 1 + 8 + 1)
    size = 4 * 300
    shift = (limit + 2) / math.sqrt(size // rule.needed(count, limit))
    wrong = sum(looks(rule, size, count, seed, shift) for seed in range(30))
    assert wrong <= 5  # 30 · 0.05 = 1.5 expected at most; 6 or more has probability 0.004
    right = sum(looks(rule, size, count, seed, 0.0) for seed in range(8))
    assert right == 8


def test_groups_of_successive_looks_are_disjoint_where_there_are_enough():
    plant, seen = cg.Langevin(1.0, 0.1), []
    rule = SteinResidual(checks=4)
    for n, apart in ((4000, True), (400, False)):
        monitor = rule.monitor(Start(plant, LINE, None, 50, 1.0, None))
        x = np.arange(float(n))[:, None]
        seen = [set(monitor._group(x)[:, 0]) for monitor.look in range(1, 6)]
        assert monitor.apart is apart
        if apart:
            assert all(not a & b for i, a in enumerate(seen[:4]) for b in seen[i + 1 : 4])
            assert min(map(len, seen)) >= 256
        else:
            assert all(len(s) == n for s in seen)
    response = LOOP.simulate(far(300), 20.0, stop=SteinResidual(interval=0.5))
    assert any("share particles" in a for a in response.certificate.assumptions)


@pytest.mark.slow
def test_blind_to_a_well_that_was_never_reached():
    well = cg.DoubleWell(1, barrier=8.0)
    start = 1 + 0.1 * np.random.default_rng(1).normal(size=(4000, 1))
    response = cg.ClosedLoop(cg.Langevin(1.0, 0.002), well).simulate(start, 4.0, stop=SteinResidual())
    assert response.status == "stopped"
    assert response.kl[-1] > 0.6  # log 2: one of two wells is empty
    assert "metastable states are not seen" in response.certificate.reason


def test_refuses_what_it_cannot_judge():
    loop = cg.ClosedLoop(cg.GaussianPlant(1.0), OU)
    with pytest.raises(ValueError, match="for particle plants; this loop's plant is a gaussian"):
        loop.simulate(cg.Gaussian([0.0, 0.0], np.eye(2)), 1.0, stop=SteinResidual())


@pytest.mark.parametrize(
    ("rule", "arguments", "message"),
    [
        (SteinResidual, {"z": 0.0}, "z must be positive"),
        (SteinResidual, {"checks": 0}, "checks must be at least 1"),
        (SteinResidual, {"interval": -1.0}, "interval must be positive"),
        (SteinResidual, {"points": 1}, "points must be at least 2"),
        (FreeEnergyPlateau, {"window": 2}, "window must be at least 3"),
        (FreeEnergyPlateau, {"tolerance": -1.0}, "tolerance must be finite and at least 0"),
        (FreeEnergyPlateau, {"interval": 0.0}, "interval must be positive"),
        (FreeEnergyPlateau, {"points": 3}, "points must be at least 20"),
        (DissipationBelow, {"delta": 0.0}, "delta must be positive"),
        (DissipationBelow, {"delta": 1.0, "confidence": 1.0}, "confidence must be between 0 and 1"),
        (DissipationBelow, {"delta": 1.0, "interval": -2.0}, "interval must be positive"),
        (DissipationBelow, {"delta": 1.0, "points": 10}, "points must be at least 80"),
    ],
)
def test_bad_arguments(rule, arguments, message):
    with pytest.raises(ValueError, match=message):
        rule(**arguments)


def test_the_answer_afterwards_is_that_of_the_run():
    rule = SteinResidual(z=2.0, checks=2, interval=0.25)
    during = LOOP.simulate(far(), 20.0, stop=rule)
    plain = LOOP.simulate(far(), 10.0, record=41)  # recorded at the same interval
    after = rule.verify(plain)
    assert after.status is during.certificate.status is cg.Status.SAMPLED
    assert after.claim == during.certificate.claim
    failed = dataclasses.replace(plain, status="diverged", message="not finite")
    assert rule.verify(failed).status is cg.Status.UNDECIDED


# Dissipation ------------------------------------------------------------------------------------------------


def test_fisher_information_of_gaussians_is_rounded_up():
    rng = np.random.default_rng(4)
    for d in (1, 2, 9):
        a, c = rng.normal(size=(2, d, d))
        precision, covariance = a @ a.T + 0.1 * np.eye(d), c @ c.T + 0.1 * np.eye(d)
        mean, m = rng.normal(size=(2, d))
        energy = cg.Quadratic(precision, mean)
        exact = cg.measure.fisher_gaussians(m, covariance, mean, 0.6 * np.linalg.inv(precision))
        assert gaussian_fisher(cg.Gaussian(m, covariance), energy, 0.6) == pytest.approx(exact, rel=1e-9)
    at_rest = gaussian_fisher(cg.Gaussian([0.0], [[1.0]]), LINE, 1.0)
    assert 0 <= at_rest < 1e-60


def test_dissipation_never_early_for_gaussians():
    rng = np.random.default_rng(5)
    for _ in range(30):
        d, temperature = int(rng.integers(1, 9)), 10 ** rng.uniform(-1, 1)
        rates = 10 ** rng.uniform(-1, 1.5, d)
        basis = np.linalg.qr(rng.normal(size=(d, d)))[0]
        precision = (basis * rates) @ basis.T
        energy, delta = cg.Quadratic((precision + precision.T) / 2), 10 ** rng.uniform(-3, 0)
        start = cg.Gaussian(rng.normal(size=d), 10 ** rng.uniform(-1, 1) * np.eye(d))
        loop = cg.ClosedLoop(cg.GaussianPlant(temperature), energy)
        end = 8 / rates.min()
        response = loop.simulate(start, end, record=201, stop=DissipationBelow(delta, interval=end / 200))
        assert response.status == "stopped"
        assert response.kl[-1] <= delta * (1 + 1e-9)
        assert response.kl[-1] <= response.certificate.bound * (1 + 1e-9) <= delta * (1 + 2e-9)
        # not later than it must: the check before had I > 2αδ
        before = loop.plant.dissipation(response.snapshots[-2], energy) / temperature
        assert before > 2 * rates.min() / temperature * delta * (1 - 1e-9) or response.steps == 1
        verdict = response.certificate
        assert (verdict.status, verdict.recheck()) == (cg.Status.PROVED, True)
    assert DissipationBelow(delta).verify(response).status is cg.Status.PROVED
    assert DissipationBelow(1e-12).verify(response).status is cg.Status.UNDECIDED
    assert "2αδ = " in DissipationBelow(1e-12).verify(response).reason


def test_dissipation_on_a_grid_is_sampled_and_its_own_kl_is_below():
    well = cg.DoubleWell(1, barrier=0.7)
    loop = cg.ClosedLoop(cg.FokkerPlanckGrid([(-3.5, 3.5)], (140,), 0.8), well)
    response = loop.simulate(cg.Gaussian([1.2], 0.1), 30.0, stop=DissipationBelow(0.02))
    assert response.status == "stopped"
    assert response.kl[-1] <= 0.02
    verdict = response.certificate
    assert verdict.status is cg.Status.SAMPLED
    assert f"the grid's own KL is {response.kl[-1]:.4g}" in verdict.reason
    assert "continuum" in verdict.assumptions[0]
    coarse = cg.ClosedLoop(cg.FokkerPlanckGrid([(-6, 6)], (24,), 1.0), LINE)
    response = coarse.simulate(cg.Gaussian([2.0], 1.0), 9.0, record=400, stop=DissipationBelow(0.01))
    assert response.kl[-1] <= 0.01  # α of the continuum alone would have stopped earlier


def test_dissipation_of_particles_is_judged_one_step_ahead_and_true():
    start, delta = cg.Gaussian([2.5], 0.5), 0.3
    loop, true = cg.ClosedLoop(cg.Langevin(1.0, 0.1), LINE), []
    for key in range(6):
        response = loop.simulate(start, 12.0, key=key, particles=1500, stop=DissipationBelow(delta, interval=0.3))
        assert response.status == "stopped"
        assert response.steps % 3 == 0  # the look was at the step before
        law = cg.GaussianPlant(1.0).ula(LINE, start, 0.1, response.steps)
        true.append(cg.GaussianPlant(1.0).kl(law, LINE))
    assert max(true) <= delta
    assert response.certificate.status is cg.Status.SAMPLED
    assert "for the law at the step where the run ended, at confidence 0.95 over all looks" in response.message
    assert "one step after step" in DissipationBelow(delta).verify(response).claim
    short = loop.simulate(start, 0.3, particles=1500, stop=DissipationBelow(delta))
    assert short.certificate.status is cg.Status.UNDECIDED
    assert "DissipationBelow was not met: the last bound of I(ρ‖ρ*) was" in short.message


@pytest.mark.parametrize("rule", [DissipationBelow, KLBelow])
def test_delta_of_another_type_is_the_number_that_it_is(rule):
    """NumPy compares a float with float16(0.1) in the digits of float16: a bound above it would pass."""
    response = cg.ClosedLoop(cg.GaussianPlant(1.0), LINE).simulate(cg.Gaussian([1.0], [[1.0]]), 1.0, record=2)
    bound = rule(1.0).verify(response).bound  # I/2 = KL for this start: only the mean is displaced
    delta = np.float16(bound)
    wide = delta if float(delta) < bound else np.nextafter(delta, np.float16(0))
    assert rule(wide).verify(response).status is cg.Status.UNDECIDED
    assert type(rule(wide).delta) is float


def test_dissipation_needs_the_gradient_of_the_energy_itself():
    half = cg.CallableEnergy(lambda x: 0.5 * x[0] * jax.lax.stop_gradient(x[0]), 1)
    loop = cg.ClosedLoop(cg.Langevin(1.0, 0.01), half)
    with pytest.raises(ValueError, match="a function holds stop_gradient"):
        loop.simulate(cg.Gaussian([1.0], [[1.0]]), 1.0, stop=DissipationBelow(0.1))


def test_looks_share_the_error(monkeypatch):
    assert sum(look_error(0.05, j) for j in range(1, 100_000)) == pytest.approx(0.05, rel=1e-4)
    asked = []

    def record(x, energy, temperature, step, *, batches, confidence, key):
        asked.append((confidence, key, step))
        return dataclasses.make_dataclass("Bound", [("upper", float)])(9.0)

    monkeypatch.setattr(cg.measure, "fisher_transition", record)
    loop = cg.ClosedLoop(cg.Langevin(1.0, 0.1), LINE)
    loop.simulate(np.zeros((100, 1)), 1.0, stop=DissipationBelow(0.1, confidence=0.9, interval=0.2))
    expected = [1 - look_error(0.1, j) for j in range(1, 6)]
    assert [c for c, _, _ in asked] == pytest.approx(expected)
    assert {s for _, _, s in asked} == {0.1}
    assert len({k for _, k, _ in asked}) == 5


def test_dissipation_needs_a_constant_and_the_right_loop():
    with pytest.raises(ValueError, match="needs a log-Sobolev constant, which is not established for this energy at"):
        cg.ClosedLoop(cg.Langevin(1.0, 0.1), cg.Banana()).simulate(np.zeros((100, 2)), 1.0, stop=DissipationBelow(0.1))
    with pytest.raises(ValueError, match="got Langevin with scheme='mala'"):
        cg.ClosedLoop(cg.Langevin(1.0, 0.1, "mala"), LINE).simulate([[0.0]], 1.0, stop=DissipationBelow(0.1))
    loop = cg.ClosedLoop(cg.GaussianPlant(1.0), LINE, schedule=cg.Annealing(2.0, 1.0))
    with pytest.raises(ValueError, match="got a loop with a temperature schedule"):
        loop.simulate(cg.Gaussian([0.0], 1.0), 1.0, stop=DissipationBelow(0.1))


# Plateau ----------------------------------------------------------------------------------------------------


def test_plateau_stops_where_the_free_energy_is_flat():
    loop = cg.ClosedLoop(cg.GaussianPlant(0.5), LINE)
    start = cg.Gaussian([3.0], 0.5)
    rule = FreeEnergyPlateau(window=5, tolerance=0.01)
    response = loop.simulate(start, 20.0, record=201, stop=dataclasses.replace(rule, interval=0.1))
    # F/ε falls as KL = 9 e^{-2t}, by the factor 1 - e^{-0.8} over the window of 0.4
    assert response.status == "stopped"
    expected = math.log(9 * (math.exp(0.8) - 1) / 0.01) / 2
    assert response.stopped_at == pytest.approx(expected, abs=0.15)
    assert "heuristic: no bound on KL" in response.message
    assert (response.certificate.status, response.certificate.method) == (cg.Status.SAMPLED, "heuristic")
    particles = LOOP.simulate(far(1000), 12.0, stop=FreeEnergyPlateau())
    assert particles.status == "stopped"
    assert particles.stopped_at > 1.5
    early = loop.simulate(start, 0.3, stop=dataclasses.replace(rule, interval=0.1))
    assert "3 checks were made, its window has 5" in early.message
    assert early.certificate.status is cg.Status.UNDECIDED
    assert rule.verify(loop.simulate(start, 20.0, record=201)).status is cg.Status.SAMPLED
    assert rule.verify(loop.simulate(start, 1.0, record=21)).status is cg.Status.UNDECIDED
