"""The Gaussian family, symbolically: V = KL(ρ‖ρ*), V̇ along the closed loop, I, and the identity V̇ + εI = 0.

Under E = ½ (x - μ)ᵀP(x - μ) the law N(m, C) moves by ṁ = -P(m - μ), Ċ = -PC - CP + 2εI. In an explicit dimension
the parameters are matrices of symbols and V̇ is the chain rule entry by entry. In any dimension n they are matrix
symbols, and expressions are sums of traces of words, compared in their normal form (see `traces`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import sympy as sp

from ctrlgen.certify.premise import missing, premise
from ctrlgen.certify.traces import Traces
from ctrlgen.certify.verdict import Verdict, combine
from ctrlgen.checks import dimension
from ctrlgen.energies.base import Energy
from ctrlgen.formula import rationalise
from ctrlgen.prove.claim import Deadline

MOST_FULL = 3  # the largest dimension with full matrices of symbols: the determinant of the next has 17 terms in 10


@dataclass(frozen=True)
class SymbolicGaussian:
    """A Gaussian density whose moments are SymPy expressions.

    Args:
        mean: m, d expressions [length].
        covariance: C, (d, d) symmetric [length²], taken to be positive definite where its symbols are.

    Raises:
        ValueError: mean is not a vector, or covariance is not symmetric of its size.
    """

    mean: Any
    covariance: Any

    def __post_init__(self) -> None:
        mean, covariance = sp.ImmutableMatrix(self.mean), sp.ImmutableMatrix(self.covariance)
        if mean.cols != 1 or mean.rows == 0:
            raise ValueError(f"mean must be a vector of d expressions; got shape {mean.shape}.")
        if covariance.shape != (mean.rows, mean.rows):
            raise ValueError(f"covariance must be ({mean.rows}, {mean.rows}), to fit mean; got {covariance.shape}.")
        if any(sp.simplify(entry) != 0 for entry in covariance - covariance.T):
            raise ValueError("covariance must be symmetric; use one symbol for both of its entries (i, j) and (j, i).")
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "covariance", covariance)

    @property
    def dim(self) -> int:
        """d."""
        return self.mean.rows


def quadratic_formula(energy: Energy) -> tuple[sp.Matrix, sp.Matrix] | None:
    """(P, b) of E(x) = ½ xᵀPx - bᵀx + constant, exactly, where the energy's formula is such a polynomial; else None.

    Floating-point numbers of the energy are read as the decimals that they print as.
    """
    states = sp.symbols(f"x1:{energy.dim + 1}", real=True)
    try:
        formula = rationalise(sp.sympify(energy.symbolic(states)))
        polynomial = sp.Poly(formula, *states)
    except (TypeError, ValueError, sp.PolynomialError):
        return None
    if polynomial.total_degree() > 2:
        return None
    origin = dict.fromkeys(states, 0)
    expr = polynomial.as_expr()
    slope = sp.Matrix([sp.diff(expr, s) for s in states])
    return slope.jacobian(sp.Matrix(states)), -slope.subs(origin)


def kl_formula(precision: Any, target: Any, mean: Any, covariance: Any, temperature: Any) -> sp.Expr:
    """KL(N(m, C) ‖ N(μ, εP⁻¹)) [nats]: ½ (tr(PC)/ε - d - log det(PC/ε) + (m - μ)ᵀP(m - μ)/ε)."""
    d, gap = mean.rows, mean - target
    volume = sp.log(precision.det()) + sp.log(covariance.det()) - d * sp.log(temperature)
    return (
        (precision * covariance).trace() / temperature - d - volume + (gap.T * precision * gap)[0] / temperature
    ) / 2


def fisher_formula(precision: Any, target: Any, mean: Any, covariance: Any, temperature: Any) -> sp.Expr:
    """I = E|∇log ρ/ρ*|² of the same [1 / length²]: tr(SCS) + |P(m - μ)|²/ε², S = P/ε - C⁻¹."""
    inverse = covariance.adjugate() / covariance.det() if mean.rows <= MOST_FULL else covariance.inv()
    score, push = precision / temperature - inverse, precision * (mean - target)
    return (score * covariance * score).trace() + (push.T * push)[0] / temperature**2


class GaussianFamily(ABC):
    """All Gaussians N(m, C) in the closed loop of all quadratic energies, with symbolic parameters.

    Made by `gaussian_family`.

    Attributes:
        dim: d, or a symbol for any dimension.
        mean, covariance: m and C of the density now.
        precision, target: P and μ of the energy ½ (x - μ)ᵀP(x - μ).
        temperature: ε > 0.
    """

    dim: Any
    mean: Any
    covariance: Any
    precision: Any
    target: Any
    temperature: sp.Symbol

    @property
    @abstractmethod
    def flow(self) -> tuple[Any, Any]:
        """(ṁ, Ċ) = (-P(m - μ), -PC - CP + 2εI)."""

    @cached_property
    @abstractmethod
    def value(self) -> sp.Expr:
        """V = KL(N(m, C) ‖ N(μ, εP⁻¹)) [nats]."""

    @cached_property
    @abstractmethod
    def derivative(self) -> sp.Expr:
        """V̇, the derivative of `value` along `flow` by the chain rule [nats / time]."""

    @cached_property
    @abstractmethod
    def fisher(self) -> sp.Expr:
        """I(ρ‖ρ*) [1 / length²]."""

    @cached_property
    @abstractmethod
    def identity(self) -> sp.Expr:
        """V̇ + εI, simplified: 0."""

    @cached_property
    @abstractmethod
    def transport(self) -> sp.Expr:
        """∂ₜlog ρ - (ΔE + ∇E·∇log ρ + ε(Δlog ρ + |∇log ρ|²)) for ρ = N(m, C) along `flow`, simplified: 0.

        Times ρ, it is the residual of the Fokker–Planck equation: `flow` is what the closed loop does to a Gaussian.
        """

    def verify(self) -> Verdict:
        """The verdict on V̇ = -εI along the closed loop, for all parameters with P ≻ 0, C ≻ 0, ε > 0: PROVED.

        Each step's check forms the expressions anew and simplifies them again.
        """
        size = "any dimension" if isinstance(self.dim, sp.Symbol) else f"dimension {self.dim}"
        steps, clock = [], Deadline(60.0)
        for name, fact, rule in (
            (
                "transport",
                "N(m, C) with ṁ = -P(m - μ), Ċ = -PC - CP + 2εI solves ∂ρ/∂t = ∇·(ρ∇E) + εΔρ",
                "the residual of the Fokker–Planck equation simplifies to 0",
            ),
            ("identity", "V̇ + εI = 0", "the chain rule along ṁ and Ċ, and I in closed form; the sum simplifies to 0"),
        ):
            text = f"{fact} ({size})"
            step = premise(text, rule, self._check(name), method="symbolic")
            steps.append(step if step.recheck() else missing(text, f"{name} simplifies to {getattr(self, name)}"))
        return combine(
            f"V̇ = -εI for E = ½ (x - μ)ᵀP(x - μ) and every Gaussian density, in {size}",
            steps,
            assumptions=(
                "P ≻ 0, C ≻ 0, ε > 0",
                "KL and relative Fisher information of two Gaussians in closed form (textbook)",
            ),
            deadline=clock,
        )

    def _check(self, name: str) -> Callable[[], bool]:
        arguments = (self.dim, getattr(self, "diagonal", False))
        return lambda: getattr(gaussian_family(arguments[0], diagonal=arguments[1]), name) == 0


def gaussian_family(dim: Any = None, *, diagonal: bool = False) -> GaussianFamily:
    """The Gaussian family with symbolic parameters.

    Args:
        dim: d; None or a SymPy symbol for any dimension, with matrix symbols.
        diagonal: P and C diagonal. Full matrices of symbols are for d ≤ 3; above, take this or any dimension.

    Raises:
        ValueError: dim is not a positive integer, or too large for full matrices.
    """
    if dim is None or isinstance(dim, sp.Symbol):
        if diagonal:
            raise ValueError("diagonal is for an explicit dim; in any dimension P and C are matrix symbols.")
        return _AnyDimension(dim)
    dim = dimension(dim, 1)
    if dim > MOST_FULL and not diagonal:
        raise ValueError(
            f"dim must be at most {MOST_FULL} for full matrices of symbols; got {dim}. "
            "Pass diagonal=True, or dim=None for any dimension."
        )
    return _Explicit(dim, diagonal)


class _Explicit(GaussianFamily):
    """Matrices of symbols."""

    def __init__(self, dim: int, diagonal: bool) -> None:
        self.dim, self.diagonal = dim, diagonal
        self.temperature = sp.Symbol("epsilon", positive=True)
        self.precision, self.covariance = (_symmetric(name, dim, diagonal) for name in ("p", "c"))
        self.mean, self.target = (
            sp.ImmutableMatrix([sp.Symbol(f"{name}{i + 1}", real=True) for i in range(dim)]) for name in ("m", "mu")
        )

    @property
    def _parameters(self) -> tuple[Any, ...]:
        return self.precision, self.target, self.mean, self.covariance, self.temperature

    @property
    def flow(self) -> tuple[Any, Any]:
        p, c = self.precision, self.covariance
        return -p * (self.mean - self.target), -p * c - c * p + 2 * self.temperature * sp.eye(self.dim)

    @cached_property
    def value(self) -> sp.Expr:
        return kl_formula(*self._parameters)

    @cached_property
    def derivative(self) -> sp.Expr:
        return self._along(self.value)

    def _along(self, expr: sp.Expr) -> sp.Expr:
        rate, spread = self.flow
        moved = {self.mean[i]: rate[i] for i in range(self.dim)}
        moved |= {
            self.covariance[i, j]: spread[i, j]
            for i in range(self.dim)
            for j in range(i, self.dim)
            if self.covariance[i, j] != 0
        }
        return sp.Add(*(sp.diff(expr, symbol) * speed for symbol, speed in moved.items()))

    @cached_property
    def fisher(self) -> sp.Expr:
        return fisher_formula(*self._parameters)

    @cached_property
    def identity(self) -> sp.Expr:
        return _rational(self.derivative + self.temperature * self.fisher)

    @cached_property
    def transport(self) -> sp.Expr:
        x = sp.Matrix(sp.symbols(f"x1:{self.dim + 1}", real=True))
        gap, c = x - self.mean, self.covariance
        log_density = -((gap.T * c.adjugate() * gap)[0] / c.det() + sp.log(c.det())) / 2
        off = x - self.target
        energy = (off.T * self.precision * off)[0] / 2
        motion = sum(
            sp.diff(energy, s, 2)
            + sp.diff(energy, s) * sp.diff(log_density, s)
            + self.temperature * (sp.diff(log_density, s, 2) + sp.diff(log_density, s) ** 2)
            for s in x
        )
        return _rational(self._along(log_density) - motion)


def _symmetric(name: str, dim: int, diagonal: bool) -> sp.ImmutableMatrix:
    def entry(i: int, j: int) -> Any:
        if i == j:
            return sp.Symbol(f"{name}{i + 1}{j + 1}", positive=True)
        return 0 if diagonal else sp.Symbol(f"{name}{min(i, j) + 1}{max(i, j) + 1}", real=True)

    return sp.ImmutableMatrix(dim, dim, entry)


def _rational(expr: sp.Expr) -> sp.Expr:
    """A rational function over one denominator, which is 0 only if its numerator is the zero polynomial."""
    numerator, denominator = sp.fraction(sp.together(expr))
    return sp.expand(numerator) / denominator


class _AnyDimension(GaussianFamily):
    """Matrix symbols of a symbolic size."""

    def __init__(self, dim: sp.Symbol | None) -> None:
        self.dim = sp.Symbol("n", integer=True, positive=True) if dim is None else dim
        self.temperature = sp.Symbol("epsilon", positive=True)
        self.precision, self.covariance = (sp.MatrixSymbol(name, self.dim, self.dim) for name in ("P", "C"))
        self.mean, self.target = (sp.MatrixSymbol(name, self.dim, 1) for name in ("m", "mu"))

    @property
    def flow(self) -> tuple[Any, Any]:
        p, c = self.precision, self.covariance
        return -p * (self.mean - self.target), -p * c - c * p + 2 * self.temperature * sp.Identity(self.dim)

    @cached_property
    def value(self) -> sp.Expr:
        p, c, gap, heat = self.precision, self.covariance, self.mean - self.target, self.temperature
        volume = sp.log(sp.Determinant(p)) + sp.log(sp.Determinant(c)) - self.dim * sp.log(heat)
        return (sp.Trace(p * c) / heat - self.dim - volume + sp.Trace(p * gap * gap.T) / heat) / 2

    @cached_property
    def derivative(self) -> sp.Expr:
        return self._traces.along(self.value, dict(zip((self.mean, self.covariance), self.flow, strict=True)))

    @cached_property
    def fisher(self) -> sp.Expr:
        p, c, heat = self.precision, self.covariance, self.temperature
        score, push = p / heat - c.inverse(), p * (self.mean - self.target)
        return sp.Trace(score * c * score) + sp.Trace(push * push.T) / heat**2

    @cached_property
    def identity(self) -> sp.Expr:
        return self._traces.normal(self.derivative + self.temperature * self.fisher)

    @cached_property
    def transport(self) -> sp.Expr:
        x = sp.MatrixSymbol("x", self.dim, 1)
        p, k, gap = self.precision, self.covariance.inverse(), x - self.mean
        log_density = -(sp.Trace(k * gap * gap.T) + sp.log(sp.Determinant(self.covariance))) / 2
        slope, pull = -k * gap, p * (x - self.target)  # ∇log ρ and ∇E
        motion = sp.Trace(p) + sp.Trace(pull * slope.T) + self.temperature * (sp.Trace(slope * slope.T) - sp.Trace(k))
        moved = dict(zip((self.mean, self.covariance), self.flow, strict=True))
        return self._traces.normal(self._traces.along(log_density, moved) - motion)

    @property
    def _traces(self) -> Traces:
        return Traces(self.dim, (self.precision, self.covariance))
