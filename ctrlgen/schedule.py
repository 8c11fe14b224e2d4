"""Temperature schedules: ε(t) = factor(t) · ε of the plant. "static" (factor 1) is the default of a loop."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp


class Annealing(eqx.Module):
    """From `start` times the plant's temperature down to it, geometrically over `duration`, then static.

    Args:
        start: factor at t = 0, > 0 (above 1 to cool, below 1 to heat).
        duration: time until the factor is 1 [time].

    Reference: Kirkpatrick, Gelatt and Vecchi, Science 220 (1983) 671.
    """

    start: float
    duration: float

    def __check_init__(self):
        _positive("start", self.start)
        _positive("duration", self.duration)

    def __call__(self, t: Any) -> Any:
        return jnp.exp(jnp.log(self.start) * jnp.clip(1.0 - t / self.duration, 0.0, 1.0))


class TransportRamp(eqx.Module):
    """Energy Matching's schedule: no noise until `onset`, then linear to the plant's temperature at `full`.

    Args:
        onset: τ*, end of the deterministic transport phase [time].
        full: when the factor reaches 1, > onset [time].

    Reference: Balcerak et al., Energy Matching, arXiv:2504.10612, section 3.
    """

    onset: float = 0.8
    full: float = 1.0

    def __check_init__(self):
        if not 0 <= self.onset < self.full:
            raise ValueError(f"onset must be >= 0 and below full; got onset={self.onset}, full={self.full}.")

    def __call__(self, t: Any) -> Any:
        return jnp.clip((t - self.onset) / (self.full - self.onset), 0.0, 1.0)


def _positive(name: str, value: float) -> None:
    if not (value > 0 and value < float("inf")):
        raise ValueError(f"{name} must be positive and finite; got {value}.")
