"""Slow modes: against closed forms, against the grid's own operator, and data-driven ones against those of the grid."""

import numpy as np
import pytest

import ctrlgen as cg
from ctrlgen.energies.feedback import potentials
from ctrlgen.modes.grid import Interpolated, grid_modes
from ctrlgen.modes.sampled import sampled_modes
from ctrlgen.plants.finite_volume import FiniteVolume

WELLS = cg.SymbolicEnergy("(x**2 - 1)**2 + y**2/2", ["x", "y"])
GRID = cg.FokkerPlanckGrid([(-2.2, 2.2)] * 2, (60, 60), 0.2)


def test_case_15_modes():
    # CASES.md 15
    np.testing.assert_allclose(grid_modes(WELLS, GRID, 4).rates, [-0.01119, -0.9954, -1.0066, -1.986], rtol=1.5e-3)


def test_hermite_modes_of_a_quadratic():
    # Ornstein-Uhlenbeck: rates -κk, eigenfunctions Hermite polynomials of x√(κ/ε)
    kappa, eps = 2.0, 0.5
    grid = cg.FokkerPlanckGrid([(-4, 4)], (400,), eps, flux="curved")
    modes = grid_modes(cg.Quadratic([[kappa]]), grid, 3)
    np.testing.assert_allclose(modes.rates, [-2, -4, -6], rtol=4e-4)
    s = np.linspace(-2, 2, 9)
    hermite = np.stack([s, (s**2 - 1) / np.sqrt(2), (s**3 - 3 * s) / np.sqrt(6)], axis=1)
    found = modes.at((s * np.sqrt(eps / kappa))[:, None])
    np.testing.assert_allclose(np.abs(found), np.abs(hermite), atol=6e-3)
    # ż = Λz + u(b + Nz) of φ = x: b = -√(κ/ε) on the first mode, N = -√(κ(k+1)/ε) from a mode to the next
    b, n = modes.steer(potentials(["x1"], cg.Quadratic([[kappa]]), "inputs"))
    scale = np.sqrt(kappa / eps)
    np.testing.assert_allclose(np.abs(b[:, 0]), [scale, 0, 0], atol=1e-3)
    np.testing.assert_allclose(np.abs(n[0]), scale * np.diag(np.sqrt([2, 3]), -1), atol=6e-3)


@pytest.mark.parametrize("flux", ["scharfetter-gummel", "curved"])
def test_modes_are_biorthogonal_and_the_generator_acts_on_them(flux):
    grid = cg.FokkerPlanckGrid([(-2.2, 2.2)] * 2, (40, 30), 0.2, flux=flux)
    modes = grid_modes(WELLS, grid, 8)
    z, masses = modes.values.reshape(8, -1), np.asarray(grid.gibbs(WELLS)).ravel()
    np.testing.assert_allclose((z * masses) @ z.T, np.eye(8), atol=1e-10)
    np.testing.assert_allclose((z * masses).sum(axis=1), 0, atol=1e-12)
    left = z @ grid.generator(WELLS)
    # in rare cells too, where an eigenvector over √ρ* would be rounding
    np.testing.assert_allclose(left, modes.rates[:, None] * z, atol=1e-7 * np.abs(left).max())
    assert masses.min() < 1e-30


def test_a_gap_below_rounding_leaves_no_constant_in_the_mode():
    cold = cg.FokkerPlanckGrid([(-1.6, 1.6)], (300,), 0.03)
    modes = grid_modes(cg.SymbolicEnergy("(x**2 - 1)**2", ["x"]), cold, 2)
    assert abs(modes.rates[0]) < 1e-11
    assert modes.resolution < 1e-9
    masses = np.asarray(cold.gibbs(cg.SymbolicEnergy("(x**2 - 1)**2", ["x"])))
    assert abs(masses @ modes.values[0]) < 1e-12
    np.testing.assert_allclose(np.abs(modes.at([[-1.0], [1.0]])[:, 0]), 1, atol=1e-6)


@pytest.mark.parametrize("flux", ["scharfetter-gummel", "curved"])
def test_derivative_of_the_generator(flux):
    grid = cg.FokkerPlanckGrid([(-2, 2), (-1.5, 1.5)], (12, 9), 0.3, flux=flux)
    volume = grid._volume(WELLS)
    rng = np.random.default_rng(0)
    change = rng.normal(size=grid.shape) * 0.1
    exact = volume.derivative(change).toarray()

    def generator(s):
        return FiniteVolume(volume.energy + s * change, grid.spacing, 0.3, flux == "curved").generator.toarray()

    difference = (generator(1e-4) - generator(-1e-4)) / 2e-4
    np.testing.assert_allclose(exact, difference, atol=1e-7 * np.abs(exact).max())
    np.testing.assert_allclose(exact.sum(axis=0), 0, atol=1e-11)
    # dA/du ρ* = A(φρ*)/ε, because ρ* ∝ exp(-uφ/ε) stays an equilibrium
    masses = np.asarray(grid.gibbs(WELLS)).ravel()
    np.testing.assert_allclose(exact @ masses, grid.generator(WELLS) @ (change.ravel() * masses) / 0.3, atol=1e-12)


def test_derivative_behind_walls():
    disc = WELLS + cg.SafetyFilter([cg.Ball([0, 0], 1.5)], mode="reflected").walls
    grid = cg.FokkerPlanckGrid([(-2, 2), (-2, 2)], (20, 20), 0.3)
    modes = grid_modes(disc, grid, 3)
    b, n = modes.steer(potentials(["x", "y"], WELLS, "inputs"))
    masses, volume = np.asarray(grid.gibbs(disc)).ravel(), grid._volume(disc)
    column = volume.derivative(grid.cells[..., 0]) @ masses
    np.testing.assert_allclose(modes.values.reshape(3, -1) @ column, b[:, 0], atol=1e-11)
    assert np.isfinite(n).all()


def test_disconnected_cells_are_refused():
    halves = WELLS + cg.SafetyFilter([cg.BarrierFunction("x**2 - 1/4", ["x", "y"])], mode="reflected").walls
    with pytest.raises(ValueError, match="2 parts"):
        grid_modes(halves, cg.FokkerPlanckGrid([(-2, 2), (-2, 2)], (20, 20), 0.3), 3)


@pytest.mark.parametrize("order", [0, 3600])
def test_order_out_of_range(order):
    with pytest.raises(ValueError, match="order must be between 1 and"):
        grid_modes(WELLS, GRID, order)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_interpolation_is_multilinear_and_constant_beyond(dim):
    shape = (5, 6, 7)[:dim]
    axes = [np.linspace(-1, 1, n) for n in shape]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"))
    multilinear = np.prod(1 + 0.3 * grid, axis=0) - 2 * grid[0]
    lower, spacing = [a[0] for a in axes], [a[1] - a[0] for a in axes]
    observable = Interpolated(np.stack([multilinear, grid[-1]]), lower, spacing)
    x = np.random.default_rng(0).uniform(-1.5, 1.5, (dim, 50)).astype(np.float32)
    inside = np.clip(x, -1, 1)
    expected = np.stack([np.prod(1 + 0.3 * inside, axis=0) - 2 * inside[0], inside[-1]])
    np.testing.assert_allclose(observable.columns(x), expected, atol=2e-6)


def test_coordinates_of_particles_and_of_their_law():
    modes = grid_modes(WELLS, GRID, 3)
    start = cg.Gaussian([0.8, 0.3], 0.05 * np.eye(2))
    exact = modes.coordinates(GRID.discretise(start))
    x = start.sample(0, 40_000)
    assert np.all(np.abs(modes.coordinates(x) - exact) < 4 * modes.at(x).std(axis=0) / 200 + 2e-3)
    with pytest.raises(ValueError, match=r"x must have shape \(n, 2\)"):
        modes.at(np.zeros(3))


def test_sampled_modes_are_those_of_the_grid():
    modes, exact = sampled_modes(WELLS, 0.2, cg.Gibbs(WELLS, 0.2).sample(0, 20_000), 3), grid_modes(WELLS, GRID, 3)
    assert exact.rates[0] * 1.6 < modes.rates[0] < exact.rates[0]  # variational: never slower but for sampling errors
    np.testing.assert_allclose(modes.rates[1:], exact.rates[1:], rtol=0.06)
    x = cg.Gibbs(WELLS, 0.2).sample(1, 5000)
    correlation = np.corrcoef(modes.at(x).T, exact.at(x).T)[:3, 3:]
    assert np.abs(correlation[0, 0]) > 0.99
    assert np.linalg.norm(correlation[1:, 1:], axis=1).min() > 0.97  # a pair of nearly the same rate, turned
    np.testing.assert_allclose(modes.at(modes.samples).std(axis=0), 1, rtol=1e-6)


@pytest.mark.slow
def test_sampled_modes_of_a_gaussian_in_six_dimensions():
    # E = ½ Σ κᵢxᵢ²: slow rates are -κᵢ, and 2κ₁ of the square of the slowest
    kappa = np.array([0.3, 0.5, 1.0, 2.0, 3.0, 4.0])
    energy = cg.Quadratic(np.diag(kappa))
    modes = sampled_modes(energy, 1.0, cg.Gibbs(energy, 1.0).sample(0, 10_000), 4, bumps=20)
    np.testing.assert_allclose(modes.rates, [-0.3, -0.5, -0.6, -0.8], rtol=0.08)
    assert all(abs(e.value + k) < 5 * e.error + 0.01 for e, k in zip(modes.estimates, [0.3, 0.5], strict=False))
    b, _ = modes.steer(potentials(["x1"], energy, "inputs"))
    assert abs(abs(b[0, 0]) - np.sqrt(0.3)) < 0.03  # |λ|·E[xζ]/ε = κ·√(ε/κ)/ε


@pytest.mark.slow
def test_outliers_make_no_slow_modes_of_their_own():
    # exact: 1, 2, 3, 3, 4; a bump that one sample sees has a mean of nothing but chance
    energy = cg.Quadratic(np.diag([1.0, 3.0]))
    modes = sampled_modes(energy, 0.5, cg.Gibbs(energy, 0.5).sample(0, 6000), 5, bumps=200)
    np.testing.assert_allclose(modes.rates, [-1, -2, -3, -3, -4], rtol=0.12)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros((10, 3)), r"samples must be finite, of shape \(n, 2\)"),
        (np.full((2000, 2), np.nan), "samples must be finite"),
        (np.random.default_rng(0).normal(size=(200, 2)), "at least ten for each"),
        (np.zeros((2000, 2)), "must vary in every coordinate"),
    ],
)
def test_bad_samples(samples, message):
    with pytest.raises(ValueError, match=message):
        sampled_modes(WELLS, 0.2, samples, 2)


def test_eigenfunctions_as_control_potentials_reach_their_own_mode():
    modes = grid_modes(WELLS, GRID, 4)
    b, _ = modes.steer(modes.energies(3))
    np.testing.assert_allclose(b[:3], np.diag(modes.rates[:3]) / 0.2, atol=1e-9)
    np.testing.assert_allclose(b[3], 0, atol=1e-9)
