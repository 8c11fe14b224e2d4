"""Synthesis of barriers: coefficients by a sum-of-squares program, made rational, and verified from scratch.

What a solver returns is a candidate and no more: the verdict is that of `BarrierFunction.verify` or
`StochasticBarrier.verify` on the rounded formula.

Where f vanishes, so does ḣ = ∇h·f, and a program that asks ḣ ≥ 0 there has no interior: every rounding breaks it. Its
squares must vanish there as well, so they are taken from the ideal of f, and the coefficients of h from the rational
subspace for which that is possible. On this face the program has an interior again.

References: Prajna, Jadbabaie and Pappas, IEEE TAC 52 (2007) 1415; Permenter and Parrilo, Math. Program. 171 (2018) 1,
for facial reduction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import sympy as sp
from flint import fmpq, fmpq_mpoly

from ctrlgen.certify.barrier import BarrierFunction, BarrierVerdict, check_gain, check_sets, common_point
from ctrlgen.certify.lyapunov import Time, check_time
from ctrlgen.certify.unknown import (
    Condition,
    Coordinates,
    Ideal,
    Setting,
    Zeros,
    compatible,
    equilibria,
    kernel,
    simple_vectors,
    too_large,
)
from ctrlgen.domain import Domain
from ctrlgen.field import VectorField, symbols
from ctrlgen.prove.claim import Deadline, Status
from ctrlgen.prove.decide import check_method, check_timeout
from ctrlgen.prove.polynomial import NotPolynomialError, fmpq_of
from ctrlgen.prove.program import Program, monomials, to_float

GAINS = (0, -1, sp.Rational(-1, 4), -4)  # tried in turn where none is asked for
INTERIOR = 1e-7  # margins above this survive rounding
TRIAL = 0.1  # part of the time that is left which the proof of one candidate may take
HOPELESS = -1e-5  # margins below this are infeasible, whatever the rounding


@dataclass(frozen=True, kw_only=True, repr=False)
class FoundBarrier(BarrierVerdict):
    """A verdict with the barrier that it is about.

    Args:
        found: the barrier function, or None where none was found.
        gain: the gain it was proved with, also the default of `found.verify`.
    """

    found: BarrierFunction | None = None
    gain: sp.Expr | None = None


def find_barrier(
    f: Any,
    states: Sequence[str | sp.Symbol],
    degree: int,
    initial: Domain | None = None,
    unsafe: Domain | None = None,
    domain: Domain | None = None,
    *,
    gain: Any = None,
    diffusion: Any = None,
    horizon: Any = None,
    method: str = "auto",
    timeout: float = 30.0,
    time: Time | None = None,
) -> Any:
    """Find a polynomial barrier that separates `initial` from `unsafe` along f, and prove it.

    Args:
        f: vector field, polynomial or rational, or with sin, cos, exp, sqrt, ... of the states.
        states: names or symbols.
        degree: of h, at most.
        initial, unsafe, domain: as in `BarrierFunction.verify`.
        gain: the condition is ḣ ≥ -gain·h. When omitted, 0 is tried first and then other rates; the verdict says which
            it is, and `found.gain` keeps it.
        diffusion: G of dX = f dt + G dW. A `StochasticBarrier` is found then that bounds the probability of reaching
            unsafe within `horizon`; the verdict has `.probability`.
        horizon: duration > 0, with a diffusion only; inf is allowed.
        method: the engine that verifies candidates, as in `verify`.
        timeout: seconds for everything.
        time: "continuous", "discrete", or None: what f says of itself, else continuous.

    Returns:
        A `FoundBarrier`, PROVED with `.found`, or UNDECIDED with the reasons and found None. With a diffusion, a
        `ProbabilityBound` instead.

    Raises:
        ValueError: degree is not a positive integer; a set is missing, empty, or of zero volume; initial and unsafe
            have a point in common; f has the wrong length.
    """
    if isinstance(degree, (bool, np.bool_)) or not isinstance(degree, (int, np.integer)) or degree < 1:
        raise ValueError(f"degree must be a positive integer; got {degree!r}.")
    check_method(method)
    deadline = check_timeout(timeout)
    states = symbols(states)
    f = VectorField(f, states)
    stepwise = check_time(time, f)
    start, bad = check_sets(states, initial=initial, unsafe=unsafe, domain=domain)
    if diffusion is not None or horizon is not None:
        if diffusion is None or horizon is None or stepwise:
            raise ValueError(
                "diffusion and horizon must be given together, for an f in continuous time; got "
                f"diffusion={'None' if diffusion is None else '...'}, horizon={horizon}{', discrete time' * stepwise}."
            )
        from ctrlgen.certify.find_stochastic import find_stochastic

        return find_stochastic(f, diffusion, int(degree), (start, bad, domain), horizon, method, deadline)
    rates = [check_gain(g, stepwise) for g in (GAINS if gain is None else (gain,))]
    found, words = _search(f, int(degree), (start, bad, domain), rates, stepwise, method, deadline)
    if found is not None:
        return replace(found, seconds=deadline.spent)
    check_apart(start, bad, states)
    return FoundBarrier(
        claim=f"a polynomial h of degree {degree} keeps trajectories from initial out of unsafe",
        status=Status.UNDECIDED,
        method="exact",
        reason=f"no barrier was found; {words}",
        seconds=deadline.spent,
    )


def check_apart(initial: Domain, unsafe: Domain, states: tuple[sp.Symbol, ...]) -> None:
    """ValueError if a point is found that is both initial and unsafe; asked only where no barrier was found."""
    point = common_point(initial, unsafe, states)
    if point is not None:
        raise ValueError(
            f"initial and unsafe must not meet; {tuple(map(str, point))} lies in both, so no barrier separates them."
        )


# The search ------------------------------------------------------------------------------------------------------


def _search(
    f: VectorField,
    degree: int,
    regions: tuple[Domain, Domain, Domain | None],
    rates: Sequence[sp.Expr],
    stepwise: bool,
    method: str,
    deadline: Deadline,
) -> tuple[FoundBarrier | None, str]:
    """A proved barrier, or the reason why there is none."""
    start, bad, domain = regions
    exponents = monomials(f.dim, 0, degree)
    try:
        here = Coordinates.of(f.states, domain, [start, bad], f.formulas())
        flow = _flow(f, here, exponents, domain, stepwise)
        outer = [Condition(s, s.powers(exponents)) for s in here.settings([], start)]
        outer += [Condition(s, [-p for p in s.powers(exponents)], 1) for s in here.settings([], bad)]
    except (NotPolynomialError, TypeError) as error:
        return None, f"not polynomial: {error}"
    engine = "exact" if method == "auto" else method
    faces = [] if stepwise else _faces(f, [s for s, _, _ in flow], here, domain)
    looks, words = _Looks(f, regions, stepwise, here, exponents), []
    for extra in (0, 2):
        for rate in rates:
            share = deadline.part(0.5)
            number = fmpq_of(rate) if rate.is_Rational else None
            if number is None:
                return None, f"gain must be rational for a search; got {rate}"
            name = f"gain {rate}" + (f", {extra} degrees more" if extra else "")
            inner = [
                Condition(s, [a + b * number for a, b in zip(change, kept, strict=True)]) for s, change, kept in flow
            ]
            for face, values in _candidates(inner, outer, extra, faces if rate == 0 else (), share):
                if not isinstance(values, list):
                    words.append(f"{name}: {face}")
                    continue
                if not looks.good(values, float(rate)):
                    continue
                h = BarrierFunction(here.formula(values, exponents), f.states)
                h.gain = rate
                verdict = h.settled(f, regions, rate, stepwise, engine, share.part(TRIAL, 1.0))
                if verdict.status is Status.PROVED:
                    kept = {k: getattr(verdict, k) for k in BarrierVerdict.__dataclass_fields__}
                    return FoundBarrier(**kept, found=h, gain=rate), ""
                words.append(f"{name}{face}: a candidate was not proved")
                if share.over:
                    break
            if deadline.over:
                return None, "; ".join(dict.fromkeys([*words, "time-out"]))
    return None, "; ".join(dict.fromkeys(words))


class _Looks:
    """Points at which a candidate is looked at before a proof is tried."""

    def __init__(
        self,
        f: VectorField,
        regions: tuple[Domain, Domain, Domain | None],
        stepwise: bool,
        here: Coordinates,
        exponents: Sequence[tuple[int, ...]],
    ):
        rng = np.random.default_rng(0)
        points = []
        for part in regions:
            try:
                points.append(3 * rng.normal(size=(300, f.dim)) if part is None else part.sample(rng, 300, f.states))
            except ValueError:
                points.append(np.empty((0, f.dim)))
        powers = np.array(exponents)
        centre, width = (np.array([float(v) for v in side]) for side in zip(*here.shifts, strict=True))
        self.start, self.bad, self.inside = (_powers((p - centre) / width, powers) for p in points)
        x = points[2]
        speed = sp.lambdify([f.states], list(f.formulas()), ["scipy", "numpy"])
        with np.errstate(all="ignore"):
            moved = np.stack([np.broadcast_to(v, len(x)) for v in speed(x.T)], axis=1)
        z = (x - centre) / width
        if stepwise:
            self.change = _powers((moved - centre) / width, powers) - self.inside
        else:
            self.change = np.zeros_like(self.inside)
            for i in range(f.dim):
                lower = np.maximum(powers - np.eye(f.dim, dtype=int)[i], 0)
                self.change += powers[:, i] * _powers(z, lower) * (moved[:, i] / width[i])[:, None]

    def good(self, values: Sequence[fmpq], rate: float) -> bool:
        """Is nothing wrong at any of them?"""
        v = np.array([to_float(c) for c in values])
        terms = np.abs(self.change) @ np.abs(v)
        slack = self.change @ v + rate * (self.inside @ v)
        return bool((self.start @ v >= 0).all() and (self.bad @ v < 0).all() and not (slack < -1e-9 * terms).any())


def _powers(z: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    """zᵐ at n points (n, d), for k exponents (k, d): (n, k)."""
    return np.prod(z[:, None, :] ** exponents[None], axis=2)


@dataclass(frozen=True)
class Face:
    """Where the squares of ḣ have to vanish; asked for only when the whole program has no interior."""

    name: str
    vanishing: Callable[[], list[Any]]


def _faces(f: VectorField, settings: Sequence[Setting], here: Coordinates, domain: Domain | None) -> list[Face]:
    d = f.dim

    def points() -> list[Any]:
        centre, width = (np.array([float(v) for v in side]) for side in zip(*here.shifts, strict=True))
        found = (equilibria(f.formulas(), f.states, domain) - centre) / width
        return [Zeros(found, s.context) for s in settings]

    def ideals() -> list[Any]:
        return [Ideal([*s.forms[:d], *s.equalities], s.context) for s in settings]

    out = [Face("where f = 0", ideals)]
    if all(s.dim == d for s in settings):
        out.append(Face("of the equilibria in the domain", points))
    return out


def _flow(
    f: VectorField, here: Coordinates, exponents: Sequence[tuple[int, ...]], domain: Domain | None, stepwise: bool
) -> list[tuple[Setting, list[fmpq_mpoly], list[fmpq_mpoly]]]:
    """(setting, D·change of every monomial, D·every monomial) on every piece of the domain."""
    out = []
    if not stepwise:
        speed = [e / w for e, (_, w) in zip(f.formulas(), here.shifts, strict=True)]
        for s in here.settings(speed, domain):
            powers = s.powers(exponents)
            out.append((s, [s.along(p, f.dim) for p in powers], [s.one * p for p in powers]))
        return out
    z = [here.back.get(s, s) for s in f.states]
    now = [sp.Mul(*(a**e for a, e in zip(z, m, strict=True))) for m in exponents]
    following = dict(zip(f.states, f.formulas(), strict=True))
    for s in here.settings([sp.expand(m.xreplace(following) - m) for m in now], domain):
        out.append((s, s.forms, [s.one * p for p in s.powers(exponents)]))
    return out


def _candidates(
    inner: list[Condition], outer: list[Condition], extra: int, faces: Sequence[Face], deadline: Deadline
) -> Iterator[tuple[str, list[fmpq] | None]]:
    """Rational coefficients that are worth verifying: (name, values); values None and a reason where there are none."""
    count = len(outer[0].forms)
    for face in (None, *faces):
        name = f" on the face {face.name}" if face else ""
        ideals = face.vanishing() if face else []
        program, subspace = _program(inner, outer, count, extra, ideals)
        if program is None or too_large(program):
            yield f"only h = 0{name}" if program is None else "too large", None
            continue
        values = program.solve(deadline)
        if values is None or program.margin < HOPELESS:
            told = "" if values is None else f" by {-program.margin:.1e}"
            yield f"infeasible{told}{name} ({program.status})", None
            if face is None:
                return  # a face holds no more than the whole
            continue
        if faces and not face and program.margin < INTERIOR:
            continue
        for short in simple_vectors(values[: program.unknowns]):
            yield name, _combination(subspace, short)
        exact = program.exact(values, deadline)
        if exact is not None:
            yield name, _combination(subspace, exact)
            return
        yield f"no exact solution{name} (margin {program.margin:.1e}, {program.status})", None


def _combination(basis: list[list[fmpq]], values: Sequence[fmpq]) -> list[fmpq]:
    return [
        sum((v[i] * c for v, c in zip(basis, values, strict=True) if c != 0), fmpq(0)) for i in range(len(basis[0]))
    ]


def _program(
    inner: list[Condition], outer: list[Condition], count: int, extra: int, ideals: Sequence[Any] | None
) -> tuple[Program | None, list[list[fmpq]]]:
    """The program for the coefficients, in a subspace of them: (program, basis of the subspace)."""
    subspace = [[fmpq(int(i == k)) for i in range(count)] for k in range(count)]
    parts = []
    products = 2 if extra else 1
    for k, c in enumerate(inner + outer):
        s = c.setting
        total = s.degree(c.forms) + extra
        ideal = ideals[k] if ideals and k < len(inner) else None
        blocks, free = s.blocks(total, products, ideal), s.free(total)
        if ideal is not None:
            subspace = _meet(subspace, compatible(c.forms, blocks, free))
        parts.append((c, blocks, free))
    if not subspace:
        return None, []
    program = Program(len(subspace))
    for c, blocks, free in parts:
        zero = c.setting.one * 0
        linear: dict[int, fmpq_mpoly] = {}
        for j, v in enumerate(subspace):
            poly: Any = sum((form * q for form, q in zip(c.forms, v, strict=True) if q != 0), zero)
            if not poly.is_zero():
                linear[j] = poly
        program.require(c.setting.one * -c.level, linear, blocks, free)
    return program, subspace


def _meet(a: list[list[fmpq]], b: list[list[fmpq]]) -> list[list[fmpq]]:
    """The intersection of two subspaces given by bases; `a` may be everything."""
    if not a or not b:
        return []
    n = len(a[0])
    if len(a) == n:
        return b
    rows = [*kernel(a, n), *kernel(b, n)]  # a basis of each annihilator
    return kernel(rows, n)
