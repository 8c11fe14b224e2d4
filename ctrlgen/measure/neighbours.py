"""Nearest neighbours: the distances behind the entropy estimates, and what a ball around a particle hides.

The distance to the k-th neighbour gives the mean density of a ball, not the density at its centre. What the two differ
by is the bias of such estimates. It is taken off to first approximation by a model g of the density: linear, quadratic
and (where there is one) a multiple of the energy, so that a Gaussian and the Gibbs measure itself are free of it.

Behind walls (`Walls` or a `LogBarrier` among the energy's terms) the density is 0 on what a wall cuts off a ball, and
many more nodes see how much that is. The fit weighs particles by ω = min(1, h_j/s_j)², which vanishes at the walls, and
with it the boundary terms of score matching.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.spatial import KDTree
from scipy.special import digamma, ndtri, polygamma
from scipy.stats import qmc

from ctrlgen.energies.algebra import parted
from ctrlgen.energies.base import Energy
from ctrlgen.estimate import Estimate
from ctrlgen.measure.restricted import Behind
from ctrlgen.threads import one_blas_thread

MODELLED = 10  # dimensions up to which the balls are corrected
_FITTED = 2000  # particles that the model is fitted to
_PAIRS = 8  # nodes of the cubature in a ball are this many pairs, or d
_ROTATIONS = 64  # random orientations of the nodes, in turn
_RIDGE = 1e-8
_CUT_PAIRS = 64  # nodes in a ball that a wall may cut
_NEAR = 2.0  # radii: so near a wall, to first order, a ball may be cut
_NODES = 200_000  # of cut balls at a time


def distances(tree: np.ndarray, x: np.ndarray, k: int) -> np.ndarray:
    """From each x to its k-th neighbour in `tree`; x itself does not count when it is the tree."""
    own = tree is x
    out = np.asarray(KDTree(tree).query(x, k=k + own)[0]).reshape(len(x), -1)[:, -1]
    if (out == 0).any():
        copies = len(x) - len(np.unique(x, axis=0)) if own else int((out == 0).sum())
        raise ValueError(
            f"x holds {copies} duplicates of other points, some more than {k} times over: a density has none. "
            "Remove them, or take a larger k."
        )
    return out


@one_blas_thread
def surprise(x: np.ndarray, k: int, energy: Energy | None = None) -> np.ndarray:
    """Terms (n,) whose mean estimates the entropy: Kozachenko-Leonenko's, with the balls corrected by a model."""
    n, d = x.shape
    radius = distances(x, x, k)
    ball = d / 2 * math.log(math.pi) - math.lgamma(d / 2 + 1)
    plain = d * np.log(radius) + ball + digamma(n) - digamma(k)
    return plain + _log_excess(x, radius, energy) if d <= MODELLED else plain


def neighbour_mean(terms: np.ndarray, k: int) -> Estimate:
    """Mean of terms that contain -d log(distance to the k-th neighbour), or plus that.

    Neighbours share distances, so the terms are correlated: n Var(mean) exceeds Var(term) by the same amount for
    every smooth density. For independent terms the scatter of distances is ψ'(k); on uniform points of a torus
    n Var(mean) is 1.8/k + 0.4/k³ within 10 %, k = 1 ... 12, d = 1 ... 5 (simulated; same finding, k = 1: Delattre
    and Fournier, J. Stat. Plan. Inference 185 (2017) 69).
    """
    variance = terms.var(ddof=1) + 1.8 / k + 0.4 / k**3 - polygamma(1, k)
    return Estimate(float(terms.mean()), math.sqrt(variance / len(terms)))


def _log_excess(x: np.ndarray, radius: np.ndarray, energy: Energy | None) -> np.ndarray:
    """log of the mean of g over each particle's ball, relative to g at the particle; 0 where g is not finite.

    The mean is a cubature of degree 3: pairs at ±r sqrt(d / (d + 2)) along orthogonal directions.
    """
    n, d = x.shape
    behind = Behind(energy) if energy is not None and parted(energy).sets else None
    smooth = energy if behind is None else behind.free
    model = _model(x, smooth, None if behind is None else _weights(x, behind))
    rng = np.random.default_rng(0)
    pairs = min(d, _PAIRS)
    basis = np.linalg.qr(rng.standard_normal((_ROTATIONS, d, d)))[0][np.arange(n) % _ROTATIONS, :pairs]
    reach = (radius * math.sqrt(d / (d + 2)))[:, None, None]
    nodes = x[:, None, :] + reach * np.concatenate([basis, -basis], axis=1)  # (n, 2 pairs, d)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        change = model(nodes.reshape(-1, d)).reshape(n, -1) - model(x)[:, None]
        top = change.max(axis=1, keepdims=True)
        share = np.exp(change - top).reshape(n, 2, pairs).mean(axis=1)
        mean = share.mean(axis=1)
        out = top[:, 0] + np.log(mean)
        if pairs > 1:  # the log of a mean over few directions is low by half its relative variance
            out += share.var(axis=1, ddof=1) / (2 * pairs * mean**2)
    if behind is not None:
        value, slope = behind.values(x), np.linalg.norm(behind.slopes(x), axis=1)
        near = np.flatnonzero((value < _NEAR * slope * radius).any(axis=0))
        size = max(1, _NODES // (2 * _CUT_PAIRS))
        for part in (near[i : i + size] for i in range(0, len(near), size)):
            out[part] = _log_excess_cut(x[part], radius[part], model, behind)
    return np.where(np.isfinite(out), out, 0.0)


def _log_excess_cut(
    x: np.ndarray, radius: np.ndarray, model: Callable[[np.ndarray], np.ndarray], behind: Behind
) -> np.ndarray:
    """The same for balls of which walls may cut a part: by a quasi-random cubature in pairs, turned for each ball."""
    n, d = x.shape
    rng = np.random.default_rng(0)
    uniform = qmc.Sobol(d + 1, rng=rng).random(_CUT_PAIRS)
    direction = ndtri(np.clip(uniform[:, :d], 1e-9, 1 - 1e-9))
    direction *= uniform[:, d:] ** (1 / d) / np.linalg.norm(direction, axis=1, keepdims=True)
    turns = np.linalg.qr(rng.standard_normal((_ROTATIONS, d, d)))[0]
    ball = np.concatenate([direction, -direction]) @ turns[np.arange(n) % _ROTATIONS]
    nodes = (x[:, None, :] + radius[:, None, None] * ball).reshape(-1, d)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        change = np.where(behind.least(nodes) >= 0, model(nodes), -np.inf).reshape(n, -1) - model(x)[:, None]
        change = np.where(np.isnan(change), -np.inf, change)
        top = change.max(axis=1, keepdims=True)
        return top[:, 0] + np.log(np.exp(change - top).mean(axis=1))


def _weights(x: np.ndarray, behind: Behind) -> tuple[np.ndarray, np.ndarray]:
    """ω = min over j of min(1, h_j/s_j)², s_j the median of h_j, (n,); and ∇ω, (n, d)."""
    value = behind.values(x)
    size = np.maximum(np.median(value, axis=1, keepdims=True), 1e-300)
    ratio = value / size
    first = ratio.argmin(axis=0)
    part = np.arange(len(x))
    least = np.clip(ratio[first, part], 0.0, 1.0)
    slope = behind.slopes(x)[first, :, part] / size[first]
    return least**2, 2 * (least * (least < 1))[:, None] * slope


def _model(
    x: np.ndarray, energy: Energy | None, weights: tuple[np.ndarray, np.ndarray] | None = None
) -> Callable[[np.ndarray], np.ndarray]:
    """log g by score matching: the combination of the features whose gradient is nearest to ∇log ρ in mean square.

    Args:
        x: particles (n, d).
        energy: a feature, finite at the particles.
        weights: ω of the particles, (n,), which vanishes where their density has a jump, and ∇ω, (n, d).

    Reference: Hyvärinen, JMLR 6 (2005) 695; for exponential families the fit is a linear system. With weights: Yu,
    Drton and Shojaie, JMLR 20 (2019) 76.
    """
    d = x.shape[1]
    centre, spread = x.mean(axis=0), x.std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    taken = np.linspace(0, len(x) - 1, min(len(x), _FITTED)).astype(int)
    some = x[taken]
    share, push = (np.ones(len(some)), None) if weights is None else (weights[0][taken], weights[1][taken])
    row, column = np.triu_indices(d)
    white = (some - centre) / spread
    slopes = np.zeros((len(some), d, d + len(row) + (energy is not None)))
    slopes[:, np.arange(d), np.arange(d)] = 1 / spread
    quadratic = d + np.arange(len(row))
    slopes[:, row, quadratic] += white[:, column] / spread[row]
    slopes[:, column, quadratic] += white[:, row] / spread[column]
    bends = np.zeros(slopes.shape[2])
    bends[quadratic] = np.where(row == column, 2 / spread[row] ** 2, 0.0) * share.mean()
    if energy is not None:
        slopes[:, :, -1] = np.asarray(energy.gradient(some))
        bends[-1] = float(np.mean(share * np.asarray(energy.laplacian(some))))
    if push is not None:
        bends += np.einsum("nia,ni->a", slopes, push) / len(some)
    gram = np.einsum("nia,n,nib->ab", slopes, share, slopes, optimize=True) / len(some)
    size = np.sqrt(np.diagonal(gram)) + 1e-300
    scaled = gram / np.outer(size, size) + _RIDGE * np.eye(len(size))
    factors = np.linalg.lstsq(scaled, -bends / size, rcond=None)[0] / size
    if not np.isfinite(factors).all():
        factors = np.zeros_like(factors)

    def log_density(y: np.ndarray) -> np.ndarray:
        z = (y - centre) / spread
        out = z @ factors[:d] + (z[:, row] * z[:, column]) @ factors[quadratic]
        return out if energy is None else out + factors[-1] * np.asarray(energy(y))

    return log_density
