"""The site and the report as a reader sees them: opened in a headless browser, at the width of a desk and of a phone.

CTRLGEN_SITE and CTRLGEN_REPORT name a built site and a report (a page or its folder); what is not named is made here.
The browser is Chromium, from the path or from CHROMIUM; Playwright comes with the extra "browser".
"""

import json
import os
import shutil
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

import ctrlgen as cg
from tests.docs.built import build_site

pytestmark = pytest.mark.browser

SIZES = {"desk": (1280, 900), "phone": (390, 844)}
NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
STORED = Path(__file__).resolve().parents[1] / "analysis" / "results"
MISSING_IMAGES = "[...document.images].filter(i => !i.complete || i.naturalWidth === 0).map(i => i.getAttribute('src'))"
# The page itself, or the box of all its text, which the theme lets scroll where the window is narrow.
WIDER = """() => {
  for (const box of [document.documentElement, document.querySelector('.content')].filter(e => e)) {
    const room = box.clientWidth, edge = box.getBoundingClientRect().left + room + 1;
    if (box.scrollWidth > room) {
      const wide = [...box.querySelectorAll('*')].filter(e => e.getBoundingClientRect().right > edge);
      const names = wide.slice(0, 4).map(e => `${e.tagName} ${e.className} ${e.textContent.slice(0, 30)}`);
      return `${box.scrollWidth} pixels in ${room}: ${names.join(', ')}`;
    }
  }
  return null;
}"""


def executable():
    """The browser; a test that has none fails, for a page that nobody has looked at is not known to be right."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.fail("no Chromium: install it (Debian: apt-get install chromium), or set CHROMIUM to its path.")
    return found


@pytest.fixture(scope="module")
def browser():
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.fail('no Playwright: pip install "ctrlgen[browser]".')
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=executable(), args=FLAGS)
        yield running
        running.close()


def faults(page, address):
    """What is wrong with a page: errors on the console and of scripts, failed requests, missing images, overflow."""
    out = []
    listeners = {
        "console": lambda message: message.type == "error" and out.append(f"console: {message.text}"),
        "pageerror": lambda error: out.append(f"script: {error}"),
        "requestfailed": lambda request: out.append(f"request failed: {request.url}"),
        "response": lambda answer: answer.status >= 400 and out.append(f"status {answer.status}: {answer.url}"),
    }
    for event, listener in listeners.items():
        page.on(event, listener)
    page.goto(address, wait_until="load")
    page.evaluate("[...document.images].forEach(i => i.loading = 'eager')")
    page.wait_for_timeout(50)
    out += [f"no image: {source[:80]}" for source in page.evaluate(MISSING_IMAGES)]
    wider = page.evaluate(WIDER)
    out += [f"overflow: {wider}"] if wider else []
    for event, listener in listeners.items():
        page.remove_listener(event, listener)
    return out


def all_faults(browser, addresses, size):
    """{address: what is wrong there}, of those with something wrong."""
    width, height = SIZES[size]
    page = browser.new_page(viewport={"width": width, "height": height}, device_scale_factor=1)
    try:
        return {address: found for address in addresses if (found := faults(page, address))}
    finally:
        page.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    named = os.environ.get("CTRLGEN_SITE")
    folder = Path(named) if named else build_site(tmp_path_factory.mktemp("docs"))
    assert (folder / "index.html").is_file(), (
        f"CTRLGEN_SITE must be a folder with a built site; {folder} has no index.html."
    )
    return folder.resolve()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The page of a report: the one that is named, or one of the stored results, or of a made-up one."""
    named = os.environ.get("CTRLGEN_REPORT")
    if named:
        page = Path(named)
        page = next(iter(sorted(page.glob("*.html"))), page) if page.is_dir() else page
        assert page.is_file(), f"CTRLGEN_REPORT must be a report or its folder; there is none at {page}."
        return page.resolve()
    from ctrlgen.report.page import write_page

    folder = tmp_path_factory.mktemp("report")
    for file in STORED.glob("*.*") if STORED.is_dir() else ():
        shutil.copy(file, folder / file.name)
    results = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(folder.glob("*.json"))]
    return write_page(folder / "report.html", results or [made_up(folder)], quick=False)


def made_up(folder):
    """A result with everything that a page can show, some of it long."""
    ax = cg.plot.figure().ravel()[0]
    ax.plot([0, 1], [1, 0])
    ax.figure.savefig(folder / "made_up.png")
    claim = {
        "key": "a", "statement": "Each word here is" + "short" * 40, "holds": False, "status": "SAMPLED",
        "method": "grid", "numbers": {"a number with a name of some length": "0.123 ± 0.004, " * 12},
    }  # fmt: skip
    return {
        "name": "made_up", "question": "Does the page hold what it is given?", "about": "One paragraph.", "seed": 0,
        "quick": True, "command": "python analysis/made_up.py --option " + "x" * 90, "started": "", "seconds": 1.0,
        "versions": {"numpy": "2.4.0"}, "machine": {"processor": "of some make"}, "status": "failed",
        "error": "Traceback\n  " + "long " * 60, "answer": "It does.", "printed": "a line of text " * 30,
        "claims": [claim], "figures": [{"file": "made_up.png", "caption": "A line."}],
    }  # fmt: skip


@pytest.fixture
def served(site):
    """The address of the site on a server of this machine, as it would be read when it is published."""

    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, directory=str(site), **kwargs)

        def log_message(self, format, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("size", SIZES)
def test_every_page_of_the_site_is_whole(browser, site, size):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 25
    assert all_faults(browser, [page.as_uri() for page in pages], size) == {}


@pytest.mark.parametrize("size", SIZES)
def test_the_report_is_whole(browser, report, size):
    assert all_faults(browser, [report.as_uri()], size) == {}


@pytest.mark.parametrize("where", ["file", "server"])
def test_search_finds_a_page(browser, site, served, where):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    start = (site / "search.html").as_uri() if where == "file" else f"{served}/search.html"
    assert faults(page, f"{start}?q=Lyapunov") == []
    page.wait_for_selector("#search-results li a")
    found = page.eval_on_selector_all("#search-results li a", "links => links.map(a => a.getAttribute('href'))")
    assert any("control.html" in link or "density.html" in link for link in found)
    page.close()


def test_formulas_are_drawn(browser, site):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto((site / "control.html").as_uri())
    heights = page.eval_on_selector_all("math", "all => all.map(m => m.getBoundingClientRect().height)")
    assert len(heights) >= 4
    assert min(heights) > 5
    page.close()


def test_what_is_wrong_is_seen(browser, tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<!doctype html><meta charset=utf-8><title>bad</title><link rel=icon href='data:,'>"
        "<script>console.error('of its own'); setTimeout(() => { throw new Error('thrown') }, 0)</script>"
        "<img src='gone.png'><p style='width: 3000px'>wide</p>"
    )
    good = tmp_path / "good.html"
    good.write_text("<!doctype html><meta charset=utf-8><title>good</title><link rel=icon href='data:,'><p>narrow</p>")
    found = all_faults(browser, [bad.as_uri(), good.as_uri()], "desk")
    assert set(found) == {bad.as_uri()}
    told = "\n".join(found[bad.as_uri()])
    for part in ("console: of its own", "script: ", "thrown", "request failed: ", "no image: gone.png", "overflow: 30"):
        assert part in told, told


def test_without_a_browser_the_tests_fail_and_say_why(monkeypatch):
    monkeypatch.delenv("CHROMIUM", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(pytest.fail.Exception, match="install it"):
        executable()
