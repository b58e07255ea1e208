"""Which rows are swept together: blocks of like positions and layers.

A block is as wide as its last target's position and walks down from its highest row's layer. Rows that differ in both are
better apart, as long as a block's own cost is small against that of its rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Rows = npt.NDArray[np.int64]

# Reading a layer's weights and sources takes about as long as the arithmetic of this many rows (see the kernels' READMEs), or
# of as many more as a model is narrower than `WIDE`: then it is starting the operations that takes the time.
ROWS_A_LAYER_COSTS = 16
WIDE = 512  # d_model
# Numbers (P, D) of a block of rows on a CPU, so that it stays in the cache of one core and that there are blocks for all cores;
# and rows that a block may have all the same, or reading weights and sources would take longer than the rows themselves.
IN_CACHE, ENOUGH_ROWS = 1 << 19, 32
ENOUGH_FOR_TABLES = 128  # where sources are gathered anew for each block
# Rows wait to read off sources where idle workers can help, until rows and sources take so many bytes.
BYTES_WAITING = 24 * 2**20


def split_rows(
    layer: Tensor, position: Tensor, block_rows: int, d_model: int = WIDE, numbers: int = 0
) -> Iterator[Tensor]:
    """Indices of rows of a model of that width, block by block, sorted by layer (top first) inside. numbers: as `most_rows`."""
    layers, positions = layer.numpy(force=True), position.numpy(force=True)
    pending = [np.arange(len(positions))] if len(positions) else []
    while pending:
        rows = pending.pop()
        cut = halve(rows, layers, positions, d_model)
        most = most_rows(block_rows, numbers, int(positions[rows].max() + 1) * d_model)
        if len(rows) > 1 and (len(rows) > most or cut.cheaper):
            pending += cut.low, cut.high
        else:
            yield torch.from_numpy(rows[np.argsort(-layers[rows], kind="stable")])


def most_rows(block_rows: int, numbers: int, row: int) -> int:
    """How many rows of so many numbers each a block may have: `block_rows`, or with `numbers` not many more than these."""
    return min(block_rows, max(ENOUGH_ROWS, numbers // row)) if numbers else block_rows


class Cut(NamedTuple):
    """Two halves of a block, by position or by layer; cheaper: than the block as a whole."""

    low: Rows
    high: Rows
    cheaper: bool


def halve(rows: Rows, layer: Rows, position: Rows, d_model: int, weight: float = 1) -> Cut:
    """The better way to cut a block in two. weight: how many rows each of `rows` stands for."""

    def cost(some: Rows) -> float:
        return _cost(some, layer, position, d_model, weight)

    cuts = []
    for key in (position, layer):
        ordered = rows[np.argsort(key[rows], kind="stable")]
        low, high = ordered[: len(rows) // 2], ordered[len(rows) // 2 :]
        cuts.append((cost(low) + cost(high), low, high))
    least, low, high = min(cuts, key=lambda cut: cut[0])
    return Cut(low, high, least < cost(rows))


def _cost(rows: Rows, layer: Rows, position: Rows, d_model: int, weight: float) -> float:
    """Rows times layers times positions that a block computes, with what each layer costs by itself."""
    if len(rows) == 0:
        return 0
    depth, of_layer = layer[rows] + 1, ROWS_A_LAYER_COSTS * max(1, WIDE / d_model)
    return int(position[rows].max() + 1) * (weight * int(depth.sum()) + of_layer * int(depth.max()))


class BlockTree:
    """The blocks that `split_rows` would make, for every size of block, of rows of which each stands for `weight`.

    How a block is cut does not depend on the size, only where the cutting ends; so each cut is made once.
    """

    def __init__(self, layer: Tensor, position: Tensor, weight: float, d_model: int = WIDE) -> None:
        self.layer, self.position, self.weight, self.d_model = layer.numpy(), position.numpy(), weight, d_model
        self._cuts: dict[int, Cut] = {}  # by place in the binary tree: the halves of n are 2n and 2n + 1

    def blocks(self, block_rows: int, numbers: int = 0) -> list[tuple[int, int, float]]:
        """(rows of a block, its positions, how many blocks there are of the kind)."""
        found, pending = [], [(1, np.arange(len(self.layer)))] if len(self.layer) else []
        while pending:
            place, rows = pending.pop()
            n_rows, n_pos = self.weight * len(rows), int(self.position[rows].max()) + 1
            most = most_rows(block_rows, numbers, n_pos * self.d_model)
            if len(rows) > 1:
                cut = self._cuts.get(place) or self._cuts.setdefault(
                    place, halve(rows, self.layer, self.position, self.d_model, self.weight)
                )
                if n_rows > most or cut.cheaper:
                    pending += (2 * place, cut.low), (2 * place + 1, cut.high)
                    continue
            n_blocks = max(1.0, n_rows / most)
            found.append((round(n_rows / n_blocks), n_pos, n_blocks))
        return found
