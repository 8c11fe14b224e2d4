"""How the shipped models were made: one table of settings, and the command that makes any of them again.

python -m ctrlgen.recipes two_moons --seed 0
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ctrlgen import datasets
from ctrlgen.energies.neural import MLPEnergy
from ctrlgen.energies.trained import TrainedEnergy
from ctrlgen.estimate import Estimate
from ctrlgen.quality import Quality, measure_quality
from ctrlgen.schedule import Annealing
from ctrlgen.store import save_energy
from ctrlgen.training.fit import TrainingResult, train
from ctrlgen.training.objectives import MaximumLikelihood, Objective, ScoreMatching


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a shipped model is made of.

    Args:
        what: the data, in words, for the card.
        network: arguments of `MLPEnergy`.
        objectives: run one after the other.
        step, duration, scheme, schedule: of the closed loop that generates.
        temperature: of the closed loop, when not that of training.
        background: share of the training data, and its width in standard deviations of the data, that is drawn from
            a Gaussian about it, so that the energy is bounded and slopes towards the data where there is none.
        limits: for the card.
    """

    what: str
    network: dict[str, Any]
    objectives: tuple[Objective, ...]
    step: float
    duration: float
    scheme: str = "mala"
    schedule: Any = None
    temperature: float | None = None
    background: tuple[float, float] | None = None
    limits: tuple[str, ...] = field(default=())


class WithBackground(datasets.Distribution):
    """A distribution, a share of whose samples comes from a Gaussian of its mean and `width` times its deviation."""

    has_density = False

    def __init__(self, distribution: datasets.Distribution, share: float, width: float):
        rows = distribution.sample(0, 20_000)
        self.distribution, self.share = distribution, share
        self.background = datasets.Gaussian(rows.mean(axis=0), np.diag(rows.var(axis=0)) * width**2)
        super().__init__(distribution.name, distribution.bounds)

    def _draw(self, generator: np.random.Generator, n: int) -> np.ndarray:
        inside, outside = (d.sample(int(generator.integers(2**62)), n) for d in (self.distribution, self.background))
        return np.where(generator.random((n, 1)) < self.share, outside, inside)


def _likelihood(steps: int, rate: float = 5e-3, batch: int = 1024, **settings: Any) -> tuple[Objective, ...]:
    return (MaximumLikelihood(steps=steps, learning_rate=rate, batch=batch, **settings),)


# Smooth activations and no Fourier features: a network that can wiggle leaves shallow wells where there is no data,
# which hold particles back. The confinement bends it back to the source far out.
RECIPES: dict[str, Recipe] = {
    "checkerboard": Recipe(
        what="uniform on the dark squares of a board",
        network={"dim": 2, "width": 96, "depth": 3, "confinement": 1.0, "features": 32, "bandwidth": 2.25},
        objectives=_likelihood(4500, 4e-3, batch=2048, points=128, nodes=2048),
        step=0.01,
        duration=10.0,
        background=(5e-3, 1.2),
        limits=(
            "The edges of the squares are not sharp but a few hundredths wide.",
            "0.5 % of the training data is a Gaussian background, and so is that share of the Gibbs measure: without "
            "it the walls are so steep that particles outside cannot move.",
            "The last of those that start outside the board come in slowly: T is longer than elsewhere.",
        ),
    ),
    "digits": Recipe(
        what="handwritten digits, 8 × 8 pixels in [0, 1]",
        network={"dim": 64, "width": 320, "depth": 3, "confinement": 0.1},
        objectives=(ScoreMatching(sigma=(0.2, 2.5), steps=5000, learning_rate=2e-3),),
        step=0.01,
        duration=5.0,
        scheme="euler",
        temperature=0.7,
        limits=(
            "Trained at temperature 1, where its Gibbs measure is the digits under noise of every size; at 0.7 it "
            "concentrates on the smallest, 0.054 a pixel, which is visible as a grey grain, and on the more frequent "
            "pictures.",
            "Classes do not mix on this time scale: their shares are those that the source reaches.",
            "The sampling floor compares training pictures with the 297 held-out ones.",
        ),
    ),
    "eight_gaussians": Recipe(
        what="eight equal Gaussians on a circle",
        network={"dim": 2, "width": 64, "depth": 3, "confinement": 1.0},
        objectives=_likelihood(6000),
        step=0.02,
        duration=6.0,
        limits=(
            "At the static temperature neighbouring modes exchange mass in a few units of time: the source is "
            "symmetric and reaches all of them alike, which a source to one side would not.",
        ),
    ),
    "pinwheel": Recipe(
        what="five curved arms",
        network={"dim": 2, "width": 96, "depth": 3, "confinement": 1.0},
        objectives=_likelihood(5000, points=120),
        step=0.015,
        duration=4.5,
        schedule=Annealing(4.0, 3.0),
        limits=("The arms exchange mass slowly at temperature 1, so the loop starts four times hotter.",),
    ),
    "rings": Recipe(
        what="three concentric noisy circles",
        network={"dim": 2, "width": 64, "depth": 3, "confinement": 1.0},
        objectives=_likelihood(4000),
        step=0.015,
        duration=3.0,
        schedule=Annealing(4.0, 2.25),
        limits=("The rings exchange mass slowly at temperature 1, so the loop starts four times hotter.",),
    ),
    "two_moons": Recipe(
        what="two interleaved noisy half circles",
        network={"dim": 2, "width": 64, "depth": 3, "confinement": 1.0},
        objectives=_likelihood(4000),
        step=0.02,
        duration=3.0,
        schedule=Annealing(3.0, 2.25),
        limits=(
            "The two moons exchange mass slowly at temperature 1, so the loop starts three times hotter; a static "
            "loop has the right shares only because the source is placed symmetrically.",
            "For comparison, the official Energy Matching recipe (official code, its own tutorial data, which are "
            "sharper moons; energy at temperature 0.15): W₂ 0.32 at best, at T = 2, and 1.05 at T = 5, where the "
            "sampling floor is 0.073. Its KL was not measured: those data have no exact density.",
        ),
    ),
}


def names() -> tuple[str, ...]:
    """The models that have a recipe, sorted."""
    return tuple(sorted(RECIPES))


def get(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        ValueError: there is none; the message lists what exists.
    """
    if name not in RECIPES:
        raise ValueError(f"Unknown model {name!r}; there are recipes for {', '.join(names())}.")
    return RECIPES[name]


def command(name: str, seed: int = 0) -> str:
    """The command that makes the model."""
    return f"python -m ctrlgen.recipes {name} --seed {seed}"


def train_shipped(name: str, seed: int = 0, progress: bool = True) -> TrainingResult:
    """Train a shipped model again. The same machine, versions and seed give the same weights.

    Raises:
        ValueError: there is no recipe of that name.
    """
    recipe = get(name)
    network, data = MLPEnergy(**recipe.network, key=seed), training_data(name)
    result = train(
        # pixels have one unit, and some are always 0: one scale for all
        network
        if name != "digits"
        else TrainedEnergy(network, data.mean(axis=0), np.full(64, np.sqrt(data.var(axis=0).mean()))),
        data,
        objective=recipe.objectives,
        key=seed,
        progress=progress,
        name=name,
        step=recipe.step,
        duration=recipe.duration,
        scheme="euler" if recipe.scheme == "euler" else "mala",
        schedule=recipe.schedule,
    )
    if recipe.temperature is None:
        return result
    old = result.energy
    settings = {"step": old.step, "duration": old.duration, "schedule": old.schedule, "scheme": old.scheme}
    colder = TrainedEnergy(old.network, old.center, old.scale, temperature=recipe.temperature, name=name, **settings)
    return replace(result, energy=colder)


def training_data(name: str) -> Any:
    """What a shipped model is trained on: its distribution, or the rows of a table that are not held out."""
    distribution: Any = datasets.get(name)
    if not distribution.has_density:
        return distribution.train
    background = get(name).background
    return distribution if background is None else WithBackground(distribution, *background)


def quality_of(energy: Any, name: str, repeats: int = 8, progress: bool = False) -> Quality:
    """The quality of a shipped model, as on its card: 2000 points a W₂, or the rows that were held out."""
    distribution: Any = datasets.get(name)
    if distribution.has_density:
        return measure_quality(energy, distribution, repeats=repeats, progress=progress)
    held_out = distribution.held_out
    return measure_quality(
        energy, distribution, points=len(held_out), repeats=repeats, fresh=held_out, other=distribution.train,
        progress=progress,
    )  # fmt: skip


def card(result: TrainingResult, name: str, seed: int, quality: Quality) -> str:
    """The card of a shipped model, in Markdown, with its measured quality."""
    recipe, energy = get(name), result.energy
    weights = sum(w.size for w in (*energy.network.weights, *energy.network.biases))  # type: ignore[attr-defined]
    own = "" if quality.kl is None else "fresh "
    rows = [
        ("W₂ generated to data, at T", _number(quality.w2)),
        ("W₂ generated to data, at 5 T", _number(quality.w2_long)),
        (f"W₂ data to {own or 'training '}data (sampling floor)", _number(quality.floor)),
        ("W₂ / floor, at T", _number(quality.ratio)),
        ("W₂ / floor, at 5 T", _number(quality.ratio_long)),
    ]
    if quality.kl is not None and quality.kl_generated is not None and quality.kl_reverse is not None:
        reverse = f"{quality.kl_reverse:.4f}" if np.isfinite(quality.kl_reverse) else "inf (the data has sharp edges)"
        rows += [
            ("KL(data‖Gibbs) [nats]", f"{quality.kl:.4f}"),
            ("KL(Gibbs‖data) [nats]", reverse),
            ("KL(generated‖Gibbs) at T [nats]", _number(quality.kl_generated)),
        ]
    schedule = (
        "static temperature"
        if recipe.schedule is None
        else f"temperature from {recipe.schedule.start:g} times down to {energy.temperature:g} by "
        f"t = {recipe.schedule.duration:g}, then static"
    )
    held = "" if quality.kl is None else f", {quality.points} points against {quality.points} fresh ones"
    lines = [
        f"# {name}",
        "",
        f"A trained energy on R^{energy.dim} whose Gibbs measure is {recipe.what} (`cg.datasets.{name}`).",
        "",
        f"* Network: {energy.network!r}, {weights} weights, on standardised states.",
        f"* Closed loop: Langevin, scheme {energy.scheme}, step {energy.step:g}, from the standard normal, for "
        f"T = {energy.duration:g}; {schedule}.",
        *(f"* Trained by {_settings(objective)}." for objective in recipe.objectives),
        f"* Seed {seed}, {result.steps} steps, {result.seconds:.0f} s on two shared CPU cores.",
        "",
        "Made, and made again, by",
        "",
        "```",
        command(name, seed),
        "```",
        "",
        "## Quality",
        "",
        f"W₂ in the data's units, exact{held}; mean ± standard error of {quality.repeats} repeats.",
        "KL by quadrature, 640 × 640 nodes." if quality.kl is not None else "",
        "",
        "| quantity | value |",
        "|---|---|",
        *(f"| {label} | {value} |" for label, value in rows),
        "",
        "## Limits",
        "",
        *(f"* {limit}" for limit in recipe.limits),
        "* Trained on the CPU in float32; other machines and versions give other weights of the same quality.",
        "",
    ]
    return "\n".join(lines)


def _number(estimate: Estimate) -> str:
    return f"{estimate.value:.4f} ± {estimate.error:.4f}"


def _settings(objective: Objective) -> str:
    given = {k: v for k, v in objective.settings().items() if k != "objective" and v is not None}
    return f"{objective.name} ({', '.join(f'{k} {v}' for k, v in given.items())})"


def make(name: str, out: str | Path = "models", seed: int = 0, progress: bool = True) -> Path:
    """Train a shipped model, measure it, and write it with its card to `out`/`name`.

    Raises:
        ValueError: there is no recipe of that name.
        ArithmeticError: training diverged.
    """
    result = train_shipped(name, seed, progress)
    if result.status != "completed":
        raise ArithmeticError(f"training of {name} ended early: {result.message}")
    text = card(result, name, seed, quality_of(result.energy, name, progress=progress))
    return save_energy(result.energy, Path(out) / name, text, command=command(name, seed), seed=seed, overwrite=True)


def main(arguments: list[str] | None = None) -> None:
    """Make shipped models from the command line."""
    import argparse

    parser = argparse.ArgumentParser(prog="python -m ctrlgen.recipes", description="Make shipped models again.")
    parser.add_argument("names", nargs="+", choices=names(), help="which models")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="models", help="folder to write to")
    given = parser.parse_args(arguments)
    for name in given.names:
        print(make(name, given.out, given.seed) / "card.md")


if __name__ == "__main__":
    main()
