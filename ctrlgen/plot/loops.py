"""A closed loop's response: its Lyapunov curve, its energies, its commands, and the density on its way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ctrlgen.certify.premise import shown_down
from ctrlgen.energies.base import Energy
from ctrlgen.energies.feedback import DensityFeedback
from ctrlgen.plot.divergence import last_sound, mark_divergence, measured_at
from ctrlgen.plot.landscape import energy, particles, safe_set
from ctrlgen.plot.look import (
    BLACK,
    BLUE,
    COLOURS,
    CYCLE,
    GREEN,
    ORANGE,
    RED,
    SKY,
    STYLES,
    axes_or_new,
    figure,
    readable,
    styled,
)
from ctrlgen.response import Response


@styled
def decay(
    response: Response,
    ax: Axes | None = None,
    rate: float | None = None,
    *,
    label: str = "measured",
    anchor: tuple[float, float] | None = None,
    most: int = 60,
) -> Axes:
    """The Lyapunov curve V(t) = KL(ρ_t ‖ ρ*) with its errors, on a log axis, beside an exponential rate.

    Where log Z is out of reach (particles in more than three dimensions), V(t) less its last value, from the free
    energy: the unknown constant drops out. Of a run that diverged it shows what was before, and where that ends.

    Args:
        response: of any plant.
        ax: where to draw.
        rate: draws exp(-rate t) as a dashed line [1 / time].
        label: what the rate is: "certified" or "measured".
        anchor: (time, nats) through which that line goes; the first record when omitted.
        most: at most this many records are measured, evenly in the logarithm of time.
    """
    ax = axes_or_new(ax)
    measured = lyapunov_curve(response, most)
    time, kl, error, curve = measured.time, measured.value, measured.error, measured.label
    good = kl > 0
    ax.set_yscale("log")
    where = measured.sound  # the error of what diverged has no meaning, and would hide the rest
    if error.any() and where.sum() > 1:
        low = np.maximum(kl - 2 * error, 1e-12)
        band = time[where], low[where], np.maximum(kl + 2 * error, low)[where]
        ax.fill_between(*band, color=SKY, alpha=0.4, linewidth=0, label="± 2 s.e.")
    ax.plot(time[good], kl[good], color=BLUE, marker="o", markersize=2.5, linewidth=1.2, label=curve)
    told = good & where
    if (kl[told] > error[told]).any():  # what is far below its own error is noise, and would stretch the axis
        lowest = max(float(kl[told].min()), 0.3 * float(np.median(error[where])))
        ax.set_ylim(0.5 * lowest, (2 if where.all() else 20) * float(kl[told].max()))
    if rate is not None:
        draw_rate(ax, time, rate, anchor or (float(time[0]), float(kl[0])), label)
    mark_divergence(response, ax)
    ax.set(xlabel="time", ylabel="KL [nats]")
    ax.grid(True, which="major", alpha=0.25)
    ax.legend()
    return ax


@styled
def draw_rate(
    ax: Axes, time: Any, rate: float, anchor: tuple[float, float], label: str, color: str = RED, style: str = "--"
) -> None:
    """exp(-rate t) through an anchor, over the given times, without changing the limits of the axes."""
    bottom, top = ax.get_ylim()
    t = np.linspace(np.min(time), np.max(time), 200)
    line = anchor[1] * np.exp(-rate * (t - anchor[0]))
    seen = (line > bottom / 3) & (line < top * 3)
    ax.plot(t[seen], line[seen], style, color=color, linewidth=1.4, label=f"{label}: rate {shown_down(rate)}")
    ax.set_ylim(bottom, top)


@styled
def response(response: Response, axes: Any = None, most: int = 60) -> np.ndarray:
    """A closed loop's response: KL on a log axis, energies over time and, in one or two dimensions, the density.

    In two dimensions a run under a safety filter shows its safe set as well. A run that diverged is shown up to there:
    its last record before that is the density that is drawn, and the axes are those of the records before.

    Args:
        response: of particles, a grid or a Gaussian.
        axes: 2 axes, or 3 with the density's; a new figure when omitted.
        most: at most this many records are measured.

    Returns:
        The axes, (2,) or (3,).
    """
    spatial = response.energy_block.dim <= 2
    axes = figure(1, 3 if spatial else 2)[0] if axes is None else np.ravel(np.asarray(axes, dtype=object))
    if len(axes) not in (2, 3):
        raise ValueError(f"axes must be 2 or 3 axes; got {len(axes)}.")
    # a lower bound m on the Hessian certifies the rate 2m of the overdamped loop in continuous time, whatever the
    # scheme of its steps, in the identity metric; a filtered
    # drift keeps no Gibbs measure
    bound = response.energy_block.properties.hessian_lower
    bent = response.filter is not None and response.filter.mode == "cbf"
    moved = response.inputs is not None or getattr(response, "extra", None) is not None
    plain = getattr(response.plant, "mobility", None) is None and response.schedule is None and not (bent or moved)
    overdamped = type(response.plant).__name__ in ("Langevin", "FokkerPlanckGrid", "GaussianPlant")
    certified = 2 * bound if bound is not None and bound > 0 and plain and overdamped else None
    last = last_sound(response)
    try:
        decay(response, axes[0], certified, label="certified, continuous time", most=most)
    except ValueError as error:  # what has no Gibbs measure diverges, and has no KL
        if last is None:
            raise
        _say(axes[0], f"KL is not defined: {error}")
    energies(response, axes[1], most)
    if len(axes) == 3:
        _density(response, len(response.time) - 1 if last is None else last, axes[2])
        if last is not None:
            axes[2].set_title(f"t = {response.time[last]:.3g}, before it diverges")
    return axes


@styled
def energies(response: Response, ax: Axes | None = None, most: int = 60) -> Axes:
    """Mean energy and free energy over time, with their errors."""
    ax = axes_or_new(ax)
    which, sound = measured_at(response, most)
    time, lowest, highest = response.time[which], np.inf, -np.inf
    for name, label, color, marker in (
        ("mean_energy", "mean energy", ORANGE, "-"),
        ("free_energy", "free energy F", GREEN, "--"),
    ):
        values = [response.at(int(k), name) for k in which]  # type: ignore[arg-type]
        value, error = np.array([float(v.value) for v in values]), np.array([float(v.error) for v in values])
        low, high = (value - 2 * error)[sound], (value + 2 * error)[sound]
        lowest, highest = min(lowest, float(low.min())), max(highest, float(high.max()))
        ax.fill_between(time[sound], low, high, color=color, alpha=0.25, linewidth=0)
        ax.plot(time, value, marker, color=color, linewidth=1.4, label=label)
    if not sound.all():
        margin = 0.5 * max(highest - lowest, 0.1 * max(abs(highest), abs(lowest)), 1e-300)
        ax.set_ylim(lowest - margin, highest + margin)
    mark_divergence(response, ax)
    ax.set(xlabel="time", ylabel="energy")
    ax.grid(True, alpha=0.25)
    ax.legend()
    return ax


@styled
def inputs(response: Response, ax: Axes | None = None) -> Axes:
    """What a density feedback commanded at the records, u over time, with the limits at which it saturates.

    Raises:
        ValueError: the controller was a static energy.
    """
    if response.inputs is None or not isinstance(response.controller, DensityFeedback):
        raise ValueError("response must be of a loop under density feedback; this controller is a static energy.")
    ax = axes_or_new(ax)
    for j, (u, limit) in enumerate(zip(response.inputs.T, response.controller.limit, strict=True)):
        color = CYCLE[j % len(CYCLE)]
        ax.plot(response.time, u, linestyle=STYLES[j % len(STYLES)], color=color, label=f"u[{j}]")
        if np.abs(u).max() > 0.5 * limit:
            for level in (-limit, limit):
                ax.axhline(level, color=color, linewidth=0.7, alpha=0.6, linestyle=":")
    ax.set(xlabel="time", ylabel="input")
    ax.grid(True, alpha=0.25)
    ax.legend()
    return ax


@styled
def transport(
    response: Response, E: Energy | None = None, panels: int = 4, axes: Any = None, bounds: Any = None
) -> np.ndarray:
    """The density on the landscape at several times, from the start to the end, evenly in the logarithm of time.

    In two dimensions a run under a safety filter shows its safe set as well. A run that diverged is shown up to there.

    Args:
        response: in one or two dimensions.
        E: the landscape; the response's own energy (under a filter, the controller's) when omitted.
        panels: how many.
        axes: where to draw, `panels` axes.
        bounds: (2, d) of the box.
    """
    E = response.energy_block if E is None else E
    axes = figure(1, panels, (2.9, 3.1))[0] if axes is None else np.ravel(np.asarray(axes, dtype=object))
    if bounds is None and response.plant.kind == "particles":
        bounds = extent(response)
    sound = last_sound(response)
    last = len(response.time) - 1 if sound is None else sound
    later = np.geomspace(max(1, last), max(1, last / 60), len(axes) - 1)[::-1] if len(axes) > 1 else []
    for ax, k in zip(axes, [0, *np.minimum(np.round(later).astype(int), last)], strict=False):
        _density(response, int(k), ax, E, bounds)
        ax.set_title(f"t = {response.time[k]:.3g}", fontsize="medium")
    if sound is not None:
        axes[-1].set_title(f"t = {response.time[last]:.3g}, before it diverges", fontsize="medium")
    for ax in axes[1:]:
        ax.set_ylabel("")
    return axes


@dataclass(frozen=True)
class Curve:
    """V over time: times (k,), values (k,) [nats] with standard errors (k,), what V is, and what is before it diverges.

    `sound` (k,) is True of all records of a run that did not diverge.
    """

    time: np.ndarray
    value: np.ndarray
    error: np.ndarray
    label: str
    sound: np.ndarray


def lyapunov_curve(response: Response, most: int) -> Curve:
    """V = KL at up to `most` records; where log Z is out of reach, V less its last value, from the free energy.

    That is its lowest value where the run diverged.
    """
    which, sound = measured_at(response, most)
    known = response.plant.kind != "particles" or response.log_partition is not None
    values = [response.at(int(k), "kl" if known else "free_energy") for k in which]
    kl, error = np.array([float(v.value) for v in values]), np.array([float(v.error) for v in values])
    if known:
        return Curve(response.time[which], kl, error, "KL to the Gibbs measure", sound)
    heat = getattr(response.plant, "reference_temperature", response.plant.temperature)
    base, name = (kl[-1], "last") if last_sound(response) is None else (kl[sound].min(), "lowest")
    return Curve(response.time[which], (kl - base) / heat, error / heat, f"KL less its {name} value", sound)


def _say(ax: Axes, text: str) -> None:
    """A sentence where a curve would be."""
    ax.set_axis_off()
    ax.text(0.5, 0.5, readable(fill(text, 38)), ha="center", va="center", transform=ax.transAxes, parse_math=False)


def extent(response: Response) -> np.ndarray:
    """(2, d): a box that holds all but the outermost of the density at the start and at the last sound record."""
    plant: Any = response.plant
    if plant.kind == "grid":
        return np.transpose(plant.bounds).astype(np.float64)
    last = last_sound(response)
    ends = [response.snapshots[0], response.snapshots[-1 if last is None else last]]
    if plant.kind == "gaussian":
        mean = np.stack([np.asarray(g.mean) for g in ends])
        spread = 3.5 * np.sqrt(np.stack([np.diag(np.asarray(g.covariance)) for g in ends]))
        return np.stack([(mean - spread).min(axis=0), (mean + spread).max(axis=0)])
    both = np.concatenate(ends).astype(np.float64)
    low, high = np.quantile(both, [0.001, 0.999], axis=0)
    margin = 0.12 * np.maximum(high - low, 1e-9)
    return np.stack([low - margin, high + margin])


def ellipse(mean: np.ndarray, covariance: np.ndarray, deviations: float) -> np.ndarray:
    """(2, 200): where a Gaussian in the plane is so many standard deviations from its mean."""
    angle = np.linspace(0, 2 * np.pi, 200)
    ring = np.linalg.cholesky(covariance) @ np.stack([np.cos(angle), np.sin(angle)])
    return mean[:, None] + deviations * ring


def _density(response: Response, k: int, ax: Axes, E: Energy | None = None, bounds: Any = None) -> None:
    """One recorded density on the landscape; in one dimension beside the Gibbs density."""
    E, plant, state = response.energy_block if E is None else E, response.plant, response.snapshots[k]
    if plant.kind == "grid":
        axes: Sequence[np.ndarray] = plant.axes  # type: ignore[attr-defined]
        if len(axes) == 1:
            ax.plot(axes[0], state / plant.volume, color=BLUE)  # type: ignore[attr-defined]
            ax.plot(axes[0], plant.gibbs(E) / plant.volume, "--", color=RED, label="Gibbs")  # type: ignore[attr-defined]
            ax.set(xlabel="x", ylabel="density")
        else:
            ax.pcolormesh(axes[0], axes[1], state.T, cmap=COLOURS, shading="nearest", rasterized=True)
            if response.filter is not None:
                safe_set(response.filter, np.transpose(plant.bounds), ax)  # type: ignore[attr-defined]
            ax.set(xlabel="x₁", ylabel="x₂", aspect="equal")
        return
    if plant.kind == "gaussian":
        _gaussian(state, E, ax)
        return
    if bounds is None:
        bounds = extent(response)
    if E.dim == 1:
        particles(state, ax, color=BLUE)
        x = np.linspace(bounds[0][0], bounds[1][0], 400)
        weight = -np.asarray(E(x[:, None])) / getattr(plant, "reference_temperature", plant.temperature)
        gibbs = np.exp(weight - weight.max())
        ax.plot(x, gibbs / (gibbs.sum() * (x[1] - x[0])), "--", color=RED, label="Gibbs")
        ax.set(xlabel="x", ylabel="density", xlim=(x[0], x[-1]))
        return
    safety = response.filter
    if safety is not None and E is response.energy_block:
        E = response.controller or E  # the filter's part of the energy is drawn as its border
    energy(E, ax, bounds)
    if safety is not None:
        safe_set(safety, bounds, ax, float(response.time[k]))
    particles(state, ax)


def _gaussian(state: Any, E: Energy, ax: Axes) -> None:
    """Ellipses of one and two standard deviations on the landscape, or the bell in one dimension."""
    mean, covariance = np.asarray(state.mean), np.asarray(state.covariance)
    spread = 4 * np.sqrt(np.diag(covariance))
    if len(mean) == 1:
        x = np.linspace(mean[0] - spread[0], mean[0] + spread[0], 400)
        ax.plot(
            x,
            np.exp(-((x - mean[0]) ** 2) / (2 * covariance[0, 0])) / np.sqrt(2 * np.pi * covariance[0, 0]),
            color=BLUE,
        )
        ax.set(xlabel="x", ylabel="density")
        return
    energy(E, ax, np.stack([mean - spread, mean + spread]))
    for deviations in (1, 2):
        ax.plot(*ellipse(mean, covariance, deviations), color=BLACK, linewidth=1.4)
