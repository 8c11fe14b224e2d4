"""The report: failing claims first, nothing lost, one page that needs nothing else."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from html.parser import HTMLParser

import pytest
from click.testing import CliRunner

import ctrlgen as cg
from ctrlgen.cli import main
from ctrlgen.report import find_scripts, run_report
from ctrlgen.report.page import render, write_page
from tests.report.test_findings import write

DRAW = "ax = cg.plot.figure()[0, 0]; found.figure(ax.figure, 'A <curve> & more.')"
ENDS = {
    "a_good": "pass",
    "b_killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "c_raises": "raise RuntimeError('lost <its> way')",
    "d_drawn": DRAW,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A report of one analysis that is killed, one that raises, and two that end well."""
    folder, out = tmp_path_factory.mktemp("scripts"), tmp_path_factory.mktemp("out")
    for name, action in ENDS.items():
        write(folder, name, action)
    said = []
    return folder, run_report(out, quick=True, seed=5, folder=folder, say=said.append), said


def test_what_fails_takes_nothing_with_it_and_stands_first(made):
    _, report, said = made
    assert [r["name"] for r in report.results] == ["b_killed", "c_raises", "a_good", "d_drawn"]
    assert {r["name"]: r["status"] for r in report.results} == {
        "a_good": "finished", "b_killed": "failed", "c_raises": "failed", "d_drawn": "finished",
    }  # fmt: skip
    assert not report.holds
    assert not report.interrupted
    assert [(c["name"], c["key"]) for c in report.failing] == [("b_killed", "last"), ("c_raises", "last")]
    killed = report.results[0]
    assert "signal 9" in killed["error"]
    assert [c["status"] for c in killed["claims"]] == ["SAMPLED", "NOT REACHED"]
    assert len(said) == 4
    assert "6 of 8 claims hold" in str(report)


class Page(HTMLParser):
    """Ids, links, images and scripts of a page."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.images, self.scripts, self.open = [], [], [], 0, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.links += [attrs["href"]] if tag == "a" else []
        self.images += [attrs] if tag == "img" else []
        self.scripts += tag == "script"


def test_the_page_needs_nothing_else(made):
    _, report, _ = made
    text = report.path.read_text()
    page = Page(text)
    assert page.scripts == 0
    assert [i["src"].partition(",")[0] for i in page.images] == ["data:image/png;base64"]
    assert page.images[0]["alt"] == "A <curve> & more."
    assert set(page.links) == {"#b_killed", "#c_raises", "#a_good", "#d_drawn"}
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert not re.findall(r'(?:src|href)="(?:https?:|//)', text)
    assert "lost &lt;its&gt; way" in text
    assert "<its>" not in text


def test_the_page_tells_claim_command_seed_versions_and_machine(made):
    _, report, _ = made
    text = report.path.read_text()
    for part in (
        "python analysis/a_good.py --seed 5 --quick", "<dt>seed</dt><dd>5</dd>", cg.report.findings.versions()["numpy"],
        "<dt>processor</dt>", "It is the last.", "NOT REACHED", "SAMPLED", "by measured", "coarser grids) of all.",
    ):  # fmt: skip
        assert part in text, part
    assert text.index('id="b_killed"') < text.index('id="a_good"')


def test_one_analysis_again_keeps_the_others(made, tmp_path):
    folder, report, _ = made
    kept = {p.name: p.read_bytes() for p in report.path.parent.glob("*.json")}
    write(folder, "b_killed", "pass")
    again = run_report(report.path.parent, folder=folder, only=["b_killed"])
    write(folder, "b_killed", ENDS["b_killed"])
    assert {r["name"]: r["status"] for r in again.results}["b_killed"] == "finished"
    assert len(again.results) == 4
    after = {p.name: p.read_bytes() for p in report.path.parent.glob("*.json")}
    assert [name for name in kept if kept[name] != after[name]] == ["b_killed.json"]


@pytest.mark.slow
def test_figures_of_another_analysis_are_not_taken_for_its_own(tmp_path):
    """`pair` begins the name of `pair_of_two`."""
    write(tmp_path, "pair", DRAW)
    write(tmp_path, "pair_of_two", DRAW)
    out = tmp_path / "out"
    assert run_report(out, folder=tmp_path, quick=True).missing == ()
    write(tmp_path, "pair")
    again = run_report(out, folder=tmp_path, only=["pair"])
    assert (out / "pair_of_two.png").is_file()
    assert not (out / "pair.png").exists()
    text = again.path.read_text()
    assert "coarser grids) of pair_of_two." in text
    assert "is missing" not in text


def test_what_was_not_run_is_told(tmp_path):
    write(tmp_path, "a")
    write(tmp_path, "b")
    report = run_report(tmp_path / "out", folder=tmp_path, only=["a"])
    assert report.holds
    assert report.missing == ("b",)
    assert "not run: b" in str(report)
    assert "<strong>Not run: b.</strong>" in report.path.read_text()


@pytest.mark.slow
def test_a_failing_claim_is_marked_at_the_top(tmp_path):
    write(tmp_path, "ok")
    write(tmp_path, "wrong", last="False")
    report = run_report(tmp_path / "out", folder=tmp_path)
    text = report.path.read_text()
    assert "<strong>Failing or not reached: 1." in text
    assert text.index("FAILS</span><span class='badge SAMPLED'>") < text.index('href="#ok"')
    assert re.search(r'<section id="wrong" class=bad>', text)
    assert re.search(r'<section id="ok"><h2>', text)


def test_slips_are_told_before_any_work(tmp_path):
    write(tmp_path)
    with pytest.raises(ValueError, match="no 'other' among asked"):
        run_report(tmp_path / "out", folder=tmp_path, only=["other"])
    with pytest.raises(ValueError, match="jobs must be at least 1; got 0"):
        run_report(tmp_path / "out", folder=tmp_path, jobs=0)
    with pytest.raises(FileNotFoundError, match="there is none in"):
        run_report(tmp_path / "out", folder=tmp_path / "nowhere")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_what_measures_time_runs_alone_and_last(tmp_path):
    note = "open('{}', 'a').write('%s %f\\n' % (found.name, time.time())); time.sleep(0.5)"
    note += "; open('{}', 'a').write('%s %f\\n' % (found.name, time.time()))"
    log = tmp_path / "log"
    for name, alone in (("a_timed", "True"), ("b", "False"), ("c", "False")):
        write(tmp_path, name, note.format(log, log), alone=alone)
    assert run_report(tmp_path / "out", folder=tmp_path, jobs=2).holds
    spans = {}
    for line in log.read_text().splitlines():
        name, moment = line.split()
        spans.setdefault(name, []).append(float(moment))
    assert spans["a_timed"][0] > max(spans["b"][1], spans["c"][1])


def test_an_interruption_keeps_what_there_is(tmp_path):
    write(tmp_path, "a_quick")
    write(tmp_path, "b_slow", "open('started', 'w').close(); time.sleep(120)")
    out = tmp_path / "out"

    def interrupt():
        deadline = time.monotonic() + 60
        while not (out / "started").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)  # SIGINT is ignored in some background shells

    thread = threading.Thread(target=interrupt)
    thread.start()
    began = time.monotonic()
    report = run_report(out, folder=tmp_path, jobs=1)
    thread.join()
    assert report.interrupted
    assert not report.holds
    assert time.monotonic() - began < 60
    assert {r["name"]: r["status"] for r in report.results} == {"a_quick": "finished", "b_slow": "interrupted"}
    slow = json.loads((out / "b_slow.json").read_text())
    assert [c["status"] for c in slow["claims"]] == ["SAMPLED", "NOT REACHED"]
    assert "looking at" in slow["printed"]  # it was given the time to write its own end
    assert "b_slow" in report.path.read_text()


@pytest.mark.slow
def test_what_still_runs_elsewhere_is_not_told(tmp_path):
    write(tmp_path, "a")
    write(tmp_path, "b")
    out = tmp_path / "out"
    assert len(run_report(out, folder=tmp_path).results) == 2
    stored = json.loads((out / "b.json").read_text())
    (out / "b.json").write_text(json.dumps(stored | {"status": "running"}))
    assert [r["name"] for r in run_report(out, folder=tmp_path, only=["a"]).results] == ["a"]


def test_a_missing_figure_and_what_is_taken_for_granted_are_told(tmp_path):
    result = {"name": "x", "question": "is it?", "about": "", "status": "finished", "error": None, "claims": [],
              "answer": "", "figures": [{"file": "x.png", "caption": "c"}], "command": "", "seed": 0, "started": "",
              "seconds": 1, "quick": False, "machine": {}, "versions": {}, "printed": ""}  # fmt: skip
    assert "The figure x.png is missing." in render([result], tmp_path)
    claim = {"key": "k", "statement": "It is.", "holds": True, "status": "PROVED", "method": "exact", "numbers": {},
             "assumptions": ["ε > 0 & P ≻ 0"]}  # fmt: skip
    assert "<li>ε &gt; 0 &amp; P ≻ 0</li>" in render([result | {"claims": [claim]}], tmp_path)
    assert write_page(tmp_path / "r.html", [result]).is_file()
    assert not list(tmp_path.glob("*.part"))


def test_the_shipped_analyses_state_their_questions():
    found = {a.name: a for a in find_scripts()}
    assert {"lyapunov_decay", "no_certificate", "stopping_calibration", "composition", "safe_generation"} <= set(found)
    assert {"accelerated_generation", "density_feedback", "holds_the_density", "scaling"} <= set(found)
    assert "report" not in found
    assert all(a.question.endswith("?") and all(s.endswith(".") for s in a.claims.values()) for a in found.values())
    assert [a.name for a in found.values() if a.alone] == ["scaling"]


@pytest.mark.slow
def test_the_command_lists_and_runs(tmp_path, monkeypatch):
    write(tmp_path, "fine")
    write(tmp_path, "wrong", last="False")
    monkeypatch.setattr("ctrlgen.report.run._shipped", lambda: tmp_path)
    listed = CliRunner().invoke(main, ["report", "--list"])
    assert listed.output.splitlines()[:2] == ["fine: is it small?", "  It is small."]
    out = str(tmp_path / "out")
    good = CliRunner().invoke(main, ["report", "--out", out, "--only", "fine"])
    assert good.exit_code == 0
    assert "2 of 2 claims hold" in good.output
    bad = CliRunner().invoke(main, ["report", "--out", out])
    assert bad.exit_code == 1
    assert "FAILS" in bad.output


def test_the_script_is_the_command():
    script = find_scripts()[0].path.parent / "report.py"
    done = subprocess.run([sys.executable, str(script), "--list"], check=False, capture_output=True, text=True)
    assert "lyapunov_decay: " in done.stdout
