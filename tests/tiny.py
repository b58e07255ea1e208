"""Tiny random models, one of every architecture in the table, small enough for float64 identities."""

from __future__ import annotations

from typing import Any

import torch
import transformers

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
    "gemma3": ("Gemma3TextConfig", {"head_dim": 6, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
    "phi3": ("Phi3Config", {}),
    "olmo2": ("Olmo2Config", {}),
    "gpt_oss": ("GptOssConfig", {"head_dim": 6, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
    "gpt2": ("GPT2Config", {}),
    "gpt_neox": ("GPTNeoXConfig", {"use_parallel_residual": True}),
    "gpt_neox-sequential": ("GPTNeoXConfig", {"use_parallel_residual": False}),
}
ARCHITECTURES = list(CONFIGS)


def tiny_model(name: str, dtype: torch.dtype = torch.float64, seed: int = 0, **overrides: Any) -> Any:
    """A random causal LM of the named architecture, every parameter (norm weights and biases too) drawn at random."""
    config_class, extra = CONFIGS[name]
    sizes = {**SIZES, **extra, **overrides}
    if config_class == "GPT2Config":
        sizes = {**sizes, "n_embd": sizes.pop("hidden_size"), "n_layer": sizes.pop("num_hidden_layers"), "n_head": sizes.pop("num_attention_heads"), "n_positions": sizes.pop("max_position_embeddings")}
        sizes.pop("intermediate_size"), sizes.pop("num_key_value_heads")
    if config_class == "GPTNeoXConfig":
        sizes.pop("num_key_value_heads")
    config = getattr(transformers, config_class)(**sizes)
    model = transformers.AutoModelForCausalLM.from_config(config).to(dtype).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = (torch.rand(parameter.shape, generator=generator, dtype=torch.float64) - 0.5).to(dtype)
    return model
