"""What a network is trained for. An objective is frozen hyper-parameters and one or more phases; `fit` runs them.

Inside, everything is in standardised units and dimension-first (d, n). A phase draws its batches on the host from
a generator that belongs to the step, and computes its loss on the device; the chains that some losses need are
advanced by `plants.particles.evolve`, the function that samples from the trained energy.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ctrlgen.checks import positive
from ctrlgen.energies.base import Energy
from ctrlgen.plants.particles import Langevin, evolve
from ctrlgen.schedule import TransportRamp
from ctrlgen.training import quadrature
from ctrlgen.training.couplings import optimal_pairs
from ctrlgen.training.data import Feed

BORDER_MASS = 1e-3  # of the Gibbs measure, tolerated in the outermost cells of a quadrature

Decay = Literal["constant", "cosine"]
Batch = dict[str, np.ndarray]
Chains = Any  # a pytree of arrays that a phase carries from step to step, or None


@dataclass(frozen=True)
class Phase(ABC):
    """One loss, minimised for some steps. Hashable: it is a static argument of the compiled update."""

    name: ClassVar[str]
    terms: ClassVar[tuple[str, ...]] = ()  # what the loss reports beside its value
    steps: int
    block: int  # steps that one compiled call takes at most

    @abstractmethod
    def draw(self, feed: Feed, rng: np.random.Generator) -> Batch:
        """The host's part of one step: float32 arrays of fixed shapes."""

    def begin(self, feed: Feed, rng: np.random.Generator) -> Chains:
        """The chains before the first step."""
        return None

    @abstractmethod
    def loss(
        self, energy: Energy, batch: dict[str, jax.Array], chains: Chains, key: jax.Array
    ) -> tuple[jax.Array, tuple[tuple[jax.Array, ...], Chains]]:
        """Loss, its reported terms, and the chains after the step."""

    def report(self, energy: Energy, feed: Feed) -> str:
        """What is worth saying about the trained energy at the end."""
        return ""


@dataclass(frozen=True, kw_only=True)
class Objective(ABC):
    """What all objectives share: the optimiser.

    Args:
        batch: rows of data a step.
        learning_rate: of Adam.
        decay: "constant", or "cosine" from `learning_rate` to 0 over all the steps.
        clip: largest global norm of the gradient; 0 for no clipping.
        ema: decay of the exponential moving average of the weights, which is what is returned; 0 for none.
        weight_decay: of AdamW; 0 is Adam.
        temperature: ε at which the Gibbs measure is to model the data [energy]; None: that of the objective
            before it in a chain, or 1.
    """

    batch: int = 256
    learning_rate: float = 1e-3
    decay: Decay = "cosine"
    clip: float = 1.0
    ema: float = 0.999
    weight_decay: float = 0.0
    temperature: float | None = None

    name: ClassVar[str]
    quality: ClassVar[Literal["w2", "nll"]] = "w2"  # the held-out measure
    duration: ClassVar[float] = 5.0  # of the closed loop that generates, unless asked otherwise [time]

    def __post_init__(self) -> None:
        self._whole("batch", 1)
        for label in ("learning_rate",) + (() if self.temperature is None else ("temperature",)):
            self._positive(label)
        if self.decay not in get_args(Decay):
            raise ValueError(f"decay must be one of {list(get_args(Decay))}; got {self.decay!r}.")
        for label in ("clip", "weight_decay"):
            self._at_least(label, 0.0)
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be in [0, 1), 0 for none; got {self.ema}.")

    @abstractmethod
    def phases(self) -> tuple[Phase, ...]:
        """The phases in their order; they share one optimiser."""

    def schedule(self) -> Any:
        """The temperature schedule of the closed loop that generates from the result."""
        return None

    def check(self, dim: int) -> None:  # noqa: B027 (most have nothing to check)
        """Raise a ValueError when the objective cannot be used in `dim` dimensions."""

    def length(self) -> int:
        """Steps of all the phases."""
        return sum(phase.steps for phase in self.phases())

    def settings(self) -> dict[str, Any]:
        """Name and hyper-parameters, as they may be written to a file."""
        return {"objective": self.name, **{f.name: getattr(self, f.name) for f in fields(self)}}

    def _whole(self, label: str, least: int) -> None:
        value = getattr(self, label)
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise ValueError(f"{label} must be an integer of at least {least}; got {value!r}.")

    def _positive(self, label: str) -> None:
        positive(label, getattr(self, label))

    def _at_least(self, label: str, least: float) -> None:
        value = getattr(self, label)
        if not (isinstance(value, (int, float, np.number)) and math.isfinite(value) and value >= least):
            raise ValueError(f"{label} must be finite and at least {least:g}; got {value!r}.")


# Energy matching ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class EnergyMatching(Objective):
    """Energy Matching: one static energy that transports the source to the data and models it there.

    A flow phase fits -∇E(x_t) to x₁ - x₀ on straight paths between optimally coupled pairs; a joint phase adds the
    contrastive loss E(data) - E(negatives), with negatives from Langevin chains: half start at the data and are held
    at ε, half start at the source and see the temperature ramp from τ* to 1. The defaults are the paper's 2-D recipe.

    Args:
        flow_steps, joint_steps: length of the phases; either may be 0.
        sigma: noise on the paths [length, standardised].
        temperature: ε_max [energy].
        onset: τ*, when the ramp starts, in [0, 1).
        contrastive_weight: of the contrastive loss, beside 1 for the flow.
        langevin_steps, langevin_step: of the chains; their ramp spreads over all of them.

    Reference: Balcerak et al., Energy Matching, arXiv:2504.10612 (NeurIPS 2025), algorithms 1 and 2.
    """

    flow_steps: int = 20_000
    joint_steps: int = 2_000
    batch: int = 128
    learning_rate: float = 1e-4
    decay: Decay = "constant"
    clip: float = 0.0
    ema: float = 0.0
    sigma: float = 0.1
    temperature: float | None = 0.15
    onset: float = 0.8
    contrastive_weight: float = 2.0
    langevin_steps: int = 200
    langevin_step: float = 0.01

    name = "energy-matching"
    duration = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._whole("flow_steps", 0)
        self._whole("joint_steps", 0)
        self._whole("langevin_steps", 1)
        self._positive("langevin_step")
        self._at_least("sigma", 0.0)
        self._at_least("contrastive_weight", 0.0)
        if self.flow_steps + self.joint_steps == 0:
            raise ValueError("flow_steps and joint_steps must not both be 0.")
        if not 0 <= self.onset < 1:
            raise ValueError(f"onset must be in [0, 1); got {self.onset}.")
        if self.batch < 2:
            raise ValueError(f"batch must be at least 2, for the two halves of the negatives; got {self.batch}.")
        if self.temperature is None:
            object.__setattr__(self, "temperature", 0.15)

    def phases(self) -> tuple[Phase, ...]:
        flow = Flow(steps=self.flow_steps, block=64, batch=self.batch, sigma=self.sigma)
        joint = Joint(
            steps=self.joint_steps,
            block=max(1, 1000 // self.langevin_steps),
            batch=self.batch,
            sigma=self.sigma,
            onset=self.onset,
            weight=self.contrastive_weight,
            temperature=float(self.temperature or 0.15),
            chain_steps=self.langevin_steps,
            chain_step=self.langevin_step,
        )
        return tuple(phase for phase in (flow, joint) if phase.steps)

    def schedule(self) -> Any:
        return TransportRamp(self.onset, 1.0)


@dataclass(frozen=True)
class Flow(Phase):
    """Flow matching of a static energy on optimally coupled pairs."""

    name = "flow"
    batch: int
    sigma: float

    def draw(self, feed: Feed, rng: np.random.Generator) -> Batch:
        x0, x1 = optimal_pairs(rng, feed.noise(rng, self.batch), feed.batch(rng, self.batch))
        t = rng.random(self.batch, dtype=np.float32)
        noise = rng.standard_normal(x0.shape, dtype=np.float32)
        return {"place": x0 + t * (x1 - x0) + np.float32(self.sigma) * noise, "velocity": x1 - x0, "time": t}

    def misfit(self, energy: Energy, batch: dict[str, jax.Array]) -> jax.Array:
        """|-∇E(x_t) - (x₁ - x₀)|² / d, (n,)."""
        return jnp.mean((energy.slope(batch["place"]) + batch["velocity"]) ** 2, axis=0)

    def loss(self, energy, batch, chains, key) -> Any:
        return jnp.mean(self.misfit(energy, batch)), ((), chains)


class ChainSchedule(eqx.Module):
    """Factor on the temperature of Energy Matching's negatives, one a chain: 1 where held, a ramp elsewhere.

    The ramp sees the chain's time as a fraction of its whole duration, so that it ends at the full temperature.
    """

    held: jax.Array
    ramp: TransportRamp
    duration: float

    def __call__(self, t: Any) -> Any:
        return jnp.where(self.held, 1.0, self.ramp(t / self.duration))


@dataclass(frozen=True)
class Joint(Flow):
    """Flow matching that fades out over [τ*, 1], and the contrastive loss that takes over."""

    name = "joint"
    terms = ("flow", "contrastive")
    onset: float
    weight: float
    temperature: float
    chain_steps: int
    chain_step: float

    def draw(self, feed: Feed, rng: np.random.Generator) -> Batch:
        half = self.batch // 2
        positive = feed.batch(rng, self.batch)
        start = np.concatenate([feed.batch(rng, half), feed.noise(rng, self.batch - half)], axis=1)
        return {**super().draw(feed, rng), "positive": positive, "start": start}

    def negatives(self, energy: Energy, start: jax.Array, key: jax.Array) -> jax.Array:
        """The chains' ends, (d, n): the first half held at ε, the others ramped."""
        plant = Langevin(self.temperature, self.chain_step)
        held = jnp.arange(start.shape[1]) < self.batch // 2
        schedule = ChainSchedule(held, TransportRamp(self.onset, 1.0), self.chain_steps * self.chain_step)
        state = plant.begin(energy, start, key)
        return evolve(plant, energy, state, self.chain_steps, schedule).position

    def loss(self, energy, batch, chains, key):
        fade = jnp.clip((1.0 - batch["time"]) / (1.0 - self.onset), 0.0, 1.0)
        flow = jnp.mean(fade * self.misfit(energy, batch))
        negative = jax.lax.stop_gradient(self.negatives(_frozen(energy), batch["start"], key))
        contrast = _contrast(energy, batch["positive"], negative)
        return flow + self.weight * contrast, ((flow, contrast), chains)


# Score matching ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ScoreMatching(Objective):
    """Denoising score matching: -∇E/ε is fitted to the score of the data blurred by noise of deviation σ.

    The loss is |σ ∇E(x + σξ)/ε - ξ|²/d, whose minimiser is exactly the score of the blurred data. A range of σ, drawn
    log-uniformly, gives the static energy a gradient far from the data too, at the price of a compromise between
    the blurred densities near it.

    Args:
        steps: updates.
        sigma: σ, or (smallest, largest) [length, standardised].

    Reference: Vincent, A connection between score matching and denoising autoencoders, Neural Comput. 23 (2011).
    """

    steps: int = 5_000
    sigma: float | tuple[float, float] = 0.1

    name = "score-matching"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._whole("steps", 1)
        low, high = self.range
        if not 0 < low <= high < math.inf:
            raise ValueError(f"sigma must be positive, or (smallest, largest) in that order; got {self.sigma!r}.")
        object.__setattr__(self, "sigma", low if low == high else (low, high))

    @property
    def range(self) -> tuple[float, float]:
        """(smallest, largest) σ."""
        pair = np.atleast_1d(np.asarray(self.sigma, dtype=float))
        if pair.shape not in ((1,), (2,)):
            raise ValueError(f"sigma must be one number, or (smallest, largest); got {self.sigma!r}.")
        return float(pair[0]), float(pair[-1])

    def phases(self) -> tuple[Phase, ...]:
        low, high = self.range
        return (Denoise(self.steps, 64, self.batch, low, high, float(self.temperature or 1.0)),)


@dataclass(frozen=True)
class Denoise(Phase):
    """Denoising score matching."""

    name = "denoising"
    batch: int
    low: float
    high: float
    temperature: float

    def draw(self, feed: Feed, rng: np.random.Generator) -> Batch:
        x = feed.batch(rng, self.batch)
        level = np.exp(rng.uniform(math.log(self.low), math.log(self.high), self.batch)).astype(np.float32)
        noise = rng.standard_normal(x.shape, dtype=np.float32)
        return {"place": x + level * noise, "noise": noise, "level": level}

    def loss(self, energy, batch, chains, key):
        score = energy.slope(batch["place"]) / self.temperature
        return jnp.mean((batch["level"] * score - batch["noise"]) ** 2), ((), chains)


# Contrastive divergence --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ContrastiveDivergence(Objective):
    """Persistent contrastive divergence: E(data) - E(chains), with chains that live on between the steps.

    Args:
        steps: updates.
        chains: how many are kept; `batch` of them, drawn at random, are advanced in a step.
        langevin_steps, langevin_step: of the chains in a step.
        reinject: fraction of the advanced chains that start anew, half at the source and half at the data.
        regularisation: weight of the mean squared energies, which keeps them near zero; 0 for none.

    Reference: Tieleman, ICML 2008 (persistence); Du and Mordatch, arXiv:1903.08689 (reinjection, regularisation).
    """

    steps: int = 5_000
    chains: int = 4096
    langevin_steps: int = 20
    langevin_step: float = 0.01
    reinject: float = 0.05
    regularisation: float = 0.0

    name = "contrastive-divergence"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._whole("steps", 1)
        self._whole("langevin_steps", 1)
        self._positive("langevin_step")
        self._at_least("regularisation", 0.0)
        self._whole("chains", self.batch)
        if not 0 <= self.reinject <= 1:
            raise ValueError(f"reinject must be in [0, 1]; got {self.reinject}.")

    def phases(self) -> tuple[Phase, ...]:
        return (
            Persistent(
                steps=self.steps,
                block=max(1, 1000 // self.langevin_steps),
                batch=self.batch,
                kept=self.chains,
                temperature=float(self.temperature or 1.0),
                chain_steps=self.langevin_steps,
                chain_step=self.langevin_step,
                reinject=self.reinject,
                regularisation=self.regularisation,
            ),
        )


@dataclass(frozen=True)
class Persistent(Phase):
    """Persistent contrastive divergence; the chains carried are the buffer, (d, kept)."""

    name = "contrastive"
    terms = ("contrastive",)
    batch: int
    kept: int
    temperature: float
    chain_steps: int
    chain_step: float
    reinject: float
    regularisation: float

    def begin(self, feed: Feed, rng: np.random.Generator) -> Chains:
        half = self.kept // 2
        return jnp.asarray(np.concatenate([feed.batch(rng, self.kept - half), feed.noise(rng, half)], axis=1))

    def draw(self, feed: Feed, rng: np.random.Generator) -> Batch:
        fresh = rng.random(self.batch) < self.reinject
        source = rng.random(self.batch) < 0.5
        restart = np.where(source, feed.noise(rng, self.batch), feed.batch(rng, self.batch))
        rows = rng.choice(self.kept, size=self.batch, replace=False, shuffle=False).astype(np.int32)
        return {"positive": feed.batch(rng, self.batch), "restart": restart, "fresh": fresh, "rows": rows}

    def loss(self, energy, batch, chains, key):
        plant = Langevin(self.temperature, self.chain_step)
        frozen = _frozen(energy)
        start = jnp.where(batch["fresh"], batch["restart"], chains[:, batch["rows"]])
        state = plant.begin(frozen, start, key)
        negative = jax.lax.stop_gradient(evolve(plant, frozen, state, self.chain_steps).position)
        both = energy.potential(jnp.concatenate([batch["positive"], negative], axis=1))
        up, down = both[: self.batch], both[self.batch :]
        contrast = jnp.mean(up) - jnp.mean(down)
        penalty = self.regularisation * (jnp.mean(up**2) + jnp.mean(down**2)) / self.temperature
        return (contrast + penalty) / self.temperature, ((contrast,), chains.at[:, batch["rows"]].set(negative))


# Maximum likelihood ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class MaximumLikelihood(Objective):
    """Maximum likelihood in 1 to 3 dimensions, where log Z is a quadrature: no chains, no bias from them.

    The loss is the negative log-likelihood E(data)/ε + log ∫ exp(-E/ε), in nats and standardised units. The cells
    are even over the data and stretch geometrically beyond it to the bounds. A step evaluates the energy at `nodes`
    places, drawn from the cells in proportion to their Gibbs mass (and to wider densities, so that nothing hides)
    and weighted accordingly: the estimate of Z is unbiased, and its relative error of order 1/nodes.

    Args:
        steps: updates.
        points: cells an axis over the extent of the data; None: 512, 80, 28 in 1, 2, 3 dimensions.
        nodes: places a step; 0: one in every cell, all shifted alike.
        refresh: steps between two evaluations of the Gibbs mass of all cells.
        bounds: (2, d), corners of the box of integration in the data's own units; None: what holds the data and
            the source, widened by a quarter on each side.

    Raises:
        ValueError: in more than 3 dimensions, when training starts.
    """

    steps: int = 5_000
    batch: int = 512
    points: int | None = None
    nodes: int = 1024
    refresh: int = 16
    bounds: Any = None

    name = "maximum-likelihood"
    quality = "nll"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._whole("steps", 1)
        self._whole("nodes", 0)
        self._whole("refresh", 1)
        if self.points is not None:
            self._whole("points", 4)
        if self.bounds is not None:
            box = np.asarray(self.bounds, dtype=float)
            if box.ndim != 2 or box.shape[0] != 2 or not np.isfinite(box).all() or (box[0] >= box[1]).any():
                raise ValueError(f"bounds must be (2, d), lower corner below upper corner; got {self.bounds!r}.")
            object.__setattr__(self, "bounds", tuple(map(tuple, box.tolist())))

    def check(self, dim: int) -> None:
        if dim > 3:
            raise ValueError(
                f"MaximumLikelihood integrates over a grid and needs 1 to 3 dimensions; the data has {dim}. "
                "Use EnergyMatching, ScoreMatching or ContrastiveDivergence."
            )
        if self.bounds is not None and len(self.bounds[0]) != dim:
            raise ValueError(f"bounds must be (2, {dim}) for this data; got (2, {len(self.bounds[0])}).")

    def phases(self) -> tuple[Phase, ...]:
        phase = Likelihood(
            steps=self.steps,
            block=64,
            batch=self.batch,
            temperature=float(self.temperature or 1.0),
            points=self.points,
            nodes=self.nodes,
            refresh=self.refresh,
            bounds=self.bounds,
        )
        return (phase,)


@dataclass(frozen=True)
class Likelihood(Phase):
    """Negative log-likelihood with log Z by quadrature; carries the log Gibbs masses of the cells and their age."""

    name = "likelihood"
    terms = ("log_z",)
    batch: int
    temperature: float
    points: int | None
    nodes: int
    refresh: int
    bounds: Any

    def grid(self, feed: Feed) -> quadrature.StretchedGrid:
        points = self.points or {1: 512, 2: 80, 3: 28}[feed.dim]
        if self.bounds is None:
            low, high = feed.reach()
            low, high = low - 0.25 * (high - low), high + 0.25 * (high - low)
        else:
            low, high = (np.asarray(self.bounds) - feed.center) / feed.scale
        return quadrature.StretchedGrid.covering(feed.lower, feed.upper, low, high, points)

    def begin(self, feed: Feed, rng: np.random.Generator) -> Chains:
        return jnp.zeros(self.grid(feed).shape, jnp.float32), jnp.zeros((), jnp.int32)

    def draw(self, feed: Feed, rng: np.random.Generator) -> Batch:
        return {"positive": feed.batch(rng, self.batch), **self.grid(feed).numbers()}

    def loss(self, energy, batch, chains, key):
        table, age = chains
        if self.nodes:
            mass = jax.lax.cond(
                age % self.refresh == 0,
                lambda: self.log_mass(_frozen(energy), batch, table.shape),
                table.ravel,
            )
            probability = quadrature.proposal(mass)
            places, log_draws = quadrature.stratified(probability, table.shape, self.nodes, key)
            table = mass.reshape(table.shape)
        else:
            places = quadrature.corners(table.shape) + jax.random.uniform(key, (table.ndim, 1), jnp.float32)
            log_draws = 0.0
        x, log_volume = quadrature.place(batch, places)
        both = energy.potential(jnp.concatenate([batch["positive"], x], axis=1)) / self.temperature
        log_z = jax.scipy.special.logsumexp(log_volume - log_draws - both[self.batch :])
        return jnp.mean(both[: self.batch]) + log_z, ((log_z,), (table, age + 1))

    def log_mass(self, energy: Energy, grid: dict[str, Any], shape: tuple[int, ...]) -> jax.Array:
        """log of the Gibbs mass of every cell, by its middle, (cells,), up to log Z."""
        x, log_volume = quadrature.place(grid, quadrature.corners(shape) + 0.5)
        return log_volume - energy.potential(x) / self.temperature

    def negative_log_likelihood(self, energy: Energy, feed: Feed, x: jax.Array) -> float:
        """Mean of -log p over x (d, n), by every cell, in nats and in the data's own units."""
        grid = self.grid(feed)
        return float(_likelihood(self, energy, grid.numbers(), grid.shape, x)) + float(np.log(feed.scale).sum())

    def report(self, energy: Energy, feed: Feed) -> str:
        grid = self.grid(feed)
        mass = float(_border_mass(self, energy, grid.numbers(), grid.shape))
        if mass > BORDER_MASS:
            warnings.warn(
                f"{mass:.1e} of the Gibbs mass lies at the border of the quadrature (more than {BORDER_MASS:g}): "
                "log Z misses what is beyond. Widen bounds, or give the energy more confinement.",
                stacklevel=2,
            )
        return f"{mass:.1e} of the Gibbs mass lies at the border of the quadrature"


@eqx.filter_jit
def _likelihood(phase: Likelihood, energy: Energy, grid: Any, shape: tuple[int, ...], x: jax.Array) -> jax.Array:
    log_z = jax.scipy.special.logsumexp(phase.log_mass(energy, grid, shape))
    return jnp.mean(energy.potential(x)) / phase.temperature + log_z


@eqx.filter_jit
def _border_mass(phase: Likelihood, energy: Energy, grid: Any, shape: tuple[int, ...]) -> jax.Array:
    """Share of the Gibbs mass in the outermost cells of any axis."""
    mass = jax.nn.softmax(phase.log_mass(energy, grid, shape))
    k = quadrature.corners(shape)
    return jnp.sum(jnp.where(((k == 0) | (k == shape[0] - 1)).any(axis=0), mass, 0.0))


def _contrast(energy: Energy, positive: jax.Array, negative: jax.Array) -> jax.Array:
    """mean E(positive) - mean E(negative), in one pass through the network."""
    both = energy.potential(jnp.concatenate([positive, negative], axis=1))
    return jnp.mean(both[: positive.shape[1]]) - jnp.mean(both[positive.shape[1] :])


def _frozen(energy: Energy) -> Energy:
    """The same energy, through which no gradient flows to the weights."""
    return jax.tree.map(lambda leaf: jax.lax.stop_gradient(leaf) if eqx.is_inexact_array(leaf) else leaf, energy)


OBJECTIVES: dict[str, type[Objective]] = {
    kind.name: kind for kind in (EnergyMatching, ScoreMatching, ContrastiveDivergence, MaximumLikelihood)
}


def get(name: str, **settings: Any) -> Objective:
    """The objective of that name, with the given hyper-parameters.

    Raises:
        ValueError: there is none; the message lists what exists.
        TypeError: it has no such hyper-parameter.
    """
    if name not in OBJECTIVES:
        raise ValueError(f"Unknown objective {name!r}; there are {', '.join(sorted(OBJECTIVES))}.")
    return OBJECTIVES[name](**settings)
