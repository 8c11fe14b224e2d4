"""The main job as one call: load a trained energy, close the loop from noise, and watch the KL divergence fall."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ctrlgen import datasets, measure, plot, store
from ctrlgen.certify.stopping import SteinResidual
from ctrlgen.energies.trained import TrainedEnergy
from ctrlgen.estimate import Estimate
from ctrlgen.loop import ClosedLoop, StoppingRule
from ctrlgen.plants.grid import FokkerPlanckGrid
from ctrlgen.report.provenance import versions
from ctrlgen.response import Response

RECORDS = 301  # densities kept of a run; few of them are measured
ROWS = 8  # lines of the table
CURVE = 40  # points of the Lyapunov curve
POINTS = 1000  # of each sample in a W₂
CELLS = {1: (400,), 2: (90, 90)}  # of the grid whose slowest mode is the asymptotic rate


@dataclass(frozen=True, kw_only=True)
class Rate:
    """An exponential rate of KL: V ~ exp(-rate t) [1 / time].

    Args:
        kind: "certified" (in continuous time), "fitted" (to the curve) or "slowest mode" (twice the spectral gap of
            the Fokker–Planck operator on a grid, the rate that every start ends with).
        rate: with its standard error; 0 where there is none.
        window: times between which it was fitted, or None.
        anchor: (time, nats) through which the line is drawn.
    """

    kind: str
    rate: Estimate
    window: tuple[float, float] | None
    anchor: tuple[float, float]

    def __str__(self) -> str:
        if self.kind == "certified":
            return (
                f"certified: KL falls at a rate of at least {float(self.rate):.4g} "
                "(twice the bound on the Hessian; for the loop in continuous time, not for its steps)"
            )
        if self.kind == "slowest mode":
            return f"measured, slowest mode: rate {float(self.rate):.4g} in the end (twice the spectral gap, on a grid)"
        low, high = self.window or (0.0, 0.0)
        return f"measured, fitted: rate {self.rate:.3g} between t = {low:.3g} and {high:.3g}"


@dataclass(frozen=True, kw_only=True)
class DemoReport:
    """What the demo found.

    Args:
        model: name of the energy.
        energy: its controller block.
        response: of the closed loop.
        rows: the table: "time", and Estimates "kl", "dissipation", "free_energy", "w2" (None where not known).
        floor: W₂ between fresh samples of the data, or None.
        rates: of the decay of KL.
        files: what was written.
        seconds: wall time.
    """

    model: str
    energy: TrainedEnergy
    response: Response
    rows: list[dict[str, Any]]
    floor: Estimate | None
    rates: list[Rate]
    files: dict[str, Path]
    seconds: float

    def plot(self) -> Any:
        """Draw what `closed_loop.png` shows, on a new figure; returns its axes."""
        return _drawn(self.energy, self.response, self.rates).axes

    def table(self) -> str:
        """The table, ready to print."""
        names = {"kl": "KL [nats]", "dissipation": "dissipation [nats/time]", "free_energy": "free energy", "w2": "W₂"}
        head = ["time", *names.values()]
        body = [[f"{row['time']:.4g}", *(_cell(row[name]) for name in names)] for row in self.rows]
        widths = [max(len(line[j]) for line in [head, *body]) for j in range(len(head))]
        return "\n".join("  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in [head, *body])

    def __str__(self) -> str:
        floor = (
            ""
            if self.floor is None
            else f"W₂ between fresh samples of the data (the sampling floor): {self.floor:.3g}\n"
        )
        rates = "".join(f"{rate}\n" for rate in self.rates)
        files = "".join(f"wrote {path}\n" for path in self.files.values())
        return f"{self.table()}\n{floor}{rates}{self.response.status}: {self.response.message}\n{files}".rstrip()


def run_demo(
    model: str = "eight_gaussians",
    out: str | Path = "demo",
    particles: int = 6000,
    seed: int = 0,
    *,
    stop: StoppingRule | None = None,
    progress: bool = False,
) -> DemoReport:
    """Load a trained energy, close the loop from its source, and measure the density on its way to the Gibbs measure.

    Writes `closed_loop.png` (the transport on the landscape; KL on a log axis beside its rates) and
    `closed_loop.json` (the numbers, versions and seed) into a folder.

    Args:
        model: a name or path for `load_energy`, of a trained energy.
        out: the folder; made if needed, its two files are replaced.
        particles: how many.
        seed: of the source and the noise.
        stop: the stopping rule; `SteinResidual`, asked 40 times a duration, when omitted.
        progress: show a progress bar.

    Raises:
        ModelError: there is no such model, or it is damaged.
        TypeError: the energy does not know its own closed loop.
        DivergenceError: particles left the finite numbers.
    """
    began, out = time.perf_counter(), Path(out)
    energy = store.load_energy(model)
    if not isinstance(energy, TrainedEnergy):
        raise TypeError(
            f"model must be a trained energy, which knows its own closed loop; got {type(energy).__name__}."
        )
    if particles < 100:
        raise ValueError(f"particles must be at least 100 for the estimates to mean anything; got {particles}.")
    out.mkdir(parents=True, exist_ok=True)
    rule: Any = SteinResidual(interval=energy.duration / 40) if stop is None else stop
    response = ClosedLoop.of(energy).simulate(
        energy.source, energy.duration, key=seed, record=RECORDS, stop=rule,
        progress=progress, particles=particles, throw=True,
    )  # fmt: skip
    held_out = _held_out(energy)
    with _bar(progress) as bar:
        rows = []
        for k in plot.thinned(len(response.time), ROWS):
            rows.append(_row(response, int(k), energy, held_out))
            bar.update()
        floor = None if held_out is None else _floor(energy, held_out)
        bar.update()
        rates = decay_rates(response)
        bar.update()
        files = {"figure": out / "closed_loop.png", "numbers": out / "closed_loop.json"}
        _drawn(energy, response, rates).savefig(files["figure"], dpi=130)
        bar.update()
    report = DemoReport(
        model=str(model), energy=energy, response=response, rows=rows, floor=floor, rates=rates, files=files,
        seconds=time.perf_counter() - began,
    )  # fmt: skip
    files["numbers"].write_text(json.dumps(_numbers(report, particles, seed), indent=2) + "\n", encoding="utf-8")
    return report


def decay_rates(response: Response) -> list[Rate]:
    """The rates at which KL falls along a closed loop's own response: certified where a Hessian bound proves one,
    fitted to the curve, and that of the slowest mode on a grid (in one and two dimensions).
    """
    energy, plant = response.energy_block, response.plant
    if energy.dim > 3 and response.log_partition is None:
        return []
    which = plot.thinned(len(response.time), CURVE)
    time_, curve = response.time[which], [response.at(int(k), "kl") for k in which]
    kl, error = np.array([float(v.value) for v in curve]), np.array([float(v.error) for v in curve])
    rates: list[Rate] = []
    # in the metric of its scaling, a trained energy's loop is that of its network in standardised coordinates
    network = energy.network if isinstance(energy, TrainedEnergy) else energy
    bound = network.properties.hessian_lower
    if bound is not None and bound > 0 and response.schedule is None:
        rates.append(
            Rate(kind="certified", rate=Estimate(2 * bound), window=None, anchor=(float(time_[0]), float(kl[0])))
        )
    clear = np.flatnonzero(kl <= 5 * np.maximum(error, 1e-3))  # from there on the curve is lost in its own error
    end = int(clear[0]) if len(clear) else len(kl)
    settled = np.flatnonzero(kl[:end] <= kl[0] / 3)  # the first fall mixes many modes
    first = int(settled[0]) if len(settled) and end - settled[0] >= 4 else 0
    if end - first >= 4:
        part = slice(first, end)
        t, y, sigma = time_[part], np.log(kl[part]), np.maximum(error[part] / kl[part], 0.02)
        (slope, level), covariance = np.polyfit(t, y, 1, w=1 / sigma, cov=True)
        fitted = Estimate(float(-slope), float(np.sqrt(covariance[0, 0])))
        middle = float((t[0] + t[-1]) / 2)
        anchor = (middle, float(np.exp(level + slope * middle)))
        rates.append(Rate(kind="fitted", rate=fitted, window=(float(t[0]), float(t[-1])), anchor=anchor))
    if energy.dim in CELLS:
        gap = _spectral_gap(energy, network, response, plant.temperature)
        last = min(end, len(kl) - 1)
        rates.append(
            Rate(
                kind="slowest mode", rate=Estimate(2 * gap), window=None,
                anchor=(float(time_[last]), max(float(kl[last]), float(error[last]))),
            )
        )  # fmt: skip
    return rates


def _spectral_gap(energy: Any, network: Any, response: Response, temperature: float) -> float:
    """The slowest eigenvalue on a grid in the network's coordinates, over a box around the final particles."""
    final = np.asarray(response.final, dtype=np.float64)
    inside = (final - energy.center) / energy.scale if isinstance(energy, TrainedEnergy) else final
    low, high = inside.min(axis=0), inside.max(axis=0)
    margin = 0.1 * (high - low)
    box = list(zip((low - margin).tolist(), (high + margin).tolist(), strict=True))
    grid = FokkerPlanckGrid(box, CELLS[energy.dim], temperature)
    return float(-grid.spectrum(network, 1)[0])


def _held_out(energy: TrainedEnergy) -> np.ndarray | None:
    """Data that the energy has not seen, where its distribution is one of `ctrlgen.datasets`."""
    if energy.name not in datasets.names():
        return None
    try:
        known = datasets.get(energy.name)
        fixed = getattr(known, "held_out", None)
        return known.sample(987_654_321, POINTS) if fixed is None else np.asarray(fixed)
    except ImportError:  # the digits need scikit-learn, which is optional
        return None


def _floor(energy: TrainedEnergy, held_out: np.ndarray) -> Estimate:
    known = datasets.get(energy.name)
    others = getattr(known, "train", None)
    if others is None:
        return measure.sampling_floor(known, len(held_out), repeats=6, key=1)
    some = np.random.default_rng(1).choice(len(others), len(held_out), replace=False)
    return measure.wasserstein2(np.asarray(others)[some], held_out)


def _row(response: Response, k: int, energy: TrainedEnergy, held_out: np.ndarray | None) -> dict[str, Any]:
    state = np.asarray(response.snapshots[k])
    return {
        "time": float(response.time[k]),
        "kl": None if response.log_partition is None else response.at(k, "kl"),
        "dissipation": response.at(k, "dissipation"),
        "free_energy": response.at(k, "free_energy"),
        "w2": None if held_out is None else measure.wasserstein2(state[: len(held_out)], held_out),
    }


def _drawn(energy: TrainedEnergy, response: Response, rates: list[Rate]) -> Any:
    """The figure. Above, the transport (or pictures of the digits); below, KL beside its rates, and the free energy."""
    spatial = energy.dim <= 2
    fig = plot.figure(1, 1, (11.0, 6.6))[0, 0].figure
    fig.clear()
    panels = fig.add_gridspec(2, 12, height_ratios=[1.0, 1.2])
    if spatial:
        plot.transport(response, axes=[fig.add_subplot(panels[0, 3 * i : 3 * i + 3]) for i in range(4)])
    else:
        top = fig.add_subplot(panels[0, :])
        side = round(energy.dim**0.5)
        if side * side == energy.dim:
            plot.images(response.final[:48], (side, side), ax=top, columns=16)
        else:
            plot.particles(np.asarray(response.final)[:, :2], ax=top)
            top.set(xlabel="x₁", ylabel="x₂", title="first two coordinates at the end")
    left, right = fig.add_subplot(panels[1, :7]), fig.add_subplot(panels[1, 7:])
    plot.decay(response, left, most=CURVE)
    plot.energies(response, right, most=CURVE)
    colours, styles = {"certified": plot.GREEN, "fitted": plot.RED, "slowest mode": plot.PURPLE}, {"slowest mode": ":"}
    for rate in rates:
        label = rate.kind if rate.kind == "certified" else f"measured, {rate.kind}"
        plot.draw_rate(
            left, response.time, float(rate.rate), rate.anchor, label, colours[rate.kind], styles.get(rate.kind, "--")
        )
    if rates:
        left.legend(frameon=False, fontsize="small")
    fig.suptitle(f"{energy.name}: the closed loop from noise to the Gibbs measure", fontsize="large")
    return fig


def _numbers(report: DemoReport, particles: int, seed: int) -> dict[str, Any]:
    response = report.response
    return {
        "model": report.model,
        "particles": particles,
        "seed": seed,
        "temperature": report.energy.temperature,
        "step": report.energy.step,
        "steps": response.steps,
        "status": response.status,
        "message": response.message,
        "stopped_at": response.stopped_at,
        "table": [{k: v if k == "time" else _plain(v) for k, v in row.items()} for row in report.rows],
        "w2_floor": _plain(report.floor),
        "rates": [{"kind": r.kind, **(_plain(r.rate) or {}), "window": r.window} for r in report.rates],
        "seconds": round(report.seconds, 2),
        "versions": versions(),
    }


def _plain(value: Estimate | None) -> dict[str, float | None] | None:
    if value is None:
        return None
    numbers = {"value": float(value.value), "error": float(value.error)}
    return {k: v if np.isfinite(v) else None for k, v in numbers.items()}


def _cell(value: Estimate | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _bar(progress: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=ROWS + 3, desc="measuring", unit="", disable=not progress, leave=False)
