"""Moving pictures: their frames, sizes and files, and what moves in them."""

import base64
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import ctrlgen as cg
from ctrlgen.plot import animation

QUADRATIC = cg.Quadratic([[2.0, 0.3], [0.3, 1.0]])


@pytest.fixture(scope="module")
def particles():
    loop = cg.ClosedLoop(cg.Langevin(1.0, 0.02), QUADRATIC)
    return loop.simulate(cg.Gaussian([2.0, 2.0], 0.05 * np.eye(2)), 1.0, record=26, particles=300)


@pytest.fixture(scope="module")
def movie(particles):
    return particles.animate(frames=8)


def rgb(frame):
    return np.asarray(frame.convert("RGB")).astype(int)


def frames_of(path):
    with Image.open(path) as picture:
        out = []
        for k in range(picture.n_frames):
            picture.seek(k)
            out.append((picture.convert("RGB"), picture.info["duration"]))
        return out, picture.info.get("loop")


def test_a_gif_has_every_frame_in_one_size(particles, movie, tmp_path):
    path = movie.save(tmp_path / "loop.gif")
    frames, loop = frames_of(path)
    assert len(frames) == 8
    assert loop == 0
    assert {frame.size for frame, _ in frames} == {(640, 300)}
    assert [each for _, each in frames] == [50] * 7 + [1000]
    np.testing.assert_array_equal(movie.times, particles.time[[0, 4, 7, 11, 14, 18, 21, 25]])
    assert "8 frames, 640 by 300, t = 0 to 1" in repr(movie)
    for (frame, _), kept in zip(frames, movie.frames, strict=True):
        assert np.abs(np.asarray(frame).astype(int) - rgb(kept)).max() == 0


def test_the_default_gif_is_small_and_starts_at_the_start(particles, tmp_path):
    path = tmp_path / "loop.gif"
    movie = cg.plot.animate(particles, path)
    assert len(movie.frames) == 26  # as many as there are records
    assert path.stat().st_size < 1_000_000
    assert movie.times[0] == 0


def test_what_does_not_move_stays(movie):
    pixels = np.stack([rgb(frame) for frame in movie.frames])
    change = (pixels.max(axis=0) - pixels.min(axis=0)).max(axis=2)
    frame_of_axes = (pixels[0] == pixels[-1]).all(axis=2)
    assert frame_of_axes.mean() > 0.85
    assert (change > 60).sum() > 500
    corner = change[-25:, :40]  # labels of the axes
    assert corner.max() == 0
    assert (pixels[:, :2, :2] == 255).all()  # paper is white


def test_particles_move_from_the_start_to_the_end(particles):
    ax = cg.plot.figure()[0, 0]
    box = np.array([[-3.0, -3.0], [4.0, 4.0]])
    update = animation.SCENES["particles"](particles, ax, box, (0, 1), np.arange(26), 100)
    for k in (0, 13, 25):
        update(k)
        np.testing.assert_allclose(ax.collections[-1].get_offsets(), particles.states[k][:100])


def test_the_curve_grows_with_the_time(particles):
    ax = cg.plot.figure()[0, 0]
    curve = animation._curve(particles)
    update = animation._growing(ax, curve)
    limits = ax.get_xlim(), ax.get_ylim()
    line = ax.lines[1]
    for now in (0.0, 0.5, 1.0):
        update(now)
        x, y = line.get_data()
        expected = curve.time[(curve.time <= now + 1e-9) & (curve.value > 0)]
        np.testing.assert_array_equal(x, expected)
        np.testing.assert_array_equal(y, curve.value[np.isin(curve.time, expected)])
    assert (ax.get_xlim(), ax.get_ylim()) == limits


@pytest.mark.slow
def test_kl_is_computed_once_a_record(particles, monkeypatch):
    counted = []
    original = animation.lyapunov_curve
    monkeypatch.setattr(animation, "lyapunov_curve", lambda r, most: counted.append(most) or original(r, most))
    particles.animate(frames=3)
    assert counted == [animation.MEASURED]
    particles.animate(frames=3, kl=False)
    assert len(counted) == 1


def test_a_page_holds_everything_it_shows(movie, tmp_path):
    path = movie.save(tmp_path / "loop.html")
    text = path.read_text(encoding="utf-8")
    pictures = re.findall(r'"data:image/png;base64,([^"]+)"', text)
    assert len(pictures) == 8
    for data, frame in zip(pictures, movie.frames, strict=True):
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            np.testing.assert_array_equal(rgb(picture), rgb(frame))
    rest = re.sub(r'"data:[^"]*"', "", text)
    assert not re.search(r"https?:|src=|@import|url\(", rest)  # nothing is loaded
    assert 'max="7"' in rest
    assert "wait = 50" in rest
    assert movie._repr_html_().startswith("<div")


def test_a_moving_safe_set_moves(particles):
    safety = cg.SafetyFilter(cg.BarrierFunction("4 - (x - t)**2 - y**2", ["x", "y"], time="t"), 5.0)
    response = replace(particles, filter=safety)
    ax = cg.plot.figure()[0, 0]
    update = animation._safe_set(response, ax, np.array([[-4.0, -3.0], [4.0, 3.0]]), (0, 1))
    for k in (0, 25):
        update(k)
        edge = np.concatenate([p.vertices for p in ax.collections[-1].get_paths()])
        np.testing.assert_allclose(np.linalg.norm(edge - [response.time[k], 0], axis=1), 2.0, atol=0.02)
    assert len(ax.collections) == 2  # the shade and the line, not those of before


def test_a_set_at_rest_is_drawn_once(particles):
    response = replace(particles, filter=cg.SafetyFilter(cg.Ball([0, 0], 2)))
    ax = cg.plot.figure()[0, 0]
    update = animation._safe_set(response, ax, np.array([[-4.0, -3.0], [4.0, 3.0]]), (0, 1))
    update(0)
    before = list(ax.collections)
    update(1)
    assert list(ax.collections) == before
    assert len(before) == 2


def test_a_grid_is_one_image_in_one_scale():
    grid = cg.FokkerPlanckGrid([(-5, 5), (-6, 6)], (40, 50), 1.0)
    response = cg.ClosedLoop(grid, QUADRATIC).simulate(cg.Gaussian([2, 2], 0.3 * np.eye(2)), 1.0, record=6)
    ax = cg.plot.figure()[0, 0]
    update = animation.SCENES["grid"](response, ax, animation.extent(response), (0, 1), np.arange(6), 1)
    image = ax.collections[0]
    scale = image.get_clim()
    assert scale[0] == 0
    for k in (0, 5):
        update(k)
        np.testing.assert_array_equal(np.reshape(image.get_array(), (50, 40)), response.density[k].T)
        assert image.get_clim() == scale
    assert scale[1] <= 3 * grid.gibbs(QUADRATIC).max() * (1 + 1e-12)


@pytest.mark.slow
def test_a_grid_of_three_axes_shows_the_marginal_of_the_plane():
    energy = cg.Quadratic(np.diag([1.0, 2.0, 3.0]))
    grid = cg.FokkerPlanckGrid([(-5, 5), (-4, 4), (-4, 4)], (20, 22, 24), 1.0)
    response = cg.ClosedLoop(grid, energy).simulate(cg.Gaussian(np.zeros(3), 0.5 * np.eye(3)), 0.2, record=2)
    for plane, expected in (((0, 2), response.density[1].sum(axis=1).T), ((2, 0), response.density[1].sum(axis=1))):
        ax = cg.plot.figure()[0, 0]
        box = animation._frame_box(response, plane, None)
        animation.SCENES["grid"](response, ax, box, plane, np.arange(2), 1)(1)
        shape = expected.shape
        np.testing.assert_allclose(np.reshape(ax.collections[0].get_array(), shape), expected)


@pytest.mark.slow
def test_one_dimension_is_a_histogram_beside_the_gibbs_density():
    loop = cg.ClosedLoop(cg.Langevin(0.5, 0.02), cg.Quadratic([[1.0]]))
    response = loop.simulate(cg.Gaussian([1.0], [[0.1]]), 0.5, record=4, particles=500)
    ax = cg.plot.figure()[0, 0]
    update = animation.SCENES["particles"](response, ax, np.array([[-4.0], [4.0]]), (0, 0), np.arange(4), 500)
    x, gibbs = ax.lines[0].get_data()
    np.testing.assert_allclose(gibbs, np.exp(-(x**2)) / np.sqrt(np.pi), atol=1e-3)
    for k in (0, 3):
        update(k)
        values, edges, _ = ax.patches[0].get_data()
        np.testing.assert_allclose((values * np.diff(edges)).sum(), 1.0)
        mean = (values * np.diff(edges) * (edges[1:] + edges[:-1]) / 2).sum()
        assert mean == pytest.approx(float(response.states[k].mean()), abs=0.05)


def test_bands_of_one_state_under_a_moving_barrier(particles):
    safety = cg.SafetyFilter(cg.BarrierFunction("x - t", ["x"], time="t"), 5.0)
    response = replace(particles, filter=safety)
    ax = cg.plot.figure()[0, 0]
    ax.set_xlim(-3, 3)
    update = animation._bands(response, ax, np.linspace(-3, 3, 601))
    for k in (0, 25):
        update(k)
        (band,) = ax.patches
        ends = ax.transData.inverted().transform(band.get_window_extent())[:, 0]
        np.testing.assert_allclose(ends, [-3, response.time[k]], atol=0.011)


def test_a_gaussian_is_two_ellipses():
    loop = cg.ClosedLoop(cg.GaussianPlant(1.0), QUADRATIC)
    response = loop.simulate(cg.Gaussian([2, 2], 0.1 * np.eye(2)), 1.0, record=5)
    ax = cg.plot.figure()[0, 0]
    update = animation.SCENES["gaussian"](response, ax, animation.extent(response), (0, 1), np.arange(5), 1)
    update(4)
    inverse = np.linalg.inv(response.covariance[4])
    for ring, deviations in zip(ax.lines, (1, 2), strict=True):
        away = np.transpose(ring.get_data()) - response.mean[4]
        np.testing.assert_allclose(np.einsum("ni,ij,nj->n", away, inverse, away), deviations**2, rtol=1e-9)


@pytest.mark.slow
def test_more_than_two_dimensions_are_seen_in_a_plane():
    energy = cg.Quadratic(np.diag([1.0, 2.0, 3.0, 4.0]))
    loop = cg.ClosedLoop(cg.Langevin(0.5, 0.02), energy)
    response = loop.simulate(cg.Gaussian(np.ones(4), 0.1 * np.eye(4)), 0.4, record=3, particles=60)
    ax = cg.plot.figure()[0, 0]
    box = animation._frame_box(response, (1, 3), None)
    animation.SCENES["particles"](response, ax, box, (1, 3), np.arange(3), 60)(0)
    np.testing.assert_allclose(ax.collections[-1].get_offsets(), response.states[0][:, [1, 3]])
    np.testing.assert_allclose(ax.collections[0].get_offsets(), response.states[-1][:, [1, 3]])  # where it ends, pale
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("x2", "x4")


def test_where_kl_is_not_defined_its_panel_is_left_out():
    flow = cg.ClosedLoop(cg.GradientFlow(0.05), QUADRATIC)
    response = flow.simulate(np.array([[1.0, 1.0]]), 0.5, record=4)  # one particle has no density
    assert animation._curve(response) is None
    assert response.animate(frames=3).frames[0].size == (320, 300)


@pytest.mark.slow
def test_it_says_how_far_it_is(particles, capsys):
    particles.animate(frames=3, kl=False, progress=True)
    assert "frames" in capsys.readouterr().err
    particles.animate(frames=3, kl=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "loop.mp4"}, r"path must end in .gif or .html; got 'loop.mp4'"),
        ({"frames": 1}, "frames must be an integer of at least 2; got 1"),
        ({"fps": 0}, "fps must be between 0 and 100; got 0"),
        ({"most": 0}, "most must be an integer of at least 1"),
        ({"plane": (0, 2)}, "plane must be two coordinates"),
        ({"bounds": [[0, 0], [0, 1]]}, r"bounds must be \(2, 2\)"),
    ],
)
def test_what_is_refused_before_any_work(particles, monkeypatch, arguments, message):
    monkeypatch.setattr(animation, "_rendered", lambda *a: pytest.fail("it was drawn"))
    monkeypatch.setattr(animation, "_curve", lambda *a: pytest.fail("KL was computed"))
    with pytest.raises(ValueError, match=message):
        particles.animate(**arguments)


def test_a_folder_that_is_not_there(particles, tmp_path):
    with pytest.raises(FileNotFoundError, match="path must be in a folder that exists"):
        particles.animate(tmp_path / "none" / "loop.gif")


def test_one_record_does_not_move(particles):
    with pytest.raises(ValueError, match="response must have at least 2 records"):
        replace(particles, time=particles.time[:1], snapshots=particles.snapshots[:1]).animate()
