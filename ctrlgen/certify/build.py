"""From a certificate's inequality to claims: one for each basic piece of its set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import sympy as sp

from ctrlgen.certify.verdict import Step
from ctrlgen.domain import Domain
from ctrlgen.field import Field
from ctrlgen.prove.claim import Claim, Deadline
from ctrlgen.prove.decide import decide


def check_domain(name: str, domain: Any, states: Sequence[sp.Symbol], *, volume: bool = True) -> None:
    """Raise ValueError unless `domain` is a set in these states that is not empty (and has volume, where asked)."""
    if not isinstance(domain, Domain):
        raise ValueError(
            f"{name} must be a domain: Box, Ball, Sublevel, or what &, | and ~ make of them; "
            f"got {type(domain).__name__}."
        )
    try:
        domain.nonempty(states, volume=volume)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def claims(
    text: str,
    states: tuple[sp.Symbol, ...],
    what: Field | sp.Expr | sp.MatrixBase,
    domain: Domain | None,
    *,
    strict: bool,
    except_at: tuple[sp.Rational, ...] | None = None,
    guards: Sequence[sp.Expr] = (),
    open_guards: Sequence[sp.Expr] = (),
    equalities: Sequence[sp.Expr] = (),
) -> list[Claim]:
    """The claims `what` > 0 (strict) or ≥ 0, or ≻ and ⪰ for a matrix, on every piece of the domain.

    Args:
        text: what is claimed, for people.
        states: the states.
        what: the left-hand side. A Field without a formula gives claims of its JAX function.
        domain: the set; None for the whole space.
        strict, except_at, open_guards, equalities: as in Claim.
        guards: formulas that are ≥ 0, beyond the domain's.
    """
    matrix: Any
    function: Callable | None = None
    if isinstance(what, Field):
        matrix = None if what.expr is None else sp.Matrix([[what.expr]])
        function = what.columns if what.expr is None else None
    elif isinstance(what, sp.MatrixBase):
        matrix = what
    else:
        matrix = sp.Matrix([[what]])
    pieces = [((), ())] if domain is None else [(p.guards, p.box) for p in domain.pieces(states)]
    return [
        Claim(
            text=text if len(pieces) == 1 else f"{text} (piece {k + 1} of {len(pieces)})",
            states=states,
            matrix=matrix,
            strict=strict,
            guards=(*inside, *guards),
            open_guards=tuple(open_guards),
            equalities=tuple(equalities),
            box=box,
            except_at=except_at,
            function=function,
        )
        for k, (inside, box) in enumerate(pieces)
    ]


def settle(every: Sequence[Claim], method: str, deadline: Deadline) -> list[Step]:
    """Decide claims one after another; each gets a fair part of the time that is left."""
    steps = []
    for k, claim in enumerate(every):
        steps.append(Step(claim, decide(claim, method, deadline.part(1.0 / max(1, min(2, len(every) - k))))))
    return steps
