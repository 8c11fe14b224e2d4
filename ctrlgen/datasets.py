"""Distributions to sample from: Gaussians, synthetic 2-D shapes with exact densities, and the digits.

Every distribution has `.name`, `.dim`, `.bounds`, `.sample(key, n)` -> (n, d) and, where `.has_density`,
`.log_density(x)` in nats: all NumPy, float64. A key is an integer seed or a JAX key; the same key and n
give the same samples, and the order of the rows carries no information.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
from scipy.special import ive, logsumexp

_CHUNK = 8192  # points whose density is computed at once
_MOMENT_SAMPLE = 20_000  # rows that tell mean and deviations where these are not known; training takes the same
_HELD_OUT_SEED = 0  # of the permutation that splits the digits; a change would invalidate every card


class Distribution(ABC):
    """A distribution on R^d with samples and, where it is known, an exact normalised density.

    Args:
        name: the name under which `get` knows it.
        bounds: (2, d), lower and upper corners of a box that holds all but 1e-6 of the mass [length].
    """

    has_density: bool = True

    def __init__(self, name: str, bounds: Any) -> None:
        self.name = name
        self.bounds: np.ndarray = _frozen(bounds)

    @property
    def dim(self) -> int:
        """d, the number of coordinates."""
        return self.bounds.shape[1]

    def sample(self, key: Any, n: int) -> np.ndarray:
        """n independent samples, (n, d) float64, determined by the key.

        Args:
            key: an integer seed >= 0, or a JAX key.
            n: how many, at least 1. The first rows for a larger n need not agree.
        """
        if isinstance(n, bool) or int(n) != n or n < 1:
            raise ValueError(f"n must be an integer of at least 1; got {n!r}.")
        return self._draw(_generator(key), int(n))

    def log_density(self, x: Any) -> np.ndarray:
        """log of the normalised density [nats]: (d,) -> (), (n, d) -> (n,); -inf outside the support.

        Raises:
            TypeError: this distribution has no density that is known exactly.
            ValueError: x has another shape, or is not finite.
        """
        if not self.has_density:
            raise TypeError(f"{self!r} has no density that is known exactly: use its samples.")
        x = np.asarray(x, dtype=np.float64)
        if x.ndim not in (1, 2) or x.shape[-1] != self.dim:
            raise ValueError(f"x must have shape ({self.dim},) or (n, {self.dim}); got shape {x.shape}.")
        rows = np.atleast_2d(x)
        bad = ~np.isfinite(rows).all(axis=1)
        if bad.any():
            raise ValueError(f"x must be finite; {bad.sum()} rows are not, the first is row {bad.argmax()}.")
        parts = [self._log_density(rows[i : i + _CHUNK]) for i in range(0, len(rows), _CHUNK)]
        out = np.concatenate(parts) if parts else np.empty(0)
        return out if x.ndim == 2 else out[0]

    def standardised(self, center: Any = None, scale: Any = None) -> Standardised:
        """The distribution of (x - center) / scale: with mean 0 and standard deviation 1 in every coordinate.

        Mean and standard deviations are exact for Gaussians and for what `names()` lists but tutorial_moons; elsewhere
        they are those of `.sample(0, 20_000)`. A coordinate that does not vary keeps scale 1.

        Args:
            center: (d,) [length]; the mean when omitted.
            scale: (d,), positive [length]; the standard deviations when omitted. `.center` and `.scale` of a trained
                energy give the units that its network sees.

        Raises:
            ValueError: center or scale is not (d,) and finite, or scale is not positive.
        """
        mean, deviation = (None, None) if not (center is None or scale is None) else self._moments()
        return Standardised(self, mean if center is None else center, deviation if scale is None else scale)

    @abstractmethod
    def _draw(self, generator: np.random.Generator, n: int) -> np.ndarray: ...

    def _log_density(self, x: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def _moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each coordinate, (d,) both."""
        rows = self.sample(0, _MOMENT_SAMPLE)
        return rows.mean(axis=0), _varying(rows.mean(axis=0), rows.std(axis=0))

    def __repr__(self) -> str:
        return f"<{self.name}, {self.dim}-D>"


@dataclass(frozen=True, eq=False, repr=False)
class Gaussian(Distribution):
    """The normal distribution N(mean, covariance).

    Args:
        mean: (d,) [length]; a number is one dimension.
        covariance: (d, d), symmetric positive definite [length²]; a positive number means that times I.

    Raises:
        ValueError: mean is not (d,), or covariance is not symmetric positive definite.
    """

    mean: Any
    covariance: Any = 1.0

    def __post_init__(self) -> None:
        mean = np.atleast_1d(np.array(self.mean, dtype=np.float64))
        if mean.ndim != 1 or mean.size == 0 or not np.isfinite(mean).all():
            raise ValueError(f"mean must be a finite vector of shape (d,); got {self.mean!r}.")
        covariance = np.array(self.covariance, dtype=np.float64)
        if covariance.ndim == 0:
            covariance = covariance * np.eye(mean.size)
        check_covariance("covariance", covariance, mean.size)
        spread = 6.0 * np.sqrt(np.diag(covariance))
        object.__setattr__(self, "mean", _frozen(mean))
        object.__setattr__(self, "covariance", _frozen(covariance))
        object.__setattr__(self, "name", "gaussian")
        object.__setattr__(self, "bounds", _frozen([mean - spread, mean + spread]))

    @cached_property
    def _factor(self) -> np.ndarray:
        return np.linalg.cholesky(self.covariance)

    def _draw(self, generator: np.random.Generator, n: int) -> np.ndarray:
        return self.mean + generator.standard_normal((n, self.dim)) @ self._factor.T

    def _log_density(self, x: np.ndarray) -> np.ndarray:
        white = np.linalg.solve(self._factor, (x - self.mean).T)
        constant = self.dim / 2 * math.log(2 * math.pi) + np.log(np.diag(self._factor)).sum()
        return -0.5 * (white**2).sum(axis=0) - constant

    def _moments(self) -> tuple[np.ndarray, np.ndarray]:
        return self.mean, np.sqrt(np.diag(self.covariance))

    def __repr__(self) -> str:
        if self.dim > 4:
            return f"<Gaussian, {self.dim}-D>"
        return f"Gaussian(mean={self.mean.tolist()}, covariance={self.covariance.tolist()})"


@dataclass(frozen=True, eq=False, repr=False)
class Standardised(Distribution):
    """A distribution in other units, those of (x - center) / scale: what `Distribution.standardised` returns.

    The same key and n give the same samples, in these units; the density has the factor Π scale.

    Args:
        base: the distribution of x.
        center: (d,) [length of the base].
        scale: (d,), positive [length of the base].

    Raises:
        TypeError: base is not a `Distribution`.
        ValueError: center or scale is not (d,) and finite, or scale is not positive.
    """

    base: Distribution
    center: Any
    scale: Any

    def __post_init__(self) -> None:
        if not isinstance(self.base, Distribution):
            raise TypeError(f"base must be a Distribution; got {type(self.base).__name__}.")
        for name in ("center", "scale"):
            value = _frozen(getattr(self, name))
            if value.shape != (self.base.dim,) or not np.isfinite(value).all():
                raise ValueError(f"{name} must be finite, of shape ({self.base.dim},); got {getattr(self, name)!r}.")
            object.__setattr__(self, name, value)
        if (self.scale <= 0).any():
            raise ValueError(f"scale must be positive in every coordinate; got {self.scale}.")
        object.__setattr__(self, "name", f"{self.base.name}, standardised")
        object.__setattr__(self, "has_density", self.base.has_density)

    @property
    def dim(self) -> int:
        """d, the number of coordinates."""
        return self.base.dim

    @cached_property
    def bounds(self) -> np.ndarray:  # pyright: ignore[reportIncompatibleVariableOverride]
        """(2, d), the box of the base in these units."""
        return _frozen((self.base.bounds - self.center) / self.scale)

    def _draw(self, generator: np.random.Generator, n: int) -> np.ndarray:
        return (self.base._draw(generator, n) - self.center) / self.scale

    def _log_density(self, x: np.ndarray) -> np.ndarray:
        return self.base._log_density(x * self.scale + self.center) + np.log(self.scale).sum()

    def _moments(self) -> tuple[np.ndarray, np.ndarray]:
        mean, deviation = self.base._moments()
        return (mean - self.center) / self.scale, deviation / self.scale


class _GaussianCircle(Distribution):
    """Equal isotropic Gaussians whose centres are evenly spaced on a circle about the origin."""

    def __init__(self, name: str, radius: float, variance: float, count: int = 8) -> None:
        angles = 2 * math.pi * np.arange(count) / count
        self.centres = _frozen(radius * np.stack([np.cos(angles), np.sin(angles)], axis=1))
        self.variance = variance
        reach = radius + 5 * math.sqrt(variance)
        super().__init__(name, [[-reach, -reach], [reach, reach]])

    def _draw(self, generator: np.random.Generator, n: int) -> np.ndarray:
        centres = self.centres[generator.integers(len(self.centres), size=n)]
        return centres + math.sqrt(self.variance) * generator.standard_normal((n, 2))

    def _log_density(self, x: np.ndarray) -> np.ndarray:
        distance = ((x[:, None, :] - self.centres) ** 2).sum(axis=2)
        constant = math.log(2 * math.pi * self.variance * len(self.centres))
        return np.asarray(logsumexp(-distance / (2 * self.variance), axis=1)) - constant

    def _moments(self) -> tuple[np.ndarray, np.ndarray]:
        return self.centres.mean(axis=0), np.sqrt(self.centres.var(axis=0) + self.variance)


class _TwoMoons(Distribution):
    """Two interleaved half circles, uniform in arc length, with isotropic Gaussian noise.

    The curves are scikit-learn's `make_moons`, (cos θ, sin θ) and (1 - cos θ, ½ - sin θ), mapped by
    x -> 3x - 1. The density is a 1-D integral over θ by Gauss-Legendre quadrature: relative error below
    1e-10 within 20 of the origin.
    """

    radius, noise = 3.0, 0.3
    centres = ((-1.0, -1.0, 1.0), (2.0, 0.5, -1.0))  # x, y, and the sign that turns the half circle over

    def __init__(self, name: str, nodes: int = 160) -> None:
        node, weight = np.polynomial.legendre.leggauss(nodes)
        angle = math.pi * (node + 1) / 2
        self._points = np.concatenate([self._arc(angle, *centre) for centre in self.centres])
        self._log_weights = np.log(np.tile(weight / 4, 2))  # Σ weight = 2 on each of two arcs
        super().__init__(name, [[-5.5, -4.0], [6.5, 3.5]])

    def _arc(self, angle: np.ndarray, x: float, y: float, sign: float) -> np.ndarray:
        return np.stack([x + self.radius * sign * np.cos(angle), y + self.radius * sign * np.sin(angle)], axis=1)

    def _draw(self, generator: np.random.Generator, n: int) -> np.ndarray:
        angle = generator.uniform(0, math.pi, n)
        x, y, sign = np.array(self.centres)[generator.integers(2, size=n)].T
        clean = np.stack([x + self.radius * sign * np.cos(angle), y + self.radius * sign * np.sin(angle)], axis=1)
        return clean + self.noise * generator.standard_normal((n, 2))

    def _log_density(self, x: np.ndarray) -> np.ndarray:
        p, variance = self._points, self.noise**2
        exponent = (x @ p.T - 0.5 * (p**2).sum(axis=1)) / variance + self._log_weights
        top = exponent.max(axis=1)
        inside = top + np.log(np.exp(exponent - top[:, None]).sum(axis=1))
        return inside - 0.5 * (x**2).sum(axis=1) / variance - math.log(2 * math.pi * variance)

    def _moments(self) -> tuple[np.ndarray, np.ndarray]:
        weights = np.exp(self._log_weights)
        mean = weights @ self._points
        return mean, np.sqrt(weights @ (self._points - mean) ** 2 + self.noise**2)


class _Rings(Distribution):
    """Concentric circles with isotropic Gaussian noise, each with mass in proportion to its circumference.

    The density of a noisy circle is a Bessel function: exp(-(r² + R²) / 2σ²) I₀(rR/σ²) / 2πσ².
    """

    def __init__(self, name: str, radii: tuple[float, ...], noise: float) -> None:
        self.radii = _frozen(radii)
        self.weights = _frozen(self.radii / self.radii.sum())
        self.noise = noise
        reach = max(radii) + 5 * noise
        super().__init__(name, [[-reach, -reach], [reach, reach]])

    def _draw(self, generator: np.random.Generator, n: int) -> np.ndarray:
        radius = generator.choice(self.radii, size=n, p=self.weights)
        angle = generator.uniform(0, 2 * math.pi, n)
        clean = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        return clean + self.noise * generator.standard_normal((n, 2))

    def _log_density(self, x: np.ndarray) -> np.ndarray:
        r, variance = np.hypot(x[:, 0], x[:, 1])[:, None], self.noise**2
        terms = -((r - self.radii) ** 2) / (2 * variance) + np.log(self.weights * ive(0, r * self.radii / variance))
        return np.asarray(logsumexp(terms, axis=1)) - math.log(2 * math.pi * variance)

    def _moments(self) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(2), np.full(2, math.sqrt(self.weights @ self.radii**2 / 2 + self.noise**2))


class _Checkerboard(Distribution):
    """Uniform on the eight dark squares, of side 2, of the board [-4, 4)²: floor(x/2) + floor(y/2) even."""

    def __init__(self, name: str) -> None:
        super().__init__(name, [[-4.0, -4.0], [4.0, 4.0]])

    def _draw(self, generator: np.random.Generator, n: int) -> np.ndarray:
        column, half = generator.integers(4, size=n), generator.integers(2, size=n)
        corner = np.stack([column - 2, 2 * half - 2 + column % 2], axis=1)
        return 2.0 * (corner + generator.random((n, 2)))

    def _log_density(self, x: np.ndarray) -> np.ndarray:
        dark = np.floor(x / 2).sum(axis=1) % 2 == 0
        inside = ((x >= -4) & (x < 4)).all(axis=1)
        return np.where(dark & inside, -math.log(32.0), -np.inf)

    def _moments(self) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(2), np.full(2, 8.0 / math.sqrt(12.0))  # both coordinates are uniform on [-4, 4)


class _Pinwheel(Distribution):
    """Five curved arms: Gaussian spokes twisted by an angle that grows with the radius, times 2.

    A feature f ~ N((1, 0), diag(0.3², 0.1²)) is rotated by 2πk/5 + 0.25 exp|f|. The angle depends on the
    radius alone, so the twist preserves area and the density is the Gaussian's at the untwisted point.
    (The usual construction takes f₁ for |f|, which has no closed density; the arms look the same.)

    Reference: Johnson et al., Composing graphical models with neural networks (NeurIPS 2016).
    """

    arms, rate, scale = 5, 0.25, 2.0
    centre, spread = np.array([1.0, 0.0]), np.array([0.3, 0.1])

    def __init__(self, name: str) -> None:
        super().__init__(name, [[-5.5, -5.5], [5.5, 5.5]])

    def _turned(self, f: np.ndarray, arm: Any, sign: int) -> np.ndarray:
        angle = sign * (2 * math.pi * arm / self.arms + self.rate * np.exp(np.hypot(f[:, 0], f[:, 1])))
        c, s = np.cos(angle), np.sin(angle)
        return np.stack([c * f[:, 0] - s * f[:, 1], s * f[:, 0] + c * f[:, 1]], axis=1)

    def _draw(self, generator: np.random.Generator, n: int) -> np.ndarray:
        feature = self.centre + self.spread * generator.standard_normal((n, 2))
        return self.scale * self._turned(feature, generator.integers(self.arms, size=n), 1)

    def _log_density(self, x: np.ndarray) -> np.ndarray:
        feature = x / self.scale
        white = [(self._turned(feature, k, -1) - self.centre) / self.spread for k in range(self.arms)]
        constant = math.log(2 * math.pi * self.spread.prod() * self.scale**2 * self.arms)
        return np.asarray(logsumexp([-0.5 * (w**2).sum(axis=1) for w in white], axis=0)) - constant

    def _moments(self) -> tuple[np.ndarray, np.ndarray]:
        square = (self.centre**2 + self.spread**2).sum()  # of the radius, which turning leaves as it is
        return np.zeros(2), np.full(2, self.scale * math.sqrt(square / 2))


class _TutorialMoons(Distribution):
    """The target of the Energy Matching 2-D tutorial: two arcs, each point shifted along the diagonal.

    Angles are evenly spaced over [0, π] (not random); each point gets one U[0, 0.2] shift, the same in x
    and y; then x -> 3x - 1. The law depends on n and has no density that is known exactly.

    Reference: Balcerak et al., Energy Matching, arXiv:2504.10612, tutorial.
    """

    has_density = False

    def __init__(self, name: str) -> None:
        super().__init__(name, [[-4.0, -2.5], [5.6, 2.6]])

    def _draw(self, generator: np.random.Generator, n: int) -> np.ndarray:
        outer, inner = np.linspace(0, math.pi, n // 2), np.linspace(0, math.pi, n - n // 2)
        x = np.concatenate([np.cos(outer), 1 - np.cos(inner)])
        y = np.concatenate([np.sin(outer), 1 - np.sin(inner) - 0.5])
        points = (np.stack([x, y], axis=1) + 0.2 * generator.random((n, 1))) * 3 - 1
        return points[generator.permutation(n)]


class _Digits(Distribution):
    """scikit-learn's handwritten digits: 1797 pictures of 8 × 8 pixels in [0, 1], as rows of 64.

    `.sample` draws rows of `.data` with replacement. `.train` (1500 rows) and `.held_out` (297 rows) are a
    fixed random split of `.data`, the same on every machine.

    Raises:
        ImportError: scikit-learn is not installed; from every attribute that needs the table.
    """

    has_density = False

    def __init__(self, name: str) -> None:
        super().__init__(name, np.repeat([[0.0], [1.0]], 64, axis=1))

    @cached_property
    def data(self) -> np.ndarray:
        """(1797, 64), in [0, 1]."""
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise ImportError('The digits come with scikit-learn: pip install "ctrlgen[digits]".') from None
        return _frozen(np.asarray(load_digits(return_X_y=True)[0]) / 16.0)

    @cached_property
    def _order(self) -> np.ndarray:
        return np.random.default_rng(_HELD_OUT_SEED).permutation(len(self.data))

    @property
    def train(self) -> np.ndarray:
        """(1500, 64)."""
        return self.data[self._order[:1500]]

    @property
    def held_out(self) -> np.ndarray:
        """(297, 64), disjoint from `train`."""
        return self.data[self._order[1500:]]

    def _draw(self, generator: np.random.Generator, n: int) -> np.ndarray:
        return self.data[generator.integers(len(self.data), size=n)]

    def _moments(self) -> tuple[np.ndarray, np.ndarray]:
        return self.data.mean(axis=0), _varying(self.data.mean(axis=0), self.data.std(axis=0))


def get(name: str) -> Distribution:
    """The distribution of that name.

    Raises:
        ValueError: there is none; the message lists what exists.
    """
    if name not in names():
        raise ValueError(f"Unknown dataset {name!r}; there are {', '.join(names())}.")
    return _registry()[name]


def names() -> tuple[str, ...]:
    """The names that `get` knows, sorted."""
    return tuple(sorted(_registry()))


@cache
def _registry() -> dict[str, Distribution]:
    return {value.name: value for value in globals().values() if isinstance(value, Distribution)}


def check_covariance(label: str, covariance: np.ndarray, dim: int) -> None:
    """Raise a ValueError that says why `covariance` is not a (dim, dim) symmetric positive definite matrix."""
    if covariance.shape != (dim, dim):
        raise ValueError(f"{label} must have shape ({dim}, {dim}), as the mean has; got shape {covariance.shape}.")
    if not np.isfinite(covariance).all():
        raise ValueError(f"{label} must be finite; {np.sum(~np.isfinite(covariance))} entries are not.")
    skew = np.abs(covariance - covariance.T).max()
    if skew > 1e-10 * np.abs(covariance).max():
        raise ValueError(
            f"{label} must be symmetric; largest |C - C.T| is {skew:.1e}. Pass (C + C.T) / 2 if the skew part is "
            "not meant."
        )
    lowest = np.linalg.eigvalsh(covariance)[0]
    if lowest <= 1e-14 * np.abs(covariance).max():
        raise ValueError(f"{label} must be positive definite; its smallest eigenvalue is {lowest:.1e}.")


def _generator(key: Any) -> np.random.Generator:
    if isinstance(key, int | np.integer) and not isinstance(key, bool):
        if key < 0:
            raise ValueError(f"key must be an integer seed of at least 0, or a JAX key; got {key}.")
        return np.random.default_rng(int(key))
    import jax
    import jax.numpy as jnp
    from jax.core import Tracer

    if not isinstance(key, jax.Array) or isinstance(key, Tracer):
        raise TypeError(f"key must be an integer seed or a concrete JAX key; got {type(key).__name__}.")
    words = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    if words.ndim != 1:
        raise ValueError(f"key must be one JAX key; got an array of shape {key.shape}.")
    return np.random.default_rng([*np.asarray(words).tolist(), words.size])  # never the stream of an integer seed


def _varying(mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """The standard deviations, with 1 where they are rounding alone."""
    return np.where(deviation <= 1e-12 * np.maximum(np.abs(mean), 1e-300), 1.0, deviation)


def _frozen(values: Any) -> np.ndarray:
    out = np.array(values, dtype=np.float64)
    out.flags.writeable = False
    return out


eight_gaussians = _GaussianCircle("eight_gaussians", radius=4.0, variance=0.25)
two_moons = _TwoMoons("two_moons")
rings = _Rings("rings", radii=(1.0, 2.25, 3.5), noise=0.2)
checkerboard = _Checkerboard("checkerboard")
pinwheel = _Pinwheel("pinwheel")
tutorial_moons = _TutorialMoons("tutorial_moons")
tutorial_gaussians = _GaussianCircle("tutorial_gaussians", radius=5.0, variance=math.sqrt(0.1))
digits = _Digits("digits")
