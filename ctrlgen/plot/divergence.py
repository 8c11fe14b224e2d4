"""Where a run diverged: which of its records are shown, and how the picture says so."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from ctrlgen.plot.look import RED
from ctrlgen.response import Response

HUGE = 1e6  # growth of a run that has diverged, whatever its status says
SPREAD = 1e3  # how far a start from a point may get in one record and still be usual [length]
FAR = 30.0  # growth that still fits a picture, where energies do not tell
HEAT = 100.0  # more ε than noise gives, for each coordinate and each factor e of particles


def measured_at(response: Response, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Which records are measured, at most `most`, and which of these are before the run diverged.

    The one with which it leaves the axes comes after them.
    """
    last, leaving = last_sound(response), leaving_record(response)
    which = thinned(len(response.time) if last is None else last + 1, most)
    sound = np.ones(len(which), bool)
    return (which, sound) if leaving is None else (np.append(which, leaving), np.append(sound, False))


def last_sound(response: Response) -> int | None:
    """The last record before the run diverged; None for a run that did not.

    A run diverged if its status says so, if a record is not finite, or if it grew a millionfold. What is beyond the
    last sound record has a particle with an energy that neither the start nor noise explains. Where there is none (an
    energy without lower bound, a Gaussian) it is 30 times as far out as the usual.
    """
    reach, usual = _reaches(response)
    if response.status != "diverged" and reach.max() <= HUGE * usual:
        return None
    gone = _first_hot(response)
    if gone is None:
        gone = int(np.argmax(reach > FAR * usual)) if (reach > FAR * usual).any() else len(reach)
    return max(0, gone - 1)


def leaving_record(response: Response) -> int | None:
    """The record after the last sound one, where it can be measured; None where there is none such."""
    last, reach = last_sound(response), _reaches(response)[0]
    if last is None or last + 1 >= len(reach) or reach[last + 1] > HUGE * reach[: last + 1].max():
        return None
    return last + 1


def _reaches(response: Response) -> tuple[np.ndarray, float]:
    """How far from the mean of the start each record reaches, ∞ where it is not finite, and what is usual of that."""
    states, kind = response.snapshots, response.plant.kind
    if kind == "grid":
        return np.array([0.0 if np.isfinite(rho).all() else np.inf for rho in states]), 0.0
    if kind == "gaussian":
        centre = np.asarray(states[0].mean)
        spread = [3 * np.sqrt(np.diag(np.asarray(g.covariance)).max()) for g in states]
        reach = [np.abs(np.asarray(g.mean) - centre).max() + s for g, s in zip(states, spread, strict=True)]
    else:
        centre = np.asarray(states[0], dtype=np.float64).mean(axis=0)
        reach = [np.abs(np.asarray(x, dtype=np.float64) - centre).max() for x in states]
    out = np.where(np.isfinite(reach), reach, np.inf)
    return out, max(float(out[0]), float(out[1:].min(initial=SPREAD)))


def _first_hot(response: Response) -> int | None:
    """The first record with a particle whose energy is far above what those of the start and noise have."""
    if response.plant.kind != "particles":
        return None
    E = (response.controller if response.filter is not None else None) or response.energy_block
    factors = [1.0 if response.schedule is None else np.max(np.asarray(response.schedule(t))) for t in response.time]
    heat = float(getattr(response.plant, "temperature", 0.0) or 0.0) * float(max(factors))
    limit = np.inf
    for k, states in enumerate(response.snapshots):
        top = float(np.asarray(E(np.asarray(states, dtype=np.float64))).max())
        if k == 0:
            limit = top + 1e-3 * abs(top) + HEAT * heat * (E.dim + np.log(len(states)))
        elif not top <= limit:  # nor is one that is NaN
            return k
    return None


def mark_divergence(response: Response, ax: Axes) -> None:
    """A dotted line at the last sound record, whose label says what comes after."""
    last = last_sound(response)
    if last is None:
        return
    told = [f"diverges after t = {response.time[last]:.3g}"] if last + 1 < len(response.time) else []
    told += [f"not finite after t = {response.time[-1]:.3g}"] if response.status == "diverged" else []
    ax.axvline(float(response.time[last]), color=RED, linestyle=":", linewidth=1.2, label=",\n".join(told))


def thinned(count: int, most: int) -> np.ndarray:
    """Indices of at most `most` of `count` records, first and last included, evenly in the logarithm of the index."""
    if count <= most:
        return np.arange(count)
    later = np.unique(np.round(np.geomspace(1, count - 1, most - 1)).astype(int))
    missing = np.setdiff1d(np.arange(1, count), later)[: most - 1 - len(later)]
    return np.concatenate([[0], np.sort(np.concatenate([later, missing]))])
