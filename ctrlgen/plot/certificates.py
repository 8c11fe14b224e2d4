"""Certificates of a system in its state space: regions of attraction, Lyapunov functions, barriers, contraction."""

from __future__ import annotations

from typing import Any

import numpy as np
import sympy as sp
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from scipy import ndimage

from ctrlgen.certify.barrier import BarrierVerdict
from ctrlgen.certify.lyapunov import LyapunovVerdict
from ctrlgen.certify.premise import shown_down, shown_up
from ctrlgen.certify.region import Region
from ctrlgen.certify.stochastic import ProbabilityBound
from ctrlgen.domain import Domain
from ctrlgen.field import Field
from ctrlgen.plot.claims import draw_line, line_bounds, turning_point, verdict, verdict_table
from ctrlgen.plot.look import (
    BLACK,
    BLUE,
    FAILS,
    GREEN,
    GRID,
    PURPLE,
    RED,
    SKY,
    axes_or_new,
    legend_below,
    mark_witness,
    readable,
    set_title,
    status_title,
    styled,
)
from ctrlgen.plot.slices import (
    Slice,
    connected,
    depth,
    draw_field,
    draw_outside,
    draw_set,
    draw_sign,
    draw_steps,
    draw_sublevel,
    make_slice,
    mark_in_plane,
    of_field,
    reach,
)
from ctrlgen.prove.claim import Status

OTHER = "\\\\\\\\"  # hatch of where V > 0 fails
APART = 1.005  # the refuted level over the proved one, from which on both are seen


@styled
def region(
    result: Region, ax: Axes | None = None, bounds: Any = None, *, plane: tuple[int, int] = (0, 1), at: Any = None
) -> Axes:
    """The phase portrait of a system with its proved region of attraction, and the point that refutes a larger one.

    Shaded is what the proof is about: the part of {V < level} that lies in the domain D and hangs together with the
    equilibrium. Of one state V and V̇ are drawn, of more than two a plane. The level that is refuted is dashed, where it
    can be told from the proved one. A map is drawn with arrows along f(x) - x, and ΔV = V(f(x)) - V(x) stands for V̇.

    Args:
        result: of `region_of_attraction`.
        ax: where to draw; a new figure when omitted.
        bounds: (2, 2), lower and upper corner in the plane; a little more than the region when omitted.
        plane: the two coordinates drawn.
        at: (d,) where the others are held; the equilibrium when omitted.

    Raises:
        ValueError: bounds, plane or at do not fit.
    """
    if result.lyapunov is None or result.f is None:
        return verdict_table(result, ax)
    V, level = result.lyapunov, result.level
    finite = level is not None and np.isfinite(level)
    star = np.array([float(v) for v in V.equilibrium])
    ax = axes_or_new(ax)
    if V.dim == 1:
        low, high = line_bounds(bounds, around(V, star, float(level or 0.0) if finite else 1.0, result.witness))
        _lyapunov_line(ax, V, result.f, result.discrete, result.domain, (low, high))
        _region_line(ax, result, V, float(star[0]), low, high)
        status_title(ax, "region of attraction", result.status)
        legend_below(ax)
        return ax
    if bounds is None and finite:
        bounds = around(V, star, float(level or 0.0), result.witness)
    names = [s.name for s in V.states]
    view = make_slice(names, plane, star if at is None else at, bounds, anchors=[star, result.witness])
    height, told = view.table(V), _proved(result)
    within = None if result.domain is None else view.table(depth(result.domain, V.states))
    if finite:
        lifted = connected(view, height, float(level or 0.0), within, star)[1]
        draw_sublevel(ax, view, lifted, float(level or 0.0), SKY, BLUE, 0.35)
    refuted = result.refuted_at
    draw_motion(ax, view, result.f, result.discrete, 1.1)
    if view.holds(star):
        ax.plot(*view.place(star), "o", color=BLACK, markersize=4)
    ax.plot([], [], color=BLUE, linewidth=1.6, label=told)
    if refuted is not None and refuted > APART * (level if level is not None else -np.inf):
        asked = height if within is None else np.ma.masked_where(within < 0, height)
        ax.contour(*view.axes, asked, levels=[refuted], colors=[RED], linestyles=["--"], linewidths=1.3)
        ax.plot([], [], color=RED, linestyle="--", label=f"refuted: V < {shown_up(refuted)}{_inside(result)}")
    if within is not None:
        draw_outside(ax, view, within)
    if result.witness is not None:
        mark_in_plane(ax, view, result.witness, _rises(result))
    status_title(ax, "region of attraction", result.status)
    view.frame(ax)
    legend_below(ax)
    return ax


def _proved(result: Region) -> str:
    """What was proved, in words; the level rounded down."""
    if result.level is None:
        return "no level proved"
    if not np.isfinite(result.level):
        return "proved: all of it"
    return f"proved: V < {shown_down(result.level)}{_inside(result)}"


def _inside(result: Region) -> str:
    return "" if result.domain is None else " inside D"


def _rises(result: Region) -> str:
    return f"{'ΔV' if result.discrete else 'V̇'} ≥ 0 here"


def _region_line(ax: Axes, result: Region, V: Any, star: float, low: float, high: float) -> None:
    """The proved interval about the equilibrium as a band, and the witness."""
    x = np.linspace(low, high, 2001)
    held = V(x[:, None]) < (result.level if result.level is not None else -np.inf)
    if result.domain is not None:
        held &= depth(result.domain, V.states)(x[:, None]) >= 0
    if low <= star <= high:
        found: Any = ndimage.label(held)
        labels = found[0]
        held = labels == max(labels[int(np.argmin(np.abs(x - star)))], 1)
    high_as_axes = {"transform": ax.get_xaxis_transform(), "linewidth": 0}
    told = None if result.level is None else _proved(result)
    ax.fill_between(x, 0, 1, where=list(held), color=SKY, alpha=0.35, label=told, **high_as_axes)
    if result.witness is not None:
        mark_witness(ax, float(result.witness[0]), 0.0, _rises(result))


def draw_motion(ax: Axes, view: Slice, f: Any, discrete: bool, density: float = 0.9) -> None:
    """Streamlines of ẋ = f(x), or arrows f(x) - x of the map x⁺ = f(x)."""
    if discrete:
        draw_steps(ax, view, of_field(f))
    else:
        draw_field(ax, view, of_field(f), density)


def around(V: Any, star: np.ndarray, level: float, witness: Any) -> np.ndarray:
    """A cube about the equilibrium that holds {V < level}, as far as rays from it tell, and the witness."""
    angle, d = np.linspace(0, 2 * np.pi, 360, endpoint=False), len(star)
    rays = np.stack([np.cos(angle), np.sin(angle)], axis=1) if d == 2 else np.concatenate([np.eye(d), -np.eye(d)])
    if d > 2:
        some = np.random.default_rng(0).normal(size=(360, d))
        rays = np.concatenate([rays, some / np.linalg.norm(some, axis=1, keepdims=True)])
    radii = np.geomspace(1e-6, 1e6, 400)
    inside = V((star + radii[:, None, None] * rays).reshape(-1, d)).reshape(len(radii), -1) < level
    first = np.where(inside.all(axis=0), len(radii) - 1, np.argmin(inside, axis=0))
    reach = float(radii[first].max())
    if witness is not None:
        reach = max(reach, float(np.abs(np.asarray(witness) - star).max()))
    return np.stack([star - 1.35 * reach, star + 1.35 * reach])


@styled
def lyapunov(
    result: LyapunovVerdict,
    ax: Axes | None = None,
    *,
    plane: tuple[int, int] = (0, 1),
    at: Any = None,
    bounds: Any = None,
) -> Axes:
    """V̇ along the motion, where it is negative and where it is not, with level lines of V and the witness.

    Of one state V and V̇ are drawn as lines, of more than two a plane. In discrete time V̇ is V(f(x)) - V(x).

    Args:
        result: of `LyapunovFunction.verify` or `find_lyapunov`.
        ax: where to draw; a new figure when omitted.
        plane: the two coordinates drawn.
        at: (d,) where the others are held; the witness, or the equilibrium, when omitted.
        bounds: (2, 2), lower and upper corner in the plane; (2,) in one dimension.

    Raises:
        ValueError: plane, at or bounds do not fit.
    """
    if result.lyapunov is None or result.f is None:
        return verdict_table(result, ax)
    V, name = result.lyapunov, "V(f(x)) - V(x)" if result.discrete else "V̇"
    star = np.array([float(v) for v in V.equilibrium])
    names = [s.name for s in V.states]
    ax = axes_or_new(ax)
    if V.dim == 1:
        default = reach(names, [result.domain], [star] if result.witness is None else [star, result.witness])
        ends = line_bounds(bounds, np.stack(default))
        _lyapunov_line(ax, V, result.f, result.discrete, result.domain, ends, result.strict)
        if result.witness is not None:
            height = _change(V, result.f, result.discrete)(np.atleast_2d(result.witness))
            mark_witness(ax, float(result.witness[0]), float(height[0]), "fails here")
        status_title(ax, f"V > 0 and {name} < 0", result.status)
        legend_below(ax)
        return ax
    held = (star if result.witness is None else result.witness) if at is None else at
    view = make_slice(names, plane, held, bounds, domains=[result.domain], anchors=[star, result.witness])
    within = None if result.domain is None else view.table(depth(result.domain, V.states))
    away, height, (across, up) = _away(view, star), view.table(V), view.axes
    change = view.table(_change(V, result.f, result.discrete))
    draw_sign(ax, view, change, name, good=-1, inside=within, zero=away if result.strict else None)
    _not_positive(ax, view, (height <= 0) & away)
    levels = np.unique(np.quantile(height[np.isfinite(height)], [0.02, 0.1, 0.25, 0.45, 0.7]))
    ax.contour(across, up, height, levels=levels, colors=["0.25"], linewidths=0.8, zorder=1.7)
    ax.plot([], [], color="0.25", linewidth=0.8, label="levels of V")
    if within is not None:
        draw_outside(ax, view, within)
    if view.holds(star):
        ax.plot(*view.place(star), "o", color=BLACK, markersize=4, zorder=5)
    if result.witness is not None:
        mark_in_plane(ax, view, result.witness, "fails here")
    status_title(ax, f"V > 0 and {name} < 0", result.status)
    view.frame(ax)
    legend_below(ax)
    return ax


def _change(V: Any, f: Any, discrete: bool) -> Any:
    """V̇, or V(f(x)) - V(x), as a function of states (n, d) -> (n,)."""
    change = V.field.after(f) - V.field if discrete else V.field.lie(f)
    if change.expr is not None and change.expr.is_polynomial(*V.states):
        change = Field(sp.expand(change.expr), V.states)  # what cancels is zero, not rounding
    return of_field(change)


def _away(view: Slice, star: np.ndarray) -> np.ndarray:
    """Which points of the drawing grid are not the equilibrium."""
    return (np.abs(view.points - star).max(axis=1) > 1e-9 * float((view.high - view.low).max())).reshape(GRID, GRID)


def _not_positive(ax: Axes, view: Slice, where: np.ndarray) -> None:
    """Hatch where V > 0 fails, the other way than where V̇ < 0 does."""
    if not where.any():
        return
    body = ax.contourf(*view.axes, where.astype(float), levels=[0.5, 2.0], colors=["none"], hatches=[OTHER], zorder=1.6)
    body.set(edgecolor=PURPLE, linewidth=0)
    key = PolyCollection([], facecolors="none", edgecolors=PURPLE, hatch=OTHER, linewidths=0.8, label="V ≤ 0")
    ax.add_collection(key, autolim=False)


def _lyapunov_line(
    ax: Axes, V: Any, f: Any, discrete: bool, domain: Domain | None, ends: tuple[float, float], strict: bool = True
) -> None:
    """V and V̇ over one state; hatched where V > 0 fails, or V̇ < 0 does."""
    x = np.linspace(*ends, 801)[:, None]
    with np.errstate(all="ignore"):
        height, change = V(x), np.asarray(_change(V, f, discrete)(x), dtype=np.float64)
    within = np.ones(len(x), bool) if domain is None else depth(domain, V.states)(x) >= 0
    away = np.abs(x[:, 0] - float(V.equilibrium[0])) > 1e-9 * max(1.0, abs(ends[1] - ends[0]))
    name = "ΔV = V(f(x)) - V(x)" if discrete else "V̇"
    draw_line(ax, x[:, 0], change, within, name, wrong=(change > 0) & away)
    ax.plot(x[:, 0], height, color=RED, linestyle="--", label="V")
    still = (change == 0) & strict
    for fails, hatch, color, label in (
        (still, FAILS, "0.35", f"{'ΔV' if discrete else 'V̇'} = 0"),
        (height <= 0, OTHER, PURPLE, "V ≤ 0"),
    ):
        where = fails & away & within
        if where.any():
            ax.fill_between(
                x[:, 0], 0, 1, where=list(where), transform=ax.get_xaxis_transform(), facecolor="none",
                edgecolor=color, hatch=hatch, linewidth=0, label=label, zorder=0,
            )  # fmt: skip
    ax.set(xlabel=readable(V.states[0].name), xlim=ends)


@styled
def barrier(
    result: BarrierVerdict,
    ax: Axes | None = None,
    *,
    plane: tuple[int, int] = (0, 1),
    at: Any = None,
    bounds: Any = None,
) -> Axes:
    """The border h = 0 between the set that trajectories start in and the one they do not reach, in the flow.

    The title says what is proved, or which claim about h is not: that h does not separate the sets does not mean that
    the unsafe one is reached. Of one state h is drawn as a line; of more than two a plane, with the components of f in
    it. A map is drawn with arrows along f(x) - x, of one state with Δh = h(f(x)) - h(x).

    Args:
        result: of `BarrierFunction.verify` or `find_barrier`.
        ax: where to draw; a new figure when omitted.
        plane: the two coordinates drawn.
        at: (d,) where the others are held; the witness, or the middle of the sets, when omitted.
        bounds: (2, 2), lower and upper corner in the plane; (2,) in one dimension.

    Raises:
        ValueError: plane, at or bounds do not fit.
    """
    h = result.barrier
    if h is None or result.f is None or result.initial is None or result.unsafe is None:
        return verdict(result, ax, plane=plane, at=at, bounds=bounds)
    ax = axes_or_new(ax)
    if len(h.states) == 1:
        x = _sets_line(ax, h, result, "h", 0.0, bounds)
        if result.discrete:
            change = of_field(h.field.after(result.f) - h.field)(x[:, None])
            ax.plot(x, change, color=PURPLE, linestyle="-.", label="Δh = h(f(x)) - h(x)")
    else:
        view = _view_of_sets(h.states, result, plane, at, bounds)
        _draw_sets(ax, view, h.states, result)
        across, up = view.axes
        values = view.table(h)
        if values.min() < 0 <= values.max():
            ax.contour(across, up, values, levels=[0.0], colors=[BLACK], linewidths=1.8, zorder=4)
        ax.contourf(across, up, values, levels=[0.0, np.inf], colors=[SKY], alpha=0.18, zorder=1)
        ax.plot([], [], color=BLACK, linewidth=1.8, label="h = 0")
        draw_motion(ax, view, result.f, result.discrete)
        if result.witness is not None:
            mark_in_plane(ax, view, result.witness, "fails here")
        set_title(ax, _separated(result))
        view.frame(ax)
    if len(h.states) == 1:
        set_title(ax, _separated(result))
    legend_below(ax, 3)
    return ax


def _separated(result: BarrierVerdict) -> str:
    """What a barrier proves, in words, or the claim about h that is not proved."""
    if result.status is Status.PROVED:
        return f"unsafe is not reached{'' if result.domain is None else ' while inside D'}: {result.status.name}"
    return turning_point(result, "h separates the sets")


@styled
def stochastic_barrier(
    result: ProbabilityBound,
    ax: Axes | None = None,
    *,
    plane: tuple[int, int] = (0, 1),
    at: Any = None,
    bounds: Any = None,
) -> Axes:
    """The function B that hardly grows on average: its levels γ (not exceeded at the start) and λ (reached on unsafe).

    Args:
        result: of `StochasticBarrier.verify` or `find_barrier(..., diffusion=)`.
        ax, plane, at, bounds: as in `barrier`.

    Raises:
        ValueError: plane, at or bounds do not fit.
    """
    B = result.barrier
    if B is None or result.initial is None or result.unsafe is None:
        return verdict(result, ax, plane=plane, at=at, bounds=bounds)
    ax = axes_or_new(ax)
    told = turning_point(result, "B bounds P(unsafe)")
    if result.probability is not None:
        told = f"P(unsafe) ≤ {shown_up(result.probability, 3)}: {result.status.name}"
    if len(B.states) == 1:
        _sets_line(ax, B, result, "B", None, bounds)
        for value, style, label, shown in ((result.gamma, "--", "γ", shown_up), (result.level, "-.", "λ", shown_down)):
            if value is not None:
                ax.axhline(value, color=PURPLE, linestyle=style, linewidth=1.0, label=f"{label} = {shown(value, 3)}")
        set_title(ax, told)
        legend_below(ax, 3)
        return ax
    view = _view_of_sets(B.states, result, plane, at, bounds)
    _draw_sets(ax, view, B.states, result)
    across, up = view.axes
    values = view.table(B)
    for level, style, width, label, shown in (
        (result.gamma, "--", 1.6, "γ", shown_up),
        (result.level, "-", 1.8, "λ", shown_down),
    ):
        if level is not None and np.nanmin(values) < level < np.nanmax(values):
            ax.contour(
                across, up, values, levels=[level], colors=[BLACK], linestyles=[style], linewidths=width, zorder=4
            )
        if level is not None:
            ax.plot([], [], color=BLACK, linestyle=style, linewidth=width, label=f"B = {label} = {shown(level, 3)}")
    if result.f is not None:
        draw_field(ax, view, of_field(result.f))
    if result.witness is not None:
        mark_in_plane(ax, view, result.witness, "fails here")
    set_title(ax, told)
    view.frame(ax)
    legend_below(ax)
    return ax


def _view_of_sets(states: Any, result: Any, plane: Any, at: Any, bounds: Any) -> Slice:
    sets = [result.initial, result.unsafe, result.domain]
    middle = None
    if result.witness is None:
        low, high = reach(states, sets[:1], [np.zeros(len(states))])
        middle = (low + high) / 2
    anchors = [result.witness if middle is None else middle]
    return make_slice([s.name for s in states], plane, at, bounds, domains=sets, anchors=anchors)


def _draw_sets(ax: Axes, view: Slice, states: Any, result: Any) -> None:
    """The initial set pale with a line around, the unsafe one hatched, a veil outside of the domain."""
    draw_set(ax, view, view.table(depth(result.initial, states)), "initial", GREEN)
    draw_set(ax, view, view.table(depth(result.unsafe, states)), "unsafe", RED, style="--", hatch=FAILS)
    if result.domain is not None:
        draw_outside(ax, view, view.table(depth(result.domain, states)))


def _sets_line(ax: Axes, function: Any, result: Any, name: str, zero: float | None, bounds: Any) -> np.ndarray:
    """A function of one state over its sets; where it was evaluated."""
    states = function.states
    known = np.zeros(1) if result.witness is None else result.witness
    sets = [result.initial, result.unsafe, result.domain]
    low, high = line_bounds(bounds, np.stack(reach([s.name for s in states], sets, [known])))
    x = np.linspace(low, high, 1601)
    ax.plot(x, function(x[:, None]), color=BLUE, linestyle="-", label=name)
    if zero is not None:
        ax.axhline(zero, color=BLACK, linewidth=0.8)
    for domain, label, color, hatch in (
        (result.initial, "initial", GREEN, None),
        (result.unsafe, "unsafe", RED, FAILS),
    ):
        inside = depth(domain, states)(x[:, None]) >= 0
        ax.fill_between(
            x, 0, 1, where=list(inside), transform=ax.get_xaxis_transform(), facecolor="none" if hatch else color,
            edgecolor=color, alpha=0.9 if hatch else 0.3, hatch=hatch, linewidth=0.0, label=label, zorder=0,
        )  # fmt: skip
    if result.witness is not None:
        mark_witness(ax, float(result.witness[0]), float(function(np.asarray(result.witness))), "fails here")
    ax.set(xlabel=readable(states[0].name), ylabel=name, xlim=(low, high))
    return x
