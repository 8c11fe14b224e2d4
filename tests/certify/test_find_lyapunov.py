"""Synthesis: what is found is proved; published systems, and systems that have no such function."""

import control as ct
import numpy as np
import pytest
import sympy as sp

import ctrlgen as cg
from ctrlgen import Status

XY = ["x", "y"]


def found(verdict, f, domain=None):
    assert verdict.status is Status.PROVED, repr(verdict)
    assert verdict.recheck()
    again = verdict.found.verify(f, domain)
    assert again.status is Status.PROVED
    return verdict.found


@pytest.mark.parametrize(
    ("f", "states", "degree", "domain"),
    [
        (["-x1**3 - x1*x3**2", "-x2 - x1**2*x2", "-x3 - 3*x3/(x3**2 + 1) + 3*x1**2*x3"], ["x1", "x2", "x3"], 2, None),
        (["-x + x*y", "-y"], XY, 2, cg.Ball([0, 0], 1)),
        (["-x**3 + y", "-x - y"], XY, 2, None),
        (["-x**3 - y**2", "x*y - y**3"], XY, 2, None),
        (["w", "-sin(q) - w"], ["q", "w"], 2, cg.Box([-2, -3], [2, 3])),  # in the basis of sin, cos and w
        (["-x + exp(y) - 1", "-2*y"], XY, 2, cg.Box([-0.5, -0.5], [0.5, 0.5])),
        (["y", "-x - y + x**3/3"], XY, 4, cg.Ball([0, 0], 1)),
        (["-x + y", "-x*(1 + x**2)/2 - y**3"], XY, 4, None),
    ],
)
def test_published_systems(f, states, degree, domain):
    found(cg.find_lyapunov(f, states, degree, domain), f, domain)


def test_a_quadratic_one_for_sostools_demo_2_has_no_cross_terms():
    f = ["-x1**3 - x1*x3**2", "-x2 - x1**2*x2", "-x3 - 3*x3/(x3**2 + 1) + 3*x1**2*x3"]
    V = found(cg.find_lyapunov(f, ["x1", "x2", "x3"], 2), f)
    x1, x2, x3 = V.states
    assert V.expr.coeff(x1, 2) / V.expr.coeff(x3, 2) == pytest.approx(3, rel=0.5)
    assert V.expr.is_polynomial(x2)


@pytest.mark.parametrize("seed", range(4))
def test_random_stable_linear_systems(seed):
    rng = np.random.default_rng(seed)
    d = int(rng.integers(2, 7))
    a = rng.normal(size=(d, d))
    a -= (np.linalg.eigvals(a).real.max() + 0.2) * np.eye(d)
    system = ct.ss(np.round(a, 3), np.zeros((d, 1)), np.eye(d), np.zeros((d, 1)))
    found(cg.find_lyapunov(system, [f"x{i}" for i in range(d)]), system)


def test_unstable_systems_get_a_reason():
    verdict = cg.find_lyapunov(["x + y", "-x - 3*y"], XY)
    assert verdict.status is Status.UNDECIDED
    assert verdict.found is None
    assert "spectral abscissa 0.732" in verdict.reason
    circle = cg.find_lyapunov(["y", "-x"], XY, 4, timeout=5)
    assert circle.status is Status.UNDECIDED
    assert circle.found is None


def test_no_polynomial_function_exists():
    # Ahmadi, Krstic, Parrilo (CDC 2011): globally stable, with no polynomial Lyapunov function of any degree
    verdict = cg.find_lyapunov(["-x + x*y", "-y"], XY, 4, timeout=6)
    assert verdict.status is Status.UNDECIDED
    assert verdict.found is None


def test_discrete_time_and_equilibrium_elsewhere():
    f = ["x/2 + y/10", "y/3 + x**2/8"]
    verdict = cg.find_lyapunov(f, XY, 2, cg.Ball([0, 0], 1), time="discrete")
    assert verdict.status is Status.PROVED
    assert verdict.found.verify(f, cg.Ball([0, 0], 1), time="discrete").status is Status.PROVED
    away = cg.find_lyapunov(["-(x - 1)**3 + y", "-(x - 1) - y"], XY, 2, equilibrium=[1, 0])
    assert away.status is Status.PROVED
    assert away.found([1.0, 0.0]) == 0.0


def test_eight_states():
    f = [f"-x{i} - x{i}**3" + (f" + x{i - 1}/2" if i else "") for i in range(8)]
    found(cg.find_lyapunov(f, [f"x{i}" for i in range(8)], 2), f)


def test_bad_input():
    with pytest.raises(ValueError, match="degree must be an integer of at least 2; got 1"):
        cg.find_lyapunov(["-x"], ["x"], 1)
    with pytest.raises(ValueError, match=r"degree must be an integer of at least 2; got 2\.5"):
        cg.find_lyapunov(["-x"], ["x"], 2.5)
    with pytest.raises(ValueError, match="f must rest at the equilibrium"):
        cg.find_lyapunov(["-x + 1"], ["x"])
    with pytest.raises(ValueError, match="domain must contain the equilibrium"):
        cg.find_lyapunov(["-x"], ["x"], 2, cg.Box([1], [2]))


def test_plain_symbols_are_as_good_as_real_ones():
    x, y = sp.symbols("x y")
    f = [-(x**3) + y, -x - y]
    V = found(cg.find_lyapunov(f, [x, y], 2), f)
    assert sp.expand(V.derivative(f) / V.expr.coeff(x, 2)) == -2 * x**4 - 2 * y**2
    assert cg.ContractionMetric([[1 + x**2, 0], [0, 1]], [x, y]).derivative([-x, -y])[0, 0] == -4 * x**2 - 2
    assert cg.StochasticBarrier(x**2 + y**2, [x, y]).generator([-x, -y], 1) == 2 - 2 * x**2 - 2 * y**2
    assert cg.BarrierFunction(1 - x**2 - y, [x, y]).derivative([-x, -y]) == 2 * x**2 + y
