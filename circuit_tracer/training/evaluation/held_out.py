"""Where held-out token sequences come from: the documents that a training configuration keeps for evaluation, or any file."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from circuit_tracer.errors import InputError
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.text.kinds import kind_of_file
from circuit_tracer.text.packing import open_packer, sequence_length
from circuit_tracer.text.source import TextSource
from circuit_tracer.training.config.schema import EvaluationSection, TrainingConfig
from circuit_tracer.training.data.held_out import held_out_tokens


def sequences_of_configuration(config: TrainingConfig, section: EvaluationSection, tokenizer: Any) -> list[Tensor]:
    """The held-out sequences of a configuration, as many as ``section`` asks for. Raises InputError when it has no text."""
    config.data.require_text()
    return held_out_tokens(config.model_copy(update={"evaluation": section}), tokenizer)


def sequences_of_files(
    path: str,
    parts: ModelParts,
    tokenizer: Any,
    tokens: int,
    kind: str | None = None,
    field: str = "text",
    context_length: int | None = None,
) -> list[Tensor]:
    """All documents of a file, folder or pattern, packed as in training, up to ``tokens`` tokens; the last may be shorter.

    kind: as in `text.source`; None: by the ending. context_length: None for that of training, or the model's if it is shorter.
    Raises InputError when the kind is unknown or the files hold no text.
    """
    source = TextSource(cast(Any, kind or kind_of_file(path)), path, field)
    length = sequence_length(context_length, parts.context_length)
    packer = open_packer(source, tokenizer, length, held_out=1.0, evaluation=True)
    found: list[Tensor] = []
    while sum(map(len, found)) < tokens:
        sequence = packer.next()
        if sequence is None:
            found += [torch.from_numpy(packer.rest)] if len(packer.rest) > 1 else []
            break
        found.append(torch.from_numpy(sequence))
    if not found:
        raise InputError(f"{path} holds no text to evaluate on ({packer.summary()}). Give a file with some sentences.")
    return found
