"""Formulas as MathML, made when the site is built: every current browser draws it, and no script is fetched."""

from __future__ import annotations

from typing import Any

from latex2mathml.converter import convert


def inline(writer: Any, node: Any) -> None:
    """Write a formula that stands in a line."""
    _write(writer, convert(node.astext(), display="inline"))


def display(writer: Any, node: Any) -> None:
    """Write a formula that stands by itself, in a box that scrolls where the page is narrow."""
    _write(writer, f'<div class="formula" tabindex="0">{convert(node.astext(), display="block")}</div>')


def _write(writer: Any, text: str) -> None:
    from docutils.nodes import SkipNode

    writer.body.append(text)
    raise SkipNode


def setup(app: Any) -> dict[str, Any]:
    """Register the renderer under the name that conf.py asks for."""
    app.add_html_math_renderer("mathml", (inline, None), (display, None))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
