"""Gradient and Laplacian of one function around one point, in ball arithmetic: with no box to divide, and no search.

Everything is evaluated on a small box around the point on which the function is certainly C²: an open branch, kink or
jump raises `Undefined`. A float among the function's constants stands for two numbers, the exact double and the decimal
that it prints as; the enclosures hold both readings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import sympy as sp
from flint import arb, ctx, fmpq

from ctrlgen.continuity import conditions
from ctrlgen.prove.balls import Compiled, Undefined, Unsupported
from ctrlgen.prove.claim import Deadline
from ctrlgen.prove.traced import _Watching, primitives_only
from ctrlgen.trace import NoFormula, interpret, trace

HALF_ULP = 2.0**-53  # relative: no decimal that prints as a double is farther from it


class Jet(Protocol):
    """A function of d states with its gradient and Laplacian."""

    def around(self, box: Sequence[arb], bits: int, deadline: Deadline) -> tuple[list[arb], arb]:
        """Enclosures of ∇E, d balls, and ΔE on a box of d balls on which E is certainly C².

        Raises:
            Undefined: E may be undefined, or not C², somewhere in the box.
            Unsupported: E does something that has no enclosure.
            TimeoutError: the deadline passed.
        """
        ...


def box_around(point: Sequence[fmpq], radius: fmpq) -> list[arb]:
    """Balls that enclose [xᵢ - r, xᵢ + r], at the working precision."""
    return [arb(x - radius).union(arb(x + radius)) for x in point]


def reading(value: float) -> arb:
    """A ball with a finite double and the decimal that it prints as; the number itself where these are one."""
    size = abs(value)
    if (value.is_integer() and size < 1e15) or (size < 8192 and (1024 * value).is_integer()):
        return arb(value)
    return arb(value, max(HALF_ULP * size, 5e-324))


class _BothReadings(_Watching):
    """Balls in which a float is what `reading` says, which know of open branches, and which heed a deadline."""

    deadline: Deadline

    def number(self, value):
        value = float(value)
        return reading(value) if np.isfinite(value) else super().number(value)

    def check(self, array):
        if self.deadline.over:
            raise TimeoutError


class TracedJet:
    """The jet of a JAX function (d,) -> (), by the differentiation rules of JAX's primitives only.

    Args:
        function: the real function that its jaxpr in float64 describes is the one that is enclosed.
        dim: d.

    Raises:
        Unsupported: it cannot be traced.
    """

    def __init__(self, function: Callable, dim: int):
        import jax
        import jax.numpy as jnp

        def jet(x: Any) -> Any:
            slope = jax.grad(plain)
            hessian = jax.vmap(lambda v: jax.jvp(slope, (x,), (v,))[1])(jnp.eye(dim))
            return plain(x), slope(x), jnp.trace(hessian)

        try:
            plain = primitives_only(trace(function, (dim,)))
            self._closed = trace(jet, (dim,))
            self._domain = _BothReadings()  # it keeps the constants, which are the same at every precision
        except Unsupported:
            raise
        except Exception as error:  # the user's own code runs here
            raise Unsupported(f"the function cannot be traced: {type(error).__name__}: {error}") from None

    def around(self, box: Sequence[arb], bits: int, deadline: Deadline) -> tuple[list[arb], arb]:
        """See `Jet`. The value is enclosed too: a jump has no derivative to show it."""
        domain = self._domain
        domain.open, domain.deadline = False, deadline
        argument = np.empty(len(box), dtype=object)
        argument[:] = list(box)
        with ctx.workprec(bits):
            try:
                value, slope, laplacian = interpret(self._closed, [argument], domain)
            except (NoFormula, ArithmeticError, TypeError, ValueError) as error:
                raise Unsupported(str(error)) from None
        found = [*slope, laplacian[()]]
        if domain.open:
            raise Undefined("the function may have a branch, a kink or a jump there.")
        if not all(b.is_finite() for b in [*found, value[()]]):
            raise Undefined("the function or a derivative may be undefined there.")
        return found[:-1], found[-1]


class FormulaJet:
    """The jet of a SymPy formula with exact numbers.

    Raises:
        Unsupported: a function in it has no enclosure.
        JumpError: the formula may jump or has a kink somewhere; its JAX function may still do.
    """

    def __init__(self, expr: Any, states: Sequence[sp.Symbol]):
        slope = [sp.diff(expr, s) for s in states]
        laplacian = sp.Add(*(sp.diff(g, s) for g, s in zip(slope, states, strict=True)))
        self._smooth = conditions(expr, 2)
        self._compiled = Compiled([*slope, laplacian, expr, *(e for e, _ in self._smooth)], states)
        self._dim = len(states)

    def around(self, box: Sequence[arb], bits: int, deadline: Deadline) -> tuple[list[arb], arb]:
        """See `Jet`."""
        values = self._compiled.at(box, bits)  # pyright: ignore[reportArgumentType]  (balls are points, widened)
        needed = values[self._dim + 2 :]
        for ball, (expr, sign) in zip(needed, self._smooth, strict=True):
            good = ball != 0 if sign == "≠ 0" else ball > 0 if sign == "> 0" else ball >= 0
            if not good:
                raise Undefined(f"the formula is C² where {expr} {sign}, which is not certain there.")
        if not all(b.is_finite() for b in values):
            raise Undefined("the formula or a derivative may be undefined there.")
        return list(values[: self._dim]), values[self._dim]
