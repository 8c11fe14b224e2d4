"""Formulas of functions that are written with NumPy: they are run on symbols."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import sympy as sp

from ctrlgen.formula import rationalise
from ctrlgen.scalars import NoFormula


class Number:
    """A formula that computes like a number in NumPy object arrays; it refuses to be compared or made a float."""

    __slots__ = ("expr",)
    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __init__(self, expr: Any):
        self.expr = expr

    def _refuse(self, *_: Any) -> Any:
        raise TypeError("a formula is computed, and it cannot be compared or made a float")

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


def _expr(value: Any) -> Any:
    return value.expr if isinstance(value, Number) else rationalise(value)


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
    try:
        out = np.asarray(function(x), dtype=object)
        exprs = np.empty(out.shape, dtype=object)
        exprs.reshape(-1)[:] = [_expr(v).xreplace(names) for v in out.ravel()]
    except Exception as error:
        raise NoFormula(f"{type(error).__name__}: {error}") from None
    return exprs
