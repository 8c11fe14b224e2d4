"""The transport as a moving picture: the density on its way, and KL as it falls, as a GIF or a page of its own.

Frames are drawn once and reduced to one palette; what does not move is not drawn again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from ctrlgen.plot.divergence import last_sound, leaving_record
from ctrlgen.plot.landscape import energy, outside_of, point_size
from ctrlgen.plot.look import BLACK, BLUE, DENSITY, GRID, OUTSIDE, RED, SKY, figure, set_title, styled
from ctrlgen.plot.loops import Curve, ellipse, extent, lyapunov_curve
from ctrlgen.plot.movie import Movie, check_suffix
from ctrlgen.plot.slices import check_plane
from ctrlgen.response import Response

PANEL = (3.2, 3.0)  # inches
DPI = 100
PALETTE = 64  # colours of all frames together
MEASURED = 40  # records whose KL is computed
PARTICLES = 1500
BRIGHT = 3.0  # how far above the highest Gibbs density the colours of a grid reach
BINS = 60


@styled
def animate(
    response: Response,
    path: str | Path | None = None,
    *,
    bounds: Any = None,
    frames: int = 60,
    fps: float = 20.0,
    plane: tuple[int, int] = (0, 1),
    kl: bool = True,
    most: int = PARTICLES,
    progress: bool = False,
) -> Movie:
    """The density on its way, one frame a record, beside KL up to that time.

    In two dimensions particles move on the landscape, with the safe set of a filter (which moves if it does); in one
    dimension they are a histogram beside the Gibbs density; in more a plane is looked at, before what is reached at the
    end (pale). A grid's density is an image in one scale of colours, which ends where three times the highest Gibbs
    density lies; a Gaussian is its ellipses of one and two standard deviations. KL is computed once, at up to 40
    records; where it is not defined its panel is left out. A run that diverged is shown up to there, on axes of the
    records before; the title of the last frame says so.

    Args:
        response: of a closed loop, with at least 2 records. `simulate(..., record=)` says how many there are.
        path: a .gif or .html to write; nothing is written when omitted.
        bounds: (2, d), or (2, 2) of the plane: lower and upper corner; what holds the density when omitted.
        frames: at most this many, evenly over the records, the first and the last included.
        fps: frames a second.
        plane: the two coordinates drawn, in more than two dimensions.
        kl: draw the second panel.
        most: at most this many particles are drawn, the first ones.
        progress: show a bar.

    Returns:
        A `Movie`: it shows itself in a notebook, and `.save(path)` writes it.

    Raises:
        ValueError: path ends in something else, or an argument is out of its range. It is raised before any work.
        FileNotFoundError: the folder of path does not exist.
    """
    target = None if path is None else check_suffix(path)
    records, d = len(response.time), response.energy_block.dim
    for name, value, least in (("frames", frames, 2), ("most", most, 1)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}; got {value!r}.")
    if not (np.isfinite(fps) and 0 < fps <= 100):
        raise ValueError(f"fps must be between 0 and 100; got {fps!r}.")
    if records < 2:
        raise ValueError("response must have at least 2 records to move; pass record= to simulate.")
    pick = check_plane(plane, d) if d > 1 else (0, 0)
    box = _frame_box(response, pick, bounds)
    last, leaving = last_sound(response), leaving_record(response)
    leaving = [] if leaving is None or response.plant.kind != "particles" else [leaving]
    end = records if last is None else last + 1
    which = np.unique(np.round(np.linspace(0, end - 1, min(frames - len(leaving), end))).astype(int))
    which = np.append(which, np.array(leaving, dtype=int))
    curve = _curve(response) if kl else None
    axes = figure(1, 1 if curve is None else 2, PANEL)[0]
    scene = SCENES[response.plant.kind](response, axes[0], box, pick, which, most)
    grow = None if curve is None else _growing(axes[1], curve)
    pictures = _rendered(axes[0].figure, axes[0], response, which, last, scene, grow, progress)
    movie = Movie(pictures, response.time[which], float(fps), f"{type(response.plant).__name__}: the transport")
    if target is not None:
        movie.save(target)
    return movie


Draw = Callable[[int], None]  # brings the picture to a record


def _curve(response: Response) -> Curve | None:
    """V over time; None where it is not defined."""
    try:
        curve = lyapunov_curve(response, MEASURED)
    except (ValueError, NotImplementedError, FloatingPointError):
        return None
    return curve if np.isfinite(curve.value).sum() >= 2 and (curve.value > 0).any() else None


def _growing(ax: Axes, curve: Curve) -> Callable[[float], None]:
    """The Lyapunov curve, up to a time; the axes stay as they are for all of it."""
    shown = np.isfinite(curve.value) & (curve.value > 0)
    time, value, error = curve.time[shown], curve.value[shown], curve.error[shown]
    kept = curve.sound[shown] if curve.sound[shown].any() else np.ones(len(time), bool)
    sound = value[kept]
    ax.set_yscale("log")
    ax.plot(time, value, "-", color="0.8", linewidth=1.0)
    (line,) = ax.plot([], [], "-o", color=BLUE, markersize=2.5, linewidth=1.3)
    lowest = max(float(sound.min()), 0.3 * float(np.median(error[kept])), 1e-12 * float(sound.max()))
    ax.set(
        xlim=(curve.time[0], curve.time[-1]),
        ylim=(0.5 * lowest, (2 if curve.sound.all() else 20) * float(sound.max())),
        xlabel="time",
        ylabel="KL [nats]",
    )
    ax.grid(True)
    set_title(ax, curve.label)

    def update(now: float) -> None:
        so_far = time <= now + 1e-12 * time[-1]
        line.set_data(time[so_far], value[so_far])

    return update


def _rendered(
    fig: Any,
    ax: Axes,
    response: Response,
    which: np.ndarray,
    last: int | None,
    scene: Draw,
    grow: Callable[[float], None] | None,
    progress: bool,
) -> tuple[Image.Image, ...]:
    """All frames, of one size and in one palette."""
    from tqdm import tqdm

    assert isinstance(fig, Figure)
    fig.set_dpi(DPI)
    digits = max(0, 2 - math.floor(math.log10(max(float(response.time[-1]), 1e-12))))
    out: list[Image.Image] = []
    for k in tqdm(which, desc="frames", unit="", disable=not progress, leave=False):
        scene(int(k))
        ends = last is not None and k == which[-1]
        then = "" if not ends else ", it diverges" if k != last else ", then it diverges"
        set_title(ax, f"t = {response.time[k]:.{digits}f}{then}")
        if grow is not None:
            grow(float(response.time[k]))
        canvas: Any = fig.canvas
        canvas.draw()
        fig.set_layout_engine("none")  # the first frame's places are everyone's
        out.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy()))
    seen = [out[i] for i in sorted({0, len(out) // 3, 2 * len(out) // 3, len(out) - 1})]
    sheet = Image.new("RGB", (out[0].width, out[0].height * len(seen)))
    for i, frame in enumerate(seen):
        sheet.paste(frame, (0, i * frame.height))
    palette = sheet.quantize(PALETTE, dither=Image.Dither.NONE)
    colours = np.reshape(palette.getpalette() or [], (-1, 3))
    colours[(colours > 245).all(axis=1)] = 255  # paper stays white
    palette.putpalette([int(c) for c in colours.ravel()])
    return tuple(frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in out)


# What moves --------------------------------------------------------------------------------------------------


def _frame_box(response: Response, pick: tuple[int, int], bounds: Any) -> np.ndarray:
    """(2, 2) corners in the plane, or (2, 1) in one dimension."""
    d = response.energy_block.dim
    columns = [0] if d == 1 else list(pick)
    if bounds is None:
        return extent(response)[:, columns]
    box = np.asarray(bounds, dtype=np.float64)
    if box.ndim == 1 and d == 1:
        box = box[:, None]
    if box.shape == (2, d):
        box = box[:, columns]
    if box.shape != (2, len(columns)) or not np.isfinite(box).all() or (box[0] >= box[1]).any():
        raise ValueError(f"bounds must be (2, {d}), lower corner below upper corner; got {bounds!r}.")
    return box


def _particles(
    response: Response, ax: Axes, box: np.ndarray, pick: tuple[int, int], which: np.ndarray, most: int
) -> Draw:
    d = response.energy_block.dim
    if d == 1:
        return _histogram(response, ax, box, which)
    points = [np.asarray(response.snapshots[k], dtype=np.float64)[:most, list(pick)] for k in range(len(response.time))]
    if d == 2 and pick == (0, 1):
        filtered = response.filter is not None  # then its part of the energy is drawn as its border
        energy((response.controller if filtered else None) or response.energy_block, ax, box)
    else:
        last = last_sound(response)
        final = points[-1 if last is None else last]
        ax.scatter(*final.T, s=point_size(len(final)), c=SKY, alpha=0.35, linewidths=0)
        ax.set(xlabel=f"x{pick[0] + 1}", ylabel=f"x{pick[1] + 1}", xlim=box[:, 0], ylim=box[:, 1])
    safe = _safe_set(response, ax, box, pick)
    dots = ax.scatter([], [], s=point_size(len(points[0])), c=BLACK, alpha=0.7, linewidths=0, zorder=3)

    def update(k: int) -> None:
        safe(k)
        dots.set_offsets(points[k])

    return update


def _safe_set(response: Response, ax: Axes, box: np.ndarray, pick: tuple[int, int]) -> Draw:
    """The safe set of a filter in two dimensions, drawn again only where it moves."""
    safety, drawn = response.filter, []
    if safety is None or response.energy_block.dim != 2 or pick != (0, 1):
        return lambda k: None
    across, up = (np.linspace(a, b, 2 * GRID) for a, b in zip(*box, strict=True))
    points = np.stack(np.meshgrid(across, up), axis=-1).reshape(-1, 2)

    def update(k: int) -> None:
        if drawn and not safety.constraints.moving:
            return
        for old in drawn:
            old.remove()
        h = np.nan_to_num(safety.values(points, float(response.time[k])), nan=-1.0, posinf=1.0, neginf=-1.0)
        drawn[:] = outside_of(ax, across, up, h.min(axis=1).reshape(len(up), -1))

    return update


def _gibbs_line(response: Response, ax: Axes, x: np.ndarray) -> float:
    """The Gibbs density over a line of states; its highest value."""
    heat = getattr(response.plant, "reference_temperature", response.plant.temperature)
    e = np.asarray(response.energy_block(x[:, None])) / heat
    weight = np.exp(-(e - np.nanmin(e)))
    weight = np.nan_to_num(weight) / (np.nansum(weight) * (x[1] - x[0]))
    ax.plot(x, weight, "--", color=RED, label="Gibbs")
    return float(weight.max())


def _histogram(response: Response, ax: Axes, box: np.ndarray, which: np.ndarray) -> Draw:
    edges = np.linspace(box[0, 0], box[1, 0], BINS + 1)
    width = edges[1] - edges[0]
    heights = {}
    for k in which:
        states = np.asarray(response.snapshots[k], dtype=np.float64)[:, 0]
        heights[int(k)] = np.histogram(states, edges)[0] / (len(states) * width)
    x = np.linspace(box[0, 0], box[1, 0], 600)
    top = max(_gibbs_line(response, ax, x), *(float(np.quantile(h, 0.98)) for h in heights.values()))
    steps = ax.stairs(heights[int(which[0])], edges, fill=True, color=BLUE, alpha=0.6)
    ax.set(xlabel="x", ylabel="density", xlim=box[:, 0], ylim=(0, 1.25 * top))
    ax.legend(loc="upper right")
    bands = _bands(response, ax, x)

    def update(k: int) -> None:
        bands(k)
        steps.set_data(heights[k])

    return update


def _bands(response: Response, ax: Axes, x: np.ndarray) -> Draw:
    """What is not safe of one state, as bands, drawn again only where the set moves."""
    safety, drawn = response.filter, []
    if safety is None:
        return lambda k: None

    def update(k: int) -> None:
        if drawn and not safety.constraints.moving:
            return
        for old in drawn:
            old.remove()
        outside = ~safety.contains(x[:, None], float(response.time[k]))
        ends = np.flatnonzero(np.diff(np.concatenate([[False], outside, [False]]).astype(int))).reshape(-1, 2)
        look: dict[str, Any] = {"color": OUTSIDE, "alpha": 0.8, "linewidth": 0, "zorder": 0}
        drawn[:] = [ax.axvspan(float(x[a]), float(x[b - 1]), **look) for a, b in ends]

    return update


def _grid(response: Response, ax: Axes, box: np.ndarray, pick: tuple[int, int], which: np.ndarray, most: int) -> Draw:
    plant: Any = response.plant
    axes, d = plant.axes, response.energy_block.dim
    if d == 1:
        line_x = axes[0]
        top = float((np.asarray(plant.gibbs(response.energy_block)) / plant.volume).max())
        ax.plot(line_x, np.asarray(plant.gibbs(response.energy_block)) / plant.volume, "--", color=RED, label="Gibbs")
        (line,) = ax.plot([], [], "-", color=BLUE, label="density")
        highest = max(float(np.max(response.snapshots[k])) / plant.volume for k in which)
        ax.set(xlabel="x", ylabel="density", xlim=box[:, 0], ylim=(0, 1.15 * min(highest, BRIGHT * top)))
        ax.legend(loc="upper right")
        bands = _bands(response, ax, np.linspace(box[0, 0], box[1, 0], 600))

        def move(k: int) -> None:
            bands(k)
            line.set_data(line_x, np.asarray(response.snapshots[k]) / plant.volume)

        return move
    other = tuple(a for a in range(d) if a not in pick)

    def seen(masses: Any) -> np.ndarray:
        table = np.asarray(masses, dtype=np.float64).sum(axis=other)
        return table.T if pick[0] < pick[1] else table

    top = BRIGHT * float(seen(plant.gibbs(response.energy_block)).max())
    top = min(top, max(float(seen(response.snapshots[k]).max()) for k in which))
    image = ax.pcolormesh(
        axes[pick[0]], axes[pick[1]], seen(response.snapshots[0]), cmap=DENSITY, vmin=0.0, vmax=top, shading="nearest"
    )
    name = ("x₁", "x₂") if d == 2 else (f"x{pick[0] + 1}", f"x{pick[1] + 1}")
    ax.set(xlabel=name[0], ylabel=name[1], aspect="equal", xlim=box[:, 0], ylim=box[:, 1])
    safe = _safe_set(response, ax, box, pick)

    def update(k: int) -> None:
        safe(k)
        image.set_array(seen(response.snapshots[k]))

    return update


def _gaussian(
    response: Response, ax: Axes, box: np.ndarray, pick: tuple[int, int], which: np.ndarray, most: int
) -> Draw:
    d = response.energy_block.dim
    states = response.snapshots
    if d == 1:
        x = np.linspace(box[0, 0], box[1, 0], 400)

        def bell(k: int) -> np.ndarray:
            variance = float(np.asarray(states[k].covariance)[0, 0])
            return np.exp(-((x - float(np.asarray(states[k].mean)[0])) ** 2) / (2 * variance)) / np.sqrt(
                2 * np.pi * variance
            )

        top = max(_gibbs_line(response, ax, x), *(float(bell(int(k)).max()) for k in which))
        (line,) = ax.plot(x, bell(int(which[0])), "-", color=BLUE, label="density")
        ax.set(xlabel="x", ylabel="density", xlim=box[:, 0], ylim=(0, 1.15 * top))
        ax.legend(loc="upper right")
        return lambda k: line.set_ydata(bell(k))
    if d == 2 and pick == (0, 1):
        energy(response.energy_block, ax, box)
    else:
        ax.set(xlabel=f"x{pick[0] + 1}", ylabel=f"x{pick[1] + 1}", xlim=box[:, 0], ylim=box[:, 1])
    rings = [ax.plot([], [], style, color=BLACK, label=f"{n} s.d.")[0] for n, style in ((1, "-"), (2, "--"))]
    ax.legend(loc="lower left")

    def update(k: int) -> None:
        mean, covariance = np.asarray(states[k].mean), np.asarray(states[k].covariance)
        for n, ring in enumerate(rings, 1):
            ring.set_data(*ellipse(mean[list(pick)], covariance[np.ix_(pick, pick)], n))

    return update


SCENES: dict[str, Callable[..., Draw]] = {"particles": _particles, "grid": _grid, "gaussian": _gaussian}
