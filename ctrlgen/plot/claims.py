"""A verdict as a picture: its inequality over the state space where it has a formula, else its steps as a table."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ctrlgen.certify.invariance import NoCertificate
from ctrlgen.certify.premise import shown_down, shown_up
from ctrlgen.certify.verdict import Step, Verdict
from ctrlgen.plot.look import (
    BLACK,
    BLUE,
    ORANGE,
    OUTSIDE,
    PURPLE,
    RED,
    STATUS,
    axes_or_new,
    figure,
    legend_below,
    mark_witness,
    readable,
    set_title,
    status_title,
    styled,
)
from ctrlgen.plot.slices import (
    Slice,
    deepest,
    draw_outside,
    draw_sign,
    least_eigenvalue,
    make_slice,
    mark_in_plane,
    of_field,
    of_matrix,
    reach,
)
from ctrlgen.precision import float64
from ctrlgen.prove.claim import Claim, Status

LINE = 40  # characters of a title over a map in one column
WIDE = 6.8  # inches of a table, two columns of a page
TEXT = 78  # characters of a step in a table
MOST_STEPS = 12
# of a verdict, each rounded to the side on which it stays true; all digits where that depends on the verdict
NUMBERS = {"level": shown_down, "rate": shown_down, "constant": repr, "bound": repr, "probability": shown_up}
SIDE_CLAIM = "is defined"  # in the text of a claim that only makes a function well defined


@styled
def verdict(
    result: Verdict, ax: Axes | None = None, *, plane: tuple[int, int] = (0, 1), at: Any = None, bounds: Any = None
) -> Axes:
    """The inequality that a verdict turns on, over the state space: where it holds, where it fails, and the witness.

    Drawn is the slack (left less right-hand side; of a matrix inequality its smallest eigenvalue) of a refuted step if
    there is one, else of an open one, else of the last. In one dimension it is a line, in more than two a plane. What
    is claimed on a curve {g = 0} only is drawn with that curve. A verdict none of whose steps has a formula or a
    function is drawn as a table of its steps.

    Args:
        result: of any certificate.
        ax: where to draw; a new figure when omitted.
        plane: the two coordinates drawn.
        at: (d,) where the others are held; the witness, the equilibrium or 0 when omitted.
        bounds: (2, 2) of the plane or (2, d), lower and upper corner; (2, 1) in one dimension. What holds the set and
            the witness when omitted.

    Raises:
        ValueError: plane, at or bounds do not fit.
    """
    steps = telling(result)
    if not steps:
        return verdict_table(result, ax)
    claim, ax = steps[0].claim, axes_or_new(ax)
    witness = _witness(result, claim.dim)
    anchors = [witness, _point(claim.except_at)]
    title = _titled(result, steps[0])
    if claim.dim == 1:
        _line(ax, result, steps, anchors, bounds)
        set_title(ax, title)
    else:
        view = make_slice(
            [s.name for s in claim.states], plane, _held(steps, anchors) if at is None else at,
            _hull(steps, anchors) if bounds is None else bounds,
        )  # fmt: skip
        draw_claim(ax, view, steps)
        if witness is not None:
            mark_in_plane(ax, view, witness, _witness_label(result))
        set_title(ax, title)
        view.frame(ax)
    legend_below(ax)
    return ax


def draw_claim(ax: Axes, view: Slice, steps: Sequence[Step]) -> None:
    """The left-hand side of one claim in all its pieces over a plane, and a veil over what it is not about."""
    claim, within = steps[0].claim, view.table(_set_of(steps))
    label = "slack" if claim.size == 1 else "slack (smallest eigenvalue)"
    draw_sign(ax, view, view.table(left_hand_side(claim)), label, inside=within)
    if claim.equalities:
        curve = view.table(lambda x: of_matrix([claim.equalities], claim.states)(x)[:, 0, 0])
        ax.contour(*view.axes, curve, levels=[0.0], colors=[PURPLE], linewidths=2.2, zorder=2.5)
        ax.plot([], [], color=PURPLE, linewidth=2.2, label="claimed on this line")
    draw_outside(ax, view, within)


def telling(result: Verdict) -> list[Step]:
    """The step that a verdict turns on, in all its pieces; none where nothing can be drawn."""
    able = [s for s in result.steps if _drawable(s.claim)]
    main = [s for s in able if SIDE_CLAIM not in s.claim.text] or able
    if not main:
        return []
    worst = next((s for status in (Status.REFUTED, Status.UNDECIDED) for s in main if s.outcome.status is status), None)
    chosen = main[-1] if worst is None else worst
    same = [s for s in main if _text(s.claim) == _text(chosen.claim) and s.claim.states == chosen.claim.states]
    return [chosen, *(s for s in same if s is not chosen)]


def _text(claim: Claim) -> str:
    """The words of a claim, those of one of several pieces less its number."""
    return claim.text.rsplit(" (piece ", 1)[0]


def _drawable(claim: Claim) -> bool:
    """Is it an inequality of states, on a set that is seen: not on what several equations leave?"""
    known = claim.kind == "sign" and bool(claim.states) and (claim.matrix is not None or claim.function is not None)
    return known and len(claim.equalities) <= min(1, claim.dim - 1)


def left_hand_side(claim: Claim) -> Any:
    """The left-hand side of a claim in float64, (n, d) -> (n,); of a matrix its smallest eigenvalue."""
    if claim.matrix is not None:
        return least_eigenvalue(claim.matrix, claim.states)
    function: Any = claim.function

    class Columns:
        columns = staticmethod(function)

    return of_field(Columns)


def _set_of(steps: Sequence[Step]) -> Any:
    return deepest([(*s.claim.guards, *s.claim.open_guards) for s in steps], steps[0].claim.states)


def _point(values: Any) -> np.ndarray | None:
    return None if values is None else np.array([float(v) for v in values])


def _witness(result: Verdict, dim: int) -> np.ndarray | None:
    found = None if result.witness is None else np.asarray(result.witness, dtype=np.float64)
    return found if found is not None and found.shape == (dim,) else None


def _witness_label(result: Verdict) -> str:
    return "fails here" if result.status is Status.REFUTED else "smallest value seen"


def _boxes(steps: Sequence[Step]) -> list[np.ndarray]:
    """Corners of the boxes of the pieces, where they are finite in every coordinate."""
    whole = [s.claim.box for s in steps if s.claim.bounded]
    return [np.array([float(side[k]) for side in box]) for box in whole for k in (0, 1)]  # type: ignore[arg-type]


def _held(steps: Sequence[Step], anchors: Sequence[Any]) -> Any:
    """Where coordinates out of the plane are held: the witness, the equilibrium, or the middle of a bounded set."""
    known = [a for a in anchors if a is not None]
    corners = _boxes(steps)
    return known[0] if known else (np.mean(corners, axis=0) if corners else None)


def _hull(steps: Sequence[Step], points: Sequence[Any]) -> np.ndarray:
    """(2, d): bounds that hold the boxes of all pieces, as far as they have sides, with some room, and the points."""
    dim = steps[0].claim.dim
    known = [p for p in points if p is not None] or [np.zeros(dim)]
    low, high = reach(steps[0].claim.states, [], known)
    for k in range(dim):
        sides = [s.claim.box[k] for s in steps]
        ends = [(float(a), float(b)) for a, b in sides if a is not None and b is not None]
        if len(ends) == len(sides):
            least, most, seen = min(a for a, _ in ends), max(b for _, b in ends), [p[k] for p in known]
            room = 0.08 * (most - least)
            low[k], high[k] = min(least - room, *seen), max(most + room, *seen)
    return np.stack([low, high])


def _titled(result: Verdict, step: Step) -> str:
    status, text = step.outcome.status, _text(step.claim)
    lines = textwrap.wrap(f"{text}: {status.name}", LINE) or [status.name]
    if status is not result.status:
        lines.append(f"the verdict: {result.status.name}")
    return "\n".join(lines[:3])


def turning_point(result: Verdict, otherwise: str) -> str:
    """A title from the step that carries the status of a verdict; other words where none does."""
    known = [s for s in result.steps if s.outcome.status is result.status]
    main = [s for s in known if SIDE_CLAIM not in s.claim.text] or known
    text = _text(main[0].claim) if main else otherwise
    return "\n".join(textwrap.wrap(f"{textwrap.shorten(text, 2 * LINE - 12)}: {result.status.name}", LINE))


def _line(ax: Axes, result: Verdict, steps: Sequence[Step], anchors: Sequence[Any], bounds: Any) -> None:
    """The left-hand side of a claim about one state."""
    claim, values = steps[0].claim, left_hand_side(steps[0].claim)
    low, high = line_bounds(bounds, _hull(steps, anchors))
    x = np.linspace(low, high, 801)[:, None]
    with np.errstate(all="ignore"):
        y = np.asarray(values(x), dtype=np.float64)
    draw_line(ax, x[:, 0], y, np.asarray(_set_of(steps)(x)) >= 0, "slack", wrong=y < 0)
    if anchors[0] is not None:
        height = float(np.asarray(values(anchors[0][None]))[0])
        mark_witness(ax, float(anchors[0][0]), height, _witness_label(result))
    ax.set(xlabel=readable(str(claim.states[0])), ylabel="slack", xlim=(low, high))


def line_bounds(bounds: Any, default: Any) -> tuple[float, float]:
    """The ends of what is drawn of one coordinate.

    Raises:
        ValueError: bounds are no (2,) or (2, 1) numbers in order.
    """
    ends = np.asarray(default if bounds is None else bounds, dtype=np.float64).ravel()
    if ends.shape != (2,) or not np.isfinite(ends).all() or ends[0] >= ends[1]:
        raise ValueError(f"bounds must be two numbers, the lower below the upper; got {bounds!r}.")
    return float(ends[0]), float(ends[1])


def draw_line(
    ax: Axes, x: np.ndarray, y: np.ndarray, within: np.ndarray, label: str, wrong: np.ndarray, told: str = "fails"
) -> None:
    """A function of one state: solid where something is claimed, hatched below where the claim fails, zero marked."""
    ax.axhline(0.0, color=BLACK, linewidth=0.8)
    ax.plot(x, np.where(within, y, np.nan), color=BLUE, linestyle="-", label=label)
    ax.plot(x, np.where(within, np.nan, y), color="0.55", linestyle=":", linewidth=1.0)
    if (wrong & within).any():
        ax.fill_between(
            x, 0, y, where=list(wrong & within), facecolor=ORANGE, edgecolor="0.35", alpha=0.45, hatch="////",
            linewidth=0, label=told,
        )  # fmt: skip
    if not within.all():
        middle = np.concatenate([x[:1], (x[1:] + x[:-1]) / 2, x[-1:]])
        outside = np.flatnonzero(np.diff(np.concatenate([[False], ~within, [False]]).astype(int)))
        for a, b in outside.reshape(-1, 2):
            ax.axvspan(float(middle[a]), float(middle[b]), color=OUTSIDE, alpha=0.6, linewidth=0, zorder=0)


# A table -----------------------------------------------------------------------------------------------------


@styled
def verdict_table(result: Verdict, ax: Axes | None = None) -> Axes:
    """The claim, and a line for every step: its status, its words, and the engine that decided.

    Args:
        result: any verdict.
        ax: where to write; a new figure of fitting height when omitted.
    """
    rows = _table(result)
    count = sum(max(1, len(text)) for _, text, _ in rows) + 0.6 * len(rows)
    size = 8.0 if ax is None else _fitting(ax, count)
    page = figure(size=(WIDE, 0.35 + 0.165 * count))[0, 0] if ax is None else ax
    y, unit = 1.0, 1.0 / count
    for status, text, method in rows:
        color, _, mark = STATUS[status]
        page.text(0.0, y, mark, color=color, fontsize=size * 1.2, fontweight="bold", va="top", transform=page.transAxes)
        words = {"fontsize": size, "va": "top", "transform": page.transAxes, "parse_math": False}
        page.text(0.03, y, status.name, color=color, fontweight="bold", **words)
        page.text(0.17, y, readable("\n".join(text)), color=BLACK, **words)
        page.text(1.0, y, method, color="0.35", ha="right", **words)
        y -= unit * (max(1, len(text)) + 0.6)
    page.set_axis_off()
    page.set(xlim=(0, 1), ylim=(0, 1))
    return page


def _fitting(ax: Axes, count: float) -> float:
    """The size of letters [pt] at which so many lines fit into axes."""
    box = ax.get_window_extent()
    height, width = (72 * v / ax.figure.dpi for v in (box.height, box.width))
    return float(np.clip(min(height / count / 1.5, 8.0 * width / (72 * WIDE)), 3.0, 8.0))


def _table(result: Verdict) -> list[tuple[Status, list[str], str]]:
    """(status, lines, method), the verdict itself first."""
    numbers = [
        f"{name} {shown(value)}"
        for name, shown in NUMBERS.items()
        if isinstance(value := getattr(result, name, None), (int, float))
    ]
    head = f"{type(result).__name__}: {result.claim}" + (f" ({', '.join(numbers)})" if numbers else "")
    rows = [(result.status, textwrap.wrap(head, TEXT)[:6], result.method)]
    for step in result.steps[:MOST_STEPS]:
        rows.append((step.outcome.status, textwrap.wrap(step.claim.text, TEXT)[:4], step.outcome.method))
    if result.reason and result.status is not Status.PROVED:
        rows.append((result.status, textwrap.wrap(f"why: {result.reason}", TEXT)[:5], ""))
    if len(result.steps) > MOST_STEPS:
        rows.append((result.status, [f"... and {len(result.steps) - MOST_STEPS} more steps"], ""))
    return rows


# No certificate without noise --------------------------------------------------------------------------------


@styled
def no_certificate(
    result: NoCertificate,
    ax: Axes | None = None,
    *,
    plane: tuple[int, int] = (0, 1),
    at: Any = None,
    bounds: Any = None,
) -> Axes:
    """What a flow makes of the Gibbs measure: ∂ρ/∂t at ρ*, which is ρ*(ΔE - |∇E|²/ε) for the gradient flow.

    Where it is positive (blue) mass gathers, where it is negative (orange, hatched) mass leaves: of an equilibrium it
    would be zero everywhere. ρ* is scaled to a largest value of 1 in the picture; lines are levels of it, and the cross
    is the point at which ∂ρ/∂t is proved not to be zero.

    Args:
        result: of `no_certificate`.
        ax: where to draw; a new figure when omitted.
        plane, at, bounds: as in `verdict`.

    Raises:
        ValueError: plane, at or bounds do not fit.
    """
    if result.energy is None or result.drift is None or result.temperature is None:
        return verdict_table(result, ax)
    ax = axes_or_new(ax)
    energy, drift, heat, noise = result.energy, result.drift, result.temperature, result.noise

    def ratio(x: np.ndarray) -> np.ndarray:
        slope, other = np.asarray(energy.gradient(x)), np.asarray(drift.gradient(x))
        bend = np.asarray(energy.laplacian(x))
        gathered = np.asarray(drift.laplacian(x)) - (slope * other).sum(axis=1) / heat
        return gathered + noise * ((slope**2).sum(axis=1) / heat**2 - bend / heat)

    label = "∂ρ/∂t at ρ*"
    d = energy.dim
    names = [f"x{k + 1}" for k in range(d)] if d > 1 else ["x"]
    witness, domains = _witness(result, d), [result.domain]
    with float64():
        if d == 1:
            _ratio_line(ax, ratio, energy, heat, label, witness, bounds, reach(names, domains, _known(witness, d)))
        else:
            view = make_slice(names, plane, at, bounds, domains=domains, anchors=[witness])
            rho = np.exp(-(e := view.table(lambda x: np.asarray(energy(x))) / heat) + np.nanmin(e))
            draw_sign(ax, view, rho * view.table(ratio), label, least=0.01)
            across, up = view.axes
            styles: dict[str, Any] = {"colors": ["0.2"], "linewidths": 0.9, "zorder": 3}
            ax.contour(across, up, rho, levels=np.exp([-4.0, -2.0, -1.0]), linestyles=[":", "--", "-"], **styles)
            ax.plot([], [], color="0.2", linewidth=0.9, label="levels of ρ*")
            if witness is not None:
                mark_in_plane(ax, view, witness, "witness: not zero")
            status_title(ax, "no Lyapunov certificate", result.status)
            view.frame(ax)
    if d == 1:
        status_title(ax, "no Lyapunov certificate", result.status)
    legend_below(ax)
    return ax


def _known(witness: np.ndarray | None, dim: int) -> list[np.ndarray]:
    return [np.zeros(dim) if witness is None else witness]


def _ratio_line(ax, ratio, energy, heat, label, witness, bounds, default) -> None:
    low, high = line_bounds(bounds, np.stack(default))
    x = np.linspace(low, high, 801)[:, None]
    y, e = ratio(x), np.asarray(energy(x))
    rho = np.exp(-(e - e.min()) / heat)
    top = float(np.nanmax(np.abs(rho * y)))
    draw_line(ax, x[:, 0], rho * y, np.ones(len(x), bool), label, wrong=y < 0, told="mass leaves")
    ax.plot(x[:, 0], top * rho, color=RED, linestyle="--", label="ρ* (scaled)")
    if witness is not None:
        height = float(np.exp(-(np.asarray(energy(witness[None]))[0] - e.min()) / heat) * ratio(witness[None])[0])
        mark_witness(ax, float(witness[0]), height, "witness: not zero")
    ax.set(xlabel="x", ylabel=label, xlim=(low, high))
