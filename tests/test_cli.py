"""The command line: each command, its errors in one line, and that help is free of heavy imports."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import ctrlgen as cg
from ctrlgen import cli, demo, jobs, store
from ctrlgen.tables import read_table


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a command in an empty folder, without the shipped models."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(store, "_shipped", lambda: tmp_path / "none")

    def invoke(*words):
        return CliRunner().invoke(cli.main, [str(w) for w in words], catch_exceptions="--debug" not in words)

    return invoke


def moons(n=200):
    rng = np.random.default_rng(0)
    x = rng.normal(size=n)
    return np.stack([3 * x + 10, x**2 + 0.3 * rng.normal(size=n)], axis=1)


def save(name="mine", **arguments):
    energy = cg.TrainedEnergy(cg.Quadratic(np.eye(2)), [10.0, 0.0], step=0.05, duration=1.0, name=name)
    return cg.save_energy(energy, Path("models") / name, f"# {name}\n\nA test.\n", **arguments)


def imported(code):
    out = subprocess.run(
        [sys.executable, "-c", f"import sys; {code}; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return set(out.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("code", ["import ctrlgen", "import ctrlgen.cli"])
def test_imports_are_lazy(code):
    heavy = {"jax", "matplotlib", "sympy", "numpy", "scipy", "equinox", "tqdm", "safetensors", "ot", "control"}
    assert not heavy & imported(code)


def test_help_and_version():
    code = "from click.testing import CliRunner; from ctrlgen import cli; r = CliRunner().invoke(cli.main, ['--help'])"
    assert "jax" not in imported(f"{code}; assert r.exit_code == 0, r.output")
    result = CliRunner().invoke(cli.main, ["--help"])
    assert all(f"  {name} " in result.output for name in ("demo", "train", "simulate", "models"))
    assert CliRunner().invoke(cli.main, ["--version"]).output == f"ctrlgen, version {cg.__version__}\n"


def test_train_then_simulate(run):
    np.savetxt("data.csv", moons(), delimiter=";", header="höhe;breite", comments="", fmt="%.6g")
    words = ("train", "data.csv", "--name", "mine", "--steps", 12, "--seed", 3, "--width", 8, "--depth", 1)
    result = run(*words)
    assert result.exit_code == 0, result.output
    assert "completed" in result.output
    assert "saved models/mine; generate with: ctrlgen simulate mine" in result.output
    config = store.load_config("mine")
    assert config["command"] == "ctrlgen train data.csv --name mine --steps 12 --seed 3 --width 8 --depth 1"
    assert (config["seed"], config["columns"]) == (3, ["höhe", "breite"])
    energy = cg.load_energy("mine")
    assert isinstance(energy, cg.TrainedEnergy)
    np.testing.assert_allclose(energy.center, [10, 1], atol=1.0)  # the scaling is kept in the model
    np.testing.assert_allclose(energy.scale, [3, 1.4], rtol=0.4)
    card = store.load_card("mine")
    assert "trained on 180 rows of data.csv" in card
    assert "on 20 held-out rows" in card

    result = run("simulate", "mine", "-n", 150, "--seed", 4, "--duration", 0.5)
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == "wrote 150 rows to samples.csv"
    assert result.output.splitlines()[1].split()[0] == "höhe"
    table = read_table("samples.csv")
    assert table.columns == ("höhe", "breite")
    np.testing.assert_array_equal(table.values.astype(np.float32), cg.generate(energy, 150, 4, duration=0.5))

    result = run(*words)
    assert (result.exit_code, result.stderr) == (
        1, "Error: models/mine exists. Pass overwrite=True to replace it, or choose another name.\n",
    )  # fmt: skip


def test_train_hands_everything_over(run, monkeypatch):
    seen = {}

    def fake(data, name, **options):
        seen.update(data=data, name=name, **options)
        raise ValueError("far enough")

    monkeypatch.setattr(jobs, "train_table", fake)
    result = run(
        "train", "d.npz", "--name", "m", "--objective", "score-matching", "--steps", 7, "--seed", 2, "--width", 5,
        "--depth", 2, "--array", "a", "--out", "there", "--overwrite", "--progress",
    )  # fmt: skip
    assert result.stderr == "Error: far enough\n"
    assert seen == {
        "data": "d.npz", "name": "m", "objective": "score-matching", "steps": 7, "seed": 2, "width": 5, "depth": 2,
        "array": "a", "out": "there", "overwrite": True, "progress": True,
    }  # fmt: skip


def test_held_out_rows_are_not_trained_on(run, monkeypatch):
    seen = {}

    def fake(network, rows, held_out, **_):
        seen.update(rows=rows, held_out=held_out)
        raise ValueError("far enough")

    monkeypatch.setattr(jobs, "train", fake)
    np.save("d.npy", moons(150))
    assert run("train", "d.npy", "--name", "m").exit_code == 1
    assert (len(seen["rows"]), len(seen["held_out"])) == (135, 15)
    together = np.concatenate([seen["rows"], seen["held_out"]])
    np.testing.assert_array_equal(together[np.argsort(together[:, 0])], moons(150)[np.argsort(moons(150)[:, 0])])


def test_objectives_by_dimension_and_name():
    names = [stage.name for stage in jobs._stages("auto", 3, None)]
    assert names == ["maximum-likelihood"]
    assert [stage.name for stage in jobs._stages("auto", 4, 9)] == ["score-matching", "contrastive-divergence"]
    assert [stage.length() for stage in jobs._stages("auto", 4, 9)] == [9, 9]
    (matching,) = jobs._stages("energy-matching", 4, 110)
    assert (matching.flow_steps, matching.joint_steps) == (100, 10)
    with pytest.raises(ValueError, match="MaximumLikelihood integrates over a grid and needs 1 to 3 dimensions"):
        jobs._stages("maximum-likelihood", 4, None)
    assert set(cli.OBJECTIVES) == set(jobs.get_args(jobs.ObjectiveName))


@pytest.mark.parametrize(
    ("table", "words", "message"),
    [
        ("a,b\n1,2\nnan,3\n", (), "Error: data.csv must be finite; 1 row is not: line 3. Drop them"),
        ("a,b\n1,x\n2,y\n", (), "Error: data.csv must be numeric; 'b' (column 2) has 'x' in line 2."),
        ("1,2\n" * 50, (), "Error: data.csv must have at least 100 rows to train on and to hold some out; it has 50."),
        ("1,2,3,4\n" * 200, ("--objective", "maximum-likelihood"), "Error: MaximumLikelihood integrates over a grid"),
        (None, (), "Error: there is no file data.csv; pass a table"),
        ("1,2\n", ("--name", "../mine"), "Error: name must be letters, digits"),
    ],
)
def test_training_errors_are_one_line(run, table, words, message):
    if table is not None:
        Path("data.csv").write_text(table)
    result = run("train", "data.csv", "--name", "mine", *words)
    assert result.exit_code == 1
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.output
    assert not Path("models").exists()


def test_simulating_errors(run):
    save()
    cg.save_energy(cg.Quadratic(np.eye(2)), "models/plain")
    for words, message in (
        (("simulate", "mime"), "Error: there is no model 'mime', as a name or a path. Did you mean 'mine'?"),
        (("simulate", "plain"), "Error: model must be a trained energy, which knows its own closed loop; plain is a"),
        (("simulate", "mine", "--out", "s.xlsx"), "Error: out must end in .csv, .npy or .npz; got 's.xlsx'."),
        (("simulate", "mine", "--duration", "-1"), "Error: duration must be positive and finite; got -1.0."),
    ):
        result = run(*words)
        assert result.exit_code == 1
        assert result.stderr.startswith(message)
        assert result.stderr.count("\n") == 1
    assert run("simulate", "mine", "-n", 0).exit_code == 2  # usage
    assert run("simulate").exit_code == 2
    assert run("nonsense").exit_code == 2
    with pytest.raises(store.ModelError):
        run("--debug", "simulate", "mime")


def test_simulating_to_arrays(run):
    save()
    for name in ("s.npy", "s.npz"):
        result = run("simulate", "mine", "-n", 30, "--out", name)
        assert result.exit_code == 0, result.output
        assert read_table(name).values.shape == (30, 2)
    assert result.output.splitlines()[1].split()[0] == "x1"  # no names are known


def test_models(run):
    assert "There are no models yet" in run("models").output
    save("mine")
    save("yours", columns=["a", "b"])
    (Path("models") / "yours" / store.WEIGHTS).write_bytes(b"")
    head, *lines = run("models").output.splitlines()
    assert head.split() == ["name", "dim", "temperature", "size", "what", "it", "is"]
    assert [line.split()[:3] for line in lines] == [["mine", "2", "1"], ["yours", "2", "1"]]
    assert lines[0].endswith("A test.")
    assert run("models", "mine").output == "# mine\n\nA test.\n\n"
    result = run("models", "theirs")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)


def test_demo(run, monkeypatch):
    monkeypatch.setattr(demo, "CELLS", {})
    save()
    result = run("demo", "--model", "mine", "--particles", 200, "--no-progress", "--out", "there", "--seed", 5)
    assert result.exit_code == 0, result.output
    assert "KL [nats]" in result.output
    assert Path("there/closed_loop.png").exists()
    assert '"seed": 5' in Path("there/closed_loop.json").read_text()
    result = run("demo", "--model", "nothing")
    assert (result.exit_code, result.stderr[:34]) == (1, "Error: there is no model 'nothing'")


def test_warnings_and_surprises_are_one_line_too(run, monkeypatch):
    import warnings

    def warns(*_, **__):
        warnings.warn("look\nout", stacklevel=1)
        raise KeyError("a bug")

    monkeypatch.setattr(store, "load_card", warns)
    result = run("models", "x")
    assert result.exit_code == 1
    assert result.stderr == "Warning: look out\nError: unexpected KeyError: 'a bug' (ctrlgen --debug ... shows where)\n"
