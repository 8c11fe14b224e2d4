"""What is certain of a safety filter: can its program be solved, what does that keep, how often does noise leave?

The program asks, at a state x, for δ with ∇h_j·(u + δ) + c_j ≥ 0 for every j, with c_j = ε tr(K∇²h_j) + α(h_j). By
Farkas' lemma there is none exactly where some λ ≥ 0 has Σ λ_j ∇h_j = 0 and Σ λ_j c_j < 0; the drift u drops out, and
one proof serves every energy, trained ones too. Without noise c_j = α(h_j) ≥ 0 on the safe set: δ = -u is a solution.

Along a solution of ẋ = u + δ with ḣ ≥ -α(h) and α locally Lipschitz, the comparison lemma keeps h ≥ 0. With noise the
same inequality is about the generator, 𝓛h ≥ -α(h): it bounds means, and no path, for the noise does not vanish at the
border. There it is the correction of each step that keeps particles inside.

References: Nagumo, Proc. Phys.-Math. Soc. Japan 24 (1942) 551; Ames, Xu, Grizzle and Tabuada, IEEE TAC 62 (2017) 3861;
Khalil, Nonlinear Systems (2002), lemma 3.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import sympy as sp

from ctrlgen.certify.build import check_domain, claims, settle
from ctrlgen.certify.find_barrier import find_barrier
from ctrlgen.certify.premise import missing, premise
from ctrlgen.certify.regular import regular
from ctrlgen.certify.stochastic import ProbabilityBound
from ctrlgen.certify.verdict import Step, Verdict, combine
from ctrlgen.checks import positive_definite
from ctrlgen.domain import Domain, Sublevel, exact
from ctrlgen.energies.base import Energy
from ctrlgen.field import Field
from ctrlgen.gain import class_k
from ctrlgen.prove.claim import Deadline, Status
from ctrlgen.prove.decide import check_method, check_timeout
from ctrlgen.safety.filter import SafetyFilter

MOST = 8  # states and multipliers together, up to which several barriers are decided at once


def verify_filter(
    safety: SafetyFilter, temperature: Any, metric: Any, domain: Domain | None, method: str, timeout: float
) -> Verdict:
    """What `SafetyFilter.verify` says; see there."""
    check_method(method)
    deadline = check_timeout(timeout)
    epsilon = exact("temperature", temperature)
    if epsilon < 0:
        raise ValueError(f"temperature must be ≥ 0; got {temperature}.")
    states = _states(safety)
    if domain is not None:
        check_domain("domain", domain, states)
    noisy = epsilon != 0
    inequality = "∇h·(u + δ) + ε tr(K∇²h) ≥ -α(h)" if noisy else "∇h·(u + δ) ≥ -α(h)"
    count = len(safety.constraints)
    text = f"at every safe state, whatever the drift u, some δ gives {inequality} for {count} barrier(s) at once"
    if domain is not None:
        text = text.replace("at every safe state", "at every safe state of the domain")
    if safety.mode != "cbf" or safety.tube is not None or safety.constraints.moving:
        why = "it is about mode 'cbf' at rest" if safety.mode != "cbf" else "the set moves, or a tube closes"
        return combine(text, [missing(text, why)], deadline=deadline)
    fields = [_named(part, states) for part in safety.constraints]
    lacking = [part.name for part, field in zip(safety.constraints, fields, strict=True) if field is None]
    if lacking:
        reason = f"{', '.join(lacking)} has no formula, so nothing is proved of where its gradient vanishes"
        return combine(text, [missing(text, reason)], deadline=deadline)
    barriers = [f for f in fields if f is not None]
    alpha = class_k("gain", safety.gain)
    z = sp.Symbol("z", real=True)
    smooth = regular([("α", [alpha(z)], 1)], (z,), None, method, deadline.part(0.1))
    parts = [(f"h[{j}]", field, 2 if noisy else 1) for j, field in enumerate(barriers)]
    smooth += regular(parts, states, domain, method, deadline.part(0.2), kinks=False)
    assumptions = ["the computed solution of the program meets it to rounding (the report's residual says how nearly)"]
    if not noisy:
        step = premise(
            "δ = -u is one", "∇h·0 = 0 ≥ -α(h) where h ≥ 0, for every barrier at once", lambda: True, "symbolic"
        )
        meaning = "trajectories of ẋ = u + δ that start with all h ≥ 0 keep all h ≥ 0 (comparison lemma)"
        assumptions.append("a trajectory is followed while its solution exists; u is continuous")
        if domain is not None:
            assumptions.append("a trajectory is followed only while it stays in the domain")
        rises = _rises(safety, barriers, alpha, states, domain, method, deadline)
        return combine(text, [step, *rises, *smooth], assumptions=assumptions, meaning=meaning, deadline=deadline)
    if domain is not None:
        assumptions.append("nothing is said of states outside the domain")
    assumptions.append("the gain and the temperature are the decimals that they print as")
    steps = _farkas(safety, barriers, states, epsilon, alpha, metric, domain, method, deadline)
    meaning = (
        "𝓛h ≥ -α(h) along the filtered loop: means fall no faster than α allows. No path is kept by that, for noise "
        "crosses any border at which it does not vanish: inside stay the particles because each step is corrected"
    )
    if any(s.outcome.status is not Status.PROVED for s in smooth):
        steps = [s for s in steps if s.outcome.status is not Status.REFUTED]
    return combine(text, [*steps, *smooth], assumptions=assumptions, meaning=meaning, deadline=deadline)


def _rises(
    safety: SafetyFilter, barriers: Sequence[Field], alpha: Any, states: tuple, domain: Domain | None, method: str,
    deadline: Deadline,
) -> list[Step]:  # fmt: skip
    """α ≥ 0 at every value that h takes on the safe set: for all z ≥ 0, or else state by state.

    Where it fails δ = -u is no solution, which does not say that there is none.
    """
    if isinstance(safety.gain, (int, float, np.number)):
        return [premise("α(h) = gain·h ≥ 0 where h ≥ 0", f"gain = {safety.gain} > 0", lambda: safety.gain > 0)]
    z = sp.Symbol("z", real=True)
    steps = settle(
        claims("α(z) ≥ 0 for z ≥ 0", (z,), alpha(z), None, strict=False, guards=[z]), method, deadline.part(0.2)
    )
    if all(s.outcome.status is Status.PROVED for s in steps):
        return steps
    guards, steps = [field.formula() for field in barriers], []
    for j, field in enumerate(barriers):
        words = f"α(h[{j}]) ≥ 0 at safe states"
        every = claims(words, states, alpha(field.formula()), domain, strict=False, guards=guards)
        steps += [
            missing(words, "it fails at a safe state, where δ = -u is no solution; another may be")
            if s.outcome.status is Status.REFUTED
            else s
            for s in settle(every, method, deadline.part(0.3))
        ]
    return steps


def _farkas(
    safety: SafetyFilter, barriers: Sequence[Field], states: tuple, epsilon: Any, alpha: Any, metric: Any,
    domain: Domain | None, method: str, deadline: Deadline,
) -> list[Step]:  # fmt: skip
    """c_j ≥ 0 on the safe set for all j; or else no λ that contradicts solvability."""
    mobility = _mobility(metric, len(states))
    guards = [field.formula() for field in barriers]
    have = []
    for field in barriers:
        try:
            bend: Any = field.hessian()
        except ValueError as error:
            return [missing("h is twice differentiable", str(error))]
        have.append(
            sp.expand(
                epsilon * sum(mobility[i, k] * bend[i, k] for i in range(len(states)) for k in range(len(states)))
                + alpha(field.formula())
            )
        )
    easy = []
    for j, body in enumerate(have):
        words = f"ε tr(K∇²h[{j}]) + α(h[{j}]) ≥ 0 at safe states: δ = -u will do for it"
        easy.append(
            settle(claims(words, states, body, domain, strict=False, guards=guards), method, deadline.part(0.3))
        )
    hard = [j for j, steps in enumerate(easy) if any(s.outcome.status is not Status.PROVED for s in steps)]
    if not hard:
        return [s for steps in easy for s in steps]
    slopes = [[sp.diff(g, s) for s in states] for g in guards]
    if len(barriers) == 1:
        words = "ε tr(K∇²h) + α(h) ≥ 0 at safe states with ∇h = 0"
        every = claims(words, states, have[0], domain, strict=False, guards=guards, equalities=slopes[0])
        return settle(every, method, deadline)
    if len(states) + len(barriers) > MOST:
        return [missing(
            "no λ ≥ 0 has Σ λ_j ∇h_j = 0 and Σ λ_j (ε tr(K∇²h_j) + α(h_j)) < 0",
            f"{len(barriers)} barriers in {len(states)} dimensions are more than {MOST} variables",
        )]  # fmt: skip
    weights = sp.symbols(f"lambda1:{len(barriers) + 1}", real=True)
    balance = [sp.Add(*(w * slope[i] for w, slope in zip(weights, slopes, strict=True))) for i in range(len(states))]
    body = sp.Add(*(w * c for w, c in zip(weights, have, strict=True)))
    every = []
    for claim in claims(
        "Σ λ_j (ε tr(K∇²h_j) + α(h_j)) ≥ 0 where Σ λ_j ∇h_j = 0, λ ≥ 0, Σ λ_j = 1",
        states, body, domain, strict=False, guards=[*guards, *weights], equalities=[*balance, sp.Add(*weights) - 1],
    ):  # fmt: skip
        every.append(_wider(claim, weights))
    return settle(every, method, deadline)


def _wider(claim: Any, weights: Sequence[sp.Symbol]) -> Any:
    """The same claim with the multipliers among its states."""
    box = claim.box or ((None, None),) * len(claim.states)
    return replace(claim, states=(*claim.states, *weights), box=(*box, *((sp.S.Zero, sp.S.One) for _ in weights)))


def _mobility(metric: Any, dim: int) -> Any:
    """K = M⁻¹, exact."""
    if metric is None:
        return sp.eye(dim)
    m = np.asarray(metric, dtype=object)
    if m.shape not in ((dim,), (dim, dim)):
        raise ValueError(f"metric must be ({dim},) or ({dim}, {dim}); got shape {m.shape}.")
    floats = np.diag(m.astype(np.float64)) if m.ndim == 1 else m.astype(np.float64)
    positive_definite("metric", floats)
    entries = [exact("metric", v) for v in m.ravel()]
    return (sp.diag(*entries) if m.ndim == 1 else sp.Matrix(dim, dim, entries)).inv()


def _states(safety: SafetyFilter) -> tuple[sp.Symbol, ...]:
    """The states of the first barrier; the others' are matched by position."""
    return safety.constraints.parts[0].states


def _named(part: Any, states: tuple[sp.Symbol, ...]) -> Field | None:
    if part.field.expr is None:
        return None
    return Field(part.field.expr.xreplace(dict(zip(part.states, states, strict=True))), states)


def exit_probability(
    safety: SafetyFilter, energy: Energy, temperature: Any, initial: Domain, horizon: Any, domain: Domain | None,
    degree: int, timeout: float,
) -> ProbabilityBound:  # fmt: skip
    """What `SafetyFilter.exit_probability` says; see there."""
    safety.check_dim(energy.dim, "energy")
    if safety.constraints.moving:
        raise ValueError("barriers must be at rest for an exit probability.")
    epsilon = exact("temperature", temperature)
    if epsilon <= 0:
        raise ValueError(f"temperature must be positive; got {temperature}. Without noise use `verify`.")
    states = _states(safety)
    field = Field(energy, states, "energy")
    deadline = check_timeout(timeout)
    found: list[ProbabilityBound] = []
    for part in safety.constraints:
        own = _named(part, states)
        if own is None or field.expr is None:
            why = part.field.why_no_formula if own is None else field.why_no_formula
            words = f"no polynomial barrier is looked for without a formula: {why}"
            return combine(
                "the unfiltered loop leaves the safe set with a bounded probability",
                [missing("a stochastic barrier", words)], kind=ProbabilityBound, deadline=deadline,
            )  # fmt: skip
        unsafe = Sublevel(own.formula(), states)
        verdict = find_barrier(
            [-g for g in field.gradient().formulas()], states, degree, initial, unsafe, domain,
            diffusion=sp.sqrt(2 * epsilon), horizon=horizon, timeout=max(deadline.left() / 2, 0.5),
        )  # fmt: skip
        found.append(verdict)
    if len(found) == 1:
        return found[0]
    claim = "the unfiltered loop leaves the safe set: Boole's inequality over the barriers"
    steps = [s for v in found for s in v.steps]
    if any(v.status is not Status.PROVED for v in found):
        return combine(
            claim,
            [*steps, missing("a bound for every barrier", "; ".join(v.reason for v in found if v.reason))],
            kind=ProbabilityBound,
            deadline=deadline,
        )
    misses = min(
        1.0,
        float(np.nextafter(sum(1.0 if v.probability is None else v.probability for v in found) * (1 + 1e-12), np.inf)),
    )
    assumptions = tuple(dict.fromkeys(a for v in found for a in v.assumptions))
    return combine(
        f"{claim} by {misses:.6g}",
        steps,
        assumptions=assumptions,
        kind=ProbabilityBound,
        deadline=deadline,
        probability=misses,
    )
