"""One place for what many tests need: a fresh, fixed source of points."""

import numpy as np
import pytest


@pytest.fixture
def rng():
    return np.random.default_rng(20260)
