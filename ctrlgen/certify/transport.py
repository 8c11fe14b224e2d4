"""What a transport equation does to a Gibbs measure at one point, in float64 and in ball arithmetic.

For ρ = exp(-E/ε) and the equation ∂ρ/∂t = ∇·(ρ∇D) + nΔρ the product rule gives

    (∇·(ρ∇D) + nΔρ)/ρ = r(x),   r = ΔD - ∇D·∇E/ε + n(|∇E|²/ε² - ΔE/ε),

and ρ is an equilibrium only if r vanishes identically.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import sympy as sp

from ctrlgen.continuity import JumpError
from ctrlgen.domain import Domain
from ctrlgen.energies.algebra import Composition
from ctrlgen.energies.base import Energy
from ctrlgen.energies.landscapes import Landscape
from ctrlgen.energies.symbolic import SymbolicEnergy
from ctrlgen.formula import rationalise
from ctrlgen.prove.claim import Claim, Deadline

BITS, RECHECK_BITS = 128, 256
SIDE, RECHECK_SIDE = 64, 100  # 2^-SIDE is half a side of the box on which E is looked at


class OutsideError(ValueError):
    """A point that is not certainly inside the domain."""


@dataclass(frozen=True, eq=False)
class Transport:
    """The transport equation ∂ρ/∂t = ∇·(ρ∇drift) + noise·Δρ and the Gibbs measure that it is asked about."""

    energy: Energy
    temperature: float
    drift: Energy
    noise: float
    domain: Domain | None
    states: tuple[sp.Symbol, ...]

    @property
    def own(self) -> bool:
        """Is the drift's energy that of the Gibbs measure?"""
        return self.drift is self.energy

    def jets(self) -> tuple[Any, Any]:
        """Enclosures of (E, D), made anew."""
        jet = jet_of(self.energy)
        return jet, jet if self.own else jet_of(self.drift)

    def ratio(self, jets: tuple[Any, Any], point: Sequence[float], bits: int, side: int, deadline: Deadline) -> Any:
        """Enclosures of r and of the sum of the sizes of its terms, on a small box around a point of the domain.

        Raises:
            OutsideError: the point may not be inside the domain.
            Undefined: D or E may not be C² there.
            Unsupported: D, E or the domain has no enclosure.
            TimeoutError: the deadline passed.
        """
        from flint import ctx, fmpq

        from ctrlgen.prove.pointwise import box_around, reading

        with ctx.workprec(bits):
            box = box_around([fmpq(*float(v).as_integer_ratio()) for v in point], fmpq(1, 2**side))
            if not self._inside(box, bits):
                raise OutsideError("the point is not certainly inside the domain.")
            slope, laplacian = jets[0].around(box, bits, deadline)
            other, second = (slope, laplacian) if self.own else jets[1].around(box, bits, deadline)
            temperature, noise = reading(self.temperature), reading(self.noise)
            square = sum(g * g for g in slope)
            if self.own:
                value = (1 - noise / temperature) * (laplacian - square / temperature)
            else:
                product = sum(g * h for g, h in zip(slope, other, strict=True))
                value = second - product / temperature
                value += noise * (square / temperature - laplacian) / temperature
            length = sum(abs(g * h) for g, h in zip(slope, other, strict=True))
            size = abs(second) + length / temperature
            size += noise * (square / temperature + abs(laplacian)) / temperature
            return value, size

    def _inside(self, box: Sequence[Any], bits: int) -> bool:
        from ctrlgen.prove.balls import Compiled

        if self.domain is None:
            return True
        pieces = [p.guards for p in self.domain.pieces(self.states)]
        return any(not p or all(g > 0 for g in Compiled(p, self.states).at(box, bits)) for p in pieces)

    def floats(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """r, the sum of the sizes of its terms, and |∇E|²/ε at points (n, d), in float64; NaN where undefined."""
        e, n = self.temperature, self.noise
        slope, laplacian = descent(self.energy, x)[1], _laplacian(self.energy, x)
        other, second = slope, laplacian
        if not self.own:
            other, second = descent(self.drift, x)[1], _laplacian(self.drift, x)
        with np.errstate(all="ignore"):
            square = (slope**2).sum(axis=1) / e
            value = second - (slope * other).sum(axis=1) / e + n / e * (square - laplacian)
            size = abs(second) + abs(slope * other).sum(axis=1) / e + n / e * (square + abs(laplacian))
        return value, size, square

    def contains(self, x: np.ndarray) -> np.ndarray:
        """Which of the points (n, d) lie in the domain, in float64, or within reach where there is none."""
        if self.domain is None:  # not too far out: an energy without a lower bound has no end
            known = [c for energy in (self.energy, self.drift) for c in centres(energy)]
            return abs(x).max(axis=1) <= 1000 * (1 + max((float(abs(c).max()) for c in known), default=0.0))
        return np.isfinite(x).all(axis=1) & np.asarray(self.domain.contains(x, self.states))

    def text(self, point: Sequence[float], low: float, high: float) -> str:
        """What is certified at a witness, in words and symbols."""
        exact = np.asarray(point, np.float64)
        told = [f"{v!r}" for v in map(float, exact[:6])]
        if len(exact) > 6:
            told[3:] = [f"... ({len(exact)} coordinates, sha256 {hashlib.sha256(exact.tobytes()).hexdigest()[:16]})"]
        e, n = f"{self.temperature!r}", f"{self.noise!r}"
        value = f"ΔE - |∇E|²/{e}" if self.own else f"ΔD - ∇D·∇E/{e}"
        if self.noise:
            value += f" + {n}(|∇E|²/{e} - ΔE)/{e}"
        where = "" if self.domain is None else f", a point inside {self.domain!r}"
        return f"at x = ({', '.join(told)}){where}, {value} lies between {low!r} and {high!r}"


@dataclass(frozen=True, eq=False)
class NotZero:
    """Certificate that r is not zero at a point.

    Args:
        claim: the claim that it belongs to; its text is that of the numbers here.
        transport: the equation.
        witness: (d,) floats, each the exact number that it is.
        low, high: r lies between them, and 0 does not.
    """

    claim: Claim
    transport: Transport = field(repr=False)
    witness: tuple[float, ...]
    low: float
    high: float
    kinds: ClassVar = ("premise",)

    def recheck(self) -> bool:
        """Enclose r again from the energies' own code: with more bits, on a smaller box."""
        from ctrlgen.prove.balls import Undefined, Unsupported

        t = self.transport
        if self.claim.text != t.text(self.witness, self.low, self.high) or self.low <= 0 <= self.high:
            return False
        try:
            value, _ = t.ratio(t.jets(), self.witness, RECHECK_BITS, RECHECK_SIDE, Deadline(1e9))
        except (OutsideError, Undefined, Unsupported, JumpError):
            return False
        return bool(value >= self.low and value <= self.high)


def identity_holds() -> bool:
    """The product rule behind r in one coordinate, by SymPy; in d coordinates both sides are sums over them."""
    x, temperature, noise = sp.Symbol("x", real=True), *sp.symbols("epsilon n", positive=True)
    energy, drift = sp.Function("E")(x), sp.Function("D")(x)
    density = sp.exp(-energy / temperature)
    change = sp.diff(density * sp.diff(drift, x), x) + noise * sp.diff(density, x, 2)
    slope, second = sp.diff(energy, x), sp.diff(energy, x, 2)
    ratio = sp.diff(drift, x, 2) - sp.diff(drift, x) * slope / temperature
    ratio += noise * (slope**2 / temperature**2 - second / temperature)
    return sp.simplify(change - density * ratio) == 0


def formula_of(energy: Energy, states: Sequence[sp.Symbol]) -> Any:
    """The formula that an energy is, with exact numbers; None for one that is given otherwise."""
    if isinstance(energy, Composition):
        parts = [formula_of(term, states) for term in energy.terms]
        if any(p is None for p in parts):
            return None
        return sp.Add(*(rationalise(float(w)) * p for w, p in zip(energy.weights, parts, strict=True)))
    if isinstance(energy, Landscape) or (isinstance(energy, SymbolicEnergy) and energy.field.expr is not None):
        return rationalise(energy.symbolic(states))
    return None


def plain_states(dim: int) -> tuple[sp.Symbol, ...]:
    """x1, ..., xd."""
    return tuple(sp.Symbol(f"x{i + 1}", real=True) for i in range(dim))


def jet_of(energy: Energy) -> Any:
    """The enclosures of an energy's derivatives: of its formula, or of its jaxpr.

    Raises:
        Unsupported: neither has any.
    """
    from ctrlgen.prove.balls import Unsupported
    from ctrlgen.prove.pointwise import FormulaJet, TracedJet

    states = plain_states(energy.dim)
    formula = formula_of(energy, states)
    if formula is not None:
        try:
            return FormulaJet(formula, states)
        except (JumpError, Unsupported):
            pass  # a kink somewhere: the jaxpr tells on which side of it a point lies
    return TracedJet(energy.potential, energy.dim)


def batch(dim: int) -> int:
    """How many points are looked at in float64 together."""
    return 128 if dim <= 8 else 32


def descent(energy: Energy, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """E and ∇E at up to `batch` points (n, d), in float64."""
    value, slope = energy._evaluate(_both, _filled(x))
    return np.asarray(value)[: len(x)], np.asarray(slope)[: len(x)]


def _laplacian(energy: Energy, x: np.ndarray) -> np.ndarray:
    return np.asarray(energy.laplacian(_filled(x)))[: len(x)]


def _filled(x: np.ndarray) -> np.ndarray:
    """`batch` points, the last one repeated: so that each function is compiled once."""
    return np.concatenate([x, np.repeat(x[-1:], batch(x.shape[1]) - len(x), axis=0)])


def _both(energy: Energy, x: Any) -> tuple[Any, Any]:
    return energy.potential(x), energy.slope(x)


def centres(energy: Energy) -> list[np.ndarray]:
    """The means or centres that an energy knows, each (d,): points near which its mass is."""
    if isinstance(energy, Composition):
        return [c for term in energy.terms for c in centres(term)]
    known = [getattr(energy, name, None) for name in ("mean", "means", "center")]
    return [row for k in known if k is not None for row in np.asarray(k, np.float64).reshape(-1, energy.dim)[:16]]
