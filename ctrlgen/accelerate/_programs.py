"""Constant metrics from Hessians at hand: one semidefinite program, and what stands in for it in high dimension.

Asked is the M with λM ⪯ Hᵢ ⪯ M for all i and λ as large as possible. With t = 1/λ this reads Hᵢ ⪯ M ⪯ tHᵢ, which is
linear in M and t together: one program, without bisection. Everything here is floating point and decides nothing; what
a metric is worth is established elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from importlib import import_module
from typing import Any

import numpy as np

from ctrlgen.prove.claim import Deadline

LARGEST_FULL = 30  # rows of a full metric that is found by a program
LARGEST_DIAGONAL = 60  # of a diagonal one
MOST_ENTRIES = 30_000  # rows of the program's cones together
SWEEPS = 60  # of the scaling that stands in for the program
DIGITS = (4, 7, 10, 14, 20, 28, 38)  # bits that a rounded metric keeps of each entry


def best_full(hessians: np.ndarray, deadline: Deadline) -> np.ndarray | None:
    """The best metric (d, d) of positive definite Hessians (k, d, d); None where the solver found none."""
    d = hessians.shape[-1]
    return _solve(hessians, [(i, j) for j in range(d) for i in range(j + 1)], deadline)


def best_diagonal(hessians: np.ndarray, deadline: Deadline) -> np.ndarray | None:
    """The best diagonal metric, as (d, d); None where the solver found none."""
    return _solve(hessians, [(i, i) for i in range(hessians.shape[-1])], deadline)


def _solve(hessians: np.ndarray, entries: Sequence[tuple[int, int]], deadline: Deadline) -> np.ndarray | None:
    """Minimise t with Hᵢ ⪯ M ⪯ tHᵢ over the M with these entries, in coordinates where the mean Hessian is balanced."""
    from scipy import sparse

    clarabel: Any = import_module("clarabel")
    d, n = hessians.shape[-1], len(entries)
    scale = _balance(hessians, full=n > d)
    local = scale.T @ hessians @ scale
    local = (local + local.swapaxes(1, 2)) / 2
    tri = [(i, j) for j in range(d) for i in range(j + 1)]
    weight = np.array([1.0 if i == j else np.sqrt(2.0) for i, j in tri])
    packed = np.array([h[tuple(np.transpose(tri))] for h in local]) * weight
    place = {e: k for k, e in enumerate(tri)}
    rows = np.array([place[e] for e in entries])
    k, size = len(local), len(tri)
    unit = sparse.csc_matrix((weight[rows], (rows, np.arange(n))), shape=(size, n))
    blocks, right = [], []
    for h in packed:  # M - Hᵢ ⪰ 0 and tHᵢ - M ⪰ 0, as right - A z in the cone
        column = sparse.csc_matrix(h[:, None])
        blocks += [sparse.hstack([-unit, column * 0]), sparse.hstack([unit, -column])]
        right += [-h, np.zeros(size)]
    cost = np.zeros(n + 1)
    cost[n] = 1.0
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.max_threads = 1
    settings.time_limit = max(deadline.left(), 1e-3)
    solver = clarabel.DefaultSolver(
        sparse.csc_matrix((n + 1, n + 1)),
        cost,
        sparse.csc_matrix(sparse.vstack(blocks)),
        np.concatenate(right),
        [clarabel.PSDTriangleConeT(d)] * (2 * k),
        settings,
    )
    solution = solver.solve()
    values = np.array(solution.x)
    if not np.isfinite(values).all():  # an unfinished one is worth what it turns out to be worth
        return None
    inner = np.zeros((d, d))
    for v, (i, j) in zip(values[:n], entries, strict=True):
        inner[i, j] = inner[j, i] = v
    back = np.linalg.inv(scale)
    metric = back.T @ inner @ back
    return (metric + metric.T) / 2


def _balance(hessians: np.ndarray, full: bool) -> np.ndarray:
    """R with Rᵀ H̄ R about the identity for the mean Hessian H̄; diagonal for diagonal metrics, which stay so."""
    mean = hessians.mean(axis=0)
    if not full:
        return np.diag(1 / np.sqrt(np.diag(mean)))
    values, vectors = np.linalg.eigh(mean)
    return vectors / np.sqrt(np.maximum(values, 1e-14 * values[-1]))


def ends(hessians: np.ndarray, metric: np.ndarray) -> np.ndarray:
    """(k, 2): the least and the largest eigenvalue of M⁻¹Hᵢ.

    Raises:
        LinAlgError: M is not positive definite.
    """
    root = inverse_root(metric)
    return np.linalg.eigvalsh(root.T @ hessians @ root)[:, [0, -1]]


def spread(hessians: np.ndarray, metric: np.ndarray) -> tuple[float, float]:
    """The least and the largest eigenvalue of M⁻¹Hᵢ over all i."""
    found = ends(hessians, metric)
    return float(found[:, 0].min()), float(found[:, 1].max())


def inverse_root(metric: np.ndarray) -> np.ndarray:
    """R with RᵀMR = I, in floating point.

    Raises:
        LinAlgError: M is not positive definite.
    """
    if not (metric - np.diag(np.diag(metric))).any():
        if not (np.diag(metric) > 0).all():
            raise np.linalg.LinAlgError("the metric is not positive definite.")
        return np.diag(1 / np.sqrt(np.diag(metric)))
    from scipy.linalg import solve_triangular

    scale = np.sqrt(np.diag(metric))
    factor = np.linalg.cholesky(metric / scale[:, None] / scale)
    return solve_triangular(factor, np.eye(len(metric)), lower=True).T / scale[:, None]


def scaled_diagonal(hessians: np.ndarray) -> np.ndarray:
    """A diagonal metric without a program: Jacobi's, then swept towards equal rows of D^-½ |H| D^-½. As (d, d).

    The sweep equilibrates the row sums of the entrywise largest |Hᵢ|, which bound its largest eigenvalue. Of the
    metrics met on the way the one with the best condition number at these Hessians is kept.
    """
    sizes = np.abs(hessians).max(axis=0)
    diagonal = np.einsum("kii->ki", hessians).mean(axis=0)
    best, worth = np.diag(diagonal), 0.0
    for _ in range(SWEEPS):
        low, high = spread(hessians, np.diag(diagonal))
        if low / high > worth:
            best, worth = np.diag(diagonal), low / high
        sums = (sizes / np.sqrt(diagonal)[:, None] / np.sqrt(diagonal)).sum(axis=1)
        diagonal = diagonal * np.sqrt(sums / np.exp(np.log(sums).mean()))
    return best


def low_rank(hessians: np.ndarray, rank: int) -> np.ndarray:
    """σI + U diag(s - σ) Uᵀ from the `rank` largest eigenpairs (s, u) of the mean Hessian, σ the next eigenvalue.

    For one Hessian it is above it, and leaves the condition number σ/λ_min: the stiff directions are gone.
    """
    values, vectors = np.linalg.eigh(hessians.mean(axis=0))
    d = len(values)
    rank = min(rank, d - 1)
    base = max(float(values[d - 1 - rank]), 1e-12 * float(values[-1]))
    top, u = values[d - rank :], vectors[:, d - rank :]
    metric = base * np.eye(d) + (u * (np.maximum(top, base) - base)) @ u.T
    return (metric + metric.T) / 2


def roundings(metric: np.ndarray) -> list[np.ndarray]:
    """The metric with ever more bits: simple numbers make short proofs. Each is exactly symmetric."""
    halves = np.exp2(np.round(np.log2(np.diag(metric)) / 2))
    inside = metric / halves[:, None] / halves
    out = []
    for bits in DIGITS:
        near = np.round(inside * 2.0**bits) / 2.0**bits * halves[:, None] * halves
        out.append((near + near.T) / 2)
    return [*out, (metric + metric.T) / 2]


def matrix_of(metric: Any) -> np.ndarray:
    """(d,) or (d, d) as (d, d)."""
    metric = np.asarray(metric, np.float64)
    return np.diag(metric) if metric.ndim == 1 else metric


def rational(value: float) -> Any:
    """A float as the SymPy rational that it is."""
    import sympy as sp

    exact = Fraction(value)
    return sp.Rational(exact.numerator, exact.denominator)
