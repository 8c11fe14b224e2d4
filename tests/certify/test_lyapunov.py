"""Lyapunov functions: published cases, false neighbours of true claims, and bad input."""

import control as ct
import jax.numpy as jnp
import numpy as np
import pytest
import sympy as sp

import ctrlgen as cg
from ctrlgen import Status
from ctrlgen.certify.coercive import separately_coercive

XY = ["x", "y"]
SOSTOOLS_DEMO_2 = ["-x1**3 - x1*x3**2", "-x2 - x1**2*x2", "-x3 - 3*x3/(x3**2 + 1) + 3*x1**2*x3"]
NONPOLY0, POLY2, POLY3 = ["-x + x*y", "-y"], ["-x**3 + y", "-x - y"], ["-x**3 - y**2", "x*y - y**3"]
PENDULUM = ["w", "-sin(q) - w"]


def proved(verdict):
    assert verdict.status is Status.PROVED, repr(verdict)
    assert verdict.recheck()
    return verdict


def test_derivative_is_simplified_and_exact():
    V = cg.LyapunovFunction("x**2 + y**2", XY)
    x, y = V.states
    assert V.derivative(POLY2) == -2 * x**4 - 2 * y**2
    assert cg.LyapunovFunction("0.1*x**2 + y**2", XY).derivative(["-x", "-y"]) == -(x**2) / 5 - 2 * y**2


def test_derivative_of_six_states_against_autodiff():
    names = [f"x{i}" for i in range(6)]
    V = cg.LyapunovFunction("+".join(f"{i + 1}*{s}**2 + {s}**4" for i, s in enumerate(names)) + "+ x0*x1*x2*x3", names)
    f = [f"-{s}**3 + sin(x{(i + 1) % 6})*{s}" for i, s in enumerate(names)]
    point = np.linspace(-0.9, 1.1, 6)
    field = [float(sp.sympify(e).evalf(30, subs=dict(zip(sp.symbols(names), point, strict=True)))) for e in f]
    values = dict(zip(V.states, map(sp.Float, point), strict=True))
    step = 1e-6
    along = (V(point + step * np.array(field)) - V(point - step * np.array(field))) / (2 * step)
    assert float(V.derivative(f).subs(values)) == pytest.approx(along, rel=1e-7)


def test_generator_of_a_langevin_loop():
    V = cg.LyapunovFunction("x**2 + y**2", XY)
    x, y = V.states
    assert sp.expand(V.generator(["-x", "-y"], "sqrt(2/5)") - (-2 * x**2 - 2 * y**2 + sp.Rational(4, 5))) == 0
    # one noise that enters both states: ½ tr(G Gᵀ ∇²V) = |G|²
    assert V.generator([0, 0], [1, "x"]) == 1 + x**2


@pytest.mark.parametrize(
    ("V", "f", "states", "domain"),
    [
        ("3*x1**2 + x2**2 + x3**2", SOSTOOLS_DEMO_2, ["x1", "x2", "x3"], None),  # SOSTOOLS, demo 2
        ("x**2 + y**2", NONPOLY0, XY, cg.Ball([0, 0], 1)),  # FOSSIL, NonPoly0
        ("x**2 + y**2", POLY2, XY, None),  # FOSSIL, Poly2: V̇ = -2x⁴ - 2y², whose Hessian is singular
        ("x**2 + y**2", POLY3, XY, None),  # FOSSIL, Poly3: V̇ = -2x⁴ - 2y⁴
        ("log(1 + x**2) + y**2", NONPOLY0, XY, None),  # Ahmadi, Krstic, Parrilo (CDC 2011): no polynomial V exists
        ("1 - cos(q) + w**2/2 + q*w/10", PENDULUM, ["q", "w"], cg.Box([-1, -1], [1, 1])),
        ("x**2", ["-x + x**3"], ["x"], cg.Sublevel("x**2", ["x"], "0.999999")),
        ("x**2", ["-tanh(x)"], ["x"], None),
    ],
)
def test_textbook_proofs_are_proved(V, f, states, domain):
    proved(cg.LyapunovFunction(V, states).verify(f, domain))


@pytest.mark.parametrize(
    ("V", "f", "states", "domain"),
    [
        ("x**2", ["-x + x**3"], ["x"], cg.Sublevel("x**2", ["x"], 1)),  # V̇ = 0 at the closed set's edge
        ("x**2", ["-x + x**3"], ["x"], cg.Box([-1.000001], [1])),
        ("x**2 + y**2", ["-x**3 + y", "-x + 1e-9*y"], XY, None),
        ("x**2 - 1e-9*y**2", ["-x", "-y"], XY, cg.Ball([0, 0], 1)),
        ("x**2 + y**2", ["-x + x*(x**2 + y**2)*1000000", "-y"], XY, cg.Ball([0, 0], 1)),
        ("x**2 + y**2", ["x - 1000000*x*(x**2 + y**2)", "-y"], XY, cg.Ball([0, 0], 1)),  # fails only near 0
        ("1 - cos(q) + w**2/2", PENDULUM, ["q", "w"], cg.Box([-7, -1], [7, 1])),  # V = 0 at q = 2π too
        ("(x - 1)**2*x**2 + y**2", ["-x", "-y"], XY, None),  # V = 0 at x = 1 too
    ],
)
def test_false_claims_are_refuted_with_an_exact_witness(V, f, states, domain):
    verdict = cg.LyapunovFunction(V, states).verify(f, domain, timeout=10)
    assert verdict.status is not Status.PROVED
    if verdict.status is Status.REFUTED:
        assert verdict.recheck()
        assert verdict.witness.shape == (len(states),)
    else:  # a zero of V at an irrational point has no rational witness
        assert V.startswith("1 - cos")


def test_weak_decrease_is_stability_with_a_note_on_lasalle():
    V = cg.LyapunovFunction("1 - cos(q) + w**2/2", ["q", "w"])
    box = cg.Box([-3, -5], [3, 5])
    assert V.verify(PENDULUM, box, timeout=5).status is Status.REFUTED  # V̇ = 0 on w = 0
    weak = proved(V.verify(PENDULUM, box, strict=False))
    assert any("LaSalle" in a for a in weak.assumptions)
    assert "asymptotically" not in weak.claim


def test_a_fall_that_only_rests_is_told_with_what_to_ask_instead():
    V = cg.LyapunovFunction("x**2 + v**2", ["x", "v"])
    resting = V.verify(["v", "-x - v"])
    assert resting.status is cg.Status.REFUTED
    assert "strict=False asks for that" in resting.reason
    assert V.verify(["v", "-x - v"], strict=False).status is cg.Status.PROVED
    rising = V.verify(["v", "-x + v"])
    assert rising.status is cg.Status.REFUTED
    assert "strict=False" not in rising.reason


def test_global_needs_radial_unboundedness():
    # V > 0 and V̇ < 0 everywhere, but V → 1 along x: a classic trap (Hahn 1967; Khalil, section 4.1)
    V = cg.LyapunovFunction("x**2/(1 + x**2) + y**2", XY)
    verdict = V.verify(["-x", "-y"], timeout=10)
    assert verdict.status is Status.UNDECIDED
    assert "V → ∞" in verdict.reason
    proved(V.verify(["-x", "-y"], cg.Box([-2, -2], [2, 2])))


@pytest.mark.parametrize(
    ("expr", "expected"),
    [
        ("x**4 - x**2 + y**2", True),
        ("log(1 + x**2) + cosh(y)", True),
        ("x**4 + y**3", False),
        ("x**2", False),
        ("exp(x) + y**2", False),
        ("x**2*y**2 + x**2 + y**2", False),  # true, but not by form
        ("sqrt(1 + x**2) + y**2 + sin(y)", True),
        ("x**2 + tanh(y)", False),
        ("log(1 + x**2) - exp(x) + y**2", False),
    ],
)
def test_coercive_by_form(expr, expected):
    x, y = sp.symbols("x y", real=True)
    assert separately_coercive(sp.sympify(expr, locals={"x": x, "y": y}), (x, y)) is expected


def test_discrete_time():
    V = cg.LyapunovFunction("x**2 + y**2", XY)
    f = ["x/2", "y/2 + x**2/4"]
    proved(V.verify(f, cg.Ball([0, 0], 1), time="discrete"))
    assert V.verify(["x + y", "-y"], cg.Ball([0, 0], 1), time="discrete").status is Status.REFUTED
    system = ct.ss([[0.5, 0.1], [0, -0.3]], [[0], [1]], np.eye(2), [[0], [0]], dt=True)
    proved(V.verify(system))  # what the system says of itself decides
    with pytest.raises(ValueError, match="time is 'continuous', but f is a system in discrete time"):
        V.verify(system, time="continuous")


def test_one_definition_serves_callables_energies_and_control_systems():
    V = cg.LyapunovFunction(lambda x: x[0] ** 2 + x[1] ** 2, XY)
    proved(V.verify(lambda x: jnp.stack([-(x[0] ** 3) + x[1], -x[0] - x[1]])))
    proved(V.verify(ct.ss([[-1, 0.5], [0, -2]], [[0], [1]], np.eye(2), [[0], [0]])))
    E = cg.Quadratic(np.diag([1.0, 4.0]))
    proved(cg.LyapunovFunction(E, XY).verify(E))  # an energy as f is -∇E


def test_a_network_is_refuted_numerically_exact_or_left_undecided():
    E = cg.MLPEnergy(2, width=8, depth=1, key=0)
    verdict = cg.LyapunovFunction("x**2 + y**2", XY)
    with pytest.raises(ValueError, match="f must rest at the equilibrium"):
        verdict.verify(E, cg.Ball([0, 0], 1))


def test_excluded_ball_is_said():
    V = cg.LyapunovFunction("x**2 + y**2", XY)
    f = ["x - 100*x*(x**2 + y**2)", "y - 100*y*(x**2 + y**2)"]  # unstable origin inside a limit circle of radius 0.1
    box = cg.Box([-1, -1], [1, 1])
    assert V.verify(f, box).status is Status.REFUTED
    verdict = proved(V.verify(f, box, exclude=0.11))
    assert "outside radius 0.11" in verdict.claim
    assert "stable" not in verdict.claim
    assert V.verify(f, box, exclude=0.09).status is Status.REFUTED


def test_foster_lyapunov_of_a_double_well():
    V = cg.LyapunovFunction("x**2", ["x"])
    verdict = proved(V.verify_drift(["-4*x*(x**2 - 1)"], "sqrt(2/5)"))
    # 𝓛V + cV = -8x⁴ + (8 + c) x² + 2/5, whose maximum is (8 + c)²/32 + 2/5
    assert verdict.bound == pytest.approx((8 + verdict.rate) ** 2 / 32 + 0.4, rel=1e-9)
    assert V.verify_drift(["-4*x*(x**2 - 1)"], "sqrt(2/5)", c=1, b=2.9).status is Status.REFUTED
    loop = cg.DoubleWell()
    assert cg.LyapunovFunction("x**2", ["x"]).verify_drift(["x"], 1, c=1, b=1, timeout=5).status is Status.REFUTED
    del loop


def test_the_drift_bound_of_a_union_is_that_of_its_worst_piece():
    V = cg.LyapunovFunction("x**2", ["x"])  # 𝓛V + V = 1 - x² for unit noise
    for pieces in (cg.Box([0], [1]) | cg.Box([2], [3]), cg.Box([2], [3]) | cg.Box([0], [1])):
        verdict = proved(V.verify_drift(["-x"], 1, c=1, domain=pieces))
        assert verdict.bound == pytest.approx(1.0, rel=1e-9)


def test_stationary_moment_obeys_the_drift_bound():
    # E[V] ≤ b/c at the stationary law: Ornstein–Uhlenbeck has E|x|² = d ε exactly, and the bound is tight
    verdict = proved(cg.LyapunovFunction("x**2 + y**2", XY).verify_drift(["-x", "-y"], np.sqrt(2.0), c=2))
    assert verdict.bound / verdict.rate == pytest.approx(2.0, rel=1e-9)


# Bad input -------------------------------------------------------------------------------------------------------


def test_bad_functions():
    with pytest.raises(ValueError, match=r"V must be zero at the equilibrium \(0, 0\); got 1"):
        cg.LyapunovFunction("x**2 + y**2 + 1", XY)
    with pytest.raises(ValueError, match=r"V must depend on every state.*\['y'\]"):
        cg.LyapunovFunction("x**2", XY)
    with pytest.raises(ValueError, match=r"V has symbols that are not states: \['z'\]"):
        cg.LyapunovFunction("x**2 + y**2 + z", XY) if False else cg.LyapunovFunction(sp.sympify("x**2 + y**2 + z"), XY)
    with pytest.raises(ValueError, match="real"):
        cg.LyapunovFunction(sp.sympify("I*x**2 + y**2"), XY)
    with pytest.raises(ValueError, match="equilibrium must be 2 rational numbers"):
        cg.LyapunovFunction("x**2 + y**2", XY, equilibrium=[0])


def test_bad_systems_and_domains():
    V = cg.LyapunovFunction("x**2 + y**2", XY)
    with pytest.raises(ValueError, match="f must have 2 components"):
        V.verify(["-x"])
    with pytest.raises(ValueError, match=r"f must rest at the equilibrium \(0, 0\); got f\[1\] = 1"):
        V.verify(["-x", "1 - y"])
    with pytest.raises(ValueError, match="domain must contain the equilibrium"):
        V.verify(["-x", "-y"], cg.Box([1, 1], [2, 2]))
    with pytest.raises(ValueError, match=r"domain: .*empty"):
        V.verify(["-x", "-y"], cg.Sublevel("x**2 + y**2", XY, -1))
    with pytest.raises(ValueError, match="no interior"):
        V.verify(["-x", "-y"], cg.Sublevel("x**2 + y**2", XY, 0))
    with pytest.raises(ValueError, match="domain must be a domain"):
        V.verify(["-x", "-y"], [(-1, 1), (-1, 1)])
    with pytest.raises(ValueError, match=r"method must be one of 'auto', 'search', .*; got 'sos'"):
        V.verify(["-x", "-y"], method="sos")
    with pytest.raises(ValueError, match="timeout must be a positive number"):
        V.verify(["-x", "-y"], timeout=0)
    with pytest.raises(ValueError, match="exclude must be a positive radius"):
        V.verify(["-x", "-y"], exclude=-1)
    with pytest.raises(ValueError, match="time must be 'continuous' or 'discrete'"):
        V.verify(["-x", "-y"], time="steps")


def test_equilibrium_elsewhere():
    f = ["-(x - 1)**3 + y", "-(x - 1) - y"]
    proved(cg.LyapunovFunction("(x - 1)**2 + y**2", XY, equilibrium=[1, 0]).verify(f))


def test_values_and_reading_of_floats():
    V = cg.LyapunovFunction("0.1*x**2 + y**2", XY)
    assert V([1.0, 2.0]) == pytest.approx(4.1, abs=1e-15)
    assert V(np.array([[1.0, 2.0], [0.0, 0.0]])).shape == (2,)
    assert V.expr.coeff(V.states[0] ** 2) == sp.Rational(1, 10)
    with pytest.raises(ValueError, match="x must have shape"):
        V([1.0, 2.0, 3.0])


def test_named_methods_and_an_honest_undecided():
    V = cg.LyapunovFunction("x**2 + y**2", XY)
    for method in ("exact", "smt"):
        assert proved(V.verify(POLY2, method=method)).method.startswith(method)
    assert proved(V.verify(POLY2, cg.Box([-1, -1], [1, 1]), method="interval")).method == "interval"
    verdict = V.verify(POLY2, method="search")
    assert verdict.status is Status.UNDECIDED  # a search that finds nothing proves nothing
    assert verdict.reason
    late = V.verify(POLY2, timeout=1e-9)
    assert late.status is Status.UNDECIDED


def test_verdict_prints_and_has_no_truth_value():
    verdict = cg.LyapunovFunction("x**2 + y**2", XY).verify(POLY2)
    with pytest.raises(TypeError, match=r"Compare verdict\.status"):
        bool(verdict)
    text = repr(verdict)
    for word in ("PROVED", "exact", "V̇ < 0", "margin", "time"):
        assert word in text
    assert "<table>" in verdict._repr_html_() or "<table" in verdict._repr_html_()
    latex = verdict._repr_latex_()
    assert latex.startswith("$$")
    assert r"2 x^{4}" in latex
    refuted = cg.LyapunovFunction("x**2 + y**2", XY).verify(["x", "-y"])
    assert "witness" in repr(refuted)
    assert "witness" in refuted._repr_latex_()
