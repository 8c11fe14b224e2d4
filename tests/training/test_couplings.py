"""The couplings against brute force, and against what any other coupling costs."""

from itertools import permutations

import numpy as np
import pytest

from ctrlgen.training.couplings import optimal_assignment, optimal_pairs


def cost(x, y, order):
    return float(((x - y[:, order]) ** 2).sum())


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_assignment_is_the_best_of_all_permutations(dim):
    rng = np.random.default_rng(dim)
    for _ in range(5):
        x, y = rng.normal(size=(dim, 6)), rng.normal(2.0, 3.0, size=(dim, 6))
        best = min(cost(x, y, list(p)) for p in permutations(range(6)))
        assert cost(x, y, optimal_assignment(x, y)) == pytest.approx(best, rel=1e-12)


def test_assignment_in_one_dimension_agrees_with_the_general_solver():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(1, 128)), rng.exponential(size=(1, 128))
    flat = np.zeros((1, 128))
    general = optimal_assignment(np.vstack([x, flat]), np.vstack([y, flat]))
    assert np.array_equal(optimal_assignment(x, y), general)


def test_assignment_is_a_permutation_far_cheaper_than_chance():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 128)).astype(np.float32), rng.normal(size=(2, 128)).astype(np.float32) * 2
    order = optimal_assignment(x, y)
    assert np.array_equal(np.sort(order), np.arange(128))
    chance = [cost(x, y, rng.permutation(128)) for _ in range(200)]
    assert cost(x, y, order) < 0.5 * min(chance)


def test_pairs_are_drawn_from_the_plan_with_replacement():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(2, 64)), rng.normal(size=(2, 64))
    order = optimal_assignment(x, y)
    a, b = optimal_pairs(np.random.default_rng(3), x, y)
    rows = [int(np.flatnonzero((x == column[:, None]).all(axis=0))[0]) for column in a.T]
    assert np.array_equal(b, y[:, order[rows]])
    assert 30 <= len(set(rows)) <= 52  # 64 (1 - 1/e) = 40.5 distinct, standard deviation 2.5


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"one shape \(d, n\); got \(2, 3\) and \(2, 4\)"):
        optimal_assignment(np.zeros((2, 3)), np.zeros((2, 4)))
