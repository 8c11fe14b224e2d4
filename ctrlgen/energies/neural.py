"""Energies that are networks. Inside, a batch is (d, n): each layer is one matrix product W @ x."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ctrlgen.energies.base import Energy, Properties
from ctrlgen.energies.network_bounds import NetworkBounds, Parameters, network_bounds
from ctrlgen.energies.spectral import down, up

Activation = Literal["silu", "relu", "tanh", "softplus", "gelu"]
ACTIVATIONS: dict[str, Callable] = {
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "softplus": jax.nn.softplus,
    "gelu": jax.nn.gelu,
}


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

    def network_bounds(self, scale: Any = None) -> NetworkBounds:
        """Bounds of the first and second derivative of the network alone, over all states.

        Args:
            scale: (d,): of x ↦ network(x / scale) instead.

        Raises:
            ValueError: a weight is not finite, or the bounds are beyond the range of floats.
        """
        return network_bounds(self.parameters(scale))

    def parameters(self, scale: Any = None) -> Parameters:
        """The numbers of the network, as `ctrlgen.energies.network_bounds` takes them."""
        return Parameters([np.asarray(w) for w in self.weights], self.frequencies, self.activation, scale)

    @property
    def is_finite(self) -> bool:
        """Are all numbers of the network finite? It is a function of the state only then."""
        arrays = (*self.weights, *self.biases, *(() if self.frequencies is None else (self.frequencies,)))
        return all(bool(np.isfinite(np.asarray(a)).all()) for a in arrays)

    @property
    def network_gradient_bound(self) -> float:
        """G with |∇network| ≤ G everywhere [energy / length]."""
        return self.network_bounds().gradient

    @property
    def oscillation_bound(self) -> float | None:
        """What sup network - inf network does not exceed, where the last activation is tanh; None elsewhere."""
        if self.activation[-1] != "tanh":
            return None
        return up(2 * sum(Fraction(float(abs(w))) for w in np.asarray(self.weights[-1], np.float64)[0]))

    @property
    def properties(self) -> Properties:
        """From the network's bounds and the confinement.

        With |∇network| ≤ G: ⟨x, ∇E⟩ ≥ c|x|² - G|x| ≥ (c/2)|x|² - G²/(2c), and ∇²E lies within the network's bounds
        shifted by c. A network of "relu" has kinks: no Hessian bounds.
        """
        if not self.is_finite:
            return Properties()
        try:
            known, c = self.network_bounds(), Fraction(self.confinement)
        except ValueError:
            return Properties()
        lower, upper = (None, None) if known.hessian is None else map(Fraction, known.hessian)
        return Properties(
            hessian_lower=None if lower is None else down(c + lower),
            hessian_upper=None if upper is None else up(c + upper),
            dissipativity=(self.confinement / 2, up(Fraction(known.gradient) ** 2 / (2 * c))) if c > 0 else None,
            gradient_bound=known.gradient if c == 0 else None,
            oscillation=self.oscillation_bound if c == 0 else None,
        )

    def __repr__(self) -> str:
        sizes = "-".join(str(w.shape[1]) for w in self.weights) + "-1"
        names = "/".join(dict.fromkeys(self.activation))
        return f"MLPEnergy({sizes}, activation={names}, confinement={self.confinement:g})"
