"""The pages as they are written: their code prints what stands below it, and what is generated is said to be."""

import contextlib
import io
import re

import pytest
from markdown_it import MarkdownIt

import ctrlgen as cg
from tests.docs.built import DOCS, NOTE, PAGES

FAST = {"index.md", "verdicts.md"}  # the others take longer than a default run should
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d*)?(?:e[+-]?\d+)?(?![\w])")


def blocks(text):
    """(code, what it must print) of each ```python block; a ```text block right after it is what it prints."""
    found = [(m.group(1), m.group(2), m.start(), m.end()) for m in BLOCK.finditer(text)]
    out = []
    for k, (kind, body, _, end) in enumerate(found):
        if kind == "python":
            after = found[k + 1] if k + 1 < len(found) else ("", "", len(text), 0)
            told = after[0] == "text" and not text[end : after[2]].strip()
            out.append((body, after[1] if told else ""))
    return out


def disagreement(expected, printed):
    """Why a printed text is not the expected one; "" where it is.

    "..." stands for anything. Whole numbers are equal, others agree to one unit of the last digit that is expected.
    Blanks may differ, for arrays are aligned.
    """
    parts = _evenly(expected).split("...")
    wanted = [number for part in parts for number in NUMBER.findall(part)]
    found = re.fullmatch(".*?".join(map(_pattern, parts)), _evenly(printed))
    if found is None:
        return f"expected\n{expected}\ngot\n{printed}"
    for want, got in zip(wanted, found.groups(), strict=True):
        mantissa, _, exponent = want.partition("e")
        unit = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2])) if "." in mantissa or exponent else 0.0
        if abs(float(want) - float(got)) > 1.001 * unit:
            return f"expected the number {want}, got {got}, in\n{printed}"
    return ""


def _pattern(part):
    """A text as a pattern with a group for each number."""
    pieces, last = [], 0
    for found in NUMBER.finditer(part):
        pieces += [re.escape(part[last : found.start()]), r"(-?\d+\.?\d*(?:e[+-]?\d+)?)"]
        last = found.end()
    return "".join([*pieces, re.escape(part[last:])])


def _evenly(text):
    return re.sub(r"(?<=\[) | (?=\])", "", " ".join(text.split()))


def _marked(path):
    name = str(path.relative_to(DOCS))
    return pytest.param(path, marks=() if name in FAST else pytest.mark.slow, id=name)


@pytest.mark.parametrize("path", map(_marked, PAGES))
def test_code_prints_what_stands_below_it(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    space = {"__name__": "page"}
    for code, expected in blocks(path.read_text(encoding="utf-8")):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(code, str(path), "exec"), space)
        assert disagreement(expected, out.getvalue()) == "", f"{path.name}:\n{code}"


def test_proved_numbers_are_cut_and_not_rounded():
    x, wells = ["x1", "x2"], cg.SymbolicEnergy("(x**2 - 1)**2 + y**2/2", ["x", "y"])
    W = cg.LyapunovFunction("1.5*x1**2 - x1*x2 + x2**2", x)
    proved = {
        "level": cg.region_of_attraction(["-x2", "x1 + (x1**2 - 1)*x2"], W, x).level,
        "rate": cg.log_sobolev(wells, temperature=0.5).constant,
        "stated": 0.9 - 2**-50,
    }
    printed = {
        ("generative.md", "level", r"PROVED up to V = ([\d.]+?)\.\.\."),
        ("cookbook/certificates.md", "level", r"PROVED V < ([\d.]+?)\.\.\."),
        ("index.md", "rate", r"at least at the rate ([\d.]+?)\.\.\."),
        ("start.md", "rate", r"at least at the rate ([\d.]+?)\.\.\."),
        ("control.md", "rate", r"PROVED α ≥ ([\d.]+?)\.\.\."),
        ("control.md", "rate", r"exp\(-([\d.]+?)\.\.\. t\)"),
        ("verdicts.md", "stated", r"PROVED ([\d.]+?)\.\.\."),
    }
    for page, name, pattern in printed:
        found = re.findall(pattern, (DOCS / page).read_text(encoding="utf-8"))
        assert len(found) == 1, (page, pattern)
        assert 0 <= proved[name] - float(found[0]) < 10.0 ** -len(found[0].partition(".")[2]), (page, found)


def test_which_pages_have_no_code():
    without = {str(p.relative_to(DOCS)) for p in PAGES if not blocks(p.read_text(encoding="utf-8"))}
    assert without == {"limits.md", "cookbook/index.md"}


@pytest.mark.parametrize(
    ("expected", "printed", "agree"),
    [
        ("KL = 0.25 ± 0.01", "KL = 0.26 ± 0.01", True),
        ("KL = 0.25 ± 0.01", "KL = 0.27 ± 0.01", False),
        ("[1.253 0.  ]", "[ 1.2539 0.    ]", True),
        ("steps 4368", "steps 4369", False),
        ("1.5e-06", "1.59e-06", True),
        ("1.5e-06", "1.7e-06", False),
        ("took ... s, PROVED", "took 0.31 s, PROVED", True),
        ("took ... s, PROVED", "took 0.31 s, SAMPLED", False),
        ("a\nb", "a", False),
        ("", "something", False),
        ("x1**2 + 3*y", "x1**2 + 3*y", True),
        ("x1**2 + 3*y", "x1**2 + 4*y", False),
    ],
)
def test_outputs_are_compared_as_the_cookbook_says(expected, printed, agree):
    assert (disagreement(expected, printed) == "") is agree


def test_blocks_are_found_with_their_outputs():
    text = "```python\na = 1\n```\n\n```text\n1\n```\nwords\n```python\nb\n```\nwords\n```text\nnot its own\n```\n"
    assert blocks(text) == [("a = 1\n", "1\n"), ("b\n", "")]


def test_a_page_with_generated_parts_says_so_where_it_is_not_built():
    """To a code host the line is a paragraph; to the site, a comment (`test_site` looks there)."""
    generated = [page for page in PAGES if "_generated/" in page.read_text(encoding="utf-8")]
    assert len(generated) > 5
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert text.count(NOTE) == (page in generated), page.name
        assert (text.split("\n\n")[1] == f"% {NOTE}") is (page in generated), page.name
        assert (f"<p>% {NOTE.partition('`')[0]}" in MarkdownIt("commonmark").render(text)) is (page in generated)


def test_docstrings_are_escaped_outside_of_code(extensions):
    markup = extensions["texts"].markup
    assert markup("|x| and x_ and a*b, hessian_lower") == r"\|x\| and x\_ and a\*b, hessian_lower"
    assert markup("`|x|` and `a_`s") == "``|x|`` and ``a_``\\ s"
    assert markup("* one *\n  more\n* two") == "* one \\*\n  more\n* two"
