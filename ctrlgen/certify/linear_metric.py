"""Constant metrics of linear systems ẋ = Ax, by exact linear algebra.

For a rate λ below the spectral abscissa's magnitude, A + λI is stable and M solves a Lyapunov equation. At the
abscissa itself a metric exists iff the eigenvalues there are semisimple: those modes are split off, and on them the
inequality holds with equality.

Reference: Horn and Johnson, Topics in Matrix Analysis (1991), §2.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import sympy as sp
from flint import fmpq, fmpq_mat, fmpq_poly

from ctrlgen.prove.program import nullspace, pivots

DIGITS = (2, 4, 8, 12, 16, 24, 32, 48, 64)


def abscissa(matrix: sp.MatrixBase) -> float:
    """The largest real part of the eigenvalues: from the exact characteristic polynomial of a rational matrix.

    The eigenvalues of a defective matrix in float64 are wrong by the k-th root of the rounding error.
    """
    if not all(e.is_Rational for e in matrix):
        return float(np.linalg.eigvals(np.array(matrix.tolist(), dtype=float)).real.max())
    polynomial = _exactly(matrix).charpoly()
    roots: Any = polynomial.numer().complex_roots()  # of an integer polynomial: (root, multiplicity)
    return max(float(root.real.mid()) for root, _ in roots)


def _exactly(matrix: Any) -> fmpq_mat:
    return fmpq_mat(matrix.rows, matrix.cols, [fmpq(int(e.p), int(e.q)) for e in matrix])


def linear_metrics(slope: sp.MatrixBase, rate: Any) -> Iterator[sp.Matrix]:
    """Candidates for a metric of ẋ = slope·x at this rate, well-conditioned ones first."""
    yield from _from_eigenvectors(slope)
    if not (rate.is_Rational and all(e.is_Rational for e in slope)):
        return
    d = slope.rows
    shifted = _exactly(slope) + _eye(d) * fmpq(int(rate.p), int(rate.q))
    exact = _split_lyapunov(shifted)
    if exact is None:
        return
    for digits in DIGITS:
        near = _rounded(exact, digits)
        if _good(near, shifted):
            yield _to_sympy(near)
            break
    yield _to_sympy(exact)


def _from_eigenvectors(slope: sp.MatrixBase) -> Iterator[sp.Matrix]:
    """M = V⁻*V⁻¹ with the eigenvectors V, rounded: every mode then contracts at its own rate."""
    a = np.array(slope.tolist(), dtype=float)
    _, vectors = np.linalg.eig(a)
    if np.linalg.cond(vectors) > 1e6:
        return
    inverse = np.linalg.inv(vectors)
    metric = (inverse.conj().T @ inverse).real
    metric = (metric + metric.T) / (2 * np.abs(metric).max())
    for digits in (2, 5, 9, 13):
        d = range(len(a))
        yield sp.Matrix(
            len(a), len(a), [sp.Rational(round(metric[i, j] * 10**digits), 10**digits) for i in d for j in d]
        )


def _split_lyapunov(a: fmpq_mat) -> fmpq_mat | None:
    """An exact M ≻ 0 with aᵀM + Ma ⪯ 0, strictly so off the imaginary axis; None if none is found.

    Eigenvalues on the axis are recognised as roots of x or x² + q, q rational, among the factors of the
    characteristic polynomial.
    """
    d = a.nrows()
    _, factors = fmpq_poly(list(a.charpoly().coeffs())).factor()
    inner = [p for p, _ in factors if _on_axis(p)]
    if not inner:
        return _lyapunov(a)
    columns, outer = [], _eye(d)
    for p, power in factors:
        value = _at(p, a)
        if _on_axis(p):
            kernel = nullspace(value.tolist(), value.ncols())
            if len(kernel) != p.degree() * power:
                return None  # not semisimple: trajectories along it grow like a power of t
            columns.append((p, kernel))
            outer = outer * value
    image = _independent_columns(outer)
    basis = [v for _, kernel in columns for v in kernel] + image
    change = fmpq_mat(d, d, [basis[j][i] for i in range(d) for j in range(d)])
    back = change.inv()
    inside = back * a * change
    metric, start = fmpq_mat(d, d), 0
    for p, kernel in columns:
        size = len(kernel)
        block = _cut(inside, start, size)
        speed = p.coeffs()[0] if p.degree() == 2 else None
        part = _eye(size) if speed is None else _eye(size) + block.transpose() * block * (fmpq(1) / speed)
        _paste(metric, part, start)
        start += size
    if image:
        part = _lyapunov(_cut(inside, start, d - start))
        if part is None:
            return None
        _paste(metric, part, start)
    return back.transpose() * metric * back


def _on_axis(p: fmpq_poly) -> bool:
    c = [v / p.coeffs()[-1] for v in p.coeffs()]
    return (p.degree() == 1 and c[0] == 0) or (p.degree() == 2 and c[1] == 0 and c[0] > 0)


def _lyapunov(a: fmpq_mat) -> fmpq_mat | None:
    """M with aᵀM + Ma = -I if that is positive definite."""
    d = a.nrows()
    index = {(i, j): k for k, (i, j) in enumerate((i, j) for i in range(d) for j in range(i, d))}
    system = fmpq_mat(len(index), len(index))
    right = fmpq_mat(len(index), 1)
    for (i, j), row in index.items():
        right[row, 0] = fmpq(-1 if i == j else 0)
        for k in range(d):  # Σ_k a_ki M_kj + M_ik a_kj
            first, second = index[min(k, j), max(k, j)], index[min(i, k), max(i, k)]
            system[row, first] = system[row, first] + a[k, i]
            system[row, second] = system[row, second] + a[k, j]
    try:
        solution = system.solve(right)
    except ZeroDivisionError:
        return None
    metric = fmpq_mat(d, d, [solution[index[min(i, j), max(i, j)], 0] for i in range(d) for j in range(d)])
    found = pivots(metric.tolist())
    return metric if found is not None and all(v > 0 for v in found) else None


def _good(metric: fmpq_mat, a: fmpq_mat) -> bool:
    first = pivots(metric.tolist())
    slack = (a.transpose() * metric + metric * a) * fmpq(-1)
    return first is not None and all(v > 0 for v in first) and pivots(slack.tolist()) is not None


def _rounded(metric: fmpq_mat, digits: int) -> fmpq_mat:
    d, scale = metric.nrows(), 10**digits
    top = max(abs(metric[i, i]) for i in range(d))

    def near(v: fmpq) -> fmpq:
        moved = v / top * scale + fmpq(1, 2)
        return fmpq(int(moved.p) // int(moved.q), scale)

    return fmpq_mat(d, d, [near(metric[i, j]) for i in range(d) for j in range(d)])


def _to_sympy(metric: fmpq_mat) -> sp.Matrix:
    d = metric.nrows()
    return sp.Matrix(d, d, [sp.Rational(int(metric[i, j].p), int(metric[i, j].q)) for i in range(d) for j in range(d)])


def _eye(d: int) -> fmpq_mat:
    return fmpq_mat(d, d, [fmpq(int(i == j)) for i in range(d) for j in range(d)])


def _at(p: fmpq_poly, a: fmpq_mat) -> fmpq_mat:
    out = _eye(a.nrows()) * fmpq(0)
    for c in reversed(p.coeffs()):
        out = out * a + _eye(a.nrows()) * c
    return out


def _independent_columns(a: fmpq_mat) -> list[list[fmpq]]:
    reduced, rank = a.rref()
    lead = [next(c for c in range(a.ncols()) if reduced[r, c] != 0) for r in range(rank)]
    return [[a[i, c] for i in range(a.nrows())] for c in lead]


def _cut(a: fmpq_mat, start: int, size: int) -> fmpq_mat:
    return fmpq_mat(size, size, [a[start + i, start + j] for i in range(size) for j in range(size)])


def _paste(target: fmpq_mat, part: Any, start: int) -> None:
    for i in range(part.nrows()):
        for j in range(part.ncols()):
            target[start + i, start + j] = part[i, j]
