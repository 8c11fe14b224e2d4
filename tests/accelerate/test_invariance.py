"""Loops that keep the Gibbs measure and loops that do not, against the divergence of the flux on a grid of points."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy as sp

import ctrlgen as cg
from ctrlgen import Status
from ctrlgen.accelerate.invariance import invariance

BANANA, FUNNEL, EPSILON = cg.Banana(), cg.Funnel(2, 3.0), 0.7
TURN = np.array([[0.0, 1.5], [-1.5, 0.0]])
BENT = ["1 + x1**2", "2 + x1**2"]
FULL = [["1 + x1**2", "x1/2"], ["x1/2", "1"]]
SPINNING = [[0, "x1*x2"], ["-x1*x2", 0]]


def divergence(energy, point, mobility, skew, correction):
    """∇·flux / ρ at a point by JAX in float64, from the definition of the flux; mobility and skew are functions."""
    from ctrlgen.precision import float64

    def rho(x):
        return jnp.exp(-(energy.potential(x) - energy.potential(jnp.asarray(point))) / EPSILON)

    def rows(table):
        return lambda x: jnp.einsum("ijj->i", jax.jacfwd(table)(x))

    def flux(x):
        both = lambda y: mobility(y) + skew(y)  # noqa: E731
        drift = -both(x) @ jax.grad(energy.potential)(x) + correction * EPSILON * rows(both)(x)
        return rho(x) * drift - EPSILON * rows(lambda y: mobility(y) * rho(y))(x)

    with float64():
        return float(jax.jit(lambda x: jnp.trace(jax.jacfwd(flux)(x)))(jnp.asarray(point)))


@pytest.mark.parametrize(
    ("energy", "options"),
    [
        (BANANA, {}),
        (BANANA, {"skew": TURN}),
        (BANANA, {"metric": [2.0, 0.5], "skew": TURN}),
        (BANANA, {"metric": np.array([[2.0, 0.4], [0.4, 0.5]])}),
        (BANANA, {"metric": BENT}),
        (BANANA, {"metric": FULL, "skew": TURN}),
        (BANANA, {"metric": sp.Matrix([["1 + x1**2", 0], [0, 1]]), "skew": SPINNING}),
        (FUNNEL, {"metric": ["1/9 + 1/2", "exp(-x1)"], "skew": TURN}),
        (FUNNEL, {"metric": lambda x: jnp.stack([1 + x[0] ** 2, jnp.exp(-x[0])])}),
        (cg.MLPEnergy(2, width=8, depth=1), {"skew": TURN}),
        (cg.GaussianMixture([[-1.0, 0.0], [1.0, 0.0]], 0.5), {"skew": TURN, "metric": np.array([1.0, 3.0])}),
        (cg.Quadratic([[2.0]]), {"metric": ["1 + x1**2"]}),
        (cg.Quadratic([[2.0]]), {"skew": [[0.0]]}),
    ],
)
def test_every_smooth_energy_metric_and_skew_is_kept(energy, options):
    verdict = invariance(energy, EPSILON, **options)
    assert verdict.status is Status.PROVED
    assert verdict.recheck()


ROUND = cg.Quadratic(np.eye(2))
JUMPS = [
    "sign(x1)",
    "1/x1",
    "atan2(x1, x2)",
    sp.Piecewise((1, sp.Symbol("x1") > 0), (-1, True)),
]


def turning(entry):
    return [[0, entry], [-entry if isinstance(entry, sp.Basic) else f"-({entry})", 0]]


@pytest.mark.parametrize(
    ("energy", "options"),
    [
        *((ROUND, {"skew": turning(jump)}) for jump in JUMPS),
        (ROUND, {"skew": lambda x: jnp.sign(x[0]) * jnp.asarray(TURN)}),
        (ROUND, {"skew": lambda x: (1 / x[0]) * jnp.asarray(TURN)}),
        (ROUND, {"skew": lambda x: jax.lax.stop_gradient(x[0]) * jnp.asarray(TURN)}),
        (ROUND, {"metric": ["1 + sign(x1)/2", 1]}),
        (ROUND, {"metric": ["1 + 1/x1**2", 1]}),
        (ROUND, {"metric": lambda x: jnp.stack([jnp.where(x[0] > 0, 2.0, 1.0), 1 + x[1] ** 2])}),
        (cg.SymbolicEnergy("x1**2 + x2**2 + x2*sign(x1)", ["x1", "x2"]), {"skew": TURN}),
        (cg.SymbolicEnergy("x1**2 + x2**2 + sign(x1)", ["x1", "x2"]) + ROUND, {}),
        (cg.CallableEnergy(lambda x: jnp.sum(x * jax.lax.stop_gradient(x)) / 2, 2), {"skew": TURN}),
        (cg.CallableEnergy(lambda x: jnp.sum(x * x) + jnp.where(x[0] > 0, x[1], -x[1]), 2), {"skew": TURN}),
    ],
)
def test_where_something_jumps_nothing_is_proved(energy, options):
    """At ρ* of ½|x|² and J = sign(x1), d/dt E[x2] is 2φ(0) = 0.798: the measure on x1 = 0 of ∂J is left out."""
    verdict = invariance(energy, 1.0, **options)
    assert verdict.status is Status.UNDECIDED
    assert verdict.reason


@pytest.mark.parametrize(
    ("energy", "options"),
    [
        (ROUND, {"skew": turning("Abs(x1)")}),
        (ROUND, {"metric": ["1 + Abs(x1)", 1], "skew": TURN}),
        (ROUND, {"skew": turning("1/(1 + x1**2)")}),
        (cg.SymbolicEnergy("x1**2 + x2**2 + Abs(x1)", ["x1", "x2"]), {"skew": TURN}),
        (cg.CallableEnergy(lambda x: jnp.sum(x * x) + jnp.sqrt(1 + x[0] ** 2), 2), {"skew": TURN}),
    ],
)
def test_kinks_do_no_harm(energy, options):
    """The identity holds weakly: a kink is no jump."""
    verdict = invariance(energy, 1.0, **options)
    assert verdict.status is Status.PROVED
    assert not any("Lipschitz" in a or "differentiable" in a for a in verdict.assumptions)


def test_a_value_on_a_jump_alone_refutes_nothing():
    """1 - |sign(x1)| vanishes almost everywhere; the points that are tried include some with x1 = 0."""
    flat = [["1 - Abs(sign(x1))", "0"], ["0", "0"]]
    assert invariance(ROUND, 1.0, skew=flat).status is Status.UNDECIDED
    assert invariance(ROUND, 1.0, skew=[["Abs(x1)", "0"], ["0", "0"]]).status is Status.REFUTED
    assert invariance(ROUND, 1.0, metric=["1 + Abs(x1)", 1], correction=False).status is Status.REFUTED


def test_a_metric_of_undecided_sign_must_be_smooth_all_the_same():
    late = "2 + sin(x1*x2*exp(x1))*cos(x1**3)/2"
    options = {"metric": [[late, "0"], ["0", "1 + sign(x1)/4"]]}
    assert invariance(ROUND, 1.0, **options, timeout=2).status is Status.UNDECIDED


def bent(x):
    return jnp.diag(jnp.stack([1 / (1 + x[0] ** 2), 1 / (2 + x[0] ** 2)]))


def full(x):
    return jnp.linalg.inv(jnp.array([[1 + x[0] ** 2, x[0] / 2], [x[0] / 2, 1.0]]))


@pytest.mark.parametrize(
    ("options", "mobility", "skew", "correction"),
    [
        ({"metric": BENT}, bent, None, False),
        ({"metric": FULL}, full, None, False),
        ({"skew": SPINNING}, None, lambda x: x[0] * x[1] * jnp.array([[0.0, 1.0], [-1.0, 0.0]]), False),
        ({"skew": [[0.1, 1.0], [-1.0, 0.0]]}, None, lambda x: jnp.array([[0.1, 1.0], [-1.0, 0.0]]), True),
        ({"skew": [[0, "x2"], ["x2", 0]]}, None, lambda x: x[1] * jnp.array([[0.0, 1.0], [1.0, 0.0]]), True),
        ({"metric": BENT, "skew": np.ones((2, 2))}, bent, lambda x: jnp.ones((2, 2)), True),
    ],
)
def test_what_is_not_kept_is_refuted_at_a_point(options, mobility, skew, correction):
    """The witness is worked out again from the definition of the flux, by automatic differentiation."""
    verdict = invariance(BANANA, EPSILON, correction=correction, **options)
    assert verdict.status is Status.REFUTED
    assert verdict.recheck()
    unit = lambda x: jnp.eye(2)  # noqa: E731
    nothing = lambda x: jnp.zeros((2, 2))  # noqa: E731
    value = divergence(BANANA, verdict.witness, mobility or unit, skew or nothing, correction)
    told = float(verdict.reason.split("r = ")[1].split(" at")[0])
    assert value == pytest.approx(told, rel=1e-4)
    assert abs(value) > 1e-3


@pytest.mark.parametrize(
    ("energy", "options"),
    [(BANANA, {"metric": [2.0, 0.5]}), (FUNNEL, {"metric": ["1/9 + 1/2", "exp(-x1)"]}), (BANANA, {"skew": TURN})],
)
def test_a_correction_that_vanishes_is_not_missed(energy, options):
    """Constant metrics, and diagonal ones whose entries do not depend on their own coordinate, have no divergence."""
    assert invariance(energy, EPSILON, correction=False, **options).status is Status.PROVED


def test_a_skew_part_that_is_not_skew_may_still_vanish_against_the_energy():
    """tr(G∇²E) = 0 and ∇E·G∇E = 0 for G = diag(1, 0) and an energy that does not depend on x1."""
    energy = cg.SymbolicEnergy("x2**2/2 + 0*x1", ["x1", "x2"])
    with pytest.raises(ValueError, match="must have a Gibbs measure"):
        invariance(energy, 1.0, skew=[[1.0, 0.0], [0.0, 0.0]])
    energy = cg.SymbolicEnergy("x1**4 + x2**2", ["x1", "x2"])
    assert invariance(energy, 1.0, skew=[[1.0, 0.0], [0.0, 0.0]]).status is Status.REFUTED


def test_rounding_of_a_skew_matrix_is_rounding():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(2, 2))
    skew = TURN + 1e-17 * a
    skew[0, 0] = 1e-16
    verdict = invariance(BANANA, EPSILON, skew=skew)
    assert verdict.status is Status.PROVED
    skew[0, 0] = 1e-6
    assert invariance(BANANA, EPSILON, skew=skew).status is Status.REFUTED


def test_a_metric_that_is_not_positive_is_refuted():
    verdict = invariance(FUNNEL, 1.0, metric=["x1", "1"])
    assert verdict.status is Status.REFUTED
    assert verdict.witness[0] <= 0


def test_without_formulas_nothing_is_pretended():
    verdict = invariance(BANANA, 1.0, skew=lambda x: jnp.linalg.eigh(jnp.outer(x, x))[1])
    assert verdict.status is Status.UNDECIDED
    assert "no formula" in verdict.reason


def test_states_may_have_names():
    energy = cg.SymbolicEnergy("a**2 + b**4", ["a", "b"])
    options = {"metric": ["1 + a**2", "1"], "states": ["a", "b"]}
    assert invariance(energy, 0.3, **options).status is Status.PROVED
    assert invariance(energy, 0.3, correction=False, **options).status is Status.REFUTED


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: invariance(BANANA, 0.0), "temperature must be positive"),
        (lambda: invariance(BANANA, 1.0, metric=[1.0, 2.0, 3.0]), r"metric must be of shape \(2,\) or \(2, 2\)"),
        (lambda: invariance(BANANA, 1.0, skew=[1.0, 2.0]), r"skew must be of shape \(2, 2\)"),
        (lambda: invariance(BANANA, 1.0, metric=[-1.0, 2.0]), "metric must be positive definite"),
        (lambda: invariance(BANANA, 1.0, metric=[["1", "x1"], ["0", "1"]]), "metric must be symmetric"),
        (lambda: invariance(BANANA, 1.0, skew=[[0.0, np.inf], [0.0, 0.0]]), "skew must be finite"),
        (lambda: invariance(cg.SymbolicEnergy("x**2 - y**2", ["x", "y"]), 1.0), "must have a Gibbs measure"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_only_energies():
    with pytest.raises(TypeError, match="energy must be an Energy"):
        invariance("x**2", 1.0)
