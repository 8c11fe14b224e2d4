"""Slow modes of the density: their rates and shapes, the poles that a feedback moves, and the set it is proved on."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ctrlgen.certify.feedback import FeedbackVerdict
from ctrlgen.certify.premise import shown_down
from ctrlgen.interop.design import Design
from ctrlgen.modes.base import SlowModes
from ctrlgen.plot.claims import verdict_table
from ctrlgen.plot.landscape import bounds_of
from ctrlgen.plot.look import (
    BLACK,
    BLUE,
    CYCLE,
    RED,
    SKY,
    STYLES,
    axes_or_new,
    legend_below,
    several,
    status_title,
    styled,
)
from ctrlgen.plot.rates import bars
from ctrlgen.plot.slices import check_plane, draw_sign, make_slice

SHAPES = 3  # modes whose shape is drawn


@styled
def slow_modes(modes: SlowModes, axes: Any = None, bounds: Any = None) -> np.ndarray:
    """The rates of the slow modes and, in one or two dimensions, the shapes of the first three.

    Args:
        modes: of `interop.slow_modes`.
        axes: one for the rates; with the shapes two in one dimension, and one more a mode in two. A new figure when
            omitted.
        bounds: (2, d) of the shapes; the grid's box, or what holds the samples, when omitted.

    Returns:
        The axes: (1,), (2,) or (1 + shapes,).

    Raises:
        ValueError: bounds do not fit, or there is another number of axes.
    """
    d, shown = modes.energy.dim, min(SHAPES, modes.order)
    axes = several(axes, {1: 2, 2: 1 + shown}.get(d, 1), (2.9, 2.6))
    count = np.arange(1, modes.order + 1)
    axes[0].vlines(count, 0, -modes.rates, color=BLUE, linewidth=1.0)
    axes[0].plot(count, -modes.rates, "o", color=BLUE)
    axes[0].set(xlabel="mode", ylabel="rate [1/time]", title="rates of the slow modes", ylim=(0, None))
    axes[0].xaxis.get_major_locator().set_params(integer=True)
    axes[0].annotate(
        f"{-modes.rates[0]:.3g}", (1, -modes.rates[0]), xytext=(4, 4), textcoords="offset points", fontsize=8
    )
    if d > 2:
        return axes
    box = _box(modes) if bounds is None else bounds
    low, high = bounds_of(modes.energy, box)
    if d == 1:
        x = np.linspace(low[0], high[0], 600)
        for k, values in enumerate(modes.at(x[:, None]).T[:shown]):
            axes[1].plot(x, values, color=CYCLE[k], linestyle=STYLES[k], label=f"ζ{k + 1}")
        axes[1].set(xlabel="x", title="their shapes", xlim=(low[0], high[0]))
        axes[1].legend()
        return axes
    view = make_slice(["x₁", "x₂"], (0, 1), None, np.stack([low, high]))
    every = modes.at(view.points)
    for k, ax in enumerate(axes[1:]):
        draw_sign(ax, view, every[:, k].reshape(len(view.axes[1]), -1), "", inside=None)
        ax.set_title(f"ζ{k + 1}, rate {-modes.rates[k]:.3g}")
        view.frame(ax)
    return axes


def _box(modes: SlowModes) -> np.ndarray:
    grid = getattr(modes, "grid", None)
    if grid is not None:
        return np.transpose(grid.bounds)
    samples = np.asarray(getattr(modes, "samples"))  # noqa: B009
    low, high = np.quantile(samples, [0.002, 0.998], axis=0)
    return np.stack([low - 0.1 * (high - low), high + 0.1 * (high - low)])


@styled
def design(result: Design, ax: Axes | None = None) -> Axes:
    """Where a Riccati feedback moves the poles of the slow modes; of a dissipative one, its gains.

    Args:
        result: the `.design` of a density feedback.
        ax: where to draw; a new figure when omitted.
    """
    if result.law != "riccati":
        rows = [(f"k{j + 1}", float(k), SKY, "") for j, k in enumerate(np.diag(result.gain))]
        ax = bars(rows, ax, "gain of the dissipative law")
        ax.set_title(f"commands held for {result.period:.3g}")
        return ax
    ax = axes_or_new(ax, (3.4, 1.7))
    before, after = -result.modes.rates, -np.asarray(result.poles, dtype=complex)
    speed, turn = np.real(after), np.abs(np.imag(after)) > 1e-9 * np.abs(after)
    ax.plot(before, np.ones_like(before), "x", color=RED, markeredgewidth=1.5)
    ax.plot(speed[~turn], np.zeros((~turn).sum()), "o", markerfacecolor="none", color=BLUE)
    ax.plot(speed[turn], np.zeros(turn.sum()), "d", markerfacecolor="none", color=BLUE, label="oscillates")
    slow, fast = float(before.min()), float(speed.min())
    arrow = {"arrowstyle": "->", "color": "0.35", "shrinkA": 5, "shrinkB": 5}
    ax.annotate("", (fast, 0.0), (slow, 1.0), arrowprops=arrow)
    if fast > 0:
        ax.set_xscale("log")
    ax.set_yticks([1, 0], ["open loop", "closed loop"])
    ax.set(xlabel="rate of decay, -Re of a pole [1/time]", ylim=(-0.6, 1.6))
    ax.set_title(f"slowest: {slow:.3g} → {fast:.3g}")
    ax.grid(True, axis="x")
    if turn.any():
        ax.legend(loc="center left")
    return ax


@styled
def feedback(result: FeedbackVerdict, ax: Axes | None = None, *, plane: tuple[int, int] = (0, 1)) -> Axes:
    """The set {zᵀPz ≤ 1} of slow modes from which the density is brought to its Gibbs measure, cut and in shadow.

    The cut is where all other modes are zero, the shadow holds every point of the set. A verdict without such a set
    (that of the dissipative law, which holds for every density) is drawn as its steps.

    Args:
        result: of a density feedback's `.verify()`.
        ax: where to draw; a new figure when omitted.
        plane: the two modes drawn, from 0.

    Raises:
        ValueError: plane is not two different modes.
    """
    if result.matrix is None:
        return verdict_table(result, ax)
    ax, matrix = axes_or_new(ax), np.asarray(result.matrix)
    if len(matrix) == 1:
        reach = 1 / np.sqrt(matrix[0, 0])
        z = np.linspace(-1.2 * reach, 1.2 * reach, 300)
        ax.plot(z, matrix[0, 0] * z**2, color=BLUE, linestyle="-", label="V = zᵀPz")
        ax.axvspan(-reach, reach, color=SKY, alpha=0.35, linewidth=0, label="V ≤ 1")
        ax.set(xlabel="z1", ylabel="V")
    else:
        pick = list(check_plane(plane, len(matrix)))
        angle = np.linspace(0, 2 * np.pi, 300)
        circle = np.stack([np.cos(angle), np.sin(angle)])
        shadow = np.linalg.cholesky(np.linalg.inv(matrix)[np.ix_(pick, pick)]) @ circle
        cut = np.linalg.cholesky(np.linalg.inv(matrix[np.ix_(pick, pick)])) @ circle
        if len(matrix) > 2:
            ax.plot(*shadow, "--", color=BLUE, label="shadow of {V ≤ 1}")
        ax.fill(*cut, facecolor=SKY, alpha=0.4)
        ax.plot(*cut, "-", color=BLUE, label="{V ≤ 1}, other modes zero" if len(matrix) > 2 else "{V ≤ 1}")
        ax.plot(0, 0, "o", color=BLACK, markersize=4, label="Gibbs measure")
        ax.set(xlabel=f"z{pick[0] + 1}", ylabel=f"z{pick[1] + 1}")
    ax.grid(True)
    legend_below(ax)
    rate = "" if result.rate is None else f", rate {shown_down(result.rate)}"
    status_title(ax, f"modes tend to 0{rate}", result.status)
    return ax
