"""Energies that are networks. Inside, a batch is (d, n): each layer is one matrix product W @ x."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ctrlgen.energies.base import Energy, Properties

Activation = Literal["silu", "relu", "tanh", "softplus", "gelu"]
ACTIVATIONS: dict[str, Callable] = {
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "softplus": jax.nn.softplus,
    "gelu": jax.nn.gelu,
}
LIPSCHITZ = {"silu": 1.1, "relu": 1.0, "tanh": 1.0, "softplus": 1.0, "gelu": 1.13}  # sup |σ'|, rounded up


class MLPEnergy(Energy):
    """A multilayer perceptron with quadratic confinement: net(x) + ½ c |x|².

    The network is Lipschitz, so for c > 0 the confinement wins far out and the Gibbs measure exists.

    Args:
        dim: d >= 1.
        width: neurons of each hidden layer.
        depth: number of hidden layers.
        activation: one name, or one a hidden layer: "silu", "relu", "tanh", "softplus" or "gelu".
        confinement: c >= 0 [energy / length²]; with 0 nothing is said about the Gibbs measure.
        features: number of random Fourier features sin(ωx), cos(ωx) fed to the network beside x; 0 for none.
        bandwidth: standard deviation of the frequencies ω [1 / length].
        key: seed of the initial weights.

    Raises:
        ValueError: a size is not positive, or an activation is unknown.

    Reference: Tancik et al., Fourier Features Let Networks Learn High Frequency Functions, NeurIPS 2020.
    """

    weights: tuple[jax.Array, ...]
    biases: tuple[jax.Array, ...]
    frequencies: np.ndarray | None  # (features, d), not trained
    dim: int = eqx.field(static=True)
    activation: tuple[str, ...] = eqx.field(static=True)
    confinement: float = eqx.field(static=True)

    def __init__(
        self,
        dim: int,
        width: int = 128,
        depth: int = 3,
        activation: Activation | Sequence[Activation] = "silu",
        confinement: float = 0.1,
        features: int = 0,
        bandwidth: float = 1.0,
        key: int = 0,
    ):
        for name, value, least in (
            ("dim", dim, 1),
            ("width", width, 1),
            ("depth", depth, 1),
            ("features", features, 0),
        ):
            if not isinstance(value, (int, np.integer)) or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}; got {value!r}.")
        names = (activation,) * depth if isinstance(activation, str) else tuple(activation)
        unknown = sorted(set(names) - set(ACTIVATIONS))
        if unknown or len(names) != depth:
            raise ValueError(
                f"activation must be one of {list(get_args(Activation))}, or {depth} of them, one a hidden layer; "
                f"got {activation!r}."
            )
        for name, value in (("confinement", confinement), ("bandwidth", bandwidth)):
            if not (np.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be finite and not negative; got {value}.")
        rng = np.random.default_rng(key)
        sizes = [dim + 2 * features, *[width] * depth, 1]
        # uniform ±1/√fan-in, as torch and equinox initialise a linear layer
        bound = [1 / np.sqrt(k) for k in sizes[:-1]]
        pairs = list(zip(sizes[:-1], sizes[1:], bound, strict=True))
        self.weights = tuple(jnp.asarray(rng.uniform(-b, b, (o, i)), jnp.float32) for i, o, b in pairs)
        self.biases = tuple(jnp.asarray(rng.uniform(-b, b, o), jnp.float32) for _, o, b in pairs)
        self.frequencies = rng.normal(scale=bandwidth, size=(features, dim)).astype(np.float32) if features else None
        self.dim, self.activation, self.confinement = int(dim), names, float(confinement)

    def network(self, x: jax.Array) -> jax.Array:
        """The network alone: (d, ...) -> (...)."""
        y = x
        if self.frequencies is not None:
            phase = jnp.asarray(self.frequencies, x.dtype) @ x
            y = jnp.concatenate([x, jnp.sin(phase), jnp.cos(phase)])
        column = (slice(None),) + (None,) * (x.ndim - 1)
        for w, b, name in zip(self.weights[:-1], self.biases[:-1], self.activation, strict=True):
            y = ACTIVATIONS[name](w.astype(x.dtype) @ y + b.astype(x.dtype)[column])
        return jnp.tensordot(self.weights[-1][0].astype(x.dtype), y, axes=1) + self.biases[-1][0].astype(x.dtype)

    @property
    def footprint(self) -> int:
        """The widest layer."""
        return max(w.shape[1] for w in self.weights)

    def potential(self, x):
        return self.network(x) + (0.5 * self.confinement) * jnp.sum(x * x, axis=0)

    @property
    def properties(self) -> Properties:
        """Dissipativity from the confinement: |∇net| ≤ G (product of spectral norms), so a = c/2, b = G²/(2c)."""
        if self.confinement <= 0:
            return Properties()
        slope = float(np.prod([LIPSCHITZ[name] for name in self.activation]))
        for w in self.weights:
            slope *= float(np.linalg.norm(np.asarray(w, np.float64), 2)) * (1 + 1e-9)
        if self.frequencies is not None:
            omega = np.asarray(self.frequencies, np.float64)
            slope *= float(np.sqrt(1 + np.linalg.norm(omega, 2) ** 2)) * (1 + 1e-9)
        return Properties(dissipativity=(self.confinement / 2, slope**2 / (2 * self.confinement) * (1 + 1e-9)))

    def __repr__(self) -> str:
        sizes = "-".join(str(w.shape[1]) for w in self.weights) + "-1"
        names = "/".join(dict.fromkeys(self.activation))
        return f"MLPEnergy({sizes}, activation={names}, confinement={self.confinement:g})"
