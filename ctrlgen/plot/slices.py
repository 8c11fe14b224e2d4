"""Two coordinates of a state space, and what is drawn over them: where an inequality holds, sets, vector fields.

Of more than two dimensions a plane is drawn: coordinates `plane=(i, j)` vary, the others are held at the point `at`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax.numpy as jnp
import numpy as np
import sympy as sp
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import Normalize, to_rgba
from scipy import ndimage

from ctrlgen.domain import Domain
from ctrlgen.plot.look import BLACK, FAILS, GRID, MARGIN, OUTSIDE, mark_witness, readable, set_title
from ctrlgen.precision import float64

REACH = 2.0  # half a side of what is drawn where nothing says how much
ROOM = 0.08  # about a set, relative to it
SHARE = 0.9  # of the values that the colours resolve
IN_PLANE = 1e-9  # of the size of a point, that it may be off the plane
ARROWS = 15  # an axis, of the steps of a map


@dataclass(frozen=True)
class Slice:
    """What is drawn of a state space of two dimensions or more.

    Args:
        names: of the coordinates, d of them.
        plane: (i, j), those that vary.
        at: (d,), where the others are held.
        low, high: (2,), corners of what is drawn.
    """

    names: tuple[str, ...]
    plane: tuple[int, int]
    at: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @cached_property
    def axes(self) -> tuple[np.ndarray, np.ndarray]:
        """GRID values along each of the two coordinates."""
        across, up = (np.linspace(a, b, GRID) for a, b in zip(self.low, self.high, strict=True))
        return across, up

    @cached_property
    def points(self) -> np.ndarray:
        """(GRID², d) states, the first coordinate of the plane running fastest."""
        return self.states(*self.axes)

    def states(self, across: np.ndarray, up: np.ndarray) -> np.ndarray:
        """(len(up) · len(across), d) states of the plane."""
        x, y = np.meshgrid(across, up)
        out = np.broadcast_to(self.at, (x.size, len(self.at))).copy()
        out[:, self.plane[0]], out[:, self.plane[1]] = x.ravel(), y.ravel()
        return out

    def table(self, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """A function of states (n, d) -> (n,) over the plane, (GRID, GRID), rows upwards."""
        with np.errstate(all="ignore"):
            return np.asarray(function(self.points), dtype=np.float64).reshape(GRID, GRID)

    def place(self, x: Any) -> tuple[float, float]:
        """Where a state is seen in the plane."""
        return float(np.asarray(x)[self.plane[0]]), float(np.asarray(x)[self.plane[1]])

    def holds(self, x: Any) -> bool:
        """Does a state lie in the plane, up to rounding?"""
        x = np.asarray(x, dtype=np.float64)
        out = [k for k in range(len(self.at)) if k not in self.plane]
        size = max(float(np.abs(x).max()), float(np.abs(self.at).max()))
        return bool((np.abs(x - self.at)[out] <= IN_PLANE * size).all())

    def frame(self, ax: Axes) -> None:
        """Limits and labels; in more than two dimensions what is held, where, above the axes."""
        i, j = self.plane
        equal = 0.2 < np.divide(*(self.high - self.low)) < 5
        ax.set(xlim=(self.low[0], self.high[0]), ylim=(self.low[1], self.high[1]))
        ax.set(xlabel=readable(self.names[i]), ylabel=readable(self.names[j]), aspect="equal" if equal else "auto")
        held = [f"{n} = {v:.3g}" for k, (n, v) in enumerate(zip(self.names, self.at, strict=True)) if k not in (i, j)]
        if held:
            shown = ", ".join(held[:4]) + (f", ... ({len(held)} held)" if len(held) > 4 else "")
            above = ax.get_title()
            set_title(ax, f"{above}\n{shown}" if above else shown)


def make_slice(
    names: Sequence[Any],
    plane: tuple[int, int],
    at: Any,
    bounds: Any,
    *,
    domains: Sequence[Domain | None] = (),
    anchors: Sequence[Any] = (),
) -> Slice:
    """The plane that is asked for, as large as is asked for, else as its sets and points need.

    Args:
        names: of the d ≥ 2 coordinates.
        plane: two different coordinates.
        at: (d,) where the others are held; the first of `anchors`, or 0, when omitted.
        bounds: (2, 2), lower and upper corner in the plane, or (2, d) of all coordinates.
        domains: sets that are to be in the picture as far as they are bounded.
        anchors: points that are to be in the picture; None is left out.

    Raises:
        ValueError: an argument does not fit.
    """
    d, shown = len(names), [np.asarray(a, dtype=np.float64) for a in anchors if a is not None]
    plane = check_plane(plane, d)
    held = (shown[0] if shown else np.zeros(d)) if at is None else np.asarray(at, dtype=np.float64)
    if held.shape != (d,) or not np.isfinite(held).all():
        raise ValueError(f"at must be a state, {d} finite numbers; got {at!r}.")
    pick = list(plane)
    if bounds is not None:
        low, high = _given(bounds, d, pick)
    else:
        low, high = reach(names, domains, shown or [held])
        low, high = low[pick], high[pick]
    return Slice(tuple(map(str, names)), plane, held, low, high)


def check_plane(plane: Any, dim: int) -> tuple[int, int]:
    """Two different coordinates of `dim`.

    Raises:
        ValueError: they are not.
    """
    found = tuple(plane) if isinstance(plane, (tuple, list, np.ndarray)) else ()
    if len(found) != 2 or not all(isinstance(k, (int, np.integer)) and 0 <= k < dim for k in found):
        raise ValueError(f"plane must be two coordinates (i, j), each from 0 to {dim - 1}; got {plane!r}.")
    if found[0] == found[1]:
        raise ValueError(f"plane must be two different coordinates; got {plane!r}.")
    return int(found[0]), int(found[1])


def _given(bounds: Any, dim: int, pick: list[int]) -> tuple[np.ndarray, np.ndarray]:
    box = np.asarray(bounds, dtype=np.float64)
    if box.shape == (2, dim):
        box = box[:, pick]
    if box.shape != (2, 2) or not np.isfinite(box).all() or (box[0] >= box[1]).any():
        raise ValueError(f"bounds must be (2, 2), lower and upper corner in the plane, or (2, {dim}); got {bounds!r}.")
    return box[0], box[1]


def reach(
    names: Sequence[Any], domains: Sequence[Domain | None], anchors: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Corners (d,) that hold the bounded sides of the sets and the points, with some room."""
    points = np.atleast_2d(np.stack(anchors))
    low, high = np.full(len(names), np.inf), np.full(len(names), -np.inf)
    for domain in domains:
        for piece in () if domain is None else domain.pieces(names):
            for k, (a, b) in enumerate(piece.box):
                if a is not None and b is not None:
                    low[k], high[k] = min(low[k], float(a)), max(high[k], float(b))
    free = ~(low < high)
    centre = points[0]
    wide = max(REACH, 1.4 * float(np.abs(points - centre).max(initial=0.0)))
    low, high = np.where(free, centre - wide, low), np.where(free, centre + wide, high)
    low, high = np.minimum(low, points.min(axis=0)), np.maximum(high, points.max(axis=0))
    room = ROOM * (high - low)
    return low - room, high + room


# Functions of states in float64 ------------------------------------------------------------------------------


def of_field(field: Any) -> Callable[[np.ndarray], np.ndarray]:
    """A Field or VectorField as a function of states (n, d): (n,) or (n, d)."""

    def values(x: np.ndarray) -> np.ndarray:
        with float64():
            return np.asarray(field.columns(jnp.asarray(x.T))).T

    return values


def of_matrix(matrix: Any, states: Sequence[sp.Symbol]) -> Callable[[np.ndarray], np.ndarray]:
    """A symmetric matrix of formulas as a function of states: (n, d) -> (n, k, k)."""
    rows: Any = sp.Matrix(matrix)
    function = sp.lambdify(list(states), rows.flat(), modules=["scipy", "numpy"], cse=True)

    def values(x: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            entries = [np.real_if_close(np.broadcast_to(v, len(x))) for v in function(*x.T)]
        real = [np.where(np.isreal(v), np.real(v), np.nan) for v in entries]
        return np.stack(real, axis=-1).astype(np.float64).reshape(len(x), rows.rows, rows.cols)

    return values


def least_eigenvalue(matrix: Any, states: Sequence[sp.Symbol]) -> Callable[[np.ndarray], np.ndarray]:
    """The smallest eigenvalue of a symmetric matrix of formulas, (n, d) -> (n,); nan where it is not finite."""
    entries = of_matrix(matrix, states)

    def values(x: np.ndarray) -> np.ndarray:
        found = entries(x)
        out, good = np.full(len(x), np.nan), np.isfinite(found).all(axis=(1, 2))
        out[good] = np.linalg.eigvalsh(found[good])[:, 0]
        return out

    return values


def depth(domain: Domain, states: Sequence[Any]) -> Callable[[np.ndarray], np.ndarray]:
    """A function that is ≥ 0 on a set and < 0 outside, (n, d) -> (n,): the least guard of the best piece."""
    pieces = domain.pieces(states)
    symbols = [s if isinstance(s, sp.Symbol) else sp.Symbol(str(s), real=True) for s in states]
    return deepest([p.guards for p in pieces], symbols)


def deepest(pieces: Sequence[Sequence[Any]], states: Sequence[sp.Symbol]) -> Callable[[np.ndarray], np.ndarray]:
    """The least guard of the best piece, (n, d) -> (n,); 1 where a piece has no guards, -1 without pieces."""
    functions = [least_of(guards, states) for guards in pieces]

    def values(x: np.ndarray) -> np.ndarray:
        if not functions:
            return np.full(len(x), -1.0)
        return np.max([f(x) for f in functions], axis=0)

    return values


def least_of(guards: Sequence[Any], states: Sequence[sp.Symbol]) -> Callable[[np.ndarray], np.ndarray]:
    """The least of some formulas, (n, d) -> (n,); -1 where one is not finite, 1 where there are none."""
    function = sp.lambdify(list(states), list(guards), modules=["scipy", "numpy"]) if guards else None

    def values(x: np.ndarray) -> np.ndarray:
        if function is None:
            return np.ones(len(x))
        with np.errstate(all="ignore"):
            found = [np.broadcast_to(np.asarray(v, dtype=np.float64), len(x)) for v in function(*x.T)]
        return np.nan_to_num(np.min(found, axis=0), nan=-1.0)

    return values


# Drawing -----------------------------------------------------------------------------------------------------


def draw_sign(
    ax: Axes,
    plane: Slice,
    values: np.ndarray,
    label: str,
    *,
    good: int = 1,
    inside: np.ndarray | None = None,
    least: float = 0.0,
    zero: np.ndarray | None = None,
) -> None:
    """Values over the plane in two colours: where their sign is the good one, and, hatched, where it is not.

    Args:
        ax: where to draw.
        plane: what is drawn.
        values: (GRID, GRID).
        label: of the colour bar.
        good: 1 where positive values are wanted, -1 where negative ones are.
        inside: (GRID, GRID), ≥ 0 where anything is claimed; colours are scaled by these values.
        least: wrong values up to this share of the colours' end are not hatched.
        zero: (GRID, GRID), true where a value of exactly zero is wrong as well.
    """
    across, up = plane.axes
    shown = np.ma.masked_invalid(values)
    asked = shown if inside is None else np.ma.masked_where(inside < 0, shown)
    sizes = np.abs(asked.compressed() if asked.count() else shown.compressed())
    top = _round_up(float(np.quantile(sizes, SHARE)) if len(sizes) else 1.0)
    colours = MARGIN if good > 0 else MARGIN.reversed()
    levels = np.linspace(-top, top, 17)
    at_zero = np.zeros(values.shape, bool) if zero is None else zero & (values == 0)
    levels[8] = (1 if at_zero.any() else -1) * good * 1e-9 * top  # zero is good, unless it is said not to be
    drawn = ax.contourf(across, up, shown, levels=levels, cmap=colours, norm=Normalize(-top, top), extend="both")
    drawn.set_rasterized(True)
    wrong = np.ma.where(at_zero, 1e-3 * top, -good * shown)
    if shown.count() and float(wrong.max()) > least * top:
        wide = [least * top, float(wrong.max()) * 2]
        hatched = ax.contourf(across, up, wrong, levels=wide, colors=["none"], hatches=[FAILS], zorder=1.5)
        hatched.set(edgecolor="0.35", linewidth=0)
        if float(wrong.min()) < 0:
            ax.contour(across, up, wrong, levels=[0.0], colors=[BLACK], linewidths=0.9, zorder=1.6)
    if shown.count() and float(np.ptp(shown.compressed())) <= 1e-12 * top:
        same = f"{float(shown.compressed()[0]):.4g} everywhere"
        ax.text(0.5, 0.5, same, ha="center", va="center", transform=ax.transAxes, zorder=3)
    bar: Any = ax.figure.colorbar(drawn, ax=ax, shrink=0.85, pad=0.02, aspect=24, ticks=np.linspace(-top, top, 5))
    bar.set_label(label)
    bar.ax.tick_params(labelsize=7)
    bar.formatter.set_powerlimits((-2, 3))


def _round_up(value: float) -> float:
    """The next number of the kind 1, 2, 4, 6 or 8 times a power of ten; 1 for what is not positive."""
    if not (np.isfinite(value) and value > 0):
        return 1.0
    unit = 10.0 ** np.floor(np.log10(value))
    return unit * next(n for n in (1, 2, 4, 6, 8, 10) if value <= n * unit * (1 + 1e-12))


def draw_set(
    ax: Axes, plane: Slice, inside: np.ndarray, label: str, color: str, *, style: str = "-", hatch: str | None = None
) -> bool:
    """A set {inside ≥ 0} over the plane: pale or hatched inside, a line along its border. Is any of it seen?"""
    across, up = plane.axes
    if not (inside >= 0).any():
        return False
    look: dict[str, Any] = {"colors": ["none"], "hatches": [hatch]} if hatch else {"colors": [color], "alpha": 0.3}
    body = ax.contourf(across, up, inside, levels=[0.0, np.inf], zorder=1.7, **look)
    if hatch:
        body.set(edgecolor=color, linewidth=0)
    if (inside < 0).any():
        ax.contour(across, up, inside, levels=[0.0], colors=[color], linestyles=[style], linewidths=1.4, zorder=2)
    face = to_rgba(color, 0.0 if hatch else 0.35)
    key = PolyCollection([], facecolors=[face], edgecolors=[color], linestyles=[style], hatch=hatch, label=label)
    ax.add_collection(key, autolim=False)  # an entry of the legend
    return True


def draw_outside(ax: Axes, plane: Slice, inside: np.ndarray) -> None:
    """A veil over what nothing is claimed about, and a dashed line along the border of the set."""
    across, up = plane.axes
    if (inside < 0).any():
        ax.contourf(across, up, inside, levels=[-np.inf, 0.0], colors=[OUTSIDE], alpha=0.85, zorder=1.95)
        if (inside >= 0).any():
            ax.contour(across, up, inside, levels=[0.0], colors=["0.25"], linestyles=["--"], linewidths=0.9, zorder=2)


def connected(
    plane: Slice, height: np.ndarray, level: float, inside: np.ndarray | None, star: Any
) -> tuple[np.ndarray, np.ndarray]:
    """The part of {V < level} in a set that hangs together with a point, as far as the drawing grid tells.

    Where the point is not in the plane, or not in the picture, all of {V < level} in the set is taken: the picture
    does not tell then how its parts hang together.

    Args:
        plane: what is drawn.
        height: (GRID, GRID), V.
        level: of V.
        inside: (GRID, GRID), ≥ 0 in the set; None for the whole space.
        star: (d,), the point.

    Returns:
        (GRID, GRID) bool, and V lifted above the level elsewhere, so that its contour at the level is the edge of the
        part and of nothing else.
    """
    held = np.isfinite(height) & (height < level)
    if inside is not None:
        held &= inside >= 0
    place = np.array(plane.place(star))
    if plane.holds(star) and (plane.low <= place).all() and (place <= plane.high).all():
        found: Any = ndimage.label(held)
        labels = found[0]
        i, j = np.floor((place - plane.low) / (plane.high - plane.low) * (GRID - 1)).astype(int)
        near = np.unique(labels[j : j + 2, i : i + 2])  # the corners of the cell that the point lies in
        held = np.isin(labels, near[near > 0])
    spread = float(np.ptp(height[held])) if held.any() else 1.0
    above = level + 1e-9 * max(abs(level), spread)
    return held, np.where(held, height, np.where(height < above, above, height))


def draw_sublevel(ax: Axes, plane: Slice, lifted: np.ndarray, level: float, face: str, edge: str, alpha: float) -> None:
    """What `connected` found, pale, with a line along its edge."""
    ax.contourf(*plane.axes, lifted, levels=[-np.inf, level], colors=[face], alpha=alpha)
    ax.contour(*plane.axes, lifted, levels=[level], colors=[edge], linewidths=1.6)


def mark_in_plane(ax: Axes, plane: Slice, x: Any, label: str) -> None:
    """The cross of a witness where it lies in the plane that is drawn; else a word in the legend that it does not."""
    if plane.holds(x):
        mark_witness(ax, *plane.place(x), label)
    else:
        ax.plot([], [], " ", label="witness outside this plane")


def draw_steps(ax: Axes, plane: Slice, field: Callable[[np.ndarray], np.ndarray]) -> None:
    """Arrows along f(x) - x of a map f, of its components in the plane: a step jumps, and has no streamlines.

    The arrows are drawn to one scale; the longest is no longer than two of their distances.
    """
    edges = [np.linspace(a, b, 2 * ARROWS + 1)[1::2] for a, b in zip(plane.low, plane.high, strict=True)]
    x = plane.states(*edges)
    with np.errstate(all="ignore"):
        step = (field(x) - x)[:, list(plane.plane)]
    good = np.isfinite(step).all(axis=1)
    longest = float((np.abs(step[good]) / (plane.high - plane.low)).max(initial=0.0)) * ARROWS
    if longest == 0:
        return
    arrows = ax.quiver(
        *x[good][:, list(plane.plane)].T, *step[good].T, angles="xy", scale_units="xy", scale=max(1.0, longest / 2),
        color="0.35", width=0.004, zorder=1.9,
    )  # fmt: skip
    arrows.set_gid("steps")
    told = "f(x) - x" if longest <= 2 else "f(x) - x, shortened"
    ax.plot([], [], linestyle="none", marker="$\\rightarrow$", color="0.35", markersize=9, label=told)


def draw_field(ax: Axes, plane: Slice, field: Callable[[np.ndarray], np.ndarray], density: float = 0.9) -> None:
    """Streamlines of a vector field, of its components in the plane."""
    across, up = (np.linspace(a, b, 60) for a, b in zip(plane.low, plane.high, strict=True))
    flow = field(plane.states(across, up)).T.reshape(-1, len(up), len(across))
    i, j = plane.plane
    u, v = np.ma.masked_invalid(flow[i]), np.ma.masked_invalid(flow[j])
    if u.count() and (np.abs(u) + np.abs(v)).max() > 0:
        lines = ax.streamplot(across, up, u, v, color="0.4", density=density, linewidth=0.6, arrowsize=0.7, zorder=1.9)
        lines.lines.set_gid("stream")
