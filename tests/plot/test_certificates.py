"""Pictures of certificates: what is drawn lies where the formulas say."""

import numpy as np
import pytest

import ctrlgen as cg
from ctrlgen.certify.region import Region
from ctrlgen.field import VectorField
from ctrlgen.plot.slices import make_slice
from tests.plot.drawn import contour_lines, crosses, hatched, labelled, legend, pixels

VAN_DER_POL = ["-x2", "x1 + (x1**2 - 1)*x2"]
V = "1.5*x1**2 - x1*x2 + x2**2"


def quadratic(points):
    return 1.5 * points[:, 0] ** 2 - points[:, 0] * points[:, 1] + points[:, 1] ** 2


# Regions of attraction ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def van_der_pol():
    return cg.region_of_attraction(VAN_DER_POL, V, ["x1", "x2"])


def test_region_is_drawn_with_its_level_and_its_refutation(van_der_pol):
    ax = van_der_pol.plot()
    assert legend(ax) == ["proved: V < 2.30447", "V̇ ≥ 0 here"]  # to 2.3045 it is refuted
    assert ax.get_title() == "region of attraction: PROVED"
    np.testing.assert_allclose(crosses(ax), [van_der_pol.witness])
    edge = contour_lines(ax, van_der_pol.level)
    assert np.abs(quadratic(edge) - van_der_pol.level).max() < 0.02
    low, high = ax.get_xlim()
    assert low < edge[:, 0].min()
    assert edge[:, 0].max() < high


def test_region_shows_a_refuted_level_that_can_be_told_apart(van_der_pol):
    from dataclasses import replace

    ax = replace(van_der_pol, refuted_at=3.0).plot()
    assert legend(ax)[1] == "refuted: V < 3"
    assert np.abs(quadratic(contour_lines(ax, 3.0)) - 3.0).max() < 0.03


def test_region_of_one_state_is_a_band():
    found = cg.region_of_attraction(["-x + x**3"], "x**2", ["x"])
    ax = found.plot()
    band = labelled(ax, "proved: V < 1").get_paths()[0].vertices[:, 0]
    np.testing.assert_allclose([band.min(), band.max()], [-1, 1], atol=0.01)  # x² < 1
    x, change = labelled(ax, "V̇").get_data()
    np.testing.assert_allclose(change, 2 * x * (-x + x**3), atol=1e-12)
    np.testing.assert_allclose(labelled(ax, "V").get_ydata(), x**2, atol=1e-12)


def test_region_of_three_states_is_cut_by_a_plane():
    states = ["x", "y", "z"]
    about = {
        "lyapunov": cg.LyapunovFunction("x**2 + y**2 + z**2", states),
        "f": VectorField(["-x", "-y", "-z"], states),
    }
    found = Region(claim="", status=cg.Status.PROVED, method="exact", level=1.0, **about)
    ax = found.plot(plane=(2, 0), at=[0, 0.6, 0])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("z", "x")
    assert "y = 0.6" in ax.get_title()
    edge = contour_lines(ax, found.level)
    np.testing.assert_allclose((edge**2).sum(axis=1), found.level - 0.36, atol=0.01)


def test_region_without_a_finite_level_is_drawn_about_the_equilibrium():
    everywhere = cg.region_of_attraction(["-x", "-y"], "x**2 + y**2", ["x", "y"])
    assert legend(everywhere.plot()) == ["proved: all of it"]
    assert everywhere.plot(bounds=[[-1, -1], [1, 1]]).get_xlim() == (-1, 1)


# Lyapunov functions ------------------------------------------------------------------------------------------


def test_lyapunov_shows_where_the_derivative_is_not_negative():
    verdict = cg.LyapunovFunction(V, ["x1", "x2"]).verify(VAN_DER_POL, cg.Sublevel(V, ["x1", "x2"], 2.8))
    ax = verdict.plot()
    assert ax.get_title() == "V > 0 and V̇ < 0: REFUTED"
    assert legend(ax) == ["levels of V", "fails here"]
    np.testing.assert_allclose(crosses(ax), [verdict.witness])
    x = contour_lines(ax, 0.0)  # V̇ = 0, and the border of the domain
    border = np.abs(quadratic(x) - 2.8) < 0.02
    zero = np.abs(
        (3 * x[:, 0] - x[:, 1]) * -x[:, 1] + (2 * x[:, 1] - x[:, 0]) * (x[:, 0] + (x[:, 0] ** 2 - 1) * x[:, 1])
    )
    assert (border | (zero < 0.05)).all()
    assert border.sum() > 50
    assert (~border).sum() > 50
    points = np.random.default_rng(0).uniform([-1.5, -1.8], [1.5, 1.8], size=(500, 2))
    a, b = points.T
    change = (3 * a - b) * -b + (2 * b - a) * (a + (a**2 - 1) * b)
    clear = np.abs(change) > 0.1
    np.testing.assert_array_equal(hatched(ax, points[clear]), change[clear] > 0)
    assert 20 < (change[clear] > 0).sum() < 400


def test_lyapunov_of_one_state_in_discrete_time():
    verdict = cg.LyapunovFunction("x**2", ["x"]).verify(["x/2"], cg.Box([-1], [1]), time="discrete")
    ax = verdict.plot()
    assert ax.get_title() == "V > 0 and V(f(x)) - V(x) < 0: PROVED"
    x, change = labelled(ax, "ΔV = V(f(x)) - V(x)").get_data()
    inside = np.abs(x) <= 1
    np.testing.assert_allclose(change[inside], -0.75 * x[inside] ** 2, atol=1e-12)
    assert np.isnan(change[~inside]).all()  # nothing is claimed there


def test_lyapunov_marks_its_failure_in_one_state():
    verdict = cg.LyapunovFunction("x**2", ["x"]).verify(["-x + x**3"], cg.Box([-1.5], [1.5]))
    ((x, y),) = crosses(verdict.plot())
    assert x == verdict.witness[0]
    assert y == pytest.approx(2 * x * (-x + x**3), rel=1e-12)
    assert y >= 0


@pytest.mark.slow
def test_what_a_search_found_is_drawn_as_its_proof_is():
    ax = cg.find_lyapunov(["w", "-sin(q) - w"], ["q", "w"], degree=2, domain=cg.Box([-2, -3], [2, 3])).plot()
    assert ax.get_title() == "V > 0 and V̇ < 0: PROVED"
    assert ax.get_xlim() == pytest.approx((-2.32, 2.32))
    none = cg.find_lyapunov(["x"], ["x"], degree=2)
    assert "Synthesis" in none.plot().texts[2].get_text()  # a table


# Barriers ----------------------------------------------------------------------------------------------------


def circle(found, centre, radius):
    return np.abs(np.linalg.norm(found - centre, axis=1) - radius) < 0.02


def test_barrier_is_drawn_between_its_sets():
    verdict = cg.BarrierFunction("1 - x**2 - y**2", ["x", "y"]).verify(
        ["-x", "-y"], initial=cg.Ball([0, 0], 0.5), unsafe=cg.Ball([2, 0], 0.4), domain=cg.Box([-3, -3], [3, 3])
    )
    ax = verdict.plot()
    assert ax.get_title() == "unsafe is not reached while inside D: PROVED"
    assert {"initial", "unsafe", "h = 0"} <= set(legend(ax))
    for centre, radius, color in (
        ([0, 0], 0.5, cg.plot.GREEN),
        ([2, 0], 0.4, cg.plot.RED),
        ([0, 0], 1.0, cg.plot.BLACK),
    ):
        line = contour_lines(ax, 0.0, color)
        assert len(line) > 30
        assert circle(line, centre, radius).all()
    assert any(drawn.get_gid() == "stream" for drawn in ax.collections)


def test_barrier_of_three_states_is_cut_where_the_sets_are():
    h = cg.BarrierFunction("1 - x**2 - y**2 - z**2", ["x", "y", "z"])
    sets = {"initial": cg.Ball([0, 0, 0], 0.5), "unsafe": cg.Ball([0, 2, 0.5], 0.6)}
    ax = h.verify(["-x", "-y", "-z"], **sets).plot(plane=(1, 2))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("y", "z")
    assert circle(contour_lines(ax, 0.0), [2, 0.5], 0.6).sum() > 30


def test_barrier_of_one_state():
    sets = {"initial": cg.Box([-0.5], [0.5]), "unsafe": cg.Box([1.5], [2.5])}
    ax = cg.BarrierFunction("1 - x**2", ["x"]).verify(["-x"], **sets).plot()
    x, h = labelled(ax, "h").get_data()
    np.testing.assert_allclose(h, 1 - x**2, atol=1e-12)
    for label, low, high in (("initial", -0.5, 0.5), ("unsafe", 1.5, 2.5)):
        band = labelled(ax, label).get_paths()[0].vertices[:, 0]
        np.testing.assert_allclose([band.min(), band.max()], [low, high], atol=0.01)


def test_stochastic_barrier_shows_its_two_levels():
    B = cg.StochasticBarrier("x**2 + y**2", ["x", "y"])
    sets = {"initial": cg.Ball([0, 0], 0.5), "unsafe": ~cg.Ball([0, 0], 2), "domain": cg.Box([-3, -3], [3, 3])}
    verdict = B.verify(["-x", "-y"], "1/2", horizon=1.0, **sets)
    ax = verdict.plot()
    assert ax.get_title() == "P(unsafe) ≤ 0.188: PROVED"  # (γ + c T) / λ = (1/4 + 1/2) / 4, rounded up
    assert circle(contour_lines(ax, 0.0, cg.plot.GREEN), [0, 0], 0.5).all()  # initial
    unsafe = contour_lines(ax, 0.0, cg.plot.RED)
    assert (circle(unsafe, [0, 0], 2.0) | np.isclose(np.abs(unsafe).max(axis=1), 3.0, atol=0.02)).all()
    for level in (verdict.gamma, verdict.level):  # 1/4 and 4
        found = contour_lines(ax, level)
        assert len(found) > 30
        np.testing.assert_allclose((found**2).sum(axis=1), level, rtol=0.02)


# Contraction -------------------------------------------------------------------------------------------------


def test_contraction_draws_unit_balls_of_the_metric():
    metric = cg.ContractionMetric([[4, 0], [0, 1]], ["x", "y"])
    ax = metric.verify(["-x - x**3", "-y"], 0.5, cg.Box([-1, -1], [1, 1])).plot()
    assert ax.get_title() == "contraction at λ = 0.5: PROVED"
    (rings,) = [c for c in ax.collections if hasattr(c, "get_widths")]
    wide, high, angle = (np.asarray(v) for v in (rings.get_widths(), rings.get_heights(), np.rad2deg(rings._angles)))
    np.testing.assert_allclose(wide / high, 2.0, rtol=1e-9)  # the unit ball of diag(4, 1) is twice as high as wide
    np.testing.assert_allclose(np.abs(np.sin(np.deg2rad(angle))), 1.0, atol=1e-9)  # and its long side stands


def test_contraction_region_shows_proved_and_refuted_cells():
    wells = cg.SymbolicEnergy("(x**2 - 1)**2 + y**2/2", ["x", "y"])
    found = cg.contraction_region(wells, cg.Box([-2, -2], [2, 2]), rate=0.5, cells=32)
    ax = found.plot()
    assert set(legend(ax)) == {"proved", "refuted", "largest box", "largest ball"}
    assert len(labelled(ax, "proved").get_paths()) == len(found.cells)
    x = np.concatenate([p.vertices for p in labelled(ax, "proved").get_paths()])[:, 0]
    assert (12 * np.abs(x) ** 2 - 4 > 0.5 - 1e-9).all()  # ∂²E/∂x² ≥ λ there
    across = labelled(ax, "largest box").get_xdata()
    np.testing.assert_allclose(np.sort(np.abs(across))[-1], 2.0)


def test_contraction_region_in_one_and_three_dimensions():
    well = cg.DoubleWell(1)
    ax = cg.contraction_region(well, cg.Box([-2], [2]), cells=16).plot()
    assert ax.get_xlim() == (-2, 2)
    assert legend(ax) == ["contraction proved"]
    deep = cg.contraction_region(cg.Quadratic(np.diag([1.0, 2.0, 3.0])), cg.Box([-1] * 3, [1] * 3))
    ax = deep.plot(plane=(0, 2), at=[0, 0.6, 0])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("x1", "x3")
    ring = np.stack(labelled(ax, "largest ball").get_data())
    np.testing.assert_allclose(np.linalg.norm(ring, axis=0), 0.8, atol=1e-6)  # the unit ball, at y = 0.6


# No certificate ----------------------------------------------------------------------------------------------


def test_no_certificate_is_what_the_flow_makes_of_the_gibbs_measure():
    verdict = cg.no_certificate(cg.Quadratic(np.eye(2)), cg.Box([-3, -3], [3, 3]), 0.5)
    ax = verdict.plot()
    assert ax.get_title() == "no Lyapunov certificate: PROVED"
    np.testing.assert_allclose(crosses(ax), [verdict.witness])
    table = max((c for c in ax.collections if getattr(c, "filled", False)), key=lambda c: len(c.levels))
    assert table.levels[0] == -table.levels[-1]
    hatched = [c for c in ax.collections if getattr(c, "filled", False) and c.hatches and c.hatches[0]]
    edge = np.concatenate([p.vertices for p in hatched[0].get_paths()])
    radius = np.linalg.norm(edge, axis=1)
    inner = radius[radius < 1.2]  # ΔE - |x|²/ε = 2 - 2|x|² changes its sign at 1
    assert len(inner) > 30
    np.testing.assert_allclose(inner, 1.0, atol=0.03)


def test_no_certificate_in_one_dimension():
    verdict = cg.no_certificate(cg.Quadratic([[1.0]]), cg.Box([-3], [3]), 0.5)
    x, change = labelled(verdict.plot(), "∂ρ/∂t at ρ*").get_data()
    np.testing.assert_allclose(change, np.exp(-(x**2)) * (1 - 2 * x**2), atol=1e-4)  # the largest ρ* of the grid is 1


# Any verdict -------------------------------------------------------------------------------------------------


def test_a_refuted_inequality_shows_where_it_fails():
    verdict = cg.nonnegative("x**2 + y**2 - 3*x*y", ["x", "y"], cg.Ball([0, 0], 1))
    ax = verdict.plot()
    assert ax.get_title() == "p ≥ 0: REFUTED"
    np.testing.assert_allclose(crosses(ax), [verdict.witness])
    assert legend(ax) == ["fails here"]
    zero = contour_lines(ax, 0.0)
    on_ball = np.abs(np.linalg.norm(zero, axis=1) - 1) < 0.02
    steep = np.abs(zero[:, 0] ** 2 + zero[:, 1] ** 2 - 3 * zero[:, 0] * zero[:, 1]) < 0.03
    assert (on_ball | steep).all()


def test_a_union_is_drawn_in_all_its_pieces():
    verdict = cg.nonnegative("x**2 + y**2", ["x", "y"], cg.Box([-2, -2], [-1, -1]) | cg.Box([1, 1], [2, 2]))
    ax = verdict.plot()
    assert ax.get_xlim()[0] < -2
    assert ax.get_xlim()[1] > 2
    edge = contour_lines(ax, 0.0)
    assert np.isclose(np.abs(edge), [1, 1], atol=0.02).any()
    assert (edge.min() < -1, edge.max() > 1) == (True, True)


def test_an_inequality_of_one_state():
    verdict = cg.nonnegative("x**2 - x/2", ["x"], cg.Box([-1], [1]))
    ax = verdict.plot()
    x, slack = labelled(ax, "slack").get_data()
    inside = np.abs(x) <= 1
    np.testing.assert_allclose(slack[inside], (x**2 - x / 2)[inside], atol=1e-12)
    assert np.isnan(slack[~inside]).all()
    ((at, height),) = crosses(ax)
    assert height == pytest.approx(at**2 - at / 2)
    failing = labelled(ax, "fails").get_paths()[0].vertices[:, 0]
    np.testing.assert_allclose([failing.min(), failing.max()], [0, 0.5], atol=0.01)


def test_a_bound_is_drawn_with_its_lowest_point():
    bound = cg.lower_bound("(x - 1)**2 + y**2 + 3", ["x", "y"])
    ax = bound.plot()
    np.testing.assert_allclose(crosses(ax), [[1, 0]], atol=1e-3)
    assert legend(ax) == ["smallest value seen"]


def test_a_claim_on_a_curve_is_drawn_with_the_curve():
    h = cg.BarrierFunction("1 - x**2 - y**2", ["x", "y"])
    ax = h.control(["y", "-x"], ["0", "1"], domain=cg.Box([-2, -2], [2, 2])).plot()
    assert "claimed on this line" in legend(ax)  # where L_g h = -2y vanishes
    zero = contour_lines(ax, 0.0)
    assert (np.abs(zero[:, 1]) < 1e-9).sum() > 5


def test_more_than_two_dimensions_are_cut_where_it_is_asked():
    verdict = cg.nonnegative("x**2 + y**2 + z**2 - 1", ["x", "y", "z"], cg.Box([-2] * 3, [2] * 3))
    ax = verdict.plot(plane=(0, 1), at=[0, 0, 0.8])
    zero = contour_lines(ax, 0.0)
    ring = np.linalg.norm(zero, axis=1)
    assert (np.abs(ring - 0.6) < 0.02).sum() > 30
    assert ax.get_title().endswith("z = 0.8")


def test_a_verdict_without_formula_is_a_table():
    verdict = cg.sum_of_squares("x**4*y**2 + x**2*y**4 - 3*x**2*y**2 + 1", ["x", "y"])
    ax = verdict.plot()
    words = [text.get_text() for text in ax.texts]
    assert words[:4] == ["✗", "REFUTED", "Verdict: p is a sum of squares", "exact"]
    assert "a linear functional that is ≥ 0 on squares" in words[10].replace("\n", " ")
    assert not ax.axison


def test_a_table_fits_into_axes_that_are_given():
    verdict = cg.KLLyapunov(cg.Quadratic(np.diag([1.0, 2.0])), 0.5).verify(
        cg.ClosedLoop(cg.Langevin(0.5, 0.05), cg.Quadratic(np.diag([1.0, 2.0])))
    )
    ax = cg.plot.figure(1, 2)[0, 0]
    cg.plot.verdict_table(verdict, ax)
    page = pixels(ax)
    assert page.min() < 120
    box = ax.get_window_extent()
    for text in ax.texts:
        assert text.get_window_extent().y0 > box.y0 - 5


@pytest.mark.parametrize(
    ("view", "message"),
    [
        ({"plane": (0, 0)}, "plane must be two different coordinates"),
        ({"plane": (0, 3)}, "plane must be two coordinates"),
        ({"plane": 1}, "plane must be two coordinates"),
        ({"at": [0, 0]}, "at must be a state, 3 finite numbers"),
        ({"bounds": [[1, 1], [0, 2]]}, r"bounds must be \(2, 2\), lower and upper corner in the plane"),
    ],
)
def test_views_that_do_not_fit(view, message):
    verdict = cg.nonnegative("x**2 + y**2 + z**2", ["x", "y", "z"])
    with pytest.raises(ValueError, match=message):
        verdict.plot(**view)


def test_a_slice_holds_what_it_is_of():
    view = make_slice(["x", "y", "z"], (2, 0), [1, 5, 2], None, domains=[cg.Box([-1, -9, -2], [3, 9, 4])])
    np.testing.assert_allclose(view.low, [-2.48, -1.32])  # 8 % of 6 and of 4
    np.testing.assert_allclose(view.high, [4.48, 3.32])
    assert (view.points[:, 1] == 5).all()
    assert view.place([7, 8, 9]) == (9, 7)
