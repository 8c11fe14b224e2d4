"""When to stop a closed loop: rules for `simulate(stop=...)`, each of which also answers as a verdict.

`APriori` proves KL ≤ δ at a step that is known beforehand, `DissipationBelow` from what the run dissipates; both need
constants of the energy. `KLBelow` needs log Z instead and bounds KL itself. `SteinResidual` needs nothing and is
statistical: it says nothing of KL. `FreeEnergyPlateau` is the usual heuristic, for comparison. `rule.verify(response)`
judges the end of a finished run.
"""

from ctrlgen.certify.apriori import APriori, KLBound, Plan
from ctrlgen.certify.dissipation import DissipationBelow
from ctrlgen.certify.kl_below import KLBelow
from ctrlgen.certify.stein import FreeEnergyPlateau, SteinResidual

__all__ = ["APriori", "DissipationBelow", "FreeEnergyPlateau", "KLBelow", "KLBound", "Plan", "SteinResidual"]
