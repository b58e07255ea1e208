"""Given rows as the trainer reads them: checked, split, filtered, and resumable at every row.

Rows are taken CHUNK at a time, counted from the first one on, whatever the shards or messages they come in: what is left out
and where a run resumes follow from row numbers alone. Letters: n rows of a chunk, S layers, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.errors import NumericalError
from circuit_tracer.text.packing import is_held_out
from circuit_tracer.training.data.block import Block
from circuit_tracer.training.data.filters import ordinary
from circuit_tracer.training.data.given.description import DOCUMENT, INPUT, OUTPUT, check_rows
from circuit_tracer.training.data.given.shards import RowSource
from circuit_tracer.training.data.norms import token_norms

CHUNK = 1024  # rows
HELD_OUT_ROWS = 256  # held out together, where the rows do not say which documents they are of


class GivenRows:
    """The rows to train on, or (evaluation) those held out. See `data.rows.Rows`.

    layers: those of the model that a row of the block has, among those of the source. held_out: share of the documents that
    are kept for evaluation, if the source has not split them itself. max_norm_ratio: rows whose input norm at any layer is
    above so many medians of their chunk are left out. Raises NumericalError for rows that are not finite.
    """

    def __init__(
        self, source: RowSource, layers: Sequence[int], held_out: float, max_norm_ratio: float, evaluation: bool
    ) -> None:
        every = source.description.layers
        self.source, self.held_out, self.max_norm_ratio, self.evaluation = source, held_out, max_norm_ratio, evaluation
        self.layers = list(layers)
        self._columns = None if self.layers == every else torch.tensor([every.index(layer) for layer in self.layers])
        self._chunks: Iterator[dict[str, Tensor]] | None = None  # behind the chunk in hand
        self._made: dict[str, Tensor] | None = None  # the chunk in hand, of which `_index` are the rows to use
        self._index = torch.empty(0, dtype=torch.int64)
        self._number = self._used = self._seen = self._kept = 0

    def rewind(self) -> None:
        """Back to the first row."""
        self.restore({"chunk": 0, "used": 0})

    def read(self, block: Block, start: int) -> int:
        """See `Rows.read`."""
        while start < block.n_rows:
            if self._made is None and not self._next_chunk():
                break
            assert self._made is not None
            taken = self._index[self._used : self._used + block.n_rows - start]
            end = start + len(taken)
            for name in block.layout.names:
                block.rows(name, start, end).copy_(self._made[name].index_select(0, taken))
            start, self._used = end, self._used + len(taken)
            if self._used == len(self._index):
                self._number, self._used, self._made = self._number + 1, 0, None
        return start

    def state(self) -> dict[str, Any]:
        """A chunk, and how many of its rows that are trained on are used."""
        return {"chunk": self._number, "used": self._used}

    def restore(self, state: dict[str, Any]) -> None:
        """See `Rows.restore`."""
        self.close()
        self._number, self._used = state["chunk"], state["used"]
        self._made = None
        self._seen = self._kept = 0

    def summary(self) -> str:
        """Rows read."""
        what = "evaluation" if self.evaluation else "training"
        return f"{self._seen} rows of {self.source.where}, {self._kept} of them for {what}"

    def close(self, patience: float | None = None) -> None:
        """End the connection, if there is one; `restore` and `rewind` begin again."""
        self._chunks = None

    def _next_chunk(self) -> bool:
        """Take the next chunk in hand that has a row to use; False at the end."""
        if self._chunks is None:
            self._chunks = self._from(self._number)
        for chunk in self._chunks:
            made = {name: self._chosen(chunk[name]) for name in self.source.description.names}
            index = self._kept_rows(chunk, made)
            self._seen, self._kept = self._seen + len(made[INPUT]), self._kept + len(index)
            if len(index) > self._used:
                self._made, self._index = made, index
                return True
            self._number, self._used = self._number + 1, 0
        self._chunks = None
        return False

    def _from(self, number: int) -> Iterator[dict[str, Tensor]]:
        """The chunks from a number on; the last one may be shorter."""
        source, waiting, n_waiting = self.source, list[dict[str, Tensor]](), 0
        for part in source.parts(number * CHUNK, self.evaluation and source.apart):
            n_rows, start = check_rows(part, source.description, source.where), 0
            while start < n_rows:
                end = min(n_rows, start + CHUNK - n_waiting)
                waiting.append({name: tensor[start:end] for name, tensor in part.items()})
                n_waiting, start = n_waiting + end - start, end
                if n_waiting == CHUNK:
                    yield _joined(waiting)
                    waiting, n_waiting = [], 0
        if waiting:
            yield _joined(waiting)

    def _chosen(self, tensor_nSD: Tensor) -> Tensor:
        return tensor_nSD if self._columns is None else tensor_nSD[:, self._columns]

    def _kept_rows(self, chunk: dict[str, Tensor], made: dict[str, Tensor]) -> Tensor:
        norms = {name: token_norms(list(tensor.unbind(1))) for name, tensor in made.items()}
        hooks = {INPUT: self.source.description.input_hook, OUTPUT: self.source.description.output_hook}
        for name, norm_nS in norms.items():
            self._require_finite(norm_nS, hooks[name])
        index = self._split(chunk).nonzero()[:, 0]
        return index[ordinary(norms[INPUT][index], self.max_norm_ratio)]

    def _require_finite(self, norm_nS: Tensor, hook: str) -> None:
        bad = (~norm_nS.isfinite()).nonzero()
        if len(bad):
            row, place = bad[0].tolist()
            raise NumericalError(
                f"the activations of {self.source.where} at {hook} of layer {self.layers[place]} are not finite in row "
                f"{self._number * CHUNK + row}: NaN or infinity where they were made, or a norm beyond float32. Write them "
                "anew; a model trained in bfloat16 cannot run in float16."
            )

    def _split(self, chunk: dict[str, Tensor]) -> Tensor:
        """Mask (n,) of the rows that are on this side of the split."""
        n_rows = len(chunk[INPUT])
        if self.source.apart:
            return torch.ones(n_rows, dtype=torch.bool)
        if DOCUMENT in chunk:
            number_n = chunk[DOCUMENT].long()
        else:
            number_n = (torch.arange(n_rows) + self._number * CHUNK) // HELD_OUT_ROWS
        numbers, place_n = number_n.unique(return_inverse=True)
        held = torch.tensor([is_held_out(int(number), self.held_out) for number in numbers], dtype=torch.bool)
        return held[place_n] == self.evaluation


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Parts one behind the other; what some of them lack is left out."""
    common = set.intersection(*(set(part) for part in parts))
    return {name: parts[0][name] if len(parts) == 1 else torch.cat([part[name] for part in parts]) for name in common}
