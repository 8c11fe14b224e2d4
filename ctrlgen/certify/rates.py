"""Measured rates of decay of V = KL(ρ‖ρ*): what a verdict says where no constant is established.

Close to ρ*, V is quadratic in the deviation from it, so that it falls at twice the rate of the slowest mode. In one and
two dimensions that mode is an eigenvector of the Fokker–Planck operator on a grid; in more, a decay is fitted to a run.
Neither is a bound: far from ρ* the divergence may fall more slowly than the slowest mode does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.stats import t as student

from ctrlgen.checks import positive
from ctrlgen.datasets import Gaussian
from ctrlgen.energies.base import Energy
from ctrlgen.estimate import Estimate
from ctrlgen.loop import ClosedLoop
from ctrlgen.measure.partition import cells
from ctrlgen.plants.grid import FokkerPlanckGrid
from ctrlgen.plants.particles import Langevin
from ctrlgen.prove.claim import Deadline

TAIL = 1e-10  # Gibbs mass beyond each face of the box
SIDES = {1: (100, 200, 400, 800, 1600, 3200, 6400), 2: (40, 80, 160, 320)}  # cells a side
WIDER = 0.08  # of the box, added on each side to see what the border does
TRUST = 0.1  # of the tolerance: what that may change the gap by, or the box grows
GROWTH = 1.5  # a step, as long as a step changes the gap
WIDEST = {1: 8_000, 2: 20_000}  # cells of the box that grows
ROUNDING = 1e-14  # of the generator's norm: what its eigenvalues are known to
STAIRS = 16  # grids over which the effect of a staircase is averaged
LINES = 321  # along each axis of the plane, on which a flat wall is looked for: no fewer than the finest grid has cells
POINTS = 129  # on each of them
RECORDS = 41  # of each part of a run
SPAN = 6.0  # decay times that a run must cover
SIGNAL = 4.0  # standard errors of the amplitude, from which a decay is resolved


@dataclass(frozen=True)
class Rate(Estimate):
    """A decay rate measured along a run [1 / time]: the decay of that run, not a bound.

    Args:
        value, error: the rate with its standard error over replicates; nan where the run resolved no decay.
        interval: confidence interval, of Student's t over the replicates; (0, ∞) where nothing was resolved.
        level: its confidence.
        duration: of the run [time].
        steps: of the run.
        note: what was measured, in words.
    """

    interval: tuple[float, float] = (0.0, math.inf)
    level: float = 0.95
    duration: float = 0.0
    steps: int = 0
    note: str = ""

    @property
    def resolved(self) -> bool:
        """Did the run resolve a decay?"""
        return math.isfinite(self.value)


def spectral_gap_rate(
    energy: Energy, temperature: float, bounds: Any = None, *, tolerance: float = 1e-4, sides: Any = None,
    seconds: float = math.inf,
) -> Estimate:  # fmt: skip
    """Twice the spectral gap of the Fokker–Planck operator: the rate at which V falls in the end [1 / time].

    The gap is that of finite-volume grids of doubled resolution, extrapolated (their error is of second order) until
    two extrapolations agree.

    Where the energy is +inf, a hard wall reflects. A box that reaches over flat walls is cut to them, which changes
    nothing else. Other walls are staircases on a grid, and the error is of first order in the cell size, and erratic,
    because it depends on where the walls fall in their cells: then a line in the cell size is fitted to the gaps of 16
    grids, of sides[-1] cells a side and fewer. If walls leave parts that are not connected the gap is 0. Walls and
    passages narrower than a cell may be missed, and no error tells of them.

    Args:
        energy: E, in one or two dimensions.
        temperature: ε > 0 [energy].
        bounds: (lower, upper) per axis of a box with a reflecting border; when omitted, a box that leaves out 1e-10 of
            the Gibbs mass at each face, grown at the faces at which that changes the gap, until it does not.
        tolerance: relative difference of two extrapolations that ends the refinement.
        sides: cells a side to go through, at least three numbers, each twice the one before.
        seconds: after which no further grid is begun.

    Returns:
        The rate. Its error, not a statistical one, is the difference of the last two extrapolations, what a wider box
        still changes, to its limit (where the box was found), and the rounding of the eigenvalue. At staircases, in
        place of the first: three standard errors of the fit, from its residuals, and what a parabola in place of the
        line changes.

    Raises:
        ValueError: more than two dimensions; an argument is out of range; no Gibbs measure was found; the time is over.
    """
    deadline = Deadline(seconds)
    temperature, dim = positive("temperature", temperature), energy.dim
    if dim > 2:
        raise ValueError(f"energy must have 1 or 2 dimensions for a grid; it has {dim}. Use fitted_rate.")
    sides = tuple(SIDES[dim] if sides is None else sides)
    if len(sides) < 3 or any(b != 2 * a for a, b in pairwise(sides)):
        raise ValueError(f"sides must be at least three numbers, each twice the one before; got {sides}.")
    box = _box(energy, temperature) if bounds is None else [(float(low), float(high)) for low, high in bounds]
    box = _cut_to_walls(energy, box, WIDER if bounds is None else 0.0)
    border = 0.0

    def gap(shape: tuple[int, ...], box: list[tuple[float, float]]) -> tuple[float, float, bool]:
        if deadline.over:
            raise ValueError(f"the spectral gap was not found in {seconds:g} s; a larger timeout gives it longer.")
        grid = FokkerPlanckGrid(box, shape, temperature)
        size = float(np.abs(grid.generator(energy).diagonal()).max())
        walled = grid._volume(energy).walls is not None
        return -float(grid.spectrum(energy, 1)[0]), ROUNDING * size, walled

    if bounds is None:
        wide, border = _grown(gap, box, sides[1 if dim == 1 else 0], tolerance)
        box = box if wide is box else _cut_to_walls(energy, wide, 0.0)
    gaps, best, change, rounding = [], [], math.inf, 0.0
    for side in sides:
        value, rounding, walled = gap((side,) * dim, box)
        gaps.append(value)
        if walled and len(gaps) > 1:
            shapes = _uneven(sides[-1], dim)
            found = [gap(shape, box)[:2] for shape in shapes]
            width = np.array([math.prod(shape) ** (-1 / dim) for shape in shapes])
            value, change = _at_no_width(width, np.array([value for value, _ in found]))
            best, rounding = [value], max(size for _, size in found)
            break
        if len(gaps) > 1:
            best.append(gaps[-1] + (gaps[-1] - gaps[-2]) / 3)
        if len(best) > 1:
            change = abs(best[-1] - best[-2])
            if change <= tolerance * abs(best[-1]):
                break
    return Estimate(2 * best[-1], 2 * (change + border + rounding))


def _box(energy: Energy, temperature: float) -> list[tuple[float, float]]:
    """A box that leaves out TAIL of the Gibbs mass at each face."""
    found, total, _ = cells(energy, temperature, tolerance=1e-4)
    box = []
    for axis in range(energy.dim):
        low, high = found.centre[:, axis] - found.half[:, axis], found.centre[:, axis] + found.half[:, axis]
        up, down = np.argsort(low), np.argsort(-high)
        first = up[np.searchsorted(np.cumsum(found.value[up]), TAIL * total)]
        last = down[np.searchsorted(np.cumsum(found.value[down]), TAIL * total)]
        box.append((float(low[first]), float(high[last])))
    return box


def _grown(
    gap: Any, box: list[tuple[float, float]], side: int, tolerance: float
) -> tuple[list[tuple[float, float]], float]:
    """The box, grown until that does not change the gap, and about how far this gap is from that without a border.

    Where the slope of E stays bounded far out, what is slowest may reach much farther than the mass: along an E that
    rises linearly the gap comes down to its limit as 1/length². The cells keep their size and place meanwhile.
    """
    cell = [(high - low) / side for low, high in box]

    def at(extra: np.ndarray) -> tuple[list[tuple[float, float]], float, float]:
        """Cells more at the lower and upper face of each axis, (d, 2)."""
        wide = [(low - a * h, high + b * h) for (low, high), h, (a, b) in zip(box, cell, extra.tolist(), strict=True)]
        value, rounding, _ = gap(tuple((side + extra.sum(axis=1)).tolist()), wide)
        return wide, value, rounding

    last, more = at(np.zeros((len(box), 2), int))[1], max(1, round(WIDER * side))
    _, value, rounding = at(np.full((len(box), 2), more))
    change = abs(value - last)
    if change <= TRUST * tolerance * abs(value) + rounding:
        return box, change
    faces = np.eye(2 * len(box), dtype=int).reshape(-1, len(box), 2)
    # a face may matter only where others have moved, as along a bent valley: it is also left out, of all
    matters = [
        max(abs(at(more * face)[1] - last), abs(at(more * (1 - face))[1] - value)) > TRUST * change for face in faces
    ]
    moved = (faces * np.array(matters)[:, None, None]).sum(axis=0)
    moved = moved if moved.any() else np.ones_like(moved)
    wide, changes, growth = box, [], GROWTH
    while True:
        extra = round((growth - 1) * side) * moved
        if math.prod((side + extra.sum(axis=1)).tolist()) > WIDEST[len(box)]:
            break
        found, value, rounding = at(extra)
        if not math.isfinite(value) or (changes and rounding > max(changes[-1], tolerance * abs(value))):
            break
        changes.append(abs(value - last))
        wide, last = found, value
        if changes[-1] <= TRUST * tolerance * abs(value) + rounding:
            break
        growth *= GROWTH
    if len(changes) < 2:
        return wide, max([change, *changes])
    left = min(changes[-1] / max(changes[-2], 1e-300), 0.9)  # changes fall geometrically, or by less and less
    return wide, changes[-1] / (1 - left)


def _cut_to_walls(energy: Energy, box: list[tuple[float, float]], margin: float) -> list[tuple[float, float]]:
    """The box without what lies behind flat walls across it, on which the energy is +inf.

    A box that was found may end a little before a wall does. It is first widened at each end, by this share of itself,
    and ends there if that is partly behind walls that are not flat; an end behind no wall stays where it was.
    """
    out = []
    for axis, (low, high) in enumerate(box):
        sides = [np.zeros(1) if k == axis else np.linspace(*ends, LINES + 2)[1:-1] for k, ends in enumerate(box)]
        start = np.stack(np.meshgrid(*sides, indexing="ij"), axis=-1).reshape(-1, len(box))
        unit = np.eye(len(box))[axis]
        wide = low - margin * (high - low), high + margin * (high - low)
        if _inside(energy, np.concatenate([start + end * unit for end in wide])).all():
            out.append((low, high))
            continue
        along = np.linspace(*wide, POINTS)
        inside = _inside(energy, start[:, None, :] + along[:, None] * unit)
        start, inside = start[inside.any(axis=1)], inside[inside.any(axis=1)]
        lower = low if inside[:, 0].all() else _flat_wall(energy, start, along, inside, unit)
        upper = high if inside[:, -1].all() else _flat_wall(energy, start, along[::-1], inside[:, ::-1], unit)
        out.append((lower, upper))
    return out


def _inside(energy: Energy, points: np.ndarray) -> np.ndarray:
    """Where the energy is not +inf, of points (..., d)."""
    return ~np.isposinf(np.asarray(energy(points.reshape(-1, points.shape[-1])))).reshape(points.shape[:-1])


def _flat_wall(energy: Energy, start: np.ndarray, along: np.ndarray, inside: np.ndarray, unit: np.ndarray) -> float:
    """Where lines, all of which meet the inside, first do so from along[0] on, if that is one coordinate for three
    neighbours or for the only one; along[0] if not."""
    first = inside.argmax(axis=1)
    hit = np.flatnonzero(first == first.min())
    if first.min() == 0:
        return float(along[0])
    out, into = np.full(len(hit), along[first.min() - 1]), np.full(len(hit), along[first.min()])
    for _ in range(60):
        middle = (out + into) / 2
        free = _inside(energy, start[hit] + middle[:, None] * unit)
        out, into = np.where(free, out, middle), np.where(free, middle, into)
    place = into[np.argmin(np.abs(into - along[0]))]
    meets = hit[np.abs(into - place) <= 1e-9 * np.abs(along[-1] - along[0])]
    near = min(3, len(start))
    flat = len(meets) >= near and (meets[near - 1 :] - meets[: len(meets) - near + 1] == near - 1).any()
    return float(place if flat else along[0])


def _uneven(most: int, dim: int) -> list[tuple[int, ...]]:
    """Grids of up to `most` cells a side, up to 20 % fewer on one axis than on the other, so that a slanted wall falls
    in the cells of each in another way, and differently along its length."""
    counts = np.geomspace(most / 4, most, STAIRS)
    fewer = 1 - 0.2 * ((np.arange(STAIRS) + 1) * (math.sqrt(5) - 1) / 2 % 1)
    sides = np.stack([counts, counts * fewer])[:dim]
    sides[:, 1::2] = sides[::-1, 1::2]
    return [tuple(int(n) for n in side) for side in sides.T.round()]


def _at_no_width(width: np.ndarray, gaps: np.ndarray) -> tuple[float, float]:
    """Gaps at cell widths (n,), with errors in proportion to these: the value at width 0 of the line through them, and
    three of its standard errors with the difference from a parabola's."""

    def fit(degree: int) -> tuple[float, float]:
        basis = width[:, None] ** (np.arange(degree + 1) - 1.0)
        solution = np.linalg.lstsq(basis, gaps / width, rcond=None)[0]
        scatter = float(((basis @ solution - gaps / width) ** 2).sum()) / (len(width) - degree - 1)
        return float(solution[0]), math.sqrt(scatter * np.linalg.inv(basis.T @ basis)[0, 0])

    value, error = fit(1)
    return max(value, 0.0), 3 * error + abs(value - fit(2)[0])


def fitted_rate(
    energy: Energy,
    temperature: float,
    loop: ClosedLoop | None = None,
    initial: Any = None,
    key: int = 0,
    *,
    particles: int = 16_000,
    replicates: int = 8,
    steps: int = 20_000,
    level: float = 0.95,
) -> Rate:
    """The rate at which V falls in the end along a run of the particles, in any dimension [1 / time].

    The particles start displaced. In each of a few independent groups, what is followed is the mean of the linear
    observable that decays most slowly, found by regressing each state on an earlier one; g∞ + a e^{-λt} is fitted over
    the part of the run in which one exponential describes it, and V falls at 2λ. The run is prolonged until it covers
    six decay times.

    This is the decay that was seen along that run, not a bound: a mode that the start does not excite, that is even in
    every linear observable, or that is slower than the run is long, is not in it; nor is what V does while it is far
    from quadratic. It contains the discretisation of the loop: -2 log(1 - hκ)/h for the curvature κ.

    Args:
        energy: E.
        temperature: ε > 0 [energy].
        loop: of particles, under this energy; Langevin with a twentieth of its stability limit when omitted.
        initial: particles or a distribution; when omitted, two standard deviations beside a minimum of the energy along
            each principal axis.
        key: seed.
        particles: how many to draw; divided among the replicates.
        replicates: independent groups, at least 3.
        steps: the most that the run may take.
        level: confidence of the interval.

    Raises:
        ValueError: an argument is out of range; the loop is not one of particles under this energy at this temperature.
        DivergenceError: particles left the finite numbers.

    Reference: Pérez-Hernández et al., J. Chem. Phys. 139 (2013) 015102, for the slowest linear observable.
    """
    temperature = positive("temperature", temperature)
    if replicates < 3 or particles < 20 * replicates:
        raise ValueError(
            "replicates must be at least 3, with 20 particles each; "
            f"got {replicates} replicates of {particles} particles."
        )
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1; got {level}.")
    start, slow, fast = _start(energy, temperature)
    initial = start if initial is None else initial
    loop = ClosedLoop(Langevin(temperature, 0.1 / fast), energy) if loop is None else loop
    plant = loop.plant
    if plant.kind != "particles" or loop.controller is not energy or plant.temperature != temperature:
        raise ValueError(
            "loop must be one of particles under the energy and temperature given; got "
            f"{type(plant).__name__} at temperature {plant.temperature:g} under {type(loop.controller).__name__}."
        )
    step: float = getattr(plant, "step")  # noqa: B009
    span = max(RECORDS - 1, min(math.ceil(SPAN / (slow * step)), steps // 8))
    run = _Run(loop, initial, int(key), particles, span)
    while True:
        run.advance()
        rates, amplitude = _fit(*run.slowest(replicates))
        mean, error = float(rates.mean()), float(rates.std(ddof=1) / math.sqrt(replicates))
        resolved = amplitude > SIGNAL and error < mean / 2
        if (resolved and mean * run.time[-1] >= SPAN) or 2 * run.steps > steps:
            break
    about = {"level": level, "duration": run.time[-1], "steps": run.steps}
    if not resolved:
        return Rate(math.nan, math.nan, note="no decay was resolved: too few steps or particles", **about)
    half = float(student.ppf((1 + level) / 2, replicates - 1)) * error
    note = "" if mean * run.time[-1] >= SPAN else f"; the run covers {mean * run.time[-1]:.1f} decay times only"
    return Rate(
        2 * mean,
        2 * error,
        interval=(max(0.0, 2 * (mean - half)), 2 * (mean + half)),
        note=f"twice the decay rate of the slowest linear observable, {replicates} groups of particles{note}",
        **about,
    )


def _start(energy: Energy, temperature: float) -> tuple[Gaussian, float, float]:
    """A displaced Gaussian beside a minimum, the smallest curvature there and the largest in the neighbourhood."""
    dim = energy.dim
    rng = np.random.default_rng(0)
    result = minimize(
        lambda x: float(energy(x)),
        rng.standard_normal(dim),
        jac=lambda x: np.asarray(energy.gradient(x)),
        method="BFGS",
    )
    if not np.isfinite(result.x).all() or not math.isfinite(float(result.fun)):
        raise ValueError("no minimum of the energy was found to start from; pass initial=.")
    values, axes = np.linalg.eigh(np.asarray(energy.hessian(result.x)))
    values = np.maximum(np.abs(values), 1e-3 * np.abs(values).max())
    spread = np.sqrt(temperature / values)
    start = Gaussian(result.x + 2 * axes @ spread, (axes * spread**2) @ axes.T)
    around = np.concatenate([result.x + 3 * rng.standard_normal((64, dim)) * spread @ axes.T, start.mean[None]])
    curvatures = np.abs(np.linalg.eigvalsh(np.asarray(energy.hessian(around))))
    return start, float(values.min()), float(np.quantile(curvatures.max(axis=1), 0.9))


class _Run:
    """A run in parts, each as long as all before it: times, and the particles at them."""

    def __init__(self, loop: ClosedLoop, initial: Any, key: int, particles: int, span: int) -> None:
        self.loop, self.state, self.key, self.particles, self.span = loop, initial, key, particles, span
        self.time, self.states = np.empty(0), np.empty(0)
        self.steps, self.parts = 0, 0

    def advance(self) -> None:
        """Go on for as long as the run has taken; of what is kept, a record in two goes."""
        step: float = getattr(self.loop.plant, "step")  # noqa: B009
        count = self.steps or self.span
        response = self.loop.simulate(
            self.state,
            count * step,
            key=self.key + 7919 * self.parts,
            record=RECORDS,
            particles=self.particles,
            throw=True,
        )
        self.state, self.parts = response.final, self.parts + 1
        time, states = response.time, response.states.astype(np.float64)
        if self.steps:
            time = np.concatenate([self.time[:-1], self.steps * step + time])
            states = np.concatenate([self.states[:-1], states])
        if len(time) > 2 * RECORDS:
            keep = np.r_[0 : len(time) - RECORDS : 2, len(time) - RECORDS : len(time)]
            time, states = time[keep], states[keep]
        self.time, self.states, self.steps = time, states, self.steps + count

    def slowest(self, replicates: int) -> tuple[np.ndarray, np.ndarray]:
        """Times, and in each group the mean of its own slowest linear observable, of one sign, (replicates, k)."""
        reference, means = _slowest(self.states[-RECORDS:]), []
        for group in np.array_split(self.states, replicates, axis=1):
            direction = _slowest(group[-RECORDS:])
            means.append(
                (group @ direction).mean(axis=1)
                * np.sign(np.sum((group[-1] @ direction) * _centred(group[-1] @ reference)))
            )
        return self.time, np.stack(means)


def _slowest(states: np.ndarray) -> np.ndarray:
    """The linear observable w of records (k, n, d) with the slowest decay, of variance 1: K w = μ w for the largest μ,
    where K regresses each state on an earlier one."""
    lag = (len(states) - 1) // 4
    before, after = (_centred(part.reshape(-1, states.shape[2])) for part in (states[:-lag], states[lag:]))
    values, vectors = np.linalg.eig(np.linalg.lstsq(before, after, rcond=None)[0])
    direction = np.real(vectors[:, np.argmax(np.real(values))])
    return direction / np.std(after @ direction)


def _centred(x: np.ndarray) -> np.ndarray:
    return x - x.mean(axis=0)


def _fit(time: np.ndarray, means: np.ndarray) -> tuple[np.ndarray, float]:
    """Rates λ of the groups, (replicates,), and the amplitude of the decay in standard errors.

    The window begins where a later beginning does not change the rate by more than its error over the groups.
    """
    pooled = _decay(time, means.mean(axis=0))[0]
    starts = [int(np.searchsorted(time, share / pooled)) for share in (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)]
    starts = [s for s in dict.fromkeys(starts) if s <= len(time) - 12] or [0]
    fits = [np.array([_decay(time[s:], m[s:]) for m in means]) for s in starts]
    rates = [fit[:, 0] for fit in fits]
    chosen = 0
    for chosen, early in enumerate(rates):
        changes = [early - late for late in rates[chosen + 1 :]]
        if all(abs(c.mean()) <= 2.5 * c.std(ddof=1) / math.sqrt(len(c)) for c in changes):
            break
    amplitude = fits[chosen][:, 1]
    error = float(amplitude.std(ddof=1)) / math.sqrt(len(amplitude))
    return rates[chosen], abs(float(amplitude.mean())) / max(error, 1e-300)


def _decay(time: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """(λ, a) of the least-squares fit g∞ + a e^{-λ(t - t₀)}."""

    def parts(log_rate: float) -> tuple[float, np.ndarray]:
        basis = np.stack([np.ones_like(time), np.exp(-math.exp(log_rate) * (time - time[0]))], axis=1)
        solution = np.linalg.lstsq(basis, values, rcond=None)[0]
        return float(((values - basis @ solution) ** 2).sum()), solution

    length = float(time[-1] - time[0])
    scan = np.linspace(math.log(0.1 / length), math.log(5.0 / float(np.diff(time).min())), 60)
    best = int(np.argmin([parts(s)[0] for s in scan]))
    ends = scan[max(best - 1, 0)], scan[min(best + 1, len(scan) - 1)]
    found: Any = minimize_scalar(lambda s: parts(s)[0], bounds=ends, method="bounded", options={"xatol": 1e-8})
    return math.exp(float(found.x)), float(parts(float(found.x))[1][1])
