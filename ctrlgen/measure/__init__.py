"""How far a density is from its target: every sampled quantity is an `Estimate` with its standard error."""

from ctrlgen.measure.annealed import Annealed
from ctrlgen.measure.dissipation import fisher, stein_residual
from ctrlgen.measure.distance import Moments, mmd, moments, sampling_floor, sliced_wasserstein2, wasserstein2
from ctrlgen.measure.effort import path_energy
from ctrlgen.measure.entropic import (
    entropy,
    entropy_gaussian,
    fisher_gaussians,
    free_energy,
    kl,
    kl_gaussians,
    kl_two_sample,
)
from ctrlgen.measure.partition import log_partition
from ctrlgen.measure.transition import Bracket, Skewed, UpperBound, entropy_transition, fisher_transition, kl_transition

__all__ = [
    "Annealed",
    "Bracket",
    "Moments",
    "Skewed",
    "UpperBound",
    "entropy",
    "entropy_gaussian",
    "entropy_transition",
    "fisher",
    "fisher_gaussians",
    "fisher_transition",
    "free_energy",
    "kl",
    "kl_gaussians",
    "kl_transition",
    "kl_two_sample",
    "log_partition",
    "mmd",
    "moments",
    "path_energy",
    "sampling_floor",
    "sliced_wasserstein2",
    "stein_residual",
    "wasserstein2",
]
