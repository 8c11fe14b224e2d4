"""Additive composition of controller blocks: E = Σ wᵢ Eᵢ, whose Gibbs measure is ∝ Π (ρᵢ*)^{wᵢ}.

Constants propagate by the rules of `Composition.properties`; what is not established for one term is not
established for the sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from ctrlgen.energies.base import Energy, Properties


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
        """Lower Hessian bounds add (w m for w ≥ 0, w L for w < 0), upper bounds likewise; so does ⟨x, ∇E⟩ ≥ a|x|² - b.

        ⟨x, ∇E⟩ has no upper bound among the properties, so a negative weight leaves dissipativity open, except
        that ∇²E ⪰ m > 0 of the sum with a known ∇E(0) gives it.
        """
        parts = [term.properties for term in self.terms]
        lower, upper = 0.0, 0.0
        for w, p in zip(map(float, self.weights), parts, strict=True):
            low, high = (p.hessian_lower, p.hessian_upper) if w >= 0 else (p.hessian_upper, p.hessian_lower)
            lower = None if lower is None or low is None else lower + w * low
            upper = None if upper is None or high is None else upper + w * high
        dissipativity = None
        if all(w >= 0 for w in self.weights) and all(p.dissipativity is not None for p in parts):
            pairs = [p.dissipativity for p in parts if p.dissipativity is not None]
            a, b = (float(self.weights @ np.array(column)) for column in zip(*pairs, strict=True))
            dissipativity = (a, b)
        elif lower is not None and lower > 0:
            push = float(np.linalg.norm(self.gradient(np.zeros(self.dim)))) * (1 + 1e-9)
            dissipativity = (lower / 2, push**2 / (2 * lower))
        return Properties(hessian_lower=lower, hessian_upper=upper, dissipativity=dissipativity)

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


def compose(energies: Sequence[Energy], weights: Sequence[float] | None = None) -> Composition:
    """The additive composition Σ wᵢ Eᵢ; nested compositions are flattened.

    Args:
        energies: at least one energy, all of one dimension.
        weights: one finite number each; ones when omitted. Terms of weight zero are dropped.

    Raises:
        TypeError: something is not an Energy.
        ValueError: no energies, dimensions or lengths disagree, or a weight is not finite.
    """
    energies = list(energies)
    if not energies:
        raise ValueError("energies must hold at least one energy; got none.")
    for i, energy in enumerate(energies):
        if not isinstance(energy, Energy):
            raise TypeError(f"energies[{i}] must be an Energy; got {type(energy).__name__}.")
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
    kept = [(w, term) for w, term in flat if w != 0.0] or flat[:1]
    return Composition([term for _, term in kept], [w for w, _ in kept])
