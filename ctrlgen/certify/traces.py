"""Scalar expressions of matrices of any size: sums of traces of words, their normal form and their derivative.

Two such sums are compared in a normal form: tr(W) does not change when W is rotated or transposed, X X⁻¹ = 1, and
nothing else is used. SymPy's own `Trace` does not cancel C⁻¹ and C across other factors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import sympy as sp

Word = tuple[Any, ...]  # letters: matrix symbols, transposes and inverses of them
Sum = dict[Word, sp.Expr]


class Traces:
    """Scalar expressions of matrix symbols: sums of traces of products, with scalar coefficients.

    Args:
        size: n; square letters are (n, n), columns (n, 1).
        symmetric: the matrix symbols that are symmetric, all of them invertible.
    """

    def __init__(self, size: Any, symmetric: tuple[Any, ...]) -> None:
        self.size, self.symmetric = size, symmetric

    def normal(self, expr: Any) -> sp.Expr:
        """The normal form: equal expressions (by rotation, transposition and C C⁻¹ = 1) have the same, 0 is 0."""
        rest, words = self._read(expr)
        return rest + self._write(words)

    def along(self, expr: Any, flow: Mapping[Any, Any]) -> sp.Expr:
        """The derivative of an expression, which may hold log det of a symbol, where symbols X move at flow[X].

        d tr(… X …) = tr(… Ẋ …), d X⁻¹ = -X⁻¹ẊX⁻¹, d log det X = tr(X⁻¹Ẋ).
        """
        logs, plain = [], []
        for term in sp.Add.make_args(sp.expand(expr)):
            (logs if term.has(sp.Determinant) else plain).append(term)
        _, words = self._read(sp.Add(*plain))
        out: Sum = {}
        for word, weight in words.items():
            for i, letter in enumerate(word):
                for middle, factor in self._moved(letter, flow).items():
                    self._add(out, (*word[:i], *middle, *word[i + 1 :]), weight * factor)
        total = self._write(out)
        for term in logs:
            (log,) = (a for a in term.atoms(sp.log) if isinstance(a.args[0], sp.Determinant))
            symbol, weight = log.args[0].arg, term / log
            if weight.has(sp.MatrixSymbol) or not isinstance(symbol, sp.MatrixSymbol):
                raise ValueError(f"log det must be of a matrix symbol, times a scalar; got {term}.")
            if symbol in flow:
                total += self.normal(weight * sp.Trace(symbol.inverse() * flow[symbol]))
        return total

    def _read(self, expr: Any) -> tuple[sp.Expr, Sum]:
        """What is not a trace, and the words whose traces make up the rest."""
        rest, out = sp.Integer(0), {}
        for term in sp.Add.make_args(sp.expand(expr)):
            traces = [f for f in sp.Mul.make_args(term) if isinstance(f, sp.Trace)]
            weight = term / traces[0] if traces else term
            if weight.has(sp.MatrixSymbol):
                raise ValueError(f"an expression must be linear in traces; got the term {term}.")
            if not traces:
                rest += term
                continue
            for word, factor in self._words(traces[0].arg).items():
                self._add(out, word, weight * factor)
        rest = sp.expand(rest + self.size * out.pop((), sp.Integer(0)))
        return rest, {word: weight for word, weight in out.items() if weight != 0}

    def _write(self, words: Sum) -> sp.Expr:
        total = self.size * words.get((), sp.Integer(0))
        return sp.expand(total) + sp.Add(*(v * sp.Trace(sp.MatMul(*w)) for w, v in words.items() if w and v != 0))

    def _add(self, out: Sum, word: Word, weight: sp.Expr) -> None:
        word = self._canonical(word)
        out[word] = sp.expand(out.get(word, sp.Integer(0)) + weight)

    def _words(self, matrix: Any) -> Sum:
        """A matrix expression as a sum of words."""
        if isinstance(matrix, sp.Identity):
            return {(): sp.Integer(1)}
        if isinstance(matrix, sp.ZeroMatrix):
            return {}
        if isinstance(matrix, sp.MatAdd):
            return _gather(pair for term in matrix.args for pair in self._words(term).items())
        if isinstance(matrix, sp.MatMul):
            scalar, factors = matrix.as_coeff_matrices()
            if scalar.has(sp.MatrixSymbol):
                raise ValueError(f"a factor of a product must be a number or a matrix; got {scalar}.")
            return _product([{(): scalar}, *map(self._words, factors)])
        if isinstance(matrix, sp.MatPow) and matrix.exp.is_Integer and not isinstance(matrix, sp.Inverse):
            base, power = cast(Any, matrix.base), int(cast(Any, matrix.exp))
            return _product([self._words(base if power > 0 else base.inverse())] * abs(power))
        if isinstance(matrix, sp.Transpose):
            return {self._transposed(word): weight for word, weight in self._words(matrix.arg).items()}
        if isinstance(matrix, sp.MatrixSymbol):
            return {(matrix,): sp.Integer(1)}
        if isinstance(matrix, sp.Inverse):
            base: Any = matrix.arg.arg if isinstance(matrix.arg, sp.Transpose) else matrix.arg  # (Cᵀ)⁻¹ is C⁻¹
            if base in self.symmetric:
                return {(base.inverse(),): sp.Integer(1)}
        raise ValueError(f"a matrix must be built from symbols by sums, products, transposes, inverses; got {matrix}.")

    def _moved(self, letter: Any, flow: Mapping[Any, Any]) -> Sum:
        """The derivative of one letter."""
        if isinstance(letter, sp.Transpose):
            return {self._transposed(word): weight for word, weight in self._moved(letter.arg, flow).items()}
        if isinstance(letter, sp.Inverse):
            return {(letter, *word, letter): -weight for word, weight in self._moved(letter.arg, flow).items()}
        return self._words(flow[letter]) if letter in flow else {}

    def _transposed(self, word: Word) -> Word:
        return tuple(self._turned(letter) for letter in reversed(word))

    def _turned(self, letter: Any) -> Any:
        symbol = letter.arg if isinstance(letter, sp.Inverse) else letter
        return letter if symbol in self.symmetric else letter.T

    def _canonical(self, word: Word) -> Word:
        """The first, in the order of their names, of all words with the same trace that are as short as can be."""
        letters, i = list(word), 0
        while i < len(letters) > 1:
            j = (i + 1) % len(letters)
            if _inverse(letters[i], letters[j]):
                for k in sorted((i, j), reverse=True):
                    del letters[k]
                i = 0
            else:
                i += 1
        if not letters:
            return ()
        turned = list(self._transposed(tuple(letters)))
        rotations = [tuple(w[k:] + w[:k]) for w in (letters, turned) for k in range(len(letters))]
        return min(rotations, key=lambda w: tuple(map(str, w)))


def _gather(pairs: Iterable[tuple[Word, sp.Expr]]) -> Sum:
    out: Sum = {}
    for word, weight in pairs:
        out[word] = out.get(word, sp.Integer(0)) + weight
    return out


def _product(factors: list[Sum]) -> Sum:
    out = factors[0]
    for words in factors[1:]:
        out = _gather(((*left, *right), a * b) for left, a in out.items() for right, b in words.items())
    return out


def _inverse(a: Any, b: Any) -> bool:
    return (isinstance(a, sp.Inverse) and a.arg == b) or (isinstance(b, sp.Inverse) and b.arg == a)
