"""Rigorous bounds of eigenvalues and norms of matrices of floats, rounded outward.

Two kinds of arithmetic. Balls (python-flint) for symmetric matrices up to `BALLS` rows, where the bound is to be sharp.
Beyond, and for the matrices of networks, NumPy with the classical error bounds: a sum of n products in binary64,
rounded to nearest and added up in any order, is off by at most γ_n Σ|aᵢbᵢ| with γ_n = n u / (1 - n u), u = 2⁻⁵³, and n
smallest numbers (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1). The code takes 2(n + 4)u,
which covers the rounding of the bound itself. What a library computed (a factor, an eigenvalue) is only ever a guess:
the residual decides (Rump, BIT 46 (2006) 433).
"""

from __future__ import annotations

import math
import sys
from fractions import Fraction
from typing import Any

import numpy as np

UNIT = 2.0**-52  # twice the unit roundoff
TINY = 1e-290  # above n smallest normal numbers, for any n that fits a memory
BALLS = 32  # largest matrix whose eigenvalues are bounded in ball arithmetic
BITS = 160
STEPS = (2.0**-53, 2.0**-50, 2.0**-46, 2.0**-40, 2.0**-30, 2.0**-20, 2.0**-8)  # outward, relative to the norm


def down(value: Any) -> float:
    """The largest float that is not above a rational number (or a ball of python-flint); infinite below them all."""
    if not isinstance(value, (int, float, Fraction)):
        return math.nextafter(float(value.lower()), -math.inf)
    try:
        out = float(value)
    except OverflowError:
        return sys.float_info.max if value > 0 else -math.inf
    return out if not math.isfinite(out) or Fraction(out) <= value else math.nextafter(out, -math.inf)


def up(value: Any) -> float:
    """The smallest float that is not below a rational number (or a ball of python-flint)."""
    return -down(-value)


def above_root(value: Any) -> float:
    """A float that is at least the square root of a rational number ≥ 0, to the last bits."""
    value = Fraction(value)
    halves = max(0, value.numerator.bit_length() - value.denominator.bit_length() - 1000) // 2  # out of reach of floats
    near = math.ldexp(math.sqrt(up(value / 4**halves)), halves)
    while Fraction(near) ** 2 < value:
        near = math.nextafter(near, math.inf)
    return near


# Balls ----------------------------------------------------------------------------------------------------------------


def ball_matrix(matrix: np.ndarray) -> Any:
    """A matrix of floats as a matrix of exact balls."""
    from flint import arb_mat

    matrix = np.asarray(matrix, np.float64)
    rows, columns = matrix.shape
    return arb_mat(rows, columns, matrix.ravel().tolist())


def middle(matrix: Any) -> np.ndarray:
    """The centres of a symmetric matrix of balls, rounded to floats, symmetric to the last bit."""
    out = np.array([[float(v.mid()) for v in row] for row in matrix.tolist()])
    return (out + out.T) / 2


def shifted(matrix: Any, m: float) -> Any:
    """A - m I in balls."""
    from flint import arb, arb_mat

    n = matrix.nrows()
    return matrix - arb_mat([[arb(m) if i == j else arb(0) for j in range(n)] for i in range(n)])


def is_positive(matrix: Any) -> bool:
    """Is every symmetric matrix in a matrix of balls ≻ 0? By its LDLᵀ factors; False means "not established"."""
    n = matrix.nrows()
    rows = [[matrix[i, j] for j in range(i + 1)] for i in range(n)]
    for j in range(n):
        pivot = rows[j][j]
        if not pivot > 0:
            return False
        column, inverse = [rows[i][j] for i in range(j + 1, n)], 1 / pivot
        for i in range(j + 1, n):
            row, factor = rows[i], rows[i][j] * inverse
            for k in range(j + 1, i + 1):
                row[k] -= factor * column[k - j - 1]
    return True


def _lowest(matrix: Any, guess: float, scale: float) -> float:
    """m with A ⪰ m I for every symmetric matrix A of balls: the guess, moved down until it is proved."""
    for step in STEPS:
        m = guess - step * scale
        if is_positive(shifted(matrix, m)):
            return m
    return down(min(matrix[i, i] - _row_sum(matrix, i) for i in range(matrix.nrows())))  # Gershgorin


def _row_sum(matrix: Any, i: int) -> Any:
    from flint import arb

    return sum((abs(matrix[i, j]) for j in range(matrix.ncols()) if j != i), arb(0))


def spectrum_bounds(matrix: Any) -> tuple[float, float]:
    """(m, L) with m I ⪯ A ⪯ L I.

    Args:
        matrix: A, (d, d), floats, exactly symmetric; or a matrix of balls, for each symmetric matrix in it.
    """
    from flint import ctx

    given = isinstance(matrix, np.ndarray)
    if given and not (matrix - np.diag(np.diag(matrix))).any():
        return float(np.diag(matrix).min()), float(np.diag(matrix).max())
    if given and len(matrix) > BALLS:
        none = np.zeros_like(matrix)
        with np.errstate(over="ignore", invalid="ignore"):  # such bounds come out infinite or NaN
            return lowest_eigenvalue(matrix, none), -lowest_eigenvalue(-matrix, none)
    values = np.linalg.eigvalsh(matrix if given else middle(matrix))
    scale = float(np.abs(values).max())
    with ctx.workprec(BITS):
        balls = ball_matrix(matrix) if given else matrix
        return (
            _lowest(balls, float(values[0]), scale),
            -_lowest(-balls, -float(values[-1]), scale),
        )


# Floats with their errors ---------------------------------------------------------------------------------------------


def gamma(n: int) -> float:
    """Relative error of a sum of n products, with room for the rounding of the bound that it is used in."""
    return (n + 4) * UNIT


def product(a: np.ndarray, b: np.ndarray, radius: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """A B for exact A and B ± radius (elementwise): its centre, and a radius that includes every rounding."""
    size = a.shape[1]
    bound = gamma(size) * (np.abs(a) @ np.abs(b))
    if radius is not None:
        bound = bound + (np.abs(a) @ radius) * (1 + gamma(size))
    return a @ b, bound * (1 + 4 * UNIT) + TINY


def frobenius(a: np.ndarray) -> float:
    """An upper bound of √Σ a²: it bounds the spectral norm."""
    return math.sqrt(float((a * a).sum()) * (1 + gamma(a.size)) + TINY) * (1 + 4 * UNIT)


def lowest_eigenvalue(matrix: np.ndarray, radius: np.ndarray) -> float:
    """m with A ⪰ m I for every symmetric A within `radius` of a symmetric matrix of floats.

    A - s I = RᵀR + F for the Cholesky factor R that LAPACK found, so that A ⪰ (s - |F|) I, whatever R is.
    """
    values = np.linalg.eigvalsh(matrix)
    scale, n = float(np.abs(values).max()), len(matrix)
    for step in STEPS[2:]:
        shift = float(values[0]) - max(step * n * scale, TINY)
        moved = matrix - shift * np.eye(n)
        try:
            factor = np.linalg.cholesky(moved)
        except np.linalg.LinAlgError:
            continue
        middle, rest = product(factor, factor.T)
        off = np.abs(moved - middle) * (1 + 4 * UNIT)
        rest = rest + radius + off + UNIT * (np.abs(matrix) + abs(shift) * np.eye(n) + np.abs(middle))
        return math.nextafter(shift - frobenius(rest), -math.inf)
    return -frobenius(np.abs(matrix) * (1 + UNIT) + radius)


def norm(matrix: np.ndarray, radius: np.ndarray | None = None) -> float:
    """An upper bound of the spectral norm of every matrix within `radius` (elementwise) of a matrix of floats."""
    matrix = np.asarray(matrix, np.float64)
    extra = 0.0 if radius is None else frobenius(radius)
    if not matrix.any():
        return extra
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    if tall.shape[1] == 1:
        return up(Fraction(frobenius(tall)) + Fraction(extra))
    gram, error = product(np.ascontiguousarray(tall.T), tall)
    gram, error = (gram + gram.T) / 2, np.maximum(error, error.T) + UNIT * np.abs(gram) + TINY
    square = max(-lowest_eigenvalue(-gram, error), 0.0)
    return up(Fraction(math.sqrt(square) * (1 + 2 * UNIT)) + Fraction(extra))
