"""Text that training never sees, as tokens and as activations. Letters: P positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from circuit_tracer.errors import InputError
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.text.packing import open_packer
from circuit_tracer.training.config.schema import TrainingConfig
from circuit_tracer.training.data.batch import ActivationBatch
from circuit_tracer.training.data.block import Block
from circuit_tracer.training.data.source import open_source
from circuit_tracer.training.feature_ranks import FeatureRanks


def held_out_tokens(config: TrainingConfig, tokenizer: Any) -> list[Tensor]:
    """Packed sequences (P,) int64 of the documents kept for evaluation: as many as `evaluation.tokens` and
    `evaluation.replacement_tokens` ask for, or as there are; a single shorter one when they do not fill a sequence.

    None for activations that were given, whose text is not known.

    Args:
        config: The training configuration.
        tokenizer: The model's; None for token files.

    Returns:
        Sequences (P,) int64.

    Raises:
        InputError: When no document is kept.
    """
    if config.data.kind == "activations":
        return []
    wanted = max(config.evaluation_tokens, config.evaluation.replacement_tokens)
    data, found = config.data, list[Tensor]()
    packer = open_packer(data.source, tokenizer, data.context_length, data.held_out, evaluation=True)
    while len(found) * data.context_length < wanted and (sequence := packer.next()) is not None:
        found.append(torch.from_numpy(sequence))
    if not found and len(packer.rest) > 1:
        found.append(torch.from_numpy(packer.rest))
    if not found:
        raise _nothing(config, packer.summary())
    return found


def held_out_activations(config: TrainingConfig, parts: ModelParts, tokenizer: Any, n_tokens: int) -> ActivationBatch:
    """The first `n_tokens` rows of `held_out_tokens` without its limit (fewer if there are fewer), filtered as in training, in
    the host's memory.

    Args:
        config: The training configuration.
        parts: The model's parts (`model.parts`).
        tokenizer: The model's; None for token files.
        n_tokens: How many rows.

    Returns:
        The rows, (N, S, D) on both sides.

    Raises:
        InputError: When there are none.
    """
    if config.data.kind != "activations":
        length = len(_first_sequence(config, tokenizer))
        config = config.model_copy(update={"data": config.data.model_copy(update={"context_length": length})})
    source = open_source(config, parts, tokenizer, FeatureRanks(), evaluation=True)
    block = Block(source.layout, n_tokens, torch.device("cpu"))
    end = source.rows.read(block, 0)
    if not end:
        raise _nothing(config, source.rows.summary())
    rows = {name: block.rows(name, 0, end).float() for name in source.layout.names}
    return ActivationBatch(rows["x"], rows.get("y", rows["x"]), rows.get("direction"), rows.get("derivative"))


def _first_sequence(config: TrainingConfig, tokenizer: Any) -> Tensor:
    evaluation = config.evaluation.model_copy(update={"tokens": 1, "replacement_tokens": 0})
    return held_out_tokens(config.model_copy(update={"evaluation": evaluation}), tokenizer)[0]


def _nothing(config: TrainingConfig, summary: str) -> InputError:
    return InputError(
        f"the data at {config.data.where} hold nothing to evaluate on ({summary}). "
        "Give more data, raise data.held_out, or lower data.context_length."
    )
