"""ctrlgen: sampling from a trained energy is feedback control of a density.

Names are loaded when they are first used, so that importing the package costs next to nothing.
"""

from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

try:
    __version__ = version("ctrlgen")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"

# public name -> module that defines it
_NAMES = {
    "Estimate": "estimate",
    "Energy": "energies.base",
    "Properties": "energies.base",
    "Quadratic": "energies.analytic",
    "GaussianMixture": "energies.analytic",
    "DoubleWell": "energies.landscapes",
    "Banana": "energies.landscapes",
    "Funnel": "energies.landscapes",
    "Ring": "energies.landscapes",
    "SymbolicEnergy": "energies.symbolic",
    "CallableEnergy": "energies.symbolic",
    "LeastSquares": "energies.observation",
    "condition": "energies.observation",
    "MixtureEnergy": "energies.mixture",
    "mixture": "energies.mixture",
    "MLPEnergy": "energies.neural",
    "TrainedEnergy": "energies.trained",
    "compose": "energies.algebra",
    "Gaussian": "datasets",
    "load_energy": "store",
    "save_energy": "store",
    "list_models": "store",
    "Langevin": "plants.particles",
    "KineticLangevin": "plants.particles",
    "GradientFlow": "plants.particles",
    "FokkerPlanckGrid": "plants.grid",
    "GaussianPlant": "plants.gaussian",
    "Annealing": "schedule",
    "TransportRamp": "schedule",
    "ClosedLoop": "loop",
    "generate": "loop",
    "Gibbs": "gibbs",
    "Response": "response",
    "DivergenceError": "response",
    "train": "training.fit",
    "TrainingResult": "training.fit",
    "EnergyMatching": "training.objectives",
    "ScoreMatching": "training.objectives",
    "ContrastiveDivergence": "training.objectives",
    "MaximumLikelihood": "training.objectives",
    "measure_quality": "quality",
    "Status": "prove.claim",
    "Verdict": "certify.verdict",
    "LyapunovFunction": "certify.lyapunov",
    "find_lyapunov": "certify.find_lyapunov",
    "region_of_attraction": "certify.region",
    "BarrierFunction": "certify.barrier",
    "StochasticBarrier": "certify.stochastic",
    "find_barrier": "certify.find_barrier",
    "ContractionMetric": "certify.contraction",
    "find_contraction_metric": "certify.find_metric",
    "no_certificate": "certify.invariance",
    "log_sobolev": "certify.log_sobolev",
    "optimal_metric": "accelerate.metric",
    "optimal_skew": "accelerate.skew",
    "optimal_friction": "accelerate.friction",
    "riemannian_rate": "accelerate.riemannian",
    "contraction_region": "accelerate.region",
    "invariance": "accelerate.invariance",
    "nonnegative": "certify.inequality",
    "lower_bound": "certify.inequality",
    "sum_of_squares": "certify.inequality",
    "KLLyapunov": "certify.kl",
    "Box": "domain",
    "Ball": "domain",
    "Sublevel": "domain",
    "Domain": "domain",
    "Polytope": "polytope",
    "SafetyFilter": "safety.filter",
    "SafetyReport": "safety.report",
}
_MODULES = {
    "datasets": "datasets",
    "interop": "interop",
    "measure": "measure",
    "plot": "plot",
    "report": "report",
    "stopping": "certify.stopping",
}

__all__ = [*_NAMES, *_MODULES]  # noqa: PLE0604

if TYPE_CHECKING:
    from ctrlgen import datasets as datasets
    from ctrlgen import interop as interop
    from ctrlgen import measure as measure
    from ctrlgen import plot as plot
    from ctrlgen import report as report
    from ctrlgen.accelerate.friction import optimal_friction as optimal_friction
    from ctrlgen.accelerate.invariance import invariance as invariance
    from ctrlgen.accelerate.metric import optimal_metric as optimal_metric
    from ctrlgen.accelerate.region import contraction_region as contraction_region
    from ctrlgen.accelerate.riemannian import riemannian_rate as riemannian_rate
    from ctrlgen.accelerate.skew import optimal_skew as optimal_skew
    from ctrlgen.certify import stopping as stopping
    from ctrlgen.certify.barrier import BarrierFunction as BarrierFunction
    from ctrlgen.certify.contraction import ContractionMetric as ContractionMetric
    from ctrlgen.certify.find_barrier import find_barrier as find_barrier
    from ctrlgen.certify.find_lyapunov import find_lyapunov as find_lyapunov
    from ctrlgen.certify.find_metric import find_contraction_metric as find_contraction_metric
    from ctrlgen.certify.inequality import lower_bound as lower_bound
    from ctrlgen.certify.inequality import nonnegative as nonnegative
    from ctrlgen.certify.inequality import sum_of_squares as sum_of_squares
    from ctrlgen.certify.invariance import no_certificate as no_certificate
    from ctrlgen.certify.kl import KLLyapunov as KLLyapunov
    from ctrlgen.certify.log_sobolev import log_sobolev as log_sobolev
    from ctrlgen.certify.lyapunov import LyapunovFunction as LyapunovFunction
    from ctrlgen.certify.region import region_of_attraction as region_of_attraction
    from ctrlgen.certify.stochastic import StochasticBarrier as StochasticBarrier
    from ctrlgen.certify.verdict import Verdict as Verdict
    from ctrlgen.datasets import Gaussian as Gaussian
    from ctrlgen.domain import Ball as Ball
    from ctrlgen.domain import Box as Box
    from ctrlgen.domain import Domain as Domain
    from ctrlgen.domain import Sublevel as Sublevel
    from ctrlgen.energies.algebra import compose as compose
    from ctrlgen.energies.analytic import GaussianMixture as GaussianMixture
    from ctrlgen.energies.analytic import Quadratic as Quadratic
    from ctrlgen.energies.base import Energy as Energy
    from ctrlgen.energies.base import Properties as Properties
    from ctrlgen.energies.landscapes import Banana as Banana
    from ctrlgen.energies.landscapes import DoubleWell as DoubleWell
    from ctrlgen.energies.landscapes import Funnel as Funnel
    from ctrlgen.energies.landscapes import Ring as Ring
    from ctrlgen.energies.mixture import MixtureEnergy as MixtureEnergy
    from ctrlgen.energies.mixture import mixture as mixture
    from ctrlgen.energies.neural import MLPEnergy as MLPEnergy
    from ctrlgen.energies.observation import LeastSquares as LeastSquares
    from ctrlgen.energies.observation import condition as condition
    from ctrlgen.energies.symbolic import CallableEnergy as CallableEnergy
    from ctrlgen.energies.symbolic import SymbolicEnergy as SymbolicEnergy
    from ctrlgen.energies.trained import TrainedEnergy as TrainedEnergy
    from ctrlgen.estimate import Estimate as Estimate
    from ctrlgen.gibbs import Gibbs as Gibbs
    from ctrlgen.loop import ClosedLoop as ClosedLoop
    from ctrlgen.loop import generate as generate
    from ctrlgen.plants.gaussian import GaussianPlant as GaussianPlant
    from ctrlgen.plants.grid import FokkerPlanckGrid as FokkerPlanckGrid
    from ctrlgen.plants.particles import GradientFlow as GradientFlow
    from ctrlgen.plants.particles import KineticLangevin as KineticLangevin
    from ctrlgen.plants.particles import Langevin as Langevin
    from ctrlgen.polytope import Polytope as Polytope
    from ctrlgen.prove.claim import Status as Status
    from ctrlgen.quality import measure_quality as measure_quality
    from ctrlgen.response import DivergenceError as DivergenceError
    from ctrlgen.response import Response as Response
    from ctrlgen.safety.filter import SafetyFilter as SafetyFilter
    from ctrlgen.safety.report import SafetyReport as SafetyReport
    from ctrlgen.schedule import Annealing as Annealing
    from ctrlgen.schedule import TransportRamp as TransportRamp
    from ctrlgen.store import list_models as list_models
    from ctrlgen.store import load_energy as load_energy
    from ctrlgen.store import save_energy as save_energy
    from ctrlgen.training.fit import TrainingResult as TrainingResult
    from ctrlgen.training.fit import train as train
    from ctrlgen.training.objectives import ContrastiveDivergence as ContrastiveDivergence
    from ctrlgen.training.objectives import EnergyMatching as EnergyMatching
    from ctrlgen.training.objectives import MaximumLikelihood as MaximumLikelihood
    from ctrlgen.training.objectives import ScoreMatching as ScoreMatching


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        value = getattr(import_module(f"ctrlgen.{_NAMES[name]}"), name)
    elif name in _MODULES:
        value = import_module(f"ctrlgen.{_MODULES[name]}")
    else:
        raise _no_attribute(__name__, name, __all__)
    globals()[name] = value
    return value


def _no_attribute(module: str, name: str, known: Iterable[str]) -> AttributeError:
    """What a module that loads its names lazily raises: with the name that was probably meant, else with all names.

    Case and underscores do not count. The suggestion is part of the text, for notebooks and `str` show nothing else;
    without `obj` Python does not make one of its own behind it.
    """
    from difflib import get_close_matches

    plain = {other.lower().replace("_", ""): other for other in known}
    close = get_close_matches(name.lower().replace("_", ""), plain, n=1)
    hint = f"Did you mean {plain[close[0]]!r}?" if close else f"It has {', '.join(sorted(plain.values()))}."
    return AttributeError(f"module {module!r} has no attribute {name!r}. {hint}", name=name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
