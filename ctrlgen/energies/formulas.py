"""Constants of an energy that is a formula: exact bounds of its Hessian, gradient and values on the whole space.

A polynomial Hessian is bounded by a sum of squares (`ctrlgen.prove`). What is not polynomial is bounded by the ranges
of its parts: sin in [-1, 1], exp of a range, an even power above 0. What neither reaches is not established.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
import sympy as sp
from flint import arb, ctx, fmpq

from ctrlgen.continuity import JumpError, conditions
from ctrlgen.energies.base import Properties
from ctrlgen.energies.decaying import decaying_range, expanded, gathered, least_of_quadratic
from ctrlgen.energies.spectral import down
from ctrlgen.formula import rationalise
from ctrlgen.prove.balls import Unsupported
from ctrlgen.prove.claim import Claim, Deadline, Outcome, Status
from ctrlgen.prove.decide import best_bound, float_below
from ctrlgen.prove.search import minimise

Range = tuple[arb, arb]
INFINITE = arb("+inf")
BITS = 128
SECONDS = 1.0  # for a bound that needs an engine
FAR = (1e2, 1e4)


@lru_cache(maxsize=256)
def formula_properties(expr: Any, states: tuple) -> Properties:
    """What is established of a formula; floats in it are the decimals that they print as."""
    with ctx.workprec(BITS):  # the caller's precision must not show in the constants: they are checked again
        return _established(rationalise(expr), states)


def _established(expr: Any, states: tuple) -> Properties:
    values = value_range(expr)
    spread = None if values is None else values[1] - values[0]
    oscillation = above(spread) if spread is not None and spread.is_finite() else None
    if not twice_differentiable(expr):
        return Properties(oscillation=oscillation)
    hessian = sp.hessian(expr, states)
    slopes = [value_range(sp.diff(expr, s)) for s in states]
    bound = None
    if all(known is not None for known in slopes):
        square = sum((_size(known) ** 2 for known in slopes if known is not None), arb(0))
        bound = above(square.sqrt()) if square.is_finite() else None
    lower, upper = least_eigenvalue(hessian, states), least_eigenvalue(-hessian, states)
    low = None if lower is None else _float_below(lower[0])
    return Properties(
        hessian_lower=low,
        hessian_upper=None if upper is None else -_float_below(upper[0]),
        dissipativity=_dissipativity(expr, states, low),
        gradient_bound=bound,
        oscillation=oscillation,
    )


def _float_below(value: Any) -> float:
    return down(Fraction(int(value.p), int(value.q)))


def twice_differentiable(expr: Any) -> bool:
    """Is a formula certainly twice differentiable on the whole space? Its derivatives, as formulas, do not tell.

    A function that jumps may have the derivative of one that does not: atan(tan(x)), atan2(x, -1), Piecewise.
    """
    return _regular(expr, 2)


def continuous(expr: Any) -> bool:
    """Is a formula, as it stands, certainly finite and continuous on the whole space? What it expands to does not tell:
    (x + 1) log(x) - x log(x) - log(x) is not zero where x < 0.
    """
    return _regular(expr, 0)


def _regular(expr: Any, order: int) -> bool:
    try:
        needed = conditions(expr.replace(sp.sech, lambda u: 1 / sp.cosh(u)), order)
    except JumpError:
        return False
    return all(_holds(value_range(e), sign) for e, sign in needed)


def _holds(known: Range | None, sign: str) -> bool:
    if known is None:
        return False
    low, high = known
    return bool(low > 0 or (sign == "≥ 0" and low >= 0) or (sign == "≠ 0" and high < 0))


def least_eigenvalue(
    matrix: sp.MatrixBase, states: tuple, seconds: float = SECONDS
) -> tuple[Any, list[tuple[Claim, Outcome]]] | None:
    """A rational b with matrix ⪰ b I everywhere, and the claims that prove it; None where none was found.

    The polynomial part is bounded by an engine, the rest by Gershgorin's discs of its entries' ranges.
    """
    n = matrix.rows
    parts = {(i, j): _split(expanded(matrix[i, j]), states) for i in range(n) for j in range(i, n)}
    rest = _discs({place: part[1] for place, part in parts.items()}, n)
    if rest is None:
        return None
    poly = sp.ImmutableMatrix(n, n, lambda i, j: parts[min(i, j), max(i, j)][0])
    claims: list[tuple[Claim, Outcome]] = []

    def make(b: sp.Rational) -> Claim:
        return Claim(text=f"P ⪰ {b} I", states=states, matrix=poly - b * sp.eye(n), strict=False)

    if all(sp.sympify(entry).is_number for entry in poly):
        numbers = np.array(poly, float)
        if not np.isfinite(numbers).all():
            return None
        estimate = float(np.linalg.eigvalsh(numbers)[0])
    elif _falls(poly, states):
        return None
    else:
        found = minimise(poly, (), states)
        if found[0] is None or not np.isfinite(found[1]):
            return None
        estimate = float(found[1])
    bound, claim, outcome = best_bound(make, estimate, "exact", Deadline(seconds), scale=max(abs(estimate), 1e-3))
    if bound is None or claim is None or outcome.status is not Status.PROVED:
        return None
    claims.append((claim, outcome))
    return bound + rest, claims


def _falls(poly: sp.ImmutableMatrix, states: tuple) -> bool:
    """Does its smallest eigenvalue fall without bound, to all appearance?"""
    evaluate = sp.lambdify(list(states), poly.tolist(), "numpy")
    rng = np.random.default_rng(0)
    lows = []
    for size in FAR:
        points = rng.standard_normal((32, len(states)))
        points = np.concatenate([points / np.abs(points).max(axis=1, keepdims=True), np.eye(len(states))]) * size
        lows.append(min(float(np.linalg.eigvalsh(np.array(evaluate(*p), float))[0]) for p in points))
    return lows[1] < -10.0 and lows[1] < 5 * lows[0]


def _split(expr: Any, states: tuple) -> tuple[Any, Any]:
    """Polynomial terms with rational coefficients, and the others."""
    poly = [t for t in sp.Add.make_args(expr) if t.is_polynomial(*states) and _rational_coefficients(t, states)]
    return sp.Add(*poly), expr - sp.Add(*poly)


def _rational_coefficients(term: Any, states: tuple) -> bool:
    return all(c.is_Rational for c in sp.Poly(term, *states).coeffs())


def _discs(entries: dict[tuple[int, int], Any], n: int) -> Any:
    """A rational below every Gershgorin disc of a symmetric matrix, from the ranges of its entries on and above the
    diagonal.
    """
    known = {place: value_range(entry) for place, entry in entries.items()}
    lowest = None
    for i in range(n):
        ranges = [known[min(i, j), max(i, j)] for j in range(n)]
        own = ranges[i]
        if own is None or any(r is None for r in ranges):
            return None
        reach = own[0] - sum((_size(r) for j, r in enumerate(ranges) if j != i and r is not None), arb(0))
        if not reach.is_finite():
            return None
        value = _rational_below(reach)
        lowest = value if lowest is None or value < lowest else lowest
    return lowest


def _rational_below(ball: arb) -> sp.Rational:
    man, exp = ball.lower().mid().man_exp()
    return sp.Rational(int(man)) * sp.Rational(2) ** int(exp)


def above(ball: arb) -> float:
    """A float that no number of the ball exceeds."""
    return float(np.nextafter(float(ball.upper()), np.inf))


def below(ball: arb) -> float:
    """A float that is not above any number of the ball."""
    return float(np.nextafter(float(ball.lower()), -np.inf))


def _size(known: Range) -> arb:
    return abs(known[0]).max(abs(known[1]))


# Ranges on the whole space ----------------------------------------------------------------------------


def value_range(expr: Any) -> Range | None:
    """Balls (low, high) such that every value of expr on the whole space lies between them; ends may be infinite.

    None where the form does not tell, or where expr need not be defined everywhere.
    """
    try:
        return _range(sp.sympify(expr))
    except (Unsupported, ZeroDivisionError):
        return None


def _range(e: Any) -> Range:
    if e.is_number:
        return _constant(e)
    decaying = decaying_range(e)
    if decaying is not None:
        return decaying
    if e.is_Symbol:
        return -INFINITE, INFINITE
    if e.is_Add:
        lowest = least_of_quadratic(e)
        if lowest is not None:
            return lowest, INFINITE
        return _sum([_range(a) for a in gathered(e.args)])
    if e.is_Mul:
        number, rest = e.as_independent(*e.free_symbols, as_Add=False)
        if number != 1:
            return _product(_constant(number), _range(rest))
        out = _range(e.args[0])
        for factor in e.args[1:]:
            out = _product(out, _range(factor))
        return out
    if e.is_Pow and e.exp.is_Integer:
        return _power(_range(e.base), int(e.exp))
    rule = _RULES.get(type(e))
    if rule is None:
        raise Unsupported(f"no range of {type(e).__name__}.")
    return rule(_range(e.args[0]))


def _constant(value: Any) -> Range:
    if value.is_Rational:
        ball = arb(fmpq(int(value.p), int(value.q)))
    elif value in (sp.pi, sp.E):
        ball = arb.pi() if value == sp.pi else arb(1).exp()
    elif value.is_Pow and value.base.is_Rational and value.exp == sp.Rational(1, 2) and value.base > 0:
        ball = arb(fmpq(int(value.base.p), int(value.base.q))).sqrt()
    elif value.is_Mul:
        ball = arb(1)
        for factor in value.args:
            ball *= _constant(factor)[0]
    else:
        raise Unsupported(f"no enclosure of {value}.")
    return ball, ball


def _sum(ranges: list[Range]) -> Range:
    return _total([low for low, _ in ranges]), _total([high for _, high in ranges])


def _total(ends: list[arb]) -> arb:
    infinite = [e for e in ends if not e.is_finite()]
    return infinite[0] if infinite else sum(ends, arb(0))


def _product(a: Range, b: Range) -> Range:
    ends = [_times(x, y) for x in a for y in b]
    low, high = ends[0], ends[0]
    for end in ends[1:]:
        low, high = low.min(end), high.max(end)
    return low, high


def _times(x: arb, y: arb) -> arb:
    if x.is_finite() and y.is_finite():
        return x * y
    if x == 0 or y == 0:
        return arb(0)
    if not (x > 0 or x < 0) or not (y > 0 or y < 0):
        raise Unsupported("an end of a range has no certain sign.")
    return INFINITE if (x > 0) == (y > 0) else -INFINITE


def _power(base: Range, n: int) -> Range:
    low, high = base
    if n < 0:
        if not (low > 0 or high < 0):
            raise Unsupported("a denominator may be zero.")
        inverse = _reciprocal(high), _reciprocal(low)
        return _power(inverse, -n)
    if n % 2:
        return _times_self(low, n), _times_self(high, n)
    ends = (_times_self(low, n), _times_self(high, n))
    largest = ends[0].max(ends[1])
    return (ends[0].min(ends[1]) if low > 0 or high < 0 else arb(0)), largest


def _reciprocal(x: arb) -> arb:
    return 1 / x if x.is_finite() else arb(0)


def _times_self(x: arb, n: int) -> arb:
    if x.is_finite():
        return x**n
    if n % 2 and not (x > 0 or x < 0):
        raise Unsupported("an end of a range has no certain sign.")  # beyond what balls hold
    return INFINITE if n % 2 == 0 or x > 0 else -INFINITE


def _monotone(function: Callable[[arb], arb], low: arb, high: arb) -> Callable[[Range], Range]:
    """The range of a rising function whose limits at ∓∞ are `low` and `high`."""

    def rule(known: Range) -> Range:
        a, b = known
        if not all(end.is_finite() or end > 0 or end < 0 for end in known):
            raise Unsupported("an end of a range has no certain sign.")  # beyond what balls hold
        return function(a) if a.is_finite() else (low if a < 0 else high), function(b) if b.is_finite() else (
            high if b > 0 else low
        )

    return rule


_RULES: dict[Any, Callable[[Range], Range]] = {
    sp.sin: lambda known: (arb(-1), arb(1)),
    sp.cos: lambda known: (arb(-1), arb(1)),
    sp.tanh: _monotone(lambda x: x.tanh(), arb(-1), arb(1)),
    sp.atan: _monotone(lambda x: x.atan(), -arb.pi() / 2, arb.pi() / 2),
    sp.erf: _monotone(lambda x: x.erf(), arb(-1), arb(1)),
    sp.exp: _monotone(lambda x: x.exp(), arb(0), INFINITE),
    sp.sech: lambda known: (arb(0), arb(1)),
    sp.cosh: lambda known: (arb(1), INFINITE),
    sp.sinh: _monotone(lambda x: x.sinh(), -INFINITE, INFINITE),
}


def _dissipativity(expr: Any, states: tuple, low: float | None) -> tuple[float, float] | None:
    """From convexity, ⟨x, ∇E⟩ ≥ m|x|² - |∇E(0)||x|; for a polynomial from a lower bound on ⟨x, ∇E⟩ - a|x|²; for a
    polynomial and a rest R with ⟨x, ∇R⟩ ≥ -c or |∇R| ≤ G from the polynomial's (a, b): (a, b + c), (a/2, b + G²/2a).
    """
    if low is not None and low > 0:
        origin = dict.fromkeys(states, 0)
        slopes = [_constant_or_none(sp.diff(expr, s).subs(origin)) for s in states]
        if all(v is not None for v in slopes):
            square = sum((v * v for v in slopes if v is not None), arb(0))
            return (low / 2, above(square / (2 * arb(low)))) if square != 0 else (low, 0.0)
        return None
    polynomial, rest = _split(expanded(expr), states)
    if not rest.free_symbols:
        return _radial(sp.expand(polynomial), states)
    known = _radial(polynomial, states) if polynomial.free_symbols else None
    if known is None:
        return None
    a, b = known
    along = value_range(expanded(sum(s * sp.diff(rest, s) for s in states)))
    if along is not None and along[0].is_finite():
        return a, above(arb(b) - along[0].min(arb(0)))
    slopes = [value_range(sp.diff(rest, s)) for s in states]
    if any(known is None for known in slopes):
        return None
    square = sum((_size(known) ** 2 for known in slopes if known is not None), arb(0))
    return (a / 2, above(arb(b) + square / (2 * arb(a)))) if square.is_finite() else None


def _radial(polynomial: Any, states: tuple) -> tuple[float, float] | None:
    """(a, b) of a polynomial with rational coefficients from a sum of squares."""
    radial = sp.expand(sum(s * sp.diff(polynomial, s) for s in states))
    for a in (sp.Rational(1, 2), sp.Rational(1, 20)):
        target = sp.expand(radial - a * sum(s**2 for s in states))
        if _falls(sp.ImmutableMatrix([[target]]), states):
            continue
        found = minimise(target, (), states)
        if found[0] is None or not np.isfinite(found[1]):
            continue

        def make(b: sp.Rational, target: Any = target) -> Claim:
            return Claim(text=f"⟨x, ∇E⟩ - a|x|² ≥ {b}", states=states, matrix=sp.Matrix([[target - b]]), strict=False)

        bound, _, outcome = best_bound(make, float(found[1]), "exact", Deadline(SECONDS / 2), scale=1.0)
        if bound is not None and outcome.status is Status.PROVED:
            return float_below(a), max(-float_below(bound), 0.0)
    return None


def _constant_or_none(value: Any) -> arb | None:
    try:
        return _constant(sp.sympify(value))[0]
    except Unsupported:
        return None
