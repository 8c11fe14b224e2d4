"""Hard walls on the grid plant: cells where the energy is +inf, against smaller grids and closed forms."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

import ctrlgen as cg
from ctrlgen.plants.finite_volume import FiniteVolume
from ctrlgen.plants.propagators import BackwardEuler, Exponential

FLUXES = ["scharfetter-gummel", "curved"]
SHAPES = {1: (60,), 2: (17, 23), 3: (7, 9, 8)}
HEAT = 0.4


def formula(x):
    return (x[0] ** 2 - 1) ** 2 + 0.3 * x[0] + sum(y**2 / 2 + y**4 for y in x[1:])


def within(low, high):
    """`formula` on the box low < x < high, +inf outside."""
    low, high = np.array(low), np.array(high)

    def potential(x):
        outside = [(y <= a) | (y >= b) for y, a, b in zip(x, low, high, strict=True)]
        return jnp.where(sum(outside) > 0, jnp.inf, formula(x))

    return cg.CallableEnergy(potential, len(low))


# (walled energy, its grid) and (the same energy, a grid that ends at the walls), with the cells that they share
def interval(**options):
    whole = cg.FokkerPlanckGrid([(-2, 2)], (80,), HEAT, **options)
    part = cg.FokkerPlanckGrid([(-1, 1.5)], (50,), HEAT, **options)
    return (within([-1], [1.5]), whole), (cg.CallableEnergy(formula, 1), part), (slice(20, 70),)


def rectangle(**options):
    """The wall at x = -1.4 is the border of either grid."""
    whole = cg.FokkerPlanckGrid([(-1.4, 2), (-1, 1.25)], (17, 18), HEAT, **options)
    part = cg.FokkerPlanckGrid([(-1.4, 1.2), (-0.5, 1)], (13, 12), HEAT, **options)
    walled = within([-1.4, -0.5], [1.2, 1.0])
    return (walled, whole), (cg.CallableEnergy(formula, 2), part), (slice(0, 13), slice(4, 16))


ROOMS = {"interval": interval, "rectangle": rectangle}


def embed(masses, shape, place):
    out = np.zeros(shape)
    out[place] = masses
    return out


def random_masses(shape, seed=1):
    masses = np.random.default_rng(seed).random(shape) ** 4
    return masses / masses.sum()


def disc(dim=2):
    return cg.CallableEnergy(lambda x: jnp.where((x**2).sum(0) < 1, 0.0, jnp.inf), dim)


def run(grid, energy, initial, time, counts=(1,), schedule=None):
    return grid.start(energy, initial, step=time, schedule=schedule).advance(list(counts))


# The operator ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("flux", FLUXES)
@pytest.mark.parametrize("size", [1.0, 1e4])
@pytest.mark.parametrize("dim", SHAPES)
def test_what_remains_is_a_reversible_jump_process(dim, size, flux):
    rng = np.random.default_rng(3)
    energy = rng.uniform(0, size, SHAPES[dim])
    energy[rng.random(SHAPES[dim]) < 0.3] = np.inf
    volume = FiniteVolume(energy, (0.1,) * dim, 0.7, flux == "curved")
    walls, a = np.isinf(energy).ravel(), volume.generator
    diagonal, dense = a.diagonal(), a.toarray()
    off = dense - np.diag(diagonal)
    assert np.isfinite(dense).all()
    assert off.min() >= 0
    np.testing.assert_allclose(off.sum(axis=0), -diagonal, rtol=1e-12)
    gibbs = np.exp(volume.log_gibbs).ravel()
    assert gibbs.sum() == pytest.approx(1, abs=1e-13)
    assert (gibbs[walls] == 0).all()
    flow = off * gibbs
    np.testing.assert_allclose(flow, flow.T, rtol=1e-10, atol=1e-290)
    assert np.abs(a @ gibbs).max() <= 1e-12 * (np.abs(diagonal) * gibbs).max()
    # the removed cells have no entries, not even stored ones, and a cell that remains has one for each open face
    assert a[walls].nnz == a[:, walls].nnz == volume.symmetric[walls].nnz == 0
    if size == 1.0:
        kept, faces = ~walls.reshape(energy.shape), 0
        for axis in range(dim):
            front = np.moveaxis(kept, axis, 0)
            faces += int(np.sum(front[1:] & front[:-1]))
        assert np.count_nonzero(off) == 2 * faces
    if size == 1.0:
        symmetric = volume.symmetric.toarray()
        np.testing.assert_allclose(symmetric, symmetric.T, rtol=1e-14)
        np.testing.assert_allclose(symmetric**2, np.where(np.eye(len(walls)) > 0, dense**2, off * off.T), rtol=1e-10)


@pytest.mark.parametrize("flux", FLUXES)
@pytest.mark.parametrize("room", ROOMS)
def test_walls_along_faces_are_a_smaller_grid(room, flux):
    (walled, whole), (plain, part), place = ROOMS[room](flux=flux)
    kept = embed(np.ones(part.shape), whole.shape, place).ravel() > 0
    block = whole.generator(walled)[kept][:, kept].toarray()
    expected = part.generator(plain).toarray()
    np.testing.assert_allclose(block, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(whole.gibbs(walled), embed(part.gibbs(plain), whole.shape, place), rtol=1e-12, atol=0)
    np.testing.assert_allclose(whole.spectrum(walled, 5), part.spectrum(plain, 5), rtol=1e-9)


def test_the_curved_flux_has_no_correction_where_it_knows_no_curvature():
    """Passages of two cells along an axis; those of three take the one second difference that there is."""
    energy = np.full((9,), np.inf)
    energy[1:3], energy[5:8] = [0.3, 0.9], [0.2, 0.5, 1.4]
    plain, curved = (FiniteVolume(energy, (0.2,), 0.7, flag).generator for flag in (False, True))
    ratio = np.array([curved[i + 1, i] / plain[i + 1, i] for i in (1, 5, 6)])
    bend = np.exp((1.4 - 2 * 0.5 + 0.2) / (6 * 0.7))
    np.testing.assert_allclose(ratio, [1.0, bend, bend], rtol=1e-12)


def test_nothing_is_masked_where_the_energy_is_finite():
    energy = np.random.default_rng(0).random((6, 7))
    volume = FiniteVolume(energy, (0.1, 0.1), 0.7, True)
    assert volume.walls is None
    assert volume._level is energy
    rates = volume.forward[0]
    assert volume._shut(0, rates, 0.0) is rates


# Spectra --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [40, 600], ids=["dense", "sparse"])
def test_flat_interval(n):
    """h = 2/n on (-1, 1): 4ε/h² sin²(πk/(2n)), which tends to ε(πk/2)²."""
    energy = cg.CallableEnergy(lambda x: jnp.where(jnp.abs(x[0]) < 1, 0.0, jnp.inf), 1)
    values = cg.FokkerPlanckGrid([(-2, 2)], (2 * n,), 0.7).spectrum(energy, 4)
    k = np.arange(1, 5)
    np.testing.assert_allclose(values, -0.7 * n**2 * np.sin(np.pi * k / (2 * n)) ** 2, rtol=1e-8)
    np.testing.assert_allclose(values, -0.7 * (np.pi * k / 2) ** 2, rtol=1.1 * (np.pi * 4 / (2 * n)) ** 2 / 3)


def test_flat_disc():
    """Zeros of J₁', J₂', J₀': double, double, simple; a staircase moves them by a first order in the cell size."""
    exact = -0.7 * np.array([1.8411837813, 1.8411837813, 3.0542369282, 3.0542369282, 3.8317059702]) ** 2
    errors = {}
    for n in (40, 160):
        values = cg.FokkerPlanckGrid([(-1.1, 1.1)] * 2, (n, n), 0.7).spectrum(disc(), 5)
        assert values[0] == pytest.approx(values[1], rel=1e-6)
        errors[n] = np.abs(values / exact - 1).max()
    assert errors[160] < 0.01
    assert errors[160] < errors[40] / 2


@pytest.mark.parametrize("n", [40, 400], ids=["dense", "sparse"])
def test_parts_without_connection_have_a_gap_of_zero(n):
    """Intervals of lengths 1 and 1.5 and one lone cell: two zeros, then the slowest of either."""
    h = 4 / n

    def potential(x):
        y = x[0]
        rooms = ((y > -2) & (y < -1)) | ((y > 0.5) & (y < 2)) | (jnp.abs(y + h / 2) < h / 2)
        return jnp.where(rooms, 0.0, jnp.inf)

    grid = cg.FokkerPlanckGrid([(-2, 2)], (n,), 0.7)
    energy = cg.CallableEnergy(potential, 1)
    values = grid.spectrum(energy, 5)

    def slow(length, k):
        return -0.7 * 4 / h**2 * np.sin(np.pi * k * h / (2 * length)) ** 2

    assert (values[:2] == 0).all()
    np.testing.assert_allclose(values[2:], [slow(1.5, 1), slow(1.0, 1), slow(1.5, 2)], rtol=1e-7)
    np.testing.assert_array_equal(grid.spectrum(energy, 1), [0.0])


def test_parts_may_alternate_in_the_order_of_cells():
    """Strips y < -0.2 and y > 0.4 of one length: the slowest mode of each is the same one along x."""
    energy = cg.CallableEnergy(lambda x: jnp.where((x[1] < -0.2) | (x[1] > 0.4), 0.0, jnp.inf), 2)
    values = cg.FokkerPlanckGrid([(-1, 1)] * 2, (25, 20), 0.7).spectrum(energy, 3)
    slow = -0.7 * 25**2 * np.sin(np.pi / 50) ** 2
    np.testing.assert_allclose(values, [0, slow, slow], rtol=1e-9)


def test_removed_cells_add_no_zeros():
    """One connected room among many removed cells has one zero, which is left out."""
    grid = cg.FokkerPlanckGrid([(-1.5, 1.5)] * 2, (20, 20), 0.7)
    cells = int(np.sum(grid.gibbs(disc()) > 0))
    values = grid.spectrum(disc(), cells - 1)
    assert len(values) == cells - 1
    assert values[0] < -2
    with pytest.raises(ValueError, match=rf"cells where the energy is finite - 1 = {cells - 1}; got {cells}"):
        grid.spectrum(disc(), cells)


# Gibbs measures and measures of a density -----------------------------------------------------------


def test_restricted_gaussian_by_erf():
    """exp(-|x|²/(2ε)) on x > ½, |y| < 1: a product of truncated Gaussians, whose error is of second order."""
    energy = cg.CallableEnergy(
        lambda x: jnp.where((x[0] > 0.5) & (jnp.abs(x[1]) < 1), (x[0] ** 2 + x[1] ** 2) / 2, jnp.inf), 2
    )
    grid = cg.FokkerPlanckGrid([(-1, 4.5), (-2, 2)], (275, 200), HEAT)
    edges = [np.linspace(low, high, n + 1) for (low, high), n in zip(grid.bounds, grid.shape, strict=True)]
    one = np.diff(erf(np.clip(edges[0], 0.5, None) / np.sqrt(2 * HEAT)))
    two = np.diff(erf(np.clip(edges[1], -1, 1) / np.sqrt(2 * HEAT)))
    expected = np.outer(one / one.sum(), two / two.sum())
    gibbs = grid.gibbs(energy)
    assert np.abs(gibbs - expected).sum() < 1e-3
    assert ((gibbs > 0) == (expected > 0)).all()
    # E[x²/2] of the half line: integrate by parts
    tail = np.sqrt(np.pi * HEAT / 2) * (1 - erf(0.5 / np.sqrt(2 * HEAT)))
    first = HEAT / 2 + HEAT * 0.5 * np.exp(-0.125 / HEAT) / (2 * tail)
    bulk = np.sqrt(2 * np.pi * HEAT) * erf(1 / np.sqrt(2 * HEAT))
    second = HEAT / 2 - HEAT * np.exp(-0.5 / HEAT) / bulk
    assert grid.mean_energy(gibbs, energy) == pytest.approx(first + second, rel=1e-3)


@pytest.mark.parametrize("flux", FLUXES)
@pytest.mark.parametrize("room", ROOMS)
def test_measures_are_those_of_the_smaller_grid(room, flux):
    (walled, whole), (plain, part), place = ROOMS[room](flux=flux)
    small = random_masses(part.shape)
    small.ravel()[3] = 0.0  # an empty cell that remains
    small /= small.sum()
    masses = embed(small, whole.shape, place)
    for name in ("mean_energy", "free_energy", "kl", "dissipation"):
        value = getattr(whole, name)(masses, walled)
        assert isinstance(value, float)
        assert value == pytest.approx(getattr(part, name)(small, plain), rel=1e-10)
    gibbs = whole.gibbs(walled)
    assert abs(whole.kl(gibbs, walled)) < 1e-12
    assert 0 <= whole.dissipation(gibbs, walled) < 1e-12
    drop = whole.free_energy(masses, walled) - whole.free_energy(gibbs, walled)
    assert drop == pytest.approx(HEAT * whole.kl(masses, walled), rel=1e-10)


def test_mass_behind_a_wall_is_infinitely_far():
    (walled, whole), _, _ = rectangle()
    masses = np.array(whole.gibbs(walled)) * 0.9
    masses[15, 0] = 0.1
    for name in ("mean_energy", "free_energy", "kl"):
        assert getattr(whole, name)(masses, walled) == np.inf
    assert 0 <= whole.dissipation(masses, walled) < 1e-12


def test_dissipation_is_minus_the_derivative_of_kl():
    grid, energy = cg.FokkerPlanckGrid([(-1.2, 1.2)] * 2, (24, 24), HEAT), disc()
    kept = np.array(grid.gibbs(energy)) > 0
    rho = random_masses(grid.shape) * kept + 0.5 * grid.gibbs(energy)
    rho /= rho.sum()
    slope = grid.generator(energy) @ rho.ravel()
    expected = -np.sum(slope[kept.ravel()] * np.log(rho[kept] / grid.gibbs(energy)[kept]))
    assert grid.dissipation(rho, energy) == pytest.approx(expected, rel=1e-10)


# Motion ---------------------------------------------------------------------------------------------

MOVES = {
    "chebyshev": ({}, None),
    "implicit": ({"step": 0.02}, None),
    "annealed": ({}, cg.Annealing(3.0, 0.1)),
    "annealed implicit": ({"step": 0.02}, cg.Annealing(3.0, 0.1)),
    "transport": ({}, cg.TransportRamp(0.03, 0.05)),
}


@pytest.mark.parametrize("flux", FLUXES)
@pytest.mark.parametrize("move", MOVES)
def test_motion_is_that_of_the_smaller_grid(move, flux):
    options, schedule = MOVES[move]
    (walled, whole), (plain, part), place = rectangle(flux=flux, **options)
    small = random_masses(part.shape)
    ends = run(whole, walled, embed(small, whole.shape, place), 0.02, [1, 3, 6], schedule)
    with pytest.warns(UserWarning, match="grid is too small"):  # there the walls are the border
        expected = run(part, plain, small, 0.02, [1, 3, 6], schedule)
    behind = embed(np.ones(part.shape), whole.shape, place) == 0
    for end, other in zip(ends, expected, strict=True):
        assert end.sum() == pytest.approx(1, abs=1e-13)
        assert end.min() >= 0
        assert (np.asarray(end)[behind] == 0).all()
        assert np.abs(end - embed(other, whole.shape, place)).sum() < 3e-11


@pytest.mark.parametrize("move", ["chebyshev", "implicit"])
def test_kl_falls_to_an_exact_equilibrium(move):
    options, _ = MOVES[move]
    energy = cg.CallableEnergy(lambda x: jnp.where((x**2).sum(0) < 1, 0.5 * x[0] * x[1] + 0.3 * x[0], jnp.inf), 2)
    grid = cg.FokkerPlanckGrid([(-1.2, 1.2)] * 2, (30, 30), HEAT, **options)
    gibbs = grid.gibbs(energy)
    start = random_masses(grid.shape) * (np.array(gibbs) > 0)
    snapshots = run(grid, energy, start / start.sum(), 0.02, [1] * 6 + [1200])
    values = [grid.kl(start / start.sum(), energy), *(grid.kl(m, energy) for m in snapshots)]
    assert np.all(np.diff(values) < 0)
    assert np.abs(snapshots[-1] - gibbs).sum() < 1e-10
    (still,) = run(grid, energy, gibbs, 0.02, [50])
    assert np.abs(still - gibbs).sum() < 1e-12


def test_every_series_keeps_removed_cells_empty():
    rng = np.random.default_rng(2)
    energy = rng.uniform(0, 1.0, (9, 8))
    energy[rng.random((9, 8)) < 0.3] = np.inf
    volume = FiniteVolume(energy, (0.1, 0.1), 0.7)
    kept = np.isfinite(energy)
    masses = random_masses((9, 8)) * kept
    masses /= masses.sum()
    move, time = Exponential(volume), 0.004
    ends = [
        move._uniform_series(masses, time),
        move._raw_series(masses, time),
        move._symmetric_series(move._scaled(masses), time),
        move(masses, time),
    ]
    for end in ends:
        assert (end[~kept] == 0).all()
        assert np.abs(end - ends[0]).sum() < 1e-11
    assert (BackwardEuler(volume, 0.01)(masses)[~kept] == 0).all()


def test_steep_energies_are_moved_by_every_plan():
    """A steep slope against a wall takes the uniform series: E/ε rises by 60 a cell."""
    energy = cg.CallableEnergy(lambda x: jnp.where((x[0] > -1) & (x[0] < 1), 400 * x[0], jnp.inf), 1)
    grid = cg.FokkerPlanckGrid([(-2, 2)], (40,), 0.7)
    masses = embed(random_masses((20,)), (40,), (slice(10, 30),))
    assert Exponential(grid._volume(energy))._plan(masses, 0.05)[0] == "uniform"
    (end,) = run(grid, energy, masses, 0.05)
    assert (end[:10] == 0).all()
    assert end[10] > 0.999


def test_rooms_keep_their_mass():
    energy = cg.CallableEnergy(lambda x: jnp.where((jnp.abs(x[0]) < 1) & (jnp.abs(x[0]) > 0.25), x[0], jnp.inf), 1)
    grid = cg.FokkerPlanckGrid([(-1.25, 1.25)], (50,), HEAT)
    masses = np.zeros(50)
    masses[10], masses[40] = 0.3, 0.7
    (end,) = run(grid, energy, masses, 20.0)
    assert end[:25].sum() == pytest.approx(0.3, abs=1e-11)
    gibbs = np.array(grid.gibbs(energy))
    np.testing.assert_allclose(end[25:] / 0.7, gibbs[25:] / gibbs[25:].sum(), atol=1e-10)
    assert grid.kl(end, energy) > 0.1


def test_without_noise_mass_comes_to_rest_at_the_wall():
    energy = cg.CallableEnergy(lambda x: jnp.where(jnp.abs(x[0]) < 1, -x[0], jnp.inf), 1)
    grid = cg.FokkerPlanckGrid([(-2, 2)], (40,), 0.5)
    masses = np.zeros(40)
    masses[15:25] = 0.1
    (end,) = run(grid, energy, masses, 3.0, (2,), lambda t: 0.0)
    assert end[29] == pytest.approx(1, abs=1e-9)
    assert end[30:].sum() == 0


def test_closed_loop_runs_in_a_disc():
    grid, energy = cg.FokkerPlanckGrid([(-1.2, 1.2)] * 2, (24, 24), HEAT), disc()
    response = cg.ClosedLoop(grid, energy).simulate(np.array([[0.1, 0.2], [0.3, -0.2]]), 3.0, record=8)
    assert np.isfinite(response.kl).all()
    assert np.all(np.diff(response.kl) < 0)
    # in the end at twice the gap, from the slowest mode; the next one is 3.05² / 1.84² = 2.75 times as fast
    rate = -np.log(response.kl[-1] / response.kl[-2]) / (response.time[-1] - response.time[-2])
    assert rate == pytest.approx(-2 * grid.spectrum(energy, 1)[0], rel=0.02)


# What comes in --------------------------------------------------------------------------------------

HALF = cg.CallableEnergy(lambda x: jnp.where(x[0] > 0, x[0] ** 2 / 2, jnp.inf), 1)


class Source:
    def sample(self, key, n):
        return np.linspace(-1, 3, n)[:, None]


@pytest.mark.parametrize(
    ("initial", "share"),
    [
        (cg.Gaussian([0.5], 0.25), "0.158"),
        (np.full(80, 1 / 80), "0.5"),
        (np.array([[0.3], [1.0], [2.0], [-0.1]]), "0.25"),
        (Source(), "0.25"),
    ],
    ids=["distribution", "masses", "particles", "samples"],
)
def test_a_start_behind_a_wall_is_refused(initial, share):
    grid = cg.FokkerPlanckGrid([(-4, 4)], (80,), 0.3)
    message = (
        rf"^{share} of the initial density is on cells where the energy is \+inf.* Restrict the start to the safe set"
    )
    with pytest.raises(ValueError, match=message):
        grid.start(HALF, initial, step=0.1)


def test_rounding_behind_a_wall_is_taken_away():
    grid = cg.FokkerPlanckGrid([(-4, 4)], (80,), 0.3)
    start = grid.start(HALF, cg.Gaussian([2.0], 0.07), step=0.1).snapshot()  # 7.6 σ: 2e-14 of its mass
    assert (start[:40] == 0).all()
    assert start.sum() == pytest.approx(1, abs=1e-15)
    assert 0 < grid.discretise(cg.Gaussian([2.0], 0.07))[:40].sum() < 1e-13
    assert np.isfinite(grid.kl(start, HALF))
    with pytest.raises(ValueError, match="of the initial density is on cells where the energy is"):
        grid.start(HALF, cg.Gaussian([2.0], 0.1), step=0.1)  # 6.3 σ: 1e-10


def test_the_restriction_that_the_error_asks_for():
    grid = cg.FokkerPlanckGrid([(-4, 4)], (80,), 0.3)
    masses = np.array(grid.discretise(cg.Gaussian([0.5], 0.25)))
    masses[np.isinf(HALF(grid.cells.reshape(-1, 1)).reshape(grid.shape))] = 0
    start = grid.start(HALF, masses / masses.sum(), step=0.1).snapshot()
    assert (start[:40] == 0).all()


def test_a_wall_at_the_border_is_not_too_small_a_grid():
    """Warnings are errors: a disc that touches its box, and a wall within it, need no larger bounds."""
    for half in (1.0, 1.2):
        grid = cg.FokkerPlanckGrid([(-half, half)] * 2, (20, 20), HEAT)
        grid.start(disc(), grid.gibbs(disc()), step=0.1)


def test_the_border_warning_counts_cells_at_an_open_border():
    """The strip |y| < 1 in the box (-1, 1)²: its ends are cut by the box, a tenth of it in either end's cells."""
    strip = cg.CallableEnergy(lambda x: jnp.where(jnp.abs(x[1]) < 1, 0.0, jnp.inf), 2)
    grid = cg.FokkerPlanckGrid([(-1, 1)] * 2, (20, 30), HEAT)
    with pytest.warns(UserWarning, match=r"too small: 0\.1 of the (initial|Gibbs)") as record:
        grid.start(strip, grid.gibbs(strip), step=0.1)
    assert len(record) == 2  # the initial density, and the Gibbs measure
    assert "0.1 of the initial density" in str(record[0].message)


@pytest.mark.parametrize(
    ("potential", "message"),
    [
        (
            lambda x: jnp.where(x[0] > 0, x[0], -jnp.inf),
            r"or \+inf behind a wall, .* is -inf at x = \[-3.5\] and neither",
        ),
        (lambda x: jnp.where(x[0] > 0, jnp.inf, jnp.log(x[0])), r"is nan at x = \[-3.5\] and neither on 4 of 8 cells"),
        (lambda x: jnp.where(x[0] > 9, x[0], jnp.inf), r"is \+inf on every cell of \[\(-4.0, 4.0\)\]: nothing is left"),
    ],
)
def test_energies_that_are_no_walls(potential, message):
    grid = cg.FokkerPlanckGrid([(-4, 4)], (8,), 1.0)
    with pytest.raises(ValueError, match=message):
        grid.gibbs(cg.CallableEnergy(potential, 1))


def test_one_cell_is_a_plant_too():
    energy = cg.CallableEnergy(lambda x: jnp.where(jnp.abs(x[0] - 0.5) < 0.5, 2.0, jnp.inf), 1)
    grid = cg.FokkerPlanckGrid([(-4, 4)], (8,), 1.0)
    one = np.eye(8)[4]
    np.testing.assert_array_equal(grid.gibbs(energy), one)
    for scheme in ("chebyshev", "implicit"):
        plant = cg.FokkerPlanckGrid([(-4, 4)], (8,), 1.0, scheme=scheme)
        np.testing.assert_array_equal(run(plant, energy, one, 0.5, [2])[0], one)
    assert grid.kl(one, energy) == 0
    assert grid.dissipation(one, energy) == 0
    assert grid.mean_energy(one, energy) == 2.0
