"""Energies as plain records: a tree of JSON values, and named arrays beside it.

Reading a record only ever calls the constructors in `ENTRIES`, with arguments whose kinds are declared there:
nothing in a record is executed. An array's name in the weights file is the path of its argument.
"""

from __future__ import annotations

import ast
import keyword
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import sympy as sp
from sympy.printing.str import StrPrinter

from ctrlgen.energies.algebra import Composition, compose
from ctrlgen.energies.analytic import GaussianMixture, Quadratic
from ctrlgen.energies.base import Energy
from ctrlgen.energies.landscapes import Banana, DoubleWell, Funnel, Ring
from ctrlgen.energies.mixture import MixtureEnergy, mixture
from ctrlgen.energies.neural import MLPEnergy
from ctrlgen.energies.observation import LeastSquares
from ctrlgen.energies.symbolic import CallableEnergy, SymbolicEnergy
from ctrlgen.energies.trained import TrainedEnergy
from ctrlgen.field import parse
from ctrlgen.schedule import Annealing, TransportRamp

MAX_NESTING = 8  # energies within energies
MAX_WHOLE = 1_000_000
MAX_TEXT = 100_000
MAX_ITEMS = 100_000
MAX_BITS = 100_000  # of any constant in a formula: ((10**1000)**1000)**1000 is short to write and endless to compute

Arrays = dict[str, np.ndarray]


class ModelError(ValueError):
    """A stored model is damaged, foreign or unknown: the message says which file, which rule, and what to do."""


def write(energy: Any) -> tuple[dict, Arrays]:
    """The record of an energy: a JSON tree and its arrays.

    Raises:
        TypeError: the energy holds something that is code (a callable), or a class that is not in the registry.
        ValueError: a formula or an array cannot be written so that it reads back as it is.
    """
    arrays: Arrays = {}
    return _write_node(energy, "", arrays, Energy), arrays


def read(record: Any, arrays: Arrays) -> Energy:
    """The energy of a record.

    Raises:
        ModelError: the record breaks a rule, or the arrays are not exactly those that it declares.
    """
    left = dict(arrays)
    energy = _read_node(record, "", left, Energy, 0)
    if left:
        raise ModelError(f"the arrays must be those that the config declares; there are also {sorted(left)[:5]}.")
    return energy


# Kinds of arguments: how a value is written, and how it is read and checked ---------------------------


class Number:
    """A finite float; JSON writes the shortest text that reads back exactly."""

    def write(self, value, path, arrays):
        return float(value)

    def read(self, value, path, arrays, depth):
        return _number(value, path)


class Whole:
    """An integer between 0 and MAX_WHOLE."""

    def write(self, value, path, arrays):
        return int(value)

    def read(self, value, path, arrays, depth):
        if type(value) is not int or not 0 <= value <= MAX_WHOLE:
            raise _broken(path, f"an integer between 0 and {MAX_WHOLE}", value)
        return value


class Text:
    def write(self, value, path, arrays):
        return str(value)

    def read(self, value, path, arrays, depth):
        if not isinstance(value, str) or len(value) > MAX_TEXT:
            raise _broken(path, f"a text of at most {MAX_TEXT} characters", value)
        return value


class Items:
    """A list of one kind."""

    def __init__(self, kind):
        self.kind = kind

    def write(self, value, path, arrays):
        return [self.kind.write(v, f"{path}.{i}", arrays) for i, v in enumerate(value)]

    def read(self, value, path, arrays, depth):
        if not isinstance(value, list) or not 1 <= len(value) <= MAX_ITEMS:
            raise _broken(path, "a list that is not empty", value)
        return [self.kind.read(v, f"{path}.{i}", arrays, depth) for i, v in enumerate(value)]


class Optional:
    def __init__(self, kind):
        self.kind = kind

    def write(self, value, path, arrays):
        return None if value is None else self.kind.write(value, path, arrays)

    def read(self, value, path, arrays, depth):
        return None if value is None else self.kind.read(value, path, arrays, depth)


class Array:
    """An array in the weights file; the config declares its shape and type."""

    def __init__(self, dtype: type, ndim: int):
        self.dtype, self.ndim = np.dtype(dtype), ndim

    def write(self, value, path, arrays):
        array = np.asarray(value)
        if array.dtype != self.dtype:
            raise ValueError(
                f"{path} must be of type {self.dtype} to be saved; got {array.dtype}. Cast it with .astype first."
            )
        if not np.isfinite(array).all():
            raise ValueError(f"{path} must be finite to be saved; {np.sum(~np.isfinite(array))} entries are not.")
        arrays[path] = np.ascontiguousarray(array)
        return {"shape": list(array.shape), "dtype": str(self.dtype)}

    def read(self, value, path, arrays, depth):
        _keys(value, {"shape", "dtype"}, path)
        shape = value["shape"]
        if not isinstance(shape, list) or len(shape) != self.ndim or not all(type(s) is int and s > 0 for s in shape):
            raise _broken(f"{path}.shape", f"a list of {self.ndim} positive integers", shape)
        if value["dtype"] != str(self.dtype):
            raise _broken(f"{path}.dtype", repr(str(self.dtype)), value["dtype"])
        if path not in arrays:
            raise ModelError(f"the array {path!r}, which the config declares, is not in the weights.")
        array = arrays.pop(path)
        if array.dtype != self.dtype or list(array.shape) != shape:
            raise ModelError(
                f"the array {path!r} must be {self.dtype} of shape {shape}, as the config declares; "
                f"got {array.dtype} of shape {list(array.shape)}."
            )
        if not np.isfinite(array).all():
            raise ModelError(f"the array {path!r} must be finite; {np.sum(~np.isfinite(array))} entries are not.")
        return array


class Nested:
    """Another registered object within this one."""

    def __init__(self, of: type | tuple[type, ...]):
        self.of = of

    def write(self, value, path, arrays):
        return _write_node(value, path, arrays, self.of)

    def read(self, value, path, arrays, depth):
        return _read_node(value, path, arrays, self.of, depth + 1)


# The registry ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """A class that a record may name.

    Args:
        arguments: name -> kind.
        build: makes the object from the arguments; the class itself when omitted.
        take: the arguments of an object; its attributes of the same names when omitted.
    """

    arguments: dict[str, Any]
    build: Callable | None = None
    take: Callable[[Any], dict] | None = None


def _build_mixture(means, covariances, weights, offsets, temperature):
    if abs(weights.sum() - 1) > 1e-9:
        raise ValueError(f"weights must sum to 1; the sum is {weights.sum()}.")
    energy = GaussianMixture(means, covariances, weights, temperature)
    if offsets.shape != energy.offsets.shape or not np.allclose(offsets, energy.offsets, rtol=1e-9, atol=1e-9):
        raise ValueError("offsets must be the log normalisers of the weighted components.")
    # normalising weights that are normalised already moves the last bit: put back what was saved
    return eqx.tree_at(lambda e: (e.weights, e.offsets), energy, (weights, offsets))


def _build_alternatives(terms, offsets, temperature):
    mixture(terms, temperature)  # for its checks; the offsets are kept as they are
    if offsets.shape != (len(terms),):
        raise ValueError(f"offsets must be {len(terms)} numbers, one a term; got shape {offsets.shape}.")
    return MixtureEnergy(terms, offsets, temperature)


def _take_formula(energy: SymbolicEnergy) -> dict:
    field = energy.field
    text, names = _Exact().doprint(field.expr), [s.name for s in field.states]
    for name in names:
        if not _is_name(name):
            raise ValueError(f"states must be plain names to be saved, such as 'x1'; got {name!r}.")
    try:
        back = parse(text, field.states)
    except ValueError as error:
        raise ValueError(f"the formula {text[:80]!r} cannot be saved: {error}") from None
    if back != field.expr and sp.expand(back - field.expr) != 0:
        raise ValueError(f"the formula {text[:80]!r} cannot be saved: its text reads back as {str(back)[:80]!r}.")
    return {"expr": text, "states": names}


def _build_formula(expr, states):
    bad = [s for s in states if not _is_name(s)]
    if bad:
        raise ValueError(f"states must be plain names, such as 'x1'; got {bad[0][:50]!r}.")
    if _bits(ast.parse(expr.replace("^", "**").strip(), mode="eval").body) > MAX_BITS:
        raise ValueError(f"expr may have constants of at most {MAX_BITS} bits; some power in it has more.")
    return SymbolicEnergy(expr, states)


def _bits(node: ast.AST) -> float:
    """An upper bound of the size of any number that reading this formula computes."""
    below = [_bits(child) for child in ast.iter_child_nodes(node)]
    match node:
        case ast.Constant(value=int(number)):
            return max(1, number.bit_length())
        case ast.Constant(value=float()):
            return 64
        case ast.BinOp(op=ast.Pow(), right=ast.Constant(value=int() | float() as power)):
            return max(1.0, below[0] * abs(power))
        case ast.BinOp(op=ast.Pow()):
            return below[0] * 2.0 ** min(below[2], 64)
        case ast.BinOp():
            return below[0] + below[2]
    return max([1, *below])


class _Exact(StrPrinter):
    """SymPy's text, with floats in full: the shortest text that reads back as the same double."""

    def _print_Float(self, expr):
        text = repr(float(expr))
        return f"({text})" if text.startswith("-") else text


def _take_network(energy: MLPEnergy) -> dict:
    frequencies = energy.frequencies
    return {
        "dim": energy.dim,
        "width": energy.weights[0].shape[0],
        "depth": len(energy.weights) - 1,
        "features": 0 if frequencies is None else len(frequencies),
        "activation": energy.activation,
        "confinement": energy.confinement,
        "weights": energy.weights,
        "biases": energy.biases,
        "frequencies": frequencies,
    }


def _build_network(dim, width, depth, features, activation, confinement, weights, biases, frequencies):
    sizes = [dim + 2 * features, *[width] * min(depth, len(weights)), 1]
    for label, got, wanted in (
        ("weights", [w.shape for w in weights], list(zip(sizes[1:], sizes[:-1], strict=True))),
        ("biases", [b.shape for b in biases], [(s,) for s in sizes[1:]]),
        ("frequencies", [] if frequencies is None else [frequencies.shape], [(features, dim)] if features else []),
    ):
        if got != wanted:
            raise ValueError(f"{label} must have shapes {wanted[:8]} for these sizes; got {got[:8]}.")
    energy = MLPEnergy(dim, width, depth, activation, confinement, features)
    arrays = (tuple(jnp.asarray(w) for w in weights), tuple(jnp.asarray(b) for b in biases))
    energy = eqx.tree_at(lambda e: (e.weights, e.biases), energy, arrays)
    return energy if frequencies is None else eqx.tree_at(lambda e: e.frequencies, energy, frequencies)


ENTRIES: dict[type, Entry] = {
    Quadratic: Entry({"precision": Array(np.float64, 2), "mean": Array(np.float64, 1)}),
    GaussianMixture: Entry(
        {
            "means": Array(np.float64, 2),
            "covariances": Array(np.float64, 3),
            "weights": Array(np.float64, 1),
            "offsets": Array(np.float64, 1),
            "temperature": Number(),
        },
        build=_build_mixture,
    ),
    DoubleWell: Entry({"dim": Whole(), "barrier": Number(), "separation": Number(), "stiffness": Number()}),
    Banana: Entry({"scale": Number(), "curvature": Number()}),
    Funnel: Entry({"dim": Whole(), "scale": Number()}),
    Ring: Entry({"radius": Number(), "stiffness": Number(), "dim": Whole()}),
    SymbolicEnergy: Entry({"expr": Text(), "states": Items(Text())}, build=_build_formula, take=_take_formula),
    MLPEnergy: Entry(
        {
            "dim": Whole(),
            "width": Whole(),
            "depth": Whole(),
            "features": Whole(),
            "activation": Items(Text()),
            "confinement": Number(),
            "weights": Items(Array(np.float32, 2)),
            "biases": Items(Array(np.float32, 1)),
            "frequencies": Optional(Array(np.float32, 2)),
        },
        build=_build_network,
        take=_take_network,
    ),
    TrainedEnergy: Entry(
        {
            "network": Nested(Energy),
            "center": Items(Number()),
            "scale": Items(Number()),
            "temperature": Number(),
            "step": Number(),
            "duration": Number(),
            "schedule": Optional(Nested((Annealing, TransportRamp))),
            "scheme": Text(),
            "source": Text(),
            "name": Text(),
        },
        take=lambda e: {n: getattr(e, "source_name" if n == "source" else n) for n in _arguments(TrainedEnergy)},
    ),
    Composition: Entry(
        {"terms": Items(Nested(Energy)), "weights": Items(Number())}, build=partial(compose, check=False)
    ),
    MixtureEnergy: Entry(
        {"terms": Items(Nested(Energy)), "offsets": Array(np.float64, 1), "temperature": Number()},
        build=_build_alternatives,
    ),
    LeastSquares: Entry(
        {"operator": Array(np.float64, 2), "observation": Array(np.float64, 1), "sigma": Array(np.float64, 1)}
    ),
    Annealing: Entry({"start": Number(), "duration": Number()}),
    TransportRamp: Entry({"onset": Number(), "full": Number()}),
}
CLASSES = {kind.__name__: kind for kind in ENTRIES}


def _arguments(kind: type) -> dict[str, Any]:
    return ENTRIES[kind].arguments


def _write_node(value: Any, path: str, arrays: Arrays, of: type | tuple[type, ...]) -> dict:
    kind, where = type(value), f" at {path}" if path else ""
    if kind is CallableEnergy:
        raise TypeError(
            f"a CallableEnergy{where} cannot be saved: it is Python code, and loading a model never executes code. "
            "Write it as a SymbolicEnergy, or train an MLPEnergy."
        )
    if kind not in ENTRIES or not isinstance(value, of):
        known = sorted(k.__name__ for k in ENTRIES if issubclass(k, of))
        raise TypeError(f"{kind.__name__}{where} cannot be saved; what can be saved is {known}.")
    entry = ENTRIES[kind]
    taken = entry.take(value) if entry.take else {name: getattr(value, name) for name in entry.arguments}
    written = {n: k.write(taken[n], f"{path}.{n}".lstrip("."), arrays) for n, k in entry.arguments.items()}
    return {"constructor": kind.__name__, "arguments": written}


def _read_node(value: Any, path: str, arrays: Arrays, of: type | tuple[type, ...], depth: int) -> Any:
    if depth > MAX_NESTING:
        raise ModelError(f"the energy at {path!r} is nested more than {MAX_NESTING} deep.")
    label = path or "energy"
    _keys(value, {"constructor", "arguments"}, label)
    name = value["constructor"]
    known = sorted(n for n, k in CLASSES.items() if issubclass(k, of))
    if not isinstance(name, str) or name not in known:
        raise _broken(f"{label}.constructor", f"one of {known}", name)
    entry = ENTRIES[CLASSES[name]]
    _keys(value["arguments"], set(entry.arguments), f"{label}.arguments")
    arguments = {
        n: kind.read(value["arguments"][n], f"{path}.{n}".lstrip("."), arrays, depth)
        for n, kind in entry.arguments.items()
    }
    try:
        built = entry.build(*arguments.values()) if entry.build else CLASSES[name](**arguments)
    except ModelError:
        raise
    except Exception as error:  # a hostile file may break a constructor in any way; the caller sees one kind
        raise ModelError(f"the arguments of {name} at {label!r} are refused: {error}") from None
    return built


# Checks -----------------------------------------------------------------------------------------------------


def _keys(value: Any, wanted: set[str], path: str) -> None:
    if not isinstance(value, dict):
        raise _broken(path, f"an object with {sorted(wanted)}", value)
    if set(value) != wanted:
        missing, extra = sorted(wanted - set(value)), sorted(set(value) - wanted)[:5]
        raise ModelError(f"{path!r} must have exactly {sorted(wanted)}; missing {missing}, unknown {extra}.")


def _number(value: Any, path: str) -> float:
    if type(value) not in (int, float):
        raise _broken(path, "a finite number", value)
    try:
        out = float(value)
    except OverflowError:
        out = math.inf
    if not math.isfinite(out):
        raise _broken(path, "a finite number", value)
    return out


def _is_name(text: str) -> bool:
    return text.isidentifier() and not keyword.iskeyword(text) and len(text) <= 50


def _broken(path: str, rule: str, came: Any) -> ModelError:
    return ModelError(f"{path!r} must be {rule}; got {repr(came)[:80]}.")
