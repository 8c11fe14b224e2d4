"""Results that are numbers: training, counts of safety, distances between densities, quality, tables of samples."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ctrlgen.gibbs import Gibbs
from ctrlgen.plot.landscape import particles
from ctrlgen.plot.look import BLACK, BLUE, DENSITY, GREEN, ORANGE, RED, SKY, axes_or_new, readable, styled
from ctrlgen.plot.rates import error_bars
from ctrlgen.plot.slices import check_plane, make_slice
from ctrlgen.quality import Quality
from ctrlgen.response import DistributionShift
from ctrlgen.safety.report import SafetyReport
from ctrlgen.tables import Table
from ctrlgen.training.result import TrainingResult


@styled
def training(result: TrainingResult, ax: Axes | None = None) -> Axes:
    """Loss against the step, its phases, and the held-out quality on a second axis where it was measured."""
    ax, history = axes_or_new(ax), result.history
    step, loss = np.asarray(history["step"]), np.asarray(history["loss"], dtype=np.float64)
    width = max(1, len(loss) // 100)
    smooth = np.convolve(loss, np.ones(width) / width, mode="valid")
    if len(loss) and np.nanmin(loss) > 0:
        ax.set_yscale("log")
    ax.plot(step, loss, color=SKY, alpha=0.5, linewidth=0.7)
    ax.plot(step[len(step) - len(smooth) :], smooth, color=BLUE, linewidth=1.4, label="loss")
    phase = np.asarray(history["phase"])
    for k in np.flatnonzero(phase[1:] != phase[:-1]):
        ax.axvline(step[k], color=BLACK, linewidth=0.8, linestyle=":")
        ax.annotate(str(phase[k + 1]), (step[k], 1), xycoords=("data", "axes fraction"), va="top", fontsize="small")
    ax.set(xlabel="step", ylabel="loss")
    lines = [ax.lines[1]]
    name = next((n for n in history if n.startswith("held_out_") and n != "held_out_step"), None)
    if name is not None and len(history[name]):
        other = ax.twinx()
        label = {"held_out_w2": "held-out W₂", "held_out_nll": "held-out NLL [nats]"}.get(name, name)
        lines += other.plot(history["held_out_step"], history[name], "o-", color=RED, markersize=3, label=label)
        other.set_ylabel(label)
    ax.legend(handles=lines, frameon=False, fontsize="small")
    return ax


@styled
def safety_report(result: SafetyReport, ax: Axes | None = None) -> Axes:
    """What was counted of a run's safety, as shares of the particle-steps that were looked at, on a log axis.

    What was counted and never happened is a hollow mark at the left, with its number 0; what was not recorded is not
    drawn.

    Args:
        result: `response.safety`, or of `SafetyFilter.inspect`.
        ax: where to draw; a new figure when omitted.
    """
    names = {
        "violations": ("ended outside", RED), "infeasible": ("program infeasible", ORANGE),
        "corrected": ("brought back", BLUE), "active": ("δ ≠ 0", SKY),
    }  # fmt: skip
    rows = [(label, getattr(result, n), color) for n, (label, color) in names.items() if getattr(result, n) is not None]
    ax = axes_or_new(ax, (3.4, 1.2 + 0.35 * max(1, len(rows))))
    looked = max(result.looked, 1)
    least = 10 ** np.floor(np.log10(0.5 / looked))
    for y, (_, count, color) in enumerate(rows):
        share = max(count / looked, least)
        if count:
            ax.barh(y, share - least, 0.6, left=least, color=color, edgecolor=BLACK, linewidth=0.5)
        else:
            ax.plot(least * 1.3, y, "o", markerfacecolor="none", color=color)
        where = (max(share, least * 1.3), y)
        ax.annotate(f"{count}", where, xytext=(5, 0), textcoords="offset points", va="center", fontsize=8)
    ax.set_xscale("log")
    ax.set(xlim=(least, 20.0), ylim=(len(rows) - 0.4, -0.6), xlabel=f"share of {result.looked} particle-steps")
    ax.set_yticks(range(len(rows)), [row[0] for row in rows])
    least_h = "" if result.least is None else f", least h = {result.least:.3g}"
    ax.set_title(f"{result.mode or 'no filter'}{least_h}" if rows else "nothing was recorded")
    return ax


@styled
def shift(result: DistributionShift, ax: Axes | None = None) -> Axes:
    """W₂ of a filtered density to exact samples, beside W₂ between two fresh samples, with two standard errors.

    Args:
        result: of `Response.shift`.
        ax: where to draw; a new figure when omitted.
    """
    rows = [("filtered loop", result.w2, BLUE, "o"), ("fresh samples", result.floor, BLACK, "s")]
    ax = error_bars(rows, ax, "W₂ [length]")
    ax.set_title(f"KL = {result.kl:.2g} nats")
    return ax


@styled
def quality(result: Quality, ax: Axes | None = None) -> Axes:
    """W₂ of generated to fresh points after one and five durations, beside the floor, with two standard errors.

    Args:
        result: of `measure_quality`.
        ax: where to draw; a new figure when omitted.
    """
    rows = [
        ("after T", result.w2, BLUE, "o"),
        ("after 5 T", result.w2_long, GREEN, "^"),
        ("fresh", result.floor, BLACK, "s"),
    ]
    ax = error_bars(rows, ax, "W₂ [length]")
    known = "" if result.kl is None else f"KL(data‖Gibbs) = {result.kl:.2g} nats"
    ax.set_title(known or f"{result.points} points, {result.repeats} repeats")
    return ax


@styled
def gibbs(
    measure: Gibbs, ax: Axes | None = None, *, plane: tuple[int, int] = (0, 1), at: Any = None, bounds: Any = None
) -> Axes:
    """exp(-E/ε) over the state space: a line in one dimension, in more than two over a plane; its largest value is 1.

    Args:
        measure: ρ*.
        ax: where to draw; a new figure when omitted.
        plane, at, bounds: as in `verdict`; bounds of 400 draws when omitted.

    Raises:
        ValueError: plane, at or bounds do not fit.
    """
    energy, heat, d = measure.energy, measure.temperature, measure.energy.dim
    ax = axes_or_new(ax)
    if bounds is None:
        draws = np.asarray(measure.sample(0, 400), dtype=np.float64)
        room = 0.25 * np.ptp(draws, axis=0)
        bounds = np.stack([draws.min(axis=0) - room, draws.max(axis=0) + room])
        at = np.median(draws, axis=0) if at is None and d > 2 else at
    if d == 1:
        low, high = np.asarray(bounds, dtype=np.float64).ravel()
        x = np.linspace(low, high, 600)
        weight = np.exp(-(e := np.asarray(energy(x[:, None])) / heat) + e.min())
        ax.plot(x, weight / (weight.sum() * (x[1] - x[0])), color=BLUE, linestyle="-")
        ax.set(xlabel="x", ylabel="density", xlim=(low, high))
        return ax
    names = ["x₁", "x₂"] if d == 2 else [f"x{k + 1}" for k in range(d)]
    view = make_slice(names, plane, at, bounds)
    e = view.table(lambda x: np.asarray(energy(x))) / heat
    across, up = view.axes
    ax.pcolormesh(across, up, np.exp(-(e - np.nanmin(e))), cmap=DENSITY, shading="nearest", rasterized=True)
    ax.contour(across, up, e - np.nanmin(e), levels=[1.0, 2.0, 4.0], colors=[BLACK], linewidths=0.6)
    view.frame(ax)
    return ax


@styled
def table(result: Table, ax: Axes | None = None, *, plane: tuple[int, int] = (0, 1)) -> Axes:
    """Two columns of a table as points; of one column a histogram.

    Args:
        result: of `jobs.simulate_model`, or a table that was read.
        ax: where to draw; a new figure when omitted.
        plane: the two columns drawn.

    Raises:
        ValueError: plane is not two columns.
    """
    values = np.asarray(result.values, dtype=np.float64)
    count = values.shape[1]
    names = result.columns or tuple(f"x{k + 1}" for k in range(count))
    if count == 1:
        ax = particles(values, ax, BLUE)
        ax.set(xlabel=readable(names[0]), ylabel="density")
        return ax
    i, j = check_plane(plane, count)
    ax = particles(values[:, [i, j]], ax, BLUE)
    ax.set(xlabel=readable(names[i]), ylabel=readable(names[j]))
    return ax
