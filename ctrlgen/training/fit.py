"""`train`: what is asked for is checked, a run is made of it (`run`), and a result of the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ctrlgen.energies.base import Energy
from ctrlgen.energies.trained import TrainedEnergy
from ctrlgen.training.data import Standardise, check_table, generator, prepare
from ctrlgen.training.objectives import EnergyMatching, Objective
from ctrlgen.training.result import TrainingResult
from ctrlgen.training.run import Run
from ctrlgen.training.update import trainable


def train(
    energy: Energy,
    data: Any,
    source: str = "gaussian",
    objective: Objective | Sequence[Objective] | None = None,
    key: int = 0,
    *,
    held_out: Any = None,
    evaluate: int | None = None,
    patience: int | None = None,
    standardise: Standardise = True,
    progress: bool = True,
    checkpoint: str | Path | None = None,
    resume: bool = True,
    record: int = 1,
    name: str = "trained",
    step: float | None = None,
    duration: float | None = None,
    scheme: Literal["euler", "mala"] = "euler",
    schedule: Any = "objective",
) -> TrainingResult:
    """Train an energy so that its Gibbs measure, or its closed loop from the source, has the data's density.

    Training runs in standardised units. Ctrl-C returns what there is. With a checkpoint, the same call continues
    where the last one ended, to bit-identical weights.

    Args:
        energy: usually an `MLPEnergy`; every floating-point JAX array in it is trained. A `TrainedEnergy` is trained
            further, in its own scaling.
        data: (n, d) rows, or a distribution with `.sample(key, n)` and `.dim`, which is drawn afresh in every step.
        source: where generation starts: "gaussian" (the standard normal in standardised units) or a name in
            `ctrlgen.datasets`.
        objective: one, or several to be run one after the other; `EnergyMatching()` when omitted.
        key: seed of everything that is random, >= 0.
        held_out: rows (m, d) that measure quality; or how many to set aside from a table or to draw from a
            distribution.
        evaluate: steps between measurements; a twentieth of the phase when omitted.
        patience: stop the last phase after so many measurements without improvement, and return the best weights.
        standardise: True: mean 0 and deviation 1 in every column; "isotropic": one scale for all; False: none.
        progress: show a bar with the loss.
        checkpoint: file to keep the run in, written every half minute, at the end and when interrupted.
        resume: continue from the checkpoint if it exists; False starts again and overwrites it.
        record: steps that one entry of the history averages.
        name: of the trained energy.
        step, duration, scheme, schedule: of the closed loop that generates [time]; by the objective when omitted.

    Raises:
        TypeError: energy is not an `Energy`, or an objective is not one.
        ValueError: an argument does not fit: shapes, non-finite rows, an unknown source, nothing to train, an
            objective that the dimension excludes, a checkpoint of another run.
    """
    if not isinstance(energy, Energy):
        raise TypeError(f"energy must be an Energy, such as MLPEnergy(dim={np.shape(data)[-1:]}); got {energy!r}.")
    scaling = (energy.center, energy.scale) if isinstance(energy, TrainedEnergy) else None
    network = energy.network if isinstance(energy, TrainedEnergy) else energy
    leaves = jax.tree.leaves(eqx.filter(network, trainable))
    if not leaves:
        raise ValueError(f"energy has nothing to train: {energy!r} holds no floating-point JAX array. Use MLPEnergy.")
    if not all(bool(jnp.isfinite(leaf).all()) for leaf in leaves):
        raise ValueError("energy must start from finite weights; some are not.")
    seed = _whole("key", key, 0)
    stages = _stages(objective, network.dim)
    for label, value in (("evaluate", evaluate), ("patience", patience), ("record", record)):
        if value is not None:
            _whole(label, value, 1)
    if patience is not None and held_out is None:
        raise ValueError("patience needs held_out: rows, or how many to set aside, to measure the quality on.")
    last = stages[-1]
    settings = {
        "temperature": float(last.temperature or 1.0),
        "step": float(getattr(last, "langevin_step", 0.01) if step is None else step),
        "duration": float(last.duration if duration is None else duration),
        "schedule": last.schedule() if isinstance(schedule, str) and schedule == "objective" else schedule,
        "scheme": scheme,
        "source": source,
        "name": name,
    }
    data, aside = _set_aside(data, held_out, network.dim, seed)
    feed = prepare(data, network.dim, source, standardise, scaling)
    TrainedEnergy(network, feed.center, feed.scale, **settings)  # its checks, before any work
    run = Run(network, feed, stages, seed, aside, evaluate, patience, settings, progress)
    if checkpoint is not None:
        run.open(Path(checkpoint), resume)
    status, message = run.execute()
    return TrainingResult(
        energy=TrainedEnergy(run.network, feed.center, feed.scale, **settings),
        status=status,
        message=message,
        history=run.history(record),
        steps=run.done,
        seconds=run.seconds,
        settings={
            "key": seed,
            "source": source,
            "standardise": standardise,
            "objectives": [stage.settings() for stage in stages],
        },
    )


def _whole(label: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{label} must be an integer of at least {least}; got {value!r}.")
    return int(value)


def _stages(objective: Any, dim: int) -> tuple[Objective, ...]:
    """The chain of objectives, each with its temperature settled."""
    chain = (
        (EnergyMatching(),)
        if objective is None
        else (objective,)
        if not isinstance(objective, (list, tuple))
        else objective
    )
    if not chain:
        raise ValueError("objective must not be an empty list.")
    out: list[Objective] = []
    temperature = 1.0
    for item in chain:
        if not isinstance(item, Objective):
            raise TypeError(
                f"objective must be an Objective such as EnergyMatching(), or a list of them; got {item!r}."
            )
        item.check(dim)
        temperature = float(item.temperature or temperature)
        out.append(dataclasses.replace(item, temperature=temperature))
    return tuple(out)


def _set_aside(data: Any, held_out: Any, dim: int, seed: int) -> tuple[Any, np.ndarray | None]:
    """The data to train on and the rows that measure quality."""
    if held_out is None:
        return data, None
    if not isinstance(held_out, (int, np.integer)) or isinstance(held_out, bool):
        return data, check_table(held_out, dim, "held_out")
    count = _whole("held_out", held_out, 10)
    if hasattr(data, "sample"):
        return data, np.asarray(data.sample(int(generator(seed, 0).integers(2**62)), count), np.float64)
    rows = check_table(data, dim)
    if count > len(rows) // 2:
        raise ValueError(f"held_out must leave at least half of the {len(rows)} rows to train on; got {count}.")
    order = generator(seed, 0).permutation(len(rows))
    return rows[order[count:]], rows[order[:count]]
