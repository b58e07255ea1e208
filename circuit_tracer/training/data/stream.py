"""The stream of batches that the trainer consumes: rows in blocks, each block permuted, epoch after epoch.

Letters: N rows of a block, B tokens of a batch, S source layers, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from circuit_tracer.errors import FileFormatError, InputError, shortened
from circuit_tracer.fingerprint import require_same
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.text.position import require_position
from circuit_tracer.training.config.schema import TrainingConfig
from circuit_tracer.training.data.batch import ActivationBatch
from circuit_tracer.training.data.block import Block
from circuit_tracer.training.data.rows import Rows, generator
from circuit_tracer.training.data.source import Source, open_source
from circuit_tracer.training.data.statistics import Moments, Statistics
from circuit_tracer.training.feature_ranks import FeatureRanks

SHUFFLE = 0  # keeps the random numbers of the shuffle apart from those of directions (rows.py)


def open_stream(config: TrainingConfig, parts: ModelParts, tokenizer: Any, ranks: FeatureRanks) -> BatchStream:
    """The training batches of a configuration; `tokenizer` may be None for token files.

    Raises InputError for data, layers or a context length that cannot be, CompatibilityError for points the model has not or
    a cache of something else, CircuitTracerError when an extra is missing. The model does not run before the first batch.
    """
    return BatchStream(config, open_source(config, parts, tokenizer, ranks))


class BatchStream:
    """Batches of exactly `run.batch` rows. A block holds as many whole batches as fit into `data.buffer_tokens`; its rows are
    permuted by (run.seed, number of the block). At the end of the data a last partial batch is dropped.
    """

    def __init__(self, config: TrainingConfig, source: Source) -> None:
        self.config, self.source = config, source
        self.batch = config.run.batch
        self.n_rows = max(1, config.data.buffer_tokens // self.batch) * self.batch
        self._epochs = _Epochs(source.rows, config.data.epochs)
        self._first = self._epochs.state()
        self._block: Block | None = None  # allocated when it is first filled
        self._begin(0, 0)

    def next(self) -> ActivationBatch | None:
        """The next batch, on the model's device; None when the data are at their end.

        Raises InputError when the data have not enough tokens for one batch, and what the model's pass raises.
        """
        block = self._filled_block()
        start, end = self._served * self.batch, (self._served + 1) * self.batch
        if end > self._filled:
            if self._number == self._served == 0:
                raise self._too_short()
            return None
        taken = {name: block.take(name, self._order[start:end]) for name in self.source.layout.names}
        self._served += 1
        if end == self.n_rows:
            self._begin(self._number + 1, 0)
        return _batch(taken)

    def state(self) -> dict[str, Any]:
        """The position behind the last batch, as JSON-able values: a block, where it starts, and batches served of it."""
        return {
            "settings": self.source.settings,
            "shuffle": self._shuffle(),
            "block": self._number,
            "served": self._served,
            "start": self._start,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a position with bitwise the same batches; the block is made again when the next one is asked for.

        Raises CompatibilityError when the position was taken with another model, other data or another batch or buffer size.
        """
        what, advice = "the saved position in the data", "Resume with the run's own configuration, or start it anew."
        if not isinstance(state, dict):
            raise FileFormatError(f"{what} is {shortened(state)}. {advice}")
        require_same(state.get("settings"), self.source.settings, what, advice)
        require_same(state.get("shuffle"), self._shuffle(), what, advice)
        here = ("start", "block", "served")
        own = self.state()
        require_position({name: state.get(name) for name in here}, {name: own[name] for name in here}, what)
        self._epochs.restore(state["start"])
        self._begin(state["block"], state["served"])

    def statistics(self, n_tokens: int) -> Statistics:
        """Moments of the first `n_tokens` rows of the stream (all, if there are fewer); the stream stays where it is.

        The first block, if the stream is in it, is made for this and kept for training.
        Raises InputError when the data have no row at all.
        """
        moments = Moments()
        if self._number == 0:
            moments.add(self._filled_block(), min(n_tokens, self._filled))
            more, here = self._filled == self.n_rows, self._epochs.state()
        else:
            more, here = True, self._epochs.state()
            self._epochs.restore(self._first)
        if more and moments.n_tokens < n_tokens:
            block = Block(self.source.layout, self.batch, self.source.device)
            while more and moments.n_tokens < n_tokens:
                filled = self._epochs.fill(block)
                moments.add(block, min(filled, n_tokens - moments.n_tokens))
                more = filled == block.n_rows
            self._epochs.restore(here)
        if not moments.n_tokens:
            raise self._too_short()
        return moments.result()

    def _begin(self, number: int, served: int) -> None:
        """Stand in front of a block, `served` batches of which are to be skipped."""
        self._number, self._served, self._start = number, served, self._epochs.state()
        self._filled = -1  # rows of the block; -1: not made

    def _filled_block(self) -> Block:
        """The block in hand, made if it is not."""
        if self._block is None:
            data = self.config.data
            source = self.source
            self._block = Block(source.layout, self.n_rows, source.device, data.buffer_place, self.config.run.out)
        if self._filled < 0:
            self._filled = self._epochs.fill(self._block)
            key = [self.config.run.seed, SHUFFLE, self._number]
            self._order = torch.randperm(self._filled, generator=generator(key, torch.device("cpu")))
        return self._block

    def _shuffle(self) -> dict[str, int]:
        return {"run.seed": self.config.run.seed, "run.batch": self.batch, "rows of a block": self.n_rows}

    def _too_short(self) -> InputError:
        data, run = self.config.data, self.config.run
        return InputError(
            f"the data at {data.where} give {max(self._filled, 0)} tokens to train on, less than one run.batch of "
            f"{run.batch} ({self.source.rows.summary()}). "
            "Give more data, set data.epochs to null to repeat it, or lower run.batch or data.context_length."
        )


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


def _batch(taken: dict[str, Tensor]) -> ActivationBatch:
    return ActivationBatch(taken["x"], taken.get("y", taken["x"]), taken.get("direction"), taken.get("derivative"))
