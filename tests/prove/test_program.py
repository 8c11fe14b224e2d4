"""Sum-of-squares programs: pivots against SymPy, identities rebuilt by SymPy, bases that keep what is needed."""

import dataclasses
import itertools

import numpy as np
import pytest
import sympy as sp
from flint import fmpq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctrlgen.prove.claim import Deadline
from ctrlgen.prove.exact import solve_exactly
from ctrlgen.prove.polynomial import ring, to_poly
from ctrlgen.prove.program import Block, Program, monomials, pivots, to_float

R = sp.Rational
X, Y = XY = sp.symbols("x y", real=True)
FIXED = settings(
    max_examples=60, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
SMALL = st.fractions(-3, 3, max_denominator=7)


def summands(most):
    """Lists of polynomials as lists of (coefficient, power of x, power of y)."""
    term = st.tuples(SMALL, st.integers(0, 2), st.integers(0, most))
    return st.lists(st.lists(term, min_size=1, max_size=3), min_size=1, max_size=3)


def flint(matrix):
    return [[fmpq(int(q.p), int(q.q)) for q in row] for row in sp.Matrix(matrix).tolist()]


def symbolic(poly, names=XY):
    """A flint polynomial as SymPy writes it."""
    terms = poly.to_dict().items()
    return sp.Add(*(
        R(int(c.p), int(c.q)) * sp.Mul(*(s**int(e) for s, e in zip(names, m, strict=False))) for m, c in terms
    ))  # fmt: skip


def rebuilt(block, names=XY):
    """factor · wᵀQw by SymPy."""
    w = sp.Matrix([symbolic(b, names) for b in block.basis])
    q = sp.Matrix([[R(int(v.p), int(v.q)) for v in row] for row in block.gram])
    assert q.is_symmetric()
    assert q.is_positive_semidefinite
    return symbolic(block.factor, names) * (w.T * q * w)[0]


def program_of(p, names=XY, half=None, unknowns=0, linear=None):
    context = ring(len(names))
    target = to_poly(p, names, context)
    half = half or (target.total_degree() + 1) // 2
    basis = [context.from_dict({m: fmpq(1)}) for m in monomials(len(names), 0, half)]
    program = Program(unknowns)
    more = {i: to_poly(q, names, context) for i, q in (linear or {}).items()}
    identity = program.require(target, more, [Block(target * 0 + 1, basis)])
    return program, identity


# Pivots ------------------------------------------------------------------------------------------------------


@FIXED
@given(st.data())
def test_pivots_are_those_of_sympy(data):
    n = data.draw(st.integers(1, 4))
    lower = sp.Matrix(n, n, lambda i, j: 1 if i == j else R(data.draw(SMALL)) if i > j else 0)
    entry = st.sampled_from([0, 0, 1, 2, "1/3", "-1/7", "-1/1000000000", "1/1000000000"])
    diagonal = [R(data.draw(entry)) for _ in range(n)]
    matrix = lower * sp.diag(*diagonal) * lower.T
    found = pivots(flint(matrix))
    if any(d < 0 for d in diagonal):  # Sylvester: the signs of the diagonal are those of the eigenvalues
        assert found is None
    else:
        assert [R(int(q.p), int(q.q)) for q in found] == diagonal


@FIXED
@given(st.data())
def test_semidefinite_is_what_the_minors_say(data):
    n = data.draw(st.integers(1, 3))
    a = sp.zeros(n)
    for i in range(n):
        for j in range(i + 1):
            a[i, j] = a[j, i] = data.draw(st.integers(-2, 2))
    subsets = itertools.chain(*(itertools.combinations(range(n), k) for k in range(1, n + 1)))
    assert (pivots(flint(a)) is not None) == all(a.extract(list(s), list(s)).det() >= 0 for s in subsets)


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ([[0]], True),
        ([[0, 1], [1, 0]], False),
        ([[0, 0], [0, -1]], False),
        ([[0, 0], [0, 1]], True),
        ([[1, 1], [1, 1]], True),
        ([[1, 1], [1, 1 - R(1, 10**40)]], False),
        ([[R(1, 10**40), 0], [0, 0]], True),
        ([[1, 0, 0], [0, 0, R(1, 10**30)], [0, R(1, 10**30), 5]], False),
        ([[1, 2, 3], [2, 4, 6], [3, 6, 9]], True),
        ([[1, 2, 3], [2, 4, 7], [3, 7, 9]], False),
    ],
)
def test_singular_matrices(matrix, expected):
    assert (pivots(flint(matrix)) is not None) is expected


def test_pivots_of_nothing():
    assert pivots([]) == []


# Which monomials can occur -----------------------------------------------------------------------------------


@FIXED
@given(summands(2))
def test_pruning_keeps_the_monomials_of_every_decomposition(rows):
    squares = [sp.Add(*(R(c) * X**i * Y**j for c, i, j in row)) for row in rows]
    p = sp.expand(sp.Add(*(q**2 for q in squares)))
    program, identity = program_of(p, half=4)
    assert program.prune()
    kept = {w.monoms()[0] for b in identity.blocks for w in b.basis}
    needed = {m for q in squares if q != 0 for m in sp.Poly(q, *XY).monoms()}
    assert needed <= kept


def test_pruning_leaves_the_half_newton_polytope():
    program, identity = program_of(X**4 * Y**2 + X**2 * Y**4 + 1 + 3 * X**2 * Y**2)
    assert program.prune()
    kept = {tuple(map(int, w.monoms()[0])) for w in identity.blocks[0].basis}
    assert kept == {(0, 0), (1, 1), (2, 1), (1, 2)}


@pytest.mark.parametrize("p", [-(X**2), X**4 - Y**2, -1 + X**2 + 0 * Y, X**2 - R(1, 10**12) * Y**2])
def test_pruning_sees_a_coefficient_of_the_wrong_sign(p):
    assert not program_of(sp.sympify(p))[0].prune()


def test_pruning_leaves_free_coefficients_alone():
    program, identity = program_of(X**2, unknowns=1, linear={0: Y**2})
    assert program.prune()
    assert {tuple(map(int, w.monoms()[0])) for w in identity.blocks[0].basis} >= {(1, 0), (0, 1)}


def test_monomials_are_all_of_their_degrees():
    assert sorted(monomials(2, 1, 2)) == sorted([(1, 0), (0, 1), (2, 0), (1, 1), (0, 2)])
    assert [len(monomials(3, 0, d)) for d in range(4)] == [1, 4, 10, 20]


# Exact solutions ---------------------------------------------------------------------------------------------


@settings(FIXED, max_examples=20)
@given(summands(1), st.sampled_from([R(1), R(1, 50)]))
def test_interior_sums_of_squares_become_exact(rows, margin):
    squares = [sp.Add(*(R(c) * X**i * Y**j for c, i, j in row)) for row in rows]
    p = sp.expand(sp.Add(*(q**2 for q in squares)) + margin * (1 + X**2 + Y**2) ** 3)
    program, identity = program_of(p)
    found, words = solve_exactly(program, Deadline(10))
    assert found is not None, words
    assert sp.expand(sum(rebuilt(b) for b in identity.blocks) - p) == 0
    assert identity.holds([])


ON_A_FACE = {
    "irrational zeros": (X**2 - 2) ** 2 + Y**2,
    "two zeros": (X - 1) ** 2 * (X + 2) ** 2 + (Y - X) ** 2,
    "a line of zeros": (X - 2 * Y) ** 2 * (1 + X**2),
    "a circle of zeros": (X**2 + Y**2 - R(3, 7)) ** 2,
    "a quartic zero": (X - R(1, 3)) ** 4 + (Y - R(1, 3)) ** 4,
    "two squares": (X**2 - Y + 1) ** 2 + (X * Y - 2) ** 2,
}


@pytest.mark.parametrize("p", ON_A_FACE.values(), ids=ON_A_FACE)
def test_polynomials_with_zeros_become_exact_on_a_face(p):
    p = sp.expand(p)
    program, identity = program_of(p)
    found, words = solve_exactly(program, Deadline(10))
    assert found is not None, words
    assert sp.expand(sum(rebuilt(b) for b in identity.blocks) - p) == 0


@pytest.mark.parametrize("p", ON_A_FACE.values(), ids=ON_A_FACE)
@pytest.mark.parametrize("below", [R(1, 10**9), R(1, 100)])
def test_and_nothing_just_below_them_does(p, below):
    found, _ = solve_exactly(program_of(sp.expand(p - below))[0], Deadline(5))
    assert found is None


def test_reduction_restricts_to_what_vanishes_at_a_zero():
    program, identity = program_of(sp.expand((X**2 - 2) ** 2), half=2)
    assert program.prune()
    values = program.solve(Deadline(5), margin=False)
    assert program.reduce(values)
    assert identity.blocks
    for w in identity.blocks[0].basis:  # ±√2 are the zeros: all that is left vanishes at both
        assert sp.rem(sp.Poly(symbolic(w), X), sp.Poly(X**2 - 2, X)) == 0


def test_free_scalars_are_rational_and_satisfy_the_identity():
    # the largest c with x⁴ - 3x² + y² - c a sum of squares is the minimum, -9/4
    p = X**4 - 3 * X**2 + Y**2
    program, identity = program_of(p, unknowns=1, linear={0: sp.Integer(-1)})
    assert program.prune()
    program.objective = {0: 1.0}
    values = program.solve(Deadline(5), margin=False)
    values[0] -= 1e-4  # into the interior, where rounding survives
    found = program.exact(values, Deadline(5))
    assert found is not None
    c = R(int(found[0].p), int(found[0].q))
    assert -R(9, 4) - R(1, 100) < c <= -R(9, 4)
    assert identity.holds(found)
    assert sp.expand(p - c - sum(rebuilt(b) for b in identity.blocks)) == 0
    assert not identity.holds([found[0] + fmpq(1, 10**9)])


def test_linear_conditions_of_the_scalars_hold_exactly():
    # a x² + b y² + 1 with a + 3 b = 1 exactly, a ≥ 1/5 about
    program, identity = program_of(sp.Integer(1), half=1, unknowns=2, linear={0: X**2, 1: Y**2})
    program.equal = [({0: fmpq(1), 1: fmpq(3)}, fmpq(1))]
    program.rows = [({0: 1.0}, 0.2)]
    values = program.solve(Deadline(5))
    found = program.exact(values, Deadline(5))
    assert found is not None
    assert found[0] + 3 * found[1] == 1
    assert to_float(found[0]) > 0.19
    assert identity.holds(found)


def test_equalities_enter_with_free_multipliers():
    # on the circle, 5 - 3x - 4y ≥ 0, zero at (3/5, 4/5): a square modulo the circle's polynomial
    context = ring(2)
    p, h = (to_poly(e, XY, context) for e in (5 - 3 * X - 4 * Y, X**2 + Y**2 - 1))
    ones = [context.from_dict({m: fmpq(1)}) for m in monomials(2, 0, 1)]
    program = Program()
    identity = program.require(p, {}, [Block(p * 0 + 1, ones)], [(h, [p * 0 + 1])])
    found, words = solve_exactly(program, Deadline(5))
    assert found is not None, words
    total = sum(rebuilt(b) for b in identity.blocks) + symbolic(identity.multipliers[0]) * (X**2 + Y**2 - 1)
    assert sp.expand(total - (5 - 3 * X - 4 * Y)) == 0


def test_an_identity_with_other_numbers_does_not_hold():
    program, identity = program_of(sp.expand((X - 1) ** 2 + Y**2 + X**2))
    assert solve_exactly(program, Deadline(5))[0] is not None
    assert identity.holds([])
    block = identity.blocks[0]
    gram = [list(row) for row in block.gram]
    gram[0][0] += fmpq(1, 10**12)
    block.gram = gram
    assert not identity.holds([])
    block.gram = None
    with pytest.raises(ValueError, match="no Gram matrix"):
        identity.holds([])


def test_a_solver_that_panics_is_quoted(monkeypatch):
    import clarabel

    def panic(*_):
        raise BaseException("the cone collapsed")

    monkeypatch.setattr(clarabel, "DefaultSolver", panic)
    program, _ = program_of(X**2 + Y**2)
    assert program.solve(Deadline(5)) is None
    assert "the cone collapsed" in program.status


def test_long_fractions_become_floats():
    assert to_float(fmpq(10**400, 3 * 10**400)) == 1 / 3
    assert np.isclose(to_float(fmpq(-7, 2)), -3.5, rtol=0, atol=0)


def test_blocks_are_not_shared_between_programs():
    program, identity = program_of(X**2 + Y**2)
    copy = dataclasses.replace(identity.blocks[0])
    assert solve_exactly(program, Deadline(5))[0] is not None
    assert copy.gram is None
