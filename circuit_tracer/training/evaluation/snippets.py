"""Prompts cut from held-out text, for graphs: chosen by what the model makes of them, never by the dictionary (README.md §3).

Letters: W windows, P positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.models.capture import logits_at
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.models.tokenization import tokenize
from circuit_tracer.training.evaluation.passes import run
from circuit_tracer.training.evaluation.replacement import FILTER_PROBABILITY, LOGIT_BYTES
from circuit_tracer.training.evaluation.sequences import Sequences

LENGTH = 12  # tokens of a window, without a special one in front
LEAST = 6  # tokens of a prompt
LEAST_PROBABILITY = 0.2
LOOKED_AT = 32  # windows, for each prompt wanted


def held_out_prompts(parts: ModelParts, tokenizer: Any, sequences: Sequences, count: int) -> list[Tensor]:
    """Up to `count` prompts (P,), fewer if so many are not found: of each window the longest start after which the model's most
    probable token is the true one, at a probability between `LEAST_PROBABILITY` and `FILTER_PROBABILITY`; windows in which it
    is only surer than that come last.

    Windows do not overlap; the first ones of all sequences come before the second ones. Without special tokens but in front.
    """
    found: list[Tensor] = []
    sure: list[Tensor] = []
    at_once = max(1, LOGIT_BYTES // (4 * parts.config.d_vocab * (LENGTH + 1)))
    waiting: dict[int, list[Tensor]] = {}
    for window in islice(_windows(sequences), LOOKED_AT * count):
        if len(found) >= count:
            break
        ids = tokenize(window, tokenizer)
        group = waiting.setdefault(len(ids), [])
        group.append(ids)
        if len(group) == min(at_once, count):
            _cut(parts, torch.stack(waiting.pop(len(ids))), found, sure)
    for group in waiting.values():
        _cut(parts, torch.stack(group), found, sure)
    return [*found, *sure][:count]


def _windows(sequences: Sequences) -> Iterator[Tensor]:
    """Each with the token that follows it, up to the first special token behind its start."""
    dropped = torch.tensor(sequences.dropped)
    for start in range(0, max(map(len, sequences.ids)), LENGTH):
        for ids in sequences.ids:
            window = ids[start : start + LENGTH + 1]
            (special,) = torch.isin(window[1:], dropped).nonzero(as_tuple=True)
            window = window if not len(special) else window[: int(special[0]) + 1]
            if len(window) > LEAST:
                yield window


def _cut(parts: ModelParts, ids_WP: Tensor, found: list[Tensor], sure: list[Tensor]) -> None:
    """Append the prompts in windows of one length, to either list."""
    width = ids_WP.shape[1]
    best = logits_at(parts, run(parts, ids_WP)).softmax(-1).max(-1)
    probability_WP, token_WP = best.values.view(-1, width).cpu(), best.indices.view(-1, width).cpu()
    right_WP = probability_WP >= LEAST_PROBABILITY
    right_WP[:, :-1] &= token_WP[:, :-1] == ids_WP[:, 1:]
    right_WP[:, -1], right_WP[:, : LEAST - 1] = False, False
    unsure_WP = right_WP & (probability_WP <= FILTER_PROBABILITY)
    for ids, unsure, right in zip(ids_WP, _last(unsure_WP), _last(right_WP), strict=True):
        if unsure >= 0:
            found.append(ids[: unsure + 1])
        elif right >= 0:
            sure.append(ids[: right + 1])


def _last(mask_WP: Tensor) -> list[int]:
    """The last position of each row that is set; -1: none."""
    found: list[int] = torch.where(mask_WP, torch.arange(mask_WP.shape[1]), -1).amax(1).tolist()
    return found


def as_text(ids: Tensor, tokenizer: Any) -> str:
    """A prompt of tokens for people, without the special one in front."""
    if tokenizer is None:
        return " ".join(map(str, ids.tolist()))
    return str(tokenizer.decode(ids, skip_special_tokens=True))
