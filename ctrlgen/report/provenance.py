"""Where numbers come from: versions of what computed them, and the machine."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import ctrlgen
from ctrlgen.threads import cores

PACKAGES = (
    "ctrlgen",
    "numpy",
    "scipy",
    "sympy",
    "control",
    "jax",
    "jaxlib",
    "equinox",
    "POT",
    "python-flint",
    "z3-solver",
    "clarabel",
)


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide what the numbers are."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def machine() -> dict[str, str]:
    """The processor, how many of its cores this process may use, its memory and the system."""
    found = {"processor": _processor(), "cores": str(cores()), "system": f"{platform.system()} {platform.machine()}"}
    memory = _memory()
    return found if memory is None else found | {"memory": f"{memory:.0f} GiB"}


def _version(package: str) -> str:
    try:
        return ctrlgen.__version__ if package == "ctrlgen" else version(package)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory() -> float | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (AttributeError, ValueError, OSError):
        return None
