"""The demo: its numbers against closed forms, its files, its table."""

import json

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

import ctrlgen as cg
from ctrlgen import datasets, demo, plot


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "POINTS", 300)
        patch.setattr(demo, "CELLS", {1: (200,), 2: (40, 40)})
        yield


@pytest.fixture(scope="module")
def gaussian(tmp_path_factory):
    """A loop with closed forms: E = ½(x² + 3y²)/scale², from the standard normal in standardised units."""
    folder = tmp_path_factory.mktemp("demo")
    energy = cg.TrainedEnergy(
        cg.Quadratic(np.diag([1.0, 3.0])), [5.0, -2.0], [2.0, 0.5], step=0.01, duration=1.5, name="gauss"
    )
    cg.save_energy(energy, folder / "gauss")
    return demo.run_demo(folder / "gauss", folder / "out", 3000, 1)


def test_the_table_agrees_with_closed_forms(gaussian):
    precision = np.array([1.0, 3.0])
    for row in gaussian.rows:
        # each coordinate is Ornstein–Uhlenbeck from variance 1; the Gibbs variance is 1 / precision
        variance = 1 / precision + (1 - 1 / precision) * np.exp(-2 * precision * row["time"])
        ratio = variance * precision
        kl, dissipation = 0.5 * np.sum(ratio - 1 - np.log(ratio)), np.sum((precision - 1 / variance) ** 2 * variance)
        assert float(row["kl"]) == pytest.approx(kl, abs=4 * row["kl"].error + 0.02)
        assert float(row["dissipation"]) == pytest.approx(dissipation, abs=4 * row["dissipation"].error + 0.1)
        log_z = 0.5 * np.sum(np.log(2 * np.pi / precision)) + np.log(2.0 * 0.5)
        assert float(row["free_energy"]) == pytest.approx(kl - log_z, abs=4 * row["free_energy"].error + 0.02)
        assert row["w2"] is None  # nothing is known of its data
    assert gaussian.rows[0]["time"] == 0
    assert len(gaussian.rows) == demo.ROWS


def test_rates(gaussian):
    rates = {rate.kind: rate for rate in gaussian.rates}
    assert float(rates["certified"].rate) == pytest.approx(2.0, rel=1e-6)  # twice the smallest precision
    assert float(rates["slowest mode"].rate) == pytest.approx(2.0, rel=0.02)
    # the start differs from the Gibbs measure in the fast coordinate only, which starts at twice its precision or more
    assert 6 < float(rates["fitted"].rate) < 14
    assert "certified: KL falls at a rate of at least 2 " in str(rates["certified"])
    assert "measured, slowest mode: rate " in str(rates["slowest mode"])
    assert str(rates["fitted"]).startswith("measured, fitted: rate ")


def test_files_and_what_is_printed(gaussian):
    numbers = json.loads(gaussian.files["numbers"].read_text())
    assert gaussian.files["figure"].read_bytes()[:4] == b"\x89PNG"
    assert [p.name for p in sorted(gaussian.files["numbers"].parent.iterdir())] == [
        "closed_loop.json",
        "closed_loop.png",
    ]
    assert (numbers["particles"], numbers["seed"], numbers["step"]) == (3000, 1, 0.01)
    assert numbers["versions"]["ctrlgen"] == cg.__version__
    assert [row["time"] for row in numbers["table"]] == [row["time"] for row in gaussian.rows]
    assert numbers["table"][0]["kl"]["value"] == float(gaussian.rows[0]["kl"])
    assert [rate["kind"] for rate in numbers["rates"]] == ["certified", "fitted", "slowest mode"]
    text = str(gaussian)
    lines = text.splitlines()
    assert lines[0].split("  ")[-1].strip() == "W₂"
    assert "KL [nats]" in lines[0]
    assert f"{gaussian.rows[0]['kl']:.3g}" in lines[1]
    assert numbers["message"] in text
    assert "SteinResidual" in text
    assert f"wrote {gaussian.files['figure']}" in text


def test_held_out_data_of_a_known_distribution(tmp_path):
    energy = cg.TrainedEnergy(
        cg.Quadratic(np.eye(2)), scale=[2.9, 2.9], step=0.02, duration=1.0, name="eight_gaussians"
    )
    cg.save_energy(energy, tmp_path / "m")
    stop = cg.stopping.SteinResidual(z=50.0, checks=2, interval=0.3)  # met as soon as it may be
    report = demo.run_demo(tmp_path / "m", tmp_path, 500, stop=stop)
    fresh = datasets.get("eight_gaussians").sample(987_654_321, 300)
    squares = ((report.response.states[0][:300, None] - fresh) ** 2).sum(axis=-1)
    rows, columns = linear_sum_assignment(squares)  # another exact method
    assert float(report.rows[0]["w2"]) == pytest.approx(np.sqrt(squares[rows, columns].mean()), rel=1e-6)
    assert 0.4 < float(report.floor) < 1.0  # 300 points: how many fall to each of eight modes is uneven
    assert f"(the sampling floor): {report.floor:.3g}" in str(report)
    assert (report.response.status, report.response.stopped_at) == ("stopped", pytest.approx(0.6))
    assert "stopped: SteinResidual" in str(report)
    assert json.loads(report.files["numbers"].read_text())["stopped_at"] == pytest.approx(0.6)


def test_above_three_dimensions_kl_is_left_open(tmp_path):
    energy = cg.SymbolicEnergy("a**2/2 + b**2/2 + c**2/2 + d**2/2", ["a", "b", "c", "d"])
    cg.save_energy(cg.TrainedEnergy(energy, step=0.02, duration=0.5, name="four"), tmp_path / "four")
    report = demo.run_demo(tmp_path / "four", tmp_path, 300)
    assert report.rates == []
    assert {row["kl"] for row in report.rows} == {None}
    assert json.loads(report.files["numbers"].read_text())["table"][0]["kl"] is None
    assert report.table().splitlines()[1].split()[1] == "-"


def test_what_the_demo_refuses(tmp_path):
    cg.save_energy(cg.Quadratic([[1.0]]), tmp_path / "plain")
    with pytest.raises(
        TypeError, match="model must be a trained energy, which knows its own closed loop; got Quadratic"
    ):
        demo.run_demo(tmp_path / "plain", tmp_path / "out")
    cg.save_energy(cg.TrainedEnergy(cg.Quadratic([[1.0]])), tmp_path / "one")
    with pytest.raises(ValueError, match="particles must be at least 100"):
        demo.run_demo(tmp_path / "one", tmp_path / "out", 99)
    assert not (tmp_path / "out").exists()


def test_rates_of_any_response():
    loop = cg.ClosedLoop(cg.GaussianPlant(1.0), cg.Quadratic(np.eye(4) * 2))
    response = loop.simulate(cg.Gaussian(np.full(4, 3.0), 0.5), 2.0, record=41)
    rates = {rate.kind: float(rate.rate) for rate in demo.decay_rates(response)}
    assert rates["certified"] == pytest.approx(4.0, rel=1e-6)
    assert rates["fitted"] == pytest.approx(4.0, rel=0.1)  # the mean dominates: |m|² falls at twice 2
    assert plot.thinned(41, demo.CURVE)[-1] == 40
