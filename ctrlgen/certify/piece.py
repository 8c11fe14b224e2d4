"""A summand of an energy with what is established of it: what a log-Sobolev inequality is put together from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Piece:
    """One summand of an energy; None where something is not established.

    Args:
        name: what it is.
        convexity: m with ∇² ⪰ m I, of either sign [energy / length²].
        oscillation: a number that sup - inf does not exceed [energy].
        gradient: G with |∇| ≤ G [energy / length].
        check: computes the constants again.
        hessian: (d, d) of Fractions, below ∇² everywhere; such pieces are added before they are bounded.
    """

    name: str
    convexity: float | None = None
    oscillation: float | None = None
    gradient: float | None = None
    check: Callable[[], bool] = field(default=lambda: True, repr=False)
    hessian: np.ndarray | None = field(default=None, repr=False)


Way = tuple[Piece, ...]
