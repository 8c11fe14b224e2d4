"""The part of a distribution in a safe set: what a filtered loop may start from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ctrlgen.safety.filter import SafetyFilter

TRIES = 1000  # rounds of drawing in which the safe part of a distribution must be hit


@dataclass(frozen=True)
class Restricted:
    """The part of a distribution in a safe set; made by `SafetyFilter.restrict`."""

    distribution: Any
    filter: SafetyFilter

    @property
    def dim(self) -> int:
        """d, the number of coordinates."""
        return self.filter.dim

    def on_grid(self, grid: Any) -> np.ndarray:
        """Cell masses of the distribution given that cell centres are inside, of a grid's shape.

        Raises:
            TypeError: it has no `.log_density`.
        """
        if not hasattr(self.distribution, "log_density"):
            raise TypeError("the distribution needs a .log_density to be put on a grid; pass samples, or cell masses.")
        masses = np.asarray(grid.discretise(self.distribution))
        masses = masses * self.filter.walls_on(grid)
        return masses / masses.sum()

    def sample(self, key: Any, n: int) -> np.ndarray:
        """n independent samples of the distribution given that they are inside, (n, d), determined by the key.

        Raises:
            ValueError: hardly any of the distribution is inside.
        """
        seeds = np.random.SeedSequence(_entropy(key)).generate_state(TRIES).tolist()
        kept, missing, drawn = [], n, 0
        for seed in seeds:
            x = np.asarray(self.distribution.sample(seed, max(n, 256)), np.float64)
            inside = x[self.filter.contains(x)]
            kept.append(inside[:missing])
            missing, drawn = missing - len(kept[-1]), drawn + len(x)
            if missing == 0:
                return np.concatenate(kept)
        raise ValueError(
            f"hardly any of the distribution is in the safe set: {n - missing} of {drawn} draws. Take another start."
        )


def _entropy(key: Any) -> int:
    from ctrlgen.plants.noise import key_words

    return int.from_bytes(np.asarray(key_words(key)).tobytes(), "little")
