"""Density feedback: CASES 15, sampling without bias, other energies, dimensions and laws."""

import numpy as np
import pytest
from scipy.linalg import solve_continuous_are

import ctrlgen as cg
from ctrlgen.interop.design import density_feedback

WELLS = cg.SymbolicEnergy("(x**2 - 1)**2 + y**2/2", ["x", "y"])
GRID = cg.FokkerPlanckGrid([(-2.2, 2.2)] * 2, (60, 60), 0.2)
START = cg.Gaussian([1.0, 0.0], 0.05 * np.eye(2))


def first_below(response, level):
    below = np.flatnonzero(response.kl <= level)
    return response.time[below[0]] if len(below) else np.inf


def test_case_15_on_the_grid():
    # CASES.md 15: KL 0.44 at t = 14 in the open loop; KL 1e-3 at t = 1.79 under inputs x and y clipped at ±5
    closed = cg.ClosedLoop(GRID, density_feedback(WELLS, GRID, ["x", "y"], limit=5.0)).simulate(START, 3.0, record=301)
    free = cg.ClosedLoop(GRID, WELLS).simulate(START, 300.0, record=601)
    assert free.kl[28] == pytest.approx(0.44, abs=0.01)
    assert first_below(closed, 1e-3) <= 1.85
    assert first_below(free, 1e-3) >= 100 * first_below(closed, 1e-3)
    assert np.abs(closed.inputs).max() == 5.0
    assert np.abs(closed.inputs[-1]).max() < 1e-6  # u -> 0: the Gibbs measure is the uncontrolled one
    assert closed.kl[-1] < 2e-6


@pytest.mark.slow
def test_particles_reach_the_sampling_floor_and_stay_at_the_gibbs_measure():
    block = density_feedback(WELLS, GRID, ["x", "y"])
    r = cg.ClosedLoop(cg.Langevin(0.2, 0.005), block).simulate(START, 8.0, record=9, particles=10_000)
    assert np.abs(r.kl[3:]).max() < 0.02
    assert np.abs(r.kl[4:].mean()) < 0.005 + 2 * r.kl_error[-1]
    mass = (r.states[4:, :, 0] > 0).mean(axis=1)
    assert np.abs(mass - 0.5).max() < 0.01
    exact = cg.Gibbs(WELLS, 0.2).sample(1, 10_000)
    floor = cg.measure.sampling_floor(cg.Gibbs(WELLS, 0.2), 2000)
    w2 = cg.measure.wasserstein2(r.final[:2000], exact[:2000])
    assert float(w2.value) < float(floor.value) + 4 * float(floor.error)


@pytest.mark.slow
def test_unequal_wells_and_a_small_gap():
    energy = cg.SymbolicEnergy("(x**2 - 1)**2 + (y**2 - 1)**2 + x/10", ["x", "y"])
    run = cg.ClosedLoop(GRID, density_feedback(energy, GRID, ["x", "y"])).simulate(START, 3.0, record=301)
    assert first_below(run, 1e-3) < 2.2
    cold = cg.FokkerPlanckGrid([(-2.2, 2.2)], (200,), 0.1)
    well = cg.SymbolicEnergy("(x**2 - 1)**2", ["x"])
    block = density_feedback(well, cold, ["x"])
    assert abs(block.design.modes.rates[0]) < 1e-4
    run = cg.ClosedLoop(cold, block).simulate(cg.Gaussian([1.0], [[0.05]]), 4.0, record=401)
    assert first_below(run, 1e-3) < 3.0  # the open loop takes 4e4


@pytest.mark.parametrize("order", [1, 2])
def test_few_modes_know_the_gap_after_them(order):
    block = density_feedback(WELLS, GRID, ["x"], order=order)
    assert block.period < 0.1
    assert block.design.poles.real.max() < -0.9
    assert first_below(cg.ClosedLoop(GRID, block).simulate(START, 3.0, record=301), 1e-3) < 1.9


def test_several_slow_modes_are_sampled_often_enough():
    energy = cg.SymbolicEnergy("(x**2 - 1)**2 + (y**2 - 1)**2 + x/10", ["x", "y"])  # four wells: three slow modes
    block = density_feedback(energy, GRID, ["x", "y"])
    assert block.period < 0.02
    start = START.sample(0, 5000)
    run = cg.ClosedLoop(cg.Langevin(0.2, 0.005), block).simulate(start, 3.0, record=4)
    assert run.kl[-1] < 0.05


def test_modes_as_inputs_when_none_are_given():
    energy = cg.load_energy("two_moons")
    grid = cg.FokkerPlanckGrid([(-6, 6)] * 2, (60, 60), 1.0)
    block = density_feedback(energy, grid)
    assert len(block.inputs) == 5
    run = cg.ClosedLoop(grid, block).simulate(cg.Gaussian([2.0, 0.0], 0.05 * np.eye(2)), 3.0, record=301)
    free = cg.ClosedLoop(grid, energy).simulate(cg.Gaussian([2.0, 0.0], 0.05 * np.eye(2)), 60.0, record=601)
    assert first_below(free, 1e-3) > 15 * first_below(run, 1e-3)


def test_the_gain_is_the_continuous_regulator_for_short_periods():
    block = density_feedback(WELLS, GRID, ["x", "y"], order=5, period=1e-4, decay=0.3, effort=0.01)
    d = block.design
    weight = np.diag(0.01 * (d.modes.spread(block.inputs) / 0.2) ** 2)
    a = np.diag(d.modes.rates) + 0.3 * np.eye(5)
    p = solve_continuous_are(a, d.steer, np.eye(5), weight)
    np.testing.assert_allclose(d.gain, np.linalg.solve(weight, d.steer.T @ p), rtol=2e-3, atol=2e-3)
    poles = np.linalg.eigvals(np.diag(d.modes.rates) - d.steer @ d.gain)
    np.testing.assert_allclose(np.sort(poles.real), np.sort(d.poles.real), rtol=1e-2)
    assert poles.real.max() < -0.3


def test_decay_that_no_input_reaches():
    with pytest.raises(ValueError, match=r"decay must be below the rates of modes that no input reaches; modes \[0"):
        density_feedback(WELLS, GRID, ["y"], order=3, decay=0.5)
    block = density_feedback(WELLS, GRID, ["y"], order=3)  # by itself it leaves that mode alone
    assert np.abs(block.design.gain[:, 0]).max() < 1e-6
    assert block.design.poles.real.max() == pytest.approx(block.design.modes.rates[0], rel=1e-3)


def test_a_rate_that_is_lost_in_rounding():
    cold = cg.FokkerPlanckGrid([(-2, 2)], (300,), 0.015)
    with pytest.raises(ValueError, match="slowest mode must be resolved"):
        density_feedback(cg.SymbolicEnergy("(x**2 - 1)**2", ["x"]), cold, ["x"], order=3)


def test_a_step_that_is_too_long_is_refused():
    block = density_feedback(WELLS, GRID, ["x", "y"], effort=1e-8, period=1e-3)
    with pytest.raises(ValueError, match="step must be short enough for the feedback"):
        cg.ClosedLoop(cg.Langevin(0.2, 0.1), block)
    assert block.design.stable_when_held(1e-3)


@pytest.mark.slow
def test_data_driven_feedback_in_four_dimensions():
    # a double well and three harmonic coordinates: no grid, modes from samples, features and the inputs
    energy = cg.SymbolicEnergy("(x1**2 - 1)**2 + x2**2/2 + x3**2 + x4**2/2 + x1*x3/10", ["x1", "x2", "x3", "x4"])
    x = cg.Gibbs(energy, 0.2).sample(0, 10_000)
    block = density_feedback(energy, cg.Langevin(0.2, 0.01), ["x1", "x2", "x4"], order=4, samples=x)
    start = cg.Gaussian([1.0, 0, 0, 0], 0.05 * np.eye(4))
    run = cg.ClosedLoop(cg.Langevin(0.2, 0.01), block).simulate(start, 6.0, record=7, particles=4000)
    free = cg.ClosedLoop(cg.Langevin(0.2, 0.01), energy).simulate(start, 6.0, record=7, particles=4000)
    share = (run.states[3:, :, 0] > 0).mean(axis=1)
    assert np.abs(share - 0.5).max() < 0.04
    assert (free.states[-1, :, 0] > 0).mean() > 0.9
    assert np.abs(np.cov(run.final.T) - np.cov(x.T)).max() < 0.06


class TestDissipative:
    @pytest.mark.parametrize(
        "start", [START, pytest.param(cg.Gaussian([-0.3, 0.5], 0.12 * np.eye(2)), marks=pytest.mark.slow)]
    )
    def test_kl_never_falls_slower_than_the_open_loop(self, start):
        block = density_feedback(WELLS, GRID, ["x", "y"], law="dissipative", period=0.002)
        run = cg.ClosedLoop(GRID, block).simulate(start, 1.0, record=101)
        drop = -np.gradient(run.kl, run.time)[1:-1]
        open_loop = np.array([GRID.dissipation(m, WELLS) for m in run.snapshots])[1:-1]
        assert np.all(drop > open_loop * (1 - 0.03) - 1e-3)
        u, k = run.inputs[1:-1], np.diag(block.design.gain)
        expected = open_loop + (u**2 / k / 0.2).sum(axis=1)
        assert drop[5:] == pytest.approx(expected[5:], rel=0.05, abs=5e-3)

    def test_gain_by_limit_over_spread(self):
        block = density_feedback(WELLS, GRID, ["y"], law="dissipative", limit=2.0)
        # Ly = -y has the standard deviation √ε
        assert block.design.gain[0, 0] == pytest.approx(2 / np.sqrt(0.2), rel=0.01)
        assert cg.ClosedLoop(cg.Langevin(0.2, 10 * block.period), block).controller is block  # any step will do
        with pytest.raises(ValueError, match="was not designed on modes"):
            block.design.poles  # noqa: B018


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"law": "pid"}, "law must be 'riccati' or 'dissipative'"),
        ({"effort": 0.0}, "effort must be positive"),
        ({"decay": -1.0}, "decay must be finite and ≥ 0"),
        ({"limit": -1.0}, "limit must be positive"),
        ({"inputs": ["1"]}, r"inputs\[0\] must vary"),
        ({"period": -1.0}, "period must be positive"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        density_feedback(WELLS, GRID, **{"inputs": ["x"], "order": 3, **options})
