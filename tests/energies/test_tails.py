"""Where sums of energies escape: refused with the direction, and never where a Gibbs measure exists."""

from fractions import Fraction

import equinox as eqx
import numpy as np
import pytest
import sympy as sp

import ctrlgen as cg
from ctrlgen.certify.existence import gibbs_measure_exists
from ctrlgen.energies.tails import find_escape, tail
from ctrlgen.energies.trained import TrainedEnergy

ROUND = cg.Quadratic(np.eye(2))


def symbolic(text):
    return cg.SymbolicEnergy(text, ["x", "y"])


@pytest.mark.parametrize(
    ("energies", "weights", "direction"),
    [
        ([ROUND, ROUND], [1, -2], None),
        ([cg.Quadratic(np.diag([3.0, 1.0])), ROUND], [1, -2], [0, 1]),
        ([cg.Quadratic([[2.0, 1.0], [1.0, 2.0]]), ROUND], [1, -1.5], [1, -1]),
        ([cg.DoubleWell(), ROUND], [1, -2], [0, 1]),
        ([cg.Ring(), symbolic("x**4")], [1, -1], [1, 0]),
        ([cg.MLPEnergy(2, width=4, confinement=0.1), ROUND], [1, -0.2], None),
        ([cg.GaussianMixture([[0, 0], [3.0, 1.0]], 0.5), ROUND], [1, -3], None),
        ([cg.load_energy("two_moons"), ROUND], [1, -1], None),
        ([ROUND, symbolic("x*y")], [1, -1], [1, 1]),  # flat along the diagonal
        ([ROUND, cg.Quadratic(np.eye(2), [1.0, 0.0])], [1, -1], None),  # linear
        ([symbolic("x**4 + y**2"), symbolic("y**3")], [1, -0.1], [0, 1]),  # an odd power
        ([ROUND, cg.LeastSquares([[0.0, 2.0]], [1.0], 0.5)], [1, -1], [0, 1]),
    ],
)
def test_a_sum_that_falls_is_refused_with_a_direction_in_which_it_does(energies, weights, direction):
    with pytest.raises(ValueError, match="no Gibbs measure at any temperature: along the direction"):
        cg.compose(energies, weights)
    found = find_escape(energies, weights)
    assert np.linalg.norm(found.direction) == pytest.approx(1)
    if direction is not None:
        assert abs(found.direction @ direction) == pytest.approx(np.linalg.norm(direction))
    energy = cg.compose(energies, weights, check=False)
    r = np.array([1e3, 1e4, 1e5])
    values = energy(r[:, None] * found.direction)
    assert (np.diff(values) <= 1e-6 * np.abs(values[1:])).all()  # it never rises along it


@pytest.mark.parametrize(
    ("energies", "weights"),
    [
        ([ROUND, ROUND], [1, -0.5]),
        ([cg.DoubleWell(), ROUND], [1, -0.9]),
        ([cg.Ring(), cg.Quadratic(50 * np.eye(2))], [1, -1]),
        ([cg.Banana(), cg.Banana()], [1, -0.5]),
        ([cg.MLPEnergy(2, width=4, confinement=0.3), ROUND], [1, -0.2]),
        ([symbolic("x**4 + y**4"), symbolic("x**2*y**2")], [1, -1.9]),
        ([cg.Funnel(), ROUND], [1, -5]),  # not known: nothing is claimed
        ([cg.MLPEnergy(2, width=4, confinement=0.2), ROUND], [1, -0.2]),  # decided by the network: not known
    ],
)
def test_what_exists_or_is_not_known_is_not_refused(energies, weights):
    energy = cg.compose(energies, weights)
    assert energy.dim == 2


def test_the_operators_refuse_and_name_the_way_out():
    with pytest.raises(ValueError, match="check=False"):
        ROUND - 2 * ROUND
    assert (-ROUND)(np.ones(2)) == -1.0  # a multiple of one energy is for adding
    assert (3 * ROUND + (-2) * ROUND)(np.ones(2)) == 1.0
    assert cg.compose([ROUND, ROUND, ROUND], [1, -3, 3])(np.ones(2)) == 1.0
    loaded = cg.compose([ROUND, ROUND], [1, -2], check=False)
    assert loaded(np.ones(2)) == -1.0


def test_a_refused_sum_survives_the_store(tmp_path):
    energy = cg.compose([ROUND, ROUND], [1, -2], check=False)
    cg.save_energy(energy, tmp_path / "falling")
    assert cg.load_energy(tmp_path / "falling")(np.ones(2)) == -1.0


def test_tails_are_exact():
    found = tail(cg.DoubleWell(barrier=2.0, separation=0.5, stiffness=3.0))
    assert found.exact
    assert float(found.quadratic[0, 0]) == pytest.approx(-4 * 2 / 0.25)  # -2b/a² x₁², twice
    assert float(found.quadratic[1, 1]) == 3.0
    scaled = tail(cg.load_energy("pinwheel"))
    assert not scaled.exact
    energy = cg.load_energy("pinwheel")
    far = 1e6 * np.array([[0.6, 0.8]])
    assert energy(far)[0] == pytest.approx(float(far[0] @ scaled.quadratic.astype(float) @ far[0]) / 2, rel=1e-3)


TILTED = [[1.0, 0.6], [0.6, 1.0]]  # its precision has eigenvalues 1/1.6 and 1/0.4
ONE = cg.GaussianMixture([[0, 0], [3.0, 1.0]], TILTED)
TWO = cg.GaussianMixture([[0, 0], [3.0, 1.0]], [TILTED, np.diag([0.2, 5.0])])
OR = cg.mixture([cg.Quadratic([[2.0, 1.0], [1.0, 2.0]]), cg.Quadratic(np.eye(2), [1.0, 2.0])], 0.5)
MOVED = TrainedEnergy(ONE, center=[1.0, 2.0], scale=[2.0, 0.5])


@pytest.mark.parametrize(
    ("energies", "weights"),
    [
        ([ONE, ROUND], [1, -0.64]),
        ([ROUND, ONE], [1, -0.41]),
        ([TWO, ROUND], [1, -0.21]),
        ([ROUND, TWO], [1, -0.41]),
        ([OR, ROUND], [1, -1.01]),
        ([ROUND, OR], [1, -1.01]),
        ([MOVED, ROUND], [1, -0.25]),
        ([TrainedEnergy(cg.mixture([OR + ROUND, TWO], 1.0), scale=[2.0, 2.0]), ROUND], [1, -0.06]),
        ([cg.MLPEnergy(2, width=4, confinement=0.1, activation="relu"), TWO], [1, -0.5]),
        ([TWO, cg.LeastSquares([[0.0, 1.0]], [1.0], 0.5)], [1, -1]),
        ([TWO, cg.DoubleWell()], [1, -1]),  # the fourth power of the second decides
        ([TWO, symbolic("x**3")], [1, -0.1]),
    ],
)
def test_mixtures_of_any_covariance_are_refused_where_they_fall(energies, weights):
    with pytest.raises(ValueError, match="no Gibbs measure at any temperature: along the direction"):
        cg.compose(energies, weights)
    energy, found = cg.compose(energies, weights, check=False), find_escape(energies, weights)
    values = energy(np.array([1e4, 1e5, 1e6])[:, None] * found.direction)
    assert np.linalg.norm(found.direction) == pytest.approx(1)
    assert (values < 0).all()
    assert (np.diff(values) < 0).all()


@pytest.mark.parametrize(
    ("energies", "weights"),
    [
        ([ONE, ROUND], [1, -0.62]),
        ([ROUND, ONE], [1, -0.39]),
        ([TWO, ROUND], [1, -0.19]),
        ([ROUND, TWO], [1, -0.39]),
        ([OR, ROUND], [1, -0.99]),
        ([ROUND, OR], [1, -0.99]),  # it follows the least of its terms
        ([cg.DoubleWell(), TWO], [1, -0.4]),
        ([TWO, cg.Funnel()], [1, -1]),  # not known
    ],
)
def test_mixtures_of_any_covariance_are_not_refused_where_they_rise(energies, weights):
    assert find_escape(energies, weights) is None
    assert cg.compose(energies, weights).dim == 2


def test_a_network_that_is_no_function_has_no_tail():
    network = cg.MLPEnergy(2, width=4)
    broken = eqx.tree_at(lambda e: e.biases[0], network, network.biases[0].at[0].set(np.nan))
    assert tail(network) is not None
    assert tail(broken) is None
    assert tail(TrainedEnergy(broken, scale=[2.0, 2.0])) is None


def test_the_tail_of_a_formula_with_floats_is_not_rounded():
    ring = cg.Ring(0.3, 0.7, dim=1)
    factor, square = sorted((Fraction(float(v)) for v in ring.symbolic().atoms(sp.Float)), reverse=True)
    assert square < 0 < factor  # of factor (|x|² + square)²
    assert tail(ring).quadratic.tolist() == [[4 * factor * square]]


@pytest.mark.parametrize(
    ("energies", "words"),
    [
        ([cg.SymbolicEnergy("-2*x**2", ["x"]), cg.Quadratic([[1.0]])], r"\[1\.\] E falls like -1\.5 r²"),
        ([cg.LeastSquares([[1.0, 0]], [v], 1.0) for v in (1.0, 2.0)], r"\[0\. 1\.\] E is constant"),
        ([cg.SymbolicEnergy("x**2", ["x", "y"]), cg.SymbolicEnergy("x**4 - y", ["x", "y"])], "E falls like -1 r"),
    ],
    ids=["concave", "observations", "linear"],
)
def test_sums_with_positive_weights_are_refused_where_they_do_not_confine(energies, words):
    with pytest.raises(ValueError, match=words):
        energies[0] + energies[1]
    parts = cg.compose(energies, check=False)
    whole = cg.compose([parts, cg.SymbolicEnergy("x**4 + y**4", ["x", "y"]) if parts.dim == 2 else cg.DoubleWell(1)])
    assert len(whole.terms) == 3  # what confines them may come later


@pytest.mark.parametrize(
    ("variance", "curvature"), [(0.8823814699152238, 1.1332966909380775), (1.9471888932322174, 0.5135608586694739)]
)
def test_nothing_is_decided_within_the_rounding_of_a_mixtures_factors(variance, curvature):
    """C⁻¹ - q and (the factor that is computed with)² - q have opposite signs."""
    mixture, bowl = cg.GaussianMixture([[0.0]], variance), cg.Quadratic([[curvature]])
    factor = Fraction(float(np.ravel(mixture.factors)[0])) ** 2 - Fraction(curvature)
    assert (1 / Fraction(variance) - Fraction(curvature)) * factor < 0
    level = cg.compose([mixture, bowl], [1.0, -1.0])
    assert gibbs_measure_exists(level) is None


@pytest.mark.parametrize(
    ("energies", "weights"),
    [
        ([cg.Quadratic([[1e300]]), cg.Quadratic([[1.0]])], [1e10, 1.0]),
        ([cg.Quadratic([[8e307]]), cg.Quadratic([[8e307]])], [1.5, 1.5]),
        ([cg.Quadratic([[1e300]]), cg.SymbolicEnergy("x**4", ["x"])], [1e20, 1.0]),
    ],
    ids=["product", "sum", "formula"],
)
def test_numbers_beyond_floats_establish_nothing_and_refuse_nothing(energies, weights):
    energy = cg.compose(energies, weights)
    assert energy.properties.hessian_upper is None
    assert gibbs_measure_exists(energy) is None or gibbs_measure_exists(energy).recheck()
