"""The friction of a kinetic loop that certifies the fastest contraction: dX = V dt, dV = -∇E dt - γV dt + √(2γε) dW.

Two trajectories under one noise differ by z = (x - y, v - w) with ż = [[0, I], [-H(t), -γI]]z and m I ⪯ H(t) ⪯ L I. The
metric [[A, γ/2], [γ/2, 1]] decides. For a quadratic energy of precision S, A = S: then d/dt |z|² = -γ|z|² identically,
a rate γ/2 for every γ < 2√m. For all others A = a = (m + L)/2, and the inequality, affine in H, is needed at m and L
alone: it holds up to λ = γ/2 - (L - m)/(4√(a - γ²/4)), which is largest where (L - m)γ/4 = 2(a - γ²/4)^{3/2}, and is
m/√(m + L) at γ = √(m + L). (A search over all metrics [[a, b], [b, 1]] and γ finds nothing better.)

Reference: Dalalyan and Riou-Durand, Bernoulli 26 (2020) 1956, for that last point.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np

from ctrlgen.accelerate._hessians import kink
from ctrlgen.accelerate.skew import quadratic_hessian, refuse_walls
from ctrlgen.certify.constants import OPPOSITE, established, other_gradient
from ctrlgen.certify.existence import refuse_without_gibbs
from ctrlgen.certify.pieces import at_least
from ctrlgen.certify.premise import missing, premise, shown_down, shown_up
from ctrlgen.certify.verdict import Step, Verdict, combine
from ctrlgen.checks import positive
from ctrlgen.energies.algebra import quadratic_bounds
from ctrlgen.energies.base import Energy
from ctrlgen.energies.spectral import above_root, down
from ctrlgen.plants.particles import KineticLangevin
from ctrlgen.prove.claim import Deadline

SHARES = (0.0, 1e-15, 1e-14, 1e-13, 1e-12, 1e-11, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6)
DIGITS = 700  # of the differences of nearly equal numbers that a rate is: any two floats may meet
CONTINUUM = "the loop in continuous time; both trajectories are driven by one noise"


@dataclass(frozen=True, kw_only=True, repr=False)
class FrictionVerdict(Verdict):
    """What is known of a friction.

    Args:
        friction: γ [1/time]; None where no rate was found.
        rate: λ [1/time], proved, rounded down: two trajectories under one noise approach each other as
            |z(t)|_G ≤ e^{-λt}|z(0)|_G, z the difference of (position, velocity), and so do two densities in the
            Wasserstein distance W₂ of that norm. To compare with the rate m of the overdamped loop compare the products
            with the steps, as the units of time differ.
        metric: G, (2d, 2d), for z = (x, v).
        constant: C, rounded up, with ‖z(t)‖ ≤ C e^{-λt}‖z(0)‖ in the norm ‖z‖² = x·Ax + |v|², A the first block of G.
        plain: m [1/time], the rate of the overdamped loop dX = -∇E dt + √(2ε) dW.
        stability_limit: 2/√L [time], of the step of `KineticLangevin`.
    """

    friction: float | None = None
    rate: float | None = None
    metric: np.ndarray | None = None
    constant: float | None = None
    plain: float | None = None
    stability_limit: float | None = None

    def plot(self, ax: Any = None, **view: Any) -> Any:
        """Draw how two trajectories approach, with momentum and without: see `ctrlgen.plot.friction_rates`."""
        from ctrlgen import plot

        return plot.friction_rates(self, ax, **view)

    def plant(self, temperature: float, fraction: float = 0.25) -> KineticLangevin:
        """KineticLangevin with this friction and a fraction of the largest stable step.

        Args:
            temperature: ε > 0 [energy].
            fraction: in (0, 1).

        Raises:
            ValueError: an argument is out of its range, or no friction was found.
        """
        if self.friction is None or self.stability_limit is None:
            raise ValueError("no friction was certified, so there is no plant. Print the verdict to see why.")
        if not 0 < fraction < 1:
            raise ValueError(f"fraction must be between 0 and 1, of the largest stable step; got {fraction!r}.")
        return KineticLangevin(temperature, self.friction, float(fraction) * self.stability_limit)

    def _rows(self) -> list[tuple[str, str]]:
        rows = super()._rows()
        place = next((i for i, row in enumerate(rows) if row[0] == "rate"), len(rows) - 1)
        extra = [("friction", self.friction), ("constant", self.constant), ("step <", self.stability_limit)]
        return [*rows[: place + 1], *((n, f"{v:.6g}") for n, v in extra if v is not None), *rows[place + 1 :]]


def optimal_friction(
    energy: Energy, *, m: float | None = None, L: float | None = None, constant: float = 10.0
) -> FrictionVerdict:
    """The friction of `KineticLangevin` with the largest certified rate of contraction, and its certificate.

    For a quadratic energy the rate is γ/2 at γ = 2√m·(1 - δ): it tends to √m as δ → 0, while the constant √((2 - δ)/δ)
    grows without bound, for at γ = 2√m two modes coincide. `constant` chooses δ = 2/(constant² + 1); 10 gives up 2 %.
    For another energy with 0 < m I ⪯ ∇²E ⪯ L I the rate is m/√(m + L), or up to twice that where L is near m.

    Args:
        energy: E.
        m: a lower bound of the Hessian that is taken for granted [energy / length²]; the established one when omitted.
        L: an upper bound, likewise.
        constant: the largest constant C > 1 that is allowed.

    Returns:
        PROVED with `.friction` and `.rate`; UNDECIDED where no bounds 0 < m ≤ L are established or given, `constant`
        leaves no rate, or particles need not follow -∇E (code with derivatives of its own).

    Raises:
        TypeError: energy is not an Energy.
        ValueError: m, L or constant is out of its range or contradicts what is established, or the energy has walls or
            no Gibbs measure.
    """
    if not isinstance(energy, Energy):
        raise TypeError(f"energy must be an Energy; got {type(energy).__name__}.")
    if positive("constant", constant) <= 1:
        raise ValueError(f"constant must be above 1, which no metric reaches; got {constant!r}.")
    low = None if m is None else positive("m", m)
    high = None if L is None else positive("L", L)
    refuse_walls(energy)
    deadline, most = Deadline(1e7), (constant - 1) / constant * ((constant + 1) / (constant + 1 / constant))
    refuse_without_gibbs(energy)
    if other := other_gradient(energy):
        open_step = missing("particles follow -∇E", other)
        return combine(_text(energy.dim), [open_step], kind=FrictionVerdict, deadline=deadline)
    exact = quadratic_hessian(energy)
    if exact is not None:
        least, largest = quadratic_bounds(exact)
        room = 1 + 1e-9  # of the enclosure's ends
        for name, given, wrong in (
            ("m", m, low is not None and low > least * room),
            ("L", L, high is not None and high * room < largest),
        ):
            if wrong:
                raise ValueError(
                    f"{name} must agree with what is established, eigenvalues from {least:.6g} to {largest:.6g}; got "
                    f"{given!r}."
                )
        return _of_quadratic(exact, most, deadline)
    return _of_bounds(energy, low, high, most, deadline)


def _text(dim: int) -> str:
    return f"|z(t)|_G ≤ exp(-rate·t)|z(0)|_G along the kinetic loop in {dim} dimensions"


def _of_quadratic(exact: np.ndarray, most: float, deadline: Deadline) -> FrictionVerdict:
    low, high = quadratic_bounds(exact)
    dim = len(exact)
    if low <= 0:
        reason = f"the precision S is not certainly positive definite: S ⪰ {shown_down(low)} I is what is established"
        return combine(_text(dim), [missing("S ≻ 0", reason)], kind=FrictionVerdict, deadline=deadline)
    half = down(Fraction(most) * Fraction(float(np.sqrt(low))) * (1 - Fraction(2) ** -50))
    gamma = 2 * half
    share = above_root(Fraction(half) ** 2 / Fraction(low))
    identity = premise(
        "G A + AᵀG = -γG for the flow ż = Az, A = [[0, I], [-S, -γI]], G = [[S, γ/2], [γ/2, I]]",
        "each block, exactly", partial(identity_holds, exact, Fraction(gamma)), "exact",
    )  # fmt: skip
    positive_metric = premise(
        f"G ≻ 0, as S ⪰ {shown_down(low)} I and γ²/4 = {shown_up(half * half)} is below that", "Schur complement",
        lambda: quadratic_bounds(exact)[0] == low and Fraction(half) ** 2 < Fraction(low), "interval",
    )  # fmt: skip
    precision, unit = exact.astype(np.float64), np.eye(dim)
    return combine(
        f"{_text(dim)}, γ = {gamma!r}, rate = {shown_down(half)}", [identity, positive_metric],
        assumptions=(CONTINUUM,), kind=FrictionVerdict, deadline=deadline, friction=gamma, rate=half,
        metric=np.block([[precision, half * unit], [half * unit, unit]]), constant=_constant(share), plain=low,
        stability_limit=down(2 / Fraction(above_root(Fraction(high)))),
    )  # fmt: skip


def identity_holds(precision: np.ndarray, gamma: Fraction) -> bool:
    """GA + AᵀG + γG = 0 block by block, for G = [[S, γ/2], [γ/2, I]] and A = [[0, I], [-S, -γI]], S symmetric."""
    s, half = precision, gamma / 2
    unit = np.array([[Fraction(int(i == j)) for j in range(len(s))] for i in range(len(s))], object)
    # G A = [[-γ/2 S, S - γ²/2], [-S, γ/2 - γ]]
    first, cross, back, last = -half * s, s - half * gamma * unit, -s, half * unit - gamma * unit
    blocks = [first + first.T + gamma * s, cross + back.T + gamma * half * unit, 2 * last + gamma * unit]
    return bool((s == s.T).all()) and all(not any(v for v in block.ravel()) for block in blocks)


def _constant(share: float) -> float:
    """√((1 + r)/(1 - r)), rounded up: r = γ/2 over the root of the least position block."""
    r = Fraction(share)
    return above_root((1 + r) / (1 - r))


def _of_bounds(energy: Energy, m: float | None, L: float | None, most: float, deadline: Deadline) -> FrictionVerdict:
    steps: list[Step] = []
    assumptions = [CONTINUUM]
    low = _bound(energy, "hessian_lower", m, steps, assumptions)
    high = _bound(energy, "hessian_upper", L, steps, assumptions)
    if low is not None and high is not None and low > high:
        raise ValueError(f"m must not exceed L; got m = {low:g} and L = {high:g}, of which one is given, or both are.")
    if low is None or high is None or low <= 0:
        which = "L with ∇²E ⪯ L I" if low is not None and low > 0 else "m > 0 with ∇²E ⪰ m I"
        reason = f"no {which} is established: without convexity no constant metric contracts. Pass it, if it is known"
        return combine(
            _text(energy.dim), [*steps, missing(which, reason)], kind=FrictionVerdict, deadline=deadline,
            plain=low if low is not None and low > 0 else None,
        )  # fmt: skip
    if len(assumptions) > 1 and (rough := kink(energy)):
        steps.append(missing("m I ⪯ ∇²E ⪯ L I, as it was given", rough))
        return combine(_text(energy.dim), steps, kind=FrictionVerdict, deadline=deadline)
    half, a = best_half(low, high, most), float(Fraction(low) / 2 + Fraction(high) / 2)
    aim = largest_rate(low, high, half, a)
    rate = next(
        (r for share in SHARES if (r := down(aim * (1 - Fraction(share)))) > 0 and contracts(low, high, half, a, r)),
        None,
    )
    if rate is None:
        reason = _why_no_rate(low, high, half, most, aim)
        return combine(_text(energy.dim), [*steps, missing("a rate", reason)], kind=FrictionVerdict, deadline=deadline)
    shown = premise(
        f"G A_s + A_sᵀG + 2·{shown_down(rate)}·G ⪯ 0 at s = m and s = L, G = [[a, γ/2], [γ/2, 1]], a = {a!r}",
        "affine in the Hessian, whose eigenvalues lie between", partial(contracts, low, high, half, a, rate), "exact",
    )  # fmt: skip
    share = above_root(Fraction(half) ** 2 / Fraction(a))
    return combine(
        f"{_text(energy.dim)}, γ = {2 * half!r}, rate = {shown_down(rate)}", [*steps, shown], assumptions=assumptions,
        kind=FrictionVerdict, deadline=deadline, friction=2 * half, rate=rate,
        metric=np.kron(np.array([[a, half], [half, 1.0]]), np.eye(energy.dim)), constant=_constant(share), plain=low,
        stability_limit=down(2 / Fraction(above_root(Fraction(high)))),
    )  # fmt: skip


def _bound(energy: Energy, name: Any, given: float | None, steps: list, assumptions: list) -> float | None:
    """A bound of the Hessian, with what it rests on."""
    lower = name == "hessian_lower"
    known = established(energy, name)
    other = getattr(energy.properties, OPPOSITE[name])
    if given is not None and other is not None and (given > other if lower else given < other):
        bound = f"∇²E ⪯ {shown_up(other)} I" if lower else f"∇²E ⪰ {shown_down(other)} I"
        raise ValueError(f"{'m' if lower else 'L'} must agree with what is established, {bound}; got {given!r}.")
    if given is None:
        if known is not None:
            steps += known[1]
        return None if known is None else known[0]
    if known is not None and (known[0] >= given if lower else known[0] <= given):
        steps += known[1]
    else:
        assumptions.append(f"∇²E {'⪰' if lower else '⪯'} {given!r} I, as it was given")
    return given


def best_half(low: float, high: float, most: float) -> float:
    """γ/2, at most `most`·√a, with the largest g - D/(2√(a - g²)), a = (m + L)/2 and D = (L - m)/2: concave in g."""
    a = low / 2 + high / 2
    root, spread = float(np.sqrt(a)), (high / 2 - low / 2) / a
    left, right = 0.0, most * (1 - 2.0**-50)

    # r = g/√a is below the optimum as long as (D/a)·r < 2(1 - r²)^{3/2}
    def below(r: float) -> bool:
        return spread * r < 2 * (1 - r * r) ** 1.5

    if below(right):
        return root * right
    for _ in range(200):
        middle = (left + right) / 2
        left, right = (middle, right) if below(middle) else (left, middle)
    return root * left


def largest_rate(low: float, high: float, half: float, a: float) -> Fraction:
    """λ = g - max(a - m, L - a)/(2√(a - g²)) for these floats, with all digits that count; ≤ 0 where there is no rate.

    At s the metric gives g - |s - a|/(2√(a - g²)); that a is rounded tells where L/m is large.
    """
    with localcontext() as context:
        context.prec = DIGITS
        m, upper, g, square = map(Decimal, (low, high, half, a))
        rest = square - g * g
        return Fraction(g - max(square - m, upper - square) / (2 * rest.sqrt())) if rest > 0 else Fraction(0)


def _why_no_rate(low: float, high: float, half: float, most: float, aim: Fraction) -> str:
    # 4g²(a - g²) > D² for g = r√a, where D/a = spread
    spread = (high / 2 - low / 2) / (low / 2 + high / 2)
    share = spread / np.sqrt(2 * (1 + np.sqrt((1 - spread) * (1 + spread))))
    if most > share:
        ratio = _scientific(Fraction(high) / Fraction(low))
        return f"the rate is lost in the rounding of γ = {2 * half:.6g} and the metric to floats, as L/m = {ratio}"
    least = float(np.sqrt((1 + share) / (1 - share)))
    return (
        f"the constant allows γ ≤ {2 * half:.6g} only, where λ = {_scientific(aim)} is no rate; these m and L need a "
        f"constant above {least:.6g}"
    )


def _scientific(value: Fraction) -> str:
    """A number of any size with six digits."""
    with localcontext() as context:
        context.prec = 6
        return f"{(Decimal(value.numerator) / Decimal(value.denominator)).normalize():g}"


def contracts(low: float, high: float, half: float, a: float, rate: float) -> bool:
    """G A_s + A_sᵀG + 2λG ⪯ 0 at s = m and s = L, and G ≻ 0, in rationals; A_s = [[0, 1], [-s, -γ]], γ = 2·half."""
    g, b, square, decay = 2 * Fraction(half), Fraction(half), Fraction(a), Fraction(rate)
    if square <= b * b:
        return False
    for s in (Fraction(low), Fraction(high)):
        cross = s - square + b * g - 2 * decay * b
        slack = np.array([[2 * b * s - 2 * decay * square, cross], [cross, 2 * (g - b - decay)]], object)
        if not at_least(slack, 0.0):
            return False
    return True
