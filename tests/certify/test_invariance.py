"""A flow that does not keep a Gibbs measure: the witness is true, an identity is never taken for one."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy as sp

import ctrlgen as cg
from ctrlgen.certify.invariance import not_invariant
from ctrlgen.certify.transport import batch, identity_holds
from tests.energies.family import FAMILY

SPD = np.array([[2.0, 0.5], [0.5, 1.0]])
NETWORK = cg.MLPEnergy(2, width=16, depth=2, key=1)
FORMULA = cg.SymbolicEnergy("x^4 - x*y + 3*y^2/7", ["x", "y"])
KINDS = {
    **FAMILY,
    "relu network": cg.MLPEnergy(2, width=16, activation="relu", key=3),
    "softplus network": cg.MLPEnergy(2, width=16, activation="softplus", key=3),
    "gelu network": cg.MLPEnergy(2, width=16, activation="gelu", key=3),
    "sum of formulas": FORMULA + 0.3 * cg.Ring(),
    "or": cg.mixture([cg.Quadratic(SPD), cg.Quadratic(SPD, [3.0, 0.0])], 1.0),
    "trained": cg.load_energy("two_moons"),
    "trained and formula": cg.load_energy("eight_gaussians") + 0.5 * FORMULA,
    "80-D": cg.Quadratic(np.diag(np.arange(1.0, 81.0)), np.arange(80.0)),
}
QUICK = {"quadratic", "full mixture", "banana", "callable", "relu network", "softplus network", "weighted", "or"}


def residual(energy, x, temperature, drift=None, noise=0.0):
    """The quantity by JAX's autodiff, in float64."""

    def derivatives(e):
        at = np.tile(x, (batch(e.dim), 1))  # as many points as the search looks at together: compiled already
        return e.gradient(at)[0], e.laplacian(at)[0] if e.dim <= 64 else np.trace(e.hessian(x))

    g, laplacian = derivatives(energy)
    h, second = derivatives(drift or energy)
    return second - g @ h / temperature + noise * (g @ g / temperature - laplacian) / temperature


def bounds(verdict):
    certificate = verdict.steps[0].outcome.certificate
    return certificate.low, certificate.high


def check(verdict, energy, temperature, drift=None, noise=0.0):
    """Proved, and the enclosure holds what autodiff gives at the witness."""
    assert verdict.status is cg.Status.PROVED, verdict.reason
    low, high = bounds(verdict)
    value = residual(energy, verdict.witness, temperature, drift, noise)
    scale = 1e-8 * max(1.0, abs(value))  # float64 autodiff, in up to 80 dimensions
    assert low - scale <= value <= high + scale
    assert 0 < verdict.margin <= min(abs(low), abs(high))
    assert high - low <= 1e-6 * abs(value)
    assert f"{low!r} and {high!r}" in verdict.reason


@pytest.mark.parametrize("kind", [k if k in QUICK else pytest.param(k, marks=pytest.mark.slow) for k in KINDS])
def test_every_kind_of_energy_has_a_witness(kind):
    energy = KINDS[kind]
    verdict = cg.no_certificate(energy, None, 0.7)
    check(verdict, energy, 0.7)
    assert verdict.witness.shape == (energy.dim,)
    assert verdict.recheck()
    assert "no functional that is zero at ρ*" in verdict.claim


@pytest.mark.slow
@pytest.mark.parametrize("name", [m.name for m in cg.list_models()])
def test_every_shipped_energy_has_a_witness(name):
    energy = cg.load_energy(name)
    verdict = cg.no_certificate(energy, None, energy.temperature)
    check(verdict, energy, energy.temperature)
    assert verdict.recheck()


def test_the_enclosure_of_a_formula_holds_the_exact_value():
    verdict = cg.no_certificate(FORMULA, cg.Ball([1.0, -1.0], 0.5), 0.3)
    x, y = sp.symbols("x y", real=True)
    energy = x**4 - x * y + sp.Rational(3, 7) * y**2
    value = sum(sp.diff(energy, s, 2) - sp.diff(energy, s) ** 2 / sp.Rational(3, 10) for s in (x, y))
    exact = value.subs(dict(zip((x, y), map(sp.Rational, verdict.witness.tolist()), strict=True)))
    low, high = bounds(verdict)
    assert sp.Rational(low) < exact < sp.Rational(high)
    assert high - low < 1e-13 * abs(exact)


def test_at_a_minimum_the_value_is_the_laplacian():
    verdict = cg.no_certificate(cg.Quadratic(SPD, [1.0, -2.0]), None, 0.4)
    np.testing.assert_array_equal(verdict.witness, [1.0, -2.0])  # the simplest point that works
    low, high = bounds(verdict)
    assert low <= 3.0 <= high
    assert verdict.margin == pytest.approx(3.0, rel=1e-14)


# Identities -----------------------------------------------------------------------------------------------------------

# exp(-E/ε) is harmonic, so ΔE = |∇E|²/ε identically
AT = {"x": cg.Box([0.1], [3.0]), "xy": cg.Box([0.1, -0.9], [2.0, 0.9]), "xyz": ~cg.Ball([0.0, 0.0, 0.0], 0.5)}
HARMONIC = {
    "x": (cg.SymbolicEnergy("-0.3*log(x)", ["x"]), "x", 0.3),
    "x as code": (cg.CallableEnergy(lambda x: -0.3 * jnp.log(x[0]), 1), "x", 0.3),
    "x, rounded factor": (cg.CallableEnergy(lambda x: -(0.1 + 0.2) * jnp.log(x[0]), 1), "x", 0.3),
    "x, a float32 factor": (cg.CallableEnergy(lambda x: jnp.float32(-0.3) * jnp.log(x[0]), 1), "x", 0.3),
    "e^x cos y": (cg.SymbolicEnergy("-0.7*(x + log(cos(y)))", ["x", "y"]), "xy", 0.7),
    "e^x cos y as code": (cg.CallableEnergy(lambda x: -0.7 * (x[0] + jnp.log(jnp.cos(x[1]))), 2), "xy", 0.7),
    "x of a sum": (
        0.1 * cg.SymbolicEnergy("-log(x)", ["x", "y"]) - 0.2 * cg.CallableEnergy(lambda x: jnp.log(x[0]), 2),
        "xy", 0.3,
    ),
    "1/|x|": (cg.SymbolicEnergy("log(x^2 + y^2 + z^2)/5", ["x", "y", "z"]), "xyz", 0.4),
}  # fmt: skip


@pytest.mark.parametrize("name", HARMONIC)
def test_an_identity_is_never_proved(name):
    energy, where, temperature = HARMONIC[name]
    verdict = cg.no_certificate(energy, AT[where], temperature)
    assert verdict.status is cg.Status.UNDECIDED
    assert verdict.witness is None
    assert not verdict.recheck()
    assert "identity up to rounding" in verdict.reason or "vanishes identically, by its formula" in verdict.reason
    # and at another temperature it is no identity, in the same place
    check(cg.no_certificate(energy, AT[where], temperature * 1.01), energy, temperature * 1.01)


def zero_network():
    network = cg.MLPEnergy(2, width=16, confinement=0.0)
    return eqx.tree_at(lambda e: e.weights, network, tuple(jnp.zeros_like(w) for w in network.weights))


@pytest.mark.parametrize(
    "energy",
    [
        cg.SymbolicEnergy("3", ["x"]),
        cg.CallableEnergy(lambda x: jnp.sin(x[0]) ** 2 + jnp.cos(x[0]) ** 2, 1),
        cg.CallableEnergy(lambda x: 0.1 * x[0] + 0.2 * x[0] - 0.3 * x[0], 1),
        zero_network(),
        NETWORK - NETWORK,
    ],
    ids=["number", "sin² + cos²", "rounding", "zero weights", "difference"],
)
def test_a_constant_energy_is_undecided(energy):
    verdict = cg.no_certificate(energy, None, 0.5)
    assert verdict.status is cg.Status.UNDECIDED
    assert "constant" in verdict.reason or "identity up to rounding" in verdict.reason


@pytest.mark.parametrize(
    "energy",
    [
        pytest.param(cg.Quadratic(SPD), id="quadratic"),
        pytest.param(cg.DoubleWell(), id="well"),
        pytest.param(NETWORK, id="network", marks=pytest.mark.slow),
    ],
)
def test_the_langevin_loop_keeps_its_measure_and_others_do_not(energy):
    for drift, noise in ((energy, 0.3), (2.0 * energy, 0.6), (0.1 * energy, 0.1 * 0.3)):
        verdict = not_invariant(energy, 0.3, drift, noise)
        assert verdict.status is cg.Status.UNDECIDED, verdict.reason
    check(not_invariant(energy, 0.3, energy, 0.31), energy, 0.3, noise=0.31)
    check(not_invariant(energy, 0.3, 2.0 * energy, 0.3), energy, 0.3, 2.0 * energy, 0.3)
    other = energy + cg.Ring()
    check(not_invariant(energy, 0.3, other, 0.3), energy, 0.3, other, 0.3)


# Where a function is not smooth ---------------------------------------------------------------------------------------


@jax.custom_jvp
def lying(x):
    return -0.3 * jnp.log(x)


lying.defjvp(lambda primals, tangents: (lying(primals[0]), 5.0 * tangents[0]))


def test_a_rule_of_differentiation_that_lies_is_not_believed():
    verdict = cg.no_certificate(cg.CallableEnergy(lambda x: lying(x[0]), 1), cg.Box([1.0], [2.0]), 0.3)
    assert verdict.status is cg.Status.UNDECIDED
    stopped = cg.CallableEnergy(lambda x: -0.3 * jnp.log(x[0]) + jax.lax.stop_gradient(0 * x[0]) * x[0], 1)
    assert cg.no_certificate(stopped, cg.Box([1.0], [2.0]), 0.3).status is cg.Status.UNDECIDED


def test_formulas_with_kinks_and_poles():
    kinked = cg.SymbolicEnergy("Abs(x) + x^2", ["x"])
    verdict = cg.no_certificate(kinked, None, 0.5)
    check(verdict, kinked, 0.5)
    assert verdict.witness[0] != 0
    pole = cg.SymbolicEnergy("1/x + x", ["x"])
    verdict = cg.no_certificate(pole, cg.Box([-1.0], [1.0]), 0.5)
    check(verdict, pole, 0.5)
    assert verdict.witness[0] != 0
    undefined = cg.SymbolicEnergy("log(x)", ["x"])
    outside = cg.no_certificate(undefined, cg.Box([-2.0], [-1.0]), 0.5)
    assert outside.status is cg.Status.UNDECIDED
    assert "no point was found around which the energy is certainly C²" in outside.reason


# The domain -----------------------------------------------------------------------------------------------------------


def test_a_domain_may_be_written_in_the_names_of_a_term():
    energy = FORMULA + NETWORK
    domain = cg.Sublevel("x^2 + (y - 2)^2", ["x", "y"], 0.25) & cg.Sublevel("x", ["x"], 0)
    verdict = cg.no_certificate(energy, domain, 0.5)
    check(verdict, energy, 0.5)
    assert verdict.witness[0] < 0
    assert verdict.witness[1] > 1


@pytest.mark.parametrize(
    "domain",
    [
        cg.Box([2.0, -1.0], [2.5, 0.0]),
        cg.Box([-np.inf, 3.0], [np.inf, np.inf]),
        cg.Box([-np.inf] * 2, [np.inf] * 2),
        cg.Ball([5.0, 5.0], 0.1),
        cg.Ball([0.0, 0.0], 3.0) & ~cg.Ball([0.0, 0.0], 2.9),
        cg.Sublevel("(x - 3)^2 + 4*y^2", ["x", "y"], 0.01),
    ],
    ids=["box", "half", "all", "ball", "shell", "sublevel"],
)
def test_the_witness_is_inside_the_domain(domain):
    verdict = cg.no_certificate(FORMULA, domain, 0.6)
    check(verdict, FORMULA, 0.6)
    assert domain.contains(verdict.witness, ["x", "y"])
    assert any(
        all(g.subs(dict(zip(sp.symbols("x y", real=True), map(sp.Rational, verdict.witness.tolist()), strict=True))) > 0
            for g in piece.guards)
        for piece in domain.pieces(sp.symbols("x y", real=True))
    )  # fmt: skip
    assert verdict.recheck()


def test_an_energy_may_be_an_identity_in_one_place_only():
    # harmonic for x < 0 only, in the sense above, and not for x > 1
    half = cg.CallableEnergy(lambda x: jnp.where(x[0] < 0, -0.5 * jnp.log(jnp.where(x[0] < 0, -x[0], 1.0)), x[0]), 1)
    assert cg.no_certificate(half, cg.Box([-3.0], [-1.0]), 0.5).status is cg.Status.UNDECIDED
    check(cg.no_certificate(half, cg.Box([1.0], [3.0]), 0.5), half, 0.5)


# Certificates ---------------------------------------------------------------------------------------------------------


def forged(verdict, **changes):
    step = verdict.steps[0]
    certificate = dataclasses.replace(step.outcome.certificate, **changes)
    outcome = dataclasses.replace(step.outcome, certificate=certificate)
    return dataclasses.replace(verdict, steps=(dataclasses.replace(step, outcome=outcome), *verdict.steps[1:]))


@pytest.mark.parametrize("energy", [FORMULA, NETWORK], ids=["formula", "network"])
def test_a_forged_certificate_fails(energy):
    verdict = cg.no_certificate(energy, cg.Box([-2.0, -2.0], [2.0, 2.0]), 0.5)
    certificate = verdict.steps[0].outcome.certificate
    assert forged(verdict).recheck()
    elsewhere = tuple(v + 0.25 for v in certificate.witness)
    assert not forged(verdict, witness=elsewhere).recheck()
    assert not forged(verdict, low=certificate.low / 2).recheck()
    assert not forged(verdict, transport=dataclasses.replace(certificate.transport, temperature=0.6)).recheck()
    other = 1.001 * energy
    transport = dataclasses.replace(certificate.transport, energy=other, drift=other)
    assert not forged(verdict, transport=transport).recheck()


def with_text_of(verdict, **changes):
    """A forger who also writes the claim anew."""
    new = forged(verdict, **changes)
    step = new.steps[0]
    certificate = step.outcome.certificate
    text = certificate.transport.text(certificate.witness, certificate.low, certificate.high)
    claim = dataclasses.replace(step.claim, text=text)
    outcome = dataclasses.replace(step.outcome, certificate=dataclasses.replace(certificate, claim=claim))
    return dataclasses.replace(new, steps=(dataclasses.replace(step, claim=claim, outcome=outcome), *new.steps[1:]))


def test_a_forger_who_writes_the_claim_anew_fails_too():
    verdict = cg.no_certificate(FORMULA, cg.Box([-2.0, -2.0], [2.0, 2.0]), 0.5)
    certificate = verdict.steps[0].outcome.certificate
    assert with_text_of(verdict).recheck()
    assert not with_text_of(verdict, low=certificate.high, high=2 * certificate.high).recheck()
    assert not with_text_of(verdict, low=-1e300, high=1e300).recheck()  # holds zero
    outside = dataclasses.replace(certificate.transport, domain=cg.Box([5.0, 5.0], [6.0, 6.0]))
    assert not with_text_of(verdict, transport=outside).recheck()


def test_the_product_rule_is_checked():
    assert identity_holds()


# Arguments ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"temperature": 0.0}, ValueError, "temperature must be positive and finite; got 0.0"),
        ({"temperature": np.inf}, ValueError, "temperature must be positive"),
        ({"temperature": "1"}, ValueError, "temperature must be positive"),
        ({"energy": lambda x: x}, TypeError, "energy must be an Energy; got function. Wrap a function"),
        ({"domain": cg.Box([0.0], [1.0])}, ValueError, "domain: .* has 1 coordinates"),
        ({"domain": cg.Sublevel("x^2 + w^2", ["x", "w"], 1)}, ValueError, "'w'.* is not among"),
        ({"domain": cg.Sublevel("x^2 + y^2", ["x", "y"], 0)}, ValueError, "seems to have no interior"),
        ({"domain": cg.Ball([0, 0], 1) & cg.Ball([5, 5], 1)}, ValueError, "appears to be empty"),
        ({"domain": [0, 1]}, ValueError, "domain must be a domain: Box"),
        ({"timeout": -1}, ValueError, "timeout must be positive"),
    ],
)
def test_refuses_what_makes_no_sense(arguments, error, message):
    with pytest.raises(error, match=message):
        cg.no_certificate(**{"energy": FORMULA, "domain": None, "temperature": 1.0, **arguments})


def test_refuses_a_flow_that_makes_no_sense():
    with pytest.raises(ValueError, match=r"noise must be finite and not negative; got -1\.0"):
        not_invariant(FORMULA, 1.0, FORMULA, -1.0)
    with pytest.raises(ValueError, match="drift must have the energy's dimension 2; got 1"):
        not_invariant(FORMULA, 1.0, cg.Quadratic([[1.0]]), 0.0)
    with pytest.raises(TypeError, match="drift must be an Energy"):
        not_invariant(FORMULA, 1.0, None, 0.0)


def test_what_cannot_be_decided_says_why():
    slow = cg.no_certificate(NETWORK, None, 1.0, timeout=1e-9)
    assert slow.status is cg.Status.UNDECIDED
    assert "the time was over" in slow.reason
    floor = cg.no_certificate(cg.CallableEnergy(lambda x: jnp.floor(x[0]) + x[0] ** 2, 1), None, 1.0)
    assert floor.status is cg.Status.UNDECIDED
    assert "'floor' has no formula" in floor.reason
    loop = cg.CallableEnergy(lambda x: jax.lax.fori_loop(0, 3, lambda k, y: y + x[0] ** 2, 0.0), 1)
    assert "loop" in cg.no_certificate(loop, None, 1.0).reason


# Many energies, and the flow itself -----------------------------------------------------------------------------------


def random_energy(rng, k):
    d = int(rng.integers(1, 4))
    root = rng.normal(size=(d, d))
    if k % 3 == 0:
        return cg.Quadratic(root @ root.T + 0.1 * np.eye(d), rng.normal(size=d))
    if k % 3 == 1:
        count = int(rng.integers(1, 4))
        return cg.GaussianMixture(rng.normal(size=(count, d)), rng.uniform(0.2, 2, count), temperature=0.5)
    return cg.MLPEnergy(d, width=4, depth=2, activation=("silu", "relu", "tanh")[k // 3 % 3], key=k)


def fuzz(numbers):
    rng = np.random.default_rng(5)
    for k in numbers:
        energy, temperature = random_energy(rng, k), float(np.exp(rng.uniform(-3, 2)))
        verdict = cg.no_certificate(energy, None, temperature)
        check(verdict, energy, temperature)
        assert verdict.recheck()


def test_random_energies():
    fuzz(range(3))


@pytest.mark.slow
def test_a_hundred_random_energies():
    fuzz(range(100))


def test_kl_from_the_gibbs_measure_rises_as_the_closed_form():
    curvature, temperature, step = 1.5, 0.7, 0.01
    energy = cg.Quadratic([[curvature]])
    start = np.sqrt(temperature / curvature) * np.random.default_rng(7).standard_normal((20_000, 1))
    loop = cg.ClosedLoop(cg.GradientFlow(step, reference_temperature=temperature), energy)
    response = loop.simulate(start, 0.8, record=9, dtype=np.float64)
    formula = (np.exp(-2 * curvature * response.time) - 1 + 2 * curvature * response.time) / 2
    # Euler's step multiplies x by 1 - κh: the same formula at the time that takes e^{-κt} there
    own = -np.round(response.time / step) * np.log1p(-curvature * step) / curvature
    euler = (np.exp(-2 * curvature * own) - 1 + 2 * curvature * own) / 2
    assert np.abs(euler - formula).max() < 0.02
    error = np.maximum(response.kl_error, 1e-3)
    assert (np.abs(response.kl - euler) < 4 * error).all()
    assert (response.kl_error < 0.05).all()
    assert (np.diff(response.kl) > 0).all()
    assert response.kl[-1] > 0.5
    assert cg.no_certificate(energy, None, temperature).status is cg.Status.PROVED
