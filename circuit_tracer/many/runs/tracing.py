"""Rows to graphs: what a worker does with a model that it holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.attribution.target_text import parse_target
from circuit_tracer.attribution.targets import Target
from circuit_tracer.attribution.together import attribute_together
from circuit_tracer.errors import CircuitTracerError
from circuit_tracer.graph.graph import Graph
from circuit_tracer.many.rows import Row
from circuit_tracer.many.runs.manifest import Means, Tracing
from circuit_tracer.replacement_model import ReplacementModel


def trace_rows(model: ReplacementModel, rows: Sequence[Row], tracing: Tracing, means: Means) -> list[Graph | Exception]:
    """The graph of each row, or what was raised for it, in the order of the rows; short prompts are traced together.

    Errors of the package are about the row; others are failures of ours, which stop no run either.
    """
    found: dict[int, Graph | Exception] = {}
    asked: dict[int, tuple[Tensor, list[Target] | None]] = {}
    for number, row in enumerate(rows):
        try:
            asked[number] = token_ids(model, row, tracing), targets_of(row, tracing)
        except CircuitTracerError as error:
            found[number] = error
    found |= zip(asked, _traced(model, list(asked.values()), tracing, means), strict=True)
    return [found[number] for number in range(len(rows))]


def _traced(
    model: ReplacementModel, asked: list[tuple[Tensor, list[Target] | None]], tracing: Tracing, means: Means
) -> Sequence[Graph | Exception]:
    """Together where that goes; one by one what is read again from disk, and where one fails in a way that nobody foresaw."""
    options = tracing.model_dump(exclude={"chat", "chat_options", "targets"}) | {"memory": means.memory}
    if means.offload is None:
        prompts, targets = [ids for ids, _ in asked], [each for _, each in asked]
        try:
            return attribute_together(prompts, model, attribution_targets=targets, **options)
        except Exception as error:
            _require_device(error)
    return [
        _alone(model, ids, {**options, "attribution_targets": each, "offload": means.offload}) for ids, each in asked
    ]


def _alone(model: ReplacementModel, ids: Tensor, options: dict[str, Any]) -> Graph | Exception:
    try:
        graph = attribute(ids, model, **options)
    except Exception as error:
        _require_device(error)
        return error
    if graph.provenance.get("interrupted"):
        raise KeyboardInterrupt
    return graph


def _require_device(error: Exception) -> None:
    """Raise an error after which the device is lost to this process."""
    if "CUDA error" in str(error):
        raise error


def targets_of(row: Row, tracing: Tracing) -> list[Target] | None:
    """What is explained: the row's targets, else the run's, else None, the most probable tokens. Raises InputError."""
    texts = row.targets or tracing.targets
    return None if texts is None else [parse_target(text) for text in texts]


def token_ids(model: ReplacementModel, row: Row, tracing: Tracing) -> Tensor:
    """Token ids (P,) of a row. Raises InputError for a prompt that the model's tokenizer or chat template refuses."""
    prompt: Any = row.prompt
    if isinstance(prompt, str) and tracing.chat:
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], dict):
        return model.chat_tokens(prompt, **tracing.chat_options)
    return model.ensure_tokenized(prompt)
