"""The shipped models: they load, and the numbers on their cards are theirs."""

import re

import numpy as np
import pytest
from scipy.special import logsumexp

import ctrlgen as cg
from ctrlgen import datasets, measure, recipes
from ctrlgen.quality import measure_quality
from ctrlgen.store import load_card

PLANE = ("checkerboard", "eight_gaussians", "pinwheel", "rings", "two_moons")


def on_card(name: str, label: str) -> tuple[float, float]:
    """Value and standard error of a row of the card's table."""
    row = next(line for line in load_card(name).splitlines() if line.startswith(f"| {label}"))
    numbers = [float(text) for text in re.findall(r"\d+\.\d+", row.split("|")[2])]
    return numbers[0], numbers[1] if len(numbers) > 1 else 0.0


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_is_shipped_and_tells_how_it_was_made(name):
    energy = cg.load_energy(name)  # checks hash, shapes and types
    recipe = recipes.get(name)
    assert (energy.name, energy.dim) == (name, datasets.get(name).dim)
    assert (energy.step, energy.duration, energy.scheme) == (recipe.step, recipe.duration, recipe.scheme)
    assert f"```\n{recipes.command(name, 0)}\n```" in load_card(name)
    assert np.isfinite(energy(energy.source.sample(0, 100))).all()


@pytest.mark.parametrize("name", sorted(set(PLANE) - {"checkerboard"}))
def test_divergence_from_the_data_is_that_of_the_card(name):
    """By the midpoint rule on a coarse grid: its error falls faster than any power of the spacing."""
    energy, data = cg.load_energy(name), datasets.get(name)
    (left, bottom), (right, top) = 2 * data.bounds - data.bounds.mean(axis=0)
    x, y = (a + (b - a) * (np.arange(240) + 0.5) / 240 for a, b in ((left, right), (bottom, top)))
    points = np.stack([np.repeat(x, 240), np.tile(y, 240)], axis=1)
    area = (right - left) * (top - bottom) / 240**2
    height, log_p = energy(points) / energy.temperature, data.log_density(points)
    log_z = logsumexp(-height) + np.log(area)
    p = np.exp(log_p) * area
    assert p.sum() == pytest.approx(1, abs=1e-5)
    kl = np.sum(p * (log_p + height)) + log_z
    assert kl == pytest.approx(on_card(name, "KL(data‖Gibbs)")[0], abs=3e-4)
    assert kl <= 0.02


@pytest.mark.slow
def test_divergence_of_sharp_edges_is_that_of_the_card():
    """Gauss-Legendre nodes, which crowd towards the edges, on each dark square; log Z by adaptive cells."""
    energy = cg.load_energy("checkerboard")
    node, weight = np.polynomial.legendre.leggauss(64)
    square = np.stack([np.repeat(node, 64), np.tile(node, 64)], axis=1) + 1
    corners = [(x, y) for x in range(-4, 4, 2) for y in range(-4, 4, 2) if (x + y) % 4 == 0]
    share = np.outer(weight, weight).ravel() / 4 / len(corners)
    mean = sum(share @ energy(square + corner) for corner in corners) / energy.temperature
    log_z = measure.log_partition(energy, energy.temperature, bounds=[[-10, -10], [10, 10]], tolerance=1e-3)
    kl = mean + float(log_z) - np.log(32)
    assert kl == pytest.approx(on_card("checkerboard", "KL(data‖Gibbs)")[0], abs=1e-3)
    assert kl <= 0.02


@pytest.mark.slow
def test_the_loop_reaches_the_data_and_stays():
    name = "two_moons"
    found = measure_quality(cg.load_energy(name), datasets.get(name), points=1000, repeats=4)
    assert found.ratio.value <= 1.25
    assert found.ratio_long.value <= found.ratio.value + 2 * np.hypot(found.ratio.error, found.ratio_long.error)
    assert found.ratio_long.value <= 1.25


@pytest.mark.slow
@pytest.mark.parametrize("name", recipes.names())
def test_distances_are_those_of_the_card(name):
    found = recipes.quality_of(cg.load_energy(name), name, repeats=4)
    for label, got in (("W₂ / floor, at T", found.ratio), ("W₂ / floor, at 5 T", found.ratio_long)):
        value, error = on_card(name, label)
        assert abs(got.value - value) <= 3 * np.hypot(error, got.error)
        assert value <= 1.25


def test_digits_are_pictures_as_far_from_the_held_out_ones_as_the_card_says():
    pytest.importorskip("sklearn")
    energy, digits = cg.load_energy("digits"), datasets.digits
    pictures = cg.generate(energy, len(digits.held_out), key=1)
    assert np.isfinite(pictures).all()
    assert np.abs(pictures - 0.5).max() < 2
    assert np.mean(np.abs(pictures - 0.5) < 0.8) > 0.995
    distance = measure.wasserstein2(pictures, digits.held_out)
    assert distance.value == pytest.approx(on_card("digits", "W₂ generated to data, at T")[0], abs=0.08)
