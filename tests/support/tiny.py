"""Tiny random models, one of every architecture in the table, small enough for float64 identities."""

from __future__ import annotations

import importlib
from typing import Any

import torch
import transformers

from circuit_tracer.models.architectures import ARCHITECTURES as ROWS

SIZES: dict[str, Any] = {
    "vocab_size": 47,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "llama-bias": ("LlamaConfig", {"attention_bias": True, "head_dim": 6}),
    "mistral": ("MistralConfig", {"sliding_window": 4}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 6}),
    "gemma2": ("Gemma2Config", {"head_dim": 6, "sliding_window": 4, "query_pre_attn_scalar": 9}),
    "gemma3": (
        "Gemma3TextConfig",
        {
            "head_dim": 6,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "phi3": ("Phi3Config", {}),
    "olmo2": ("Olmo2Config", {}),
    "gpt_oss": (
        "GptOssConfig",
        {
            "head_dim": 6,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "gpt2": ("GPT2Config", {}),
    "gpt_neox": ("GPTNeoXConfig", {"use_parallel_residual": True}),
    "gpt_neox-sequential": ("GPTNeoXConfig", {"use_parallel_residual": False}),
}
ARCHITECTURES = list(CONFIGS)

_EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
_ROUTED: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
_GROUPED: dict[str, Any] = {
    **_ROUTED, "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip
_SCALED: dict[str, Any] = {
    "embedding_multiplier": 3.0, "attention_multiplier": 0.3, "residual_multiplier": 0.4, "logits_scaling": 8.0,
}  # fmt: skip
_WINDOWS: dict[str, Any] = {
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
_LATENT: dict[str, Any] = {
    "q_lora_rank": 8, "kv_lora_rank": 7, "qk_rope_head_dim": 4, "qk_nope_head_dim": 6, "v_head_dim": 5,
    "num_key_value_heads": 4, "head_dim": 4,
}  # fmt: skip
_CHOSEN: dict[str, Any] = {"index_topk": 3, "index_n_heads": 2, "index_head_dim": 8}
_DELTA: dict[str, Any] = {
    "head_dim": 6,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 5,
    "linear_conv_kernel_dim": 3,
    "layer_types": ["linear_attention", "full_attention"],
}
_CONVOLVED: dict[str, Any] = {"conv_L_cache": 3, "layer_types": ["conv", "full_attention"]}
_GEMMA4: dict[str, Any] = {
    "head_dim": 6, "global_head_dim": 8, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, **_WINDOWS,
}  # fmt: skip
_SHARED_EXPERT: dict[str, Any] = {**_ROUTED, "shared_expert_intermediate_size": 12}


def _axes(*sections: int) -> dict[str, Any]:
    """Rotary frequencies of time, height and width."""
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(sections)}}


# Families that differ from those above by a row of the table: their model_type, or a variant of it, and what they need.
FAMILIES: dict[str, dict[str, Any]] = {
    "afmoe": {"head_dim": 6, **_GROUPED, "num_dense_layers": 1},
    "apertus": {},
    "arcee": {},
    "aria_text": {"moe_num_experts": 4, "moe_topk": 2},
    "axk1": {**_LATENT, **_GROUPED},
    "biogpt": {},
    "bloom": {},
    "codegen": {"rotary_dim": 2},
    "cohere": {"logit_scale": 0.3},
    "cohere-qk-norm": {"logit_scale": 0.3, "use_qk_norm": True},
    "cohere2": {"logit_scale": 0.3, "head_dim": 6, **_WINDOWS},
    "cohere2_moe": {"logit_scale": 0.3, **_ROUTED},
    "cohere_compass_text": {
        "logit_scale": 0.3,
        "layer_types": ["full_attention", "full_attention"],
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}},
    },
    "cwm": {"head_dim": 6},
    "deepseek_v2": {**_LATENT, **_GROUPED},
    "deepseek_v3": {**_LATENT, **_GROUPED, "attention_bias": True},
    "deepseek_v3-queries-whole": {**_LATENT, "q_lora_rank": None, "first_k_dense_replace": 3},
    "deepseek_v32": {**_LATENT, **_GROUPED, **_CHOSEN},
    "dots1": _GROUPED,
    "emu3_text_model": {},
    "ernie4_5": {"use_bias": True},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 12},
    "ernie4_5_vl_moe_text": {
        "head_dim": 8,
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_intermediate_size": [12, 12],
        **_axes(1, 1, 2),
    },
    "exaone4": {"head_dim": 6, **_WINDOWS},
    "exaone_moe": {"head_dim": 6, **_GROUPED},
    "falcon": {},
    "falcon-groups": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon-one-norm": {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    "falcon-sequential": {"parallel_attn": False, "multi_query": False, "alibi": True, "bias": True},
    "flex_olmo": _ROUTED,
    "flint": _SHARED_EXPERT,
    "gemma": {"head_dim": 6},
    "gemma4_text": _GEMMA4,
    "gemma4_text-keys-as-values": {**_GEMMA4, "num_global_key_value_heads": 1, "attention_k_eq_v": True},
    "gemma4_unified_text": {"head_dim": 6, "global_head_dim": 8, **_WINDOWS},
    "glm": {"head_dim": 8},
    "glm4": {"head_dim": 8},
    "glm4v_moe_text": {"head_dim": 8, **_GROUPED, **_axes(1, 1, 0)},
    "glm4v_text": _axes(1, 1, 0),
    "glm_ocr_text": {"head_dim": 8, **_axes(1, 1, 2)},
    "glm4_moe": {"head_dim": 8, **_GROUPED},
    "glm4_moe_lite": {**_LATENT, **_GROUPED},
    "glm_moe_dsa": {**_LATENT, **_GROUPED, **_CHOSEN},
    "gpt_bigcode": {"multi_query": True},
    "gpt_neo": {"attention_types": [[["global", "local", "global"], 1]], "window_size": 4},
    "gptj": {"rotary_dim": 2},
    "granite": _SCALED,
    "granite_docling_text": _SCALED,
    "granite_swa": {**_SCALED, **_WINDOWS},
    "granitemoe": {**_SCALED, **_EXPERTS},
    "granitemoeshared": {**_SCALED, **_EXPERTS, "shared_intermediate_size": 0},
    "granitemoe_swa": {**_SCALED, **_EXPERTS, **_WINDOWS},
    "helium": {"head_dim": 4},
    "hunyuan_v1_dense": {"head_dim": 6},
    "hunyuan_v1_moe": {"head_dim": 6, "num_experts": 4, "moe_topk": 2},
    "hunyuan_vl_text": {"head_dim": 8, **_axes(1, 1, 2)},
    "hy_v3": {"head_dim": 6, **_ROUTED},
    "hyperclovax": {**_SCALED, "use_post_norm": True},
    "hyperclovax-no-post-norm": {**_SCALED, "use_post_norm": False},
    "internlm3": {"bias": True, "qkv_bias": True},
    "iquestcoder": {},
    "jais2": {},
    "kolibri1": {"head_dim": 6, **_SHARED_EXPERT},
    "laguna": {"head_dim": 6, **_GROUPED, "shared_expert_intermediate_size": 12},
    "laguna-by-number": {
        "head_dim": 6,
        **_GROUPED,
        "shared_expert_intermediate_size": 12,
        "gating": "per-element",
    },
    "llama4_text": {"head_dim": 6, "intermediate_size_mlp": 24, "attn_temperature_tuning": True, **_EXPERTS},
    "lfm2": {**_CONVOLVED, "block_auto_adjust_ff_dim": False},
    "lfm2_moe": {**_CONVOLVED, **_ROUTED, "num_dense_layers": 1},
    "lfm3": {**_CONVOLVED, "use_sandwich_norm": True},
    "lfm3-norms-before": {**_CONVOLVED, "use_sandwich_norm": False},
    "mellum": {"head_dim": 6, **_ROUTED},
    "mimo_v2_flash": {"head_dim": 6, "v_head_dim": 5, "attention_value_scale": 0.7, **_GROUPED},
    "minimax_m2": {"head_dim": 6, **_EXPERTS},
    "ministral": {"head_dim": 6, **_WINDOWS},
    "ministral3": {"head_dim": 6},
    "mistral4": {
        **_LATENT,
        **_GROUPED,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 4,
        },
    },
    "mixtral": {**_EXPERTS, "sliding_window": 4},
    "molmo2_text": {"head_dim": 6},
    "mpt": {},
    "nemotron": {"attention_bias": True},
    "olmo": {},
    "olmo3": _WINDOWS,
    "olmoe": _ROUTED,
    "opt": {"ffn_dim": 24, "word_embed_proj_dim": 16},
    "paddleocr_vl_text": {"head_dim": 8, **_axes(1, 1, 2)},
    "persimmon": {},
    "phi": {"partial_rotary_factor": 0.5, "qk_layernorm": True},
    "phimoe": _EXPERTS,
    "qwen2_5_omni_text": _axes(1, 1, 0),
    "qwen2_5_vl_text": _axes(1, 1, 0),
    "qwen2_moe": {**_ROUTED, "shared_expert_intermediate_size": 12},
    "qwen2_vl_text": _axes(1, 1, 0),
    "qwen3_5_moe_text": {**_DELTA, **_SHARED_EXPERT},
    "qwen3_5_text": _DELTA,
    "qwen3_moe": {"head_dim": 6, **_ROUTED},
    "qwen3_omni_moe_text": {"head_dim": 8, **_ROUTED, **_axes(1, 1, 2)},
    "qwen3_vl_moe_text": {"head_dim": 8, **_ROUTED, **_axes(1, 1, 2)},
    "qwen3_vl_text": {"head_dim": 8, **_axes(1, 1, 2)},
    "qwen3_next": {**_DELTA, **_SHARED_EXPERT},
    "seed_oss": {"head_dim": 6, "attention_bias": True, "attention_out_bias": True},
    "smollm3": {"no_rope_layers": [1, 0, 1]},
    "solar_open": {"head_dim": 6, **_GROUPED},
    "stablelm": {"use_qkv_bias": True},
    "stablelm-parallel": {"use_parallel_residual": True},
    "starcoder2": {"sliding_window": 4},
    "step3p5": {"head_dim": 6, "sliding_window": 4, **_GROUPED},
    "vaultgemma": {"head_dim": 6, "query_pre_attn_scalar": 9, **_WINDOWS},
    "youtu": _LATENT,
}


_ROW = {name: ROWS[name.partition("-")[0]] for name in FAMILIES}
# families whose attention does not show its queries and keys, and those in which nothing is split by attention head
NO_SCORES = [
    name for name, row in _ROW.items() if row.own_softmax or row.linear is not None or "index_topk" in FAMILIES[name]
]
NO_HEADS = [name for name, row in _ROW.items() if row.linear is not None or row.layer_multiplier is not None]


def tiny_model(name: str, dtype: torch.dtype = torch.float64, seed: int = 0, **overrides: Any) -> Any:
    """A random causal LM of the named architecture, every parameter (norm weights and biases too) drawn at random."""
    if name in FAMILIES:
        kind = UNLISTED.get(name) or transformers.CONFIG_MAPPING[name.partition("-")[0]]
        config_class, extra = kind.__name__, FAMILIES[name]
    else:
        config_class, extra = CONFIGS[name]
    sizes = {**SIZES, **extra, **overrides}
    if "layer_types" in sizes:
        sizes["layer_types"] = [sizes["layer_types"][i % 2] for i in range(sizes["num_hidden_layers"])]
    if config_class == "GPT2Config":
        sizes = {
            **sizes,
            "n_embd": sizes.pop("hidden_size"),
            "n_layer": sizes.pop("num_hidden_layers"),
            "n_head": sizes.pop("num_attention_heads"),
            "n_positions": sizes.pop("max_position_embeddings"),
        }
        sizes.pop("intermediate_size"), sizes.pop("num_key_value_heads")
    if config_class == "GPTNeoXConfig":
        sizes.pop("num_key_value_heads")
    config = (getattr(transformers, config_class, None) or kind)(**sizes)
    causal = type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    model = transformers.AutoModelForCausalLM.from_config(config) if causal else alone(config)
    model = model.to(dtype).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = (torch.rand(parameter.shape, generator=generator, dtype=torch.float64) - 0.5).to(dtype)
    for number, (key, buffer) in enumerate(model.named_buffers()):
        if key.endswith("layer_scalar"):
            buffer.fill_(0.7 + 0.1 * (number % 3))
    if config._experts_implementation is not None and dtype is torch.float64:
        getattr(model, "model", model).set_experts_implementation("eager")  # grouped products end at float32
    return model


UNLISTED = {"emu3_text_model": transformers.Emu3TextConfig}  # a configuration that transformers knows by no model_type


def alone(config: Any) -> Any:
    """A causal LM of a text configuration that transformers has one for only within a model that sees or hears."""
    from circuit_tracer.models.text_only import TextOnly

    if type(config) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return transformers.AutoModelForImageTextToText.from_config(config)
    module = importlib.import_module(type(config).__module__.replace("configuration", "modeling"))
    kinds = [each for name, each in vars(module).items() if name.endswith("TextModel")]
    language = next(each for each in kinds if each.config_class is type(config))(config)
    head = torch.nn.Linear(config.hidden_size, config.vocab_size, bias=False)
    return TextOnly(language, head, ROWS[config.model_type].logit_multiplier(config))


def tiny_transcoder(
    kind: str = "clt",
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    n_layers: int = 3,
    d_model: int = 16,
    n_features: int = 20,
    activation: str = "relu",
    skip: bool = False,
    input_hook: str = "hook_resid_mid",
    output_hook: str = "hook_mlp_out",
) -> Any:
    """A random transcoder ("clt" or "plt"), all weights and biases drawn at random."""
    from circuit_tracer.transcoders.activations import JumpReLU, ReLU, TopK
    from circuit_tracer.transcoders.cross_layer import CrossLayerTranscoder
    from circuit_tracer.transcoders.single_layer import SingleLayerTranscoder
    from circuit_tracer.transcoders.transcoder_set import TranscoderSet

    generator = torch.Generator().manual_seed(seed + 1)

    def draw(*shape: int) -> torch.Tensor:
        return (torch.rand(*shape, generator=generator, dtype=torch.float64) - 0.5).to(dtype)

    def function(shape: tuple[int, ...]) -> Any:
        return {"relu": ReLU, "jump_relu": lambda: JumpReLU(draw(*shape).abs() / 2), "topk": lambda: TopK(3)}[
            activation
        ]()

    if kind == "clt":
        clt = CrossLayerTranscoder(
            n_layers, n_features, d_model, function((n_layers, 1, n_features)), skip, lazy_decoder=False,
            feature_input_hook=input_hook, feature_output_hook=output_hook, dtype=dtype,
        )  # fmt: skip
        clt.W_enc, clt.b_enc, clt.b_dec = (
            draw(n_layers, n_features, d_model),
            draw(n_layers, n_features),
            draw(n_layers, d_model),
        )
        clt.W_dec = [draw(n_features, n_layers - layer, d_model) for layer in range(n_layers)]
        if skip:
            clt.W_skip = draw(n_layers, d_model, d_model)
        return clt
    layers = {}
    for layer in range(n_layers):
        one = SingleLayerTranscoder(d_model, n_features, function((n_features,)), layer, skip, dtype=dtype)
        one.W_enc, one.b_enc, one.W_dec, one.b_dec = (
            draw(n_features, d_model),
            draw(n_features),
            draw(n_features, d_model),
            draw(d_model),
        )
        if skip:
            one.W_skip = draw(d_model, d_model)
        layers[layer] = one
    return TranscoderSet(layers, input_hook, output_hook)


class Letters:
    """The least a tokenizer must do to generate."""

    bos_token_id, pad_token_id, eos_token_id, all_special_ids = 1, 0, 2, [0, 1, 2]

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return " ".join(str(i) for i in ids if not (skip_special_tokens and i in self.all_special_ids))
