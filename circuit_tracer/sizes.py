"""Bytes and seconds as people write and read them.

Ours, because pydantic's ByteSize reads "16,5GB" as 16 bytes, knows no 1e9, and prints 16.44 GB as 16.4: too little.
"""

from __future__ import annotations

import math
import re

from circuit_tracer.errors import InputError

USUAL_ROWS = 7500  # features with a row, where a command or the server is given no number; circuit-tracer's

_UNITS = {"": 1.0, "b": 1.0}
_UNITS |= {f"{prefix}b": 1000.0 ** (power + 1) for power, prefix in enumerate("kmgt")}
_UNITS |= {f"{prefix}ib": 1024.0 ** (power + 1) for power, prefix in enumerate("kmgt")}
_SIZE = re.compile(r"\s*([0-9]*\.?[0-9]+(?:e[0-9]+)?)\s*([a-z]*)\s*", re.IGNORECASE)


def parse_bytes(memory: int | float | str) -> int:
    """Bytes of a budget: a number, or text such as 16GB, 1.5 TB, 800MB (powers of 1000), 16GiB (powers of 1024).

    Raises InputError for anything else, and for less than one byte.
    """
    size: float = math.nan
    if isinstance(memory, str):
        match = _SIZE.fullmatch(memory)
        if match and match[2].lower() in _UNITS:
            size = float(match[1]) * _UNITS[match[2].lower()]
    elif not isinstance(memory, bool):
        size = memory
    if not 1 <= size < math.inf:
        raise InputError(f"memory is {memory!r}; use a number of bytes, or a size such as 16GB, 800MB or 16GiB")
    return int(size)


def as_size(n_bytes: float) -> str:
    """Bytes as people write them, rounded up, so that what is said to fit fits: 16.40 GB, 3.02 MB."""
    power = 3 if n_bytes >= 1e8 else 2 if n_bytes >= 1e5 else 1
    return f"{math.ceil(n_bytes / 1000.0**power * 100) / 100:.2f} {' kMG'[power]}B"


def duration(seconds: float) -> str:
    """Seconds as people say them: 40 s, 12 min, 3 h 20 min, 5 days 3 h."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if hours < 48 else f"{hours // 24} days {hours % 24} h"
