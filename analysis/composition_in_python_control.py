"""Question: is a composition of controllers in python-control's own vocabulary the composition of energies?

Two trained energies become blocks (input x, output -∇E), each gets a gain, and ct.interconnect feeds both into one
integrator plant. The trajectories of that diagram, by python-control's integrator, are compared with the closed loop of
w1*E1 + w2*E2, by ctrlgen's. Then: are the poles of ct.linearize, at the wells that ct.find_operating_point finds, minus
the eigenvalues of the Hessian, beside what finite differences give? Do the step responses about a well agree with the
nonlinear loop for a small step? And a loop the other way round: the diagram's plant and an integral controller, taken
from python-control into ClosedLoop.

Run: python analysis/composition_in_python_control.py --seed 0 [--quick] [--out figures]
"""

import sys
import time

import control as ct
import numpy as np

import ctrlgen as cg

CLAIMS = {
    "composition": "ct.interconnect of two trained energies, a gain each, is the closed loop of w1*E1 + w2*E2.",
    "poles": "At every well the poles of ct.linearize are minus the eigenvalues of the Hessian, to rounding.",
    "step": "A small step response of the nonlinear diagram is that of the linearization.",
    "reverse": "A python-control plant and integral controller inside ClosedLoop move as in ct.interconnect.",
}
WEIGHTS = (1.0, 0.5)
TIGHT = {"rtol": 1e-10, "atol": 1e-10}
HALF = 3.7  # of the window that is drawn
STEP = 1e-4  # of the command about a well; small enough for the linearization


def diagram(first, second):
    """Two energies, a gain each, one integrator: python-control's interconnection."""
    plant = ct.ss(np.zeros((2, 2)), np.eye(2), np.eye(2), np.zeros((2, 2)), name="plant")
    blocks = [cg.interop.to_nlsys(e, name=n) for e, n in ((first, "E1"), (second, "E2"))]
    gains = [ct.ss([], [], [], w * np.eye(2), inputs=2, outputs=2, name=f"gain{k + 1}") for k, w in enumerate(WEIGHTS)]
    return ct.interconnect(
        [plant, *blocks, *gains],
        connections=[
            ["E1", "plant"], ["gain1", "E1"], ["E2", "plant"], ["gain2", "E2"], ["plant", "gain1", "gain2"],
        ],
        inplist=["plant"], outlist=["plant"], inputs=["v[0]", "v[1]"], outputs=["x[0]", "x[1]"], name="composed",
    )  # fmt: skip


def trajectories(wired, energy, starts, duration):
    """The paths by both, (particles, times, 2), and how far they are apart."""
    moments = np.linspace(0, duration, 61)
    clock = time.perf_counter()
    theirs = np.stack([ct.input_output_response(wired, moments, 0, x, solve_ivp_kwargs=TIGHT).states.T for x in starts])
    between = time.perf_counter()
    plant = cg.GradientFlow(duration / 60, "adaptive", tolerance=1e-10)
    response = cg.ClosedLoop(plant, energy).simulate(starts, duration, record=61, dtype=np.float64, throw=True)
    ours = response.states.swapaxes(0, 1)
    return theirs, float(np.abs(theirs - ours).max()), between - clock, time.perf_counter() - between


def wells(system, energy, ends):
    """The distinct wells that python-control reaches from the ends, and from how many its root finder stalls."""
    found, lost = [], 0
    for x in ends:
        point = ct.find_operating_point(system, x, [0, 0]).states
        if point is None:
            lost += 1
            continue
        deep = np.linalg.eigvalsh(energy.hessian(point))[0] > 0
        if deep and all(np.linalg.norm(point - other) > 1e-3 for other in found):
            found.append(point)
    return found, lost


def poles_at(wired, exact, energy, well):
    """Relative errors of the poles: exact derivatives, and python-control's finite differences of the diagram."""
    expected = np.sort(-np.linalg.eigvalsh(energy.hessian(well)))
    errors = []
    for system in (exact, wired):
        poles = np.sort(np.real(ct.poles(ct.linearize(system, well))))
        errors.append(float(np.abs(poles - expected).max() / np.abs(expected).max()))
    return expected, errors


def step_responses(wired, exact, well):
    """A small step of the first command at a well: of the linearization, and of the nonlinear diagram."""
    slow = float(np.abs(np.real(ct.poles(ct.linearize(exact, well)))).min())
    moments = np.linspace(0, 5 / slow, 101)
    linear = ct.step_response(ct.linearize(exact, well), moments).outputs[:, 0] * STEP
    command = np.outer([STEP, 0.0], np.ones_like(moments))
    full = ct.input_output_response(wired, moments, command, well, solve_ivp_kwargs=TIGHT).outputs
    moved = full - well[:, None]
    return moments, linear, moved, float(np.abs(moved - linear).max() / np.abs(linear).max())


def the_other_way(energy, starts, duration):
    """A python-control plant and an integral controller inside ClosedLoop, against python-control's own diagram."""
    plant = ct.ss(np.zeros((2, 2)), np.eye(2), np.eye(2), np.zeros((2, 2)), name="plant")
    integral = ct.ss(np.zeros((2, 2)), np.eye(2), -0.5 * np.eye(2), np.zeros((2, 2)), name="integral")
    plant_in_loop = cg.interop.from_control(plant, duration / 10, tolerance=1e-10)
    loop = cg.ClosedLoop(plant_in_loop, energy, extra=integral)
    ours = loop.simulate(starts, duration, record=2, dtype=np.float64, throw=True).final
    wired = ct.interconnect(
        [plant, integral, cg.interop.to_nlsys(energy, name="E")],
        connections=[["plant", "E", "integral"], ["E", "plant"], ["integral", "plant"]],
        inplist=["plant"], outlist=["plant"],
    )  # fmt: skip
    ends = [
        ct.input_output_response(wired, [0, duration], 0, [*x, 0, 0], solve_ivp_kwargs=TIGHT).states[:2, -1]
        for x in starts
    ]
    return float(np.abs(ours - np.array(ends)).max())


def draw(exact, energy, theirs, wells, response):
    """python-control's phase plane of the composed loop; its paths on the energy; the step responses."""
    axes = cg.plot.figure(1, 3, (3.3, 3.1)).ravel()
    window = [-HALF, HALF, -HALF, HALF]
    ct.phase_plane_plot(
        exact, window, 1.5, ax=axes[0], plot_streamlines=False, plot_vectorfield=False, plot_streamplot=True,
        plot_separatrices=False, plot_equilpoints=True, gridspec=[9, 9], suppress_warnings=True,
    )  # fmt: skip
    axes[0].set(title="ct.phase_plane_plot of the composed loop", xlabel="x[0]", ylabel="x[1]")
    low = float(np.min(energy(np.array(wells))))
    cg.plot.energy(energy, axes[1], bounds=[[-HALF, -HALF], [HALF, HALF]], levels=np.linspace(low, low + 20, 25))
    for path_of_one in theirs:
        axes[1].plot(*path_of_one.T, color=cg.plot.BLUE, lw=0.9)
        axes[1].plot(*path_of_one[0], ".", color=cg.plot.BLUE, markersize=3)
    axes[1].plot(*np.array(wells).T, "o", color=cg.plot.RED, markersize=5, label="wells")
    axes[1].set_title("ct.interconnect: two energies, a gain each")
    axes[1].set(xlim=window[:2], ylim=window[2:])
    axes[1].legend(loc="upper right")
    moments, linear, moved, _ = response
    for j, colour in enumerate((cg.plot.BLUE, cg.plot.RED)):
        axes[2].plot(moments, linear[j] / STEP, color=colour, label=f"x[{j}], ct.step_response")
        axes[2].plot(moments[::5], moved[j, ::5] / STEP, ".", color=colour, label=f"x[{j}], nonlinear diagram")
    axes[2].set(title="a step of v[0] at a well", xlabel="time", ylabel="displacement / step")
    axes[2].legend()
    axes[2].grid(True, alpha=0.25)
    return axes[0].figure


def analyse(options, found):
    first, second = cg.load_energy("two_moons"), cg.load_energy("rings")
    whole = WEIGHTS[0] * first + WEIGHTS[1] * second
    wired = diagram(first, second)
    exact = cg.interop.to_nlsys(wired, name="exact")
    rng = np.random.default_rng(options.seed)
    starts = rng.uniform(-2.5, 2.5, size=(6 if options.quick else 24, 2))
    duration = 4.0

    theirs, apart, slow, fast = trajectories(wired, whole, starts, duration)
    print(
        f"{len(starts)} trajectories to t = {duration:g}: the interconnection and w1*E1 + w2*E2 are at most "
        f"{apart:.1e} apart (both integrated to 1e-10; {slow:.1f} s and {fast:.1f} s)"
    )
    places, lost = wells(exact, whole, theirs[:, -1])
    if lost:
        print(f"ct.find_operating_point finds nothing from {lost} of the {len(starts)} ends (its root finder stalls)")
    worst, rough = 0.0, 0.0
    for well in places:
        expected, errors = poles_at(wired, exact, whole, well)
        worst, rough = max(worst, errors[0]), max(rough, errors[1])
        print(
            f"well {np.array2string(well, precision=4)}: poles {np.array2string(expected, precision=6)}; relative "
            f"error {errors[0]:.1e} by autodiff, {errors[1]:.1e} by finite differences"
        )
    response = step_responses(wired, exact, places[0])
    print(f"step of {STEP:g} at a well: nonlinear diagram and ct.step_response differ by {response[3]:.1e}, relatively")
    other = the_other_way(first, starts, 2.0)
    print(f"python-control plant and integral controller inside ClosedLoop, against ct.interconnect: {other:.1e} apart")
    found.claim(
        "composition", apart < 1e-6, method="both integrated to 1e-10",
        numbers={"trajectories": len(starts), "largest distance": apart, "seconds, ct and ctrlgen": [slow, fast]},
    )  # fmt: skip
    found.claim(
        "poles", bool(places) and worst < 1e-12, method="automatic differentiation, at ct.find_operating_point",
        numbers={"wells": len(places), "relative error": worst, "by finite differences": rough},
    )  # fmt: skip
    found.claim("step", response[3] < 1e-2, method="ct.step_response", numbers={"relative difference": response[3]})
    found.claim("reverse", other < 1e-6, method="both integrated to 1e-10", numbers={"largest distance": other})
    found.figure(
        draw(exact, whole, theirs, places, response),
        "The composed loop in python-control's phase plane; paths of its diagram on the composed energy; a small step "
        "of the command at a well, linear and nonlinear.",
    )
    return f"The diagram of two energies is their sum to {apart:.1e}; its poles are -eig ∇²E to {worst:.1e}."


if __name__ == "__main__":
    sys.exit(cg.report.script(__file__, analyse))
