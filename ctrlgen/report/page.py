"""One self-contained HTML page of what analyses found: no script, nothing fetched, figures inside."""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

TITLE = "ctrlgen: what the analyses found"
STYLE = """
:root { --ink: #1c1e21; --soft: #5b6168; --line: #d9dce0; --pale: #f5f6f8; --bad: #b3261e; --blue: #005a8f; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1rem; color: var(--ink); background: #fff;
       font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
       overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .6rem 0; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 0 0 .5rem; }
section { border-top: 2px solid var(--line); padding: 1.2rem 0; } section.bad { border-top-color: var(--bad); }
.soft, figcaption { color: var(--soft); font-size: .92rem; } a { color: var(--blue); }
ul.claims { list-style: none; margin: .8rem 0; padding: 0; }
ul.claims > li { border: 1px solid var(--line); border-left: .35rem solid #009e73; border-radius: .3rem;
                 margin: .5rem 0; padding: .5rem .8rem; }
ul.claims > li.bad { border-left-color: var(--bad); background: #fdf3f2; }
.badge { display: inline-block; border-radius: .25rem; font-size: .78rem; font-weight: 700; letter-spacing: .03em;
         margin-right: .4rem; padding: .05rem .45rem; color: #fff; background: #4a5056; white-space: nowrap; }
.PROVED { background: #00654a; } .SAMPLED { background: #005a8f; } .UNDECIDED { background: #6b5b00; }
.REFUTED, .FAILS, .NOT { background: var(--bad); }
dl { display: grid; grid-template-columns: minmax(8rem, max-content) 1fr; gap: .1rem 1rem; margin: .4rem 0 0; }
dt { color: var(--soft); } dd { margin: 0; font-variant-numeric: tabular-nums; }
figure { margin: 1rem 0; } img { display: block; max-width: 100%; height: auto; border: 1px solid var(--line); }
pre { background: var(--pale); border: 1px solid var(--line); border-radius: .3rem; font-size: .82rem; line-height: 1.4;
      margin: .5rem 0; max-width: 100%; overflow-x: auto; padding: .6rem; overflow-wrap: normal; }
code { background: var(--pale); font-size: .9em; padding: 0 .2em; } pre code { background: none; padding: 0; }
details { margin: .5rem 0; } summary { cursor: pointer; color: var(--blue); }
.table { overflow-x: auto; } table { border-collapse: collapse; font-size: .92rem; width: 100%; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .6rem .3rem 0; text-align: left; vertical-align: top; }
th { padding-top: 1.1rem; }
@media (max-width: 40rem) { dl { grid-template-columns: 1fr; } dd { margin: 0 0 .3rem 1rem; } body { padding: .7rem; } }
@media print { details { display: none; } section { break-inside: avoid; } }
"""
MEANING = (
    ("PROVED", "every step is exact: rational or ball arithmetic, or a symbolic identity"),
    ("SAMPLED", "numerical evidence: a simulation, a sample or a grid, with its error"),
    ("REFUTED", "a witness, evaluated exactly, or an exact certificate contradicts the statement"),
    ("UNDECIDED", "none of these; the statement counts as failing here"),
    ("NOT REACHED", "the analysis ended before it came to this statement"),
)


def write_page(path: str | Path, results: Iterable[dict[str, Any]], missing: Sequence[str] = ()) -> Path:
    """Write the page of some results, at once or not at all.

    Args:
        path: of the page.
        results: contents of the analyses' JSON files, in the order of the page; their figures lie beside the page.
        missing: names of analyses of which there is no result.
    """
    path, results = Path(path), list(results)
    draft = path.with_suffix(".part")
    draft.write_text(render(results, path.parent, missing), encoding="utf-8")
    os.replace(draft, path)
    return path


def render(results: list[dict[str, Any]], folder: Path, missing: Sequence[str] = ()) -> str:
    """The page as HTML; figures are read from the folder."""
    body = [f"<h1>{TITLE}</h1>", _head(results, missing), _table(results)]
    body += [_section(result, folder) for result in results]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>{TITLE}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n" + "\n".join(body) + "\n</body>\n</html>\n"
    )


def _head(results: list[dict[str, Any]], missing: Sequence[str]) -> str:
    claims = [c for r in results for c in r["claims"]]
    bad = [c for c in claims if not c["holds"]]
    broken = [r for r in results if r["status"] != "finished"]
    said = f"{len(claims) - len(bad)} of {len(claims)} claims hold, from {len(results)} analyses."
    if bad or broken:
        said += f" <strong>Failing or not reached: {len(bad)}."
        said += f" Analyses that did not come to their end: {len(broken)}.</strong>" if broken else "</strong>"
    if missing:
        said += f" <strong>Not run: {_text(', '.join(missing))}.</strong>"
    short = [r["name"] for r in results if r["quick"]]
    which = "all" if len(short) == len(results) else ", ".join(short)
    mode = f" Short version (--quick: fewer particles, coarser grids) of {_text(which)}." if short else ""
    meaning = "".join(f"<dt>{_badge(name)}</dt><dd>{_text(text)}</dd>" for name, text in MEANING)
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return (
        f"<p>{said}{mode}</p>\n<p class=soft>Sampling from a trained energy is feedback control of a density: "
        f"dX = -∇E dt + √(2ε) dW, V = KL(ρ‖ρ*), V̇ = -ε I(ρ‖ρ*). Written {now}.</p>\n"
        f"<details><summary>What the words mean</summary><dl>{meaning}</dl></details>"
    )


def _table(results: list[dict[str, Any]]) -> str:
    rows = []
    for r in results:
        rows.append(f'<tr><th colspan=2><a href="#{_text(r["name"])}">{_text(r["question"])}</a></th></tr>')
        rows += [
            f"<tr><td>{_badges(c)}</td><td>{_text(c['statement'])}</td></tr>"
            for c in sorted(r["claims"], key=lambda c: c["holds"])
        ]
    return f"<div class=table><table>{''.join(rows)}</table></div>"


def _section(result: dict[str, Any], folder: Path) -> str:
    good = result["status"] == "finished" and all(c["holds"] for c in result["claims"])
    parts = [
        f'<section id="{_text(result["name"])}"{"" if good else " class=bad"}><h2>{_text(result["question"])}</h2>'
    ]
    if result["status"] != "finished":
        parts.append(f"<p><span class='badge FAILS'>{_text(result['status'])}</span> "
                     "The analysis did not come to its end; what it had found is below.</p>")  # fmt: skip
    if result["error"]:
        parts.append(f"<pre>{_text(result['error'])}</pre>")
    parts += [f"<p class=soft>{_text(p)}</p>" for p in result["about"].split("\n\n") if p]
    parts.append("<ul class=claims>" + "".join(_claim(c) for c in result["claims"]) + "</ul>")
    if result["answer"]:
        parts.append(f"<p>{_text(result['answer'])}</p>")
    parts += [_figure(folder / f["file"], f["caption"]) for f in result["figures"]]
    parts.append(f"<p>Run again: <code>{_text(result['command'])}</code></p>")
    where = {"seed": result["seed"], "started": result["started"], "took": f"{result['seconds']} s"}
    where |= result["machine"] | result["versions"]
    items = "".join(f"<dt>{_text(k)}</dt><dd>{_text(v)}</dd>" for k, v in where.items())
    parts.append(f"<details><summary>Seed, versions and machine</summary><dl>{items}</dl></details>")
    if result["printed"]:
        parts.append(f"<details><summary>What it printed</summary><pre>{_text(result['printed'])}</pre></details>")
    return "\n".join([*parts, "</section>"])


def _claim(claim: dict[str, Any]) -> str:
    numbers = "".join(f"<dt>{_text(k)}</dt><dd>{_text(v)}</dd>" for k, v in claim["numbers"].items())
    method = f"<div class=soft>by {_text(claim['method'])}</div>" if claim["method"] else ""
    taken = "".join(f"<li>{_text(a)}</li>" for a in claim.get("assumptions", ()))
    inner = f"{_badges(claim)}{_text(claim['statement'])}{method}" + (f"<dl>{numbers}</dl>" if numbers else "")
    inner += f"<details><summary>Taken for granted</summary><ul>{taken}</ul></details>" if taken else ""
    return f"<li{'' if claim['holds'] else ' class=bad'}>{inner}</li>"


def _badges(claim: dict[str, Any]) -> str:
    fails = "" if claim["holds"] else "<span class='badge FAILS'>FAILS</span>"
    return fails + _badge(claim["status"])


def _badge(status: str) -> str:
    return f"<span class='badge {_text(status)}'>{_text(status)}</span>"


def _figure(path: Path, caption: str) -> str:
    if not path.is_file():
        return f"<p class=soft>The figure {_text(path.name)} is missing.</p>"
    data = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure><img alt="{_text(caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{_text(caption)}</figcaption></figure>"
    )


def _text(value: Any) -> str:
    return html.escape(str(value))
