"""A run that diverged is drawn up to there, on the axes of what was before, and says where that ends."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

import ctrlgen as cg
from ctrlgen import plot
from ctrlgen.plot import animation, loops
from ctrlgen.plot.divergence import last_sound

from .drawn import legend

SOUND = 10  # records before it diverges
CLOUD = np.random.default_rng(0).normal(size=(300, 2)) * 2.0


@pytest.fixture(scope="module")
def ran():
    loop = cg.ClosedLoop(cg.Langevin(1.0, 0.05), cg.Quadratic(np.eye(2)))
    return loop.simulate(CLOUD, 0.6, record=13)


def of(ran, factors, status="diverged", **other):
    """The run with records that are multiples of one cloud."""
    states = tuple(np.float32(c) * CLOUD.astype(np.float32) for c in factors)
    return replace(ran, snapshots=states, final=states[-1], status=status, **other)


@pytest.fixture(scope="module")
def diverged(ran):
    return of(ran, [1.0] * SOUND + [1e2, 1e5, 1e20])


def test_what_is_drawn_is_what_was_before(diverged):
    axes = diverged.plot()
    last, leaves = diverged.time[SOUND - 1], diverged.time[SOUND]
    curve = next(line for line in axes[0].lines if line.get_label() == "KL to the Gibbs measure")
    assert curve.get_xdata()[-1] == axes[1].lines[0].get_xdata()[-1] == leaves
    assert curve.get_ydata()[-1] > 2 * axes[0].get_ylim()[1]  # the line leaves the axes
    before = np.concatenate([diverged.energy[:SOUND], diverged.free_energy[:SOUND]])
    spread = before.max() - before.min()
    bottom, top = axes[1].get_ylim()
    assert bottom < before.min() < before.max() < top < before.max() + spread + 1
    np.testing.assert_array_equal(axes[2].collections[-1].get_offsets(), diverged.states[SOUND - 1])
    assert np.abs([axes[2].get_xlim(), axes[2].get_ylim()]).max() < 1.5 * np.abs(CLOUD).max()
    assert axes[2].get_title() == f"t = {last:.3g}, before it diverges"
    for ax in axes[:2]:
        assert legend(ax)[-1] == f"diverges after t = {last:.3g},\nnot finite after t = {diverged.time[-1]:.3g}"
        (mark,) = [line for line in ax.lines if line.get_linestyle() == ":"]
        assert set(mark.get_xdata()) == {last}
        assert all(band.get_datalim(ax.transData).x1 <= last for band in ax.collections)  # no error of what diverged


def test_transport_ends_before_it(diverged):
    axes = plot.transport(diverged, panels=3)
    assert axes[-1].get_title() == f"t = {diverged.time[SOUND - 1]:.3g}, before it diverges"
    np.testing.assert_array_equal(axes[-1].collections[-1].get_offsets(), diverged.states[SOUND - 1])
    assert np.abs(axes[0].get_xlim()).max() < 1.5 * np.abs(CLOUD).max()


def test_a_movie_ends_as_it_leaves(diverged, monkeypatch):
    titles, boxes = [], []
    monkeypatch.setattr(animation, "set_title", lambda ax, text: titles.append(text) or boxes.append(ax.axis()))
    movie = diverged.animate(frames=7)
    assert len(movie.frames) == 7
    assert movie.times[-1] == diverged.time[SOUND]
    assert movie.times[-2] == diverged.time[SOUND - 1]
    frames = [(text, box) for text, box in zip(titles, boxes, strict=True) if text.startswith("t =")]
    assert [text for text, _ in frames if "diverges" in text] == [f"t = {diverged.time[SOUND]:.3f}, it diverges"]
    assert frames[-1][0] == f"t = {diverged.time[SOUND]:.3f}, it diverges"
    assert np.abs([box for _, box in frames]).max() < 1.5 * np.abs(CLOUD).max()


def test_a_movie_of_nothing_but_the_start(ran, monkeypatch):
    titles = []
    monkeypatch.setattr(animation, "set_title", lambda ax, text: titles.append(text))
    movie = of(ran, [1.0] + [1e20] * 12).animate()
    assert len(movie.frames) == 1
    assert titles[-1] == "t = 0.000, then it diverges"


def test_the_curve_of_a_movie_has_the_axes_of_what_was_before(diverged):
    ax = plot.figure()[0, 0]
    curve = loops.lyapunov_curve(diverged, 40)
    animation._growing(ax, curve)
    before = curve.value[:SOUND]
    assert curve.sound.tolist() == [True] * SOUND + [False]
    assert ax.get_ylim()[1] == pytest.approx(20 * before.max())
    assert 0 < ax.get_ylim()[0] <= before[before > 0].min()
    unsure = np.where(curve.time >= curve.time[1], 1e9, curve.error)
    animation._growing(ax, replace(curve, error=unsure, sound=curve.time < curve.time[1]))
    assert ax.get_ylim()[0] <= before[0]


@pytest.mark.parametrize(("broken", "status"), [(np.nan, "completed"), (np.inf, "diverged")])
def test_records_that_are_not_finite_are_not_drawn(ran, broken, status):
    response = of(ran, [1.0] * SOUND + [broken] * 3, status)
    axes = response.plot()
    assert axes[0].lines[0].get_xdata()[-1] == response.time[SOUND - 1]
    assert f"diverges after t = {response.time[SOUND - 1]:.3g}" in legend(axes[0])[-1]
    assert ("not finite" in legend(axes[0])[-1]) is (status == "diverged")
    assert response.animate(kl=False).times[-1] == response.time[SOUND - 1]


def test_one_record_has_no_band(ran):
    axes = of(ran, [1.0] + [1e20] * 12).plot()
    assert legend(axes[0])[0] == "KL to the Gibbs measure"
    assert axes[0].get_xlim()[1] < 0.1  # and nothing that was not measured


def test_a_grid_that_is_not_finite():
    grid = cg.FokkerPlanckGrid([(-4, 4)] * 2, (20, 20), 1.0)
    response = cg.ClosedLoop(grid, cg.Quadratic(np.eye(2))).simulate(cg.Gaussian([1.0, 0.0], 0.3), 1.0, record=5)
    broken = replace(response, snapshots=(*response.snapshots[:3], *[np.full((20, 20), np.nan)] * 2))
    assert last_sound(response) is None
    assert last_sound(broken) == 2
    assert broken.animate().times[-1] == response.time[2]
    np.testing.assert_array_equal(broken.plot()[2].collections[0].get_array().ravel(), response.density[2].T.ravel())


def test_what_grew_a_millionfold_diverged_and_what_grew_less_did_not(ran):
    grown = of(ran, [1.0] * SOUND + [1e2, 1e4, 1e7], "completed")
    assert last_sound(grown) == SOUND - 1
    spread = of(ran, [1.0] * SOUND + [1e2, 1e4, 1e5], "completed")
    assert last_sound(spread) is None
    axes = spread.plot()
    assert not any("diverges" in text for ax in axes for text in legend(ax))
    assert axes[0].lines[0].get_xdata()[-1] == spread.time[-1]
    assert last_sound(of(ran, [0.0] + [1.0] * 12, "completed")) is None  # from a point
    assert last_sound(of(ran, [1e-8] + [1.0] * 12, "completed")) is None
    assert last_sound(of(ran, [1.0] + [1e20] * 12, "completed")) == 0


def test_heat_of_a_schedule_is_not_divergence(ran):
    factors = [0.1] + [40.0] * (SOUND - 1) + [1e9] * 3  # energies of 1600/2 · |x|², with ε = 1: more than noise gives
    assert last_sound(of(ran, factors)) == 0
    assert last_sound(of(ran, factors, schedule=lambda t: 100.0)) == SOUND - 1


def test_where_the_energy_is_no_number_is_beyond(ran):
    bowl = cg.CallableEnergy(lambda x: -jnp.sqrt(400 - (x**2).sum()), 2)
    response = of(ran, [1.0] * SOUND + [8.0, 9.0, 10.0], energy_block=bowl)
    assert np.isnan(bowl(response.states[SOUND])).any()
    assert last_sound(response) == SOUND - 1


def test_what_ends_before_it_is_far_is_sound_to_the_end(ran):
    response = of(ran, [1.0] * 13)
    assert last_sound(response) == 12
    assert legend(response.plot()[0])[-1] == f"not finite after t = {response.time[-1]:.3g}"


@pytest.mark.slow
def test_a_steep_energy_diverges_from_its_start():
    with pytest.warns(UserWarning, match="beyond the stability limit"):
        response = cg.ClosedLoop(cg.Langevin(0.3, 0.12), cg.DoubleWell(2)).simulate(
            cg.Gaussian([1.2, 0.0], 0.3), 6.0, record=51, particles=400
        )
    assert response.status == "diverged"
    axes = response.plot()
    assert np.abs(axes[2].get_xlim()).max() < 5
    assert axes[1].get_ylim()[1] < 100
    assert "diverges after t = 0,\nnot finite after" in legend(axes[0])[-1]


def test_without_a_gibbs_measure_the_rest_is_drawn():
    """A saddle: mean and variance in closed form, m e^t and (s² + ε) e^2t - ε."""
    plant, start = cg.GaussianPlant(0.3), cg.Gaussian([1.2, 0.0], 0.5)
    response = cg.ClosedLoop(plant, -1.0 * cg.Quadratic(np.eye(2))).simulate(start, 30.0, record=61)
    t = response.time
    reach = 1.2 * (np.exp(t) - 1) + 3 * np.sqrt(0.8 * np.exp(2 * t) - 0.3)
    expected = int(np.argmax(reach > 30 * max(reach[0], reach[1:].min()))) - 1
    assert expected > 2
    assert last_sound(response) == expected
    axes = response.plot()
    (text,) = axes[0].texts
    assert text.get_text().startswith("KL is not defined: kl needs a Gibbs")
    assert axes[2].get_title() == f"t = {t[expected]:.3g}, before it diverges"
    assert axes[2].get_xlim()[1] < 8 * reach[expected]
    movie = response.animate()
    assert movie.times[-1] == t[expected]
    with pytest.raises(ValueError, match="kl needs a Gibbs measure"):  # of a run that did not diverge it is an error
        replace(response, time=t[:4], snapshots=response.snapshots[:4]).plot()


def test_more_than_three_dimensions_less_the_lowest_value(ran):
    energy = cg.SymbolicEnergy("+".join(f"x{i}**2/2" for i in range(1, 5)), [f"x{i}" for i in range(1, 5)])
    cloud = np.random.default_rng(1).normal(size=(200, 4))
    run = cg.ClosedLoop(cg.Langevin(2.0, 0.05), energy).simulate(cloud, 0.2, record=5)
    states = tuple(c * cloud for c in (2.0, 1.0, 1.5, 1e3, 1e12))
    response = replace(run, snapshots=states, final=states[-1], status="diverged")
    curve = loops.lyapunov_curve(response, 40)
    assert curve.label == "KL less its lowest value"
    free = [response.at(k, "free_energy").value for k in range(4)]
    np.testing.assert_allclose(curve.value, (np.array(free) - min(free)) / 2.0)
    ax = plot.figure()[0, 0]
    animation._particles(response, ax, np.array([[-9.0, -9.0], [9.0, 9.0]]), (2, 0), np.arange(3), 50)
    np.testing.assert_array_equal(ax.collections[0].get_offsets(), states[2][:50, [2, 0]])  # pale, what it reached
