"""Witnesses are exact: what fails by nothing, by 1e-30, or cannot be settled, is told apart."""

import numpy as np
import pytest
import sympy as sp

from ctrlgen.prove.claim import Claim
from ctrlgen.prove.witness import round_witness, violates

x, y = sp.symbols("x y", real=True)
R = sp.Rational
TINY = R(1, 10**30)


def claim(left, strict=True, **kwargs):
    matrix = left if isinstance(left, sp.MatrixBase) else sp.Matrix([[left]])
    return Claim(text="t", states=(x, y), matrix=matrix, strict=strict, **kwargs)


CUBIC = sp.CRootOf(x**3 - x - 1, 0)
CASES = [
    # left-hand side, point, its sign there
    ((x - 1) ** 2, (1, 0), 0),
    ((x - 1) ** 2 - TINY, (1, 0), -1),
    ((x - 1) ** 2 + TINY, (1, 0), 1),
    (x / (1 + y**2) - R(1, 3), (R(2, 3), 1), 0),
    ((x**2 - 2) ** 2, (sp.sqrt(2), 0), 0),
    ((x**2 - 2) ** 2 - TINY, (sp.sqrt(2), 0), -1),
    ((x**3 - x - 1) ** 2 + y, (CUBIC, 0), 0),
    ((x**3 - x - 1) ** 2 + y, (CUBIC, TINY), 1),
    ((x**3 - x - 1) ** 2 + y, (CUBIC, -TINY), -1),
    (sp.sin(x) ** 2 + sp.cos(x) ** 2 - 1, (1, 0), 0),
    (sp.exp(x) - sp.E - TINY, (1, 0), -1),
    (1 - sp.cos(x), (2 * sp.pi, 0), 0),
    (sp.log(1 + x) - sp.atan2(y, x) + sp.erf(y) + sp.tanh(y), (0, 0), None),  # the angle of the origin
    (sp.Abs(x) - sp.Max(x, y) + sp.Min(x, -y) + sp.sign(y), (R(-1, 2), R(1, 2)), 1),  # 1/2 - 1/2 - 1/2 + 1
    (x ** R(1, 3) - 2, (8, 0), 0),
    (sp.sqrt(x), (0, 0), 0),
    (1 / x, (0, 0), None),
    (x / y, (0, 0), None),
    (sp.log(x), (-1, 0), None),
    (sp.sqrt(x), (-1, 0), None),
    (sp.besselj(0, x), (1, 0), None),  # no enclosure is known
    (x**y + 1 / x**y - 2, (R(2**53 - 1, 2**53), 0), None),  # zero, but no exact power is worked out
]


@pytest.mark.parametrize(("left", "point", "sign"), CASES)
def test_the_sign_at_a_point_is_exact(left, point, sign):
    strict, weak = violates(claim(left), point), violates(claim(left, strict=False), point)
    assert strict[0] == (sign in (0, -1))
    assert weak[0] == (sign == -1)
    if sign is not None:
        assert np.sign(strict[1]) == sign or abs(strict[1]) < 1e-25
    else:
        assert np.isnan(strict[1])


@pytest.mark.parametrize(
    ("kwargs", "point", "inside"),
    [
        ({"guards": (1 - x**2 - y**2,)}, (R(3, 5), R(4, 5)), True),
        ({"guards": (1 - x**2 - y**2,)}, (R(3, 5), R(4, 5) + TINY), False),
        ({"guards": (x, y)}, (1, -1), False),
        ({"open_guards": (1 - x**2 - y**2,)}, (R(3, 5), R(4, 5)), False),
        ({"open_guards": (1 - x**2 - y**2,)}, (R(3, 5), R(4, 5) - TINY), True),
        ({"equalities": (x**2 + y**2 - 1,)}, (R(3, 5), R(4, 5)), True),
        ({"equalities": (x**2 + y**2 - 1,)}, (R(3, 5), R(4, 5) - TINY), False),
        ({"equalities": (sp.sin(x),)}, (sp.pi, 0), True),
        ({"except_at": (R(1), R(2))}, (1, 2), False),
        ({"except_at": (R(1), R(2))}, (1, 2 + TINY), True),
        ({"guards": (sp.log(x),)}, (-1, 0), False),
    ],
)
def test_a_point_outside_the_set_is_no_violation(kwargs, point, inside):
    assert violates(claim(sp.S(-1), **kwargs), point)[0] is inside


@pytest.mark.parametrize(
    ("corner", "definite", "semidefinite"), [(1 + TINY, True, True), (sp.S(1), False, True), (1 - TINY, False, False)]
)
def test_definiteness_of_rational_matrices_is_exact(corner, definite, semidefinite):
    # [[1, 1], [1, c]] beside a positive and, in front, a zero block: its least eigenvalue has the sign of c - 1
    matrix = sp.Matrix([[x, x, 0], [x, corner * x, 0], [0, 0, 2]])
    assert violates(claim(matrix), (1, 0))[0] is not definite
    assert violates(claim(matrix, strict=False), (1, 0))[0] is not semidefinite
    bordered = sp.diag(0, matrix)
    assert violates(claim(bordered), (1, 0))[0]
    assert violates(claim(bordered, strict=False), (1, 0))[0] is not semidefinite
    assert violates(claim(sp.Matrix([[0, x], [x, 5]]), strict=False), (1, 0))[0]
    assert violates(claim(sp.Matrix([[0, x], [x, 0]]), strict=False), (1, 0))[0]


def test_matrices_of_transcendental_formulas_need_a_direction():
    matrix = sp.Matrix([[sp.cos(x), 1], [1, 1]])
    assert violates(claim(matrix), (0, 0))[0]  # singular, with (1, -1) in the kernel
    assert not violates(claim(matrix, strict=False), (0, 0))[0]
    fails, margin = violates(claim(matrix, strict=False), (R(1, 1000), 0))
    assert fails
    assert margin == pytest.approx(-2.5e-7, rel=1e-3)  # -(1 - cos x)/2 to first order
    assert not violates(claim(matrix + sp.eye(2) / 10**6), (R(1, 1000), 0))[0]


@pytest.mark.parametrize(
    ("statement", "near", "expected"),
    [
        (claim((x - 1) ** 2 + y**2), (1 + 1e-9, -1e-9), (1, 0)),
        (claim((x - R(2, 7)) ** 2 + y**2), (2 / 7 + 1e-9, -1e-9), (R(2, 7), 0)),
        (claim((x**2 - 2) ** 2), (2**0.5 + 1e-9, 0.25), (sp.sqrt(2), R(1, 4))),
        (claim(1 - sp.cos(x)), (2 * np.pi + 1e-8, 1.0), (2 * sp.pi, 1)),
        (claim(x, guards=(x,), box=((R(0), None), (None, None))), (-1e-12, 1.0), (0, 1)),
        (claim(1 + 0 * x, strict=False), (0.0, 0.0), None),
        (claim(sp.S(-1), guards=(-1 - x**2,)), (0.0, 0.0), None),
    ],
)
def test_rounding_finds_the_simple_point(statement, near, expected):
    found = round_witness(statement, near)
    if expected is None:
        assert found is None
    else:
        assert [sp.simplify(a - b) for a, b in zip(found, expected, strict=True)] == [0, 0]


def test_rounding_moves_into_curved_guards():
    # it fails only next to (1, 1), within 1e-9 inside the open disc; the float point lies outside
    statement = claim(2 - x - y - R(1, 10**9), open_guards=(2 - x**2 - y**2,))
    px, py = round_witness(statement, (1 + 1e-12, 1 + 1e-12))
    assert px**2 + py**2 < 2
    assert 2 - px - py <= R(1, 10**9)
    corner = claim(sp.S(-1), open_guards=(x, y, R(1, 10**7) - x - y))
    assert round_witness(corner, (-1e-13, -1e-13)) is not None


def test_rounding_lands_on_equalities():
    circle = claim(x + y, equalities=(1 - x**2 - y**2,))
    px, py = round_witness(circle, (-0.6000001, -0.7999999))
    assert px**2 + py**2 == 1
    solved = claim(x - y, equalities=(x * y + 3 * y - 1,))
    px, py = round_witness(solved, (-0.6, 1 / 2.4))
    assert px * py + 3 * py == 1
    assert px <= py


def test_a_function_without_formula_has_no_witness():
    statement = Claim(text="t", states=(x, y), strict=True, function=lambda z: -(z**2).sum())
    assert violates(statement, (0, 0)) == (False, pytest.approx(np.nan, nan_ok=True))
    assert round_witness(statement, (1.0, 1.0)) is None
