"""Constants of energies: never violated (exact arithmetic, samples, ascents), and sharp where the truth is known."""

from fractions import Fraction
from math import factorial

import equinox as eqx
import jax
import numpy as np
import pytest
from flint import arb, ctx, fmpq, fmpq_mat

import ctrlgen as cg
from ctrlgen.energies import intervals, spectral
from ctrlgen.energies.bounds import lowest_over, on_box
from ctrlgen.energies.intervals import Intervals
from ctrlgen.energies.network_bounds import CURVATURES, SLOPES, Parameters, network_bounds
from tests.energies.family import FAMILY, SPD

SMOOTH = ["silu", "tanh", "softplus", "gelu"]
CLAIMING = {k: e for k, e in FAMILY.items() if e.properties != cg.Properties()}


def exact(matrix):
    return fmpq_mat(*matrix.shape, [fmpq(*float(v).as_integer_ratio()) for v in matrix.ravel()])


def certainly_positive(matrix):
    """Is a symmetric matrix of rationals ≻ 0? By its leading minors (Sylvester)."""
    n, rows = matrix.nrows(), matrix.tolist()
    return all(fmpq_mat([row[:k] for row in rows[:k]]).det() > 0 for k in range(1, n + 1))


def minus(matrix, m):
    """A - m I in rationals."""
    return exact(matrix) - exact(np.eye(len(matrix))) * fmpq(*float(m).as_integer_ratio())


def extremes(energy, seed=0, rounds=3, spread=(0.3, 1.0, 4.0, 50.0)):
    """Points where an energy's Hessian, gradient and ⟨x, ∇E⟩ are extreme: samples near and far, then random ascent."""
    rng, known = np.random.default_rng(seed), energy.properties
    a = known.dissipativity[0] if known.dissipativity else 0.0
    x, best = rng.normal(size=(256, energy.dim)) * rng.choice(spread, size=(256, 1)), {}
    for r in range(rounds):
        eigenvalues, slope = np.linalg.eigvalsh(energy.hessian(x)), energy.gradient(x)
        figures = {
            "low": -eigenvalues[:, 0],
            "high": eigenvalues[:, -1],
            "slope": np.linalg.norm(slope, axis=1),
            "inward": a * (x**2).sum(axis=1) - (x * slope).sum(axis=1),
        }
        tops = []
        for name, values in figures.items():
            best[name] = max(best.get(name, -np.inf), values.max())
            tops.append(x[np.argsort(-values)[:8]])
        x = np.repeat(np.concatenate(tops), 8, axis=0)
        x = x + rng.normal(size=x.shape) * (0.1 + 0.1 * np.abs(x)) * 0.4**r
    return best


def assert_holds(energy, **arguments):
    """Every claimed constant against the extremes found; 1e-9 relative for the rounding of what was evaluated."""
    known, seen = energy.properties, extremes(energy, **arguments)
    if known.hessian_lower is not None:
        assert -seen["low"] >= known.hessian_lower - 1e-9 * (1 + abs(seen["low"]))
    if known.hessian_upper is not None:
        assert seen["high"] <= known.hessian_upper + 1e-9 * (1 + abs(seen["high"]))
    if known.gradient_bound is not None:
        assert seen["slope"] <= known.gradient_bound * (1 + 1e-9)
    if known.dissipativity is not None:
        assert seen["inward"] <= known.dissipativity[1] + 1e-9 * (1 + abs(seen["inward"]))
    return known, seen


# Matrices ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 3, 7, 20, 40])
def test_eigenvalue_bounds_in_exact_arithmetic(size):
    rng = np.random.default_rng(size)
    for _ in range(60 if size < 10 else 2):
        a = rng.normal(size=(size, size)) * 10.0 ** rng.uniform(-3, 3, size=(size, 1))
        a = (a + a.T) / 2
        low, high = spectral.spectrum_bounds(a)
        scale = float(np.abs(np.linalg.eigvalsh(a)).max())
        slack = scale * (5e-14 if size <= spectral.BALLS else 1e-10)  # it is a bound, and sharp
        assert certainly_positive(minus(a, np.nextafter(low, -np.inf)))
        assert certainly_positive(minus(-a, np.nextafter(-high, -np.inf)))
        assert not certainly_positive(minus(a, low + slack))
        assert not certainly_positive(minus(-a, -high + slack))


def test_eigenvalues_of_a_diagonal_are_its_entries():
    assert spectral.spectrum_bounds(np.diag([1 / 3, 2.0])) == (1 / 3, 2.0)
    assert spectral.spectrum_bounds(np.zeros((3, 3))) == (0.0, 0.0)


def test_singular_matrices_get_a_bound_below_zero_and_near_it():
    v = np.array([1.0, 3.0, 7.0])
    low, high = spectral.spectrum_bounds(np.outer(v, v))
    assert -1e-12 <= low <= 0
    assert 59 <= high <= 59 + 1e-12


@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (3, 7), (9, 4), (30, 30)])
def test_norm_in_exact_arithmetic(shape):
    rng = np.random.default_rng(3)
    a = rng.normal(size=shape)
    bound, true = spectral.norm(a), np.linalg.norm(a, 2)
    gram = exact(a).transpose() * exact(a)
    square = fmpq(*float(bound).as_integer_ratio()) ** 2
    identity = exact(np.eye(shape[1])) * (square * fmpq(10**15 + 1, 10**15))
    assert certainly_positive(identity - gram)
    assert bound <= true * (1 + 1e-10)
    radius = rng.uniform(0, 0.1, size=shape)
    wide = spectral.norm(a, radius)
    for _ in range(50):
        assert np.linalg.norm(a + radius * rng.choice([-1.0, 1.0], size=shape), 2) <= wide
    assert wide <= bound + np.linalg.norm(radius) * (1 + 1e-10)


def test_products_enclose_what_floats_lose():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(4, 30)) * 10.0 ** rng.integers(-8, 8, size=(4, 30))
    b = np.concatenate([rng.normal(size=(29, 3)), np.zeros((1, 3))])
    a[:, 29] = 1.0
    b[29] = -(a[0, :29] @ b[:29])  # cancels in row 0: what is left is rounding
    middle, radius = spectral.product(a, b)
    truth = exact(a) * exact(b)
    lost = 0
    for i, j in np.ndindex(4, 3):
        off = abs(truth[i, j] - fmpq(*float(middle[i, j]).as_integer_ratio()))
        assert off <= fmpq(*float(radius[i, j]).as_integer_ratio())
        lost += off > 0
    assert lost > 0
    assert radius.max() < 1e-12 * (np.abs(a) @ np.abs(b)).max()
    whole = Intervals.exact(a) @ Intervals(b, np.full_like(b, 1e-3))
    assert (whole.rad >= (np.abs(a) * 1e-3).sum(axis=1)[:, None]).all()


def test_interval_operations_enclose_rational_ones():
    rng = np.random.default_rng(1)
    x, y = (Intervals(rng.normal(size=40), rng.uniform(0, 1, size=40) * rng.integers(0, 2, size=40)) for _ in range(2))
    for name, rule in {
        "__add__": lambda s, t: s + t,
        "__sub__": lambda s, t: s - t,
        "__mul__": lambda s, t: s * t,
        "times": lambda s, t: s * t,
    }.items():
        out = getattr(x, name)(y)
        for i in range(40):
            ends = [[Fraction(v.mid[i]) + sign * Fraction(v.rad[i]) for sign in (-1, 1)] for v in (x, y)]
            values = [rule(s, t) for s in ends[0] for t in ends[1]]
            assert Fraction(out.mid[i]) - Fraction(out.rad[i]) <= min(values)
            assert Fraction(out.mid[i]) + Fraction(out.rad[i]) >= max(values)
    third = Intervals.exact(1.0) * Intervals.exact(1 / 3) + Intervals.exact(np.array(1e-17))
    assert third.low < 1 / 3 < third.high


def test_rounding_goes_outward():
    for value in (Fraction(1, 3), Fraction(-1, 3), Fraction(1, 10), Fraction(7, 2)):
        assert Fraction(spectral.down(value)) <= value <= Fraction(spectral.up(value))
        assert spectral.up(value) <= np.nextafter(spectral.down(value), np.inf)
    assert spectral.down(Fraction(7, 2)) == spectral.up(Fraction(7, 2)) == 3.5
    assert Fraction(spectral.above_root(Fraction(2))) ** 2 >= 2
    assert spectral.above_root(Fraction(2)) <= np.nextafter(np.sqrt(2), 2)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_lowest_eigenvalue_of_interval_matrices(d):
    rng = np.random.default_rng(d)
    a, radius = rng.normal(size=(20, d, d)), rng.uniform(0, 0.3, size=(20, d, d))
    a, radius = a + np.swapaxes(a, 1, 2), radius + np.swapaxes(radius, 1, 2)
    low = lowest_over(Intervals(a, radius))
    for _ in range(100):
        signs = rng.choice([-1.0, 1.0], size=a.shape)
        signs = np.triu(signs) + np.swapaxes(np.triu(signs, 1), 1, 2)
        assert (np.linalg.eigvalsh(a + signs * radius)[:, 0] >= low).all()
    np.testing.assert_allclose(lowest_over(Intervals(a, 0 * a)), np.linalg.eigvalsh(a)[:, 0], atol=1e-12)


# Activations ---------------------------------------------------------------------------------------------------------


def slopes_of(name, centre, radius, count=3):
    """Balls around σ, σ', σ'' on a ball, with 100 bits."""
    from flint import arb_series

    old, ctx.cap = ctx.cap, count
    try:
        with ctx.workprec(100):
            series = intervals.formula(name, arb_series([arb(centre, radius), 1]))
            return [series[j] * factorial(j) for j in range(count)]
    finally:
        ctx.cap = old


@pytest.mark.parametrize("name", SMOOTH)
def test_formulas_are_those_of_jax(name):
    x = np.linspace(-6, 6, 41)
    from ctrlgen.energies.neural import ACTIVATIONS
    from ctrlgen.precision import float64

    with float64():
        values = np.asarray(ACTIVATIONS[name](jax.numpy.asarray(x)))
    # the balls of gelu's constants hold their float32 values, 2e-8 away
    np.testing.assert_allclose([float(slopes_of(name, v, 0)[0].mid()) for v in x], values, rtol=1e-7, atol=1e-9)


def over_cell(name, order, centre, radius):
    """A ball around a derivative of σ over a cell: Taylor about its centre, the second-order term over the cell."""
    at = slopes_of(name, centre, 0, order + 2)
    try:
        wide = slopes_of(name, centre, radius, order + 3)
    except ValueError:  # a ball so wide that 1 + exp of it holds zero
        wide = [arb("nan")] * (order + 3)
    across = arb(0, radius)
    return at[order] + at[order + 1] * across + wide[order + 2] * across * across / 2, float(at[order].mid())


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n == "softplus" else []) for n in SMOOTH])
def test_ranges_of_the_derivatives_are_proved_and_sharp(name):
    """σ' and σ'' in balls that cover [-40, 40]; beyond, they are within 1e-15 of their limits (`intervals._asymptote`).

    Ends that are attained or approached, 0, ¼, ½ and 1, are allowed 1e-9: for those it is algebra. With the sigmoid s
    and t = tanh: softplus' = s, softplus'' = s(1-s) ≤ ¼, tanh' = 1-t², and silu'' is even, ½ at 0, with a fourth
    derivative of silu < 0 on [-½, ½], so that it is largest at 0 there.
    """
    attained = {0.0, 0.25, 0.5, 1.0}
    for order, (least, largest) in ((1, SLOPES[name]), (2, CURVATURES[name])):
        below, above = (least - 1e-9 * (least in attained)), (largest + 1e-9 * (largest in attained))
        todo, seen = [(-40.0 + i + 0.5, 0.5) for i in range(80)], []
        while todo:
            centre, radius = todo.pop()
            ball, value = over_cell(name, order, centre, radius)
            seen.append(value)
            if not (ball >= below and ball <= above):
                assert radius > 1e-5, f"{name}: derivative {order} leaves its range near {centre}"
                todo += [(centre - radius / 2, radius / 2), (centre + radius / 2, radius / 2)]
        assert least <= min(seen) <= least + 2e-5
        assert largest - 2e-5 <= max(seen) <= largest


def test_the_curvature_of_silu_is_largest_at_zero():
    for centre in np.arange(-0.5, 0.5, 0.02) + 0.01:
        assert slopes_of("silu", float(centre), 0.01, 5)[4] < 0
    assert slopes_of("silu", 0.0, 0)[2].overlaps(arb(0.5))


@pytest.mark.parametrize("name", SMOOTH)
def test_tables_enclose_the_activation(name):
    rng = np.random.default_rng(5)
    x = np.concatenate([rng.normal(size=60) * 3, rng.uniform(-60, 60, size=60), [0.0, 40.0, -40.0, 40.01, -1.2785]])
    width = rng.choice([0.0, 1e-6, 0.1, 3.0], size=len(x))
    for order, table in enumerate(intervals.tables(name)):
        at = table.at(x)
        for v, low, high in zip(x, at.low, at.high, strict=True):
            ball = slopes_of(name, float(v), 0)[order]
            assert ball >= low - 1e-7 * abs(low) * (name == "gelu") or ball.overlaps(arb(float(low)))
            assert ball <= high + 1e-7 * abs(high) * (name == "gelu") or ball.overlaps(arb(float(high)))
        assert (at.rad[np.abs(x) < 40] < 1e-4 * (1 + np.abs(x[np.abs(x) < 40]))).all()
        over = table.over(Intervals(x, width))
        for t in np.linspace(-1, 1, 21):
            inside = table.at(x + t * width)
            assert (inside.mid >= over.low - inside.rad).all()
            assert (inside.mid <= over.high + inside.rad).all()
        narrow = width <= 1e-6
        assert (over.rad[narrow] < 1e-3 * (1 + np.abs(x[narrow]))).all()


# Energies ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("energy", CLAIMING.values(), ids=CLAIMING.keys())
def test_claims_of_the_family_hold_where_they_are_strained(energy):
    assert_holds(energy)


def test_quadratic_is_exact():
    p, mu = np.array([[3.0, 1.0], [1.0, 2.0]]), np.array([1.0, -1.0])
    known = cg.Quadratic(p, mu).properties
    low, high = (5 - np.sqrt(5)) / 2, (5 + np.sqrt(5)) / 2
    assert known.hessian_lower == pytest.approx(low, rel=1e-14)
    assert known.hessian_upper == pytest.approx(high, rel=1e-14)
    a, b = known.dissipativity
    # the infimum of xᵀP(x - μ) - a|x|² is at x = (P - aI)⁻¹Pμ/2
    x = np.linalg.solve(p - a * np.eye(2), p @ mu) / 2
    assert a == known.hessian_lower / 2
    assert b == pytest.approx(a * x @ x - x @ p @ (x - mu), rel=1e-12)
    assert cg.Quadratic(np.diag([1 / 3, 5.0])).properties == cg.Properties(
        hessian_lower=1 / 3, hessian_upper=5.0, dissipativity=(1 / 3, 0.0)
    )


@pytest.mark.parametrize("d", [5, 40])
def test_quadratics_in_more_dimensions(d):
    rng = np.random.default_rng(d)
    a = rng.normal(size=(d, d))
    energy = cg.Quadratic(a @ a.T + np.eye(d), rng.normal(size=d))
    known, _ = assert_holds(energy)
    values = np.linalg.eigvalsh(energy.precision)
    assert known.hessian_lower == pytest.approx(values[0], rel=1e-8)
    assert known.hessian_upper == pytest.approx(values[-1], rel=1e-12)
    pull = energy.precision @ energy.mean
    b = pull @ np.linalg.solve(energy.precision - known.dissipativity[0] * np.eye(d), pull) / 4
    assert b * (1 - 1e-9) <= known.dissipativity[1] <= (1 + 1e-9) * pull @ pull / (2 * values[0])


@pytest.mark.parametrize("covariance", [0.5, SPD], ids=["isotropic", "full"])
def test_lower_bound_of_two_components_is_attained(covariance):
    """On the mid-plane both weigh the same, and the variance of the means is all that it can be."""
    means = np.array([[0.0, 0.0], [3.0, 1.0]])
    energy = cg.GaussianMixture(means, covariance, temperature=0.7)
    known = energy.properties
    at_middle = np.linalg.eigvalsh(energy.hessian(means.mean(axis=0)))
    assert known.hessian_lower == pytest.approx(at_middle[0], rel=1e-12)
    assert known.hessian_lower <= at_middle[0] + 1e-12
    precision = np.linalg.inv(np.eye(2) * covariance if np.ndim(covariance) == 0 else covariance)
    assert known.hessian_upper == pytest.approx(0.7 * np.linalg.eigvalsh(precision)[-1], rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("count", [5, 70])
@pytest.mark.parametrize("d", [3, 40])
def test_mixtures_of_many_components(d, count):
    rng = np.random.default_rng(d)
    a = rng.normal(size=(d, d)) / np.sqrt(d)
    energy = cg.GaussianMixture(rng.normal(size=(count, d)), a @ a.T + np.eye(d), temperature=0.5)
    known, _ = assert_holds(energy, spread=(0.3, 1.0, 2.0))
    values = np.linalg.eigvalsh(np.linalg.inv(energy.covariances[0]))
    radius = np.linalg.norm(energy.means - energy.means.mean(axis=0), axis=1).max()
    assert known.hessian_lower >= 0.5 * (values[0] - (values[-1] * 2 * radius) ** 2)
    assert known.hessian_upper == pytest.approx(0.5 * values[-1], rel=1e-9)


def test_mixtures_of_different_covariances_have_no_lower_bound():
    energy = FAMILY["diagonal mixture"]
    known, _ = assert_holds(energy)
    assert known.hessian_lower is None
    far = np.linalg.eigvalsh(energy.hessian(np.random.default_rng(0).normal(size=(20_000, 2)) * 40))
    assert far[:, 0].min() < -50  # there is none


@pytest.mark.parametrize(("b", "a", "k"), [(1.0, 1.0, 1.0), (0.1, 0.3, 0.7), (7.3, 1.1, 1e-3)])
def test_double_well_in_exact_arithmetic(b, a, k):
    known = cg.DoubleWell(3, b, a, k).properties
    b, a, k = map(Fraction, (b, a, k))
    assert -4 * b / a**2 * (1 + Fraction(1, 10**14)) <= Fraction(known.hessian_lower) <= -4 * b / a**2
    assert Fraction(known.dissipativity[0]) <= k
    t = (4 * b + k * a**2) / (8 * b)  # where 4b(t² - t) - k a² t is least
    true = k * a**2 * t - 4 * b * (t * t - t)
    assert true <= Fraction(known.dissipativity[1]) <= true * (1 + Fraction(1, 10**12))


@pytest.mark.parametrize(("r", "k"), [(2.0, 4.0), (0.7, 0.3)])
def test_ring_in_exact_arithmetic(r, k):
    known = cg.Ring(r, k).properties
    r, k = Fraction(r), Fraction(k)
    assert -k / 2 * (1 + Fraction(1, 10**14)) <= Fraction(known.hessian_lower) <= -k / 2
    a, b = map(Fraction, known.dissipativity)
    assert k / 2 * (1 - Fraction(1, 10**14)) <= a <= k / 2
    assert k * r**2 / 2 * (1 - Fraction(1, 10**12)) <= b <= k * r**2 / 2 * (1 + Fraction(1, 10**12))
    assert all(k * (t * t - r**2 * t) / (2 * r**2) >= a * t - b for t in (r**2, r**2 / 2, 2 * r**2, Fraction(0)))


def test_bent_bananas_and_funnels_claim_nothing():
    assert cg.Banana().properties == cg.Funnel().properties == cg.Properties()
    x = np.array([[50.0, 1.5 * 0.25 * 50**2]])
    assert (x * cg.Banana().gradient(x)).sum() < -1e4  # not dissipative indeed
    straight = cg.Banana(2.0, 0.0)
    assert straight.properties == cg.Properties(hessian_lower=0.25, hessian_upper=1.0, dissipativity=(0.25, 0.0))
    assert_holds(straight, rounds=1)


# Networks ------------------------------------------------------------------------------------------------------------


def network(activation, dim=2, width=12, depth=2, confinement=0.0, gain=2.0, **arguments):
    """A network with larger weights than at its start, so that its curvature is felt."""
    made = cg.MLPEnergy(dim, width, depth, activation, confinement, key=3, **arguments)
    return eqx.tree_at(lambda n: n.weights, made, tuple(gain * w for w in made.weights))


@pytest.mark.parametrize(
    "energy",
    [
        *(network(name) for name in SMOOTH),
        network("relu"),
        network(("relu", "tanh")),
        network(("gelu", "silu", "softplus"), depth=3, confinement=0.3),
        network("tanh", features=3, gain=1.0),
        network(("silu", "silu"), dim=1, confinement=0.2),
    ],
    ids=repr,
)
def test_networks_keep_within_their_bounds(energy):
    known, seen = assert_holds(energy)
    plain = np.prod([max(abs(v) for v in SLOPES[name]) for name in energy.activation])
    plain *= np.prod([np.linalg.norm(np.asarray(w, np.float64), 2) for w in energy.weights])
    if energy.frequencies is not None:
        plain *= np.sqrt(1 + np.linalg.norm(energy.frequencies, 2) ** 2)
        plain *= 1.5  # the features' two parts are bounded one by one
    gradient = energy.network_gradient_bound
    assert gradient <= plain * (1 + 1e-6)
    kinked = "relu" in energy.activation
    assert (known.hessian_lower is None) is (known.hessian_upper is None) is kinked
    if energy.confinement == 0:
        assert known.gradient_bound == gradient
        assert gradient <= 12 * seen["slope"]  # within an order of magnitude for two layers
        assert known.dissipativity is None
    else:
        c = Fraction(energy.confinement)
        assert known.dissipativity[0] == energy.confinement / 2
        assert Fraction(known.dissipativity[1]) >= Fraction(gradient) ** 2 / (2 * c)


@pytest.mark.parametrize("name", [*SMOOTH, "relu"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_one_neuron_is_sharp(name, sign):
    """w σ(v·x): gradient w v σ', Hessian w v vᵀ σ'', whose extremes are those of σ' and σ''."""
    made = network(name, width=1, depth=1)
    v, w = np.array([[3.0, -4.0]]), np.array([[2.0 * sign]])
    made = eqx.tree_at(lambda n: n.weights, made, tuple(map(jax.numpy.asarray, (v, w))))
    known = made.properties
    assert known.gradient_bound == pytest.approx(2 * 5 * max(abs(s) for s in SLOPES[name]), rel=1e-9)
    if CURVATURES[name] is None:
        assert known.hessian_lower is known.hessian_upper is None
        return
    least, largest = CURVATURES[name] if sign > 0 else tuple(-c for c in CURVATURES[name][::-1])
    # rank one: 0 is an eigenvalue
    assert known.hessian_lower == pytest.approx(min(2 * 25 * least, 0), rel=1e-9, abs=1e-12)
    assert known.hessian_upper == pytest.approx(max(2 * 25 * largest, 0), rel=1e-9, abs=1e-12)


def test_two_layers_of_one_neuron_against_the_true_curvature():
    made = network("tanh", dim=1, width=1, depth=2)
    made = eqx.tree_at(lambda n: n.weights, made, tuple(jax.numpy.asarray([[v]]) for v in (2.0, 1.5, 1.0)))
    x = np.linspace(-4, 4, 8001)[:, None]
    curvature = made.hessian(x)[:, 0, 0]
    known = made.properties
    assert known.hessian_lower <= curvature.min()
    assert curvature.max() <= known.hessian_upper <= 3 * np.abs(curvature).max()
    assert np.abs(made.gradient(x)).max() <= known.gradient_bound <= 3.0 * (1 + 1e-9)  # 2 × 1.5 × 1


def test_scaled_network_is_bounded_column_by_column():
    made, scale = network("silu"), np.array([0.5, 20.0])
    direct = made.network_bounds(scale)
    x = np.random.default_rng(2).normal(size=(400, 2)) * scale * 3
    energy = cg.TrainedEnergy(made, scale=scale)
    assert np.linalg.norm(energy.gradient(x), axis=1).max() <= direct.gradient <= made.network_gradient_bound / 0.5
    eigenvalues = np.linalg.eigvalsh(energy.hessian(x))
    assert direct.hessian[0] <= eigenvalues.min()
    assert eigenvalues.max() <= direct.hessian[1] < made.properties.hessian_upper / 0.25
    assert energy.properties.gradient_bound <= direct.gradient
    assert energy.properties.hessian_upper <= direct.hessian[1]


def test_oscillation_of_a_bounded_network():
    made = network("tanh", gain=3.0)
    known = made.properties
    values = made(np.random.default_rng(1).normal(size=(4000, 2)) * 10)
    total = 2 * sum(Fraction(float(abs(w))) for w in np.asarray(made.weights[-1], np.float64)[0])
    assert values.max() - values.min() <= known.oscillation
    assert Fraction(known.oscillation) >= total
    assert known.oscillation == pytest.approx(float(total), rel=1e-15)
    assert network("silu").properties.oscillation is None
    assert network("tanh", confinement=0.1).properties.oscillation is None
    assert cg.TrainedEnergy(made, [1.0, 2.0], [3.0, 0.1]).properties.oscillation == known.oscillation


def test_bounds_are_computed_once_for_the_same_numbers():
    made = network("silu", width=5)
    first = made.properties
    before = network_bounds.cache_info()
    assert network("silu", width=5).properties == first
    after = network_bounds.cache_info()
    assert (after.misses, after.hits) == (before.misses, before.hits + 1)
    other = eqx.tree_at(lambda n: n.weights[0], made, made.weights[0].at[0, 0].add(1e-6))
    assert other.properties != first


def test_numbers_that_are_no_numbers_establish_nothing():
    made = network("silu")
    for factor in (np.nan, np.inf, 1e35):
        broken = eqx.tree_at(lambda n: n.weights[0], made, made.weights[0] * factor)
        assert broken.properties == cg.Properties()
        assert cg.TrainedEnergy(broken).properties == cg.Properties()
        with pytest.raises(ValueError, match="finite numbers of moderate size"):
            network_bounds(Parameters([np.asarray(w) for w in broken.weights], None, broken.activation))


@pytest.mark.parametrize("layer", [0, -1])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_bias_that_is_no_number_establishes_nothing(layer, value):
    made = network("silu")
    broken = eqx.tree_at(lambda n: n.biases[layer], made, made.biases[layer].at[0].set(value))
    assert broken.properties == cg.Properties()
    assert cg.TrainedEnergy(broken, [1.0, 2.0], [2.0, 3.0]).properties == cg.Properties()
    assert (broken + cg.Quadratic(np.eye(2))).properties == cg.Properties()


def test_constants_beyond_the_range_of_floats_are_not_established():
    far = cg.Quadratic(np.eye(2), [1e200, 0.0])
    assert (far.properties.hessian_lower, far.properties.dissipativity) == (1.0, None)
    assert (far + cg.Quadratic(np.eye(2))).properties.hessian_upper == 2.0
    matrix = np.random.default_rng(0).normal(size=(40, 40))
    large = cg.Quadratic((matrix @ matrix.T + np.eye(40)) * 1e200)
    assert large.properties.hessian_upper is None
    assert cg.TrainedEnergy(network("silu"), scale=[1e-31, 1.0]).properties == cg.Properties()
    assert cg.LeastSquares([[1.0, 2.0]], [1.0], 1e-200).properties.hessian_upper is None
    assert spectral.down(Fraction(10) ** 400) == np.finfo(float).max
    assert spectral.up(Fraction(10) ** 400) == np.inf


def test_a_covariance_that_cannot_be_inverted_reliably_establishes_nothing():
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(40, 40)))[0]
    covariance = (rotation * np.logspace(-12, 3, 40)) @ rotation.T
    assert cg.GaussianMixture(np.eye(3, 40), (covariance + covariance.T) / 2).properties == cg.Properties()


@pytest.mark.parametrize(
    "energy",
    [
        cg.TrainedEnergy(network("silu", confinement=0.5), [30.0, -2.0], [0.5, 3.0]),
        cg.TrainedEnergy(network("softplus", confinement=1.0), [0.0, 0.0], [0.5, 3.0]),
        cg.TrainedEnergy(network("relu", confinement=1.0), [0.1, 4.0], [2.0, 3.0]),
        cg.TrainedEnergy(network("tanh"), [1.0, 4.0], [2.0, 0.3]),
        cg.TrainedEnergy(cg.Quadratic(SPD, [1.0, -2.0]), [5.0, -1.0], [0.5, 3.0]),
        cg.TrainedEnergy(cg.Ring(), [0.0, 0.0], [0.5, 3.0]),
    ],
    ids=["far", "centred", "kinks", "unconfined", "quadratic", "ring"],
)
def test_trained_energies_in_the_datas_units(energy):
    known, _ = assert_holds(energy, spread=(0.3, 3.0, 30.0, 1000.0))
    if energy.network.properties.dissipativity is None:
        assert known.dissipativity is None
        assert known.gradient_bound is not None
    else:
        assert known.dissipativity[0] > 0
        assert known.gradient_bound is None


def test_a_moved_ring_claims_no_dissipativity():
    assert cg.TrainedEnergy(cg.Ring(), [1.0, 0.0]).properties.dissipativity is None


# Boxes ---------------------------------------------------------------------------------------------------------------


def assert_encloses(found, energy, seed=0, count=2000):
    x = np.random.default_rng(seed).uniform(found.lower, found.upper, size=(count, energy.dim))
    values, slopes = energy(x), np.linalg.norm(energy.gradient(x), axis=1)
    slack = 1e-9 * (1 + np.abs(values).max())
    assert found.value[0] <= values.min() + slack
    assert values.max() <= found.value[1] + slack
    if found.gradient_bound is not None:
        assert slopes.max() <= found.gradient_bound * (1 + 1e-9) + slack
    if found.hessian_lower is not None:
        eigenvalues = np.linalg.eigvalsh(energy.hessian(x[:400]))
        assert found.hessian_lower <= eigenvalues.min() + 1e-9 * (1 + np.abs(eigenvalues).max())
        assert eigenvalues.max() <= found.hessian_upper + 1e-9 * (1 + np.abs(eigenvalues).max())
        return slopes.max(), eigenvalues.min(), eigenvalues.max()
    return slopes.max(), None, None


@pytest.mark.parametrize(
    ("name", "boxes", "factor"),
    [
        ("two_moons", 300, 10),
        pytest.param("eight_gaussians", 2000, 4, marks=pytest.mark.slow),
        pytest.param("digits", 1, 500, marks=pytest.mark.slow),
    ],
)
def test_shipped_models_sampled_below_box_below_everywhere(name, boxes, factor):
    energy = cg.load_energy(name)
    wide = 2 * energy.scale if energy.dim == 2 else 0.02 * energy.scale
    found = on_box(energy, energy.center - wide, energy.center + wide, boxes=boxes)
    slope, low, high = assert_encloses(found, energy, count=1000 if energy.dim == 2 else 32)
    known = energy.properties
    # everywhere: the network's bound, and the confinement at the farthest point of the box
    c = energy.network.confinement
    everywhere = energy.network.network_bounds(energy.scale).gradient + c * np.linalg.norm(wide / energy.scale**2)
    assert slope <= found.gradient_bound <= everywhere * (1 + 1e-9)
    assert known.hessian_lower <= found.hessian_lower <= low
    assert high <= found.hessian_upper <= known.hessian_upper
    assert found.gradient_bound < 0.5 * everywhere  # the box pays
    assert found.gradient_bound < factor * slope
    print(
        f"{name}: |∇E| sampled {slope:.3g}, box {found.gradient_bound:.3g}, everywhere {everywhere:.3g}; ∇²E sampled "
    )
    print(f"  [{low:.3g}, {high:.3g}], box [{found.hessian_lower:.3g}, {found.hessian_upper:.3g}], everywhere")
    print(f"  [{known.hessian_lower:.3g}, {known.hessian_upper:.3g}]")


@pytest.mark.parametrize(
    "energy",
    [
        *(
            pytest.param(network(k, confinement=0.2), id=k, marks=[] if k == "tanh" else pytest.mark.slow)
            for k in SMOOTH
        ),
        pytest.param(network(("relu", "tanh")), id="kinks"),
        pytest.param(network("tanh", dim=3, features=2), id="features"),
        *(
            pytest.param(energy, id=name, marks=pytest.mark.slow)
            for name, energy in {
                "trained": cg.TrainedEnergy(network("gelu", confinement=0.2), [1.0, 2.0], [0.5, 3.0]),
                "weighted": FAMILY["weighted"],
            }.items()
        ),
    ],
)
def test_boxes_of_networks(energy):
    center = np.full(energy.dim, 0.7)
    coarse = on_box(energy, center - 1, center + 2, boxes=1)
    assert_encloses(coarse, energy)
    fine = on_box(energy, center - 1, center + 2, boxes=150)
    slope, low, _ = assert_encloses(fine, energy)
    assert fine.boxes <= 150
    assert fine.oscillation <= coarse.oscillation
    assert fine.gradient_bound <= coarse.gradient_bound
    assert fine.gradient_bound <= (1.6 if energy.dim == 2 else 5) * slope
    # on a tiny box everything is known to its size
    tiny = on_box(energy, center, center + 1e-7, boxes=1)
    np.testing.assert_allclose(tiny.value, energy(center), atol=1e-5)
    assert tiny.gradient_bound == pytest.approx(np.linalg.norm(energy.gradient(center)), abs=1e-3)
    if low is None:
        assert fine.hessian_lower is fine.hessian_upper is None
    else:
        eigenvalues = np.linalg.eigvalsh(energy.hessian(center))
        # the tables of σ'' are good to 1e-3
        assert tiny.hessian_lower == pytest.approx(eigenvalues[0], abs=0.05)
        assert tiny.hessian_upper == pytest.approx(eigenvalues[-1], abs=0.05)


@pytest.mark.parametrize("name", ["double well", "banana", "funnel", "ring", "symbolic", "callable"])
def test_boxes_of_formulas(name):
    energy = FAMILY[name]
    found = on_box(energy, -np.ones(energy.dim), 2 * np.ones(energy.dim), boxes=30)
    slope, _, high = assert_encloses(found, energy)
    assert found.gradient_bound <= 2 * slope
    assert found.hessian_upper <= 2 * high
    known = energy.properties.hessian_lower
    assert known is None or found.hessian_lower >= known


def test_box_of_a_quadratic_is_its_own():
    energy = cg.Quadratic(np.diag([1.0, 4.0]))
    found = on_box(energy, [-1.0, -2.0], [3.0, 1.0], boxes=20)
    assert (found.hessian_lower, found.hessian_upper) == (1.0, 4.0)
    assert found.value[1] == pytest.approx((9 + 16) / 2, rel=1e-6)
    assert found.gradient_bound == pytest.approx(np.sqrt(9 + 64), rel=1e-6)
    assert found.oscillation >= 12.5


def test_kinks_have_a_gradient_bound_and_no_hessian():
    energy = cg.CallableEnergy(lambda x: jax.numpy.abs(x[0]) + x[1] ** 2, 2)
    found = on_box(energy, [-1.0, -1.0], [1.0, 2.0], boxes=40)
    assert found.hessian_lower is found.hessian_upper is None
    assert found.gradient_bound == pytest.approx(np.sqrt(17), rel=1e-6)
    inside = on_box(energy, [0.5, -1.0], [1.0, 2.0], boxes=4)
    assert inside.hessian_upper == pytest.approx(2.0, rel=1e-6)


def test_refusals_of_boxes_are_named():
    energy = cg.Ring()
    with pytest.raises(ValueError, match=r"lower must be 2 finite numbers"):
        on_box(energy, [0.0], [1.0, 1.0])
    with pytest.raises(ValueError, match="lower must not exceed upper"):
        on_box(energy, [0.0, 2.0], [1.0, 1.0])
    with pytest.raises(ValueError, match="boxes must be at least 1; got 0"):
        on_box(energy, [0.0, 0.0], [1.0, 1.0], boxes=0)
    with pytest.raises(ValueError, match="may be undefined or infinite"):
        on_box(cg.SymbolicEnergy("log(x) + y**2", ["x", "y"]), [-1.0, 0.0], [1.0, 1.0], boxes=4)
