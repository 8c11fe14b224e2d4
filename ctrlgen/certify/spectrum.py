"""Extreme eigenvalues of matrices of formulas on a set, estimated in float64; bounds of constant ones, exactly."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import sympy as sp

from ctrlgen.domain import Piece
from ctrlgen.prove.claim import Claim
from ctrlgen.prove.search import minimise
from ctrlgen.prove.witness import ball_value

ROUNDS = 6  # of Dinkelbach's iteration, which converges superlinearly


def definite_slack(matrix: sp.MatrixBase, claim: Claim) -> tuple[float, np.ndarray | None]:
    """An estimate of the smallest eigenvalue on the claim's set, and where it is attained. No proof of anything."""
    where, value = minimise(sp.Matrix(matrix), claim.guards, claim.states, claim.box, claim.equalities)
    return value, where


def slowest(change: Any, metric: Any, piece: Piece, states: tuple[sp.Symbol, ...]) -> tuple[float, np.ndarray | None]:
    """An estimate of the infimum over a piece of the smallest λ with -½ change v = λ metric v, and where it is.

    Args:
        change: (d, d), Ṁ + MJ + JᵀM.
        metric: (d, d), M, positive definite on the piece.

    Reference: Dinkelbach, Management Science 13 (1967) 492, for a metric that depends on the state.
    """
    values = sp.lambdify([list(states)], [list(change), list(metric)], modules=["scipy", "numpy"], cse=True)
    d = len(states)

    def at(x: Any) -> float:
        from scipy.linalg import eigh

        with np.errstate(all="ignore"):
            try:
                a, b = (np.array(v, dtype=float).reshape(d, d) for v in values([float(c) for c in x]))
                return float(eigh(-a / 2, b, eigvals_only=True)[0])
            except (ArithmeticError, ValueError, TypeError, np.linalg.LinAlgError):
                return float("nan")

    if not (change.free_symbols or metric.free_symbols):
        return at(np.zeros(d)), np.zeros(d)
    if not metric.free_symbols:
        try:
            inverse = np.linalg.inv(np.linalg.cholesky(np.array(metric.tolist(), dtype=float)))
        except np.linalg.LinAlgError:
            return float("nan"), None
        plain = np.array_equal(inverse, np.diag(np.diag(inverse))) and len(set(np.diag(inverse))) == 1
        left = sp.Matrix(inverse if not plain else np.eye(d) * inverse[0, 0])
        where, value = minimise(-left * change * left.T / 2, piece.guards, states, piece.box)
        return (value, None) if where is None else (_finite(at(where), value), where)
    where, _ = minimise(-change, piece.guards, states, piece.box)
    if where is None:
        return float("nan"), None
    best, place = at(where), where
    for _ in range(ROUNDS):
        if not np.isfinite(best) or abs(best) > 1e12:
            break
        shifted = -(change / 2 + sp.Rational(Fraction(best)) * metric)
        where, value = minimise(shifted, piece.guards, states, piece.box, points=[place])
        if where is None or not value < 0:
            break
        lower = at(where)
        if not lower < best - 1e-13 * max(1.0, abs(best)):
            break
        best, place = lower, where
    return best, place


def _finite(value: float, other: float) -> float:
    return value if np.isfinite(value) else other


def bounds_of_constant(matrix: Any) -> tuple[Any, Any]:
    """Rationals low ≤ λ_min and λ_max ≤ high of a matrix of numbers, within about 1e-12 of them, exactly checked.

    Raises:
        ValueError: M is not positive definite.
    """
    from flint import fmpq, fmpq_mat

    from ctrlgen.prove.program import pivots

    d = matrix.rows
    balls = [[ball_value(matrix[i, j], {}, 212) for j in range(d)] for i in range(d)]
    error = fmpq(0)
    rows = []
    for i in range(d):
        row = []
        for j in range(d):
            if matrix[i, j].is_Rational:
                row.append(fmpq(int(matrix[i, j].p), int(matrix[i, j].q)))
            else:
                middle, radius = (_exact(part) for part in (balls[i][j].mid(), balls[i][j].rad()))
                row.append(middle)
                error = max(error, radius)
        rows.append(row)
    error = error * d  # moves no eigenvalue by more
    found = pivots(rows)
    if found is not None and all(v > 0 for v in found):
        low = 1 / _above(fmpq_mat(rows).inv().tolist()) - error
        if low > 0:
            high = _above(rows) + error
            return sp.Rational(int(low.p), int(low.q)), sp.Rational(int(high.p), int(high.q))
    raise ValueError("M must be positive definite; it is not, so it bounds no distances. Pass another metric.")


def _above(rows: list[list[Any]]) -> Any:
    """A rational at or hardly above the largest eigenvalue of a positive definite rational matrix."""
    from flint import fmpq

    from ctrlgen.prove.program import pivots

    scale = max(row[i] for i, row in enumerate(rows))
    floats = np.array([[float(Fraction(int((q / scale).p), int((q / scale).q))) for q in row] for row in rows])
    top = float(np.linalg.eigvalsh((floats + floats.T) / 2)[-1])
    nice = Fraction(top).limit_denominator(1000)
    tries = [nice] if abs(float(nice) - top) < 1e-12 * top else []
    tries += [Fraction(top) * (1 + Fraction(step)) for step in (0.0, *10.0 ** np.arange(-16, 0))]
    for value in tries:
        bound = fmpq(value.numerator, value.denominator) * scale
        if (
            pivots([[(bound if i == j else 0) - q for j, q in enumerate(row)] for i, row in enumerate(rows)])
            is not None
        ):
            return bound
    return sum((row[i] for i, row in enumerate(rows)), fmpq(0))  # the trace


def _exact(ball: Any) -> Any:
    """The rational number that an exact ball holds."""
    from flint import fmpq

    mantissa, exponent = ball.man_exp()
    whole, power = int(mantissa), int(exponent)
    return fmpq(whole << power) if power >= 0 else fmpq(whole, 1 << -power)


def root_ratio_decay(ratio: sp.Rational, rate: sp.Expr, times: np.ndarray) -> Any:
    """√ratio · e^{-rate·t}, rounded up, of the shape of times; a float for a single time."""
    from flint import arb, fmpq

    root = arb(fmpq(int(ratio.p), int(ratio.q))).sqrt()
    speed = ball_value(rate, {}, 106)
    flat = []
    for t in times.ravel():
        high = (root * (-speed * arb(float(t))).exp()).upper()
        value = float(high)
        flat.append(value if arb(value) >= high else float(np.nextafter(value, np.inf)))
    out = np.array(flat).reshape(times.shape)
    return float(out) if times.ndim == 0 else out
