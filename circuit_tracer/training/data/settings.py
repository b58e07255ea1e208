"""What the rows of a data set depend on, as plain values.

They are kept with a cache and with a position in the data, and compared before either is used.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from circuit_tracer.errors import CompatibilityError
from circuit_tracer.fingerprint import model_fingerprint
from circuit_tracer.models.model_pass import Points
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.text.documents import Documents
from circuit_tracer.text.special import SpecialTokens
from circuit_tracer.training.config.schema import TrainingConfig

PROBE = "The capital of France is Paris.\n\tdéjà vu 東京 12345 !?"


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
        "layers": list(points.layers),
        "input point": points.input,
        "output point": points.output,
        "seed of directions": config.run.seed if config.sparsity.jacobian_weight > 0 else None,
    }


def require_same(found: Any, expected: dict[str, Any], what: str, advice: str) -> None:
    """Raise CompatibilityError, naming each setting that differs, unless `found` equals `expected`."""
    found = found if isinstance(found, dict) else {}
    expected = json.loads(json.dumps(expected))
    differing = [
        f"{name} is {found.get(name)!r} there and {expected.get(name)!r} here"
        for name in sorted({*found, *expected})
        if found.get(name) != expected.get(name)
    ]
    if differing:
        raise CompatibilityError(f"{what} belongs to another model or other data: {'; '.join(differing)}. {advice}")


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Digest of a vocabulary, its special tokens, and what becomes of one text; "none" without a tokenizer."""
    if tokenizer is None:
        return "none"
    special = SpecialTokens.of(tokenizer)
    ids = tokenizer(PROBE, add_special_tokens=False, verbose=False).input_ids
    described = [sorted(tokenizer.get_vocab().items()), special.first, special.end, special.pad, list(ids)]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]
