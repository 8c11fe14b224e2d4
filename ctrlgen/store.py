"""Models on disk: a folder with config.json, weights.safetensors and card.md.

Loading never executes code: JSON and safetensors are the only formats, constructors come from the registry in
`ctrlgen.records`, and sizes, hash, shapes and types are checked before anything is built. A checkpoint of the
official Energy Matching 2-D network is read as well (`ctrlgen.foreign`).
"""

from __future__ import annotations

import difflib
import filecmp
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import safetensors
import safetensors.numpy

import ctrlgen
from ctrlgen import foreign, records
from ctrlgen.energies.base import Energy
from ctrlgen.records import Arrays, ModelError

__all__ = ["ModelError", "ModelSummary", "list_models", "load_card", "load_config", "load_energy", "save_energy"]

FORMAT, SCHEMA = "ctrlgen-energy", 1
CONFIG, WEIGHTS, CARD = "config.json", "weights.safetensors", "card.md"
MAX_CONFIG = MAX_CARD = 1 << 20  # bytes
MAX_WEIGHTS = 1 << 30  # bytes
MAX_DEPTH = 64  # of the JSON
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_KEYS = {
    "format",
    "schema",
    "ctrlgen",
    "dim",
    "temperature",
    "energy",
    "command",
    "seed",
    "columns",
    "weights",
    "checksum",
}


@dataclass(frozen=True, kw_only=True)
class ModelSummary:
    """What `list_models` says about one model.

    Args:
        name: of its folder.
        dim: d; None when the config cannot be read.
        temperature: ε at which its Gibbs measure models the data, or None.
        size: bytes on disk.
        path: of its folder.
        description: the first line of prose in its card.
        shipped: whether it came with ctrlgen; a copy of such a model in ./models counts, another of its name does not.
    """

    name: str
    dim: int | None
    temperature: float | None
    size: int
    path: Path
    description: str
    shipped: bool

    def plot(self, ax: Any = None, bounds: Any = None) -> Any:
        """Draw the model's landscape, in one or two dimensions: see `ctrlgen.plot.energy`."""
        from ctrlgen import plot

        return plot.energy(load_energy(self.path), ax, bounds)


def save_energy(
    energy: Energy,
    path: str | os.PathLike,
    card: str | None = None,
    *,
    command: str | None = None,
    seed: int | None = None,
    columns: Sequence[str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Save an energy as a model folder; `load_energy` gives it back, equal in every bit.

    The folder appears whole or not at all: it is written beside its place, read back, and renamed.

    Args:
        energy: any energy of ctrlgen but `CallableEnergy`; nested ones too.
        path: the folder, for example "models/mine".
        card: Markdown for people; a short one is written when omitted.
        command: that reproduces the model.
        seed: of its training.
        columns: d names of the coordinates, kept for tables that are generated.
        overwrite: replace a model that is there.

    Returns:
        The folder.

    Raises:
        TypeError: the energy holds code (a `CallableEnergy`, a schedule of the user's own).
        ValueError: an array is not finite, a formula cannot be written so that it reads back, or there are not d
            columns.
        FileExistsError: path exists and overwrite is False, or it holds something that is not a model.
    """
    path = Path(path)
    if columns is not None and len(columns) != energy.dim:
        raise ValueError(f"columns must be {energy.dim} names, one a coordinate; got {len(columns)}.")
    record, arrays = records.write(energy)
    weights = safetensors.numpy.save(arrays)
    config = {
        "format": FORMAT,
        "schema": SCHEMA,
        "ctrlgen": ctrlgen.__version__,
        "dim": energy.dim,
        "temperature": record["arguments"].get("temperature"),
        "energy": record,
        "command": None if command is None else str(command),
        "seed": None if seed is None else int(seed),
        "columns": None if columns is None else [str(c) for c in columns],
        "weights": {"sha256": hashlib.sha256(weights).hexdigest(), "bytes": len(weights)},
    }
    config["checksum"] = checksum(config)
    text = json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    text = re.sub(r"\[\n\s*([^][{}\"]*?)\s*\n\s*\]", lambda m: "[" + " ".join(m[1].split()) + "]", text)
    check_target(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        (beside / CONFIG).write_text(text, encoding="utf-8")
        (beside / WEIGHTS).write_bytes(weights)
        (beside / CARD).write_text(card if card is not None else _plain_card(path.name, energy, config), "utf-8")
        _load_folder(beside)
        beside.chmod(0o755)
        _put(beside, path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return path


def load_energy(name_or_path: str | os.PathLike) -> Energy:
    """Load an energy by name or path, without executing anything that is in it.

    Args:
        name_or_path: a name is looked for in ./models, then among the shipped models; a path is a model folder, or
            a state_dict of the official Energy Matching 2-D network (.safetensors; .pth and .pt where torch is
            installed). That network's output is the potential V with velocity -∇V, so E = V.

    Raises:
        ModelError: nothing there, or it breaks a rule: the message says which file, which rule, and what came.
        ImportError: a .pth file, and torch is not installed.
    """
    path = _locate(name_or_path)
    if path.name == WEIGHTS and (path.parent / CONFIG).exists():
        path = path.parent
    if path.is_dir():
        return _load_folder(path)[1]
    if path.suffix == ".safetensors":
        return foreign.energy_matching_2d(_parse_weights(_read_file(path, MAX_WEIGHTS), path), path)
    if path.suffix in (".pth", ".pt"):
        _check_file(path, MAX_WEIGHTS)
        return foreign.energy_matching_2d(foreign.read_torch(path), path)
    raise ModelError(
        f"{path} must be a model folder, a .safetensors or a .pth file; got a file ending in {path.suffix!r}."
    )


def load_config(name_or_path: str | os.PathLike) -> dict:
    """What the config of a model says, checked: 'dim', 'temperature', 'command', 'seed', 'columns', 'ctrlgen', ...

    Raises:
        ModelError: no such model, or its config breaks a rule.
    """
    return _read_config(_locate(name_or_path))


def load_card(name_or_path: str | os.PathLike) -> str:
    """The card of a model, in Markdown.

    Raises:
        ModelError: no such model, or its card is missing, too large or not UTF-8.
    """
    path = _locate(name_or_path)
    if not path.is_dir():
        raise ModelError(f"{path} is a file without a card; only a model folder has one.")
    return _read_text(path / CARD, MAX_CARD)


def list_models() -> list[ModelSummary]:
    """The models in ./models, then the shipped ones; a damaged one is listed with what is wrong with it."""
    return [_summary(name, path) for name, path in sorted(_models().items())]


# Finding --------------------------------------------------------------------------------------------------


def _shipped() -> Path:
    try:
        packaged = import_module("ctrlgen._models")  # in an installed package the models are inside it
    except ModuleNotFoundError:
        return Path(__file__).parent.parent / "models"  # a source tree on the path
    return Path(next(iter(packaged.__path__)))


def _is_shipped(path: Path) -> bool:
    """Whether a model's folder is one that came with ctrlgen, or holds the same config and weights.

    In a checkout ./models is the shipped folder itself, or that of which an installed package has a copy.
    """
    own = _shipped() / path.name
    if not (own / CONFIG).exists():
        return False
    return own.samefile(path) or filecmp.cmpfiles(own, path, (CONFIG, WEIGHTS), shallow=False)[0] == [CONFIG, WEIGHTS]


def _models() -> dict[str, Path]:
    """name -> folder; ./models hides a shipped model of the same name."""
    found: dict[str, Path] = {}
    for root in (_shipped(), Path("models")):
        if root.is_dir():
            found |= {p.name: p for p in root.iterdir() if _NAME.fullmatch(p.name) and (p / CONFIG).exists()}
    return found


def _locate(name_or_path: str | os.PathLike) -> Path:
    try:
        path = Path(name_or_path)
    except TypeError:
        raise ModelError(f"name_or_path must be a text or a path; got {type(name_or_path).__name__}.") from None
    models = _models()
    if isinstance(name_or_path, str) and name_or_path in models:
        return models[name_or_path]
    try:
        if path.exists():
            return path
    except (OSError, ValueError):  # a name too long for the file system, or with a null character
        pass
    close = difflib.get_close_matches(str(name_or_path), models, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ModelError(
        f"there is no model {str(name_or_path)!r}, as a name or a path.{hint} "
        f"There are {sorted(models) if models else 'no models in ./models nor among the shipped ones'}."
    )


def _summary(name: str, path: Path) -> ModelSummary:
    size = sum(p.stat().st_size for p in path.iterdir() if p.is_file())
    common: dict[str, Any] = {"name": name, "size": size, "path": path, "shipped": _is_shipped(path)}
    try:
        config = _read_config(path)
    except ModelError as error:
        return ModelSummary(dim=None, temperature=None, description=f"cannot be read: {error}", **common)
    try:
        lines = [line.strip() for line in _read_text(path / CARD, MAX_CARD).splitlines()]
        description = next(line for line in lines if line and not line.startswith(("#", "|", "-", "```")))
    except (ModelError, StopIteration):
        description = config["energy"]["constructor"] if isinstance(config["energy"], dict) else ""
    return ModelSummary(dim=config["dim"], temperature=config["temperature"], description=description, **common)


# Reading --------------------------------------------------------------------------------------------------


def _load_folder(path: Path) -> tuple[dict, Energy]:
    config, file = _read_config(path), path / WEIGHTS
    size = _check_file(file, MAX_WEIGHTS)
    if size != config["weights"]["bytes"]:
        raise ModelError(
            f"{file} must have the {config['weights']['bytes']} bytes that {CONFIG} declares; it has {size}."
        )
    data = _read_file(file, MAX_WEIGHTS)
    if hashlib.sha256(data).hexdigest() != config["weights"]["sha256"]:
        raise ModelError(
            f"{file} must have the SHA-256 that {CONFIG} declares; it was changed or damaged. Get it again."
        )
    arrays = _parse_weights(data, file)
    try:
        energy = records.read(config["energy"], arrays)
    except ModelError as error:
        raise ModelError(f"{path / CONFIG}: {error}") from None
    if energy.dim != config["dim"]:
        raise ModelError(f"{path / CONFIG}: 'dim' must be {energy.dim}, that of the energy; got {config['dim']}.")
    temperature = config["energy"]["arguments"].get("temperature")
    if temperature != config["temperature"]:
        raise ModelError(
            f"{path / CONFIG}: 'temperature' must be {temperature}, as in the energy; got {config['temperature']}."
        )
    return config, energy


def _read_config(path: Path) -> dict:
    """The config, with everything checked but the record of the energy."""
    file = path / CONFIG
    text = _read_text(file, MAX_CONFIG)
    if _depth(text) > MAX_DEPTH:
        raise ModelError(f"{file} must not be nested more than {MAX_DEPTH} deep.")
    try:
        config = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file} must be JSON: {error}") from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ModelError(f"{file} must be the config of a model, with 'format': {FORMAT!r}. It is something else.")
    schema = config.get("schema")
    if type(schema) is not int or schema != SCHEMA:
        newer = type(schema) is int and schema > SCHEMA
        raise ModelError(
            f"{file} must have schema version {SCHEMA}; got {repr(schema)[:40]}."
            + (" It was made by a newer ctrlgen: upgrade." if newer else "")
        )
    if set(config) != _KEYS:
        missing, extra = sorted(_KEYS - set(config)), sorted(set(config) - _KEYS)[:5]
        raise ModelError(f"{file} must have exactly {sorted(_KEYS)}; missing {missing}, unknown {extra}.")
    weights = config["weights"]
    for key, value, good, rule in (
        ("ctrlgen", config["ctrlgen"], isinstance(config["ctrlgen"], str), "a version"),
        ("dim", config["dim"], type(config["dim"]) is int and config["dim"] >= 1, "an integer of at least 1"),
        ("temperature", config["temperature"], _is_temperature(config["temperature"]), "positive and finite, or null"),
        ("command", config["command"], isinstance(config["command"], str | None), "a text or null"),
        ("seed", config["seed"], config["seed"] is None or type(config["seed"]) is int, "an integer or null"),
        ("columns", config["columns"], _is_columns(config["columns"], config["dim"]), "'dim' names or null"),
        ("weights", weights, isinstance(weights, dict) and set(weights) == {"sha256", "bytes"}, "'sha256' and 'bytes'"),
    ):
        if not good:
            raise ModelError(f"{file}: {key!r} must be {rule}; got {repr(value)[:80]}.")
    if not isinstance(weights["sha256"], str) or not re.fullmatch("[0-9a-f]{64}", weights["sha256"]):
        raise ModelError(f"{file}: 'sha256' must be 64 hexadecimal digits; got {repr(weights['sha256'])[:80]}.")
    if config["checksum"] != checksum(config):
        raise ModelError(
            f"{file} must have the checksum of its content; it was edited or damaged. Get it again, or load, change "
            "and save the energy in Python."
        )
    if type(weights["bytes"]) is not int or not 0 <= weights["bytes"] <= MAX_WEIGHTS:
        raise ModelError(f"{file}: 'bytes' must be between 0 and {MAX_WEIGHTS}; got {repr(weights['bytes'])[:80]}.")
    return config


def checksum(config: dict) -> str:
    """SHA-256 of a config's content, without the checksum itself, whatever its layout."""
    content = {k: v for k, v in config.items() if k != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _is_columns(value: Any, dim: Any) -> bool:
    return value is None or (isinstance(value, list) and len(value) == dim and all(isinstance(v, str) for v in value))


def _is_temperature(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and 0 < value < 1e300)


def _parse_weights(data: bytes, file: Path) -> Arrays:
    try:
        return safetensors.numpy.load(data)
    except Exception as error:  # the parser raises its own kind, and others for types that NumPy lacks
        raise ModelError(f"{file} must be a safetensors file of NumPy types; {str(error)[:200]}.") from None


def _check_file(file: Path, limit: int) -> int:
    """The size of a regular file, within the limit."""
    try:
        found = file.stat()
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror or error}.") from None
    if not stat.S_ISREG(found.st_mode):
        raise ModelError(f"{file} must be a regular file.")
    if found.st_size > limit:
        raise ModelError(f"{file} must have at most {limit} bytes; it has {found.st_size}.")
    return found.st_size


def _read_file(file: Path, limit: int) -> bytes:
    _check_file(file, limit)
    try:
        with file.open("rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror or error}.") from None
    if len(data) > limit:
        raise ModelError(f"{file} must have at most {limit} bytes; it has more.")
    return data


def _read_text(file: Path, limit: int) -> str:
    try:
        return _read_file(file, limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelError(f"{file} must be UTF-8 text; byte {error.start} is not.") from None


def _depth(text: str) -> int:
    """How deep brackets are nested, outside JSON strings."""
    depth = deepest = 0
    for token in re.finditer(r'"(?:[^"\\]|\\.)*+"?|[\[{\]}]', text, re.DOTALL):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token[0], 0)
        deepest = max(deepest, depth)
    return deepest


def _unique(pairs: list[tuple[str, Any]]) -> dict:
    out = dict(pairs)
    if len(out) < len(pairs):
        raise ValueError(f"a name occurs twice in one object, among {[k for k, _ in pairs][:8]}")
    return out


def _no_constant(name: str) -> Any:
    raise ValueError(f"numbers must be finite; got {name}")


# Writing --------------------------------------------------------------------------------------------------


def check_target(path: Path, overwrite: bool) -> None:
    if not path.name:
        raise ValueError(f"path must name the model's folder, for example 'models/mine'; got {str(path)!r}.")
    if not (path.exists() or path.is_symlink()):
        return
    if not overwrite:
        raise FileExistsError(f"{path} exists. Pass overwrite=True to replace it, or choose another name.")
    inside = {p.name for p in path.iterdir()} if path.is_dir() and not path.is_symlink() else {"not a folder"}
    if not inside <= {CONFIG, WEIGHTS, CARD}:
        other = sorted(inside - {CONFIG, WEIGHTS, CARD})[:5]
        raise FileExistsError(f"{path} holds more than a model ({other}), so it is not replaced. Move it away first.")


def _put(beside: Path, path: Path) -> None:
    """Rename the finished folder into place; what was there is moved aside first and deleted last."""
    if not path.exists():
        beside.rename(path)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
    path.rename(old / "was")
    try:
        beside.rename(path)
    except OSError:
        (old / "was").rename(path)
        old.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)


def _plain_card(name: str, energy: Energy, config: dict) -> str:
    ran = f"\n```\n{config['command']}\n```\n" if config["command"] else ""
    return f"# {name}\n\n{energy.dim}-dimensional {type(energy).__name__}.\n{ran}"
