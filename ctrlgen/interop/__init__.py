"""python-control in both directions, and the density as one of its systems."""

from importlib import import_module
from typing import Any

_NAMES = {
    "to_nlsys": "systems",
    "from_control": "systems",
    "fokker_planck_ss": "density",
    "density_feedback": "design",
    "slow_modes": "density",
}


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'ctrlgen.interop' has no attribute {name!r}; it has {', '.join(_NAMES)}")
    return getattr(import_module(f"ctrlgen.interop.{_NAMES[name]}"), name)
