"""Question: what does it cost to control the density, and is it cheaper after training by Energy Matching?

Two efforts are measured along closed loops. That of the controller block, ∫|∇E(X_t)|² dt of every particle, is twice
the kinetic path energy of a sample (Li et al., A Kinetic Energy Perspective of Flow Matching, arXiv:2602.07928). That
of the density, ∫∫|u_tot|²ρ dt with u_tot = -∇(E + ε log ρ), is what the transport itself takes; without noise the two
are the same in the mean. Identities and a lower bound of them are checked on Gaussians, grids and trained energies.

Then networks of one size are trained on one data set by Energy Matching and by persistent contrastive divergence, with
as many updates and at one temperature (Energy Matching's take about twice the time), and their own closed loops run
from one source for one time; "after as many updates" in a claim means this, of every seed. The shipped model,
trained longer and by maximum likelihood, is brought to that temperature and shown beside them. All is in units of the
data's standard deviations. Efforts are given in units of ε, in which they do not depend on the units of energy and
time.

Run: python analysis/control_effort.py --seed 0 [--quick] [--out figures]
"""

import sys
import time
import warnings
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import numpy as np
from scipy.integrate import simpson
from scipy.linalg import sqrtm
from scipy.stats import binned_statistic, spearmanr

import ctrlgen as cg

CLAIMS = {
    "flow": "Without noise a particle's control effort ∫|∇E|² dt is E(X_0) - E(X_T), path by path, of networks too.",
    "balance": "With noise the mean control effort is E(X_0) - E(X_T) plus ε∫E[ΔE] dt, what holding a density against "
    "the noise costs.",
    "density": "The effort of the density, ∫∫|u_tot|²ρ dt with u_tot = -∇(E + ε log ρ), is ε times the fall of KL.",
    "bound": "The effort of the density is at least W₂²/T (Benamou and Brenier), and meets that over short times.",
    "cheaper": "After as many updates, loops trained by Energy Matching spend at most two thirds of the control effort "
    "a sample of loops trained by contrastive divergence.",
    "straight": "Without noise the flow of an energy trained by Energy Matching is nearly optimal transport between "
    "its two ends; after as many updates of contrastive divergence it is further from that.",
    "price": "After as many updates, the Gibbs measure is further from the data by Energy Matching than by contrastive "
    "divergence.",
    "sparse": "Under the flow of Energy Matching the effort on a sample and the density of the data where it ends are "
    "correlated negatively in their ranks, and weakly.",
}
EPS, DURATION, STEP = 0.15, 2.0, 0.01  # Energy Matching's own temperature and time; the step of all loops
FLOW, FINE = 1.0, 0.01  # how long noise-free flows run, the time of Energy Matching's paths, and between records
SOURCE = cg.Gaussian([0.0, 0.0], 1.0)
TELESCOPED = 1e-2  # of the mean effort: the trapezoid over records FINE apart, and float32 states
EULER = 0.05  # relative bias of the mean effort, step · curvature / 2 with a curvature up to 10
DISCRETE = 0.05  # relative error of differences on the cells, of energies as narrow as three cells
EXACT = 1e-6  # of Simpson's rule over closed forms
MET = 0.01  # how closely the bound is met in the Gaussian loop at its shortest time
CONVERGED = (3.0, 5.0)  # factor by which an error of second order falls when cells are halved
SHARE = 2 / 3  # of the effort, in "cheaper": a third saved is worth having
WEAK = 0.5  # rank correlation below which one explains less than a quarter of the other
OPTIMAL = 1.25  # mean effort over W₂² that counts as nearly optimal: paths that are an eighth too long or uneven
METHODS = {  # name -> colour, line style
    "Energy Matching": (cg.plot.BLUE, "-"),
    "contrastive divergence": (cg.plot.RED, "--"),
    "shipped model": (cg.plot.BLACK, ":"),
}
EM, CD, SHIPPED = METHODS


# The identities and the bound --------------------------------------------------------------------------------------


def density_effort(response, energy):
    """∫ |u_tot|²ρ over the cells of a grid at every record [length² / time²], by differences of E + ε log ρ."""
    grid = response.plant
    height = np.asarray(energy(grid.cells.reshape(-1, 2))).reshape(grid.shape)
    rates = []
    for masses in map(np.asarray, response.snapshots):
        slopes = np.gradient(height + grid.temperature * np.log(np.maximum(masses, 1e-300)), *grid.spacing)
        rates.append(float((masses * sum(s**2 for s in slopes)).sum()))
    return np.array(rates)


def on_grids(options):
    """Cell sizes, and the relative difference between the effort and ε(V(0) - V(T)), of a double well."""
    energy, temperature, start = cg.DoubleWell(2), 0.5, cg.Gaussian([1.1, -0.8], 0.15)
    sizes, errors = [], []
    for side in (40, 80) if options.quick else (40, 80, 160):
        grid = cg.FokkerPlanckGrid([(-3.0, 3.0)] * 2, (side, side), temperature)
        response = cg.ClosedLoop(grid, energy).simulate(start, 1.0, record=201)
        effort = float(simpson(density_effort(response, energy), x=response.time))
        sizes.append(grid.spacing[0])
        errors.append(abs(effort / (temperature * (response.kl[0] - response.kl[-1])) - 1))
    return np.array(sizes), np.array(errors)


def gaussian():
    """Times, effort of the density, ε(V(0) - V(t)) and W₂²/t along a Gaussian loop: all in closed form but a Simpson
    sum over 2001 times."""
    energy, temperature = cg.Quadratic([[1.5, 0.5], [0.5, 2.5]]), 0.7
    response = cg.ClosedLoop(cg.GaussianPlant(temperature), energy).simulate(
        cg.Gaussian([1.6, -0.8], 0.15), 3.0, record=2001
    )
    precision = np.asarray(energy.precision)
    rates = []
    for g in response.snapshots:  # u_tot is affine: -P x + εC⁻¹(x - m)
        pull = precision - temperature * np.linalg.inv(g.covariance)
        rates.append(np.trace(pull @ g.covariance @ pull.T) + np.sum((precision @ g.mean) ** 2))
    marks = np.arange(20, 2001, 20)
    effort = np.array([simpson(rates[: k + 1], x=response.time[: k + 1]) for k in marks])
    first = response.snapshots[0]
    root = np.real(sqrtm(first.covariance))
    squares = [
        np.sum((g.mean - first.mean) ** 2)
        + np.trace(first.covariance + g.covariance - 2 * np.real(sqrtm(root @ g.covariance @ root)))
        for g in (response.snapshots[k] for k in marks)
    ]
    return (
        response.time[marks],
        effort,
        temperature * (response.kl[0] - response.kl[marks]),
        squares / response.time[marks],
    )


# Training and what it leaves ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loop:
    """What was measured of one trained energy; efforts in units of ε."""

    energy: cg.Energy
    seconds: float  # of training
    time: np.ndarray  # (k,)
    own: np.ndarray  # (n,), effort on each sample of its own loop
    curve: np.ndarray  # (k,), its mean up to each time
    balance: cg.Estimate  # mean effort less what the identity says
    noise: float  # the part of it that answers the noise
    quality: cg.Estimate  # W₂ of the samples to the data
    flow: cg.Response  # without noise
    telescoped: float  # largest error of a path of the flow, relative to the mean effort
    detour: cg.Estimate  # its mean effort over W₂²
    logp: np.ndarray  # (n,), log density of the data where it ends
    sparse: cg.Estimate  # rank correlation of that with the effort
    density: np.ndarray  # (k,), effort of the density up to each time of a loop at constant ε
    identity: float  # that at the end over ε(V(0) - V(T)), less 1
    bound: cg.Estimate  # W₂²/T of that loop
    kl: float  # data to Gibbs measure [nats]


def objectives(quick):
    """By method: as many updates, of batches of one size, with one rate, at one temperature."""
    flow, joint = (400, 80) if quick else (3000, 600)
    common: dict[str, Any] = {
        "temperature": EPS, "batch": 128, "learning_rate": 3e-3, "decay": "cosine", "clip": 1.0, "ema": 0.99,
        "langevin_step": 0.02,
    }  # fmt: skip
    return {
        EM: cg.EnergyMatching(flow_steps=flow, joint_steps=joint, langevin_steps=100, **common),
        CD: cg.ContrastiveDivergence(steps=flow + joint, chains=2048, langevin_steps=20, **common),
    }


def network(seed):
    """Of the size of the shipped models."""
    return cg.MLPEnergy(2, width=64, depth=3, confinement=EPS, key=seed)


def brought_to_temperature(model):
    """The network whose Gibbs measure at ε is that of a shipped model at 1: ε times its energy."""
    old = model.network
    weights = (*old.weights[:-1], EPS * old.weights[-1])
    return eqx.tree_at(lambda n: (n.weights, n.biases), network(0), (weights, (*old.biases[:-1], EPS * old.biases[-1])))


def measure(energy, schedule, data, quick, key, seconds=0.0):
    """Run an energy's loops from the source and measure them."""
    count, points = (1000, 1000) if quick else (4000, 2000)
    start = SOURCE.sample(1000 + key, count)
    loop = cg.ClosedLoop(cg.Langevin(EPS, STEP), energy, schedule=schedule)
    own = loop.simulate(start, DURATION, key=key, record=round(DURATION / STEP) // 2 + 1)
    sparser = slice(None, None, 4)
    now, states = own.time[sparser], own.states[sparser]
    rate = np.array([(energy.gradient(x) ** 2).sum(axis=1).mean() for x in states])
    factor = np.ones(len(now)) if schedule is None else np.array([float(schedule(t)) for t in now])
    noise = np.trapezoid(EPS * factor[:, None] * np.stack([energy.laplacian(x) for x in states]), now, axis=0)
    left = (own.effort - (energy(states[0]) - energy(own.final)) - noise) / EPS
    flow = cg.ClosedLoop(cg.GradientFlow(FINE, "adaptive", 1e-6), energy).simulate(
        start, FLOW, record=round(FLOW / FINE) + 1
    )
    fall = energy(start) - energy(flow.final)
    logp = data.log_density(flow.final)
    correlation = float(np.asarray(spearmanr(flow.effort, logp))[0])
    side = 90 if quick else 160
    grid = cg.FokkerPlanckGrid([(-4.2, 4.2)] * 2, (side, side), EPS)
    still = cg.ClosedLoop(grid, energy).simulate(SOURCE, DURATION, record=81)
    spent = up_to(still.time, density_effort(still, energy))
    ends = scattered(still.final, points, key)
    return Loop(
        energy=energy, seconds=seconds, time=now, own=own.effort / EPS, curve=up_to(now, rate) / EPS,
        balance=cg.Estimate(left.mean(), left.std() / np.sqrt(count)), noise=float(noise.mean() / EPS),
        quality=cg.measure.wasserstein2(own.final, data.sample(99, points), points), flow=flow,
        telescoped=float(np.abs(flow.effort - fall).max() / flow.effort.mean()),
        detour=over(flow.effort[:points].mean(), squared(start[:points], flow.final[:points])), logp=logp,
        sparse=cg.Estimate(correlation, (1 - correlation**2) / np.sqrt(count - 3)),
        density=np.interp(now, still.time, spent) / EPS,
        identity=float(spent[-1] / (EPS * (still.kl[0] - still.kl[-1])) - 1),
        bound=over(squared(SOURCE.sample(2000 + key, points), ends), DURATION * EPS),
        kl=grid.kl(grid.discretise(data), energy),
    )  # fmt: skip


def up_to(times, rates):
    """The integral of a rate up to each time, by the trapezoidal rule."""
    return np.concatenate([[0.0], np.cumsum((rates[1:] + rates[:-1]) / 2 * np.diff(times))])


def scattered(density, n, key):
    """n points from a grid density, even within a cell."""
    rng, grid = np.random.default_rng([key, 3]), density.grid
    cells = rng.choice(density.size, n, p=np.asarray(density).ravel())
    return grid.cells.reshape(-1, 2)[cells] + (rng.random((n, 2)) - 0.5) * np.array(grid.spacing)


def squared(x, y):
    """W₂² of two samples, which is above that of their laws in the mean."""
    w2 = cg.measure.wasserstein2(x, y, len(x))
    return cg.Estimate(w2.value**2, 2 * w2.value * w2.error)


def over(a, b):
    """a / b, where either is an estimate."""
    ratio = float(a) / float(b)
    shares = [e.error / e.value for e in (a, b) if isinstance(e, cg.Estimate)]
    return cg.Estimate(ratio, ratio * float(np.hypot.reduce(shares)))


def trained(name, options):
    """Loops by method, one a seed, and the shipped model's."""
    model: Any = cg.load_energy(name)
    data = cg.datasets.get(name).standardised(model.center, model.scale)
    loops = {EM: [], CD: []}
    for seed in range(options.seed, options.seed + (1 if options.quick else 4)):
        for method, objective in objectives(options.quick).items():
            began = time.perf_counter()
            energy = cg.train(
                network(seed), data, objective=objective, key=seed, progress=False, standardise=False
            ).energy
            seconds = time.perf_counter() - began
            loops[method].append(measure(energy.network, energy.schedule, data, options.quick, seed, seconds))
    loops[SHIPPED] = [measure(brought_to_temperature(model), None, data, options.quick, options.seed)]
    floor = cg.measure.sampling_floor(data, 1000 if options.quick else 2000, 3)
    for method, several in loops.items():
        line = "; ".join(f"{what} {value:.4g}" for what, value in summary(several, floor).items())
        print(f"{name}, {method}: {line}")
    return loops, floor


def spread(values):
    """Mean over seeds and its standard error; the value itself where there is one."""
    values = np.array([float(v) for v in values])
    mean = float(values.mean())
    return cg.Estimate(mean, float(values.std(ddof=1) / np.sqrt(len(values)))) if len(values) > 1 else mean


def summary(loops, floor):
    """What is worth a line, over the seeds of one method."""
    return {
        "effort [ε]": spread(x.own.mean() for x in loops), "against noise": spread(x.noise for x in loops),
        "of the density": spread(x.density[-1] for x in loops), "W₂²/T": spread(x.bound for x in loops),
        "without noise": spread(x.flow.effort.mean() / EPS for x in loops),
        "over W₂²": spread(x.detour for x in loops), "correlation": spread(x.sparse for x in loops),
        "KL(data‖Gibbs)": spread(x.kl for x in loops),
        "W₂/floor": spread(float(x.quality) / float(floor) for x in loops),
        "training, compilation included [s]": spread(x.seconds for x in loops),
    }  # fmt: skip


def shares(em, cd):
    """Ratio of mean efforts with the error of both samples."""
    means = [cg.Estimate(float(x.own.mean()), float(x.own.std() / np.sqrt(x.own.size))) for x in (em, cd)]
    return over(*means)


# Pictures ----------------------------------------------------------------------------------------------------------


def draw_identities(found, loops, sizes, errors, closed):
    """The three identities: of paths, of a density on grids, of a Gaussian."""
    axes = cg.plot.figure(1, 3, (3.2, 2.9))[0]
    for method, marker in ((CD, "x"), (EM, ".")):
        loop = loops[method][0]
        fall = loop.energy(loop.flow.states[0]) - loop.energy(loop.flow.final)
        axes[0].loglog(fall[:300], loop.flow.effort[:300], marker, color=METHODS[method][0], markersize=4, label=method)
    ends = np.array(axes[0].get_xlim())
    axes[0].loglog(ends, ends, "-", color=cg.plot.BLACK, linewidth=0.8)
    axes[0].set(xlabel="fall of E along the path", ylabel="∫|∇E|² dt", title="paths without noise")
    axes[1].loglog(sizes, errors, "o-", color=cg.plot.BLUE, markersize=5, label="double well")
    axes[1].loglog(sizes, errors[-1] * (sizes / sizes[-1]) ** 2, ":", color=cg.plot.BLACK, label="second order")
    axes[1].set(xlabel="width of a cell", ylabel="|effort / ε(V(0) - V(T)) - 1|", title="a density on grids")
    axes[1].minorticks_off()
    axes[1].set_xticks(sizes, [f"{s:g}" for s in sizes])
    axes[1].set_yticks(errors, [f"{e:.1%}" for e in errors])
    now, effort, fall, bound = closed
    axes[2].loglog(now, effort, "-", color=cg.plot.BLUE, label="effort of the density")
    axes[2].loglog(now[::6], fall[::6], "o", color=cg.plot.ORANGE, markersize=4, label="ε(V(0) - V(t))")
    axes[2].loglog(now, bound, "--", color=cg.plot.BLACK, label="W₂²/t")
    axes[2].set(xlabel="t", ylabel="effort up to t", title="a Gaussian, in closed form")
    for ax in axes:
        ax.grid(True, alpha=0.25)
        ax.legend(loc="lower right" if ax is axes[2] else "upper left")
    found.figure(
        axes[0].figure,
        "Left: without noise every particle's effort is the fall of its energy (the line). Middle: the effort of a "
        "density on grids approaches ε times the fall of KL with the square of the cell. Right: a Gaussian loop; the "
        "effort is ε times the fall of KL, and the bound of Benamou and Brenier below it is met at short times.",
        "_identities",
    )


def draw_costs(found, name, loops):
    """What each method spends, and on what."""
    axes = cg.plot.figure(1, 3, (3.2, 2.9))[0]
    for method, (colour, style) in METHODS.items():
        for k, loop in enumerate(loops[method]):
            line: dict[str, Any] = {"color": colour, "linestyle": style, "label": method if k == 0 else None}
            axes[0].plot(np.sort(loop.own), np.linspace(0, 1, loop.own.size), **line)
            axes[1].plot(loop.time[1:], loop.curve[1:], linewidth=2, **line)
            axes[1].plot(loop.time[1:], loop.density[1:], color=colour, linestyle=style, linewidth=0.8)
            rank = np.argsort(np.argsort(loop.flow.effort)) / loop.flow.effort.size
            middle = binned_statistic(rank, loop.logp, "mean", bins=10)[0]
            axes[2].plot(np.arange(5, 100, 10), middle, **line)
    axes[0].set(xscale="log", xlim=(0.1, None), xlabel="∫|∇E|² dt of a sample [ε]", ylabel="share of samples below")
    axes[1].set(yscale="log", ylim=(0.005, None), xlabel="t", ylabel="mean effort up to t [ε]")
    axes[1].legend(loc="lower right")
    axes[2].set(xlabel="effort without noise, percentile", ylabel="mean log density of the data")
    for ax, title in zip(
        axes, (f"{name}, own loops", "controller (bold), density (thin)", "where the flow ends"), strict=True
    ):
        ax.set_title(title)
        ax.grid(True, alpha=0.25)
    found.figure(
        axes[0].figure,
        f"Effort on {name}, a line a seed. Left: of the controller on each sample. Middle: its mean over time (bold) "
        "and the effort of the density at constant ε (thin). Right: how dense the data is where the noise-free flow "
        "ends, against the effort that it took.",
        f"_{name}",
    )


def draw_paths(found, name, loops):
    """Paths of the noise-free flow over each energy."""
    axes = cg.plot.figure(1, len(METHODS), (2.8, 2.9))[0]
    for ax, method in zip(axes, METHODS, strict=True):
        loop = loops[method][0]
        lowest = float(loop.energy(loop.flow.final).min())
        cg.plot.energy(loop.energy, ax, [[-3.2, -3.2], [3.2, 3.2]], lowest + np.linspace(-EPS, 12 * EPS, 14))
        for path in np.swapaxes(loop.flow.states[:, :70], 0, 1):
            ax.plot(*path.T, "-", color=cg.plot.BLACK, linewidth=0.8)
            ax.plot(*path[-1], ".", color=cg.plot.BLACK, markersize=4)
        ax.set_title(f"{method}: {loop.flow.effort.mean() / EPS:.2f} ε")
    found.figure(
        axes[0].figure,
        f"Noise-free paths of 70 particles from the source over the energies trained on {name}, to where they are at "
        f"t = {FLOW:g} (dots), and their mean effort. Bright is low energy.",
        f"_{name}_paths",
    )


# Claims ------------------------------------------------------------------------------------------------------------


def answer_identities(found, every, sizes, errors, closed):
    """The claims that hold of any loop."""
    loops = [x for several in every.values() for method in several for x in several[method]]
    worst = max(x.telescoped for x in loops)
    found.claim(
        "flow", worst < TELESCOPED, method="adaptive flow of trained networks, each path",
        numbers={"largest |effort - fall of E| over the mean effort": worst, "energies": len(loops)},
    )  # fmt: skip
    off = [(abs(x.balance.value) - EULER * x.own.mean()) / x.balance.error for x in loops]
    found.claim(
        "balance", max(off) < 3, method="particles, within 3 standard errors and the bias of the step",
        numbers={
            f"{name}, {method}: effort less the identity [ε]": several[method][0].balance
            for name, several in every.items() for method in several
        },
    )  # fmt: skip
    exact = float(np.abs(closed[1] / closed[2] - 1).max())
    order = errors[:-1] / errors[1:]
    discrete = max(abs(x.identity) for x in loops)
    found.claim(
        "density",
        exact < EXACT and CONVERGED[0] < order.min() and order.max() < CONVERGED[1] and discrete < DISCRETE,
        method="a Gaussian in closed form, grids of several sizes, trained networks on a grid",
        numbers={
            "largest relative error, Gaussian": exact, "on grids": list(errors), "falls by, cells halved": list(order),
            "of trained networks, at most": discrete,
        },
    )  # fmt: skip
    ratio = closed[3] / closed[1]
    below = [(x.bound.value - x.density[-1]) / x.bound.error for x in loops]
    found.claim(
        "bound", ratio.max() <= 1 and ratio[0] > 1 - MET and max(below) < 2,
        method="a Gaussian in closed form; grids of trained networks against exact W₂ of samples",
        numbers={
            "W₂²/t over the effort, Gaussian: at most": float(ratio.max()), "at t = 3": float(ratio[-1]),
            "bound less effort, trained: at most [standard errors]": max(below),
        },
    )  # fmt: skip


def answer_methods(found, every, floors):
    """The claims that compare ways of training: each must hold of every seed on every data set."""
    pairs = {(name, k): pair for name, loops in every.items()
             for k, pair in enumerate(zip(loops[EM], loops[CD], strict=True))}  # fmt: skip
    ratios = {key: shares(*pair) for key, pair in pairs.items()}
    table = {
        f"{name}, {method}": "; ".join(f"{k} {v:.4g}" for k, v in summary(loops, floors[name]).items())
        for name, several in every.items() for method, loops in several.items()
    }  # fmt: skip
    found.claim(
        "cheaper", all(r.value + 2 * r.error < SHARE for r in ratios.values()),
        method=f"particles, {len(pairs)} pairs of networks with one seed, own loops",
        numbers={**{f"{name}: share": spread(r for (n, _), r in ratios.items() if n == name) for name in every},
                 "largest share": max(ratios.values(), key=float), **table},
    )  # fmt: skip
    found.claim(
        "straight",
        all(em.detour.value < OPTIMAL and em.detour.value + 2 * np.hypot(em.detour.error, cd.detour.error)
            < cd.detour.value for em, cd in pairs.values()),
        method="adaptive flow against exact W₂ of its two ends",
        numbers={f"{name}, {method}: mean effort over W₂²": spread(x.detour for x in several[method])
                 for name, several in every.items() for method in several},
    )  # fmt: skip
    found.claim(
        "price", all(em.kl > cd.kl for em, cd in pairs.values()), method="quadrature on a grid",
        numbers={f"{name}, {method}: KL(data‖Gibbs) [nats]": spread(x.kl for x in several[method])
                 for name, several in every.items() for method in several},
    )  # fmt: skip
    found.claim(
        "sparse", all(-WEAK < em.sparse.value < -2 * em.sparse.error for em, _ in pairs.values()),
        method="rank correlation of a path's effort and the data's log density at its end",
        numbers={f"{name}, {method}, seed {k}": x.sparse for name, several in every.items()
                 for method, loops in several.items() for k, x in enumerate(loops)},
    )  # fmt: skip
    return ratios


def analyse(options, found):
    warnings.simplefilter("error", RuntimeWarning)
    (sizes, errors), closed = on_grids(options), gaussian()
    every, floors = {}, {}
    for name in ("two_moons",) if options.quick else ("two_moons", "eight_gaussians"):
        every[name], floors[name] = trained(name, options)
        draw_costs(found, name, every[name])
        draw_paths(found, name, every[name])
    draw_identities(found, next(iter(every.values())), sizes, errors, closed)
    answer_identities(found, every, sizes, errors, closed)
    ratios = answer_methods(found, every, floors)
    worst = max(ratios.values(), key=float)
    return (
        "The density's effort is ε times the fall of KL. After as many updates, Energy Matching takes at most "
        f"{worst.value:.2f} of the effort of contrastive divergence, and its Gibbs measure is further from the data."
    )


if __name__ == "__main__":
    sys.exit(cg.report.script(__file__, analyse))
