"""Polynomials with several wells, cut into a strongly convex part and a bounded one, as Holley and Stroock ask."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import sympy as sp

from ctrlgen.certify.piece import Piece, Way
from ctrlgen.certify.verdict import Step
from ctrlgen.energies.formulas import least_eigenvalue
from ctrlgen.energies.spectral import down, up
from ctrlgen.prove.claim import Claim, Deadline, Status
from ctrlgen.prove.decide import decide, shorten

DEPTHS = (1.01, 1.03, 1.1, 1.2, 1.4, 1.7, 2.0, 3.0, 5.0)  # where a double well is cut, in units of its minima's |y|²
SHARES = (0.1, 0.2, 0.35, 0.6, 0.8, 1.3, 1.8, 2.5, 4.0)  # where a single well is cut, in units of the best cut's |y|²
RADII = 40  # tried for a ball outside of which a polynomial is convex
SECONDS = 2.0  # for the proof that it is


def wells(
    b: Fraction, square: Fraction, epsilon: float, name: str, directions: Sequence[int], floor: Sequence[Fraction]
) -> list[Way]:
    """b(t - 1)² with t = |y|²/a², y some of the states, and a quadratic of the others, cut at several depths.

    Args:
        b: height > 0 [energy].
        square: a² [length²].
        epsilon: the temperature for which one of the depths is best.
        name: of the energy.
        directions: which states y are.
        floor: (d,), the curvature of the quadratic along each state.
    """
    try:
        best = Fraction((1 + math.sqrt(1 + 2 * epsilon / float(b))) / 2)  # (s - 1) exp(-b s²/ε) is largest
    except (OverflowError, ZeroDivisionError):  # beyond floats
        best = Fraction(DEPTHS[-1])
    lead, bend = b / square**2, -2 * b / square
    return [_cut(lead, bend, Fraction(s) * square, name, directions, floor) for s in (*DEPTHS, best)]


def _cut(
    lead: Fraction, bend: Fraction, s: Fraction, name: str, directions: Sequence[int], floor: Sequence[Fraction]
) -> Way:
    """A t² + p t with t = |y|² is convex + bounded: for s > 0, A(t - s)₊² + (2As + p)t and the rest.

    (t - s)₊² is a rising convex function of a convex one, so the first has the Hessian 4As + 2p at least. The rest is
    -As² for t ≥ s and A[(t - s)² - s²] below, t ≥ 0, so it oscillates by As².
    """
    curvature, high = 4 * lead * s + 2 * bend, up(lead * s**2)

    def check() -> bool:
        t, c, big, small = sp.symbols("t c A p")
        whole, straight = big * t**2 + small * t, (2 * big * c + small) * t
        beyond = sp.expand(whole - big * (t - c) ** 2 - straight + big * c**2) == 0
        within = sp.expand(whole - straight - big * ((t - c) ** 2 - c**2)) == 0
        return beyond and within and lead > 0 and s > 0 and Fraction(high) >= lead * s**2

    hessian = np.diag(np.array([k + (curvature if i in directions else 0) for i, k in enumerate(floor)], object))
    where = f"{name}, cut at |y|² = {float(s):.4g}"
    return (
        Piece(f"convex part of {where}", hessian=hessian, check=check),
        Piece(f"bounded part of {where}", oscillation=high, check=check),
    )


def cut_polynomial(expr: Any, states: tuple, epsilon: float, name: str) -> list[Way]:
    """Ways to cut a polynomial with rational coefficients: quartics of single states, and convexity outside a ball."""
    if not all(c.is_Rational for c in sp.Poly(expr, *states).coeffs()):
        return []
    return [*_by_states(expr, states, epsilon, name), *_outside_a_ball(expr, states, epsilon, name)]


def _by_states(expr: Any, states: tuple, epsilon: float, name: str) -> list[Way]:
    """A quartic of one state each is cut like a double well; what is left must have a Hessian above a constant."""
    single = {s: [] for s in states}
    rest = []
    for term in sp.Add.make_args(expr):
        own = single[next(iter(term.free_symbols))] if len(term.free_symbols) == 1 else rest
        own.append(term)
    cuts: list[list[Way]] = []
    for i, s in enumerate(states):
        found = _quartic(sp.Add(*single[s]), s, i, len(states), epsilon, name)
        if found:
            cuts.append(found)
        else:
            rest += single[s]
    if not cuts:
        return []
    left = _hessian_of(sp.Add(*rest), states, name)
    if left is None:
        return []
    return [(*(piece for way in choice for piece in way), left) for choice in zip(*cuts, strict=True)]


def _hessian_of(expr: Any, states: tuple, name: str) -> Piece | None:
    hessian = sp.hessian(expr, states) if expr.free_symbols else sp.zeros(len(states))
    if all(entry.is_Rational for entry in hessian):
        exact = np.array([[Fraction(int(v.p), int(v.q)) for v in row] for row in hessian.tolist()], object)
        return Piece(f"rest of {name}", hessian=exact)
    found = least_eigenvalue(hessian, states)
    if found is None:
        return None
    bound = Fraction(int(found[0].p), int(found[0].q))
    steps = [Step(claim, outcome) for claim, outcome in found[1]]
    floor = np.diag(np.array([bound] * len(states), object))
    return Piece(f"rest of {name}", hessian=floor, check=lambda: all(step.recheck() for step in steps))


def _quartic(expr: Any, x: sp.Symbol, place: int, dim: int, epsilon: float, name: str) -> list[Way]:
    """A y⁴ + p y² + a linear function, with y = x - shift: a double well where p < 0, a single one elsewhere."""
    if not expr.free_symbols:
        return []
    poly = sp.Poly(expr, x)
    if poly.degree() != 4 or poly.LC() <= 0:
        return []
    shift = -poly.coeff_monomial(x**3) / (4 * poly.LC())
    moved = sp.Poly(sp.expand(expr.subs(x, x + shift)), x)
    bend, lead = (Fraction(int(v.p), int(v.q)) for v in (moved.coeff_monomial(x**2), moved.LC()))
    label, floor = name if dim == 1 else f"{name} along {x}", [Fraction(0)] * dim
    if bend < 0:
        return wells(bend**2 / (4 * lead), -bend / (2 * lead), epsilon, label, [place], floor)
    try:  # log(4As + 2p) - As²/ε is largest
        best = (math.sqrt(float(bend) ** 2 + 8 * float(lead) * epsilon) - float(bend)) / (4 * float(lead))
    except (OverflowError, ZeroDivisionError):  # beyond floats
        return []
    if not 0 < best * max(SHARES) < math.inf:
        return []
    return [_cut(lead, bend, Fraction(best * share), label, [place], floor) for share in (*SHARES, 1.0)]


# Convex outside a ball --------------------------------------------------------------------------------


def _outside_a_ball(expr: Any, states: tuple, epsilon: float, name: str) -> list[Way]:
    """Where ∇² ⪰ -k everywhere and ∇² ⪰ m > 0 for |x| ≥ R, E + g is convex to the degree n < m for a bounded g(|x|).

    g = ½(k + n)r² up to R, from there on g'' = -(m - n) until g' = 0, and constant beyond: its Hessian is at least
    k + n inside, -(m - n) outside. It rises by ½(k + n)R²(1 + (k + n)/(m - n)).
    """
    if len(states) > 3 or sp.Poly(expr, *states).total_degree() < 4:
        return []
    hessian = sp.hessian(expr, states)
    lowest = least_eigenvalue(hessian, states)
    if lowest is None or lowest[0] > 0:
        return []
    k = Fraction(int(-lowest[0].p), int(lowest[0].q))
    plan = _best_ball(hessian, states, float(k), epsilon)
    if plan is None:
        return []
    radius, bend, convexity = (Fraction(int(v.p), int(v.q)) for v in map(shorten, plan))
    if not 0 < convexity < bend:
        return []
    inequality = Claim(
        text=f"∇² ⪰ {bend} I for |x| ≥ {radius}", states=states, strict=False,
        matrix=hessian - sp.Rational(bend.numerator, bend.denominator) * sp.eye(len(states)),
        guards=(sum(s**2 for s in states) - sp.Rational(radius.numerator, radius.denominator) ** 2,),
    )  # fmt: skip
    outcome = decide(inequality, "exact", Deadline(SECONDS))
    if outcome.status is not Status.PROVED:
        return []
    steps = [Step(inequality, outcome), *(Step(c, o) for c, o in lowest[1])]
    rise = (k + convexity) * radius**2 / 2 * (1 + (k + convexity) / (bend - convexity))
    check: Callable[[], bool] = partial(_all_stand, steps)
    where = f"{name}, made convex inside |x| = {float(radius):.4g}"
    return [(Piece(f"convex part of {where}", convexity=down(convexity), check=check),
             Piece(f"bounded part of {where}", oscillation=up(rise), check=check))]  # fmt: skip


def _all_stand(steps: Sequence[Step]) -> bool:
    return all(step.recheck() for step in steps)


def _best_ball(hessian: Any, states: tuple, k: float, epsilon: float) -> tuple[float, float, float] | None:
    """(R, m, n) for which log n - (rise)/ε is about largest, from the Hessian at random points."""
    dim = len(states)
    evaluate = sp.lambdify(list(states), hessian.tolist(), "numpy")
    rng = np.random.default_rng(0)
    rays = rng.standard_normal((1 if dim == 1 else 200, dim))
    rays = np.concatenate([rays, -rays, np.eye(dim), -np.eye(dim)])
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)

    def least(radius: float) -> float:
        return min(float(np.linalg.eigvalsh(np.array(evaluate(*(radius * u)), float))[0]) for u in rays)

    outermost = 1.0
    while least(outermost) < max(k, 1e-6) and outermost < 1e3:
        outermost *= 1.5
    radii = np.linspace(0.02, 1.5, RADII) * outermost
    low = np.array([least(r) for r in radii])
    low = np.minimum.accumulate(low[::-1])[::-1] * (1 - 1e-3)  # from there on, with room for what lies between
    best, out = -math.inf, None
    for radius, bend in zip(radii, low, strict=True):
        for share in (0.05, 0.1, 0.2, 0.4, 0.6) if bend > 0 else ():
            n = share * bend
            rise = (k + n) * radius**2 / 2 * (1 + (k + n) / (bend - n))
            if math.log(n) - rise / epsilon > best:
                best, out = math.log(n) - rise / epsilon, (float(radius), float(bend), float(n))
    return out
