"""A trained energy in the data's own units, with what is needed to generate from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from ctrlgen import datasets
from ctrlgen.energies.base import Energy, Properties


class TrainedEnergy(Energy):
    """E(x) = network((x - center) / scale): standardised inside, the data's own units outside.

    Its own closed loop is Langevin dynamics from `source` at `temperature`, in the metric diag(1/scale²), so
    that a step is the same in every column's units (`ClosedLoop.of`, `generate`).

    Args:
        network: the energy of standardised states.
        center, scale: (d,), scale positive [length].
        temperature: ε at which its Gibbs measure models the data [energy].
        step, duration: of its own closed loop [time].
        schedule: factor on the temperature over time; None for static.
        scheme: "euler" or "mala".
        source: "gaussian" (the standard normal, in standardised units) or a name in `ctrlgen.datasets`.
        name: what it is called.
    """

    network: Energy
    center: np.ndarray
    scale: np.ndarray
    schedule: Callable | None
    temperature: float = eqx.field(static=True)
    step: float = eqx.field(static=True)
    duration: float = eqx.field(static=True)
    scheme: Literal["euler", "mala"] = eqx.field(static=True)
    source_name: str = eqx.field(static=True)
    name: str = eqx.field(static=True)
    dim: int = eqx.field(static=True)

    def __init__(
        self,
        network: Energy,
        center: Any = None,
        scale: Any = None,
        *,
        temperature: float = 1.0,
        step: float = 0.01,
        duration: float = 5.0,
        schedule: Callable | None = None,
        scheme: Literal["euler", "mala"] = "euler",
        source: str = "gaussian",
        name: str = "trained",
    ):
        self.network, self.dim = network, network.dim
        self.center = np.zeros(self.dim) if center is None else np.asarray(center, np.float64)
        self.scale = np.ones(self.dim) if scale is None else np.asarray(scale, np.float64)
        for label, array in (("center", self.center), ("scale", self.scale)):
            if array.shape != (self.dim,) or not np.isfinite(array).all():
                raise ValueError(f"{label} must be {self.dim} finite numbers; got shape {array.shape}.")
        if (self.scale <= 0).any():
            raise ValueError(f"scale must be positive in every column; got {self.scale}.")
        for label, value in (("temperature", temperature), ("step", step), ("duration", duration)):
            if not (np.isfinite(value) and value > 0):
                raise ValueError(f"{label} must be positive and finite; got {value}.")
        if scheme not in ("euler", "mala"):
            raise ValueError(f"scheme must be 'euler' or 'mala'; got {scheme!r}.")
        if source != "gaussian" and datasets.get(source).dim != self.dim:
            raise ValueError(f"source {source!r} is not {self.dim}-dimensional.")
        self.temperature, self.step, self.duration = float(temperature), float(step), float(duration)
        self.schedule, self.scheme, self.source_name, self.name = schedule, scheme, source, name

    @property
    def source(self) -> Any:
        """The distribution that generation starts from, in the data's units."""
        if self.source_name == "gaussian":
            return datasets.Gaussian(self.center, np.diag(self.scale**2))
        return datasets.get(self.source_name)

    @property
    def metric(self) -> np.ndarray | None:
        """(d,): the diagonal of the metric in which its own closed loop runs; None when the scale is one."""
        return None if (self.scale == 1).all() else 1 / self.scale**2

    def _inside(self, x):
        column = (slice(None),) + (None,) * (x.ndim - 1)
        scale = jnp.asarray(self.scale, x.dtype)[column]
        return (x - jnp.asarray(self.center, x.dtype)[column]) / scale, scale

    @property
    def footprint(self) -> int:
        """That of its network."""
        return self.network.footprint

    def potential(self, x):
        return self.network.potential(self._inside(x)[0])

    def slope(self, x):
        y, scale = self._inside(x)
        return self.network.slope(y) / scale

    @property
    def properties(self) -> Properties:
        """The network's constants, in the data's units; dissipativity about the origin of the data."""
        inner, small, large = self.network.properties, float(self.scale.min()), float(self.scale.max())
        m, upper = inner.hessian_lower, inner.hessian_upper
        lower = None if m is None else m / (large if m >= 0 else small) ** 2
        upper = None if upper is None else upper / (small if upper >= 0 else large) ** 2
        dissipativity = inner.dissipativity if (self.center == 0).all() and (self.scale == 1).all() else None
        return Properties(hessian_lower=lower, hessian_upper=upper, dissipativity=dissipativity)

    def symbolic(self, states: Any = None):
        raise TypeError(f"{self.name!r} has no symbolic view: it is a network.")

    def __repr__(self) -> str:
        return f"TrainedEnergy({self.name!r}, {self.network!r}, temperature={self.temperature:g})"
