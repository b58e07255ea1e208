"""Where held-out token sequences come from: the documents that a training configuration keeps for evaluation, or any file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from circuit_tracer.errors import InputError
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.text.documents import FileDocuments, open_documents
from circuit_tracer.text.json_lines import JsonLines
from circuit_tracer.text.packing import Packer
from circuit_tracer.text.parquet import ParquetFiles
from circuit_tracer.text.special import SpecialTokens
from circuit_tracer.text.text_files import TextFiles
from circuit_tracer.text.token_files import TokenFiles
from circuit_tracer.training.config import files as config_file
from circuit_tracer.training.config.schema import DataSection, EvaluationSection, TrainingConfig
from circuit_tracer.training.data.held_out import held_out_tokens

KINDS: dict[str, type[FileDocuments]] = {
    "text": TextFiles,
    "jsonl": JsonLines,
    "parquet": ParquetFiles,
    "tokens": TokenFiles,
}


def configuration(source: str) -> TrainingConfig | None:
    """The training configuration that ``source`` names: a file, a preset, or a run's folder. None: it names data."""
    path = Path(source).expanduser()
    named = path.suffix in config_file.SUFFIXES or source in config_file.preset_names()
    return config_file.load(source) if named or (path / config_file.FILE_NAME).is_file() else None


def sequences_of_configuration(config: TrainingConfig, section: EvaluationSection, tokenizer: Any) -> list[Tensor]:
    """The held-out sequences of a configuration, as many as ``section`` asks for."""
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

    kind: one of KINDS; None: by the ending. context_length: None for that of training, or the model's if it is shorter.
    Raises InputError when the kind is unknown or the files hold no text.
    """
    found_kind = kind or kind_of_file(path)
    length = context_length or min(_default_length(), parts.context_length or _default_length())
    data = DataSection(kind=cast(Any, found_kind), path=path, field=field, context_length=length)
    special = SpecialTokens.of(tokenizer)
    packer = Packer(open_documents(data, special.end), tokenizer, special, length, held_out=1.0, evaluation=True)
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


def _default_length() -> int:
    return int(DataSection.model_fields["context_length"].default)


def kind_of_file(path: str) -> str:
    suffix = Path(path).suffix
    for kind, documents in KINDS.items():
        if suffix in documents.suffixes:
            return kind
    endings = ", ".join(suffix for documents in KINDS.values() for suffix in documents.suffixes)
    raise InputError(
        f"cannot tell what {path!r} holds: it ends in {suffix or 'nothing'}. Known endings are {endings}, and .yaml and .toml "
        f"for training configurations; otherwise name the kind (--data-kind): {', '.join(KINDS)}."
    )
