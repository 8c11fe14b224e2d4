"""A function of the state with one definition and two views: SymPy and JAX.

Inside ctrlgen arrays are dimension-first: a state is (d,), a batch is (d, n), so that the particles
are the trailing axis and XLA can vectorise over them. The public boundary is (d,) and (n, d).
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import jax.numpy as jnp
import sympy as sp

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


def parse(text: str, states: Sequence[sp.Symbol]) -> sp.Expr:
    """Read a formula without executing any of it (no eval): arithmetic, the functions in FUNCTIONS, pi and E.

    Raises:
        ValueError: the text is not such a formula, or uses a name that is not a state.
    """
    names = {s.name: s for s in states}
    try:
        tree = ast.parse(text.replace("^", "**").strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ValueError(f"expr must be a formula; {text[:80]!r} does not parse: {error}.") from None

    def build(node: ast.AST, depth: int = 0) -> sp.Expr:
        if depth > MAX_DEPTH:
            raise ValueError(f"expr is nested more than {MAX_DEPTH} deep.")
        match node:
            case ast.Constant(value=bool() | None | str() | bytes() | complex()):
                pass
            case ast.Constant(value=int(number)):
                return sp.Integer(number)
            case ast.Constant(value=float(number)):
                return sp.Float(number)
            case ast.Name(id=name) if name in names:
                return names[name]
            case ast.Name(id=name) if name in CONSTANTS:
                return CONSTANTS[name]
            case ast.Name(id=name):
                raise ValueError(f"expr uses {name!r}, which is not a state; the states are {sorted(names)}.")
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
                            raise ValueError(f"expr has an exponent beyond {MAX_POWER}: {right}.")
                        return left**right
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
                return FUNCTIONS[name](*(build(a, depth + 1) for a in arguments))
            case ast.Call(func=ast.Name(id=name)):
                raise ValueError(f"expr calls {name!r}; known functions are {sorted(FUNCTIONS)}.")
        raise ValueError(f"expr may hold numbers, states, + - * / ** and functions; it has {ast.unparse(node)[:60]!r}.")

    return build(tree)


class Field:
    """A scalar formula of the state: its SymPy expression, and the same thing as a JAX function.

    Args:
        expr: a SymPy expression or a string.
        states: names or symbols, in the order of the coordinates.

    Raises:
        ValueError: expr has symbols that are not states, or is not real.
    """

    def __init__(self, expr: Any, states: Sequence[str | sp.Symbol]):
        self.states = symbols(states)
        if isinstance(expr, str):
            self.expr = parse(expr, self.states)
        else:
            try:
                self.expr = sp.sympify(expr, strict=True)
            except sp.SympifyError:
                raise ValueError(
                    f"expr must be a SymPy expression, a number or a string; got {type(expr).__name__}."
                ) from None
            if not isinstance(self.expr, sp.Expr) or self.expr.is_Matrix:
                raise ValueError(f"expr must be a scalar expression; got {type(self.expr).__name__}.")
        by_name = {s.name: s for s in self.states}
        others = [s for s in self.expr.free_symbols if s not in self.states]
        self.expr = self.expr.subs({s: by_name[str(s)] for s in others if str(s) in by_name})
        extra = sorted(str(s) for s in self.expr.free_symbols if s not in self.states)
        if extra:
            raise ValueError(
                f"expr has symbols that are not states: {extra}; the states are "
                f"{[s.name for s in self.states]}. Substitute values for parameters, or add them to states."
            )
        if self.expr.has(sp.I, sp.zoo, sp.nan, sp.oo) or self.expr.is_real is False:
            raise ValueError(f"expr must be real and finite; got {self.expr}.")

    @property
    def dim(self) -> int:
        return len(self.states)

    @cached_property
    def _function(self):
        return sp.lambdify(self.states, self.expr, modules="jax", cse=True)

    def columns(self, x: Any) -> Any:
        """The JAX view: (d, ...) -> (...)."""
        value = self._function(*(x[i] for i in range(self.dim)))
        return jnp.broadcast_to(jnp.asarray(value, x.dtype), x.shape[1:])

    def gradient(self) -> tuple[sp.Expr, ...]:
        """The SymPy gradient, one expression a state."""
        return tuple(sp.diff(self.expr, s) for s in self.states)

    def laplacian(self) -> sp.Expr:
        """The SymPy Laplacian: the sum of the unmixed second derivatives."""
        return sp.Add(*(sp.diff(self.expr, s, 2) for s in self.states))
