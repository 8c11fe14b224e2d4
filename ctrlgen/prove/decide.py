"""Which engine decides: one by name, or all in turn under one time-out.

`auto` first looks for a counterexample (cheap), then for an exact proof, then asks the SMT solver, then runs branch
and bound in ball arithmetic. The first answer that is not UNDECIDED stands; what none could decide is UNDECIDED with
each engine's reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from fractions import Fraction
from importlib import import_module
from typing import Any, Literal, get_args

import numpy as np
import sympy as sp

from ctrlgen.prove.claim import Claim, Deadline, Outcome, Status

Method = Literal["auto", "search", "exact", "smt", "interval"]
METHODS = get_args(Method)
# Engines in turn, each with its share of the time that is left. An engine that comes twice goes on to harder attempts
# the second time; formulas that are not rational, on bounded sets, are the ball arithmetic's own field.
ORDER = (("search", 0.2), ("exact", 0.25), ("smt", 0.2), ("interval", 0.5), ("exact", 0.7), ("interval", 1.0))
TRANSCENDENTAL = (("search", 0.2), ("exact", 0.05), ("interval", 0.5), ("exact", 0.5), ("smt", 0.2), ("interval", 1.0))
STEPS = (0.0, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.05, 0.2, 0.5)


def check_method(method: str) -> None:
    """Raise ValueError for a method that is none."""
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(map(repr, METHODS))}; got {method!r}.")


def check_timeout(timeout: float) -> Deadline:
    """The deadline that a timeout in seconds gives; ValueError unless it is positive."""
    if not (isinstance(timeout, (int, float, np.number)) and timeout > 0):
        raise ValueError(f"timeout must be a positive number of seconds; got {timeout!r}.")
    return Deadline(float(min(timeout, 1e7)))


def decide(claim: Claim, method: str = "auto", deadline: Deadline | None = None) -> Outcome:
    """Decide one claim.

    Args:
        claim: what to decide.
        method: "auto", or the engine's name.
        deadline: when to stop; 30 s from now when omitted.

    Raises:
        ValueError: method is none of METHODS.
    """
    check_method(method)
    deadline = deadline or Deadline(30.0)
    start = time.monotonic()
    if method != "auto":
        return replace(_ask(method, claim, deadline), seconds=time.monotonic() - start)
    margin = None
    answers: dict[str, str] = {}
    for engine, share in TRANSCENDENTAL if claim.bounded and not _is_rational(claim) else ORDER:
        if deadline.over:
            answers.setdefault(engine, "not asked, the time was over")
            continue
        if engine in answers and "time" not in answers[engine].lower():
            continue  # it was not for want of time that it failed
        outcome = _ask(engine, claim, deadline.part(share))
        if outcome.status in (Status.PROVED, Status.REFUTED):
            if margin is not None and outcome.margin is None:
                outcome = replace(outcome, margin=margin)
            return replace(outcome, seconds=time.monotonic() - start)
        if engine == "search":
            margin = outcome.margin
        answers[engine] = outcome.reason
    return Outcome(
        status=Status.UNDECIDED,
        method="auto",
        reason=" | ".join(f"{engine}: {words}" for engine, words in answers.items()),
        margin=margin,
        seconds=time.monotonic() - start,
    )


def _is_rational(claim: Claim) -> bool:
    return claim.matrix is not None and all(e.is_rational_function(*claim.states) for e in claim.matrix)


def _ask(engine: str, claim: Claim, deadline: Deadline) -> Outcome:
    """One engine's answer. Whatever goes wrong inside it is UNDECIDED, in its words."""
    try:
        return import_module(f"ctrlgen.prove.{engine}").decide(claim, deadline)
    except (
        ArithmeticError,
        ValueError,
        TypeError,
        NotImplementedError,
        RuntimeError,
        RecursionError,
        MemoryError,
    ) as error:
        return Outcome(status=Status.UNDECIDED, method=engine, reason=f"{type(error).__name__}: {str(error)[:300]}")


def shorten(value: float, digits: int = 12) -> Any:
    """The largest decimal of so many significant digits that is not above value; a float shows it as it is."""
    fraction = Fraction(value)
    if fraction == 0:
        return sp.Integer(0)
    exponent = digits - 1 - int(np.floor(np.log10(abs(value))))
    scale = Fraction(10) ** exponent
    whole = (fraction * scale).__floor__()
    out = Fraction(whole) / scale
    return sp.Rational(out.numerator, out.denominator)


def float_below(value: Any) -> float:
    """The largest float whose decimal is not above the number; within 1e-15 of it for one that is not rational."""
    if not value.is_Rational:
        value = sp.Rational(int(sp.floor(value * 10**15)), 10**15)
    out = float(value)
    while Fraction(repr(out)) > Fraction(int(value.p), int(value.q)):
        out = float(np.nextafter(out, -np.inf))
    return out


def candidates(estimate: float, scale: float | None = None) -> Iterable[Any]:
    """Values to try for a bound whose true value is about `estimate`: it itself if simple, then ever more below it."""
    size = max(abs(estimate), scale or 0.0, 1e-12)
    nice = Fraction(estimate).limit_denominator(1000)
    if abs(float(nice) - estimate) <= 1e-7 * size:
        yield sp.Rational(nice.numerator, nice.denominator)
    for step in STEPS:
        yield shorten(estimate - step * size)


def best_bound(
    make: Callable[[sp.Rational], Claim],
    estimate: float,
    method: str,
    deadline: Deadline,
    *,
    scale: float | None = None,
    least: Any = None,
) -> tuple[sp.Rational | None, Claim | None, Outcome]:
    """The largest bound that can be proved, from a floating-point estimate of the true one.

    Args:
        make: the claim that a value is a bound; it must be easier for smaller values.
        estimate: about the supremum of the values for which the claim is true.
        method: "auto" or an engine.
        deadline: for the whole search.
        scale: what a step below the estimate is relative to; |estimate| when omitted.
        least: values at or below this are not worth proving.

    Returns:
        (bound, its claim, its outcome); bound is None if nothing was proved, and the outcome then is the last one.
    """
    check_method(method)
    first = make(shorten(estimate - max(abs(estimate), scale or 0.0)))
    own = first.bounded and not _is_rational(first)
    engines = ["interval", "exact"] if own else ["exact", "interval", "smt"]
    engines = [method] if method not in ("auto", "search") else engines
    best: tuple[sp.Rational | None, Claim | None, Outcome] = (
        None,
        None,
        Outcome(status=Status.UNDECIDED, method=method, reason="no candidate was tried"),
    )
    for place, engine in enumerate(engines):
        share = deadline.part(0.6 if place + 1 < len(engines) else 1.0)
        for part in (0.05, 0.3):  # a short look at each first: what is easy to prove is so at the cheapest attempt
            for value in candidates(estimate, scale):
                if share.over or (least is not None and value <= least) or (best[0] is not None and value <= best[0]):
                    break
                claim = make(value)
                outcome = _ask(engine, claim, share.part(part, 0.2))
                if outcome.status is Status.PROVED:
                    best = (value, claim, outcome)
                    break
                if best[0] is None:
                    best = (None, claim, outcome)
            if best[0] is not None:
                break
        if best[0] is not None and estimate - float(best[0]) <= 1e-4 * max(abs(estimate), scale or 0.0):
            break
    return best
