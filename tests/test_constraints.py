"""Constraints at work on batches: rounding is bounded, derivatives are right, and the way back leads inside."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy as sp

from ctrlgen.constraint import Constraint, quadratic
from ctrlgen.constraints import Constraints
from ctrlgen.field import Field

XY = ["x", "y"]
FORMULAS = [
    "1 - x**2 - y**2",
    "1 - (x - 10)**4 - (y - 10)**4",
    "1/3 - (x - 1000.1)**2 + 0.7*y*(x - 1000)",
    "3*x**5 - x*y + y/7 - 0.3",
    "exp(x/5) - y*sin(3*x) + sqrt(2)",
    "log(1 + x**2) - y/(2 + x**2)",
    "2 - x + 1.1*y",
    "Min(x, y) + Abs(x - y) - 0.1",
]


def constraint(text, states=XY, **options):
    return Constraint(Field(text, states), **options)


@pytest.mark.parametrize("text", FORMULAS)
@pytest.mark.parametrize("centre", [0.0, 10.0, 1000.0])
def test_single_precision_is_never_off_by_more_than_the_floor(text, centre):
    """Against 40 digits, at points that single precision has; and the floor is no more than a few hundred roundings."""
    if "exp" in text and centre > 10:
        centre = 20.0
    rng = np.random.default_rng(0)
    x = (centre + rng.normal(size=(60, 2)) * rng.choice([1e-3, 1.0, 3.0], size=(60, 1))).astype(np.float32)
    part = constraint(text)
    value = np.asarray(part.value(jnp.asarray(x.T)), np.float64)
    floor = np.asarray(part.floor(jnp.asarray(x.T)), np.float64)
    symbols = part.field.states
    points = [dict(zip(symbols, map(sp.Float, p.astype(float)), strict=True)) for p in x]
    exact = np.array([float(part.field.expr.evalf(40, subs=point)) for point in points])
    assert (np.abs(value - exact) <= floor + 1e-300).all()


def test_the_floor_is_tight_far_from_the_origin():
    """(x - 10)⁴ is exact to a few roundings of itself, for x - 10 is: the floor must not grow with |x|⁴."""
    part = constraint("1 - (x - 10)**4 - (y - 10)**4")
    x = jnp.asarray([[10.5], [9.7]], jnp.float32)
    assert float(part.floor(x)[0]) < 1e-5
    many = Constraints(
        [constraint(f"{b} - {a}*x", ["x"]) for a, b in [(1, 1000), (-1, 3), (2, 5000), (1, 2000), (-1, 9)]]
    )
    assert np.asarray(many.floors(jnp.asarray([[999.99]], jnp.float32)))[0, 0] < 3e-4


def test_shapes_are_read_from_formulas():
    ball = constraint("2*(9/4 - (x - 1)**2 - y**2)").shape
    assert (ball.kind, ball.size, ball.scale) == ("ball", 1.5, 2.0)
    np.testing.assert_allclose(ball.vector, [1, 0])
    assert constraint("x**2 + y**2 - 2*y - 3").shape.kind == "outside"
    half = constraint("3 - 3*x + 4*y").shape
    np.testing.assert_allclose(half.vector, [0.6, -0.8])
    assert half.size == pytest.approx(0.6)
    assert constraint("1 - x**2").shape is None  # a slab, no ball
    assert constraint("x**2 + y**2 + 1").shape is None
    assert constraint("x*y").shape is None
    assert quadratic(constraint("x**3 - y")) is None
    assert constraint("1 - x**2 - y").concave
    assert not constraint("1 - x*y").concave


@pytest.mark.parametrize("text", ["1 - x**2 - y**2", "x**2 + y**2 - 1", "1 - x/2 - y", "2 - x**4 - y**2"])
@pytest.mark.parametrize("mobility", [None, pytest.param([2.0, 0.5], marks=pytest.mark.slow), [[2.0, 0.4], [0.4, 1.0]]])
def test_the_way_back_is_a_projection_or_a_mirror_image(text, mobility):
    """Nearest in the metric for half-spaces and balls; inside for all; twice as far for a mirror."""
    part = constraint(text)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(400, 2)) * 1.5
    before = np.zeros((400, 2)) if part.at([[0.0, 0.0]])[0] > 0 else np.tile([3.0, 0.0], (400, 1))
    k = None if mobility is None else np.asarray(mobility)
    constraints = Constraints([part])
    for mirror in (False, True):
        y, left = constraints.returned(
            jnp.asarray(x.T, jnp.float32), jnp.asarray(before.T, jnp.float32), 0.0, None, 0.0, mirror, k
        )
        y = np.asarray(y, np.float64).T
        assert (part.at(y) >= 0).all()
        np.testing.assert_array_equal(np.asarray(left), part.at(x) < 0)
        if mobility is None and part.shape is not None:
            out = part.at(x) < 0
            if part.shape.kind == "half-space":
                distance = (x[out] @ part.shape.vector) - part.shape.size
                expected = x[out] - (1 + mirror) * distance[:, None] * part.shape.vector
                np.testing.assert_allclose(y[out], expected, atol=2e-5)
            elif not mirror:
                np.testing.assert_allclose(y[out], x[out] / np.linalg.norm(x[out], axis=1)[:, None], atol=1e-4)


def test_several_sets_at_once_and_boxes():
    sides = [constraint(t) for t in ("1 - x", "x + 1", "2 - y", "y + 1", "3 - y")]
    box = Constraints(sides)
    x = np.random.default_rng(0).normal(size=(500, 2)) * 3
    y, _ = box.returned(jnp.asarray(x.T, jnp.float32), jnp.zeros((2, 500), jnp.float32), 0.0, None, 0.0, False)
    np.testing.assert_allclose(np.asarray(y).T, np.clip(x, [-1, -1], [1, 2]), atol=1e-5)
    one_sided = Constraints([constraint("x + 2")])
    y, _ = one_sided.returned(jnp.asarray(x.T, jnp.float32), jnp.zeros((2, 500), jnp.float32), 0.0, None, 0.0, False)
    np.testing.assert_allclose(np.asarray(y).T, np.maximum(x, [-2, -np.inf]), atol=1e-5)


def test_derivatives_with_and_without_a_formula_agree():
    """tr(K∇²h), ∇h and ∂h/∂t of one function, as a formula and as code without one."""
    formula = Constraint(Field("2 - x**4 - x*y**2 + t*y", [*XY, "t"]), moving=True)
    # without a formula for the tracer: a branch that is never taken
    code = Constraint(
        Field(
            lambda z: 2 - jnp.where(z[0] > 1e9, 0.0, z[0] ** 4) - z[0] * z[1] ** 2 + z[2] * z[1], [*XY, "t"]
        ),
        moving=True,
    )  # fmt: skip
    assert code.field.expr is None
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 50)), jnp.float32)
    whole = np.array([[2.0, 0.4], [0.4, 1.0]])

    def views(h, y):
        slopes = [h.value(y, 0.7), h.gradient(y, 0.7), h.rate(y, 0.7)]
        return slopes, [h.curvature(y, 0.7, k) for k in (None, np.array([2.0, 0.5]), whole)]

    (slopes, curvatures), (coded_slopes, coded_curvatures) = jax.jit(lambda y: (views(formula, y), views(code, y)))(x)
    for found, coded in zip(slopes, coded_slopes, strict=True):
        np.testing.assert_allclose(found, coded, rtol=2e-5, atol=2e-5)
    for found, coded in zip(curvatures, coded_curvatures, strict=True):
        np.testing.assert_allclose(found, coded, rtol=1e-4, atol=1e-4)
    a, b = np.asarray(x)
    expected = whole[0, 0] * -12 * a**2 + 2 * whole[0, 1] * -2 * b + whole[1, 1] * -2 * a
    np.testing.assert_allclose(curvatures[-1], expected, rtol=1e-4, atol=1e-4)
