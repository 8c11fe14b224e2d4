"""Ellipsoids of bilinear systems under saturated feedback: against simulation, and where there is none."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from ctrlgen.certify.saturated import Ellipsoid, Saturated, find_ellipsoid
from ctrlgen.prove.claim import Deadline


def system(loop):
    def rate(t, z):
        u = -np.clip(loop.gain @ z, -loop.limit, loop.limit)
        return loop.rates * z + loop.steer @ u + np.einsum("j,jkl,l->k", u, loop.bilinear, z)

    return rate


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("reach", [0.2, 0.3])
def test_bilinear_growth_bounds_the_set(sign, reach):
    # ż₁ = -z₁ ± 3uz₁ with u = -z₁: unstable beyond |z₁| = 1/3, on one side
    bend = np.zeros((1, 2, 2))
    bend[0, 0, 0] = 3.0 * sign
    loop = Saturated(np.array([-1.0, -2.0]), np.zeros((2, 1)), bend, np.array([[1.0, 0.0]]), np.ones(1), reach)
    ellipsoid, rate, steps = find_ellipsoid(loop, Deadline(20))
    assert rate > 0
    assert all(step.recheck() for step in steps)
    root = np.linalg.inv(np.linalg.cholesky(ellipsoid.matrix)).T
    assert np.abs(root[0]).max() < 1 / 3
    for angle in np.linspace(0, 2 * np.pi, 12):
        z0 = root @ [np.cos(angle), np.sin(angle)]
        run = solve_ivp(system(loop), (0, 3), z0, rtol=1e-9, atol=1e-13)
        v = np.einsum("it,ij,jt->t", run.y, ellipsoid.matrix, run.y)
        assert np.all(v <= np.exp(-rate * run.t) * (1 + 1e-6))


@pytest.mark.parametrize("sign", [1, -1])
def test_no_ellipsoid_beyond_the_unstable_point(sign):
    bend = np.full((1, 1, 1), 3.0 * sign)
    loop = Saturated(np.array([-1.0]), np.zeros((1, 1)), bend, np.ones((1, 1)), np.ones(1), 0.9)
    assert find_ellipsoid(loop, Deadline(20)) is None
    start = Saturated(np.array([-1.0]), np.zeros((1, 1)), bend, np.ones((1, 1)), np.ones(1), 0.3, np.array([0.4]))
    assert find_ellipsoid(start, Deadline(20)) is None


def linear(reach, start=None):
    rates, steer, gain = np.array([-0.1, -1.0]), np.array([[1.0], [0.5]]), np.array([[2.0, 0.0]])
    return Saturated(rates, steer, np.zeros((1, 2, 2)), gain, np.ones(1), reach, start)


def test_saturation_costs_rate():
    near, far = (find_ellipsoid(linear(reach), Deadline(20)) for reach in (1.0, 100.0))
    assert 0 < far[1] < 0.3 < near[1]
    fast = find_ellipsoid(replace(linear(1.0), rate=1.9), Deadline(20))  # poles -1 and -2.1 without saturation
    assert fast[1] >= 1.9
    assert np.linalg.det(fast[0].matrix) > np.linalg.det(near[0].matrix)  # on a smaller set
    assert find_ellipsoid(replace(linear(1.0), rate=2.1), Deadline(20)) is None
    assert find_ellipsoid(replace(linear(100.0), rate=1.0), Deadline(20)) is None
    held = find_ellipsoid(linear(30.0, np.array([10.0, 0.0])), Deadline(20))
    assert held[0].matrix[0, 0] * 100 <= 1
    for start, verdict in (([10.0, 0.0], held), ([0.4, 0.3], near)):
        p = verdict[0].matrix
        run = solve_ivp(system(verdict[0].loop), (0, 30), start, rtol=1e-9, atol=1e-13)
        v = np.einsum("it,ij,jt->t", run.y, p, run.y)
        assert np.all(v <= v[0] * np.exp(-verdict[1] * run.t) * (1 + 1e-6) + 1e-12)


def test_matrices_that_do_not_fit_are_refused():
    ellipsoid, rate, _ = find_ellipsoid(linear(1.0), Deadline(20))
    good, p, s = ellipsoid.steps, ellipsoid.matrix, ellipsoid.slacks
    assert good(rate) is not None
    loop = ellipsoid.loop
    assert (
        Ellipsoid(loop, p / 100, tuple(x / 100 for x in s)).steps(rate) is None
    )  # a set where inputs are beyond reach
    assert Ellipsoid(loop, p, tuple(x - 0.1 * np.eye(2) for x in s)).steps(rate) is None
    assert ellipsoid.steps(2 * rate) is None
    assert Ellipsoid(loop, -p, s).steps(rate) is None
    assert Ellipsoid(linear(1.0, np.array([9.0, 0.0])), p, s).steps(rate) is None
