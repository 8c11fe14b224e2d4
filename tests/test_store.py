"""The store gives back what was saved, and refuses everything else with a ModelError."""

import hashlib
import itertools
import json
import os
import pickle
import shutil
import sys
from copy import deepcopy
from pathlib import Path

import equinox as eqx
import numpy as np
import pytest
import safetensors.numpy
import sympy as sp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ctrlgen as cg
from ctrlgen import records, store
from ctrlgen.store import CARD, CONFIG, WEIGHTS, ModelError

RNG = np.random.default_rng(7)
MIXTURE = cg.GaussianMixture(
    RNG.normal(size=(5, 2)), [np.eye(2) * v for v in (0.1, 0.2, 0.3, 0.4, 0.7)], RNG.uniform(size=5), 0.7
)
NETWORK = cg.MLPEnergy(2, 8, 2, ("relu", "silu"), features=3)
TRAINED = cg.TrainedEnergy(
    NETWORK,
    [0.1, -1e-17],
    [1 / 3, 2.0],
    temperature=0.3,
    step=0.02,
    duration=7.0,
    schedule=cg.TransportRamp(0.3, 0.9),
    scheme="mala",
    source="eight_gaussians",
    name="mine",
)
FORMULA = cg.SymbolicEnergy(
    "0.1*x**2 + sin(y/3)**2*1e-17 + 0.30000000000000004*y**4 - 2.5*x*y + sqrt(2)*exp(-x**2)", "x y"
)
MEMBERS = {
    "quadratic": cg.Quadratic([[2, 0.3], [0.3, 1]], [0.1, 1 / 3]),
    "mixture": MIXTURE,
    "double well": cg.DoubleWell(3, 1 / 3, 1.1, 0.7),
    "banana": cg.Banana(1.7, 1 / 3),
    "funnel": cg.Funnel(4, 2.1),
    "ring": cg.Ring(1.1, 3.3, 3),
    "formula": FORMULA,
    "network": NETWORK,
    "trained": TRAINED,
    "annealed": cg.TrainedEnergy(cg.DoubleWell(), schedule=cg.Annealing(3.0, 1 / 3)),
    "sum": cg.compose([MIXTURE, TRAINED, FORMULA], [0.3, -1 / 7, 2.0]),
    "either": cg.mixture([MIXTURE, TRAINED], 0.3, [1, 3]),
    "observed": cg.condition(TRAINED, [[0.1, 1 / 3], [2.0, 0.0]], [0.7, 0.1], [0.3, 1e-3], temperature=0.3),
    "nested": cg.TrainedEnergy(cg.compose([NETWORK, cg.Quadratic(np.eye(2))], [1.0, 0.1]), [1, 2], [3, 4]),
}


def leaves(energy):
    """Everything that defines an energy, for comparison in every bit."""
    record, arrays = records.write(energy)
    return json.dumps(record, sort_keys=True), {k: (a.dtype, a.shape, a.tobytes()) for k, a in arrays.items()}


# Round trips --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("energy", MEMBERS.values(), ids=MEMBERS)
def test_round_trip_is_exact(tmp_path, energy):
    folder = cg.save_energy(energy, tmp_path / "models" / "mine", command="ctrlgen train", seed=3)
    assert sorted(p.name for p in folder.iterdir()) == [CARD, CONFIG, WEIGHTS]
    assert [p.name for p in folder.parent.iterdir()] == ["mine"]  # nothing temporary is left
    back = cg.load_energy(folder)
    assert type(back) is type(energy)
    assert back.dim == energy.dim
    x = np.random.default_rng(0).normal(size=(6, energy.dim))
    np.testing.assert_array_equal(back(x), energy(x))
    if "SymbolicEnergy" not in repr(leaves(energy)):  # a Field has no ==
        assert bool(eqx.tree_equal(back, energy))
    assert leaves(back) == leaves(energy)


def test_what_generation_needs_comes_back(tmp_path):
    back = cg.load_energy(cg.save_energy(TRAINED, tmp_path / "m"))
    assert (back.temperature, back.step, back.duration, back.scheme) == (0.3, 0.02, 7.0, "mala")
    assert (back.source_name, back.name, back.schedule) == ("eight_gaussians", "mine", cg.TransportRamp(0.3, 0.9))
    assert back.center.dtype == back.scale.dtype == np.float64
    assert {w.dtype for w in back.network.weights} == {np.dtype("float32")}


def test_config_says_what_a_reader_wants(tmp_path):
    folder = cg.save_energy(TRAINED, tmp_path / "m", command="ctrlgen train x.csv", seed=11, columns=["a", "β"])
    config = json.loads((folder / CONFIG).read_text())
    assert config["schema"] == 1
    assert config["energy"]["constructor"] == "TrainedEnergy"
    assert config["energy"]["arguments"]["center"] == [0.1, -1e-17]
    assert (config["temperature"], config["command"], config["seed"]) == (0.3, "ctrlgen train x.csv", 11)
    assert store.load_config(folder)["columns"] == ["a", "β"]
    assert config["weights"]["sha256"] == hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "expr",
    [
        sp.Rational(1, 3) * sp.Symbol("x") ** 2 - sp.Float(-0.1) * sp.Symbol("x"),
        sp.Symbol("x", positive=True) ** sp.Float(2.5),
        sp.Max(sp.Symbol("x", real=True), -sp.Float(1e-300)) + sp.pi,
        sp.Abs(sp.Symbol("x", real=True) - sp.Float(0.1)) / 3 + sp.log(sp.Float(2.0) ** 52 + 1 + sp.Symbol("x") ** 2),
    ],
    ids=str,
)
def test_formula_floats_are_exact(tmp_path, expr):
    energy = cg.SymbolicEnergy(expr, ["x"])
    back = cg.load_energy(cg.save_energy(energy, tmp_path / "m"))
    x = np.linspace(0.1, 2, 7)[:, None]
    np.testing.assert_array_equal(back(x), energy(x))
    assert [float(f) for f in sorted(back.field.expr.atoms(sp.Float))] == [
        float(f) for f in sorted(energy.field.expr.atoms(sp.Float))
    ]


# What cannot be saved -------------------------------------------------------------------------------------


def test_code_is_not_saved(tmp_path):
    code = cg.CallableEnergy(lambda x: (x**2).sum(), 2)
    for energy in (code, code + MIXTURE):
        with pytest.raises(TypeError, match="it is Python code, and loading a model never executes code"):
            cg.save_energy(energy, tmp_path / "m")
    with pytest.raises(TypeError, match=r"function at schedule cannot be saved; what can be saved is \['Annealing'"):
        cg.save_energy(cg.TrainedEnergy(NETWORK, schedule=lambda t: 1.0), tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_columns_fit_the_dimension(tmp_path):
    with pytest.raises(ValueError, match="columns must be 2 names, one a coordinate; got 3"):
        cg.save_energy(MIXTURE, tmp_path / "m", columns=["a", "b", "c"])


def test_arrays_and_formulas_that_would_not_come_back(tmp_path):
    broken = eqx.tree_at(lambda e: e.biases[0], NETWORK, NETWORK.biases[0].at[2].set(np.nan))
    with pytest.raises(ValueError, match=r"biases\.0 must be finite to be saved; 1 entries are not"):
        cg.save_energy(broken, tmp_path / "m")
    with pytest.raises(ValueError, match="cannot be saved: expr calls 'Heaviside'"):
        cg.save_energy(cg.SymbolicEnergy(sp.Heaviside(sp.Symbol("x", real=True)), ["x"]), tmp_path / "m")
    with pytest.raises(ValueError, match="states must be plain names to be saved"):
        cg.save_energy(cg.SymbolicEnergy(sp.Symbol("x 1") ** 2, ["x 1"]), tmp_path / "m")
    with pytest.raises(ValueError, match="its text reads back as"):  # E the number, beside E the state
        cg.save_energy(cg.SymbolicEnergy(sp.E * sp.Symbol("E") ** 2, ["E"]), tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_overwriting_is_asked_for(tmp_path):
    folder = cg.save_energy(MIXTURE, tmp_path / "m")
    with pytest.raises(FileExistsError, match="Pass overwrite=True to replace it"):
        cg.save_energy(FORMULA, folder)
    assert type(cg.load_energy(folder)) is cg.GaussianMixture
    cg.save_energy(FORMULA, folder, overwrite=True)
    assert type(cg.load_energy(folder)) is cg.SymbolicEnergy
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"holds more than a model \(\['thesis.tex'\]\), so it is not replaced"):
        cg.save_energy(FORMULA, folder, overwrite=True)
    assert (folder / "thesis.tex").exists()
    with pytest.raises(FileExistsError, match="not a folder"):
        cg.save_energy(FORMULA, folder / "thesis.tex", overwrite=True)


def test_a_failed_rename_leaves_the_old_model(tmp_path, monkeypatch):
    folder = cg.save_energy(MIXTURE, tmp_path / "m")
    rename = Path.rename

    def fails(self, target):
        if self.name.startswith(".m.") and Path(target) == folder:
            raise OSError("disk gone")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="disk gone"):
        cg.save_energy(FORMULA, folder, overwrite=True)
    assert leaves(cg.load_energy(folder)) == leaves(MIXTURE)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


# Names, lists, cards --------------------------------------------------------------------------------------


def test_names_are_found_in_the_working_folder_first(tmp_path, monkeypatch):
    shipped = tmp_path / "shipped"
    cg.save_energy(MIXTURE, shipped / "rings", card="# rings\n\nShipped one.\n")
    cg.save_energy(FORMULA, shipped / "eights")
    monkeypatch.setattr(store, "_shipped", lambda: shipped)
    monkeypatch.chdir(tmp_path)
    assert type(cg.load_energy("rings")) is cg.GaussianMixture
    cg.save_energy(TRAINED, "models/rings", card="# rings\n\n| a | b |\nMy own rings.\nMore.\n")
    assert type(cg.load_energy("rings")) is cg.TrainedEnergy
    assert store.load_card("rings").endswith("More.\n")
    first, second = cg.list_models()
    assert (first.name, first.shipped, first.dim) == ("eights", True, 2)
    assert (second.name, second.shipped, second.dim) == ("rings", False, 2)
    assert (second.temperature, second.description) == (0.3, "My own rings.")
    assert second.size == sum(p.stat().st_size for p in Path("models/rings").iterdir())
    with pytest.raises(ModelError, match=r"no model 'ring', as a name or a path. Did you mean 'rings'\?") as caught:
        cg.load_energy("ring")
    assert "['eights', 'rings']" in str(caught.value)


def test_the_models_of_a_checkout_are_the_shipped_ones(monkeypatch, tmp_path):
    root = Path(store.__file__).resolve().parents[1]
    names = {p.parent.name for p in (root / "models").glob("*/config.json")}
    monkeypatch.chdir(root)
    assert store._models()["rings"].parent == Path("models")  # they stand before the packaged ones, and are the same
    assert {m.name for m in cg.list_models() if m.shipped} == names >= {"rings", "two_moons", "digits"}
    monkeypatch.chdir(tmp_path)
    assert {m.name for m in cg.list_models() if m.shipped} == names


def test_a_copy_of_a_shipped_model_is_that_model_and_another_of_its_name_is_not(tmp_path, monkeypatch):
    shipped = tmp_path / "shipped"
    for name in ("rings", "eights", "moons"):
        cg.save_energy(MIXTURE, shipped / name)
    monkeypatch.setattr(store, "_shipped", lambda: shipped)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(shipped, "models")
    assert [(m.shipped, m.path.parent.name) for m in cg.list_models()] == [(True, "models")] * 3
    cg.save_energy(FORMULA, "models/eights", overwrite=True)
    (Path("models/moons") / WEIGHTS).write_bytes(b"damaged")
    assert {m.name: m.shipped for m in cg.list_models()} == {"eights": False, "moons": False, "rings": True}
    (shipped / "rings" / WEIGHTS).unlink()
    shutil.rmtree("models")
    assert [(m.name, m.shipped) for m in cg.list_models()] == [("eights", True), ("moons", True), ("rings", True)]


def test_a_damaged_model_is_listed_as_such(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(store, "_shipped", lambda: tmp_path / "none")
    cg.save_energy(MIXTURE, "models/good")
    (cg.save_energy(MIXTURE, "models/bad") / CONFIG).write_text("{")
    bad, good = cg.list_models()
    assert (bad.dim, good.dim) == (None, 2)
    assert bad.description.startswith("cannot be read: models/bad/config.json must be JSON")


@pytest.mark.parametrize("name", ["../secret", "a/../../secret", "/etc", "", "\0", "x" * 5000, "..", 7, None])
def test_no_name_leads_out_of_the_models(tmp_path, monkeypatch, name):
    (tmp_path / "work" / "models" / "a").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    cg.save_energy(MIXTURE, tmp_path / "work" / "secret")  # models/../secret
    with pytest.raises(ModelError):
        cg.load_energy(name)
    with pytest.raises(ModelError):
        store.load_card(name)


def test_the_shipped_folder_is_part_of_the_package():
    assert (store._shipped() / "__init__.py").exists()


# Damage -----------------------------------------------------------------------------------------------------

BASE = cg.compose([TRAINED, MIXTURE, FORMULA], [1.0, 0.5, 0.25])
FUZZ = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = cg.save_energy(BASE, tmp_path_factory.mktemp("fuzz") / "base")
    return (folder / CONFIG).read_bytes(), (folder / WEIGHTS).read_bytes(), folder.parent / "damaged"


def put(folder, config, weights):
    folder.mkdir(exist_ok=True)
    (folder / CONFIG).write_bytes(config)
    (folder / WEIGHTS).write_bytes(weights)
    return folder


def rehashed(config: dict, weights: bytes) -> bytes:
    """The config with both hashes made right again, so that the deeper checks are reached."""
    if isinstance(config.get("weights"), dict):
        config["weights"] |= {"sha256": hashlib.sha256(weights).hexdigest(), "bytes": len(weights)}
    config["checksum"] = store.checksum(config)
    return json.dumps(config).encode()


@st.composite
def damage(draw, data: bytes):
    data, at = bytearray(data), draw(st.integers(0, len(data) - 1))
    match draw(st.sampled_from(["flip", "cut", "insert", "remove", "header"])):
        case "flip":
            data[at] ^= draw(st.integers(1, 255))
        case "cut":
            del data[at:]
        case "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=20))
        case "remove":
            del data[at : at + draw(st.integers(1, 20))]
        case "header":
            data[at % min(len(data), 600)] = draw(st.sampled_from(b'0189[]{},:"- \\eE.FI'))
    return bytes(data)


def load_or_refuse(folder, named):
    """The energy, or None where it was refused with a message that names the file or folder."""
    try:
        return cg.load_energy(folder)
    except ModelError as error:
        message = str(error)
    assert str(named) in message
    return None


@FUZZ
@given(st.data())
def test_fuzz_bytes_of_the_config(model, data):
    config, weights, folder = model
    energy = load_or_refuse(put(folder, data.draw(damage(config)), weights), folder / CONFIG)
    assert energy is None or leaves(energy) == leaves(BASE)


@FUZZ
@given(st.data())
def test_fuzz_bytes_of_the_weights(model, data):
    config, weights, folder = model
    damaged = data.draw(damage(weights))
    energy = load_or_refuse(put(folder, config, damaged), folder / WEIGHTS)
    assert (energy is None) == (damaged != weights)
    assert energy is None or leaves(energy) == leaves(BASE)


def is_sound(energy, config):
    """What a load that was not refused must give: an energy that can be saved again, finite throughout."""
    record, arrays = records.write(energy)
    assert energy.dim == config["dim"]
    assert all(np.isfinite(a).all() for a in arrays.values())
    assert leaves(records.read(json.loads(json.dumps(record)), arrays)) == leaves(energy)


@FUZZ
@given(st.data())
def test_fuzz_bytes_of_the_weights_with_the_hash_made_right(model, data):
    config, weights, folder = model
    weights = data.draw(damage(weights))
    loaded = json.loads(config)
    energy = load_or_refuse(put(folder, rehashed(loaded, weights), weights), folder)
    if energy is not None:
        is_sound(energy, loaded)


def places(tree, at=()):
    """Every path in a JSON tree but the root."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in pairs:
        yield (*at, key)
        yield from places(value, (*at, key))


ODD = [None, True, -1, 0, 3, 10**400, 1e308, -0.0, 0.5, "", "x", "MLPEnergy", "Composition", "Annealing", "os.system"]
ODD += [
    [],
    {},
    [[]],
    [0.5, 1],
    {"constructor": "MLPEnergy"},
    {"shape": [2, 2], "dtype": "float64"},
    "\ud800",
    "x" * 200,
]


@FUZZ
@given(st.data())
def test_fuzz_structure_of_the_config(model, data):
    config, weights, folder = model
    tree = json.loads(config)
    for _ in range(data.draw(st.integers(1, 2))):
        *way, last = data.draw(st.sampled_from(list(places(tree))))
        parent = tree
        for key in way:
            parent = parent[key]
        match data.draw(st.sampled_from(["replace", "delete", "add", "copy", "wrap"])):
            case "replace":
                parent[last] = deepcopy(data.draw(st.sampled_from(ODD)))
            case "delete":
                del parent[last]
            case "add" if isinstance(parent, dict):
                parent["extra"] = 1
            case "copy":
                *there, end = data.draw(st.sampled_from(list(places(tree))))
                source = tree
                for key in there:
                    source = source[key]
                parent[last] = deepcopy(source[end])
            case _:
                parent[last] = [parent[last]]
    energy = load_or_refuse(put(folder, rehashed(tree, weights), weights), folder / CONFIG)
    if energy is not None:
        is_sound(energy, tree)


def changed(model, change):
    config, weights, folder = model
    tree = json.loads(config)
    change(tree)
    return put(folder, rehashed(tree, weights), weights)


def entry(tree, *path):
    for key in path:
        tree = tree[key]
    return tree


TRAIN = ("energy", "arguments", "terms", 0, "arguments")
RULES = {
    "newer schema": (lambda t: t.update(schema=2), "schema version 1; got 2. It was made by a newer ctrlgen: upgrade"),
    "unknown constructor": (
        lambda t: entry(t, *TRAIN)["network"].update(constructor="subprocess.Popen"),
        r"'terms.0.network.constructor' must be one of \['Banana', .*got 'subprocess.Popen'",
    ),
    "a schedule is no energy": (
        lambda t: entry(t, *TRAIN).update(network={"constructor": "Annealing", "arguments": {}}),
        "'terms.0.network.constructor' must be one of .*; got 'Annealing'",
    ),
    "unknown argument": (
        lambda t: entry(t, *TRAIN).update(hook="x"),
        r"'terms.0.arguments' must have exactly .*unknown \['hook'\]",
    ),
    "missing argument": (lambda t: entry(t, *TRAIN).pop("step"), r"must have exactly .*missing \['step'\]"),
    "a string for a number": (lambda t: entry(t, *TRAIN).update(step="0.1"), "'terms.0.step' must be a finite number"),
    "a boolean for a number": (lambda t: entry(t, *TRAIN).update(step=True), "'terms.0.step' must be a finite number"),
    "overflow": (lambda t: entry(t, *TRAIN).update(step=10**400), "'terms.0.step' must be a finite number"),
    "a negative step": (lambda t: entry(t, *TRAIN).update(step=-1.0), "step must be positive and finite; got -1.0"),
    "unknown source": (lambda t: entry(t, *TRAIN).update(source="nowhere"), "TrainedEnergy at 'terms.0' are refused"),
    "shape": (
        lambda t: entry(t, *TRAIN, "network", "arguments", "weights", 0).update(shape=[8, 7]),
        r"array 'terms.0.network.weights.0' must be float32 of shape \[8, 7\]",
    ),
    "type": (
        lambda t: entry(t, *TRAIN, "network", "arguments", "weights", 0).update(dtype="float64"),
        "'terms.0.network.weights.0.dtype' must be 'float32'",
    ),
    "width": (
        lambda t: entry(t, *TRAIN, "network", "arguments").update(width=10**6),
        "weights must have shapes",
    ),
    "depth": (lambda t: entry(t, *TRAIN, "network", "arguments").update(depth=10**6), "weights must have shapes"),
    "fewer arrays": (
        lambda t: entry(t, "energy", "arguments", "terms").pop(),
        "weights must be 2 finite numbers",
    ),
    "arrays left over": (
        lambda t: t.update(energy={"constructor": "Banana", "arguments": {"scale": 1.0, "curvature": 1.0}}),
        "the arrays must be those that the config declares",
    ),
    "columns": (lambda t: t.update(columns=["a"]), "'columns' must be 'dim' names or null; got"),
    "dim": (lambda t: t.update(dim=3), "'dim' must be 2, that of the energy; got 3"),
    "temperature": (lambda t: t.update(temperature=3.0), "'temperature' must be None, as in the energy; got 3.0"),
    "hostile formula": (
        lambda t: entry(t, "energy", "arguments", "terms", 2, "arguments").update(expr="__import__('os').system('x')"),
        "SymbolicEnergy at 'terms.2' are refused: expr",
    ),
    "hostile state": (
        lambda t: entry(t, "energy", "arguments", "terms", 2, "arguments").update(
            expr="1", states=["x", "__import__('os')"]
        ),
        "states must be plain names",
    ),
    "endless power": (
        lambda t: entry(t, "energy", "arguments", "terms", 2, "arguments").update(
            expr="((10**1000)**1000)**1000*x*y", states=["x", "y"]
        ),
        "expr may have constants of at most 100000 bits",
    ),
    "endless tower": (
        lambda t: entry(t, "energy", "arguments", "terms", 2, "arguments").update(
            expr="(x*2**(9*7))**(9*8*7*6) + y", states=["x", "y"]
        ),
        "expr may have constants of at most 100000 bits",
    ),
    "wrong arity": (
        lambda t: entry(t, "energy", "arguments", "terms", 2, "arguments").update(expr="atan2(x)"),
        "SymbolicEnergy at 'terms.2' are refused",
    ),
    "offsets": (
        lambda t: entry(t, "energy", "arguments", "terms", 1, "arguments").update(temperature=0.0),
        "temperature must be positive",
    ),
}


@pytest.mark.parametrize(("change", "message"), RULES.values(), ids=RULES)
def test_every_rule_has_its_message(model, change, message):
    with pytest.raises(ModelError, match=message) as caught:
        cg.load_energy(changed(model, change))
    assert CONFIG in str(caught.value)


def test_weights_of_alternatives_must_fit_them(tmp_path):
    folder = cg.save_energy(cg.mixture([cg.Ring(), cg.DoubleWell()], 0.5), tmp_path / "m")
    parts = (folder / CONFIG).read_bytes(), (folder / WEIGHTS).read_bytes(), folder
    with pytest.raises(ModelError, match=r"offsets must be 1 numbers, one a term; got shape \(2,\)"):
        cg.load_energy(changed(parts, lambda t: entry(t, "energy", "arguments", "terms").pop()))


def test_endless_nesting_is_refused(model):
    def wrap(tree):
        for _ in range(9):
            tree["energy"] = {"constructor": "Composition", "arguments": {"terms": [tree["energy"]], "weights": [1.0]}}

    with pytest.raises(ModelError, match="nested more than 8 deep"):
        cg.load_energy(changed(model, wrap))
    _, weights, folder = model
    for text in (b"[" * 500_000, b'{"a":' * 100_000, b"[" * 65 + b"]" * 65):
        with pytest.raises(ModelError, match="must not be nested more than 64 deep"):
            cg.load_energy(put(folder, text, weights))
    with pytest.raises(ModelError, match="must be JSON"):
        cg.load_energy(put(folder, b'"' + b'\\"' * 400_000, weights))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"format": NaN}', "numbers must be finite; got NaN"),
        (b'{"a": 1, "a": 2}', "a name occurs twice"),
        (b"\xff\xfe", "must be UTF-8 text; byte 0 is not"),
        (b'{"architectures": ["LlamaForCausalLM"]}', "must be the config of a model"),
        (b" " * (1 << 20) + b"{}", "must have at most 1048576 bytes; it has 1048578"),
    ],
)
def test_configs_of_another_kind(model, text, message):
    _, weights, folder = model
    with pytest.raises(ModelError, match=message):
        cg.load_energy(put(folder, text, weights))


def test_sizes_are_checked_before_reading(model, monkeypatch):
    config, weights, folder = model
    put(folder, config, weights)
    with open(folder / WEIGHTS, "r+b") as stream:
        stream.truncate((1 << 30) + 1)  # sparse: no disk is used
    monkeypatch.setattr(Path, "open", lambda *_, **__: pytest.fail("a file was opened"))
    monkeypatch.setattr(store, "_read_config", lambda _: json.loads(config))
    with pytest.raises(ModelError, match="must have at most 1073741824 bytes; it has 1073741825"):
        cg.load_energy(folder)
    os.truncate(folder / WEIGHTS, len(weights) + 1)
    with pytest.raises(ModelError, match=f"must have the {len(weights)} bytes that config.json declares"):
        cg.load_energy(folder)


def test_an_edited_number_is_noticed(model):
    config, weights, folder = model
    with pytest.raises(ModelError, match="must have the checksum of its content; it was edited or damaged"):
        cg.load_energy(put(folder, config.replace(b'"duration": 7.0', b'"duration": 8.0'), weights))


def test_arrays_that_are_not_finite(model):
    config, weights, folder = model
    arrays = {k: a.copy() for k, a in safetensors.numpy.load(weights).items()}
    arrays["terms.1.means"][3, 1] = np.nan
    weights = safetensors.numpy.save(arrays)
    with pytest.raises(ModelError, match=r"the array 'terms.1.means' must be finite; 1 entries are not"):
        cg.load_energy(put(folder, rehashed(json.loads(config), weights), weights))


def test_normalised_weights_are_not_normalised_again(tmp_path):
    weights = np.random.default_rng(8).uniform(size=5)
    energy = cg.GaussianMixture(np.eye(5), 1.0, weights)
    assert (energy.weights / energy.weights.sum() != energy.weights).any()  # it would move the last bit
    back = cg.load_energy(cg.save_energy(energy, tmp_path / "m"))
    np.testing.assert_array_equal(back.weights, energy.weights)
    np.testing.assert_array_equal(back.offsets, energy.offsets)


def test_files_that_are_missing_or_not_files(model):
    config, weights, folder = model
    for name in (CONFIG, WEIGHTS):
        put(folder, config, weights)
        (folder / name).unlink()
        with pytest.raises(ModelError, match=f"{name} cannot be read: No such file"):
            cg.load_energy(folder)
        (folder / name).mkdir()
        with pytest.raises(ModelError, match=f"{name} must be a regular file"):
            cg.load_energy(folder)
        (folder / name).rmdir()
    put(folder, config, weights)
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to("/dev/zero")
    with pytest.raises(ModelError, match="must be a regular file"):
        cg.load_energy(folder)
    (folder / WEIGHTS).unlink()


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("code in a model was executed",))


def test_nothing_is_executed(model, tmp_path):
    config, _, folder = model
    bomb = pickle.dumps(Bomb())
    with pytest.raises(ModelError, match="must be a safetensors file"):
        cg.load_energy(put(folder, rehashed(json.loads(config), bomb), bomb))
    for suffix, message in (
        (".safetensors", "must be a safetensors file"),
        (".pkl", "must be a model folder, a .safet"),
    ):
        (tmp_path / f"bomb{suffix}").write_bytes(bomb)
        with pytest.raises(ModelError, match=message):
            cg.load_energy(tmp_path / f"bomb{suffix}")


# The official Energy Matching 2-D network -----------------------------------------------------------------


def official(prefix="net.", dim=2, width=256, seed=0):
    rng = np.random.default_rng(seed)
    sizes = [dim, width, width, width, width, 1]
    state = {}
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        state[f"{prefix}{2 * i}.weight"] = rng.normal(scale=a**-0.5, size=(b, a)).astype(np.float32)
        state[f"{prefix}{2 * i}.bias"] = rng.normal(size=b).astype(np.float32)
    return dict(sorted(state.items(), reverse=True))  # the order of a file means nothing


def forward(state, x, prefix="net."):
    """PotentialModel of the official tutorial, in NumPy float64: ReLU, then SiLU three times."""
    y = np.asarray(x, np.float64)
    for i in range(5):
        y = y @ state[f"{prefix}{2 * i}.weight"].astype(np.float64).T + state[f"{prefix}{2 * i}.bias"]
        y = np.maximum(y, 0) if i == 0 else y / (1 + np.exp(-y)) if i < 4 else y
    return y[:, 0]


@pytest.mark.parametrize("prefix", ["net.", "module._orig_mod.net.", ""])
def test_official_network_from_safetensors(tmp_path, prefix):
    state, x = official(prefix), np.random.default_rng(1).normal(scale=3, size=(9, 2))
    safetensors.numpy.save_file(state, tmp_path / "model.safetensors")
    with pytest.warns(UserWarning, match="without confinement, so the Gibbs measure of this energy need not exist"):
        energy = cg.load_energy(tmp_path / "model.safetensors")
    assert isinstance(energy, cg.MLPEnergy)
    assert (energy.dim, energy.activation, energy.confinement) == (2, ("relu", "silu", "silu", "silu"), 0.0)
    np.testing.assert_allclose(energy(x), forward(state, x, prefix), rtol=1e-12, atol=1e-12)  # E = V: the same sign
    step = 1e-6 * np.eye(2)
    slope = [(forward(state, x + h, prefix) - forward(state, x - h, prefix)) / 2e-6 for h in step]
    np.testing.assert_allclose(energy.gradient(x), np.stack(slope, 1), atol=1e-7)
    cg.save_energy(energy, tmp_path / "mine")
    assert leaves(cg.load_energy(tmp_path / "mine")) == leaves(energy)


def without(state, key):
    return {k: v for k, v in state.items() if k != key}


FOREIGN = {
    "a layer less": (lambda s: without(without(s, "net.8.weight"), "net.8.bias"), "it has 4 layers"),
    "no bias": (lambda s: without(s, "net.2.bias"), "it has 5 layers with entries"),
    "another shape": (lambda s: s | {"net.4.weight": np.zeros((256, 255), np.float32)}, "its weights have shapes"),
    "another bias": (lambda s: s | {"net.4.bias": np.zeros(255, np.float32)}, "its biases"),
    "not finite": (lambda s: s | {"net.0.bias": np.full(256, np.inf, np.float32)}, "or not finite"),
    "integers": (lambda s: s | {"net.0.bias": np.zeros(256, np.int32)}, "'net.0.bias' is of type int32"),
    "two networks": (lambda s: s | {"ema.0.bias": np.zeros(256, np.float32)}, r"several prefixes, \['ema.', 'net.'\]"),
    "something else": (lambda s: s | {"conv": np.zeros(3, np.float32)}, "it has an entry 'conv'"),
    "empty": (lambda s: {}, "it has 0 layers"),
    "scalars": (lambda s: {k: np.array(1, np.float32) for k in s}, "its weights have shapes"),
}


@pytest.mark.parametrize(("change", "message"), FOREIGN.values(), ids=FOREIGN)
def test_other_networks_are_refused(tmp_path, change, message):
    file = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(change(official()), file)
    with pytest.raises(ModelError, match=message) as caught:
        cg.load_energy(file)
    assert str(file) in str(caught.value)
    assert "2-256-256-256-256-1" in str(caught.value)


def test_weights_of_a_model_lead_to_its_folder(tmp_path):
    folder = cg.save_energy(TRAINED, tmp_path / "m")
    assert leaves(cg.load_energy(folder / WEIGHTS)) == leaves(TRAINED)


def test_pth_without_torch_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "model.pth").write_bytes(b"x")
    with pytest.raises(ImportError, match=r"needs PyTorch, which is not installed. Install torch, or convert"):
        cg.load_energy(tmp_path / "model.pth")


def test_official_network_from_pth(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is optional: only .pth files need it")
    state, x = official(), np.random.default_rng(1).normal(size=(5, 2))
    torch.save({k: torch.from_numpy(v) for k, v in state.items()}, tmp_path / "model.pth")
    with pytest.warns(UserWarning, match="without confinement"):
        energy = cg.load_energy(tmp_path / "model.pth")
    np.testing.assert_allclose(energy(x), forward(state, x), rtol=1e-12, atol=1e-12)
    torch.save(Bomb(), tmp_path / "bomb.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "model.pth").read_bytes()[:1000])
    for name, message in (("bomb", "weights_only=True"), ("cut", "weights_only=True"), ("list", "it holds list")):
        with pytest.raises(ModelError, match=message):
            cg.load_energy(tmp_path / f"{name}.pth")
