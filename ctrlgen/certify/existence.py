"""Does the Gibbs measure exist? Established, refuted with a direction in which it escapes, or neither."""

from __future__ import annotations

from ctrlgen.certify.constants import taken_on_trust
from ctrlgen.certify.premise import premise, shown_down, shown_up
from ctrlgen.certify.verdict import Step
from ctrlgen.energies.algebra import Composition
from ctrlgen.energies.base import Energy
from ctrlgen.energies.tails import Escape, Tail, confined, find_escape, tail, total

TEXT = "the Gibbs measure exists: exp(-E/ε) is integrable"


def gibbs_measure_exists(energy: Energy) -> Step | None:
    """The step that exp(-E/ε) is integrable at every temperature; None where that was not established.

    From dissipativity, ⟨x, ∇E⟩ ≥ a|x|² - b with a > 0, which makes E ≥ ½a|x|² - b log|x| - c far out; or from a
    positive definite quadratic part beside what grows at most linearly.
    """
    known = energy.properties.dissipativity
    if known is not None and known[0] > 0:
        a, b = known
        rule = f"dissipativity ⟨x, ∇E⟩ ≥ {shown_down(a)}|x|² - {shown_up(b)}, so E grows quadratically"
        trust = taken_on_trust(energy)
        return premise(TEXT, rule, lambda: energy.properties.dissipativity == known, "interval", trust)
    found = _tail(energy)
    if found is not None and confined(found):
        rule = "a positive definite quadratic part, and at most linear growth beyond it"
        return premise(TEXT, rule, lambda: confined(found), "exact")
    return None


def where_it_escapes(energy: Energy) -> Escape | None:
    """A direction in which exp(-E/ε) certainly has infinite mass at every temperature; None where none was found."""
    if isinstance(energy, Composition):
        return find_escape(energy.terms, energy.weights.tolist())
    return find_escape([energy], [1.0])


def refuse_without_gibbs(energy: Energy) -> None:
    """Raise ValueError where the Gibbs measure certainly does not exist, with the reason and the direction."""
    found = where_it_escapes(energy)
    if found is not None:
        raise ValueError(
            f"energy must have a Gibbs measure, but along the direction {found.direction.tolist()} {found.reason}: "
            "exp(-E/ε) is not integrable at any temperature. Add a confining term."
        )


def _tail(energy: Energy) -> Tail | None:
    if isinstance(energy, Composition):
        return total(energy.terms, energy.weights.tolist())
    return tail(energy)
