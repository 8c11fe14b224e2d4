"""log Z of a Gibbs measure by adaptive quadrature, in one to three dimensions."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np

from ctrlgen.energies.base import Energy
from ctrlgen.estimate import Estimate
from ctrlgen.measure import _checks as check

_NODES = 5  # Gauss-Legendre nodes a side of a cell
_CELLS = {1: 32, 2: 12, 3: 6}  # cells a side at the start
_BATCH = 4096  # points an energy call, always the same number: one compilation
_EDGE = 1e-12  # share of the mass that the outermost cells may hold
_DEEP = 40.0  # E/ε above its minimum where a Gibbs density no longer matters: e^-40 = 4e-18
_ROUNDS = 60  # of growing the box


def log_partition(
    energy: Energy, temperature: float, bounds: Any = None, points: int | None = None, tolerance: float = 1e-8
) -> Estimate:
    """log Z = log ∫ exp(-E/ε) dx, by adaptive Gauss-Legendre quadrature in one to three dimensions.

    Without `bounds` the box is found: the deepest points of lattices on many scales are followed downhill, and
    a box around them grows until its outermost cells hold less than 1e-12 of the mass. Cells are split
    until the summed differences between a cell and its parts fall below `tolerance`, relative to Z. A mode
    that is narrower than 1/4 of its distance from the origin and from other modes may be missed: then give `bounds`.

    Args:
        energy: E.
        temperature: ε > 0 [energy].
        bounds: (2, d), lower and upper corners: Z of the Gibbs measure restricted to that box.
        points: how many evaluations of E may be spent; 2e6 in 1-D and 2-D, 2e7 in 3-D.
        tolerance: relative error of Z that ends the refinement.

    Returns:
        log Z [nats]; the error is the summed differences at the last split, an upper estimate. It exceeds the
        tolerance where `points` did not suffice.

    Raises:
        ValueError: more than three dimensions; no Gibbs measure was found (exp(-E/ε) does not decay); E is NaN.
    """
    temperature, dim = check.positive("temperature", temperature), energy.dim
    if dim > 3:
        raise ValueError(
            f"log Z by quadrature needs at most 3 dimensions; this energy has {dim}. Differences of free energies "
            "(`free_energy`) need no log Z."
        )
    budget = check.count("points", points if points is not None else (2_000_000 if dim < 3 else 20_000_000), 1000)
    scaled = _Scaled(energy, temperature)
    if bounds is not None:
        lower, upper = _box(bounds, dim)
        seeds = _descend(scaled, *_lattice(scaled, (lower + upper) / 2, (upper - lower) / 2, 33 if dim < 3 else 17))
        inside = ((seeds > lower) & (seeds < upper)).all(axis=1)
        scaled.lowest = float(scaled(seeds[inside]).min()) if inside.any() else 0.0
        total, error, _ = _integrate(scaled, lower, upper, seeds[inside], tolerance, budget)
    else:
        lower, upper, seeds = _find(scaled)
        for _ in range(_ROUNDS):
            _, _, edge = _integrate(scaled, lower, upper, seeds, 1e-3, budget)
            if not (edge > _EDGE).any():
                break
            grow = np.where(edge > _EDGE, 0.5 * (upper - lower), 0.0)
            lower, upper = lower - grow[0], upper + grow[1]
        else:
            raise _no_gibbs(lower, upper)
        total, error, _ = _integrate(scaled, lower, upper, seeds, tolerance, budget)
    return Estimate(math.log(total) - scaled.lowest, error / total)


class _Scaled:
    """E/ε on (n, d), in batches of one size; counts evaluations."""

    def __init__(self, energy: Energy, temperature: float) -> None:
        self.energy, self.temperature, self.spent, self.lowest = energy, temperature, 0, 0.0

    @property
    def dim(self) -> int:
        return self.energy.dim

    def __call__(self, x: np.ndarray) -> np.ndarray:
        out = np.empty(len(x))
        for i in range(0, len(x), _BATCH):
            part = x[i : i + _BATCH]
            padded = np.concatenate([part, np.broadcast_to(part[-1], (_BATCH - len(part), self.dim))])
            out[i : i + len(part)] = np.asarray(self.energy(padded))[: len(part)]
        self.spent += len(x)
        return np.where(np.isnan(out), np.inf, out / self.temperature)  # 0 · ∞ far out, where E overflows


def _box(bounds: Any, dim: int) -> np.ndarray:
    box = np.asarray(bounds, dtype=np.float64)
    if box.shape != (2, dim) or not np.isfinite(box).all() or not (box[0] < box[1]).all():
        raise ValueError(f"bounds must be a finite (2, {dim}) array, lower corner below upper; got {bounds!r}.")
    return box


def _no_gibbs(lower: np.ndarray, upper: np.ndarray) -> ValueError:
    return ValueError(
        "exp(-E/ε) does not decay: a box grown to "
        f"{lower.tolist()} ... {upper.tolist()} still has mass at its boundary, so there may be no Gibbs measure. "
        "Confine the energy, or pass bounds."
    )


def _offsets(dim: int, side: int) -> np.ndarray:
    """Lattice on [-1, 1]^d, (side^d, d)."""
    return np.array(list(product(np.linspace(-1, 1, side), repeat=dim)))


def _lattice(scaled: _Scaled, centre: np.ndarray, half: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """The eight lowest points of a lattice, and the spacing (8, d) at each."""
    points = centre + half * _offsets(scaled.dim, side)
    best = np.argsort(scaled(points))[:8]
    return points[best], np.broadcast_to(2 * half / (side - 1), (len(best), scaled.dim))


def _descend(scaled: _Scaled, points: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Pattern search from all points at once: step to the best of 3^d neighbours, or halve the step."""
    offsets = _offsets(scaled.dim, 3)
    step = spacing.copy()
    for _ in range(40):
        around = points[:, None, :] + step[:, None, :] * offsets
        values = scaled(around.reshape(-1, scaled.dim)).reshape(len(points), -1)
        best = values.argmin(axis=1)
        points = around[np.arange(len(points)), best]
        step = np.where((best == len(offsets) // 2)[:, None], step / 2, step)
    return np.unique(points.round(12), axis=0)


def _find(scaled: _Scaled) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A first box and the low points that it must resolve."""
    dim, origin = scaled.dim, np.zeros(scaled.dim)
    found = [_lattice(scaled, origin, np.full(dim, 4.0**k), 33 if dim < 3 else 9) for k in range(-3, 6)]
    seeds = _descend(scaled, *[np.concatenate(part) for part in zip(*found, strict=True)])
    values = scaled(seeds)
    scaled.lowest = float(values.min())
    if not math.isfinite(scaled.lowest):
        raise ValueError("energy is infinite wherever it was looked at; pass bounds around its support.")
    seeds = seeds[values < scaled.lowest + _DEEP]
    radii = np.concatenate([[0.0], 2.0 ** np.arange(-24, 41)])
    lower, upper = np.empty_like(seeds), np.empty_like(seeds)
    for axis, sign in product(range(dim), (-1, 1)):
        ray = seeds[:, None, :] + sign * radii[:, None] * np.eye(dim)[axis]
        with np.errstate(over="ignore", invalid="ignore"):
            height = scaled(ray.reshape(-1, dim)).reshape(len(seeds), -1) - scaled.lowest
        last = np.where(height < _DEEP, np.arange(len(radii)), 0).max(axis=1) + 1  # beyond it, all is deep down
        if (last == len(radii)).any():
            raise _no_gibbs(seeds[0] - radii[-1], seeds[0] + radii[-1])
        (lower if sign < 0 else upper)[:, axis] = seeds[:, axis] + sign * radii[last]
    return lower.min(axis=0), upper.max(axis=0), seeds


def _integrate(
    scaled: _Scaled, lower: np.ndarray, upper: np.ndarray, seeds: np.ndarray, tolerance: float, budget: int
) -> tuple[float, float, np.ndarray]:
    """∫ exp(lowest - E/ε) over a box; its error; the share of the mass in the outermost cells, (2, d) by face."""
    dim = scaled.dim
    node, weight = np.polynomial.legendre.leggauss(_NODES)
    nodes = np.array(list(product(node, repeat=dim)))
    weights = np.array([math.prod(w) for w in product(weight / 2, repeat=dim)])

    def mass(centre: np.ndarray, half: np.ndarray) -> np.ndarray:
        points = centre[:, None, :] + half[:, None, :] * nodes
        height = scaled(points.reshape(-1, dim)).reshape(len(centre), -1) - scaled.lowest
        return np.exp(np.minimum(-height, 600.0)) @ weights * np.prod(2 * half, axis=1)

    side = _CELLS[dim]
    half = np.broadcast_to((upper - lower) / (2 * side), (side**dim, dim))
    centre = lower + half[0] * (1 + 2 * np.array(list(product(range(side), repeat=dim))))
    value, error = mass(centre, half), np.full(side**dim, np.inf)
    halves = np.array(list(product((-0.5, 0.5), repeat=dim)))
    spent, depths = scaled.spent, np.exp(scaled.lowest - scaled(seeds))
    while True:
        total = value.sum()
        if total > 0 and error.sum() <= tolerance * total:
            break
        split = error > tolerance * total / (2 * len(error))
        if not split.any() or scaled.spent - spent + split.sum() * len(halves) * len(nodes) > budget:
            break
        parts_centre = (centre[split][:, None, :] + half[split][:, None, :] * halves).reshape(-1, dim)
        parts_half = np.repeat(half[split] / 2, len(halves), axis=0)
        parts = mass(parts_centre, parts_half)
        wrong = np.abs(value[split] - parts.reshape(-1, len(halves)).sum(axis=1)) / len(halves)
        wrong = np.repeat(wrong, len(halves))
        for seed, depth in zip(seeds, depths, strict=True):
            # until a cell is as small as the well that it contains, its error says nothing
            holds = (np.abs(seed - parts_centre) <= parts_half).all(axis=1)
            well = depth * np.prod(2 * parts_half, axis=1)
            wrong = np.where(holds & (well > 4.0 * parts), np.maximum(wrong, well), wrong)
        centre, half = np.concatenate([centre[~split], parts_centre]), np.concatenate([half[~split], parts_half])
        value, error = np.concatenate([value[~split], parts]), np.concatenate([error[~split], wrong])
    slack = 1e-9 * (upper - lower)
    touching = np.stack([centre - half <= lower + slack, centre + half >= upper - slack])
    edge = np.where(touching, value[:, None], 0.0).sum(axis=1) / max(total, 1e-300)
    return float(total), float(np.where(np.isfinite(error), error, value).sum()), edge
