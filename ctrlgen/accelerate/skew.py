"""The nonreversible drift that contracts fastest: J, skew, in dX = -(K + J)∇E dt + √(2εK) dW, with its certificate.

For a quadratic energy of precision S the modes of the loop are the eigenvalues of (K + J)S, and as tr(JS) = 0 the slowest
decays at the rate tr(KS)/d at most. The construction attains it. With S̃ = S^½KS^½ take an orthonormal basis in which the
diagonal of S̃ is constant, numbers λ₁, ..., λ_d > 0, all different, and J̃_jk = (λ_j + λ_k)/(λ_j - λ_k) S̃_jk: then
Q = diag(λ) obeys (S̃ + J̃)Q + Q(S̃ + J̃)ᵀ = 2(tr S̃/d)Q, so that Q⁻¹ is a metric in which everything contracts at tr S̃/d.
J = S^-½ J̃ S^-½, in the basis of the states, and the metric P = S^½ Q⁻¹ S^½.

Reference: Lelièvre, Nier and Pavliotis, J. Stat. Phys. 152 (2013) 237, Theorem 2 and section 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np

from ctrlgen.certify.existence import refuse_without_gibbs
from ctrlgen.certify.pieces import at_least, exact_hessian
from ctrlgen.certify.premise import missing, premise, shown_down, shown_up
from ctrlgen.certify.verdict import Step, Verdict, combine
from ctrlgen.checks import positive, positive_definite
from ctrlgen.energies.algebra import quadratic_bounds
from ctrlgen.energies.base import Energy
from ctrlgen.energies.spectral import above_root, down, lowest_eigenvalue, up
from ctrlgen.energies.tails import fractions
from ctrlgen.plants.particles import Langevin
from ctrlgen.prove.claim import Deadline, Status

SHARES = (0.0, 1e-15, 1e-14, 1e-13, 1e-12, 1e-11, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
EXACT = 24  # size up to which a matrix is shown to be positive by elimination in rationals
DRAWS = 1000  # of the Gibbs measure, for the mean Hessian
STARTS = 8  # of a descent to the mode
SWEEPS = 8  # of swaps over the basis


@dataclass(frozen=True, kw_only=True, repr=False)
class SkewVerdict(Verdict):
    """What is known of a nonreversible drift.

    Args:
        skew: J, (d, d), exactly skew-symmetric [length² / (energy · time)]; for `Langevin(..., skew=J)`.
        rate: [1/time] at which two trajectories driven by one noise approach each other in the metric `contraction`, and
            the means of the loop their limit: proved, rounded down. As linearised, when SAMPLED.
        bound: [1/time] tr(KS)/d, rounded up: no J does better.
        plain: [1/time] the rate without J, λ_min(KS), in floating point.
        contraction: P, (d, d): |x(t) - y(t)|_P ≤ e^{-rate·t}|x(0) - y(0)|_P.
        constant: √(λ_max(P)/λ_min(P)), rounded up: |x(t) - y(t)| ≤ constant·e^{-rate·t}|x(0) - y(0)|.
        energy_constant: the same in the norm |x|_S of the energy, √(xᵀSx): about √spread.
        stability_limit: [time] the largest stable step of Euler's method, the least 2 Re μ/|μ|² over the eigenvalues μ of
            (K + J)S, in floating point.
        metric: M, as it was given; None is the identity.
        error: standard error of the mean curvature's rate, when SAMPLED from states.
    """

    skew: np.ndarray
    rate: float | None = None
    bound: float | None = None
    plain: float | None = None
    contraction: np.ndarray | None = None
    constant: float | None = None
    energy_constant: float | None = None
    stability_limit: float = np.inf
    metric: Any = None
    error: float | None = None

    def plant(self, temperature: float, fraction: float = 0.5) -> Langevin:
        """Langevin with this J and metric, by Euler's method with a fraction of the largest stable step.

        Args:
            temperature: ε > 0 [energy].
            fraction: in (0, 1).

        Raises:
            ValueError: an argument is out of its range.
        """
        return Langevin(temperature, _fraction(fraction) * self.stability_limit, metric=self.metric, skew=self.skew)

    def _rows(self) -> list[tuple[str, str]]:
        rows = super()._rows()
        place = next((i for i, row in enumerate(rows) if row[0] == "rate"), len(rows) - 1)
        extra = [("plain", self.plain), ("constant", self.constant), ("step <", self.stability_limit)]
        return [*rows[: place + 1], *((n, f"{v:.6g}") for n, v in extra if v is not None), *rows[place + 1 :]]


def optimal_skew(
    energy: Energy,
    metric: Any = None,
    *,
    spread: float = 4.0,
    temperature: float | None = None,
    samples: Any = None,
    size: float | None = None,
    timeout: float = 30,
) -> SkewVerdict:
    """The skew J that makes the slowest mode of dX = -(K + J)∇E dt + √(2εK) dW as fast as any J can.

    For a quadratic energy the rate tr(KS)/d is certified by a constant metric, in exact arithmetic on the numbers of J, S,
    K and the metric as they are. All energies keep their Gibbs measure under every J. For another energy J is that of its
    mean curvature, and the rate is the one of this linearisation: SAMPLED, no promise.

    `spread` trades the size of J against the transient: as it grows, J shrinks and the stable step grows towards that of
    a J without oscillation, while deviations may grow √spread-fold (in the energy's norm) before they decay. The rate is
    the same for every spread.

    Args:
        energy: E.
        metric: M, as in `Langevin`, (d,) or (d, d), K = M⁻¹; the identity when omitted.
        spread: λ_max/λ_min > 1 of the construction.
        temperature: ε [energy]: for an energy that is not quadratic, J is that of the mean Hessian under its Gibbs
            measure at ε. Without it, and without samples, the Hessian at the deepest minimum that a descent finds.
        samples: states (n, d) over which the Hessian of an energy that is not quadratic is averaged.
        size: a factor on J; its rate is then found and certified anew. 1 when omitted.
        timeout: seconds, of the verification.

    Raises:
        TypeError: energy is not an Energy.
        ValueError: an argument is out of its range, or the (mean) curvature is not positive definite.
    """
    if not isinstance(energy, Energy):
        raise TypeError(f"energy must be an Energy; got {type(energy).__name__}.")
    if not (np.isfinite(spread) and spread > 1):
        raise ValueError(f"spread must be finite and above 1, the ratio of the λ's; got {spread!r}.")
    factor = 1.0 if size is None else positive("size", size)
    deadline = Deadline(positive("timeout", timeout))
    mobility = constant_mobility(metric, energy.dim)
    refuse_without_gibbs(energy)
    exact = exact_hessian(energy)
    if exact is not None:
        return _of_quadratic(exact, metric, mobility, float(spread), factor, deadline)
    return _of_mean(energy, metric, mobility, float(spread), factor, temperature, samples, deadline)


def constant_mobility(metric: Any, dim: int) -> np.ndarray:
    """K = M⁻¹ as `Langevin` computes it, (d, d), exactly symmetric.

    Raises:
        ValueError: the metric is not positive definite, of another size, or depends on the state.
    """
    if callable(metric):
        raise ValueError("metric must be constant here, (d,) or (d, d); got a function of the state.")
    plant = Langevin(1.0, 1.0, metric=metric)
    if plant.mobility is None:
        return np.eye(dim)
    if plant.dim != dim:
        raise ValueError(f"metric must be of size {dim}, the dimension of the energy; got {plant.dim}.")
    k = np.asarray(plant.mobility, np.float64)
    return np.diag(k) if k.ndim == 1 else k


def _fraction(value: float) -> float:
    if not 0 < value < 1:
        raise ValueError(f"fraction must be between 0 and 1, of the largest stable step; got {value!r}.")
    return float(value)


# The construction, in floats --------------------------------------------------------------------------------------


def construct(precision: np.ndarray, mobility: np.ndarray, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """(J, F): the skew matrix, and a factor of the metric P = FᵀF in which all contracts at tr(KS)/d.

    Args:
        precision: S, (d, d), symmetric positive definite.
        mobility: K, likewise.
        spread: λ_max/λ_min.
    """
    values, vectors = np.linalg.eigh(precision)
    root, inverse = vectors * np.sqrt(values), vectors / np.sqrt(values)  # S = root rootᵀ
    inner = root.T @ mobility @ root
    inner = (inner + inner.T) / 2
    basis = levelled(inner)
    order, weights = _arranged(basis.T @ inner @ basis, spread)
    basis = basis[:, order]
    inner = basis.T @ inner @ basis
    gap = weights[:, None] - weights[None, :]
    ratio = (weights[:, None] + weights[None, :]) / np.where(gap == 0, 1, gap)
    skew = np.where(gap == 0, 0, ratio * (inner + inner.T) / 2)
    left = inverse @ basis
    skew = left @ skew @ left.T
    return (skew - skew.T) / 2, (basis.T @ root.T) / np.sqrt(weights)[:, None]


def levelled(matrix: np.ndarray) -> np.ndarray:
    """An orthonormal basis, as columns, in which every diagonal entry of a symmetric matrix is its mean.

    One rotation a column: of the entries that are left, the largest with the smallest, through the angle that makes one
    of them the mean. Reference: Horn and Johnson, Matrix Analysis (2013), problem 2.2.P3.
    """
    work, d = np.array(matrix, np.float64), len(matrix)
    basis, mean, left = np.eye(d), float(np.trace(matrix)) / d, list(range(d))
    while len(left) > 1:
        diagonal = np.diag(work)[left]
        i, j = left[int(diagonal.argmax())], left[int(diagonal.argmin())]
        a, b, c = work[i, i] - mean, work[j, j] - mean, work[i, j]
        if not (a > 0 > b):
            break
        # tan t with cos²t·a + 2 cos t sin t·c + sin²t·b = 0
        root = np.sqrt(c * c - a * b)
        t = -a / (c + root) if c >= 0 else a / (root - c)
        cosine = 1 / np.hypot(1.0, t)
        turn = np.array([[cosine, -t * cosine], [t * cosine, cosine]])
        pair = [i, j]
        work[:, pair] = work[:, pair] @ turn
        work[pair] = turn.T @ work[pair]
        basis[:, pair] = basis[:, pair] @ turn
        left.remove(i)
    return basis


def _arranged(inner: np.ndarray, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """An order of the basis, and λ for it from `spread` down to 1, so that pairs that couple much lie far apart.

    J̃_jk is S̃_jk times coth(½|log λ_j - log λ_k|), large for neighbours: Σ J̃² is lowered by swaps of places. In 20 to
    200 dimensions the stable step gains a factor of 4 to 18. (Moving the λ besides gains nothing.)
    """
    d = len(inner)
    logs = np.linspace(np.log(spread), 0.0, d) if d > 1 else np.zeros(1)
    square = np.array(inner) ** 2
    np.fill_diagonal(square, 0)
    if d < 3 or not square.any():
        return np.arange(d), np.exp(logs)
    return _swapped(square, _coth_square(logs[:, None] - logs[None, :])), np.exp(logs)


def _swapped(square: np.ndarray, table: np.ndarray) -> np.ndarray:
    """The order after swaps, each the best of one place with another, that lower Σ square_jk table_{place j, place k}."""
    d = len(square)
    order, s = np.arange(d), square.copy()
    for _ in range(SWEEPS):
        swaps = 0
        for p in range(d):
            change = s @ table[p] - (s * table).sum(axis=1) - s[p] @ table[p] + table @ s[p] + 2 * s[p] * table[p]
            change[p] = 0
            q = int(change.argmin())
            if change[q] < -1e-12 * s.max() * table.max():
                swaps += 1
                order[[p, q]] = order[[q, p]]
                s[[p, q]] = s[[q, p]]
                s[:, [p, q]] = s[:, [q, p]]
        if not swaps:
            break
    return order


def _coth_square(gap: np.ndarray) -> np.ndarray:
    """coth²(gap/2), 1e12 where the gap is next to nothing."""
    return 1 / np.maximum(np.tanh(np.abs(gap) / 2), 1e-6) ** 2 * (gap != 0)


# The certificate, in exact numbers ----------------------------------------------------------------------------------


def _of_quadratic(
    exact: np.ndarray, metric: Any, mobility: np.ndarray, spread: float, size: float, deadline: Deadline
) -> SkewVerdict:
    precision = _floats(exact)
    if not is_positive(exact):
        raise ValueError(
            "energy must have a positive definite precision; the smallest eigenvalue of this one is about "
            f"{np.linalg.eigvalsh(precision)[0]:.3g}, and its Gibbs measure does not exist."
        )
    skew, factor = construct(precision, mobility, spread)
    skew = size * skew
    if size != 1:
        factor = _eigenfactor((mobility + skew) @ precision)
    k = fractions(mobility)
    trace = sum(((k @ exact)[i, i] for i in range(len(exact))), Fraction(0))
    bound, known = trace / len(exact), _numbers(precision, mobility, skew)
    text = f"with this J, |x(t) - y(t)|_P ≤ exp(-rate·t)|x(0) - y(0)|_P along the loop in {len(exact)} dimensions"
    about: dict[str, Any] = {"skew": skew, "metric": metric, "bound": up(bound), **known}
    flow = exact_product(k + fractions(skew), exact)
    aim = float(bound) if size == 1 else known["stability"][0]
    about.pop("stability")
    found = certified_rate(flow, factor, exact, aim, deadline)
    if isinstance(found, str):
        reason = f"{found}; in floating point the rate is {np.linalg.eigvals(_floats(flow)).real.min():.9g}"
        return combine(text, [missing("a rate", reason)], kind=SkewVerdict, deadline=deadline, **about)
    drawn = premise(
        "J is skew-symmetric, so that the loop keeps exp(-E/ε) for every ε",
        "∇·(ρJ∇E) = 0: tr(J∇²E) = 0 and ∇E·J∇E = 0", lambda: is_skew(fractions(skew)), "exact",
    )  # fmt: skip
    limit = premise(f"tr((K + J)S)/d = tr(KS)/d ≤ {shown_up(up(bound))}: no J does better", "tr(JS) = 0",
                    lambda: _trace(flow) == trace, "exact")  # fmt: skip
    return combine(
        f"{text}, rate = {shown_down(found.rate, 12)}", [drawn, limit, *found.steps],
        assumptions=("the loop in continuous time; both trajectories are driven by one noise",),
        kind=SkewVerdict, deadline=deadline, rate=found.rate, contraction=found.metric,
        constant=found.constant, energy_constant=found.energy_constant, **about,
    )  # fmt: skip


@dataclass(frozen=True)
class Certified:
    """A rate of a linear flow and what shows it.

    Args:
        rate: λ with PA + AᵀP ⪰ 2λP.
        metric: P.
        constant: √cond P, rounded up.
        energy_constant: √(h/l) with lS ⪯ P ⪯ hS, rounded up.
        steps: the proof.
    """

    rate: float
    metric: np.ndarray
    constant: float
    energy_constant: float
    steps: list[Step]


def certified_rate(
    flow: np.ndarray, factor: np.ndarray, precision: np.ndarray, aim: float, deadline: Deadline
) -> Certified | str:
    """The largest rate near `aim` that P = FᵀF shows for ẋ = -Ax, or why there is none.

    Args:
        flow: A, (d, d) of Fractions.
        factor: F, floats. P is rounded to floats, or, where that costs too much, FᵀF exactly.
        precision: S, (d, d) of Fractions, for the constant in its norm.
        aim: about the rate.
        deadline: when to stop.
    """
    rounded = factor.T @ factor
    rounded = (rounded + rounded.T) / 2
    f = fractions(factor)
    for p in (fractions(rounded), exact_product(f.T, f)):
        both = exact_product(p, flow)
        both = both + both.T
        for share in SHARES:
            if deadline.over:
                return "the time was over before a rate was verified"
            rate = down(Fraction(aim) * (1 - Fraction(share)))
            if rate <= 0 or not is_positive(both - 2 * Fraction(rate) * p, weak=True):
                continue
            ends = _ends(p, precision)
            if ends is None:
                break
            shown = premise(
                f"P(K + J)S + S(K - J)P ⪰ {shown_down(2 * rate, 12)} P", "d/dt |x - y|²_P ≤ -2·rate·|x - y|²_P",
                partial(is_positive, both - 2 * Fraction(rate) * p, True), "exact" if len(p) <= EXACT else "interval",
            )  # fmt: skip
            steps = [shown, premise("P ≻ 0", "its eigenvalues", lambda p=p: is_positive(p), shown.outcome.method)]
            return Certified(rate, rounded, *ends, steps=steps)
    return "no metric was verified in exact numbers: the rounding of J alone is too much at this condition"


def _ends(p: np.ndarray, precision: np.ndarray) -> tuple[float, float] | None:
    """√cond of P, and of P in the norm of S, rounded up; None where P is not certainly positive definite."""
    low, high = quadratic_bounds(p)
    if low <= 0:
        top, value = _floats(p), np.linalg.eigvalsh(_floats(p))
        low = next((m for s in SHARES[3:] if (m := value[0] * (1 - s)) > 0 and _above(p, m, None)), 0.0)
        high = float(np.abs(top).sum(axis=1).max()) * (1 + 1e-9)
        if low <= 0:
            return None
    values = np.linalg.eigvalsh(_whitened(_floats(p), _floats(precision)))
    inner = next((m for s in SHARES[3:] if _above(p, m := float(values[0]) * (1 - s), precision)), None)
    outer = next((m for s in SHARES[3:] if _above(-p, m := -float(values[-1]) * (1 + s), precision)), None)
    energy = np.inf if inner is None or outer is None else above_root(-Fraction(outer) / Fraction(inner))
    return above_root(Fraction(high) / Fraction(low)), float(energy)


def _above(matrix: np.ndarray, low: float, other: np.ndarray | None) -> bool:
    """Is matrix ⪰ low·other (the identity when None)?"""
    unit = fractions(np.eye(len(matrix))) if other is None else other
    return is_positive(matrix - Fraction(low) * unit, weak=True)


def _whitened(p: np.ndarray, precision: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(precision)
    inverse = vectors / np.sqrt(np.maximum(values, np.finfo(float).tiny))
    out = inverse.T @ p @ inverse
    return (out + out.T) / 2


def is_positive(matrix: np.ndarray, weak: bool = False) -> bool:
    """Is a symmetric matrix of Fractions ≻ 0 (⪰ 0 when weak)? False means "not established" above 24 rows.

    By elimination in rationals up to 24 rows. Above, by Cholesky's factors in floats with a bound of their error, after
    a scaling to unit diagonal; where that is not enough, in balls.
    """
    d = len(matrix)
    if d <= EXACT:
        return at_least(matrix, 0.0) and (weak or _nonsingular(matrix))
    diagonal = [matrix[i, i] for i in range(d)]
    if min(diagonal) <= 0:
        return False
    scale = [Fraction(2) ** round(-np.log2(float(v)) / 2) if float(v) > 0 else Fraction(1) for v in diagonal]
    scaled = matrix * np.array(scale, object)[:, None] * np.array(scale, object)[None, :]
    near = _floats(scaled)
    error = np.abs(near) * 2.0**-52 + 1e-300
    if lowest_eigenvalue(near, error) > 0:
        return True
    return at_least(scaled, 0.0)


def _nonsingular(matrix: np.ndarray) -> bool:
    return to_flint(matrix).det() != 0


def to_flint(matrix: np.ndarray) -> Any:
    """A matrix of Fractions as one of python-flint's."""
    from flint import fmpq, fmpq_mat

    rows, columns = matrix.shape
    return fmpq_mat(rows, columns, [fmpq(v.numerator, v.denominator) for v in matrix.ravel()])


def exact_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The product of two matrices of Fractions, exactly."""
    product = to_flint(a) * to_flint(b)
    out = np.empty((a.shape[0], b.shape[1]), object)
    out.ravel()[:] = [Fraction(int(v.p), int(v.q)) for v in product.entries()]
    return out


def is_skew(matrix: np.ndarray) -> bool:
    """Is J + Jᵀ = 0, exactly?"""
    return bool((matrix == -matrix.T).all())


def _trace(matrix: np.ndarray) -> Fraction:
    return sum((matrix[i, i] for i in range(len(matrix))), Fraction(0))


def _floats(matrix: np.ndarray) -> np.ndarray:
    out = matrix.astype(np.float64)
    return (out + out.T) / 2 if (matrix == matrix.T).all() else out


def _eigenfactor(flow: np.ndarray) -> np.ndarray:
    """F with FᵀF a metric in which ẋ = -flow·x contracts at about its slowest mode: the inverse of the eigenvectors.

    Where these are next to dependent, a Lyapunov equation a little below that rate.
    """
    from scipy.linalg import solve_continuous_lyapunov

    values, vectors = np.linalg.eig(flow)
    if np.linalg.cond(vectors) < 1e7:
        inverse = np.linalg.inv(vectors)
        metric = (inverse.conj().T @ inverse).real
    else:
        moved = flow - (1 - 1e-4) * values.real.min() * np.eye(len(flow))
        metric = solve_continuous_lyapunov(moved.T, np.eye(len(flow)))
    metric = (metric + metric.T) / 2
    values, vectors = np.linalg.eigh(metric)
    return np.sqrt(np.maximum(values, 0))[:, None] * vectors.T


def _numbers(precision: np.ndarray, mobility: np.ndarray, skew: np.ndarray) -> dict[str, Any]:
    """What is known in floating point: the rate without J, the stability limit, and the slowest mode."""
    modes = np.linalg.eigvals((mobility + skew) @ precision)
    values, vectors = np.linalg.eigh(precision)
    root = vectors * np.sqrt(np.maximum(values, 0))
    return {
        "plain": float(np.linalg.eigvalsh(root.T @ mobility @ root)[0]),
        "stability_limit": float((2 * modes.real / np.abs(modes) ** 2).min()),
        "stability": (float(modes.real.min()),),
    }


# Energies that are not quadratic ------------------------------------------------------------------------------------


def _of_mean(
    energy: Energy, metric: Any, mobility: np.ndarray, spread: float, size: float, temperature: Any, samples: Any,
    deadline: Deadline,
) -> SkewVerdict:  # fmt: skip
    mean, error, how = _mean_hessian(energy, mobility, temperature, samples)
    least = float(np.linalg.eigvalsh(mean)[0])
    if least <= 0:
        raise ValueError(
            f"energy must have a positive definite mean curvature; that {how} has the eigenvalue {least:.3g}. Pass "
            "samples= of its Gibbs measure, or temperature=."
        )
    skew, factor = construct(mean, mobility, spread)
    skew = size * skew
    if size != 1:
        factor = _eigenfactor((mobility + skew) @ mean)
    known = _numbers(mean, mobility, skew)
    (rate,) = known.pop("stability")
    p = factor.T @ factor
    ends, inner = np.linalg.eigvalsh((p + p.T) / 2), np.linalg.eigvalsh(_whitened(p, mean))
    told = "" if error is None else f" ± {error:.2g}"
    kept = premise(
        "J is skew-symmetric, so that the loop keeps exp(-E/ε) for every ε",
        "∇·(ρJ∇E) = 0: tr(J∇²E) = 0 and ∇E·J∇E = 0", lambda: is_skew(fractions(skew)), "exact",
    )  # fmt: skip
    return SkewVerdict(
        claim=f"with this J the loop linearised with the Hessian {how} decays at the rate {rate:.6g}{told}",
        status=Status.SAMPLED, method="linearised", steps=(kept,), seconds=deadline.spent,
        reason="the energy is not quadratic: the rate is that of the linear loop, and promises nothing of this one",
        skew=skew, metric=metric, rate=rate, error=error, bound=float(np.trace(mobility @ mean)) / len(mean),
        contraction=p, constant=float(np.sqrt(ends[-1] / ends[0])), energy_constant=float(np.sqrt(inner[-1] / inner[0])),
        **known,
    )  # fmt: skip


def _mean_hessian(
    energy: Energy, mobility: np.ndarray, temperature: Any, samples: Any
) -> tuple[np.ndarray, float | None, str]:
    """The mean Hessian, the standard error of the rate tr(KH)/d, and over what it was taken."""
    if samples is None and temperature is not None:
        from ctrlgen.gibbs import Gibbs

        samples = Gibbs(energy, positive("temperature", temperature)).sample(0, DRAWS)
        how = f"averaged over {DRAWS} draws of the Gibbs measure at ε = {float(temperature):g}"
    elif samples is None:
        mode = _mode(energy)
        return energy.hessian(mode), None, "at the deepest minimum that was found"
    else:
        samples = np.asarray(samples, np.float64)
        how = f"averaged over {len(samples) if samples.ndim else 0} states"
    if samples.ndim != 2 or samples.shape[1] != energy.dim or len(samples) == 0 or not np.isfinite(samples).all():
        raise ValueError(f"samples must be finite states (n, {energy.dim}), n >= 1; got shape {samples.shape}.")
    hessians = np.asarray(energy.hessian(samples))
    rates = np.einsum("ij,nji->n", mobility, hessians) / energy.dim
    error = float(rates.std(ddof=1) / np.sqrt(len(rates))) if len(rates) > 1 else None
    return hessians.mean(axis=0), error, how


def _mode(energy: Energy) -> np.ndarray:
    from scipy.optimize import minimize

    rng = np.random.default_rng(0)
    starts = np.concatenate([np.zeros((1, energy.dim)), rng.normal(size=(STARTS - 1, energy.dim))])
    found = [
        minimize(lambda x: (float(energy(x)), np.asarray(energy.gradient(x))), start, jac=True, method="BFGS")
        for start in starts
    ]
    fine = [f for f in found if np.isfinite(f.fun) and np.linalg.eigvalsh(energy.hessian(f.x))[0] > 0]
    if not fine:
        raise ValueError(
            f"no minimum with a positive definite Hessian was found from {STARTS} starts. Pass samples= or temperature=."
        )
    return np.asarray(min(fine, key=lambda f: f.fun).x)
