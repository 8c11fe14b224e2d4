"""From formulas to polynomials over the rationals, exactly.

A claim about SymPy formulas becomes a claim about polynomials in the states and a few further variables ("atoms"), one
for each sin, cos, exp, sqrt, ... that occurs, with polynomial facts that are true of it. The facts describe a superset
of the true values, so whatever is proved of the polynomials is proved of the formulas; nothing can be refuted here.
Denominators are cleared once their sign is proved, which is a claim of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import sympy as sp
from flint import Ordering, fmpq, fmpq_mpoly, fmpq_mpoly_ctx

from ctrlgen.prove.claim import Claim

ODD_SLOPE_ONE = (sp.tanh, sp.atan, sp.asinh)  # |g(u)| ≤ |u|, u g(u) ≥ g(u)², odd


class NotPolynomialError(ValueError):
    """The formula has a part for which no polynomial facts are known."""


def ring(n: int) -> fmpq_mpoly_ctx:
    """Q[z0, ..., z(n-1)]."""
    return fmpq_mpoly_ctx.get([f"z{i}" for i in range(n)], Ordering.degrevlex)


def fmpq_of(value: Any) -> fmpq:
    """A SymPy rational as a flint one."""
    value = sp.Rational(value)
    return fmpq(int(value.p), int(value.q))


def to_poly(expr: Any, variables: Sequence[sp.Symbol], context: fmpq_mpoly_ctx) -> fmpq_mpoly:
    """A SymPy polynomial with rational coefficients as a flint one.

    Raises:
        NotPolynomialError: it is no such polynomial.
    """
    try:
        poly = sp.Poly(expr, *variables, domain=sp.QQ)
    except (sp.PolynomialError, sp.CoercionFailed) as error:
        raise NotPolynomialError(f"{expr} is not a polynomial with rational coefficients: {error}") from None
    terms = {m: fmpq(int(c.numerator), int(c.denominator)) for m, c in poly.rep.terms()}
    return context.from_dict({m: c for m, c in terms.items() if c != 0})


@dataclass
class Semialgebraic:
    """Polynomials in `variables`: the claim's matrix (or its form yᵀFy), and the set, about the excepted point.

    Args:
        variables: the states that still occur, then the atoms, then y of a matrix claim.
        target: the polynomial to be shown ≥ 0 or > 0; for a matrix claim quadratic in the last `size` variables.
        guards, open_guards, equalities: ≥ 0, > 0, = 0 on the set.
        keys: per state, alternatives: the state is that of the excepted point if every variable of one alternative is
            zero; empty without an excepted point.
        size: number of y variables; 0 for a scalar claim.
        lemmas: strict claims that must be proved as well (signs of denominators, arguments of roots and logarithms).
    """

    variables: tuple[sp.Symbol, ...]
    context: fmpq_mpoly_ctx
    target: fmpq_mpoly
    guards: list[fmpq_mpoly]
    open_guards: list[fmpq_mpoly]
    equalities: list[fmpq_mpoly]
    keys: tuple[tuple[tuple[int, ...], ...], ...]
    size: int
    multipliers: list[fmpq_mpoly] = field(default_factory=list)  # positive on the set; worth multiplying by
    lemmas: list[Claim] = field(default_factory=list)


class _Atoms:
    """Replaces what is not polynomial by symbols, and collects what is known of them."""

    def __init__(self, claim: Claim):
        self.claim = claim
        self.symbols: dict[Any, Any] = {}
        self.facts: list[Any] = []
        self.open_facts: list[Any] = []
        self.equal: list[Any] = []
        self.multipliers: list[Any] = []
        self.positive: list[tuple[Any, bool]] = []  # (argument, strict): must be positive on the set
        self.arguments: list[Any] = []  # of the functions, replaced: must be defined on the set

    def symbol(self, atom: Any) -> Any:
        if atom not in self.symbols:
            self.symbols[atom] = sp.Dummy(f"a{len(self.symbols)}", real=True)
        return self.symbols[atom]

    def inner(self, argument: Any) -> Any:
        """A function's argument, replaced, and noted as one that must be defined on the set."""
        u = self.replace(argument)
        if u not in self.arguments:
            self.arguments.append(u)
        return u

    def replace(self, expr: Any) -> Any:
        """expr with every atom replaced, innermost first; rational in states and atoms."""
        if expr.is_Rational or expr in self.claim.states:
            return expr
        if expr in (sp.pi, sp.E):
            return self.constant(expr)
        if expr.is_Add or expr.is_Mul:
            return expr.func(*(self.replace(a) for a in expr.args))
        if expr.is_Pow or isinstance(expr, sp.exp):
            return self.power(expr)
        if isinstance(expr, (sp.sin, sp.cos, sp.tan)):
            return self.trigonometric(expr)
        if isinstance(expr, (sp.sinh, sp.cosh)):
            return self.replace(expr.rewrite(sp.exp))
        if isinstance(expr, ODD_SLOPE_ONE):
            return self.odd(expr)
        if isinstance(expr, sp.log):
            return self.logarithm(expr)
        if isinstance(expr, sp.Abs):
            u, a = self.inner(expr.args[0]), self.symbol(expr)
            self.facts.append(a)
            self.equal.append(a**2 - u**2)
            return a
        if isinstance(expr, (sp.Max, sp.Min)):
            return self.extreme(expr)
        raise NotPolynomialError(f"no polynomial facts are known of {expr.func}")

    def constant(self, value: Any) -> Any:
        new = value not in self.symbols
        a = self.symbol(value)
        if new:
            digits = sp.Rational(int(sp.floor(value * 10**12)), 10**12)
            self.facts += [a - digits, digits + sp.Rational(1, 10**12) - a]
        return a

    def power(self, expr: Any) -> Any:
        base, exponent = expr.as_base_exp()
        if base == sp.E:
            return self.exponential(exponent)
        if exponent.is_Integer:
            return self.replace(base) ** exponent
        if not exponent.is_Rational:
            raise NotPolynomialError(f"{expr} has an exponent that is not rational")
        if base.is_negative:
            raise NotPolynomialError(f"{expr} is not real")
        key = base ** sp.Rational(1, exponent.q)
        new = key not in self.symbols
        u = self.inner(base)
        r = self.symbol(key)
        if new:
            self.equal.append(r**exponent.q - u)
            self.facts.append(r)
            if not base.is_Rational:
                self.positive.append((base, exponent.p < 0))
        return r**exponent.p

    def exponential(self, argument: Any) -> Any:
        factor, rest = argument.as_coeff_Mul()
        if rest.is_Add:
            return sp.Mul(*(self.exponential(a) for a in sp.Add.make_args(argument.expand())))
        if rest == 1 or not factor.is_Rational:
            rest, factor = argument, sp.Integer(1)
        if not factor.is_Integer:
            rest, factor = rest / factor.q, sp.Integer(factor.p)
        if rest.could_extract_minus_sign():
            rest, factor = -rest, -factor
        key = sp.exp(rest, evaluate=False)
        new = key not in self.symbols
        u, e = self.inner(rest), self.symbol(key)
        if new:
            self.open_facts.append(e)
            self.facts += [e - 1 - u, u * (e - 1), 1 - e * (1 - u)]
        return e**factor

    def trigonometric(self, expr: Any) -> Any:
        expanded = sp.expand_trig(expr)
        if expanded != expr:
            return self.replace(expanded)
        (argument,) = expr.args
        if argument.could_extract_minus_sign():
            flipped = expr.func(-argument, evaluate=False)
            return self.trigonometric(flipped) * (1 if isinstance(expr, sp.cos) else -1)
        new = sp.sin(argument) not in self.symbols
        s, c = self.symbol(sp.sin(argument)), self.symbol(sp.cos(argument))
        if new:
            self.inner(argument)
            self.equal.append(s**2 + c**2 - 1)
            if argument in self.claim.states:
                self.arc(argument, s, c)
        return s if isinstance(expr, sp.sin) else c if isinstance(expr, sp.cos) else s / c

    def arc(self, angle: Any, s: Any, c: sp.Symbol) -> None:
        """What the box says of the angle, said of its cosine and sine."""
        low, high = self.claim.box[self.claim.states.index(angle)]
        if low is None or high is None:
            return
        reach = max(abs(low), abs(high))
        if reach < sp.Rational(314159, 100000):
            self.facts.append(c - _floor(sp.cos(reach)))
        if low >= 0 and high < sp.Rational(314159, 100000):
            self.facts.append(s)
        if low > -sp.Rational(314159, 100000) and high <= 0:
            self.facts.append(-s)

    def relate_angles(self, used: set[Any]) -> None:
        """sin and cos beside their own argument u: |sin u| ≤ |u| and cos u ≥ 1 - u²/2.

        For |u| ≤ a ≤ π also u sin u ≥ u² sin(a)/a and 1 - cos u ≥ u² (1 - cos a)/a²: both quotients fall on (0, π).
        """
        for atom in list(self.symbols):
            if not (isinstance(atom, sp.sin) and atom.args[0].free_symbols & used):
                continue
            (argument,) = atom.args
            u, s, c = self.replace(argument), self.symbols[atom], self.symbols[sp.cos(argument)]
            self.facts += [u**2 - s**2, 2 * c - 2 + u**2]
            states = self.claim.states
            low, high = self.claim.box[states.index(argument)] if argument in states else (None, None)
            if low is None or high is None or not max(abs(low), abs(high)) < sp.Rational(314159, 100000):
                continue
            reach = max(abs(low), abs(high))
            self.facts += [
                u * s - u**2 * _floor(sp.sin(reach) / reach),
                u**2 - u * s,
                1 - c - u**2 * _floor((1 - sp.cos(reach)) / reach**2),
            ]

    def odd(self, expr: Any) -> Any:
        new = expr not in self.symbols
        u, t = self.inner(expr.args[0]), self.symbol(expr)
        if new:
            self.facts += [u * t - t**2, u**2 - u * t]
            if isinstance(expr, sp.tanh):
                self.facts.append(1 - t**2)
            if isinstance(expr, sp.atan):
                self.facts.append(sp.Rational(62, 25) - t**2)  # (π/2)² = 2.467 < 2.48
        return t

    def logarithm(self, expr: Any) -> Any:
        new = expr not in self.symbols
        (argument,) = expr.args
        u, value = self.inner(argument), self.symbol(expr)
        if new:
            self.positive.append((argument, True))
            self.facts += [u - 1 - value, u * value - u + 1, value * (u - 1)]
            if u.is_polynomial(*u.free_symbols):
                self.multipliers.append(u)
        return value

    def extreme(self, expr: Any) -> Any:
        new = expr not in self.symbols
        parts = [self.inner(a) for a in expr.args]
        m = self.symbol(expr)
        if new:
            sign = 1 if isinstance(expr, sp.Max) else -1
            self.facts += [sign * (m - p) for p in parts]
            self.equal.append(sp.Mul(*(m - p for p in parts)))
        return m


def _floor(value: Any) -> Any:
    """A rational a little below a real constant."""
    return sp.Rational(int(sp.floor(sp.N(value, 30) * 10**9)) - 1, 10**9)


def translate(claim: Claim, keyed: bool = True) -> Semialgebraic:
    """The claim about polynomials that implies `claim` (together with its lemmas).

    Args:
        claim: what is to be proved.
        keyed: ask for the variables that tell the excepted point from all others; without them the translation
            serves to look for functions, not to prove a strict claim.

    Raises:
        NotPolynomialError: a part of it has no polynomial facts, or the excepted point is not rational in the atoms.
    """
    if claim.matrix is None:
        raise NotPolynomialError("the claim is of a function without a formula")
    atoms = _Atoms(claim)
    size = claim.size if claim.size > 1 else 0
    forms = sp.symbols(f"y0:{size}", cls=sp.Dummy, real=True) if size else ()
    rows = [[atoms.replace(claim.matrix[i, j]) for j in range(claim.size)] for i in range(claim.size)]
    body = sp.Add(*(rows[i][j] * forms[i] * forms[j] for i in range(size) for j in range(size))) if size else rows[0][0]
    guards = [_numerator_times(atoms.replace(g), 2) for g in claim.guards]
    open_guards = [_numerator_times(atoms.replace(g), 2) for g in claim.open_guards]
    equalities = [_numerator_times(atoms.replace(h), 1) for h in claim.equalities]
    if body.is_polynomial(*body.free_symbols):
        numerator, denominator = body, sp.Integer(1)
    else:
        numerator, denominator = _fraction(body)
    back = {s: atom for atom, s in atoms.symbols.items()}
    lemmas = [_lemma(claim, argument, strict) for argument, strict in atoms.positive]
    signs, flip = _signs(claim, denominator, back)
    lemmas += signs
    for argument in atoms.arguments:
        if not argument.is_polynomial(*argument.free_symbols):
            lemmas += _signs(claim, sp.fraction(sp.together(argument))[1], back)[0]
    lemmas = [a for k, a in enumerate(lemmas) if a not in lemmas[:k]]
    numerator = -numerator if flip else numerator
    used_in_target = set(numerator.free_symbols).union(*(e.free_symbols for e in (*equalities, *open_guards)), set())
    atoms.relate_angles(used_in_target & set(claim.states))
    facts = [_numerator_times(f, 2) for f in atoms.facts]
    open_facts = [_numerator_times(f, 2) for f in atoms.open_facts]
    equal = [_numerator_times(e, 1) for e in atoms.equal]
    sets = (guards + facts, open_guards + open_facts, equalities + equal)
    return _assemble(claim, atoms, forms, numerator, sets, lemmas, keyed)


def _signs(claim: Claim, denominator: Any, back: dict[Any, Any]) -> tuple[list[Claim], bool]:
    """The lemmas that no factor of a denominator in the atoms' symbols is zero, and whether they make it negative."""
    lemmas = []
    found: Any = sp.factor_list(denominator)
    content, factors = found
    flip = bool(content < 0)
    for factor, power in factors:
        atom = back.get(factor)
        if isinstance(atom, sp.exp):
            continue
        if atom is not None and atom.is_Pow and atom.exp.is_Rational and not atom.exp.is_Integer:
            lemmas.append(_lemma(claim, atom.base, True))
            continue
        shown = factor.subs(back)
        sample = _sign_at_sample(shown, claim)
        lemmas.append(_lemma(claim, shown if sample > 0 else -shown, True))
        flip ^= power % 2 == 1 and sample < 0
    return lemmas, flip


def _fraction(expr: Any) -> tuple[Any, Any]:
    found: Any = sp.fraction(sp.together(expr))
    return found


def _numerator_times(expr: Any, power: int) -> Any:
    """A polynomial with the sign (power 2) or the zeros (power 1) of expr wherever expr is defined."""
    if expr.is_polynomial(*expr.free_symbols):
        return expr
    numerator, denominator = _fraction(expr)
    return (
        numerator * denominator
        if power == 2 and denominator.free_symbols
        else numerator / (1 if denominator.free_symbols else denominator)
    )


def _lemma(claim: Claim, expr: Any, strict: bool) -> Claim:
    """A side claim on the same set, or on a larger one: what is not defined everywhere must not vouch for itself."""
    return Claim(
        text=f"{expr} {'>' if strict else '≥'} 0 wherever the claim is made",
        states=claim.states,
        matrix=sp.Matrix([[expr]]),
        strict=strict,
        guards=tuple(g for g in claim.guards if _defined(g)),
        open_guards=tuple(g for g in claim.open_guards if _defined(g)),
        equalities=tuple(h for h in claim.equalities if _defined(h)),
        box=claim.box,
    )


def _defined(expr: Any) -> bool:
    """Has the formula a value everywhere, by its form?"""
    powers = all(p.exp.is_Integer and p.exp > 0 for p in expr.atoms(sp.Pow) if p.base != sp.E and p.free_symbols)
    return powers and not expr.has(sp.log, sp.tan)


def _sign_at_sample(expr: Any, claim: Claim) -> int:
    """The sign of expr at some point near the middle of the box: a guess of its sign on the set, proved as a lemma."""
    middle = []
    for k, (low, high) in enumerate(claim.box):
        if claim.except_at is not None:
            middle.append(claim.except_at[k] + sp.Rational(1, 1009 + 4 * k))
        elif low is not None and high is not None:
            middle.append((low + high) / 2 + (high - low) * sp.Rational(1, 1009 + 4 * k))
        else:
            middle.append((low if low is not None else high if high is not None else 0) + sp.Rational(1, 1009 + 4 * k))
    value = sp.N(expr.subs(dict(zip(claim.states, middle, strict=True))), 20)
    return -1 if value.is_real and value < 0 else 1


def _assemble(claim, atoms, forms, numerator, sets, lemmas, keyed) -> Semialgebraic:
    guards, open_guards, equalities = sets
    every = [numerator, *guards, *open_guards, *equalities]
    core = set().union(*(e.free_symbols for e in (numerator, *equalities, *open_guards)))
    # states that occur only in guards say nothing about a target in which they do not occur, unless an atom links them
    link = set(core)
    grown = True
    while grown:
        grown = False
        for g in guards:
            if g.free_symbols & link and not g.free_symbols <= link:
                link |= g.free_symbols
                grown = True
    states = [s for s in claim.states if s in link]
    new = [s for s in atoms.symbols.values() if s in set().union(*(e.free_symbols for e in every))]
    variables = (*states, *new, *forms)
    guards = [g for g in guards if g.free_symbols <= set(variables)]
    shift: dict[Any, Any] = {}
    keys: list = []
    if claim.except_at is not None:
        at = dict(zip(claim.states, claim.except_at, strict=True))
        values = {s: at[s] for s in states}
        for atom, s in atoms.symbols.items():
            if s in variables:
                values[s] = atom.subs(at).doit() if atom.free_symbols else None
        keys = _keys(claim, atoms, states, variables) if keyed else []
        for s, value in values.items():
            if value is None:
                continue
            if not value.is_Rational:
                raise NotPolynomialError(f"{s} is not rational at the excepted point")
            if value != 0:
                shift[s] = s + value
    context = ring(max(len(variables), 1))
    names = variables or (sp.Dummy("none"),)

    def convert(expr: Any) -> fmpq_mpoly:
        return to_poly(expr.subs(shift, simultaneous=True) if shift else expr, names, context)

    return Semialgebraic(
        variables=variables,
        context=context,
        target=convert(numerator),
        guards=[g for g in map(convert, guards) if not g.is_constant()],
        open_guards=[g for g in map(convert, open_guards) if not g.is_constant()],
        equalities=[h for h in map(convert, equalities) if not h.is_zero()],
        keys=tuple(keys),
        size=len(forms),
        multipliers=[m for m in map(convert, atoms.multipliers) if not m.is_constant()],
        lemmas=lemmas,
    )


def _keys(claim: Claim, atoms: _Atoms, states: list[sp.Symbol], variables: tuple[sp.Symbol, ...]) -> list:
    """For each state, sets of variables whose being zero (after the shift) says that the state is the excepted point's.

    A state that occurs is its own key; so is an injective function of it. An angle known only by its sine and cosine
    is known up to 2π: they are its keys when the box leaves no other multiple. A state that does not occur at all
    leaves a whole line of points, on which the claim can't be strict: that is an error.
    """
    out = []
    for (low, high), state, star in zip(claim.box, claim.states, claim.except_at or (), strict=True):
        pair = (sp.sin(state), sp.cos(state))
        injective = [f(state) for f in (*ODD_SLOPE_ONE, sp.exp, sp.log)]
        alternatives: list[tuple[int, ...]] = [(variables.index(state),)] if state in states else []
        alternatives += [(variables.index(a),) for f in injective if (a := atoms.symbols.get(f)) in variables]
        near = sp.Rational(628318, 100000)
        both = [atoms.symbols[p] for p in pair if p in atoms.symbols]
        if both and low is not None and high is not None and low > star - near and high < star + near:
            found = [variables.index(a) for a in both if a in variables]
            if len(found) == 2:
                alternatives.append(tuple(found))
                if star == 0:
                    alternatives.append((found[1],))  # cos θ = 1 says θ = 0 within a turn
        if not alternatives:
            raise NotPolynomialError(
                f"{state} does not occur, so the claim is not strict along it"
                if not both
                else f"the set holds {state} beyond one turn about the excepted point"
            )
        out.append(tuple(alternatives))
    return out


def scaled(poly: fmpq_mpoly) -> fmpq_mpoly:
    """poly divided by a power of two near its largest coefficient."""
    largest = max((abs(Fraction(int(c.p), int(c.q))) for c in poly.coeffs()), default=Fraction(1)) or Fraction(1)
    exponent = largest.numerator.bit_length() - largest.denominator.bit_length()
    return poly * (fmpq(1, 1 << exponent) if exponent >= 0 else fmpq(1 << -exponent))
