"""Is KL to the Gibbs measure a Lyapunov functional of a closed loop, and at which rate does it fall?

Along dX = -(K + J)∇E dt + √(2εK) dW, with K the inverse metric and J skew, V = KL(ρ‖ρ*) has the derivative
V̇ = -ε∫ρ ∇log(ρ/ρ*)·K∇log(ρ/ρ*) ≤ 0, because ∂ρ/∂t = ∇·(ρ(K + J)∇(E + ε log ρ)) and J drops out. With LSI(α) it falls
at the rate 2εα λ_min(K) at least. A loop that does not keep ρ* has no such functional: one point shows it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from typing import Any, ClassVar

import equinox as eqx
import numpy as np
import sympy as sp

from ctrlgen.certify.constants import other_gradient
from ctrlgen.certify.existence import gibbs_measure_exists, refuse_without_gibbs
from ctrlgen.certify.feedback import dissipative, is_dissipative
from ctrlgen.certify.invariance import not_invariant
from ctrlgen.certify.log_sobolev import log_sobolev
from ctrlgen.certify.pieces import at_least, exact_hessian
from ctrlgen.certify.premise import missing, premise, shown_down
from ctrlgen.certify.verdict import Step, Verdict, combine
from ctrlgen.energies.algebra import parted
from ctrlgen.energies.base import Energy
from ctrlgen.energies.feedback import DensityFeedback
from ctrlgen.energies.spectral import down, spectrum_bounds
from ctrlgen.energies.symbolic import CallableEnergy
from ctrlgen.energies.tails import fractions
from ctrlgen.estimate import Estimate
from ctrlgen.loop import ClosedLoop
from ctrlgen.plants.driven import Driven
from ctrlgen.plants.particles import GradientFlow, KineticLangevin, Langevin
from ctrlgen.prove.claim import Claim, Deadline, Outcome, Status

CONTINUUM = {
    "particles": "the loop in continuous time: what its step changes is not part of the claim (see stopping.APriori)",
    "grid": "the loop in the continuum: what cells, box and step change is not part of the claim",
    "gaussian": "the density is a Gaussian, whose moments this plant moves exactly",
}

CLEAR = 2.0  # errors by which a measured rate has to be above zero


@dataclass(frozen=True, kw_only=True, repr=False)
class Decay(Verdict):
    """A verdict on "V = KL(ρ‖ρ*) obeys V̇ ≤ 0 along this loop, and falls at the rate r".

    Args:
        rate: r with V(t) ≤ exp(-r t) V(0) [1 / time]: proved, rounded down; as measured when SAMPLED; None without
            one, or where what was measured is not clear of zero.
        constant: α of the log-Sobolev inequality [1 / length²], where it was used.
        measured: the measured rate with its error, when SAMPLED.
    """

    rate: float | None = None
    constant: float | None = None
    measured: Estimate | None = None

    def plot(self, ax: Any = None, **view: Any) -> Any:
        """Draw at least how fast KL falls; `response=` puts a run's own curve beside it: `ctrlgen.plot.decay_bound`."""
        from ctrlgen import plot

        return plot.decay_bound(self, ax, **view)

    def _rows(self) -> list[tuple[str, str]]:
        rows = super()._rows()
        if self.measured is not None:
            place = next((i for i, row in enumerate(rows) if row[0] == "rate"), 2)
            rows[place] = ("rate", f"{self.measured} (measured)")
        return rows


@dataclass(frozen=True)
class _NotKept:
    """The certificate of a refutation: the loop does not keep the measure, shown at a point."""

    claim: Claim
    shown: Verdict = field(repr=False)
    kinds: ClassVar = ("premise",)
    proves: ClassVar = Status.REFUTED

    def recheck(self) -> bool:
        """Enclose the point's value again."""
        return self.shown.recheck()


def verify_decay(
    energy: Energy, temperature: float, loop: Any, *, initial: Any, key: int, timeout: float, measure: bool
) -> Decay:
    """What `KLLyapunov.verify` says; see there."""
    if not isinstance(loop, ClosedLoop):
        raise TypeError(f"loop must be a ClosedLoop; got {type(loop).__name__}.")
    if loop.controller.dim != energy.dim:
        raise ValueError(f"loop must be {energy.dim}-dimensional, as the energy is; got {loop.controller.dim}.")
    refuse_without_gibbs(energy)
    deadline, plant = Deadline(timeout), loop.plant
    text = f"V = KL(ρ‖exp(-E/{temperature!r})/Z) is nonincreasing along this {type(plant).__name__} loop"
    if loop.extra is not None:
        return _open(text, deadline, "its extra controller commands beside -∇E, and need not keep the Gibbs measure")
    if isinstance(plant, Driven):
        return _open(text, deadline, "its plant is a python-control system, which need not keep the Gibbs measure")
    if isinstance(plant, KineticLangevin):
        return _open(
            text, deadline, "its state is position and velocity: KL of both falls (by friction), that of the positions "
            "alone need not, and neither has a rate by this argument (hypocoercivity)",
        )  # fmt: skip
    if loop.schedule is not None and loop.schedule != "static":
        return _open(
            text, deadline, "its temperature changes with time, and so does the measure that it tends to. Ask of a "
            "loop that keeps the plant's temperature: ClosedLoop(loop.plant, loop.controller, safety=loop.safety, "
            "schedule='static')",
        )  # fmt: skip
    if isinstance(loop.controller, DensityFeedback):
        return _fed_back(energy, temperature, loop, loop.controller, initial, key, measure, text, deadline)
    if parted(loop.controller).sets and plant.kind != "grid" and getattr(plant, "scheme", None) != "mala":
        return _open(
            text, deadline, "nothing keeps its particles behind the walls that its energy has of its own: pass the "
            "barriers as ClosedLoop(plant, energy, safety=SafetyFilter(barriers, mode='reflected')), all in one filter",
        )  # fmt: skip
    if loop.safety is not None:
        reason = _filtered(energy, temperature, loop)
        if reason:
            return _open(text, deadline, reason)
        return _along(energy, temperature, loop, initial, key, measure, deadline)
    noise = 0.0 if isinstance(plant, GradientFlow) else float(plant.temperature)  # NumPy compares floats of its types
    same = _same(energy, loop.controller)
    if isinstance(plant, GradientFlow) or not same or noise != temperature:
        return _without_invariance(energy, temperature, loop, noise, text, deadline)
    return _along(energy, temperature, loop, initial, key, measure, deadline)


def _fed_back(
    energy: Energy, temperature: float, loop: ClosedLoop, feedback: DensityFeedback, initial: Any, key: int,
    measure: bool, text: str, deadline: Deadline,
) -> Decay:  # fmt: skip
    """Under the dissipative law KL falls at least as fast as without it; of any other law nothing is known here."""
    plant = loop.plant
    law = dissipative(feedback, deadline)
    if is_dissipative(feedback) and law.status is not Status.PROVED:
        return _open(text, deadline, f"the dissipative law was not established: {law.reason}")
    if not is_dissipative(feedback):
        return _open(
            text, deadline, "its controller commands by the density, and KL may rise while the density is moved: "
            "controller.verify() says where its slow modes tend to 0",
        )  # fmt: skip
    plain = all(getattr(plant, name, None) is None for name in ("mobility", "skew")) and loop.safety is None
    if not plain or not _same(energy, feedback.energy) or not temperature == feedback.temperature == plant.temperature:
        return _open(
            text, deadline, "the dissipative law is proved for the energy and temperature of its design, without "
            "metric, skew part and filter",
        )  # fmt: skip
    static = _along(energy, temperature, replace(loop, controller=feedback.energy), initial, key, measure, deadline)
    assumptions = tuple(dict.fromkeys([*static.assumptions, *law.assumptions]))
    claim = f"{static.claim}, at least: under the dissipative law V̇ ≤ -ε∫ρ|∇log(ρ/ρ*)|²"
    return replace(
        static, claim=claim, steps=(*static.steps, *law.steps), assumptions=assumptions, seconds=deadline.spent
    )


def _filtered(energy: Energy, temperature: float, loop: ClosedLoop) -> str:
    """Why nothing is known of V along a loop under a safety filter; empty where it keeps the measure of this energy."""
    assert loop.safety is not None
    if loop.safety.mode == "cbf":
        return "a filtered drift is no gradient, and keeps no Gibbs measure: Response.shift measures how far it is off"
    if callable(loop.safety.mu) and loop.safety.mode == "barrier_energy":
        return "μ changes with time, and so does the measure that the loop tends to"
    if isinstance(loop.plant, GradientFlow):
        return "a flow without noise keeps no Gibbs measure (no_certificate)"
    if float(loop.plant.temperature) != temperature or not _same(energy, loop.energy):
        return "the loop keeps the Gibbs measure of its own .energy and temperature; V is of another"
    return ""


def _open(text: str, deadline: Deadline, reason: str) -> Decay:
    return combine(text, [missing(text, reason)], kind=Decay, deadline=deadline)


def _same(a: Energy, b: Energy) -> bool:
    """Is it one function? By identity or part for part; False where that is not clear.

    Not by the difference of formulas: what cancels there need not be defined where it is computed.
    """
    return a is b or (type(a) is type(b) and bool(eqx.tree_equal(a, b)))


def _differs(energy: Energy, temperature: float, loop: ClosedLoop, noise: float) -> str:
    """In what the loop is another than the one that keeps the measure, as far as that is clear."""
    if isinstance(loop.plant, GradientFlow):
        return "a flow without noise keeps no Gibbs measure"
    warmth = f"the loop's temperature is {noise!r} and V's is {temperature!r}"
    if _same(energy, loop.controller):
        return warmth
    other = "the loop's energy is another than V's"
    return other if noise == temperature else f"{warmth}, and its energy is not known to be V's"


# Loops that do not keep the measure -------------------------------------------------------------------


def _without_invariance(
    energy: Energy, temperature: float, loop: ClosedLoop, noise: float, text: str, deadline: Deadline
) -> Decay:
    plant = loop.plant
    if getattr(plant, "mobility", None) is not None or getattr(plant, "skew", None) is not None:
        return _open(text, deadline, "the loop is of another energy or temperature, in a metric or with a skew part")
    if plant.kind == "particles" and (other := other_gradient(loop.controller)):
        return _open(text, deadline, other)
    shown = not_invariant(energy, temperature, loop.controller, noise, None, timeout=max(deadline.left(), 1.0))
    if shown.status is not Status.PROVED:
        reason = f"it was not shown whether the loop keeps the Gibbs measure: {shown.reason}"
        if not isinstance(plant, GradientFlow):
            reason += (
                ". If the loop's energy is meant to be V's, pass that very one: "
                "KLLyapunov(loop.controller, loop.plant.temperature)"
            )
        return _open(text, deadline, reason)
    about = Claim(text=text, states=(), strict=False, kind="premise")
    why = _differs(energy, temperature, loop, noise)
    reason = f"V = 0 at the Gibbs measure, which the loop does not keep, for {why}: {shown.reason}"
    outcome = Outcome(
        status=Status.REFUTED, method="interval", reason=reason, margin=shown.margin, certificate=_NotKept(about, shown)
    )
    exists = gibbs_measure_exists(energy)
    steps = [Step(about, outcome), *shown.steps, *([exists] if exists is not None else [])]
    known = tuple(a for a in shown.assumptions if exists is None or "exists: exp" not in a)
    verdict = combine(text, steps, assumptions=known, kind=Decay, deadline=deadline)
    return replace(verdict, witness=shown.witness)


# Loops that keep it ------------------------------------------------------------------------------------


def _along(
    energy: Energy, temperature: float, loop: ClosedLoop, initial: Any, key: int, measure: bool, deadline: Deadline
) -> Decay:
    plant = loop.plant
    mobility = getattr(plant, "mobility", None)
    moved = "" if mobility is None else "K = M⁻¹, "
    text = (
        f"along the closed loop, {moved}ε = {temperature!r}, V = KL(ρ‖ρ*) has V̇ = -ε∫ρ|∇log(ρ/ρ*)|² ≤ 0"
        if mobility is None
        else f"along the closed loop, {moved}ε = {temperature!r}, V = KL(ρ‖ρ*) has V̇ = -ε∫ρ|∇log(ρ/ρ*)|²_K ≤ 0"
    )
    assumptions = [
        CONTINUUM[plant.kind],
        "V is finite at the start, and the density smooth enough to integrate by parts for t > 0",
    ]
    if parted(energy).sets:
        assumptions.append(
            "nothing flows through the border of the safe set: particles are reflected along K∇h, or steps rejected"
            + (" (from μ ≥ ε on they do not reach it)" if parted(energy).barriers else "")
        )
    identity = premise(
        "V̇ = -ε∫ρ ∇log(ρ/ρ*)·K∇log(ρ/ρ*)", "∂ρ/∂t = ∇·(ρ(K + J)∇(E + ε log ρ)), by parts; J is skew",
        identity_holds, "symbolic",
    )  # fmt: skip
    exists = gibbs_measure_exists(energy)
    steps = [identity, *([] if exists is None else [exists])]
    inequality = log_sobolev(energy, temperature, timeout=max(deadline.left(), 0.1))
    other = other_gradient(energy) if plant.kind == "particles" else ""
    walled = parted(energy).sets and exists is None  # an inside, and a finite Z, are not to be assumed there
    bent = callable(mobility)
    usable = inequality.status is Status.PROVED and inequality.rate is not None and not (other or walled or bent)
    if usable and inequality.rate is not None:
        rate, more = _in_metric(energy, inequality.rate, mobility)
        return combine(
            f"{text}, and V(t) ≤ exp(-r t) V(0) with r = {shown_down(rate)}", [*steps, *inequality.steps, *more],
            assumptions=assumptions, kind=Decay, deadline=deadline, rate=rate, constant=inequality.constant,
        )  # fmt: skip
    if walled:
        other = "it was not established that the safe set has an inside and exp(-E/ε) a finite integral on it"
    why = other or f"no log-Sobolev constant was established ({inequality.reason})"
    if bent:
        why = "the metric depends on the state: no λ with K(x) ⪰ λ was established (`riemannian_rate` asks for rates)"
    if exists is None:
        assumptions.append("the Gibbs measure exists: exp(-E/ε) is integrable")
    if other and not walled:
        assumptions.append("what JAX takes for the gradient of the energy is its gradient")
    if not measure:
        return combine(text, [*steps, missing("a rate", why)], assumptions=assumptions, kind=Decay, deadline=deadline)
    try:
        measured, how = _measured(energy, temperature, loop, initial, key, 2 * deadline.seconds)
    except (ValueError, FloatingPointError) as error:
        reason = f"{why}, and no rate was measured: {error}"
        return combine(
            text, [*steps, missing("a rate", reason)], assumptions=assumptions, kind=Decay, deadline=deadline
        )
    value, error = float(measured.value), float(measured.error)
    rate = value if np.isfinite(value) and value > CLEAR * error else None
    if rate is None and np.isfinite(value):
        how += f"; {measured} is not clear of zero, so no rate is claimed"
    return Decay(
        claim=f"{text}, and V falls at the rate r = {measured}" if rate is not None else text,
        status=Status.SAMPLED, method="grid" if "grid" in how else "particles", assumptions=tuple(assumptions),
        reason=f"{how}; {why}", seconds=deadline.spent, steps=tuple(steps), rate=rate, measured=measured,
    )  # fmt: skip


def _in_metric(energy: Energy, rate: float, mobility: Any) -> tuple[float, list[Step]]:
    """The rate in a metric: times λ_min(K); for a quadratic energy 2λ with PKP ⪰ λP, if that is more."""
    if mobility is None:
        return rate, []
    k = np.diag(mobility) if np.ndim(mobility) == 1 else np.asarray(mobility, np.float64)
    exact, hessian = fractions((k + k.T) / 2), exact_hessian(energy)
    least = spectrum_bounds((k + k.T) / 2)[0]
    if least <= 0:
        return 0.0, [missing("K ≻ 0", "the metric is too ill-conditioned to bound its inverse from below")]
    best = down(Fraction(rate) * Fraction(least))
    step = premise(f"K ⪰ {shown_down(least)} I", "V̇ ≤ -ελ_min(K) I(ρ‖ρ*)", partial(at_least, exact, least), "interval")
    if hessian is not None:
        whole = hessian @ exact @ hessian
        near = float(np.linalg.eigvals(k @ hessian.astype(np.float64)).real.min())
        for share in (1e-14, 1e-12, 1e-9, 1e-6, 1e-3):
            low = near * (1 - share)
            if 2 * low > best and at_least(whole - Fraction(low) * hessian, 0.0):
                rule = "Bakry–Émery in coordinates in which the metric is the identity"
                check: Callable[[], bool] = partial(at_least, whole - Fraction(low) * hessian, 0.0)
                return down(2 * Fraction(low)), [premise(f"PKP ⪰ {shown_down(low)} P", rule, check, "interval")]
    return best, [step]


def _measured(
    energy: Energy, temperature: float, loop: ClosedLoop, initial: Any, key: int, seconds: float
) -> tuple[Estimate, str]:
    from ctrlgen.certify.rates import fitted_rate, spectral_gap_rate

    plant = loop.plant
    mobility, skew = getattr(plant, "mobility", None), getattr(plant, "skew", None)
    open_metric = not callable(mobility) and loop.safety is None
    if energy.dim <= 2 and skew is None and (mobility is None or open_metric):
        straight = energy if mobility is None else _straightened(energy, mobility)
        where = "" if mobility is None else " in coordinates in which the metric is the identity"
        found = spectral_gap_rate(straight, temperature, seconds=seconds)
        return (
            found,
            f"twice the spectral gap of the Fokker–Planck operator on grids{where}, extrapolated: V's rate in the end",
        )
    if loop.safety is not None:
        raise ValueError("behind walls a rate is measured on a grid, in one or two dimensions without metric and skew")
    own = loop if isinstance(plant, Langevin) else None
    rate = fitted_rate(energy, temperature, own, initial, key)
    return rate, f"fitted to a run of particles: {rate.note} ({rate.level:.0%} interval {rate.interval})"


def _straightened(energy: Energy, mobility: Any) -> Energy:
    """y ↦ E(Ly) with K = LLᵀ: along dX = -K∇E dt + √(2εK) dW, y = L⁻¹x moves as the loop of that energy."""
    k = np.diag(mobility) if np.ndim(mobility) == 1 else np.asarray(mobility, np.float64)
    factor = np.linalg.cholesky((k + k.T) / 2)
    return CallableEnergy(lambda y: energy.potential(factor @ y), energy.dim)


def identity_holds() -> bool:
    """∇·(ρK∇E) + ε∇·(K∇ρ) + ∇·(ρJ∇E) = ∇·(ρ(K + J)∇(E + ε log ρ)), for any E, ρ, symmetric K(x) and
    skew J.

    In two dimensions; the terms of more are sums over pairs of coordinates.
    """
    x, y = states = sp.symbols("x y", real=True)
    a, b, c = (sp.Function(name)(x, y) for name in "abc")
    j, eps = sp.symbols("j epsilon", real=True)
    energy, rho = sp.Function("E")(x, y), sp.Function("rho", positive=True)(x, y)
    k, skew = sp.Matrix([[a, b], [b, c]]), sp.Matrix([[0, j], [-j, 0]])

    def gradient(f: Any) -> sp.Matrix:
        return sp.Matrix([sp.diff(f, s) for s in states])

    def divergence(field: Any) -> Any:
        return sum(sp.diff(f, s) for f, s in zip(field, states, strict=True))

    left = divergence(rho * (k + skew) * gradient(energy)) + eps * divergence(k * gradient(rho))
    right = divergence(rho * (k + skew) * gradient(energy + eps * sp.log(rho)))
    drop = (gradient(sp.log(rho)).T * skew * gradient(sp.log(rho)))[0]
    return sp.simplify(sp.expand(left - right)) == 0 and sp.expand(drop) == 0
