"""Question: is KL truly below δ where a stopping rule stops, and how much later than necessary does it stop?

The truth is the exact law, computed apart from the package: mode by mode for quadratic energies; otherwise the
transition kernel of the Euler scheme on a grid, and for loops in continuous time a chain of jumps between neighbours. A
rule is right where KL ≤ δ at its stop; its lateness there is (time at the stop) / (first time with KL ≤ δ) of that law.
Certified rules must always be right. SteinResidual certifies nothing, and must be right in 95 % of its stops on
energies whose barriers the loop crosses; deep wells show where it goes blind. FreeEnergyPlateau is the usual heuristic.

Run: python analysis/stopping_calibration.py --seed 0 [--quick] [--out figures]
"""

import math
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # thousands of small products: threads would wait more than work
import numpy as np
from scipy import sparse
from scipy.special import expit
from scipy.stats import binomtest, poisson

import ctrlgen as cg

CLAIMS = {
    "certified": "Wherever a certified rule stops (APriori, DissipationBelow, KLBelow), KL ≤ δ for the exact law.",
    "stein": "SteinResidual, which certifies nothing, was right in 95 % of its stops where barriers are crossed.",
    "blind": "From one of two wells 8 ε deep, SteinResidual and FreeEnergyPlateau stop while KL > δ; KLBelow does not.",
    "late": "In the median, rules that measure stop within twice the first time with KL ≤ δ; plans in advance do not.",
    "truth": "The laws that judge are right: KL to 1e-6 nats for Euler's scheme, to 1e-3 near δ in continuous time.",
}
DELTA, PARTICLES = 0.05, 4096
S = cg.stopping
KL, STEIN, PLATEAU = "KLBelow, particles", "SteinResidual", "FreeEnergyPlateau"
APRIORI = {"APriori, published": S.APriori(DELTA), "APriori, sharp": S.APriori(DELTA, bound="sharp")}
EXACT = {"DissipationBelow, exact": S.DissipationBelow(DELTA), "KLBelow, exact": S.KLBelow(DELTA)}
SAMPLED = {"DissipationBelow, particles": S.DissipationBelow(DELTA), KL: S.KLBelow(DELTA)}
STATISTICAL = {STEIN: S.SteinResidual(), PLATEAU: S.FreeEnergyPlateau()}
CERTIFIED = [*APRIORI, *EXACT, *SAMPLED]
RULES = [*CERTIFIED, *STATISTICAL]
WELL, DEEP = ((-3.0, 3.0),), 8


@dataclass(frozen=True, eq=False)
class Problem:
    """An energy at a temperature, a Gaussian start, step and duration of the particle runs, and a box for grids."""

    name: str
    energy: cg.Energy
    temperature: float
    start: cg.Gaussian
    step: float
    duration: float
    box: tuple = ()  # none for quadratic energies


class Stop(NamedTuple):
    """What came of one run; kl is None where the rule was not met."""

    problem: str
    rule: str
    kl: float | None = None
    late: float = math.nan


class Tally:
    """What came of all runs of a rule, or of several, or of those on one problem."""

    def __init__(self, stops, rules, problem=None):
        rules = (rules,) if isinstance(rules, str) else rules
        rows = [s for s in stops if s.rule in rules and problem in (None, s.problem)]
        kl = [s.kl for s in rows if s.kl is not None]
        self.late = np.array([s.late for s in rows if s.kl is not None and s.kl <= DELTA])
        self.runs, self.of, self.right = len(rows), len(kl), len(self.late)
        self.worst, self.typical = (max(kl), float(np.median(kl))) if kl else (math.nan, math.nan)  # KL at the stops

    def lateness(self, percent=50):
        """A percentile over the right stops; NaN where there is none."""
        return float(np.percentile(self.late, percent)) if self.right else math.nan

    @property
    def share(self):
        """How many stops are right, with the lower 95 % confidence bound of their share (Clopper and Pearson)."""
        sure = binomtest(self.right, max(1, self.of), alternative="greater").proportion_ci(0.95).low
        return f"{self.right} of {self.of}, 95 % sure of {sure:.1%}"

    def __str__(self):
        late = f", x{self.lateness():.2f}" if self.right else ""
        return f"{self.right}/{self.of} of {self.runs}{late}" if self.runs else "-"


def problems():
    """Those of which every rule is asked; the short version takes the first six."""

    def at(mean, variance):
        return cg.Gaussian(mean, variance * np.eye(len(mean)))

    sine = cg.SymbolicEnergy("0.4*sin(2*x)", ["x"])
    line, plane, ten = np.eye(1), np.eye(2), np.logspace(0, 1, 10)
    pair = cg.GaussianMixture([[-1.5], [1.5]], 1.0)
    return [
        Problem("quadratic, condition 1", cg.Quadratic(plane), 1.0, at([3, 1], 0.3), 0.1, 12),
        Problem("quadratic, condition 10", cg.Quadratic(np.diag([1.0, 10.0])), 1.0, at([3, 1], 0.3), 0.01, 12),
        Problem("quadratic, condition 100", cg.Quadratic(np.diag([0.1, 10.0])), 1.0, at([3, 1], 0.3), 0.02, 120),
        Problem("quadratic + sine", cg.Quadratic(line) + sine, 1.0, at([2.5], 0.3), 0.05, 15, ((-7.0, 7.0),)),
        Problem("double well, 1-D", cg.DoubleWell(1), 1.0, at([1], 0.05), 0.01, 12, WELL),
        Problem("double well, 2-D", cg.DoubleWell(2), 1.0, at([1, 1], 0.05), 0.02, 15, (*WELL, (-5.0, 5.0))),
        Problem("quadratic, 10-D", cg.Quadratic(np.diag(ten)), 0.5, at(np.ones(10), 0.2), 0.01, 12),
        Problem("two Gaussians", pair, 1.0, at([2.5], 0.3), 0.1, 30, ((-8.0, 8.0),)),
        Problem("ring", cg.Ring(1.5, 2.0), 1.0, at([1.5, 0], 0.05), 0.02, 25, ((-4.0, 4.0), (-4.0, 4.0))),
        Problem("banana", cg.Banana(1.0, 0.5), 1.0, at([1, 1], 0.1), 0.05, 15, ((-4.5, 4.5), (-5.0, 11.0))),
    ]


def random_quadratic(rng):
    """A rotated quadratic of up to ten dimensions and condition 30, at any temperature."""
    d, temperature = int(rng.integers(1, 11)), 10 ** rng.uniform(-1, 1)
    rates, basis = 10 ** rng.uniform(0, 1.5, d), np.linalg.qr(rng.normal(size=(d, d)))[0]
    energy = cg.Quadratic(np.tril(basis * rates @ basis.T) + np.tril(basis * rates @ basis.T, -1).T, rng.normal(size=d))
    start = cg.Gaussian(energy.mean + 3 * math.sqrt(temperature) * rng.normal(size=d), temperature * np.eye(d) / 3)
    return Problem("random quadratics", energy, temperature, start, 0.1 / rates.max(), 10 / rates.min())


# The truth --------------------------------------------------------------------------------------------------


class Modes:
    """The law under a quadratic energy from N(m, c I), mode by mode; step 0 is continuous time."""

    def __init__(self, problem, step):
        self.rates, basis = np.linalg.eigh(np.asarray(problem.energy.precision))
        self.variance, self.temperature, self.step = problem.start.covariance[0, 0], problem.temperature, step
        self.gap = basis.T @ (problem.start.mean - np.asarray(problem.energy.mean))
        self.rest = self.temperature / self.rates / (1 - step * self.rates / 2)  # the chain's stationary variance
        self.decay = self.rates if step == 0 else -np.log(abs(1 - step * self.rates)) / step

    def kl(self, time):
        fall = np.exp(-2 * np.multiply.outer(time, self.decay))
        ratio = (self.rest + (self.variance - self.rest) * fall) * self.rates / self.temperature
        push = self.gap**2 * fall * self.rates / self.temperature
        return 0.5 * np.sum(ratio - 1 - np.log(ratio) + push, axis=-1)

    def first(self, upto):
        """The first time with KL ≤ δ, to 1e-6 of `upto`; NaN where there is none."""
        low, high = 0.0, upto
        for _ in range(2):
            times = np.linspace(low, high, 2001)
            below = np.flatnonzero(self.kl(times) <= DELTA)
            if len(below) == 0:
                return math.nan
            low, high = times[max(below[0] - 1, 0)], times[below[0]]
        return high if self.step == 0 else math.ceil(high / self.step - 1e-9) * self.step


class Grid:
    """A law on a grid of points in one or two dimensions, and its KL at multiples of `unit` [time]."""

    def __init__(self, problem, unit, spacing):
        counts = [math.ceil((high - low) / spacing) + 1 for low, high in problem.box]
        self.axes = [np.linspace(*ends, count) for ends, count in zip(problem.box, counts, strict=True)]
        self.points = np.stack(np.meshgrid(*self.axes, indexing="ij"), -1).reshape(-1, len(counts))
        self.height = np.asarray(problem.energy(self.points)) / problem.temperature
        self.log_gibbs = -self.height - np.log(np.exp(-self.height).sum())
        self.law = np.exp(problem.start.log_density(self.points))
        self.law /= self.law.sum()
        self.unit, self.curve = unit, []

    def at(self, k):
        """KL after k units."""
        while len(self.curve) <= k:
            if self.curve:
                self.advance()
            held = self.law > 1e-300
            self.curve.append(float(self.law[held] @ (np.log(self.law[held]) - self.log_gibbs[held])))
        return self.curve[k]

    def kl(self, time):
        return self.at(int(time / self.unit + 1e-6))

    def first(self, upto):
        found = (k for k in range(int(upto / self.unit + 1e-6) + 1) if self.at(k) <= DELTA)
        return next(found, math.nan) * self.unit


class Kernel(Grid):
    """The law of the Euler scheme: moved by -h∇E and blurred by N(0, 2εh I).

    Sums over a grid whose spacing is a fraction of the blur are exact but for exp(-π²/fraction²), as all is smooth.
    With `stride` s, in one dimension, every s-th law is looked at.
    """

    def __init__(self, problem, step, stride=1, fraction=0.7):
        blur = math.sqrt(2 * problem.temperature * step)
        super().__init__(problem, step * stride, fraction * blur)
        moved = (self.points - step * np.asarray(problem.energy.gradient(self.points))).T
        push = [np.exp(-((a[:, None] - m) ** 2) / (2 * blur**2)) for a, m in zip(self.axes, moved, strict=True)]
        self.push = [p / np.maximum(p.sum(axis=0), 1e-300) for p in push]
        if stride > 1:
            self.push = [np.linalg.matrix_power(self.push[0], stride)]

    def advance(self):
        first, *second = self.push
        self.law = ((first * self.law) @ second[0].T).ravel() if second else first @ self.law


class Jumps(Grid):
    """The law in continuous time: jumps to neighbours at rates 2(ε/Δ²)/(1 + exp(ΔE/ε)), right to second order in Δ.

    A unit of time is a Poisson number of steps of one chain that jumps, or stays, at a common rate (uniformization).
    """

    def __init__(self, problem):
        dim = len(problem.box)
        super().__init__(problem, problem.duration / 1000, 0.03 if dim == 1 else 0.06)
        index = np.arange(len(self.points)).reshape([len(a) for a in self.axes])
        rates = sparse.csr_matrix((index.size, index.size))
        for axis, a in enumerate(self.axes):
            low, high = np.delete(index, -1, axis).ravel(), np.delete(index, 0, axis).ravel()
            rise = self.height[high] - self.height[low]
            pairs = np.concatenate([high, low]), np.concatenate([low, high])
            rate = 2 * problem.temperature / (a[1] - a[0]) ** 2 * expit(np.concatenate([-rise, rise]))
            rates += sparse.csr_matrix((rate, pairs), shape=rates.shape)
        leaving = np.asarray(rates.sum(axis=0)).ravel()
        most = leaving.max()
        self.chain = (rates / most + sparse.diags(1 - leaving / most)).tocsr()
        mean = most * self.unit
        self.share = poisson.pmf(np.arange(int(poisson.isf(1e-16, mean)) + 2), mean)

    def advance(self):
        moved, self.law = self.law, self.share[0] * self.law
        for share in self.share[1:]:
            moved = self.chain @ moved
            self.law += share * moved


@cache
def truth(problem, step, stride=1):
    """The law of the chain of that step; in continuous time where it is 0."""
    if not problem.box:
        return Modes(problem, step)
    return Jumps(problem) if step == 0 else Kernel(problem, step, stride)


def check_truth(rows):
    """Largest errors: kernels against closed forms and coarser kernels; their variance at rest; jumps where KL ≈ δ."""
    turned, start = cg.Quadratic([[1.5, 0.8], [0.8, 2.0]]), cg.Gaussian([1.0, 1.0], 0.3 * np.eye(2))
    known = Problem("", turned, 1.0, start, 0.1, 8, ((-6.0, 6.0), (-6.0, 6.0)))
    modes, kernel, jumps = Modes(known, 0.1), Kernel(known, 0.1), Jumps(known)
    off = [abs(kernel.at(k) - modes.kl(0.1 * k)) for k in range(200)]
    for p in rows:
        if p.box:
            coarse = Kernel(p, p.step, fraction=0.9)
            off += [abs(coarse.at(k) - truth(p, p.step).at(k)) for k in range(1, 60)]
    variance = np.linalg.eigvalsh((kernel.points * kernel.law[:, None]).T @ kernel.points)
    exact = Modes(known, 0).kl(jumps.unit * np.arange(350))
    jumped = [abs(jumps.at(k) - exact[k]) for k in np.flatnonzero(exact < 2 * DELTA)]
    return max(off), abs(variance / np.sort(1 / modes.rates / (1 - 0.1 * modes.rates / 2)) - 1).max(), max(jumped)


# The rules --------------------------------------------------------------------------------------------------


def judged(problem, rule, law, time):
    """A stop, held against the law."""
    return Stop(problem.name, rule, float(law.kl(time)), float(time / law.first(max(time, problem.duration))))


def plans(problem):
    """What the two theorems ask for, where they do not refuse."""
    moments = {"initial_mean": problem.start.mean, "initial_covariance": problem.start.covariance}
    for name, rule in APRIORI.items():
        with suppress(ValueError):
            yield name, rule.plan(problem.energy, problem.temperature, **moments)


def apriori(problem):
    """At the theorem's own step."""
    for name, plan in plans(problem):
        stride = 2 ** max(0, int(math.log2(plan.steps / 2000)))
        yield judged(problem, name, truth(problem, plan.step, stride), plan.duration)


def runs(problem, rules, plant, law, seed, record=2):
    """One run for each rule; nothing where it refuses."""
    loop, start = cg.ClosedLoop(plant, problem.energy), problem.start
    for name, rule in rules.items():
        try:
            response = loop.simulate(start, problem.duration, key=seed, record=record, stop=rule, particles=PARTICLES)
        except ValueError:
            continue
        met = response.status == "stopped"
        yield judged(problem, name, law, response.stopped_at) if met else Stop(problem.name, name)


def exact(problem):
    """On moments, or on a grid."""
    plant = cg.GaussianPlant(problem.temperature)
    if problem.box:
        shape = (200,) if problem.energy.dim == 1 else (80, 80)
        plant = cg.FokkerPlanckGrid(problem.box, shape, problem.temperature)
    yield from runs(problem, EXACT, plant, truth(problem, 0), 0, record=101)


def particles(problem, rules, seeds):
    """On particles, at the problem's step."""
    plant = cg.Langevin(problem.temperature, problem.step)
    for seed in seeds:
        yield from runs(problem, rules, plant, truth(problem, problem.step), seed)


def wells(barriers, seeds):
    """Double wells at ε = 1, from one of the wells; the barrier is the problem's name."""
    rules = {**STATISTICAL, KL: S.KLBelow(DELTA, interval=0.5)}
    for b in barriers:
        problem = Problem(b, cg.DoubleWell(1, b), 1.0, cg.Gaussian([1.0], [[0.04 / b]]), 0.0125 / b, 12, WELL)
        yield from particles(problem, rules, seeds)


def looseness(problem):
    """Of a quadratic: steps by the published theorem, by the sharp one and at best; both floors over the KL at rest."""
    published, sharp = (plan for _, plan in plans(problem))
    steps = np.geomspace(sharp.step, 1.9 / sharp.smoothness, 80)
    best = np.nanmin([Modes(problem, h).first(20 * problem.duration) / h for h in steps])
    floors = [plan.floor / Modes(problem, plan.step).kl(1e9) for plan in (published, sharp)]
    return (published.steps, sharp.steps, round(best)), floors


# The answer -------------------------------------------------------------------------------------------------


def tables(rows, stops, deep, loose):
    print(f"right/stops of runs, median lateness\n{'':26s}" + "".join(f"{rule:>29s}" for rule in RULES))
    for name in dict.fromkeys(p.name for p in rows):
        print(f"{name:26s}" + "".join(f"{Tally(stops, rule, name)!s:>29s}" for rule in RULES))
    print(f"\n{'':28s} {'right':>30s} {'lateness: median (5-95 %)':>26s} {'worst KL':>9s}")
    for rule in RULES:
        t = Tally(stops, rule)
        late = f"{t.lateness():.2f} ({t.lateness(5):.2f}-{t.lateness(95):.2f})"
        print(f"{rule:28s} {t.share:>30s} {late:>26s} {t.worst:9.4f}")
    print("\nfrom one of two wells: stops of runs, and the median of the true KL there")
    for rule in (*STATISTICAL, KL):
        found = [(b, Tally(deep, rule, b)) for b in dict.fromkeys(s.problem for s in deep)]
        cells = [f"{b:g} ε: {t.of}/{t.runs}" + (f" at {t.typical:.3f}" if t.of else "") for b, t in found]
        print(f"{rule:28s} " + ", ".join(cells))
    print("\nEuler steps needed: published, sharp, best | the theorems' floors over the true KL at rest")
    for name, ((published, sharp, best), floors) in loose.items():
        print(f"{name:26s} {published:>9d} {sharp:>8d} {best:>4d} | {floors[0]:.1e}, {floors[1]:.1e}")


def draw(stops, deep):
    """How late every rule stops, and what KL is where it stops in deep wells."""
    left, right = cg.plot.figure(1, 2, (3.7, 3.4), gridspec_kw={"width_ratios": [1.25, 1]})[0]
    p, tally = cg.plot, {rule: Tally(stops, rule) for rule in reversed(RULES)}
    colours = dict(zip(RULES, (p.BLUE, p.SKY, *2 * (p.GREEN, p.BLACK), p.ORANGE, p.RED), strict=True))
    for y, (rule, t) in enumerate(tally.items()):
        jitter = np.random.default_rng(0).uniform(-0.28, 0.28, t.right)
        left.plot(t.late, y + jitter, "o", markersize=3, alpha=0.35, markeredgewidth=0, color=colours[rule])
        left.plot(t.lateness(), y, "D", markersize=6, color=colours[rule], markeredgecolor="white")
    left.axvline(1, color="0.5", linewidth=1)
    left.set(xscale="log", xlim=(0.9, 14), xlabel="time at the stop / first time with KL ≤ δ")
    left.set_yticks(range(len(RULES)), [f"{rule}\n{t.right} of {t.of} right" for rule, t in tally.items()])
    left.set_xticks([1, 2, 3, 5, 10], ["1", "2", "3", "5", "10"])
    left.set_xticks([], minor=True)
    for rule, mark, shift in ((STEIN, "o", 0), (PLATEAU, "x", -0.12), (KL, "s", 0.12)):
        found = [(s.problem + shift, s.kl) for s in deep if s.rule == rule and s.kl is not None]
        right.plot(*np.array(found).reshape(-1, 2).T, mark, color=colours[rule], label=rule, fillstyle="none")
    for level, name in ((DELTA, "δ"), (math.log(2), "log 2: the other well is empty")):
        right.axhline(level, color="0.5", linewidth=1, linestyle="--")
        right.text(0.8, 1.1 * level, name)
    right.set(yscale="log", ylim=(None, 1.5), xlabel="barrier / ε", ylabel="true KL at the stop [nats]")
    right.legend(frameon=False, loc="lower right")
    for ax in (left, right):
        ax.grid(True, alpha=0.25)
    return left.figure


def answer(found, stops, deep, loose):
    """The claims about rules, and what they come to in a sentence."""
    every, tally = Tally([*stops, *deep], CERTIFIED), {rule: Tally(stops, rule) for rule in RULES}
    stein, law = tally[STEIN], "every stop against the exact law"
    found.claim("certified", every.right == every.of > 0, method=law, numbers={
        "all: right": every.share, **{f"{rule}: right": tally[rule].share for rule in CERTIFIED},
    })  # fmt: skip
    found.claim("stein", stein.right >= 0.95 * stein.of > 0, method=law, numbers={
        f"{rule}: right": tally[rule].share for rule in STATISTICAL
    })  # fmt: skip
    blind, kept = {rule: Tally(deep, rule, DEEP) for rule in STATISTICAL}, Tally(deep, KL, DEEP)
    wrong = min((s.problem for s in deep if s.rule == STEIN and s.kl is not None and s.kl > DELTA), default="no")
    found.claim("blind", all(t.of > t.right == 0 for t in blind.values()) and kept.of == 0, method=law, numbers={
        **{f"{rule}: right": f"{t.right} of {t.of}; KL {t.typical:.3f}" for rule, t in blind.items()},
        f"{KL}: stops": f"{kept.of} of {kept.runs} runs", f"{STEIN}: wrong from": f"{wrong} ε on",
    })  # fmt: skip
    late = {rule: t.lateness() for rule, t in tally.items()}
    slowest, planned = np.max([late[rule] for rule in (*EXACT, *SAMPLED)]), np.min([late[rule] for rule in APRIORI])
    gains = np.array([[steps[0] / steps[1], steps[1] / steps[2]] for steps, _ in loose.values()])
    found.claim("late", slowest <= 2 < planned, method="medians over problems and seeds", numbers={
        **{f"{rule}: time / first time": f"{value:.2f}" for rule, value in late.items()},
        "steps, published / sharp bound": f"{gains[:, 0].min():.0f} to {gains[:, 0].max():.0f}",
        "steps, sharp bound / best step": f"{gains[:, 1].min():.0f} to {gains[:, 1].max():.0f}",
    })  # fmt: skip
    return (
        f"KL ≤ {DELTA:g} in {every.right} of {every.of} stops of certified rules, in {stein.right} of {stein.of} of "
        f"SteinResidual, which deep wells fool; median lateness x{planned:.1f} planned, x{late[KL]:.2f} on particles, "
        f"x{late['KLBelow, exact']:.2f} on the exact law."
    )


def analyse(options, found):
    many, few, count, barriers = (1, 1, 8, (1, 3, DEEP)) if options.quick else (20, 4, 50, (1, 2, 3, 4, 6, DEEP))
    seeds = range(options.seed, options.seed + many)
    own, stops = problems()[: 6 if options.quick else None], []
    rng = np.random.default_rng(options.seed)
    rows = [*own, *(random_quadratic(rng) for _ in range(count))]
    for p in rows:
        stops += [*apriori(p), *exact(p)]
    for p in own:
        stops += particles(p, STATISTICAL, seeds)
        if p.energy.dim <= 2:  # more dimensions, and for the dissipation shorter steps, ask for more particles
            stops += particles(p, SAMPLED if p.step >= 0.05 else {KL: SAMPLED[KL]}, seeds[:few])
    deep = list(wells(barriers, seeds[:few]))
    loose = {p.name: looseness(p) for p in own if not p.box}
    tables(rows, stops, deep, loose)
    off, variance, jumped = check_truth(own)
    print(f"\ntruth: KL to {off:.0e} (Euler) and {jumped:.0e} (continuous time), variance at rest to {variance:.0e}")
    found.claim(
        "truth", max(off, variance) < 1e-6 and jumped < 1e-3, method="closed forms, and grids against coarser ones",
        numbers={"Euler: KL off by": off, "Euler: variance off by": variance, "continuous time: KL off by": jumped},
    )  # fmt: skip
    found.figure(
        draw(stops, deep), f"Left: how late each rule stops (diamonds: medians; δ = {DELTA:g} nats). Right: the "
        "true KL where rules stop in double wells, all particles having started in one of the two.",
    )  # fmt: skip
    return answer(found, stops, deep, loose)


if __name__ == "__main__":
    sys.exit(cg.report.script(__file__, analyse))
