"""One computation where XLA would make several: on a CPU it repeats a value in every fusion that reads it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def once(value: Any, count: Any) -> Any:
    """value, computed once.

    XLA removes optimization barriers and empty conditionals before it fuses; a conditional on a count that is never
    negative, which it cannot know, it keeps.

    Args:
        value: any tree of arrays.
        count: a traced integer ≥ 0, the number of a step say.
    """
    return jax.lax.cond(count >= 0, lambda v: v, lambda v: jax.tree.map(jnp.zeros_like, v), value)
