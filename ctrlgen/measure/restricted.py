"""Energies behind walls: which cells a wall cuts, integrals over what it leaves of them, and log Z by its share.

A density that jumps at a wall is integrated along lines: from crossing to crossing of the wall, where it is smooth.
Those crossings are found to rounding, so that what is left is the error of the rule across the lines.
"""

from __future__ import annotations

import math
from functools import cached_property
from itertools import product
from typing import Any

import equinox as eqx
import numpy as np

from ctrlgen.energies.algebra import Parted, compose, parted
from ctrlgen.energies.base import Energy
from ctrlgen.energies.safe_sets import deep_point, joined
from ctrlgen.estimate import Estimate
from ctrlgen.precision import float64

_NODES = 5  # Gauss-Legendre nodes across and along the lines of a cell
_LOOKS = 5  # points of a line at which it is seen on which side of the walls it is
_ROOT = 14  # steps of the search for a crossing
_CURVED = 2.0  # times the first-order change of h over a cell: beyond it, no wall passes
_BATCH = 4096  # points a call, always the same number: one compilation
_DRAWS = 200_000  # for the share of the mass behind the walls, where draws are exact and cheap
_FEW_DRAWS = 20_000  # elsewhere
_HITS = 10  # effective draws inside, below which their share says nothing


class Behind:
    """An energy with walls: its set, and what the energy is on it.

    Args:
        energy: E with `Walls` or a `LogBarrier` among its terms.
    """

    def __init__(self, energy: Energy) -> None:
        self.parts: Parted = parted(energy)
        self.constraints = joined(*(s.constraints for s in self.parts.sets))
        self.dim = energy.dim
        self.barriers = list(self.parts.barriers)
        terms = [] if self.parts.rest is None else [(1.0, self.parts.rest)]
        terms += self.barriers
        self.free = compose([t for _, t in terms], [w for w, _ in terms], check=False) if terms else None
        self.outer = np.array(list(product(np.polynomial.legendre.leggauss(_NODES)[0], repeat=self.dim - 1)))
        across = np.polynomial.legendre.leggauss(_NODES)[1] / 2
        self.across = np.array([math.prod(w) for w in product(across, repeat=self.dim - 1)])
        self.corners = np.array(list(product((-1.0, 1.0), repeat=self.dim)))

    @cached_property
    def deep(self) -> np.ndarray:
        """A point inside, (d,), far from the walls.

        Raises:
            ValueError: none was found.
        """
        found = deep_point(self.constraints)
        if found is None:
            raise ValueError(
                "no point inside the walls was found: the safe set is empty, has no inside, or is far from the origin "
                f"and small. It is {', '.join(map(repr, self.constraints))} ≥ 0."
            )
        return found

    def values(self, x: np.ndarray) -> np.ndarray:
        """h at points (n, d), (m, n)."""
        return self._batched(_values, x)

    def least(self, x: np.ndarray) -> np.ndarray:
        """min h_j at points (n, d), (n,): negative outside."""
        return np.nan_to_num(self._batched(_least, x), nan=-1.0)

    def slopes(self, x: np.ndarray) -> np.ndarray:
        """∇h at points (n, d), (m, d, n)."""
        return self._batched(_slopes, x)

    def _batched(self, function: Any, x: np.ndarray) -> np.ndarray:
        out = []
        with float64():
            for i in range(0, len(x), _BATCH):
                part = x[i : i + _BATCH]
                padded = np.concatenate([part, np.broadcast_to(part[-1:], (_BATCH - len(part), self.dim))])
                out.append(np.asarray(_called(function, self.constraints, padded.T))[..., : len(part)])
        return np.concatenate(out, axis=-1)

    def ranges(self, centre: np.ndarray, half: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """What walls do to cells.

        Args:
            centre, half: (n, d).

        Returns:
            About the range of each h, low and high (m, n); the axis (n,) along which walls are best crossed; and
            whether a wall leaves the cell through other sides than those two (n,): then what a line holds has a kink.
        """
        corners = centre[:, None, :] + half[:, None, :] * self.corners
        at = self.values(corners.reshape(-1, self.dim)).reshape(len(self.constraints), len(centre), -1)
        value, slope = self.values(centre), np.abs(self.slopes(centre)) * half.T
        change = slope.sum(axis=1)
        low = np.minimum(value - _CURVED * change, at.min(axis=2))
        high = np.maximum(value + _CURVED * change, at.max(axis=2))
        with np.errstate(all="ignore"):
            nearest = np.nan_to_num(np.abs(value) / change, nan=np.inf).argmin(axis=0)
        axis = slope[nearest, :, np.arange(len(centre))].argmax(axis=1)
        upper, side = self.corners[:, axis].T > 0, at >= 0  # (n, corners), (m, n, corners)
        top, bottom = (np.where(end, side, True).all(axis=2) for end in (upper, ~upper))
        beyond = (np.where(end, ~side, True).all(axis=2) for end in (~upper, upper))
        across = (top & next(beyond)) | (bottom & next(beyond))
        low, high = np.nan_to_num(low, nan=-np.inf), np.nan_to_num(high, nan=np.inf)
        return low, high, axis, (~across & (low < 0) & (high > 0)).any(axis=0) & (self.dim > 1)

    def slices(self, centre: np.ndarray, half: np.ndarray, axis: np.ndarray, height: Any) -> np.ndarray:
        """∫ exp(-height) over the part of each cell (n, d) that is inside, along lines parallel to its axis.

        Args:
            centre, half, axis: of the cells.
            height: points (n, d) -> (n,), finite inside.
        """
        cells, lines = len(centre), len(self.outer)
        others = np.array([[i for i in range(self.dim) if i != a] for a in range(self.dim)], int)[axis]
        base = np.repeat(centre[:, None, :], lines, axis=1)  # (cells, lines, d), the coordinate of the axis is t
        rows = np.arange(cells)[:, None, None], np.arange(lines)[None, :, None], others[:, None, :]
        base[rows] += half[np.arange(cells)[:, None], others][:, None, :] * self.outer
        base, along = base.reshape(-1, self.dim), np.repeat(axis, lines)
        middle, reach = base[np.arange(len(base)), along], np.repeat(half[np.arange(cells), axis], lines)

        def at(line: np.ndarray, t: np.ndarray) -> np.ndarray:
            points = base[line]
            points[np.arange(len(line)), along[line]] = middle[line] + reach[line] * t
            return points

        line, left, right, edges = self._pieces(at, len(base))
        node, weight = np.polynomial.legendre.leggauss(_NODES)
        if self.barriers:  # h^{μ/ε} is not smooth at a wall: nodes gather there
            line, left, right, edges = _halved(line, left, right, edges)
        u, du = (node + 1) / 2, weight / 2
        s = np.broadcast_to(u, (len(line), _NODES)).copy()
        ds = np.broadcast_to(du, s.shape).copy()
        if self.barriers:
            s[edges[:, 0]], ds[edges[:, 0]] = u**3, 3 * u**2 * du
            s[edges[:, 1]], ds[edges[:, 1]] = 1 - (1 - u) ** 3, 3 * (1 - u) ** 2 * du
        t = left[:, None] + (right - left)[:, None] * s
        if not len(line):
            return np.zeros(cells)
        points = at(np.repeat(line, _NODES), t.ravel())
        density = np.exp(np.minimum(-height(points), 600.0)).reshape(len(line), _NODES)
        mass = (density * ds).sum(axis=1) * (right - left) * reach[line]
        per_line = np.bincount(line, mass, minlength=len(base)).reshape(cells, lines)
        area = np.prod(2 * half, axis=1) / (2 * half[np.arange(cells), axis])
        return per_line @ self.across * area

    def _pieces(self, at: Any, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The pieces of lines that are inside: line, left and right end in [-1, 1], and which ends are at a wall."""
        looks = np.linspace(-1, 1, _LOOKS)
        every = np.repeat(np.arange(count), _LOOKS)
        seen = self.least(at(every, np.tile(looks, count))).reshape(count, _LOOKS)
        change = (seen[:, :-1] >= 0) != (seen[:, 1:] >= 0)
        line, k = np.nonzero(change)
        cut = self._crossing(at, line, looks[k], looks[k + 1], seen[line, k], seen[line, k + 1])
        crossing = np.ones((count, _LOOKS - 1))
        crossing[line, k] = cut
        ends = np.concatenate([np.full((count, 1), -1.0), np.sort(crossing, axis=1), np.ones((count, 1))], axis=1)
        left, right = ends[:, :-1], ends[:, 1:]
        # between crossings the side alternates, starting from that of the first look
        inside = (seen[:, :1] >= 0) ^ (np.arange(_LOOKS)[None, :] % 2 == 1)
        kept = inside & (right > left)
        number = np.broadcast_to(np.arange(count)[:, None], left.shape)
        edges = np.stack([(left > -1)[kept], (right < 1)[kept]], axis=1)
        return number[kept], left[kept], right[kept], edges

    def _crossing(self, at: Any, line: Any, a: Any, b: Any, fa: Any, fb: Any) -> np.ndarray:
        """Where min h changes its sign between a and b: the Illinois rule."""
        a, b, fa, fb = (np.array(v, float) for v in (a, b, fa, fb))
        t = (a + b) / 2
        for _ in range(_ROOT if len(line) else 0):
            with np.errstate(all="ignore"):
                t = b - fb * (b - a) / (fb - fa)
            t = np.where(np.isfinite(t) & (t >= np.minimum(a, b)) & (t <= np.maximum(a, b)), t, (a + b) / 2)
            f = self.least(at(line, t))
            other = (f >= 0) != (fb >= 0)
            a, fa = np.where(other, b, a), np.where(other, fb, fa / 2)
            b, fb = t, f
        return t


def _halved(line: Any, left: Any, right: Any, edges: Any) -> tuple[Any, Any, Any, Any]:
    """Pieces with a wall at both ends as two with a wall at one."""
    both = edges.all(axis=1)
    middle = (left + right) / 2
    first, second = edges & np.array([True, False]), edges & np.array([False, True])
    return (
        np.concatenate([line, line[both]]),
        np.concatenate([left, middle[both]]),
        np.concatenate([np.where(both, middle, right), right[both]]),
        np.concatenate([np.where(both[:, None], first, edges), second[both]]),
    )


def _values(constraints: Any, x: Any) -> Any:
    return constraints.values(x, 0.0)


def _least(constraints: Any, x: Any) -> Any:
    return constraints.values(x, 0.0).min(axis=0)


def _slopes(constraints: Any, x: Any) -> Any:
    import jax.numpy as jnp

    return jnp.broadcast_to(constraints.gradients(x, 0.0), (len(constraints), *x.shape))


@eqx.filter_jit
def _called(function: Any, constraints: Any, x: Any) -> Any:
    return function(constraints, x)


def log_envelope(behind: Behind, temperature: float, centre: np.ndarray, half: np.ndarray) -> np.ndarray:
    """An upper bound of log Π h^{μ/ε} over each of the cells (n, d), by the range of h in it; 0 without barriers."""
    out = np.zeros(len(centre))
    if behind.barriers:
        high = dict(zip(behind.constraints, behind.ranges(centre, half)[1], strict=True))
        for weight, term in behind.barriers:
            with np.errstate(divide="ignore"):
                out += sum(weight / temperature * np.log(np.maximum(high[part], 0.0)) for part in term.constraints)
    return out


# Above three dimensions -------------------------------------------------------------------------------------------


def log_partition_by_share(energy: Energy, temperature: float, key: int) -> Estimate:
    """log Z of an energy behind walls: log Z without them, and log E[1_S Π h^{μ/ε}] over draws from that measure.

    Raises:
        ValueError: there is nothing but walls, no draw is inside, or none was found to be.
    """
    from ctrlgen.gibbs import Gibbs  # draws of a Gibbs measure stand below its normalisation

    behind = Behind(energy)
    if behind.parts.rest is None:
        raise ValueError(
            "log Z of walls alone, the volume of their set, is known in at most 3 dimensions; "
            f"this energy has {energy.dim}. Add a confining energy."
        )
    whole = Gibbs(behind.parts.rest, temperature)
    exact = whole.method.startswith("exact")
    x = whole.sample(key, _DRAWS if exact else _FEW_DRAWS)
    log_weight = log_factor(behind, x, temperature)
    top = log_weight.max()
    weight = np.exp(log_weight - top) if np.isfinite(top) else np.zeros(len(x))
    effective = float(weight.sum() ** 2 / max((weight**2).sum(), 1e-300))
    if effective < _HITS:
        raise ValueError(
            f"log Z behind the walls is not known: of {len(x)} draws from the energy without them "
            f"{int((weight > 0).sum())} are inside, and as few as {effective:.1f} count. Pass log_partition yourself."
        )
    mean = weight.mean()
    error = weight.std(ddof=1) / mean / math.sqrt(len(x))
    free = whole.log_partition
    return Estimate(float(free.value) + top + math.log(mean), math.hypot(float(free.error), error))


def log_factor(behind: Behind, x: np.ndarray, temperature: float) -> np.ndarray:
    """log of 1_S Π h_j^{μ/ε} at points (n, d), -∞ outside."""
    out = np.zeros(len(x))
    for term in behind.parts.walls:
        out = out - np.asarray(term(x))
    for weight, term in behind.barriers:
        out = out - weight * np.asarray(term(x)) / temperature
    return out
