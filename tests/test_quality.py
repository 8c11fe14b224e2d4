"""The quality of an energy whose every number is known: Gaussians."""

import numpy as np
import pytest
from scipy.special import erf

import ctrlgen as cg
from ctrlgen import datasets, measure
from ctrlgen.quality import divergences, measure_quality

DATA = cg.Gaussian([0.3, -0.2], np.diag([1.0, 0.25]))


def energy(variance: float = 1.0) -> cg.TrainedEnergy:
    """Its Gibbs measure at 2 is the data's with the first variance replaced."""
    inner = cg.Quadratic(2.0 * np.diag([1 / variance, 4.0]), mean=[0.3, -0.2])
    return cg.TrainedEnergy(inner, temperature=2.0, step=0.02, duration=1.0, scheme="mala")


@pytest.mark.parametrize("variance", [1.0, 1.5])
def test_divergences_are_the_closed_forms(variance):
    ours = DATA.mean, np.diag([variance, 0.25])
    theirs = DATA.mean, DATA.covariance
    forward, backward, log_z = divergences(energy(variance), 2.0, DATA)
    assert forward == pytest.approx(measure.kl_gaussians(*theirs, *ours), abs=1e-6)
    assert backward == pytest.approx(measure.kl_gaussians(*ours, *theirs), abs=1e-6)
    assert log_z == pytest.approx(np.log(2 * np.pi * 0.5 * np.sqrt(variance)), abs=1e-6)


def test_a_density_with_edges_is_integrated_exactly():
    """On the board x and y are uniform on [-4, 4], so E|x|² = 32/3; the nodes are exact for polynomials."""
    forward, backward, _ = divergences(cg.Quadratic(np.eye(2) / 4), 1.0, datasets.checkerboard)
    truncated = 2 * np.log(erf(8 / np.sqrt(8)))  # log Z is that of twice the board
    assert forward == pytest.approx(32 / 3 / 8 + np.log(8 * np.pi) + truncated - np.log(32), abs=1e-8)
    assert np.isinf(backward)


def test_the_right_energy_is_at_the_floor_and_a_wrong_one_is_not():
    right = measure_quality(energy(), DATA, points=400, repeats=4)
    wrong = measure_quality(energy(3.0), DATA, points=400, repeats=4)
    assert abs(right.ratio_long.value - 1) < 4 * right.ratio_long.error
    assert right.kl == pytest.approx(0, abs=1e-6)
    # W₂ between the laws themselves is √3 - 1
    assert wrong.w2_long.value == pytest.approx(np.sqrt(3) - 1, abs=0.2)
    assert wrong.ratio_long.value > 2


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"the energy's dimension 2; .* has 1"):
        measure_quality(energy(), cg.Gaussian([0.0]))
    with pytest.raises(ValueError, match="repeats must be at least 2 and points at least 10; got 1 and 2000"):
        measure_quality(energy(), DATA, repeats=1)
    with pytest.raises(ValueError, match="one or two dimensions; the energy has 3"):
        divergences(cg.Quadratic(np.eye(3)), 1.0, cg.Gaussian(np.zeros(3)))
