"""Dictionaries and models whose evaluation is known beforehand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from circuit_tracer.models.parts import ModelParts, bind
from circuit_tracer.training.evaluation import EvaluationSettings
from circuit_tracer.training.evaluation.results import REPLACEMENT_NUMBERS, Replacement
from circuit_tracer.transcoders import CrossLayerTranscoder, ReLU, SingleLayerTranscoder, Transcoders, TranscoderSet
from tests.support.tiny import tiny_model, tiny_transcoder

ALL_TOKENS = EvaluationSettings(max_norm_ratio=None, random_baseline=False)


def numbers_of(found: Replacement | None) -> dict[str, float]:
    """The numbers of a replacement by name, without intervals."""
    assert found is not None
    return {name: getattr(found, name) for name in REPLACEMENT_NUMBERS}


def parts_of(name: str = "llama", dtype: torch.dtype = torch.float64, **overrides: Any) -> ModelParts:
    model = tiny_model(name, dtype, **overrides)
    model.set_attn_implementation("eager")
    return bind(model, name)


def sequences(count: int = 5, length: int = 9, seed: int = 0, vocabulary: int = 47) -> list[Tensor]:
    """Sequences of two lengths."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [length - number % 2 for number in range(count)]
    return [torch.randint(3, vocabulary, (one,), generator=generator) for one in lengths]


def perfect_pair(kind: str) -> tuple[ModelParts, Transcoders]:
    """A GPT-2 whose MLPs are relu(x W + b) V + c, and a dictionary that is the same: one feature a neuron."""
    parts = parts_of("gpt2", activation_function="relu", n_inner=24)
    mlps = [layer.mlp for layer in parts.layers]
    hooks = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "mlp.hook_out"}
    if kind == "clt":
        clt = CrossLayerTranscoder(3, 24, 16, ReLU(), lazy_decoder=False, dtype=torch.float64, **hooks)  # type: ignore[arg-type]
        clt.W_enc = torch.stack([mlp.c_fc.weight.T for mlp in mlps])
        clt.b_enc = torch.stack([mlp.c_fc.bias for mlp in mlps])
        clt.b_dec = torch.stack([mlp.c_proj.bias for mlp in mlps])
        decoders = [torch.zeros(24, 3 - layer, 16, dtype=torch.float64) for layer in range(3)]
        for decoder, mlp in zip(decoders, mlps, strict=True):
            decoder[:, 0] = mlp.c_proj.weight
        clt.W_dec = decoders
        return parts, clt
    singles = {}
    for layer, mlp in enumerate(mlps):
        one = SingleLayerTranscoder(16, 24, ReLU(), layer, dtype=torch.float64)
        one.W_enc, one.b_enc = mlp.c_fc.weight.T, mlp.c_fc.bias
        one.W_dec, one.b_dec = mlp.c_proj.weight, mlp.c_proj.bias
        singles[layer] = one
    return parts, TranscoderSet(singles, **hooks)


def silent_dictionary(bias_SD: Tensor, **hooks: str) -> CrossLayerTranscoder:
    """No feature is ever active: the reconstruction is its bias."""
    clt = tiny_transcoder("clt", **hooks)
    clt.W_enc, clt.b_enc, clt.b_dec = torch.zeros_like(clt.W_enc), -torch.ones_like(clt.b_enc), bias_SD
    return clt  # type: ignore[no-any-return]


def true_activations(parts: ModelParts, transcoders: Transcoders, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs and outputs (L, P, D) of one sequence, by the frozen network's capture."""
    from circuit_tracer.models.capture import capture
    from circuit_tracer.models.frozen import FrozenNetwork

    hooks = transcoders.feature_input_hook, transcoders.feature_output_hook
    network = FrozenNetwork(parts, capture(parts, ids), *hooks)
    layers = range(network.n_layers)
    return (
        torch.stack([network.transcoder_input(layer) for layer in layers]),
        torch.stack([network.transcoder_output(layer) for layer in layers]),
    )
