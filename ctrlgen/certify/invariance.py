"""Does a flow of densities keep a Gibbs measure? One point at which it certainly does not is a proof.

For ρ = exp(-E/ε) and the transport equation ∂ρ/∂t = ∇·(ρ∇D) + nΔρ the product rule gives

    (∇·(ρ∇D) + nΔρ)/ρ = r(x),   r = ΔD - ∇D·∇E/ε + n(|∇E|²/ε² - ΔE/ε),

and ρ is an equilibrium only if r vanishes identically. The deterministic flow of E is D = E, n = 0: r = ΔE - |∇E|²/ε.
A float search looks for a point; that r is not zero there is shown in ball arithmetic, on a small box around the point
on which D and E are certainly C².
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import sympy as sp

from ctrlgen.certify.build import check_domain
from ctrlgen.certify.premise import premise
from ctrlgen.certify.verdict import Step, Verdict
from ctrlgen.checks import positive
from ctrlgen.continuity import JumpError
from ctrlgen.domain import Domain
from ctrlgen.energies.algebra import Composition
from ctrlgen.energies.base import Energy
from ctrlgen.energies.landscapes import Landscape
from ctrlgen.energies.symbolic import SymbolicEnergy
from ctrlgen.formula import rationalise
from ctrlgen.prove.claim import Claim, Deadline, Outcome, Status

BITS, RECHECK_BITS = 128, 256
SIDE, RECHECK_SIDE = 64, 100  # 2^-SIDE is half a side of the box on which E is looked at
LEAST = 1e-6  # of |r| beside its terms: less is what rounding makes of an identity
TRIES = 12  # points at which ball arithmetic is asked
FORMULA = 200  # operations up to which a formula is simplified, to tell an identity from a near miss


class OutsideError(ValueError):
    """A point that is not certainly inside the domain."""


@dataclass(frozen=True, eq=False)
class Transport:
    """The transport equation ∂ρ/∂t = ∇·(ρ∇drift) + noise·Δρ and the Gibbs measure that it is asked about."""

    energy: Energy
    temperature: float
    drift: Energy
    noise: float
    domain: Domain | None
    states: tuple[sp.Symbol, ...]

    @property
    def own(self) -> bool:
        """Is the drift's energy that of the Gibbs measure?"""
        return self.drift is self.energy

    def jets(self) -> tuple[Any, Any]:
        """Enclosures of (E, D), made anew."""
        jet = _jet(self.energy)
        return jet, jet if self.own else _jet(self.drift)

    def ratio(self, jets: tuple[Any, Any], point: Sequence[float], bits: int, side: int, deadline: Deadline) -> Any:
        """Enclosures of r and of the sum of the sizes of its terms, on a small box around a point of the domain.

        Raises:
            OutsideError: the point may not be inside the domain.
            Undefined: D or E may not be C² there.
            Unsupported: D, E or the domain has no enclosure.
            TimeoutError: the deadline passed.
        """
        from flint import ctx, fmpq

        from ctrlgen.prove.pointwise import box_around, reading

        with ctx.workprec(bits):
            box = box_around([fmpq(*float(v).as_integer_ratio()) for v in point], fmpq(1, 2**side))
            if not self._inside(box, bits):
                raise OutsideError("the point is not certainly inside the domain.")
            slope, laplacian = jets[0].around(box, bits, deadline)
            other, second = (slope, laplacian) if self.own else jets[1].around(box, bits, deadline)
            temperature, noise = reading(self.temperature), reading(self.noise)
            square = sum(g * g for g in slope)
            if self.own:
                value = (1 - noise / temperature) * (laplacian - square / temperature)
            else:
                product = sum(g * h for g, h in zip(slope, other, strict=True))
                value = second - product / temperature
                value += noise * (square / temperature - laplacian) / temperature
            length = sum(abs(g * h) for g, h in zip(slope, other, strict=True))
            size = abs(second) + length / temperature
            size += noise * (square / temperature + abs(laplacian)) / temperature
            return value, size

    def _inside(self, box: Sequence[Any], bits: int) -> bool:
        from ctrlgen.prove.balls import Compiled

        if self.domain is None:
            return True
        pieces = [p.guards for p in self.domain.pieces(self.states)]
        return any(not p or all(g > 0 for g in Compiled(p, self.states).at(box, bits)) for p in pieces)

    def floats(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """r and the sum of the sizes of its terms at points (n, d), in float64; NaN where it is undefined."""
        e, n = self.temperature, self.noise
        slope, laplacian = np.asarray(self.energy.gradient(x)), np.asarray(self.energy.laplacian(x))
        other, second = slope, laplacian
        if not self.own:
            other, second = np.asarray(self.drift.gradient(x)), np.asarray(self.drift.laplacian(x))
        with np.errstate(all="ignore"):
            square = (slope**2).sum(axis=1) / e
            value = second - (slope * other).sum(axis=1) / e + n / e * (square - laplacian)
            size = abs(second) + abs(slope * other).sum(axis=1) / e + n / e * (square + abs(laplacian))
        return value, size

    def contains(self, x: np.ndarray) -> np.ndarray:
        """Which of the points (n, d) lie in the domain, in float64, or within reach where there is none."""
        if self.domain is None:  # not too far out: an energy without a lower bound has no end
            return (abs(x) <= 1000 * (1 + abs(np.stack(_simple(self))).max())).all(axis=1)
        return np.isfinite(x).all(axis=1) & np.asarray(self.domain.contains(x, self.states))

    def text(self, point: Sequence[float], low: float, high: float) -> str:
        """What is certified at a witness, in words and symbols."""
        exact = np.asarray(point, np.float64)
        told = [f"{v!r}" for v in map(float, exact[:6])]
        if len(exact) > 6:
            told[3:] = [f"... ({len(exact)} coordinates, sha256 {hashlib.sha256(exact.tobytes()).hexdigest()[:16]})"]
        e, n = f"{self.temperature!r}", f"{self.noise!r}"
        value = f"ΔE - |∇E|²/{e}" if self.own else f"ΔD - ∇D·∇E/{e}"
        if self.noise:
            value += f" + {n}(|∇E|²/{e} - ΔE)/{e}"
        where = "" if self.domain is None else f", a point inside {self.domain!r}"
        return f"at x = ({', '.join(told)}){where}, {value} lies between {low!r} and {high!r}"


@dataclass(frozen=True, eq=False)
class NotZero:
    """Certificate that r is not zero at a point.

    Args:
        claim: the claim that it belongs to; its text is that of the numbers here.
        transport: the equation.
        witness: (d,) floats, each the exact number that it is.
        low, high: r lies between them, and 0 does not.
    """

    claim: Claim
    transport: Transport = field(repr=False)
    witness: tuple[float, ...]
    low: float
    high: float
    kinds: ClassVar = ("premise",)

    def recheck(self) -> bool:
        """Enclose r again from the energies' own code: with more bits, on a smaller box."""
        from ctrlgen.prove.balls import Undefined, Unsupported

        t = self.transport
        if self.claim.text != t.text(self.witness, self.low, self.high) or self.low <= 0 <= self.high:
            return False
        try:
            value, _ = t.ratio(t.jets(), self.witness, RECHECK_BITS, RECHECK_SIDE, Deadline(1e9))
        except (OutsideError, Undefined, Unsupported, JumpError):
            return False
        return bool(value >= self.low and value <= self.high)


def no_certificate(energy: Energy, domain: Domain | None, temperature: float, *, timeout: float = 30.0) -> Verdict:
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
) -> Verdict:
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
    if text is None:
        text = (
            f"exp(-E/{positive('temperature', temperature)!r}) is not an equilibrium of "
            f"∂ρ/∂t = ∇·(ρ∇{'E' if drift is energy else 'D'}) + {noise!r}·Δρ"
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
) -> Verdict:  # fmt: skip
    temperature, timeout = positive("temperature", temperature), positive("timeout", timeout)
    if not (isinstance(noise, (int, float, np.number)) and np.isfinite(noise) and noise >= 0):
        raise ValueError(f"noise must be finite and not negative; got {noise!r}. The deterministic flow has noise 0.")
    if drift.dim != energy.dim:
        raise ValueError(f"drift must have the energy's dimension {energy.dim}; got {drift.dim}.")
    states = _states(energy, drift, domain)
    if domain is not None:
        check_domain("domain", domain, states)
    deadline = Deadline(timeout)
    transport = Transport(energy, temperature, drift, float(noise), domain, states)
    found = _search(transport, deadline)
    if isinstance(found, str):
        return Verdict(claim=claim, status=Status.UNDECIDED, method="interval", reason=found, seconds=deadline.spent)
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
    return Verdict(
        claim=f"{claim}: {meaning}" if meaning else claim,
        status=Status.PROVED,
        method="interval",
        assumptions=(
            "the Gibbs measure exists: exp(-E/ε) is integrable",
            "the energy is C² and its flow exists for a while (that it is C² is checked near the witness)",
        ),
        margin=what.outcome.margin,
        witness=np.array(found.witness),
        reason=found.claim.text,
        seconds=deadline.spent,
        steps=(what, rule),
    )


def identity_holds() -> bool:
    """The product rule behind r in one coordinate, by SymPy; in d coordinates both sides are sums over them."""
    x, temperature, noise = sp.Symbol("x", real=True), *sp.symbols("epsilon n", positive=True)
    energy, drift = sp.Function("E")(x), sp.Function("D")(x)
    density = sp.exp(-energy / temperature)
    change = sp.diff(density * sp.diff(drift, x), x) + noise * sp.diff(density, x, 2)
    slope, second = sp.diff(energy, x), sp.diff(energy, x, 2)
    ratio = sp.diff(drift, x, 2) - sp.diff(drift, x) * slope / temperature
    ratio += noise * (slope**2 / temperature**2 - second / temperature)
    return sp.simplify(change - density * ratio) == 0


def _states(energy: Energy, drift: Energy, domain: Domain | None) -> tuple[sp.Symbol, ...]:
    """The names of the coordinates: the formula's, else those of the domain, else x1, ..., xd."""
    for e in (energy, drift):
        if isinstance(e, SymbolicEnergy):
            return e.field.states
    names = None if domain is None else domain.names
    if names is not None and len(names) == energy.dim:
        return names
    return tuple(sp.Symbol(f"x{i + 1}", real=True) for i in range(energy.dim))


# Enclosures -----------------------------------------------------------------------------------------------------------


def _formula(energy: Energy, states: Sequence[sp.Symbol]) -> Any:
    """The formula that an energy is, with exact numbers; None for one that is given otherwise."""
    if isinstance(energy, Composition):
        parts = [_formula(term, states) for term in energy.terms]
        if any(p is None for p in parts):
            return None
        return sp.Add(*(rationalise(float(w)) * p for w, p in zip(energy.weights, parts, strict=True)))
    if isinstance(energy, Landscape) or (isinstance(energy, SymbolicEnergy) and energy.field.expr is not None):
        return rationalise(energy.symbolic(states))
    return None


def _plain_states(dim: int) -> tuple[sp.Symbol, ...]:
    return tuple(sp.Symbol(f"x{i + 1}", real=True) for i in range(dim))


def _jet(energy: Energy) -> Any:
    from ctrlgen.prove.balls import Unsupported
    from ctrlgen.prove.pointwise import FormulaJet, TracedJet

    states = _plain_states(energy.dim)
    formula = _formula(energy, states)
    if formula is not None:
        try:
            return FormulaJet(formula, states)
        except (JumpError, Unsupported):
            pass  # a kink somewhere: the jaxpr tells on which side of it a point lies
    return TracedJet(energy.potential, energy.dim)


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
    try:
        points, zero = _candidates(transport, deadline)
    except Exception as error:  # the user's own code runs here
        return f"the energy cannot be evaluated: {type(error).__name__}: {error}"
    tried, told = 0, ""
    for point in points:
        if tried == TRIES:
            break
        try:
            if deadline.over:
                raise TimeoutError
            value, size = transport.ratio(jets, point, BITS, SIDE, deadline)
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
        if value.abs_lower() > LEAST * size:
            low, high = under(value), over(value)
            text = transport.text(point, low, high)
            claim = Claim(text=text, states=(), strict=False, kind="premise")
            return NotZero(claim, transport, tuple(map(float, point)), low, high)
        tried += 1
        told = f"at the last of them it is {value.str(8)}, and its terms have size {size.str(4, radius=False)}"
    return _why_not(transport, tried, told, zero)


def _why_not(transport: Transport, tried: int, told: str, zero: bool) -> str:
    vanishes = _vanishes(transport)
    if vanishes:
        return vanishes
    if zero:
        return "the energy seems to be constant: its derivatives are zero at every point that was looked at"
    if tried == 0:
        return "no point inside the domain was found at which the energy and its derivatives are finite"
    return (
        f"no point was found at which the quantity is certainly more than {LEAST:g} of its terms, which is taken for "
        f"an identity up to rounding ({tried} points); {told}"
    )


def _vanishes(transport: Transport) -> str:
    """That r simplifies to zero, in words; empty where it does not, or there are no short formulas."""
    from ctrlgen.trace import NoFormula, SympyDomain, interpret, trace

    states, formulas = _plain_states(transport.energy.dim), []
    for energy in (transport.energy, transport.drift):
        known = _formula(energy, states)
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
        return "the energy is constant: every measure is an equilibrium of its flow, and there is no force"
    if ratio.count_ops() > 4 * FORMULA or sp.simplify(ratio) != 0:
        return ""
    return "the quantity vanishes identically, by its formula: the flow keeps exp(-E/ε) wherever E is C²"


def _candidates(transport: Transport, deadline: Deadline) -> tuple[Iterator[np.ndarray], bool]:
    """Points to try, likely ones first, and whether all derivatives were zero wherever one looked."""
    rng = np.random.default_rng(0)
    simple = _simple(transport)
    x = _starts(transport, rng)
    x = np.concatenate([simple, _descended(transport, np.concatenate([simple, x]), deadline), x])
    value, size = transport.floats(x)
    good = transport.contains(x) & np.isfinite(value) & np.isfinite(size)
    zero = bool(good.any()) and not size[good].any()
    low = good[: -len(value) // 2]  # the simple points and those after the descent
    typical = float(np.median(abs(value[: len(low)][low]))) if low.any() else 0.0
    with np.errstate(all="ignore"):
        # near 1: no cancellation, not in a tail where everything is tiny, and not far uphill
        score = np.where(good & (size > 0), abs(value) / size * np.minimum(1, abs(value) / typical), 0.0)
        uphill = (np.asarray(transport.energy.gradient(x)) ** 2).sum(axis=1) / transport.temperature
        score *= 1 - uphill / (abs(value) + uphill) / 2
    score = np.nan_to_num(score)
    first = sorted((i for i in range(len(simple)) if score[i] >= 0.3), key=lambda i: -round(score[i], 1))
    rest = [int(i) for i in np.argsort(-score, kind="stable") if good[i] and i not in first]
    spread = [*rest[:4], *rest[4 :: max(1, len(rest) // 16)]]  # one valley may be all kinks

    def points() -> Iterator[np.ndarray]:
        for i in [*first, *spread]:
            near = _short(x[i])
            if i >= len(simple) and transport.contains(near[None])[0]:
                v, s = transport.floats(near[None])
                if np.isfinite(s[0]) and s[0] > 0 and abs(v[0]) / s[0] >= 0.9 * abs(value[i]) / size[i]:
                    yield near
                    continue
            yield x[i]

    return points(), zero


def _short(x: np.ndarray) -> np.ndarray:
    """The point rounded to 6 bits of its largest coordinate."""
    largest = float(abs(x).max())
    if largest == 0:
        return x
    unit = 2.0 ** (np.floor(np.log2(largest)) - 5)
    return np.round(x / unit) * unit + 0.0  # no negative zero


def _simple(transport: Transport) -> np.ndarray:
    """Points that a person would try first: the origin, a point well inside the domain, means and centres."""
    out = [np.zeros(transport.energy.dim)]
    if transport.domain is not None:
        out.append(np.array([float(v) for v in transport.domain.interior_point(transport.states)]))
    for energy in (transport.energy,) if transport.own else (transport.energy, transport.drift):
        out += _centres(energy)
    return np.stack(out[:64])


def _centres(energy: Energy) -> list[np.ndarray]:
    if isinstance(energy, Composition):
        return [c for term in energy.terms for c in _centres(term)]
    known = [getattr(energy, name, None) for name in ("mean", "means", "center")]
    return [row for k in known if k is not None for row in np.asarray(k, np.float64).reshape(-1, energy.dim)[:16]]


def _starts(transport: Transport, rng: np.random.Generator) -> np.ndarray:
    """Points spread over the domain; over all scales where there is none."""
    d = transport.energy.dim
    n = 192 if d <= 8 else 64
    if transport.domain is not None:
        try:
            return transport.domain.sample(rng, n, transport.states)
        except ValueError:  # it is thin: what is near its interior point has to do
            inner = np.array([float(v) for v in transport.domain.interior_point(transport.states)])
            return inner + np.exp(rng.uniform(np.log(1e-6), 0, (n, 1))) * rng.normal(size=(n, d))
    centre = np.mean(_centres(transport.energy) or [np.zeros(d)], axis=0)
    return centre + np.exp(rng.uniform(np.log(0.03), np.log(30), (n, 1))) * rng.normal(size=(n, d))


def _descended(transport: Transport, x: np.ndarray, deadline: Deadline, steps: int = 40) -> np.ndarray:
    """The points after steps downhill, each with its own step length: near a minimum nothing cancels in r."""
    energy = transport.energy
    f, g = np.asarray(energy(x)), np.asarray(energy.gradient(x))
    h = np.full((len(x), 1), 0.1)
    for _ in range(steps):
        if deadline.over:
            break
        with np.errstate(all="ignore"):
            trial = x - h * g
        trial = np.where(np.isfinite(trial), trial, x)
        value = np.asarray(energy(trial))
        better = (value < f) & transport.contains(trial)
        x, f = np.where(better[:, None], trial, x), np.where(better, value, f)
        g = np.asarray(energy.gradient(x))
        h = np.where(better[:, None], 1.5 * h, h / 4)
    return x
