"""The page of the energies that come with the package: their cards as they are on disk, and one table of quality."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from texts import write

COLUMNS = {
    "W₂ / floor, at T": "W₂/floor at T",
    "W₂ / floor, at 5 T": "at 5 T",
    "KL(data‖Gibbs) [nats]": "KL(data‖Gibbs) [nats]",
}
ABOUT = """# Trained energies

These come with the package: `cg.load_energy("two_moons")`. Each was trained by the command in its card, which trains
it again. Distances are those of 2000 points from noise to 2000 fresh points of the data, divided by the floor, which is
the distance of fresh points to fresh points: 1 is as near as a sample of that size can show. T is the duration that the
energy was trained for; at 5 T one sees whether the loop holds the density or drifts. Where a card has a rate of V
that is SAMPLED on a grid, it is twice the spectral gap: the rate of KL in the end (t → ∞), no bound at a finite time.
"""


def quality(card: str) -> dict[str, str]:
    """The rows of the card's table, {quantity: value}."""
    rows = re.findall(r"^\|([^|]*)\|([^|]*)\|\s*$", card, re.MULTILINE)
    return {label.strip(): value.strip() for label, value in rows}


def deeper(card: str) -> str:
    """The card with its headings one level down, for a page that has a title of its own."""
    return re.sub(r"^(#+ )", r"#\1", card, flags=re.MULTILINE)


def render() -> str:
    """The page, in Markdown."""
    import ctrlgen as cg
    from ctrlgen.store import load_card

    own = Path(cg.__file__).resolve().parents[1] / "models"  # where a build from the checkout finds them first
    shipped = [model for model in cg.list_models() if model.shipped or model.path.resolve().parent == own]
    cards = {model.name: load_card(model.path) for model in shipped}
    lines = [ABOUT, f"| model | {' | '.join(COLUMNS.values())} | size |", f"|---|{'---|' * len(COLUMNS)}---|"]
    for model in shipped:
        found = quality(cards[model.name])
        numbers = " | ".join(found.get(label, "not measured") for label in COLUMNS)
        lines.append(f"| [{model.name}](#{model.name}) | {numbers} | {model.size // 1024} KiB |")
    return "\n".join([*lines, "", *(deeper(card) for card in cards.values())])


def build(app: Any) -> None:
    """Write the page when a build begins."""
    write(Path(app.srcdir) / "_generated" / "models.md", render())


def setup(app: Any) -> dict[str, Any]:
    """Connect the hook."""
    app.connect("builder-inited", build)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
