"""Question: is the sum of two energies the controller of the product density, and what does it inherit?

Four parts. (1) Constants and certificates of sums, each with the measured rate that it must not exceed. (2) Sums that
have no Gibbs measure, which must be refused with a direction in which they fall. (3) Trained energies composed: "and"
(a sum), "or" (a mixture), "given" (an observation). The exact answer is put together on a grid from the Gibbs measures
of the parts alone, and sampled there; particles of the composed closed loop are compared with it in KL and W₂, beside
what as many fresh exact samples score. (4) V falls along the composed loop on the grid, to the product.

Run: python analysis/composition.py --seed 0 [--quick] [--out figures]
"""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import ctrlgen as cg

HALF = 7.0  # of the box that holds all the densities
BIAS = 0.02  # nats, of nearest neighbours near a Gibbs measure


@dataclass(frozen=True)
class Composed:
    """A composed energy, the same Gibbs measure as weights on cells, and the loop that reaches it."""

    energy: cg.Energy
    masses: np.ndarray  # (cells, cells), from the parts alone
    start: cg.Gaussian
    duration: float


@dataclass(frozen=True)
class Found:
    """Particles of a composed loop, and how far they are from exact samples."""

    samples: np.ndarray
    w2: cg.Estimate
    floor: cg.Estimate
    held: bool


def certificates():
    """Sums of analytic, symbolic and trained energies: what they inherit, and the rate on a grid."""
    bump = cg.SymbolicEnergy("0.3*sin(2*x) + 0.2*cos(x - y)", ["x", "y"])
    bowl, tilted = cg.Quadratic(np.diag([1.0, 2.0])), cg.Quadratic([[2.0, 0.5], [0.5, 1.0]], [1.0, 0.0])
    near = cg.GaussianMixture([[-0.5, 0.0], [0.5, 0.0]], 1.0)
    moons, tanh = cg.load_energy("two_moons"), cg.MLPEnergy(2, width=16, depth=1, activation="tanh", key=3)
    cases = {
        "2 quadratics, one subtracted": (cg.compose([bowl, tilted], [1.0, -0.3]), "PROVED"),
        "quadratic + formula": (bowl + bump, "PROVED"),
        "mixture + ½ quadratic": (near + 0.5 * bowl, "PROVED"),
        "double well + quadratic": (cg.DoubleWell() + tilted, "PROVED"),
        "network + quadratic": (tanh + bowl, "PROVED"),
        "two_moons + stiff quadratic": (moons + cg.Quadratic(2000 * np.eye(2)), "PROVED"),
        "two_moons + network": (moons + tanh, "SAMPLED"),
    }
    print(f"{'sum, ε = 1':30s} {'∇²E':>22s}   dissipativity          verdict    certified   twice the grid's gap")
    good = True
    for name, (energy, expected) in cases.items():
        known = energy.properties
        verdict = cg.KLLyapunov(energy, 1.0).verify(cg.ClosedLoop(cg.Langevin(1.0, 1e-4), energy), measure=False)
        half = 0.2 if "stiff" in name else 6.0
        gap = -2 * float(cg.FokkerPlanckGrid([(-half, half)] * 2, (100, 100), 1.0).spectrum(energy, 1)[0])
        certified = verdict.rate
        status = verdict.status.name if certified is not None else "SAMPLED"  # the gap of the grid is what is known
        good &= status == expected and (certified is None or certified <= 1.01 * gap)
        good &= certified is None or verdict.recheck()
        hessian = f"[{_word(known.hessian_lower)}, {_word(known.hessian_upper)}]"
        pair = known.dissipativity
        inward = "none" if pair is None else f"{pair[0]:.3g}|x|² - {pair[1]:.3g}"
        print(f"{name:30s} {hessian:>22s}   {inward:22s} {status:10s} {_word(certified):>9s}   {gap:.4g}")
    print("\nThe premises and the rule of one of them:")
    loop = cg.ClosedLoop(cg.Langevin(1.0, 0.01), bowl + bump)
    print(cg.KLLyapunov(bowl + bump, 1.0).verify(loop))
    return bool(good)


def _word(value):
    return "none" if value is None else f"{value:.4g}"


def refusals():
    """Every composition here falls somewhere; does the refusal name a direction in which it does?"""
    bowl, moons = cg.Quadratic(np.diag([1.0, 2.0])), cg.load_energy("two_moons")
    cases = {
        "E1 - 2 E2": ([bowl, cg.Quadratic(np.eye(2))], [1.0, -2.0]),
        "trained - quadratic": ([moons, cg.Quadratic(np.eye(2))], [1.0, -1.0]),
        "quadratic - trained": ([cg.Quadratic(0.01 * np.eye(2)), moons], [1.0, -1.0]),
        "double well - 2 double wells": ([cg.DoubleWell(), cg.DoubleWell(barrier=2.0)], [1.0, -2.0]),
        "mixture - network": ([cg.GaussianMixture([[-1, 0], [1, 0]], 4.0), cg.MLPEnergy(2, confinement=1.0)], [1, -1]),
    }
    good = True
    print("\nRefused:")
    for name, (energies, weights) in cases.items():
        try:
            cg.compose(energies, weights)
        except ValueError as error:
            reason = str(error).partition("along the direction ")[2].partition(", so")[0]
        else:
            good, reason = False, "NOT REFUSED"
        sum_ = cg.compose(energies, weights, check=False)
        words = reason.strip("[").partition("]")[0].split()
        direction = np.array([float(w) for w in words]) if good else np.zeros(2)
        far = np.asarray(sum_(direction * np.array([[1e2], [1e3], [1e4]])))
        good &= bool((np.diff(far) < 0).all())
        print(f"{name:30s} along {reason}; E at 1e2, 1e3, 1e4 of it: {', '.join(f'{v:.3g}' for v in far)}")
    return bool(good)


def compositions(grid):
    """Trained energies composed, and the exact answers from the masses of the parts."""
    E = {name: cg.load_energy(name) for name in ("two_moons", "rings", "pinwheel")}
    parts = {name: np.asarray(grid.gibbs(energy)) for name, energy in E.items()}
    wide = cg.Gaussian([0.3, 0.0], 1.2**2 * np.eye(2))

    def product(*factors):
        out = np.prod([parts[name] ** weight for name, weight in factors], axis=0)
        return out / out.sum()

    x = grid.cells
    seen = parts["two_moons"] * np.exp(-0.5 * ((x @ [0.6, 0.8] - 0.3) / 0.4) ** 2)
    return {
        "two_moons and rings": Composed(
            E["two_moons"] + E["rings"], product(("two_moons", 1), ("rings", 1)), wide, 120.0
        ),
        "rings and ½ pinwheel": Composed(
            cg.compose([E["rings"], E["pinwheel"]], [1.0, 0.5]), product(("rings", 1), ("pinwheel", 0.5)), wide, 100.0
        ),
        "two_moons or rings": Composed(
            cg.mixture([E["two_moons"], E["rings"]], 1.0, [0.7, 0.3], normalised=True),
            0.7 * parts["two_moons"] + 0.3 * parts["rings"], wide, 60.0,
        ),
        "two_moons given 0.6x + 0.8y": Composed(
            cg.condition(E["two_moons"], [0.6, 0.8], 0.3, 0.4, temperature=1.0), seen / seen.sum(), wide, 60.0
        ),
    }  # fmt: skip


def exact_samples(grid, masses, n, rng):
    """Draws from cell masses, uniform inside a cell."""
    cell = rng.choice(masses.size, size=n, p=masses.ravel())
    low, high = np.array(grid.bounds).T
    return grid.cells.reshape(-1, 2)[cell] + (rng.random((n, 2)) - 0.5) * (high - low) / np.array(grid.shape)


def experiment(name, composed, grid, options):
    """The particles of the composed loop against exact samples."""
    clock, energy = time.perf_counter(), composed.energy
    off = float(np.abs(np.asarray(grid.gibbs(energy)) - composed.masses).sum())
    n, points = (2000, 1000) if options.quick else (10_000, 2000)
    duration = composed.duration / (2 if options.quick else 1)
    loop = cg.ClosedLoop(cg.Langevin(1.0, 0.04, scheme="mala"), energy, schedule=cg.Annealing(4.0, duration / 3))
    response = loop.simulate(composed.start, duration, key=options.seed, record=2, particles=n, throw=True)
    final = np.asarray(response.final, np.float64)
    V, rng = cg.KLLyapunov(energy, 1.0), np.random.default_rng(options.seed)
    kl = V.value(final)
    exact = exact_samples(grid, composed.masses, max(n, 8 * points), rng)
    two = cg.measure.kl_two_sample(final, exact)
    pairs = [slice(k * points, (k + 1) * points) for k in range(n // points)]
    distances = [float(cg.measure.wasserstein2(final[k], exact[k])) for k in pairs]
    w2 = cg.Estimate(float(np.mean(distances)), float(np.std(distances, ddof=1)) / np.sqrt(len(pairs)))
    floor = cg.measure.sampling_floor(exact, points, repeats=2 if options.quick else 6, key=options.seed)
    ratio = float(w2) / float(floor)
    width = ratio * np.hypot(float(w2.error) / float(w2), float(floor.error) / float(floor))
    limit = 1.5 if options.quick else 1.25  # fewer particles, half the time
    # the masses of "or" know log Z of each part in the box only, the energy that in the plane
    held = off < 2e-3 and float(kl) <= BIAS + 3 * float(kl.error) and ratio <= limit + 2 * width
    print(
        f"{name:28s} Gibbs masses off by {off:.0e}; KL to the exact density {kl} (from two samples {two}); "
        f"W₂ {w2}, fresh exact samples {floor}: ratio {ratio:.2f} ± {width:.2f}   [{time.perf_counter() - clock:.0f} s]"
    )
    return Found(final, w2, floor, bool(held))


def falls(composed, grid):
    """V along the composed loop on the grid: monotone, and to which value?"""
    response = cg.ClosedLoop(grid, composed.energy).simulate(composed.start, composed.duration, record=100)
    V = np.asarray(response.kl)
    rises = np.diff(V) > 1e-13 * V[:-1] + 1e-12
    return response.time, V, not rises.any()


def draw(results, composed, curves, path):
    """The energies with particles on them, V along the loops on the grid, and W₂ beside its floor."""
    axes = cg.plot.figure(2, 3, (4.2, 3.9)).ravel()
    for ax, (name, found) in zip(axes, results.items(), strict=False):
        cg.plot.energy(composed[name].energy, ax, bounds=[[-6, -6], [6, 6]], levels=_levels(composed[name]))
        cg.plot.particles(found.samples[:1500], ax)
        ax.set_title(name, fontsize=11)
    falling, distances = axes[-2:]
    colours = (cg.plot.BLUE, cg.plot.RED, cg.plot.GREEN, cg.plot.PURPLE)
    for (name, (t, V)), colour, style in zip(curves.items(), colours, ("-", "--", "-.", ":"), strict=True):
        falling.semilogy(t, np.maximum(V, 1e-12), style, color=colour, label=name)
    falling.set(xlabel="time", ylabel="V on the grid [nats]", ylim=(1e-6, None))
    falling.grid(True, alpha=0.25)
    falling.legend(frameon=False, fontsize="small")
    place = np.arange(len(results))[::-1]
    for shift, which, colour, mark, label in (
        (0.12, "w2", cg.plot.BLUE, "o", "particles against exact samples"),
        (-0.12, "floor", cg.plot.BLACK, "s", "exact against exact"),
    ):
        values = [getattr(found, which) for found in results.values()]
        mean, error = (np.array([float(getattr(v, part)) for v in values]) for part in ("value", "error"))
        distances.errorbar(mean, place + shift, xerr=2 * error, fmt=mark, markersize=4, color=colour, label=label)
    distances.set(xlabel="W₂, ± 2 standard errors", xlim=(0, None), ylim=(-0.6, len(results) - 0.1))
    distances.set_yticks(place, [name.replace(" given ", "\ngiven ").replace(" and ", "\nand ") for name in results])
    distances.legend(frameon=False, fontsize="small", loc="upper left")
    path.parent.mkdir(parents=True, exist_ok=True)
    axes[0].figure.savefig(path, dpi=130)


def _levels(composed):
    x = np.stack(np.meshgrid(*[np.linspace(-3.5, 3.5, 80)] * 2, indexing="ij"), -1).reshape(-1, 2)
    low = float(np.asarray(composed.energy(x)).min())
    return np.linspace(low, low + 10, 12)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("figures"))
    options = parser.parse_args()
    inherited, refused = certificates(), refusals()
    grid = cg.FokkerPlanckGrid([(-HALF, HALF)] * 2, (140, 140) if options.quick else (240, 240), 1.0)
    composed, results, curves, held = compositions(grid), {}, {}, []
    print("\nTrained energies composed, particles against the exact density:")
    for name, one in composed.items():
        results[name] = experiment(name, one, grid, options)
        t, V, monotone = falls(one, grid)
        curves[name] = t, V
        held.append(results[name].held and monotone)
    draw(results, composed, curves, options.out / "composition.png")
    good = inherited and refused and all(held)
    print(
        f"\nSums inherit their certificates: {inherited}; sums without Gibbs measure are refused: {refused}; "
        f"composed loops of trained energies reach the exact density, V falling: {sum(held)} of {len(held)}. "
        f"Holds: {good}"
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
