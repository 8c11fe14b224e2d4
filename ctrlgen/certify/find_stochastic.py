"""Synthesis of stochastic barriers: the program that minimises γ + cT, rounded, and verified from scratch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import sympy as sp
from flint import fmpq, fmpq_mpoly

from ctrlgen.certify.find_barrier import check_apart
from ctrlgen.certify.regular import noise_entries, regular
from ctrlgen.certify.stochastic import ProbabilityBound, StochasticBarrier, check_horizon
from ctrlgen.certify.unknown import Condition, Coordinates, Setting, simple_vectors, too_large
from ctrlgen.domain import Domain
from ctrlgen.field import VectorField, diffusion_matrix
from ctrlgen.prove.claim import Deadline, Status
from ctrlgen.prove.polynomial import NotPolynomialError
from ctrlgen.prove.program import Program, monomials

SLACKS = (1e-3, 1e-2, 0.1)  # how much of the optimum is given up for an interior, from which rounding is safe
USELESS = 0.999  # bounds above this say nothing
DIGITS = (3, 4, 6, 9)


def find_stochastic(
    f: VectorField,
    diffusion: Any,
    degree: int,
    regions: tuple[Domain, Domain, Domain | None],
    horizon: Any,
    method: str,
    deadline: Deadline,
) -> ProbabilityBound:
    """What `find_barrier` does with a diffusion; its arguments are checked, but for the horizon and the diffusion."""
    span = check_horizon(horizon)
    noise, _, why = diffusion_matrix(diffusion, f.states)
    words: list[str] = []
    best: ProbabilityBound | None = None
    parts = [("f", f, 0), ("G", noise_entries(diffusion, f.states), 0)]
    smooth = regular(parts, f.states, regions[2], method, deadline.part(0.2))
    if f.exprs is None or noise is None:
        words.append(f.why_no_formula or why)
    elif any(s.outcome.status is not Status.PROVED for s in smooth):
        words += [f"{s.claim.text}: {s.outcome.reason}" for s in smooth if s.outcome.status is not Status.PROVED]
    else:
        for barrier in _barriers(f, noise, degree, regions, span, deadline, words):
            growth = barrier.field.generator(f, diffusion)
            verdict = barrier.bound(growth, regions, span, method, deadline.part(0.5))
            if verdict.status is Status.PROVED and (best is None or _value(verdict) < _value(best)):
                best = replace(verdict, found=barrier, f=f, steps=(*verdict.steps, *smooth))
                break
            words.append(f"a candidate was not proved: {verdict.reason[:200]}")
            if deadline.over:
                break
    if best is not None:
        return replace(best, seconds=deadline.spent)
    check_apart(regions[0], regions[1], f.states)
    return ProbabilityBound(
        claim=f"a polynomial B of degree {degree} bounds the probability of reaching unsafe",
        status=Status.UNDECIDED,
        method="exact",
        reason="no barrier was found; " + ("; ".join(dict.fromkeys(words)) or "time-out"),
        seconds=deadline.spent,
    )


def _value(verdict: ProbabilityBound) -> float:
    return 1.0 if verdict.probability is None else verdict.probability


def _barriers(
    f: VectorField,
    noise: sp.MatrixBase,
    degree: int,
    regions: tuple[Domain, Domain, Domain | None],
    span: sp.Expr,
    deadline: Deadline,
    words: list[str],
) -> Iterator[StochasticBarrier]:
    """Candidates, the tightest first; `words` collects why there are no more."""
    start, bad, domain = regions
    exponents = monomials(f.dim, 0, degree)
    count = len(exponents)
    try:
        here = Coordinates.of(f.states, domain, [start, bad], f.formulas())
        conditions = _conditions(f, noise, here, exponents, regions)
    except (NotPolynomialError, TypeError) as error:
        words.append(f"not polynomial: {error}")
        return
    weight = 0.0 if span is sp.oo else float(span)
    optima = []
    for extra in (0, 2):
        program = _program(conditions, count, extra, weight)
        if too_large(program):
            words.append(f"{extra} degrees more: too large")
            continue
        program.objective = {count: -1.0, count + 1: -weight}
        values = program.solve(deadline.part(0.3), margin=False)
        if values is None:
            words.append(f"{extra} degrees more: {program.status}")
            continue
        optima.append((float(values[count] + weight * values[count + 1]), extra))
        words.append(f"{extra} degrees more: a bound of {optima[-1][0]:.6g} ({program.status})")
    for optimum, extra in sorted(optima, key=lambda o: (round(o[0], 3), o[1])):
        if optimum > USELESS:
            continue
        for slack in SLACKS:
            program = _program(conditions, count, extra, weight)
            most = optimum + slack * max(optimum, 1e-2)
            program.rows.append(({count: -1.0, count + 1: -weight}, -most))
            values = program.solve(deadline.part(0.3))
            if values is None or program.margin < -1e-7:
                continue
            for short in simple_vectors(values[:count], DIGITS):
                if deadline.over:
                    return
                yield StochasticBarrier(here.formula(short, exponents), f.states)


def _conditions(
    f: VectorField,
    noise: sp.MatrixBase,
    here: Coordinates,
    exponents: Sequence[tuple[int, ...]],
    regions: tuple[Domain, Domain, Domain | None],
) -> list[Condition]:
    """B ≥ 0 and c - 𝓛B ≥ 0 on the domain, γ - B ≥ 0 on initial, B ≥ 1 on unsafe; unknown: the coefficients, γ, c."""
    start, bad, domain = regions
    d, widths = f.dim, [w for _, w in here.shifts]
    pairs = [(i, j) for i in range(d) for j in range(d)]
    rates = [e / w for e, w in zip(f.formulas(), widths, strict=True)]
    rates += [noise[i, j] / (2 * widths[i] * widths[j]) for i, j in pairs]
    out = []
    for s in here.settings(rates, domain):
        powers, zero = s.powers(exponents), s.one * 0
        out.append(Condition(s, [*(s.one * p for p in powers), zero, zero]))
        out.append(Condition(s, [*(-_generator(s, p, d, pairs) for p in powers), zero, s.one]))
    for s in here.settings([], start):
        out.append(Condition(s, [*(-p for p in s.powers(exponents)), s.one, s.one * 0]))
    for s in here.settings([], bad):
        out.append(Condition(s, [*s.powers(exponents), s.one * 0, s.one * 0], 1))
    return out


def _generator(s: Setting, poly: fmpq_mpoly, d: int, pairs: Sequence[tuple[int, int]]) -> fmpq_mpoly:
    """D·(∇p·f + ½ tr(G Gᵀ ∇²p)), where the setting's forms are D·f, then D·½ G Gᵀ row by row."""
    out = s.along(poly, d)
    for (i, j), a in zip(pairs, s.forms[d:], strict=True):
        out = out + poly.derivative(i).derivative(j) * a
    return out


def _program(conditions: list[Condition], count: int, extra: int, weight: float) -> Program:
    """The program in (coefficients, γ, c), with γ, c ≥ 0; c = 0 where the horizon is infinite (weight 0)."""
    program = Program(count + 2)
    for c in conditions:
        s = c.setting
        total = s.degree(c.forms) + extra
        known = c.forms[:-1] if weight == 0.0 else c.forms
        linear = {i: p for i, p in enumerate(known) if not p.is_zero()}
        if not linear:
            continue  # a function whose mean does not move at all
        program.require(s.one * -c.level, linear, s.blocks(total, 2 if extra else 1), s.free(total))
    program.rows += [({count: 1.0}, 0.0), ({count + 1: 1.0}, 0.0)]
    if weight == 0.0:
        program.equal.append(({count + 1: fmpq(1)}, fmpq(0)))
    return program
