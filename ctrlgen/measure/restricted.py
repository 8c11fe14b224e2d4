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
from ctrlgen.energies.safe_sets import deep_point, depths, joined
from ctrlgen.estimate import Estimate
from ctrlgen.precision import float64

_NODES = 5  # Gauss-Legendre nodes across and along the lines of a cell
_LOOKS = 5  # points of a line at which it is seen on which side of the walls it is
_ROOT = 14  # steps of the search for a crossing
_CURVED = 2.0  # times the first-order change of h over a cell: beyond it, no wall passes
_LINEAR = 0.5  # times that change, and times |h|: farther from linear, how walls pass is not known
_BATCH = 4096  # points a call, always the same number: one compilation
_DRAWS = 200_000  # for the share of the mass behind the walls, where draws are exact and cheap
_FEW_DRAWS = 20_000  # elsewhere
_HITS = 10  # effective draws inside, below which their share says nothing
_UPHILL = 20  # steps from outside towards the set
_OVER = 1.2  # times a Newton step, to end inside and not at the wall
_SCALES = 4.0 ** np.arange(-3, 6)  # distances at which parts of the set are looked for
_GUESSES = 512  # points at each
_CLUSTERS = {1: 64, 2: 12, 3: 6}  # a side, into which points inside are put, by dimension
_CROWD = {1: 8, 2: 32, 3: 32}  # points, of both sides of a wall, that a cell may hold before it is split
_SWARMS = 32  # scrambled sequences over which the share of the mass inside is averaged
_SWARM = {1: 512, 2: 512, 3: 1024}  # points of each
_HEARD = 100  # effective points inside, from which on that share is compared with a quadrature


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
            points = uphill(self, guesses(np.zeros(self.dim)))
            depth = np.where(self.least(points) > 0, depths(self.constraints, points), -np.inf)
            found = points[depth.argmax()] if depth.max() > 0 else None
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

    def ranges(self, centre: np.ndarray, half: np.ndarray) -> tuple[np.ndarray, ...]:
        """What walls do to cells.

        Args:
            centre, half: (n, d).

        Returns:
            About the range of each h, low and high (m, n); the axis (n,) along which walls are best crossed;
            whether a wall leaves the cell through other sides than those two (n,): then what a line holds has a kink;
            and whether h is too far from linear in the cell for any of this to be relied on (n,).
        """
        corners = centre[:, None, :] + half[:, None, :] * self.corners
        at = self.values(corners.reshape(-1, self.dim)).reshape(len(self.constraints), len(centre), -1)
        value, slope = self.values(centre), self.slopes(centre) * half.T
        off = np.abs(at - value[:, :, None] - np.einsum("mdn,cd->mnc", slope, self.corners)).max(axis=2)
        slope = np.abs(slope)
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
        bent = (off > _LINEAR * change) & (off >= _LINEAR * np.abs(value))
        unsure = bent.any(axis=0) & ~((high < 0) & ~bent).any(axis=0)
        return low, high, axis, (~across & (low < 0) & (high > 0)).any(axis=0) & (self.dim > 1), unsure

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


# Parts of the set that a lattice may miss ----------------------------------------------------------------------------


def uphill(behind: Behind, x: np.ndarray) -> np.ndarray:
    """Points (n, d), those outside led uphill in min h_j until they are inside, or as far as that leads."""
    x = x.copy()
    for _ in range(_UPHILL):
        values = behind.values(x)
        worst = np.nan_to_num(values, nan=-np.inf).argmin(axis=0)
        every = np.arange(len(x))
        least = values[worst, every]
        out = np.flatnonzero((least < 0) & np.isfinite(least))
        if not len(out):
            break
        slope = behind.slopes(x[out])[worst[out], :, np.arange(len(out))]
        with np.errstate(all="ignore"):
            step = -_OVER * (least[out] / (slope**2).sum(axis=1))[:, None] * slope
            most = (1 + np.linalg.norm(x[out], axis=1)) / np.linalg.norm(step, axis=1)
            step *= np.minimum(1.0, most)[:, None]
        x[out] += np.where(np.isfinite(step), step, 0.0)
    return x


def guesses(centre: np.ndarray) -> np.ndarray:
    """Points (n, d) at all distances from a centre (d,)."""
    xi = np.random.default_rng(0).uniform(-1, 1, (len(_SCALES), _GUESSES, len(centre)))
    return (centre + _SCALES[:, None, None] * xi).reshape(-1, len(centre))


def scattered(x: np.ndarray, height: np.ndarray) -> np.ndarray:
    """Of points (n, d) the lowest in each cell of a lattice over them all, lowest first: an index."""
    order = np.argsort(height)
    low, high = x.min(axis=0), x.max(axis=0)
    cell = ((x[order] - low) / np.maximum(high - low, 1e-300) * _CLUSTERS[x.shape[1]]).astype(int)
    return order[np.sort(np.unique(cell, axis=0, return_index=True)[1])]


def swarms(dim: int) -> np.ndarray:
    """Scrambled Sobol sequences in the unit cube, (sequences, points, d), for averages with an error."""
    from scipy.stats import qmc

    size = _SWARM[dim].bit_length() - 1
    return np.stack([qmc.Sobol(dim, rng=seed).random_base2(size) for seed in range(_SWARMS)])


class Witnesses:
    """Points known to be inside or outside, with which cells must agree.

    Args:
        x: (n, d).
        inside: (n,), whether each is.
        height: (n,), E/ε, of a point outside that without walls.
        lowest: what the heights are above.
    """

    def __init__(self, x: np.ndarray, inside: np.ndarray, height: np.ndarray, lowest: float) -> None:
        self.x, self.inside = x, inside
        self.depth = np.exp(np.minimum(lowest - height, 600.0))
        self.home = np.full(len(x), -1)  # number of the cell in which each is
        self.crowd = _CROWD[x.shape[1]]

    def enter(self, lower: np.ndarray, upper: np.ndarray, counts: np.ndarray, first: int) -> None:
        """A box is added, cut evenly into cells numbered from `first`, the last axis fastest."""
        place = np.floor((self.x - lower) / (upper - lower) * counts)
        new = np.flatnonzero((self.home < 0) & ((place >= 0) & (place < counts)).all(axis=1))
        self.home[new] = first + np.ravel_multi_index(tuple(place[new].astype(int).T), tuple(counts))

    def divide(self, split: np.ndarray, centre: np.ndarray) -> None:
        """Cells marked in `split` (n,), with these centres, are removed, and their halves appended in their order."""
        kept, gone = np.cumsum(~split) - 1, np.cumsum(split) - 1
        at = np.flatnonzero(self.home >= 0)
        home = self.home[at]
        bits = (self.x[at] > centre[home]) @ (1 << np.arange(self.x.shape[1])[::-1])
        parts = 1 << self.x.shape[1]
        self.home[at] = np.where(split[home], kept[-1] + 1 + parts * gone[home] + bits, kept[home])

    def doubts(self, value: np.ndarray, whole: np.ndarray, first: int) -> np.ndarray:
        """The greatest density in those of the cells numbered from `first` that disagree with the points in them, or
        hold many on both sides of a wall; 0 in others.

        Args:
            value: (n,), the integral over each.
            whole: (n,), whether it was taken to be inside altogether.
            first: number of the first.
        """
        n, at = len(value), np.flatnonzero(self.home >= first)
        home, inside = self.home[at] - first, self.inside[at]
        within, without = np.bincount(home[inside], minlength=n), np.bincount(home[~inside], minlength=n)
        mixed = (within > 0) & (without > 0) & (within + without > self.crowd)
        doubted = ((within > 0) & (value == 0)) | ((without > 0) & whole) | mixed
        out = np.zeros(n)
        np.maximum.at(out, home, self.depth[at])
        return np.where(doubted, out, 0.0)


def share(weights: np.ndarray) -> tuple[float, float] | None:
    """A mean with its standard error over the swarms of weights (swarms, points); None where few of them count."""
    if not (np.isfinite(weights).all() and weights.sum() ** 2 >= _HEARD * (weights**2).sum() > 0):
        return None
    means = weights.mean(axis=1)
    return float(means.mean()), float(means.std(ddof=1) / math.sqrt(len(means)))


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
