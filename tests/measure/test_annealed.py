"""log Z by annealing: against closed forms and quadrature, with error bars that mean what they say."""

import math
from functools import cache

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import ndtr

import ctrlgen as cg
from ctrlgen import measure
from ctrlgen.measure import Annealed, wells
from ctrlgen.measure.annealed import _Run

METHODS = ["annealed", "thermodynamic"]


def correlated(dim, condition):
    q, _ = np.linalg.qr(np.random.default_rng(dim).normal(size=(dim, dim)))
    precision = q @ np.diag(np.geomspace(1.0, condition, dim)) @ q.T
    return (precision + precision.T) / 2


def gaussian_log_z(precision, temperature):
    return len(precision) / 2 * math.log(2 * math.pi * temperature) - np.linalg.slogdet(precision)[1] / 2


@cache  # one object, one compilation
def quartic(dim):
    """Σ xᵢ⁴, whose Z is (2 Γ(5/4))^d at ε = 1."""
    return cg.CallableEnergy(lambda x: jnp.sum(x**4, axis=0), dim)


@cache
def walled(dim, wall):
    """½ |x|² where x₁ > wall, infinite elsewhere."""
    return cg.CallableEnergy(lambda x: jnp.where(x[0] > wall, jnp.sum(x**2, axis=0) / 2, jnp.inf), dim)


def scores(energy, temperature, truth, method, keys, particles=500):
    out = [measure.log_partition(energy, temperature, method=method, particles=particles, key=k) for k in range(keys)]
    return np.array([(o.value - truth) / o.error for o in out]), np.array([o.error for o in out])


# Values ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_errors_are_calibrated(method):
    """Twenty keys on Σ xᵢ⁴ in 5-D: the scores have mean 0 and standard deviation 1."""
    z, error = scores(quartic(5), 1.0, 5 * math.log(2 * math.gamma(1.25)), method, keys=20)
    assert abs(z.mean()) < 3 / math.sqrt(20)
    assert 0.55 < z.std(ddof=1) < 1.5  # 16 % for 20 keys: three of those
    assert np.median(error) < 0.03


@pytest.mark.parametrize("method", METHODS)
def test_ill_conditioned_and_off_centre(method):
    precision = correlated(10, 1000.0)
    energy = cg.Quadratic(precision, np.full(10, 5.0))
    out = measure.log_partition(energy, 0.3, method=method)
    assert isinstance(out, Annealed)
    assert abs(out.value - gaussian_log_z(precision, 0.3)) < 3.5 * out.error
    assert out.error < 0.03  # a Gaussian is all but reached by the fit
    assert out.effective > 1000
    assert 0.4 < out.acceptance < 0.9


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_twenty_dimensions(method):
    precision = correlated(20, 1000.0)
    z, error = scores(cg.Quadratic(precision, np.full(20, 2.0)), 0.5, gaussian_log_z(precision, 0.5), method, keys=20)
    assert abs(z.mean()) < 0.7
    assert 0.55 < z.std(ddof=1) < 1.5
    assert (error < 0.08).all()


@pytest.mark.parametrize("separation", [4.0, 12.0])
def test_modes_far_apart(separation):
    """A mixture is normalised: log Z = 0. One mode at the origin, the other so far that no particle crosses."""
    means = np.zeros((2, 5))
    means[1, 2] = separation
    out = measure.log_partition(cg.GaussianMixture(means, 1.0, [0.6, 0.4]), 1.0, method="annealed", particles=1000)
    assert abs(out.value) < 3.5 * out.error
    assert out.error < 0.06  # a mode missed is off by 0.5


@pytest.mark.slow
def test_product_of_double_wells():
    """Σ (xᵢ² - 1)² in 4-D, 16 modes behind barriers of 5 ε: four times a quadrature on a line."""
    energy = cg.CallableEnergy(lambda x: jnp.sum((x**2 - 1) ** 2, axis=0), 4)
    truth = 4 * math.log(quad(lambda x: math.exp(-((x * x - 1) ** 2) / 0.2), -4, 4, epsabs=0, epsrel=1e-12)[0])
    out = measure.log_partition(energy, 0.2)
    assert abs(out.value - truth) < 3.5 * out.error
    assert abs(out.other.value - truth) < 3.5 * out.other.error
    assert out.error < 0.04


@pytest.mark.parametrize("dim", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_against_quadrature(dim):
    energy = cg.CallableEnergy(
        lambda x: (x[0] ** 2 - 1) ** 2 + jnp.sum((x[1:] - x[0]) ** 2, axis=0) / 2 + x[0] / 4, dim
    )
    exact = measure.log_partition(energy, 0.5)
    assert not isinstance(exact, Annealed)  # quadrature is the choice in up to three dimensions
    for method in METHODS:
        out = measure.log_partition(energy, 0.5, method=method, key=dim)
        assert abs(out.value - exact.value) < 3.5 * out.error
        assert out.error < 0.04


@pytest.mark.slow
def test_constants_and_temperature_enter_as_they_should():
    """Z(E + c, ε) = Z(E, ε) exp(-c/ε), and E at ε is wE at wε; with one key to the last digits."""
    energy = quartic(4)
    out = measure.log_partition(energy, 0.7, particles=200)
    raised = measure.log_partition(cg.CallableEnergy(lambda x: jnp.sum(x**4, axis=0) + 3.5, 4), 0.7, particles=200)
    assert raised.value == pytest.approx(out.value - 3.5 / 0.7, abs=1e-6)
    scaled = measure.log_partition(2.0 * energy, 1.4, particles=200)
    assert scaled.value == pytest.approx(out.value, abs=1e-6)


def test_the_other_method_comes_along():
    pair = [measure.log_partition(quartic(4), 1.0, method=m, particles=200, key=4) for m in METHODS]
    for one in pair:
        spread = math.hypot(one.error, one.other.error)
        assert 0 < abs(one.value - one.other.value) < 3 * spread


def test_a_key_gives_one_number():
    first, again = (measure.log_partition(quartic(4), 1.0, particles=200, key=7) for _ in range(2))
    other = measure.log_partition(quartic(4), 1.0, particles=200, key=8)
    assert (first.value, first.error) == (again.value, again.error)
    assert first.value != other.value


def test_the_error_falls_with_the_particles():
    few, many = (measure.log_partition(quartic(4), 1.0, particles=n) for n in (200, 3200))
    assert 2.5 < few.error / many.error < 6  # 4, while the ladder stays


# Infinite energies ----------------------------------------------------------------------------------------------


def test_infinite_energies():
    """A wall: half of the mass and more behind it. The weights there are 0, and the estimate stays unbiased."""
    out = measure.log_partition(walled(4, 0.25), 1.0)
    truth = 2 * math.log(2 * math.pi) + math.log(ndtr(-0.25))
    assert abs(out.value - truth) < 3.5 * out.error
    assert out.error < 0.06
    assert math.isnan(out.other.value)  # the mean of an infinite energy
    with pytest.raises(ValueError, match="energy is infinite at particles on the path, so it has no mean"):
        measure.log_partition(walled(4, 0.25), 1.0, method="thermodynamic")


@pytest.mark.slow
def test_a_box_has_all_its_mass():
    box = cg.CallableEnergy(lambda x: jnp.where((jnp.abs(x) < 1).all(axis=0), x[0], jnp.inf), 4)
    out = measure.log_partition(box, 1.0, particles=4000)
    assert abs(out.value - math.log(8 * 2 * math.sinh(1.0))) < 3.5 * out.error
    assert out.error < 0.1


def test_energies_that_are_nan_or_infinite_everywhere():
    with pytest.raises(ValueError, match="energy is NaN or -inf at particles of the pilot run"):
        measure.log_partition(cg.CallableEnergy(lambda x: jnp.sum(x**2) + jnp.sqrt(x[0] + 0.3), 4), 1.0)
    with pytest.raises(ValueError, match="energy is not finite on Gaussians about the origin of widths"):
        measure.log_partition(cg.CallableEnergy(lambda x: jnp.inf + x[0], 4), 1.0)


# No Gibbs measure -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "direction"),
    [
        (
            lambda x: 30 * jnp.sum(x**2, axis=0) - (x[0] + 2 * x[1] + 3 * x[2] + 4 * x[3]) ** 2,
            r"\[-?0\.1[78].*, -?0\.73",
        ),
        (lambda x: jnp.sum(x[1:] ** 2, axis=0) - x[0] ** 2, r"\[-?1\.0, "),
        (lambda x: jnp.sum(x[1:] ** 2, axis=0) + x[0], r"\[-1\.0, "),  # falls along -x₁
        (lambda x: jnp.sum((x[2:] ** 2), axis=0) + 0.8 * jnp.log1p(x[0] ** 2 + x[1] ** 2), ""),  # |x|^-1.6 in a plane
        (lambda x: 2.0 * jnp.log1p(jnp.sum(x**2, axis=0)), ""),  # |x|^-4 in 4-D
    ],
    ids=["flat", "inverted", "ramp", "plane", "tail"],
)
def test_no_gibbs_measure(function, direction):
    with pytest.raises(ValueError, match=r"may have no Gibbs measure: .* in the direction " + direction):
        measure.log_partition(cg.CallableEnergy(function, 4), 1.0)


def test_tails_that_are_heavy_but_integrable():
    """Student's t with 6 degrees of freedom in 4-D: E/ε = 5 log(1 + |x|²/6)."""
    energy = cg.CallableEnergy(lambda x: 5.0 * jnp.log1p(jnp.sum(x**2, axis=0) / 6), 4)
    truth = math.lgamma(3) - math.lgamma(5) + 2 * math.log(6 * math.pi)
    out = measure.log_partition(energy, 1.0)
    assert abs(out.value - truth) < 3.5 * out.error + 0.01
    assert out.error < 0.06


# Trust ----------------------------------------------------------------------------------------------------------


def test_a_well_that_no_particle_came_to_is_in_the_error():
    """Two Gaussians 12 apart, particles at one only: the mass of the other is Laplace's, here exact."""
    means = np.zeros((2, 5))
    means[1, 2] = 12.0
    energy = cg.GaussianMixture(means, 1.0, [0.6, 0.4])
    x = np.random.default_rng(0).standard_normal((500, 5))
    both = np.concatenate([means, means + 1e-4])
    assert wells.missed(energy, 1.0, both, x, 1.0, math.log(0.6)) == pytest.approx(0.4 / 0.6, rel=1e-6)
    assert wells.missed(energy, 1.0, both, np.concatenate([x, x + means[1]]), 1.0, 0.0) == 0.0
    found = wells.wells(energy, 1.0, 1.0)
    for mean in means:
        assert np.linalg.norm(found - mean, axis=1).min() < 0.1
    run = _Run(x, np.zeros(500), np.zeros(500), 0.0, 0.0, 1.0, 2)
    assert run.estimate(False, 0.4 / 0.6).error == pytest.approx(math.log(1 / 0.6))


def test_few_effective_particles_widen_the_error():
    """By the distance to the other method, where less than half of the particles count, or less than 100."""
    log_weight = np.zeros(1000)
    log_weight[:3] = 6.0
    run = _Run(np.zeros((1000, 4)), log_weight, np.full(1000, -2.0), 0.0, 0.0, 0.7, 10)
    out = run.estimate(False, 0.0)
    assert out.effective < 100
    assert out.error == pytest.approx(math.hypot(run.sampled.error, out.value - out.other.value))
    even = _Run(np.zeros((1000, 4)), 0.1 * log_weight, np.full(1000, -2.0), 0.0, 0.0, 0.7, 10)
    assert even.estimate(False, 0.0).error == even.sampled.error


@pytest.mark.slow
def test_the_funnel_is_flagged():
    """Neal's funnel, whose neck no step size fits. The error does not cover its log Z; `effective` and `other` tell."""
    energy = cg.CallableEnergy(
        lambda x: x[0] ** 2 / 18 + jnp.sum(x[1:] ** 2, axis=0) * jnp.exp(-x[0]) / 2 + 2 * x[0], 5
    )
    out = measure.log_partition(energy, 1.0)
    truth = 2.5 * math.log(2 * math.pi) + math.log(3)
    assert abs(out.value - truth) < 0.6
    assert out.effective < 1000
    assert out.other.error > 5 * out.error


# Arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "magic"}, "method must be one of 'quadrature', 'annealed', 'thermodynamic'; got 'magic'"),
        ({"method": "quadrature"}, "quadrature needs at most 3 dimensions; this energy has 4. Use log_partition with"),
        (
            {"bounds": [[0] * 4, [1] * 4]},
            r"bounds belongs to method 'quadrature' \(d <= 3\); got .* with method 'annealed'. Leave bounds out",
        ),
        ({"method": "thermodynamic", "points": 5000}, "points belongs to method 'quadrature' .* got points=5000"),
        ({"tolerance": 1e-3}, "tolerance belongs to method 'quadrature'"),
        ({"particles": 50}, "particles must be an integer of at least 100; got 50"),
        ({"key": -1}, "key must be an integer of at least 0; got -1"),
        ({"temperature": 0.0}, "temperature must be a finite number above 0; got 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        measure.log_partition(**{"energy": quartic(4), "temperature": 1.0, **arguments})


def test_arguments_of_annealing_are_no_quadrature():
    with pytest.raises(
        ValueError, match="particles belongs to method 'annealed' and 'thermodynamic'; got particles=500"
    ):
        measure.log_partition(quartic(2), 1.0, particles=500)


# Callers --------------------------------------------------------------------------------------------------------


def test_kl_of_particles_in_four_dimensions():
    """log Z is found, and its error is part of the error."""
    x = cg.Gaussian(np.zeros(4), 0.5).sample(0, 2000)
    energy = quartic(4)
    log_z = measure.log_partition(energy, 1.0)
    found, known = measure.kl(x, energy, 1.0), measure.kl(x, energy, 1.0, log_partition=0.0)
    assert found.value == pytest.approx(known.value + log_z.value, rel=1e-12)
    assert found.error == pytest.approx(math.hypot(known.error, log_z.error), rel=1e-12)
    # E[x⁴] = 3 s², H = 2 log(2πe s), s = 0.5
    truth = 4 * 3 * 0.25 + 4 * math.log(2 * math.gamma(1.25)) - 2 * math.log(2 * math.pi * math.e * 0.5)
    assert abs(found.value - truth) < 3 * found.error + 0.03


def test_progress_is_shown_where_it_is_asked_for(capsys):
    quiet = measure.log_partition(quartic(4), 1.0, particles=200)
    assert capsys.readouterr().err == ""
    shown = measure.log_partition(quartic(4), 1.0, particles=200, progress=True)
    assert "annealing" in capsys.readouterr().err
    assert shown == quiet
