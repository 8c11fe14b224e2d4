"""Bounds on the probability that a diffusion reaches an unsafe set, by functions that hardly grow on average.

If B ≥ 0 and 𝓛B ≤ c on a domain, B ≤ γ where the process starts and B ≥ λ > 0 on the unsafe set, then B(X) - ct is a
supermartingale until the process leaves the domain, and by Doob's inequality it reaches the unsafe set by time T with
probability at most (γ + cT)/λ.

References: Kushner, Stochastic Stability and Control (1967), chapter 3; Prajna, Jadbabaie and Pappas, IEEE TAC 52
(2007) 1415.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import sympy as sp

from ctrlgen.certify.barrier import check_sets, shown
from ctrlgen.certify.build import claims, settle
from ctrlgen.certify.lyapunov import evaluate, simplified
from ctrlgen.certify.regular import noise_entries, regular
from ctrlgen.certify.verdict import Step, Verdict, combine
from ctrlgen.domain import Domain, exact
from ctrlgen.field import Field, VectorField
from ctrlgen.prove.claim import Claim, Deadline, Outcome, Status
from ctrlgen.prove.decide import best_bound, check_method, check_timeout, decide, shorten
from ctrlgen.prove.search import minimise

COARSE = (0.4, 0.1)  # parts of the least value that will do, where nothing near it can be proved
UNBOUNDED = 1e12  # a float minimum below minus this is taken for no minimum


@dataclass(frozen=True, kw_only=True, repr=False)
class ProbabilityBound(Verdict):
    """A verdict with a bound on the probability of reaching the unsafe set.

    Args:
        probability: min(1, (γ + cT)/λ), rounded up; None unless PROVED.
        gamma, level, c: γ (rounded up), λ (down) and c (up), where they were proved.
        found: the `StochasticBarrier`, when it was searched for.
        barrier, f: B and the drift.
        initial, unsafe: the parts of the sets in the domain.
        domain: where the process is followed; None for the whole space.
    """

    probability: float | None = None
    gamma: float | None = None
    level: float | None = None
    c: float | None = None
    found: Any = None
    barrier: StochasticBarrier | None = None
    f: VectorField | None = None
    initial: Domain | None = None
    unsafe: Domain | None = None
    domain: Domain | None = None

    def plot(self, ax: Any = None, **view: Any) -> Any:
        """Draw B with its levels, the two sets and the drift: see `ctrlgen.plot.stochastic_barrier`."""
        from ctrlgen import plot

        return plot.stochastic_barrier(self, ax, **view)


class StochasticBarrier:
    """A function B ≥ 0 of the state whose mean hardly grows along a diffusion, and which is large on the unsafe set.

    Args:
        B: SymPy expression, string, number, or JAX-traceable function (d,) -> (), twice continuously differentiable.
        states: names or symbols, in the order of the coordinates.

    Raises:
        ValueError: B is not a real scalar formula of the states.
    """

    def __init__(self, B: Any, states: Sequence[str | sp.Symbol]):
        self.field = Field(B, states, name="B")
        if self.field.expr is None:
            raise ValueError(f"B must have a formula; {self.field.why_no_formula}")
        self.states = self.field.states

    @property
    def expr(self) -> Any:
        """The formula of B, exact."""
        return self.field.expr

    def __call__(self, x: Any) -> Any:
        """B at a state (d,) -> float, or at a batch (n, d) -> (n,), in float64."""
        return evaluate(self.field, x)

    def __repr__(self) -> str:
        return f"StochasticBarrier({shown(self.field)}, {[s.name for s in self.states]})"

    def generator(self, f: Any, diffusion: Any) -> sp.Expr:
        """𝓛B = ∇B·f + ½ tr(G Gᵀ ∇²B) for dX = f dt + G dW, simplified.

        Args:
            f: the drift, in any form that `VectorField` reads.
            diffusion: G: a (d, m) matrix of formulas, a vector of d (one noise), or a scalar s, which means s·I.
        """
        return self.field.outward(simplified(self.field.generator(VectorField(f, self.states), diffusion).formula()))

    def verify(
        self,
        f: Any,
        diffusion: Any,
        initial: Domain | None = None,
        unsafe: Domain | None = None,
        domain: Domain | None = None,
        horizon: Any = None,
        method: str = "auto",
        timeout: float = 30.0,
    ) -> ProbabilityBound:
        """Bound the probability that dX = f dt + G dW, started in `initial`, reaches `unsafe` within `horizon`.

        Every number of the bound is proved: B ≥ 0 on the domain, γ above B on initial, λ below B on unsafe, c ≥ 0 above
        𝓛B on the domain. They are found in floating point and proved as tightly as that succeeds.

        Args:
            f, diffusion: as in `generator`.
            initial, unsafe: the sets, both required; only their parts in the domain count.
            domain: where B ≥ 0 and 𝓛B ≤ c; the whole space when omitted. The bound is for the process stopped when it
                leaves the domain: reaching unsafe after having left does not count.
            horizon: T > 0. inf is allowed; only c = 0 gives a bound then.
            method: "auto", "exact", "smt" or "interval"; "search" only refutes.
            timeout: seconds, for everything.

        Raises:
            ValueError: a set is missing, empty, or of zero volume; horizon is not positive; f or diffusion has another
                shape; B is not twice differentiable.
        """
        check_method(method)
        deadline = check_timeout(timeout)
        f, span = VectorField(f, self.states), check_horizon(horizon)
        start, bad = check_sets(self.states, initial=initial, unsafe=unsafe, domain=domain)
        growth = self.field.generator(f, diffusion)
        noise = noise_entries(diffusion, self.states)
        parts = [("B", self.field, 2), ("f", f, 0), ("G", noise, 0)]
        smooth = regular(parts, self.states, domain, method, deadline.part(0.2))
        found = replace(self.bound(growth, (start, bad, domain), span, method, deadline), f=f)
        if all(s.outcome.status is Status.PROVED for s in smooth):
            return replace(found, steps=(*found.steps, *smooth))
        steps = [*found.steps, *smooth]
        about = {k: getattr(found, k) for k in ("barrier", "f", "initial", "unsafe", "domain")}
        return combine(
            found.claim, steps, kind=ProbabilityBound, assumptions=found.assumptions, deadline=deadline, **about
        )

    def bound(
        self,
        growth: Field,
        regions: tuple[Domain, Domain, Domain | None],
        span: sp.Expr,
        method: str,
        deadline: Deadline,
    ) -> ProbabilityBound:
        """`verify` on arguments that are checked: growth is 𝓛B, regions are (initial, unsafe, domain)."""
        start, bad, domain = regions
        where = "everywhere" if domain is None else "on the domain"
        shape: dict[str, Any] = {
            "kind": ProbabilityBound,
            "assumptions": _assumptions(domain),
            "deadline": deadline,
            "barrier": self,
            "initial": start,
            "unsafe": bad,
            "domain": domain,
        }
        text = f"B = {shown(self.field)} bounds the probability of reaching unsafe " + (
            "at any time" if span is sp.oo else f"within {span}"
        )
        nonnegative = claims(f"B ≥ 0 {where}", self.states, self.field, domain, strict=False)
        steps = settle(nonnegative, method, deadline.part(0.3))
        if any(s.outcome.status is Status.REFUTED for s in steps):
            return combine(text, steps, **shape)
        low, more = self._least("B ≥ {} on unsafe", self.field, bad, method, deadline.part(0.3), least=0)
        steps += more
        if low is None or low <= 0:
            return combine(text, [*steps, _open(self.states, "B ≥ λ > 0 on unsafe", more)], **shape)
        size = float(low)
        high, more = self._least("B ≤ {} on initial", -self.field, start, method, deadline.part(0.4), scale=size)
        steps += more
        gamma = None if high is None else max(-high, sp.S.Zero)
        per_time = size if span is sp.oo else size / float(span)
        fall, more = self._least(f"𝓛B ≤ {{}} {where}", -growth, domain, method, deadline, scale=per_time, most=0)
        steps += more
        c = None if fall is None else max(-fall, sp.S.Zero)
        if gamma is None or c is None:
            return combine(text, steps, **shape)
        numbers: dict[str, Any] = {"gamma": upward(gamma), "level": -upward(-low), "c": upward(c)}
        if c > 0 and span is sp.oo:
            words = f"𝓛B ≤ 0 was not proved (only 𝓛B ≤ {float(c):.3g}), and without it there is no bound for all time"
            return combine(text, [*steps, _open(self.states, words, [])], **shape, **numbers)
        ratio = gamma / low if c == 0 else (gamma + c * span) / low
        probability = min(1.0, upward(ratio))
        verdict = combine(f"{text} by {probability:.6g}", steps, **shape, **numbers)
        if verdict.status is not Status.PROVED:
            return verdict

        return replace(verdict, probability=probability)

    def _least(
        self,
        text: str,
        field: Field,
        domain: Domain | None,
        method: str,
        deadline: Deadline,
        scale: float | None = None,
        least: Any = None,
        most: Any = None,
    ) -> tuple[Any, list[Step]]:
        """A provable lower bound of a field on every piece of a set, as large as can be proved (but not above most).

        Returns:
            (bound, steps); the bound is None if a piece has none, and the last step then says why.
        """
        bounds, steps = [], []
        flipped = "≤" in text
        if field.expr is None:
            words = f"{text.format('a constant')}: there is no formula ({field.why_no_formula})"
            return None, [_open(self.states, words, [])]
        for model in claims(text, self.states, field, domain, strict=False):
            estimate = _estimate(model)
            if estimate is None:
                return None, [
                    *steps,
                    _open(self.states, f"{text.format('a constant')}: no finite bound is in sight", []),
                ]

            def make(value: sp.Rational, model: Claim = model) -> Claim:
                shown_value = -value if flipped else value
                return _shifted(model, value, model.text.format(shown_value))

            if most is not None and estimate >= most:
                estimate = float(most)
            bound, claim, outcome = best_bound(
                make, estimate, method, deadline.part(0.5, 1.0), scale=scale, least=least
            )
            for part in COARSE if bound is None and least == 0 else ():
                value = shorten(part * estimate, 3)
                outcome = decide(make(value), method, deadline.part(0.2))
                if outcome.status is Status.PROVED:
                    bound, claim = value, make(value)
                    break
            steps.append(Step(make(sp.S.Zero) if claim is None else claim, outcome))
            if bound is None:
                return None, steps
            bounds.append(bound)
        return min(bounds), steps


def check_horizon(horizon: Any) -> sp.Expr:
    """T as an exact number, positive, or infinity."""
    if horizon is None:
        raise ValueError("horizon must be given: a positive duration, or inf; got None.")
    span = exact("horizon", horizon, infinite=True)
    if not span.is_extended_positive:
        raise ValueError(f"horizon must be positive; got {horizon}.")
    return span


def upward(value: Any) -> float:
    """The least float that is not below an exact number."""
    if value.is_Rational:
        number = Fraction(int(value.p), int(value.q))
        near = float(number)
        return near if Fraction(near) >= number else math.nextafter(near, math.inf)
    return math.nextafter(float(sp.N(value, 30)), math.inf)


def _shifted(model: Claim, value: sp.Rational, text: str) -> Claim:

    return replace(model, text=text, matrix=sp.Matrix([[model.expr - value]]))


def _estimate(model: Claim) -> float | None:
    """About the least value of a claim's left-hand side on its set; None where there seems to be none."""
    try:
        _, value = minimise(model.expr, model.guards, model.states, model.box)
    except NotImplementedError:
        return None
    return float(value) if np.isfinite(value) and abs(value) < UNBOUNDED else None


def _assumptions(domain: Domain | None) -> list[str]:
    out = ["the process exists, with the given drift and diffusion, and starts in initial"]
    if domain is not None:
        out.append("the process is stopped when it leaves the domain; what would happen later is not counted")
    return out


def _open(states: tuple[sp.Symbol, ...], words: str, steps: Sequence[Step]) -> Step:
    """A step that is not decided, for the record."""
    told = "; ".join(s.outcome.reason for s in steps if s.outcome.status is not Status.PROVED)
    claim = Claim(text=words, states=states, strict=False)
    return Step(claim, Outcome(status=Status.UNDECIDED, method="none", reason=f"{words}{': ' + told if told else ''}"))
