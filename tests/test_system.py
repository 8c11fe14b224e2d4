"""What a python-control system is read as is what it computes with numbers, or it is not read."""

import math

import control as ct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy as sp

import ctrlgen as cg
from ctrlgen.field import VectorField
from ctrlgen.objects import Trials, numpy_formulas
from ctrlgen.scalars import NoFormula
from ctrlgen.system import equations, ignores

X = sp.Symbol("x1", real=True)


def system(update, out=None, **options):
    return ct.nlsys(update, out, **{"inputs": 1, "states": 1, **options})


def caught(t, x, u, p):
    try:
        return x if x[0] > 0 else 1.0 * x
    except Exception:
        return -x


def filled(t, x, u, p):
    out = np.zeros(1)
    out[0] = -x[0]
    return out


class Overriding(ct.NonlinearIOSystem):
    def _rhs(self, t, x, u):
        return np.asarray(x)


# Each is +x, or NaN on one side, with numbers; symbols or tracers alone would give -x.
OTHERWISE = {
    "imaginary part": lambda t, x, u, p: -x + 2 * np.imag(1j * x),
    "equal arrays": lambda t, x, u, p: x if np.array_equal(u, [0]) else -x,
    "type of an entry": lambda t, x, u, p: x if isinstance(x[0], float) else -x,
    "type of the array": lambda t, x, u, p: x if x.dtype == float else -x,
    "type, on symbols": lambda t, x, u, p: np.sin(x) if isinstance(x[0], float) else -np.sin(x),
    "caught error": caught,
    "logarithm": lambda t, x, u, p: -np.exp(np.log(x)),
    "logarithm far away": lambda t, x, u, p: 50 - np.exp(np.log(x + 50)),
    "root": lambda t, x, u, p: -(np.sqrt(x) ** 2),
    "logarithm in JAX": lambda t, x, u, p: -jnp.exp(jnp.log(x)),
    "quotient": lambda t, x, u, p: -x * x / x,
}


@pytest.mark.parametrize("update", [pytest.param(f, id=k) for k, f in OTHERWISE.items()])
def test_code_that_does_other_things_with_numbers_is_never_proved(update):
    try:
        said = cg.LyapunovFunction("x1**2", ["x1"]).verify(system(update), cg.Box([-1], [1])).status.name
    except ValueError as error:
        said = str(error)
    assert said in ("UNDECIDED", "REFUTED") or "as it was read" in said or "must rest at the equilibrium" in said
    found = equations(system(update))
    with np.errstate(all="ignore"), jax.enable_x64(True):
        for x in (-0.7, 0.4):
            got = np.asarray(found.rate(jnp.zeros(()), jnp.full(1, x), jnp.zeros(1)))
            np.testing.assert_allclose(got, update(0.0, np.full(1, x), np.zeros(1), {}), rtol=1e-12)


def test_what_is_told_of_such_code():
    with pytest.raises(ValueError, match=r"updfcn returns \[1\] at t=0, x=\[1\], u=\[0\], and returns \[-1\] there as"):
        VectorField(system(OTHERWISE["equal arrays"]), ["x1"])
    own = Overriding(lambda t, x, u, p: -x, None, inputs=1, states=1)
    with pytest.raises(ValueError, match=r"updfcn returns \[1\] at"):
        VectorField(own, ["x1"])
    with pytest.raises(ValueError, match="complex numbers"):
        VectorField(system(lambda t, x, u, p: -x + 1j * x), ["x1"])


KEPT = {
    "cancelling terms": (lambda t, x, u, p: 0.3 * x - 0.1 * x - 0.2 * x - x, -X),
    "large coefficients": (lambda t, x, u, p: -1e6 * np.sin(1000 * x), -1000000 * sp.sin(1000 * X)),
    "overflow": (lambda t, x, u, p: 1 - np.exp(x**2 + x), 1 - sp.exp(X**2 + X)),
    "overflow in JAX": (lambda t, x, u, p: 1 - jnp.exp(x**2 + x), 1 - sp.exp(X**2 + X)),
    "methods of JAX's arrays": (lambda t, x, u, p: x.at[0].set(-x[0]), -X),
    "clip": (lambda t, x, u, p: -np.clip(x, -1, 1), -sp.Min(1, sp.Max(-1, X))),
    "clip of a number": (lambda t, x, u, p: [-np.clip(x[0], -1, 1)], -sp.Min(1, sp.Max(-1, X))),
    "maximum": (lambda t, x, u, p: -np.maximum(x, 0.5 * x), -sp.Max(X, X / 2)),
    "minimum": (lambda t, x, u, p: [np.minimum(0, -x[0])], sp.Min(0, -X)),
    "absolute value": (lambda t, x, u, p: -x * np.abs(x), -X * sp.Abs(X)),
    "inverse root": (lambda t, x, u, p: -np.log(1 + x) + x / np.sqrt(2 - x), -sp.log(1 + X) + X / sp.sqrt(2 - X)),
}


@pytest.mark.parametrize(("update", "formula"), [pytest.param(*v, id=k) for k, v in KEPT.items()])
def test_rounding_overflow_and_domains_are_no_difference(update, formula):
    assert sp.simplify(VectorField(system(update), [X]).formulas()[0] - formula) == 0


@pytest.mark.parametrize(
    "update",
    [filled, lambda t, x, u, p: np.where(x > 0, -x, -2 * x), lambda t, x, u, p: [-math.sin(x[0])]],
    ids=["filled", "where", "math"],
)
def test_a_refusal_says_what_to_write(update):
    with pytest.raises(ValueError, match=r"write np.clip.*jnp.where.*np.sin for math.sin, and return a list"):
        VectorField(system(update), ["x1"])


def test_a_refusal_that_code_catches_is_one():
    with pytest.raises(NoFormula, match="cannot be compared"):
        numpy_formulas(lambda z: caught(0, z, None, None), [X])


def test_trials_see_a_difference_on_one_side():
    trials = Trials(lambda t, x, u: -x, 2, 1)
    assert trials.difference(lambda t, x, u: -x * (1 + 1e-12)) == ""
    assert "as it was read" in trials.difference(lambda t, x, u: -x * (1 + 1e-6))
    assert "as it was read" in trials.difference(lambda t, x, u: -x if u[0] == 0 else -x + 1e-6 * u)
    assert "[-1, -1] there" in trials.difference(lambda t, x, u: -np.abs(x))
    assert Trials(lambda t, x, u: x.nothing, 1, 1).difference(lambda t, x, u: x.nothing).startswith("gives no numbers")


def test_the_certificates_of_barriers_read_the_same():
    """A barrier of ẋ = -x is proved; one of ẋ = +x that JAX would read as -x is not."""
    barrier = cg.BarrierFunction("4 - x1^2", ["x1"])
    sets = {"initial": cg.Ball([0], 1), "unsafe": cg.Box([3], [4]), "domain": cg.Box([-4], [4]), "gain": 0}
    assert barrier.verify(system(lambda t, x, u, p: -x), **sets).status.name == "PROVED"
    with pytest.raises(ValueError, match="as it was read"):
        barrier.verify(system(OTHERWISE["equal arrays"]), **sets)


def test_parameters_that_override_and_parts_of_linear_interconnections():
    gained = system(lambda t, x, u, p: -p["k"] * x + u if p["k"] > 0 else x, params={"k": 2}, name="plant", outputs=1)
    assert VectorField(gained, [X]).exprs == (-2 * X,)
    loop = ct.interconnect([gained], [["plant", "-plant"]], ["plant"], ["plant"], params={"k": -1})
    assert VectorField(loop, [X]).exprs == (sp.Integer(0) * X + X,)
    np.testing.assert_allclose(loop.dynamics(0, [1.0], [0.0]), [1.0])
    lying = system(OTHERWISE["type of an entry"], name="plant", outputs=1)
    wired = ct.interconnect([lying], [["plant", "-plant"]], ["plant"], ["plant"])
    with pytest.raises(ValueError, match="as it was read"):
        VectorField(wired, [X])


def test_a_linear_interconnection_whose_matrices_were_changed_is_refused():
    parts = [ct.ss(-1, 1, 1, 0, name="p"), ct.ss([], [], [], 0.5, inputs=1, outputs=1, name="g")]
    wired = ct.interconnect(parts, [["p", "g"], ["g", "p"]], ["p"], ["p"])
    assert VectorField(wired, [X]).exprs == (-X / 2,)
    wired.A = np.array([[3.0]])  # python-control goes by the matrices
    with pytest.raises(ValueError, match=r"its dynamics returns \[3\].*\[-0.5\] there as it was read"):
        VectorField(wired, [X])


def test_code_that_runs_only_as_python_reads_what_it_names():
    """Values that are tried would not find the branch at x > 5."""

    def seldom(t, x, u, p):
        return [u[0]] if x[0] > 5 else [x[0]]

    def never(t, x, u, p):
        return [x[0] if x[0] > 5 else 2 * x[0]]

    def closed(t, x, u, p):
        return [next(u[0] for _ in x) if x[0] > 5 else x[0]]

    def looks(t, x, u, p):
        return [locals()["u"][0] if x[0] > 5 else x[0]]

    assert [ignores(f, 2) for f in (seldom, never, closed, looks, np.sin)] == [False, True, False, False, False]
    for out, through in ((seldom, True), (closed, True), (looks, True), (never, False)):
        plant = ct.nlsys(lambda t, x, u, p: -x + u, out, inputs=1, outputs=1, states=1)
        assert equations(plant).feedthrough.tolist() == [[through]]
    with pytest.raises(ValueError, match="no direct feedthrough"):
        cg.interop.from_control(ct.nlsys(lambda t, x, u, p: -x + u, seldom, inputs=1, outputs=1, states=1))
