"""How fast, by theorem: certified decay of KL, bounds over the steps of a plan, and rates before and after a change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ctrlgen.accelerate.friction import FrictionVerdict
from ctrlgen.accelerate.metric_verdict import MetricVerdict
from ctrlgen.accelerate.skew import SkewVerdict
from ctrlgen.certify.apriori import KLBound, Plan
from ctrlgen.certify.decay import Decay
from ctrlgen.certify.invariance import NoCertificate
from ctrlgen.certify.log_sobolev import LogSobolev
from ctrlgen.certify.premise import shown_down, shown_up
from ctrlgen.certify.verdict import Verdict
from ctrlgen.plot.claims import no_certificate, verdict_table
from ctrlgen.plot.look import (
    BLACK,
    BLUE,
    ORANGE,
    RED,
    STATUS,
    axes_or_new,
    legend_below,
    status_title,
    styled,
)
from ctrlgen.plot.loops import decay
from ctrlgen.prove.claim import Status
from ctrlgen.response import Response

LIVES = 5.0  # of an exponential, that are drawn
MOST_STEPS = 200  # of a plan, that are evaluated


@styled
def decay_bound(result: Decay | LogSobolev, ax: Axes | None = None, response: Response | None = None) -> Axes:
    """At least how fast KL falls: e^{-rt} against time, and the measured curve beside it where a response is given.

    A loop that is refuted is drawn as what it makes of the Gibbs measure; a verdict without a rate as its steps.

    Args:
        result: of `KLLyapunov.verify` or `log_sobolev`.
        ax: where to draw; a new figure when omitted.
        response: of the same loop; its KL is drawn, and the bound through its first record.
    """
    color, line, _ = STATUS[result.status]
    label = "measured" if result.status is Status.SAMPLED else "certified"
    if response is not None:
        ax = decay(response, ax, result.rate, label=label)
        status_title(ax, "KL falls along the loop", result.status)
        return ax
    refutation = _refutation(result)
    if refutation is not None:
        ax = no_certificate(refutation, ax)
        status_title(ax, "V̇ ≤ 0 along this loop", result.status)
        return ax
    if result.rate is None or not result.rate > 0:
        return verdict_table(result, ax)
    ax = axes_or_new(ax)
    t = np.linspace(0.0, LIVES / result.rate, 200)
    measured = getattr(result, "measured", None)
    if measured is not None and np.isfinite(measured.error) and measured.error > 0:
        slow, fast = (max(result.rate + k * 2 * float(measured.error), 0.0) for k in (-1, 1))
        ax.fill_between(t, np.exp(-fast * t), np.exp(-slow * t), color=color, alpha=0.25, linewidth=0, label="± 2 s.e.")
    ax.semilogy(t, np.exp(-result.rate * t), line, color=color, label=f"{label}: rate {shown_down(result.rate)}")
    if measured is None:
        ax.fill_between(t, np.exp(-LIVES * 1.2), np.exp(-result.rate * t), color=color, alpha=0.12, linewidth=0,
                        label="KL(t) / KL(0) is here")  # fmt: skip
        ax.set_ylim(np.exp(-LIVES * 1.2), 1.5)
    if result.constant is not None:
        ax.plot([], [], " ", label=f"log-Sobolev constant α ≥ {shown_down(result.constant)}")
    ax.set(xlabel="time", ylabel="KL(t) / KL(0)", xlim=(0, t[-1]))
    ax.grid(True)
    ax.legend(loc="lower left" if measured is None else "upper right")
    status_title(ax, "log-Sobolev inequality" if isinstance(result, LogSobolev) else "KL falls", result.status)
    return ax


def _refutation(result: Verdict) -> NoCertificate | None:
    for step in result.steps:
        shown = getattr(step.outcome.certificate, "shown", None)
        if isinstance(shown, NoCertificate):
            return shown
    return None


@styled
def kl_bound(result: KLBound, ax: Axes | None = None, response: Response | None = None) -> Axes:
    """What KL is certified not to exceed where a run ended, beside the run's own KL; without a response its steps.

    Args:
        result: `response.certificate` of a stopping rule, or what the rule's `.verify` returned.
        ax: where to draw; a new figure when omitted.
        response: of the run.
    """
    if response is None:
        return verdict_table(result, ax)
    ax = decay(response, ax)
    color, line, _ = STATUS[result.status]
    end = float(response.time[-1])
    if result.bound is not None and result.bound > 0:
        low, high = ax.get_ylim()
        ax.set_ylim(min(low, result.bound / 2), max(high, result.bound * 2))
        ax.axhline(
            result.bound,
            color=color,
            linestyle=line,
            linewidth=1.2,
            label=f"bound at the end: {shown_up(result.bound, 3)}",
        )
        ax.plot([end], [result.bound], "v", color=color, markersize=6)
    ax.axvline(end, color=BLACK, linestyle=":", linewidth=0.9, label=f"{response.status} at t = {end:.3g}")
    ax.legend()
    status_title(ax, "KL where the run ended", result.status)
    return ax


@styled
def plan(result: Plan, ax: Axes | None = None) -> Axes:
    """The theorem's bound of KL over the steps of a plan, its floor, and what was asked for.

    Args:
        result: of `stopping.APriori(...).plan(...)`.
        ax: where to draw; a new figure when omitted.
    """
    ax = axes_or_new(ax)
    steps = np.unique(np.round(np.linspace(0, 1.3 * result.steps, MOST_STEPS)).astype(int))
    bound = np.array([result.bound_after(int(k)) for k in steps])
    ax.semilogy(steps, bound, "-", color=BLUE, label=f"bound of KL ({result.theorem})")
    ax.axhline(result.bound, color=ORANGE, linestyle="-.", linewidth=1.0, label=f"reached: {shown_up(result.bound, 3)}")
    if result.floor > 0:
        ax.axhline(
            result.floor,
            color=RED,
            linestyle="--",
            linewidth=1.0,
            label=f"floor of this step: {shown_up(result.floor, 3)}",
        )
    ax.plot(
        [result.steps], [result.bound], "o", color=BLACK, label=f"stop: {result.steps} steps, t = {result.duration:.3g}"
    )
    ax.set(xlabel="step", ylabel="KL [nats]", xlim=(0, steps[-1]))
    ax.grid(True)
    ax.legend()
    status_title(ax, f"steps of h = {result.step:.3g}", result.verdict.status)
    return ax


@styled
def metric_rates(result: MetricVerdict, ax: Axes | None = None) -> Axes:
    """The condition number that is left in the metric, beside that without one.

    Args:
        result: of `optimal_metric`.
        ax: where to draw; a new figure when omitted.
    """
    if result.condition is None or result.rate is None:
        return verdict_table(result, ax)
    rows = [] if result.plain is None else [("without a metric", result.plain, "0.6", "//")]
    rows.append((f"in the {result.structure} metric", result.condition, BLUE, ""))
    ax = bars(rows, ax, "condition number", log=True, shown=shown_up)
    status_title(ax, f"rate λ = {shown_down(result.rate)} for ∇²E ⪯ M", result.status)
    return ax


@styled
def skew_rates(result: SkewVerdict, ax: Axes | None = None) -> Axes:
    """The rate with the skew part beside that without it, and the bound that no skew part passes.

    Args:
        result: of `optimal_skew`.
        ax: where to draw; a new figure when omitted.
    """
    if result.rate is None:
        return verdict_table(result, ax)
    rows = [] if result.plain is None else [("without J", result.plain, "0.6", "//")]
    rows.append(("with J", result.rate, BLUE, ""))
    ax = bars(rows, ax, "rate [1/time]", shown=shown_down)
    if result.bound is not None:
        ax.axvline(result.bound, color=RED, linestyle="--", label=f"no J passes tr(KS)/d = {shown_up(result.bound)}")
        ax.set_xlim(0, 1.3 * max(result.bound, *(r[1] for r in rows)))
        legend_below(ax)
    status_title(ax, "nonreversible drift", result.status)
    return ax


@styled
def friction_rates(result: FrictionVerdict, ax: Axes | None = None) -> Axes:
    """How two trajectories with the same noise approach each other in continuous time: with momentum, and without.

    The rates are of the loops in continuous time; their steps have no part in the proof. The units of time of the two
    loops differ, so each time is divided by a step h: a quarter of the largest stable one with momentum, as
    `FrictionVerdict.plant` takes, and half of it without, where ∇²E ⪯ L.

    Args:
        result: of `optimal_friction`.
        ax: where to draw; a new figure when omitted.
    """
    limit = result.stability_limit
    if result.rate is None or result.constant is None or result.plain is None or limit is None:
        return verdict_table(result, ax)
    ax = axes_or_new(ax)
    largest = 4 / limit**2  # L
    each = {"with momentum": result.rate * limit / 4, "overdamped": result.plain / largest}
    last = LIVES / max(each["with momentum"], 1e-300) + np.log(result.constant) / each["with momentum"]
    k = np.linspace(0, last, 300)
    ax.semilogy(k, result.constant * np.exp(-each["with momentum"] * k), "-", color=BLUE,
                label=f"with momentum, γ = {result.friction:.3g}")  # fmt: skip
    ax.semilogy(k, np.exp(-each["overdamped"] * k), "--", color=RED, label="overdamped")
    ax.set(xlabel="continuous time t / h, each loop's own h", ylabel="bound, continuous time", xlim=(0, last))
    ax.grid(True)
    ax.legend()
    status_title(ax, f"rate λ = {shown_down(result.rate)}", result.status)
    return ax


def bars(
    rows: Sequence[tuple[str, float, str, str]],
    ax: Axes | None,
    label: str,
    log: bool = False,
    shown: Callable[[float, int], str] = lambda value, _: f"{value:.4g}",
) -> Axes:
    """Horizontal bars, (name, value, colour, hatch) from above, each with its number, which `shown` rounds."""
    ax = axes_or_new(ax, (3.4, 0.9 + 0.45 * len(rows)))
    for y, (_, value, color, hatch) in enumerate(rows):
        ax.barh(y, value, 0.62, color=color, hatch=hatch, edgecolor=BLACK, linewidth=0.5)
        ax.annotate(shown(value, 6), (value, y), xytext=(3, 0), textcoords="offset points", va="center", fontsize=8)
    values = [row[1] for row in rows]
    if log:
        ax.set_xscale("log")
        ax.set_xlim(min(0.7, min(values) / 2), max(values) * max(3.0, (max(values) / min(values)) ** 0.25))
    else:
        ax.set_xlim(min(0.0, *values), 1.25 * max(*values, 1e-12))
    ax.set_yticks(range(len(rows)), [row[0] for row in rows])
    ax.invert_yaxis()
    ax.set_xlabel(label)
    return ax


def error_bars(rows: Sequence[tuple[str, Any, str, str]], ax: Axes | None, label: str) -> Axes:
    """Estimates (name, estimate, colour, marker) from above, each with two standard errors and its numbers."""
    ax = axes_or_new(ax, (3.4, 0.9 + 0.45 * len(rows)))
    ends = []
    for y, (_, value, color, marker) in enumerate(rows):
        mean, error = float(value.value), float(np.nan_to_num(value.error))
        ax.errorbar(mean, y, xerr=2 * error, fmt=marker, color=color, markersize=5, capsize=3)
        ax.annotate(f"{value:.3g}", (mean, y), xytext=(0, 6), textcoords="offset points", ha="center", fontsize=8)
        ends += [mean - 2 * error, mean + 2 * error]
    room = 0.25 * max(max(ends) - min(ends), 0.1 * max(abs(v) for v in ends), 1e-12)
    ax.set(xlim=(min(ends) - room, max(ends) + room), ylim=(len(rows) - 0.4, -0.75), xlabel=label)
    ax.set_yticks(range(len(rows)), [row[0] for row in rows])
    ax.grid(True, axis="x")
    return ax
