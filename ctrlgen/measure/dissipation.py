"""How fast the closed loop still moves: relative Fisher information and Stein residual of particles.

`-ε I(ρ‖ρ*)` is the time derivative of the KL divergence along dX = -∇E dt + sqrt(2ε) dW, and the Stein
residual is that of the mean energy: both vanish at the Gibbs measure.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist

from ctrlgen.energies.base import EXACT_LAPLACIAN_DIM, Energy
from ctrlgen.estimate import Estimate
from ctrlgen.measure import _checks as check
from ctrlgen.threads import one_blas_thread

_FOLDS = 5
_SHARE = 20  # particles a bump, at least
_CENTRES = 128  # of the Gaussian bumps
_REACH = (3, 10, 40)  # of their widths: the median distance from a centre to this many others
_QUADRATIC_DIM = 16  # above this the quadratic potentials keep their diagonal only
_RIDGES = (1e-6, 1e-4, 1e-2, 1.0)  # on features of size 1


@one_blas_thread
def stein_residual(x: Any, energy: Energy, temperature: float) -> Estimate:
    """E[ε ΔE - |∇E|²] over particles x (n, d), which is d/dt E[E] along the closed loop [energy² / length²].

    Zero at the Gibbs measure, whatever its log Z. Above 64 dimensions the Laplacian is a random estimate, and its
    error is included as if it were common to all particles.
    """
    temperature = check.positive("temperature", temperature)
    check.without_walls("the Stein residual", energy)
    x = check.states("x", x, dim=energy.dim)
    slope = check.at_particles("gradient", np.asarray(energy.gradient(x)))
    common = 0.0
    if energy.dim > EXACT_LAPLACIAN_DIM:
        estimate = energy.laplacian_estimate(x)
        laplacian, common = np.asarray(estimate.value), float(np.mean(estimate.error))
    else:
        laplacian = np.asarray(energy.laplacian(x))
    terms = temperature * check.at_particles("laplacian", laplacian) - (slope**2).sum(axis=1)
    return Estimate(float(terms.mean()), math.hypot(terms.std(ddof=1) / math.sqrt(len(x)), temperature * common))


@one_blas_thread
def fisher(x: Any, energy: Energy, temperature: float) -> Estimate:
    """Relative Fisher information I(ρ‖ρ*) = E|∇log ρ + ∇E/ε|² of particles x (n, d): a lower bound [1 / length²].

    For every vector field g, I >= E[2 g·∇E/ε - 2 ∇·g - |g|²] with equality at g = ∇log(ρ/ρ*), which
    needs no density. g is sought among gradients of linear and quadratic functions, of E itself (so that Gaussians
    are exact at every temperature) and of Gaussian bumps on the particles; fitted with a ridge on four
    fifths of the particles and evaluated on the fifth, in turn, so that no fit is judged on its own data. The
    ridge is chosen inside the four fifths.

    Args:
        x: particles, at least 50.
        energy: E.
        temperature: ε > 0.

    Returns:
        An unbiased estimate of a lower bound of I, with its standard error. The shortfall (what g cannot express, and
        the noise of the fit) is not in the error; near the Gibbs measure the value may be slightly negative.

    Reference: Hyvärinen, JMLR 6 (2005) 695, for the integration by parts.
    """
    temperature = check.positive("temperature", temperature)
    check.without_walls("the Fisher information", energy)
    x = check.states("x", x, dim=energy.dim, least=50)
    n, d = x.shape
    push = check.at_particles("gradient", np.asarray(energy.gradient(x))) / temperature
    curvature = None
    if d <= EXACT_LAPLACIAN_DIM:
        curvature = check.at_particles("laplacian", np.asarray(energy.laplacian(x))) / temperature
    order = np.random.default_rng(0).permutation(n)
    x, push = x[order], push[order]
    fields, divergences, families = _features(x)
    if curvature is not None:
        size = math.sqrt(float(np.mean(push**2))) or 1.0
        fields = np.concatenate([fields, push.T[:, :, None] / size], axis=2)
        divergences = np.concatenate([divergences, curvature[order][:, None] / size], axis=1)
        families = [np.append(family, fields.shape[2] - 1) for family in families]
    drive = sum(f * p[:, None] for f, p in zip(fields, push.T, strict=True)) - divergences  # b, point by point
    folds = np.array_split(np.arange(n), _FOLDS)
    rows = [fields[:, fold].reshape(-1, fields.shape[2]) for fold in folds]
    gram = [a.T @ a for a in rows]
    force = [drive[fold].sum(axis=0) for fold in folds]
    terms = np.empty(n)
    for out, fold in enumerate(folds):
        inside = [i for i in range(_FOLDS) if i != out]
        family, ridge = _choose(inside, gram, force, families)
        coefficients = np.zeros(fields.shape[2])
        coefficients[family] = _fit(inside, gram, force, family)[:, ridge]
        field = fields[:, fold] @ coefficients
        terms[fold] = 2 * drive[fold] @ coefficients - (field**2).sum(axis=0)
    return Estimate(float(terms.mean()), float(terms.std(ddof=1) / math.sqrt(n)))


def _choose(inside: list[int], gram: list, force: list, families: list) -> tuple[np.ndarray, int]:
    """The family and ridge to fit with: the coarsest family's best, unless another beats it on every fold.

    Scores have heavy tails (one particle under a narrow bump), so a better sum alone is no evidence.
    """
    scores = []
    for family in families:
        fits = [_fit(inside[a:b], gram, force, family) for a, b in ((2, 4), (0, 2))]
        trials = [fits[0], fits[0], fits[1], fits[1]]
        rows = np.ix_(family, family)
        scores.append(
            [
                2 * force[i][family] @ t - ((gram[i][rows] @ t) * t).sum(axis=0)
                for i, t in zip(inside, trials, strict=True)
            ]
        )
    score = np.array(scores).transpose(1, 0, 2)  # (folds, families, ridges)
    base = score[:, 0, score[:, 0].sum(axis=0).argmax()]
    gain = (score - base[:, None, None]).min(axis=0)
    best = np.unravel_index(gain.argmax(), gain.shape)
    return families[best[0]], int(best[1])


def _features(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Vector fields (d, n, p) of size about 1 where they act, their divergences (n, p), and nested choices of them."""
    n, d = x.shape
    spread = x.std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    white = (x - x.mean(axis=0)) / spread
    linear, traces = [], []
    for i in range(d):
        linear.append(np.tile(np.eye(d)[i], (n, 1)))
        traces.append(np.zeros(n))
        for j in range(i, d) if d <= _QUADRATIC_DIM else (i,):
            field = np.zeros((n, d))  # ∇(x_i x_j) of centred, scaled coordinates, times the smaller scale
            smaller = min(spread[i], spread[j])
            field[:, i] += white[:, j] * smaller / spread[i]
            field[:, j] += white[:, i] * smaller / spread[j]
            linear.append(field)
            traces.append(np.full(n, 2.0 * (i == j) / spread[i]))
    fields, divergences = [np.stack(linear, axis=2).transpose(1, 0, 2)], [np.stack(traces, axis=1)]
    centres = white[: max(min(_CENTRES, 384 // d**2, n // _SHARE), 2)]
    apart = np.sort(cdist(centres, centres), axis=1)
    offset = white.T[:, :, None] - centres.T[:, None, :]  # (d, n, c)
    square = (offset**2).sum(axis=0)
    for reach in _REACH[::-1]:  # wide first: families grow from coarse to fine
        width = max(float(np.median(apart[:, min(reach, len(centres) - 1)])), 1e-3)
        bump = np.exp(-0.5 * square / width**2) * spread.min()
        fields.append(-offset / width * bump / spread[:, None, None])
        divergences.append((((offset / width) ** 2 - 1) / (spread[:, None, None] ** 2 * width)).sum(axis=0) * bump)
    families = [np.arange(end) for end in np.cumsum([f.shape[2] for f in fields])]
    return np.concatenate(fields, axis=2), np.concatenate(divergences, axis=1), families


def _fit(train: list[int], gram: list, force: list, family: np.ndarray) -> np.ndarray:
    """Coefficients for each ridge, (p, ridges)."""
    a = np.sum([gram[i] for i in train], axis=0)[family[:, None], family]
    b = np.sum([force[i] for i in train], axis=0)[family]
    scale = np.trace(a) / len(a) * np.eye(len(a))
    # LU, not Cholesky: threaded OpenBLAS factors small matrices 300 times slower by Cholesky on a busy machine
    return np.stack([np.linalg.solve(a + ridge * scale, b) for ridge in _RIDGES], axis=1)
