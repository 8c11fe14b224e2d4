"""Question: what is proved, sampled and refuted of the energies that come with the package?

For every shipped energy: that its Gibbs measure exists and that KL is a Lyapunov functional of its loop (steps of one
verdict), the rate at which KL falls (of the slowest mode on a grid), whether any constant metric makes its loop
contract everywhere, and whether the flow without noise keeps its Gibbs measure. The picture has samples of each.

Run: python analysis/shipped_models.py --seed 0 [--quick] [--out figures]
"""

import sys

import numpy as np

import ctrlgen as cg

CLAIMS = {
    "exists": "Every shipped energy has a Gibbs measure.",
    "decay": "Along the Langevin loop of every shipped energy at its temperature V̇ = -εI ≤ 0, in continuous time.",
    "rate": "In the end V of the planar ones falls at twice a gap measured to a tenth, but for the checkerboard.",
    "contraction": "In no constant metric does the loop of a planar one contract on all of the box of its data.",
    "flow": "The gradient flow ẋ = -∇E of no shipped energy keeps its Gibbs measure: it has no Lyapunov certificate.",
}
PROVED, REFUTED = cg.Status.PROVED, cg.Status.REFUTED
COARSE = "checkerboard"  # its walls are narrower than the cells of the grid that measures the gap


def judged(name, quick):
    """What is known of one energy: {column: (status, what to print)}; the first two are steps of one verdict.

    In 64 dimensions the last takes a minute, and is left out of the quick version.
    """
    energy = cg.load_energy(name)
    V = cg.KLLyapunov(energy, energy.temperature, log_partition=None if energy.dim == 2 else 0.0)
    loop = cg.ClosedLoop(cg.Langevin(energy.temperature, energy.step), energy)
    decay = V.verify(loop, measure=energy.dim == 2)
    exists, identity = (known(decay, words) for words in ("the Gibbs measure exists", "V̇ = -ε∫"))
    flow = cg.no_certificate(energy, None, energy.temperature)
    row = {
        "ρ* exists": (exists, ""),
        "V̇ = -εI": (identity if exists is PROVED else cg.Status.UNDECIDED, ""),
        "rate of V": (decay.status, "" if decay.measured is None else f"{decay.measured:.3g}"),
        "gradient flow keeps ρ*": (REFUTED if flow.status is PROVED and flow.recheck() else flow.status, ""),
    }
    if energy.dim == 2 or not quick:
        center, scale = np.asarray(energy.center), np.asarray(energy.scale) * np.ones(energy.dim)
        structure = "full" if energy.dim == 2 else "diagonal"
        metric = cg.optimal_metric(energy, cg.Box(center - 2 * scale, center + 2 * scale), structure=structure)
        row["contracts"] = metric.status if metric.recheck() else cg.Status.UNDECIDED, ""
    return energy, decay, row


def known(verdict, words):
    """The status of the one step that says so, checked again."""
    (step,) = (s for s in verdict.steps if s.claim.text.startswith(words))
    return step.outcome.status if step.recheck() else cg.Status.UNDECIDED


def draw(axes, energies, seed):
    for ax, energy in zip(axes, energies, strict=True):
        samples = cg.generate(energy, 1500 if energy.dim == 2 else 25, key=seed)
        if energy.dim == 2:
            cg.plot.energy(energy, ax)
            cg.plot.particles(samples, ax)
        else:
            tiles = np.pad(
                np.asarray(samples).reshape(5, 5, 8, 8), ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=0.4
            )
            ax.imshow(tiles.transpose(0, 2, 1, 3).reshape(45, 45), cmap="gray_r", vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
        ax.set_title(energy.name.replace("_", " "))


def analyse(options, found):
    names = [model.name for model in cg.list_models()]
    rows, energies, decays = {}, [], []
    for name in names:
        energy, decay, rows[name] = judged(name, options.quick)
        energies.append(energy)
        decays.append(decay)
        print(
            f"{name:18s}" + "; ".join(f"{k}: {s.name} {text}".rstrip() for k, (s, text) in rows[name].items()),
            flush=True,
        )
    plane = [name for name, energy in zip(names, energies, strict=True) if energy.dim == 2]

    def answer(key, column, expected, method, which=names):
        holds = all(rows[name][column][0] is expected for name in which)
        status = PROVED if holds else cg.Status.UNDECIDED
        found.claim(
            key, holds, status=status, method=method, numbers={"energies": ", ".join(which)},
            assumptions=tuple(dict.fromkeys(a for d in decays for a in d.assumptions)) if key == "decay" else (),
        )  # fmt: skip

    answer("exists", "ρ* exists", PROVED, "dissipativity, from the layers of the networks in interval arithmetic")
    answer("decay", "V̇ = -εI", PROVED, "symbolic: the Fokker–Planck equation by parts")
    rates = {name: d.measured for name, d in zip(names, decays, strict=True) if name in plane}
    sure = all(r is not None and r.value > 10 * r.error for name, r in rates.items() if name != COARSE)
    found.claim(
        "rate", bool(sure) and all(rows[name]["rate of V"][0] is cg.Status.SAMPLED for name in plane),
        method="twice the gap of a grid, with the change on a coarser one as its error; no useful rate is proved",
        numbers={f"{name}: rate of V": r for name, r in rates.items()},
    )  # fmt: skip
    tried = [name for name in names if "contracts" in rows[name]]
    answer("contraction", "contracts", REFUTED, "a point of negative curvature, in interval arithmetic", tried)
    answer("flow", "gradient flow keeps ρ*", REFUTED, "a point with ΔE ≠ |∇E|²/ε, in interval arithmetic")
    axes = cg.plot.figure(2, 3, (2.6, 2.6)).ravel()
    draw(axes, energies, options.seed)
    found.figure(axes[0].figure, "Samples of every shipped energy, generated by its own closed loop from noise.")
    return "Existence and V̇ = -εI are proved; rates are sampled; contraction everywhere and the flow are refuted."


if __name__ == "__main__":
    sys.exit(cg.report.script(__file__, analyse))
