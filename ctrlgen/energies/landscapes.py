"""Classic test landscapes. Each is written once, as a SymPy formula; the JAX view is derived from it."""

from __future__ import annotations

from abc import abstractmethod
from fractions import Fraction
from functools import lru_cache
from typing import Any

import equinox as eqx

from ctrlgen.checks import dimension, positive
from ctrlgen.energies.base import Energy, Properties, default_states
from ctrlgen.energies.spectral import down, up
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
        # A x⁴ + B x² along x₁: E₁₁ = 12 A x² + 2B, and 4A x⁴ + 2B x² ≥ k x² - (k - 2B)²/(16 A)
        b, a, k = map(Fraction, (self.barrier, self.separation, self.stiffness))
        quartics = [(b / a**4, -2 * b / a**2), _along(self)]
        stiffness = min(k, 2 * _along(self, axis=1)[1]) if self.dim > 1 else k
        return Properties(
            hessian_lower=down(min(2 * two for _, two in quartics)),
            dissipativity=(
                down(stiffness),
                up(max((stiffness - 2 * two) ** 2 / (16 * four) for four, two in quartics)),
            ),
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

    @property
    def properties(self) -> Properties:
        """Of a straight one (c = 0), a quadratic. A bent one has no constants at all.

        Its Hessian is unbounded on both sides, and along x₂ = (3/2)c x₁² the term ⟨x, ∇E⟩ falls like -c²x₁⁴/4.
        """
        if self.curvature != 0:
            return Properties()
        ends = [Fraction(1), 1 / Fraction(self.scale) ** 2, 2 * _along(self)[1], 2 * _along(self, axis=1)[1]]
        low, high = down(min(ends)), up(max(ends))
        return Properties(hessian_lower=low, hessian_upper=high, dissipativity=(low, 0.0))


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
        # E = A t² + B t with t = |x|²: ∇²E = (4At + 2B) I + 8A xxᵀ ⪰ 2B, and 4At² + 2Bt ≥ a t - (a - 2B)²/(16A)
        k, r = Fraction(self.stiffness), Fraction(self.radius)
        quartics = [(k / (8 * r**2), -k / 4), _along(self)]
        a = min(-2 * two for _, two in quartics)
        return Properties(
            hessian_lower=down(min(2 * two for _, two in quartics)),
            dissipativity=(down(a), up(max((a - 2 * two) ** 2 / (16 * four) for four, two in quartics))),
        )


@lru_cache(maxsize=256)
def _field_of(kind: type, arguments: tuple) -> Any:
    energy = kind(**dict(arguments))
    states = default_states(None, energy.dim)
    return Field(energy.formula(states), states)


def _arguments(energy: Landscape) -> tuple:
    names = (n for n in energy.__dataclass_fields__ if not (n == "dim" and isinstance(energy, Banana)))
    return tuple((n, getattr(energy, n)) for n in names)


def _field(energy: Landscape) -> Any:
    return _field_of(type(energy), _arguments(energy))


def _along(energy: Landscape, axis: int = 0) -> tuple[Fraction, Fraction]:
    """The coefficients of x⁴ and x² along one axis in the formula that is evaluated: its numbers were rounded."""
    return _quartic_of(type(energy), _arguments(energy), axis)


@lru_cache(maxsize=256)
def _quartic_of(kind: type, arguments: tuple, axis: int) -> tuple[Fraction, Fraction]:
    field = _field_of(kind, arguments)
    expr = field.formula()
    at = [expr.subs(dict.fromkeys(field.states, 0) | {field.states[axis]: x}) for x in (0, 1, 2)]
    zero, one, two = (Fraction(int(v.p), int(v.q)) for v in at)
    one, two = one - zero, two - zero  # A + B, 16A + 4B
    return (two - 4 * one) / 12, (16 * one - two) / 12
