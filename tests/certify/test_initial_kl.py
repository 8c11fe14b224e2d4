"""The bound of KL at a Gaussian start, against closed forms and quadrature: never below, and not far above."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flint import arb

import ctrlgen as cg
from ctrlgen.certify.initial_kl import exact, float_above, initial_kl, shown_down, shown_up, split
from ctrlgen.energies.base import Energy, Properties
from ctrlgen.energies.observation import LeastSquares


def truth(energy, temperature, start, reach=14.0, count=1401):
    """KL(start‖ρ*) by the trapezoidal rule in one or two dimensions."""
    axis = np.linspace(-reach, reach, count if energy.dim == 1 else 281)
    points = np.stack(np.meshgrid(*[axis] * energy.dim, indexing="ij"), -1).reshape(-1, energy.dim)
    cell = (axis[1] - axis[0]) ** energy.dim
    log_p, low = start.log_density(points), -np.asarray(energy(points)) / temperature
    log_z = np.log(np.exp(low - low.max()).sum() * cell) + low.max()
    return float(np.sum(np.exp(log_p) * (log_p - low + log_z)) * cell)


class Cone(Energy):
    """√(1 + |x|²), of which only the bound of the gradient is told."""

    dim: int = 1

    def potential(self, x):
        return jnp.sqrt(1 + jnp.sum(x * x, axis=0))

    @property
    def properties(self):
        return Properties(gradient_bound=1.0)


class Bessel(Energy):
    """x² + log I₀(x), of whose values no balls are known."""

    dim: int = 1

    def potential(self, x):
        return x[0] ** 2 + jnp.log(jax.scipy.special.i0(x[0]))

    @property
    def properties(self):
        return Properties(hessian_lower=2.0, hessian_upper=2.5)


START = {1: cg.Gaussian([1.0], 0.6), 2: cg.Gaussian([1.0, -0.5], [[0.7, 0.2], [0.2, 1.1]])}
HALF = cg.Quadratic([[2.0]], [0.3])
ROUTES = {  # energy, temperature, words of the rule, how far above the truth it may be
    "mixture": (cg.GaussianMixture([[-1.0], [1.5]], [0.5, 1.0], temperature=0.7), 0.7, "own weights", 0.6),
    "mixture 2-D": (cg.GaussianMixture([[-1.0, 0], [1, 0]], np.eye(2) * 0.7), 1.0, "own weights", 1.0),
    "convex": (cg.GaussianMixture([[0.0], [1.0]], 1.0), 0.5, "at a minimiser", 0.3),
    "dissipative": (cg.GaussianMixture([[-1.5], [1.5]], 1.0), 1.3, "from dissipativity", 3.0),
    "oscillation": (HALF + cg.SymbolicEnergy("0.3*sin(3*x)", ["x"]), 0.8, "oscillation/ε", 0.8),
    "lipschitz": (HALF + 0.5 * Cone(), 0.8, r"G/√\(2εm\)", 1.0),
    "network": (cg.MLPEnergy(2, width=4, depth=1), 1.0, "at a minimiser", 1.5),
    "observation": (cg.Quadratic(np.eye(2)) + LeastSquares([1.0, 2.0], 0.5, 0.7), 0.6, "closed", 1e-8),
}


@pytest.mark.parametrize("name", ROUTES)
def test_never_below_the_truth_and_not_far_above(name):
    energy, temperature, words, excess = ROUTES[name]
    start = START[energy.dim]
    found = initial_kl(energy, temperature, start.mean, start.covariance)
    true = truth(energy, temperature, start)
    assert true <= found.value * (1 + 1e-9)
    assert found.value <= true + excess
    assert all(step.recheck() for step in found.steps)
    assert re.search(words, found.steps[-1].outcome.reason)
    assert found.assumptions == ()


def test_a_quadratic_is_exact():
    rng = np.random.default_rng(0)
    for d in (1, 3, 12):
        a, c = rng.normal(size=(2, d, d))
        precision, covariance = a @ a.T + 0.1 * np.eye(d), c @ c.T + 0.1 * np.eye(d)
        mean, m = rng.normal(size=(2, d))
        energy = 0.5 * cg.Quadratic(precision, mean) + 1.5 * cg.Quadratic(np.eye(d))
        total = 0.5 * precision + 1.5 * np.eye(d)
        centre = np.linalg.solve(total, 0.5 * precision @ mean)
        expected = cg.measure.kl_gaussians(m, covariance, centre, 0.7 * np.linalg.inv(total))
        assert initial_kl(energy, 0.7, m, covariance).value == pytest.approx(expected, rel=1e-9)


def test_the_check_of_a_bound_is_about_that_bound():
    found = initial_kl(HALF, 1.0, [1.0], [[1.0]])
    (step,) = found.steps
    assert step.recheck()
    text = step.claim.text.replace("KL", "kl")
    assert not dataclasses.replace(step, claim=dataclasses.replace(step.claim, text=text)).recheck()


def test_exact_coefficients_of_what_is_quadratic():
    term = LeastSquares([[1.0, 2.0], [0.0, 1.0]], [0.5, -1.0], [0.7, 2.0])
    energy = cg.compose([cg.Quadratic(np.diag([2.0, 3.0]), [1.0, -1.0]), term, cg.Ring()], [1.0, 0.3, 2.0])
    form, rest = split(energy)
    x = np.array([0.4, -0.9])
    p = np.array([[float(v) for v in row] for row in form.precision])
    b = np.array([float(v) for v in form.push])
    value = 0.5 * x @ p @ x - b @ x + float(form.constant)
    assert value + float(rest(x)) == pytest.approx(float(energy(x)), rel=1e-12)
    assert split(cg.Ring())[0] is None
    assert split(HALF)[1] is None


def test_what_is_missing_is_said():
    with pytest.raises(ValueError, match=r"E_ρ₀\[E\] needs hessian_upper, which is not established\. Pass initial_kl"):
        initial_kl(cg.DoubleWell(1), 1.0, [0.0], [[1.0]])
    with pytest.raises(ValueError, match="log Z needs hessian_lower > 0, or hessian_lower and dissipativity"):
        initial_kl(cg.SymbolicEnergy("sin(x)", ["x"]), 1.0, [0.0], [[1.0]])
    with pytest.raises(ValueError, match="covariance"):
        initial_kl(HALF, 1.0, [0.0], [[-1.0]])
    with pytest.raises(ValueError, match=r"KL\(ρ₀‖ρ\*\) could not be bounded: .*bessel"):
        initial_kl(Bessel(), 1.0, [0.0], [[1.0]])  # balls do not reach it, and floats decide nothing


def test_a_bound_beyond_floats_is_not_one():
    assert float_above(arb("1e400")) == np.inf
    for energy in (HALF, HALF + cg.SymbolicEnergy("sin(x)", ["x"])):
        with pytest.raises(ValueError, match="beyond the range of floats"):
            initial_kl(energy, 1.0, [1e160], [[1.0]])


def test_a_covariance_is_what_particles_are_drawn_with():
    """A `Gaussian` tolerates a skew part of 1e-10, 0.85 nats near a singular matrix; draws use the lower triangle."""
    start = cg.Gaussian([0.0, 0.0], [[1.0, 1 - 1e-10], [1 - 1e-11, 1.0]])
    truth = -0.5 * np.log(1 - float(start.covariance[1, 0]) ** 2)
    assert initial_kl(cg.Quadratic(np.eye(2)), 1.0, start.mean, start.covariance).value >= truth
    assert truth > 12.3


def test_numbers_are_rounded_to_the_safe_side():
    third = arb(1) / 3
    assert exact(float_above(third)) * 3 >= 1
    assert float_above(third) <= np.nextafter(1 / 3, 1)
    assert float_above(arb(0.5)) == 0.5
    assert float_above(arb("nan")) == np.inf
    assert (shown_up(0.12345678), shown_down(0.12345678)) == ("0.123457", "0.123456")
    assert (shown_up(-0.12345678), shown_up(2.0), shown_up(np.inf)) == ("-0.123456", "2", "inf")
