"""What the tests of a file share, made once and let go of when the file ends.

One process runs thousands of tests: what each file kept would add up to gigabytes, and a command that looks at the memory
of its process would refuse. What several files share (tests/support/tracing_cases.py) is small, or two models.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])

_caches: list[Any] = []


def kept(function: F) -> F:
    """`functools.cache` until the last test of the file has run."""
    cached = cache(function)
    _caches.append(cached)
    return cast(F, cached)


def let_go() -> None:
    """Empty all of them; tests/conftest.py calls it behind each file."""
    held = [cached for cached in _caches if cached.cache_info().currsize]
    for cached in held:
        cached.cache_clear()
    if held:
        gc.collect()  # models refer to themselves
