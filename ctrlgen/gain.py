"""Class-K functions α of a barrier: zero at zero and not decreasing; how a gain is read."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import sympy as sp

from ctrlgen.domain import exact
from ctrlgen.field import Field

PROBES = (-2, sp.Rational(-1, 2), 0, sp.Rational(1, 2), 2)  # where a class-K function is seen to increase


def class_k(name: str, gain: Any) -> Callable[[sp.Expr], Any]:
    """α as a function of a formula, from a number, a callable, or a formula of one symbol.

    Raises:
        ValueError: α(0) is not 0, or α is seen to decrease.
    """
    z = sp.Symbol("z", real=True)
    if isinstance(gain, str):
        gain = Field(gain, ["h"], name).expr
    if callable(gain) and not isinstance(gain, sp.Basic):
        formula = (
            Field(lambda x: gain(x[0]), [z], name).expr if not _symbolic(gain, z) else Field(gain(z), [z], name).expr
        )
    elif isinstance(gain, sp.Expr) and gain.free_symbols:
        symbols = sorted(gain.free_symbols, key=str)
        if len(symbols) > 1:
            raise ValueError(f"{name} must be a formula of one symbol, which stands for h; got {symbols}.")
        formula = Field(gain.xreplace({symbols[0]: z}), [z], name).expr
    else:
        formula = exact(name, gain) * z
    if formula is None:
        raise ValueError(f"{name} must have a formula; write it with arithmetic and jax.numpy functions.")
    if sp.simplify(formula.subs(z, 0)) != 0:
        raise ValueError(f"{name} must be zero at zero (a class-K function of h); got α(h) = {formula}.")
    values = [float(v) for v in (sp.N(formula.subs(z, p)) for p in PROBES) if v.is_real]
    if any(b < a for a, b in itertools.pairwise(values)):
        raise ValueError(f"{name} must not decrease (a number ≥ 0, or a class-K function of h); got α(h) = {formula}.")
    return lambda expr: formula.xreplace({z: expr})


def _symbolic(function: Callable, z: sp.Symbol) -> bool:
    try:
        return isinstance(function(z), (sp.Expr, int, float))
    except Exception:
        return False
