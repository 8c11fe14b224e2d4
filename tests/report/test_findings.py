"""What an analysis leaves: claims with their evidence, at any time, whatever happens to it."""

import json
import subprocess
import sys

import numpy as np
import pytest

import ctrlgen as cg
from ctrlgen.report import Findings, read_script, script
from ctrlgen.report.script import BROKEN, FAILS, HOLDS, INTERRUPTED

STATEMENTS = {"small": "It is small.", "exact": "It is exact."}


def findings(folder, **arguments):
    return Findings("one", question="is it?", statements=STATEMENTS, folder=folder, **arguments)


def stored(folder, name="one"):
    return json.loads((folder / f"{name}.json").read_text())


def verdict(status, method="exact", assumptions=()):
    return cg.Verdict(claim="x ≥ 0", status=status, method=method, assumptions=assumptions)


def test_a_claim_is_in_the_file_at_once_with_what_is_not_reached(tmp_path):
    found = findings(tmp_path, seed=3, quick=True, command="python one.py")
    assert stored(tmp_path)["status"] == "running"
    assert found.claim("small", True, method="measured", numbers={"size": cg.Estimate(0.5, 0.01)})
    small, exact = stored(tmp_path)["claims"]
    assert small == {"key": "small", "statement": "It is small.", "holds": True, "status": "SAMPLED",
                     "method": "measured", "numbers": {"size": "0.5 ± 0.01"}, "assumptions": []}  # fmt: skip
    assert (exact["holds"], exact["status"]) == (False, "NOT REACHED")
    assert not found.holds
    found.claim("exact", True, method="by hand", status=cg.Status.PROVED)
    assert found.holds
    kept = stored(tmp_path)
    assert (kept["seed"], kept["quick"], kept["command"]) == (3, True, "python one.py")
    assert kept["versions"]["numpy"] == np.__version__
    assert int(kept["machine"]["cores"]) >= 1


@pytest.mark.parametrize(
    ("statuses", "also", "status", "holds"),
    [
        (["PROVED", "PROVED"], True, "PROVED", True),
        (["PROVED", "SAMPLED"], True, "SAMPLED", True),
        (["PROVED", "PROVED"], False, "SAMPLED", False),
        (["SAMPLED", "UNDECIDED"], True, "UNDECIDED", False),
        (["REFUTED", "UNDECIDED", "PROVED"], True, "REFUTED", False),
    ],
)
def test_a_claim_is_known_as_well_as_the_weakest_of_its_verdicts(tmp_path, statuses, also, status, holds):
    found = findings(tmp_path)
    assert found.verdicts("exact", [verdict(cg.Status[s]) for s in statuses], also=also) is holds
    claim = stored(tmp_path)["claims"][1]
    assert (claim["status"], claim["holds"], claim["method"]) == (status, holds, "exact")


def test_what_verdicts_assume_is_told_once_and_proved_numbers_are_not_rounded(tmp_path):
    found = findings(tmp_path)
    every = [verdict(cg.Status.PROVED, assumptions=a) for a in (("ε > 0", "P ≻ 0"), ("P ≻ 0",))]
    found.verdicts("exact", every, numbers={"rate": 0.08987883546764044})
    claim = stored(tmp_path)["claims"][1]
    assert claim["assumptions"] == ["ε > 0", "P ≻ 0"]
    assert claim["numbers"] == {"rate": "0.08987883546764044"}


def test_contradictions_and_slips_are_refused(tmp_path):
    found = findings(tmp_path)
    with pytest.raises(KeyError, match="none of the claims of one: small, exact"):
        found.claim("large", True, method="")
    with pytest.raises(ValueError, match="cannot be PROVED and not hold"):
        found.claim("exact", False, method="", status=cg.Status.PROVED)
    with pytest.raises(ValueError, match="cannot be UNDECIDED and hold"):
        found.claim("exact", True, method="", status=cg.Status.UNDECIDED)
    with pytest.raises(TypeError, match="holds must be a bool; got nan"):
        found.claim("exact", float("nan"), method="")
    with pytest.raises(TypeError, match="also must be a bool; got nan"):
        found.verdicts("exact", verdict(cg.Status.PROVED), also=float("nan"))
    with pytest.raises(ValueError, match="no verdict"):
        found.verdicts("exact", [])
    with pytest.raises(TypeError, match="must be a number"):
        found.claim("exact", True, method="", numbers={"what": object()})
    found.claim("exact", False, method="")
    with pytest.raises(ValueError, match="answered before"):
        found.claim("exact", True, method="")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1234567, "1\u202f234\u202f567"), (0.123456, "0.1235"), (np.float32(2.0), "2"), (True, "yes"),
        ("as is", "as is"), ([1, 2.5], "1, 2.5"), (float("inf"), "∞"), (float("nan"), "not known"),
        (cg.Status.PROVED, "PROVED"),
    ],
)  # fmt: skip
def test_numbers_read_well(tmp_path, value, text):
    found = findings(tmp_path)
    found.claim("small", True, method="", numbers={"it": value})
    assert stored(tmp_path)["claims"][0]["numbers"] == {"it": text}


def test_a_figure_lies_beside_the_file(tmp_path):
    found = findings(tmp_path)
    axes = cg.plot.figure()[0, 0]
    found.figure(axes.figure, "What is\n  seen.")
    found.figure(axes.figure, "Drawn again.")
    found.figure(axes.figure, "Another.", suffix="-two")
    assert stored(tmp_path)["figures"] == [
        {"file": "one.png", "caption": "Drawn again."}, {"file": "one-two.png", "caption": "Another."},
    ]  # fmt: skip
    assert (tmp_path / "one-two.png").read_bytes().startswith(b"\x89PNG")


SCRIPT = '''"""Question: is it small?

It is looked at.

Run: python analysis/asked.py --seed 0 [--quick]
"""

import os
import signal
import sys
import time

import ctrlgen as cg

ALONE = {alone}
CLAIMS = {{
    "small": "It is small.",
    "last": "It is the last.",
}}


def analyse(options, found):
    print("looking at seed", options.seed, options.quick)
    found.claim("small", True, method="measured")
    {action}
    found.claim("last", {last}, method="measured")
    return "It is."


if __name__ == "__main__":
    sys.exit(cg.report.script(__file__, analyse, extend=lambda p: p.add_argument("--more-of-it", type=int, default=0)))
'''


def write(folder, name="asked", action="pass", last="True", alone="False"):
    path = folder / f"{name}.py"
    path.write_text(SCRIPT.format(action=action, last=last, alone=alone))
    return path


def test_a_script_is_read_without_being_run(tmp_path):
    analysis = read_script(write(tmp_path, action="raise SystemExit", alone="True"))
    assert (analysis.name, analysis.question, analysis.about) == ("asked", "is it small?", "It is looked at.")
    assert analysis.claims == {"small": "It is small.", "last": "It is the last."}
    assert analysis.alone


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('"""Is it?"""\nCLAIMS = {"a": "b"}\n', 'begins with "Question:"'),
        ('"""Question: is it?"""\nCLAIMS = {}\n', "table CLAIMS"),
        ('"""Question: is it?"""\nx = 1\nCLAIMS = {"a": f"{x}"}\n', "literal strings"),
    ],
)
def test_a_script_without_question_or_claims_is_refused(tmp_path, text, message):
    (tmp_path / "bad.py").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_script(tmp_path / "bad.py")


def run(path, out, *arguments):
    command = [sys.executable, str(path), "--out", str(out), *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True)


@pytest.mark.slow
def test_a_script_answers_with_its_exit_code(tmp_path):
    done = run(write(tmp_path), tmp_path / "good", "--seed", "4", "--quick", "--more-of-it", "2")
    kept = stored(tmp_path / "good", "asked")
    assert done.returncode == HOLDS
    assert kept["command"] == "python analysis/asked.py --seed 4 --quick --more-of-it 2"
    assert (kept["status"], kept["answer"], kept["seed"], kept["quick"]) == ("finished", "It is.", 4, True)
    assert "looking at seed 4 True" in kept["printed"]
    assert "looking at seed 4 True" in done.stdout
    assert "holds  SAMPLED   It is small. [measured]" in done.stdout
    assert run(write(tmp_path, last="False"), tmp_path / "bad").returncode == FAILS
    assert "FAILS" in stored(tmp_path / "bad", "asked")["printed"]


@pytest.mark.parametrize(
    ("action", "code", "status"),
    [
        ("raise RuntimeError('lost its way')", BROKEN, "failed"),
        ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(30)", INTERRUPTED, "interrupted"),
        pytest.param("raise KeyboardInterrupt", INTERRUPTED, "interrupted", marks=pytest.mark.slow),
    ],
)
def test_what_was_found_before_the_end_is_kept(tmp_path, action, code, status):
    done = run(write(tmp_path, action=action), tmp_path)
    kept = stored(tmp_path, "asked")
    assert done.returncode == code
    assert kept["status"] == status
    assert [c["status"] for c in kept["claims"]] == ["SAMPLED", "NOT REACHED"]
    assert "looking at" in kept["printed"]
    assert ("lost its way" in (kept["error"] or "")) == (status == "failed")


def test_an_analysis_runs_in_a_function_as_well(tmp_path, capsys):
    def analyse(options, found):
        found.claim("small", True, method="")
        found.claim("last", options.quick, method="")
        return "Done."

    path = write(tmp_path)
    assert script(path, analyse, ["--out", str(tmp_path), "--quick"]) == HOLDS
    assert script(path, analyse, ["--out", str(tmp_path)]) == FAILS
    assert "Done." in capsys.readouterr().out
