"""The text that features are looked at on, by name: files, or the training documents of a configuration."""

from __future__ import annotations

from typing import Any, cast

from circuit_tracer.models.parts import ModelParts
from circuit_tracer.text.corpus import Corpus, SeparateDocuments
from circuit_tracer.text.kinds import kind_of_file, open_documents
from circuit_tracer.text.packing import open_packer, sequence_length
from circuit_tracer.text.source import AnySource, TextSource
from circuit_tracer.text.special import SpecialTokens
from circuit_tracer.training.config.files import configuration


def open_corpus(
    source: str,
    parts: ModelParts,
    tokenizer: Any,
    *,
    kind: str | None = None,
    field: str = "text",
    context_length: int | None = None,
    separate: bool = False,
) -> Corpus:
    """The corpus that ``source`` names: files of text, JSONL, parquet or token ids, or the training documents of a
    configuration (file, preset or run folder).

    Args:
        source: A path, an address, a preset's name or a run's folder.
        parts: The model's parts (`model.parts`).
        tokenizer: The model's.
        kind: As in a configuration's section data, for files.
        field: As in a configuration's section data, for files.
        context_length: Default that of training, or the model's if it is shorter.
        separate: A sequence a document, not packed.

    Returns:
        The corpus, read when it is iterated over.

    Raises:
        InputError: For what cannot be read.
    """
    config = configuration(source)
    if config is None:
        text: AnySource = TextSource(cast(Any, kind or kind_of_file(source)), source, field)
        length, held_out, evaluation = sequence_length(context_length, parts.context_length), 1.0, True
    else:
        text, held_out, evaluation = config.data.source, config.data.held_out, False
        length = sequence_length(context_length, parts.context_length, config.data.context_length)
    if not separate:
        return open_packer(text, tokenizer, length, held_out, evaluation)
    special = SpecialTokens.of(tokenizer)
    return SeparateDocuments(open_documents(text, special.end), tokenizer, special, length)
