"""The random streams: normal, independent across particles, time, coordinates and seeds, tied to the particle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ctrlgen.plants import noise
from ctrlgen.precision import float64

PARTICLES, STEPS, DIM = 20_000, 60, 3


@pytest.fixture(scope="module")
def draws():
    lanes = noise.seed_lanes(noise.key_words(3), PARTICLES, 2)
    scan = jax.jit(
        lambda s: jax.lax.scan(lambda c, _: noise.normals(c, DIM, jnp.float32)[::-1], s, None, length=STEPS)[1]
    )
    return np.asarray(scan(lanes), np.float64)  # (STEPS, DIM, PARTICLES)


def z_score(a, b):
    """Standard score of the correlation of two arrays of independent standard normals."""
    return float((a * b).mean() * np.sqrt(a.size))


def test_moments_and_distribution(draws):
    flat = draws.ravel()
    n = flat.size
    assert abs(flat.mean()) * np.sqrt(n) < 4
    assert abs(flat.var() - 1) / np.sqrt(2 / n) < 4
    assert abs(stats.skew(flat)) / np.sqrt(6 / n) < 4
    assert abs(stats.kurtosis(flat)) / np.sqrt(24 / n) < 4
    assert stats.kstest(flat[::3], "norm").pvalue > 1e-3


def test_tails_are_not_cut(draws):
    n = draws.size
    for limit in (3.0, 4.0, 4.75):
        expected = 2 * n * stats.norm.sf(limit)
        assert abs((np.abs(draws) > limit).sum() - expected) < 4.5 * np.sqrt(expected) + 1
    smallest = noise.uniform(jnp.zeros((), jnp.uint32), jnp.float32)
    assert np.sqrt(-2 * np.log(smallest)) > 6.7  # 24-bit uniforms would stop at 5.8


def test_streams_are_independent(draws):
    pairs = {f"particles {k} apart": (draws[:, :, :-k], draws[:, :, k:]) for k in (1, 2, 3, 64, 1024)}
    pairs |= {f"{k} steps apart": (draws[:-k], draws[k:]) for k in (1, 2, 3)}
    pairs |= {f"coordinates {i}, {j}": (draws[:, i], draws[:, j]) for i, j in ((0, 1), (0, 2), (1, 2))}
    squares = (draws**2 - 1) / np.sqrt(2)
    pairs |= {"squares of neighbours": (squares[:, :, :-1], squares[:, :, 1:])}
    pairs |= {"squares of coordinates": (squares[:, 0], squares[:, 1])}
    pairs |= {"first draw of neighbours": (draws[0, 0, :-1], draws[0, 0, 1:])}
    scores = {name: z_score(a, b) for name, (a, b) in pairs.items()}
    assert max(map(abs, scores.values())) < 4, scores


def test_seeds_and_key_kinds_give_their_own_streams():
    keys = [0, 1, 2, 2**32, 2**40 + 1, jax.random.key(0), jax.random.key(1), jax.random.key(7, impl="rbg")]
    first = [np.asarray(noise.normals(noise.seed_lanes(noise.key_words(k), 4000, 1), 2, jnp.float32)[0]) for k in keys]
    for i, a in enumerate(first):
        assert stats.kstest(a.ravel(), "norm").pvalue > 1e-4
        for b in first[:i]:
            same = np.array_equal(a, b)
            assert same or abs(z_score(a, b)) < 4.5
    np.testing.assert_array_equal(first[0], first[5])  # an int seed and JAX's key of that seed are one seed
    assert len({a.tobytes() for a in first}) == len(keys) - 2


def test_a_particles_stream_does_not_depend_on_how_many_there_are():
    few, many = (noise.seed_lanes(noise.key_words(5), n, 2) for n in (10, 1000))
    for a, b in zip(few, many, strict=True):
        np.testing.assert_array_equal(a, b[:, :10])


def test_xoshiro_against_the_reference_recurrence():
    """Blackman and Vigna's xoshiro128++ in plain integers."""
    state = [1, 2, 3, 4]
    lanes = tuple(jnp.full((1, 1), s, jnp.uint32) for s in state)
    mask = 0xFFFFFFFF
    for _ in range(50):
        total = (state[0] + state[3]) & mask
        expected = (((total << 7) | (total >> 25)) + state[0]) & mask
        t = (state[1] << 9) & mask
        state[2] ^= state[0]
        state[3] ^= state[1]
        state[1] ^= state[2]
        state[0] ^= state[3]
        state[2] ^= t
        state[3] = ((state[3] << 11) | (state[3] >> 21)) & mask
        word, lanes = noise.bits(lanes)
        assert int(word[0, 0]) == expected
    assert [int(w[0, 0]) for w in lanes] == state


def test_sine_and_cosine_to_rounding():
    with float64():
        angle = jnp.linspace(0, np.pi / 4, 1001)
        sine, cosine = noise._sincos(angle, jnp.float64)
        np.testing.assert_allclose(sine, np.sin(np.asarray(angle)), rtol=4e-16, atol=1e-18)
        np.testing.assert_allclose(cosine, np.cos(np.asarray(angle)), rtol=4e-16)
    angle = jnp.linspace(0, np.pi / 4, 1001, dtype=jnp.float32)
    sine, cosine = noise._sincos(angle, jnp.float32)
    np.testing.assert_allclose(sine, np.sin(np.asarray(angle, np.float64)), rtol=2e-7)
    np.testing.assert_allclose(cosine, np.cos(np.asarray(angle, np.float64)), rtol=2e-7)


@pytest.mark.parametrize("key", [1.5, "seed", None, True, np.zeros(3)])
def test_bad_keys_are_refused(key):
    with pytest.raises(ValueError, match="key must be an integer seed or a single JAX random key"):
        noise.key_words(key)
