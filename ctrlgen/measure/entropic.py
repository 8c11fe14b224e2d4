"""Entropy, KL divergence, free energy: closed forms for Gaussians, nearest neighbours for particles.

Everything is in nats. The error bars of nearest-neighbour estimates are standard errors: they do not
contain the bias, which grows with the dimension and with unresolved structure (2-D, 10 000 particles:
below 0.01 nats; above 5-D it dominates).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ctrlgen.datasets import check_covariance
from ctrlgen.energies.algebra import parted
from ctrlgen.energies.base import Energy
from ctrlgen.estimate import Estimate
from ctrlgen.measure import _checks as check
from ctrlgen.measure.neighbours import distances, neighbour_mean, surprise
from ctrlgen.measure.partition import log_partition as _log_partition


def kl_gaussians(mean0: Any, cov0: Any, mean1: Any, cov1: Any) -> float:
    """KL(N(mean0, cov0) ‖ N(mean1, cov1)) [nats], in closed form.

    Args:
        mean0, mean1: (d,).
        cov0, cov1: (d, d), symmetric positive definite.
    """
    mean0, cov0, mean1, cov1 = _gaussians(mean0, cov0, mean1, cov1)
    shift = mean1 - mean0
    trace = np.trace(np.linalg.solve(cov1, cov0))
    volumes = np.linalg.slogdet(cov1)[1] - np.linalg.slogdet(cov0)[1]
    return float(trace - len(shift) + shift @ np.linalg.solve(cov1, shift) + volumes) / 2


def fisher_gaussians(mean0: Any, cov0: Any, mean1: Any, cov1: Any) -> float:
    """Relative Fisher information I(ρ₀‖ρ₁) = E₀|∇log(ρ₀/ρ₁)|² of two Gaussians [1 / length²], in closed form."""
    mean0, cov0, mean1, cov1 = _gaussians(mean0, cov0, mean1, cov1)
    change = np.linalg.inv(cov1) - np.linalg.inv(cov0)
    push = np.linalg.solve(cov1, mean0 - mean1)
    return float(np.trace(change @ cov0 @ change) + push @ push)


def entropy_gaussian(cov: Any) -> float:
    """Differential entropy of N(·, cov) [nats], in closed form."""
    cov = np.atleast_2d(np.asarray(cov, dtype=np.float64))
    check_covariance("cov", cov, len(cov))
    return float(len(cov) * math.log(2 * math.pi * math.e) + np.linalg.slogdet(cov)[1]) / 2


def entropy(x: Any, k: int = 5) -> Estimate:
    """Differential entropy of the density that the particles x (n, d) are drawn from [nats].

    The Kozachenko-Leonenko estimate from the distance to the k-th neighbour.

    Raises:
        ValueError: fewer than k + 1 particles; more than k particles at one place.

    Reference: Kozachenko and Leonenko, Probl. Inf. Transm. 23 (1987) 95; Berrett, Samworth and Yuan,
    Ann. Stat. 47 (2019) 288.
    """
    k = check.count("k", k)
    return neighbour_mean(surprise(check.states("x", x, least=k + 1), k), k)


def kl(x: Any, energy: Energy, temperature: float, log_partition: Any = None, k: int = 5) -> Estimate:
    """KL(ρ‖ρ*) of the particles' density to the Gibbs measure exp(-E/ε)/Z [nats]: E[E]/ε + log Z - H.

    Args:
        x: particles (n, d).
        energy: E.
        temperature: ε > 0.
        log_partition: log Z, a number or an `Estimate`; `measure.log_partition` when omitted: quadrature in up to three
            dimensions, annealing above. Differences of `free_energy` need none.
        k: which neighbour.

    Behind walls (`Walls` or a `LogBarrier` among the energy's terms) log Z is that of the safe set, and the balls that
    a wall cuts are corrected for it.

    Returns:
        An estimate that may be slightly below 0 at the Gibbs measure. Energy and entropy are taken point by
        point, so that their fluctuations cancel where they should; log Z's error is added in quadrature.

    Raises:
        ValueError: particles are outside the energy's walls, so that KL is infinite; fewer than k + 1 particles.
    """
    k, temperature = check.count("k", k), check.positive("temperature", temperature)
    x = check.states("x", x, dim=energy.dim, least=k + 1)
    if parted(energy).sets:
        outside = np.asarray(energy(x)) == np.inf
        if outside.any():
            raise ValueError(
                f"KL is infinite: {outside.sum()} of {len(x)} particles are outside the energy's walls, the first is "
                f"row {outside.argmax()}. Drop them, or keep the loop inside by its safety filter."
            )
    if log_partition is None:
        log_partition = _log_partition(energy, temperature)
    log_z = log_partition if isinstance(log_partition, Estimate) else Estimate(float(log_partition))
    height = check.at_particles("energy", np.asarray(energy(x)))
    out = neighbour_mean(height / temperature - surprise(x, k, energy), k)
    return Estimate(out.value + float(log_z.value), math.hypot(out.error, float(log_z.error)))


def free_energy(x: Any, energy: Energy, temperature: float, k: int = 5) -> Estimate:
    """F(ρ) = E[E] - ε H of the particles x (n, d), which is ε KL(ρ‖ρ*) - ε log Z [energy]."""
    temperature = check.positive("temperature", temperature)
    out = kl(x, energy, temperature, log_partition=0.0, k=k)
    return Estimate(temperature * out.value, temperature * out.error)


def kl_two_sample(x: Any, y: Any, k: int = 5) -> Estimate:
    """KL(ρ‖σ) from particles x (n, d) of ρ and y (m, d) of σ, by nearest neighbours [nats].

    The error contains what both samples contribute: Var(log ρ/σ)/n and χ²(ρ‖σ)/m, beside the scatter of distances.

    Reference: Wang, Kulkarni and Verdú, IEEE Trans. Inf. Theory 55 (2009) 2392; Pérez-Cruz, ISIT 2008.
    """
    k = check.count("k", k)
    x, y = check.pair(x, y, least=k + 1)
    d, n, m = x.shape[1], len(x), len(y)
    within = distances(x, x, k)
    across = distances(y, x, k)
    terms = d * np.log(across / within) + math.log(m / (n - 1))
    out = neighbour_mean(terms, k)
    # E_σ[(ρ/σ)²] = E_ρ[ρ/σ]; the estimated ratio is high by E[Gamma_k] E[1/Gamma_k] = k / (k - 1)
    chi2 = max(float(np.exp(np.minimum(terms, 50.0)).mean()) * (1 - 1 / max(k, 2)) - 1, 0.0)
    return Estimate(out.value, math.sqrt(out.error**2 + (chi2 + 0.25 / k) / m))


def _gaussians(mean0: Any, cov0: Any, mean1: Any, cov1: Any) -> tuple[np.ndarray, ...]:
    mean0, mean1 = (np.atleast_1d(np.asarray(m, dtype=np.float64)) for m in (mean0, mean1))
    cov0, cov1 = (np.atleast_2d(np.asarray(c, dtype=np.float64)) for c in (cov0, cov1))
    if mean0.ndim != 1 or mean0.shape != mean1.shape:
        raise ValueError(f"mean0 and mean1 must have one shape (d,); got {mean0.shape} and {mean1.shape}.")
    check_covariance("cov0", cov0, mean0.size)
    check_covariance("cov1", cov1, mean0.size)
    return mean0, cov0, mean1, cov1
