"""Which engine decides: the order, the reasons, whose failures are words, and bounds that never exceed the truth."""

import sys
import types
from fractions import Fraction

import numpy as np
import pytest
import sympy as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from ctrlgen.prove import decide as module
from ctrlgen.prove.claim import Claim, Deadline, Outcome, Status
from ctrlgen.prove.decide import best_bound, candidates, check_method, check_timeout, decide, shorten

R = sp.Rational
X, Y = sp.symbols("x y", real=True)
FIXED = settings(max_examples=300, derandomize=True, deadline=None, database=None)


def claim(body, box=None, *, strict=False, states=(X,), **more):
    box = tuple((R(a), R(b)) for a, b in box) if box else ()
    sides = tuple(g for s, (a, b) in zip(states, box, strict=False) for g in (s - a, b - s))
    return Claim(
        text=str(body), states=states, matrix=sp.Matrix([[body]]), strict=strict, guards=sides, box=box, **more
    )


EASY = claim(X**2 + 1)
CURVED = claim(sp.exp(X), [(-1, 1)])


@pytest.fixture
def engines(monkeypatch):
    """Engines that answer as told, and a list of who was asked, with the time that each had."""
    asked = []

    def install(**answers):
        for name in ("search", "exact", "smt", "interval"):
            fake = types.ModuleType(f"ctrlgen.prove.{name}")

            def answer(made, deadline, name=name):
                asked.append((name, deadline.left()))
                told = answers.get(name, f"{name} does not know")
                if isinstance(told, BaseException):
                    raise told
                if isinstance(told, str):
                    return Outcome(status=Status.UNDECIDED, method=name, reason=told)
                return told

            fake.decide = answer
            monkeypatch.setitem(sys.modules, f"ctrlgen.prove.{name}", fake)
        return asked

    return install


def proof(name, **more):
    return Outcome(status=Status.PROVED, method=name, **more)


# The order ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "order"),
    [(EASY, ["search", "exact", "smt", "interval"]), (CURVED, ["search", "exact", "interval", "smt"])],
    ids=["polynomial", "not rational on a box"],
)
def test_every_engine_is_asked_in_turn_and_says_why(engines, made, order):
    asked = engines()
    outcome = decide(made, "auto", Deadline(5))
    assert [name for name, _ in asked] == order
    assert outcome.status is Status.UNDECIDED
    assert outcome.method == "auto"
    assert outcome.reason == " | ".join(f"{name}: {name} does not know" for name in order)


def test_engines_that_were_short_of_time_are_asked_again(engines):
    asked = engines(exact="time-out", interval="12 boxes left when the time was over.")
    decide(EASY, "auto", Deadline(5))
    assert [name for name, _ in asked] == ["search", "exact", "smt", "interval", "exact", "interval"]


def test_the_first_answer_stands(engines):
    asked = engines(exact=proof("exact"))
    assert decide(EASY, "auto", Deadline(5)).method == "exact"
    assert [name for name, _ in asked] == ["search", "exact"]
    asked.clear()
    engines(search=Outcome(status=Status.REFUTED, method="search", witness=(R(0),)), exact=proof("exact"))
    outcome = decide(EASY, "auto", Deadline(5))
    assert outcome.status is Status.REFUTED
    assert [name for name, _ in asked] == ["search"]


def test_samples_decide_nothing(engines):
    engines(search=Outcome(status=Status.SAMPLED, method="search", reason="looked fine"))
    assert decide(EASY, "auto", Deadline(5)).status is Status.UNDECIDED


def test_the_margin_of_the_search_is_kept(engines):
    seen = Outcome(status=Status.UNDECIDED, method="search", reason="no violation", margin=0.25)
    engines(search=seen, exact=proof("exact"))
    assert decide(EASY, "auto", Deadline(5)).margin == 0.25
    engines(search=seen, exact=proof("exact", margin=0.1))
    assert decide(EASY, "auto", Deadline(5)).margin == 0.1
    engines(search=seen)
    assert decide(EASY, "auto", Deadline(5)).margin == 0.25


def test_an_engine_by_name_is_asked_alone(engines):
    asked = engines()
    outcome = decide(EASY, "smt", Deadline(5))
    assert [name for name, _ in asked] == ["smt"]
    assert (outcome.method, outcome.reason) == ("smt", "smt does not know")


def test_every_engine_gets_a_part_of_the_time(engines):
    asked = engines()
    decide(EASY, "auto", Deadline(10))
    left = dict(asked)
    assert 1.5 < left["search"] <= 2.0
    assert all(0 < t <= 10 for t in left.values())
    assert left["interval"] > left["smt"]


def test_when_the_time_is_over_nobody_is_asked(engines):
    asked = engines()
    outcome = decide(EASY, "auto", Deadline(0))
    assert asked == []
    assert outcome.status is Status.UNDECIDED
    assert outcome.reason.count("not asked, the time was over") == 4


# Failures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        ValueError("the cone is not a cone"),
        TypeError("what is this"),
        ZeroDivisionError("by nothing"),
        NotImplementedError("later"),
        RuntimeError("broken"),
        RecursionError("too deep"),
        MemoryError("too much"),
        OverflowError("too large"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_an_engine_that_fails_is_undecided_in_its_own_words(engines, error):
    asked = engines(exact=error)
    outcome = decide(EASY, "auto", Deadline(5))
    assert outcome.status is Status.UNDECIDED
    assert f"exact: {type(error).__name__}: {error}" in outcome.reason
    assert "interval" in [name for name, _ in asked]
    alone = decide(EASY, "exact", Deadline(5))
    assert (alone.status, alone.method) == (Status.UNDECIDED, "exact")
    assert str(error) in alone.reason


def test_an_interrupt_is_no_answer(engines):
    engines(exact=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        decide(EASY, "auto", Deadline(5))


@pytest.mark.parametrize("method", ["sos", "", "Exact", None, 3])
def test_a_method_that_is_none(method):
    for ask in (lambda: check_method(method), lambda: decide(EASY, method, Deadline(1))):
        with pytest.raises(ValueError, match="method must be one of 'auto', 'search', 'exact', 'smt', 'interval'; got"):
            ask()


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), "long", None])
def test_a_timeout_that_is_none(timeout):
    with pytest.raises(ValueError, match="timeout must be a positive number of seconds; got"):
        check_timeout(timeout)


def test_timeouts_become_deadlines():
    assert 1.5 < check_timeout(2).left() <= 2
    assert check_timeout(np.float64(3.0)).left() > 2
    assert check_timeout(float("inf")).left() > 1e6


def test_real_engines_agree():
    true, false = claim(X**2 - X + 1, [(-2, 2)], strict=True), claim(X**2 - X, [(-2, 2)])
    for method in ("auto", "exact", "smt", "interval"):
        assert decide(true, method, Deadline(10)).status is Status.PROVED
    for method in ("auto", "search", "smt", "interval"):
        outcome = decide(false, method, Deadline(10))
        assert outcome.status is Status.REFUTED
        (x,) = outcome.witness
        assert x**2 - x < 0


# Bounds ------------------------------------------------------------------------------------------------------


@FIXED
@given(st.floats(allow_nan=False, allow_infinity=False, width=64), st.integers(1, 17))
def test_shorten_rounds_down_to_so_many_digits(value, digits):
    out = shorten(value, digits)
    exact = Fraction(value)
    out_fraction = Fraction(int(out.p), int(out.q))
    assert out_fraction <= exact
    assert exact - out_fraction <= Fraction(10) ** (1 - digits) * abs(exact)
    shown = sp.Abs(out)
    assert out == 0 or len(str(int(shown * 10**400)).rstrip("0")) <= digits + 1


@pytest.mark.parametrize("value", [1e-5, 0.001, 0.1, 1.0, 10.0, 1000.0, 1e22, -0.1, -1e-3, 0.3, 2.304477565])
def test_shorten_at_powers_of_ten(value):
    out = shorten(value)
    assert Fraction(int(out.p), int(out.q)) <= Fraction(value)
    assert abs(float(out) - value) <= 2e-11 * abs(value)


@FIXED
@given(st.floats(-1e6, 1e6, allow_nan=False), st.sampled_from([None, 1.0, 1e-3, 1e3]))
def test_candidates_fall_from_the_estimate(estimate, scale):
    tried = list(candidates(estimate, scale))
    size = max(abs(estimate), scale or 0, 1e-12)
    assert (
        float(tried[0]) <= estimate + 1e-7 * size
    )  # a simple number close by may be above: it is to be proved as well
    rest = tried[-len(module.STEPS) :]
    assert rest == sorted(rest, reverse=True)
    assert all(Fraction(int(t.p), int(t.q)) <= Fraction(estimate) for t in rest)
    assert float(rest[-1]) <= estimate - 0.49 * size


def test_simple_numbers_come_first():
    assert next(iter(candidates(-0.75 - 1e-9))) == R(-3, 4)
    assert next(iter(candidates(1 / 3))) == R(1, 3)
    assert next(iter(candidates(np.e))) == shorten(np.e)


@settings(max_examples=8, derandomize=True, deadline=None, database=None)
@given(
    st.fractions(-3, 3, max_denominator=6),
    st.fractions(-9, 9, max_denominator=30),
    st.sampled_from([0, 1e-9, 1e-6, 0.03, -1e-3]),
)
def test_a_bound_is_never_above_the_truth(place, least, error):
    """The minimum of (x - a)⁴ + (x - a)² + m is m; the estimate of it is off by a little, or by much."""
    a, m = R(place), R(least)
    body = (X - a) ** 4 + (X - a) ** 2 + m
    value, made, outcome = best_bound(
        lambda b: claim(sp.expand(body - b)), float(m) + error, "auto", Deadline(1), scale=1.0
    )
    assert value is not None
    assert value <= m
    assert value >= m - abs(error) - R(1, 50)  # the steps are 1, 5 and 20 per cent
    assert outcome.status is Status.PROVED
    assert outcome.certificate.recheck()
    assert sp.expand(made.expr - (body - value)) == 0


@pytest.mark.parametrize("method", ["exact", "smt", "interval"])
def test_bounds_by_one_engine(method):
    value, _, outcome = best_bound(lambda b: claim(X**2 - X - b, [(-1, 1)]), -0.25, method, Deadline(5))
    assert outcome.method == method
    assert -R(26, 100) < value <= -R(1, 4)


def test_transcendental_bounds_are_below_the_truth():
    value, _, outcome = best_bound(lambda b: claim(sp.cos(X) - b, [(-1, 1)]), float(np.cos(1.0)), "auto", Deadline(10))
    assert outcome.status is Status.PROVED
    assert R(54, 100) < value
    assert sp.N(value - sp.cos(1), 40) <= 0


def test_values_not_worth_proving_are_not_tried(engines):
    asked = engines()
    value, made, outcome = best_bound(lambda b: claim(X**2 - b), 1.0, "exact", Deadline(5), least=5.0)
    assert (value, made, asked) == (None, None, [])
    assert outcome.reason == "no candidate was tried"


def test_where_nothing_is_proved_the_last_words_are_kept(engines):
    engines(exact="it was too hard")
    value, made, outcome = best_bound(lambda b: claim(X**2 - b), 1.0, "exact", Deadline(5))
    assert value is None
    assert made is not None
    assert outcome.reason == "it was too hard"


def test_bounds_need_a_method():
    with pytest.raises(ValueError, match="method must be one of"):
        best_bound(lambda b: claim(X**2 - b), 0.0, "sos", Deadline(1))
