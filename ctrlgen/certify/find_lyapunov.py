"""Synthesis of Lyapunov functions: candidates in floating point, each then verified from scratch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import sympy as sp
from flint import fmpq, fmpq_mpoly

from ctrlgen.certify.build import check_domain, claims
from ctrlgen.certify.lyapunov import LyapunovFunction, LyapunovVerdict, Time, check_time, exact_point
from ctrlgen.domain import Domain
from ctrlgen.field import VectorField, symbols
from ctrlgen.formula import real_states
from ctrlgen.prove.claim import Claim, Deadline, Status
from ctrlgen.prove.decide import check_method, check_timeout
from ctrlgen.prove.polynomial import NotPolynomialError, ring, scaled, translate
from ctrlgen.prove.program import Block, Program, monomials

DENOMINATORS = (1, 2, 4, 10, 60, 1000, 10**6, 10**9)
LARGEST_BASIS = 70


@dataclass(frozen=True, kw_only=True, repr=False)
class Synthesis(LyapunovVerdict):
    """A verdict on the existence of a certificate.

    Args:
        found: what was found and proved, or None.
    """

    found: Any = None


def find_lyapunov(
    f: Any,
    states: Sequence[str | sp.Symbol],
    degree: int = 2,
    domain: Domain | None = None,
    method: str = "auto",
    *,
    equilibrium: Sequence[Any] | None = None,
    time: Time | None = None,
    timeout: float = 30.0,
) -> Synthesis:
    """Find V with V > 0 and V̇ < 0 away from the equilibrium, and prove it.

    Linear systems by the Lyapunov equation; polynomial ones by sums of squares; rational ones after clearing positive
    denominators; trigonometric ones in the variables s, c with s² + c² = 1 (V is then a polynomial in them); others by
    the Lyapunov equation of the linearisation. Whatever the way, V is rounded to rationals and then verified by
    `LyapunovFunction.verify`, whose verdict this is.

    Args:
        f: the vector field, as in `LyapunovFunction.derivative`.
        states: names or symbols.
        degree: of V, at least 2; even where it is to be positive on the whole space.
        domain: where; None for global asymptotic stability.
        method: how the candidates are verified.
        equilibrium: x*, the origin when omitted.
        time: as in `LyapunovFunction.verify`.
        timeout: seconds for everything.

    Returns:
        A verdict with `.found`, the LyapunovFunction, or None and the reasons.

    Raises:
        ValueError: degree is not an integer of at least 2, or as `LyapunovFunction.verify` does.

    Reference: Papachristodoulou and Prajna, CDC 2002 (polynomial) and Positive Polynomials in Control, 2005 (others).
    """
    deadline = check_timeout(timeout)
    check_method(method)
    if isinstance(degree, bool) or not isinstance(degree, (int, np.integer)) or degree < 2:
        raise ValueError(f"degree must be an integer of at least 2; got {degree!r}.")
    names = real_states(states)
    field = VectorField(f, names)
    star = exact_point("equilibrium", equilibrium, names)
    discrete = check_time(time, field)
    probe = LyapunovFunction(sp.Add(*((s - v) ** 2 for s, v in zip(names, star, strict=True))), names, star)
    probe._check_rest(field, discrete)
    if domain is not None:
        check_domain("domain", domain, names)
        probe._check_inside(domain)
    where = "on the whole space" if domain is None else f"on {domain!r}"
    text = f"there is a Lyapunov function of degree {degree} {where}"
    if field.exprs is None:
        return Synthesis(claim=text, status=Status.UNDECIDED, method=method, reason=field.why_no_formula)
    synthesis = _Synthesis(names, field, star, int(degree), domain, discrete)
    reasons: list[str] = []
    last = None
    tried: set[sp.Expr] = set()
    for way, candidate, final in synthesis.candidates(deadline, reasons):
        if deadline.over:
            reasons.append("time-out")
            break
        if candidate in tried or any(s not in candidate.free_symbols for s in names):
            continue
        tried.add(candidate)
        V = LyapunovFunction(candidate, symbols(states), star)
        quick = method == "auto" and not final
        verdict = V.verify(
            field, domain, "exact" if quick else method, time="discrete" if discrete else "continuous",
            timeout=max(deadline.left() * (0.3 if quick else 0.7), 0.01),
        )  # fmt: skip
        if verdict.status is Status.PROVED:
            return Synthesis(**{**vars(verdict), "found": V, "seconds": deadline.spent})
        last = (way, candidate, verdict)
    if last is not None:
        reasons.append(f"the last candidate, {last[1]} ({last[0]}), is {last[2].status.value}: {last[2].reason}")
    return Synthesis(
        claim=text,
        status=Status.UNDECIDED,
        method=method,
        reason="; ".join(reasons) or "no candidate was found",
        seconds=deadline.spent,
        steps=() if last is None else last[2].steps,
    )


class _Synthesis:
    """One search. Coordinates are shifted: the equilibrium is at the origin of z = x - x*."""

    def __init__(self, names, field, star, degree, domain, discrete):
        self.names, self.field, self.star = names, field, star
        self.degree, self.domain, self.discrete = degree, domain, discrete
        self.shift = [s - v for s, v in zip(names, star, strict=True)]
        self.jacobian = field.jacobian().xreplace(dict(zip(names, star, strict=True)))

    def candidates(self, deadline: Deadline, reasons: list[str]) -> Iterator[tuple[str, sp.Expr, bool]]:
        """(how, V, is it the last of its kind: then all engines are asked)."""
        linear = not any(self.field.jacobian().free_symbols)
        quadratic = list(self.from_linearisation(reasons, linear))
        if linear:
            yield from quadratic
            return
        try:
            yield from self.by_squares(deadline, reasons)
        except NotPolynomialError as error:
            reasons.append(f"sums of squares do not apply: {error}")
        yield from quadratic

    # The Lyapunov equation -----------------------------------------------------------------------------------

    def from_linearisation(self, reasons: list[str], linear: bool) -> Iterator[tuple[str, sp.Expr, bool]]:
        """Quadratic forms that solve the Lyapunov equation of the linearisation."""
        from scipy.linalg import solve_continuous_lyapunov, solve_discrete_lyapunov

        try:
            a = np.array(self.jacobian.evalf(), dtype=float)
        except TypeError:
            reasons.append("the linearisation is not finite")
            return
        values = np.linalg.eigvals(a)
        worst = float(np.abs(values).max() if self.discrete else values.real.max())
        if not np.isfinite(worst) or worst >= (1 if self.discrete else 0):
            what = f"its matrix has {'spectral radius' if self.discrete else 'spectral abscissa'} {worst:.6g}"
            reasons.append(f"the {'system' if linear else 'linearisation'} is not asymptotically stable: {what}")
            return
        d = len(a)
        weights = [np.eye(d)] if linear else [np.eye(d), np.diag(1.0 / (1.0 + np.abs(a).sum(axis=0)))]
        for q in weights:
            p = solve_discrete_lyapunov(a.T, q) if self.discrete else solve_continuous_lyapunov(a.T, -q)
            p = (p + p.T) / 2
            yield from self.rounded("Lyapunov equation", list(p[np.triu_indices(d)]), self.quadratic_terms())

    def quadratic_terms(self) -> list[sp.Expr]:
        """zᵢ zⱼ for i ≤ j, doubled off the diagonal."""
        d = len(self.names)
        return [self.shift[i] * self.shift[j] * (1 if i == j else 2) for i in range(d) for j in range(i, d)]

    def rounded(
        self, way: str, coefficients: Sequence[float], terms: Sequence[sp.Expr]
    ) -> Iterator[tuple[str, sp.Expr, bool]]:
        """The sum of terms with ever finer rational coefficients."""
        c = np.asarray(coefficients, dtype=float)
        top = float(np.abs(c).max(initial=0.0))
        if top == 0 or not np.isfinite(top):
            return
        small = float(np.abs(c[np.abs(c) > 1e-3 * top]).min())
        for k, denominator in enumerate(DENOMINATORS):
            for size in (top, small) if k < 4 else (top,):
                unit = c / size
                if np.abs(unit).max() > 1e6:
                    continue
                exact = [Fraction(float(v)).limit_denominator(denominator) for v in unit]
                if denominator <= 1000 and max(
                    abs(float(e) - v) for e, v in zip(exact, unit, strict=True)
                ) > 0.02 * max(1.0, float(np.abs(unit).max())):
                    continue
                expr = sp.Add(*(sp.Rational(e.numerator, e.denominator) * t for e, t in zip(exact, terms, strict=True)))
                yield way, sp.expand(expr), denominator == DENOMINATORS[-1]

    # Sums of squares -----------------------------------------------------------------------------------------

    def by_squares(self, deadline: Deadline, reasons: list[str]) -> Iterator[tuple[str, sp.Expr, bool]]:
        """Solutions of the sum-of-squares program in the coefficients of V."""
        terms = self.terms()
        unknown = [sp.Dummy(f"c{k}", real=True) for k in range(len(terms))]
        if self.discrete:
            after = dict(zip(self.names, self.field.formulas(), strict=True))
            falls = [m - m.xreplace(after) for m in terms]
        else:
            falls = [
                -sp.Add(*(sp.diff(m, s) * v for s, v in zip(self.names, self.field.formulas(), strict=True)))
                for m in terms
            ]
        count = len(terms)
        for extra in (0, 2):
            if deadline.over:
                return
            program = Program(count)
            for body in (terms, falls):
                problem, linear, guards = self.affine(body, unknown)
                if not self.require(program, problem, linear, guards, extra):
                    reasons.append(f"degree +{extra}: a Gram matrix of more than {LARGEST_BASIS} rows was not tried")
                    return
            t = program.unknowns
            program.unknowns += 1
            for names in program.strict:
                program.rows.append(({**dict.fromkeys(names, 1.0), t: -1.0}, 0.0))
            for k in range(count):
                program.rows += [({k: 1.0}, -1.0), ({k: -1.0}, -1.0)]
            program.rows.append(({t: -1.0}, -1.0))
            program.objective = {t: 1.0}
            if not program.prune(deadline):
                reasons.append(f"degree +{extra}: no sum of squares, a coefficient has the wrong sign")
                continue
            values = program.solve(deadline.part(0.5), margin=False)
            if values is None:
                reasons.append(f"degree +{extra}: {program.status}")
                continue
            if values[t] < 1e-7:
                reasons.append(
                    f"degree +{extra}: the margin of V > 0 and V̇ < 0 is at most {values[t]:.1e} ({program.status})"
                )
                continue
            way = f"sums of squares, degree +{extra}"
            sparse = self.sparser(program, count, t, 0.3 * float(values[t]), deadline)
            if sparse is not None:
                yield from self.rounded(f"{way}, few terms", list(sparse[:count]), terms)
            yield from self.rounded(way, list(values[:count]), terms)

    def sparser(self, program: Program, count: int, t: int, margin: float, deadline: Deadline) -> np.ndarray | None:
        """The V of smallest Σ |c_k| that keeps a part of the margin: most of its coefficients are zero.

        The largest margin mixes every monomial; a V with terms that it does not need often has a V̇ whose highest
        powers cannot be a sum of squares robustly, and no rounding of it is one.
        """
        start = program.unknowns
        program.unknowns += count
        for k in range(count):
            program.rows += [({start + k: 1.0, k: 1.0}, 0.0), ({start + k: 1.0, k: -1.0}, 0.0)]
        program.rows.append(({t: 1.0}, margin))
        program.objective = {start + k: -1.0 for k in range(count)}
        values = program.solve(deadline.part(0.5), margin=False)
        return None if values is None else np.where(np.abs(values) < 1e-6, 0.0, values)

    def terms(self) -> list[sp.Expr]:
        """What V is a combination of: monomials in z, or in sin z, 1 - cos z where f knows an angle only so."""
        angles = [
            s for s in self.names
            if any(e.has(sp.sin, sp.cos) and e.has(s) for e in self.field.formulas()) and not self.outside_angle(s)
        ]  # fmt: skip
        base: list[tuple[sp.Expr, int]] = []  # (formula, lowest degree of it alone that may enter V)
        for s, z in zip(self.names, self.shift, strict=True):
            if s in angles:
                base += [(sp.sin(z), 2), (1 - sp.cos(z), 1)]
            else:
                base.append((z, 2))
        out = []
        for m in monomials(len(base), 1, self.degree):
            alone = [k for k, e in enumerate(m) if e]
            if sum(m) == 1 and base[alone[0]][1] > 1:
                continue
            if any(m[k] >= 2 and isinstance(base[k][0], sp.sin) for k in alone):
                continue  # sin² = 1 - cos²
            out.append(sp.Mul(*(b**e for (b, _), e in zip(base, m, strict=True))))
        return out

    def outside_angle(self, s: sp.Symbol) -> bool:
        """Does s occur in f otherwise than in sin and cos of itself?"""
        mark = {sp.sin(s): sp.Dummy(), sp.cos(s): sp.Dummy()}
        return any(sp.expand_trig(e).xreplace(mark).has(s) for e in self.field.formulas())

    def affine(self, body: list[sp.Expr], unknown: list[sp.Dummy]):
        """Σ c_k body_k in polynomial variables, one polynomial a k, and the guards of the domain."""
        expr = sp.Add(*(c * m for c, m in zip(unknown, body, strict=True)))
        states = (*self.names, *unknown)
        box = ((None, None),) * len(self.names)
        guards: tuple[sp.Expr, ...] = ()
        if self.domain is not None:
            piece = claims("", self.names, sp.Integer(1), self.domain, strict=True)[0]
            guards, box = piece.guards, piece.box
        claim = Claim(
            text="synthesis", states=states, matrix=sp.Matrix([[expr]]), strict=False, guards=guards,
            box=(*box, *((None, None),) * len(unknown)),
            except_at=(*self.star, *(sp.Integer(0),) * len(unknown)),
        )  # fmt: skip
        problem = translate(claim, keyed=False)
        kept = [k for k, v in enumerate(problem.variables) if v not in unknown]
        named: list[sp.Symbol] = list(unknown)
        place = {named.index(v): k for k, v in enumerate(problem.variables) if v in named}
        small = ring(max(len(kept), 1))

        def restrict(poly: fmpq_mpoly) -> fmpq_mpoly:
            return small.from_dict({tuple(m[k] for k in kept): c for m, c in poly.to_dict().items()})

        linear = {}
        target = problem.target.to_dict()
        for index, k in place.items():
            part = {m: c for m, c in target.items() if m[k] == 1}
            linear[index] = small.from_dict({tuple(m[j] for j in kept): c for m, c in part.items()})
        problem.variables = tuple(problem.variables[k] for k in kept)
        problem.equalities = [restrict(h) for h in problem.equalities]
        return problem, linear, [restrict(g) for g in (*problem.open_guards, *problem.guards)]

    def require(self, program: Program, problem, linear, guards, extra: int) -> bool:
        """Add Σ c_k p_k - Σ a_ij z_i^{2j} = σ₀ + Σ σ_g g + Σ λ h. False if that is too large."""
        n = len(problem.variables)
        context = next(iter(linear.values())).context()
        one = context.from_dict({(0,) * max(n, 1): 1})
        size = max(scaled_size(p) for p in linear.values())
        linear = {k: p / size for k, p in linear.items()}
        degree = max(p.total_degree() for p in linear.values())
        total = degree + degree % 2 + extra
        bounds = [scaled(g) for g in guards]
        if bounds:
            total = max(total, 2 * ((max(g.total_degree() for g in bounds) + 1) // 2))

        def basis(half: int) -> list[fmpq_mpoly]:
            return [context.from_dict({m: 1}) for m in monomials(n, 0, half)]

        blocks = [Block(one, basis(total // 2))]
        for k, g in enumerate(bounds):
            room = total - g.total_degree()
            if room >= 0:
                blocks.append(Block(g, basis(room // 2), (k,)))
        if max(len(b.basis) for b in blocks) > LARGEST_BASIS:
            return False
        free = [
            (h, [context.from_dict({m: 1}) for m in monomials(n, 0, total - h.total_degree())])
            for h in problem.equalities
        ]
        # strictness: one nonnegative scalar for each even power of each variable
        rows = []
        for i in range(n):
            names = []
            for power in range(2, total + 1, 2):
                k = program.unknowns
                program.unknowns += 1
                linear[k] = context.from_dict({tuple(power if j == i else 0 for j in range(n)): -1})
                program.rows.append(({k: 1.0}, 0.0))
                names.append(k)
            rows.append(names)
        program.strict += rows
        program.require(one * 0, linear, blocks, free)
        return True


def scaled_size(poly: fmpq_mpoly) -> fmpq:
    """The factor by which `scaled` divides."""
    if poly.is_zero():
        return fmpq(1)
    return poly.coeffs()[0] / scaled(poly).coeffs()[0]
