"""Contraction in the state space: where a metric contracts, its unit balls, and cells on which an energy is convex."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection, PolyCollection

from ctrlgen.accelerate.region import RegionVerdict
from ctrlgen.certify.contraction import ContractionVerdict
from ctrlgen.certify.premise import shown_down
from ctrlgen.plot.claims import draw_claim, telling, verdict
from ctrlgen.plot.landscape import energy
from ctrlgen.plot.look import BLACK, FAILS, ORANGE, SKY, axes_or_new, legend_below, set_title, status_title, styled
from ctrlgen.plot.slices import Slice, make_slice, mark_in_plane, of_matrix

BALLS = 5  # an axis, of a metric


@styled
def contraction(
    result: ContractionVerdict,
    ax: Axes | None = None,
    *,
    plane: tuple[int, int] = (0, 1),
    at: Any = None,
    bounds: Any = None,
) -> Axes:
    """Where Ṁ + MJ + JᵀM + 2λM ⪯ 0 holds (its largest eigenvalue, with the sign turned), and unit balls of the metric.

    Args:
        result: of `ContractionMetric.verify`, `.rate` or `find_contraction_metric`.
        ax: where to draw; a new figure when omitted.
        plane: the two coordinates drawn; of more than two, the balls are their shadows in the plane.
        at, bounds: as in `verdict`.

    Raises:
        ValueError: plane, at or bounds do not fit.
    """
    steps, metric = telling(result), result.metric or result.found
    if metric is None or metric.dim < 2:
        return verdict(result, ax, plane=plane, at=at, bounds=bounds)
    ax = axes_or_new(ax)
    view = make_slice(
        [s.name for s in metric.states], plane, at, bounds, domains=[result.domain], anchors=[result.witness]
    )
    if steps and steps[0].claim.states == metric.states and steps[0].claim.matrix is not None:
        draw_claim(ax, view, steps)
    _balls(ax, view, metric)
    if result.witness is not None:
        mark_in_plane(ax, view, result.witness, "fails here")
    rate = "" if result.rate is None else f" at λ = {shown_down(result.rate)}"
    status_title(ax, f"contraction{rate}", result.status)
    view.frame(ax)
    legend_below(ax)
    return ax


def _balls(ax: Axes, view: Slice, metric: Any) -> None:
    """Sets of equal distance in the metric, about a grid of states, all to one scale."""
    edges = [np.linspace(a, b, 2 * BALLS + 1)[1::2] for a, b in zip(view.low, view.high, strict=True)]
    centres = view.states(*edges)
    i, j = view.plane
    inverse = np.linalg.inv(of_matrix(metric.matrix, metric.states)(centres))
    shadow = inverse[:, [[i], [j]], [[i, j]]]
    values, vectors = np.linalg.eigh(shadow)
    good = np.isfinite(values).all(axis=1) & (values > 0).all(axis=1)
    if not good.any():
        return
    axes = 2 * np.sqrt(values[good])
    size = 0.85 * float(min((view.high - view.low) / BALLS)) / float(axes.max())
    turned = np.degrees(np.arctan2(vectors[good][:, 1, 1], vectors[good][:, 0, 1]))
    rings = EllipseCollection(
        size * axes[:, 1], size * axes[:, 0], turned, units="xy", offsets=centres[good][:, [i, j]],
        transOffset=ax.transData, facecolors="none", edgecolors=BLACK, linewidths=1.0, zorder=4,
    )  # fmt: skip
    ax.add_collection(rings)
    ax.plot([], [], "o", markerfacecolor="none", markeredgecolor=BLACK, label="unit balls of M, to scale")


@styled
def contraction_region(
    result: RegionVerdict, ax: Axes | None = None, *, plane: tuple[int, int] = (0, 1), at: Any = None
) -> Axes:
    """Where a closed loop contracts: proved cells shaded, refuted ones hatched, on lines of the landscape.

    The largest box and ball inside the proved cells are drawn as well.

    In one dimension the proved intervals are bands; in more than two the cells that a plane cuts are drawn.

    Args:
        result: of `contraction_region`.
        ax: where to draw; a new figure when omitted.
        plane: the two coordinates drawn.
        at: (d,) where the others are held; the centre of the largest ball, or of the box, when omitted.

    Raises:
        ValueError: plane or at do not fit.
    """
    dim, ax = result.box.shape[1], axes_or_new(ax)
    view = None
    if dim == 1:
        if result.energy is not None:
            energy(result.energy, ax, result.box)
        for k, (low, high) in enumerate(result.cells[:, 0]):
            ax.axvspan(low, high, color=SKY, alpha=0.4, linewidth=0, label=None if k else "contraction proved")
        ax.set_xlim(*result.box[:, 0])
    else:
        ball = result.largest_ball
        centre = result.box.mean(axis=0) if ball is None else np.array([float(v) for v in ball.center])
        names = ["x₁", "x₂"] if dim == 2 else [f"x{k + 1}" for k in range(dim)]
        view = make_slice(names, plane, centre if at is None else at, result.box)
        _cells(ax, view, result.refuted, {"facecolors": "none", "edgecolors": ORANGE, "hatch": FAILS}, "refuted")
        _cells(ax, view, result.cells, {"facecolors": SKY, "alpha": 0.6}, "proved")
        if result.energy is not None:
            _landscape(ax, view, result.energy)
        _largest(ax, view, result)
    share = shown_down(100 * result.fraction, 3)
    about = f"λ = {shown_down(result.rate)}, {share} % of the box"
    set_title(ax, f"∇²E ⪰ λM on the shaded cells: {result.status.name}\n{about}")
    if view is not None:
        view.frame(ax)
    legend_below(ax)
    return ax


def _cells(ax: Axes, view: Slice, cells: np.ndarray, look: dict[str, Any], label: str) -> None:
    """The cells that the plane cuts."""
    out = [k for k in range(cells.shape[1]) if k not in view.plane]
    cut = cells[((cells[:, out, 0] <= view.at[out]) & (view.at[out] <= cells[:, out, 1])).all(axis=1)]
    if len(cut):
        i, j = view.plane
        corners = np.stack([cut[:, i][:, [0, 1, 1, 0]], cut[:, j][:, [0, 0, 1, 1]]], axis=-1)
        ax.add_collection(PolyCollection(list(corners), linewidths=0, label=label, **look))


def _landscape(ax: Axes, view: Slice, E: Any) -> None:
    """Level lines of the energy, denser at the bottom."""
    height = view.table(lambda x: np.asarray(E(x)))
    least, middle = float(np.nanmin(height)), float(np.nanmedian(height))
    levels = least + max(middle - least, 1e-12) * np.array([0.03, 0.1, 0.25, 0.5, 0.75, 1.0])
    ax.contour(*view.axes, height, levels=levels, colors=["0.35"], linewidths=0.6)


def _largest(ax: Axes, view: Slice, result: RegionVerdict) -> None:
    """The largest box and ball, as far as the plane cuts them."""
    if result.largest_box is None or result.largest_ball is None:
        return
    pick, out = list(view.plane), [k for k in range(len(view.at)) if k not in view.plane]
    low, high = (np.array([float(v) for v in side]) for side in (result.largest_box.lower, result.largest_box.upper))
    if (low[out] <= view.at[out]).all() and (view.at[out] <= high[out]).all():
        (a, b), (c, d) = low[pick], high[pick]
        ax.plot([a, c, c, a, a], [b, b, d, d, b], "-", color=BLACK, linewidth=1.2, label="largest box")
    centre = np.array([float(v) for v in result.largest_ball.center])
    left = float(result.largest_ball.radius) ** 2 - float(((view.at[out] - centre[out]) ** 2).sum())
    if left > 0:
        angle = np.linspace(0, 2 * np.pi, 200)
        ring = centre[pick][:, None] + np.sqrt(left) * np.stack([np.cos(angle), np.sin(angle)])
        ax.plot(*ring, "--", color=BLACK, linewidth=1.2, label="largest ball")
