"""What is known of a run's safety: what was counted, over how many particle-steps, how far from the border it was."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ctrlgen.estimate import Estimate
from ctrlgen.safety.filter import SafetyFilter


@dataclass(frozen=True, kw_only=True, repr=False)
class SafetyReport:
    """Counts over the particle-steps that were looked at. None means "not recorded", never zero.

    Attributes:
        mode: of the filter; None for a run without one.
        looked: particle-steps whose end was looked at: all of a filtered run, the recorded ones of another.
        violations: how many of them ended outside (outside the tube, while there is one); None when looked is 0.
        worst_depth: the largest -h (below the tube's level) among those, 0.0 when there were none.
        least: the least h seen: how near to the border it came; in a tube, above its level.
        corrected: particle-steps that would have left and were brought back; None where steps are rejected instead.
        active: particle-steps with δ ≠ 0.
        effort: ∫|δ|² dt of every particle, (n,) [length² / time].
        kkt_residual: the worst of the program over all particle-steps, a speed.
        infeasible: particle-steps whose program had no solution and was relaxed.
        infeasible_particles: (k,) which particles these were.
        multipliers: time means of λ per particle and barrier, (n, m).
    """

    mode: str | None
    looked: int
    violations: int | None
    worst_depth: float | None
    least: float | None
    corrected: int | None = None
    active: int | None = None
    effort: np.ndarray | None = field(default=None)
    kkt_residual: float | None = None
    infeasible: int | None = None
    infeasible_particles: np.ndarray | None = field(default=None)
    multipliers: np.ndarray | None = field(default=None)

    @property
    def violation_rate(self) -> float | None:
        """violations / looked; None when nothing was looked at."""
        return None if self.violations is None else self.violations / self.looked

    @property
    def active_fraction(self) -> float | None:
        """active / looked; None when not recorded."""
        return None if self.active is None or self.looked == 0 else self.active / self.looked

    @property
    def mean_effort(self) -> Estimate | None:
        """E ∫|δ|² dt, over the particles, with its standard error."""
        if self.effort is None:
            return None
        n = len(self.effort)
        return Estimate(float(self.effort.mean()), float(self.effort.std(ddof=1) / np.sqrt(n)) if n > 1 else np.nan)

    def plot(self, ax: Any = None) -> Any:
        """Draw the counts as shares of the particle-steps: see `ctrlgen.plot.safety_report`."""
        from ctrlgen import plot

        return plot.safety_report(self, ax)

    @property
    def _count(self) -> int:
        return 0 if self.infeasible_particles is None else len(self.infeasible_particles)

    def _rows(self) -> list[tuple[str, str]]:
        def shown(value: Any, form: str = "") -> str:
            return "not recorded" if value is None else format(value, form)

        rows = [
            ("mode", self.mode or "no filter"),
            ("looked at", f"{self.looked} particle-steps"),
            ("violations", shown(self.violations)),
            ("worst depth", shown(self.worst_depth, ".4g")),
            ("least h", shown(self.least, ".4g")),
        ]
        if self.corrected is not None:
            rows.append(("brought back", f"{self.corrected} ({self.corrected / max(self.looked, 1):.3%})"))
        if self.active is not None:
            rows += [
                ("δ ≠ 0", f"{self.active} ({self.active / max(self.looked, 1):.3%})"),
                ("effort", f"∫|δ|² dt = {self.mean_effort}"),
                ("residual", shown(self.kkt_residual, ".2g")),
                ("infeasible", f"{self.infeasible}, in {self._count} particles"),
            ]
        return rows

    def __repr__(self) -> str:
        return "\n".join(["SafetyReport", *(f"  {name:<13} {value}" for name, value in self._rows())])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{n}</th><td>{html.escape(v)}</td></tr>" for n, v in self._rows()
        )
        return f"<table><caption>SafetyReport</caption>{rows}</table>"


def report(record: Any, safety: SafetyFilter, steps: int, step: float, kept: Sequence[Any] = ()) -> SafetyReport:
    """What a filtered run of so many steps has counted; `record` is `plants.guarded.Record` of NumPy arrays.

    Of functions without a formula, whose rounding is only estimated, the densities that were kept (after the start) are
    looked at again in float64: what they show and the loop did not is counted.
    """
    n = len(record.violated)
    looked = n * steps
    if looked == 0:
        return SafetyReport(mode=safety.mode, looked=0, violations=None, worst_depth=None, least=None)
    out = int(record.violated.sum(dtype=np.int64))
    least = float(record.lowest.min())
    guessed = any(part.field.expr is None and not part.moving for part in safety.constraints)
    if guessed and safety.tube is None and kept:
        worst = np.stack([safety.values(x) for x in kept]).min(axis=2)
        out, least = max(out, int((~(worst >= 0)).sum())), min(least, float(worst.min()))
    rest: dict[str, Any] = {}
    if record.active is not None:
        rest = {
            "active": int(record.active.sum(dtype=np.int64)),
            "effort": record.effort[0].astype(np.float64),
            "kkt_residual": float(record.residual.max()),
            "infeasible": int(record.infeasible.sum(dtype=np.int64)),
            "infeasible_particles": np.flatnonzero(record.infeasible),
            "multipliers": record.multipliers.T.astype(np.float64) / (steps * step),
        }
    return SafetyReport(
        mode=safety.mode, looked=looked, violations=out, worst_depth=max(0.0, -least) if out else 0.0, least=least,
        corrected=None if record.corrected is None else int(record.corrected.sum(dtype=np.int64)), **rest,
    )  # fmt: skip


def inspect(safety: SafetyFilter, response: Any) -> SafetyReport:
    """What the recorded states of any response, filtered or not, say of a safe set, in float64.

    Only records after the start are looked at: a run of which nothing was kept is not a safe one.

    Args:
        safety: whose barriers are asked.
        response: of particles.

    Raises:
        AttributeError: it is not of particles.
    """
    states, times = response.states[1:], response.time[1:]
    if len(states) == 0:
        return SafetyReport(mode=None, looked=0, violations=None, worst_depth=None, least=None)
    h = np.stack([safety.values(x, t) for x, t in zip(states, times, strict=True)])
    worst = h.min(axis=2)
    out = ~(worst >= 0)
    return SafetyReport(
        mode=None, looked=int(worst.size), violations=int(out.sum()), least=float(np.nanmin(worst)),
        worst_depth=max(0.0, -float(np.nanmin(worst))) if out.any() else 0.0,
    )  # fmt: skip
