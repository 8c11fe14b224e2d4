"""What training draws from: the data and the source, standardised, dimension-first and float32.

A draw depends on its generator alone, and the generator on (key, phase, step): what is drawn for a step is the
same whoever computes it, and whenever.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ctrlgen import datasets

LEAST_ROWS = 10
_SCALE_SAMPLE = 20_000  # rows from which the scale of a distribution is estimated
_SHOWN = 5  # offending rows named in an error

Standardise = Literal["isotropic"] | bool


def generator(key: int, *path: int) -> np.random.Generator:
    """The generator of one step of one phase: stateless, so that a resumed run draws what a straight run does."""
    return np.random.default_rng([len(path), *path, int(key)])  # the length first: trailing zeros do not count


@dataclass(frozen=True, eq=False)
class Feed:
    """Standardised draws of the data and of the source.

    Args:
        data: (n, d) float64, or a distribution with `.sample(key, n)` and `.dim`.
        source: "gaussian" (the standard normal in standardised units) or a name in `ctrlgen.datasets`.
        center, scale: (d,), what standardises.
        lower, upper: (d,), the corners of the data in standardised units.
    """

    data: Any
    source: str
    center: np.ndarray
    scale: np.ndarray
    lower: np.ndarray
    upper: np.ndarray

    @property
    def dim(self) -> int:
        return self.center.size

    def batch(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """n independent draws of the data, (d, n) float32; rows of a table come with replacement."""
        if isinstance(self.data, np.ndarray):
            return self.inside(self.data[rng.integers(len(self.data), size=n)])
        return self.inside(self.data.sample(int(rng.integers(2**62)), n))

    def noise(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """n independent draws of the source, (d, n) float32."""
        if self.source == "gaussian":
            return rng.standard_normal((self.dim, n), dtype=np.float32)
        return self.inside(datasets.get(self.source).sample(int(rng.integers(2**62)), n))

    def inside(self, rows: Any) -> np.ndarray:
        """(n, d) in the data's units -> (d, n) float32, standardised, contiguous."""
        return np.ascontiguousarray(((np.asarray(rows) - self.center) / self.scale).T, dtype=np.float32)

    def reach(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper corners (d,) of a box that holds the data and, but for 1e-6, the source."""
        if self.source == "gaussian":
            low, high = np.full(self.dim, -5.0), np.full(self.dim, 5.0)
        else:
            low, high = (datasets.get(self.source).bounds - self.center) / self.scale
        return np.minimum(low, self.lower), np.maximum(high, self.upper)

    def fingerprint(self) -> str:
        """Identifies the data and the source, for a checkpoint."""
        if isinstance(self.data, np.ndarray):
            name = hashlib.sha256(np.ascontiguousarray(self.data).tobytes()).hexdigest()
        else:
            name = hashlib.sha256(np.ascontiguousarray(self.data.sample(0, 64)).tobytes()).hexdigest()
        numbers = np.concatenate([self.center, self.scale]).tobytes()
        return f"{name}|{self.source}|{hashlib.sha256(numbers).hexdigest()[:16]}"


def prepare(
    data: Any,
    dim: int,
    source: str,
    standardise: Standardise = True,
    scaling: tuple[np.ndarray, np.ndarray] | None = None,
) -> Feed:
    """Check the data and the source, and fix the standardisation.

    Args:
        data: (n, d) array-like, or a distribution.
        dim: d of the energy.
        source: as for `Feed`.
        standardise: True: mean 0 and standard deviation 1 in every column; "isotropic": one scale for all
            columns; False: leave the data's own units.
        scaling: (center, scale) that is already fixed, by a trained energy.

    Raises:
        ValueError: the data is not (n, d), is not finite, has too few rows, does not fit the energy, or the source
            is unknown.
    """
    if standardise not in (True, False, "isotropic"):
        raise ValueError(f"standardise must be True, False or 'isotropic'; got {standardise!r}.")
    check_source(source, dim)
    if hasattr(data, "sample") and hasattr(data, "dim"):
        if data.dim != dim:
            raise ValueError(f"data is {data.dim}-dimensional and the energy {dim}-dimensional; they must agree.")
        rows = check_table(data.sample(0, _SCALE_SAMPLE), dim, "a sample of data")
        kept = data
    else:
        rows = kept = check_table(data, dim)
    if scaling is not None:
        center, scale = scaling
    elif standardise is False:
        center, scale = np.zeros(dim), np.ones(dim)
    else:
        center, scale = rows.mean(axis=0), rows.std(axis=0)
        constant = scale <= 1e-12 * np.maximum(np.abs(center), 1e-300)
        if constant.all():
            raise ValueError("data must vary: every column is constant, so there is no density to learn.")
        if constant.any():
            warnings.warn(
                f"data has constant columns {np.flatnonzero(constant).tolist()}: they keep scale 1 and are learned "
                "as they are. Drop them if they carry nothing.",
                stacklevel=3,
            )
        if standardise == "isotropic":
            scale = np.full(dim, np.sqrt(np.mean(scale**2)))
        scale = np.where(constant, 1.0, scale)
    inside = (rows - center) / scale
    return Feed(kept, source, center, scale, inside.min(axis=0), inside.max(axis=0))


def check_table(data: Any, dim: int, label: str = "data") -> np.ndarray:
    """`data` as a finite (n, d) float64 table, or a ValueError that says what is wrong and where."""
    try:
        rows = np.asarray(data, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{label} must be an (n, d) array of numbers or a distribution; {error}.") from None
    if rows.ndim != 2:
        hint = " Pass data[:, None] if it is one column." if rows.ndim == 1 else ""
        raise ValueError(f"{label} must have shape (n, d); got shape {rows.shape}.{hint}")
    if rows.shape[1] != dim:
        raise ValueError(f"{label} has {rows.shape[1]} columns and the energy is {dim}-dimensional; they must agree.")
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if bad.size:
        more = ", ..." if bad.size > _SHOWN else ""
        raise ValueError(
            f"{label} must be finite; {bad.size} of {len(rows)} rows are not: rows "
            f"{', '.join(map(str, bad[:_SHOWN]))}{more} (counted from 0). Drop or repair them."
        )
    if len(rows) < LEAST_ROWS:
        raise ValueError(f"{label} must have at least {LEAST_ROWS} rows; got {len(rows)}.")
    return rows


def check_source(source: str, dim: int) -> None:
    if source == "gaussian":
        return
    if not isinstance(source, str) or source not in datasets.names():
        raise ValueError(f"source must be 'gaussian' or one of {', '.join(datasets.names())}; got {source!r}.")
    if datasets.get(source).dim != dim:
        raise ValueError(
            f"source {source!r} is {datasets.get(source).dim}-dimensional and the energy {dim}-dimensional."
        )
