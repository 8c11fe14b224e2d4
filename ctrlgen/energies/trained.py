"""A trained energy in the data's own units, with what is needed to generate from it."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any, Literal

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from ctrlgen import datasets
from ctrlgen.energies.base import Energy, Properties
from ctrlgen.energies.neural import MLPEnergy
from ctrlgen.energies.spectral import above_root, down, up


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
        """The network's constants, in the data's units and about the data's origin.

        With S = diag(scale): ∇²E = S⁻¹ ∇²N S⁻¹. For an `MLPEnergy` N = net + ½c|y|² the confinement is c S⁻² exactly
        and net(S⁻¹x) has bounds of its own, which count the scale column by column. Dissipativity, with y = S⁻¹(x - o):
        for an `MLPEnergy`, ⟨x, ∇E⟩ ≥ k|x|² - (|c S⁻² o| + G)|x| with k = c / max scale² and |∇ net(S⁻¹·)| ≤ G;
        for any N about o = 0, ⟨x, ∇E⟩ = ⟨y, ∇N(y)⟩ ≥ a|y|² - b ≥ a|x|²/max scale² - b;
        for any N about another o, with u = S⁻¹o and |∇N(y)| ≤ g + K|y| from its Hessian bounds,
        ⟨x, ∇E⟩ = ⟨y + u, ∇N(y)⟩ ≥ (a/2)|y|² - b - |u|g - |u|²K²/(2a), and |y|² ≥ (|x|²/2 - |o|²)/max scale².
        """
        inner = self.network.properties
        least, largest = Fraction(float(self.scale.min())), Fraction(float(self.scale.max()))
        m, upper = inner.hessian_lower, inner.hessian_upper
        lowers = [] if m is None else [Fraction(m) / (largest if m >= 0 else least) ** 2]
        uppers = [] if upper is None else [Fraction(upper) / (least if upper >= 0 else largest) ** 2]
        slopes = [] if inner.gradient_bound is None else [Fraction(inner.gradient_bound) / least]
        dissipativity = None
        if isinstance(self.network, MLPEnergy) and inner != Properties():
            try:
                known, c = self.network.network_bounds(self.scale), Fraction(self.network.confinement)
            except ValueError:  # a scale beyond all measure
                return Properties()
            if known.hessian is not None:
                lowers.append(Fraction(known.hessian[0]) + c / largest**2)
                uppers.append(Fraction(known.hessian[1]) + c / least**2)
            if c == 0:
                slopes.append(Fraction(known.gradient))
            else:
                dissipativity = self._confined(c, known.gradient)
        elif inner.dissipativity is not None and inner.dissipativity[0] > 0:
            a, b = map(Fraction, inner.dissipativity)
            dissipativity = (down(a / largest**2), up(b)) if not self.center.any() else self._moved(a, b, inner)
        return Properties(
            hessian_lower=down(max(lowers)) if lowers else None,
            hessian_upper=up(min(uppers)) if uppers else None,
            dissipativity=dissipativity,
            gradient_bound=up(min(slopes)) if slopes else None,
            oscillation=inner.oscillation,
        )

    def _confined(self, confinement: Fraction, gradient: float) -> tuple[float, float]:
        """(a, b) from k|x|² - p|x| ≥ (k/2)|x|² - p²/(2k), with p = |c S⁻² center| + G."""
        k = confinement / Fraction(float(self.scale.max())) ** 2
        pulls = [
            confinement * Fraction(float(o)) / Fraction(float(s)) ** 2
            for o, s in zip(self.center, self.scale, strict=True)
        ]
        push = Fraction(_length(pulls)) + Fraction(gradient)
        return down(k / 2), up(push**2 / (2 * k))

    def _moved(self, a: Fraction, b: Fraction, inner: Properties) -> tuple[float, float] | None:
        """(a, b) about the data's origin, from those of the network about its own."""
        from ctrlgen.energies.algebra import slope_at_origin

        origin = slope_at_origin(self.network)
        if origin is None or inner.hessian_lower is None or inner.hessian_upper is None:
            return None
        growth = Fraction(max(abs(inner.hessian_lower), abs(inner.hessian_upper)))
        offset = [Fraction(float(o)) for o in self.center]
        u = Fraction(_length([o / Fraction(float(s)) for o, s in zip(offset, self.scale, strict=True)]))
        square = Fraction(float(self.scale.max())) ** 2
        b += u * Fraction(origin) + u**2 * growth**2 / (2 * a) + a * sum(o * o for o in offset) / (2 * square)
        return down(a / (4 * square)), up(b)

    def symbolic(self, states: Any = None):
        raise TypeError(f"{self.name!r} has no symbolic view: it is a network.")

    def __repr__(self) -> str:
        return f"TrainedEnergy({self.name!r}, {self.network!r}, temperature={self.temperature:g})"


def _length(vector: list[Fraction]) -> float:
    return above_root(sum((v * v for v in vector), Fraction(0)))
