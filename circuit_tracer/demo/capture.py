"""Seeing and changing what the MLPs of the demo model read and write (transformers Llama only)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

# rule(layer, x_BPD before the MLP's norm, y_BPD the MLP's output) -> the output to use instead
Rule = Callable[[int, Tensor, Tensor], Tensor]


@contextmanager
def mlp_rule(model: LlamaForCausalLM, rule: Rule) -> Iterator[None]:
    """Within the context every MLP's output is what ``rule`` makes of it; layers are visited from below."""
    inputs: dict[int, Tensor] = {}

    def reader(layer: int) -> Callable[[Any, Any], None]:
        def hook(module: Any, arguments: tuple[Tensor, ...]) -> None:
            inputs[layer] = arguments[0]

        return hook

    def writer(layer: int) -> Callable[[Any, Any, Tensor], Tensor]:
        def hook(module: Any, arguments: Any, output: Tensor) -> Tensor:
            return rule(layer, inputs[layer], output)

        return hook

    handles = []
    for index, block in enumerate(model.model.layers):
        handles.append(block.post_attention_layernorm.register_forward_pre_hook(reader(index)))
        handles.append(block.mlp.register_forward_hook(writer(index)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def mlp_activations(model: LlamaForCausalLM, embedded_BPD: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs (before the norm) and outputs of all MLPs for embedding rows: two tensors (L, B, P, D) in fp32."""
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []

    def record(layer: int, x_BPD: Tensor, y_BPD: Tensor) -> Tensor:
        inputs.append(x_BPD)
        outputs.append(y_BPD)
        return y_BPD

    with mlp_rule(model, record):
        model.model(inputs_embeds=embedded_BPD, use_cache=False)
    return torch.stack(inputs).float(), torch.stack(outputs).float()
