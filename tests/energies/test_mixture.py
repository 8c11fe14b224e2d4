"""Alternatives: against Gaussian mixtures, quadrature on a grid, and bounds attained."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

import ctrlgen as cg

A, B = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[1.0, -0.3], [-0.3, 3.0]])


class Wave(cg.Energy):
    """a sin(x₁), with its exact constants."""

    height: float = eqx.field(static=True)
    dim: int = eqx.field(static=True)

    def __init__(self, height, dim=2):
        self.height, self.dim = height, dim

    def potential(self, x):
        return self.height * jnp.sin(x[0])

    @property
    def properties(self):
        a = abs(self.height)
        return cg.Properties(hessian_lower=-a, hessian_upper=a, gradient_bound=a, oscillation=2 * a)


def grid(reach=9.0, n=500):
    axis = (np.arange(n) + 0.5) / n * 2 * reach - reach
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    return points, (2 * reach / n) ** 2


def gaussians(temperature=0.6):
    means = [[0.0, 0.0], [2.0, -1.0]]
    terms = [cg.Quadratic(A, means[0]), cg.Quadratic(B, means[1])]
    covariances = [temperature * np.linalg.inv(A), temperature * np.linalg.inv(B)]
    return terms, lambda weights: cg.GaussianMixture(means, covariances, weights, temperature=temperature)


def test_normalised_quadratics_are_the_gaussian_mixture(rng):
    terms, build = gaussians()
    energy, exact = cg.mixture(terms, 0.6, [1.0, 3.0], normalised=True), build([1.0, 3.0])
    x = 4 * rng.normal(size=(200, 2))
    np.testing.assert_allclose(energy(x), exact(x), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(energy.gradient(x), exact.gradient(x), rtol=1e-11, atol=1e-11)
    assert energy.log_partition(0.6) == pytest.approx(0.0, abs=1e-13)
    assert energy.log_partition(0.5) is None


def test_weights_as_they_are_give_masses_in_proportion_to_each_partition(rng):
    terms, build = gaussians()
    energy = cg.mixture(terms, 0.6, [1.0, 3.0])
    exact = build(np.array([1.0, 3.0]) / np.sqrt([np.linalg.det(A), np.linalg.det(B)]))  # Z is 2πε / √det
    x = 4 * rng.normal(size=(50, 2))
    np.testing.assert_allclose(np.ptp(energy(x) - exact(x)), 0, atol=1e-12)
    points, cell = grid()
    assert energy.log_partition(0.6) == pytest.approx(np.log(np.exp(-energy(points) / 0.6).sum() * cell), abs=1e-10)


def test_masses_of_terms_without_closed_forms_are_the_weights():
    well, ring = cg.DoubleWell(barrier=2.0), cg.Ring(radius=3.0) + cg.Quadratic(0.2 * np.eye(2), [1.0, 0.0])
    points, cell = grid()
    density = [np.exp(-e(points) / 0.5) for e in (well, ring)]
    expected = sum(w * p / (p.sum() * cell) for w, p in zip([0.2, 0.8], density, strict=True))
    energy = cg.mixture([well, ring], 0.5, [0.2, 0.8], normalised=True)
    np.testing.assert_allclose(np.exp(-energy(points) / 0.5), expected, atol=1e-6)
    given = cg.mixture([well, ring], 0.5, [0.2, 0.8], log_partitions=[np.log(p.sum() * cell) for p in density])
    np.testing.assert_allclose(np.exp(-given(points) / 0.5), expected, atol=1e-10)
    assert energy.log_partition(0.5) is None


def test_an_energy_or_itself_is_that_energy(rng):
    well, x = cg.DoubleWell(), rng.normal(size=(20, 2))
    np.testing.assert_allclose(cg.mixture([well, well, well], 0.3, [1, 5, 2])(x), well(x), rtol=1e-12, atol=1e-13)
    assert cg.mixture([well], 0.3).properties == well.properties


def test_mixtures_of_one_temperature_are_flat(rng):
    terms, _ = gaussians()
    well, x = cg.DoubleWell(), rng.normal(size=(20, 2))
    inner = cg.mixture(terms, 0.6, [1, 3])
    outer = cg.mixture([inner, well], 0.6, [2, 1])
    assert outer.terms == (*terms, well)
    expected = -0.6 * np.log(2 / 3 * np.exp(-inner(x) / 0.6) + 1 / 3 * np.exp(-well(x) / 0.6))
    np.testing.assert_allclose(outer(x), expected, rtol=1e-12)
    assert len(cg.mixture([inner, well], 0.5).terms) == 2


def test_far_out_and_infinite_terms(rng):
    terms, _ = gaussians()
    energy = cg.mixture(terms, 0.01)
    x = jnp.asarray([[1e4, 0.0], [-1e4, 1e4]], jnp.float32)
    assert np.isfinite(energy(x)).all()
    assert np.isfinite(energy.gradient(x)).all()
    walled = cg.CallableEnergy(lambda y: jnp.where(y[0] > 0, -jnp.log(jnp.maximum(y[0], 0)), jnp.inf), 2)
    energy, left = cg.mixture([walled, terms[0]], 0.5), np.array([-1.0, 0.5])
    np.testing.assert_allclose(energy(left), terms[0](left) + 0.5 * np.log(2), rtol=1e-13)
    np.testing.assert_allclose(energy.gradient(left), terms[0].gradient(left), rtol=1e-13)
    assert cg.mixture([walled, walled], 0.5)(left) == np.inf


def test_lowest_curvature_of_shared_precisions_is_attained():
    means, temperature = [[-1.0, 0.5], [2.0, 1.0]], 0.4
    energy = cg.mixture([cg.Quadratic(np.diag([1.0, 4.0]), m) for m in means], temperature)
    push = np.diag([1.0, 4.0]) @ np.subtract(*means)
    known = energy.properties
    middle = np.mean(means, axis=0)  # equal shares
    hessian = energy.hessian(middle)
    np.testing.assert_allclose(hessian, np.diag([1.0, 4.0]) - np.outer(push, push) / (4 * temperature), rtol=1e-12)
    low = 1.0 - push @ push / (4 * temperature)
    assert known.hessian_lower == pytest.approx(low, rel=1e-12)
    assert known.hessian_lower <= low
    # with one curvature in all directions the bound is attained
    energy = cg.mixture([cg.Quadratic(2 * np.eye(2), m) for m in means], temperature)
    assert np.linalg.eigvalsh(energy.hessian(middle))[0] == pytest.approx(energy.properties.hessian_lower, rel=1e-12)
    # of three terms, the two farthest apart count
    three = cg.mixture([cg.Quadratic(np.eye(1), [m]) for m in (0.0, 1.0, 5.0)], 1.0)
    assert three.properties.hessian_lower == pytest.approx(1 - 25 / 4, rel=1e-12)


def test_constants_of_terms_with_bounded_slopes(rng):
    energy = cg.mixture([Wave(1.0), Wave(-3.0), Wave(0.5)], 0.7, [1, 2, 3])
    known = energy.properties
    assert known.gradient_bound == 3.0
    assert known.oscillation == 6.0
    assert known.hessian_upper == 3.0
    assert known.hessian_lower == pytest.approx(-3.0 - (1 + 3) ** 2 / (4 * 0.7), rel=1e-15)
    x = np.stack([np.linspace(-7, 7, 4001), np.zeros(4001)], axis=1)
    values = energy(x)
    curvature = energy.hessian(x)[:, 0, 0]
    assert np.ptp(values) <= 6.0
    assert np.abs(energy.gradient(x)).max() <= 3.0
    assert known.hessian_lower <= curvature.min()
    assert curvature.max() <= 3.0


def test_a_common_part_does_not_count_in_the_covariance():
    well = cg.DoubleWell()
    energy = cg.mixture([well, well + cg.SymbolicEnergy("3*x", ["x", "y"])], 0.5)
    assert energy.properties.hessian_lower == pytest.approx(well.properties.hessian_lower - 9 / (4 * 0.5), rel=1e-9)
    both = cg.mixture([cg.Quadratic(A) + 0.5 * Wave(1.0), cg.Quadratic(A, [1.0, 0.0]) - 0.25 * Wave(2.0)], 0.5)
    gap = np.linalg.norm(A[0]) + 0.5 + 0.5
    smallest = np.linalg.eigvalsh(A)[0] - 0.5
    assert both.properties.hessian_lower == pytest.approx(smallest - gap**2 / 2, rel=1e-9)


def test_networks_of_one_confinement_have_a_lowest_curvature(rng):
    one, other = (cg.MLPEnergy(2, width=8, depth=1, activation="tanh", confinement=0.5, key=k) for k in (1, 2))
    known = cg.mixture([one, other], 0.3).properties
    gap = one.network_gradient_bound + other.network_gradient_bound
    lowest = min(e.properties.hessian_lower for e in (one, other))
    assert known.hessian_lower == pytest.approx(lowest - gap**2 / 1.2, rel=1e-9)
    trained = [cg.TrainedEnergy(e, [m, 0.0], [0.5, 2.0]) for e, m in ((one, 1.0), (other, -1.0))]
    energy = cg.mixture(trained, 0.3)
    shift = 0.5 * 2.0 / 0.25  # c Δcenter / scale²
    gap = shift + sum(e.network_bounds(np.array([0.5, 2.0])).gradient for e in (one, other))
    lowest = min(e.properties.hessian_lower for e in trained)
    assert energy.properties.hessian_lower == pytest.approx(lowest - gap**2 / 1.2, rel=1e-9)
    x = 3 * rng.normal(size=(500, 2))
    assert np.linalg.eigvalsh(energy.hessian(x)).min() >= energy.properties.hessian_lower
    farther = cg.TrainedEnergy(other, [1.0, 0.0], [0.5, 1.0])
    assert cg.mixture([trained[0], farther], 0.3).properties.hessian_lower is None


def test_different_precisions_leave_the_lower_curvature_open():
    energy = cg.mixture([cg.Quadratic([[1.0]]), cg.Quadratic([[4.0]], [1.0])], 0.5, [1.0, np.exp(200.0)])
    assert energy.properties.hessian_lower is None
    assert energy.properties.hessian_upper == pytest.approx(4.0)
    x = np.linspace(-30, 30, 60001)[:, None]
    assert energy.hessian(x).min() < -100  # it is open for a reason: where both have a share, the slopes are far apart


def test_dissipativity_is_the_weakest():
    energy = cg.mixture([cg.DoubleWell(), cg.Quadratic(3 * np.eye(2), [1.0, 0.0])], 0.5)
    pairs = [e.properties.dissipativity for e in energy.terms]
    assert energy.properties.dissipativity == (min(a for a, _ in pairs), max(b for _, b in pairs))
    assert cg.mixture([cg.DoubleWell(), Wave(1.0)], 0.5).properties.dissipativity is None


def test_what_one_term_does_not_establish_is_open():
    known = cg.mixture([cg.Quadratic(A), Wave(1.0)], 0.5).properties
    assert known.gradient_bound is known.oscillation is known.dissipativity is None
    assert known.hessian_lower is None
    assert cg.mixture([cg.Quadratic(A), cg.DoubleWell()], 0.5).properties.hessian_upper is None


def test_subtracting_too_much_from_a_mixture_is_refused():
    terms = [cg.Quadratic(np.eye(2)), cg.Quadratic(np.eye(2), [3.0, 0.0])]
    energy = cg.mixture(terms, 0.5)
    with pytest.raises(ValueError, match="no Gibbs measure at any temperature"):
        energy - 2 * cg.Quadratic(np.eye(2))
    assert (energy - 0.5 * cg.Quadratic(np.eye(2))).dim == 2


def test_it_prints_its_weights():
    assert repr(cg.mixture([cg.Ring(), cg.Ring()], 0.5, [1, 3])).endswith("weights=[0.25, 0.75], temperature=0.5)")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: cg.mixture([], 1.0), ValueError, "at least one energy"),
        (lambda: cg.mixture([cg.Ring(), 3], 1.0), TypeError, r"energies\[1\] must be an Energy; got int"),
        (lambda: cg.mixture([cg.Ring(), cg.Ring(dim=3)], 1.0), ValueError, r"dimensions \[2, 3\]"),
        (lambda: cg.mixture([cg.Ring()], 0.0), ValueError, "temperature must be positive"),
        (lambda: cg.mixture([cg.Ring(), cg.Ring()], 1.0, [1.0, 0.0]), ValueError, "positive finite .*weight zero"),
        (lambda: cg.mixture([cg.Ring()], 1.0, [np.inf]), ValueError, "1 positive finite"),
        (lambda: cg.mixture([cg.Ring()], 1.0, [1.0, 2.0]), ValueError, "one an energy"),
        (lambda: cg.mixture([cg.Ring()], 1.0, log_partitions=[np.nan]), ValueError, "1 finite numbers"),
        (lambda: cg.mixture([cg.Ring()], 1.0, log_partitions=[0.0, 1.0]), ValueError, "log_partitions must be"),
        (lambda: cg.mixture([Wave(1.0)], 1.0, normalised=True), ValueError, "may be no Gibbs measure"),
    ],
)
def test_refusals(make, error, message):
    with pytest.raises(error, match=message):
        make()
