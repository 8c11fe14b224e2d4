"""What the pictures show: lines, scales and labels; and that nothing of matplotlib's global state is touched."""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.path import Path

import ctrlgen as cg
from ctrlgen import plot
from ctrlgen.certify.premise import shown_down
from ctrlgen.training.result import TrainingResult

QUADRATIC = cg.Quadratic([[2.0, 0.3], [0.3, 1.0]])


@pytest.fixture(scope="module")
def particles():
    loop = cg.ClosedLoop(cg.Langevin(1.0, 0.01), QUADRATIC)
    return loop.simulate(cg.Gaussian([2.0, 2.0], 0.1), 1.0, record=11, particles=400)


@pytest.fixture(scope="module")
def gaussian():
    return cg.ClosedLoop(cg.GaussianPlant(1.0), QUADRATIC).simulate(cg.Gaussian([2.0, 2.0], 0.1), 2.0, record=21)


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_energy_in_two_dimensions():
    ax = plot.energy(QUADRATIC, bounds=[[-1, -2], [1, 2]], levels=5)
    assert (ax.get_xlim(), ax.get_ylim()) == ((-1, 1), (-2, 2))
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_aspect()) == ("x₁", "x₂", 1)
    (contours,) = ax.collections
    assert len(contours.levels) == 5
    assert contours.levels[0] == pytest.approx(0, abs=1e-3)  # the minimum, up to the grid


def test_energy_in_one_dimension_is_its_graph():
    energy = cg.DoubleWell(1)
    ax = plot.energy(energy, bounds=[[-2], [2]])
    x, y = ax.lines[0].get_data()
    np.testing.assert_allclose(y, (x**2 - 1) ** 2, atol=1e-12)


def test_a_trained_energy_is_shown_where_its_data_is():
    trained = cg.TrainedEnergy(QUADRATIC, [10.0, 20.0], [1.0, 2.0], temperature=0.1)
    ax = plot.energy(trained)
    assert ax.get_xlim() == (7, 13)
    assert ax.get_ylim() == (14, 26)
    assert ax.collections[0].levels[-1] == pytest.approx(1.2, abs=0.05)  # 12 temperatures


def test_energies_that_cannot_be_drawn():
    with pytest.raises(ValueError, match="E must have 1 or 2 dimensions to be drawn as a landscape; it has 3"):
        plot.energy(cg.Ring(dim=3))
    with pytest.raises(ValueError, match=r"bounds must be \(2, 2\), lower corner below upper corner"):
        plot.energy(QUADRATIC, bounds=[[1, 1], [0, 2]])
    with pytest.raises(ValueError, match=r"states must have shape \(n, 1\) or \(n, 2\) to be drawn"):
        plot.particles(np.zeros((3, 4)))


def test_particles():
    states = np.random.default_rng(0).normal(size=(50, 2))
    ax = plot.particles(states, most=40)
    np.testing.assert_array_equal(ax.collections[0].get_offsets(), states[:40])
    assert plot.particles(states, ax=ax) is ax
    outline = plot.particles(states[:, :1]).patches[0].get_xy()  # a histogram, of area 1
    x, y = outline.T
    assert 0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) == pytest.approx(1)


def test_decay_is_the_curve_on_a_log_axis(gaussian):
    ax = plot.decay(gaussian, rate=1.5, label="certified")
    assert ax.get_yscale() == "log"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("time", "KL [nats]")
    curve, rate = ax.lines
    np.testing.assert_array_equal(curve.get_data(), [gaussian.time, gaussian.kl])
    slope = np.diff(np.log(rate.get_ydata())) / np.diff(rate.get_xdata())
    np.testing.assert_allclose(slope, -1.5, rtol=1e-9)
    assert rate.get_ydata()[0] == pytest.approx(gaussian.kl[0])
    assert legend(ax) == ["KL to the Gibbs measure", "certified: rate 1.5"]


def test_decay_of_particles_has_an_error_band(particles):
    ax = plot.decay(particles, most=6)
    (band,) = ax.collections
    assert legend(ax) == ["± 2 s.e.", "KL to the Gibbs measure"]
    time = ax.lines[0].get_xdata()
    assert len(time) <= 6
    top = particles.kl[0] + 2 * particles.kl_error[0]
    assert band.get_paths()[0].vertices[:, 1].max() == pytest.approx(top)


def test_decay_without_log_z_is_relative():
    energy = cg.SymbolicEnergy("+".join(f"x{i}**2/2" for i in range(1, 5)), [f"x{i}" for i in range(1, 5)])
    loop = cg.ClosedLoop(cg.Langevin(2.0, 0.02), energy)
    response = loop.simulate(cg.Gaussian(np.full(4, 3.0), 0.5), 1.0, record=6, particles=500)
    ax = plot.decay(response)
    assert legend(ax)[-1] == "KL less its last value"
    expected = (response.free_energy - response.free_energy[-1])[:-1] / 2.0
    np.testing.assert_allclose(ax.lines[0].get_ydata(), expected)


def test_response_of_every_plant(particles, gaussian):
    grid = cg.FokkerPlanckGrid([(-4, 4)] * 2, (40, 40), 1.0)
    gridded = cg.ClosedLoop(grid, QUADRATIC).simulate(cg.Gaussian([1.0, 0.0], 0.3), 1.0, record=5)
    m = QUADRATIC.properties.hessian_lower
    for response in (particles, gaussian, gridded):
        axes = response.plot()
        assert axes.shape == (3,)
        assert legend(axes[0])[-1] == f"certified, continuous time: rate {shown_down(2 * m)}"
        np.testing.assert_array_equal(axes[1].lines[0].get_ydata(), response.energy)
        np.testing.assert_array_equal(axes[1].lines[1].get_ydata(), response.free_energy)
        assert legend(axes[1]) == ["mean energy", "free energy F"]
        assert axes[2].get_xlabel() == "x₁"
    np.testing.assert_array_equal(axes[2].collections[0].get_array().ravel(), gridded.density[-1].T.ravel())
    with pytest.raises(ValueError, match="axes must be 2 or 3 axes; got 1"):
        plot.response(particles, plot.figure()[0])


def test_no_rate_is_certified_where_none_is_proved():
    loop = cg.ClosedLoop(cg.Langevin(0.5, 0.01), cg.DoubleWell(1))
    axes = plot.response(loop.simulate(cg.Gaussian([0.0], 0.1), 0.5, record=5, particles=300))
    assert not any("certified" in text for text in legend(axes[0]))
    x, gibbs = axes[2].lines[0].get_data()  # beside the histogram
    assert (gibbs.sum() * (x[1] - x[0])) == pytest.approx(1, abs=1e-6)


def test_transport_shows_start_and_end(particles):
    axes = plot.transport(particles, panels=3)
    assert [ax.get_title() for ax in axes] == ["t = 0", "t = 0.1", "t = 1"]
    np.testing.assert_array_equal(axes[0].collections[-1].get_offsets(), particles.states[0])
    np.testing.assert_array_equal(axes[2].collections[-1].get_offsets(), particles.final)
    assert len({ax.get_xlim() for ax in axes}) == 1


DISC = cg.Ball([0.5, 0], 1.2)
HALF = cg.BarrierFunction("x + 1/5", ["x", "y"])
BOUNDS = [[-2, -1.5], [2, 1.5]]


def border(ax):
    """Points of the line that a safe set is drawn with, and whether a point is in its shade."""
    shade, line = ax.collections[-2:]
    loops = [Path(loop) for path in shade.get_paths() for loop in path.to_polygons()]
    return (
        np.concatenate([path.vertices for path in line.get_paths()]),
        lambda point: sum(loop.contains_point(point) for loop in loops) % 2 == 1,  # a loop in a loop is a hole
    )


def test_safe_set_is_its_border_with_a_shade_outside():
    ax = plot.figure()[0, 0]
    assert plot.safe_set(cg.SafetyFilter([DISC, HALF]), BOUNDS, ax) is ax
    assert (ax.get_xlim(), ax.get_ylim(), ax.get_aspect()) == ((-2, 2), (-1.5, 1.5), 1)
    edge, shaded = border(ax)
    h = np.stack([1.44 - (edge[:, 0] - 0.5) ** 2 - edge[:, 1] ** 2, edge[:, 0] + 0.2])
    on_disc, on_line = np.abs(h) < 0.01
    assert (on_disc | on_line).all()
    assert on_disc.sum() > 100
    assert on_line.sum() > 100
    assert h.min() > -0.02  # none of the border of one barrier where another forbids it
    for point, outside in [((0.5, 0), False), ((-0.5, 0), True), ((1.8, 0), True), ((-0.1, 0), False)]:
        assert shaded(point) == outside


def test_safe_set_that_moves_is_drawn_at_its_time():
    moving = cg.SafetyFilter(cg.BarrierFunction("x - t", ["x", "y"], time="t"))
    for time in (0.0, 0.7):
        edge, _ = border(plot.safe_set(moving, BOUNDS, time=time))
        np.testing.assert_allclose(edge[:, 0], time, atol=1e-9)


def test_safe_set_of_a_function_that_is_not_finite_everywhere():
    barrier = cg.BarrierFunction(lambda x: jnp.log(x[0]), ["x", "y"])  # nan to the left of 0, -inf at 0
    edge, shaded = border(plot.safe_set(cg.SafetyFilter(barrier), [[-2, -2], [3, 2]]))
    np.testing.assert_allclose(edge[:, 0], 1.0, atol=0.02)
    assert shaded((-1.0, 0.0))


def test_safe_set_without_a_border_in_the_picture():
    safety = cg.SafetyFilter(DISC)
    assert not plot.safe_set(safety, [[0, -0.5], [1, 0.5]]).collections
    (shade,) = plot.safe_set(safety, [[3, 3], [4, 4]]).collections  # all of it
    assert shade.get_paths()[0].contains_point((3.5, 3.5))


def test_safe_sets_that_cannot_be_drawn():
    with pytest.raises(ValueError, match="filter must have barriers in 2 dimensions to be drawn; they have 3"):
        plot.safe_set(cg.SafetyFilter(cg.Ball([0, 0, 0], 1)), BOUNDS)
    with pytest.raises(ValueError, match=r"bounds must be \(2, 2\), lower corner below upper corner"):
        plot.safe_set(cg.SafetyFilter(DISC), [[-1, -1]])


@pytest.mark.parametrize(
    ("mode", "certified"),
    [*(pytest.param(mode, True, marks=pytest.mark.slow) for mode in ("reflected", "barrier_energy")), ("cbf", False)],
)
def test_a_filtered_response_shows_its_safe_set(mode, certified):
    safety = cg.SafetyFilter(DISC, 5.0, mode=mode)
    loop = cg.ClosedLoop(cg.Langevin(1.0, 0.01), QUADRATIC, safety=safety)
    response = loop.simulate(safety.restrict(cg.Gaussian([0.0, 0.0], 0.3)), 0.2, record=3, particles=300)
    axes = response.plot()
    assert any("certified" in text for text in legend(axes[0])) == certified  # "cbf" keeps no Gibbs measure
    start, end = plot.transport(response, panels=2)
    for ax, k in [(axes[2], -1), (start, 0), (end, -1)]:
        landscape, shade, line, points = ax.collections
        assert points.get_zorder() >= shade.get_zorder()
        edge = np.concatenate([path.vertices for path in line.get_paths()])
        np.testing.assert_allclose(np.linalg.norm(edge - [0.5, 0], axis=1), 1.2, atol=0.01)
        np.testing.assert_array_equal(points.get_offsets(), response.states[k])
        x, y = (np.linspace(*ends, 160) for ends in (ax.get_xlim(), ax.get_ylim()))
        everywhere = np.median(QUADRATIC(np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)))
        assert landscape.levels[-1] == pytest.approx(everywhere, rel=1e-3)  # the controller's, finite outside as well


def test_a_grid_with_walls_shows_them():
    grid, safety = cg.FokkerPlanckGrid([(-1, 2), (-1.5, 1.5)], (30, 30), 1.0), cg.SafetyFilter(DISC, mode="reflected")
    loop = cg.ClosedLoop(grid, QUADRATIC, safety=safety)
    ax = loop.simulate(grid.gibbs(loop.energy), 0.1, record=2).plot()[2]
    edge, _ = border(ax)
    np.testing.assert_allclose(np.linalg.norm(edge - [0.5, 0], axis=1), 1.2, atol=0.01)


def test_training_shows_loss_phases_and_quality():
    history = {
        "step": np.arange(1, 301),
        "phase": np.repeat(["flow", "joint"], [200, 100]),
        "loss": np.exp(-np.arange(300) / 100),
        "held_out_step": np.array([100, 200, 300]),
        "held_out_w2": np.array([1.0, 0.5, 0.4]),
    }
    result = TrainingResult(
        energy=cg.TrainedEnergy(QUADRATIC), status="completed", message="", history=history, steps=300, seconds=1.0
    )
    ax = plot.training(result)
    assert (ax.get_yscale(), ax.get_xlabel(), ax.get_ylabel()) == ("log", "step", "loss")
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), history["loss"])
    assert ax.lines[2].get_xdata()[0] == 200
    assert [t.get_text() for t in ax.texts] == ["joint"]
    (other,) = (a for a in ax.figure.axes if a is not ax)
    np.testing.assert_array_equal(other.lines[0].get_ydata(), history["held_out_w2"])
    assert legend(ax) == ["loss", "held-out W₂"]
    negative = {**history, "loss": history["loss"] - 1}
    assert plot.training(TrainingResult(**{**vars(result), "history": negative})).get_yscale() == "linear"


def test_images_are_laid_out_in_rows():
    samples = np.arange(3 * 6, dtype=float).reshape(3, 6)
    sheet = plot.images(samples, (2, 3), columns=2).images[0].get_array()
    assert sheet.shape == (5, 7)
    np.testing.assert_array_equal(sheet[:2, 4:7], samples[1].reshape(2, 3))
    np.testing.assert_array_equal(sheet[3:5, :3], samples[2].reshape(2, 3))
    with pytest.raises(ValueError, match=r"samples must have shape \(n, 64\) for pictures \(8, 8\); got \(3, 6\)"):
        plot.images(samples)


@pytest.mark.parametrize(("count", "most"), [(1, 5), (5, 5), (6, 5), (300, 8), (301, 40), (1000, 60)])
def test_thinning_keeps_the_ends(count, most):
    which = plot.thinned(count, most)
    assert (which[0], which[-1]) == (0, count - 1)
    assert len(which) == min(count, most)
    assert (np.diff(which) > 0).all()


def test_nothing_global_is_touched(tmp_path):
    code = """
import sys, matplotlib
before = matplotlib.rcParams.copy()  # dict(...) would import pyplot to find a backend
import ctrlgen as cg
ax = cg.plot.energy(cg.Quadratic([[1.0]]))
cg.nonnegative("x**2", ["x"]).plot()
ax.figure.savefig(sys.argv[1])
assert "matplotlib.pyplot" not in sys.modules
assert matplotlib.rcParams.copy() == before
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "e.png")], check=True)
    assert (tmp_path / "e.png").read_bytes()[:4] == b"\x89PNG"
