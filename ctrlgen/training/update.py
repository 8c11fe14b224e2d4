"""The compiled update: many steps of the optimiser in one call, and the state that they change."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from ctrlgen.training.objectives import Objective, Phase


class State(eqx.Module):
    """Everything that a step changes: weights, optimiser, running average of the weights, chains."""

    weights: Any
    optimiser: Any
    average: Any
    chains: Any


def trainable(leaf: Any) -> bool:
    """Whether training may change a leaf of an energy: JAX arrays of floating point, not NumPy's constants."""
    return isinstance(leaf, jax.Array) and eqx.is_inexact_array(leaf)


def traced(number: int) -> jax.Array:
    """As an array: a Python number would be static, and every call a compilation."""
    return jnp.asarray(number, jnp.int32)


def optimiser_of(objective: Objective) -> optax.GradientTransformation:
    """Adam or AdamW, with the objective's clipping and decay."""
    rate: Any = objective.learning_rate
    if objective.decay == "cosine":
        rate = optax.cosine_decay_schedule(rate, objective.length())
    adam = optax.adamw(rate, weight_decay=objective.weight_decay) if objective.weight_decay else optax.adam(rate)
    return optax.chain(optax.clip_by_global_norm(objective.clip), adam) if objective.clip else adam


@eqx.filter_jit
def advance(
    objective: Objective,
    phase: Phase,
    rest: Any,
    state: State,
    batches: Any,
    count: jax.Array,
    first: jax.Array,
    key: jax.Array,
) -> tuple[State, jax.Array]:
    """`count` updates from step `first`; the log is (block, 2 + terms): loss, gradient norm, terms."""
    optimiser = optimiser_of(objective)

    def loss(weights: Any, batch: Any, chains: Any, at: jax.Array) -> Any:
        value, aside = phase.loss(eqx.combine(weights, rest), batch, chains, jax.random.fold_in(key, at))
        return value, aside

    def body(i: jax.Array, carry: tuple[State, jax.Array]) -> tuple[State, jax.Array]:
        state, log = carry
        batch = jax.tree.map(lambda leaf: leaf[i], batches)
        (value, (terms, chains)), slope = jax.value_and_grad(loss, has_aux=True)(
            state.weights, batch, state.chains, first + i
        )
        updates, inner = optimiser.update(slope, state.optimiser, state.weights)
        weights = optax.apply_updates(state.weights, updates)
        average = state.average
        if objective.ema:
            # early on the plain mean, so that the random start is forgotten as fast as it can be
            number = (first + i).astype(jnp.float32)
            decay = jnp.minimum(objective.ema, (1.0 + number) / (10.0 + number))
            average = jax.tree.map(lambda a, w: w + decay * (a - w), average, weights)
        line = jnp.stack([value, optax.global_norm(slope), *terms]).astype(jnp.float32)
        return State(weights, inner, average, chains), log.at[i].set(line)

    log = jnp.zeros((phase.block, 2 + len(phase.terms)), jnp.float32)
    return jax.lax.fori_loop(0, count, body, (state, log))
