"""Operations of ball arithmetic: `WIDE` is tight on wide balls, `POINT` quick on points, `EXACT` rational.

Each is a table from the names that compiled formulas call to functions. Monotone functions are enclosed by their end
points and even powers by those of |x|, which python-flint's own centre-and-radius rules do not do.
"""

from __future__ import annotations

from flint import arb, fmpq


class Undefined(ArithmeticError):
    """The formula may be undefined somewhere in the ball (or, in exact mode, is not a rational number)."""


def _square(x: arb) -> arb:
    y = x * x
    if y > 0:
        return y
    low, high = x.abs_lower(), x.abs_upper()
    return (low * low).union(high * high)


def _even(x: arb, n: int) -> arb:
    low, high = x.abs_lower(), x.abs_upper()
    return (low**n).union(high**n)


def _odd(x: arb, n: int) -> arb:
    y = x**n
    if y > 0 or y < 0:
        return y
    return (x.lower() ** n).union(x.upper() ** n)


def _inv(x: arb) -> arb:
    if x > 0 or x < 0:
        return (1 / x.lower()).union(1 / x.upper())
    raise Undefined("a divisor may be 0.")


def _sqrt(x: arb) -> arb:
    low = x.lower()
    if low >= 0:
        return low.sqrt().union(x.upper().sqrt())
    raise Undefined("a square root's argument may be negative.")


def _sqrt_of_nonnegative(x: arb) -> arb:
    high = x.upper()
    if high < 0 or not high.is_finite():
        raise Undefined("a square root's argument is not finite.")
    low = x.lower()
    return (low.sqrt() if low > 0 else arb(0)).union(high.sqrt())


def _log(x: arb) -> arb:
    if x > 0:
        return x.lower().log().union(x.upper().log())
    raise Undefined("a logarithm's argument may be 0 or negative.")


def _power(x: arb, e: arb) -> arb:
    return (e * _log(x)).exp()


def _power_of_nonnegative(x: arb, e: arb) -> arb:
    """x^e for x ≥ 0 and e > 0."""
    high = x.upper()
    if not high.is_finite() or high < 0:
        raise Undefined("a root's argument is not finite.")
    if x > 0:
        return _power(x, e)
    return arb(0).union((e * high.log()).exp()) if high > 0 else arb(0)


def _monotone(name: str):
    function = getattr(arb, name)

    def wide(x: arb) -> arb:
        y = function(x.lower()).union(function(x.upper()))
        if y.is_finite():
            return y
        raise Undefined(f"{name} may be undefined.")

    return wide


def _checked(name: str):
    function = getattr(arb, name)

    def wide(x: arb) -> arb:
        y = function(x)
        if y.is_finite():
            return y
        raise Undefined(f"{name} may be undefined.")

    return wide


def _abs(x: arb) -> arb:
    return x.abs_lower().union(x.abs_upper())


def _slope(x: arb) -> arb:
    return arb(1) if x > 0 else arb(-1) if x < 0 else arb(0, 1)


def _step(x: arb) -> arb:
    return arb(1) if x > 0 else arb(0) if x < 0 else arb(0.5, 0.5)


def _min(*terms: arb) -> arb:
    low, high = terms[0].lower(), terms[0].upper()
    for term in terms[1:]:
        low, high = arb.min(low, term.lower()), arb.min(high, term.upper())
    return low.union(high)


def _max(*terms: arb) -> arb:
    low, high = terms[0].lower(), terms[0].upper()
    for term in terms[1:]:
        low, high = arb.max(low, term.lower()), arb.max(high, term.upper())
    return low.union(high)


def _atan2(y: arb, x: arb) -> arb:
    if x > 0 or y > 0 or y < 0:
        return arb.atan2(y, x)
    raise Undefined("atan2 may meet its cut.")


def _point_div(x):
    if x > 0 or x < 0:
        return 1 / x
    raise Undefined("a divisor may be 0.")


INCREASING = ("asin", "atan", "sinh", "tanh", "asinh", "acosh", "atanh", "erf", "exp")
OTHERS = ("sin", "cos", "tan", "acos", "cosh", "erfc")
WIDE = {
    "_square": _square, "_even": _even, "_odd": _odd, "_inv": _inv, "_sqrt": _sqrt, "_sqrt0": _sqrt_of_nonnegative,
    "_log": _log, "_power": _power, "_power0": _power_of_nonnegative, "_abs": _abs, "_slope": _slope, "_step": _step,
    "_min": _min, "_max": _max, "_atan2": _atan2,
    **{f"_{name}": _monotone(name) for name in INCREASING},
    **{f"_{name}": _checked(name) for name in OTHERS},
}  # fmt: skip
POINT = {
    **WIDE,
    **{f"_{name}": _checked(name) for name in (*INCREASING, *OTHERS)},
    "_square": lambda x: x * x,
    "_even": lambda x, n: x**n,
    "_odd": lambda x, n: x**n,
    "_inv": _point_div,
}


def _not_rational(*_):
    raise Undefined("not a rational number.")


def _exact_inv(x: fmpq) -> fmpq:
    if x == 0:
        raise Undefined("division by 0.")
    return 1 / x


EXACT = dict.fromkeys(WIDE, _not_rational) | {
    "_square": lambda x: x * x,
    "_even": lambda x, n: x**n,
    "_odd": lambda x, n: x**n,
    "_inv": _exact_inv,
    "_abs": abs,
    "_min": min,
    "_max": max,
}
