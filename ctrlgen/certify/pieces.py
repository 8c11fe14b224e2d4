"""An energy as a sum of pieces, each with what is established of it: the material of a log-Sobolev inequality.

A piece is convex to some degree, or bounded, or Lipschitz, or several of these; which of them a theorem uses is
`ctrlgen.certify.log_sobolev`'s choice. There may be several ways to cut an energy up.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import sympy as sp

from ctrlgen.energies.algebra import Composition, quadratic_bounds
from ctrlgen.energies.analytic import GaussianMixture
from ctrlgen.energies.base import Energy, Properties, default_states
from ctrlgen.energies.landscapes import DoubleWell, Ring
from ctrlgen.energies.neural import MLPEnergy
from ctrlgen.energies.spectral import down, spectrum_bounds, up
from ctrlgen.energies.symbolic import CallableEnergy, SymbolicEnergy
from ctrlgen.energies.tails import fractions, tail
from ctrlgen.energies.trained import TrainedEnergy

DEPTHS = (1.01, 1.03, 1.1, 1.2, 1.4, 1.7, 2.0, 3.0, 5.0)  # of the cut of a double well, in units of its minima's t
MOST_WAYS = 200


@dataclass(frozen=True)
class Piece:
    """One summand of an energy; None where something is not established.

    Args:
        name: what it is.
        convexity: m with ∇² ⪰ m I, of either sign [energy / length²].
        oscillation: a number that sup - inf does not exceed [energy].
        gradient: G with |∇| ≤ G [energy / length].
        check: computes the constants again.
        hessian: its Hessian, (d, d) of Fractions, where that is constant: such pieces are added first.
    """

    name: str
    convexity: float | None = None
    oscillation: float | None = None
    gradient: float | None = None
    check: Callable[[], bool] = field(default=lambda: True, repr=False)
    hessian: np.ndarray | None = field(default=None, repr=False)


Way = tuple[Piece, ...]


def ways(energy: Energy, epsilon: float) -> list[Way]:
    """The ways that are known to cut an energy up; in each, the sum of the pieces is the energy, up to a constant.

    Where a cut may be chosen, one of those that are tried is the best for this energy alone at the temperature ε.
    """
    terms = _terms(energy)
    options = [_cuts(term, weight, epsilon) for weight, term in terms]
    out = []
    for choice in itertools.islice(itertools.product(*options), MOST_WAYS):
        out.append(_with_quadratics_added([piece for way in choice for piece in way], energy.dim))
    return out


def _terms(energy: Energy) -> list[tuple[float, Energy]]:
    if isinstance(energy, Composition):
        return list(zip(map(float, energy.weights), energy.terms, strict=True))
    return [(1.0, energy)]


def _with_quadratics_added(pieces: Sequence[Piece], dim: int) -> Way:
    """The pieces of constant Hessian as one, bounded together."""
    flat = [p for p in pieces if p.hessian is not None]
    others = tuple(p for p in pieces if p.hessian is None)
    if not flat:
        return others
    total = sum((p.hessian for p in flat if p.hessian is not None), np.zeros((dim, dim), object) * Fraction(0))
    low = quadratic_bounds(total)[0]
    name = " + ".join(p.name for p in flat)
    return (Piece(name, convexity=low, check=lambda: at_least(total, low), hessian=total), *others)


def at_least(matrix: np.ndarray, low: float) -> bool:
    """Is matrix - low I positive semidefinite? By exact elimination, or, where that is too long, by balls."""
    n = len(matrix)
    shifted = matrix - np.diag([Fraction(low)] * n)
    if n > 24:
        from flint import arb, ctx, fmpq

        from ctrlgen.prove.balls import positive_definite

        with ctx.workprec(400):
            balls = [[arb(fmpq(v.numerator, v.denominator)) for v in row] for row in shifted]
            return positive_definite(balls)
    work = shifted.copy()
    for k in range(n):
        if work[k, k] < 0 or (work[k, k] == 0 and any(work[k, k:])):
            return False
        if work[k, k] > 0:
            work[k + 1 :, k:] = work[k + 1 :, k:] - np.outer(work[k + 1 :, k] / work[k, k], work[k, k:])
    return True


def exact_hessian(energy: Energy) -> np.ndarray | None:
    """The Hessian of an energy that is a quadratic polynomial, (d, d) of Fractions; None for others."""
    known = tail(energy)
    return known.quadratic if known is not None and known.exact and known.higher == 0 else None


def _cuts(energy: Energy, weight: float, epsilon: float) -> list[Way]:
    name, hessian = _name(energy, weight), exact_hessian(energy)
    if hessian is not None:
        return [(Piece(name, hessian=Fraction(weight) * hessian),)]
    out: list[Way] = [(_of_properties(name, energy, weight),)]
    if isinstance(energy, MLPEnergy):
        out.append(_network(energy, np.ones(energy.dim), weight, name))
    elif isinstance(energy, TrainedEnergy) and isinstance(energy.network, MLPEnergy):
        out.append(_network(energy.network, energy.scale, weight, name))
    elif weight > 0 and isinstance(energy, GaussianMixture):
        out += _mixture(energy, weight, name)
    elif weight > 0 and isinstance(energy, DoubleWell):
        out += _well(
            energy.barrier, energy.separation, energy.stiffness if energy.dim > 1 else None, weight, epsilon, name
        )
    elif weight > 0 and isinstance(energy, Ring):
        height = Fraction(energy.stiffness) * Fraction(energy.radius) ** 2 / 8
        out += _well(height, energy.radius, None, weight, epsilon, name)
    elif isinstance(energy, SymbolicEnergy | CallableEnergy):
        out += _formula(energy, weight, epsilon, name)
    return out


def _name(energy: Energy, weight: float) -> str:
    text = repr(energy)
    if len(text) > 60:
        text = type(energy).__name__
    return text if weight == 1 else f"{weight:g} * {text}"


def _of_properties(name: str, energy: Energy, weight: float) -> Piece:
    def scaled() -> tuple[float | None, float | None, float | None]:
        return _scaled(energy.properties, weight)

    found = scaled()
    return Piece(name, *found, check=lambda: scaled() == found)


def _scaled(known: Properties, weight: float) -> tuple[float | None, float | None, float | None]:
    bend = known.hessian_lower if weight >= 0 else known.hessian_upper
    w = Fraction(weight)
    return (
        None if bend is None else down(w * Fraction(bend)),
        None if known.oscillation is None else up(abs(w) * Fraction(known.oscillation)),
        None if known.gradient_bound is None else up(abs(w) * Fraction(known.gradient_bound)),
    )


def _network(energy: MLPEnergy, scale: np.ndarray, weight: float, name: str) -> Way:
    """½c|y|² with y = (x - center)/scale, and the network, whose constants are divided by the smallest scale."""
    w, c, s = Fraction(weight), Fraction(energy.confinement), fractions(scale)
    hessian = np.zeros((energy.dim, energy.dim), object) * Fraction(0) + np.diag(w * c / s**2)
    least = min(s)

    def bounds() -> tuple[float | None, float | None]:
        known = energy.properties
        own = known.hessian_lower if weight >= 0 else known.hessian_upper
        slope = energy.network_gradient_bound
        bend = None if own is None else w * (Fraction(own) - c)
        return (
            None if bend is None else down(bend / (least**2 if bend < 0 else max(s) ** 2)),
            None if slope is None else up(abs(w) * Fraction(slope) / least),
        )

    found = bounds()
    network = Piece(f"network of {name}", found[0], None, found[1], check=lambda: bounds() == found)
    return Piece(f"confinement of {name}", hessian=hessian), network


def _mixture(energy: GaussianMixture, weight: float, name: str) -> list[Way]:
    """A Gaussian, and what is Lipschitz beyond it: -ε log Σ wₖ N(μₖ, C) = ½ε yᵀC⁻¹y - ε log Σ aₖ exp(δₖᵀC⁻¹y).

    Here y = x - c and δₖ = μₖ - c; the slope of the second is a mean of -ε C⁻¹δₖ.
    """
    if not (energy.covariances == energy.covariances[0]).all():
        return []
    from flint import arb, arb_mat, fmpq

    def bounds() -> tuple[float, float]:
        exact = [[arb(fmpq(*float(v).as_integer_ratio())) for v in row] for row in energy.covariances[0]]
        try:
            inverse = arb_mat(exact).inv()
        except ZeroDivisionError:
            return 0.0, float("inf")
        scale = arb(fmpq(*float(weight).as_integer_ratio())) * arb(fmpq(*energy.temperature.as_integer_ratio()))
        middle = (energy.means.max(axis=0) + energy.means.min(axis=0)) / 2
        steepest = arb(0)
        for mean in energy.means:
            gap = [arb(fmpq(*float(m).as_integer_ratio())) - arb(fmpq(*float(c).as_integer_ratio()))
                   for m, c in zip(mean, middle, strict=True)]  # fmt: skip
            push = inverse * arb_mat([[g] for g in gap])
            square = sum((push[i, 0] ** 2 for i in range(energy.dim)), arb(0))
            steepest = steepest.max(square)
        from ctrlgen.energies.formulas import above, below

        largest = arb(spectrum_bounds(energy.covariances[0])[1])
        return below(scale / largest), above(scale * steepest.sqrt())

    low, slope = bounds()
    if not (low > 0 and np.isfinite(slope)):
        return []
    core = Piece(f"Gaussian of {name}", convexity=low, check=lambda: bounds() == (low, slope))
    rest = Piece(f"beyond the Gaussian of {name}", gradient=slope, check=lambda: bounds() == (low, slope))
    return [(core, rest)]


def _well(height: Any, width: Any, stiffness: float | None, weight: float, epsilon: float, name: str) -> list[Way]:
    """b(t - 1)² with t = |x|²/a² and ½k|x'|² of other states, cut at several depths."""
    b, square = Fraction(weight) * Fraction(height), Fraction(width) ** 2
    other = None if stiffness is None else Fraction(weight) * Fraction(stiffness)
    return [_cut_well(b, square, other, Fraction(depth), name) for depth in _depths(float(b), epsilon)]


def _depths(height: float, epsilon: float) -> tuple[float, ...]:
    """Where to cut: fixed ones, and that for which (s - 1) exp(-b s²/ε) is largest."""
    return (*DEPTHS, (1 + math.sqrt(1 + 2 * epsilon / height)) / 2)


def _cut_well(b: Fraction, square: Fraction, other: Fraction | None, s: Fraction, name: str) -> Way:
    """b(t - 1)² is convex + bounded: for s > 1, b[(t - s)₊² + 2(s - 1)t] and the rest.

    (t - s)₊² is a rising convex function of a convex one, so the first has the Hessian 4b(s - 1)/a² at least. The rest
    is b(1 - s²) for t ≥ s and b[(t - s)² + 1 - s²] below, t ≥ 0, so it oscillates by b s².
    """
    bend = 4 * b * (s - 1) / square
    bend = bend if other is None else min(bend, other)
    low, high = down(bend), up(b * s**2)

    def check() -> bool:
        t, c = sp.symbols("t c")
        same = sp.expand((t - 1) ** 2 - ((t - c) ** 2 + 2 * (c - 1) * t) - (1 - c**2)) == 0
        inside = sp.expand((t - 1) ** 2 - 2 * (c - 1) * t - ((t - c) ** 2 + 1 - c**2)) == 0
        return same and inside and s > 1 and b > 0 and Fraction(low) <= bend and Fraction(high) >= b * s**2

    where = f"{name}, cut at t = {float(s):.4g}"
    return (
        Piece(f"convex part of {where}", convexity=low, check=check),
        Piece(f"bounded part of {where}", oscillation=high, check=check),
    )


def _formula(energy: SymbolicEnergy | CallableEnergy, weight: float, epsilon: float, name: str) -> list[Way]:
    """Polynomial terms, and the others one by one; a quartic of one state is cut like a double well."""
    read = formula_of(energy)
    if read is None or weight < 0:
        return []
    from ctrlgen.formula import rationalise

    expr, states = read
    expr = sp.expand(rationalise(expr))
    terms = sp.Add.make_args(expr)
    smooth = sp.Add(*(t for t in terms if t.is_polynomial(*states)))
    rest = [t for t in terms if not t.is_polynomial(*states) and t.free_symbols]
    others = [_of_properties(f"{_name(part, weight)}", part, weight)
              for part in (SymbolicEnergy(t, states) for t in rest)]  # fmt: skip
    out: list[Way] = []
    if rest and smooth.free_symbols:
        core = _cuts(SymbolicEnergy(smooth, states), weight, epsilon)
        out += [(*way, *others) for way in core]
    elif not rest and len(states) == 1:
        out += _quartic(smooth, states[0], weight, epsilon, name)
    return out


def _quartic(expr: Any, x: sp.Symbol, weight: float, epsilon: float, name: str) -> list[Way]:
    """A(y⁴) + p y² + linear, with y = x - shift and p < 0, is b(y²/a² - 1)² and a linear function."""
    poly = sp.Poly(expr, x)
    if poly.degree() != 4 or not all(c.is_Rational for c in poly.all_coeffs()) or poly.LC() <= 0:
        return []
    shift = -poly.coeff_monomial(x**3) / (4 * poly.LC())
    moved = sp.Poly(sp.expand(expr.subs(x, x + shift)), x)
    bend, lead = moved.coeff_monomial(x**2), moved.LC()
    if bend >= 0:
        return []
    height, width = bend**2 / (4 * lead), -bend / (2 * lead)
    b = Fraction(weight) * Fraction(int(height.p), int(height.q))
    square = Fraction(int(width.p), int(width.q))
    return [_cut_well(b, square, None, Fraction(depth), name) for depth in _depths(float(b), epsilon)]


def formula_of(energy: Energy) -> tuple[Any, tuple] | None:
    """The energy's formula and its states, where the formula is the energy itself; floats are decimals."""
    if isinstance(energy, SymbolicEnergy):
        return energy.field.formula(), energy.field.states
    if isinstance(energy, CallableEnergy):
        from ctrlgen.energies.symbolic import read

        field = read(energy.function, energy.dim)
        return None if field.expr is None else (field.expr, field.states)
    if isinstance(energy, DoubleWell | Ring):
        states = default_states(None, energy.dim)
        return energy.symbolic(states), states
    return None
