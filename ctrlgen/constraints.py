"""Several constraints h_j(x, t) ≥ 0 at once on a batch of particles: the safe set is where all of them hold."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ctrlgen.constraint import SAFETY, Constraint, quadratic
from ctrlgen.rows import every, moved

SWEEPS = 8  # over all constraints, on the way back inside
HALVINGS = 6  # of the step, where sweeps did not lead inside
FEW = 4  # half-spaces that are swept one by one, without a loop
EXACT = jax.lax.Precision.HIGHEST  # of products: the default of some devices rounds to 10 bits


class Constraints:
    """Several constraints at once: the safe set is where all of them hold.

    Args:
        parts: at least one, all of one dimension.
    """

    def __init__(self, parts: Sequence[Constraint]):
        self.parts = tuple(parts)
        self.dim = self.parts[0].dim
        self._affine = self._read_affine()

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Any:
        return iter(self.parts)

    @property
    def moving(self) -> bool:
        """Whether a part moves with time."""
        return any(p.moving for p in self.parts)

    @property
    def concave(self) -> bool:
        """Whether the safe set is certainly convex, every h being concave."""
        return all(p.concave for p in self.parts)

    @property
    def _matrix(self) -> tuple[np.ndarray, np.ndarray] | None:
        """(A, b) of many half-spaces, for which one matrix product does; a few are faster one by one."""
        return self._affine if len(self) > FEW else None

    def _read_affine(self) -> tuple[np.ndarray, np.ndarray] | None:
        """(A, b) with h = b - A x where every part is a half-space."""
        if any(p.shape is None or p.shape.kind != "half-space" for p in self.parts):
            return None
        forms = [form for p in self.parts if (form := quadratic(p)) is not None]
        a = -np.array([[float(v) for v in slope] for _, slope, _ in forms])
        return a, np.array([float(constant) for _, _, constant in forms])

    def values(self, x: Any, t: Any = 0.0) -> Any:
        """h, (m, ...)."""
        if self._matrix is not None:
            a, b = (jnp.asarray(v, x.dtype) for v in self._matrix)
            return b.reshape(-1, *(1,) * (x.ndim - 1)) - jnp.tensordot(a, x, axes=1, precision=EXACT)
        return jnp.stack([p.value(x, t) for p in self.parts])

    def gradients(self, x: Any, t: Any = 0.0) -> Any:
        """∇h, (m, d, ...), with trailing axes of length 1 where it is constant."""
        if self._affine is not None:
            return -jnp.asarray(self._affine[0], x.dtype).reshape(len(self), self.dim, *(1,) * (x.ndim - 1))
        return jnp.stack([p.gradient(x, t) for p in self.parts])

    def rates(self, x: Any, t: Any = 0.0) -> Any:
        """∂h/∂t, (m, ...)."""
        return jnp.stack([p.rate(x, t) for p in self.parts])

    def curvatures(self, x: Any, t: Any = 0.0, mobility: Any = None) -> Any:
        """tr(K ∇²h), (m, ...)."""
        if self._affine is not None:
            return jnp.zeros((len(self), *x.shape[1:]), x.dtype)
        return jnp.stack([p.curvature(x, t, mobility) for p in self.parts])

    def floors(self, x: Any, t: Any = 0.0, slack: Any = None) -> Any:
        """How far above 0 the computed values have to be, (m, ...)."""
        if self._matrix is not None:
            a, b = (np.abs(v) for v in self._matrix)
            # a row along one axis with a coefficient of ±1 has an exact product
            terms = np.count_nonzero(a, axis=1)
            terms = np.where((terms == 1) & (a.max(axis=1) == 1), 0, terms + 2)
            size = jnp.asarray(b, x.dtype).reshape(-1, *(1,) * (x.ndim - 1)) + jnp.abs(self.values(x, t))
            size = size + jnp.tensordot(jnp.asarray(terms[:, None] * a, x.dtype), jnp.abs(x), axes=1, precision=EXACT)
            return jnp.asarray(SAFETY * float(np.finfo(np.dtype(x.dtype)).eps) / 2, x.dtype) * size
        slack = np.zeros(len(self)) if slack is None else slack
        return jnp.stack([p.floor(x, t, slack[j]) for j, p in enumerate(self.parts)])

    def calibrate(self, points: np.ndarray) -> np.ndarray:
        """The slack of every part, (m,)."""
        return np.array([p.calibrate(points) for p in self.parts])

    def inside(self, x: Any, t: Any = 0.0, slack: Any = None, levels: Any = 0.0) -> Any:
        """Whether h ≥ level certainly holds for all, (...) bool."""
        return every(self.values(x, t) - levels >= self.floors(x, t, slack))

    def at(self, points: Any, t: float = 0.0) -> np.ndarray:
        """h in float64 at points (n, d), (n, m)."""
        if self._affine is not None:
            return self._affine[1] - np.atleast_2d(np.asarray(points, np.float64)) @ self._affine[0].T
        return np.stack([p.at(points, t) for p in self.parts], axis=-1)

    def returned(
        self, x: Any, before: Any, t: Any, slack: Any, levels: Any, mirror: bool, mobility: Any = None
    ) -> tuple[Any, Any]:
        """Bring a batch back inside, and say which particles had left.

        Sweeps over the constraints, each particle to its mirror image or projection where it violates one; where that
        does not lead inside a set at rest, the step is halved; and at last the particle stays where it was, if that is
        inside. A particle that is no longer finite is left as it is: that is a failure of the run, not of the set.

        Args:
            x, before: (d, n), after and before the step.
            slack, levels: (m,) and (m, n) or 0.
            mirror, mobility: as in `Constraint.returned`.

        Returns:
            (d, n), and (n,) bool.
        """
        start = self.inside(x, t, slack, levels)
        static = not self.moving and np.ndim(levels) == 0
        levels = jnp.broadcast_to(jnp.asarray(levels, x.dtype), (len(self), *x.shape[1:]))

        def more(carry: Any) -> Any:
            _, good, i = carry
            return ~good.all() & (i < SWEEPS + HALVINGS)

        # halving leads to where the particle was, which is inside if the set has not moved
        sweeps = SWEEPS if static else SWEEPS + HALVINGS

        def body(carry: Any) -> Any:
            y, good, i = carry
            swept = self._swept(y, t, slack, levels, mirror, mobility)
            swept = jnp.where(every(jnp.isfinite(swept)), swept, y)
            moved = jnp.where(i < sweeps, swept, before + (y - before) / 2)
            y = jnp.where(good, y, moved)
            return y, self.inside(y, t, slack, levels) | lost, i + 1

        lost = ~every(jnp.isfinite(x))
        y, good, _ = jax.lax.while_loop(more, body, (x, start | lost, jnp.int32(0)))
        return jnp.where(~good & (static | self.inside(before, t, slack, levels)), before, y), ~start

    def _swept(self, x: Any, t: Any, slack: Any, levels: Any, mirror: bool, mobility: Any) -> Any:
        if self._box is not None and np.ndim(mobility) < 2:
            return self._swept_box(x, slack, levels, mirror)
        if self._matrix is not None:
            return self._swept_affine(x, slack, levels, mirror, mobility)
        for j, part in enumerate(self.parts):
            floor = part.floor(x, t, 0.0 if slack is None else slack[j])
            x = part.returned(x, t, floor, levels[j], mirror, mobility)
        return x

    @cached_property
    def _box(self) -> tuple[np.ndarray, np.ndarray] | None:
        """(rows of the tightest lower side, of the upper side) per coordinate, -1 without one; None for other sets."""
        if self._affine is None or (np.count_nonzero(self._affine[0], axis=1) != 1).any():
            return None
        low, high = np.full(self.dim, -1), np.full(self.dim, -1)
        for j, (row, b) in enumerate(zip(*self._affine, strict=True)):
            i = int(np.flatnonzero(row)[0])
            side = high if row[i] > 0 else low
            if side[i] < 0:
                side[i] = j
                continue
            known = self._affine[1][side[i]] / self._affine[0][side[i], i]
            if (b / row[i] < known) == (row[i] > 0):
                side[i] = j
        return low, high

    def _swept_box(self, x: Any, slack: Any, levels: Any, mirror: bool) -> Any:
        assert self._box is not None
        assert self._affine is not None
        floors = self.floors(x, 0.0, slack)
        for rows, sign in zip(self._box, (-1.0, 1.0), strict=True):
            used = rows >= 0
            row = np.where(used, rows, 0)
            a = np.where(used, np.abs(self._affine[0][row, np.arange(self.dim)]), 1.0)
            b = self._affine[1][row]
            shift = (levels[row] + 2 * floors[row]) / jnp.asarray(a, x.dtype)[:, None]
            shift = shift + jnp.asarray(2 * float(jnp.finfo(x.dtype).eps) * np.abs(b / a), x.dtype)[:, None]
            bound = jnp.asarray(sign * b / a, x.dtype)[:, None] - sign * shift
            beyond = jnp.asarray(used)[:, None] & (sign * (x - bound) > 0)
            x = jnp.where(beyond, 2 * bound - x if mirror else bound, x)
        return x

    def _swept_affine(self, x: Any, slack: Any, levels: Any, mirror: bool, mobility: Any) -> Any:
        """Half-space after half-space, in a loop: there may be many."""
        assert self._matrix is not None
        a, b = (jnp.asarray(v, x.dtype) for v in self._matrix)
        normals = moved(mobility, a.T).T
        square = jnp.sum(a * normals, axis=1)
        floors = self.floors(x, 0.0, slack)

        def one(j: Any, y: Any) -> Any:
            value = b[j] - jnp.tensordot(a[j], y, axes=1, precision=EXACT)
            target = levels[j] + 2 * floors[j] + 2 * jnp.finfo(x.dtype).eps * jnp.abs(a[j]) @ jnp.abs(y)
            push = (1 + mirror) * (target - value) / square[j]
            return jnp.where(value >= levels[j] + 1.5 * floors[j], y, y - push * normals[j][:, None])

        return jax.lax.fori_loop(0, len(self), one, x)
