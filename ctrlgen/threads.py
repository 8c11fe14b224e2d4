"""How many cores there are for this process, and how many threads a piece of linear algebra takes.

OpenBLAS's threads wait for one another by spinning. Beside other work on the same cores that costs many times what it
saves on matrices of a few hundred columns, so such pieces run on one thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, TypeVar, cast

from threadpoolctl import ThreadpoolController

Function = TypeVar("Function", bound=Callable)


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _controller() -> ThreadpoolController:
    import scipy.linalg  # noqa: F401  brings a BLAS of its own, which must be there to be found

    return ThreadpoolController()


def one_blas_thread(function: Function) -> Function:
    """The function with BLAS on one thread while it runs; the setting it found comes back."""

    @wraps(function)
    def inner(*arguments: Any, **named: Any) -> Any:
        with _controller().limit(limits=1, user_api="blas"):
            return function(*arguments, **named)

    return cast(Function, inner)
