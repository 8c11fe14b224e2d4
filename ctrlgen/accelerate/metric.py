"""The constant metric in which an energy's closed loop contracts fastest at a given stability limit.

In the loop dX = -M⁻¹∇E dt + sqrt(2εM⁻¹) dW with λM ⪯ ∇²E ⪯ M, Euler's step is stable below 2, whatever the energy, and
two trajectories with the same noise approach each other at the rate λ in |·|_M: 1/λ is the condition number that the
metric leaves. With t = 1/λ the inequalities Hᵢ ⪯ M ⪯ tHᵢ at Hessians Hᵢ are linear in M and t together, so the best M
is one semidefinite program, without bisection. That program only proposes; what is reported was proved of the
metric that is returned, float by float.

On the whole space the loop's coordinates y = M^½x have the energy's Hessian M^-½∇²E M^-½ ⪰ λ: by Bakry and Émery KL to
the Gibbs measure falls at 2λ and W₂ in |·|_M at λ, at every temperature.

References: Lohmiller and Slotine, Automatica 34 (1998) 683; Bakry, Gentil and Ledoux, Analysis and Geometry of Markov
Diffusion Operators (2014), section 4.8 and theorem 9.7.2; Boyd et al., Linear Matrix Inequalities (1994), section 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from ctrlgen.accelerate._bounds import ends_of
from ctrlgen.accelerate._candidates import POINTS, Structure, Wanted, gibbs_points, points_of, propose
from ctrlgen.accelerate._hessians import Between, Formula, at_points, between, checked, formula_hessian, kink, states_of
from ctrlgen.accelerate._programs import spread
from ctrlgen.accelerate._steps import not_settled
from ctrlgen.accelerate._worth import (
    Proved,
    around,
    by_enclosure,
    by_formula,
    extremes,
    is_definite,
    not_definite,
    not_definite_at,
    smoothness,
    unbounded,
)
from ctrlgen.accelerate.metric_verdict import MetricVerdict
from ctrlgen.certify.build import check_domain
from ctrlgen.certify.constants import other_gradient
from ctrlgen.certify.pieces import exact_hessian
from ctrlgen.certify.premise import missing, shown_down
from ctrlgen.certify.transport import plain_states
from ctrlgen.certify.verdict import Step, combine
from ctrlgen.checks import positive
from ctrlgen.domain import Ball, Box, Complement, Domain
from ctrlgen.energies.base import Energy
from ctrlgen.energies.spectral import spectrum_bounds, up
from ctrlgen.prove.claim import Deadline, Status
from ctrlgen.prove.decide import check_timeout

FEWEST = 30  # samples from which some are held out
CONFIDENCE = 0.95
MOST_WORDS = 300  # of why nothing was proved, beside samples
LARGEST = 1e150  # entries of Hessians that a metric is fitted to
TOP_UPS = 4  # rounds in which Hessians are added where a metric fits worst


def optimal_metric(
    energy: Energy | None,
    domain: Domain | None = None,
    *,
    hessians: Any = None,
    temperature: float | None = None,
    structure: Structure = "full",
    rank: int | None = None,
    timeout: float = 30.0,
    key: int = 0,
) -> MetricVerdict:
    """The constant metric M with the largest λ in λM ⪯ ∇²E ⪯ M, and what was proved of it.

    Hessians at points propose a metric by one semidefinite program. It is then proved: exactly for quadratics, by
    matrix claims for formulas, by interval Hessians on a box for networks and mixtures, and on the whole space also
    from constant matrices around the Hessian, from the energy's terms and their `properties`. Whichever proof gives
    the larger rate is reported.

    Args:
        energy: E; None where only `hessians` are at hand.
        domain: the set of states, in the names of a SymbolicEnergy's own or x1, ..., xd; None for the whole space.
        hessians: (k, d, d) samples of the Hessian; the verdict is then SAMPLED.
        temperature: ε [energy]; where nothing can be proved on the whole space, Hessians are sampled from the Gibbs
            measure at ε, and the verdict is SAMPLED.
        structure: "full" (a program up to 30 dimensions, then the best of a mean Hessian and the others), "diagonal" (a
            program up to 60, then Jacobi's scaling with sweeps) or "low-rank" (a multiple of the identity and the
            leading eigenpairs of the mean Hessian, any dimension).
        rank: of a low-rank metric; 10, or d - 1 if that is less, when omitted.
        timeout: seconds.
        key: seed of the sampled points.

    Returns:
        PROVED with `.metric` and `.rate`; REFUTED where the Hessian at an exact point, or along a direction everywhere,
        is not positive definite, or no constant matrix is above it; SAMPLED; or UNDECIDED with the reasons.

    Raises:
        ValueError: an argument is out of its range, or sizes disagree.
    """
    if energy is not None and not isinstance(energy, Energy):
        raise ValueError(f"energy must be an Energy, or None with hessians; got {type(energy).__name__}.")
    if energy is None and hessians is None:
        raise ValueError("energy must be given unless hessians are.")
    samples = None if hessians is None else checked(hessians, None if energy is None else energy.dim)
    dim = energy.dim if energy is not None else len(samples[0])  # pyright: ignore[reportOptionalSubscript]
    wanted, deadline = Wanted.checked(structure, rank, dim), check_timeout(timeout)
    if domain is not None:
        names = plain_states(dim) if energy is None else states_of(energy)
        check_domain("domain", domain, names)
        if len(domain.pieces(names)) != 1 or _has_complement(domain):
            raise ValueError(f"domain must be one convex set, no union of sets and no complement; got {domain!r}.")
    if temperature is not None:
        positive("temperature", temperature)
    if samples is not None:
        return _of_samples(samples, wanted, domain, deadline, key, "given Hessians")
    assert energy is not None
    return _Search(energy, domain, wanted, temperature, deadline, key).run()


def _has_complement(domain: Domain) -> bool:
    return isinstance(domain, Complement) or any(_has_complement(part) for part in getattr(domain, "parts", ()))


@dataclass
class _Search:
    """One call of `optimal_metric` for an energy."""

    energy: Energy
    domain: Domain | None
    wanted: Wanted
    temperature: float | None
    deadline: Deadline
    key: int

    @property
    def states(self) -> Any:
        return states_of(self.energy)

    def run(self) -> MetricVerdict:
        trouble = other_gradient(self.energy) or kink(self.energy)
        if trouble:
            return self._open([missing("particles follow -∇E of a twice differentiable E", trouble)])
        exact = exact_hessian(self.energy)
        if exact is not None:
            return self._quadratic(exact)
        formula, smooth = formula_hessian(self.energy), []
        known = between(self.energy)
        if formula is not None:
            no = not_definite(formula, self.domain, self.deadline.part(0.2))
            no = no or (unbounded(formula) if self.domain is None else [])
            if no:
                return self._refused(no)
            smooth = smoothness(formula, self.domain, self.deadline.part(0.2))
            if any(s.outcome.status is not Status.PROVED for s in smooth):
                return self._open(smooth)
        proofs, open_steps = [], []
        if known is not None:
            proofs += self._around(known)
        points = points_of(self.energy, self.domain, self.states, self.key)
        hessians = at_points(self.energy, points)
        plain = _plain(hessians)
        if not len(hessians) or not np.linalg.eigvalsh(hessians)[:, 0].min() > 0:
            if not proofs:
                return self._not_definite(points, plain)
        else:
            metric = propose(hessians, self.wanted, self.deadline.part(0.2))
            if formula is not None:
                metric, hessians = self._topped_up(formula, metric, hessians)
                found, left = by_formula(formula, metric, hessians, self.domain, smooth, self.deadline.part(0.6))
                proofs += [found] if found else []
                open_steps += map(not_settled, left)
            best = max((p.rate for p in proofs), default=0.0)
            seen = spread(hessians, metric)
            if self.domain is not None and best < (1 - 1e-3) * seen[0] / seen[1]:
                proofs += self._enclosed(metric, seen, open_steps)
        if proofs:
            return self._proved(max(proofs, key=lambda p: p.rate), plain)
        return self._sampled(open_steps, plain)

    # The ways -------------------------------------------------------------------------------------------------

    def _quadratic(self, exact: np.ndarray) -> MetricVerdict:
        """One matrix: the metric may be it."""
        values = np.linalg.eigvalsh(exact.astype(np.float64))
        if values[0] <= 1e-9 * max(values[-1], 0.0) and is_definite(exact) is not True:
            found = formula_hessian(self.energy)
            no = [] if found is None else not_definite(found, self.domain, self.deadline)
            if no:
                return self._refused(no)
            if found is None or values[0] <= 0:
                points = np.zeros((1, self.energy.dim))
                return self._not_definite(points, None)
        known = Between(exact, exact, ())
        proofs = self._around(known)
        m, top = spectrum_bounds((exact + exact.T).astype(np.float64) / 2)
        plain = up(Fraction(top) / Fraction(m)) if m > 0 else None
        if not proofs:
            reason = "the matrix is too ill-conditioned for the arithmetic that was tried"
            return self._open([missing("λM ⪯ ∇²E ⪯ M with λ > 0", reason)])
        return self._proved(max(proofs, key=lambda p: p.rate), plain)

    def _around(self, known: Between) -> list[Proved]:
        """From constant matrices around the Hessian."""
        both = (known.low,) if known.low is known.high else (known.low, known.high)
        ends = np.stack([end.astype(np.float64) for end in both])
        ends = (ends + ends.swapaxes(1, 2)) / 2
        if not np.linalg.eigvalsh(ends[0])[0] > 0:
            return []
        top = ends[-1]
        tries = [propose(ends, self.wanted, self.deadline.part(0.4))]
        if self.wanted.structure == "full":
            tries = [top]  # nothing smaller is above the upper one
        elif self.wanted.structure == "diagonal" and not (top - np.diag(np.diag(top))).any():
            tries = [top]
        name = repr(self.energy) if len(repr(self.energy)) <= 60 else type(self.energy).__name__
        found = [around(known, metric, self.energy, name) for metric in tries]
        return [p for p in found if p is not None]

    def _topped_up(self, formula: Formula, metric: np.ndarray, hessians: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The metric and the Hessians with those added at which it fits worst, until none does worse."""
        for _ in range(TOP_UPS):
            low, high = spread(hessians, metric)
            seen = extremes(formula, metric, self.domain)
            worst = [x for e in seen for x in (e[1], e[3]) if x is not None]
            if not worst or self.deadline.over:
                break
            new = at_points(self.energy, np.array(worst))
            new = new[np.isfinite(new).all(axis=(1, 2)) & (np.abs(new).max(axis=(1, 2)) < LARGEST)]
            new = new[np.linalg.eigvalsh(new)[:, 0] > 0] if len(new) else new
            if not len(new):
                break
            below, above = spread(new, metric)
            if below >= low * (1 - 1e-9) and above <= high * (1 + 1e-9):
                break
            hessians = np.concatenate([hessians, new])
            metric = propose(hessians, self.wanted, self.deadline.part(0.2))
        return metric, hessians

    def _enclosed(self, metric: np.ndarray, seen: tuple[float, float], open_steps: list[Step]) -> list[Proved]:
        """By interval Hessians on a box around the domain."""
        try:
            box = _box_around(self.domain, self.states)
            found = by_enclosure(self.energy, metric, box, seen, self.deadline.part(0.8))
        except ValueError as error:
            open_steps.append(missing("λM ⪯ ∇²E ⪯ M on the domain", str(error)))
            return []
        if found is None:
            reason = "the interval Hessians over boxes are too wide for a rate λ > 0. Take a smaller domain."
            open_steps.append(missing("λM ⪯ ∇²E ⪯ M on the domain", reason))
        return [found] if found else []

    # The verdicts ---------------------------------------------------------------------------------------------

    def _words(self) -> tuple[str, str, tuple[str, ...]]:
        """(where, what follows, what is assumed)."""
        if self.domain is None:
            follows = "two trajectories with the same noise, and W₂, contract at λ in |·|_M, KL at 2λ"
            return "on the whole space", follows, ()
        follows = "two trajectories with the same noise contract at λ in |·|_M while both stay in the domain"
        simple = isinstance(self.domain, (Box, Ball))
        return f"on {self.domain!r}", follows, () if simple else ("the domain is convex",)

    def _proved(self, proof: Proved, plain: float | None) -> MetricVerdict:
        where, follows, assumed = self._words()
        return self._verdict(
            f"λM ⪯ ∇²E ⪯ M {where} with λ = {shown_down(proof.rate)}",
            proof.steps,
            meaning=f"{follows}; Euler's step is stable below 2",
            assumptions=assumed,
            metric=self.wanted.shaped(proof.metric),
            rate=proof.rate,
            plain=plain,
        )

    def _refused(self, steps: Sequence[Step], **extra: Any) -> MetricVerdict:
        return self._verdict(f"λM ⪯ ∇²E ⪯ M {self._words()[0]} for some constant M and λ > 0", steps, **extra)

    def _not_definite(self, points: np.ndarray, plain: float | None) -> MetricVerdict:
        inside = points
        if self.domain is not None:
            inside = points[np.atleast_1d(self.domain.contains(points, self.states))]
        try:
            found = not_definite_at(self.energy, inside) if len(inside) else None
        except ValueError as error:
            return self._open([missing("∇²E ≻ 0", str(error))], plain)
        if found is None:
            reason = "at a point the Hessian is not positive definite in floats, but intervals do not settle it"
            return self._open([missing("∇²E ≻ 0", reason)], plain)
        return self._refused([found[0]], witness=found[1], plain=plain)

    def _open(self, steps: Sequence[Step], plain: float | None = None) -> MetricVerdict:
        return self._refused(steps, plain=plain)

    def _sampled(self, steps: Sequence[Step], plain: float | None) -> MetricVerdict:
        """What samples say where nothing was proved."""
        why = "; ".join(s.outcome.reason for s in steps if s.outcome.reason)
        why = why if len(why) <= MOST_WORDS else f"{why[:MOST_WORDS]}..."
        if self.domain is None:
            if self.temperature is None:
                reason = (
                    f"nothing was proved on the whole space{': ' if why else ''}{why}. Pass domain=, hessians= or "
                    "temperature= (samples from the Gibbs measure)."
                )
                return self._open([*steps, missing("λM ⪯ ∇²E ⪯ M", reason)], plain)
            hessians = at_points(self.energy, gibbs_points(self.energy, self.temperature, self.key))
            name = f"Hessians at draws of the Gibbs measure at temperature {self.temperature:g}"
        else:
            rng = np.random.default_rng(self.key)
            hessians = at_points(self.energy, np.asarray(self.domain.sample(rng, POINTS, self.states)))
            name = "Hessians at points drawn evenly from the domain"
        found = _of_samples(hessians, self.wanted, self.domain, self.deadline, self.key, name)
        return replace(found, reason=f"{found.reason}. Not proved: {why}" if why else found.reason)

    def _verdict(self, claim: str, steps: Sequence[Step], **extra: Any) -> MetricVerdict:
        return combine(
            claim, steps, kind=MetricVerdict, deadline=self.deadline,
            structure=self.wanted.structure, domain=self.domain, **extra,
        )  # fmt: skip


def _of_samples(
    hessians: np.ndarray, wanted: Wanted, domain: Domain | None, deadline: Deadline, key: int, name: str
) -> MetricVerdict:
    """The best metric at sampled Hessians; a third of them is held out, to say how often a fresh one violates it."""
    known: dict[str, Any] = {"structure": wanted.structure, "domain": domain, "method": "search"}
    where = "" if domain is None else f" on {domain!r}"
    claim = f"λM ⪯ ∇²E ⪯ M{where}"
    values = np.linalg.eigvalsh(hessians)
    if not len(hessians) or not values[:, 0].min() > 0:
        bad = int((values[:, 0] <= 0).sum())
        reason = f"{bad} of {len(hessians)} {name} are not positive definite: no constant metric contracts there"
        return MetricVerdict(
            claim=f"{claim} with some λ > 0", status=Status.UNDECIDED, reason=reason, seconds=deadline.spent, **known
        )
    order = np.random.default_rng(key).permutation(len(hessians))
    held = len(hessians) // 3 if len(hessians) >= FEWEST else 0
    fitted = hessians[order[held:]]
    tries = [propose(fitted, wanted, deadline.part(0.9)), np.eye(hessians.shape[-1])]  # a fit may be to the chosen ones
    ends = [spread(hessians, m) for m in tries]
    (low, high), metric = max(zip(ends, tries, strict=True), key=lambda pair: pair[0][0] / pair[0][1])
    rate, metric = low / high, metric * high
    violation = None
    reason = f"seen at {len(hessians)} {name}; between them nothing is known"
    if held:
        # the least and the largest of n draws are passed by a share of at most 1 - δ^(1/n) each, for each metric tried
        violation = min(1.0, 2 * (1 - ((1 - CONFIDENCE) / (2 * len(tries))) ** (1 / held)))
        reason += (
            f". {held} of them were held out: if they are independent draws, at most {violation:.3g} of their law "
            f"violates it (confidence {CONFIDENCE:.0%})"
        )
    return MetricVerdict(
        claim=f"{claim} with λ = {shown_down(rate)}",
        status=Status.SAMPLED,
        margin=None,
        reason=reason,
        seconds=deadline.spent,
        metric=wanted.shaped(metric),
        rate=rate,
        plain=_plain(hessians),
        violation=violation,
        **known,
    )


def _plain(hessians: np.ndarray) -> float | None:
    """max λ_max / min λ_min of Hessians."""
    if not len(hessians):
        return None
    values = np.linalg.eigvalsh(hessians)
    return float(values.max() / values.min()) if values.min() > 0 else None


def _box_around(domain: Domain | None, states: Any) -> np.ndarray:
    """(2, d) floats around a bounded domain.

    Raises:
        ValueError: it has no finite box.
    """
    if isinstance(domain, Box):
        return ends_of(domain)
    assert domain is not None
    sides = domain.box(states)
    if any(v is None for side in sides for v in side):
        raise ValueError(f"the domain {domain!r} has no finite box, which interval Hessians need.")
    return ends_of(Box([low for low, _ in sides], [high for _, high in sides]))
