"""The look: told apart without colour, put back after use, readable at the width of a column, nothing over the data."""

import matplotlib
import numpy as np
import pytest

import ctrlgen as cg
from ctrlgen.plot import look as looks
from tests.plot.drawn import overlap, pixels


def luminance(color):
    """Relative luminance of a colour (WCAG 2), 0 to 1."""
    rgb = np.asarray(matplotlib.colors.to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_the_look_is_put_back():
    before = matplotlib.rcParams.copy()
    with cg.plot.style():
        assert matplotlib.rcParams["font.size"] == 9
        assert matplotlib.rcParams != before
    assert matplotlib.rcParams.copy() == before
    with pytest.raises(ZeroDivisionError), cg.plot.style():
        1 / 0  # noqa: B018
    assert matplotlib.rcParams.copy() == before


def test_every_figure_has_the_look_whatever_is_set_outside():
    with matplotlib.rc_context({"font.size": 20, "lines.linewidth": 7, "xtick.labelsize": 22}):
        bare = cg.plot.figure()[0, 0]
        for ax in (cg.plot.energy(cg.DoubleWell(1)), bare):
            ax.figure.canvas.draw()
            assert {t.get_fontsize() for t in (*ax.get_xticklabels(), *ax.get_yticklabels())} == {8}
            assert ax.xaxis.label.get_fontsize() == 9
        assert cg.plot.energy(cg.DoubleWell(1)).lines[0].get_linewidth() == 1.4


def test_lines_differ_by_more_than_their_colour():
    cycle = looks.RC["axes.prop_cycle"].by_key()
    styles = [str(s) for s in cycle["linestyle"]]
    assert len(set(styles)) == len(styles) == len(cg.plot.CYCLE)
    statuses = list(looks.STATUS.values())
    assert len({line for _, line, _ in statuses}) == len(statuses) == len({mark for *_, mark in statuses})
    assert set(looks.STATUS) == set(cg.Status)


def test_what_holds_and_what_fails_differ_in_grey():
    """The two ends are near in grey, so what fails is hatched: the hatch is dark on both."""
    fails, holds = looks.MARGIN(0.0), looks.MARGIN(1.0)
    for ground in (fails, holds, "white"):
        contrast = (luminance(ground) + 0.05) / (luminance("0.35") + 0.05)
        assert contrast > 2.2
    ax = cg.nonnegative("x", ["x", "y"], cg.Box([-1, -1], [1, 1])).plot()
    grey = pixels(ax) @ [0.2126, 0.7152, 0.0722]
    corners = ax.transData.transform([[-0.8, -0.8], [-0.2, 0.8], [0.2, -0.8], [0.8, 0.8]]).astype(int)
    rows = slice(grey.shape[0] - corners[1, 1], grey.shape[0] - corners[0, 1])
    left, right = (grey[rows, corners[k, 0] : corners[k + 1, 0]] for k in (0, 2))
    assert np.diff(left, axis=1).std() > 3 * np.diff(right, axis=1).std()  # stripes where x < 0


def test_letters_are_those_of_the_font():
    assert looks.readable("𝓛V ≤ -εI, V̇ < 0, ρ* ∝ exp(-E/ε)") == "ℒV ≤ -εI, V̇ < 0, ρ* ∝ exp(-E/ε)"
    assert looks.readable("漢\nx") == "?\nx"
    verdict = cg.nonnegative("漢**2", ["漢"])  # names are the user's: a warning of a missing letter is an error here
    pixels(verdict.plot())


@pytest.mark.parametrize(
    "make",
    [
        lambda: cg.plot.energy(cg.Quadratic(np.eye(2))),
        lambda: cg.nonnegative("x**2 + y**2", ["x", "y"]).plot(),
        lambda: cg.nonnegative("x**2 - x/2", ["x"], cg.Box([-1], [1])).plot(),
        lambda: cg.plot.phase_portrait(["w", "-sin(q) - w/5"], states=["q", "w"], bounds=[[-7, -2], [7, 2]]),
        lambda: cg.optimal_skew(cg.Quadratic(np.diag([1.0, 100.0]))).plot(),
        lambda: cg.contraction_region(cg.Quadratic(np.eye(2)), cg.Box([-1, -1], [1, 1]), cells=2).plot(),
    ],
)
def test_a_column_holds_it_and_nothing_covers_anything(make):
    ax = make()
    fig = ax.figure
    assert fig.get_size_inches()[0] == pytest.approx(3.4)
    fig.canvas.draw()
    page, inside = fig.bbox, ax.get_window_extent()
    parts = [ax.title, ax.xaxis.label, ax.yaxis.label]
    boxes = [part.get_window_extent() for part in parts if part.get_text()]
    below = [] if ax.get_legend() is None else [ax.get_legend().get_window_extent()]
    for box in boxes + below:
        assert box.x0 >= page.x0 - 1
        assert box.x1 <= page.x1 + 1
        assert box.y0 >= page.y0 - 1
        assert box.y1 <= page.y1 + 1
        assert not overlap(box, inside)
    for k, one in enumerate(boxes + below):
        for other in (boxes + below)[k + 1 :]:
            assert not overlap(one, other)
    letters = [*ax.get_xticklabels(), *ax.get_yticklabels(), *parts]
    assert min(t.get_fontsize() for t in letters if t.get_text()) >= 7
