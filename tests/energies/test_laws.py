"""Laws that every energy obeys, whatever it is made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ctrlgen as cg
from ctrlgen.precision import float64
from tests.energies.family import FAMILY

CLAIMING = {k: e for k, e in FAMILY.items() if e.properties != cg.Properties()}
SYMBOLIC = {
    k: e for k, e in FAMILY.items() if k not in ("callable", "network", "network with features", "trained", "weighted")
}
# the dearest to compile, each of a class of which another member is looked at in every run of the tests
DEAR = {
    "12-D mixture", "diagonal mixture", "either of three", "many components", "network with features", "observed 12-D",
    "quadratic 12-D",
}  # fmt: skip


def each(energies, dear=DEAR):
    parts = [pytest.param(e, id=k, marks=[pytest.mark.slow] if k in dear else []) for k, e in energies.items()]
    return pytest.mark.parametrize("energy", parts)


members = each(FAMILY)


@members
def test_shapes_on_one_state_and_on_a_batch(energy, rng):
    d, x = energy.dim, rng.normal(size=(5, energy.dim))
    shapes = {"__call__": (), "gradient": (d,), "hessian": (d, d), "laplacian": ()}
    for name, shape in shapes.items():
        view = getattr(energy, name)
        assert np.shape(view(x[0])) == shape
        batch = view(x)
        assert batch.shape == (5, *shape)
        assert batch.dtype == np.float64
        np.testing.assert_allclose(batch[3], view(x[3]), rtol=1e-12, atol=1e-12)


@members
def test_gradient_against_finite_differences(energy, rng):
    x, e = rng.normal(size=(4, energy.dim)), 1e-5
    steps = e * np.eye(energy.dim)
    differences = np.stack([(energy(x + s) - energy(x - s)) / (2 * e) for s in steps], axis=-1)
    # central differences: error e² |E'''| + 1e-16 |E| / e, about 1e-9 here
    np.testing.assert_allclose(energy.gradient(x), differences, rtol=1e-6, atol=1e-7)


@members
def test_hessian_against_finite_differences_and_symmetry(energy, rng):
    x, e = rng.normal(size=(3, energy.dim)), 1e-5
    steps = e * np.eye(energy.dim)
    differences = np.stack([(energy.gradient(x + s) - energy.gradient(x - s)) / (2 * e) for s in steps], axis=-1)
    hessian = energy.hessian(x)
    np.testing.assert_allclose(hessian, differences, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(hessian, np.swapaxes(hessian, 1, 2))


@members
def test_laplacian_is_the_trace_of_the_hessian(energy, rng):
    x = rng.normal(size=(6, energy.dim))
    trace = np.trace(energy.hessian(x), axis1=1, axis2=2)
    np.testing.assert_allclose(energy.laplacian(x), trace, rtol=1e-11, atol=1e-11)


# one estimate for all of them, from their products with the Hessian: a few in every run
@each(FAMILY, FAMILY.keys() - {"quadratic", "callable", "full mixture", "funnel", "network", "symbolic", "weighted"})
def test_hutchinson_is_within_its_error(energy, rng):
    x = rng.normal(size=(16, energy.dim))
    estimate = energy.laplacian_estimate(x, probes=200, key=3)
    off = np.abs(estimate.value - energy.laplacian(x))
    assert (off <= 5 * estimate.error + 1e-9).all()  # 16 draws beyond 5 σ: probability 1e-5
    assert estimate.value.shape == estimate.error.shape == (16,)


@each(SYMBOLIC)
def test_symbolic_view_agrees_with_jax(energy, rng):
    sympy = pytest.importorskip("sympy")
    states = sympy.symbols(f"s1:{energy.dim + 1}", real=True)
    expression = energy.symbolic(states)
    value = sympy.lambdify(states, expression, "numpy")
    slope = [sympy.lambdify(states, sympy.diff(expression, s), "numpy") for s in states[:3]]
    for x in rng.normal(size=(3, energy.dim)):
        np.testing.assert_allclose(energy(x), value(*x), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(energy.gradient(x)[:3], [g(*x) for g in slope], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["callable", "network", "trained", "weighted"])
def test_energies_without_a_formula_say_so(name):
    with pytest.raises(TypeError, match="no symbolic view"):
        FAMILY[name].symbolic()


@members
def test_jax_input_keeps_its_type_and_is_traceable(energy, rng):
    x = jnp.asarray(rng.normal(size=(4, energy.dim)), jnp.float32)
    value, slope, by_autodiff = jax.jit(
        lambda y: (energy(y), energy.gradient(y), jax.grad(lambda z: energy(z).sum())(y))
    )(x)
    assert isinstance(value, jax.Array)
    assert value.dtype == slope.dtype == jnp.float32
    np.testing.assert_allclose(value, energy(np.asarray(x)), rtol=2e-4, atol=2e-4)  # float32 against float64
    np.testing.assert_allclose(slope, by_autodiff, rtol=1e-4, atol=1e-4)
    with float64():
        assert energy(jnp.asarray(np.asarray(x), jnp.float64)).dtype == jnp.float64


@members
def test_wrong_shapes_are_named(energy):
    d = energy.dim
    with pytest.raises(ValueError, match=rf"x must have shape \({d},\) or \(n, {d}\)"):
        energy(np.zeros(d + 1))
    with pytest.raises(ValueError, match="got shape"):
        energy.gradient(np.zeros((2, 3, d)))
    with pytest.raises(ValueError, match="at least one state"):
        energy(np.zeros((0, d)))
    with pytest.raises(ValueError, match="array of numbers"):
        energy("nonsense")


@each(CLAIMING)
def test_established_constants_hold(energy, rng):
    """Every claimed constant is checked against the Hessians and gradients at 400 points, near and far."""
    x = rng.normal(size=(400, energy.dim)) * rng.choice([0.3, 1.0, 4.0], size=(400, 1))
    known = energy.properties
    if known.hessian_lower is not None or known.hessian_upper is not None:
        eigenvalues = np.linalg.eigvalsh(energy.hessian(x))
        assert known.hessian_lower is None or eigenvalues.min() >= known.hessian_lower - 1e-9
        assert known.hessian_upper is None or eigenvalues.max() <= known.hessian_upper + 1e-9
    if known.dissipativity is not None:
        a, b = known.dissipativity
        slack = (x * energy.gradient(x)).sum(axis=1) - (a * (x**2).sum(axis=1) - b)
        assert slack.min() >= -1e-9 * (1 + np.abs(slack).max())


def test_global_x64_flag_is_left_alone():
    before = jax.config.jax_enable_x64
    FAMILY["quadratic"](np.zeros(2))
    assert jax.config.jax_enable_x64 is before
