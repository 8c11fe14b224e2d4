"""Measured rates against closed forms, another discretisation, and the exact rate of the discrete loop."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import eigh_tridiagonal

import ctrlgen as cg
from ctrlgen.certify.rates import Rate, _at_no_width, _cut_to_walls, fitted_rate, spectral_gap_rate
from ctrlgen.constraint import Constraint
from ctrlgen.constraints import Constraints
from ctrlgen.energies.walls import Walls
from ctrlgen.field import Field

WELL = cg.SymbolicEnergy("(x**2 - 1)**2 + y**2/2", ["x", "y"])


def schroedinger_gap(energy, heat, half, count=6000):
    """The gap of a 1-D energy, from -ε ψ'' + (E'²/(4ε) - E''/2) ψ by central differences, extrapolated."""
    gaps = []
    for n in (count, 2 * count):
        x, h = np.linspace(-half, half, n, retstep=True)
        slope, curvature = energy.gradient(x[:, None])[:, 0], energy.hessian(x[:, None])[:, 0, 0]
        diagonal = 2 * heat / h**2 + slope**2 / (4 * heat) - curvature / 2
        values = eigh_tridiagonal(diagonal, np.full(n - 1, -heat / h**2), select="i", select_range=(0, 1))[0]
        gaps.append(values[1] - values[0])
    return gaps[1] + (gaps[1] - gaps[0]) / 3


@pytest.mark.parametrize(
    ("energy", "heat"),
    [
        (cg.Quadratic([[2.0]], [3.0]), 0.5),
        (cg.Quadratic([[2.0, 0.5], [0.5, 1.0]], [-4.0, 0.0]), 0.7),
        (cg.Quadratic(np.diag([1.0, 100.0]), [5.0, 5.0]), 1.0),
    ],
    ids=["1-D", "2-D", "stiff"],
)
def test_the_gap_of_a_quadratic_is_its_smallest_curvature(energy, heat):
    rate = spectral_gap_rate(energy, heat)
    exact = 2 * np.linalg.eigvalsh(energy.precision)[0]
    assert abs(rate.value - exact) <= rate.error
    assert rate.error < 1e-3 * exact


@pytest.mark.parametrize(("barrier", "heat"), [(1.0, 0.2), (1.0, 0.5), (2.0, 1.0)])
def test_the_gap_of_a_double_well_is_that_of_its_schroedinger_operator(barrier, heat):
    energy = cg.DoubleWell(1, barrier=barrier)
    rate, exact = spectral_gap_rate(energy, heat), 2 * schroedinger_gap(energy, heat, 3.5)
    assert abs(rate.value - exact) <= rate.error + 1e-7 * exact
    assert rate.error < 1e-5 * exact


def test_the_reference_case_to_three_digits():
    # the reference gap, 0.01119, is that of its own grid of 60 nodes on ±2.2, ends included; the limit is 0.8 % below
    half = 2.2 * 60 / 59
    stated = -cg.FokkerPlanckGrid([(-half, half)] * 2, (60, 60), 0.2).spectrum(WELL, 1)[0]
    assert stated == pytest.approx(0.01119, abs=5e-6)
    coarse = spectral_gap_rate(WELL, 0.2, [(-half, half)] * 2, sides=(30, 60, 120), tolerance=1e-12)
    assert coarse.value / 2 == pytest.approx(stated, rel=0.01)
    exact = 2 * schroedinger_gap(cg.DoubleWell(1), 0.2, 3.0)  # along x; the gap along y is 1
    for rate in (coarse, spectral_gap_rate(WELL, 0.2), spectral_gap_rate(WELL, 0.2, [(-2.2, 2.2)] * 2)):
        assert abs(rate.value - exact) <= rate.error + 1e-7 * exact
        assert rate.value == pytest.approx(exact, rel=5e-4)


def test_v_falls_at_the_gap_rate_in_the_end():
    energy, heat = cg.DoubleWell(1), 0.4
    grid = cg.FokkerPlanckGrid([(-3, 3)], (400,), heat)
    response = cg.ClosedLoop(grid, energy).simulate(cg.Gaussian([0.8], 0.1), 30.0, record=31)
    slope = -np.log(response.kl[-1] / response.kl[-6]) / (response.time[-1] - response.time[-6])
    assert spectral_gap_rate(energy, heat).value == pytest.approx(slope, rel=1e-3)


def test_a_gap_below_rounding_is_known_to_be_small_only():
    rate = spectral_gap_rate(cg.DoubleWell(1), 0.01)  # barrier / ε = 100: e^-100
    assert 0 <= rate.value <= rate.error
    assert 0 < rate.error < 1e-6


def test_a_domain_that_cuts_shows_in_the_answer():
    inside = spectral_gap_rate(cg.Quadratic([[1.0]]), 1.0, [(-1.0, 1.0)])

    # -u'' + x u' = λu on (-1, 1) with u'(±1) = 0: λ from the series of odd solutions
    def ends(value):
        term, total, k = 1.0, 1.0, 0
        while k < 60:  # u = Σ aⱼ x^{2j+1}, a_{j+1} = aⱼ (2j + 1 - λ) / ((2j + 2)(2j + 3)); u'(1) = Σ (2j + 1) aⱼ
            term *= (2 * k + 1 - value) / ((2 * k + 2) * (2 * k + 3))
            k += 1
            total += (2 * k + 1) * term
        return total

    from scipy.optimize import brentq

    assert inside.value / 2 == pytest.approx(brentq(ends, 1.5, 6.0), rel=1e-5)


# Hard walls ---------------------------------------------------------------------------------------------------


def walled(inside, dim, potential=lambda x: 0.0 * x[0]):
    """+inf outside a set."""
    return cg.CallableEnergy(lambda x: jnp.where(inside(x), potential(x), jnp.inf), dim)


INTERVAL = walled(lambda x: jnp.abs(x[0] - 0.2) < 1.3, 1)
DISC = walled(lambda x: x[0] ** 2 + x[1] ** 2 < 1, 2)
TILTED = walled(lambda x: jnp.maximum(jnp.abs(0.8 * x[0] + 0.6 * x[1]), jnp.abs(0.6 * x[0] - 0.8 * x[1])) < 0.7, 2)
DIAMOND = walled(lambda x: jnp.abs(x[0]) + jnp.abs(x[1]) < 1, 2)
CORNER = walled(lambda x: (jnp.maximum(jnp.abs(x[0]), jnp.abs(x[1])) < 1) & ((x[0] < 0) | (x[1] < 0)), 2)


@pytest.mark.parametrize("bounds", [None, [(-2.0, 1.9)], [(-1.1, 1.5)]], ids=["found", "wide", "exact"])
def test_the_gap_of_an_interval_between_walls(bounds):
    rate, exact = spectral_gap_rate(INTERVAL, 0.7, bounds), 2 * 0.7 * (np.pi / 2.6) ** 2
    assert abs(rate.value - exact) <= rate.error
    assert rate.error < 1e-5 * exact


@pytest.mark.parametrize("bounds", [None, [(-1.0, 1.3), (-2.0, 2.0)]], ids=["found", "given"])
def test_flat_walls_cost_no_accuracy(bounds):
    """A half plane: of x²/2 on x > 0 the odd modes are gone, and 2 is the slowest; y is at 3 for itself."""
    energy = walled(lambda x: x[0] > 0, 2, lambda x: (x[0] ** 2 + 3 * x[1] ** 2) / 2)
    if bounds is None:
        rate, exact = spectral_gap_rate(energy, 1.0), 4.0
    else:
        energy = walled(lambda x: (jnp.abs(x[0]) < 0.77) & (jnp.abs(x[1] - 0.1) < 0.61), 2)
        rate, exact = spectral_gap_rate(energy, 1.0, bounds), 2 * (np.pi / 1.54) ** 2
    assert abs(rate.value - exact) <= rate.error
    assert rate.error < 1e-4 * exact


STAIRS = {
    "disc": (DISC, 1.8411837813**2),
    "tilted": (TILTED, (np.pi / 1.4) ** 2),
    "diamond": (DIAMOND, np.pi**2 / 2),
    "corner": (CORNER, 1.4756218),
}
BOUNDS = {"found": None, "given": [(-1.2, 1.25), (-1.2, 1.21)]}


@pytest.mark.parametrize(
    ("energy", "exact", "bounds"),
    [
        # where the box is found the corner's is the worst; the others are in the slow tests
        pytest.param(
            *case, box, id=f"{way}-{name}", marks=[pytest.mark.slow] if way == "found" and name != "corner" else []
        )
        for way, box in BOUNDS.items()
        for name, case in STAIRS.items()
    ],
)
def test_staircases_are_in_the_error(energy, exact, bounds):
    """Corner: Dauge's benchmark for the L shape; its mode has a singular gradient, which costs accuracy too."""
    rate = spectral_gap_rate(energy, 0.6, bounds, sides=(30, 60, 120))
    assert abs(rate.value - 1.2 * exact) <= rate.error
    assert 5e-4 * exact < rate.error < 0.03 * exact


def test_rooms_without_connection_have_no_gap():
    rate = spectral_gap_rate(walled(lambda x: (jnp.abs(x[0]) < 1) & (jnp.abs(x[0]) > 0.1), 1), 1.0)
    assert 0 <= rate.value <= rate.error < 1e-6


def test_a_box_is_cut_to_flat_walls_only():
    box = [(-2.0, 3.0), (-2.0, 2.0)]
    rectangle = walled(lambda x: (jnp.abs(x[0]) < 1) & (x[1] > -0.4), 2)
    np.testing.assert_allclose(_cut_to_walls(rectangle, box, 0.0), [(-1, 1), (-0.4, 2)], atol=1e-12)
    assert _cut_to_walls(DISC, box, 0.0) == box
    assert _cut_to_walls(WELL, box, 0.0) == box
    # a corridor a twentieth of the box wide leaves the rectangle
    corridor = walled(lambda x: ((jnp.abs(x[0]) < 1) | ((x[0] < 2) & (jnp.abs(x[1] - 0.3) < 0.1))) & (x[0] > -1), 2)
    np.testing.assert_allclose(_cut_to_walls(corridor, box, 0.0), [(-1, 2), (-2, 2)], atol=1e-12)
    np.testing.assert_allclose(_cut_to_walls(INTERVAL, [(-3.0, 1.0)], 0.0), [(-1.1, 1.0)], atol=1e-12)
    # a box that was found ends before the walls, or a little after them
    found = [(-0.97, 1.01), (-0.38, 2.0)]
    np.testing.assert_allclose(_cut_to_walls(rectangle, found, 0.08), [(-1, 1), (-0.4, 2.0)], atol=1e-12)
    upside = walled(lambda x: (jnp.abs(x[0]) < 1) & (x[1] < 0.4), 2)
    mirrored = [(-0.97, 1.01), (-2.0, 0.38)]
    np.testing.assert_allclose(_cut_to_walls(upside, mirrored, 0.08), [(-1, 1), (-2.0, 0.4)], atol=1e-12)
    np.testing.assert_allclose(_cut_to_walls(DISC, [(-1.0, 1.0)] * 2, 0.1), [(-1.2, 1.2)] * 2, atol=1e-12)
    assert _cut_to_walls(WELL, found, 0.08) == found


def test_the_line_to_no_width():
    width = np.geomspace(0.01, 0.04, 16)
    value, error = _at_no_width(width, 2 - 3 * width)
    assert value == pytest.approx(2, rel=1e-12)
    assert error < 1e-10
    noise = 0.1 * np.random.default_rng(0).standard_normal((400, 16)) * width
    found = np.array([_at_no_width(width, 2 - 3 * width + row) for row in noise])
    off = np.abs(found[:, 0] - 2)
    assert np.mean(off > found[:, 1]) < 0.01
    assert np.median(found[:, 1]) < 8 * np.std(found[:, 0])
    bent, allowed = _at_no_width(width, 2 - 3 * width + 20 * width**2)
    assert abs(bent - 2) <= allowed
    assert _at_no_width(width, 0.0 * width) == (0.0, 0.0)


@pytest.mark.parametrize("length", [20, pytest.param(50, marks=pytest.mark.slow)])
def test_a_mode_that_reaches_farther_than_the_mass(length):
    """E = 3x between walls: ε/4 (E'/ε)² + ε (π/L)², though all but 1e-10 of the mass is in the first 7.7."""
    inside = Constraints([Constraint(Field(f"x*({length} - x)", ["x"]))])
    rate = spectral_gap_rate(cg.SymbolicEnergy("3*x", ["x"]) + Walls(inside), 1.0)
    exact = 2 * (9 / 4 + (np.pi / length) ** 2)
    assert abs(rate.value - exact) <= rate.error
    assert rate.error < 2e-3 * exact


@pytest.mark.slow
def test_the_border_of_a_half_line_is_in_the_error():
    inside = Constraints([Constraint(Field("x", ["x"]))])
    rate = spectral_gap_rate(cg.SymbolicEnergy("3*x", ["x"]) + Walls(inside), 1.0)
    assert abs(rate.value - 4.5) <= rate.error < 1e-2


def test_rooms_that_a_lattice_misses_have_no_gap():
    inside = Constraints([Constraint(Field("-(x - 1)*(x - 11/10)*(x + 2)*(x + 3)", ["x"]))])
    rate = spectral_gap_rate(cg.Quadratic([[1.0]]) + Walls(inside), 1.0)
    assert 0 <= rate.value <= rate.error < 1e-5


# Fitted rates -----------------------------------------------------------------------------------------------


def rotated(d, largest=8.0, seed=1):
    basis = np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))[0]
    matrix = (basis * np.geomspace(1.0, largest, d)) @ basis.T
    return cg.Quadratic((matrix + matrix.T) / 2, np.random.default_rng(seed).standard_normal(d))


@pytest.mark.parametrize("d", [4, 10])
@pytest.mark.slow
def test_a_fitted_rate_is_twice_the_slowest_mode(d):
    energy, h = rotated(d), 0.1 / 8
    rate = fitted_rate(energy, 0.5, key=3)
    exact = -2 * math.log(1 - h) / h  # of the Euler loop, κ = 1; 2κ in the limit
    assert abs(rate.value - exact) < 3.5 * rate.error
    assert rate.error < 0.04 * exact
    assert rate.interval[0] < rate.value < rate.interval[1]
    # Student's t over 8 groups: 2.365 standard errors
    assert rate.interval[1] - rate.value == pytest.approx(2.3646 * rate.error, rel=1e-3)
    assert rate.resolved
    assert rate.duration * rate.value / 2 >= 6
    assert "slowest linear observable" in rate.note


@pytest.mark.slow
def test_a_fitted_rate_crosses_a_barrier():
    energy = cg.DoubleWell(4)
    exact = spectral_gap_rate(cg.DoubleWell(1), 0.5).value  # separable: the slowest mode is that of the first axis
    rate = fitted_rate(energy, 0.5, key=1, particles=4000)
    assert abs(rate.value - exact) < 3.5 * rate.error
    assert rate.error < 0.1 * exact


def test_a_fitted_rate_of_a_given_loop_and_start():
    energy = cg.Quadratic(np.diag([1.0, 5.0]))
    loop = cg.ClosedLoop(cg.Langevin(0.3, 0.02, metric=[0.25, 5.0]), energy)  # M⁻¹P = diag(4, 1)
    rate = fitted_rate(energy, 0.3, loop, cg.Gaussian([2.0, 2.0], 0.1), key=2)
    exact = -2 * math.log(1 - 0.02) / 0.02
    assert abs(rate.value - exact) < 3.5 * rate.error
    assert rate.duration == pytest.approx(rate.steps * 0.02)


def test_what_a_run_does_not_resolve_has_no_rate():
    unresolved = fitted_rate(
        cg.Quadratic(np.eye(2)), 1.0, initial=cg.Gaussian(np.zeros(2), 1.0), particles=400, steps=200
    )
    assert not unresolved.resolved
    assert math.isnan(unresolved.value)
    assert unresolved.interval == (0.0, math.inf)
    assert "no decay was resolved" in unresolved.note


def test_rates_are_reproducible_and_estimates():
    energy = cg.Quadratic(np.diag([1.0, 2.0]))
    first, second = (fitted_rate(energy, 0.3, key=5, particles=800) for _ in range(2))
    assert first == second
    assert isinstance(first, Rate)
    assert isinstance(first, cg.Estimate)
    assert fitted_rate(energy, 0.3, key=6, particles=800).value != first.value


# Bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: spectral_gap_rate(cg.DoubleWell(3), 1.0), "1 or 2 dimensions for a grid; it has 3. Use fitted_rate"),
        (lambda: spectral_gap_rate(WELL, -1.0), "temperature must be positive"),
        (lambda: spectral_gap_rate(WELL, 1.0, sides=(10, 20)), "at least three numbers, each twice the one before"),
        (lambda: spectral_gap_rate(WELL, 1.0, sides=(10, 20, 30)), "each twice the one before"),
        (lambda: fitted_rate(WELL, 0.0), "temperature must be positive"),
        (lambda: fitted_rate(WELL, 1.0, replicates=2), "replicates must be at least 3"),
        (lambda: fitted_rate(WELL, 1.0, particles=100), "with 20 particles each; got 8 replicates of 100"),
        (lambda: fitted_rate(WELL, 1.0, level=1.0), "level must be between 0 and 1"),
        (
            lambda: fitted_rate(WELL, 1.0, cg.ClosedLoop(cg.Langevin(0.5, 0.1), WELL)),
            "loop must be one of particles .* got Langevin at temperature 0.5",
        ),
        (
            lambda: fitted_rate(WELL, 1.0, cg.ClosedLoop(cg.Langevin(1.0, 0.1), cg.DoubleWell(2))),
            "under DoubleWell",
        ),
        (lambda: spectral_gap_rate(cg.SymbolicEnergy("sin(x)", ["x"]), 1.0), "does not decay"),
    ],
)
def test_bad_requests(call, message):
    with pytest.raises(ValueError, match=message):
        call()
