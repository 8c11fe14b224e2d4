"""An upper bound of KL(ρ₀‖ρ*) for a Gaussian start ρ₀ = N(m, C), in ball arithmetic.

KL(ρ₀‖ρ*) = -H(ρ₀) + E_ρ₀[E]/ε + log Z. The entropy H is closed form; E_ρ₀[E] and log Z are closed form for a quadratic
energy, and are bounded from the energy's constants otherwise. Every number is rounded up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from flint import arb, arb_mat, ctx, fmpq

from ctrlgen.certify.constants import established
from ctrlgen.certify.premise import premise, shown_down, shown_up
from ctrlgen.certify.verdict import Step
from ctrlgen.datasets import Gaussian
from ctrlgen.energies.algebra import Composition, compose
from ctrlgen.energies.analytic import GaussianMixture, Quadratic
from ctrlgen.energies.base import Energy
from ctrlgen.energies.observation import LeastSquares
from ctrlgen.prove.balls import Unsupported, positive_definite
from ctrlgen.prove.enclosures import Undefined
from ctrlgen.prove.traced import Traced

BITS = 256
SHARES = (0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9)  # of the confinement that is spent on its offset


@dataclass(frozen=True)
class InitialBound:
    """KL(ρ₀‖ρ*) ≤ value.

    Args:
        value: the bound, rounded up [nats].
        steps: what it rests on, as steps of a verdict.
        assumptions: what is taken for granted.
    """

    value: float
    steps: tuple[Step, ...]
    assumptions: tuple[str, ...] = ()


def exact(value: Any) -> fmpq:
    """A float as the rational number that it is."""
    return fmpq(*float(value).as_integer_ratio())


def float_above(ball: arb) -> float:
    """The least float that is not below the ball, or one next to it; ∞ where there is none."""
    if not ball.is_finite():
        return float("inf")
    value = math.nextafter(float(ball.upper()), -math.inf)
    while math.isfinite(value) and not arb(exact(value)) >= ball:
        value = math.nextafter(value, math.inf)
    return value


# The quadratic part of an energy --------------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """½ xᵀPx - bᵀx + c with exact rational coefficients."""

    precision: list[list[fmpq]]
    push: list[fmpq]
    constant: fmpq

    @property
    def matrix(self) -> arb_mat:
        """P as balls at the working precision."""
        return arb_mat([[arb(v) for v in row] for row in self.precision])

    @property
    def confining(self) -> bool:
        """Is P ≻ 0 established?"""
        return positive_definite([[arb(v) for v in row] for row in self.precision])


def split(energy: Energy) -> tuple[Form | None, Energy | None]:
    """An energy as its quadratic terms, exactly, and the rest of it; None for a part that is not there."""
    terms = list(zip(map(float, energy.weights), energy.terms, strict=True)) if isinstance(energy, Composition) else [
        (1.0, energy)
    ]  # fmt: skip
    quadratic = [(exact(w), t) for w, t in terms if isinstance(t, (Quadratic, LeastSquares))]
    rest = [(w, t) for w, t in terms if not isinstance(t, (Quadratic, LeastSquares))]
    other = compose([t for _, t in rest], [w for w, _ in rest], check=False) if rest else None
    if not quadratic:
        return None, other
    d = energy.dim
    precision, push, constant = [[fmpq(0)] * d for _ in range(d)], [fmpq(0)] * d, fmpq(0)
    for w, term in quadratic:
        p, pull, bottom = _coefficients(term)
        precision = [[a + w * b for a, b in zip(r, s, strict=True)] for r, s in zip(precision, p, strict=True)]
        push = [a + w * b for a, b in zip(push, pull, strict=True)]
        constant += w * bottom
    return Form(precision, push, constant), other


def _quadratic_terms(energy: Energy) -> Energy:
    """The sum of an energy's quadratic terms."""
    if not isinstance(energy, Composition):
        return energy
    pairs = zip(map(float, energy.weights), energy.terms, strict=True)
    kept = [(w, t) for w, t in pairs if isinstance(t, (Quadratic, LeastSquares))]
    return compose([t for _, t in kept], [w for w, _ in kept], check=False)


def _coefficients(term: Quadratic | LeastSquares) -> tuple[list[list[fmpq]], list[fmpq], fmpq]:
    """(P, b, c) of one quadratic term, exactly."""
    if isinstance(term, LeastSquares):
        p, pull = ([fmpq(v.numerator, v.denominator) for v in a.ravel()] for a in term.normal_equations())
        rows = [p[i : i + term.dim] for i in range(0, len(p), term.dim)]
        pairs = zip(np.asarray(term.observation), np.asarray(term.sigma), strict=True)
        return rows, pull, sum(((exact(y) / exact(s)) ** 2 for y, s in pairs), fmpq(0)) / 2
    rows = [[exact(v) for v in row] for row in np.asarray(term.precision)]
    mean = [exact(v) for v in np.asarray(term.mean)]
    pull = [sum((a * m for a, m in zip(row, mean, strict=True)), fmpq(0)) for row in rows]
    return rows, pull, sum((a * m for a, m in zip(pull, mean, strict=True)), fmpq(0)) / 2


def column(values: Any) -> arb_mat:
    """A vector of floats or rationals as balls, (d, 1)."""
    return arb_mat([[arb(v if isinstance(v, fmpq) else exact(v))] for v in values])


def square(covariance: Any) -> arb_mat:
    """A covariance of floats as balls, by its lower triangle: that is what its Cholesky factor is made of.

    The upper one may differ by the rounding that a `Gaussian` tolerates.
    """
    c = np.asarray(covariance, dtype=np.float64)
    return arb_mat([[arb(exact(v)) for v in row] for row in np.tril(c) + np.tril(c, -1).T])


def _mean_of_form(form: Form, mean: Any, covariance: Any) -> arb:
    """E_ρ[½ xᵀPx - bᵀx + c] of a Gaussian."""
    m, p = column(mean), form.matrix
    value = (m.transpose() * p * m)[0, 0] / 2 - (column(form.push).transpose() * m)[0, 0] + arb(form.constant)
    return value + (p * square(covariance)).trace() / 2 if covariance is not None else value


def _log_partition_of_form(form: Form, temperature: arb) -> arb:
    """log ∫ exp(-(½ xᵀPx - bᵀx + c)/ε) for P ≻ 0."""
    p, b, d = form.matrix, column(form.push), len(form.push)
    low = arb(form.constant) - (b.transpose() * p.solve(b))[0, 0] / 2
    return -low / temperature + (d * (2 * arb.pi() * temperature).log() - p.det().log()) / 2


def _minus_entropy(covariance: Any) -> arb:
    c = square(covariance)
    return -(c.nrows() * (1 + (2 * arb.pi()).log()) + c.det().log()) / 2


# The routes -----------------------------------------------------------------------------------------------


def initial_kl(energy: Energy, temperature: float, mean: Any, covariance: Any) -> InitialBound:
    """The smallest bound of KL(N(mean, covariance)‖ρ*) among the routes that are open.

    1. A quadratic energy: the closed form.
    2. A quadratic with P ≻ 0 plus a term of bounded oscillation: the closed form of the quadratic + oscillation/ε,
       because log Z ≤ log Z_quadratic - inf(term)/ε and E_ρ₀[term] ≤ sup(term).
    3. A quadratic with P ⪰ m > 0 plus a term H with |∇H| ≤ G: with K the closed form of the quadratic ρ_Q,
       KL ≤ (√K + G/√(2εm))², because E_ρ₀[H] - E_Q[H] ≤ G W₂(ρ₀, ρ_Q) ≤ G√(2Kε/m) (Talagrand) and
       log E_Q[exp(-H/ε)] ≤ -E_Q[H]/ε + G²/(2εm) (Herbst).
    4. E_ρ₀[E] ≤ E(m) + ½ U tr C from ∇²E ⪯ U, with the quadratic terms taken exactly, and log Z from the closed form
       of a mixture at its own temperature; or from ∇²E ⪰ m > 0, E(x) ≥ E(x₀) + ∇E(x₀)·(x - x₀) + ½m|x - x₀|² at a
       numerically found minimiser x₀; or from dissipativity ⟨x, ∇E⟩ ≥ a|x|² - b together with ∇²E ⪰ m: with
       r² = b/(aγ), E(x) ≥ E(0) - |∇E(0)|r - ½max(0, -m)r² + ½a(1 - γ)(|x|² - r²) for every γ in (0, 1).

    Args:
        energy: E.
        temperature: ε > 0.
        mean: (d,).
        covariance: (d, d), positive definite.

    Raises:
        ValueError: the Gaussian does not fit the energy, or no route is open; says what is missing.
    """
    start = Gaussian(mean, covariance)
    if start.dim != energy.dim:
        raise ValueError(f"initial_mean must have the energy's dimension {energy.dim}; got {start.dim}.")
    found, closed = [], []
    with ctx.workprec(BITS):
        for text, bound, steps in _routes(energy, temperature, start, closed):
            try:
                value = bound()
            except (ZeroDivisionError, Undefined, Unsupported) as error:
                closed.append(str(error))
                continue
            if np.isfinite(above := float_above(value)):
                found.append((above, text, bound, steps))
            else:
                closed.append("the bound is beyond the range of floats, or a matrix is too near singular for it")
    if not found:
        raise ValueError(
            "KL(ρ₀‖ρ*) could not be bounded: " + "; ".join(dict.fromkeys(closed)) + ". Pass initial_kl, an upper bound."
        )
    value, text, bound, steps = min(found, key=lambda f: f[0])
    value = max(value, 0.0)

    def check() -> bool:
        with ctx.workprec(BITS):
            return bool(bound() <= arb(exact(value)))

    fact = premise(f"KL(ρ₀‖ρ*) ≤ {shown_up(value, 9)} for the Gaussian start", text, check, "interval")
    return InitialBound(value, (*steps, fact))


def _routes(energy: Energy, temperature: float, start: Gaussian, closed: list[str]) -> Iterator[tuple]:
    """(text, bound, premises) of every route that is open; why one is not goes to `closed`."""
    eps = arb(exact(temperature))
    form, rest = split(energy)
    entropy = lambda: _minus_entropy(start.covariance)  # noqa: E731
    definite = form is not None and form.confining
    if form is not None and definite and rest is None:
        yield (
            "closed form of two Gaussians, in ball arithmetic",
            lambda: entropy() + _mean_of_form(form, start.mean, start.covariance) / eps
            + _log_partition_of_form(form, eps),
            (),
        )  # fmt: skip
        return
    if form is not None and definite and rest is not None:
        swing = established(rest, "oscillation")
        if swing is not None:
            yield (
                "closed form for the quadratic terms; the others change KL by at most their oscillation/ε",
                lambda: entropy() + _mean_of_form(form, start.mean, start.covariance) / eps
                + _log_partition_of_form(form, eps) + arb(exact(swing[0])) / eps,
                tuple(swing[1]),
            )  # fmt: skip
        steep, m = established(rest, "gradient_bound"), established(_quadratic_terms(energy), "hessian_lower")
        if steep is not None and m is not None and m[0] > 0:

            def lipschitz() -> arb:
                own = entropy() + _mean_of_form(form, start.mean, start.covariance) / eps
                own = (own + _log_partition_of_form(form, eps)).max(arb(0))
                return (own.sqrt() + arb(exact(steep[0])) / (2 * eps * arb(exact(m[0]))).sqrt()) ** 2

            yield (
                "closed form for the quadratic terms; others with |∇| ≤ G make √KL at most √KL + G/√(2εm)",
                lipschitz, (*m[1], *steep[1]),
            )  # fmt: skip
    smooth = rest if rest is not None else energy
    upper = established(smooth, "hessian_upper")
    if upper is None:
        closed.append("E_ρ₀[E] needs hessian_upper, which is not established")
        return
    value_at, whole = _evaluator(smooth), _evaluator(energy)

    def mean_energy() -> arb:
        spread = square(start.covariance).trace() * arb(exact(upper[0])) / 2
        exact_part = arb(0) if form is None or rest is None else _mean_of_form(form, start.mean, start.covariance)
        return exact_part + value_at(start.mean)[0] + spread

    mean_text = "E_ρ₀[E] ≤ E(m) + ½ hessian_upper tr C"
    for text, bound, steps in _partitions(energy, temperature, eps, whole, start, closed):
        yield (
            f"{mean_text}, entropy in closed form, and log Z {text}",
            lambda bound=bound: entropy() + mean_energy() / eps + bound(),
            (*upper[1], *steps),
        )


def _partitions(
    energy: Energy, temperature: float, eps: arb, evaluate: Callable, start: Gaussian, closed: list[str]
) -> Iterator[tuple[str, Callable[[], arb], tuple[Step, ...]]]:
    """Upper bounds of log Z: (how, bound, premises)."""
    d = energy.dim
    if isinstance(energy, GaussianMixture) and energy.temperature == temperature:
        yield "from the mixture's own weights", lambda: _mixture_log_partition(energy), ()
        return
    lower = established(energy, "hessian_lower")
    if lower is not None and lower[0] > 0:
        m, x0 = arb(exact(lower[0])), _minimiser(energy, start.mean)

        def convex() -> arb:
            value, slope = evaluate(x0)
            square_slope = sum((g * g for g in slope), arb(0))
            return -value / eps + square_slope / (2 * m * eps) + d * (2 * arb.pi() * eps / m).log() / 2

        yield f"from ∇²E ⪰ {shown_down(lower[0])}, expanded at a minimiser", convex, tuple(lower[1])
        return
    pair = energy.properties.dissipativity
    if lower is None or pair is None or not pair[0] > 0:
        closed.append("log Z needs hessian_lower > 0, or hessian_lower and dissipativity, which are not established")
        return
    a, b, m = arb(exact(pair[0])), arb(exact(max(pair[1], 0.0))), arb(exact(lower[0]))
    confined = premise(
        f"⟨x, ∇E⟩ ≥ {shown_down(pair[0])}|x|² - {shown_up(pair[1])}", "dissipativity, established by the energy",
        lambda: energy.properties.dissipativity == pair,
    )  # fmt: skip

    def dissipative() -> arb:
        value, slope = evaluate(np.zeros(d))
        push = sum((g * g for g in slope), arb(0)).sqrt()
        bounds = []
        for share in SHARES:
            gamma = arb(exact(share))
            r2 = b / (a * gamma)
            floor = value - push * r2.sqrt() + m * r2 / 2 if m < 0 else value - push * r2.sqrt()
            stiffness = a * (1 - gamma)
            bounds.append(-(floor - stiffness * r2 / 2) / eps + d * (2 * arb.pi() * eps / stiffness).log() / 2)
        return min(bounds, key=float_above)

    yield "from dissipativity and hessian_lower", dissipative, (*lower[1], confined)


def _mixture_log_partition(energy: GaussianMixture) -> arb:
    """log ∫ Σ exp(offset - ½|factor (x - mean)|²), which is 0 up to the rounding of the mixture's own numbers."""
    total, d = arb(0), energy.dim
    for factor, offset in zip(np.asarray(energy.factors), np.asarray(energy.offsets), strict=True):
        if factor.ndim == 0:
            volume = arb(exact(factor)) ** d
        else:
            volume = arb(1)
            for v in factor if factor.ndim == 1 else np.diag(factor):  # lower triangular
                volume *= arb(exact(v))
        total += arb(exact(offset)).exp() * (2 * arb.pi()) ** (arb(d) / 2) / volume
    return total.log()


def _minimiser(energy: Energy, near: np.ndarray) -> np.ndarray:
    """About where E is least; the bounds hold at any point."""
    from scipy.optimize import minimize

    found = minimize(lambda x: float(energy(x)), near, jac=lambda x: np.asarray(energy.gradient(x)), method="L-BFGS-B",
                     options={"ftol": 1e-14, "gtol": 1e-9})  # fmt: skip
    return np.asarray(found.x, dtype=np.float64)


def _evaluator(energy: Energy) -> Callable[[Any], tuple[arb, list[arb]]]:
    """E and ∇E at a point as balls; raises Unsupported or Undefined where they cannot be enclosed."""
    return lambda x: _enclosed(Traced(energy.potential, energy.dim), x)


def _enclosed(traced: Traced, x: Any) -> tuple[arb, list[arb]]:
    point = [arb(exact(v)) for v in x]
    value, slopes = traced.wide(point), traced.slopes(point)
    if slopes is None:
        raise Undefined("the energy branches at a point where its gradient is needed")
    return value, list(slopes)
