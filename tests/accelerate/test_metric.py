"""The optimal constant metric: rates against closed forms and trajectories; what is false is refuted, never proved."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import eigh, expm

import ctrlgen as cg
from ctrlgen.accelerate._bounds import Frame
from ctrlgen.accelerate.metric import optimal_metric
from ctrlgen.certify.premise import missing
from ctrlgen.energies.intervals import Intervals
from ctrlgen.prove.claim import Status

EDGES = "x**4/4 + x**2/2"


def spd(seed, d, floor=0.05):
    root = np.random.default_rng(seed).normal(size=(d, d))
    return root @ root.T + floor * np.eye(d)


def extremes(hessians, metric):
    """Least and largest eigenvalue of M⁻¹H, by SciPy."""
    m = np.diag(metric) if np.ndim(metric) == 1 else metric
    values = np.array([eigh(h, m, eigvals_only=True)[[0, -1]] for h in hessians])
    return values[:, 0].min(), values[:, 1].max()


# Quadratics -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", [np.diag([1.0, 1000.0]), [[3.0]], spd(0, 5), spd(1, 20)], ids=len)
def test_case_9_the_optimal_metric_of_a_quadratic_leaves_condition_number_one(precision):
    verdict = optimal_metric(cg.Quadratic(precision))
    values = np.linalg.eigvalsh(precision)
    assert verdict.status is Status.PROVED
    assert verdict.method == "exact"
    assert verdict.rate == 1.0
    assert verdict.condition == 1.0
    np.testing.assert_array_equal(verdict.metric, precision)
    assert verdict.plain == pytest.approx(values[-1] / values[0], rel=1e-9)
    assert verdict.recheck()


@pytest.mark.parametrize("rho", [0.0, 0.5, -0.99])
def test_the_best_diagonal_metric_in_two_dimensions(rho):
    a, b = 4.0, 900.0
    off = rho * np.sqrt(a * b)
    verdict = optimal_metric(cg.Quadratic([[a, off], [off, b]]), structure="diagonal")
    best = (1 - abs(rho)) / (1 + abs(rho))  # by Jacobi's scaling, which is optimal for two rows (Forsythe, Straus 1955)
    assert verdict.status is Status.PROVED
    assert verdict.metric.shape == (2,)
    assert best - 1e-7 < verdict.rate <= best
    assert verdict.recheck()


def test_no_other_diagonal_metric_is_better():
    h = spd(3, 5, 1.0)
    verdict = optimal_metric(cg.Quadratic(h), structure="diagonal")
    rng = np.random.default_rng(0)
    for size in (0.01, 0.1, 1.0):
        for other in verdict.metric * np.exp(size * rng.normal(size=(200, 5))):
            low, high = extremes([h], other)
            assert low / high < verdict.rate + 1e-7
    low, high = extremes([h], verdict.metric)
    assert high <= 1 + 1e-12
    assert verdict.rate <= low


def test_a_low_rank_metric_takes_the_stiff_directions_away():
    rng = np.random.default_rng(5)
    d, rank = 50, 8
    basis = np.linalg.qr(rng.normal(size=(d, d)))[0]
    values = np.concatenate([10 ** rng.uniform(3, 5, rank), rng.uniform(1.0, 4.0, d - rank)])
    h = (basis * values) @ basis.T
    verdict = optimal_metric(cg.Quadratic((h + h.T) / 2), structure="low-rank", rank=rank)
    assert verdict.status is Status.PROVED
    assert verdict.rate == pytest.approx(values[rank:].min() / values[rank:].max(), rel=1e-6)
    assert verdict.plain > 1e3 * verdict.condition
    assert verdict.recheck()


def test_a_large_diagonal_metric_needs_no_program():
    d = 64
    scale = 10 ** np.random.default_rng(2).uniform(-2, 2, d)
    h = spd(4, d, 30.0) * scale[:, None] * scale
    verdict = optimal_metric(cg.Quadratic(h), structure="diagonal", timeout=20)
    low, high = extremes([h], verdict.metric)
    assert verdict.status is Status.PROVED
    assert high <= 1 + 1e-9
    assert low * (1 - 1e-6) < verdict.rate <= low * (1 + 1e-9)
    assert verdict.condition < 1e-4 * verdict.plain


@pytest.mark.parametrize(
    "precision", [[[1.0, 2.0], [2.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]]], ids=["indefinite", "singular"]
)
def test_a_quadratic_that_is_not_definite_is_refuted(precision):
    (a, b), (_, c) = precision
    energy = cg.SymbolicEnergy(f"{a}*x**2/2 + {b}*x*y + {c}*y**2/2", ["x", "y"])
    verdict = optimal_metric(energy)
    assert verdict.status is Status.REFUTED
    assert verdict.metric is None
    assert verdict.witness is not None
    assert verdict.recheck()


# Formulas -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expr", "domain", "metric", "rate"),
    [
        (EDGES, cg.Box([-1], [1]), 4.0, 0.25),
        (EDGES, cg.Ball([1], 1), 13.0, 1 / 13),
        ("2*x**2 + cos(x)", None, 5.0, 0.6),
    ],
    ids=["box", "ball", "whole"],
)
def test_metrics_of_formulas_that_are_known(expr, domain, metric, rate):
    verdict = optimal_metric(cg.SymbolicEnergy(expr, ["x"]), domain, timeout=20)
    assert verdict.status is Status.PROVED
    assert rate - 1e-9 < verdict.rate <= rate
    assert verdict.metric[0, 0] == pytest.approx(metric, rel=1e-9)
    assert verdict.metric[0, 0] >= metric
    assert verdict.recheck()


@pytest.mark.slow
def test_a_metric_of_a_formula_holds_at_points_and_beats_the_identity():
    energy = cg.SymbolicEnergy("x**2/8 + (y - x**2/4 + 1)**2*8", ["x", "y"])
    verdict = optimal_metric(energy, cg.Box([-0.5, -1.2], [0.5, -1]), timeout=20)
    points = np.random.default_rng(0).uniform([-0.5, -1.2], [0.5, -1], (2000, 2))
    low, high = extremes(energy.hessian(points), verdict.metric)
    assert verdict.status is Status.PROVED
    assert high <= 1
    assert verdict.rate <= low
    assert verdict.condition < verdict.plain / 2
    assert verdict.recheck()


@pytest.mark.parametrize(
    ("energy", "domain", "reason"),
    [
        (cg.SymbolicEnergy("x**4/4 - x**2/2", ["x"]), cg.Box([-1], [1]), "exact point"),
        (cg.SymbolicEnergy(EDGES, ["x"]), None, "unbounded on the whole space"),
        (cg.Funnel(2), cg.Box([-1, -3], [1, 3]), "exact point"),
    ],
    ids=["double well", "quartic", "funnel"],
)
def test_what_no_constant_metric_does_is_refuted(energy, domain, reason):
    verdict = optimal_metric(energy, domain)
    assert verdict.status is Status.REFUTED
    assert reason in verdict.reason
    assert verdict.rate is None
    assert verdict.recheck()
    if verdict.witness is not None:
        assert np.linalg.eigvalsh(energy.hessian(verdict.witness))[0] < 0
    with pytest.raises(ValueError, match="no metric was found"):
        verdict.plant(1.0)


def test_a_claim_that_is_not_proved_gives_no_metric(monkeypatch):
    from ctrlgen.accelerate import _worth

    monkeypatch.setattr(_worth, "settle", lambda every, *_: [missing(every[0].text, "nobody looked")])
    verdict = optimal_metric(cg.SymbolicEnergy(EDGES, ["x"]), cg.Box([-1], [1]))
    assert verdict.method == "interval"  # the claims gave nothing, the boxes did
    assert 0.25 * (1 - 1e-2) < verdict.rate <= 0.25
    assert verdict.recheck()


# Networks, mixtures, sums ---------------------------------------------------------------------------------------------

SUM = cg.SymbolicEnergy("cos(x + y)/2", ["x", "y"]) + cg.Quadratic([[2.0, 1.0], [1.0, 40.0]])
TRAINED = cg.TrainedEnergy(cg.MLPEnergy(2, 12, 2, confinement=1.0, key=2), [1.0, -1.0], [0.5, 4.0])
MIXTURE = cg.GaussianMixture([[-0.5, 0], [0.5, 0.0]], [[1, 0], [0, 0.1]])
LESS = cg.compose([cg.Quadratic(np.diag([2.0, 9.0])), MIXTURE], [1.0, -0.5])


@pytest.mark.parametrize(
    ("energy", "structure"),
    [
        pytest.param(SUM, "full", id="sum", marks=pytest.mark.slow),
        pytest.param(TRAINED, "diagonal", id="trained"),
        pytest.param(MIXTURE, "full", id="mixture"),
        pytest.param(MIXTURE, "diagonal", id="mixture, diagonal"),
        pytest.param(LESS, "full", id="less"),
    ],
)
def test_a_metric_on_the_whole_space_holds_everywhere(energy, structure):
    verdict = optimal_metric(energy, structure=structure, timeout=4)
    points = np.random.default_rng(1).normal(size=(3000, 2)) * 5
    low, high = extremes(energy.hessian(points), verdict.metric)
    assert verdict.status is Status.PROVED
    assert high <= 1 + 1e-12
    assert 0 < verdict.rate <= low + 1e-12
    assert verdict.condition < verdict.plain * 1.9
    assert verdict.recheck()


def test_a_mixture_with_two_means_has_its_rate_in_closed_form():
    assert optimal_metric(MIXTURE).rate == pytest.approx(0.75, rel=1e-6)  # 1 - ¼ δᵀPδ, at the middle
    assert optimal_metric(MIXTURE, structure="diagonal").rate == pytest.approx(0.75, rel=1e-6)


def test_a_network_whose_constants_are_known_has_a_multiple_of_the_identity():
    energy = cg.MLPEnergy(3, 8, 2, "tanh", confinement=1.0, key=3)
    known = energy.properties
    verdict = optimal_metric(energy)
    assert verdict.rate == pytest.approx(known.hessian_lower / known.hessian_upper, rel=1e-9)
    np.testing.assert_allclose(verdict.metric, known.hessian_upper * np.eye(3), rtol=1e-9)


@pytest.mark.parametrize(
    "energy", [pytest.param(MIXTURE, id="mixture"), pytest.param(TRAINED + SUM, id="sum", marks=pytest.mark.slow)]
)
def test_on_a_box_interval_hessians_prove_nearly_what_points_show(energy):
    box = cg.Box([-1, -1], [1, 1])
    verdict = optimal_metric(energy, box, timeout=15)
    points = np.random.default_rng(1).uniform(-1, 1, (3000, 2))
    low, high = extremes(energy.hessian(points), verdict.metric)
    assert verdict.status is Status.PROVED
    assert high <= 1 + 1e-12
    assert low / high * 0.97 < verdict.rate <= low + 1e-12
    assert verdict.recheck()


def test_a_trained_energy_is_refuted_where_it_is_not_convex():
    energy = cg.load_energy("two_moons")
    verdict = optimal_metric(energy, cg.Box([-0.8, -1.3], [2.9, 1.9]))
    assert verdict.status is Status.REFUTED
    assert verdict.margin < 0
    assert np.linalg.eigvalsh(energy.hessian(verdict.witness))[0] < 0
    assert verdict.recheck()


def test_floats_alone_refute_nothing(monkeypatch):
    from ctrlgen.accelerate._worth import not_definite_at

    monkeypatch.setattr(cg.GaussianMixture, "hessian", lambda self, x: np.full((len(x), 1, 1), -1e-3))
    points = np.array([[0.0], [0.5]])
    assert not_definite_at(cg.GaussianMixture([[0.0]], 1.0), points) is None
    assert not_definite_at(cg.GaussianMixture([[-3.0], [3.0]], 1.0), points) is not None


def test_kinks_and_walls_have_no_metric():
    relu = optimal_metric(cg.MLPEnergy(2, 8, 1, "relu", confinement=1.0), cg.Box([-1, -1], [1, 1]))
    bent = optimal_metric(cg.SymbolicEnergy("x**2 - abs(x)/2", ["x"]), cg.Box([-1], [1]))
    other = optimal_metric(
        cg.CallableEnergy(lambda x: jnp.sum(x**2) + 0.1 * jnp.abs(x[0]), 2), cg.Box([-1, -1], [1, 1])
    )
    assert [v.status for v in (relu, bent, other)] == [Status.UNDECIDED] * 3
    assert "has kinks" in relu.reason


# Samples --------------------------------------------------------------------------------------------------------------


def test_the_best_metric_of_diagonal_hessians_is_known():
    a, b = np.array([1.0, 50.0, 3.0]), np.array([2.0, 20.0, 3.5])
    verdict = optimal_metric(None, hessians=np.stack([np.diag(a), np.diag(b)]))
    assert verdict.status is Status.SAMPLED
    assert verdict.rate == pytest.approx((np.minimum(a, b) / np.maximum(a, b)).min(), rel=1e-6)
    assert not verdict.recheck()


def test_the_share_of_fresh_hessians_that_violate_a_sampled_metric_is_bounded():
    rng = np.random.default_rng(4)

    def draw(n):
        roots = rng.normal(size=(n, 3, 6))
        return roots @ roots.swapaxes(1, 2) + np.eye(3)

    verdict = optimal_metric(None, hessians=draw(600).astype(np.float32), key=1)
    fresh = draw(4000)
    m = verdict.metric
    values = np.array([eigh(h, m, eigvals_only=True)[[0, -1]] for h in fresh])
    outside = ((values[:, 0] < verdict.rate) | (values[:, 1] > 1)).mean()
    assert verdict.status is Status.SAMPLED
    assert 0 < outside <= verdict.violation < 0.06
    # a share v/2 beyond an end is missed by all 200 held out with probability (1 - v/2)^200: two ends, two metrics
    assert 4 * (1 - verdict.violation / 2) ** 200 == pytest.approx(0.05)
    with pytest.raises(ValueError, match=r"no rate was proved, .* the status is SAMPLED"):
        verdict.distance(1.0)


def test_a_domain_is_written_in_the_names_of_the_formula():
    disc = cg.Sublevel("u**2 + w**2 - 1", ["u", "w"])
    verdict = optimal_metric(cg.SymbolicEnergy("u**2 + w**2 + u**4", ["u", "w"]), disc)
    assert verdict.status is Status.PROVED
    assert verdict.rate == pytest.approx(1 / 7, rel=1e-6)  # 2 + 12u² in [2, 14]
    assert "the domain is convex" in verdict.assumptions


@pytest.mark.slow
def test_eight_dimensions_by_intervals():
    names = [f"x{i}" for i in range(8)]
    expr = "+".join(f"{k + 1}*{s}**2 + {s}**4/4" for k, s in enumerate(names)) + "+ x0*x1"
    energy = cg.SymbolicEnergy(expr, names)
    verdict = optimal_metric(energy, cg.Box([-1] * 8, [1] * 8), structure="diagonal", timeout=6)
    points = np.random.default_rng(0).uniform(-1, 1, (200, 8))
    low, high = extremes(energy.hessian(points), verdict.metric)
    assert verdict.status is Status.PROVED
    assert high <= 1 + 1e-12
    assert 0.2 < verdict.rate <= low
    assert verdict.recheck()


def test_a_jump_between_two_smooth_pieces_is_seen():
    verdict = optimal_metric(cg.SymbolicEnergy("x**2 + atan(1/x)/10", ["x"]), cg.Box([-1], [1]))
    assert verdict.status is Status.UNDECIDED
    assert verdict.rate is None


@pytest.mark.slow
def test_without_domain_the_gibbs_measure_is_sampled_where_a_temperature_is_given():
    energy = cg.GaussianMixture(np.zeros((2, 2)), [1.0, 1.5])  # no lower bound of its Hessian is known
    silent = optimal_metric(energy)
    verdict = optimal_metric(energy, temperature=1.0)
    assert silent.status is Status.UNDECIDED
    assert "Pass domain=, hessians= or temperature=" in silent.reason
    assert verdict.status is Status.SAMPLED
    low, high = extremes(energy.hessian(energy.sample(0, 4000)), verdict.metric)
    assert verdict.rate == pytest.approx(low / high, rel=0.1)


# Consequences ---------------------------------------------------------------------------------------------------------


def test_coupled_trajectories_contract_at_least_at_the_proved_rate():
    energy = TRAINED
    verdict = optimal_metric(energy, timeout=4)
    plant = verdict.plant(temperature=0.5, fraction=0.25)
    starts = np.random.default_rng(0).normal(size=(2, 64, 2))
    loop = cg.ClosedLoop(plant, energy)
    x, y = (np.asarray(loop.simulate(s, 10 * plant.step, key=3, record=11).states, float) for s in starts)
    gap = np.sqrt(np.einsum("kni,ij,knj->kn", x - y, verdict.metric, x - y))
    assert plant.step == 0.5
    assert len(gap) == 11
    factor = gap[1:] / gap[:-1]
    assert (factor <= verdict.step_contraction(plant.step) + 1e-3).all()
    assert factor.max() > verdict.step_contraction(plant.step) - 0.4


def test_the_promises_about_a_gaussian_hold_and_are_tight_in_its_own_metric():
    h = np.diag([1.0, 30.0])
    own, plain = optimal_metric(cg.Quadratic(h)), optimal_metric(cg.Quadratic(h), structure="low-rank", rank=1)
    t = np.array([0.0, 0.4, 2.0])
    np.testing.assert_allclose(own.kl(t), np.exp(-2 * t), rtol=1e-14)  # KL of a shifted mean falls by e^{-2t}
    assert (own.kl(t) >= np.exp(-2 * t)).all()
    for verdict in (own, plain):
        for time in t:
            norm = np.linalg.norm(expm(-np.linalg.solve(verdict.metric, h) * time), 2)
            assert norm <= verdict.wasserstein(float(time)) * (1 + 1e-12)
    assert own.wasserstein(0.0) == pytest.approx(np.sqrt(30), rel=1e-12)


def test_on_a_domain_nothing_is_said_of_measures():
    verdict = optimal_metric(cg.SymbolicEnergy(EDGES, ["x"]), cg.Box([-1], [1]))
    assert verdict.distance(1.0) == pytest.approx(np.exp(-0.25), rel=1e-12)
    for call in (verdict.kl, verdict.wasserstein):
        with pytest.raises(ValueError, match="on the whole space only"):
            call(1.0)


# Intervals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_bounds_in_a_metric_enclose_every_matrix_of_an_interval(scale):
    rng = np.random.default_rng(0)
    units = np.array([scale, 1.0, 1 / scale])
    m, h = (spd(k, 3) * units[:, None] * units for k in (1, 2))
    rad = 1e-2 * np.abs(h)
    frame = Frame.of(m)
    intervals = Intervals(h[None], rad[None])
    low, high = frame.lowest(intervals)[0], frame.highest(intervals)[0]
    corners = h + rad * np.sign(np.triu(rng.normal(size=(500, 3, 3))) + 0)
    corners = np.triu(corners) + np.swapaxes(np.triu(corners, 1), 1, 2)
    seen = extremes(corners, m)
    assert low <= seen[0]
    assert seen[1] <= high
    assert high - low < 3 * (seen[1] - seen[0])


def test_bounds_in_a_metric_do_not_rest_on_its_root():
    """Any R will do: here one that is off by a factor, so that RᵀMR is far from the identity."""
    m, h = spd(1, 3), spd(2, 3) - 0.5 * np.eye(3)
    root = np.linalg.inv(np.linalg.cholesky(m)).T @ np.diag([0.5, 1.0, 2.0])
    frame = Frame(m, root, 0.25 * (1 - 1e-12), 4 * (1 + 1e-12))
    low, high = extremes([h], m)
    assert frame.lowest(Intervals.exact(h[None]))[0] <= low
    assert frame.highest(Intervals.exact(h[None]))[0] >= high
    assert Frame.of(m).lowest(Intervals.exact(h[None]))[0] == pytest.approx(low, rel=1e-9)


# Errors ---------------------------------------------------------------------------------------------------------------

QUADRATIC = cg.Quadratic(np.eye(3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"structure": "banded"}, r"structure must be one of 'full', 'diagonal', 'low-rank'; got 'banded'"),
        ({"structure": "low-rank", "rank": 3}, "rank must be an integer from 1 to 2 in 3 dimensions; got 3"),
        ({"rank": 1}, "rank must be omitted unless structure is 'low-rank'"),
        ({"domain": cg.Box([0], [1])}, "domain: .* has 1 coordinates"),
        ({"domain": 3}, "domain must be a domain"),
        ({"domain": cg.Box([0] * 3, [1] * 3) | cg.Box([2] * 3, [3] * 3)}, "domain must be one convex set"),
        ({"temperature": -1.0}, "temperature must be positive"),
        ({"timeout": 0}, "timeout must be a positive number"),
        ({"hessians": np.eye(2)}, r"hessians must have shape \(k, 3, 3\)"),
        ({"hessians": np.triu(np.ones((3, 3)))}, r"hessians must be symmetric; largest \|H - H.T\| is 1.0e\+00"),
        ({"hessians": np.full((1, 3, 3), np.nan)}, "hessians must be finite"),
        ({"hessians": [["a"]]}, "hessians must be an array of real numbers"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        optimal_metric(QUADRATIC, **arguments)


def test_an_energy_is_needed_unless_hessians_are_given():
    with pytest.raises(ValueError, match="energy must be given unless hessians are"):
        optimal_metric(None)
    with pytest.raises(ValueError, match="energy must be an Energy, or None with hessians; got function"):
        optimal_metric(lambda x: x, cg.Box([0], [1]))


def test_the_fraction_of_the_limit_is_checked():
    with pytest.raises(ValueError, match=r"fraction must be in \(0, 1\)"):
        optimal_metric(QUADRATIC).plant(1.0, fraction=1.0)
    with pytest.raises(ValueError, match="t must be finite and ≥ 0"):
        optimal_metric(QUADRATIC).kl(-1.0)


# Found by a hunt ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["33/10", "1234567/1000"])
def test_a_try_that_fails_refutes_no_metric(place):
    # 1.25 ≤ E'' ≤ 5 everywhere, with a dip that no sample sees: M = 5 and λ = 1/4 are possible
    energy = cg.SymbolicEnergy(f"x**2 - (3/2000000)/(1 + 1000000*(x - {place})**2)", ["x"])
    assert cg.optimal_metric(energy).status is not Status.REFUTED
    assert cg.optimal_metric(cg.SymbolicEnergy("x**4 + x**2", ["x"])).status is Status.REFUTED  # E'' is unbounded


def test_a_rate_that_fails_refutes_no_other():
    energy = cg.SymbolicEnergy("x**2 - (150/1000000)/(1 + 1000000*(x - 33/10)**2)", ["x"])  # E'' ≥ -73
    verdict = cg.riemannian_rate(energy, ["1"], ["x"], 1.0)
    assert verdict.status is not Status.REFUTED
    assert verdict.rate is None or verdict.rate <= -70


def test_complements_are_not_convex():
    energy = cg.SymbolicEnergy("x**4 + x**2 + y**2 + x*y/2", ["x", "y"])
    for domain in (~cg.Ball([0, 0], 1), cg.Box([-2, -2], [2, 2]) & ~cg.Ball([0, 0], 1)):
        with pytest.raises(ValueError, match="no complement"):
            cg.optimal_metric(energy, domain)


def test_code_without_a_formula_is_not_a_crash():
    energy = cg.SymbolicEnergy(lambda z: z[0] ** 2 + z[1] ** 2 + jnp.floor(z[0]), ["x", "y"])
    with pytest.raises(TypeError, match="no symbolic view"):
        energy.symbolic()
    assert cg.optimal_metric(energy).status is not Status.PROVED
    assert cg.optimal_friction(energy).status is Status.UNDECIDED
    assert cg.invariance(energy, 0.7, skew=[[0, 1], [-1, 0]]).status is not Status.PROVED


def test_bounds_that_the_hessian_contradicts():
    for bounds in ({"m": 2.0}, {"L": 5.0}):
        with pytest.raises(ValueError, match="must agree with what is established"):
            cg.optimal_friction(cg.Quadratic(np.diag([1.0, 9.0])), **bounds)
    assert cg.optimal_friction(cg.Quadratic(np.diag([1.0, 9.0])), m=1.0, L=9.0).status is Status.PROVED
    with pytest.raises(ValueError, match="rate must be a finite number"):
        cg.contraction_region(cg.Quadratic(np.eye(2)), cg.Box([-1, -1], [1, 1]), rate=10**400)
