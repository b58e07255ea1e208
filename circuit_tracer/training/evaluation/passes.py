"""Passes of the model over many sequences at once, with something else in place of what its MLPs write.

`training.data.points` says which modules the points are. Rows are the tokens of all sequences of a pass, row b * P + p.
Letters: B sequences, P positions, N = B * P rows, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from circuit_tracer.models.parts import LayerParts, ModelParts
from circuit_tracer.training.data.points import Points, listen


class StandIn(Protocol):
    """What takes the place of all MLPs. In a pass, every layer is read before it is written, from the first to the last."""

    def read(self, layer: int, x_ND: Tensor) -> None:
        """Take the activation (N, D) at the input point, in the compute dtype."""

    def write(self, layer: int, y_ND: Tensor) -> Tensor:
        """What stands in for the activation (N, D) at the output point."""


@contextmanager
def replaced(parts: ModelParts, points: Points, stand_in: StandIn) -> Iterator[None]:
    """Inside the block, passes of the model use ``stand_in``; everything else stays live."""
    handles: list[Any] = []
    try:
        for index, layer in enumerate(parts.layers):
            handles.append(_on_input(parts, index, layer, points.input, stand_in))
            handles.append(_on_output(parts, index, layer, points.output, stand_in))
        yield
    finally:
        for handle in handles:
            handle.remove()


def run(parts: ModelParts, ids_BP: Tensor) -> Tensor:
    """Final norm's outputs (N, D) of one pass, in the compute dtype."""
    with torch.no_grad():
        hidden = parts.model.base_model(input_ids=ids_BP.to(parts.device), use_cache=False).last_hidden_state
    return hidden.flatten(0, 1).to(parts.compute_dtype)


def _on_input(parts: ModelParts, index: int, layer: LayerParts, point: str, stand_in: StandIn) -> Any:
    return listen(layer, point, lambda x_ND: stand_in.read(index, x_ND.to(parts.compute_dtype)))


def _on_output(parts: ModelParts, index: int, layer: LayerParts, point: str, stand_in: StandIn) -> Any:
    def hook(module: nn.Module, args: Sequence[Tensor], output: Any) -> Any:
        first: Tensor = output[0] if isinstance(output, tuple) else output
        written = stand_in.write(index, first.flatten(0, -2).to(parts.compute_dtype))
        written = written.to(first.dtype).reshape(first.shape)
        return (written, *output[1:]) if isinstance(output, tuple) else written

    after_norm = point == "hook_mlp_out" and layer.mlp_post_norm is not None
    module = layer.mlp_post_norm.module if after_norm and layer.mlp_post_norm is not None else layer.mlp
    return module.register_forward_hook(hook)
