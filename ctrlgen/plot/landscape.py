"""What lies in the state space: energies as landscapes, particles, safe sets, and samples as pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ctrlgen.energies.base import Energy
from ctrlgen.energies.trained import TrainedEnergy
from ctrlgen.plot.look import BLACK, BLUE, GRID, LANDSCAPE, MOST_PARTICLES, OUTSIDE, axes_or_new, styled
from ctrlgen.safety.filter import SafetyFilter


@styled
def energy(E: Energy, ax: Axes | None = None, bounds: Any = None, levels: Any = 16) -> Axes:
    """The landscape of an energy: filled contours in two dimensions, a line in one.

    Args:
        E: of dimension 1 or 2.
        ax: where to draw; a new figure when omitted.
        bounds: (2, d), lower and upper corner; what holds a trained energy's data, or ±4, when omitted.
        levels: how many contours, or their values [energy]. Above the highest (12 temperatures for a trained
            energy, else the median of the box) nothing is resolved.

    Raises:
        ValueError: E has more than two dimensions, or bounds do not fit.
    """
    if E.dim > 2:
        raise ValueError(f"E must have 1 or 2 dimensions to be drawn as a landscape; it has {E.dim}.")
    low, high = bounds_of(E, bounds)
    ax = axes_or_new(ax)
    if E.dim == 1:
        x = np.linspace(low[0], high[0], 4 * GRID)
        ax.plot(x, E(x[:, None]), color=BLUE)
        ax.set(xlabel="x", ylabel="E(x)", xlim=(low[0], high[0]))
        return ax
    across, up = np.linspace(low[0], high[0], GRID), np.linspace(low[1], high[1], GRID)
    cells = np.stack(np.meshgrid(across, up, indexing="ij"), axis=-1).reshape(-1, 2)
    values = np.asarray(E(cells)).reshape(GRID, GRID)
    if np.ndim(levels) == 0:
        levels = np.linspace(values.min(), _top(E, values), int(levels))
    drawn = ax.contourf(across, up, values.T, levels=levels, cmap=LANDSCAPE, extend="max")
    drawn.set_rasterized(True)
    ax.set(xlabel="x₁", ylabel="x₂", xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
    return ax


@styled
def particles(states: Any, ax: Axes | None = None, color: str = BLACK, most: int = MOST_PARTICLES) -> Axes:
    """Particles (n, d): points in two dimensions, a histogram (a density) in one.

    Args:
        states: (n, d) with d of 1 or 2.
        ax: where to draw.
        color: of the points.
        most: at most this many points are drawn, the first ones.

    Raises:
        ValueError: states have another shape.
    """
    states = np.asarray(states, dtype=np.float64)
    if states.ndim != 2 or states.shape[1] > 2:
        raise ValueError(f"states must have shape (n, 1) or (n, 2) to be drawn; got shape {states.shape}.")
    ax = axes_or_new(ax)
    if states.shape[1] == 1:
        ax.hist(states[:, 0], bins=60, density=True, color=color, alpha=0.6, histtype="stepfilled")
        return ax
    shown = states[:most]
    ax.scatter(shown[:, 0], shown[:, 1], s=point_size(len(shown)), c=color, alpha=0.6, linewidths=0)
    return ax


def point_size(count: int) -> float:
    """Area of a point [pt²] where so many are drawn."""
    return 600 / (100 + count) + 0.8


@styled
def safe_set(filter: SafetyFilter, bounds: Any, ax: Axes | None = None, time: float = 0.0) -> Axes:
    """The safe set of a filter in two dimensions: a line along its border, and a shade over what is outside.

    Args:
        filter: whose barriers say what is safe.
        bounds: (2, 2), lower and upper corner of what is drawn.
        ax: where to draw, before particles and after a landscape.
        time: of moving barriers.

    Raises:
        ValueError: the barriers have another dimension than two, or bounds do not fit.
    """
    if filter.dim != 2:
        raise ValueError(f"filter must have barriers in 2 dimensions to be drawn; they have {filter.dim}.")
    low, high = box_of(bounds, 2)
    ax = axes_or_new(ax)
    across, up = (np.linspace(a, b, 3 * GRID) for a, b in zip(low, high, strict=True))
    h = filter.values(np.stack(np.meshgrid(across, up, indexing="ij"), axis=-1).reshape(-1, 2), time)
    least = np.nan_to_num(h, nan=-1.0, posinf=1.0, neginf=-1.0).min(axis=1).reshape(len(across), -1).T
    outside_of(ax, across, up, least)
    ax.set(xlabel="x₁", ylabel="x₂", xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
    return ax


def outside_of(ax: Axes, across: np.ndarray, up: np.ndarray, least: np.ndarray) -> list[Any]:
    """A shade where `least`, (len(up), len(across)), is negative, and a line along its border; what was drawn."""
    drawn: list[Any] = []
    if least.min() < 0:
        drawn.append(ax.contourf(across, up, least, levels=[-np.inf, 0.0], colors=[OUTSIDE], alpha=0.8))
    if least.min() < 0 <= least.max():
        drawn.append(ax.contour(across, up, least, levels=[0.0], colors=[BLACK], linewidths=1.2))
    return drawn


@styled
def images(samples: Any, shape: tuple[int, int] = (8, 8), ax: Axes | None = None, columns: int | None = None) -> Axes:
    """Samples (n, h·w) as a sheet of pictures, dark for large values.

    Raises:
        ValueError: samples have another shape.
    """
    samples = np.asarray(samples, dtype=np.float64)
    if samples.ndim != 2 or samples.shape[1] != shape[0] * shape[1]:
        raise ValueError(
            f"samples must have shape (n, {shape[0] * shape[1]}) for pictures {shape}; got {samples.shape}."
        )
    n = len(samples)
    columns = columns or int(np.ceil(np.sqrt(n)))
    rows = -(-n // columns)
    low, high = np.quantile(samples, [0.01, 0.99])
    sheet = np.full((rows * (shape[0] + 1) - 1, columns * (shape[1] + 1) - 1), low)
    for i, sample in enumerate(samples):
        top, left = i // columns * (shape[0] + 1), i % columns * (shape[1] + 1)
        sheet[top : top + shape[0], left : left + shape[1]] = sample.reshape(shape)
    ax = axes_or_new(ax)
    ax.imshow(sheet, cmap="gray_r", vmin=low, vmax=high, interpolation="nearest")
    ax.set_axis_off()
    return ax


def bounds_of(E: Energy, bounds: Any) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper corner: the given ones, or those that hold a trained energy's data, or ±4."""
    if bounds is None:
        center, scale = (E.center, E.scale) if isinstance(E, TrainedEnergy) else (np.zeros(E.dim), 4 / 3)
        return center - 3 * scale, center + 3 * scale
    return box_of(bounds, E.dim)


def box_of(bounds: Any, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper corner of bounds (2, dim).

    Raises:
        ValueError: bounds are no such box.
    """
    box = np.asarray(bounds, dtype=np.float64)
    if box.shape != (2, dim) or not np.isfinite(box).all() or (box[0] >= box[1]).any():
        raise ValueError(f"bounds must be (2, {dim}), lower corner below upper corner; got {bounds!r}.")
    return box[0], box[1]


def _top(E: Energy, values: np.ndarray) -> float:
    """The highest contour: 12 temperatures above the bottom for a trained energy, else the median of the box."""
    top = float(np.median(values))
    if isinstance(E, TrainedEnergy):
        top = min(top, float(values.min()) + 12 * E.temperature)
    return max(top, float(values.min()) + 1e-12 * max(1.0, abs(float(values.min()))))
