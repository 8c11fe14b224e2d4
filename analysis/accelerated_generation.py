"""Question: how many steps do a metric, a nonreversible drift and momentum save, and where do they lose?

Steps until KL to the Gibbs measure is and stays below a level, each loop with the best of its own steps: a quadratic in
20 dimensions with condition number 1000 (laws in closed form but for MALA), a banana and a funnel (particles). Then
gradient evaluations per effective sample, beside BlackJAX's MALA and NUTS where that is installed.

Run: python analysis/accelerated_generation.py --seed 0 [--quick] [--out figures]
"""

import importlib.util
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import solve_discrete_lyapunov

import ctrlgen as cg

CLAIMS = {
    "quadratic": "On a quadratic of condition 1000 metric, low-rank metric and momentum each save half of the steps.",
    "certificates": "Rates are proved of a metric, a low-rank metric, a skew drift and a friction on that quadratic.",
    "optimal": "The optimal metric makes its condition number 1, the optimal skew drift its rate tr(S)/d, to rounding.",
    "skew": "A skew drift saves steps there too, but less than a tenth of what its rate promises.",
    "curved": "On a banana and a funnel Metropolis steps in a metric of the state arrive, in fewer steps than ULA.",
    "coupled": "None of 500 pairs of coupled trajectories contracts slower than the proved rate, to 0.3 %.",
    "region": "∇²E ⪰ 0 on the shaded cells of the trained two_moons energy: there coupled paths do not separate.",
}
LEVEL = 0.1  # of KL [nats]
DIM, CONDITION = 20, 1000.0
BANANA, FUNNEL = cg.Banana(scale=3.0, curvature=0.5), cg.Funnel(2, scale=2.0)
STRAIGHT = {  # coordinates in which the Gibbs measure is N(0, I); KL is the same in them
    "banana": lambda x: np.stack([x[:, 0] / 3, x[:, 1] - 0.5 * (x[:, 0] ** 2 - 9)], axis=1),
    "funnel": lambda x: np.stack([x[:, 0] / 2, x[:, 1] * np.exp(-x[:, 0] / 2)], axis=1),
}
NORMAL = cg.Quadratic(np.eye(2))
MOST = 200_000  # steps of a linear loop that are looked at


# A quadratic: laws of linear loops in closed form ---------------------------------------------------------------------


def ill_conditioned(seed):
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(DIM, DIM)))
    precision = basis * np.geomspace(1, CONDITION, DIM) @ basis.T
    return cg.Quadratic((precision + precision.T) / 2)


def euler(precision, mobility, skew):
    """h -> (A, Q) of x⁺ = Ax + noise of covariance Q, at ε = 1."""
    return lambda h: (np.eye(DIM) - h * (mobility + skew) @ precision, 2 * h * mobility)


def kinetic(precision, friction):
    """The same of BAOAB in (x, v)."""

    def step(h):
        eye, zero = np.eye(DIM), np.zeros((DIM, DIM))
        kick = np.block([[eye, zero], [-h / 2 * precision, eye]])
        drift = np.block([[eye, h / 2 * eye], [zero, eye]])
        decay = np.exp(-friction * h)
        thermostat = np.block([[eye, zero], [zero, decay * eye]])
        noise = np.block([[zero, zero], [zero, (1 - decay**2) * eye]])
        after = kick @ drift
        return after @ thermostat @ drift @ kick, after @ noise @ after.T

    return step


def gaussian_kl(mean, covariance, precision):
    ratio = np.linalg.eigvals(precision @ covariance).real
    return 0.5 * float(np.sum(ratio - 1 - np.log(np.maximum(ratio, 1e-300))) + mean @ precision @ mean)


def steps_of_linear(step, precision, mean, covariance):
    """The least number of steps after which KL of the positions stays below LEVEL; inf if it does not settle there."""
    a, q = step
    if np.abs(np.linalg.eigvals(a)).max() >= 1:
        return np.inf
    limit = solve_discrete_lyapunov(a, q)[:DIM, :DIM]
    if gaussian_kl(np.zeros(DIM), limit, precision) >= LEVEL:
        return np.inf
    powers, noises = [a], [q]  # of 1, 2, 4, ... steps
    while 2 ** len(powers) < MOST:
        powers.append(powers[-1] @ powers[-1])
        noises.append(powers[-2] @ noises[-1] @ powers[-2].T + noises[-1])

    def after(state, k):
        return powers[k] @ state[0], powers[k] @ state[1] @ powers[k].T + noises[k]

    def far(state):
        return gaussian_kl(state[0][:DIM], state[1][:DIM, :DIM], precision) > LEVEL

    state, done = (mean, covariance), 0
    for k in reversed(range(len(powers))):  # KL may wiggle under a skew drift: the last crossing to within 1 %
        further = after(state, k)
        if far(further):
            state, done = further, done + 2**k
    return done + 1 if done + 1 < MOST else np.inf


def best_step(steps_at, candidates):
    counts = [(steps_at(h), h) for h in candidates]
    return min(counts)


def quadratic(options, found):
    energy = ill_conditioned(options.seed)
    s = np.asarray(energy.precision)
    soft = np.linalg.eigh(s)[1][:, 0]
    mean, covariance = 3 * soft, np.eye(DIM)
    metric, low = cg.optimal_metric(energy), cg.optimal_metric(energy, structure="low-rank", rank=10)
    skews = {spread: cg.optimal_skew(energy, spread=spread) for spread in (4.0, 100.0, 3000.0)}
    skew, friction = skews[4.0], cg.optimal_friction(energy)
    eye, zero = np.eye(DIM), np.zeros((DIM, DIM))

    def inverse(m):
        return np.diag(1 / m) if m.ndim == 1 else np.linalg.inv(m)

    fractions = np.geomspace(0.01, 0.99, 25 if options.quick else 60)
    loops = {  # name: (step of h, stability limit, certified rate per time)
        "ULA": (euler(s, eye, zero), 2 / CONDITION, 1.0),
        "metric": (euler(s, inverse(metric.metric), zero), 2.0, metric.rate),
        "low-rank metric": (euler(s, inverse(low.metric), zero), 2.0, low.rate),
        **{
            f"skew, spread {spread:g}": (euler(s, eye, v.skew), v.stability_limit, v.rate)
            for spread, v in skews.items()
        },
        "kinetic": (kinetic(s, friction.friction), friction.stability_limit, friction.rate),
    }
    rows = {}
    for name, (step, limit, rate) in loops.items():
        start = (mean, covariance) if name != "kinetic" else (
            np.concatenate([mean, np.zeros(DIM)]), np.block([[covariance, zero], [zero, eye]])
        )  # fmt: skip
        count, h = best_step(lambda h, step=step, start=start: steps_of_linear(step(h), s, *start), limit * fractions)
        rows[name] = (count, h, rate)
    for name, given in (("MALA", None), ("MALA, metric", metric.metric)):
        rows[name] = (*mala_steps(energy, given, mean, covariance, options), float("nan"))
    plain = rows["ULA"][0]
    print(f"quadratic, {DIM} dimensions, condition {CONDITION:g}: steps (= gradients) to KL <= {LEVEL:g}")
    for name, (count, h, rate) in rows.items():
        certified = "" if np.isnan(rate) else f"; certified rate {rate:.4g}"
        print(f"  {name:18s} {count:6.0f} at step {h:.4g}, {plain / count:6.1f} x fewer than ULA{certified}")
    verdicts = {"metric": metric, "low-rank metric": low, "skew, spread 4": skew, "kinetic": friction}
    found.verdicts(
        "certificates", list(verdicts.values()), also=all(v.recheck() for v in verdicts.values()),
        numbers={f"{name}: rate": v.rate for name, v in verdicts.items()},
    )  # fmt: skip
    best = np.trace(s) / DIM
    found.verdicts(
        "optimal", [metric, skew], also=abs(skew.rate / best - 1) < 1e-6 and abs(metric.condition - 1) < 1e-9,
        numbers={"condition number in the metric": metric.condition, "skew rate": skew.rate, "tr(S)/d": best},
    )  # fmt: skip
    counts = {name: row[0] for name, row in rows.items()}
    found.claim(
        "quadratic", all(counts[name] < plain / 2 for name in ("metric", "low-rank metric", "kinetic")),
        method="laws of linear loops in closed form, each with the best of its steps; MALA with particles",
        numbers={f"{name}: steps": count for name, count in counts.items()},
    )  # fmt: skip
    saved = plain / min(counts[f"skew, spread {spread:g}"] for spread in skews)
    found.claim(
        "skew", 1 < saved < skew.rate / 10, method="the same, the best of three spreads",
        numbers={"rate over that of ULA": skew.rate, "fewer steps than ULA": saved},
    )  # fmt: skip
    return counts


def mala_steps(energy, metric, mean, covariance, options):
    """Steps and step of MALA: KL of the Gaussian with the particles' moments."""
    s, n = np.asarray(energy.precision), 4000 if options.quick else 20_000
    start = cg.Gaussian(mean, covariance).sample(options.seed, n)
    bias = DIM * (DIM + 3) / (4 * n)  # of the moments' KL
    found = []
    for h in (0.5, 0.25, 0.15) if metric is not None else (3 / CONDITION, 1 / CONDITION, 0.5 / CONDITION):
        span = 60 if metric is not None else 6000
        loop = cg.ClosedLoop(cg.Langevin(1.0, h, "mala", metric=metric), energy)
        run = loop.simulate(start, span * h, key=options.seed, record=61)
        values = np.array([gaussian_kl(m, c, s) for m, c in zip(run.mean, run.covariance, strict=True)]) - bias
        above = np.flatnonzero(values > LEVEL)
        last = above[-1] + 1 if len(above) else 0
        found.append((float(run.time[last] / h) if last < len(values) else np.inf, h))
    return min(found)


# Curved energies: particles -------------------------------------------------------------------------------------------


def fisher_banana(x):
    """JᵀJ of the residuals whose squares a banana is: flat, so that the loop is linear in its own coordinates."""
    return jnp.array([[1 / 9 + x[0] ** 2, -x[0]], [-x[0], 1.0]])


def fisher_funnel(x):
    """Expected curvature of the funnel, diagonal."""
    return jnp.array([1 / FUNNEL.scale**2 + 0.5, jnp.exp(-x[0])])


def curved_loops(name):
    """The energy and (label, plant of a step h, candidate steps, the likely ones first)."""
    banana = name == "banana"
    fisher, energy = (fisher_banana, BANANA) if banana else (fisher_funnel, FUNNEL)
    skew = cg.optimal_skew(energy, temperature=1.0, spread=16.0).skew
    return energy, [
        ("ULA", lambda h: cg.Langevin(1.0, h), (0.02, 0.05, 0.1, 0.2)),
        ("skew", lambda h: cg.Langevin(1.0, h, skew=skew), (0.02, 0.05, 0.1, 0.2)),
        ("kinetic", lambda h: cg.KineticLangevin(1.0, 1.0, h), (0.2, 0.1, 0.4, 0.6)),
        ("MALA", lambda h: cg.Langevin(1.0, h, "mala"), (0.1, 0.25, 0.5, 1.0)),
        ("Riemannian", lambda h: cg.Langevin(1.0, h, metric=fisher), (0.01, 0.1, 0.02, 0.05, 0.2)),
        ("MALA, Riemannian", lambda h: cg.Langevin(1.0, h, "mala", metric=fisher), (0.25, 0.5, 1.0, 0.1)),
    ]


def straightened_kl(x, name):
    """KL of particles in the coordinates in which the target is a normal law; inf where they are too large."""
    y = STRAIGHT[name](np.asarray(x, np.float64))
    if not (np.isfinite(y).all() and np.abs(y).max() < 1e6):
        return np.inf
    return float(cg.measure.kl(y, NORMAL, 1.0, log_partition=np.log(2 * np.pi)).value)


def steps_of_particles(plant, energy, name, start, spans, options, n):
    """Steps after which KL stays below LEVEL; inf where it does not within the longest span."""
    for span in spans:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a step beyond the stability limit is one of the answers
            run = cg.ClosedLoop(plant, energy).simulate(
                start, span * plant.step, key=options.seed, record=41, particles=n
            )
        if run.status != "completed":
            return np.inf
        values = np.array([straightened_kl(x, name) for x in run.states])
        above = np.flatnonzero(~(values <= LEVEL))
        last = above[-1] + 1 if len(above) else 0
        if last < len(values) - 4:
            return round(float(run.time[last] / plant.step))
    return np.inf


def curved(name, options):
    energy, loops = curved_loops(name)
    n, spans = (2000, (200, 2000)) if options.quick else (10_000, (200, 1000, 5000))
    exact = cg.Gaussian([0.0, 0.0], np.eye(2)).sample(5, n)
    floor = float(cg.measure.kl(exact, NORMAL, 1.0, log_partition=np.log(2 * np.pi)).value)
    start = cg.Gaussian([0.0, -4.0] if name == "banana" else [0.0, 0.0], 0.25 * np.eye(2))
    print(f"{name}: steps to KL <= {LEVEL:g} (the estimate of {n} exact samples is {floor:.3f})")
    rows = {}
    for label, plant, steps in loops:
        found = [
            (steps_of_particles(plant(h), energy, name, start, spans, options, n), h)
            for h in (steps[:2] if options.quick else steps)
        ]
        rows[label] = min(found)
    plain = rows["ULA"][0]
    for label, (count, h) in rows.items():
        if np.isfinite(count):
            ratio = f"{plain / count:.1f} x fewer than ULA" if np.isfinite(plain) else "ULA does not get there"
            print(f"  {label:18s} {count:6.0f} at step {h:.3g}; {ratio}")
        else:
            print(f"  {label:18s} not within {spans[-1]} steps of any size tried")
    return {label: row[0] for label, row in rows.items()}


# Effective samples ----------------------------------------------------------------------------------------------------


def own_chains(plant, energy, start, steps, seed):
    """(chains, steps, d) and gradients per step."""
    run = cg.ClosedLoop(plant, energy).simulate(start, steps * plant.step, key=seed, record=steps + 1)
    half = run.states[steps // 5 :]
    return np.moveaxis(half, 1, 0), 1.0


def peer_chains(kind, energy, start, steps, seed, step):
    """BlackJAX's MALA with the same step, or NUTS after its own adaptation; gradients per step."""
    import blackjax

    def log_density(x):
        return -energy.potential(x)

    key = jax.random.key(seed)
    if kind == "MALA":
        kernel = blackjax.mala(log_density, step)
        init = jax.vmap(kernel.init)(jnp.asarray(start, jnp.float32))
    else:
        warm = blackjax.window_adaptation(blackjax.nuts, log_density)
        (_, parameters), _ = warm.run(key, jnp.asarray(start[0], jnp.float32), num_steps=500)
        kernel = blackjax.nuts(log_density, **parameters)
        init = jax.vmap(kernel.init)(jnp.asarray(start, jnp.float32))

    def body(state, k):
        new, info = jax.vmap(kernel.step)(jax.random.split(k, len(start)), state)
        return new, (new.position, getattr(info, "num_integration_steps", jnp.ones(len(start))))

    _, (positions, gradients) = jax.jit(lambda s: jax.lax.scan(body, s, jax.random.split(key, steps)))(init)
    return np.moveaxis(np.asarray(positions), 1, 0)[:, steps // 5 :], float(np.asarray(gradients).mean())


def effective(chains, gradients, functions):
    """Gradients per effective sample of the worst of these functions."""
    from blackjax.diagnostics import effective_sample_size

    values = functions(chains)
    sizes = np.asarray(effective_sample_size(jnp.asarray(values), chain_axis=0, sample_axis=1))
    return gradients * chains.shape[0] * chains.shape[1] / float(np.min(sizes))


def efficiency(options):
    """Gradients per effective sample of the slowest coordinate and its square."""
    if importlib.util.find_spec("blackjax") is None:
        print("effective samples: left out, for BlackJAX is not installed (pip install 'ctrlgen[bench]')")
        return
    quadratic_energy = ill_conditioned(options.seed)
    metric, skew = cg.optimal_metric(quadratic_energy), cg.optimal_skew(quadratic_energy)
    soft = np.linalg.eigh(np.asarray(quadratic_energy.precision))[1]
    chains, scale = 16, 1 if options.quick else 4
    cases = {
        "quadratic": (
            quadratic_energy, lambda x: np.concatenate([x @ soft, (x @ soft) ** 2], axis=-1), 1.0 / CONDITION, 3000,
            {
                "MALA": cg.Langevin(1.0, 1.0 / CONDITION, "mala"),
                "MALA, metric": cg.Langevin(1.0, 0.5, "mala", metric=metric.metric),
                "skew (biased)": skew.plant(1.0, 0.1),
            },
        ),
        "banana": (
            BANANA, lambda x: np.concatenate([x, x**2], axis=-1), 0.25, 3000,
            {"MALA": cg.Langevin(1.0, 0.25, "mala"),
             "MALA, Riemannian": cg.Langevin(1.0, 0.8, "mala", metric=fisher_banana)},
        ),
        "funnel": (
            FUNNEL, lambda x: np.concatenate([x[..., :1], x[..., :1] ** 2], axis=-1), 0.4, 3000,
            {"MALA": cg.Langevin(1.0, 0.4, "mala"),
             "MALA, Riemannian": cg.Langevin(1.0, 0.8, "mala", metric=fisher_funnel)},
        ),
    }  # fmt: skip
    for name, (energy, functions, step, steps, plants) in cases.items():
        start = cg.Gibbs(energy, 1.0).sample(options.seed + 1, chains)
        row = {
            label: effective(*own_chains(plant, energy, start, steps * scale, options.seed), functions)
            for label, plant in plants.items()
        }
        row["BlackJAX MALA"] = effective(
            *peer_chains("MALA", energy, start, steps * scale, options.seed, step), functions
        )
        row["BlackJAX NUTS"] = effective(
            *peer_chains("NUTS", energy, start, 500 * scale, options.seed, step), functions
        )
        print(f"{name}: gradients per effective sample (the worst of the functions; {chains} chains)")
        for label, value in row.items():
            print(f"  {label:18s} {value:10.1f}; {row['BlackJAX NUTS'] / value:7.2f} x as good as NUTS")


def coupled(options, found):
    """Synchronously coupled trajectories in the certified norms: none contracts slower than its certificate."""
    energy = cg.Quadratic(np.diag([1.0, 5.0, 40.0])) + cg.SymbolicEnergy("log(cosh(x + y))", ["x", "y", "z"])
    metric = cg.optimal_metric(energy)
    assert metric.metric is not None
    m = np.asarray(metric.metric)
    m = np.diag(m) if m.ndim == 1 else m
    rng = np.random.default_rng(options.seed)
    a, b = rng.normal(size=(2, 500, 3)) * 2
    loop = cg.ClosedLoop(cg.Langevin(1.0, 0.002, metric=metric.metric), energy)
    pair = [loop.simulate(x, 2.0, key=3, record=21, dtype=np.float64) for x in (a, b)]
    gap = pair[0].states - pair[1].states
    distance = np.sqrt(np.einsum("kni,ij,knj->kn", gap, m, gap))
    measured = -np.log(distance[-1] / distance[0]) / 2.0
    print(f"coupled trajectories: certified rate {metric.rate:.4f} ({metric.status.name}), slowest of 500 measured "
          f"{measured.min():.4f}")  # fmt: skip
    found.claim(
        "coupled", metric.status is cg.Status.PROVED and bool(measured.min() >= metric.rate * (1 - 0.003)),
        method=f"from both ends; the rate is {metric.status.name}",
        numbers={"certified rate": metric.rate, "slowest pair": measured.min()},
    )  # fmt: skip


def region(options, found, ax):
    """The trained two_moons energy: where its loop contracts, by interval bounds on its Hessian."""
    energy = cg.load_energy("two_moons")
    cells = 96 if options.quick else 256
    box, timeout = cg.Box([-4, -3], [5, 4]), 8 if options.quick else 150
    proved = cg.contraction_region(energy, box, cells=cells, timeout=timeout)
    proved.plot(ax)
    ax.set_title("two_moons: where ∇²E ⪰ 0 is proved")
    inside = np.concatenate(
        [np.random.default_rng(0).uniform(*cell.T, (4, 2)) for cell in np.asarray(proved.cells)[:500]]
    )
    lowest = float(np.linalg.eigvalsh(energy.hessian(inside))[:, 0].min())
    share = f"{100 * proved.fraction:.1f} % of the box"
    print(f"two_moons: contraction proved on {share}; least eigenvalue sampled there {lowest:.3g}")
    found.verdicts(
        "region", proved, also=lowest >= 0 and proved.fraction > 0 and proved.recheck(),
        numbers={"proved on": share, "least eigenvalue sampled there": lowest},
    )  # fmt: skip


def analyse(options, found):
    axes = cg.plot.figure(2, 2, (3.7, 2.7)).ravel()
    tables = {"quadratic": quadratic(options, found)}
    tables |= {name: curved(name, options) for name in STRAIGHT}
    arrived = [t["MALA, Riemannian"] < t["ULA"] for t in (tables["banana"], tables["funnel"])]
    found.claim(
        "curved", all(arrived), method="particles, KL in coordinates in which the target is a normal law",
        numbers={f"{name}, {label}: steps": count for name in STRAIGHT for label, count in tables[name].items()},
    )  # fmt: skip
    coupled(options, found)
    region(options, found, axes[3])
    efficiency(options)
    for ax, (name, table) in zip(axes, tables.items(), strict=False):
        bars_of(ax, name, table)
    found.figure(
        axes[0].figure,
        f"Steps until KL stays below {LEVEL:g}, each loop with the best of its own steps; and where the loop of a "
        "trained energy is proved to contract.",
    )
    fewer = {name: table["ULA"] / min(table.values()) for name, table in tables.items()}
    return "The best loop needs " + ", ".join(f"{x:.0f} x fewer steps on the {name}" for name, x in fewer.items()) + "."


def bars_of(ax, name, table):
    labels, counts = list(table), np.array(list(table.values()), dtype=float)
    shown = np.where(np.isfinite(counts), counts, 1)
    bars = ax.barh(range(len(labels)), shown, color=[cg.plot.BLACK] + [cg.plot.BLUE] * (len(labels) - 1), height=0.6)
    ax.bar_label(bars, [f"{c:.0f}" if np.isfinite(c) else "does not get there" for c in counts], padding=3)
    ax.set_yticks(range(len(labels)), labels)
    ax.invert_yaxis()
    ax.set(xscale="log", xlim=(1, 60 * shown.max()), xlabel=f"steps to KL ≤ {LEVEL:g}", title=name)


if __name__ == "__main__":
    sys.exit(cg.report.script(__file__, analyse))
