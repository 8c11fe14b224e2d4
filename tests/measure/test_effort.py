"""The path energy: against closed forms, its order, and what it refuses."""

import math

import numpy as np
import pytest

from ctrlgen import measure


def circle(k, turns=0.3):
    """Velocity of points of radius 1 and 2 that turn at constant speed, and speed up along x3: (k,), (k, 2, 3)."""
    t = np.linspace(0.0, 1.0, k)
    radius, rate = np.array([1.0, 2.0]), 2 * math.pi * turns
    v = radius * rate * np.stack([np.cos(rate * t), np.sin(rate * t)])[:, :, None]
    return t, np.stack([v[0], v[1], np.exp(t)[:, None] * radius], axis=-1)


def exact(radius, rate=0.6 * math.pi):
    return radius**2 * (rate**2 + (math.e**2 - 1) / 2)


def test_path_energy_against_a_closed_form_and_its_order():
    """∫ r²(ω² + e^{2t}) dt; trapezoid, so an error that falls fourfold."""
    errors = [np.abs(measure.path_energy(*circle(k)) - exact(np.array([1.0, 2.0]))).max() for k in (11, 21, 41)]
    assert errors[-1] < 2e-3 * exact(2.0)
    np.testing.assert_allclose(np.divide(errors[:-1], errors[1:]), 4.0, rtol=0.02)


def test_path_energy_over_uneven_times():
    """A constant velocity is integrated exactly over any times."""
    time = np.array([0.0, 0.1, 0.5, 2.0])
    out = measure.path_energy(time, np.broadcast_to([[3.0, 4.0], [0.0, 1.0]], (4, 2, 2)))
    np.testing.assert_allclose(out, [50.0, 2.0], rtol=1e-14)


def test_path_energy_in_a_metric_is_that_of_changed_coordinates():
    """vᵀMv = |Lᵀv|² with M = LLᵀ; a diagonal is the same as its matrix."""
    time, v = circle(31)
    metric = np.array([[2.0, 0.5, 0.1], [0.5, 1.0, 0.0], [0.1, 0.0, 0.3]])
    root = np.linalg.cholesky(metric)
    np.testing.assert_allclose(measure.path_energy(time, v, metric), measure.path_energy(time, v @ root), rtol=1e-12)
    diagonal = np.array([2.0, 1.0, 0.3])
    np.testing.assert_allclose(
        measure.path_energy(time, v, diagonal), measure.path_energy(time, v, np.diag(diagonal)), rtol=1e-12
    )


def test_path_energy_refuses_what_does_not_fit():
    time, v = circle(5)
    broken = np.where(np.arange(2)[None, :, None] == 1, np.nan, v)
    for arguments, message in (
        ((time[::-1], v), "time must be at least two increasing finite numbers"),
        ((time[:1], v[:1]), "time must be at least two"),
        ((time[:4], v), r"velocity must have shape \(4, n, d\), to fit time; got shape \(5, 2, 3\)"),
        ((time, v[0]), r"velocity must have shape \(5, n, d\)"),
        ((time, broken), "velocity must be finite; that of 1 of 2 particles is not, first 1"),
        ((time, v, [1.0, 2.0]), r"metric must have shape \(3,\) or \(3, 3\)"),
        ((time, v, [1.0, 2.0, -1.0]), "metric must be positive on its diagonal"),
        ((time, v, -np.eye(3)), "metric must be positive definite"),
    ):
        with pytest.raises(ValueError, match=message):
            measure.path_energy(*arguments)
