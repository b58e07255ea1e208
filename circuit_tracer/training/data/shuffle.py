"""Batches of rows in a random order: a block of rows is permuted, and as batches leave it, the next block's rows come in.

So there is one block's memory, and the model's work spreads evenly over the steps instead of coming in lumps.

Letters: N rows of a block, B tokens of a batch, S source layers, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.training.data.block import Block
from circuit_tracer.training.data.rows import Rows, generator
from circuit_tracer.training.data.statistics import Moments

SHUFFLE = 0  # keeps the random numbers of the shuffle apart from those of directions (rows.py)
REFILLS = 8  # times that rows are read while a block is handed out, at most


class ShuffledRows:
    """Blocks of N rows, a whole number of batches, permuted by (seed, number of the block); a last partial batch is dropped.

    ``n_batches`` are wanted in all: no row is read ahead that only later ones would need. ``allocate``: a block of so many
    rows; the flag says whether it is the one that waits or what the next rows are read into. ``share``: of each batch, the rows
    that are handed out here; every rank has all of them in its block.
    """

    def __init__(
        self,
        rows: Rows,
        epochs: int | None,
        batch: int,
        n_rows: int,
        seed: int,
        n_batches: int,
        share: slice,
        allocate: Callable[[int, bool], Block],
    ) -> None:
        self.batch, self.n_rows, self.seed, self.n_batches, self.share = batch, n_rows, seed, n_batches, share
        self._epochs = _Epochs(rows, epochs)
        self._first = self._epochs.state()
        self._allocate = allocate
        self._block: Block | None = None  # allocated when it is first filled
        self._staging: Block | None = None
        self._begin(0, 0)

    @property
    def too_short(self) -> bool:
        """Whether the data turned out not to fill a single batch."""
        return self.number == self.served == 0 and self._order is not None and self.n_rows_found < self.batch

    @property
    def n_rows_found(self) -> int:
        """Rows of the block in hand, as far as they were read."""
        return self._filled

    def next(self) -> dict[str, Tensor] | None:
        """This rank's share of the next batch by name, float32 (B, S, D) on the model's device; None at the end of the data."""
        block, order = self._whole()
        start, end = self.served * self.batch, (self.served + 1) * self.batch
        if end > self._filled:
            if not self.too_short:
                self._begin(
                    self.number + 1, 0
                )  # further epochs, should a resumed run have them, begin a block of their own
            return None
        self._refill(block, order)
        taken = {name: block.take(name, order[start:end][self.share]) for name in block.layout.names}
        self.served += 1
        if end == self.n_rows:
            self._turn(order)
        return taken

    def state(self) -> dict[str, Any]:
        """The position behind the last batch, JSON-able: a block, where it starts, and batches served of it."""
        return {"block": self.number, "served": self.served, "start": self._start}

    def restore(self, state: dict[str, Any]) -> None:
        """Go to a position; the block is made again when its next batch is asked for."""
        self._epochs.restore(state["start"])
        self._begin(state["block"], state["served"])

    def moments(self, n_tokens: int) -> Moments:
        """Of the first ``n_tokens`` rows of all (of all rows, if there are fewer); the position stays what it is.

        The first block is made for this and kept, unless batches have left it.
        """
        moments = Moments()
        if self.number == 0 and not self._next_rows:
            block, _ = self._whole()
            moments.add(block, min(n_tokens, self._filled))
            more, here = self._filled == self.n_rows, self._epochs.state()
        else:
            more, here = True, self._epochs.state()
            self._epochs.restore(self._first)
        if more and moments.n_tokens < n_tokens:
            block = self._stage()
            while more and moments.n_tokens < n_tokens:
                filled = self._epochs.fill(block)
                moments.add(block, min(filled, n_tokens - moments.n_tokens))
                more = filled == block.n_rows
            self._epochs.restore(here)
        return moments

    def _begin(self, number: int, served: int) -> None:
        """Stand in front of a block, ``served`` batches of which are to be skipped; nothing of it is in memory."""
        self.number, self.served, self._start = number, served, self._epochs.state()
        self._slots: Tensor | None = None  # where the rows of the block lie; None: in order, none of them read
        self._order: Tensor | None = None  # the same as they are handed out; None: the block is not whole
        self._filled, self._ended = 0, False
        self._next_rows = 0  # rows of the next block that are there already

    def _turn(self, order: Tensor) -> None:
        """On to the next block, whose rows lie where those of this one were, one after the other as they were handed out."""
        if self._next_rows == 0:
            self._begin(self.number + 1, 0)
            return
        self.number, self.served, self._start = self.number + 1, 0, self._next_start
        self._slots, self._order, self._filled, self._next_rows = order, None, self._next_rows, 0

    def _whole(self) -> tuple[Block, Tensor]:
        """The block in hand with all its rows, and where they lie in the order in which they are handed out."""
        if self._block is None:
            self._block = self._allocate(self.n_rows, True)
        if self._order is None:
            if self._slots is None:
                self._slots = torch.arange(self.n_rows)
                self._filled = self._epochs.fill(self._block)
                self._ended = self._filled < self.n_rows
            while self._filled < self.n_rows and not self._ended:
                self._filled += self._read(self._block, self._slots[self._filled :])
            key = [self.seed, SHUFFLE, self.number]
            shuffled = torch.randperm(self._filled, generator=generator(key, torch.device("cpu")))
            self._order = self._slots[shuffled]
        return self._block, self._order

    def _refill(self, block: Block, order: Tensor) -> None:
        """Read some rows of the next block, if it is wanted and enough places are free."""
        free = order[self._next_rows : self.served * self.batch]
        wanted = (self.number + 1) * (self.n_rows // self.batch) < self.n_batches
        if not wanted or self._ended or self._filled < self.n_rows or len(free) < self._stage().n_rows:
            return
        if not self._next_rows:
            self._next_start = self._epochs.state()
        self._next_rows += self._read(block, free)

    def _read(self, block: Block, slots: Tensor) -> int:
        """Rows into free places, at most as many as are read at a time; how many there were."""
        staging = self._stage()
        staging = staging.head(min(staging.n_rows, len(slots)))
        filled = self._epochs.fill(staging)
        self._ended = filled < staging.n_rows
        block.put(slots[:filled], staging)
        return filled

    def _stage(self) -> Block:
        """What rows are read into: a whole number of batches."""
        if self._staging is None:
            self._staging = self._allocate(self.batch * -(-self.n_rows // self.batch // REFILLS), False)
        return self._staging


class _Epochs:
    """Rows of one epoch after the other."""

    def __init__(self, rows: Rows, epochs: int | None) -> None:
        self.rows, self.epochs = rows, epochs
        self._epoch = 0

    def fill(self, block: Block) -> int:
        """Fill a block from its first row; returns the number of rows, less than the block's at the end of the data."""
        end = self.rows.read(block, 0)
        while end < block.n_rows and (self.epochs is None or self._epoch + 1 < self.epochs):
            self.rows.rewind()
            self._epoch += 1
            start, end = end, self.rows.read(block, end)
            if end == start:  # an epoch without rows: repeating it would never end
                break
        return end

    def state(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "rows": self.rows.state()}

    def restore(self, state: dict[str, Any]) -> None:
        self._epoch = state["epoch"]
        self.rows.restore(state["rows"])
