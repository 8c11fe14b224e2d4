"""What moving costs: the path energy of particles, one number a path."""

from __future__ import annotations

from typing import Any

import numpy as np

from ctrlgen.checks import positive_definite


def path_energy(time: Any, velocity: Any, metric: Any = None) -> np.ndarray:
    """∫ |v|² dt along every path, (n,) [length² / time], by the trapezoidal rule; twice the kinetic path energy.

    A number of each path, without a sampling error. The error of the rule is of second order in the time between
    records where v is smooth; where noise drives it, of first order for a path and of second in the mean over paths.

    Args:
        time: (k,), increasing, at least two [time].
        velocity: of n particles at those times, (k, n, d) [length / time].
        metric: M in |v|² = vᵀMv, (d,) for a diagonal or (d, d), positive definite; the identity when omitted.

    Raises:
        ValueError: the shapes do not fit, a number is not finite, time does not increase, or metric is not positive.

    Reference: Li et al., A Kinetic Energy Perspective of Flow Matching, arXiv:2602.07928, for ½∫|v|² dt of a sample;
    Benamou and Brenier, Numer. Math. 84 (2000) 375: its mean over the density is at least W₂²/∫dt.
    """
    time, velocity = np.asarray(time, dtype=np.float64), np.asarray(velocity, dtype=np.float64)
    if time.ndim != 1 or len(time) < 2 or not np.isfinite(time).all() or (np.diff(time) <= 0).any():
        raise ValueError(f"time must be at least two increasing finite numbers (k,); got shape {time.shape}.")
    if velocity.ndim != 3 or len(velocity) != len(time) or 0 in velocity.shape:
        raise ValueError(f"velocity must have shape ({len(time)}, n, d), to fit time; got shape {velocity.shape}.")
    bad = np.flatnonzero(~np.isfinite(velocity).all(axis=(0, 2)))
    if len(bad):
        raise ValueError(
            f"velocity must be finite; that of {len(bad)} of {velocity.shape[1]} particles is not, first {bad[0]}."
        )
    return np.trapezoid((velocity * _lowered(velocity, metric)).sum(axis=2), time, axis=0)


def _lowered(velocity: np.ndarray, metric: Any) -> np.ndarray:
    """M v, (k, n, d)."""
    if metric is None:
        return velocity
    metric, dim = np.asarray(metric, dtype=np.float64), velocity.shape[2]
    if metric.shape not in ((dim,), (dim, dim)):
        raise ValueError(f"metric must have shape ({dim},) or ({dim}, {dim}), to fit velocity; got {metric.shape}.")
    if metric.ndim == 2:
        return velocity @ positive_definite("metric", metric)
    if not (np.isfinite(metric).all() and (metric > 0).all()):
        raise ValueError(f"metric must be positive on its diagonal; got {metric}.")
    return velocity * metric
