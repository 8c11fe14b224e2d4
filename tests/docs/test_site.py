"""The built site: its links lead somewhere, it fetches nothing, and every public name is on one page.

Slow tests build it, which needs the extra "docs".
"""

import inspect
import re
import zlib

import pytest

import ctrlgen as cg
from tests.docs.built import NOTE, Reader, broken_links, build_site


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return build_site(tmp_path_factory.mktemp("docs"))


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
def test_the_site_does_not_say_that_it_is_to_be_built(site):
    assert not [path for path in site.rglob("*.html") if NOTE.partition("`")[0] in Reader(path).text]


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
            names = ["Distribution", "Gaussian", "Standardised", "get", "names", *thing.names()]
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
