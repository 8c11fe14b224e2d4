"""One member of every kind of energy, for the laws that all of them obey."""

import jax.numpy as jnp
import numpy as np

import ctrlgen as cg

SPD = np.array([[2.0, 0.5], [0.5, 1.0]])
LARGE = np.diag(np.linspace(1, 3, 12)) + 0.1


def quartic(x):
    return jnp.sum(x**4) / 4 + jnp.sin(x[0])


FAMILY = {
    "quadratic": cg.Quadratic(SPD, [1.0, -2.0]),
    "quadratic 1-D": cg.Quadratic([[3.0]]),
    "quadratic 12-D": cg.Quadratic(LARGE),
    "isotropic mixture": cg.GaussianMixture([[0.0, 0.0], [3.0, 1.0]], 0.5, temperature=0.7),
    "diagonal mixture": cg.GaussianMixture([[0.0, 0.0], [3.0, 1.0]], [np.diag([0.5, 1.0]), np.diag([2.0, 0.3])]),
    "full mixture": cg.GaussianMixture([[0.0, 0.0], [3.0, 1.0]], [SPD, np.eye(2)], weights=[1.0, 3.0]),
    "12-D mixture": cg.GaussianMixture(np.eye(12)[:3], LARGE),
    "many components": cg.GaussianMixture(np.random.default_rng(1).normal(size=(40, 2)), 0.4),
    "double well": cg.DoubleWell(),
    "double well 1-D": cg.DoubleWell(dim=1, barrier=2.0, separation=1.5),
    "banana": cg.Banana(),
    "funnel": cg.Funnel(dim=3),
    "ring": cg.Ring(),
    "symbolic": cg.SymbolicEnergy("sin(x)*y^2 + x**4 + exp(-y)", ["x", "y"]),
    "callable": cg.CallableEnergy(quartic, 3),
    "network": cg.MLPEnergy(2, width=16, depth=2, key=1),
    "network with features": cg.MLPEnergy(3, width=8, depth=1, activation="tanh", features=4, key=2),
    "trained": cg.TrainedEnergy(cg.MLPEnergy(2, width=8, depth=2), [1.0, 2.0], [0.5, 3.0]),
    "sum": cg.Quadratic(SPD) + cg.DoubleWell(),
    "weighted": 0.5 * cg.Ring() - 0.1 * cg.Quadratic(SPD) + cg.MLPEnergy(2, width=8),
    "negated": -cg.Banana(),
    "least squares": cg.LeastSquares([[1.0, 2.0], [0.5, -1.0], [0.0, 1.0]], [1.0, 0.3, -0.4], [0.5, 1.0, 2.0]),
    "observed 12-D": cg.condition(cg.Quadratic(LARGE), LARGE[:3], [1.0, 0.0, 2.0], 0.8, temperature=0.5),
    "either": cg.mixture([cg.DoubleWell(), cg.Quadratic(SPD, [2.0, 0.0])], 0.6, [1.0, 3.0]),
    "either of three": cg.mixture([cg.Quadratic(LARGE, m) for m in np.eye(12)[:3]], 0.8, normalised=True),
}
