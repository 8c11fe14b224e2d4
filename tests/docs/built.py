"""Where the documentation lies, how its site is built, and what is read from the pages of a site."""

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "ctrlgen" / "docs"
PAGES = sorted(p for p in DOCS.rglob("*.md") if "_generated" not in p.relative_to(DOCS).parts)
HOSTS = {"arxiv.org", "github.com", "pradyunsg.me", "www.sphinx-doc.org"}  # the last three: of the theme's own footer
NOTE = (  # what a page with generated parts says in its source, and not on the site
    "This page is read best on the built site: its figures and generated parts, and the gallery, the models and the "
    'API that it links to, are made by `pip install ".[docs]" && python -m sphinx ctrlgen/docs site`.'
)


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
