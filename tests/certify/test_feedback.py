"""Verdicts on density feedback: proved sets against simulations of the modes, and laws that are not what they say."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import ctrlgen as cg
from ctrlgen.certify.feedback import identity_holds, is_dissipative
from ctrlgen.energies.feedback import DensityFeedback, Generated, Scaled, potentials
from ctrlgen.interop.density import grid_system
from ctrlgen.prove.claim import Status

WELLS = cg.SymbolicEnergy("(x**2 - 1)**2 + y**2/2", ["x", "y"])
GRID = cg.FokkerPlanckGrid([(-2.2, 2.2)] * 2, (40, 40), 0.2)
START = cg.Gaussian([1.0, 0.0], 0.05 * np.eye(2))


@pytest.mark.parametrize(("order", "holds_start"), [(2, True), (4, True), (2, False), (6, False)])
def test_from_the_proved_set_the_modes_decay_at_the_proved_rate(order, holds_start):
    block = cg.interop.density_feedback(WELLS, GRID, ["x", "y"], order=order)
    initial = GRID.discretise(START) if holds_start else None
    verdict = block.verify(initial=initial)
    assert verdict.status is Status.PROVED
    assert verdict.recheck()
    assert verdict.rate > 0
    if holds_start:
        assert verdict.value(initial) <= 1
        assert verdict.saturation > 1
    system = grid_system(cg.ClosedLoop(GRID, block), order=order)
    rng = np.random.default_rng(0)
    root = np.linalg.inv(np.linalg.cholesky(verdict.matrix)).T
    for _ in range(6):  # from the border of the set, the worst place
        direction = rng.normal(size=order)
        z0 = root @ direction / np.linalg.norm(direction)
        run = solve_ivp(
            lambda t, z: system.dynamics(t, z, np.zeros(2)), (0, 4), z0, rtol=1e-9, atol=1e-13, max_step=0.05
        )
        v = np.einsum("it,ij,jt->t", run.y, verdict.matrix, run.y)
        assert np.all(v <= np.exp(-verdict.rate * run.t) * (1 + 1e-6))


def test_the_set_is_where_inputs_saturate_at_most_as_said():
    block = cg.interop.density_feedback(WELLS, GRID, ["x", "y"], order=4)
    verdict = block.verify(initial=GRID.discretise(START))
    inverse = np.linalg.inv(verdict.matrix)
    for gain, limit in zip(block.design.gain, block.limit, strict=True):
        assert np.sqrt(gain @ inverse @ gain) <= verdict.saturation * limit * (1 + 1e-6)


def test_the_corners_are_the_ones_of_the_bilinear_system():
    # V̇ at points of the set never exceeds the proved decrease, by the system's own right-hand side
    block = cg.interop.density_feedback(WELLS, GRID, ["x", "y"], order=3)
    verdict = block.verify()
    system = grid_system(cg.ClosedLoop(GRID, block), order=3)
    root = np.linalg.inv(np.linalg.cholesky(verdict.matrix)).T
    for v in itertools.product([-1, -0.3, 0.3, 1], repeat=3):
        z = root @ np.array(v) / np.sqrt(3)
        rate = 2 * z @ verdict.matrix @ system.dynamics(0, z, np.zeros(2))
        assert rate <= -verdict.rate * (z @ verdict.matrix @ z) * (1 - 1e-9)


def test_a_gain_of_the_wrong_sign_is_not_proved():
    good = cg.interop.density_feedback(WELLS, GRID, ["x", "y"], order=2)
    d = good.design
    wrong = type(d)(d.law, d.modes, -d.gain, d.inputs, d.steer, d.bilinear, d.period)
    block = DensityFeedback(
        WELLS, ["x", "y"], d.modes.observable(-d.gain), limit=good.limit, law="riccati", design=wrong
    )
    verdict = block.verify()
    assert verdict.status is Status.UNDECIDED
    with pytest.raises(ValueError, match="no Lyapunov function of the modes"):
        verdict.value(GRID.gibbs(WELLS))


def test_a_feedback_that_is_not_its_design_is_not_proved():
    good = cg.interop.density_feedback(WELLS, GRID, ["x", "y"], order=2)
    d = good.design
    same = {
        "energy": WELLS, "inputs": d.inputs, "observable": good.observable, "limit": good.limit, "period": d.period,
        "temperature": 0.2, "law": "riccati", "design": d,
    }  # fmt: skip
    assert DensityFeedback(**same).verify().status is Status.PROVED
    for change in (
        {"observable": d.modes.observable(-d.gain)}, {"offset": [0.1, 0.0]}, {"inputs": ["-x", "y"]},
        {"energy": 2 * WELLS}, {"period": 50.0}, {"temperature": None},
    ):  # fmt: skip
        verdict = DensityFeedback(**{**same, **change}).verify()
        assert verdict.status is Status.UNDECIDED, change
        assert "does not command what its design says" in verdict.reason


def test_arguments_of_verify():
    block = cg.interop.density_feedback(WELLS, GRID, ["x", "y"], order=2)
    masses = GRID.discretise(START)
    verdict = block.verify(initial=np.asarray(masses))  # plain masses of the design's grid
    assert verdict.value(np.asarray(masses)) == pytest.approx(verdict.value(masses))
    for rate in (-1.0, np.nan):
        with pytest.raises(ValueError, match="rate must be finite and ≥ 0"):
            block.verify(rate=rate)
    huge = cg.interop.density_feedback(WELLS, GRID, ["x", "y"], order=2, limit=1e300)
    assert huge.verify().status in (Status.PROVED, Status.UNDECIDED)


def test_recheck_sees_a_changed_matrix():
    verdict = cg.interop.density_feedback(WELLS, GRID, ["x", "y"], order=3).verify()
    verdict.modes.rates[0] = 1.0  # an unstable mode
    assert not verdict.recheck()


def test_too_many_modes_are_undecided_in_words():
    verdict = cg.interop.density_feedback(WELLS, GRID, ["x", "y"], order=30).verify()
    assert verdict.status is Status.UNDECIDED
    assert "smaller order" in verdict.reason


class TestDissipative:
    def test_identity(self):
        assert identity_holds()

    def test_it_is_proved_for_every_energy(self):
        block = cg.interop.density_feedback(WELLS, GRID, ["x", "y"], law="dissipative")
        verdict = block.verify()
        assert verdict.status is Status.PROVED
        assert verdict.recheck()
        network = cg.load_energy("two_moons")
        grid = cg.FokkerPlanckGrid([(-6, 6)] * 2, (30, 30), 1.0)
        block = cg.interop.density_feedback(network, grid, ["x1", "x1*x2"], order=3, law="dissipative")
        assert block.verify().status is Status.PROVED

    def test_the_decay_of_its_loop_is_proved_with_the_open_loops_rate(self):
        block = cg.interop.density_feedback(WELLS, GRID, ["x", "y"], law="dissipative")
        for plant in (GRID, cg.Langevin(0.2, 0.01)):
            verdict = cg.KLLyapunov(WELLS, 0.2).verify(cg.ClosedLoop(plant, block))
            free = cg.KLLyapunov(WELLS, 0.2).verify(cg.ClosedLoop(plant, WELLS))
            assert verdict.status is Status.PROVED
            assert verdict.rate == free.rate > 0
            assert verdict.recheck()

    def test_nothing_is_said_of_kl_under_a_riccati_law(self):
        block = cg.interop.density_feedback(WELLS, GRID, ["x", "y"])
        verdict = cg.KLLyapunov(WELLS, 0.2).verify(cg.ClosedLoop(GRID, block))
        assert verdict.status is Status.UNDECIDED
        assert "KL may rise" in verdict.reason

    def test_metric_and_other_energies_are_undecided(self):
        block = cg.interop.density_feedback(WELLS, GRID, ["x", "y"], law="dissipative")
        skewed = cg.Langevin(0.2, 0.01, skew=[[0, 1], [-1, 0]])
        assert cg.KLLyapunov(WELLS, 0.2).verify(cg.ClosedLoop(skewed, block)).status is Status.UNDECIDED
        other = WELLS + cg.Quadratic(np.eye(2))
        assert cg.KLLyapunov(other, 0.2).verify(cg.ClosedLoop(GRID, block)).status is Status.UNDECIDED

    @pytest.mark.parametrize(
        "phi", ["abs(x)", pytest.param("sqrt(x**2)", marks=pytest.mark.slow), lambda v: jnp.abs(v[0]),
                lambda v: jax.lax.stop_gradient(v[0]) * v[1], lambda v: jnp.where(v[0] > 0, v[0], 2 * v[0]),
                lambda v: v[0] * v[0].astype(int),
                pytest.param(lambda v: v[0] * v[0].astype(bool), marks=pytest.mark.slow)],
    )  # fmt: skip
    def test_inputs_that_are_not_smooth_are_not_proved(self, phi):
        # E_ρ[Lφ] misses what ∇φ jumps by
        block = cg.interop.density_feedback(WELLS, GRID, [phi], order=2, law="dissipative")
        assert block.verify().status is Status.UNDECIDED

    def test_walls_push_back_with_a_term_that_the_law_misses(self):
        walled = WELLS + cg.SafetyFilter([cg.Ball([0, 0], 1.8)], mode="reflected").walls
        phi = potentials(["x", "y"], WELLS, "inputs")
        law = Scaled(tuple(Generated(walled, f, 0.2) for f in phi), np.ones(2))
        design = cg.interop.density_feedback(WELLS, GRID, ["x"], order=2, law="dissipative").design
        block = DensityFeedback(walled, phi, law, limit=1.0, temperature=0.2, law="dissipative", design=design)
        assert block.verify().status is Status.UNDECIDED
        loop = cg.ClosedLoop(cg.Langevin(0.2, 0.01, "mala"), block)
        assert cg.KLLyapunov(walled, 0.2).verify(loop, measure=False).status is Status.UNDECIDED

    def test_eigenfunctions_between_cells_are_not_proved(self):
        block = cg.interop.density_feedback(WELLS, GRID, order=4, law="dissipative")
        assert block.verify().status is Status.UNDECIDED

    @pytest.mark.parametrize("change", ["sign", "offset", "temperature", "energy", "input"])
    def test_a_law_that_only_says_so_is_not_proved(self, change):
        phi = potentials(["x", "y"], WELLS, "inputs")
        energy = WELLS if change != "energy" else 2 * WELLS
        images = [Generated(energy, f, 0.2 if change != "temperature" else 0.3) for f in phi]
        if change == "input":
            images = images[::-1]
        gains = np.array([1.0, 2.0]) * (-1 if change == "sign" else 1)
        design = cg.interop.density_feedback(WELLS, GRID, ["x"], order=2, law="dissipative").design
        block = DensityFeedback(
            WELLS, phi, Scaled(tuple(images), gains), limit=1.0, temperature=0.2, law="dissipative", design=design,
            offset=[0.5, 0.0] if change == "offset" else None,
        )  # fmt: skip
        assert not is_dissipative(block)
        assert block.verify().status is Status.UNDECIDED
        assert cg.KLLyapunov(WELLS, 0.2).verify(cg.ClosedLoop(GRID, block)).status is Status.UNDECIDED

    @pytest.mark.parametrize("jump", ["x**2/2 + sign(x)", lambda v: v[0] ** 2 / 2 + jnp.where(v[0] > 0, 1.0, 0.0)])
    def test_an_energy_that_jumps_has_a_term_that_the_law_misses(self, jump):
        line = cg.FokkerPlanckGrid([(-4, 4)], (60,), 0.5)
        energy = cg.SymbolicEnergy(jump, ["x"])
        block = cg.interop.density_feedback(energy, line, ["x"], order=2, law="dissipative")
        assert block.verify().status is Status.UNDECIDED

    def test_the_gibbs_measure_is_shown_assumed_or_refused(self):
        line = cg.FokkerPlanckGrid([(-4, 4)], (60,), 0.5)

        def verdict(energy):
            return cg.interop.density_feedback(energy, line, ["x1"], order=2, law="dissipative").verify()

        shown = verdict(cg.Quadratic([[1.0]]))
        assert any("Gibbs measure exists" in step.claim.text for step in shown.steps)
        heavy = verdict(cg.CallableEnergy(lambda v: 2 * jnp.log(1 + v[0] ** 2), 1))
        assert any("Gibbs measure exists" in a for a in heavy.assumptions)
        with pytest.raises(ValueError, match="Gibbs"):
            verdict(cg.SymbolicEnergy("-x1**2/2", ["x1"]))
        with pytest.raises(ValueError, match="constant Lφ"):
            verdict(cg.SymbolicEnergy("x1", ["x1"]))
