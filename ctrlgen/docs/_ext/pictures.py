"""Pictures of the hand-written pages, drawn from the package when the site is built, and so never out of date.

A picture that is there is not drawn again: remove `_generated/figures` to see changes of the package.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def transport() -> Any:
    """Noise on its way to two moons under a trained energy."""
    import ctrlgen as cg

    energy: Any = cg.load_energy("two_moons")
    response = cg.ClosedLoop.of(energy).simulate(energy.source, duration=3.0, record=31, particles=3000)
    axes = cg.plot.figure(1, 4, size=(2.3, 1.9))
    bounds = [[-6.5, -5.0], [7.5, 4.5]]
    axes = cg.plot.transport(response, panels=4, axes=axes.ravel(), bounds=bounds)
    return axes.ravel()[0].figure


def decay() -> Any:
    """KL along a closed loop, on a grid and from particles, and the rate that is proved of it."""
    import ctrlgen as cg

    energy = cg.Quadratic(np.diag([1.0, 2.0])) + cg.SymbolicEnergy("0.3*sin(2*x)", ["x", "y"])
    start = cg.Gaussian([2.0, 0.0], 0.5 * np.eye(2))
    loop = cg.ClosedLoop(cg.Langevin(temperature=0.5, step=0.01), energy)
    rate = cg.KLLyapunov(energy, temperature=0.5).verify(loop).rate
    grid = cg.FokkerPlanckGrid([(-4.5, 4.5), (-4.0, 4.0)], (90, 80), temperature=0.5)
    response = cg.ClosedLoop(grid, energy).simulate(start, duration=4.0, record=41)
    ax = cg.plot.figure(1, 1, size=(4.6, 3.2)).ravel()[0]
    cg.plot.decay(response, ax=ax, rate=rate, label="proved")
    return ax.figure


def region() -> Any:
    """The proved region of attraction of the reversed Van der Pol oscillator, and what lies outside."""
    import ctrlgen as cg

    V = cg.LyapunovFunction("1.5*x1**2 - x1*x2 + x2**2", ["x1", "x2"])
    found = cg.region_of_attraction(["-x2", "x1 + (x1**2 - 1)*x2"], V, ["x1", "x2"])
    ax = cg.plot.figure(1, 1, size=(4.6, 3.6)).ravel()[0]
    cg.plot.region(found, ax=ax)
    return ax.figure


def safe() -> Any:
    """Two moons without and with a safety filter."""
    import ctrlgen as cg

    energy: Any = cg.load_energy("two_moons")
    ring = [cg.BarrierFunction("x**2 + y**2 - 1/4", ["x", "y"]), cg.BarrierFunction("9 - x**2 - y**2", ["x", "y"])]
    safety = cg.SafetyFilter(ring, gain=5.0, mode="reflected")
    bounds = [[-4.2, -4.2], [4.8, 4.2]]
    axes = cg.plot.figure(1, 2, size=(3.2, 3.0)).ravel()
    plant = cg.Langevin(temperature=1.0, step=0.02, scheme="mala")
    for ax, filter, title in zip(axes, (None, safety), ("without a filter", "with a filter"), strict=True):
        loop = cg.ClosedLoop(plant, energy, safety=filter, schedule=energy.schedule)
        start = energy.source if filter is None else filter.restrict(energy.source)
        final = loop.simulate(start, duration=3.0, record=2, particles=1500).final
        cg.plot.energy(energy, ax=ax, bounds=bounds)
        cg.plot.safe_set(safety, bounds, ax=ax)
        cg.plot.particles(final, ax=ax)
        ax.set_title(title, fontsize=10)
    return axes[0].figure


def portrait() -> Any:
    """The gradient flow of a double well: minima, saddle, trajectories, and a safe set."""
    import ctrlgen as cg

    wells = cg.SymbolicEnergy("(x**2 - 1)**2 + y**2/2", ["x", "y"])
    safe = cg.BarrierFunction("4 - x**2 - y**2", ["x", "y"])
    starts = np.array([[0.1, 1.5], [-0.2, -1.5], [1.6, 0.8], [-1.5, 1.0]])
    run = cg.ClosedLoop(cg.GradientFlow(step=0.02), wells).simulate(starts, duration=4.0, record=101)
    ax = cg.plot.figure(1, 1, size=(4.6, 4.2)).ravel()[0]
    cg.plot.phase_portrait(wells, ax=ax, safety=safe, response=run, bounds=[[-2.4, -2.4], [2.4, 2.4]])
    return ax.figure


PICTURES: tuple[Callable[[], Any], ...] = (transport, decay, region, safe, portrait)


def build(app: Any) -> None:
    """Draw what is missing."""
    folder = Path(app.srcdir) / "_generated" / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for draw in PICTURES:
        path = folder / f"{draw.__name__}.png"
        if not path.is_file():
            draw().savefig(path, dpi=160)


def setup(app: Any) -> dict[str, Any]:
    """Connect the hook."""
    app.connect("builder-inited", build)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
