"""Formulas and enclosures of functions that are given as code."""

from __future__ import annotations

from typing import Any


class NoFormula(Exception):
    """The function has no formula that could be found; the text says what stands in the way."""


def to_sympy(function: Any, shape: tuple[int, ...], states: Any) -> Any:
    raise NoFormula("tracing is not there yet")


def numpy_formulas(function: Any, states: Any) -> Any:
    raise NoFormula("tracing is not there yet")


def system_formulas(system: Any, states: Any) -> Any:
    raise NoFormula("tracing is not there yet")
