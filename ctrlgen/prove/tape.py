"""Formulas as straight-line float64 code, with gradients by the reverse mode: what a search evaluates many times.

One tape serves single points (Python floats, a few microseconds) and batches (NumPy arrays). It is written in a
millisecond, without symbolic differentiation. Nothing that is decided rests on it: witnesses are checked exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import sympy as sp

# function of one argument: (its code, the code of its derivative from the argument a and the value v)
_UNARY = {
    sp.sin: ("sin({a})", "cos({a})"),
    sp.cos: ("cos({a})", "-sin({a})"),
    sp.tan: ("tan({a})", "(1 + {v}*{v})"),
    sp.asin: ("asin({a})", "1/sqrt(1 - {a}*{a})"),
    sp.acos: ("acos({a})", "-1/sqrt(1 - {a}*{a})"),
    sp.atan: ("atan({a})", "1/(1 + {a}*{a})"),
    sp.sinh: ("sinh({a})", "cosh({a})"),
    sp.cosh: ("cosh({a})", "sinh({a})"),
    sp.tanh: ("tanh({a})", "(1 - {v}*{v})"),
    sp.asinh: ("asinh({a})", "1/sqrt(1 + {a}*{a})"),
    sp.acosh: ("acosh({a})", "1/sqrt({a}*{a} - 1)"),
    sp.atanh: ("atanh({a})", "1/(1 - {a}*{a})"),
    sp.exp: ("exp({a})", "{v}"),
    sp.log: ("log({a})", "1/{a}"),
    sp.erf: ("erf({a})", "1.1283791670955126*exp(-{a}*{a})"),
    sp.sec: ("1/cos({a})", "{v}*tan({a})"),
    sp.csc: ("1/sin({a})", "-{v}/tan({a})"),
    sp.cot: ("1/tan({a})", "(-1 - {v}*{v})"),
    sp.Abs: ("abs({a})", "sign({a})"),
    sp.sign: ("sign({a})", "0.0"),
}
_COMMON = (
    "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "exp", "log", "erf",
    "sqrt",
)  # fmt: skip
_MATH = {name: getattr(math, name) for name in _COMMON}
_SCALAR = _MATH | {
    "abs": abs, "atan2": math.atan2, "least": min, "sign": lambda a: (a > 0) - (a < 0), "below": lambda a, b: a <= b,
}  # fmt: skip
_NAMES = {name: f"arc{name[1:]}" for name in _COMMON if name[0] == "a"}


def _erf(a: Any) -> Any:
    from scipy.special import erf

    return erf(a)


_ARRAY = {n: getattr(np, _NAMES.get(n, n)) for n in _MATH if n != "erf"} | {
    "erf": _erf, "abs": np.abs, "atan2": np.arctan2, "least": np.minimum, "sign": np.sign, "below": np.less_equal,
}  # fmt: skip


class Tape:
    """Several formulas of one list of states.

    Args:
        exprs: m formulas.
        states: d symbols.

    Raises:
        NotImplementedError: a formula holds a function that has no code here.
    """

    def __init__(self, exprs: Sequence[sp.Expr], states: Sequence[sp.Symbol]):
        self.size, self.dim = len(exprs), len(states)
        self._lines: list[str] = []
        self._back: list[list[str]] = []
        self._memo: dict[Any, str] = {s: f"x[{i}]" for i, s in enumerate(states)}
        outputs = [self._emit(sp.sympify(e)) for e in exprs]
        temporaries = [f"t{k}" for k in range(len(self._lines))]
        forward = "".join(f"    {line}\n" for line in self._lines)
        source = f"def values(x):\n{forward}    return [{', '.join(outputs)}]\n"
        adjoint = "".join(f"    a{t} = 0.0\n" for t in temporaries) + f"    g = [0.0] * {self.dim}\n"
        adjoint += "".join(f"    {self._adjoint(o)} += w[{i}]\n" for i, o in enumerate(outputs) if self._adjoint(o))
        adjoint += "".join(f"    {line}\n" for lines in reversed(self._back) for line in lines)
        source += f"def pullback(x, w):\n{forward}{adjoint}    return g\n"
        code = compile(source, "<tape>", "exec")
        self._scalar = self._load(code, _SCALAR)
        self._array = self._load(code, _ARRAY)

    @staticmethod
    def _load(code: Any, functions: dict[str, Callable]) -> tuple[Callable, Callable]:
        names = dict(functions)
        exec(code, names)  # the code was written above, from a formula; no text of the user is in it
        return names["values"], names["pullback"]

    @staticmethod
    def _adjoint(name: str) -> str:
        """Where the derivative with respect to a value is gathered; nothing for a number."""
        return "a" + name if name[0] == "t" else "g" + name[1:] if name[0] == "x" else ""

    def _let(self, code: str, *sources: tuple[str, str]) -> str:
        """One more line; sources are (value, derivative of the line with respect to it)."""
        name = f"t{len(self._lines)}"
        self._lines.append(f"{name} = {code}")
        self._back.append([f"{self._adjoint(s)} += a{name}*{by}" for s, by in sources if self._adjoint(s)])
        return name

    def _emit(self, e: Any) -> str:
        if e not in self._memo:
            self._memo[e] = f"({float(e)!r})" if e.is_number else self._line(e)
        return self._memo[e]

    def _line(self, e: Any) -> str:
        if e.is_Add:
            parts = [(a.as_coeff_Mul() if a.is_Mul else (sp.S.One, a)) for a in e.args]
            terms = [(float(c), self._emit(rest)) for c, rest in parts]
            return self._let(
                " + ".join(f"({c!r})*{t}" if c != 1 else t for c, t in terms), *((t, f"({c!r})") for c, t in terms)
            )
        if e.is_Mul:
            out = self._emit(e.args[0])
            for a in e.args[1:]:
                other = self._emit(a)
                out = self._let(f"{out}*{other}", (out, other), (other, out))
            return out
        if e.is_Pow:
            return self._power(e)
        if type(e) in _UNARY:
            code, slope = _UNARY[type(e)]
            a = self._emit(e.args[0])
            value = f"t{len(self._lines)}"
            return self._let(code.format(a=a), (a, slope.format(a=a, v=value)))
        if isinstance(e, (sp.Min, sp.Max)):
            out = self._emit(e.args[0])
            flip = "" if isinstance(e, sp.Min) else "-"
            for a in e.args[1:]:
                other = self._emit(a)
                first = f"below({flip}{out}, {flip}{other})"
                code = f"{flip}least({flip}{out}, {flip}{other})"
                out = self._let(code, (out, f"(1.0*{first})"), (other, f"(1.0 - {first})"))
            return out
        if isinstance(e, sp.atan2):
            a, b = (self._emit(v) for v in e.args)
            square = self._let(f"{a}*{a} + {b}*{b}")
            return self._let(f"atan2({a}, {b})", (a, f"{b}/{square}"), (b, f"(-{a})/{square}"))
        raise NotImplementedError(f"the search has no code for {e.func.__name__}")

    def _power(self, e: Any) -> str:
        a, n = self._emit(e.base), e.exp
        if n.is_Integer and 2 <= n <= 64:  # by squares, each a line of its own
            half = self._emit(sp.Pow(e.base, n // 2)) if n > 3 else a
            square = self._let(f"{half}*{half}", (half, f"2.0*{half}"))
            return square if n % 2 == 0 else self._let(f"{square}*{a}", (square, a), (a, square))
        if n == -1:
            value = f"t{len(self._lines)}"
            return self._let(f"1.0/{a}", (a, f"(-{value}*{value})"))
        if n.is_Integer and n < -1:
            below = self._emit(sp.Pow(e.base, -n))
            value = f"t{len(self._lines)}"
            return self._let(f"1.0/{below}", (below, f"(-{value}*{value})"))
        if n == sp.S.Half:
            value = f"t{len(self._lines)}"
            return self._let(f"sqrt({a})", (a, f"0.5/{value}"))
        if n.is_number:
            power = float(n)
            return self._let(f"{a}**({power!r})", (a, f"({power!r})*{a}**({power - 1!r})"))
        return self._emit(sp.exp(n * sp.log(e.base)))

    def at(self, x: Sequence[float]) -> list[float]:
        """The m values at one point, a list of d Python floats; NaN for all where one is undefined."""
        try:
            out = self._scalar[0](x)
        except (ArithmeticError, ValueError):
            return [math.nan] * self.size
        return [v if not isinstance(v, complex) else math.nan for v in out]

    def slope(self, x: Sequence[float], weights: Sequence[float]) -> list[float]:
        """The gradient of Σ weights·formula at one point; zeros where it is undefined."""
        try:
            out = self._scalar[1](x, weights)
        except (ArithmeticError, ValueError):
            return [0.0] * self.dim
        return [v if not isinstance(v, complex) else 0.0 for v in out]

    def values(self, x: np.ndarray) -> np.ndarray:
        """(d, n) -> (m, n)."""
        with np.errstate(all="ignore"):
            rows = self._array[0](x)
        return np.stack([np.broadcast_to(r, x.shape[1:]) for r in rows]) if rows else np.empty((0, *x.shape[1:]))

    def pullback(self, x: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The gradients of Σ weights·formula, x (d, n) and weights (m, n) -> (d, n)."""
        with np.errstate(all="ignore"):
            rows = self._array[1](x, weights)
        return np.stack([np.broadcast_to(r, x.shape[1:]) for r in rows])
