"""Classic test landscapes. Each is written once, as a SymPy formula; the JAX view is derived from it."""

from __future__ import annotations

from abc import abstractmethod
from functools import lru_cache
from typing import Any

import equinox as eqx

from ctrlgen.checks import dimension, positive
from ctrlgen.energies.base import Energy, Properties, default_states
from ctrlgen.field import Field


class Landscape(Energy):
    """An energy written once, as a SymPy formula of its states; the JAX view is derived from it."""

    @abstractmethod
    def formula(self, x: Any) -> Any:
        """E as a SymPy expression of the symbols x[0], ..., x[d-1]."""

    def potential(self, x):
        return _field(self).columns(x)

    def symbolic(self, states: Any = None):
        return self.formula(default_states(states, self.dim))


class DoubleWell(Landscape):
    """Two wells at ±separation along the first axis, quadratic along the others: b((x₁/a)² - 1)² + k/2 Σ xᵢ².

    Args:
        dim: d >= 1.
        barrier: b > 0, height between the wells [energy].
        separation: a > 0, half the distance between the wells [length].
        stiffness: k > 0 of the other axes [energy / length²].
    """

    dim: int = eqx.field(static=True)
    barrier: float = eqx.field(static=True)
    separation: float = eqx.field(static=True)
    stiffness: float = eqx.field(static=True)

    def __init__(self, dim: int = 2, barrier: float = 1.0, separation: float = 1.0, stiffness: float = 1.0):
        self.dim = dimension(dim, 1)
        self.barrier, self.separation = positive("barrier", barrier), positive("separation", separation)
        self.stiffness = positive("stiffness", stiffness)

    def formula(self, x):
        return self.barrier * ((x[0] / self.separation) ** 2 - 1) ** 2 + self.stiffness * sum(s**2 for s in x[1:]) / 2

    @property
    def properties(self) -> Properties:
        b, a, k = self.barrier, self.separation, self.stiffness
        # 4b(t² - t) ≥ k a² t - (4b + k a²)²/(16 b), with t = (x₁/a)²
        return Properties(
            hessian_lower=-4 * b / a**2 * (1 + 1e-12),
            dissipativity=(k, (4 * b + k * a**2) ** 2 / (16 * b) * (1 + 1e-12)),
        )


class Banana(Landscape):
    """A bent Gaussian: x₁²/(2s²) + ½(x₂ - c(x₁² - s²))²; at ε = 1, x₁ ~ N(0, s²) and x₂ | x₁ is Gaussian.

    Args:
        scale: s > 0, standard deviation of x₁ [length].
        curvature: c [1 / length].

    Reference: Haario, Saksman and Tamminen, Comput. Stat. 14 (1999) 375.
    """

    scale: float = eqx.field(static=True)
    curvature: float = eqx.field(static=True)
    dim: int = eqx.field(static=True)

    def __init__(self, scale: float = 2.0, curvature: float = 0.25):
        self.scale, self.curvature, self.dim = positive("scale", scale), float(curvature), 2

    def formula(self, x):
        return x[0] ** 2 / (2 * self.scale**2) + (x[1] - self.curvature * (x[0] ** 2 - self.scale**2)) ** 2 / 2


class Funnel(Landscape):
    """Neal's funnel: v = x₁ ~ N(0, s²) and xᵢ | v ~ N(0, eᵛ) for i ≥ 2, at ε = 1.

    Args:
        dim: d >= 2.
        scale: s > 0, standard deviation of v.

    Reference: Neal, Ann. Statist. 31 (2003) 705, section 8.
    """

    dim: int = eqx.field(static=True)
    scale: float = eqx.field(static=True)

    def __init__(self, dim: int = 2, scale: float = 3.0):
        self.dim, self.scale = dimension(dim, 2), positive("scale", scale)

    def formula(self, x):
        import sympy as sp

        v = x[0]
        return v**2 / (2 * self.scale**2) + sp.exp(-v) * sum(s**2 for s in x[1:]) / 2 + (self.dim - 1) * v / 2


class Ring(Landscape):
    """A ring (sphere) of minima: k (|x|² - R²)² / (8 R²), which is ½k (|x| - R)² near the ring.

    Args:
        radius: R > 0 [length].
        stiffness: k > 0, across the ring [energy / length²].
        dim: d >= 1.
    """

    radius: float = eqx.field(static=True)
    stiffness: float = eqx.field(static=True)
    dim: int = eqx.field(static=True)

    def __init__(self, radius: float = 2.0, stiffness: float = 4.0, dim: int = 2):
        self.radius, self.stiffness = positive("radius", radius), positive("stiffness", stiffness)
        self.dim = dimension(dim, 1)

    def formula(self, x):
        return self.stiffness * (sum(s**2 for s in x) - self.radius**2) ** 2 / (8 * self.radius**2)

    @property
    def properties(self) -> Properties:
        k, r = self.stiffness, self.radius
        # k(t² - R²t)/(2R²) ≥ (k/2) t - k R²/2 with t = |x|²
        return Properties(
            hessian_lower=-k / 2 * (1 + 1e-12), dissipativity=(k / 2 * (1 - 1e-12), k * r**2 / 2 * (1 + 1e-12))
        )


@lru_cache(maxsize=256)
def _field_of(kind: type, arguments: tuple) -> Any:
    energy = kind(**dict(arguments))
    states = default_states(None, energy.dim)
    return Field(energy.formula(states), states)


def _field(energy: Landscape) -> Any:
    names = (n for n in energy.__dataclass_fields__ if not (n == "dim" and isinstance(energy, Banana)))
    return _field_of(type(energy), tuple((n, getattr(energy, n)) for n in names))
