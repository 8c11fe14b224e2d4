"""What is particular to each energy: exact values, samples, constants, and refusals."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import ctrlgen as cg
from ctrlgen.energies.algebra import Composition

SOFT = cg.MLPEnergy(2, width=16, depth=2, confinement=0.5)
SOFT = eqx.tree_at(lambda e: e.weights[0], SOFT, SOFT.weights[0] * 8)  # curved: its bounds decide little
KINKED = cg.MLPEnergy(2, width=8, activation="relu", confinement=0.5)


def test_quadratic_against_the_definition(rng):
    p, mu = np.array([[3.0, 1.0], [1.0, 2.0]]), np.array([1.0, -1.0])
    x = rng.normal(size=(7, 2))
    energy = cg.Quadratic(p, mu)
    np.testing.assert_allclose(energy(x), 0.5 * np.einsum("ni,ij,nj->n", x - mu, p, x - mu), rtol=1e-13)
    np.testing.assert_allclose(energy.hessian(x[0]), p, rtol=1e-13)
    low, high = np.linalg.eigvalsh(p)
    assert energy.properties.hessian_lower == pytest.approx(low, rel=1e-12)
    assert energy.properties.hessian_upper == pytest.approx(high, rel=1e-12)
    assert energy.properties.hessian_lower <= low


def test_quadratic_log_partition_is_the_gaussian_integral():
    energy = cg.Quadratic([[2.0]])
    x = np.linspace(-12, 12, 20001)
    integral = np.trapezoid(np.exp(-energy(x[:, None]) / 0.3), x)
    assert energy.log_partition(0.3) == pytest.approx(np.log(integral), abs=1e-12)


@pytest.mark.parametrize("name", ["isotropic", "diagonal", "full"])
def test_mixture_is_minus_temperature_log_density(name, rng):
    covariance = {"isotropic": 0.5 * np.eye(2), "diagonal": np.diag([0.5, 2.0]), "full": [[1.0, 0.4], [0.4, 0.6]]}[name]
    means, weights = np.array([[0.0, 0.0], [2.0, 1.0], [-3.0, 1.0]]), np.array([1.0, 2.0, 1.0])
    energy = cg.GaussianMixture(means, np.array([covariance] * 3), weights, temperature=0.4)
    x = rng.normal(size=(50, 2)) * 3
    density = sum(w / 4 * stats.multivariate_normal(m, covariance).pdf(x) for w, m in zip(weights, means, strict=True))
    np.testing.assert_allclose(energy(x), -0.4 * np.log(density), rtol=1e-11)
    np.testing.assert_allclose(energy.log_density(x), np.log(density), rtol=1e-11)


def test_mixture_far_out_does_not_overflow():
    energy = cg.GaussianMixture([[0.0, 0.0], [3.0, 0.0]], 0.25)
    x = jnp.asarray([[1e4, 0.0], [-1e4, 1e4]], jnp.float32)
    assert np.isfinite(energy(x)).all()
    assert np.isfinite(energy.gradient(x)).all()


def test_weights_whose_sum_overflows_are_weights():
    whole = cg.GaussianMixture([[0.0], [1.0]], 1.0, weights=[1e308, 1e308])
    assert whole.weights.tolist() == [0.5, 0.5]
    np.testing.assert_array_equal(cg.mixture([cg.Ring(), cg.Ring()], 1.0, [1e308, 1e308]).offsets, np.log([0.5, 0.5]))


def test_mixture_samples_have_its_moments():
    energy = cg.GaussianMixture([[0.0, 0.0], [4.0, 0.0]], [[[1.0, 0.3], [0.3, 0.5]]] * 2, weights=[1, 3])
    x = energy.sample(5, 40_000)
    np.testing.assert_array_equal(x, energy.sample(5, 40_000))
    covariance = np.array([[1.0, 0.3], [0.3, 0.5]]) + np.diag([16 * 3 / 16, 0])
    error = np.sqrt(np.diag(covariance) / len(x))
    assert (np.abs(x.mean(axis=0) - [3.0, 0.0]) < 4.5 * error).all()
    np.testing.assert_allclose(np.cov(x.T), covariance, atol=0.1)


def test_classics_have_their_textbook_values():
    assert cg.DoubleWell()([1.0, 0.0]) == 0.0
    assert cg.DoubleWell(barrier=3.0)([0.0, 0.0]) == 3.0
    np.testing.assert_allclose(cg.DoubleWell()([0.5, 2.0]), (0.25 - 1) ** 2 + 2.0)
    assert cg.Ring(radius=2.0)([0.0, 2.0]) == 0.0
    np.testing.assert_allclose(np.linalg.eigvalsh(cg.Ring(2.0, 4.0).hessian([2.0, 0.0])), [0.0, 4.0], atol=1e-12)
    # Neal's funnel is the law of (v, x): -log density up to a constant
    v, x = 0.7, 1.3
    log_density = stats.norm(0, 3).logpdf(v) + stats.norm(0, np.exp(v / 2)).logpdf(x)
    origin = stats.norm(0, 3).logpdf(0) + stats.norm(0, 1).logpdf(0)
    funnel = cg.Funnel()
    np.testing.assert_allclose(funnel([v, x]) - funnel([0.0, 0.0]), origin - log_density, rtol=1e-12)
    banana = cg.Banana(scale=2.0, curvature=0.25)
    log_density = stats.norm(0, 2).logpdf(1.0) + stats.norm(0.25 * (1 - 4), 1).logpdf(0.5)
    origin = stats.norm(0, 2).logpdf(0.0) + stats.norm(0.25 * (0 - 4), 1).logpdf(0.0)
    np.testing.assert_allclose(banana([1.0, 0.5]) - banana([0.0, 0.0]), origin - log_density, rtol=1e-12)


def test_algebra_is_the_weighted_sum(rng):
    a, b = cg.DoubleWell(), cg.Quadratic(np.eye(2))
    x = rng.normal(size=(9, 2))
    for energy, expected in [
        (a + b, a(x) + b(x)),
        (0.5 * a, 0.5 * a(x)),
        (a * 2, 2 * a(x)),
        (a / 4, a(x) / 4),
        (-a, -a(x)),
        (a - 0.5 * b, a(x) - 0.5 * b(x)),
        (cg.compose([a, b, a], weights=[1, 0.5, -3], check=False), -2 * a(x) + 0.5 * b(x)),
    ]:
        np.testing.assert_allclose(energy(x), expected, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(energy.gradient(x), np.asarray(energy.gradient(x)))


def test_composition_is_flat_and_drops_zero_weights():
    a, b = cg.DoubleWell(), cg.Quadratic(np.eye(2))
    nested = 2 * (a + 3 * b) + 0 * b
    assert isinstance(nested, Composition)
    assert nested.terms == (a, b)
    np.testing.assert_array_equal(nested.weights, [2.0, 6.0])


def test_constants_propagate_by_sign():
    a, b = cg.Quadratic(np.diag([1.0, 4.0])), cg.Quadratic(np.diag([2.0, 3.0]))
    known = cg.compose([a, b], [2, -1], check=False).properties  # diag(0, 5), better than 2·1 - 3 and 2·4 - 2
    assert known.hessian_lower == pytest.approx(0, abs=1e-12)
    assert known.hessian_upper == pytest.approx(5)
    assert known.dissipativity is None
    network = cg.MLPEnergy(2, width=8)
    inner, mixed = network.properties, (a - 0.01 * network).properties
    if inner.hessian_upper is not None:
        assert mixed.hessian_lower == pytest.approx(1 - 0.01 * inner.hessian_upper)
    assert (a + cg.Banana()).properties.hessian_lower is None


def test_composition_refusals():
    with pytest.raises(ValueError, match=r"dimensions \[2, 1\]"):
        cg.DoubleWell() + cg.Quadratic([[1.0]])
    with pytest.raises(ValueError, match="at least one energy"):
        cg.compose([])
    with pytest.raises(ValueError, match="2 finite numbers"):
        cg.compose([cg.Ring(), cg.Ring()], [1.0])
    with pytest.raises(ValueError, match="finite"):
        cg.Ring() * float("nan")
    with pytest.raises(ValueError, match=r"weights of nested compositions multiply; got \[inf\]"):
        1e200 * (1e200 * cg.Ring())
    with pytest.raises(TypeError, match=r"energies\[1\] must be an Energy; got int"):
        cg.compose([cg.Ring(), 3])  # pyright: ignore
    with pytest.raises(TypeError):
        cg.Ring() + 1.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: cg.Quadratic([[1.0, 2.0], [0.0, 1.0]]),
            r"precision must be symmetric; largest \|P - P.T\| is 2.0e\+00",
        ),
        (lambda: cg.Quadratic([[1.0, 0.0], [0.0, -1.0]]), "positive definite; its smallest eigenvalue is -1"),
        (lambda: cg.Quadratic([1.0, 2.0]), r"square matrix \(d, d\); got shape \(2,\)"),
        (lambda: cg.Quadratic([[np.nan]]), "finite"),
        (lambda: cg.Quadratic(np.eye(2), [0.0]), r"mean must be 2 finite numbers"),
        (lambda: cg.GaussianMixture([0.0, 1.0], 1.0), "means must be finite, of shape"),
        (lambda: cg.GaussianMixture([[0.0, 0.0]], np.eye(3)), r"got shape \(3, 3\)"),
        (lambda: cg.GaussianMixture([[0.0]], 1.0, weights=[0.0]), "weights must be positive"),
        (lambda: cg.GaussianMixture([[0.0]], 1.0, temperature=0.0), "temperature must be positive"),
        (lambda: cg.GaussianMixture([[0.0]], -1.0), r"covariances\[0\] must be positive definite"),
        (lambda: cg.DoubleWell(barrier=-1.0), "barrier must be positive"),
        (lambda: cg.DoubleWell(dim=0), "dim must be an integer of at least 1"),
        (lambda: cg.Funnel(dim=1), "at least 2"),
        (lambda: cg.Ring(radius=np.inf), "radius must be positive and finite"),
        (lambda: cg.MLPEnergy(2, activation="swish"), r"activation must be one of \['silu'"),  # pyright: ignore
        (lambda: cg.MLPEnergy(2, depth=3, activation=("relu", "silu")), "3 of them"),
        (lambda: cg.MLPEnergy(2, confinement=-1.0), "confinement must be finite and not negative"),
        (lambda: cg.MLPEnergy(0), "dim must be an integer of at least 1"),
        (lambda: cg.CallableEnergy(lambda x: x, 2), r"one real scalar, shape \(\); got shape \(2,\)"),
        (lambda: cg.CallableEnergy(lambda x: np.sin(x[5]) * float(x[0]), 2), "JAX-traceable on a state of shape"),
        (lambda: cg.CallableEnergy(3, 2), "function must be callable"),  # pyright: ignore
        (lambda: cg.CallableEnergy(lambda x: x[0] > 0, 1), "one real scalar"),
        (lambda: cg.SymbolicEnergy("x + k", ["x"]), "'k', which is not a state"),
        (lambda: cg.SymbolicEnergy("__import__('os')", ["x"]), "calls '__import__'"),
        (lambda: cg.SymbolicEnergy("x.real", ["x"]), "may hold numbers"),
        (lambda: cg.SymbolicEnergy("x +", ["x"]), "does not parse"),
        (lambda: cg.SymbolicEnergy("x", ["x", "x"]), "distinct names"),
        (lambda: cg.SymbolicEnergy("sqrt(-1)*x", ["x"]), "real and finite"),
        (lambda: cg.SymbolicEnergy([1, 2], ["x"]), "SymPy expression"),
        (lambda: cg.TrainedEnergy(cg.Ring(), scale=[1.0, 0.0]), "scale must be positive"),
        (lambda: cg.TrainedEnergy(cg.Ring(), temperature=-1.0), "temperature must be positive"),
        (lambda: cg.TrainedEnergy(cg.Ring(), scheme="rk4"), "scheme must be 'euler' or 'mala'"),  # pyright: ignore
        (lambda: cg.TrainedEnergy(cg.Ring(), source="nowhere"), "nowhere"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_symbols_of_other_assumptions_are_taken_by_name():
    import sympy

    x = sympy.Symbol("x")
    energy = cg.SymbolicEnergy(x**2, ["x"])
    assert energy([3.0]) == 9.0
    assert cg.SymbolicEnergy(sympy.Symbol("y") ** 2, [sympy.Symbol("y")])([2.0]) == 4.0


def test_symbolic_of_a_constant_broadcasts():
    assert cg.SymbolicEnergy("2", ["x"])(np.zeros((3, 1))).tolist() == [2.0, 2.0, 2.0]


def test_trained_energy_is_the_network_in_the_datas_units(rng):
    network = cg.MLPEnergy(2, width=8)
    energy = cg.TrainedEnergy(network, [1.0, -2.0], [0.5, 4.0])
    x = rng.normal(size=(6, 2))
    np.testing.assert_allclose(energy(x), network((x - [1.0, -2.0]) / [0.5, 4.0]), rtol=1e-12)
    np.testing.assert_array_equal(energy.source.mean, [1.0, -2.0])
    np.testing.assert_array_equal(energy.metric, [4.0, 1 / 16])


def test_network_matches_numpy(rng):
    energy = cg.MLPEnergy(2, width=5, depth=2, activation=("relu", "silu"), confinement=0.3, key=4)
    w, b = ([np.asarray(a, np.float64) for a in arrays] for arrays in (energy.weights, energy.biases))
    x = rng.normal(size=(7, 2))
    hidden = np.maximum(x @ w[0].T + b[0], 0)
    hidden = hidden @ w[1].T + b[1]
    hidden = hidden / (1 + np.exp(-hidden))
    expected = (hidden @ w[2].T + b[2])[:, 0] + 0.15 * (x**2).sum(axis=1)
    np.testing.assert_allclose(energy(x), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("energies", "weights"),
    [
        ([cg.Quadratic(np.diag([20.0, 60.0]), [1.0, -2.0]), SOFT], [1.0, -0.5]),  # convex
        ([cg.Quadratic(np.eye(2), [1.0, -2.0]), SOFT], [1.0, -0.5]),  # the quadratic parts are
        ([cg.Quadratic(np.eye(2)), KINKED], [1.0, -0.5]),
        ([cg.Quadratic(np.eye(2)), cg.TrainedEnergy(KINKED, [3.0, 1.0], [0.8, 2.0])], [1.0, -0.5]),
        ([cg.SymbolicEnergy("x**2 + x*y + y**2 - 3*x", ["x", "y"]), KINKED], [1.0, -0.5]),
    ],
)
def test_a_sum_keeps_its_dissipativity_when_a_network_is_subtracted(energies, weights, rng):
    energy = cg.compose(energies, weights)
    a, b = energy.properties.dissipativity
    x = rng.normal(size=(2000, 2)) * rng.choice([0.1, 1.0, 10.0, 100.0], size=(2000, 1))
    assert a > 0
    assert ((x * energy.gradient(x)).sum(axis=1) >= a * (x**2).sum(axis=1) - b - 1e-9).all()


def test_a_sum_with_a_network_that_is_no_function_claims_nothing():
    broken = eqx.tree_at(lambda e: e.biases[0], SOFT, SOFT.biases[0] * np.nan)
    assert cg.compose([cg.Quadratic(np.eye(2)), broken], [1.0, -0.5]).properties == cg.Properties()


@pytest.mark.parametrize("name", ["potential", "slope", "symbolic"])
@pytest.mark.parametrize("base", [cg.Quadratic, cg.SymbolicEnergy, cg.MLPEnergy, cg.DoubleWell, Composition])
def test_a_class_here_cannot_be_given_another_function(base, name):
    """Its tail and its constants are known from its fields: PROVED would be about another energy."""
    with pytest.raises(TypeError, match=rf"Mine gives {base.__name__} another {name}, but what is established"):
        type("Mine", (base,), {name: lambda self, x: x, "__module__": __name__})
    more = type("More", (base,), {"remark": "its own function", "__module__": __name__})
    with pytest.raises(TypeError, match=f"gives {base.__name__} another {name}"):
        type("Mine", (more,), {name: lambda self, x: x, "__module__": __name__})
