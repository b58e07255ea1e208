"""What a graph remembers of the model it was traced on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and names of a model, under the field names of circuit-tracer's unified configuration."""

    n_layers: int
    d_model: int
    d_head: int
    n_heads: int
    d_mlp: int
    d_vocab: int
    tokenizer_name: str
    model_name: str
    original_architecture: str
    n_key_value_heads: int
    dtype: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a file's header."""
        return asdict(self)

    @classmethod
    def from_hf(cls, config: Any, model_name: str, dtype: str) -> ModelConfig:
        """Read the sizes off a transformers configuration (of any architecture in the table)."""
        heads = int(config.num_attention_heads)
        d_model = int(config.hidden_size)
        d_mlp = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * d_model
        return cls(
            n_layers=int(config.num_hidden_layers),
            d_model=d_model,
            d_head=int(one_of(config, "head_dim") or d_model // heads),
            n_heads=heads,
            d_mlp=int(d_mlp),
            d_vocab=int(config.vocab_size),
            tokenizer_name=model_name,
            model_name=model_name,
            original_architecture=(getattr(config, "architectures", None) or [config.model_type])[0],
            n_key_value_heads=int(one_of(config, "num_key_value_heads") or heads),
            dtype=dtype,
        )


def one_of(config: Any, name: str) -> Any:
    """An attribute of a configuration; None if it has none, or one for each layer (transformers raises RuntimeError)."""
    try:
        return getattr(config, name, None)
    except RuntimeError:
        return None
