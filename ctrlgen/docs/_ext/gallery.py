"""The gallery: a page an analysis, made of what its last full run left in `analysis/results`, and an index of all.

A script without a result, or a result without its script, has a page that says so. Texts come from files: every
character that reStructuredText could read as markup is escaped.
"""

from __future__ import annotations

import ast
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from texts import literal, one_line, plain, title, write

THUMBNAIL = 480  # pixels across


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What is known of one analysis.

    Args:
        name: of the script, without its ending.
        question: it asks; of the result where there is one.
        script: its file, or None.
        result: the content of its JSON file, or None.
        folder: where the result's figures are.
    """

    name: str
    question: str
    script: Path | None
    result: dict[str, Any] | None
    folder: Path

    @property
    def figures(self) -> list[tuple[Path, str]]:
        """(file, caption) of those figures that are there."""
        told = [] if self.result is None else self.result.get("figures", [])
        return [(self.folder / Path(f["file"]).name, f["caption"]) for f in told]

    @property
    def state(self) -> str:
        """In a few words: how it ended and how many of its claims hold."""
        if self.result is None:
            return "no stored result"
        claims = self.result["claims"]
        counted = f"{sum(bool(c['holds']) for c in claims)} of {len(claims)} claims hold"
        return counted if self.result["status"] == "finished" else f"{self.result['status']}; {counted}"


def read_entries(scripts: Path, results: Path) -> list[Entry]:
    """Every script that asks a question, and every stored result, by name.

    Raises:
        ValueError: a result cannot be read, or lacks a field; the message says which.
    """
    questions = {path.stem: (path, asked) for path in sorted(scripts.glob("*.py")) if (asked := _question(path))}
    stored = {path.stem: _read(path) for path in sorted(results.glob("*.json"))}
    entries = []
    for name in sorted({*questions, *stored}):
        script, asked = questions.get(name, (None, name))
        result = stored.get(name)
        question = result["question"] if result and result["question"] else asked
        question = question[:1].upper() + question[1:]
        entries.append(Entry(name=name, question=question, script=script, result=result, folder=results))
    return entries


def _question(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    first = " ".join(text.split("\n\n")[0].split())
    return first.removeprefix("Question:").partition(" Run: ")[0].strip() if first.startswith("Question:") else ""


def _read(path: Path) -> dict[str, Any]:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name} must be a JSON file of an analysis: {error}.") from None
    missing = {"question", "status", "claims", "command", "seed", "quick"} - set(result)
    if missing:
        raise ValueError(f"{path.name} must be a JSON file of an analysis; it lacks {', '.join(sorted(missing))}.")
    return result


def render_entry(entry: Entry) -> str:
    """The page of one analysis."""
    lines = title(entry.question)
    if entry.result is None:
        lines += [
            f"There is no stored result of this analysis: it has not been part of a full run whose results are kept. "
            f"``python analysis/{entry.name}.py`` runs it.",
            "",
        ]
    else:
        lines += _result(entry, entry.result)
    lines += title("The script", 1)
    if entry.script is None:
        lines += ["The script of this result is no longer there.", ""]
    else:
        lines += [f".. literalinclude:: {entry.name}.txt", "   :language: python", ""]
    return "\n".join(lines)


def _result(entry: Entry, result: dict[str, Any]) -> list[str]:
    lines = []
    for paragraph in result.get("about", "").split("\n\n"):
        lines += [plain(paragraph), ""]
    lines += [f"**{plain(result['answer'])}**", ""] if result.get("answer") else []
    if result["status"] != "finished":
        lines += [
            ".. warning::",
            "",
            f"   This analysis is {plain(result['status'])}: what it had found until then is below.",
            "",
        ]
        lines += [f"   {line}".rstrip() for line in literal(result.get("error") or "")]
        lines.append("")
    if result["quick"]:
        lines += [".. note::", "", "   This is a short run (``--quick``), with smaller numbers of everything.", ""]
    lines += title("Claims", 1)
    for claim in result["claims"]:
        lines += _claim(claim)
    for path, caption in entry.figures:
        if path.is_file():
            lines += [f".. figure:: {path.name}", f"   :alt: {one_line(caption)}", "", f"   {plain(caption)}", ""]
        else:
            lines += [f"The figure {plain(path.name)} is missing. It shows: {plain(caption)}", ""]
    lines += title("How to run it again", 1) + literal(result["command"], "bash") + _facts(result)
    if result.get("printed"):
        lines += title("What it printed", 1) + literal(result["printed"])
    return lines


def _claim(claim: dict[str, Any]) -> list[str]:
    verdict = "holds" if claim["holds"] else "does not hold"
    lines = [f".. container:: claim {'holds' if claim['holds'] else 'fails'}", ""]
    lines += [f"   {badge(claim['status'])} {plain(claim['statement'])} *{verdict}*", ""]
    lines += [f"   By {plain(claim['method'])}.", ""] if claim.get("method") else []
    if claim.get("numbers"):
        lines += ["   .. list-table::", "      :class: numbers", ""]
        for label, value in claim["numbers"].items():
            lines += [f"      * - {plain(label)}", f"        - {plain(value) or '–'}"]
        lines.append("")
    if claim.get("assumptions"):
        lines += ["   Taken for granted:", "", *(f"   * {plain(a)}" for a in claim["assumptions"]), ""]
    return lines


def badge(status: str) -> str:
    """A status as a coloured word; the colour says nothing that the word does not."""
    known = status if status in ("PROVED", "SAMPLED", "REFUTED", "UNDECIDED") else "NOT-REACHED"
    return f":{known.lower()}:`{plain(status)}`"


def _facts(result: dict[str, Any]) -> list[str]:
    facts = {"seed": result["seed"], "started": result.get("started", ""), "took": f"{result.get('seconds', '?')} s"}
    facts |= result.get("machine", {}) | result.get("versions", {})
    lines = [".. list-table::", "   :class: numbers", ""]
    for label, value in facts.items():
        lines += [f"   * - {plain(label)}", f"     - {plain(value) or '–'}"]
    return [*lines, ""]


def render_index(entries: list[Entry]) -> str:
    """The index: a card an analysis, and the order of the pages."""
    lines = [*title("Gallery of analyses"), ABOUT, ""]
    if all(entry.result is None for entry in entries):
        lines += [
            ".. note::",
            "",
            "   No results are stored in ``analysis/results``; each page shows its script alone.",
            "",
        ]
    lines += [".. container:: cards", ""]
    for entry in entries:
        lines += ["   .. container:: card", ""]
        if entry.figures and entry.figures[0][0].is_file():
            lines += [f"      .. image:: {_thumbnail_name(entry)}", f"         :alt: {one_line(entry.figures[0][1])}"]
            lines += [f"         :target: {entry.name}.html", ""]
        lines += [f"      :doc:`{title_of(entry)} <{entry.name}>`", "", f"      {plain(entry.state)}", ""]
    lines += [".. toctree::", "   :hidden:", ""]
    lines += [f"   {entry.name.replace('_', ' ').capitalize()} <{entry.name}>" for entry in entries]
    return "\n".join(lines) + "\n"


ABOUT = (
    "Each analysis is a script that asks one question, states its claims before it starts, and exits with the verdict. "
    "These pages show the last full run that is kept with the code: the claims with their verdicts, the figures, the "
    "numbers, and what runs it again. ``ctrlgen report`` runs all of them."
)


def title_of(entry: Entry) -> str:
    """The question as the text of a link."""
    return plain(entry.question).replace("<", "‹").replace(">", "›")


def _thumbnail_name(entry: Entry) -> str:
    return f"{Path(entry.figures[0][0].name).stem}.small.png"


def write_gallery(scripts: Path, results: Path, target: Path) -> list[Entry]:
    """Write all pages, figures, thumbnails and copies of the scripts.

    Args:
        scripts: the folder of the analyses.
        results: the folder of what they left; it need not exist.
        target: where to write; what is there of an earlier build and not written now is removed.
    """
    entries = read_entries(scripts, results)
    kept = {"index.rst"}
    for entry in entries:
        write(target / f"{entry.name}.rst", render_entry(entry))
        kept.add(f"{entry.name}.rst")
        if entry.script is not None:
            write(target / f"{entry.name}.txt", entry.script.read_text(encoding="utf-8"))
            kept.add(f"{entry.name}.txt")
        for k, (figure, _) in enumerate(entry.figures):
            if figure.is_file():
                shutil.copy2(figure, target / figure.name)
                kept.add(figure.name)
                if k == 0:
                    _shrink(figure, target / _thumbnail_name(entry))
                    kept.add(_thumbnail_name(entry))
    write(target / "index.rst", render_index(entries))
    for old in target.iterdir():
        if old.name not in kept:
            old.unlink()
    return entries


def _shrink(figure: Path, target: Path) -> None:
    from PIL import Image

    with Image.open(figure) as picture:
        small = picture.convert("RGB")
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        small.save(target, optimize=True)


class Badge:
    """The role of a status: its word, in a box of its colour."""

    def __init__(self, status: str):
        self.status = status

    def __call__(self, role: Any, raw: Any, text: str, *_: Any, **__: Any) -> tuple[list[Any], list[Any]]:
        from docutils import nodes

        return [nodes.inline("", nodes.unescape(text), classes=["badge", self.status])], []


def build(app: Any) -> None:
    """Write the gallery when a build begins, from the folders that the settings name."""
    write_gallery(
        Path(app.config.gallery_scripts), Path(app.config.gallery_results), Path(app.srcdir) / "_generated" / "gallery"
    )


def setup(app: Any) -> dict[str, Any]:
    """Register the settings, the roles of the badges and the hook."""
    for status in ("proved", "sampled", "refuted", "undecided", "not-reached"):
        app.add_role(status, Badge(status))
    app.add_config_value("gallery_scripts", "", "env")
    app.add_config_value("gallery_results", "", "env")
    app.connect("builder-inited", build)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
