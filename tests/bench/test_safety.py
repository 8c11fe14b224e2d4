"""What a safety filter costs: filtered steps beside unfiltered ones, 10 000 particles in two dimensions, float32.

Run: python -m pytest tests/bench/test_safety.py --override-ini addopts= -s
Each row is the median over alternating repeats of (time of the filtered run) / (time of the unfiltered one).
"""

import time

import numpy as np
import pytest

import ctrlgen as cg

PARTICLES, STEPS, STEP, REPEATS = 10_000, 1000, 0.01, 7
ANGLES = np.arange(8) * np.pi / 4
MIXTURE = cg.GaussianMixture(4 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1), 0.25)
NETWORK = cg.MLPEnergy(2, width=128, depth=3, confinement=0.1, key=0)
XY = ["x", "y"]
ONE = [cg.BarrierFunction("20 - x**2 - y**2", XY)]
FIVE = {
    "5 half-planes": [
        cg.BarrierFunction(f"4.4 - {np.cos(a):.4f}*x - {np.sin(a):.4f}*y", XY) for a in 2 * np.pi / 5 * np.arange(5)
    ],
    "5 discs": ONE
    + [
        cg.BarrierFunction(f"(x - {5.2 * np.cos(a):.4f})**2 + (y - {5.2 * np.sin(a):.4f})**2 - 1", XY)
        for a in np.pi / 2 * np.arange(4)
    ],
}
BARRIERS = {"1 disc": ONE, **FIVE}
CASES = [
    ("cbf", "euler"),
    ("reflected", "euler"),
    ("barrier_energy", "euler"),
    ("reflected", "mala"),
    ("barrier_energy", "mala"),
]


def start():
    x = np.random.default_rng(0).normal(size=(3 * PARTICLES, 2)).astype(np.float32)
    return x[np.linalg.norm(x, axis=1) < 2.5][:PARTICLES]


@pytest.mark.parametrize("energy", ["mixture", "network"])
@pytest.mark.parametrize("barriers", BARRIERS)
@pytest.mark.parametrize(("mode", "scheme"), CASES)
def test_filtered_beside_unfiltered(energy, barriers, mode, scheme, capsys):
    block, steps = (MIXTURE, STEPS) if energy == "mixture" else (NETWORK, STEPS // 10)
    plant, x = cg.Langevin(1.0, STEP, scheme=scheme), start()
    safety = cg.SafetyFilter(BARRIERS[barriers], 5.0, mode=mode)
    loops = [cg.ClosedLoop(plant, block), cg.ClosedLoop(plant, block, safety=safety)]
    times, response = [[], []], None
    for repeat in range(REPEATS + 1):
        for k, loop in enumerate(loops):
            clock = time.perf_counter()
            response = loop.simulate(x, steps * STEP, record=2)
            if repeat:  # the first compiles
                times[k].append(time.perf_counter() - clock)
    ratio = np.median(np.array(times[1]) / np.array(times[0]))
    assert response.safety.violations == 0
    assert response.safety.looked == PARTICLES * steps
    assert (safety.values(response.final) >= 0).all()
    plain, kept = (float(np.median(t)) / PARTICLES / steps * 1e9 for t in times)
    with capsys.disabled():
        print(f"\n{energy:8s} {barriers:14s} {mode:15s} {scheme:6s}", end=" ")
        print(f"unfiltered {plain:7.1f} ns, filtered {kept:7.1f} ns a particle-step: x{ratio:.2f}")
