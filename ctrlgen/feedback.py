"""What a closed loop asks of a density feedback before a run, and says of it after one."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from ctrlgen.energies.feedback import DensityFeedback
from ctrlgen.plants.base import Plant
from ctrlgen.plants.grid import FokkerPlanckGrid
from ctrlgen.plants.particles import Langevin

SETTLED = 250  # periods after which a density feedback should not saturate any more


def check_feedback(feedback: DensityFeedback, plant: Plant, safety: Any, extra: Any) -> None:
    """Raise ValueError unless the plant transports density as the feedback was designed for."""
    name = type(plant).__name__
    if not isinstance(plant, (Langevin, FokkerPlanckGrid)):
        raise ValueError(
            f"controller must be a static energy for {name}: a density feedback is designed for overdamped transport "
            "at a temperature. Use Langevin or FokkerPlanckGrid, or pass its .energy."
        )
    if safety is not None:
        raise ValueError(
            "safety must be None with a density feedback, whose command vanishes at the Gibbs measure of its own "
            "energy and not at the restricted one. Design it on a FokkerPlanckGrid for the energy with walls, "
            "ClosedLoop(plant, energy, safety=...).energy, and run that with scheme='mala'."
        )
    if extra is not None:
        raise ValueError("extra must be None with a density feedback, whose design does not know it.")
    if feedback.temperature is not None and abs(feedback.temperature - plant.temperature) > 1e-9 * plant.temperature:
        raise ValueError(
            f"controller must be designed at the plant's temperature {plant.temperature:g}; it was at "
            f"{feedback.temperature:g}, whose Gibbs measure is another."
        )
    step = getattr(plant, "step", None)
    stable = getattr(feedback.design, "stable_when_held", None)
    if stable is not None and step is not None and step > feedback.period and not stable(float(step)):
        raise ValueError(
            f"step must be short enough for the feedback: held for {float(step):g} its linearised loop is unstable. "
            f"Pass a step of at most {feedback.period:g}, or design with period={float(step):g}."
        )


def warn_if_locked(feedback: DensityFeedback, time: np.ndarray, snapshots: Sequence[Any]) -> None:
    """Warn where an input was at its limit in all of the second half of a run that was long enough to settle."""
    late = time >= time[-1] / 2
    if time[-1] < SETTLED * feedback.period or late.sum() < 2:
        return
    commands = np.stack([feedback.command(s) for s, after in zip(snapshots, late, strict=True) if after])
    stuck = np.flatnonzero((np.abs(commands) >= feedback.limit * (1 - 1e-9)).all(axis=0))
    if stuck.size:
        warnings.warn(
            f"inputs {stuck.tolist()} of the density feedback were at their limits in all of the second half of the "
            "run: it has not settled, and may be locked there (E + Σuφ can have its mass where no input reaches the "
            "modes). Lower limit, or leave out inputs that undo the confinement.",
            UserWarning,
            stacklevel=5,
        )
