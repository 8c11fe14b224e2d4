"""Where a density feedback brings the density to its Gibbs measure: verdicts on the closed loop.

The dissipative law is good for every density: along ∂ρ/∂t = ∇·(ρ∇(E + Σuⱼφⱼ)) + εΔρ there is
dKL/dt = -εI + (1/ε)Σ uⱼE_ρ[Lφⱼ], and uⱼ has the sign of -E_ρ[Lφⱼ]. Of a Riccati law the verdict is about the slow modes
alone, whose dynamics are bilinear and whose inputs saturate (`saturated`).

Reference: Jurdjevic and Quinn, J. Differ. Equ. 28 (1978) 381.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import equinox as eqx
import numpy as np
import sympy as sp

from ctrlgen.certify.constants import other_gradient
from ctrlgen.certify.existence import gibbs_measure_exists, refuse_without_gibbs
from ctrlgen.certify.premise import missing, premise, shown_down
from ctrlgen.certify.regular import own_functions, regular, smooth_by_form
from ctrlgen.certify.saturated import Saturated, find_ellipsoid
from ctrlgen.certify.verdict import Step, Verdict, combine
from ctrlgen.energies.algebra import parted
from ctrlgen.energies.base import default_states
from ctrlgen.energies.feedback import DensityFeedback, Generated, Scaled
from ctrlgen.energies.symbolic import CallableEnergy
from ctrlgen.field import Field
from ctrlgen.prove.claim import Deadline

REACHES = (300.0, 100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01)  # largest |kᵀz| over the limit, widest first
LARGEST = 24  # modes up to which the program is tried


@dataclass(frozen=True, kw_only=True, repr=False)
class FeedbackVerdict(Verdict):
    """A verdict on "the slow modes tend to 0 from {zᵀPz ≤ 1}", or on the dissipative law.

    Args:
        rate: 2α with V(t) ≤ exp(-2αt) V(0) for V = zᵀPz [1 / time]; None for the dissipative law.
        matrix: P, (r, r); None likewise.
        saturation: how far beyond their limits the inputs would be on that set: at most this factor.
        modes: whose coordinates z are.
    """

    rate: float | None = None
    matrix: np.ndarray | None = None
    saturation: float | None = None
    modes: Any = field(default=None)

    def plot(self, ax: Any = None, **view: Any) -> Any:
        """Draw {zᵀPz ≤ 1} in the modes of `plane=`, or the steps without such a set: see `ctrlgen.plot.feedback`."""
        from ctrlgen import plot

        return plot.feedback(self, ax, **view)

    def value(self, density: Any) -> float:
        """V = zᵀPz of particles (n, d) or a grid density: at most 1 where the verdict holds.

        Raises:
            ValueError: nothing was proved of the modes.
        """
        if self.matrix is None or self.modes is None:
            raise ValueError("this verdict has no Lyapunov function of the modes.")
        z = self.modes.coordinates(density)
        return float(z @ self.matrix @ z)


def verify_feedback(
    feedback: DensityFeedback, design: Any, *, initial: Any = None, rate: float = 0.0, timeout: float = 30
) -> Verdict:
    """Where the closed loop of this feedback tends to the Gibbs measure.

    Args:
        feedback: the controller block.
        design: what it was designed from (`interop.design.Design`).
        initial: a density (grid, or particles) that the set is to hold; the largest set that is found when omitted.
        rate: that V has to fall at, at least [1 / time]; a larger one leaves a smaller set.
        timeout: seconds.

    Returns:
        for the dissipative law a verdict on every density; for a Riccati law one on the slow modes.

    Raises:
        ValueError: rate is negative or not finite, or initial is no density.
    """
    if not (np.isfinite(rate) and rate >= 0):
        raise ValueError(f"rate must be finite and ≥ 0 [1 / time]; got {rate!r}.")
    deadline = Deadline(timeout)
    if feedback.law == "dissipative":
        return dissipative(feedback, deadline)
    r, m = design.steer.shape
    text = f"the first {r} modes of the density tend to 0 under {m} saturated inputs"
    if not _as_designed(feedback, design):
        reason = "the feedback does not command what its design says"
        return combine(text, [missing(text, reason)], kind=FeedbackVerdict, deadline=deadline, modes=design.modes)
    if r > LARGEST:
        reason = f"the program is tried for at most {LARGEST} modes; design with a smaller order"
        return combine(text, [missing(text, reason)], kind=FeedbackVerdict, deadline=deadline, modes=design.modes)
    start = None if initial is None else design.modes.coordinates(initial)
    for reach in REACHES if start is None else REACHES[::-1]:
        if deadline.over:
            break
        loop = Saturated(
            design.modes.rates, design.steer, design.bilinear, design.gain, feedback.limit, reach, start, float(rate)
        )
        found = find_ellipsoid(loop, deadline)
        if found is None:
            continue
        ellipsoid, proved, steps = found
        return combine(
            f"{text} from {{zᵀPz ≤ 1}}: V = zᵀPz obeys V(t) ≤ exp(-{shown_down(proved)} t) V(0)", steps,
            assumptions=(
                f"the modes follow their Galerkin model ż = Λz + Σuⱼ(bⱼ + Nⱼz): what inputs couple into the first {r} "
                "modes from faster ones is left out, and Λ, b, N, K are the numbers of the design",
                "commands are continuous in time (the design holds them for its period)",
            ),
            kind=FeedbackVerdict, deadline=deadline, rate=proved, matrix=ellipsoid.matrix, saturation=max(reach, 1.0),
            modes=design.modes,
        )  # fmt: skip
    held = "" if start is None else " that holds the initial density"
    reason = f"no common quadratic Lyapunov function was found on any set{held}" + (
        "; time-out" if deadline.over else ""
    )
    return combine(text, [missing(text, reason)], kind=FeedbackVerdict, deadline=deadline, modes=design.modes)


def _as_designed(feedback: DensityFeedback, design: Any) -> bool:
    """Is the feedback the Riccati law of its design: its gain, inputs, energy, temperature and period?"""
    modes = design.modes
    return (
        type(feedback) is DensityFeedback
        and not feedback.offset.any()
        and feedback.temperature == modes.temperature
        and feedback.period <= design.period
        and bool(eqx.tree_equal(feedback.energy, modes.energy))
        and bool(eqx.tree_equal(feedback.inputs, design.inputs))
        and bool(eqx.tree_equal(feedback.observable, modes.observable(design.gain)))
    )


# The dissipative law --------------------------------------------------------------------------------------------------


def is_dissipative(feedback: DensityFeedback) -> bool:
    """Is uⱼ = clip(-kⱼE_ρ[Lφⱼ]) with k > 0, by its own parts?"""
    q = feedback.observable
    if type(feedback) is not DensityFeedback or type(q) is not Scaled or len(q.functions) != len(feedback.inputs):
        return False
    same = all(
        type(g) is Generated
        and g.energy is feedback.energy
        and g.function is phi
        and g.temperature == feedback.temperature
        for g, phi in zip(q.functions, feedback.inputs, strict=True)
    )
    return same and bool((np.asarray(q.gains) > 0).all()) and not feedback.offset.any()


def dissipative(feedback: DensityFeedback, deadline: Deadline) -> FeedbackVerdict:
    """The verdict that KL falls at least as fast as without the inputs, for every density.

    Raises:
        ValueError: the energy is known to have no Gibbs measure.
    """
    refuse_without_gibbs(feedback.energy)
    text = (
        f"under uⱼ = sat(-kⱼE_ρ[Lφⱼ]), dKL(ρ‖ρ*)/dt = -εI(ρ‖ρ*) - (1/ε)Σ|uⱼ||E_ρ[Lφⱼ]| ≤ -εI(ρ‖ρ*), ε = "
        f"{feedback.temperature!r}"
    )
    identity = premise(
        "dKL/dt = -εI + (1/ε)Σ uⱼE_ρ[Lφⱼ], Lφ = εΔφ - ∇E·∇φ",
        "∂ρ/∂t = ∇·(ρ∇(E + Σuⱼφⱼ + ε log ρ)), by parts twice", identity_holds, "symbolic",
    )  # fmt: skip
    sign = premise(
        "uⱼE_ρ[Lφⱼ] ≤ 0", "uⱼ is -kⱼE_ρ[Lφⱼ], kⱼ > 0, saturated symmetrically",
        lambda: is_dissipative(feedback), "symbolic",
    )  # fmt: skip
    if not is_dissipative(feedback):
        sign = missing("uⱼE_ρ[Lφⱼ] ≤ 0", "the parts of this feedback are not those of the dissipative law")
    exists = gibbs_measure_exists(feedback.energy)
    steps = [identity, sign, *([] if exists is None else [exists]), *_smooth(feedback, deadline)]
    return combine(
        text, steps, kind=FeedbackVerdict, deadline=deadline,
        assumptions=(
            *(["the Gibbs measure exists: exp(-E/ε) is integrable"] if exists is None else []),
            "the density is smooth enough to integrate by parts, and commands are continuous in time",
            "the loop does not explode: E + Σuⱼφⱼ confines while it is commanded",
            "the loop in the continuum: what cells, step and the number of particles change is not part of the claim",
        ),
    )  # fmt: skip


def _smooth(feedback: DensityFeedback, deadline: Deadline) -> list[Step]:
    """Steps that the φ have two derivatives and that JAX takes the gradients of φ and E for what they are."""
    states = default_states(None, feedback.dim)
    steps: list[Step] = []
    if parted(feedback.energy).sets:
        what = "no mass flows through the walls of the energy"
        steps.append(missing(what, "E_ρ[Lφⱼ] misses what the inputs push against its walls, a term ε∮ρ∂φⱼ"))
    steps += regular([("E", f, 1) for f in own_functions(feedback.energy, states)], states, None, "auto", deadline)
    for j, phi in enumerate(feedback.inputs):
        function = Field(phi.function if isinstance(phi, CallableEnergy) else phi, states)
        steps += regular([(f"φ{j + 1}", function, 2)], states, None, "auto", deadline)
        rough = smooth_by_form(function) if function.expr is None else ""
        if rough:
            steps.append(missing(f"φ{j + 1} is twice differentiable", rough))
    for name, energy in [("E", feedback.energy), *((f"φ{j + 1}", f) for j, f in enumerate(feedback.inputs))]:
        other = other_gradient(energy)
        if other:
            steps.append(missing(f"the gradient of {name} is that of its potential", other))
    return steps


def identity_holds() -> bool:
    """-∫ρ∇φ·∇log(ρ/ρ*) = (1/ε)∫ρLφ for any E, φ and ρ: the integrands differ by the divergence of -ρ∇φ.

    In two dimensions; the terms of more are sums over coordinates.
    """
    x, y = states = sp.symbols("x y", real=True)
    eps = sp.Symbol("epsilon", positive=True)
    energy, phi = sp.Function("E")(x, y), sp.Function("phi")(x, y)
    rho = sp.Function("rho", positive=True)(x, y)

    def gradient(f: Any) -> sp.Matrix:
        return sp.Matrix([sp.diff(f, s) for s in states])

    left = -rho * (gradient(phi).T * gradient(sp.log(rho) + energy / eps))[0]
    generated = eps * sum(sp.diff(phi, s, 2) for s in states) - (gradient(energy).T * gradient(phi))[0]
    divergence = sum(sp.diff(-rho * sp.diff(phi, s), s) for s in states)
    return sp.simplify(sp.expand(left - rho * generated / eps - divergence)) == 0
