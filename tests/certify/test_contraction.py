"""Contraction metrics: rates against eigenvalues and trajectories computed otherwise; what is false stays unproved."""

import numpy as np
import pytest
import sympy as sp
from scipy.integrate import solve_ivp
from scipy.linalg import eigh

from ctrlgen.certify.contraction import ContractionMetric, float_below
from ctrlgen.domain import Ball, Box
from ctrlgen.prove.claim import Status

X = ["x", "y"]
MOORE_GREITZER = ["-y - 1.5*x**2 - 0.5*x**3", "3*x - y"]


def linear(a):
    return lambda x: np.asarray(a) @ x


def test_derivative_is_the_textbook_one():
    metric = ContractionMetric([["1 + x**2", 0], [0, "2"]], X)
    x, y = metric.states
    change = metric.derivative(["-x + y", "-y**3"])
    assert change == sp.Matrix([[2 * x * (-x + y) - 2 * (1 + x**2), 1 + x**2], [1 + x**2, -12 * y**2]]).expand()


@pytest.mark.parametrize("seed", range(4))
def test_the_rate_of_a_linear_system_is_the_generalised_eigenvalue(seed):
    rng = np.random.default_rng(seed)
    d = 2 + seed
    root = np.round(rng.normal(size=(d, d)), 3)
    m = np.round(root @ root.T + np.eye(d), 6)
    a = np.round(rng.normal(size=(d, d)), 3)
    verdict = ContractionMetric(m, [f"x{i}" for i in range(d)]).rate(linear(a))
    expected = eigh(-(a.T @ m + m @ a) / 2, m, eigvals_only=True)[0]
    assert verdict.status is Status.PROVED
    assert verdict.rate == pytest.approx(expected, abs=1e-9)
    assert verdict.rate < verdict.refuted_at < verdict.rate + 1e-8
    assert verdict.recheck()


@pytest.mark.parametrize(
    ("f", "domain", "rate"),
    [
        (["-x - x**3", "-y"], None, 1.0),
        (["-x + sin(x)/2", "-y"], None, 0.5),
        (["-x + sin(x)/2", "-y"], Box([-1, -1], [1, 1]), 0.5),
        (["-2*x + x**3", "-3*y"], Box([-0.5, -1], [0.5, 1]), 1.25),
        (["-2*x - abs(x)", "-y - max(0, y)"], None, 1.0),
        (["x/2 - x**3", "-y"], None, -0.5),
    ],
)
def test_rates_that_are_known(f, domain, rate):
    metric = ContractionMetric(np.eye(2), X)
    verdict = metric.rate(f, domain)
    assert verdict.status is Status.PROVED
    assert verdict.rate == rate
    assert (not verdict.assumptions) == (domain is None)
    for too_much in (1e-9, 1e-3):
        assert metric.verify(f, rate + too_much, domain, timeout=10).status is Status.REFUTED
    assert metric.verify(f, rate, domain).status is Status.PROVED


def test_a_rate_by_branch_and_bound_is_below_the_sampled_infimum():
    metric = ContractionMetric([["2 + sin(x)", "y/4"], ["y/4", 2]], X)
    f, box = ["-2*x + sin(y)/4", "-2*y + cos(x)/5"], Box([-1, -1], [1, 1])
    verdict = metric.rate(f, box)
    change = sp.lambdify([metric.states], metric.derivative(f))
    m = sp.lambdify([metric.states], metric.matrix)
    grid = [(a, b) for a in np.linspace(-1, 1, 41) for b in np.linspace(-1, 1, 41)]
    least = min(eigh(-change(p) / 2, m(p), eigvals_only=True)[0] for p in grid)
    assert verdict.status is Status.PROVED
    assert least - 1e-3 < verdict.rate <= least + 1e-12
    assert verdict.recheck()
    largest = max(eigh(m(p), eigvals_only=True)[-1] for p in grid)
    smallest = min(eigh(m(p), eigvals_only=True)[0] for p in grid)
    ratio = np.sqrt(largest / smallest)
    assert ratio * (1 - 1e-12) <= verdict.distance_bound(0.0) < 1.01 * ratio


def test_a_rate_that_is_not_rational():
    metric, f = ContractionMetric(np.eye(2), X), ["-sqrt(2)*x", "-2*y"]
    verdict = metric.verify(f, sp.sqrt(2))
    assert verdict.status is Status.PROVED
    assert 0 <= sp.sqrt(2) - sp.Rational(repr(verdict.rate)) < 1e-14
    above = metric.verify(f, sp.sqrt(2) + sp.Rational(1, 10**12))
    assert above.status is Status.REFUTED
    assert above.refuted_at == pytest.approx(np.sqrt(2), abs=1e-11)
    assert above.rate is None


@pytest.mark.parametrize("method", ["exact", "smt", "interval"])
def test_every_engine_settles_numbers(method):
    box = Box([-1, -1], [1, 1])
    assert ContractionMetric([[2, 1], [1, 2]], X).verify(["-x", "-y"], 0.75, box, method).status is Status.PROVED
    assert ContractionMetric([[2, 1], [1, 2]], X).rate(["-x", "-y"], box, method).rate == pytest.approx(1, abs=1e-6)


def test_a_union_is_refused_for_two_points_of_it_need_no_path_in_it():
    metric = ContractionMetric([[1]], ["x"])
    with pytest.raises(ValueError, match="domain must be one convex set, not a union"):
        metric.rate(["-2*x + x**2"], Box([-2], [-1]) | Box([0.25], [0.5]))


# Quadratic energies ----------------------------------------------------------------------------------------------


def test_identity_and_preconditioner_of_a_quadratic_energy():
    """ẋ = -Px in the identity has rate λ_min(P); preconditioned by M = P it has rate 1 in the metric P."""
    p = np.array([[3.0, 1.0], [1.0, 2.0]])
    low, high = np.linalg.eigvalsh(p)
    plain = ContractionMetric(np.eye(2), X).rate(linear(-p))
    assert plain.rate == pytest.approx(low, abs=1e-10)
    assert plain.distance_bound(0.0) == pytest.approx(1.0, abs=1e-15)
    metric = ContractionMetric(p, X)
    flow = metric.rate(linear(-np.eye(2)))
    assert flow.rate == 1.0
    assert metric.rate(linear(-p)).rate == pytest.approx(low, abs=1e-10)
    assert metric.distance_bound(0.0, 1) ** 2 == pytest.approx(high / low, rel=1e-12)
    # λM ⪯ ∇²E ⪯ M: the slowest over the fastest rate is 1 for M = P, and λ_min/λ_max for M a multiple of I
    backwards = ContractionMetric(np.eye(2), X).rate(linear(p))
    assert -backwards.rate / plain.rate == pytest.approx(high / low, rel=1e-9)
    assert metric.rate(linear(np.eye(2))).rate == -flow.rate


# What is false ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("excess", [1e-9, *(pytest.param(e, marks=pytest.mark.slow) for e in (1e-12, 1e-2))])
def test_a_rate_slightly_too_large_is_never_proved(excess):
    metric = ContractionMetric(np.eye(2), X)
    for f, domain, rate in [
        (MOORE_GREITZER, Ball([0, 0], 1), metric.rate(MOORE_GREITZER, Ball([0, 0], 1)).refuted_at),
        (["-x - x**3", "-y - y**5"], None, sp.Integer(1) + sp.Rational(str(excess))),
        (["-x/(1 + x**2)", "-y"], Box([-0.5, -1], [0.5, 1]), sp.Rational(12, 25) + sp.Rational(str(excess))),
    ]:
        for method in ("auto", "exact", "interval"):
            verdict = metric.verify(f, rate, domain, method, timeout=0.7)
            assert verdict.status is not Status.PROVED


@pytest.mark.parametrize(
    ("matrix", "domain"),
    [
        ([[1, 2], [2, 1]], None),
        ([[1, 1], [1, 1]], None),
        ([["x**2 - 1/100", 0], [0, 1]], Box([-1, -1], [1, 1])),
        ([["1 + x", 0], [0, 1]], None),
        ([["x**2", 0], [0, 1]], Box([-1, -1], [1, 1])),
    ],
)
def test_a_matrix_that_is_not_positive_definite_is_refuted(matrix, domain):
    metric = ContractionMetric(matrix, X)
    verdict = metric.verify(["-x", "-y"], -10, domain)
    assert verdict.status is Status.REFUTED
    assert verdict.recheck()
    assert metric.rate(["-x", "-y"], domain).rate is None


def test_a_metric_that_fades_at_infinity_is_not_enough():
    """In M = (1 + x²)⁻³ the flow of ẋ = x + x³ separates at the rate 1 at most, and yet its solutions blow up."""
    verdict = ContractionMetric([["1/(1 + x**2)**3"]], ["x"]).verify(["x*(1 + x**2)"], -1, timeout=5)
    assert verdict.status is Status.UNDECIDED
    assert "μ" in verdict.reason
    flat = ContractionMetric([["2 - 1/(1 + x**2)"]], ["x"]).verify(["-x"], 0)
    assert flat.status is Status.PROVED
    assert "⪰" in repr(flat)


@pytest.mark.parametrize(
    ("f", "domain"),
    [
        (["-x - sign(x)", "-y"], None),
        (["-2*x + atan2(y, x)/9", "-2*y"], Box([-2, -1], [-1, 1])),
        (["log(x)", "-y"], Box([-2, -1], [-1, 1])),
        (["-tan(x)", "-y"], Box([-2, -1], [2, 1])),
        (["1/x", "-y"], Box([-1, -1], [1, 1])),
    ],
    ids=["jump", "branch", "log", "pole of tan", "pole"],
)
def test_a_flow_that_jumps_or_is_not_defined_contracts_nothing(f, domain):
    for method in ("auto", "exact", "interval"):
        verdict = ContractionMetric(np.eye(2), X).verify(f, 0, domain, method, timeout=1)
        assert verdict.status is not Status.PROVED


def test_no_rate_on_the_whole_space_is_said():
    verdict = ContractionMetric(np.eye(2), X).rate(["-x + x**3", "-y"], timeout=5)
    assert verdict.status is Status.UNDECIDED
    assert verdict.rate is None
    with pytest.raises(ValueError, match="nothing is promised"):
        verdict.distance_bound(1.0)


# Distances -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("matrix", "f"),
    [
        (np.array([[2.0, 0.5], [0.5, 1.0]]), linear([[-1.0, 3.0], [-0.5, -2.0]])),
        (np.eye(2), ["-x - x**3 + y/2", "-y - y**3/9 + x/2"]),
        (np.eye(2), MOORE_GREITZER),
    ],
)
def test_trajectories_stay_under_the_distance_bound(matrix, f):
    metric = ContractionMetric(matrix, X)
    verdict = metric.rate(f)
    assert verdict.status is Status.PROVED
    from ctrlgen.field import VectorField

    field = VectorField(f, X)
    move = sp.lambdify([metric.states], list(field.exprs))
    times = np.linspace(0, 1.5, 31)
    bound = verdict.distance_bound(times)
    assert bound.shape == times.shape
    rng = np.random.default_rng(0)
    closest = 0.0
    for _ in range(6):
        a, b = rng.normal(size=(2, 2))
        paths = [
            solve_ivp(lambda t, x: move(x), (0, 1.5), start, t_eval=times, rtol=1e-10, atol=1e-12).y for start in (a, b)
        ]
        share = np.linalg.norm(paths[0] - paths[1], axis=0) / np.linalg.norm(a - b)
        assert (share <= bound * (1 + 1e-8)).all()
        closest = max(closest, float((share / bound).max()))
    assert closest > 0.3


def test_the_distance_bound_is_rounded_up():
    metric = ContractionMetric([[2, 0], [0, 8]], X)
    exact = 2 * sp.exp(-sp.Rational(1, 3) * sp.Rational(1, 2))
    value = metric.distance_bound(0.5, sp.Rational(1, 3))
    assert 0 <= sp.Rational(value) - exact < 1e-15
    assert metric.distance_bound([[0, 1]], 1).shape == (1, 2)
    surds = ContractionMetric([[sp.sqrt(2), 0], [0, 1]], X).distance_bound(0, 1)
    assert 0 <= surds - float(2**0.25) < 1e-14
    wide = ContractionMetric([[sp.Rational(1, 10**40), 0], [0, 1]], X).distance_bound(0, 1)
    assert wide == pytest.approx(1e20, rel=1e-12)
    assert ContractionMetric(np.eye(2), X).distance_bound(0, 1) == 1.0


def test_a_float_is_never_above_its_rational():
    for value in (sp.Rational(2, 3), sp.Rational(1, 10), sp.Rational(-2, 3), sp.Rational(10**20 + 1, 10**20)):
        near = float_below(value)
        assert sp.Rational(repr(near)) <= value
        assert float(value) - near < 1e-15


# Input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.ones((2, 3)), r"M must be \(2, 2\).*got shape \(2, 3\)"),
        ([[1, 2], [3, 4]], r"M must be symmetric; M\[1\]\[0\] - M\[0\]\[1\] is 1.* Pass \(M \+ M.T\) / 2"),
        ([[1, "z"], ["z", 1]], "'z', which is not a state"),
        ([[1], [1, 2]], "rows of one length"),
        (3, r"M must be \(2, 2\)"),
        (None, r"M must be \(2, 2\)"),
        ([["abs(x)", 0], [0, 1]], "M must be differentiable; it holds Abs"),
        ([[float("nan"), 0], [0, 1]], "must be real and finite"),
    ],
)
def test_bad_metrics(matrix, message):
    with pytest.raises(ValueError, match=message):
        ContractionMetric(matrix, X)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"f": ["-x"]}, "f must have 2 components"),
        ({"rate": "fast"}, "not a state"),
        ({"rate": float("inf")}, "rate must be a finite real number"),
        ({"domain": [1, 2]}, "domain must be a domain"),
        ({"domain": Box([-1], [1])}, "1 coordinates"),
        ({"method": "guess"}, "method must be one of"),
        ({"timeout": 0}, "timeout must be a positive number"),
    ],
)
def test_bad_questions(arguments, message):
    with pytest.raises(ValueError, match=message):
        ContractionMetric(np.eye(2), X).verify(**({"f": ["-x", "-y"], "rate": 1} | arguments))


def test_systems_of_python_control():
    import control

    a = np.array([[-0.1, 0.0], [0.0, -0.3]])
    continuous = control.ss(a, np.zeros((2, 1)), np.eye(2), 0)
    assert ContractionMetric(np.eye(2), X).rate(continuous).rate == 0.1
    with pytest.raises(ValueError, match="f must be in continuous time"):
        ContractionMetric(np.eye(2), X).rate(control.ss(a, np.zeros((2, 1)), np.eye(2), 0, 0.1))


def test_bad_times():
    metric = ContractionMetric(np.eye(2), X)
    with pytest.raises(ValueError, match="t must be finite and ≥ 0"):
        metric.distance_bound([0, -1], 1)
    with pytest.raises(ValueError, match="rate must be given"):
        metric.distance_bound(1)
    with pytest.raises(ValueError, match="M must be positive definite"):
        ContractionMetric([[1, 2], [2, 1]], X).distance_bound(1, 1)
    with pytest.raises(ValueError, match="M must have provable bounds"):
        ContractionMetric([["1 + x**2", 0], [0, 1]], X).distance_bound(1, 1)
    assert ContractionMetric([["1 + x**2", 0], [0, 1]], X).distance_bound(0, 1, Ball([0, 0], 2)) == pytest.approx(
        np.sqrt(5), rel=1e-9
    )
