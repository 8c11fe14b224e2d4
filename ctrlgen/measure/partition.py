"""log Z of a Gibbs measure: by adaptive quadrature in one to three dimensions, by annealing in any."""

from __future__ import annotations

import math
from functools import cached_property
from itertools import product
from typing import Any, Literal, get_args

import numpy as np

from ctrlgen.energies.algebra import parted
from ctrlgen.energies.base import Energy
from ctrlgen.estimate import Estimate
from ctrlgen.measure import _checks as check
from ctrlgen.measure.annealed import annealed
from ctrlgen.measure.restricted import (
    Behind,
    Witnesses,
    guesses,
    log_partition_by_share,
    scattered,
    share,
    swarms,
    uphill,
)

Method = Literal["quadrature", "annealed", "thermodynamic"]
_MOST = 3  # dimensions of a quadrature
_PARTICLES = 2000
_NODES = 5  # Gauss-Legendre nodes a side of a cell
_CELLS = {1: 32, 2: 12, 3: 6}  # cells a side at the start
_BATCH = 4096  # points an energy call, always the same number: one compilation
_EDGE = 1e-12  # share of the mass that the outermost cells may hold
_DEEP = 40.0  # E/ε above its minimum where a Gibbs density no longer matters: e^-40 = 4e-18
_ROUNDS = 60  # of growing the box
_TOLERANCE = 1e-6
_SLIVER = 2e-4  # of a cell that a wall leaves sideways: what may lie between its lines, unseen
_CUT = 2000  # such cells at a time
_FREE = 1e-2  # of the mass without walls, to draw from it
_FREE_POINTS = {1: 20_000, 2: 200_000, 3: 1_000_000}  # and what may be spent on it
_CROWDS = (8, 2)  # points on both sides of a wall in a cell, where the quadrature and their share disagree
_APART = 4.0  # standard errors, from which on they do
_WALLED = {1: 1e-6, 2: 1e-5, 3: 3e-4}  # the same behind walls, by dimension


def log_partition(
    energy: Energy,
    temperature: float,
    bounds: Any = None,
    points: int | None = None,
    tolerance: float | None = None,
    *,
    method: Method | None = None,
    particles: int | None = None,
    key: int = 0,
    progress: bool | None = None,
) -> Estimate:
    """log Z = log ∫ exp(-E/ε) dx.

    "quadrature", adaptive, Gauss-Legendre, in one to three dimensions: without `bounds` the box is found: the deepest
    points of lattices on many scales are followed downhill, and a box around them grows until its outermost cells hold
    less than 1e-12 of the mass. Cells are split until the summed differences between a cell and its parts fall below
    `tolerance`, relative to Z. Quadrature cannot see what lies between its points. Modes narrower than 1e-4 of the
    distance between them, and far ends much narrower than the rest (the neck of a funnel: 1.5e-4 of the mass), may be
    missed without the error showing it.

    "annealed", importance sampling along a path from a fitted Gaussian to the Gibbs measure, in any dimension: an
    unbiased estimate of Z. "thermodynamic", the integral of E along the same path: often the smaller error, but it
    needs a finite energy, and particles that keep up with the path. Either returns the other beside it.

    Wells are looked for by descents from many distances around the origin, and the path starts above all that are
    found; one that gets no particle all the same is in the error. A well that no descent enters (narrow beside a wide
    one) is missed without the error showing it. Along thin curved valleys, in the neck of a funnel, and for networks of
    many wells in many dimensions few particles count: look at `effective`, for errors are too small there by a factor
    of 2 and more where it is below half of the particles.

    Behind walls (`Walls` or a `LogBarrier` among the terms) cells that a wall cuts are integrated along lines, from
    crossing to crossing. Parts of the set are looked for from points on many scales and from draws of the measure
    without walls, led uphill in h; Z is held against the share of 16,384 draws (32,768 in 3-D) that is inside, and
    where the two stay more than four standard errors apart the difference is the error. A part that no such point
    reaches, of less than 1e-4 of the mass without walls, may be missed without the error showing it. Above three
    dimensions log Z is that without walls and the logarithm of their share of its draws, with a standard error; neither
    path knows walls.

    Args:
        energy: E.
        temperature: ε > 0 [energy].
        bounds: of a quadrature: (2, d), lower and upper corners: Z of the Gibbs measure restricted to that box.
        points: of a quadrature: how many evaluations of E may be spent; 2e6 in 1-D and 2-D, 2e7 in 3-D.
        tolerance: of a quadrature: relative error of Z that ends the refinement; 1e-6, behind walls 1e-5 in 2-D and
            3e-4 in 3-D.
        method: "quadrature", "annealed" or "thermodynamic"; quadrature in up to three dimensions, else annealed, when
            omitted.
        particles: of the other two: how many, at least 100; 2000.
        key: of the other two: seed.
        progress: of the other two: show a bar for each run down the path (a network in 64 dimensions takes many
            minutes); for those that take more than five seconds when omitted.

    Returns:
        log Z [nats]. By quadrature the error is the summed differences at the last split, an upper estimate (behind
        walls at most what the share of the draws says, with four standard errors); it exceeds
        the tolerance where `points` did not suffice. Else an `Annealed`, with a standard error.

    Raises:
        ValueError: quadrature in more than three dimensions; an argument that the method does not have; no Gibbs
            measure was found: exp(-E/ε) does not decay, or vanishes; an energy that is NaN where particles come; an
            energy behind walls and a path; no point, or hardly a draw, inside the walls.
    """
    how = ("quadrature" if energy.dim <= _MOST else "annealed") if method is None else method
    if how not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(map(repr, get_args(Method)))}; got {method!r}.")
    if how == "quadrature":
        _refuse(how, particles=particles)
        tolerance = None if tolerance is None else check.positive("tolerance", tolerance)
        found, total, error = cells(energy, temperature, bounds, points, tolerance)
        return Estimate(math.log(total) - found.scaled.lowest, error / total)
    _refuse(how, bounds=bounds, points=points, tolerance=tolerance)
    temperature = check.positive("temperature", temperature)
    particles = check.count("particles", _PARTICLES if particles is None else particles, least=100)
    key = check.count("key", key, least=0)
    if parted(energy).sets:
        if method is not None:
            raise ValueError(
                f"method {method!r} follows a path on which the energy must be finite, and this one has walls. Leave "
                "method out: quadrature in up to 3 dimensions, the share of draws inside above."
            )
        return log_partition_by_share(energy, temperature, key)
    return annealed(energy, temperature, particles, key, integrate=how == "thermodynamic", progress=progress)


def _refuse(method: str, **arguments: Any) -> None:
    """Arguments that a method does not have."""
    for name, value in arguments.items():
        if value is not None:
            others = "'annealed' and 'thermodynamic'" if method == "quadrature" else f"'quadrature' (d <= {_MOST})"
            raise ValueError(
                f"{name} belongs to method {others}; got {name}={value!r} with method {method!r}. "
                f"Leave {name} out, or name another method."
            )


def cells(
    energy: Energy, temperature: float, bounds: Any = None, points: int | None = None, tolerance: float | None = None
) -> tuple[_Cells, float, float]:
    """The cells of `log_partition`, which takes the same arguments: a box cut as finely as exp(-E/ε) asks for.

    Returns:
        The cells, with ∫ exp((lowest - E)/ε) over each; the sum of those, and its error.
    """
    temperature, dim = check.positive("temperature", temperature), energy.dim
    if dim > _MOST:
        raise ValueError(
            f"log Z by quadrature needs at most {_MOST} dimensions; this energy has {dim}. "
            "Use log_partition with method='annealed'."
        )
    budget = check.count("points", points if points is not None else (2_000_000 if dim < 3 else 20_000_000), 1000)
    scaled = _Scaled(energy, temperature)
    if tolerance is None:
        tolerance = _TOLERANCE if scaled.behind is None else _WALLED[dim]
    if bounds is not None:
        lower, upper = _box(bounds, dim)
        seeds = _descend(scaled, *_lattice(scaled, (lower + upper) / 2, (upper - lower) / 2, 33 if dim < 3 else 17))
        seeds = np.clip(seeds, lower, upper)
        if scaled.behind is not None and (abs(scaled.behind.deep - (lower + upper) / 2) < (upper - lower) / 2).all():
            seeds = np.concatenate([seeds, scaled.behind.deep[None]])
        scaled.lowest = float(scaled(seeds).min())
        if not math.isfinite(scaled.lowest):
            raise ValueError("energy is infinite, or NaN, wherever it was looked at within bounds.")
        found = _Cells(scaled, lower, upper, seeds)
    else:
        found = _Cells(scaled, *_find(scaled))
        for round_ in range(_ROUNDS):
            found.refine(1e-3 if scaled.behind is None else max(1e-3, 30 * tolerance), budget)
            if not found.grow(0.15 if round_ < 12 else 0.5):  # short steps first, to follow what leaves the box
                break
        else:
            raise _no_gibbs(found.lower, found.upper)
    total, error = found.refine(tolerance, budget)
    total, error = found.checked(total, error, tolerance, budget)
    if not total > 0:
        raise ValueError("exp(-E/ε) vanishes wherever it was looked at; pass tighter bounds around its support.")
    return found, total, error


class _Scaled:
    """E/ε on (n, d), in batches of one size; counts evaluations."""

    def __init__(self, energy: Energy, temperature: float) -> None:
        self.energy, self.temperature, self.spent, self.lowest = energy, temperature, 0, 0.0
        self.behind = Behind(energy) if parted(energy).sets else None

    @cached_property
    def without(self) -> _Cells | None:
        """Cells of the measure without walls and barriers; None where there is none."""
        rest = None if self.behind is None else self.behind.parts.rest
        if rest is None:
            return None
        try:
            return cells(rest, self.temperature, points=_FREE_POINTS[self.dim], tolerance=_FREE)[0]
        except ValueError:
            return None

    @property
    def dim(self) -> int:
        return self.energy.dim

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self._of(self.energy, x)

    def free(self, x: np.ndarray) -> np.ndarray:
        """The same without walls, but with barriers."""
        inner = None if self.behind is None else self.behind.free
        return np.zeros(len(x)) if inner is None else self._of(inner, x)

    def rest(self, x: np.ndarray) -> np.ndarray:
        """The same of the other terms, without walls and barriers."""
        rest = None if self.behind is None else self.behind.parts.rest
        return np.zeros(len(x)) if rest is None else self._of(rest, x)

    def _of(self, energy: Energy, x: np.ndarray) -> np.ndarray:
        out = np.empty(len(x))
        for i in range(0, len(x), _BATCH):
            part = x[i : i + _BATCH]
            padded = np.concatenate([part, np.broadcast_to(part[-1], (_BATCH - len(part), self.dim))])
            out[i : i + len(part)] = np.asarray(energy(padded))[: len(part)]
        self.spent += len(x)
        return np.where(np.isnan(out), np.inf, out / self.temperature)  # 0 · ∞ far out, where E overflows


def _box(bounds: Any, dim: int) -> np.ndarray:
    box = np.asarray(bounds, dtype=np.float64)
    if box.shape != (2, dim) or not np.isfinite(box).all() or not (box[0] < box[1]).all():
        raise ValueError(f"bounds must be a finite (2, {dim}) array, lower corner below upper; got {bounds!r}.")
    return box


def _no_gibbs(lower: np.ndarray, upper: np.ndarray) -> ValueError:
    return ValueError(
        "exp(-E/ε) does not decay: a box grown to "
        f"{lower.tolist()} ... {upper.tolist()} still has mass at its boundary, so there may be no Gibbs measure. "
        "Confine the energy, or pass bounds."
    )


def _offsets(dim: int, side: int) -> np.ndarray:
    """Lattice on [-1, 1]^d, (side^d, d)."""
    return np.array(list(product(np.linspace(-1, 1, side), repeat=dim)))


def _lattice(scaled: _Scaled, centre: np.ndarray, half: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """The eight lowest points of a lattice, and the spacing (8, d) at each."""
    points = centre + half * _offsets(scaled.dim, side)
    best = np.argsort(scaled(points))[:8]
    return points[best], np.broadcast_to(2 * half / (side - 1), (len(best), scaled.dim))


def _descend(scaled: _Scaled, points: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Pattern search from all points at once: step to the best of 3^d neighbours, or halve the step.

    Behind walls the neighbours turn, or the search would end at a wall that is oblique to them.
    """
    offsets, turned = _offsets(scaled.dim, 3), np.random.default_rng(0)
    step = spacing.copy()
    for _ in range(40):
        if scaled.behind is not None:
            offsets = _offsets(scaled.dim, 3) @ np.linalg.qr(turned.standard_normal((scaled.dim, scaled.dim)))[0]
        around = points[:, None, :] + step[:, None, :] * offsets
        values = scaled(around.reshape(-1, scaled.dim)).reshape(len(points), -1)
        best = values.argmin(axis=1)
        points = around[np.arange(len(points)), best]
        step = np.where((best == len(offsets) // 2)[:, None], step / 2, step)
    return points


def _find(scaled: _Scaled) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A first box and the low points that it must resolve."""
    dim, origin = scaled.dim, np.zeros(scaled.dim)
    found = [_lattice(scaled, origin, np.full(dim, 4.0**k), 33 if dim < 3 else 9) for k in range(-3, 6)]
    if scaled.behind is not None:
        found.append((scaled.behind.deep[None], np.ones((1, dim))))
    seeds = _descend(scaled, *[np.concatenate(part) for part in zip(*found, strict=True)])
    if scaled.behind is not None:
        seeds = np.concatenate([seeds, _rooms(scaled)])
    values = scaled(seeds)
    scaled.lowest = float(values.min())
    if not math.isfinite(scaled.lowest):
        raise ValueError("energy is infinite wherever it was looked at; pass bounds around its support.")
    seeds = seeds[values < scaled.lowest + _DEEP]
    seeds = seeds[np.unique((seeds / (1e-6 + 1e-4 * np.abs(seeds))).round(), axis=0, return_index=True)[1]]
    radii = np.concatenate([[0.0], 2.0 ** np.arange(-24, 41)])
    lower, upper = np.empty_like(seeds), np.empty_like(seeds)
    for axis, sign in product(range(dim), (-1, 1)):
        ray = seeds[:, None, :] + sign * radii[:, None] * np.eye(dim)[axis]
        with np.errstate(over="ignore", invalid="ignore"):
            height = scaled(ray.reshape(-1, dim)).reshape(len(seeds), -1) - scaled.lowest
        last = np.where(height < _DEEP, np.arange(len(radii)), 0).max(axis=1) + 1  # beyond it, all is deep down
        if (last == len(radii)).any():
            raise _no_gibbs(seeds[0] - radii[-1], seeds[0] + radii[-1])
        (lower if sign < 0 else upper)[:, axis] = seeds[:, axis] + sign * radii[last]
    return lower.min(axis=0), upper.max(axis=0), seeds


def _rooms(scaled: _Scaled) -> np.ndarray:
    """Points in the parts of the set, (n, d): between those of a lattice there may be one that all of them miss."""
    assert scaled.behind is not None
    found = [guesses(np.zeros(scaled.dim)), guesses(scaled.behind.deep)]
    if scaled.without is not None:
        found.append(scaled.without.drawn(swarms(scaled.dim)[:8].reshape(-1, scaled.dim))[0])
    points = uphill(scaled.behind, np.concatenate(found))
    height = scaled(points)
    if not np.isfinite(height).any():
        return np.empty((0, scaled.dim))
    near = height < height.min() + _DEEP
    points, height = points[near], height[near]
    rooms = points[scattered(points, height)]
    return np.concatenate([rooms, _descend(scaled, rooms, np.broadcast_to(np.ptp(points, axis=0) / 64, rooms.shape))])


class _Cells:
    """A box cut into cells, each with its part of ∫ exp(lowest - E/ε) and an error for it. The box may grow."""

    def __init__(self, scaled: _Scaled, lower: np.ndarray, upper: np.ndarray, seeds: np.ndarray) -> None:
        dim = scaled.dim
        node, weight = np.polynomial.legendre.leggauss(_NODES)
        self.nodes = np.array(list(product(node, repeat=dim)))
        self.weights = np.array([math.prod(w) for w in product(weight / 2, repeat=dim)])
        self.halves = np.array(list(product((-0.5, 0.5), repeat=dim)))
        self.scaled, self.lower, self.upper = scaled, lower, upper
        self.seeds, self.depths = seeds, np.exp(np.minimum(scaled.lowest - scaled(seeds), 600.0))
        self.centre, self.half = np.empty((0, dim)), np.empty((0, dim))
        self.value, self.error = np.empty(0), np.empty(0)
        self.witnesses = None if scaled.behind is None else self._witnesses()
        self._add(lower, upper, np.full(dim, _CELLS[dim]))

    def _witnesses(self) -> Witnesses:
        """Of the measure without walls, where there is one, and of the box: draws. And the seeds."""
        cube, dim = swarms(self.scaled.dim), self.scaled.dim
        points = [self.seeds, self.lower + (self.upper - self.lower) * cube.reshape(-1, dim)]
        if self.scaled.without is not None:
            points.append(self.scaled.without.drawn(cube.reshape(-1, dim))[0])
        x = np.concatenate(points)
        height = self.scaled(x)
        inside = np.isfinite(height)
        height[~inside] = self.scaled.rest(x[~inside])
        return Witnesses(x, inside, height, self.scaled.lowest)

    def drawn(self, cube: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points of the unit cube (n, d) to draws (n, d) that are even in each cell, and the log density of these."""
        ladder = np.cumsum(self.value)
        share, ladder = self.value / ladder[-1], ladder / ladder[-1]  # it ends at 1, where no cell is empty
        cell = np.searchsorted(ladder, cube[:, 0], side="right")
        within = cube.copy()
        within[:, 0] = np.clip((cube[:, 0] - ladder[cell] + share[cell]) / share[cell], 0.0, 1.0)
        x = self.centre[cell] + self.half[cell] * (2 * within - 1)
        return x, np.log(share[cell] / np.prod(2 * self.half[cell], axis=1))

    def checked(self, total: float, error: float, tolerance: float, budget: int) -> tuple[float, float]:
        """A total with its error, held against the share of draws that are inside: what disagrees is cut more finely,
        and the error is the difference where that does not help."""
        if self.witnesses is None or self.scaled.behind is None:
            return total, error
        known = self._by_share()
        for crowd in _CROWDS:
            if known is None or abs(total - known[0]) <= _APART * known[1] + error:
                break
            self.witnesses.crowd = crowd
            depth = self.witnesses.doubts(self.value, np.zeros(len(self.value), bool), 0)
            self.error = np.maximum(self.error, depth * np.prod(2 * self.half, axis=1))
            total, error = self.refine(tolerance, budget)
        if self.scaled.dim == _MOST:  # cells in which h is not known are not split for it: they would be too many
            unsure = self.scaled.behind.ranges(self.centre, self.half)[4]
            if unsure.any():
                error = max(error, float(self._filled(self.centre[unsure], self.half[unsure]).sum()))
        if known is None:
            return total, error
        apart = abs(total - known[0])
        if apart > _APART * known[1] + error:
            return total, apart
        return total, min(error, apart + _APART * known[1])

    def _by_share(self) -> tuple[float, float] | None:
        """∫ exp(lowest - E/ε) by draws of the measure without walls, or of the box, and a standard error."""
        cube, free = swarms(self.scaled.dim), self.scaled.without
        flat, box = cube.reshape(-1, self.scaled.dim), self.upper - self.lower
        for draws in ([] if free is None else [free.drawn(flat)]) + [
            (self.lower + box * flat, np.full(len(flat), -np.log(box).sum()))
        ]:
            weights = np.exp(np.minimum(self.scaled.lowest - self.scaled(draws[0]) - draws[1], 600.0))
            known = share(weights.reshape(cube.shape[:2]))
            if known is not None:
                return known
        return None

    def _add(self, lower: np.ndarray, upper: np.ndarray, counts: np.ndarray) -> None:
        centre = lower + (upper - lower) * (np.array(list(product(*map(range, counts)))) + 0.5) / counts
        half = np.broadcast_to((upper - lower) / (2 * counts), centre.shape)
        value = self._mass(centre, half)[0]
        if self.witnesses is not None:
            self.witnesses.enter(lower, upper, counts, len(self.centre))
        self._keep(np.zeros(len(self.centre), bool), centre, half, value, np.full(len(centre), np.inf))

    def _keep(self, gone: np.ndarray, *new: np.ndarray) -> None:
        old = (self.centre, self.half, self.value, self.error)
        joined = [np.concatenate([a[~gone], b]) for a, b in zip(old, new, strict=True)]
        self.centre, self.half, self.value, self.error = joined

    def _mass(self, centre: np.ndarray, half: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The integrals over cells, the least that is to be taken for the error of each, and which no wall cuts."""
        behind, least = self.scaled.behind, np.zeros(len(centre))
        if behind is None:
            return self._whole(centre, half), least, np.ones(len(centre), bool)
        low, high, axis, kinked, unsure = behind.ranges(centre, half)
        inside = np.all(low > 0, axis=0)
        cut = np.flatnonzero((high >= 0).all(axis=0) & ~inside)
        out = np.zeros(len(centre))
        if inside.any():
            out[inside] = self._whole(centre[inside], half[inside])
        for k in np.array_split(cut, max(1, len(cut) // _CUT)) if len(cut) else []:
            out[k] = behind.slices(centre[k], half[k], axis[k], self._height)
        k = cut[kinked[cut]]
        if len(k):
            corners = centre[k][:, None, :] + half[k][:, None, :] * behind.corners
            top = -self._height(corners.reshape(-1, self.scaled.dim)).reshape(len(k), -1).min(axis=1)
            least[k] = _SLIVER * np.exp(np.minimum(top, 600.0)) * np.prod(2 * half[k], axis=1)
        k = np.flatnonzero(unsure)
        if len(k) and self.scaled.dim < _MOST:
            least[k] = self._filled(centre[k], half[k])
        return out, least, inside

    def _filled(self, centre: np.ndarray, half: np.ndarray) -> np.ndarray:
        """About the integrals over cells if they were inside altogether."""
        top = self.scaled.lowest - self.scaled.rest(centre)
        return np.exp(np.minimum(top, 600.0)) * np.prod(2 * half, axis=1)

    def _height(self, x: np.ndarray) -> np.ndarray:
        return self.scaled.free(x) - self.scaled.lowest

    def _whole(self, centre: np.ndarray, half: np.ndarray) -> np.ndarray:
        points = centre[:, None, :] + half[:, None, :] * self.nodes
        height = self.scaled(points.reshape(-1, self.scaled.dim)).reshape(len(centre), -1) - self.scaled.lowest
        return np.exp(np.minimum(-height, 600.0)) @ self.weights * np.prod(2 * half, axis=1)

    def refine(self, tolerance: float, budget: int) -> tuple[float, float]:
        """Split cells until the errors sum to at most `tolerance` of the total, or the budget is spent."""
        parts, spent = len(self.halves), self.scaled.spent
        while True:
            known = np.isfinite(self.error)
            total, error = self.value.sum(), self.error[known].sum() + self.value[~known].sum()
            split = self.error > tolerance * max(total, error) / (2 * len(self.error))
            if self.scaled.behind is not None:
                split &= self.error >= self._worst(error - tolerance * total / 2)
            cost = split.sum() * parts * len(self.nodes)
            enough = known.all() and error <= tolerance * total
            if enough or not split.any() or self.scaled.spent - spent + cost > budget:
                return float(total), float(error)
            centre = (self.centre[split][:, None, :] + self.half[split][:, None, :] * self.halves).reshape(
                -1, self.scaled.dim
            )
            half = np.repeat(self.half[split] / 2, parts, axis=0)
            value, least, whole = self._mass(centre, half)
            wrong = np.abs(self.value[split] - value.reshape(-1, parts).sum(axis=1)) / parts
            wrong = np.maximum(np.repeat(wrong, parts), least)
            for seed, depth in zip(self.seeds, self.depths, strict=True):
                # until a cell is as small as the well in it, or nearer than its own length, its error says nothing
                gap = (np.abs(seed - centre) - half).max(axis=1)
                near = np.flatnonzero(gap <= half.max(axis=1))
                well = depth * np.prod(2 * half[near], axis=1)
                blind = near[well > 8.0 * value[near]]
                wrong[blind] = np.maximum(wrong[blind], well[well > 8.0 * value[near]])
            if self.witnesses is not None:
                self.witnesses.divide(split, self.centre)
                depth = self.witnesses.doubts(value, whole, len(split) - int(split.sum()))
                wrong = np.maximum(wrong, depth * np.prod(2 * half, axis=1))
            self._keep(split, centre, half, value, wrong)

    def _worst(self, share: float) -> float:
        """The error of a cell from which on the worst ones hold so much of the sum: at walls it falls slowly."""
        order = -np.sort(-self.error[np.isfinite(self.error)])
        return float(order[min(int(np.searchsorted(np.cumsum(order), share)), len(order) - 1)]) if len(order) else 0.0

    def grow(self, share: float) -> bool:
        """Add slabs, in thickness a share of the box, to faces whose cells still hold mass; False: there are none."""
        slack = 1e-9 * (self.upper - self.lower)
        touching = (self.centre - self.half <= self.lower + slack, self.centre + self.half >= self.upper - slack)
        total, thickness, grew = self.value.sum(), share * (self.upper - self.lower), False
        for axis, side in product(range(self.scaled.dim), (0, 1)):
            at = np.flatnonzero(touching[side][:, axis] & (self.value > 0))
            if self.value[at].sum() <= _EDGE * total:
                continue
            grew = True
            leaves = self.centre[at[np.argsort(-self.value[at])[:4]]]  # where the mass passes through the face
            leaves[:, axis] = (self.lower, self.upper)[side][axis]
            self.seeds = np.concatenate([self.seeds, leaves])
            self.depths = np.concatenate([self.depths, np.exp(self.scaled.lowest - self.scaled(leaves))])
            lower, upper = self.lower.copy(), self.upper.copy()
            if side == 0:
                upper[axis] = self.lower[axis]
                lower[axis] -= thickness[axis]
            else:
                lower[axis] = self.upper[axis]
                upper[axis] += thickness[axis]
            n = len(self.centre)
            counts = np.full(self.scaled.dim, _CELLS[self.scaled.dim])
            counts[axis] = math.ceil(share * counts[axis])
            self._add(lower, upper, counts)
            pad = np.zeros((len(self.centre) - n, self.scaled.dim), bool)
            touching = (np.concatenate([touching[0], pad]), np.concatenate([touching[1], pad]))
            self.lower, self.upper = np.minimum(self.lower, lower), np.maximum(self.upper, upper)
        return grew
