"""A function of the state with one definition and two views: SymPy and JAX.

Inside ctrlgen arrays are dimension-first: a state is (d,), a batch is (d, n), so that the particles
are the trailing axis and XLA can vectorise over them. The public boundary is (d,) and (n, d).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import sympy as sp

from ctrlgen.formula import (
    check_formula,
    derivative,
    entries_of,
    jax_function,
    parse,
    rationalise,
    read_formula,
    real_states,
    symbols,
)
from ctrlgen.objects import Trials, numpy_formulas
from ctrlgen.precision import float64
from ctrlgen.scalars import NoFormula
from ctrlgen.system import Linear, Wired, autonomous, equations
from ctrlgen.trace import to_sympy

__all__ = ["Field", "VectorField", "parse", "rationalise", "symbols"]


class Field:
    """A scalar function of the state: an exact formula where there is one, and the same thing as a JAX function.

    Everything that is derived from it (gradient, Hessian, derivative along a vector field, generator of a diffusion)
    is derived here, from the formula where there is one, by JAX autodiff elsewhere.

    Args:
        expr: a SymPy expression, a number, a string, an energy, or a JAX-traceable function (d,) -> (). Floats are
            read as decimals (`rationalise`). A function is traced to find its formula; when it has none, `expr` is
            None and `why_no_formula` says why.
        states: names or symbols, in the order of the coordinates. They are real variables: a plain symbol is
            replaced by the real one of its name (`outward` gives formulas back in the symbols that were given).
        name: what error messages call `expr`.

    Raises:
        ValueError: expr has symbols that are not states, is not real, is not scalar, or cannot be traced.
    """

    def __init__(self, expr: Any, states: Sequence[str | sp.Symbol], name: str = "expr"):
        self.states, self.given = real_states(states), symbols(states)
        self.why_no_formula = ""
        self._native: Callable | None = None
        self.expr: Any = None
        if isinstance(expr, Field):
            self.expr, self._native, self.why_no_formula = _same_states(expr, self.states, name)
        elif _is_energy(expr):
            _check_dim(expr.dim, self.states, name)
            try:
                self.expr = check_formula(expr.symbolic(self.states), self.states, name)
            except TypeError as error:
                self._native, self.why_no_formula = _flat(expr.potential), str(error)
        elif _is_function(expr):
            values, self._native, self.why_no_formula = traced(expr, self.states, (), name)
            self.expr = None if values is None else check_formula(values[()], self.states, name, real=False)
        else:
            self.expr = read_formula(expr, self.states, name)

    @classmethod
    def of_function(cls, function: Callable, states: Sequence[sp.Symbol], why: str) -> Field:
        """A field without formula: `function` maps (d,) to (); `why` says why there is no formula."""
        field = cls(0, states)
        field.expr, field._native, field.why_no_formula = None, over_batch(function), why
        return field

    def __eq__(self, other: object) -> bool:
        """The same formula in the same symbols; where code was given, the same code beside it."""
        return isinstance(other, Field) and self._parts == other._parts

    def __hash__(self) -> int:
        return hash(self._parts)

    @property
    def _parts(self) -> tuple[Any, ...]:
        return self.states, self.given, self.expr, self._native

    @property
    def dim(self) -> int:
        """d, the number of states."""
        return len(self.states)

    @property
    def is_code(self) -> bool:
        """Is its JAX view a function that was given, with or without a formula beside it?"""
        return self._native is not None

    @cached_property
    def _function(self) -> Callable:
        return jax_function(self.states, [self.formula()])

    def outward(self, expr: Any) -> Any:
        """A formula of `states` in the symbols that were given as states."""
        return expr.xreplace(dict(zip(self.states, self.given, strict=True)))

    def formula(self) -> Any:
        """`expr`, or a TypeError that says why there is none."""
        if self.expr is None:
            raise TypeError(f"this function has no formula: {self.why_no_formula}")
        return self.expr

    def columns(self, x: Any) -> Any:
        """The JAX view: (d, ...) -> (...)."""
        if self._native is not None:
            return self._native(x)
        (value,) = self._function(*(x[i] for i in range(self.dim)))
        return jnp.broadcast_to(jnp.asarray(value, x.dtype), x.shape[1:])

    def _plain(self, x: Any) -> Any:
        """The JAX view to differentiate: of the formula where there is one, for code may hold rules of its own.

        `stop_gradient` and `custom_jvp` change what JAX takes for the derivative; a formula has but one.
        """
        if self.expr is None:
            return self.columns(x)
        (value,) = self._function(*(x[i] for i in range(self.dim)))
        return jnp.broadcast_to(jnp.asarray(value, x.dtype), x.shape[1:])

    def at(self, point: Sequence[Any]) -> Any:
        """The exact value at d exact numbers (floats are read as decimals).

        Raises:
            TypeError: there is no formula.
        """
        return self.formula().xreplace(_values(self.states, point))

    def gradient(self) -> VectorField:
        """∇V, a vector field; it iterates over its expressions."""
        if self.expr is not None:
            return VectorField.of_formulas([derivative(self.expr, s) for s in self.states], self.states)
        return VectorField.of_function(jax.grad(self.columns), self.states, self.why_no_formula)

    @cached_property
    def _hessian(self) -> Any:
        first = [derivative(self.formula(), s) for s in self.states]
        d = range(self.dim)
        upper = {(i, j): derivative(first[i], self.states[j]) for i in d for j in d if j >= i}
        return sp.ImmutableMatrix(self.dim, self.dim, lambda i, j: upper[min(i, j), max(i, j)])

    def hessian(self) -> sp.ImmutableMatrix:
        """∇²V as a (d, d) matrix of formulas.

        Raises:
            TypeError: there is no formula; `hessian_columns` is there always.
            ValueError: the formula is not twice differentiable (Abs, Min, Max).
        """
        return self._hessian

    def hessian_columns(self, x: Any) -> Any:
        """∇²V by JAX autodiff at one state: (d,) -> (d, d)."""
        return jax.hessian(self._plain)(x)

    def laplacian(self) -> Field:
        """ΔV."""
        if self.expr is not None:
            return self._new(sp.Add(*(self._hessian[i, i] for i in range(self.dim))))
        return Field.of_function(lambda x: jnp.trace(self.hessian_columns(x)), self.states, self.why_no_formula)

    def lie(self, f: Any) -> Field:
        """The derivative along a vector field, ∇V·f."""
        f = VectorField(f, self.states)
        if self.expr is not None and f.exprs is not None:
            return self._new(sp.Add(*(g * v for g, v in zip(self.gradient(), f.exprs, strict=True))))
        return Field.of_function(
            lambda x: jax.jvp(self._plain, (x,), (f.columns(x),))[1],
            self.states,
            self.why_no_formula or f.why_no_formula,
        )

    def generator(self, f: Any, diffusion: Any = None) -> Field:
        """The generator of dX = f dt + G dW applied to V: ∇V·f + ½ tr(G Gᵀ ∇²V).

        Args:
            f: a vector field.
            diffusion: G, a (d, m) matrix of formulas; a vector of d formulas is one noise, m = 1; a scalar s is s·I;
                a JAX function of the state returns one of these. None is no noise.

        Raises:
            ValueError: G has another shape, or V is not twice differentiable.

        Reference: Øksendal, Stochastic Differential Equations (2003), theorem 7.3.3.
        """
        drift = self.lie(f)
        if diffusion is None:
            return drift
        noise, function, why = diffusion_matrix(diffusion, self.states)
        if drift.expr is not None and noise is not None:
            d = range(self.dim)
            trace = sp.Add(*(noise[i, j] * self._hessian[i, j] for i in d for j in d))
            return self._new(drift.expr + trace / 2)

        def value(x):
            return drift.columns(x) + jnp.sum(function(x) * self.hessian_columns(x)) / 2

        return Field.of_function(value, self.states, drift.why_no_formula or why)

    def after(self, f: Any) -> Field:
        """The composition V∘f, the value one step later in discrete time."""
        f = VectorField(f, self.states)
        if self.expr is not None and f.exprs is not None:
            return self._new(self.expr.xreplace(dict(zip(self.states, f.exprs, strict=True))))
        return Field.of_function(
            lambda x: self.columns(f.columns(x)), self.states, self.why_no_formula or f.why_no_formula
        )

    def _new(self, expr: Any) -> Field:
        """A field derived from this one: real where it is finite, for this one is."""
        field = Field(0, self.states)
        field.expr = check_formula(expr, self.states, "expr", real=False)
        return field

    def _with(self, other: Any, operation: Callable) -> Field:
        other = other if isinstance(other, Field) else Field(other, self.states)
        if self.expr is not None and other.expr is not None:
            return self._new(operation(self.expr, other.expr))
        return Field.of_function(
            lambda x: operation(self.columns(x), other.columns(x)),
            self.states,
            self.why_no_formula or other.why_no_formula,
        )

    def __add__(self, other: Any) -> Field:
        return self._with(other, lambda a, b: a + b)

    def __sub__(self, other: Any) -> Field:
        return self._with(other, lambda a, b: a - b)

    def __mul__(self, other: Any) -> Field:
        return self._with(other, lambda a, b: a * b)

    def __neg__(self) -> Field:
        return self * -1

    def __repr__(self) -> str:
        return f"Field({self.expr if self.expr is not None else 'no formula'}, {[s.name for s in self.states]})"


class VectorField:
    """A vector field of the state, (d,) -> (d,), with the two views of a `Field`.

    Args:
        f: d formulas (a sequence of SymPy expressions, numbers or strings, or a SymPy vector), in the order of the
            states; a function (d,) -> (d,) in JAX or NumPy; a python-control StateSpace, NonlinearIOSystem or
            InterconnectedSystem (its inputs are zero); or an energy E, which means -∇E.
        states: names or symbols, in the order of the coordinates.
        name: what error messages call `f`.

    Raises:
        ValueError: f does not have d components, or a component is not a real formula of the states.

    `discrete` is whether a python-control system is in discrete time; None for everything that does not say so.
    """

    def __init__(self, f: Any, states: Sequence[str | sp.Symbol], name: str = "f"):
        self.states = real_states(states)
        self.why_no_formula = ""
        self.discrete: bool | None = None
        self._native: Callable | None = None
        self.exprs: tuple[Any, ...] | None = None
        if isinstance(f, VectorField):
            found, self._native, self.why_no_formula = _same_states(f, self.states, name)
            self.exprs, self.discrete = found, f.discrete
        elif _is_energy(f):
            force = -Field(f, self.states, name)
            slope = force.gradient()
            self.exprs, self._native, self.why_no_formula = slope.exprs, slope._native, slope.why_no_formula
        elif hasattr(f, "updfcn") or (hasattr(f, "A") and hasattr(f, "dt")):
            self._read_system(f, name)
        elif hasattr(f, "dt") and hasattr(f, "ninputs"):
            raise ValueError(f"{name} must have a state; got a {type(f).__name__}. Pass control.ss({name}).")
        elif _is_function(f):
            self._read_function(f, name)
        else:
            self.exprs = self._read_sequence(f, name)

    @classmethod
    def of_function(cls, function: Callable, states: Sequence[sp.Symbol], why: str) -> VectorField:
        """A vector field without formula: `function` maps (d,) to (d,); `why` says why there is no formula."""
        field = cls([0] * len(states), states)
        field.exprs, field._native, field.why_no_formula = None, over_batch(function), why
        return field

    @classmethod
    def of_formulas(cls, exprs: Sequence[Any], states: Sequence[sp.Symbol]) -> VectorField:
        """A vector field of formulas that are known to be exact, real and of the states alone."""
        field = cls([0] * len(states), states)
        field.exprs = tuple(exprs)
        return field

    def _read_system(self, system: Any, name: str) -> None:
        count = getattr(system, "nstates", None)
        if count not in (None, self.dim):
            raise ValueError(f"{name} must have {_components(self.dim)}; got a system with {count} states.")
        self.discrete = None if system.dt is None else bool(system.dt)
        if getattr(system, "updfcn", True) is None:
            raise ValueError(f"{name} must have a state; its output does not depend on one.")
        found = equations(system, states=self.dim)
        try:
            self.exprs = self._checked(autonomous(found, self.states), name)
        except NoFormula as error:
            if found.in_python or found.timed:
                raise ValueError(
                    f"{name} must be a system whose updfcn computes with its state by arithmetic and NumPy functions; "
                    f"{error}. Give the right-hand side as formulas, one a state."
                ) from None
            self._native = over_batch(
                lambda x: found.rate(jnp.zeros((), x.dtype), x, jnp.zeros(found.ninputs, x.dtype))
            )
            self.why_no_formula = str(error)
        else:
            if isinstance(found, (Linear, Wired)):
                self._hold_against(system, name)

    def _hold_against(self, system: Any, name: str) -> None:
        """Matrices that were changed after an interconnection was linearized, or methods that a subclass has anew."""
        none = np.zeros(int(system.ninputs or 0))
        values = sp.lambdify(self.states, self.exprs, modules=["scipy", "numpy"], cse=True, dummify=True)
        trials = Trials(lambda t, x, u: system.dynamics(t, x, none), self.dim, 0)
        if said := trials.difference(lambda t, x, u: values(*x)):
            raise ValueError(f"{name} must be what its parts or matrices are, with zero inputs; its dynamics {said}.")

    def _read_function(self, f: Callable, name: str) -> None:
        values, self._native, self.why_no_formula = traced(f, self.states, (self.dim,), name)
        self.exprs = None if values is None else self._checked(values, name, real=False)

    def _read_sequence(self, f: Any, name: str) -> tuple[Any, ...]:
        entries = entries_of(f)
        if not isinstance(entries, list) or (entries and isinstance(entries[0], list)):
            raise ValueError(
                f"{name} must be {_components(self.dim)}: formulas, a function, a python-control system or an energy; "
                f"got {f'shape {shape}' if (shape := getattr(f, 'shape', None)) else type(f).__name__}. "
                "Of a linear system pass A*x, or control.ss(A, B, C, D)."
            )
        return self._checked(entries, name)

    def _checked(self, entries: Any, name: str, real: bool = True) -> tuple[Any, ...]:
        entries = list(entries)
        if len(entries) != self.dim:
            raise ValueError(f"{name} must have {_components(self.dim)}; got {len(entries)}.")
        return tuple(read_formula(e, self.states, f"{name}[{i}]", real) for i, e in enumerate(entries))

    @property
    def dim(self) -> int:
        """d, the number of states."""
        return len(self.states)

    def formulas(self) -> tuple[Any, ...]:
        """`exprs`, or a TypeError that says why there are none."""
        if self.exprs is None:
            raise TypeError(f"this vector field has no formula: {self.why_no_formula}")
        return self.exprs

    def __iter__(self) -> Iterator[Any]:
        return iter(self.formulas())

    def __len__(self) -> int:
        return self.dim

    @cached_property
    def _function(self) -> Callable:
        return jax_function(self.states, self.formulas())

    def columns(self, x: Any) -> Any:
        """The JAX view: (d, ...) -> (d, ...)."""
        if self._native is not None:
            return self._native(x)
        values = self._function(*(x[i] for i in range(self.dim)))
        return jnp.stack([jnp.broadcast_to(jnp.asarray(v, x.dtype), x.shape[1:]) for v in values])

    def at(self, point: Sequence[Any]) -> tuple[Any, ...]:
        """The d exact values at d exact numbers (floats are read as decimals).

        Raises:
            TypeError: there is no formula.
        """
        values = _values(self.states, point)
        return tuple(e.xreplace(values) for e in self.formulas())

    @cached_property
    def _jacobian(self) -> sp.ImmutableMatrix:
        return sp.ImmutableMatrix([[derivative(e, s) for s in self.states] for e in self.formulas()])

    def jacobian(self) -> sp.ImmutableMatrix:
        """∂fᵢ/∂xⱼ as a (d, d) matrix of formulas.

        Raises:
            TypeError: there is no formula; `jacobian_columns` is there always.
        """
        return self._jacobian

    def jacobian_columns(self, x: Any) -> Any:
        """∂fᵢ/∂xⱼ by JAX autodiff at one state: (d,) -> (d, d)."""
        return jax.jacfwd(self.columns)(x)

    def __neg__(self) -> VectorField:
        if self.exprs is not None:
            return VectorField.of_formulas([-e for e in self.exprs], self.states)
        return VectorField.of_function(lambda x: -self.columns(x), self.states, self.why_no_formula)

    def __repr__(self) -> str:
        return f"VectorField({self.exprs if self.exprs is not None else 'no formula'}, {[s.name for s in self.states]})"


# What the user gives as code ------------------------------------------------------------------------------------------


def traced(
    function: Callable, states: tuple[sp.Symbol, ...], shape: tuple[int, ...] | None, name: str
) -> tuple[np.ndarray | None, Callable | None, str]:
    """The formulas of a function (d,) -> shape, its JAX view where it is one, and why there is no formula.

    Raises:
        ValueError: the function runs neither in JAX nor on formulas, or returns another shape.
    """
    dim, why = len(states), ""

    def wrapped(x: Any) -> Any:
        out = function(x)
        return jnp.stack([jnp.asarray(v, x.dtype) for v in out]) if isinstance(out, (list, tuple)) else jnp.asarray(out)

    values, native = None, None
    try:
        with float64():
            probe = jax.eval_shape(wrapped, jax.ShapeDtypeStruct((dim,), jnp.float64))
    except Exception as error:
        try:
            values = numpy_formulas(function, states)
        except NoFormula:
            raise ValueError(
                f"{name} must be JAX-traceable on a state of shape ({dim},); it raised {type(error).__name__}: "
                f"{error}. Write it with jax.numpy, or give formulas."
            ) from error
        got = values.shape
        read = sp.lambdify(states, values.tolist(), modules=["scipy", "numpy"], cse=True, dummify=True)
        said = Trials(lambda t, x, u: function(x), dim, 0).difference(lambda t, x, u: read(*x))
        if said:
            raise ValueError(
                f"{name} must do the same with numbers as with symbols; it {said}. Give formulas."
            ) from error
    else:
        got, kind = probe.shape, probe.dtype
        if not (jnp.issubdtype(kind, jnp.floating) or jnp.issubdtype(kind, jnp.integer)):
            raise ValueError(f"{name} must return real numbers; got type {kind}.")
        native = over_batch(wrapped)
    if shape == () != got:
        raise ValueError(f"{name} must return one scalar, shape (), for a state of shape ({dim},); got shape {got}.")
    if shape not in (None, got):
        raise ValueError(f"{name} must have {_components(dim)}; got a function that returns shape {got}.")
    if values is None:
        try:
            values = to_sympy(wrapped, (dim,), states)
        except NoFormula as error:
            why = str(error)
    return values, native, why


def _flat(function: Callable) -> Callable:
    """An energy's own function of (d,) or (d, n) as one of (d, ...)."""

    def columns(x: Any) -> Any:
        return function(x) if x.ndim < 3 else function(x.reshape(x.shape[0], -1)).reshape(x.shape[1:])

    return columns


def over_batch(function: Callable) -> Callable:
    """A function (d,) -> shape as one of (d, ...) -> (*shape, ...), in the type of x."""

    def columns(x: Any) -> Any:
        if x.ndim == 1:
            return jnp.asarray(function(x), x.dtype)
        out = jax.vmap(function, in_axes=1, out_axes=-1)(x.reshape(x.shape[0], -1))
        return jnp.asarray(out.reshape(*out.shape[:-1], *x.shape[1:]), x.dtype)

    return columns


def diffusion_matrix(
    diffusion: Any, states: tuple[sp.Symbol, ...], name: str = "diffusion"
) -> tuple[Any, Callable, str]:
    """G Gᵀ as a (d, d) matrix of formulas (None without formula), the same in JAX (d,) -> (d, d), and why not.

    Args:
        diffusion: G as `Field.generator` takes it.

    Raises:
        ValueError: G has another shape, or an entry is not a real formula of the states.
    """
    d, why = len(states), ""
    entries: Any
    native: Any = None
    if _is_function(diffusion):
        entries, native, why = traced(diffusion, states, None, name)
        shape = (
            jax.eval_shape(native, jax.ShapeDtypeStruct((d,), jnp.float32)).shape if entries is None else entries.shape
        )
    else:
        entries = entries_of(diffusion)
        scalar = not isinstance(diffusion, (list, tuple, sp.Tuple, sp.MatrixBase, np.ndarray))
        entries = np.asarray(entries, dtype=object).reshape(() if scalar else np.shape(entries))
        if isinstance(diffusion, (sp.MatrixBase, np.ndarray)):
            entries = entries.reshape(diffusion.shape)
        shape = entries.shape
    if shape != () and not (len(shape) in (1, 2) and shape[0] == d and 0 not in shape):
        raise ValueError(
            f"{name} must be a scalar, a vector of {d} entries or a matrix of {d} rows, one a state; got shape {shape}."
        )
    if entries is None:

        def product(x: Any) -> Any:
            g = native(x)
            g = g * jnp.eye(d, dtype=x.dtype) if g.ndim == 0 else g.reshape(d, -1)
            return g @ g.T

        return None, product, why
    exact = [read_formula(e, states, name if shape == () else f"{name}[{i}]") for i, e in enumerate(entries.ravel())]
    g = exact[0] * sp.eye(d) if shape == () else sp.Matrix(d, len(exact) // d, exact)
    square = sp.ImmutableMatrix((g * g.T).applyfunc(_tidy))
    function = jax_function(states, square.flat())

    def values(x: Any) -> Any:
        return jnp.stack([jnp.asarray(v, x.dtype) for v in function(*x)]).reshape(d, d)

    return square, values, ""


def _tidy(expr: Any) -> Any:
    expr = sp.expand(expr)
    return sp.trigsimp(expr) if expr.has(sp.sin, sp.cos, sp.tan) else expr


def _components(dim: int) -> str:
    return f"{dim} components, one a state"


def _is_energy(value: Any) -> bool:
    return all(hasattr(value, name) for name in ("potential", "slope", "symbolic", "dim"))


def _is_function(value: Any) -> bool:
    return callable(value) and not isinstance(value, (type, sp.Basic, sp.MatrixBase, Field, VectorField))


def _check_dim(dim: int, states: tuple[sp.Symbol, ...], name: str) -> None:
    if dim != len(states):
        raise ValueError(
            f"{name} is an energy of dimension {dim}, but there are {len(states)} states: {[s.name for s in states]}. "
            "Name one state a dimension."
        )


def _same_states(field: Any, states: tuple[sp.Symbol, ...], name: str) -> tuple[Any, Any, str]:
    """The formula, function and reason of a Field or VectorField, for these states."""
    if [s.name for s in field.states] != [s.name for s in states]:
        raise ValueError(
            f"{name} is a function of the states {[s.name for s in field.states]}; got {[s.name for s in states]}."
        )
    change = dict(zip(field.states, states, strict=True))
    if isinstance(field, VectorField):
        found = None if field.exprs is None else tuple(e.xreplace(change) for e in field.exprs)
    else:
        found = None if field.expr is None else field.expr.xreplace(change)
    return found, field._native, field.why_no_formula


def _values(states: tuple[sp.Symbol, ...], point: Sequence[Any]) -> dict:
    values = [rationalise(p) for p in point]
    if len(values) != len(states):
        raise ValueError(f"point must have {_components(len(states))}; got {len(values)}.")
    return dict(zip(states, values, strict=True))
