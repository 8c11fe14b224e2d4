"""Alternatives: E = -ε log Σ wₖ exp(-Eₖ/ε), whose Gibbs measure at ε is a mixture ("or") of those of the terms.

Bounds of the terms are real numbers rounded outward; what is computed from them here is computed in rationals and
rounded outward once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ctrlgen.checks import positive
from ctrlgen.energies.algebra import Composition
from ctrlgen.energies.analytic import shares
from ctrlgen.energies.base import Energy, Properties, default_states
from ctrlgen.energies.neural import MLPEnergy
from ctrlgen.energies.spectral import above_root, down, up
from ctrlgen.energies.tails import Bend, Tail, bend, curvatures, fractions, tail, total_bend
from ctrlgen.energies.trained import TrainedEnergy


class MixtureEnergy(Energy):
    """E = -ε log Σ exp(oₖ - Eₖ/ε): at temperature ε its Gibbs measure is Σ mₖ ρₖ*, with mₖ ∝ exp(oₖ) Zₖ. By `mixture`.

    Args:
        terms: the energies Eₖ, of one dimension.
        offsets: oₖ, (len(terms),): the logarithms of the weights.
        temperature: ε > 0 [energy].
    """

    terms: tuple[Energy, ...]
    offsets: np.ndarray
    temperature: float = eqx.field(static=True)
    dim: int = eqx.field(static=True)

    def __init__(self, terms: Sequence[Energy], offsets: Any, temperature: float):
        self.terms, self.offsets = tuple(terms), np.asarray(offsets, np.float64)
        self.temperature, self.dim = float(temperature), self.terms[0].dim

    @property
    def footprint(self) -> int:
        """That of its largest term, or the slopes of all terms."""
        return max(len(self.terms) * self.dim, *(term.footprint for term in self.terms))

    def _log_shares(self, x):
        parts = [
            jnp.asarray(self.offsets[k], x.dtype) - term.potential(x) / self.temperature
            for k, term in enumerate(self.terms)
        ]
        stacked = jnp.stack(parts)
        top = jax.lax.stop_gradient(jnp.max(stacked, axis=0))
        top = jnp.where(jnp.isfinite(top), top, 0)  # every term infinite: E is infinite, not NaN
        return stacked, top, jnp.log(jnp.sum(jnp.exp(stacked - top), axis=0))

    def potential(self, x):
        _, top, rest = self._log_shares(x)
        return -self.temperature * (top + rest)

    def slope(self, x):
        parts, top, rest = self._log_shares(x)
        shares = jnp.exp(parts - top - rest)  # the posterior probabilities of the terms at x
        slopes = jnp.stack([term.slope(x) for term in self.terms])
        # a term without a share may have an infinite slope there
        return jnp.sum(jnp.where(shares[:, None] > 0, shares[:, None] * slopes, 0), axis=0)

    @property
    def properties(self) -> Properties:
        """What the terms establish; r are the posterior probabilities of the terms at x, a law on the terms.

        * ∇E = E_r[∇Eₖ], a convex combination: |∇E| ≤ max Gₖ, and ⟨x, ∇E⟩ ≥ min aₖ |x|² - max bₖ.
        * ∇²E = E_r[∇²Eₖ] - Cov_r(∇Eₖ)/ε, by differentiating ∇E with ∇rₖ = -rₖ(∇Eₖ - ∇E)/ε. The covariance is
          positive semidefinite, so ∇²E ⪯ max Lₖ. Along a unit v it is the variance of a number that varies by at most
          D = sup |∇Eᵢ - ∇Eⱼ|, so at most D²/4 (Popoviciu): ∇²E ⪰ min mₖ - D²/(4ε). D is finite where the terms
          have bounded slopes, or the same quadratic part and bounded slopes beside it.
        * E falls when a term falls. With sup and inf of the terms, sup E - inf E is at most
          ε log(Σ wₖ exp(-inf Eₖ/ε) / Σ wₖ exp(-sup Eₖ/ε)), and a ratio of sums does not exceed the largest ratio
          of their terms: osc E ≤ max osc Eₖ.

        Reference: Popoviciu, Mathematica (Cluj) 9 (1935) 129.
        """
        known = [term.properties for term in self.terms]
        lower = _least([p.hessian_lower for p in known])
        gap = None if lower is None else _slope_gap(self.terms)
        if lower is not None:
            spread = None if gap is None else Fraction(gap) ** 2 / (4 * Fraction(self.temperature))
            lower = None if spread is None else down(Fraction(lower) - spread)
        pairs = [p.dissipativity for p in known if p.dissipativity is not None]
        confined = len(pairs) == len(known)
        return Properties(
            hessian_lower=lower,
            hessian_upper=_greatest([p.hessian_upper for p in known]),
            dissipativity=(min(a for a, _ in pairs), max(b for _, b in pairs)) if confined else None,
            gradient_bound=_greatest([p.gradient_bound for p in known]),
            oscillation=_greatest([p.oscillation for p in known]),
        )

    def log_partition(self, temperature):
        """log Σ wₖ Zₖ at its own temperature, where every term has a closed form."""
        parts = self.log_masses()
        return None if parts is None or temperature != self.temperature else float(np.logaddexp.reduce(parts))

    def log_masses(self) -> np.ndarray | None:
        """log wₖ Zₖ of the terms at its temperature, (len(terms),); None where a term has no closed form."""
        parts = [term.log_partition(self.temperature) for term in self.terms]
        return None if None in parts else self.offsets + np.array(parts, np.float64)

    def symbolic(self, states: Any = None):
        import sympy as sp

        states = default_states(states, self.dim)
        terms = zip(self.offsets, self.terms, strict=True)
        return -self.temperature * sp.log(
            sum((sp.exp(float(o) - term.symbolic(states) / self.temperature) for o, term in terms), sp.Integer(0))
        )

    def __repr__(self) -> str:
        weights = ", ".join(f"{w:.4g}" for w in np.exp(self.offsets))
        terms = ", ".join(map(repr, self.terms))
        return f"MixtureEnergy([{terms}], weights=[{weights}], temperature={self.temperature:g})"


@tail.register
def _(energy: MixtureEnergy) -> Tail | None:
    # E lies between the least and the greatest term, up to a constant: where the tails agree, that is its tail
    tails = [found for term in energy.terms if (found := tail(term)) is not None]
    first = tails[0] if len(tails) == len(energy.terms) else None
    if first is None or any(t.higher != first.higher or not (t.quadratic == first.quadratic).all() for t in tails):
        return None
    exact = all(t.exact and (t.linear == first.linear).all() for t in tails)
    return Tail(first.quadratic, first.linear, first.higher, exact)


@bend.register
def _(energy: Composition, u: np.ndarray) -> Bend | None:
    return total_bend(energy.terms, energy.weights.tolist(), u)


@bend.register
def _(energy: MixtureEnergy, u: np.ndarray) -> Bend | None:
    known = [bend(term, u) for term in energy.terms]
    ends = [k for k in known if k is not None]
    return (min(low for low, _ in ends), min(high for _, high in ends)) if len(ends) == len(known) else None


@curvatures.register
def _(energy: MixtureEnergy) -> list[np.ndarray]:
    every = [curvatures(term) for term in energy.terms]
    return [m for known in every for m in known] if all(every) else []


def mixture(
    energies: Sequence[Energy],
    temperature: float,
    weights: Sequence[float] | None = None,
    *,
    normalised: bool = False,
    log_partitions: Sequence[Any] | None = None,
) -> MixtureEnergy:
    """ "Or": E = -ε log Σ wₖ exp(-Eₖ/ε), whose Gibbs measure at ε is a mixture of the terms' Gibbs measures.

    As they are, the weights multiply exp(-Eₖ/ε), and the term with the larger Zₖ = ∫ exp(-Eₖ/ε) has the larger mass,
    wₖ Zₖ / Σ wⱼ Zⱼ. With `normalised` they are divided by Zₖ, so that they are the masses themselves, whatever
    constants the energies contain, and log Z of the mixture is 0.

    At another temperature the mixture is an energy like any other, but its Gibbs measure is no mixture.

    Args:
        energies: Eₖ, at least one, all of one dimension. Mixtures of the same temperature are flattened.
        temperature: ε > 0 [energy].
        weights: wₖ > 0, scaled to sum 1; equal when omitted.
        normalised: weigh the Gibbs measures rather than exp(-Eₖ/ε). The Zₖ are closed forms where they are known, and
            come from `measure.log_partition` elsewhere: quadrature in up to three dimensions, annealing above.
        log_partitions: log Zₖ at ε, one number or `Estimate` an energy, where you know them; implies `normalised`.

    Raises:
        TypeError: something is not an Energy.
        ValueError: no energies, dimensions or lengths disagree, a weight or the temperature is not positive, a log Z is
            not finite, or a Zₖ is needed that does not exist.
    """
    energies = list(energies)
    if not energies:
        raise ValueError("energies must hold at least one energy; got none.")
    for k, energy in enumerate(energies):
        if not isinstance(energy, Energy):
            raise TypeError(f"energies[{k}] must be an Energy; got {type(energy).__name__}.")
    dims = [energy.dim for energy in energies]
    if len(set(dims)) > 1:
        raise ValueError(f"energies must have one dimension to be mixed; got dimensions {dims}.")
    temperature = positive("temperature", temperature)
    values = np.ones(len(energies)) if weights is None else np.asarray(weights, dtype=np.float64)
    if values.shape != (len(energies),) or not np.isfinite(values).all() or (values <= 0).any():
        raise ValueError(
            f"weights must be {len(energies)} positive finite numbers, one an energy; got {weights}. "
            "Leave out terms of weight zero."
        )
    offsets = np.log(shares(values))
    if log_partitions is not None:
        given = np.array([float(z) for z in log_partitions])
        if given.shape != (len(energies),) or not np.isfinite(given).all():
            raise ValueError(
                f"log_partitions must be {len(energies)} finite numbers, one an energy; got {log_partitions}."
            )
        offsets = offsets - given
    elif normalised:
        offsets = offsets - [_log_partition(energy, temperature) for energy in energies]
    flat: list[tuple[float, Energy]] = []
    for offset, energy in zip(map(float, offsets), energies, strict=True):
        if isinstance(energy, MixtureEnergy) and energy.temperature == temperature:
            flat += [(offset + float(o), term) for o, term in zip(energy.offsets, energy.terms, strict=True)]
        else:
            flat.append((offset, energy))
    return MixtureEnergy([term for _, term in flat], [o for o, _ in flat], temperature)


def _log_partition(energy: Energy, temperature: float) -> float:
    known = energy.log_partition(temperature)
    if known is None:
        from ctrlgen import measure  # a measure of the energies, which stands below them

        known = float(measure.log_partition(energy, temperature))
    return float(known)


def _slope_gap(terms: Sequence[Energy]) -> float | None:
    """D ≥ sup |∇Eᵢ - ∇Eⱼ| over all pairs of terms; None where no bound is established."""
    splits = [split(term) for term in terms]
    gap = 0.0
    for i, one in enumerate(splits):
        for other in splits[:i]:
            found = None if one is None or other is None else one.gap(other)
            if found is None:
                return None
            gap = max(gap, found)
    return gap


@dataclass(frozen=True)
class _Split:
    """E = p + R with a polynomial p and |∇R| ≤ rest."""

    polynomial: Tail
    rest: Fraction

    def scaled(self, weight: Fraction) -> _Split:
        return _Split(self.polynomial.scaled(weight), abs(weight) * self.rest)

    def __add__(self, other: _Split) -> _Split:
        return _Split(self.polynomial + other.polynomial, self.rest + other.rest)

    def gap(self, other: _Split) -> float | None:
        """A bound of |∇E - ∇E'| where the polynomials differ by a linear function; None where they do not."""
        p, q = self.polynomial, other.polynomial
        if p.higher != q.higher or not (p.quadratic == q.quadratic).all():
            return None
        square = sum((v**2 for v in p.linear - q.linear), Fraction(0))
        return up(Fraction(above_root(square)) + self.rest + other.rest)


def split(energy: Energy) -> _Split | None:
    """The polynomial part of an energy, with a bounded slope beside it; None where none is known."""
    if isinstance(energy, Composition):
        parts = [split(term) for term in energy.terms]
        weights = [Fraction(float(w)) for w in energy.weights]
        whole = [part.scaled(w) for w, part in zip(weights, parts, strict=True) if part is not None]
        return sum(whole[1:], whole[0]) if len(whole) == len(parts) else None
    if isinstance(energy, MLPEnergy):
        return _of_network(energy, np.zeros(energy.dim), np.ones(energy.dim))
    if isinstance(energy, TrainedEnergy) and isinstance(energy.network, MLPEnergy):
        return _of_network(energy.network, energy.center, energy.scale)
    bound, found = energy.properties.gradient_bound, tail(energy)
    if found is not None and found.exact:
        return _Split(found, Fraction(0))
    if bound is not None:
        return _Split(Tail(*_zeros(energy.dim)), Fraction(bound))
    return None


def _of_network(network: MLPEnergy, center: np.ndarray, scale: np.ndarray) -> _Split | None:
    try:
        rest = network.network_bounds(scale).gradient
    except ValueError:
        return None
    return _Split(_bowl(network, center, scale), Fraction(rest)) if network.is_finite else None


def _bowl(network: MLPEnergy, center: np.ndarray, scale: np.ndarray) -> Tail:
    """The confinement ½ c Σ ((x - center)/scale)², a constant left out."""
    stiffness = Fraction(network.confinement) / fractions(scale) ** 2
    quadratic, _ = _zeros(network.dim)
    np.fill_diagonal(quadratic, stiffness)
    return Tail(quadratic, -stiffness * fractions(center))


def _zeros(dim: int) -> tuple[np.ndarray, np.ndarray]:
    nothing = np.full((dim, dim), Fraction(0), object)
    return nothing, nothing[0]


def _least(values: Sequence[float | None]) -> float | None:
    return None if None in values else min(v for v in values if v is not None)


def _greatest(values: Sequence[float | None]) -> float | None:
    return None if None in values else max(v for v in values if v is not None)
