"""The optimal nonreversible drift against linear algebra: spectra, matrix exponentials, stability, exact moments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm

import ctrlgen as cg
from ctrlgen import Status
from ctrlgen.accelerate.friction import optimal_friction
from ctrlgen.accelerate.invariance import invariance
from ctrlgen.accelerate.skew import certified_rate, construct, exactly, levelled, optimal_skew
from ctrlgen.prove.claim import Deadline


def precision(dim, condition, seed=0, turned=True):
    rng = np.random.default_rng(seed)
    values = np.geomspace(1, condition, dim)
    basis = np.linalg.qr(rng.normal(size=(dim, dim)))[0] if turned else np.eye(dim)
    s = (basis * values) @ basis.T
    return (s + s.T) / 2


def test_case_16():
    """CASES 16: precision diag(1, 100): best rate 50.5 against 1."""
    verdict = optimal_skew(cg.Quadratic(np.diag([1.0, 100.0])))
    assert verdict.status is Status.PROVED
    assert abs(verdict.rate - 50.5) < 1e-6
    assert verdict.bound == 50.5
    assert abs(verdict.plain - 1) < 1e-12
    assert verdict.recheck()


@pytest.mark.parametrize(("dim", "condition"), [(2, 100), (3, 10), (7, 1e3), (20, 1e3), (30, 1e4)])
@pytest.mark.parametrize("spread", [1.5, 4.0, 100.0])
def test_the_whole_spectrum_has_the_mean_rate(dim, condition, spread):
    s = precision(dim, condition)
    mobility = np.diag(np.linspace(1, 2, dim))
    metric = 1 / np.diag(mobility)
    verdict = optimal_skew(cg.Quadratic(s), metric, spread=spread)
    modes = np.linalg.eigvals((mobility + verdict.skew) @ s)
    best = np.trace(mobility @ s) / dim
    assert np.abs(modes.real / best - 1).max() < 1e-9
    assert (verdict.skew == -verdict.skew.T).all()
    assert verdict.status is Status.PROVED
    assert best * (1 - 1e-9) < verdict.rate <= best * (1 + 1e-12)
    assert verdict.stability_limit == pytest.approx((2 * modes.real / abs(modes) ** 2).min(), rel=1e-9)
    assert verdict.energy_constant == pytest.approx(np.sqrt(spread), rel=1e-6)


def test_the_certificate_is_the_inequality_and_the_constants_bound_the_transient():
    s = precision(6, 200.0, seed=3)
    verdict = optimal_skew(cg.Quadratic(s), spread=9.0)
    flow, p = (np.eye(6) + verdict.skew) @ s, verdict.contraction
    slack = p @ flow + flow.T @ p - 2 * verdict.rate * p
    assert np.linalg.eigvalsh(slack)[0] > -1e-9 * np.abs(p @ flow).max()
    root = np.linalg.cholesky(s).T  # |x|_S = |root x|
    for t in np.geomspace(1e-4, 0.5, 40):
        move = expm(-t * flow)
        decay = np.exp(-verdict.rate * t)
        assert np.linalg.norm(move, 2) <= verdict.constant * decay * (1 + 1e-9)
        assert np.linalg.norm(root @ move @ np.linalg.inv(root), 2) <= verdict.energy_constant * decay * (1 + 1e-9)


@pytest.mark.parametrize("dim", [3, 30])
def test_no_rate_above_the_true_one_is_certified(dim):
    """What is verified is the inequality, whatever rate is aimed at."""
    s = precision(dim, 10.0)
    skew, factor = construct(s, np.eye(dim), 4.0)
    flow, exact, best = exactly(np.eye(dim) + skew) * exactly(s), exactly(s), np.trace(s) / dim
    assert isinstance(certified_rate(flow, factor, exact, 1.05 * best, Deadline(30.0)), str)
    found = certified_rate(flow, factor, exact, 1.005 * best, Deadline(30.0))
    assert not isinstance(found, str)
    assert found.rate <= best * (1 + 1e-12)


def test_one_dimension_and_isotropic_energies_need_no_skew():
    one = optimal_skew(cg.Quadratic([[3.0]]))
    assert one.status is Status.PROVED
    assert (one.rate, one.skew.tolist(), one.constant) == (3.0, [[0.0]], pytest.approx(1))
    flat = optimal_skew(cg.Quadratic(2.5 * np.eye(4)))
    assert flat.status is Status.PROVED
    assert flat.rate == 2.5
    assert not flat.skew.any()


def test_a_sum_of_quadratics_with_a_full_metric_is_one_quadratic():
    metric = np.array([[2.0, 0.4], [0.4, 0.5]])
    energy = cg.compose(
        [cg.Quadratic(np.diag([1.0, 9.0]), [1.0, 2.0]), cg.SymbolicEnergy("x**2 + x*y + y**2", ["x", "y"])]
    )
    verdict = optimal_skew(energy, metric)
    s = np.array([[3.0, 1.0], [1.0, 11.0]])
    assert verdict.status is Status.PROVED
    assert verdict.rate == pytest.approx(np.trace(np.linalg.inv(metric) @ s) / 2, rel=1e-9)


def test_a_factor_on_the_skew_is_certified_at_its_own_rate():
    s = precision(4, 50.0, seed=1)
    full = optimal_skew(cg.Quadratic(s))
    half = optimal_skew(cg.Quadratic(s), size=0.5)
    np.testing.assert_allclose(half.skew, full.skew / 2, rtol=1e-12)
    slowest = np.linalg.eigvals((np.eye(4) + half.skew) @ s).real.min()
    assert half.status is Status.PROVED
    assert slowest * (1 - 1e-6) < half.rate <= slowest * (1 + 1e-9) < full.rate


def test_large_dimensions_stay_sound():
    verdict = optimal_skew(cg.Quadratic(precision(60, 1e4)))
    assert verdict.status is Status.PROVED
    assert verdict.bound * (1 - 1e-9) < verdict.rate <= verdict.bound
    assert (verdict.skew == -verdict.skew.T).all()


def test_no_time_is_no_rate():
    verdict = optimal_skew(cg.Quadratic(precision(30, 1e4)), timeout=1e-9)
    assert verdict.status is Status.UNDECIDED
    assert verdict.rate is None
    assert "time" in verdict.reason


def test_a_stable_step_is_stable_and_a_longer_one_is_not():
    s = precision(5, 30.0)
    verdict = optimal_skew(cg.Quadratic(s))
    flow = (np.eye(5) + verdict.skew) @ s
    for factor, stable in ((0.999, True), (1.001, False)):
        step = np.eye(5) - factor * verdict.stability_limit * flow
        assert bool(np.abs(np.linalg.eigvals(step)).max() < 1) is stable


def test_the_plant_keeps_the_gaussian_and_gets_there_sooner():
    """Moments by simulation from far off, at a time when the plain loop has not forgotten the start."""
    s, temperature = np.diag([1.0, 25.0]), 0.5
    verdict = optimal_skew(cg.Quadratic(s), spread=16.0)
    plant = verdict.plant(temperature, fraction=0.02)
    assert plant.step == 0.02 * verdict.stability_limit
    x = cg.ClosedLoop(plant, cg.Quadratic(s)).simulate(np.full((40_000, 2), 3.0), 0.6, record=2).final.astype(float)
    expected = temperature / np.diag(s)
    assert (np.abs(x.mean(axis=0)) < 4.5 * np.sqrt(expected / len(x)) + 3 * 6 * np.exp(-verdict.rate * 0.6)).all()
    assert (np.abs(x.var(axis=0) / expected - 1) < 4.5 * np.sqrt(2 / len(x)) + 0.02).all()
    assert 3 * np.exp(-0.6) > 100 * 3 * np.exp(-verdict.rate * 0.6)


def test_an_energy_that_is_not_quadratic_is_linearised_and_says_so(rng):
    energy = cg.GaussianMixture([[-0.5, 0.0], [0.5, 0.0]], np.diag([1.0, 0.01]), temperature=1.0)
    states = energy.sample(1, 400)
    for options in ({"samples": states}, {"temperature": 1.0}, {}):
        verdict = optimal_skew(energy, **options)
        assert verdict.status is Status.SAMPLED
        assert "not quadratic" in verdict.reason
        assert (verdict.skew == -verdict.skew.T).all()
        assert not verdict.recheck()
        assert 45 < verdict.rate < 55
    mean = energy.hessian(states).mean(axis=0)
    verdict = optimal_skew(energy, samples=states)
    modes = np.linalg.eigvals((np.eye(2) + verdict.skew) @ mean)
    assert modes.real.min() == pytest.approx(verdict.rate, rel=1e-9)
    traces = np.trace(energy.hessian(states), axis1=1, axis2=2) / 2
    assert verdict.error == pytest.approx(traces.std(ddof=1) / 20, rel=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_levelled_bases_are_orthonormal_with_a_constant_diagonal(seed):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(9, 9)) * 10.0 ** rng.uniform(-3, 3, 9)
    a = a + a.T
    basis = levelled(a)
    np.testing.assert_allclose(basis.T @ basis, np.eye(9), atol=1e-13)
    np.testing.assert_allclose(np.diag(basis.T @ a @ basis), np.trace(a) / 9, atol=1e-12 * np.abs(a).max())


def test_what_is_kept_apart_makes_longer_steps():
    """Pairs that couple are given different λ: against the order that the basis came in."""
    from unittest import mock

    from ctrlgen.accelerate import skew

    energy = cg.Quadratic(precision(20, 1e3))
    arranged = optimal_skew(energy).stability_limit
    with mock.patch.object(skew, "_swapped", lambda square, table: np.arange(len(square))):
        assert arranged > 2 * optimal_skew(energy).stability_limit


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: optimal_skew(cg.Quadratic(np.eye(2)), spread=1.0), "spread must be above 1"),
        (lambda: optimal_skew(cg.Quadratic(np.eye(2)), spread="wide"), "spread must be positive and finite"),
        (lambda: optimal_skew(cg.Quadratic(np.eye(2)), size=-1.0), "size must be positive"),
        (lambda: optimal_skew(cg.Quadratic(np.eye(2)), np.ones(3)), "metric must be of size 2"),
        (lambda: optimal_skew(cg.Quadratic(np.eye(2)), lambda x: x), "metric must be constant"),
        (lambda: optimal_skew(cg.SymbolicEnergy("x**2 - y**2", ["x", "y"])), "must have a Gibbs measure"),
        (lambda: optimal_skew(cg.DoubleWell(), samples=np.zeros((5, 3))), r"samples must be finite states \(n, 2\)"),
        (lambda: optimal_skew(cg.DoubleWell(), samples=np.zeros((5, 2))), "positive definite mean curvature"),
        (lambda: optimal_skew(cg.Quadratic(np.eye(2))).plant(1.0, fraction=1.0), "fraction must be between 0 and 1"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("call", [optimal_skew, optimal_friction, lambda energy: invariance(energy, 1.0)])
def test_energies_behind_walls_are_refused(call):
    safety = cg.SafetyFilter([cg.BarrierFunction("1 - x1**2 - x2**2", ["x1", "x2"])], gain=1.0, mode="reflected")
    with pytest.raises(ValueError, match="energy must have no walls here"):
        call(safety.energy(cg.Quadratic(np.eye(2))))


def test_only_energies():
    with pytest.raises(TypeError, match="energy must be an Energy; got ndarray"):
        optimal_skew(np.eye(2))


def test_particles_that_need_not_follow_the_gradient_are_named():
    """|x|² written so that JAX takes 3x/2 for its gradient: J does not keep its measure, and the verdict says so."""
    other = cg.CallableEnergy(lambda x: jnp.sum(x * (x + jax.lax.stop_gradient(x))) / 2, 2)
    verdict = optimal_skew(other, samples=np.ones((4, 2)))
    assert verdict.status is Status.SAMPLED
    assert any("particles follow -∇E, although" in a for a in verdict.assumptions)
    plain = optimal_skew(cg.Funnel(2, 3.0), samples=np.ones((4, 2)) / 9)
    assert not any("particles" in a for a in plain.assumptions)
