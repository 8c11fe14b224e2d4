"""A training run on disk: one safetensors file, replaced atomically, with its JSON in the metadata. No pickle."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

VERSION = 1
_FIELD = "ctrlgen-training"


def write(path: Path, facts: dict[str, Any], trees: dict[str, Any], tables: dict[str, np.ndarray]) -> None:
    """Write the numbers of pytrees, and named tables; an interruption leaves the previous file whole.

    Args:
        path: the file.
        facts: what JSON can hold.
        trees: pytrees whose leaves are arrays; only their leaves are written, in order.
        tables: named arrays.
    """
    arrays = {f"table/{name}": np.asarray(table, order="C") for name, table in tables.items()}
    for name, tree in trees.items():
        for i, leaf in enumerate(jax.tree.leaves(tree)):
            arrays[f"tree/{name}/{i}"] = np.asarray(leaf, order="C")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".partial")
    save_file(arrays, unfinished, metadata={_FIELD: json.dumps({"version": VERSION, **facts})})
    os.replace(unfinished, path)


def read_facts(path: Path) -> dict[str, Any]:
    """The JSON of a checkpoint.

    Raises:
        ValueError: the file is damaged, or is not a checkpoint of this version.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            facts = json.loads((file.metadata() or {})[_FIELD])
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(
            f"checkpoint {path} is damaged or not a training checkpoint ({error}). Remove it, or pass resume=False."
        ) from None
    if facts.get("version") != VERSION:
        raise ValueError(f"checkpoint {path} has version {facts.get('version')}; this ctrlgen reads {VERSION}.")
    return facts


def read_tree(path: Path, name: str, like: Any) -> Any:
    """A pytree of the structure of `like`, with the leaves from the file.

    Raises:
        ValueError: leaves are missing, or their shapes or types differ.
    """
    leaves, structure = jax.tree.flatten(like)
    out = []
    with safe_open(path, framework="numpy") as file:
        present = set(file.keys())
        for i, leaf in enumerate(leaves):
            key = f"tree/{name}/{i}"
            array = file.get_tensor(key) if key in present else None
            if array is None or array.shape != np.shape(leaf) or array.dtype != leaf.dtype:
                got = "nothing" if array is None else f"{array.dtype} {array.shape}"
                raise ValueError(f"checkpoint {path}: {key} must be {leaf.dtype} {np.shape(leaf)}; got {got}.")
            out.append(jnp.asarray(array))
    return jax.tree.unflatten(structure, out)


def read_tables(path: Path) -> dict[str, np.ndarray]:
    """The named tables."""
    with safe_open(path, framework="numpy") as file:
        names = [key for key in file.keys() if key.startswith("table/")]  # noqa: SIM118 (not a mapping)
        return {name.removeprefix("table/"): file.get_tensor(name) for name in names}
