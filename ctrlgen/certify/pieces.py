"""An energy as a sum of pieces, each with what is established of it: the material of a log-Sobolev inequality.

A piece is convex to some degree, or bounded, or Lipschitz, or several of these; which of them a theorem uses is
`ctrlgen.certify.log_sobolev`'s choice. There may be several ways to cut an energy up.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import sympy as sp

from ctrlgen.certify.piece import Piece, Way
from ctrlgen.certify.wells import cut_polynomial, wells
from ctrlgen.energies import formulas, gaussian_bounds, network_bounds, observation, safe_sets, symbolic
from ctrlgen.energies.algebra import Composition, quadratic_bounds
from ctrlgen.energies.analytic import GaussianMixture
from ctrlgen.energies.base import Energy, Properties, default_states
from ctrlgen.energies.landscapes import DoubleWell, Ring
from ctrlgen.energies.neural import MLPEnergy
from ctrlgen.energies.spectral import down, spectrum_bounds, up
from ctrlgen.energies.symbolic import CallableEnergy, SymbolicEnergy, read
from ctrlgen.energies.tails import exact_diagonal, fractions, tail
from ctrlgen.energies.trained import TrainedEnergy
from ctrlgen.formula import rationalise

MOST_WAYS = 200


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
    """The pieces whose Hessian lies above a constant matrix as one, bounded together."""
    flat = [p for p in pieces if p.hessian is not None]
    others = tuple(p for p in pieces if p.hessian is None)
    if not flat:
        return others
    total = sum((p.hessian for p in flat if p.hessian is not None), np.zeros((dim, dim), object) * Fraction(0))
    low = quadratic_bounds(total)[0]
    name = " + ".join(p.name for p in flat)
    return (
        Piece(name, convexity=low, check=lambda: at_least(total, low) and all(p.check() for p in flat), hessian=total),
        *others,
    )


def at_least(matrix: np.ndarray, low: float) -> bool:
    """Is matrix - low I positive semidefinite? By exact elimination, or, where that is too long, by balls."""
    shifted = matrix - exact_diagonal([Fraction(low)] * len(matrix))
    alone = [i for i, row in enumerate(shifted) if not any(v for j, v in enumerate(row) if j != i)]
    if any(shifted[i, i] < 0 for i in alone):
        return False
    others = [i for i in range(len(shifted)) if i not in alone]
    shifted, n = shifted[np.ix_(others, others)], len(others)
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
        out += _network(energy, np.ones(energy.dim), weight, name)
    elif isinstance(energy, TrainedEnergy) and isinstance(energy.network, MLPEnergy):
        out += _network(energy.network, energy.scale, weight, name)
    elif weight > 0 and isinstance(energy, GaussianMixture):
        out += _mixture(energy, weight, name)
    elif weight > 0 and isinstance(energy, DoubleWell):
        b, other = Fraction(weight) * Fraction(energy.barrier), Fraction(weight) * Fraction(energy.stiffness)
        floor = [Fraction(0)] + [other] * (energy.dim - 1)
        out += wells(b, Fraction(energy.separation) ** 2, epsilon, name, [0], floor)
    elif weight > 0 and isinstance(energy, Ring):
        b = Fraction(weight) * Fraction(energy.stiffness) * Fraction(energy.radius) ** 2 / 8
        everywhere, floor = list(range(energy.dim)), [Fraction(0)] * energy.dim
        out += wells(b, Fraction(energy.radius) ** 2, epsilon, name, everywhere, floor)
    elif weight > 0 and isinstance(energy, SymbolicEnergy | CallableEnergy):
        out += _formula(energy, weight, epsilon, name)
    return out


def _name(energy: Energy, weight: float) -> str:
    text = repr(energy)
    if len(text) > 60:
        text = type(energy).__name__
    return text if weight == 1 else f"{weight:g} * {text}"


def _of_properties(name: str, energy: Energy, weight: float) -> Piece:
    found = _scaled(energy.properties, weight)
    return Piece(name, *found, check=lambda: _scaled(recomputed(energy), weight) == found)


def recomputed(energy: Energy) -> Properties:
    """The properties, worked out again from the parameters rather than remembered."""
    forget()
    return energy.properties


def forget() -> None:
    """Empty what the modules of constants remember."""
    for module in (formulas, gaussian_bounds, network_bounds, observation, safe_sets, symbolic):
        for thing in vars(module).values():
            if hasattr(thing, "cache_clear"):
                thing.cache_clear()


def _scaled(known: Properties, weight: float) -> tuple[float | None, float | None, float | None]:
    bend = known.hessian_lower if weight >= 0 else known.hessian_upper
    w = Fraction(weight)
    return (
        None if bend is None else down(w * Fraction(bend)),
        None if known.oscillation is None else up(abs(w) * Fraction(known.oscillation)),
        None if known.gradient_bound is None else up(abs(w) * Fraction(known.gradient_bound)),
    )


def _network(energy: MLPEnergy, scale: np.ndarray, weight: float, name: str) -> list[Way]:
    """½c|y|² with y = (x - center)/scale, and the network, whose constants are divided by the smallest scale.

    No way where nothing is established of the network: its numbers need not be finite.
    """
    if energy.properties == Properties():
        return []
    w, c, s = Fraction(weight), Fraction(energy.confinement), fractions(scale)
    hessian = np.zeros((energy.dim, energy.dim), object) * Fraction(0) + np.diag(w * c / s**2)
    least = min(s)

    def bounds(known: Properties) -> tuple[float | None, float | None]:
        own = known.hessian_lower if weight >= 0 else known.hessian_upper
        slope = energy.network_gradient_bound
        bend = None if own is None else w * (Fraction(own) - c)
        return (
            None if bend is None else down(bend / (least**2 if bend < 0 else max(s) ** 2)),
            None if slope is None else up(abs(w) * Fraction(slope) / least),
        )

    found = bounds(energy.properties)
    network = Piece(f"network of {name}", found[0], None, found[1], check=lambda: bounds(recomputed(energy)) == found)
    return [(Piece(f"confinement of {name}", hessian=hessian), network)]


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


def _formula(energy: SymbolicEnergy | CallableEnergy, weight: float, epsilon: float, name: str) -> list[Way]:
    """Polynomial terms, cut as `cut_polynomial` knows how, and the others one by one."""
    found = whole_formula_of(energy)
    if found is None:
        return []
    expr, states = sp.expand(found[0]), found[1]
    terms = [t for t in sp.Add.make_args(expr) if t.free_symbols]
    smooth = sp.Add(*(t for t in terms if t.is_polynomial(*states)))
    parts = [SymbolicEnergy(t, states) for t in terms if not t.is_polynomial(*states)]
    others = [_of_properties(_name(part, weight), part, weight) for part in parts]
    if not smooth.free_symbols:
        return []
    factor = sp.Rational(*float(weight).as_integer_ratio())
    core = cut_polynomial(sp.expand(factor * smooth), states, epsilon, name)
    if parts:
        core += _cuts(SymbolicEnergy(smooth, states), weight, epsilon)[:1]
    return [(*way, *others) for way in core]


def formula_of(energy: Energy) -> tuple[Any, tuple] | None:
    """The energy's formula and its states, where the formula is the energy itself; floats are decimals."""
    if isinstance(energy, SymbolicEnergy):
        return None if energy.field.expr is None else (energy.field.expr, energy.field.states)
    if isinstance(energy, CallableEnergy):
        field = read(energy.function, energy.dim)
        return None if field.expr is None else (field.expr, field.states)
    if isinstance(energy, DoubleWell | Ring):
        states = default_states(None, energy.dim)
        return energy.symbolic(states), states
    return None


def whole_formula_of(energy: Energy) -> tuple[Any, tuple] | None:
    """`formula_of`, with exact numbers, where it is certainly continuous on the whole space: what cancels when it is
    expanded was then finite.
    """
    found = formula_of(energy)
    exact = None if found is None else rationalise(found[0])
    return None if found is None or not formulas.continuous(exact) else (exact, found[1])
