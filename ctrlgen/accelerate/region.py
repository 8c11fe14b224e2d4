"""Where an energy's closed loop contracts: the cells of a box on which ∇²E - λM ⪰ 0 is proved by interval Hessians.

A trained energy is convex in places and not in others. On a convex set of proved cells two trajectories of
dX = -M⁻¹∇E dt + sqrt(2εM⁻¹) dW with the same noise approach each other in |·|_M at the rate λ while both stay in it:
the Hessian is ⪰ λM along the whole segment between them.

Cells are halved where neither the inequality nor its failure is established, down to the resolution asked for. All
arithmetic rounds outward; what is not settled counts as not proved.

Reference: Lohmiller and Slotine, Automatica 34 (1998) 683, section 3.1 (contraction regions).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np

from ctrlgen.accelerate._bounds import CHUNK, Frame, covers, ends_of, halves
from ctrlgen.accelerate._enclosures import Curvature, curvature
from ctrlgen.accelerate._hessians import kink
from ctrlgen.accelerate._programs import matrix_of, rational
from ctrlgen.accelerate._steps import refuted
from ctrlgen.certify.build import check_domain
from ctrlgen.certify.constants import other_gradient
from ctrlgen.certify.premise import missing, premise, shown_down, shown_up
from ctrlgen.certify.transport import plain_states
from ctrlgen.certify.verdict import Verdict, combine
from ctrlgen.checks import positive_definite
from ctrlgen.domain import Ball, Box
from ctrlgen.energies.base import Energy
from ctrlgen.energies.intervals import Intervals
from ctrlgen.energies.spectral import down
from ctrlgen.prove.claim import Deadline
from ctrlgen.prove.decide import check_timeout

LARGEST = 1e308  # rate
MOST_CELLS = 200_000  # that are ever looked at
CELLS = {1: 1024, 2: 128, 3: 32}  # along an axis, by dimension
FEW = 8
GRID = 3  # dimensions up to which convex subsets are put together from several cells
PROVED, OPEN, REFUTED = 1, 0, -1


@dataclass(frozen=True, kw_only=True, repr=False)
class RegionVerdict(Verdict):
    """What is known of the set on which ∇²E ⪰ λM, within a box.

    Args:
        cells: (k, d, 2), lower and upper ends of the cells on which it is proved.
        refuted: (m, d, 2), cells at whose centre it fails, in interval arithmetic.
        undecided: (n, d, 2), the cells that are neither.
        rate: λ [1 / time].
        metric: M, (d, d).
        box: (2, d), the box.
        resolution: the narrowest cell is at least 1/resolution of the box's side.
    """

    cells: np.ndarray
    refuted: np.ndarray
    undecided: np.ndarray
    rate: float
    metric: np.ndarray
    box: np.ndarray
    resolution: int
    energy: Energy | None = field(default=None)

    @property
    def fraction(self) -> float:
        """The proved share of the box's volume, rounded down."""
        if not len(self.cells):
            return 0.0
        sides = (self.cells[..., 1] - self.cells[..., 0]) / (self.box[1] - self.box[0])
        return max(0.0, down(Fraction(float(np.prod(sides, axis=1).sum()) * (1 - 1e-12))))

    def contains(self, x: Any) -> Any:
        """Is a state in a proved cell? (d,) -> bool, (n, d) -> (n,) of bool.

        Raises:
            ValueError: x is not (d,) or (n, d).
        """
        points = np.asarray(x, dtype=np.float64)
        d = self.box.shape[1]
        if points.ndim not in (1, 2) or points.shape[-1] != d:
            raise ValueError(f"x must be ({d},) or (n, {d}); got shape {points.shape}.")
        rows = np.atleast_2d(points)
        out = np.zeros(len(rows), bool)
        for k in range(0, len(rows), 1024):
            part = rows[k : k + 1024, None]
            inside: np.ndarray = np.logical_and(part >= self.cells[..., 0], part <= self.cells[..., 1])
            out[k : k + 1024] = np.any(np.all(inside, axis=2), axis=1)
        return out if points.ndim == 2 else bool(out[0])

    @cached_property
    def largest_box(self) -> Box | None:
        """The box of largest volume, on the grid of the cells, inside their union; None where nothing is proved.

        Beyond three dimensions it is the largest single cell.
        """
        if not len(self.cells):
            return None
        if self.box.shape[1] > GRID:
            best = self.cells[np.argmax(np.prod(self.cells[..., 1] - self.cells[..., 0], axis=1))]
            return Box(*_decimals(best[:, 0], best[:, 1]))
        axes, filled = self._raster
        low, high = _largest(filled, [np.diff(a) for a in axes])
        lower = np.array([a[i] for a, i in zip(axes, low, strict=True)])
        upper = np.array([a[i] for a, i in zip(axes, high, strict=True)])
        return Box(*_decimals(lower, upper))

    @cached_property
    def largest_ball(self) -> Ball | None:
        """The largest ball inside the union that a search found; None where nothing is proved.

        It starts from the corners and centres of the cells and of the largest box, and moves where the ball grows.
        Beyond three dimensions it is the largest in a single cell.
        """
        if not len(self.cells):
            return None
        if self.box.shape[1] > GRID:
            sides = (self.cells[..., 1] - self.cells[..., 0]).min(axis=1)
            best = self.cells[np.argmax(sides)]
            return Ball(best.mean(axis=1), float(sides.max()) / 2 * (1 - 1e-9))
        axes, filled = self._raster
        inside = self.largest_box
        assert inside is not None
        middle = np.array([(float(a) + float(b)) / 2 for a, b in zip(inside.lower, inside.upper, strict=True)])
        return Ball(*_largest_ball(axes, filled, middle))

    @cached_property
    def _raster(self) -> tuple[list[np.ndarray], np.ndarray]:
        """The grid of all ends of cells, and which of its cells are proved."""
        d = self.box.shape[1]
        axes = [np.unique(np.concatenate([self.cells[:, i].ravel(), self.box[:, i]])) for i in range(d)]
        filled = np.zeros([len(a) - 1 for a in axes], bool)
        low = [np.searchsorted(a, self.cells[:, i, 0]) for i, a in enumerate(axes)]
        high = [np.searchsorted(a, self.cells[:, i, 1]) for i, a in enumerate(axes)]
        for k in range(len(self.cells)):
            filled[tuple(slice(low[i][k], high[i][k]) for i in range(d))] = True
        return axes, filled

    def plot(self, ax: Any = None, **view: Any) -> Any:
        """Draw the proved cells, on the landscape or in a plane: see `ctrlgen.plot.contraction_region`."""
        from ctrlgen import plot

        return plot.contraction_region(self, ax, **view)

    def _rows(self) -> list[tuple[str, str]]:
        rows = super()._rows()
        told = f"{len(self.cells)} proved ({self.fraction:.4g} of the box), {len(self.refuted)} refuted, "
        return [*rows[:3], ("cells", f"{told}{len(self.undecided)} undecided"), *rows[3:]]


def contraction_region(
    energy: Energy,
    box: Box,
    *,
    metric: Any = None,
    rate: float = 0.0,
    cells: int | None = None,
    timeout: float = 60.0,
) -> RegionVerdict:
    """The cells of a box on which ∇²E - λM ⪰ 0 is proved.

    Args:
        energy: networks, trained energies, mixtures, formulas, whatever JAX can trace, and sums of these. Third
            derivatives sharpen the enclosures of networks and formulas in up to 3 dimensions.
        box: a Box with finite sides.
        metric: M, positive definite, (d,) or (d, d); the identity when omitted.
        rate: λ [1 / time]; 0 asks where E is convex.
        cells: no side of a cell is narrower than that of the box divided by the power of two at or above this number;
            1024, 128, 32 or 8 in one, two, three or more dimensions when omitted.
        timeout: seconds; what is not settled then counts as undecided.

    Returns:
        PROVED with the cells where at least one was proved; REFUTED where the inequality fails along a direction on
        each of the cells that make up the box; else UNDECIDED, with the reason.

    Raises:
        ValueError: an argument is out of its range, or sizes disagree.
    """
    if not isinstance(energy, Energy):
        raise ValueError(f"energy must be an Energy; got {type(energy).__name__}.")
    d = energy.dim
    check_domain("box", box, plain_states(d))
    if not isinstance(box, Box):
        raise ValueError(f"box must be a Box; got {type(box).__name__}.")
    m = np.eye(d) if metric is None else positive_definite("metric", matrix_of(metric))
    if m.shape != (d, d):
        raise ValueError(f"metric must be ({d},) or ({d}, {d}); got one of {len(m)} dimensions.")
    number = isinstance(rate, (int, float, np.number)) and not isinstance(rate, bool)
    if not number or not -LARGEST <= rate <= LARGEST:
        raise ValueError(f"rate must be a finite number; got {rate!r}.")
    cells = CELLS.get(d, FEW) if cells is None else cells
    whole = isinstance(cells, (int, np.integer)) and not isinstance(cells, bool)
    if not whole or cells < 1:
        raise ValueError(f"cells must be an integer of at least 1; got {cells!r}.")
    deadline = check_timeout(timeout)
    ends = ends_of(box)
    levels = int(np.ceil(np.log2(cells)))
    known = {"rate": float(rate), "metric": m, "box": ends, "resolution": 2**levels, "energy": energy}
    empty = np.zeros((0, d, 2))
    text = "∇²E ⪰ 0" if rate == 0 else f"∇²E ⪰ {float(rate)!r} M"
    trouble = other_gradient(energy) or kink(energy)
    try:
        found = None if trouble else _divide(curvature(energy), Frame.of(m), float(rate), ends, levels, deadline)
    except ValueError as error:
        trouble, found = str(error), None
    if found is None:
        return combine(
            f"{text} on cells of {box!r}", [missing(text, trouble)], kind=RegionVerdict, deadline=deadline,
            cells=empty, refuted=empty, undecided=ends.T[None], **known,
        )  # fmt: skip
    return _verdict(found, text, box, known, deadline)


@dataclass(frozen=True)
class _Cells:
    """How the box was divided: cells (k, d, 2) by their state, and whether all that is refuted fails throughout."""

    proved: np.ndarray
    refuted: np.ndarray
    undecided: np.ndarray
    throughout: bool
    looked: int
    timed_out: bool


def _verdict(found: _Cells, text: str, box: Box, known: dict[str, Any], deadline: Deadline) -> RegionVerdict:
    energy, m, rate = known["energy"], known["metric"], known["rate"]
    words = f"{text} on {len(found.proved)} cells of {box!r}"
    if len(found.proved):
        proved = found.proved
        rule = f"outward rounded enclosures of ∇²E on {len(proved)} cells, of {found.looked} that were looked at"
        steps = [premise(words, rule, lambda: _all_hold(energy, m, rate, proved), "interval")]
    elif found.throughout:
        gone = found.refuted
        reason = "along one direction it fails on all of each cell that the box was divided into"
        ends = known["box"]
        steps = [
            refuted(f"{text} somewhere in {box!r}", reason, lambda: _all_fail(energy, m, rate, gone, ends), "interval")
        ]
    else:
        why = "the time was over" if found.timed_out else "it fails, or enclosures were too wide. Ask for more cells"
        steps = [missing(words, f"no cell was proved: {why}")]
    meaning = (
        f"two trajectories with the same noise {_follows(rate)} in |·|_M while both stay in a convex set of these cells"
    )
    return combine(
        words if len(found.proved) else f"{text} on some cell of {box!r}", steps, kind=RegionVerdict, meaning=meaning,
        deadline=deadline, cells=found.proved, refuted=found.refuted, undecided=found.undecided, **known,
    )  # fmt: skip


def _follows(rate: float) -> str:
    if rate > 0:
        return f"contract at λ = {shown_down(rate)}"
    return "do not separate" if rate == 0 else f"separate at no more than {shown_up(-rate)}"


# Division -------------------------------------------------------------------------------------------------------------


def _divide(inner: Curvature, frame: Frame, rate: float, box: np.ndarray, levels: int, deadline: Deadline) -> _Cells:
    """Halve cells until each is settled or as narrow as may be."""
    d = box.shape[1]
    low, high, depth = box[:1].copy(), box[1:].copy(), np.zeros((1, d), int)
    kept: dict[int, list[np.ndarray]] = {PROVED: [], OPEN: [], REFUTED: []}
    looked, throughout = 0, True
    while len(low) and not deadline.over and looked < MOST_CELLS:
        low, high, depth, rest = _first(low, high, depth)
        state = _states(inner, frame, rate, low, high)
        looked += len(low)
        for which in (PROVED, REFUTED):
            kept[which].append(np.stack([low[state == which], high[state == which]], axis=2))
        left = state == OPEN
        low, high, depth = low[left], high[left], depth[left]
        done = (depth >= levels).all(axis=1)
        if done.any():
            throughout = False
            kept_low, kept_high = low[done], high[done]
            failing = _fails_at_centre(inner, frame, rate, kept_low, kept_high)
            both = np.stack([kept_low, kept_high], axis=2)
            kept[REFUTED].append(both[failing])
            kept[OPEN].append(both[~failing])
        low, high, depth = low[~done], high[~done], depth[~done]
        if len(low):
            # the side that is longest in the metric's units, of those that may be halved
            length = np.where(depth < levels, (high - low) * np.sqrt(np.diag(frame.metric)), -1.0)
            side = np.argmax(length, axis=1)
            depth[np.arange(len(low)), side] += 1
            low, high = halves(low, high, side)
            depth = np.concatenate([depth, depth])
        low, high, depth = (np.concatenate([a, b]) for a, b in zip((low, high, depth), rest, strict=True))
    kept[OPEN].append(np.stack([low, high], axis=2))
    cells = {k: np.concatenate(v) if v else np.zeros((0, d, 2)) for k, v in kept.items()}
    throughout = throughout and not len(cells[OPEN])
    return _Cells(cells[PROVED], cells[REFUTED], cells[OPEN], throughout, looked, bool(len(low)))


def _first(low: np.ndarray, high: np.ndarray, depth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, Any]:
    """The coarsest cells, a chunk of them, and all others."""
    order = np.argsort(depth.sum(axis=1), kind="stable")
    now, later = order[:CHUNK], order[CHUNK:]
    return low[now], high[now], depth[now], (low[later], high[later], depth[later])


def _states(inner: Curvature, frame: Frame, rate: float, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """PROVED, REFUTED (along one direction on all of the cell) or OPEN, by cell."""
    with np.errstate(invalid="ignore", over="ignore"):
        h = inner(Intervals.between(low, high))
        state = np.where(frame.lowest(h) >= rate, PROVED, OPEN)
        return np.where(_failing(frame, h, rate), REFUTED, state)


def _fails_at_centre(inner: Curvature, frame: Frame, rate: float, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Does it fail at the centres? In interval arithmetic: what rounding leaves open does not."""
    with np.errstate(invalid="ignore", over="ignore"):
        return _failing(frame, inner(Intervals.exact(low / 2 + high / 2)), rate)


def _failing(frame: Frame, h: Intervals, rate: float) -> np.ndarray:
    """Is vᵀ(H - λM)v < 0 for one v and every H, by interval matrix? v is the middle's lowest direction, rounded."""
    known: np.ndarray = np.logical_and(np.isfinite(h.mid).all(axis=(1, 2)), np.isfinite(h.rad).all(axis=(1, 2)))
    mid = np.where(known[:, None, None], h.mid, 0.0)
    carried = frame.root.T @ ((mid + mid.swapaxes(1, 2)) / 2) @ frame.root
    vectors = np.linalg.eigh(carried)[1][:, :, 0] @ frame.root.T
    v = Intervals.exact(vectors[:, :, None])
    left = h - Intervals.exact(rate) * Intervals.exact(frame.metric)
    form = v.mT @ Intervals(np.where(known[:, None, None], left.mid, 0.0), left.rad) @ v
    return known & (form.high[:, 0, 0] < 0)


def _all_hold(energy: Energy, metric: np.ndarray, rate: float, cells: np.ndarray) -> bool:
    return _every(energy, metric, rate, cells, PROVED)


def _all_fail(energy: Energy, metric: np.ndarray, rate: float, cells: np.ndarray, box: np.ndarray) -> bool:
    return covers(cells[..., 0], cells[..., 1], box) and _every(energy, metric, rate, cells, REFUTED)


def _every(energy: Energy, metric: np.ndarray, rate: float, cells: np.ndarray, wanted: int) -> bool:
    """Are the cells all in this state, when they are looked at again?"""
    inner, frame = curvature(energy), Frame.of(metric)
    parts = (cells[k : k + CHUNK] for k in range(0, len(cells), CHUNK))
    return all((_states(inner, frame, rate, c[..., 0], c[..., 1]) == wanted).all() for c in parts)


# Convex subsets -------------------------------------------------------------------------------------------------------


def _largest(filled: np.ndarray, sides: Sequence[np.ndarray]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Index ranges (low, high) of the box of largest volume among filled cells of a grid with these side lengths."""
    if filled.ndim == 1:
        return _longest(filled, np.concatenate([[0.0], np.cumsum(sides[0])]))
    best, where = -1.0, ((0,) * filled.ndim, (0,) * filled.ndim)
    n = len(filled)
    for start in range(n):
        layer = filled[start].copy()
        for end in range(start, n):
            layer &= filled[end]
            if not layer.any():
                break
            thick = float(sides[0][start : end + 1].sum())
            low, high = _largest(layer, sides[1:])
            size = thick * float(np.prod([s[a:b].sum() for s, a, b in zip(sides[1:], low, high, strict=True)]))
            if size > best:
                best, where = size, ((start, *low), (end + 1, *high))
    return where


def _longest(filled: np.ndarray, ends: np.ndarray) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The longest run of filled cells, as ((low,), (high,))."""
    change = np.flatnonzero(np.diff(np.concatenate([[0], filled.astype(int), [0]])))
    starts, stops = change[::2], change[1::2]
    if not len(starts):
        return (0,), (0,)
    k = int(np.argmax(ends[stops] - ends[starts]))
    return (int(starts[k]),), (int(stops[k]),)


def _largest_ball(axes: Sequence[np.ndarray], filled: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, float]:
    """Centre and radius, rounded down, of a ball among the filled cells of a grid."""
    d = filled.ndim
    corners = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, d)
    middles = np.stack(np.meshgrid(*[(a[:-1] + a[1:]) / 2 for a in axes], indexing="ij"), -1).reshape(-1, d)
    centres = np.concatenate([start[None], middles[filled.ravel()], corners])
    ends = np.array([[a[0], a[-1]] for a in axes])
    border = np.minimum(centres - ends[:, 0], ends[:, 1] - centres).min(axis=1)
    empty = np.argwhere(~filled)
    low = np.stack([axes[i][empty[:, i]] for i in range(d)], -1)
    high = np.stack([axes[i][empty[:, i] + 1] for i in range(d)], -1)

    def radius(x: np.ndarray) -> float:
        reach = float(np.minimum(x - ends[:, 0], ends[:, 1] - x).min())
        gap = np.maximum(np.maximum(low - x, x - high), 0.0)
        return min(reach, float(np.sqrt((gap * gap).sum(axis=1)).min())) if len(gap) else reach

    best, place = radius(start), start
    for k in np.argsort(-border):  # no ball reaches beyond the border
        if border[k] <= best:
            break
        if (found := radius(centres[k])) > best:
            best, place = found, centres[k]
    moves = np.array([m for m in itertools.product([-1.0, 0.0, 1.0], repeat=d) if any(m)])
    step = float((ends[:, 1] - ends[:, 0]).max()) / 8
    while step > 1e-4 * best:
        tries = [place + step * m for m in moves]
        sizes = [radius(x) for x in tries]
        k = int(np.argmax(sizes))
        if sizes[k] > best:
            best, place = sizes[k], tries[k]
        else:
            step /= 2
    return place, best * (1 - 1e-9)


def _decimals(lower: np.ndarray, upper: np.ndarray) -> tuple[list[Any], list[Any]]:
    """The ends as the numbers that they are, not as the decimals that they print as."""
    return [rational(float(v)) for v in lower], [rational(float(v)) for v in upper]
