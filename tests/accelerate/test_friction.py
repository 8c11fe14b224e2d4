"""Certified frictions against spectra, against a search over all metrics, and against trajectories under one noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

import ctrlgen as cg
from ctrlgen import Status
from ctrlgen.accelerate.friction import contracts, optimal_friction

BENT = cg.SymbolicEnergy("x**2 + 0.2*cos(2*x) + y**2", ["x", "y"])


def unknown(dim):
    """A convex energy of which nothing is established."""
    return cg.CallableEnergy(lambda x: jnp.sum(jnp.where(x > 0, x * x, x * x / 2)), dim)


def test_quadratics_reach_the_root_of_the_least_curvature():
    s = np.diag([1.0, 4.0, 100.0])
    verdict = optimal_friction(cg.Quadratic(s))
    assert verdict.status is Status.PROVED
    assert verdict.friction == 2 * verdict.rate
    assert verdict.rate == pytest.approx(1 - 2 / 101, rel=1e-12)
    assert verdict.constant == pytest.approx(10, rel=1e-9)
    assert verdict.plain == 1.0
    assert verdict.stability_limit == pytest.approx(0.2)
    flow = np.block([[np.zeros((3, 3)), np.eye(3)], [-s, -verdict.friction * np.eye(3)]])
    g = verdict.metric
    np.testing.assert_allclose(g @ flow + flow.T @ g, -verdict.friction * g, atol=1e-12)
    assert np.linalg.eigvals(flow).real.max() == pytest.approx(-verdict.rate, rel=1e-9)
    assert verdict.recheck()


@pytest.mark.parametrize("constant", [1.5, 3.0, 1e4])
def test_the_constant_is_that_of_the_metric_in_the_energy_norm(constant):
    verdict = optimal_friction(cg.Quadratic([[2.0]]), constant=constant)
    weight = np.diag([2.0, 1.0])
    values = np.linalg.eigvals(np.linalg.solve(weight, verdict.metric)).real
    assert np.sqrt(values.max() / values.min()) == pytest.approx(verdict.constant, rel=1e-5)
    assert verdict.constant <= constant * (1 + 1e-6)
    assert verdict.rate < np.sqrt(2)


def largest_rate(low, high):
    """The largest λ over γ and all metrics [[a, b], [b, 1]], by a search that knows nothing of the closed form."""

    def rate(p):
        a, b, gamma = np.exp(p)
        if a <= b * b:
            return -1.0
        g = np.array([[a, b], [b, 1.0]])
        root = np.linalg.inv(np.linalg.cholesky(g))
        flows = [np.array([[0, 1.0], [-s, -gamma]]) for s in (low, high)]
        return min(-np.linalg.eigvalsh(root @ (g @ f + f.T @ g) @ root.T)[-1] / 2 for f in flows)

    best = -np.inf
    for gamma in np.sqrt(low + high) * np.array([0.7, 1.0, 1.4]):
        start = np.log([(low + high) / 2, gamma / 2.1, gamma])
        for _ in range(3):
            found = minimize(lambda p: -rate(p), start, method="Nelder-Mead", options={"maxiter": 600, "xatol": 1e-10})
            start = found.x
        best = max(best, -found.fun)
    return best


@pytest.mark.parametrize(("low", "high"), [(1.0, 2.0), (1.0, 30.0), (0.05, 4.0)])
def test_bounds_alone_give_the_best_isotropic_metric(low, high):
    verdict = optimal_friction(unknown(3), m=low, L=high)
    assert verdict.status is Status.PROVED
    searched = largest_rate(low, high)
    assert searched * (1 - 1e-9) < verdict.rate < searched * (1 + 1e-3)
    assert verdict.rate >= low / np.sqrt(low + high)  # Dalalyan and Riou-Durand, Bernoulli 26 (2020) 1956
    assert verdict.recheck()


def test_the_inequality_is_asked_at_both_bounds_and_of_a_metric():
    """At the known point γ = √(m + L) with a = (m + L)/2: it holds up to m/√(m + L), and for no wider bounds."""
    low, high, half, a, rate = 4.0, 60.0, 4.0, 32.0, 0.5
    assert contracts(low, high, half, a, rate)
    assert not contracts(low, high, half, a, rate + 1e-12)
    assert not contracts(low, high + 1e-9, half, a, rate)
    assert not contracts(low - 1e-9, high, half, a, rate)
    assert not contracts(16.0, 16.0, 4.0, 16.0, 4.0)  # equality throughout, but G is singular


def test_the_known_point_is_on_the_curve():
    """At γ = √(m + L) the rate is m/√(m + L), so that γ = best - a little cannot be far from it for large L/m."""
    verdict = optimal_friction(unknown(2), m=1.0, L=1e4)
    assert verdict.rate == pytest.approx(1 / np.sqrt(1e4 + 1), rel=1e-3)
    assert verdict.friction == pytest.approx(np.sqrt(1e4 + 1), rel=1e-3)


def test_equal_bounds_are_a_quadratic_and_the_constant_limits_them():
    bounds = optimal_friction(unknown(1), m=2.0, L=2.0, constant=5.0)
    exact = optimal_friction(cg.Quadratic([[2.0]]), constant=5.0)
    assert bounds.rate == pytest.approx(exact.rate, rel=1e-12)
    assert bounds.constant <= 5.0 * (1 + 1e-9)
    assert any("⪰ 2.0 I, as it was given" in a for a in bounds.assumptions)


@pytest.mark.parametrize("energy", [cg.Quadratic([[1.0, 0.3], [0.3, 6.0]]), BENT], ids=["quadratic", "bent"])
@pytest.mark.slow
def test_trajectories_under_one_noise_contract_at_least_at_the_rate(energy, rng):
    verdict = optimal_friction(energy)
    assert verdict.status is Status.PROVED
    plant = cg.KineticLangevin(0.4, verdict.friction, 0.002)
    starts = rng.normal(size=(2, 200, 2)) * 2
    runs = [_phase(plant, energy, x, 1000) for x in starts]
    gap = runs[0] - runs[1]
    length = np.sqrt(np.einsum("kni,ij,knj->kn", gap, verdict.metric, gap))
    times = 0.002 * 100 * np.arange(len(length))
    assert (length <= length[0] * np.exp(-verdict.rate * times)[:, None] * (1 + 0.01)).all()
    assert length[-1].max() > 1e-5 * length[0].max()  # the claim is about numbers above rounding


def _phase(plant, energy, x, steps):
    """Positions and velocities (k, n, 4) at every hundredth step, in float64, for the same noise."""
    import equinox as eqx
    import jax.numpy as jnp

    from ctrlgen.plants.particles import evolve
    from ctrlgen.precision import float64

    with float64():
        state = plant.begin(energy, jnp.asarray(x.T), 7)
        walk = eqx.filter_jit(lambda s: evolve(plant, energy, s, 100))
        out = [state]
        for _ in range(steps // 100):
            out.append(walk(out[-1]))
        return np.stack([np.concatenate([s.position, s.memory[0]]).T for s in out])


def test_without_convexity_there_is_no_rate_and_no_plant():
    verdict = optimal_friction(cg.DoubleWell())
    assert verdict.status is Status.UNDECIDED
    assert verdict.rate is None
    assert "convexity" in verdict.reason
    with pytest.raises(ValueError, match="no friction was certified"):
        verdict.plant(1.0)


class Gentle(cg.Energy):
    """½|x|² that pushes with a hundredth of its slope."""

    dim: int = 2

    def potential(self, x):
        return jnp.sum(x * x, axis=0) / 2

    def slope(self, x):
        return 0.01 * x

    @property
    def properties(self):
        return cg.Properties(hessian_lower=1.0, hessian_upper=1.0)


class Honest(cg.Energy):
    """½|x|², with constants that the library has to believe."""

    dim: int = 2

    def potential(self, x):
        return jnp.sum(x * x, axis=0) / 2

    @property
    def properties(self):
        return cg.Properties(hessian_lower=1.0, hessian_upper=1.0)


HALVED = cg.CallableEnergy(lambda x: jnp.sum(x * jax.lax.stop_gradient(x)) / 2, 2)


@pytest.mark.parametrize(
    ("energy", "options"),
    [(HALVED, {}), (HALVED, {"m": 1.0, "L": 1.0}), (HALVED + cg.Quadratic(np.eye(2)), {}), (Gentle(), {})],
)
def test_constants_of_a_function_that_particles_do_not_follow_prove_nothing(energy, options):
    verdict = optimal_friction(energy, **options)
    assert verdict.status is Status.UNDECIDED
    assert verdict.friction is None
    assert "gradient" in verdict.reason


def test_constants_of_a_foreign_class_are_taken_on_its_word():
    verdict = optimal_friction(Honest())
    assert verdict.status is Status.PROVED
    assert any("Honest are as its own .properties" in a for a in verdict.assumptions)


def test_bounds_that_are_given_are_not_believed_across_a_kink():
    energy = cg.SymbolicEnergy("x**2 + Abs(x)", ["x"])
    verdict = optimal_friction(energy, m=1.0, L=3.0)
    assert verdict.status is Status.UNDECIDED
    assert "kink" in verdict.reason


def test_a_constant_that_leaves_no_rate_says_which_does():
    energy = unknown(2)
    verdict = optimal_friction(energy, m=1.0, L=2.0, constant=1.0001)
    assert verdict.status is Status.UNDECIDED
    assert "is no rate" in verdict.reason
    assert "rounding" not in verdict.reason
    least = float(verdict.reason.split("constant above ")[1])
    assert optimal_friction(energy, m=1.0, L=2.0, constant=least * 1.001).status is Status.PROVED
    assert optimal_friction(energy, m=1.0, L=2.0, constant=least * 0.999).status is Status.UNDECIDED


@pytest.mark.parametrize("high", [1e10, 1e12])
def test_a_rate_far_below_the_friction_is_not_lost(high):
    verdict = optimal_friction(unknown(2), m=1.0, L=high)
    assert verdict.status is Status.PROVED
    assert verdict.rate == pytest.approx(1 / np.sqrt(high), rel=1e-5)
    assert verdict.recheck()


def test_bounds_beyond_what_floats_resolve_say_so():
    verdict = optimal_friction(unknown(2), m=1.0, L=1e300)
    assert verdict.status is Status.UNDECIDED
    assert "L/m = 1e+300" in verdict.reason
    assert optimal_friction(cg.Quadratic(np.eye(2)), constant=1e300).status is Status.PROVED


def test_the_plant_has_the_friction_and_the_fraction():
    verdict = optimal_friction(cg.Quadratic(np.diag([1.0, 9.0])))
    plant = verdict.plant(0.3, fraction=0.1)
    assert (plant.friction, plant.step, plant.temperature) == (verdict.friction, 0.1 * verdict.stability_limit, 0.3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: optimal_friction(cg.Quadratic(np.eye(2)), m=-1.0), "m must be positive"),
        (lambda: optimal_friction(cg.Quadratic(np.eye(2)), m=2.0, L=1.0), "m must agree with what is established"),
        (lambda: optimal_friction(cg.DoubleWell(), m=2.0, L=1.0), "m must not exceed L"),
        (lambda: optimal_friction(cg.Quadratic(np.eye(2)), m=0.1, L=0.5), "L must agree with what is established"),
        (lambda: optimal_friction(cg.Quadratic(np.eye(2)), m=2.0, L=3.0), "m must agree with what is established"),
        (lambda: optimal_friction(cg.Quadratic(np.eye(2)), constant=1.0), "constant must be above 1"),
        (lambda: optimal_friction(cg.Quadratic(np.eye(2)), constant=np.inf), "constant must be positive and finite"),
        (lambda: optimal_friction(cg.Quadratic(np.eye(2))).plant(1.0, fraction=0.0), "fraction must be between"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_only_energies():
    with pytest.raises(TypeError, match="energy must be an Energy"):
        optimal_friction("x**2")
