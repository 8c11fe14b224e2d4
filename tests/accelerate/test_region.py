"""Contraction regions: no proved cell holds a violating Hessian; the region is nearly all that there is to prove."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

import ctrlgen as cg
from ctrlgen.accelerate._bounds import covers
from ctrlgen.accelerate._enclosures import curvature
from ctrlgen.accelerate.region import _largest, contraction_region
from ctrlgen.energies.intervals import Intervals
from ctrlgen.prove.claim import Status

WELL = cg.SymbolicEnergy("x**4/4 - x**2/2", ["x"])  # convex where |x| ≥ 1/√3


def mixture(seed, count, d):
    rng = np.random.default_rng(seed)
    roots = rng.normal(size=(count, d, d))
    return cg.GaussianMixture(rng.normal(size=(count, d)), roots @ roots.swapaxes(1, 2) + 0.3 * np.eye(d))


ENERGIES = {
    "moons": cg.load_energy("two_moons"),
    "silu": cg.MLPEnergy(2, 24, 3, "silu", confinement=0.5, key=1),
    "tanh, softplus": cg.MLPEnergy(3, 12, 2, ["tanh", "softplus"], confinement=0.1, key=2),
    "features": cg.MLPEnergy(2, 12, 2, "silu", features=5, bandwidth=1.5, key=3),
    "gelu": cg.MLPEnergy(2, 8, 2, "gelu", key=4),
    "affine": cg.TrainedEnergy(cg.MLPEnergy(2, 12, 2, key=5), [1.0, -2.0], [0.3, 3.0]),
    "one line": WELL,
    "banana": cg.Banana(1.5, 0.3),
    "formula": cg.SymbolicEnergy("exp(x/2)*cos(y) + sqrt(1 + x**2 + y**2)", ["x", "y"]),
    "mixture": mixture(0, 4, 2),
    "shared": cg.GaussianMixture([[-1, 0, 1], [1, 0, 0]], [[1, 0.2, 0], [0.2, 0.5, 0], [0, 0, 0.3]], [0.2, 0.8], 0.5),
    "far apart": cg.GaussianMixture([[-40.0, 0], [40.0, 0]], 0.05),
    "traced": cg.CallableEnergy(lambda x: jnp.sum(jnp.cos(x)) + jnp.prod(x), 2),
    "sum": 0.5 * mixture(1, 2, 2)
    - 2.0 * cg.MLPEnergy(2, 8, 1, confinement=0.0, key=6)
    + cg.Quadratic([[1.0, 0.2], [0.2, 3.0]]),
}


def hessians(energy, points):
    """∇²E at points (..., d), in blocks of one size: each energy is compiled once."""
    flat = points.reshape(-1, energy.dim)
    blocks = np.pad(flat, ((0, -len(flat) % 512), (0, 0)), mode="edge").reshape(-1, 512, energy.dim)
    out = np.concatenate([energy.hessian(b) for b in blocks])[: len(flat)]
    return out.reshape(*points.shape[:-1], energy.dim, energy.dim)


@pytest.mark.parametrize("name", ENERGIES)
def test_enclosures_hold_every_hessian_of_their_box(name):
    energy = ENERGIES[name]
    rng = np.random.default_rng(0)
    d = energy.dim
    for width in (1e-6, 0.05, 0.7):
        centre = rng.uniform(-2, 2, (40, d))
        rad = width * rng.random((40, d))
        found = curvature(energy)(Intervals(centre, rad))
        sample = centre + rad * rng.uniform(-1, 1, (15, 40, d))
        h = hessians(energy, sample)
        slack = 1e-11 * (1 + np.abs(h))  # the sample's own rounding
        assert (h >= found.low - slack).all()
        assert (h <= found.high + slack).all()


@pytest.mark.parametrize("name", ["moons", "tanh, softplus", "features", "affine", "formula", "mixture", "shared"])
def test_mean_value_forms_lose_the_second_power_of_the_width(name):
    """Beyond the first-order variation of H itself, |T|·r, what is lost falls with r² where plain intervals lose r."""
    energy = ENERGIES[name]
    rng = np.random.default_rng(1)
    d = energy.dim
    centre = rng.uniform(-0.5, 0.5, (30, d))
    widths = 2.0 ** -np.arange(7, 10)
    lost = []
    for r in widths:
        found = curvature(energy)(Intervals(centre, np.full((30, d), r)))
        signs = np.array(list(itertools.product([-1.0, 1.0], repeat=d)))
        corners = hessians(energy, centre + r * signs[:, None])
        lost.append(np.maximum(found.high - corners.max(axis=0), corners.min(axis=0) - found.low).max(axis=(1, 2)))
    slope = np.polyfit(np.log(widths), np.log(np.median(lost, axis=1)), 1)[0]
    assert slope > 1.7


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("silu", 0.3),
        ("features", 0.0),
        ("formula", 0.3),
        ("mixture", 0.1),
        ("far apart", 0.3),
        ("traced", 0),
        ("sum", 0),
    ],
)
def test_no_proved_cell_holds_a_violation(name, rate):
    energy = ENERGIES[name]
    metric = np.array([[1.0, 0.3], [0.3, 2.0]])
    verdict = contraction_region(energy, cg.Box([-1.5, -1.0], [1.0, 1.5]), metric=metric, rate=rate, cells=16)
    points = np.random.default_rng(0).uniform([-1.5, -1.0], [1.0, 1.5], (4000, 2))
    slack = np.linalg.eigvalsh(hessians(energy, points) - rate * metric)[:, 0]
    inside = verdict.contains(points)
    assert (slack[inside] > -1e-9).all()
    assert inside.mean() == pytest.approx(verdict.fraction, abs=0.03)
    centres = verdict.refuted.mean(axis=2)
    if len(centres):
        assert (np.linalg.eigvalsh(hessians(energy, centres) - rate * metric)[:, 0] < 1e-9).all()
    assert verdict.status is not Status.UNDECIDED or name in ("traced", "features")
    assert verdict.recheck() is (verdict.status is not Status.UNDECIDED)


def test_the_region_of_a_double_well_is_nearly_all_that_is_convex():
    verdict = contraction_region(WELL, cg.Box([-2], [2]))
    true = 1 - (2 / np.sqrt(3)) / 4
    assert verdict.status is Status.PROVED
    assert true - 4 / 1024 < verdict.fraction < true
    assert float(verdict.largest_box.lower[0]) == -2.0
    assert float(verdict.largest_box.upper[0]) == pytest.approx(-1 / np.sqrt(3), abs=4 / 1024)
    assert float(verdict.largest_ball.radius) == pytest.approx((2 - 1 / np.sqrt(3)) / 2, abs=4 / 1024)
    assert len(verdict.undecided) <= 2
    assert verdict.recheck()


def test_a_trained_energy_contracts_in_a_region_that_is_seen():
    energy = ENERGIES["moons"]
    lower, upper = np.array([1.8, -0.9]), np.array([2.6, 0.1])
    verdict = contraction_region(energy, cg.Box(lower, upper), cells=32)
    points = np.random.default_rng(0).uniform(lower, upper, (6000, 2))
    least = np.linalg.eigvalsh(hessians(energy, points))[:, 0]
    inside = verdict.contains(points)
    assert verdict.status is Status.PROVED
    assert least[inside].min() > 0
    assert inside.sum() > 0.8 * (least > 0).sum()
    box, ball = verdict.largest_box, verdict.largest_ball
    for convex in (box, ball):
        assert verdict.contains(convex.sample(np.random.default_rng(1), 2000)).all()
    # two trajectories with the same noise approach each other while both stay in it
    low, high = (np.array([float(v) for v in side]) for side in (box.lower, box.upper))
    starts = np.random.default_rng(2).uniform(low + 0.1 * (high - low), high - 0.1 * (high - low), (2, 200, 2))
    loop = cg.ClosedLoop(cg.Langevin(temperature=0.05, step=0.002), energy)
    x, y = (np.asarray(loop.simulate(s, 0.1, key=1, record=51).states, float) for s in starts)
    both = np.logical_and(*(np.array([np.all((z >= low) & (z <= high), axis=-1) for z in pair]) for pair in (x, y)))
    gap = np.linalg.norm(x - y, axis=-1)
    stay = both[1:] & both[:-1]
    assert stay.sum() > 1000
    assert (gap[1:] <= gap[:-1] * (1 + 1e-4) + 1e-6)[stay].all()


def test_units_do_not_matter():
    """E(x) = N((x - o)/s) in the metric 1/s² has the region of N, cell by cell (the scales are powers of two)."""
    network = cg.MLPEnergy(2, 12, 2, confinement=0.05, key=7)
    scale, offset = np.array([0.25, 8.0]), np.array([2.0, -16.0])
    moved = cg.TrainedEnergy(network, offset, scale)
    inner = contraction_region(network, cg.Box([-2, -2], [2, 2]), cells=16, rate=-0.1)
    outer = contraction_region(
        moved, cg.Box(offset - 2 * scale, offset + 2 * scale), cells=16, rate=-0.1, metric=1 / scale**2
    )
    assert inner.fraction > 0
    order = [np.lexsort(c.reshape(len(c), -1).T) for c in (inner.cells, outer.cells)]
    back = (outer.cells[order[1]] - offset[:, None]) / scale[:, None]
    np.testing.assert_allclose(back, inner.cells[order[0]], atol=1e-12)


def test_a_quadratic_is_all_or_nothing():
    energy, box = cg.Quadratic(np.diag([1.0, 4.0])), cg.Box([-1, -1], [1, 1])
    every = contraction_region(energy, box, rate=0.999)
    none = contraction_region(energy, box, rate=1.001)
    assert every.status is Status.PROVED
    assert every.fraction == pytest.approx(1.0, abs=1e-9)
    assert len(every.cells) == 1
    assert none.status is Status.REFUTED
    assert none.fraction == 0.0
    assert none.largest_box is None
    assert none.largest_ball is None
    assert none.recheck()


def test_six_dimensions_take_the_largest_cell():
    energy = cg.MLPEnergy(6, 12, 2, confinement=1.0)
    verdict = contraction_region(energy, cg.Box([-1] * 6, [1] * 6), rate=0.5)
    assert verdict.status is Status.PROVED
    assert verdict.contains(verdict.largest_ball.sample(np.random.default_rng(0), 50)).all()
    assert verdict.contains(verdict.largest_box.sample(np.random.default_rng(0), 50)).all()


def test_what_has_no_hessian_is_undecided():
    relu = contraction_region(cg.MLPEnergy(2, 4, 1, "relu", confinement=1.0), cg.Box([-1, -1], [1, 1]))
    spent = contraction_region(ENERGIES["moons"], cg.Box([1.6, -1.0], [2.8, 0.5]), timeout=1e-6)
    assert relu.status is Status.UNDECIDED
    assert "kinks" in relu.reason
    assert spent.status is Status.UNDECIDED
    assert "the time was over" in spent.reason
    assert not spent.recheck()


# Geometry -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("d", [1, 2, 3])
def test_the_largest_box_is_that_of_a_search_through_all(d, seed):
    rng = np.random.default_rng(seed)
    shape = (7, 5, 4)[:d]
    filled = rng.random(shape) < 0.75
    sides = [rng.uniform(0.1, 1.0, n) for n in shape]
    low, high = _largest(filled, sides)
    every = [list(itertools.combinations(range(n + 1), 2)) for n in shape]
    best = 0.0
    for ranges in itertools.product(*every):
        if filled[tuple(slice(a, b) for a, b in ranges)].all():
            best = max(best, np.prod([s[a:b].sum() for s, (a, b) in zip(sides, ranges, strict=True)]))
    assert filled[tuple(slice(a, b) for a, b in zip(low, high, strict=True))].all()
    size = np.prod([s[a:b].sum() for s, a, b in zip(sides, low, high, strict=True)])
    assert size == pytest.approx(best, rel=1e-12)


def test_boxes_that_leave_a_hole_do_not_cover():
    ends = np.array([[0.0, 0.0], [1.0, 2.0]])
    cells = np.array([[[0, 0], [0.5, 2]], [[0.5, 0], [1, 1]], [[0.5, 1], [1, 2]]], float)
    assert covers(cells[:, 0], cells[:, 1], ends)
    for k in range(3):
        rest = np.delete(cells, k, axis=0)
        assert not covers(rest[:, 0], rest[:, 1], ends)
    assert not covers(cells[:, 0], cells[:, 1], np.array([[0.0, 0.0], [1.0, 2.5]]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"box": cg.Ball([0], 1)}, "box must be a Box; got Ball"),
        ({"box": cg.Box([0, 0], [1, 1])}, "box: .* has 2 coordinates"),
        ({"box": cg.Box([0], [np.inf])}, "the box must be finite for intervals"),
        ({"metric": [-1.0]}, "metric must be positive definite"),
        ({"metric": [1.0, 1.0]}, r"metric must be \(1,\) or \(1, 1\); got one of 2 dimensions"),
        ({"rate": np.nan}, "rate must be a finite number; got nan"),
        ({"cells": 0}, "cells must be an integer of at least 1; got 0"),
        ({"cells": True}, "cells must be an integer of at least 1; got True"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        contraction_region(WELL, **{"box": cg.Box([-1], [1]), **arguments})


def test_points_and_energies_of_another_kind_are_named():
    verdict = contraction_region(WELL, cg.Box([1], [2]))
    assert verdict.contains([1.5]) is True
    with pytest.raises(ValueError, match=r"x must be \(1,\) or \(n, 1\)"):
        verdict.contains([[1.0, 2.0]])
    with pytest.raises(ValueError, match="energy must be an Energy; got function"):
        contraction_region(lambda x: x, cg.Box([1], [2]))
