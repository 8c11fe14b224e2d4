"""The tape gives SymPy's values and derivatives, one point at a time and in batches."""

import numpy as np
import pytest
import sympy as sp

from ctrlgen.prove.tape import Tape

x, y = sp.symbols("x y", real=True)
R = sp.Rational
FORMULAS = [
    sp.S(3),
    x,
    3 * x**2 * y - x * y**5 / 7 + sp.pi,
    (x**2 + y) ** 7 / (1 + y**2) ** 3 + x**-1 + y ** (-3),
    sp.sqrt(1 + x**2) + (2 + x * y) ** R(3, 2) + sp.Abs(x) ** y,
    sp.sin(x * y) * sp.cos(y) + sp.tan(x) + sp.sec(x) + sp.csc(y) + sp.cot(x),
    sp.asin(x / 3) + sp.acos(y / 3) + sp.atan(x * y) + sp.atan2(y, x - 2),
    sp.sinh(x) * sp.cosh(y) - sp.tanh(x + y) + sp.asinh(x) + sp.acosh(3 + x) + sp.atanh(y / 3),
    sp.exp(-(x**2)) * sp.log(3 + y) + sp.erf(x - y),
    sp.Min(x, y, R(1, 3)) - sp.Max(x, 2 * y) * sp.Abs(x - y) + sp.sign(x),
]


@pytest.mark.parametrize("expr", FORMULAS, ids=str)
def test_values_and_gradients_are_sympys(expr, rng):
    points = rng.uniform(-1.3, 1.3, size=(2, 7))
    tape = Tape([expr, x * y], (x, y))
    values, weights = tape.values(points), rng.normal(size=(2, 7))
    slopes = tape.pullback(points, weights)
    for point, value, weight, slope in zip(points.T, values.T, weights.T, slopes.T, strict=True):
        at = {s: sp.Float(v, 50) for s, v in zip((x, y), map(float, point), strict=True)}
        assert value == pytest.approx([float(sp.N(expr.subs(at), 30)), point[0] * point[1]], rel=1e-11)
        step, target = sp.Float(10, 50) ** -12, []
        for s in (x, y):
            ahead, behind = (sp.N(expr.subs({**at, s: at[s] + h}), 50) for h in (step, -step))
            target.append(weight[0] * float((ahead - behind) / (2 * step)))
        target = np.array(target) + weight[1] * point[::-1]
        assert slope == pytest.approx(target, rel=1e-10, abs=1e-10)
        assert tape.at(point.tolist()) == pytest.approx(value, rel=1e-12)
        assert tape.slope(point.tolist(), weight.tolist()) == pytest.approx(slope, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("expr", [sp.log(x), sp.sqrt(x), 1 / (x + 1), x ** R(1, 3), sp.exp(-800 * x)])
def test_where_a_formula_is_undefined_there_is_no_value(expr):
    tape = Tape([expr], (x, y))
    assert np.isnan(tape.at([-1.0, 0.0])[0])
    assert tape.slope([-1.0, 0.0], [1.0]) == [0.0, 0.0]
    assert not np.isfinite(tape.values(np.array([[-1.0], [0.0]]))[0, 0])


def test_an_unknown_function_is_named():
    with pytest.raises(NotImplementedError, match="besselj"):
        Tape([sp.besselj(0, x)], (x,))
