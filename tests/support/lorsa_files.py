"""Lorsa of one layer as OpenMOSS publishes it, all weights drawn at random."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.files.checksums import write_tensors

HEADS, WIDTH, HEAD, FEATURES, P = 2, 8, 6, 6, 5
IN, OUT = "blocks.1.ln1.hook_normalized", "blocks.1.hook_attn_out"


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)


def tensors() -> dict[str, Tensor]:
    """Of one layer's file."""
    shapes: dict[str, tuple[int, ...]] = {
        "W_Q": (HEADS, WIDTH, HEAD), "W_K": (HEADS, WIDTH, HEAD), "b_Q": (HEADS, HEAD), "b_K": (HEADS, HEAD),
        "W_V": (FEATURES, WIDTH), "W_O": (FEATURES, WIDTH), "b_V": (FEATURES,), "b_D": (WIDTH,),
        "ln_q.w": (HEADS, HEAD), "ln_k.w": (HEADS, HEAD),
    }  # fmt: skip
    return {name: draw(*shape, seed=number) for number, (name, shape) in enumerate(shapes.items())}


CONFIG: dict[str, Any] = {
    "sae_type": "lorsa", "hook_point_in": IN, "hook_point_out": OUT, "d_model": WIDTH, "n_qk_heads": HEADS, "d_qk_head": HEAD,
    "positional_embedding_type": "rotary", "rotary_dim": 4, "rotary_base": 100, "rotary_adjacent_pairs": False, "n_ctx": 64,
    "act_fn": "topk", "top_k": 2, "use_post_qk_ln": True, "normalization_type": "RMS", "eps": 1e-6, "attn_scale": None,
    "norm_activation": "inference", "sparsity_include_decoder_norm": True, "use_decoder_bias": True, "skip_bos": True,
    "dtype": "torch.float32",
}  # fmt: skip


def written(folder: Path, weights: dict[str, Tensor], config: dict[str, Any]) -> Path:
    layer = folder / "layer1_lorsa_8x_k64"
    layer.mkdir(parents=True)
    (layer / "config.json").write_text(json.dumps(config))
    write_tensors(layer / "sae_weights.safetensors", {n: w.contiguous() for n, w in weights.items()}, {}, "it")
    return folder
