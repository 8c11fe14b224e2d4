"""Pictures of energies, densities on their way, Lyapunov curves, certificates and training: the only matplotlib here.

Every function takes a result and `ax=None`, draws, and returns the axes; nothing is shown and no global state of
matplotlib is touched (figures are made without pyplot). Save with `ax.figure.savefig("name.png")`.
"""

from ctrlgen.plot.animation import animate
from ctrlgen.plot.certificates import barrier, lyapunov, region, stochastic_barrier
from ctrlgen.plot.claims import no_certificate, verdict, verdict_table
from ctrlgen.plot.divergence import thinned
from ctrlgen.plot.landscape import energy, images, particles, safe_set
from ctrlgen.plot.look import (
    BLACK,
    BLUE,
    COLOURS,
    CYCLE,
    GREEN,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    STYLES,
    YELLOW,
    figure,
    style,
)
from ctrlgen.plot.loops import decay, draw_rate, energies, inputs, response, transport
from ctrlgen.plot.metrics import contraction, contraction_region
from ctrlgen.plot.modes import design, feedback, slow_modes
from ctrlgen.plot.movie import Movie
from ctrlgen.plot.portrait import phase_portrait
from ctrlgen.plot.rates import decay_bound, friction_rates, kl_bound, metric_rates, plan, skew_rates
from ctrlgen.plot.results import gibbs, quality, safety_report, shift, table, training

__all__ = [
    "BLACK",
    "BLUE",
    "COLOURS",
    "CYCLE",
    "GREEN",
    "ORANGE",
    "PURPLE",
    "RED",
    "SKY",
    "STYLES",
    "YELLOW",
    "Movie",
    "animate",
    "barrier",
    "contraction",
    "contraction_region",
    "decay",
    "decay_bound",
    "design",
    "draw_rate",
    "energies",
    "energy",
    "feedback",
    "figure",
    "friction_rates",
    "gibbs",
    "images",
    "inputs",
    "kl_bound",
    "lyapunov",
    "metric_rates",
    "no_certificate",
    "particles",
    "phase_portrait",
    "plan",
    "quality",
    "region",
    "response",
    "safe_set",
    "safety_report",
    "shift",
    "skew_rates",
    "slow_modes",
    "stochastic_barrier",
    "style",
    "table",
    "thinned",
    "training",
    "transport",
    "verdict",
    "verdict_table",
]  # fmt: skip
