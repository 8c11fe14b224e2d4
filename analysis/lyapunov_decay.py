"""Question: does V̇ = -εI hold along closed loops, and at which rate does V fall?

Two loops are run side by side: a quadratic energy as a Gaussian in closed form, on a grid and with particles, and a
double well on a grid and with particles. Finite differences of V = KL(ρ‖ρ*) are compared with -εI, and the fall of V
with the certified rate 2εα of `cg.log_sobolev` and with the gap of the grid's generator.

Run: python analysis/lyapunov_decay.py --seed 0 [--quick] [--out figures]
"""

import sys
import warnings
from dataclasses import dataclass

import numpy as np

import ctrlgen as cg

CLAIMS = {
    "identity": "Where all is Gaussian, V̇ = -εI is an identity, in any dimension.",
    "dissipation": "Along closed loops V = KL(ρ‖ρ*) falls at exactly the dissipation rate εI, on moments and on grids.",
    "rate": "V falls at least at the rate 2εα in continuous time, with α a constant that is proved.",
    "gap": "The curves stay below that bound, and fall in the end at twice the spectral gap, to a tenth.",
    "particles": "Particles measure the same V within three errors and 0.02 nats, and εI from below.",
}
EXACT = 1e-4  # the largest relative difference between -V̇ and εI where both are exact but for the difference quotient
QUOTIENT = 1e-4  # its step, twice [time]
LOOPS = {  # energy, temperature, start, duration, half width of the box
    "quadratic": (cg.Quadratic([[1.5, 0.5], [0.5, 2.5]]), 0.7, cg.Gaussian([1.6, -0.8], 0.15), 3.0, 5.0),
    "double well": (cg.DoubleWell(2), 0.5, cg.Gaussian([1.1, -0.8], 0.15), 5.0, 3.0),
}


def exact(plant, energy, start, duration):
    """Times, V, εI and -dV/dt of a run whose measures are exact, the last by a central difference of V."""
    loop, V = cg.ClosedLoop(plant, energy), cg.KLLyapunov(energy, plant.temperature)
    response = loop.simulate(start, duration, record=61)
    rows = []
    for state in response.snapshots:
        before, middle, after = loop.simulate(state, 2 * QUOTIENT, record=3).snapshots
        rows.append((V.value(middle), V.dissipation(middle), (V.value(before) - V.value(after)) / (2 * QUOTIENT)))
    return response.time + QUOTIENT, *np.array(rows).T


def particles(energy, temperature, start, duration, count, seed):
    """Times, V and εI of particles with standard errors."""
    loop = cg.ClosedLoop(cg.Langevin(temperature, 0.005), energy)
    response = loop.simulate(start, duration, key=seed, record=13, particles=count)
    V = cg.KLLyapunov(energy, temperature)
    values = [V.value(x) for x in response.states]
    rates = [V.dissipation(x) for x in response.states]
    table = [[float(e.value), float(e.error)] for e in (*values, *rates)]
    return response.time, *np.array(table).reshape(2, len(values), 2)


@dataclass(frozen=True)
class Compared:
    """One loop: largest |-V̇/εI - 1|, the bound, whether V stays below it, the last slope of V over twice the gap."""

    worst: float
    bound: cg.Verdict
    held: bool
    tail: float
    off: float
    share: float
    agree: bool


def compare(name, options, axes):
    """Run one loop in every representation and draw it."""
    energy, temperature, start, duration, half = LOOPS[name]
    side = 100 if options.quick else 160
    grid = cg.FokkerPlanckGrid([(-half, half)] * 2, (side, side), temperature)
    plants = {"grid": grid}
    if name == "quadratic":
        plants = {"Gaussian": cg.GaussianPlant(temperature), **plants}
    top, bottom = axes
    loop = cg.ClosedLoop(cg.Langevin(temperature, 0.005), energy)
    bound, gap = cg.KLLyapunov(energy, temperature).verify(loop, measure=False), -2 * float(grid.spectrum(energy, 1)[0])
    held, worsts, tails = True, [], []
    for (kind, plant), colour, style in zip(
        plants.items(), (cg.plot.ORANGE, cg.plot.BLUE)[-len(plants) :], ("-", "--")[-len(plants) :], strict=True
    ):
        time, value, rate, slope = exact(plant, energy, start, duration)
        top.semilogy(time, value, style, color=colour, linewidth=1.8, label=kind)
        bottom.semilogy(time, rate, style, color=colour, linewidth=1.8, label=f"εI, {kind}")
        worsts.append(float(np.abs(slope / rate - 1).max()))
        tails.append(float(-np.polyfit(time[-12:], np.log(value[-12:]), 1)[0]) / gap)
        held &= bool((value <= value[0] * np.exp(-bound.rate * (time - time[0]))).all())
        print(f"{name}, {kind}: |-V̇/εI - 1| <= {worsts[-1]:.1e}; V falls at {tails[-1] * gap:.4f} in the end")
    shown = np.arange(0, len(time), 3)
    bottom.semilogy(time[shown], slope[shown], "x", color=cg.plot.BLACK, label="-V̇, differences of V")
    off, share, agree = sampled(name, options, axes, (value, rate, time))
    print(f"{name}: certified rate >= {bound.rate} ({bound.status.name}), twice the gap of the grid {gap:.4f}")
    top.semilogy(time, value[0] * np.exp(-bound.rate * time), "--", color=cg.plot.RED, label="certified")
    top.set(title=name, ylabel="V [nats]", ylim=(max(1e-3, 0.3 * value[-1]), 2 * value[0]))
    bottom.set(xlabel="time", ylabel="nats / time", ylim=(max(1e-3, 0.2 * rate[-1]), 2 * rate[0]))
    for ax in axes:
        ax.grid(True, alpha=0.25)
        ax.legend()
    farthest = max(tails, key=lambda tail: abs(tail - 1))
    held &= bound.rate <= gap * 1.01 and abs(farthest - 1) < 0.1
    return Compared(max(worsts), bound, held, farthest, off, share, agree)


def sampled(name, options, axes, reference):
    """Particles: the largest error of V in standard errors, the share of the fall that their εI explains, and whether
    V is within its errors of the grid and εI a lower bound."""
    energy, temperature, start, duration, _ = LOOPS[name]
    count = 4000 if options.quick else 20_000
    time, value, rate = particles(energy, temperature, start, duration, count, options.seed)
    for ax, (mean, error), label in zip(
        axes, (value.T, rate.T), ("particles", "εI, particles (from below)"), strict=True
    ):
        ax.errorbar(time, mean, 2 * error, fmt="o", markersize=3, linewidth=0.8, color=cg.plot.GREEN, label=label)
    exact_value, exact_rate = (np.interp(time, reference[2], r) for r in reference[:2])
    off = np.abs(value[:, 0] - exact_value) / value[:, 1]
    weights = exact_rate * np.gradient(time)  # of the fall of V that falls to each record
    share = float(weights @ (rate[:, 0] / exact_rate) / weights.sum())
    bias = 0.02  # of nearest neighbours, and of the Euler step
    print(
        f"{name}, particles: V within {off.max():.1f} standard errors of the grid; "
        f"their εI, a lower bound, is {100 * share:.1f} % of the grid's"
    )
    within = bool((np.abs(value[:, 0] - exact_value) <= 3 * value[:, 1] + bias).all())
    below = bool((rate[:, 0] <= exact_rate * 1.02 + 3 * rate[:, 1]).all())
    return float(off.max()), share, within and below and share > 0.8


def analyse(options, found):
    warnings.simplefilter("error", RuntimeWarning)
    identity = cg.KLLyapunov.gaussian().verify()
    found.verdicts("identity", identity, also=identity.recheck())
    axes = cg.plot.figure(2, len(LOOPS), (3.5, 2.6))
    loops = {name: compare(name, options, axes[:, i]) for i, name in enumerate(LOOPS)}
    found.figure(
        axes[0, 0].figure,
        "KL to the Gibbs measure along two loops (above) and the rate at which it falls (below), in every "
        "representation; crosses are differences of V.",
    )
    worst = max(loop.worst for loop in loops.values())
    found.claim(
        "dissipation", worst < EXACT, method="differences of V against εI, on moments and on grids",
        numbers={f"{name}: largest |-V̇/εI - 1|": loop.worst for name, loop in loops.items()},
    )  # fmt: skip
    found.verdicts(
        "rate", [loop.bound for loop in loops.values()], also=all(loop.bound.recheck() for loop in loops.values()),
        numbers={f"{name}: rate of V": loop.bound.rate for name, loop in loops.items()},
    )  # fmt: skip
    found.claim(
        "gap", all(loop.held for loop in loops.values()), method="moments and grids",
        numbers={f"{name}: last slope over twice the gap": loop.tail for name, loop in loops.items()},
    )  # fmt: skip
    found.claim(
        "particles", all(loop.agree for loop in loops.values()), method="nearest neighbours, against the grid",
        numbers={
            f"{name}: V off by, and share of εI": f"{loop.off:.1f} standard errors, {loop.share:.1%}"
            for name, loop in loops.items()
        },
    )  # fmt: skip
    return f"V̇ = -εI along both loops (to {worst:.0e}), and V falls at least at the certified rate."


if __name__ == "__main__":
    sys.exit(cg.report.script(__file__, analyse))
