"""Ask z3 for a counterexample over the reals: `unsat` proves the claim, a model refutes it once it is re-evaluated.

Polynomials go to z3 as they are; a division, a root, an absolute value or a minimum becomes a new variable with its
defining (in)equalities, and that it is defined on the whole set is asked first. π and e become variables between two
rationals, which can only make the set larger. Every call has a z3 context of its own and ends at its deadline.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import sympy as sp

from ctrlgen.prove.claim import Claim, Deadline, Outcome, Status
from ctrlgen.prove.witness import round_witness, violates

LARGEST_MINORS = 3  # matrices up to this order by their principal minors, larger ones by the quadratic form
RECHECK_SECONDS = 60.0
STRATEGIES = {"qfnra-nlsat": "seed", "smt": "random_seed"}  # z3 tactic: what it calls its seed


class _Unsupported(Exception):
    """The claim is not one of real algebra."""


class _Encoder:
    """SymPy formulas in one z3 context. `definitions` hold of the new variables, `conditions` say what is defined.

    A condition is kept with the number of definitions before it: it may be relied on only by those after.
    """

    def __init__(self, context: Any, states: Sequence[sp.Symbol]):
        import z3

        self.z3, self.context = z3, context
        self.variables = [z3.Real(f"x{i}", context) for i in range(len(states))]
        self._memo: dict[Any, Any] = dict(zip(states, self.variables, strict=True))
        self.definitions: list[Any] = []
        self.conditions: list[tuple[int, Any]] = []

    def number(self, value: Any) -> Any:
        return self.z3.RealVal(f"{value.p}/{value.q}", self.context)

    def fresh(self) -> Any:
        return self.z3.FreshReal("t", self.context)

    def term(self, e: Any) -> Any:
        if e not in self._memo:
            self._memo[e] = self._term(e)
        return self._memo[e]

    def _term(self, e: Any) -> Any:
        z3 = self.z3
        if e.is_Rational:
            return self.number(e)
        if e is sp.pi or e is sp.E:
            scale = sp.Integer(10) ** 30
            low = sp.floor(e * scale)
            t = self.fresh()
            self.definitions.append(z3.And(t > self.number(low / scale), t < self.number((low + 1) / scale)))
            return t
        if e.is_Add:
            return z3.Sum([self.term(a) for a in e.args])
        if e.is_Mul:
            return z3.Product([self.term(a) for a in e.args])
        if e.is_Pow and e.exp.is_Integer and e.exp > 0:
            base = self.term(e.base)
            return z3.Product([base] * int(e.exp))
        if e.is_Pow and e.exp.is_Integer:
            base, t = self.term(sp.Pow(e.base, -e.exp)), self.fresh()
            self.conditions.append((len(self.definitions), base != 0))
            self.definitions.append(t * base == 1)
            return t
        if e.is_Pow and e.exp.is_Rational:
            base, t = self.term(e.base), self.fresh()
            self.conditions.append((len(self.definitions), base >= 0))
            self.definitions.append(z3.And(t >= 0, z3.Product([t] * int(e.exp.q)) == base))
            self._memo[e.base ** sp.Rational(1, e.exp.q)] = t
            if e.exp > 0:
                return z3.Product([t] * int(e.exp.p))
            inverse = self.fresh()
            self.conditions.append((len(self.definitions), t != 0))
            self.definitions.append(inverse * t == 1)
            return z3.Product([inverse] * int(-e.exp.p))
        if isinstance(e, (sp.Abs, sp.Min, sp.Max)):
            cases = [self.term(a) for a in e.args]
            cases = [*cases, -cases[0]] if isinstance(e, sp.Abs) else cases
            t = self.fresh()
            self.definitions.append(z3.Or([t == c for c in cases]))
            self.definitions += [t <= c if isinstance(e, sp.Min) else t >= c for c in cases]
            return t
        if isinstance(e, sp.sign):
            inner, t = self.term(e.args[0]), self.fresh()
            cases = ((inner > 0, 1), (inner < 0, -1), (inner == 0, 0))
            self.definitions.append(z3.Or([z3.And(c, t == v) for c, v in cases]))
            return t
        raise _Unsupported(f"z3 decides real algebra, and the claim holds {e.func.__name__}")


def _fails(claim: Claim, encoder: _Encoder) -> Any:
    """The formula that F is not ≻ 0 (strict), or not ⪰ 0."""
    z3, k = encoder.z3, claim.size
    if k == 1:
        value = encoder.term(claim.expr)
        return value <= 0 if claim.strict else value < 0
    entries = [[encoder.term(claim.matrix[max(i, j), min(i, j)]) for j in range(k)] for i in range(k)]
    if k <= LARGEST_MINORS:
        if claim.strict:
            return z3.Or([_minor(entries, range(n)) <= 0 for n in range(1, k + 1)])
        subsets = itertools.chain(*(itertools.combinations(range(k), n) for n in range(1, k + 1)))
        return z3.Or([_minor(entries, s) < 0 for s in subsets])
    # a direction of length one in the maximum norm along which the form is not positive; -y serves as well as y
    y = [encoder.fresh() for _ in range(k)]
    form = z3.Sum([entries[i][j] * y[i] * y[j] for i in range(k) for j in range(k)])
    within = z3.And([z3.And(v >= -1, v <= 1) for v in y])
    return z3.And(within, z3.Or([v == 1 for v in y]), form <= 0 if claim.strict else form < 0)


def _minor(entries: list[list[Any]], rows: Sequence[int]) -> Any:
    """The determinant of the rows and columns, by expansion along the first."""

    def expand(left: Sequence[int], right: Sequence[int]) -> Any:
        if len(left) == 1:
            return entries[left[0]][right[0]]
        total = None
        for n, j in enumerate(right):
            part = entries[left[0]][j] * expand(left[1:], [c for c in right if c != j])
            total = part if total is None else total + part if n % 2 == 0 else total - part
        return total

    return expand(list(rows), list(rows))


@contextmanager
def _ended(context: Any, deadline: Deadline) -> Iterator[None]:
    """Interrupt z3 at the deadline, again and again until it has stopped: its own time-out is not always kept."""
    done = threading.Event()

    def watch() -> None:
        wait = deadline.left() + 0.05
        while not done.wait(wait):
            context.interrupt()
            wait = 0.1

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@dataclass
class _Query:
    """One claim in z3's words."""

    claim: Claim
    strategy: str
    seed: int
    deadline: Deadline
    model: Any = None
    encoder: Any = None
    reasons: list[str] = field(default_factory=list)

    def ask(self) -> str:
        """ "unsat", "sat" (then `model` is set), "undefined" (a formula is, somewhere on the set), or "unknown"."""
        import z3

        context = z3.Context()
        self.encoder = encoder = _Encoder(context, self.claim.states)
        domain = self._domain(encoder)
        known = len(encoder.conditions)
        fails = _fails(self.claim, encoder)
        with _ended(context, self.deadline):
            for count, condition in encoder.conditions[known:]:
                answer = self._check([*domain, *encoder.definitions[:count], z3.Not(condition)])
                if answer != "unsat":
                    return "undefined" if answer == "sat" else answer
            return self._check([*domain, *encoder.definitions, fails])

    def _domain(self, encoder: _Encoder) -> list[Any]:
        """The set. Where a guard is undefined is not in it: its definitions and conditions are asked for outright."""
        z3, claim = encoder.z3, self.claim
        out = [encoder.term(g) >= 0 for g in claim.guards]
        out += [encoder.term(g) > 0 for g in claim.open_guards]
        out += [encoder.term(e) == 0 for e in claim.equalities]
        for v, (low, high) in zip(encoder.variables, claim.box, strict=True):
            out += [v >= encoder.number(low)] if low is not None else []
            out += [v <= encoder.number(high)] if high is not None else []
        if claim.except_at is not None:
            apart = [v != encoder.number(e) for v, e in zip(encoder.variables, claim.except_at, strict=True)]
            out.append(z3.Or(apart))
        return [*out, *encoder.definitions, *(c for _, c in encoder.conditions)]

    def _check(self, formulas: list[Any]) -> str:
        import z3

        left = self.deadline.left()
        if left <= 0:
            self.reasons.append("the time was over")
            return "unknown"
        solver = z3.Tactic(self.strategy, self.encoder.context).solver()
        solver.set("timeout", max(1, int(1000 * left)))
        solver.set(STRATEGIES[self.strategy], self.seed)
        try:
            solver.add(*formulas)
            answer = str(solver.check())
            if answer == "sat":
                self.model = solver.model()
            elif answer != "unsat":
                self.reasons.append(f"z3 says {solver.reason_unknown()}")
        except z3.Z3Exception as error:
            self.reasons.append(f"z3 says {str(error)[:200]}")
            answer = "unknown"
        return answer


@dataclass(frozen=True)
class Unsat:
    """z3's answer that there is no counterexample. There is no proof object: it is asked again, in another way."""

    claim: Claim = field(repr=False)
    strategy: str

    def recheck(self) -> bool:
        """Does z3, with another seed (or else with another strategy), find none either?

        The same strategy first: z3's other one does not always heed its time-out.
        """
        other = [s for s in STRATEGIES if s != self.strategy]
        return any(
            _Query(self.claim, strategy, 7, Deadline(RECHECK_SECONDS / 2)).ask() == "unsat"
            for strategy in (self.strategy, *other)
        )


def decide(claim: Claim, deadline: Deadline) -> Outcome:
    """Ask z3 for a counterexample. Claims with transcendental functions are UNDECIDED."""
    begun = time.monotonic()

    def outcome(status: Status, reason: str, **kwargs: Any) -> Outcome:
        return Outcome(status=status, method="smt", reason=reason, seconds=time.monotonic() - begun, **kwargs)

    if claim.matrix is None:
        return outcome(Status.UNDECIDED, "z3 needs a formula, and the claim is of a function without one")
    query = _Query(claim, "qfnra-nlsat", 0, deadline)
    try:
        answer = query.ask()
    except _Unsupported as error:
        return outcome(Status.UNDECIDED, str(error))
    except RecursionError:
        return outcome(Status.UNDECIDED, "the formula is nested too deep for z3")
    if answer == "unsat":
        return outcome(Status.PROVED, "z3: no counterexample exists", certificate=Unsat(claim, query.strategy))
    if answer == "unknown":
        return outcome(Status.UNDECIDED, "; ".join(query.reasons) or "z3 says unknown")
    values = [query.model.eval(v, model_completion=True) for v in query.encoder.variables]
    where = "(" + ", ".join(map(str, values)) + ")"
    if answer == "undefined":
        return outcome(Status.UNDECIDED, f"the left-hand side is undefined at a point of the set, {where}")
    point = tuple(_near(v) for v in values)
    rounded = point if all(map(_is_rational, values)) else round_witness(claim, [float(v) for v in point])
    for candidate in (rounded, None if rounded is point else _algebraic(values)):
        fails, margin = violates(claim, candidate) if candidate is not None else (False, 0.0)
        if fails:
            return outcome(Status.REFUTED, "z3 found a counterexample", witness=candidate, margin=margin)
    return outcome(Status.UNDECIDED, f"z3 says that the claim fails at {where}, which was not confirmed exactly")


def _is_rational(value: Any) -> bool:
    import z3

    return z3.is_rational_value(value)


def _near(value: Any) -> Any:
    """A real number of z3 as a rational: itself if it is one, to 30 digits otherwise."""
    close = value if _is_rational(value) else value.approx(30)
    return sp.Rational(close.numerator_as_long(), close.denominator_as_long())


def _algebraic(values: Sequence[Any]) -> tuple[sp.Expr, ...]:
    """Algebraic numbers of z3 as SymPy's: a square root, or a root of a polynomial by its index."""
    out = []
    for value in values:
        if _is_rational(value):
            out.append(_near(value))
            continue
        t = sp.Dummy("t")
        coefficients = [sp.Rational(c.numerator_as_long(), c.denominator_as_long()) for c in value.poly()]
        root = sp.rootof(sp.Poly(coefficients[::-1], t), value.index() - 1)
        if isinstance(root, sp.ComplexRootOf) and root.poly.degree() == 2:
            root = sp.rootof(root.poly, root.index)
        out.append(root)
    return tuple(out)
