"""Which floating-point type a computation runs in, whatever JAX's global flags are.

Nothing here changes global state: `float64()` is a context, entered where it is needed.
NumPy input is evaluated in float64; JAX arrays keep their own type.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import jax
import jax.experimental


def float64() -> AbstractContextManager:
    """A context in which JAX computes in float64; the user's own setting returns on exit."""
    if callable(getattr(jax, "enable_x64", None)):
        return jax.enable_x64(True)
    return getattr(jax.experimental, "enable_x64")(True)  # noqa: B009  (JAX before 0.9)
