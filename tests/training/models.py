"""Energies small enough to know the answer: a quadratic with trainable mean and precision."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ctrlgen.energies.base import Energy


class Quadratic(Energy):
    """½ Σ exp(log_precision) (x - mean)²."""

    mean: jax.Array
    log_precision: jax.Array
    dim: int

    def __init__(self, dim: int, mean: float = 0.0, log_precision: float = 0.0):
        self.dim = dim
        self.mean = jnp.full(dim, mean, jnp.float32)
        self.log_precision = jnp.full(dim, log_precision, jnp.float32)

    def potential(self, x):
        column = (slice(None),) + (None,) * (x.ndim - 1)
        precision = jnp.exp(self.log_precision)[column].astype(x.dtype)
        return 0.5 * jnp.sum(precision * (x - self.mean[column].astype(x.dtype)) ** 2, axis=0)
