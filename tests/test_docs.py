"""The documentation: its code prints what stands below it, its tables fit the package, its links lead somewhere.

Slow tests build the site, which needs the extra "docs".
"""

import contextlib
import inspect
import io
import json
import re
import shutil
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest

import ctrlgen as cg

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(cg.__file__).resolve().parent
DOCS = ROOT / "ctrlgen" / "docs"
PAGES = sorted(p for p in DOCS.rglob("*.md") if "_generated" not in p.relative_to(DOCS).parts)
FAST = {"index.md", "verdicts.md"}  # the others take longer than a default run should
HOSTS = {"arxiv.org", "github.com", "pradyunsg.me", "www.sphinx-doc.org"}  # the last three: of the theme's own footer
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d*)?(?:e[+-]?\d+)?(?![\w])")


@pytest.fixture(scope="module")
def extensions():
    """The modules of the site that need nothing of Sphinx."""
    names, before = ("texts", "gallery", "trust"), list(sys.path)
    sys.path.insert(0, str(DOCS / "_ext"))
    yield {name: __import__(name) for name in names}
    sys.path[:] = before
    for name in names:
        del sys.modules[name]


# Code blocks ------------------------------------------------------------------------------------------------


def blocks(text):
    """(code, what it must print) of each ```python block; a ```text block right after it is what it prints."""
    found = [(m.group(1), m.group(2), m.start(), m.end()) for m in BLOCK.finditer(text)]
    out = []
    for k, (kind, body, _, end) in enumerate(found):
        if kind == "python":
            after = found[k + 1] if k + 1 < len(found) else ("", "", len(text), 0)
            told = after[0] == "text" and not text[end : after[2]].strip()
            out.append((body, after[1] if told else ""))
    return out


def disagreement(expected, printed):
    """Why a printed text is not the expected one; "" where it is.

    "..." stands for anything. Whole numbers are equal, others agree to one unit of the last digit that is expected.
    Blanks may differ, for arrays are aligned.
    """
    parts = _evenly(expected).split("...")
    wanted = [number for part in parts for number in NUMBER.findall(part)]
    found = re.fullmatch(".*?".join(map(_pattern, parts)), _evenly(printed))
    if found is None:
        return f"expected\n{expected}\ngot\n{printed}"
    for want, got in zip(wanted, found.groups(), strict=True):
        mantissa, _, exponent = want.partition("e")
        unit = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2])) if "." in mantissa or exponent else 0.0
        if abs(float(want) - float(got)) > 1.001 * unit:
            return f"expected the number {want}, got {got}, in\n{printed}"
    return ""


def _pattern(part):
    """A text as a pattern with a group for each number."""
    pieces, last = [], 0
    for found in NUMBER.finditer(part):
        pieces += [re.escape(part[last : found.start()]), r"(-?\d+\.?\d*(?:e[+-]?\d+)?)"]
        last = found.end()
    return "".join([*pieces, re.escape(part[last:])])


def _evenly(text):
    return re.sub(r"(?<=\[) | (?=\])", "", " ".join(text.split()))


def _marked(path):
    name = str(path.relative_to(DOCS))
    return pytest.param(path, marks=() if name in FAST else pytest.mark.slow, id=name)


@pytest.mark.parametrize("path", map(_marked, PAGES))
def test_code_prints_what_stands_below_it(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    space = {"__name__": "page"}
    for code, expected in blocks(path.read_text(encoding="utf-8")):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(code, str(path), "exec"), space)
        assert disagreement(expected, out.getvalue()) == "", f"{path.name}:\n{code}"


def test_proved_numbers_are_cut_and_not_rounded():
    x, wells = ["x1", "x2"], cg.SymbolicEnergy("(x**2 - 1)**2 + y**2/2", ["x", "y"])
    W = cg.LyapunovFunction("1.5*x1**2 - x1*x2 + x2**2", x)
    proved = {
        "level": cg.region_of_attraction(["-x2", "x1 + (x1**2 - 1)*x2"], W, x).level,
        "rate": cg.log_sobolev(wells, temperature=0.5).constant,
        "stated": 0.9 - 2**-50,
    }
    printed = {
        ("generative.md", "level", r"PROVED up to V = ([\d.]+?)\.\.\."),
        ("cookbook/certificates.md", "level", r"PROVED V < ([\d.]+?)\.\.\."),
        ("index.md", "rate", r"at least at the rate ([\d.]+?)\.\.\."),
        ("start.md", "rate", r"at least at the rate ([\d.]+?)\.\.\."),
        ("control.md", "rate", r"PROVED α ≥ ([\d.]+?)\.\.\."),
        ("control.md", "rate", r"exp\(-([\d.]+?)\.\.\. t\)"),
        ("verdicts.md", "stated", r"PROVED ([\d.]+?)\.\.\."),
    }
    for page, name, pattern in printed:
        found = re.findall(pattern, (DOCS / page).read_text(encoding="utf-8"))
        assert len(found) == 1, (page, pattern)
        assert 0 <= proved[name] - float(found[0]) < 10.0 ** -len(found[0].partition(".")[2]), (page, found)


def test_which_pages_have_no_code():
    without = {str(p.relative_to(DOCS)) for p in PAGES if not blocks(p.read_text(encoding="utf-8"))}
    assert without == {"limits.md", "cookbook/index.md"}


@pytest.mark.parametrize(
    ("expected", "printed", "agree"),
    [
        ("KL = 0.25 ± 0.01", "KL = 0.26 ± 0.01", True),
        ("KL = 0.25 ± 0.01", "KL = 0.27 ± 0.01", False),
        ("[1.253 0.  ]", "[ 1.2539 0.    ]", True),
        ("steps 4368", "steps 4369", False),
        ("1.5e-06", "1.59e-06", True),
        ("1.5e-06", "1.7e-06", False),
        ("took ... s, PROVED", "took 0.31 s, PROVED", True),
        ("took ... s, PROVED", "took 0.31 s, SAMPLED", False),
        ("a\nb", "a", False),
        ("", "something", False),
        ("x1**2 + 3*y", "x1**2 + 3*y", True),
        ("x1**2 + 3*y", "x1**2 + 4*y", False),
    ],
)
def test_outputs_are_compared_as_the_cookbook_says(expected, printed, agree):
    assert (disagreement(expected, printed) == "") is agree


def test_blocks_are_found_with_their_outputs():
    text = "```python\na = 1\n```\n\n```text\n1\n```\nwords\n```python\nb\n```\nwords\n```text\nnot its own\n```\n"
    assert blocks(text) == [("a = 1\n", "1\n"), ("b\n", "")]


# Texts of others --------------------------------------------------------------------------------------------


def test_docstrings_are_escaped_outside_of_code(extensions):
    markup = extensions["texts"].markup
    assert markup("|x| and x_ and a*b, hessian_lower") == r"\|x\| and x\_ and a\*b, hessian_lower"
    assert markup("`|x|` and `a_`s") == "``|x|`` and ``a_``\\ s"
    assert markup("* one *\n  more\n* two") == "* one \\*\n  more\n* two"


HOSTILE = "<script>alert(1)</script> |x| *a* `b` ``c`` x_ [d](e) \\alpha ::"


@pytest.fixture
def results(tmp_path):
    """Stored results as a full run leaves them, with texts that look like markup, and a folder of scripts."""
    scripts, stored = tmp_path / "analysis", tmp_path / "analysis" / "results"
    stored.mkdir(parents=True)
    for name in ("decay", "unrun"):
        (scripts / f"{name}.py").write_text(f'"""Question: does {name} hold?\n\nRun: python {name}.py\n"""\nprint(1)\n')
    (scripts / "report.py").write_text('"""No question."""\n')
    common = {
        "about": "Two ways.\n\n.. raw:: html", "seed": 3, "quick": False, "started": "2026-11-26T08:00:00+00:00",
        "seconds": 12.5, "versions": {"numpy": "2.4.0"}, "machine": {"cores": "2"}, "error": None,
    }  # fmt: skip
    claims = [
        {"key": "a", "statement": f"KL falls. {HOSTILE}", "holds": True, "status": "PROVED", "method": "interval",
         "numbers": {"rate": "0.60 ± 0.01"}},
        {"key": "b", "statement": "It is tight.", "holds": False, "status": "SAMPLED", "method": "grid", "numbers": {}},
    ]  # fmt: skip
    figures = [{"file": "decay.png", "caption": f"A curve. {HOSTILE}"}, {"file": "gone.png", "caption": "Lost."}]
    finished = {
        "name": "decay", "question": "does decay hold?", "command": "python analysis/decay.py --seed 3",
        "status": "finished", "answer": f"it does {HOSTILE}", "printed": f"line\n  {HOSTILE}\n", "claims": claims,
        "figures": figures,
    }  # fmt: skip
    unreached = {
        "key": "c",
        "statement": "Never.",
        "holds": False,
        "status": "NOT REACHED",
        "method": "",
        "numbers": {},
    }
    failed = {
        "name": "orphan", "question": "what failed?", "command": "python analysis/orphan.py", "status": "failed",
        "answer": "", "printed": "", "claims": [unreached], "figures": [], "error": f"Traceback\n  {HOSTILE}",
    }  # fmt: skip
    (stored / "decay.json").write_text(json.dumps(common | finished))
    (stored / "orphan.json").write_text(json.dumps(common | failed))
    ax = cg.plot.figure().ravel()[0]
    ax.plot([0, 1], [1, 0])
    ax.figure.savefig(stored / "decay.png", dpi=200)
    return scripts, stored


def test_gallery_has_a_page_for_every_script_and_every_result(extensions, results, tmp_path):
    target = tmp_path / "gallery"
    (target).mkdir()
    (target / "removed.rst").write_text("of an earlier build")
    entries = extensions["gallery"].write_gallery(*results, target)
    assert [(e.name, e.state) for e in entries] == [
        ("decay", "1 of 2 claims hold"),
        ("orphan", "failed; 0 of 1 claims hold"),
        ("unrun", "no stored result"),
    ]
    files = {"index.rst", "decay.rst", "orphan.rst", "unrun.rst", "decay.txt", "unrun.txt", "decay.png"}
    assert {p.name for p in target.iterdir()} == files | {"decay.small.png"}
    assert "There is no stored result" in (target / "unrun.rst").read_text()
    assert "no longer there" in (target / "orphan.rst").read_text()
    assert "gone\\.png is missing" in (target / "decay.rst").read_text()
    from PIL import Image

    with Image.open(target / "decay.small.png") as small:
        assert max(small.size) == extensions["gallery"].THUMBNAIL


def test_gallery_refuses_what_is_no_result(extensions, results):
    scripts, stored = results
    (stored / "decay.json").write_text('{"question": "?"}')
    with pytest.raises(ValueError, match=r"decay.json .* lacks claims, command, quick, seed, status"):
        extensions["gallery"].read_entries(scripts, stored)
    (stored / "decay.json").write_text("{")
    with pytest.raises(ValueError, match=r"decay.json must be a JSON file"):
        extensions["gallery"].read_entries(scripts, stored)


# The trust base ---------------------------------------------------------------------------------------------


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


# The site ---------------------------------------------------------------------------------------------------


def build(source, target, *settings):
    """Build a site, warnings being errors; the theme and Sphinx come with the extra "docs"."""
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-b", "html", *settings]
    done = subprocess.run([*command, str(source), str(target)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f'the site was not built (pip install "ctrlgen[docs]" brings Sphinx):\n{done.stderr}'
    return target


def build_site(folder):
    """The site of the package and its stored results, built from a copy of its sources."""
    shutil.copytree(DOCS, folder / "source", ignore=shutil.ignore_patterns("_generated", "_build", "__pycache__"))
    scripts = ROOT / "analysis"
    settings = [f"-Dgallery_scripts={scripts}", f"-Dgallery_results={scripts / 'results'}"]
    return build(folder / "source", folder / "site", *settings)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return build_site(tmp_path_factory.mktemp("docs"))


class Reader(HTMLParser):
    """Text, anchors and links of a page."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.words, self.silent = set(), [], [], 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids |= {given[key] for key in ("id", "name") if given.get(key)}
        self.links += [given[key] for key in ("href", "src", "poster", "data") if given.get(key)]
        self.silent += tag in ("script", "style")

    def handle_endtag(self, tag):
        self.silent -= tag in ("script", "style")

    def handle_data(self, data):
        if not self.silent:
            self.words.append(data)

    @property
    def text(self):
        return " ".join("".join(self.words).split())


def broken_links(folder):
    """What leads nowhere on the pages of a folder: files, fragments, hosts that are not in HOSTS; what styles fetch."""
    pages = {path: Reader(path) for path in sorted(folder.rglob("*.html"))}
    out = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme == "data":
                continue
            if parts.scheme or parts.netloc:
                if parts.scheme != "https" or parts.netloc not in HOSTS:
                    out.append(f"{path.relative_to(folder)}: {link} is no https link to a known host")
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                out.append(f"{path.relative_to(folder)}: {link} does not exist")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
                out.append(f"{path.relative_to(folder)}: {link} has no such place")
    for path in sorted(folder.rglob("*.css")):
        text = path.read_text(encoding="utf-8")
        out += [
            f"{path.relative_to(folder)} fetches {u}" for u in re.findall(r"url\([\"']?((?:https?:)?//[^)]*)", text)
        ]
    return out


@pytest.mark.slow
def test_every_link_leads_somewhere(site):
    assert len(list(site.rglob("*.html"))) > 25
    assert broken_links(site) == []


def test_links_that_lead_nowhere_are_seen(tmp_path):
    (tmp_path / "b.html").write_text('<h1 id="here">b</h1><img src="gone.png">')
    (tmp_path / "a.html").write_text(
        '<a href="b.html#here">1</a><a href="b.html#there">2</a><a href="c.html">3</a><a href="#up">4</a>'
        '<a href="http://arxiv.org">5</a><script src="https://cdn.example/x.js"></script><a href="https://arxiv.org/x">6</a>'
        '<img src="data:image/png;base64,AA">'
    )
    (tmp_path / "a.css").write_text("@import url(//fonts.example/x); b { background: url(b.png) }")
    assert broken_links(tmp_path) == [
        "a.html: b.html#there has no such place",
        "a.html: c.html does not exist",
        "a.html: #up has no such place",
        "a.html: http://arxiv.org is no https link to a known host",
        "a.html: https://cdn.example/x.js is no https link to a known host",
        "b.html: gone.png does not exist",
        "a.css fetches //fonts.example/x",
    ]


@pytest.mark.slow
def test_nothing_is_fetched(site):
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        fetched = re.findall(r"<(?:script|img|iframe|source|video)[^>]*\ssrc=\"(https?:[^\"]*)", text)
        fetched += re.findall(
            r"<link[^>]*rel=\"(?:stylesheet|preload|preconnect|icon)\"[^>]*href=\"(https?:[^\"]*)", text
        )
        assert fetched == [], path.name


def inventory(site):
    """{name: page} of the documented Python objects, from objects.inv."""
    data = (site / "objects.inv").read_bytes()
    head = b"".join(data.splitlines(keepends=True)[:4])
    out = {}
    for line in zlib.decompress(data[len(head) :]).decode().splitlines():
        name, kind, _, uri, _ = line.split(" ", 4)
        if kind.startswith("py:"):
            out[name] = uri.partition("#")[0]
    return out


def public_names():
    """{name: object} of everything public: the top level, and the public modules."""
    modules = ("datasets", "interop", "measure", "plot", "report", "stopping")
    out = {f"ctrlgen.{name}": getattr(cg, name) for name in cg.__all__}
    for module in modules:
        thing = out[f"ctrlgen.{module}"]
        names = getattr(thing, "__all__", None) or list(getattr(thing, "_NAMES", ()))
        if module == "datasets":
            names = ["Distribution", "Gaussian", "get", "names", *thing.names()]
        out |= {f"ctrlgen.{module}.{name}": getattr(thing, name) for name in names}
    return out


@pytest.mark.slow
def test_every_public_name_is_on_exactly_one_page(site):
    documented, names = inventory(site), public_names()
    assert {n for n in names if inspect.ismodule(names[n])} == {f"ctrlgen.{m}" for m in cg._MODULES}
    assert [name for name in names if name not in documented] == []
    for name, thing in names.items():
        if callable(thing):
            pages = {documented[other] for other in names if names[other] is thing}
            assert len(pages) == 1, f"{name} is on {pages}"


@pytest.mark.slow
def test_pages_say_what_the_docstrings_say(site):
    documented, texts = inventory(site), {}
    for name, thing in public_names().items():
        if callable(thing):
            page = documented[name]
            texts.setdefault(page, Reader(site / page).text)
            first = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].replace("`", "").split())
            assert first in texts[page], name


@pytest.mark.slow
def test_math_is_mathml(site):
    text = (site / "control.html").read_text(encoding="utf-8")
    assert text.count("<math") >= 4
    assert "MathJax" not in text
    assert "<msqrt>" in text


@pytest.mark.slow
def test_gallery_shows_hostile_texts_as_they_are(results, tmp_path):
    scripts, stored = results
    source = tmp_path / "source"
    source.mkdir()
    (source / "conf.py").write_text(
        f"import sys\nsys.path.insert(0, {str(DOCS / '_ext')!r})\n"
        "extensions, html_theme, smartquotes, html_show_sourcelink = ['gallery'], 'furo', False, False\n"
    )
    (source / "index.rst").write_text("Index\n=====\n\n.. toctree::\n\n   _generated/gallery/index\n")
    built = build(source, tmp_path / "site", f"-Dgallery_scripts={scripts}", f"-Dgallery_results={stored}")
    page, failed = Reader(built / "_generated/gallery/decay.html"), Reader(built / "_generated/gallery/orphan.html")
    for lead in ("KL falls. ", "A curve. ", "it does ", "line "):
        assert f"{lead}{HOSTILE}" in page.text
    assert ".. raw:: html" in page.text
    assert "does not hold" in page.text
    assert "python analysis/decay.py --seed 3" in page.text
    assert f"Traceback {HOSTILE}" in failed.text
    assert "NOT REACHED" in failed.text
    assert "alert(1)</script>" not in (built / "_generated/gallery/decay.html").read_text(encoding="utf-8")
    assert broken_links(built) == []
