"""Question: how do cost and error grow with particles, steps, cells and dimension?

Errors are against closed forms: energies of exact and simulated particles, the stationary law of the Euler scheme, the
Ornstein–Uhlenbeck density on grids, and the law of the Euler scheme in 2 to 64 dimensions beside the theorem's plan.
KL is estimated from exact samples in as many dimensions, and certificates of the density are asked for. Times are
the least of alternating repeats, compile time apart.

Run: python analysis/scaling.py --seed 0 [--quick] [--out figures]
"""

import sys
import time

import numpy as np

import ctrlgen as cg

ALONE = True  # it measures time
CLAIMS = {
    "particles": "The error of a mean over particles falls as n^(-1/2).",
    "steps": "The law of the Euler scheme is off by the first order in its step, exactly as in closed form.",
    "metropolis": "The Metropolis step is not off, at four step sizes up to 0.4 of the stability limit.",
    "cells": "The error of a density on a grid falls with the second order of the cell's width.",
    "dimension": "Euler steps to a given KL grow as the root of the dimension, the theorem's plan in proportion to it.",
    "certificates": "A rate of KL is proved for a quadratic + two Gaussians in 2, 4, 8, 16, 32 and 64 dimensions.",
    "estimate": "KL of 5000 exact samples is estimated to 0.05 nats in up to four dimensions, and not in 64.",
    "cost": "A run costs at most in proportion to particles, steps and (up to 64) dimension, within a factor of eight.",
}
DIMENSIONS = (2, 4, 8, 16, 32, 64)
LEVEL = 0.02  # of KL that is asked for [nats]
SLACK = 8.0  # of costs, in which caches and other work of the machine are; a cost of higher order is off by 30


def slope(x, y):
    """Exponent of a power law, with its standard error."""
    coefficients, covariance = np.polyfit(np.log(x), np.log(y), 1, cov=True)
    return cg.Estimate(float(coefficients[0]), float(np.sqrt(covariance[0, 0])))


def ticks(ax, values):
    """Ticks of a logarithmic axis at these values alone, as they are written."""
    ax.set_xticks(values, [f"{v:g}" for v in values])
    ax.set_xticks([], minor=True)


def within(estimate, value, most):
    """Is the exponent within `most` of a value, its own error (twice) allowed for?"""
    return abs(float(estimate.value) - value) <= most + 2 * float(estimate.error)


# Errors ---------------------------------------------------------------------------------------------------------------


def particles(options, found, ax):
    """The mean energy at the end of a run, against the closed form of the scheme; root mean square over repeats."""
    energy, step, duration, repeats = cg.Quadratic(np.eye(2)), 0.01, 1.0, 16 if options.quick else 64
    start, counts = cg.Gaussian([2.0, 0.0], 0.25 * np.eye(2)), np.array([100, 1000, 10_000, 100_000])
    shrink = (1 - step) ** round(duration / step)  # of the Euler scheme, so that no bias of the step is left
    rest = 1 / (1 - step / 2)
    exact = 0.5 * (2 * (rest + (0.25 - rest) * shrink**2) + (2.0 * shrink) ** 2)
    loop, errors = cg.ClosedLoop(cg.Langevin(1.0, step), energy), []
    for n in counts:
        many = repeats if n < 100_000 else repeats // 4
        ends = [
            loop.simulate(start, duration, key=1000 * options.seed + k, record=2, particles=int(n)).final
            for k in range(many)
        ]
        off = [float(np.mean(0.5 * (np.asarray(x, np.float64) ** 2).sum(axis=1))) - exact for x in ends]
        errors.append(np.sqrt(np.mean(np.square(off))))
    fitted = slope(counts, errors)
    print("error of the mean energy: " + ", ".join(f"{n}: {e:.1e}" for n, e in zip(counts, errors, strict=True)))
    ax.loglog(counts, errors, "o-", color=cg.plot.BLUE, label="measured")
    ax.loglog(counts, errors[0] * np.sqrt(counts[0] / counts), "--", color=cg.plot.BLACK, label="n^(-1/2)")
    ax.set(xlabel="particles", ylabel="error of E[E]", title="particles")
    found.claim(
        "particles", within(fitted, -0.5, 0.05), method=f"{repeats} repeats, against the scheme's closed form",
        numbers={"exponent": fitted, "error at 10⁴ particles": errors[2]},
    )  # fmt: skip


def steps(options, found, ax):
    """Stationary variance of one quadratic mode for several steps, from half its width on."""
    n, kappa = 200_000 if options.quick else 1_000_000, 1.0
    sizes, schemes = np.array([0.1, 0.2, 0.4, 0.8]), ("euler", "mala")
    energy, off, error = cg.Quadratic(kappa * np.eye(1)), {s: [] for s in schemes}, np.sqrt(2 / n)
    for scheme in schemes:
        for h in sizes:
            loop = cg.ClosedLoop(cg.Langevin(1.0, float(h), scheme), energy)
            end = loop.simulate(cg.Gaussian([0.0], 0.25), 40 * h + 8, key=options.seed, record=2, particles=n).final
            off[scheme].append(float(np.mean(np.asarray(end, np.float64) ** 2)) - 1)
    exact = 1 / (1 - kappa * sizes / 2) - 1
    late = np.abs(np.array(off["euler"]) - exact) / (error * (1 + exact))
    still = np.abs(off["mala"]) / error
    rows = zip(sizes, off["euler"], exact, strict=True)
    print("variance off by: " + ", ".join(f"h = {h}: {o:.4f} ({e:.4f})" for h, o, e in rows))
    ax.loglog(sizes, exact, "-", color=cg.plot.BLACK, label="Euler, closed form")
    ax.loglog(sizes, off["euler"], "o", color=cg.plot.BLUE, label="Euler")
    ax.loglog(sizes, np.maximum(np.abs(off["mala"]), 1e-5), "s", color=cg.plot.ORANGE, label="Metropolis (noise)")
    ax.set(xlabel="step", ylabel="|error of the variance|", title="steps")
    ticks(ax, sizes)
    found.claim(
        "steps", late.max() < 4, method=f"{n} particles against (ε/κ)/(1 - κh/2)",
        numbers={"largest difference, in standard errors": late.max(), "bias at h = 0.1, 0.8": [exact[0], exact[-1]]},
    )  # fmt: skip
    found.claim(
        "metropolis", still.max() < 4, method=f"{n} particles",
        numbers={"largest difference, in standard errors": still.max()},
    )  # fmt: skip


def cells(options, found, ax):
    """Ornstein–Uhlenbeck on grids of several widths: total variation to the exact Gaussian at t = 1, and the time."""
    energy, start = cg.Quadratic(np.eye(2)), cg.Gaussian([1.0, 0.0], 0.2 * np.eye(2))
    sides, errors, seconds = np.array([25, 50, 100] if options.quick else [25, 50, 100, 200]), [], []
    mean, variance = np.exp(-1.0) * start.mean, 1 + (0.2 - 1) * np.exp(-2.0)
    law = cg.Gaussian(mean, variance * np.eye(2))
    for side in sides:
        grid = cg.FokkerPlanckGrid([(-5, 5)] * 2, (int(side),) * 2, 1.0)
        loop = cg.ClosedLoop(grid, energy)
        loop.simulate(start, 1.0, record=2)
        clock = time.perf_counter()
        end = loop.simulate(start, 1.0, record=2).final
        seconds.append(time.perf_counter() - clock)
        errors.append(float(np.abs(end - grid.discretise(law)).sum()))
    fitted = slope(sides, errors)
    print("grid: " + ", ".join(f"{s}²: {e:.1e} in {t:.3f} s" for s, e, t in zip(sides, errors, seconds, strict=True)))
    ax.loglog(sides, errors, "o-", color=cg.plot.BLUE, label="L1 error")
    ax.loglog(sides, errors[0] * (sides[0] / sides) ** 2.0, "--", color=cg.plot.BLACK, label="second order")
    ax.loglog(sides, seconds, "s:", color=cg.plot.ORANGE, label="time [s]")
    ax.set(xlabel="cells an axis", title="grids in the plane")
    ticks(ax, sides)
    found.claim(
        "cells", within(fitted, -2.0, 0.15), method="against the exact Gaussian at t = 1",
        numbers={"exponent": fitted, f"L1 error at {sides[-1]}²": errors[-1], "time [s]": seconds[-1]},
    )  # fmt: skip


# Dimension ------------------------------------------------------------------------------------------------------------


def spectrum(dim):
    """Curvatures of a quadratic with condition number 10: half of them 1, half 10."""
    return np.repeat([1.0, 10.0], dim // 2)


def euler_steps(dim):
    """The least number of Euler steps, over all step sizes, to KL ≤ LEVEL from N(m, I/10) with |m| = 2 along the soft
    modes: in closed form, mode by mode."""
    best, k = np.inf, np.arange(1, 3000)
    for h in np.geomspace(2e-3, 0.19, 300):
        kl = 0.0
        for kappa in (1.0, 10.0):
            shrink, rest = (1 - kappa * h) ** (2.0 * k), 1 / (1 - kappa * h / 2)  # rest: variance times κ
            ratio = rest + (kappa / 10 - rest) * shrink
            kl = kl + 0.5 * (dim / 2 * (ratio - 1 - np.log(ratio)) + (4.0 * shrink if kappa == 1.0 else 0.0))
        below = np.flatnonzero(kl <= LEVEL)
        best = min(best, k[below[0]] if len(below) else np.inf)
    return int(best)


def dimension(found, ax):
    """Steps of the scheme at its best beside those that the theorem plans, and the proof of the rate."""
    best, planned, verdicts, seconds = [], [], [], []
    for d in DIMENSIONS:
        curvatures = spectrum(d)
        energy, soft = cg.Quadratic(np.diag(curvatures)), curvatures == 1.0
        best.append(euler_steps(d))
        plan = cg.stopping.APriori(LEVEL).plan(
            energy, 1.0, initial_mean=2 * soft / np.sqrt(soft.sum()), initial_covariance=0.1 * np.eye(d)
        )
        planned.append(plan.steps)
        coupled = energy + cg.GaussianMixture([[0.5] * d, [-0.5] * d], 4.0)
        clock = time.perf_counter()
        loop = cg.ClosedLoop(cg.Langevin(1.0, 0.01), coupled)
        verdicts.append(cg.KLLyapunov(coupled, 1.0, log_partition=0.0).verify(loop, measure=False))
        seconds.append(time.perf_counter() - clock)
    grown, plans = slope(DIMENSIONS[2:], best[2:]), slope(DIMENSIONS[2:], planned[2:])
    rows = zip(DIMENSIONS, best, planned, strict=True)
    print(f"Euler steps to KL <= {LEVEL:g}: " + ", ".join(f"d = {d}: {b} ({p} planned)" for d, b, p in rows))
    ax.loglog(DIMENSIONS, planned, "s--", color=cg.plot.ORANGE, label="planned by the theorem")
    ax.loglog(DIMENSIONS, best, "o-", color=cg.plot.BLUE, label="needed at the best step")
    ax.set(xlabel="dimension", ylabel=f"Euler steps to KL ≤ {LEVEL:g}", title="dimension")
    ticks(ax, DIMENSIONS)
    found.claim(
        "dimension", within(grown, 0.5, 0.15) and within(plans, 1.0, 0.15),
        method="closed forms; a quadratic of condition 10, the mean equally far in every dimension",
        numbers={
            "exponent of what is needed": grown, "exponent of the plan": plans,
            "needed and planned in 64 dimensions": [best[-1], planned[-1]],
        },
    )  # fmt: skip
    found.verdicts(
        "certificates", verdicts, also=all(v.recheck() for v in verdicts),
        numbers={
            "rate in 2 and 64 dimensions": [verdicts[0].rate, verdicts[-1].rate],
            "seconds to prove it, in 2 and 64": f"{seconds[0]:.2g}, {seconds[-1]:.2g}",
        },
    )  # fmt: skip


def estimate(options, found, ax):
    """KL of exact samples, which is zero, by nearest neighbours; and what a wrong law by 0.25 nats is taken for."""
    n, rows = 5000, {0.0: [], 0.25: []}
    for d in DIMENSIONS:
        target = cg.Quadratic(np.eye(d))
        known = 0.5 * d * np.log(2 * np.pi)
        for true, row in rows.items():
            shift = np.full(d, np.sqrt(2 * true / d))
            x = cg.Gaussian(shift, np.eye(d)).sample(options.seed + d, n)
            row.append(cg.measure.kl(x, target, 1.0, log_partition=known))
    for (true, row), colour, mark, line in zip(
        rows.items(), (cg.plot.BLUE, cg.plot.ORANGE), "os", ("-", "--"), strict=True
    ):
        off = [float(e.value) - true for e in row]
        ax.errorbar(DIMENSIONS, off, [2 * float(e.error) for e in row], fmt=f"{mark}{line}", color=colour, markersize=4,
                    label=f"true KL {true:g}")  # fmt: skip
        print(
            f"KL of {n} samples, true {true:g}: " + ", ".join(f"{d}: {e}" for d, e in zip(DIMENSIONS, row, strict=True))
        )
    ax.axhline(0, color=cg.plot.BLACK, linewidth=0.8, linestyle="--")
    ax.set(xscale="log", xlabel="dimension", ylabel="error of KL [nats]", title=f"KL of {n} particles")
    ax.set_yscale("symlog", linthresh=0.1)
    ticks(ax, DIMENSIONS)
    off = {d: max(abs(float(row[j].value) - true) for true, row in rows.items()) for j, d in enumerate(DIMENSIONS)}
    found.claim(
        "estimate", max(off[2], off[4]) < 0.05 < off[64], method="nearest neighbours, exact samples of Gaussians",
        numbers={f"error in {d} dimensions [nats]": e for d, e in off.items()},
    )  # fmt: skip


# Cost -----------------------------------------------------------------------------------------------------------------


def cost(options, found, ax):
    """Nanoseconds a particle-step, by particles and by dimension, of an analytic energy and of a network."""
    repeats, span = 3 if options.quick else 7, 300
    sizes = (1000, 10_000, 300_000)
    mlp = {d: cg.MLPEnergy(d, width=64, depth=2, confinement=1.0, key=0) for d in (2, 16, 64)}
    runs = {("quadratic, d = 2", n, 2, span): cg.Quadratic(np.eye(2)) for n in sizes}
    runs |= {("quadratic, d = 2", 10_000, 2, 10 * span): cg.Quadratic(np.eye(2))}
    runs |= {("quadratic", 10_000, d, span): cg.Quadratic(np.diag(np.linspace(1, 2, d))) for d in (2, 16, 64)}
    runs |= {("network", 2000, d, span // 6): energy for d, energy in mlp.items()}
    made = {}
    for (name, n, d, k), energy in runs.items():
        loop = cg.ClosedLoop(cg.Langevin(1.0, 0.01), energy)
        made[name, n, d, k] = loop, cg.Gaussian(np.zeros(d), np.eye(d)).sample(0, n)
    seconds = {which: [] for which in made}
    for repeat in range(repeats + 1):  # the first one compiles
        for (name, n, d, k), (loop, start) in made.items():
            seconds[name, n, d, k].append(loop.simulate(start, 0.01 * k, key=repeat, record=2).seconds)
    each = {w: 1e9 * min(times[1:]) / (w[1] * w[3]) for w, times in seconds.items()}
    for (name, n, d, k), value in each.items():
        print(f"{name:18s} {n:7d} particles, d = {d:2d}, {k:5d} steps: {value:8.1f} ns a particle-step")
    by_size = [each["quadratic, d = 2", n, 2, span] for n in sizes]
    longer = each["quadratic, d = 2", 10_000, 2, 10 * span]
    by_dim = [each["quadratic", 10_000, d, span] for d in (2, 16, 64)]
    network = [each["network", 2000, d, span // 6] for d in (2, 16, 64)]
    ax.loglog((2, 16, 64), by_dim, "o-", color=cg.plot.BLUE, label="quadratic")
    ax.loglog((2, 16, 64), network, "s--", color=cg.plot.ORANGE, label="network, 64 wide")
    ax.set(xlabel="dimension", ylabel="ns a particle-step", title="cost")
    ticks(ax, (2, 16, 64))
    grows = max(by_size[2] / by_size[1], longer / by_size[1], by_dim[2] / by_dim[0] / 32, network[2] / network[0] / 32)
    found.claim(
        "cost", grows <= SLACK, method=f"least of {repeats} alternating runs, float32",
        numbers={
            "ns a particle-step, 10³, 10⁴, 3·10⁵ particles (d = 2)": by_size,
            "of ten times as many steps": longer,
            "quadratic, d = 2, 16, 64": by_dim,
            "network 64 wide, d = 2, 16, 64": network,
        },
    )  # fmt: skip


def analyse(options, found):
    axes = cg.plot.figure(2, 3, (3.0, 2.5)).ravel()
    particles(options, found, axes[0])
    steps(options, found, axes[1])
    cells(options, found, axes[2])
    dimension(found, axes[3])
    estimate(options, found, axes[4])
    cost(options, found, axes[5])
    for ax in axes:
        ax.grid(True, alpha=0.25)
        ax.legend()
    found.figure(
        axes[0].figure,
        "Errors against particles, steps, cells and dimension, each with its closed form or its order; steps needed "
        "and planned; the error of a KL that is estimated from particles; and the cost of a particle-step.",
    )
    return "Errors fall with their orders; what does not scale is KL from particles, beyond a few dimensions."


if __name__ == "__main__":
    sys.exit(cg.report.script(__file__, analyse))
