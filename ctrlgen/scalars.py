"""The kinds of number over which a traced function is evaluated: SymPy expressions and python-flint balls.

A constant of the function is the decimal that it prints as for the formula, and the exact double for the balls.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from functools import reduce
from typing import Any

import numpy as np
import sympy as sp

from ctrlgen.continuity import Condition, JumpError, conditions
from ctrlgen.formula import rationalise

MAX_OPERATIONS = 3000  # of scalars, beyond which a formula helps nobody
MAX_NODES = 20_000  # of the formula written out as a tree
WIDE = 2.0**-20  # balls with a larger radius go through a monotone function by their two ends
DENSE = 64  # scalar products from which flint's matrix product pays


class NoFormula(Exception):
    """The function has no formula, or none that could be found; the text says what stands in the way."""


class Domain:
    """A kind of number, with the scalar functions that the interpreter calls by the names of JAX's primitives.

    Elements define + - * and unary minus; truth values are True, False, or None where undecided.
    """

    def __init__(self):
        self._memory: dict = {}

    def remember(self, thing: Any, key: Hashable, find: Callable[[], Any]) -> Any:
        """`find()`, computed once for this thing (by identity) and key."""
        known = self._memory.get((id(thing), key))
        if known is None:
            known = self._memory[id(thing), key] = (thing, find())
        return known[1]

    def constant(self, thing: Any, value: Any) -> np.ndarray:
        """A constant of the jaxpr: an object array of elements; integers and truth values stay as they are."""

        def find() -> np.ndarray:
            try:
                array = np.asarray(value)
                return array if array.dtype.kind in "biu" else self.lift(array.astype(np.float64))
            except TypeError as error:
                raise NoFormula(f"a constant of the function is no number: {error}") from None

        return self.remember(thing, "constant", find)

    def lift(self, array: np.ndarray) -> np.ndarray:
        """Doubles as elements, an object array."""
        out = np.empty(array.shape, dtype=object)
        flat = out.reshape(-1)
        flat[:] = [self.number(v) for v in array.ravel().tolist()]
        return out

    def inputs(self, array: np.ndarray) -> np.ndarray:
        """The arguments, as elements."""
        return array

    def check(self, array: np.ndarray) -> None:
        """Called with what each operation computed; may raise NoFormula."""

    def number(self, value: float) -> Any:
        """An element from a double or an integer."""
        raise NotImplementedError

    def compare(self, name: str, a: Any, b: Any) -> bool | None:
        """Is a `name` b ("eq", "ne", "lt", "le", "gt", "ge")? None where undecided."""
        raise NotImplementedError

    def union(self, cases: Sequence[Any]) -> Any:
        """One element for one of the cases, not known which."""
        raise NotImplementedError

    def max(self, a: Any, b: Any) -> Any:
        """The larger one."""
        raise NotImplementedError

    def min(self, a: Any, b: Any) -> Any:
        """The smaller one."""
        raise NotImplementedError

    def integer_pow(self, a: Any, n: int) -> Any:
        """a to an integer power."""
        raise NotImplementedError

    def logaddexp(self, a: Any, b: Any) -> Any:
        """log(eᵃ + eᵇ), which JAX computes with a maximum and a branch."""
        raise NotImplementedError

    def is_finite(self, a: Any) -> bool | None:
        """Is it a finite number?"""
        raise NotImplementedError

    def sum(self, values: Sequence[Any]) -> Any:
        """The sum; zero of nothing."""
        return reduce(lambda a, b: a + b, values) if values else self.number(0)

    def mul(self, a: Any, b: Any) -> Any:
        """The product."""
        return a * b

    def dot(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """The matrix product (m, k) (k, n) -> (m, n)."""
        out = np.empty((a.shape[0], b.shape[1]), dtype=object)
        for i, j in np.ndindex(*out.shape):
            out[i, j] = self.sum([self.mul(s, t) for s, t in zip(a[i], b[:, j], strict=True)])
        return out


class SympyDomain(Domain):
    """SymPy expressions with exact numbers, of real symbols.

    Args:
        most: number of scalar operations beyond which `NoFormula` is raised.
    """

    def __init__(self, most: int = MAX_OPERATIONS):
        super().__init__()
        self.left, self.most, self._size = most, most, {}
        self._needed: dict[Condition, str] = {}

    def settle(self, array: np.ndarray) -> None:
        """Refuse formulas that are defined where the function is not: SymPy takes sqrt(x)⁴ for x².

        Raises:
            NoFormula: an argument of a root, a logarithm or the like may leave its domain, and the formulas no longer
                tell.
        """
        told: dict[Any, set[str]] = {}
        for part, sign in _told(array.flat) if self._needed else ():
            told.setdefault(_bare(part), set()).add(sign)
        for (part, sign), name in self._needed.items():
            if part.is_number or _known(part, sign) or told.get(_bare(part), set()) & {sign, "> 0"}:
                continue
            shown = part.xreplace({s: sp.Symbol(s.name) for s in part.free_symbols})
            raise NoFormula(f"the function has {name!r}, which needs {shown} {sign}, and its formula no longer tells")

    def _needs(self, name: str, part: Any, sign: str) -> None:
        self._needed.setdefault((part, sign), name)

    def number(self, value: float) -> Any:
        return rationalise(value)

    def check(self, array: np.ndarray) -> None:
        if array.dtype != object:
            return
        self._spend(array.size)
        for expr in array.flat:
            if isinstance(expr, sp.Basic) and self._nodes(expr) > MAX_NODES:
                raise NoFormula(f"the formula of the function is larger than {MAX_NODES} terms")

    def _spend(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise NoFormula(f"the function has more than {self.most} scalar operations")

    def _nodes(self, expr: sp.Basic) -> int:
        size = self._size.get(expr)
        if size is None:
            size = self._size[expr] = 1 + sum(self._nodes(a) for a in expr.args)
        return size

    def dot(self, a, b):
        self._spend(a.shape[0] * a.shape[1] * b.shape[1])
        return super().dot(a, b)

    def sum(self, values):
        return sp.Add(*values)

    def compare(self, name, a, b):
        if name in ("eq", "ne"):
            equal = True if a == b else (a - b).is_zero
            equal = False if equal is None and self.is_finite(a) is not self.is_finite(b) else equal
            return equal if equal is None or name == "eq" else not equal
        relation = {"lt": sp.Lt, "le": sp.Le, "gt": sp.Gt, "ge": sp.Ge}[name](a, b)
        return bool(relation) if relation in (sp.true, sp.false) else None

    def union(self, cases):
        if all(case == cases[0] for case in cases):
            return cases[0]
        raise NoFormula("the function branches on a comparison that depends on the state")

    def max(self, a, b):
        return sp.Max(a, b)

    def min(self, a, b):
        return sp.Min(a, b)

    def is_finite(self, a):
        return not a.has(sp.oo, -sp.oo, sp.nan, sp.zoo)

    def integer_pow(self, a, n):
        if n < 0:
            self._divides("integer_pow", a)
        return a**n

    def logaddexp(self, a, b):
        return sp.log(sp.exp(a) + sp.exp(b))

    def div(self, a, b):
        self._divides("div", b)
        return a / b

    def _divides(self, name: str, b: Any) -> None:
        """Each factor of a denominator, without its power."""
        for factor in sp.Mul.make_args(b):
            self._needs(name, factor.as_base_exp()[0], "≠ 0")

    def pow(self, a, b):
        if b.is_Integer:
            return self.integer_pow(a, int(b))
        self._needs("pow", a, "≥ 0" if b.is_positive else "> 0")
        return a**b

    def square(self, a):
        return a**2

    def sqrt(self, a):
        self._needs("sqrt", a, "≥ 0")
        return sp.sqrt(a)

    def rsqrt(self, a):
        self._needs("rsqrt", a, "> 0")
        return 1 / sp.sqrt(a)

    def log(self, a):
        self._needs("log", a, "> 0")
        return sp.log(a)

    def tan(self, a):
        self._needs("tan", sp.cos(a), "≠ 0")
        return sp.tan(a)

    def asin(self, a):
        self._needs("asin", 1 - a**2, "≥ 0")
        return sp.asin(a)

    def acos(self, a):
        self._needs("acos", 1 - a**2, "≥ 0")
        return sp.acos(a)

    def acosh(self, a):
        self._needs("acosh", a - 1, "≥ 0")
        return sp.acosh(a)

    def atanh(self, a):
        self._needs("atanh", 1 - a**2, "> 0")
        return sp.atanh(a)

    def exp2(self, a):
        return 2**a

    def expm1(self, a):
        return sp.exp(a) - 1

    def log1p(self, a):
        return self.log(1 + a)

    def logistic(self, a):
        return 1 / (1 + sp.exp(-a))

    def erfc(self, a):
        return 1 - sp.erf(a)


for _name in [
    "exp",
    "sin",
    "cos",
    "atan",
    "sinh",
    "cosh",
    "tanh",
    "asinh",
    "erf",
    "sign",
    "atan2",
]:
    setattr(SympyDomain, _name, staticmethod(getattr(sp, _name)))
SympyDomain.abs = staticmethod(sp.Abs)  # pyright: ignore[reportAttributeAccessIssue]


def _told(exprs: Iterable[Any]) -> Iterator[Condition]:
    """What formulas tell of their domains, also beside a function that may jump."""
    for expr in exprs:
        try:
            yield from conditions(expr, 0)
        except JumpError:
            yield from _told(expr.args)


def _bare(part: Any) -> Any:
    """The expression without a positive factor."""
    return part.primitive()[1]


def _known(part: Any, sign: str) -> bool:
    """Does it hold for all real states, as SymPy knows? Squares, exponentials, and sums of these and of numbers."""
    return bool({"≥ 0": part.is_nonnegative, "> 0": part.is_positive, "≠ 0": part.is_nonzero}[sign])


class ArbDomain(Domain):
    """python-flint balls (`arb`), outward rounded at the precision of `flint.ctx`: an enclosure of every value.

    What cannot be bounded (a division by a ball with zero, a logarithm of a ball with negative numbers) is NaN, which
    no comparison decides. An element stands for one number, so that one object met twice is one number twice.
    """

    def __init__(self):
        import flint

        super().__init__()
        self.arb, self.arb_mat = flint.arb, flint.arb_mat
        self.zero, self.one, self.half = flint.arb(0), flint.arb(1), flint.arb(0.5)

    def number(self, value: float) -> Any:
        if value == float("inf"):
            return self.arb.pos_inf()
        return self.arb.neg_inf() if value == -float("inf") else self.arb(value)

    def inputs(self, array: np.ndarray) -> np.ndarray:
        out = np.empty(array.shape, dtype=object)
        flat = out.reshape(-1)
        flat[:] = [self.arb(a) for a in array.ravel()]  # new objects: two inputs are never one number
        return out

    def compare(self, name, a, b):
        if a is b:
            return name in ("eq", "le", "ge") if a.is_finite() else None
        if name in ("eq", "ne"):
            equal = True if a == b else False if a != b else None
            return equal if equal is None or name == "eq" else not equal
        if name in ("gt", "le"):
            less_equal = True if a <= b else False if a > b else None
            return less_equal if less_equal is None or name == "le" else not less_equal
        less = True if a < b else False if a >= b else None
        return less if less is None or name == "lt" else not less

    def is_finite(self, a):
        return True if a.is_finite() else None

    def union(self, cases):
        return reduce(lambda a, b: a.union(b), cases)

    def max(self, a, b):
        if a >= b:
            return a
        return b if b >= a else self._larger(a.lower(), b.lower()).union(self._larger(a.upper(), b.upper()))

    def min(self, a, b):
        if a <= b:
            return a
        return b if b <= a else -self._larger(-a.lower(), -b.lower()).union(self._larger(-a.upper(), -b.upper()))

    def _larger(self, a, b):
        """Of two exact numbers; NaN of a NaN."""
        return a if a >= b else b if b >= a else a + b

    def abs(self, a):
        if a >= 0:
            return a
        return -a if a <= 0 else self.zero.union(a.abs_upper()) if a.is_finite() else abs(a)

    def sign(self, a):
        if a > 0:
            return self.one
        if a < 0:
            return -self.one
        if not a.is_finite():
            return abs(a) if a.is_nan() else (-self.one).union(self.one)
        return self.zero if a.is_zero() else (-self.one).union(self.one)

    def mul(self, a, b):
        return self.square(a) if a is b else a * b

    def square(self, a):
        return self.integer_pow(a, 2)

    def integer_pow(self, a, n):
        if n < 0:
            return 1 / self.integer_pow(a, -n)
        power = lambda t: _repeated(t, n, self.one)  # noqa: E731
        return self._even(power, a) if n % 2 == 0 else self._by_ends(power, a)

    def div(self, a, b):
        return a / b

    def pow(self, a, b):
        if b.is_exact() and b.is_integer():
            n = int(b.unique_fmpz())
            if abs(n) <= 1024:
                return self.integer_pow(a, n)
        return self._by_ends(lambda t: t**b, a) if b.is_exact() and a >= 0 else a**b

    def _by_ends(self, function, a):
        """A monotone function of a ball: by its two ends, unless the ball is thin."""
        if not a.is_finite() or float(a.rad()) < WIDE:
            return function(a)
        return function(a.lower()).union(function(a.upper()))

    def _even(self, function, a):
        """An even function that increases on the positive axis."""
        if a > 0 or a < 0 or not a.is_finite():
            return self._by_ends(function, self.abs(a))
        return function(self.zero).union(function(a.abs_upper()))  # the end is 0 itself: balls round it to below 0

    def _unit(self, a):
        return 1 / (1 + (-a).exp())

    def logistic(self, a):
        return self._by_ends(self._unit, a)

    def logaddexp(self, a, b):
        low, high = ((s.exp() + t.exp()).log() for s, t in ((a.lower(), b.lower()), (a.upper(), b.upper())))
        return low.union(high)

    def exp2(self, a):
        return self._by_ends(lambda t: self.arb(2) ** t, a)

    def erfc(self, a):
        return self._by_ends(lambda t: t.erfc(), a)

    def rsqrt(self, a):
        return self._by_ends(lambda t: t.rsqrt(), a)

    def cosh(self, a):
        return self._even(lambda t: t.cosh(), a)

    def sin(self, a):
        return a.sin()

    def cos(self, a):
        return a.cos()

    def tan(self, a):
        return a.tan()

    def atan2(self, y, x):
        return self.arb.atan2(y, x)

    def dot(self, a, b):
        if a.shape[0] * a.shape[1] * b.shape[1] < DENSE:
            return super().dot(a, b)
        product = self._matrix(a) * self._matrix(b)
        out = np.empty(a.shape[0] * b.shape[1], dtype=object)
        out[:] = product.entries()
        return out.reshape(a.shape[0], b.shape[1])

    def _matrix(self, a: np.ndarray) -> Any:
        """The matrix for flint; that of a constant is kept."""
        whole = a if a.base is None else a.base
        make = lambda: self.arb_mat(len(a), a.shape[1], a.ravel().tolist())  # noqa: E731
        if (id(whole), "lifted") not in self._memory:
            return make()
        place = a.__array_interface__["data"][0] - whole.__array_interface__["data"][0]
        return self.remember(whole, (a.shape, a.strides, place), make)

    def lift(self, array: np.ndarray) -> np.ndarray:
        out = super().lift(array)
        return self.remember(out, "lifted", lambda: out) if out.size >= DENSE else out


def _monotone(name: str) -> Callable:
    return lambda self, a: self._by_ends(lambda t: getattr(t, name)(), a)


for _name in (
    "sqrt", "exp", "expm1", "log", "log1p", "asin", "acos", "atan", "sinh", "tanh", "asinh", "acosh", "atanh", "erf",
):  # fmt: skip
    setattr(ArbDomain, _name, _monotone(_name))


def _repeated(a: Any, n: int, one: Any) -> Any:
    """aⁿ by squaring: arb's own power of a ball about zero is NaN."""
    out = one
    while n:
        out, a, n = (out * a if n & 1 else out), (a * a if n > 1 else a), n >> 1
    return out
