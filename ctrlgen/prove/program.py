"""Sum-of-squares programs: solved in floating point, then made exact.

A program has free scalars c and identities between polynomials,

    p₀ + Σ cᵢ pᵢ  =  Σ_b g_b · w_bᵀ Q_b w_b  +  Σ_j λ_j h_j,     Q_b ⪰ 0,

with given p, g (what is nonnegative on the set), h (what vanishes on it) and bases w. Clarabel finds floating-point
values; `Program.exact` moves them to rationals that satisfy every identity exactly and accepts them only if each
Q_b is positive semidefinite in rational arithmetic. The solver's tolerance therefore decides nothing.

Polynomials are python-flint `fmpq_mpoly`; a monomial is the tuple of its exponents.

Reference: Parrilo, Math. Program. 96 (2003) 293; Peyrl and Parrilo, Theor. Comput. Sci. 409 (2008) 269, for the
projection onto the coefficient constraints.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from importlib import import_module
from itertools import combinations_with_replacement
from math import lcm
from typing import Any

import numpy as np
from flint import fmpq, fmpq_mat, fmpq_mpoly

from ctrlgen.prove.claim import Deadline

Monomial = tuple[int, ...]
ROUNDINGS = (4, 8, 14, 22, 32, 44)  # bits after the binary point, coarse first: short certificates are good ones
# When a Gram matrix is taken to be singular (a guess: what follows from it is exact)
KERNEL = 1e-4  # only relative eigenvalues below this can be zero
GAP = 30.0  # and only where the next one is this many times larger
LARGEST_SPLIT = 300  # bases larger than this are not split: all pairs are looked at
NOTHING = 1e-9  # a matrix this small is zero


def monomials(variables: int, low: int, high: int) -> list[Monomial]:
    """All exponent tuples of total degree low..high, by degree."""
    out = []
    for degree in range(low, high + 1):
        for chosen in combinations_with_replacement(range(variables), degree):
            count = Counter(chosen)
            out.append(tuple(count.get(i, 0) for i in range(variables)))
    return out


@dataclass
class Block:
    """One weighted sum of squares g · wᵀ Q w: `factor` g, `basis` w; `key` says which product of guards g is."""

    factor: fmpq_mpoly
    basis: list[fmpq_mpoly]
    key: tuple[int, ...] = ()
    gram: list[list[fmpq]] | None = None  # filled in by Program.exact


@dataclass
class Identity:
    """One identity of the program; see the module's text."""

    constant: fmpq_mpoly
    linear: dict[int, fmpq_mpoly]
    blocks: list[Block]
    free: list[tuple[fmpq_mpoly, list[fmpq_mpoly]]] = field(default_factory=list)
    multipliers: list[fmpq_mpoly] = field(default_factory=list)  # λ_j, filled in by Program.exact

    def holds(self, values: Sequence[fmpq]) -> bool:
        """Is it an identity, in exact arithmetic, for these free scalars?"""
        total = self.constant
        for i, poly in self.linear.items():
            total = total + poly * values[i]
        for block in self.blocks:
            total = total - block.factor * _square(block)
        for (h, _), multiplier in zip(self.free, self.multipliers, strict=True):
            total = total - h * multiplier
        return total.is_zero()


def _square(block: Block) -> fmpq_mpoly:
    zero = block.factor * 0
    if block.gram is None:
        raise ValueError("the block has no Gram matrix.")
    total = zero
    for row, w in zip(block.gram, block.basis, strict=True):
        inner = zero
        for q, v in zip(row, block.basis, strict=True):
            if q != 0:
                inner = inner + v * q
        total = total + w * inner
    return total


@dataclass
class _Layout:
    """The program as one linear system: which variable enters which coefficient row, and how."""

    variables: int
    blocks: list[tuple[Block, int]]  # with the first index of its packed upper triangle
    entries: list[list[tuple[int, fmpq]]]  # per row: (variable, coefficient)
    right: list[fmpq]
    free_start: list[int]


class Program:
    """A sum-of-squares program over one polynomial ring.

    Args:
        unknowns: how many free scalars c there are.
    """

    def __init__(self, unknowns: int = 0):
        self.unknowns = unknowns
        self.identities: list[Identity] = []
        self.rows: list[tuple[dict[int, float], float]] = []  # Σ a_i c_i ≥ b, in floating point only
        self.equal: list[tuple[dict[int, fmpq], fmpq]] = []  # Σ a_i c_i = b, exactly
        self.objective: dict[int, float] = {}  # maximised; empty: the margin t of the Gram matrices is
        self.status = "not solved"
        self.margin = 0.0
        self.strict: list[list[int]] = []  # for synthesis: per variable, the scalars of which one must be positive

    def require(
        self,
        constant: fmpq_mpoly,
        linear: dict[int, fmpq_mpoly],
        blocks: Sequence[Block],
        free: Sequence[tuple[fmpq_mpoly, list[fmpq_mpoly]]] = (),
    ) -> Identity:
        """Add one identity. Returns it; `exact` fills in its Gram matrices."""
        identity = Identity(constant, dict(linear), list(blocks), list(free))
        self.identities.append(identity)
        return identity

    # Which monomials can occur ---------------------------------------------------------------------------

    def prune(self, deadline: Deadline | None = None) -> bool:
        """Drop basis elements whose diagonal Gram entry must be zero (Newton polytope and beyond). False: infeasible
        (or the time is over).

        A coefficient row with right-hand side zero to which only diagonal entries contribute, all with one sign,
        forces them to zero. Exact, and only ever shrinks the search.
        """
        for identity in self.identities:
            known = set(identity.constant.to_dict())
            flexible: set[Monomial] = set()
            for poly in identity.linear.values():
                flexible |= set(poly.to_dict())
            for h, basis in identity.free:
                for w in basis:
                    flexible |= set((h * w).to_dict())
            constant = identity.constant.to_dict()
            while True:
                signs: dict[Monomial, set[int]] = {}
                owners: dict[Monomial, set[tuple[int, int]]] = {}
                mixed: set[Monomial] = set()
                for k, block in enumerate(identity.blocks):
                    factor = list(block.factor.to_dict().items())
                    if all(len(w) == 1 for w in block.basis):
                        exps = [w.monoms()[0] for w in block.basis]
                        for a, m in enumerate(exps):
                            if deadline is not None and deadline.over:
                                return False
                            for b in range(a, len(exps)):
                                total = tuple(map(sum, zip(m, exps[b], strict=True)))
                                for e, coefficient in factor:
                                    row = tuple(map(sum, zip(total, e, strict=True)))
                                    if a == b:
                                        signs.setdefault(row, set()).add(1 if coefficient > 0 else -1)
                                        owners.setdefault(row, set()).add((k, a))
                                    else:
                                        mixed.add(row)
                    else:
                        for a, w in enumerate(block.basis):
                            for v in block.basis[a:]:
                                mixed |= set((block.factor * w * v).to_dict())
                drop: set[tuple[int, int]] = set()
                for row, sign in signs.items():
                    if row in mixed or row in flexible or len(sign) > 1:
                        continue
                    if row not in known:
                        drop |= owners[row]
                    elif (constant[row] > 0) != (sign == {1}):
                        return False
                if not drop:
                    break
                for k, block in enumerate(identity.blocks):
                    block.basis = [w for a, w in enumerate(block.basis) if (k, a) not in drop]
            identity.blocks = [b for b in identity.blocks if b.basis]
        return True

    def split(self, squares: bool, deadline: Deadline) -> bool:
        """Split each block of monomials into those that the sparsity of the identity connects.

        Two monomials are connected if their product (times a monomial of the block's factor) occurs in the given
        polynomials or, with `squares`, is a square of the basis. A restriction: what is found is as exact, but less is.
        False: the bases are too large, or the time is over.

        Reference: Wang, Magron, Lasserre, SIAM J. Optim. 31 (2021) 30 (TSSOS, one round, whole components).
        """
        if max(len(b.basis) for i in self.identities for b in i.blocks) > LARGEST_SPLIT:
            return False
        for identity in self.identities:
            support = set(identity.constant.to_dict())
            for poly in identity.linear.values():
                support |= set(poly.to_dict())
            for block in identity.blocks:
                if squares and block.factor.is_one():
                    support |= {tuple(2 * e for e in w.monoms()[0]) for w in block.basis if len(w) == 1}
            out = []
            for block in identity.blocks:
                if any(len(w) != 1 for w in block.basis):
                    out.append(block)
                    continue
                factor = block.factor.monoms()
                exps = [w.monoms()[0] for w in block.basis]
                parent = list(range(len(exps)))

                def root(i: int, parent: list[int] = parent) -> int:
                    while parent[i] != i:
                        parent[i] = parent[parent[i]]
                        i = parent[i]
                    return i

                for i, a in enumerate(exps):
                    if deadline.over:
                        return False
                    for j in range(i):
                        pair = tuple(map(sum, zip(a, exps[j], strict=True)))
                        if any(tuple(map(sum, zip(pair, e, strict=True))) in support for e in factor):
                            parent[root(i)] = root(j)
                groups: dict[int, list[fmpq_mpoly]] = {}
                for i, w in enumerate(block.basis):
                    groups.setdefault(root(i), []).append(w)
                out += [Block(block.factor, group, block.key) for group in groups.values()]
            identity.blocks = out
        return True

    # The linear system -----------------------------------------------------------------------------------

    def _layout(self) -> _Layout:
        index = self.unknowns
        blocks, entries, right, free_start = [], [], [], []
        for identity in self.identities:
            rows: dict[Monomial, int] = {}

            def row_of(m: Monomial, rows: dict = rows) -> int:
                if m not in rows:
                    rows[m] = len(entries)
                    entries.append([])
                    right.append(fmpq(0))
                return rows[m]

            for m, value in identity.constant.to_dict().items():
                right[row_of(m)] = value
            for i, poly in identity.linear.items():
                for m, value in poly.to_dict().items():
                    entries[row_of(m)].append((i, -value))
            for block in identity.blocks:
                blocks.append((block, index))
                weighted = [block.factor * w for w in block.basis]
                for b in range(len(block.basis)):
                    for a in range(b + 1):  # column by column, the packed upper triangle
                        factor = 1 if a == b else 2
                        for m, value in (weighted[a] * block.basis[b]).to_dict().items():
                            entries[row_of(m)].append((index, value * factor))
                        index += 1
            for h, basis in identity.free:
                free_start.append(index)
                for w in basis:
                    for m, value in (h * w).to_dict().items():
                        entries[row_of(m)].append((index, value))
                    index += 1
        for coefficients, value in self.equal:
            entries.append([(i, a) for i, a in coefficients.items()])
            right.append(value)
        return _Layout(index, blocks, entries, right, free_start)

    # The floating-point solution -------------------------------------------------------------------------

    def solve(self, deadline: Deadline, margin: bool = True) -> np.ndarray | None:
        """Floating-point values of all variables (c, Gram entries, multipliers), or None; `status` says how it went.

        With `margin` the smallest eigenvalue t of all Gram matrices is maximised (t ≤ 1): a solution with t > 0
        survives rounding. Without, the interior point method's limit is the analytic centre, whose kernel is
        the smallest possible.
        """
        from scipy import sparse

        clarabel: Any = import_module("clarabel")

        layout = self.layout = self._layout()
        n = layout.variables + (1 if margin else 0)
        t = layout.variables
        i_rows, i_cols, entries, offset = [], [], [], 0
        rhs: list[float] = []
        cones = []

        def put(row: int, column: int, value: float) -> None:
            i_rows.append(row)
            i_cols.append(column)
            entries.append(value)

        for row, entry in enumerate(layout.entries):
            size = max((abs(to_float(v)) for _, v in entry), default=1.0) or 1.0
            for column, value in entry:
                put(row, column, to_float(value) / size)
            rhs.append(to_float(layout.right[row]) / size)
        offset = len(layout.entries)
        if offset:
            cones.append(clarabel.ZeroConeT(offset))
        inequalities = list(self.rows) + ([({t: -1.0}, -1.0)] if margin else [])
        for coefficients, value in inequalities:  # Σ a c ≥ b  ->  -Σ a c + s = -b
            for column, a in coefficients.items():
                put(offset, column, -a)
            rhs.append(-value)
            offset += 1
        if inequalities:
            cones.append(clarabel.NonnegativeConeT(len(inequalities)))
        for block, start in layout.blocks:
            size, k = len(block.basis), start
            for b in range(size):
                for a in range(b + 1):
                    put(offset, k, -1.0 if a == b else -np.sqrt(2.0))
                    if margin and a == b:
                        put(offset, t, 1.0)
                    rhs.append(0.0)
                    offset += 1
                    k += 1
            cones.append(clarabel.PSDTriangleConeT(size))
        matrix = sparse.csc_matrix((entries, (i_rows, i_cols)), shape=(offset, n))
        cost = np.zeros(n)
        for i, a in self.objective.items():
            cost[i] = -a
        if margin:
            cost[t] = -1.0
        settings = clarabel.DefaultSettings()
        settings.verbose = False
        settings.max_threads = 1
        settings.time_limit = max(deadline.left(), 1e-3)
        settings.max_iter = 100
        settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-10
        try:
            solver = clarabel.DefaultSolver(sparse.csc_matrix((n, n)), cost, matrix, np.array(rhs), cones, settings)
            solution = solver.solve()
        except BaseException as error:  # the solver panics in Rust: its words, not a traceback
            if isinstance(error, KeyboardInterrupt):
                raise
            self.status = f"Clarabel failed: {error}"
            return None
        self.status = str(solution.status)
        values = np.array(solution.x)
        if "Infeasible" in self.status or not np.isfinite(values).all():
            return None
        self.margin = float(values[t]) if margin else 0.0
        return values[: layout.variables]

    def gram(self, values: np.ndarray, which: int) -> np.ndarray:
        """The floating-point Gram matrix of block `which`."""
        block, start = self.layout.blocks[which]
        size = len(block.basis)
        out = np.zeros((size, size))
        k = start
        for b in range(size):
            for a in range(b + 1):
                out[a, b] = out[b, a] = values[k]
                k += 1
        return out

    # Faces -----------------------------------------------------------------------------------------------

    def reduce(self, values: np.ndarray) -> bool:
        """Guess rational kernels of the Gram matrices and restrict the bases to their complements. True if one was.

        A Gram matrix of a polynomial that vanishes at a point z has w(z) in its kernel, so no rounding of it is
        positive semidefinite unless the kernel is exact. The guess costs nothing: what is built on it is exact.
        """
        found = False
        for which, (block, _) in enumerate(self.layout.blocks):
            gram = self.gram(values, which)
            eigenvalues, vectors = np.linalg.eigh(gram)
            kernel = None
            for nullity in _nullities(eigenvalues):
                kernel = rational_rows(vectors[:, :nullity].T)
                if kernel is not None:
                    break
            if kernel is None:
                continue
            complement = nullspace(kernel, len(block.basis))
            zero = block.factor * 0
            block.basis = [
                sum((w * q for w, q in zip(block.basis, v, strict=True) if q != 0), zero) for v in complement
            ]
            found = True
        for identity in self.identities:
            identity.blocks = [b for b in identity.blocks if b.basis]
        return found

    # Exactness -------------------------------------------------------------------------------------------

    def exact(self, values: np.ndarray, deadline: Deadline) -> list[fmpq] | None:
        """Rational free scalars with rational Gram matrices that satisfy every identity, or None.

        Fills in `gram` of every block and `multipliers` of every identity.
        """
        for bits in ROUNDINGS:
            if deadline.over:
                return None
            found = self._at(values, bits)
            if found is not None:
                return found
        return None

    def _at(self, values: np.ndarray, bits: int) -> list[fmpq] | None:
        layout = self.layout
        scale = 1 << bits
        if float(np.abs(values).max(initial=0.0)) > 1e15:
            return None
        v = [fmpq(round(float(x) * scale), scale) for x in values]
        covers = self._covers()
        loose = [r for r in range(len(layout.entries)) if r not in covers]
        if loose and not self._project(v, loose):
            return None
        for r, cover in covers.items():
            residual = layout.right[r]
            for i, a in layout.entries[r]:
                residual = residual - a * v[i]
            if residual != 0:
                weight = sum((a * a for _, a in cover), fmpq(0))
                for i, a in cover:
                    v[i] = v[i] + a * residual / weight
        if any(_residual(layout, r, v) != 0 for r in range(len(layout.entries))):
            return None
        for block, start in layout.blocks:
            size, k = len(block.basis), start
            gram = [[fmpq(0)] * size for _ in range(size)]
            for b in range(size):
                for a in range(b + 1):
                    gram[a][b] = gram[b][a] = v[k]
                    k += 1
            rough = np.linalg.eigvalsh(np.array([[to_float(q) for q in row] for row in gram]))
            if rough[0] < -1e-12 * abs(rough[-1]) or pivots(gram) is None:
                return None  # the floating-point look only saves time: what passes it is decided by the pivots
            block.gram = gram
        k = iter(layout.free_start)
        for identity in self.identities:
            identity.multipliers = []
            for h, basis in identity.free:
                start = next(k)
                zero = h * 0
                identity.multipliers.append(sum((w * v[start + a] for a, w in enumerate(basis)), zero))
        return v[: self.unknowns]

    def _covers(self) -> dict[int, list[tuple[int, fmpq]]]:
        """Rows with Gram entries of their own: of an unweighted block on monomials, and in no other row."""
        layout = self.layout
        times = Counter(i for row in layout.entries for i, _ in row)
        own = set()
        for block, start in layout.blocks:
            size = len(block.basis)
            if block.factor.is_one() and all(len(w) == 1 for w in block.basis):
                own |= {i for i in range(start, start + size * (size + 1) // 2) if times[i] == 1}
        out = {}
        for r, row in enumerate(layout.entries):
            cover = [(i, a) for i, a in row if i in own]
            if cover:
                out[r] = cover
        return out

    def _project(self, v: list[fmpq], rows: list[int]) -> bool:
        """Least-norm rational correction of v such that these rows hold exactly; False if they cannot."""
        layout = self.layout
        residual = [_residual(layout, r, v) for r in rows]
        if all(x == 0 for x in residual):
            return True
        merged = []
        for r in rows:
            row: dict[int, fmpq] = {}
            for i, a in layout.entries[r]:
                row[i] = row.get(i, fmpq(0)) + a
            merged.append(row)
        n = len(rows)
        by_variable: dict[int, list[tuple[int, fmpq]]] = {}
        for k, row in enumerate(merged):
            for i, a in row.items():
                by_variable.setdefault(i, []).append((k, a))
        normal = [[fmpq(0)] * n for _ in range(n)]
        for column in by_variable.values():
            for j, a in column:
                for k, b in column:
                    normal[j][k] += a * b
        y = _consistent_solution(normal, residual)
        if y is None:
            return False
        for k, row in enumerate(merged):
            if y[k] != 0:
                for i, a in row.items():
                    v[i] = v[i] + a * y[k]
        return True


def to_float(value: fmpq) -> float:
    """The nearest float, however long numerator and denominator are."""
    return float(Fraction(int(value.p), int(value.q)))


def _residual(layout: _Layout, r: int, v: list[fmpq]) -> fmpq:
    out = layout.right[r]
    for i, a in layout.entries[r]:
        out = out - a * v[i]
    return out


def _consistent_solution(matrix: list[list[fmpq]], right: list[fmpq]) -> list[fmpq] | None:
    """Some exact solution of a symmetric positive semidefinite system, or None if there is none."""
    n = len(right)
    try:
        return [x[0] for x in fmpq_mat(matrix).solve(fmpq_mat(n, 1, right)).tolist()]
    except ZeroDivisionError:
        pass
    reduced, rank = fmpq_mat([[*row, b] for row, b in zip(matrix, right, strict=True)]).rref()
    out = [fmpq(0)] * n
    for r in range(rank):
        lead = next(c for c in range(n + 1) if reduced[r, c] != 0)
        if lead == n:
            return None
        out[lead] = reduced[r, n]
    return out


def pivots(matrix: list[list[fmpq]]) -> list[fmpq] | None:
    """The pivots of the exact LDLᵀ factorisation if the symmetric matrix is positive semidefinite, else None.

    Fraction-free (Bareiss) on integers: the pivots are ratios of leading minors of the integer multiple.
    """
    n = len(matrix)
    if n == 0:
        return []
    common = lcm(*(int(q.q) for row in matrix for q in row))
    a = [[int(q.p) * (common // int(q.q)) for q in row] for row in matrix]
    out, previous = [], 1
    for k in range(n):
        pivot = a[k][k]
        if pivot < 0:
            return None
        if pivot == 0:
            if any(a[k][j] for j in range(k + 1, n)):
                return None
            out.append(fmpq(0))
            continue
        out.append(fmpq(pivot, previous) / common)
        for i in range(k + 1, n):
            row, lead = a[i], a[k][i]
            base = a[k]
            for j in range(i, n):
                row[j] = (row[j] * pivot - lead * base[j]) // previous
        for i in range(k + 1, n):
            for j in range(k + 1, i):
                a[i][j] = a[j][i]
        previous = pivot
    return out


def _nullities(eigenvalues: np.ndarray) -> list[int]:
    """Guesses of the kernel's dimension, the clearest gap in the spectrum first."""
    top = float(np.abs(eigenvalues).max(initial=0.0))
    if top < NOTHING:
        return [len(eigenvalues)]
    sizes = np.sort(np.maximum(np.abs(eigenvalues) / top, 1e-11))
    jumps = np.append(sizes[1:], 1.0) / sizes
    good = [k + 1 for k in range(len(sizes)) if sizes[k] < KERNEL and jumps[k] > GAP]
    return sorted(good, key=lambda k: -jumps[k - 1])[:3]


def rational_rows(rows: np.ndarray) -> list[list[fmpq]] | None:
    """The row space with rational entries, by reduced row echelon form; None if they are not near simple rationals."""
    a = rows.copy()
    lead = []
    for r in range(len(a)):
        column = int(np.argmax(np.abs(a[r:]).max(axis=0) * np.isin(np.arange(a.shape[1]), lead, invert=True)))
        best = r + int(np.argmax(np.abs(a[r:, column])))
        a[[r, best]] = a[[best, r]]
        if abs(a[r, column]) < 1e-6:
            return None
        a[r] /= a[r, column]
        for i in range(len(a)):
            if i != r:
                a[i] -= a[i, column] * a[r]
        lead.append(column)
    out = []
    for row in a:
        guess = [_simplest(float(x)) for x in row]
        if any(g is None for g in guess):
            return None
        out.append([fmpq(g.numerator, g.denominator) for g in guess if g is not None])
    return out


def _simplest(x: float) -> Fraction | None:
    """The rational of small denominator that x seems to be."""
    for largest, error in ((12, 1e-3), (120, 1e-4), (2000, 1e-6)):
        guess = Fraction(x).limit_denominator(largest)
        if abs(float(guess) - x) < error:
            return guess
    return None


def nullspace(rows: list[list[fmpq]], n: int) -> list[list[fmpq]]:
    """A rational basis of {v: row · v = 0 for every row}."""
    reduced, rank = fmpq_mat(rows).rref()
    lead = [next(c for c in range(n) if reduced[r, c] != 0) for r in range(rank)]
    out = []
    for c in range(n):
        if c in lead:
            continue
        v = [fmpq(0)] * n
        v[c] = fmpq(1)
        for r, column in enumerate(lead):
            v[column] = -reduced[r, c]
        out.append(v)
    return out
