"""Are the functions of a certificate defined, continuous and differentiable where its theorem asks for that?

A derivative that looks fine proves nothing of a function that jumps: atan(1/x) falls everywhere, and climbs by π at 0.
So the formulas are looked at as they were given, before anything is differentiated, expanded or cancelled: each
denominator, logarithm, root and inverse function gives a claim on the domain. Polynomials, sin, exp and the like cost
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import sympy as sp

from ctrlgen.certify.build import claims, settle
from ctrlgen.certify.verdict import Step
from ctrlgen.continuity import Condition, JumpError, conditions
from ctrlgen.domain import Domain
from ctrlgen.energies.base import Energy
from ctrlgen.energies.symbolic import CallableEnergy, SymbolicEnergy
from ctrlgen.field import Field, VectorField, traced
from ctrlgen.formula import entries_of, read_formula
from ctrlgen.prove.claim import Claim, Deadline, Outcome, Status
from ctrlgen.trace import NoFormula, trace

# primitives that may jump, or whose derivative in JAX need not be that of the function
BRANCHES = {
    "select_n", "sign", "floor", "ceil", "round", "rem", "atan2", "cond", "while", "scan", "sort", "argmax", "argmin",
    "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "stop_gradient", "pure_callback", "clamp",
    "a cast to integers", "eq", "ne", "lt", "le", "gt", "ge", "reduce_precision", "nextafter", "is_finite",
}  # fmt: skip

CAST = "a cast to integers"  # which JAX takes for constant
KINKS = {"abs", "max", "min", "reduce_max", "reduce_min", "cummax", "cummin", "cumlogsumexp"}
# of which everything is smooth that is made of nothing else
ENTIRE = {
    "add", "add_any", "sub", "mul", "neg", "square", "one_minus_square", "dot_general",
    "reduce_sum", "cumsum", "exp", "exp2", "sin", "cos",
    "sinh", "cosh", "tanh", "logistic", "erf", "atan", "asinh", "broadcast_in_dim", "reshape", "transpose", "squeeze",
    "slice", "concatenate", "convert_element_type", "expand_dims", "rev", "copy", "pjit", "jit", "closed_call", "iota",
}  # fmt: skip


def regular(
    parts: Sequence[tuple[str, Any, int]],
    states: tuple[sp.Symbol, ...],
    domain: Domain | None,
    method: str,
    deadline: Deadline,
    guards: Sequence[sp.Expr] = (),
    kinks: bool = True,
) -> list[Step]:
    """Steps that establish that every part is as smooth as asked on the domain; none where the form says so.

    Args:
        parts: (name, function, order): a Field, a VectorField or a sequence of formulas, and 0 for continuous, 1 for
            locally Lipschitz, 2 for twice differentiable.
        states, domain, guards: where.
        kinks: whether |x|, min and max count as smooth enough for order 1.
        method, deadline: how the side claims are decided.

    A condition that fails, or is not settled, gives an UNDECIDED step: the theorem then does not apply, which says
    nothing of the system.
    """
    steps: list[Step] = []
    seen: set[Condition] = set()
    for name, thing, order in parts:
        formulas = _formulas(thing)
        if formulas is None:
            reason = _why_it_may_branch(thing, kinks and order < 2)
            if reason:
                steps.append(undecided(f"{name} is {_KIND[order]}", states, reason))
            continue
        for expr in formulas:
            try:
                found = conditions(sp.sympify(expr), order, kinks)
            except JumpError as error:
                steps.append(undecided(f"{name} is {_KIND[order]}", states, str(error)))
                continue
            for condition in found:
                if condition not in seen:
                    seen.add(condition)
                    steps += _settle(name, condition, states, domain, method, deadline, guards)
    return steps


_KIND = ("continuous", "locally Lipschitz", "twice differentiable")


def noise_entries(diffusion: Any, states: tuple[sp.Symbol, ...]) -> list[sp.Expr]:
    """The entries of the noise matrix G as they were given, before G Gᵀ is formed; a callable's as they are traced."""
    if callable(diffusion) and not isinstance(diffusion, (sp.Basic, sp.MatrixBase)):
        values = traced(diffusion, states, None, "diffusion")[0]
        return [] if values is None else list(values.ravel())
    entries = entries_of(diffusion)
    flat: list[Any] = []
    for e in entries if isinstance(entries, list) else [entries]:
        flat += list(e) if isinstance(e, list) else [e]
    return [read_formula(e, states, "diffusion") for e in flat]


def _settle(name, condition, states, domain, method, deadline, guards) -> list[Step]:
    expr, sign = condition
    text = f"{name} is defined: {expr} {sign}"
    if not expr.free_symbols:
        holds = {"> 0": expr.is_positive, "≥ 0": expr.is_nonnegative, "≠ 0": expr.is_nonzero}[sign]
        return [] if holds else [undecided(text, states, f"{expr} is not {sign}")]
    out = []
    for claim in claims(text, states, expr, domain, strict=sign != "≥ 0", guards=guards):
        tries = [claim]
        if sign == "≠ 0":
            tries.append(replace(claim, matrix=-claim.matrix, text=f"{name} is defined: {-expr} > 0"))
        step = None
        for one in tries:
            step = settle([one], method if method != "search" else "auto", deadline.part(0.3))[0]
            if step.outcome.status is Status.PROVED:
                break
        assert step is not None
        if step.outcome.status is not Status.PROVED:
            step = undecided(text, states, f"not established: {step.outcome.reason}")
        out.append(step)
    return out


def undecided(text: str, states: tuple[sp.Symbol, ...], reason: str) -> Step:
    """A step that was not established, and why."""
    claim = Claim(text=text, states=states, strict=False)
    return Step(claim, Outcome(status=Status.UNDECIDED, method="symbolic", reason=reason))


def _formulas(thing: Any) -> Sequence[sp.Expr] | None:
    if isinstance(thing, Field):
        return None if thing.expr is None else [thing.expr]
    if isinstance(thing, VectorField):
        return thing.exprs
    return thing


def _why_it_may_branch(thing: Field | VectorField, kinks: bool) -> str:
    """Why a function without formula may jump or have another derivative than JAX says; empty if it may not.

    Where `kinks` are no matter, |x|, min and max may occur.
    """
    try:
        closed = trace(thing.columns, (thing.dim,))
    except (NoFormula, TypeError, ValueError) as error:
        return f"it cannot be traced: {error}"
    found = sorted(_primitives(closed.jaxpr) & (BRANCHES if kinks else BRANCHES | KINKS))
    return f"it holds {', '.join(found)}, across which it may jump or its derivative may be another" if found else ""


def smooth_by_form(thing: Field) -> str:
    """Why a function without formula need not be smooth on the whole space; empty if it is, by what it is made of."""
    try:
        closed = trace(thing.columns, (thing.dim,))
    except (NoFormula, TypeError, ValueError) as error:
        return f"it cannot be traced: {error}"
    found = sorted(_primitives(closed.jaxpr) - ENTIRE)
    return f"it holds {', '.join(found)}, and was not shown to be smooth" if found else ""


def own_functions(energy: Energy, states: tuple[sp.Symbol, ...]) -> list[Any]:
    """The user's own functions in an energy; all else here is smooth, but for the kinks of networks with relu."""
    if isinstance(energy, SymbolicEnergy):
        return [Field(energy, states)] if energy.field.expr is None else [[energy.symbolic(states)]]
    if isinstance(energy, CallableEnergy) or not type(energy).__module__.startswith("ctrlgen."):
        return [Field(energy.function if isinstance(energy, CallableEnergy) else energy.potential, states)]
    inside = [part for value in vars(energy).values() for part in (value if isinstance(value, tuple) else (value,))]
    return [f for part in inside if isinstance(part, Energy) for f in own_functions(part, states)]


def casts(function: Callable, dim: int) -> bool:
    """Does a function (d,) -> () cast numbers to integers on its way? False where it cannot be traced."""
    try:
        return CAST in _primitives(trace(function, (dim,)).jaxpr)
    except (NoFormula, TypeError, ValueError):
        return False


def _is_real(dtype: Any) -> bool:
    return bool(np.issubdtype(np.dtype(dtype), np.floating))


def _primitives(jaxpr: Any) -> set[str]:
    out: set[str] = set()
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name == "convert_element_type" and not _is_real(eqn.params["new_dtype"]):
            name = CAST if _is_real(eqn.invars[0].aval.dtype) else name
        out.add(name)
        for value in eqn.params.values():
            for item in value if isinstance(value, (list, tuple)) else [value]:
                inner = getattr(item, "jaxpr", item)
                if hasattr(inner, "eqns"):
                    out |= _primitives(inner)
    return out
