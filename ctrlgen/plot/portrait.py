"""Phase portraits: the flow of a system of two states with its equilibria, sets, certificates and trajectories."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection

from ctrlgen.accelerate.region import RegionVerdict
from ctrlgen.certify.lyapunov import LyapunovFunction
from ctrlgen.certify.premise import shown_down, shown_up
from ctrlgen.certify.region import Region
from ctrlgen.domain import Domain
from ctrlgen.energies.base import Energy, default_states
from ctrlgen.field import VectorField
from ctrlgen.plot.landscape import bounds_of, energy, outside_of
from ctrlgen.plot.look import (
    BLACK,
    BLUE,
    CYCLE,
    RED,
    SKY,
    STATUS,
    axes_or_new,
    legend_below,
    mark_witness,
    styled,
)
from ctrlgen.plot.slices import Slice, connected, depth, draw_field, draw_sublevel, make_slice, of_field
from ctrlgen.precision import float64
from ctrlgen.prove.claim import Status
from ctrlgen.response import Response
from ctrlgen.safety.filter import SafetyFilter

STARTS = 24  # an axis, of Newton's method
ROUNDS = 60
CLOSE = 1e-9  # of |f| beside its size in the picture, at an equilibrium
APART = 1e-3  # of the picture's side, between two equilibria
ISOLATED = 40  # equilibria from which on they are taken for a curve of them
NEUTRAL = 1e-7  # real parts below this, beside the largest eigenvalue, decide nothing
MOST_PATHS = 60

# (marker, filled) by kind; no colour is needed to tell them apart
KINDS = {
    "stable": ("o", True), "saddle": ("D", False), "unstable": ("o", False), "not decided": ("s", False),
}  # fmt: skip


@dataclass(frozen=True)
class Flow:
    """A vector field of two states.

    Args:
        names: of the states.
        rate: (n, 2) -> (n, 2).
        slopes: Jacobians, (n, 2) -> (n, 2, 2).
        E: the energy of which it is -∇E, or None.
    """

    names: tuple[str, str]
    rate: Callable[[np.ndarray], np.ndarray]
    slopes: Callable[[np.ndarray], np.ndarray]
    E: Energy | None


@dataclass(frozen=True)
class Equilibrium:
    """A point at which a flow rests.

    Args:
        x: (2,).
        eigenvalues: of the Jacobian there, (2,) complex.
        kind: "stable", "saddle", "unstable", or "not decided" where a real part is zero up to rounding.
    """

    x: np.ndarray
    eigenvalues: np.ndarray
    kind: str


@styled
def phase_portrait(
    f: Any,
    ax: Axes | None = None,
    *,
    states: Sequence[Any] | None = None,
    bounds: Any = None,
    domain: Domain | None = None,
    region: Any = None,
    safety: Any = None,
    contraction: RegionVerdict | None = None,
    response: Response | None = None,
    trajectories: Any = None,
    stream: bool = True,
    equilibria: bool = True,
    time: float = 0.0,
) -> Axes:
    """The phase portrait of ẋ = f(x) for two states.

    Below lies the landscape where f is an energy (and ẋ = -∇E), then from below: where the energy's loop contracts,
    what is not safe, the certified region, streamlines, trajectories, and equilibria: found by Newton's method from a
    grid of starts, and told apart by the eigenvalues of the Jacobian.

    Args:
        f: two formulas, a JAX function, a python-control system, or an energy.
        ax: where to draw; a new figure when omitted.
        states: their names; needed for formulas in other names than x1, x2 (an energy's formula knows its own).
        bounds: (2, 2), lower and upper corner; what holds the domain, the region and the trajectories, or a trained
            energy's data, when omitted.
        domain: a set whose border is drawn.
        region: of `region_of_attraction`, or (V, level) with a LyapunovFunction; the proved level solid, the refuted
            one dashed.
        safety: a SafetyFilter, a BarrierFunction or a list of these; what is outside is shaded.
        contraction: of `contraction_region`; its proved cells are hatched.
        response: of particles; the paths of the first of them are drawn.
        trajectories: (k, n, 2), states over time of n trajectories.
        stream: draw streamlines.
        equilibria: find and draw them.
        time: of moving barriers.

    Raises:
        ValueError: f is not a system of two states in continuous time, or an argument is of another dimension.
    """
    flow = read_flow(f, states)
    paths = _paths(response, trajectories)
    view = _view(flow, f, bounds, domain, region, paths)
    ax = axes_or_new(ax, (3.4, 3.3))
    if flow.E is not None:
        energy(flow.E, ax, np.stack([view.low, view.high]))
    if contraction is not None:
        _contraction(ax, contraction)
    if safety is not None:
        _safety(ax, view, safety, time)
    if domain is not None:
        _border(ax, view, domain)
    if region is not None:
        _region(ax, view, region)
    if stream:
        draw_field(ax, view, flow.rate, 1.0)
    if paths is not None:
        _trajectories(ax, paths)
    if equilibria:
        _mark(ax, find_equilibria(flow, view.low, view.high))
    view.frame(ax)
    legend_below(ax)
    return ax


def read_flow(f: Any, states: Sequence[Any] | None) -> Flow:
    """A system of two states in any of the forms that certificates read.

    Raises:
        ValueError: it has another number of states, or is in discrete time.
    """
    if isinstance(f, Energy):
        if f.dim != 2:
            raise ValueError(f"f must have 2 states for a phase portrait; this energy has {f.dim}.")
        known = getattr(getattr(f, "field", None), "states", None) or ("x₁", "x₂")
        names = tuple(str(s) for s in (known if states is None else states))
        E = f
        return Flow((names[0], names[1]), lambda x: -_table(E.gradient(x)), lambda x: -_table(E.hessian(x)), E)
    given = default_states(states, 2) if states is None else states
    if len(given) != 2:
        raise ValueError(f"states must be 2 for a phase portrait; got {len(given)}.")
    field = VectorField(f, given)
    if field.discrete:
        raise ValueError("f must be in continuous time for a phase portrait; got a system in discrete time.")
    jacobians = jax.jit(jax.vmap(field.jacobian_columns))

    def slopes(x: np.ndarray) -> np.ndarray:
        with float64():
            return np.asarray(jacobians(jnp.asarray(x)))

    names = tuple(s.name for s in field.states)
    return Flow((names[0], names[1]), of_field(field), slopes, None)


def _table(values: Any) -> np.ndarray:
    return np.asarray(values, dtype=np.float64)


def _paths(response: Response | None, trajectories: Any) -> np.ndarray | None:
    """(k, n, 2) of what is to be drawn as trajectories.

    Raises:
        ValueError: they have another shape, or the response is not of particles.
    """
    if response is not None and trajectories is not None:
        raise ValueError("response and trajectories both say what moves; pass one of them.")
    if response is not None:
        if response.plant.kind != "particles":
            raise ValueError(f"response must be of particles, which have paths; got a {response.plant.kind} plant.")
        trajectories = response.states
    if trajectories is None:
        return None
    paths = np.asarray(trajectories, dtype=np.float64)
    if paths.ndim != 3 or paths.shape[2] != 2:
        raise ValueError(f"trajectories must be (k, n, 2), states over time; got shape {paths.shape}.")
    return paths[:, :MOST_PATHS]


def _view(flow: Flow, f: Any, bounds: Any, domain: Domain | None, region: Any, paths: np.ndarray | None) -> Slice:
    """What is drawn: the given bounds, or those that hold everything that was passed."""
    if bounds is None and domain is None and region is None and paths is None and flow.E is not None:
        bounds = np.stack(bounds_of(flow.E, None))
    if bounds is None and isinstance(region, Region):
        bounds = _hull_of_region(region)
    anchors = [] if paths is None else [paths.reshape(-1, 2).min(axis=0), paths.reshape(-1, 2).max(axis=0)]
    if anchors and bounds is None and domain is None:
        low, high = anchors
        bounds = np.stack([low - 0.1 * (high - low) - 1e-6, high + 0.1 * (high - low) + 1e-6])
    return make_slice(flow.names, (0, 1), np.zeros(2), bounds, domains=[domain], anchors=anchors)


def _hull_of_region(region: Region) -> np.ndarray | None:
    from ctrlgen.plot.certificates import around

    V, level = region.lyapunov, region.level if region.level is not None else region.refuted_at
    if V is None or level is None or not np.isfinite(level):
        return None
    star = np.array([float(v) for v in V.equilibrium])
    return around(V, star, max(level, region.refuted_at or level), region.witness)


# Sets and certificates ---------------------------------------------------------------------------------------


def _contraction(ax: Axes, found: RegionVerdict) -> None:
    if found.box.shape[1] != 2:
        raise ValueError(f"contraction must be of 2 dimensions; it has {found.box.shape[1]}.")
    if len(found.cells):
        across, up = found.cells[:, 0][:, [0, 1, 1, 0]], found.cells[:, 1][:, [0, 0, 1, 1]]
        corners = list(np.stack([across, up], axis=-1))
        label = f"contracts at {shown_down(found.rate)}: {found.status.name}"
        ax.add_collection(
            PolyCollection(corners, facecolors="none", edgecolors=BLACK, hatch="....", linewidths=0, label=label)
        )


def _safety(ax: Axes, view: Slice, safety: Any, time: float) -> None:
    filter = safety if isinstance(safety, SafetyFilter) else SafetyFilter(safety)
    if filter.dim != 2:
        raise ValueError(f"safety must have barriers in 2 dimensions; they have {filter.dim}.")
    across, up = view.axes
    h = np.nan_to_num(filter.values(view.points, time), nan=-1.0, posinf=1.0, neginf=-1.0)
    if outside_of(ax, across, up, h.min(axis=1).reshape(len(up), -1)):
        ax.plot([], [], color=BLACK, linewidth=1.2, label="border of the safe set")


def _border(ax: Axes, view: Slice, domain: Domain) -> None:
    inside = view.table(depth(domain, view.names))
    if inside.min() < 0 <= inside.max():
        ax.contour(*view.axes, inside, levels=[0.0], colors=["0.25"], linestyles=["-."], linewidths=1.0)
        ax.plot([], [], color="0.25", linestyle="-.", linewidth=1.0, label="domain")


def _region(ax: Axes, view: Slice, region: Any) -> None:
    """The certified region about the equilibrium, filled, with its status; the level that is refuted, dashed."""
    if isinstance(region, Region):
        V, level, refuted, witness = region.lyapunov, region.level, region.refuted_at, region.witness
        status, domain = region.status, region.domain
        if region.discrete:
            raise ValueError("region must be of a system in continuous time for a phase portrait; it is of a map.")
    else:
        V, level = region
        refuted = witness = status = domain = None
    if not isinstance(V, LyapunovFunction) or V.dim != 2:
        raise ValueError("region must be of region_of_attraction with two states, or (V, level), V a LyapunovFunction.")
    height = view.table(V)
    within = None if domain is None else view.table(depth(domain, V.states))
    where = "" if domain is None else " inside D"
    if level is not None and np.isfinite(level):
        held, lifted = connected(view, height, float(level), within, [float(v) for v in V.equilibrium])
        if held.any():
            color = BLUE if status is None else STATUS[status][0]
            draw_sublevel(ax, view, lifted, float(level), SKY, color, 0.4)
            told = "" if status is None else f": {status.name}"
            ax.plot([], [], color=color, linewidth=1.6, label=f"V < {shown_down(level)}{where}{told}")
    if refuted is not None and (level is None or refuted > 1.005 * level):
        asked = height if within is None else np.ma.masked_where(within < 0, height)
        ax.contour(*view.axes, asked, levels=[refuted], colors=[RED], linestyles=["--"], linewidths=1.3)
        label = f"V < {shown_up(refuted)}{where}: {Status.REFUTED.name}"
        ax.plot([], [], color=RED, linestyle="--", label=label)
    if witness is not None:
        mark_witness(ax, float(witness[0]), float(witness[1]), "V̇ ≥ 0 here")


def _trajectories(ax: Axes, paths: np.ndarray) -> None:
    """Paths in colours that repeat, a dot where each starts."""
    for k in range(paths.shape[1]):
        color = CYCLE[k % len(CYCLE)]
        label = "trajectories (from the dot)" if k == 0 else None
        ax.plot(paths[:, k, 0], paths[:, k, 1], "-", color=color, linewidth=0.9, alpha=0.9, label=label)
        ax.plot(*paths[0, k], "o", color=color, markersize=2.5)


# Equilibria --------------------------------------------------------------------------------------------------


def find_equilibria(flow: Flow, low: np.ndarray, high: np.ndarray) -> list[Equilibrium]:
    """The equilibria between two corners that Newton's method finds from a grid of starts; it may miss some."""
    across, up = (np.linspace(a, b, STARTS) for a, b in zip(low, high, strict=True))
    x = np.stack(np.meshgrid(across, up, indexing="ij"), axis=-1).reshape(-1, 2)
    with np.errstate(all="ignore"):
        value = flow.rate(x)
        size = float(np.nanmedian(np.linalg.norm(value, axis=1)))
        x = _newton(flow, x, value, high - low)
        rest = np.linalg.norm(flow.rate(x), axis=1)
    good = np.isfinite(x).all(axis=1) & (rest <= CLOSE * max(size, 1e-300)) & ((x >= low) & (x <= high)).all(axis=1)
    found: list[np.ndarray] = []
    for point in x[good][np.argsort(rest[good])]:
        if all(np.linalg.norm((point - other) / (high - low)) > APART for other in found):
            found.append(point)
    if not found:
        return []
    points = np.stack(found)
    points = points[np.lexsort(np.round(points / (high - low), 6).T[::-1])]  # from left to right, upwards
    return [Equilibrium(p, v, _kind(v)) for p, v in zip(points, np.linalg.eigvals(flow.slopes(points)), strict=True)]


def _newton(flow: Flow, x: np.ndarray, value: np.ndarray, side: np.ndarray) -> np.ndarray:
    """Newton's method with halved steps where |f| does not fall, each point for itself."""
    norm = np.linalg.norm(value, axis=1)
    share = np.ones(len(x))
    for _ in range(ROUNDS):
        slopes = flow.slopes(x)
        inverse = np.linalg.pinv(np.nan_to_num(slopes, posinf=0.0, neginf=0.0), rcond=1e-12)
        step = -np.einsum("nij,nj->ni", inverse, np.nan_to_num(value))
        longest = np.abs(step / side).max(axis=1, initial=0.0)
        step /= np.maximum(1.0, longest / 0.25)[:, None]
        trial = x + share[:, None] * step
        there = flow.rate(trial)
        size = np.linalg.norm(there, axis=1)
        better = np.isfinite(size) & (size < norm)
        x, value = np.where(better[:, None], trial, x), np.where(better[:, None], there, value)
        norm, share = np.where(better, size, norm), np.where(better, np.minimum(1.0, 2 * share), share / 2)
        if not ((share > 1e-8) & (norm > 0)).any():
            break
    return x


def _kind(eigenvalues: np.ndarray) -> str:
    real = np.real(eigenvalues)
    if (np.abs(real) <= NEUTRAL * max(float(np.abs(eigenvalues).max()), 1e-300)).any():
        return "not decided"
    return "stable" if (real < 0).all() else "unstable" if (real > 0).all() else "saddle"


def _mark(ax: Axes, found: Sequence[Equilibrium]) -> None:
    """Stable ones filled, others hollow; a curve of them as small dots."""
    if len(found) > ISOLATED:
        x = np.stack([e.x for e in found])
        ax.plot(*x.T, ".", color=BLACK, markersize=2.5, zorder=6, label="equilibria (not isolated)")
        return
    for kind, (marker, filled) in KINDS.items():
        these = [e.x for e in found if e.kind == kind]
        if these:
            look = {"markerfacecolor": BLACK if filled else "white", "markersize": 4.5 if marker == "D" else 5.5}
            ax.plot(*np.stack(these).T, marker, color=BLACK, zorder=6, label=kind, **look)
