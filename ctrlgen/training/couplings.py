"""Who is paired with whom: minibatch optimal transport between a batch of the source and one of the data.

Points are dimension-first (d, n), as everywhere inside.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment


def optimal_assignment(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The permutation j with Σ |source_i - target_j(i)|² smallest: the exact optimal transport plan.

    With equal weights and sizes an optimal plan is a permutation (Birkhoff), so no plan matrix is kept.
    In one dimension the sorted orders match.

    Args:
        source, target: (d, n), finite.

    Returns:
        (n,) int, the index into `target` for each column of `source`.

    Raises:
        ValueError: the two shapes differ, or they are not (d, n).

    Reference: Peyré and Cuturi, Computational Optimal Transport, section 2.3; Crouse, IEEE Trans. Aerosp.
    Electron. Syst. 52 (2016) 1679, for the solver in SciPy.
    """
    if source.ndim != 2 or source.shape != target.shape:
        raise ValueError(f"source and target must have one shape (d, n); got {source.shape} and {target.shape}.")
    if source.shape[0] == 1:
        pairs = np.empty(source.shape[1], dtype=np.intp)
        pairs[np.argsort(source[0], kind="stable")] = np.argsort(target[0], kind="stable")
        return pairs
    # |x|² is constant along a row and |y|² along a column: only the cross term decides
    return linear_sum_assignment(-(source.T.astype(np.float64) @ target.astype(np.float64)))[1]


def optimal_pairs(rng: np.random.Generator, source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """n pairs drawn from the optimal transport plan with replacement: ((d, n), (d, n)).

    Reference: Tong et al., Improving and generalizing flow-based generative models with minibatch optimal
    transport, arXiv:2302.00482, algorithm 3.
    """
    pairs = optimal_assignment(source, target)
    rows = rng.integers(source.shape[1], size=source.shape[1])
    return source[:, rows], target[:, pairs[rows]]
