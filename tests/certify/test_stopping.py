"""Stopping rules: they stop where the law has settled, not before, and say what they know."""

import numpy as np
import pytest

import ctrlgen as cg
from ctrlgen.certify.stopping import SteinResidual

OU = cg.Quadratic(np.diag([1.0, 2.0]))


def test_stops_near_equilibrium_and_not_before():
    loop = cg.ClosedLoop(cg.Langevin(1.0, 0.01), OU)
    start = 6 + np.random.default_rng(0).normal(size=(4000, 2))
    response = loop.simulate(start, 20.0, stop=SteinResidual(z=1.0, checks=3, interval=0.25))
    assert response.status == "stopped"
    assert "SteinResidual: the residual" in response.message
    assert "no bound on KL" in response.message
    # KL ≈ 18 e^{-2t} from the slow axis: below 0.01 only after t = 3.7
    assert 2.5 < response.stopped_at < 20.0
    assert response.kl[-1] < 0.1


def test_a_single_check_is_more_easily_fooled_than_several_in_a_row():
    loop = cg.ClosedLoop(cg.Langevin(1.0, 0.01), OU)
    start = 6 + np.random.default_rng(0).normal(size=(4000, 2))
    when = [loop.simulate(start, 20.0, stop=SteinResidual(checks=m, interval=0.1)).stopped_at for m in (1, 6)]
    assert when[0] < when[1]


def test_not_met_is_said():
    loop = cg.ClosedLoop(cg.Langevin(1.0, 0.01), OU)
    response = loop.simulate(np.full((500, 2), 50.0), 0.5, stop=SteinResidual())
    assert response.status == "completed"
    assert "SteinResidual was not met: the last residual was" in response.message


def test_waits_until_the_schedule_has_reached_the_temperature():
    loop = cg.ClosedLoop(cg.Langevin(1.0, 0.01), OU, schedule=cg.Annealing(2.0, 3.0))
    start = np.random.default_rng(0).normal(size=(2000, 2)) * np.sqrt([2.0, 1.0])  # in equilibrium with factor 2
    response = loop.simulate(start, 8.0, stop=SteinResidual(z=3.0, checks=1, interval=0.5))
    assert response.stopped_at is not None
    assert response.stopped_at >= 3.0
    early = loop.simulate(start, 2.0, stop=SteinResidual())
    assert "never evaluated at the final temperature" in early.message


def test_refuses_what_it_cannot_judge():
    loop = cg.ClosedLoop(cg.GaussianPlant(1.0), OU)
    with pytest.raises(ValueError, match="for particle plants; this loop's plant is a gaussian"):
        loop.simulate(cg.Gaussian([0.0, 0.0], np.eye(2)), 1.0, stop=SteinResidual())
    for arguments, message in [
        ({"z": 0.0}, "z must be positive"),
        ({"checks": 0}, "checks must be at least 1"),
        ({"interval": -1.0}, "interval must be positive"),
    ]:
        with pytest.raises(ValueError, match=message):
            SteinResidual(**arguments)
