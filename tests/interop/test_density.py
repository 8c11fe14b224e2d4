"""The density as a python-control system: against the grid itself, closed forms, and python-control's own tools."""

import control as ct
import numpy as np
import pytest
import sympy as sp

import ctrlgen as cg
from ctrlgen.interop.density import fokker_planck_ss, grid_system, slow_modes

WELLS = cg.SymbolicEnergy("(x**2 - 1)**2 + y**2/2", ["x", "y"])
GRID = cg.FokkerPlanckGrid([(-2.2, 2.2)] * 2, (24, 24), 0.2)
LOOP = cg.ClosedLoop(GRID, WELLS)
TIMES = np.linspace(0, 1, 6)
FINE = {"solve_ivp_method": "BDF", "solve_ivp_kwargs": {"rtol": 1e-8, "atol": 1e-12}}


def start():
    return GRID.discretise(cg.Gaussian([0.9, 0.1], 0.06 * np.eye(2)))


def test_ornstein_uhlenbeck_in_closed_form():
    # E = κx²/2, input x, output x: ẏ = -κy - u exactly, at every temperature
    kappa, eps = 2.0, 0.5
    grid = cg.FokkerPlanckGrid([(-4, 4)], (200,), eps, flux="curved")
    system = fokker_planck_ss(cg.Quadratic([[kappa]]), grid, inputs=["x1"], outputs=["x1"], order=1)
    np.testing.assert_allclose(system.A, [[-kappa]], rtol=1e-4)
    np.testing.assert_allclose(system.C @ system.B, [[-1.0]], rtol=1e-3)
    assert (system.input_labels, system.output_labels, system.state_labels) == (["u[x1]"], ["y[x1]"], ["z[0]"])


def test_case_15_poles_and_names():
    fine = cg.FokkerPlanckGrid([(-2.2, 2.2)] * 2, (60, 60), 0.2)
    system = fokker_planck_ss(WELLS, fine, inputs=["x", "y"], outputs=["x", "x*y"], order=4)
    np.testing.assert_allclose(np.sort(ct.poles(system).real)[::-1], [-0.01119, -0.9954, -1.0066, -1.986], rtol=1.5e-3)
    assert system.input_labels == ["u[x]", "u[y]"]
    assert system.output_labels == ["y[x]", "y[x*y]"]
    assert isinstance(system, ct.StateSpace)


def test_it_is_the_linearization_of_the_bilinear_systems():
    few = fokker_planck_ss(WELLS, GRID, ["x", "y"], ["x", "x*y"], 8)
    reduced = ct.linearize(grid_system(LOOP, ["x", "y"], ["x", "x*y"], order=8), np.zeros(8), [0, 0])
    for name in "ABCD":
        np.testing.assert_allclose(getattr(reduced, name), getattr(few, name), atol=1e-12)
    whole = ct.linearize(grid_system(LOOP, ["x", "y"], ["x", "x*y"]), np.asarray(GRID.gibbs(WELLS)), [0, 0])
    many = fokker_planck_ss(WELLS, GRID, ["x", "y"], ["x", "x*y"], 120)
    for s in (0.02j, 0.5j, 1.0):
        np.testing.assert_allclose(many(s), whole(s), atol=2e-4)
    static = fokker_planck_ss(WELLS, GRID, ["x", "y"], ["x", "x*y"], 8, feedthrough=True)
    np.testing.assert_allclose(static(0), whole(0), atol=1e-8)
    assert not few.D.any()


def test_exact_linearization_agrees_with_differences():
    full = grid_system(cg.ClosedLoop(cg.FokkerPlanckGrid([(-2, 2)], (12,), 0.3), cg.DoubleWell(1)), ["x1"], ["x1**2"])
    rng = np.random.default_rng(0)
    x, u = rng.uniform(0.5, 1, 12) / 9, np.array([0.4])
    exact, h = ct.linearize(full, x, u), 1e-6
    columns = [(full.dynamics(0, x + h * e, u) - full.dynamics(0, x - h * e, u)) / (2 * h) for e in np.eye(12)]
    np.testing.assert_allclose(exact.A, np.stack(columns, axis=1), atol=1e-7)
    b = (full.dynamics(0, x, u + h) - full.dynamics(0, x, u - h)) / (2 * h)
    np.testing.assert_allclose(exact.B[:, 0], b, atol=1e-7)
    assert np.abs(b).max() > 0.01


def test_the_bilinear_system_moves_as_the_grid_does():
    full = grid_system(LOOP, ["x", "y"], ["x", "y"])
    run = ct.input_output_response(full, TIMES, np.tile([[1.5], [-0.5]], 6), np.asarray(start()).ravel(), **FINE)
    tilted = cg.ClosedLoop(GRID, WELLS + cg.SymbolicEnergy("3*x/2 - y/2", ["x", "y"]))
    moved = tilted.simulate(start(), 1.0, record=6)
    gibbs = GRID.moments(GRID.gibbs(WELLS))[0]
    np.testing.assert_allclose(run.outputs.T, moved.mean - gibbs, atol=1e-6)
    many = grid_system(
        LOOP, ["x", "y"], ["x", "y"], order=150
    )  # to first order in u, of which the cells' rates are not
    z0 = slow_modes(WELLS, GRID, 150).coordinates(start())
    short = TIMES[:2] / 10
    run = ct.input_output_response(many, short, np.tile([[1.5], [-0.5]], 2), z0, solve_ivp_method="BDF")
    exact = tilted.simulate(start(), 0.02, record=2)
    np.testing.assert_allclose(run.outputs[:, -1], exact.mean[-1] - gibbs, atol=2e-3)
    assert np.abs(exact.mean[-1] - exact.mean[0]).min() > 0.005
    # without inputs, the modes decay at their rates
    few = grid_system(LOOP, ["x", "y"], order=6)
    z0 = slow_modes(WELLS, GRID, 6).coordinates(start())
    free = ct.input_output_response(few, TIMES, np.zeros((2, 6)), z0, solve_ivp_kwargs={"rtol": 1e-9, "atol": 1e-12})
    rates = slow_modes(WELLS, GRID, 6).rates
    np.testing.assert_allclose(free.outputs, z0[:, None] * np.exp(np.outer(rates, TIMES)), atol=1e-7)


@pytest.mark.slow
def test_a_loop_under_feedback_is_closed():
    block = cg.interop.density_feedback(WELLS, GRID, ["x", "y"], order=6, period=0.0005)
    loop = cg.ClosedLoop(GRID, block)
    whole, few = grid_system(loop, outputs=["x"]), grid_system(loop, outputs=["x"], order=6)
    gibbs = np.asarray(GRID.gibbs(WELLS))
    poles = np.sort(ct.poles(ct.linearize(few, np.zeros(6))).real)
    np.testing.assert_allclose(poles, np.sort(block.design.poles.real), rtol=0.05)
    spectrum = ct.poles(ct.linearize(whole, gibbs)).real  # the modes that are not fed back keep their rates
    assert max(np.abs(spectrum - p).min() for p in poles) < 1e-6
    assert np.sort(spectrum)[-2] < -0.9
    run = ct.input_output_response(whole, TIMES, 0, np.asarray(start()).ravel(), **FINE)
    held = loop.simulate(start(), 1.0, record=6)
    seen = np.asarray(run.outputs).ravel()
    np.testing.assert_allclose(seen, held.mean[:, 0] - GRID.moments(gibbs)[0][0], atol=2e-3)
    assert abs(seen[-1]) < 0.02 < abs(seen[0])


def test_to_nlsys_takes_grid_loops():
    system = cg.interop.to_nlsys(LOOP, inputs=["x"], outputs=["x"], order=3)
    assert (system.nstates, system.ninputs, system.noutputs) == (3, 1, 1)
    assert cg.interop.to_nlsys(LOOP).nstates == 24 * 24


@pytest.mark.filterwarnings("ignore")  # python-control's own
def test_python_controls_tools_work():
    system = fokker_planck_ss(WELLS, GRID, ["x", "y"], ["x", "y"], order=5)
    gain, _, poles = ct.lqr(system, np.eye(5), 0.01 * np.eye(2))
    assert gain.shape == (2, 5)
    assert poles.real.max() < -0.09
    values = np.sort(ct.hsvd(system).real)[::-1]
    assert values[0] > values[1] > 0.1  # one for x, one for y; the other modes are not reached
    assert ct.balred(system, 2).nstates == 2
    assert ct.gram(system, "c").shape == (5, 5)
    step = ct.step_response(system, np.linspace(0, 400, 50))
    overlap = slow_modes(WELLS, GRID, 5).overlap([cg.SymbolicEnergy("x", ["x", "y"])])[:, 0]
    assert abs(step.outputs[0, 0, -1] + overlap @ overlap / 0.2) < 0.1  # -Cov/ε on these modes
    response = ct.frequency_response(system, np.array([0.001, 0.1, 1.0]))
    assert response.magnitude.shape == (2, 2, 3)


@pytest.mark.slow
def test_data_driven_systems():
    system = fokker_planck_ss(WELLS, cg.Langevin(0.2, 0.01), ["x", "y"], ["x"], 3)
    exact = fokker_planck_ss(WELLS, cg.FokkerPlanckGrid([(-2.2, 2.2)] * 2, (60, 60), 0.2), ["x", "y"], ["x"], 3)
    assert exact.A[0, 0] * 1.6 < system.A[0, 0] < exact.A[0, 0]
    np.testing.assert_allclose((system.C @ system.B)[0, 0], (exact.C @ exact.B)[0, 0], atol=0.08)


def test_functions_of_every_kind_and_labels():
    x, _ = sp.symbols("x y")
    system = fokker_planck_ss(WELLS, GRID, [x, lambda v: v[1]], [cg.SymbolicEnergy("x", ["x", "y"])], 3)
    assert system.input_labels == ["u[x]", "u[1]"]
    assert system.output_labels == ["y[0]"]
    reference = fokker_planck_ss(WELLS, GRID, ["x", "y"], ["x"], 3)
    np.testing.assert_allclose(system.B, reference.B, atol=1e-10)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: slow_modes(WELLS, cg.GradientFlow(0.1), 3), TypeError, "plant must be a FokkerPlanckGrid, particles"),
        (lambda: slow_modes(WELLS, cg.Langevin(0.2, 0.1, metric=[1, 2]), 3), ValueError, "no metric and no skew"),
        (lambda: slow_modes(WELLS, GRID, 0), ValueError, "order must be an integer of at least 1"),
        (lambda: slow_modes("x", GRID, 1), TypeError, "energy must be an Energy"),
        (lambda: fokker_planck_ss(WELLS, GRID, "x"), ValueError, "inputs must be a list"),
        (lambda: fokker_planck_ss(WELLS, GRID, ["z"]), ValueError, r"inputs\[0\]"),
        (lambda: grid_system(cg.ClosedLoop(cg.GradientFlow(0.1), WELLS), ["x"]), ValueError, "grid loops"),
        (
            lambda: grid_system(cg.ClosedLoop(GRID, cg.interop.density_feedback(WELLS, GRID, ["x"], 2)), ["x"]),
            ValueError,
            "inputs must be omitted under a density feedback",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
