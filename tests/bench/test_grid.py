"""Fokker–Planck on a grid to t = 1, side by side with peers: seconds, and the L1 error against the exact density.

Problem: Ornstein–Uhlenbeck in two dimensions, E = |x|²/2, ε = 1, box (-4, 4)², from N((1, 0.5), I/4). Each row
counts everything from the energy and the initial density to the density at t = 1; compilation is outside.
"""

import numpy as np
import pytest

import ctrlgen as cg

pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed (the `bench` extra)")

HALF, DURATION = 4.0, 1.0
SIZES = [100, 200]
START = cg.Gaussian([1.0, 0.5], 0.25)
ENERGY = cg.Quadratic(np.eye(2))


def exact(grid):
    (end,) = cg.GaussianPlant(1.0).start(ENERGY, START, step=DURATION).advance([1])
    return grid.discretise(end)


def report(benchmark, masses, n):
    reference = exact(cg.FokkerPlanckGrid([(-HALF, HALF)] * 2, (n, n), 1.0))
    benchmark.extra_info["l1_error"] = float(np.abs(masses - reference).sum())
    benchmark.extra_info["smallest_mass"] = float(masses.min())


def ctrlgen_run(n, **options):
    grid = cg.FokkerPlanckGrid([(-HALF, HALF)] * 2, (n, n), 1.0, **options)
    steps = 1 if grid.step is None else round(DURATION / grid.step)
    return grid.start(ENERGY, START, step=DURATION).advance([steps])[0]


@pytest.mark.parametrize("flux", ["scharfetter-gummel", "curved"])
@pytest.mark.parametrize("n", SIZES)
def test_ctrlgen_exponential(benchmark, n, flux):
    benchmark.group = f"grid {n}x{n}"
    options = {"flux": flux}
    report(benchmark, benchmark.pedantic(ctrlgen_run, args=(n,), kwargs=options, rounds=15, warmup_rounds=2), n)


@pytest.mark.parametrize("n", SIZES)
def test_ctrlgen_implicit_steps(benchmark, n):
    benchmark.group = f"grid {n}x{n}"
    options = {"step": DURATION / 20}
    report(benchmark, benchmark.pedantic(ctrlgen_run, args=(n,), kwargs=options, rounds=3, warmup_rounds=1), n)


@pytest.mark.parametrize("n", SIZES)
def test_fplanck(benchmark, n, monkeypatch):
    fplanck = pytest.importorskip("fplanck", reason="fplanck is not installed (the `bench` extra)")
    from scipy import constants

    if not hasattr(np, "product"):  # fplanck 0.2.2 was written for NumPy 1
        monkeypatch.setattr(np, "product", np.prod, raising=False)

    def run():
        equation = fplanck.fokker_planck(
            temperature=1.0 / constants.k,  # its ε is k_B T
            drag=1.0,
            extent=[2 * HALF, 2 * HALF],
            resolution=2 * HALF / n,
            boundary=fplanck.boundary.reflecting,
            potential=lambda x, y: (x**2 + y**2) / 2,
        )
        return equation.propagate(lambda x, y: np.exp(-2 * ((x - 1.0) ** 2 + (y - 0.5) ** 2)), DURATION)

    benchmark.group = f"grid {n}x{n}"
    masses = benchmark.pedantic(run, rounds=3)
    assert masses.shape == (n, n)
    report(benchmark, masses, n)


@pytest.mark.parametrize("n", SIZES)
def test_scipy_expm_multiply(benchmark, n):
    from scipy.sparse.linalg import expm_multiply

    def run():
        grid = cg.FokkerPlanckGrid([(-HALF, HALF)] * 2, (n, n), 1.0)
        return expm_multiply(grid.generator(ENERGY), grid.discretise(START).ravel()).reshape(n, n)

    benchmark.group = f"grid {n}x{n}"
    report(benchmark, benchmark.pedantic(run, rounds=3), n)
