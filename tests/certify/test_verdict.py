"""Verdicts: what several steps come to, how a verdict prints itself, and what checking it again means."""

import html
import itertools
from dataclasses import dataclass, replace

import numpy as np
import pytest
import sympy as sp

import ctrlgen as cg
from ctrlgen.certify.verdict import Step, Verdict, combine
from ctrlgen.prove.claim import Claim, Outcome, Status

R = sp.Rational
X, Y = XY = sp.symbols("x y", real=True)


CLAIM = Claim(text="", states=XY, matrix=sp.Matrix([[X**2 - 1]]), strict=False)


class Certificate:
    """Says what it is told to, of the claim that `step` makes unless it is given another."""

    def __init__(self, good, claim=CLAIM, proves=Status.PROVED):
        self.good, self.claim, self.proves = good, claim, proves

    def recheck(self):
        return self.good


def step(status, *, text="x² - 1 ≥ 0", body=X**2 - 1, strict=False, **told):
    claim = Claim(text=text, states=XY, matrix=sp.Matrix([[body]]), strict=strict)
    return Step(claim, Outcome(status=status, **{"method": "exact", **told}))


def proved(good=True, **told):
    return step(Status.PROVED, certificate=Certificate(good), **told)


# What steps come to ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("statuses", itertools.product(Status, repeat=3), ids=lambda s: "-".join(x.value for x in s))
def test_a_verdict_is_as_good_as_its_worst_step(statuses):
    verdict = combine("all of it", [step(s) for s in statuses])
    if Status.REFUTED in statuses:
        assert verdict.status is Status.REFUTED
    elif set(statuses) == {Status.PROVED}:
        assert verdict.status is Status.PROVED
    else:
        assert verdict.status is Status.UNDECIDED
    assert len(verdict.steps) == 3


def test_nothing_proves_nothing():
    verdict = combine("nothing", [])
    assert (verdict.status, verdict.method, verdict.margin) == (Status.UNDECIDED, "none", None)
    assert not verdict.recheck()


def test_methods_reasons_and_margins_are_those_that_decided():
    steps = [
        step(Status.PROVED, method="exact", reason="a sum of squares", margin=0.25),
        step(Status.UNDECIDED, method="auto", reason="no time", margin=-1.0),
        step(Status.UNDECIDED, method="interval", reason="unbounded"),
    ]
    verdict = combine("both", steps)
    assert verdict.method == "auto+interval"
    assert verdict.reason == "no time; unbounded"
    assert verdict.margin == -1.0
    all_proved = combine("all", [steps[0], step(Status.PROVED, method="smt", margin=0.1), proved(method="exact")])
    assert (all_proved.method, all_proved.reason, all_proved.margin) == ("exact+smt", "", 0.1)
    refuted = step(Status.REFUTED, method="search", reason="a witness", witness=(R(1, 3), R(0)), margin=-0.5)
    broken = combine("all", [*steps, refuted])
    assert (broken.method, broken.reason, broken.margin) == ("search", "a witness", -0.5)


def test_the_first_refutation_gives_the_witness():
    steps = [
        proved(),
        step(Status.REFUTED, witness=(R(1, 3), sp.sqrt(2) / 2)),
        step(Status.REFUTED, witness=(R(5), R(6))),
    ]
    verdict = combine("two fail", steps)
    assert isinstance(verdict.witness, np.ndarray)
    assert verdict.witness.dtype == np.float64
    assert np.array_equal(verdict.witness, [1 / 3, np.sqrt(2) / 2])
    assert combine("no point", [step(Status.REFUTED)]).witness is None
    assert combine("proved", [proved()]).witness is None


def test_assumptions_are_collected_once_and_time_is_added():
    steps = [proved(assumptions=("a", "b"), seconds=0.25), proved(assumptions=("b", "c"), seconds=0.5)]
    verdict = combine("all", steps, assumptions=("z", "a"))
    assert verdict.assumptions == ("z", "a", "b", "c")
    assert verdict.seconds == 0.75


@dataclass(frozen=True, kw_only=True, repr=False)
class Levelled(Verdict):
    """A verdict with a number of its own."""

    level: float | None = None


def test_other_kinds_of_verdicts_and_overridden_fields():
    verdict = combine("all", [proved()], kind=Levelled, level=2.25, method="by hand")
    assert isinstance(verdict, Levelled)
    assert (verdict.level, verdict.method, verdict.status) == (2.25, "by hand", Status.PROVED)
    assert "level       2.25" in repr(verdict)


def test_a_verdict_has_no_truth_value():
    for status in Status:
        verdict = combine("x", [step(status)])
        with pytest.raises(TypeError, match=r"not a yes/no answer. Compare verdict.status"):
            bool(verdict)


# Checking again ----------------------------------------------------------------------------------------------


def test_a_proof_stands_if_every_certificate_does():
    assert combine("all", [proved(), proved()]).recheck()
    assert not combine("all", [proved(), proved(good=False)]).recheck()
    assert not combine("all", [proved(), step(Status.PROVED)]).recheck()


def test_a_certificate_of_another_claim_proves_nothing():
    assert not combine("all", [proved(body=-1 - X**2)]).recheck()
    assert not combine("all", [proved(strict=True)]).recheck()
    other = Claim(text="", states=XY, matrix=CLAIM.matrix, strict=False, guards=(X,))
    assert not combine("all", [step(Status.PROVED, certificate=Certificate(True, other))]).recheck()
    assert combine("all", [proved(text="the same in other words")]).recheck()


def test_a_refutation_stands_if_its_witness_does():
    good = step(Status.REFUTED, witness=(R(1, 2), R(0)))
    bad = step(Status.REFUTED, witness=(R(1), R(0)))  # x² - 1 ≥ 0 holds with equality there
    assert combine("x", [good]).recheck()
    assert not combine("x", [bad]).recheck()
    assert combine("x", [proved(good=False), bad, good]).recheck()
    assert combine("x", [step(Status.REFUTED, witness=(R(1), R(0)), strict=True)]).recheck()


def test_a_refutation_may_have_a_certificate_in_place_of_a_witness():
    assert combine("x", [step(Status.REFUTED, certificate=Certificate(True, proves=Status.REFUTED))]).recheck()
    assert not combine("x", [step(Status.REFUTED, certificate=Certificate(False, proves=Status.REFUTED))]).recheck()
    assert not combine("x", [step(Status.REFUTED, certificate=Certificate(True))]).recheck()  # it proves
    both = step(Status.REFUTED, witness=(R(2), R(0)), certificate=Certificate(True, proves=Status.REFUTED))
    assert not both.recheck()  # a witness that is none is not made good by anything else
    assert not step(Status.REFUTED).recheck()


@pytest.mark.parametrize("status", [Status.UNDECIDED, Status.SAMPLED])
def test_what_decided_nothing_has_nothing_to_check(status):
    one = step(status, certificate=Certificate(True), witness=(R(0), R(0)))
    assert not one.recheck()
    assert not combine("x", [one, proved()]).recheck()


def test_recheck_of_every_engine():
    states, box = ["x", "y"], cg.Box([-1, -1], [1, 1])
    for method in ("exact", "smt", "interval"):
        verdict = cg.nonnegative("x**2 + y**2 - x*y + 1", states, box, method)
        assert (verdict.status, verdict.method) == (Status.PROVED, method)
        assert verdict.recheck() is True
    for method in ("search", "smt", "interval"):
        verdict = cg.nonnegative("x**2 + y**2 - 3*x*y", states, box, method)
        assert (verdict.status, verdict.method) == (Status.REFUTED, method)
        assert verdict.recheck() is True
        x, y = verdict.witness
        assert x**2 + y**2 - 3 * x * y < 0


# Printing ----------------------------------------------------------------------------------------------------


def full():
    steps = [
        proved(text="V > 0", body=X**2, strict=True, reason="degree 2", margin=0.5, seconds=0.1),
        step(Status.REFUTED, text="V̇ < 0", body=X - Y, strict=True, witness=(R(-1, 8), R(1, 3)), reason="<found>"),
    ]
    return combine("V > 0 & V̇ < 0 on <the set>", steps, assumptions=["100 % of _it_"])


def test_a_verdict_says_everything_in_a_terminal():
    text = repr(full())
    lines = text.splitlines()
    assert lines[0] == "Verdict"
    names = [line[2:13].strip() for line in lines[1:]]
    assert names == ["claim", "status", "method", "assumes", "witness", "step", "step", "why", "time"]
    for words in ("V > 0 & V̇ < 0 on <the set>", "REFUTED",
                  "100 % of _it_", "-0.125", "0.33333", "V > 0: PROVED [exact]",
                  "V̇ < 0: REFUTED [exact] <found>", "0.100 s"):  # fmt: skip
        assert words in text
    assert "margin      0.25" in repr(combine("x", [proved(margin=0.25)]))


def test_long_lines_are_wrapped_and_nothing_is_lost():
    words = " ".join(f"word{k}" for k in range(80))
    text = repr(combine(words, [proved()]))
    assert all(len(line) <= 110 for line in text.splitlines())
    assert " ".join(text.split()).count("word") == 80


def test_html_is_a_table_whose_words_are_escaped():
    page = full()._repr_html_()
    assert page.startswith("<table><caption>Verdict</caption><tr>")
    assert page.endswith("</table>")
    assert page.count("<tr>") == page.count("</tr>") == 9
    assert "&lt;the set&gt;" in page
    assert "V &gt; 0 &amp; V̇ &lt; 0" in page
    for tag in ("table", "caption", "tr", "th", "td"):
        page = page.replace(f"</{tag}>", "").replace(f"<{tag}>", "")
    left = page.replace("<th style='text-align:left;vertical-align:top'>", "").replace(
        "<td style='text-align:left'>", ""
    )
    assert "<" not in left
    assert "<found>" in html.unescape(page)


def test_latex_has_the_formulas_and_the_words_escaped():
    latex = full()._repr_latex_()
    assert latex.startswith("$$\\begin{aligned}& ")
    assert latex.endswith("\\end{aligned}$$")
    assert r"x^{2} > 0 \quad \text{PROVED}" in latex
    assert r"x - y > 0 \quad \text{REFUTED}" in latex
    assert r"x = (-0.125,\ 0.333333)" in latex
    assert r"\text{assumes: 100 \% of \_it\_}" in latex
    assert latex.count("{") == latex.count("}")
    weak = combine("m", [step(Status.PROVED, text="F", margin=0.5)])._repr_latex_()
    assert r"x^{2} - 1 \ge 0" in weak
    assert r"\text{margin}\ 0.5" in weak


@pytest.mark.parametrize(("strict", "sign"), [(True, r"\succ 0"), (False, r"\succeq 0")])
def test_latex_of_matrices_and_of_their_sets(strict, sign):
    claim = Claim(
        text="M", states=XY, matrix=sp.Matrix([[1, X], [X, 2]]), strict=strict, guards=(1 - X**2,), open_guards=(Y,)
    )
    latex = combine("M", [Step(claim, Outcome(status=Status.UNDECIDED, method="smt", reason="?"))])._repr_latex_()
    assert sign in latex
    assert r"\text{where}\ 1 - x^{2} \ge 0,\ y > 0" in latex
    assert r"\begin{matrix}" in latex


def test_latex_where_there_is_no_formula():
    claim = Claim(text="network_1 > 0 & {more}", states=XY, strict=True, function=lambda x: x[0])
    latex = combine("n", [Step(claim, Outcome(status=Status.UNDECIDED, method="interval"))])._repr_latex_()
    assert r"\text{network\_1 > 0 \&  more }" in latex


def test_notebooks_and_terminals_agree_on_a_real_verdict():
    verdict = cg.nonnegative("x**2 - 1", ["x"])
    assert verdict.status is Status.REFUTED
    for text in (repr(verdict), verdict._repr_html_(), verdict._repr_latex_()):
        assert "REFUTED" in text
        assert "witness" in text


def test_a_certificate_vouches_for_its_own_answer_and_kind_of_claim_only():
    squares = cg.sum_of_squares("x**4*y**2 + x**2*y**4 + 1 - 3*x**2*y**2", ["x", "y"]).steps[0]
    assert squares.recheck()
    told = squares.outcome
    assert not Step(squares.claim, replace(told, status=Status.PROVED)).recheck()
    sign = replace(squares.claim, kind="sign")  # the polynomial is nonnegative: no functional refutes that
    assert not Step(sign, told).recheck()
    grows = cg.LyapunovFunction("x**2 + y**2", ["x", "y"]).verify(["-x", "-y"]).steps[2]
    assert grows.claim.kind == "growth"
    assert grows.recheck()
    assert not Step(replace(grows.claim, kind="sign"), grows.outcome).recheck()
    proof = cg.nonnegative("x**2", ["x"], method="exact").steps[0]
    assert not Step(proof.claim, replace(proof.outcome, status=Status.REFUTED)).recheck()
