"""Distances between two samples, and moments of one."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist

from ctrlgen.estimate import Estimate
from ctrlgen.measure import _checks as check

_BLOCK = 4_000_000  # floats in a block of projections


@dataclass(frozen=True)
class Moments:
    """Mean (d,) [length] and covariance (d, d) [length²] of a sample, each an `Estimate`."""

    mean: Estimate
    covariance: Estimate


def moments(x: Any) -> Moments:
    """Mean and unbiased covariance of particles x (n, d), entry by entry with standard errors."""
    x = check.states("x", x)
    n, mean = len(x), x.mean(axis=0)
    centred = x - mean
    covariance = centred.T @ centred / (n - 1)
    square = (centred**2).T @ centred**2 / n
    spread = np.sqrt(np.maximum(square - covariance**2, 0.0) / n)
    return Moments(Estimate(mean, np.sqrt(np.diag(covariance) / n)), Estimate(covariance, spread))


def wasserstein2(x: Any, y: Any, max_points: int = 2000, key: int = 0) -> Estimate:
    """W₂ between the empirical measures of x (n, d) and y (m, d), exactly, by network simplex [length].

    Samples larger than `max_points` are thinned at random first, since time grows with the cube of their size
    (2000 points: about 0.6 s). W₂ between finite samples is biased upwards by about the distance of two
    fresh samples of one law: quote it beside `sampling_floor`.

    Args:
        x, y: particles.
        max_points: the most to keep of either.
        key: seed of the thinning.

    Returns:
        W₂ with the standard error of its fluctuation about its mean at these sample sizes, from the variance of the
        dual potentials; the bias is not in it.

    Raises:
        RuntimeError: the solver did not reach the optimum.

    Reference: Flamary et al., JMLR 22 (2021) 78; del Barrio and Loubes, Ann. Probab. 47 (2019) 926.
    """
    x, y = check.pair(x, y)
    x, y = _thin(x, y, max_points, key)
    from ot.lp import emd  # slow to import: half of SciPy and any backend that is installed

    cost = cdist(x, y, "sqeuclidean")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its word on convergence is in the log
        plan, log = emd([], [], cost, numItermax=100 * cost.size, log=True)
    if log["warning"] is not None:
        raise RuntimeError(f"optimal transport of {len(x)} to {len(y)} points failed: {log['warning']}")
    squared = float((plan * cost).sum())
    error = math.sqrt(np.var(log["u"], ddof=1) / len(x) + np.var(log["v"], ddof=1) / len(y))
    return _root(squared, error)


def sliced_wasserstein2(x: Any, y: Any, projections: int = 256, key: int = 0) -> Estimate:
    """Sliced W₂: the root mean square, over random directions, of the 1-D W₂ of the projections [length].

    Exact along every direction, for unequal sizes too; costs a sort a direction, so it suits many points.
    For two samples of one law it is about 1/sqrt(d) of W₂ in scale, and its bias vanishes like 1/n.

    Returns:
        Sliced W₂; its standard error contains the choice of directions and the sampling of both x and y (variance of
        the potentials, averaged over the directions), not the bias.

    Reference: Bonneel et al., J. Math. Imaging Vis. 51 (2015) 22.
    """
    x, y = check.pair(x, y)
    projections = check.count("projections", projections, least=2)
    n, m, d = len(x), len(y), x.shape[1]
    directions = np.random.default_rng(check.count("key", key, 0)).standard_normal((d, projections))
    directions /= np.linalg.norm(directions, axis=0)
    levels = np.union1d(np.arange(n + 1) * m, np.arange(m + 1) * n)  # in units of 1 / (n m)
    weight = np.diff(levels) / (n * m)
    i, j = levels[:-1] // m, levels[:-1] // n
    squares, potential_x, potential_y = [], np.zeros(n), np.zeros(m)
    block = max(_BLOCK // (n + m), 1)
    for start in range(0, projections, block):
        part = directions[:, start : start + block].T
        px, py = part @ x.T, part @ y.T
        order_x, order_y = np.argsort(px, axis=1), np.argsort(py, axis=1)
        px, py = np.take_along_axis(px, order_x, axis=1), np.take_along_axis(py, order_y, axis=1)
        gap = px[:, i] - py[:, j]
        squares.append(gap**2 @ weight)
        starts_x, starts_y = np.searchsorted(i, np.arange(n)), np.searchsorted(j, np.arange(m))
        potential_x += _potential(px, 2 * n * np.add.reduceat(gap * weight, starts_x, axis=1), order_x)
        potential_y += _potential(py, -2 * m * np.add.reduceat(gap * weight, starts_y, axis=1), order_y)
    square = np.concatenate(squares)
    variance = square.var(ddof=1) / projections if d > 1 else 0.0
    variance += potential_x.var(ddof=1) / projections**2 / n + potential_y.var(ddof=1) / projections**2 / m
    return _root(float(square.mean()), math.sqrt(variance))


def mmd(x: Any, y: Any, bandwidth: float | None = None, max_points: int = 2000, key: int = 0) -> Estimate:
    """Unbiased squared maximum mean discrepancy with the kernel exp(-|x - y|² / 2b²), dimensionless.

    Zero in the mean for two samples of one law, so negative half of the time; positive otherwise.

    Args:
        x, y: particles (n, d), (m, d), at least 4 of each.
        bandwidth: b [length]; the median distance of the pooled points when omitted.
        max_points: larger samples are thinned at random to this many.
        key: seed of the thinning.

    Returns:
        The estimate with its standard error: both terms of the variance of the U-statistic, so that it holds whether
        or not the laws agree.

    Reference: Gretton et al., JMLR 13 (2012) 723; Sutherland et al., ICLR 2017.
    """
    x, y = check.pair(x, y, least=4)
    x, y = _thin(x, y, max_points, key)
    if bandwidth is None:
        some = np.concatenate([x[:500], y[:500]])
        distances = cdist(some, some)
        bandwidth = float(np.median(distances[np.triu_indices(len(some), 1)]))
        if bandwidth == 0:
            raise ValueError("bandwidth must be given: the median distance of the points is 0.")
    scale = -0.5 / check.positive("bandwidth", bandwidth) ** 2
    n, m = len(x), len(y)
    kxx, kyy, kxy = (np.exp(scale * cdist(a, b, "sqeuclidean")) for a, b in ((x, x), (y, y), (x, y)))
    np.fill_diagonal(kxx, 0.0)
    np.fill_diagonal(kyy, 0.0)
    own_x, own_y = kxx.sum(axis=1) / (n - 1), kyy.sum(axis=1) / (m - 1)
    across_x, across_y = kxy.mean(axis=1), kxy.mean(axis=0)
    value = own_x.mean() + own_y.mean() - 2 * across_x.mean()
    # second-order parts of the kernels, then first-order projections with the noise of their own means taken off
    sxx, syy = _degenerate(kxx, own_x), _degenerate(kyy, own_y)
    sxy = float(((kxy - across_x[:, None] - across_y + across_x.mean()) ** 2).sum() / ((n - 1) * (m - 1)))
    first_x = float(np.var(own_x - across_x, ddof=1)) - sxx / (n - 1) - sxy / m
    first_y = float(np.var(own_y - across_y, ddof=1)) - syy / (m - 1) - sxy / n
    variance = max(4 * first_x / n + 4 * first_y / m, 0.0)
    variance += 2 * sxx / (n * (n - 1)) + 2 * syy / (m * (m - 1)) + 4 * sxy / (n * m)
    return Estimate(float(value), math.sqrt(variance))


def sampling_floor(source: Any, n: int, repeats: int = 5, key: int = 0) -> Estimate:
    """W₂ of n fresh points against n other fresh points of one law: what a perfect generator would score [length].

    Args:
        source: a distribution with `.sample(key, n)`, or samples (N, d) with N >= 2n, split at random.
        n: points in each sample; all are used.
        repeats: independent pairs, at least 2.
        key: integer seed.

    Returns:
        The mean over the pairs and its standard error (scatter / sqrt(repeats)). A single W₂ scatters by
        sqrt(repeats) times that. Pairs split from one table share points, and their error is an underestimate.
    """
    n, repeats = check.count("n", n, 2), check.count("repeats", repeats, 2)
    seeds = np.random.SeedSequence(check.count("key", key, 0)).generate_state(2 * repeats).tolist()
    values = []
    for first, second in zip(seeds[::2], seeds[1::2], strict=True):
        if hasattr(source, "sample"):
            x, y = source.sample(first, n), source.sample(second, n)
        else:
            table = check.states("source", source)
            if len(table) < 2 * n:
                raise ValueError(
                    f"source must hold at least 2 n = {2 * n} samples; got {len(table)}. Take a smaller n."
                )
            x, y = np.split(table[np.random.default_rng(first).permutation(len(table))[: 2 * n]], 2)
        values.append(float(wasserstein2(x, y, max_points=n)))
    return Estimate(float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(repeats)))


def _thin(x: np.ndarray, y: np.ndarray, most: int, key: int) -> tuple[np.ndarray, np.ndarray]:
    most = check.count("max_points", most, least=2)
    streams = np.random.default_rng(check.count("key", key, 0)).spawn(2)
    return tuple(  # type: ignore[return-value]
        a if len(a) <= most else a[np.sort(s.choice(len(a), most, replace=False))]
        for a, s in zip((x, y), streams, strict=True)
    )


def _root(squared: float, error: float) -> Estimate:
    """W from W² and its standard error; at W² ≈ 0, where the slope is infinite, no more than sqrt(error)."""
    value = math.sqrt(max(squared, 0.0))
    return Estimate(value, error / max(2 * value, math.sqrt(error), 1e-300) if error > 0 else 0.0)


def _potential(points: np.ndarray, slope: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Kantorovich potentials of 1-D transport, centred, summed over the directions, in the points' own order."""
    steps = 0.5 * (slope[:, 1:] + slope[:, :-1]) * np.diff(points, axis=1)
    sorted_values = np.concatenate([np.zeros((len(points), 1)), np.cumsum(steps, axis=1)], axis=1)
    sorted_values -= sorted_values.mean(axis=1, keepdims=True)
    out = np.empty_like(sorted_values)
    np.put_along_axis(out, order, sorted_values, axis=1)
    return out.sum(axis=0)


def _degenerate(kernel: np.ndarray, rows: np.ndarray) -> float:
    """Variance of a kernel's doubly centred part, off the diagonal."""
    n = len(kernel)
    centred = kernel - rows[:, None] - rows + rows.mean()
    np.fill_diagonal(centred, 0.0)
    return float((centred**2).sum() / (n * (n - 3)))
