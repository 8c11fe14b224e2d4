"""What the command line does with a user's own table, each as one Python call: train a model, generate from it."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from ctrlgen import measure, store
from ctrlgen.energies.neural import MLPEnergy
from ctrlgen.energies.trained import TrainedEnergy
from ctrlgen.estimate import Estimate
from ctrlgen.loop import generate
from ctrlgen.tables import Table, check_output, read_table, write_table
from ctrlgen.training.fit import train
from ctrlgen.training.objectives import (
    ContrastiveDivergence,
    EnergyMatching,
    MaximumLikelihood,
    Objective,
    ScoreMatching,
)
from ctrlgen.training.result import TrainingResult

ObjectiveName = Literal["auto", "maximum-likelihood", "score-matching", "energy-matching", "contrastive-divergence"]
MOST_POINTS = 2000  # of a W₂, whose cost grows with the cube


@dataclass(frozen=True, kw_only=True)
class TrainingReport:
    """A model that was trained on a table and saved.

    Args:
        path: the model's folder.
        result: of the training.
        w2: between generated and held-out rows, in standardised units, so that every column counts alike.
        floor: between training and held-out rows, as many of each: what a perfect model would score.
        card: what was written about it.
    """

    path: Path
    result: TrainingResult
    w2: Estimate
    floor: Estimate
    card: str

    def plot(self, ax: Any = None) -> Any:
        """Draw the training: loss, phases and held-out quality, as `TrainingResult.plot` does."""
        return self.result.plot(ax)

    def __str__(self) -> str:
        return (
            f"{self.result.status}: {self.result.message}\n"
            f"W₂ of generated to held-out rows: {self.w2:.3g} (standardised); of training rows: {self.floor:.3g}\n"
            f"saved {self.path}; generate with: ctrlgen simulate {self.path.name}"
        )


def train_table(
    data: str | Path,
    name: str,
    *,
    objective: ObjectiveName = "auto",
    steps: int | None = None,
    seed: int = 0,
    width: int = 128,
    depth: int = 3,
    array: str | None = None,
    out: str | Path = "models",
    overwrite: bool = False,
    progress: bool = False,
) -> TrainingReport:
    """Train an energy on a table and save it as a model.

    A tenth of the rows (at most 2000) is held out to measure quality. Columns are standardised; the scaling and the
    header's names are kept in the model.

    Args:
        data: a .csv, .tsv, .txt, .npy or .npz file.
        name: of the model.
        objective: "auto": exact maximum likelihood in 1 to 3 dimensions, else score matching followed by
            contrastive divergence.
        steps: updates, of each objective; its own number when omitted.
        seed: of everything that is random.
        width, depth: of the network.
        array: which array of an .npz.
        out: the folder of models.
        overwrite: replace a model of that name.
        progress: show a bar with the loss.

    Raises:
        FileNotFoundError, ValueError: the table, the name or an option is refused, before any training.
        FileExistsError: there is a model of that name, and overwrite is False.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", name):
        raise ValueError(f"name must be letters, digits, '_', '-' and '.', not beginning with '.'; got {name!r}.")
    if objective not in get_args(ObjectiveName):
        raise ValueError(f"objective must be one of {', '.join(get_args(ObjectiveName))}; got {objective!r}.")
    folder = Path(out) / name
    store.check_target(folder, overwrite)
    table = read_table(data, array)
    count, dim = table.values.shape
    stages = _stages(objective, dim, steps)
    held_out = min(MOST_POINTS, count // 10)
    if held_out < 10:
        raise ValueError(f"{data} must have at least 100 rows to train on and to hold some out; it has {count}.")
    order = np.random.default_rng([seed, 77]).permutation(count)
    aside, rows = table.values[order[:held_out]], table.values[order[held_out:]]
    network = MLPEnergy(dim, width, depth, features=64 if dim <= 3 else 0, key=seed)
    result = train(network, rows, objective=stages, key=seed, held_out=aside, progress=progress, name=name)
    command = _command(data, name, objective, steps, seed, width, depth, array, out)
    w2, floor = _quality(result.energy, rows, aside, seed)
    card = _card(name, Path(data), table, result, command, w2, floor, held_out)
    path = store.save_energy(
        result.energy, folder, card, command=command, seed=seed, columns=table.columns, overwrite=overwrite
    )
    return TrainingReport(path=path, result=result, w2=w2, floor=floor, card=card)


def simulate_model(
    model: str | Path,
    n: int = 1000,
    out: str | Path = "samples.csv",
    *,
    seed: int = 0,
    duration: float | None = None,
    progress: bool = False,
) -> tuple[Path, Table]:
    """Generate n rows from a model, by its own closed loop, and write them as a table.

    Args:
        model: a name or path for `load_energy`, of a trained energy.
        n: how many rows.
        out: a .csv (with the names of the training table's columns, if they are known), .npy or .npz file.
        seed: of the source and the noise.
        duration: how long [time]; the energy's own when omitted.
        progress: show a progress bar.

    Returns:
        The file and what was written.

    Raises:
        ModelError, TypeError, ValueError: the model or an option is refused.
        DivergenceError: particles left the finite numbers.
    """
    check_output(out)
    energy = store.load_energy(model)
    if not isinstance(energy, TrainedEnergy):
        raise TypeError(
            f"model must be a trained energy, which knows its own closed loop; {model} is a {type(energy).__name__}."
        )
    names = store.load_config(model)["columns"]
    values = generate(energy, n, seed, duration=duration, progress=progress)
    table = Table(np.asarray(values), None if names is None else tuple(names))
    return write_table(out, table.values, table.columns), table


def summary(table: Table) -> str:
    """Mean, deviation and range of every column (of the first twelve)."""
    values = np.asarray(table.values, dtype=np.float64)
    names = table.columns or tuple(f"x{j + 1}" for j in range(values.shape[1]))
    lines: list[tuple[str, ...]] = [("column", "mean", "deviation", "smallest", "largest")]
    for name, column in list(zip(names, values.T, strict=True))[:12]:
        lines.append((name, *(f"{v:.4g}" for v in (column.mean(), column.std(), column.min(), column.max()))))
    widths = [max(len(line[j]) for line in lines) for j in range(5)]
    text = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    return "\n".join([*text, f"... and {len(names) - 12} more columns"] if len(names) > 12 else text)


def _stages(objective: str, dim: int, steps: int | None) -> list[Objective]:
    chains: dict[str, list[Objective]] = {
        "maximum-likelihood": [MaximumLikelihood()],
        "score-matching": [ScoreMatching()],
        "energy-matching": [EnergyMatching()],
        "contrastive-divergence": [ContrastiveDivergence()],
        "auto": [MaximumLikelihood()] if dim <= 3 else [ScoreMatching(sigma=(0.1, 1.0)), ContrastiveDivergence()],
    }
    chain = chains[objective]
    for stage in chain:
        stage.check(dim)
    if steps is None:
        return chain
    if isinstance(steps, bool) or steps < 1:
        raise ValueError(f"steps must be at least 1; got {steps}.")

    def shorter(stage: Objective) -> Objective:
        if isinstance(stage, EnergyMatching):  # ten flow steps to one joint step, as in the official recipe
            joint = max(1, steps // 11)
            return dataclasses.replace(stage, flow_steps=max(1, steps - joint), joint_steps=joint)
        return dataclasses.replace(stage, steps=steps)  # type: ignore[call-arg]

    return [shorter(stage) for stage in chain]


def _quality(energy: TrainedEnergy, rows: np.ndarray, aside: np.ndarray, seed: int) -> tuple[Estimate, Estimate]:
    n = len(aside)
    made = np.asarray(generate(energy, n, seed + 1), dtype=np.float64)
    some = rows[np.random.default_rng([seed, 78]).choice(len(rows), n, replace=False)]
    inside = [(x - energy.center) / energy.scale for x in (made, some, aside)]
    return measure.wasserstein2(inside[0], inside[2]), measure.wasserstein2(inside[1], inside[2])


def _command(data, name, objective, steps, seed, width, depth, array, out) -> str:
    """The command line that repeats this training."""
    words = ["ctrlgen", "train", str(data), "--name", name]
    for flag, value, default in (
        ("--objective", objective, "auto"),
        ("--steps", steps, None),
        ("--seed", seed, None),
        ("--width", width, 128),
        ("--depth", depth, 3),
        ("--array", array, None),
        ("--out", str(out), "models"),
    ):
        if value != default:
            words += [flag, str(value)]
    return shlex.join(words)


def _card(
    name: str, data: Path, table: Table, result: TrainingResult, command: str, w2: Estimate, floor: Estimate, aside: int
) -> str:
    count, dim = table.values.shape
    columns = "" if table.columns is None else f"\nColumns: {', '.join(table.columns)}.\n"
    digest = hashlib.sha256(data.read_bytes()).hexdigest()
    return f"""# {name}

An energy of {dim} dimensions, trained on {count - aside} rows of {data.name}.
{columns}
The table's SHA-256: `{digest}`. Reproduce with

```
{command}
```

| quality, on {aside} held-out rows | value |
|---|---|
| W₂ of generated rows (standardised) | {w2:.3g} |
| W₂ of training rows (the sampling floor) | {floor:.3g} |

Training: {result.status} after {result.steps} steps in {result.seconds:.0f} s: {result.message}
"""
