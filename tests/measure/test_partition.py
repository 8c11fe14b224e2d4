"""log Z by quadrature: against closed forms and one-dimensional quadrature."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import ndtr

from ctrlgen import measure
from ctrlgen.energies.analytic import GaussianMixture, Quadratic
from ctrlgen.energies.landscapes import DoubleWell
from ctrlgen.energies.symbolic import CallableEnergy


def gaussian_log_z(precision, temperature):
    d = len(precision)
    return d / 2 * math.log(2 * math.pi * temperature) - np.linalg.slogdet(precision)[1] / 2


def correlated(dim, condition):
    q, _ = np.linalg.qr(np.random.default_rng(dim).normal(size=(dim, dim)))
    return q @ np.diag(np.geomspace(1.0, condition, dim)) @ q.T if dim > 1 else np.array([[condition]])


@pytest.mark.parametrize("temperature", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_quadratic(dim, temperature):
    precision = correlated(dim, 100.0)
    precision = (precision + precision.T) / 2
    out = measure.log_partition(Quadratic(precision, np.full(dim, 7.0)), temperature)
    assert out.error < 2e-6
    assert abs(out.value - gaussian_log_z(precision, temperature)) < 1e-8


@pytest.mark.parametrize("separation", [3.0, 1000.0])
def test_modes_far_apart_and_narrow(separation):
    # the energy is minus the log of a normalised density: log Z = 0
    energy = GaussianMixture([[-separation, 0.0], [separation, 1.0]], 0.01, [0.3, 0.7])
    out = measure.log_partition(energy, 1.0)
    assert abs(out.value) < 2e-6


def test_double_well_against_one_dimensional_quadrature():
    # CASES: E = (x² - 1)² + y²/2 at ε = 0.2
    energy = CallableEnergy(lambda x: (x[0] ** 2 - 1) ** 2 + x[1] ** 2 / 2, 2)
    z = quad(lambda x: math.exp(-((x * x - 1) ** 2) / 0.2), -4, 4, epsabs=0, epsrel=1e-12)[0]
    expected = math.log(z) + math.log(2 * math.pi * 0.2) / 2
    assert abs(measure.log_partition(energy, 0.2).value - expected) < 1e-8


@pytest.mark.parametrize("power", [2, 1.5])
def test_heavy_tails(power):
    # ∫ (1 + x²)^-p dx = sqrt(π) Γ(p - ½) / Γ(p)
    energy = CallableEnergy(lambda x: power * jnp.log1p(x[0] ** 2), 1)
    expected = math.log(math.pi) / 2 + math.lgamma(power - 0.5) - math.lgamma(power)
    assert abs(measure.log_partition(energy, 1.0).value - expected) < 1e-7


def test_error_covers_a_kink():
    energy = CallableEnergy(lambda x: jnp.abs(x[0] + 0.1 * x[1]) + jnp.abs(x[1] - 1 / 3), 2)
    out = measure.log_partition(energy, 1.0)
    assert abs(out.value - math.log(4)) < out.error < 2e-6
    rough = measure.log_partition(energy, 1.0, points=10_000)
    assert abs(rough.value - math.log(4)) < rough.error
    assert rough.error > 1e-5


def test_bounds_restrict_the_measure():
    energy = Quadratic(np.eye(2) * 4.0)
    out = measure.log_partition(energy, 1.0, bounds=[[-0.5, 0.0], [0.5, 50.0]])
    inside = (ndtr(1.0) - ndtr(-1.0)) * 0.5
    assert abs(out.value - gaussian_log_z(np.eye(2) * 4.0, 1.0) - math.log(inside)) < 1e-8


def test_a_needle_in_a_wide_box():
    precision = 1e6 * np.eye(2)  # standard deviation 1e-3 in a box of side 200
    out = measure.log_partition(Quadratic(precision, [30.3, 3.1]), 1.0, bounds=[[-100, -100], [100, 100]])
    assert abs(out.value - gaussian_log_z(precision, 1.0)) < 1e-6


def test_energy_calls_are_bounded():
    sizes = []

    class Watched(Quadratic):
        def __call__(self, x):
            sizes.append(len(x))
            return super().__call__(x)

    measure.log_partition(Watched(np.eye(2)), 1.0)
    assert max(sizes) <= 65536
    assert len(set(sizes)) == 1  # one compilation


def test_no_gibbs_measure():
    for energy in (
        CallableEnergy(lambda x: x[0] ** 2 / 2 + 0 * x[1], 2),
        CallableEnergy(lambda x: x[1] ** 2 - x[0] ** 2, 2),
        CallableEnergy(lambda x: 0.5 * jnp.log1p(x[0] ** 2), 1),  # 1/|x| tails
    ):
        with pytest.raises(ValueError, match=r"there may be no Gibbs measure\. Confine the energy, or pass bounds"):
            measure.log_partition(energy, 1.0)


def test_bad_input():
    with pytest.raises(ValueError, match="at most 3 dimensions; this energy has 4"):
        measure.log_partition(Quadratic(np.eye(4)), 1.0, method="quadrature")
    with pytest.raises(ValueError, match="tolerance must be a finite number above 0; got -1"):
        measure.log_partition(DoubleWell(), 1.0, tolerance=-1.0)
    with pytest.raises(ValueError, match="temperature must be a finite number above 0; got 0"):
        measure.log_partition(DoubleWell(), 0)
    with pytest.raises(ValueError, match=r"bounds must be a finite \(2, 2\) array"):
        measure.log_partition(DoubleWell(), 1.0, bounds=[[0, 0], [0, 1]])
    with pytest.raises(ValueError, match="points must be an integer of at least 1000; got 10"):
        measure.log_partition(DoubleWell(), 1.0, points=10)
