"""Question: does feedback on the density's slow modes bring it to the Gibbs measure sooner, and leave that as it is?

A double well whose slowest mode is a hundred times slower than the next (E = (x² - 1)² + y²/2, ε = 0.2, inputs x, y),
on a grid and with particles, under a Riccati law, the dissipative law and no feedback; the same for other
temperatures; and the trained two_moons energy with its slowest eigenfunctions as control potentials.

Run: python analysis/density_feedback.py --seed 0 [--quick] [--out figures]
"""

import sys
import warnings

import numpy as np

import ctrlgen as cg

CLAIMS = {
    "grid": "On a grid, Riccati feedback brings KL of a double well below 1e-3 a hundred times sooner or more.",
    "invariant": "The command vanishes and the Gibbs measure stays: W₂ to exact samples is that of two exact samples.",
    "particles": "The grid's controller brings particles to the KL of exact samples fifty times sooner or more.",
    "dissipative": "Under the dissipative law dKL/dt ≤ -εI at every density, in continuous time.",
    "riccati": "In the bilinear model of four slow modes zᵀPz falls exponentially from that start, inputs saturated.",
    "barrier": "What feedback saves grows with the barrier, to more than a thousandfold where that is 10 ε high.",
    "trained": "Slow eigenfunctions as inputs accelerate the trained two_moons energy tenfold or more.",
}
WELLS = cg.SymbolicEnergy("(x**2 - 1)**2 + y**2/2", ["x", "y"])
START = cg.Gaussian([1.0, 0.0], 0.05 * np.eye(2))
LEVEL = 1e-3  # of KL that counts as arrived, on grids [nats]
PARTICLES, STEP = 10_000, 0.005


def arrival(response, level=LEVEL):
    """The first recorded time from which KL stays below the level; inf when it does not."""
    above = np.flatnonzero(response.kl > level)
    last = above[-1] + 1 if len(above) else 0
    return response.time[last] if last < len(response.time) else np.inf


def on_grid(energy, grid, start, inputs, span, **options):
    """Runs under the Riccati law and without feedback, the latter until its slowest mode has gone."""
    feedback = cg.interop.density_feedback(energy, grid, inputs, **options)
    closed = cg.ClosedLoop(grid, feedback).simulate(start, span, record=401)
    slowest = -float(feedback.design.modes.rates[0])
    free = cg.ClosedLoop(grid, energy).simulate(start, 4 / slowest, record=801)
    return feedback, closed, free


def wells(found, axes):
    """The double well on a grid: the laws, and their verdicts."""
    grid = cg.FokkerPlanckGrid([(-2.2, 2.2)] * 2, (60, 60), 0.2)
    feedback, closed, free = on_grid(WELLS, grid, START, ["x", "y"], 4.0, limit=5.0)
    law = cg.interop.density_feedback(WELLS, grid, ["x", "y"], law="dissipative")
    slow = cg.ClosedLoop(grid, law).simulate(START, 4.0, record=201)
    fast, late = arrival(closed), arrival(free)
    print(f"double well, grid: KL <= {LEVEL:g} at t = {fast:.2f} closed, {late:.1f} open: {late / fast:.0f} x sooner")
    at_14 = float(np.interp(14.0, free.time, free.kl))
    print(f"  open loop at t = 14: KL {at_14:.3f}; the last command |u| = {np.abs(closed.inputs[-1]).max():.1e}")
    for response, colour, style, label in (
        (free, cg.plot.BLACK, "-", "open loop"),
        (slow, cg.plot.GREEN, "--", "dissipative law"),
        (closed, cg.plot.BLUE, "-", "Riccati"),
    ):
        axes[0].plot(response.time[1:], response.kl[1:], style, color=colour, label=label)
    axes[0].set(xscale="log", yscale="log", xlim=(0.02, 400), ylim=(1e-5, 3e3), xlabel="time", ylabel="KL [nats]")
    axes[0].set_title("double well, on a grid")
    cg.plot.inputs(closed, axes[1]).set_title("commands (saturated at 5)")
    axes[1].set_xlim(0, 2)
    initial = grid.discretise(START)
    few = cg.interop.density_feedback(WELLS, grid, ["x", "y"], order=4, limit=5.0).verify(initial=initial)
    always = law.verify()
    print(f"  four modes from this start: {few.status.name}, V falls at {few.rate or 0:.3f} at least, saturated inputs")
    print(f"  dissipative law, every density: {always.status.name}; and for KL of its loop, with a rate: "
          f"{cg.KLLyapunov(WELLS, 0.2).verify(cg.ClosedLoop(grid, law)).status.name}")  # fmt: skip
    free_rate = np.array([grid.dissipation(m, WELLS) for m in slow.snapshots])[1:-1]
    falls = bool((-np.gradient(slow.kl, slow.time)[1:-1] >= 0.97 * free_rate - 1e-3).all())
    found.claim(
        "grid", bool(np.isfinite(late)) and late >= 100 * fast and abs(at_14 - 0.44) < 0.01,
        method="Fokker–Planck grid 60 × 60, inputs x, y",
        numbers={
            "time to KL ≤ 1e-3, closed": fast, "open": late, "times sooner": late / fast,
            "KL of the open loop at t = 14": at_14,
        },
    )  # fmt: skip
    found.verdicts("dissipative", always, also=falls and always.recheck(), numbers={"seen on the grid as well": falls})
    found.verdicts("riccati", few, also=few.recheck(), numbers={"its rate is at least": few.rate or 0.0})
    return feedback, float(np.abs(closed.inputs[-1]).max())


def particles(options, found, feedback, command, ax):
    """The same controller on particles: when KL is at its sampling floor, and whether the law is the Gibbs measure."""
    gibbs = cg.Gibbs(WELLS, 0.2)
    known = cg.measure.log_partition(WELLS, 0.2)
    fresh = [cg.measure.kl(gibbs.sample(100 + k, PARTICLES), WELLS, 0.2, log_partition=known) for k in range(8)]
    level = float(np.mean([float(e.value) for e in fresh]) + 2 * np.std([float(e.value) for e in fresh]))
    plant = cg.Langevin(0.2, STEP)
    closed = cg.ClosedLoop(plant, feedback).simulate(START, 10.0, key=options.seed, record=101, particles=PARTICLES)
    free = cg.ClosedLoop(plant, WELLS).simulate(START, 400.0, key=options.seed, record=161, particles=PARTICLES)
    first = [
        float(r.time[np.flatnonzero(r.kl <= level)[0]]) if (r.kl <= level).any() else np.inf for r in (closed, free)
    ]
    print(f"double well, {PARTICLES} particles: KL of fresh exact samples is below {level:.4f} (mean + 2 sd)")
    print(f"  reached at t = {first[0]:.2f} closed, {first[1]:.0f} open: {first[1] / first[0]:.0f} x sooner")
    size = 1000 if options.quick else 2000
    distance = cg.measure.wasserstein2(closed.final[:size], gibbs.sample(7, size))
    floor = cg.measure.sampling_floor(gibbs, size)
    share = (closed.states[30:, :, 0] > 0).mean(axis=1)
    print(f"  W2 to exact samples at t = 10: {distance}, of two fresh ones {floor}; mass in the right well over time "
          f"{share.mean():.4f} ± {share.std():.4f}")  # fmt: skip
    for r, colour, label in ((free, cg.plot.BLACK, "open loop"), (closed, cg.plot.BLUE, "Riccati")):
        ax.plot(
            r.time[1:],
            np.where(r.kl[1:] > 0, r.kl[1:], np.nan),
            ".-",
            color=colour,
            markersize=3,
            linewidth=0.8,
            label=label,
        )
    ax.axhline(level, color=cg.plot.RED, linestyle="--", linewidth=0.9, label="fresh exact samples")
    ax.set(xscale="log", yscale="log", ylim=(1e-3, 10), xlabel="time", ylabel="KL [nats]")
    ax.set_title(f"{PARTICLES} particles")
    near = float(distance.value) <= float(floor.value) + 4 * float(floor.error)
    found.claim(
        "particles", bool(np.isfinite(first[1])) and first[1] >= 50 * first[0],
        method=f"{PARTICLES} particles, against fresh exact samples",
        numbers={"time to their KL, closed": first[0], "open": first[1], "times sooner": first[1] / first[0]},
    )  # fmt: skip
    found.claim(
        "invariant", near and abs(share.mean() - 0.5) < 0.01 and command < 1e-6,
        method="W₂ and the mass of a well, from particles; the command on the grid",
        numbers={
            "W₂ to exact samples at t = 10": distance, "of two exact samples": floor,
            "mass in the right well, over time": f"{share.mean():.4f} ± {share.std():.4f}",
            "last |u| on the grid": command,
        },
    )  # fmt: skip


def temperatures(options, found, ax):
    """How both grow with the barrier: Kramers' exponential against hardly at all."""
    scale = (0.3, 0.2, 0.14, 0.1) if options.quick else (0.4, 0.3, 0.2, 0.17, 0.14, 0.12, 0.1)
    rows = []
    for eps in scale:
        grid = cg.FokkerPlanckGrid([(-2.2, 2.2)] * 2, (60, 60), eps)
        start = cg.Gaussian([1.0, 0.0], 0.25 * eps * np.eye(2))
        _, closed, free = on_grid(WELLS, grid, start, ["x", "y"], 8.0)
        rows.append((arrival(closed), arrival(free)))
    closed, free = np.array(rows).T
    print(
        "barrier / ε: "
        + ", ".join(f"{1 / eps:.1f}: {b / a:.0f} x" for eps, a, b in zip(scale, closed, free, strict=True))
    )
    ax.semilogy(1 / np.array(scale), free, "o-", color=cg.plot.BLACK, label="open loop")
    ax.semilogy(1 / np.array(scale), closed, "s-", color=cg.plot.BLUE, label="Riccati")
    ax.set(xlabel="barrier / ε", ylabel="time to KL ≤ 1e-3", title="double well")
    found.claim(
        "barrier", bool(np.isfinite(rows).all() and (np.diff(free / closed) > 0).all() and (free / closed)[-1] > 1000),
        method="grids, one a temperature",
        numbers={f"barrier {1 / eps:.1f} ε: times sooner": b / a for eps, (a, b) in zip(scale, rows, strict=True)},
    )  # fmt: skip


def moons(options, found, axes):
    """A trained, non-convex energy: its own slow modes as control potentials."""
    energy = cg.load_energy("two_moons")
    grid = cg.FokkerPlanckGrid([(-6, 6)] * 2, (60, 60) if options.quick else (100, 100), 1.0)
    start = cg.Gaussian([2.0, 0.0], 0.05 * np.eye(2))
    feedback, closed, free = on_grid(energy, grid, start, None, 4.0)
    _, tilted, _ = on_grid(energy, grid, start, ["x1", "x2"], 40.0)
    fast, late, some = arrival(closed), arrival(free), arrival(tilted)
    print(
        f"two_moons (trained), grid: KL <= {LEVEL:g} at t = {fast:.2f} with {len(feedback.inputs)} eigenfunctions as "
        f"inputs, {some:.1f} with x1 and x2, {late:.1f} open: {late / fast:.0f} x and {late / some:.1f} x sooner"
    )
    n, kls = 2000 if options.quick else 10_000, []
    for controller in (feedback, energy):
        loop = cg.ClosedLoop(cg.Langevin(1.0, 0.005), controller)
        run = loop.simulate(start, 2.0, key=options.seed, record=2, particles=n)
        kls.append(cg.measure.kl(run.final, energy, 1.0, log_partition=cg.measure.log_partition(energy, 1.0)))
    print(f"  {n} particles at t = 2: KL {kls[0]} closed, {kls[1]} open")
    for r, colour, label in (
        (free, cg.plot.BLACK, "open loop"), (tilted, cg.plot.ORANGE, "inputs x1, x2"),
        (closed, cg.plot.BLUE, "eigenfunctions as inputs"),
    ):  # fmt: skip
        axes[0].plot(r.time[1:], r.kl[1:], color=colour, label=label)
    axes[0].set(xscale="log", yscale="log", ylim=(1e-5, 3e3), xlabel="time", ylabel="KL [nats]")
    axes[0].set_title("two_moons (trained), on a grid")
    mode = feedback.design.modes.values[0]
    shown = axes[1].pcolormesh(*grid.axes, np.where(grid.gibbs(energy) > 1e-9, mode, np.nan).T, cmap="cividis")
    axes[1].figure.colorbar(shown, ax=axes[1])
    axes[1].set(title="its slowest eigenfunction", xlabel="x1", ylabel="x2", xlim=(-4, 4), ylim=(-4, 4))
    near = float(kls[0].value) < 0.05 + 3 * float(kls[0].error) and float(kls[1].value) > 0.2
    found.claim(
        "trained", bool(np.isfinite(late)) and late >= 10 * fast and late > some and near,
        method="grid, and particles at t = 2",
        numbers={
            "time to KL ≤ 1e-3, eigenfunctions": fast, "x1 and x2 as inputs": some, "open": late,
            "times sooner": f"{late / fast:.0f}, {late / some:.1f}",
            "KL of particles at t = 2, closed and open": kls,
        },
    )  # fmt: skip


def analyse(options, found):
    warnings.simplefilter("error", RuntimeWarning)
    axes = cg.plot.figure(2, 3, (3.2, 2.5)).ravel()
    feedback, command = wells(found, axes[:2])
    particles(options, found, feedback, command, axes[2])
    temperatures(options, found, axes[3])
    moons(options, found, axes[4:])
    for ax in axes[[0, 2, 3, 4]]:
        ax.grid(True, alpha=0.25)
        ax.legend(loc="upper left" if ax is axes[3] else "upper right")
    found.figure(
        axes[0].figure,
        "KL to the Gibbs measure under feedback on the density and without it: a double well on a grid and with "
        "particles, its commands, the time to arrive by barrier height, and the trained two_moons energy.",
    )
    return "Feedback on slow modes reaches the Gibbs measure sooner by the factors below, and does not move it."


if __name__ == "__main__":
    sys.exit(cg.report.script(__file__, analyse))
