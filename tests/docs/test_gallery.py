"""The gallery: a page for every script and every stored result, whose texts are shown as they are."""

import json

import pytest

import ctrlgen as cg
from tests.docs.built import DOCS, Reader, broken_links, build

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
