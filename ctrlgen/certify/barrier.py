"""Barrier functions h whose set {h ≥ 0} is kept: certificates of safety, control barrier functions, high-order ones.

The safe set is {h ≥ 0} everywhere. The barrier certificate B of the literature (Prajna and Jadbabaie 2004) is -h.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import sympy as sp

from ctrlgen.certify.build import check_domain, claims, settle
from ctrlgen.certify.lyapunov import Time, check_time, evaluate, simplified
from ctrlgen.certify.regular import regular
from ctrlgen.certify.verdict import Step, Verdict, combine
from ctrlgen.domain import Box, Domain, Sublevel, exact
from ctrlgen.field import Field, VectorField, symbols
from ctrlgen.gain import class_k
from ctrlgen.prove.claim import Claim, Deadline, Outcome, Status
from ctrlgen.prove.decide import check_method, check_timeout
from ctrlgen.prove.witness import violates

LONGEST = 120  # characters of a formula in a verdict's claim


@dataclass(frozen=True, kw_only=True, repr=False)
class BarrierVerdict(Verdict):
    """A verdict on a barrier between two sets.

    Args:
        barrier, f: h and the vector field (the map, in discrete time).
        initial, unsafe: the parts of the sets in the domain.
        domain: where ḣ was looked at; None for the whole space.
        discrete: whether time is discrete, and h(f(x)) - h(x) stands for ḣ.
    """

    barrier: BarrierFunction | None = None
    f: VectorField | None = None
    initial: Domain | None = None
    unsafe: Domain | None = None
    domain: Domain | None = None
    discrete: bool = False

    def plot(self, ax: Any = None, **view: Any) -> Any:
        """Draw h = 0, the two sets and the flow: see `ctrlgen.plot.barrier` for `plane`, `at` and `bounds`."""
        from ctrlgen import plot

        return plot.barrier(self, ax, **view)


class BarrierFunction:
    """A function h of the state whose set {h ≥ 0} is the safe set; -h is the barrier certificate B of the literature.

    Args:
        h: SymPy expression, string, number, or JAX-traceable function (d,) -> (). Floats are read as decimals.
        states: names or symbols, in the order of the coordinates.
        time: name of the time in h, for a set that moves; a function is then one of (d + 1,), the time last. Such a
            barrier serves a `SafetyFilter`; to certify it, make the time a state, with ṫ = 1.

    Raises:
        ValueError: h is not a real scalar function of the states (and time).

    `expr` is the formula (None without one), `states` the real symbols, `gain` what `verify` uses unless told
    otherwise, `chain` the functions (h, ψ₁, ..., this one) of a high-order construction.

    References: Prajna and Jadbabaie, HSCC 2004; Ames, Xu, Grizzle and Tabuada, IEEE TAC 62 (2017) 3861.
    """

    def __init__(self, h: Any, states: Sequence[str | sp.Symbol], time: str | sp.Symbol | None = None):
        names = symbols(states)
        self.field = Field(h, names if time is None else [*names, *symbols([time])], name="h")
        self.states = self.field.states[: len(names)]
        self.time = None if time is None else self.field.states[-1]
        self.gain: Any = sp.S.Zero
        self.chain: tuple[BarrierFunction, ...] = (self,)
        self.gains: tuple[sp.Expr, ...] = ()  # the α_k of a high-order construction, as formulas of h

    @property
    def expr(self) -> Any:
        """The formula of h, exact; None where there is none."""
        return self.field.expr

    @property
    def safe_set(self) -> Sublevel:
        """{h ≥ 0}, as a domain.

        Raises:
            TypeError: h has no formula.
            ValueError: it moves.
        """
        self._at_rest("safe_set")
        return Sublevel(-self.field.formula(), self.states)

    def __call__(self, x: Any, time: float | None = None) -> Any:
        """h at a state (d,) -> float, or at a batch (n, d) -> (n,), in float64; of a moving set, at a time."""
        if self.time is None:
            return evaluate(self.field, x)
        if time is None:
            raise ValueError(f"time must be given: h depends on {self.time}.")
        x = np.asarray(x, dtype=np.float64)
        return evaluate(self.field, np.concatenate([x, np.full((*x.shape[:-1], 1), float(time))], axis=-1))

    def _at_rest(self, what: str) -> None:
        if self.time is not None:
            raise ValueError(
                f"{what} is for sets at rest; h depends on {self.time}. Make the time a state: "
                f"BarrierFunction(h, [..., '{self.time}']) along f with a last component 1."
            )

    def __repr__(self) -> str:
        return f"BarrierFunction({shown(self.field)}, {[s.name for s in self.states]})"

    def derivative(self, f: Any) -> sp.Expr:
        """ḣ = ∂h/∂t + ∇h·f, simplified.

        Raises:
            ValueError: f does not have one component a state.
            TypeError: h or f has no formula.
        """
        f = VectorField(f, self.states)
        if self.time is not None:
            f = VectorField.of_formulas([*f.formulas(), sp.S.One], self.field.states)
        return self.field.outward(simplified(self.field.lie(f).formula()))

    def verify(
        self,
        f: Any,
        initial: Domain | None = None,
        unsafe: Domain | None = None,
        domain: Domain | None = None,
        gain: Any = None,
        method: str = "auto",
        timeout: float = 30.0,
        *,
        time: Time | None = None,
    ) -> BarrierVerdict:
        """Decide that h separates `initial` from `unsafe` along f: no trajectory from one reaches the other.

        The claims are h ≥ 0 on initial, h < 0 on unsafe, and ḣ ≥ -gain·h on the domain (h(f(x)) - h(x) ≥ -gain·h(x) in
        discrete time). By the comparison lemma h(t) ≥ h(0) exp(-gain·t) ≥ 0 along every trajectory from initial for as
        long as it stays in the domain; nothing is said of what happens after it has left. A refuted verdict is about
        this h: another one may do.

        Args:
            f: vector field, in any form that `VectorField` reads.
            initial, unsafe: the sets, both required; only their parts in the domain count. Unions give several claims.
            domain: where ḣ is looked at; the whole space when omitted.
            gain: the slope of the linear class-K function; at most 1 in discrete time. A negative one is as sound: it
                asks h to grow by that rate where h > 0, and allows it to fall where h < 0. When omitted: 0, or what
                `find_barrier` found this function with.
            method: "auto", "search", "exact", "smt" or "interval".
            timeout: seconds, for all claims together.
            time: "continuous", "discrete" (f is the map x ↦ f(x)), or None: what f says of itself, else continuous.

        Raises:
            ValueError: a set is missing, empty, or of zero volume; gain is no number; f has the wrong length.

        References: Prajna and Jadbabaie, HSCC 2004; Khalil, Nonlinear Systems (2002), lemma 3.4, for the comparison.
        """
        self._at_rest("verify")
        check_method(method)
        deadline = check_timeout(timeout)
        f = VectorField(f, self.states)
        stepwise = check_time(time, f)
        slope = check_gain(self.gain if gain is None else gain, stepwise)
        start, bad = check_sets(self.states, initial=initial, unsafe=unsafe, domain=domain)
        verdict = self.settled(f, (start, bad, domain), slope, stepwise, method, deadline)
        if verdict.status is not Status.PROVED:
            common = overlap(start, bad, self._separation(start, bad), self.states)
            if common is not None:
                about = {k: getattr(verdict, k) for k in ("barrier", "f", "initial", "unsafe", "domain", "discrete")}
                return combine(self._meaning(), [common], kind=BarrierVerdict, deadline=deadline, **about)
        return verdict

    def _meaning(self) -> str:
        return f"h = {shown(self.field)} is a barrier between initial and unsafe"

    def _separation(self, start: Domain, bad: Domain) -> list[Claim]:
        return [
            *claims("h ≥ 0 on initial", self.states, self.field, start, strict=False),
            *claims("h < 0 on unsafe", self.states, -self.field, bad, strict=True),
        ]

    def settled(
        self,
        f: VectorField,
        regions: tuple[Domain, Domain, Domain | None],
        slope: sp.Expr,
        stepwise: bool,
        method: str,
        deadline: Deadline,
    ) -> BarrierVerdict:
        """`verify` on arguments that are checked: regions are (initial, unsafe, domain)."""
        start, bad, domain = regions
        change = self.field.after(f) - self.field if stepwise else self.field.lie(f)
        if slope != 0:
            change = change + self.field * slope
        rule = f"{'h(f(x)) - h(x)' if stepwise else 'ḣ'} ≥ {f'{-slope}·h' if slope != 0 else '0'}"
        where = "everywhere" if domain is None else "on the domain"
        every = [
            *self._separation(start, bad),
            *claims(f"{rule} {where}", self.states, change, domain, strict=False),
        ]
        assumptions = ["time is discrete" if stepwise else "a trajectory is followed while its solution exists"]
        if domain is not None:
            assumptions.append("a trajectory is followed only while it stays in the domain")
        parts = [("h", self.field, 1), ("f", f, 0)]
        smooth = regular(parts, self.states, domain, method, deadline.part(0.2))
        for where_h in (start, bad) if domain is not None else ():
            smooth += regular([("h", self.field, 0)], self.states, where_h, method, deadline.part(0.2))
        steps = [*settle(every, method, deadline), *smooth]
        meaning = "trajectories from initial never reach unsafe"
        return combine(
            self._meaning(), steps, assumptions=assumptions, meaning=meaning, kind=BarrierVerdict, deadline=deadline,
            barrier=self, f=f, initial=start, unsafe=bad, domain=domain, discrete=stepwise,
        )  # fmt: skip

    # Control barrier functions -------------------------------------------------------------------------------

    def control(
        self,
        f: Any,
        g: Any,
        inputs: Box | None = None,
        domain: Domain | None = None,
        gain: Any = 1,
        method: str = "auto",
        timeout: float = 30.0,
    ) -> Verdict:
        """Decide that h is a control barrier function of ẋ = f + g u: everywhere some u has L_f h + L_g h·u ≥ -α(h).

        It is decided on the whole of `domain`, where h < 0 as well; pass `domain & barrier.safe_set` to ask it only
        of safe states. With bounded inputs the domain is split by the signs of L_g h, and the best corner of the box is
        put in: one claim a sign pattern. Without bounds only the states with L_g h = 0 are in question.

        Args:
            f: drift, in any form that `VectorField` reads.
            g: (d, m) input matrix of formulas; a list of d formulas is one input.
            inputs: box of the m inputs; sides may be infinite. None: every u in R^m.
            domain: None for the whole space.
            gain: α: a number ≥ 0 (times h), a callable α(h), or a formula of one symbol (h, in a string); it
                does not decrease, and α(0) = 0.
            method, timeout: as in `verify`.

        Raises:
            ValueError: g or inputs have another shape, α(0) is not 0 or α decreases, the domain is empty.

        Reference: Ames, Xu, Grizzle and Tabuada, IEEE TAC 62 (2017) 3861, definition 5.
        """
        self._at_rest("control")
        check_method(method)
        deadline = check_timeout(timeout)
        f, columns = VectorField(f, self.states), input_columns(g, self.states)
        if domain is not None:
            check_domain("domain", domain, self.states)
        alpha = class_k("gain", gain)
        rest = simplified(self.field.lie(f).formula() + alpha(self.field.formula()))
        slopes = [simplified(self.field.lie(c).formula()) for c in columns]
        sides, every = input_sides(inputs, len(columns)), []
        for guards, equalities, body, words in patterns(rest, slopes, sides):
            text = f"max over u of L_f h + L_g h·u + α(h) ≥ 0{words}"
            every += claims(text, self.states, body, domain, strict=False, guards=guards, equalities=equalities)
        if not every:  # an input of constant effect and without bound
            push = next(
                s
                for s, (low, high) in zip(slopes, sides, strict=True)
                if s.is_number and s != 0 and not (high if s.is_positive else low).is_finite
            )
            every = claims("(L_g h)² > 0, and the input is not bounded", self.states, push**2, domain, strict=True)
        text = f"h = {shown(self.field)} is a control barrier function with α(h) = {alpha(sp.Symbol('h', real=True))}"
        assumptions = ["feedback is Lipschitz continuous where it is used"]
        if domain is not None:
            assumptions.append("a trajectory is followed only while it stays in the domain")
        if all(s == 0 for s in slopes):
            assumptions.append("L_g h = 0: no input acts on ḣ (see relative_degree, high_order)")
        gains = [*self.gains, alpha(sp.Symbol("h", real=True))]
        smooth = self._smooth_enough(f, columns, gains, domain, method, deadline)
        steps = settle(every, method, deadline) if all(s.outcome.status is Status.PROVED for s in smooth) else []
        return combine(text, [*steps, *smooth], assumptions=assumptions, deadline=deadline)

    def _smooth_enough(self, f, columns, gains, domain, method: str, deadline: Deadline) -> list[Step]:
        """h, and all of its chain, is C¹: at a kink no one gradient tells what an input can do. α is Lipschitz."""
        functions = [(f"ψ{k}" if k else "h", b.field, 1) for k, b in enumerate(self.chain)]
        others = [("f", f, 0), *((f"g[:, {k}]", c, 0) for k, c in enumerate(columns))]
        z = sp.Symbol("h", real=True)
        return [
            *regular(functions, self.states, domain, method, deadline.part(0.2), kinks=False),
            *regular(others, self.states, domain, method, deadline.part(0.2)),
            *regular([("α", gains, 1)], (z,), None, method, deadline.part(0.2)),
        ]

    def relative_degree(self, f: Any, g: Any) -> int:
        """The number r of derivatives of h until an input appears: L_g L_f^k h ≡ 0 for k < r - 1, not for k = r - 1.

        Raises:
            ValueError: no input ever acts on h (looked for up to r = d).
            TypeError: h or f has no formula.
        """
        self._at_rest("relative_degree")
        f, columns = VectorField(f, self.states), input_columns(g, self.states)
        current = self.field
        for r in range(1, len(self.states) + 1):
            if any(simplified(current.lie(c).formula()) != 0 for c in columns):
                return r
            current = Field(simplified(current.lie(f).formula()), self.states)
        raise ValueError(
            f"h must be affected by an input; L_g L_f^k h is zero for every k < {len(self.states)}, with h = "
            f"{self.expr}. Check g, or choose another h."
        )

    def high_order(self, f: Any, g: Any, gains: Any) -> BarrierFunction:
        """ψ_{r-1} of relative degree 1, with ψ₀ = h and ψ_k = ψ̇_{k-1} + α_k(ψ_{k-1}); r is the relative degree of h.

        Where ψ_{r-1} is a control barrier function, the states with ψ₀, ..., ψ_{r-1} ≥ 0 can be kept, and so h ≥ 0. The
        result keeps them all in `.chain`.

        Args:
            f, g: as in `control`.
            gains: r - 1 class-K functions α_k (a number ≥ 0, callable or formula each), or one for all.

        Raises:
            ValueError: another number of gains, one that is no class-K function, or h that no input acts on.

        References: Nguyen and Sreenath, ACC 2016; Xiao and Belta, IEEE TAC 67 (2022) 3655.
        """
        f, r = VectorField(f, self.states), self.relative_degree(f, g)
        several = isinstance(gains, (list, tuple, np.ndarray))
        given = list(gains) if several else [gains] * (r - 1)
        if len(given) != r - 1:
            raise ValueError(
                f"gains must be {r - 1} functions, for h has relative degree {r}; got {len(given)}. "
                "One number serves all."
            )
        chain: list[BarrierFunction] = [self]
        for k, gain in enumerate(given):
            alpha, last = class_k(f"gains[{k}]" if several else "gains", gain), chain[-1].field
            chain.append(BarrierFunction(simplified(last.lie(f).formula() + alpha(last.formula())), self.states))
        chain[-1].chain = tuple(chain)
        z = sp.Symbol("h", real=True)
        chain[-1].gains = tuple(class_k("gains", gain)(z) for gain in given)
        return chain[-1]


# What is put in ------------------------------------------------------------------------------------------------


def shown(field: Field) -> str:
    """The formula, cut where it is long."""
    text = "a function without formula" if field.expr is None else str(field.expr)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def check_gain(gain: Any, stepwise: bool) -> sp.Expr:
    """The gain as an exact number, at most 1 in discrete time."""
    value = exact("gain", gain)
    if stepwise and float(value) > 1:
        raise ValueError(f"gain must be at most 1 in discrete time, for h(f(x)) ≥ (1 - gain)·h(x); got {gain}.")
    return value


def check_sets(states: tuple[sp.Symbol, ...], *, initial: Any, unsafe: Any, domain: Any) -> tuple[Domain, Domain]:
    """The parts of initial and unsafe in the domain; ValueError for a set that is missing, empty or flat."""
    if domain is not None:
        check_domain("domain", domain, states)
    out = []
    for name, part in (("initial", initial), ("unsafe", unsafe)):
        if part is None:
            raise ValueError(
                f"{name} must be given: a Box, Ball or Sublevel, or what &, | and ~ make of them; got None."
            )
        check_domain(name, part, states)
        inside = part if domain is None else part & domain
        if domain is not None:
            try:
                inside.nonempty(states)
            except ValueError as error:
                raise ValueError(f"{name} must meet the domain; they have no point in common: {error}") from None
        out.append(inside)
    return out[0], out[1]


def common_point(a: Domain, b: Domain, states: tuple[sp.Symbol, ...]) -> tuple[sp.Rational, ...] | None:
    """A rational point of both sets, checked exactly, if one is found."""
    try:
        return (a & b).nonempty(states)
    except ValueError:
        return None


def overlap(initial: Domain, unsafe: Domain, every: Sequence[Claim], states: tuple[sp.Symbol, ...]) -> Step | None:
    """The claim that fails at a point that is both initial and unsafe, if such a point is found."""
    point = common_point(initial, unsafe, states)
    if point is None:
        return None
    for claim in every:
        fails, margin = violates(claim, point)[:2]
        if fails:
            reason = f"initial and unsafe have the point {point} in common"
            answer = Outcome(status=Status.REFUTED, method="search", reason=reason, witness=point)
            return Step(claim, replace(answer, margin=None if margin is None else float(margin)))
    return None


def input_columns(g: Any, states: tuple[sp.Symbol, ...]) -> list[VectorField]:
    """The m columns of the input matrix, as vector fields.

    Raises:
        ValueError: g is not (d, m) formulas, or d of them.
    """
    if isinstance(g, np.ndarray):
        g = g.tolist()
    rows = g.tolist() if isinstance(g, sp.MatrixBase) else list(g) if isinstance(g, (list, tuple)) else None
    if rows is None:
        raise ValueError(f"g must be a (d, m) matrix of formulas, or a list of d; got {type(g).__name__}.")
    rows = [list(r) if isinstance(r, (list, tuple)) else [r] for r in rows]
    widths = {len(r) for r in rows}
    if len(rows) != len(states) or len(widths) != 1 or widths == {0}:
        raise ValueError(
            f"g must have {len(states)} rows of one length, one a state; got rows of length {[len(r) for r in rows]}."
        )
    return [VectorField([r[j] for r in rows], states, name=f"g[:, {j}]") for j in range(widths.pop())]


def input_sides(inputs: Any, m: int) -> list[tuple[sp.Expr, sp.Expr]]:
    """(lower, upper) of every input; infinite for None."""
    if inputs is None:
        return [(-sp.oo, sp.oo)] * m
    if not isinstance(inputs, Box):
        raise ValueError(f"inputs must be a Box with one side an input, or None; got {type(inputs).__name__}.")
    if inputs.dim != m:
        raise ValueError(f"inputs must have {m} sides, one a column of g; got {inputs.dim}.")
    return list(zip(inputs.lower, inputs.upper, strict=True))


def patterns(rest: sp.Expr, slopes: Sequence[sp.Expr], sides: Sequence[tuple[sp.Expr, sp.Expr]]):
    """The cases in which the best input is one corner: (guards, equalities, left-hand side, words).

    They cover all states: in direction j either L ≥ 0 and the upper bound is best, or L ≤ 0 and the lower one is; with
    an infinite bound every state with L of that sign is served, so only L = 0 is left.
    """
    choices = []
    for j, (slope, (low, high)) in enumerate(zip(slopes, sides, strict=True)):
        options = []
        if slope == 0:
            options.append(((), (), sp.S.Zero, ""))
        elif slope.is_number:
            best = high if slope.is_positive else low
            if best.is_finite:
                options.append(((), (), slope * best, ""))
        elif not low.is_finite and not high.is_finite:
            options.append(((), (slope,), sp.S.Zero, f"(L_g h)[{j}] = 0"))
        else:
            if high.is_finite:
                options.append(((slope,), (), slope * high, f"(L_g h)[{j}] ≥ 0"))
            if low.is_finite:
                options.append(((-slope,), (), slope * low, f"(L_g h)[{j}] ≤ 0"))
        choices.append(options)
    for case in itertools.product(*choices):
        words = ", ".join(w for *_, w in case if w)
        yield (
            [x for guards, *_ in case for x in guards],
            [x for _, equal, *_ in case for x in equal],
            simplified(rest + sp.Add(*(body for _, _, body, _ in case))),
            f" where {words}" if words else "",
        )
