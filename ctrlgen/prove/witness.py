"""Does a claim fail at a point? Answered exactly, so that a refutation never rests on a rounded number.

Formulas that are rational at a rational point are evaluated in rationals. All others are enclosed in balls at rising
precision, until the sign is certain, and tested for zero symbolically. What cannot be settled is not a violation.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
import sympy as sp

from ctrlgen.prove.claim import Claim

PRECISIONS = (53, 106, 212, 424, 1000)  # bits
DENOMINATORS = (1, 2, 3, 4, 5, 6, 8, 10, 16, 20, 32, 50, 64, 100, 256, 1000, 10**5, 10**7, 10**10, 10**13)
Point = tuple[Any, ...]  # exact numbers

_BALL = {
    sp.sin: "sin", sp.cos: "cos", sp.tan: "tan", sp.asin: "asin", sp.acos: "acos", sp.atan: "atan", sp.sinh: "sinh",
    sp.cosh: "cosh", sp.tanh: "tanh", sp.asinh: "asinh", sp.acosh: "acosh", sp.atanh: "atanh", sp.exp: "exp",
    sp.log: "log", sp.erf: "erf", sp.sec: "sec", sp.csc: "csc", sp.cot: "cot",
}  # fmt: skip


class Unsettled(ArithmeticError):
    """A formula has no value at a point, or none that could be established."""


class _NotRational(Exception):
    """The fast path does not apply."""


def rational_value(expr: Any, at: dict[sp.Symbol, Any], memo: dict | None = None) -> Any:
    """A rational formula at rational numbers, in flint rationals.

    Args:
        expr: exact formula.
        at: the value of every symbol, fmpq.
        memo: values of subexpressions at the same point, filled as they are found.

    Raises:
        Unsettled: a division by zero.
        _NotRational: the formula is not rational.
    """
    from flint import fmpq

    memo = {} if memo is None else memo

    def walk(e: Any) -> Any:
        if e in memo:
            return memo[e]
        if e.is_Rational:
            value = fmpq(int(e.p), int(e.q))
        elif e.is_Symbol:
            value = at[e]
        elif e.is_Add:
            value = fmpq(0)
            for a in e.args:
                value += walk(a)
        elif e.is_Mul:
            value = fmpq(1)
            for a in e.args:
                value *= walk(a)
        elif e.is_Pow and e.exp.is_Integer:
            base = walk(e.base)
            if base == 0 and e.exp < 0:
                raise Unsettled(f"division by zero in {e}")
            value = base ** int(e.exp)
        elif isinstance(e, sp.Abs):
            value = abs(walk(e.args[0]))
        elif isinstance(e, (sp.Min, sp.Max)):
            value = (min if isinstance(e, sp.Min) else max)(walk(a) for a in e.args)
        elif isinstance(e, sp.sign):
            inner = walk(e.args[0])
            value = fmpq((inner > 0) - (inner < 0))
        else:
            raise _NotRational(str(e.func))
        memo[e] = value
        return value

    return walk(expr)


def ball_value(expr: Any, at: dict[Any, Any], bits: int) -> Any:
    """A ball that encloses the formula's value at exact numbers; not finite where it is undefined.

    Raises:
        Unsettled: the formula holds a function that is not known here.
    """
    from flint import arb, ctx, fmpq

    memo: dict = {}

    def power(e: Any) -> Any:
        base = walk(e.base)
        if e.exp.is_Integer:
            return base ** int(e.exp)
        if base.is_zero() and e.exp.is_positive:
            return arb(0)
        if e.exp == sp.S.Half:
            return base.sqrt()
        return (walk(e.exp) * base.log()).exp()

    def walk(e: Any) -> Any:
        if e not in memo:
            memo[e] = fresh(e)
        return memo[e]

    def fresh(e: Any) -> Any:
        if e.is_Rational:
            return arb(fmpq(int(e.p), int(e.q)))
        if e.is_Symbol:
            return walk(at[e])
        if e.is_Add:
            return sum((walk(a) for a in e.args), arb(0))
        if e.is_Mul:
            value = arb(1)
            for a in e.args:
                value *= walk(a)
            return value
        if e.is_Pow:
            return power(e)
        if isinstance(e, sp.ComplexRootOf) and e.is_real:
            width = sp.Rational(1, 2 ** (bits + 10))
            near = e.eval_rational(dx=width)
            return arb(fmpq(int(near.p), int(near.q))) + arb(0, arb(2) ** -(bits + 10))
        if e is sp.pi:
            return arb.pi()
        if e is sp.E:
            return arb.const_e()
        if type(e) in _BALL:
            return getattr(walk(e.args[0]), _BALL[type(e)])()
        return piecewise(e)

    def piecewise(e: Any) -> Any:
        if isinstance(e, sp.Abs):
            return abs(walk(e.args[0]))
        if isinstance(e, sp.atan2):
            return arb.atan2(walk(e.args[0]), walk(e.args[1]))
        if isinstance(e, (sp.Min, sp.Max)):
            values = [walk(a) for a in e.args]
            value = values[0]
            for other in values[1:]:
                value = value.min(other) if isinstance(e, sp.Min) else value.max(other)
            return value
        if isinstance(e, sp.sign):
            inner = walk(e.args[0])
            return arb(1) if inner > 0 else arb(-1) if inner < 0 else arb(0) if inner.is_zero() else arb(0, 1)
        raise Unsettled(f"no enclosure of {e.func} is known")

    with ctx.workprec(bits + 20):
        return walk(expr)


def value_sign(expr: Any, states: Sequence[sp.Symbol], point: Point, memo: dict | None = None) -> tuple[int, float]:
    """The certain sign of a formula at an exact point, -1, 0 or 1, and its value as a float.

    Raises:
        Unsettled: the formula is undefined there, or its sign was not established.
    """
    from flint import fmpq

    if all(p.is_Rational for p in point):
        try:
            at = {s: fmpq(int(p.p), int(p.q)) for s, p in zip(states, point, strict=True)}
            value = rational_value(expr, at, memo)
            return (value > 0) - (value < 0), _float(value)
        except _NotRational:
            pass
    exact = dict(zip(states, point, strict=True))
    for bits in PRECISIONS:
        try:
            ball = ball_value(expr, exact, bits)
        except (ValueError, ZeroDivisionError) as error:
            raise Unsettled(str(error)) from None
        if ball.is_finite() and not ball.contains(0):
            return (1 if ball > 0 else -1), float(ball.mid())
        if bits == PRECISIONS[-1] and not ball.is_finite():
            raise Unsettled(f"{expr} has no finite value at {point}")
    if _is_zero(expr, exact):
        return 0, 0.0
    raise Unsettled(f"the sign of {expr} at {point} is not settled at {PRECISIONS[-1]} bits")


def _is_zero(expr: Any, at: dict[Any, Any]) -> bool:
    """Is a formula, of which a ball around zero is known, symbolically zero? False also where that is not found."""
    if any(p.exp.free_symbols for p in expr.atoms(sp.Pow)):
        return False  # an exact power of two rationals of 53 bits would fill the memory
    roots = sorted({v for v in at.values() if isinstance(v, sp.ComplexRootOf)}, key=str)
    if not roots:
        value = sp.expand(expr.subs(at))
        return value.is_zero is True or sp.simplify(value) == 0
    names = sp.symbols(f"t:{len(roots)}", real=True, cls=sp.Dummy)
    swap = dict(zip(roots, names, strict=True))
    numerator, denominator = sp.fraction(sp.together(expr.subs({s: v.xreplace(swap) for s, v in at.items()})))
    if not (numerator.is_polynomial(*names) and denominator.is_polynomial(*names)):
        return False
    least = [sp.Poly(r.poly.as_expr(r.poly.gen), r.poly.gen).as_expr(t) for r, t in swap.items()]
    # remainders by the roots' polynomials: zero is a proof; for one root, as it is irreducible, nonzero is one too
    remainder = sp.reduced(numerator, least, *names)[1]
    return (
        remainder == 0 and (len(roots) == 1 or denominator.is_number) and sp.reduced(denominator, least, *names)[1] != 0
    )


def _float(value: Any) -> float:
    try:
        return int(value.p) / int(value.q)
    except OverflowError:
        return float(np.inf) if value > 0 else float(-np.inf)


def violates(claim: Claim, point: Sequence[Any]) -> tuple[bool, float]:
    """Does the claim fail at an exact point of its set?

    Args:
        claim: the claim.
        point: d exact numbers, rational or algebraic.

    Returns:
        (True, margin) when the point is in the set, is not the excepted one, and the left-hand side is certainly not
        ≻ 0 (strict) or not ⪰ 0; margin is its value there, or its smallest eigenvalue. (False, margin) otherwise,
        also where a formula is undefined or a sign is not settled; margin is NaN where there is none.
    """
    exact = tuple(sp.sympify(p) for p in point)
    memo: dict | None = {}
    if claim.matrix is None:
        return False, float("nan")
    try:
        inside = _inside(claim, exact, memo)
        fails, margin = _fails(claim, exact, memo)
    except Unsettled:
        return False, float("nan")
    return inside and fails, margin


def _inside(claim: Claim, point: Point, memo: dict | None) -> bool:
    def sign(e: Any) -> int:
        return value_sign(e, claim.states, point, memo)[0]

    if claim.except_at is not None and all(
        sign(s - e) == 0 for s, e in zip(claim.states, claim.except_at, strict=True)
    ):
        return False
    return (
        all(sign(g) >= 0 for g in claim.guards)
        and all(sign(g) > 0 for g in claim.open_guards)
        and all(sign(e) == 0 for e in claim.equalities)
    )


def _fails(claim: Claim, point: Point, memo: dict | None) -> tuple[bool, float]:
    if claim.size == 1:
        sign, value = value_sign(claim.expr, claim.states, point, memo)
        return (sign <= 0 if claim.strict else sign < 0), value
    k = claim.size
    entries = [[value_sign(claim.matrix[i, j], claim.states, point, memo)[1] for j in range(k)] for i in range(k)]
    floats = np.array(entries)
    least, vectors = np.linalg.eigh((floats + floats.T) / 2)
    margin = float(least[0])
    try:
        rational = _rational_matrix(claim, point, memo)
    except _NotRational:
        rational = None
    if rational is not None:
        return not _definite(rational, claim.strict), margin
    for limit in (1, 10, 1000, 10**9):
        v = [
            sp.Rational(Fraction(float(c)).limit_denominator(limit))
            for c in vectors[:, 0] / np.abs(vectors[:, 0]).max()
        ]
        form = sp.Add(*(v[i] * v[j] * claim.matrix[i, j] for i in range(k) for j in range(k)))
        sign, _ = value_sign(form, claim.states, point, memo) if any(v) else (1, 0.0)
        if sign < 0 or (sign == 0 and claim.strict):
            return True, margin
    return False, margin


def _rational_matrix(claim: Claim, point: Point, memo: dict | None) -> list[list[Any]]:
    from flint import fmpq

    if not all(p.is_Rational for p in point):
        raise _NotRational
    at = {s: fmpq(int(p.p), int(p.q)) for s, p in zip(claim.states, point, strict=True)}
    return [[rational_value(claim.matrix[i, j], at, memo) for j in range(claim.size)] for i in range(claim.size)]


def _definite(matrix: list[list[Any]], strict: bool) -> bool:
    """Is a symmetric rational matrix ≻ 0 (strict) or ⪰ 0? By symmetric elimination, exactly."""
    a = [row[:] for row in matrix]
    left = list(range(len(a)))
    while left:
        if any(a[i][i] < 0 for i in left) or (strict and any(a[i][i] == 0 for i in left)):
            return False
        pivot = next((i for i in left if a[i][i] > 0), None)
        if pivot is None:
            return all(a[i][j] == 0 for i in left for j in left)
        left.remove(pivot)
        for i, j in itertools.product(left, left):
            a[i][j] -= a[i][pivot] * a[pivot][j] / a[pivot][pivot]
    return True


def round_witness(claim: Claim, x: Any, nudge: bool = True) -> Point | None:
    """An exact point near x at which the claim certainly fails, simple numbers first; None where none was found.

    Args:
        claim: the claim.
        x: d floats, about where the claim seems to fail.
        nudge: try also points that are moved into the guards by a little, square roots and multiples of π.
    """
    x = np.asarray(x, dtype=np.float64)
    if claim.matrix is None or not np.isfinite(x).all():
        return None
    seen = set()
    for point in _candidates(claim, x, nudge):
        if point is not None and point not in seen:
            seen.add(point)
            if violates(claim, point)[0]:
                return point
    return None


def _candidates(claim: Claim, x: np.ndarray, nudge: bool) -> Iterator[Point | None]:
    for limit in DENOMINATORS:
        yield _into(claim, [Fraction(float(v)).limit_denominator(limit) for v in x])
    yield _into(claim, [Fraction(float(v)) for v in x])
    if not nudge:
        return
    for step in 10.0 ** np.arange(-15, -4):
        moved = _moved(claim, x, step)
        if moved is None:
            break
        yield _into(claim, [Fraction(float(v)) for v in moved])
    roots = tuple(_surd(float(v)) for v in x)
    if not all(r.is_Rational for r in roots):
        yield roots


def _surd(v: float) -> Any:
    """A simple number near v: a rational, a multiple of π, or the square root of a rational."""

    def close(number: float) -> bool:
        return abs(number - v) < 1e-6 * max(1.0, abs(v))

    near, turns = Fraction(v).limit_denominator(100), Fraction(v / math.pi).limit_denominator(12)
    if close(float(near)):
        return sp.Rational(near)
    if close(float(turns) * math.pi):
        return sp.Rational(turns) * sp.pi
    square = Fraction(v * v).limit_denominator(100)
    if close(math.copysign(math.sqrt(square), v)):
        return (1 if v > 0 else -1) * sp.sqrt(sp.Rational(square))
    return sp.Rational(Fraction(v).limit_denominator(1000))


def _into(claim: Claim, values: Sequence[Fraction]) -> Point | None:
    """The point, clipped to the box, and put exactly on the equalities where they can be solved for one state."""
    point: list[Any] = []
    for v, (low, high) in zip((sp.Rational(v) for v in values), claim.box, strict=True):
        v = low if low is not None and v < low else v  # noqa: PLW2901
        point.append(high if high is not None and v > high else v)
    at = dict(zip(claim.states, point, strict=True))
    taken: set[Any] = set()
    equality: Any
    for equality in claim.equalities:
        circle = _circle(equality)
        if circle is not None and not taken & set(circle):
            at.update(_on_circle(at, circle))
            taken |= set(circle)
            continue
        for s in sorted(equality.free_symbols - taken, key=str):
            slope = _derivative(equality, s)
            if slope.has(s):
                continue
            others = {k: v for k, v in at.items() if k != s}
            rate, rest = slope.subs(others), equality.subs({**others, s: 0})
            if rate.is_Rational and rate != 0 and rest.is_Rational:
                at[s] = -rest / rate
                taken |= equality.free_symbols
                break
    return tuple(at[s] for s in claim.states)


@lru_cache(maxsize=256)
def _circle(equality: Any) -> tuple[Any, Any] | None:
    """(s, c) when the equality is ±(s² + c² - 1) = 0."""
    names = sorted(equality.free_symbols, key=lambda s: s.name)
    if len(names) != 2:
        return None
    unit = names[0] ** 2 + names[1] ** 2 - 1
    return (names[0], names[1]) if sp.expand(equality - unit) == 0 or sp.expand(equality + unit) == 0 else None


def _on_circle(at: dict, circle: tuple[Any, Any]) -> dict:
    """The rational point of the unit circle next to a point, through the tangent of half the angle."""
    a, b = (float(at[s]) for s in circle)
    if b < 0 and abs(a) < 1e-15:
        return {circle[0]: sp.S.Zero, circle[1]: -sp.S.One}
    t = sp.Rational(Fraction(float(np.tan(np.arctan2(a, b) / 2))).limit_denominator(10**8))
    return {circle[0]: 2 * t / (1 + t**2), circle[1]: (1 - t**2) / (1 + t**2)}


@lru_cache(maxsize=1024)
def _derivative(expr: Any, s: Any) -> Any:
    return expr.diff(s)


def _moved(claim: Claim, x: np.ndarray, step: float) -> np.ndarray | None:
    """x moved by about `step` (relative) into every guard that is nearly active; None where no guard is."""
    point = tuple(sp.Rational(Fraction(float(v))) for v in x)
    rows, amounts = [], []
    size = step * (1 + float(np.abs(x).max()))
    for guard in (*claim.guards, *claim.open_guards):
        value = _approximate(guard, claim.states, point)
        slope = np.array([_approximate(_derivative(guard, s), claim.states, point) for s in claim.states])
        length = float(np.linalg.norm(slope))
        if np.isfinite(value) and 0 < length < np.inf and value < 1e-5 * length:
            rows.append(slope / length)
            amounts.append(size + max(0.0, -value / length))
    if not rows:
        return None
    return x + np.linalg.lstsq(np.array(rows), np.array(amounts), rcond=None)[0]


def _approximate(expr: Any, states: Sequence[sp.Symbol], point: Point) -> float:
    try:
        return value_sign(expr, states, point)[1]
    except Unsettled:
        return float("nan")
