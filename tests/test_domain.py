"""Sets of states: exact guards and boxes, membership, samples, and what is refused."""

import numpy as np
import pytest
import sympy as sp

from ctrlgen.domain import Ball, Box, Sublevel, Union

x, y = sp.symbols("x y", real=True)
XY = ("x", "y")
ELLIPSE = "1.5*x**2 - x*y + y**2"
SETS = {
    "box": (Box([-1, 0], [2, 0.5]), lambda a, b: (a >= -1) & (a <= 2) & (b >= 0) & (b <= 0.5)),
    "half-infinite box": (Box([-np.inf, 0], [1, np.inf]), lambda a, b: (a <= 1) & (b >= 0)),
    "ball": (Ball([0.5, 0], 0.75), lambda a, b: (a - 0.5) ** 2 + b**2 <= 0.75**2),
    "sublevel": (Sublevel(ELLIPSE, XY, 2), lambda a, b: 1.5 * a**2 - a * b + b**2 <= 2),
    "parabola": (Sublevel("y - x**2", XY, 0.25), lambda a, b: b - a**2 <= 0.25),
    "intersection": (Box([0, 0], [1, 1]) & Ball([0, 0], 1), lambda a, b: (a >= 0) & (b >= 0) & (a**2 + b**2 <= 1)),
    "union": (
        Box([0, 0], [1, 1]) | Ball([-1, -1], 1),
        lambda a, b: ((a >= 0) & (a <= 1) & (b >= 0) & (b <= 1)) | ((a + 1) ** 2 + (b + 1) ** 2 <= 1),
    ),
    "outside a box": (~Box([0, 0], [1, 1]), lambda a, b: (a <= 0) | (a >= 1) | (b <= 0) | (b >= 1)),
    "outside a ball": (~Ball([0, 0], 1), lambda a, b: a**2 + b**2 >= 1),
    "outside a sublevel": (~Sublevel(ELLIPSE, XY, 2), lambda a, b: 1.5 * a**2 - a * b + b**2 >= 2),
    "outside a union": (
        ~(Box([0, -9], [1, 9]) | Ball([0, 0], 1)),
        lambda a, b: ((a <= 0) | (a >= 1) | (b <= -9) | (b >= 9)) & (a**2 + b**2 >= 1),
    ),
    "outside an intersection": (
        ~(Box([0, -9], [1, 9]) & Ball([0, 0], 1)),
        lambda a, b: (a <= 0) | (a >= 1) | (b <= -9) | (b >= 9) | (a**2 + b**2 >= 1),
    ),
}


@pytest.mark.parametrize("name", SETS)
def test_guards_boxes_and_membership_agree_with_the_definition(name, rng):
    domain, definition = SETS[name]
    points = rng.uniform(-2.5, 2.5, size=(3000, 2))
    inside = definition(*points.T)
    assert 0 < inside.sum() < len(points)
    np.testing.assert_array_equal(domain.contains(points), inside)
    assert domain.contains(points[0]) == inside[0]
    by_piece = np.zeros(len(points), dtype=bool)
    for piece in domain.pieces(XY):
        values = [sp.lambdify((x, y), g)(*points.T) for g in piece.guards]
        here = np.all([v >= 0 for v in values], axis=0)
        for i, (low, high) in enumerate(piece.box):
            assert low is None or (points[here, i] >= float(low)).all()
            assert high is None or (points[here, i] <= float(high)).all()
        by_piece |= here
    np.testing.assert_array_equal(by_piece, inside)


@pytest.mark.parametrize("name", SETS)
def test_samples_and_the_exact_point_lie_inside(name, rng):
    domain, definition = SETS[name]
    sample = domain.sample(rng, 500)
    assert sample.shape == (500, 2)
    assert definition(*sample.T).all()
    point = domain.nonempty(XY)
    assert all(isinstance(p, sp.Rational) for p in point)
    assert definition(*map(float, point))


def test_samples_of_bounded_sets_are_uniform(rng):
    ball = Ball([1, 0, -1], 2).sample(rng, 4000)
    radius = np.linalg.norm(ball - [1, 0, -1], axis=1) / 2
    # |x|^d is uniform: mean 1/2, standard error sqrt(1/12/4000)
    assert abs((radius**3).mean() - 0.5) < 4 * np.sqrt(1 / 12 / 4000)
    half = (Box([-1, -1], [1, 1]) & Sublevel("x", ["x"], 0)).sample(rng, 4000, states=XY)
    assert half[:, 0].max() <= 0
    assert abs(half[:, 0].mean() + 0.5) < 4 * np.sqrt(1 / 12 / 4000)
    union = (Box([0, 0], [3, 1]) | Box([10, 0], [11, 1])).sample(rng, 4000)
    assert abs((union[:, 0] < 5).mean() - 0.75) < 4 * np.sqrt(0.75 * 0.25 / 4000)


def test_floats_are_the_decimals_that_they_print_as():
    (guard,) = Box([0.1], [0.7]).guards(["x"])
    assert guard == (sp.Rational(7, 10) - x) * (x - sp.Rational(1, 10))
    assert Ball([0.3, 0], np.float32(0.1)).guards(XY)[0].subs({x: sp.Rational(2, 5), y: 0}) == 0
    assert Sublevel("0.1*x", ["x"], 0.3).guards(["x"]) == (sp.Rational(3, 10) - x / 10,)


def test_half_infinite_sides_give_linear_guards():
    assert Box([-np.inf, 0], [1, np.inf]).guards(XY) == (1 - x, y)
    assert Box([-np.inf, 0], [1, np.inf]).box(XY) == ((None, 1), (0, None))


def test_an_irrational_bound_is_exact_in_the_guard_and_outward_in_the_box():
    box = Box([-sp.pi], [sp.pi])
    assert box.guards(["x"])[0].has(sp.pi)
    ((low, high),) = box.box(["x"])
    assert low < -sp.pi
    assert high > sp.pi
    assert high - sp.pi < sp.Rational(1, 10**15)


def test_the_box_of_an_ellipsoid_is_tight_and_outside():
    # the extent of {xᵀPx ≤ c} along axis i is sqrt(c (P⁻¹)ᵢᵢ); with det P = 5/4 and c = 2: x² ≤ 8/5, y² ≤ 12/5
    (_, _), (low_x, high_x), (low_y, high_y) = Sublevel(ELLIPSE, XY, 2).box(["z", "x", "y"])
    for low, high, square in ((low_x, high_x, sp.Rational(8, 5)), (low_y, high_y, sp.Rational(12, 5))):
        assert low == -high
        assert square < high**2 < square + sp.Rational(1, 10**15)
    assert Sublevel("(x - 1)**2 + y**2", XY, 4).box(XY) == ((-1, 3), (-2, 2))
    assert Sublevel("x**2 - y**2", XY, 1).box(XY) == ((None, None), (None, None))


@pytest.mark.parametrize("level", [0.01, 20])
def test_the_box_around_a_quartic_encloses_it(level, rng):
    quartic = Sublevel("x**4 + y**2 + x**2*y**2", XY, level)
    box = quartic.box(XY)
    assert all(low is not None and high is not None for low, high in box)
    points = rng.uniform(-1, 1, size=(5000, 2)) * [1.2 * level**0.25, 1.2 * level**0.5]
    inside = points[quartic.contains(points)]
    assert len(inside) > 100
    assert (np.abs(inside) <= [float(high) for _, high in box]).all()


def test_states_are_found_by_name():
    theta, omega = sp.symbols("theta omega")
    domain = Sublevel(theta**2 + omega, [theta, omega], 1)
    w, t = sp.symbols("omega theta", real=True)
    assert domain.guards([w, t]) == (1 - t**2 - w,)
    with pytest.raises(ValueError, match=r"\['theta', 'omega'\].*\['theta'\] is not among the states \['x', 'omega'\]"):
        domain.pieces(["x", "omega"])
    with pytest.raises(ValueError, match="has 2 coordinates; the states are"):
        Ball([0, 0], 1).pieces(["x", "y", "z"])


@pytest.mark.parametrize(
    ("lower", "upper", "message"),
    [
        ([0, 1], [1, -1], r"coordinate 1 has lower 1 and upper -1\. Swapped .* a known mistake.*swap them"),
        ([0, 1], [1, 1], "coordinate 1 .* zero volume"),
        ([0], [1, 2], "must be of one length; got 1 and 2"),
        ([np.inf], [np.inf], "coordinate 0"),
        ([np.nan], [1], r"lower\[0\] must be a real number; got nan"),
        ([0], [1j], r"upper\[0\] must be a real number"),
        (0, 1, "lower must be a list of numbers"),
        ([], [], "at least one coordinate"),
    ],
)
def test_boxes_that_are_none(lower, upper, message):
    with pytest.raises(ValueError, match=message):
        Box(lower, upper)


@pytest.mark.parametrize("radius", [0, -1, np.inf, np.nan])
def test_balls_that_are_none(radius):
    with pytest.raises(ValueError, match="radius must be"):
        Ball([0, 0], radius)


EMPTY = [
    Sublevel("x**2 + y**2", XY, -1),
    Sublevel("exp(x) + sin(y)", XY, -2),
    Box([0, 0], [1, 1]) & Ball([5, 5], 1),
    Ball([0, 0], 1) & Ball([1.8, 1.8], 1.5),
]


@pytest.mark.parametrize("domain", EMPTY, ids=repr)
def test_empty_sets_are_named(domain, rng):
    with pytest.raises(ValueError, match="appears to be empty"):
        domain.nonempty(XY)
    with pytest.raises(ValueError, match=r"appears to be empty: none of .* tries"):
        domain.sample(rng, 10)


def test_a_set_without_volume_is_refused_where_a_volume_is_needed():
    point = Sublevel("x**2 + y**2", XY, 0)
    assert point.nonempty(XY) == (0, 0)
    with pytest.raises(ValueError, match="no interior"):
        point.interior_point(XY)
    touching = Ball([0, 0], 1) & Ball([2, 0], 1)
    assert touching.nonempty(XY) == (1, 0)
    with pytest.raises(ValueError, match="no interior"):
        touching.interior_point(XY)


def test_a_sliver_of_a_set_has_an_interior_point():
    sliver = Sublevel("(x - 1)**2 + y**2", XY, 1e-6) & Sublevel("(x - 1.0019)**2 + y**2", XY, 1e-6)
    px, py = sliver.interior_point(XY)
    assert (px - 1) ** 2 + py**2 < sp.Rational(1, 10**6)
    assert (px - sp.Rational("1.0019")) ** 2 + py**2 < sp.Rational(1, 10**6)


def test_powers_of_states_are_not_worked_out_exactly():
    domain = Sublevel("(1 + x**2)**y", XY, 0.9) & Box([-1, -1], [1, 1])
    px, py = domain.interior_point(XY)
    assert (1 + float(px) ** 2) ** float(py) < 0.9


def test_a_union_has_no_one_list_of_guards():
    with pytest.raises(ValueError, match=r"a union of 2 pieces.*Use pieces\(states\)"):
        (Ball([0, 0], 1) | Ball([1, 1], 1)).guards(XY)
    assert isinstance(~Box([0], [1]), Union)
    with pytest.raises(ValueError, match="whole space"):
        ~Box([-np.inf], [np.inf])
    with pytest.raises(ValueError, match="of one dimension"):
        Ball([0], 1) & Ball([0, 0], 1)


def test_double_complements_are_the_set_itself():
    assert ~~Ball([0, 0], 1) == Ball([0, 0], 1)
    assert ~~Sublevel("x", ["x"], 1) == Sublevel("x", ["x"], 1)
