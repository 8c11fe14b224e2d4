"""Checkpoints of other packages, read as energies.

Known so far: the 2-D network of the official Energy Matching code (github.com/m1balcerak/EnergyMatching,
experiments/toy2d): `net = Sequential(Linear, ReLU, Linear, SiLU, Linear, SiLU, Linear, SiLU, Linear)`. Its output
is the potential V, its velocity is -∇V and its sampler steps x - ∇V dt + sqrt(2 ε dt) ξ (utils_2D.py), so E = V,
without a change of sign.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from ctrlgen.energies.neural import MLPEnergy
from ctrlgen.records import Arrays, ModelError

ACTIVATIONS = ("relu", "silu", "silu", "silu")
_KEY = re.compile(r"(?P<prefix>.*?)(?P<layer>\d+)\.(?P<part>weight|bias)")


def energy_matching_2d(state: Arrays, file: Path) -> MLPEnergy:
    """The official Energy Matching 2-D network as an `MLPEnergy` without confinement; E = V, no change of sign.

    Args:
        state: the state_dict; Linear layers under any common prefix, in the order of their indices.
        file: where it came from, for the messages.

    Raises:
        ModelError: the layers are not d-w-w-w-w-1 with a weight and a bias each, or not finite.

    Warns:
        UserWarning: always; without confinement the Gibbs measure need not exist.
    """
    layers: dict[int, dict[str, np.ndarray]] = {}
    prefixes = set()
    for key, array in state.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise _refused(file, f"it has an entry {key[:60]!r}, which is not the weight or bias of a Linear layer")
        prefixes.add(match["prefix"])
        layers.setdefault(int(match["layer"]), {})[match["part"]] = array
    if len(prefixes) > 1:
        raise _refused(file, f"its layers are under several prefixes, {sorted(prefixes)[:5]}")
    pairs = [layers[i] for i in sorted(layers)]
    if len(pairs) != len(ACTIVATIONS) + 1 or any(set(p) != {"weight", "bias"} for p in pairs):
        raise _refused(file, f"it has {len(pairs)} layers with entries {sorted(state)[:12]}")
    weights, biases = [p["weight"] for p in pairs], [p["bias"] for p in pairs]
    for key, array in state.items():
        if array.dtype not in (np.float16, np.float32, np.float64) or not np.isfinite(array).all():
            raise _refused(file, f"its {key!r} is of type {array.dtype}, or not finite")
    shapes = [w.shape for w in weights]
    dim, width = (shapes[0][1], shapes[0][0]) if len(shapes[0]) == 2 else (0, 0)
    wanted = [(width, dim), *[(width, width)] * (len(ACTIVATIONS) - 1), (1, width)]
    if shapes != wanted or [b.shape for b in biases] != [(w[0],) for w in wanted] or 0 in (dim, width):
        raise _refused(file, f"its weights have shapes {shapes}, its biases {[b.shape for b in biases]}")
    energy = MLPEnergy(dim, width, len(ACTIVATIONS), ACTIVATIONS, confinement=0.0)
    arrays = [tuple(jnp.asarray(np.asarray(a, np.float32)) for a in group) for group in (weights, biases)]
    warnings.warn(
        f"{file} was trained without confinement, so the Gibbs measure of this energy need not exist and long "
        "sampling may drift away from the data. Add a Quadratic to confine it.",
        UserWarning,
        stacklevel=3,
    )
    return eqx.tree_at(lambda e: (e.weights, e.biases), energy, tuple(arrays))


def read_torch(file: Path) -> Arrays:
    """The tensors of a PyTorch state_dict, by `torch.load(weights_only=True)`: pickled code is refused.

    Raises:
        ImportError: torch is not installed.
        ModelError: the file is not a state_dict of tensors.
    """
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ImportError(
            f"reading {file} needs PyTorch, which is not installed. Install torch, or convert the file where it is: "
            "safetensors.torch.save_file(torch.load(path, weights_only=True), 'weights.safetensors')."
        ) from None
    try:
        state: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise ModelError(
            f"{file} must be a PyTorch state_dict that loads with weights_only=True; torch says: "
            f"{str(error).splitlines()[0][:200] if str(error) else type(error).__name__}"
        ) from None
    if isinstance(state, dict):
        for key in ("state_dict", "model", "net_model", "ema_model", "ema"):
            if isinstance(state.get(key), dict):
                state = state[key]
                break
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise _refused(file, f"it holds {type(state).__name__}, not a dictionary of tensors")
    return {str(k): v.detach().to(torch.float32).numpy() for k, v in state.items()}


def _refused(file: Path, why: str) -> ModelError:
    return ModelError(
        f"{file} must be the official Energy Matching 2-D network: five Linear layers d-w-w-w-w-1 (2-256-256-256-256-1 "
        f"in the tutorial), keys such as 'net.0.weight'; {why}."
    )
