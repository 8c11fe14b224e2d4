"""Density feedback as a controller block: its command, its saturation, and what it may not be taken for."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
import sympy as sp

import ctrlgen as cg
from ctrlgen.energies.feedback import DensityFeedback, Generated, Scaled, Tilted, potentials, state_names
from ctrlgen.plants.ensemble import evolve

WELLS = cg.SymbolicEnergy("(x**2 - 1)**2 + y**2/2", ["x", "y"])
GRID = cg.FokkerPlanckGrid([(-2.2, 2.2)] * 2, (40, 40), 0.2)


def feedback(**options):
    phi = potentials(["x", "y"], WELLS, "inputs")
    images = tuple(Generated(WELLS, f, 0.2) for f in phi)
    return DensityFeedback(WELLS, phi, Scaled(images, np.array([2.0, 3.0])), **{"limit": 1.5, **options})


def test_potentials_of_every_kind():
    x, y = sp.symbols("x y")
    kinds = ["x*y", x * y, lambda v: v[0] * v[1], cg.SymbolicEnergy("a*b", ["a", "b"])]
    points = np.random.default_rng(0).normal(size=(5, 2))
    for phi in potentials(kinds, WELLS, "inputs"):
        np.testing.assert_allclose(phi(points), points.prod(axis=1), rtol=1e-12)
    assert [str(s) for s in state_names(WELLS + 0.5 * cg.Quadratic(np.eye(2)))] == ["x", "y"]
    assert [str(s) for s in state_names(cg.Quadratic(np.eye(2)))] == ["x1", "x2"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("x", r"inputs must be a list of functions of the state.*Pass \[input\]"),
        ([], "inputs must have at least one function"),
        (["z"], r"inputs\[0\]: .*z"),
        ([cg.Quadratic(np.eye(3))], r"inputs\[0\] must be 2-dimensional"),
    ],
)
def test_bad_potentials(values, message):
    with pytest.raises(ValueError, match=message):
        potentials(values, WELLS, "inputs")


def test_tilted_energy():
    tilted = Tilted(WELLS, potentials(["x", "y"], WELLS, "inputs"), np.array([2.0, -1.0]))
    x = np.random.default_rng(0).normal(size=(4, 2))
    np.testing.assert_allclose(tilted(x), WELLS(x) + x @ [2.0, -1.0], rtol=1e-12)
    np.testing.assert_allclose(tilted.gradient(x), WELLS.gradient(x) + np.array([2.0, -1.0]), rtol=1e-12)


def test_generated_function_is_the_backward_generator():
    # Lφ = εΔφ - ∇E·∇φ by hand for φ = x²y
    image = Generated(WELLS, cg.SymbolicEnergy("x**2*y", ["x", "y"]), 0.2)
    x, y = np.random.default_rng(0).normal(size=(2, 6))
    expected = 0.2 * 2 * y - (4 * x * (x**2 - 1) * 2 * x * y + y * x**2)
    np.testing.assert_allclose(image(np.stack([x, y], axis=1)), expected, rtol=1e-10)


def test_command_is_the_saturated_mean():
    block, x = feedback(), np.array([[1.2, 0.1], [0.8, -0.3], [0.2, 0.05]])
    drift = -np.stack([4 * x[:, 0] * (x[:, 0] ** 2 - 1), x[:, 1]], axis=1)  # Lx = -∂E/∂x
    expected = np.clip(-drift.mean(axis=0) * [2, 3], -1.5, 1.5)
    np.testing.assert_allclose(block.command(x), expected, rtol=1e-10)
    np.testing.assert_allclose(eqx.filter_jit(block.commanded)(jnp.asarray(x.T, jnp.float32)), expected, rtol=1e-5)
    np.testing.assert_allclose(feedback(limit=[0.1, 0.2]).command(x + 1), [0.1, 0.2])
    np.testing.assert_allclose(feedback(limit=100.0, offset=[1.0, 0.5]).command(x) - [1.0, 0.5],
                               -drift.mean(axis=0) * [2, 3], rtol=1e-10)  # fmt: skip


def test_command_vanishes_at_the_gibbs_measure_of_a_grid():
    assert np.abs(feedback().command(GRID.gibbs(WELLS))).max() < 1e-12
    assert np.abs(feedback().command(GRID.discretise(cg.Gaussian([0.6, 0.3], 0.05 * np.eye(2))))).min() > 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0.0}, "limit must be positive"),
        ({"limit": np.inf}, "limit must be positive and finite"),
        ({"limit": [1.0, -1.0]}, "limit must be positive"),
        ({"offset": [1.0]}, "offset must be 2 finite numbers"),
        ({"period": 0.0}, "period must be positive"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        feedback(**options)


def test_feedbacks_are_not_composed_nor_read_as_formulas():
    block = feedback()
    for attempt in (lambda: block + WELLS, lambda: 2 * block, lambda: -block, lambda: WELLS + block):
        with pytest.raises(TypeError, match="not added or scaled"):
            attempt()
    with pytest.raises(TypeError, match="no formula"):
        block.symbolic()
    with pytest.raises(TypeError, match="without density feedback"):
        DensityFeedback(block, ["x"], block.observable, limit=1.0)
    with pytest.raises(TypeError, match="no design"):
        block.verify()
    with pytest.raises(ValueError, match="density must be particles"):
        block.command(np.zeros(2))


class TestInTheLoop:
    def test_it_needs_an_overdamped_plant(self):
        for plant in (cg.GradientFlow(0.01), cg.KineticLangevin(0.2, 1.0, 0.01), cg.GaussianPlant(0.2)):
            with pytest.raises(ValueError, match="static energy for"):
                cg.ClosedLoop(plant, feedback())

    def test_it_needs_the_temperature_of_its_design(self):
        with pytest.raises(ValueError, match="designed at the plant's temperature"):
            cg.ClosedLoop(cg.Langevin(0.3, 0.01), feedback(temperature=0.2))

    def test_stopping_rules_of_independent_particles_are_refused(self):
        loop = cg.ClosedLoop(cg.Langevin(0.2, 0.01), feedback())
        with pytest.raises(ValueError, match="independent particles"):
            loop.simulate(np.zeros((10, 2)), 1.0, stop=cg.stopping.SteinResidual(2.0))

    def test_records_do_not_change_the_particles(self):
        loop = cg.ClosedLoop(cg.Langevin(0.2, 0.01), feedback(period=0.07))
        start = cg.Gaussian([1.0, 0.0], 0.05 * np.eye(2)).sample(0, 700)
        one, many = loop.simulate(start, 1.0, key=3, record=2), loop.simulate(start, 1.0, key=3, record=37)
        np.testing.assert_array_equal(one.final, many.final)

    @pytest.mark.parametrize("period", [0.01, pytest.param(0.05, marks=pytest.mark.slow)])
    def test_one_step_by_hand(self, period):
        # a command is held for whole steps: x⁺ = x - h(∇E + u) + the noise of the free loop's same key
        loop = cg.ClosedLoop(cg.Langevin(0.2, 0.01), feedback(period=period))
        free = cg.ClosedLoop(cg.Langevin(0.2, 0.01), WELLS)
        x0 = np.random.default_rng(0).normal(size=(600, 2)) * 0.3 + 0.5
        r = loop.simulate(x0, 0.02, key=1, record=3, dtype=np.float64)
        noise = [free.simulate(x0, 0.02, key=1, record=3, dtype=np.float64).states]
        first = noise[0][1] - x0 + 0.01 * WELLS.gradient(x0)
        second = noise[0][2] - noise[0][1] + 0.01 * WELLS.gradient(noise[0][1])
        u0 = loop.controller.command(x0)
        x1 = x0 - 0.01 * (WELLS.gradient(x0) + u0) + first
        u1 = loop.controller.command(x1) if period == 0.01 else u0
        x2 = x1 - 0.01 * (WELLS.gradient(x1) + u1) + second
        np.testing.assert_allclose(r.states[1], x1, atol=1e-12)
        np.testing.assert_allclose(r.states[2], x2, atol=1e-12)
        assert np.abs(u0).max() > 0.1
        np.testing.assert_allclose(r.inputs[0], u0, rtol=1e-10)

    def test_a_filter_that_the_design_does_not_know_is_refused(self):
        # from the restricted measure, a feedback for the whole one would drive the density away from it
        disc = cg.SafetyFilter([cg.Ball([0, 0], 1.8)], mode="reflected")
        for plant in (cg.Langevin(0.2, 0.02), GRID):
            with pytest.raises(ValueError, match="safety must be None with a density feedback"):
                cg.ClosedLoop(plant, feedback(), safety=disc)

    @pytest.mark.slow
    def test_behind_walls_by_an_energy_that_has_them(self):
        safety = cg.SafetyFilter(cg.Box([-1.6, -1.0], [1.6, 1.0]), mode="reflected")
        plant = cg.Langevin(0.2, 0.01, "mala")
        walled = cg.ClosedLoop(plant, WELLS, safety=safety).energy
        block = cg.interop.density_feedback(walled, GRID, [lambda x: x[0], lambda x: x[1]], order=6)
        assert np.abs(block.command(GRID.gibbs(walled))).max() < 1e-9
        start = np.clip(cg.Gaussian([1.0, 0.0], 0.02 * np.eye(2)).sample(0, 4000), [-1.5, -0.9], [1.5, 0.9])
        run = cg.ClosedLoop(plant, block).simulate(start, 6.0, record=4)
        assert safety.contains(run.states.reshape(-1, 2)).all()
        assert abs((run.final[:, 0] > 0).mean() - 0.5) < 0.02
        exact = cg.Gibbs(walled, 0.2).sample(1, 4000)
        np.testing.assert_allclose(np.cov(run.final.T), np.cov(exact.T), atol=0.05)
        with pytest.raises(ValueError, match="law must be 'riccati' for an energy with walls"):
            cg.interop.density_feedback(walled, GRID, [lambda x: x[0]], order=3, law="dissipative")

    @pytest.mark.parametrize("particles", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3))])
    def test_fewer_particles_than_inputs(self, particles):
        phi = potentials(["x", "y", "x*y"], WELLS, "inputs")
        law = Scaled(tuple(Generated(WELLS, f, 0.2) for f in phi), np.ones(3))
        loop = cg.ClosedLoop(cg.Langevin(0.2, 0.01), DensityFeedback(WELLS, phi, law, limit=1.0))
        assert loop.simulate(np.full((particles, 2), 0.5), 0.1, record=2).status == "completed"

    def test_inputs_that_stay_at_their_limits_are_told(self):
        # with x² as an input the well turns over: all mass goes to the border, where no input reaches the modes
        tilted, line = cg.SymbolicEnergy("(x**2 - 1)**2 + x/5", ["x"]), cg.FokkerPlanckGrid([(-2.2, 2.2)], (60,), 0.2)
        start = line.discretise(cg.Gaussian([-1.0], [[0.01]]))
        block = cg.interop.density_feedback(tilted, line, ["x", "x**2"], order=4)
        with pytest.warns(UserWarning, match="at their limits in all of the second half"):
            run = cg.ClosedLoop(line, block).simulate(start, 5.0, record=21)
        assert run.kl[-1] > 10
        good = cg.interop.density_feedback(tilted, line, ["x"], order=4)
        assert cg.ClosedLoop(line, good).simulate(start, 5.0, record=21).kl[-1] < 1e-3

    def test_a_metropolis_step_accepts_by_the_energy_that_commands_now(self):
        # u is huge and fixed by saturation: the law tends to the Gibbs measure of the tilted energy
        quadratic = cg.Quadratic([[1.0]])
        phi = potentials(["x1"], quadratic, "inputs")
        far = Scaled((Generated(quadratic, phi[0], 1.0),), np.array([1e-9]))
        held = DensityFeedback(quadratic, phi, far, limit=0.5, offset=[10.0])  # u = 0.5 always
        r = cg.ClosedLoop(cg.Langevin(1.0, 0.5, "mala"), held).simulate(np.zeros((4000, 1)), 20.0, record=2)
        assert abs(r.final.mean() + 0.5) < 4 / np.sqrt(4000)
        assert 0.5 < r.acceptance < 1

    def test_what_a_scheme_remembers_is_of_the_energy_that_commands_now(self):
        # a step of MALA that is far too long: every proposal is rejected, and the memory is what it was refreshed to
        quadratic = cg.Quadratic(np.diag([1.0, 400.0]))
        phi = potentials(["x1", "x2"], quadratic, "inputs")
        law = Scaled(tuple(Generated(quadratic, f, 1.0) for f in phi), np.array([1.0, 1.0]))
        block = DensityFeedback(quadratic, phi, law, limit=3.0, period=1.0)
        plant = cg.Langevin(1.0, 1e3, "mala")
        x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 50)), jnp.float32)
        after = evolve(plant, block, plant.begin(block, x, 0), 1)
        assert int(after.memory[2].sum()) == 0
        u = np.asarray(after.command)
        assert np.abs(u).max() > 0.1
        np.testing.assert_allclose(after.memory[0], quadratic.potential(x) + u @ np.asarray(x), rtol=1e-5, atol=1e-3)
        np.testing.assert_allclose(after.memory[1], quadratic.slope(x) + u[:, None], rtol=1e-5, atol=1e-3)

    @pytest.mark.filterwarnings("ignore:The grid is too small")
    def test_grid_under_feedback_is_the_grid_of_the_tilted_energy(self):
        block = feedback(period=0.05)
        start = GRID.discretise(cg.Gaussian([0.6, 0.3], 0.05 * np.eye(2)))
        r = cg.ClosedLoop(GRID, block).simulate(start, 0.1, record=3)
        m = start
        for _ in range(2):
            tilted = WELLS + cg.compose(list(block.inputs), block.command(m).tolist(), check=False)
            m = cg.ClosedLoop(GRID, tilted).simulate(m, 0.05, record=2).final
        np.testing.assert_allclose(r.final, m, atol=1e-12)
        np.testing.assert_allclose(r.inputs[0], block.command(start))
        assert r.kl[0] == pytest.approx(GRID.kl(start, WELLS))

    def test_commands_go_with_the_response(self):
        r = cg.ClosedLoop(GRID, feedback()).simulate(cg.Gaussian([0.6, 0.3], 0.05 * np.eye(2)), 0.1, record=3)
        data = r.to_control()
        np.testing.assert_allclose(data.inputs, r.inputs.T)
        assert list(data.input_labels) == ["u[0]", "u[1]"]
        axes = cg.plot.inputs(r)
        np.testing.assert_allclose(axes.lines[0].get_ydata(), r.inputs[:, 0])
        static = cg.ClosedLoop(GRID, WELLS).simulate(cg.Gaussian([0.6, 0.3], 0.05 * np.eye(2)), 0.1, record=3)
        assert static.inputs is None
        with pytest.raises(ValueError, match="under density feedback"):
            cg.plot.inputs(static)
