"""Convex polytopes as sets of states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sympy as sp

from ctrlgen import field
from ctrlgen.domain import Domain, Piece, exact


@dataclass(frozen=True, init=False, repr=False)
class Polytope(Domain):
    """The polytope {A x ≤ b}; a half-space with one row.

    Args:
        normals: A, (m, d), no row zero.
        offsets: b, (m,).

    Raises:
        ValueError: the shapes do not fit, an entry is not a finite number, or a row of A is zero.
    """

    normals: tuple[tuple[sp.Expr, ...], ...]
    offsets: tuple[sp.Expr, ...]

    def __init__(self, normals: Any, offsets: Any):
        rows = [list(np.atleast_1d(np.asarray(row, dtype=object))) for row in normals] if _iterable(normals) else []
        widths = {len(row) for row in rows}
        if len(widths) != 1 or widths == {0}:
            raise ValueError(f"normals must be (m, d), one row a half-space; got rows of length {sorted(widths)}.")
        sizes = list(np.atleast_1d(np.asarray(offsets, dtype=object)))
        if len(sizes) != len(rows):
            raise ValueError(f"offsets must be {len(rows)} numbers, one a row of normals; got {len(sizes)}.")
        a = tuple(tuple(exact(f"normals[{i}, {j}]", v) for j, v in enumerate(row)) for i, row in enumerate(rows))
        for i, row in enumerate(a):
            if all(v == 0 for v in row):
                raise ValueError(f"normals must have no zero row; row {i} is zero. Leave it out.")
        object.__setattr__(self, "normals", a)
        object.__setattr__(self, "offsets", tuple(exact(f"offsets[{i}]", v) for i, v in enumerate(sizes)))

    def __repr__(self) -> str:
        return f"Polytope({[list(row) for row in self.normals]}, {list(self.offsets)})"

    @property
    def dim(self) -> int:
        return len(self.normals[0])

    def pieces(self, states: Sequence[str | sp.Symbol]) -> tuple[Piece, ...]:
        """One piece: a guard b - a·x a row. The box knows the rows that bound one coordinate."""
        names = field.symbols(states)
        if len(names) != self.dim:
            raise ValueError(
                f"the domain {self!r} has {self.dim} coordinates; the states are {[s.name for s in names]}."
            )
        guards: list[Any] = []
        low: list[Any] = [None] * self.dim
        high: list[Any] = [None] * self.dim
        for row, b in zip(self.normals, self.offsets, strict=True):
            guards.append(b - sp.Add(*(v * x for v, x in zip(row, names, strict=True))))
            used = [i for i, v in enumerate(row) if v != 0]
            if len(used) == 1 and row[used[0]].is_Rational and b.is_Rational:
                i, bound = used[0], b / row[used[0]]
                side = high if row[i] > 0 else low
                known = side[i]
                side[i] = bound if known is None else (min(known, bound) if row[i] > 0 else max(known, bound))
        return (Piece(tuple(guards), tuple(zip(low, high, strict=True))),)

    def __invert__(self) -> Domain:
        halves: list[Domain] = [
            Polytope([[-v for v in row]], [-b]) for row, b in zip(self.normals, self.offsets, strict=True)
        ]
        out = halves[0]
        for other in halves[1:]:
            out = out | other
        return out


def _iterable(value: Any) -> bool:
    return hasattr(value, "__iter__") and not isinstance(value, str)
