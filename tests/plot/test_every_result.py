"""Every result has a picture, and every picture is drawn: a class that is added without one, or is not drawn, fails."""

import dataclasses
import importlib
import inspect
import pkgutil
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import ctrlgen as cg
from ctrlgen.accelerate.friction import FrictionVerdict
from ctrlgen.accelerate.metric_verdict import MetricVerdict
from ctrlgen.accelerate.region import RegionVerdict
from ctrlgen.accelerate.riemannian import RiemannianVerdict
from ctrlgen.accelerate.skew import SkewVerdict
from ctrlgen.certify.apriori import KLBound, Plan
from ctrlgen.certify.barrier import BarrierVerdict
from ctrlgen.certify.contraction import ContractionVerdict
from ctrlgen.certify.decay import Decay
from ctrlgen.certify.feedback import FeedbackVerdict
from ctrlgen.certify.find_barrier import FoundBarrier
from ctrlgen.certify.find_lyapunov import Synthesis
from ctrlgen.certify.inequality import Bound
from ctrlgen.certify.invariance import NoCertificate
from ctrlgen.certify.log_sobolev import LogSobolev
from ctrlgen.certify.lyapunov import FosterLyapunov, LyapunovVerdict
from ctrlgen.certify.region import Region
from ctrlgen.certify.stochastic import ProbabilityBound
from ctrlgen.certify.verdict import Verdict
from ctrlgen.demo import DemoReport
from ctrlgen.estimate import Estimate
from ctrlgen.gibbs import Gibbs
from ctrlgen.interop.design import Design
from ctrlgen.jobs import TrainingReport
from ctrlgen.modes.base import SlowModes
from ctrlgen.quality import Quality
from ctrlgen.response import DistributionShift, Response
from ctrlgen.safety.report import SafetyReport
from ctrlgen.store import ModelSummary
from ctrlgen.tables import Table
from ctrlgen.training.result import TrainingResult
from tests.plot.drawn import legend

QUADRATIC = cg.Quadratic(np.diag([1.0, 2.0]))
BOX = cg.Box([-1, -1], [1, 1])
STATES = ["x", "y"]
SETS = {"initial": cg.Ball([0, 0], 0.5), "unsafe": cg.Ball([2, 0], 0.4)}

# public functions return these too, and they are no results: what a loop is made of, or plain numbers
NOT_RESULTS = {
    "Energy", "Quadratic", "Composition", "MixtureEnergy", "LogBarrier", "Walls", "TrainedEnergy",  # controller blocks
    "Gaussian", "Restricted", "Sublevel", "Properties", "Piece", "NetworkBounds", "Recipe", "Phase", "State",
    "ParticlePlant", "Driven", "_APrioriMonitor", "ClosedLoop", "Objective", "DensityFeedback", "Domain",
    "BarrierFunction", "Estimate", "Bracket", "UpperBound", "Skewed", "Annealed", "Moments", "Rate", "FilteredDrift",
    "Standardised",
}  # fmt: skip


def history():
    return {
        "step": np.arange(1, 21), "phase": np.repeat("flow", 20), "loss": np.exp(-np.arange(20) / 10),
        "held_out_step": np.array([10, 20]), "held_out_w2": np.array([1.0, 0.5]),
    }  # fmt: skip


def trained():
    return TrainingResult(
        energy=cg.TrainedEnergy(QUADRATIC), status="completed", message="", history=history(), steps=20, seconds=1.0
    )


def run(stop=None):
    loop = cg.ClosedLoop(cg.GaussianPlant(0.5), QUADRATIC)
    return loop.simulate(cg.Gaussian([2.0, 0.0], np.eye(2)), 2.0, record=5, stop=stop)


@cache
def feedback():
    grid = cg.FokkerPlanckGrid([(-2.2, 2.2)], (40,), temperature=0.2)
    return cg.interop.density_feedback(cg.SymbolicEnergy("(x**2 - 1)**2", ["x"]), grid, inputs=["x"], order=2)


def quality():
    one = Estimate(0.3, 0.02)
    return Quality(
        kl=0.01, kl_reverse=0.02, w2=one, w2_long=one, floor=one, ratio=one, ratio_long=one, kl_generated=None,
        points=200, repeats=4,
    )  # fmt: skip


def demo():
    energy = cg.TrainedEnergy(QUADRATIC, temperature=0.5)
    return DemoReport(model="mine", energy=energy, response=run(), rows=[], floor=None, rates=[], files={}, seconds=0.0)


B = cg.BarrierFunction("1 - x**2 - y**2", STATES)
# class -> (an example, words that its picture shows in its title, axes or legend)
EXAMPLES = {
    Verdict: (lambda: cg.nonnegative("x**2 + y**2 - x*y", STATES), ["p ≥ 0: PROVED", "slack"]),
    LyapunovVerdict: (
        lambda: cg.LyapunovFunction("x**2 + y**2", STATES).verify(["-x", "-y"], BOX),
        ["V > 0 and V̇ < 0: PROVED", "levels of V"],
    ),
    Synthesis: (lambda: cg.find_lyapunov(["-x", "-y"], STATES), ["V > 0 and V̇ < 0: PROVED", "levels of V"]),
    FosterLyapunov: (
        lambda: cg.LyapunovFunction("x**2 + y**2", STATES).verify_drift(["-x", "-y"], "1", c=1.0),
        ["ℒV ≤", "PROVED", "slack"],
    ),
    Region: (
        lambda: cg.region_of_attraction(["-x + x**3", "-y"], "x**2 + y**2", STATES),
        ["region of attraction: PROVED", "proved: V <"],
    ),
    BarrierVerdict: (lambda: B.verify(["-x", "-y"], **SETS), ["unsafe is not reached", "h = 0", "initial", "unsafe"]),
    FoundBarrier: (
        lambda: cg.find_barrier(["-x", "-y"], STATES, 2, **SETS),
        ["unsafe is not reached: PROVED", "h = 0"],
    ),
    ProbabilityBound: (
        lambda: cg.StochasticBarrier("x**2 + y**2", STATES).verify(["-x", "-y"], "1/4", horizon=1.0, **SETS),
        ["P(unsafe) ≤", "B = γ"],
    ),
    ContractionVerdict: (
        lambda: cg.ContractionMetric(np.eye(2), STATES).verify(["-x", "-2*y"], 0.5),
        ["contraction at λ = 0.5: PROVED", "unit balls of M"],
    ),
    Bound: (lambda: cg.lower_bound("x**2 + y**2", STATES), ["p ≥", "smallest value seen"]),
    NoCertificate: (
        lambda: cg.no_certificate(QUADRATIC, BOX, 0.5),
        ["no Lyapunov certificate: PROVED", "witness: not zero", "∂ρ/∂t"],
    ),
    Decay: (
        lambda: cg.KLLyapunov(QUADRATIC, 0.5).verify(cg.ClosedLoop(cg.Langevin(0.5, 0.05), QUADRATIC)),
        ["KL falls: PROVED", "certified: rate 1.99999"],
    ),
    LogSobolev: (lambda: cg.log_sobolev(QUADRATIC, 0.5), ["log-Sobolev inequality: PROVED", "α ≥ 1.99999"]),
    KLBound: (lambda: run(cg.stopping.KLBelow(0.1)).certificate, ["KLBound", "PROVED"]),
    Plan: (
        lambda: cg.stopping.APriori(0.1, initial_kl=2.0).plan(QUADRATIC, 0.5),
        ["bound of KL", "floor", "stop:", "PROVED"],
    ),
    FeedbackVerdict: (lambda: feedback().verify(), ["modes tend to 0", "{V ≤ 1}"]),
    MetricVerdict: (lambda: cg.optimal_metric(QUADRATIC), ["condition number", "without a metric", "PROVED"]),
    SkewVerdict: (lambda: cg.optimal_skew(QUADRATIC), ["with J", "without J", "PROVED"]),
    FrictionVerdict: (lambda: cg.optimal_friction(QUADRATIC), ["with momentum", "overdamped", "PROVED"]),
    RiemannianVerdict: (
        lambda: cg.riemannian_rate(cg.SymbolicEnergy("x**2/2 + y**2 + x**4", STATES), ["1", "1"], STATES, 0.5),
        ["Hess", "PROVED"],
    ),
    RegionVerdict: (
        lambda: cg.contraction_region(QUADRATIC, BOX, cells=2),
        ["∇²E ⪰ λM on the shaded cells: PROVED", "proved"],
    ),
    Response: (run, ["KL to the Gibbs measure", "free energy F", "certified, continuous time: rate 2"]),
    DistributionShift: (
        lambda: DistributionShift(Estimate(0.1, 0.02), Estimate(0.3, 0.05), Estimate(0.2, 0.01), "exactly"),
        ["filtered loop", "fresh samples", "KL = 0.1"],
    ),
    SafetyReport: (
        lambda: cg.SafetyReport(mode="reflected", looked=100, violations=0, worst_depth=0.0, least=0.1, corrected=3),
        ["reflected", "ended outside", "brought back"],
    ),
    Gibbs: (lambda: cg.Gibbs(QUADRATIC, 0.5), ["x₁"]),
    SlowModes: (lambda: feedback().design.modes, ["rates of the slow modes", "ζ1"]),
    Design: (lambda: feedback().design, ["open loop", "closed loop", "slowest"]),
    TrainingResult: (trained, ["loss", "held-out W₂"]),
    TrainingReport: (
        lambda: TrainingReport(
            path=Path("mine"), result=trained(), w2=Estimate(1.0, 0.1), floor=Estimate(1.0, 0.1), card=""
        ),
        ["loss", "held-out W₂"],
    ),
    Quality: (quality, ["after T", "after 5 T", "fresh"]),
    DemoReport: (demo, ["from noise to the Gibbs measure", "KL to the Gibbs measure", "t = 0"]),
    ModelSummary: (lambda: next(m for m in cg.list_models() if m.name == "rings"), ["x₁"]),
    Table: (lambda: Table(np.random.default_rng(0).normal(size=(20, 2)), ("a", "b")), ["a", "b"]),
}


def modules():
    """Every module of the package but what is not imported with it: pages, reports, the shell."""
    apart = {"_models", "_analysis", "docs", "report", "cli", "__main__"}
    for found in pkgutil.walk_packages(cg.__path__, "ctrlgen."):
        if not apart & set(found.name.split(".")):
            yield importlib.import_module(found.name)


MODULES = list(modules())
CLASSES = {
    name: thing
    for module in MODULES
    for name, thing in vars(module).items()
    if inspect.isclass(thing) and thing.__module__.startswith("ctrlgen") and dataclasses.is_dataclass(thing)
}


def subclasses(kind):
    return {kind}.union(*(subclasses(child) for child in kind.__subclasses__()))


def words(drawn):
    """All that is written on a picture."""
    axes = [ax for first in np.ravel(np.asarray(drawn, dtype=object)) for ax in first.figure.axes]
    axes = list(dict.fromkeys(axes))
    axes[0].figure.canvas.draw()
    out = [axes[0].figure.get_suptitle()]
    for ax in axes:
        out += [ax.get_title(), ax.get_xlabel(), ax.get_ylabel(), *(t.get_text() for t in ax.texts)]
        out += [t.get_text() for t in ax.get_yticklabels()] + legend(ax)
    return "\n".join(out)


def test_every_verdict_is_drawn_here():
    own = {kind for kind in subclasses(Verdict) if kind.__module__.startswith("ctrlgen.")}
    assert own <= set(EXAMPLES)


def returned():
    """Classes of data in the return annotations of public functions and of the methods of public classes."""
    from ctrlgen import demo, interop, jobs, measure, recipes, store, tables
    from ctrlgen.certify import stopping

    things = [getattr(cg, name) for name in cg.__all__]
    things += [getattr(interop, name) for name in interop._NAMES]
    for module in (measure, stopping, demo, jobs, store, tables, recipes):
        things += [v for k, v in vars(module).items() if not k.startswith("_")]
    found = set()
    for thing in things:
        members = (
            [m for k, m in inspect.getmembers(thing) if not k.startswith("_")] if inspect.isclass(thing) else [thing]
        )
        for member in members:
            function = getattr(member, "fget", None) or getattr(member, "func", None) or member
            if inspect.isfunction(function) and function.__module__.startswith("ctrlgen"):
                found |= set(re.findall(r"\w+", str(function.__annotations__.get("return", "")))) & set(CLASSES)
    return found


def test_what_public_functions_return_is_drawn_here():
    found = returned()
    assert {"Response", "Verdict", "Plan", "Quality", "SafetyReport", "TrainingReport"} <= found  # the search works
    assert found - NOT_RESULTS <= {kind.__name__ for kind in EXAMPLES}


@cache
def example(kind):
    return EXAMPLES[kind][0]()


@pytest.mark.parametrize("kind", EXAMPLES, ids=lambda kind: kind.__name__)
def test_every_result_is_drawn(kind):
    result, expected = example(kind), EXAMPLES[kind][1]
    assert isinstance(result, kind)
    assert (inspect.getdoc(type(result).plot) or "").strip()
    told = words(result.plot())
    for word in expected:
        assert word in told, f"{word!r} is not in the picture; it says\n{told}"


SINGLE = [kind for kind in EXAMPLES if kind not in (Response, SlowModes, DemoReport)]  # on one axes


@pytest.mark.parametrize("kind", SINGLE, ids=lambda kind: kind.__name__)
def test_every_result_is_drawn_where_it_is_asked(kind):
    ax = cg.plot.figure()[0, 0]
    assert example(kind).plot(ax) is ax
    assert ax.has_data() or ax.texts
