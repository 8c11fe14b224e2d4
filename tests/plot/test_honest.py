"""A picture says no more than its verdict: sets, motion, witnesses, titles and numbers."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import ctrlgen as cg
from ctrlgen.certify.premise import shown_down
from ctrlgen.certify.region import Region
from ctrlgen.field import VectorField
from ctrlgen.plot.slices import connected, make_slice
from tests.plot.drawn import contour_lines, crosses, hatched, labelled, legend

PERIODIC = ["-sin(x1)", "-x2"]
HALVED = ["x1/2", "x2/2"]
STATES = ["x1", "x2"]
BOWL = "x1**2 + x2**2"
WIDE = [[-10, -4], [10, 4]]


def proved(f, V, states, domain):
    """What `region_of_attraction` proves, but for the last digits of the level: 1 - cos 3, V on the domain's edge."""
    about = {"lyapunov": cg.LyapunovFunction(V, states), "f": VectorField(f, states), "domain": domain}
    claim = f"region of attraction of {', '.join(f)}"
    return Region(claim=claim, status=cg.Status.PROVED, method="exact", level=1 - np.cos(3) - 1e-9, **about)


@pytest.fixture(scope="module")
def periodic():
    return proved(PERIODIC, "1 - cos(x1) + x2**2/2", STATES, cg.Box([-3, -3], [3, 3]))


def sublevel(ax, level):
    """All corners of what is filled below a level, (n, 2)."""
    (body,) = [c for c in ax.collections if getattr(c, "filled", False) and np.isclose(c.levels[-1], level)]
    return np.concatenate([p.vertices for p in body.get_paths()])


@pytest.mark.parametrize("draw", ["region", "portrait"])
def test_only_the_part_of_a_region_about_the_equilibrium_is_filled(periodic, draw):
    assert periodic.domain is not None
    if draw == "region":
        ax = periodic.plot(bounds=WIDE)
        assert legend(ax) == [f"proved: V < {shown_down(periodic.level)} inside D"]
    else:
        ax = cg.plot.phase_portrait(PERIODIC, region=periodic, bounds=WIDE, stream=False)
        assert legend(ax)[0] == f"V < {shown_down(periodic.level)} inside D: PROVED"
    for found in (sublevel(ax, periodic.level), contour_lines(ax, periodic.level)):
        assert np.abs(found[:, 0]).max() < 3.15  # the wells at ±2π are not what was proved
        assert np.abs(found[:, 0]).max() > 2.8
        assert np.abs(found[:, 1]).max() == pytest.approx(np.sqrt(2 * periodic.level), abs=0.06)


def test_what_hangs_together_is_told_without_a_domain_and_cut_by_one():
    view = make_slice(STATES, (0, 1), [0, 0], WIDE)
    height, inside = view.table(lambda x: 1 - np.cos(x[:, 0])), view.table(lambda x: 1 - np.abs(x[:, 0]))
    across = np.broadcast_to(view.axes[0], height.shape)
    alone = connected(view, height, 1.0, None, np.zeros(2))[0]
    np.testing.assert_array_equal(alone, np.abs(across) < np.pi / 2)  # of the three wells in the picture
    cut, lifted = connected(view, height, 1.0, inside, np.zeros(2))
    np.testing.assert_array_equal(cut, np.abs(across) <= 1)
    assert (lifted[~cut] > 1.0).all()
    assert not connected(view, height, 1.0, None, [np.pi, 0])[0].any()  # it is in no well


def test_a_region_of_one_state_is_filled_about_the_equilibrium():
    found: Any = proved(["-sin(x)"], "1 - cos(x)", ["x"], cg.Box([-3], [3]))
    for drawn, label in ((found, " inside D"), (replace(found, domain=None), "")):
        ax = drawn.plot(bounds=[-10, 10])
        band = labelled(ax, f"proved: V < {shown_down(found.level)}{label}").get_paths()
        ends = np.concatenate([p.vertices[:, 0] for p in band])
        np.testing.assert_allclose([ends.min(), ends.max()], [-3, 3], atol=0.02)


def test_a_map_has_arrows_to_where_it_goes_and_no_streamlines():
    region = cg.region_of_attraction(HALVED, BOWL, STATES, time="discrete")
    h = cg.BarrierFunction("1 - x1**2 - x2**2", STATES)
    sets: dict[str, Any] = {
        "initial": cg.Ball([0, 0], 0.5),
        "unsafe": cg.Ball([2, 0], 0.5),
        "domain": cg.Box([-4, -4], [4, 4]),
    }
    barrier = h.verify(HALVED, **sets, gain="3/4", time="discrete")
    for verdict in (region, barrier):
        assert verdict.discrete
        ax = verdict.plot(bounds=[[-2, -2], [2, 2]])
        assert not any(c.get_gid() == "stream" for c in ax.collections)
        (arrows,) = [c for c in ax.collections if c.get_gid() == "steps"]
        x, step = np.asarray(arrows.get_offsets()), np.stack([arrows.U, arrows.V], axis=-1)
        np.testing.assert_allclose(step, -x / 2, atol=1e-12)  # inwards
        assert "f(x) - x, shortened" in legend(ax)
    with pytest.raises(ValueError, match="region must be of a system in continuous time"):
        cg.plot.phase_portrait(["-x1", "-x2"], region=region)


def test_a_map_of_one_state_has_differences():
    region = cg.region_of_attraction(["x/2 + x**3"], "x**2", ["x"], time="discrete")
    x, change = labelled(region.plot(), "ΔV = V(f(x)) - V(x)").get_data()
    np.testing.assert_allclose(change, (x / 2 + x**3) ** 2 - x**2, atol=1e-12)
    assert "ΔV ≥ 0 here" in legend(region.plot())
    sets: dict[str, Any] = {
        "initial": cg.Box(["-1/2"], ["1/2"]),
        "unsafe": cg.Box([2], [3]),
        "domain": cg.Box([-3], [3]),
    }
    barrier = cg.BarrierFunction("1 - x**2", ["x"]).verify(["x/2"], **sets, gain="3/4", time="discrete")
    x, change = labelled(barrier.plot(), "Δh = h(f(x)) - h(x)").get_data()
    np.testing.assert_allclose(change, 0.75 * x**2, atol=1e-12)


def test_a_witness_out_of_the_plane_is_not_drawn_in_it():
    states, at = ["x", "y", "z"], np.array([0.1, 0.2, 1.5])
    about = {
        "lyapunov": cg.LyapunovFunction("x**2 + y**2 + z**2", states),
        "f": VectorField(["-x", "-y", "-z + z**3"], states),
    }
    region = Region(claim="", status=cg.Status.PROVED, method="exact", level=1.0, witness=at, **about)
    ax = region.plot()
    assert len(crosses(ax)) == 0
    assert legend(ax)[-1] == "witness outside this plane"
    through = region.plot(at=at * (1 + 1e-12))
    np.testing.assert_allclose(crosses(through), [at[:2]])
    assert legend(through)[-1] == "V̇ ≥ 0 here"
    verdict = cg.nonnegative("x**2 + y**2 + z**2 - 1", states, cg.Box([-2] * 3, [2] * 3))
    assert len(crosses(verdict.plot())) == 1
    assert legend(verdict.plot(at=[0, 0, 1.9]))[-1] == "witness outside this plane"
    assert make_slice(states, (0, 2), [0, 1, 0], None).holds([5, 1 + 1e-10, 7])
    assert not make_slice(states, (0, 2), [0, 1, 0], None).holds([5, 1 + 1e-7, 7])


def test_a_barrier_that_fails_says_which_claim():
    h = cg.BarrierFunction("1 - x1**2 - x2**2", STATES)
    sets: dict[str, Any] = {
        "initial": cg.Ball([0, 0], 0.5),
        "unsafe": cg.Ball([2, 2], 0.25),
        "domain": cg.Box([-4, -4], [4, 4]),
    }
    ax = h.verify(["x1", "-x2"], **sets).plot()
    assert ax.get_title() == "ḣ ≥ 0 on the domain: REFUTED"
    near = cg.BarrierFunction("4 - x1**2 - x2**2", STATES)
    sets["unsafe"] = cg.Ball([1, 1], 0.25)
    assert near.verify(["-x1", "-x2"], **sets).plot().get_title() == "h < 0 on unsafe: REFUTED"


def test_where_v_is_not_positive_is_hatched():
    verdict = cg.LyapunovFunction("x1**2 - x2**2/10", STATES).verify(["-x1", "x2"], cg.Ball([0, 0], 1))
    ax = verdict.plot()
    assert "V ≤ 0" in legend(ax)
    points = np.random.default_rng(0).uniform(-1, 1, size=(400, 2))
    height = points[:, 0] ** 2 - points[:, 1] ** 2 / 10
    clear = np.abs(np.abs(points[:, 0]) - np.abs(points[:, 1]) / np.sqrt(10)) > 0.03
    np.testing.assert_array_equal(hatched(ax, points[clear]), height[clear] < 0)
    line = cg.LyapunovFunction("x**3", ["x"]).verify(["-x"], cg.Box([-1], [1])).plot()
    band = labelled(line, "V ≤ 0").get_paths()[0].vertices[:, 0]
    np.testing.assert_allclose([band.min(), band.max()], [-1, 0], atol=0.01)


def test_no_change_is_hatched_where_a_fall_is_claimed():
    V, ball = cg.LyapunovFunction(BOWL, STATES), cg.Ball([0, 0], 1)
    points = np.random.default_rng(0).uniform(-0.9, 0.9, size=(50, 2))
    strict = V.verify(["x2", "-x1"], ball)
    assert strict.status is cg.Status.REFUTED
    assert np.all(hatched(strict.plot(), points))
    weak = V.verify(["x2", "-x1"], ball, strict=False)
    assert not weak.strict
    assert not any(getattr(c, "hatches", None) and c.hatches[0] for c in weak.plot().collections)
    rest = cg.LyapunovFunction("x**2", ["x"]).verify(["0*x"], cg.Box([-1], [1])).plot()
    band = np.concatenate([p.vertices[:, 0] for p in labelled(rest, "V̇ = 0").get_paths()])
    np.testing.assert_allclose([band.min(), band.max()], [-1, 1], atol=0.01)


def test_proved_numbers_are_rounded_to_the_side_that_stays_true(periodic):
    printed = {"level": 2.304478, "refuted_at": 2.6000004, "domain": None}
    assert {"proved: V < 2.30447", "refuted: V < 2.60001"} <= set(legend(replace(periodic, **printed).plot()))
    B = cg.StochasticBarrier("x1**2/4", ["x1"])
    sets: dict[str, Any] = {
        "initial": cg.Box(["-0.35"], ["0.35"]),
        "unsafe": cg.Box([2], [3]),
        "domain": cg.Box([-3], [3]),
    }
    verdict = replace(B.verify(["-x1"], [["0.3"]], horizon=1, **sets), probability=0.12345, gamma=0.10001, level=0.9999)
    ax = verdict.plot()
    assert ax.get_title() == f"P(unsafe) ≤ 0.124: {verdict.status.name}"
    assert {"γ = 0.101", "λ = 0.999"} <= set(legend(ax))
    decay = cg.KLLyapunov(cg.Quadratic(np.eye(2)), 0.5).verify(
        cg.ClosedLoop(cg.Langevin(0.5, 0.05), cg.Quadratic(np.eye(2)))
    )
    assert "certified: rate 1.77777" in legend(replace(decay, rate=1.777777).plot())
    table = cg.plot.verdict_table(replace(periodic, level=2.304478))
    assert "level 2.30447" in " ".join(t.get_text() for t in table.texts).replace("\n", " ")


def test_cells_are_titled_by_what_is_proved_on_them():
    wells = cg.SymbolicEnergy("(x**2 - 1)**2 + y**2/2", ["x", "y"])
    found = cg.contraction_region(wells, cg.Box([-2, -2], [2, 2]), rate=0.5, cells=16)
    first, second = found.plot().get_title().split("\n")
    assert first == "∇²E ⪰ λM on the shaded cells: PROVED"
    assert second == f"λ = 0.5, {shown_down(100 * found.fraction, 3)} % of the box"
    assert found.fraction < 0.7
