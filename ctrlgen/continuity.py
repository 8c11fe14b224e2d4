"""What makes a formula continuous, or smoother, by its form: conditions on denominators, roots and logarithms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sympy as sp

ENTIRE = (sp.exp, sp.sin, sp.cos, sp.sinh, sp.cosh, sp.tanh, sp.atan, sp.asinh, sp.erf)
KINKED = (sp.Abs, sp.Min, sp.Max)
Condition = tuple[Any, str]  # an expression, and what it must be: "> 0", "≥ 0" or "≠ 0"


class JumpError(ValueError):
    """A function that may jump."""


def conditions(expr: Any, order: int, kinks: bool = True) -> list[Condition]:
    """What makes a formula continuous (order 0), locally Lipschitz (1) or twice differentiable (2), by its form.

    Args:
        expr: the formula.
        order: see above.
        kinks: whether |x|, min and max may occur where order is 1; without them the function is C¹.

    Raises:
        JumpError: it holds a function that may jump, or one with a kink where two derivatives are needed.
    """
    out: list[Condition] = []
    parts: Any = sp.preorder_traversal(expr)
    for part in parts:
        if isinstance(part, (sp.Symbol, sp.Number, sp.NumberSymbol)) or part.is_Add or part.is_Mul:
            continue
        if not part.free_symbols or isinstance(part, ENTIRE):
            continue
        inner: Any = part.args[0]
        if part.is_Pow:
            base, exponent = part.args
            if base.is_positive and not base.free_symbols:
                continue
            if exponent.is_Integer:
                if exponent < 0:
                    out.append((base, "≠ 0"))
            elif exponent.is_Rational and exponent >= max(order, 0) and exponent > 0:
                out.append((base, "≥ 0"))
            else:
                out.append((base, "> 0"))
        elif isinstance(part, (sp.tan, sp.sec)):
            out.append((sp.cos(inner), "≠ 0"))
        elif isinstance(part, (sp.cot, sp.csc)):
            out.append((sp.sin(inner), "≠ 0"))
        elif isinstance(part, sp.log):
            out.append((inner, "> 0"))
        elif isinstance(part, sp.atanh):
            out.append((1 - inner**2, "> 0"))
        elif isinstance(part, (sp.asin, sp.acos)):
            out.append((1 - inner**2, "> 0" if order else "≥ 0"))
        elif isinstance(part, sp.acosh):
            out.append((inner - 1, "> 0" if order else "≥ 0"))
        elif isinstance(part, KINKED):
            if order >= 2 or not kinks:
                raise JumpError(f"{part} has a kink, where its derivative jumps")
        else:
            raise JumpError(f"{part} may jump, or nothing is known of {type(part).__name__}")
    return [(e, sign) for e, sign in dict.fromkeys(out) if not _holds_by_form(e, sign)]


def _holds_by_form(expr: Any, sign: str) -> bool:
    """A positive number plus even powers of states with positive coefficients: 1 + x² and the like."""

    def good(f: Any) -> bool:
        if f.is_number:
            return f.is_positive is True
        return bool(f.is_Pow and f.base.is_Symbol and f.exp.is_Integer and f.exp > 0 and f.exp % 2 == 0)

    terms = sp.Add.make_args(expr)
    even = all(all(good(f) for f in sp.Mul.make_args(t)) for t in terms)
    return even and (sign == "≥ 0" or any(t.is_number and t.is_positive for t in terms))


def everywhere(exprs: Sequence[sp.Expr]) -> bool:
    """Are the formulas continuous on the whole space, by their form alone?"""
    try:
        return not any(conditions(e, 0) for e in exprs)
    except JumpError:
        return False
