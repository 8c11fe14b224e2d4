"""Certificates side by side with what else answers the same question, in one run.

    python -m pytest tests/bench/test_certificates.py --override-ini addopts=

The peers decide less: SumOfSquares.py (PICOS and CVXOPT) returns a floating-point Gram matrix and no proof, cvxpy a
floating-point metric, z3 an answer without a certificate. What was decided stands beside each time. FOSSIL is not on
PyPI; its published mean synthesis times are in the extra information of the cases that it reports.
"""

import control as ct
import numpy as np
import pytest
import sympy as sp

import ctrlgen as cg
from ctrlgen import Status

VAN_DER_POL = ["-x2", "x1 + (x1**2 - 1)*x2"]
V = "1.5*x1**2 - x1*x2 + x2**2"
PENDULUM = ["w", "-sin(q) - w"]
BALL = cg.Ball([0, 0], 1)


def note(benchmark, **values):
    benchmark.extra_info.update({k: str(v) for k, v in values.items()})


# The derivative of a V of six states -------------------------------------------------------------------------------

SIX = [f"x{i}" for i in range(6)]
V6 = "+".join(f"{i + 1}*{s}**2 + {s}**4" for i, s in enumerate(SIX)) + " + x0*x1*x2*x3"
F6 = [f"-{s}**3 + x{(i + 1) % 6}*{s}/(1 + x{(i + 2) % 6}**2)" for i, s in enumerate(SIX)]


@pytest.mark.benchmark(group="derivative of a V of six states")
def test_derivative(benchmark):
    function = cg.LyapunovFunction(V6, SIX)
    out = benchmark(lambda: function.derivative(F6))
    assert out.free_symbols == set(function.states)
    note(benchmark, gives="∇V·f, simplified")


@pytest.mark.benchmark(group="derivative of a V of six states")
def test_derivative_by_sympy_simplify(benchmark):
    states = sp.symbols(SIX, real=True)
    by_name = dict(zip(SIX, states, strict=True))
    value = sp.sympify(V6, locals=by_name)
    field = [sp.sympify(e, locals=by_name) for e in F6]
    out = benchmark.pedantic(
        lambda: sp.simplify(sum(sp.diff(value, s) * g for s, g in zip(states, field, strict=True))), rounds=1
    )
    ours = cg.LyapunovFunction(V6, SIX).derivative(F6)
    assert sp.simplify(out - ours.subs(dict(zip(sorted(ours.free_symbols, key=str), states, strict=True)))) == 0


# A proof that V̇ < 0 on a sublevel set --------------------------------------------------------------------------------


@pytest.mark.benchmark(group="Van der Pol: V̇ < 0 where V ≤ 2.304")
def test_exact_proof(benchmark):
    function, where = cg.LyapunovFunction(V, ["x1", "x2"]), cg.Sublevel(V, ["x1", "x2"], "2.304")
    verdict = benchmark(lambda: function.verify(VAN_DER_POL, where, method="exact"))
    assert verdict.status is Status.PROVED
    note(benchmark, decides=verdict.status.name, recheck=verdict.recheck())


@pytest.mark.benchmark(group="Van der Pol: V̇ < 0 where V ≤ 2.304")
def test_z3(benchmark):
    function, where = cg.LyapunovFunction(V, ["x1", "x2"]), cg.Sublevel(V, ["x1", "x2"], "2.304")
    verdict = benchmark.pedantic(lambda: function.verify(VAN_DER_POL, where, method="smt", timeout=60), rounds=3)
    note(benchmark, decides=verdict.status.name)


@pytest.mark.benchmark(group="Van der Pol: V̇ < 0 where V ≤ 2.304")
def test_sum_of_squares_py(benchmark):
    peer = pytest.importorskip("SumOfSquares")
    x, y = sp.symbols("x1 x2")
    value = sp.sympify("3*x1**2/2 - x1*x2 + x2**2", locals={"x1": x, "x2": y})
    fall = sp.expand(-(sp.diff(value, x) * (-y) + sp.diff(value, y) * (x + (x**2 - 1) * y)))

    def solve():
        problem = peer.SOSProblem()
        multiplier = peer.poly_variable("s", [x, y], 2)
        problem.add_sos_constraint(multiplier, [x, y])
        problem.add_sos_constraint(fall - multiplier * (2.304 - value) - 1e-6 * (x**2 + y**2), [x, y])
        return problem.solve(solver="cvxopt")

    benchmark.pedantic(solve, rounds=3, warmup_rounds=1)
    note(benchmark, decides="nothing exactly: a floating-point Gram matrix")


# FOSSIL's and SOSTOOLS' cases ----------------------------------------------------------------------------------------

CASES = {
    "SOSTOOLS demo 2": (
        ["-x1**3 - x1*x3**2", "-x2 - x1**2*x2", "-x3 - 3*x3/(x3**2 + 1) + 3*x1**2*x3"], ["x1", "x2", "x3"], None, "-",
    ),
    "NonPoly0": (["-x + x*y", "-y"], ["x", "y"], BALL, "0.16 s"),
    "Poly2": (["-x**3 + y", "-x - y"], ["x", "y"], None, "5.64 s"),
    "Poly3": (["-x**3 - y**2", "x*y - y**3"], ["x", "y"], None, "-"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.benchmark(group="synthesis and exact verification")
def test_synthesis(benchmark, name):
    f, states, domain, published = CASES[name]
    verdict = benchmark(lambda: cg.find_lyapunov(f, states, 2, domain))
    assert verdict.status is Status.PROVED
    note(benchmark, found=verdict.found, fossil_published_mean=published)


@pytest.mark.benchmark(group="synthesis and exact verification")
def test_barrier_synthesis(benchmark):
    box = cg.Box([-2, -2], [2, 2])
    verdict = benchmark.pedantic(
        lambda: cg.find_barrier(
            ["y + 2*x*y", "-x - y**2 + 2*x**2"], ["x", "y"], 3, cg.Box([0, 1], [1, 2]),
            cg.Sublevel("x + y**2", ["x", "y"], 0), box,
        ), rounds=3, warmup_rounds=1,
    )  # fmt: skip
    assert verdict.status is Status.PROVED
    note(benchmark, found=verdict.found, fossil_published_mean="7.11 s")


# A pendulum in ball arithmetic ---------------------------------------------------------------------------------------


@pytest.mark.benchmark(group="pendulum: V̇ < 0 on [-1, 1]²")
@pytest.mark.parametrize("method", ["interval", "exact"])
def test_pendulum(benchmark, method):
    function = cg.LyapunovFunction("1 - cos(q) + w**2/2 + q*w/10", ["q", "w"])
    box = cg.Box([-1, -1], [1, 1])
    verdict = benchmark(lambda: function.verify(PENDULUM, box, method=method))
    assert verdict.status is Status.PROVED
    note(benchmark, decides=verdict.status.name, how=verdict.steps[-1].outcome.reason)


@pytest.mark.benchmark(group="pendulum: V̇ < 0 on [-1, 1]²")
def test_pendulum_with_mpmath_intervals(benchmark):
    """The same claim outside a ball of 0.1, by mpmath's intervals: natural extension, bisection of the longest side."""
    from mpmath import iv

    def fall(q, w):
        return -((iv.sin(q) + w / 10) * w + (w + q / 10) * (-iv.sin(q) - w))

    def prove():
        boxes, visited = [((-1.0, 1.0), (-1.0, 1.0))], 0
        while boxes:
            (a, b), (c, d) = boxes.pop()
            visited += 1
            q, w = iv.mpf([a, b]), iv.mpf([c, d])
            if max(abs(a), abs(b)) <= 0.1 and max(abs(c), abs(d)) <= 0.1:
                continue
            if fall(q, w).a > 0:
                continue
            if visited > 20_000:
                return visited, len(boxes)
            if b - a > d - c:
                boxes += [((a, (a + b) / 2), (c, d)), (((a + b) / 2, b), (c, d))]
            else:
                boxes += [((a, b), (c, (c + d) / 2)), ((a, b), ((c + d) / 2, d))]
        return visited, 0

    visited, left = benchmark.pedantic(prove, rounds=1)
    note(benchmark, boxes=visited, left=left, decides="outside a ball of 0.1 only" if left == 0 else "nothing")


# Contraction metrics -------------------------------------------------------------------------------------------------


def linear(d=4):
    rng = np.random.default_rng(1)
    a = rng.normal(size=(d, d))
    return np.round(a - (np.linalg.eigvals(a).real.max() + 0.5) * np.eye(d), 3)


@pytest.mark.benchmark(group="constant metric of a linear system of four states, rate 0.4")
def test_metric(benchmark):
    a = linear()
    system = ct.ss(a, np.zeros((4, 1)), np.eye(4), np.zeros((4, 1)))
    states = [f"x{i}" for i in range(4)]
    verdict = benchmark(lambda: cg.find_contraction_metric(system, states, 0, 0.4))
    assert verdict.status is Status.PROVED
    note(benchmark, decides=verdict.status.name)


@pytest.mark.benchmark(group="constant metric of a linear system of four states, rate 0.4")
def test_metric_by_cvxpy(benchmark):
    cp = pytest.importorskip("cvxpy")
    a = linear()

    def solve():
        m, t = cp.Variable((4, 4), symmetric=True), cp.Variable()
        flow = m @ a + a.T @ m + 0.8 * m
        rules = [m >> t * np.eye(4), -flow >> t * np.eye(4), cp.trace(m) == 4]
        cp.Problem(cp.Maximize(t), rules).solve(solver="CLARABEL")
        return m.value

    value = benchmark(solve)
    assert np.linalg.eigvalsh(-(value @ a + a.T @ value + 0.8 * value))[0] > -1e-6
    note(benchmark, decides="nothing exactly: a floating-point matrix")


@pytest.mark.benchmark(group="polynomial metric: Moore-Greitzer, degree 4, rate 0.1")
def test_polynomial_metric(benchmark):
    f = ["-p - 3*s**2/2 - s**3/2", "3*s - p"]
    verdict = benchmark.pedantic(lambda: cg.find_contraction_metric(f, ["s", "p"], 4, 0.1), rounds=2, warmup_rounds=0)
    assert verdict.status is Status.PROVED
    note(benchmark, decides=verdict.status.name, found=verdict.found)
