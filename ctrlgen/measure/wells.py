"""Where the mass of exp(-E/ε) may be, before particles go there: its scale, its wells, and whether it is integrable."""

from __future__ import annotations

import math

import numpy as np

from ctrlgen.energies.base import Energy

_AROUND, _DESCENTS = 2.0 ** np.arange(-1, 7), 32  # widths from the origin at which wells are looked for; from each
_DEEP = 30.0  # E/ε above the lowest well, and 2 a dimension, up to which a well counts
_TURNS = 20  # of the directions at each distance
_FAR = 2.0 ** np.arange(4, 11)  # of its width: how far out the energy must rise
_MOST = 48  # wells that are told apart
_HIGH = 3.0  # barrier between two wells, E/ε, above which they are two
_SEGMENT = np.arange(1, 16) / 16  # where a barrier is looked for


def no_gibbs(why: str) -> ValueError:
    return ValueError(f"exp(-E/ε) may have no Gibbs measure: {why}. Confine the energy.")


def width(energy: Energy, temperature: float) -> float:
    """Of the isotropic Gaussian about the origin that is nearest to the Gibbs measure in KL, to a factor of 2."""
    z = np.random.default_rng(0).standard_normal((64, energy.dim))
    scales = 2.0 ** np.arange(-12, 13)
    with np.errstate(all="ignore"):
        heights = np.array([np.asarray(energy(s * z)) for s in scales]) / temperature
    alive = np.isfinite(heights)
    share = np.maximum(alive.sum(axis=1), 1) / len(z)
    heights = np.where(alive.any(axis=1), np.where(alive, heights, 0.0).mean(axis=1) / share - np.log(share), np.inf)
    if not np.isfinite(heights).any():
        raise ValueError(
            f"energy is not finite on Gaussians about the origin of widths {scales[0]:.2g} to {scales[-1]:g}, which is "
            "where annealing starts. Mend it there, or move it there."
        )
    return float(scales[np.argmin(np.where(np.isfinite(heights), heights - energy.dim * np.log(scales), np.inf))])


def wells(energy: Energy, temperature: float, width: float) -> np.ndarray:
    """Where descents from many distances to the origin end, the lowest of them, lowest first; (k, d), may be none."""
    d = energy.dim
    starts = np.random.default_rng(1).standard_normal((len(_AROUND), _DESCENTS, d)) * width * _AROUND[:, None, None]
    return _low(energy, temperature, descend(energy, starts.reshape(-1, d), width))


def _low(energy: Energy, temperature: float, x: np.ndarray) -> np.ndarray:
    height = _heights(energy, temperature, x)
    order = np.argsort(height)
    return x[order][height[order] < height.min() + _DEEP + 2 * energy.dim]


def _heights(energy: Energy, temperature: float, x: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        height = np.asarray(energy(x)) / temperature
    return np.where(np.isnan(height), np.inf, height)


def descend(energy: Energy, x: np.ndarray, width: float) -> np.ndarray:
    """Descend E from all x (n, d) at once, each with a step length of its own."""
    with np.errstate(all="ignore"):
        height, slope = np.asarray(energy(x)), np.asarray(energy.gradient(x))
        length = np.full(len(x), width)
        for _ in range(100):
            slope = np.nan_to_num(slope, nan=0.0, posinf=0.0, neginf=0.0)
            size = np.linalg.norm(slope, axis=1, keepdims=True)
            trial = x - length[:, None] * np.divide(slope, size, out=np.zeros_like(slope), where=size > 0)
            new, turn = np.asarray(energy(trial)), np.asarray(energy.gradient(trial))
            better = new < height
            x, height = np.where(better[:, None], trial, x), np.where(better, new, height)
            slope, length = np.where(better[:, None], turn, slope), length * np.where(better, 1.5, 0.4)
    return x


def missed(energy: Energy, temperature: float, found: np.ndarray, x: np.ndarray, width: float, log_z: float) -> float:
    """The mass, relative to Z, of wells (k, d) that no descent from the particles x (n, d) leads to: Laplace's.

    A well is missed if on the way from it to the nearest such ends E rises by more than 3 ε above both.
    """
    x = x[np.linspace(0, len(x) - 1, len(_AROUND) * _DESCENTS).astype(int)]
    ends, spread = descend(energy, x, width), x.std(axis=0) + 1e-300
    share = 0.0
    for well in _apart(found / spread)[:_MOST] * spread:
        if _joined(energy, temperature, well, ends, spread):
            continue
        ends = np.concatenate([ends, well[None]])  # counted once
        curvature = np.asarray(energy.hessian(well)) / temperature
        if not np.isfinite(curvature).all() or np.linalg.eigvalsh(curvature)[0] <= 0:
            continue  # no minimum
        log_mass = energy.dim / 2 * math.log(2 * math.pi) - np.linalg.slogdet(curvature)[1] / 2
        log_mass -= float(_heights(energy, temperature, well[None])[0])
        share += math.exp(min(log_mass - log_z, 50.0))
    return share


def _apart(x: np.ndarray) -> np.ndarray:
    """The first of points (k, d) that are nearer than 0.01 to one another."""
    return x[np.sort(np.unique((x / 0.01).round(), axis=0, return_index=True)[1])]


def _joined(energy: Energy, temperature: float, well: np.ndarray, ends: np.ndarray, spread: np.ndarray) -> bool:
    gap = np.linalg.norm((ends - well) / spread, axis=1)
    near = ends[np.argsort(gap)[:8]]
    path = well + _SEGMENT[:, None, None] * (near - well)
    height = _heights(energy, temperature, path.reshape(-1, energy.dim)).reshape(path.shape[:2]).max(axis=0)
    edge = np.maximum(_heights(energy, temperature, well[None]), _heights(energy, temperature, near))
    return bool((height < edge + _HIGH).any())


def check_growth(energy: Energy, temperature: float, centre: np.ndarray, width: float) -> None:
    """Refuse an energy that does not rise faster than kε log|x| along the softest directions found, which span k."""
    d = energy.dim
    v = np.concatenate([np.eye(d), -np.eye(d), np.random.default_rng(0).standard_normal((max(32, 2 * d), d))])
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    lowest, half, height = [], len(_FAR) // 2, np.zeros(len(v))
    with np.errstate(all="ignore"):
        for radius in _FAR * width:
            v, height = _softest(energy, temperature, centre, v, radius)
            if (height == -np.inf).any():
                raise no_gibbs("the energy is -inf far out")
            height = np.where(np.isnan(height), np.inf, height)
            lowest.append(float(height.min()))
    if lowest[-1] == np.inf:
        return  # no mass that far out
    low = v[height < lowest[-1] + 1.0]
    span = int((np.linalg.svd(low, compute_uv=False) > 0.1 * math.sqrt(len(low) / d)).sum())
    if not lowest[-1] - lowest[half] > max(span, 1) * math.log(_FAR[-1] / _FAR[half]):
        raise no_gibbs(
            f"from {_FAR[half] * width:.3g} to {_FAR[-1] * width:.3g} away the energy rises by "
            f"{(lowest[-1] - lowest[half]) * temperature:.3g} only, in the direction "
            f"{np.round(v[height.argmin()], 3).tolist()}"
        )


def _softest(
    energy: Energy, temperature: float, centre: np.ndarray, v: np.ndarray, radius: float
) -> tuple[np.ndarray, np.ndarray]:
    """Descend E on the sphere about the centre, all directions v (n, d) at once, each with its own step."""
    height, slope = _sphere(energy, temperature, centre, v, radius)
    angle = np.full(len(v), 0.3)
    for _ in range(_TURNS):
        size = np.linalg.norm(slope, axis=1, keepdims=True)
        trial = v - angle[:, None] * np.divide(slope, size, out=np.zeros_like(slope), where=size > 0)
        trial /= np.linalg.norm(trial, axis=1, keepdims=True)
        new, steeper = _sphere(energy, temperature, centre, trial, radius)
        better = new < height  # not where it is NaN
        v, height = np.where(better[:, None], trial, v), np.where(better, new, height)
        slope, angle = np.where(better[:, None], steeper, slope), angle * np.where(better, 1.5, 0.4)
    return v, height


def _sphere(
    energy: Energy, temperature: float, centre: np.ndarray, v: np.ndarray, radius: float
) -> tuple[np.ndarray, np.ndarray]:
    x = centre + radius * v
    height, slope = (np.asarray(part(x)) / temperature for part in (energy, energy.gradient))
    slope = np.nan_to_num(slope, nan=0.0, posinf=0.0, neginf=0.0)
    return height, slope - (slope * v).sum(axis=1, keepdims=True) * v
