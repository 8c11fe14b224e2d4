"""Metrics with polynomial entries as programs: their inequalities at points, and as sums of squares.

M(x) = Σ c_k E_k with a monomial of the states in one entry (and its mirror image) of each E_k. What is asked,
M - I ⪰ 0 and -(Ṁ + MJ + JᵀM + 2λM) ⪰ 0, is linear in c.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import sympy as sp
from flint import fmpq, fmpq_mpoly

from ctrlgen.domain import Domain, Piece
from ctrlgen.field import VectorField
from ctrlgen.prove.claim import Claim, Deadline
from ctrlgen.prove.exact import attempts
from ctrlgen.prove.polynomial import NotPolynomialError, Semialgebraic, ring, translate
from ctrlgen.prove.program import Block, Program, monomials

LARGEST = 60  # rows of a Gram matrix
PROBES = (-1, 1)  # rates at which the inequalities, affine in the rate, are translated
POINTS = 60  # at which the inequalities are asked before counterexamples are added


class Family:
    """All metrics of one degree for one flow on one domain.

    Args:
        f: ẋ = f(x), with formulas.
        degree: of the entries in the states.
        domain: None for the whole space.
    """

    def __init__(self, f: VectorField, degree: int, domain: Domain | None):
        self.f, self.domain, self.states, self.d = f, domain, f.states, f.dim
        d, free = self.d, ((None, None),) * self.d
        self.pieces = (Piece((), free),) if domain is None else domain.pieces(self.states)
        self.bounded = all(low is not None and high is not None for p in self.pieces for low, high in p.box)
        powers = monomials(d, 0, degree)
        shapes = [sp.Mul(*(s**e for s, e in zip(self.states, m, strict=True))) for m in powers]
        self.entries = [(w, i, j) for w in shapes for i in range(d) for j in range(i, d)]
        self.c = sp.symbols(f"c0:{len(self.entries)}", cls=sp.Dummy, real=True)

    def matrix(self, c: Sequence[Any]) -> sp.ImmutableMatrix:
        """M with coefficients c."""
        out = sp.zeros(self.d, self.d)
        for value, (w, i, j) in zip(c, self.entries, strict=True):
            out[i, j] += value * w
            if i != j:
                out[j, i] += value * w
        return sp.ImmutableMatrix(out)

    @cached_property
    def change(self) -> sp.ImmutableMatrix:
        """Ṁ + MJ + JᵀM of the whole family, linear in c."""
        m, slope = self.matrix(self.c), self.f.jacobian()
        along = sum((m.diff(s) * v for s, v in zip(self.states, self.f.formulas(), strict=True)), sp.zeros(self.d))
        return sp.ImmutableMatrix(along + m * slope + slope.T * m)

    # At points ------------------------------------------------------------------------------------------------

    def points(self) -> list[np.ndarray]:
        """Points of the domain at which the inequalities are asked first."""
        rng, share = np.random.default_rng(0), POINTS // len(self.pieces) + 1
        return [x for p in self.pieces for x in _points(p, self.domain, self.states, rng, share)]

    @cached_property
    def _tables(self) -> Any:
        first = [sp.diff(self.change[i, j], c) for c in self.c for i in range(self.d) for j in range(self.d)]
        shapes = [w for w, _, _ in self.entries]
        return sp.lambdify([list(self.states)], [first, shapes], modules=["scipy", "numpy"], cse=True)

    def sampled(self, rate: float, points: Sequence[np.ndarray], deadline: Deadline) -> np.ndarray | None:
        """c with M ⪰ I and -(Ṁ + MJ + JᵀM + 2·rate·M) ⪰ 0 at these points, M as small as can be; None if none."""
        k, d = len(self.c), self.d
        context = ring(d)
        basis = [context.gen(i) for i in range(d)]
        one = context.constant(1)
        program = Program(k)
        trace = np.zeros(k)
        for x in points:
            with np.errstate(all="ignore"):
                slopes, shapes = self._tables([float(v) for v in x])
            slopes = np.array(slopes, dtype=float).reshape(k, d, d)
            shapes = np.array([float(v) for v in shapes])
            if not (np.isfinite(slopes).all() and np.isfinite(shapes).all()):
                continue
            first, second = {}, {}
            for n, (_, i, j) in enumerate(self.entries):
                unit = np.zeros((d, d))
                unit[i, j] = unit[j, i] = shapes[n]
                trace[n] += np.trace(unit)
                first[n] = _form(unit, basis, one)
                second[n] = _form(-slopes[n] - 2 * rate * unit, basis, one)
            program.require(-_form(np.eye(d), basis, one), first, [Block(one, list(basis))])
            program.require(one * 0, second, [Block(one, list(basis))])
        program.objective = {n: -float(t) / len(points) for n, t in enumerate(trace)}
        return scalars(program, deadline)

    # As sums of squares ---------------------------------------------------------------------------------------

    @cached_property
    def inequalities(self) -> list[tuple[Any, ...]]:
        """Per inequality: (identities to try, constant and linear part, the linear part's slope in the rate).

        Raises:
            NotPolynomialError: the formulas do not become polynomials.
        """
        out: list[tuple[Any, ...]] = []
        m = self.matrix(self.c)
        for piece in self.pieces:
            _, constant, linear, tries = self._translated(m - sp.eye(self.d), piece)
            out.append((tries, constant, linear, {}))
            (names, constant, low, tries), (other, _, high, _) = (
                self._translated(-(self.change + 2 * r * m), piece) for r in PROBES
            )
            if names != other:
                raise NotPolynomialError("the denominators depend on the rate")
            slope = {k: (high[k] - low[k]) / fmpq(2) for k in low}
            middle = {k: (high[k] + low[k]) / fmpq(2) for k in low}
            out.append((tries, constant, middle, slope))
        return out

    def _translated(self, matrix: sp.MatrixBase, piece: Piece) -> tuple[Any, ...]:
        claim = Claim(
            text="",
            states=(*self.states, *self.c),
            matrix=matrix.applyfunc(sp.expand),
            strict=False,
            guards=piece.guards,
            box=(*piece.box, *(((None, None),) * len(self.c))),
        )
        problem, constant, linear = _split(translate(claim), self.c)
        tries = [t for t in attempts(claim, problem, problem.target) if max(len(b.basis) for b in t[2]) <= LARGEST]
        return len(problem.variables), constant, {k: linear.get(k, constant * 0) for k in range(len(self.c))}, tries

    def programs(self, rate: Any, level: int) -> Keeping | None:
        """The sum-of-squares program of this level; None where there is no such level.

        Raises:
            NotPolynomialError: the formulas do not become polynomials.
        """
        program = Keeping(len(self.c))
        value = fmpq(int(rate.p), int(rate.q))
        every = self.inequalities
        if level >= max(len(tries) for tries, *_ in every) or not all(tries for tries, *_ in every):
            return None
        for tries, constant, linear, slope in every:
            _, factor, blocks, free = tries[min(level, len(tries) - 1)]
            at = {k: (p + slope[k] * value if slope else p) * factor for k, p in linear.items()}
            program.require(
                constant * factor,
                {k: p for k, p in at.items() if not p.is_zero()},
                [Block(b.factor, list(b.basis), b.key) for b in blocks],
                free,
            )
        return program if program.prune() else None

    def trace(self) -> dict[int, float]:
        """The mean trace of M over the domain, to be small, as an objective."""
        points = self.points()
        shapes = sp.lambdify([list(self.states)], [w for w, _, _ in self.entries], modules="numpy")
        means = np.mean([[float(v) for v in shapes(list(x))] for x in points], axis=0)
        return {n: -float(means[n]) for n, (_, i, j) in enumerate(self.entries) if i == j}


class Keeping(Program):
    """A program that keeps the free scalars of its exact solution."""

    found: list[fmpq] | None = None

    def exact(self, values: np.ndarray, deadline: Deadline) -> list[fmpq] | None:
        self.found = super().exact(values, deadline)
        return self.found


def scalars(program: Program, deadline: Deadline) -> np.ndarray | None:
    """The free scalars of the best solution in floating point; None where the solver found none."""
    values = program.solve(deadline, margin=False)
    return None if values is None or "Solved" not in program.status else values[: program.unknowns]


def _form(matrix: np.ndarray, basis: Sequence[fmpq_mpoly], one: fmpq_mpoly) -> fmpq_mpoly:
    """yᵀ(matrix)y."""
    total = one * 0
    for i, y in enumerate(basis):
        for j, z in enumerate(basis):
            if matrix[i, j] != 0:
                total = total + y * z * fmpq(*float(matrix[i, j]).as_integer_ratio())
    return total


def _split(problem: Semialgebraic, c: Sequence[sp.Symbol]):
    """The translated problem without the symbols c: (problem, its part without c, {k: the factor of c_k})."""
    index = {s: k for k, s in enumerate(c)}
    keep = [n for n, s in enumerate(problem.variables) if s not in index]
    which = {n: index[s] for n, s in enumerate(problem.variables) if s in index}
    context = ring(max(len(keep), 1))

    def plain(poly: fmpq_mpoly) -> fmpq_mpoly:
        return context.from_dict({tuple(m[n] for n in keep) or (0,): v for m, v in poly.to_dict().items()})

    parts: dict[int | None, dict] = {}
    largest: dict[tuple[int, ...], fmpq] = {}
    for m, value in problem.target.to_dict().items():
        owners = [n for n in which if m[n]]
        if len(owners) > 1 or any(m[n] > 1 for n in owners):
            raise NotPolynomialError("the inequality is not linear in the coefficients of the metric")
        owner = which[owners[0]] if owners else None
        rest = tuple(m[n] for n in keep) or (0,)
        parts.setdefault(owner, {})[rest] = value
        largest[rest] = max(largest.get(rest, fmpq(0)), abs(value))
    linear = {k: context.from_dict(terms) for k, terms in parts.items() if k is not None}
    constant = context.from_dict(parts.get(None, {}))
    reduced = replace(
        problem,
        variables=tuple(problem.variables[n] for n in keep),
        context=context,
        target=context.from_dict(largest),
        guards=[plain(g) for g in problem.guards],
        open_guards=[plain(g) for g in problem.open_guards],
        equalities=[plain(h) for h in problem.equalities],
        multipliers=[plain(m) for m in problem.multipliers],
    )
    return reduced, constant, linear


def _points(piece: Piece, domain: Domain | None, states, rng: np.random.Generator, n: int) -> list[np.ndarray]:
    """Points of the domain: random ones, and some with coordinates at the ends of the box."""
    if domain is None:
        return [
            *rng.normal(size=(n, len(states))),
            *(4 * rng.normal(size=(n // 4, len(states)))),
            np.zeros(len(states)),
        ]
    inside = domain.sample(rng, n, states)
    ends = inside.copy()
    for i, (low, high) in enumerate(piece.box):
        for end in (low, high):
            if end is not None:
                ends[rng.random(len(ends)) < 0.4, i] = float(end)
    good = domain.contains(ends, states)
    return [*inside, *ends[np.atleast_1d(good)]]
