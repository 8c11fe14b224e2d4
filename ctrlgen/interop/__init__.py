"""python-control in both directions, and the density as one of its systems."""

from importlib import import_module
from typing import Any

import ctrlgen

_NAMES = {
    "to_nlsys": "systems",
    "from_control": "systems",
    "fokker_planck_ss": "density",
    "density_feedback": "design",
    "slow_modes": "density",
}


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise ctrlgen._no_attribute(__name__, name, _NAMES)
    return getattr(import_module(f"ctrlgen.interop.{_NAMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_NAMES})
