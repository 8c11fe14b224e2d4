"""Design of a density feedback: a Riccati gain on the slow modes, or a law that dissipates whatever the density is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from scipy.linalg import solve_discrete_are

from ctrlgen.checks import positive
from ctrlgen.energies.algebra import parted
from ctrlgen.energies.base import Energy
from ctrlgen.energies.feedback import DensityFeedback, Generated, Scaled, potentials
from ctrlgen.interop.density import _order, _static, _with_functions, slow_modes
from ctrlgen.modes.base import SlowModes

REACH = 25.0  # default limit: inputs that tilt the energy by so many temperatures over a standard deviation of φ
GAP = 3.0  # ratio of neighbouring rates above which the modes before are slow
REACHED = 1e-6  # share of the best reached mode's response below which an input does not reach a mode
HELD = 0.05  # a command is held for this share of the time of the first mode after those of the design


def density_feedback(
    energy: Energy,
    plant: Any,
    inputs: Sequence[Any] | None = None,
    order: int = 10,
    *,
    law: Literal["riccati", "dissipative"] = "riccati",
    effort: float = 1e-4,
    decay: float | None = None,
    limit: Any = None,
    period: float | None = None,
    states: Sequence[Any] | None = None,
    **options: Any,
) -> DensityFeedback:
    """A controller block for `ClosedLoop` that sees the density: E + Σ uⱼφⱼ, u → 0 at the Gibbs measure of E.

    Law "riccati" is the linear-quadratic regulator of the slow modes z = E_ρ[ζ] for ∫|z|² + effort·Σ(uⱼσⱼ/ε)² dt, σⱼ
    the standard deviation of φⱼ under ρ*: |z|²/2 is KL to second order and (uσ/ε)²/2 that of a constant input, so that
    effort is a pure number. It is designed for commands that are held for `period`, and saturates at `limit`.

    Law "dissipative" is uⱼ = -kⱼE_ρ[Lφⱼ], Lφ = εΔφ - ∇E·∇φ: along it dKL/dt = -εI - Σ uⱼ²/(εkⱼ) without saturation, and
    at most -εI with it, for every density and every energy: never slower than the open loop, and proved, but blind to
    modes on which E_ρ[Lφ] is small.

    It works on grid densities and on particles, whose slow modes are evaluated as means of eigenfunctions.

    Args:
        energy: E, static.
        plant: where the slow modes come from, as in `interop.slow_modes`: a FokkerPlanckGrid, particles (by samples,
            in any dimension), or modes.
        inputs: control potentials φⱼ: energies, formulas (SymPy or strings) or JAX functions; the slower half of the
            modes themselves when omitted, of which each reaches its own.
        order: r ≥ 1, modes of the design.
        law: "riccati" or "dissipative".
        effort: weight of the inputs > 0; smaller is faster, until inputs saturate.
        decay: δ ≥ 0 [1 / time]: the closed loop's modes are asked to decay faster than that ("prescribed degree of
            stability"); every mode that is slower by itself must be reached by the inputs. When omitted: half of the
            rate above the widest gap among the modes (0 where none is wider than threefold), for those reached.
        limit: at which inputs saturate, a number or (m,) [energy / unit of φ]; 25ε/σⱼ when omitted.
        period: how long a command is held [time]; 0.05/|λᵣ₊₁| when omitted.
        states: names of the states in formulas; those of the energy's own formula, or x1, ..., xd, when omitted.
        options: as in `interop.slow_modes`.

    Returns:
        a `DensityFeedback`: `.command(density)`, `.verify()`, and `.design` with the gain, the modes and the closed
        loop's poles.

    Raises:
        TypeError, ValueError: an argument is not what it has to be; no input reaches a mode that `decay` asks for.

    References: Breiten, Kunisch and Pfeiffer, ESAIM: COCV 24 (2018) 741; Anderson and Moore, Optimal Control (1990),
    ch. 3 (degree of stability); Jurdjevic and Quinn, J. Differ. Equ. 28 (1978) 381 (damping by -L_gV).
    """
    phi = () if inputs is None else potentials(inputs, _static(energy), "inputs", states)
    if law not in ("riccati", "dissipative"):
        raise ValueError(f"law must be 'riccati' or 'dissipative'; got {law!r}.")
    effort = positive("effort", effort)
    if decay is not None and not (np.isfinite(decay) and decay >= 0):
        raise ValueError(f"decay must be finite and ≥ 0; got {decay!r}.")
    modes, beyond = _modes_and_next(energy, plant, order, _with_functions(plant, options, phi))
    phi = phi or modes.energies((modes.order + 1) // 2)
    spread = modes.spread(phi)
    if (flat := np.flatnonzero(~(spread > 1e-12))).size:
        raise ValueError(
            f"inputs[{flat[0]}] must vary under the Gibbs measure; its standard deviation is {spread[flat[0]]:.3g}."
        )
    limits = REACH * modes.temperature / spread if limit is None else limit
    held = HELD / abs(beyond or float(modes.rates[-1])) if period is None else positive("period", period)
    if law == "dissipative" and parted(energy).sets:
        raise ValueError(
            "law must be 'riccati' for an energy with walls: the mean of Lφ misses what the inputs push against them."
        )
    if abs(float(modes.rates[0])) < modes.resolution:
        raise ValueError(
            f"the slowest mode must be resolved, but its rate {modes.rates[0]:.1e} is lost in rounding (below "
            f"{modes.resolution:.1e}). Take a higher temperature, or fewer cells."
        )
    if law == "dissipative":
        images = tuple(Generated(energy, f, modes.temperature) for f in phi)
        size = modes.spread(images)
        if (flat := np.flatnonzero(~(size > 1e-12))).size:
            raise ValueError(f"inputs[{flat[0]}] must not have a constant Lφ, whose mean says nothing of the density.")
        gains = np.asarray(limits, dtype=np.float64) / size
        design = Design(law, modes, np.diag(gains), phi, np.zeros((0, 0)), np.zeros(0), held)
        observable = Scaled(images, gains)
    else:
        b, n = modes.steer(phi)
        weight = np.diag(effort * (spread / modes.temperature) ** 2)
        degree = _gap(modes.rates, beyond) if decay is None else float(decay)
        gain = _regulator(modes.rates, b, weight, held, degree, lenient=decay is None)
        design, observable = Design(law, modes, gain, phi, b, n, held), modes.observable(gain)
    return DensityFeedback(
        energy, phi, observable, limit=limits, period=held, temperature=modes.temperature, law=law, design=design
    )


def _modes_and_next(energy: Energy, plant: Any, order: int, options: dict) -> tuple[SlowModes, float | None]:
    """The modes of the design, and the rate of the one after them, where there is one."""
    try:
        more = slow_modes(energy, plant, _order(order) + 1, **options)
    except ValueError:  # there may be no mode more than was asked for
        return slow_modes(energy, plant, order, **options), None
    beyond = float(more.rates[order]) if more.order > order else None
    return more.truncated(min(order, more.order)), beyond


def _gap(rates: np.ndarray, beyond: float | None) -> float:
    """Half of the rate above the widest gap among the modes and the next; 0 where no gap is wide."""
    every = np.append(rates, [] if beyond is None else [beyond])
    ratios = every[1:] / np.minimum(every[:-1], -1e-300)
    widest = int(np.argmax(ratios)) if len(ratios) else 0
    return -float(every[widest + 1]) / 2 if len(ratios) and ratios[widest] > GAP else 0.0


def _regulator(
    rates: np.ndarray, b: np.ndarray, weight: np.ndarray, period: float, decay: float, lenient: bool
) -> np.ndarray:
    """K, (m, r), with this degree of stability; a lenient one leaves slow modes alone that no input reaches."""
    if not lenient:
        return _riccati(rates, b, weight, period, decay)
    reach = np.linalg.norm(b / np.maximum(-rates, 1e-300)[:, None], axis=1)  # of a mode, by a constant input
    served = (reach > REACHED * reach.max()) | (-rates > decay)
    gain = np.zeros((b.shape[1], len(rates)))
    gain[:, served] = _riccati(rates[served], b[served], weight, period, decay)
    return gain


def _riccati(rates: np.ndarray, b: np.ndarray, weight: np.ndarray, period: float, decay: float) -> np.ndarray:
    """K, (m, r), of u = -Kz: the discrete regulator of the plant under held inputs, with a degree of stability."""
    a, held = _sampled(rates, b, period)
    faster = np.exp(decay * period)
    try:
        p = solve_discrete_are(faster * np.diag(a), faster * held, period * np.eye(len(rates)), period * weight)
    except (np.linalg.LinAlgError, ValueError):
        reach = np.abs(b).max(axis=1)
        missed = [k for k in range(len(rates)) if -rates[k] <= decay and reach[k] <= 1e-8 * reach.max()]
        if not missed:
            raise ValueError(
                f"period must be shorter: no regulator was found for commands that are held for {period:g}."
            ) from None
        raise ValueError(
            f"decay must be below the rates of modes that no input reaches; modes {missed} decay at "
            f"{[float(f'{-rates[k]:.4g}') for k in missed]}, and decay is {decay:g}. Add an input, or lower decay."
        ) from None
    a, held = faster * a, faster * held
    return np.linalg.solve(period * weight + held.T @ p @ held, held.T @ p * a)


def _sampled(rates: np.ndarray, b: np.ndarray, period: float) -> tuple[np.ndarray, np.ndarray]:
    """exp(ΛT), (r,), and ∫exp(Λs)ds B, (r, m): one period under a held input."""
    travel = np.where(rates == 0, period, np.expm1(rates * period) / np.where(rates == 0, 1.0, rates))
    return np.exp(rates * period), travel[:, None] * b


@dataclass(frozen=True, eq=False)
class Design:
    """What a density feedback was designed from.

    Attributes:
        law: "riccati" or "dissipative".
        modes: the slow modes.
        gain: K, (m, r), of u = -Kz; of the dissipative law diag(k), (m, m).
        inputs: the control potentials φ.
        steer: B, (r, m), of ż = Λz + Bu + Σ uⱼNⱼz.
        bilinear: N, (m, r, r).
        period: for which commands are held [time].
    """

    law: str
    modes: SlowModes
    gain: np.ndarray = field(repr=False)
    inputs: tuple[Energy, ...] = field(repr=False)
    steer: np.ndarray = field(repr=False)
    bilinear: np.ndarray = field(repr=False)
    period: float = 0.0

    @property
    def poles(self) -> np.ndarray:
        """Those of the linearised closed loop, (r,) [1 / time]: logarithms over the period of the sampled loop's."""
        if self.law != "riccati":
            raise ValueError("the dissipative law was not designed on modes, and knows no poles.")
        a, held = _sampled(self.modes.rates, self.steer, self.period)
        values = np.linalg.eigvals(np.diag(a) - held @ self.gain)
        return np.sort_complex(np.log(values.astype(complex)) / self.period)[::-1]

    def plot(self, ax: Any = None) -> Any:
        """Draw the poles before and after, or the gains of the dissipative law: see `ctrlgen.plot.design`."""
        from ctrlgen import plot

        return plot.design(self, ax)

    def stable_when_held(self, period: float) -> bool:
        """Is the linearised loop stable when commands are held for this long? True where that is not known."""
        if self.law != "riccati":
            return True
        a, held = _sampled(self.modes.rates, self.steer, period)
        return bool(np.abs(np.linalg.eigvals(np.diag(a) - held @ self.gain)).max() < 1)

    def verify(self, feedback: DensityFeedback, **options: Any) -> Any:
        """Where the density tends to the Gibbs measure; see `certify.feedback`."""
        from ctrlgen.certify.feedback import verify_feedback

        return verify_feedback(feedback, self, **options)
