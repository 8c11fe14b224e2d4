"""Ranges of a polynomial times a factor that decays: exp(-q) or q⁻ⁿ, with q a positive definite quadratic.

Gaussian bumps, √(1 + |x|²), log(1 + |x|²) and their derivatives consist of such terms. Ends of the ranges of the
factors alone would be infinite. With t = x - μ, μ the minimiser of q, q(μ) = c and q ≥ c + Σ aᵢtᵢ²,

    |tᵢ|ᵏ exp(-aᵢtᵢ²) ≤ (k / 2aᵢe)^{k/2},    Π|tᵢ|^{kᵢ} q⁻ⁿ ≤ Π aᵢ^{-kᵢ/2} c^{Σkᵢ/2 - n} where Σkᵢ ≤ 2n, c > 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import sympy as sp
from flint import arb, fmpq

HIGHEST = 12  # degree of a polynomial that is moved to the minimiser of its quadratic
LARGEST = 12  # states of a quadratic with mixed terms, which is bounded by its smallest eigenvalue


@dataclass(frozen=True)
class _Well:
    """q ≥ c + Σ aᵢ(xᵢ - μᵢ)², with rationals."""

    states: tuple[sp.Symbol, ...]
    centre: tuple[Any, ...]
    curvature: tuple[Any, ...]
    bottom: Any


def decaying_range(expr: Any) -> tuple[arb, arb] | None:
    """Balls (low, high) between which every value of such a product lies; None where it is not of this form."""
    polynomial, factor = _split(expr)
    if isinstance(factor, sp.exp):
        exponent: Any = factor.args[0]
        return _bounded(polynomial, _well(-exponent), _under_exponential)
    if factor.is_Pow and factor.exp.is_Rational and factor.exp < 0:
        return _bounded(polynomial, _well(factor.base), partial(_under_power, n=-factor.exp))
    return None


def least_of_quadratic(expr: Any) -> arb | None:
    """The least value of a positive definite quadratic polynomial, exactly; None for anything else."""
    well = _well(expr)
    return None if well is None else _ball(well.bottom)


def gathered(terms: Iterable[Any]) -> list[Any]:
    """The terms of a sum; polynomials before one and the same decaying factor in one, for their bounds do not add.

    No other factor: polynomials may cancel before one that is not defined everywhere.
    """
    plain: list[Any] = []
    before: dict[Any, list[Any]] = {}
    for term in terms:
        polynomial, factor = _split(term)
        if decaying_range(factor) is None:
            plain.append(term)
        else:
            before.setdefault(factor, []).append(polynomial)
    return plain + [sp.Add(*parts) * factor for factor, parts in before.items()]


def expanded(expr: Any) -> Any:
    """The expression as a sum of products, in which exponentials and denominators are left as they are."""
    whole = {
        part: sp.Dummy()
        for part in expr.atoms(sp.exp, sp.Pow)
        if isinstance(part, sp.exp) or not (part.exp.is_Integer and part.exp > 0)
    }
    return sp.expand(expr.xreplace(whole)).xreplace({name: part for part, name in whole.items()})


def _split(term: Any) -> tuple[Any, Any]:
    """A product as a polynomial and the rest, exponentials in one."""
    polynomial: Any = sp.Integer(1)
    exponent: Any = sp.Integer(0)
    rest: Any = sp.Integer(1)
    for factor in sp.Mul.make_args(term):
        if isinstance(factor, sp.exp):
            exponent += factor.args[0]
        elif factor.is_polynomial(*factor.free_symbols):
            polynomial *= factor
        else:
            rest *= factor
    return polynomial, rest if exponent == 0 else sp.exp(sp.expand(exponent)) * rest


@lru_cache(maxsize=256)
def _well(q: Any) -> _Well | None:
    states = tuple(sorted(q.free_symbols, key=str))
    if not states or not q.is_polynomial(*states):
        return None
    poly = sp.Poly(q, *states)
    if poly.total_degree() != 2 or not all(c.is_Rational for c in poly.coeffs()):
        return None
    matrix, slope = sp.zeros(len(states)), sp.zeros(len(states), 1)
    for powers, value in poly.terms():
        at = [i for i, k in enumerate(powers) for _ in range(k)]
        if len(at) == 2:
            matrix[at[0], at[1]] += value / 2
            matrix[at[1], at[0]] += value / 2
        elif at:
            slope[at[0]] = value
    low = matrix.diagonal() if matrix.is_diagonal() else _least(matrix)
    if low is None or not all(v > 0 for v in low):
        return None
    centre = tuple(-matrix.LUsolve(slope) / 2)
    return _Well(states, centre, tuple(low), poly(*centre))


def _least(matrix: Any) -> list[Any] | None:
    """A rational below the smallest eigenvalue, which is shown exactly."""
    if matrix.rows > LARGEST:
        return None
    near = float(np.linalg.eigvalsh(np.array(matrix, float))[0])
    low = sp.Rational(near) * sp.Rational(999_999, 1_000_000)
    shown = (matrix - low * sp.eye(matrix.rows)).is_positive_definite
    return [low] * matrix.rows if shown else None


def _bounded(polynomial: Any, well: _Well | None, under: Callable) -> tuple[arb, arb] | None:
    """The sum of the ranges of the polynomial's monomials in t, each times the factor."""
    if well is None:
        return None
    if polynomial.free_symbols and sp.total_degree(polynomial, *well.states) > HIGHEST:
        return None
    moved = polynomial.xreplace({s: s + m for s, m in zip(well.states, well.centre, strict=True)})
    poly = sp.Poly(moved, *well.states)
    if not all(c.is_Rational for c in poly.coeffs()):
        return None
    low, high = arb(0), arb(0)
    for powers, coefficient in poly.terms():
        size = under(well, powers)
        if size is None:
            return None
        size *= abs(_ball(coefficient))
        even = all(k % 2 == 0 for k in powers)
        if coefficient > 0 or not even:
            high += size
        if coefficient < 0 or not even:
            low -= size
    return low, high


def _under_exponential(well: _Well, powers: Iterable[int]) -> arb:
    size = (-_ball(well.bottom)).exp()
    for k, a in zip(powers, well.curvature, strict=True):
        if k:
            size *= (_ball(sp.Rational(k) / (2 * a)) / arb(1).exp()) ** _ball(sp.Rational(k, 2))
    return size


def _under_power(well: _Well, powers: tuple[int, ...], n: Any) -> arb | None:
    degree = sum(powers)
    if not well.bottom > 0 or degree > 2 * n:
        return None
    size = _ball(well.bottom) ** _ball(sp.Rational(degree, 2) - n)
    return math.prod(
        (_ball(a) ** _ball(sp.Rational(-k, 2)) for k, a in zip(powers, well.curvature, strict=True)), start=size
    )


def _ball(value: Any) -> arb:
    return arb(fmpq(int(value.p), int(value.q)))
