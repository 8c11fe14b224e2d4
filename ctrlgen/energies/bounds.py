"""Rigorous bounds of an energy over a box: of its value, gradient and Hessian, tighter than those over all states.

Networks go through interval arithmetic that is vectorised over boxes: values forwards, the Jacobian of each layer
beside them, the sensitivities backwards, and mean-value forms about the centre of each box. Whatever else can be traced
goes through its jaxpr in ball arithmetic, box by box. Boxes are split where a bound is worst, up to a budget.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from ctrlgen.energies.algebra import Composition
from ctrlgen.energies.base import Energy
from ctrlgen.energies.intervals import Intervals, derivatives, enclose
from ctrlgen.energies.network_bounds import chain_bounds
from ctrlgen.energies.neural import MLPEnergy
from ctrlgen.energies.spectral import TINY, UNIT, above_root, down, frobenius, lowest_eigenvalue, up
from ctrlgen.energies.trained import TrainedEnergy

CHUNK = 256  # boxes at a time
NUMBERS = 2**22  # entries of a layer's Jacobians at a time
SPLIT = 0.2  # share of the boxes that a round splits for each bound


@dataclass(frozen=True, kw_only=True)
class BoxBounds:
    """What is established about an energy on a box; None means "not established".

    Args:
        lower, upper: (d,), the box [length].
        value: (least, largest): E lies between them [energy].
        gradient_bound: |∇E| ≤ it on the box [energy / length].
        hessian_lower, hessian_upper: bounds of ∇²E on the box [energy / length²].
        boxes: how many boxes were looked at.
    """

    lower: np.ndarray
    upper: np.ndarray
    value: tuple[float, float]
    gradient_bound: float | None
    hessian_lower: float | None
    hessian_upper: float | None
    boxes: int

    @property
    def oscillation(self) -> float:
        """sup E - inf E on the box does not exceed it [energy]."""
        return up(Fraction(self.value[1]) - Fraction(self.value[0]))


@dataclass(frozen=True)
class Enclosure:
    """Enclosures over n boxes: of E (n,), ∇E (n, d) and ∇²E (n, d, d), the latter None where E may have kinks."""

    value: Intervals
    slope: Intervals | None
    curvature: Intervals | None


Enclosing = Callable[[Intervals], Enclosure]


def on_box(energy: Energy, lower: Any, upper: Any, boxes: int | None = None) -> BoxBounds:
    """Bounds of an energy over a box, in real arithmetic with its float parameters taken exactly.

    Args:
        energy: networks, trained energies, and all whose potential can be traced to ball arithmetic; sums of those.
        lower, upper: (d,), the box, lower <= upper.
        boxes: how many boxes to look at in all. Omitted: for networks 2000 in up to 3 dimensions, else 60; one from 5
            dimensions on, where splitting no longer pays.

    Raises:
        ValueError: the box is not a box, or the energy has no enclosure on it (it may be undefined somewhere, or it
            does something that ball arithmetic cannot follow); the text says which.
    """
    lower, upper = (np.array(v, np.float64) for v in (lower, upper))
    for name, value in (("lower", lower), ("upper", upper)):
        if value.shape != (energy.dim,) or not np.isfinite(value).all():
            raise ValueError(f"{name} must be {energy.dim} finite numbers, one a coordinate; got shape {value.shape}.")
    if (lower > upper).any():
        raise ValueError(f"lower must not exceed upper in any coordinate; got {lower} and {upper}.")
    if boxes is None:
        boxes = 1 if energy.dim > 4 else 2000 if energy.dim < 4 and _is_network(energy) else 60
    if boxes < 1:
        raise ValueError(f"boxes must be at least 1; got {boxes}.")
    with np.errstate(invalid="ignore", over="ignore"):  # unknown values are infinite
        found = _search(_centred(enclosing(energy)), lower, upper, boxes)
        return _with_chain(energy, found)


def _is_network(energy: Energy) -> bool:
    if isinstance(energy, Composition):
        return all(_is_network(term) for term in energy.terms)
    return isinstance(energy.network if isinstance(energy, TrainedEnergy) else energy, MLPEnergy)


# Splitting ------------------------------------------------------------------------------------------------------------


def _figures(found: Enclosure, n: int) -> np.ndarray:
    """(5, n): -least E, largest E, largest |∇E|, -lowest and highest eigenvalue of ∇²E; infinite where unknown."""
    out = np.full((5, n), np.inf)
    out[0], out[1] = -found.value.low, found.value.high
    if found.slope is not None:
        size = found.slope.size
        out[2] = np.sqrt((size * size).sum(axis=1)) * (1 + (size.shape[1] + 8) * UNIT) + TINY
    if found.curvature is not None:
        out[3] = -lowest_over(found.curvature)
        out[4] = -lowest_over(-found.curvature)
    return np.where(np.isnan(out), np.inf, out)


def lowest_over(matrices: Intervals) -> np.ndarray:
    """(n,): a lower bound of the eigenvalues of every symmetric matrix in each of n interval matrices (n, d, d)."""
    low, size, d = matrices.low, matrices.size, matrices.mid.shape[-1]
    if d == 1:
        return low[:, 0, 0]
    if d == 2:  # increasing in the diagonal, decreasing in the size of the other entry
        a, c, b = low[:, 0, 0], low[:, 1, 1], np.minimum(size[:, 0, 1], size[:, 1, 0])
        root = np.sqrt(((a - c) / 2) ** 2 + b * b) * (1 + 8 * UNIT)
        return (a + c) / 2 - root - 4 * UNIT * (np.abs(a) + np.abs(c) + root) - TINY
    out = np.empty(len(low))
    for i, (mid, rad) in enumerate(zip(matrices.mid, matrices.rad, strict=True)):
        if not (np.isfinite(mid).all() and np.isfinite(rad).all()):
            out[i] = -np.inf
            continue
        symmetric = (mid + mid.T) / 2
        rest = np.maximum(rad, rad.T) + np.abs(mid - mid.T) + 2 * UNIT * np.abs(symmetric)
        out[i] = lowest_eigenvalue(symmetric, rest)
    return out


def _search(enclosing: Enclosing, lower: np.ndarray, upper: np.ndarray, budget: int) -> BoxBounds:
    """Split the boxes whose bounds are worst, in rounds, along the side that matters most."""
    low, high = lower[None], upper[None]
    figures, sides = _look(enclosing, low, high)
    used = 1
    while used < budget:
        n = len(low)
        take = max(1, min(int(SPLIT * n), (budget - used) // 10))
        order = [np.argsort(-f, kind="stable")[:take] for f in figures]
        worst = np.unique(np.concatenate(order))[: (budget - used) // 2]
        worst = worst[(high[worst] > low[worst]).any(axis=1)]
        if len(worst) == 0:
            break
        side = sides[worst]
        middle = low[worst, side] / 2 + high[worst, side] / 2
        left, right = high[worst].copy(), low[worst].copy()
        left[np.arange(len(worst)), side] = right[np.arange(len(worst)), side] = middle
        new_low, new_high = np.concatenate([low[worst], right]), np.concatenate([left, high[worst]])
        new_figures, new_sides = _look(enclosing, new_low, new_high)
        parents = np.concatenate([figures[:, worst]] * 2, axis=1)
        keep = np.setdiff1d(np.arange(n), worst)
        low, high = np.concatenate([low[keep], new_low]), np.concatenate([high[keep], new_high])
        figures = np.concatenate([figures[:, keep], np.minimum(new_figures, parents)], axis=1)
        sides = np.concatenate([sides[keep], new_sides])
        used += 2 * len(worst)
    worst = [float(v) for v in figures.max(axis=1)]
    known = [v if np.isfinite(v) else None for v in worst]
    return BoxBounds(
        lower=lower,
        upper=upper,
        value=(-worst[0], worst[1]),
        gradient_bound=known[2],
        hessian_lower=None if known[3] is None else -known[3],
        hessian_upper=known[4],
        boxes=used,
    )


def _look(enclosing: Enclosing, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The figures of the boxes, and the side along which each had best be split."""
    parts, sides = [], []
    for start in range(0, len(low), CHUNK):
        box = Intervals.between(low[start : start + CHUNK], high[start : start + CHUNK])
        found = enclosing(box)
        parts.append(_figures(found, len(box.mid)))
        weight = np.ones_like(box.mid) if found.slope is None else found.slope.size + 1e-3 * found.slope.size.max()
        if found.curvature is not None:
            weight = weight + (found.curvature.size * box.rad[:, None]).sum(axis=2)
        sides.append(np.argmax(np.where(np.isfinite(weight), weight, 1.0) * box.rad, axis=1))
    return np.concatenate(parts, axis=1), np.concatenate(sides)


def _centred(enclosing: Enclosing) -> Enclosing:
    """The mean-value forms E(m) + ∇E·(x - m) and ∇E(m) + ∇²E (x - m) beside the enclosures themselves."""

    def both(box: Intervals) -> Enclosure:
        found, off = enclosing(box), Intervals(np.zeros_like(box.mid), box.rad)
        if found.slope is None:
            return found
        at = enclosing(Intervals.exact(box.mid))
        value = found.value.meet(at.value + (found.slope[:, None] @ off[:, :, None])[:, 0, 0])
        slope = found.slope
        if found.curvature is not None and at.slope is not None:
            slope = slope.meet(at.slope + (found.curvature @ off[:, :, None])[:, :, 0])
            value = value.meet(at.value + (slope[:, None] @ off[:, :, None])[:, 0, 0])
        return Enclosure(value, slope, found.curvature)

    return both


# Enclosures -----------------------------------------------------------------------------------------------------------


def enclosing(energy: Energy) -> Enclosing:
    """The function from boxes (n, d) to the enclosures of an energy on them."""
    if isinstance(energy, MLPEnergy):
        return _network(energy)
    if isinstance(energy, TrainedEnergy):
        return _rescaled(enclosing(energy.network), energy.center, energy.scale)
    if isinstance(energy, Composition) and any(map(_is_network, energy.terms)):
        return _summed([enclosing(term) for term in energy.terms], [float(w) for w in energy.weights])
    return _traced(energy)


def _summed(terms: list[Enclosing], weights: list[float]) -> Enclosing:
    def run(box: Intervals) -> Enclosure:
        found = [term(box) for term in terms]

        def total(parts: list[Intervals | None]) -> Intervals | None:
            out = None
            for w, part in zip(weights, parts, strict=True):
                if part is None:
                    return None
                scaled = Intervals.exact(w) * part
                out = scaled if out is None else out + scaled
            return out

        value = total([f.value for f in found])
        assert value is not None
        return Enclosure(value, total([f.slope for f in found]), total([f.curvature for f in found]))

    return run


def _rescaled(inner: Enclosing, center: np.ndarray, scale: np.ndarray) -> Enclosing:
    inverse = Intervals(1 / scale, UNIT / scale)

    def run(box: Intervals) -> Enclosure:
        found = inner((box - Intervals.exact(center)) * inverse)
        slope = None if found.slope is None else found.slope * inverse
        curvature = None if found.curvature is None else found.curvature * inverse * inverse[:, None]
        return Enclosure(found.value, slope, curvature)

    return run


def _network(energy: MLPEnergy) -> Enclosing:
    half, c = Intervals.exact(energy.confinement / 2), Intervals.exact(energy.confinement)
    size = energy.dim * max(w.shape[0] for w in energy.weights)

    def run(box: Intervals) -> Enclosure:
        if len(box.mid) * size > NUMBERS and len(box.mid) > 1:
            cut = len(box.mid) // 2
            return _joined([run(box[:cut]), run(box[cut:])])
        net, _ = propagate(energy, box)
        least = np.maximum(np.maximum(box.low, -box.high), 0)  # of |x|
        square = Intervals.between(least, box.size)
        square = (square.times(square) @ Intervals.exact(np.ones((energy.dim, 1))))[:, 0]
        curvature = None if net.curvature is None else net.curvature + c * Intervals.exact(np.eye(energy.dim))
        assert net.slope is not None
        return Enclosure(net.value + half * square, net.slope + c * box, curvature)

    return run


Ranges = list[tuple[Intervals, Intervals | None]]


def propagate(energy: MLPEnergy, box: Intervals) -> tuple[Enclosure, Ranges]:
    """The network alone over boxes (n, d), and the ranges of σ' and σ'' of each layer, (n, width) each."""
    weights = [Intervals.exact(w) for w in energy.weights]
    biases = [Intervals.exact(np.asarray(b, np.float64)) for b in energy.biases]
    off = Intervals(np.zeros_like(box.mid), box.rad)[:, :, None]
    point = Intervals.exact(box.mid)
    jacobian = Intervals.exact(np.eye(energy.dim)[None])  # of what enters the next layer, (n, width, d)
    y, features = box, None
    if energy.frequencies is not None:
        features = _features(energy.frequencies, box)
        y, jacobian = features[0], features[1]
        point = _features(energy.frequencies, point)[0]
    inward, ranges = [], []
    for w, b, name in zip(weights[:-1], biases[:-1], energy.activation, strict=True):
        centre, into = point @ w.mT + b, w @ jacobian
        z = (y @ w.mT + b).meet(centre + (into @ off)[:, :, 0])
        y, slope, curvature = derivatives(name, z)
        point = derivatives(name, centre)[0]
        jacobian = slope[:, :, None] * into
        inward.append(into)
        ranges.append((slope, curvature))
    value = (y @ weights[-1].mT + biases[-1])[:, 0]
    outer, hessian = weights[-1], None
    for w, into, (slope, curvature) in reversed(list(zip(weights[:-1], inward, ranges, strict=True))):
        if curvature is not None:
            part = into.mT @ (outer.times(curvature)[:, :, None] * into)
            hessian = part if hessian is None else hessian + part
        outer = outer.times(slope) @ w
    forwards, backwards = (weights[-1] @ jacobian)[:, 0], outer
    if features is not None:
        _, inside, (sin, cos) = features
        backwards = (outer[:, None] @ inside)[:, 0]
        g_sin, g_cos = outer[:, energy.dim : energy.dim + sin.mid.shape[1]], outer[:, energy.dim + sin.mid.shape[1] :]
        omega = Intervals.exact(energy.frequencies)
        if hessian is not None:
            hessian = hessian - omega.mT @ ((g_sin * sin + g_cos * cos)[:, :, None] * omega)
    if any(curvature is None for _, curvature in ranges):
        hessian = None
    return Enclosure(value, forwards.meet(backwards), hessian), ranges


def _features(frequencies: Any, x: Intervals) -> tuple[Intervals, Intervals, tuple[Intervals, Intervals]]:
    """(x, sin Ωx, cos Ωx), its Jacobian, and the sines and cosines."""
    omega = Intervals.exact(frequencies)
    phase = x @ omega.mT
    sin, cos = enclose(lambda v: v.sin(), phase), enclose(lambda v: v.cos(), phase)
    identity = np.broadcast_to(np.eye(omega.mid.shape[1]), (len(phase.mid), *(omega.mid.shape[1],) * 2))
    parts = [Intervals.exact(identity), cos[:, :, None] * omega, -(sin[:, :, None] * omega)]
    jacobian = Intervals(np.concatenate([p.mid for p in parts], axis=1), np.concatenate([p.rad for p in parts], axis=1))
    values = [x, sin, cos]
    y = Intervals(np.concatenate([p.mid for p in values], axis=1), np.concatenate([p.rad for p in values], axis=1))
    return y, jacobian, (sin, cos)


def _joined(parts: list[Enclosure]) -> Enclosure:
    def join(parts: list[Intervals | None]) -> Intervals | None:
        known = [p for p in parts if p is not None]
        if len(known) < len(parts):
            return None
        return Intervals(np.concatenate([p.mid for p in known]), np.concatenate([p.rad for p in known]))

    value = join([p.value for p in parts])
    assert value is not None
    return Enclosure(value, join([p.slope for p in parts]), join([p.curvature for p in parts]))


def _traced(energy: Energy) -> Enclosing:
    """By the jaxpr in ball arithmetic, one box at a time; unknown (infinite) where it may branch or be undefined."""
    import jax
    from flint import arb

    from ctrlgen.prove.balls import Undefined, Unsupported
    from ctrlgen.prove.traced import Traced, primitives_only
    from ctrlgen.trace import trace

    d = energy.dim
    try:
        value = Traced(energy.potential, d)
        gradient = jax.grad(primitives_only(trace(energy.potential, (d,))))
        partial = [Traced(lambda x, i=i: gradient(x)[i], d) for i in range(d)]
    except Unsupported as error:
        raise ValueError(f"{type(energy).__name__} has no enclosure on a box: {error}") from None

    def one(ball: list[Any], out: np.ndarray) -> None:
        try:
            out[0] = _ends(value.wide(ball))
            slopes = value.slopes(ball)
            if slopes is None or not all(v.is_finite() for v in slopes):
                return
            out[1 : d + 1] = [_ends(v) for v in slopes]
            rows = [row.slopes(ball) for row in partial]
            entries = [v for row in rows if row is not None for v in row]
            if len(entries) == d * d and all(v.is_finite() for v in entries):
                out[d + 1 :] = [_ends(v) for v in entries]
        except Undefined:
            return
        except Unsupported as error:
            raise ValueError(f"{type(energy).__name__} has no enclosure on a box: {error}") from None

    def run(box: Intervals) -> Enclosure:
        out = np.empty((len(box.mid), 1 + d + d * d, 2))
        out[..., 0], out[..., 1] = -np.inf, np.inf
        for i, (mid, rad) in enumerate(zip(box.mid, box.rad, strict=True)):
            one([arb(float(m), float(r)) for m, r in zip(mid, rad, strict=True)], out[i])
        found = Intervals.between(out[..., 0], out[..., 1])
        return Enclosure(found[:, 0], found[:, 1 : d + 1], _square(found[:, d + 1 :], d))

    return run


def _square(entries: Intervals, d: int) -> Intervals:
    return Intervals(entries.mid.reshape(-1, d, d), entries.rad.reshape(-1, d, d))


def _ends(ball: Any) -> tuple[float, float]:
    return down(ball), up(ball)


# The whole box --------------------------------------------------------------------------------------------------------


def _with_chain(energy: Energy, found: BoxBounds) -> BoxBounds:
    """The tighter ones of these bounds, those over all states, and for a network those of its chains on the box."""
    known = energy.properties
    gradients, lowers, uppers = [known.gradient_bound], [known.hessian_lower], [known.hessian_upper]
    network = energy.network if isinstance(energy, TrainedEnergy) else energy
    if isinstance(network, MLPEnergy):
        scale = energy.scale if isinstance(energy, TrainedEnergy) else np.ones(energy.dim)
        center = energy.center if isinstance(energy, TrainedEnergy) else np.zeros(energy.dim)
        box = Intervals.between(found.lower[None], found.upper[None])
        inside = (box - Intervals.exact(center)) * Intervals(1 / scale, UNIT / scale)
        ranges = [(s[0], None if c is None else c[0]) for s, c in propagate(network, inside)[1]]
        smooth = all(c is not None for _, c in ranges)
        chain = chain_bounds(
            network.parameters(scale),
            [s for s, _ in ranges],
            [c for _, c in ranges if c is not None] if smooth else None,
        )
        c = Fraction(network.confinement)
        pulls = (Fraction(float(v)) / Fraction(float(s)) for v, s in zip(inside.size[0], scale, strict=True))
        gradients.append(up(Fraction(chain.gradient) + c * Fraction(above_root(sum(p * p for p in pulls)))))
        if chain.hessian is not None:
            lowers.append(down(Fraction(chain.hessian[0]) + c / Fraction(float(scale.max())) ** 2))
            uppers.append(up(Fraction(chain.hessian[1]) + c / Fraction(float(scale.min())) ** 2))
    gradient = min((g for g in [found.gradient_bound, *gradients] if g is not None), default=None)
    low, high = found.value
    if gradient is not None:  # |E(x) - E(m)| ≤ G |x - m|
        box = Intervals.between(found.lower[None], found.upper[None])
        at = enclosing(energy)(Intervals.exact(box.mid)).value
        reach = Fraction(gradient) * Fraction(frobenius(box.rad))
        if np.isfinite(at.low[0]) and np.isfinite(at.high[0]):
            low = max(low, down(Fraction(float(at.low[0])) - reach))
            high = min(high, up(Fraction(float(at.high[0])) + reach))
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(
            f"{type(energy).__name__} has no enclosure on this box: it may be undefined or infinite somewhere in it. "
            "Take a smaller box, or more boxes."
        )
    return replace(
        found,
        value=(low, high),
        gradient_bound=gradient,
        hessian_lower=max((v for v in [found.hessian_lower, *lowers] if v is not None), default=None),
        hessian_upper=min((v for v in [found.hessian_upper, *uppers] if v is not None), default=None),
    )
