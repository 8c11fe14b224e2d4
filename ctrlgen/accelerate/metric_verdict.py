"""What a metric promises: the loop in it, and how distances, W₂ and KL fall."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import sympy as sp

from ctrlgen.accelerate._candidates import Structure
from ctrlgen.accelerate._programs import matrix_of, rational
from ctrlgen.certify.spectrum import root_ratio_decay
from ctrlgen.certify.verdict import Verdict
from ctrlgen.checks import positive
from ctrlgen.domain import Domain
from ctrlgen.energies.spectral import spectrum_bounds, up
from ctrlgen.plants.particles import Langevin
from ctrlgen.prove.claim import Status

LIMIT = 2.0  # of Euler's step, where ∇²E ⪯ M


@dataclass(frozen=True, kw_only=True, repr=False)
class MetricVerdict(Verdict):
    """What is known of the best constant metric of an energy.

    Args:
        metric: M, (d,) where it is diagonal, else (d, d), as `Langevin(metric=...)` takes it; None without one.
        rate: λ with λM ⪯ ∇²E ⪯ M [1 / time]: proved, rounded down; that of the samples when SAMPLED; None without one.
        plain: the condition number without a metric, as far as it was seen; None where it is not finite.
        structure: what kind of metric was asked for.
        domain: the set that the verdict is about; None for the whole space.
        violation: when SAMPLED from enough Hessians, a bound at 95 % confidence on the share of states, of the law that
            the samples were drawn from, whose Hessian violates the inequalities.
    """

    metric: np.ndarray | None = None
    rate: float | None = None
    plain: float | None = None
    structure: Structure = "full"
    domain: Domain | None = None
    violation: float | None = None

    def plot(self, ax: Any = None, **view: Any) -> Any:
        """Draw the condition number with and without the metric: see `ctrlgen.plot.metric_rates`."""
        from ctrlgen import plot

        return plot.metric_rates(self, ax, **view)

    @property
    def condition(self) -> float | None:
        """1/λ, rounded up: the condition number that the metric leaves."""
        return None if self.rate is None else up(1 / Fraction(self.rate))

    def plant(self, temperature: float, fraction: float = 0.5, scheme: Any = "euler") -> Langevin:
        """The loop in this metric, with a step that is a fraction of the stability limit 2.

        Args:
            temperature: ε > 0 [energy].
            fraction: of the limit, in (0, 1).
            scheme: "euler" or "mala".

        Raises:
            ValueError: no metric was found, or fraction is not in (0, 1).
        """
        if self.metric is None:
            raise ValueError("no metric was found, so there is no loop in it. Print the verdict to see why.")
        if not (isinstance(fraction, (int, float, np.number)) and 0 < fraction < 1):
            raise ValueError(f"fraction must be in (0, 1), a part of the stability limit; got {fraction!r}.")
        return Langevin(temperature, LIMIT * float(fraction), scheme, metric=self.metric)

    def step_contraction(self, step: float) -> float:
        """The factor by which one step of Euler's scheme brings two states with the same noise closer in |·|_M.

        max(|1 - hλ|, |1 - h|), rounded up, because M⁻¹∇²E has its eigenvalues in [λ, 1] along the segment between them.

        Raises:
            ValueError: nothing was proved, or step is not positive.
        """
        rate, h = Fraction(self._proved("steps")[1]), Fraction(positive("step", step))
        return up(max(abs(1 - h * rate), abs(1 - h)))

    def distance(self, t: Any) -> Any:
        """The factor c with |x(t) - y(t)| ≤ c |x(0) - y(0)| for two trajectories with the same noise, rounded up.

        c = sqrt(λ_max(M)/λ_min(M)) e^{-λt} in Euclid's norm; on a domain, as long as both stay in it and it is convex.

        Args:
            t: time ≥ 0, any shape.

        Raises:
            ValueError: nothing was proved, or t is negative.
        """
        metric, rate = self._proved("distances")
        low, high = _limits(metric)
        return root_ratio_decay(high / low, rational(rate), _times(t))

    def wasserstein(self, t: Any) -> Any:
        """The factor c with W₂(ρ_t, ρ*) ≤ c W₂(ρ_0, ρ*) in Euclid's norm, in continuous time, rounded up.

        Args:
            t: time ≥ 0, any shape.

        Raises:
            ValueError: nothing was proved, or only on a domain, or t is negative.
        """
        self._whole("W₂ to the Gibbs measure")
        return self.distance(t)

    def kl(self, t: Any) -> Any:
        """The factor e^{-2λt} on KL(ρ_t‖ρ*), in continuous time, rounded up.

        Args:
            t: time ≥ 0, any shape.

        Raises:
            ValueError: nothing was proved, or only on a domain, or t is negative.
        """
        self._whole("KL to the Gibbs measure")
        return root_ratio_decay(sp.S.One, 2 * rational(self._proved("KL")[1]), _times(t))

    def _whole(self, what: str) -> None:
        if self.domain is not None:
            raise ValueError(
                f"{what} is bounded on the whole space only; this verdict is about {self.domain!r}, which trajectories "
                "may leave. Use .distance(t) for two trajectories while both stay in it."
            )

    def _proved(self, what: str) -> tuple[np.ndarray, float]:
        if self.status is not Status.PROVED or self.metric is None or self.rate is None:
            raise ValueError(
                f"no rate was proved, so nothing is promised of {what}; the status is {self.status.name}. "
                "Print the verdict to see why."
            )
        return matrix_of(self.metric), self.rate

    def _rows(self) -> list[tuple[str, str]]:
        rows = super()._rows()
        extra = []
        if self.metric is not None:
            shown = np.array2string(np.asarray(self.metric), precision=5, threshold=20)
            extra.append(("metric", " ".join(shown.split())))
        if self.plain is not None and self.condition is not None:
            extra.append(("condition", f"{self.condition:.6g}; without a metric {self.plain:.6g}"))
        return rows[:3] + extra + rows[3:]


def _limits(metric: np.ndarray) -> tuple[Any, Any]:
    """Rationals below and above the eigenvalues of a positive definite matrix of floats."""
    low, high = spectrum_bounds(metric)
    if not low > 0:
        raise ValueError("the metric is too ill-conditioned for bounds of its eigenvalues in floats.")
    return rational(low), rational(high)


def _times(t: Any) -> np.ndarray:
    times = np.asarray(t, dtype=float)
    if not (np.isfinite(times).all() and (times >= 0).all()):
        raise ValueError(f"t must be finite and ≥ 0; got {t!r}.")
    return times
