"""circuit-tracer's `circuit_tracer.utils.demo_utils`: what its notebooks compute with and show."""

from __future__ import annotations

import gc
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.influence import node_influence
from circuit_tracer.utils.decode_url_features import Feature, decode_url_features
from circuit_tracer.utils.displays import (
    display_ablation_chart,
    display_attribution_config,
    display_generations_comparison,
    display_token_probs,
    display_top_features_comparison,
    display_topk_token_predictions,
)

__all__ = [
    "Feature",
    "cleanup_cuda",
    "decode_url_features",
    "display_ablation_chart",
    "display_attribution_config",
    "display_generations_comparison",
    "display_token_probs",
    "display_top_features_comparison",
    "display_topk_token_predictions",
    "extract_supernode_features",
    "get_top_features",
    "get_topk",
    "get_unembed_vecs",
]


def get_topk(logits: Tensor, tokenizer: Any, k: int = 5) -> list[tuple[str, float]]:
    """The k most probable next tokens, (text, probability), at the last position of logits ((1,) P, V)."""
    probabilities = torch.softmax(logits.reshape(-1, logits.shape[-1])[-1], dim=-1)
    top = torch.topk(probabilities, k)
    return [
        (tokenizer.decode([token]), value)
        for token, value in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]


def get_top_features(graph: Graph, n: int = 10) -> tuple[list[tuple[int, int, int]], list[float]]:
    """The n features of most influence on the targets: ((layer, position, feature) of each, influence of each)."""
    influence = node_influence(graph.edges, graph.blocks, graph.target_weights)[graph.nodes.layout.features]
    top = torch.topk(influence, min(n, len(influence)))
    rows = graph.active_features[graph.selected_features[top.indices]].tolist()
    return [(layer, position, index) for layer, position, index in rows], top.values.tolist()


def get_unembed_vecs(model: Any, token_ids: list[int], backend: str) -> list[Tensor]:
    """Rows (D,) of the unembedding matrix; `backend` is accepted and has no effect."""
    return [model.parts.unembed.weight[token] for token in token_ids]


def extract_supernode_features(url: str) -> dict[str, list[Feature]]:
    """The supernodes of a viewer's address, by name."""
    return decode_url_features(url)[0]


def cleanup_cuda() -> None:
    """Collect garbage and give cached CUDA memory back."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
