"""The schemes: how particles take one step of dX = -∇E dt + sqrt(2ε) dW and its relatives.

Inside, positions are (d, n): the particles are the trailing axis, so that XLA vectorises over them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ctrlgen import measure
from ctrlgen.checks import positive, positive_definite
from ctrlgen.energies.algebra import Reparametrised
from ctrlgen.energies.base import Energy
from ctrlgen.estimate import Estimate
from ctrlgen.once import once
from ctrlgen.plants import noise
from ctrlgen.plants.ensemble import ParticlePlant, State, evolve
from ctrlgen.plants.mobility import Local, StateMobility
from ctrlgen.rows import moved, total

__all__ = ["GradientFlow", "KineticLangevin", "Langevin", "State", "evolve"]


class Langevin(ParticlePlant):
    """Overdamped Langevin: dX = -(M⁻¹ + J)∇E dt + sqrt(2ε M⁻¹) dW; the Gibbs measure is ∝ exp(-E/ε) for every M and J.

    In a metric that depends on the state, M(x), the drift gains ε ∇·K with K = M⁻¹ and (∇·K)_i = Σ_j ∂_j K_ij, which
    keeps the same Gibbs measure. A step then costs d derivatives of M beside one gradient of E.

    Args:
        temperature: ε > 0 [energy].
        step: h > 0 [time].
        scheme: "euler" (Euler–Maruyama, ULA; weak order 1) or "mala" (Metropolis-adjusted: no bias in the limit).
        metric: M, positive definite, (d,) for a diagonal or (d, d); the identity when omitted. Or a JAX-traceable
            function of one state, (d,) -> (d,) or (d, d), once differentiable; it is looked at when a run starts.
        skew: J, (d, d), skew-symmetric; zero when omitted. Not with "mala", whose reversibility it breaks.

    Raises:
        ValueError: an argument is out of its range, or metric and skew disagree in size.

    References: Roberts and Tweedie, Bernoulli 2 (1996) 341; Lelièvre, Nier and Pavliotis, J. Stat. Phys. 152
    (2013) 237; Xifara et al., Stat. Probab. Lett. 91 (2014) 14, for a metric that depends on the state.
    """

    temperature: float
    step: float
    scheme: Literal["euler", "mala"] = eqx.field(static=True)
    mobility: np.ndarray | StateMobility | None  # K = M⁻¹: (d,) or (d, d), or a function of the state
    root: np.ndarray | None  # K = root rootᵀ, of a constant one
    skew: np.ndarray | None
    weak_order: ClassVar[int] = 1

    def __init__(
        self,
        temperature: float,
        step: float,
        scheme: Literal["euler", "mala"] = "euler",
        metric: Any = None,
        skew: Any = None,
    ):
        self.temperature, self.step = positive("temperature", temperature), positive("step", step)
        if scheme not in ("euler", "mala"):
            raise ValueError(f"scheme must be 'euler' or 'mala'; got {scheme!r}.")
        if scheme == "mala" and skew is not None:
            raise ValueError("skew must be omitted with scheme='mala': the proposal would not be reversible.")
        self.scheme = scheme
        self.mobility, self.root = _mobility(metric)
        self.skew = _skew(skew)
        sizes = {len(a) for a in (self.mobility, self.skew) if not (a is None or callable(a))}
        if len(sizes) > 1:
            raise ValueError(f"metric and skew must have one size; got {sorted(sizes)}.")

    @property
    def dim(self) -> int | None:
        """The dimension that metric or skew fixes; None when any will do."""
        return next((len(a) for a in (self.mobility, self.skew) if not (a is None or callable(a))), None)

    def admit(self, position, dtype):
        if isinstance(self.mobility, StateMobility):
            self.mobility.check(position)
        return super().admit(position, dtype)

    def lanes(self, dim):
        return (dim + 1) // 2 + (self.scheme == "mala")

    def prepare(self, energy, state, temperature):
        if self.scheme == "euler":
            return state
        x = state.position
        memory = (energy.potential(x), energy.slope(x), jnp.zeros(x.shape[1:], jnp.int32))
        if isinstance(self.mobility, StateMobility):
            memory = (*memory, self.mobility.look(x))
        return eqx.tree_at(lambda s: s.memory, state, memory, is_leaf=lambda v: v is None)

    def refresh(self, energy, state, temperature):
        if self.scheme == "euler":
            return state
        x = state.position
        memory = (energy.potential(x), energy.slope(x), *state.memory[2:])
        return eqx.tree_at(lambda s: s.memory, state, memory)

    def move(self, energy, state, temperature):
        x = state.position
        h = jnp.asarray(self.step, x.dtype)
        if isinstance(self.mobility, StateMobility):
            step = self._euler_in_local if self.scheme == "euler" else self._metropolis_in_local
            return step(self.mobility, energy, state, temperature, h)
        if self.scheme == "euler":
            kick, lanes = self.kick(state.lanes, x, temperature)
            drift = once(self.drift(energy, x), state.step)  # or XLA repeats all of a formula in each of its rows
            return State(x + h * drift + kick, lanes, state.step)
        return self._metropolis(energy, state, temperature, h)

    def drift(self, energy: Energy, x: jax.Array, temperature: Any = None) -> jax.Array:
        """-(K + J)∇E, and + ε ∇·K where the metric depends on the state, (d, n); ε is the plant's own if omitted."""
        if isinstance(self.mobility, StateMobility):
            temperature = jnp.asarray(self.temperature if temperature is None else temperature, x.dtype)
            local, divergence = self.mobility.look(x)
            return self._flow(local, energy.slope(x)) + temperature * divergence
        return self.command(energy.slope(x))

    def command(self, slope: jax.Array) -> jax.Array:
        """The drift that a slope (d, n) commands in a constant metric, -(K + J) slope.

        Raises:
            ValueError: the metric depends on the state.
        """
        if isinstance(self.mobility, StateMobility):
            raise ValueError(
                "metric must be constant for a drift that depends on the slope alone; use .drift(energy, x)."
            )
        drift = moved(self.mobility, slope)
        return -(drift if self.skew is None else drift + moved(self.skew, slope))

    def kick(self, lanes: noise.Lanes, x: jax.Array, temperature: Any) -> tuple[jax.Array, noise.Lanes]:
        """The noise of one step, sqrt(2εh) K^½ ξ, (d, n), and the streams after it."""
        xi, lanes = noise.normals(lanes, x.shape[0], x.dtype)
        size = jnp.sqrt(2 * temperature * jnp.asarray(self.step, x.dtype))
        if isinstance(self.mobility, StateMobility):
            return size * self.mobility.at(x).coloured(xi), lanes
        return size * moved(self.root, xi), lanes

    def accepted(self, memory):
        return memory[2] if self.scheme == "mala" else None

    def _metropolis(self, energy, state, temperature, h):
        x, (value, slope, accepted) = state.position, state.memory
        # the last lane is for the acceptance
        own, last = noise.cut(state.lanes, -1)
        xi, own = noise.normals(own, x.shape[0], x.dtype)
        word, last = noise.bits(last)
        proposal = x - h * moved(self.mobility, slope) + jnp.sqrt(2 * temperature * h) * moved(self.root, xi)
        new_value, new_slope = energy.potential(proposal), energy.slope(proposal)
        # |y|²_M of the way back, as K^{-1} y = M y: with y = x - x' + hK∇E(x'), M y = M(x - x') + h∇E(x')
        back = x - proposal + h * moved(self.mobility, new_slope)
        backward = jnp.sum(back * _solve(self.root, back), axis=0) / (4 * h)
        forward = temperature * jnp.sum(xi * xi, axis=0) / 2
        log_ratio = (value - new_value - backward + forward) / jnp.where(temperature > 0, temperature, 1)
        accept = (jnp.log(noise.uniform(word[0], x.dtype)) < log_ratio) | ((temperature <= 0) & jnp.isfinite(new_value))
        memory = (
            jnp.where(accept, new_value, value),
            jnp.where(accept, new_slope, slope),
            accepted + accept.astype(jnp.int32),
        )
        return State(jnp.where(accept, proposal, x), noise.join(own, last), state.step, memory)

    def _flow(self, local: Local, slope: jax.Array) -> jax.Array:
        drift = local.moved(slope)
        return -(drift if self.skew is None else drift + moved(self.skew, slope))

    def _euler_in_local(self, mobility: StateMobility, energy: Energy, state: State, temperature: Any, h: Any) -> State:
        x = state.position
        xi, lanes = noise.normals(state.lanes, x.shape[0], x.dtype)
        local, divergence = mobility.look(x)
        drift = once(self._flow(local, energy.slope(x)) + temperature * divergence, state.step)
        return State(x + h * drift + jnp.sqrt(2 * temperature * h) * local.coloured(xi), lanes, state.step)

    def _metropolis_in_local(
        self, mobility: StateMobility, energy: Energy, state: State, temperature: Any, h: Any
    ) -> State:
        x, (value, slope, accepted, (local, divergence)) = state.position, state.memory
        own, last = noise.cut(state.lanes, -1)
        xi, own = noise.normals(own, x.shape[0], x.dtype)
        word, last = noise.bits(last)
        drift = temperature * divergence - local.moved(slope)
        proposal = x + h * drift + jnp.sqrt(2 * temperature * h) * local.coloured(xi)
        proposal = once(proposal, state.step)
        there = once((energy.potential(proposal), energy.slope(proposal), mobility.look(proposal)), state.step)
        new_value, new_slope, (new_local, new_divergence) = there
        # ε log of the ratio of both densities, N(x'; x + h b(x), 2εh K(x)): b is the drift, and det K differs too
        back = x - proposal - h * (temperature * new_divergence - new_local.moved(new_slope))
        backward = new_local.square(back) / (4 * h) - temperature * new_local.log_det / 2
        forward = temperature * (total(xi * xi) - local.log_det) / 2
        log_ratio = (value - new_value - backward + forward) / jnp.where(temperature > 0, temperature, 1)
        accept = (jnp.log(noise.uniform(word[0], x.dtype)) < log_ratio) | ((temperature <= 0) & jnp.isfinite(new_value))
        kept = jax.tree.map(lambda new, old: jnp.where(accept, new, old), there, (value, slope, (local, divergence)))
        memory = (*kept[:2], accepted + accept.astype(jnp.int32), kept[2])
        return State(jnp.where(accept, proposal, x), noise.join(own, last), state.step, memory)

    @property
    def reshapes_curvature(self):
        return self.mobility is not None

    def dissipation(self, state, energy):
        if isinstance(self.mobility, StateMobility):
            raise ValueError(
                "dissipation of particles is estimated in constant metrics only: here -dV/dt = ε∫ρ s·K(x)s, s = "
                "∇log(ρ/ρ*). KL falls all the same; see response.kl."
            )
        x = np.asarray(state, dtype=np.float64)
        if self.root is not None:  # -dV/dt = ε E[s·M⁻¹s]: in coordinates where M is the identity, ε I
            energy = Reparametrised(energy, self.root)
            x = x / self.root if self.root.ndim == 1 else np.linalg.solve(self.root, x.T).T
        fisher = measure.fisher(x, energy, self.temperature)
        return Estimate(self.temperature * fisher.value, self.temperature * fisher.error)

    def effective_hessian(self, hessian, states):
        if isinstance(self.mobility, StateMobility):
            return self.mobility.whitened(hessian, states)
        if self.root is None:
            return hessian
        root = np.diag(self.root) if self.root.ndim == 1 else self.root
        return root.T @ hessian @ root


class KineticLangevin(ParticlePlant):
    """Underdamped Langevin of unit mass: dX = V dt, dV = -∇E dt - γV dt + sqrt(2γε) dW, by BAOAB (weak order 2).

    The marginal of X in equilibrium is the Gibbs measure. Velocities start from N(0, ε I).

    Args:
        temperature: ε > 0 [energy].
        friction: γ > 0 [1 / time].
        step: h > 0 [time]; stable below 2 / sqrt(L).

    Reference: Leimkuhler and Matthews, Appl. Math. Res. Express 2013 (2013) 34.
    """

    temperature: float
    friction: float
    step: float
    weak_order: ClassVar[int] = 2

    def __init__(self, temperature: float, friction: float, step: float):
        self.temperature, self.step = positive("temperature", temperature), positive("step", step)
        self.friction = positive("friction", friction)

    def prepare(self, energy, state, temperature):
        x = state.position
        xi, lanes = noise.normals(state.lanes, x.shape[0], x.dtype)
        return State(x, lanes, state.step, (jnp.sqrt(temperature) * xi, energy.slope(x)))

    def refresh(self, energy, state, temperature):
        return eqx.tree_at(lambda s: s.memory, state, (state.memory[0], energy.slope(state.position)))

    def move(self, energy, state, temperature, accept: Callable | None = None):
        """One step. `accept` (which flight, from, to) -> (n,) may refuse free flights, to keep particles in a set.

        Such a flight is not made and the velocity turned round, which leaves the measure with that weight invariant.

        Reference: Fang, Sanz-Serna and Skeel, J. Chem. Phys. 140 (2014) 174108 (a rejection that flips is reversible).
        """
        x, (velocity, slope) = state.position, state.memory
        h, gamma = jnp.asarray(self.step, x.dtype), jnp.asarray(self.friction, x.dtype)
        decay = jnp.exp(-gamma * h)
        xi, lanes = noise.normals(state.lanes, x.shape[0], x.dtype)
        velocity = velocity - h / 2 * slope
        x, velocity = _flown(x, velocity, h / 2, accept, 0)
        velocity = decay * velocity + jnp.sqrt(temperature * (1 - decay * decay)) * xi
        x, velocity = _flown(x, velocity, h / 2, accept, 1)
        slope = energy.slope(x)
        return State(x, lanes, state.step, (velocity - h / 2 * slope, slope))

    def stability_limit(self, curvature):
        return 2.0 / float(np.sqrt(curvature))


class GradientFlow(ParticlePlant):
    """The deterministic flow ẋ = -∇E(x), ε = 0. It carries no Lyapunov certificate for a Gibbs measure.

    Args:
        step: h > 0 [time]; with "adaptive", the interval between states that are kept.
        scheme: "euler" (order 1), or "adaptive" (Tsitouras 5(4) by diffrax, each particle with its own step).
        tolerance: relative and absolute, of "adaptive".
        reference_temperature: ε > 0 of the Gibbs measure that a response measures the density against.

    Reference: Tsitouras, Comput. Math. Appl. 62 (2011) 770.
    """

    step: float
    scheme: Literal["euler", "adaptive"] = eqx.field(static=True)
    tolerance: float = eqx.field(static=True)
    reference: float = eqx.field(static=True)
    temperature: float
    weak_order: ClassVar[int] = 1

    def __init__(
        self,
        step: float,
        scheme: Literal["euler", "adaptive"] = "euler",
        tolerance: float = 1e-5,
        reference_temperature: float = 1.0,
    ):
        if scheme not in ("euler", "adaptive"):
            raise ValueError(f"scheme must be 'euler' or 'adaptive'; got {scheme!r}.")
        self.step, self.scheme = positive("step", step), scheme
        self.tolerance = positive("tolerance", tolerance)
        self.reference = positive("reference_temperature", reference_temperature)
        self.temperature = 0.0

    def lanes(self, dim):
        return 0

    def prepare(self, energy, state, temperature):
        return state

    @property
    def reference_temperature(self):
        return self.reference

    def move(self, energy, state, temperature):
        x = state.position
        h = jnp.asarray(self.step, x.dtype)
        if self.scheme == "euler":
            x = x + h * self.drift(energy, x)
        else:
            x = self.follow(lambda t, y: -energy.slope(y), x, jnp.zeros((), x.dtype))
        return State(x, state.lanes, state.step)

    def drift(self, energy: Energy, x: jax.Array) -> jax.Array:
        """-∇E, (d, n)."""
        return self.command(energy.slope(x))

    def command(self, slope: jax.Array) -> jax.Array:
        """The drift that a slope (d, n) commands, its negative."""
        return -slope

    def follow(self, velocity: Callable, x: jax.Array, t: jax.Array, *extra: jax.Array) -> jax.Array:
        """The flow of ẋ = velocity(t, x, *extra) over one step from t, each particle with its own steps.

        Args:
            velocity: of one particle, x (d,) and the rows of `extra` that are its own.
            x: (d, n).
            extra: (..., n).
        """
        return _adaptive(velocity, x, t, jnp.asarray(self.step, x.dtype), self.tolerance, extra)

    def dissipation(self, state, energy):
        """-V̇ = E|∇E|²/ε - E[ΔE] at the reference temperature: of either sign, for this flow has no certificate."""
        residual = measure.stein_residual(np.asarray(state, np.float64), energy, self.reference_temperature)
        scale = self.reference_temperature
        return Estimate(-residual.value / scale, residual.error / scale)

    def stability_limit(self, curvature):
        return 2.0 / curvature if self.scheme == "euler" else float("inf")


def _adaptive(velocity: Callable, x: jax.Array, t: jax.Array, h: jax.Array, tolerance: float, extra: Any) -> jax.Array:
    import diffrax

    term = diffrax.ODETerm(lambda s, y, own: velocity(t + s, y, *own))

    def one(y: jax.Array, *own: jax.Array) -> jax.Array:
        solution = diffrax.diffeqsolve(
            term, diffrax.Tsit5(), 0.0, h, h / 4, y, own, throw=False,
            stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance), max_steps=10_000,
            saveat=diffrax.SaveAt(t1=True),
        )  # fmt: skip
        ok = solution.result == diffrax.RESULTS.successful
        return jnp.where(ok, jnp.asarray(solution.ys)[0], jnp.nan)

    return jax.vmap(one, in_axes=(1, *(-1 for _ in extra)), out_axes=1)(x, *extra)


def _flown(
    x: jax.Array, velocity: jax.Array, span: Any, accept: Callable | None, k: int
) -> tuple[jax.Array, jax.Array]:
    """Positions and velocities after a free flight, which is not made where it is not accepted."""
    y = x + span * velocity
    if accept is None:
        return y, velocity
    made = accept(k, x, y)
    return jnp.where(made, y, x), jnp.where(made, velocity, -velocity)


def _solve(root: Any, x: jax.Array) -> jax.Array:
    """(root rootᵀ)⁻¹ x."""
    if root is None:
        return x
    root = jnp.asarray(root, x.dtype)
    return x / (root**2)[:, None] if root.ndim == 1 else jax.scipy.linalg.cho_solve((root, True), x)


def _mobility(metric: Any) -> tuple[Any, np.ndarray | None]:
    if metric is None:
        return None, None
    if callable(metric):
        return StateMobility(metric), None
    m = np.asarray(metric, dtype=np.float64)
    if m.ndim == 1:
        if not (np.isfinite(m).all() and (m > 0).all()):
            raise ValueError(f"metric must be positive on its diagonal; got {m}.")
        return 1 / m, 1 / np.sqrt(m)
    k = np.linalg.inv(positive_definite("metric", m))
    k = (k + k.T) / 2
    return k, np.linalg.cholesky(k)


def _skew(skew: Any) -> np.ndarray | None:
    if skew is None:
        return None
    j = np.asarray(skew, dtype=np.float64)
    if j.ndim != 2 or j.shape[0] != j.shape[1] or not np.isfinite(j).all():
        raise ValueError(f"skew must be a finite square matrix (d, d); got shape {j.shape}.")
    if np.abs(j + j.T).max() > 1e-12 * max(1.0, float(np.abs(j).max())):
        raise ValueError(
            f"skew must be skew-symmetric; largest |J + J.T| is {np.abs(j + j.T).max():.1e}. Pass (J - J.T) / 2."
        )
    return (j - j.T) / 2
