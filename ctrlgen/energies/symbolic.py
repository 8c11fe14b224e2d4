"""Energies from the user's own definition: any SymPy expression, any JAX-traceable function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ctrlgen.energies.base import Energy, Properties, default_states
from ctrlgen.field import Field, symbols


class SymbolicEnergy(Energy):
    """The energy given by a formula.

    Args:
        expr: a SymPy expression, or a string of arithmetic and elementary functions (read without eval).
        states: names or symbols, in the order of the coordinates.

    Raises:
        ValueError: expr is not a real formula of the states alone.
    """

    field: Field = eqx.field(static=True)
    dim: int = eqx.field(static=True)

    def __init__(self, expr: Any, states: Sequence[Any]):
        self.field = Field(expr, states)
        self.dim = self.field.dim

    def potential(self, x):
        return self.field.columns(x)

    @property
    def properties(self) -> Properties:
        """Bounds that hold on the whole space, from the formula (`ctrlgen.energies.formulas`)."""
        from ctrlgen.energies.formulas import formula_properties

        if self.field.expr is None:
            return Properties()
        return formula_properties(self.field.formula(), self.field.states)

    def symbolic(self, states: Any = None):
        if self.field.expr is None:
            raise TypeError(f"SymbolicEnergy of this function has no symbolic view: {self.field.why_no_formula}")
        if states is None:
            return self.field.outward(self.field.expr)
        new = symbols(states)
        if len(new) != self.dim:
            raise ValueError(f"states must name {self.dim} variables for this energy; got {len(new)}.")
        return self.field.expr.subs(dict(zip(self.field.states, new, strict=True)), simultaneous=True)

    def __repr__(self) -> str:
        return f"SymbolicEnergy({self.field.expr}, states={[s.name for s in self.field.states]})"


class CallableEnergy(Energy):
    """The energy given by any JAX-traceable function of one state.

    Args:
        function: (d,) -> scalar, written with jax.numpy.
        dim: d >= 1.

    Raises:
        ValueError: the function, probed at a state of shape (d,), does not return one real floating-point scalar.
    """

    function: Callable = eqx.field(static=True)
    dim: int = eqx.field(static=True)

    def __init__(self, function: Callable, dim: int):
        if not callable(function):
            raise ValueError(f"function must be callable; got {type(function).__name__}.")
        if not isinstance(dim, int) or dim < 1:
            raise ValueError(f"dim must be an integer of at least 1; got {dim!r}.")
        try:
            out = jax.eval_shape(function, jax.ShapeDtypeStruct((dim,), jnp.float32))
        except Exception as error:
            raise ValueError(
                f"function must be JAX-traceable on a state of shape ({dim},); "
                f"it raised {type(error).__name__}: {error}"
            ) from error
        shape, dtype = getattr(out, "shape", None), getattr(out, "dtype", None)
        if shape != () or dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(f"function must return one real scalar, shape (); got shape {shape} of type {dtype}.")
        self.function, self.dim = function, dim

    def potential(self, x):
        return self.function(x) if x.ndim == 1 else jax.vmap(self.function, in_axes=1)(x)

    @property
    def properties(self) -> Properties:
        """As for a formula, where the function can be read as one; nothing is established where it cannot."""
        field = read(self.function, self.dim)
        if field.expr is None:
            return Properties()
        from ctrlgen.energies.formulas import formula_properties

        return formula_properties(field.expr, field.states)


@lru_cache(maxsize=64)
def read(function: Callable, dim: int) -> Field:
    """The function as a formula, if it has one."""
    return Field(function, default_states(None, dim))
