"""What is known of an energy's Hessian: an exact matrix, a formula, constant matrices around it, values at points."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import sympy as sp

from ctrlgen.certify.constants import taken_on_trust
from ctrlgen.certify.pieces import exact_hessian, formula_of, recomputed
from ctrlgen.certify.transport import plain_states
from ctrlgen.continuity import JumpError, conditions
from ctrlgen.energies.algebra import Composition
from ctrlgen.energies.analytic import GaussianMixture, Quadratic
from ctrlgen.energies.base import Energy
from ctrlgen.energies.landscapes import Landscape
from ctrlgen.energies.network_bounds import CURVATURES
from ctrlgen.energies.neural import MLPEnergy
from ctrlgen.energies.symbolic import SymbolicEnergy
from ctrlgen.energies.tails import exact_diagonal, fractions, tail
from ctrlgen.energies.trained import TrainedEnergy
from ctrlgen.energies.walls import Walled
from ctrlgen.formula import derivative, rationalise, real_states

MOST_SYMBOLIC = 30  # dimensions up to which a Hessian is written out as a formula


@dataclass(frozen=True)
class Formula:
    """The Hessian of an energy as a matrix of formulas with exact numbers.

    Args:
        states: those of `states_of`.
        matrix: ∇²E, (d, d).
        given: the formulas that it is the Hessian of, as they were given: where these are C², it is the Hessian.
    """

    states: tuple[sp.Symbol, ...]
    matrix: sp.ImmutableMatrix
    given: tuple[Any, ...]


def states_of(energy: Energy) -> tuple[sp.Symbol, ...]:
    """The names that a formula came with, or x1, ..., xd; real."""
    if isinstance(energy, SymbolicEnergy):
        return real_states([s.name for s in energy.field.states])
    return plain_states(energy.dim)


def formula_hessian(energy: Energy) -> Formula | None:
    """The Hessian as a formula; None where the energy, or a term of it, has none."""
    d = energy.dim
    if d > MOST_SYMBOLIC:
        return None
    states = states_of(energy)
    terms = [(1.0, energy)]
    if isinstance(energy, Composition):
        terms = list(zip(map(float, energy.weights), energy.terms, strict=True))
    total, given = sp.zeros(d, d), []
    for weight, term in terms:
        hessian, factor = exact_hessian(term), _rational(Fraction(weight))
        if hessian is not None and not isinstance(term, Landscape):
            total += factor * sp.Matrix(d, d, [_rational(v) for v in hessian.ravel()])
            continue
        expr = _formula(term, states)
        if expr is None:
            return None
        given.append(expr)
        total += factor * _second(expr, states)
    return Formula(states, sp.ImmutableMatrix(total), tuple(given))


def exact_formula(energy: Energy, states: tuple[sp.Symbol, ...]) -> Any:
    """E as a formula with exact numbers, up to a constant; None where it, or a term of it, has none."""
    terms = [(1.0, energy)]
    if isinstance(energy, Composition):
        terms = list(zip(map(float, energy.weights), energy.terms, strict=True))
    total = sp.S.Zero
    for weight, term in terms:
        found = tail(term)
        if isinstance(term, Quadratic) and found is not None:
            x = sp.Matrix(states)
            q = sp.Matrix(len(x), len(x), [_rational(v) for v in found.quadratic.ravel()])
            k = sp.Matrix([_rational(v) for v in found.linear])
            expr: Any = ((x.T * q * x)[0] / 2 + (k.T * x)[0]).expand()
        else:
            expr = _formula(term, states)
        if expr is None:
            return None
        total += _rational(Fraction(weight)) * expr
    return total


def _formula(term: Energy, states: tuple[sp.Symbol, ...]) -> Any:
    if isinstance(term, Landscape):
        return rationalise(term.symbolic(states))
    found = formula_of(term)
    if found is None:
        return None
    expr, own = found
    return rationalise(expr).xreplace(dict(zip(own, states, strict=True)))


def _second(expr: Any, states: tuple[sp.Symbol, ...]) -> sp.Matrix:
    d = len(states)
    slope = [derivative(expr, s) for s in states]
    out = sp.zeros(d, d)
    for i in range(d):
        for j in range(i, d):
            out[i, j] = out[j, i] = derivative(slope[i], states[j])
    return out


def _rational(value: Fraction) -> Any:
    return sp.Rational(value.numerator, value.denominator)


@dataclass(frozen=True)
class Between:
    """A ⪯ ∇²E ⪯ B on the whole space, (d, d) of Fractions each.

    Args:
        low, high: A and B.
        trust: what is taken on trust.
    """

    low: np.ndarray
    high: np.ndarray
    trust: tuple[str, ...]


def between(energy: Energy) -> Between | None:
    """Constant matrices around the Hessian everywhere; None where they are not established.

    Quadratic terms enter as they are, a trained network's bounds in its own standardised units, all others by their
    `hessian_lower` and `hessian_upper`.
    """
    terms = [(1.0, energy)]
    if isinstance(energy, Composition):
        terms = list(zip(map(float, energy.weights), energy.terms, strict=True))
    low = high = np.zeros((energy.dim, energy.dim), object) * Fraction(0)
    for weight, term in terms:
        found = _around(term)
        if found is None:
            return None
        below, above = found if weight >= 0 else found[::-1]
        low, high = low + Fraction(weight) * below, high + Fraction(weight) * above
    return Between(low, high, taken_on_trust(energy))


def _shared(term: GaussianMixture) -> tuple[np.ndarray, np.ndarray] | None:
    """Around ε(P - Cov_r(Pμ)), whose covariance is ⪰ 0, and for two means ⪯ ¼ P δδᵀP with their difference δ."""
    factor = term.factors[0]
    root = fractions(factor if factor.ndim == 2 else np.diag(np.broadcast_to(factor, term.dim)))
    precision: Any = root.T @ root
    epsilon = Fraction(term.temperature)
    if len(term.means) == 2:
        pull = precision @ (fractions(term.means[0]) - fractions(term.means[1]))
        return epsilon * (precision - np.outer(pull, pull) / 4), epsilon * precision
    if len(term.means) == 1:
        return epsilon * precision, epsilon * precision
    low = term.properties.hessian_lower
    return None if low is None else (exact_diagonal([Fraction(low)] * term.dim), epsilon * precision)


def kink(energy: Energy) -> str:
    """Why an energy is not twice differentiable everywhere inside, where its form says so; empty where it does not.

    Its Hessian at points then says nothing of two states on either side of a kink or a wall.
    """
    if isinstance(energy, Composition):
        return next((words for words in map(kink, energy.terms) if words), "")
    if isinstance(energy, TrainedEnergy):
        return kink(energy.network)
    if isinstance(energy, Walled):
        return f"a {type(energy).__name__} ends at its set, where trajectories are turned back"
    if isinstance(energy, MLPEnergy):
        kinked = [name for name in energy.activation if CURVATURES[name] is None]
        return f"a network with {kinked[0]} has kinks: its Hessian is not a function" if kinked else ""
    found = formula_of(energy)
    try:
        if found is not None:
            conditions(rationalise(found[0]), 2)
    except JumpError as error:
        return str(error)
    return ""


def again(energy: Energy) -> Between | None:
    """`between`, from the parameters rather than from what is remembered."""
    recomputed(energy)
    return between(energy)


def _around(term: Energy) -> tuple[np.ndarray, np.ndarray] | None:
    hessian = exact_hessian(term)
    if hessian is not None:
        return hessian, hessian
    if isinstance(term, GaussianMixture) and (term.factors == term.factors[0]).all():
        return _shared(term)
    if isinstance(term, TrainedEnergy) and isinstance(term.network, MLPEnergy):
        known = term.network.properties
        scale = np.array([1 / v**2 for v in fractions(term.scale)], object)
    else:
        known, scale = term.properties, np.array([Fraction(1)] * term.dim, object)
    if known.hessian_lower is None or known.hessian_upper is None:
        return None
    ends = (exact_diagonal(list(Fraction(v) * scale)) for v in (known.hessian_lower, known.hessian_upper))
    low, high = ends
    return low, high


def at_points(energy: Energy, points: np.ndarray, chunk: int = 256) -> np.ndarray:
    """∇²E at points (n, d), symmetrised, (n, d, d) in float64; a point where it is not finite is left out."""
    parts = [np.asarray(energy.hessian(points[k : k + chunk])) for k in range(0, len(points), chunk)]
    out = np.concatenate(parts)
    out = (out + out.swapaxes(1, 2)) / 2
    return out[np.isfinite(out).all(axis=(1, 2))]


def checked(hessians: Any, dim: int | None) -> np.ndarray:
    """Given samples of the Hessian as float64 (k, d, d).

    Raises:
        ValueError: they are not (k, d, d) finite, symmetric up to rounding.
    """
    out = np.asarray(hessians)
    if not np.issubdtype(out.dtype, np.number) or np.iscomplexobj(out):
        raise ValueError(f"hessians must be an array of real numbers (k, d, d); got type {out.dtype}.")
    tolerance = 1e-4 if out.dtype.itemsize <= 4 and out.dtype.kind == "f" else 1e-8
    out = out.astype(np.float64)
    if out.ndim == 2:
        out = out[None]
    if out.ndim != 3 or out.shape[1] != out.shape[2] or 0 in out.shape or (dim not in (None, out.shape[1])):
        size = "d" if dim is None else str(dim)
        raise ValueError(f"hessians must have shape (k, {size}, {size}), k >= 1; got shape {np.shape(hessians)}.")
    if not np.isfinite(out).all():
        raise ValueError("hessians must be finite; leave out the states at which they are not.")
    skew = float(np.abs(out - out.swapaxes(1, 2)).max())
    if skew > tolerance * float(np.abs(out).max()):
        raise ValueError(
            f"hessians must be symmetric; largest |H - H.T| is {skew:.1e}. Pass (H + H.swapaxes(1, 2)) / 2 if the skew "
            "part is rounding."
        )
    return (out + out.swapaxes(1, 2)) / 2
