"""The Gibbs measure as a distribution: quadrature, closed forms, and distribution functions of the draws."""

import numpy as np
import pytest
from scipy import stats

import ctrlgen as cg
from ctrlgen.constraint import Constraint
from ctrlgen.constraints import Constraints
from ctrlgen.energies.walls import LogBarrier, Walls
from ctrlgen.field import Field
from ctrlgen.gibbs import _Rejection

LEVEL = 1e-4  # a correct sampler fails a test at this level once in ten thousand seeds; the seeds are fixed
SPD = np.array([[2.0, 0.5], [0.5, 1.0]])


def grid(reach=6.0, n=600):
    axis = (np.arange(n) + 0.5) / n * 2 * reach - reach
    return np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2), (2 * reach / n) ** 2


def marginal(energy, temperature, axis, reach=8.0, n=800):
    """The distribution function of one coordinate in 2-D, by summing exp(-E/ε) over a grid."""
    points, _ = grid(reach, n)
    masses = np.exp(-energy(points) / temperature).reshape(n, n).sum(axis=1 - axis)
    edges = np.linspace(-reach, reach, n + 1)
    ladder = np.concatenate([[0.0], np.cumsum(masses) / masses.sum()])
    return lambda x: np.interp(x, edges, ladder)


ENERGIES = {
    "well": (cg.DoubleWell(barrier=2.0), 0.5),
    "ring": (cg.Ring(), 0.3),
    "product": (0.5 * cg.Ring() + cg.Quadratic(0.3 * SPD, [1.0, 0.0]), 0.4),
    "either": (cg.mixture([cg.Ring(), cg.Quadratic(SPD, [2.0, 1.0])], 0.4, [1.0, 3.0]), 0.4),
    "either, at another temperature": (cg.mixture([cg.Ring(), cg.Quadratic(SPD, [2.0, 1.0])], 0.4), 0.8),
    "observed": (cg.condition(cg.DoubleWell(), [1.0, 1.0], 0.5, 0.4, temperature=0.3), 0.3),
    "gaussians": (cg.GaussianMixture([[-1.0, 0.0], [2.0, 1.0]], [SPD, 0.3 * np.eye(2)], temperature=0.7), 0.7),
    "gaussians, colder": (cg.GaussianMixture([[-1.0, 0.0], [2.0, 1.0]], 0.5, temperature=0.7), 0.35),
    "quadratic": (cg.Quadratic(SPD, [1.0, -1.0]), 0.6),
    "linear regression": (cg.condition(cg.Quadratic(SPD), [1.0, 1.0], 0.5, 0.4, temperature=0.3), 0.3),
}
MORE = {"either, at another temperature", "observed", "gaussians, colder"}  # in the slow tests
members = pytest.mark.parametrize(
    ("energy", "temperature"),
    [pytest.param(*case, id=name, marks=[pytest.mark.slow] if name in MORE else []) for name, case in ENERGIES.items()],
)


@members
def test_density_integrates_to_one_and_is_the_gibbs_density(energy, temperature, rng):
    gibbs = cg.Gibbs(energy, temperature)
    points, cell = grid(8.0, 800)
    assert np.exp(gibbs.log_density(points)).sum() * cell == pytest.approx(1.0, abs=3e-6)
    x = rng.normal(size=(10, 2))
    np.testing.assert_allclose(np.diff(gibbs.log_density(x)), -np.diff(energy(x)) / temperature, rtol=1e-9)


@members
def test_draws_follow_the_density(energy, temperature):
    x = cg.Gibbs(energy, temperature).sample(3, 20_000)
    assert x.shape == (20_000, 2)
    for axis in (0, 1):
        assert stats.kstest(x[:, axis], marginal(energy, temperature, axis)).pvalue > LEVEL
    # beyond the marginals: E itself, against the same grid
    points, _ = grid(8.0, 800)
    values = energy(points)
    order = np.argsort(values)
    masses = np.exp(-(values[order] - values.min()) / temperature)
    ladder = np.cumsum(masses) / masses.sum()
    assert stats.kstest(energy(x), lambda v: np.interp(v, values[order], ladder)).pvalue > LEVEL


@members
def test_the_key_decides(energy, temperature):
    gibbs = cg.Gibbs(energy, temperature)
    np.testing.assert_array_equal(gibbs.sample(5, 50), gibbs.sample(5, 50))
    assert (gibbs.sample(5, 50) != gibbs.sample(6, 50)).all()


def test_the_method_is_said():
    ways = {name: cg.Gibbs(*pair).method for name, pair in ENERGIES.items()}
    assert ways["quadratic"] == ways["linear regression"] == "exact, a Gaussian"
    assert ways["gaussians"] == "exact, a mixture of Gaussians"
    assert ways["either"] == "a term by its mass, then from the term (rejection from cells; exact, a Gaussian)"
    for name in ("well", "product", "observed", "gaussians, colder", "either, at another temperature"):
        assert ways[name] == "rejection from cells"
    assert cg.Gibbs(cg.DoubleWell(dim=4), 0.5).method.startswith("MALA")


@pytest.mark.parametrize("dim", [1, 3])
def test_cells_in_one_and_three_dimensions(dim):
    gibbs = cg.Gibbs(cg.DoubleWell(dim=dim, barrier=3.0), 0.4)
    x = gibbs.sample(1, 10_000)
    axis = np.linspace(-4, 4, 4001)
    ladder = np.cumsum(np.exp(-3.0 * (axis**2 - 1) ** 2 / 0.4))
    assert stats.kstest(x[:, 0], lambda v: np.interp(v, axis, ladder / ladder[-1])).pvalue > LEVEL
    for k in range(1, dim):
        assert stats.kstest(x[:, k], stats.norm(0, np.sqrt(0.4)).cdf).pvalue > LEVEL


def test_a_funnel_is_drawn_from_neck_to_mouth():
    v = cg.Gibbs(cg.Funnel(scale=1.5), 1.0).sample(2, 20_000)[:, 0]
    assert stats.kstest(v, stats.norm(0, 1.5).cdf).pvalue > LEVEL


def test_above_three_dimensions_mala_reaches_the_marginals():
    gibbs = cg.Gibbs(cg.DoubleWell(dim=5, barrier=0.3, stiffness=2.0) + cg.Quadratic(np.eye(5), np.ones(5)), 0.5)
    x = gibbs.sample(1, 4000)
    axis = np.linspace(-5, 5, 5001)
    ladder = np.cumsum(np.exp(-(0.3 * (axis**2 - 1) ** 2 + 0.5 * (axis - 1) ** 2) / 0.5))
    assert stats.kstest(x[:, 0], lambda v: np.interp(v, axis, ladder / ladder[-1])).pvalue > LEVEL
    for k in range(1, 5):  # ½ (2 + 1) x² - x
        assert stats.kstest(x[:, k], stats.norm(1 / 3, np.sqrt(0.5 / 3)).cdf).pvalue > LEVEL


def test_a_trained_energy_in_many_dimensions_runs_its_own_loop():
    energy = cg.TrainedEnergy(cg.MLPEnergy(4, width=8), [1.0, 0.0, 0.0, 2.0], temperature=0.5, duration=0.2)
    gibbs = cg.Gibbs(energy, 0.5)
    assert gibbs.method.startswith("its own closed loop")
    assert gibbs.sample(0, 20).shape == (20, 4)
    assert cg.Gibbs(energy, 0.6).method.startswith("MALA")


def test_factors_multiply_to_the_density(rng):
    prior, ring = cg.Quadratic(SPD, [1.0, 0.0]), cg.Ring()
    gibbs = cg.Gibbs(prior + 0.5 * ring, 0.4)
    assert gibbs.factors == ((prior, 1.0), (ring, 0.5))
    x = rng.normal(size=(30, 2))
    product = sum(w * cg.Gibbs(e, 0.4).log_density(x) for e, w in gibbs.factors)
    np.testing.assert_allclose(np.ptp(gibbs.log_density(x) - product), 0, atol=1e-12)
    assert cg.Gibbs(prior, 0.4).factors == ((prior, 1.0),)


def test_components_of_alternatives_have_their_masses(rng):
    terms = [cg.Ring(), cg.Quadratic(SPD, [3.0, 0.0])]
    gibbs = cg.Gibbs(cg.mixture(terms, 0.4, [1.0, 3.0], normalised=True), 0.4)
    parts, masses = zip(*gibbs.components, strict=True)
    np.testing.assert_allclose(masses, [0.25, 0.75], rtol=1e-9)
    x = rng.normal(size=(30, 2)) * 2
    density = sum(m * np.exp(part.log_density(x)) for part, m in zip(parts, masses, strict=True))
    np.testing.assert_allclose(np.exp(gibbs.log_density(x)), density, rtol=2e-6)
    plain = cg.Gibbs(cg.mixture(terms, 0.4, [1.0, 3.0]), 0.4)
    points, _ = grid()
    z = [w * np.exp(-e(points) / 0.4).sum() for w, e in zip([1.0, 3.0], terms, strict=True)]
    np.testing.assert_allclose([m for _, m in plain.components], np.array(z) / sum(z), rtol=1e-5)
    assert cg.Gibbs(terms[0], 0.4).components[0][1] == 1.0


def test_an_outer_factor_is_a_temperature(rng):
    mixture = cg.GaussianMixture([[0.0, 0.0], [2.0, 1.0]], 0.5, temperature=0.8)
    gibbs, x = cg.Gibbs(0.5 * mixture, 0.4), rng.normal(size=(10, 2))
    assert gibbs.method == "exact, a mixture of Gaussians"
    np.testing.assert_allclose(gibbs.log_density(x), mixture.log_density(x), rtol=1e-12)


def test_normalisation_in_closed_form_and_by_quadrature():
    quadratic = cg.Gibbs(cg.Quadratic(SPD, [1.0, 0.0]), 0.5).log_partition
    assert quadratic.error == 0.0
    assert quadratic.value == pytest.approx(np.log(2 * np.pi * 0.5) - 0.5 * np.log(np.linalg.det(SPD)), rel=1e-12)
    found = cg.Gibbs(cg.DoubleWell(), 0.5).log_partition
    exact = cg.measure.log_partition(cg.DoubleWell(), 0.5)
    assert found.value == pytest.approx(exact.value, abs=1e-9)
    assert 0 < found.error < 1e-5


def test_bounds_hold_all_but_a_millionth():
    for energy, temperature in ((cg.DoubleWell(), 0.5), (cg.Quadratic(SPD), 0.5)):
        gibbs = cg.Gibbs(energy, temperature)
        lower, upper = gibbs.bounds
        inside = cg.measure.log_partition(energy, temperature, bounds=gibbs.bounds)
        assert gibbs.log_partition.value - inside.value < 2e-6  # and the error of either quadrature
        assert (upper - lower < 14).all()
    with pytest.raises(ValueError, match="at most 3 dimensions"):
        _ = cg.Gibbs(cg.DoubleWell(dim=4), 0.5).bounds


def test_it_starts_a_loop_and_fills_a_grid():
    energy = cg.DoubleWell(barrier=2.0)
    gibbs, plant = cg.Gibbs(energy, 0.5), cg.FokkerPlanckGrid([(-3, 3), (-4, 4)], (90, 120), 0.5)
    np.testing.assert_allclose(plant.discretise(gibbs), plant.gibbs(energy), rtol=1e-9, atol=1e-12)
    response = cg.ClosedLoop(cg.Langevin(0.5, 0.01), energy).simulate(gibbs, 0.1, particles=500, record=2)
    assert response.final.shape == (500, 2)


def test_it_prints_what_it_is():
    energy = cg.Quadratic(SPD) + 0.5 * cg.Ring()
    assert repr(cg.Gibbs(energy, 0.25)) == "<Gibbs, 2-D: exp(-Quadratic/ε) · exp(-0.5 Ring/ε), ε = 0.25>"
    assert "two_moons" in repr(cg.Gibbs(cg.load_energy("two_moons"), 1.0))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: cg.Gibbs(3, 1.0), TypeError, "energy must be an Energy; got int"),
        (lambda: cg.Gibbs(cg.Ring(), 0.0), ValueError, "temperature must be positive"),
        (lambda: cg.Gibbs(-cg.Quadratic(SPD), 1.0), ValueError, "no Gibbs measure: its quadratic form has the eigen"),
        (lambda: cg.Gibbs(cg.LeastSquares([1.0, 1.0], 1.0, 1.0), 1.0), ValueError, "no Gibbs measure"),
        (lambda: cg.Gibbs(-cg.Ring(), 1.0).sample(0, 3), ValueError, "Gibbs measure"),
        (lambda: cg.Gibbs(cg.Ring(), 1.0).sample(0, 0), ValueError, "n must be an integer"),
        (lambda: cg.Gibbs(cg.Ring(), 1.0).log_density(np.zeros(3)), ValueError, r"x must have shape \(2,\)"),
    ],
)
def test_refusals(make, error, message):
    with pytest.raises(error, match=message):
        make()


# Behind walls -------------------------------------------------------------------------------------------------------


def safe(*formulas, dim=2):
    states = ["x", "y", "z", "u", "v", "w"][:dim]
    return Constraints([Constraint(Field(f, states)) for f in formulas])


DISC = safe("4 - x^2 - y^2")
BALL = safe("4 - x^2 - y^2 - z^2 - u^2 - v^2 - w^2", dim=6)
CORE = safe("0.1 - x^2 - y^2 - z^2 - u^2 - v^2 - w^2", dim=6)
ROUND, ROUND_6 = cg.Quadratic(np.eye(2)), cg.Quadratic(np.eye(6))
NEARLY_ROUND = cg.SymbolicEnergy("x^2/2 + y^2/2 + x^4/10^9", ["x", "y"])  # no Gaussian to draw from


def square_law(dim, power, top=4.0):
    """The distribution function of |x|² under (top - |x|²)^power exp(-|x|²), ε = 0.5."""
    u = np.linspace(0, top, 100_001)
    density = u ** (dim / 2 - 1) * (top - u) ** power * np.exp(-u)
    ladder = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return lambda x: np.interp((x**2).sum(axis=1), u, ladder / ladder[-1])


def beyond(low, direction):
    """The distribution function of a normal coordinate of variance 0.5 above `low`."""
    unit = np.array(direction) / np.linalg.norm(direction)
    return lambda x: 1 - stats.norm.sf(x @ unit, 0, 0.5**0.5) / stats.norm.sf(low, 0, 0.5**0.5)


KEPT = "exact, a Gaussian, what is inside the walls is kept"
WEIGHED = "exact, a Gaussian, kept with the probability Π (h/max h)^{μ/ε}"
CELLS = "rejection from cells"
MALA = "MALA inside the walls, 2000 steps from the deepest point found (approximate)"
BEHIND = {
    "disc": (ROUND + Walls(DISC), KEPT, square_law(2, 0.0)),
    "disc, from cells": (NEARLY_ROUND + Walls(DISC), CELLS, square_law(2, 0.0)),
    "few inside": (ROUND + Walls(safe("x + y - 4.2")), CELLS, beyond(4.2 / 2**0.5, [1.0, 1.0])),
    "area": (Walls(DISC), CELLS, lambda x: (x**2).sum(axis=1) / 4),
    "concave": (
        cg.SymbolicEnergy("-x^2/2 - y^2/2", ["x", "y"]) + Walls(DISC),
        CELLS,
        lambda x: np.expm1((x**2).sum(axis=1)) / np.expm1(4.0),
    ),
    "faint barrier": (NEARLY_ROUND + 0.005 * LogBarrier(DISC), CELLS, square_law(2, 0.01)),
    "barrier": (ROUND + 0.3 * LogBarrier(DISC), WEIGHED, square_law(2, 0.6)),
    "barrier, from cells": (NEARLY_ROUND + 0.3 * LogBarrier(DISC), CELLS, square_law(2, 0.6)),
    "barrier of a half-plane": (
        ROUND + 0.1 * LogBarrier(safe("x")),
        CELLS,
        lambda x: stats.gamma(0.6).cdf(x[:, 0] ** 2),
    ),
    "6-D": (ROUND_6 + Walls(BALL), KEPT, square_law(6, 0.0)),
    "6-D barrier": (ROUND_6 + 0.2 * LogBarrier(BALL), WEIGHED, square_law(6, 0.4)),
    "6-D, few inside": (ROUND_6 + Walls(CORE), MALA, square_law(6, 0.0, 0.1)),
    "6-D, far out": (ROUND_6 + Walls(safe("x - 3", dim=6)), MALA, beyond(3.0, [1.0, 0, 0, 0, 0, 0])),
    "6-D volume": (Walls(BALL), MALA, lambda x: ((x**2).sum(axis=1) / 4) ** 3),
}


@pytest.mark.parametrize(("energy", "method", "law"), BEHIND.values(), ids=BEHIND.keys())
@pytest.mark.slow
def test_draws_behind_walls(energy, method, law):
    gibbs = cg.Gibbs(energy, 0.5)
    assert gibbs.method == method
    x = gibbs.sample(4, 1000 if method == MALA else 10_000)
    assert np.isfinite(energy(x)).all()
    assert stats.kstest(law(x), "uniform").pvalue > LEVEL


@pytest.mark.parametrize(("scale", "power"), [(1, 0.0), (1, 0.02), (1, 3.0), (1000, 3.0)])  # h < 1 and > 1 at the wall
def test_the_envelope_of_cells_behind_walls_is_above_the_density(scale, power):
    disc = safe(f"{scale}*(4 - x^2 - y^2)")
    extra = 0.5 * power * LogBarrier(disc) if power else Walls(disc)
    found = _Rejection(cg.Gibbs(NEARLY_ROUND + extra, 0.5)._cells[0])
    offsets = np.random.default_rng(0).uniform(-1, 1, (len(found.top), 300, 2))
    x = found.centre[:, None] + found.half[:, None] * offsets
    log_density = -found.scaled(x.reshape(-1, 2)).reshape(len(found.top), 300)
    assert np.isneginf(log_density).any(axis=1).sum() > 100  # of the cells are cut
    assert (log_density.max(axis=1) <= found.top).all()


def test_no_draws_from_an_empty_set():
    for energy in (ROUND + Walls(safe("x - 1", "-1 - x")), ROUND_6 + Walls(safe("x - 1", "-1 - x", dim=6))):
        with pytest.raises(ValueError, match="no point inside the walls was found: the safe set is empty"):
            cg.Gibbs(energy, 0.5).sample(0, 10)


def test_density_and_factors_behind_walls():
    walls = Walls(DISC)
    gibbs = cg.Gibbs(ROUND + walls, 0.5)
    points, cell = grid(2.1, 1000)
    assert np.exp(gibbs.log_density(points)).sum() * cell == pytest.approx(1.0, abs=2e-3)
    assert gibbs.log_density(np.array([[3.0, 0.0]]))[0] == -np.inf
    assert gibbs.factors == ((ROUND, 1.0), (walls, 1.0))
    np.testing.assert_allclose(gibbs.bounds, [[-2, -2], [2, 2]], atol=0.2)


def test_draws_reach_every_part_of_a_set():
    """h is positive on -3 < x < -2 and 1 < x < 1.1; the shares are those of h exp(-x²/2) by quadrature."""
    h = "-(x - 1)*(x - 11/10)*(x + 2)*(x + 3)"
    x = np.concatenate([np.linspace(-3, -2, 20_001), np.linspace(1, 1.1, 2_001)])[:, None]
    density = np.maximum(-(x - 1) * (x - 1.1) * (x + 2) * (x + 3), 0.0) ** 0.05 * np.exp(-(x**2) / 2)
    share = density[20_001:].sum() / density.sum()  # both are spaced by 5e-5
    drawn = cg.Gibbs(cg.Quadratic([[1.0]]) + 0.05 * LogBarrier(safe(h, dim=1)), 1.0).sample(0, 20_000)
    assert share > 0.3
    assert abs((drawn > 0).mean() - share) < 3.5 * (share * (1 - share) / 20_000) ** 0.5
