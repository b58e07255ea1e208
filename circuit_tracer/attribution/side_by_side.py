"""Several short prompts made linear together: one pass of the model, one reading of encoder and decoder.

The prompts lie on one axis of positions, one behind the other (`models/side_patterns.py`), so that whatever is done position by
position is done once for all, and only attention knows whose a position is. What comes out is each prompt's own `LinearPrompt`,
made of views, and the network of them all, through which rows of several prompts are swept (sweep.py).

Letters: B prompts, n positions of all, L layers, D d_model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from circuit_tracer.attribution.decoder_rows import CHUNK_BYTES, DecoderRows, read_decoder_rows
from circuit_tracer.attribution.prompt import LinearPrompt, constants, encode, errors, reconstruction, replacing
from circuit_tracer.attribution.read_out import ReadOut
from circuit_tracer.attribution.sources import SourceTable
from circuit_tracer.errors import CircuitTracerError
from circuit_tracer.models.capture import PromptCapture, capture_several, require_finite
from circuit_tracer.models.frozen import FrozenNetwork
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.transcoders.active import ActiveFeatures
from circuit_tracer.transcoders.base import Transcoders


class SomeCannotBeTraced(Exception):
    """Some of the prompts, by number, fail; by themselves each of them says why."""

    def __init__(self, numbers: list[int]) -> None:
        super().__init__(numbers)
        self.numbers = numbers


@dataclass(frozen=True)
class EncodedPrompts:
    """Captured prompts and their active features; nothing of the decoder has been read yet."""

    network: FrozenNetwork  # of all of them
    captured: list[FrozenNetwork]  # of each
    active: ActiveFeatures  # of all, by position among the n
    keep: Tensor  # (n,) positions that have features and errors
    start: list[int]  # (B + 1,) where each begins

    def of_prompt(self, number: int) -> ActiveFeatures:
        """The active features of one prompt, by its own positions."""
        position = self.active.position - self.start[number]
        here = (position >= 0) & (position < self.start[number + 1] - self.start[number])
        return ActiveFeatures(self.active.layer[here], position[here], self.active.index[here], self.active.value[here])

    @property
    def counts_Ln(self) -> Tensor:
        """How many features are active at each layer and position."""
        shape = self.network.n_layers, self.start[-1]
        cell = self.active.layer * shape[1] + self.active.position
        return torch.bincount(cell, minlength=shape[0] * shape[1]).view(shape)


def encode_prompts(
    parts: ModelParts, transcoders: Transcoders, ids: Sequence[Tensor], left_out: Sequence[Sequence[int]]
) -> EncodedPrompts:
    """Run the model once on B prompts, each (P_b,), and find their active features outside the `left_out` positions.

    Raises SomeCannotBeTraced for prompts with activations that are not finite or without any active feature.
    """
    transcoders = replacing(parts, transcoders)
    captured = capture_several(parts, ids)
    hooks = transcoders.feature_input_hook, transcoders.feature_output_hook
    start = [0, *torch.tensor([len(each) for each in ids]).cumsum(0).tolist()]
    own = [captured.of_prompt(number, *ends) for number, ends in enumerate(pairwise(start))]
    if failing := [number for number, one in enumerate(own) if not _is_finite(one)]:
        raise SomeCannotBeTraced(failing)
    network, keep = FrozenNetwork(parts, captured, *hooks), torch.ones(start[-1], dtype=torch.bool)
    for first, dropped in zip(start, left_out, strict=False):
        keep[[first + position for position in dropped]] = False
    active = encode(network, transcoders, keep)
    found = EncodedPrompts(network, [FrozenNetwork(parts, one, *hooks) for one in own], active, keep, start)
    counts = found.counts_Ln.sum(0)
    if failing := [number for number, (first, last) in enumerate(pairwise(start)) if not counts[first:last].any()]:
        raise SomeCannotBeTraced(failing)
    return found


def linearise_prompts(encoded: EncodedPrompts, transcoders: Transcoders, every_row: bool) -> list[LinearPrompt]:
    """Read the decoder rows of the active features of all prompts once, and know each prompt's errors and constants.

    every_row: each feature is to have a row; then encoder rows are read once as well.
    """
    network, start, keep = encoded.network, encoded.start, encoded.keep
    transcoders = replacing(network.parts, transcoders)
    sources = SourceTable.of(encoded.active, transcoders, start[-1])
    decoder, features = read_decoder_rows(sources, transcoders, network, keep=True, side_by_side=True)
    skips, error = errors(network, transcoders, features, keep)
    inputs, final = constants(network, transcoders, skips, keep)
    every = torch.arange(len(encoded.active) if every_row else 0)
    reads = ReadOut.of_features(transcoders, network, encoded.active, every)
    prompts = []
    for number, (first, last) in enumerate(pairwise(start)):
        here, own, active = slice(first, last), encoded.captured[number], encoded.of_prompt(number)
        rows = [decoder.between(layer, first, last) for layer in range(network.n_layers)]
        table = SourceTable.of(active, transcoders, last - first)
        quality = reconstruction(own, transcoders, active, error[:, here], keep[here])
        prompts.append(
            LinearPrompt(
                own,
                DecoderRows(table, transcoders, own, CHUNK_BYTES, rows),
                skips,
                error[:, here],
                [each[here] for each in inputs],
                final[here],
                quality,
                keep[here],
                reads=_of_prompt(reads, first, last) if every_row else None,
            )
        )
    return prompts


def _of_prompt(reads: ReadOut, first: int, last: int) -> ReadOut:
    """What is read at some positions, which become 0, 1, ..."""
    own = reads.take(torch.nonzero((reads.position >= first) & (reads.position < last)).flatten())
    return replace(own, position=own.position - first)


def _is_finite(captured: PromptCapture) -> bool:
    try:
        require_finite(captured)
    except CircuitTracerError:
        return False
    return True
