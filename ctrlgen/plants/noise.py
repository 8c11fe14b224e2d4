"""Gaussian noise from one random stream per particle, generated inside the loop that uses it.

Every particle owns ⌈d/2⌉ lanes, each a xoshiro128++ generator seeded by a threefry hash of (key, particle, lane).
The stream belongs to the particle's index: it does not depend on how many particles there are, on the
layout, on how the run is cut into chunks or blocks, or on the device.

References: Blackman and Vigna, ACM Trans. Math. Softw. 47 (2021) 36 (xoshiro); Salmon et al., SC'11 (threefry);
Box and Muller, Ann. Math. Statist. 29 (1958) 610.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def as_key(key: Any) -> jax.Array:
    """A threefry key from an int seed or from any JAX key (new-style or raw).

    Raises:
        ValueError: key is neither.
    """
    if isinstance(key, (int, np.integer)) and not isinstance(key, bool):
        return jax.random.key(int(key) & 0xFFFFFFFF, impl="threefry2x32") if 0 <= key < 2**32 else _wide_key(int(key))
    if isinstance(key, jax.Array):
        if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape == ():
            words = jax.random.bits(key, (2,), jnp.uint32)
            return jax.random.wrap_key_data(words, impl="threefry2x32")
        if key.dtype == jnp.uint32 and key.shape == (2,):
            return jax.random.wrap_key_data(key, impl="threefry2x32")
    raise ValueError(f"key must be an integer seed or a single JAX random key; got {key!r}.")


def _wide_key(seed: int) -> jax.Array:
    words = np.array([(seed >> 32) & 0xFFFFFFFF, seed & 0xFFFFFFFF], np.uint32)
    return jax.random.wrap_key_data(jnp.asarray(words), impl="threefry2x32")


Lanes = tuple[jax.Array, jax.Array, jax.Array, jax.Array]  # xoshiro's four words, each (lanes, n) uint32


def seed_lanes(key: jax.Array, n: int, lanes: int) -> Lanes:
    """Initial generator states: one stream for each lane of each particle."""

    def words(i: jax.Array) -> jax.Array:
        return jax.random.bits(jax.random.fold_in(key, i), (lanes, 4), jnp.uint32)

    out = jnp.moveaxis(jax.vmap(words)(jnp.arange(n, dtype=jnp.uint32)), 0, -1)  # (lanes, 4, n)
    return out[:, 0], out[:, 1], out[:, 2], out[:, 3]


def bits(state: Lanes) -> tuple[jax.Array, Lanes]:
    """One xoshiro128++ step of every lane: 32 random bits (...), next state."""
    s0, s1, s2, s3 = state
    total = s0 + s3
    out = ((total << 7) | (total >> 25)) + s0
    shifted = s1 << 9
    s2, s3 = s2 ^ s0, s3 ^ s1
    s1, s0 = s1 ^ s2, s0 ^ s3
    return out, (s0, s1, s2 ^ shifted, (s3 << 11) | (s3 >> 21))


def uniform(word: jax.Array, dtype: Any) -> jax.Array:
    """Uniform in (0, 1) from 32 bits; near 0 the full 32-bit resolution is kept, so normals reach 6.7 σ."""
    return (word.astype(dtype) + jnp.asarray(0.5, dtype)) * jnp.asarray(2.0**-32, dtype)


def normals(state: Lanes, dim: int, dtype: Any) -> tuple[jax.Array, Lanes]:
    """Independent standard normals (dim, n) from ⌈dim/2⌉ lanes, and the next state."""
    first, state = bits(state)
    second, state = bits(state)
    radius = jnp.sqrt(-2 * jnp.log(uniform(first, dtype)))
    # Three bits choose the octant, 29 the angle within [0, π/4]: short polynomials do for sine and cosine.
    octant, fraction = second >> 29, (second & 0x1FFFFFFF).astype(dtype) + jnp.asarray(0.5, dtype)
    sine, cosine = _sincos(fraction * jnp.asarray(np.pi / 4 * 2.0**-29, dtype), dtype)
    swap = (octant & 1) == 1
    one, two = jnp.where(swap, sine, cosine), jnp.where(swap, cosine, sine)
    one, two = jnp.where((octant & 2) == 2, -one, one), jnp.where((octant & 4) == 4, -two, two)
    out = jnp.concatenate([radius * one, radius * two])[:dim]
    # Without the barrier XLA would compute the noise again inside each fusion that reads it.
    return jax.lax.optimization_barrier((out, state))


def _sincos(angle: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Taylor polynomials on [0, π/4], exact to the rounding of the type."""
    terms = 5 if dtype == jnp.float32 else 9
    square = angle * angle
    sine = cosine = jnp.zeros_like(angle)
    for k in reversed(range(terms)):
        sine = sine * square + jnp.asarray((-1) ** k / _factorial(2 * k + 1), dtype)
        cosine = cosine * square + jnp.asarray((-1) ** k / _factorial(2 * k), dtype)
    return sine * angle, cosine


def _factorial(k: int) -> float:
    return float(np.prod(np.arange(1, k + 1, dtype=np.float64)))
