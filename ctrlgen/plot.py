"""Pictures of energies, densities on their way, Lyapunov curves and training: the only importer of matplotlib.

Every function takes a result and `ax=None`, draws, and returns the axes; nothing is shown and no global state of
matplotlib is touched (figures are made without pyplot). Save with `ax.figure.savefig("name.png")`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from ctrlgen.accelerate.region import RegionVerdict
from ctrlgen.certify.region import Region
from ctrlgen.energies.base import Energy
from ctrlgen.energies.feedback import DensityFeedback
from ctrlgen.energies.trained import TrainedEnergy
from ctrlgen.precision import float64
from ctrlgen.response import Response
from ctrlgen.safety.filter import SafetyFilter
from ctrlgen.training.result import TrainingResult

# Okabe and Ito's colours, told apart with any colour vision
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
CYCLE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BLACK)
COLOURS = "viridis"
# low energy bright, and all of it pale: the landscape stays behind what moves on it
LANDSCAPE = ListedColormap(0.4 + 0.6 * colormaps["viridis_r"](np.linspace(0.05, 1, 256))[:, :3])
OUTSIDE = "0.8"  # what is not safe
GRID = 160  # points an axis of a landscape
MOST_PARTICLES = 3000


def figure(rows: int = 1, columns: int = 1, size: tuple[float, float] = (4.0, 3.4), **arguments: Any) -> np.ndarray:
    """Axes (rows, columns) on a fresh figure without pyplot; `size` is of one panel [inch]."""
    fig = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    FigureCanvasAgg(fig)
    return fig.subplots(rows, columns, squeeze=False, **arguments)


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
    low, high = _bounds(E, bounds)
    ax = _axes(ax)
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


def particles(states: Any, ax: Axes | None = None, color: str = BLACK, most: int = MOST_PARTICLES) -> Axes:
    """Particles (n, d): points in two dimensions, a histogram (a density) in one.

    Args:
        states: (n, d) with d of 1 or 2.
        ax: where to draw.
        color: of the points.
        most: at most this many points are drawn, the first ones.
    """
    states = np.asarray(states, dtype=np.float64)
    if states.ndim != 2 or states.shape[1] > 2:
        raise ValueError(f"states must have shape (n, 1) or (n, 2) to be drawn; got shape {states.shape}.")
    ax = _axes(ax)
    if states.shape[1] == 1:
        ax.hist(states[:, 0], bins=60, density=True, color=color, alpha=0.6, histtype="stepfilled")
        return ax
    shown = states[:most]
    ax.scatter(shown[:, 0], shown[:, 1], s=600 / (100 + len(shown)) + 0.8, c=color, alpha=0.6, linewidths=0)
    return ax


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
    low, high = _box(bounds, 2)
    ax = _axes(ax)
    across, up = (np.linspace(a, b, 3 * GRID) for a, b in zip(low, high, strict=True))
    h = filter.values(np.stack(np.meshgrid(across, up, indexing="ij"), axis=-1).reshape(-1, 2), time)
    least = np.nan_to_num(h, nan=-1.0, posinf=1.0, neginf=-1.0).min(axis=1).reshape(len(across), -1).T
    if least.min() < 0:
        ax.contourf(across, up, least, levels=[-np.inf, 0.0], colors=[OUTSIDE], alpha=0.8)
    if least.min() < 0 <= least.max():
        ax.contour(across, up, least, levels=[0.0], colors=[BLACK], linewidths=1.2)
    ax.set(xlabel="x₁", ylabel="x₂", xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
    return ax


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
    energy: the unknown constant drops out.

    Args:
        response: of any plant.
        ax: where to draw.
        rate: draws exp(-rate t) as a dashed line [1 / time].
        label: what the rate is: "certified" or "measured".
        anchor: (time, nats) through which that line goes; the first record when omitted.
        most: at most this many records are measured, evenly in the logarithm of time.
    """
    ax = _axes(ax)
    which = thinned(len(response.time), most)
    time = response.time[which]
    known = response.plant.kind != "particles" or response.log_partition is not None
    values = [response.at(int(k), "kl" if known else "free_energy") for k in which]
    kl, error = np.array([float(v.value) for v in values]), np.array([float(v.error) for v in values])
    curve = "KL to the Gibbs measure"
    if not known:
        heat = getattr(response.plant, "reference_temperature", response.plant.temperature)
        kl, error, curve = (kl - kl[-1]) / heat, error / heat, "KL less its last value"
    good = kl > 0
    ax.set_yscale("log")
    if error.any():
        low = np.maximum(kl - 2 * error, 1e-12)
        ax.fill_between(time, low, np.maximum(kl + 2 * error, low), color=SKY, alpha=0.4, linewidth=0, label="± 2 s.e.")
    ax.plot(time[good], kl[good], color=BLUE, marker="o", markersize=2.5, linewidth=1.2, label=curve)
    if (kl[good] > error[good]).any():  # what is far below its own error is noise, and would stretch the axis
        lowest = max(float(kl[good].min()), 0.3 * float(np.median(error)))
        ax.set_ylim(0.5 * lowest, 2 * float(kl[good].max()))
    if rate is not None:
        draw_rate(ax, time, rate, anchor or (float(time[0]), float(kl[0])), label)
    ax.set(xlabel="time", ylabel="KL [nats]")
    ax.grid(True, which="major", alpha=0.25)
    ax.legend(frameon=False, fontsize="small")
    return ax


def draw_rate(
    ax: Axes, time: Any, rate: float, anchor: tuple[float, float], label: str, color: str = RED, style: str = "--"
) -> None:
    """exp(-rate t) through an anchor, over the given times, without changing the limits of the axes."""
    bottom, top = ax.get_ylim()
    t = np.linspace(np.min(time), np.max(time), 200)
    line = anchor[1] * np.exp(-rate * (t - anchor[0]))
    seen = (line > bottom / 3) & (line < top * 3)
    ax.plot(t[seen], line[seen], style, color=color, linewidth=1.4, label=f"{label}: rate {rate:.3g}")
    ax.set_ylim(bottom, top)


def response(response: Response, axes: Any = None, most: int = 60) -> np.ndarray:
    """A closed loop's response: KL on a log axis, energies over time and, in one or two dimensions, the density.

    In two dimensions a run under a safety filter shows its safe set as well.

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
    # a lower bound m on the Hessian certifies the rate 2m of the overdamped loop, in the identity metric; a filtered
    # drift keeps no Gibbs measure
    bound = response.energy_block.properties.hessian_lower
    bent = response.filter is not None and response.filter.mode == "cbf"
    moved = response.inputs is not None or getattr(response, "extra", None) is not None
    plain = getattr(response.plant, "mobility", None) is None and response.schedule is None and not (bent or moved)
    overdamped = type(response.plant).__name__ in ("Langevin", "FokkerPlanckGrid", "GaussianPlant")
    certified = 2 * bound if bound is not None and bound > 0 and plain and overdamped else None
    decay(response, axes[0], certified, label="certified", most=most)
    energies(response, axes[1], most)
    if len(axes) == 3:
        _density(response, len(response.time) - 1, axes[2])
    return axes


def energies(response: Response, ax: Axes | None = None, most: int = 60) -> Axes:
    """Mean energy and free energy over time, with their errors."""
    ax = _axes(ax)
    which = thinned(len(response.time), most)
    time = response.time[which]
    for name, label, color, marker in (
        ("mean_energy", "mean energy", ORANGE, "-"),
        ("free_energy", "free energy F", GREEN, "--"),
    ):
        values = [response.at(int(k), name) for k in which]  # type: ignore[arg-type]
        value, error = np.array([float(v.value) for v in values]), np.array([float(v.error) for v in values])
        ax.fill_between(time, value - 2 * error, value + 2 * error, color=color, alpha=0.25, linewidth=0)
        ax.plot(time, value, marker, color=color, linewidth=1.4, label=label)
    ax.set(xlabel="time", ylabel="energy")
    ax.grid(True, alpha=0.25)
    ax.legend(frameon=False, fontsize="small")
    return ax


def inputs(response: Response, ax: Axes | None = None) -> Axes:
    """What a density feedback commanded at the records, u over time, with the limits at which it saturates.

    Raises:
        ValueError: the controller was a static energy.
    """
    if response.inputs is None or not isinstance(response.controller, DensityFeedback):
        raise ValueError("response must be of a loop under density feedback; this controller is a static energy.")
    ax = _axes(ax)
    styles = ("-", "--", "-.", ":")
    for j, (u, limit) in enumerate(zip(response.inputs.T, response.controller.limit, strict=True)):
        color = CYCLE[j % len(CYCLE)]
        ax.plot(response.time, u, styles[j % len(styles)], color=color, linewidth=1.4, label=f"u[{j}]")
        if np.abs(u).max() > 0.5 * limit:
            for level in (-limit, limit):
                ax.axhline(level, color=color, linewidth=0.7, alpha=0.6, linestyle=":")
    ax.set(xlabel="time", ylabel="input")
    ax.grid(True, alpha=0.25)
    ax.legend(frameon=False, fontsize="small")
    return ax


def transport(
    response: Response, E: Energy | None = None, panels: int = 4, axes: Any = None, bounds: Any = None
) -> np.ndarray:
    """The density on the landscape at several times, from the start to the end, evenly in the logarithm of time.

    In two dimensions a run under a safety filter shows its safe set as well.

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
        bounds = _extent(response)
    last = len(response.time) - 1
    later = np.geomspace(max(1, last), max(1, last / 60), len(axes) - 1)[::-1] if len(axes) > 1 else []
    for ax, k in zip(axes, [0, *np.round(later).astype(int)], strict=False):
        _density(response, int(k), ax, E, bounds)
        ax.set_title(f"t = {response.time[k]:.3g}", fontsize="medium")
    for ax in axes[1:]:
        ax.set_ylabel("")
    return axes


def region(result: Region, ax: Axes | None = None, bounds: Any = None) -> Axes:
    """The phase portrait of a system with its proved region of attraction, and the point that refutes a larger one.

    Args:
        result: of `region_of_attraction`, for two states and a finite level.
        ax: where to draw; a new figure when omitted.
        bounds: (2, 2), lower and upper corner; a little more than the region when omitted.

    Raises:
        ValueError: there are not two states, or no finite level and no bounds.
    """
    if result.lyapunov is None or result.f is None or result.lyapunov.dim != 2:
        raise ValueError("result must be of a system with two states to be drawn.")
    V, level = result.lyapunov, result.level
    finite = level is not None and np.isfinite(level)
    star = np.array([float(v) for v in V.equilibrium])
    if bounds is None:
        if not finite:
            raise ValueError("result has no finite level that would say how much to draw. Pass bounds=.")
        bounds = _around(V, star, float(level or 0.0), result.witness)
    low, high = np.asarray(bounds, dtype=np.float64)
    ax = _axes(ax)
    x, y = np.meshgrid(np.linspace(low[0], high[0], GRID), np.linspace(low[1], high[1], GRID))
    points = np.stack([x.ravel(), y.ravel()])
    with float64():
        u, v = np.asarray(result.f.columns(jnp.asarray(points))).reshape(2, *x.shape)
    height = V(points.T).reshape(x.shape)
    if finite:
        ax.contourf(x, y, height, levels=[-np.inf, float(level or 0.0)], colors=[SKY], alpha=0.35)
        ax.contour(x, y, height, levels=[float(level or 0.0)], colors=[BLUE], linewidths=1.6)
    ax.streamplot(x, y, u, v, color="0.45", density=1.1, linewidth=0.6, arrowsize=0.7)
    ax.plot(*star, "o", color=BLACK, markersize=4)
    ax.plot([], [], color=BLUE, linewidth=1.6, label=f"proved: V < {level:.6g}" if finite else "no level proved")
    if result.witness is not None:
        ax.plot(*result.witness, "x", color=RED, markersize=7, markeredgewidth=2, label="V̇ ≥ 0 here")
    ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xlabel=V.states[0].name, ylabel=V.states[1].name)
    ax.legend(loc="upper right", fontsize="small", framealpha=0.9)
    return ax


def _around(V: Any, star: np.ndarray, level: float, witness: Any) -> np.ndarray:
    """A square about the equilibrium that holds {V < level}, as far as rays from it tell, and the witness."""
    angle = np.linspace(0, 2 * np.pi, 360, endpoint=False)
    rays = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    radii = np.geomspace(1e-6, 1e6, 400)
    inside = V((star + radii[:, None, None] * rays).reshape(-1, 2)).reshape(len(radii), -1) < level
    first = np.where(inside.all(axis=0), len(radii) - 1, np.argmin(inside, axis=0))
    reach = float(radii[first].max())
    if witness is not None:
        reach = max(reach, float(np.abs(np.asarray(witness) - star).max()))
    return np.stack([star - 1.35 * reach, star + 1.35 * reach])


def training(result: TrainingResult, ax: Axes | None = None) -> Axes:
    """Loss against the step, its phases, and the held-out quality on a second axis where it was measured."""
    ax, history = _axes(ax), result.history
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


def images(samples: Any, shape: tuple[int, int] = (8, 8), ax: Axes | None = None, columns: int | None = None) -> Axes:
    """Samples (n, h·w) as a sheet of pictures, dark for large values."""
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
    ax = _axes(ax)
    ax.imshow(sheet, cmap="gray_r", vmin=low, vmax=high, interpolation="nearest")
    ax.set_axis_off()
    return ax


def contraction_region(result: RegionVerdict, ax: Axes | None = None) -> Axes:
    """Where a closed loop contracts: proved cells shaded on the landscape, with the largest box and ball inside them.

    In one dimension the proved intervals are bands.

    Args:
        result: of `contraction_region`, in one or two dimensions.
        ax: where to draw; a new figure when omitted.

    Raises:
        ValueError: it has more than two dimensions, or does not carry its energy.
    """
    dim = result.box.shape[1]
    if dim > 2 or result.energy is None:
        raise ValueError(f"result must have 1 or 2 dimensions and its energy to be drawn; it has {dim} dimensions.")
    ax = _axes(ax)
    energy(result.energy, ax, result.box)
    if dim == 1:
        for k, (low, high) in enumerate(result.cells[:, 0]):
            ax.axvspan(low, high, color=RED, alpha=0.3, linewidth=0, label=None if k else "contraction proved")
    elif len(result.cells):
        across, up = result.cells[:, 0][:, [0, 1, 1, 0]], result.cells[:, 1][:, [0, 0, 1, 1]]
        style: dict[str, Any] = {"facecolors": RED, "edgecolors": "none", "alpha": 0.5, "label": "contraction proved"}
        ax.add_collection(PolyCollection(list(np.stack([across, up], axis=-1)), **style))
    if dim == 2 and result.largest_box is not None and result.largest_ball is not None:
        low, high = (
            np.array([float(v) for v in side]) for side in (result.largest_box.lower, result.largest_box.upper)
        )
        frame = np.array([low, [high[0], low[1]], high, [low[0], high[1]], low])
        ax.plot(*frame.T, color=BLACK, linewidth=1.2, label="largest box")
        angle = np.linspace(0, 2 * np.pi, 200)
        centre, radius = [float(v) for v in result.largest_ball.center], float(result.largest_ball.radius)
        circle = (centre[0] + radius * np.cos(angle), centre[1] + radius * np.sin(angle))
        ax.plot(*circle, "--", color=BLACK, linewidth=1.2, label="largest ball")
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="lower left", frameon=False, fontsize="small")
    return ax


def thinned(count: int, most: int) -> np.ndarray:
    """Indices of at most `most` of `count` records, first and last included, evenly in the logarithm of the index."""
    if count <= most:
        return np.arange(count)
    later = np.unique(np.round(np.geomspace(1, count - 1, most - 1)).astype(int))
    missing = np.setdiff1d(np.arange(1, count), later)[: most - 1 - len(later)]
    return np.concatenate([[0], np.sort(np.concatenate([later, missing]))])


# Pieces ---------------------------------------------------------------------------------------------------


def _axes(ax: Axes | None) -> Axes:
    return figure()[0, 0] if ax is None else ax


def _bounds(E: Energy, bounds: Any) -> tuple[np.ndarray, np.ndarray]:
    if bounds is None:
        center, scale = (E.center, E.scale) if isinstance(E, TrainedEnergy) else (np.zeros(E.dim), 4 / 3)
        return center - 3 * scale, center + 3 * scale
    return _box(bounds, E.dim)


def _box(bounds: Any, dim: int) -> tuple[np.ndarray, np.ndarray]:
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


def _extent(response: Response) -> np.ndarray:
    """(2, d): a box that holds all but the outermost particles at the start and at the end."""
    both = np.concatenate([response.snapshots[0], response.snapshots[-1]]).astype(np.float64)
    low, high = np.quantile(both, [0.001, 0.999], axis=0)
    margin = 0.12 * np.maximum(high - low, 1e-9)
    return np.stack([low - margin, high + margin])


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
        bounds = _extent(response)
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
    angle = np.linspace(0, 2 * np.pi, 200)
    circle = np.linalg.cholesky(covariance) @ np.stack([np.cos(angle), np.sin(angle)])
    for deviations in (1, 2):
        ax.plot(*(mean[:, None] + deviations * circle), color=BLACK, linewidth=1.4)
