"""Does the Gibbs measure exist? Established, refuted with a direction in which it escapes, or neither."""

from __future__ import annotations

from ctrlgen.certify.constants import taken_on_trust
from ctrlgen.certify.pieces import forget
from ctrlgen.certify.premise import premise, shown_down, shown_up
from ctrlgen.certify.verdict import Step
from ctrlgen.constraint import Constraint
from ctrlgen.constraints import Constraints
from ctrlgen.continuity import everywhere
from ctrlgen.energies.algebra import Composition, parted
from ctrlgen.energies.analytic import GaussianMixture, Quadratic
from ctrlgen.energies.base import Energy, default_states
from ctrlgen.energies.landscapes import Landscape
from ctrlgen.energies.neural import MLPEnergy
from ctrlgen.energies.observation import LeastSquares
from ctrlgen.energies.safe_sets import bounded, certain_inside, joined, polynomial
from ctrlgen.energies.symbolic import SymbolicEnergy
from ctrlgen.energies.tails import Escape, Tail, confined, find_escape, tail, total

TEXT = "the Gibbs measure exists: exp(-E/ε) is integrable"


def gibbs_measure_exists(energy: Energy) -> Step | None:
    """The step that exp(-E/ε) is integrable at every temperature; None where that was not established.

    From dissipativity, ⟨x, ∇E⟩ ≥ a|x|² - b with a > 0, which makes E ≥ ½a|x|² - b log|x| - c far out; or from a
    positive definite quadratic part beside what grows at most linearly.

    With `Walls` or a `LogBarrier` on a set S that certainly has an inside, so that Z > 0: from the same of the other
    terms, for walls only cut their measure, and polynomials h_j^{μ/ε} grow too slowly against its Gaussian tails; or
    where S is certainly bounded, and the other terms and the h_j are certainly continuous.
    """
    if parted(energy).sets:
        return _behind_walls(energy)
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


def _behind_walls(energy: Energy) -> Step | None:
    found = parted(energy)
    rest, joint = found.rest, joined(*(s.constraints for s in found.sets))
    if certain_inside(joint) is None:
        return None
    if all(map(_continuous, joint)) and (rest is None or _continuous_energy(rest)) and bounded(joint):
        rule = "the safe set is bounded and has an inside, and on its closure E is continuous, h_j too"
        return premise(TEXT, rule, lambda: _again(joint) and bounded(joint), "exact")
    step = None if rest is None else gibbs_measure_exists(rest)
    if step is None or not all(polynomial(barrier.constraints) for _, barrier in found.barriers):
        return None
    words = ["the walls only cut the measure of the other terms, and leave it an inside"] if found.walls else []
    words += ["polynomials h_j^{μ/ε} grow too slowly against Gaussian tails"] if found.barriers else []
    rule, inner = f"{step.outcome.reason}; {'; '.join(words)}", step.outcome.certificate
    return premise(
        TEXT, rule, lambda: _again(joint) and inner is not None and inner.recheck(), step.outcome.method,
        step.outcome.assumptions,
    )  # fmt: skip


def _again(joint: Constraints) -> bool:
    """The inside of a set, found anew."""
    forget()
    return certain_inside(joint) is not None


def _continuous(part: Constraint) -> bool:
    """Whether h is certainly continuous everywhere, by its form."""
    return part.field.expr is not None and everywhere([part.field.expr])


def _continuous_energy(energy: Energy) -> bool:
    """Whether E is certainly continuous and finite everywhere."""
    if isinstance(energy, Composition):
        return all(map(_continuous_energy, energy.terms))
    if isinstance(energy, (SymbolicEnergy, Landscape)):
        try:
            return everywhere([energy.symbolic(default_states(None, energy.dim))])
        except TypeError:
            return False
    if isinstance(energy, MLPEnergy):
        return energy.is_finite
    return isinstance(energy, (Quadratic, GaussianMixture, LeastSquares))


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
