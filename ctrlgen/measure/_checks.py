"""What every measure asks of its arguments, before any work starts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ctrlgen.energies.algebra import parted
from ctrlgen.energies.base import Energy


def states(label: str, x: Any, dim: int | None = None, least: int = 2) -> np.ndarray:
    """Particles as (n, d) float64.

    Raises:
        ValueError: not an (n, d) array of finite numbers, another dimension than `dim`, or fewer than `least` rows.
    """
    try:
        x = np.asarray(x, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{label} must be an (n, d) array of numbers; {error}.") from None
    if x.ndim != 2 or x.shape[1] == 0:
        hint = f" In one dimension pass {label}[:, None]." if x.ndim == 1 else ""
        raise ValueError(f"{label} must have shape (n, d); got shape {x.shape}.{hint}")
    if dim is not None and x.shape[1] != dim:
        raise ValueError(f"{label} must have {dim} columns, one for each dimension; got shape {x.shape}.")
    bad = ~np.isfinite(x).all(axis=1)
    if bad.any():
        raise ValueError(
            f"{label} must be finite; {bad.sum()} of {len(x)} rows are not, the first is row {bad.argmax()}."
        )
    if len(x) < least:
        raise ValueError(f"{label} must hold at least {least} points for this measure; got {len(x)}.")
    return x


def pair(x: Any, y: Any, least: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Two samples in the same dimension."""
    x = states("x", x, least=least)
    return x, states("y", y, dim=x.shape[1], least=least)


def positive(label: str, value: Any) -> float:
    """A finite number above zero."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or number <= 0:
        raise ValueError(f"{label} must be a finite number above 0; got {value!r}.")
    return number


def count(label: str, value: Any, least: int = 1) -> int:
    """An integer of at least `least`."""
    if isinstance(value, bool) or int(value) != value or value < least:
        raise ValueError(f"{label} must be an integer of at least {least}; got {value!r}.")
    return int(value)


def at_particles(label: str, values: np.ndarray) -> np.ndarray:
    """Values of an energy at the particles, refused where they are not finite."""
    bad = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    if bad.any():
        raise ValueError(
            f"{label} is not finite at {bad.sum()} of {len(values)} particles, the first is row {bad.argmax()}. "
            "Has the closed loop diverged?"
        )
    return values


def without_walls(what: str, energy: Energy) -> None:
    """Raise ValueError where `energy` has walls: integration by parts leaves a term at them, and steps cross them."""
    if parted(energy).sets:
        raise ValueError(
            f"{what} is not estimated behind walls: integration by parts leaves a term at them, and free steps cross "
            "them. On a FokkerPlanckGrid it is exact; of particles use kl or kl_two_sample."
        )
