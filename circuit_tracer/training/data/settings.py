"""What the rows of a data set depend on, as plain values.

They are kept with a cache and with a position in the data, and compared before either is used.
"""

from __future__ import annotations

from typing import Any

from circuit_tracer.fingerprint import model_fingerprint, tokenizer_fingerprint
from circuit_tracer.models.model_pass import Points
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.text.documents import Documents
from circuit_tracer.training.config.schema import TrainingConfig


def settings_of(
    config: TrainingConfig, parts: ModelParts, tokenizer: Any, documents: Documents, points: Points
) -> dict[str, Any]:
    """Everything that the rows follow from, JSON-able, by names that a message can show."""
    data = config.data
    names = ("kind", "field", "context_length", "held_out", "max_norm_ratio", "sequences_per_pass", "buffer_dtype")
    return {
        "model": model_fingerprint(parts),
        "model.dtype": str(next(parts.model.parameters()).dtype).removeprefix("torch."),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "documents": documents.fingerprint(),
        **{f"data.{name}": getattr(data, name) for name in names},
        **({} if data.mixture is None else {"parts": [[part.kind, part.field] for part in data.mixture]}),
        "layers": list(points.layers),
        "input point": points.input,
        "output point": points.output,
        "seed of directions": config.run.seed if config.sparsity.jacobian_weight > 0 else None,
    }
