"""KLLyapunov.verify: what it proves holds along grid and Gaussian loops; what does not keep the measure is refuted."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ctrlgen as cg
from ctrlgen.certify.constants import other_gradient
from ctrlgen.certify.decay import identity_holds
from ctrlgen.certify.existence import gibbs_measure_exists, where_it_escapes

QUADRATIC = cg.Quadratic(np.diag([1.0, 4.0]), [0.5, 0.0])
WELL = cg.SymbolicEnergy("(x**2 - 1)**2 + y**2/2", ["x", "y"])


def verify(energy, temperature, plant, controller=None, **options):
    loop = cg.ClosedLoop(plant, energy if controller is None else controller)
    return cg.KLLyapunov(energy, temperature).verify(loop, **options)


def test_the_rate_of_a_quadratic_is_proved_and_exact():
    verdict = verify(QUADRATIC, 0.5, cg.Langevin(0.5, 0.01))
    assert verdict.status is cg.Status.PROVED
    assert verdict.rate == pytest.approx(2.0, rel=1e-12)
    assert verdict.rate <= 2.0
    assert verdict.constant == pytest.approx(2.0)
    assert verdict.recheck()
    assert any("continuous time" in a for a in verdict.assumptions)
    start = cg.Gaussian(
        [3.0, 0.0], np.diag([0.5, 0.125])
    )  # displaced along the slow axis: V falls at exactly this rate
    response = cg.ClosedLoop(cg.GaussianPlant(0.5), QUADRATIC).simulate(start, 2.0, record=5)
    np.testing.assert_allclose(response.kl, response.kl[0] * np.exp(-2.0 * response.time), rtol=1e-9)


@pytest.mark.parametrize(
    ("energy", "temperature", "half"),
    [
        (WELL, 0.5, 4),
        (cg.Ring(radius=1.2, stiffness=2.0), 0.8, 4),
        (cg.GaussianMixture([[-0.8, 0.0], [0.8, 0.3]], 0.5), 1.0, 5),
        (cg.Quadratic(np.eye(2)) + cg.SymbolicEnergy("sin(2*x)*cos(y)", ["x", "y"]), 0.9, 5),
    ],
    ids=["wells", "ring", "mixture", "perturbed"],
)
def test_v_never_lags_behind_its_proved_rate_on_a_grid(energy, temperature, half):
    grid = cg.FokkerPlanckGrid([(-half, half)] * 2, (50, 50), temperature)
    verdict = verify(energy, temperature, grid)
    assert verdict.status is cg.Status.PROVED
    assert verdict.rate > 0
    for centre in ([1.0, 0.0], [0.0, -1.5]):
        response = cg.ClosedLoop(grid, energy).simulate(cg.Gaussian(centre, 0.1 * np.eye(2)), 3.0, record=10)
        bound = response.kl[0] * np.exp(-verdict.rate * response.time)
        assert (response.kl <= bound * (1 + 1e-9)).all()


def test_the_metric_is_in_the_rate():
    precision = np.array([[1.0, 0.2], [0.2, 9.0]])
    energy = cg.Quadratic(precision)
    best = verify(energy, 1.0, cg.Langevin(1.0, 0.01, metric=precision))
    assert best.rate == pytest.approx(2.0, rel=1e-6)  # condition number 1
    for metric in (np.diag([2.0, 5.0]), np.array([[2.0, 0.5], [0.5, 1.0]])):
        root = np.linalg.cholesky(np.linalg.inv(metric))
        exact = 2 * np.linalg.eigvalsh(root.T @ precision @ root)[0]
        verdict = verify(energy, 1.0, cg.Langevin(1.0, 0.01, metric=metric, skew=[[0.0, 1.0], [-1.0, 0.0]]))
        assert verdict.status is cg.Status.PROVED
        assert verdict.rate == pytest.approx(exact, rel=1e-6)
        assert verdict.rate <= exact * (1 + 1e-14)
        assert verdict.recheck()
    plain = verify(WELL, 0.5, cg.Langevin(0.5, 0.01)).rate
    slowed = verify(WELL, 0.5, cg.Langevin(0.5, 0.01, metric=[2.0, 4.0]))
    assert slowed.rate == pytest.approx(plain / 4, rel=1e-12)
    assert slowed.rate <= plain / 4


def test_a_gradient_flow_is_refuted_with_the_witness_of_the_theorem():
    verdict = verify(WELL, 0.5, cg.GradientFlow(0.01))
    theorem = cg.no_certificate(WELL, None, 0.5)
    assert verdict.status is cg.Status.REFUTED
    assert theorem.status is cg.Status.PROVED
    np.testing.assert_array_equal(verdict.witness, theorem.witness)
    assert verdict.recheck()
    x, y = verdict.witness
    source = 12 * x**2 - 4 + 1 - ((4 * x * (x**2 - 1)) ** 2 + y**2) / 0.5  # ΔE - |∇E|²/ε
    assert abs(source) >= verdict.margin > 0
    forged = replace(verdict.steps[0].outcome.certificate, shown=replace(theorem, status=cg.Status.UNDECIDED))
    outcome = replace(verdict.steps[0].outcome, certificate=forged)
    assert not replace(verdict, steps=(replace(verdict.steps[0], outcome=outcome),)).recheck()


def test_another_temperature_or_energy_is_refuted():
    for plant, controller in [
        (cg.Langevin(0.7, 0.01), QUADRATIC),
        (cg.GaussianPlant(0.5), cg.Quadratic(np.eye(2))),
        (cg.FokkerPlanckGrid([(-3, 3)] * 2, (10, 10), 0.4), QUADRATIC),
    ]:
        verdict = verify(QUADRATIC, 0.5, plant, controller)
        assert verdict.status is cg.Status.REFUTED
        assert verdict.recheck()


@pytest.mark.parametrize(
    ("plant", "controller", "words"),
    [
        (cg.Langevin(0.7, 0.01), QUADRATIC, "the loop's temperature is 0.7 and V's is 0.5: at"),
        (cg.Langevin(0.5, 0.01), WELL, "the loop's energy is another than V's: at"),
        (cg.Langevin(0.7, 0.01), WELL, "is 0.7 and V's is 0.5, and its energy is not known to be V's: at"),
        (cg.GradientFlow(0.01), QUADRATIC, "a flow without noise keeps no Gibbs measure: at"),
    ],
    ids=["temperature", "energy", "both", "flow"],
)
def test_what_is_refuted_says_in_what_the_loop_differs(plant, controller, words):
    verdict = verify(QUADRATIC, 0.5, plant, controller)
    assert verdict.status is cg.Status.REFUTED
    assert words in verdict.reason


TWICE = {
    "quadratic": lambda: cg.Quadratic(np.diag([1.0, 4.0]), [0.5, 0.0]),
    "formula": lambda: cg.SymbolicEnergy("x**2 + x*y + y**2 + cos(x)", ["x", "y"]),
    "sum": lambda: cg.Quadratic(np.eye(2)) + 0.1 * cg.SymbolicEnergy("cos(x + y)", ["x", "y"]),
    "shipped": lambda: cg.load_energy("two_moons"),
}


@pytest.mark.parametrize("make", TWICE.values(), ids=TWICE)
def test_the_same_energy_built_twice_is_the_same(make):
    verdict = verify(make(), 0.5, cg.Langevin(0.5, 0.01), make(), measure=False)
    one = make()
    alone = verify(one, 0.5, cg.Langevin(0.5, 0.01), one, measure=False)
    assert (verdict.status, verdict.rate, verdict.claim) == (alone.status, alone.rate, alone.claim)
    assert verdict.steps[0].outcome.status is cg.Status.PROVED  # the identity of a loop that keeps its measure


@pytest.mark.parametrize("beside", ["sqrt(x)", "log(x)"])
def test_what_cancels_in_a_formula_is_not_taken_for_nothing(beside):
    part = cg.SymbolicEnergy(beside, ["x"])
    given = cg.SymbolicEnergy("x**2/2", ["x"])
    verdict = verify(given, 1.0, cg.Langevin(1.0, 0.01), given + part - part, measure=False)
    assert verdict.status is cg.Status.UNDECIDED


def test_code_that_reads_as_the_same_formula_is_not_taken_for_it():
    given = cg.SymbolicEnergy("x**2/2", ["x"])
    code = cg.SymbolicEnergy(lambda x: 0.5 * x[0] * jax.lax.stop_gradient(x[0]), ["x"])
    assert code.symbolic(["x"]) == given.symbolic(["x"])
    verdict = verify(given, 0.5, cg.Langevin(0.5, 0.01), code, measure=False)
    assert verdict.status is cg.Status.UNDECIDED
    assert verdict.steps[0].outcome.status is cg.Status.UNDECIDED


def test_functions_that_may_be_one_are_left_open_with_advice():
    one, other = (cg.CallableEnergy(lambda x, k=k: k * jnp.sum(x**2), 2) for k in (1.0, 1.0))
    verdict = verify(one, 0.5, cg.Langevin(0.5, 0.01), other, measure=False)
    assert verdict.status is cg.Status.UNDECIDED
    assert "KLLyapunov(loop.controller, loop.plant.temperature)" in verdict.reason


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_a_temperature_of_another_type_is_the_number_that_it_is(kind):
    """NumPy takes 0.1 for equal to float32(0.1), which is another number: the loop has another Gibbs measure."""
    assert kind(0.1) == 0.1
    assert verify(QUADRATIC, 0.1, cg.GaussianPlant(kind(0.1))).status is not cg.Status.PROVED
    assert verify(QUADRATIC, float(kind(0.1)), cg.GaussianPlant(kind(0.1))).status is cg.Status.PROVED


def test_the_temperature_of_the_claim_is_not_rounded():
    assert "ε = 0.1234567," in verify(QUADRATIC, 0.1234567, cg.GaussianPlant(0.1234567)).claim


def test_nothing_is_decided_where_particles_follow_another_gradient():
    half = cg.CallableEnergy(lambda x: 0.5 * x[0] * jax.lax.stop_gradient(x[0]), 1)
    own = verify(half, 1.0, cg.Langevin(1.0, 0.01), measure=False)
    assert own.status is cg.Status.UNDECIDED
    assert "a function holds stop_gradient" in own.reason
    grid = cg.FokkerPlanckGrid([(-5, 5)], (100,), 1.0)  # a grid knows the values of E alone
    assert verify(half, 1.0, grid).status is cg.Status.PROVED
    # they do keep this measure, which the flow along the gradient of x²/2 does not
    other = verify(cg.Quadratic([[0.5]]), 1.0, cg.Langevin(1.0, 0.01), half)
    assert other.status is cg.Status.UNDECIDED


class OwnSlope(cg.Energy):
    """x²/2, with the slope of another energy: it may have a reason, or an error."""

    dim: int = 1

    def potential(self, x):
        return 0.5 * x[0] ** 2

    def slope(self, x):
        return x - 3

    @property
    def properties(self):
        return cg.Properties(hessian_lower=1.0, hessian_upper=1.0, dissipativity=(1.0, 0.0))


class Stopped(cg.Energy):
    """x²/2, of which JAX takes x/2 for the gradient."""

    dim: int = 1

    def potential(self, x):
        return 0.5 * x[0] * jax.lax.stop_gradient(x[0])

    @property
    def properties(self):
        return cg.Properties(hessian_lower=1.0, hessian_upper=1.0, dissipativity=(1.0, 0.0))


def test_a_class_that_cannot_be_traced_proves_nothing_of_particles():
    class Unread(Stopped):
        def potential(self, x):
            return 0.5 * float(x[0]) ** 2

    assert "the potential of Unread could not be traced" in other_gradient(Unread())
    assert other_gradient(cg.Quadratic([[1.0]])) == ""


@pytest.mark.parametrize("energy", [OwnSlope(), Stopped()], ids=["slope", "stopped"])
def test_a_class_of_ones_own_need_not_follow_its_gradient(energy):
    for one in (energy, energy + cg.Quadratic([[1.0]]), 2.0 * energy):
        verdict = verify(one, 1.0, cg.Langevin(1.0, 0.01), measure=False)
        assert verdict.status is cg.Status.UNDECIDED
        assert re.search("a slope of its own|holds stop_gradient", verdict.reason)
        with pytest.raises(ValueError, match=r"a slope of its own|holds stop_gradient"):
            cg.stopping.APriori(0.1).plan(one, 1.0, initial_mean=[0.0], initial_covariance=[[1.0]])


def test_what_is_not_decided_says_why():
    kinetic = verify(QUADRATIC, 0.5, cg.KineticLangevin(0.5, 1.0, 0.01))
    assert kinetic.status is cg.Status.UNDECIDED
    assert "velocity" in kinetic.reason
    loop = cg.ClosedLoop(cg.Langevin(0.5, 0.01), QUADRATIC, schedule=cg.Annealing(2.0, 1.0))
    changing = cg.KLLyapunov(QUADRATIC, 0.5).verify(loop)
    assert changing.status is cg.Status.UNDECIDED
    assert "temperature changes" in changing.reason
    assert "schedule='static'" in changing.reason
    held = replace(loop, schedule="static")
    assert cg.KLLyapunov(QUADRATIC, 0.5).verify(held).status is cg.Status.PROVED
    quiet = verify(cg.Banana(), 1.0, cg.Langevin(1.0, 0.01), measure=False)
    assert quiet.status is cg.Status.UNDECIDED
    assert quiet.rate is None
    assert not quiet.recheck()


@pytest.mark.slow
def test_a_rate_is_measured_where_none_is_proved():
    energy = cg.Banana(scale=1.0, curvature=0.5)
    verdict = verify(energy, 0.5, cg.Langevin(0.5, 0.01))
    assert verdict.status is cg.Status.SAMPLED
    # the valley rises linearly far out: the gap comes down to its limit as 1/length² of the box, and the error knows
    grid = cg.FokkerPlanckGrid([(-7, 7), (-5, 28)], (180, 320), 0.5, flux="curved")
    expected = -2 * grid.spectrum(energy, 1)[0]
    assert abs(verdict.rate - expected) < verdict.measured.error < 0.15 * verdict.rate
    assert abs(verdict.rate - expected) < 0.01 * expected
    assert "measured" in repr(verdict)
    assert not verdict.recheck()


def test_no_gibbs_measure_is_refused_with_the_direction():
    falling = cg.compose([QUADRATIC, cg.Quadratic(np.eye(2))], [1.0, -2.0], check=False)
    with pytest.raises(ValueError, match=r"direction \[1\.0, 0\.0\]"):
        verify(falling, 1.0, cg.Langevin(1.0, 0.01))
    with pytest.raises(ValueError, match="not integrable"):
        verify(-1.0 * cg.Ring(), 1.0, cg.Langevin(1.0, 0.01))
    two = cg.GaussianMixture([[0.0, 0.0], [3.0, 1.0]], [[[1.0, 0.6], [0.6, 1.0]], np.eye(2)])
    wide = cg.compose([two, cg.Quadratic(np.eye(2))], [1.0, -0.7], check=False)
    with pytest.raises(ValueError, match="not integrable"):
        verify(wide, 1.0, cg.Langevin(1.0, 0.01))


class Bowl(cg.Quadratic):
    """A class of the user's own: its word is taken, even where it repeats what is known."""


@pytest.mark.parametrize("wrapped", [lambda e: e, lambda e: e + cg.Quadratic(np.eye(2)), lambda e: 2.0 * e])
def test_the_word_of_a_class_of_ones_own_is_an_assumption(wrapped):
    words = "the constants of Bowl are as its own .properties states them"
    verdict = verify(wrapped(Bowl(np.eye(2))), 1.0, cg.Langevin(1.0, 0.01))
    assert verdict.status is cg.Status.PROVED
    assert words in verdict.assumptions
    assert words not in verify(wrapped(cg.Quadratic(np.eye(2))), 1.0, cg.Langevin(1.0, 0.01)).assumptions
    plan = cg.stopping.APriori(0.1).plan(
        wrapped(Bowl(np.eye(2))), 1.0, initial_mean=np.zeros(2), initial_covariance=np.eye(2)
    )
    assert words in plan.verdict.assumptions


def test_existence_is_established_or_left_open():
    assert gibbs_measure_exists(QUADRATIC).recheck()
    assert gibbs_measure_exists(cg.Ring()).recheck()
    relu = cg.MLPEnergy(2, width=4, activation="relu", confinement=0.1)
    assert gibbs_measure_exists(relu - 0.04 * cg.Quadratic(np.eye(2))) is not None  # 0.1 - 0.04 is left
    assert gibbs_measure_exists(cg.Funnel()) is None
    assert gibbs_measure_exists(cg.SymbolicEnergy("sin(x)", ["x"])) is None
    assert where_it_escapes(cg.SymbolicEnergy("x**2 + y**3", ["x", "y"])) is not None
    assert where_it_escapes(cg.SymbolicEnergy("x**2", ["x", "y"])) is not None
    assert where_it_escapes(cg.SymbolicEnergy("x**2*y**2 + x**2 + y**2", ["x", "y"])) is None


def test_bad_arguments():
    with pytest.raises(TypeError, match="loop must be a ClosedLoop; got Quadratic"):
        cg.KLLyapunov(QUADRATIC, 0.5).verify(QUADRATIC)
    with pytest.raises(ValueError, match="2-dimensional"):
        verify(QUADRATIC, 0.5, cg.GaussianPlant(0.5), cg.Quadratic([[1.0]]))


def test_the_identity_of_the_transport_equation():
    assert identity_holds()


def test_a_metric_that_depends_on_the_state_has_no_proved_rate():
    energy = cg.Quadratic(np.eye(2))
    plant = cg.Langevin(1.0, 0.01, metric=lambda x: 1 + jnp.sin(x) ** 2 / 10)
    verdict = cg.KLLyapunov(energy, 1.0).verify(cg.ClosedLoop(plant, energy), measure=False)
    assert verdict.status is cg.Status.UNDECIDED
    assert "depends on the state" in verdict.reason
    assert cg.KLLyapunov(energy, 1.0).verify(cg.ClosedLoop(cg.Langevin(1.0, 0.01), energy)).status is cg.Status.PROVED


def test_a_formula_that_was_read_from_code_follows_the_code():
    def half(x):
        return x[0] * jax.lax.stop_gradient(x[0]) / 2 + x[1] ** 2 / 2

    energy = cg.SymbolicEnergy(half, ["x", "y"])
    assert other_gradient(energy)
    assert other_gradient(energy + cg.Quadratic(np.eye(2)))
    assert cg.optimal_friction(energy).status is cg.Status.UNDECIDED
    verdict = cg.KLLyapunov(energy, 1.0).verify(cg.ClosedLoop(cg.Langevin(1.0, 0.01), energy), measure=False)
    assert verdict.status is cg.Status.UNDECIDED
    assert not other_gradient(cg.SymbolicEnergy(lambda x: x[0] ** 2 + x[1] ** 2, ["x", "y"]))


def test_a_rate_that_is_not_clear_of_zero_is_not_claimed():
    """Tails of ∝ 1/(1 + x²)²: no exponential rate exists, and the gap of a box is as small as the box is wide."""
    energy = cg.SymbolicEnergy("2*log(1 + x**2)", ["x"])
    verdict = cg.KLLyapunov(energy, 1.0).verify(cg.ClosedLoop(cg.Langevin(1.0, 0.01), energy))
    assert verdict.rate is None
    assert verdict.measured.value <= 2 * verdict.measured.error
    assert "is not clear of zero" in verdict.reason
    assert "falls at the rate" not in verdict.claim


def test_the_time_of_a_measured_rate_is_bounded():
    """A bent valley, whose box grows: here no grid may be begun."""
    energy = cg.SymbolicEnergy("(1 - x)**2 + 5*(y - x**2)**2", ["x", "y"])
    verdict = cg.KLLyapunov(energy, 0.5).verify(cg.ClosedLoop(cg.Langevin(0.5, 0.01), energy), timeout=1e-3)
    assert verdict.status is cg.Status.UNDECIDED
    assert "the spectral gap was not found in 0.002 s; a larger timeout gives it longer" in verdict.reason


@pytest.mark.parametrize("metric", [np.array([2.0, 0.5]), np.array([[2.0, 0.6], [0.6, 0.8]])], ids=["diagonal", "full"])
def test_the_measured_rate_in_a_metric_is_that_of_its_own_coordinates(metric):
    """A quadratic without a formula, and |x|^(3/2) too small to see: 2 λ_min(KP) is exact but for that."""
    precision = np.array([[1.0, 0.3], [0.3, 3.0]])
    energy = cg.CallableEnergy(lambda x: 0.5 * (x * (precision @ x)).sum(0) + 1e-9 * (abs(x) ** 1.5).sum(0), 2)
    loop = cg.ClosedLoop(cg.Langevin(1.0, 0.01, metric=metric), energy)
    verdict = cg.KLLyapunov(energy, 1.0).verify(loop)
    full = np.diag(metric) if metric.ndim == 1 else metric
    exact = 2 * np.linalg.eigvals(np.linalg.solve(full, precision)).real.min()
    assert verdict.status is cg.Status.SAMPLED
    assert verdict.measured.value == pytest.approx(exact, rel=2e-3)
    assert "coordinates in which the metric is the identity" in verdict.reason
