"""Decides any claim on a bounded set whose formulas have ball enclosures, by branch and bound (`prove.boxes`).

A strict claim that asks nothing at an equilibrium first gets a box around it from `prove.local`; the search then runs
outside of that box. Everything is ball arithmetic with outward rounding, and witnesses are rational points.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import sympy as sp
from flint import arb, ctx, fmpq

from ctrlgen.prove import local
from ctrlgen.prove.balls import POINT_BITS, Compiled, Undefined, Unsupported, rational, to_sympy
from ctrlgen.prove.boxes import (
    EQ,
    GE,
    GT,
    Box,
    Formula,
    Frame,
    Matrix,
    Minimum,
    Run,
    Scalar,
    branch,
    least,
    round_to,
    subtract,
    violation,
)
from ctrlgen.prove.claim import Claim, Deadline, Outcome, Status
from ctrlgen.prove.traced import Traced

MOST_HOLES = 64
MOST_MINORS = 3
HUNT_BOXES = 20_000
FIRST_BOXES = 1000
HOLE_STEPS = 20


@dataclass(frozen=True)
class IntervalProof:
    """A branch-and-bound proof: it is its own recipe, so checking it again is running it again."""

    claim: Claim
    seconds: float

    def recheck(self) -> bool:
        """Run the proof again from the claim, with ten times the time that it took."""
        return decide(self.claim, Deadline(10 * self.seconds + 10)).status is Status.PROVED


def decide(claim: Claim, deadline: Deadline) -> Outcome:
    """Decide a claim on a bounded set by branch and bound in ball arithmetic.

    Args:
        claim: any claim whose formulas have ball enclosures; with a finite box, or guards that give one.
        deadline: when to stop.

    Returns:
        PROVED with a certificate; REFUTED with a rational witness; else UNDECIDED and why, with the boxes visited.
    """
    start = time.monotonic()
    try:
        with ctx.workprec(POINT_BITS):
            answer = _decide(claim, deadline)
    except Unsupported as error:
        answer = _undecided(str(error))
    except (ArithmeticError, ValueError, TypeError, NotImplementedError, RecursionError) as error:
        answer = _undecided(f"{type(error).__name__}: {error}")  # SymPy's own words, on a formula that it cannot treat
    seconds = time.monotonic() - start
    if answer["status"] is Status.PROVED:
        answer["certificate"] = IntervalProof(claim, seconds)
    return Outcome(method="interval", seconds=seconds, **answer)


def _undecided(reason: str) -> dict:
    return {"status": Status.UNDECIDED, "reason": reason}


def enclose_minimum(
    claim: Claim, deadline: Deadline, gap: float = 1e-6
) -> tuple[sp.Rational | None, sp.Rational | None]:
    """Enclose the infimum of the left-hand side of a scalar claim on the claim's set; whether it is true is not asked.

    Args:
        claim: a scalar claim with a formula, on a bounded set.
        deadline: when to stop; what is known then is returned.
        gap: stop when upper - lower is at most this part of the infimum's size.

    Returns:
        (lower, upper): the left-hand side is ≥ lower on all of the set, and ≤ upper at some point of it. None where no
        such number was found.

    Raises:
        ValueError: the set is not bounded, or the claim is no scalar formula.
    """
    claim = _boxed(claim)
    if not claim.bounded or claim.matrix is None or claim.size > 1:
        raise ValueError("claim must be a scalar formula on a bounded set. Give its domain a box.")
    try:
        with ctx.workprec(POINT_BITS):
            frame, guards = setting(claim)
            problem = Minimum(Formula(claim.expr, claim.states), frame, guards)
            low, high = least(problem, [(*frame.root, tuple(range(len(guards))))], deadline, gap)
    except Unsupported:
        return None, None
    return tuple(to_sympy(rational(v)) if math.isfinite(v) else None for v in (low, high))  # type: ignore[return-value]


def setting(claim: Claim) -> tuple[Frame, list[tuple[str, Formula]]]:
    """The frame of a bounded claim's box, and the guards that this box does not imply."""
    low = [rational(a) for a, _ in claim.box]
    high = [rational(b) for _, b in claim.box]
    kinds = [(GE, g) for g in claim.guards] + [(GT, g) for g in claim.open_guards] + [(EQ, g) for g in claim.equalities]
    guards = [(kind, Formula(g, claim.states)) for kind, g in kinds if not _implied(kind, g, claim)]
    return Frame.around(low, high), guards


def _boxed(claim: Claim) -> Claim:
    """The claim with a finite box, where a guard c - ½ (x - a)ᵀH(x - a) ≥ 0 with H ≻ 0 gives one."""
    if claim.bounded:
        return claim
    box = list(claim.box)
    for guard in claim.guards:
        states = [s for s in claim.states if s in guard.free_symbols]
        if not states or not guard.is_polynomial(*states) or sp.Poly(guard, *states).total_degree() != 2:
            continue
        hessian = -sp.hessian(guard, states)
        if not all(isinstance(e, sp.Rational) for e in hessian) or not hessian.is_positive_definite:
            continue
        zero = dict.fromkeys(states, sp.S.Zero)
        inverse = hessian.inv()
        middle = inverse * sp.Matrix([sp.diff(guard, s).xreplace(zero) for s in states])
        level = guard.subs(dict(zip(states, middle, strict=True)))
        if not isinstance(level, sp.Rational) or level < 0 or not all(isinstance(m, sp.Rational) for m in middle):
            continue
        for i, s in enumerate(states):  # |x_i - a_i| ≤ √(2 c (H⁻¹)_ii), rounded up
            square = 2 * level * inverse[i, i]
            reach = sp.Rational(math.isqrt(int(sp.ceiling(square * 2**40))) + 1, 2**20)
            low, high = box[claim.states.index(s)]
            box[claim.states.index(s)] = (
                middle[i] - reach if low is None else max(low, middle[i] - reach),
                middle[i] + reach if high is None else min(high, middle[i] + reach),
            )
    return replace(claim, box=tuple(box))


def _implied(kind: str, guard: sp.Expr, claim: Claim) -> bool:
    """Does the bounding box itself imply this guard, an affine one of one state?"""
    symbols = list(sp.sympify(guard).free_symbols)
    if len(symbols) != 1 or kind == EQ or symbols[0] not in claim.states:
        return False
    slope = sp.diff(guard, symbols[0])
    if not isinstance(slope, sp.Rational) or not slope:
        return False
    low, high = claim.box[claim.states.index(symbols[0])]
    least = sp.expand(guard).subs(symbols[0], low if slope > 0 else high)
    return isinstance(least, sp.Rational) and bool(least > 0 if kind == GT else least >= 0)


def _decide(claim: Claim, deadline: Deadline) -> dict:
    if claim.matrix is None and claim.function is None:
        return _undecided("the claim has neither a formula nor a function.")
    claim = _boxed(claim)
    if not claim.bounded:
        return _undecided("the set is unbounded, and branch and bound needs a box around it.")
    frame, guards = setting(claim)
    if any(h < 0 for h in frame.half):
        return _undecided("the bounding box is empty.")
    if claim.size == 1:
        return _scalar(claim, frame, guards, deadline)
    problem = Matrix(claim, frame, guards)
    boxes = [(*frame.root, tuple(range(len(guards))))]
    run = branch(problem, boxes, deadline)
    if run.end == "stuck":
        if claim.size <= MOST_MINORS and not claim.strict and (answer := _by_minors(claim, deadline)):
            return answer
        run = _hunted(problem, run, boxes, deadline)
    return _answer(run, claim)


def _by_minors(claim: Claim, deadline: Deadline) -> dict | None:
    """F ⪰ 0 where all principal minors are ≥ 0: scalar claims, which may touch 0 at points."""
    k, reasons = claim.size, []
    for size in range(1, k + 1):
        for rows in itertools.combinations(range(k), size):
            minor = sp.expand(claim.matrix.extract(rows, rows).det())
            part = replace(claim, matrix=sp.Matrix([[minor]]))
            answer = _scalar(part, *setting(part), deadline.part(0.5))
            if answer["status"] is not Status.PROVED:
                return None
            reasons.append(answer["reason"])
    return {"status": Status.PROVED, "reason": "principal minors: " + " ".join(reasons)}


def _hunted(problem: Scalar | Matrix, run: Run, boxes: list, deadline: Deadline) -> Run:
    """After a proof got stuck: the same run, or a refutation when a search for one, breadth first, succeeds."""
    found = branch(problem, boxes, deadline.part(0.5), HUNT_BOXES, hunt=True)
    return replace(found, visited=found.visited + run.visited) if found.end == "refuted" else run


def _scalar(claim: Claim, frame: Frame, guards: list[tuple[str, Formula]], deadline: Deadline) -> dict:
    formula, whole = _left_hand_side(claim, frame)
    if formula is None:
        return {"status": Status.PROVED, "reason": "the left-hand side is identically 0.", "margin": 0.0}
    problem = Scalar(formula, frame, guards, claim.strict, violation(claim, whole.sign, guards))
    if (found := next(filter(problem.violates, _landmarks(frame)), None)) is not None:
        return _refuted(found, claim, "found before the search.")
    boxes = [frame.root]
    notes, failed = [], ""
    centre = None if claim.except_at is None else tuple(map(rational, claim.except_at))
    if centre is not None and all(abs(t) <= 1 for t in frame.inverse(centre)) and formula.sign(centre) != 1:
        if (near := _near(problem, centre, frame.half)) is not None:
            return _refuted(near, claim, "found near the equilibrium.")
        closure = _closed(formula, claim, centre, frame, guards, deadline.part(0.5))
        failed = closure.text if closure.failed else ""
        if not closure.failed:
            notes.append(f"around the equilibrium {closure.text}")
            boxes = subtract(*frame.root, _hole(frame, closure.low, closure.high))
        elif claim.strict:
            radii = [h / 128 for h in frame.half]
            low = [c - r for c, r in zip(centre, radii, strict=True)]
            high = [c + r for c, r in zip(centre, radii, strict=True)]
            boxes = subtract(*frame.root, _hole(frame, low, high))
    everything = tuple(range(len(guards)))
    start = [(*box, everything) for box in boxes]
    run = branch(problem, start, deadline, math.inf if claim.strict else FIRST_BOXES)
    visited = run.visited
    # a weak claim may touch zero at points that are not known beforehand: often the origin, or where the search sticks
    guesses = [] if claim.strict else _zeros(problem, formula)
    for _ in range(MOST_HOLES):
        if run.end in {"proved", "refuted"} or claim.strict or deadline.over:
            break
        while guesses and not any(_inside(problem, guesses[-1], box) for box in run.boxes):
            guesses.pop()
        found = guesses.pop() if guesses else _touching(problem, run)
        if found is not None:
            closure = _closed(formula, claim, found, frame, (), deadline.part(0.25))
            if closure.failed:
                failed = failed or f"at ({', '.join(map(str, found))}) {closure.text}"
                if not guesses and run.end == "stuck":
                    break
            else:
                notes.append(f"around ({', '.join(map(str, found))}) {closure.text}")
                hole = _hole(frame, closure.low, closure.high)
                rest = [(*piece, active) for low, high, active in run.boxes for piece in subtract(low, high, hole)]
                run = replace(run, end="time", boxes=tuple(rest))
        elif run.end == "stuck":
            break
        run = branch(problem, run.boxes, deadline, FIRST_BOXES if guesses else math.inf)
        visited += run.visited
    run = replace(run, visited=visited)
    if run.end == "stuck":
        zero = _touching(problem, run) if claim.strict else None
        if zero is not None and problem.violates(zero):
            return _refuted(zero, claim, f"the left-hand side is 0 there; {visited} boxes visited.")
        run = _hunted(problem, run, start, deadline)
    if run.end == "proved" and failed and claim.strict:
        return _undecided(f"it holds outside a box around the equilibrium ({visited} boxes visited); inside: {failed}")
    answer = _answer(run, claim, notes, bounded=whole is formula)
    if failed and answer["status"] is Status.UNDECIDED:
        answer["reason"] += f" At the equilibrium: {failed}"
    return answer


def _left_hand_side(claim: Claim, frame: Frame) -> tuple[Formula | Traced | None, Any]:
    """What is to be shown positive (None when it is identically 0), and the claim's own left-hand side."""
    if claim.matrix is None and claim.function is not None:
        traced = Traced(claim.function, claim.dim)
        return traced, traced
    if not claim.strict and _is_zero(claim.expr, frame, claim.states):
        return None, None
    whole = Formula(claim.expr, claim.states)
    expr = claim.expr if claim.strict else _without_squares(claim.expr, claim.states, frame)
    return whole if expr == claim.expr else Formula(expr, claim.states), whole


def _closed(formula: Formula | Traced, claim: Claim, centre, frame: Frame, guards, deadline: Deadline) -> local.Closure:
    """A box around a point where the left-hand side is 0, in which it is positive elsewhere or outside of the set."""
    if isinstance(formula, Traced):
        for kind, guard in guards:
            for k in range(HOLE_STEPS):
                radii = [h / 2**k for h in frame.half]
                low = tuple(c - r for c, r in zip(centre, radii, strict=True))
                high = tuple(c + r for c, r in zip(centre, radii, strict=True))
                try:
                    g = guard.wide([arb(a).union(arb(b)) for a, b in zip(low, high, strict=True)])
                except Undefined:
                    continue
                if g < 0 or (kind == GT and g <= 0):
                    return local.Closure("the set is empty", low, high)
        return local.Closure("that a network is exactly 0 somewhere cannot be shown in balls.", failed=True)
    return local.close(formula.expr, claim.states, centre, frame.half, deadline)


def _landmarks(frame: Frame) -> list[tuple[fmpq, ...]]:
    """The box's centre and corners, and the origin: where a claim often fails by equality alone."""
    d = len(frame.half)
    steps = itertools.product((0, 1, -1), repeat=d) if d <= 3 else [(0,) * d]
    points = [tuple(c + h * s for c, h, s in zip(frame.centre, frame.half, step, strict=True)) for step in steps]
    return [*points, (fmpq(0),) * d]


def _is_zero(expr: sp.Expr, frame: Frame, states: Sequence[sp.Symbol]) -> bool:
    """Is a formula identically 0? Simplified only when it cannot be told from 0 at some points."""
    if expr.is_polynomial(*states):
        return sp.expand(expr) == 0
    code = Compiled([expr], states)
    for t in (0.3, -0.71, 0.11):
        point = frame.exact([t * (1 + 0.1 * i) if h else 0.0 for i, h in enumerate(frame.half)])
        try:
            if not code.at(point, 2 * POINT_BITS)[0].contains(0):
                return False
        except Undefined:
            return False
    return _defined(expr, states, frame) and sp.simplify(expr) == 0


def _refuted(point: Sequence[fmpq], claim: Claim, reason: str) -> dict:
    witness = tuple(map(to_sympy, point))
    margin = None
    if claim.matrix is None and claim.function is not None:
        margin = float(Traced(claim.function, claim.dim).point(list(map(arb, point))))
    elif claim.size == 1:
        margin = float(sp.N(claim.expr.subs(dict(zip(claim.states, witness, strict=True)))))
    return {"status": Status.REFUTED, "reason": reason, "witness": witness, "margin": margin}


def _answer(run: Run, claim: Claim, notes: Sequence[str] = (), bounded: bool = True) -> dict:
    boxes = f"{run.visited} boxes visited"
    match run.end:
        case "proved":
            margin = run.bound if run.bound < math.inf and bounded and not notes else None
            reason = "; ".join([f"{boxes}, none left", *notes])
            return {"status": Status.PROVED, "reason": reason + ".", "margin": margin}
        case "refuted":
            return _refuted(run.point or (), claim, f"{boxes}.")
        case "stuck":
            at = ", ".join(f"{float(v):.6g}" for v in run.point or ())
            return _undecided(f"{boxes}, {run.left} left: near ({at}) no box is small enough.")
    return _undecided(f"{boxes}, {run.left} left when the time was over.")


def _near(problem: Scalar, centre: Sequence[fmpq], half: Sequence[fmpq]) -> tuple[fmpq, ...] | None:
    """A violation very near the equilibrium, along the axes and the diagonals of the box."""
    d = len(centre)
    steps = [[s if i == j else 0 for j in range(d)] for i in range(d) for s in (1, -1)]
    if d <= 4:
        steps += [[1 - 2 * (n >> j & 1) for j in range(d)] for n in range(2**d)]
    for k in range(1, 33):
        for step in steps:
            x = tuple(c + h * s / 2**k for c, h, s in zip(centre, half, step, strict=True))
            try:
                if problem.formula.point(list(map(arb, x))) > 0:
                    continue
            except Undefined:
                continue
            if problem.violates(x):
                return x
    return None


def _inside(problem: Scalar, point: Sequence[fmpq], box, beside: fmpq | int = 0) -> bool:
    t = problem.frame.inverse(point)
    return all(rational(a) - beside <= v <= rational(b) + beside for v, a, b in zip(t, box[0], box[1], strict=True))


def _zeros(problem: Scalar, formula: Formula | Traced) -> list[tuple[fmpq, ...]]:
    """The box's centre and the origin, where the left-hand side is exactly 0 there."""
    points = {problem.frame.centre, (fmpq(0),) * len(problem.frame.centre)}
    return [x for x in points if _inside(problem, x, problem.frame.root) and formula.sign(x) == 0]


def _touching(problem: Scalar, run: Run) -> tuple[fmpq, ...] | None:
    """The simplest rational zero of the left-hand side in or beside the box where the search got stuck."""
    if run.point is None or not run.boxes:
        return None
    for q in range(1, 65):
        x = tuple(round_to(v, q) for v in run.point)
        if _inside(problem, x, run.boxes[-1], fmpq(1, 2**12)) and problem.formula.sign(x) == 0:
            return x
    return run.point if problem.formula.sign(run.point) == 0 else None


def _hole(frame: Frame, low: Sequence[fmpq], high: Sequence[fmpq]) -> Box:
    """The largest dyadic box, in the cube's coordinates, inside [low, high]."""
    inner = []
    for a, up in ((frame.inverse(low), True), (frame.inverse(high), False)):
        scaled = [v * 2**36 for v in a]
        ends = [-(int(-v.p) // int(v.q)) if up else int(v.p) // int(v.q) for v in scaled]
        inner.append(tuple(min(max(e, -(2**40)), 2**40) / 2**36 for e in ends))
    return inner[0], inner[1]


def _without_squares(expr: sp.Expr, states: Sequence[sp.Symbol], frame: Frame) -> sp.Expr:
    """A formula whose being ≥ 0 everywhere implies that `expr` is: even powers among its factors are left out."""
    if not expr.is_polynomial(*states):
        kept = []
        for factor in sp.Mul.make_args(expr):
            base, exponent = factor.as_base_exp()
            even = exponent.is_Integer and exponent > 0 and exponent % 2 == 0
            kept.append(sp.S.One if even and _defined(base, states, frame) else factor)
        return sp.Mul(*kept)
    number, factors = sp.factor_list(expr, *states)  # pyright: ignore[reportAssignmentType]
    if all(e == 1 for _, e in factors):
        return expr
    return number * sp.Mul(*(f for f, e in factors if e % 2))


def _defined(expr: sp.Expr, states: Sequence[sp.Symbol], frame: Frame) -> bool:
    """Is a formula a real number on all of the box?"""
    try:
        return Compiled([expr], states).wide(*frame.balls(*frame.root))[0].is_finite()
    except Undefined:
        return False
