"""Moving cell masses in time under a finite-volume generator A: exp(tA) m, and backward Euler.

exp(tA) m is a series in A applied matrix-free by one compiled three-term recurrence. Which series is decided by
what float64 can carry:

* "symmetric": Chebyshev series of the symmetrised generator acting on m/√ρ*. Its polynomials are contractions,
  so the rounding error in L1 is at most about 1e-16 ‖m/√ρ*‖₂. Used when that norm is at most 1e3, after
  emptying cells that together hold at most 1e-13 (which costs at most that much in L1).
* "raw": Chebyshev series of A itself. A is not normal, and on an interval of length t its partial sums grow by
  exp((tΛ/2)(√(1 + (2ω/Λ)²) - 1)), where Λ bounds the spectrum and ω is the largest net drift rate; the interval
  is cut so that this stays below 1e3.
* "uniform": uniformisation, a Poisson average of powers of a stochastic matrix: positive and conservative term by
  term whatever the gradient, at a cost linear (not of square root) in tΛ. Used where the drift is so steep that the
  cuts of "raw" would cost more.

References: Tal-Ezer and Kosloff, J. Chem. Phys. 81 (1984) 3967 (Chebyshev propagators); Grassmann, Comput. Oper.
Res. 4 (1977) 47 (uniformisation); Trefethen and Embree, Spectra and Pseudospectra (2005), ch. 14 (growth).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse
from scipy.sparse.linalg import splu
from scipy.special import gammaln, ive

from ctrlgen.plants.finite_volume import FiniteVolume, after, before
from ctrlgen.precision import float64

TERMS = 8192  # length of the coefficient buffer: longer series are cut into several
GROWTH = 1e3  # how far rounding errors may be amplified
DROPPED = 1e-13  # error in L1 that the end of a series, and the cells emptied before it, may each cost
PIECES = 16  # pieces of constant temperature in a record interval, for plants without a step
BATCH = 4000.0  # expected jumps in one uniformisation series


def _neighbour(values: jax.Array, axis: int, offset: int) -> jax.Array:
    """The value in the cell `offset` (±1) further along `axis`; 0 beyond the border."""
    pad = [(0, 0)] * values.ndim
    pad[axis] = (1, 0) if offset < 0 else (0, 1)
    return jnp.pad(values[before(axis) if offset < 0 else after(axis)], pad)


@jax.jit
def _series(
    start: jax.Array,
    diagonal: jax.Array,
    faces: list[tuple[jax.Array, jax.Array]],
    weights: jax.Array,
    degree: jax.Array,
    scale: jax.Array,
    shift: jax.Array,
    memory: jax.Array,
    last: jax.Array,
) -> jax.Array:
    """Σ weights[k] pₖ(M) start for pₖ₊₁ = M pₖ - memory pₖ₋₁ and p₁ = last M, with M = scale A + shift, degree even.

    Clenshaw's backward recurrence (memory 1, last ½: Chebyshev polynomials of M/2; memory 0, last 1: Horner's
    rule), two terms a turn so that no buffer is copied. Degree and coefficients are data: one compilation a shape.
    """
    centre = scale * diagonal + shift
    faces = [(scale * lower, scale * upper) for lower, upper in faces]

    def apply(values: jax.Array) -> jax.Array:
        out = centre * values
        for axis, (lower, upper) in enumerate(faces):
            out = out + lower * _neighbour(values, axis, -1) + upper * _neighbour(values, axis, 1)
        return out

    def turn(i: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        one, two = carry
        k = degree - 2 * i
        new = weights[k] * start + apply(one) - memory * two
        return weights[k - 1] * start + apply(new) - memory * one, new

    one, two = jax.lax.fori_loop(0, degree // 2, turn, (jnp.zeros_like(start), jnp.zeros_like(start)))
    return weights[0] * start + last * apply(one) - memory * two


class Exponential:
    """exp(tA) m for one generator and any t ≥ 0, to about 1e-12 in L1; positive, mass 1.

    Removed cells must be empty, and stay so exactly.
    """

    def __init__(self, volume: FiniteVolume):
        self.volume = volume
        self._spectrum = 2 * float(volume.outflow.max())  # Gershgorin, on the columns of A

    @cached_property
    def _growth(self) -> float:
        """The rate at which partial sums of the raw series may grow [1/time]."""
        net = np.zeros(self.volume.shape)
        for axis, (up, down) in enumerate(zip(self.volume.forward, self.volume.backward, strict=True)):
            drift = np.zeros(self.volume.shape)  # the larger of the two faces of the cell
            drift[before(axis)] = np.abs(up - down)
            drift[after(axis)] = np.maximum(drift[after(axis)], np.abs(up - down))
            net += drift
        return self._spectrum / 2 * (np.hypot(1.0, 2 * float(net.max()) / self._spectrum) - 1)

    @cached_property
    def _diagonal(self) -> jax.Array:
        with float64():
            return jnp.asarray(-self.volume.outflow)

    @cached_property
    def _raw(self) -> list[tuple[jax.Array, jax.Array]]:
        """The rates of A into each cell, per axis."""
        return _facing(self.volume.forward, self.volume.backward)

    @cached_property
    def _symmetric(self) -> tuple[list[tuple[jax.Array, jax.Array]], float, np.ndarray]:
        """The same of the symmetrised generator, with a bound of its spectrum (Gershgorin) and √ρ*."""
        rates = [np.exp(values) for values in self.volume.log_symmetric]
        reach = self.volume.outflow.copy()
        for axis, rate in enumerate(rates):
            reach[before(axis)] += rate
            reach[after(axis)] += rate
        return _facing(rates, rates), float(reach.max()), np.exp(self.volume.log_gibbs / 2)

    @cached_property
    def _log_root(self) -> np.ndarray:
        """log √ρ*, with 0 on removed cells, which are empty."""
        half = self.volume.log_gibbs / 2
        return half if self.volume.walls is None else np.where(self.volume.walls, 0.0, half)

    def __call__(self, masses: np.ndarray, time: float) -> np.ndarray:
        """Advance masses (shape) by `time`."""
        left = float(time)
        while left > 0 and self._spectrum > 0:
            method, span, start = self._plan(masses, left)
            moved = getattr(self, f"_{method}_series")(start, span)
            lost = -float(np.sum(moved[moved < 0]))
            if lost > 1e-9:  # the growth bound is a model: uniformisation is the guarantee behind it
                span = min(span, 2 * BATCH / self._spectrum)
                moved = self._uniform_series(masses, span)
            moved = np.maximum(moved, 0.0)
            masses = moved / moved.sum()
            left = left - span if span < left else 0.0
        return masses

    def _plan(self, masses: np.ndarray, time: float) -> tuple[str, float, np.ndarray]:
        """Which series, for how long, from what."""
        if self.volume.temperature > 0 and (start := self._scaled(masses)) is not None:
            return "symmetric", time, start
        cuts = max(1, int(np.ceil(time * self._growth / np.log(GROWTH))))
        if cuts * _degree(time / cuts * self._spectrum / 2) <= time * self._spectrum / 2:
            return "raw", time / cuts, masses
        return "uniform", min(time, 2 * BATCH / self._spectrum), masses

    def _scaled(self, masses: np.ndarray) -> np.ndarray | None:
        """m/√ρ*, if float64 can carry it: else None."""
        with np.errstate(divide="ignore"):
            size = np.log(masses) - self._log_root
        limit = np.log(GROWTH)
        if size.max() > limit or np.sum(np.exp(2 * size)) > GROWTH**2:
            order = np.argsort(size, axis=None)[::-1]
            drop = int(np.searchsorted(np.cumsum(masses.ravel()[order]), DROPPED))
            size = size.copy()
            size.ravel()[order[:drop]] = -np.inf
            if size.max() > limit or np.sum(np.exp(2 * size)) > GROWTH**2:
                return None
        return np.exp(size)

    def _symmetric_series(self, start: np.ndarray, time: float) -> np.ndarray:
        faces, bound, root = self._symmetric
        return self._chebyshev(start, faces, bound, time, float(np.linalg.norm(start))) * root

    def _raw_series(self, start: np.ndarray, time: float) -> np.ndarray:
        return self._chebyshev(start, self._raw, self._spectrum, time, GROWTH)

    def _chebyshev(self, start: np.ndarray, faces: list, bound: float, time: float, size: float) -> np.ndarray:
        """[-bound, 0] holds the spectrum and `size` bounds the terms; long intervals are cut to the buffer."""
        cuts = 1
        while _degree(time / cuts * bound / 2) >= TERMS - 2:
            cuts *= 2
        z = time / cuts * bound / 2
        k = np.arange(_degree(z) + 1)
        weights = np.where(k == 0, 1.0, 2.0) * ive(k, z)
        weights = weights[: max(2, int(np.sum(np.cumsum(weights[::-1]) > DROPPED / size / cuts)))]
        for _ in range(cuts):
            start = self._run(start, faces, weights, (4 / bound, 2.0, 1.0, 0.5))
        return start

    def _uniform_series(self, start: np.ndarray, time: float) -> np.ndarray:
        rate = self._spectrum / 2
        k = np.arange(int(rate * time + 9 * np.sqrt(rate * time) + 30))
        weights = np.exp(k * np.log(rate * time) - rate * time - gammaln(k + 1.0))
        return self._run(start, self._raw, weights / weights.sum(), (1 / rate, 1.0, 0.0, 1.0))

    def _run(self, start: np.ndarray, faces: list, weights: np.ndarray, rule: tuple[float, ...]) -> np.ndarray:
        degree = len(weights) - 1 + (len(weights) - 1) % 2
        padded = np.zeros(TERMS)
        padded[: len(weights)] = weights
        with float64():
            return np.asarray(_series(start, self._diagonal, faces, padded, degree, *rule))


def _facing(forward: list[np.ndarray], backward: list[np.ndarray]) -> list[tuple[jax.Array, jax.Array]]:
    """Per axis, the rates into each cell from its lower and its upper neighbour, 0 from beyond the border."""
    out = []
    for axis, (up, down) in enumerate(zip(forward, backward, strict=True)):
        lower, upper = ([pad if i == axis else (0, 0) for i in range(up.ndim)] for pad in ((1, 0), (0, 1)))
        with float64():
            out.append((jnp.asarray(np.pad(up, lower)), jnp.asarray(np.pad(down, upper))))
    return out


def _degree(z: float) -> int:
    """A degree beyond which the Chebyshev coefficients of e^{z(x - 1)} are below 1e-18."""
    return int(np.sqrt(84 * z) + 30 + min(z, 30))


class BackwardEuler:
    """m' = (I - hA)⁻¹ m: positive, conservative, and KL falls at every step, however long. First order in h.

    The matrix is an M-matrix, factorised once without pivoting, so that its triangular solves subtract nothing.
    """

    def __init__(self, volume: FiniteVolume, step: float):
        matrix = sparse.identity(volume.energy.size, format="csc") - step * volume.generator
        options = {"SymmetricMode": True, "DiagPivotThresh": 0.0}
        self._solve = splu(matrix.tocsc(), permc_spec="MMD_AT_PLUS_A", options=options).solve

    def __call__(self, masses: np.ndarray) -> np.ndarray:
        moved = np.maximum(self._solve(masses.ravel()).reshape(masses.shape), 0.0)
        return moved / moved.sum()


def constant_pieces(
    schedule: Callable | None, start: float, step: float, count: int, pieces: int
) -> Iterator[tuple[float, float]]:
    """(factor, duration) with which `count` steps from time `start` are taken: the factor is constant on each of
    `pieces` equal parts of a step, at its value in the middle. Equal neighbours are joined.

    Raises:
        ValueError: the schedule returns a negative or non-finite factor.
    """
    if schedule is None:
        yield 1.0, count * step
        return
    span, held, length = step / pieces, None, 0
    for i in range(count * pieces):
        factor = _factor(schedule(start + (i + 0.5) * span), start + (i + 0.5) * span)
        if held is not None and factor != held:
            yield held, length * span
            length = 0
        held, length = factor, length + 1
    if held is not None:
        yield held, length * span


def _factor(value: Any, time: float) -> float:
    factor = float(value)
    if not 0 <= factor < np.inf:
        raise ValueError(f"schedule must return a finite factor >= 0; at t = {time:.6g} it returned {factor}.")
    return factor
