"""Checks of arguments at the public boundary: which argument, what rule, what came, what to do."""

from __future__ import annotations

from typing import Any

import numpy as np


def vector(name: str, value: Any, size: int) -> np.ndarray:
    out = np.asarray(value, dtype=np.float64)
    if out.shape != (size,) or not np.isfinite(out).all():
        raise ValueError(f"{name} must be {size} finite numbers, shape ({size},); got shape {out.shape}.")
    return out


def positive_definite(name: str, value: Any) -> np.ndarray:
    out = np.asarray(value, dtype=np.float64)
    if out.ndim != 2 or out.shape[0] != out.shape[1] or out.shape[0] == 0 or not np.isfinite(out).all():
        raise ValueError(f"{name} must be a finite square matrix (d, d); got shape {out.shape}.")
    skew = float(np.abs(out - out.T).max())
    if skew > 1e-10 * float(np.abs(out).max()):
        raise ValueError(
            f"{name} must be symmetric; largest |P - P.T| is {skew:.1e}. "
            "Pass (P + P.T) / 2 if the skew part is not meant."
        )
    out = (out + out.T) / 2
    smallest = float(np.linalg.eigvalsh(out)[0])
    if smallest <= 0:
        raise ValueError(f"{name} must be positive definite; its smallest eigenvalue is {smallest:.3g}.")
    return out


def positive(name: str, value: float) -> float:
    if not (isinstance(value, (int, float, np.number)) and np.isfinite(value) and float(value) > 0):
        raise ValueError(f"{name} must be positive and finite; got {value}.")
    return float(value)


def dimension(dim: int, least: int) -> int:
    if not isinstance(dim, (int, np.integer)) or dim < least:
        raise ValueError(f"dim must be an integer of at least {least}; got {dim!r}.")
    return int(dim)
