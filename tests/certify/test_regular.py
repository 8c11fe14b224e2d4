"""Functions that jump, blow up or are not defined: derivatives that look fine prove nothing of them.

Each case here was once proved, and is false: a trajectory that does what was said to be impossible is named.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy as sp

import ctrlgen as cg
from ctrlgen import Ball, BarrierFunction, Box, ContractionMetric, LyapunovFunction, Status, StochasticBarrier, Sublevel
from ctrlgen.certify.regular import regular
from ctrlgen.continuity import conditions, everywhere
from ctrlgen.field import Field
from ctrlgen.prove.claim import Deadline

X = sp.Symbol("x", real=True)
TIME = 5.0


@pytest.mark.parametrize(
    ("expr", "order", "expected"),
    [
        ("atan(1/x)", 0, [("x", "≠ 0")]),
        ("log(1 + x**2) + exp(sin(x)) + tanh(x)", 2, []),
        ("sqrt(x)", 0, [("x", "≥ 0")]),
        ("sqrt(x)", 1, [("x", "> 0")]),
        ("x**(5/2)", 2, [("x", "≥ 0")]),
        ("x**(3/2)", 2, [("x", "> 0")]),
        ("tan(x)", 0, [("cos(x)", "≠ 0")]),
        ("1/(1 + x**2)", 0, []),
        ("asin(x)", 1, [("1 - x**2", "> 0")]),
        ("Abs(x) + Max(x, 0)", 1, []),
    ],
)
def test_what_a_formula_asks_for(expr, order, expected):
    read = {"x": X}
    wanted = [(sp.sympify(e, locals=read), sign) for e, sign in expected]
    assert conditions(sp.sympify(expr, locals=read, rational=True), order) == wanted


@pytest.mark.parametrize(("expr", "order"), [("sign(x)", 0), ("floor(x)", 0), ("Heaviside(x)", 0), ("Abs(x)", 2)])
def test_what_jumps_or_kinks_has_no_conditions(expr, order):
    with pytest.raises(ValueError, match=r"may jump|kink"):
        conditions(sp.sympify(expr, locals={"x": X}), order)
    assert everywhere([X**2 + sp.sin(X)])
    assert not everywhere([1 / X])
    assert not everywhere([sp.sign(X)])


FALSE = {
    # ẋ = 1 runs through every pole of tan
    "barrier tan": lambda: BarrierFunction("atan(tan(x))", ["x"]).verify(
        ["1"], Box([0.1], [1]), Box([2], [3]), timeout=TIME
    ),
    # ẋ = -1 runs from 1 to -1 through 0, where atan(1/x) falls from π/2 to -π/2
    "barrier atan(1/x)": lambda: BarrierFunction("atan(1/x)", ["x"]).verify(
        ["-1"], Box([1], [2]), Box([-2], [-1]), domain=Box([-3], [3]), timeout=TIME
    ),
    "barrier where": lambda: BarrierFunction(lambda z: jnp.where(z[0] < 2.0, 1.0, -1.0) * (1 + 0 * z[0]), ["x"]).verify(
        lambda z: 1.0 + 0 * z, Box([0], [1]), Box([3], [4]), domain=Box([-1], [5]), timeout=TIME
    ),
    # from x(0) = 2 the solution converges to 1
    "jump in f": lambda: LyapunovFunction("x**2", ["x"]).verify(["-x + (1 + sign(x - 1))/2"], timeout=TIME),
    "jump in a map": lambda: LyapunovFunction("x**2", ["x"]).verify(
        ["x/2 + (1 + sign(x - 1))/4"], time="discrete", timeout=TIME
    ),
    "jump in f, region": lambda: cg.region_of_attraction(["-x + (1 + sign(x - 1))/2"], "x**2", ["x"], timeout=TIME),
    # V jumps up at x = 1
    "jump in V": lambda: LyapunovFunction(lambda z: jnp.where(z[0] > 1.0, z[0] - 0.9, z[0] ** 2 + 5), ["x"]).verify(
        lambda z: -z, Box([-2], [2]), exclude=0.5, timeout=TIME
    ),
    # JAX's derivative leaves out what is under stop_gradient
    "stop_gradient": lambda: LyapunovFunction(
        lambda z: z[0] ** 2 + z[1] ** 2
        + jax.lax.stop_gradient(jnp.where(z[0] < 100, 60 * (z[0] + 1) ** 2 * z[1] ** 2, 7)), ["x", "y"],
    ).verify(lambda z: jnp.array([[-1, 1], [-1.2, -1]]) @ z, Box([-1, -1], [1, 1]), exclude=0.1, timeout=TIME),
    # E V → 0 under noise that never stops
    "pole in the drift": lambda: LyapunovFunction("x**2", ["x"]).verify_drift(
        ["-x - 5/x"], sp.sqrt(2), c=1, timeout=TIME
    ),
    "imaginary noise": lambda: LyapunovFunction("x**2", ["x"]).verify_drift(
        ["-x"], ["sqrt(x - 10)"], c=1, timeout=TIME
    ),
    # f jumps up by π at 0: two trajectories from ±small part
    "contraction atan(1/x)": lambda: ContractionMetric([[1]], ["x"]).verify(
        ["-x + atan(1/x)"], 1, Box([-1], [1]), timeout=TIME
    ),
    "undefined at a point": lambda: cg.nonnegative("x*(x + 2/x)", ["x"], strict=True, timeout=TIME),
    "class-K function without slope": lambda: BarrierFunction("x", ["x"]).control(
        ["-x"], ["1"], gain="h + 3*sqrt(Abs(sin(2*pi*h)))", inputs=Box([-1], [1]), timeout=TIME
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FALSE)
def test_a_false_claim_about_a_function_that_is_not_continuous_is_left_undecided(name):
    assert FALSE[name]().status is Status.UNDECIDED


def test_a_root_of_a_square_of_a_plain_symbol_has_a_kink():
    x = sp.Symbol("x")  # Brownian motion is recurrent: it reaches 10 with probability 1
    with pytest.raises(ValueError, match="differentiable"):
        StochasticBarrier(sp.sqrt(x**2), [x]).verify(
            ["0"], 1, Box([-0.1], [0.1]), Box([10], [11]) | Box([-11], [-10]), horizon=np.inf
        )


def test_an_equilibrium_on_the_edge_is_stable_only_relative_to_the_domain():
    V = LyapunovFunction("x", ["x"])
    verdict = V.verify(["-x**2"], Box([0], [1]))  # unstable from the left
    assert verdict.status is Status.PROVED
    assert verdict.claim.endswith("relative to the domain")
    assert any("forward invariant" in a for a in verdict.assumptions)
    inside = LyapunovFunction("x**2", ["x"]).verify(["-x"], Box([-1], [1]))
    assert inside.claim.endswith("asymptotically stable")


def test_a_domain_with_an_edge_that_is_no_zero_of_its_formula_has_no_region():
    with pytest.raises(ValueError, match="continuous everywhere"):
        cg.region_of_attraction(["-x", "-y"], "x**2 + y**2", ["x", "y"], Sublevel("sqrt(x + 1)", ["x", "y"], 2))


def test_what_follows_is_said_only_where_it_is_proved():
    oscillator = ["y", "-x - y"]  # globally stable; its energy is no strict Lyapunov function
    verdict = LyapunovFunction("x**2 + y**2", ["x", "y"]).verify(oscillator)
    assert verdict.status is Status.REFUTED
    assert "stable" not in verdict.claim
    # that one V fails at every level does not refute that there is a region of attraction
    skewed = cg.region_of_attraction(["-x + 10*y", "-y"], "x**2 + y**2", ["x", "y"], timeout=TIME)
    assert skewed.status is Status.UNDECIDED


def without_formula(x):
    """A small smooth function with too many operations to be written out."""
    weights = np.full((60, 60), 1e-3)
    return jnp.sum(weights @ jnp.tanh(weights @ (weights @ (jnp.ones(60) * x[0])))) * 1e-6


def test_rules_of_differentiation_in_code_do_not_count():
    h = BarrierFunction(lambda x: jax.lax.stop_gradient(-2 * x[0]) + x[0] + 0.5, ["x"])  # 1/2 - x, and ẋ ≈ 1 crosses it
    verdict = h.verify(lambda x: jnp.stack([1 + without_formula(x)]), Box([-0.5], [0]), Box([1], [2]), Box([-1], [3]))
    assert verdict.status is not Status.PROVED
    V = LyapunovFunction(lambda x: jax.lax.stop_gradient(2 * x[0] * x[0]) - x[0] * x[0], ["x"])
    unstable = V.verify(lambda x: x + without_formula(x), Box([-1], [1]), exclude=0.2, timeout=TIME)
    assert unstable.status is not Status.PROVED


def test_without_formulas_nothing_is_said_of_the_equilibrium_itself():
    V = LyapunovFunction(lambda x: 2 + x[0] + without_formula(x), ["x"])  # V(0) = 2 is no minimum, and f(0) = -1e-7
    verdict = V.verify(lambda x: jnp.stack([-1e-7 - 1e-9 * without_formula(x)]), Box([-1], [1]), timeout=TIME)
    assert verdict.status is Status.UNDECIDED


def test_a_control_barrier_function_has_no_kink():
    # h = min(x, y): whatever u is, 2x + y falls at rate 3, so {h ≥ 0} cannot be kept. At x = y SymPy's sign(0) = 0
    # gives the mean of two gradients, which some u serves.
    low = BarrierFunction("(x + y - abs(x - y))/2", ["x", "y"])
    assert low.control(["-1", "-1"], ["1", "-2"], timeout=TIME).status is Status.UNDECIDED
    assert BarrierFunction("abs(x) - 1", ["x"]).control(["0"], ["1"], timeout=TIME).status is Status.UNDECIDED
    # ψ₁ = -v/(x² + 1) is smooth; h jumps at 0
    jumps = BarrierFunction("atan(1/x) + 2", ["x", "v"]).high_order(["v", "0"], ["0", "1"], [0])
    assert jumps.control(["v", "0"], ["0", "1"], timeout=TIME).status is Status.UNDECIDED


def test_a_complement_needs_a_formula_that_is_defined_everywhere():
    with pytest.raises(ValueError, match="complement of"):
        ~Sublevel("sqrt(x) - 5/4", ["x"])
    assert (~Sublevel("x**2", ["x"], 1)).contains([2.0])


def test_an_empty_claim_is_refused():
    with pytest.raises(ValueError, match="exclude: the domain outside the excluded ball"):
        LyapunovFunction("x**2", ["x"]).verify(["x"], Box([-0.1], [0.1]), exclude=1)


def test_definite_denominators_and_logarithms_are_steps_of_the_proof():
    verdict = LyapunovFunction("x**2", ["x"]).verify(["-x/(2 + sin(x))"], Ball([0], 1))
    assert verdict.status is Status.PROVED
    assert any("f is defined: sin(x) + 2" in step.claim.text for step in verdict.steps)
    assert verdict.recheck()


class _Kinked(cg.Energy):
    """|x₁| as a class of its own: no formula to look at."""

    dim: int = 1

    def potential(self, x):
        return jnp.abs(x[0]) + jnp.maximum(x[0], 0)


@pytest.mark.parametrize(
    ("order", "kinks", "fine"), [(0, True, True), (1, True, True), (1, False, False), (2, True, False)]
)
def test_kinks_of_functions_without_formula(order, kinks, fine):
    # E_ρ[ΔV] of |x| misses what its slope jumps by
    steps = regular([("V", Field(_Kinked(), (X,)), order)], (X,), None, "auto", Deadline(5), kinks=kinks)
    assert (not steps) is fine
    assert all(step.outcome.status is Status.UNDECIDED for step in steps)
