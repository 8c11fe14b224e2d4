"""Which metric to try: from Hessians at points, of the structure that was asked for. Floating point throughout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from ctrlgen.accelerate._programs import (
    LARGEST_DIAGONAL,
    LARGEST_FULL,
    MOST_ENTRIES,
    best_diagonal,
    best_full,
    ends,
    low_rank,
    scaled_diagonal,
    spread,
)
from ctrlgen.domain import Domain
from ctrlgen.energies.base import Energy
from ctrlgen.prove.claim import Deadline

Structure = Literal["full", "diagonal", "low-rank"]
STRUCTURES = get_args(Structure)
RANK = 10  # of a low-rank metric, when none is given
WORST = 3  # Hessians that are added at a time, from below and from above
SMALL = 6  # dimensions up to which a full program takes no time
ROUNDS = 20  # of adding the Hessians that fit worst
POINTS = 400  # at which Hessians are taken
CHAINS, MOVES = 256, 1500  # of the sampler of a Gibbs measure
LOSS = 1e-7  # of the rate, relative, at which adding Hessians ends


@dataclass(frozen=True)
class Wanted:
    """What kind of metric is wanted.

    Args:
        structure: "full", "diagonal" or "low-rank".
        rank: of the last one.
    """

    structure: Structure
    rank: int | None

    @classmethod
    def checked(cls, structure: Any, rank: Any, dim: int) -> Wanted:
        """The same, after a look at the arguments.

        Raises:
            ValueError: structure is none of these, or rank is not an integer from 1 to d - 1, or is given with another.
        """
        if structure not in STRUCTURES:
            raise ValueError(f"structure must be one of {', '.join(map(repr, STRUCTURES))}; got {structure!r}.")
        if rank is None:
            return cls(structure, min(RANK, dim - 1) if structure == "low-rank" else None)
        if structure != "low-rank":
            raise ValueError(f"rank must be omitted unless structure is 'low-rank'; got {rank!r} with {structure!r}.")
        whole = isinstance(rank, (int, np.integer)) and not isinstance(rank, bool)
        if not whole or not 1 <= rank <= max(1, dim - 1):
            raise ValueError(f"rank must be an integer from 1 to {max(1, dim - 1)} in {dim} dimensions; got {rank!r}.")
        return cls(structure, int(rank))

    def shaped(self, metric: np.ndarray) -> np.ndarray:
        """A metric (d, d) as it is handed out: (d,) for a diagonal one."""
        return np.diag(metric).copy() if self.structure == "diagonal" else metric


def propose(hessians: np.ndarray, wanted: Wanted, deadline: Deadline) -> np.ndarray:
    """The metric (d, d) that fits these positive definite Hessians (k, d, d) best, so that the largest M⁻¹H is 1.

    Semidefinite programs up to LARGEST_FULL and LARGEST_DIAGONAL dimensions, on the Hessians that matter: those that
    fit worst are added until none does worse. Beyond that the mean Hessian, scaled diagonals, or leading eigenpairs.
    """
    tries = _plain(hessians, wanted)
    best = max(tries, key=lambda m: _worth(hessians, m))
    d = hessians.shape[-1]
    program = {"full": (best_full, LARGEST_FULL), "diagonal": (best_diagonal, LARGEST_DIAGONAL)}.get(wanted.structure)
    if program is None or d > program[1] or (d == 1 and len(hessians) == 1):
        return best / _top(hessians, best)
    solve, most = program[0], max(2, MOST_ENTRIES // (d * (d + 1)))
    active = _worst(hessians, best, 2 * WORST)
    if wanted.structure == "full" and d > SMALL:  # a diagonal one is found far sooner, should the time not do
        other = propose(hessians, Wanted("diagonal", None), deadline.part(0.3))
        best = max([best, other], key=lambda m: _worth(hessians, m))
    for _ in range(ROUNDS):
        found = None if deadline.over else solve(hessians[active], deadline.part(0.5))
        if found is None:
            break
        try:
            low, high = spread(hessians, found)
            inner = spread(hessians[active], found)
        except np.linalg.LinAlgError:
            break
        if low / high > _worth(hessians, best):
            best = found
        new = sorted({*active, *_worst(hessians, found, WORST)})
        if new == active or len(new) > most or low / high >= (1 - LOSS) * inner[0] / inner[1]:
            break
        active = new
    return best / _top(hessians, best)


def _plain(hessians: np.ndarray, wanted: Wanted) -> list[np.ndarray]:
    rank = wanted.rank or min(RANK, hessians.shape[-1] - 1)
    tries = {
        "full": lambda: [hessians.mean(axis=0), scaled_diagonal(hessians), low_rank(hessians, rank)],
        "diagonal": lambda: [scaled_diagonal(hessians)],
        "low-rank": lambda: [low_rank(hessians, rank)],
    }
    return tries[wanted.structure]()


def _worth(hessians: np.ndarray, metric: np.ndarray) -> float:
    try:
        low, high = spread(hessians, metric)
    except np.linalg.LinAlgError:
        return -np.inf
    return low / high


def _top(hessians: np.ndarray, metric: np.ndarray) -> float:
    return 1 / spread(hessians, metric)[1]


def _worst(hessians: np.ndarray, metric: np.ndarray, count: int) -> list[int]:
    """The Hessians that fit worst from below, and from above."""
    found = ends(hessians, metric)
    return sorted({*map(int, np.argsort(found[:, 0])[:count]), *map(int, np.argsort(-found[:, 1])[:count])})


# Points ---------------------------------------------------------------------------------------------------------------


def points_of(energy: Energy, domain: Domain | None, states: Any, key: int) -> np.ndarray:
    """Points (n, d) of the domain, some at the ends of its box; without one, around the origin at several scales.

    Raises:
        ValueError: the domain is unbounded and no points of it could be drawn.
    """
    rng, d = np.random.default_rng(key), energy.dim
    if domain is None:
        scales = np.repeat([0.3, 1.0, 3.0, 10.0], POINTS // 4)[:, None]
        return np.concatenate([np.zeros((1, d)), scales * rng.normal(size=(len(scales), d))])
    inside = np.asarray(domain.sample(rng, POINTS, states))
    ends = inside.copy()
    for piece in domain.pieces(states):
        for i, sides in enumerate(piece.box):
            for end in sides:
                if end is not None:
                    ends[rng.random(len(ends)) < 0.4, i] = float(end)
    good = np.atleast_1d(domain.contains(ends, states))
    return np.concatenate([inside, ends[good]])


def gibbs_points(energy: Energy, temperature: float, key: int) -> np.ndarray:
    """Draws of the Gibbs measure by MALA from a minimum of the energy, (CHAINS, d), in float64."""
    from scipy.optimize import minimize

    from ctrlgen.loop import ClosedLoop
    from ctrlgen.plants.particles import Langevin

    rng, d = np.random.default_rng(key), energy.dim
    found = minimize(lambda x: float(energy(x)), np.zeros(d), jac=lambda x: np.asarray(energy.gradient(x)), tol=1e-6)
    start = np.asarray(found.x if np.isfinite(found.x).all() else np.zeros(d))
    values = np.linalg.eigvalsh(np.asarray(energy.hessian(start)))
    stiff = max(float(np.abs(values).max()), 1e-6)
    step = 0.5 / (stiff * d ** (1 / 3))
    spread_out = np.sqrt(temperature / stiff) * rng.normal(size=(CHAINS, d))
    loop = ClosedLoop(Langevin(temperature, step, "mala"), energy)
    return np.asarray(loop.simulate(start + spread_out, MOVES * step, key=key, record=2).final, np.float64)
