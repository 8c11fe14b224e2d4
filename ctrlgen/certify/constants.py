"""Established constants of an energy as premises: the terms that they come from, and the rule that adds them."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Literal

from ctrlgen.certify.pieces import at_least, exact_hessian, recomputed
from ctrlgen.certify.premise import premise, shown_down, shown_up
from ctrlgen.certify.regular import CAST, casts
from ctrlgen.certify.verdict import Step
from ctrlgen.energies.algebra import Composition
from ctrlgen.energies.base import Energy
from ctrlgen.energies.symbolic import CallableEnergy, SymbolicEnergy
from ctrlgen.trace import trace

Name = Literal["hessian_lower", "hessian_upper", "gradient_bound", "oscillation"]
WORDS = {
    "hessian_lower": "∇²({}) ⪰ {} I",
    "hessian_upper": "∇²({}) ⪯ {} I",
    "gradient_bound": "|∇({})| ≤ {}",
    "oscillation": "sup - inf of {} ≤ {}",
}
RULES = {
    "hessian_lower": "lower Hessian bounds add: w·m for w ≥ 0, w·L for w < 0",
    "hessian_upper": "upper Hessian bounds add: w·L for w ≥ 0, w·m for w < 0",
    "gradient_bound": "gradient bounds add with |w|",
    "oscillation": "oscillations add with |w|",
}
OWN_DERIVATIVES = ("custom_jvp_call", "custom_vjp_call", "stop_gradient")  # JAX's primitives
OPPOSITE: dict[str, Name] = {"hessian_lower": "hessian_upper", "hessian_upper": "hessian_lower"}


def established(energy: Energy, name: Name) -> tuple[float, list[Step]] | None:
    """A constant of an energy and the steps that establish it; None where it is not established.

    Args:
        energy: E; for a composition the steps list its terms first, then the rule.
        name: which of `Properties`.
    """
    value = getattr(energy.properties, name)
    if value is None:
        return None
    check = _check(energy, name, value)
    text, trust = _in_words(name, energy, value), taken_on_trust(energy)
    if not isinstance(energy, Composition):
        rule = f"its form and parameters ({type(energy).__name__})"
        return value, [premise(text, rule, check, "interval", trust)]
    steps = []
    for weight, term in zip(energy.weights, energy.terms, strict=True):
        own = OPPOSITE.get(name, name) if weight < 0 else name
        known = getattr(term.properties, own)
        if known is not None:
            what = _in_words(own, term, known)
            steps.append(premise(what, f"weight {weight:g}", _check(term, own, known), "interval"))
    return value, [*steps, premise(text, RULES[name], check, "interval", trust)]


def taken_on_trust(energy: Energy) -> tuple[str, ...]:
    """What is assumed of an energy's constants: nothing for the classes here, its word for any other."""
    kind = type(energy)
    if not kind.__module__.startswith("ctrlgen."):
        return (f"the constants of {kind.__name__} are as its own .properties states them",)
    return tuple(dict.fromkeys(words for part in _parts(energy) for words in taken_on_trust(part)))


def _parts(energy: Energy) -> list[Energy]:
    """The energies that this one is made of."""
    inside = [part for value in vars(energy).values() for part in (value if isinstance(value, tuple) else (value,))]
    return [part for part in inside if isinstance(part, Energy)]


def _check(energy: Energy, name: str, value: float) -> Callable[[], bool]:
    """How the constant is computed again: exactly where the Hessian is one matrix, else from the parameters."""
    hessian = exact_hessian(energy)

    def again() -> bool:
        return getattr(recomputed(energy), name) == value

    if hessian is not None and name == "hessian_lower":
        return lambda: at_least(hessian, value) or again()  # a large singular matrix is beyond the first
    if hessian is not None and name == "hessian_upper":
        return lambda: at_least(Fraction(-1) * hessian, -value) or again()
    return again


def other_gradient(energy: Energy) -> str:
    """Why particles may not follow -∇E of the function whose constants are established; empty where they do.

    Constants are those of the real function, particles move by what JAX takes for its derivative.
    """
    kind = type(energy)
    if not kind.__module__.startswith("ctrlgen.") and not _definer(kind, "slope").startswith("ctrlgen."):
        return f"{kind.__name__} has a slope of its own, which need not be the gradient of its potential"
    if kind.__module__.startswith("ctrlgen.") and not _is_code(energy):
        return next((words for words in map(other_gradient, _parts(energy)) if words), "")
    try:
        code = str(trace(energy.potential, (energy.dim,)))
    except (TypeError, ValueError):  # a callable has no constants then either; a class may say that it has
        return "" if isinstance(energy, CallableEnergy) else f"the potential of {kind.__name__} could not be traced"
    found = ", ".join(name for name in OWN_DERIVATIVES if name in code)
    if not found and casts(energy.potential, energy.dim):
        found = CAST
    return f"a function holds {found}: what JAX takes for its gradient need not be its gradient" if found else ""


def _is_code(energy: Energy) -> bool:
    """Is the energy a user's JAX function, also where it was read as a formula?"""
    return isinstance(energy, CallableEnergy) or (isinstance(energy, SymbolicEnergy) and energy.field.is_code)


def _definer(kind: type, name: str) -> str:
    """The module of the class that an attribute comes from."""
    return next(base.__module__ for base in kind.__mro__ if name in vars(base))


def _in_words(name: Name, energy: Energy, value: float) -> str:
    shown = shown_down if name == "hessian_lower" else shown_up
    return WORDS[name].format(_name(energy), shown(value))


def _name(energy: Energy) -> str:
    text = repr(energy)
    return text if len(text) <= 60 else type(energy).__name__
