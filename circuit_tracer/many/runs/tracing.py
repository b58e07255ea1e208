"""Rows to graphs: what a worker does with a model that it holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.attribution.target_text import parse_target
from circuit_tracer.errors import CircuitTracerError
from circuit_tracer.graph.graph import Graph
from circuit_tracer.many.rows import Row
from circuit_tracer.many.runs.manifest import Means, Tracing
from circuit_tracer.replacement_model import ReplacementModel


def trace_rows(model: ReplacementModel, rows: Sequence[Row], tracing: Tracing, means: Means) -> list[Graph | Exception]:
    """The graph of each row, or what was raised for it, in the order of the rows.

    Errors of the package are about the row; others are failures of ours, which stop no run either.
    """
    return [_traced(model, row, tracing, means) for row in rows]


def _traced(model: ReplacementModel, row: Row, tracing: Tracing, means: Means) -> Graph | Exception:
    try:
        options = tracing.model_dump(exclude={"chat", "chat_options", "targets"})
        found = row.targets or tracing.targets
        graph = attribute(
            token_ids(model, row, tracing),
            model,
            attribution_targets=None if found is None else [parse_target(text) for text in found],
            offload=means.offload,
            memory=means.memory,
            **options,
        )
    except CircuitTracerError as error:
        return error
    except Exception as error:
        if "CUDA error" in str(error):  # the device is lost to this process
            raise
        return error
    if graph.provenance.get("interrupted"):
        raise KeyboardInterrupt
    return graph


def token_ids(model: ReplacementModel, row: Row, tracing: Tracing) -> Tensor:
    """Token ids (P,) of a row. Raises InputError for a prompt that the model's tokenizer or chat template refuses."""
    prompt: Any = row.prompt
    if isinstance(prompt, str) and tracing.chat:
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], dict):
        return model.chat_tokens(prompt, **tracing.chat_options)
    return model.ensure_tokenized(prompt)
