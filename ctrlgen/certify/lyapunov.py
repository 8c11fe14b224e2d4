"""Lyapunov functions: V > 0 and V̇ < 0 away from an equilibrium, decided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import sympy as sp

from ctrlgen.certify.build import check_domain, claims, settle
from ctrlgen.certify.coercive import radially_unbounded
from ctrlgen.certify.regular import noise_entries, regular, undecided
from ctrlgen.certify.verdict import Step, Verdict, combine
from ctrlgen.continuity import everywhere
from ctrlgen.domain import Ball, Domain
from ctrlgen.field import Field, VectorField, rationalise
from ctrlgen.precision import float64
from ctrlgen.prove.claim import Outcome, Status
from ctrlgen.prove.decide import best_bound, check_method, check_timeout, float_below

Time = Literal["continuous", "discrete"]


class LyapunovFunction:
    """A function V that is to be zero at an equilibrium, positive elsewhere, and to fall along the motion.

    Args:
        V: SymPy expression, string, JAX-traceable function (d,) -> (), or an energy.
        states: names or symbols, in the order of the coordinates. V must depend on each of them.
        equilibrium: x*, d numbers; the origin when omitted.

    Raises:
        ValueError: V is not a real formula of the states, does not depend on one of them, or is not zero at x*.

    A float in a formula is read as the decimal that it prints as (0.1 is 1/10), so that a verdict is about exactly what
    was written. Reference: Khalil, Nonlinear Systems (2002), theorems 4.1, 4.2 and 4.4.
    """

    def __init__(self, V: Any, states: Sequence[str | sp.Symbol], equilibrium: Sequence[Any] | None = None):
        self.field = Field(V, states, "V")
        self.states = self.field.states
        self.equilibrium = exact_point("equilibrium", equilibrium, self.states)
        expr = self.field.expr
        if expr is None:
            return
        absent = [s.name for s in self.states if s not in expr.free_symbols]
        if absent:
            raise ValueError(
                f"V must depend on every state, or it is zero along a whole line; {absent} does not occur in {expr}. "
                "Add it to V, or leave it out of states."
            )
        value = self.field.at(self.equilibrium)
        if not _is_zero(value):
            raise ValueError(
                f"V must be zero at the equilibrium {_show(self.equilibrium)}; got {value}. "
                "Subtract its value there, or pass equilibrium=."
            )

    @property
    def dim(self) -> int:
        """d, the number of states."""
        return len(self.states)

    @property
    def expr(self) -> sp.Expr:
        """V as an exact SymPy expression.

        Raises:
            TypeError: V is a function without a formula.
        """
        return self.field.outward(self.field.formula())

    def __call__(self, x: Any) -> Any:
        """V in float64: (d,) -> (), (n, d) -> (n,)."""
        return evaluate(self.field, x)

    def __repr__(self) -> str:
        shown = self.field.expr if self.field.expr is not None else "function without formula"
        return f"LyapunovFunction({shown}, {[s.name for s in self.states]})"

    def derivative(self, f: Any) -> sp.Expr:
        """V̇ = ∇V·f, simplified.

        Args:
            f: the vector field: d formulas, a JAX function, a python-control system, or an energy E (which means -∇E).

        Raises:
            TypeError: V or f has no formula.
            ValueError: f does not have d components.
        """
        return self.field.outward(simplified(self.field.lie(VectorField(f, self.states)).formula()))

    def difference(self, f: Any) -> sp.Expr:
        """V(f(x)) - V(x), simplified: what V gains in one step of x⁺ = f(x)."""
        return self.field.outward(simplified((self.field.after(VectorField(f, self.states)) - self.field).formula()))

    def generator(self, f: Any, diffusion: Any) -> sp.Expr:
        """𝓛V = ∇V·f + ½ tr(G Gᵀ ∇²V) of dX = f dt + G dW, simplified.

        Args:
            f: the drift, as in `derivative`.
            diffusion: G: a (d, m) matrix of formulas, a vector of d (one noise), or a scalar s, which means s·I.
        """
        return self.field.outward(simplified(self.field.generator(VectorField(f, self.states), diffusion).formula()))

    def verify(
        self,
        f: Any,
        domain: Domain | None = None,
        method: str = "auto",
        *,
        strict: bool = True,
        time: Time | None = None,
        exclude: float | None = None,
        timeout: float = 30.0,
    ) -> LyapunovVerdict:
        """Decide whether V > 0 and V̇ < 0 away from the equilibrium.

        Args:
            f: the vector field, as in `derivative`; for discrete time the map x⁺ = f(x).
            domain: where; None asks for the whole space, and for V → ∞ as |x| → ∞ too (global asymptotic stability).
            method: "auto", "search", "exact", "smt" or "interval".
            strict: ask for V̇ < 0; False asks for V̇ ≤ 0, and LaSalle's principle is left to the reader.
            time: "continuous", "discrete" (V(f(x)) - V(x) for V̇), or None: what f says of itself, else continuous.
            exclude: ask nothing inside this radius about the equilibrium; the verdict is then about the rest only.
            timeout: seconds for everything.

        Raises:
            ValueError: f does not have d components or does not rest at the equilibrium, the domain is empty, of no
                volume or without the equilibrium, or an argument is none of its choices.
        """
        deadline = check_timeout(timeout)
        check_method(method)
        field = VectorField(f, self.states)
        discrete = check_time(time, field)
        self._check_rest(field, discrete)
        if domain is not None:
            check_domain("domain", domain, self.states)
        interior = domain is None or self._check_inside(domain)
        outside = self._outside(exclude)
        if exclude is not None and domain is not None:
            check_domain(
                "exclude: the domain outside the excluded ball", domain & ~Ball(self.equilibrium, exclude), self.states
            )
        except_at = self.equilibrium if exclude is None else None
        fall = self.field - self.field.after(field) if discrete else -self.field.lie(field)
        if fall.expr is not None and fall.expr.is_polynomial(*self.states):
            fall = Field(sp.expand(fall.expr), self.states)
        name = "V(f(x)) - V(x)" if discrete else "V̇"
        where = ("on the whole space" if domain is None else f"on {domain!r}") + (
            "" if exclude is None else f", outside radius {exclude:g} of the equilibrium"
        )
        shared: dict[str, Any] = {"except_at": except_at, "guards": outside}
        every = claims("V > 0", self.states, self.field, domain, strict=True, **shared)
        first = len(every)
        every += claims(
            f"{name} {'<' if strict else '≤'} 0", self.states, fall, domain, strict=strict,
            guards=outside, except_at=except_at if strict else None,
        )  # fmt: skip
        parts = [("V", self.field, 1), ("f", field, 0)]
        smooth = regular(parts, self.states, domain, method, deadline.part(0.3), outside)
        if exclude is None and (field.exprs is None or self.field.expr is None):
            reason = "they have no formula, so this cannot be shown exactly; pass exclude= to ask nothing near x*"
            smooth.append(undecided("V(x*) = 0 and f rests at x*", self.states, reason))
        steps = settle_worst_first(every, first, method, deadline)
        assumptions = []
        if domain is not None:
            assumptions.append(
                "about trajectories that stay in the domain: those from {V ≤ c} do, if all of that set is in it"
            )
        if not interior and exclude is None:
            assumptions.append("the equilibrium lies on the edge of the domain, which is taken to be forward invariant")
        if not strict:
            assumptions.append(
                f"{name} ≤ 0 proves stability. Asymptotic stability follows by LaSalle's principle if no trajectory "
                f"but the equilibrium stays in {{{name} = 0}}, which is not decided here"
            )
        if domain is None and exclude is None and all(s.outcome.status is Status.PROVED for s in steps):
            steps.append(radially_unbounded(self.field, steps[0], deadline))
        verdict = combine(
            f"V > 0 and {name} {'<' if strict else '≤'} 0 away from the equilibrium, {where}",
            [*steps, *smooth],
            assumptions=assumptions,
            meaning=_meaning(domain, strict, exclude, interior),
            kind=LyapunovVerdict,
            deadline=deadline,
            lyapunov=self,
            f=field,
            domain=domain,
            discrete=discrete,
            strict=strict,
        )
        if strict and _rests(steps[first:], fall):
            hint = f"there {name} = 0, which does not refute {name} ≤ 0: strict=False asks for that (stability)"
            return replace(verdict, reason=f"{verdict.reason}; {hint}")
        return verdict

    def verify_drift(
        self,
        f: Any,
        diffusion: Any,
        c: float | None = None,
        b: float | None = None,
        *,
        domain: Domain | None = None,
        method: str = "auto",
        timeout: float = 30.0,
    ) -> FosterLyapunov:
        """Decide the Foster–Lyapunov condition 𝓛V ≤ -c V + b, with V ≥ 0 and V → ∞.

        For a Langevin closed loop, f = -∇E (pass the energy), diffusion = sqrt(2ε), it is the ergodicity certificate:
        the law converges to the Gibbs measure exponentially in a V-weighted norm, and E[V(X_t)] ≤ e^{-ct} V(x₀) + b/c.

        Args:
            f, diffusion: drift and noise, as in `generator`.
            c: rate, > 0; when omitted, the largest of a few for which some b is proved.
            b: constant, ≥ 0; when omitted, the smallest that can be proved for c.
            domain: None for the whole space, which ergodicity needs.
            method, timeout: as in `verify`.

        Returns:
            A verdict with `.rate` (c) and `.bound` (b).

        Reference: Meyn and Tweedie, Adv. Appl. Probab. 25 (1993) 518, theorem 6.1.
        """
        deadline = check_timeout(timeout)
        check_method(method)
        for name, value in (("c", c), ("b", b)):
            if value is not None and not (np.isfinite(value) and value >= 0 and (name == "b" or value > 0)):
                raise ValueError(
                    f"{name} must be finite and {'positive' if name == 'c' else 'not negative'}; got {value}."
                )
        if domain is not None:
            check_domain("domain", domain, self.states)
        field = VectorField(f, self.states)
        drift = self.field.generator(field, diffusion)
        if drift.expr is None or self.field.expr is None:
            raise ValueError(f"V and f must have formulas here: {drift.why_no_formula or self.field.why_no_formula}.")
        text = "𝓛V ≤ -c V + b"
        noise = noise_entries(diffusion, self.states)
        parts = [("V", self.field, 2), ("f", field, 0), ("G", noise, 0)]
        smooth = regular(parts, self.states, domain, method, deadline.part(0.2))
        shape = claims("V ≥ 0", self.states, self.field, domain, strict=False)
        steps = settle(shape, method, deadline.part(0.3))
        if domain is None and all(s.outcome.status is Status.PROVED for s in steps):
            steps.append(radially_unbounded(self.field, steps[0], deadline.part(0.2)))
        best = None
        for rate in [rationalise(c)] if c is not None else [sp.Rational(r) for r in RATES]:
            slack = sp.expand(-rate * self.field.formula() - drift.formula())
            if b is not None:
                bound, found = rationalise(b), None
            else:
                bound, found = _least_constant(slack, self.states, domain, method, deadline.part(0.4))
            if bound is None:
                continue
            parts = found or settle(
                claims(f"𝓛V ≤ -{rate} V + {bound}", self.states, slack + bound, domain, strict=False),
                method,
                deadline.part(0.5),
            )
            best = (rate, bound, parts)
            if all(s.outcome.status is Status.PROVED for s in parts):
                break
        extra: dict[str, Any] = {"rate": None, "bound": None}
        if best is not None:
            steps += best[2]
            text = f"𝓛V ≤ -{best[0]} V + {best[1]}"
            if all(s.outcome.status is Status.PROVED for s in best[2]):
                extra = {"rate": float_below(best[0]), "bound": -float_below(-best[1])}
        else:
            missing = Outcome(status=Status.UNDECIDED, method=method, reason="no constants c, b were found")
            steps.append(Step(claims(text, self.states, drift, domain, strict=False)[0], missing))
        assumptions = () if domain is None else ("on the domain only: no ergodicity follows",)
        if domain is None:
            assumptions = (
                "the noise reaches every open set from every point (true of a nondegenerate G), for ergodicity",
            )
        return combine(
            f"{text} with V ≥ 0{' and V → ∞' if domain is None else ''}", [*steps, *smooth],
            assumptions=assumptions, kind=FosterLyapunov, deadline=deadline, **extra,
        )  # fmt: skip

    # Checks -------------------------------------------------------------------------------------------------

    def _check_rest(self, field: VectorField, discrete: bool) -> None:
        if field.exprs is None:
            with float64():
                at = np.asarray(field.columns(np.array([float(v) for v in self.equilibrium])))
            target = np.array([float(v) for v in self.equilibrium]) if discrete else 0.0
            if not np.allclose(at, target, atol=1e-6):
                raise ValueError(f"f must rest at the equilibrium {_show(self.equilibrium)}; got f = {at} there.")
            return
        rest = self.equilibrium if discrete else (sp.Integer(0),) * self.dim
        for k, (value, want) in enumerate(zip(field.at(self.equilibrium), rest, strict=True)):
            if not _is_zero(value - want):
                what = f"f[{k}] = {value} there" + (f", not {want}" if discrete else "")
                raise ValueError(
                    f"f must rest at the equilibrium {_show(self.equilibrium)}; got {what}. Pass equilibrium= to "
                    "LyapunovFunction, or shift the coordinates."
                )

    def _check_inside(self, domain: Domain) -> bool:
        """Is the equilibrium in the interior of the domain? ValueError if it is not in it at all."""
        values = dict(zip(self.states, self.equilibrium, strict=True))
        inside = False
        for piece in domain.pieces(self.states):
            at = [sp.N(g.xreplace(values), 30) for g in piece.guards]
            if all(v.is_real for v in at) and all(v > 0 for v in at) and everywhere(piece.guards):
                return True
            inside = inside or all(v.is_real and v >= 0 for v in at)
        if inside:
            return False
        raise ValueError(
            f"domain must contain the equilibrium {_show(self.equilibrium)}; got {domain!r}. Enlarge it, or pass "
            "equilibrium= to LyapunovFunction."
        )

    def _outside(self, exclude: float | None) -> tuple[sp.Expr, ...]:
        if exclude is None:
            return ()
        if not (np.isfinite(exclude) and exclude > 0):
            raise ValueError(f"exclude must be a positive radius; got {exclude}.")
        square = sp.Add(*((s - v) ** 2 for s, v in zip(self.states, self.equilibrium, strict=True)))
        return (square - rationalise(exclude) ** 2,)


RATES = ("1", "1/2", "1/5", "1/10", "1/100", "1/1000")


@dataclass(frozen=True, kw_only=True, repr=False)
class LyapunovVerdict(Verdict):
    """A verdict on V > 0 and V̇ < 0.

    Args:
        lyapunov, f: V and the vector field (the map, in discrete time).
        domain: the set that it is about; None for the whole space.
        discrete: whether time is discrete, and V(f(x)) - V(x) stands for V̇.
        strict: whether V̇ < 0 is claimed away from the equilibrium, not V̇ ≤ 0 alone.
    """

    lyapunov: LyapunovFunction | None = None
    f: VectorField | None = None
    domain: Domain | None = None
    discrete: bool = False
    strict: bool = True

    def plot(self, ax: Any = None, **view: Any) -> Any:
        """Draw V̇ with the level sets of V: see `ctrlgen.plot.lyapunov` for `plane`, `at` and `bounds`."""
        from ctrlgen import plot

        return plot.lyapunov(self, ax, **view)


@dataclass(frozen=True, kw_only=True, repr=False)
class FosterLyapunov(Verdict):
    """A verdict on 𝓛V ≤ -c V + b.

    Args:
        rate: c, where proved.
        bound: b, where proved.
    """

    rate: float | None = None
    bound: float | None = None


def _least_constant(slack, states, domain, method, deadline) -> tuple[Any, list[Step] | None]:
    """The smallest b with slack + b ≥ 0 that can be proved, and the steps that prove it."""
    from ctrlgen.prove.search import minimise

    worst, steps = sp.Integer(0), []
    for claim in claims("", states, slack, domain, strict=False):
        found = minimise(slack, claim.guards, states, claim.box)
        if found is None or not np.isfinite(found[1]):
            return None, None
        low = min(float(found[1]), 0.0)
        value, _, outcome = best_bound(
            lambda v, c=claim: replace(c, text=f"slack ≥ {v}", matrix=sp.Matrix([[slack - v]])),
            low, method, deadline, scale=max(abs(low), 1.0),
        )  # fmt: skip
        if value is None:
            return None, None
        worst = min(worst, value)
        steps.append((claim, value, outcome))
    out = [Step(replace(c, text=f"𝓛V ≤ -c V + {-v}", matrix=sp.Matrix([[slack - v]])), o) for c, v, o in steps]
    return -worst, out


def settle_worst_first(every, first, method, deadline) -> list[Step]:
    """Decide the claims, those after `first` (about the motion) before the others; the order of the list is kept.

    A claim about the motion is the one that fails, if any does; when it is refuted the rest is not asked at length.
    """
    motion = settle(every[first:], method, deadline.part(0.8))
    rest = settle(every[:first], method, deadline)
    return [*rest, *motion]


def _rests(falls: Sequence[Step], fall: Field) -> bool:
    """Is V̇ < 0 refuted, and by nothing but points at which V̇ = 0 exactly?"""
    refuted = [step.outcome for step in falls if step.outcome.status is Status.REFUTED]
    if not refuted or fall.expr is None:
        return False
    return all(o.witness is not None and _is_zero(fall.at(o.witness)) for o in refuted)


def _meaning(domain: Domain | None, strict: bool, exclude: float | None, interior: bool) -> str:
    if exclude is not None:
        return "V falls outside the excluded ball"
    kind = "asymptotically stable" if strict else "stable"
    relative = "" if interior else ", relative to the domain"
    return f"the equilibrium is {'globally ' if domain is None and strict else ''}{kind}{relative}"


def check_time(time: str | None, field: VectorField) -> bool:
    """Is the system in discrete time? ValueError for a word that is none."""
    if time not in (None, "continuous", "discrete"):
        raise ValueError(f"time must be 'continuous' or 'discrete'; got {time!r}.")
    if time is None:
        return bool(field.discrete)
    if field.discrete is not None and field.discrete != (time == "discrete"):
        raise ValueError(
            f"time is {time!r}, but f is a system in {'discrete' if field.discrete else 'continuous'} time."
        )
    return time == "discrete"


def exact_point(name: str, value: Sequence[Any] | None, states: Sequence[sp.Symbol]) -> tuple[sp.Rational, ...]:
    """d exact rationals; the origin for None."""
    if value is None:
        return (sp.Integer(0),) * len(states)
    entries = list(np.asarray(value, dtype=object).ravel())
    try:
        point = tuple(rationalise(v) for v in entries)
    except (TypeError, ValueError):
        point = ()
    if len(point) != len(states) or not all(getattr(v, "is_Rational", False) for v in point):
        raise ValueError(f"{name} must be {len(states)} rational numbers, one a state; got {value!r}.")
    return point


def evaluate(field: Field, x: Any) -> Any:
    """A field in float64 at the public boundary: (d,) -> (), (n, d) -> (n,)."""
    x = np.asarray(x, dtype=np.float64)
    if x.ndim not in (1, 2) or x.shape[-1] != field.dim:
        raise ValueError(f"x must have shape ({field.dim},) or (n, {field.dim}); got {x.shape}.")
    with float64():
        out = np.asarray(field.columns(jnp.asarray(x.T)))
    return float(out) if out.ndim == 0 else out


def simplified(expr: sp.Expr) -> sp.Expr:
    """The same formula, shorter: polynomials expanded, rational formulas factored, others by SymPy's rules."""
    symbols = sorted(expr.free_symbols, key=str)
    if not symbols or expr.is_polynomial(*symbols):
        return sp.expand(expr)
    if expr.is_rational_function(*symbols):
        return sp.factor(sp.together(expr))
    return min((sp.expand(expr), sp.simplify(expr)), key=sp.count_ops)


def _is_zero(value: Any) -> bool:
    value = sp.sympify(value)
    if value.is_zero is not None:
        return bool(value.is_zero)
    return sp.simplify(value).is_zero is True


def _show(point: Sequence[Any]) -> str:
    return f"({', '.join(map(str, point))})"
