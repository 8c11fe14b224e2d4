"""What a metric is worth, rigorously: low·M ⪯ H ⪯ high·M for every H in interval matrices, and over a box.

With any R of floats and G = RᵀMR, A = RᵀHR in interval arithmetic: if G ≻ 0 (then R is invertible) and A ⪰ a I, then
H ⪰ (a/g)M with g an upper bound of G for a ≥ 0, and a lower one for a < 0. R = M^-½ in floating point makes the bounds
sharp, whatever the units of the coordinates; no accuracy of it is relied upon.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from ctrlgen.accelerate._enclosures import Curvature
from ctrlgen.accelerate._programs import inverse_root
from ctrlgen.domain import Box
from ctrlgen.energies.bounds import lowest_over
from ctrlgen.energies.intervals import Intervals
from ctrlgen.energies.spectral import UNIT, down, frobenius, gamma, lowest_eigenvalue, up
from ctrlgen.prove.claim import Deadline

CHUNK = 256  # boxes at a time
SPLIT = 0.25  # share of the boxes that a round splits for each end


@dataclass(frozen=True)
class Frame:
    """A metric with what carries an interval matrix into its units.

    Args:
        metric: M, (d, d), floats, taken exactly.
        root: R, about M^-½.
        low, high: low·I ⪯ RᵀMR ⪯ high·I, low > 0.
    """

    metric: np.ndarray
    root: np.ndarray
    low: float
    high: float

    @classmethod
    def of(cls, metric: np.ndarray) -> Frame:
        """The frame of a metric.

        Raises:
            ValueError: M is not positive definite, or too close to it for floats to tell.
        """
        try:
            root = inverse_root(metric)
        except np.linalg.LinAlgError:
            raise ValueError("the metric must be positive definite.") from None
        g = _carried(Intervals.exact(metric[None]), root)
        low, high = float(_lowest(g)[0]), -float(_lowest(-g)[0])
        if not (low > 0 and np.isfinite(high)):
            raise ValueError("the metric must be positive definite beyond the rounding of floats.")
        return cls(metric, root, low, high)

    def lowest(self, hessians: Intervals) -> np.ndarray:
        """(n,): l with H ⪰ l·M for every symmetric H in each of n interval matrices; -inf where none is known."""
        with np.errstate(invalid="ignore", over="ignore"):
            found = _lowest(_carried(hessians, self.root))
        out = [down(Fraction(v) / Fraction(self.high if v >= 0 else self.low)) if math.isfinite(v) else -math.inf
               for v in map(float, found)]  # fmt: skip
        return np.array(out)

    def highest(self, hessians: Intervals) -> np.ndarray:
        """(n,): u with H ⪯ u·M, likewise."""
        return -self.lowest(-hessians)


def _lowest(matrices: Intervals) -> np.ndarray:
    """(n,): lower bounds of the eigenvalues of the symmetric matrices in interval matrices.

    An eigenvalue rises with the diagonal, so that its lower ends stand for it. Off the diagonal the radius E moves no
    eigenvalue by more than its row sums, nor than its Frobenius norm.
    """
    n, d = matrices.mid.shape[:2]
    if d < 3:
        return lowest_over(matrices)
    out = np.full(n, -np.inf)
    matrices = _symmetric(matrices.mid, np.broadcast_to(matrices.rad, matrices.mid.shape))
    rad = matrices.rad
    for k in np.flatnonzero(np.isfinite(rad).all(axis=(1, 2)) & np.isfinite(matrices.mid).all(axis=(1, 2))):
        middle, rest = matrices.mid[k].copy(), rad[k].copy()
        middle[np.diag_indices(d)] = np.diag(matrices.low[k])
        np.fill_diagonal(rest, 0.0)
        move = min(frobenius(rest), float(rest.sum(axis=1).max()) * (1 + gamma(d)))
        out[k] = math.nextafter(lowest_eigenvalue(middle, np.zeros((d, d))) - move, -math.inf)
    return out


def _symmetric(mid: np.ndarray, rad: np.ndarray) -> Intervals:
    """Intervals with symmetric centres and radii that hold the same symmetric matrices."""
    with np.errstate(invalid="ignore"):  # of what is not known
        middle, gap = (mid + mid.swapaxes(1, 2)) / 2, np.abs(mid - mid.swapaxes(1, 2))
        wide = np.maximum(rad, rad.swapaxes(1, 2))
        loose = (wide + gap + 2 * UNIT * np.abs(middle)) * (1 + 4 * UNIT)
        return Intervals(middle, np.where(gap > 0, loose, wide))


def _carried(matrices: Intervals, root: np.ndarray) -> Intervals:
    """RᵀAR, made symmetric: the symmetric matrices among them are carried to symmetric ones."""
    n, d = len(matrices.mid), len(root)
    known = np.isfinite(matrices.rad).all(axis=(1, 2)) & np.isfinite(matrices.mid).all(axis=(1, 2))
    unknown: np.ndarray = np.logical_not(known)
    mid = np.where(unknown[:, None, None], 0.0, matrices.mid)
    rad = np.where(unknown[:, None, None], 0.0, matrices.rad)
    both = _symmetric(mid, rad)
    if np.array_equal(root, np.diag(np.diag(root))):
        scale = Intervals.exact(np.diag(root))
        out = both * scale * scale[:, None]
    else:
        exact = Intervals.exact(root)
        out = exact.mT @ both @ exact
    rad = np.where(unknown[:, None, None], np.inf, np.broadcast_to(out.rad, (n, d, d)))
    return Intervals(out.mid, rad)


@dataclass(frozen=True)
class Range:
    """low·M ⪯ ∇²E ⪯ high·M on the union of these boxes.

    Args:
        low, high: the bounds; -inf or inf where none was found.
        lower, upper: (k, d), the boxes that were looked at.
    """

    low: float
    high: float
    lower: np.ndarray
    upper: np.ndarray


def over_box(
    inner: Curvature,
    frame: Frame,
    box: np.ndarray,
    budget: int,
    deadline: Deadline,
    enough: tuple[float, float] = (np.inf, -np.inf),
    upper: bool = True,
) -> Range:
    """Bounds over a box (2, d): the boxes whose bounds are worst are split.

    It ends when the budget of boxes or the time is spent, or when low ≥ enough[0] and, where `upper` is asked for,
    high ≤ enough[1].
    """
    low, high = box[:1], box[1:]
    ends, sides = _look(inner, frame, low, high)
    used = 1
    while used < budget and not deadline.over:
        if ends[0].min() >= enough[0] and (not upper or ends[1].max() <= enough[1]):
            break
        n = len(low)
        take = max(1, min(int(SPLIT * n) + 1, (budget - used) // 4 + 1))
        worst = np.unique(
            np.concatenate([np.argsort(e, kind="stable")[:take] for e in (ends[0], -ends[1])[: 1 + upper]])
        )
        worst = worst[(high[worst] > low[worst]).any(axis=1)]
        if len(worst) == 0:
            break
        a, b = halves(low[worst], high[worst], sides[worst])
        new, directions = _look(inner, frame, a, b)
        parents = np.concatenate([ends[:, worst]] * 2, axis=1)
        new = np.stack([np.fmax(new[0], parents[0]), np.fmin(new[1], parents[1])])
        keep = np.setdiff1d(np.arange(n), worst)
        low, high = np.concatenate([low[keep], a]), np.concatenate([high[keep], b])
        ends = np.concatenate([ends[:, keep], new], axis=1)
        sides = np.concatenate([sides[keep], directions])
        used += 2 * len(worst)
    return Range(float(ends[0].min()), float(ends[1].max()), low, high)


def holds(inner: Curvature, frame: Frame, found: Range, low: float, high: float, box: np.ndarray) -> bool:
    """Are low·M ⪯ ∇²E ⪯ high·M on all of the box (2, d)? Its boxes are enclosed again, and must cover it."""
    if not covers(found.lower, found.upper, box):
        return False
    for k in range(0, len(found.lower), CHUNK):
        h = inner(Intervals.between(found.lower[k : k + CHUNK], found.upper[k : k + CHUNK]))
        if not ((frame.lowest(h) >= low).all() and (frame.highest(h) <= high).all()):
            return False
    return True


def covers(lower: np.ndarray, upper: np.ndarray, box: np.ndarray) -> bool:
    """Do boxes that were made by halving cover the box? By halving it again until each part is one of them."""
    known = {(*map(float, a), *map(float, b)) for a, b in zip(lower, upper, strict=True)}
    stack = [(box[0], box[1], lower, upper)]
    while stack:
        a, b, low, high = stack.pop()
        if (*map(float, a), *map(float, b)) in known:
            continue
        inside = ((low >= a) & (high <= b)).all(axis=1)
        low, high = low[inside], high[inside]
        for side in range(len(a)):
            middle = a[side] / 2 + b[side] / 2
            left = high[:, side] <= middle
            if len(low) >= 2 and left.any() and (low[~left, side] >= middle).all() and not left.all():
                stack.append((a, _set(b, side, middle), low[left], high[left]))
                stack.append((_set(a, side, middle), b, low[~left], high[~left]))
                break
        else:
            return False
    return True


def _set(x: np.ndarray, i: int, value: float) -> np.ndarray:
    out = x.copy()
    out[i] = value
    return out


def halves(low: np.ndarray, high: np.ndarray, side: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two halves of each box (n, d) across one side each: lower and upper ends (2n, d), all left ones first."""
    rows = np.arange(len(low))
    middle = low[rows, side] / 2 + high[rows, side] / 2
    left, right = high.copy(), low.copy()
    left[rows, side] = right[rows, side] = middle
    return np.concatenate([low, right]), np.concatenate([left, high])


def _look(inner: Curvature, frame: Frame, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(2, n) bounds of the boxes, and the side of each that is longest in the metric."""
    parts = []
    for k in range(0, len(low), CHUNK):
        h = inner(Intervals.between(low[k : k + CHUNK], high[k : k + CHUNK]))
        parts.append(np.stack([frame.lowest(h), frame.highest(h)]))
    length = (high - low) * np.sqrt(np.diag(frame.metric))
    return np.concatenate(parts, axis=1), np.argmax(length, axis=1)


def ends_of(box: Box) -> np.ndarray:
    """(2, d): the smallest box of floats around a box of exact numbers.

    Raises:
        ValueError: a side is open.
    """
    return np.array([[_outer(v, sign) for v in side] for side, sign in ((box.lower, -1), (box.upper, 1))])


def _outer(number: Any, sign: int) -> float:
    if not number.is_finite:
        raise ValueError(f"the box must be finite for intervals; a side is {number}.")
    if number.is_Rational:
        exact = Fraction(int(number.p), int(number.q))
        return down(exact) if sign < 0 else up(exact)
    near = float(number)
    return math.nextafter(math.nextafter(near, sign * math.inf), sign * math.inf)
