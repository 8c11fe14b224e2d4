"""The controller block: a static scalar energy E, which commands u = -∇E.

Inside, arrays are dimension-first: (d,) or (d, n), and `potential` maps them to () or (n,). The public
methods take (d,) and (n, d). NumPy input is evaluated in float64 and comes back as NumPy; a JAX array
keeps its type and stays traceable.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ctrlgen.estimate import Estimate
from ctrlgen.field import symbols
from ctrlgen.precision import float64

SMALLEST_BATCH = 16
UNROLLED_TRACE = 4
_FUNCTION = {"potential", "slope", "symbolic", "network"}  # what says which function an energy is
EXACT_LAPLACIAN_DIM = 64  # above this the Laplacian is estimated with random probes


@dataclass(frozen=True, kw_only=True)
class Properties:
    """What is established about an energy; None means "not established", never "false".

    Args:
        hessian_lower: m with ∇²E ⪰ m I everywhere [energy / length²].
        hessian_upper: L with ∇²E ⪯ L I everywhere [energy / length²].
        dissipativity: (a, b) with ⟨x, ∇E(x)⟩ ≥ a |x|² - b everywhere, a > 0 when the Gibbs measure is confined.
        gradient_bound: G with |∇E| ≤ G everywhere, a Lipschitz constant of E [energy / length].
        oscillation: a number that sup E - inf E does not exceed [energy].
    """

    hessian_lower: float | None = None
    hessian_upper: float | None = None
    dissipativity: tuple[float, float] | None = None
    gradient_bound: float | None = None
    oscillation: float | None = None

    def __post_init__(self) -> None:
        """A bound beyond the range of floats says nothing."""
        for name in ("hessian_lower", "hessian_upper", "dissipativity", "gradient_bound", "oscillation"):
            value = getattr(self, name)
            if value is not None and not np.isfinite(value).all():
                object.__setattr__(self, name, None)


class Energy(eqx.Module):
    """A static scalar energy E(x) without a time argument: the controller block u = -∇E.

    Callable on one state (d,) or a batch (n, d). Energies add (`E1 + E2`), scale (`0.5 * E1`) and negate.
    Subclasses define `dim` and `potential`; everything else is derived.
    """

    dim: eqx.AbstractVar[int]

    def __init_subclass__(cls, **options: Any) -> None:
        """What is established of a class here rests on its own function: another one needs a class of its own."""
        super().__init_subclass__(**options)
        if cls.__module__.startswith("ctrlgen.") or not _FUNCTION & set(vars(cls)):
            return
        for base in cls.__mro__[1:]:
            if issubclass(base, Energy) and base is not Energy and base.__module__.startswith("ctrlgen."):
                other = ", ".join(sorted(_FUNCTION & set(vars(cls))))
                raise TypeError(
                    f"{cls.__name__} gives {base.__name__} another {other}, but what is established of a "
                    f"{base.__name__} rests on its fields. Add a term with `+`, or subclass Energy."
                )

    @abstractmethod
    def potential(self, x: jax.Array) -> jax.Array:
        """E on dimension-first states: (d,) -> () or (d, n) -> (n,), in the type of x, JAX-traceable."""

    def slope(self, x: jax.Array) -> jax.Array:
        """∇E on dimension-first states, (d, ...) -> (d, ...). Autodiff unless a class knows better."""
        return jax.grad(lambda y: jnp.sum(self.potential(y)))(x)

    @property
    def properties(self) -> Properties:
        """Constants that are established for this energy; None where they are not."""
        return Properties()

    @property
    def footprint(self) -> int:
        """How many numbers one evaluation keeps per particle at a time: what has to fit a cache."""
        return self.dim

    @property
    def couples(self) -> bool:
        """Whether what it commands depends on the whole density, so that particles are not independent."""
        return False

    def log_partition(self, temperature: float) -> float | None:
        """log Z = log ∫ exp(-E/ε) where a closed form is known; None elsewhere."""
        return None

    def symbolic(self, states: Any = None) -> Any:
        """E as a SymPy expression of `states` (x1, ..., xd when omitted).

        Raises:
            TypeError: this energy has no formula (a network, a callable).
        """
        raise TypeError(f"{type(self).__name__} has no symbolic view: it is not given by a formula.")

    # The public views ------------------------------------------------------------------------------

    def __call__(self, x: Any) -> Any:
        """E: (d,) -> (), (n, d) -> (n,)."""
        return self._evaluate(_value, x)

    def gradient(self, x: Any) -> Any:
        """∇E: (d,) -> (d,), (n, d) -> (n, d)."""
        return self._evaluate(_slope, x)

    def hessian(self, x: Any) -> Any:
        """∇²E: (d,) -> (d, d), (n, d) -> (n, d, d)."""
        return self._evaluate(_curvature, x)

    def laplacian(self, x: Any) -> Any:
        """ΔE: (d,) -> (), (n, d) -> (n,). Exact for d ≤ 64; above, the value of `laplacian_estimate`."""
        if self.dim > EXACT_LAPLACIAN_DIM:
            return self.laplacian_estimate(x).value
        return self._evaluate(_trace, x)

    def laplacian_estimate(self, x: Any, probes: int = 64, key: int = 0) -> Estimate:
        """Hutchinson's estimate of ΔE with its standard error, from Rademacher probes.

        Args:
            x: (d,) or (n, d).
            probes: number of random vectors v in the mean of vᵀ∇²E v, at least 2.
            key: seed of the probes.

        Reference: Hutchinson, Commun. Stat. Simul. Comput. 19 (1990) 433.
        """
        if probes < 2:
            raise ValueError(f"probes must be at least 2, or there is no standard error; got {probes}.")
        signs = np.random.default_rng(key).choice([-1.0, 1.0], size=(probes, self.dim))
        return Estimate(*self._evaluate(_hutchinson, x, signs))

    def _evaluate(self, function: Callable, x: Any, *arguments: Any) -> Any:
        """Call a dimension-first function at the public boundary: layout, type and shape are settled here."""
        if isinstance(x, jax.Array):
            self._check(x.shape)
            out = function(self, x.T, *arguments)
            return jax.tree.map(lambda a: jnp.moveaxis(a, -1, 0), out) if x.ndim == 2 else out
        try:
            x = np.asarray(x, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"x must be an array of numbers; {error}.") from None
        self._check(x.shape)
        columns = np.atleast_2d(x).T
        n = columns.shape[1]
        if n == 0:
            raise ValueError("x must hold at least one state; got an array of shape (0, d).")
        # pad to a power of two: the number of compilations is logarithmic in n, and one state is a small batch
        size = max(SMALLEST_BATCH, 1 << (n - 1).bit_length())
        with float64():
            padded = jnp.asarray(np.pad(columns, ((0, 0), (0, size - n)), mode="edge"))
            out = jax.tree.map(np.asarray, _jitted(function, self, padded, *arguments))
        return jax.tree.map(lambda a: np.moveaxis(a[..., :n], -1, 0) if x.ndim == 2 else a[..., 0], out)

    def _check(self, shape: tuple[int, ...]) -> None:
        if len(shape) not in (1, 2) or shape[-1] != self.dim:
            raise ValueError(
                f"x must have shape ({self.dim},) or (n, {self.dim}) for this {self.dim}-dimensional "
                f"{type(self).__name__}; got shape {tuple(shape)}."
            )

    # The algebra of controller blocks ---------------------------------------------------------------

    def __add__(self, other: Any) -> Energy:
        from ctrlgen.energies.algebra import compose

        return compose([self, other]) if isinstance(other, Energy) else NotImplemented

    def __sub__(self, other: Any) -> Energy:
        from ctrlgen.energies.algebra import compose

        return compose([self, other], [1.0, -1.0]) if isinstance(other, Energy) else NotImplemented

    def __mul__(self, weight: Any) -> Energy:
        from ctrlgen.energies.algebra import compose

        return compose([self], [float(weight)]) if isinstance(weight, (int, float, np.number)) else NotImplemented

    __rmul__ = __mul__

    def __truediv__(self, weight: Any) -> Energy:
        return self * (1.0 / float(weight)) if isinstance(weight, (int, float, np.number)) else NotImplemented

    def __neg__(self) -> Energy:
        return self * -1.0


@eqx.filter_jit
def _jitted(function: Callable, energy: Energy, x: jax.Array, *arguments: Any) -> Any:
    return function(energy, x, *arguments)


def _value(energy: Energy, x: jax.Array) -> jax.Array:
    return energy.potential(x)


def _slope(energy: Energy, x: jax.Array) -> jax.Array:
    return energy.slope(x)


def _along(energy: Energy, x: jax.Array, direction: jax.Array) -> jax.Array:
    """∇²E v for one direction v (d,), at every state: (d, ...)."""
    v = jnp.broadcast_to(direction.reshape((-1,) + (1,) * (x.ndim - 1)), x.shape)
    return jax.jvp(energy.slope, (x,), (v,))[1]


def _curvature(energy: Energy, x: jax.Array) -> jax.Array:
    columns = jax.vmap(lambda v: _along(energy, x, v), out_axes=1)(jnp.eye(energy.dim, dtype=x.dtype))
    row, column = jnp.indices((energy.dim, energy.dim)).reshape(2, *(energy.dim, energy.dim), *(1,) * (x.ndim - 1))
    return jnp.where(row >= column, columns, jnp.swapaxes(columns, 0, 1))  # symmetric to the last bit


def _trace(energy: Energy, x: jax.Array) -> jax.Array:
    def entry(i: jax.Array) -> jax.Array:
        return _along(energy, x, jax.nn.one_hot(i, energy.dim, dtype=x.dtype))[i]

    if energy.dim <= UNROLLED_TRACE:
        return jnp.sum(jnp.stack([entry(jnp.asarray(i)) for i in range(energy.dim)]), axis=0)
    return jnp.sum(jax.lax.map(entry, jnp.arange(energy.dim)), axis=0)


def _hutchinson(energy: Energy, x: jax.Array, signs: Any) -> tuple[jax.Array, jax.Array]:
    signs = jnp.asarray(signs, x.dtype)
    draws = jax.lax.map(lambda v: jnp.tensordot(v, _along(energy, x, v), axes=1), signs)
    return jnp.mean(draws, axis=0), jnp.std(draws, axis=0, ddof=1) / jnp.sqrt(len(signs))


def default_states(states: Any, dim: int) -> tuple:
    """The given states as symbols, or x1, ..., xd."""
    out = symbols([f"x{i + 1}" for i in range(dim)] if states is None else states)
    if len(out) != dim:
        raise ValueError(f"states must name {dim} variables for this energy; got {len(out)}.")
    return out
