"""What training returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ctrlgen.energies.trained import TrainedEnergy

TrainingStatus = Literal["completed", "stopped early", "interrupted", "diverged"]


@dataclass(frozen=True, kw_only=True, repr=False)
class TrainingResult:
    """A trained energy and how it came about.

    Args:
        energy: in the data's own units, with what is needed to generate from it.
        status: "completed", "stopped early" (the held-out quality stopped improving), "interrupted" (Ctrl-C), or
            "diverged" (the loss or its gradient left the finite numbers; the weights are the last good ones).
        message: the status in a sentence.
        history: arrays of one length: "step", "phase", "loss", "grad_norm" and the terms of the losses (nan where a
            phase has no such term); and "held_out_step" with "held_out_w2" [data units] or "held_out_nll" [nats].
        steps: updates made, those before a resumption included.
        seconds: wall time, likewise.
        settings: objectives, key, data scaling and the like, as they may be written to a file.
    """

    energy: TrainedEnergy
    status: TrainingStatus
    message: str
    history: dict[str, np.ndarray]
    steps: int
    seconds: float
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def held_out(self) -> float | None:
        """The best held-out quality that was measured; None when nothing was held out."""
        values = [v for k, v in self.history.items() if k.startswith("held_out_") and k != "held_out_step"]
        return float(np.nanmin(values[-1])) if values and np.isfinite(values[-1]).any() else None

    def plot(self, ax: Any = None) -> Any:
        """Loss and held-out quality against the step; returns the axes."""
        from ctrlgen import plot

        return plot.training(self, ax=ax)

    def __repr__(self) -> str:
        loss = self.history["loss"]
        last = f", loss {loss[-1]:.4g}" if loss.size else ""
        names = [k for k in self.history if k.startswith("held_out_") and k != "held_out_step"]
        quality = "".join(f", {k} {self.history[k][-1]:.4g}" for k in names if self.history[k].size)
        return (
            f"TrainingResult({self.status} after {self.steps} steps in {self.seconds:.1f} s{last}{quality}; "
            f"{self.energy!r})"
        )
