"""How far a filtered density is from the Gibbs measure that is restricted to the safe set."""

from __future__ import annotations

from typing import Any

import numpy as np

from ctrlgen import measure
from ctrlgen.energies.algebra import compose
from ctrlgen.estimate import Estimate
from ctrlgen.gibbs import Gibbs
from ctrlgen.response import DistributionShift, Response


def restricted_gibbs(response: Response) -> Gibbs:
    """The Gibbs measure of a run's controller, restricted to its safe set, at its temperature.

    Raises:
        ValueError: the run had no safety filter.
    """
    if response.filter is None or response.controller is None:
        raise ValueError("shift needs a run under a safety filter; this one had none.")
    if response.filter.constraints.moving:
        raise ValueError("shift needs a safe set at rest; this one moves.")
    temperature = getattr(response.plant, "reference_temperature", response.plant.temperature)
    if response.schedule is not None:
        factor = float(np.max(np.asarray(response.schedule(float(response.time[-1])))))
        if not factor > 0:
            raise ValueError("shift needs a positive temperature at the end of the run; the schedule ends at 0.")
        temperature = temperature * factor
    return Gibbs(compose([response.controller, response.filter.walls]), temperature)


def distribution_shift(response: Response, n: int, key: int) -> DistributionShift:
    """What `Response.shift` returns; see there."""
    target = restricted_gibbs(response)
    if not isinstance(n, (int, np.integer)) or n < 2:
        raise ValueError(f"n must be an integer of at least 2; got {n!r}.")
    seeds = np.random.SeedSequence(key).generate_state(4).tolist()
    plant: Any = response.plant
    if plant.kind == "grid":
        kl = Estimate(plant.kl(response.final, target.energy), 0.0)
        particles = _from_masses(plant, response.final, np.random.default_rng(seeds[0]), n)
    else:
        particles = np.asarray(response.final, np.float64)
        outside = int((~response.filter.contains(particles)).sum()) if response.filter is not None else 0
        if outside:
            raise ValueError(
                f"shift is infinite: {outside} of {len(particles)} particles are outside the safe set (a tube that has "
                "not closed yet?)."
            )
        kl = measure.kl_two_sample(particles, target.sample(seeds[1], len(particles)))
    w2 = measure.wasserstein2(particles, target.sample(seeds[2], min(n, len(particles))), max_points=n, key=seeds[3])
    floor = measure.sampling_floor(target, min(n, len(particles)), key=seeds[3])
    return DistributionShift(kl=kl, w2=w2, floor=floor, samples=target.method)


def _from_masses(grid: Any, masses: Any, rng: np.random.Generator, n: int) -> np.ndarray:
    cell = rng.choice(np.size(masses), size=n, p=np.asarray(masses).ravel())
    centre = grid.cells.reshape(-1, grid.dim)[cell]
    return centre + (rng.random(centre.shape) - 0.5) * np.array(grid.spacing)
