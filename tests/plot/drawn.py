"""What a picture holds, read back from its artists."""

import numpy as np
from matplotlib.colors import same_color
from matplotlib.path import Path


def legend(ax):
    return [] if ax.get_legend() is None else [text.get_text() for text in ax.get_legend().get_texts()]


def crosses(ax):
    """Where witnesses are marked, (n, 2)."""
    lines = [line for line in ax.lines if line.get_marker() == "x"]
    return np.array([[line.get_xdata()[0], line.get_ydata()[0]] for line in lines]).reshape(-1, 2)


def labelled(ax, label):
    """The one artist of the axes with this label."""
    (found,) = [a for a in (*ax.lines, *ax.collections, *ax.patches) if a.get_label() == label]
    return found


def contour_lines(ax, level, color=None):
    """(n, 2) points of the lines drawn at a level (in a colour)."""
    found = []
    for drawn in ax.collections:
        levels = getattr(drawn, "levels", None)
        if levels is None or getattr(drawn, "filled", True):
            continue
        if color is not None and not same_color(drawn.get_edgecolor()[0], color):
            continue
        found += [p.vertices for value, p in zip(levels, drawn.get_paths(), strict=True) if np.isclose(value, level)]
    found = [v for v in found if len(v)]
    return np.concatenate(found) if found else np.zeros((0, 2))


def pixels(ax):
    """The figure as it is drawn, (h, w, 3) of 0 to 255."""
    ax.figure.canvas.draw()
    return np.asarray(ax.figure.canvas.buffer_rgba())[..., :3].astype(int)


def overlap(first, second):
    """Do two boxes on the page overlap?"""
    return first.x0 < second.x1 and second.x0 < first.x1 and first.y0 < second.y1 and second.y0 < first.y1


def hatched(ax, points):
    """Which of the points (n, 2) lie where the picture is hatched for what fails, (n,) bool."""
    (drawn,) = [c for c in ax.collections if getattr(c, "filled", False) and c.hatches and c.hatches[0]]
    loops = [Path(loop) for path in drawn.get_paths() for loop in path.to_polygons()]
    return sum(loop.contains_points(points).astype(int) for loop in loops) % 2 == 1  # a loop in a loop is a hole
