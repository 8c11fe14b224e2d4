"""Safety quadratic programs for 10 000 particles at once, beside an interior-point solver called for each.

    python -m pytest tests/bench/test_qp.py --override-ini addopts=

Times are of the whole batch; µs per problem stand in the extra information. The peer, Clarabel, is timed on 500 of
the problems, with its set-up, for the rows change at every step.
"""

import time

import clarabel
import jax
import numpy as np
import pytest
import scipy.sparse as sp

from ctrlgen.safety.qp import minimum_norm

PARTICLES, PEER = 10_000, 500
SHAPES = [(1, 2), (2, 2), (5, 2), (5, 10), (20, 10)]
solve = jax.jit(minimum_norm)


def problems(m, d, share):
    """Feasible problems of which this share has an active constraint, float32."""
    rng = np.random.default_rng([m, d])
    x, a = rng.normal(size=(d, PARTICLES)) / np.sqrt(d), rng.normal(size=(m, d, PARTICLES))
    a[0] *= np.sign(np.sum(a[0] * x, axis=0))
    at = np.einsum("mdn,dn->mn", a, x)
    b = at - 0.5 * np.abs(rng.normal(size=at.shape)) * np.linalg.norm(a, axis=1)
    b[0] = 0.7 * at[0]
    b = np.where(rng.random(PARTICLES) < share, b, -np.abs(b))
    return a.astype(np.float32), b.astype(np.float32)


def by_clarabel(a, b):
    m, d, n = a.shape
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    square, cones, out = sp.eye(d, format="csc"), [clarabel.NonnegativeConeT(m)], np.empty((d, n))
    for i in range(n):
        rows = sp.csc_matrix(-a[..., i])
        out[:, i] = clarabel.DefaultSolver(square, np.zeros(d), rows, -b[:, i], cones, settings).solve().x
    return out


@pytest.mark.parametrize("share", [0.05, 1.0], ids=["5 % active", "all active"])
@pytest.mark.parametrize(("m", "d"), SHAPES)
@pytest.mark.benchmark(group="minimum-norm quadratic programs, 10 000 particles")
def test_minimum_norm(benchmark, m, d, share):
    a, b = problems(m, d, share)
    on_device = jax.block_until_ready((jax.device_put(a), jax.device_put(b)))
    jax.block_until_ready(solve(*on_device))
    answer = benchmark(lambda: jax.block_until_ready(solve(*on_device)))
    assert np.asarray(answer.feasible).all()
    size = 1 + np.linalg.norm(np.asarray(answer.delta), axis=0)
    assert (np.asarray(answer.residual) < 1e-4 * size).all()
    start = time.perf_counter()
    peer = by_clarabel(a[..., :PEER].astype(float), b[:, :PEER].astype(float))
    spent = time.perf_counter() - start
    assert np.abs(np.asarray(answer.delta)[:, :PEER] - peer).max() < 1e-3
    ours = benchmark.stats.stats.median if benchmark.stats else float("nan")
    benchmark.extra_info.update(
        us_per_problem=f"{1e6 * ours / PARTICLES:.4f}",
        clarabel_us_per_problem=f"{1e6 * spent / PEER:.1f}",
        active=f"{np.mean(np.any(b > 0, axis=0)):.3f}",
        largest_residual=f"{np.max(answer.residual):.1e}",
    )
