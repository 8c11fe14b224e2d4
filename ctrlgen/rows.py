"""Sums and products over a few leading rows of a batch, (m, ...) or (d, ...), written out for XLA on a CPU."""

from __future__ import annotations

from functools import reduce
from typing import Any

import jax.numpy as jnp

UNROLLED = 16  # rows up to which a sum over them is written out


def total(rows: Any) -> Any:
    """Sum over the first axis; few rows are added one by one, for XLA's reductions are slow on a CPU."""
    return reduce(jnp.add, [rows[i] for i in range(len(rows))]) if len(rows) <= UNROLLED else jnp.sum(rows, axis=0)


def least(rows: Any) -> Any:
    """Minimum over the first axis."""
    return reduce(jnp.minimum, [rows[i] for i in range(len(rows))]) if len(rows) <= UNROLLED else jnp.min(rows, axis=0)


def every(rows: Any) -> Any:
    """Whether all of the first axis hold."""
    several = [rows[i] for i in range(len(rows))] if len(rows) <= UNROLLED else []
    return reduce(jnp.logical_and, several) if several else jnp.all(rows, axis=0)


def moved(mobility: Any, x: Any) -> Any:
    """K x, (d, ...), for K None (the identity), (d,) or (d, d)."""
    if mobility is None:
        return x
    k = jnp.asarray(mobility, x.dtype)
    return k.reshape(-1, *(1,) * (x.ndim - 1)) * x if k.ndim == 1 else jnp.tensordot(k, x, axes=1)


def along(slopes: Any, vector: Any) -> Any:
    """∇h_j·v for every j: (m, d, n) and (d, n) to (m, n)."""
    m, d = slopes.shape[:2]
    if m * d > UNROLLED:
        return total(jnp.swapaxes(slopes, 0, 1) * vector[:, None])
    return jnp.stack([reduce(jnp.add, [slopes[j, i] * vector[i] for i in range(d)]) for j in range(m)])
