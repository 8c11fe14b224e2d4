"""What is certain of a safety filter: solvability by Farkas, forward invariance, exits by noise, inherited decay."""

import numpy as np
import pytest

import ctrlgen as cg
from ctrlgen.prove.claim import Status

XY = ["x", "y"]


def barrier(text, states=XY):
    return cg.BarrierFunction(text, states)


DISC = barrier("1 - x**2 - y**2")
ANNULUS = [barrier("x**2 + y**2 - 1/4"), barrier("4 - x**2 - y**2")]


def test_without_noise_the_filtered_flow_keeps_the_set_whatever_the_energy():
    verdict = cg.SafetyFilter(ANNULUS, 1.0).verify()
    assert verdict.status is Status.PROVED
    assert verdict.recheck()
    assert "trajectories of ẋ = u + δ that start with all h ≥ 0 keep all h ≥ 0" in verdict.claim


@pytest.mark.parametrize(("gain", "status"), [(2.01, Status.PROVED), (2.0, Status.PROVED), (1.99, Status.REFUTED)])
def test_the_stochastic_term_needs_a_gain(gain, status):
    """At the centre ∇h = 0, and εΔh + gain·h = -4·½ + gain: solvable from gain = 2 on, exactly."""
    verdict = cg.SafetyFilter(DISC, gain).verify(temperature=0.5)
    assert verdict.status is status
    if status is Status.REFUTED:
        np.testing.assert_allclose(verdict.witness, 0, atol=1e-6)
        assert verdict.recheck()
        found = cg.SafetyFilter(DISC, gain).correct(np.zeros((1, 2)), verdict.witness[None], 0.5)
        assert not found.feasible[0]  # the program itself says so there


def test_a_metric_changes_the_threshold():
    """tr(K∇²h) = -2 (K11 + K22) with K = M⁻¹ = diag(2, 1/4): the threshold is 4.5 ε."""
    metric = [0.5, 4.0]
    assert cg.SafetyFilter(DISC, 2.25).verify(0.5, metric).status is Status.PROVED
    assert cg.SafetyFilter(DISC, 2.24).verify(0.5, metric).status is Status.REFUTED
    assert cg.SafetyFilter(DISC, 2.25).verify(0.5, np.diag(metric)).status is Status.PROVED


def test_means_and_paths_are_told_apart():
    with_noise = cg.SafetyFilter(DISC, 5.0).verify(0.5)
    assert "No path is kept by that" in with_noise.claim
    assert "keep all h" not in with_noise.claim


def test_opposed_barriers_need_farkas():
    """In the annulus the gradients are opposite everywhere: λ (4ε - 4ε) + gain (h₁ + h₂) > 0, for any gain."""
    safety = cg.SafetyFilter(ANNULUS, 0.1)
    verdict = safety.verify(0.5)
    assert verdict.status is Status.PROVED
    assert verdict.recheck()
    x = np.random.default_rng(0).uniform(-2, 2, (2000, 2))
    x = x[safety.contains(x)]
    assert safety.correct(cg.Quadratic(np.eye(2), [3.0, 0.0]), x, 0.5).feasible.all()


def test_two_caps_that_contradict_each_other_are_refuted():
    """A lens: between the centres the gradients are opposite, and 2ε·4 of curvature is more than the gain gives."""
    lens = [barrier("1 - (x - 1/2)**2 - y**2"), barrier("1 - (x + 1/2)**2 - y**2")]
    safety = cg.SafetyFilter(lens, 1.0)
    verdict = safety.verify(0.5)
    assert verdict.status is Status.REFUTED
    assert not safety.correct(np.zeros((1, 2)), verdict.witness[None, :2], 0.5).feasible[0]
    assert cg.SafetyFilter(lens, 5.0).verify(0.5).status is Status.PROVED


def test_many_half_spaces_are_easy():
    assert cg.SafetyFilter(cg.Box([-1] * 6, [1] * 6), 1.0).verify(1.0).status is Status.PROVED


@pytest.mark.parametrize(
    ("safety", "words"),
    [
        (cg.SafetyFilter(cg.BarrierFunction(lambda x: 1 - abs(x[0]) - x[1] ** 2, XY), 1.0), ""),
        (cg.SafetyFilter(DISC, 1.0, mode="reflected"), "it is about mode 'cbf' at rest"),
        (cg.SafetyFilter(DISC, 1.0, tube=1.0), "a tube closes"),
        (
            cg.SafetyFilter(cg.BarrierFunction(cg.MLPEnergy(2, width=8, depth=1, confinement=1.0), XY), 1.0),
            "no formula",
        ),
    ],
)
def test_what_is_not_covered_is_undecided(safety, words):
    verdict = safety.verify(0.5)
    assert verdict.status is Status.UNDECIDED
    assert words in verdict.reason


def test_noise_alone_leaves_with_a_proved_bound():
    """Beside the true probability, simulated in NumPy with a small step."""
    safety = cg.SafetyFilter(barrier("4 - x**2 - y**2"), 1.0)
    verdict = safety.exit_probability(
        cg.Quadratic(np.eye(2)), 0.3, cg.Ball([0, 0], 0.5), 1.0, domain=cg.Ball([0, 0], 2.5)
    )
    assert verdict.status is Status.PROVED
    assert verdict.recheck()
    rng, n, h = np.random.default_rng(0), 20_000, 0.005
    x, left = np.tile([0.5, 0.0], (n, 1)), np.zeros(n, bool)
    for _ in range(200):
        x = x - h * x + np.sqrt(2 * 0.3 * h) * rng.standard_normal(x.shape)
        left |= (x**2).sum(axis=1) > 4
    assert left.mean() <= verdict.probability < 0.5
    assert verdict.probability > 0


def test_exits_through_several_barriers_add():
    halves = cg.SafetyFilter(cg.Polytope([[1, 0], [-1, 0]], [2, 2]), 1.0)
    energy, start, within = cg.Quadratic(np.eye(2)), cg.Ball([0, 0], 0.5), cg.Box([-3, -3], [3, 3])
    both = halves.exit_probability(energy, 0.2, start, 1.0, within, degree=2)
    one = cg.SafetyFilter(cg.Polytope([[1, 0]], [2]), 1.0).exit_probability(energy, 0.2, start, 1.0, within, degree=2)
    assert both.status is one.status is Status.PROVED
    assert both.probability == pytest.approx(2 * one.probability, rel=0.1)
    network = cg.MLPEnergy(2, width=8, depth=1, confinement=1.0)
    assert halves.exit_probability(network, 0.2, start, 1.0).status is Status.UNDECIDED
    with pytest.raises(ValueError, match="temperature must be positive"):
        halves.exit_probability(energy, 0.0, start, 1.0)


ENERGY = cg.Quadratic(np.diag([1.0, 2.0]), [0.8, 0.0])


def decay(mode, plant, energy=ENERGY, of=None, **options):
    safety = cg.SafetyFilter(DISC, 1.0, mode=mode, **options)
    loop = cg.ClosedLoop(plant, energy, safety=safety)
    target = loop.energy if of is None else of
    return cg.KLLyapunov(target, plant.temperature).verify(loop, measure=False)


def test_kl_falls_in_a_convex_set_at_the_rate_of_convexity():
    """Bakry–Émery on a convex set: twice the least curvature; the barrier adds 2μ of its own in the unit disc."""
    plant = cg.Langevin(0.5, 0.01, scheme="mala")
    walls = decay("reflected", plant)
    assert walls.status is Status.PROVED
    assert walls.rate == pytest.approx(2.0, rel=1e-9)
    assert walls.rate <= 2.0
    assert walls.recheck()
    inside = decay("barrier_energy", plant, mu=0.3)
    assert inside.status is Status.PROVED
    assert inside.rate == pytest.approx(2 * (1.0 + 2 * 0.3), rel=1e-9)
    gap = -2 * cg.FokkerPlanckGrid([(-1.05, 1.05)] * 2, (80, 80), 0.5).spectrum(
        cg.SafetyFilter(DISC, 1.0, mode="reflected").energy(ENERGY), 1
    )
    assert walls.rate < float(gap[0])


def test_what_does_not_keep_the_measure_has_no_certificate():
    plant = cg.Langevin(0.5, 0.01)
    for verdict in (
        decay("cbf", plant),
        decay("reflected", plant, of=ENERGY),
        decay("reflected", cg.KineticLangevin(0.5, 1.0, 0.01)),
        decay("barrier_energy", plant, of=ENERGY, mu=lambda t: 0.1 + 0 * t),
    ):
        assert verdict.status is Status.UNDECIDED
    walled = cg.SafetyFilter(DISC, 1.0, mode="reflected").energy(ENERGY)
    alone = cg.KLLyapunov(walled, 0.5).verify(cg.ClosedLoop(plant, walled), measure=False)
    assert alone.status is Status.UNDECIDED
    assert "nothing keeps its particles behind the walls" in alone.reason


def test_a_set_that_is_not_convex_has_no_rate_from_convexity():
    loop = cg.ClosedLoop(
        cg.Langevin(0.5, 0.01, scheme="mala"), ENERGY, safety=cg.SafetyFilter(ANNULUS, 1.0, mode="reflected")
    )
    verdict = cg.KLLyapunov(loop.energy, 0.5).verify(loop, measure=False)
    assert verdict.rate is None
    assert verdict.status is Status.UNDECIDED


def test_walls_of_the_controller_itself_are_not_the_filters():
    """Only the filter's set reflects: a controller with walls of its own loses its particles through them."""
    energy = cg.Quadratic(np.eye(1))
    small, big = (cg.SafetyFilter(cg.Box([-a], [a]), mode="reflected") for a in (0.1, 3.0))
    loop = cg.ClosedLoop(cg.Langevin(1.0, 1e-3), small.energy(energy), safety=big)
    assert cg.KLLyapunov(loop.energy, 1.0).verify(loop, measure=False).status is Status.UNDECIDED
    left, right = (cg.SafetyFilter(cg.Box([a], [a + 1]), mode="reflected") for a in (-3, 2))
    for plant in (cg.Langevin(1.0, 1e-3), cg.Langevin(1.0, 1e-3, scheme="mala")):
        apart = cg.ClosedLoop(plant, right.energy(energy), safety=left)
        assert cg.KLLyapunov(apart.energy, 1.0).verify(apart, measure=False).status is Status.UNDECIDED
    assert cg.log_sobolev(left.energy(right.energy(energy)), 1.0).status is Status.UNDECIDED
    barrier = cg.SafetyFilter(cg.Box([-1], [1]), mode="barrier_energy", mu=0.05).energy(energy)
    alone = cg.ClosedLoop(cg.Langevin(1.0, 1e-4), barrier)
    assert cg.KLLyapunov(barrier, 1.0).verify(alone, measure=False).status is Status.UNDECIDED
    gauss = cg.ClosedLoop(cg.GaussianPlant(1.0), small.energy(energy))
    assert cg.KLLyapunov(small.energy(energy), 1.0).verify(gauss, measure=False).status is Status.UNDECIDED


def test_constants_of_symmetric_boxes_are_numbers():
    for a in np.linspace(0.1, 9.9, 23):
        energy = cg.SafetyFilter(cg.Box([-a], [a]), mode="barrier_energy", mu=1.0).energy(cg.Quadratic(np.eye(1)))
        bound = 1 + 8 / (2 * a) ** 2
        assert bound * (1 - 1e-12) <= energy.properties.hessian_lower <= bound * (1 + 1e-12)


def test_a_gain_is_judged_on_the_values_of_h_alone():
    """α(z) = z (100 - z) is negative from z = 100 on, which h = 1 - x² never reaches."""
    line = cg.BarrierFunction("1 - x**2", ["x"])
    assert cg.SafetyFilter(line, "h*(100 - h)").verify().status is Status.PROVED
    odd = cg.SafetyFilter(line, "h*(100 - h)").verify(temperature=0.01)
    assert odd.status is Status.PROVED


def test_a_domain_is_part_of_the_claim():
    line = cg.SafetyFilter(cg.BarrierFunction("1 - x**2", ["x"]))
    part = line.verify(temperature=1, domain=cg.Box([0.8], [1.0]))
    assert part.status is Status.PROVED
    assert "safe state of the domain" in part.claim
    assert "nothing is said of states outside the domain" in part.assumptions
    assert line.verify(temperature=1).status is Status.REFUTED
    flow = line.verify(domain=cg.Box([0.8], [1.0]))
    assert "a trajectory is followed only while it stays in the domain" in flow.assumptions
    with pytest.raises(ValueError, match="metric must be"):
        line.verify(1.0, metric=[-1.0])


def test_what_happens_at_the_border_is_an_assumption_of_every_walled_loop():
    """Also of a loop whose energy has the walls itself, and whose Metropolis steps reject what leaves."""
    walled = cg.SafetyFilter(DISC, 1.0, mode="reflected").energy(ENERGY)
    alone = cg.ClosedLoop(cg.Langevin(0.5, 0.01, scheme="mala"), walled)
    verdict = cg.KLLyapunov(walled, 0.5).verify(alone, measure=False)
    assert verdict.status is Status.PROVED
    assert any("nothing flows through the border" in a for a in verdict.assumptions)
    free = cg.KLLyapunov(ENERGY, 0.5).verify(cg.ClosedLoop(cg.Langevin(0.5, 0.01), ENERGY), measure=False)
    assert not any("border" in a for a in free.assumptions)
