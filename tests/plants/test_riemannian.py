"""Langevin in a metric that depends on the state: the Gibbs law by quadrature and exact draws, orders, derivatives."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ctrlgen as cg
from ctrlgen.plants.mobility import StateMobility
from ctrlgen.precision import float64

WELL = cg.SymbolicEnergy("x**4/4 - x**2/2 + x/5", ["x"])
EPSILON = 0.5
BANANA = cg.Banana(scale=1.5, curvature=0.4)


def steep(x):
    """M = 1/(1 + x²): the mobility 1 + x² has the divergence 2x."""
    return 1 / (1 + x * x)


def bent(x):
    """The Gauss–Newton metric of the banana, (2, 2)."""
    a = 2 * 0.4 * x[0]
    return jnp.array([[1 / 1.5**2 + a * a, -a], [-a, 1.0]])


def necked(x):
    """Of the funnel in two dimensions."""
    return jnp.stack([0.6 + 0 * x[0], jnp.exp(-x[0])])


def well_quantiles(levels):
    grid = np.linspace(-4, 4, 4001)
    weight = np.exp(-WELL(grid[:, None]) / EPSILON)
    return np.interp(levels, np.cumsum(weight) / weight.sum(), grid)


def banana_draws(n, seed):
    rng = np.random.default_rng(seed)
    first = 1.5 * rng.normal(size=n)
    return np.stack([first, 0.4 * (first**2 - 1.5**2) + rng.normal(size=n)], axis=1)


def final(plant, energy, x, duration, key=1, **options):
    return cg.ClosedLoop(plant, energy, **options).simulate(x, duration, key=key, record=2).final.astype(np.float64)


def shares_below(x, levels, sigmas=4.5, bias=0.0):
    """Are the shares below the quantiles those levels, within so many standard errors?"""
    shares = (x[:, None] < well_quantiles(levels)).mean(axis=0)
    return bool((np.abs(shares - levels) < sigmas * np.sqrt(levels * (1 - levels) / len(x)) + bias).all())


LEVELS = np.array([0.05, 0.25, 0.5, 0.75, 0.95])


def test_euler_keeps_the_gibbs_law_in_one_dimension():
    """Quantiles against quadrature; without ε∇·K the law would be exp(-E/ε)/K, which is far off."""
    start = np.interp(np.random.default_rng(0).uniform(size=30_000), np.linspace(0, 1, 2001)[1:-1],
                      well_quantiles(np.linspace(0, 1, 2001)[1:-1]))[:, None]  # fmt: skip
    x = final(cg.Langevin(EPSILON, 0.004, metric=steep), WELL, start, 4.0)[:, 0]
    assert shares_below(x, LEVELS, bias=0.004)  # the bias of the step
    grid = np.linspace(-4, 4, 4001)
    wrong = np.exp(-WELL(grid[:, None]) / EPSILON) / (1 + grid**2)
    shares = np.interp(well_quantiles(LEVELS), grid, np.cumsum(wrong) / wrong.sum())
    assert np.abs(shares - LEVELS).max() > 0.05


def test_metropolis_is_exact_at_a_long_step():
    start = np.interp(np.random.default_rng(0).uniform(size=40_000), np.linspace(0, 1, 2001)[1:-1],
                      well_quantiles(np.linspace(0, 1, 2001)[1:-1]))[:, None]  # fmt: skip
    loop = cg.ClosedLoop(cg.Langevin(EPSILON, 0.5, "mala", metric=steep), WELL)
    response = loop.simulate(start, 15.0, key=3, record=2)
    assert shares_below(response.final[:, 0].astype(float), LEVELS)
    assert 0.2 < response.acceptance < 0.85


@pytest.mark.slow
def test_metropolis_keeps_a_banana_in_a_full_metric():
    start, fresh = banana_draws(40_000, 1), banana_draws(40_000, 2)
    response = cg.ClosedLoop(cg.Langevin(1.0, 0.6, "mala", metric=bent), BANANA).simulate(start, 9.0, record=2)
    assert 0.3 < response.acceptance < 0.97
    assert_same_moments(response.final.astype(float), fresh)


@pytest.mark.slow
def test_euler_keeps_a_banana_in_a_full_metric_with_a_skew_part():
    start, fresh = banana_draws(20_000, 1), banana_draws(40_000, 2)
    plant = cg.Langevin(1.0, 0.004, metric=bent, skew=[[0.0, 0.7], [-0.7, 0.0]])
    assert_same_moments(final(plant, BANANA, start, 2.0), fresh, bias=0.02)


def assert_same_moments(x, y, bias=0.0):
    for of in (lambda z: z, lambda z: z**2, lambda z: z[:, :1] * z[:, 1:], lambda z: z[:, :1] ** 2 * z[:, 1:]):
        a, b = of(x), of(y)
        error = np.sqrt(a.var(axis=0) / len(a) + b.var(axis=0) / len(b))
        assert (np.abs(a.mean(axis=0) - b.mean(axis=0)) < 4.5 * error + bias * b.std(axis=0)).all()


def stationary_square(step):
    """E[x²] under the stationary law of the Euler chain, by its transition matrix on a grid."""
    grid = np.linspace(-3.2, 3.2, 321)
    plant = cg.Langevin(EPSILON, step, metric=steep)
    with float64():
        drift = np.asarray(plant.drift(WELL, jnp.asarray(grid[None])))[0]
    variance = 2 * EPSILON * step * (1 + grid**2)
    move = np.exp(-((grid[None] - grid[:, None] - step * drift[:, None]) ** 2) / (2 * variance[:, None]))
    move /= move.sum(axis=1, keepdims=True)
    law = np.full(len(grid), 1 / len(grid))
    for _ in range(14):  # 2^14 steps
        move = move @ move
    return float((law @ move) @ grid**2)


def test_weak_order_of_the_stationary_law():
    grid = np.linspace(-4, 4, 8001)
    weight = np.exp(-WELL(grid[:, None]) / EPSILON)
    exact = (weight @ grid**2) / weight.sum()
    steps = 0.02 * 2.0 ** -np.arange(4)
    error = [abs(stationary_square(h) - exact) for h in steps]
    assert abs(np.polyfit(np.log(steps), np.log(error), 1)[0] - 1) < 0.2


def test_one_step_is_the_drift_and_the_kick():
    x = np.random.default_rng(0).normal(size=(50, 2))
    plant = cg.Langevin(0.7, 0.05, metric=bent, skew=[[0.0, 0.7], [-0.7, 0.0]])
    with float64():
        state = plant.begin(BANANA, jnp.asarray(x.T), 3)

        def both(now):
            kick, _ = plant.kick(now.lanes, now.position, jnp.float64(0.7))
            return now.position + 0.05 * plant.drift(BANANA, now.position) + kick, plant.move(BANANA, now, 0.7).position

        expected, after = jax.jit(both)(state)
    np.testing.assert_allclose(np.asarray(after), np.asarray(expected), rtol=1e-12)


def wavy(d):
    mix = np.random.default_rng(d).normal(size=(d, d)) / d

    def metric(x):
        low = jnp.asarray(mix, x.dtype) * jnp.sin(x)[:, None] + jnp.diag(1.5 + jnp.cos(x))
        return low @ low.T + 0.5 * jnp.eye(d, dtype=x.dtype)

    return metric


@pytest.mark.parametrize(
    ("d", "full"), [(1, True), (3, True), (2, False), (10, False), pytest.param(10, True, marks=pytest.mark.slow)]
)
@pytest.mark.slow
def test_the_metric_at_particles_against_dense_linear_algebra(d, full):
    """K v, vᵀMv, log det M, a root of K and ∇·K = Σ_j ∂_j (M⁻¹)_ij, by inverses and forward derivatives of these."""
    metric = wavy(d) if full else lambda x: jnp.diagonal(wavy(d)(x)) + 0.1 * jnp.sum(x**2)
    x, v = np.random.default_rng(d).normal(size=(2, 7, d))
    with float64():
        local, divergence = jax.jit(StateMobility(metric).look)(jnp.asarray(x.T))

        def inverse(y):
            value = metric(y)
            return jnp.linalg.inv(value if full else jnp.diag(value))

        k, slopes = map(np.asarray, jax.jit(jax.vmap(lambda y: (inverse(y), jax.jacfwd(inverse)(y))))(jnp.asarray(x)))
        units = jnp.tile(jnp.eye(d)[:, :, None], 7)
        answers = jax.jit(lambda at, w: (at.moved(w), at.square(w), at.log_det, jax.vmap(at.coloured)(units)))
        moved, square, log_det, columns = map(np.asarray, answers(local, jnp.asarray(v.T)))
    root = np.transpose(columns, (2, 1, 0))
    np.testing.assert_allclose(np.asarray(divergence).T, np.einsum("nijj->ni", slopes), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(moved.T, np.einsum("nij,nj->ni", k, v), rtol=1e-9)
    np.testing.assert_allclose(square, np.einsum("ni,nij,nj->n", v, np.linalg.inv(k), v), rtol=1e-9)
    np.testing.assert_allclose(log_det, -np.linalg.slogdet(k)[1], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(root @ np.swapaxes(root, 1, 2), k, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(StateMobility(metric)(x[0]), k[0] if full else np.diag(k[0]), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("scheme", "metric"),
    [("euler", [2.0, 0.5]), pytest.param("mala", [[2.0, 0.4], [0.4, 0.5]], marks=pytest.mark.slow)],
)
def test_a_function_that_is_constant_is_the_array(scheme, metric):
    """The same particles for a diagonal; the same law for a full one, of which another root of K is taken."""
    x = np.random.default_rng(1).normal(size=(20_000, 2))
    both = [metric, lambda y: jnp.asarray(metric) + 0 * y[0]]
    array, function = (final(cg.Langevin(0.6, 0.02, scheme, metric=m), cg.DoubleWell(), x, 0.4) for m in both)
    if np.ndim(metric) == 1:
        np.testing.assert_allclose(np.quantile(np.abs(function - array), 0.99), 0, atol=1e-4)
    assert_same_moments(function, array)


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "share"), [("euler", 0.2), ("mala", 0.85)])
def test_the_neck_of_a_funnel_is_reached(scheme, share):
    """v = x₁ ~ N(0, 9): a share of 0.091 lies below -4. A step that the metric makes safe there is too long without."""
    start = np.tile([2.0, 0.0], (10_000, 1))
    below = {}
    for name, metric in (("metric", necked), ("plain", None)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            x = final(cg.Langevin(1.0, 0.05, scheme, metric=metric), cg.Funnel(2, 3.0), start, 40.0)
        below[name] = float(np.mean(x[:, 0] < -4))
    assert abs(below["metric"] - 0.0912) < 0.02
    assert below["plain"] < share * below["metric"]


def test_the_correction_follows_the_schedule():
    """E = 0: after one step the mean has moved by h ε(t) K'(x), the variance is 2hε(t)K(x)."""
    flat = cg.SymbolicEnergy("0", ["x"])
    plant = cg.Langevin(0.5, 0.05, metric=steep)
    x = final(plant, flat, np.ones((40_000, 1)), 0.05, schedule=lambda t: 3.0 + 0 * t)[:, 0]
    variance = 2 * 0.05 * 1.5 * 2
    assert abs(x.mean() - (1 + 0.05 * 1.5 * 2)) < 4.5 * np.sqrt(variance / len(x))
    assert abs(x.var() / variance - 1) < 4.5 * np.sqrt(2 / len(x))


def test_the_warning_of_stability_sees_the_metric():
    """Curvature 100 at the start; in the metric it is 1 there."""
    energy, start = cg.SymbolicEnergy("50*x**2 + x**4", ["x"]), np.zeros((10, 1))
    with pytest.raises(UserWarning, match=r"beyond the stability limit 0\.02"):  # before anything runs
        cg.ClosedLoop(cg.Langevin(1e-6, 0.1), energy).simulate(start, 0.1)
    final(cg.Langevin(1e-6, 0.1, metric=lambda x: 100.0 + x**2), energy, start, 0.1)


BARRIER = cg.BarrierFunction("1 - x1**2 - x2**2", ["x1", "x2"])


@pytest.mark.slow
def test_mala_keeps_the_gibbs_law_behind_walls():
    reflected = cg.SafetyFilter([BARRIER], gain=1.0, mode="reflected")
    plant = cg.Langevin(1.0, 0.3, "mala", metric=bent)
    start = np.random.default_rng(0).uniform(-0.6, 0.6, size=(8000, 2))
    response = cg.ClosedLoop(plant, BANANA, safety=reflected).simulate(start, 15.0, record=2)
    assert (np.linalg.norm(response.final, axis=1) <= 1).all()
    inside = banana_draws(200_000, 3)
    inside = inside[np.linalg.norm(inside, axis=1) < 1]
    assert_same_moments(response.final.astype(float), inside)


def test_only_mala_behind_walls_goes_with_a_filter():
    walls = cg.SafetyFilter([BARRIER], gain=1.0, mode="reflected")
    cg.ClosedLoop(cg.Langevin(1.0, 0.3, "mala", metric=bent), BANANA, safety=walls)
    for mode in ("cbf", "reflected", "barrier_energy"):
        options = {"mu": 1.0} if mode == "barrier_energy" else {}
        safety = cg.SafetyFilter([BARRIER], gain=1.0, mode=mode, **options)
        with pytest.raises(ValueError, match="metric must be constant under a safety filter"):
            cg.ClosedLoop(cg.Langevin(1.0, 0.01, metric=bent), BANANA, safety=safety)


@pytest.mark.parametrize(
    ("metric", "kind", "message"),
    [
        (lambda x: jnp.ones(3), ValueError, r"metric must return shape \(2,\) or \(2, 2\).*got \(3,\)"),
        (lambda x: x - 5, ValueError, "metric must be positive definite; at the initial particle"),
        (lambda x: -jnp.eye(2), ValueError, "metric must be positive definite"),
        (lambda x: jnp.array([[1.0, 0.5], [0.0, 1.0]]), ValueError, "metric must be symmetric"),
        (lambda x: x * jnp.nan, ValueError, "metric must be finite"),
        (lambda x: jnp.ones(2) if float(x[0]) > 0 else x, TypeError, "metric must be a JAX-traceable function"),
    ],
)
def test_metrics_that_are_none_are_refused_before_the_run(metric, kind, message):
    with pytest.raises(kind, match=message):
        cg.ClosedLoop(cg.Langevin(1.0, 0.1, metric=metric), BANANA).simulate(np.ones((3, 2)), 1.0)


def test_what_needs_one_mobility_says_so():
    plant = cg.Langevin(1.0, 0.1, metric=bent)
    with pytest.raises(ValueError, match="metric must be constant for a drift that depends on the slope alone"):
        plant.command(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="dissipation of particles is estimated in constant metrics only"):
        plant.dissipation(banana_draws(100, 0), BANANA)
    with pytest.raises(ValueError, match="skew must be omitted"):
        cg.Langevin(1.0, 0.1, "mala", metric=bent, skew=[[0.0, 1.0], [-1.0, 0.0]])
    assert plant.dim is None
    assert "metric" in repr(plant) or "StateMobility" in repr(plant)
