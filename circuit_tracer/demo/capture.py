"""Seeing and changing what the MLPs of the demo model read and write (transformers Llama only)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from circuit_tracer.models.parts import bind
from circuit_tracer.models.run import ModelRun, Visit

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

# rule(layer, x_BPD before the MLP's norm, y_BPD the MLP's output) -> the output to use instead
Rule = Callable[[int, Tensor, Tensor], Tensor]


def mlp_rule(model: LlamaForCausalLM, rule: Rule) -> AbstractContextManager[None]:
    """Within the context every MLP's output is what ``rule`` makes of it; layers are visited from below."""
    inputs: dict[int, Tensor] = {}

    def read(layer: int, x_BPD: Tensor) -> None:
        inputs[layer] = x_BPD

    def write(layer: int, y_BPD: Tensor) -> Tensor:
        return rule(layer, inputs[layer], y_BPD)

    visits: dict[str, Visit] = {"hook_resid_mid": read, "mlp.hook_out": write}
    return ModelRun(bind(model, "demo"), visits, norms=None, own_attention=False).active()


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
