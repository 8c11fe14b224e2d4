"""The synthetic distributions: densities against quadrature, samples against densities."""

import sys

import jax
import numpy as np
import pytest

import ctrlgen as cg
from ctrlgen import datasets
from ctrlgen.datasets import Gaussian

EXACT = [d for d in map(datasets.get, datasets.names()) if d.has_density]
SHAPES = ("eight_gaussians", "two_moons", "rings", "checkerboard", "pinwheel", "tutorial_moons", "tutorial_gaussians")
SKEWED = Gaussian([1.0, -2.0], [[2.0, 0.6], [0.6, 0.5]])
MOVED = datasets.two_moons.standardised([0.3, -0.2], [2.0, 0.5])


def grid(bounds, count):
    """Cell centres (count², 2) and the area of one cell."""
    edges = [np.linspace(bounds[0, i], bounds[1, i], count + 1) for i in (0, 1)]
    centres = np.meshgrid(*[(e[1:] + e[:-1]) / 2 for e in edges], indexing="ij")
    return np.stack(centres, axis=-1).reshape(-1, 2), np.prod([e[1] - e[0] for e in edges])


@pytest.mark.parametrize("distribution", [*EXACT, SKEWED, MOVED], ids=repr)
def test_density_is_normalised(distribution):
    points, area = grid(distribution.bounds, 400)
    mass = np.exp(distribution.log_density(points)).sum() * area
    assert -1e-6 < mass - 1 < 1e-9  # the box may cut off 1e-6


@pytest.mark.parametrize("distribution", [*EXACT, SKEWED, MOVED], ids=repr)
def test_samples_follow_the_density(distribution):
    n, cells, fine = 40_000, 16, 20
    x = distribution.sample(7, n)
    counts, *_ = np.histogram2d(x[:, 0], x[:, 1], bins=cells, range=distribution.bounds.T)
    assert n - counts.sum() <= 1
    points, area = grid(distribution.bounds, cells * fine)
    log_density = distribution.log_density(points)
    density = np.exp(log_density)
    expected = n * area * density.reshape(cells, fine, cells, fine).sum(axis=(1, 3))
    enough = expected > 5
    chi2 = ((counts - expected)[enough] ** 2 / expected[enough]).sum()
    freedom = enough.sum() - 1
    assert abs(chi2 - freedom) < 4 * np.sqrt(2 * freedom)
    entropy = -area * (density[density > 0] * log_density[density > 0]).sum()
    surprise = -distribution.log_density(x)
    assert abs(surprise.mean() - entropy) <= 4 * surprise.std() / np.sqrt(n) + 1e-6


@pytest.mark.parametrize("name", SHAPES)
def test_samples_are_determined_by_the_key(name):
    distribution = getattr(datasets, name)
    assert datasets.get(name) is distribution
    assert distribution.name == name
    x = distribution.sample(3, 101)
    assert x.shape == (101, distribution.dim) == (101, 2)
    assert x.dtype == np.float64
    assert np.array_equal(x, distribution.sample(np.int64(3), 101))
    assert not np.isin(x, distribution.sample(4, 101)).all()
    y = distribution.sample(jax.random.key(3), 101)
    assert np.array_equal(y, distribution.sample(jax.random.key(3), 101))
    assert np.array_equal(y, distribution.sample(jax.random.PRNGKey(3), 101))
    assert not np.isin(y, distribution.sample(jax.random.key(4), 101)).all()
    assert not np.isin(y, x).all()
    assert ((x >= distribution.bounds[0]) & (x <= distribution.bounds[1])).all()


def test_two_moons_quadrature_has_converged():
    x = np.random.default_rng(0).uniform(-14, 14, (4000, 2))
    reference = datasets._TwoMoons("reference", nodes=1000)
    assert np.abs(datasets.two_moons.log_density(x) - reference.log_density(x)).max() < 1e-10


def test_tutorial_moons_are_the_tutorials():
    n = 65
    x = datasets.tutorial_moons.sample(0, n)
    base = (x + 1) / 3
    outer, inner = np.linspace(0, np.pi, n // 2), np.linspace(0, np.pi, n - n // 2)
    curve = np.concatenate(
        [
            np.stack([np.cos(outer), np.sin(outer)], axis=1),
            np.stack([1 - np.cos(inner), 1 - np.sin(inner) - 0.5], axis=1),
        ]
    )
    shift = base[:, None, :] - curve  # point minus arc: on the diagonal for its own place on the arc
    own = np.abs(shift[..., 0] - shift[..., 1]) < 1e-12
    own &= (shift[..., 0] > -1e-12) & (shift[..., 0] < 0.2)
    assert own.any(axis=0).all()  # every angle is used
    assert own.any(axis=1).all()  # and nothing else
    assert abs(np.corrcoef(np.arange(n), x[:, 0])[0, 1]) < 0.4  # rows are shuffled; in the tutorial's order: 0.5
    with pytest.raises(TypeError, match="no density that is known exactly: use its samples"):
        datasets.tutorial_moons.log_density(x)


def test_tutorial_gaussians_have_the_tutorials_covariance():
    x = datasets.tutorial_gaussians.sample(0, 40_000)
    angle = np.round(np.arctan2(x[:, 1], x[:, 0]) / (np.pi / 4)) * (np.pi / 4)
    offset = x - 5 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    assert abs(offset.std() - 0.1**0.25) < 0.005  # standard error 0.0014


def test_rings_share_mass_by_circumference():
    radius = np.linalg.norm(datasets.rings.sample(0, 20_000), axis=1)
    share = np.histogram(radius, [0, 1.6, 2.9, 6])[0] / 20_000
    assert np.allclose(share, np.array([1.0, 2.25, 3.5]) / 6.75, rtol=0, atol=0.015)  # standard error 0.0035


def test_gaussian_closed_form():
    covariance = np.diag([4.0, 1.0, 0.25])
    x = np.array([[2.0, 0.0, 0.5], [0.0, 0.0, 0.0]])
    out = Gaussian(np.zeros(3), covariance).log_density(x)
    constant = -1.5 * np.log(2 * np.pi)  # det = 1
    assert np.allclose(out, [constant - 0.5 * (1 + 1), constant], rtol=0, atol=1e-13)
    one = Gaussian(1.0, 4.0)
    assert one.dim == 1
    assert np.isclose(one.log_density([1.0]), -0.5 * np.log(8 * np.pi), rtol=0, atol=1e-13)
    assert np.array_equal(Gaussian([0.0, 0.0], 2.0).covariance, 2 * np.eye(2))
    x = SKEWED.sample(0, 40_000)
    assert np.abs(np.cov(x.T) - SKEWED.covariance).max() < 0.06  # standard error at most 0.014
    with pytest.raises(AttributeError):
        SKEWED.mean = np.zeros(2)
    with pytest.raises(ValueError, match="read-only"):
        SKEWED.mean[0] = 0


def test_checkerboard_is_empty_outside_the_dark_squares():
    x = [[1.0, 1.0], [1.0, -1.0], [5.0, 1.0], [-3.0, 3.0], [-3.0, 1.0]]
    dark = -np.log(32.0)
    assert np.array_equal(datasets.checkerboard.log_density(x), [dark, -np.inf, -np.inf, -np.inf, dark])


@pytest.mark.parametrize("distribution", EXACT, ids=repr)
def test_one_point_is_a_batch_of_one(distribution):
    x = distribution.sample(0, 20_000)[::1999]
    assert np.shape(distribution.log_density(x[0])) == ()
    # BLAS may round a batch and a point differently
    assert np.allclose(distribution.log_density(x), [distribution.log_density(p) for p in x], rtol=1e-12)
    assert distribution.log_density(x[:0]).shape == (0,)


def test_digits():
    digits = datasets.digits
    assert digits.data.shape == (1797, 64)
    assert digits.data.min() == 0
    assert digits.data.max() == 1
    assert digits.train.shape == (1500, 64)
    assert digits.held_out.shape == (297, 64)
    both = np.concatenate([digits.train, digits.held_out])
    assert np.array_equal(np.sort(both, axis=0), np.sort(digits.data, axis=0))
    assert abs(digits.train.mean() - digits.held_out.mean()) < 0.01  # shuffled
    assert digits.sample(0, 50).shape == (50, digits.dim)
    with pytest.raises(TypeError, match="<digits, 64-D> has no density"):
        digits.log_density(digits.data)


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r'pip install "ctrlgen\[digits\]"'):
        datasets._Digits("fresh").sample(0, 1)


@pytest.mark.parametrize("distribution", [*EXACT, SKEWED], ids=repr)
def test_standardised_means_are_0_and_deviations_1(distribution):
    """By the midpoint rule over the density, which knows nothing of the moments."""
    unit = distribution.standardised()
    points, area = grid(unit.bounds, 400)
    mass = np.exp(unit.log_density(points)) * area
    mean = mass @ points
    assert np.abs(mean).max() < 1e-5
    assert np.abs(mass @ (points - mean) ** 2 - 1).max() < 1e-4  # the box may cut off 1e-6, and cells are 1/400 of it
    assert np.allclose(unit.standardised().center, 0, rtol=0, atol=1e-15)
    assert np.allclose(unit.standardised().scale, 1, rtol=1e-15)


def test_standardised_samples_are_those_of_the_base_in_other_units():
    x = datasets.two_moons.sample(3, 50)
    assert np.array_equal(MOVED.sample(3, 50), (x - [0.3, -0.2]) / [2.0, 0.5])
    assert (MOVED.name, MOVED.dim, MOVED.has_density) == ("two_moons, standardised", 2, True)
    exact, again = datasets.two_moons.standardised(), MOVED.standardised()
    assert np.allclose(again.center, (exact.center - [0.3, -0.2]) / [2.0, 0.5], rtol=1e-12)
    assert np.allclose(again.scale, exact.scale / [2.0, 0.5], rtol=1e-15)
    half = SKEWED.standardised(scale=[2.0, 4.0])
    assert np.array_equal(half.center, SKEWED.mean)
    assert np.array_equal(SKEWED.standardised(center=[0.0, 1.0]).scale, np.sqrt([2.0, 0.5]))
    with pytest.raises(ValueError, match="read-only"):
        half.scale[0] = 1


def test_standardised_tables_and_samples():
    digits = datasets.digits.standardised()
    rows = (datasets.digits.data - digits.center) / digits.scale
    varies = datasets.digits.data.std(axis=0) > 0
    assert 0 < varies.sum() < 64  # some pixels are always white
    assert np.abs(rows.mean(axis=0)).max() < 1e-12
    assert np.allclose(rows.std(axis=0), varies, rtol=0, atol=1e-12)
    with pytest.raises(TypeError, match="<digits, standardised, 64-D> has no density"):
        digits.log_density(rows)
    rows = datasets.tutorial_moons.standardised().sample(0, 20_000)  # its law is known from these alone
    assert np.abs(rows.mean(axis=0)).max() < 1e-12
    assert np.abs(rows.std(axis=0) - 1).max() < 1e-12
    well = cg.Gibbs(cg.DoubleWell(1), 0.5)
    assert np.array_equal(well.standardised().center, well.sample(0, 20_000).mean(axis=0))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"center": [0.0]}, r"center must be finite, of shape \(2,\); got \[0.0\]"),
        ({"scale": 2.0}, r"scale must be finite, of shape \(2,\); got 2.0"),
        ({"center": [0.0, np.nan]}, "center must be finite"),
        ({"scale": [1.0, 0.0]}, r"scale must be positive in every coordinate; got \[1. 0.\]"),
    ],
)
def test_bad_units(given, message):
    with pytest.raises(ValueError, match=message):
        datasets.rings.standardised(**given)
    with pytest.raises(TypeError, match="base must be a Distribution; got ndarray"):
        datasets.Standardised(np.zeros((5, 2)), [0.0, 0.0], [1.0, 1.0])  # pyright: ignore


def test_bad_names_and_keys():
    with pytest.raises(ValueError, match="Unknown dataset 'moons'; there are checkerboard, digits, eight_gaussians"):
        datasets.get("moons")
    with pytest.raises(ValueError, match="seed of at least 0, or a JAX key; got -1"):
        datasets.rings.sample(-1, 5)
    with pytest.raises(TypeError, match="integer seed or a concrete JAX key; got str"):
        datasets.rings.sample("0", 5)
    with pytest.raises(ValueError, match="must be one JAX key"):
        datasets.rings.sample(jax.random.split(jax.random.key(0), 3), 5)
    for n in (0, 2.5, True):
        with pytest.raises(ValueError, match="n must be an integer of at least 1"):
            datasets.rings.sample(0, n)


def test_bad_points():
    with pytest.raises(ValueError, match=r"x must have shape \(2,\) or \(n, 2\); got shape \(5, 3\)"):
        datasets.rings.log_density(np.zeros((5, 3)))
    with pytest.raises(ValueError, match="2 rows are not, the first is row 1"):
        datasets.rings.log_density([[0, 0], [0, np.nan], [np.inf, 0]])


@pytest.mark.parametrize(
    ("mean", "covariance", "message"),
    [
        ([0.0, 0.0], np.eye(3), r"covariance must have shape \(2, 2\), as the mean has; got shape \(3, 3\)"),
        ([0.0, 0.0], [[1.0, 0.5], [0.0, 1.0]], r"must be symmetric; largest \|C - C.T\| is 5.0e-01"),
        ([0.0, 0.0], [[1.0, 2.0], [2.0, 1.0]], r"positive definite; its smallest eigenvalue is -1.0e\+00"),
        ([0.0, 0.0], -1.0, "positive definite"),
        ([0.0, 0.0], [[1.0, np.nan], [np.nan, 1.0]], "covariance must be finite; 2 entries are not"),
        ([[0.0, 0.0]], 1.0, "mean must be a finite vector"),
        ([0.0, np.inf], 1.0, "mean must be a finite vector"),
    ],
)
def test_bad_gaussians(mean, covariance, message):
    with pytest.raises(ValueError, match=message):
        Gaussian(mean, covariance)
