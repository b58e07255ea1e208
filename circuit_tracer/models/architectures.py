"""One table that says how each architecture names its parts.

Everything else about a model is read from the running model itself: attention patterns come from transformers' attention
interface, norm scales from the norms' inputs. A row of this table is checked numerically when a model is loaded
(`models/verify.py`), so a wrong row is an error and never a silently wrong graph. Which modules may be read as their weights
alone is decided by what they are (`models/plain.py`).
"""

from __future__ import annotations

from typing import Any

from circuit_tracer.errors import InputError, UnsupportedModelError
from circuit_tracer.models.architecture import Architecture, LinearAttention, NormKind, ValueRows
from circuit_tracer.models.refused import REFUSED

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
_LATENT: dict[str, Any] = {  # values come out of a latent that is normed (DeepSeek)
    "value": "self_attn.kv_a_proj_with_mqa",
    "value_norm": "self_attn.kv_a_layernorm",
    "value_up": "self_attn.kv_b_proj",
    "value_rows": ValueRows.LATENT,
}
_DELTA = "linear_attn", "linear_attn.out_proj"
_LFM: dict[str, Any] = {
    "final_norm": "model.embedding_norm",
    "output": "self_attn.out_proj",
    "linear": LinearAttention("conv", "conv.out_proj", "convolved"),
    "mlp": "feed_forward",
    "attention_norm": "operator_norm",
    "mlp_norm": "ffn_norm",
}
_GPT_J: dict[str, Any] = {
    **_GPT2,
    "output": "attn.out_proj",
    "position_embedding": None,
    "own_softmax": True,
    "parallel": True,
    "mlp_norm": "ln_1",
}
_DECODER: dict[str, Any] = {  # BART's names
    "position_embedding": "embed_positions",
    "output": "self_attn.out_proj",
    "mlp": "fc1",
    "mlp_output": "fc2",
    "attention_norm": "self_attn_layer_norm",
    "mlp_norm": "final_layer_norm",
}
_BLOOM: dict[str, Any] = {
    "layers": "transformer.h",
    "final_norm": "transformer.ln_f",
    "attention": "self_attention",
    "value": "self_attention.query_key_value",
    "value_rows": ValueRows.INTERLEAVED,
    "output": "self_attention.dense",
    "own_softmax": True,
}
_GEMMA4: dict[str, Any] = {
    **_SANDWICH,
    "value": ("self_attn.v_proj", "self_attn.k_proj"),
    "value_norm": "self_attn.v_norm",
    "layer_multiplier": "layer_scalar",
    "required": (
        ("enable_moe_block", False, "experts read the stream beside the MLP, each behind a norm of its own"),
        ("hidden_size_per_layer_input", 0, "each layer adds a product of the stream and an embedding of its own"),
        ("num_kv_shared_layers", 0, "layers take the keys and values of an earlier one"),
    ),
}
_LIKE_LLAMA = (
    "arcee", "aria_text", "cwm", "dots1", "ernie4_5", "ernie4_5_moe", "exaone_moe", "flint", "glm",
    "glm4_moe", "helium", "hunyuan_v1_dense", "hunyuan_v1_moe", "hy_v3", "internlm3", "iquestcoder", "mellum", "minimax_m2",
    "ministral", "ministral3", "mixtral", "qwen2_moe", "qwen3_moe", "seed_oss", "smollm3", "solar_open",
)  # fmt: skip

# text configurations of models that see or hear, which transformers has no causal LM for (models/text_only.py)
_TEXTS_LIKE_LLAMA = (
    "emu3_text_model", "ernie4_5_vl_moe_text", "glm4v_moe_text", "hunyuan_vl_text", "molmo2_text",
    "paddleocr_vl_text", "qwen2_5_omni_text", "qwen2_5_vl_text", "qwen2_vl_text", "qwen3_omni_moe_text", "qwen3_vl_moe_text",
    "qwen3_vl_text",
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
        *(Architecture(name, NormKind.RMS) for name in (*_LIKE_LLAMA, *_TEXTS_LIKE_LLAMA)),
        Architecture("llama4_text", NormKind.RMS, mlp="feed_forward"),
        Architecture("gemma", NormKind.RMS_PLUS_ONE),
        Architecture("vaultgemma", NormKind.RMS_PLUS_ONE, mlp_norm="pre_feedforward_layernorm"),
        *(Architecture(name, NormKind.LAYER) for name in ("jais2", "phimoe", "starcoder2")),
        Architecture("nemotron", NormKind.LAYER_PLUS_ONE),
        Architecture("olmo", NormKind.LAYER, norm_epsilon=1e-5, **_NO_CLIP),
        Architecture("olmoe", NormKind.RMS, **_NO_CLIP),
        *(Architecture(name, NormKind.RMS, **_BEHIND) for name in ("exaone4", "flex_olmo", "olmo3")),
        *(
            Architecture(
                name,
                NormKind.RMS,
                attention_post_norm="post_self_attn_layernorm",
                mlp_post_norm="post_mlp_layernorm",
            )
            for name in ("glm4", "glm4v_text", "glm_ocr_text", "kolibri1")
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
            for name in ("cohere", "cohere2", "cohere2_moe", "cohere_compass_text")
        ),
        # outputs of layers, and logits, times a number
        *(Architecture(name, NormKind.RMS, **_GRANITE) for name in ("granite", "granite_docling_text", "granite_swa")),
        *(
            Architecture(name, NormKind.RMS, mlp="block_sparse_moe", **_GRANITE)
            for name in ("granitemoe", "granitemoe_swa")
        ),
        Architecture(
            "granitemoeshared",
            NormKind.RMS,
            mlp="block_sparse_moe",
            required=(
                ("shared_intermediate_size", 0, "an MLP beside the experts, outside of the module that holds these"),
            ),
            **_GRANITE,
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
        # values through a latent
        *(
            Architecture(name, NormKind.RMS, **_LATENT)
            for name in (
                "axk1",
                "deepseek_v2",
                "deepseek_v3",
                "deepseek_v32",
                "glm4_moe_lite",
                "glm_moe_dsa",
                "mistral4",
                "youtu",
            )
        ),
        Architecture("mimo_v2_flash", NormKind.RMS, value_multiplier_key="attention_value_scale"),
        # a gate behind the heads
        *(
            Architecture(name, NormKind.RMS_PLUS_ONE, gated=True, linear=LinearAttention(*_DELTA, "apart"))
            for name in ("qwen3_5_text", "qwen3_5_moe_text")
        ),
        Architecture("qwen3_next", NormKind.RMS_PLUS_ONE, gated=True, linear=LinearAttention(*_DELTA, "by key head")),
        *(Architecture(name, NormKind.RMS, **_LFM) for name in ("lfm2", "lfm2_moe")),
        Architecture(
            "lfm3",
            NormKind.RMS,
            gated=True,
            attention_post_norm="post_operator_norm",
            mlp_post_norm="post_ffn_norm",
            **{**_LFM, "output": "self_attn.o_proj"},
        ),
        Architecture("laguna", NormKind.RMS, gated=True),
        Architecture("step3p5", NormKind.RMS_PLUS_ONE, gated=True),
        Architecture(
            "afmoe",
            NormKind.RMS,
            gated=True,
            attention_post_norm="post_attention_layernorm",
            mlp_norm="pre_mlp_layernorm",
            mlp_post_norm="post_mlp_layernorm",
        ),
        # a norm of values, and a factor of the whole stream
        *(Architecture(name, NormKind.RMS, **_GEMMA4) for name in ("gemma4_text", "gemma4_unified_text")),
        # attention of their own
        Architecture("gptj", NormKind.LAYER, **{**_GPT_J, "value": "attn.v_proj"}),
        Architecture(
            "codegen", NormKind.LAYER, **{**_GPT_J, "value": "attn.qkv_proj", "value_rows": ValueRows.QUARTERS}
        ),
        Architecture(
            "gpt_neo",
            NormKind.LAYER,
            own_softmax=True,
            **{**_GPT2, "value": "attn.attention.v_proj", "output": "attn.attention.out_proj"},
        ),
        Architecture(
            "bloom",
            NormKind.LAYER,
            attention_output="self_attention.dense",
            mlp_output="mlp.dense_4h_to_h",
            embedding_norm="transformer.word_embeddings_layernorm",
            required=(
                (
                    "apply_residual_connection_post_layernorm",
                    False,
                    "what goes on beside attention and MLP is the norm's output",
                ),
            ),
            **_BLOOM,
        ),
        Architecture(
            "mpt",
            NormKind.LAYER,
            layers="transformer.blocks",
            final_norm="transformer.norm_f",
            attention="attn",
            value="attn.Wqkv",
            value_rows=ValueRows.TAIL,
            output="attn.out_proj",
            own_softmax=True,
            mlp="ffn",
            mlp_output="ffn.down_proj",
            attention_norm="norm_1",
            mlp_norm="norm_2",
            required=(("attn_config.clip_qkv", None, "values are clipped, so attention is no linear map of them"),),
        ),
        Architecture(
            "falcon",
            NormKind.LAYER,
            parallel_flag="parallel_attn",
            attention_norm=("ln_attn", "input_layernorm"),
            mlp_norm=("ln_mlp", "post_attention_layernorm", "input_layernorm"),
            **_BLOOM,
        ),
        # learned positions
        Architecture(
            "opt",
            NormKind.LAYER,
            layers="model.decoder.layers",
            final_norm="model.decoder.final_layer_norm",
            flat_mlp=True,
            required=(("do_layer_norm_before", True, "the whole stream is normed behind each layer"),),
            **{**_DECODER, "position_embedding": "model.decoder.embed_positions"},
        ),
        Architecture(
            "biogpt",
            NormKind.LAYER,
            layers="biogpt.layers",
            final_norm="biogpt.layer_norm",
            **{**_DECODER, "position_embedding": "biogpt.embed_positions"},
        ),
    )
}


def register_architecture(row: Architecture) -> None:
    """Add an architecture to the table, for this process: models of `row.model_type` can then be loaded.

    The row is verified numerically whenever such a model is loaded. Fields that are not given are those of Llama; for a
    model whose classes are not transformers' own, `package` says where they are defined.

    Args:
        row: The names of its parts.

    Raises:
        InputError: For a model_type that the table has already, or what is no `Architecture`.
    """
    if not isinstance(row, Architecture):
        raise InputError(f"register_architecture takes an Architecture, got {type(row).__name__}")
    known = ARCHITECTURES.get(row.model_type)
    if known is not None and known != row:
        raise InputError(
            f"architecture {row.model_type!r} is in the table already; a variant of it needs a model_type of its own"
        )
    ARCHITECTURES[row.model_type] = row


def in_table(config: Any) -> bool:
    """Whether there is a row for a transformers configuration."""
    return config.model_type in ARCHITECTURES


def not_in_table(config: Any) -> str:
    """What is to be said of an architecture that is not in the table."""
    kind = f"architecture {config.model_type!r} ({', '.join(getattr(config, 'architectures', None) or ['?'])})"
    if (why := REFUSED.get(config.model_type)) is not None:
        return f"{kind} cannot be traced: {why}."
    return (
        f"{kind} is not in the table of architectures. Supported: {', '.join(sorted(ARCHITECTURES))}. Name its parts with "
        "circuit_tracer.register_architecture (CONTRIBUTING.md, An architecture); a row is verified numerically when the model "
        "loads."
    )


def architecture_of(config: Any) -> Architecture:
    """The table's row for a transformers configuration; UnsupportedModelError lists what is supported."""
    row = ARCHITECTURES.get(config.model_type)
    if row is None:
        raise UnsupportedModelError(not_in_table(config))
    return row
