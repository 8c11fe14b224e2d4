"""Gaussian noise from one random stream per particle, generated inside the loop that uses it.

Every particle owns ⌈d/2⌉ lanes, each a xoshiro128++ generator seeded by a hash of (key, particle, lane).
The stream belongs to the particle's index: it does not depend on how many particles there are, on the
layout, on how the run is cut into chunks or blocks, or on the device.

References: Blackman and Vigna, ACM Trans. Math. Softw. 47 (2021) 36 (xoshiro); Wellons, Hash
Function Prospector, 2018 (the hash's constants); Box and Muller, Ann. Math. Statist. 29 (1958) 610.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Lanes = tuple[jax.Array, jax.Array, jax.Array, jax.Array]  # xoshiro's four words, each (lanes, n) uint32


def key_words(key: Any) -> Any:
    """Two 32-bit words from an int seed or from any JAX key (new-style or raw); traceable.

    Raises:
        ValueError: key is neither.
    """
    if isinstance(key, (int, np.integer)) and not isinstance(key, bool):
        return np.array([(int(key) >> 32) & 0xFFFFFFFF, int(key) & 0xFFFFFFFF], np.uint32)
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape == ():
        key = jax.random.key_data(key)
    if isinstance(key, (jax.Array, np.ndarray)) and key.dtype == np.uint32 and key.shape in ((2,), (4,)):
        return key[:2] if key.shape == (2,) else key[:2] ^ (key[2:] * np.uint32(0x9E3779B1))
    raise ValueError(f"key must be an integer seed or a single JAX random key; got {key!r}.")


def seed_lanes(words: Any, n: int, lanes: int) -> Lanes:
    """Initial generator states from two key words: one stream for each lane of each particle.

    Each word of a state is a chain of bijective 32-bit hashes, so that no two particles share one.
    """
    words = jnp.asarray(words, jnp.uint32)
    lane = jnp.arange(lanes, dtype=jnp.uint32)[:, None]
    particle = jnp.arange(n, dtype=jnp.uint32)

    def word(k: int) -> jax.Array:
        start = _mix(_mix(words[0] + np.uint32(0x9E3779B9 * (k + 1) & 0xFFFFFFFF)) + words[1])
        return _mix(_mix(start + lane * np.uint32(0x85EBCA77)) + particle * np.uint32(0x9E3779B1))

    return word(0), word(1), word(2), word(3)


def _mix(h: jax.Array) -> jax.Array:
    """A bijection of 32-bit words in which every input bit moves about half of the output bits."""
    h = (h ^ (h >> 16)) * np.uint32(0x7FEB352D)
    h = (h ^ (h >> 15)) * np.uint32(0x846CA68B)
    return h ^ (h >> 16)


def cut(state: Lanes, at: int) -> tuple[Lanes, Lanes]:
    """The lanes before and from `at`."""
    a, b, c, d = state
    return (a[:at], b[:at], c[:at], d[:at]), (a[at:], b[at:], c[at:], d[at:])


def join(first: Lanes, second: Lanes) -> Lanes:
    """The inverse of `cut`."""
    a, b, c, d = (jnp.concatenate(pair) for pair in zip(first, second, strict=True))
    return a, b, c, d


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
