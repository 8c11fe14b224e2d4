"""Enclosures of Hessians over boxes, and what they prove in a metric; outward rounding throughout.

The plain interval Hessian of a network (`ctrlgen.energies.bounds`) is off by the first power of a box's width, times
the number of neurons. Here the value, the Jacobian and the Hessian of every layer are enclosed in mean-value form
about the box's centre, each by means of the next derivative, up to the third: with T ∋ ∇³,

    H(x) ∈ H(c) + T·(x - c),

so that what is lost is of second order in the width. Formulas go the same way in ball arithmetic.

Reference: Neumaier, Interval Methods for Systems of Equations (1990), section 2.3 (mean-value forms).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ctrlgen.accelerate._hessians import formula_hessian
from ctrlgen.energies.algebra import Composition
from ctrlgen.energies.analytic import GaussianMixture
from ctrlgen.energies.base import Energy
from ctrlgen.energies.bounds import enclosing
from ctrlgen.energies.intervals import Intervals, derivatives, enclose
from ctrlgen.energies.neural import MLPEnergy
from ctrlgen.energies.spectral import UNIT, down, up
from ctrlgen.energies.trained import TrainedEnergy

THIRD = ("silu", "tanh", "softplus")  # activations whose third derivative is enclosed here
MOST_DIMENSIONS = 3  # up to which third derivatives pay
NUMBERS = 2**21  # entries of a layer's derivatives at a time

Curvature = Callable[[Intervals], Intervals]  # boxes (n, d) to Hessians (n, d, d); infinite radius where unknown


def curvature(energy: Energy) -> Curvature:
    """The function from boxes (n, d) to enclosures (n, d, d) of ∇²E on them.

    Raises:
        ValueError: the energy does something that has no enclosure.
    """
    if isinstance(energy, TrainedEnergy):
        return _rescaled(curvature(energy.network), energy.center, energy.scale)
    if isinstance(energy, MLPEnergy) and energy.dim <= MOST_DIMENSIONS and set(energy.activation) <= set(THIRD):
        return _network(energy)
    if isinstance(energy, Composition):
        return _summed([curvature(term) for term in energy.terms], [float(w) for w in energy.weights])
    if isinstance(energy, GaussianMixture):
        return _mixture(energy)
    found = _formula(energy)
    return _plain(energy) if found is None else found


def _plain(energy: Energy) -> Curvature:
    inner = enclosing(energy)

    def run(box: Intervals) -> Intervals:
        found = inner(box).curvature
        return _unknown(box) if found is None else found

    return run


def _unknown(box: Intervals) -> Intervals:
    n, d = box.mid.shape
    return Intervals(np.zeros((n, d, d)), np.full((n, d, d), np.inf))


def _summed(terms: Sequence[Curvature], weights: Sequence[float]) -> Curvature:
    def run(box: Intervals) -> Intervals:
        out = Intervals.exact(weights[0]) * terms[0](box)
        for w, term in zip(weights[1:], terms[1:], strict=True):
            out = out + Intervals.exact(w) * term(box)
        return out

    return run


def _rescaled(inner: Curvature, center: np.ndarray, scale: np.ndarray) -> Curvature:
    """∇²E = S⁻¹ ∇²N(S⁻¹(x - o)) S⁻¹."""
    inverse = Intervals(1 / scale, UNIT / scale)

    def run(box: Intervals) -> Intervals:
        return inner((box - Intervals.exact(center)) * inverse) * inverse * inverse[:, None]

    return run


# Networks -------------------------------------------------------------------------------------------------------------


Jet = list[Intervals]  # of a layer: values (n, w), and its derivatives by state (n, w, d), (n, w, d, d), ...


def _network(energy: MLPEnergy) -> Curvature:
    c = Intervals.exact(energy.confinement)
    d = energy.dim
    size = d**3 * max(w.shape[0] for w in energy.weights)
    weights = [Intervals.exact(w) for w in energy.weights]
    biases = [Intervals.exact(np.asarray(b, np.float64)) for b in energy.biases]

    def run(box: Intervals) -> Intervals:
        if len(box.mid) * size > NUMBERS and len(box.mid) > 1:
            cut = len(box.mid) // 2
            return _joined([run(box[:cut]), run(box[cut:])], axis=0)
        off = Intervals(np.zeros_like(box.mid), box.rad)
        wide, point = _first(box, energy.frequencies, 3), _first(Intervals.exact(box.mid), energy.frequencies, 2)
        for k, (w, b) in enumerate(zip(weights, biases, strict=True)):
            point = _linear(w, b, point)
            wide = _met(_linear(w, b, wide), point, off)
            if k < len(energy.activation):
                name = energy.activation[k]
                wide, point = _activated(name, wide), _activated(name, point)
        return wide[2][:, 0] + c * Intervals.exact(np.eye(d))

    return run


def _reshaped(x: Intervals, shape: tuple[int, ...]) -> Intervals:
    mid, rad = np.broadcast_arrays(x.mid, x.rad)
    return Intervals(mid.reshape(shape), rad.reshape(shape))


def _joined(parts: Sequence[Intervals], axis: int) -> Intervals:
    full = [_reshaped(p, np.broadcast_shapes(p.mid.shape, p.rad.shape)) for p in parts]
    return Intervals(np.concatenate([p.mid for p in full], axis), np.concatenate([p.rad for p in full], axis))


def _first(x: Intervals, frequencies: Any, order: int) -> Jet:
    """The network's input, x or (x, sin Ωx, cos Ωx), with its derivatives up to an order."""
    n, d = x.mid.shape
    eye = np.broadcast_to(np.eye(d), (n, d, d))
    jet = [x, Intervals.exact(eye), *(Intervals.exact(np.zeros((n, d) + (d,) * k)) for k in range(2, order + 1))]
    if frequencies is None:
        return jet
    omega = Intervals.exact(frequencies)
    phase = x @ omega.mT
    sin, cos = enclose(lambda v: v.sin(), phase), enclose(lambda v: v.cos(), phase)
    turns = [(sin, cos), (cos, -sin), (-sin, -cos), (-cos, sin)]  # of (sin, cos), by order of the derivative
    power = Intervals.exact(np.ones((1, len(omega.mid))))
    for k in range(order + 1):
        jet[k] = _joined([jet[k], *(_rows(turn, power) for turn in turns[k])], axis=1)
        power = power[..., None] * omega[(None, slice(None), *(None,) * k, slice(None))]
    return jet


def _rows(factor: Intervals, tensor: Intervals) -> Intervals:
    """factor (n, w) times tensor (n or 1, w, ...)."""
    return factor[(...,) + (None,) * (tensor.mid.ndim - 2)] * tensor


def _linear(weight: Intervals, bias: Intervals, jet: Jet) -> Jet:
    n, width = jet[0].mid.shape
    out = [jet[0] @ weight.mT + bias]
    for part in jet[1:]:
        rest = part.mid.shape[2:]
        flat = weight @ _reshaped(part, (n, width, int(np.prod(rest))))
        out.append(_reshaped(flat, (n, len(weight.mid), *rest)))
    return out


def _met(wide: Jet, point: Jet, off: Intervals) -> Jet:
    """Each derivative met with its mean-value form about the centre by means of the next one, from the highest down."""
    out = list(wide)
    n, d = off.mid.shape
    for k in (2, 1, 0):
        shape = wide[k].mid.shape
        change = _reshaped(out[k + 1], (n, int(np.prod(shape[1:])), d)) @ off[:, :, None]
        out[k] = wide[k].meet(point[k] + _reshaped(change, shape))
    return out


def _activated(name: str, z: Jet) -> Jet:
    """The jet of σ(z), by the chain rule (Faà di Bruno)."""
    value, first, second = derivatives(name, z[0])
    assert second is not None
    j, h = z[1], z[2]
    outer = j[..., :, None] * j[..., None, :]
    out = [value, _rows(first, j), _rows(second, outer) + _rows(first, h)]
    if len(z) > 3:
        mixed = j[..., :, None, None] * h[..., None, :, :] + j[..., None, :, None] * h[..., :, None, :]
        mixed = mixed + j[..., None, None, :] * h[..., :, :, None]
        cubes = outer[..., None] * j[..., None, None, :]
        out.append(_rows(_third(name, z[0], value), cubes) + _rows(second, mixed) + _rows(first, z[3]))
    return out


def _third(name: str, x: Intervals, value: Intervals) -> Intervals:
    """The third derivative of σ, by the logistic function s: with p = s(1 - s), s″ = p(1 - 2s) and s‴ = p(1 - 6p)."""
    one, two, six = (Intervals.exact(v) for v in (1.0, 2.0, 6.0))
    if name == "tanh":
        square = value.times(value)
        return -(two * (one - square).times(one - Intervals.exact(3.0) * square))
    _, s, p = derivatives("softplus", x)
    assert p is not None
    bend = p.times(one - two * s)
    return bend if name == "softplus" else Intervals.exact(3.0) * bend + x.times(p.times(one - six * p))


# Mixtures -------------------------------------------------------------------------------------------------------------


def _mixture(energy: GaussianMixture) -> Curvature:
    """By the responsibilities r: ∇²E = ε(Σ rₖPₖ - Σ_{j<k} rⱼrₖ δδᵀ) with δ = Pⱼ(x - μⱼ) - Pₖ(x - μₖ)."""
    count, d = energy.means.shape
    factors = [f if f.ndim == 2 else np.diag(np.broadcast_to(f, d)) for f in energy.factors]
    precisions = [Intervals.exact(f).mT @ Intervals.exact(f) for f in factors]
    pairs = [(j, k) for j in range(count) for k in range(j + 1, count)]
    shared = bool((energy.factors == energy.factors[0]).all())
    epsilon = Intervals.exact(energy.temperature)

    def pulls(x: Intervals) -> list[Intervals]:
        """Pₖ(x - μₖ), (n, d) each."""
        return [(x - Intervals.exact(m)) @ p for m, p in zip(energy.means, precisions, strict=True)]

    def apart(pull: list[Intervals], j: int, k: int) -> Intervals:
        if shared:  # the states cancel
            return (Intervals.exact(energy.means[k][None]) - Intervals.exact(energy.means[j][None])) @ precisions[0]
        return pull[j] - pull[k]

    def heights(point: Intervals) -> list[Intervals]:
        """The exponents at points, (n, 1) each."""
        out = []
        for m, f, o in zip(energy.means, factors, energy.offsets, strict=True):
            y = (point - Intervals.exact(m)) @ Intervals.exact(f).mT
            out.append(Intervals.exact(o) - Intervals.exact(0.5) * ((y * y) @ Intervals.exact(np.ones((d, 1)))))
        return out

    def shares(box: Intervals, gaps: dict[tuple[int, int], Intervals]) -> list[Intervals]:
        """The responsibilities, (n, 1) each, the differences of exponents by the mean value theorem."""
        off, at = Intervals(np.zeros_like(box.mid), box.rad)[:, :, None], heights(Intervals.exact(box.mid))
        ahead = {}
        for (j, k), gap in gaps.items():
            ahead[j, k] = at[j] - at[k] - (_reshaped(gap, (-1, 1, d)) @ off)[:, :, 0]
            ahead[k, j] = -ahead[j, k]
        return [_share([ahead[j, k] for j in range(count) if j != k], len(box.mid)) for k in range(count)]

    def hessian(box: Intervals) -> tuple[Intervals, list[Intervals], dict[tuple[int, int], Intervals]]:
        pull = pulls(box)
        gaps = {pair: apart(pull, *pair) for pair in pairs}
        r = shares(box, gaps)
        total = Intervals.exact(np.zeros((len(box.mid), d, d)))
        for share, p in zip(r, precisions, strict=True):
            total = total + share[:, :, None] * p
        for (j, k), gap in gaps.items():
            total = total - _both(r[j], r[k])[:, :, None] * (gap[:, :, None] * gap[:, None, :])
        return total, r, gaps

    def third(r: list[Intervals], gaps: dict[tuple[int, int], Intervals]) -> Intervals:
        """∇³E/ε, (n, d, d, d), the last axis that of the new derivative: ∇rₖ = rₖ Σⱼ rⱼ(Pⱼ(x - μⱼ) - Pₖ(x - μₖ))."""
        zero = Intervals.exact(np.zeros((len(r[0].mid), d)))
        slopes = []
        for k in range(count):
            towards = zero
            for j in range(count):
                if j != k:
                    gap = gaps[j, k] if j < k else -gaps[k, j]
                    towards = towards + _both(r[j], r[k]) * gap
            slopes.append(towards)
        total = Intervals.exact(np.zeros((len(r[0].mid), d, d, d)))
        for slope, p in zip(slopes, precisions, strict=True):
            total = total + p[..., None] * slope[:, None, None, :]
        for (j, k), gap in gaps.items():
            turn = slopes[j] * r[k] + slopes[k] * r[j]
            outer = gap[:, :, None] * gap[:, None, :]
            total = total - outer[..., None] * turn[:, None, None, :]
            if not shared:
                bend = precisions[j] - precisions[k]
                one = bend[None, :, None, :] * gap[:, None, :, None] + bend[None, None, :, :] * gap[:, :, None, None]
                total = total - _both(r[j], r[k])[:, :, None, None] * one
        return total

    def run(box: Intervals) -> Intervals:
        total, r, gaps = hessian(box)
        if d <= MOST_DIMENSIONS and box.rad.any():
            off = Intervals(np.zeros_like(box.mid), box.rad)
            n = len(box.mid)
            change = _reshaped(third(r, gaps), (n, d * d, d)) @ off[:, :, None]
            total = total.meet(hessian(Intervals.exact(box.mid))[0] + _reshaped(change, (n, d, d)))
        return epsilon * total

    return run


def _both(a: Intervals, b: Intervals) -> Intervals:
    """The product of two responsibilities: at most a quarter, as their sum is at most one."""
    out = a.times(b)
    return Intervals.between(np.maximum(out.low, 0.0), np.minimum(out.high, 0.25))


def _share(ahead: list[Intervals], n: int) -> Intervals:
    """1/(1 + Σ exp(uⱼ)) over intervals u, (n, 1) each."""
    least, most = np.ones((n, 1)), np.ones((n, 1))
    for u in ahead:
        low, high = (np.broadcast_to(v, (n, 1)) for v in (u.low, u.high))
        ends = enclose(lambda v: v.exp(), Intervals.exact(np.clip(np.stack([low, high]), -700.0, 700.0)))
        least = least + np.where(low < -700, 0.0, ends.low[0])
        most = most + np.where(high > 700, np.inf, ends.high[1])
    slack = (len(ahead) + 4) * UNIT
    return Intervals.between((1 - slack) / most, np.minimum((1 + slack) / least, 1.0))


# Formulas -------------------------------------------------------------------------------------------------------------


def _formula(energy: Energy) -> Curvature | None:
    """By the formula, where there is one that is C² but for conditions."""
    from ctrlgen.continuity import JumpError, conditions

    found = formula_hessian(energy)
    if found is None:
        return None
    try:
        smooth = [pair for expr in found.given for pair in conditions(expr, 2)]
    except JumpError:
        return None
    return of_matrix(found.matrix, found.states, smooth)


def of_matrix(matrix: Any, states: Sequence[Any], smooth: Sequence[tuple[Any, Any]] = ()) -> Curvature | None:
    """Enclosures of a symmetric matrix of formulas and its mean-value form in ball arithmetic, box by box.

    Args:
        matrix: (k, k) SymPy, exact numbers.
        states: d symbols.
        smooth: (formula, "> 0", "≥ 0" or "≠ 0") that must hold on a box, or nothing is known of it.

    Returns:
        the function from boxes to enclosures; None where a formula has none.
    """
    from flint import arb

    from ctrlgen.prove.balls import Compiled, Undefined, Unsupported

    d, size = len(states), matrix.shape[0]
    pairs = [(i, j) for i in range(size) for j in range(i, size)]
    upper: list[Any] = [matrix[i, j] for i, j in pairs]
    try:
        entries = Compiled(upper, states)
        slopes = entries.derivative() if d <= MOST_DIMENSIONS + 1 else None
        needed = Compiled([expr for expr, _ in smooth], states) if smooth else None
    except Unsupported:
        return None
    row, column = np.transpose(pairs)

    def one(mid: np.ndarray, rad: np.ndarray) -> list[tuple[float, float]]:
        ball = [arb(float(m), float(r)) for m, r in zip(mid, rad, strict=True)]
        centre, off = [arb(float(m)) for m in mid], [arb(0, float(r)) for r in rad]
        for value, (_, sign) in zip(needed.wide(*ball) if needed else (), smooth, strict=True):
            if not (value != 0 if sign == "≠ 0" else value > 0 if sign == "> 0" else value >= 0):
                raise Undefined("the energy may not be C² there.")
        values = [arb(v) for v in entries.wide(*ball)]
        if slopes is not None:
            at, bends = entries.wide(*centre), slopes.wide(*ball)
            for k in range(len(values)):
                form = at[k] + sum((bends[k * d + i] * off[i] for i in range(d)), arb(0))
                if form.is_finite() and form.rad() < values[k].rad():
                    values[k] = form
        return [(down(v), up(v)) if v.is_finite() else (-np.inf, np.inf) for v in values]

    def run(box: Intervals) -> Intervals:
        n = len(box.mid)
        ends = np.empty((n, size, size, 2))
        ends[..., 0], ends[..., 1] = -np.inf, np.inf
        for k in range(n):
            try:
                both = np.array(one(box.mid[k], box.rad[k]))
            except Undefined:
                continue
            ends[k, row, column] = ends[k, column, row] = both
        return Intervals.between(ends[..., 0], ends[..., 1])

    return run
