"""Regions of attraction: the largest sublevel set of V on which V̇ < 0 is proved, and where that is refuted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import sympy as sp

from ctrlgen.certify.build import check_domain, claims, settle
from ctrlgen.certify.coercive import radially_unbounded
from ctrlgen.certify.lyapunov import LyapunovFunction, Time, _show, check_time
from ctrlgen.certify.regular import regular
from ctrlgen.certify.verdict import Step, Verdict, combine
from ctrlgen.continuity import everywhere
from ctrlgen.domain import Domain
from ctrlgen.field import VectorField
from ctrlgen.prove.claim import Claim, Status
from ctrlgen.prove.decide import best_bound, candidates, check_method, check_timeout, decide, float_below
from ctrlgen.prove.witness import violates

RAYS = 4000
FAR = 64.0  # how many times the smallest scale a ray is followed


@dataclass(frozen=True, kw_only=True, repr=False)
class Region(Verdict):
    """A verdict on a region of attraction {V < level}.

    Args:
        level: the largest level that was proved, inf when V̇ < 0 everywhere; None when none was.
        refuted_at: the smallest level that is refuted: {V < r} holds a point with V̇ ≥ 0 for every r above it. None when
            no such point was found. `witness` is that point.
        lyapunov, f: V and the vector field (the map, in discrete time).
        domain: the set that the region lies in; None for the whole space.
        discrete: whether time is discrete, and V(f(x)) - V(x) stands for V̇.
    """

    level: float | None = None
    refuted_at: float | None = None
    lyapunov: LyapunovFunction | None = None
    f: VectorField | None = None
    domain: Domain | None = None
    discrete: bool = False

    def plot(self, ax: Any = None, bounds: Any = None, **view: Any) -> Any:
        """Draw the phase portrait with the proved region and the point that refutes a larger one.

        Args:
            ax: where to draw; a new figure when omitted.
            bounds: (2, 2), lower and upper corner; a little more than the region when omitted.
            view: `plane` and `at` of more than two states, as in `ctrlgen.plot.region`.

        Returns:
            The axes.
        """
        from ctrlgen import plot

        return plot.region(self, ax, bounds, **view)

    @property
    def gap(self) -> float | None:
        """refuted_at - level: how much is not known."""
        return None if self.level is None or self.refuted_at is None else self.refuted_at - self.level


def region_of_attraction(
    f: Any,
    V: Any,
    states: Sequence[str | sp.Symbol],
    domain: Domain | None = None,
    method: str = "auto",
    *,
    equilibrium: Sequence[Any] | None = None,
    time: Time | None = None,
    timeout: float = 30.0,
) -> Region:
    """The largest level ρ for which {V < ρ} is proved to lie in the region of attraction.

    {V < ρ} is open: at its edge V̇ may vanish. Proved are V > 0 and V̇ < 0 on it but at the equilibrium, and that it is
    bounded: V → ∞ as |x| → ∞, or V ≥ ρ all over the boundary of `domain`, and then the region is the part inside it.

    Args:
        f: the vector field: d formulas, a JAX function, a python-control system, or an energy E (which means -∇E).
        V: formula of the states, or a LyapunovFunction.
        states: names or symbols.
        domain: where to look; needed when V has no bounded sublevel sets of its own, as with angles.
        method: "auto", "exact", "smt" or "interval".
        equilibrium: x*, the origin when omitted.
        time: as in `LyapunovFunction.verify`.
        timeout: seconds for everything.

    Returns:
        A verdict with `.level`, `.refuted_at` and `.gap`.

    Raises:
        ValueError: as `LyapunovFunction` and its `verify` do; also when V or f has no formula.

    Reference: Khalil, Nonlinear Systems (2002), section 8.2; Parrilo (2000), section 7.3.
    """
    deadline = check_timeout(timeout)
    check_method(method)
    lyapunov = V if isinstance(V, LyapunovFunction) else LyapunovFunction(V, states, equilibrium)
    field = VectorField(f, lyapunov.states)
    discrete = check_time(time, field)
    lyapunov._check_rest(field, discrete)
    if domain is not None:
        check_domain("domain", domain, lyapunov.states)
        lyapunov._check_inside(domain)
        if len(domain.pieces(lyapunov.states)) != 1:
            raise ValueError(f"domain must be one set, not a union, for a region of attraction; got {domain!r}.")
        if not everywhere(domain.guards(lyapunov.states)):
            raise ValueError(
                "domain must be given by formulas that are continuous everywhere: its edge is where one is zero; "
                f"got {domain!r}."
            )
    step = lyapunov.field - lyapunov.field.after(field) if discrete else -lyapunov.field.lie(field)
    if step.expr is None or lyapunov.field.expr is None:
        raise ValueError(f"V and f must have formulas here: {step.why_no_formula or lyapunov.field.why_no_formula}.")
    fall = sp.expand(step.expr) if step.expr.is_polynomial(*lyapunov.states) else step.expr
    smooth = regular([("V", lyapunov.field, 1), ("f", field, 0)], lyapunov.states, domain, method, deadline.part(0.2))
    if any(s.outcome.status is not Status.PROVED for s in smooth):
        text = f"{{V < ρ}} is in the region of attraction of {_show(lyapunov.equilibrium)}"
        about = {"lyapunov": lyapunov, "f": field, "domain": domain, "discrete": discrete}
        return combine(text, smooth, kind=Region, deadline=deadline, **about)
    found = _Search(lyapunov, field, fall, domain, method, deadline, discrete).run()
    steps = (*found.steps, *smooth)
    return replace(found, steps=steps, lyapunov=lyapunov, f=field, domain=domain, discrete=discrete)


class _Search:
    """One computation of a region of attraction; `fall` is -V̇ (or V - V∘f)."""

    def __init__(self, lyapunov, field, fall, domain, method, deadline, discrete):
        self.map = dict(zip(lyapunov.states, field.formulas(), strict=True)) if discrete else None
        self.states, self.star, self.field = lyapunov.states, lyapunov.equilibrium, lyapunov.field
        self.value = lyapunov.field.formula()
        self.fall, self.domain, self.method, self.deadline = fall, domain, method, deadline
        self.name = "V(f(x)) - V(x)" if discrete else "V̇"
        self.V = sp.lambdify(self.states, self.value, "numpy", cse=True)
        self.p = sp.lambdify(self.states, fall, "numpy", cse=True)
        self.grad_V = _gradient(self.value, self.states)
        self.grad_p = _gradient(fall, self.states)
        self.x0 = np.array([float(v) for v in self.star])

    def run(self) -> Region:
        edge = self.boundary_level()
        point = self.critical_point()
        refuted, witness = (None, None) if point is None else self.refute(point)
        limits = [v for v in (edge, refuted) if v is not None]
        text = f"{{V < ρ}} is in the region of attraction of {_show(self.star)}"
        enclosed = self.domain is not None and all(None not in side for side in self.domain.box(self.states))
        bounded = [] if enclosed else self.bounded()
        if bounded and bounded[-1].outcome.status is not Status.PROVED:
            return self.unsettled(text, bounded, refuted)
        if not limits:
            return self.everywhere(text, bounded)
        estimate = min(limits)
        if refuted is not None and point is not None and np.linalg.norm(point - self.x0) < 1e-6:
            near = self.claim_at(sp.Rational(Fraction(2 * refuted)))
            bad = decide(near, "search", self.deadline.part(0.3))
            return self.unsettled(text, [*bounded, Step(near, bad)], refuted)
        level, claim, outcome = best_bound(
            self.claim_at, estimate, self.method, self.deadline.part(0.8), scale=abs(estimate), least=0
        )
        if level is None:
            tried = claim or self.claim_at(sp.Rational(Fraction(estimate)))
            return self.unsettled(text, [*bounded, Step(tried, outcome)], refuted)
        steps = [*bounded, Step(claim or self.claim_at(level), outcome)]
        if self.domain is not None:
            level, steps = self.inside(level, steps)
        if level is None:
            return self.unsettled(text, steps, refuted)
        final = combine(
            text.replace("ρ", str(float_below(level))),
            steps,
            assumptions=() if self.domain is None else (f"the region is the part of the set inside {self.domain!r}",),
            kind=Region,
            deadline=self.deadline,
            level=float_below(level),
            refuted_at=refuted,
        )
        if witness is not None and final.status is Status.PROVED:
            return replace(final, witness=np.array([float(v) for v in witness]))
        return final

    def unsettled(self, text: str, steps: list[Step], refuted: float | None = None) -> Region:
        """No level was proved. That V fails says nothing of the equilibrium: never more than UNDECIDED."""
        found = combine(text, steps, kind=Region, deadline=self.deadline, refuted_at=refuted)
        if found.status is not Status.REFUTED:
            return found
        bad = next(s for s in steps if s.outcome.status is Status.REFUTED)
        reason = f"V does not prove it: {bad.claim.text} fails at the witness"
        return replace(found, status=Status.UNDECIDED, reason=reason)

    # What is claimed ----------------------------------------------------------------------------------------

    def claim_at(self, level: Any) -> Claim:
        """V̇ < 0 on {V < level}, and in the domain, but at the equilibrium."""
        claim = claims(
            f"{self.name} < 0 where 0 < V < {level}", self.states, self.fall, self.domain,
            strict=True, except_at=self.star, open_guards=(level - self.value,),
        )[0]  # fmt: skip
        return claim if self.domain is not None else replace(claim, box=self.level_box(level))

    def level_box(self, level: sp.Rational) -> tuple:
        """A box around {V ≤ level} where V is a quadratic form (Sublevel knows it), else none."""
        from ctrlgen.domain import Sublevel

        return Sublevel(self.value, self.states, level).box(self.states)

    def bounded(self) -> list[Step]:
        """V > 0, and V → ∞: the sublevel sets are bounded."""
        steps = settle(
            claims("V > 0", self.states, self.field, None, strict=True, except_at=self.star),
            self.method, self.deadline.part(0.3),
        )  # fmt: skip
        if steps[0].outcome.status is not Status.PROVED:
            return steps
        return [*steps, radially_unbounded(self.field, steps[0], self.deadline.part(0.3))]

    def everywhere(self, text: str, bounded: list[Step]) -> Region:
        """No point with V̇ ≥ 0 was seen: is it negative everywhere (in the domain)?"""
        claim = replace(self.claim_at(sp.Integer(1)), open_guards=(), text=f"{self.name} < 0 away from the equilibrium")
        if self.domain is None:
            claim = replace(claim, box=((None, None),) * len(self.states))
        step = Step(claim, decide(claim, self.method, self.deadline))
        if step.outcome.status is not Status.PROVED or self.domain is not None:
            return self.unsettled(text, [*bounded, step])
        text = "the region of attraction is the whole space"
        return combine(text, [*bounded, step], kind=Region, deadline=self.deadline, level=np.inf)

    def boundary_level(self) -> float | None:
        """About the smallest V on the boundary of the domain."""
        if self.domain is None:
            return None
        from ctrlgen.prove.search import minimise

        lowest = []
        for face in self.faces(sp.Integer(0)):
            found = minimise(self.value, face.guards, self.states, face.box, equalities=face.equalities)
            if found is not None and np.isfinite(found[1]):
                lowest.append(float(found[1]))
        return min(lowest, default=None)

    def faces(self, level: sp.Rational) -> list[Claim]:
        """V ≥ level on each face of the domain: where one guard is zero."""
        out = []
        for piece in self.domain.pieces(self.states):
            for k, guard in enumerate(piece.guards):
                for side in _roots(guard, self.states):
                    others = (*piece.guards[:k], *piece.guards[k + 1 :])
                    out.append(
                        Claim(
                            text=f"V ≥ {level} where {side} = 0",
                            states=self.states,
                            matrix=sp.Matrix([[self.value - level]]),
                            strict=False,
                            guards=others,
                            equalities=(side,),
                            box=_on_face(piece.box, side, self.states),
                        )
                    )
        return out

    def stays(self, level: sp.Rational) -> list[Claim]:
        """In discrete time a step may jump over the boundary: the image of {V < level} is in the domain."""
        if self.map is None or self.domain is None:
            return []
        piece = self.domain.pieces(self.states)[0]
        return [
            Claim(
                text=f"f(x) is in the domain where V < {level}: {guard} ≥ 0 there",
                states=self.states,
                matrix=sp.Matrix([[guard.xreplace(self.map)]]),
                strict=False,
                guards=piece.guards,
                open_guards=(level - self.value,),
                box=piece.box,
            )
            for guard in piece.guards
        ]

    def inside(self, level: sp.Rational, steps: list[Step]) -> tuple[sp.Rational | None, list[Step]]:
        """The proof that {V < level} does not reach the boundary of the domain; for a smaller level if need be."""
        found: list[Step] = []
        for value in candidates(float(level)):
            if value > level:
                continue
            every = [*self.faces(value), *self.stays(value)]
            found = settle(every, self.method if self.method != "search" else "auto", self.deadline)
            if all(s.outcome.status is Status.PROVED for s in found):
                return value, [*steps, *found]
            if self.deadline.over:
                break
        return None, [*steps, *found]

    # Where it fails -----------------------------------------------------------------------------------------

    def critical_point(self) -> np.ndarray | None:
        """About the point of smallest V with V̇ = 0, V > 0: along rays first, then polished on the surface."""
        rng = np.random.default_rng(0)
        d = len(self.states)
        if d == 1:
            rays = np.array([[1.0], [-1.0]])
        elif d == 2:
            angle = np.linspace(0, 2 * np.pi, RAYS, endpoint=False)
            rays = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        else:
            rays = rng.normal(size=(RAYS, d))
            rays /= np.linalg.norm(rays, axis=1, keepdims=True)
        radii = np.geomspace(1e-5, 1e6, 331)
        points = self.x0 + radii[:, None, None] * rays
        with np.errstate(all="ignore"):
            fall = _call(self.p, points)
            inside = self.in_domain(points)
            bad = (fall <= 0) & np.isfinite(fall) & inside
            height = np.where(bad, _call(self.V, points), np.inf)
        if not np.isfinite(height).any():
            return None
        # the first crossing on each ray by bisection, the lowest few polished
        first = np.argmax(bad, axis=0)
        hit = bad.any(axis=0)
        low = np.where(first > 0, radii[np.maximum(first - 1, 0)], 1e-9)
        high = radii[first]
        for _ in range(60):
            mid = (low + high) / 2
            with np.errstate(all="ignore"):
                wrong = _call(self.p, self.x0 + mid[:, None] * rays) <= 0
            low, high = np.where(wrong, low, mid), np.where(wrong, mid, high)
        edge = self.x0 + high[:, None] * rays
        with np.errstate(all="ignore"):
            level = np.where(hit, _call(self.V, edge), np.inf)
        level = np.where(level > 0, level, np.inf)
        order = np.argsort(level)
        best, best_level = edge[order[0]], level[order[0]]
        chosen = _spread(edge[order[: RAYS // 2]], 8)
        for start in chosen:
            x = self.polish(start)
            if x is not None and self.in_domain(x[None])[0]:
                v = float(_call(self.V, x))
                if 0 < v < best_level:
                    best, best_level = x, v
        return best if np.isfinite(best_level) else None

    def in_domain(self, points: np.ndarray) -> np.ndarray:
        if self.domain is None:
            return np.ones(points.shape[:-1], dtype=bool)
        return self.domain.contains(points.reshape(-1, points.shape[-1]), self.states).reshape(points.shape[:-1])

    def polish(self, x: np.ndarray) -> np.ndarray | None:
        """Newton's method for ∇V = μ ∇p, p = 0: the stationary point of V on {V̇ = 0} near x."""
        from scipy.optimize import minimize

        size = max(abs(float(_call(self.V, x))), 1e-300)
        found = minimize(
            lambda z: float(_call(self.V, z)) / size,
            x,
            jac=lambda z: self.grad_V(z) / size,
            constraints=[{"type": "eq", "fun": lambda z: float(_call(self.p, z)), "jac": self.grad_p}],
            method="SLSQP",
            options={"maxiter": 200, "ftol": 1e-15},
        )
        z = np.array(found.x)
        if not np.isfinite(z).all() or np.linalg.norm(z - self.x0) < 1e-6 * np.linalg.norm(x - self.x0):
            return None
        return z

    def refute(self, x: np.ndarray) -> tuple[float | None, tuple | None]:
        """A level that is refuted, from an exact point with V̇ ≥ 0 near x; and the point."""
        direction = -self.grad_p(x)
        norm = float(np.linalg.norm(direction))
        direction = direction / norm if norm > 0 else (x - self.x0) / np.linalg.norm(x - self.x0)
        size = float(np.linalg.norm(x - self.x0))
        test = replace(self.claim_at(sp.Integer(1)), open_guards=(), strict=True)
        best = None
        tries = [x] + [
            x + step * size * direction for step in (1e-15, 1e-13, 1e-12, 1e-11, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-4)
        ]
        for k, z in enumerate(tries):
            points = [tuple(sp.Rational(Fraction(float(v))) for v in z)]
            if k == 0:
                points.insert(0, tuple(sp.Rational(Fraction(float(v)).limit_denominator(1000)) for v in z))
            for point in points:
                if max(abs(float(a) - b) for a, b in zip(point, z, strict=True)) > 1e-7 * max(size, 1e-9):
                    continue
                if violates(test, point)[0]:
                    level = self.exact_level(point)
                    if best is None or level < best[0]:
                        best = (level, point)
            if best is not None:
                return best
        return None, None

    def exact_level(self, point: tuple) -> float:
        """V at the point, rounded up."""
        value = self.value.xreplace(dict(zip(self.states, point, strict=True)))
        out = float(sp.N(value, 30))
        while sp.Rational(Fraction(out)) < (value if value.is_Rational else sp.N(value, 40)):
            out = float(np.nextafter(out, np.inf))
        return out


def _gradient(expr: sp.Expr, states: Sequence[sp.Symbol]) -> Callable[[np.ndarray], np.ndarray]:
    slopes = [sp.diff(expr, s).replace(sp.DiracDelta, lambda *_: sp.S.Zero) for s in states]  # only to search with
    function = sp.lambdify(states, slopes, "numpy", cse=True)
    return lambda x: np.array([float(v) for v in function(*x)])


def _call(function: Callable, x: np.ndarray) -> np.ndarray:
    """function at states (..., d)."""
    return np.broadcast_to(np.asarray(function(*np.moveaxis(x, -1, 0)), float), x.shape[:-1])


def _spread(points: np.ndarray, count: int) -> list[np.ndarray]:
    """The first point, and others in order that are not close to those chosen."""
    chosen: list[np.ndarray] = []
    for x in points:
        if all(np.linalg.norm(x - y) > 0.2 * np.linalg.norm(x) for y in chosen):
            chosen.append(x)
        if len(chosen) == count:
            break
    return chosen


def _roots(guard: sp.Expr, states: Sequence[sp.Symbol]) -> list[sp.Expr]:
    """The factors of a guard: a side pair (u - x)(x - l) is two faces."""
    factors = [a for a in sp.Mul.make_args(guard) if a.free_symbols]
    linear = all(sp.Poly(a, *states).total_degree() == 1 for a in factors if a.is_polynomial(*states))
    return factors if len(factors) > 1 and linear else [guard]


def _on_face(box: tuple, side: sp.Expr, states: Sequence[sp.Symbol]) -> tuple:
    """The box with the coordinate that the face fixes set to its value."""
    if len(side.free_symbols) == 1 and side.is_polynomial(*states):
        s: Any = next(iter(side.free_symbols))
        poly = sp.Poly(side, s)
        if poly.degree() == 1:
            value = -poly.coeff_monomial(1) / poly.coeff_monomial(s)
            if value.is_Rational:
                k = list(states).index(s)
                return (*box[:k], (value, value), *box[k + 1 :])
    return box
