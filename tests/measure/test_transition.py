"""Functionals of the law after one Langevin step: against closed forms, with brackets that bracket.

From a Gaussian N(m, S), a step of E = ½ (x - μ)ᵀP(x - μ) leads to N(m', S') with A = 1 - hKP, m' = m - hKP(m - μ) and
S' = A S Aᵀ + 2εhK, K = M⁻¹.
"""

import math

import jax.numpy as jnp
import numpy as np
import pytest

import ctrlgen as cg
from ctrlgen import measure
from ctrlgen.estimate import Estimate

HEAT, STEP = 0.7, 0.06
ENERGY = cg.Quadratic([[1.5, 0.4], [0.4, 0.8]], [0.2, -0.3])
START = cg.Gaussian([0.8, 0.1], [[0.5, 0.1], [0.1, 0.9]])
METRIC = np.array([[0.5, 0.1], [0.1, 0.2]])
LOG_Z = ENERGY.log_partition(HEAT)
SEEDS = range(60)
N = 200


def after(step=STEP, metric=None, energy=ENERGY, start=START, heat=HEAT):
    """Mean and covariance after the step."""
    mobility = np.eye(energy.dim) if metric is None else np.linalg.inv(metric)
    push = np.eye(energy.dim) - step * mobility @ energy.precision
    mean = energy.mean + push @ (start.mean - energy.mean)
    return mean, push @ start.covariance @ push.T + 2 * heat * step * mobility


def target(energy=ENERGY, heat=HEAT):
    return energy.mean, heat * np.linalg.inv(energy.precision)


TRUTH = {
    "kl": measure.kl_gaussians(*after(), *target()),
    "entropy": measure.entropy_gaussian(after()[1]),
    "fisher": measure.fisher_gaussians(*after(), *target()),
}


def estimate(name, x, step=STEP, **options):
    if name == "kl":
        return measure.kl_transition(x, ENERGY, HEAT, step, LOG_Z, **options)
    function = {"entropy": measure.entropy_transition, "fisher": measure.fisher_transition}[name]
    return function(x, ENERGY, HEAT, step, **options)


@pytest.fixture(scope="module")
def runs():
    return {name: [estimate(name, START.sample(s, N), key=s) for s in SEEDS] for name in TRUTH}


def numbers(estimates):
    return np.array([e.value for e in estimates]), np.array([e.error for e in estimates])


# Values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["kl", "entropy"])
def test_the_bracket_holds_in_expectation(runs, name):
    lower, upper = (numbers([getattr(e, side) for e in runs[name]])[0] for side in ("lower", "upper"))
    for values, sign in ((lower, 1), (upper, -1)):
        # not only on the right side: apart from the truth by more than three standard errors of the mean
        assert sign * (TRUTH[name] - values.mean()) > 3 * values.std(ddof=1) / math.sqrt(len(SEEDS))
    assert (upper > lower).all()
    middle = numbers(runs[name])[0]
    np.testing.assert_allclose(middle, (lower + upper) / 2, atol=1e-12)
    # the leading biases of the two cancel in the middle
    assert abs(middle.mean() - TRUTH[name]) < 0.25 * (upper - lower).mean() / 2 + 2 * middle.std() / math.sqrt(
        len(SEEDS)
    )


@pytest.mark.parametrize("name", ["kl", "entropy"])
def test_jackknife_errors_are_calibrated(runs, name):
    """The sides' errors are sampling errors only; that of the value holds half the gap over sqrt(3) too."""
    for side in ("lower", "upper"):
        values, errors = numbers([getattr(e, side) for e in runs[name]])
        assert 0.7 < values.std(ddof=1) / np.sqrt(np.mean(errors**2)) < 1.3  # 9 % for 60 seeds, 16 % for 20 batches
    values, errors = numbers(runs[name])
    score = (values - TRUTH[name]) / errors
    assert 0.6 < math.sqrt(np.mean(score**2)) < 1.3
    # the scatter of the middle is at most the mean of the sides' errors: what is above it is the gap
    sides = np.mean([(e.lower.error + e.upper.error) / 2 for e in runs[name]])
    assert errors.mean() > 1.02 * sides


def test_fisher_is_high_and_its_bound_covers(runs):
    values, errors = numbers(runs["fisher"])
    assert values.mean() - TRUTH["fisher"] > 3 * values.std(ddof=1) / math.sqrt(len(SEEDS))
    assert values.mean() < 1.6 * TRUTH["fisher"]
    assert 0.7 < values.std(ddof=1) / np.sqrt(np.mean(errors**2)) < 1.3
    covered = np.mean([e.upper >= TRUTH["fisher"] for e in runs["fisher"]])
    assert covered >= 0.95 - 1e-9  # the excess adds to the confidence
    assert {e.confidence for e in runs["fisher"]} == {0.95}


def test_the_bound_covers_where_there_is_hardly_an_excess():
    """With a step so large that all Gaussians overlap, the value is all but unbiased: the quantile must do it."""
    energy, start, step = cg.Quadratic([[1.0]]), cg.Gaussian([1.5], 0.3), 0.9
    truth = measure.fisher_gaussians(*after(step, None, energy, start, 1.0), *target(energy, 1.0))
    out = [
        measure.fisher_transition(start.sample(s, 60), energy, 1.0, step, key=s, confidence=0.8, batches=10)
        for s in range(120)
    ]
    covered = np.mean([e.upper >= truth for e in out])
    assert 0.8 - 3 * math.sqrt(0.8 * 0.2 / 120) < covered < 0.97  # an error twice too large would cover 0.95 and more


def test_a_metric_preconditions_the_step():
    x = START.sample(11, 1500)
    moments = after(metric=METRIC)
    kl = estimate("kl", x, metric=METRIC)
    truth = measure.kl_gaussians(*moments, *target())
    assert abs(kl.value - truth) < 3 * kl.error
    assert abs(truth - TRUTH["kl"]) > 4 * kl.error  # so that the metric is seen
    entropy = estimate("entropy", x, metric=METRIC)
    assert abs(entropy.value - measure.entropy_gaussian(moments[1])) < 3 * entropy.error
    # s·M⁻¹s = |root⁻¹ s|² with the score in coordinates x = root y, K = root rootᵀ
    root = np.linalg.cholesky(np.linalg.inv(METRIC))
    mean, covariance = target()
    back = np.linalg.inv(root)
    far = cg.Gaussian([3.0, -2.0], START.covariance)  # where the push of the energy is most of the score
    moments = after(metric=METRIC, start=far)
    truth = measure.fisher_gaussians(
        back @ moments[0], back @ moments[1] @ back.T, back @ mean, back @ covariance @ back.T
    )
    fisher = estimate("fisher", far.sample(11, 1500), metric=METRIC)
    assert abs(fisher.value - truth) < 3 * fisher.error + 0.02 * truth
    diagonal = estimate("kl", x[:200], metric=[0.5, 0.2], batches=10)
    assert diagonal.value == pytest.approx(
        estimate("kl", x[:200], metric=np.diag([0.5, 0.2]), batches=10).value, rel=1e-12
    )
    plain = estimate("kl", x[:200], batches=10)
    assert plain.value == pytest.approx(estimate("kl", x[:200], metric=np.eye(2), batches=10).value, rel=1e-12)


def test_other_energies_against_a_grid():
    """The law after a step of a double well in 1-D, by a sum over a fine line."""
    energy, heat, step = cg.DoubleWell(1), 0.5, 0.05
    start = cg.Gaussian([0.4], 0.3)
    line = np.linspace(-6, 6, 2401)
    width = line[1] - line[0]
    mass = np.exp(start.log_density(line[:, None])) * width
    centre = (line[:, None] - step * energy.gradient(line[:, None]))[:, 0]
    law = np.exp(-((line[:, None] - centre) ** 2) / (4 * heat * step)) @ mass / math.sqrt(4 * math.pi * heat * step)
    held = law > 1e-290
    height = energy(line[:, None]) / heat
    log_z = math.log(np.exp(-height).sum() * width)
    log_ratio = np.log(law[held]) + height[held] + log_z
    kl = float(np.sum(law[held] * log_ratio) * width)
    slope = np.gradient(np.log(law), width)[held] + energy.gradient(line[:, None])[held, 0] / heat
    fisher = float(np.sum(law[held] * slope**2) * width)
    x = start.sample(3, 1000)
    found = measure.kl_transition(x, energy, heat, step)  # log Z by quadrature
    assert abs(found.value - kl) < 3 * found.error
    assert found.error < 0.05
    above = measure.fisher_transition(x, energy, heat, step)
    assert above.upper > fisher
    assert abs(above.value - fisher) < 3 * above.error + 0.05 * fisher


# What makes it better -------------------------------------------------------------------------------------------


def gap(n, step, seed=0):
    out = estimate("kl", START.sample(seed, n), step)
    return out.upper.value - out.lower.value


def test_the_bracket_narrows_with_particles_and_step():
    # about V / (n (8πεh)^(d/2)): inversely with both in 2-D, and V shrinks with the step
    few, many, longer = (np.mean([gap(n, h, s) for s in range(4)]) for n, h in ((300, 0.06), (1200, 0.06), (300, 0.12)))
    assert 3.0 < few / many < 5.5
    assert 1.7 < few / longer < 3.5


def test_more_draws_narrow_the_error():
    x = START.sample(5, N)
    one, eight = estimate("kl", x), estimate("kl", x, draws=8)
    assert eight.upper.error < 0.9 * one.upper.error  # that of the particles themselves remains
    assert abs(one.value - eight.value) < 3 * one.error
    spread = [np.std([estimate("kl", x, key=k, draws=d).value for k in range(12)]) for d in (1, 8)]
    assert 1.6 < spread[0] / spread[1] < 5  # sqrt(8) = 2.8


def test_a_key_gives_one_number_and_rows_carry_no_information():
    x = START.sample(6, 200)
    for name in TRUTH:
        first, again = estimate(name, x, key=2), estimate(name, x, key=2)
        assert first == again
        assert first.value != estimate(name, x, key=3).value
    # particles in an order that would make each batch a clump of its own
    clumps = x[np.argsort(x[:, 0])].reshape(20, -1, 2).swapaxes(0, 1).reshape(-1, 2)
    assert 0.6 < estimate("kl", clumps).upper.error / estimate("kl", x).upper.error < 1.6


def test_entropy_and_kl_share_their_bracket():
    """KL = E[E]/ε + log Z - H, so that an energy which is constant leaves minus the entropy, sides turned."""
    x = START.sample(7, 300)
    flat = cg.CallableEnergy(lambda y: 0.0 * y[0], 2)
    kl = measure.kl_transition(x, flat, HEAT, STEP, 0.0)
    entropy = measure.entropy_transition(x, flat, HEAT, STEP)
    assert kl.value == pytest.approx(-entropy.value, rel=1e-12)
    assert kl.lower.value == pytest.approx(-entropy.upper.value, rel=1e-12)
    assert kl.upper.error == pytest.approx(entropy.lower.error, rel=1e-12)


def test_log_z_and_its_error_enter():
    x = START.sample(8, 200)
    exact = measure.kl_transition(x, ENERGY, HEAT, STEP, LOG_Z)
    unsure = measure.kl_transition(x, ENERGY, HEAT, STEP, Estimate(LOG_Z + 1.0, 0.4))
    found = measure.kl_transition(x, ENERGY, HEAT, STEP)
    assert unsure.value == pytest.approx(exact.value + 1.0)
    for side in (unsure, unsure.lower, unsure.upper):
        assert side.error > 0.4
    assert unsure.error == pytest.approx(math.hypot(exact.error, 0.4))
    assert found.value == pytest.approx(exact.value, abs=1e-5)


def test_isolated_particles_open_the_bracket():
    """Where no Gaussian overlaps another the lower side is far away, and the error says that nothing is known."""
    out = estimate("kl", START.sample(9, 60), 1e-6)
    assert out.upper.value - out.lower.value > 100
    assert out.error > 50


# Bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(TRUTH))
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": 0.0}, "step must be a finite number above 0; got 0"),
        ({"step": math.nan}, "step must be a finite number above 0; got nan"),
        ({"draws": 0}, "draws must be an integer of at least 1; got 0"),
        ({"batches": 1}, "batches must be an integer of at least 2; got 1"),
        ({"batches": 40}, "x must hold at least 80 points for this measure; got 60"),
        ({"metric": [1.0, -1.0]}, "metric must be positive definite; its smallest eigenvalue is -1"),
        ({"metric": [[1.0, 1.0], [0.0, 1.0]]}, "metric must be symmetric"),
        ({"metric": np.eye(3)}, r"metric must be of size 2, the dimension of the energy; got shape \(3, 3\)"),
    ],
)
def test_bad_arguments(name, options, message):
    with pytest.raises(ValueError, match=message):
        estimate(name, START.sample(0, 60), **options)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95, math.nan])
def test_bad_confidence(confidence):
    with pytest.raises(ValueError, match="confidence must be between 0 and 1"):
        estimate("fisher", START.sample(0, 60), confidence=confidence)


def test_bad_particles_and_energies():
    x = START.sample(0, 60)
    broken = x.copy()
    broken[7] = np.inf
    steep = cg.CallableEnergy(lambda y: jnp.where(y[1] > 0.5, jnp.nan, y[0] ** 2), 2)
    for function in (measure.kl_transition, measure.entropy_transition, measure.fisher_transition):
        with pytest.raises(ValueError, match=r"x must have 2 columns"):
            function(x[:, :1], ENERGY, HEAT, STEP)
        with pytest.raises(ValueError, match="x must be finite; 1 of 60 rows are not, the first is row 7"):
            function(broken, ENERGY, HEAT, STEP)
        with pytest.raises(ValueError, match="temperature must be a finite number above 0; got -1"):
            function(x, ENERGY, -1.0, STEP)
        with pytest.raises(ValueError, match="gradient is not finite at 60 of 60 particles"):
            function(x, cg.CallableEnergy(lambda y: y[0] * np.nan, 2), HEAT, STEP)
    with pytest.raises(ValueError, match="energy is not finite at"):
        measure.kl_transition(x, steep, HEAT, STEP, 0.0)
