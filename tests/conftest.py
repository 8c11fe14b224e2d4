"""What all tests share: one BLAS thread a worker (two on two cores would spin), and a fixed source of points."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pytest


@pytest.fixture
def rng():
    return np.random.default_rng(20260)
