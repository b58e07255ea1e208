"""Dictionaries of attention outputs for tiny models, all weights drawn at random."""

from __future__ import annotations

from typing import Any

import torch

from circuit_tracer.models.parts import ModelParts
from circuit_tracer.replacement_model import ReplacementModel
from circuit_tracer.transcoders import TranscoderSet
from circuit_tracer.transcoders.lorsa import Lorsa, QueriesKeys, Rotary
from tests.support.tiny import tiny_transcoder
from tests.support.tracing_cases import Case, build

KINDS = ("attn.hook_z", "hook_attn_out", "lorsa")
N_FEATURES = 8


def autoencoders(
    parts: ModelParts, hook: str, layers: tuple[int, ...] = (0, 1, 2), activation: str = "relu", **how: Any
) -> TranscoderSet:
    """One for each of some layers, at the heads' outputs or behind their projection."""
    config = parts.config
    width = config.n_heads * config.d_head if hook == "attn.hook_z" else config.d_model
    whole = tiny_transcoder(
        "plt",
        d_model=width,
        n_features=N_FEATURES,
        activation=activation,
        input_hook=hook,
        output_hook=hook,
        seed=5,
        **how,
    )
    return TranscoderSet({layer: whole[layer] for layer in layers}, hook, hook)


def lorsa(parts: ModelParts, layers: tuple[int, ...] = (0, 1, 2), n_heads: int = 2, **how: Any) -> Lorsa:
    """With 2 QK heads of width 6, normalised queries and keys, and rotary embedding of 4 numbers."""
    generator = torch.Generator().manual_seed(7)

    def draw(*shape: int) -> torch.Tensor:
        return (torch.rand(*shape, generator=generator, dtype=torch.float64) - 0.5).to(parts.compute_dtype)

    width = parts.config.d_model
    whole = tiny_transcoder("plt", d_model=width, n_features=N_FEATURES, seed=6, **how)
    patterns = {}
    for layer in layers:
        shapes = {"W_Q": (n_heads, width, 6), "W_K": (n_heads, width, 6)}
        shapes |= dict.fromkeys(("b_Q", "b_K", "ln_q", "ln_k"), (n_heads, 6))
        weights = {name: draw(*shape) for name, shape in shapes.items()}
        patterns[layer] = QueriesKeys(weights, 2.0, Rotary(4, 100.0, adjacent=layer == 1))
    return Lorsa({layer: whole[layer] for layer in layers}, patterns)


def dictionary(parts: ModelParts, kind: str, **how: Any) -> TranscoderSet:
    """One of `KINDS`."""
    return lorsa(parts, **how) if kind == "lorsa" else autoencoders(parts, kind, **how)


def with_attention(case: Case, kind: str, **how: Any) -> ReplacementModel:
    """The case's model with a dictionary of attention outputs."""
    model = build(case)
    return ReplacementModel(model.parts, model.transcoders, None, attention=dictionary(model.parts, kind, **how))
