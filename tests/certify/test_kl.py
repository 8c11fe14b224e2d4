"""KL as the Lyapunov functional: every representation against the others, closed forms and finite differences."""

import math

import numpy as np
import pytest
import sympy as sp
from scipy.integrate import quad

import ctrlgen as cg
from ctrlgen.certify.gaussian_family import SymbolicGaussian

HEAT = 0.8
QUADRATIC = cg.Quadratic([[2.0, 0.5], [0.5, 1.0]], [0.3, -0.2])
WELL = cg.DoubleWell(2)
START = cg.Gaussian([0.5, 0.1], [[0.4, 0.1], [0.1, 0.3]])
OTHER = cg.Gaussian([0.0, 0.0], 0.5)
GRID = cg.FokkerPlanckGrid([(-6, 6)] * 2, (120, 120), HEAT)
GIBBS = QUADRATIC.mean, HEAT * np.linalg.inv(QUADRATIC.precision)


def functional(energy=QUADRATIC, heat=HEAT, **options):
    return cg.KLLyapunov(energy, heat, **options)


# Values ---------------------------------------------------------------------------------------------------------


def test_gaussian_values_are_the_closed_forms():
    V = functional()
    kl = cg.measure.kl_gaussians(START.mean, START.covariance, *GIBBS)
    fisher = cg.measure.fisher_gaussians(START.mean, START.covariance, *GIBBS)
    assert V.value(START) == pytest.approx(kl, rel=1e-12)
    assert V.derivative(START) == pytest.approx(-HEAT * fisher, rel=1e-12)
    assert V.dissipation(START) == -V.derivative(START)
    assert isinstance(V.value(START), float)
    assert isinstance(V.derivative(START), float)
    assert isinstance(V.flow_derivative(START), float)


def test_masses_are_exact_sums():
    grid = cg.FokkerPlanckGrid([(-2.5, 2.5)] * 2, (40, 40), HEAT)
    V, masses = functional(WELL), grid.discretise(OTHER)
    plain = np.array(masses)
    gibbs = np.exp(-WELL(grid.cells.reshape(-1, 2)) / HEAT).reshape(grid.shape)
    exact = float(np.sum(plain * np.log(plain / (gibbs / gibbs.sum()))))
    slope = float(grid.generator(WELL) @ plain.ravel() @ np.log(plain / gibbs).ravel())
    for state in ((masses,), (plain, grid), (masses, grid)):
        value = V.value(*state)
        assert isinstance(value, float)
        assert value == pytest.approx(exact, rel=1e-12)
        assert V.derivative(*state) == pytest.approx(slope, rel=1e-9)


@pytest.mark.parametrize(("name", "tolerance"), [("value", 1e-8), ("derivative", 1e-2), ("flow_derivative", 1e-10)])
def test_the_grid_agrees_with_the_closed_form(name, tolerance):
    V = functional()
    assert getattr(V, name)(GRID.discretise(START)) == pytest.approx(getattr(V, name)(START), rel=tolerance)


@pytest.mark.parametrize("energy", [QUADRATIC, WELL], ids=["quadratic", "well"])
@pytest.mark.parametrize("name", ["value", "derivative", "flow_derivative"])
def test_particles_agree_within_their_errors(energy, name):
    V = functional(energy)
    found = getattr(V, name)(START.sample(1, 8000))
    assert isinstance(found, cg.Estimate)
    exact = float(getattr(V, name)(GRID.discretise(START)))
    bias = 0.01 if name != "derivative" else 0.06 * abs(exact)  # of neighbours; of fields that do not reach ∇log ρ
    assert 0 < found.error < 0.15 * max(1, abs(exact))
    assert abs(found.value - exact) < 3 * found.error + bias


def test_the_transition_method_speaks_of_the_law_after_a_step():
    h, x = 0.1, START.sample(2, 6000)
    V, after = functional(), cg.GaussianPlant(HEAT).ula(QUADRATIC, START, h, 1)
    value = V.value(x, method="transition", step=h)
    assert abs(value.value - V.value(after)) < 4 * value.error + 0.01
    assert abs(V.value(after) - V.value(START)) > 10 * value.error  # so that the two laws can be told apart
    slope = V.derivative(x, method="transition", step=h)
    assert V.derivative(after) - 0.15 * abs(V.derivative(after)) < slope.value < V.derivative(after) + 3 * slope.error
    assert V.dissipation(x, method="transition", step=h).value == -slope.value
    exact = functional(log_partition=0.0).value(x, method="transition", step=h)
    assert value.value - exact.value == pytest.approx(QUADRATIC.log_partition(HEAT))


def test_a_gaussian_under_another_energy_by_quadrature():
    # moments of N(m, s) in closed form: E = (x² - 1)² has E[E] = m₄ - 2 m₂ + 1
    energy, heat, m, s = cg.DoubleWell(1), 0.5, 0.4, 0.3
    second, fourth = m**2 + s, m**4 + 6 * m**2 * s + 3 * s**2
    mean = fourth - 2 * second + 1
    log_z = math.log(quad(lambda x: math.exp(-((x**2 - 1) ** 2) / heat), -5, 5, epsabs=0, epsrel=1e-12)[0])
    exact = mean / heat + log_z - 0.5 * math.log(2 * math.pi * math.e * s)
    V = functional(energy, heat)
    found = V.value(cg.Gaussian([m], s))
    assert found.value == pytest.approx(exact, abs=1e-6)
    assert found.error < 1e-5
    # E|∇E/ε - (x - m)/s|² and E[E''] - E|E'|²/ε by quadrature on a line
    density = lambda x: math.exp(-((x - m) ** 2) / (2 * s)) / math.sqrt(2 * math.pi * s)  # noqa: E731
    push = lambda x: 4 * x * (x**2 - 1)  # noqa: E731
    fisher = quad(lambda x: density(x) * (push(x) / heat - (x - m) / s) ** 2, -6, 6, epsrel=1e-10)[0]
    assert V.derivative(cg.Gaussian([m], s)).value == pytest.approx(-heat * fisher, rel=1e-8)
    source = quad(lambda x: density(x) * (12 * x**2 - 4 - push(x) ** 2 / heat), -6, 6, epsrel=1e-10)[0]
    assert V.flow_derivative(cg.Gaussian([m], s)).value == pytest.approx(source, rel=1e-8)
    rough = functional(cg.SymbolicEnergy("x**2/2 + 3*tanh(40*x)", ["x"]), heat, log_partition=0.0)
    value = rough.value(cg.Gaussian([0.2], s))
    density = lambda x: math.exp(-((x - 0.2) ** 2) / (2 * s)) / math.sqrt(2 * math.pi * s)  # noqa: E731
    exact = quad(lambda x: density(x) * (x**2 / 2 + 3 * math.tanh(40 * x)), -6, 6, points=[0.0])[0] / heat
    exact -= 0.5 * math.log(2 * math.pi * math.e * s)
    assert abs(value.value - exact) < 3 * value.error  # a step that the rule does not resolve is in the error
    assert value.error > 1e-3


def test_symbolic_states_are_the_numbers_in_symbols():
    V, a = functional(), sp.Symbol("a", positive=True)
    state = SymbolicGaussian([sp.Rational(1, 2), a], [[sp.Rational(2, 5), a], [a, sp.Rational(3, 10)]])
    other = SymbolicGaussian([0, 0], sp.eye(2) / 2)
    for name in ("value", "derivative", "flow_derivative"):
        formula = getattr(V, name)(state)
        assert formula.free_symbols == {a}
        assert float(formula.subs(a, 0.1)) == pytest.approx(getattr(V, name)(START), rel=1e-12)
    assert float(V.difference(state, other).subs(a, 0.1)) == pytest.approx(V.difference(START, OTHER), rel=1e-12)
    heat = sp.Symbol("epsilon", positive=True)
    symbolic = functional(QUADRATIC, heat).value(state)
    assert symbolic.free_symbols == {a, heat}
    assert float(symbolic.subs({a: 0.1, heat: HEAT})) == pytest.approx(V.value(START), rel=1e-12)
    assert float(V.dissipation(state).subs(a, 0.1)) == pytest.approx(V.dissipation(START), rel=1e-12)


def test_any_quadratic_formula_is_exact():
    formula = functional(cg.SymbolicEnergy("x**2 + x*y/2 + y**2/2 + y + 3", ["x", "y"]))
    same = functional(cg.Quadratic([[2.0, 0.5], [0.5, 1.0]], np.linalg.solve([[2.0, 0.5], [0.5, 1.0]], [0.0, -1.0])))
    for name in ("value", "derivative", "flow_derivative"):
        assert getattr(formula, name)(START) == pytest.approx(getattr(same, name)(START), rel=1e-12)
    assert formula.difference(START, OTHER).value == pytest.approx(same.difference(START, OTHER), rel=1e-9)
    composed = functional(0.5 * QUADRATIC + cg.Quadratic(np.eye(2), [1.0, 1.0]))
    assert composed.value(START) == pytest.approx(composed.value(GRID.discretise(START)), rel=1e-6)


# Derivatives --------------------------------------------------------------------------------------------------


def test_the_derivative_is_that_of_the_value_along_the_closed_loop():
    V, h = functional(), 1e-4
    (gaussian,) = cg.GaussianPlant(HEAT).start(QUADRATIC, START, step=h).advance([1])
    middle = cg.GaussianPlant(HEAT).start(QUADRATIC, START, step=h / 2).advance([1])[0]
    assert (V.value(gaussian) - V.value(START)) / h == pytest.approx(V.derivative(middle), rel=1e-6)
    W, masses = functional(WELL), GRID.discretise(START)
    first, second = GRID.start(WELL, masses, step=h / 2).advance([1, 1])
    assert (W.value(second) - W.value(masses)) / h == pytest.approx(W.derivative(first), rel=1e-5)


def test_the_flow_derivative_is_that_of_the_value_without_noise():
    # N(m, C) under ẋ = -P(x - μ): m and C move by e^{-Pt}
    V, h = functional(), 1e-5
    basis, rates = np.linalg.eigh(QUADRATIC.precision)[::-1]
    values = []
    for t in (-h, h):
        move = (basis * np.exp(-t * rates)) @ basis.T
        mean = QUADRATIC.mean + move @ (START.mean - QUADRATIC.mean)
        values.append(V.value(cg.Gaussian(mean, move @ START.covariance @ move.T)))
    assert (values[1] - values[0]) / (2 * h) == pytest.approx(V.flow_derivative(START), rel=1e-7)


def test_without_noise_v_rises_from_the_gibbs_measure():
    # E = κx²/2 from ρ*: V(t) = (e^{-2κt} - 1 + 2κt)/2, so V̇ = κ(1 - e^{-2κt})
    V, kappa = functional(cg.Quadratic([[1.5]]), 0.6), 1.5
    for t in (0.0, 0.2, 1.0):
        shrunk = cg.Gaussian([0.0], 0.6 / kappa * math.exp(-2 * kappa * t))
        assert V.value(shrunk) == pytest.approx((math.exp(-2 * kappa * t) - 1 + 2 * kappa * t) / 2, abs=1e-14)
        assert V.flow_derivative(shrunk) == pytest.approx(kappa * (1 - math.exp(-2 * kappa * t)), abs=1e-12)


# Differences --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("energy", [QUADRATIC, WELL], ids=["quadratic", "well"])
def test_differences_do_without_log_z(energy):
    V = functional(energy, log_partition=math.nan)  # whatever asks for log Z gets nan
    right = functional(energy)
    exact = right.value(GRID.discretise(START)) - right.value(GRID.discretise(OTHER))
    first, second = START.sample(3, 6000), OTHER.sample(4, 6000)
    for a, b in (
        (START, OTHER),
        (GRID.discretise(START), GRID.discretise(OTHER)),
        (START, GRID.discretise(OTHER)),
        (first, second),
        (first, OTHER),
    ):
        found = V.difference(a, b)
        value, error = (found.value, found.error) if isinstance(found, cg.Estimate) else (found, 0.0)
        assert abs(value - exact) < 3 * error + (0.01 if error > 1e-3 else 1e-6)
    coupled = V.difference(first, second)
    assert coupled.error == pytest.approx(
        math.hypot(*(V.difference(x, OTHER).error for x in (first, second))), rel=1e-3
    )


def test_differences_where_there_is_no_gibbs_measure():
    saddle = cg.compose([cg.Quadratic(np.diag([1.0, 3.0])), cg.Quadratic(np.eye(2))], [1.0, -2.0], check=False)
    V = functional(saddle)  # ½ xᵀ diag(-1, 1) x
    # E[E]/ε - H: ½ tr(PC)/ε + ½ mᵀPm/ε - ½ log det C
    terms = []
    for g in (START, OTHER):
        energy = (-g.covariance[0, 0] + g.covariance[1, 1] - g.mean[0] ** 2 + g.mean[1] ** 2) / 2
        terms.append(energy / HEAT - 0.5 * math.log(np.linalg.det(g.covariance)))
    assert V.difference(START, OTHER) == pytest.approx(terms[0] - terms[1], rel=1e-12)
    with pytest.raises(ValueError, match="kl needs a Gibbs measure"):
        V.value(START)


# log Z ----------------------------------------------------------------------------------------------------------


def test_log_partition_is_found_once_and_can_be_given(monkeypatch):
    V = functional(WELL)
    z = quad(lambda x: math.exp(-((x**2 - 1) ** 2) / HEAT), -5, 5, epsrel=1e-10)[0] * math.sqrt(2 * math.pi * HEAT)
    assert V.log_partition.value == pytest.approx(math.log(z), abs=1e-5)
    assert 0 < V.log_partition.error < 1e-5
    monkeypatch.setattr(cg.measure, "log_partition", None)
    assert V.log_partition.value == pytest.approx(math.log(z), abs=1e-5)
    x = START.sample(0, 500)
    given = functional(WELL, log_partition=cg.Estimate(1.0, 0.25))
    assert given.value(x).value - V.value(x).value == pytest.approx(1.0 - math.log(z), abs=1e-5)
    assert given.value(x).error == pytest.approx(math.hypot(V.value(x).error, 0.25), rel=1e-4)


def test_log_partition_in_closed_form_in_any_dimension():
    d = 7
    first, second = cg.Quadratic(np.diag(np.arange(1.0, 8.0)), np.ones(d)), cg.Quadratic(np.eye(d), -np.ones(d))
    V = functional(first + second)
    assert V.log_partition.error == 0
    x = cg.Gaussian(np.zeros(d), 0.3).sample(0, 50)
    # log ρ* = -E/ε - log Z is the density of the Gaussian with precision (P + I)/ε
    precision = np.diag(np.arange(2.0, 9.0))
    mean = np.linalg.solve(precision, np.arange(1.0, 8.0) - 1)
    density = cg.Gaussian(mean, HEAT * np.linalg.inv(precision)).log_density(x)
    np.testing.assert_allclose(-(first + second)(x) / HEAT - V.log_partition.value, density, rtol=1e-10)


# Bad input ------------------------------------------------------------------------------------------------------

X = START.sample(0, 100)
COLD = cg.FokkerPlanckGrid([(-6, 6)] * 2, (20, 20), 0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: functional(QUADRATIC, 0.0), "temperature must be positive and finite; got 0"),
        (lambda: functional().value(np.array(GRID.discretise(START))), r"shape \(120, 120\), .* pass grid="),
        (lambda: functional().value(np.zeros((50, 3))), r"particles \(n, 2\) of this 2-dimensional energy"),
        (lambda: functional().value(X, GRID), r"masses of the grid's shape \(120, 120\); got shape \(100, 2\)"),
        (lambda: functional().value(COLD.discretise(START)), "grid's temperature must be that .*0.8; got 0.5"),
        (lambda: functional().value(GRID.discretise(START), COLD), "grid must be the density's own"),
        (lambda: functional().value(cg.Gaussian([0.0], 1.0)), "Gaussian is 1-dimensional but the energy is 2"),
        (lambda: functional().value(SymbolicGaussian([0], [[1]])), "Gaussian is 1-dimensional but the energy is 2"),
        (lambda: functional().value(X, method="kernel"), "method must be one of 'neighbours', 'transition'; got 'kern"),
        (lambda: functional().value(X, method="transition"), "step must be given for method='transition'"),
        (lambda: functional().value(X, method="transition", step=-1.0), "step must be positive"),
        (lambda: functional().value(X, step=0.1), "step is for method='transition'"),
        (lambda: functional(WELL).value(SymbolicGaussian([0, 0], sp.eye(2))), "energy with a quadratic formula"),
        (lambda: functional(QUADRATIC, sp.Symbol("e")).value(START), "temperature must be a number for this state"),
        (lambda: functional(QUADRATIC, sp.Symbol("e")).value(X), "temperature must be a number for this state"),
        (lambda: functional(cg.DoubleWell(4)).derivative(cg.Gaussian(np.zeros(4), 1.0)), "quadrature in up to 3 dim"),
        (
            lambda: functional(cg.SymbolicEnergy("x**2 - y**2", ["x", "y"])).value(SymbolicGaussian([0, 0], sp.eye(2))),
            "V needs a Gibbs measure",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cg.KLLyapunov(lambda x: x, 1.0), "energy must be an Energy; got function. Wrap"),
        (lambda: functional().value(cg.datasets.two_moons), "state must be a density .* Discretise it"),
        (lambda: functional().value("rho"), "state must be particles"),
        (lambda: functional().value(np.zeros((20, 20)), "grid"), "grid must be a FokkerPlanckGrid; got str"),
        (lambda: functional().difference(START, SymbolicGaussian([0, 0], sp.eye(2))), "two of one kind"),
    ],
)
def test_what_is_no_density_is_refused(call, message):
    with pytest.raises(TypeError, match=message):
        call()
