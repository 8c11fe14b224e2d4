"""How energies behave far out, exactly: whether a weighted sum of them has a Gibbs measure, and where it escapes.

An energy's tail is a polynomial p with rational coefficients such that E - p is a constant (an exact tail), or grows at
most linearly. Tails add with their weights. Where p falls along a direction, exp(-E/ε) is never integrable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import singledispatch
from typing import Any

import numpy as np

from ctrlgen.energies.analytic import GaussianMixture, Quadratic
from ctrlgen.energies.base import Energy, default_states
from ctrlgen.energies.formulas import continuous
from ctrlgen.energies.landscapes import Banana, DoubleWell, Ring
from ctrlgen.energies.neural import MLPEnergy
from ctrlgen.energies.safe_sets import escapes_into
from ctrlgen.energies.symbolic import SymbolicEnergy
from ctrlgen.energies.trained import TrainedEnergy
from ctrlgen.energies.walls import Walled

DIRECTIONS = 64  # tried at random, beside axes and eigenvectors
MOST_SYMBOLIC = 8  # dimensions up to which polynomials beyond quadratics are looked at


@dataclass(frozen=True)
class Tail:
    """A polynomial ½ xᵀQx + kx + p(x) that an energy follows far out.

    Args:
        quadratic: Q, (d, d), symmetric, of Fractions.
        linear: k, (d,), of Fractions; nothing is said by it unless exact.
        higher: p, a SymPy polynomial of x1, ..., xd with rational coefficients; 0 when there is none.
        exact: E is this polynomial and a constant; else their difference is at most c(1 + |x|).
    """

    quadratic: np.ndarray
    linear: np.ndarray
    higher: Any = 0
    exact: bool = True

    def scaled(self, weight: Fraction) -> Tail:
        """The tail of weight·E."""
        return Tail(weight * self.quadratic, weight * self.linear, _rational(weight) * self.higher, self.exact)

    def __add__(self, other: Tail) -> Tail:
        return Tail(
            self.quadratic + other.quadratic,
            self.linear + other.linear,
            self.higher + other.higher,
            self.exact and other.exact,
        )


@dataclass(frozen=True)
class Escape:
    """A direction along which exp(-E/ε) has infinite mass.

    Args:
        direction: (d,), of unit length.
        reason: how E behaves along it.
    """

    direction: np.ndarray
    reason: str


def fractions(array: Any) -> np.ndarray:
    """The same numbers, exactly, as an object array of Fractions."""
    array = np.asarray(array, np.float64)
    out = np.empty(array.shape, object)
    out.ravel()[:] = [Fraction(float(v)) for v in array.ravel()]
    return out


@singledispatch
def tail(energy: Energy) -> Tail | None:
    """The tail of an energy; None where it is not known."""
    return None


@tail.register
def _(energy: Quadratic) -> Tail:
    precision = fractions(energy.precision)
    return Tail(precision, -precision @ fractions(energy.mean))


@tail.register
def _(energy: GaussianMixture) -> Tail | None:
    # -ε log Σ w N(μ, C) = ½ε (x - c)ᵀC⁻¹(x - c) + a function whose slope lies in the hull of the means; only C diagonal
    # has an exact inverse here
    covariance = energy.covariances[0]
    shared = (energy.covariances == covariance).all()
    if not shared or not (covariance == np.diag(np.diag(covariance))).all():
        return None
    inverse = exact_diagonal([Fraction(energy.temperature) / Fraction(float(v)) for v in np.diag(covariance)])
    low, high = zip(*(bend(energy, row) for row in fractions(np.eye(energy.dim))), strict=True)
    if low != high:  # what is computed with is not the inverse: `bend` says what is known
        return None
    return Tail(inverse, _zeros(energy.dim), exact=False)


@tail.register
def _(energy: MLPEnergy) -> Tail | None:
    if not energy.is_finite:
        return None
    return Tail(
        exact_diagonal([Fraction(energy.confinement)] * energy.dim), _zeros(energy.dim), exact=False
    )  # a network is Lipschitz


@tail.register
def _(energy: TrainedEnergy) -> Tail | None:
    inner = tail(energy.network)
    if inner is None or inner.higher != 0:
        return None
    scale = fractions(energy.scale)
    return Tail(inner.quadratic / scale[:, None] / scale[None, :], _zeros(energy.dim), exact=False)


@tail.register(DoubleWell)
@tail.register(Ring)
@tail.register(Banana)
@tail.register(SymbolicEnergy)
def _(energy: Any) -> Tail | None:
    return _of_formula(energy) if energy.dim <= MOST_SYMBOLIC else None


def _of_formula(energy: Energy) -> Tail | None:
    """The tail of a polynomial formula, floats read exactly."""
    import sympy as sp

    states = default_states(None, energy.dim)
    try:
        formula = sp.sympify(energy.symbolic(states))
        exact = {v: _rational(Fraction(float(v))) for v in formula.atoms(sp.Float)}  # or expansion would round
        formula = formula.xreplace(exact)
        if not continuous(formula):
            return None
        poly = sp.Poly(formula, *states)
    except (sp.PolynomialError, OverflowError, ValueError, TypeError):
        return None
    if not all(c.is_Rational for c in poly.coeffs()):
        return None
    d = energy.dim
    quadratic, linear, higher = _square(np.zeros((d, d))), _zeros(d), sp.Integer(0)
    for powers, coefficient in poly.terms():
        value = Fraction(int(coefficient.p), int(coefficient.q))
        where = [i for i, n in enumerate(powers) for _ in range(n)]
        if len(where) == 2:
            i, j = where
            quadratic[i, j] += value
            quadratic[j, i] += value
        elif len(where) == 1:
            linear[where[0]] += value
        elif len(where) > 2:
            higher += _rational(value) * sp.prod([s**n for s, n in zip(states, powers, strict=True)])
    return Tail(quadratic, linear, higher)


def total(terms: Sequence[Energy], weights: Sequence[float]) -> Tail | None:
    """The tail of Σ wᵢ Eᵢ; None if that of one term is not known."""
    out: Tail | None = None
    for term, weight in zip(terms, weights, strict=True):
        part = tail(term)
        if part is None:
            return None
        part = part.scaled(Fraction(float(weight)))
        out = part if out is None else out + part
    return out


def find_escape(terms: Sequence[Energy], weights: Sequence[float]) -> Escape | None:
    """A direction in which exp(-E/ε) certainly has infinite mass for E = Σ wᵢ Eᵢ; None if none was found.

    Nothing escapes through a wall: with `Walls` or a `LogBarrier` among the terms, it must be a direction in which
    their sets certainly have no end, and h_j, which multiplies exp(-E/ε), no bound.
    """
    free = [(term, weight) for term, weight in zip(terms, weights, strict=True) if not isinstance(term, Walled)]
    if len(free) < len(terms):
        found = find_escape(*zip(*free, strict=True)) if free else None
        sets = [term.constraints for term in terms if isinstance(term, Walled)]
        opened = found is not None and all(escapes_into(s, found.direction) for s in sets)
        return found if opened else None
    try:
        found = total(terms, weights)
        return escape(found) if found is not None else _escape_along_rays(terms, weights)
    except OverflowError:  # numbers beyond floats, in which directions are looked for
        return None


Bend = tuple[Fraction, Fraction]


@singledispatch
def bend(energy: Energy, u: np.ndarray) -> Bend | None:
    """Bounds of c(u) where |E(x) - ½c(x)| ≤ k(1 + |x|), with c continuous and c(ru) = r²c(u); None where not known."""
    found = tail(energy)
    if found is None or found.higher != 0:
        return None
    value: Any = u @ found.quadratic @ u
    return value, value


@bend.register
def _(energy: GaussianMixture, u: np.ndarray) -> Bend:
    # the least of the components' quadratics: those of the factors that are computed with, and of the covariances
    from flint import fmpq, fmpq_mat

    low, high, d = [], [], energy.dim
    column = fmpq_mat(d, 1, [fmpq(v.numerator, v.denominator) for v in u])
    for covariance, factor in zip(energy.covariances, energy.factors, strict=True):
        image = fractions(factor) @ u if factor.ndim == 2 else fractions(factor) * u
        matrix = fmpq_mat(d, d, [fmpq(*v.as_integer_ratio()) for v in covariance.ravel().tolist()])
        exact = (column.transpose() * matrix.solve(column))[0, 0]
        both = (sum((v * v for v in image), Fraction(0)), Fraction(int(exact.p), int(exact.q)))
        low.append(min(both))
        high.append(max(both))
    epsilon = Fraction(energy.temperature)
    return epsilon * min(low), epsilon * min(high)


@bend.register
def _(energy: TrainedEnergy, u: np.ndarray) -> Bend | None:
    return bend(energy.network, u / fractions(energy.scale))


def total_bend(terms: Sequence[Energy], weights: Sequence[float], u: np.ndarray) -> Bend | None:
    """Bounds of c(u) of Σ wᵢ Eᵢ."""
    low = high = Fraction(0)
    for term, weight in zip(terms, weights, strict=True):
        known = bend(term, u)
        if known is None:
            return None
        ends = sorted(Fraction(float(weight)) * v for v in known)
        low, high = low + ends[0], high + ends[1]
    return low, high


@singledispatch
def curvatures(energy: Energy) -> list[np.ndarray]:
    """Matrices, in floats, of the quadratics of which an energy follows the least far out; none where not known.

    What is guessed from them is decided by `bend`.
    """
    found = tail(energy)
    return [] if found is None else [found.quadratic.astype(np.float64)]


@curvatures.register
def _(energy: GaussianMixture) -> list[np.ndarray]:
    return [energy.temperature * np.linalg.inv(c) for c in energy.covariances]


@curvatures.register
def _(energy: TrainedEnergy) -> list[np.ndarray]:
    return [m / energy.scale / energy.scale[:, None] for m in curvatures(energy.network)]


def _escape_along_rays(terms: Sequence[Energy], weights: Sequence[float]) -> Escape | None:
    """As `escape`, where some terms follow the least of several quadratics, or one that has no exact numbers."""
    dim, tails = terms[0].dim, [tail(term) for term in terms]
    parts = [found.scaled(Fraction(float(w))) for w, found in zip(weights, tails, strict=True) if found is not None]
    higher = sum((part.higher for part in parts), 0)
    options = [curvatures(term) for term in terms]
    guesses = []
    for k in range(min(max(len(o) for o in options), DIRECTIONS)):
        whole = sum((w * o[k % len(o)] for w, o in zip(weights, options, strict=True) if o), np.zeros((dim, dim)))
        if np.isfinite(whole).all():
            guesses.append(np.linalg.eigh(whole)[1][:, 0])
    if higher != 0:
        return _escape_of_highest(higher, terms, tails, np.array([*np.eye(dim), *guesses]))
    for direction in (*np.eye(dim), *guesses):
        rough = sum(w * min((direction @ m @ direction for m in o), default=-np.inf * w)
                    for w, o in zip(weights, options, strict=True))  # fmt: skip
        if rough > 0:  # exact numbers are slow
            continue
        u = fractions(direction)
        known = total_bend(terms, weights, u)
        if known is None:
            return None
        if known[1] < 0:
            fall = float(known[1] / (u @ u)) / 2
            return Escape(direction / np.linalg.norm(direction), f"E falls like {fall:.4g} r² there")
    return None


def _escape_of_highest(
    higher: Any, terms: Sequence[Energy], tails: Sequence[Tail | None], directions: np.ndarray
) -> Escape | None:
    """A direction in which the terms of highest degree, 3 or more, fall; terms without a tail grow quadratically."""
    import sympy as sp

    dim = directions.shape[1]
    one = fractions(np.eye(dim)[0])
    if dim > MOST_SYMBOLIC or any(t is None and bend(e, one) is None for e, t in zip(terms, tails, strict=True)):
        return None
    states = default_states(None, dim)
    poly = sp.Poly(higher, *states)
    degree = poly.total_degree()
    top = sp.Poly.from_dict({m: c for m, c in poly.terms() if sum(m) == degree}, *states)
    for direction in directions:
        u = fractions(direction)
        value = Fraction(0)
        for powers, c in top.terms():
            size = Fraction(int(c.p), int(c.q))
            for v, n in zip(u, powers, strict=True):
                size *= v**n
            value += size
        if value < 0 or (degree % 2 == 1 and value != 0):
            way = direction if value < 0 else -direction
            length = float(np.linalg.norm(way))
            return Escape(way / length, f"E falls like {-abs(float(value)) / length**degree:.4g} r^{degree} there")
    return None


def escape(found: Tail) -> Escape | None:
    """A direction in which a measure with this tail escapes, certainly; None if none was found."""
    if found.higher == 0:
        return _quadratic_escape(found)
    return _polynomial_escape(found) if len(found.linear) <= MOST_SYMBOLIC else None


def confined(found: Tail) -> bool:
    """Is E certainly a positive definite quadratic beyond linear growth? Then exp(-E/ε) is integrable."""
    return found.higher == 0 and _positive_definite(found.quadratic)


def _quadratic_escape(found: Tail) -> Escape | None:
    values, vectors = np.linalg.eigh(found.quadratic.astype(np.float64))
    size = max(abs(values).max(), 1e-300)
    if values[0] > 1e-9 * size:  # exact numbers are slow, and would find nothing
        return None
    for direction in (*np.eye(len(values)), vectors[:, 0]):
        u = fractions(direction)
        bend = u @ found.quadratic @ u
        if bend < 0:
            unit = direction / np.linalg.norm(direction)
            return Escape(unit, f"E falls like {float(bend / (u @ u)) / 2:.4g} r² there")
    if found.exact and values[0] <= 1e-9 * size:
        for u in _kernel(found.quadratic):
            slope = found.linear @ u
            unit = u.astype(np.float64) * (-1.0 if slope > 0 else 1.0)
            words = "E is constant" if slope == 0 else "E falls linearly"
            return Escape(unit / np.linalg.norm(unit), words)
    return None


def _polynomial_escape(found: Tail) -> Escape | None:
    import sympy as sp

    d = len(found.linear)
    states = default_states(None, d)
    square = [[_rational(v) for v in row] for row in found.quadratic]
    whole = found.higher + sum(square[i][j] * states[i] * states[j] for i in range(d) for j in range(d)) / 2
    if found.exact:
        whole += sum(_rational(k) * s for k, s in zip(found.linear, states, strict=True))
    r, base = sp.Symbol("r", real=True), sp.symbols(f"_b1:{d + 1}", real=True)
    least = 1 if found.exact else 2
    rises = _rises(sp.Poly(whole, *states))
    for direction in _directions(found):
        u = [sp.Rational(round(float(v) * 64), 64) for v in direction]
        if not any(u) or rises(np.array(u, np.float64)):
            continue
        line = whole.subs({s: b + r * v for s, b, v in zip(states, base, u, strict=True)}, simultaneous=True)
        poly = sp.Poly(sp.expand(line), r)
        unit = np.array([float(v) for v in u])
        size = float(np.linalg.norm(unit))
        unit = unit / size
        if poly.degree() <= 0:
            if found.exact:
                return Escape(unit, "E is constant")
            continue
        if poly.degree() < least:
            continue
        lead = poly.LC()
        for point in (dict.fromkeys(base, 0), {b: sp.Rational(k + 1, 3) for k, b in enumerate(base)}):
            value = sp.sympify(lead).subs(point)
            odd = poly.degree() % 2 == 1 and value != 0
            if value < 0 or odd:
                way = unit if value < 0 else -unit
                fall = -abs(float(value)) if odd else float(value)
                return Escape(
                    way, f"E falls like {fall:.4g} r^{poly.degree()} (r in units of {[str(v) for v in u]}) there"
                )
    return None


def _rises(poly: Any) -> Callable[[np.ndarray], bool]:
    """Is the form of highest degree clearly positive in a direction? Then E rises there: no exact number is needed."""
    degree = poly.total_degree()
    top = [(np.array(powers), float(c)) for powers, c in poly.terms() if sum(powers) == degree]
    size = max(abs(c) for _, c in top)

    def rises(u: np.ndarray) -> bool:
        return degree % 2 == 0 and sum(c * float(np.prod(u**p)) for p, c in top) > 1e-9 * size

    return rises


def _directions(found: Tail) -> Iterator[np.ndarray]:
    d = len(found.linear)
    yield from np.eye(d)
    yield from np.linalg.eigh(found.quadratic.astype(np.float64))[1].T
    rng = np.random.default_rng(0)
    for _ in range(DIRECTIONS):
        u = rng.standard_normal(d)
        yield u / np.abs(u).max()


def _positive_definite(matrix: np.ndarray) -> bool:
    """By exact elimination."""
    work = matrix.copy()
    for k in range(len(work)):
        if work[k, k] <= 0:
            return False
        work[k + 1 :, k:] = work[k + 1 :, k:] - np.outer(work[k + 1 :, k] / work[k, k], work[k, k:])
    return True


def _kernel(matrix: np.ndarray) -> list[np.ndarray]:
    """A basis of the null space, exactly."""
    import sympy as sp

    found = sp.Matrix([[_rational(v) for v in row] for row in matrix]).nullspace()
    return [np.array([Fraction(int(v.p), int(v.q)) for v in u], object) for u in found]


def _rational(value: Any) -> Any:
    import sympy as sp

    return sp.Rational(value.numerator, value.denominator)


def exact_diagonal(values: Sequence[Fraction]) -> np.ndarray:
    """A diagonal matrix of Fractions."""
    out = _square(np.zeros((len(values), len(values))))
    for i, value in enumerate(values):
        out[i, i] = value
    return out


def _square(matrix: np.ndarray) -> np.ndarray:
    out = np.empty(matrix.shape, object)
    out.ravel()[:] = [Fraction(v) if not isinstance(v, Fraction) else v for v in matrix.ravel()]
    return out


def _zeros(dim: int) -> np.ndarray:
    return _square(np.zeros(dim))
