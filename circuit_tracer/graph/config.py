"""What a graph remembers of its model, as plain values, so that every file format can hold it."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from circuit_tracer.errors import InputError

MOST_LAYERS = 10_000  # graphs have a node for each layer and token

# transformers' names of fields that it has too
_TRANSFORMERS = {
    "n_layers": "num_hidden_layers",
    "d_model": "hidden_size",
    "d_head": "head_dim",
    "n_heads": "num_attention_heads",
    "d_mlp": "intermediate_size",
    "d_vocab": "vocab_size",
    "n_key_value_heads": "num_key_value_heads",
    "tokenizer_name": "name_or_path",
    "model_name": "name_or_path",
    "original_architecture": "architectures",
}


@dataclass
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
        """Take the fields from any configuration object or mapping that uses these names, or transformers'; others are
        left out.

        Raises InputError if ``n_layers`` is missing or no positive integer.
        """
        source = vars(source) if isinstance(source, cls) else source
        values: dict[str, Any] = {}
        for field in fields(cls):
            value = _field(source, field.name)
            if value is not None:
                values[field.name] = (_text if field.type == "str | None" else _size)(field.name, value)
        if not 1 <= values.get("n_layers", 0) <= MOST_LAYERS:
            raise InputError(
                f"cfg.n_layers is {values.get('n_layers')}; a graph needs the number of layers of its model, at least 1 and at "
                f"most {MOST_LAYERS}"
            )
        if "dtype" in values:
            values["dtype"] = values["dtype"].removeprefix("torch.")
        return cls(**values)

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any]) -> GraphConfig:
        """circuit-tracer's name for ``of`` a mapping."""
        return cls.of(config_dict)

    def __getitem__(self, name: str) -> Any:
        """A field by name: older graph files hold a dict here, and scripts read them so."""
        return asdict(self)[name]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def _size(name: str, value: Any) -> int:
    try:
        number = operator.index(value)  # also of numpy and torch; 1.5 has none
    except (TypeError, ValueError) as error:
        raise InputError(f"cfg.{name} is a {type(value).__name__}; expected a whole number") from error
    if not 0 <= number < 2**62:
        raise InputError(f"cfg.{name} is out of range; expected a whole number from 0 on")
    return number


def _text(name: str, value: Any) -> str:
    text = value if isinstance(value, str) else str(value) if isinstance(value, torch.dtype) else None
    if text is None:
        raise InputError(f"cfg.{name} is a {type(value).__name__}; expected text")
    return text


def _field(source: Any, name: str) -> Any:
    """A field under either name, or within the text part of a configuration of several."""
    get = source.get if isinstance(source, Mapping) else lambda key: getattr(source, key, None)
    value = get(name)
    if value is None and name in _TRANSFORMERS:
        value = get(_TRANSFORMERS[name])
        value = value[0] if isinstance(value, list) and value else value
    text = get("text_config") if value is None else None
    return value if text is None else _field(text, name)
