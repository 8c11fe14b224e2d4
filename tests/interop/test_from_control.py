"""Python-control systems as plants and as further controllers of a closed loop, against closed forms and own plants."""

from typing import Any

import control as ct
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm, solve_continuous_lyapunov

import ctrlgen as cg
from ctrlgen.system import equations

P = np.array([[2.0, 0.5], [0.5, 1.0]])
Z, ID = np.zeros((2, 2)), np.eye(2)
QUADRATIC, WELLS = cg.Quadratic(P), cg.DoubleWell()
INTEGRATOR = ct.ss(Z, ID, ID, Z)
MASS = ct.ss(np.block([[Z, ID], [Z, -0.7 * ID]]), np.vstack([Z, ID]), np.hstack([ID, Z]), Z)  # damped, y = position
FLOW = cg.GradientFlow(0.01)
F64: dict[str, Any] = {"dtype": np.float64}


@pytest.fixture
def starts(rng):
    return rng.standard_normal((40, 2))


# As plant -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_integrator_is_the_gradient_flow(starts):
    energy = QUADRATIC
    ours = cg.ClosedLoop(INTEGRATOR, energy).simulate(starts, 1.0, record=5, **F64)
    own = cg.ClosedLoop(cg.GradientFlow(0.25, "adaptive"), energy).simulate(starts, 1.0, record=5, **F64)
    np.testing.assert_allclose(ours.states, own.states, atol=1e-10)
    np.testing.assert_array_equal(ours.time, own.time)
    np.testing.assert_allclose(ours.energy, own.energy, atol=1e-10)
    np.testing.assert_allclose(ours.kl, own.kl, atol=1e-10)


def test_the_integrator_by_euler_is_the_gradient_flow_by_euler(starts):
    energy, plant = QUADRATIC, cg.interop.from_control(INTEGRATOR, 0.01, scheme="euler")
    ours = cg.ClosedLoop(plant, energy).simulate(starts, 0.5, **F64)
    own = cg.ClosedLoop(cg.GradientFlow(0.01), energy).simulate(starts, 0.5, **F64)
    np.testing.assert_allclose(ours.final, own.final, atol=1e-12)


@pytest.mark.slow
def test_the_integrator_with_noise_is_langevin(starts):
    plant = cg.interop.from_control(INTEGRATOR, 0.01, temperature=0.5)
    ours = cg.ClosedLoop(plant, WELLS).simulate(starts, 0.5, key=3, **F64)
    own = cg.ClosedLoop(cg.Langevin(0.5, 0.01), WELLS).simulate(starts, 0.5, key=3, **F64)
    np.testing.assert_allclose(ours.states, own.states, atol=1e-12)
    assert ours.plant.reference_temperature == 0.5
    np.testing.assert_allclose(ours.free_energy, own.free_energy, atol=1e-10)
    held = cg.interop.from_control(ct.ss(ID, 0.01 * ID, ID, Z, 0.01), temperature=0.5)  # x⁺ = x + h(u + √(2ε/h) ξ)
    ours = cg.ClosedLoop(held, WELLS, schedule=lambda t: 1 / (1 + t)).simulate(starts, 0.5, key=3, **F64)
    own = cg.ClosedLoop(cg.Langevin(0.5, 0.01), WELLS, schedule=lambda t: 1 / (1 + t))
    np.testing.assert_allclose(ours.states, own.simulate(starts, 0.5, key=3, **F64).states, atol=1e-12)


@pytest.mark.slow
def test_a_damped_mass_moves_with_inertia(starts):
    x, c = np.hstack([starts, 0.3 * starts]), np.array([[0.0, 2.0], [1.0, 0.5]])  # the controller sees c times position
    response = cg.ClosedLoop(ct.ss(MASS.A, MASS.B, np.hstack([c, Z]), Z), QUADRATIC).simulate(x, 2.0, record=5, **F64)
    assert response.states.shape == (5, 40, 4)
    motion = np.block([[Z, ID], [-P @ c, -0.7 * ID]])
    for t, states in zip(response.time, response.states, strict=True):
        np.testing.assert_allclose(states, x @ expm(t * motion).T, atol=1e-4)
    outputs = response.states[..., :2] @ c.T
    expected = [float(np.mean(QUADRATIC(y))) for y in outputs]
    np.testing.assert_allclose(response.energy, expected, rtol=1e-12)
    assert response.mean.shape == (5, 4)
    assert response.covariance.shape == (5, 4, 4)
    assert response.to_control().nstates == 160
    assert response.to_xarray().state.shape == (5, 40, 4)
    with pytest.raises(ValueError, match=r"outputs of this system are not its states.*plant.outputs"):
        response.kl  # noqa: B018
    np.testing.assert_allclose(response.plant.outputs(response.final), outputs[-1])


@pytest.mark.slow
def test_noise_enters_where_the_input_does():
    """The stationary covariance of a damped mass with force noise: AS + SAᵀ + 2εBBᵀ = 0."""
    plant = cg.interop.from_control(MASS, 0.01, temperature=0.5)
    states = cg.ClosedLoop(plant, QUADRATIC).simulate(np.zeros((4000, 4)), 15.0, record=2).final
    closed = np.block([[Z, ID], [-P, -0.7 * ID]])
    exact = solve_continuous_lyapunov(closed, -np.diag([0, 0, 1.0, 1.0]))
    np.testing.assert_allclose(np.cov(states.T), exact, atol=0.08)  # 4 standard errors of 4000, and h = 0.01


@pytest.mark.parametrize("dt", [True, 0.1])
def test_discrete_time_takes_its_own_steps(dt, starts):
    a, c = np.array([[0.9, 0.1], [-0.2, 0.8]]), np.array([[0.0, 2.0], [1.0, -0.5]])
    system = ct.ss(a, 0.1 * ID, c, Z, dt)
    plant = cg.interop.from_control(system, step=0.1)
    response = cg.ClosedLoop(plant, QUADRATIC).simulate(starts, 1.0, **F64)
    np.testing.assert_allclose(response.final, starts @ np.linalg.matrix_power(a - 0.1 * P @ c, 10).T, rtol=1e-10)


def test_transfer_functions_and_interconnections_are_plants(starts):
    start = np.array([[0.5], [-1.0], [2.0]])
    lag = ct.tf([1], [1, 0])
    well = cg.SymbolicEnergy("x**4/4 - x**2/2", ["x"])
    response = cg.ClosedLoop(cg.interop.from_control(lag, 0.1, scheme="euler"), well).simulate(start, 1.0, **F64)
    own = cg.ClosedLoop(cg.GradientFlow(0.1), well).simulate(start, 1.0, **F64)
    np.testing.assert_allclose(response.final, own.final, atol=1e-12)
    gain = ct.ss([], [], [], 2 * ID, name="gain", inputs=2, outputs=2)
    wired = ct.interconnect([ct.ss(Z, ID, ID, Z, name="plant"), gain], [["plant", "gain"]], ["gain"], ["plant"])
    plant = cg.interop.from_control(wired, 0.1, scheme="euler")
    response = cg.ClosedLoop(plant, QUADRATIC).simulate(starts, 1.0, **F64)
    np.testing.assert_allclose(response.final, starts @ np.linalg.matrix_power(ID - 0.2 * P, 10), atol=1e-12)


def numpy_pendulum(t, x, u, params):
    return np.array([x[1], -np.sin(x[0]) - params["damping"] * x[1] + u[0]])


def jax_pendulum(t, x, u, params):
    return jnp.stack([x[1], -jnp.sin(x[0]) - params["damping"] * x[1] + u[0]])


def filling_pendulum(t, x, u, params):
    out = np.zeros(2)  # floats: neither a tracer nor a symbol fits in
    out[0], out[1] = x[1], -np.sin(x[0]) - params["damping"] * x[1] + u[0]
    return out


def angle(t, x, u, params):
    return x[0] if x[0] > -100 else x[1]  # a branch, and no feedthrough


@pytest.mark.parametrize("update", [numpy_pendulum, jax_pendulum, filling_pendulum])
def test_code_is_run_by_jax_as_formulas_or_as_python(update):
    """The same numbers by all ways, against Euler's steps in NumPy."""
    in_python = update is filling_pendulum
    out = angle if in_python else (lambda t, x, u, params: x[:1])
    system = ct.nlsys(update, out, inputs=1, outputs=1, states=2, params={"damping": 0.4})
    assert equations(system).in_python == in_python
    if in_python:
        with pytest.warns(UserWarning, match=r"neither in JAX nor on symbols.*row by row.*jax.numpy"):
            plant = cg.interop.from_control(system, 0.01, scheme="euler")
    else:
        plant = cg.interop.from_control(system, 0.01, scheme="euler")
    start = np.array([[1.0, 0.0], [-2.0, 1.0]])
    final = cg.ClosedLoop(plant, cg.Quadratic([[3.0]], [0.5])).simulate(start, 1.0, record=2, **F64).final
    x = start.T
    for _ in range(100):
        x = x + 0.01 * numpy_pendulum(0, x, [-3 * (x[0] - 0.5)], {"damping": 0.4})
    np.testing.assert_allclose(final.T, x, rtol=1e-10)


def test_time_enters_the_right_hand_side():
    """ẋ = cos(t) - x + ... by the plant, and by a controller: both integrate time itself, from every step on."""
    timed = ct.nlsys(lambda t, x, u, p: u + jnp.cos(t), None, inputs=1, states=1)
    push = ct.nlsys(None, lambda t, x, u, p: jnp.cos(t) + 0 * u, inputs=1, outputs=1)
    well, start = cg.Quadratic([[1.0]]), np.array([[1.0], [-2.0]])
    t = 2.0
    exact = start * np.exp(-t) + 0.5 * (np.cos(t) + np.sin(t) - np.exp(-t))
    euler = cg.interop.from_control(timed, 1e-3, scheme="euler")
    for loop, tolerance in (
        (cg.ClosedLoop(euler, well), 2e-3),
        (cg.ClosedLoop(cg.GradientFlow(1e-3), well, extra=push), 2e-3),
        (cg.ClosedLoop(cg.GradientFlow(0.25, "adaptive"), well, extra=push), 1e-4),
    ):
        np.testing.assert_allclose(loop.simulate(start, t, record=9, **F64).final, exact, atol=tolerance)
    with pytest.raises(ValueError, match="depends on time"):
        cg.LyapunovFunction("x^2", ["x"]).verify(timed, cg.Box([-1], [1]))


# As a further controller ----------------------------------------------------------------------------------------------

PLANTS = {
    "adaptive": cg.GradientFlow(0.1, "adaptive"),
    "langevin": cg.Langevin(0.5, 0.01, metric=[[2.0, 0.3], [0.3, 1.0]], skew=[[0.0, 1.0], [-1.0, 0.0]]),
    "kinetic": cg.KineticLangevin(0.5, 1.0, 0.02),
    "noisy system": cg.interop.from_control(INTEGRATOR, 0.01, temperature=0.5),
}


FIRST = ("langevin",)


@pytest.mark.parametrize(
    "plant", [pytest.param(p, id=k, marks=[] if k in FIRST else pytest.mark.slow) for k, p in PLANTS.items()]
)
def test_a_gain_beside_an_energy_is_a_quadratic_more(plant, starts):
    gain = ct.ss([], [], [], [[-0.7, -0.2], [-0.2, -0.4]])
    ours = cg.ClosedLoop(plant, WELLS, extra=gain).simulate(starts, 0.6, key=2, **F64)
    whole = WELLS + cg.Quadratic([[0.7, 0.2], [0.2, 0.4]])
    own = cg.ClosedLoop(plant, whole).simulate(starts, 0.6, key=2, **F64)
    np.testing.assert_allclose(ours.states, own.states, atol=1e-11)
    assert ours.extra is gain
    np.testing.assert_allclose(ours.energy[-1], np.mean(WELLS(ours.final)), rtol=1e-12)  # E, without the extra


INTEGRAL = ct.ss(Z, ID, -0.5 * ID, -0.3 * ID)  # ξ̇ = x, g = -0.5 ξ - 0.3 x
AUGMENTED = np.block([[-P - 0.3 * ID, -0.5 * ID], [ID, Z]])


def test_every_particle_carries_the_state_of_the_controller(starts):
    loop = cg.ClosedLoop(PLANTS["adaptive"], QUADRATIC, extra=INTEGRAL)
    response = loop.simulate(starts, 1.0, record=11, **F64)
    exact = (np.hstack([starts, 0 * starts]) @ expm(AUGMENTED).T)[:, :2]
    np.testing.assert_allclose(response.final, exact, atol=1e-4)
    system = cg.interop.to_nlsys(loop)
    assert system.state_labels == ["x[0]", "x[1]", "xi[0]", "xi[1]"]
    np.testing.assert_allclose(ct.linearize(system, np.ones(4)).A, AUGMENTED, atol=1e-12)


def test_euler_steps_the_controller_with_the_particle(starts):
    response = cg.ClosedLoop(FLOW, QUADRATIC, extra=INTEGRAL).simulate(starts, 0.5, **F64)
    step = np.linalg.matrix_power(np.eye(4) + 0.01 * AUGMENTED, 50)
    np.testing.assert_allclose(response.final, (np.hstack([starts, 0 * starts]) @ step.T)[:, :2], rtol=1e-10)


@pytest.mark.parametrize("scheme", ["euler", pytest.param("adaptive", marks=pytest.mark.slow)])
def test_a_mass_under_integral_action(scheme, starts):
    """Inertia and the controller's state at once: ẋ = v, v̇ = -Px - 0.7v + g."""
    x = np.hstack([starts, 0 * starts])
    plant = MASS if scheme == "adaptive" else cg.interop.from_control(MASS, 1e-3, scheme="euler")
    loop = cg.ClosedLoop(plant, QUADRATIC, extra=INTEGRAL)
    final = loop.simulate(x, 1.0, record=2, **F64).final
    whole = np.block([[Z, ID, Z], [-P - 0.3 * ID, -0.7 * ID, -0.5 * ID], [ID, Z, Z]])
    exact = (np.hstack([x, 0 * starts]) @ expm(whole).T)[:, :4]
    np.testing.assert_allclose(final, exact, atol=1e-4 if scheme == "adaptive" else 5e-3)
    np.testing.assert_allclose(ct.linearize(cg.interop.to_nlsys(loop), np.ones(6)).A, whole, atol=1e-12)


@pytest.mark.slow
def test_a_kinetic_loop_under_integral_action(starts):
    """Nearly without noise and friction it is Newton's motion under the force, controller and all; order 1 in ξ."""
    plant = cg.KineticLangevin(1e-12, 1e-6, 1e-3)
    final = cg.ClosedLoop(plant, QUADRATIC, extra=INTEGRAL).simulate(starts, 1.0, record=2, **F64).final
    whole = np.block([[Z, ID, Z], [-P - 0.3 * ID, Z, -0.5 * ID], [ID, Z, Z]])
    exact = np.hstack([starts, np.zeros((40, 4))]) @ expm(whole).T
    np.testing.assert_allclose(final, exact[:, :2], atol=1e-3)


@pytest.mark.slow
def test_a_sampled_controller_is_held_between_its_samples(starts):
    sampled = ct.ss(0.5 * ID, 0.1 * ID, -ID, -0.2 * ID, 0.1)
    loop = cg.ClosedLoop(cg.GradientFlow(0.1, "adaptive", tolerance=1e-9), QUADRATIC, extra=sampled)
    final = loop.simulate(starts, 0.5, **F64).final
    x, xi = starts, 0 * starts
    decay = expm(-0.1 * P)
    gain = np.linalg.solve(P, ID - decay)
    for _ in range(5):
        g = -xi - 0.2 * x
        x, xi = x @ decay.T + g @ gain.T, 0.5 * xi + 0.1 * x
    np.testing.assert_allclose(final, x, atol=1e-7)
    with pytest.raises(ValueError, match=r"extra is sampled every 0.1, but the plant steps by 0.05.*step=0.1"):
        cg.ClosedLoop(cg.GradientFlow(0.05), QUADRATIC, extra=sampled)


def test_a_saturation_is_a_controller(starts):
    saturated = ct.nlsys(None, lambda t, x, u, p: np.tanh(u), inputs=2, outputs=2)
    final = cg.ClosedLoop(FLOW, QUADRATIC, extra=saturated).simulate(starts, 0.5).final
    x = starts
    for _ in range(50):
        x = x + 0.01 * (np.tanh(x) - x @ P)
    np.testing.assert_allclose(final, x, atol=2e-6)  # float32


# What is said and refused ---------------------------------------------------------------------------------------------


def test_no_certificate_about_the_gibbs_measure():
    for loop in (
        cg.ClosedLoop(cg.Langevin(1.0, 0.01), QUADRATIC, extra=ct.ss([], [], [], ID)),
        cg.ClosedLoop(cg.interop.from_control(MASS, 0.01, temperature=1.0), QUADRATIC),
    ):
        verdict = cg.KLLyapunov(QUADRATIC, 1.0).verify(loop)
        assert verdict.status.name == "UNDECIDED"
        assert "need not keep the Gibbs measure" in verdict.reason
        start = np.zeros((10, 4 if loop.extra is None else 2))
        with pytest.raises(ValueError, match=r"need not keep the Gibbs measure\. Pass stop=None"):
            loop.simulate(start, 1.0, stop=cg.stopping.SteinResidual(3.0))


@pytest.mark.parametrize(
    ("system", "options", "message"),
    [
        (ct.ss(Z, ID, ID, ID), {}, "no direct feedthrough; output 0 depends at once on input 0"),
        (ct.ss(Z, ID, [[1, 0]], 0), {}, "as many inputs as outputs.*2 inputs and 1 outputs"),
        (ct.ss([], [], [], ID), {}, "must have a state to be a plant.*extra="),
        (INTEGRATOR, {"temperature": -1.0}, "temperature must be finite and at least 0"),
        (INTEGRATOR, {"temperature": 1.0}, "step must be given for scheme='euler'"),
        (INTEGRATOR, {"temperature": 1.0, "step": 0.1, "scheme": "adaptive"}, "an adaptive method has no noise"),
        (INTEGRATOR, {"scheme": "heun"}, "scheme must be 'adaptive' or 'euler'; got 'heun'"),
        (ct.ss(ID, ID, ID, Z, 0.1), {"step": 0.2}, "step must be the sampling time 0.1"),
        (ct.ss(ID, ID, ID, Z, 0.1), {"scheme": "euler"}, "scheme must be omitted for a system in discrete time"),
        (
            ct.nlsys(lambda t, x, u, p: x.nothing, None, inputs=1, states=1),
            {},
            "updfcn must return numbers.*raised Attr",
        ),
        (ct.nlsys(lambda t, x, u, p: x[:1], None, inputs=2, states=2), {}, "updfcn must return 2 numbers.*got 1"),
        (ct.nlsys(lambda t, x, u, p: -x, lambda t, x, u, p: x + u, inputs=1, outputs=1, states=1), {}, "feedthrough"),
    ],
)
def test_plants_that_do_not_fit(system, options, message):
    with pytest.raises(ValueError, match=message):
        cg.interop.from_control(system, **options)


def test_loops_that_do_not_fit():
    with pytest.raises(TypeError, match="plant must be a ctrlgen plant; got int"):
        cg.ClosedLoop(3, QUADRATIC)  # pyright: ignore
    with pytest.raises(TypeError, match=r"must be a python-control .*got list"):
        cg.interop.from_control([1])
    with pytest.raises(TypeError, match="Pass the system as extra= beside an energy"):
        cg.ClosedLoop(cg.Langevin(1.0, 0.1), INTEGRATOR)  # pyright: ignore
    with pytest.raises(ValueError, match="one dimension; the plant has 2, the energy 1"):
        cg.ClosedLoop(MASS, cg.Quadratic([[1.0]]))
    with pytest.raises(ValueError, match=r"shape \(n, 4\).*states of the plant; got shape \(3, 2\)"):
        cg.ClosedLoop(MASS, QUADRATIC).simulate(np.zeros((3, 2)), 1.0)
    for plant, message in (
        (cg.Langevin(1.0, 0.1, scheme="mala"), "extra must be None with scheme='mala'.*use scheme='euler'"),
        (cg.GaussianPlant(1.0), "extra must be None for GaussianPlant"),
        (cg.FokkerPlanckGrid([(-1, 1)] * 2, (8, 8), 1.0), "extra must be None for FokkerPlanckGrid"),
    ):
        with pytest.raises(ValueError, match=message):
            cg.ClosedLoop(plant, QUADRATIC, extra=INTEGRAL)
    with pytest.raises(ValueError, match=r"extra must have 2 inputs and 2 outputs.*got 1 inputs and 1 outputs"):
        cg.ClosedLoop(FLOW, QUADRATIC, extra=ct.ss([], [], [], 1.0))
    with pytest.raises(TypeError, match="extra: system must be a python-control"):
        cg.ClosedLoop(FLOW, QUADRATIC, extra=np.tanh)
    ball = cg.SafetyFilter([cg.BarrierFunction("4 - x**2 - y**2", ["x", "y"])], gain=1.0)
    with pytest.raises(ValueError, match="safety must be None with extra"):
        cg.ClosedLoop(FLOW, QUADRATIC, safety=ball, extra=INTEGRAL)
    with pytest.raises(ValueError, match="safety must be None for a python-control plant"):
        cg.ClosedLoop(INTEGRATOR, QUADRATIC, safety=ball)


def test_an_algebraic_loop_is_refused():
    gains = [ct.ss([], [], [], k, inputs=1, outputs=1, name=f"gain{i}") for i, k in enumerate((2.0, 3.0))]
    wired = ct.interconnect(
        [ct.nlsys(None, lambda t, x, u, p, g=g: g * u, inputs=1, outputs=1, name=s.name) for g, s in
         zip((2.0, 3.0), gains, strict=True)], [["gain0", "gain1"], ["gain1", "gain0"]], ["gain0"], ["gain1"],
    )  # fmt: skip
    with pytest.raises(ValueError, match="no algebraic loop"):
        equations(wired)


def test_a_step_that_is_too_long_is_told():
    plant = cg.interop.from_control(MASS, 1.5, scheme="euler")
    # raised, as all warnings in tests, before anything runs
    with pytest.raises(UserWarning, match=r"step 1.5 is beyond the stability limit .* of Euler's method"):
        cg.ClosedLoop(plant, QUADRATIC).simulate(np.ones((3, 4)), 3.0)


def test_a_density_feedback_does_not_see_states_as_outputs():
    class Coupled(cg.CallableEnergy):
        @property
        def couples(self):
            return True

    feedback = Coupled(lambda x: jnp.sum(x * x), 2)
    for extra in (None, INTEGRAL):
        loop = cg.ClosedLoop(MASS, QUADRATIC, extra=extra)
        with pytest.raises(ValueError, match="static energy for a system whose outputs are not its states"):
            loop._whole.start(feedback, np.zeros((2, 4)), step=0.1, key=0, particles=2, schedule=None, dtype=np.float64)
