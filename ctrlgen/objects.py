"""Formulas of functions that are written with NumPy: they are run on symbols.

What a function does with symbols, or with JAX's tracers, need not be what it does with numbers: it may look at the
type of its arguments, or catch the error that a comparison raises. `Trials` holds what was read against numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import sympy as sp

from ctrlgen.formula import rationalise
from ctrlgen.precision import float64
from ctrlgen.scalars import NoFormula

REFUSED = (
    "write np.clip, np.maximum or jnp.where for a branch, np.sin for math.sin, and return a list in place of an array "
    "that is filled: a formula is computed, and it cannot be compared or made a float"
)
RELATIVE, ROUNDING = 1e-9, 1e-13  # of a value, and of the largest one beside it
FAR = 100.0  # states from which a number that is not finite may be an overflow
_refusals: ContextVar[list[str]] = ContextVar("refusals")


class Number:
    """A real formula that computes like a number in NumPy; it refuses to be compared, or made a float or complex."""

    __slots__ = ("expr",)
    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __init__(self, expr: Any):
        if expr.has(sp.I, sp.nan, sp.zoo):
            raise TypeError("a formula is a real number; NumPy's .real and .imag do not see that it is complex")
        self.expr = expr

    def _refuse(self, *_: Any) -> Any:
        _refusals.get([]).append(REFUSED)  # for callers that catch the error and go on
        raise TypeError(REFUSED)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        return _by_entries(ufunc, method, inputs, options)

    __bool__ = __float__ = __int__ = __index__ = __complex__ = __eq__ = __ne__ = _refuse
    __lt__ = __le__ = __gt__ = __ge__ = __round__ = __floordiv__ = __mod__ = _refuse

    def __neg__(self):
        return Number(-self.expr)

    def __pos__(self):
        return self

    def __abs__(self):
        return Number(sp.Abs(self.expr))

    def square(self):
        return Number(self.expr**2)

    def clip(self, low: Any = None, high: Any = None, **_: Any) -> Any:
        raised = self if low is None else _larger(self, low)
        return raised if high is None else _smaller(raised, high)

    def conjugate(self):
        return self

    def cbrt(self):
        return Number(sp.sign(self.expr) * sp.cbrt(sp.Abs(self.expr)))

    def exp2(self):
        return Number(2**self.expr)

    def expm1(self):
        return Number(sp.exp(self.expr) - 1)

    def log1p(self):
        return Number(sp.log(1 + self.expr))

    def log2(self):
        return Number(sp.log(self.expr) / sp.log(2))

    def log10(self):
        return Number(sp.log(self.expr) / sp.log(10))

    def arctan2(self, other):
        return Number(sp.atan2(self.expr, _expr(other)))

    def hypot(self, other):
        return Number(sp.sqrt(self.expr**2 + _expr(other) ** 2))

    fabs = __abs__


class Numbers(np.ndarray):
    """An array of `Number`, with the functions of NumPy that compare its entries."""

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:  # pyright: ignore
        return _by_entries(ufunc, method, inputs, options)


def _larger(a: Any, b: Any) -> Number:
    return Number(sp.Max(_expr(a), _expr(b)))


def _smaller(a: Any, b: Any) -> Number:
    return Number(sp.Min(_expr(a), _expr(b)))


COMPARING: dict[str, np.ufunc] = {
    "maximum": np.frompyfunc(_larger, 2, 1),
    "fmax": np.frompyfunc(_larger, 2, 1),
    "minimum": np.frompyfunc(_smaller, 2, 1),
    "fmin": np.frompyfunc(_smaller, 2, 1),
    "clip": np.frompyfunc(lambda x, low, high: _smaller(_larger(x, low), high), 3, 1),
    "sign": np.frompyfunc(lambda x: Number(sp.sign(_expr(x))), 1, 1),
}


def _by_entries(ufunc: Any, method: str, inputs: tuple, options: dict) -> Any:
    """An operation of NumPy on arrays of objects."""
    plain = []
    for value in inputs:
        if isinstance(value, Number):
            cell = np.empty((), dtype=object)
            cell[()] = value
            plain.append(cell)
        else:
            plain.append(value.view(np.ndarray) if isinstance(value, Numbers) else value)
    if isinstance(options.get("out"), tuple):
        options["out"] = tuple(o.view(np.ndarray) if isinstance(o, Numbers) else o for o in options["out"])
    out = getattr(COMPARING.get(ufunc.__name__, ufunc), method)(*plain, **options)
    return out.view(Numbers) if isinstance(out, np.ndarray) and out.dtype == object else out


def _expr(value: Any) -> Any:
    if isinstance(value, Number):
        return value.expr
    if isinstance(value, (complex, np.complexfloating)):
        raise TypeError("a formula is a real number, and it does not compute with complex ones")
    return rationalise(value)


def _binary(operation: Callable) -> Callable:
    def method(self: Number, other: Any) -> Any:
        if isinstance(other, np.ndarray) and other.ndim:
            return NotImplemented  # NumPy does it entry by entry
        try:
            return Number(operation(self.expr, _expr(other)))
        except ValueError:
            return NotImplemented

    return method


for _name, _operation in {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "truediv": lambda a, b: a / b,
    "pow": lambda a, b: a**b,
}.items():
    setattr(Number, f"__{_name}__", _binary(_operation))
    setattr(Number, f"__r{_name}__", _binary(lambda a, b, f=_operation: f(b, a)))
for _name, _function in {
    **{n: getattr(sp, n) for n in ["sin", "cos", "tan", "sinh", "cosh", "tanh", "exp", "log", "sqrt"]},
    **{f"arc{n[1:]}": getattr(sp, n) for n in ["asin", "acos", "atan", "asinh", "acosh", "atanh"]},
}.items():
    setattr(Number, _name, lambda self, f=_function: Number(f(self.expr)))


def numpy_formulas(function: Callable, states: Sequence[sp.Symbol]) -> np.ndarray:
    """The formulas of a function (d,) -> shape that computes with NumPy, an object array of SymPy expressions.

    Raises:
        NoFormula: it does not run on symbols; the text is its own error's.
    """
    real = [sp.Dummy(s.name, real=True) for s in states]
    x = np.empty(len(real), dtype=object)
    x[:] = [Number(s) for s in real]
    names = dict(zip(real, states, strict=True))
    token = _refusals.set([])
    try:
        out = np.asarray(function(x.view(Numbers)), dtype=object).view(np.ndarray)
        exprs = np.empty(out.shape, dtype=object)
        exprs.reshape(-1)[:] = [_expr(v).xreplace(names) for v in out.ravel()]
        if _refusals.get():
            raise TypeError(_refusals.get()[0])
    except Exception as error:
        raise NoFormula(f"{type(error).__name__}: {error}") from None
    finally:
        _refusals.reset(token)
    return exprs


# Formulas against numbers ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Value:
    """What came of one point: the numbers, NaN where there are none, and what to make of those that are not finite."""

    numbers: np.ndarray | None  # None: it raised an error
    overflow: bool  # too large for a double
    invalid: bool  # outside the domain of a function
    error: str = ""

    def __str__(self) -> str:
        return f"raises {self.error}" if self.numbers is None else f"returns {_shown(self.numbers)}"


class Trials:
    """The values of a function of (t, x, u) at chosen points, zero inputs and integers among them, as plain Python.

    Args:
        function: t and arrays (nstates,) and (ninputs,) of float64 -> array.
    """

    def __init__(self, function: Callable, nstates: int, ninputs: int):
        self.function, self.points = function, _points(nstates, ninputs)

    @cached_property
    def _values(self) -> list[_Value]:
        return [_value(self.function, *point) for point in self.points]

    def difference(self, read: Callable) -> str:
        """How the function differs from `read`, a function of the same arguments; "" where it does not."""
        compared = 0
        for point, own in zip(self.points, self._values, strict=True):
            other = _value(read, *point)
            if own.overflow or other.overflow:
                continue
            compared += own.numbers is not None and other.numbers is not None
            if not self._same(own, other, point):
                t, x, u = point
                return (
                    f"{own} at t={t:g}, x={_shown(x)}, u={_shown(u)}, and {other} there as it was read: it does other "
                    "things with numbers than with symbols, or is not defined where its formula is"
                )
        return "" if compared else "gives no numbers where it was tried"

    def _same(self, own: _Value, other: _Value, point: tuple) -> bool:
        a, b = own.numbers, other.numbers
        if a is None or b is None:
            return (a is None or not np.isfinite(a).all()) and (b is None or not np.isfinite(b).all())
        if a.shape != b.shape:
            return False
        size = max(float(np.max(np.abs(v), initial=0)) for v in point)
        finite = np.isfinite(a)
        if (finite != np.isfinite(b)).any():
            return size >= FAR and not (own.invalid or other.invalid)
        a, b = a[finite], b[finite]
        slack = RELATIVE * np.maximum(np.abs(a), np.abs(b))
        slack += ROUNDING * (np.max(np.abs(a), initial=0) + max(size, 1) / 10)
        if (np.abs(a - b) <= slack).all():
            return True
        beside = [_value(self.function, *(np.asarray(v) * (1 + e) for v in point)).numbers for e in (-1e-15, 1e-15)]
        for near in beside:  # where rounding of the arguments matters more
            if near is not None and near.shape == finite.shape:
                slack = np.maximum(slack, 16 * np.nan_to_num(np.abs(near[finite] - a)))
        return bool(size >= 1 and (np.abs(a - b) <= np.minimum(slack, 1e-4 * np.max(np.abs(a)))).all())


def _points(nstates: int, ninputs: int) -> list[tuple[float, np.ndarray, np.ndarray]]:
    rng, none = np.random.default_rng(0), np.zeros(ninputs)
    whole = np.arange(1.0, nstates + 1)
    points = [(0.0, x, none) for x in (0 * whole, 0 * whole + 1, 0 * whole - 1, whole, -2 * whole)]
    points.append((0.0, whole, np.arange(1.0, ninputs + 1)))
    for scale in (0.2, 1.0, 4.0, 20.0, 1e3):
        t, x = float(rng.uniform(0, 10)), scale * rng.standard_normal(nstates)
        points += [(0.0, x, none), (t, -x, none)]
        if ninputs and scale != 0.2:
            u = scale * rng.standard_normal(ninputs)
            points += [(t, x, u), (t, -x, u), (0.0, x / scale, -u)]
    return points


def _value(function: Callable, t: Any, x: np.ndarray, u: np.ndarray) -> _Value:
    flags: list[str] = []
    try:
        with float64(), np.errstate(all="call", under="ignore", call=lambda kind, _: flags.append(kind)):
            out = np.asarray(function(float(t), x.copy(), u.copy()))
            if out.dtype.kind == "c":
                raise TypeError("complex numbers")
            numbers = out.astype(np.float64).reshape(-1)
    except OverflowError:
        return _Value(None, True, False)
    except Exception as error:
        return _Value(None, False, True, f"{type(error).__name__}: {error}")
    return _Value(numbers, "overflow" in flags, "invalid value" in flags)


def _shown(values: Any) -> str:
    return "[" + ", ".join(f"{v:.6g}" for v in np.ravel(values)[:6]) + (", ...]" if np.size(values) > 6 else "]")
