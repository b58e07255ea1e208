"""One table that says how each architecture names its parts.

Everything else about a model is read from the running model itself: attention patterns come from transformers' attention
interface, norm scales from the norms' inputs. A row of this table is checked numerically when a model is loaded
(`models/verify.py`), so a wrong row is an error and never a silently wrong graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from circuit_tracer.errors import UnsupportedModelError


class NormKind(Enum):
    """How a norm scales (attribution/README.md §4.3): what multiplies r/sigma, and whether the mean is removed first."""

    RMS = "rms"  # weight
    RMS_PLUS_ONE = "rms_plus_one"  # 1 + weight (Gemma)
    LAYER = "layer"  # centred, weight, bias


class ValueRows(Enum):
    """Where the value projection sits in the module named by `Architecture.value`."""

    WHOLE = "whole"  # a projection of its own
    TAIL = "tail"  # the last rows of a fused q|k|v (Phi-3)
    CONV_TAIL = "conv_tail"  # the same, stored transposed (GPT-2's Conv1D)
    INTERLEAVED = "interleaved"  # q|k|v inside each head (GPT-NeoX)


@dataclass(frozen=True)
class Architecture:
    """Names of the parts of one architecture. Paths of `layers`, `final_norm` and `position_embedding` start at
    the causal-LM module; all others start at a layer. A norm that does not exist is None."""

    model_type: str
    norm: NormKind
    layers: str = "model.layers"
    final_norm: str = "model.norm"
    attention: str = "self_attn"
    value: str = "self_attn.v_proj"
    value_rows: ValueRows = ValueRows.WHOLE
    output: str = "self_attn.o_proj"
    mlp: str = "mlp"
    attention_norm: str | None = "input_layernorm"
    attention_post_norm: str | None = None
    mlp_norm: str | None = "post_attention_layernorm"
    mlp_post_norm: str | None = None
    position_embedding: str | None = None
    parallel_flag: str | None = None  # config attribute: attention and MLP read the same residual stream

    def is_parallel(self, config: Any) -> bool:
        """Whether this model's attention and MLP run side by side on the layer's input."""
        return bool(self.parallel_flag and getattr(config, self.parallel_flag))


_SANDWICH: dict[str, Any] = {
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}

ARCHITECTURES: dict[str, Architecture] = {
    row.model_type: row
    for row in (
        Architecture("llama", NormKind.RMS),
        Architecture("mistral", NormKind.RMS),
        Architecture("qwen2", NormKind.RMS),
        Architecture("qwen3", NormKind.RMS),
        Architecture("gemma2", NormKind.RMS_PLUS_ONE, **_SANDWICH),
        Architecture("gemma3_text", NormKind.RMS_PLUS_ONE, **_SANDWICH),
        Architecture("phi3", NormKind.RMS, value="self_attn.qkv_proj", value_rows=ValueRows.TAIL),
        Architecture(
            "olmo2",
            NormKind.RMS,
            attention_norm=None,
            attention_post_norm="post_attention_layernorm",
            mlp_norm=None,
            mlp_post_norm="post_feedforward_layernorm",
        ),
        Architecture("gpt_oss", NormKind.RMS),
        Architecture(
            "gpt2",
            NormKind.LAYER,
            layers="transformer.h",
            final_norm="transformer.ln_f",
            attention="attn",
            value="attn.c_attn",
            value_rows=ValueRows.CONV_TAIL,
            output="attn.c_proj",
            attention_norm="ln_1",
            mlp_norm="ln_2",
            position_embedding="transformer.wpe",
        ),
        Architecture(
            "gpt_neox",
            NormKind.LAYER,
            layers="gpt_neox.layers",
            final_norm="gpt_neox.final_layer_norm",
            attention="attention",
            value="attention.query_key_value",
            value_rows=ValueRows.INTERLEAVED,
            output="attention.dense",
            parallel_flag="use_parallel_residual",
        ),
    )
}


def architecture_of(config: Any) -> Architecture:
    """The table's row for a transformers configuration; UnsupportedModelError lists what is supported."""
    row = ARCHITECTURES.get(config.model_type)
    if row is None:
        raise UnsupportedModelError(
            f"architecture {config.model_type!r} ({', '.join(getattr(config, 'architectures', None) or ['?'])}) is not in "
            f"the table of architectures. Supported: {', '.join(sorted(ARCHITECTURES))}. "
            "Add a row to circuit_tracer/models/architectures.py; it is verified numerically when the model loads."
        )
    return row


def part(module: nn.Module, path: str) -> nn.Module:
    """The submodule at a dotted path; UnsupportedModelError names the path when it is missing."""
    try:
        return module.get_submodule(path)
    except AttributeError as error:
        raise UnsupportedModelError(
            f"{type(module).__name__} has no part {path!r}, which the table of architectures expects: {error}. "
            "This version of transformers, or this variant of the model, names its parts differently."
        ) from error


def value_projection(
    attention: nn.Module, rows: ValueRows, n_heads: int, n_kv: int, d_head: int
) -> tuple[Tensor, Tensor | None]:
    """Weight (n_kv * d_head, D) and bias (n_kv * d_head,) of the value projection, views where possible."""
    weight: Any = attention.weight
    bias: Any = attention.bias
    pick = _VALUE_ROWS[rows]
    return pick(weight, n_heads, n_kv, d_head), None if bias is None else pick(bias, n_heads, n_kv, d_head)


def output_projection(module: nn.Module, rows: ValueRows) -> tuple[Tensor, Tensor | None]:
    """Weight (D, H * d_head) and bias (D,) of the attention output projection."""
    weight: Any = module.weight
    bias: Any = module.bias
    return (weight.T if rows is ValueRows.CONV_TAIL else weight), bias


def _tail(tensor: Tensor, n_heads: int, n_kv: int, d_head: int) -> Tensor:
    return tensor[-n_kv * d_head :]


def _conv_tail(tensor: Tensor, n_heads: int, n_kv: int, d_head: int) -> Tensor:
    return tensor[..., -n_kv * d_head :].T if tensor.ndim == 2 else tensor[-n_kv * d_head :]


def _interleaved(tensor: Tensor, n_heads: int, n_kv: int, d_head: int) -> Tensor:
    return tensor.reshape(n_heads, 3, d_head, *tensor.shape[1:])[:, 2].reshape(n_heads * d_head, *tensor.shape[1:])


_VALUE_ROWS: dict[ValueRows, Callable[[Tensor, int, int, int], Tensor]] = {
    ValueRows.WHOLE: lambda tensor, n_heads, n_kv, d_head: tensor,
    ValueRows.TAIL: _tail,
    ValueRows.CONV_TAIL: _conv_tail,
    ValueRows.INTERLEAVED: _interleaved,
}


def float_weights(model: nn.Module) -> torch.dtype:
    """The floating dtype of the model's weights; an error for quantised ones, which cannot be read as linear maps."""
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point():
            raise UnsupportedModelError(
                f"weight {name!r} has dtype {parameter.dtype}: quantised weights are not supported. Load the model in "
                "float32 or bfloat16 (GGUF files are de-quantised on load)."
            )
    return next(model.parameters()).dtype
