"""The trust base: its table fits the package, and what it calls a suggestion decides nothing."""

import inspect
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import ctrlgen as cg

PACKAGE = Path(cg.__file__).resolve().parent


def test_trust_base_names_every_file_and_counts_its_lines(extensions):
    trust = extensions["trust"]
    assert trust.unlisted(PACKAGE) == []
    table = trust.render(PACKAGE)
    lines = len((PACKAGE / "prove" / "witness.py").read_text(encoding="utf-8").splitlines())
    assert f"``prove/witness.py``\n     - {lines}\n     - must be right" in table
    for file in trust.files():
        assert (file.role == "both") == bool(file.deciding), file.path
    assert len({file.path for file in trust.files()}) == len(trust.files())
    total = sum(len((PACKAGE / file.path).read_text(encoding="utf-8").splitlines()) for file in trust.files())
    assert sum(map(int, re.findall(r"(\d+)\*{0,2} lines", table.partition("\n")[0]))) == total


def test_trust_base_sees_what_does_not_fit(extensions, tmp_path, monkeypatch):
    trust = extensions["trust"]
    for path in [file.path for file in trust.files()]:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PACKAGE / path, tmp_path / path)
    assert trust.render(tmp_path) == trust.render(PACKAGE)
    for added in ("prove/oracle.py", "oracle.py", "plot/oracle.py", "new/deep/oracle.py"):
        (tmp_path / added).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / added).write_text("x = 1\n")
        with pytest.raises(ValueError, match=f"does not say what rests on {added}"):
            trust.render(tmp_path)
        (tmp_path / added).unlink()
    (tmp_path / "prove" / "program.py").write_text("def holds(): ...\n")
    with pytest.raises(ValueError, match=r"prove/program.py has no function _square, monomials, pivots"):
        trust.render(tmp_path)
    (tmp_path / "prove" / "program.py").unlink()
    with pytest.raises(ValueError, match=r"names prove/program.py, which does not exist"):
        trust.render(tmp_path)


def verdicts():
    """Verdicts of many kinds, proved and refuted, each small."""
    x, f = ["x1", "x2"], ["-x1 + x1*x2", "-x2"]
    V, disc = cg.LyapunovFunction("x1**2 + x2**2", x), cg.Ball([0, 0], 1)
    wells = cg.SymbolicEnergy("(x1**2 - 1)**2 + x2**2/2", x)
    convex = cg.Quadratic(np.diag([1.0, 3.0]))
    sine = cg.SymbolicEnergy("0.3*sin(2*x1)", x)
    net = cg.MLPEnergy(2, width=4, depth=1, key=0)
    loop = cg.ClosedLoop(cg.Langevin(0.5, 0.01), convex + sine)
    plan = cg.stopping.APriori(0.1).plan(convex, 0.5, initial_mean=[1.0, 0.0], initial_covariance=np.eye(2))
    ring = [cg.BarrierFunction("x1**2 + x2**2 - 1/4", x), cg.BarrierFunction("9 - x1**2 - x2**2", x)]
    mixture = cg.GaussianMixture([[0.0, 0.0], [1.0, 0.0]], np.eye(2))
    motzkin = "x1**4*x2**2 + x1**2*x2**4 - 3*x1**2*x2**2 + 1"
    return {
        "exact": V.verify(f, disc),
        "witness": V.verify(f, cg.Ball([0, 0], 5)),
        "interval": V.verify(["-sin(x1)", "-x2"], disc, method="interval"),
        "smt": cg.nonnegative("x1**2 - x1 + 1", x, method="smt"),
        "motzkin": cg.nonnegative(motzkin, x),
        "functional": cg.sum_of_squares(motzkin, x),
        "bound": cg.lower_bound("x1**4 - 3*x1**2 + x2**2", x),
        "region": cg.region_of_attraction(["-x1 + x1**3"], cg.LyapunovFunction("x1**2", ["x1"]), ["x1"]),
        "found": cg.find_lyapunov(["-x1 + x2", "-x2"], x, degree=2),
        "barrier": cg.BarrierFunction("1 - x1**2 - x2**2", x).verify(
            ["-x1", "-x2"], initial=cg.Ball([0, 0], 0.5), unsafe=cg.Ball([3, 0], 0.5), domain=cg.Box([-4, -4], [4, 4])
        ),
        "contraction": cg.find_contraction_metric(["-x1 + 2*x2", "-3*x2"], x, degree=0, rate="9/10"),
        "decay": cg.KLLyapunov(convex + sine, temperature=0.5).verify(loop),
        "wells": cg.log_sobolev(wells, temperature=0.5),
        "mixture": cg.log_sobolev(mixture, temperature=1.0),
        "gaussian": cg.KLLyapunov.gaussian().verify(),
        "flow": cg.no_certificate(wells, cg.Box([-2, -2], [2, 2]), 0.5),
        "plan": plan.verdict,
        "filter": cg.SafetyFilter(ring, gain=5.0).verify(temperature=1.0),
        "metric": cg.optimal_metric(convex),
        "network": cg.optimal_metric(net, cg.Box([-1, -1], [1, 1])),
        "skew": cg.optimal_skew(convex),
        "friction": cg.optimal_friction(convex),
        "invariance": cg.invariance(wells, 0.5, skew=[[0, "x1"], ["-x1", 0]]),
        "cells": cg.contraction_region(net, cg.Box([-1, -1], [1, 1]), cells=4),
    }


def further():
    """{kind: a call that makes a verdict}: loops, walls, filters, feedback on the density, systems given as code."""
    import control as ct

    x, disc = ["x1", "x2"], cg.Ball([0, 0], 1)
    wells, round_ = cg.SymbolicEnergy("(x1**2 - 1)**2 + x2**2/2", x), cg.Quadratic(np.eye(2))
    square = cg.LyapunovFunction("x1**2 + x2**2", x)
    cells = cg.FokkerPlanckGrid([(-2.2, 2.2)] * 2, (16, 16), 0.2)
    damped = cg.interop.density_feedback(wells, cells, x, law="dissipative")
    riccati = cg.interop.density_feedback(wells, cells, x, order=4, limit=5.0)
    start = cg.Gaussian([2.0, 0.0], np.eye(2))

    def walled():
        return cg.SafetyFilter([cg.Ball([0, 0], 1.5)], mode="reflected")

    def decay(plant, energy=round_, temperature=0.5, **options):
        return cg.KLLyapunov(energy, temperature=temperature).verify(cg.ClosedLoop(plant, energy), **options)

    def stopped():
        loop = cg.ClosedLoop(cg.GaussianPlant(0.5), round_)
        return loop.simulate(start, 20.0, stop=cg.stopping.KLBelow(0.1)).certificate

    def behind_walls():
        disc = walled()
        loop = cg.ClosedLoop(cg.Langevin(0.5, 0.01), round_, safety=disc)
        return cg.KLLyapunov(disc.energy(round_), 0.5).verify(loop)

    def under_feedback():
        return cg.KLLyapunov(wells, 0.2).verify(cg.ClosedLoop(cg.Langevin(0.2, 0.01), damped), measure=False)

    def nonlinear():
        return ct.nlsys(lambda t, z, u, params: np.array([-z[0], -z[1]]), None, states=2, inputs=0)

    flow = cg.ClosedLoop(cg.GradientFlow(0.01), round_)
    polytope = cg.Polytope([[1, 0], [-1, 0], [0, 1], [0, -1]], [1, 1, 1, 1])
    boxed = {"initial": cg.Box([-0.35], [0.35]), "unsafe": cg.Box([2], [3]), "domain": cg.Box([-3], [3]), "horizon": 1}
    return {
        "walls": lambda: cg.log_sobolev(walled().energy(round_), 0.5),
        "loop behind walls": behind_walls,
        "Gaussian, stopped": stopped,
        "dissipative law": damped.verify,
        "Riccati law": riccati.verify,
        "loop under feedback": under_feedback,
        "skew loop": lambda: decay(cg.Langevin(0.5, 0.01, skew=[[0, 1], [-1, 0]])),
        "metric loop": lambda: decay(cg.Langevin(0.5, 0.01, metric=[1.0, 2.0])),
        "Gaussian plant": lambda: decay(cg.GaussianPlant(0.5)),
        "grid": lambda: decay(cg.FokkerPlanckGrid([(-3, 3)] * 2, (12, 12), 0.5)),
        "noise-free": lambda: cg.KLLyapunov(round_, 0.5).verify(flow),
        "box": lambda: cg.SafetyFilter([cg.Box([-1, -1], [1, 1])], 1.0).verify(1.0),
        "polytope": lambda: cg.SafetyFilter([polytope], 1.0).verify(1.0),
        "control barrier": lambda: cg.BarrierFunction("1 - x**2", ["x"]).control(
            ["-3*x"], ["x"], inputs=cg.Box([0], [1]), gain=2
        ),
        "high order": lambda: cg.BarrierFunction("1 - x1", x).high_order(["x2", 0], [0, 1], 1).control(
            ["x2", 0], [0, 1]
        ),
        "drift": lambda: cg.LyapunovFunction("x**2", ["x"]).verify_drift(["-x"], "1", c=2),
        "supermartingale": lambda: cg.StochasticBarrier("x1**2/4", ["x1"]).verify(["-x1"], [["0.3"]], **boxed),
        "state space": lambda: square.verify(ct.ss([[-1, 0.5], [0, -2]], [[0], [1]], np.eye(2), [[0], [0]])),
        "code of a system": lambda: square.verify(nonlinear(), disc),
        "code": lambda: square.verify(lambda z: -z, disc),
        "loop as a system": lambda: square.verify(cg.interop.to_nlsys(flow), disc),
        "energy": lambda: square.verify(round_, disc),
        "Riemannian": lambda: cg.riemannian_rate(cg.SymbolicEnergy("x**2/2", ["x"]), ["1"], ["x"], 1.0),
        "or": lambda: cg.log_sobolev(cg.mixture([round_, cg.Quadratic(np.eye(2), [1.0, 0.0])], 1.0), 1.0),
        "observed": lambda: cg.log_sobolev(cg.condition(round_, [[1.0, 0.0]], [0.3], 0.8, temperature=0.5), 0.5),
        "network and quadratic": lambda: cg.log_sobolev(round_ + 1e-4 * cg.MLPEnergy(2, width=4, depth=1, key=0), 0.5),
        "loaded": lambda: cg.no_certificate(cg.load_energy("two_moons"), cg.Box([-1, -1], [1, 1]), 0.5),
    }  # fmt: skip


@pytest.fixture(scope="module")
def made():
    """({kind: verdict}, {kind: what ran while it was made})."""
    found, seen = {}, {}
    seen["those of `verdicts`"] = running(lambda: found.update(verdicts()))
    for kind, make in further().items():
        seen[kind] = running(lambda kind=kind, make=make: found.update({kind: make()}))
    for kind, verdict in found.items():
        assert verdict.status in (cg.Status.PROVED, cg.Status.REFUTED), f"{kind}: {verdict}"
    return found, seen


def running(work):
    """{(file in the package, outermost function)} of what runs during a call of `work`; not the bodies of classes."""
    seen = set()

    def note(frame, event, _):
        if event == "call":
            code = frame.f_code
            if code.co_filename.startswith(str(PACKAGE)) and code.co_flags & inspect.CO_OPTIMIZED:
                outer = code.co_qualname.split(".<locals>")[0]
                seen.add((Path(code.co_filename).relative_to(PACKAGE).as_posix(), outer.rpartition(".")[2]))

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return seen


def suggestions_that_run(trust, seen):
    """Of what ran, the parts that the table calls a suggestion."""
    files = {file.path: file for file in trust.files()}
    out = set()
    for path, name in seen:
        file = files.get(path)
        if file is not None and (
            file.role in ("suggests", "nothing") or (file.role == "both" and name not in file.deciding)
        ):
            out.add((path, name))
    return out


# Facts that engines decide again, with their search in front.
ANEW = {"decay", "wells", "plan", "invariance", "filter", "dissipative law"}
MERELY = {("threads.py", "one_blas_thread")}  # a decorator: it runs when the modules of measures are imported
ANY = {("accelerate/_programs.py", "inverse_root")}  # any invertible matrix does there (accelerate/_bounds.py says why)


@pytest.mark.slow
def test_no_suggestion_runs_when_a_verdict_is_checked_again(extensions, made):
    for kind, verdict in made[0].items():
        seen = running(verdict.recheck)
        assert seen, kind
        found = suggestions_that_run(extensions["trust"], seen) - ANY
        assert {part for part in found if kind not in ANEW or not part[0].startswith("prove/")} == set(), kind


def idle_that_run(trust, seen):
    """Of what ran, the parts of files of which the table says that nothing decides."""
    idle = {file.path for file in trust.files() if file.role == "nothing"}
    return {part for part in seen if part[0] in idle}


@pytest.mark.slow
def test_no_file_where_nothing_decides_runs_when_a_verdict_is_made(extensions, made):
    trust = extensions["trust"]
    listed = {file.path for file in trust.files()}
    assert len(made[0]) > 45
    for kind, seen in made[1].items():
        assert seen, kind
        assert idle_that_run(trust, seen) - MERELY == set(), kind
        assert {path for path, _ in seen if not path.endswith("__init__.py")} <= listed, kind


def test_a_file_where_nothing_decides_is_seen_when_it_runs(extensions):
    loop = cg.ClosedLoop(cg.Langevin(0.5, 0.1), cg.Quadratic(np.eye(2)))
    seen = running(lambda: loop.simulate(cg.Gaussian([0.0, 0.0], 1.0), duration=0.2, record=2, particles=8))
    assert ("plants/ensemble.py", "start") in idle_that_run(extensions["trust"], seen)


def test_a_suggestion_that_runs_is_seen(extensions):
    V = cg.LyapunovFunction("x1**2 + x2**2", ["x1", "x2"])
    seen = running(lambda: V.verify(["-x1", "-x2"], cg.Ball([0, 0], 1)))
    assert {path for path, _ in suggestions_that_run(extensions["trust"], seen)} >= {
        "prove/search.py",
        "prove/exact.py",
    }
