"""Regions of attraction against published levels, closed forms and simulation."""

from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import ctrlgen as cg
from ctrlgen import Status

VAN_DER_POL = ["-x2", "x1 + (x1**2 - 1)*x2"]
V = "1.5*x1**2 - x1*x2 + x2**2"
S = ["x1", "x2"]


def test_cubic_has_level_exactly_one():
    verdict = cg.region_of_attraction(["-x + x**3"], "x**2", ["x"])
    assert verdict.status is Status.PROVED
    assert verdict.recheck()
    assert verdict.level == 1.0
    assert verdict.refuted_at == 1.0
    assert verdict.gap == 0.0


@pytest.fixture(scope="module")
def van_der_pol():
    return cg.region_of_attraction(VAN_DER_POL, V, S)


def test_van_der_pol_level_is_below_the_true_one(van_der_pol):
    verdict = van_der_pol
    assert verdict.status is Status.PROVED
    assert verdict.recheck()
    assert 2.3040 <= verdict.level <= 2.304477565  # a floating-point tool reports 2.3044775719
    assert 2.304477565 - 1e-9 <= verdict.refuted_at <= 2.30447757
    assert 0 <= verdict.gap < 1e-6


@pytest.mark.parametrize("factor", [1 + 1e-9, 1 + 1e-7, 1.001, 2.9])
def test_a_larger_van_der_pol_level_is_never_proved(factor):
    level = 2.30447757 * factor
    verdict = cg.LyapunovFunction(V, S).verify(VAN_DER_POL, cg.Sublevel(V, S, level), timeout=5)
    assert verdict.status is not Status.PROVED


def test_trajectories_from_the_edge_of_the_region_converge(van_der_pol):
    level = van_der_pol.level
    P = np.array([[1.5, -0.5], [-0.5, 1.0]])
    for angle in np.linspace(0, 2 * np.pi, 24, endpoint=False):
        u = np.array([np.cos(angle), np.sin(angle)])
        x0 = u * np.sqrt(level / (u @ P @ u)) * (1 - 1e-6)
        end = solve_ivp(lambda _, x: [-x[1], x[0] + (x[0] ** 2 - 1) * x[1]], (0, 60), x0, rtol=1e-9, atol=1e-12)
        assert np.linalg.norm(end.y[:, -1]) < 1e-3


def test_pendulum_needs_a_domain_and_stops_at_its_edge():
    pendulum, energy, s = ["w", "-sin(q) - w"], "1 - cos(q) + w**2/2 + q*w/10 + q**2/20", ["q", "w"]
    bare = cg.region_of_attraction(pendulum, "1 - cos(q) + w**2/2 + sin(q)*w/10", s, timeout=5)
    assert bare.status is not Status.PROVED  # its sublevel sets are not bounded
    verdict = cg.region_of_attraction(pendulum, energy, s, cg.Box([-2, -2], [2, 2]))
    assert verdict.status is Status.PROVED
    # the true critical value is the smallest V on the edge of the box, where w = ∓q/10: a closed form
    edge = 1 - np.cos(2) + 4 / 20 - (2 / 10) ** 2 / 2
    assert edge * 0.999 <= verdict.level <= edge
    assert any("inside" in a for a in verdict.assumptions)
    faces = [step for step in verdict.steps if step.claim.text.startswith("V ≥")]
    assert len(faces) == 4  # the level set is shown not to reach any side of the box
    assert all(step.claim.equalities for step in faces)


def test_a_domain_larger_than_the_region_does_not_matter():
    verdict = cg.region_of_attraction(["-x + x**3"], "x**2", ["x"], cg.Box([-2], [2]))
    assert verdict.status is Status.PROVED
    assert verdict.level == 1.0
    assert verdict.refuted_at == 1.0


@pytest.mark.parametrize("factor", [1, *(pytest.param(k, marks=pytest.mark.slow) for k in (3, 8))])
def test_the_refuted_level_is_the_value_at_the_witness_rounded_up(factor):
    verdict = cg.region_of_attraction(VAN_DER_POL, f"{factor}*({V})/7", S)
    x1, x2 = map(Fraction, verdict.witness)
    exact = Fraction(factor, 7) * (Fraction(3, 2) * x1**2 - x1 * x2 + x2**2)
    assert Fraction(verdict.refuted_at) >= exact
    assert Fraction(float(np.nextafter(verdict.refuted_at, 0))) < exact
    assert x1 * x2 * x1**2 - 2 * x1**2 * x2**2 + x1**2 + x2**2 <= 0  # V̇ ≥ 0 there, in exact arithmetic


def test_global_attraction_has_an_infinite_level():
    verdict = cg.region_of_attraction(["-x**3 + y", "-x - y"], "x**2 + y**2", ["x", "y"])
    assert verdict.status is Status.PROVED
    assert verdict.level == np.inf
    assert verdict.refuted_at is None


def test_unstable_system_has_no_region():
    verdict = cg.region_of_attraction(["x", "-y"], "x**2 + y**2", ["x", "y"], timeout=5)
    assert verdict.status is not Status.PROVED
    assert verdict.level is None


def test_three_states_against_a_fine_sample():
    f = ["-x + y*z", "-y + x*z", "-z + x*y"]  # V̇ = -2|x|² + 6xyz: on |x|² = ρ the worst is xyz = (ρ/3)^{3/2}
    verdict = cg.region_of_attraction(f, "x**2 + y**2 + z**2", ["x", "y", "z"])
    assert verdict.status is Status.PROVED
    assert verdict.level == pytest.approx(3.0, rel=1e-6)  # -2ρ + 6 (ρ/3)^{3/2} = 0 at ρ = 3
    assert verdict.level <= 3.0
    assert verdict.refuted_at >= 3.0


def test_bad_input():
    with pytest.raises(ValueError, match="f must rest at the equilibrium"):
        cg.region_of_attraction(["-x + 1"], "x**2", ["x"])
    with pytest.raises(ValueError, match="V must be zero"):
        cg.region_of_attraction(["-x"], "x**2 + 1", ["x"])
    with pytest.raises(ValueError, match=r"must have formulas here.*sort"):
        cg.region_of_attraction(lambda x: -jnp.sort(x), "x**2", ["x"])
    with pytest.raises(ValueError, match="one set, not a union"):
        cg.region_of_attraction(["-x"], "x**2", ["x"], cg.Box([-1], [1]) | cg.Box([2], [3]))


@pytest.mark.slow
def test_a_map_must_not_jump_out_of_the_domain():
    # V(f(x)) < V(x) on the whole box, and V ≥ 1/2 on its edge, but from x = 0.7 the map jumps to where V is small
    V = "x**2*(x - 2)**2"
    f = ["x/2 + 4*x**2*(1 - x)*Max(0, x - 1/2)"]
    inside = cg.region_of_attraction(f, V, ["x"], cg.Box([-1], [1]), time="discrete", timeout=10)
    assert inside.status is not Status.PROVED or inside.level <= float(0.7**2 * 1.3**2)
    tame = cg.region_of_attraction(["x/2"], "x**2", ["x"], cg.Box([-1], [1]), time="discrete", timeout=10)
    assert tame.status is Status.PROVED
    assert tame.level == pytest.approx(1, rel=1e-3)
    assert any("f(x) is in the domain" in step.claim.text for step in tame.steps)


def test_an_unbounded_domain_does_not_stand_in_for_bounded_level_sets():
    # V < 1 all along y = 0, and V ≥ 1 on the edge of the strip |y| ≤ 1: nothing bounds the set
    verdict = cg.region_of_attraction(
        ["-x", "-y"], "x**2/(1 + x**2) + y**2", ["x", "y"], cg.Box([-np.inf, -1], [np.inf, 1]), timeout=8
    )
    assert verdict.status is not Status.PROVED


def test_a_kink_in_V_is_searched_without_its_second_derivative():
    verdict = cg.region_of_attraction(["-x - y", "x - y"], "x**2 + y**2 + Abs(x)", ["x", "y"], timeout=5)
    assert verdict.status is not Status.REFUTED


@pytest.mark.parametrize(("p", "q"), [(5, 6), (5, 7), (7, 9), (1, 11), (2, 3)])
def test_the_level_as_a_float_is_never_above_the_proved_one(p, q):
    # V̇ = -2x² (1 - (q/p) x²): the level is p/q, and the float nearest to 5/6 is read as 0.8333333333333334 > 5/6
    verdict = cg.region_of_attraction([f"-x + {q}*x**3/{p}"], "x**2", ["x"])
    assert verdict.status is Status.PROVED
    assert Fraction(p, q) - Fraction(1, 10**12) < Fraction(repr(verdict.level)) <= Fraction(p, q)
    bound = cg.lower_bound(f"x**2 + {p}/{q}", ["x"])
    assert Fraction(repr(bound.bound)) <= Fraction(p, q)
    assert bound.bound == pytest.approx(p / q, abs=1e-9)
    drift = cg.LyapunovFunction("x**2", ["x"]).verify_drift(["-x"], f"sqrt({p}/{q})", c=2)  # b = p/q exactly
    assert Fraction(repr(drift.bound)) >= Fraction(p, q)
