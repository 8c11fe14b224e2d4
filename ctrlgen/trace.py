"""What a function given as code computes: its formula in SymPy, or an enclosure of its values in ball arithmetic.

The function is traced by JAX to a jaxpr, in float64, and the jaxpr is evaluated again over another kind of number (a
domain): SymPy expressions, or python-flint balls. Numbers that depend on the state travel in NumPy object arrays;
integers and truth values that do not (indices, decided comparisons) stay plain NumPy arrays and are computed by JAX.
Rounding is no part of what is traced: a cast to float32 is the identity, and the result is the real function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from operator import mul
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import sympy as sp

from ctrlgen.precision import float64
from ctrlgen.scalars import ArbDomain, Domain, NoFormula, SympyDomain

__all__ = ["ArbDomain", "Domain", "NoFormula", "SympyDomain", "interpret", "to_sympy", "trace"]

UNARY = {
    "sqrt", "rsqrt", "exp", "exp2", "expm1", "log", "log1p", "sin", "cos", "tan", "asin", "acos", "atan", "sinh",
    "cosh", "tanh", "asinh", "acosh", "atanh", "logistic", "erf", "erfc", "abs", "sign", "square",
}  # fmt: skip
BINARY = {"mul", "div", "pow", "atan2", "max", "min"}
COMPARISONS = {"eq", "ne", "lt", "le", "gt", "ge"}
CALLS = {
    "jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr",
    "remat", "remat2", "checkpoint",
}  # fmt: skip
SAME = {"copy", "copy_p", "stop_gradient", "optimization_barrier", "device_put"}
MOVES = {"gather", "dynamic_slice", "dynamic_update_slice", "pad", "scatter"}


def trace(function: Callable, shape: tuple[int, ...]) -> Any:
    """The jaxpr of a JAX function of one float64 array of this shape."""
    with float64():
        return jax.make_jaxpr(function)(jax.ShapeDtypeStruct(shape, np.float64))


def interpret(closed: Any, args: Sequence[Any], domain: Domain) -> list[np.ndarray]:
    """Evaluate a jaxpr over a domain: one object array an output.

    Args:
        closed: what `trace` returns.
        args: one array of the domain's elements an argument of the function.
        domain: the kind of number.

    Raises:
        NoFormula: the jaxpr does something that the domain cannot; the text names it.
    """
    values = [domain.inputs(np.asarray(a, dtype=object)) for a in args]
    with float64():
        out = _run(closed.jaxpr, closed.consts, values, domain)
    return [_lifted(v, domain) for v in out]


def to_sympy(function: Callable, shape: tuple[int, ...], states: Sequence[sp.Symbol]) -> np.ndarray:
    """The formulas of a JAX function of an array of this shape, as an object array of SymPy expressions.

    Args:
        function: array of shape -> array.
        shape: its product is the number of states.
        states: the entries of the argument, in C order.

    Raises:
        NoFormula: there is no formula, or it would be too large; the text says what stands in the way.
    """
    real = [sp.Dummy(s.name, real=True) for s in states]
    x = np.empty(len(real), dtype=object)
    x[:] = real
    domain = SympyDomain()
    (out,) = interpret(trace(function, shape), [x.reshape(shape)], domain)
    domain.settle(out)
    return _renamed(out, dict(zip(real, states, strict=True)))


def _renamed(exprs: np.ndarray, names: dict) -> np.ndarray:
    return np.vectorize(lambda e: e.xreplace(names), otypes=[object])(exprs) if exprs.size else exprs


# The interpreter ------------------------------------------------------------------------------------------------------


def _run(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], domain: Domain) -> list[Any]:
    env: dict = {}

    def read(v: Any) -> Any:
        return domain.constant(v, v.val) if hasattr(v, "val") else env[v]

    for v, c in zip(jaxpr.constvars, consts, strict=True):
        env[v] = domain.constant(c, c)
    env.update(zip(jaxpr.invars, args, strict=True))
    for eqn in _needed(jaxpr, domain):
        out = _apply(eqn, [read(v) for v in eqn.invars], domain)
        env.update(zip(eqn.outvars, out, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _needed(jaxpr: Any, domain: Domain) -> list[Any]:
    """The equations that the outputs depend on, in order."""

    def find() -> list[Any]:
        wanted, kept = {v for v in jaxpr.outvars if not hasattr(v, "val")}, []
        for eqn in reversed(jaxpr.eqns):
            if wanted.intersection(eqn.outvars):
                kept.append(eqn)
                wanted.update(v for v in eqn.invars if not hasattr(v, "val"))
        return kept[::-1]

    return domain.remember(jaxpr, "needed", find)


def _concrete(value: Any) -> bool:
    return value.dtype != object


def _lifted(value: Any, domain: Domain) -> np.ndarray:
    return domain.lift(np.asarray(value, dtype=np.float64)) if _concrete(value) else value


def _array(value: Any, shape: tuple[int, ...]) -> np.ndarray:
    out = np.empty(shape, dtype=object)
    out[...] = value
    return out


def _is_logaddexp(eqn: Any) -> bool:
    """Is it JAX's own function, and not another of that name?"""
    if len(eqn.invars) != 2 or "jaxpr" not in eqn.params:
        return False
    own = jax.make_jaxpr(jnp.logaddexp)(*(jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars))
    inner = [e for e in own.jaxpr.eqns if e.params.get("name") == "logaddexp"]
    return len(inner) == 1 and str(inner[0].params["jaxpr"]) == str(eqn.params["jaxpr"])


def _apply(eqn: Any, values: list[Any], domain: Domain) -> list[Any]:
    name, params = eqn.primitive.name, eqn.params
    if params.get("name") == "logaddexp" and _is_logaddexp(eqn) and not all(map(_concrete, values)):
        known = np.frompyfunc(domain.logaddexp, 2, 1)(*(_lifted(v, domain) for v in values))
        return [_array(known, eqn.outvars[0].aval.shape)]
    if name in CALLS:
        inner = next(params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in params)
        return _run(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), values, domain)
    if name == "scan":
        return _scan(params, values, domain)
    if all(map(_concrete, values)):
        return _computed(eqn, values, domain)
    if name in SAME:
        return values
    if any(v.aval.dtype.kind == "c" for v in [*eqn.invars, *eqn.outvars]):
        raise NoFormula(f"the function computes with complex numbers in the operation {name!r}")
    shapes = [v.aval.shape for v in eqn.outvars]
    if name in MOVES:
        return [_moved(eqn, values, domain)]
    if name == "split":
        return np.split(values[0], np.cumsum(params["sizes"])[:-1], axis=params["axis"])
    if name == "unstack":
        return [part.reshape(shapes[0]) for part in np.split(values[0], len(shapes), axis=params["axis"])]
    if name in COMPARISONS:
        a, b = (_lifted(v, domain) for v in values)
        decided = _array(np.frompyfunc(lambda s, t: domain.compare(name, s, t), 2, 1)(a, b), shapes[0])
        return [_settled(decided)]
    handler = HANDLERS.get(name)
    if handler is not None:
        out = handler(domain, eqn, *values)
    elif name in UNARY or name in BINARY:
        if name == "div" and eqn.outvars[0].aval.dtype.kind in "iu":
            raise NoFormula("the function divides integers that depend on the state")
        function = getattr(domain, name, None)
        if function is None:
            raise NoFormula(f"the operation {name!r} has no formula here")
        out = np.frompyfunc(function, len(values), 1)(*(_lifted(v, domain) for v in values))
    else:
        raise NoFormula(f"the operation {name!r} has no formula here")
    out = out if isinstance(out, np.ndarray) and out.shape == shapes[0] else _array(out, shapes[0])
    domain.check(out)
    return [out]


def _settled(truth: np.ndarray) -> np.ndarray:
    """Truth values as a plain array of bool where all of them are decided; None is undecided."""
    return truth if any(t is None for t in truth.flat) else truth.astype(bool)


def _computed(eqn: Any, values: list[Any], domain: Domain) -> list[Any]:
    """Integers and truth values that do not depend on the state: JAX computes them, exactly."""
    try:
        out = eqn.primitive.bind(*values, **eqn.params)
        arrays = [np.asarray(o) for o in (out if eqn.primitive.multiple_results else [out])]
    except Exception as error:
        raise NoFormula(f"the operation {eqn.primitive.name!r} on constants fails: {error}") from None
    return [a if a.dtype.kind in "biu" else domain.lift(a) for a in arrays]


def _scan(params: dict, values: list[Any], domain: Domain) -> list[Any]:
    body, (consts, carry) = params["jaxpr"], _scanned(params)
    fixed, state, xs = values[:consts], values[consts : consts + carry], values[consts + carry :]
    steps = range(params["length"])
    kept: list[list[Any]] = []
    for k in reversed(steps) if params["reverse"] else steps:
        out = _run(
            body.jaxpr,
            body.consts,
            [*fixed, *state, *(x[k] if x.ndim > 1 else x[k : k + 1].reshape(()) for x in xs)],
            domain,
        )
        state = out[:carry]
        kept.append(out[carry:])
    kept = kept[::-1] if params["reverse"] else kept
    return [*state, *(np.stack(column) for column in zip(*kept, strict=True))]


def _scanned(params: dict) -> tuple[int, int]:
    """How many values a loop holds fixed and how many it carries, as older and newer JAX say it."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    fixed, carried = (len(list(part.vals)) for part in params["ft_in"].unpack()[:2])
    return fixed, carried


def _moved(eqn: Any, values: list[Any], domain: Domain) -> np.ndarray:
    """Operations that only move entries: JAX moves the entries' numbers, and the entries follow."""
    entries = [not _concrete(v) or var.aval.dtype.kind == "f" for v, var in zip(values, eqn.invars, strict=True)]
    if any(e and var.aval.dtype.kind in "iu" for e, var in zip(entries, eqn.invars, strict=True)):
        raise NoFormula(
            f"the function uses an index that depends on the state, in the operation {eqn.primitive.name!r}"
        )
    pool = np.concatenate([_lifted(v, domain).ravel() for v, e in zip(values, entries, strict=True) if e])
    key = b"".join(v.tobytes() for v, e in zip(values, entries, strict=True) if not e)

    def places() -> np.ndarray:
        start, numbered = 0, []
        for v, e in zip(values, entries, strict=True):
            numbered.append(np.arange(start, start + v.size).reshape(v.shape) if e else v)
            start += v.size if e else 0
        filled = {"fill_value": -1} if "fill_value" in eqn.params else {}
        return np.asarray(eqn.primitive.bind(*numbered, **{**eqn.params, **filled}))

    where = domain.remember(eqn, key, places)
    if where.size and (where.min() < 0 or where.max() >= pool.size):
        raise NoFormula(f"the function uses an index out of range, in the operation {eqn.primitive.name!r}")
    return pool[where] if where.ndim else _array(pool[int(where)], ())


def _scatter_add(domain: Domain, eqn: Any, operand: Any, index: Any, updates: Any) -> np.ndarray:
    """operand + M updates: M is found by scattering unit vectors, which doubles do exactly."""
    if not _concrete(index):
        raise NoFormula("the function uses an index that depends on the state, in the operation 'scatter-add'")
    operand, updates = _lifted(operand, domain).copy(), _lifted(updates, domain)

    def targets() -> list[np.ndarray]:
        zero, unit = np.zeros(operand.shape), np.eye(updates.size).reshape(-1, *updates.shape)
        hits = (np.asarray(eqn.primitive.bind(zero, index, row, **eqn.params)) for row in unit)
        return [np.argwhere(hit != 0) for hit in hits]

    for value, hits in zip(updates.flat, domain.remember(eqn, index.tobytes(), targets), strict=True):
        for place in map(tuple, hits):
            operand[place] = operand[place] + value
    return operand


# One function an operation: (domain, equation, *values) -> array ------------------------------------------------------


def _plain(function: Callable) -> Callable:
    """An operation that NumPy's object arrays do by themselves, of numbers."""
    return lambda domain, eqn, *values: function(*(_lifted(v, domain) for v in values))


def _view(function: Callable) -> Callable:
    """An operation that rearranges its one argument, whatever it holds."""
    return lambda domain, eqn, value: function(value, eqn.params)


def _broadcast(value: np.ndarray, params: dict) -> np.ndarray:
    shape = [1] * len(params["shape"])
    for axis, size in zip(params["broadcast_dimensions"], value.shape, strict=True):
        shape[axis] = size
    return np.broadcast_to(value.reshape(shape), params["shape"])


def _slice(value: np.ndarray, params: dict) -> np.ndarray:
    strides = params["strides"] or (1,) * value.ndim
    return value[tuple(map(slice, params["start_indices"], params["limit_indices"], strides))]


def _together(function: Callable, key: str) -> Callable:
    def handler(domain: Domain, eqn: Any, *values: Any) -> np.ndarray:
        return function([_lifted(v, domain) for v in values], axis=eqn.params[key])

    return handler


def _reduced(name: str) -> Callable:
    def handler(domain: Domain, eqn: Any, value: np.ndarray) -> np.ndarray:
        axes = [int(a) for a in eqn.params["axes"]]
        kept = [a for a in range(value.ndim) if a not in axes]
        shape = [value.shape[a] for a in kept]
        rows = value.transpose(*kept, *axes).reshape(math.prod(shape), -1)
        if name in ("max", "min") and rows.shape[1] == 0:
            raise NoFormula(f"the {name} of nothing has no formula")
        fold = {
            "sum": domain.sum,
            "prod": lambda row: reduce(mul, row, domain.number(1)),
            "max": lambda row: reduce(domain.max, row),
            "min": lambda row: reduce(domain.min, row),
            "and": lambda row: reduce(_and, row),
            "or": lambda row: _not(reduce(_and, map(_not, row))),
        }[name]
        out = np.empty(len(rows), dtype=object)
        out[:] = [fold(list(row)) for row in rows]
        return _settled(out.reshape(shape)) if name in ("and", "or") else out.reshape(shape)

    return handler


def _reshape(value: np.ndarray, params: Any) -> np.ndarray:
    """Column-major orders come as a transposition, `dimensions`, before the reshape."""
    turned = params.get("dimensions")
    return (value if turned is None else value.transpose(turned)).reshape(params["new_sizes"])


def _cumulative(function: Any) -> Callable:
    def handler(domain: Domain, eqn: Any, value: np.ndarray) -> np.ndarray:
        axis = eqn.params["axis"]
        turn = (lambda a: np.flip(a, axis)) if eqn.params["reverse"] else (lambda a: a)
        return turn(function.accumulate(turn(value), axis=axis))

    return handler


def _convert(domain: Domain, eqn: Any, value: np.ndarray) -> np.ndarray:
    old, new = eqn.invars[0].aval.dtype.kind, eqn.params["new_dtype"]
    if old == "b" and np.dtype(new).kind in "iu" and np.dtype(new).itemsize < 4:
        raise NoFormula("the function computes with integers that may overflow")
    if old == "b" and np.dtype(new).kind != "b":  # undecided truth values: 0 or 1
        zero, one = domain.number(0), domain.number(1)
        return np.frompyfunc(lambda t: domain.union([zero, one]) if t is None else one if t else zero, 1, 1)(value)
    if old != "b" and np.dtype(new).kind in "biu" and old not in "iu":
        raise NoFormula("the function casts a number that depends on the state to an integer")
    if old == "f" and np.dtype(new).itemsize < 4:  # bfloat16 too, whose kind is "V"
        raise NoFormula(f"the function rounds a number that depends on the state to {np.dtype(new).name}")
    return value


def _select(domain: Domain, eqn: Any, which: np.ndarray, *cases: np.ndarray) -> np.ndarray:
    truth = eqn.outvars[0].aval.dtype.kind == "b"
    if not truth:
        cases = tuple(_lifted(c, domain) for c in cases)
    if not _concrete(which) and eqn.invars[0].aval.dtype.kind != "b":
        raise NoFormula("the function uses an index that depends on the state, in the operation 'select_n'")

    def pick(w: Any, *entries: Any) -> Any:
        if w is not None:
            return entries[int(w)]
        if truth:
            return entries[0] if all(e is entries[0] for e in entries) else None
        return domain.union(entries)

    return np.frompyfunc(pick, 1 + len(cases), 1)(which, *cases)


def _dot(domain: Domain, eqn: Any, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    (left_sum, right_sum), (left_batch, right_batch) = eqn.params["dimension_numbers"]
    left, right = _lifted(left, domain), _lifted(right, domain)
    left_free = [a for a in range(left.ndim) if a not in (*left_sum, *left_batch)]
    right_free = [a for a in range(right.ndim) if a not in (*right_sum, *right_batch)]
    batch = [left.shape[a] for a in left_batch]
    rows, columns = [left.shape[a] for a in left_free], [right.shape[a] for a in right_free]
    inner, count = math.prod(left.shape[a] for a in left_sum), math.prod(batch)
    a = left.transpose(*left_batch, *left_free, *left_sum).reshape(count, math.prod(rows), inner)
    b = right.transpose(*right_batch, *right_sum, *right_free).reshape(count, inner, math.prod(columns))
    out = np.empty((count, a.shape[1], b.shape[2]), dtype=object)
    for k in range(count):
        out[k] = domain.dot(a[k], b[k])
    return out.reshape([*batch, *rows, *columns])


def _and(a: Any, b: Any) -> Any:
    """Three-valued: None is undecided."""
    if a is False or b is False:
        return False
    return None if a is None or b is None else True


def _not(a: Any) -> Any:
    return None if a is None else not a


def _logic(function: Callable) -> Callable:
    def handler(domain: Domain, eqn: Any, *values: np.ndarray) -> np.ndarray:
        if eqn.outvars[0].aval.dtype.kind != "b":
            raise NoFormula(f"the operation {eqn.primitive.name!r} has no formula here")
        truths = [v.astype(object) for v in values]
        return _settled(_array(np.frompyfunc(function, len(values), 1)(*truths), eqn.outvars[0].aval.shape))

    return handler


HANDLERS: dict[str, Callable] = {
    "add": _plain(lambda a, b: a + b),
    "add_any": _plain(lambda a, b: a + b),
    "sub": _plain(lambda a, b: a - b),
    "neg": _plain(lambda a: -a),
    "integer_pow": lambda d, e, x: np.frompyfunc(lambda t: d.integer_pow(t, int(e.params["y"])), 1, 1)(x),
    "one_minus_square": lambda d, e, x: np.frompyfunc(lambda t: 1 - d.square(t), 1, 1)(_lifted(x, d)),
    "clamp": lambda d, e, *v: np.frompyfunc(lambda a, x, b: d.min(d.max(x, a), b), 3, 1)(*(_lifted(u, d) for u in v)),
    "is_finite": lambda d, e, x: _settled(_array(np.frompyfunc(d.is_finite, 1, 1)(x), x.shape)),
    "dot_general": _dot,
    "select_n": _select,
    "convert_element_type": _convert,
    "scatter-add": _scatter_add,
    "broadcast_in_dim": _view(_broadcast),
    "reshape": _view(_reshape),
    "squeeze": _view(lambda x, p: x.squeeze(tuple(int(a) for a in p["dimensions"]))),
    "expand_dims": _view(lambda x, p: np.expand_dims(x, tuple(p["dimensions"]))),
    "transpose": _view(lambda x, p: x.transpose(p["permutation"])),
    "rev": _view(lambda x, p: np.flip(x, tuple(p["dimensions"]))),
    "slice": _view(_slice),
    "concatenate": _together(np.concatenate, "dimension"),
    "stack": _together(np.stack, "axis"),
    "cumsum": _cumulative(np.add),
    "cumprod": _cumulative(np.multiply),
    "not": _logic(_not),
    "and": _logic(_and),
    "or": _logic(lambda a, b: _not(_and(_not(a), _not(b)))),
    **{f"reduce_{name}": _reduced(name) for name in ("sum", "prod", "max", "min", "and", "or")},
}
