"""Question: is the sum of two energies the controller of the product density, and what does it inherit?

Four parts. (1) Constants and certificates of sums, each with the measured rate that it must not exceed. (2) Sums that
have no Gibbs measure, which must be refused with a direction in which they fall. (3) Trained energies composed: "and"
(a sum), "or" (a mixture), "given" (an observation). The exact answer is put together on a grid from the Gibbs measures
of the parts alone, and sampled there; particles of the composed closed loop are compared with it in KL and W₂, beside
what as many fresh exact samples score. (4) V falls along the composed loop on the grid, to the product.

Run: python analysis/composition.py --seed 0 [--quick] [--out figures]
"""

import sys
import time
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

import ctrlgen as cg

CLAIMS = {
    "inherited": "Along the loops of six sums of energies, analytic and trained, V(t) ≤ e^{-rt} V(0), with a rate "
    "r > 0 that follows from the constants of their parts.",
    "gap": "No such rate is above twice the spectral gap of the sum's generator on a grid, and where the constants of "
    "the parts give none, none is claimed.",
    "refused": "Five combinations that have no Gibbs measure are refused, each with a direction along which it falls.",
    "product": "The Gibbs measure of composed trained energies is the product, mixture or posterior of those of the "
    "parts, and V falls to it along the loop: at every record, to less than a thousandth.",
    "reached": "Particles of the composed loops reach that density: KL is at most 0.02 nats, and W₂ to exact samples "
    "at most 1.25 times that of exact to exact samples, within their errors.",
}
HALF = 7.0  # of the box that holds all the densities
SAME = 1e-6  # the largest sum of |differences| of masses that are the same but for rounding
LIMIT_KL, LIMIT_RATIO = 0.02, 1.25


@dataclass(frozen=True)
class Composed:
    """A composed energy, the same Gibbs measure as weights on cells, and the loop that reaches it."""

    energy: cg.Energy
    masses: np.ndarray  # (cells, cells), from the parts alone
    start: cg.Gaussian
    duration: float

    def heights(self, grid):
        """E at the cells, (cells²,)."""
        return np.asarray(self.energy(grid.cells.reshape(-1, 2)))


@dataclass(frozen=True)
class Reached:
    """Particles of a composed loop, their KL, and their W₂ to exact samples beside that of exact to exact samples."""

    samples: np.ndarray
    kl: cg.Estimate
    w2: cg.Estimate
    floor: cg.Estimate

    @property
    def ratio(self):
        """w2 / floor."""
        relative = np.hypot(float(self.w2.error) / float(self.w2), float(self.floor.error) / float(self.floor))
        return cg.Estimate(float(self.w2) / float(self.floor), float(self.w2) / float(self.floor) * relative)

    @property
    def good(self):
        """Neither limit is exceeded by more than its errors."""
        near = float(self.kl) <= LIMIT_KL + 3 * float(self.kl.error)
        return near and float(self.ratio) <= LIMIT_RATIO + 2 * float(self.ratio.error)


def sums():
    """Sums of analytic, symbolic and trained energies, and whether the constants of the parts give a rate."""
    bump = cg.SymbolicEnergy("0.3*sin(2*x) + 0.2*cos(x - y)", ["x", "y"])
    bowl, tilted = cg.Quadratic(np.diag([1.0, 2.0])), cg.Quadratic([[2.0, 0.5], [0.5, 1.0]], [1.0, 0.0])
    near = cg.GaussianMixture([[-0.5, 0.0], [0.5, 0.0]], 1.0)
    moons, tanh = cg.load_energy("two_moons"), cg.MLPEnergy(2, width=16, depth=1, activation="tanh", key=3)
    return {
        "2 quadratics, one subtracted": (cg.compose([bowl, tilted], [1.0, -0.3]), True),
        "quadratic + formula": (bowl + bump, True),
        "mixture + ½ quadratic": (near + 0.5 * bowl, True),
        "double well + quadratic": (cg.DoubleWell() + tilted, True),
        "network + quadratic": (tanh + bowl, True),
        "two_moons + stiff quadratic": (moons + cg.Quadratic(2000 * np.eye(2)), True),
        "two_moons + network": (moons + tanh, False),
    }


def certificates(found):
    """What the sums inherit, and the rate on a grid."""
    print(f"{'sum, ε = 1':30s} {'∇²E':>22s}   dissipativity          verdict    certified   twice the grid's gap")
    verdicts, shares, silent = {}, {}, []
    for name, (energy, rated) in sums().items():
        known = energy.properties
        verdict = cg.KLLyapunov(energy, 1.0).verify(cg.ClosedLoop(cg.Langevin(1.0, 1e-4), energy), measure=False)
        half = 0.2 if "stiff" in name else 6.0
        gap = -2 * float(cg.FokkerPlanckGrid([(-half, half)] * 2, (100, 100), 1.0).spectrum(energy, 1)[0])
        if rated:
            verdicts[name] = verdict
            shares[name] = np.nan if verdict.rate is None else verdict.rate / gap
        else:
            silent.append(verdict.rate is None)
        hessian = f"[{_word(known.hessian_lower)}, {_word(known.hessian_upper)}]"
        pair = known.dissipativity
        inward = "none" if pair is None else f"{pair[0]:.3g}|x|² - {pair[1]:.3g}"
        status = "no rate" if verdict.rate is None else verdict.status.name
        print(f"{name:30s} {hessian:>22s}   {inward:22s} {status:10s} {_word(verdict.rate):>9s}   {gap:.4g}")
    print(f"\nThe premises and the rule of one of them:\n{verdicts['quadratic + formula']}")
    found.verdicts(
        "inherited", list(verdicts.values()), also=all(v.recheck() for v in verdicts.values()),
        numbers={f"{name}: rate of V": _word(v.rate) for name, v in verdicts.items()},
    )  # fmt: skip
    found.claim(
        "gap", all(share <= 1.01 for share in shares.values()) and all(silent), method="spectra on grids of 100 × 100",
        numbers={
            **{f"{name}: rate / (2 gap)": share for name, share in shares.items()},
            "two_moons + network": "no rate is claimed" if all(silent) else "a rate is claimed",
        },
    )  # fmt: skip


def _word(value):
    return "none" if value is None else f"{value:.4g}"


def falling():
    """Combinations without Gibbs measure: energies and their weights."""
    bowl, moons = cg.Quadratic(np.diag([1.0, 2.0])), cg.load_energy("two_moons")
    return {
        "E₁ - 2 E₂": ([bowl, cg.Quadratic(np.eye(2))], [1.0, -2.0]),
        "trained - quadratic": ([moons, cg.Quadratic(np.eye(2))], [1.0, -1.0]),
        "quadratic - trained": ([cg.Quadratic(0.01 * np.eye(2)), moons], [1.0, -1.0]),
        "double well - 2 double wells": ([cg.DoubleWell(), cg.DoubleWell(barrier=2.0)], [1.0, -2.0]),
        "mixture - network": ([cg.GaussianMixture([[-1, 0], [1, 0]], 4.0), cg.MLPEnergy(2, confinement=1.0)], [1, -1]),
    }


def refusal(energies, weights):
    """The reason of the refusal, "[direction] E falls like ..."; None where there is no refusal."""
    try:
        cg.compose(energies, weights)
    except ValueError as error:
        return str(error).partition("along the direction ")[2].partition(", so")[0]
    return None


def refusals(found):
    """Every combination here falls somewhere; does the refusal name a direction in which it does?"""
    print("\nRefused:")
    numbers, right = {}, []
    for name, (energies, weights) in falling().items():
        reason = refusal(energies, weights)
        if reason is None:
            right.append(False)
            numbers[name] = "not refused"
            continue
        direction = np.array(reason.strip("[").partition("]")[0].split(), dtype=float)
        far = np.asarray(cg.compose(energies, weights, check=False)(direction * np.array([[1e2], [1e3], [1e4]])))
        right.append(bool((np.diff(far) < 0).all() and far[0] < 0))
        print(f"{name:30s} along {reason}; E at 1e2, 1e3, 1e4 of it: {', '.join(f'{v:.3g}' for v in far)}")
        numbers[f"{name}: E at 100, 1000 and 10 000 times ({', '.join(f'{v:.3g}' for v in direction)})"] = far
    found.claim("refused", all(right), method="the energies along the directions named", numbers=numbers)


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
    n, points = (2000, 500) if options.quick else (10_000, 2000)
    duration = composed.duration / (2 if options.quick else 1)
    loop = cg.ClosedLoop(cg.Langevin(1.0, 0.04, scheme="mala"), energy, schedule=cg.Annealing(4.0, duration / 3))
    response = loop.simulate(composed.start, duration, key=options.seed, record=2, particles=n, throw=True)
    final = np.asarray(response.final, np.float64)
    kl = cg.measure.kl(final, energy, 1.0, log_partition=logsumexp(-composed.heights(grid)) + np.log(grid.volume))
    exact = exact_samples(grid, composed.masses, max(n, 8 * points), np.random.default_rng(options.seed))
    two = cg.measure.kl_two_sample(final, exact)
    pairs = [slice(k * points, (k + 1) * points) for k in range(n // points)]
    distances = [float(cg.measure.wasserstein2(final[k], exact[k])) for k in pairs]
    w2 = cg.Estimate(float(np.mean(distances)), float(np.std(distances, ddof=1)) / np.sqrt(len(pairs)))
    floor = cg.measure.sampling_floor(exact, points, repeats=4 if options.quick else 6, key=options.seed)
    reached = Reached(final, kl, w2, floor)
    print(
        f"{name:28s} KL to the exact density {kl} (from two samples {two}); W₂ {w2}, fresh exact samples {floor}: "
        f"ratio {reached.ratio:.2f}   [{time.perf_counter() - clock:.0f} s]"
    )
    return reached


def falls(composed, grid):
    """Times and V along the composed loop on the grid."""
    response = cg.ClosedLoop(grid, composed.energy).simulate(composed.start, composed.duration, record=100)
    return response.time, np.asarray(response.kl)


def monotone(V):
    """Does V fall at every record, but for rounding?"""
    return bool((np.diff(V) <= 1e-13 * V[:-1] + 1e-12).all())


def trained(found, grid, options):
    """Trained energies composed: on the grid against the parts, and their particles against exact samples."""
    composed = compositions(grid)
    curves = {name: falls(one, grid) for name, one in composed.items()}
    off = {name: float(np.abs(grid.gibbs(one.energy) - one.masses).sum()) for name, one in composed.items()}
    share = {name: float(V[-1] / V[0]) for name, (_, V) in curves.items()}
    found.claim(
        "product",
        max(off.values()) < SAME and all(monotone(V) for _, V in curves.values()) and max(share.values()) < 1e-3,
        method=f"grid of {' × '.join(map(str, grid.shape))} cells",
        numbers={
            **{f"{name}: sum of |differences of masses|": value for name, value in off.items()},
            **{f"{name}: V at the end / V at the start": value for name, value in share.items()},
        },
    )  # fmt: skip
    print("\nTrained energies composed, particles against the exact density:")
    results = {name: experiment(name, one, grid, options) for name, one in composed.items()}
    found.claim(
        "reached", all(r.good for r in results.values()),
        method="particles; fails where exceeded by 3 standard errors (KL) or 2 (W₂)",
        numbers={
            **{f"{name}: KL [nats]": r.kl for name, r in results.items()},
            **{f"{name}: W₂ / that of exact samples": r.ratio for name, r in results.items()},
        },
    )  # fmt: skip
    return composed, curves, results


def landscapes(grid, composed, results):
    """The composed energies with particles on them."""
    axes = cg.plot.figure(2, 2, (3.5, 3.3))
    for ax, (name, reached) in zip(axes.ravel(), results.items(), strict=True):
        levels = composed[name].heights(grid).min() + np.linspace(0, 10, 12)
        cg.plot.energy(composed[name].energy, ax, bounds=[[-HALF] * 2, [HALF] * 2], levels=levels)
        cg.plot.particles(reached.samples[:1500], ax)
        ax.set_title(name)
    return axes[0, 0].figure


def distances(curves, results):
    """V along the loops on the grid, and W₂ beside its floor."""
    left, right = cg.plot.figure(1, 2, (3.7, 3.1))[0]
    colours = (cg.plot.BLUE, cg.plot.RED, cg.plot.GREEN, cg.plot.BLACK)
    for (name, (t, V)), colour, style in zip(curves.items(), colours, ("-", "--", "-.", ":"), strict=True):
        left.semilogy(t, np.maximum(V, 1e-12), style, color=colour, label=name)
    left.set(xlabel="time", ylabel="V on the grid [nats]", ylim=(1e-6, 300))
    left.grid(True, alpha=0.25)
    left.legend(frameon=False, loc="upper right")
    place = np.arange(len(results))[::-1]
    for shift, which, colour, mark, label in (
        (0.12, "w2", cg.plot.BLUE, "o", "particles to exact samples"),
        (-0.12, "floor", cg.plot.BLACK, "s", "exact to exact samples"),
    ):
        values = [getattr(reached, which) for reached in results.values()]
        mean, error = (np.array([float(getattr(v, part)) for v in values]) for part in ("value", "error"))
        right.errorbar(mean, place + shift, xerr=2 * error, fmt=mark, color=colour, label=label)
    right.set(xlabel="W₂, ± 2 standard errors", xlim=(0, None), ylim=(-0.6, len(results) + 0.2))
    right.set_yticks(place, [name.replace(" given ", "\ngiven ").replace(" and ", "\nand ").replace(" or ", "\nor ")
                             for name in results])  # fmt: skip
    right.grid(True, axis="x", alpha=0.25)
    right.legend(frameon=False, loc="upper left")
    return left.figure


def analyse(options, found):
    certificates(found)
    refusals(found)
    grid = cg.FokkerPlanckGrid([(-HALF, HALF)] * 2, (140, 140) if options.quick else (240, 240), 1.0)
    composed, curves, results = trained(found, grid, options)
    found.figure(
        landscapes(grid, composed, results),
        'Trained energies composed, "and" (above left, above right), "or" and "given" (below), with particles of '
        "their closed loops.",
    )
    found.figure(
        distances(curves, results),
        "Left: V along the composed loops on the grid. Right: W₂ of the particles to exact samples, beside that of "
        "as many exact samples.",
        suffix="_distances",
    )
    ratios = ", ".join(f"{name} {reached.ratio:.2f}" for name, reached in results.items())
    return (
        "Yes: sums inherit rates from their parts, and their loops reach the composed density; W₂ over that of exact "
        f"samples: {ratios}."
    )


if __name__ == "__main__":
    sys.exit(cg.report.script(__file__, analyse))
