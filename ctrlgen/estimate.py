"""A number that knows how uncertain it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A value with its standard error; scalars or arrays of one shape.

    Args:
        value: the estimate, in the units of what is estimated.
        error: one standard error (68 % for a Gaussian), same shape; 0.0 for an exact value,
            nan where no error could be computed.
    """

    value: Any
    error: Any = 0.0

    def __float__(self) -> float:
        return float(self.value)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.value, dtype=dtype)

    def __format__(self, spec: str) -> str:
        spec = spec or ".4g"
        return f"{float(self.value):{spec}} ± {float(self.error):.1g}"

    def __str__(self) -> str:
        return format(self) if np.ndim(self.value) == 0 else f"{self.value} ± {self.error}"
