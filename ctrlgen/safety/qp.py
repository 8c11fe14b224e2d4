"""The least correction that meets linear constraints: the quadratic program of a safety filter, for many particles.

    minimise ½|δ|² subject to a_j·δ ≥ b_j, j = 1..m

Arrays are dimension-first and the particles are the trailing axis: rows a (m, d, n), bounds b (m, n), corrections
(d, n). Rows are scaled to unit norm inside, so that bounds, slacks and multipliers are lengths, and bounds by their
largest, so that every tolerance is relative. Most particles need no correction, or one along a single row: these are
answered in closed form. The others are gathered into chunks, which alone are solved.

References: Goldfarb and Idnani, Math. Programming 27 (1983) 1 (the dual active-set method); Rockafellar, SIAM J.
Control Optim. 14 (1976) 877 (the proximal point method).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ctrlgen.once import once

UNROLLED = 64  # products of a row and a vector that are written out
CACHE = 2**15  # numbers in the rows of the particles that are solved in lockstep
FAST, SLOW = 10, 4  # proximal rounds of the relaxation, at a small and at a large ρ


class Solution(NamedTuple):
    """What `minimum_norm` returns for n particles."""

    delta: jax.Array  # (d, n)
    multipliers: jax.Array  # (m, n), ≥ 0
    residual: jax.Array  # (n,) [length of δ]
    feasible: jax.Array  # (n,) bool


def minimum_norm(a: Any, b: Any, again: Callable[[], tuple[Any, Any]] | None = None) -> Solution:
    """The shortest δ with a_j·δ ≥ b_j for every j, and multipliers λ ≥ 0 with δ = Σ λ_j a_j; traceable.

    With u_j = a_j/|a_j|, slack s_j = u_j·δ - b_j/|a_j| (the signed distance to the face) and ℓ_j = λ_j |a_j|, the
    residual is the largest of |min(ℓ_j, s_j)| over j and |δ - Σ ℓ_j u_j|: a length, zero exactly at the optimum, no
    less than the primal violation, the dual negativity, the complementarity min(ℓ_j, s_j) where both are positive,
    and the stationarity defect. It is computed from the numbers returned.

    A particle is feasible when δ violates no constraint by more than ε^(2/3) (|δ| + largest b_j/|a_j|), ε the
    type's rounding unit. Where no δ satisfies all, constraint j gets a slack σ_j ≥ 0, a distance, and δ minimises
    Σ σ_j² first and |δ| second; λ are the multipliers of the second problem, a_j·δ ≥ b_j - |a_j| σ_j, so that still
    δ = Σ λ_j a_j, and the residual is at least the largest σ_j. A zero row with b_j ≤ 0 is void. A zero row with
    b_j > 0 (an empty half-space) makes its particle infeasible with an infinite residual; λ_j = 0, and δ answers the
    other rows. Rows whose entries are below the type's smallest normal number count as zero.

    A particle with a NaN or infinite entry gets NaN, and feasible False; the others are untouched. Finite input
    gives no NaN: results beyond the type's range are cut to it.

    Args:
        a: rows, (m, d, n), or (m, d, 1) when all particles share them.
        b: bounds, (m, n).
        again: makes a and b once more, for the rare particles that closed forms leave: cheaper inside a loop than to
            keep both in memory.

    Raises:
        ValueError: the shapes do not fit, or m or d is zero.
    """
    a, b = jnp.asarray(a), jnp.asarray(b)
    dtype = jnp.result_type(a, b, jnp.float32)
    a, b = a.astype(dtype), b.astype(dtype)
    if a.ndim != 3 or b.ndim != 2 or a.shape[0] != b.shape[0] or a.shape[2] not in (1, b.shape[1]) or not all(a.shape):
        raise ValueError(
            f"a must be (m, d, n) or (m, d, 1) and b (m, n), with m, d ≥ 1; got shapes {a.shape} and {b.shape}."
        )
    easy, hard = _one_face(a, b)

    def rest() -> Solution:
        rows, bounds = (a, b) if again is None else again()
        return _others(rows.astype(dtype), bounds.astype(dtype), hard, easy)

    return jax.lax.cond(jnp.any(hard), rest, lambda: easy)


def _one_face(a: jax.Array, b: jax.Array) -> tuple[Solution, jax.Array]:
    """The answer where at most one constraint is at work, the farthest face, for every particle; and where it is not.

    The projection on the farthest face is optimal if it meets the other constraints. That takes a division a row and
    one root. Everything else is left to others: corners, contradictions, empty rows, numbers whose squares are not
    normal, and what is not finite.
    """
    m, d, _ = a.shape
    small = float(jnp.finfo(b.dtype).tiny) ** 0.75
    zero = jnp.zeros_like(b[0])
    best, delta, face, hard = zero, [zero] * d, jnp.full(zero.shape, -1, jnp.int32), jnp.zeros(zero.shape, bool)
    inverses = []
    for j in range(m):
        square = sum(a[j, i] * a[j, i] for i in range(d))
        normal = (square > small) & (square < 1 / small)
        void = (b[j] <= 0) & jnp.all(a[j] == 0, axis=0) if d > UNROLLED else (b[j] <= 0) & _all_zero(a[j])
        inverse = 1 / jnp.where(normal, square, 1)
        push = jnp.maximum(b[j], 0) * inverse
        far = push * jnp.maximum(b[j], 0)
        hard = hard | ~(normal | void) | ((b[j] > 0) & ~((far > small) & (far < 1 / small)))
        better = far > best
        best, face = jnp.where(better, far, best), jnp.where(better, j, face)
        delta = [jnp.where(better, push * a[j, i], delta[i]) for i in range(d)]
        inverses.append((inverse, push))
    gaps = b - _dot(a, jnp.stack(delta)) if a.shape[2] == 1 and m * d > UNROLLED else None
    worst, total = zero, zero
    for j in range(m):
        gap = b[j] - sum(a[j, i] * delta[i] for i in range(d)) if gaps is None else gaps[j]
        size = jnp.where(face == j, jnp.abs(gap), jnp.maximum(gap, 0))
        worst, total = jnp.maximum(worst, size * size * inverses[j][0]), total + gap
    allowed = (8 * float(jnp.finfo(b.dtype).eps)) ** 2
    hard = hard | ~(worst <= allowed * best) | ~jnp.isfinite(total)
    multipliers = jnp.stack([jnp.where(face == j, inverses[j][1], 0) for j in range(m)])
    return Solution(jnp.stack(delta), multipliers, jnp.sqrt(worst), ~hard), hard


def _all_zero(row: jax.Array) -> jax.Array:
    out = row[0] == 0
    for i in range(1, row.shape[0]):
        out = out & (row[i] == 0)
    return out


def _others(a: jax.Array, b: jax.Array, hard: jax.Array, easy: Solution) -> Solution:
    """The answer of the particles that are left, gathered; NaN for those with an entry that is not finite."""
    # means of finite numbers are finite; as products with a matrix they cost one reading of the memory
    size = a.shape[0] * a.shape[1]
    mean = jnp.full(size, 0.25 / size, b.dtype) @ a.reshape(size, -1) + sum(row / (4 * size) for row in b)
    spoilt = ~jnp.isfinite(mean)
    need = hard & ~spoilt
    answer = _where_needed(_single if a.shape[0] == 1 else _solve, a, b, need, easy)
    if a.shape[0] > 1:
        answer = _where_needed(_relax, a, b, need & ~answer.feasible, answer)
    delta, multipliers, residual = (jnp.where(spoilt, jnp.nan, v) for v in answer[:3])
    return Solution(delta, multipliers, residual, answer.feasible & ~spoilt)


def _where_needed(solve: Callable[..., Solution], a: Any, b: Any, need: jax.Array, rest: Solution) -> Solution:
    """solve(a, b) for the particles in need, chunk by chunk; rest for the others."""
    n = b.shape[1]
    chunk = min(n, 2 ** min(10, max(7, (CACHE // (a.shape[0] * a.shape[1])).bit_length() - 1)))
    rank = _running_count(need)
    # particles in need first, in their order; n where there are no more
    order = jnp.full(-(-n // chunk) * chunk, n, jnp.int32)
    order = order.at[jnp.where(need, rank - 1, order.size)].set(jnp.arange(n, dtype=jnp.int32), mode="drop")

    def body(carry: tuple[jax.Array, Solution]) -> tuple[jax.Array, Solution]:
        start, out = carry
        at = jax.lax.dynamic_slice(order, (start,), (chunk,))
        part = solve(
            a if a.shape[2] == 1 else a.at[..., at].get(mode="fill", fill_value=0),
            b.at[:, at].get(mode="fill", fill_value=0),
        )
        return start + chunk, Solution(*(o.at[..., at].set(p, mode="drop") for o, p in zip(out, part, strict=True)))

    return jax.lax.while_loop(lambda carry: carry[0] < rank[-1], body, (jnp.zeros((), jnp.int32), rest))[1]


def _running_count(mask: jax.Array) -> jax.Array:
    """cumsum of a mask (n,), in two levels: several times faster on a CPU."""
    blocks = jnp.pad(mask.astype(jnp.int32), (0, -mask.size % 128)).reshape(-1, 128)
    inner = jnp.cumsum(blocks, axis=1)
    total = inner[:, -1]
    return (inner + (jnp.cumsum(total) - total)[:, None]).ravel()[: mask.size]


# Unit rows -----------------------------------------------------------------------------------------------------------


class _Rows(NamedTuple):
    """Rows of norm one, and what they were: a = u · norm / power, with a power of two lest the squares overflow."""

    u: jax.Array  # (m, d, n); a zero row stays zero
    bound: jax.Array  # b/|a|, (m, n), cut to the range of the type; ±inf for a zero row
    norm: jax.Array  # (m, n); 0 for a zero row
    power: jax.Array  # (m, n)


def _unit_rows(a: jax.Array, b: jax.Array) -> _Rows:
    largest = jnp.max(jnp.abs(a), axis=1)
    some = largest >= jnp.finfo(a.dtype).tiny
    power = _power(largest)
    a = a * power[:, None]
    norm = jnp.where(some, jnp.sqrt(sum(a[:, i] ** 2 for i in range(a.shape[1]))), 0)
    length = jnp.where(some, norm, 1)
    limit = jnp.finfo(b.dtype).max
    bound = jnp.where(some, jnp.clip(b * power / length, -limit, limit), jnp.where(b > 0, jnp.inf, -jnp.inf))
    return _Rows(jnp.where(some[:, None], a / length[:, None], 0), bound, norm, power)


def _power(size: jax.Array) -> jax.Array:
    """A power of two that takes a number of this size to where squares, reciprocals and sums are normal; 1 for zero.

    For zero, since a difference may be zero in one fusion of XLA and a rounding error in another.
    """
    third = int(jnp.finfo(size.dtype).maxexp) // 3
    small = (size > 0) & (size < 2.0**-third)
    power = jnp.where(size > 2.0**third, 2.0 ** (-2 * third), jnp.where(small, 2.0 ** (2 * third), 1.0))
    return power.astype(size.dtype)


def _dot(u: jax.Array, x: jax.Array) -> jax.Array:
    """u_j·x for every row: (m, d, n) and (d, n) to (m, n). Unrolled, for sums of XLA are slow on a CPU."""
    if u.shape[2] == 1:
        return jnp.matmul(u[..., 0], x, precision=jax.lax.Precision.HIGHEST)
    total = u[:, 0] * x[0]
    for i in range(1, u.shape[1]):
        total = total + u[:, i] * x[i]
    return total


def _mix(u: jax.Array, weights: jax.Array) -> jax.Array:
    """Σ_j weights_j u_j: (m, d, n) and (m, n) to (d, n)."""
    if u.shape[2] == 1:
        return jnp.matmul(u[..., 0].T, weights, precision=jax.lax.Precision.HIGHEST)
    total = u[0] * weights[0]
    for j in range(1, u.shape[0]):
        total = total + u[j] * weights[j]
    return total


def _norm(x: jax.Array) -> jax.Array:
    """|x| over the first axis, without overflow."""
    power = _power(jnp.max(jnp.abs(x), axis=0))
    return jnp.sqrt(sum((c * power) ** 2 for c in x)) / power


def _report(rows: _Rows, delta: jax.Array, lengths: jax.Array) -> Solution:
    """The answer with its residual, from δ and multipliers as lengths."""
    u, bound, norm, power = rows
    limit = jnp.finfo(bound.dtype).max
    delta = jnp.clip(delta, -limit, limit)
    multipliers = jnp.where(norm > 0, jnp.clip(lengths / jnp.where(norm > 0, norm, 1) * power, 0, limit), 0)
    lengths = multipliers / power * norm
    slack = _dot(u, delta) - bound
    natural = jnp.max(jnp.abs(jnp.minimum(lengths, slack)), axis=0)
    residual = jnp.maximum(natural, _norm(delta - _mix(u, lengths)))
    allowed = _tolerance(bound.dtype) * (_norm(delta) + jnp.max(jnp.where(norm > 0, bound, 0), axis=0))
    return Solution(
        delta, multipliers, jnp.where(jnp.isnan(residual), jnp.inf, residual), jnp.min(slack, axis=0) >= -allowed
    )


def _tolerance(dtype: Any) -> float:
    return float(jnp.finfo(dtype).eps) ** (2 / 3)


# The solvers, in one chunk --------------------------------------------------------------------------------------------


def _single(a: jax.Array, b: jax.Array) -> Solution:
    """One constraint: λ = max(0, b)/|a|²."""
    rows = _unit_rows(a, b)
    lengths = jnp.where(rows.norm > 0, jnp.maximum(rows.bound, 0), 0)
    return _report(rows, rows.u[0] * lengths[0], lengths)


def _solve(a: jax.Array, b: jax.Array) -> Solution:
    rows = _unit_rows(a, b)
    return _report(rows, *_scaled(rows.u, rows.bound))


def _relax(a: jax.Array, b: jax.Array) -> Solution:
    """Least squares of the slacks first, least norm second.

    The penalised problem |δ - δ_k|²/2 + Σ σ_j²/(2ρ) has unit rows (u_j, √ρ e_j)/√(1+ρ) in δ and σ/√ρ. Its proximal
    rounds from δ_0 = 0 converge to least σ: fast at a small ρ, whose rounding errors, ε/ρ, some rounds at a large one
    take away. Whatever σ = max(0, bound - u·δ_k) they end with, the second problem has the feasible point δ_k.
    """
    rows = _unit_rows(a, b)
    u, m, d = rows.u, a.shape[0], a.shape[1]
    limit = jnp.finfo(u.dtype).max
    bound = jnp.where(rows.norm > 0, rows.bound, -limit)
    each = jnp.broadcast_to(jnp.eye(m, dtype=u.dtype)[:, :, None], (m, m, u.shape[2]))

    def nearer(k: jax.Array, x: jax.Array) -> jax.Array:
        rho = jnp.where(k < FAST, float(jnp.finfo(u.dtype).eps) ** 0.5, 1 / 32).astype(u.dtype)
        root = jnp.sqrt(1 + rho)
        extended = jnp.concatenate([u, jnp.sqrt(rho) * each], axis=1) / root
        return jnp.clip(x + _scaled(extended, (bound - _dot(u, x)) / root)[0][:d], -limit, limit)

    x = jax.lax.fori_loop(0, FAST + SLOW, nearer, jnp.zeros((d, b.shape[1]), b.dtype))
    return _report(rows, *_scaled(u, jnp.minimum(bound, _dot(u, x))))


def _scaled(u: jax.Array, bound: jax.Array) -> tuple[jax.Array, jax.Array]:
    """δ and multipliers as lengths, by the method that the shapes call for, with the largest bound scaled to one."""
    inert = -1 / float(jnp.finfo(u.dtype).eps)
    scale = jnp.max(jnp.where(jnp.isfinite(bound), bound, 0), axis=0)
    power = _power(scale)
    scale = jnp.maximum(scale * power, jnp.finfo(u.dtype).tiny)
    bound = jnp.where(jnp.isfinite(bound), jnp.maximum(bound * power / scale, inert), inert)
    delta, lengths = (_pair if u.shape[0] == 2 else _search)(u, bound)
    return delta * scale / power, lengths * scale / power


def _pair(u: jax.Array, bound: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two constraints: of the active sets {}, {1}, {2} and {1, 2}, the one of least violation, primal or dual."""
    one, two = bound
    cosine = sum(x * y for x, y in zip(u[0], u[1], strict=True))
    # the part of u_2 across u_1: its square is 1 - cosine² without the cancellation
    across = u[1] - cosine * u[0]
    square = sum(x * x for x in across)
    regular = square > _tolerance(u.dtype) ** 2
    square = jnp.where(regular, square, 1)
    both = (one - cosine * two) / square, (two - cosine * one) / square
    zero = jnp.zeros_like(one)
    # violation, multipliers, and δ's component along u_1; the other one is the second multiplier, along `across`
    sets = [
        (jnp.maximum(-one, two - cosine * one), one, zero, one),
        (jnp.maximum(-two, one - cosine * two), zero, two, cosine * two),
        (jnp.where(regular, -jnp.minimum(*both), jnp.inf), *both, one),
    ]
    least, *best = jnp.maximum(one, two), zero, zero, zero
    for violation, *new in sets:
        better = violation < least
        best = [jnp.where(better, x, y) for x, y in zip(new, best, strict=True)]
        least = jnp.where(better, violation, least)
    first, second, along = best
    return along * u[0] + second * across, jnp.maximum(jnp.stack([first, second]), 0)


class _Search(NamedTuple):
    """The dual active-set method between two steps."""

    delta: jax.Array  # (d, n)
    lengths: jax.Array  # (m, n), of the active constraints and the entering one
    inverse: jax.Array  # N, (m, d, n): rows of the pseudo-inverse for the active constraints, zero for the others
    active: jax.Array  # (m, n) bool
    entering: jax.Array  # (m, n) bool: at most one
    done: jax.Array  # (n,) bool
    steps: jax.Array


def _search(u: jax.Array, bound: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Goldfarb and Idnani's method, every particle taking one step, of either kind, at a time.

    A particle stops when no violation exceeds rounding, or when the most violated constraint cannot be met: its row
    is a combination of active ones, none of which may leave.
    """
    m, d, _ = u.shape
    n, dtype = bound.shape[1], bound.dtype
    eps, tolerance = float(jnp.finfo(dtype).eps), _tolerance(dtype)
    limit = 4 * (m + d) + 20

    def step(s: _Search) -> _Search:
        slack = once(_dot(u, s.delta) - bound, s.steps)
        lowest = jnp.where(s.active, jnp.inf, slack)
        fresh = ~jnp.any(s.entering, axis=0)
        met = fresh & (jnp.min(lowest, axis=0) >= -4 * eps * (1 + _plain_norm(s.delta)))
        entering = jnp.where(fresh, _one_hot(jnp.argmin(lowest, axis=0), m), s.entering)
        entering = once(entering, s.steps)
        live = ~(s.done | met)
        row = once(_mix(u, entering.astype(dtype)), s.steps)
        r = once(_dot(s.inverse, row), s.steps)
        z = once(row - _mix(u, r), s.steps)
        again = once(_dot(s.inverse, z), s.steps)
        r, z = once((r + again, z - _mix(u, again)), s.steps)
        square = sum(c * c for c in z)
        free = square > tolerance**2
        square = jnp.where(free, square, 1)
        ratio = jnp.where(s.active & (r > eps), s.lengths / jnp.where(r > eps, r, 1), jnp.inf)
        blocking = _one_hot(jnp.argmin(ratio, axis=0), m)
        partial = jnp.min(ratio, axis=0)
        full = jnp.where(free, -jnp.sum(jnp.where(entering, slack, 0), axis=0) / square, jnp.inf)
        length = jnp.minimum(partial, full)
        length, partial, full, blocking = once((length, partial, full, blocking), s.steps)
        live = live & jnp.isfinite(length)
        length = jnp.where(live, length, 0)
        adds = live & (full <= partial)
        drops = live & ~adds
        leaving = blocking & drops
        joining = entering & adds
        lengths = jnp.maximum(s.lengths + length * (entering - r), 0)
        lengths = jnp.where(leaving, 0, lengths)
        # both updates of the pseudo-inverse are of rank one: N ← N - c wᵀ
        gone = once(_mix(s.inverse, leaving.astype(dtype)), s.steps)
        size = sum(c * c for c in gone)
        w = jnp.where(adds, z / square, jnp.where(drops, gone / jnp.where(size > 0, size, 1), 0))
        c = jnp.where(adds, r - joining, _dot(s.inverse, gone))
        c, w = once((c, w), s.steps)
        inverse = jnp.where(leaving[:, None], 0, s.inverse - c[:, None] * w[None])
        return _Search(
            s.delta + jnp.where(free, length, 0) * z,
            lengths,
            inverse,
            (s.active | joining) & ~leaving,
            entering & drops,
            ~live,
            s.steps + 1,
        )

    none = jnp.zeros((m, n), bool)
    start = _Search(
        jnp.zeros((d, n), dtype), jnp.zeros((m, n), dtype), jnp.zeros((m, d, n), dtype), none, none,
        jnp.max(bound, axis=0) <= 0, jnp.zeros((), jnp.int32),
    )  # fmt: skip
    s = jax.lax.while_loop(lambda s: jnp.any(~s.done) & (s.steps < limit), step, start)
    # the active set's answer from the data, refined once: it carries no error of the path
    held = jnp.where(s.active, bound, 0)
    delta = once(_mix(s.inverse, held), s.steps)
    delta = once(delta + _mix(s.inverse, once(jnp.where(s.active, bound - _dot(u, delta), 0), s.steps)), s.steps)
    lengths = once(_dot(s.inverse, delta), s.steps)
    lengths = lengths + _dot(s.inverse, once(delta - _mix(u, lengths), s.steps))
    lengths = once(jnp.maximum(lengths, 0), s.steps)
    return delta, lengths


def _one_hot(index: jax.Array, m: int) -> jax.Array:
    return jnp.arange(m)[:, None] == index


def _plain_norm(x: jax.Array) -> jax.Array:
    return jnp.sqrt(sum(c * c for c in x))
