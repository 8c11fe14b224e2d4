"""Log-Sobolev constants: never above what the spectral gap allows, exact where they can be, and rechecked."""

import math
from dataclasses import replace

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
import sympy as sp

import ctrlgen as cg
from ctrlgen.certify.constants import established
from ctrlgen.certify.existence import gibbs_measure_exists
from ctrlgen.certify.log_sobolev import log_sobolev
from ctrlgen.certify.pieces import at_least
from ctrlgen.energies.tails import fractions
from ctrlgen.energies.trained import TrainedEnergy


def gap(energy, temperature, half, cells=400):
    """The slowest decay rate of the Fokker–Planck operator on a fine grid: V cannot fall faster than at twice it."""
    shape = (cells,) if energy.dim == 1 else (70, 70)
    grid = cg.FokkerPlanckGrid([(-half, half)] * energy.dim, shape, temperature)
    return -float(grid.spectrum(energy, 1)[0])


def symbolic(text, *states):
    return cg.SymbolicEnergy(text, states or ("x",))


# the constant must not exceed gap/ε: LSI(α) implies the Poincaré inequality with α
WITHIN = {
    "convex quartic": (symbolic("x**4/4 + x**2/2"), 0.7, 4),
    "cosine on a bowl": (symbolic("x**2/2 + cos(3*x)"), 0.8, 7),
    "tanh, Lipschitz only": (symbolic("x**2/2 - 2*sin(x) + tanh(x)"), 1.0, 8),
    "double well": (cg.DoubleWell(dim=1, barrier=2.0, separation=1.5), 0.9, 5),
    "shifted quartic": (symbolic("(x - 1)**4 - 3*(x - 1)**2 + x/2"), 0.8, 5),
    "double well 2-D": (symbolic("(x**2 - 1)**2 + y**2/2", "x", "y"), 0.5, 4.5),
    "ring": (cg.Ring(radius=1.5, stiffness=3.0), 1.0, 4),
    "mixture at its temperature": (cg.GaussianMixture([[-1.0], [1.3]], 0.5, temperature=0.6), 0.6, 7),
    "unequal mixture, warmer": (cg.GaussianMixture([[-1.0], [1.0]], 0.5, [0.9, 0.1]), 1.5, 9),
    "mixture and bowl": (cg.GaussianMixture([[-1.0], [1.0]], 0.3) + cg.Quadratic([[2.0]]), 1.0, 5),
    "half a mixture": (0.5 * cg.GaussianMixture([[-1.0], [1.0]], 0.3), 0.5, 7),
    "small network": (cg.MLPEnergy(1, width=4, depth=1, confinement=2.0, key=3), 0.5, 6),
    "bowl minus a well": (cg.Quadratic([[3.0]]) - 0.2 * symbolic("x**2 + cos(2*x)"), 0.5, 6),
    "two dimensions, mixed": (
        cg.Quadratic([[2.0, 0.5], [0.5, 1.0]]) + symbolic("0.4*sin(2*x)*cos(y)", "x", "y"),
        0.7,
        7,
    ),
    "sextic": (symbolic("x**6/6 - x**4/2 + x**2/4"), 1.0, 3),
    "flat bottom": (symbolic("x**4/4"), 1.0, 4),
    "coupled wells": (symbolic("(x**2 - 1)**2 + (y**2 - 1)**2 + x*y/2", "x", "y"), 1.0, 3),
    "crossed wells": (symbolic("(x**2 - 1)**2 + (y**2 - 1)**2 + x**2*y**2", "x", "y"), 1.0, 3),
    "flat bottom and a wave": (symbolic("x**4/4 - cos(x)"), 1.0, 4),
    "well and bowl": (cg.DoubleWell() + 0.3 * cg.Quadratic([[1.0, 0.4], [0.4, 1.0]]), 0.8, 4),
    "soft walls": (cg.DoubleWell(stiffness=0.2), 1.0, 9),
    "quartic and a bump": (symbolic("x**4 + y**2 + exp(-x**2 - y**2)", "x", "y"), 0.5, 4),
    "coupled quartics": (symbolic("x**4 + x*y + y**4", "x", "y"), 0.5, 3),
    "quartic less a bump": (symbolic("x**4 + x**2/2 - exp(-2*(x - 1)**2)"), 0.5, 3),
    "callable": (cg.CallableEnergy(lambda x: jnp.sum(x**2) + 0.3 * jnp.cos(2 * x[0]), 1), 0.4, 4),
}


@pytest.mark.parametrize("name", WITHIN)
def test_the_constant_is_proved_and_within_the_spectral_gap(name):
    energy, temperature, half = WITHIN[name]
    verdict = log_sobolev(energy, temperature)
    assert verdict.status is cg.Status.PROVED, verdict
    assert verdict.recheck()
    best = gap(energy, temperature, half) / temperature
    assert 0 < verdict.constant <= best * (1 + 2e-3)  # 2e-3 for the grid
    assert verdict.rate <= 2 * temperature * verdict.constant
    assert verdict.rate == pytest.approx(2 * temperature * verdict.constant, rel=1e-12)
    assert verdict.log_constant <= math.log(verdict.constant) + 1e-12


def test_a_quadratic_has_its_smallest_eigenvalue_over_the_temperature():
    precision = np.array([[2.0, 0.5], [0.5, 1.0]])
    exact = float(np.linalg.eigvalsh(precision)[0]) / 0.3
    assert log_sobolev(cg.Quadratic(precision, [1.0, 2.0]), 0.3).constant == pytest.approx(exact, rel=1e-12)


def test_quadratic_terms_are_added_before_they_are_bounded():
    total = cg.Quadratic(np.diag([1.0, 5.0])) + cg.Quadratic(np.diag([4.0, 0.5]), [1.0, 1.0])
    assert log_sobolev(total, 1.0).constant == pytest.approx(5.0)  # and not 1 + 0.5
    seen = cg.condition(cg.Quadratic(np.eye(2)), [[2.0, 0.0]], [1.0], 0.5)
    assert log_sobolev(seen, 1.0).constant == pytest.approx(1.0)


def test_the_best_cut_of_a_double_well_is_found():
    b, a, temperature = 1.3, 0.8, 0.6
    depths = np.linspace(1.0001, 4, 20_000)
    best = np.max(4 * b * (depths - 1) / a**2 / temperature * np.exp(-b * depths**2 / temperature))
    found = log_sobolev(cg.DoubleWell(dim=1, barrier=b, separation=a), temperature).constant
    assert found == pytest.approx(best, rel=1e-6)
    formula = symbolic("1.3*((x/0.8)**2 - 1)**2")
    assert log_sobolev(formula, temperature).constant == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("bend", [0.0, 0.3])
def test_the_best_cut_of_a_single_well_is_found(bend):
    lead, temperature = 0.7, 0.4
    s = np.linspace(1e-4, 3, 200_000)  # |y|² of the cut
    best = np.max((4 * lead * s + 2 * bend) / temperature * np.exp(-lead * s**2 / temperature))
    found = log_sobolev(symbolic(f"{lead}*x**4 + {bend}*x**2"), temperature).constant
    assert found == pytest.approx(best, rel=1e-6)


def test_wells_of_several_states_are_cut_one_by_one():
    coupling, temperature = 0.5, 0.8
    energy = symbolic(f"(x**2 - 1)**2 + 2*(y**2 - 1)**2 + {coupling}*x*y", "x", "y")
    best = 0.0
    for s in np.linspace(1.001, 3, 120):
        for t in np.linspace(1.001, 3, 120):
            lowest = np.linalg.eigvalsh([[4 * (s - 1), coupling], [coupling, 8 * (t - 1)]])[0]
            best = max(best, lowest / temperature * np.exp(-(s**2 + 2 * t**2) / temperature))
    found = log_sobolev(energy, temperature)
    assert 0.3 * best < found.constant <= best * (1 + 1e-3)  # it does not try all pairs of depths
    assert found.recheck()


def test_outside_a_ball_convexity_is_proved_before_it_is_used():
    verdict = log_sobolev(symbolic("x**6/6 - x**4/2 + x**2/4"), 1.0)
    convex, bounded = (step.claim.text for step in verdict.steps[:2])
    assert "made convex inside" in convex
    n, rise = (float(text.split()[-2 if text.endswith("I") else -1]) for text in (convex, bounded))
    assert verdict.constant == pytest.approx(n * math.exp(-rise), rel=1e-5)
    k = 2.5 - 5 * (0.6**2 - 0.6) - 3.0  # E'' = 5x⁴ - 6x² + ½ is lowest at x² = 0.6: -1.3
    assert k == pytest.approx(0.7)
    radius = float(convex.split("|x| = ")[1].split(":")[0])
    outside = np.linspace(radius, 5, 1000)
    m = (5 * outside**4 - 6 * outside**2 + 0.5).min()
    assert rise >= 0.5 * (1.3 + n) * radius**2 * (1 + (1.3 + n) / (m - n)) * (1 - 1e-2)


def test_a_bounded_perturbation_costs_its_oscillation():
    energy = cg.Quadratic([[1.0]]) + symbolic("3*cos(5*x)")
    assert log_sobolev(energy, 2.0).constant == pytest.approx(0.5 * math.exp(-6 / 2), rel=1e-12)


def test_a_lipschitz_perturbation_costs_the_stated_factor():
    slope = 0.2  # so steep a Hessian (0.2·50) and so large an oscillation that only the gradient bound is of use
    network = cg.MLPEnergy(2, width=8, depth=1, activation="relu", confinement=1.0, key=0)
    scaled = network * (slope / network.network_gradient_bound)
    energy = cg.Quadratic(np.eye(2)) + scaled
    m = 1 + slope / network.network_gradient_bound
    t = slope / math.sqrt(0.5 * m)
    assert log_sobolev(energy, 0.5).constant == pytest.approx(m / 0.5 * math.exp(-(t**2) - 2 * t), rel=1e-6)


@pytest.mark.parametrize("slope", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_lipschitz_perturbation_stays_within_the_gap(slope, seed):
    network = cg.MLPEnergy(1, width=6, depth=1, activation="relu", confinement=0.0, key=seed)  # kinks: no Hessian
    for sign in (1, -1):
        energy = cg.Quadratic([[1.0]]) + network * (sign * slope / network.network_gradient_bound)
        verdict = log_sobolev(energy, 0.5)
        assert "Lipschitz" in verdict.steps[-1].outcome.reason
        assert verdict.constant <= gap(energy, 0.5, 8) / 0.5


def test_the_mixture_theorem_is_the_heat_flow_bound():
    means = np.array([[0.0, 0.0], [1.0, 0.5], [-0.3, 0.4]])
    covariance = np.array([[0.5, 0.2], [0.2, 0.4]])
    inverse = np.linalg.inv(covariance)
    widest = max((a - b) @ inverse @ (a - b) for a in means for b in means)
    expected = math.exp(-widest / 4) / np.linalg.eigvalsh(covariance)[-1]
    mixture = cg.GaussianMixture(means, covariance, temperature=0.5)
    assert log_sobolev(mixture, 0.5).constant == pytest.approx(expected, rel=1e-9)
    other = log_sobolev(mixture, 0.50001)  # at another temperature the theorem does not apply
    assert "heat-flow" not in other.steps[-1].outcome.reason


def test_a_product_has_the_smallest_constant_of_its_factors():
    parts = [log_sobolev(symbolic(text), 0.5).constant for text in ("(x**2 - 1)**2", "2*x**2", "x**4/4 + x**2/8")]
    whole = symbolic("(a**2 - 1)**2 + 2*b**2 + c**4/4 + c**2/8", "a", "b", "c")
    verdict = log_sobolev(whole, 0.5)
    assert verdict.constant == pytest.approx(min(parts), rel=1e-12)
    assert verdict.recheck()
    assert log_sobolev(symbolic("x**2 + y**2 + x*y", "x", "y"), 1.0).constant == pytest.approx(1.0)  # not a product


def test_what_is_missing_is_said():
    funnel = log_sobolev(cg.Funnel(), 1.0)
    assert funnel.status is cg.Status.UNDECIDED
    assert funnel.constant is None
    assert "Funnel" in funnel.reason
    assert "hessian" in funnel.reason.lower()
    assert log_sobolev(cg.Banana(), 1.0).status is cg.Status.UNDECIDED
    trained = log_sobolev(cg.load_energy("two_moons"), 1.0)
    assert trained.status is cg.Status.UNDECIDED
    assert trained.constant is None
    assert trained.log_constant < -1000  # established, and of no use


def test_premises_are_rechecked():
    verdict = log_sobolev(cg.Quadratic(np.eye(2)) + symbolic("0.3*sin(x)", "x", "y"), 1.0)
    assert verdict.recheck()
    first, *rest = verdict.steps
    forged = replace(first, claim=replace(first.claim, text="Quadratic: ∇² ⪰ 2 I"))
    assert not replace(verdict, steps=(forged, *rest)).recheck()
    wrong = replace(first.outcome, certificate=replace(first.outcome.certificate, check=lambda: False))
    assert not replace(verdict, steps=(replace(first, outcome=wrong), *rest)).recheck()


def test_constants_come_with_their_terms_and_rule():
    energy = cg.Quadratic(2 * np.eye(2)) - 0.5 * cg.Quadratic(np.diag([1.0, 3.0])) + symbolic("0.1*cos(x)", "x", "y")
    value, steps = established(energy, "hessian_lower")
    assert value == pytest.approx(2 - 1.5 - 0.1)
    assert len(steps) == 4
    assert "⪯ 3 I" in steps[1].claim.text  # a negative weight asks for the upper bound
    assert "w·L for w < 0" in steps[-1].outcome.reason
    assert all(step.recheck() for step in steps)
    assert established(cg.Funnel(), "hessian_lower") is None
    assert established(symbolic("0.5*sin(2*x)"), "oscillation")[0] == pytest.approx(1.0)


def test_bad_arguments():
    with pytest.raises(TypeError, match="energy must be an Energy; got str"):
        log_sobolev("x**2", 1.0)
    for wrong in (0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match="temperature"):
            log_sobolev(cg.Quadratic([[1.0]]), wrong)


def test_the_proof_of_the_lipschitz_factor():
    """The two inequalities of the module's derivation: u ≤ t√(1 + u) gives u ≤ t² + t, and ∫ e^{-2s}(L² + L/σ) ds."""
    t, length = sp.symbols("t L", positive=True)
    root = (t**2 + t * sp.sqrt(t**2 + 4)) / 2
    assert sp.expand(root**2 - t**2 * (1 + root)) == 0
    assert sp.expand((t**2 + t - root) - t * (2 + t - sp.sqrt(t**2 + 4)) / 2) == 0  # ≥ 0, as (2 + t)² ≥ t² + 4
    w = sp.Symbol("w", positive=True)  # w = e^{-2s}
    total = sp.integrate((length**2 + length / sp.sqrt(1 - w)) / 2, (w, 0, 1))
    assert sp.simplify(total - (length**2 / 2 + length)) == 0


@pytest.mark.parametrize(
    ("energy", "temperature"),
    [
        (cg.Quadratic([[1e-300]]), 1e-300),
        (cg.DoubleWell(1, barrier=1e-10), 1e300),
        (cg.SymbolicEnergy("x**2/2 + 1e200*sin(x)", ["x"]), 1e-200),
    ],
)
def test_numbers_at_the_ends_of_the_floats_are_no_errors(energy, temperature):
    verdict = log_sobolev(energy, temperature)
    if isinstance(energy, cg.Quadratic):
        assert verdict.constant == pytest.approx(1.0, rel=1e-9)
    assert verdict.status in (cg.Status.PROVED, cg.Status.UNDECIDED)


def test_the_temperature_of_the_claim_is_not_rounded():
    assert "ε = 0.1234567:" in log_sobolev(cg.Quadratic([[1.0]]), 0.1234567).claim


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["weights", "biases"])
def test_nothing_is_proved_of_a_network_with_numbers_that_are_not_finite(where, value):
    network = cg.MLPEnergy(1, width=4, depth=1, confinement=1.0)
    broken = eqx.tree_at(lambda m: getattr(m, where)[0], network, getattr(network, where)[0] * 0 + value)
    for energy in (broken, TrainedEnergy(broken), broken + cg.Quadratic([[1.0]])):
        assert log_sobolev(energy, 1.0).status is cg.Status.UNDECIDED


def test_the_rate_is_no_overflow_of_twice_the_temperature():
    """2ε is beyond the floats, 2εα = 20 is not."""
    verdict = log_sobolev(cg.Quadratic([[10.0]]), 1.5e308)
    assert verdict.rate is None or 0 < verdict.rate <= 20.0


@pytest.mark.parametrize("dim", [3, 30])
def test_what_is_proved_stands_again_in_any_dimension(dim):
    """The bounds of these are attained: the matrices that have to be ⪰ 0 are singular."""
    bowl, seen = cg.Quadratic(np.eye(dim)), cg.LeastSquares(np.ones(dim), 1.0, 0.5)
    for energy in (bowl, bowl + seen, cg.Ring(1.0, 1.0, dim)):
        verdict = log_sobolev(energy, 1.0)
        assert verdict.status is cg.Status.PROVED
        assert verdict.recheck()
        for name in ("hessian_lower", "hessian_upper"):
            found = established(energy, name)
            assert found is None or all(step.recheck() for step in found[1])
    loop = cg.ClosedLoop(cg.Langevin(1.0, 0.01, metric=np.linspace(1.0, 2.0, dim)), bowl)
    assert cg.KLLyapunov(bowl, 1.0).verify(loop).recheck()
    assert not at_least(fractions(np.eye(dim)), 1.0 + 1e-15)
    assert at_least(fractions(np.eye(dim)), 1.0)


def test_a_check_reads_the_function_again():
    """A function may change with what it refers to, and is remembered by its identity."""
    stiffness = {"value": 2.0}
    energy = cg.CallableEnergy(lambda x: stiffness["value"] * x[0] ** 2 / 2 + jnp.sin(x[0]) / 8, 1)
    verdict = log_sobolev(energy, 1.0)
    assert verdict.recheck()
    stiffness["value"] = 1.0
    assert not verdict.recheck()


@pytest.mark.parametrize(("lead", "temperature"), [("1e-330", 1.0), ("1e-316", 1e300)])
def test_quartics_beyond_floats_are_no_error(lead, temperature):
    assert log_sobolev(symbolic(f"{lead}*x**4 + x**2/2"), temperature).status is not cg.Status.REFUTED


HIDDEN = {
    "logarithm": symbolic("x**2/2 + (x + 1)*log(x) - x*log(x) - log(x)"),
    "root": symbolic("x**2/2 + (sqrt(x) + 1)**2 - x - 2*sqrt(x)"),
    "beside": symbolic("x**2/2") + symbolic("(x + 1)*log(x) - x*log(x) - log(x)"),
    "terms": symbolic("x**4 + x**2") + symbolic("sqrt(x)") - symbolic("sqrt(x)"),
    "factors": symbolic("x**2 + y**2", "x", "y") + symbolic("sqrt(x)", "x", "y") - symbolic("sqrt(x)", "x", "y"),
    "code": cg.SymbolicEnergy(lambda v: jnp.sqrt(v[0]) ** 4 / 2, ["x"]),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_nothing_is_proved_of_what_is_not_defined_everywhere(name):
    """Expanded, each is a polynomial; as it stands it is not a number for x < 0."""
    energy = HIDDEN[name]
    assert np.isnan(energy([-1.0] * energy.dim))
    assert log_sobolev(energy, 1.0).status is cg.Status.UNDECIDED
    assert gibbs_measure_exists(energy) is None
