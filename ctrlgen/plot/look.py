"""One look for every picture: colours that every eye and every printer tells apart, sizes for a column, no pyplot.

Colours are Okabe and Ito's. What colours say, line styles, markers or hatches say as well, so that a figure printed in
black and white loses nothing. Sizes are for a figure of one column, 3.4 inches wide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import matplotlib
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.patheffects import withStroke
from matplotlib.rcsetup import cycler
from matplotlib.transforms import ScaledTranslation

from ctrlgen.prove.claim import Status

# Okabe and Ito's colours, told apart with any colour vision
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
CYCLE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BLACK)
STYLES = ("-", "--", "-.", ":", (0, (6, 1.5, 1, 1.5, 1, 1.5)), (0, (8, 2)), (0, (3, 1)))
COLOURS = "viridis"
# low energy bright, and all of it pale: the landscape stays behind what moves on it
LANDSCAPE = ListedColormap(0.4 + 0.6 * colormaps["viridis_r"](np.linspace(0.05, 1, 256))[:, :3])
# where a claim holds blue, where it fails orange; both pale, and what fails is hatched besides
MARGIN = LinearSegmentedColormap.from_list("margin", [(0.0, "#E8973E"), (0.5, "#FFFFFF"), (1.0, "#4C9BD0")])
DENSITY = LinearSegmentedColormap.from_list("density", [(0.0, "#FFFFFF"), (0.35, "#9CCBE8"), (1.0, "#00436B")])
OUTSIDE = "0.8"  # what is not safe, or not asked about
FAILS = "////"  # hatch of what fails or is unsafe
GRID = 160  # points an axis of a landscape
MOST_PARTICLES = 3000
COLUMN = 3.4  # inches
BELOW = 0.42  # inches from axes to a legend under them: ticks and a label are between

STATUS = {
    Status.PROVED: (BLUE, "-", "✓"),
    Status.SAMPLED: (ORANGE, "-.", "~"),
    Status.REFUTED: (RED, "--", "✗"),
    Status.UNDECIDED: ("0.45", ":", "?"),
}

RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "axes.labelsize": 9.0,
    "axes.linewidth": 0.7,
    "axes.prop_cycle": cycler(color=CYCLE, linestyle=STYLES),
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.minor.width": 0.5,
    "ytick.minor.width": 0.5,
    "grid.linewidth": 0.5,
    "grid.alpha": 0.35,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "legend.fontsize": 8.0,
    "legend.framealpha": 0.85,
    "legend.edgecolor": "none",
    "legend.borderpad": 0.3,
    "legend.handlelength": 2.4,
    "legend.labelspacing": 0.35,
    "hatch.linewidth": 0.5,
    "figure.dpi": 150.0,
    "figure.titlesize": 10.0,
}

P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def style() -> Iterator[None]:
    """The package's look for what is drawn inside: `with cg.plot.style(): ...`; what was set before comes back after.

    Every picture of the package is drawn in it; a script that adds lines of its own may use it to match them.
    """
    with matplotlib.rc_context(RC):
        yield


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """A function that draws in the package's look."""

    @wraps(draw)
    def inner(*args: P.args, **kwargs: P.kwargs) -> R:
        with style():
            return draw(*args, **kwargs)

    return inner


@styled
def figure(rows: int = 1, columns: int = 1, size: tuple[float, float] = (COLUMN, 2.9), **arguments: Any) -> np.ndarray:
    """Axes (rows, columns) on a fresh figure without pyplot, in the package's look; `size` is of one panel [inch]."""
    fig = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    FigureCanvasAgg(fig)
    return fig.subplots(rows, columns, squeeze=False, **arguments)


def axes_or_new(ax: Axes | None, size: tuple[float, float] = (COLUMN, 2.9)) -> Axes:
    """The given axes, or those of a new figure."""
    return figure(size=size)[0, 0] if ax is None else ax


def several(axes: Any, count: int, size: tuple[float, float] = (COLUMN, 2.9)) -> np.ndarray:
    """`count` axes in a row: the given ones, or those of a new figure.

    Raises:
        ValueError: another number was given.
    """
    if axes is None:
        return figure(1, count, size)[0]
    axes = np.ravel(np.asarray(axes, dtype=object))
    if len(axes) != count:
        raise ValueError(f"axes must be {count} axes; got {len(axes)}.")
    return axes


def legend_below(ax: Axes, columns: int = 2) -> None:
    """A legend under the axes, where it hides nothing; none where nothing is labelled."""
    handles, labels = ax.get_legend_handles_labels()
    if handles:
        wide = max(len(label) for label in labels) > 24
        under = ax.transAxes + ScaledTranslation(0.0, -BELOW, ax.figure.dpi_scale_trans)
        ax.legend(
            handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0.0), bbox_transform=under, frameon=False,
            ncols=1 if wide else columns, borderaxespad=0.0, columnspacing=1.2,
        )  # fmt: skip


def set_title(ax: Axes, text: str) -> None:
    """A title in plain letters that the font has."""
    ax.set_title(readable(text), parse_math=False)


def status_title(ax: Axes, text: str, status: Status) -> None:
    """A title that ends in the status, in words."""
    set_title(ax, f"{text}: {status.name}" if text else status.name)


def readable(text: str) -> str:
    """Text in letters that the look's font has: a script L for the generator's, "?" for what else is missing."""
    font = get_font(findfont(RC["font.family"]))
    plain = text.replace("𝓛", "ℒ")
    return "".join(c if c == "\n" or font.get_char_index(ord(c)) else "?" for c in plain)


def mark_witness(ax: Axes, x: float, y: float, label: str) -> None:
    """A cross at the point that decides, ringed in white so that it is seen on any ground."""
    halo = [withStroke(linewidth=4.5, foreground="white")]
    ax.plot([x], [y], "x", color=RED, markersize=7, markeredgewidth=2, zorder=10, label=label, path_effects=halo)
