"""One table that says how each architecture names its parts.

Everything else about a model is read from the running model itself: attention patterns come from transformers' attention
interface, norm scales from the norms' inputs. A row of this table is checked numerically when a model is loaded
(`models/verify.py`), so a wrong row is an error and never a silently wrong graph. Which modules may be read as their weights
alone is decided by what they are (`models/plain.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from torch import nn

from circuit_tracer.errors import InputError, UnsupportedModelError


class NormKind(Enum):
    """How a norm scales (attribution/README.md §4.3): what multiplies r/sigma, and whether the mean is removed first.

    A norm without weight or bias has the factor one and no shift.
    """

    RMS = "rms"  # weight
    RMS_PLUS_ONE = "rms_plus_one"  # 1 + weight (Gemma)
    LAYER = "layer"  # centred, weight, bias
    LAYER_PLUS_ONE = "layer_plus_one"  # centred, 1 + weight, bias (Nemotron)


class ValueRows(Enum):
    """Where the value projection sits in the module named by `Architecture.value`."""

    WHOLE = "whole"  # a projection of its own
    TAIL = "tail"  # the last rows of a fused q|k|v (Phi-3, GPT-2)
    INTERLEAVED = "interleaved"  # q|k|v inside each head (GPT-NeoX)


@dataclass(frozen=True)
class Architecture:
    """Names of the parts of one architecture. Paths of `layers`, `final_norm` and `position_embedding` start at
    the causal-LM module; all others start at a layer. A norm that does not exist is None.

    Fields that end in `_key` name an attribute of the configuration, so that variants of a family differ by what their
    config.json says. `required`: attributes, the value that each must have, and what another one means.
    """

    model_type: str
    norm: NormKind
    norm_epsilon: float | None = None  # where the norms do not say
    layers: str = "model.layers"
    final_norm: str = "model.norm"
    attention: str = "self_attn"
    value: str = "self_attn.v_proj"
    value_rows: ValueRows = ValueRows.WHOLE
    output: str = "self_attn.o_proj"
    mlp: str = "mlp"
    mlp_output: str | None = None  # the module that gives what the MLP gives, where `mlp` only begins it
    attention_norm: str | None = "input_layernorm"
    attention_post_norm: str | None = None
    mlp_norm: str | None = "post_attention_layernorm"
    mlp_norm_if_parallel: str | None = None  # where that is another norm
    mlp_post_norm: str | None = None
    position_embedding: str | None = None
    parallel: bool = False  # attention and MLP read the same residual stream
    parallel_flag: str | None = None  # the attribute that says so
    residual_multiplier_key: str | None = (
        None  # what attention and MLP give is multiplied by it on its way to the stream
    )
    logit_multiplier_key: str | None = None
    logit_divisor_key: str | None = None
    required: tuple[tuple[str, Any, str], ...] = ()
    package: str = "transformers.models."  # where classes of the model's modules are defined, besides transformers

    def is_parallel(self, config: Any) -> bool:
        """Whether this model's attention and MLP run side by side on the layer's input."""
        return self.parallel or bool(self.parallel_flag and getattr(config, self.parallel_flag))

    def mlp_norm_of(self, config: Any) -> str | None:
        """The path of the norm in front of the MLP."""
        return self.mlp_norm_if_parallel if self.mlp_norm_if_parallel and self.is_parallel(config) else self.mlp_norm

    def residual_multiplier(self, config: Any) -> float:
        """What multiplies everything that is added to the residual stream."""
        return float(getattr(config, self.residual_multiplier_key)) if self.residual_multiplier_key else 1.0

    def logit_multiplier(self, config: Any) -> float:
        """What multiplies the unembedding's outputs, before a softcap."""
        scale = float(getattr(config, self.logit_multiplier_key)) if self.logit_multiplier_key else 1.0
        return scale / float(getattr(config, self.logit_divisor_key)) if self.logit_divisor_key else scale


_SANDWICH: dict[str, Any] = {
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}
_BEHIND: dict[str, Any] = {  # norms only behind attention and MLP
    "attention_norm": None,
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": None,
    "mlp_post_norm": "post_feedforward_layernorm",
}
_ONE_NORM: dict[str, Any] = {"parallel": True, "mlp_norm": "input_layernorm"}
_GRANITE: dict[str, Any] = {"residual_multiplier_key": "residual_multiplier", "logit_divisor_key": "logits_scaling"}
_NO_CLIP: dict[str, Any] = {
    "required": (("clip_qkv", None, "values are clipped, so attention is no linear map of them"),)
}
_GPT2: dict[str, Any] = {
    "layers": "transformer.h",
    "final_norm": "transformer.ln_f",
    "attention": "attn",
    "value": "attn.c_attn",
    "output": "attn.c_proj",
    "attention_norm": "ln_1",
    "mlp_norm": "ln_2",
    "position_embedding": "transformer.wpe",
}
_LIKE_LLAMA = (
    "arcee", "aria_text", "cwm", "dots1", "ernie4_5", "ernie4_5_moe", "exaone_moe", "flint", "glm", "glm4_moe", "helium",
    "hunyuan_v1_dense", "hunyuan_v1_moe", "hy_v3", "internlm3", "mellum", "minimax_m2", "ministral", "ministral3", "mixtral",
    "qwen2_moe", "qwen3_moe", "seed_oss", "smollm3", "solar_open",
)  # fmt: skip

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
        Architecture("olmo2", NormKind.RMS, **_BEHIND),
        Architecture("gpt_oss", NormKind.RMS),
        Architecture("gpt2", NormKind.LAYER, value_rows=ValueRows.TAIL, **_GPT2),
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
        # named like Llama, with norms of one kind or another
        *(Architecture(name, NormKind.RMS) for name in _LIKE_LLAMA),
        Architecture("llama4_text", NormKind.RMS, mlp="feed_forward"),
        Architecture("gemma", NormKind.RMS_PLUS_ONE),
        Architecture("vaultgemma", NormKind.RMS_PLUS_ONE, mlp_norm="pre_feedforward_layernorm"),
        *(Architecture(name, NormKind.LAYER) for name in ("jais2", "phimoe", "starcoder2")),
        Architecture("nemotron", NormKind.LAYER_PLUS_ONE),
        Architecture("olmo", NormKind.LAYER, norm_epsilon=1e-5, **_NO_CLIP),
        Architecture("olmoe", NormKind.RMS, **_NO_CLIP),
        *(Architecture(name, NormKind.RMS, **_BEHIND) for name in ("exaone4", "flex_olmo", "olmo3")),
        Architecture(
            "glm4",
            NormKind.RMS,
            attention_post_norm="post_self_attn_layernorm",
            mlp_post_norm="post_mlp_layernorm",
        ),
        Architecture("apertus", NormKind.RMS, attention_norm="attention_layernorm", mlp_norm="feedforward_layernorm"),
        # attention and MLP side by side
        Architecture(
            "stablelm",
            NormKind.LAYER,
            parallel_flag="use_parallel_residual",
            mlp_norm_if_parallel="input_layernorm",
        ),
        Architecture("phi", NormKind.LAYER, final_norm="model.final_layernorm", output="self_attn.dense", **_ONE_NORM),
        *(
            Architecture(name, NormKind.LAYER, logit_multiplier_key="logit_scale", **_ONE_NORM)
            for name in ("cohere", "cohere2", "cohere2_moe")
        ),
        # outputs of layers, and logits, times a number
        *(Architecture(name, NormKind.RMS, **_GRANITE) for name in ("granite", "granite_swa")),
        *(
            Architecture(name, NormKind.RMS, mlp="block_sparse_moe", **_GRANITE)
            for name in ("granitemoe", "granitemoe_swa")
        ),
        Architecture(
            "hyperclovax",
            NormKind.RMS,
            attention_post_norm="post_norm1",
            mlp_post_norm="post_norm2",
            residual_multiplier_key="residual_multiplier",
            logit_multiplier_key="logits_scaling",
        ),
        # fused queries, keys and values
        Architecture(
            "gpt_bigcode",
            NormKind.LAYER,
            value_rows=ValueRows.TAIL,
            required=(("multi_query", True, "queries, keys and values are interleaved"),),
            **_GPT2,
        ),
        Architecture(
            "persimmon",
            NormKind.LAYER,
            final_norm="model.final_layernorm",
            value="self_attn.query_key_value",
            value_rows=ValueRows.INTERLEAVED,
            output="self_attn.dense",
        ),
        # learned positions
        Architecture(
            "biogpt",
            NormKind.LAYER,
            layers="biogpt.layers",
            final_norm="biogpt.layer_norm",
            position_embedding="biogpt.embed_positions",
            output="self_attn.out_proj",
            mlp="fc1",
            mlp_output="fc2",
            attention_norm="self_attn_layer_norm",
            mlp_norm="final_layer_norm",
        ),
    )
}


def register_architecture(row: Architecture) -> None:
    """Add an architecture to the table, for this process: models of `row.model_type` can then be loaded.

    The row is verified numerically whenever such a model is loaded. Fields that are not given are those of Llama; for a model
    whose classes are not transformers' own, `package` says where they are defined. Raises InputError for a model_type that
    the table has already, or what is no `Architecture`.
    """
    if not isinstance(row, Architecture):
        raise InputError(f"register_architecture takes an Architecture, got {type(row).__name__}")
    known = ARCHITECTURES.get(row.model_type)
    if known is not None and known != row:
        raise InputError(
            f"architecture {row.model_type!r} is in the table already; a variant of it needs a model_type of its own"
        )
    ARCHITECTURES[row.model_type] = row


def architecture_of(config: Any) -> Architecture:
    """The table's row for a transformers configuration; UnsupportedModelError lists what is supported."""
    row = ARCHITECTURES.get(config.model_type)
    if row is None:
        raise UnsupportedModelError(
            f"architecture {config.model_type!r} ({', '.join(getattr(config, 'architectures', None) or ['?'])}) is not in "
            f"the table of architectures. Supported: {', '.join(sorted(ARCHITECTURES))}. "
            "Name its parts with circuit_tracer.register_architecture (CONTRIBUTING.md, An architecture); a row is verified "
            "numerically when the model loads."
        )
    for key, value, meaning in row.required:
        if getattr(config, key, value) != value:
            raise UnsupportedModelError(
                f"this {config.model_type} has {key}={getattr(config, key)!r} in its configuration ({meaning}); only {value!r} "
                "can be traced"
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
