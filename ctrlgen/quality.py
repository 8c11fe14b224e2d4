"""How good a trained energy is: its Gibbs measure against the exact density, and its closed loop against the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import logsumexp

from ctrlgen import measure
from ctrlgen.datasets import Distribution
from ctrlgen.energies.base import Energy
from ctrlgen.energies.trained import TrainedEnergy
from ctrlgen.estimate import Estimate
from ctrlgen.loop import ClosedLoop

_CELLS = {1: 2048, 2: 160}  # an axis, over twice the extent of the data
_NODES = 4  # Gauss-Legendre nodes a cell and axis
_LONG = 5  # how many durations the second look waits


@dataclass(frozen=True, kw_only=True)
class Quality:
    """What `measure_quality` found. W₂ in the data's units, KL in nats; the errors are those of the means.

    Args:
        kl: KL(data‖Gibbs), by quadrature; None where the density of the data is not known.
        kl_reverse: KL(Gibbs‖data), by quadrature; inf where the data has no density on a part of the Gibbs measure.
        w2, w2_long: W₂ of generated to fresh points, after the energy's own duration T, and after 5 T.
        floor: W₂ of fresh to fresh points.
        ratio, ratio_long: w2 / floor and w2_long / floor.
        kl_generated: KL(generated‖Gibbs) after T, by nearest neighbours; None where log Z is not known.
        points, repeats: of a W₂, and how many were averaged.
    """

    kl: float | None
    kl_reverse: float | None
    w2: Estimate
    w2_long: Estimate
    floor: Estimate
    ratio: Estimate
    ratio_long: Estimate
    kl_generated: Estimate | None
    points: int
    repeats: int

    def plot(self, ax: Any = None) -> Any:
        """Draw W₂ of generated points beside the floor: see `ctrlgen.plot.quality`."""
        from ctrlgen import plot

        return plot.quality(self, ax)


def measure_quality(
    energy: TrainedEnergy,
    distribution: Distribution,
    *,
    points: int = 2000,
    repeats: int = 4,
    key: int = 0,
    fresh: np.ndarray | None = None,
    other: np.ndarray | None = None,
    progress: bool = False,
) -> Quality:
    """Measure a trained energy against the distribution that it models.

    Generation starts from the energy's source and runs its own closed loop, as `generate` does.

    Args:
        energy: with its own closed loop.
        distribution: what it was trained on.
        points: of each of the two samples of a W₂.
        repeats: independent W₂ that are averaged, at least 2.
        key: seed of everything that is drawn.
        fresh, other: (m, d) rows that stand for fresh data, and rows for the floor to compare them with, where the
            distribution is a table whose draws were trained on. `points` of `other`, of the generated and of the
            rows of `fresh` are drawn for each repeat.
        progress: show a bar.

    Raises:
        ValueError: the dimensions disagree, or fewer than 2 repeats or 10 points.
        DivergenceError: particles left the finite numbers.
    """
    if distribution.dim != energy.dim:
        raise ValueError(
            f"distribution must have the energy's dimension {energy.dim}; {distribution!r} has {distribution.dim}."
        )
    if repeats < 2 or points < 10:
        raise ValueError(f"repeats must be at least 2 and points at least 10; got {repeats} and {points}.")
    response = ClosedLoop.of(energy).simulate(
        energy.source, _LONG * energy.duration, key=key, record=_LONG + 1, particles=points * repeats,
        progress=progress, throw=True,
    )  # fmt: skip
    looks = {"w2": np.asarray(response.states[1]), "w2_long": np.asarray(response.final), "floor": None}
    rng = np.random.default_rng([key, 1])
    found: dict[str, list[float]] = {name: [] for name in looks}
    for i in range(repeats):
        target = _draw(distribution, rng, points, fresh)  # one for all three: its fluctuation leaves their ratios
        for name, states in looks.items():
            own = _draw(distribution, rng, points, other) if states is None else states[i::repeats]
            found[name].append(float(measure.wasserstein2(own, target, max_points=points)))
    exact = divergences(energy, energy.temperature, distribution) if distribution.has_density else None
    return Quality(
        kl=exact[0] if exact else None,
        kl_reverse=exact[1] if exact else None,
        w2=_mean(found["w2"]),
        w2_long=_mean(found["w2_long"]),
        floor=_mean(found["floor"]),
        ratio=_ratio(found["w2"], found["floor"]),
        ratio_long=_ratio(found["w2_long"], found["floor"]),
        kl_generated=measure.kl(looks["w2"], energy, energy.temperature, log_partition=exact[2]) if exact else None,
        points=points,
        repeats=repeats,
    )


def divergences(energy: Energy, temperature: float, distribution: Distribution) -> tuple[float, float, float]:
    """KL(data‖Gibbs), KL(Gibbs‖data) and log Z by quadrature over twice the extent of the data [nats].

    Gauss-Legendre nodes in even cells that meet the edges of `distribution.bounds` and their eighths, so that a
    density that jumps there is integrated as well as a smooth one.

    Raises:
        ValueError: more than two dimensions, or no density is known.
    """
    if energy.dim not in _CELLS:
        raise ValueError(f"divergences need one or two dimensions; the energy has {energy.dim}.")
    lower, upper = distribution.bounds
    half, cells = (upper - lower) / 2, _CELLS[energy.dim]
    node, weight = np.polynomial.legendre.leggauss(_NODES)
    axes = [
        (a + (b - a) / cells * (np.arange(cells)[:, None] + (node + 1) / 2)).ravel()
        for a, b in zip(lower - half, upper + half, strict=True)
    ]
    x = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], axis=1)
    weights = np.meshgrid(*[np.tile(np.log(weight / 2), cells)] * energy.dim, indexing="ij")
    volume = np.sum([w.ravel() for w in weights], axis=0) + float(np.sum(np.log(4 * half / cells)))
    height = np.concatenate([np.asarray(energy(part)) for part in np.array_split(x, len(x) // 8192)]) / temperature
    log_z = float(np.asarray(logsumexp(volume - height)))
    log_q, log_p = -height - log_z, np.asarray(distribution.log_density(x))
    p, q = np.exp(log_p + volume), np.exp(log_q + volume)
    there = p > 0
    forward = float(np.sum(p[there] * (log_p - log_q)[there]) / p.sum())
    with np.errstate(invalid="ignore"):
        backward = float(np.sum(np.where(q > 0, q * (log_q - log_p), 0.0)))
    return forward, backward, log_z


def _draw(distribution: Distribution, rng: np.random.Generator, n: int, rows: Any) -> np.ndarray:
    if rows is None:
        return distribution.sample(int(rng.integers(2**62)), n)
    rows = np.asarray(rows)
    return rows[rng.choice(len(rows), size=min(n, len(rows)), replace=False)]


def _mean(values: Any) -> Estimate:
    values = np.asarray(values)
    return Estimate(float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))))


def _ratio(values: Any, floors: Any) -> Estimate:
    """The ratio of two means over the same repeats, with the error of the delta method."""
    ratio, values, floors = float(np.mean(values) / np.mean(floors)), np.asarray(values), np.asarray(floors)
    return Estimate(ratio, _mean(values - ratio * floors).error / float(np.mean(floors)))
