"""A python-control system as equations, ẋ = f(t, x, u) and y = h(t, x, u), in JAX and in SymPy.

Linear systems are their matrices, interconnections are wired again from their parts, and code is run by JAX, on
symbols (NumPy), or as the Python that it is, in this order. Of the first two, that does the same with numbers as
plain Python does, at points that are tried, is taken. In discrete time f is the next state.
"""

from __future__ import annotations

import dis
import threading
import types
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import sympy as sp

from ctrlgen.formula import jax_function, rationalise
from ctrlgen.objects import Trials, numpy_formulas
from ctrlgen.precision import float64
from ctrlgen.scalars import NoFormula
from ctrlgen.trace import to_sympy

Exprs = list[Any]
LOOKS = {"locals", "vars", "dir", "eval", "exec", "_getframe", "currentframe", "stack"}  # at arguments unnamed
_PYTHON = threading.RLock()  # python-control systems keep the parameters of the call under way


class Equations(ABC):
    """The equations of a system. JAX arguments are t (), x (nstates,), u (ninputs,); SymPy ones are lists."""

    nstates: int
    ninputs: int
    noutputs: int
    dt: Any = 0

    @abstractmethod
    def rate(self, t: Any, x: Any, u: Any) -> Any:
        """ẋ, or the next state, (nstates,), in the type of x."""

    @abstractmethod
    def output(self, t: Any, x: Any, u: Any) -> Any:
        """y, (noutputs,), in the type of x."""

    @abstractmethod
    def rate_formulas(self, t: Any, x: Exprs, u: Exprs) -> Exprs:
        """ẋ of formulas.

        Raises:
            NoFormula: there is none.
        """

    @abstractmethod
    def output_formulas(self, t: Any, x: Exprs, u: Exprs) -> Exprs:
        """y of formulas.

        Raises:
            NoFormula: there is none.
        """

    @property
    @abstractmethod
    def feedthrough(self) -> np.ndarray:
        """Which outputs may depend on which inputs at once, (noutputs, ninputs) of bool."""

    @property
    def in_python(self) -> bool:
        """Whether a part of it runs as Python, row by row: slow, and without derivatives."""
        return False

    @property
    def discrete(self) -> bool:
        """Whether it is in discrete time."""
        return self.dt is not None and bool(self.dt)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.nstates} states, {self.ninputs} inputs, {self.noutputs} outputs)"

    @cached_property
    def timed(self) -> bool:
        """Whether ẋ may depend on the time itself."""
        return _timed(self.rate, self.rate_formulas, self.nstates, self.ninputs)

    @cached_property
    def shows_state(self) -> bool:
        """Whether the outputs are the states, in order."""
        if self.noutputs != self.nstates or self.feedthrough.any():
            return False
        t, x, u = _dummies(self.nstates, self.ninputs)
        try:
            return all(a == b for a, b in zip(self.output_formulas(t, x, u), x, strict=True))
        except NoFormula:
            return False


class Linear(Equations):
    """ẋ = Ax + Bu, y = Cx + Du; a snapshot of the matrices."""

    def __init__(self, a: Any, b: Any, c: Any, d: Any, dt: Any):
        self.a, self.b, self.c, self.d = (np.array(m, dtype=np.float64) for m in (a, b, c, d))
        if not all(np.isfinite(m).all() for m in (self.a, self.b, self.c, self.d)):
            raise ValueError("system must have finite matrices; an entry of A, B, C or D is not.")
        self.nstates, self.dt = len(self.a), dt
        self.noutputs, self.ninputs = self.d.shape

    def rate(self, t, x, u):
        return _product(self.a, x) + _product(self.b, u)

    def output(self, t, x, u):
        return _product(self.c, x) + _product(self.d, u)

    def rate_formulas(self, t, x, u):
        return _added(_exact_product(self.a, x), _exact_product(self.b, u))

    def output_formulas(self, t, x, u):
        return _added(_exact_product(self.c, x), _exact_product(self.d, u))

    @property
    def feedthrough(self):
        return self.d != 0


class Coded(Equations):
    """A NonlinearIOSystem: its functions of (t, x, u, params), with the parameters that it has now."""

    def __init__(self, system: Any, params: dict, states: int = 0):
        self.nstates = int(states if system.nstates is None else system.nstates)
        self.ninputs, self.dt = int(system.ninputs or 0), system.dt
        update, out = system.updfcn, system.outfcn
        sizes = self.nstates, self.ninputs
        self._rate = None
        if self.nstates:
            self._rate = Code(update, params, system.dynamics, *sizes, self.nstates, "updfcn")
        self._output = None
        self.noutputs = int(self.nstates if system.noutputs is None else system.noutputs)
        if out is not None:
            self._output = Code(out, params, system.output, *sizes, system.noutputs, "outfcn")
            self.noutputs = self._output.size

    def rate(self, t, x, u):
        return x if self._rate is None else self._rate(t, x, u)

    def output(self, t, x, u):
        return x[: self.noutputs] if self._output is None else self._output(t, x, u)

    def rate_formulas(self, t, x, u):
        return [] if self._rate is None else self._rate.formulas(t, x, u)

    def output_formulas(self, t, x, u):
        return list(x[: self.noutputs]) if self._output is None else self._output.formulas(t, x, u)

    @property
    def feedthrough(self):
        return self._through

    @cached_property
    def _through(self) -> np.ndarray:
        if self._output is None:
            return np.zeros((self.noutputs, self.ninputs), dtype=bool)
        return self._output.uses_inputs()

    @property
    def in_python(self):
        return any(code is not None and code.how == "python" for code in (self._rate, self._output))


class Code:
    """A function of (t, x, u) that a user wrote, and how it can be run: by "jax", by its "formulas", or in "python".

    Args:
        written: the function of (t, x, u, params).
        params: the last argument.
        whole: the method of the system that calls it, of the same arguments: what the system computes.
    """

    def __init__(
        self, written: Callable, params: dict, whole: Callable, nstates: int, ninputs: int, size: int | None, name: str
    ):
        self.nstates, self.ninputs, self._name = nstates, ninputs, name
        self._written, self._params, self._whole = written, params, whole
        self.how: str = "jax"
        self._found: Exprs | NoFormula
        probe = [jax.ShapeDtypeStruct(s, np.float64) for s in ((), (nstates,), (ninputs,))]
        try:
            with float64():
                got = jax.eval_shape(self._by_jax, *probe).shape[0]
        except Exception:
            self.how, self._found = self._read_symbols()
            with np.errstate(all="ignore"):
                got = len(
                    self._by_python(0.0, np.zeros(nstates), np.zeros(ninputs))
                    if isinstance(self._found, NoFormula)
                    else self._found
                )
        else:
            self.how, self._found = self._read_jax()
        self.size = got
        if size is not None and got != size:
            raise ValueError(f"{name} must return {size} numbers, as the system declares; got {got}.")

    def _function(self, t: Any, x: Any, u: Any) -> Any:
        return self._written(t, x, u, self._params)

    @cached_property
    def _trials(self) -> Trials:
        return Trials(self._as_it_is, self.nstates, self.ninputs)

    def _as_it_is(self, t: float, x: np.ndarray, u: np.ndarray) -> Any:
        with _PYTHON:
            try:
                return self._whole(t, x, u, self._params)
            except (AttributeError, TypeError):
                if self.how != "jax":
                    raise
                return self._by_jax(t, jnp.asarray(x), jnp.asarray(u))  # it calls methods of JAX's arrays

    def _read_symbols(self) -> tuple[str, Exprs | NoFormula]:
        """By NumPy on symbols; else it is "python"."""
        n = self.nstates
        try:
            found = numpy_formulas(lambda z: self._function(z[-1], z[:n], z[n:-1]), self._symbols)
        except NoFormula as error:
            return "python", NoFormula(f"its {self._name} raised {error}")
        return self._held("formulas", list(found.ravel()))

    def _read_jax(self) -> tuple[str, Exprs | NoFormula]:
        """By JAX, with formulas where there are some; else it is "python"."""
        n, count = self.nstates, len(self._symbols)
        try:
            found = to_sympy(lambda z: self._by_jax(z[-1], z[:n], z[n:-1]), (count,), self._symbols)
        except NoFormula as error:
            known: Exprs | NoFormula = NoFormula(f"its {self._name}: {error}")
        else:
            how, known = self._held("jax", list(found.ravel()))
            if how == "jax":
                return how, known
        said = self._trials.difference(jax.jit(self._by_jax))
        return ("python", NoFormula(f"its {self._name} {said}")) if said else ("jax", known)

    def _held(self, how: str, exprs: Exprs) -> tuple[str, Exprs | NoFormula]:
        """The formulas, if they are the function where it is tried; else it is "python"."""
        values = sp.lambdify(self._symbols, exprs, modules=["scipy", "numpy"], cse=True)
        said = self._trials.difference(lambda t, x, u: values(*x, *u, np.float64(t)))
        return ("python", NoFormula(f"its {self._name} {said}")) if said else (how, exprs)

    def __call__(self, t: Any, x: Any, u: Any) -> Any:
        if self.how == "jax":
            given = (jnp.asarray(v) for v in (t, x, u))  # NumPy's own would make it other code
            return jnp.asarray(self._by_jax(*given), _type(x, u))
        if self.how == "formulas":
            return _stacked(self._lambdified(*x, *u, t), _type(x, u))
        return self._called_back(t, x, u)

    def _by_jax(self, t: Any, x: Any, u: Any) -> Any:
        out = self._function(t, x, u)
        out = jnp.stack([jnp.asarray(v) for v in out]) if isinstance(out, (list, tuple)) and out else jnp.asarray(out)
        if jnp.issubdtype(out.dtype, jnp.complexfloating):
            raise TypeError("complex numbers")
        return out.reshape(-1)

    def _by_python(self, t: Any, x: Any, u: Any) -> np.ndarray:
        try:
            with _PYTHON:
                out = self._whole(float(t), np.array(x, np.float64), np.array(u, np.float64), self._params)
            if np.iscomplexobj(out):
                raise TypeError("complex numbers")
            return np.asarray(out).astype(np.float64).reshape(-1)
        except Exception as error:
            raise ValueError(
                f"{self._name} must return numbers of (t, x, u, params) for x of shape ({self.nstates},) and u of "
                f"shape ({self.ninputs},); it raised {type(error).__name__}: {error}."
            ) from error

    def _called_back(self, t: Any, x: Any, u: Any) -> Any:
        kind = _type(x, u)

        def rows(time: Any, states: Any, inputs: Any) -> np.ndarray:
            batch = np.broadcast_shapes(np.shape(time), np.shape(states)[:-1], np.shape(inputs)[:-1])
            time = np.broadcast_to(time, batch).ravel()
            states = np.broadcast_to(states, (*batch, self.nstates)).reshape(-1, self.nstates)
            inputs = np.broadcast_to(inputs, (*batch, self.ninputs)).reshape(-1, self.ninputs)
            out = [self._by_python(*row) for row in zip(time, states, inputs, strict=True)]
            return np.array(out, dtype=kind).reshape(*batch, self.size)

        shape = jax.ShapeDtypeStruct((self.size,), kind)
        return jax.pure_callback(rows, shape, jnp.asarray(t, kind), x, u, vmap_method="broadcast_all")

    @cached_property
    def _symbols(self) -> list[sp.Dummy]:
        t, x, u = _dummies(self.nstates, self.ninputs)
        return [*x, *u, t]

    @property
    def exprs(self) -> Exprs:
        """The formulas in `_symbols`, x, u and t.

        Raises:
            NoFormula: there is none.
        """
        if isinstance(self._found, NoFormula):
            raise self._found
        return self._found

    def formulas(self, t: Any, x: Exprs, u: Exprs) -> Exprs:
        """The values at formulas."""
        return substituted(self.exprs, self._symbols, [*x, *u, t])

    @cached_property
    def _lambdified(self) -> Callable:
        return jax_function(self._symbols, self.exprs)

    def uses_inputs(self) -> np.ndarray:
        """Which entries may depend on which inputs: by formulas; for JAX by what its operations read; else by its code.

        A function that runs only as Python depends on all inputs, unless it never names them.
        """
        inputs = self._symbols[self.nstates : -1]
        try:
            return np.array([[s in e.free_symbols for s in inputs] for e in self.exprs], bool).reshape(
                self.size, self.ninputs
            )
        except NoFormula:
            pass
        whole = reads(self, self.nstates, self.ninputs, 2) if self.how == "jax" else not ignores(self._written, 2)
        return np.full((self.size, self.ninputs), whole)


class Wired(Equations):
    """An InterconnectedSystem: its parts, and the matrices that connect them."""

    def __init__(self, system: Any, params: dict):
        own = {**(getattr(system, "params", None) or {}), **params}
        self.parts = [equations(s, own) for s in system.syslist]
        self.nstates, self.dt = sum(p.nstates for p in self.parts), system.dt
        self.connect, self.entry, self.exit = (
            np.array(m, dtype=np.float64) for m in (system.connect_map, system.input_map, system.output_map)
        )
        self.noutputs, self.ninputs = len(self.exit), self.entry.shape[1]
        self._levels = self._order()

    def _blocks(self, name: str) -> list[slice]:
        ends = np.cumsum([0, *(getattr(p, name) for p in self.parts)])
        return [slice(int(a), int(b)) for a, b in pairwise(ends)]

    @cached_property
    def _direct(self) -> np.ndarray:
        """Which outputs of parts depend at once on which inputs of parts."""
        out = np.zeros(self.connect.T.shape, dtype=bool)
        for part, y, u in zip(self.parts, self._blocks("noutputs"), self._blocks("ninputs"), strict=True):
            out[y, u] = part.feedthrough
        return out

    def _order(self) -> list[list[int]]:
        """Which parts to evaluate at once, in which order: an output follows the inputs that it depends on."""
        through = self._direct @ (self.connect != 0)  # output after output
        level, found = np.zeros(len(through), dtype=int), False
        for _ in range(len(through) + 1):
            new = np.max(np.where(through, level[None, :] + 1, 0), axis=1, initial=0)
            found = bool((new == level).all())
            if found:
                break
            level = new
        if not found:
            raise ValueError(
                "the interconnected system must have no algebraic loop; an output depends at once on itself. Put a "
                "system with a state into the loop."
            )
        blocks = self._blocks("noutputs")
        return [
            [i for i, y in enumerate(blocks) if (level[y] == k).any()] for k in range(int(level.max(initial=-1)) + 1)
        ]

    def _signals(self, t: Any, x: Any, u: Any, exact: bool) -> tuple[list[Any], Any]:
        """The outputs of the parts, and all their inputs."""
        product: Any = _exact_product if exact else _product
        join: Any = _joined if exact else jnp.concatenate
        add: Any = _added if exact else (lambda a, b: a + b)
        kind = None if exact else _type(x, u)
        ys: list[Any] = [[sp.Integer(0)] * p.noutputs if exact else jnp.zeros(p.noutputs, kind) for p in self.parts]
        states, places = self._blocks("nstates"), self._blocks("ninputs")

        def inputs() -> Any:
            return add(product(self.connect, join(ys)), product(self.entry, u))

        for level in self._levels:
            now = inputs()
            for i in level:
                part = self.parts[i]
                given = t, x[states[i]], now[places[i]]
                ys[i] = part.output_formulas(*given) if exact else part.output(*given)
        return ys, inputs()

    def _rates(self, t: Any, x: Any, u: Any, exact: bool) -> Any:
        if not self.nstates:
            return x
        _, inputs = self._signals(t, x, u, exact)
        blocks = zip(self.parts, self._blocks("nstates"), self._blocks("ninputs"), strict=True)
        rates = [
            p.rate_formulas(t, x[s], inputs[v]) if exact else p.rate(t, x[s], inputs[v])
            for p, s, v in blocks
            if p.nstates
        ]
        return _joined(rates) if exact else jnp.concatenate(list[Any](rates))

    def _outputs(self, t: Any, x: Any, u: Any, exact: bool) -> Any:
        ys, inputs = self._signals(t, x, u, exact)
        signals: Any = [*ys, inputs]
        if exact:
            return _exact_product(self.exit, _joined(signals))
        return _product(self.exit, jnp.concatenate(signals))

    def rate(self, t, x, u):
        return self._rates(t, x, u, False)

    def output(self, t, x, u):
        return self._outputs(t, x, u, False)

    def rate_formulas(self, t, x, u):
        return self._rates(t, list(x), list(u), True)

    def output_formulas(self, t, x, u):
        return self._outputs(t, list(x), list(u), True)

    @property
    def feedthrough(self):
        return self._through

    @cached_property
    def _through(self) -> np.ndarray:
        reached = self.entry != 0  # inputs of parts, by inputs of the whole
        for _ in range(len(self._levels)):
            reached = reached | ((self.connect != 0) @ (self._direct @ reached))
        return (self.exit != 0) @ np.concatenate([self._direct @ reached, reached])

    @property
    def in_python(self):
        return any(p.in_python for p in self.parts)


def is_system(value: Any) -> bool:
    """Whether it is a python-control system; python-control is not imported for that."""
    return not isinstance(value, type) and all(hasattr(value, name) for name in ("ninputs", "noutputs", "dt"))


def equations(system: Any, params: dict | None = None, states: int = 0) -> Equations:
    """The equations of a python-control system as it is now.

    Args:
        system: a StateSpace, TransferFunction, NonlinearIOSystem or InterconnectedSystem.
        params: values that go before the system's own parameters.
        states: how many it has, where it does not say so itself; its inputs are then none, if it is silent on them.

    Raises:
        TypeError: it is none of these.
        ValueError: it cannot be evaluated, does not say how many inputs it has, or has an algebraic loop.
    """
    own = getattr(system, "equations", None)
    if isinstance(own, Equations):
        return own
    if not is_system(system):
        raise TypeError(
            "system must be a python-control StateSpace, TransferFunction, NonlinearIOSystem or InterconnectedSystem; "
            f"got {type(system).__name__}."
        )
    if hasattr(system, "num") and hasattr(system, "den"):
        import control

        return equations(control.ss(system))
    if system.ninputs is None and not states:
        raise ValueError("system must say how many inputs it has; got inputs=None. Pass inputs= to control.nlsys.")
    if hasattr(system, "syslist") and hasattr(system, "connect_map"):
        return Wired(system, params or {})  # a LinearICSystem too, whose matrices are found by finite differences
    if all(hasattr(system, name) for name in "ABCD"):
        return Linear(system.A, system.B, system.C, system.D, system.dt)
    if hasattr(system, "updfcn"):
        return Coded(system, {**(getattr(system, "params", None) or {}), **(params or {})}, states)
    raise TypeError(
        f"system must have equations in time; a {type(system).__name__} has none. Fit a control.ss to it first."
    )


def autonomous(system: Equations, states: Sequence[sp.Symbol]) -> Exprs:
    """The formulas of ẋ with zero inputs.

    Raises:
        NoFormula: there is none, or it depends on time.
    """
    time = sp.Dummy("t", real=True)
    exprs = system.rate_formulas(time, list(states), [sp.Integer(0)] * system.ninputs)
    if any(time in e.free_symbols for e in exprs):
        raise NoFormula("its right-hand side depends on time; add the time as a state, or give it a value")
    return exprs


def substituted(exprs: Sequence[Any], symbols: Sequence[Any], values: Sequence[Any]) -> Exprs:
    """The formulas with values for their symbols."""
    names = dict(zip(symbols, values, strict=True))
    return [e.xreplace(names) for e in exprs]


def reads(function: Callable, nstates: int, ninputs: int, argument: int) -> bool:
    """Whether a JAX function of (t, x, u) may depend on one of them, by what its operations read."""
    with float64():
        shapes = [jax.ShapeDtypeStruct(s, np.float64) for s in ((), (nstates,), (ninputs,))]
        jaxpr = jax.make_jaxpr(function)(*shapes).jaxpr
    reached = {jaxpr.invars[argument]}
    for eqn in jaxpr.eqns:
        if any(not hasattr(v, "val") and v in reached for v in eqn.invars):
            reached.update(eqn.outvars)
    return any(not hasattr(v, "val") and v in reached for v in jaxpr.outvars)


def ignores(function: Callable, argument: int) -> bool:
    """Whether a Python function never names one of its arguments, by its bytecode; False where that is not known."""
    if not isinstance(function, types.FunctionType):
        return False
    code = function.__code__
    if code.co_argcount <= argument or LOOKS & {*code.co_names, *code.co_freevars}:
        return False
    name = code.co_varnames[argument]
    named = (i.argval if isinstance(i.argval, tuple) else (i.argval,) for i in dis.get_instructions(code))
    return all(name not in names for names in named)


def _timed(rate: Callable, formulas: Callable, nstates: int, ninputs: int) -> bool:
    t, x, u = _dummies(nstates, ninputs)
    try:
        return any(t in e.free_symbols for e in formulas(t, x, u))
    except NoFormula:
        return reads(rate, nstates, ninputs, 0)


def _dummies(nstates: int, ninputs: int) -> tuple[sp.Dummy, list[sp.Dummy], list[sp.Dummy]]:
    x = [sp.Dummy(f"x{i}", real=True) for i in range(nstates)]
    return sp.Dummy("t", real=True), x, [sp.Dummy(f"u{i}", real=True) for i in range(ninputs)]


def _type(x: Any, u: Any) -> Any:
    """The type to compute in: of the states, or of the inputs where there are none."""
    return x.dtype if x.shape[0] or not u.shape[0] else u.dtype


def _product(matrix: np.ndarray, x: Any) -> Any:
    return jnp.matmul(jnp.asarray(matrix, x.dtype), x, precision="highest")


def _exact_product(matrix: np.ndarray, x: Exprs) -> Exprs:
    return [sp.Add(*(rationalise(float(m)) * v for m, v in zip(row, x, strict=True) if m)) for row in matrix]


def _added(a: Exprs, b: Exprs) -> Exprs:
    return [p + q for p, q in zip(a, b, strict=True)]


def _joined(rows: Sequence[Exprs]) -> Exprs:
    return [e for row in rows for e in row]


def _stacked(values: Sequence[Any], kind: Any) -> Any:
    return jnp.stack([jnp.asarray(v, kind) for v in values]) if values else jnp.zeros(0, kind)
