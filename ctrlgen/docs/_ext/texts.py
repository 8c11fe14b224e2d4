"""Plain text as reStructuredText, and pages that are written only when they change. Nothing here needs Sphinx."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

CODE = re.compile(r"(``.+?``|`[^`]+`)", re.DOTALL)
SPECIAL = re.compile(r"(^ *\* (?=\S))|([\\*|])", re.MULTILINE)
NOT_SHOWN = re.compile(r"[^\S\n]|[\x00-\x09\x0b-\x1f\x7f]")
RULES = "=-~"


def escaped(text: str) -> str:
    """Plain text as reStructuredText that reads the same; a line that begins with "* " stays an item of a list."""
    text = SPECIAL.sub(lambda found: found.group(1) or rf"\{found.group(2)}", text)
    return re.sub(r"_(?!\w)", r"\_", text)


def markup(text: str) -> str:
    """A docstring as reStructuredText: `code` becomes ``code``, all else is what it says."""
    parts = CODE.split(text)
    for k in range(1, len(parts), 2):
        code = " ".join(parts[k].strip("`").split())
        before = "\\ " if parts[k - 1][-1:] not in ("", *" \n([{'\"-/") else ""
        after = "\\ " if parts[k + 1][:1] not in ("", *" \n)]}'\".,:;!?-/") else ""
        parts[k] = f"{before}``{code}``{after}"
    parts[::2] = [escaped(part) for part in parts[::2]]
    return "".join(parts)


def one_line(text: Any) -> str:
    """Any text in one line, without control characters: for options, in which nothing is read as markup."""
    return " ".join(NOT_SHOWN.sub(" ", str(text)).split())


def plain(text: Any) -> str:
    """Any text as one line of reStructuredText that shows exactly that text."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", one_line(text))


def literal(text: Any, kind: str = "text") -> list[str]:
    """A text of several lines as it is, in a box."""
    lines = [NOT_SHOWN.sub(" ", line).rstrip() for line in str(text).strip("\n").split("\n")]
    return [f".. code-block:: {kind}", "", *(f"   {line}".rstrip() for line in lines), ""] if any(lines) else []


def title(text: str, level: int = 0) -> list[str]:
    """A heading."""
    shown = plain(text)
    return [shown, RULES[level] * max(4, 2 * len(shown)), ""]


def write(path: Path, text: str) -> None:
    """Write a page, unless it says that already: an unchanged page is not built again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
