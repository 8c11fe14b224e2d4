"""Energies and loops as python-control systems: its tools on them, exact derivatives, exact certificates."""

import control as ct
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
import sympy as sp
from scipy.linalg import expm, solve_continuous_lyapunov

import ctrlgen as cg
from ctrlgen.field import VectorField

matplotlib.use("Agg")

P = np.array([[2.0, 0.5], [0.5, 1.0]])
QUADRATIC, WELLS = cg.Quadratic(P, [0.3, -0.2]), cg.DoubleWell()
NETWORK = cg.MLPEnergy(2, width=8, depth=2, activation="tanh", key=1)
BENT = cg.SymbolicEnergy("(x**2 - 1)**2/4 + y**2*x**2/2 + cos(x*y)", ["x", "y"])
ENERGIES = [QUADRATIC, WELLS, NETWORK, BENT, cg.SymbolicEnergy("x**4/4 - x**2/2", ["x"])]
FAR = cg.BarrierFunction("4 - x^2 - y^2", ["x", "y"])
SETS = {"initial": cg.Ball([0, 0], 1), "unsafe": cg.Box([3, -1], [4, 1]), "domain": cg.Box([-3, -3], [4, 3]), "gain": 0}
TIGHT = {"rtol": 1e-10, "atol": 1e-10}


def flow(energy, **options):
    return cg.interop.to_nlsys(cg.ClosedLoop(cg.GradientFlow(0.1), energy), **options)


@pytest.mark.parametrize("energy", ENERGIES, ids=lambda e: type(e).__name__)
def test_the_controller_block_commands_minus_the_gradient(energy, rng):
    block = cg.interop.to_nlsys(energy, name="block")
    assert (block.nstates, block.ninputs, block.noutputs, block.name) == (0, energy.dim, energy.dim, "block")
    assert block.input_labels == [f"x[{j}]" for j in range(energy.dim)]
    assert block.output_labels == [f"u[{j}]" for j in range(energy.dim)]
    x = rng.standard_normal(energy.dim)
    np.testing.assert_allclose(np.ravel(block(x)), -energy.gradient(x), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(ct.linearize(block, [], x).D, -energy.hessian(x), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("energy", "particles"), [(WELLS, 1), (NETWORK, 1), (BENT, 3), (ENERGIES[-1], 2)])
def test_the_linearization_is_minus_the_hessian(energy, particles, rng):
    system, d = flow(energy, particles=particles), energy.dim
    x = rng.standard_normal((particles, d))
    linear = ct.linearize(system, x.ravel(), copy_names=True)
    expected = np.zeros((particles * d, particles * d))
    for i, hessian in enumerate(energy.hessian(x)):
        expected[i * d : (i + 1) * d, i * d : (i + 1) * d] = -hessian
    np.testing.assert_allclose(linear.A, expected, rtol=1e-12, atol=1e-12)  # finite differences are off by 1e-6
    np.testing.assert_array_equal(linear.B, np.eye(particles * d))
    np.testing.assert_array_equal(linear.C, np.eye(particles * d))
    np.testing.assert_array_equal(linear.D, 0)
    assert linear.state_labels == system.state_labels


def test_signal_names_and_copies():
    system = flow(WELLS, particles=2, name="wells")
    assert system.state_labels == system.output_labels == ["x[0,0]", "x[0,1]", "x[1,0]", "x[1,1]"]
    assert system.input_labels == ["v[0,0]", "v[0,1]", "v[1,0]", "v[1,1]"]
    assert flow(WELLS).state_labels == ["x[0]", "x[1]"]
    twin = system.copy(name="twin")
    twin.set_inputs(["a", "b", "c", "d"])
    assert system.input_labels[0] == "v[0,0]"
    twin.params["k"] = 1.0
    assert "k" not in system.params
    x = np.array([0.5, 1.0, -2.0, 0.0])
    np.testing.assert_array_equal(twin.dynamics(0, x, np.ones(4)), system.dynamics(0, x, np.zeros(4)) + 1)


def test_responses_are_those_of_the_flow():
    """Closed form of a quadratic from several starts, with a constant added command; and cg's own flow of a network."""
    v, starts = np.array([0.4, -1.0]), np.array([[1.0, 2.0], [-1.0, 0.5]])
    time = np.linspace(0, 2, 9)
    inputs = np.tile(np.tile(v, 2)[:, None], 9)
    system = flow(QUADRATIC, particles=2)
    response = ct.input_output_response(system, time, inputs, starts.ravel(), solve_ivp_kwargs=TIGHT)
    rest = np.array([0.3, -0.2]) + np.linalg.solve(P, v)
    for k, t in enumerate(time):
        exact = rest + (starts - rest) @ expm(-t * P).T
        np.testing.assert_allclose(response.outputs[:, k].reshape(2, 2), exact, atol=1e-8)
    loop = cg.ClosedLoop(cg.GradientFlow(0.25, "adaptive", tolerance=1e-9), WELLS)
    own = loop.simulate(starts, 2.0, record=9, dtype=np.float64)
    response = ct.input_output_response(
        cg.interop.to_nlsys(loop, particles=2), time, 0, starts.ravel(), solve_ivp_kwargs=TIGHT
    )
    np.testing.assert_allclose(response.states.T.reshape(9, 2, 2), own.states, atol=1e-7)
    kept = own.to_control()
    assert kept.state_labels == ["x[0,0]", "x[0,1]", "x[1,0]", "x[1,1]"]
    np.testing.assert_allclose(kept.states, response.states, atol=1e-7)


@pytest.mark.filterwarnings("ignore:Casting complex values")  # python-control plots eigenvectors, complex in NumPy 2.5
def test_tools_of_python_control():
    system = flow(BENT)
    point = ct.find_operating_point(system, [1.2, 0.1], [0, 0])
    np.testing.assert_allclose(BENT.gradient(point.states), 0, atol=1e-7)
    poles = np.sort(ct.linearize(system, point).poles().real)
    np.testing.assert_allclose(poles, np.sort(-np.linalg.eigvalsh(BENT.hessian(point.states))), rtol=1e-10)
    # backwards in time a quartic leaves in finite time, which python-control warns of
    for energy, options in ((WELLS, {"plot_separatrices": False}), (QUADRATIC, {"gridspec": [4, 4]})):
        plot = ct.phase_plane_plot(flow(energy), [-2, 2, -1, 1], 2, **options)
        assert plot.axes is not None


def test_states_without_imaginary_parts_are_real():
    # eigenvectors are complex arrays in newer NumPy, and python-control starts separatrices from them
    system, x = flow(WELLS), np.array([0.5, -0.2])
    np.testing.assert_array_equal(system.dynamics(0, x + 0j, np.zeros(2)), system.dynamics(0, x, np.zeros(2)))
    with pytest.raises(ValueError, match="must be real"):
        system.dynamics(0, x + 0.1j, np.zeros(2))


def test_the_moments_of_a_gaussian_are_a_system():
    system = cg.interop.to_nlsys(cg.ClosedLoop(cg.GaussianPlant(0.5), QUADRATIC))
    assert system.state_labels == ["m[0]", "m[1]", "c[0,0]", "c[0,1]", "c[1,1]"]
    start = np.array([1.0, -1.0, 0.3, 0.1, 0.2])
    final = ct.input_output_response(system, np.linspace(0, 1.5, 4), 0, start, solve_ivp_kwargs=TIGHT).states[:, -1]
    loop = cg.ClosedLoop(cg.GaussianPlant(0.5), QUADRATIC)
    exact = loop.simulate(cg.Gaussian(start[:2], [[0.3, 0.1], [0.1, 0.2]]), 1.5, record=2).final
    np.testing.assert_allclose(final[:2], exact.mean, atol=1e-8)
    np.testing.assert_allclose(final[2:], exact.covariance[np.triu_indices(2)], atol=1e-8)
    names = sp.symbols("a:5", real=True)
    formulas = VectorField(system, names).formulas()
    rest = np.concatenate([[0.3, -0.2], solve_continuous_lyapunov(P, np.eye(2))[np.triu_indices(2)]])
    values = [float(e.subs(dict(zip(names, rest, strict=True)))) for e in formulas]
    np.testing.assert_allclose(values, 0, atol=1e-12)


# Certificates ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("energy", ENERGIES, ids=lambda e: type(e).__name__)
def test_certificates_read_a_loop_as_they_read_its_energy(energy):
    names = ["x", "y"][: energy.dim]
    ours, plain = VectorField(flow(energy), names), VectorField(energy, names)
    assert (ours.exprs, ours.why_no_formula) == (plain.exprs, plain.why_no_formula)
    assert ours.discrete is False


def test_verdicts_are_those_of_the_energy():
    V, domain = cg.LyapunovFunction("x^2 + y^2", ["x", "y"]), cg.Box([-2, -2], [2, 2])
    for energy, status in ((cg.Quadratic(P), "PROVED"), (WELLS, "REFUTED")):
        verdict, plain = V.verify(flow(energy), domain), V.verify(energy, domain)
        assert verdict.status.name == plain.status.name == status
        assert verdict.margin == pytest.approx(plain.margin, rel=1e-12)
        assert verdict.recheck()


@pytest.mark.slow
def test_verdicts_on_a_network_are_those_of_the_energy():
    ours, plain = (FAR.verify(f, **SETS) for f in (flow(NETWORK), NETWORK))
    assert (ours.status, ours.margin) == (plain.status, pytest.approx(plain.margin, rel=1e-12))
    assert ours.status.name == "REFUTED"


def test_formulas_of_several_particles_and_of_blocks_in_python_control():
    x, y = sp.symbols("x y", real=True)
    well = cg.SymbolicEnergy("x**4/4 - x**2/2", ["x"])
    assert VectorField(flow(well, particles=2), [x, y]).exprs == (-(x**3) + x, -(y**3) + y)
    plant = ct.ss(0, 1, 1, 0, inputs=["w"], outputs=["z"], name="plant")
    block, gain = cg.interop.to_nlsys(well, name="block"), ct.ss([], [], [], 0.5, inputs=1, outputs=1, name="gain")
    wired = ct.interconnect(
        [gain, block, plant], connections=[["gain", "block"], ["plant", "gain"], ["block", "plant"]],
        inplist=["plant"], outlist=["plant"],
    )  # fmt: skip
    assert VectorField(wired, [x]).exprs == ((-(x**3) + x) / 2,)
    series = ct.interconnect(  # scaled before, not after: E'(x/2)
        [gain, block, plant], connections=[["gain", "plant"], ["plant", "block"], ["block", "gain"]],
        inplist=["plant"], outlist=["plant"],
    )  # fmt: skip
    assert sp.expand(VectorField(series, [x]).formulas()[0]) == -(x**3) / 8 + x / 2


def test_constant_metrics_of_linear_systems():
    """CASES 8: a metric for every rate below the magnitude of the spectral abscissa, none above."""
    a = np.array([[-1.0, 3.0, 0.0], [-2.0, -2.0, 1.0], [0.0, 0.3, -0.5]])
    abscissa = -np.linalg.eigvals(a).real.max()
    system = ct.ss(a, np.ones((3, 1)), np.ones((1, 3)), 0)
    below = cg.find_contraction_metric(system, ["x", "y", "z"], 0, abscissa - 1e-6)
    assert below.status.name == "PROVED"
    assert below.recheck()
    above = cg.find_contraction_metric(system, ["x", "y", "z"], 0, abscissa + 1e-6)
    assert above.status.name != "PROVED"
    assert above.found is None


def test_every_kind_of_system_is_a_vector_field():
    x, y = sp.symbols("x y", real=True)
    oscillator = ct.ss([[0, 1], [-0.1, -0.3]], [[0], [1]], [[1, 0]], 0, name="oscillator")
    assert VectorField(oscillator, [x, y]).exprs == (y, -x / 10 - 3 * y / 10)  # decimals, exactly
    weak = ct.ss([], [], [], 1.3, inputs=1, outputs=1, name="gain")
    links = [["oscillator", "-gain"], ["gain", "oscillator"]]
    fed = ct.interconnect([oscillator, weak], links, ["oscillator"], ["oscillator"])
    assert fed.A[1, 0] != -1.4  # its matrices are finite differences, here -1.4000000000000001
    assert VectorField(fed, [x, y]).exprs == (y, -7 * x / 5 - 3 * y / 10)
    cubic = ct.nlsys(None, lambda t, x, u, params: np.array([params["k"] * u[0] ** 3]), inputs=1, outputs=1,
                     params={"k": 2}, name="cubic")  # fmt: skip
    wired = ct.interconnect([oscillator, cubic], [["oscillator", "-cubic"], ["cubic", "oscillator"]], ["oscillator"])
    assert VectorField(wired, [x, y]).exprs == (y, -2 * x**3 - x / 10 - 3 * y / 10)
    stronger = ct.interconnect(
        [oscillator, cubic], [["oscillator", "-cubic"], ["cubic", "oscillator"]], ["oscillator"], params={"k": 5}
    )
    assert VectorField(stronger, [x, y]).exprs == (y, -5 * x**3 - x / 10 - 3 * y / 10)
    inner = ct.interconnect([oscillator, cubic], [["oscillator", "-cubic"], ["cubic", "oscillator"]],
                            ["oscillator"], ["oscillator"], name="inner")  # fmt: skip
    gain = ct.ss([], [], [], 3.0, inputs=1, outputs=1, name="gain")
    nested = ct.interconnect([inner, gain], [["inner", "-gain"], ["gain", "inner"]], ["inner"], params={"k": 7})
    assert VectorField(nested, [x, y]).exprs == (y, -7 * x**3 - 31 * x / 10 - 3 * y / 10)
    exact = [float(e.subs({x: 0.3, y: -0.2})) for e in VectorField(nested, [x, y])]  # as python-control has it
    np.testing.assert_allclose(nested.dynamics(0, [0.3, -0.2], np.zeros(1)), exact, rtol=1e-12)
    discrete = ct.ss([[0.5]], [[1]], [[1]], 0, 0.1)
    assert VectorField(discrete, [x]).discrete is True
    with pytest.raises(ValueError, match=r"f must have a state; got a TransferFunction. Pass control.ss\(f\)"):
        VectorField(ct.tf([1], [1, 1]), [x])


def test_a_network_inside_an_interconnection_is_read_by_jax(rng):
    plant = ct.ss(np.zeros((2, 2)), np.eye(2), np.eye(2), np.zeros((2, 2)), name="plant")
    block = cg.interop.to_nlsys(NETWORK, name="block")
    wired = ct.interconnect([plant, block], [["plant", "block"], ["block", "plant"]], ["plant"], ["plant"])
    field = VectorField(wired, ["x", "y"])
    assert field.exprs is None
    assert "no symbolic view" in field.why_no_formula
    x = rng.standard_normal(2)
    exact = cg.interop.to_nlsys(wired)
    np.testing.assert_allclose(ct.linearize(exact, x).A, -NETWORK.hessian(x), rtol=1e-12, atol=1e-12)
    assert exact.input_labels == wired.input_labels
    np.testing.assert_allclose(np.asarray(field.columns(jnp.asarray(x[:, None]))).T, -NETWORK.gradient(x[None]), 1e-5)


@pytest.mark.slow
def test_an_interconnection_of_two_energies_is_their_weighted_sum(rng):
    plant = ct.ss(np.zeros((2, 2)), np.eye(2), np.eye(2), np.zeros((2, 2)), name="plant")
    parts = [cg.interop.to_nlsys(e, name=f"E{k}") for k, e in enumerate((NETWORK, WELLS))]
    gains = [ct.ss([], [], [], w * np.eye(2), name=f"gain{k}") for k, w in enumerate((1.3, 0.4))]
    links = [["E0", "plant"], ["E1", "plant"], ["gain0", "E0"], ["gain1", "E1"], ["plant", "gain0", "gain1"]]
    wired = ct.interconnect([plant, *parts, *gains], links, ["plant"], ["plant"])
    whole, x = 1.3 * NETWORK + 0.4 * WELLS, rng.standard_normal(2)
    time = np.linspace(0, 2, 5)
    response = ct.input_output_response(wired, time, 0, x, solve_ivp_kwargs=TIGHT)
    loop = cg.ClosedLoop(cg.GradientFlow(0.5, "adaptive", tolerance=1e-10), whole)
    own = loop.simulate(x[None], 2.0, record=5, dtype=np.float64)
    np.testing.assert_allclose(response.states.T, own.states[:, 0], atol=1e-7)
    back = cg.ClosedLoop(cg.GradientFlow(0.1), QUADRATIC, extra=parts[1]).simulate(x[None], 0.5)
    summed = cg.ClosedLoop(cg.GradientFlow(0.1), QUADRATIC + WELLS).simulate(x[None], 0.5)
    np.testing.assert_allclose(back.final, summed.final, rtol=1e-5)  # a block of ours is a controller again


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (cg.Langevin(1.0, 0.01), "plant must be without noise.*no integrator of stochastic.*Langevin.*GradientFlow"),
        (cg.KineticLangevin(1.0, 1.0, 0.01), "plant must be without noise.*KineticLangevin"),
        (cg.interop.from_control(ct.ss(np.zeros((2, 2)), np.eye(2), np.eye(2), 0), 0.1, 0.5), "temperature 0.5"),
    ],
)
def test_noise_is_refused(plant, message):
    with pytest.raises(ValueError, match=message):
        cg.interop.to_nlsys(cg.ClosedLoop(plant, QUADRATIC))


def test_other_arguments_are_refused():
    ball = cg.SafetyFilter([cg.BarrierFunction("4 - x**2 - y**2", ["x", "y"])], gain=1.0)
    with pytest.raises(ValueError, match="safety must be None"):
        cg.interop.to_nlsys(cg.ClosedLoop(cg.GradientFlow(0.1), QUADRATIC, safety=ball))
    for particles in (0, 1.5, True):
        with pytest.raises(ValueError, match="particles must be a positive integer"):
            flow(QUADRATIC, particles=particles)
    with pytest.raises(ValueError, match="only a loop has particles"):
        cg.interop.to_nlsys(QUADRATIC, particles=2)
    with pytest.raises(TypeError, match="must be an Energy, a ClosedLoop or a python-control system; got function"):
        cg.interop.to_nlsys(jnp.sum)
    with pytest.raises(ValueError, match="controller must be quadratic"):
        cg.interop.to_nlsys(cg.ClosedLoop(cg.GaussianPlant(1.0), WELLS))
    with pytest.raises(ValueError, match="x0 must be 2 finite numbers"):
        flow(QUADRATIC).linearize([1.0, 2.0, 3.0])
    branching = ct.nlsys(lambda t, x, u, p: -x if x[0] > 0 else x, None, inputs=1, states=1)
    with pytest.raises(ValueError, match="system must run in JAX or on symbols"):
        cg.interop.to_nlsys(branching)
