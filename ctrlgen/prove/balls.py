"""SymPy formulas compiled to ball arithmetic: one Python function over python-flint `arb` arguments.

A ball encloses an interval; every operation rounds outward, so the result of `wide` encloses all values of the
formula on the balls that were passed in. An operation that meets an illegal value anywhere in its argument (a divisor
that may be 0, a logarithm of a ball that touches 0) raises `Undefined`: it means "unknown on this box", and a formula
that was evaluated without it is defined, and finite unless the ball says otherwise, on the whole of the box.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import sympy as sp
from flint import arb, arb_mat, ctx, fmpq

from ctrlgen.prove.enclosures import EXACT, POINT, WIDE, Undefined

POINT_BITS = 64
SIGN_BITS = (64, 256, 1024)


class Unsupported(ValueError):
    """The formula has a function that this module has no enclosure of."""


class _Abs(sp.Function):
    """|u| of a real u, whatever SymPy knows of u: `sp.Abs` differentiates to real and imaginary parts otherwise."""

    is_nonnegative = True

    def fdiff(self, argindex=1):
        return _Slope(self.args[0])


class _Slope(sp.Function):
    """The set-valued derivative of |u|: -1, 1, or between where u may be 0. It has no derivative of its own."""

    def fdiff(self, argindex=1):
        raise Unsupported("an absolute value has no second derivative.")


def rational(value: Any) -> fmpq:
    """A SymPy rational, an integer, a fmpq or a float, exactly."""
    if isinstance(value, float):
        return fmpq(*value.as_integer_ratio())
    if isinstance(value, sp.Rational):
        return fmpq(int(value.p), int(value.q))
    return fmpq(value)


def to_sympy(value: fmpq) -> Any:
    """A fmpq as a SymPy rational."""
    return sp.Rational(int(value.p), int(value.q))


FUNCTIONS = {
    sp.sin: "_sin", sp.cos: "_cos", sp.tan: "_tan", sp.asin: "_asin", sp.acos: "_acos", sp.atan: "_atan",
    sp.sinh: "_sinh", sp.cosh: "_cosh", sp.tanh: "_tanh", sp.asinh: "_asinh", sp.acosh: "_acosh", sp.atanh: "_atanh",
    sp.exp: "_exp", sp.log: "_log", sp.erf: "_erf", sp.erfc: "_erfc", sp.Min: "_min", sp.Max: "_max",
    sp.atan2: "_atan2", sp.sign: "_slope", sp.Heaviside: "_step", _Abs: "_abs", _Slope: "_slope",
}  # fmt: skip
JUMPS = (sp.sign, sp.Heaviside, sp.atan2)


def _rewritten(expr: Any) -> Any:
    """The formula in functions that this module knows."""
    expr = sp.sympify(expr)
    for name in ("cot", "sec", "csc"):
        expr = expr.replace(getattr(sp, name), _RECIPROCAL[name])
    return expr.replace(sp.Abs, _Abs)


_RECIPROCAL = {
    "cot": lambda u: sp.cos(u) / sp.sin(u),
    "sec": lambda u: 1 / sp.cos(u),
    "csc": lambda u: 1 / sp.sin(u),
}


def _leading(e: sp.Expr) -> tuple[sp.Rational, sp.Expr]:
    """A product as its rational factor and the rest."""
    if isinstance(e, sp.Mul) and isinstance(e.args[0], sp.Rational):
        return e.args[0], sp.Mul(*e.args[1:])
    return sp.S.One, e


class _Writer:
    """Writes formulas as lines of Python, each part of a formula once; numbers become named constants."""

    def __init__(self):
        self.constants: dict[sp.Expr, str] = {}
        self.lines: list[str] = []
        self._names: dict[sp.Expr, str] = {}

    def constant(self, value: sp.Expr) -> str:
        return self.constants.setdefault(value, f"k{len(self.constants)}")

    def __call__(self, e: sp.Expr) -> str:
        if isinstance(e, sp.Symbol):
            return e.name
        if isinstance(e, sp.Float):
            raise Unsupported(f"the formula has the float {e}; numbers must be exact.")
        if not e.free_symbols:
            return self.constant(e)
        if e not in self._names:
            source = self.write(e)
            name = f"t{len(self._names)}"
            self.lines.append(f"{name} = {source}")
            self._names[e] = name
        return self._names[e]

    def write(self, e: Any) -> str:
        """The formula's outermost operation; a number of its own stays a call to `constant`."""
        if isinstance(e, sp.Add):
            return self.sum(e)
        if isinstance(e, sp.Mul):
            return self.product(e)
        if isinstance(e, sp.Pow):
            return self.power(e.base, e.exp)
        name = FUNCTIONS.get(e.func)
        if name is None:
            raise Unsupported(f"no enclosure of {e.func.__name__} is known.")
        arguments = e.args[:1] if e.func is sp.Heaviside else e.args
        return f"{name}({', '.join(map(self, arguments))})"

    def sum(self, e: sp.Add) -> str:
        source = ""
        for term in sorted(e.args, key=lambda t: bool(_leading(t)[0] < 0)):
            number, rest = _leading(term)
            if rest is sp.S.One or not source:
                source += f" + {self(term)}"
            elif abs(number) == 1:
                source += f" {'-' if number < 0 else '+'} {self(rest)}"
            else:
                source += f" {'-' if number < 0 else '+'} {self.factor(abs(number))} * {self(rest)}"
        return source.removeprefix(" + ")

    def factor(self, number: sp.Expr) -> str:
        """A number beside a ball: small integers need no ball of their own."""
        return str(int(number)) if number.is_Integer and abs(int(number)) < 2**30 else self(number)

    def product(self, e: sp.Mul) -> str:
        squares, above, below = [], [], []
        number, rest = _leading(e)
        for factor in sp.Mul.make_args(rest):
            base, exponent = factor.as_base_exp()
            if exponent.is_Integer and exponent < 0:
                below.append(base**-exponent)
            elif exponent.is_Integer and exponent % 2 == 0 and factor.free_symbols:
                squares.append(base ** (exponent / 2))
            else:
                above.append(factor)
        parts = [self(factor) for factor in above]
        if len(squares) == 1:
            parts.append(self(squares[0] ** 2))
        elif squares:  # x²y² = (xy)², whose enclosure has no negative part
            parts.append(f"_square({self(sp.Mul(*squares))})")
        if below:
            parts.append(f"_inv({self(sp.Mul(*below))})")
        if number == -1:
            return "-" + " * ".join(parts)
        return " * ".join(parts if number == 1 else [self.factor(number), *parts])

    def power(self, base: sp.Expr, exponent: sp.Expr) -> str:
        if base is sp.E:
            return f"_exp({self(exponent)})"
        if isinstance(exponent, sp.Integer):
            n = int(exponent)
            if n < 0:
                return f"_inv({self(base**-n)})"
            if n == 2:
                return f"_square({self(base)})"
            return f"{'_odd' if n % 2 else '_even'}({self(base)}, {n})"
        nonnegative = bool(base.is_nonnegative)
        if isinstance(exponent, sp.Rational) and exponent.q == 2:
            root = f"{'_sqrt0' if nonnegative else '_sqrt'}({self(base)})"
            n = abs(int(exponent.p))
            whole = root if n == 1 else f"_odd({root}, {n})"
            return f"_inv({whole})" if exponent < 0 else whole
        if nonnegative and exponent.is_number and exponent.is_positive:
            return f"_power0({self(base)}, {self(exponent)})"
        return f"_power({self(base)}, {self(exponent)})"


def _constant(value: sp.Expr) -> arb:
    """A constant formula as a ball, at the working precision."""
    if isinstance(value, sp.Rational):
        return arb(rational(value))
    if value is sp.pi:
        return arb.pi()
    if value is sp.E:
        return arb(1).exp()
    if not value.args:
        raise Unsupported(f"no enclosure of the constant {value} is known.")
    writer = _Writer()
    source = writer.write(value)
    names = {name: _constant(part) for part, name in writer.constants.items()}
    return arb(eval(source, {"__builtins__": {}, **POINT, **names}))  # our own source, of a fixed vocabulary


class Compiled:
    """A list of formulas as functions of balls.

    Args:
        exprs: SymPy formulas, exact numbers only.
        states: their symbols, in the order of the arguments.
        fixed: balls for further symbols, which enclose numbers that are not known exactly.

    Raises:
        Unsupported: a function or constant has no enclosure here.
    """

    def __init__(
        self, exprs: Sequence[sp.Expr], states: Sequence[sp.Symbol], fixed: dict[sp.Symbol, arb] | None = None
    ):
        self.count = len(exprs)
        self.states = tuple(states)
        names = [sp.Symbol(f"x{i}", real=True) for i in range(len(states))]
        rename = dict(zip(states, names, strict=True))
        self.fixed = {}
        for i, (symbol, ball) in enumerate((fixed or {}).items()):
            rename[symbol] = sp.Symbol(f"u{i}", real=True)
            self.fixed[f"u{i}"] = ball
        self._exprs = [_rewritten(sp.sympify(e).xreplace(rename)) for e in exprs]
        known = set(rename.values())
        for e in self._exprs:
            if extra := e.free_symbols - known:
                raise Unsupported(f"the formula has symbols that are not states: {sorted(map(str, extra))}.")
        self.names = names
        self.continuous = not any(e.has(*JUMPS) for e in self._exprs)
        self._write()
        self._at: dict[tuple[int, bool], Any] = {}
        self.wide = self._build(POINT_BITS, WIDE)
        self.point = self._build(POINT_BITS, POINT)

    def _write(self):
        writer = _Writer()
        results = ", ".join([writer(e) for e in self._exprs])
        head = ", ".join(n.name for n in self.names)
        self._source = "\n    ".join([f"def compiled({head}):", *writer.lines, f"return ({results},)"])
        self._code = compile(self._source, "<ball arithmetic>", "exec")
        self._constants = writer.constants

    def _build(self, bits: int, operations: dict):
        with ctx.workprec(bits):
            constants = {name: _constant(value) for value, name in self._constants.items()}
        namespace = {"__builtins__": {}, **operations, **constants, **self.fixed}
        exec(self._code, namespace)  # our own source, of a fixed vocabulary
        return namespace["compiled"]

    @cached_property
    def _rational(self):
        if self.fixed or not all(isinstance(value, sp.Rational) for value in self._constants):
            return None
        constants = {name: rational(value) for value, name in self._constants.items()}
        namespace = {"__builtins__": {}, **EXACT, **constants}
        exec(self._code, namespace)
        return namespace["compiled"]

    def exact(self, point: Sequence[fmpq]) -> tuple[fmpq, ...] | None:
        """The values at a rational point as rationals; None where they are not."""
        if self._rational is None:
            return None
        try:
            return tuple(fmpq(value) for value in self._rational(*point))
        except Undefined:
            return None

    def at(self, point: Sequence[fmpq], bits: int) -> tuple[arb, ...]:
        """Enclosures of the values at a rational point, computed with `bits` bits.

        Raises:
            Undefined: a value may be undefined there.
        """
        if (bits, False) not in self._at:
            self._at[bits, False] = self._build(bits, POINT)
        with ctx.workprec(bits):
            return tuple(arb(v) for v in self._at[bits, False](*map(arb, point)))

    def signs(self, point: Sequence[fmpq]) -> tuple[int | None, ...]:
        """The exact signs -1, 0, 1 of the values at a rational point; None where no certain sign was found."""
        if (values := self.exact(point)) is not None:
            return tuple((v > 0) - (v < 0) for v in values)
        signs: tuple[int | None, ...] = (None,) * self.count
        for bits in SIGN_BITS:
            try:
                balls = self.at(point, bits)
            except Undefined:
                continue
            signs = tuple(1 if b > 0 else -1 if b < 0 else 0 if b.is_exact() and b == 0 else None for b in balls)
            if None not in signs:
                break
        return signs

    def derivative(self, order: int = 1) -> Compiled | None:
        """All first derivatives (formula by formula, state by state), or all second ones (upper triangle).

        None where a formula has jumps, or kinks at the second order, or a function that cannot be differentiated: then
        a mean-value form would be wrong.
        """
        if not self.continuous:
            return None
        fixed = {sp.Symbol(name, real=True): ball for name, ball in self.fixed.items()}
        try:
            first = [[sp.diff(e, n) for n in self.names] for e in self._exprs]
            if order == 1:
                return Compiled([g for row in first for g in row], self.names, fixed)
            second = [
                sp.diff(row[i], self.names[j]) for row in first for i in range(len(row)) for j in range(i, len(row))
            ]
            return Compiled(second, self.names, fixed)
        except Unsupported:
            return None


def positive_definite(matrix: Sequence[Sequence[arb]], weak: bool = False) -> bool:
    """Is every symmetric matrix in the enclosure ≻ 0 (or ⪰ 0 when weak)? False means "not established".

    The matrix is brought near the identity by the inverse Cholesky factor C of its midpoint, in floats; CᵀFC is then
    computed in balls, and Gershgorin's discs decide. Any nonsingular C is
    right, and C is triangular with a positive diagonal.
    """
    import numpy as np

    k = len(matrix)
    if k == 1:
        return bool(matrix[0][0] >= 0 if weak else matrix[0][0] > 0)
    middle = np.array([[float(matrix[i][j]) for j in range(k)] for i in range(k)])
    if not np.isfinite(middle).all():
        return False
    shift = 1e-9 * max(float(np.abs(np.diag(middle)).max()), 1e-300) if weak else 0.0
    try:
        factor = np.linalg.inv(np.linalg.cholesky(middle + shift * np.eye(k))).T
    except np.linalg.LinAlgError:
        return False
    factor = np.triu(factor)
    if not np.isfinite(factor).all() or not (np.diag(factor) > 0).all():
        return False
    c = arb_mat(k, k, [float(v) for v in factor.ravel()])
    near = c.transpose() * arb_mat(k, k, [v for row in matrix for v in row]) * c
    for i in range(k):
        rest = sum((abs(near[i, j]) for j in range(k) if j != i), arb(0))
        if not (near[i, i] >= rest if weak else near[i, i] > rest):
            return False
    return True
