"""Sources that are read where they are stored.

Letters: D d_model, P positions, n sources.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class AddressedRows:
    """n sources, sorted by position: source i writes ``scale[i] * tables[table[i]][row[i]]`` at its position.

    A feature that is active at many positions is stored once. Features of several layers, error vectors and token embeddings
    may stand in one list: each kind is a table.
    """

    tables: Sequence[
        Tensor
    ]  # (rows, D) each, of one floating dtype and device; the last axis contiguous, rows may be strided
    table: Tensor  # (n,) int64
    row: Tensor  # (n,) int64
    scale: Tensor  # (n,) floating: activation of a feature, 1 of an error or a token
    column: Tensor  # (n,) int64: column of the result, none twice
    ptr: Sequence[int]  # P + 1 offsets: sources of each position
