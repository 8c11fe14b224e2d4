"""Does a flow of densities keep a Gibbs measure? One point at which it certainly does not is a proof.

The equation is ∂ρ/∂t = ∇·(ρ∇D) + nΔρ; the deterministic flow of E is D = E, n = 0, and ρ*(ΔE - |∇E|²/ε) is what it
makes of ρ* ∝ exp(-E/ε). A float search looks for a point; that the quantity is not zero there is shown in ball
arithmetic, on a small box around the point on which D and E are certainly C² (`ctrlgen.certify.transport`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import sympy as sp

from ctrlgen.certify.build import check_domain
from ctrlgen.certify.premise import premise
from ctrlgen.certify.transport import (
    BITS,
    SIDE,
    NotZero,
    OutsideError,
    Transport,
    batch,
    centres,
    descent,
    formula_of,
    identity_holds,
    plain_states,
)
from ctrlgen.certify.verdict import Step, Verdict
from ctrlgen.checks import positive
from ctrlgen.domain import Domain
from ctrlgen.energies.algebra import Composition
from ctrlgen.energies.base import Energy
from ctrlgen.energies.symbolic import SymbolicEnergy
from ctrlgen.formula import rationalise
from ctrlgen.prove.claim import Claim, Deadline, Outcome, Status

LEAST = 1e-6  # of |r| beside its terms: less is what rounding makes of an identity
TRIES = 12  # points at which ball arithmetic is asked
FORMULA = 200  # operations up to which a formula is simplified, to tell an identity from a near miss


@dataclass(frozen=True, kw_only=True, repr=False)
class NoCertificate(Verdict):
    """A verdict on "the flow does not keep this Gibbs measure".

    Args:
        energy, temperature: E and ε of the Gibbs measure.
        drift, noise: D and n of the flow ∂ρ/∂t = ∇·(ρ∇D) + nΔρ.
        domain: where the point was looked for; None for anywhere.
    """

    energy: Energy | None = None
    temperature: float | None = None
    drift: Energy | None = None
    noise: float = 0.0
    domain: Domain | None = None

    def plot(self, ax: Any = None, **view: Any) -> Any:
        """Draw (∂ρ/∂t)/ρ at the Gibbs measure, with the witness: see `ctrlgen.plot.no_certificate`."""
        from ctrlgen import plot

        return plot.no_certificate(self, ax, **view)


def no_certificate(
    energy: Energy, domain: Domain | None, temperature: float, *, timeout: float = 30.0
) -> NoCertificate:
    """The theorem that the deterministic gradient flow has no Lyapunov certificate for a Gibbs measure.

    ρ̇ = ∇·(ρ∇E) at ρ* ∝ exp(-E/ε) is ρ*(ΔE - |∇E|²/ε). If that is not zero at one point, ρ* is no equilibrium, and a
    functional that is zero at ρ* and positive elsewhere cannot be nonincreasing along the flow: started at ρ* it must
    leave zero. What is certified, and of which function, is said at `not_invariant`.

    Args:
        energy: E, of any kind.
        domain: where to look for the point: Box, Ball, Sublevel, or what &, | and ~ make of them; None for anywhere.
        temperature: ε > 0 [energy].
        timeout: seconds.

    Returns:
        PROVED with `.witness` (d,), inside the domain, `.margin`, a lower bound of |ΔE - |∇E|²/ε| there, and the
        enclosure in `.reason`; UNDECIDED with the reason otherwise, as for a constant energy.

    Raises:
        TypeError: energy is not an Energy.
        ValueError: the temperature is not positive and finite, or the domain is of another dimension or has no
            interior.

    Source: Wang, Xue, Dixon, arXiv:2605.05530 (2026); here with the point that proves it.
    """
    _check_energy("energy", energy)
    claim = (
        "the deterministic flow ∂ρ/∂t = ∇·(ρ∇E) has no Lyapunov certificate for the Gibbs measure "
        f"ρ* ∝ exp(-E/{positive('temperature', temperature)!r}) of this {type(energy).__name__}"
    )
    meaning = (
        "ρ* is no equilibrium of the flow, so no functional that is zero at ρ* and positive elsewhere is nonincreasing "
        "along it: started at ρ* it must leave zero"
    )
    return _decided(energy, temperature, energy, 0.0, domain, timeout, claim, meaning)


def not_invariant(
    energy: Energy,
    temperature: float,
    drift: Energy,
    noise: float,
    domain: Domain | None = None,
    *,
    timeout: float = 30.0,
    text: str | None = None,
) -> NoCertificate:
    """Is exp(-energy/temperature) certainly *not* an equilibrium of ∂ρ/∂t = ∇·(ρ∇drift) + noise·Δρ?

    What is certified is a statement about real functions. A SymbolicEnergy or a landscape, and a sum of them, is its
    formula. Every other energy is the real function that JAX traces from `potential` in float64, its arrays of
    parameters as they are, differentiated by the rules of JAX's primitives alone: rules that a function brings along
    (`custom_jvp`, `stop_gradient`) are not believed. A float constant, the temperature and the noise among them,
    stands for two numbers, the binary one and the decimal that it prints as: what is proved holds for both. (A formula
    with a kink somewhere is its JAX function.)

    Args:
        energy: E, whose Gibbs measure at `temperature` is asked about.
        temperature: ε > 0 [energy].
        drift: D, the energy whose gradient the flow follows.
        noise: n ≥ 0, the flow's own temperature [energy].
        domain: where to look for a point that proves it; None for anywhere.
        timeout: seconds. Compilation by JAX and SymPy is not interrupted.
        text: the claim, in words; one that names the equation when omitted.

    Returns:
        PROVED with `.witness` (d,), each float the exact number that it is, and `.margin`, a lower bound of
        |ΔD - ∇D·∇E/ε + n(|∇E|²/ε² - ΔE/ε)| there [1 / time]; UNDECIDED with the reason otherwise.

    Raises:
        TypeError: energy or drift is not an Energy.
        ValueError: a number is out of its range, the dimensions disagree, or the domain has no interior.
    """
    _check_energy("energy", energy)
    _check_energy("drift", drift)
    if not (isinstance(noise, (int, float, np.number)) and np.isfinite(noise) and noise >= 0):
        raise ValueError(f"noise must be finite and not negative; got {noise!r}. The deterministic flow has noise 0.")
    if text is None:
        text = (
            f"exp(-E/{positive('temperature', temperature)!r}) is not an equilibrium of "
            f"∂ρ/∂t = ∇·(ρ∇{'E' if drift is energy else 'D'}) + {float(noise)!r}·Δρ"
        )
    return _decided(energy, temperature, drift, noise, domain, timeout, text, "")


def _check_energy(name: str, value: Any) -> None:
    if not isinstance(value, Energy):
        raise TypeError(
            f"{name} must be an Energy; got {type(value).__name__}. "
            "Wrap a function with cg.CallableEnergy(function, dim), a formula with cg.SymbolicEnergy(expr, states)."
        )


def _decided(
    energy: Energy, temperature: float, drift: Energy, noise: float, domain: Domain | None, timeout: float,
    claim: str, meaning: str,
) -> NoCertificate:  # fmt: skip
    temperature, timeout = positive("temperature", temperature), positive("timeout", timeout)
    if drift.dim != energy.dim:
        raise ValueError(f"drift must have the energy's dimension {energy.dim}; got {drift.dim}.")
    states = _states(energy, drift, domain)
    if domain is not None:
        check_domain("domain", domain, states)
    deadline = Deadline(timeout)
    transport = Transport(energy, temperature, drift, float(noise), domain, states)
    about: Any = {"energy": energy, "temperature": temperature, "drift": drift, "noise": float(noise), "domain": domain}
    found = _search(transport, deadline)
    if isinstance(found, str):
        return NoCertificate(
            claim=claim, status=Status.UNDECIDED, method="interval", reason=found, seconds=deadline.spent, **about
        )
    what = Step(
        found.claim,
        Outcome(
            status=Status.PROVED, method="interval", certificate=found, margin=min(abs(found.low), abs(found.high)),
            reason=f"ball arithmetic with {BITS} bits on a box of half-side 2^-{SIDE} around x, on which all is C²",
        ),
    )  # fmt: skip
    rule = premise(
        "(∇·(ρ∇D) + nΔρ)/ρ = ΔD - ∇D·∇E/ε + n(|∇E|²/ε² - ΔE/ε) for ρ = exp(-E/ε)",
        "product rule, coordinate by coordinate", identity_holds, "symbolic",
    )  # fmt: skip
    return NoCertificate(
        **about,
        claim=f"{claim}: {meaning}" if meaning else claim,
        status=Status.PROVED,
        method="interval",
        assumptions=(
            "the Gibbs measure exists: exp(-E/ε) is integrable",
            "the flow exists for a while (that the energy is C² is needed near the witness only, and checked there)",
        ),
        margin=what.outcome.margin,
        witness=np.array(found.witness),
        reason=found.claim.text,
        seconds=deadline.spent,
        steps=(what, rule),
    )


def _states(energy: Energy, drift: Energy, domain: Domain | None) -> tuple[sp.Symbol, ...]:
    """The names of the coordinates: the formula's, else those of the domain, else x1, ..., xd."""
    for part in (p for e in (energy, drift) for p in (e.terms if isinstance(e, Composition) else (e,))):
        if isinstance(part, SymbolicEnergy):
            return part.field.states
    names = None if domain is None else domain.names
    if names is not None and len(names) == energy.dim:
        return names
    return tuple(sp.Symbol(f"x{i + 1}", real=True) for i in range(energy.dim))


# The search for a point -----------------------------------------------------------------------------------------------


def _search(transport: Transport, deadline: Deadline) -> NotZero | str:
    """A certificate, or why there is none."""
    from ctrlgen.prove.balls import Undefined, Unsupported
    from ctrlgen.prove.boxes import over, under

    if transport.own and transport.noise == transport.temperature:
        return "the quantity vanishes identically: the noise is the measure's own temperature, and the loop keeps it"
    try:
        jets = transport.jets()
    except Unsupported as error:
        return f"there is no enclosure: {error}"
    tried, smooth, zero, told = 0, 0, True, ""
    points = _points(transport, deadline)
    while tried < TRIES:
        try:
            x, least = next(points)
            if deadline.over:
                raise TimeoutError
            point = tuple(map(float, x))
            value, size = transport.ratio(jets, point, BITS, SIDE, deadline)
        except StopIteration:
            break
        except OutsideError:
            continue
        except TimeoutError:
            return f"the time was over after {tried} points of the search{'; ' + told if told else ''}"
        except Unsupported as error:
            return f"there is no enclosure: {error}"
        except Undefined as error:
            tried += 1
            told = told or f"at the first of them: {error}"
            continue
        tried, smooth, zero = tried + 1, smooth + 1, zero and bool(size == 0)
        low, high = under(value), over(value)
        if value.abs_lower() > least * size and not low <= 0 <= high:
            text = transport.text(point, low, high)
            claim = Claim(text=text, states=(), strict=False, kind="premise")
            return NotZero(claim, transport, point, low, high)
        told = f"at the last of them it is {value.str(8)}, and its terms have size {size.str(4, radius=False)}"
    return _why_not(transport, tried, smooth, told, smooth > 0 and zero)


def _why_not(transport: Transport, tried: int, smooth: int, told: str, zero: bool) -> str:
    try:
        vanishes = _vanishes(transport)
    except Exception:  # SymPy's, of any kind: these are only words
        vanishes = ""
    if vanishes:
        return vanishes
    if zero:
        return "the energy seems to be constant: its derivatives are zero at every point that was looked at"
    if tried == 0:
        return "no point inside the domain was found at which the energy and its derivatives are finite"
    if smooth == 0:
        return f"no point was found around which the energy is certainly C² ({tried} points); {told}"
    return (
        f"no point was found at which the quantity is certainly more than {LEAST:g} of its terms, which is taken for "
        f"an identity up to rounding ({tried} points); {told}"
    )


def _vanishes(transport: Transport) -> str:
    """That r simplifies to zero, in words; empty where it does not, or there are no short formulas."""
    from ctrlgen.trace import NoFormula, SympyDomain, interpret, trace

    states, formulas = plain_states(transport.energy.dim), []
    for energy in (transport.energy, transport.drift):
        known = formula_of(energy, states)
        if known is None:
            try:
                closed = trace(energy.potential, (energy.dim,))
                known = interpret(closed, [np.array(states, dtype=object)], SympyDomain(FORMULA))[0][()]
            except (NoFormula, TypeError, ValueError, NotImplementedError):
                return ""
        formulas.append(known)
    if sum(f.count_ops() for f in formulas) > FORMULA:
        return ""
    e, n = rationalise(transport.temperature), rationalise(transport.noise)
    slope, other = ([sp.diff(f, s) for s in states] for f in formulas)
    laplacian, second = (sp.Add(*(sp.diff(f, s, 2) for s in states)) for f in formulas)
    ratio = second - sum(g * h for g, h in zip(slope, other, strict=True)) / e
    ratio += n * (sum(g**2 for g in slope) / e - laplacian) / e
    if all(sp.simplify(g) == 0 for g in (*slope, *other)):
        return "the energy is constant: the quantity vanishes identically, and there is no force"
    if ratio.count_ops() > 4 * FORMULA or sp.simplify(ratio) != 0:
        return ""
    return "the quantity vanishes identically, by its formula: the flow keeps exp(-E/ε) wherever E is C²"


def _points(transport: Transport, deadline: Deadline) -> Iterator[tuple[np.ndarray, float]]:
    """Points to try, likely ones first, and how much of its terms |r| has to be there."""
    from ctrlgen.prove.balls import Unsupported

    simple = _simple(transport)
    yield from ((x, 0.3) for x in simple[:4])
    try:
        likely = _likely(transport, simple, deadline)
    except Exception as error:  # the user's own code runs here
        raise Unsupported(f"the energy cannot be evaluated: {type(error).__name__}: {error}") from None
    yield from ((x, LEAST) for x in likely)


def _likely(transport: Transport, simple: np.ndarray, deadline: Deadline) -> np.ndarray:
    """Points (n, d) from a search in float64."""
    together = batch(transport.energy.dim)
    starts = _starts(transport, together - len(simple))
    low = _descended(transport, np.concatenate([simple, starts]), deadline)
    near = np.apply_along_axis(_short, 1, low)
    x = np.concatenate([simple, near, low, starts])
    every = [transport.floats(x[i : i + together]) for i in range(0, len(x), together)]
    value, size, uphill = (np.concatenate(columns) for columns in zip(*every, strict=True))
    good = transport.contains(x) & np.isfinite(value) & np.isfinite(size)
    typical = float(np.median(abs(value[good]))) if good.any() else 0.0
    with np.errstate(all="ignore"):
        # near 1: no cancellation, not in a tail where everything is tiny, and not far uphill
        score = np.where(good & (size > 0), abs(value) / size * np.minimum(1, abs(value) / typical), 0.0)
        score *= 1 - uphill / (abs(value) + uphill) / 2
    score = np.nan_to_num(score)
    # of points that are hardly different a simple or short one; then others, as one valley may be all kinks
    best = [int(i) for i in np.lexsort((np.arange(len(x)), -np.round(score, 1))) if good[i]]
    return x[[*best[:4], *best[4 :: max(1, len(best) // 16)]]]


def _short(x: np.ndarray) -> np.ndarray:
    """The point rounded to 6 bits of its largest coordinate."""
    largest = float(abs(x).max())
    if largest == 0:
        return x
    unit = 2.0 ** (np.floor(np.log2(largest)) - 5)
    return np.round(x / unit) * unit + 0.0  # no negative zero


def _simple(transport: Transport) -> np.ndarray:
    """Points that a person would try first, in the domain: the origin, means and centres, an interior point."""
    known = [c for energy in (transport.energy, transport.drift)[: 2 - transport.own] for c in centres(energy)]
    out = [*known[:1], np.zeros(transport.energy.dim), *known[1:]]
    if transport.domain is not None:
        inner = np.array([float(v) for v in transport.domain.interior_point(transport.states)])
        out = [*(x for x in out[:2] if transport.contains(x[None])[0]), inner, *out[2:]]
    return np.stack(out[: batch(transport.energy.dim) // 4])


def _starts(transport: Transport, n: int) -> np.ndarray:
    """Points spread over the domain; over all scales where there is none."""
    d, rng = transport.energy.dim, np.random.default_rng(0)
    if transport.domain is not None:
        try:
            return transport.domain.sample(rng, n, transport.states)
        except ValueError:  # it is thin: what is near its interior point has to do
            inner = np.array([float(v) for v in transport.domain.interior_point(transport.states)])
            return inner + np.exp(rng.uniform(np.log(1e-6), 0, (n, 1))) * rng.normal(size=(n, d))
    centre = np.mean(centres(transport.energy) or [np.zeros(d)], axis=0)
    return centre + np.exp(rng.uniform(np.log(0.03), np.log(30), (n, 1))) * rng.normal(size=(n, d))


def _descended(transport: Transport, x: np.ndarray, deadline: Deadline, steps: int = 40) -> np.ndarray:
    """The points after steps downhill, each with its own step length: near a minimum nothing cancels in r."""
    energy = transport.energy
    f, g = descent(energy, x)
    h = np.full((len(x), 1), 0.1)
    for _ in range(steps):
        if deadline.over:
            break
        with np.errstate(all="ignore"):
            trial = x - h * g
        trial = np.where(np.isfinite(trial), trial, x)
        value, slope = descent(energy, trial)
        better = (value < f) & transport.contains(trial)
        x, g = (np.where(better[:, None], new, old) for new, old in ((trial, x), (slope, g)))
        f, h = np.where(better, value, f), np.where(better[:, None], 1.5 * h, h / 4)
    return x
