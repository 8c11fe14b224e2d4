"""Additive composition of controller blocks: E = Σ wᵢ Eᵢ, whose Gibbs measure is ∝ Π (ρᵢ*)^{wᵢ}.

Constants propagate by the rules of `Composition.properties`; what is not established for one term is not
established for the sum. A sum that has no Gibbs measure, because it falls in some direction, is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from ctrlgen.energies.analytic import Quadratic
from ctrlgen.energies.base import Energy, Properties
from ctrlgen.energies.safe_sets import positive_around
from ctrlgen.energies.spectral import BITS, above_root, down, spectrum_bounds, up
from ctrlgen.energies.walls import LogBarrier, Walled, Walls


class Composition(Energy):
    """The weighted sum Σ wᵢ Eᵢ of energies of one dimension. Made by `compose`, `+` and `*`.

    Args:
        terms: the energies, flattened (no term is itself a composition).
        weights: (len(terms),), finite and nonzero.
    """

    terms: tuple[Energy, ...]
    weights: np.ndarray
    dim: int = eqx.field(static=True)

    def __init__(self, terms: Sequence[Energy], weights: Any):
        self.terms, self.weights, self.dim = tuple(terms), np.asarray(weights, np.float64), terms[0].dim

    @property
    def footprint(self) -> int:
        """That of its largest term."""
        return max(term.footprint for term in self.terms)

    def potential(self, x):
        return sum(
            jnp.asarray(self.weights[i], x.dtype) * term.potential(x) for i, term in enumerate(self.terms)
        ) + jnp.zeros(x.shape[1:], x.dtype)

    def slope(self, x):
        parts = (jnp.asarray(self.weights[i], x.dtype) * term.slope(x) for i, term in enumerate(self.terms))
        return sum(parts, jnp.zeros_like(x))

    @property
    def properties(self) -> Properties:
        """Constants of the sum, from those of its terms, in exact arithmetic, rounded outward.

        Lower Hessian bounds add (w m for w ≥ 0, w L for w < 0), upper bounds likewise; |w| times the bounds of the
        gradient and of the oscillation add; so does ⟨x, ∇E⟩ ≥ a|x|² - b. For w < 0 that needs an upper bound, from
        ∇²E ⪯ L: ⟨x, ∇E⟩ ≤ (L + t)|x|² + |∇E(0)|²/(4t). Quadratic terms are added before they are bounded. Where that
        leaves no a > 0, it may come from ∇²E ⪰ m > 0, or from a sum of quadratics beside bounded slopes.
        """
        try:
            return self._established()
        except OverflowError:  # numbers beyond floats
            return Properties()

    def _established(self) -> Properties:
        parts = _parts(self)
        lower = _sum(((w, p.hessian_lower if w >= 0 else p.hessian_upper) for w, p, _ in parts), down)
        return Properties(
            hessian_lower=lower,
            hessian_upper=_sum(((w, p.hessian_upper if w >= 0 else p.hessian_lower) for w, p, _ in parts), up),
            gradient_bound=_sum(((abs(w), p.gradient_bound) for w, p, _ in parts), up),
            oscillation=_sum(((abs(w), p.oscillation) for w, p, _ in parts), up),
            dissipativity=_dissipativity(parts) or _from_convexity(parts, lower) or _from_quadratics(self),
        )

    def symbolic(self, states: Any = None):
        return sum(float(w) * term.symbolic(states) for w, term in zip(self.weights, self.terms, strict=True))


class Reparametrised(Energy):
    """E(R y) as an energy of y: with R Rᵀ = M⁻¹, a loop in the metric M is a plain loop in these coordinates.

    Args:
        energy: E, d-dimensional.
        root: R, (d,) for a diagonal or (d, d).
    """

    energy: Energy
    root: np.ndarray
    dim: int = eqx.field(static=True)

    def __init__(self, energy: Energy, root: Any):
        self.energy, self.root, self.dim = energy, np.asarray(root, np.float64), energy.dim

    def _outside(self, y):
        root = jnp.asarray(self.root, y.dtype)
        return root.reshape((-1,) + (1,) * (y.ndim - 1)) * y if root.ndim == 1 else root @ y

    def potential(self, x):
        return self.energy.potential(self._outside(x))


def compose(energies: Sequence[Energy], weights: Sequence[float] | None = None, *, check: bool = True) -> Composition:
    """The additive composition Σ wᵢ Eᵢ, whose Gibbs measure is ∝ Π (ρᵢ*)^{wᵢ}; nested compositions are flattened.

    Args:
        energies: at least one energy, all of one dimension.
        weights: one finite number each; ones when omitted. Terms of weight zero are dropped.
        check: refuse a sum that is known to have no Gibbs measure. One energy and its multiples, such as -E, are never
            refused, because they are there to be added to others; `check=False` builds any sum (a flow without noise
            needs no Gibbs measure, nor does a part of a larger sum).

    Raises:
        TypeError: something is not an Energy.
        ValueError: no energies, dimensions or lengths disagree, a weight is not finite, a Walls or a LogBarrier has a
            weight that is not positive, or the sum falls or is level in some direction so that exp(-E/ε) is not
            integrable at any temperature; the message says in which.
    """
    energies = list(energies)
    if not energies:
        raise ValueError("energies must hold at least one energy; got none.")
    for i, energy in enumerate(energies):
        if not isinstance(energy, Energy):
            raise TypeError(f"energies[{i}] must be an Energy; got {type(energy).__name__}.")
        if energy.couples:
            raise TypeError("A density feedback is not added or scaled: compose the energies first, then design.")
    dims = [energy.dim for energy in energies]
    if len(set(dims)) > 1:
        raise ValueError(f"energies must have one dimension to be composed; got dimensions {dims}.")
    values = np.ones(len(energies)) if weights is None else np.asarray(weights, dtype=np.float64)
    if values.shape != (len(energies),) or not np.isfinite(values).all():
        raise ValueError(f"weights must be {len(energies)} finite numbers, one an energy; got {weights}.")
    flat: list[tuple[float, Energy]] = []
    for w, energy in zip(map(float, values), energies, strict=True):
        if isinstance(energy, Composition):
            flat += [(w * float(v), term) for v, term in zip(energy.weights, energy.terms, strict=True)]
        else:
            flat.append((w, energy))
    if not all(np.isfinite(w) for w, _ in flat):
        raise ValueError(
            f"weights of nested compositions multiply; got {[w for w, _ in flat]}, which are not all finite."
        )
    kept = [(w, term) for w, term in flat if w != 0.0] or flat[:1]
    kept = [_of_walls(w, term) if isinstance(term, Walled) else (w, term) for w, term in kept]
    out = Composition([term for _, term in kept], [w for w, _ in kept])
    if check and len(energies) > 1:
        _refuse_without_gibbs(out)
    return out


def _of_walls(weight: float, term: Energy) -> tuple[float, Energy]:
    """Walls times w > 0 are the same walls; any other weight of what is infinite outside a set means nothing."""
    if not weight > 0:
        kind = type(term).__name__
        raise ValueError(
            f"the weight of a {kind} must be positive; got {weight:g}. It is +∞ outside its set, and "
            + ("-∞ has no Gibbs measure" if weight < 0 else "0 · ∞ is no number")
            + ": leave the term out to open the set."
        )
    return (1.0 if isinstance(term, Walls) else weight), term


@dataclass(frozen=True)
class Parted:
    """An energy, and what keeps it in a safe set.

    Args:
        rest: the other terms as one energy; None where there are none.
        walls: its Walls.
        barriers: (μ, LogBarrier) for each of those.
    """

    rest: Energy | None
    walls: tuple[Walls, ...]
    barriers: tuple[tuple[float, LogBarrier], ...]

    @property
    def sets(self) -> tuple[Walled, ...]:
        """Walls and barriers: each has its constraints and slack."""
        return (*self.walls, *(barrier for _, barrier in self.barriers))


def parted(energy: Energy) -> Parted:
    """The terms of a sum apart from its walls and barriers."""
    if isinstance(energy, Composition):
        pairs = list(zip(map(float, energy.weights), energy.terms, strict=True))
    else:
        pairs = [(1.0, energy)]
    rest = [(w, t) for w, t in pairs if not isinstance(t, Walled)]
    return Parted(
        compose([t for _, t in rest], [w for w, _ in rest], check=False) if rest else None,
        tuple(t for _, t in pairs if isinstance(t, Walls)),
        tuple((w, t) for w, t in pairs if isinstance(t, LogBarrier)),
    )


def _refuse_without_gibbs(energy: Composition) -> None:
    """Raise where the sum certainly falls, or stays level, in some direction."""
    from ctrlgen.energies.tails import find_escape

    found = find_escape(energy.terms, energy.weights.tolist())
    if found is not None:
        where = np.array2string(found.direction, precision=4, threshold=8)
        raise ValueError(
            f"this composition has no Gibbs measure at any temperature: along the direction {where} {found.reason}, so "
            f"exp(-E/ε) is not integrable. Weights are {energy.weights.tolist()}: subtract less, or add what "
            "confines it in the same call of compose (check=False builds it all the same)."
        )


def _exact(array: Any) -> np.ndarray:
    array = np.asarray(array, np.float64)
    out = np.empty(array.shape, object)
    out.ravel()[:] = [Fraction(float(v)) for v in array.ravel()]
    return out


def _sum(parts: Iterable[tuple[float, float | None]], rounding: Callable[[Fraction], float]) -> float | None:
    """Σ w·c, rounded; None if a constant is not established."""
    out = Fraction(0)
    for weight, constant in parts:
        if constant is None:
            return None
        out += Fraction(weight) * Fraction(constant)
    return rounding(out)


def _parts(energy: Composition) -> list[tuple[float, Properties, Callable[[], float | None]]]:
    """Weight, constants and a bound on |∇E(0)| of each term; several quadratics are added before they are bounded."""
    terms = list(zip(map(float, energy.weights), energy.terms, strict=True))
    quadratics = [(w, t) for w, t in terms if isinstance(t, Quadratic)]
    if len(quadratics) < 2:
        return [(w, t.properties, partial(slope_at_origin, t)) for w, t in terms]
    precision = _exact(np.zeros((energy.dim, energy.dim)))
    push = precision[0]
    for w, t in quadratics:
        precision = precision + Fraction(w) * _exact(t.precision)
        push = push + Fraction(w) * (_exact(t.precision) @ _exact(t.mean))
    low, high = quadratic_bounds(precision)
    force = above_root(sum((v * v for v in push), Fraction(0)))
    whole = Properties(hessian_lower=low, hessian_upper=high, dissipativity=(low, 0.0) if force == 0 else None)
    others = [(w, t.properties, partial(slope_at_origin, t)) for w, t in terms if not isinstance(t, Quadratic)]
    return [(1.0, whole, lambda: force), *others]


def quadratic_bounds(precision: np.ndarray) -> tuple[float, float]:
    """Bounds of the eigenvalues of a symmetric matrix of Fractions: of its rounding, and of what rounding changed."""
    rounded = np.array([[float(v) for v in row] for row in precision])
    low, high = spectrum_bounds((rounded + rounded.T) / 2)
    change = max(sum(abs(v) for v in row) for row in precision - _exact((rounded + rounded.T) / 2))
    return down(Fraction(low) - change), up(Fraction(high) + change)


def _dissipativity(parts: Sequence[tuple[float, Properties, Callable[[], float | None]]]) -> tuple[float, float] | None:
    """a and b of the sum: they add, and what pushes linearly, P|x| ≤ (a/2)|x|² + P²/(2a), takes half of a."""
    a, b, push = Fraction(0), Fraction(0), Fraction(0)
    for weight, known, origin in parts:
        size = Fraction(weight)
        if weight >= 0 and known.dissipativity is not None:
            a, b = a + size * Fraction(known.dissipativity[0]), b + size * Fraction(known.dissipativity[1])
            continue
        if known.gradient_bound is not None:
            push += abs(size) * Fraction(known.gradient_bound)
            continue
        bend = known.hessian_lower if weight >= 0 else known.hessian_upper
        force = None if bend is None else origin()
        if bend is None or force is None:
            return None
        a, push = a + size * Fraction(bend), push + abs(size) * Fraction(force)
    if push == 0:
        return (down(a), up(b)) if a > 0 else None
    return (down(a / 2), up(b + push**2 / (2 * a))) if a > 0 else None


def _pulled(a: Fraction, push: Fraction) -> tuple[float, float] | None:
    """From a|x|² - P|x|; None where a ≤ 0."""
    if a <= 0:
        return None
    return (down(a / 2), up(push**2 / (2 * a))) if push else (down(a), 0.0)


def _from_convexity(parts: Sequence[tuple], lower: float | None) -> tuple[float, float] | None:
    """⟨x, ∇E⟩ ≥ m|x|² - |∇E(0)||x| where ∇²E ⪰ m > 0."""
    if lower is None or not (np.isfinite(lower) and lower > 0):
        return None
    forces = [(abs(w), origin()) for w, _, origin in parts]
    force = _sum(forces, up)
    return None if force is None else _pulled(Fraction(lower), Fraction(force))


def _from_quadratics(energy: Composition) -> tuple[float, float] | None:
    """⟨x, ∇E⟩ ≥ m|x|² - (|k| + G)|x| where E is ½xᵀQx + kx and a function of slope at most G, and Q ⪰ m > 0."""
    from ctrlgen.energies.mixture import split

    found = split(energy)
    if found is None or found.polynomial.higher != 0:
        return None
    low, _ = quadratic_bounds(found.polynomial.quadratic)
    force = above_root(sum((v * v for v in found.polynomial.linear), Fraction(0)))
    return _pulled(Fraction(low), Fraction(force) + found.rest)


def slope_at_origin(energy: Energy) -> float | None:
    """A number that |∇E(0)| certainly does not exceed; None where balls do not reach it, or 0 is beyond a wall."""
    if isinstance(energy, Quadratic) and not energy.mean.any():
        return 0.0
    if isinstance(energy, Walls):
        return 0.0 if positive_around(energy.constraints, np.zeros(energy.dim), Fraction(0)) else None
    known = energy.properties.gradient_bound
    from ctrlgen.prove.balls import Undefined, Unsupported
    from ctrlgen.prove.traced import Traced

    try:
        from flint import arb, ctx

        with ctx.workprec(BITS):  # the caller's precision must not show
            slopes = Traced(energy.potential, energy.dim).slopes([arb(0)] * energy.dim)
            if slopes is None or not all(s.is_finite() for s in slopes):
                return known
            return up(sum((s.abs_upper() ** 2 for s in slopes), arb(0)).sqrt())
    except (Undefined, Unsupported):
        return known
