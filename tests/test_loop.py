"""The loop: what is recorded, how runs end, and that nothing about the cut shows in the particles."""

import os
import signal
import threading
import time

import numpy as np
import pytest

import ctrlgen as cg
from ctrlgen import loop as loop_module
from ctrlgen.plants import ensemble

WELL = cg.DoubleWell()
LOOP = cg.ClosedLoop(cg.Langevin(0.3, 0.02), WELL)
START = np.random.default_rng(0).normal(size=(50, 2))


@pytest.mark.parametrize("options", [{"record": 2}, {"record": 37}, {"record": 10_000}, {"progress": True}], ids=str)
def test_same_key_same_particles_whatever_is_recorded(options, monkeypatch):
    plain = LOOP.simulate(START, 4.0, key=5)
    np.testing.assert_array_equal(LOOP.simulate(START, 4.0, key=5, **options).final, plain.final)
    assert not np.array_equal(LOOP.simulate(START, 4.0, key=6, **options).final, plain.final)


def test_same_particles_whatever_the_length_of_a_call(monkeypatch):
    plain = LOOP.simulate(START, 6.0, key=5)
    for seconds in (1e-9, 1e9):
        monkeypatch.setattr(loop_module, "CALL_SECONDS", seconds)
        np.testing.assert_array_equal(LOOP.simulate(START, 6.0, key=5).final, plain.final)


def test_same_particles_in_one_block_or_in_several(monkeypatch):
    start = np.random.default_rng(1).normal(size=(1501, 2))
    monkeypatch.setattr(ensemble, "_blocks", lambda n, footprint: 1)
    whole = LOOP.simulate(start, 1.0, key=3).states
    monkeypatch.setattr(ensemble, "_blocks", lambda n, footprint: 4)
    cut = LOOP.simulate(start, 1.0, key=3).states
    assert cut.shape == whole.shape
    np.testing.assert_array_equal(cut, whole)


def test_a_gaussian_that_overflows_is_told_without_particles():
    energy = cg.Quadratic(1e-3 * np.array([[1.0, 0.5], [0.5, 1.0]]))
    start = cg.Gaussian([0.0, 0.0], 1.7e308 * np.eye(2))
    response = cg.ClosedLoop(cg.GaussianPlant(0.5), energy).simulate(start, 1.0, record=5)
    assert response.status == "diverged"
    assert response.message.startswith("covariance must be finite")


def test_blocks_are_used_on_a_machine_with_cores(monkeypatch):
    monkeypatch.setattr(ensemble, "cores", lambda: 4)
    assert ensemble._blocks(10_000, 2) == 4
    assert ensemble._blocks(100, 2) == 1
    assert ensemble._blocks(1_000_000, 2) > 4
    assert ensemble._blocks(10_000, cg.MLPEnergy(2, width=128).footprint) == 8  # a network's layers stay in cache


def test_a_particle_does_not_depend_on_how_many_others_there_are():
    few = LOOP.simulate(START[:7], 1.0, key=2).final
    np.testing.assert_allclose(LOOP.simulate(START, 1.0, key=2).final[:7], few, atol=1e-6)


def test_records_include_start_and_end():
    response = LOOP.simulate(START, 2.0, record=11)
    assert response.time.shape == (11,)
    assert response.states.shape == (11, 50, 2)
    np.testing.assert_allclose(response.time, np.linspace(0, 2, 11), atol=1e-12)
    np.testing.assert_array_equal(response.states[0], START.astype(np.float32))
    np.testing.assert_array_equal(response.states[-1], response.final)
    # a recorded instant is the state at that time, not a neighbour
    np.testing.assert_array_equal(LOOP.simulate(START, 1.0, record=2).final, response.states[5])
    assert LOOP.simulate(START, 0.1, record=100).time.shape == (6,)  # five steps: no more than there are


def test_duration_is_rounded_up_to_whole_steps():
    assert LOOP.simulate(START, 0.05).time[-1] == pytest.approx(0.06)
    assert LOOP.simulate(START, 0.06).time[-1] == pytest.approx(0.06)


def test_initial_distribution_is_sampled():
    source = cg.Gaussian([1.0, 0.0], 0.01 * np.eye(2))
    response = LOOP.simulate(source, 0.02, particles=4000)
    assert response.states.shape[1] == 4000
    assert abs(response.states[0, :, 0].mean() - 1.0) < 4.5 * 0.1 / np.sqrt(4000)
    again = LOOP.simulate(source, 0.02, particles=4000)
    np.testing.assert_array_equal(response.states, again.states)


def test_divergence_is_located_to_the_step_and_the_particle():
    quartic = cg.SymbolicEnergy("x**4", ["x"])
    start = np.array([[0.1], [0.2], [30.0], [0.1]])
    with pytest.warns(UserWarning, match="beyond the stability limit"):
        response = cg.ClosedLoop(cg.GradientFlow(0.01), quartic).simulate(start, 10.0, record=500)
    # the same recursion in NumPy, in float32
    x, steps = np.float32(30.0), 0
    with np.errstate(over="ignore", invalid="ignore"):
        while np.isfinite(x):
            x, steps = np.float32(x - np.float32(0.01) * np.float32(4) * x**3), steps + 1
    assert response.status == "diverged"
    assert response.steps == steps - 1
    assert f"at step {steps} " in response.message
    assert "1 of 4 particles (2)" in response.message
    assert np.isfinite(response.states).all()
    assert np.isfinite(response.final).all()
    assert response.time[-1] == pytest.approx((steps - 1) * 0.01)


def test_divergence_raises_when_asked_and_keeps_the_response():
    quartic = cg.SymbolicEnergy("x**4", ["x"])
    with (
        pytest.warns(UserWarning, match="beyond the stability limit"),
        pytest.raises(cg.DivergenceError, match="no longer finite") as caught,
    ):
        cg.ClosedLoop(cg.GradientFlow(0.01), quartic).simulate([[30.0]], 1.0, throw=True)
    assert caught.value.response.status == "diverged"


@pytest.mark.parametrize(
    ("plant", "energy", "limit"),
    [
        (cg.Langevin(1.0, 0.6), cg.Quadratic(np.diag([1.0, 4.0])), 0.5),
        (cg.Langevin(1.0, 2.5, metric=[1.0, 4.0]), cg.Quadratic(np.diag([1.0, 4.0])), 2.0),
        (cg.KineticLangevin(1.0, 1.0, 1.1), cg.Quadratic(np.diag([1.0, 4.0])), 1.0),
        (cg.GradientFlow(0.6), cg.Quadratic(np.diag([1.0, 4.0])), 0.5),
        (cg.Langevin(1.0, 0.3), cg.SymbolicEnergy("x**2*4 + y**2", ["x", "y"]), 0.25),
    ],
    ids=str,
)
def test_a_step_beyond_the_limit_warns_with_the_limit(plant, energy, limit):
    # raised, as all warnings in tests, before anything runs
    with pytest.raises(UserWarning, match=rf"beyond the stability limit {limit:g} "):
        cg.ClosedLoop(plant, energy).simulate(START, plant.step)


@pytest.mark.parametrize(
    "plant",
    [
        cg.Langevin(1.0, 0.49),
        cg.Langevin(1.0, 0.6, scheme="mala"),
        pytest.param(cg.GradientFlow(1.0, "adaptive"), marks=pytest.mark.slow),
    ],
    ids=["stable", "metropolis", "adaptive"],
)
def test_no_warning_where_the_step_is_stable_or_adjusted(plant):
    cg.ClosedLoop(plant, cg.Quadratic(np.diag([1.0, 4.0]))).simulate(START, plant.step)  # warnings are errors here


def test_interrupt_returns_what_there_is():
    timer = threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGINT))
    LOOP.simulate(START, 0.1)  # compiled before the clock starts
    timer.start()
    began = time.monotonic()
    response = LOOP.simulate(START, 1e7, key=1)
    timer.cancel()
    assert response.status == "interrupted"
    assert 0 < response.steps < 5e8
    assert "interrupted at step" in response.message
    assert np.isfinite(response.final).all()
    assert time.monotonic() - began < 60
    assert len(response.time) >= 2


class AfterSteps:
    """A rule that stops at a given time; counts its checks."""

    interval = 0.1

    def __init__(self, when):
        self.when, self.checked = when, []

    def monitor(self, start):
        self.start = start
        return self

    def check(self, now):
        self.checked.append(now.step)
        return f"t reached {now.time:g}" if now.time >= self.when - 1e-9 else None

    def unmet(self):
        return "the rule was not met"

    def verdict(self):
        status = cg.Status.SAMPLED if self.checked and self.checked[-1] * LOOP.plant.step >= self.when - 1e-9 else None
        return cg.Verdict(claim="t is late", status=status or cg.Status.UNDECIDED, method="clock", reason="own words")


@pytest.mark.parametrize("record", [2, 50])
def test_a_rule_stops_the_run_where_it_says(record):
    rule = AfterSteps(1.0)
    response = LOOP.simulate(START, 5.0, key=4, stop=rule, record=record)
    assert response.status == "stopped"
    assert response.stopped_at == pytest.approx(1.0)
    assert response.steps == 50
    assert rule.checked == list(range(5, 51, 5))
    assert "t reached 1 (step 50, t = 1); known of the law there: t is late [SAMPLED]" in response.message
    assert response.message in str(response)
    assert (response.rule, response.certificate.status) == ("AfterSteps", cg.Status.SAMPLED)
    assert response.certificate.reason == "own words"
    start = rule.start
    assert (start.plant, start.energy, start.steps, start.step) == (LOOP.plant, LOOP.controller, 250, 0.02)
    assert start.initial is START
    assert response.initial is START
    np.testing.assert_array_equal(response.final, LOOP.simulate(START, 1.0, key=4).final)
    assert response.time[-1] == pytest.approx(1.0)


def test_a_rule_that_is_not_met_says_so():
    response = LOOP.simulate(START, 1.0, stop=AfterSteps(9.0))
    assert response.status == "completed"
    assert response.stopped_at is None
    assert "the rule was not met" in response.message
    assert response.certificate.status is cg.Status.UNDECIDED
    assert response.certificate.reason == response.message == "ran its 50 steps; the rule was not met"
    plain = LOOP.simulate(START, 0.1)
    assert (plain.rule, plain.certificate) == (None, None)


class Due(AfterSteps):
    """A rule that names the steps at which it wants to be asked, one after the other."""

    due = (3,)

    def check(self, now):
        self.checked.append(now.step)
        self.due = {3: (4,), 4: (41, 17), 17: ()}[now.step]


def test_a_rule_may_name_its_steps():
    rule = Due(9.0)
    response = LOOP.simulate(START, 1.0, stop=rule, record=4)
    assert rule.checked == [3, 4, 17]
    assert (response.status, response.steps) == ("completed", 50)
    late = Due(9.0)
    late.due = (1000,)
    assert LOOP.simulate(START, 1.0, stop=late).status == "completed"
    assert late.checked == []


class Refuses(AfterSteps):
    def monitor(self, start):
        raise ValueError(f"no rule for {type(start.plant).__name__}")


def test_a_rule_refuses_before_any_work(monkeypatch):
    monkeypatch.setattr(cg.Langevin, "start", lambda *a, **k: pytest.fail("work was done"))
    with pytest.raises(ValueError, match="no rule for Langevin"):
        LOOP.simulate(START, 1.0, stop=Refuses(1.0))


def test_a_rule_of_a_run_that_failed_says_how_it_ended():
    quartic = cg.SymbolicEnergy("x**4", ["x"])
    with pytest.warns(UserWarning, match="beyond the stability limit"):
        response = cg.ClosedLoop(cg.GradientFlow(0.01), quartic).simulate([[30.0]], 1.0, stop=AfterSteps(9.0))
    assert response.status == "diverged"
    assert response.certificate.status is cg.Status.UNDECIDED
    assert "no longer finite" in response.certificate.reason
    assert "the rule was not met" in response.certificate.reason


def test_memory_does_not_grow_with_the_steps():
    response = LOOP.simulate(START, 400.0, record=5)  # 20 000 steps
    assert response.states.shape[0] == 5
    assert response.steps == 20_000


def test_generate_is_the_trained_energys_own_loop():
    energy = cg.TrainedEnergy(
        cg.Quadratic(np.eye(2)), [1.0, -1.0], [0.5, 20.0], temperature=0.7, step=0.05, duration=5.0
    )
    x = cg.generate(energy, 20_000, key=3)
    assert x.shape == (20_000, 2)
    np.testing.assert_array_equal(x, cg.generate(energy, 20_000, key=3))
    # stationary variance of ULA in standardised units, the same in every column
    expected = 0.7 / (1 - 0.05 / 2)
    z = (x.astype(np.float64) - [1.0, -1.0]) / [0.5, 20.0]
    error = expected * np.sqrt(2 / len(x))
    assert (np.abs(z.var(axis=0) - expected) < 4.5 * error).all()
    with pytest.raises(TypeError, match="which knows its own loop; got DoubleWell"):
        cg.generate(WELL, 10)  # pyright: ignore


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: cg.ClosedLoop(WELL, WELL), TypeError, "plant must be a ctrlgen plant; got DoubleWell"),
        (lambda: cg.ClosedLoop(LOOP.plant, lambda x: x), TypeError, "Wrap a function with cg.CallableEnergy"),
        (lambda: cg.ClosedLoop(LOOP.plant, WELL, schedule="hot"), ValueError, "schedule must be 'static'"),
        (lambda: cg.ClosedLoop(LOOP.plant, WELL, safety=1), TypeError, "safety must be a SafetyFilter or None"),
        (lambda: cg.ClosedLoop(cg.Langevin(1.0, 0.1, metric=[1.0]), WELL), ValueError, "the plant has 1, the energy 2"),
        (lambda: LOOP.simulate(START, 0.0), ValueError, "duration must be positive"),
        (lambda: LOOP.simulate(START, np.inf), ValueError, "duration must be positive and finite"),
        (lambda: LOOP.simulate(START, 1.0, record=1), ValueError, "record must be an integer of at least 2"),
        (lambda: LOOP.simulate(START, 1.0, stop=3), TypeError, "stop must be a rule"),
        (lambda: LOOP.simulate(START[:, :1], 1.0), ValueError, r"shape \(n, 2\) with n >= 1.*got shape \(50, 1\)"),
        (lambda: LOOP.simulate(START[0], 1.0), ValueError, r"got shape \(2,\)"),
        (
            lambda: LOOP.simulate(np.full((3, 2), np.nan), 1.0),
            ValueError,
            "3 of 3 particles are not, the first at row 0",
        ),
        (lambda: LOOP.simulate("noise", 1.0), ValueError, "an \\(n, d\\) array of particles or a distribution"),
        (lambda: LOOP.simulate(START, 1.0, dtype=np.int32), ValueError, "dtype must be float32 or float64"),
        (lambda: LOOP.simulate(START, 1.0, key="a"), ValueError, "key must be an integer seed"),
        (lambda: LOOP.simulate(cg.Gaussian([0.0, 0.0], np.eye(2)), 1.0, particles=0), ValueError, "particles must be"),
    ],
)
def test_bad_input_is_named_before_any_work(call, error, message):
    with pytest.raises(error, match=message):
        call()
