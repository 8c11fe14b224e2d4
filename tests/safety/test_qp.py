"""The least correction under linear constraints: optimality from scratch, infeasibility, relaxation, odd input."""

from contextlib import nullcontext
from functools import cache

import clarabel
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from scipy.optimize import linprog, lsq_linear

from ctrlgen.precision import float64
from ctrlgen.safety import qp
from ctrlgen.safety.qp import Solution, minimum_norm

solve = jax.jit(minimum_norm)
EACH = 250  # particles of a kind: with six kinds, more than a chunk
TOLERANCE = {np.float32: 1e-4, np.float64: 1e-10}  # of |δ|: rounding at condition numbers of some hundreds
CASES = [(np.float64, 1, 3), pytest.param(np.float64, 2, 2, marks=pytest.mark.slow), (np.float64, 5, 2)]
CASES += [pytest.param(*case, marks=pytest.mark.slow) for case in [(np.float32, 5, 2), (np.float64, 20, 10)]]


def problems(m, d):
    """Every kind of problem, side by side: rows (m, d, n), bounds (m, n)."""
    rng = np.random.default_rng([m, d])

    def under(a, room):
        """Bounds that some point of multiples of 1/4 meets, with room to spare."""
        x = np.round(4 * rng.normal(size=(d, a.shape[2]))) / 4
        return np.einsum("mdn,dn->mn", a, x) - room

    def normal():
        return rng.normal(size=(m, d, EACH))

    a, kinds = normal(), []
    room = np.abs(rng.normal(size=(m, EACH))) * np.linalg.norm(a, axis=1)
    kinds += [(a, under(a, room / 4)), (normal(), rng.normal(size=(m, EACH)))]
    scale = 10.0 ** rng.integers(-6, 7, size=(m, EACH))
    kinds += [(a * scale[:, None], under(a, room / 4) * scale)]
    signs = rng.integers(-1, 2, size=(m, d, EACH)).astype(float)  # zero rows, duplicates, contradictions, ties
    kinds += [(signs, rng.integers(-1, 2, size=(m, EACH)).astype(float))]
    faces = np.round(4 * normal()) / 4  # slabs and duplicates, some of them exactly at equality
    faces[m // 2 :] = faces[: m - m // 2] * np.where(rng.random(EACH) < 0.5, -1, 1)
    kinds += [(faces, under(faces, rng.integers(0, 2, size=(m, EACH))))]
    thin = rng.integers(-2, 3, size=(m, (d + 1) // 2, EACH)), rng.integers(-2, 3, size=((d + 1) // 2, d, EACH))
    low = np.einsum("mkn,kdn->mdn", *thin).astype(float)  # rows in a subspace
    kinds += [(low, under(low, rng.integers(0, 2, size=(m, EACH))))]
    return np.concatenate([k[0] for k in kinds], axis=2), np.concatenate([k[1] for k in kinds], axis=1)


@cache
def solved(dtype, m, d):
    """Rows, bounds (as the type has them, in float64), and the answer."""
    a, b = (v.astype(dtype) for v in problems(m, d))
    with float64() if dtype is np.float64 else nullcontext():
        answer = Solution(*(np.asarray(v) for v in solve(a, b)))
    assert answer.delta.dtype == dtype
    return a.astype(float), b.astype(float), answer


def lengths(a, b, multipliers):
    """Unit rows, bounds and multipliers as lengths; zero rows dropped to rows that ask for nothing."""
    norm = np.linalg.norm(a, axis=1)
    safe = np.where(norm > 0, norm, 1)
    return a / safe[:, None], np.where(norm > 0, b / safe, -1e9), multipliers * norm


@pytest.mark.parametrize(("dtype", "m", "d"), CASES)
def test_optimality_from_scratch(dtype, m, d):
    a, b, answer = solved(dtype, m, d)
    u, bound, ell = lengths(a, b, answer.multipliers)
    delta = answer.delta.astype(float)
    allowed = TOLERANCE[dtype] * (np.linalg.norm(delta, axis=0) + np.maximum(bound.max(0), 0))
    ok, slack = answer.feasible, np.einsum("mdn,dn->mn", u, delta) - bound
    assert ok.mean() > 0.4
    assert (slack >= -allowed)[:, ok].all()
    assert (np.minimum(ell, slack) <= allowed)[:, ok].all()
    # of the relaxed ones too
    assert (answer.multipliers >= 0).all()
    away = np.linalg.norm(delta - np.einsum("mdn,mn->dn", u, ell), axis=0)
    assert (away <= allowed + 4 * np.finfo(dtype).eps * ell.sum(0)).all()


def natural_residual(a, b, delta, multipliers):
    """The docstring's formula, and the size of its terms, in units of which it is rounded."""
    u, bound, ell = lengths(a, b, multipliers)
    slack = np.einsum("mdn,dn->mn", u, delta) - bound
    away = np.linalg.norm(delta - np.einsum("mdn,mn->dn", u, ell), axis=0)
    norm = np.linalg.norm(a, axis=1)
    size = np.linalg.norm(delta, axis=0) + ell.sum(0) + np.abs(np.where(norm > 0, bound, 0)).max(0)
    return np.where(
        ((norm == 0) & (b > 0)).any(0), np.inf, np.maximum(np.abs(np.minimum(ell, slack)).max(0), away)
    ), size


@pytest.mark.parametrize(("dtype", "m", "d"), CASES)
def test_residual_is_that_of_the_docstring(dtype, m, d):
    a, b, answer = solved(dtype, m, d)
    expected, size = natural_residual(a, b, answer.delta.astype(float), answer.multipliers.astype(float))
    finite = np.isfinite(expected)
    assert (np.isinf(answer.residual) == ~finite).all()
    assert (np.abs(answer.residual[finite] - expected[finite]) <= 16 * np.finfo(dtype).eps * size[finite]).all()


@pytest.mark.parametrize("wrong", ["delta", "multipliers"])
def test_residual_sees_a_wrong_answer(wrong):
    a, b, answer = solved(np.float64, 5, 2)
    a, b, delta, multipliers = (v[..., :EACH] for v in (a, b, answer.delta, answer.multipliers))
    noise = np.random.default_rng(4).normal(size=(5, EACH))
    delta = delta + noise[:2] if wrong == "delta" else delta
    ell = multipliers * np.linalg.norm(a, axis=1) + (np.abs(noise) if wrong == "multipliers" else 0)
    with float64():
        shown = jax.jit(lambda a, b, *x: qp._report(qp._unit_rows(a, b), *x))(a, b, delta, ell)
    expected, size = natural_residual(a, b, delta, ell / np.linalg.norm(a, axis=1))
    assert np.median(expected) > 0.1
    assert (np.abs(np.asarray(shown.residual) - expected) <= 1e-14 * size).all()


@pytest.mark.parametrize(("dtype", "m", "d"), CASES[1:])
def test_feasibility_against_a_linear_program(dtype, m, d):
    a, b, answer = solved(dtype, m, d)
    some = range(0, a.shape[2], 15)
    truth = [linprog(np.zeros(d), -a[..., i], -b[:, i], bounds=(None, None)).status == 0 for i in some]
    assert truth == list(answer.feasible[::15])
    assert not all(truth)


@pytest.mark.parametrize(("dtype", "m", "d"), CASES)
def test_delta_against_an_interior_point_method(dtype, m, d):
    a, b, answer = solved(dtype, m, d)
    settings = clarabel.DefaultSettings()
    settings.verbose, settings.tol_gap_abs, settings.tol_gap_rel, settings.tol_feas = False, 1e-10, 1e-10, 1e-10
    u, bound, _ = lengths(a, b, answer.multipliers)
    for i in np.flatnonzero(answer.feasible)[::13]:
        some = bound[:, i] > -1e9
        cones = [clarabel.NonnegativeConeT(int(some.sum()))]
        rows = sp.csc_matrix(-u[some, :, i])
        peer = clarabel.DefaultSolver(sp.eye(d, format="csc"), np.zeros(d), rows, -bound[some, i], cones, settings)
        size = max(1, np.linalg.norm(answer.delta[:, i]))
        # the interior point is 1e-6 off where constraints tie
        assert np.abs(np.array(peer.solve().x) - answer.delta[:, i]).max() < 1e-5 * size + TOLERANCE[dtype] * size


@pytest.mark.parametrize(("dtype", "m", "d"), CASES[1:])
def test_relaxation_is_least_squares_first_and_least_norm_second(dtype, m, d):
    a, b, answer = solved(dtype, m, d)
    u, bound, ell = lengths(a, b, answer.multipliers)
    tolerance = TOLERANCE[dtype] if dtype is np.float32 else 1e-9
    torn = np.flatnonzero(~answer.feasible)
    assert len(torn) > 0
    for i in torn[:: 1 + len(torn) // 40]:
        void = np.linalg.norm(a[..., i], axis=1) == 0
        rows, ask, weight = u[~void, :, i], bound[~void, i], ell[~void, i]
        if void.all():
            continue
        free, count = rows.shape[1], rows.shape[0]
        limits = np.r_[np.full(free, -np.inf), np.zeros(count)], np.inf
        least = lsq_linear(np.hstack([rows, -np.eye(count)]), ask, limits, method="bvls", tol=1e-14, max_iter=2000)
        slack = np.maximum(ask - rows @ least.x[:free], 0)
        size = max(ask.max(), 0) + np.linalg.norm(answer.delta[:, i])
        left = rows @ answer.delta[:, i] - ask
        assert np.abs(np.maximum(-left, 0) - slack).max() <= tolerance * size
        # multipliers that are complementary in the second problem make δ its solution
        assert np.minimum(weight, np.abs(left + slack)).max() <= tolerance * size


@pytest.mark.slow
def test_float32_is_good_to_a_few_roundings():
    """Well-conditioned rows: the same problems in float32 and in float64."""
    rng = np.random.default_rng(0)
    angle = 2 * np.pi / 5 * np.arange(5)[:, None] + 0.3 * rng.normal(size=(5, 6 * EACH))
    a = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    b = np.einsum("mdn,dn->mn", a, rng.normal(size=(2, 6 * EACH))) - rng.random((5, 6 * EACH))
    a, b = a.astype(np.float32), b.astype(np.float32)
    with float64():
        exact = np.asarray(solve(a.astype(float), b.astype(float)).delta)
    off = np.linalg.norm(np.asarray(solve(a, b).delta) - exact, axis=0)
    assert (off <= 3e-6 * np.linalg.norm(exact, axis=0)).all()


def test_answers_belong_to_the_particle():
    """Not to how many there are, nor to which of them are in need: chunks are gathered and scattered."""
    a, b, answer = solved(np.float64, 5, 2)
    rng = np.random.default_rng(1)
    order = rng.permutation(a.shape[2])
    idle = np.cumsum((b[:, order] > 0).any(0)) > 1024  # one full chunk of them, and not one more
    assert idle.sum() > 100
    with float64():
        mixed = solve(a[..., order], np.where(idle, -1.0, b[:, order]))
    for ours, alone in zip(mixed, answer, strict=True):
        assert np.array_equal(np.asarray(ours)[..., ~idle], alone[..., order[~idle]])
    assert not np.asarray(mixed.delta)[:, idle].any()
    assert np.asarray(mixed.feasible)[idle].all()


def test_shared_rows_are_rows_of_every_particle():
    rng = np.random.default_rng(2)
    box = np.concatenate([np.eye(2), -np.eye(2)])[..., None]
    low, high = np.sort(rng.normal(size=(2, 2, 400)), axis=0)
    answer = solve(box, np.concatenate([low, -high]))
    assert np.abs(np.asarray(answer.delta) - np.clip(0, low, high)).max() < 1e-6
    assert np.asarray(answer.feasible).all()


def test_traceable_in_a_loop():
    def body(_, x):
        slack = 1 - jnp.sum(x * x, axis=0)
        a = jnp.stack([-2 * x, jnp.stack([jnp.ones_like(slack), jnp.zeros_like(slack)])])
        return x + minimum_norm(a, jnp.stack([-slack, 0.5 - x[0]])).delta

    x = jax.jit(lambda x: jax.lax.fori_loop(0, 30, body, x))(jnp.array([[2.0, -3.0, 0.6], [1.0, 0.5, 0.1]]))
    assert float(jnp.max(jnp.sum(x * x, axis=0))) < 1 + 1e-5
    assert float(jnp.min(x[0])) > 0.5 - 1e-5
    assert np.allclose(x[:, 2], [0.6, 0.1])


@pytest.mark.parametrize(("m", "d"), [(1, 2), (2, 2), pytest.param(5, 2, marks=pytest.mark.slow)])
def test_extreme_numbers_give_no_nan_and_spoilt_ones_stay_alone(m, d):
    rng = np.random.default_rng(3)
    values = [0, 1, -1, 1e-38, 1e-45, 1e-20, 1e-30, 1e20, 3e38, -3e38]
    a = rng.choice(values, size=(m, d, 6 * EACH)).astype(np.float32)
    b = rng.choice(values, size=(m, 6 * EACH)).astype(np.float32)
    clean = [np.asarray(v) for v in solve(a, b)]
    assert not any(np.isnan(v).any() for v in clean)
    a[0, 0, 5], a[-1, -1, 700], b[0, 9], b[-1, 1499] = np.nan, -np.inf, np.inf, np.nan
    spoilt = [5, 9, 700, 1499]
    now = [np.asarray(v) for v in solve(a, b)]
    assert all(np.isnan(v[..., spoilt]).all() for v in now[:3])
    assert not now[3][spoilt].any()
    assert all(
        np.array_equal(np.delete(x, spoilt, -1), np.delete(y, spoilt, -1)) for x, y in zip(now, clean, strict=True)
    )


@pytest.mark.parametrize("m", [1, 2, pytest.param(5, marks=pytest.mark.slow)])
def test_zero_row(m):
    """Void when it asks for nothing; else infeasible, with the other rows answered."""
    a = np.zeros((m, 2, 6 * EACH), np.float32)
    a[1:, 0] = 2.0
    b = np.full((m, 6 * EACH), 6.0, np.float32)
    b[0] = np.where(np.arange(6 * EACH) % 2, 1.0, -1.0)
    answer = Solution(*(np.asarray(v) for v in solve(a, b)))
    assert np.allclose(answer.delta, [[3.0 if m > 1 else 0.0], [0.0]], atol=1e-5)
    assert (answer.feasible == (b[0] < 0)).all()
    assert np.isposinf(answer.residual[1::2]).all()
    assert (answer.residual[::2] < 1e-5).all()
    assert not answer.multipliers[0].any()


@pytest.mark.parametrize(("a", "b"), [((2, 3, 4), (2, 5)), ((2, 3, 4), (3, 4)), ((2, 3), (2, 3)), ((0, 3, 4), (0, 4))])
def test_shapes_are_checked(a, b):
    with pytest.raises(ValueError, match="a must be"):
        minimum_norm(np.ones(a), np.ones(b))
