"""Barrier functions: values and verdicts with known answers, control barrier functions, the high-order construction."""

import numpy as np
import pytest
import sympy as sp

from ctrlgen.certify.barrier import BarrierFunction
from ctrlgen.domain import Ball, Box, Sublevel
from ctrlgen.prove.claim import Status

X, XW = ["x"], ["x", "w"]
x, w = sp.symbols("x w", real=True)
DISC = BarrierFunction("1/4 - x**2 - w**2", XW)
SPIRAL = ["w", "-x - w"]  # d/dt (x² + w²) = -2 w²
FAR = Box([2, -1], [3, 1])

# Ames, Grizzle and Tabuada, CDC 2014: adaptive cruise control
MASS, SPEED, HEADWAY, DECELERATION, GRAVITY = 1650, 14, 1.8, 0.3, 9.81
FORCE = DECELERATION * MASS * GRAVITY
CRUISE = BarrierFunction("z - 1.8*v - (14 - v)**2/(2*0.3*9.81)", ["x", "v", "z"])
CAR = ["v", "-(0.1 + 5*v + 0.25*v**2)/1650", "14 - v"]
PEDAL = [0, sp.Rational(1, MASS), 0]
ROAD = Box([-np.inf, 0, -np.inf], [np.inf, 40, np.inf])


def test_cruise_control_value():
    assert CRUISE([0.0, 20.0, 100.0]) == pytest.approx(57.883792, abs=5e-7)
    batch = CRUISE(np.array([[0.0, 20.0, 100.0], [5.0, 20.0, 101.0]]))
    np.testing.assert_allclose(batch, [57.883792, 58.883792], atol=5e-7)
    with pytest.raises(ValueError, match=r"x must .*\(3,\)"):
        CRUISE(np.zeros(2))


def test_derivative_is_the_chain_rule():
    assert sp.expand(DISC.derivative(SPIRAL) - 2 * w**2) == 0
    assert sp.simplify(BarrierFunction("sin(x)", X).derivative(["x**2"]) - x**2 * sp.cos(x)) == 0


def test_a_true_barrier_is_proved_and_rechecks():
    verdict = DISC.verify(SPIRAL, Ball([0, 0], 0.25), FAR)
    assert verdict.status is Status.PROVED, verdict
    assert verdict.recheck()
    assert len(verdict.steps) == 3


@pytest.mark.parametrize("shift", [0, "1e-6"])
def test_a_barrier_that_cuts_the_initial_set_is_refuted(shift):
    h = BarrierFunction(sp.Rational(1, 4) - sp.Rational(shift) - x**2 - w**2, XW)
    initial = Ball([0, 0], 0.5)  # touches h = 0 when not shifted
    verdict = h.verify(SPIRAL, initial, FAR)
    assert verdict.status is (Status.REFUTED if shift else Status.PROVED), verdict
    if shift:
        assert verdict.recheck()
        assert np.hypot(*verdict.witness) <= 0.5 + 1e-12
        assert h(verdict.witness) < 0


def test_unsafe_must_be_strictly_outside():
    touching = DISC.verify(SPIRAL, Ball([0, 0], 0.25), Box([0.5, -1], [2, 1]))
    assert touching.status is Status.REFUTED
    clear = DISC.verify(SPIRAL, Ball([0, 0], 0.25), Box([0.500001, -1], [2, 1]))
    assert clear.status is Status.PROVED, clear


@pytest.mark.parametrize(
    ("gain", "domain", "status"),
    [
        (0, Box([-4], [4]), Status.REFUTED),
        (0.75, Box([-4], [4]), Status.PROVED),
        (0.749999, Box([-4], [4]), Status.REFUTED),
        (1.25, Box([-4], [4]), Status.PROVED),
        (1.250001, Box([-4], [4]), Status.REFUTED),
        (1, None, Status.PROVED),
        (0.75, None, Status.REFUTED),
    ],
)
def test_gain_multiplies_h(gain, domain, status):
    """With ẋ = 1 - x and h = x, ḣ + gain·h = 1 + (gain - 1)·x, which is ≥ 0 on [-4, 4] when |gain - 1| ≤ 1/4."""
    verdict = BarrierFunction("x", X).verify(["1 - x"], Box([1], [2]), Box([-4], [-1]), domain, gain=gain)
    assert verdict.status is status, verdict


def test_a_negative_gain_asks_for_growth():
    """With ẋ = x and h = x, ḣ - r·h = (1 - r)·x on [-2, 2] is ≥ 0 for r = 1 only."""
    h, sets = BarrierFunction("x", X), (Box([1], [2]), Box([-2], [-1]), Box([-2], [2]))
    assert h.verify(["x"], *sets, gain=-1).status is Status.PROVED
    assert h.verify(["x"], *sets, gain=-0.999).status is Status.REFUTED


def test_every_part_of_a_union_counts():
    near = Box([-0.4, -0.1], [-0.3, 0.1])
    whole = DISC.verify(SPIRAL, Ball([0, 0], 0.25), FAR | Box([-3, -1], [-2, 1]))
    assert whole.status is Status.PROVED, whole
    assert len(whole.steps) == 4
    assert DISC.verify(SPIRAL, Ball([0, 0], 0.25), FAR | near).status is Status.REFUTED


def test_only_the_parts_in_the_domain_count():
    """h < 0 fails on the part of unsafe left of x = 0, which the domain leaves out."""
    h, unsafe = BarrierFunction("1 - x", X), Box([-9], [-8]) | Box([2], [3])
    assert h.verify(["-1"], Box([0], [1]), unsafe, Box([0], [4])).status is Status.PROVED
    assert h.verify(["-1"], Box([0], [1]), unsafe).status is Status.REFUTED


def test_a_state_that_is_initial_and_unsafe_refutes():
    initial, unsafe = Ball([0, 0], 0.25), Box([0.2, -1], [3, 1])
    verdict = DISC.verify(SPIRAL, initial, unsafe)
    assert verdict.status is Status.REFUTED
    assert initial.contains(verdict.witness)
    assert unsafe.contains(verdict.witness)
    assert verdict.recheck()


def test_discrete_time():
    """x⁺ = x/2 brings 1 - x² up; the flow of ẋ = x/2 does not; x⁺ = -2x does not. Only h(f(x)) tells them apart."""
    h, sets = BarrierFunction("1 - x**2", X), (Box([-0.5], [0.5]), Box([2], [3]))
    assert h.verify(["x/2"], *sets, time="discrete").status is Status.PROVED
    assert h.verify(["x/2"], *sets).status is Status.REFUTED
    assert h.verify(["-2*x"], *sets, time="discrete").status is Status.REFUTED
    # h(f) - (1 - gain)·h = gain - (1/4 - 1 + gain)·x² needs gain ≥ 0 and gain ≤ 3/4
    assert h.verify(["x/2"], *sets, gain=0.75, time="discrete").status is Status.PROVED
    assert h.verify(["x/2"], *sets, gain=0.76, time="discrete").status is Status.REFUTED


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"initial": None}, "initial must be given"),
        ({"unsafe": None}, "unsafe must be given"),
        ({"unsafe": [2, 3]}, "unsafe must be a domain"),
        ({"initial": Sublevel("x**2 + 1", X)}, "initial.*empty"),
        ({"initial": Sublevel("x**2", X)}, "initial.*no interior"),
        ({"domain": Box([5], [6])}, "initial must meet the domain"),
        ({"gain": np.inf}, "gain must be a finite"),
        ({"gain": 2, "time": "discrete"}, "gain must be at most 1"),
        ({"f": ["x", "x"]}, "f must have 1 components"),
        ({"method": "magic"}, "method must be one of"),
        ({"timeout": 0}, "timeout must be"),
    ],
)
def test_bad_input(change, message):
    given = {"f": ["-x"], "initial": Box([-0.5], [0.5]), "unsafe": Box([2], [3]), **change}
    with pytest.raises(ValueError, match=message):
        BarrierFunction("1 - x**2", X).verify(**given)


# Control barrier functions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("most", "status"), [(1, Status.PROVED), (2, Status.PROVED), (0.999999, Status.REFUTED)])
def test_input_bound_of_an_unstable_integrator(most, status):
    """ẋ = x + u keeps |x| ≤ 1 exactly when |u| ≤ 1 is allowed: at x = ±1 the drift has to be stopped."""
    h = BarrierFunction("1 - x**2", X)
    verdict = h.control(["x"], [1], inputs=Box([-most], [most]), domain=h.safe_set, gain=1)
    assert verdict.status is status, verdict


def test_without_bounds_only_the_singular_states_count():
    h = BarrierFunction("1 - x**2", X)
    assert h.control(["x"], [1]).status is Status.PROVED
    assert h.control(["x"], ["x - 1"]).status is Status.REFUTED  # no authority at x = 1, where the drift leads out
    assert h.control(["-x"], ["x - 1"], domain=h.safe_set).status is Status.PROVED
    assert BarrierFunction("x", X).control(["-1"], [1]).status is Status.PROVED  # L_g h = 1 everywhere
    half = BarrierFunction("x", X).control(["-9"], [[0, 1, -1]], inputs=Box([-1, -1, -np.inf], [1, 1, 1]))
    assert half.status is Status.PROVED, half  # the third input pushes without bound
    weak = BarrierFunction("x", X).control(["-9"], [[0, 1, -1]], inputs=Box([-1, -1, -1], [1, 1, np.inf]))
    assert weak.status is Status.REFUTED, weak  # and here the wrong way


def test_one_sided_inputs():
    """h = 1 - x with ẋ = u: pushing left serves every state; pushing right only leaves u = 0, which serves h ≥ 0."""
    h = BarrierFunction("1 - x", X)
    assert h.control([0], [1], inputs=Box([-np.inf], [0])).status is Status.PROVED
    assert h.control([0], [1], inputs=Box([0], [np.inf]), domain=h.safe_set).status is Status.PROVED
    assert h.control([0], [1], inputs=Box([0], [np.inf])).status is Status.REFUTED


@pytest.mark.parametrize(("reach", "status"), [(1, Status.PROVED), (0.99, Status.REFUTED)])
def test_two_inputs_have_four_patterns(reach, status):
    """The drift (x, w) leads out of the disc, worst at (±1, 0) and (0, ±1), where only one input can act."""
    h = BarrierFunction("1 - x**2 - w**2", XW)
    verdict = h.control(["x", "w"], sp.eye(2), inputs=Box([-reach] * 2, [reach] * 2), domain=h.safe_set)
    assert len(verdict.steps) == 4
    assert verdict.status is status, verdict


@pytest.mark.parametrize("gain", [2, "2*h", lambda z: 2 * z, 2 * sp.Symbol("anything")])
def test_forms_of_a_gain_agree(gain):
    """ẋ = -3x + xu is best served by u = 0: ḣ + 2h = 6x² + 2(1 - x²) ≥ 0. The claim shows α."""
    verdict = BarrierFunction("1 - x**2", X).control(["-3*x"], ["x"], inputs=Box([0], [1]), gain=gain)
    assert "α(h) = 2*h" in verdict.claim
    assert verdict.status is Status.PROVED, verdict


@pytest.mark.parametrize("gain", [-1, lambda z: z + 1, "h**2 - h", "-h**3"])
def test_gains_that_are_no_class_k_function(gain):
    with pytest.raises(ValueError, match="gain must"):
        BarrierFunction("1 - x**2", X).control(["x"], [1], gain=gain)


def test_a_nonlinear_gain_is_used():
    """ẋ = 1, h = -x, no input: -1 + α(-x) ≥ 0 on x ≤ -2 holds for α(h) = h³/8 and not for h³/9."""
    h, left = BarrierFunction("-x", X), Box([-4], [-2])
    assert h.control([1], [0], domain=left, gain="h**3/8").status is Status.PROVED
    assert h.control([1], [0], domain=left, gain="h**3/9").status is Status.REFUTED


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"g": [1, 2]}, "g must have 1 rows"),
        ({"g": "1"}, "g must be"),
        ({"inputs": Ball([0], 1)}, "inputs must be a Box"),
        ({"inputs": Box([0, 0], [1, 1])}, "inputs must have 1 sides"),
        ({"domain": Sublevel("x**2 + 1", X)}, "domain"),
    ],
)
def test_bad_control_input(change, message):
    with pytest.raises(ValueError, match=message):
        BarrierFunction("1 - x**2", X).control(**{"f": ["x"], "g": [1], **change})


def test_cruise_control_is_a_control_barrier_function():
    verdict = CRUISE.control(CAR, PEDAL, inputs=Box([-FORCE], [FORCE]), domain=ROAD, gain=0)
    assert verdict.status is Status.PROVED, verdict
    assert verdict.recheck()
    safe = CRUISE.control(CAR, PEDAL, inputs=Box([-FORCE], [FORCE]), domain=ROAD & CRUISE.safe_set, gain=1)
    assert safe.status is Status.PROVED, safe
    weak = CRUISE.control(CAR, PEDAL, inputs=Box([-FORCE / 2], [FORCE / 2]), domain=ROAD, gain=0)
    assert weak.status is Status.REFUTED, weak


def test_relative_degree():
    chain = ["w", "a", "0"]
    assert [BarrierFunction(h, ["x", "w", "a"]).relative_degree(chain, [0, 0, 1]) for h in ("a", "1-w", "x**2")] == [
        1,
        2,
        3,
    ]
    with pytest.raises(ValueError, match="h must be affected by an input"):
        BarrierFunction("x", XW).relative_degree(["-x", "w"], [0, 1])


def test_high_order_construction():
    """ψ₁ = ḣ + 2h of the double integrator, by hand; it has relative degree 1 and is a control barrier function."""
    h = BarrierFunction("1 - x", XW)
    top = h.high_order(["w", 0], [0, 1], gains=[2])
    assert sp.expand(top.expr - (-w + 2 * (1 - x))) == 0
    assert [c.expr for c in top.chain] == [h.expr, top.expr]
    assert top.relative_degree(["w", 0], [0, 1]) == 1
    assert top.control(["w", 0], [0, 1]).status is Status.PROVED
    cubic = BarrierFunction("1 - x", ["x", "w", "a"]).high_order(["w", "a", 0], [0, 0, 1], gains=[1, "h**3"])
    first = 1 - x - w
    a = sp.Symbol("a", real=True)
    assert sp.expand(cubic.expr - (-w - a + first**3)) == 0
    with pytest.raises(ValueError, match="gains must be 1 functions"):
        h.high_order(["w", 0], [0, 1], gains=[1, 2])


def test_high_order_function_keeps_the_first_one():
    """Under u = -L_f ψ₁ - ψ₁ (one that the condition allows), 1 - x stays ≥ 0 from states with ψ₀, ψ₁ ≥ 0."""
    top = BarrierFunction("1 - x", XW).high_order(["w", 0], [0, 1], gains=1)
    rng = np.random.default_rng(0)
    state = rng.uniform(-3, 3, size=(4000, 2))
    state = state[(top(state) >= 0) & (state[:, 0] <= 1)]
    for _ in range(400):
        push = -state[:, 1] + top(state)  # ψ̇₁ = -u - w = -ψ₁
        state = state + 1e-2 * np.stack([state[:, 1], push], axis=1)
        assert state[:, 0].max() <= 1 + 1e-9
