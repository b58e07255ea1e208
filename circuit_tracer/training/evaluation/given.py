"""Evaluation where the model is not here: reconstruction alone, on held-out activations that were made elsewhere.

Letters: N tokens, S layers of the dictionary, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.errors import InputError
from circuit_tracer.models.surroundings import plain_torch
from circuit_tracer.training.data.block import Block
from circuit_tracer.training.data.source import Source
from circuit_tracer.training.evaluation.activations import Batch
from circuit_tracer.training.evaluation.evaluate import describe, measured_with
from circuit_tracer.training.evaluation.reconstruction import measure
from circuit_tracer.training.evaluation.results import DICTIONARY, RANDOM, DictionaryResult, Evaluation
from circuit_tracer.training.evaluation.settings import EvaluationSettings
from circuit_tracer.transcoders.base import Transcoders
from circuit_tracer.transcoders.random_dictionary import random_baseline

HOW_TO_GO_ON = (
    "Replacement and graphs: the model is not here, and only activations of it are; circuit-tracer evaluate measures them, on "
    "text, where it is."
)


@dataclass
class HeldOutRows:
    """The first held-out rows of a source as `Activations`: at most ``tokens`` of them."""

    source: Source
    tokens: int
    sample_tokens: int
    batch_tokens: int
    _read: int = field(default=0, init=False)

    def sample(self) -> tuple[Tensor, Tensor]:
        """The first rows. Raises InputError when there are none."""
        for batch in self._batches(min(self.sample_tokens, self.tokens)):
            return batch
        raise InputError(f"there is nothing to evaluate on ({self.source.rows.summary()}); raise data.held_out")

    def batches(self) -> Iterator[Batch]:
        """All of them, in order."""
        self._read = 0
        for x_NSD, y_NSD in self._batches(self.batch_tokens):
            self._read += len(x_NSD)
            yield Batch(x_NSD, y_NSD)

    def describe(self) -> dict[str, Any]:
        """How many, and of what."""
        return {"activations_given": self._read, **self.source.settings}

    def _batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        source, names, left = self.source, self.source.layout.names, self.tokens
        source.rows.rewind()
        while left:
            block = Block(source.layout, min(size, left), source.device)
            end = source.rows.read(block, 0)
            if end:
                x_NSD, y_NSD = (block.rows(name, 0, end).float() for name in (names[0], names[-1]))
                yield x_NSD, y_NSD
            if end < block.n_rows:
                return
            left -= end


@plain_torch()
@torch.no_grad()
def evaluate_given(
    transcoders: Transcoders,
    rows: Source,
    settings: EvaluationSettings,
    *,
    model: str,
    layers: Sequence[int],
    conditions: Mapping[str, Any],
) -> Evaluation:
    """Measure ``transcoders``, and a random dictionary if it is asked for, on held-out rows of a source."""
    activations = HeldOutRows(rows, settings.tokens, settings.calibration_tokens, settings.batch_tokens)
    dictionaries = {DICTIONARY: transcoders}
    if settings.random_baseline:
        dictionaries[RANDOM] = random_baseline(transcoders, activations.sample(), settings.seed)
    found, _ = measure(dictionaries, activations)
    said = {
        "model": model,
        "architecture": "unknown",
        "model_dtype": "an unknown number format",
        "layers": list(layers),
        **measured_with(transcoders, rows.device, settings),
        "data": activations.describe(),
        **conditions,
    }
    return Evaluation(
        conditions=said,
        results={name: DictionaryResult(describe(one), found[name]) for name, one in dictionaries.items()},
        not_measured=[HOW_TO_GO_ON],
    )
