"""The Fokker–Planck operator on a box: Scharfetter–Gummel fluxes between the cells of a regular grid.

A density is its cell masses m, shape `shape`, and obeys the master equation of a reversible jump process,
dm/dt = A m. Between neighbours i, j with energies Eᵢ, Eⱼ the rate i -> j is (ε/h²) B((Eⱼ - Eᵢ)/ε) with the
Bernoulli function B(z) = z/(eᶻ - 1); nothing crosses the border. Hence the columns of A sum to 0, off-diagonals
are nonnegative, and exp(-E(cell centre)/ε)/Z is an exact equilibrium, in detailed balance. Everything that
involves the Gibbs masses is computed from their logarithm, because they underflow where the energy is high.

A cell with E = +inf lies behind a hard wall: no face of it has a rate and it holds no mass, so that all of this stays
true of the cells that remain, as on a smaller grid.

Reference: Scharfetter and Gummel, IEEE Trans. Electron Devices 16 (1969) 64.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.special import logsumexp

TINY = np.finfo(np.float64).tiny  # stands for an empty cell where a logarithm of its mass is needed


def bernoulli(z: np.ndarray) -> np.ndarray:
    """B(z) = z/(eᶻ - 1), without overflow for any finite z; B(0) = 1."""
    return _ratio(np.abs(z)) * np.exp(-np.maximum(z, 0.0))


def _ratio(size: np.ndarray) -> np.ndarray:
    """B(-size) for size ≥ 0."""
    loss = -np.expm1(-size)
    return np.divide(size, loss, out=np.ones_like(size), where=loss > 0)


def _log_bernoulli_slope(z: np.ndarray) -> np.ndarray:
    """d log B(z)/dz = 1/z - 1/(1 - e⁻ᶻ); -1/2 at 0."""
    small = np.abs(z) < 1e-2
    safe = np.where(small, 1.0, z)
    with np.errstate(over="ignore"):
        far = 1 / safe + 1 / np.expm1(-safe)
    return np.where(small, -0.5 + z / 12 - z**3 / 720, far)


def _log_conductance(z: np.ndarray) -> np.ndarray:
    """log of (z/2)/sinh(z/2), which is √(B(z) B(-z)); 0 at z = 0."""
    size = np.abs(z)
    return np.log(_ratio(size)) - size / 2


def before(axis: int) -> tuple[slice, ...]:
    """Index of the cells on the lower side of the faces of `axis`."""
    return (slice(None),) * axis + (slice(None, -1),)


def after(axis: int) -> tuple[slice, ...]:
    """Index of the cells on the upper side of the faces of `axis`."""
    return (slice(None),) * axis + (slice(1, None),)


@dataclass(frozen=True, eq=False)
class FiniteVolume:
    """The generator A of one energy at one temperature.

    Args:
        energy: E at the cell centres, shape `shape`; finite, or +inf on cells that are removed, but not on all.
        spacing: h per axis.
        temperature: ε ≥ 0; at 0 the fluxes are the upwind ones of the gradient flow.
        curved: multiply both rates of a face by exp(h²∂²E/(6ε)), which removes the leading error of slow modes.
    """

    energy: np.ndarray
    spacing: tuple[float, ...]
    temperature: float
    curved: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self.energy.shape

    @cached_property
    def walls(self) -> np.ndarray | None:
        """Which cells are removed, shape `shape`; None where there are none, and then nothing is masked."""
        return None if self.energy.max() < np.inf else np.isposinf(self.energy)

    @cached_property
    def _level(self) -> np.ndarray:
        """The energy with 0 on the removed cells, so that differences exist; what they give there is then shut."""
        return self.energy if self.walls is None else np.where(self.walls, 0.0, self.energy)

    @cached_property
    def _open(self) -> list[np.ndarray]:
        """Per axis, which faces lie between two cells that remain."""
        kept = np.isfinite(self.energy)
        return [kept[before(axis)] & kept[after(axis)] for axis in range(kept.ndim)]

    def _shut(self, axis: int, values: np.ndarray, shut: float) -> np.ndarray:
        """Values on the faces of `axis`, with `shut` on those of removed cells."""
        return values if self.walls is None else np.where(self._open[axis], values, shut)

    @cached_property
    def log_gibbs(self) -> np.ndarray:
        """log of the Gibbs masses, shape `shape`; finite wherever the energy is, -inf on removed cells."""
        scaled = -(self.energy - self.energy.min()) / self.temperature
        return scaled - logsumexp(scaled)

    @cached_property
    def forward(self) -> list[np.ndarray]:
        """Per axis, the rate from the cell below to the cell above each face [1/time]."""
        return [self._rates(axis, 1.0) for axis in range(self.energy.ndim)]

    @cached_property
    def backward(self) -> list[np.ndarray]:
        """Per axis, the rate from the cell above to the cell below each face [1/time]."""
        return [self._rates(axis, -1.0) for axis in range(self.energy.ndim)]

    def _rates(self, axis: int, sign: float) -> np.ndarray:
        climb, h = sign * np.diff(self._level, axis=axis), self.spacing[axis]
        if self.temperature == 0:
            return self._shut(axis, np.maximum(-climb, 0.0) / h**2, 0.0)
        rates = bernoulli(climb / self.temperature) * (self.temperature / h**2) * np.exp(self._log_correction[axis])
        return self._shut(axis, rates, 0.0)

    @cached_property
    def _log_correction(self) -> list[np.ndarray]:
        """Per axis, the logarithm of what multiplies both rates of a face; at most ½ in size, 0 unless curved.

        Scharfetter–Gummel weights a face by (1 - z²/24 - h²∂²E/(8ε)) ρ* to second order. With the weight
        (1 + h²∂²ρ*/(24ρ*))⁻¹ ρ* = (1 - z²/24 + h²∂²E/(24ε)) ρ* the slowest mode of a well has no error of that order.

        ∂²E of a face is the mean over its two cells. A cell beside the border or a wall has no second difference of its
        own, and takes that of its neighbour across the face: E is smooth up to the wall, and the jump there is none of
        its curvature. Where neither has one, in a passage of two cells, there is no correction.
        """
        if not self.curved:
            return [np.zeros(1)] * self.energy.ndim
        return [np.clip(self._bend(axis, self._level), -0.5, 0.5) for axis in range(self.energy.ndim)]

    def _bend(self, axis: int, level: np.ndarray) -> np.ndarray:
        """h²∂²E/(6ε) on the faces of `axis`, of an energy with these values."""
        bend = np.diff(np.moveaxis(level, axis, 0), n=2, axis=0)
        if self.walls is None:
            bend = np.concatenate([bend[:1], bend, bend[-1:]])
            twice = bend[:-1] + bend[1:]
        else:
            face = np.moveaxis(self._open[axis], axis, 0)
            known = face[:-1] & face[1:]
            pad = [(1, 1)] + [(0, 0)] * (bend.ndim - 1)
            bend, known = np.pad(np.where(known, bend, 0.0), pad), np.pad(known, pad)
            twice = (bend[:-1] + bend[1:]) * np.where(known[:-1] & known[1:], 1.0, 2.0)
        return np.moveaxis(twice / (12 * self.temperature), 0, axis)

    @cached_property
    def log_symmetric(self) -> list[np.ndarray]:
        """Per axis, log √(forward · backward): the off-diagonals of the symmetrised generator; -inf at a wall."""
        return [
            self._shut(
                axis,
                _log_conductance(np.diff(self._level, axis=axis) / self.temperature)
                + np.log(self.temperature / h**2)
                + self._log_correction[axis],
                -np.inf,
            )
            for axis, h in enumerate(self.spacing)
        ]

    @cached_property
    def outflow(self) -> np.ndarray:
        """The total rate out of each cell, minus the diagonal of A, shape `shape`."""
        total = np.zeros(self.shape)
        for axis, (up, down) in enumerate(zip(self.forward, self.backward, strict=True)):
            total[before(axis)] += up
            total[after(axis)] += down
        return total

    @cached_property
    def generator(self) -> sparse.csc_matrix:
        """A, (N, N), cells in C order; the rows and columns of removed cells are empty."""
        return self._assemble(self.forward, self.backward)

    def derivative(self, change: np.ndarray) -> sparse.csc_matrix:
        """dA/ds of the generator of E + s·change at s = 0, (N, N); its columns sum to 0.

        Args:
            change: at the cells, shape `shape`; what it is on removed cells does not matter.
        """
        level = change if self.walls is None else np.where(self.walls, 0.0, change)
        up, down = [], []
        for axis, (rise, fall) in enumerate(zip(self.forward, self.backward, strict=True)):
            z = np.diff(self._level, axis=axis) / self.temperature
            step = np.diff(level, axis=axis) / self.temperature
            bend = self._correction_derivative(axis, level)
            up.append(rise * (_log_bernoulli_slope(z) * step + bend))
            down.append(fall * (-_log_bernoulli_slope(-z) * step + bend))
        outflow = np.zeros(self.shape)
        for axis, (rise, fall) in enumerate(zip(up, down, strict=True)):
            outflow[before(axis)] += rise
            outflow[after(axis)] += fall
        return self._assemble(up, down, outflow)

    def _correction_derivative(self, axis: int, level: np.ndarray) -> Any:
        """Of `_log_correction`, which is linear in the energy where it is not clipped."""
        if not self.curved:
            return 0.0
        linear = self._bend(axis, level)
        return np.where(np.abs(self._bend(axis, self._level)) < 0.5, linear, 0.0)

    @cached_property
    def symmetric(self) -> sparse.csc_matrix:
        """ρ*^{-1/2} A ρ*^{1/2}, symmetric negative semidefinite, with the same spectrum as A."""
        entries = [np.exp(values) for values in self.log_symmetric]
        return self._assemble(entries, entries)

    @cached_property
    def components(self) -> list[np.ndarray]:
        """The cells that remain, by their index in C order, one array for each part that no open face leaves."""
        if self.walls is None:
            return [np.arange(self.energy.size)]
        faces = [values.astype(float) for values in self._open]
        label = connected_components(self._assemble(faces, faces), directed=False)[1]
        kept = np.flatnonzero(~self.walls)
        kept = kept[np.argsort(label[kept], kind="stable")]
        return np.split(kept, np.flatnonzero(np.diff(label[kept])) + 1)

    def _assemble(
        self, up: list[np.ndarray], down: list[np.ndarray], outflow: np.ndarray | None = None
    ) -> sparse.csc_matrix:
        index = np.arange(self.energy.size).reshape(self.shape)
        out = self.outflow if outflow is None else outflow
        rows, columns, values = [index.ravel()], [index.ravel()], [-out.ravel()]
        for axis, (rise, fall) in enumerate(zip(up, down, strict=True)):
            low, high = index[before(axis)].ravel(), index[after(axis)].ravel()
            rows += [high, low]
            columns += [low, high]
            values += [rise.ravel(), fall.ravel()]
        entries = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
        matrix = sparse.csc_matrix(entries, shape=(index.size, index.size))
        if self.walls is not None:
            matrix.eliminate_zeros()
        return matrix

    def relative_log(self, masses: np.ndarray) -> np.ndarray:
        """log(m/ρ*), with the smallest normal float in place of an empty cell; inf on removed cells."""
        return np.log(np.maximum(masses, TINY)) - self.log_gibbs

    def average(self, masses: np.ndarray, values: np.ndarray) -> float:
        """Σ m values for values that are inf on removed cells, with 0 · inf = 0: inf if those hold mass."""
        if self.walls is not None:
            held = masses > 0
            masses, values = masses[held], values[held]
        return float(np.sum(masses * values))

    def kl(self, masses: np.ndarray) -> float:
        """Σ m log(m/ρ*) [nats], with 0 log 0 = 0; inf if removed cells hold mass."""
        return self.average(masses, self.relative_log(masses))

    def dissipation(self, masses: np.ndarray) -> float:
        """-dKL/dt = Σ over faces of (flux)·(drop of log(m/ρ*)), each term of which is nonnegative [nats/time]."""
        phi, total = self.relative_log(masses), 0.0
        if self.walls is not None:
            phi = np.where(self.walls, 0.0, phi)  # their faces carry no flow
        for axis, log_rate in enumerate(self.log_symmetric):
            low, high = before(axis), after(axis)
            drop = np.abs(phi[low] - phi[high])
            log_flow = log_rate + (self.log_gibbs[low] + self.log_gibbs[high]) / 2 + np.maximum(phi[low], phi[high])
            total += float(np.sum(np.exp(log_flow) * -np.expm1(-drop) * drop))
        return total
