"""The grid plant against closed forms, other methods, and the exact properties of its scheme."""

import copy
import pickle
import warnings

import numpy as np
import pytest
from scipy.sparse.linalg import expm_multiply

import ctrlgen as cg
from ctrlgen.plants.finite_volume import FiniteVolume, bernoulli
from ctrlgen.plants.grid import GridDensity
from ctrlgen.plants.propagators import BackwardEuler, Exponential

WELL = cg.SymbolicEnergy("(x**2 - 1)**2 + y**2/2", ["x", "y"])
SHAPES = {1: (60,), 2: (17, 23), 3: (7, 9, 8)}
FLUXES = ["scharfetter-gummel", "curved"]


def grid_of(dim, half=2.2, temperature=0.2, **options):
    return cg.FokkerPlanckGrid([(-half, half)] * dim, SHAPES[dim], temperature, **options)


def rough(shape, size, seed=0):
    """A random energy on cells: neighbouring values differ by up to about `size`."""
    return FiniteVolume(np.random.default_rng(seed).uniform(0, size, shape), (0.1,) * len(shape), 0.7)


def random_masses(shape, seed=1):
    masses = np.random.default_rng(seed).random(shape) ** 4
    return masses / masses.sum()


def run(grid, energy, initial, time, counts=(1,), schedule=None):
    return grid.start(energy, initial, step=time, schedule=schedule).advance(list(counts))


# The operator ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("flux", FLUXES)
@pytest.mark.parametrize("size", [0.0, 1.0, 50.0, 1e4])
@pytest.mark.parametrize("dim", SHAPES)
def test_generator_is_a_reversible_jump_process(dim, size, flux):
    volume = rough(SHAPES[dim], size)
    volume = FiniteVolume(volume.energy, volume.spacing, volume.temperature, flux == "curved")
    a = volume.generator
    diagonal = a.diagonal()
    off = a.toarray() - np.diag(diagonal)
    assert np.isfinite(off).all()
    assert off.min() >= 0
    np.testing.assert_allclose(off.sum(axis=0), -diagonal, rtol=1e-12)
    assert np.count_nonzero(off) <= 2 * dim * len(diagonal)
    gibbs = np.exp(volume.log_gibbs).ravel()
    assert np.abs(a @ gibbs).max() <= 1e-12 * (np.abs(diagonal) * gibbs).max()
    flow = off * gibbs  # detailed balance
    np.testing.assert_allclose(flow, flow.T, rtol=1e-10, atol=1e-290)


def test_public_generator_and_gibbs():
    grid = grid_of(2)
    a, gibbs = grid.generator(WELL), grid.gibbs(WELL)
    assert a.shape == (17 * 23, 17 * 23)
    assert grid.cells.shape == (17, 23, 2)
    np.testing.assert_allclose(np.asarray(a.sum(axis=0)).ravel(), 0, atol=1e-12 * np.abs(a.diagonal()).max())
    x, y = grid.cells[..., 0], grid.cells[..., 1]
    weights = np.exp(-((x**2 - 1) ** 2 + y**2 / 2) / 0.2)
    np.testing.assert_allclose(gibbs, weights / weights.sum(), rtol=1e-12)
    assert np.abs(a @ gibbs.ravel()).max() < 1e-12
    # C order: the first neighbour along the last axis is the next cell
    h = 4.4 / 23
    z = np.diff(((x**2 - 1) ** 2 + y**2 / 2)[0, :2])[0] / 0.2
    assert a[1, 0] == pytest.approx(0.2 / h**2 * z / np.expm1(z), rel=1e-12)


def test_bernoulli_function():
    z = np.array([-1e4, -800.0, -1.0, -1e-9, 0.0, 1e-9, 1.0, 700.0, 1e4])
    exact = [1e4, 800.0, 1 / (1 - np.exp(-1)), 1 + 5e-10, 1.0, 1 - 5e-10, 1 / np.expm1(1), 700 * np.exp(-700.0), 0.0]
    np.testing.assert_allclose(bernoulli(z), exact, rtol=1e-14)


def test_spectrum_of_the_double_well():
    # The reference places 60 nodes on [-2.2, 2.2], ends included: cells 1/59 wide, so 3 % more discretisation error.
    values = cg.FokkerPlanckGrid([(-2.2, 2.2)] * 2, (60, 60), 0.2).spectrum(WELL, 4)
    np.testing.assert_allclose(values, [-0.01119, -0.9954, -1.0066, -1.986], rtol=7e-4)
    half = 2.2 * 60 / 59
    values = cg.FokkerPlanckGrid([(-half, half)] * 2, (60, 60), 0.2).spectrum(WELL, 4)
    np.testing.assert_allclose(values[:3], [-0.01119, -0.9954, -1.0066], rtol=1e-4, atol=5e-6)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_sparse_spectrum_is_the_dense_one(k):
    grid = grid_of(2)
    dense = np.sort(np.linalg.eigvals(grid.generator(WELL).toarray()).real)[::-1]
    np.testing.assert_allclose(grid.spectrum(WELL, k), dense[1 : k + 1], rtol=1e-8)


def test_spectrum_survives_underflowing_gibbs_weights():
    energy = cg.Quadratic([[500.0]])  # E/ε is 1.2e4 at the border; the spectrum is -500, -1000, ...
    grid = cg.FokkerPlanckGrid([(-2.2, 2.2)], (1500,), 0.1)
    np.testing.assert_allclose(grid.spectrum(energy, 3), [-500, -1000, -1500], rtol=2e-2)


# Measures -------------------------------------------------------------------------------------------


def test_kl_is_exact_and_survives_underflow():
    grid = cg.FokkerPlanckGrid([(-4, 4)], (80,), 1.0)
    steep = cg.Quadratic([[1000.0]])  # Gibbs masses down to e^-8000
    masses = np.full(80, 1 / 80)
    scaled = -500 * grid.cells[:, 0] ** 2
    expected = np.mean(np.log(1 / 80) - scaled) + np.log(np.sum(np.exp(scaled - scaled.max()))) + scaled.max()
    assert grid.kl(masses, steep) == pytest.approx(expected, rel=1e-12)
    one = np.zeros(80)
    one[40] = 1.0
    assert grid.kl(one, steep) == pytest.approx(-np.log(grid.gibbs(steep)[40]), rel=1e-12)
    assert abs(grid.kl(grid.gibbs(steep), steep)) < 1e-12
    assert isinstance(grid.kl(one, steep), float)


@pytest.mark.parametrize("flux", FLUXES)
def test_dissipation_is_minus_the_derivative_of_kl(flux):
    grid = grid_of(2, flux=flux)
    rho = 0.5 * random_masses(grid.shape) + 0.5 * grid.gibbs(WELL)
    a, gibbs = grid.generator(WELL), grid.gibbs(WELL)
    expected = -np.sum((a @ rho.ravel()) * np.log(rho / gibbs).ravel())
    assert grid.dissipation(rho, WELL) == pytest.approx(expected, rel=1e-10)
    assert 0 <= grid.dissipation(gibbs, WELL) < 1e-12


def test_moments_and_free_energy_against_the_gaussian_plant():
    energy = cg.Quadratic([[2.0, 0.5], [0.5, 1.0]], [0.3, -0.2])
    density = cg.Gaussian([0.5, 0.1], [[0.4, 0.1], [0.1, 0.3]])
    grid, exact = cg.FokkerPlanckGrid([(-8, 8)] * 2, (160, 160), 0.8), cg.GaussianPlant(0.8)
    masses = grid.discretise(density)
    mean, covariance = grid.moments(masses)
    np.testing.assert_allclose(mean, density.mean, atol=1e-10)
    np.testing.assert_allclose(covariance, density.covariance, atol=1e-10)
    for name in ("mean_energy", "free_energy", "kl"):
        assert getattr(grid, name)(masses, energy) == pytest.approx(getattr(exact, name)(density, energy), rel=1e-9)
    assert grid.dissipation(masses, energy) == pytest.approx(exact.dissipation(density, energy), rel=5e-3)
    partition = grid.free_energy(grid.gibbs(energy), energy)  # F = εV - ε log Z
    assert grid.free_energy(masses, energy) - partition == pytest.approx(0.8 * grid.kl(masses, energy), rel=1e-9)


# Motion ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flux", FLUXES)
def test_ornstein_uhlenbeck_to_second_order_in_the_cell(flux):
    energy, start = cg.Quadratic([[1.0, 0.3], [0.3, 2.0]]), cg.Gaussian([1.0, 0.5], 0.2)
    (end,) = cg.GaussianPlant(0.7).start(energy, start, step=0.6).advance([1])
    cells, errors = np.array([30, 60, 120]), []
    for n in cells:
        grid = cg.FokkerPlanckGrid([(-5, 5)] * 2, (n, n), 0.7, flux=flux)
        errors.append(np.abs(run(grid, energy, start, 0.6)[0] - grid.discretise(end)).sum())
    slope = -np.polyfit(np.log(cells), np.log(errors), 1)[0]
    assert abs(slope - 2) < 0.2
    assert errors[-1] < {"scharfetter-gummel": 1.5e-3, "curved": 4.5e-4}[flux]


@pytest.mark.parametrize("dim", SHAPES)
def test_exponential_agrees_with_expm_multiply(dim):
    grid = grid_of(dim, half=1.6)
    energy = cg.Quadratic(np.diag([1.0, 2.0, 0.5][:dim]), [0.2, -0.1, 0.3][:dim])
    masses = random_masses(grid.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random masses reach the border
        (out,) = run(grid, energy, masses, 0.3)
    expected = expm_multiply(0.3 * grid.generator(energy), masses.ravel()).reshape(grid.shape)
    assert np.abs(out - expected).sum() < 1e-11


@pytest.mark.parametrize("size", [0.3, 3.0, 30.0, 300.0])
def test_every_series_gives_the_same_density(size):
    """On steep energies too: each series against dense exponentials of a rescaled, well conditioned form."""
    volume = rough((9, 8), size)
    masses = random_masses((9, 8))
    move, time = Exponential(volume), 0.004
    values, vectors = np.linalg.eigh(volume.symmetric.toarray())
    half = np.exp(np.clip(volume.log_gibbs.ravel() / 2, -600, None))
    expected = None
    if size <= 30:  # beyond, 1/√ρ* is lost to float64, which is why there are three series
        expected = (half * (vectors @ (np.exp(time * values) * (vectors.T @ (masses.ravel() / half))))).reshape(9, 8)
    uniform = move._uniform_series(masses, time)
    assert uniform.min() >= 0
    assert uniform.sum() == pytest.approx(1, abs=1e-12)
    pieces = masses
    cuts = int(np.ceil(time * move._growth / np.log(1e3)))
    for _ in range(max(1, cuts)):
        pieces = move._raw_series(pieces, time / max(1, cuts))
    assert np.abs(pieces - uniform).sum() < 1e-10
    assert np.abs(move(masses, time) - uniform).sum() < 1e-11
    if expected is not None and size < 10:
        assert np.abs(uniform - expected).sum() < 1e-11
    if move._scaled(masses) is not None:
        assert np.abs(move._symmetric_series(move._scaled(masses), time) - uniform).sum() < 1e-11


def test_plan_follows_what_float64_can_carry():
    mild, steep = Exponential(rough((9, 8), 0.5)), Exponential(rough((9, 8), 300.0))
    assert mild._plan(random_masses((9, 8)), 1e-3)[0] == "symmetric"
    assert steep._plan(random_masses((9, 8)), 1e-3)[0] == "uniform"
    grid = cg.FokkerPlanckGrid([(-12, 12)], (600,), 1.0)  # mass at 8 σ: √ρ* there is e^-16
    far = Exponential(grid._volume(cg.Quadratic([[1.0]])))
    assert far._plan(grid.discretise(cg.Gaussian([8.0], 0.2)), 2.0)[0] == "raw"


def test_far_start_reaches_the_exact_density():
    """Mass where the Gibbs masses are 1e-14: the symmetric series alone would lose it."""
    energy, start = cg.Quadratic([[1.0]]), cg.Gaussian([8.0], 0.2)
    grid = cg.FokkerPlanckGrid([(-12, 12)], (600,), 1.0)
    (end,) = cg.GaussianPlant(1.0).start(energy, start, step=2.0).advance([1])
    assert np.abs(run(grid, energy, start, 2.0)[0] - grid.discretise(end)).sum() < 2e-3


@pytest.mark.parametrize("scheme", ["chebyshev", "implicit"])
def test_steep_border_is_harmless(scheme):
    """E/ε rises by 4e3 to the border and by 400 per cell; masses there are far below the smallest float."""
    energy = cg.CallableEnergy(lambda x: 10.0 * x[0] ** 4 + 0.5 * x[1] ** 2, 2)
    grid = cg.FokkerPlanckGrid([(-3, 3), (-4, 4)], (30, 24), 0.2, scheme=scheme)
    masses = grid.discretise(cg.Gaussian([0.5, 0.0], 0.1))
    snapshots = run(grid, energy, masses, 0.2, [1, 1, 5])
    values = [grid.kl(masses, energy), *(grid.kl(m, energy) for m in snapshots)]
    for out in snapshots:
        assert out.min() >= 0
        assert out.sum() == pytest.approx(1, abs=1e-12)
        assert out[0].sum() < 1e-12
    assert np.all(np.diff(values) < 0)


def test_semigroup_and_record_independence():
    grid = grid_of(2)
    start = grid.discretise(cg.Gaussian([1.0, 0.0], 0.05))
    whole = run(grid, WELL, start, 0.1, [6])[0]
    parts = run(grid, WELL, start, 0.1, [1, 2, 3])
    assert len(parts) == 3
    assert np.abs(parts[-1] - whole).sum() < 1e-11


@pytest.mark.parametrize("dim", SHAPES)
def test_kl_falls_at_every_implicit_step(dim):
    volume = rough(SHAPES[dim], 4.0)
    for step in (1e-4, 1e-2, 10.0):
        move, masses = BackwardEuler(volume, step), random_masses(SHAPES[dim])
        values = [volume.kl(masses)]
        for _ in range(8):
            masses = move(masses)
            assert masses.min() >= 0
            assert masses.sum() == pytest.approx(1, abs=1e-12)
            values.append(volume.kl(masses))
        assert np.all(np.diff(values) < 1e-13)
        assert values[1] < values[0]


def test_implicit_steps_are_first_order():
    start = cg.Gaussian([0.8, 0.1], 0.05)
    exact = run(grid_of(2), WELL, start, 0.4)[0]
    steps, errors = 0.4 / np.array([20, 40, 80]), []
    for step in steps:
        grid = grid_of(2, step=float(step))
        errors.append(np.abs(run(grid, WELL, start, 9.0, [round(0.4 / step)])[0] - exact).sum())
    slope = np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert abs(slope - 1) < 0.1


def test_double_well_open_loop_is_slow():
    grid = cg.FokkerPlanckGrid([(-2.2, 2.2)] * 2, (60, 60), 0.2)
    (out,) = run(grid, WELL, cg.Gaussian([1.0, 0.0], 0.05), 14.0)
    assert grid.kl(out, WELL) == pytest.approx(0.44, abs=0.005)


def test_kl_decays_at_the_closed_form_rate():
    energy, start = cg.Quadratic([[1.5]]), cg.Gaussian([0.9], 0.3)
    grid = cg.FokkerPlanckGrid([(-5, 5)], (400,), 0.6)
    masses = run(grid, energy, start, 0.1, [1] * 8)
    exact = cg.GaussianPlant(0.6).start(energy, start, step=0.1).advance([1] * 8)
    for m, g in zip(masses, exact, strict=True):
        assert grid.kl(m, energy) == pytest.approx(cg.GaussianPlant(0.6).kl(g, energy), rel=2e-3)
        assert grid.dissipation(m, energy) == pytest.approx(cg.GaussianPlant(0.6).dissipation(g, energy), rel=3e-3)


# Schedules ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "tolerance"), [({}, 2e-3), ({"step": 0.0025}, 5e-3)], ids=["exact", "implicit"])
def test_annealing_follows_the_moments(options, tolerance):
    energy, start = cg.Quadratic([[1.0]]), cg.Gaussian([1.0], 0.2)
    schedule = cg.Annealing(3.0, 0.5)
    grid = cg.FokkerPlanckGrid([(-7, 7)], (280,), 0.5, **options)
    count = 1 if not options else 200
    (out,) = run(grid, energy, start, 0.5, [count], schedule)
    fine = cg.GaussianPlant(0.5, step=0.001).start(energy, start, step=1.0, schedule=schedule).advance([500])[0]
    mean, covariance = grid.moments(out)
    assert mean[0] == pytest.approx(fine.mean[0], abs=tolerance)
    assert covariance[0, 0] == pytest.approx(fine.covariance[0, 0], abs=tolerance)


@pytest.mark.parametrize("options", [{}, {"step": 0.02}], ids=["exact", "implicit"])
def test_schedules_join_over_records(options):
    energy, grid = cg.Quadratic([[1.0]]), cg.FokkerPlanckGrid([(-6, 6)], (60,), 0.5, **options)
    start = grid.discretise(cg.Gaussian([1.0], 0.2))
    static = run(grid, energy, start, 0.02, [5])[0]
    assert np.abs(run(grid, energy, start, 0.02, [2, 3], lambda t: 1.0)[-1] - static).sum() < 1e-11
    cooling = cg.Annealing(3.0, 0.08)
    parts = grid.start(energy, start, step=0.02, schedule=cooling)
    parts.advance([1])
    assert parts.done == 1
    last = parts.advance([1, 3])[-1]
    assert np.abs(last - run(grid, energy, start, 0.02, [5], cooling)[0]).sum() < 1e-11
    assert np.abs(last - static).sum() > 1e-2


def test_transport_phase_without_noise_moves_mass_downhill():
    energy = cg.Quadratic([[1.0]])
    grid = cg.FokkerPlanckGrid([(-4, 4)], (200,), 0.5)
    ramp = cg.TransportRamp(0.8, 1.0)
    (out,) = run(grid, energy, cg.Gaussian([2.0], 0.1), 0.5, schedule=ramp)
    mean, _ = grid.moments(out)
    assert mean[0] == pytest.approx(2 * np.exp(-0.5), rel=0.03)  # upwind: first order in the cell
    assert out.min() >= 0


# Densities in ----------------------------------------------------------------------------------------


def test_histogram_of_particles():
    grid = cg.FokkerPlanckGrid([(0, 3), (0, 6)], (3, 3), 1.0)
    masses = grid.discretise([[0.5, 1.0], [0.5, 1.5], [2.5, 5.0], [1.5, 2.5]])
    expected = np.zeros((3, 3))
    expected[0, 0], expected[2, 2], expected[1, 1] = 0.5, 0.25, 0.25
    np.testing.assert_array_equal(masses, expected)


def test_start_from_particles_and_from_samples():
    grid = cg.FokkerPlanckGrid([(-3, 3)] * 2, (20, 20), 0.3)
    energy = cg.Quadratic(np.eye(2))
    points = np.random.default_rng(0).normal(0, 0.5, (400, 2))

    class Source:
        def sample(self, key, n):
            assert (key, n) == (3, 400)
            return points

    histogram = grid.discretise(points)
    for initial in (points, Source(), histogram):
        run_ = grid.start(energy, initial, step=0.1, key=3, particles=400)
        np.testing.assert_allclose(run_.snapshot(), histogram, rtol=1e-14)


def test_warns_with_the_mass_at_the_border():
    grid = cg.FokkerPlanckGrid([(-1, 1)], (20,), 1.0)
    with pytest.warns(UserWarning, match=r"grid is too small: 0\.\d+ of the Gibbs measure is in its outermost cells"):
        grid.start(cg.Quadratic([[1.0]]), cg.Gaussian([0.0], 0.01), step=0.1)
    wide = cg.FokkerPlanckGrid([(-4, 4)], (80,), 0.1)
    edge = np.zeros(80)
    edge[0], edge[40] = 0.25, 0.75
    with pytest.warns(UserWarning, match=r"too small: 0\.25 of the initial density"):
        wide.start(cg.Quadratic([[1.0]]), edge, step=0.1)
    with pytest.warns(UserWarning, match="density sums to 0.5 over the cells"):
        wide.discretise(cg.Gaussian([-4.0], 0.1))


# Masses that know their grid ---------------------------------------------------------------------------


def test_what_the_grid_returns_knows_its_grid():
    grid = grid_of(2)
    response = cg.ClosedLoop(grid, WELL).simulate(cg.Gaussian([0.0, 0.0], 0.1), 0.2, record=3)
    densities = [grid.gibbs(WELL), grid.discretise(cg.Gaussian([0.0, 0.0], 0.1)), grid.discretise([[0.1, 0.2]])]
    for density in (*densities, response.final, *response.snapshots):
        assert type(density) is GridDensity
        assert density.grid is grid
        assert density.shape == grid.shape
    assert type(response.density) is np.ndarray
    assert response.density.shape == (3, 17, 23)


COMPUTED = {
    "times a number": lambda r: r * 2,
    "number minus it": lambda r: 1 - r,
    "ufunc": np.exp,
    "comparison": lambda r: r > 0,
    "matrix product": lambda r: r @ r.T,
    "row": lambda r: r[0],
    "slice": lambda r: r[1:, 2:],
    "whole slice": lambda r: r[:],
    "mask": lambda r: r[np.asarray(r) > 0],
    "first of an iteration": lambda r: next(iter(r)),
    "transpose": lambda r: r.T,
    "transpose function": np.transpose,
    "ravel": lambda r: r.ravel(),
    "reshape": lambda r: r.reshape(-1),
    "flat": lambda r: r.flat[:3],
    "astype": lambda r: r.astype(np.float32),
    "view": lambda r: r.view(),
    "sum over an axis": lambda r: r.sum(axis=0),
    "cumsum": lambda r: r.cumsum(axis=1),
    "clip": lambda r: r.clip(0, 1e-3),
    "stack": lambda r: np.stack([r, r]),
    "concatenate": lambda r: np.concatenate((r, r)),
    "zeros like": np.zeros_like,
    "array": np.array,
    "asarray": np.asarray,
    "where": lambda r: np.where(r > 0, r, 0),
    "out": lambda r: np.add(r, r, out=np.empty(r.shape)),
    "out in it": lambda r: np.multiply(r, 2, out=r.copy()),
}


@pytest.mark.parametrize("name", COMPUTED)
def test_what_is_computed_from_a_density_is_a_plain_array(name):
    gibbs = grid_of(2).gibbs(WELL)
    out = COMPUTED[name](gibbs)
    assert type(out) is np.ndarray
    np.testing.assert_array_equal(out, COMPUTED[name](np.array(gibbs)))


def test_reductions_of_a_density_are_scalars():
    gibbs = grid_of(2).gibbs(WELL)
    for value in (gibbs.sum(), gibbs.max(), gibbs.mean(), gibbs.std(), np.sum(gibbs), gibbs[0, 0], gibbs.ravel()[0]):
        assert type(value) is np.float64
    assert type(gibbs.item(3)) is float
    assert gibbs.sum() == pytest.approx(1, abs=1e-12)
    doubled = gibbs.copy()
    doubled *= 2
    assert type(doubled) is np.ndarray
    assert doubled.sum() == pytest.approx(2)


def test_copies_and_pickles_of_a_density_are_densities():
    grid = grid_of(2)
    gibbs = grid.gibbs(WELL)
    for other in (gibbs.copy(), copy.copy(gibbs), copy.deepcopy(gibbs)):
        assert type(other) is GridDensity
        assert other.grid is grid
        assert not np.shares_memory(other, gibbs)
        np.testing.assert_array_equal(other, gibbs)
    # an energy that cannot be pickled is what the grid has last computed for
    unpicklable = cg.CallableEnergy(lambda x: (x**2).sum(), 2)
    restored = pickle.loads(pickle.dumps(grid.gibbs(unpicklable)))
    assert type(restored) is GridDensity
    assert restored.grid.bounds == grid.bounds
    assert restored.grid.kl(restored, WELL) == grid.kl(grid.gibbs(unpicklable), WELL)


def test_masses_that_do_not_fit_are_no_density():
    grid = grid_of(1)
    with pytest.raises(ValueError, match=r"must be cell masses of the grid's shape \(60,\); got shape \(59,\)"):
        GridDensity(np.full(59, 1 / 59), grid)
    with pytest.raises(ValueError, match="must be cell masses with sum 1"):
        GridDensity(np.ones(60), grid)


# Bad input -------------------------------------------------------------------------------------------

ONE = cg.Quadratic([[1.0]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([(0, 1)] * 4, (4,) * 4, 1.0), "bounds must be one .lower, upper. pair per axis, 1 to 3 axes"),
        (((0, 1), (4,), 1.0), "bounds must be one"),
        (("box", (4,), 1.0), "bounds must be one"),
        (([(0, 1), (2, 2)], (4, 4), 1.0), r"lower < upper; axis 1 has \(2.0, 2.0\)"),
        (([(0, np.inf)], (4,), 1.0), "finite with lower < upper; axis 0"),
        (([(0, 1)], (4, 4), 1.0), r"shape must be 1 integers of at least 3, .* got \(4, 4\)"),
        (([(0, 1)], (2,), 1.0), "shape must be 1 integers of at least 3"),
        (([(0, 1)], (4.5,), 1.0), "shape must be 1 integers"),
        (([(0, 1)], (4,), 0.0), "temperature must be positive and finite; got 0"),
        (([(0, 1)], (4,), np.nan), "temperature must be positive"),
        (([(0, 1)], (4,), 1.0, -0.1), "step must be positive and finite; got -0.1"),
        (([(0, 1)], (4,), 1.0, None, "magic"), "scheme must be one of 'auto', 'chebyshev', 'implicit'; got 'magic'"),
        (([(0, 1)], (4,), 1.0, None, "auto", "x"), "flux must be one of 'scharfetter-gummel', 'curved'; got 'x'"),
    ],
)
def test_bad_grids(arguments, message):
    with pytest.raises(ValueError, match=message):
        cg.FokkerPlanckGrid(*arguments)


@pytest.mark.parametrize(
    ("initial", "message"),
    [
        (np.full(7, 1 / 7), r"cell masses of the grid's shape \(8,\); got shape \(7,\)"),
        (np.full(8, 1.0), "masses with sum 1; got sum 8. Density values are multiplied by the cell volume"),
        (np.array([1.5, -0.5, 0, 0, 0, 0, 0, 0]), "must not be negative; its smallest cell mass is -0.5"),
        (np.array([np.nan, 1, 0, 0, 0, 0, 0, 0]), "initial density must be finite; 1 cells are not"),
        (cg.Gaussian([0.0, 0.0], 1.0), "density is 2-dimensional but this grid has 1 axes"),
        (cg.Gaussian([500.0], 0.1), "no finite mass on the grid"),
        (np.array([[0.1], [9.0], [-9.0]]), "2 of 3 particles are outside the box"),
        (np.array([[0.1], [np.inf]]), "particles must be finite; 1 of 2 are not, the first is 1"),
    ],
)
def test_bad_initial_densities(initial, message):
    with pytest.raises(ValueError, match=message):
        cg.FokkerPlanckGrid([(-4, 4)], (8,), 1.0).start(ONE, initial, step=0.1)


def test_bad_energies_and_states():
    grid = cg.FokkerPlanckGrid([(-4, 4)], (8,), 1.0)
    with pytest.raises(ValueError, match="energy is 2-dimensional but this grid has 1 axes"):
        grid.gibbs(WELL)
    with pytest.raises(TypeError, match=r"must be an Energy; got function\. Wrap a function in CallableEnergy"):
        grid.gibbs(lambda x: x)
    with pytest.raises(ValueError, match=r"on every cell; it is nan at x = \[-3.5\] and neither on 4 of 8"):
        grid.gibbs(cg.SymbolicEnergy("x**2 + sqrt(x)", ["x"]))
    with pytest.raises(ValueError, match="k must be between 1 and the number of cells - 1 = 7; got 8"):
        grid.spectrum(ONE, 8)
    with pytest.raises(ValueError, match="density must be cell masses with sum 1; got sum 0"):
        grid.kl(np.zeros(8), ONE)
    cold = cg.FokkerPlanckGrid([(-4, 4)], (8,), 0.5)
    with pytest.raises(ValueError, match=r"schedule must return a finite factor >= 0; at t = .* it returned -1"):
        run(cold, ONE, cold.gibbs(ONE), 0.1, schedule=lambda t: -1.0)
