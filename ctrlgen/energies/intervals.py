"""Arrays of intervals with outward rounding, and the activations of networks over them.

An interval is a centre and a radius; each operation adds what the floats may have lost (`ctrlgen.energies.spectral`).
The activations come from tables of Taylor coefficients that python-flint encloses: no accuracy of the C library's or
NumPy's elementary functions is relied upon.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import factorial
from typing import Any

import numpy as np

from ctrlgen.energies.spectral import TINY, UNIT, gamma

CELLS = 32  # cells of the tables to a unit length
REACH = 40  # the tables end at ±REACH: see `_asymptote`
TAIL = 1e-15
ORDER = 5  # Taylor coefficients that are kept
ORDERS = (0, 1, 2)  # of the derivatives of an activation
SMOOTH = ("silu", "tanh", "softplus", "gelu")


@dataclass(frozen=True)
class Intervals:
    """An array of intervals [mid - rad, mid + rad].

    Args:
        mid, rad: of shapes that broadcast; rad >= 0.
    """

    mid: np.ndarray
    rad: np.ndarray

    @classmethod
    def exact(cls, value: Any) -> Intervals:
        """Floats, without error."""
        value = np.asarray(value, np.float64)
        return cls(value, np.zeros_like(value))

    @classmethod
    def between(cls, low: Any, high: Any) -> Intervals:
        """The intervals [low, high]."""
        low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
        known = np.isfinite(low) & np.isfinite(high)
        low, high = np.where(known, low, 0.0), np.where(known, high, 0.0)
        mid = np.where(low == high, low, low / 2 + high / 2)
        rad = np.where(low == high, 0.0, np.maximum(high - mid, mid - low) * (1 + 2 * UNIT) + TINY)
        return cls(mid, np.where(known, rad, np.inf))

    @property
    def low(self) -> np.ndarray:
        """Lower ends, rounded down."""
        return np.where(self.rad == 0, self.mid, np.nextafter(self.mid - self.rad, -np.inf))

    @property
    def high(self) -> np.ndarray:
        """Upper ends, rounded up."""
        return np.where(self.rad == 0, self.mid, np.nextafter(self.mid + self.rad, np.inf))

    @property
    def size(self) -> np.ndarray:
        """Upper bounds of the absolute values."""
        return np.where(self.rad == 0, np.abs(self.mid), np.nextafter(np.abs(self.mid) + self.rad, np.inf))

    def __getitem__(self, index: Any) -> Intervals:
        mid, rad = np.broadcast_arrays(self.mid, self.rad)
        return Intervals(mid[index], rad[index])

    def __neg__(self) -> Intervals:
        return Intervals(-self.mid, self.rad)

    def __add__(self, other: Intervals) -> Intervals:
        mid = self.mid + other.mid
        return Intervals(mid, (self.rad + other.rad + UNIT * np.abs(mid)) * (1 + 4 * UNIT) + TINY)

    def __sub__(self, other: Intervals) -> Intervals:
        return self + -other

    def __mul__(self, other: Intervals) -> Intervals:
        mid, a, b = self.mid * other.mid, np.abs(self.mid), np.abs(other.mid)
        rad = a * other.rad + self.rad * (b + other.rad) + UNIT * np.abs(mid)
        return Intervals(mid, rad * (1 + 8 * UNIT) + TINY)

    def __matmul__(self, other: Intervals) -> Intervals:
        """Matrix products over the last two axes."""
        a, b, loss = np.abs(self.mid), np.abs(other.mid), gamma(self.mid.shape[-1])
        rad = loss * (a @ b)
        if other.rad.any():
            rad = rad + (a @ other.rad) * (1 + loss)
        if self.rad.any():
            rad = rad + (self.rad @ (b + other.rad)) * (1 + loss)
        return Intervals(self.mid @ other.mid, rad * (1 + 8 * UNIT) + TINY)

    @property
    def mT(self) -> Intervals:
        """Transposed in the last two axes."""
        return Intervals(np.swapaxes(self.mid, -1, -2), np.swapaxes(self.rad, -1, -2))

    def meet(self, other: Intervals) -> Intervals:
        """The intersections; where it came out empty by rounding, the first."""
        low, high = np.fmax(self.low, other.low), np.fmin(self.high, other.high)
        empty = low > high
        return Intervals.between(np.where(empty, self.low, low), np.where(empty, self.high, high))

    def times(self, other: Intervals) -> Intervals:
        """The products from all pairs of ends: tighter than `*` on wide intervals."""
        ends = [np.multiply(s, t) for s in (self.low, self.high) for t in (other.low, other.high)]
        low, high = np.minimum.reduce(ends), np.maximum.reduce(ends)
        return Intervals.between(np.nextafter(low, -np.inf) - TINY, np.nextafter(high, np.inf) + TINY)


# Activations ----------------------------------------------------------------------------------------------------------


def formula(name: str, x: Any) -> Any:
    """An activation of a ball or of a power series of balls.

    JAX's gelu is the form with tanh, whose constants it rounds to the type of x: the balls hold both values.
    """
    from flint import arb

    if name == "silu":
        return x / (1 + (-x).exp())
    if name == "softplus":
        return (1 + x.exp()).log()
    if name == "tanh":
        return 1 - 2 / (1 + (2 * x).exp())
    root, cube = np.sqrt(2 / np.pi), 0.044715
    k = arb(float(root)).union(arb(float(np.float32(root))))
    c = arb(cube).union(arb(float(np.float32(cube))))
    return x / (1 + (-2 * k * (x + c * x * x * x)).exp())


def _asymptote(name: str, order: int, x: np.ndarray) -> np.ndarray:
    """What a derivative of an activation is within TAIL of, for |x| ≥ REACH = 40.

    All differ from it by at most (|x| + 3) e^{-|x|}, decreasing there and below 2e-16 at 40: for the sigmoid s, s(1-s)
    and |s''| ≤ s(1-s) this is silu = x s, silu' = s + x s(1-s), silu'' = s(1-s)(2 + x(1-2s)), softplus' = s; tanh x =
    2 s(2x) - 1; gelu is x s(v) with v ≥ 1.5x + x³/20, v' ≤ x², |v''| ≤ x: its tails hold e^{-3000} and less.
    """
    if order == 2 or (order == 1 and name == "tanh"):
        return np.zeros_like(x)
    if name == "tanh":
        return np.sign(x)
    return np.where(x > 0, x if order == 0 else 1.0, 0.0)


@dataclass(frozen=True)
class _Table:
    """One derivative f of an activation: f(x) = Σ cⱼ tʲ ± rest |t|^ORDER about the nodes, t = x - node."""

    name: str
    order: int
    coefficients: np.ndarray  # (nodes, ORDER)
    errors: np.ndarray  # (nodes, ORDER)
    rest: np.ndarray  # (nodes,)
    turns: tuple[tuple[float, float, float, float], ...]  # (from, to, least, largest): where f may turn

    def at(self, x: np.ndarray) -> Intervals:
        """f at floats."""
        k = np.clip(np.rint(np.clip(x, -REACH, REACH) * CELLS), -REACH * CELLS, REACH * CELLS)
        t, row = x - k / CELLS, (k + REACH * CELLS).astype(np.int64)
        inside = np.abs(x) <= REACH
        t = np.where(inside, t, 0.0)
        mid, bound, power, rad = np.zeros_like(t), np.zeros_like(t), np.ones_like(t), np.zeros_like(t)
        for j in range(ORDER - 1, -1, -1):
            mid = mid * t + self.coefficients[row, j]
            bound = bound * np.abs(t) + np.abs(self.coefficients[row, j])
        for j in range(ORDER):
            rad = rad + self.errors[row, j] * power
            power = power * np.abs(t)
        rad = (rad + self.rest[row] * power + gamma(2 * ORDER) * bound) * (1 + 32 * UNIT) + TINY
        far = _asymptote(self.name, self.order, x)
        return Intervals(np.where(inside, mid, far), np.where(inside, rad, TAIL))

    def over(self, x: Intervals) -> Intervals:
        """f on intervals: from its values at the ends, and at the turns inside."""
        low, high = x.low, x.high
        a, b = self.at(low), self.at(high)
        least, largest = np.minimum(a.low, b.low), np.maximum(a.high, b.high)
        for start, end, bottom, top in self.turns:
            met = (low <= end) & (high >= start)
            least = np.where(met, np.minimum(least, bottom), least)
            largest = np.where(met, np.maximum(largest, top), largest)
        return Intervals.between(least, largest)

    def everywhere(self) -> tuple[float, float]:
        """(inf, sup) of f over the real line, enclosed; order 1 or 2."""
        ends = self.at(np.array([-2.0 * REACH, 2.0 * REACH]))
        return (
            min([float(ends.low.min()), *(t[2] for t in self.turns)]),
            max([float(ends.high.max()), *(t[3] for t in self.turns)]),
        )


@cache
def tables(name: str) -> tuple[_Table, ...]:
    """The tables of an activation, its first and its second derivative."""
    from flint import arb, arb_series, ctx

    top, nodes, half = ORDERS[-1] + ORDER + 2, range(-REACH * CELLS, REACH * CELLS + 1), arb(1) / (2 * CELLS)
    old = ctx.cap
    ctx.cap = top
    try:
        with ctx.workprec(128):
            points = [_series(formula(name, arb_series([arb(k) / CELLS, 1])), top) for k in nodes]
            cells = [_series(formula(name, arb_series([arb(k) / CELLS + half * arb(0, 1), 1])), top) for k in nodes]
            return tuple(_table(name, order, points, cells, half) for order in ORDERS)
    finally:
        ctx.cap = old


def _series(series: Any, length: int) -> list[Any]:
    return [series[j] for j in range(length)]


def _table(name: str, order: int, points: list, cells: list, half: Any) -> _Table:
    from flint import arb

    scale = [factorial(order + j) // factorial(j) for j in range(ORDER + 1)]
    middle = np.array([[float((p[order + j] * scale[j]).mid()) for j in range(ORDER)] for p in points])
    errors = np.array(
        [
            [_above(abs(p[order + j] * scale[j] - float(m)).upper()) for j, m in enumerate(row)]
            for p, row in zip(points, middle, strict=True)
        ]
    )
    rest = np.array([_above((cell[order + ORDER] * scale[ORDER]).abs_upper()) for cell in cells])
    turns: list[tuple[float, float, float, float]] = []
    across = half * arb(0, 1)
    for i, (p, cell) in enumerate(zip(points, cells, strict=True)):
        slope, power = arb(0), arb(1)
        for j in range(1, ORDER + 1):  # of f' over the cell, by Taylor about its node
            slope += p[order + j] * (j * scale[j]) * power
            power *= across
        slope += cell[order + ORDER + 1] * ((ORDER + 1) * factorial(order + ORDER + 1) // factorial(ORDER + 1)) * power
        if slope > 0 or slope < 0:
            continue
        value, reach = p[order] * scale[0], slope.abs_upper() * half
        node = (i - REACH * CELLS) / CELLS
        new = (node - 0.5 / CELLS, node + 0.5 / CELLS, -_above(-(value - reach)), _above(value + reach))
        if turns and turns[-1][1] == new[0]:
            last = turns.pop()
            new = (last[0], new[1], min(last[2], new[2]), max(last[3], new[3]))
        turns.append(new)
    return _Table(name, order, middle, errors, rest, tuple(turns))


def _above(ball: Any) -> float:
    return float(np.nextafter(float(ball.upper()), np.inf))


def derivatives(name: str, x: Intervals) -> tuple[Intervals, Intervals, Intervals | None]:
    """An activation, its first and its second derivative on intervals; no second one where it has a kink."""
    if name == "relu":
        low, high = x.low, x.high
        slope = Intervals.between(np.where(low > 0, 1.0, 0.0), np.where(high < 0, 0.0, 1.0))
        return Intervals.between(np.maximum(low, 0), np.maximum(high, 0)), slope, None
    value, slope, curvature = (table.over(x) for table in tables(name))
    return value, slope, curvature


def enclose(function: Callable, x: Intervals) -> Intervals:
    """A function of one ball, over intervals, entry by entry."""
    from flint import arb

    mid, rad = np.broadcast_arrays(x.mid, x.rad)
    found = [function(arb(float(m), float(r))) for m, r in zip(mid.ravel(), rad.ravel(), strict=True)]
    low = np.array([-_above(-v) for v in found]).reshape(mid.shape)
    return Intervals.between(low, np.array([_above(v) for v in found]).reshape(mid.shape))
