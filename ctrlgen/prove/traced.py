"""A function without formula, such as a network, as what branch and bound needs: enclosures of its value and slopes.

Values come from the function's jaxpr over balls (`ctrlgen.trace`). Slopes come from the jaxpr of its derivative, by the
rules of JAX's primitives only: rules that a user attached to a function (`custom_jvp`, `stop_gradient`) need not be its
derivative, and the mean value theorem needs that. For the same reason a box on which the function may branch, where it
may jump, has a value and no slopes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from flint import arb, ctx, fmpq

from ctrlgen.prove.balls import SIGN_BITS, Undefined, Unsupported
from ctrlgen.trace import CALLS, SAME, ArbDomain, NoFormula, interpret, trace

LOOPS = {"scan", "while", "cond"}


class _Watching(ArbDomain):
    """Balls, and whether a comparison or a jump was left open since `open` was last cleared."""

    def __init__(self):
        super().__init__()
        self.open = False

    def union(self, cases):
        if any(case is not cases[0] for case in cases):
            self.open = True
        return super().union(cases)

    def sign(self, a):
        self.open = self.open or not (a > 0 or a < 0)
        return super().sign(a)

    def atan2(self, y, x):
        self.open = self.open or not (x > 0 or y > 0 or y < 0)
        return super().atan2(y, x)


def primitives_only(closed: Any) -> Callable:
    """The function of a jaxpr with all calls written out: its derivative uses no rule but those of the primitives.

    Raises:
        Unsupported: the jaxpr has loops.
    """
    import jax

    def run(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
        env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

        def read(v: Any) -> Any:
            return v.val if hasattr(v, "val") else env[v]

        for eqn in jaxpr.eqns:
            values, name = [read(v) for v in eqn.invars], eqn.primitive.name
            if name in LOOPS:
                raise Unsupported(f"the function has the loop {name!r}.")
            if name in CALLS:
                inner = next(eqn.params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in eqn.params)
                out = run(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), values)
            elif name in SAME:
                out = values
            else:
                found = eqn.primitive.bind(*values, **eqn.params)
                out = found if eqn.primitive.multiple_results else [found]
            env.update(zip(eqn.outvars, out, strict=True))
        return [read(v) for v in jaxpr.outvars]

    return lambda x: jax.numpy.reshape(run(closed.jaxpr, closed.consts, [x])[0], ())


class Traced:
    """One function (d,) -> () with its enclosures; the same uses as `boxes.Formula`.

    Raises:
        Unsupported: the function does something that has no enclosure.
    """

    def __init__(self, function: Callable, dim: int):
        import jax

        self._domain = _Watching()
        self._smooth: tuple[Any, bool] = (None, False)
        try:
            self._value = trace(function, (dim,))
            try:
                self._slope = trace(jax.grad(primitives_only(self._value)), (dim,))
            except Unsupported:
                self._slope = None
        except (NoFormula, TypeError) as error:
            raise Unsupported(f"the function cannot be traced: {error}") from None

    def _run(self, closed: Any, x: Sequence[arb]) -> np.ndarray:
        argument = np.empty(len(x), dtype=object)
        argument[:] = list(x)
        self._domain.open = False
        try:
            return interpret(closed, [argument], self._domain)[0].ravel()
        except NoFormula as error:
            raise Unsupported(str(error)) from None

    def wide(self, x: Sequence[arb]) -> arb:
        """The value on a box.

        Raises:
            Undefined: it may be undefined somewhere in the box.
        """
        value = self._run(self._value, x)[0]
        self._smooth = (x, not self._domain.open)
        if not value.is_finite():
            raise Undefined("the function may be undefined.")
        return value

    point = wide

    def slopes(self, x: Sequence[arb]) -> Sequence[arb] | None:
        """Enclosures of the partial derivatives on a box; None where the function may branch or jump on it."""
        if self._slope is None:
            return None
        if self._smooth[0] is not x:
            self.wide(x)
        return list(self._run(self._slope, x)) if self._smooth[1] else None

    def sign(self, x: Sequence[fmpq]) -> int | None:
        """The certain sign at a rational point; None where it was not found."""
        for bits in SIGN_BITS:
            with ctx.workprec(bits):
                try:
                    value = self.wide([arb(v) for v in x])
                except Undefined:
                    continue
                if value > 0 or value < 0:
                    return 1 if value > 0 else -1
        return None
