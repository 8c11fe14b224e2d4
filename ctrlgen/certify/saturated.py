"""A quadratic Lyapunov function of a bilinear system under saturated linear feedback, on an ellipsoid.

ż = Λz + Σ uⱼ(bⱼ + Nⱼz) with uⱼ = -sat(kⱼᵀz). Where |kⱼᵀz| ≤ reach·limitⱼ it is uⱼ = -θⱼkⱼᵀz with θⱼ from a known share
to 1, so that ż = (Λ + Σ Aⱼ)z with Aⱼ = uⱼNⱼ - θⱼbⱼkⱼᵀ, whose (u, θ) lies in a box. With V = zᵀPz and Sⱼ ⪰ PAⱼ + AⱼᵀP at
the four corners of each box, V̇ ≤ zᵀ(ΛP + PΛ + ΣSⱼ)z. A semidefinite program finds P and the Sⱼ; rationals decide.

References: Boyd, El Ghaoui, Feron and Balakrishnan, Linear Matrix Inequalities in System and Control Theory (1994),
§5.1 (polytopic inclusions); Hu and Lin, Control Systems with Actuator Saturation (2001), ch. 7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from importlib import import_module
from typing import Any

import numpy as np

from ctrlgen.certify.pieces import at_least
from ctrlgen.certify.premise import premise, shown_down
from ctrlgen.certify.verdict import Step
from ctrlgen.energies.spectral import down
from ctrlgen.energies.tails import fractions
from ctrlgen.prove.claim import Deadline

FLOOR = 1e-4  # least eigenvalue of P in the program's units: the set is bounded in the modes that no input limits
MARGIN = 1e-6  # by which the program's inequalities are strict, relative to the fastest rate
PUSHES = (1e-9, 1e-7, 1e-5, 1e-3)  # by which a solution is moved inside, so that rational numbers confirm it


@dataclass(frozen=True, eq=False)
class Saturated:
    """The closed loop on the set where no input asks for more than `reach` times its limit.

    Args:
        rates: Λ, (r,).
        steer: b, (r, m).
        bilinear: N, (m, r, r).
        gain: k, (m, r).
        limit: (m,).
        reach: > 0.
        start: z that the ellipsoid has to hold, (r,); or None.
        rate: that V has to fall at, at least [1 / time].
    """

    rates: np.ndarray
    steer: np.ndarray
    bilinear: np.ndarray
    gain: np.ndarray
    limit: np.ndarray
    reach: float
    start: np.ndarray | None = None
    rate: float = 0.0

    @property
    def used(self) -> list[int]:
        """The inputs that feed anything back."""
        return [j for j in range(len(self.gain)) if self.gain[j].any()]

    def corners(self, j: int) -> list[np.ndarray]:
        """uNⱼ - θbⱼkⱼᵀ at the corners of the box of (u, θ), (r, r) of Fractions."""
        reach, limit = Fraction(self.reach), Fraction(float(self.limit[j]))
        top = limit * min(Fraction(1), reach)
        shares = (Fraction(1),) if reach <= 1 else (1 / reach, Fraction(1))
        product = np.outer(fractions(self.steer[:, j]), fractions(self.gain[j]))
        bend = fractions(self.bilinear[j])
        return [bend * u - product * theta for u in (-top, top) for theta in shares]

    def scale(self) -> np.ndarray:
        """How large each mode becomes where the inputs drive it from those before, at least 1: the program's units."""
        tops = np.minimum(1.0, self.reach) * self.limit
        push = np.einsum("j,jkl->kl", tops, np.abs(self.bilinear)) / np.abs(self.rates)[:, None]
        out = np.ones(len(push))
        for k in range(1, len(out)):
            out[k] = max(1.0, float((push[k, :k] * out[:k]).max()))
        return out


@dataclass(frozen=True, eq=False)
class Ellipsoid:
    """{zᵀPz ≤ 1} with what shows that V = zᵀPz decreases on it.

    Args:
        loop: the closed loop.
        matrix: P, (r, r).
        slacks: Sⱼ, one for each input in use.
    """

    loop: Saturated
    matrix: np.ndarray
    slacks: tuple[np.ndarray, ...]

    def steps(self, rate: float) -> list[Step] | None:
        """The inequalities of V̇ ≤ -rate·V as proved steps; None where rational numbers do not confirm one."""
        loop = self.loop
        steps = [premise("P ≻ 0", "exact elimination", self._definite)]
        for place, j in enumerate(loop.used):
            name = f"input {j + 1}"
            steps.append(premise(f"S ⪰ PA + AᵀP at every corner of {name}", "exact elimination", self._slack(place, j)))
            words = f"{name} is at most {loop.reach:g} of its limits on zᵀPz ≤ 1"
            steps.append(premise(words, "Schur complement", self._reached(j)))
        if loop.start is not None:
            steps.append(premise("zᵀPz ≤ 1 at the initial density", "arithmetic", self._holds_start))
        words = f"ΛP + PΛ + ΣS ⪯ -{shown_down(rate)} P"
        steps.append(premise(words, "exact elimination", lambda: self._decreases(rate)))
        return steps if all(step.recheck() for step in steps) else None

    def rate(self) -> float | None:
        """The largest rate of V that elimination confirms, from an estimate; None where none is positive."""
        from scipy.linalg import eigh

        p, rates = self.matrix, self.loop.rates
        total = -(rates[:, None] * p + p * rates + sum(self.slacks, np.zeros_like(p)))
        try:
            near = float(eigh((total + total.T) / 2, p, eigvals_only=True)[0])
        except np.linalg.LinAlgError:
            return None
        for share in (1e-9, 1e-6, 1e-3, 0.1, 0.5):
            rate = down(Fraction(near * (1 - share)))
            if rate > 0 and self._decreases(rate):
                return rate
        return None

    def _definite(self) -> bool:
        least = float(np.linalg.eigvalsh(self.matrix)[0]) / 2
        return least > 0 and at_least(fractions(self.matrix), least)

    def _slack(self, place: int, j: int) -> Any:
        def check() -> bool:
            p, s = fractions(self.matrix), fractions(self.slacks[place])
            return all(at_least(s - (p @ a + (p @ a).T), 0.0) for a in self.loop.corners(j))

        return check

    def _reached(self, j: int) -> Any:
        def check() -> bool:
            """[[most², kᵀ], [k, P]] ⪰ 0, which is |kᵀz| ≤ most on zᵀPz ≤ 1."""
            loop, r = self.loop, len(self.matrix)
            k, most = fractions(loop.gain[j]), Fraction(loop.reach) * Fraction(float(loop.limit[j]))
            whole = np.empty((r + 1, r + 1), dtype=object)
            whole[0, 0], whole[0, 1:], whole[1:, 0], whole[1:, 1:] = most**2, k, k, fractions(self.matrix)
            return at_least(whole, 0.0)

        return check

    def _holds_start(self) -> bool:
        z = fractions(self.loop.start)
        return bool(z @ fractions(self.matrix) @ z <= 1)

    def _decreases(self, rate: float) -> bool:
        rates, p = fractions(self.loop.rates), fractions(self.matrix)
        total = rates[:, None] * p + p * rates[None, :]
        total = total + sum((fractions(s) for s in self.slacks), np.zeros_like(total))
        return at_least(-total - p * Fraction(rate), 0.0)


def find_ellipsoid(loop: Saturated, deadline: Deadline) -> tuple[Ellipsoid, float, list[Step]] | None:
    """An ellipsoid with its rate and its proved steps; None where none was found and confirmed."""
    with np.errstate(all="ignore"):  # numbers beyond floats make no program
        found = _program(loop, deadline)
    if found is None:
        return None
    matrix, slacks = found
    size = max(float(np.abs(part).max()) for part in (matrix, *slacks))
    for push in PUSHES:
        if deadline.over:
            return None
        inside = tuple((s + s.T) / 2 + push * size * np.eye(len(s)) for s in slacks)
        ellipsoid = Ellipsoid(loop, matrix * (1 + push), inside)
        rate = ellipsoid.rate()
        steps = None if rate is None else ellipsoid.steps(rate)
        if rate is not None and rate >= loop.rate and steps is not None:
            return ellipsoid, rate, steps
    return None


class _Cones:
    """Matrix inequalities in the entries of symmetric blocks, as rows of a Clarabel program."""

    def __init__(self, size: int, blocks: int):
        upper = [(i, j) for j in range(size) for i in range(j + 1)]
        self.q, self.count = len(upper), len(upper) * blocks
        self.diagonal = [k for k, (i, j) in enumerate(upper) if i == j]
        self.units = np.zeros((self.q, size, size))
        for k, (i, j) in enumerate(upper):
            self.units[k, i, j] = self.units[k, j, i] = 1.0
        self.rows: list[Any] = []
        self.right: list[np.ndarray] = []
        self.sizes: list[int] = []

    def require(self, parts: dict[int, Any], constant: np.ndarray) -> None:
        """constant + Σ of the images of a block's units, (q, n, n) for each block, ⪰ 0."""
        from scipy import sparse

        n = len(constant)
        pick = tuple(np.transpose([(i, j) for j in range(n) for i in range(j + 1)]))
        weight = np.where(pick[0] == pick[1], 1.0, np.sqrt(2.0))
        row = np.zeros((len(weight), self.count))
        for block, images in parts.items():
            row[:, block * self.q : (block + 1) * self.q] = -np.asarray(images)[:, *pick].T * weight[:, None]
        self.rows.append(sparse.csc_matrix(row))
        self.right.append(constant[pick] * weight)
        self.sizes.append(n)

    def solve(self, cost: np.ndarray, deadline: Deadline) -> list[np.ndarray] | None:
        """The blocks at the least cost, whatever the solver says of its accuracy; None where it has no numbers."""
        from scipy import sparse

        clarabel: Any = import_module("clarabel")
        settings = clarabel.DefaultSettings()
        settings.verbose, settings.max_threads, settings.time_limit = False, 1, max(deadline.left(), 1e-3)
        matrix, right = sparse.csc_matrix(sparse.vstack(self.rows)), np.concatenate(self.right)
        if not (np.isfinite(matrix.data).all() and np.isfinite(right).all()):
            return None
        cones = [clarabel.PSDTriangleConeT(n) for n in self.sizes]
        empty = sparse.csc_matrix((self.count, self.count))
        solution = clarabel.DefaultSolver(empty, cost, matrix, right, cones, settings).solve()
        values = np.array(solution.x)
        if len(values) != self.count or not np.isfinite(values).all():
            return None
        return [np.einsum("k,kij->ij", part, self.units) for part in values.reshape(-1, self.q)]


def _program(loop: Saturated, deadline: Deadline) -> tuple[np.ndarray, Sequence[np.ndarray]] | None:
    """P and the S of the largest ellipsoid by the trace of P, in floating point; None where the solver has nothing."""
    r, used, scale = len(loop.rates), loop.used, loop.scale()
    cones = _Cones(r, 1 + len(used))
    units = cones.units
    for block, j in enumerate(used, start=1):
        for corner in loop.corners(j):
            a = corner.astype(np.float64) / scale[:, None] * scale
            cones.require({block: units, 0: [-(e @ a + a.T @ e) for e in units]}, np.zeros((r, r)))
    margin = loop.rate * (1 + MARGIN) + MARGIN * float(np.abs(loop.rates).max())
    falls = [-(loop.rates[:, None] * e + e * loop.rates) - margin * e for e in units]
    cones.require({0: falls, **dict.fromkeys(range(1, 1 + len(used)), -units)}, np.zeros((r, r)))
    gains = {j: scale * loop.gain[j] / (loop.reach * loop.limit[j]) for j in used}
    size = max((float(np.linalg.norm(k)) for k in gains.values()), default=1.0)  # P is sought in its square
    cones.require({0: units}, -FLOOR * np.eye(r))
    for k in gains.values():
        border = np.zeros((r + 1, r + 1))
        border[0, 0], border[0, 1:], border[1:, 0] = 1.0, k / size, k / size
        cones.require({0: np.pad(units, ((0, 0), (1, 0), (1, 0)))}, border)
    if loop.start is not None:
        w = size * loop.start / scale
        cones.require({0: [[[-(w @ e @ w)]] for e in units]}, np.ones((1, 1)))
    cost = np.zeros(cones.count)
    cost[cones.diagonal] = 1.0
    found = cones.solve(cost, deadline)
    if found is None:
        return None
    back = size**2 * np.outer(1 / scale, 1 / scale)
    return back * found[0], [back * part for part in found[1:]]
