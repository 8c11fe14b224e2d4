"""The README: short, its example and table true, its links not broken."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ctrlgen as cg
from ctrlgen import store

ROOT = Path(cg.__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, re.M | re.S)
TABLE = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TEXT.split("## What is known", 1)[1].split("\n## ", 1)[0].splitlines()
    if line.startswith("| `")
]


def test_it_is_two_screens_and_the_example_twenty_lines():
    assert len(TEXT.splitlines()) <= 90
    assert [kind for kind, _ in BLOCKS] == ["bash", "bash", "python"]
    assert len([line for line in BLOCKS[2][1].splitlines() if line.strip()]) <= 20


def test_the_example_says_what_the_readme_says(tmp_path):
    (tmp_path / "first.py").write_text(BLOCKS[2][1], encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "first.py"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    kl = np.array(re.findall(r"^t = \d: KL to the Gibbs measure = ([-\d.]+) ± 0.\d\d nats$", done.stdout, re.M), float)
    assert len(kl) == 6
    assert (np.diff(kl) < 0).all()
    assert re.search(r"status +PROVED", done.stdout)
    assert lines[-2:] == ["True", "Status.REFUTED"]
    assert (tmp_path / "closed_loop.png").stat().st_size > 10_000


def test_every_file_that_it_names_is_there():
    links = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert len(links) >= 8
    assert [link for link in links if "://" not in link and not (ROOT / link).is_file()] == []


def test_every_dependency_has_its_sentence():
    listed = re.search(r"^dependencies = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.M | re.S)
    assert listed is not None
    names = re.findall(r'"([A-Za-z0-9-]+)', listed[1])
    assert len(names) > 15
    part = TEXT.split("Each dependency has one job", 1)[1]
    assert [name for name in names if name.lower() not in part.lower()] == []


def test_the_table_has_the_shipped_models_and_the_numbers_of_their_cards():
    rows = {re.search(r"`(\w+)`", row[0])[1]: row for row in TABLE}
    assert set(rows) == {m.name for m in cg.list_models()}
    for name, row in rows.items():
        found = re.findall(r"W₂ / floor, at 5? ?T \| ([\d.]+) ± ([\d.]+)", store.load_card(name))
        shown = ", ".join(f"{float(value):.2f} ± {float(error):.2f}" for value, error in found)
        assert row[-1] == f"SAMPLED {shown}", name


@pytest.mark.slow
@pytest.mark.parametrize("row", TABLE, ids=lambda row: row[0])
def test_the_table_is_what_the_analysis_finds(row):
    judged = runpy.run_path(str(ROOT / "analysis" / "shipped_models.py"))["judged"]
    name, decay, rate, contracts, flow, _ = row
    energy, verdict, found = judged(re.search(r"`(\w+)`", name)[1], quick=True)
    assert found["ρ* exists"][0].name == decay
    assert found["V̇ = -εI"][0].name == decay
    assert found["gradient flow keeps ρ*"][0].name == flow
    assert verdict.status.name == rate.split()[0]
    if energy.dim == 2:
        assert found["contracts"][0].name == contracts
        assert float(rate.split()[1]) == pytest.approx(verdict.measured.value, abs=6e-4)
        clear = verdict.measured.value > 2 * verdict.measured.error
        assert ("±" in rate) is not clear
