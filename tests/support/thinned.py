"""A part of many cases for every run of the tests, the rest for `make test-all`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

WHY = "more of the same; every {number}th runs always"


def one_in(number: int, cases: Iterable[Any]) -> list[Any]:
    """Every ``number``-th case as it is, the others marked slow. A tuple holds the values of several parameters.

    In a product of lists, a ``number`` that shares no divisor with their lengths lets all values of each list come.
    """
    rest = pytest.mark.slow(WHY.format(number=number))
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=[rest] if place % number else [])
        for place, case in enumerate(cases)
    ]
