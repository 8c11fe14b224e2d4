"""The Gaussian family's formulas against closed forms with numbers, the moment flow, and forged expressions."""

import math

import numpy as np
import pytest
import sympy as sp

import ctrlgen as cg
from ctrlgen.certify.gaussian_family import SymbolicGaussian, gaussian_family, quadratic_formula
from ctrlgen.certify.traces import Traces

FAMILIES = {
    "1": gaussian_family(1),
    "2": gaussian_family(2),
    "3": gaussian_family(3),
    "3 diagonal": gaussian_family(3, diagonal=True),
    "6 diagonal": gaussian_family(6, diagonal=True),
    "any": gaussian_family(),
    "any k": gaussian_family(sp.Symbol("k", integer=True, positive=True)),
}


def numbers(d, diagonal, seed=0):
    """P, μ, m, C, ε."""
    rng = np.random.default_rng(seed)
    roots = rng.standard_normal((2, d, d))
    precision, covariance = roots @ roots.transpose(0, 2, 1) + 0.5 * np.eye(d)
    if diagonal:
        precision, covariance = np.diag(np.diag(precision)), np.diag(np.diag(covariance))
    return precision, rng.standard_normal(d), rng.standard_normal(d), covariance, 0.7


def evaluate(family, name, values, d):
    """An expression of the family at numbers."""
    precision, target, mean, covariance, heat = values
    expr = getattr(family, name)
    table = {family.temperature: heat}
    if isinstance(family.dim, sp.Symbol):
        expr = expr.subs(family.dim, d)
        pairs = ((family.precision, precision), (family.covariance, covariance))
        pairs += ((family.mean, mean[:, None]), (family.target, target[:, None]))
        expr = expr.subs({s.subs(family.dim, d): sp.Matrix(a) for s, a in pairs}).subs(table)
        return float(expr.doit())
    for matrix, array in ((family.precision, precision), (family.covariance, covariance)):
        table |= {matrix[i, j]: array[i, j] for i in range(d) for j in range(i, d) if matrix[i, j] != 0}
    table |= {family.mean[i]: mean[i] for i in range(d)} | {family.target[i]: target[i] for i in range(d)}
    return float(expr.subs(table))


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n == "3" else []) for n in FAMILIES])
def test_identity_and_transport_simplify_to_zero(name):
    family = FAMILIES[name]
    assert family.identity == 0
    assert family.transport == 0
    assert isinstance(family.identity, sp.Expr)


@pytest.mark.parametrize("name", FAMILIES)
def test_formulas_at_numbers_are_the_closed_forms(name):
    family = FAMILIES[name]
    for d in [2, 4] if name.startswith("any") else [family.dim]:
        values = numbers(d, "diagonal" in name, seed=d)
        precision, target, mean, covariance, heat = values
        gibbs = target, heat * np.linalg.inv(precision)
        kl = cg.measure.kl_gaussians(mean, covariance, *gibbs)
        fisher = cg.measure.fisher_gaussians(mean, covariance, *gibbs)
        assert evaluate(family, "value", values, d) == pytest.approx(kl, rel=1e-11)
        assert evaluate(family, "fisher", values, d) == pytest.approx(fisher, rel=1e-11)
        # V̇: not from the formula, but along the exact moments, by a central difference
        energy, plant, h = cg.Quadratic(precision, target), cg.GaussianPlant(heat), 1e-4
        states = [cg.Gaussian(mean, covariance)]
        states += plant.start(energy, states[0], step=h).advance([1, 1])
        at = np.array([plant.kl(s, energy) for s in states])
        slope = (-3 * at[0] + 4 * at[1] - at[2]) / (2 * h)
        assert evaluate(family, "derivative", values, d) == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize("name", ["2", "3 diagonal", "any"])
def test_flow_is_the_moment_flow(name):
    family, d = FAMILIES[name], 3 if name == "3 diagonal" else 2
    precision, target, mean, covariance, heat = values = numbers(d, "diagonal" in name)
    h = 1e-6
    end = cg.GaussianPlant(heat).start(cg.Quadratic(precision, target), cg.Gaussian(mean, covariance), step=h)
    (end,) = end.advance([1])
    rate, spread = family.flow
    if name == "any":
        rate, spread = rate.subs(family.dim, d), spread.subs(family.dim, d)
        pairs = ((family.precision, precision), (family.covariance, covariance))
        pairs += ((family.mean, mean[:, None]), (family.target, target[:, None]))
        table = {s.subs(family.dim, d): sp.Matrix(a) for s, a in pairs} | {family.temperature: heat}
        found = [np.array(m.subs(table).doit().as_explicit().tolist(), dtype=float) for m in (rate, spread)]
    else:
        found = []
        for matrix in (rate, spread):
            entries = [_at(family, e, values, d) for e in matrix]
            found.append(np.array(entries).reshape(matrix.shape))
    np.testing.assert_allclose(found[0][:, 0], (end.mean - mean) / h, rtol=1e-4)
    np.testing.assert_allclose(found[1], (end.covariance - covariance) / h, rtol=1e-4, atol=1e-4)


def _at(family, expr, values, d):
    class Holder:
        dim, temperature = family.dim, family.temperature
        precision, covariance, mean, target = family.precision, family.covariance, family.mean, family.target

    Holder.expr = expr
    return evaluate(Holder, "expr", values, d)


def test_the_ornstein_uhlenbeck_case_in_closed_form():
    # mean e^{-κt} μ₀, variance ε/κ + (σ₀² - ε/κ) e^{-2κt}: V along it, differentiated in t by SymPy
    kappa, heat, start, spread, t = sp.symbols("kappa epsilon mu0 s0 t", positive=True)
    mean = sp.exp(-kappa * t) * start
    variance = heat / kappa + (spread - heat / kappa) * sp.exp(-2 * kappa * t)
    V = cg.KLLyapunov(cg.Quadratic([[1.0]]), heat)
    state = SymbolicGaussian([mean.subs(kappa, 1)], [[variance.subs(kappa, 1)]])
    assert sp.simplify(sp.diff(V.value(state), t) - V.derivative(state)) == 0
    family = gaussian_family(1)
    table = {family.precision[0, 0]: kappa, family.target[0]: 0, family.mean[0]: mean}
    table |= {family.covariance[0, 0]: variance, family.temperature: heat}
    value, fisher = family.value.subs(table), family.fisher.subs(table)
    assert sp.simplify(sp.diff(value, t) + heat * fisher) == 0
    numbers = {kappa: 1.5, heat: 0.6, start: 0.9, spread: 0.3, t: 0.4}
    ratio = float((variance * kappa / heat).subs(numbers))
    expected = (ratio - 1 - math.log(ratio) + 1.5 * (0.9 * math.exp(-0.6)) ** 2 / 0.6) / 2
    assert float(value.subs(numbers)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["2", "any"])
def test_verdict_is_proved_and_rechecks(name):
    verdict = FAMILIES[name].verify()
    assert verdict.status is cg.Status.PROVED
    assert verdict.method == "symbolic"
    assert verdict.recheck()
    assert len(verdict.steps) == 2
    assert ("any dimension" if name == "any" else "dimension 2") in verdict.claim
    assert any("P ≻ 0" in a for a in verdict.assumptions)


@pytest.mark.parametrize("name", ["2", "any"])
def test_a_wrong_flow_or_functional_is_not_proved(name, monkeypatch):
    kind = type(FAMILIES[name])
    right = kind.flow.fget
    dim = None if name == "any" else 2
    monkeypatch.setattr(kind, "flow", property(lambda self: (2 * right(self)[0], right(self)[1])))
    family = gaussian_family(dim)
    assert family.identity != 0
    assert family.transport != 0
    verdict = family.verify()
    assert verdict.status is cg.Status.UNDECIDED
    assert "identity simplifies to" in verdict.reason
    monkeypatch.setattr(kind, "flow", property(right))
    functional = kind.fisher.func
    monkeypatch.setattr(kind, "fisher", property(lambda self: functional(self) + sp.Rational(1, 10**9)))
    family = gaussian_family(dim)
    assert family.identity != 0
    assert family.transport == 0
    assert family.verify().status is cg.Status.UNDECIDED


# Sums of traces -------------------------------------------------------------------------------------------

N = sp.Symbol("n", integer=True, positive=True)
P, C = sp.MatrixSymbol("P", N, N), sp.MatrixSymbol("C", N, N)
A = sp.MatrixSymbol("A", N, N)  # neither symmetric nor invertible
U, W = sp.MatrixSymbol("u", N, 1), sp.MatrixSymbol("w", N, 1)
TRACES = Traces(N, (P, C))

EQUAL = [
    (sp.Trace(C.inverse() * P * C), sp.Trace(P)),
    (sp.Trace(P * C * A), sp.Trace(A * P * C)),
    (sp.Trace(P * C * A), sp.Trace(A.T * C * P)),
    (sp.Trace((P + C) * (P + C)), sp.Trace(P * P) + 2 * sp.Trace(P * C) + sp.Trace(C * C)),
    (sp.Trace(C * P * C.inverse() * C.inverse() * C), sp.Trace(P)),
    (sp.Trace(C.inverse() * C), N),
    (sp.Trace(U * W.T * P), sp.Trace(P * W * U.T)),
    (sp.Trace((2 * P - C).T), 2 * sp.Trace(P) - sp.Trace(C)),
    (sp.Trace(P**3 * C ** (-2)), sp.Trace(C.inverse() * P * P * P * C.inverse())),
]
DIFFERENT = [
    (sp.Trace(P * C * P * C), sp.Trace(P * P * C * C)),
    (sp.Trace(A * P * A), sp.Trace(A * P * A.T)),
    (sp.Trace(A), sp.Trace(P)),
    (sp.Trace(C.inverse() * P), sp.Trace(C * P)),
    (sp.Trace(A * A * P * A * C), sp.Trace(A * P * A * A * C)),
    (sp.Trace(P * P * C.inverse()), sp.Trace(P)),
    (sp.Trace(C.inverse() * C), sp.Integer(1)),
]


@pytest.mark.parametrize("pair", EQUAL, ids=str)
def test_equal_traces_have_one_normal_form(pair):
    assert TRACES.normal(pair[0] - pair[1]) == 0


@pytest.mark.parametrize("pair", DIFFERENT, ids=str)
def test_different_traces_stay_different(pair):
    assert TRACES.normal(pair[0] - pair[1]) != 0


@pytest.mark.parametrize("expr", [
    sp.Trace(P * C * P), sp.Trace(C.inverse() * P), sp.Trace(C.inverse() * A * C.inverse() * P),
    sp.Trace(P * U * U.T) / 3, sp.log(sp.Determinant(C)) / 2 - sp.Trace(C * C * C), sp.Trace(W * U.T * C),
], ids=str)  # fmt: skip
def test_derivative_along_a_motion_against_differences(expr):
    rng, d = np.random.default_rng(3), 3
    root = rng.standard_normal((2, d, d))
    p, c = root @ root.transpose(0, 2, 1) + np.eye(d)
    a, u, w, speed = rng.standard_normal((d, d)), rng.standard_normal((d, 1)), rng.standard_normal((d, 1)), 0.3
    flow = {C: P * C + C * P, U: A * U}
    moved_c, moved_u = p @ c + c @ p, a @ u
    out = TRACES.along(expr, flow)

    def at(formula, t):
        table = {P: p, A: a, W: w, C: c + t * moved_c, U: u + t * moved_u}
        formula = formula.subs(N, d).subs({k.subs(N, d): sp.Matrix(v) for k, v in table.items()})
        return float(formula.doit())

    h = 1e-5 * speed
    assert at(out, 0.0) == pytest.approx((at(expr, h) - at(expr, -h)) / (2 * h), rel=1e-5)


def test_what_is_no_sum_of_traces_is_refused():
    with pytest.raises(ValueError, match="must be linear in traces"):
        TRACES.normal(sp.Trace(P) * sp.Trace(C))
    with pytest.raises(ValueError, match="must be linear in traces"):
        TRACES.normal(sp.log(sp.Determinant(C)))
    with pytest.raises(ValueError, match="sums, products, transposes, inverses; got A"):
        TRACES.normal(sp.Trace(A.inverse() * P))
    with pytest.raises(ValueError, match="log det must be of a matrix symbol, times a scalar"):
        TRACES.along(sp.log(sp.Determinant(C)) * sp.Trace(P), {C: P})


# Quadratic formulas -----------------------------------------------------------------------------------------


def test_quadratic_formulas_are_read_exactly():
    form = quadratic_formula(cg.SymbolicEnergy("0.1*x**2 + x*y + 3*y**2 - 2*y + 7", ["x", "y"]))
    assert form == (sp.Matrix([[sp.Rational(1, 5), 1], [1, 6]]), sp.Matrix([0, 2]))
    energy = cg.Quadratic([[2.0, 0.5], [0.5, 1.0]], [0.3, -0.2])
    precision, push = quadratic_formula(energy)
    assert precision == sp.Matrix([[2, sp.Rational(1, 2)], [sp.Rational(1, 2), 1]])
    assert push == sp.Matrix([sp.Rational(1, 2), sp.Rational(-1, 20)])
    for other in (cg.DoubleWell(2), cg.MLPEnergy(2, width=4, depth=1), cg.GaussianMixture([[0.0], [1.0]], 1.0)):
        assert quadratic_formula(other) is None


# Bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gaussian_family(4), "dim must be at most 3 for full matrices of symbols; got 4. Pass diagonal=True"),
        (lambda: gaussian_family(0), "dim must be an integer of at least 1; got 0"),
        (lambda: gaussian_family(2.0), "dim must be an integer of at least 1; got 2.0"),
        (lambda: gaussian_family(None, diagonal=True), "diagonal is for an explicit dim"),
        (lambda: SymbolicGaussian([[1, 2]], [[1]]), r"mean must be a vector of d expressions; got shape \(1, 2\)"),
        (lambda: SymbolicGaussian([1, 2], [[1]]), r"covariance must be \(2, 2\), to fit mean; got \(1, 1\)"),
        (lambda: SymbolicGaussian([1, 2], [[1, 2], [3, 4]]), "covariance must be symmetric"),
    ],
)
def test_bad_families(make, message):
    with pytest.raises(ValueError, match=message):
        make()
