"""The log-Sobolev constant of a Gibbs measure, from established constants of its energy: what makes KL a Lyapunov
functional with a rate.

LSI(α): KL(ρ‖ρ*) ≤ I(ρ‖ρ*)/(2α) for every ρ. With V̇ = -εI it gives V(t) ≤ exp(-2εα t) V(0). Let E = C + B + H with C
m-strongly convex, m > 0, B of oscillation b, and H G-Lipschitz. Then ρ* ∝ exp(-E/ε) satisfies LSI(α) with

    α = (m/ε) · exp(-b/ε) · exp(-(G²/(εm) + 2G/√(εm))).

* m/ε for C alone: Bakry and Émery (1985). C may be +∞ outside a convex set, being a limit of convex functions.
* exp(-b/ε) for B: Holley and Stroock, J. Stat. Phys. 46 (1987) 1159.
* The last factor for H, by Lipschitz transport. Caffarelli (Commun. Math. Phys. 214, 2000) maps N(0, (ε/m) I) to
  exp(-C/ε) by a 1-Lipschitz T; H∘T has the same Lipschitz constant, so C = m|x|²/2 may be assumed. In units of √(ε/m)
  the measure is f γ with γ standard normal and log f L-Lipschitz, L = G/√(εm). The heat-flow map of Kim and Milman
  (Math. Ann. 354, 2012) from γ to fγ has the Lipschitz constant exp ∫₀^∞ sup λ_max(∇² log P_s f) ds, P_s the
  Ornstein-Uhlenbeck semigroup. Let q be the law ∝ f(y) N(y; e^{-s}x, σ²), σ² = 1 - e^{-2s}, and v a unit vector. Then
  ∇ log P_s f = e^{-s} E_q[∇ log f], whose derivative along v is (e^{-2s}/σ²) Cov_q(v·∇ log f, v·y) ≤
  (e^{-2s}/σ²) L √Var_q(v·y); and Var_q(v·y) = σ² + e^{2s}σ⁴ ∂²_v log P_s f. So u = e^{2s}σ² ∂²_v log P_s f satisfies
  u ≤ Lσ√(1 + u), hence u ≤ L²σ² + Lσ, and the integral is at most ∫ e^{-2s}(L² + L/σ) ds = L²/2 + L. A λ-Lipschitz
  image of γ satisfies LSI(1/λ²). (Of the same kind: Mikulincer and Shenfeld, arXiv:2201.01382; Brigati and Pedrotti,
  arXiv:2404.15205.)
* A Gaussian mixture of one covariance at its own temperature is N(0, C) * ν: the same flow with
  ∇² log P_s f = e^{-2s} Cov(ν-part) ⪯ e^{-2s} r², r half the diameter of the means in the metric C⁻¹, gives
  α = λ_min(C⁻¹) exp(-r²) (Mikulincer and Shenfeld, arXiv:2201.01382).
* A product measure has the smallest α of its factors.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import sympy as sp

from ctrlgen.certify.constants import taken_on_trust
from ctrlgen.certify.piece import Piece, Way
from ctrlgen.certify.pieces import ways, whole_formula_of
from ctrlgen.certify.premise import missing, premise, shown_down, shown_up
from ctrlgen.certify.verdict import Step, Verdict, combine
from ctrlgen.checks import positive
from ctrlgen.energies.algebra import Composition, parted
from ctrlgen.energies.analytic import GaussianMixture
from ctrlgen.energies.base import Energy
from ctrlgen.energies.safe_sets import certain_inside, joined
from ctrlgen.energies.spectral import down, spectrum_bounds
from ctrlgen.energies.symbolic import SymbolicEnergy
from ctrlgen.prove.claim import Deadline

BITS = 200
Role = str  # "convex", "bounded" or "lipschitz"


@dataclass(frozen=True, kw_only=True, repr=False)
class LogSobolev(Verdict):
    """A verdict on LSI(α).

    Args:
        constant: α, rounded down [1 / length²]; None if it was not established or is below the smallest float.
        log_constant: log α, rounded down; also where α is below the smallest float.
        rate: 2εα, at which V = KL decays along the closed loop, rounded down [1 / time].
    """

    constant: float | None = None
    log_constant: float | None = None
    rate: float | None = None

    def plot(self, ax: Any = None, **view: Any) -> Any:
        """Draw at least how fast KL falls; `response=` puts a run's own curve beside it: `ctrlgen.plot.decay_bound`."""
        from ctrlgen import plot

        return plot.decay_bound(self, ax, **view)


@dataclass(frozen=True)
class _Proof:
    """A lower bound of log α, with the facts that it rests on and how it is computed again from them."""

    log_constant: Callable[[], Any]  # a ball
    facts: tuple[Step, ...]
    rule: str


def log_sobolev(energy: Energy, temperature: float, *, timeout: float = 30.0) -> LogSobolev:
    """The log-Sobolev constant α of ρ* ∝ exp(-E/ε) that can be established from the energy's form and constants.

    Args:
        energy: E.
        temperature: ε > 0 [energy], read exactly.
        timeout: seconds.

    Returns:
        PROVED with `.constant` and `.rate`, premises as steps; or UNDECIDED, with what is missing. The constant is a
        lower bound: exact for quadratics, and often far below the best one for energies with barriers.

    Raises:
        ValueError: temperature is not positive and finite.
        TypeError: energy is not an Energy.
    """
    if not isinstance(energy, Energy):
        raise TypeError(f"energy must be an Energy; got {type(energy).__name__}.")
    epsilon, deadline = positive("temperature", temperature), Deadline(timeout)
    text = f"LSI(α) of exp(-E/ε), ε = {epsilon!r}: KL(ρ‖ρ*) ≤ I(ρ‖ρ*)/(2α) for every ρ"
    sets = [s.constraints for s in parted(energy).sets]
    empty = bool(sets) and certain_inside(joined(*sets)) is None
    proof = None if empty else _best(energy, epsilon, deadline)
    if empty:
        reason = "it was not established that the set behind all walls has an inside"
        return combine(text, [missing("an α > 0", reason)], kind=LogSobolev, deadline=deadline)
    if proof is None:
        open_step = missing("an α > 0", _what_is_missing(energy, epsilon))
        return combine(text, [open_step], kind=LogSobolev, deadline=deadline)
    found = _down(proof.log_constant())
    alpha = _below_exp(found)
    rate = 0.0 if alpha is None else down(2 * Fraction(epsilon) * Fraction(alpha))
    if alpha is None or rate < np.finfo(float).tiny:
        words = f"α ≥ 10^({found / math.log(10):.1f}) is established, but below what any run could show: {proof.rule}"
        return combine(
            text, [*proof.facts, missing("a useful α", words)], kind=LogSobolev, deadline=deadline, log_constant=found
        )
    shown, fall = shown_down(alpha), f"V decays at the rate 2εα = {shown_down(rate)}"
    last = premise(
        f"α ≥ {shown}", proof.rule, lambda: _down(proof.log_constant()) >= found, "interval", taken_on_trust(energy)
    )
    return combine(
        f"{text}, α = {shown}", [*proof.facts, last], meaning=fall,
        kind=LogSobolev, deadline=deadline, constant=alpha, log_constant=found, rate=rate,
    )  # fmt: skip


def _best(energy: Energy, epsilon: float, deadline: Deadline) -> _Proof | None:
    """The proof with the largest constant among the theorems that apply."""
    proofs = [p for p in (_of_factors(energy, epsilon, deadline), _of_mixture(energy, epsilon)) if p is not None]
    found = [(value, way, roles) for way in ways(energy, epsilon) for value, roles in [_assign(way, epsilon)] if roles]
    if found:
        _, way, roles = max(found, key=lambda item: item[0])
        proofs.append(_of_pieces(way, roles, epsilon))
    return max(proofs, key=lambda p: _down(p.log_constant()), default=None)


# E = C + B + H ---------------------------------------------------------------------------------------


def _assign(way: Way, epsilon: float) -> tuple[float, tuple[Role, ...]]:
    """The roles of the pieces for which α is largest, and about log α; no roles if there are none."""
    options = []
    for piece in way:
        roles = [("convex", piece.convexity), ("bounded", piece.oscillation), ("lipschitz", piece.gradient)]
        options.append([(role, value) for role, value in roles if value is not None])
    best: tuple[float, tuple[Role, ...]] = (-math.inf, ())
    for choice in itertools.product(*options) if math.prod(len(o) for o in options) <= 4096 else ():
        m = sum(v for role, v in choice if role == "convex")
        if m > 0:
            b = sum(v for role, v in choice if role == "bounded")
            slope = sum(v for role, v in choice if role == "lipschitz") / (math.sqrt(epsilon) * math.sqrt(m))
            value = math.log(m) - math.log(epsilon) - b / epsilon - slope * slope - 2 * slope
            if value > best[0]:
                best = (value, tuple(role for role, _ in choice))
    return best


def _of_pieces(way: Way, roles: Sequence[Role], epsilon: float) -> _Proof:
    used = list(zip(way, roles, strict=True))
    facts = tuple(_fact(piece, role) for piece, role in used)

    def value() -> Any:
        arb, exact, eps = _arithmetic(epsilon)
        m = sum((exact(p.convexity) for p, role in used if role == "convex"), arb(0))
        b = sum((exact(p.oscillation) for p, role in used if role == "bounded"), arb(0))
        slope = sum((exact(p.gradient) for p, role in used if role == "lipschitz"), arb(0))
        if not m > 0:
            return arb("-inf")
        steep = slope / (eps * m).sqrt()
        return (m / eps).log() - b / eps - steep**2 - 2 * steep

    names = {"convex": "α = m/ε (Bakry–Émery, sum of the lower Hessian bounds)"}
    names["bounded"] = "· exp(-osc/ε) (Holley–Stroock)"
    names["lipschitz"] = "· exp(-(G²/(εm) + 2G/√(εm))) (Lipschitz perturbation)"
    rule = " ".join(names[role] for role in names if role in roles)
    return _Proof(value, facts, rule)


def _fact(piece: Piece, role: Role) -> Step:
    constants: dict[str, tuple[str, Any, str, Any]] = {
        "convex": ("∇² ⪰ {} I", piece.convexity, "lower Hessian bound", shown_down),
        "bounded": ("sup - inf ≤ {}", piece.oscillation, "oscillation", shown_up),
        "lipschitz": ("|∇| ≤ {}", piece.gradient, "gradient bound", shown_up),
    }
    text, value, rule, shown = constants[role]
    return premise(f"{piece.name}: {text.format(shown(value))}", rule, piece.check, "interval")


# A Gaussian mixture at its own temperature -----------------------------------------------------------


def _of_mixture(energy: Energy, epsilon: float) -> _Proof | None:
    weight, mixture = 1.0, energy
    if isinstance(energy, Composition) and len(energy.terms) == 1:
        weight, mixture = float(energy.weights[0]), energy.terms[0]
    if not isinstance(mixture, GaussianMixture) or not (mixture.covariances == mixture.covariances[0]).all():
        return None
    if Fraction(weight) * Fraction(mixture.temperature) != Fraction(epsilon):
        return None

    def value() -> Any:
        from flint import arb, arb_mat, ctx

        _, exact, _ = _arithmetic(epsilon)
        with ctx.workprec(BITS):
            covariance = arb_mat([[exact(v) for v in row] for row in mixture.covariances[0]])
            try:
                inverse = covariance.inv()
            except ZeroDivisionError:
                return arb("-inf")
            square = arb(0)
            for one, other in itertools.combinations(mixture.means, 2):
                gap = arb_mat([[exact(a) - exact(b)] for a, b in zip(one, other, strict=True)])
                square = square.max((gap.transpose() * inverse * gap)[0, 0])
            largest = exact(spectrum_bounds(mixture.covariances[0])[1])
            return -largest.log() - square / 4

    fact = premise(
        f"exp(-E/ε) is a mixture of {len(mixture.means)} Gaussians of one covariance",
        "its form",
        lambda: True,
        "symbolic",
    )
    return _Proof(value, (fact,), "λ_min(C⁻¹) exp(-diam²/4), diam of the means in the metric C⁻¹ (heat-flow map)")


# Products --------------------------------------------------------------------------------------------


def _of_factors(energy: Energy, epsilon: float, deadline: Deadline) -> _Proof | None:
    """Where the formula is a sum of functions of different states, the measure is a product."""
    read = _whole_formula(energy)
    if read is None or deadline.over:
        return None
    expr, states = read
    groups = _groups(expr, states)
    if len(groups) < 2:
        return None
    proofs = []
    for part, own in groups:
        proof = _best(SymbolicEnergy(part, own), epsilon, deadline)
        if proof is None:
            return None
        proofs.append(proof)
    facts = [premise(
        "ρ* is a product over " + ", ".join("(" + ", ".join(s.name for s in own) + ")" for _, own in groups),
        "E is a sum of functions of these",
        lambda: not sp.expand(expr - sum(part for part, _ in groups)).free_symbols, "symbolic",
    )]  # fmt: skip
    for proof in proofs:
        low = _down(proof.log_constant())
        facts += proof.facts
        words = f"α of a factor ≥ {shown_down(_below_exp(low) or 0.0)}"
        facts.append(premise(words, proof.rule, _again(proof, low), "interval"))

    def value() -> Any:
        values = [p.log_constant() for p in proofs]
        out = values[0]
        for other in values[1:]:
            out = out.min(other)
        return out

    return _Proof(value, tuple(facts), "the smallest α of the factors of a product measure")


def _again(proof: _Proof, value: float) -> Callable[[], bool]:
    return lambda: _down(proof.log_constant()) >= value


def _whole_formula(energy: Energy) -> tuple[Any, tuple] | None:
    if not isinstance(energy, Composition):
        one = whole_formula_of(energy)
        return None if one is None else (sp.expand(one[0]), one[1])
    found = [whole_formula_of(term) for term in energy.terms]
    read = [r for r in found if r is not None]
    if len(read) < len(found):
        return None
    states, expr = read[0][1], sp.Integer(0)
    for weight, (part, own) in zip(energy.weights, read, strict=True):
        same = part.subs(dict(zip(own, states, strict=True)), simultaneous=True)
        expr += sp.Rational(*float(weight).as_integer_ratio()) * same
    return sp.expand(expr), states


def _groups(expr: Any, states: tuple) -> list[tuple[Any, tuple]]:
    """The formula as a sum of functions of disjoint sets of states."""
    terms = [t for t in sp.Add.make_args(expr) if t.free_symbols]
    sets: list[set] = []
    for symbols in [{s} for s in states] + [set(t.free_symbols) for t in terms]:
        joined = [known for known in sets if known & symbols]
        sets = [known for known in sets if not known & symbols] + [symbols.union(*joined)]
    return [
        (sp.Add(*(t for t in terms if t.free_symbols <= known)), tuple(s for s in states if s in known))
        for known in sets
    ]


# ----------------------------------------------------------------------------------------------------


def _what_is_missing(energy: Energy, epsilon: float) -> str:
    known = energy.properties
    words = []
    for way in ways(energy, epsilon):
        for piece in way:
            if piece.convexity is None and piece.oscillation is None and piece.gradient is None:
                words.append(f"{piece.name} has no lower Hessian bound, oscillation or gradient bound")
    if not words:
        words.append(
            f"no part is strongly convex enough (hessian_lower = {known.hessian_lower}, gradient_bound = "
            f"{known.gradient_bound}, oscillation = {known.oscillation})"
        )
    return "; ".join(dict.fromkeys(words))


def _arithmetic(epsilon: float) -> tuple[Any, Callable[[Any], Any], Any]:
    """The type of balls, the exact ball of a float, and that of ε."""
    from flint import arb, fmpq

    def exact(value: Any) -> Any:
        return arb(fmpq(*float(value).as_integer_ratio()))

    return arb, exact, exact(epsilon)


def _down(ball: Any) -> float:
    """A float that is below every number of the ball."""
    value = float(ball.lower()) if ball.is_finite() else -math.inf
    return value if value == -math.inf else float(np.nextafter(np.nextafter(value, -np.inf), -np.inf))


def _below_exp(value: float) -> float | None:
    """A float below exp(value); None where that underflows."""
    if value == -math.inf:
        return None
    ball = _arithmetic(value)[2]
    out = _down(ball.exp())
    return out if out > np.finfo(float).tiny else None
