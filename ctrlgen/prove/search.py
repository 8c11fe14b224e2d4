"""Look for a counterexample: sample, descend, and re-evaluate exactly what was found.

Nothing is proved here. A claim is refuted by an exact point at which it fails; otherwise it is UNDECIDED, with the
smallest value that was seen. The left-hand side is divided by a power of the distance to the excepted point, so that a
violation next to an equilibrium, where everything is small, weighs as much as one far from it.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import sympy as sp

from ctrlgen.prove.claim import Claim, Deadline, Outcome, Status
from ctrlgen.prove.tape import Tape
from ctrlgen.prove.witness import round_witness

Box = Sequence[tuple[Any, Any]]
TOUCHING = 1e-7  # relative values below it may be zeros: worth an exact look when the claim is strict
NOISE = 1e-12  # and of this size they may be rounding
FEASIBLE = 1e-8  # constraint violation, relative to the constraint's size over the set
FAR = 1e30


class _Formulas:
    """Symmetric k × k formulas: their least eigenvalue and its gradient, at a point and in batches."""

    def __init__(self, matrix: Any, states: Sequence[sp.Symbol]):
        self.k = matrix.rows
        self.rows, self.columns = np.tril_indices(self.k)
        self.tape = Tape([matrix[int(i), int(j)] for i, j in zip(self.rows, self.columns, strict=True)], states)
        self.weight = np.where(self.rows == self.columns, 1.0, 2.0)

    def _full(self, entries: Any) -> np.ndarray:
        """(K, ...) -> (..., k, k)."""
        entries = np.asarray(entries, dtype=np.float64)
        out = np.empty((*entries.shape[1:], self.k, self.k))
        for value, i, j in zip(entries, self.rows, self.columns, strict=True):
            out[..., i, j] = out[..., j, i] = value
        return out

    def values(self, z: np.ndarray) -> np.ndarray:
        """(d, n) -> (n,)."""
        entries = self.tape.values(z)
        if self.k == 1:
            return entries[0]
        full = self._full(entries)
        good = np.isfinite(full).all(axis=(-2, -1))
        out = np.full(z.shape[1], np.nan)
        out[good] = np.linalg.eigvalsh(full[good])[:, 0]
        return out

    def at(self, z: list[float]) -> tuple[float, list[float]]:
        """Value and gradient at one point."""
        entries = self.tape.at(z)
        if self.k == 1:
            return entries[0], self.tape.slope(z, (1.0,))
        if not all(map(math.isfinite, entries)):
            return math.nan, [0.0] * len(z)
        least, vectors = np.linalg.eigh(self._full(entries))
        v = vectors[:, 0]
        return float(least[0]), self.tape.slope(z, (self.weight * v[self.rows] * v[self.columns]).tolist())


class _Function:
    """A JAX function, (d,) -> (), in float64."""

    def __init__(self, function: Callable, centre: np.ndarray):
        import jax

        self.centre = centre
        self._one = jax.jit(jax.value_and_grad(lambda x: function(x).reshape(())))
        self._many = jax.jit(jax.vmap(lambda x: function(x).reshape(())))

    def values(self, z: np.ndarray) -> np.ndarray:
        """(d, n) -> (n,)."""
        from ctrlgen.precision import float64

        with float64():
            return np.asarray(self._many(np.asarray(z.T + self.centre)))

    def at(self, z: list[float]) -> tuple[float, list[float]]:
        """Value and gradient at one point."""
        from ctrlgen.precision import float64

        with float64():
            value, slope = self._one(np.asarray(z) + self.centre)
        return float(value), np.asarray(slope).tolist()


class _Problem:
    """Minimise a left-hand side over {guards ≥ 0, equalities = 0}, in coordinates z = x - centre."""

    def __init__(
        self,
        matrix: Any,
        guards: Sequence[sp.Expr],
        equalities: Sequence[sp.Expr],
        states: Sequence[sp.Symbol],
        box: Box,
        centre: Sequence[Any] | None,
        function: Callable | None = None,
    ):
        self.d = len(states)
        self.excepted = centre is not None
        shift = [sp.S.Zero] * self.d if centre is None else list(centre)
        self.centre = np.array([float(c) for c in shift])
        move = {s: s + c for s, c in zip(states, shift, strict=True) if c != 0}

        def moved(e: Any) -> Any:
            if not move:
                return e
            e = e.xreplace(move)
            return sp.expand(e) if e.is_polynomial(*states) else e

        self.left = (
            _Formulas(sp.Matrix(matrix).applyfunc(moved), states)
            if function is None
            else _Function(function, self.centre)
        )
        bound = [sp.Mul(h - s, s - o) for s, (o, h) in zip(states, box, strict=True) if None not in (o, h)]
        self.guards = Tape([moved(g) for g in guards if g not in bound], states)
        self.equalities = Tape([moved(e) for e in equalities], states)
        self.low = np.array([-np.inf if low is None else float(low) for low, _ in box]) - self.centre
        self.high = np.array([np.inf if high is None else float(high) for _, high in box]) - self.centre
        self.powers = (0.0, 0.0)
        self.scales = np.ones(self.guards.size), np.ones(self.equalities.size)

    # Points --------------------------------------------------------------------------------------------------

    def draw(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """About 2 n points, (d, N): across the box, at all distances from the centre, on faces and guard surfaces."""
        d, finite = self.d, np.isfinite(self.low) & np.isfinite(self.high)
        bounded = bool(finite.all())
        across = np.where(rng.uniform(size=(1, n)) < 0.5, 1.0, 10.0 ** rng.uniform(-2, 1, size=(d, n)))
        across = across * rng.normal(size=(d, n)) * 10.0 ** rng.uniform(-2, 1 if bounded else 2.5, size=n)
        low, high = np.where(finite, self.low, 0.0)[:, None], np.where(finite, self.high, 0.0)[:, None]
        across = np.where(finite[:, None], low + (high - low) * rng.uniform(size=(d, n)), across)
        direction = rng.normal(size=(d, n))
        direction /= np.linalg.norm(direction, axis=0)
        size = float(np.max(np.abs(np.concatenate([low, high])))) if bounded else 1e3
        middle = np.zeros((d, 1)) if self.excepted or not bounded else (low + high) / 2
        radial = middle + direction * size * 10.0 ** rng.uniform(-4, 0.2, size=n)
        z = [across, radial, middle, np.zeros((d, 1))]
        sides = [(i, side) for i in range(d) for side in (self.low[i], self.high[i]) if np.isfinite(side)]
        if sides:
            face = across[:, : max(n // 3, 1)].copy()
            for j in range(face.shape[1]):
                i, side = sides[j % len(sides)]
                face[i, j] = side
            corner = np.where(rng.uniform(size=(d, 64)) < 0.5, self.low[:, None], self.high[:, None])
            z += [face, np.where(np.isfinite(corner), corner, across[:, :1])]
        points = np.concatenate(z, axis=1)
        for j in range(self.guards.size):
            near = points[:, rng.integers(0, points.shape[1], size=max(n // 4, 50))]
            points = np.concatenate([points, self._onto(self.guards, j, near)], axis=1)
        for _ in range(3 if self.equalities.size > 1 else 1):
            for j in range(self.equalities.size):
                points = self._onto(self.equalities, j, points)
        points = np.clip(points, self.low[:, None], self.high[:, None])
        return points[:, np.isfinite(points).all(axis=0)]

    def _onto(self, tape: Tape, j: int, z: np.ndarray) -> np.ndarray:
        """Newton steps onto the surface where the j-th formula vanishes."""
        for _ in range(5):
            weights = np.zeros((tape.size, z.shape[1]))
            weights[j] = 1.0
            slope = tape.pullback(z, weights)
            square = (slope * slope).sum(axis=0)
            with np.errstate(all="ignore"):
                step = np.where(square > 0, tape.values(z)[j] * slope / square, 0.0)
            z = z - np.nan_to_num(step, nan=0.0, posinf=0.0, neginf=0.0)
        return z

    def infeasibility(self, z: np.ndarray) -> np.ndarray:
        """How far points are from the set, relative to the size of the constraints, (d, n) -> (n,)."""
        worst = np.zeros(z.shape[1])
        for tape, scale, sign in ((self.guards, self.scales[0], -1), (self.equalities, self.scales[1], 0)):
            if tape.size:
                values = tape.values(z) / scale[:, None]
                off = np.maximum(-values, 0) if sign else np.abs(values)
                worst = np.maximum(worst, np.nan_to_num(off, nan=FAR).max(axis=0))
        return worst

    def measure(self, z: np.ndarray) -> None:
        """Sizes of the constraints, and the powers with which the left-hand side falls and grows, from samples."""
        for tape, scale in zip((self.guards, self.equalities), self.scales, strict=True):
            if tape.size:
                typical = np.nanmedian(np.abs(tape.values(z[:, :500])), axis=1)
                scale[:] = np.where(np.isfinite(typical) & (typical > 0), typical, 1.0)
        direction = z[:, np.abs(z).max(axis=0) > 0][:, :64]
        if direction.shape[1] == 0:
            return
        direction = direction / np.linalg.norm(direction, axis=0)

        def power(small: float, large: float) -> float:
            a, b = (np.abs(self.left.values(direction * r)) for r in (small, large))
            good = np.isfinite(a) & np.isfinite(b)
            a, b = (v[good].max() if good.any() else 0.0 for v in (a, b))
            return float(np.round(np.log(b / a) / np.log(large / small))) if min(a, b) > 1e-290 else 0.0

        lowest = min(max(power(1e-3, 1e-2), 0.0), 12.0) if self.excepted else 0.0
        unbounded = not (np.isfinite(self.low) & np.isfinite(self.high)).all()
        self.powers = lowest, min(max(power(1e3, 1e4), lowest), 16.0) if unbounded else lowest

    def divisor(self, z: np.ndarray, grown: bool = True) -> Any:
        """|z|^m (1 + |z|²)^((M - m)/2), or |z|^m alone."""
        r2, (m, big) = np.clip((z * z).sum(axis=0), 1e-24, 1e15), self.powers
        return r2 ** (m / 2) * ((1 + r2) ** ((big - m) / 2) if grown else 1.0)

    # Descents ------------------------------------------------------------------------------------------------

    def relative(self, z: np.ndarray, grown: bool = True) -> tuple[float, np.ndarray]:
        """The left-hand side over its divisor at one point, and its gradient."""
        value, slope = self.left.at(z.tolist())
        if not math.isfinite(value):
            return FAR, np.zeros(self.d)
        m, big = self.powers if grown else (self.powers[0], self.powers[0])
        r2 = min(max(float(z @ z), 1e-24), 1e15)
        by = r2 ** (m / 2) * (1 + r2) ** ((big - m) / 2)
        log_slope = (m / r2 + (big - m) / (1 + r2)) * z
        return value / by, (np.asarray(slope) - value * log_slope) / by

    def _constraints(self) -> list[dict[str, Any]]:
        out = []
        for tape, scale, kind in ((self.guards, self.scales[0], "ineq"), (self.equalities, self.scales[1], "eq")):
            if tape.size:
                units = np.eye(tape.size).tolist()
                out.append(
                    {
                        "type": kind,
                        "fun": lambda z, t=tape, s=scale: np.nan_to_num(np.array(t.at(z.tolist())) / s, nan=-1.0),
                        "jac": lambda z, t=tape, s=scale, u=units: (
                            np.array([t.slope(z.tolist(), row) for row in u]) / s[:, None]
                        ),
                    }
                )
        return out

    def descend(self, start: np.ndarray, iterations: int = 40, grown: bool = True) -> tuple[np.ndarray, float]:
        """A local minimum of the relative left-hand side from a start, (d,), and how far it is from the set."""
        from scipy.optimize import minimize

        bounds, constraints = None, self._constraints()
        if np.isfinite(self.low).any() or np.isfinite(self.high).any():
            bounds = list(zip(self.low, self.high, strict=True))
        value, slope = self.relative(start, grown)
        unit = max(abs(value), float(np.linalg.norm(slope)) * 0.1) if 0 < abs(value) < FAR else 1.0

        def scaled(z: np.ndarray) -> tuple[float, np.ndarray]:
            value, slope = self.relative(z, grown)
            return value / unit, slope / unit

        with np.errstate(all="ignore"):
            solution = minimize(
                scaled,
                start,
                jac=True,
                bounds=bounds,
                constraints=constraints,
                method="SLSQP",
                # sharper where a violation can be as thin as the constraint that hides it
                options={"maxiter": iterations, "ftol": 1e-15 if constraints else 1e-13},
            )
        z = np.clip(solution.x, self.low, self.high) if np.isfinite(solution.x).all() else start
        return z, float(self.infeasibility(z[:, None])[0])

    def starts(self, z: np.ndarray, rank: np.ndarray, count: int) -> list[np.ndarray]:
        """`count` points of low rank that are not next to each other."""
        order = np.argsort(rank)[:400]
        place = np.arcsinh(10 * z[:, order] / np.maximum(1e-3, np.percentile(np.abs(z), 75)))
        chosen: list[int] = []
        free = np.isfinite(rank[order])
        while len(chosen) < count and free.any():
            best = int(np.argmax(free))
            chosen.append(best)
            free &= np.abs(place - place[:, best : best + 1]).max(axis=0) > 0.5
        return [z[:, order[i]] for i in chosen]


def minimise(
    expr: Any,
    guards: Sequence[sp.Expr],
    states: Sequence[sp.Symbol],
    box: Box | None = None,
    equalities: Sequence[sp.Expr] = (),
    *,
    points: Sequence[Any] = (),
    starts: int = 12,
    samples: int = 1500,
    seed: int = 0,
) -> tuple[np.ndarray | None, float]:
    """A numerical minimum of a formula over {guards ≥ 0, equalities = 0, box}: float64, no proof of anything.

    Args:
        expr: the formula, or a symmetric SymPy matrix, whose smallest eigenvalue is minimised.
        guards, equalities: formulas of the states.
        states: d symbols.
        box: one (lower, upper) a state, None where unbounded.
        points: starting points to use beside the random ones, each (d,).
        starts: local descents.
        samples: random points to choose the starts from.
        seed: of the random points.

    Returns:
        (x, value): x (d,) satisfies the constraints to 1e-8 of their size, and is None (value inf) if none was found.

    Raises:
        NotImplementedError: a formula holds a function that has no float code.
    """
    matrix = expr if isinstance(expr, sp.MatrixBase) else sp.Matrix([[expr]])
    problem = _Problem(matrix, guards, equalities, states, box or ((None, None),) * len(states), None)
    z = problem.draw(np.random.default_rng(seed), samples)
    problem.measure(z)
    problem.powers = (0.0, 0.0)
    off = problem.infeasibility(z)
    values = np.nan_to_num(problem.left.values(z), nan=FAR)
    inside = off <= FEASIBLE
    best, least = None, math.inf
    if inside.any():
        i = int(np.argmin(np.where(inside, values, np.inf)))
        best, least = z[:, i], float(values[i])
    spread = float(np.percentile(np.abs(values), 75)) or 1.0
    chosen = [np.asarray(p, dtype=np.float64) for p in points]
    for start in chosen + problem.starts(z, values + spread * off, starts):
        x, away = problem.descend(start, 200)
        value = problem.left.at(x.tolist())[0]
        if away <= FEASIBLE and value < least:
            best, least = x, value
    return best, least


def decide(claim: Claim, deadline: Deadline) -> Outcome:
    """Look for an exact point at which the claim fails. REFUTED with that point, or UNDECIDED; never PROVED."""
    begun = time.monotonic()
    try:
        hunt = _Hunt(claim, deadline)
    except NotImplementedError as error:
        return Outcome(status=Status.UNDECIDED, method="search", reason=str(error), seconds=time.monotonic() - begun)
    witness = hunt.run()
    seconds = time.monotonic() - begun
    effort = f"{hunt.count} points and {hunt.descents} descents"
    if witness is not None:
        from ctrlgen.prove.witness import violates

        return Outcome(
            status=Status.REFUTED,
            method="search",
            reason=f"the claim fails at an exact point, found among {effort}",
            margin=violates(claim, witness)[1],
            witness=witness,
            seconds=seconds,
        )
    margin = None if math.isinf(hunt.least) else hunt.least
    if claim.matrix is None and margin is not None and (margin < 0 or (claim.strict and margin == 0)):
        where = ", ".join(f"{v:.6g}" for v in hunt.where)
        reason = f"the function is {margin:.3g} at ({where}) in float64, which cannot be checked without a formula"
    else:
        reason = f"no violation in {effort}"
    return Outcome(status=Status.UNDECIDED, method="search", reason=reason, margin=margin, seconds=seconds)


class _Hunt:
    """One search for a counterexample."""

    def __init__(self, claim: Claim, deadline: Deadline):
        self.claim, self.deadline = claim, deadline
        self.problem = _Problem(
            claim.matrix,
            (*claim.guards, *claim.open_guards),
            claim.equalities,
            claim.states,
            claim.box,
            claim.except_at,
            claim.function if claim.matrix is None else None,
        )
        self.count = self.descents = 0
        self.least, self.where = math.inf, np.full(claim.dim, np.nan)

    def run(self) -> tuple[sp.Expr, ...] | None:
        """An exact counterexample, or None."""
        d = self.problem.d
        z = self.problem.draw(np.random.default_rng(0), 700 + 300 * d)
        self.problem.measure(z)
        return self._round(z, 6 + 3 * d)

    def _look(self, z: np.ndarray, nudge: bool = True) -> tuple[sp.Expr, ...] | None:
        return round_witness(self.claim, z + self.problem.centre, nudge) if self.claim.matrix is not None else None

    def _see(self, z: np.ndarray, value: float) -> None:
        if value < self.least:
            self.least, self.where = value, z + self.problem.centre

    def _round(self, z: np.ndarray, starts: int) -> tuple[sp.Expr, ...] | None:
        """Look at the sample, then descend from its lowest points."""
        problem, claim = self.problem, self.claim
        self.count += z.shape[1]
        off = problem.infeasibility(z)
        values = np.nan_to_num(problem.left.values(z), nan=FAR, posinf=FAR)
        values[(np.abs(z).max(axis=0) == 0) & problem.excepted] = FAR
        relative = values / problem.divisor(z)
        inside = off <= FEASIBLE
        plain = values / problem.divisor(z, grown=False)
        rest = inside if inside.any() else np.ones_like(inside)
        typical, level = (float(np.median(np.abs(v[rest]))) or 1.0 for v in (relative, plain))
        reach = min(float(np.median(np.abs(z[:, rest]).max(axis=0))), 1.0)
        if inside.any():
            i = int(np.argmin(np.where(inside, values, np.inf)))
            self._see(z[:, i], float(values[i] if off[i] == 0 else max(values[i], 0.0)))
            broken = inside & ((values <= 0) if claim.strict else (values < 0))
            for key in (relative, values):
                for i in np.argsort(np.where(broken, key, np.inf))[:2]:
                    if broken[i] and (witness := self._look(z[:, i], nudge=False)) is not None:
                        return witness
        halves = [problem.starts(z, k / unit + off, starts // 2) for k, unit in ((relative, typical), (plain, level))]
        results: list[tuple[float, np.ndarray]] = []
        for grown, start in _alternate(*halves):
            if self.deadline.over:
                break
            x, away = problem.descend(start, grown=grown)
            self.descents += 1
            value, distance = problem.left.at(x.tolist())[0], float(np.abs(x).max())
            part = problem.relative(x, grown)[0] / (typical if grown else level)
            if away > FEASIBLE or not math.isfinite(value) or (problem.excepted and distance < 1e-9):
                continue
            self._see(x, value if away == 0 else max(value, 0.0))
            if value < 0 and part < -NOISE and (witness := self._look(x)) is not None:
                return witness
            at_exception = problem.excepted and distance < 0.05 * reach
            if value < 0 or (claim.strict and part < TOUCHING and not at_exception):
                results.append((part, x))
        tried: list[np.ndarray] = []
        for _, x in sorted(results, key=lambda r: r[0]):
            if len(tried) < 6 and not any(np.abs(x - t).max() <= 1e-6 * (1 + np.abs(t).max()) for t in tried):
                tried.append(x)
                if (witness := self._look(x)) is not None:
                    return witness
        return None


def _alternate(first: list[np.ndarray], second: list[np.ndarray]) -> list[tuple[bool, np.ndarray]]:
    """The two lists by turns, each start marked by whether it is of the first."""
    pairs = itertools.zip_longest(first, second)
    return [(i == 0, start) for pair in pairs for i, start in enumerate(pair) if start is not None]
