"""What a trace had computed when it was interrupted, kept with its graph so that it can go on (attribution/continuation.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Unfinished:
    """facts: JSON values that say which trace this is, and where it stood. tensors: its rows, by name."""

    facts: dict[str, Any]
    tensors: dict[str, Tensor]
