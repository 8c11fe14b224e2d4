"""Closes the hole at an equilibrium: p(x*) = 0, and p > 0 on the rest of a box around x*.

Branch and bound cannot do this, since every box around x* keeps p = 0 inside. Two arguments can. Both need p(x*) = 0
and ∇p(x*) = 0 exactly.

Quadratic: p(x* + y) = ½ yᵀ ∇²p(ξ) y, so a Hessian enclosure that is ≻ 0 on a box around x* proves p > 0 there.

Quasi-homogeneous, for a Hessian that is only ⪰ 0, as of 2x⁴ + 2y²: in coordinates z that split the Hessian's kernel
from the rest, let wᵢ be integer weights and m the lowest weighted degree w·α of p's Taylor terms. With zᵢ = δ^{wᵢ} ξᵢ,
the quotient q(δ, ξ) = p/δᵐ is a polynomial in δ and ξ (its terms of the highest degree K have as coefficients the
enclosures of ∂^α p/α! on the whole box, by Lagrange's remainder), and q > 0 for 0 ≤ δ ≤ δ₀ and max|ξᵢ| = 1 is a claim
on 2d faces without a hole. When terms of a lower weight remain, the coordinates are bent, z_r → z_r - φ(z_kernel),
until none do: the splitting lemma of singularity theory, to the order that is needed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import sympy as sp
from flint import arb, fmpq

from ctrlgen.prove.balls import Compiled, Undefined, Unsupported, positive_definite, rational, to_sympy
from ctrlgen.prove.boxes import Formula, Frame, Scalar, branch
from ctrlgen.prove.claim import Deadline

MOST_DEGREE = 7
MOST_STATES = 6
FACE_BOXES = 4000
QUADRATIC_STEPS = 21
FACE_STEPS = 13
BENDS = 4


@dataclass(frozen=True)
class Closure:
    """The box on which p > 0 except at its centre, and by which argument; or, when `failed`, why there is none."""

    text: str
    low: tuple[fmpq, ...] = ()
    high: tuple[fmpq, ...] = ()
    failed: bool = field(default=False)


def _failure(text: str) -> Closure:
    return Closure(text, failed=True)


def close(
    expr: sp.Expr, states: Sequence[sp.Symbol], centre: Sequence[fmpq], half: Sequence[fmpq], deadline: Deadline
) -> Closure:
    """Find a box around the centre on which expr > 0 except at the centre, where it is 0.

    Args:
        expr: a formula with exact numbers.
        states: d symbols.
        centre: x*, d rationals.
        half: half the widths of the box of interest, d rationals: the scale on which to look.
        deadline: when to stop.
    """
    at: dict = {s: to_sympy(c) for s, c in zip(states, centre, strict=True)}
    half = tuple(h or fmpq(1) for h in half)
    try:
        code = Compiled([expr], states)
        for part in (code, code.derivative()):
            if part is None:
                return _failure("it is not differentiable by formula.")
            part.at(centre, 64)  # where an exact value may not exist, substitution is not asked for one
        if not vanishes(expr.subs(at)):
            return _failure("the left-hand side is not exactly 0 at the equilibrium.")
        if not all(vanishes(sp.diff(expr, s).subs(at)) for s in states):
            return _failure("its gradient is not exactly 0 at the equilibrium.")
        if expr.is_polynomial(*states) or not expr.is_rational_function(*states):
            return _by_either(expr, states, centre, half, deadline)
        return _fraction(expr, states, centre, half, deadline)
    except (Unsupported, Undefined) as error:
        return _failure(str(error))


def _by_either(expr, states, centre, half, deadline: Deadline) -> Closure:
    quadratic = _quadratic(expr, states, centre, half)
    return _quasi_homogeneous(expr, states, centre, half, deadline) if quadratic.failed else quadratic


def _fraction(expr, states, centre, half, deadline: Deadline) -> Closure:
    """A quotient of polynomials has its numerator's sign where its denominator is positive."""
    above, below = sp.fraction(sp.together(expr))
    sign = Compiled([below], states).signs(centre)[0]
    if not sign:
        return _failure("its denominator may be 0 at the equilibrium.")
    closure = _by_either(sp.expand(sign * above), states, centre, half, deadline)
    parts = Compiled([sign * below, expr], states)
    for _ in range(QUADRATIC_STEPS):
        if closure.failed:
            return closure
        try:
            if parts.wide(*(arb(a).union(arb(b)) for a, b in zip(closure.low, closure.high, strict=True)))[0] > 0:
                return closure
        except Undefined:
            pass
        low = tuple((a + c) / 2 for a, c in zip(closure.low, centre, strict=True))
        high = tuple((b + c) / 2 for b, c in zip(closure.high, centre, strict=True))
        closure = replace(closure, low=low, high=high)
    return _failure("its denominator was positive on no box that was tried.")


def vanishes(value: sp.Expr) -> bool:
    """Is a constant exactly 0? False also when that could not be shown."""
    value = sp.sympify(value)
    if isinstance(value, sp.Rational):
        return value == 0
    if value.free_symbols or value.has(sp.nan, sp.zoo, sp.oo, -sp.oo):
        return False
    try:
        if not (Compiled([value], []).at([], 128)[0].contains(0)):
            return False
    except (Undefined, Unsupported):
        return False
    return sp.simplify(value) == 0


def _quadratic(expr, states, centre, half) -> Closure:
    code = Compiled([expr], states)
    slope, hessian = code.derivative(), code.derivative(2)
    if slope is None or hessian is None:
        return _failure("it is not twice differentiable by formula.")
    d = len(states)
    pairs = [(i, j) for i in range(d) for j in range(i, d)]

    def convex(x: Sequence[arb]) -> bool:
        matrix = [[arb(0)] * d for _ in range(d)]
        try:
            _, _, values = code.wide(*x), slope.wide(*x), hessian.wide(*x)
        except Undefined:
            return False
        for (i, j), value in zip(pairs, values, strict=True):
            matrix[i][j] = matrix[j][i] = value
        return positive_definite(matrix)

    if not convex([arb(c) for c in centre]):
        return _failure("the Hessian at the equilibrium is not positive definite.")
    for k in range(QUADRATIC_STEPS):
        radii = [h / 2**k for h in half]
        low = tuple(c - r for c, r in zip(centre, radii, strict=True))
        high = tuple(c + r for c, r in zip(centre, radii, strict=True))
        if convex([arb(a).union(arb(b)) for a, b in zip(low, high, strict=True)]):
            size = "the whole box" if k == 0 else f"2^-{k} of the box"
            return Closure(f"the Hessian is positive definite ({size})", low, high)
    return _failure("the Hessian's enclosure is positive definite on no box that was tried.")


@dataclass
class _Chart:
    """Coordinates z around x*: x = x* + scale · (T z'), z' = z but for z'_r = z_r - φ_r(z_kernel)."""

    z: tuple[sp.Symbol, ...]
    scale: Sequence[sp.Expr]
    linear: sp.Matrix
    rank: int
    bend: dict[int, sp.Expr]

    def images(self) -> list[sp.Expr]:
        """x - x* as formulas of z."""
        inner = [z - self.bend.get(i, 0) for i, z in enumerate(self.z)]
        flat = self.linear * sp.Matrix(inner)
        return [s * e for s, e in zip(self.scale, flat, strict=True)]

    def box(self, reach: Sequence[fmpq]) -> list[fmpq] | None:
        """Half widths of a box around x* inside {|zᵢ| ≤ reachᵢ}; None when none was found."""
        inverse = self.linear.inv()
        d = len(self.z)
        count = [sum(1 for i in range(d) if inverse[j, i]) for j in range(d)]
        radii = [
            min(reach[j] / (count[j] * abs(rational(inverse[j, i]))) for j in range(d) if inverse[j, i])
            for i in range(d)
        ]
        bend = None
        if self.bend:
            bend = Compiled([self.bend.get(i, sp.S.Zero) for i in range(d)], self.z)
        for k in range(40):
            tried = [r / 2**k for r in radii]
            ends = [sum(abs(rational(inverse[j, i])) * tried[i] for i in range(d)) for j in range(d)]
            if bend is None:
                inside = all(e <= r for e, r in zip(ends, reach, strict=True))
            else:
                flat = [arb(0, 1) * arb(e) for e in ends]
                inside = all(abs(u + v) <= arb(r) for u, v, r in zip(flat, bend.wide(*flat), reach, strict=True))
            if inside:
                return [rational(s) * r for s, r in zip(self.scale, tried, strict=True)]
        return None


def _chart(expr, states, at, half) -> _Chart | None:
    """Scaled coordinates in which the Hessian's kernel is spanned by the last axes; None when it is not rational."""
    d = len(states)
    scale = [sp.Integer(2) ** round(math.log2(float(h))) for h in half]
    hessian = sp.Matrix(d, d, lambda i, j: sp.diff(expr, states[i], states[j]).subs(at) * scale[i] * scale[j])
    hessian = hessian.applyfunc(lambda e: sp.S.Zero if vanishes(e) else e)
    if not all(isinstance(e, sp.Rational) for e in hessian):
        return None
    _, pivots = hessian.rref()
    kernel = hessian.nullspace()
    columns = [sp.Matrix([int(i == p) for i in range(d)]) for p in pivots] + [k * _denominator(k) for k in kernel]
    z = tuple(sp.Symbol(f"z{i}", real=True) for i in range(d))
    return _Chart(z, scale, sp.Matrix.hstack(*columns), len(pivots), {})


def _denominator(vector: Any) -> int:
    return math.lcm(1, *(int(e.q) for e in vector))


def _taylor(expr, z, degree: int) -> dict[tuple[int, ...], sp.Expr]:
    """Exact Taylor coefficients at 0 of all total degrees ≤ degree; zeros are left out."""
    if expr.is_polynomial(*z):
        return dict(sp.Poly(expr, *z).terms())
    zero = dict.fromkeys(z, sp.S.Zero)
    layer, out = {(0,) * len(z): expr}, {}
    for n in range(degree + 1):
        Compiled(list(layer.values()), z).at([fmpq(0)] * len(z), 64)  # defined at 0, or no closure
        for alpha, part in layer.items():
            value = part.subs(zero)
            if not isinstance(value, sp.Rational) and vanishes(value):
                value = sp.S.Zero
            if value != 0:
                out[alpha] = value / math.prod(map(math.factorial, alpha))
        if n < degree:
            layer = _next_layer(layer, z)
    return out


def _next_layer(layer, z):
    fresh = {}
    for alpha, part in layer.items():
        last = max((i for i, a in enumerate(alpha) if a), default=0)
        for i in range(last, len(z)):
            fresh[(*alpha[:i], alpha[i] + 1, *alpha[i + 1 :])] = sp.diff(part, z[i])
    return fresh


def _weights(terms, d: int) -> tuple[list[int], int] | str:
    """Weights that give the lowest pure power of every axis the same degree m."""
    powers = []
    for i in range(d):
        pure = [alpha[i] for alpha in terms if alpha[i] == sum(alpha) and sum(alpha)]
        if not pure:
            return "it does not grow along one of the axes of its Hessian's kernel, to the degree that was looked at."
        power = min(pure)
        leading = terms[tuple(power if j == i else 0 for j in range(d))]
        if power % 2 or not leading.is_positive:
            return "along one axis its lowest term is of odd degree or negative."
        powers.append(power)
    m = math.lcm(*powers)
    return [m // e for e in powers], m


def _quasi_homogeneous(expr, states, centre, half, deadline: Deadline) -> Closure:
    if len(states) > MOST_STATES:
        return _failure(f"the Hessian is semidefinite, and {len(states)} states are too many for the local argument.")
    at = {s: to_sympy(c) for s, c in zip(states, centre, strict=True)}
    if not Compiled([expr], states).continuous or expr.has(sp.Abs, sp.Min, sp.Max):
        return _failure("it is not smooth at the equilibrium.")
    chart = _chart(expr, states, at, half)
    if chart is None:
        return _failure("the Hessian at the equilibrium is not rational.")
    reason = ""
    for _ in range(BENDS):
        images = chart.images()
        bent = expr.subs({s: at[s] + e for s, e in zip(states, images, strict=True)}, simultaneous=True)
        polynomial = bent.is_polynomial(*chart.z)
        bent = sp.expand(bent) if polynomial else bent
        terms = _taylor(bent, chart.z, MOST_DEGREE - 1)
        found = _weights(terms, len(states))
        if isinstance(found, tuple):
            weights, m = found
            early = [a for a in terms if sum(w * e for w, e in zip(weights, a, strict=True)) < m]
            if not early:
                closure = _faces(bent, chart, terms, weights, m, polynomial, centre, deadline)
                if not closure.failed:
                    return closure
                reason = closure.text
            else:
                reason = "terms of a weight below the leading one remain."
        else:
            reason = found
        if deadline.over or not _bend(chart, terms):
            break
    return _failure(f"the Hessian there is only semidefinite, and {reason}")


def _bend(chart: _Chart, terms) -> bool:
    """Complete the square in the coordinates outside the kernel, one more degree; False when nothing is left to do."""
    d, r = len(chart.z), chart.rank
    linear = {
        alpha: c
        for alpha, c in terms.items()
        if sum(alpha[:r]) == 1 and sum(alpha[r:]) >= 2 and sum(alpha) < MOST_DEGREE
    }
    if not linear or not r or r == d or not all(isinstance(c, sp.Rational) for c in linear.values()):
        return False
    lowest = min(sum(alpha) for alpha in linear)
    unit = [tuple(int(k == i) for k in range(d)) for i in range(r)]

    def quadratic(i, j):
        value = terms.get(tuple(a + b for a, b in zip(unit[i], unit[j], strict=True)), sp.S.Zero)
        return 2 * value if i == j else value

    slopes = sp.zeros(r, 1)
    for alpha, c in linear.items():
        if sum(alpha) == lowest:
            slopes[alpha.index(1)] += c * sp.Mul(*(z**a for z, a in zip(chart.z[r:], alpha[r:], strict=True)))
    shift = sp.Matrix(r, r, quadratic).inv() * slopes
    for i in range(r):
        chart.bend[i] = sp.expand(chart.bend.get(i, sp.S.Zero) + shift[i])
    return True


def _faces(bent, chart: _Chart, terms, weights, m: int, polynomial: bool, centre, deadline: Deadline) -> Closure:
    """Prove q(δ, ξ) > 0 on the faces of the cube, for δ₀ as large as a few trials allow."""
    d, z = len(chart.z), chart.z
    delta = sp.Symbol("delta", real=True)
    highest = max(m // w for w in weights)
    degree = max(map(sum, terms)) if polynomial else min(highest + 1, MOST_DEGREE)
    if degree * min(weights) < m:
        return _failure("its leading terms are of too high a degree.")
    top, unknown, rest = [], [], None
    if not polynomial:
        top = [a for a in itertools.product(range(degree + 1), repeat=d) if sum(a) == degree]
        rest = Compiled([_derivative(bent, z, a) / math.prod(map(math.factorial, a)) for a in top] + [bent], z)
        unknown = [sp.Symbol(f"r{i}", real=True) for i in range(len(top))]

    def quotient(alphas) -> sp.Expr:
        return sp.Add(*(
            c * delta ** (sum(w * a for w, a in zip(weights, alpha, strict=True)) - m)
            * sp.Mul(*(s**a for s, a in zip(z, alpha, strict=True)))
            for alpha, c in alphas
        ))  # fmt: skip

    exact = {a: c for a, c in terms.items() if polynomial or sum(a) < degree}
    q = quotient(exact.items()) if polynomial else quotient([*exact.items(), *zip(top, unknown, strict=True)])
    visited = 0
    for k in range(FACE_STEPS):
        reach = [fmpq(1, 2 ** (k * w)) for w in weights]
        fixed = {}
        if rest is not None:
            try:
                balls = rest.wide(*(arb(0).union(arb(r)).union(-arb(r)) for r in reach))
                fixed = dict(zip(unknown, balls[:-1], strict=True))
            except Undefined:
                continue
        ended = ""
        for i, side in itertools.product(range(d), (1, -1)):
            others = [s for j, s in enumerate(z) if j != i]
            formula = Formula(q.subs(z[i], side), [delta, *others], fixed)
            frame = Frame.around([fmpq(0)] + [fmpq(-1)] * (d - 1), [fmpq(1, 2**k)] + [fmpq(1)] * (d - 1))
            problem = Scalar(formula, frame, (), True, lambda _: False)
            run = branch(problem, [(*frame.root, ())], deadline, FACE_BOXES)
            visited += run.visited
            ended = run.end
            if ended != "proved":
                break
        if ended == "proved":
            radii = chart.box(reach)
            if radii is None:
                return _failure("no box fits into the neighbourhood that was closed.")
            text = f"its part of weights {tuple(weights)} and degree {m} is positive definite and leads"
            low = tuple(c - r for c, r in zip(centre, radii, strict=True))
            high = tuple(c + r for c, r in zip(centre, radii, strict=True))
            return Closure(f"{text} ({visited} boxes)", low, high)
        if deadline.over:
            return _failure("the time for the local argument was over.")
    return _failure("its lowest weighted part was not shown to be positive definite.")


def _derivative(expr, z, alpha):
    for s, a in zip(z, alpha, strict=True):
        if a:
            expr = sp.diff(expr, s, a)
    return expr
