"""What closing the loop on the density costs: fed-back steps beside open ones, particles and grid.

Run: python -m pytest tests/bench/test_feedback.py --override-ini addopts= -s
Each row is the median over alternating repeats of (time of the fed-back run) / (time of the open one).
"""

import time

import numpy as np
import pytest

import ctrlgen as cg

REPEATS = 7
WELLS = cg.SymbolicEnergy("(x**2 - 1)**2 + y**2/2", ["x", "y"])
GRID = cg.FokkerPlanckGrid([(-2.2, 2.2)] * 2, (60, 60), 0.2)
START = cg.Gaussian([1.0, 0.0], 0.05 * np.eye(2))


def ratio(loops, run):
    times = [[], []]
    for repeat in range(REPEATS + 1):
        for k, loop in enumerate(loops):
            clock = time.perf_counter()
            response = run(loop)
            if repeat:  # the first compiles
                times[k].append(time.perf_counter() - clock)
    return np.median(np.array(times[1]) / np.array(times[0])), [np.median(t) for t in times], response


@pytest.mark.parametrize("particles", [1000, 10_000, 100_000])
@pytest.mark.parametrize("period", [0.005, 0.02, 0.1])
def test_particles(particles, period, capsys):
    feedback = cg.interop.density_feedback(WELLS, GRID, ["x", "y"], period=period)
    loops = [cg.ClosedLoop(cg.Langevin(0.2, 0.005), block) for block in (WELLS, feedback)]
    x, steps = START.sample(0, particles), 20_000_000 // particles
    found, (free, fed), response = ratio(loops, lambda loop: loop.simulate(x, steps * 0.005, record=2))
    share = float((response.final[:, 0] > 0).mean())
    assert abs(share - 0.5) < 0.05
    with capsys.disabled():
        free, fed = (t / steps / particles * 1e9 for t in (free, fed))
        print(f"\n{particles:7d} particles, command held for {period:5.3f}:", end=" ")
        print(f"open {free:6.1f} ns, fed back {fed:6.1f} ns a particle-step: x{found:.2f}")


def test_grid(capsys):
    feedback = cg.interop.density_feedback(WELLS, GRID, ["x", "y"])
    loops = [cg.ClosedLoop(GRID, block) for block in (WELLS, feedback)]
    found, (free, fed), response = ratio(loops, lambda loop: loop.simulate(START, 2.0, record=101))
    assert response.kl[-1] < 1e-3
    with capsys.disabled():
        print(f"\ngrid 60x60, 100 commands: open {free * 1e3:.0f} ms, fed back {fed * 1e3:.0f} ms: x{found:.2f}")
