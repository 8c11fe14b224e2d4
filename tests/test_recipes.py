"""The recipes of the shipped models."""

import numpy as np
import pytest

from ctrlgen import datasets, recipes


def test_background_has_its_share_and_width():
    mixed = recipes.WithBackground(datasets.checkerboard, 0.2, 2.0)
    x = mixed.sample(0, 40_000)
    wide = np.diag(mixed.background.covariance)  # 2² times the variances of the board
    assert x.var(axis=0) == pytest.approx(0.8 * wide / 4 + 0.2 * wide, rel=0.03)  # a mixture about one centre
    outside = ~np.isfinite(datasets.checkerboard.log_density(x))
    assert 0.12 < outside.mean() < 0.2


def test_unknown_recipes_are_refused():
    with pytest.raises(ValueError, match="Unknown model 'moons'; there are recipes for checkerboard, digits, "):
        recipes.train_shipped("moons")
