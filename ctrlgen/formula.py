"""Formulas: how they are read, with exact numbers only, and how they become JAX functions.

A float of the user's is the decimal that it prints as (0.1 is 1/10); it is converted once, here.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction
from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import sympy as sp
from sympy.core.function import AppliedUndef
from sympy.printing.numpy import JaxPrinter

FUNCTIONS = {
    name: getattr(sp, name)
    for name in (
        "sin", "cos", "tan", "asin", "acos", "atan", "atan2", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh",
        "exp", "log", "sqrt", "Abs", "sign", "Min", "Max", "erf",
    )
} | {"abs": sp.Abs, "min": sp.Min, "max": sp.Max, "ln": sp.log}  # fmt: skip
CONSTANTS = {"pi": sp.pi, "E": sp.E}
MAX_DEPTH = 200
MAX_POWER = 1000


def symbols(names: Sequence[str | sp.Symbol]) -> tuple[sp.Symbol, ...]:
    """The states as real SymPy symbols; symbols that are passed in are kept as they are.

    Raises:
        ValueError: no states, or two of one name.
    """
    if isinstance(names, str):
        names = names.replace(",", " ").split()
    states = tuple(s if isinstance(s, sp.Symbol) else sp.Symbol(str(s), real=True) for s in names)
    if not states:
        raise ValueError("states must name at least one variable; got none. Pass for example ['x', 'y'].")
    if len({s.name for s in states}) < len(states):
        raise ValueError(f"states must have distinct names; got {[s.name for s in states]}.")
    return states


def parse(text: str, states: Sequence[sp.Symbol], name: str = "expr") -> sp.Expr:
    """Read a formula without executing any of it (no eval): arithmetic, the functions in FUNCTIONS, pi and E.

    A float is the decimal that it prints as: 0.1*3 is 3/10.

    Raises:
        ValueError: the text is not such a formula, or uses a name that is not a state.
    """
    names = {s.name: s for s in states}
    try:
        tree = ast.parse(text.replace("^", "**").strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ValueError(f"{name} must be a formula; {text[:80]!r} does not parse: {error}.") from None

    def build(node: ast.AST, depth: int = 0) -> sp.Expr:
        if depth > MAX_DEPTH:
            raise ValueError(f"{name} is nested more than {MAX_DEPTH} deep.")
        match node:
            case ast.Constant(value=bool() | None | str() | bytes() | complex()):
                pass
            case ast.Constant(value=int(number)):
                return sp.Integer(number)
            case ast.Constant(value=float(number)) if np.isfinite(number):
                return rationalise(number)
            case ast.Name(id=word) if word in names:
                return names[word]
            case ast.Name(id=word) if word in CONSTANTS:
                return CONSTANTS[word]
            case ast.Name(id=word):
                raise ValueError(f"{name} uses {word!r}, which is not a state; the states are {sorted(names)}.")
            case ast.UnaryOp(op=ast.USub(), operand=a):
                return -build(a, depth + 1)
            case ast.UnaryOp(op=ast.UAdd(), operand=a):
                return build(a, depth + 1)
            case ast.BinOp(left=a, op=op, right=b):
                left, right = build(a, depth + 1), build(b, depth + 1)
                match op:
                    case ast.Add():
                        return left + right
                    case ast.Sub():
                        return left - right
                    case ast.Mult():
                        return left * right
                    case ast.Div():
                        return left / right
                    case ast.Pow():
                        if right.is_number and abs(right) > MAX_POWER:
                            raise ValueError(f"{name} has an exponent beyond {MAX_POWER}: {right}.")
                        return left**right
            case ast.Call(func=ast.Name(id=word), args=arguments, keywords=[]) if word in FUNCTIONS:
                return FUNCTIONS[word](*(build(a, depth + 1) for a in arguments))
            case ast.Call(func=ast.Name(id=word)):
                raise ValueError(f"{name} calls {word!r}; known functions are {sorted(FUNCTIONS)}.")
        raise ValueError(
            f"{name} may hold numbers, states, + - * / ** and functions; it has {ast.unparse(node)[:60]!r}."
        )

    try:
        return build(tree)
    except TypeError as error:
        raise ValueError(f"{name} must be a formula; {text[:80]!r} is not: {error}.") from None


def rationalise(expr: Any) -> Any:
    """The same formula with every float read as the decimal that it prints as: 0.1 is 1/10, x**2.0 is x**2.

    Args:
        expr: a SymPy expression or matrix, or a number (of Python, NumPy, JAX, fractions or decimal). A SymPy Float
            of more than 53 bits is taken exactly. Constants such as pi and sqrt(2) stay.

    Raises:
        ValueError: expr is none of these.
    """
    if isinstance(expr, (sp.Rational, sp.Symbol)):
        return expr
    if isinstance(expr, sp.MatrixBase):
        return expr.applyfunc(rationalise)
    if getattr(expr, "ndim", None) == 0 and not isinstance(expr, sp.Basic):
        expr = np.asarray(expr)[()]
    if isinstance(expr, (float, np.floating)):
        if not np.isfinite(expr):
            return sp.sympify(float(expr))
        return sp.Rational(Fraction(repr(float(expr)) if isinstance(expr, float) else str(expr)))
    if isinstance(expr, (int, Integral, Fraction, Decimal)) and not isinstance(expr, (bool, np.bool_)):
        return sp.Rational(Fraction(expr)) if isinstance(expr, (Fraction, Decimal)) else sp.Integer(int(expr))
    try:
        exact = sp.sympify(expr, strict=True)
    except (sp.SympifyError, TypeError, ValueError):
        exact = None
    if not isinstance(exact, sp.Expr):
        raise ValueError(f"expr must be a SymPy expression or a number; got {type(expr).__name__}.")
    return exact.xreplace({number: _decimal(number) for number in exact.atoms(sp.Float)})


def _decimal(number: sp.Float) -> Any:
    bits = number._prec
    if bits < 53:
        return sp.Rational(Fraction(str(number)))
    if bits == 53 and sp.Float(double := float(number)) == number:
        return sp.Rational(Fraction(repr(double)))
    return sp.Rational(number)


def real_states(states: Sequence[str | sp.Symbol]) -> tuple[sp.Symbol, ...]:
    """The states as real variables: a plain symbol becomes the real one of its name.

    SymPy simplifies by what a symbol assumes when a formula is written: √(x²) is x for a positive x. A formula that was
    written so is not one of all real x, so symbols that assume more than real are refused.

    Raises:
        ValueError: no states, two of one name, or one that is not real or assumes more.
    """

    def real(symbol: sp.Symbol) -> sp.Symbol:
        if symbol.is_real is False or symbol.is_commutative is False:
            raise ValueError(f"states must be real variables; {symbol} is not. Pass symbols('{symbol}', real=True).")
        if symbol.assumptions0 not in (sp.Symbol("x").assumptions0, sp.Symbol("x", real=True).assumptions0):
            plain = sp.Symbol("x", real=True).assumptions0
            assumed = sorted(k for k, holds in symbol.assumptions0.items() if holds and k not in plain)
            raise ValueError(
                f"states must be real variables and assume no more; {symbol} is declared {', '.join(assumed)}. Pass "
                f"symbols('{symbol}', real=True), and say the rest by a domain."
            )
        return sp.Symbol(symbol.name, real=True)

    return tuple(real(s) for s in symbols(states))


def read_formula(expr: Any, states: tuple[sp.Symbol, ...], name: str = "expr", real: bool = True) -> Any:
    """One scalar formula of the states, with exact numbers, from a string, a SymPy expression or a number.

    Raises:
        ValueError: it is none of these, has other symbols, or (when `real` asks for that check) is not real.
    """
    if isinstance(expr, str):
        return check_formula(parse(expr, states, name), states, name, real)
    try:
        exact = rationalise(expr)
    except ValueError:
        raise ValueError(
            f"{name} must be a SymPy expression, a number or a string; got {type(expr).__name__}."
        ) from None
    if isinstance(exact, sp.MatrixBase):
        raise ValueError(f"{name} must be a scalar expression; got a matrix of shape {exact.shape}.")
    return check_formula(exact, states, name, real)


def check_formula(expr: Any, states: tuple[sp.Symbol, ...], name: str, real: bool = True) -> Any:
    """The exact formula in the symbols of `states`, which are matched by name; `real` asks SymPy whether it is real."""
    expr = rationalise(expr)
    if expr.is_Matrix:
        raise ValueError(f"{name} must be a scalar expression; got {type(expr).__name__}.")
    by_name = {s.name: s for s in states}
    others = [s for s in expr.free_symbols if s not in states and str(s) in by_name]
    if others:
        expr = expr.xreplace({s: by_name[str(s)] for s in others})
    names = [s.name for s in states]
    extra = sorted(str(s) for s in expr.free_symbols if s not in states)
    if extra:
        raise ValueError(
            f"{name} has symbols that are not states: {extra}; the states are {names}. "
            "Substitute values for parameters, or add them to states."
        )
    if undefined := sorted(str(a) for a in expr.atoms(AppliedUndef)):
        raise ValueError(
            f"{name} has functions without a definition: {undefined}. Write the formula of the states {names}."
        )
    if expr.has(sp.I, sp.zoo, sp.nan, sp.oo, -sp.oo) or (real and _on_reals(expr, states).is_real is False):
        raise ValueError(f"{name} must be real and finite; got {str(expr)[:200]}.")
    return expr


def entries_of(value: Any) -> Any:
    """A SymPy or NumPy vector or matrix, or nested sequences, as lists; a (d, 1) or (1, d) matrix as one list."""
    if isinstance(value, sp.MatrixBase) or (isinstance(value, np.ndarray) and value.ndim == 2):
        rows = [[value[i, j] for j in range(value.shape[1])] for i in range(value.shape[0])]
        return [e for row in rows for e in row] if 1 in value.shape else rows
    if isinstance(value, (list, tuple, sp.Tuple)) or (isinstance(value, np.ndarray) and value.ndim == 1):
        rows = (list, tuple, sp.Tuple, np.ndarray)
        return [list(e) if isinstance(e, rows) and getattr(e, "ndim", 1) else e for e in value]
    return [value] if isinstance(value, (str, sp.Expr, int, float, Fraction, np.number)) else value


def _on_reals(expr: Any, states: tuple[sp.Symbol, ...]) -> Any:
    return expr.xreplace({s: sp.Dummy(s.name, real=True) for s in states if not s.is_real})


def derivative(expr: Any, state: sp.Symbol) -> Any:
    """The partial derivative, with every symbol real: SymPy's rules for |x| need that.

    Raises:
        ValueError: there is none as a function (of sign(x), say).
    """
    others = [s for s in expr.free_symbols if not s.is_real]
    if others and expr.has(sp.Abs, sp.sign, sp.re, sp.im, sp.conjugate, sp.arg):
        real = {s: sp.Dummy(s.name, real=True) for s in others}
        out = sp.diff(expr.xreplace(real), real.get(state, state))
        out = out.xreplace({dummy: s for s, dummy in real.items()})
    else:
        out = sp.diff(expr, state)
    if out.has(sp.DiracDelta, sp.Derivative):
        raise ValueError(f"the function must be differentiable; {str(expr)[:80]} is not. Use smooth functions.")
    return out


# SymPy to JAX ---------------------------------------------------------------------------------------------------------


class _Jax(JaxPrinter):
    """SymPy's printer, with exact numbers as full doubles: a large integer would overflow JAX's integers."""

    def _print_Integer(self, expr):
        return str(expr.p) if abs(expr.p) < 2**31 else _double(expr)

    def _print_Rational(self, expr):
        return _double(expr)

    def _print_Pow(self, expr, rational=False):
        if expr.exp.is_Integer and expr.exp.is_negative:
            return f"{self.parenthesize(expr.base, 70)}**({expr.exp.p})"
        return super()._print_Pow(expr, rational)


def _double(number: Any) -> str:
    try:
        return repr(number.p / number.q)
    except OverflowError:
        return "inf" if number.p > 0 else "-inf"


def jax_function(states: Sequence[sp.Symbol], exprs: Sequence[Any]) -> Callable:
    """A function of d arrays that returns the list of the formulas' values, in JAX."""
    own = {"erf": jax.scipy.special.erf, "Heaviside": lambda x, half=0.5: jnp.heaviside(x, half), "inf": jnp.inf}
    settings = {
        "fully_qualified_modules": False,
        "inline": True,
        "allow_unknown_functions": True,
        "user_functions": {name: name for name in own},
    }
    return sp.lambdify(list(states), list(exprs), modules=[own, "jax"], printer=_Jax(settings), cse=True, dummify=True)
