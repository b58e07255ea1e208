"""What a graph remembers of its model, as plain values, so that every file format can hold it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from circuit_tracer.errors import InputError


@dataclass(frozen=True)
class GraphConfig:
    """Sizes and names under circuit-tracer's field names. Only ``n_layers`` must be known; None: the source did not
    say.
    """

    n_layers: int
    d_model: int | None = None
    d_head: int | None = None
    n_heads: int | None = None
    d_mlp: int | None = None
    d_vocab: int | None = None
    tokenizer_name: str | None = None
    model_name: str | None = None
    original_architecture: str | None = None
    n_key_value_heads: int | None = None
    dtype: str | None = None

    @classmethod
    def of(cls, source: Any) -> GraphConfig:
        """Take the fields from any configuration object or mapping that uses these names; others are left out.

        Raises InputError if ``n_layers`` is missing or no positive integer.
        """
        if isinstance(source, cls):
            return source
        values: dict[str, Any] = {}
        for field in fields(cls):
            value = source.get(field.name) if isinstance(source, Mapping) else getattr(source, field.name, None)
            if value is not None:
                values[field.name] = str(value) if field.type == "str | None" else int(value)
        if values.get("n_layers", 0) < 1:
            raise InputError(
                f"cfg.n_layers is {values.get('n_layers')}; a graph needs the number of layers of its model, at least 1"
            )
        if "dtype" in values:
            values["dtype"] = values["dtype"].removeprefix("torch.")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
