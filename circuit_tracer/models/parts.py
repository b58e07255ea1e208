"""A loaded transformers model bound to its row of the table: modules and weights of every layer, ready to hook and read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from circuit_tracer.errors import UnsupportedModelError
from circuit_tracer.models.architectures import (
    Architecture,
    architecture_of,
    float_weights,
    output_projection,
    part,
    value_projection,
)
from circuit_tracer.models.config import ModelConfig
from circuit_tracer.models.norms import NormParameters


@dataclass(frozen=True)
class Norm:
    """A norm module and its parameters in the compute dtype."""

    module: nn.Module
    parameters: NormParameters


@dataclass(frozen=True)
class LayerParts:
    """Modules of one layer; a norm that the architecture does not have is None."""

    module: nn.Module
    attention: nn.Module
    output: nn.Module  # the projection that follows the heads
    mlp: nn.Module
    attention_norm: Norm | None
    attention_post_norm: Norm | None
    mlp_norm: Norm | None
    mlp_post_norm: Norm | None
    value_weight: Tensor  # (H_kv * d_head, D)
    value_bias: Tensor | None
    output_weight: Tensor  # (D, H * d_head)
    output_bias: Tensor | None

    def norms(self) -> dict[str, Norm]:
        """The layer's norms by name, those that exist."""
        names = ("attention_norm", "attention_post_norm", "mlp_norm", "mlp_post_norm")
        return {name: norm for name in names if (norm := getattr(self, name)) is not None}


@dataclass(frozen=True)
class ModelParts:
    """A causal LM taken apart: what the frozen network and the hooks need of it, and nothing else."""

    model: Any
    architecture: Architecture
    config: ModelConfig
    layers: list[LayerParts]
    final_norm: Norm
    unembed: nn.Linear
    parallel: bool
    final_softcap: float | None
    context_length: int | None
    compute_dtype: torch.dtype  # float64 for a float64 model, else float32

    @property
    def device(self) -> torch.device:
        """Where the model's first weights live."""
        device: torch.device = next(self.model.parameters()).device
        return device


def bind(model: Any, model_name: str) -> ModelParts:
    """Resolve every part of a transformers causal LM named in its row of the table.

    Raises UnsupportedModelError for an unknown architecture, a missing part, or quantised weights.
    """
    config = model.config
    architecture = architecture_of(config)
    dtype = float_weights(model)
    compute = torch.float64 if dtype is torch.float64 else torch.float32
    sizes = ModelConfig.from_hf(config, model_name, str(dtype).removeprefix("torch."))
    blocks = part(model, architecture.layers)
    layers = [_bind_layer(block, architecture, sizes, compute) for block in blocks.children()]
    if len(layers) != sizes.n_layers:
        raise UnsupportedModelError(
            f"{architecture.layers} has {len(layers)} layers, the configuration says {sizes.n_layers}"
        )
    return ModelParts(
        model=model,
        architecture=architecture,
        config=sizes,
        layers=layers,
        final_norm=_bind_norm(model, architecture.final_norm, architecture, compute),
        unembed=model.get_output_embeddings(),
        parallel=architecture.is_parallel(config),
        final_softcap=getattr(config, "final_logit_softcapping", None),
        context_length=getattr(config, "max_position_embeddings", None),
        compute_dtype=compute,
    )


def _bind_norm(module: nn.Module, path: str, architecture: Architecture, dtype: torch.dtype) -> Norm:
    norm = part(module, path)
    return Norm(norm, NormParameters.read(norm, architecture.norm, dtype))


def _bind_layer(block: nn.Module, row: Architecture, sizes: ModelConfig, dtype: torch.dtype) -> LayerParts:
    def norm(path: str | None) -> Norm | None:
        return None if path is None else _bind_norm(block, path, row, dtype)

    value_weight, value_bias = value_projection(
        part(block, row.value), row.value_rows, sizes.n_heads, sizes.n_key_value_heads, sizes.d_head
    )
    output = part(block, row.output)
    output_weight, output_bias = output_projection(output, row.value_rows)
    expected = (sizes.n_key_value_heads * sizes.d_head, sizes.d_model)
    if tuple(value_weight.shape) != expected:
        raise UnsupportedModelError(f"value projection has shape {tuple(value_weight.shape)}, expected {expected}")
    return LayerParts(
        module=block,
        attention=part(block, row.attention),
        output=output,
        mlp=part(block, row.mlp),
        attention_norm=norm(row.attention_norm),
        attention_post_norm=norm(row.attention_post_norm),
        mlp_norm=norm(row.mlp_norm),
        mlp_post_norm=norm(row.mlp_post_norm),
        value_weight=value_weight.detach(),
        value_bias=None if value_bias is None else value_bias.detach(),
        output_weight=output_weight.detach(),
        output_bias=None if output_bias is None else output_bias.detach(),
    )
