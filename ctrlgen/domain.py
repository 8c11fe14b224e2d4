"""Sets of states: boxes, balls, sublevel sets, and what &, | and ~ make of them.

A set is closed, and exact: its numbers are rationals or SymPy constants, floats being read as the decimals that they
print as. A certificate asks a set for its pieces, each of them {guards ≥ 0}; samples and membership are float64.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import sympy as sp

from ctrlgen import field
from ctrlgen.continuity import everywhere

Bounds = tuple[tuple[Any, Any], ...]  # one (lower, upper) a state: rational, or None where there is no bound
TRIES = 200_000  # rejection sampling gives up after so many tries without a hit
SPREAD = (0.1, 100.0)  # scales of the Gaussian that stands for an unbounded side


@dataclass(frozen=True)
class Piece:
    """One basic closed set {x: every guard ≥ 0}.

    Args:
        guards: exact SymPy formulas of the states.
        box: one (lower, upper) a state that encloses the set, rational, None where there is no bound.
    """

    guards: tuple[sp.Expr, ...]
    box: Bounds


class Domain:
    """A closed set of states. `a & b` is the intersection, `a | b` the union, `~a` the closed complement."""

    @property
    def dim(self) -> int:
        """d, the number of coordinates that the set speaks of."""
        raise NotImplementedError

    @property
    def names(self) -> tuple[sp.Symbol, ...] | None:
        """The states that the set itself names, or None where its coordinates are known by position only."""
        return None

    def pieces(self, states: Sequence[str | sp.Symbol]) -> tuple[Piece, ...]:
        """The basic sets whose union this is; none for a set whose boxes show that it is empty.

        Raises:
            ValueError: the set is of another dimension, or names variables that are not among the states.
        """
        raise NotImplementedError

    def _piece(self, states: Sequence[str | sp.Symbol]) -> Piece:
        pieces = self.pieces(states)
        if len(pieces) != 1:
            what = "empty" if not pieces else f"a union of {len(pieces)} pieces"
            raise ValueError(f"the domain {self!r} is {what}, so it has no one list of guards. Use pieces(states).")
        return pieces[0]

    def guards(self, states: Sequence[str | sp.Symbol]) -> tuple[sp.Expr, ...]:
        """Exact formulas that are all ≥ 0 on the set and nowhere else.

        Raises:
            ValueError: the set is a union of several pieces.
        """
        return self._piece(states).guards

    def box(self, states: Sequence[str | sp.Symbol]) -> Bounds:
        """One rational (lower, upper) a state that encloses the set, None where unbounded.

        Raises:
            ValueError: the set is a union of several pieces.
        """
        return self._piece(states).box

    def __and__(self, other: Domain) -> Domain:
        return Intersection(self, other) if isinstance(other, Domain) else NotImplemented

    def __or__(self, other: Domain) -> Domain:
        return Union(self, other) if isinstance(other, Domain) else NotImplemented

    def __invert__(self) -> Domain:
        return Complement(self)

    def _states(self, states: Sequence[str | sp.Symbol] | None) -> tuple[sp.Symbol, ...]:
        if states is not None:
            return field.symbols(states)
        return self.names or tuple(sp.Symbol(f"x{i + 1}", real=True) for i in range(self.dim))

    def contains(self, x: Any, states: Sequence[str | sp.Symbol] | None = None) -> Any:
        """Is x in the closed set, in float64? x (d,) -> bool, x (n, d) -> (n,) bool.

        Args:
            x: the points, in the order of `states`.
            states: needed only where sets of different variables were combined.
        """
        names = self._states(states)
        x = _points(x, len(names))
        inside = np.zeros(x.shape[:-1], dtype=bool)
        for piece in self.pieces(names):
            worst = _numeric(piece.guards, names)(np.moveaxis(x, -1, 0))
            inside |= (worst >= 0).all(axis=0)
        return bool(inside) if inside.ndim == 0 else inside

    def sample(self, rng: np.random.Generator, n: int, states: Sequence[str | sp.Symbol] | None = None) -> np.ndarray:
        """n points of the set, (n, d): uniform where it is bounded, from a wide Gaussian restricted to it otherwise.

        Raises:
            ValueError: no point was found; the set appears to be empty, or its volume is tiny.
        """
        names = self._states(states)
        pieces = self.pieces(names)
        box = _hull([p.box for p in pieces], len(names))
        tests = [_numeric(p.guards, names) for p in pieces]
        found: list[np.ndarray] = []
        count = tries = 0
        while count < n and tries < TRIES * (1 + 10 * (count > 0)):
            x = draw(rng, box, max(4 * n, 1000))
            tries += len(x)
            inside = np.zeros(len(x), dtype=bool)
            for test in tests:
                inside |= (test(x.T) >= 0).all(axis=0)
            found.append(x[inside])
            count += int(inside.sum())
        if count < n:
            what = "appears to be empty" if count == 0 else "is too thin to sample"
            fell = "none" if count == 0 else f"only {count}"
            raise ValueError(f"the domain {self!r} {what}: {fell} of {tries} tries fell inside. Check its bounds.")
        return np.concatenate(found)[:n] if found else np.empty((0, len(names)))

    def nonempty(self, states: Sequence[str | sp.Symbol], volume: bool = False) -> tuple[Any, ...]:
        """A rational point of the set, checked exactly.

        Args:
            states: the certificate's states.
            volume: ask for an interior point, with every guard > 0.

        Raises:
            ValueError: no such point was found.
        """
        names = field.symbols(states)
        pieces = self.pieces(names)
        touching = None
        for piece in pieces:
            for point in _candidates(piece, names):
                least = _exact_sign(piece.guards, names, point)
                if least > 0 or (least == 0 and not volume):
                    return point
                touching = point if least == 0 else touching
        if touching is not None:
            raise ValueError(
                f"the domain {self!r} seems to have no interior: {touching} lies in it, and no point was found with "
                "room around it. A set of positive volume is needed here; check its level or bounds."
            )
        raise ValueError(f"the domain {self!r} appears to be empty: no point of it was found. Check its bounds.")

    def interior_point(self, states: Sequence[str | sp.Symbol]) -> tuple[Any, ...]:
        """A rational point at which every guard is > 0, checked exactly.

        Raises:
            ValueError: none was found; the set appears to be empty, or to have no volume.
        """
        return self.nonempty(states, volume=True)


@dataclass(frozen=True, init=False, repr=False)
class Box(Domain):
    """The box {lower ≤ x ≤ upper}.

    Args:
        lower, upper: d numbers each; -inf and inf where a side is open.

    Raises:
        ValueError: the lengths differ, or a lower bound is not below its upper one.
    """

    lower: tuple[sp.Expr, ...]
    upper: tuple[sp.Expr, ...]

    def __init__(self, lower: Any, upper: Any):
        low, high = _vector("lower", lower, infinite=True), _vector("upper", upper, infinite=True)
        if len(low) != len(high):
            raise ValueError(f"lower and upper must be of one length; got {len(low)} and {len(high)}.")
        for i, (a, b) in enumerate(zip(low, high, strict=True)):
            if a is sp.oo or b is -sp.oo or (a.is_finite and b.is_finite and _sign(b - a) <= 0):
                swapped = "swap them" if a != b else "a side of length zero gives the box zero volume"
                raise ValueError(
                    f"lower must be below upper in every coordinate; coordinate {i} has lower {a} and upper {b}. "
                    f"Swapped or equal bounds are a known mistake, often a slip of a sign: {swapped}."
                )
        object.__setattr__(self, "lower", low)
        object.__setattr__(self, "upper", high)

    def __repr__(self) -> str:
        return f"Box({list(self.lower)}, {list(self.upper)})"

    @property
    def dim(self) -> int:
        return len(self.lower)

    def pieces(self, states: Sequence[str | sp.Symbol]) -> tuple[Piece, ...]:
        """One piece: a guard (u - x)(x - l) a finite side pair, a linear guard a half-infinite one."""
        names = _positional(self, states)
        guards, box = [], []
        for x, low, high in zip(names, self.lower, self.upper, strict=True):
            factors = ([high - x] if high.is_finite else []) + ([x - low] if low.is_finite else [])
            if factors:
                guards.append(sp.Mul(*factors))
            box.append((_outward(low, -1) if low.is_finite else None, _outward(high, 1) if high.is_finite else None))
        return (Piece(tuple(guards), tuple(box)),)

    def __invert__(self) -> Domain:
        sides: list[Domain] = []
        for i, (low, high) in enumerate(zip(self.lower, self.upper, strict=True)):
            bottom, top = [-sp.oo] * self.dim, [sp.oo] * self.dim
            if low.is_finite:
                sides.append(Box(bottom, [*top[:i], low, *top[i + 1 :]]))
            if high.is_finite:
                sides.append(Box([*bottom[:i], high, *bottom[i + 1 :]], top))
        if not sides:
            raise ValueError(f"the complement of {self!r} is empty: the box is the whole space.")
        return sides[0] if len(sides) == 1 else Union(*sides)


@dataclass(frozen=True, init=False, repr=False)
class Ball(Domain):
    """The Euclidean ball {|x - center| ≤ radius}.

    Args:
        center: d numbers.
        radius: positive.

    Raises:
        ValueError: the radius is not positive and finite, or the centre is not finite.
    """

    center: tuple[sp.Expr, ...]
    radius: sp.Expr

    def __init__(self, center: Any, radius: Any):
        r = exact("radius", radius)
        if _sign(r) <= 0:
            raise ValueError(f"radius must be positive; got {radius}. A ball of radius 0 has no volume.")
        object.__setattr__(self, "center", _vector("center", center))
        object.__setattr__(self, "radius", r)

    def __repr__(self) -> str:
        return f"Ball({list(self.center)}, {self.radius})"

    @property
    def dim(self) -> int:
        return len(self.center)

    def pieces(self, states: Sequence[str | sp.Symbol]) -> tuple[Piece, ...]:
        """One piece, with the guard r² - |x - c|²."""
        names = _positional(self, states)
        guard = self.radius**2 - sp.Add(*((x - c) ** 2 for x, c in zip(names, self.center, strict=True)))
        box = tuple((_outward(c - self.radius, -1), _outward(c + self.radius, 1)) for c in self.center)
        return (Piece((guard,), box),)

    def sample(self, rng: np.random.Generator, n: int, states: Sequence[str | sp.Symbol] | None = None) -> np.ndarray:
        """n points, uniform in the ball, (n, d)."""
        direction = rng.normal(size=(n, self.dim))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        radius = float(self.radius) * rng.uniform(size=(n, 1)) ** (1 / self.dim)
        return _floats(self.center) + radius * direction


@dataclass(frozen=True, init=False, repr=False)
class Sublevel(Domain):
    """The set {expr ≤ level}.

    Args:
        expr: SymPy expression or string of the states.
        states: the states that expr is written in. A certificate finds its own states by these names.
        level: a number.

    Raises:
        ValueError: expr is not a real formula of the states, or level is not a finite number.
    """

    expr: sp.Expr
    states: tuple[sp.Symbol, ...]
    level: sp.Expr

    def __init__(self, expr: Any, states: Sequence[str | sp.Symbol], level: Any = 0):
        formula = field.Field(expr, states)
        if formula.expr is None:
            raise ValueError("expr must be a formula; got a function without one. Pass a SymPy expression or a string.")
        object.__setattr__(self, "expr", field.rationalise(formula.expr))
        object.__setattr__(self, "states", formula.states)
        object.__setattr__(self, "level", exact("level", level))

    def __repr__(self) -> str:
        return f"Sublevel({self.expr} ≤ {self.level})"

    @property
    def dim(self) -> int:
        return len(self.states)

    @property
    def names(self) -> tuple[sp.Symbol, ...] | None:
        """The states that expr is written in."""
        return self.states

    def pieces(self, states: Sequence[str | sp.Symbol]) -> tuple[Piece, ...]:
        """One piece, with the guard level - expr. The box is that of an ellipsoid around it, where one is seen."""
        names = field.symbols(states)
        by_name = {s.name: s for s in names}
        missing = [s.name for s in self.states if s.name not in by_name]
        if missing:
            raise ValueError(
                f"the domain {self!r} is written in {[s.name for s in self.states]}, and {missing} is not among the "
                f"states {list(by_name)}. Write it in the states of the certificate."
            )
        swap = {s: by_name[s.name] for s in self.states}
        bounds = {swap[s]: b for s, b in self._bounds.items()}
        guard = self.level - self.expr.xreplace(swap)
        return (Piece((guard,), tuple(bounds.get(s, (None, None)) for s in names)),)

    @cached_property
    def _bounds(self) -> dict[sp.Symbol, tuple[Any, Any]]:
        return _ellipsoid(self.expr - self.level, self.states)

    def __invert__(self) -> Domain:
        if not everywhere([self.expr]):
            raise ValueError(
                f"the complement of {self!r} must be written out: where its formula is undefined or jumps, neither it "
                "nor its negative holds. Use a formula that is continuous everywhere."
            )
        return Sublevel(-self.expr, self.states, -self.level)


@dataclass(frozen=True, init=False, repr=False)
class _Combined(Domain):
    """Several sets at once."""

    parts: tuple[Domain, ...]

    def __init__(self, *parts: Domain):
        for part in parts:
            if not isinstance(part, Domain):
                raise ValueError(f"parts must be domains; got {type(part).__name__}.")
        if not parts:
            raise ValueError("parts must be at least one domain; got none.")
        flat = itertools.chain(*(p.parts if type(p) is type(self) else (p,) for p in parts))
        object.__setattr__(self, "parts", tuple(flat))
        positional = {p.dim for p in self.parts if p.names is None}
        if len(positional) > 1:
            raise ValueError(f"domains that are combined must be of one dimension; got {sorted(positional)}.")

    @property
    def dim(self) -> int:
        return max(p.dim for p in self.parts)

    @property
    def names(self) -> tuple[sp.Symbol, ...] | None:
        """The states of the part that names most of them."""
        named = [p.names for p in self.parts if p.names is not None]
        most = max(named, key=len, default=None)
        if most is not None and len(most) < self.dim:
            raise ValueError(f"the domain {self!r} names only {[s.name for s in most]}; pass states=, all {self.dim}.")
        return most

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.parts))})"


class Intersection(_Combined):
    """The points that are in every part."""

    def pieces(self, states: Sequence[str | sp.Symbol]) -> tuple[Piece, ...]:
        """Every choice of one piece a part; choices whose boxes do not meet are left out."""
        out = []
        for choice in itertools.product(*(p.pieces(states) for p in self.parts)):
            box = []
            for sides in zip(*(c.box for c in choice), strict=True):
                low = max((a for a, _ in sides if a is not None), default=None)
                high = min((b for _, b in sides if b is not None), default=None)
                box.append((low, high))
            if all(low is None or high is None or low <= high for low, high in box):
                guards = tuple(dict.fromkeys(itertools.chain(*(c.guards for c in choice))))
                out.append(Piece(guards, tuple(box)))
        return tuple(out)

    def __invert__(self) -> Domain:
        return Union(*(~p for p in self.parts))


class Union(_Combined):
    """The points that are in some part."""

    def pieces(self, states: Sequence[str | sp.Symbol]) -> tuple[Piece, ...]:
        """The pieces of every part."""
        return tuple(itertools.chain(*(p.pieces(states) for p in self.parts)))

    def __invert__(self) -> Domain:
        return Intersection(*(~p for p in self.parts))


@dataclass(frozen=True, repr=False)
class Complement(Domain):
    """The closed complement of a set of one guard, such as a ball: {guard ≤ 0}."""

    part: Domain

    def __repr__(self) -> str:
        return f"~{self.part!r}"

    @property
    def dim(self) -> int:
        return self.part.dim

    def pieces(self, states: Sequence[str | sp.Symbol]) -> tuple[Piece, ...]:
        """One piece, with the guard turned round and no box."""
        names = field.symbols(states)
        return tuple(Piece((-g,), ((None, None),) * len(names)) for g in self.part.guards(names))

    def __invert__(self) -> Domain:
        return self.part


def exact(name: str, value: Any, infinite: bool = False) -> sp.Expr:
    """A number as SymPy holds it exactly: floats become the decimals that they print as.

    Raises:
        ValueError: it is not a real number, or not finite where it has to be.
    """
    if isinstance(value, str):
        value = field.parse(value, ())
    if isinstance(value, (float, np.floating)):
        number = sp.Rational(str(value)) if math.isfinite(value) else sp.sympify(float(value))
    else:
        try:
            number = sp.sympify(value.item() if isinstance(value, np.generic) else value, strict=True)
        except (sp.SympifyError, ValueError, AttributeError):
            number = sp.nan
        number = field.rationalise(number) if isinstance(number, sp.Expr) and number.has(sp.Float) else number
    bad = not isinstance(number, sp.Expr) or number.free_symbols or not number.is_extended_real or number is sp.nan
    if isinstance(value, (bool, np.bool_)) or bad or (not number.is_finite and not infinite):
        raise ValueError(f"{name} must be {'a' if infinite else 'a finite'} real number; got {value!r}.")
    return number


def _vector(name: str, values: Any, infinite: bool = False) -> tuple[sp.Expr, ...]:
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        raise ValueError(f"{name} must be a list of numbers, one a coordinate; got {values!r}.")
    out = tuple(exact(f"{name}[{i}]", v, infinite) for i, v in enumerate(values))
    if not out:
        raise ValueError(f"{name} must have at least one coordinate; got none.")
    return out


def _positional(domain: Domain, states: Sequence[str | sp.Symbol]) -> tuple[sp.Symbol, ...]:
    names = field.symbols(states)
    if len(names) != domain.dim:
        raise ValueError(
            f"the domain {domain!r} has {domain.dim} coordinates; the states are {[s.name for s in names]}. "
            "Give it one coordinate a state, with inf where nothing is asked."
        )
    return names


def _points(x: Any, dim: int) -> np.ndarray:
    out = np.asarray(x, dtype=np.float64)
    if out.ndim not in {1, 2} or out.shape[-1] != dim:
        raise ValueError(f"x must be ({dim},) or (n, {dim}); got shape {out.shape}.")
    return out


def _floats(numbers: Sequence[sp.Expr]) -> np.ndarray:
    return np.array([float(v) for v in numbers])


def _sign(number: Any) -> int:
    """Sign of a constant."""
    if number.is_Rational:
        return int(sp.sign(number))
    value = sp.N(number, 40)
    return 0 if abs(value) < sp.Float("1e-35") else int(sp.sign(value))


def _outward(number: Any, direction: int) -> Any:
    """A rational on the far side of a constant: the constant itself when it is rational."""
    if number.is_Rational:
        return number
    scale = sp.Integer(10) ** 20
    return (sp.floor(number * scale) + (direction > 0)) / scale


def _root_above(value: Any) -> Any:
    """A rational that is at least √value, and equal to it where the root is rational; 20 digits otherwise."""
    p, q = int(value.p), int(value.q)
    if math.isqrt(p) ** 2 == p and math.isqrt(q) ** 2 == q:
        return sp.Rational(math.isqrt(p), math.isqrt(q))
    scale = 10**20
    return sp.Rational(math.isqrt(p * q * scale * scale) + 1, q * scale)


def _ellipsoid(expr: Any, states: Sequence[sp.Symbol]) -> dict[sp.Symbol, tuple[Any, Any]]:
    """Rational bounds of {expr ≤ 0} for a polynomial that is a definite quadratic plus even powers; else nothing."""
    occurring = [s for s in states if expr.has(s)]
    poly = expr.as_poly(*occurring) if occurring and expr.is_polynomial(*occurring) else None
    if poly is None or not all(c.is_Rational for c in poly.coeffs()):
        return {}
    # even monomials with positive coefficients are ≥ 0: without them the set only grows
    low = [(m, c) for m, c in poly.terms() if sum(m) <= 2 or c <= 0 or any(e % 2 for e in m)]
    if any(sum(m) > 2 for m, _ in low):
        return {}
    used = [i for i in range(len(occurring)) if any(m[i] for m, _ in low)]
    a, b, c = sp.zeros(len(used)), sp.zeros(len(used), 1), sp.S.Zero
    for m, value in low:
        index = [k for k, i in enumerate(used) for _ in range(m[i])]
        if not index:
            c = value
        elif len(index) == 1:
            b[index[0]] = value
        else:
            a[index[0], index[1]] += value / 2
            a[index[1], index[0]] += value / 2
    if used and not a.is_positive_definite:
        return {}
    inverse = a.inv() if used else a
    centre = -inverse * b / 2
    room = (b.T * inverse * b)[0, 0] / 4 - c if used else -c
    if room < 0:
        return {}
    half = [_root_above(room * inverse[k, k]) for k in range(len(used))]
    bounds = {occurring[i]: (centre[k] - half[k], centre[k] + half[k]) for k, i in enumerate(used)}
    for i, s in enumerate(occurring):  # c·s^2k alone: at most what the quadratic leaves
        for m, value in poly.terms() if s not in bounds else ():
            if m[i] == sum(m) and m[i] % 2 == 0 and value > 0:
                high = max(sp.S.One, room / value)  # s^2k ≤ high implies |s| ≤ √high, as high ≥ 1
                bounds[s] = (-_root_above(high), _root_above(high))
    return bounds


def _numeric(exprs: Sequence[Any], states: Sequence[sp.Symbol]) -> Callable[[np.ndarray], np.ndarray]:
    """The formulas in NumPy: (d, ...) -> (m, ...); where one is undefined it is NaN, which is not ≥ 0."""
    function = sp.lambdify([list(states)], list(exprs), modules=["scipy", "numpy"], cse=True)

    def evaluate(x: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            values = [np.broadcast_to(np.asarray(v), x.shape[1:]) for v in function(x)]
        return np.stack([np.where(np.isreal(v), np.real(v), np.nan) for v in values]) if values else x[:0]

    return evaluate


def _hull(boxes: Sequence[Bounds], dim: int) -> Bounds:
    """The smallest box around several."""
    out = []
    for i in range(dim):
        lows, highs = [b[i][0] for b in boxes], [b[i][1] for b in boxes]
        low = None if None in lows else min(lows, default=None)
        high = None if None in highs else max(highs, default=None)
        out.append((low, high))
    return tuple(out)


def draw(rng: np.random.Generator, box: Bounds, n: int) -> np.ndarray:
    """n points of a box, (n, d): uniform on finite sides, a Gaussian of log-uniform width on the others."""
    width = np.exp(rng.uniform(*np.log(SPREAD), size=(n, 1)))
    out = width * rng.normal(size=(n, len(box)))
    for i, (low, high) in enumerate(box):
        if low is not None and high is not None:
            out[:, i] = rng.uniform(float(low), float(high), size=n)
        elif low is not None:
            out[:, i] = float(low) + np.abs(out[:, i])
        elif high is not None:
            out[:, i] = float(high) - np.abs(out[:, i])
    return out


def _exact_sign(guards: Sequence[Any], states: Sequence[sp.Symbol], point: Sequence[Any]) -> int:
    """The least sign of the guards at a rational point; -1 where one is undefined."""
    least = 1
    at: Any = dict(zip(states, point, strict=True))
    for guard in guards:
        # exact where the guard is rational, else to 40 digits: an exact power of two long rationals fills the memory
        value = guard.subs(at) if guard.is_rational_function(*states) else guard.evalf(40, subs=at)
        least = min(least, _sign(value) if value.is_real else -1)
        if least < 0:
            break
    return least


def _candidates(piece: Piece, states: Sequence[sp.Symbol]):
    """Rational points that may lie in a piece, likely ones first."""
    centre = [
        (low + high) / 2 if low is not None and high is not None else low + 1 if low is not None else
        high - 1 if high is not None else sp.S.Zero
        for low, high in piece.box
    ]  # fmt: skip
    yield tuple(centre)
    guards = _numeric(piece.guards, states)
    rng = np.random.default_rng(0)
    middle = np.array([float(c) for c in centre])
    x = np.concatenate([middle[None], np.zeros((1, len(states))), draw(rng, piece.box, 2000)])
    values = guards(x.T)
    scale = np.maximum(1e-300, np.nanmedian(np.abs(values), axis=1, keepdims=True))
    worst = np.nan_to_num(np.min(values / scale, axis=0), nan=-np.inf)
    order = np.argsort(-worst)
    yield from _rationals(x[order[0]])
    from scipy.optimize import minimize

    gradients = _numeric([g.diff(s) for g in piece.guards for s in states], states)

    def room(z):
        return np.nan_to_num(guards(z[:-1])[:, None] / scale, nan=-1e9)[:, 0] - z[-1]

    def slope(z):
        by_state = np.nan_to_num(gradients(z[:-1]).reshape(len(piece.guards), -1) / scale)
        return np.hstack([by_state, -np.ones((len(by_state), 1))])

    direction = np.append(np.zeros(len(states)), -1.0)
    for start in order[:8]:
        solution = minimize(
            lambda z: -z[-1],
            np.append(x[start], max(worst[start], -1e6)),
            jac=lambda z: direction,
            constraints={"type": "ineq", "fun": room, "jac": slope},
            bounds=[(None, None)] * len(states) + [(None, 1.0)],
            method="SLSQP",
            options={"maxiter": 200},
        )
        if np.isfinite(solution.x).all():
            yield from _rationals(solution.x[:-1])


def _rationals(x: np.ndarray):
    """The simple rationals near a float point, then the point itself."""
    for limit in (1, 10, 1000, 10**6):
        yield tuple(sp.Rational(Fraction(float(v)).limit_denominator(limit)) for v in x)
    yield tuple(sp.Rational(Fraction(float(v))) for v in x)
