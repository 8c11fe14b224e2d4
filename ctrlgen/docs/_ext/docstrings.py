"""Docstrings are plain text with Unicode formulas: what reStructuredText would misread in them is escaped here.

|x| is no substitution, a * b no emphasis, x_ no link, and `name` is code. A second step, for the hand-written pages
too, makes a link of every piece of code that is exactly a public name: `KLLyapunov`, `cg.train`, `Verdict.recheck()`.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.ext.napoleon.docstring import GoogleDocstring
from sphinx.transforms import SphinxTransform
from sphinx.util.nodes import make_refnode
from texts import markup

NAME = re.compile(r"^(?:cg\.|ctrlgen\.)?([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)(?:\(\))?$")

_READ: dict[str, list[str]] = {}  # docstrings of properties between the two hooks


def process(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Before napoleon: escape, and read the sections of a property as those of a function.

    Of an attribute napoleon takes "KL, in nats: ..." for "type: ...", which is nowhere meant here; what this made of it
    is therefore put back after napoleon (`restore`).
    """
    lines[:] = markup("\n".join(lines)).split("\n")
    if what in ("attribute", "data", "property"):
        lines[:] = GoogleDocstring(lines, app.config, app, "method", name, thing, options).lines()
        _READ[name] = list(lines)


def restore(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """After napoleon: the docstring of a property as `process` had it."""
    lines[:] = _READ.pop(name, lines)


def bases(app: Any, name: str, thing: Any, options: Any, found: list[Any]) -> None:
    """Of the bases, only those that have a page."""
    known = app.config.ctrlgen_public_names
    found[:] = [base for base in found if base.__name__ in known and base.__module__.startswith("ctrlgen.")] or [object]


def without_addresses(app: Any, what: str, name: str, thing: Any, options: Any, signature: Any, returned: Any) -> Any:
    """Defaults such as <object object at 0x7f...> are said as "…": an address is no default that one can type."""
    return (re.sub(r"<[^<>]* at 0x[0-9a-f]+>", "…", signature), returned) if signature else None


class LinkNames(SphinxTransform):
    """Inline code that is exactly a public name becomes a link to its page."""

    default_priority = 400

    def apply(self, **arguments: Any) -> None:
        """Wrap each such literal in a reference; one that leads nowhere stays plain code (`unlinked`)."""
        known = self.app.config.ctrlgen_public_names
        for node in list(self.document.findall(nodes.literal)):
            found = NAME.match(node.astext())
            if not found or isinstance(node.parent, nodes.reference | addnodes.pending_xref | nodes.title):
                continue
            if found.group(1).split(".")[0] in known:
                attributes = {"refdomain": "py", "reftype": "obj", "reftarget": f"ctrlgen.{found.group(1)}"}
                link = addnodes.pending_xref("", refexplicit=True, optional=True, **attributes)
                node.replace_self(link)
                link += node


class Dashes(SphinxTransform):
    """In lists of parameters Sphinx separates names from texts by " -- ", which is meant to be a dash."""

    default_priority = 401

    def apply(self, **arguments: Any) -> None:
        """Put the dash."""
        for node in list(self.document.findall(nodes.Text)):
            if node.astext() == " -- ":
                node.parent.replace(node, nodes.Text(" – "))


def unlinked(app: Any, environment: Any, node: Any, content: Any) -> Any:
    """Exceptions are named without their module; members without a docstring have no entry and stay plain code."""
    if node.get("reftype") == "exc" and "." not in node["reftarget"]:
        found = environment.get_domain("py").find_obj(environment, None, None, node["reftarget"], "exc", 1)
        if len(found) == 1:
            _, entry = found[0]
            return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, content)
    return content if node.get("optional") else None


def setup(app: Any) -> dict[str, Any]:
    """Connect the hooks."""
    import ctrlgen

    app.add_config_value("ctrlgen_public_names", sorted(ctrlgen.__all__), "env")
    app.connect("autodoc-process-docstring", process, priority=400)
    app.connect("autodoc-process-docstring", restore, priority=600)
    app.connect("autodoc-process-bases", bases)
    app.connect("autodoc-process-signature", without_addresses)
    app.connect("missing-reference", unlinked)
    app.add_transform(LinkNames)
    app.add_transform(Dashes)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
