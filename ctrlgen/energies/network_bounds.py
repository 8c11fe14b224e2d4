"""Rigorous bounds of the derivatives of a network, over all states or over a box.

A network is out = w y_L + b with y_l = σ_l(z_l), z_l = W_l y_{l-1} + b_l. Let Δ_l = diag σ_l'(z_l), J_l = ∂z_l/∂x and
g_l = ∂out/∂y_l. Then, for activations with a bounded second derivative,

    ∇out = wᵀ Δ_L W_L ... Δ_1 W_1,    ∇²out = Σ_l J_lᵀ diag(g_l σ_l''(z_l)) J_l.

Each Δ_l lies in C_l ± R_l (diagonal), where C_l may be anything. Splitting the last Δ of a chain first,

    |A Δ_k J_k| ≤ |A C_k W_k Δ_{k-1} J_{k-1}| + |A √R_k| |√R_k J_k|,

and so on with A C_k W_k for A: the centres multiply as matrices, before norms are taken, which is never worse than the
product of the layers' norms times max(|C_l| + R_l) by much and often far better. For the Hessian, Δ has the weights
d_l = max(0, ± g_l σ_l'') of either sign, so that ∇²out ⪯ Σ_l |√d_l J_l|² I, and ⪰ minus the same with the other sign.
(|ΣᵢdᵢJᵢJᵢᵀ| = |√d J|²: the square belongs to the norm of the Jacobian, not to each neuron.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

from ctrlgen.energies.intervals import Intervals
from ctrlgen.energies.spectral import TINY, UNIT, norm, product, up

# Ranges of σ' and of σ'' over the real line, rounded outward; None where σ has kinks. gelu is JAX's form with tanh.
SLOPES = {
    "silu": (-0.09984, 1.09984),
    "relu": (0.0, 1.0),
    "tanh": (0.0, 1.0),
    "softplus": (0.0, 1.0),
    "gelu": (-0.129, 1.129),
}
CURVATURES = {
    "silu": (-0.03692, 0.5),
    "relu": None,
    "tanh": (-0.76981, 0.76981),
    "softplus": (0.0, 0.25),
    "gelu": (-0.10792, 0.79789),
}


LARGEST = 1e30  # of a weight, or of a scale or its inverse


@dataclass(frozen=True)
class NetworkBounds:
    """What holds for a network over a set.

    Args:
        gradient: |∇out| ≤ it.
        hessian: (l, u) with l I ⪯ ∇²out ⪯ u I; None where the network has kinks.
    """

    gradient: float
    hessian: tuple[float, float] | None


class Parameters:
    """The numbers of a network, comparable by their bytes, so that bounds are computed once.

    Args:
        weights: W_1, ..., W_L, w; (out, in) each.
        frequencies: (features, d) of sin and cos, or None.
        activation: L names.
        scale: (d,): the network's argument is x / scale; ones when omitted.
    """

    def __init__(self, weights: Sequence[Any], frequencies: Any, activation: tuple[str, ...], scale: Any = None):
        self.weights = [np.ascontiguousarray(w, np.float64) for w in weights]
        self.frequencies = None if frequencies is None else np.ascontiguousarray(frequencies, np.float64)
        self.activation = activation
        self.dim = self.weights[0].shape[1] if frequencies is None else self.frequencies.shape[1]  # pyright: ignore
        self.scale = np.ones(self.dim) if scale is None else np.ascontiguousarray(scale, np.float64)
        digest = hashlib.blake2b(repr(activation).encode())
        for array in (*self.weights, self.scale, *(() if self.frequencies is None else (self.frequencies,))):
            digest.update(repr(array.shape).encode() + array.tobytes())
        self.digest = digest.digest()

    @property
    def usable(self) -> bool:
        """Are all numbers finite, and neither so large nor so small that their products leave the range of floats?"""
        arrays = [*self.weights, *(() if self.frequencies is None else (self.frequencies,))]
        moderate = self.scale.max() < LARGEST and self.scale.min() > 1 / LARGEST
        return bool(moderate and all(np.isfinite(a).all() and np.abs(a).max() < LARGEST for a in arrays))

    def __hash__(self) -> int:
        return hash(self.digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Parameters) and self.digest == other.digest


@lru_cache(maxsize=64)
def network_bounds(parameters: Parameters) -> NetworkBounds:
    """Bounds over all states, in the units of x.

    Takes 8 ms for a network 2-64-64-64-1, 30 ms for width 128 and 0.25 s for 64-320-320-320-1 on one core; a second
    call is a look-up.

    Raises:
        ValueError: the numbers are not finite, or so large or small that floats could not hold their products.
    """
    if not parameters.usable:
        raise ValueError("the weights must be finite numbers of moderate size; got others.")
    names = parameters.activation
    slopes = [_everywhere(SLOPES[name], len(w)) for name, w in zip(names, parameters.weights, strict=False)]
    curvatures = None
    if all(CURVATURES[name] is not None for name in names):
        curvatures = [_everywhere(CURVATURES[name], len(w)) for name, w in zip(names, parameters.weights, strict=False)]
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            return chain_bounds(parameters, slopes, curvatures)
    except (np.linalg.LinAlgError, OverflowError):
        raise ValueError("the bounds of this network are beyond the range of floats.") from None


def _everywhere(ends: Any, size: int) -> Intervals:
    return Intervals.between(np.full(size, ends[0]), np.full(size, ends[1]))


def chain_bounds(
    parameters: Parameters, slopes: Sequence[Intervals], curvatures: Sequence[Intervals] | None
) -> NetworkBounds:
    """Bounds over a set of states, where σ_l' and σ_l'' of neuron i lie in slopes[l-1][i] and curvatures[l-1][i]."""
    chain = _Chain(parameters, slopes)
    gradient = chain.bound(chain.weights[-1], len(slopes))
    if curvatures is None:
        return NetworkBounds(gradient, None)
    sums = [Fraction(0), Fraction(0)]
    outer = chain.outer()
    for layer, (g, curvature) in enumerate(zip(outer[1:], curvatures, strict=True), start=1):
        d = g.times(curvature)
        for sign, size in enumerate((np.maximum(-d.low, 0), np.maximum(d.high, 0))):
            if size.any():
                sums[sign] += Fraction(chain.bound(_rows(_root(size), chain.weights[layer - 1]), layer - 1)) ** 2
    if parameters.frequencies is not None:
        # -(g_s sin + g_c cos) ω ωᵀ for each frequency, of size √(g_s² + g_c²)
        g_sin, g_cos = np.split(outer[0].size[parameters.dim :], 2)
        size = np.sqrt(g_sin * g_sin + g_cos * g_cos) * (1 + 8 * UNIT) + TINY
        rest = Fraction(norm(*_rows(_root(size), chain.frequencies))) ** 2
        sums = [s + rest for s in sums]
    return NetworkBounds(gradient, (-up(sums[0]), up(sums[1])))


Matrix = tuple[np.ndarray, np.ndarray]  # centre and radius, elementwise


def _root(values: np.ndarray) -> np.ndarray:
    """√values, rounded up."""
    return np.sqrt(values) * (1 + 4 * UNIT)


def _rows(factor: np.ndarray, matrix: Matrix) -> Matrix:
    """diag(factor) M."""
    return _scaled(factor[:, None], matrix)


def _scaled(factor: np.ndarray, matrix: Matrix) -> Matrix:
    mid = factor * matrix[0]
    return mid, (np.abs(factor) * matrix[1] + UNIT * np.abs(mid)) * (1 + 4 * UNIT) + TINY


def _times(a: Matrix, b: Matrix) -> Matrix:
    mid, rad = product(a[0], b[0], b[1])
    if a[1].any():
        extra = a[1] @ (np.abs(b[0]) + b[1])
        rad = (rad + extra * (1 + UNIT * (len(b[0]) + 8))) * (1 + 4 * UNIT)
    return mid, rad


class _Chain:
    """The chains of a network with Δ_l in C_l ± R_l; layer 0 are the features, whose output is y_0."""

    def __init__(self, parameters: Parameters, slopes: Sequence[Intervals]):
        d = parameters.dim
        ones = [(w, np.zeros_like(w)) for w in parameters.weights]
        self.weights: list[Matrix] = ones
        self.centres = [s.mid for s in slopes]
        self.roots = [_root(s.rad * (1 + UNIT)) for s in slopes]
        self.slopes, self.dim = slopes, d
        inverse = (1 / parameters.scale)[None]
        self.inverse: Matrix = (inverse, (UNIT if (parameters.scale != 1).any() else 0.0) * inverse)
        self.featured = parameters.frequencies is not None
        if self.featured:
            frequencies = np.asarray(parameters.frequencies)
            self.frequencies = self._in_states((frequencies, np.zeros_like(frequencies)))
            self._frequency = norm(*self.frequencies)
        self.jacobian: list[float] = []  # of √R_l J_l, by layer
        for layer, (root, w) in enumerate(zip(self.roots, self.weights, strict=False)):
            self.jacobian.append(self.bound(_rows(root, w), layer))

    def _in_states(self, a: Matrix) -> Matrix:
        """A S⁻¹."""
        mid = a[0] * self.inverse[0]
        rad = a[1] * (np.abs(self.inverse[0]) + self.inverse[1]) + np.abs(a[0]) * self.inverse[1] + UNIT * np.abs(mid)
        return mid, rad * (1 + 8 * UNIT) + TINY if (rad > 0).any() and self.inverse[1].any() else a[1]

    def bound(self, a: Matrix, layer: int) -> float:
        """Of |A ∂y_layer/∂x|."""
        total = Fraction(0)
        for k in range(layer - 1, -1, -1):
            total += Fraction(norm(*_scaled(self.roots[k][None], a))) * Fraction(self.jacobian[k])
            a = _times(_scaled(self.centres[k][None], a), self.weights[k])
        if not self.featured:
            return up(total + Fraction(norm(*self._in_states(a))))
        # y_0 = (x, sin Ωx, cos Ωx): its Jacobian is (I, (diag cos; -diag sin) Ω), and |(cos; -sin)| = 1 by frequency
        d = self.dim
        plain = self._in_states((a[0][:, :d], a[1][:, :d]))
        return up(total + Fraction(norm(*plain)) + Fraction(norm(a[0][:, d:], a[1][:, d:])) * Fraction(self._frequency))

    def outer(self) -> list[Intervals]:
        """g_0, ..., g_L: by neuron, in interval arithmetic and by the norms of the chains, whichever is tighter."""
        count = len(self.slopes)
        out = [Intervals(self.weights[-1][0][0], np.zeros(self.weights[-1][0].shape[1]))]
        for layer in range(count, 0, -1):
            plain = (out[0].times(self.slopes[layer - 1]))[None] @ Intervals(*self.weights[layer - 1])
            out.insert(0, plain[0].meet(self._through(layer - 1)))
        return out

    def _through(self, layer: int) -> Intervals:
        """g_layer, from w C_L W_L ... C W_{layer+1} and the columns of the chains that leave it."""
        columns: dict[int, np.ndarray] = {}  # bounds of |√R_k ∂z_k/∂y_layer eᵢ| by neuron i
        count = len(self.slopes)
        for k in range(layer, count + 1):
            a = self.weights[k] if k == count else _rows(self.roots[k], self.weights[k])
            total = np.zeros(self.weights[layer][0].shape[1])
            for j in range(k - 1, layer - 1, -1):
                total = total + norm(*_scaled(self.roots[j][None], a)) * columns[j]
                a = _times(_scaled(self.centres[j][None], a), self.weights[j])
            if k == count:
                return Intervals(a[0][0], (a[1][0] + total) * (1 + (count + 8) * UNIT) + TINY)
            reach = np.abs(a[0]) + a[1]
            square = (reach * reach).sum(axis=0) * (1 + UNIT * (len(reach) + 8))
            columns[k] = (np.sqrt(square) + total) * (1 + (count + 8) * UNIT) + TINY
        raise AssertionError
