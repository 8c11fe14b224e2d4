"""Pictures of numbers: each number where its axis says, each error as long as it is."""

from dataclasses import replace

import numpy as np
import pytest

import ctrlgen as cg
from ctrlgen.certify.premise import shown_down, shown_up
from ctrlgen.estimate import Estimate
from ctrlgen.quality import Quality
from ctrlgen.response import DistributionShift
from ctrlgen.tables import Table
from tests.plot.drawn import contour_lines, crosses, labelled, legend

STIFF = cg.Quadratic(np.diag([1.0, 100.0]))
QUADRATIC = cg.Quadratic(np.diag([1.0, 2.0]))


@pytest.fixture(scope="module")
def gaussian():
    return cg.ClosedLoop(cg.GaussianPlant(0.5), QUADRATIC).simulate(cg.Gaussian([2.0, 0.0], np.eye(2)), 3.0, record=16)


def bar_lengths(ax):
    return [patch.get_width() for patch in ax.patches]


# Decay of KL -------------------------------------------------------------------------------------------------


def test_a_certified_rate_is_an_exponential(gaussian):
    verdict = cg.KLLyapunov(QUADRATIC, 0.5).verify(cg.ClosedLoop(cg.Langevin(0.5, 0.05), QUADRATIC))
    ax = verdict.plot()
    t, bound = labelled(ax, "certified: rate 1.99999").get_data()
    np.testing.assert_allclose(bound, np.exp(-verdict.rate * t))
    assert (ax.get_yscale(), ax.get_title()) == ("log", "KL falls: PROVED")
    beside = verdict.plot(response=gaussian)
    np.testing.assert_array_equal(labelled(beside, "KL to the Gibbs measure").get_data()[1], gaussian.kl)
    t, line = labelled(beside, "certified: rate 1.99999").get_data()
    np.testing.assert_allclose(line, gaussian.kl[0] * np.exp(-verdict.rate * t))
    assert (np.interp(gaussian.time, t, line) >= gaussian.kl - 1e-9).all()  # KL stays below it


def test_a_loop_that_need_not_fall_is_drawn_with_its_witness():
    verdict = cg.KLLyapunov(QUADRATIC, 0.5).verify(cg.ClosedLoop(cg.GradientFlow(0.01), QUADRATIC))
    ax = verdict.plot()
    assert ax.get_title() == "V̇ ≤ 0 along this loop: REFUTED"
    np.testing.assert_allclose(crosses(ax), [verdict.witness])


def test_a_measured_rate_has_its_error():
    verdict = cg.KLLyapunov(QUADRATIC, 0.5).verify(cg.ClosedLoop(cg.Langevin(0.5, 0.05), QUADRATIC))
    measured = replace(verdict, status=cg.Status.SAMPLED, rate=2.0, measured=Estimate(2.0, 0.25))
    ax = measured.plot()
    band = labelled(ax, "± 2 s.e.").get_paths()[0].vertices
    at_the_end = band[np.isclose(band[:, 0], 2.5), 1]
    np.testing.assert_allclose(sorted({*np.round(at_the_end, 9)}), np.round([np.exp(-6.25), np.exp(-3.75)], 9))
    assert "measured: rate 2" in legend(ax)


def test_log_sobolev_shows_its_constant():
    verdict = cg.log_sobolev(QUADRATIC, 0.5)
    ax = verdict.plot()
    assert "log-Sobolev constant α ≥ 1.99999" in legend(ax)  # 2, less the rounding of its proof
    assert ax.get_title() == "log-Sobolev inequality: PROVED"
    missing = cg.log_sobolev(cg.load_energy("two_moons"), 1.0)
    assert missing.rate is None
    assert missing.plot().texts[1].get_text() == missing.status.name


def test_a_stopping_certificate_is_drawn_beside_its_run(gaussian):
    loop = cg.ClosedLoop(cg.GaussianPlant(0.5), QUADRATIC)
    response = loop.simulate(cg.Gaussian([2.0, 0.0], np.eye(2)), 3.0, record=16, stop=cg.stopping.KLBelow(0.1))
    verdict = response.certificate
    ax = verdict.plot(response=response)
    assert ax.get_title() == f"KL where the run ended: {verdict.status.name}"
    bound = labelled(ax, f"bound at the end: {shown_up(verdict.bound, 3)}")
    assert set(bound.get_ydata()) == {verdict.bound}
    assert ax.get_ylim()[0] < verdict.bound < ax.get_ylim()[1]
    assert verdict.plot().texts[1].get_text() == verdict.status.name  # a table without the run


def test_a_plan_is_its_bound_over_the_steps():
    plan = cg.stopping.APriori(0.1).plan(QUADRATIC, 0.5, initial_mean=[2, 0], initial_covariance=np.eye(2))
    ax = plan.plot()
    steps, bound = labelled(ax, "bound of KL (vempala-wibisono)").get_data()
    alpha, eta, smooth = plan.alpha, 0.5 * plan.step, plan.smoothness / 0.5
    closed = 8 * eta * 2 * smooth**2 / alpha + np.exp(-alpha * eta * steps) * plan.initial_kl  # Theorem 2, in nats
    np.testing.assert_allclose(bound, closed, rtol=1e-9)
    ((stop, reached),) = [line.get_xydata()[0] for line in ax.lines if line.get_marker() == "o"]
    assert (stop, reached) == (plan.steps, plan.bound)
    assert labelled(ax, f"floor of this step: {shown_up(plan.floor, 3)}").get_ydata()[0] == plan.floor
    assert plan.bound_after(plan.steps) == plan.bound <= 0.1
    with pytest.raises(ValueError, match="steps must be ≥ 0"):
        plan.bound_after(-1)


# Rates before and after --------------------------------------------------------------------------------------


def test_metric_and_skew_show_what_was_without_them():
    metric = cg.optimal_metric(STIFF)
    ax = metric.plot()
    np.testing.assert_allclose(bar_lengths(ax), [metric.plain, metric.condition])
    assert ax.get_xscale() == "log"
    skew = cg.optimal_skew(STIFF)
    ax = skew.plot()
    np.testing.assert_allclose(bar_lengths(ax), [1.0, 50.5], rtol=1e-6)  # λ_min and tr(S)/d
    assert labelled(ax, "no J passes tr(KS)/d = 50.5").get_xdata()[0] == pytest.approx(50.5)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["without J", "with J"]


def test_friction_compares_continuous_time_in_units_of_steps():
    verdict = cg.optimal_friction(STIFF)
    ax = verdict.plot()
    k, fast = labelled(ax, f"with momentum, γ = {verdict.friction:.3g}").get_data()
    step = verdict.stability_limit / 4
    np.testing.assert_allclose(fast, verdict.constant * np.exp(-verdict.rate * step * k))
    assert "continuous time" in ax.get_xlabel()
    assert "continuous time" in ax.get_ylabel()
    k, slow = labelled(ax, "overdamped").get_data()
    np.testing.assert_allclose(slow, np.exp(-k / 100), rtol=1e-6)  # m/L a step


def test_what_was_not_found_is_a_table():
    for verdict in (cg.optimal_metric(cg.DoubleWell(2)), cg.optimal_friction(cg.DoubleWell(2))):
        assert verdict.rate is None
        assert verdict.plot().texts[1].get_text() == verdict.status.name


# Modes -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def feedback():
    wells = cg.SymbolicEnergy("(x**2 - 1)**2 + y**2/2", ["x", "y"])
    grid = cg.FokkerPlanckGrid([(-2.2, 2.2)] * 2, (30, 30), temperature=0.2)
    return cg.interop.density_feedback(wells, grid, inputs=["x", "y"], order=4)


def test_design_shows_the_poles_before_and_after(feedback):
    ax = feedback.design.plot()
    before, after = ax.lines[0].get_xdata(), np.concatenate([line.get_xdata() for line in ax.lines[1:]])
    np.testing.assert_allclose(before, -feedback.design.modes.rates)
    np.testing.assert_allclose(np.sort(after), np.sort(-feedback.design.poles.real))
    assert ax.get_title() == f"slowest: {before.min():.3g} → {after.min():.3g}"


def test_feedback_shows_the_set_it_is_proved_on(feedback):
    verdict = feedback.verify()
    assert verdict.plot().get_title() == f"modes tend to 0, rate {shown_down(verdict.rate)}: PROVED"
    tilted = np.eye(4) + 0.3 * np.ones((4, 4))  # modes that are coupled: the cut is not the shadow
    verdict = replace(verdict, matrix=tilted)
    ax = verdict.plot(plane=(0, 1))
    cut = np.zeros((200, 4))
    cut[:, :2] = np.transpose(labelled(ax, "{V ≤ 1}, other modes zero").get_data())[:200]
    np.testing.assert_allclose(np.einsum("ni,ij,nj->n", cut, verdict.matrix, cut), 1.0, rtol=1e-9)
    shadow = np.transpose(labelled(ax, "shadow of {V ≤ 1}").get_data())
    inverse = np.linalg.inv(np.linalg.inv(verdict.matrix)[:2, :2])
    np.testing.assert_allclose(np.einsum("ni,ij,nj->n", shadow, inverse, shadow), 1.0, rtol=1e-9)
    with pytest.raises(ValueError, match="plane must be two coordinates"):
        verdict.plot(plane=(0, 4))


def test_modes_show_rates_and_shapes(feedback):
    modes = feedback.design.modes
    axes = modes.plot()
    assert axes.shape == (4,)
    np.testing.assert_allclose(axes[0].lines[0].get_ydata(), -modes.rates)
    assert axes[1].get_title() == f"ζ1, rate {-modes.rates[0]:.3g}"
    zero = contour_lines(axes[1], 0.0)
    np.testing.assert_allclose(zero[:, 0], 0.0, atol=0.02)  # the slowest mode of two equal wells is odd


def test_dissipative_design_shows_its_gains():
    wells = cg.SymbolicEnergy("(x**2 - 1)**2", ["x"])
    grid = cg.FokkerPlanckGrid([(-2.2, 2.2)], (60,), temperature=0.2)
    feedback = cg.interop.density_feedback(wells, grid, inputs=["x"], order=2, law="dissipative")
    np.testing.assert_allclose(bar_lengths(feedback.design.plot()), np.diag(feedback.design.gain))
    axes = feedback.design.modes.plot()
    x, shape = axes[1].lines[0].get_data()
    np.testing.assert_allclose(shape, feedback.design.modes.at(x[:, None])[:, 0])
    assert feedback.verify().plot().texts[1].get_text() == feedback.verify().status.name


# Counts and distances ----------------------------------------------------------------------------------------


def test_safety_report_shows_shares_and_zeros():
    report = cg.SafetyReport(
        mode="cbf", looked=50_000, violations=0, worst_depth=0.0, least=0.01, corrected=500, active=5000,
        effort=np.ones(10), kkt_residual=1e-9, infeasible=5, infeasible_particles=np.array([1]),
    )  # fmt: skip
    ax = report.plot()
    names = [t.get_text() for t in ax.get_yticklabels()]
    assert names == ["ended outside", "program infeasible", "brought back", "δ ≠ 0"]
    ends = [patch.get_x() + patch.get_width() for patch in ax.patches]
    np.testing.assert_allclose(ends, [5 / 50_000, 500 / 50_000, 5000 / 50_000])
    assert [t.get_text() for t in ax.texts] == ["0", "5", "500", "5000"]
    assert ax.get_title() == "cbf, least h = 0.01"
    nothing = cg.SafetyReport(mode=None, looked=0, violations=None, worst_depth=None, least=None).plot()
    assert nothing.get_title() == "nothing was recorded"
    assert not nothing.patches


def errors_of(ax):
    """(value, half of its bar) from above."""
    every = [(c.lines[0].get_xdata()[0], c.lines[2][0].get_segments()[0][:, 0]) for c in ax.containers]
    return [(float(value), float(np.ptp(ends)) / 2) for value, ends in every]


def test_shift_and_quality_show_two_standard_errors():
    shift = DistributionShift(Estimate(0.1, 0.02), Estimate(0.3, 0.05), Estimate(0.2, 0.01), "exactly")
    np.testing.assert_allclose(errors_of(shift.plot()), [(0.3, 0.1), (0.2, 0.02)])
    quality = Quality(
        kl=0.01, kl_reverse=0.02, w2=Estimate(0.3, 0.02), w2_long=Estimate(0.25, 0.01), floor=Estimate(0.2, 0.03),
        ratio=Estimate(1.5, 0.1), ratio_long=Estimate(1.2, 0.1), kl_generated=None, points=200, repeats=4,
    )  # fmt: skip
    ax = quality.plot()
    np.testing.assert_allclose(errors_of(ax), [(0.3, 0.04), (0.25, 0.02), (0.2, 0.06)])
    assert ax.get_title() == "KL(data‖Gibbs) = 0.01 nats"


def test_gibbs_is_its_density():
    x, density = cg.Gibbs(cg.Quadratic([[2.0]]), 0.5).plot(bounds=[-4, 4]).lines[0].get_data()
    np.testing.assert_allclose(density, np.exp(-2 * x**2) * np.sqrt(2 / np.pi), atol=1e-6)
    ax = cg.Gibbs(QUADRATIC, 0.5).plot()
    line = contour_lines(ax, 1.0)
    np.testing.assert_allclose(line[:, 0] ** 2 / 2 + line[:, 1] ** 2, 0.5, rtol=0.02)  # E/ε = 1
    three = cg.Gibbs(cg.Quadratic(np.diag([1.0, 2.0, 3.0])), 0.5)
    three = three.plot(plane=(0, 2), at=[0, 0, 0], bounds=[[-2] * 2, [2] * 2])
    assert (three.get_xlabel(), three.get_ylabel()) == ("x1", "x3")


def test_a_table_is_its_columns():
    values = np.random.default_rng(0).normal(size=(30, 3))
    ax = Table(values, ("a", "b", "c")).plot(plane=(2, 0))
    np.testing.assert_array_equal(ax.collections[0].get_offsets(), values[:, [2, 0]])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("c", "a")
    assert Table(values[:, :1], None).plot().get_xlabel() == "x1"
    with pytest.raises(ValueError, match="plane must be two coordinates"):
        Table(values, None).plot(plane=(0, 3))


def test_a_model_is_its_landscape():
    (moons,) = [m for m in cg.list_models() if m.name == "two_moons"]
    energy = cg.load_energy("two_moons")
    ax = moons.plot()
    np.testing.assert_allclose([ax.get_xlim()[0], ax.get_ylim()[0]], energy.center - 3 * energy.scale, rtol=1e-6)
