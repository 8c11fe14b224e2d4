"""The nonreversible drift that contracts fastest: J, skew, in dX = -(K + J)∇E dt + √(2εK) dW, with its certificate.

For a quadratic energy of precision S the modes of the loop are the eigenvalues of (K + J)S, and as tr(JS) = 0 the
slowest decays at the rate tr(KS)/d at most. The construction attains it. With S̃ = S^½KS^½ take an orthonormal basis in
which the diagonal of S̃ is constant, numbers λ₁, ..., λ_d > 0, all different, and J̃_jk = (λ_j + λ_k)/(λ_j - λ_k) S̃_jk:
then Q = diag(λ) obeys (S̃ + J̃)Q + Q(S̃ + J̃)ᵀ = 2(tr S̃/d)Q, so that in the metric Q⁻¹ everything contracts at tr S̃/d.
In the states J = S^-½ J̃ S^-½, and the metric is P = S^½ Q⁻¹ S^½.

Reference: Lelièvre, Nier and Pavliotis, J. Stat. Phys. 152 (2013) 237, Theorem 2 and section 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np

from ctrlgen.certify.constants import other_gradient
from ctrlgen.certify.existence import refuse_without_gibbs
from ctrlgen.certify.premise import missing, premise, shown_down, shown_up
from ctrlgen.certify.verdict import Step, Verdict, combine
from ctrlgen.checks import positive
from ctrlgen.energies.algebra import Composition, parted
from ctrlgen.energies.base import Energy
from ctrlgen.energies.spectral import above_root, down, up
from ctrlgen.energies.tails import tail, total
from ctrlgen.plants.particles import Langevin
from ctrlgen.prove.balls import positive_definite
from ctrlgen.prove.claim import Deadline, Status
from ctrlgen.prove.program import pivots

SHARES = (0.0, 1e-15, 1e-14, 1e-13, 1e-12, 1e-11, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
EXACT = 24  # size up to which a matrix is shown to be positive by elimination in rationals
BITS = 300  # of balls, above
DRAWS = 1000  # of the Gibbs measure, for the mean Hessian
STARTS = 8  # of a descent to the mode
SWEEPS = 8  # of swaps over the basis


@dataclass(frozen=True, kw_only=True, repr=False)
class SkewVerdict(Verdict):
    """What is known of a nonreversible drift.

    Args:
        skew: J, (d, d), exactly skew-symmetric [length² / (energy · time)]; for `Langevin(..., skew=J)`.
        rate: [1/time] at which two trajectories driven by one noise approach each other in the metric `contraction`,
            and the mean of the loop its limit: proved, rounded down. As linearised, when SAMPLED.
        bound: [1/time] tr(KS)/d, rounded up: no J does better.
        plain: [1/time] the rate without J, λ_min(KS), in floating point.
        contraction: P, (d, d): |x(t) - y(t)|_P ≤ e^{-rate·t}|x(0) - y(0)|_P.
        constant: √(λ_max(P)/λ_min(P)), rounded up: |x(t) - y(t)| ≤ constant·e^{-rate·t}|x(0) - y(0)|.
        energy_constant: the same in the norm |x|_S of the energy, √(xᵀSx): about √spread.
        stability_limit: [time] the largest stable step of Euler's method, the least 2 Re μ/|μ|² over the eigenvalues μ
            of (K + J)S, in floating point.
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

    def plot(self, ax: Any = None, **view: Any) -> Any:
        """Draw the rate with and without the skew part: see `ctrlgen.plot.skew_rates`."""
        from ctrlgen import plot

        return plot.skew_rates(self, ax, **view)

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

    For a quadratic energy the rate tr(KS)/d is certified by a constant metric, in exact arithmetic on the numbers of J,
    S, K and the metric as they are. All energies keep their Gibbs measure under every J. For another energy J is that
    of its mean curvature, and the rate is the one of this linearisation: SAMPLED, no promise. So is one of code with
    derivatives of its own, which particles may follow instead of -∇E.

    `spread` trades the size of J against the transient: as it grows, J shrinks and the stable step grows, while
    deviations may grow √spread-fold (in the energy's norm) before they decay. The rate is the same for every spread.
    The step shrinks with the dimension all the same (neighbouring λ are close): what counts for a sampler is
    rate × step, against λ_min/λ_max of the plain loop.

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
        ValueError: an argument is out of its range, the (mean) curvature is not positive definite, or the energy has
            walls or no Gibbs measure.
    """
    if not isinstance(energy, Energy):
        raise TypeError(f"energy must be an Energy; got {type(energy).__name__}.")
    if positive("spread", spread) <= 1:
        raise ValueError(f"spread must be above 1, as the ratio of the λ's; got {spread!r}.")
    factor = 1.0 if size is None else positive("size", size)
    deadline = Deadline(positive("timeout", timeout))
    mobility = constant_mobility(metric, energy.dim)
    refuse_walls(energy)
    refuse_without_gibbs(energy)
    exact, other = quadratic_hessian(energy), other_gradient(energy)
    if exact is not None and not other:
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


def quadratic_hessian(energy: Energy) -> np.ndarray | None:
    """The Hessian of a quadratic polynomial, of one term or a sum, (d, d) of Fractions; None for other energies."""
    known = total(energy.terms, energy.weights.tolist()) if isinstance(energy, Composition) else tail(energy)
    return known.quadratic if known is not None and known.exact and known.higher == 0 else None


def refuse_walls(energy: Energy) -> None:
    """Raise ValueError for an energy with walls: what a loop does at them is no part of these claims."""
    if parted(energy).sets:
        raise ValueError("energy must have no walls here: the loop is taken to be free. Leave them to a SafetyFilter.")


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
    """The order after swaps, each the best of one place with another, that lower Σ square·table."""
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
    hessian: np.ndarray, metric: Any, mobility: np.ndarray, spread: float, size: float, deadline: Deadline
) -> SkewVerdict:
    exact, precision = exactly(hessian), symmetric(hessian.astype(np.float64))
    if not is_positive(exact):
        raise ValueError(
            "energy must have a positive definite precision; the smallest eigenvalue of this one is about "
            f"{np.linalg.eigvalsh(precision)[0]:.3g}, and then its Gibbs measure does not exist or has no scale."
        )
    skew, factor = construct(precision, mobility, spread)
    skew = size * skew
    if size != 1:
        factor = _eigenfactor((mobility + skew) @ precision)
    k, j, d = exactly(mobility), exactly(skew), len(mobility)
    flow = (k + j) * exact
    bound, known = _fraction_of(_trace(k * exact)) / d, _numbers(precision, mobility, skew)
    slowest = known.pop("slowest")
    text = f"with this J, |x(t) - y(t)|_P ≤ exp(-rate·t)|x(0) - y(0)|_P along the loop in {d} dimensions"
    about: dict[str, Any] = {"skew": skew, "metric": metric, "bound": up(bound), **known}
    found = certified_rate(flow, factor, exact, float(bound) if size == 1 else slowest, deadline)
    if isinstance(found, str):
        reason = f"{found}; in floating point the slowest mode decays at {slowest:.9g}"
        return combine(text, [missing("a rate", reason)], kind=SkewVerdict, deadline=deadline, **about)
    limit = premise(
        f"tr((K + J)S)/d = tr(KS)/d ≤ {shown_up(up(bound))}: no J does better", "tr(JS) = 0",
        lambda: _trace((k + j) * exact) == _trace(k * exact), "exact",
    )  # fmt: skip
    return combine(
        f"{text}, rate = {shown_down(found.rate, 12)}", [kept(skew), limit, *found.steps],
        assumptions=("the loop in continuous time; both trajectories are driven by one noise",),
        kind=SkewVerdict, deadline=deadline, rate=found.rate, contraction=found.metric,
        constant=found.constant, energy_constant=found.energy_constant, **about,
    )  # fmt: skip


def kept(skew: np.ndarray) -> Step:
    """The step that a constant J, a matrix of floats that is exactly skew, keeps every Gibbs measure."""
    return premise(
        "J + Jᵀ = 0 exactly, so that J∇E keeps exp(-E/ε) at every ε", "∇·(ρJ∇E) = 0: tr(J∇²E) = 0 and ∇E·J∇E = 0",
        lambda: bool((skew == -skew.T).all()), "exact",
    )  # fmt: skip


@dataclass(frozen=True)
class Certified:
    """A rate of a linear flow and what shows it.

    Args:
        rate: λ with PA + AᵀP ⪰ 2λP.
        metric: P, rounded to floats.
        constant: √cond P, rounded up.
        energy_constant: √(h/l) with lS ⪯ P ⪯ hS, rounded up.
        steps: the proof.
    """

    rate: float
    metric: np.ndarray
    constant: float
    energy_constant: float
    steps: list[Step]


def certified_rate(flow: Any, factor: np.ndarray, precision: Any, aim: float, deadline: Deadline) -> Certified | str:
    """The largest rate near `aim` that P = FᵀF shows for ẋ = -Ax, or why there is none.

    Args:
        flow: A, (d, d), exact.
        factor: F, floats. P is rounded to floats, or, where that costs too much of the rate, FᵀF exactly.
        precision: S, (d, d), exact, for the constant in its norm.
        aim: about the rate.
        deadline: when to stop.
    """
    rounded, f = symmetric(factor.T @ factor), exactly(factor)
    how = "exact" if len(rounded) <= EXACT else "interval"
    for p in (exactly(rounded), f.transpose() * f):
        both = p * flow
        both = both + both.transpose()
        for share in SHARES if len(rounded) <= EXACT else SHARES[4::2]:
            if deadline.over:
                return "the time was over before a rate was verified"
            rate = down(Fraction(aim) * (1 - Fraction(share)))
            slack = both - p * fmpq_of(2 * Fraction(rate))
            if rate <= 0 or not is_positive(slack, weak=True):
                continue
            if (ends := _ends(p, precision, rounded)) is None:
                break
            steps = [
                premise(
                    f"P(K + J)S + S(K - J)P ⪰ 2·{shown_down(rate, 12)}·P", "d/dt |x - y|²_P ≤ -2·rate·|x - y|²_P",
                    partial(is_positive, slack, True), how,
                ),
                premise("P ≻ 0", "its pivots are positive", partial(is_positive, p), how),
            ]  # fmt: skip
            return Certified(rate, rounded, *ends, steps=steps)
    return "no metric was verified in exact numbers: at this condition the rounding of J alone may be too much"


def _ends(p: Any, precision: Any, rounded: np.ndarray) -> tuple[float, float] | None:
    """√cond of P, and of P in the norm of S, rounded up; None where P is not certainly positive definite."""
    unit, floats = exactly(np.eye(len(rounded))), symmetric(_floats(precision))
    plain = _between(p, unit, np.linalg.eigvalsh(rounded))
    energy = _between(p, precision, np.linalg.eigvalsh(_whitened(rounded, floats)))
    return None if plain is None else (plain, np.inf if energy is None else energy)


def _between(p: Any, other: Any, values: np.ndarray) -> float | None:
    """√(h/l) with l·other ⪯ P ⪯ h·other, rounded up, from estimates of the eigenvalues."""
    low = high = None
    for share in (1e-12, 1e-9, 1e-6, 1e-3):
        ends = Fraction(float(values[0])) * (1 - Fraction(share)), Fraction(float(values[-1])) * (1 + Fraction(share))
        if low is None and ends[0] > 0 and is_positive(p - other * fmpq_of(ends[0]), weak=True):
            low = ends[0]
        if high is None and is_positive(other * fmpq_of(ends[1]) - p, weak=True):
            high = ends[1]
    return None if low is None or high is None else above_root(high / low)


def is_positive(matrix: Any, weak: bool = False) -> bool:
    """Is a symmetric rational matrix of python-flint's ≻ 0 (⪰ 0 when weak)?

    By elimination in rationals up to 24 rows. Above in balls, where False means "not established".
    """
    rows = matrix.tolist()
    if len(rows) <= EXACT:
        found = pivots(rows)
        return found is not None and (weak or all(v > 0 for v in found))
    from flint import arb, ctx

    with ctx.workprec(BITS):
        return positive_definite([[arb(v) for v in row] for row in rows])


def exactly(matrix: np.ndarray) -> Any:
    """A matrix of floats or Fractions as an exact one of python-flint's."""
    from flint import fmpq, fmpq_mat

    entries = [fmpq(*Fraction(v).as_integer_ratio()) for v in matrix.ravel().tolist()]
    rows, columns = matrix.shape
    return fmpq_mat(rows, columns, entries)


def fmpq_of(value: Fraction) -> Any:
    """A Fraction as python-flint's."""
    from flint import fmpq

    return fmpq(value.numerator, value.denominator)


def symmetric(matrix: np.ndarray) -> np.ndarray:
    """The symmetric part."""
    return (matrix + matrix.T) / 2


def _fraction_of(value: Any) -> Fraction:
    return Fraction(int(value.p), int(value.q))


def _trace(matrix: Any) -> Any:
    return sum((matrix[i, i] for i in range(1, matrix.nrows())), matrix[0, 0])


def _floats(matrix: Any) -> np.ndarray:
    return np.array([[float(_fraction_of(v)) for v in row] for row in matrix.tolist()])


def _whitened(p: np.ndarray, precision: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(precision)
    inverse = vectors / np.sqrt(np.maximum(values, np.finfo(float).tiny))
    return symmetric(inverse.T @ p @ inverse)


def _eigenfactor(flow: np.ndarray) -> np.ndarray:
    """F with FᵀF a metric in which ẋ = -flow·x contracts at about its slowest mode: the inverse of the eigenvectors.

    Where these are next to dependent, a Lyapunov equation a little below that rate.
    """
    from scipy.linalg import solve_continuous_lyapunov

    values, vectors = map(np.asarray, np.linalg.eig(flow))
    if np.linalg.cond(vectors) < 1e7:
        inverse = np.linalg.inv(vectors)
        metric = np.real(inverse.conj().T @ inverse)
    else:
        moved = flow - (1 - 1e-4) * np.real(values).min() * np.eye(len(flow))
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
        "slowest": float(modes.real.min()),
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
    rate = known.pop("slowest")
    p = symmetric(factor.T @ factor)
    ends, inner = np.linalg.eigvalsh(p), np.linalg.eigvalsh(_whitened(p, mean))
    told, other = "" if error is None else f" ± {error:.2g}", other_gradient(energy)
    return SkewVerdict(
        claim=f"with this J the loop linearised with the Hessian {how} decays at the rate {rate:.6g}{told}",
        status=Status.SAMPLED, method="linearised", steps=(kept(skew),), seconds=deadline.spent,
        reason=f"{other or 'the energy is not quadratic'}: the rate is that of the linear loop, and promises nothing "
        "of this one",
        skew=skew, metric=metric, rate=rate, error=error, bound=float(np.trace(mobility @ mean)) / len(mean),
        assumptions=(f"particles follow -∇E, although {other}",) if other else (),
        contraction=p, constant=float(np.sqrt(ends[-1] / ends[0])),
        energy_constant=float(np.sqrt(inner[-1] / inner[0])),
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
            f"no minimum with a positive definite Hessian was found from {STARTS} starts. "
            "Pass samples= or temperature=."
        )
    return np.asarray(min(fine, key=lambda f: f.fun).x)
