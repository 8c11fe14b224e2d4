"""Phase portraits: equilibria against closed forms, sets where the formulas say, and what is refused."""

import control as ct
import jax.numpy as jnp
import numpy as np
import pytest

import ctrlgen as cg
from ctrlgen.plot.portrait import find_equilibria, read_flow
from tests.plot.drawn import contour_lines, crosses, labelled, legend

WELLS = cg.SymbolicEnergy("(x**2 - 1)**2 + y**2/2", ["x", "y"])
BOX = [[-2, -2], [2, 2]]


def found(f, states=None, low=(-2, -2), high=(2, 2)):
    every = find_equilibria(read_flow(f, states), np.array(low, float), np.array(high, float))
    return {tuple(np.round(e.x, 6) + 0.0): e.kind for e in every}


def test_equilibria_of_an_energy_are_its_critical_points():
    assert found(WELLS) == {(-1, 0): "stable", (0, 0): "saddle", (1, 0): "stable"}


def test_equilibria_have_the_eigenvalues_of_the_jacobian():
    every = find_equilibria(read_flow(["w", "-sin(q) - w/5"], ["q", "w"]), np.array([-4, -4.0]), np.array([4, 4.0]))
    assert [e.kind for e in every] == ["saddle", "stable", "saddle"]
    np.testing.assert_allclose([e.x for e in every], [[-np.pi, 0], [0, 0], [np.pi, 0]], atol=1e-9)
    root = np.sqrt(0.01 + 1)  # λ² + λ/5 - 1 = 0 at the saddles
    np.testing.assert_allclose(np.sort(every[0].eigenvalues.real), [-0.1 - root, -0.1 + root], atol=1e-9)


def test_equilibria_in_every_form_of_a_system():
    expected = {(-1, 0): "not decided", (0, 0): "saddle", (1, 0): "not decided"}
    assert found(["v", "x - x**3"], ["x", "v"]) == expected
    assert found(lambda x: jnp.stack([x[1], x[0] - x[0] ** 3])) == expected
    assert found(ct.ss([[1, 0], [0, 2]], np.eye(2), np.eye(2), np.zeros((2, 2)))) == {(0, 0): "unstable"}


def test_an_ill_conditioned_equilibrium_is_found():
    assert found(["-x", "-1000*y + x**2"], ["x", "y"]) == {(0, 0): "stable"}


def test_no_equilibrium_is_invented():
    assert found(["1 + x**2", "-y"], ["x", "y"]) == {}
    assert found(["-x", "-y"], ["x", "y"], low=(1, 1), high=(2, 2)) == {}  # it is outside


def test_a_portrait_of_an_energy():
    ax = cg.plot.phase_portrait(WELLS, bounds=BOX)
    assert legend(ax) == ["stable", "saddle"]
    np.testing.assert_allclose(np.transpose(labelled(ax, "stable").get_data()), [[-1, 0], [1, 0]], atol=1e-9)
    np.testing.assert_allclose(np.transpose(labelled(ax, "saddle").get_data()), [[0, 0]], atol=1e-9)
    assert labelled(ax, "stable").get_markerfacecolor() != "white"
    assert labelled(ax, "saddle").get_markerfacecolor() == "white"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("x", "y")
    assert any(c.get_gid() == "stream" for c in ax.collections)
    assert (ax.get_xlim(), ax.get_ylim()) == ((-2, 2), (-2, 2))


def test_a_portrait_without_streams_and_equilibria():
    ax = cg.plot.phase_portrait(WELLS, bounds=BOX, stream=False, equilibria=False)
    assert not ax.lines
    assert not any(c.get_gid() == "stream" for c in ax.collections)


def test_streams_follow_the_field():
    ax = cg.plot.phase_portrait(["-y", "x"], states=["x", "y"], bounds=[[-1, -1], [1, 1]])
    (lines,) = [c for c in ax.collections if c.get_gid() == "stream"]
    segments = [np.asarray(s) for s in lines.get_segments()]
    middle = np.concatenate([(s[1:] + s[:-1]) / 2 for s in segments])
    along = np.concatenate([np.diff(s, axis=0) for s in segments])
    turned = np.stack([-middle[:, 1], middle[:, 0]], axis=1)
    size = np.linalg.norm(along, axis=1) * np.linalg.norm(turned, axis=1)
    cosine = (along * turned).sum(axis=1)[size > 1e-6] / size[size > 1e-6]
    assert np.median(cosine) > 0.99


@pytest.mark.slow
def test_a_curve_of_equilibria_is_a_curve():
    ax = cg.plot.phase_portrait(cg.Ring(dim=2))
    dots = np.transpose(labelled(ax, "equilibria (not isolated)").get_data())
    assert len(dots) > 40
    radius = np.linalg.norm(dots, axis=1)
    assert (np.isclose(radius, radius.max(), atol=1e-6) | (radius < 1e-6)).all()


def test_safe_set_region_contraction_and_trajectories_are_drawn():
    V = cg.LyapunovFunction("x**2 + y**2", ["x", "y"])
    flow = ["-x + x**3", "-y"]
    region = cg.region_of_attraction(flow, V, ["x", "y"])
    barrier = cg.BarrierFunction("9/4 - x**2 - y**2", ["x", "y"])
    cells = cg.contraction_region(WELLS, cg.Box([-2, -2], [2, 2]), rate=0.5, cells=16)
    paths = np.cumsum(np.full((5, 3, 2), 0.1), axis=0)
    ax = cg.plot.phase_portrait(
        flow, states=["x", "y"], bounds=BOX, region=region, safety=barrier, contraction=cells, trajectories=paths,
        domain=cg.Box([-1, -1], [1, 1]),
    )  # fmt: skip
    assert {
        "contracts at 0.5: PROVED", "border of the safe set", f"V < {region.level:.4g}: PROVED", "V̇ ≥ 0 here",
        "domain", "trajectories (from the dot)", "stable", "saddle",
    } == set(legend(ax))  # fmt: skip
    np.testing.assert_allclose(np.linalg.norm(contour_lines(ax, region.level), axis=1), 1.0, atol=0.02)
    radius = np.linalg.norm(contour_lines(ax, 0.0), axis=1)
    assert (np.abs(radius - 1.5) < 0.02).sum() > 100  # the border of the safe set
    assert len(labelled(ax, "contracts at 0.5: PROVED").get_paths()) == len(cells.cells)
    np.testing.assert_allclose(crosses(ax), [region.witness])
    first = labelled(ax, "trajectories (from the dot)")
    np.testing.assert_array_equal(np.transpose(first.get_data()), paths[:, 0])


def test_a_level_of_ones_own_and_a_moving_safe_set():
    V = cg.LyapunovFunction("x**2 + y**2", ["x", "y"])
    moving = cg.SafetyFilter(cg.BarrierFunction("x - t", ["x", "y"], time="t"))
    ax = cg.plot.phase_portrait(WELLS, bounds=BOX, region=(V, 0.25), safety=moving, time=0.7)
    np.testing.assert_allclose(np.linalg.norm(contour_lines(ax, 0.25), axis=1), 0.5, atol=0.02)
    np.testing.assert_allclose(contour_lines(ax, 0.0)[:, 0], 0.7, atol=1e-9)
    assert "V < 0.25" in legend(ax)


def test_a_response_gives_its_paths_and_its_bounds():
    loop = cg.ClosedLoop(cg.GradientFlow(0.02), WELLS)
    response = loop.simulate(np.array([[0.3, 1.0], [-0.2, -1.0]]), 2.0, record=21)
    ax = cg.plot.phase_portrait(WELLS, response=response)
    path = np.transpose(labelled(ax, "trajectories (from the dot)").get_data())
    np.testing.assert_allclose(path, response.states[:, 0])
    low, high = response.states.reshape(-1, 2).min(axis=0), response.states.reshape(-1, 2).max(axis=0)
    assert ax.get_xlim()[0] < low[0] < high[0] < ax.get_xlim()[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"f": cg.Quadratic(np.eye(3))}, "f must have 2 states for a phase portrait; this energy has 3"),
        ({"f": ["x", "y", "z"], "states": ["x", "y", "z"]}, "states must be 2 for a phase portrait; got 3"),
        ({"f": ct.ss([[0.5]], [[1]], [[1]], [[0]])}, "2"),
        ({"f": ct.ss(np.eye(2) / 2, np.eye(2), np.eye(2), 0, True)}, "f must be in continuous time"),
        ({"f": WELLS, "trajectories": np.zeros((3, 2))}, r"trajectories must be \(k, n, 2\)"),
        ({"f": WELLS, "safety": cg.Ball([0, 0, 0], 1)}, "safety must have barriers in 2 dimensions; they have 3"),
        ({"f": WELLS, "region": (1, 2)}, "region must be of region_of_attraction with two states"),
        ({"f": WELLS, "bounds": [[0, 0], [0, 1]]}, r"bounds must be \(2, 2\)"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        cg.plot.phase_portrait(**arguments)


@pytest.mark.slow
def test_a_grid_has_no_paths():
    grid = cg.FokkerPlanckGrid([(-3, 3)] * 2, (20, 20), 0.5)
    response = cg.ClosedLoop(grid, WELLS).simulate(cg.Gaussian([0, 0], 0.1 * np.eye(2)), 0.1, record=2)
    with pytest.raises(ValueError, match="response must be of particles, which have paths; got a grid plant"):
        cg.plot.phase_portrait(WELLS, response=response)
