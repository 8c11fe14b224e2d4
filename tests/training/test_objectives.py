"""Every objective on a problem whose answer is known from elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ctrlgen as cg
from ctrlgen.training import objectives
from ctrlgen.training.data import generator, prepare
from ctrlgen.training.objectives import (
    ContrastiveDivergence,
    EnergyMatching,
    MaximumLikelihood,
    ScoreMatching,
)
from tests.training.models import Quadratic


def fit(energy, data, objective, **options):
    options = {"standardise": False, "progress": False, **options}
    result = cg.train(energy, data, objective=objective, **options)
    assert result.status == "completed"
    return result


@pytest.mark.parametrize(
    ("dim", "nodes"),
    [
        pytest.param(1, 0, id="1-every cell"),
        pytest.param(2, 512, id="2-sampled cells"),
        pytest.param(2, 0, id="2-every cell", marks=pytest.mark.slow),
        pytest.param(1, 512, id="1-sampled cells", marks=pytest.mark.slow),
    ],
)
def test_maximum_likelihood_recovers_mean_and_variance(dim, nodes):
    rng = np.random.default_rng(0)
    data = rng.normal(size=(4000, dim)) * [0.7, 1.5][:dim] + [1.0, -0.5][:dim]
    temperature = 0.5
    objective = MaximumLikelihood(
        steps=400, learning_rate=0.05, temperature=temperature, nodes=nodes, points=24, ema=0.0, batch=1000
    )
    result = fit(Quadratic(dim), data, objective, held_out=500)
    network = result.energy.network
    variance = temperature / np.exp(np.asarray(network.log_precision))
    np.testing.assert_allclose(network.mean, data.mean(axis=0), atol=0.06)  # 0.7/√1000 is 0.02, twice that for 1.5
    np.testing.assert_allclose(variance, data.var(axis=0), rtol=0.08)
    # the held-out likelihood is the Gaussian's, whose entropy is closed form, within its sampling error
    entropy = 0.5 * np.log(2 * np.pi * np.e * data.var(axis=0)).sum()
    assert result.history["held_out_nll"][-1] == pytest.approx(entropy, abs=4 * np.sqrt(dim / 2 / 500))
    assert "border of the quadrature" in result.message


def test_maximum_likelihood_is_in_data_units_after_standardising():
    data = np.random.default_rng(1).normal(size=(3000, 1)) * 20 + 300
    result = fit(Quadratic(1), data, MaximumLikelihood(steps=50, learning_rate=0.02), standardise=True, held_out=300)
    assert result.history["held_out_nll"][-1] == pytest.approx(0.5 * np.log(2 * np.pi * np.e * 400), abs=0.2)
    assert result.energy.center[0] == pytest.approx(300, abs=2)


def test_maximum_likelihood_warns_of_mass_at_the_border():
    data = np.random.default_rng(2).normal(size=(500, 1))
    objective = MaximumLikelihood(steps=20, bounds=[[-1.0], [1.0]], points=8)
    with pytest.warns(UserWarning, match="Gibbs mass lies at the border of the quadrature"):
        fit(Quadratic(1, log_precision=-1.0), data, objective)


def test_score_matching_finds_the_blurred_score():
    data = np.random.default_rng(3).normal(size=(4000, 2)) * [0.6, 1.2] + [0.5, 0.0]
    sigma, temperature = 0.5, 2.0
    objective = ScoreMatching(steps=400, learning_rate=0.05, sigma=sigma, temperature=temperature, ema=0.0, batch=1000)
    network = fit(Quadratic(2), data, objective).energy.network
    precision = temperature / (data.var(axis=0) + sigma**2)
    np.testing.assert_allclose(np.exp(network.log_precision), precision, rtol=0.08)
    np.testing.assert_allclose(network.mean, data.mean(axis=0), atol=0.08)


def test_score_matching_over_a_range_draws_the_levels_log_uniformly():
    (phase,) = ScoreMatching(steps=1, batch=20_000, sigma=(0.01, 1.0)).phases()
    feed = prepare(np.random.default_rng(0).normal(size=(100, 1)), 1, "gaussian")
    level = np.log(phase.draw(feed, generator(0, 0))["level"])
    assert np.exp(level.min()) >= 0.01
    assert np.exp(level.max()) <= 1.0
    assert level.mean() == pytest.approx(np.log(0.1), abs=4 * level.std() / np.sqrt(20_000))


def test_contrastive_divergence_finds_the_precision_that_its_chains_hold():
    deviation, h, temperature = 0.8, 0.2, 0.5
    data = np.random.default_rng(4).normal(size=(5000, 1)) * deviation
    objective = ContrastiveDivergence(
        steps=400, learning_rate=0.03, temperature=temperature, langevin_step=h, langevin_steps=20, chains=2000,
        batch=1000, reinject=0.0, ema=0.98,
    )  # fmt: skip
    network = fit(Quadratic(1), data, objective).energy.network
    # the chains' stationary variance is (ε/κ)/(1 - κh/2): κ is the root for the data's variance
    kappa = np.roots([-h / 2, 1.0, -temperature / data.var()]).min()
    assert np.exp(float(network.log_precision[0])) == pytest.approx(kappa, rel=0.06)


def test_flow_matching_is_the_regression_on_optimally_coupled_paths():
    m, s, sigma = 2.0, 0.5, 0.3
    data = cg.datasets.Gaussian([m], s**2)
    objective = EnergyMatching(
        flow_steps=600, joint_steps=0, batch=256, learning_rate=0.05, decay="cosine", sigma=sigma
    )
    network = fit(Quadratic(1, mean=6.0, log_precision=-2.0), data, objective).energy.network
    # in one dimension the optimal map is x₁ = m + s x₀; regress x₁ - x₀ on x_t
    rng = np.random.default_rng(5)
    x0, t, noise = rng.normal(size=10**6), rng.random(10**6), rng.normal(size=10**6)
    x1 = m + s * x0
    slope, intercept = np.polyfit(x0 + t * (x1 - x0) + sigma * noise, x1 - x0, 1)
    assert slope < -0.1
    assert np.exp(float(network.log_precision[0])) == pytest.approx(-slope, rel=0.1)
    assert float(network.mean[0]) == pytest.approx(-intercept / slope, abs=0.5)


def joint(**settings):
    return EnergyMatching(flow_steps=0, joint_steps=1, batch=16, langevin_steps=40, langevin_step=0.05, **settings)


def test_trainings_chains_are_the_closed_loops_particles():
    energy = cg.MLPEnergy(2, width=8, depth=2)
    (phase,) = joint(temperature=0.3, onset=0.5).phases()
    start = np.random.default_rng(6).normal(size=(16, 2)).astype(np.float32)
    key = jax.random.key(9)
    negative = np.asarray(jax.jit(lambda x: phase.negatives(energy, x, key))(jnp.asarray(start.T))).T
    for half, schedule in ((slice(0, 8), "static"), (slice(8, 16), cg.TransportRamp(1.0, 2.0))):
        loop = cg.ClosedLoop(cg.Langevin(0.3, 0.05), energy, schedule=schedule)
        final = loop.simulate(start, 2.0, key=key).final
        # particle by particle, through 40 steps; a different stream or temperature is off by 0.1
        np.testing.assert_allclose(negative[half], final[half], atol=2e-4)


def test_joint_loss_is_the_faded_flow_and_the_contrast():
    onset, weight = 0.6, 3.0
    (phase,) = joint(onset=onset, contrastive_weight=weight).phases()
    energy = Quadratic(2, mean=0.2, log_precision=0.5)
    feed = prepare(np.random.default_rng(7).normal(size=(200, 2)) + 1, 2, "gaussian", standardise=False)
    batch = phase.draw(feed, generator(0, 0))
    key = jax.random.key(1)
    value, ((flow, contrast), _) = phase.loss(energy, {k: jnp.asarray(v) for k, v in batch.items()}, None, key)
    kappa = np.exp(0.5)
    velocity = -kappa * (batch["place"] - 0.2)
    fade = np.where(batch["time"] < onset, 1.0, 1 - (batch["time"] - onset) / (1 - onset))
    expected = np.mean(fade * np.mean((velocity - batch["velocity"]) ** 2, axis=0))
    assert float(flow) == pytest.approx(expected, rel=1e-4)
    e = lambda x: 0.5 * kappa * ((x - 0.2) ** 2).sum(axis=0).mean()  # noqa: E731
    negative = np.asarray(phase.negatives(energy, jnp.asarray(batch["start"]), key))
    assert float(contrast) == pytest.approx(e(batch["positive"]) - e(negative), abs=1e-4)
    assert float(value) == pytest.approx(expected + weight * float(contrast), abs=1e-4)


def test_no_gradient_flows_through_the_chains():
    (phase,) = joint().phases()
    energy = Quadratic(1, mean=0.3)
    feed = prepare(np.random.default_rng(8).normal(size=(50, 1)), 1, "gaussian")
    batch = {k: jnp.asarray(v) for k, v in phase.draw(feed, generator(0, 0)).items()}
    key = jax.random.key(2)
    slope = jax.grad(lambda m: phase.loss(Quadratic(1, mean=m), batch, None, key)[1][0][1])(0.3)
    negative = np.asarray(phase.negatives(energy, batch["start"], key))
    # d/dm of mean ½(x - m)² over data, less that over the fixed chains
    assert float(slope) == pytest.approx(negative.mean() - np.asarray(batch["positive"]).mean(), abs=1e-5)


def test_persistent_chains_come_back_to_their_places():
    objective = ContrastiveDivergence(steps=1, batch=8, chains=32, reinject=0.5, langevin_steps=3)
    (phase,) = objective.phases()
    feed = prepare(np.random.default_rng(9).normal(size=(50, 2)), 2, "gaussian")
    buffer = phase.begin(feed, generator(0, 0))
    batch = phase.draw(feed, generator(0, 1))
    _, (_, after) = phase.loss(Quadratic(2), {k: jnp.asarray(v) for k, v in batch.items()}, buffer, jax.random.key(0))
    moved = np.flatnonzero((np.asarray(after) != np.asarray(buffer)).any(axis=0))
    assert sorted(batch["rows"].tolist()) == moved.tolist()
    assert len(moved) == 8


@pytest.mark.parametrize("name", sorted(objectives.OBJECTIVES))
def test_objectives_have_names_and_settings(name):
    objective = objectives.get(name)
    assert objective.settings()["objective"] == name
    assert objectives.get(name, **{k: v for k, v in objective.settings().items() if k != "objective"}) == objective
    assert objective.length() == sum(phase.steps for phase in objective.phases())


def test_an_unknown_objective_lists_what_exists():
    with pytest.raises(ValueError, match=r"Unknown objective 'gan'; there are contrastive-divergence, energy-match"):
        objectives.get("gan")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EnergyMatching(batch=0), "batch must be an integer of at least 1; got 0"),
        (lambda: EnergyMatching(batch=1), "batch must be at least 2"),
        (lambda: EnergyMatching(flow_steps=0, joint_steps=0), "must not both be 0"),
        (lambda: EnergyMatching(onset=1.0), r"onset must be in \[0, 1\); got 1.0"),
        (lambda: EnergyMatching(learning_rate=-1), "learning_rate must be positive and finite; got -1"),
        (lambda: EnergyMatching(temperature=0.0), "temperature must be positive and finite; got 0.0"),
        (lambda: EnergyMatching(sigma=-0.1), "sigma must be finite and at least 0; got -0.1"),
        (lambda: EnergyMatching(decay="linear"), r"decay must be one of \['constant', 'cosine'\]; got 'linear'"),
        (lambda: EnergyMatching(ema=1.0), r"ema must be in \[0, 1\), 0 for none; got 1.0"),
        (lambda: EnergyMatching(langevin_steps=2.5), "langevin_steps must be an integer of at least 1; got 2.5"),
        (lambda: ScoreMatching(sigma=0.0), "sigma must be positive, or"),
        (lambda: ScoreMatching(sigma=(1.0, 0.1)), r"\(smallest, largest\) in that order; got \(1.0, 0.1\)"),
        (lambda: ScoreMatching(sigma=(1.0, 2.0, 3.0)), "sigma must be one number"),
        (lambda: ContrastiveDivergence(reinject=2.0), r"reinject must be in \[0, 1\]; got 2.0"),
        (lambda: ContrastiveDivergence(chains=10), "chains must be an integer of at least 256; got 10"),
        (lambda: MaximumLikelihood(points=2), "points must be an integer of at least 4; got 2"),
        (lambda: MaximumLikelihood(bounds=[[1.0], [0.0]]), r"bounds must be \(2, d\), lower corner below upper"),
    ],
)
def test_hyper_parameters_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()
