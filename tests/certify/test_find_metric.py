"""Found contraction metrics: every rate below the spectral abscissa's magnitude and none above, and published flows."""

import numpy as np
import pytest
import sympy as sp
from scipy.integrate import solve_ivp
from scipy.linalg import expm

from ctrlgen.certify.contraction import ContractionMetric
from ctrlgen.certify.find_metric import _Search, find_contraction_metric
from ctrlgen.certify.linear_metric import abscissa, linear_metrics
from ctrlgen.domain import Ball, Box
from ctrlgen.field import VectorField
from ctrlgen.prove.claim import Deadline, Status

X = ["x", "y"]
MOORE_GREITZER = ["-y - 1.5*x**2 - 0.5*x**3", "3*x - y"]
REVERSED_VAN_DER_POL = ["-y", "x + (x**2 - 1)*y"]
PENDULUM = ["y", "-sin(x) - y"]


def stable(kind, d):
    """(A, the magnitude of its spectral abscissa): A is what its floats print as."""
    rng = np.random.default_rng(d)
    if kind == "random":
        a = np.round(rng.normal(size=(d, d)), 3)
        a = np.round(a - (np.linalg.eigvals(a).real.max() + 0.5) * np.eye(d), 3)
        return a, -np.linalg.eigvals(a).real.max()
    if kind == "non-normal":
        a = np.triu(np.round(10 * rng.normal(size=(d, d)), 1), 1) - np.diag(1 + np.arange(d) / 4)
        return a, 1.0
    return 2 * np.diag(np.ones(d - 1), 1) - np.eye(d), 1.0  # one Jordan block


def names(d):
    return [f"x{i}" for i in range(d)]


def linear(a):
    return lambda x: np.asarray(a) @ x


def exactly_contracts(metric, a, rate):
    """M ≻ 0 and AᵀM + MA + 2λM ⪯ 0 by SymPy's own exact tests."""
    m = sp.Matrix(metric.matrix)
    exact = sp.Matrix(a.shape[0], a.shape[1], [sp.Rational(repr(float(v))) for v in a.ravel()])
    left = -(exact.T * m + m * exact + 2 * sp.Rational(repr(float(rate))) * m)
    return m.is_positive_definite and left.is_positive_semidefinite


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99, 0.999])
@pytest.mark.parametrize(
    ("kind", "d"), [(k, d) for k in ("random", "non-normal", "jordan") for d in (2, 3, 5)] + [("random", 6)]
)
def test_every_rate_below_the_abscissa_is_found(kind, d, share):
    a, magnitude = stable(kind, d)
    rate = round(share * magnitude, 9)
    verdict = find_contraction_metric(linear(a), names(d), 0, rate)
    assert verdict.status is Status.PROVED
    assert verdict.rate == rate
    assert exactly_contracts(verdict.found, a, rate)


@pytest.mark.parametrize(("kind", "d"), [("random", 2), ("random", 5), ("non-normal", 4), ("jordan", 3)])
def test_no_rate_above_the_abscissa_is_found(kind, d):
    a, magnitude = stable(kind, d)
    verdict = find_contraction_metric(linear(a), names(d), 0, 1.001 * magnitude)
    assert verdict.status is Status.UNDECIDED
    assert verdict.found is None
    assert verdict.rate is None
    assert "eigenvalue with real part" in verdict.reason


def test_a_defective_matrix_in_disguise():
    """Float eigenvalues of a similar Jordan block are off by 1e-3: the exact characteristic polynomial is not."""
    turn = np.array([[1, 2, 0, 1], [0, 1, 3, 0], [1, 0, 1, 2], [2, 1, 0, 1]])
    block = sp.Matrix(np.diag(np.ones(3, int), 1) - np.eye(4, dtype=int))
    a = sp.Matrix(turn) * block * sp.Matrix(turn).inv()
    rough = np.linalg.eigvals(np.array(a.tolist(), dtype=float)).real.max()
    assert abs(rough + 1) > 1e-5
    assert abscissa(a) == pytest.approx(-1, abs=1e-14)
    f = list(a * sp.Matrix(sp.symbols("x0:4", real=True)))
    assert find_contraction_metric(f, names(4), 0, 0.999).status is Status.PROVED
    assert find_contraction_metric(f, names(4), 0, 1).status is Status.UNDECIDED


@pytest.mark.parametrize(
    "f",
    [
        ["-x + 3*y", "-x - y", "-2*z"],
        ["-x + 3*y + z", "-x - y", "-2*z"],
        ["-x", "-y + z", "-4*z"],
        ["-x + 2*y + z", "-x/2 - y + 7*z", "-z"],
    ],
)
def test_at_the_abscissa_itself_the_weak_inequality_is_found(f):
    verdict = find_contraction_metric(f, ["x", "y", "z"], 0, 1)
    assert verdict.status is Status.PROVED
    assert verdict.recheck()
    best = find_contraction_metric(f, ["x", "y", "z"], 0)
    assert best.rate == 1.0


def test_at_the_abscissa_a_jordan_block_has_none():
    a = sp.Matrix([[-1, 1], [0, -1]])
    assert all(sp.Matrix(m).is_positive_definite for m in linear_metrics(a, sp.Rational(1, 2)))
    assert find_contraction_metric(["-x + y", "-y"], X, 0, 1).found is None


def test_the_largest_rate_of_a_linear_system_is_its_abscissa():
    a, magnitude = stable("random", 4)
    verdict = find_contraction_metric(linear(a), names(4))
    assert verdict.status is Status.PROVED
    assert magnitude * (1 - 1e-5) < verdict.rate <= magnitude * (1 + 1e-12)


def test_the_found_metric_bounds_distances_with_its_own_rate():
    a, magnitude = stable("non-normal", 3)
    verdict = find_contraction_metric(linear(a), names(3), 0, 0.9 * magnitude)
    times = np.linspace(0, 5, 26)
    bound = verdict.found.distance_bound(times)
    np.testing.assert_array_equal(bound, verdict.distance_bound(times))
    growth = np.array([np.linalg.norm(expm(a * t), 2) for t in times])
    assert (growth <= bound).all()
    assert (growth / bound).max() > 0.02


# Nonlinear systems ------------------------------------------------------------------------------------------------


def test_moore_greitzer_contracts_on_the_whole_plane():
    """Aylward, Parrilo and Slotine (2008): no constant metric, but one with polynomial entries of degree 4."""
    assert find_contraction_metric(MOORE_GREITZER, X, 0, 0.1, timeout=10).found is None
    verdict = find_contraction_metric(MOORE_GREITZER, X, 4, 0.1)
    assert verdict.status is Status.PROVED
    assert verdict.recheck()
    assert not verdict.assumptions
    change = sp.lambdify([verdict.found.states], verdict.found.derivative(MOORE_GREITZER))
    metric = sp.lambdify([verdict.found.states], verdict.found.matrix)
    for p in np.random.default_rng(0).normal(scale=3, size=(300, 2)):
        assert np.linalg.eigvalsh(metric(p))[0] > 0
        assert np.linalg.eigvalsh(change(p) + 0.2 * metric(p))[-1] <= 1e-9 * np.linalg.norm(metric(p))
    assert verdict.found.verify(MOORE_GREITZER, 0.6, timeout=3).status is not Status.PROVED


@pytest.mark.parametrize(
    ("f", "degree", "rate", "domain"),
    [
        (MOORE_GREITZER, 2, 0.1, Box([-0.5, -0.5], [0.5, 0.5])),
        (REVERSED_VAN_DER_POL, 0, 0.1, Ball([0, 0], 0.4)),
        (REVERSED_VAN_DER_POL, 2, 0.1, Ball([0, 0], 0.6)),
        (PENDULUM, 0, 0.1, Box([-1, -2], [1, 2])),
        pytest.param(
            ["-2*x + exp(-y**2)", "-y - 3*tanh(x)"], 0, 0.05, Box([-0.3, -0.3], [0.3, 0.3]), marks=pytest.mark.slow
        ),
        (["-x + x/(2 + 2*x**2) + 2*y", "-y - y**3"], 0, 0.3, None),
        (["-x + sin(x)/2 + 2*y", "-y"], 0, 0.4, None),
    ],
    ids=["jet engine", "van der pol", "van der pol, degree 2", "pendulum", "exp and tanh", "rational", "sine"],
)
def test_published_and_other_flows(f, degree, rate, domain):
    verdict = find_contraction_metric(f, X, degree, rate, domain)
    assert verdict.status is Status.PROVED
    assert verdict.rate == rate
    again = ContractionMetric(verdict.found.matrix, X).verify(f, rate, domain)
    assert again.status is Status.PROVED
    assert verdict.found.matrix != sp.eye(2)


def test_a_narrow_feature_is_found_by_its_counterexample():
    """The slope of the step in y is 4, and no sample lies on it: the metric of the samples fails there."""
    f, box = ["-x + tanh(400*(y - 0.37))/100", "-y"], Box([-1, -1], [1, 1])
    identity = ContractionMetric(sp.eye(2), X)
    search = _Search(VectorField(f, X), identity, 0, box, "auto", Deadline(20.0))
    verdict = search.by_points(sp.Rational(1, 2))
    assert verdict.status is Status.PROVED
    m = verdict.found.matrix
    assert m[1, 1] > 15 * m[0, 0]


def test_chains_of_three():
    verdict = find_contraction_metric(["-x - x**3 + y", "-y - y**3 + z", "-2*z"], ["x", "y", "z"], 0, 0.9)
    assert verdict.status is Status.PROVED
    cycle = ["-x + sin(y)/2", "-y + z/2", "-z + sin(x)/2"]
    found = find_contraction_metric(cycle, ["x", "y", "z"], 0, 0.5).found
    assert found.matrix == sp.eye(3)


def test_the_largest_rate_by_bisection():
    """ẋ = -x - x³ + 3y, ẏ = -2y: the Jacobian at the origin allows 1, any rate below has a constant metric."""
    verdict = find_contraction_metric(["-x - x**3 + 3*y", "-2*y"], X, 0)
    assert verdict.status is Status.PROVED
    assert 0.99 < verdict.rate <= 1
    assert verdict.found.distance_bound(0.0) < 1e4
    assert find_contraction_metric(["-x - x**3"], ["x"], 0).rate == 1.0


def test_trajectories_of_the_pendulum_stay_under_the_bound_of_the_found_metric():
    box = Box([-1, -1.5], [1, 1.5])
    verdict = find_contraction_metric(PENDULUM, X, 0, 0.3, box)
    times = np.linspace(0, 4, 21)
    bound = verdict.found.distance_bound(times)
    move = lambda t, x: [x[1], -np.sin(x[0]) - x[1]]  # noqa: E731
    rng = np.random.default_rng(1)
    for _ in range(5):
        pair = rng.uniform(-0.5, 0.5, size=(2, 2))
        paths = [solve_ivp(move, (0, 4), p, t_eval=times, rtol=1e-10, atol=1e-12).y for p in pair]
        assert box.contains(paths[0].T).all()
        share = np.linalg.norm(paths[0] - paths[1], axis=0) / np.linalg.norm(pair[0] - pair[1])
        assert (share <= bound * (1 + 1e-8)).all()


@pytest.mark.parametrize(
    ("f", "degree", "domain"),
    [
        (["x - x**3", "-y"], 2, None),
        (["y", "sin(x) - y/9"], 0, Box([-1, -1], [1, 1])),
        (["y", "(1 - x**2)*y - x"], 2, Ball([0, 0], 3)),
    ],
    ids=["two wells", "upright pendulum", "limit cycle"],
)
def test_what_has_an_unstable_point_is_never_found_to_contract(f, degree, domain):
    verdict = find_contraction_metric(f, X, degree, 0.01, domain, timeout=5)
    assert verdict.status is Status.UNDECIDED
    assert verdict.found is None
    assert verdict.reason


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"degree": -1}, "degree must be an integer from 0 to 12"),
        ({"degree": 1.5}, "degree must be an integer"),
        ({"degree": True}, "degree must be an integer"),
        ({"f": ["-x"]}, "f must have 2 components"),
        ({"rate": "quick"}, "not a state"),
        ({"domain": 3}, "domain must be a domain"),
        ({"method": "guess"}, "method must be one of"),
        ({"timeout": -1}, "timeout must be a positive number"),
        ({"states": ["x", "x"]}, "distinct"),
    ],
)
def test_bad_questions(arguments, message):
    with pytest.raises(ValueError, match=message):
        find_contraction_metric(**({"f": ["-x", "-y"], "states": X, "degree": 0, "rate": 0.5} | arguments))
