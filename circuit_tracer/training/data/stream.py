"""The stream of batches that the trainer consumes: rows in blocks, each block permuted, epoch after epoch.

Letters: N rows of a block, B tokens of a batch, S source layers, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.errors import FileFormatError, InputError, shortened
from circuit_tracer.fingerprint import require_same
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.text.position import require_position
from circuit_tracer.training.config.schema import TrainingConfig
from circuit_tracer.training.data.ahead import Ahead
from circuit_tracer.training.data.batch import ActivationBatch
from circuit_tracer.training.data.block import Block
from circuit_tracer.training.data.shuffle import ShuffledRows
from circuit_tracer.training.data.source import Source, open_source
from circuit_tracer.training.data.statistics import Statistics
from circuit_tracer.training.feature_ranks import FeatureRanks

BATCHES_AHEAD = 1  # made by a thread while the one before is trained on
PATIENCE = 10.0  # seconds that the end of a run waits for a thread, which may be reading from a network


def open_stream(config: TrainingConfig, parts: ModelParts, tokenizer: Any, ranks: FeatureRanks) -> BatchStream:
    """The training batches of a configuration; `tokenizer` may be None for token files.

    The model does not run before the first batch.

    Args:
        config: The training configuration.
        parts: The model's parts (`model.parts`).
        tokenizer: Its tokenizer.
        ranks: The processes that share the features.

    Returns:
        The stream, at its beginning.

    Raises:
        InputError: For data, layers or a context length that cannot be.
        CompatibilityError: For points the model has not or a cache of something else.
        CircuitTracerError: When an extra is missing.
    """
    return BatchStream(config, open_source(config, parts, tokenizer, ranks))


class BatchStream:
    """Batches of exactly `run.batch` rows, or this rank's share of them. A block holds as many whole batches as fit into
    `data.buffer_tokens`; its rows are permuted by (run.seed, number of the block). At the end of the data a last partial batch
    is dropped.

    Where the source says so, a thread makes the next batches meanwhile; they and every position are the same without it.
    """

    def __init__(self, config: TrainingConfig, source: Source) -> None:
        self.config, self.source = config, source
        self.batch = config.run.batch
        n_rows = max(1, config.data.buffer_tokens // self.batch) * self.batch

        def allocate(n_rows: int, waits: bool) -> Block:
            place, device = config.data.buffer_place, source.device
            if place == "disk" and not waits:
                place, device = "device", torch.device("cpu")
            return Block(source.layout, n_rows, device, place, config.run.out)

        self._shuffled = ShuffledRows(
            source.rows, config.data.epochs, self.batch, n_rows, config.run.seed, config.steps, source.tokens, allocate
        )
        self._ahead: Ahead[_Placed] | None = None  # begun when the first batch is asked for
        self._position = self._shuffled.state()  # behind the last batch handed out

    def next(self) -> ActivationBatch | None:
        """The next batch, on the model's device; None when the data are at their end.

        Raises InputError when the data have not enough tokens for one batch, and what the model's pass raises.
        """
        if self._ahead is None:
            self._ahead = Ahead(
                partial(_placed, self._shuffled),
                BATCHES_AHEAD if self.source.ahead else 0,
                self.source.device,
                lambda placed: placed.taken.values(),
            )
        placed = self._ahead.next()
        if placed is None:
            if self._shuffled.too_short:
                raise self._too_short()
            self._position = self._shuffled.state()
            return None
        self._position = placed.behind
        return _batch(placed.taken)

    def state(self) -> dict[str, Any]:
        """The position behind the last batch, as JSON-able values: a block, where it starts, and batches served of it."""
        return {"settings": self.source.settings, "shuffle": self._shuffle(), **self._position}

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
        position = {name: state.get(name) for name in here}
        require_position(position, {name: self._position[name] for name in here}, what)
        self._go_to(position)

    def statistics(self, n_tokens: int) -> Statistics:
        """Moments of the first `n_tokens` rows of the stream (all, if there are fewer); the stream stays where it is.

        The first block, if the stream is in front of it, is made for this and kept for training.
        Raises InputError when the data have no row at all.
        """
        if self._ahead is not None and self.source.ahead:
            self._go_to(self._position)  # the thread has gone further
        moments = self._shuffled.moments(n_tokens)
        if not moments.n_tokens:
            raise self._too_short()
        return moments.result()

    def close(self) -> None:
        """End the threads that read ahead. The stream can be restored all the same."""
        if self._ahead is not None:
            self._ahead.close(PATIENCE)
            self._ahead = None
        self.source.rows.close(PATIENCE)

    def _go_to(self, position: dict[str, Any]) -> None:
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None
        self._shuffled.restore(position)
        self._position = position

    def _shuffle(self) -> dict[str, int]:
        return {
            "run.seed": self.config.run.seed,
            "run.batch": self.batch,
            "rows of a block": self._shuffled.n_rows,
        }

    def _too_short(self) -> InputError:
        data, run = self.config.data, self.config.run
        repeat = "" if data.epochs is None else "set data.epochs to null to repeat it, "
        return InputError(
            f"the data at {data.where} give {self._shuffled.n_rows_found} tokens to train on, less than one run.batch of "
            f"{run.batch} ({self.source.rows.summary()}). "
            f"Give more data, {repeat}or lower run.batch or data.context_length."
        )


@dataclass(frozen=True)
class _Placed:
    """A batch by name, and the position behind it."""

    taken: dict[str, Tensor]
    behind: dict[str, Any]


def _placed(shuffled: ShuffledRows) -> _Placed | None:
    taken = shuffled.next()
    return None if taken is None else _Placed(taken, shuffled.state())


def _batch(taken: dict[str, Tensor]) -> ActivationBatch:
    return ActivationBatch(taken["x"], taken.get("y", taken["x"]), taken.get("direction"), taken.get("derivative"))
