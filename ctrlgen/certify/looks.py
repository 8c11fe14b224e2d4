"""Looking at a run again and again for a bound of KL: when to look, and what a look may cost in confidence."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ctrlgen.certify.apriori import KLBound
from ctrlgen.checks import positive
from ctrlgen.loop import Moment, Start
from ctrlgen.prove.claim import Status

BATCHES = 40  # of the jackknife: Student's quantile at the confidence of late looks is not much above the normal one


def look_error(total: float, look: int) -> float:
    """The part of an error probability that the look number 1, 2, ... may spend: 6 total / (π² look²), in sum total."""
    return 6 * total / (math.pi**2 * look**2)


def look_seed(x: Any, look: int) -> int:
    """A seed for a look's own draws, of the particles: one and the same for every run would not be a chance."""
    return int.from_bytes(hashlib.blake2b(np.asarray(x).tobytes(), digest_size=8, salt=look.to_bytes(8)).digest())


def _finite(now: Moment) -> bool:
    """Are E and ∇E finite at all particles? If not, the run is about to diverge, and will say so itself."""
    x = np.asarray(now.state, dtype=np.float64)
    return all(np.isfinite(np.asarray(f(x))).all() for f in (now.energy, now.energy.gradient))


@dataclass(frozen=True)
class LookRule(ABC):
    """A rule that looks at a run until a bound of KL is at most δ; its own docstring says what its arguments mean."""

    delta: float
    confidence: float = field(default=0.95, kw_only=True)
    interval: float | None = field(default=None, kw_only=True)
    points: int = field(default=4096, kw_only=True)

    def __post_init__(self):
        object.__setattr__(self, "delta", positive("delta", self.delta))
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence must be between 0 and 1; got {self.confidence}.")
        if self.interval is not None:
            positive("interval", self.interval)
        if self.points < 2 * BATCHES:
            raise ValueError(f"points must be at least {2 * BATCHES}; got {self.points}.")

    @abstractmethod
    def monitor(self, start: Start) -> LookMonitor:
        """A fresh monitor, for one run."""

    def verify(self, response: Any) -> KLBound:
        """The same judgement, once, of the density at the end of a finished run.

        For particles it is about the law one Euler step after that end.

        Raises:
            ValueError: as `monitor`.
        """
        monitor = self.monitor(Start.of(response, self))
        if response.status == "diverged":
            return monitor.undecided(f"the run diverged: {response.message}")
        monitor.judge(response.final)
        return monitor.judged(f"the law one step after step {response.steps}", f"the density at step {response.steps}")


class LookMonitor:
    """A rule at work that judges the density at each of its looks.

    Of particles the law after one more Euler step is judged: the run takes that step and ends with it. Looks at them
    therefore come one step early.
    """

    def __init__(self, rule: Any, start: Start):
        self.rule, self.start = rule, start
        self.look, self.where, self.met = 0, None, False
        self.due: tuple[int, ...] | None = None
        if start.plant.kind == "particles":
            if start.particles is not None and start.particles < 2 * BATCHES:
                raise ValueError(
                    f"{type(rule).__name__} needs at least {2 * BATCHES} particles for its error; got "
                    f"{start.particles}. Start more."
                )
            interval = rule.interval or start.steps * start.step / 100
            self.every = max(1, round(interval / start.step)) if start.step else 1
            self.due = self._next(0)

    @abstractmethod
    def judge(self, state: Any) -> bool:
        """Look at this density: is the rule met?"""

    @abstractmethod
    def why(self) -> str:
        """Why the last look ends the run."""

    @abstractmethod
    def unmet(self) -> str:
        """What to say of the rule when the run ended without it."""

    @abstractmethod
    def judged(self, law: str, density: str) -> KLBound:
        """The verdict on what was judged last, called `law` for particles and `density` for other plants."""

    def _next(self, step: int) -> tuple[int, ...]:
        after = ((step + 1) // self.every + 1) * self.every
        return (min(after, self.start.steps) - 1,)

    def check(self, now: Moment) -> str | None:
        """Why to stop now, or None to go on."""
        if self.where is not None:  # the last step of particles, after a look that was good
            self.met = now.step == self.where
            return self.why() if self.met else None
        good = (self.due is None or _finite(now)) and self.judge(now.state)
        if self.due is None:
            self.met = good
            return self.why() if good else None
        if good:
            self.where = now.step + 1
            self.due = (self.where,)
        else:
            self.due = self._next(now.step) if now.step + 1 < self.start.steps else ()
        return None

    def verdict(self) -> KLBound:
        """What is known of KL where the run ended."""
        if not self.met:
            return self.undecided(self.unmet())
        return self.judged("the law at the step where the run ended", "the density at the step where the run ended")

    def undecided(self, reason: str) -> KLBound:
        """Nothing is certified."""
        claim = f"KL(ρ‖ρ*) ≤ {self.rule.delta!r} at the step where the run ended"
        return KLBound(claim=claim, status=Status.UNDECIDED, method="none", reason=reason)
