"""Branch and bound: true claims with known margins are proved, false ones never, whatever the formula."""

import dataclasses

import pytest
import sympy as sp
from flint import arb, fmpq
from hypothesis import given, settings
from hypothesis import strategies as st

from ctrlgen.prove import boxes, interval
from ctrlgen.prove.claim import Claim, Deadline, Status

X, Y, Z = SYMBOLS = sp.symbols("x y z", real=True)
R = sp.Rational
ONE, TWO = ((-1, 1),) * 2, ((-2, 2),) * 2
VDP = sp.Matrix([-Y, X + (X**2 - 1) * Y])
VDP_V = R(3, 2) * X**2 - X * Y + Y**2
VDP_RATE = sp.expand(-(sp.Matrix([VDP_V]).jacobian([X, Y]) * VDP)[0])
PENDULUM_V = 1 - sp.cos(X) + Y**2 / 2 + Y * sp.sin(X) / 4
PENDULUM_RATE = -(sp.diff(PENDULUM_V, X) * Y + sp.diff(PENDULUM_V, Y) * (-sp.sin(X) - Y))
MOTZKIN = X**4 * Y**2 + X**2 * Y**4 + 1 - 3 * X**2 * Y**2


def claim(body, box, *, strict=True, guards=(), origin=False, **more):
    states = SYMBOLS[: len(box)]
    box = tuple((sp.sympify(a), sp.sympify(b)) for a, b in box)
    sides = tuple(g for s, (a, b) in zip(states, box, strict=True) for g in (s - a, b - s))
    matrix = body if isinstance(body, sp.MatrixBase) else sp.Matrix([[body]])
    at = (sp.S.Zero,) * len(box) if origin else None
    return Claim(
        text=str(body),
        states=states,
        matrix=matrix,
        strict=strict,
        guards=(*sides, *guards),
        box=box,
        except_at=at,
        **more,
    )


def decide(*args, seconds=20, **more):
    return interval.decide(claim(*args, **more), Deadline(seconds))


def holds_at(body, witness, box):
    """The value at the witness, after a check that the witness is in the box."""
    assert all(a <= w <= b for w, (a, b) in zip(witness, box, strict=True))
    return body.subs(dict(zip(SYMBOLS, witness, strict=False)))


TRUE = {
    "pendulum rate": (PENDULUM_RATE, ONE, {"origin": True}),
    "pendulum energy": (PENDULUM_V, ONE, {"origin": True}),
    "cubic": (2 * X**2 - 2 * X**4, ((R(-99, 100), R(99, 100)),), {"origin": True}),
    "van der Pol 2.30": (VDP_RATE, TWO, {"origin": True, "guards": (R(23, 10) - VDP_V,)}),
    "van der Pol 2.3044": (VDP_RATE, TWO, {"origin": True, "guards": (R(23044, 10000) - VDP_V,)}),
    "semidefinite": (2 * X**4 + 2 * Y**2, ONE, {"origin": True}),
    "exponential": (X**2 * sp.exp(Y) + Y**2, ONE, {"origin": True}),
    "logarithm": (sp.log(1 + X**2) + Y**2, ((-3, 3),) * 2, {"origin": True}),
    "rational": (X**2 / (1 + Y**2) + Y**4 / (2 + X), ONE, {"origin": True}),
    "tanh": (X * sp.tanh(X) + Y**2 - X * Y / 2, ((-3, 3),) * 2, {"origin": True}),
    "erf": (X * sp.erf(X) + Y**2, ONE, {"origin": True}),
    "Motzkin raised": (MOTZKIN + R(1, 1000), TWO, {}),
    "Motzkin": (MOTZKIN, TWO, {"strict": False}),
    "raised by 1e-9": ((X - R(1, 3)) ** 2 + (Y - R(1, 7)) ** 2 + R(1, 10**9), ONE, {}),
    "kernel off the axes": ((X + Y) ** 2 + (X - Y) ** 4, ONE, {"origin": True}),
    "absolute values": (sp.Abs(X) + sp.Abs(Y) + R(1, 10) - X * Y / 4, ONE, {}),
    "maximum": (sp.Max(X, -X, Y, -Y) + R(1, 10**4), ONE, {}),
    "zero line": (sp.sin(X) ** 2 * (2 + Y), ONE, {"strict": False}),
    "zero line of a polynomial": (X**2 * (2 + Y) ** 3, ONE, {"strict": False}),
    "identity": (sp.sin(X) ** 2 + sp.cos(X) ** 2 - 1, ONE, {"strict": False}),
    "sixth order at 0": (1 - sp.cos(X) - X**2 / 2 + X**4 / 24 + Y**2, ONE, {"strict": False}),
    "root": (sp.sqrt(X**2 + Y**2) + R(1, 100), ONE, {}),
    "matrix": (sp.Matrix([[2 + X**2, X * Y], [X * Y, 1 + sp.sin(Y) ** 2]]), ONE, {}),
    "matrix of three": (
        sp.Matrix([[2 + X**2 + sp.sin(Y), X * Y / 2, 0], [X * Y / 2, 2 - sp.cos(X * Y), Y / 3], [0, Y / 3, 1]]),
        ONE, {},
    ),
    "semidefinite matrix": (sp.Matrix([[1 + X**2, X], [X, X**2 / (1 + X**2)]]), ONE, {"strict": False}),
}  # fmt: skip
FALSE = {
    "van der Pol 2.31": (VDP_RATE, TWO, {"origin": True, "guards": (R(231, 100) - VDP_V,)}),
    "edge": (2 * X**2 - 2 * X**4, ((-1, 1),), {"origin": True}),
    "lowered by 1e-9": ((X - R(1, 3)) ** 2 + (Y - R(1, 7)) ** 2 - R(1, 10**9), ONE, {}),
    "touching": ((X - R(1, 3)) ** 2 + Y**2, ONE, {}),
    "tiny ball": ((X**2 + Y**2) * (X**2 + Y**2 - R(1, 10**6)), ONE, {"origin": True}),
    "negative at the hole": (X**2 + Y**2 - R(1, 10**9), ONE, {"origin": True}),
    "Motzkin lowered": (MOTZKIN - R(1, 10**6), TWO, {"strict": False}),
    "pole": (2 + 1 / X, ONE, {}),
    "saddle": (X**2 - R(1, 10**6) * Y**2, ONE, {"origin": True}),
    "cubic term": (X**2 + Y**3 + Y**4, ONE, {"origin": True}),
    "sine": (sp.sin(X) - X + X**3 / 6, ((0, 1),), {"strict": True}),
}  # fmt: skip


@pytest.mark.parametrize("name", TRUE)
def test_true_claims_are_proved(name):
    body, box, more = TRUE[name]
    outcome = decide(body, box, **more)
    assert outcome.status is Status.PROVED, outcome.reason
    assert outcome.method == "interval"
    if "identity" not in name:
        assert "boxes" in outcome.reason


@pytest.mark.parametrize("name", FALSE)
def test_false_claims_are_refuted_by_a_point(name):
    body, box, more = FALSE[name]
    outcome = decide(body, box, **more)
    assert outcome.status is Status.REFUTED, outcome.reason
    assert outcome.witness is not None
    assert all(isinstance(w, sp.Rational) for w in outcome.witness)
    value = holds_at(body, outcome.witness, box)
    assert value < 0 or (value == 0 and more.get("strict", True))
    assert all(holds_at(g, outcome.witness, box) >= 0 for g in more.get("guards", ()))
    assert outcome.margin is not None
    assert outcome.margin <= 0
    if more.get("origin"):
        assert any(outcome.witness)


def test_false_matrix_claim_has_a_witness_of_indefiniteness():
    body = sp.Matrix([[1, X], [X, X**2 - R(1, 10**6)]])
    outcome = decide(body, ONE)
    assert outcome.status is Status.REFUTED
    assert body.subs(dict(zip(SYMBOLS, outcome.witness, strict=False))).det() < 0


@pytest.mark.parametrize(
    "body",
    [1 / X**2, sp.Max(Y, sp.log(X)) + 5, sp.log(X**2) + 100, 1 / sp.sin(X) ** 2, sp.tan(2 * X) ** 2 + 1],
    ids=str,
)
def test_a_formula_with_a_pole_in_the_box_is_never_proved(body):
    assert decide(body, ONE, seconds=1).status is Status.UNDECIDED


@pytest.mark.parametrize("body", [sp.log(X) ** 2 * (2 + Y), (sp.sin(X) ** 2 + sp.cos(X) ** 2 - 1) / X], ids=str)
def test_a_weak_claim_is_not_proved_where_it_is_undefined(body):
    """The first has an even factor that is no number for x ≤ 0; the second is 0 wherever it is a number."""
    assert decide(body, ONE, seconds=1, strict=False).status is Status.UNDECIDED


@pytest.mark.parametrize(
    "body", [1 + sp.sign(X), sp.Heaviside(X - 1 / R(3)) + sp.sign(R(1, 3) - X) / 2, sp.atan2(Y, X) + 3], ids=str
)
def test_jumps_are_not_passed_over(body):
    """Each is false on one side of its jump, where the slope, 0 or small, says nothing of it."""
    assert decide(body, ONE, seconds=1).status is not Status.PROVED


def test_what_cannot_be_enclosed_is_undecided():
    assert "gamma" in decide(sp.gamma(X + 3), ONE).reason
    free = Claim(text="x² ≥ 0", states=(X,), matrix=sp.Matrix([[X**2 + 1]]), strict=False)
    outcome = interval.decide(free, Deadline(1))
    assert outcome.status is Status.UNDECIDED
    assert "unbounded" in outcome.reason


def test_a_guard_that_is_a_ball_bounds_the_set():
    ball = Claim(
        text="2 - y > 0 on an ellipse", states=(X, Y), matrix=sp.Matrix([[R(2001, 1000) - Y]]), strict=True,
        guards=(1 - X**2 - (Y - 1) ** 2 / 1,),
    )  # fmt: skip
    assert interval.decide(ball, Deadline(5)).status is Status.PROVED
    higher = dataclasses.replace(ball, matrix=sp.Matrix([[R(1999, 1000) - Y]]))
    outcome = interval.decide(higher, Deadline(5))
    assert outcome.status is Status.REFUTED
    assert outcome.witness[0] ** 2 + (outcome.witness[1] - 1) ** 2 <= 1


def test_guards_of_each_kind_restrict_the_set():
    line = claim(Y + R(1, 100), ONE, equalities=(Y - X**2,))
    assert interval.decide(line, Deadline(5)).status is Status.PROVED
    assert interval.decide(dataclasses.replace(line, equalities=()), Deadline(5)).status is Status.REFUTED
    half = claim(X, ONE, strict=False, open_guards=(X,))
    assert interval.decide(half, Deadline(5)).status is Status.PROVED
    assert (
        interval.decide(dataclasses.replace(half, open_guards=(X + R(1, 10**6),)), Deadline(5)).status is Status.REFUTED
    )


def test_an_equality_is_no_reason_to_refute():
    """x - 1/2 < 0 at most points of the box, but the only point of the set is x = √(1/2), where it is positive."""
    root = claim(X - R(1, 2), ((0, 1),), equalities=(X**2 - R(1, 2),))
    assert interval.decide(root, Deadline(5)).status is Status.PROVED


def test_the_margin_is_a_lower_bound():
    outcome = decide(X**2 + Y**2 + R(1, 4), ONE)
    assert 0 < outcome.margin <= 0.25


def test_certificate_rechecks_and_a_forged_one_does_not():
    outcome = decide(VDP_RATE, TWO, origin=True, guards=(R(23, 10) - VDP_V,))
    assert outcome.certificate.recheck()
    worse = dataclasses.replace(outcome.certificate.claim, guards=(R(24, 10) - VDP_V,))
    assert not dataclasses.replace(outcome.certificate, claim=worse).recheck()


def test_time_is_kept_and_boxes_are_counted():
    outcome = decide(MOTZKIN + R(1, 10**5) + Z**2, (*TWO, (-1, 1)), seconds=0.2)
    assert outcome.status is Status.UNDECIDED
    assert "left when the time was over" in outcome.reason


MINIMA = {
    "Goldstein-Price": (
        (1 + (X + Y + 1) ** 2 * (19 - 14 * X + 3 * X**2 - 14 * Y + 6 * X * Y + 3 * Y**2))
        * (30 + (2 * X - 3 * Y) ** 2 * (18 - 32 * X + 12 * X**2 + 48 * Y - 36 * X * Y + 27 * Y**2)),
        TWO, (), 3.0,
    ),
    "Rosenbrock": ((1 - X) ** 2 + 100 * (Y - X**2) ** 2, TWO, (), 0.0),
    "on a disc": (X + Y, TWO, (1 - X**2 - Y**2,), -(2**0.5)),
    "trigonometric": (sp.sin(X) * sp.cos(Y), ((-3, 3),) * 2, (), -1.0),
}  # fmt: skip


@pytest.mark.parametrize("name", MINIMA)
def test_minimum_is_enclosed(name):
    body, box, guards, truth = MINIMA[name]
    low, high = interval.enclose_minimum(claim(body, box, guards=guards), Deadline(5))
    assert low <= truth + 1e-15
    assert truth - 1e-15 <= high
    assert high - low <= 1e-5 * max(1.0, abs(truth))


def test_minimum_of_no_bounded_scalar_is_refused():
    with pytest.raises(ValueError, match="bounded set"):
        interval.enclose_minimum(Claim(text="", states=(X,), matrix=sp.Matrix([[X]]), strict=True), Deadline(1))


coefficients = st.integers(-3, 3)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(coefficients, min_size=6, max_size=6), st.integers(0, 4), st.integers(-1, 1))
def test_random_claims_with_a_known_minimum(c, kind, shift):
    """(u² + v² + shift·1e-9) times a positive factor: false, by as little as 1e-9 near one point, unless shift is 1."""
    a, b = R(c[0], 7), R(c[1], 5)
    u, v = X - a + R(c[2], 10) * (Y - b), Y - b + R(c[3], 10) * (X - a) ** 2
    factor = (sp.S.One, 1 + X**2, 2 + sp.sin(X * Y), sp.exp(c[4] * X / 3), 1 / (3 + Y))[kind]
    body = (u**2 + v**2 + shift * R(1, 10**9)) * factor
    outcome = decide(body, ONE, seconds=5)
    if shift == 1:
        assert outcome.status is Status.PROVED, outcome.reason
    else:
        assert outcome.status is Status.REFUTED, outcome.reason
        assert body.subs(dict(zip(SYMBOLS, outcome.witness, strict=False))) <= 0
    weak = decide(body, ONE, seconds=5, strict=False)
    assert weak.status is (Status.REFUTED if shift == -1 else Status.PROVED), weak.reason


def scalar(body, *guards, strict=True):
    """The problem body > 0 on [-1, 1]², and its root box."""
    formulas = [(kind, boxes.Formula(g, (X, Y))) for kind, g in guards]
    frame = boxes.Frame.around([fmpq(-1)] * 2, [fmpq(1)] * 2)
    problem = boxes.Scalar(boxes.Formula(body, (X, Y)), frame, formulas, strict, lambda _: False)
    return problem, (*frame.root, tuple(range(len(guards))))


@pytest.mark.parametrize(
    ("kind", "guard", "rest"),
    [
        (boxes.GE, X + 2, ()), (boxes.GE, X, (0,)), (boxes.GE, X - 2, None), (boxes.GT, X - 2, None),
        (boxes.GT, X + 2, ()), (boxes.EQ, X + 2, None), (boxes.EQ, X - 2, None), (boxes.EQ, X, (0,)),
        (boxes.EQ, sp.Max(X, 0) - sp.Max(X, 0), (0,)), (boxes.GE, 1 / X, (0,)),
    ],
)  # fmt: skip
def test_a_guard_settles_leaves_or_cuts_a_box(kind, guard, rest):
    problem, (low, high, active) = scalar(X, (kind, guard))
    assert problem.cut(problem.frame.balls(low, high), active) == rest


def test_multipliers_have_the_guards_sign():
    """x > 0 does not follow from 1/2 - x ≥ 0, though x + (1/2 - x) > 0; from the equality both signs follow."""
    problem, box = scalar(X, (boxes.GE, R(1, 2) - X))
    assert not problem.examine(*box).settled
    for equality in (X - Y, Y - X):
        problem, box = scalar(Y - X + R(1, 4), (boxes.EQ, equality))
        assert problem.examine(*box).settled
    problem, box = scalar(X + R(1, 4), (boxes.GE, X))
    assert problem.examine(*box).settled


def test_strict_means_more_than_zero():
    assert not scalar(X)[0].positive(arb(0))
    assert scalar(X, strict=False)[0].positive(arb(0))
    assert not scalar(X, strict=False)[0].positive(arb(0), 1e-9)


def test_a_zero_is_noticed_before_the_boxes_are_tiny():
    """x⁶/720 cannot be told from 0 where it is below the rounding of 1 - cos x: splitting on would take for ever."""
    flat = 1 - sp.cos(X) - X**2 / 2 + X**4 / 24 + Y**2
    box = ((2.0**-12, -(2.0**-9)), (2.0**-10, 2.0**-9), ())
    assert scalar(flat)[0].examine(*box).noise
    assert not scalar(flat - R(1, 10**9))[0].examine(*box).noise
    run = boxes.branch(scalar(flat)[0], [box], Deadline(10), 10)
    assert run.end == "stuck"


def test_a_violation_is_in_the_set():
    base = claim(1 - X, ((-2, 2),) * 2)
    formula = boxes.Formula(1 - X, (X, Y))

    def violated(x, y, *guards):
        kinds = [(kind, boxes.Formula(g, (X, Y))) for kind, g in guards]
        return boxes.violation(base, formula.sign, kinds)((fmpq(x), fmpq(y)))

    assert violated(2, 0)
    assert violated(1, 0)
    assert not violated(0, 0)
    assert not violated(3, 0)
    assert violated(2, 0, (boxes.EQ, Y), (boxes.GE, Y), (boxes.GT, 1 + Y))
    assert not violated(2, 0, (boxes.EQ, Y - 1))
    assert not violated(2, 0, (boxes.EQ, Y + 1))
    assert not violated(2, 0, (boxes.GT, Y))
    assert not violated(2, 0, (boxes.GE, Y - 1))
    assert not violated(2, 0, (boxes.GE, sp.log(Y)))


def test_subtracting_a_hole_leaves_the_rest():
    hole = ((-0.25, -0.5), (0.5, 0.25))
    pieces = boxes.subtract((-1.0, -1.0), (1.0, 1.0), hole)
    area = sum((b[0] - a[0]) * (b[1] - a[1]) for a, b in pieces)
    assert area == 4 - 0.75 * 0.75
    for a, b in pieces:
        assert a[0] >= 0.5 or b[0] <= -0.25 or a[1] >= 0.25 or b[1] <= -0.5
    assert boxes.subtract((-1.0, -1.0), (1.0, 1.0), ((2.0, 0.0), (3.0, 1.0))) == [((-1.0, -1.0), (1.0, 1.0))]


def test_an_underflow_does_not_hide_a_slope():
    tiny = arb("-1e-400")
    assert tiny < 0
    ((a, b),) = boxes.intervals([tiny], [1.0])
    assert a < 0
    assert b == 0
    assert boxes.lowest([(a, b)], [0.0], [1.0])[1] > 0 or boxes.lowest([(a, b)], [0.0], [1.0])[0] == [1.0]
