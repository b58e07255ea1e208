"""Transcoders of some layers, and in the others the model's own neurons: one dictionary of all layers.

Neurons read what enters an MLP and write what it gives. Letters: P positions, D d_model, n features in hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from circuit_tracer.errors import CompatibilityError, InputError
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.transcoders.activations import Selected
from circuit_tracer.transcoders.base import Transcoders
from circuit_tracer.transcoders.neurons import Neurons
from circuit_tracer.transcoders.stacked import Stacked


class SomeNeurons(Neurons):
    """The neurons of some layers. output_hook: where they write, if a model has two names for it."""

    def __init__(self, parts: ModelParts, layers: Iterable[int], output_hook: str = "mlp.hook_out") -> None:
        super().__init__(parts)
        self._own, self.feature_output_hook = tuple(layers), output_hook

    def rebound(self, parts: ModelParts) -> SomeNeurons:
        return SomeNeurons(parts, self._own, self.feature_output_hook)

    @property
    def layers(self) -> tuple[int, ...]:
        return self._own

    def n_features(self, layer: int) -> int:
        return super().n_features(layer) if layer in self._own else 0

    def decoder_bias(self, layer: int) -> Tensor:
        bias = super().decoder_bias(layer)
        return bias if layer in self._own else torch.zeros_like(bias)

    def output_bias(self, layer: int, x_PD: Callable[[], Tensor]) -> Tensor:
        return super().output_bias(layer, x_PD) if layer in self._own else x_PD().new_zeros(self.d_model)

    def encode_positions(self, layer: int, x_PD: Tensor) -> Selected:
        if layer in self._own:
            return super().encode_positions(layer, x_PD)
        nothing = torch.empty(0, dtype=torch.int64, device=x_PD.device)
        return nothing, nothing, x_PD.new_empty(0)


def with_neurons(transcoders: Transcoders, parts: ModelParts) -> Stacked:
    """The transcoders, and the neurons of the layers that have none.

    Raises InputError if every layer has one, CompatibilityError for transcoders that do not stand at both ends of the MLP, and
    what `Neurons` raises.
    """
    left = [layer for layer in range(len(parts.layers)) if layer not in transcoders.layers]
    hooks = transcoders.feature_input_hook, transcoders.feature_output_hook
    if not left:
        raise InputError("every layer has transcoders, which leaves none for neurons; leave elsewhere out")
    same = parts.layers[0].mlp_post_norm is None  # what the MLP gives is what it adds
    if hooks[0] != "mlp.hook_in" or not (hooks[1] == "mlp.hook_out" or (hooks[1] == "hook_mlp_out" and same)):
        raise CompatibilityError(
            f"neurons stand between mlp.hook_in and mlp.hook_out, these transcoders between {hooks[0]} and {hooks[1]}; in "
            "one graph all stand at the same places. Leave the other MLPs as error nodes (leave elsewhere out)"
        )
    return Stacked([transcoders, SomeNeurons(parts, left, hooks[1])], ("transcoder", "neurons"))
