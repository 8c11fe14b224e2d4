"""The trust base: which code must be right for PROVED to be right, and which only suggests what is then checked.

The table is written here by hand, from reading the code; lines are counted when the site is built. Every file of the
package must be in it, but for `__init__.py`, which only import names, and the site's own code. A test makes verdicts of
many kinds and runs `recheck()` on them, under a profiler: while they are made no file runs of which the table says that
nothing decides, and while they are checked again no code that it calls a suggestion.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from texts import markup, write

OUTSIDE = ("docs",)  # folders of the package that are not the library
Role = Literal["decides", "suggests", "both", "nothing"]


@dataclass(frozen=True)
class File:
    """One file of the trust base.

    Args:
        path: in the package.
        role: "decides": what it says is taken as true; "suggests": its errors cost proofs, not their truth; "both";
            "nothing": no proved or refuted verdict rests on it.
        what: it does there.
        deciding: of a file that is both, the functions and methods that decide.
        rest: the role of what is left of such a file.
    """

    path: str
    role: Role
    what: str
    deciding: tuple[str, ...] = ()
    rest: Literal["suggests", "nothing"] = "suggests"


@dataclass(frozen=True)
class Group:
    """Files that a reader checks together, under a heading."""

    title: str
    about: str
    files: tuple[File, ...]


def _decides(path: str, what: str) -> File:
    return File(path, "decides", what)


def _suggests(path: str, what: str) -> File:
    return File(path, "suggests", what)


def _partly(path: str, what: str, *deciding: str) -> File:
    return File(path, "both", what, deciding, "nothing")


def _nothing(what: str, paths: str) -> tuple[File, ...]:
    return tuple(File(path, "nothing", what) for path in paths.split())


GROUPS = (
    Group(
        "What a claim says",
        "Formulas, functions and sets become claims. An error here proves another claim than the one that was meant.",
        (
            _decides("formula.py", "reads formulas; a float becomes the decimal that it prints as"),
            _decides("field.py", "one definition of a function, its derivatives, Lie derivatives and generator"),
            _decides("system.py", "reads a python-control system as equations"),
            _decides("objects.py", "reads NumPy code by running it on symbols"),
            _decides("trace.py", "reads JAX code: its formula, or enclosures of its values"),
            _decides("scalars.py", "the arithmetic that traced code is evaluated in"),
            _decides("continuity.py", "where a formula is continuous or differentiable"),
            _decides("domain.py", "boxes, balls, sublevel sets, and what &, | and ~ make of them"),
            _decides("polytope.py", "polytopes as sets"),
            _decides("gain.py", "the functions α of a barrier"),
            _decides("checks.py", "refuses arguments that a definition does not allow"),
            _decides("precision.py", "in which floating-point type a constant or a trace is computed"),
            _decides("once.py", "an identity within traced energies"),
            _decides("rows.py", "sums and products within traced energies"),
            _decides("prove/claim.py", "the claim itself: one inequality on one set, exact numbers only"),
        ),
    ),
    Group(
        "Which loop, and which safe set",
        "A verdict reads a loop: its plant's temperature, metric and skew part, its walls, its feedback. An error here "
        "proves something of another loop. How a plant moves a density decides nothing: verdicts are of the equations.",
        (
            _decides("loop.py", "what a loop is: its plant, its energy with walls, its schedule"),
            _decides("schedule.py", "whether a temperature is constant"),
            _decides("feedback.py", "which feedback on the density a loop may have"),
            _partly("plants/particles.py", "metric, skew part and temperature of a loop; its steps decide nothing",
                    "__init__", "dim", "_mobility", "_skew"),
            _decides("plants/mobility.py", "a metric that depends on the state"),
            _decides("plants/gaussian.py", "moments of a Gaussian, of which `KLBelow`, `DissipationBelow` prove"),
            _partly("plants/propagators.py", "where a schedule is constant, for those moments",
                    "constant_pieces", "_factor"),
            _partly("plants/grid.py", "what a grid is; how it moves masses decides nothing",
                    "__post_init__", "dim", "_pairs", "_counts"),
            _partly("plants/finite_volume.py", "the cells on one side of a face, for observables of modes", "before"),
            _partly("plants/guarded.py", "a plant and its filter are joined; the filtered steps decide nothing",
                    "guard", "__init__", "dim", "constraints"),
            _decides("constraint.py", "one constraint: quadratic, concave, how far above 0 it is computed"),
            _decides("constraints.py", "several of them: which are affine, which move"),
            _decides("safety/reading.py", "how barriers and sets become constraints; empty sets and bad borders"),
            _decides("safety/filter.py", "the walls of a filter, the energy behind them, its gain"),
            _decides("interop/systems.py", "energies and loops as equations"),
            _decides("interop/density.py", "the density as a system: the numbers of which a verdict about it speaks"),
            _decides("interop/design.py", "laws of density feedback; a Riccati verdict is of the numbers found here"),
            _decides("modes/base.py", "slow modes as the state of such a system"),
            _decides("modes/grid.py", "modes on a grid, and observables in them"),
            _decides("modes/sampled.py", "modes from samples, and observables in them"),
            _partly("datasets.py", "means and covariances of Gaussian starts",
                    "__post_init__", "_frozen", "check_covariance", "dim"),
            _decides("store.py", "which energy a stored model is: a verdict is of the one that was loaded"),
            _decides("records.py", "the same, of its parts"),
            _decides("foreign.py", "the same, of checkpoints of other packages"),
        ),
    ),
    Group(
        "Engines",
        "What decides a claim. The exact engine and the search hand over a certificate or a witness that other code "
        "checks; ball arithmetic and z3 are themselves what is trusted.",
        (
            File(
                "prove/exact.py", "both",
                "checks a sum-of-squares identity in rationals, and that it is strict; finding one is not trusted",
                ("decide", "_decide", "prove_lemma", "recheck", "_positive_multiplier", "strict_enough", "_squares",
                 "_pure_power", "_no_common_zero"),
            ),
            _decides("prove/polynomial.py", "from formulas to polynomials; side claims for denominators and roots"),
            File(
                "prove/program.py", "both",
                "checks an identity, and by exact LDLᵀ that a rational matrix is ⪰ 0; solving and rounding suggest",
                ("holds", "_square", "pivots", "monomials"),
            ),
            _decides("prove/interval.py", "branch and bound over a whole set"),
            _decides("prove/boxes.py", "how one box is settled and split"),
            _decides("prove/local.py", "positivity around an equilibrium, where p = 0"),
            _decides("prove/balls.py", "formulas compiled to ball arithmetic"),
            _decides("prove/enclosures.py", "the operations on balls"),
            _decides("prove/traced.py", "networks and other code as enclosures"),
            _decides("prove/pointwise.py", "gradient and Laplacian around one point, in balls"),
            _decides("prove/smt.py", "the question to z3, whose `unsat` is believed"),
            _decides("prove/witness.py", "whether a claim fails at an exact point: what REFUTED rests on"),
            _decides("prove/decide.py", "which engine is asked, and that its answer is passed on as it is"),
            _suggests("prove/search.py", "looks for counterexamples in floating point"),
            _suggests("prove/tape.py", "evaluates formulas quickly, for the search"),
        ),
    ),
    Group(
        "Certificates of systems",
        "Which claims together make a statement true: the theorem of each certificate, written as inequalities.",
        (
            _decides("certify/verdict.py", "puts the steps together; PROVED only if every step is"),
            _decides("certify/build.py", "one claim for each piece of a set"),
            _decides("certify/regular.py", "whether functions are defined and smooth where a theorem asks for it"),
            _decides("certify/coercive.py", "V → ∞ with |x|"),
            _decides("certify/lyapunov.py", "Lyapunov and Foster–Lyapunov conditions"),
            _decides("certify/region.py", "which sublevel set lies in the region of attraction"),
            _decides("certify/barrier.py", "barriers, control barrier functions, high-order ones"),
            _decides("certify/stochastic.py", "bounds of a probability by a supermartingale"),
            _decides("certify/contraction.py", "contraction in a metric"),
            File(
                "certify/spectrum.py", "both",
                "bounds of eigenvalues of constant matrices decide; estimates on sets suggest",
                ("bounds_of_constant", "_above", "_exact", "root_ratio_decay"),
            ),
            _decides("certify/inequality.py", "p ≥ 0, lower bounds, sums of squares and functionals that exclude them"),
            _suggests("certify/find_lyapunov.py", "candidates, each verified from scratch"),
            _suggests("certify/find_barrier.py", "candidates, each verified from scratch"),
            _suggests("certify/find_stochastic.py", "candidates, each verified from scratch"),
            _suggests("certify/find_metric.py", "candidates, each verified from scratch"),
            _suggests("certify/unknown.py", "programs for the coefficients of a barrier"),
            _suggests("certify/metric_programs.py", "programs for the coefficients of a metric"),
            _suggests("certify/linear_metric.py", "metrics of linear systems, verified afterwards"),
        ),
    ),
    Group(
        "Certificates of the density",
        "Published theorems applied to established constants. Each step names its theorem; `recheck()` repeats the "
        "arithmetic, not the theorem's proof.",
        (
            _decides("certify/premise.py", "a fact, and how it is computed again"),
            _decides("certify/constants.py", "constants of an energy as facts; whether particles follow its gradient"),
            _decides("certify/piece.py", "a summand of an energy with what is established of it"),
            _decides("certify/pieces.py", "an energy as a sum of such pieces"),
            _decides("certify/wells.py", "a polynomial cut into a convex and a bounded part"),
            _decides("certify/existence.py", "whether exp(-E/ε) is integrable"),
            _decides("certify/log_sobolev.py", "Bakry–Émery, Holley–Stroock, perturbations, mixtures, products"),
            _decides("certify/decay.py", "V̇ = -εI along a loop, and the rate that follows"),
            _decides("certify/kl.py", "KL of a density, and which verdict a loop gets"),
            _decides("certify/gaussian_family.py", "V̇ + εI = 0 for Gaussians of any dimension, symbolically"),
            _decides("certify/traces.py", "normal forms of traces of matrices of any size"),
            _decides("certify/invariance.py", "a flow without noise keeps no Gibbs measure"),
            _decides("certify/transport.py", "what a transport equation does to a Gibbs measure at one point"),
            _decides("certify/apriori.py", "the number of steps that a theorem asks for"),
            _decides("certify/euler_theorem.py", "the theorem of Vempala and Wibisono, rounded outward"),
            _decides("certify/initial_kl.py", "an upper bound of KL at the start, in balls"),
            _decides("certify/dissipation.py", "from a bound of I to one of KL"),
            _decides("certify/kl_below.py", "a bound of KL itself; PROVED for Gaussian plants only"),
            _decides("certify/looks.py", "when a rule looks at a run, and what a look costs in confidence"),
            _decides("certify/safe.py", "solvability of a filter's program by Farkas' lemma"),
            _decides("certify/feedback.py", "the dissipative law of density feedback; the slow modes of a Riccati law"),
            _decides("certify/saturated.py", "a quadratic Lyapunov function under saturated feedback"),
            _suggests("certify/rates.py", "measured rates: SAMPLED, never PROVED"),
            _suggests("certify/stein.py", "statistical rules: SAMPLED, never PROVED"),
            _decides("certify/stopping.py", "the names of the rules, and nothing else"),
        ),
    ),
    Group(
        "Faster loops",
        "Certificates of metrics, skew parts and frictions.",
        (
            _decides("accelerate/metric.py", "which proof of λM ⪯ ∇²E ⪯ M stands"),
            _decides("accelerate/metric_verdict.py", "what follows from it for W₂ and KL"),
            _decides("accelerate/_worth.py", "what a metric is proved to be worth"),
            _decides("accelerate/_bounds.py", "bounds of H in a metric by interval matrices"),
            _decides("accelerate/_enclosures.py", "interval Hessians over boxes, outward rounded"),
            _decides("accelerate/_hessians.py", "what is known of a Hessian"),
            _decides("accelerate/_steps.py", "facts that refute"),
            _decides("accelerate/skew.py", "the rate of a nonreversible linear drift, by exact linear algebra"),
            _decides("accelerate/friction.py", "the rate of a kinetic loop, in a norm that it names"),
            _decides("accelerate/riemannian.py", "Bakry–Émery in a metric that depends on the state"),
            _decides("accelerate/region.py", "cells of a box on which the loop contracts"),
            _decides("accelerate/invariance.py", "whether a drift keeps the Gibbs measure"),
            _suggests("accelerate/_candidates.py", "which metric to try"),
            File(
                "accelerate/_programs.py", "both",
                "the semidefinite program for a metric suggests; reading floats as exact numbers decides",
                ("matrix_of", "rational"),
            ),
        ),
    ),
    Group(
        "Constants of energies",
        "What `.properties` says of the classes of the package, and bounds over boxes. What a class of your "
        "own says there is believed, and each verdict lists that as an assumption.",
        (
            _decides("energies/base.py", "what an energy is, and what its constants mean"),
            _decides("energies/algebra.py", "how constants add"),
            _decides("energies/analytic.py", "quadratics and Gaussian mixtures"),
            _decides("energies/gaussian_bounds.py", "their constants, rounded outward"),
            _decides("energies/landscapes.py", "the classic landscapes, as formulas"),
            _decides("energies/symbolic.py", "energies of formulas and of code"),
            _decides("energies/formulas.py", "constants of formulas, by exact bounds"),
            _decides("energies/decaying.py", "ranges of polynomials times Gaussians or inverse powers"),
            _decides("energies/mixture.py", "\"or\" of energies"),
            _decides("energies/observation.py", "conditioning on observations"),
            _decides("energies/neural.py", "networks"),
            _decides("energies/trained.py", "networks in the data's units"),
            _decides("energies/network_bounds.py", "their derivatives, over all states or a box"),
            _decides("energies/bounds.py", "values, gradients and Hessians over a box"),
            _decides("energies/intervals.py", "arrays of intervals in floats, with the classical error bounds"),
            _decides("energies/spectral.py", "eigenvalues and norms of matrices of floats, rounded outward"),
            _decides("energies/tails.py", "whether a sum has a Gibbs measure, and where it escapes"),
            _decides("energies/safe_sets.py", "that a safe set is convex, bounded, and has an inside"),
            _decides("energies/walls.py", "walls and logarithmic barriers"),
            _decides("energies/feedback.py", "energies with inputs, and the law that sets them"),
        ),
    ),
    Group(
        "Where nothing decides",
        "No proved or refuted verdict rests on these: what they compute is `SAMPLED` at best. A picture or a report "
        "that is wrong may show a status wrongly; the verdict itself does not change.",
        (
            *_nothing("how a density moves",
                      "plants/base.py plants/ensemble.py plants/noise.py plants/walled.py plants/commanded.py "
                      "plants/driven.py"),
            *_nothing("corrections of a filter while it runs, and what was counted of them",
                      "safety/inputs.py safety/qp.py safety/report.py safety/restricted.py shift.py"),
            *_nothing("measured quantities, with their errors",
                      "estimate.py gibbs.py measure/_checks.py measure/annealed.py measure/dissipation.py "
                      "measure/distance.py measure/effort.py measure/entropic.py measure/neighbours.py "
                      "measure/partition.py measure/restricted.py measure/transition.py measure/wells.py quality.py "
                      "response.py"),
            *_nothing("training, and tables of data",
                      "recipes.py tables.py training/checkpoint.py training/couplings.py training/data.py "
                      "training/fit.py training/objectives.py training/quadrature.py training/result.py "
                      "training/run.py training/update.py"),
            *_nothing("pictures",
                      "plot/animation.py plot/certificates.py plot/claims.py plot/divergence.py plot/landscape.py "
                      "plot/look.py plot/loops.py plot/metrics.py plot/modes.py plot/movie.py plot/portrait.py "
                      "plot/rates.py plot/results.py plot/slices.py"),
            *_nothing("the command line, reports, and how threads are used",
                      "cli.py demo.py jobs.py report/findings.py report/page.py report/provenance.py report/run.py "
                      "report/script.py threads.py"),
        ),
    ),
)  # fmt: skip

WORDS = {"decides": "must be right", "suggests": "only suggests", "both": "in part", "nothing": "nothing decides"}


def files() -> list[File]:
    """All files of the table."""
    return [file for group in GROUPS for file in group.files]


def counted(package: Path, file: File) -> tuple[int, int]:
    """(lines that must be right, all other lines) of a file.

    Raises:
        ValueError: a file or a function of the table does not exist.
    """
    path = package / file.path
    if not path.is_file():
        raise ValueError(f"the trust base names {file.path}, which does not exist: correct the table in trust.py.")
    text = path.read_text(encoding="utf-8")
    total = len(text.splitlines())
    if file.role != "both":
        return (total, 0) if file.role == "decides" else (0, total)
    found = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and node.name in file.deciding:
            found[node.name] = found.get(node.name, 0) + (node.end_lineno or node.lineno) - node.lineno + 1
    missing = set(file.deciding) - set(found)
    if missing:
        raise ValueError(f"{file.path} has no function {', '.join(sorted(missing))}: correct the table in trust.py.")
    return sum(found.values()), total - sum(found.values())


def unlisted(package: Path) -> list[str]:
    """Files of the package that the table does not name."""
    there = {path.relative_to(package) for path in package.rglob("*.py")}
    there = {path.as_posix() for path in there if path.parts[0] not in OUTSIDE and path.name != "__init__.py"}
    return sorted(there - {file.path for file in files()})


def _rows(package: Path, group: Group) -> list[tuple[str, str, str, str]]:
    """(files, lines, role, what) of each row; files where nothing decides share one for each thing that they do."""
    rows = []
    for (what, _), same in groupby(group.files, lambda f: (f.what, f.role if f.role == "nothing" else f.path)):
        shared = list(same)
        sizes = [counted(package, file) for file in shared]
        right, free = (sum(size[k] for size in sizes) for k in (0, 1))
        size = f"{right} of {right + free}" if shared[0].role == "both" else str(right + free)
        names = ", ".join(f"``{file.path}``" for file in shared)
        rows.append((names, size, WORDS[shared[0].role], markup(what)))
    return rows


def render(package: Path) -> str:
    """The table as reStructuredText.

    Raises:
        ValueError: the table does not fit the package.
    """
    left_out = unlisted(package)
    if left_out:
        raise ValueError(f"the trust base does not say what rests on {', '.join(left_out)}: add it in trust.py.")
    lines, total = [], {"decides": 0, "suggests": 0, "nothing": 0}
    for group in GROUPS:
        lines += [f".. rubric:: {group.title}", "", markup(group.about), "", ".. list-table::", "   :class: trust"]
        lines += ["   :header-rows: 1", "", "   * - file", "     - lines", "     - role", "     - what"]
        for row in _rows(package, group):
            lines += [f"   {'*' if k == 0 else ' '} - {cell}" for k, cell in enumerate(row)]
        lines.append("")
        for file in group.files:
            right, free = counted(package, file)
            total["decides"] += right
            total[file.rest if file.role == "both" else "suggests" if file.role == "suggests" else "nothing"] += free
    head = (
        f"Counted when this page was built: **{total['decides']} lines must be right**, {total['suggests']} lines only "
        f"suggest, and on {total['nothing']} lines nothing rests."
    )
    return "\n".join([head, "", *lines]) + "\n"


def build(app: Any) -> None:
    """Write the table when a build begins."""
    import ctrlgen

    write(Path(app.srcdir) / "_generated" / "fragments" / "trust.rst", render(Path(ctrlgen.__file__).parent))


def setup(app: Any) -> dict[str, Any]:
    """Connect the hook."""
    app.connect("builder-inited", build)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
