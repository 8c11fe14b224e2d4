"""The machinery of training: same key, same bits; resumption, divergence, interruption, early stop, bad input."""

import dataclasses
import json
import signal
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from tqdm import tqdm

import ctrlgen as cg
from ctrlgen.precision import float64
from ctrlgen.training import checkpoint, run
from ctrlgen.training.data import generator, prepare
from ctrlgen.training.objectives import ContrastiveDivergence, EnergyMatching, MaximumLikelihood, ScoreMatching
from tests.training.models import Quadratic

DATA = np.random.default_rng(0).normal(size=(300, 2)) * [2.0, 0.5] + [1.0, -3.0]
QUICK = ScoreMatching(steps=200, batch=16)


def network(dim=2):
    return cg.MLPEnergy(dim, width=8, depth=2, confinement=1.0)


def train(energy=None, data=DATA, objective=QUICK, **options):
    return cg.train(energy or network(data.dim if hasattr(data, "dim") else np.shape(data)[1]), data,
                    objective=objective, progress=False, **options)  # fmt: skip


def bits(result):
    return [np.asarray(leaf) for leaf in (*result.energy.network.weights, *result.energy.network.biases)]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(bits(a), bits(b), strict=True))


class Alarm:
    """Two moons that ring Ctrl-C (or worse) at the chosen draw; draws happen ahead, in another thread."""

    dim, name = 2, "alarm"

    def __init__(self, at, act=lambda: signal.raise_signal(signal.SIGINT)):
        self.at, self.act, self.draws = at, act, 0

    def sample(self, key, n):
        self.draws += 1
        out = cg.datasets.two_moons.sample(key, n)
        if self.draws == self.at:
            replaced = self.act()
            out = out if replaced is None else replaced(out)
        return out


class Impatient(tqdm):
    """A progress bar at which somebody presses Ctrl-C."""

    def __init__(self, *args, limit, **options):
        super().__init__(*args, **options)
        self.limit, self.steps = limit, options["initial"]

    def update(self, n=1):
        self.steps += n
        if self.limit is not None and self.steps >= self.limit:
            raise KeyboardInterrupt
        return super().update(n)


# Determinism and resumption ----------------------------------------------------------------------------


def test_the_key_decides_everything():
    assert same(train(key=3), train(key=3))
    assert not same(train(key=3), train(key=4))


def test_measuring_and_recording_change_nothing():
    plain, watched = train(), train(record=7, held_out=DATA[:50], evaluate=33)
    assert same(plain, watched)
    assert plain.history["loss"].shape == (200,)
    assert watched.history["step"].tolist()[:2] == [7, 14]
    assert watched.history["step"][-1] == 200
    assert watched.history["loss"][0] == pytest.approx(plain.history["loss"][:7].mean())
    assert watched.history["held_out_step"].tolist() == [33, 66, 99, 132, 165, 198, 200]


RESUMABLE = {
    "flow, then contrast": [EnergyMatching(flow_steps=100, joint_steps=40, batch=16, langevin_steps=50, ema=0.9)],
    "persistent chains": [ContrastiveDivergence(steps=200, batch=16, chains=64, langevin_steps=20)],
    "a chain of objectives": [
        ScoreMatching(steps=90, batch=16),
        MaximumLikelihood(steps=130, batch=16, points=12, nodes=64),
    ],
}


@pytest.mark.parametrize(
    "objective",
    [pytest.param(o, id=k, marks=[] if k == "persistent chains" else pytest.mark.slow) for k, o in RESUMABLE.items()],
)
def test_interrupted_and_resumed_is_the_straight_run_to_the_bit(objective, tmp_path, monkeypatch):
    data = cg.datasets.two_moons
    straight = train(data=data, objective=objective)
    file = tmp_path / "run.safetensors"
    for limit in (60, 110, None):
        monkeypatch.setattr(run, "tqdm", partial(Impatient, limit=limit))
        result = train(data=data, objective=objective, checkpoint=file)
        if limit is not None:
            assert result.status == "interrupted"
            assert limit <= result.steps < straight.steps
            assert f"Interrupted after {result.steps} of {straight.steps} steps" in result.message
    assert result.status == "completed"
    assert same(result, straight)
    for name, values in straight.history.items():
        assert np.array_equal(values, result.history[name], equal_nan=values.dtype.kind == "f"), name


def test_a_finished_run_is_not_repeated(tmp_path):
    file = tmp_path / "run.safetensors"
    first = train(checkpoint=file)
    written = file.stat().st_mtime_ns
    again = train(checkpoint=file)
    assert same(first, again)
    assert (again.status, again.steps, again.seconds) == (first.status, first.steps, first.seconds)
    assert file.stat().st_mtime_ns == written


def test_a_checkpoint_holds_no_code_and_belongs_to_its_run(tmp_path):
    file = tmp_path / "run.safetensors"
    train(checkpoint=file)
    with safe_open(file, framework="numpy") as content:
        assert json.loads(content.metadata()["ctrlgen-training"])["version"] == checkpoint.VERSION
    assert [path.name for path in tmp_path.iterdir()] == ["run.safetensors"]
    with pytest.raises(ValueError, match="belongs to another run: key differ"):
        train(checkpoint=file, key=1)
    with pytest.raises(ValueError, match="belongs to another run: data differ"):
        train(data=DATA + 1.0, checkpoint=file)
    assert train(checkpoint=file, key=1, resume=False).steps == 200


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint at all", None], ids=["empty", "foreign", "truncated"])
def test_a_damaged_checkpoint_is_named(damage, tmp_path):
    file = tmp_path / "run.safetensors"
    if damage is None:
        train(checkpoint=file)
        damage = file.read_bytes()[:-100]
    file.write_bytes(damage)
    with pytest.raises(ValueError, match=r"run.safetensors is damaged or not a training checkpoint"):
        train(checkpoint=file)


# How a run ends ----------------------------------------------------------------------------------------


def test_divergence_keeps_the_last_good_weights():
    def poison(rows):
        rows = rows.copy()
        rows[0] = np.nan
        return rows

    scale = 1  # one draw settles the standardisation
    steady = ScoreMatching(steps=200, batch=16, decay="constant")
    diverged = train(data=Alarm(at=scale + 131, act=lambda: poison), objective=steady)
    assert diverged.status == "diverged"
    assert diverged.steps == 130
    assert "At step 131 (denoising) the loss left the finite numbers" in diverged.message
    assert diverged.history["loss"].shape == (130,)
    # the weights of the first 130 steps, and nothing of the 131st
    straight = train(data=cg.datasets.two_moons, objective=dataclasses.replace(steady, steps=130))
    assert same(diverged, straight)


def test_interruption_returns_what_there_is():
    result = train(data=Alarm(at=80))
    assert result.status == "interrupted"
    assert result.history["loss"].shape == (result.steps,)
    assert np.isfinite(result.energy(DATA)).all()


def test_early_stop_keeps_the_best_weights():
    # the optimum is reached at once; from there a high, constant rate only shakes the weights
    objective = MaximumLikelihood(steps=400, batch=16, learning_rate=0.3, decay="constant", ema=0.0, points=12)
    result = train(Quadratic(1), DATA[:, :1], objective, held_out=100, evaluate=10, patience=4)
    quality = result.history["held_out_nll"]
    assert result.status == "stopped early"
    assert result.steps == result.history["held_out_step"][-1] < 400
    assert len(quality) - 1 - np.argmin(quality) == 4
    feed_rows = (DATA[:, :1] - result.energy.center) / result.energy.scale
    assert feed_rows.shape == (300, 1)
    assert result.held_out == quality.min()
    assert f"did not improve on {quality.min():.4g} for 4 measurements" in result.message
    # the returned weights are those of the best measurement
    variance = np.exp(-np.asarray(result.energy.network.log_precision))
    aside = _aside(100)
    z = (aside - result.energy.center) / result.energy.scale
    nll = (
        np.mean((z - result.energy.network.mean) ** 2 / (2 * variance))
        + 0.5 * np.log(2 * np.pi * variance[0])
        + np.log(result.energy.scale[0])
    )
    assert nll == pytest.approx(quality.min(), abs=2e-3)


def _aside(count):
    return DATA[generator(0, 0).permutation(len(DATA))[:count], :1]


def test_held_out_samples_are_judged_by_their_distance():
    result = train(held_out=60, objective=ScoreMatching(steps=20, batch=16), duration=0.5)
    assert result.history["held_out_w2"].shape == result.history["held_out_step"].shape == (20,)
    assert (result.history["held_out_w2"] > 0).all()


# What comes back ---------------------------------------------------------------------------------------


def test_the_result_is_in_the_datas_units_and_knows_its_loop():
    result = train(step=0.02, duration=3.0, scheme="mala", name="mine")
    energy = result.energy
    np.testing.assert_allclose(energy.center, DATA.mean(axis=0))
    np.testing.assert_allclose(energy.scale, DATA.std(axis=0))
    assert (energy.step, energy.duration, energy.scheme, energy.name) == (0.02, 3.0, "mala", "mine")
    assert energy.source.mean == pytest.approx(DATA.mean(axis=0))
    assert "completed after 200 steps" in repr(result)
    assert result.settings["objectives"][0]["objective"] == "score-matching"
    json.dumps(result.settings)


@pytest.mark.slow
def test_a_chain_hands_on_weights_and_temperature():
    chain = [EnergyMatching(flow_steps=30, joint_steps=0, temperature=0.2), MaximumLikelihood(steps=1, ema=0.0)]
    result = train(objective=chain)
    assert result.energy.temperature == 0.2
    assert result.energy.schedule is None
    alone = train(objective=chain[0])
    assert alone.energy.schedule == cg.TransportRamp(0.8, 1.0)
    # one step of Adam at 1e-3 moves no weight further than that from where the flow left it
    gap = max(np.abs(a - b).max() for a, b in zip(bits(result), bits(alone), strict=True))
    assert 0 < gap <= 1.01e-3 * 10
    assert result.history["phase"].tolist() == ["flow"] * 30 + ["likelihood"]
    assert np.isnan(result.history["log_z"]).tolist() == [True] * 30 + [False]


def test_a_trained_energy_is_trained_further_in_its_own_scaling():
    first = train()
    second = train(first.energy, DATA * 1.5, ScoreMatching(steps=5, batch=16))
    np.testing.assert_array_equal(second.energy.scale, first.energy.scale)
    assert not same(first, second)


def test_frequencies_are_not_trained():
    energy = cg.MLPEnergy(2, width=8, depth=1, features=3)
    result = train(energy)
    assert np.array_equal(result.energy.network.frequencies, energy.frequencies)


STEADY = ScoreMatching(steps=60, batch=16, decay="constant")


def test_the_average_of_the_weights_is_what_is_returned():
    raw, averaged = train(objective=dataclasses.replace(STEADY, ema=0.0)), train(objective=STEADY)
    gap = [np.abs(a - b).max() for a, b in zip(bits(raw), bits(averaged), strict=True)]
    assert max(gap) > 5e-4  # the average lags by some seven steps of 1e-3
    assert np.array_equal(raw.history["loss"], averaged.history["loss"])


def test_gradients_are_clipped_to_the_global_norm():
    free, tight = train(objective=STEADY), train(objective=dataclasses.replace(STEADY, clip=0.01))
    assert free.history["grad_norm"][0] == tight.history["grad_norm"][0] > 0.01
    assert not same(free, tight)


def test_standardisation():
    table = np.column_stack([DATA, np.full(300, 7.0)])
    with pytest.warns(UserWarning, match=r"data has constant columns \[2\]: they keep scale 1"):
        feed = prepare(table, 3, "gaussian")
    np.testing.assert_allclose(feed.scale, [*DATA.std(axis=0), 1.0])
    inside = feed.inside(table)
    np.testing.assert_allclose(inside.mean(axis=1), 0, atol=1e-6)
    np.testing.assert_allclose(inside[:2].std(axis=1), 1, atol=1e-6)
    isotropic = prepare(DATA, 2, "gaussian", "isotropic")
    assert isotropic.scale[0] == isotropic.scale[1] == pytest.approx(np.sqrt(DATA.var(axis=0).mean()))
    assert prepare(DATA, 2, "gaussian", False).scale.tolist() == [1, 1]


def test_a_named_source_is_standardised_with_the_data():
    feed = prepare(cg.datasets.tutorial_moons, 2, "tutorial_gaussians")
    x = feed.noise(generator(0, 0), 4000)
    expected = (cg.datasets.tutorial_gaussians.sample(1, 4000) - feed.center) / feed.scale
    np.testing.assert_allclose(x.mean(axis=1), expected.mean(axis=0), atol=0.15)
    np.testing.assert_allclose(x.std(axis=1), expected.std(axis=0), rtol=0.05)


def test_phases_and_steps_have_their_own_streams():
    paths = [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (0, 1, 0), (0, 0, 1)]
    draws = {path: generator(5, *path).integers(2**62) for path in paths}
    assert len(set(draws.values())) == len(paths)


# Bad input ---------------------------------------------------------------------------------------------


def _broken(rows, bad):
    out = rows.copy()
    out[bad] = np.nan
    return out


class NotTrainable(cg.Energy):
    dim: int = 2

    def potential(self, x):
        return jnp.sum(x * x, axis=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: train(network(), DATA[:, 0]), r"data must have shape \(n, d\); got shape \(300,\). Pass data\[:, No"),
        (lambda: train(network(3), DATA), "data has 2 columns and the energy is 3-dimensional"),
        (lambda: train(network(3), cg.datasets.two_moons), "data is 2-dimensional and the energy 3-dimensional"),
        (lambda: train(data=_broken(DATA, [3, 8])), r"data must be finite; 2 of 300 rows are not: rows 3, 8 \(co"),
        (lambda: train(data=_broken(DATA, slice(9))), r"9 of 300 rows are not: rows 0, 1, 2, 3, 4, \.\.\. \(counted"),
        (lambda: train(data=DATA[:4]), "data must have at least 10 rows; got 4"),
        (lambda: train(network(), [["a", "b"]] * 20), r"data must be an \(n, d\) array of numbers"),
        (lambda: train(data=np.ones((20, 2))), "every column is constant"),
        (lambda: train(source="moon"), r"source must be 'gaussian' or one of .*two_moons; got 'moon'"),
        (lambda: train(source="digits"), "source 'digits' is 64-dimensional and the energy 2-dimensional"),
        (
            lambda: train(data=np.tile(DATA, 2), objective=MaximumLikelihood()),
            "needs 1 to 3 dimensions; the data has 4",
        ),
        (lambda: train(objective=MaximumLikelihood(bounds=[[0], [1]])), r"bounds must be \(2, 2\) for this data"),
        (lambda: train(NotTrainable()), "energy has nothing to train: .*Use MLPEnergy"),
        (lambda: train(Quadratic(2, mean=np.inf)), "energy must start from finite weights"),
        (lambda: train(key=-1), "key must be an integer of at least 0; got -1"),
        (lambda: train(patience=3), "patience needs held_out"),
        (lambda: train(held_out=200), "held_out must leave at least half of the 300 rows"),
        (lambda: train(held_out=DATA[:, :1]), "held_out has 1 columns"),
        (lambda: train(standardise="each"), "standardise must be True, False or 'isotropic'; got 'each'"),
        (lambda: train(objective=[]), "objective must not be an empty list"),
        (lambda: train(step=-0.1), "step must be positive and finite; got -0.1"),
        (lambda: train(scheme="heun"), "scheme must be 'euler' or 'mala'; got 'heun'"),
    ],
)
def test_bad_input_is_refused_before_any_work(call, message, monkeypatch):
    monkeypatch.setattr(run, "advance", None)
    with pytest.raises(ValueError, match=message):
        call()


def test_what_is_not_an_energy_or_an_objective_is_refused():
    with pytest.raises(TypeError, match="energy must be an Energy, such as MLPEnergy"):
        cg.train(lambda x: x, DATA)
    with pytest.raises(TypeError, match=r"objective must be an Objective such as EnergyMatching\(\)"):
        train(objective="energy-matching")


def test_key_and_steps_survive_the_users_x64_flag():
    with float64():
        result = train(objective=ScoreMatching(steps=5, batch=16))
    assert result.status == "completed"
    assert all(leaf.dtype == np.float32 for leaf in bits(result))
