"""A function with unknown coefficients, h = Σ c_i m_i, in sum-of-squares programs: what `find_barrier` asks for.

Every condition is linear in c: Σ c_i e_i ≥ 0 on a set, with formulas e_i. Formulas become polynomials through the
same translation that the exact engine uses, so denominators are cleared and sin, cos, exp get their facts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import sympy as sp
from flint import fmpq, fmpq_mat, fmpq_mpoly, fmpq_mpoly_ctx

from ctrlgen.domain import Domain
from ctrlgen.prove.claim import Claim
from ctrlgen.prove.polynomial import ring, translate
from ctrlgen.prove.program import Block, Program, monomials, rational_rows

LARGEST_BASIS = 60
MOST_PRODUCTS = 5  # products of guards are used for so many guards at most
LARGEST_IDEAL = 400  # monomials that are reduced modulo an ideal


@dataclass
class Setting:
    """Formulas e_i and a set, as polynomials of one ring.

    Args:
        context: the ring: the states that occur, then the translation's atoms.
        forms: D·e_i, with one D > 0 for all of them.
        one: D.
        guards, equalities: ≥ 0 and = 0 on the set.
    """

    context: fmpq_mpoly_ctx
    forms: list[fmpq_mpoly]
    one: fmpq_mpoly
    guards: list[fmpq_mpoly]
    equalities: list[fmpq_mpoly]

    @property
    def dim(self) -> int:
        """Number of variables."""
        return len(self.context.names())

    def degree(self, forms: Sequence[fmpq_mpoly]) -> int:
        """The smallest even degree at which all of these, and the set's formulas, have room."""
        high = max(p.total_degree() for p in [*forms, self.one, *self.guards, *self.equalities])
        return high + high % 2

    def blocks(self, total: int, products: int, ideal: Ideal | Zeros | None = None) -> list[Block]:
        """One sum of squares a product of at most `products` guards, of degree `total`, squares in the ideal."""
        out = []
        for count in range(products + 1 if len(self.guards) <= MOST_PRODUCTS else 2):
            for key in combinations(range(len(self.guards)), count):
                factor = self.one * 0 + 1
                for k in key:
                    factor = factor * self.guards[k]
                room = total - factor.total_degree()
                basis = self.basis(room // 2) if ideal is None else ideal.up_to(room // 2)
                if room >= 0 and basis:
                    out.append(Block(factor, basis, key))
        return out

    def basis(self, degree: int) -> list[fmpq_mpoly]:
        """The monomials up to a degree."""
        return [self.context.from_dict({m: 1}) for m in monomials(self.dim, 0, degree)]

    def powers(self, exponents: Sequence[tuple[int, ...]]) -> list[fmpq_mpoly]:
        """These monomials of the states, which are the first variables."""
        return [self.context.from_dict({(*m, *(0,) * (self.dim - len(m))): 1}) for m in exponents]

    def along(self, poly: fmpq_mpoly, d: int) -> fmpq_mpoly:
        """D·∇p·f for a polynomial of the d states, where the first d forms are D·f."""
        return sum((poly.derivative(i) * self.forms[i] for i in range(d)), poly * 0)

    def free(self, total: int) -> list[tuple[fmpq_mpoly, list[fmpq_mpoly]]]:
        """The equalities, with the monomials of their multipliers."""
        return [(h, self.basis(max(0, total - h.total_degree()))) for h in self.equalities]


def setting(
    states: tuple[sp.Symbol, ...], formulas: Sequence[sp.Expr], guards: Sequence[sp.Expr], box: Sequence
) -> Setting:
    """The formulas on {guards ≥ 0} as polynomials.

    Raises:
        NotPolynomialError: something has no polynomial facts.
    """
    marks = [sp.Dummy(f"c{i}", real=True) for i in range(len(formulas) + 2)]
    body = sp.Add(*(c * e for c, e in zip(marks, formulas, strict=False)), marks[-2], marks[-1] * sp.Add(*states))
    free = ((None, None),) * len(marks)
    claim = Claim(
        text="unknown coefficients",
        states=(*states, *marks),
        matrix=sp.Matrix([[body]]),
        strict=False,
        guards=tuple(guards),
        box=(*box, *free),
    )
    problem = translate(claim)
    place = {v: k for k, v in enumerate(problem.variables)}
    marked = [place.get(c) for c in marks]
    kept = [k for v, k in place.items() if v not in set(marks)]
    context = ring(len(kept))

    def narrow(poly: fmpq_mpoly, at: int | None = None) -> fmpq_mpoly:
        terms = poly.to_dict().items()
        return context.from_dict({tuple(m[k] for k in kept): v for m, v in terms if at is None or m[at] == 1})

    zero = context.from_dict({})
    parts = [zero if at is None else narrow(problem.target, at) for at in marked]
    return Setting(
        context=context,
        forms=parts[:-2],
        one=parts[-2],
        guards=[narrow(g) for g in (*problem.open_guards, *problem.guards)],
        equalities=[narrow(h) for h in problem.equalities],
    )


@dataclass(frozen=True)
class Coordinates:
    """x = centre + scale·z, with z of the size of one on the sets; conditions are stated in z."""

    states: tuple[sp.Symbol, ...]
    change: dict[sp.Symbol, sp.Expr]
    back: dict[sp.Symbol, sp.Expr]
    shifts: tuple[tuple[sp.Rational, sp.Rational], ...]

    @classmethod
    def of(
        cls,
        states: tuple[sp.Symbol, ...],
        domain: Domain | None,
        others: Sequence[Domain],
        formulas: Sequence[sp.Expr] = (),
    ) -> Coordinates:
        """From the box of the domain, or else of the other sets; coordinates of size one stay, and angles do."""
        odd = [
            a
            for e in formulas
            for a in e.atoms(sp.Function, sp.Pow)
            if not (isinstance(a, sp.Pow) and a.exp.is_Integer)
        ]
        fixed = set().union(*(a.free_symbols for a in odd))
        shifts = []
        pieces = [p for d in ([domain] if domain is not None else others) for p in d.pieces(states)]
        for i in range(len(states)):
            lows, highs = [p.box[i][0] for p in pieces], [p.box[i][1] for p in pieces]
            known = [v for v in (*lows, *highs) if v is not None and states[i] not in fixed]
            low, high = (min(known), max(known)) if known else (sp.S.Zero, sp.S.Zero)
            half, middle = (high - low) / 2, (high + low) / 2
            centre = sp.S.Zero if abs(middle) <= half or not known else sp.Rational(round(middle * 64), 64)
            reach = float(max(abs(high - centre), abs(low - centre)))
            power = round(np.log2(reach)) if reach > 0 else 0
            shifts.append((centre, sp.Integer(2) ** power if abs(power) > 1 else sp.S.One))
        pairs = list(zip(states, shifts, strict=True))
        return cls(
            states,
            {s: c + w * s for s, (c, w) in pairs if (c, w) != (0, 1)},
            {s: (s - c) / w for s, (c, w) in pairs if (c, w) != (0, 1)},
            tuple(shifts),
        )

    def into(self, expr: sp.Expr) -> Any:
        """A formula of x as one of z."""
        return expr.xreplace(self.change) if self.change else expr

    def box(self, box: Sequence) -> list:
        """A box of x as one of z."""
        return [
            tuple(None if v is None else (v - c) / w for v in side)
            for side, (c, w) in zip(box, self.shifts, strict=True)
        ]

    def formula(self, values: Sequence[fmpq], exponents: Sequence[tuple[int, ...]]) -> sp.Expr:
        """Σ v·zᵐ as a formula of x."""
        z = [self.back.get(s, s) for s in self.states]
        terms = [
            sp.Rational(int(v.p), int(v.q)) * sp.Mul(*(a**e for a, e in zip(z, m, strict=True)))
            for v, m in zip(values, exponents, strict=True)
            if v != 0
        ]
        return sp.expand(sp.Add(*terms))

    def settings(self, formulas: Sequence[sp.Expr], domain: Domain | None) -> list[Setting]:
        """These formulas of x on every piece of a set, as polynomials of z."""
        inside = [self.into(e) for e in formulas]
        pieces = [((), ((None, None),) * len(self.states))]
        if domain is not None:
            pieces = [(p.guards, p.box) for p in domain.pieces(self.states)]
        return [setting(self.states, inside, [self.into(g) for g in guards], self.box(box)) for guards, box in pieces]


@dataclass(frozen=True)
class Condition:
    """Σ c_i form_i - level·D ≥ 0 on a set."""

    setting: Setting
    forms: list[fmpq_mpoly]
    level: int = 0


class Ideal:
    """The polynomials of bounded degree in the ideal of given ones: what must vanish where those do."""

    def __init__(self, generators: Sequence[fmpq_mpoly], context: fmpq_mpoly_ctx):
        self.context = context
        self.names = [sp.Symbol(n) for n in context.names()]
        formulas = [self._formula(g) for g in generators if not g.is_zero()]
        self.basis = sp.groebner(formulas, *self.names, order="grevlex", domain=sp.QQ) if formulas else None

    def _formula(self, poly: fmpq_mpoly) -> sp.Expr:
        terms = {m: sp.QQ(int(c.p), int(c.q)) for m, c in poly.to_dict().items()}
        return sp.Poly.from_dict(terms, *self.names, domain=sp.QQ).as_expr()

    def up_to(self, degree: int) -> list[fmpq_mpoly]:
        """A basis of the ideal's polynomials of at most this degree."""
        exponents = monomials(len(self.names), 0, max(degree, 0)) if degree >= 0 else []
        if self.basis is None or len(exponents) > LARGEST_IDEAL:
            return []
        rows: dict[tuple[int, ...], dict[int, fmpq]] = {}
        for k, m in enumerate(exponents):
            poly = sp.Poly.from_dict({m: 1}, *self.names, domain=sp.QQ)
            rest = sp.Poly(self.basis.reduce(poly.as_expr())[1], *self.names, domain=sp.QQ)
            for n, c in rest.rep.terms():
                if c:
                    rows.setdefault(n, {})[k] = fmpq(int(c.numerator), int(c.denominator))
        matrix = [[row.get(k, fmpq(0)) for k in range(len(exponents))] for row in rows.values()]
        return [
            self.context.from_dict({m: q for m, q in zip(exponents, v, strict=True) if q != 0})
            for v in kernel(matrix, len(exponents))
        ]


class Zeros:
    """The polynomials of bounded degree that vanish at given points, which are recognised where they are algebraic.

    Args:
        points: (k, d) floats. Conjugate points have to come together: the recognised conditions are rational.
        context: the ring, of d variables.
    """

    def __init__(self, points: np.ndarray, context: fmpq_mpoly_ctx):
        self.points, self.context = points, context

    def up_to(self, degree: int) -> list[fmpq_mpoly]:
        """A basis of those of at most this degree; none where the points are not recognised. It is a guess."""
        exponents = monomials(self.points.shape[1], 0, degree) if degree >= 0 else []
        if not exponents or not len(self.points):
            return []
        values = np.prod(self.points[:, None, :] ** np.array(exponents)[None], axis=2)
        _, sizes, rows = np.linalg.svd(values / np.linalg.norm(values, axis=1, keepdims=True), full_matrices=False)
        known = rational_rows(rows[sizes > 1e-7 * sizes[0]])
        if known is None:
            return []
        return [
            self.context.from_dict({m: q for m, q in zip(exponents, v, strict=True) if q != 0})
            for v in kernel(known, len(exponents))
        ]


def equilibria(
    f: Sequence[sp.Expr], states: tuple[sp.Symbol, ...], domain: Domain | None, tries: int = 40
) -> np.ndarray:
    """Zeros of f in the domain (within 1e-6), (k, d), in floating point: those that Newton's method found."""
    from scipy.optimize import root

    rng = np.random.default_rng(0)
    try:
        starts = 2 * rng.normal(size=(tries, len(states))) if domain is None else domain.sample(rng, tries, states)
    except ValueError:
        return np.empty((0, len(states)))
    speed = sp.lambdify([states], list(f), ["scipy", "numpy"])
    slope = sp.lambdify([states], [[sp.diff(e, s) for s in states] for e in f], ["scipy", "numpy"])
    found: list[np.ndarray] = []
    for start in starts:
        with np.errstate(all="ignore"):
            answer = root(
                lambda x: np.array(speed(x), float), start, jac=lambda x: np.array(slope(x), float), tol=1e-12
            )
        x = np.where(np.abs(answer.x) < 1e-11, 0.0, answer.x)
        close = [p for p in found if np.abs(p - x).max() < 1e-6 * (1 + np.abs(x).max())]
        if answer.success and np.isfinite(x).all() and not close:
            found.append(x)
    points = np.array(found).reshape(-1, len(states))
    if domain is None or not len(points):
        return points
    near = [
        points + 1e-6 * (1 + np.abs(points)) * e for e in (0, *np.vstack([np.eye(len(states)), -np.eye(len(states))]))
    ]
    return points[np.any([domain.contains(p, states) for p in near], axis=0)]


def kernel(rows: list[list[fmpq]], n: int) -> list[list[fmpq]]:
    """A rational basis of {v in Qⁿ: row · v = 0 for every row}."""
    reduced, rank = fmpq_mat(rows).rref() if rows else (None, 0)
    lead = [next(c for c in range(n) if reduced[r, c] != 0) for r in range(rank)] if reduced is not None else []
    out = []
    for c in range(n):
        if c not in lead:
            v = [fmpq(0)] * n
            v[c] = fmpq(1)
            for r, column in enumerate(lead):
                v[column] = -reduced[r, c]  # pyright: ignore[reportOptionalSubscript]
            out.append(v)
    return out


def compatible(forms: Sequence[fmpq_mpoly], blocks: Sequence[Block], free: Sequence) -> list[list[fmpq]]:
    """A basis of the c for which Σ c_i form_i lies in the span of the blocks' products and of the equalities."""
    span = [b.factor * v * w for b in blocks for k, v in enumerate(b.basis) for w in b.basis[k:]]
    span += [h * w for h, basis in free for w in basis]
    terms = sorted({m for p in (*forms, *span) for m in p.to_dict()})
    place = {m: k for k, m in enumerate(terms)}

    def row(poly: fmpq_mpoly) -> list[fmpq]:
        out = [fmpq(0)] * len(terms)
        for m, c in poly.to_dict().items():
            out[place[m]] = c
        return out

    checks = kernel([row(p) for p in span], len(terms))  # functionals that vanish on the span
    columns = [row(p) for p in forms]
    rows = [[sum((a * b for a, b in zip(y, c, strict=True) if a != 0), fmpq(0)) for c in columns] for y in checks]
    return kernel([r for r in rows if any(x != 0 for x in r)], len(forms))


def simple_vectors(values: np.ndarray, digits: Sequence[int] = (1, 2, 3, 4, 6, 8, 11)) -> Iterator[list[fmpq]]:
    """Vectors of short decimals in nearly the same direction, the shortest first."""
    top = float(np.abs(values).max(initial=0.0))
    seen = set()
    for count in digits if top > 0 else ():
        rounded = tuple(round(float(v) / top * 10**count) for v in values)
        if any(rounded) and rounded not in seen:
            seen.add(rounded)
            yield [fmpq(v, 10**count) for v in rounded]


def too_large(program: Program) -> bool:
    """Would the program take too long to solve?"""
    return any(len(b.basis) > LARGEST_BASIS for i in program.identities for b in i.blocks)
