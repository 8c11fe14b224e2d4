"""Question: does a trained energy hold the density at the data, or does longer generation drift away from it?

Every shipped 2-D energy is run from noise for its own time T and for 5 T; W₂ to fresh data is compared with that of
fresh data to fresh data. With --recipes, the official Energy Matching recipe and maximum likelihood are trained side by
side on `two_moons`, whose density is exact, and asked the same (ten minutes; with --quick, a twentieth of the steps).

Run: python analysis/holds_the_density.py --seed 0 [--quick] [--out figures] [--recipes]
"""

import sys
import time

import numpy as np

import ctrlgen as cg

CLAIMS = {
    "reaches": "After its own time T, every shipped 2-D energy generates points whose W₂ to fresh data is at most 1.25 "
    "times that of fresh data to fresh data, within three errors.",
    "stays": "After 5 T the W₂ of each is still within 1.25 times that of fresh data and errors, and has not risen.",
    "gibbs": "The Gibbs measure of each, where longer generation ends, is within 0.02 nats of the data: "
    "KL(data‖Gibbs) ≤ 0.02.",
}
SHIPPED = ("eight_gaussians", "two_moons", "rings", "checkerboard", "pinwheel")
FULL, QUICK = (2000, 6), (150, 4)  # points of a W₂, and how many are averaged
LIMIT_RATIO, LIMIT_KL = 1.25, 0.02
ERRORS = 3  # standard errors by which a limit must be exceeded to count: fifteen comparisons, of few repeats each


def measured(name, energy, data, options):
    """The quality of an energy, printed."""
    clock, (points, repeats) = time.perf_counter(), QUICK if options.quick else FULL
    quality = cg.measure_quality(energy, data, points=points, repeats=repeats, key=options.seed)
    print(
        f"{name:28s} W₂/floor at T {quality.ratio:.3f}   at 5T {quality.ratio_long:.3f}   "
        f"KL(data‖Gibbs) {quality.kl:8.4f} nats   [{time.perf_counter() - clock:.0f} s]"
    )
    return quality


def recipes(options):
    """Two ways to train on two_moons: what they come to, by name."""
    share = 20 if options.quick else 1
    data = cg.datasets.two_moons
    official = cg.MLPEnergy(
        2, width=256, depth=4, activation=("relu", "silu", "silu", "silu"), confinement=0.0, key=options.seed
    )
    ours = cg.MLPEnergy(2, width=64, depth=3, confinement=1.0, key=options.seed)
    matching = cg.EnergyMatching(flow_steps=20_000 // share, joint_steps=2_000 // share)
    likelihood = cg.MaximumLikelihood(steps=4_000 // share, learning_rate=5e-3, batch=1024)
    loop = {"step": 0.02, "duration": 3.0, "scheme": "mala", "schedule": cg.Annealing(3.0, 2.25)}
    results = {}
    for name, energy, objective, settings in (
        ("official Energy Matching", official, matching, {}),
        ("maximum likelihood", ours, likelihood, loop),
    ):
        result = cg.train(energy, data, objective=objective, key=options.seed, progress=False, **settings)
        results[name] = measured(name, result.energy, data, options)
    return results


def rise(quality):
    """W₂ at 5 T less that at T [standard errors]."""
    return float(
        (quality.w2_long.value - quality.w2.value) / np.hypot(float(quality.w2_long.error), float(quality.w2.error))
    )


def within(ratio):
    """Whether a ratio to the floor does not exceed the limit by more than its errors."""
    return float(ratio.value) - ERRORS * float(ratio.error) <= LIMIT_RATIO


def draw(rows):
    """W₂ over its floor at T and at 5 T, and KL(data‖Gibbs), a row a model."""
    left, right = cg.plot.figure(1, 2, (3.5, 0.9 + 0.34 * len(rows)), sharey=True)[0]
    place = np.arange(len(rows))[::-1]
    for shift, what, colour, mark, label in (
        (0.15, "ratio", cg.plot.BLUE, "o", "at T"),
        (-0.15, "ratio_long", cg.plot.RED, "s", "at 5 T"),
    ):
        values = [getattr(quality, what) for quality in rows.values()]
        mean, error = (np.array([float(getattr(v, part)) for v in values]) for part in ("value", "error"))
        left.errorbar(mean, place + shift, xerr=2 * error, fmt=mark, color=colour, label=label)
    left.axvline(1, color="0.5", linewidth=0.8)
    left.axvline(LIMIT_RATIO, color=cg.plot.BLACK, linestyle="--", linewidth=1, label="limit")
    left.set(xlabel="W₂ / floor, ± 2 standard errors", ylim=(-0.6, len(rows) - 0.4))
    left.set_yticks(place, list(rows))
    kl = [quality.kl for quality in rows.values()]
    right.plot(kl, place, "D", color=cg.plot.GREEN, label="by quadrature")
    right.axvline(LIMIT_KL, color=cg.plot.BLACK, linestyle="--", linewidth=1, label="limit")
    right.set(xlabel="KL(data‖Gibbs) [nats]", xscale="log", xlim=(min(kl) / 2, 2 * max(*kl, LIMIT_KL)))
    for ax in (left, right):
        ax.grid(True, axis="x", alpha=0.25)
        ax.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), columnspacing=1.2)
    return left.figure


def arguments(parser):
    parser.add_argument("--recipes", action="store_true", help="train two recipes on two_moons as well")


def analyse(options, found):
    print("Shipped energies, from noise:")
    rows = {name: measured(name, cg.load_energy(name), cg.datasets.get(name), options) for name in SHIPPED}
    short, long, kl = ({n: getattr(q, part) for n, q in rows.items()} for part in ("ratio", "ratio_long", "kl"))
    points, repeats = QUICK if options.quick else FULL
    method = f"W₂ of {points} particles, {repeats} times; fails where exceeded by {ERRORS} standard errors"
    found.claim(
        "reaches", all(map(within, short.values())), method=method,
        numbers={f"{name}: W₂ / floor at T": ratio for name, ratio in short.items()},
    )  # fmt: skip
    highest = max(rows, key=lambda name: rise(rows[name]))
    found.claim(
        "stays", all(map(within, long.values())) and rise(rows[highest]) <= ERRORS, method=method,
        numbers={
            **{f"{name}: W₂ / floor at 5 T": ratio for name, ratio in long.items()},
            "largest rise of W₂ from T to 5 T": f"{rise(rows[highest]):.1f} standard errors ({highest})",
        },
    )  # fmt: skip
    found.claim(
        "gibbs", max(kl.values()) <= LIMIT_KL, method="quadrature",
        numbers={f"{name}: KL(data‖Gibbs) [nats]": value for name, value in kl.items()},
    )  # fmt: skip
    if options.recipes:
        print("Two recipes on two_moons:")
        rows |= {f"two_moons,\n{name}": quality for name, quality in recipes(options).items()}
    found.figure(
        draw(rows),
        "W₂ of generated to fresh data over its floor, that of fresh to fresh data, after the energy's own time T "
        "and after 5 T (left); the divergence of its Gibbs measure from the data (right).",
    )
    drift = "; ".join(f"{name} {long[name]:.2f}" for name in SHIPPED)
    return (
        f"W₂ over its floor after 5 T: {drift}; the Gibbs measures are within {max(kl.values()):.3f} nats of the data."
    )


if __name__ == "__main__":
    sys.exit(cg.report.script(__file__, analyse, extend=arguments))
