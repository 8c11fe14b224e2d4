"""How many Euler steps bring KL(ρ_k‖ρ*) below δ, known before the first one: the theorem of Vempala and Wibisono.

In the units of f = E/ε the Euler step h is η = εh, ν = ρ* ∝ e^{-f} satisfies LSI(α), and ∇f is L-Lipschitz. Two
bounds of H_k = KL(ρ_k‖ν) are offered, both by the same proof. Between two steps the chain is the diffusion
dx_t = -∇f(x_0)dt + √2 dW, along which

    dH/dt = -J + E⟨∇f(x_t) - ∇f(x_0), ∇log(ρ_t/ν)(x_t)⟩ ≤ -J + √(J·D),   J = I(ρ_t‖ν) ≥ 2αH,
    D(t) = E|∇f(x_t) - ∇f(x_0)|² ≤ L²E|x_t - x_0|² = L²(t²E|∇f(x_0)|² + 2td).

"vempala-wibisono" (Theorem 1, as published): for η ≤ α/(4L²),

    H_k ≤ e^{-αηk} H_0 + 8ηdL²/α.

"sharp" keeps the constants that the published proof rounds away. With y = √H and, by optimal coupling to ν, Talagrand's
W₂² ≤ 2H/α and E_ν|∇f|² = E_νΔf ≤ dU (∇²f ⪯ U; their Lemmas 11 and 12 before the squares are split),

    √(E|∇f(x_0)|²) ≤ √(dU) + L√(2/α) y_0,   so   √D(t) ≤ S(t) = L√(2td + t²dU) + tL²√(2/α) y_0   (Minkowski).

-J + √J·S falls in J from J = S²/4 on. So where 2αH ≥ S²/4, dH/dt ≤ -2αH + √(2αH)·S, which is linear in y:
y' ≤ -αy + √(α/2)·S. Elsewhere dH/dt ≤ S²/4. The right-hand side does not rise with H, so the solution Y of the linear
equation stays above y for as long as Y ≥ S/√(8α). With e^{-α(η-t)} ≤ 1 and √(1 + u) ≤ 1 + u/2 in the integral of S,

    Y(η) ≤ A y_0 + B,   A = e^{-αη} + L²η²/2,   B = ⅔ L √(αd) η^{3/2} (1 + 3ηU/20).

Y(t) ≥ e^{-αη}y_0 and S(t) ≤ S(η), so Y ≥ S/√(8α) throughout the step if
y_0 ≥ y_c = (L/2)√(dη/α)·√(1 + ηU/2) / (e^{-αη} - L²η/(2α)), and a bound y_0 may always be raised. Hence, for every η
with A < 1 and e^{-αη} > L²η/(2α),

    H_k ≤ (y* + A^k max(0, √H_0 - y*))²,   y* = max(B/(1 - A), y_c).

To first order y*² = (4/9)ηdL²/α, 18 times below the published floor, and the rate is 2αη instead of αη. Neither sees
that the true bias of a smooth target is of second order in η: for a quadratic with curvature κ it is d(κη)²/16.

References: Vempala and Wibisono, Rapid Convergence of the Unadjusted Langevin Algorithm, arXiv:1903.08568, Theorem 1,
Lemmas 3, 11, 12; Otto and Villani, J. Funct. Anal. 173 (2000) 361, for Talagrand's inequality from LSI.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from flint import arb, ctx

from ctrlgen.certify.constants import established, other_gradient
from ctrlgen.certify.initial_kl import exact, float_above
from ctrlgen.certify.log_sobolev import log_sobolev
from ctrlgen.certify.premise import premise, shown_up
from ctrlgen.certify.verdict import Step
from ctrlgen.checks import positive
from ctrlgen.energies.base import Energy
from ctrlgen.prove.claim import Status

Bound = Literal["vempala-wibisono", "sharp"]
BITS = 128
NAMES = {
    "vempala-wibisono": "Vempala and Wibisono, arXiv:1903.08568, Theorem 1",
    "sharp": "the proof of Vempala and Wibisono, arXiv:1903.08568, Theorem 1, with its constants kept",
}


@dataclass(frozen=True)
class Constants:
    """What the theorem knows of an energy at a temperature.

    Args:
        alpha: LSI constant of the Gibbs measure, rounded down [1/length²].
        smoothness: L_E with |∇E(x) - ∇E(y)| ≤ L_E|x - y|, rounded up [energy/length²].
        upper: U_E with ∇²E ⪯ U_E, rounded up [energy/length²].
        temperature: ε.
        dim: d.
        steps: the premises.
    """

    alpha: float
    smoothness: float
    upper: float
    temperature: float
    dim: int
    steps: tuple[Step, ...]


def constants_of(energy: Energy, temperature: float) -> Constants:
    """The theorem's constants of an energy, with their premises.

    Raises:
        ValueError: one is not established; all that are missing are named.
    """
    low, high = established(energy, "hessian_lower"), established(energy, "hessian_upper")
    lsi = log_sobolev(energy, temperature)
    missing = [name for name, v in (("hessian_lower", low), ("hessian_upper", high)) if v is None]
    missing += [words for words in [other_gradient(energy)] if words]
    if lsi.status is not Status.PROVED or lsi.constant is None:
        missing.append(f"a log-Sobolev constant ({lsi.reason})")
    if low is None or high is None or lsi.constant is None or missing:
        raise ValueError(
            f"APriori needs constants that are not established for this energy: {', '.join(missing)}. "
            "KLBelow needs log Z instead of constants; SteinResidual needs neither, and certifies nothing."
        )
    a = positive("the log-Sobolev constant", lsi.constant)
    smooth = max(abs(low[0]), abs(high[0]))
    steps = [*lsi.steps, *low[1], *high[1]]
    lipschitz = premise(
        f"∇E is Lipschitz with constant {shown_up(smooth)}",
        "the larger of |hessian_lower| and |hessian_upper|",
        lambda: smooth >= abs(low[0]) and smooth >= abs(high[0]),
    )
    kept = {step.claim.text: step for step in [*steps, lipschitz]}
    return Constants(a, smooth, max(high[0], 0.0), temperature, energy.dim, tuple(kept.values()))


# The bounds, on floats for planning and in balls for the proof ------------------------------------------------


def _pieces(bound: Bound, c: Constants, step: Any, number: Any, functions: Any) -> tuple[Any, Any, bool]:
    """(floor, loss, in range) of the bound at this step, in the given arithmetic; the factor a step is 1 - loss.

    For "vempala-wibisono" H_k ≤ floor + factor^k H_0; for "sharp" √H_k ≤ floor + factor^k max(0, √H_0 - floor).
    """
    sqrt, expm1, largest = functions
    eps = number(c.temperature)
    a, smooth, upper, eta, d = (
        number(c.alpha), number(c.smoothness) / eps, number(c.upper) / eps, eps * number(step), number(c.dim),
    )  # fmt: skip
    if bound == "vempala-wibisono":
        return 8 * eta * d * smooth**2 / a, -expm1(-a * eta), bool(4 * smooth**2 * eta <= a)
    loss = -expm1(-a * eta) - smooth**2 * eta**2 / 2
    room = 1 + expm1(-a * eta) - smooth**2 * eta / (2 * a)
    if not (loss > 0 and room > 0):
        return None, loss, False
    push = 2 * smooth * sqrt(a * d) * eta * sqrt(eta) * (1 + 3 * eta * upper / 20) / 3
    least = smooth * sqrt(d * eta / a) * sqrt(1 + eta * upper / 2) / (2 * room)
    return largest(push / loss, least), loss, True


def proved_bound(bound: Bound, c: Constants, step: float, steps: int, initial: float) -> float:
    """The theorem's right-hand side after `steps` steps, in ball arithmetic, rounded up; ∞ outside its range."""
    with ctx.workprec(BITS):
        functions = (lambda v: v.sqrt(), lambda v: v.expm1(), lambda u, v: u.max(v))
        floor, loss, in_range = _pieces(bound, c, step, lambda v: arb(exact(v)), functions)
        if not in_range:
            return math.inf
        left, start = (1 - loss) ** steps, arb(exact(initial))
        if bound == "vempala-wibisono":
            return float_above(floor + left * start)
        return float_above((floor + left * (start.sqrt() - floor).max(arb(0))) ** 2)


def floor_at(bound: Bound, c: Constants, step: float) -> float:
    """What the bound tends to at this step as the steps grow, rounded up; ∞ outside its range."""
    return proved_bound(bound, c, step, 0, 0.0)


def steps_needed(bound: Bound, c: Constants, step: float, delta: float, initial: float) -> int | None:
    """The least k with proved_bound ≤ δ at this step; None where the floor is not below δ."""
    guess = _real_steps(bound, c, step, delta, initial)
    if not math.isfinite(guess):
        return None

    def enough(k: int) -> bool:
        return proved_bound(bound, c, step, k, initial) <= delta

    high, jump = math.ceil(guess), 1  # right up to roundings
    while not enough(high):
        high, jump = high + jump, 2 * jump
        if jump > 2**60:
            return None
    low, jump = high - 1, 1
    while low >= 0 and enough(low):
        low, high, jump = max(low - jump, -1), low, 2 * jump
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _real_steps(bound: Bound, c: Constants, step: float, delta: float, initial: float) -> float:
    """The same count as a real number, in floats."""
    floor, loss, in_range = _pieces(bound, c, step, float, (math.sqrt, math.expm1, max))
    if floor is None or not in_range:
        return math.inf
    goal, start = (delta, initial) if bound == "vempala-wibisono" else (math.sqrt(delta), math.sqrt(initial))
    if bound == "sharp":
        start -= floor
    if goal <= floor:
        return math.inf
    return math.log(start / (goal - floor)) / -math.log1p(-loss) if start > goal - floor else 0.0


def best_step(bound: Bound, c: Constants, delta: float, initial: float) -> float:
    """About the step that needs the fewest steps, and the largest such.

    In η the count is a constant/η below the step that suits δ and rises without bound towards the step whose floor is
    δ, so one minimum is searched on a logarithmic scale.
    """
    from scipy.optimize import minimize_scalar

    d, unit = c.dim, c.alpha * c.temperature / c.smoothness**2  # the theorem's range in h is of this size
    size = unit * min(1.0, delta / d)
    grid = np.log(size) + np.linspace(-12, 4, 161)
    counts = np.array([_real_steps(bound, c, math.exp(x), delta, initial) for x in grid])
    if not np.isfinite(counts).any():
        raise ValueError(f"delta = {delta:g} is out of reach of float arithmetic for these constants.")
    best = int(np.flatnonzero(counts == counts.min())[-1])
    ends = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    worst = 1e300

    def count(x: float) -> float:
        return min(_real_steps(bound, c, math.exp(x), delta, initial), worst)

    found: Any = minimize_scalar(count, bounds=ends, method="bounded", options={"xatol": 1e-10})
    x = float(found.x) if count(float(found.x)) <= counts[best] else float(grid[best])
    whole, high = math.ceil(count(x)), float(grid[-1])
    low = x
    for _ in range(100):  # the largest step that needs no more whole steps
        middle = (low + high) / 2
        low, high = (middle, high) if count(middle) <= whole else (low, middle)
    return math.exp(low) * (1 - 1e-12)
