"""Density feedback as a controller block: its command, its saturation, and what it may not be taken for."""

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
    np.testing.assert_allclose(block.commanded(jnp.asarray(x.T, jnp.float32)), expected, rtol=1e-5)
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

    @pytest.mark.parametrize("period", [0.01, 0.05])
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

    def test_mala_and_reflected_loops_take_it(self):
        disc = cg.SafetyFilter([cg.Ball([0, 0], 1.8)], mode="reflected")
        start = cg.Gaussian([1.0, 0.0], 0.02 * np.eye(2)).sample(0, 2000)
        start = start[np.linalg.norm(start, axis=1) < 1.7]
        for scheme in ("euler", "mala"):
            loop = cg.ClosedLoop(cg.Langevin(0.2, 0.02, scheme), feedback(), safety=disc)
            r = loop.simulate(start, 2.0, record=3)
            assert r.status == "completed"
            assert r.safety.violations == 0
            assert r.energy_block.dim == 2

    def test_a_metropolis_step_accepts_by_the_energy_that_commands_now(self):
        # u is huge and fixed by saturation: the law tends to the Gibbs measure of the tilted energy
        quadratic = cg.Quadratic([[1.0]])
        phi = potentials(["x1"], quadratic, "inputs")
        far = Scaled((Generated(quadratic, phi[0], 1.0),), np.array([1e-9]))
        held = DensityFeedback(quadratic, phi, far, limit=0.5, offset=[10.0])  # u = 0.5 always
        r = cg.ClosedLoop(cg.Langevin(1.0, 0.5, "mala"), held).simulate(np.zeros((4000, 1)), 20.0, record=2)
        assert abs(r.final.mean() + 0.5) < 4 / np.sqrt(4000)
        assert 0.5 < r.acceptance < 1

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
