"""The neurons of a model's own MLPs as a dictionary that needs no files: exact, and no sparser than the model is.

A neuron has two sides, of which one is active at a time: feature 2j is neuron j where its activation is positive, feature 2j +
1 where it is negative. A feature's value is |activation|, and it writes ±W_down[j]. So a dictionary's rules hold: values are
above zero, and features times what they write, with the bias, are the MLP's output. What a feature reads depends on the prompt
(models/mlps.py). The weights are the model's own, as they are whenever they are asked for.

Letters: P positions, D d_model, F features (two a neuron), n features in hand.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Final, NoReturn

import torch
from torch import Tensor

from circuit_tracer.errors import InputError
from circuit_tracer.models.mlps import Mlp, read_mlp
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.models.verify import verify_neurons
from circuit_tracer.transcoders.activations import Activation, ReLU, Selected
from circuit_tracer.transcoders.base import Transcoders
from circuit_tracer.transcoders.weight_rows import WeightRows

NEURONS: Final = "neurons"  # what stands for a dictionary's name
NOT_MONOSEMANTIC = (
    "neurons as nodes: exact without a dictionary, and few may carry one difference, but a neuron is not one concept "
    "(sparse in neurons is not monosemantic): read its labels for both signs. Feature 2j is neuron j above zero, 2j+1 below: "
    "3/642 is L3 neuron 321+"
)


class Neurons(Transcoders):
    """Every MLP neuron of a model, once for each sign.

    checked: whether that they add up is tried; not possible on a model without weights. Raises UnsupportedModelError for MLPs
    of a kind without known neurons, or whose neurons do not add up to what they give.
    """

    kind: ClassVar[str] = NEURONS
    exact: ClassVar[bool] = True

    def __init__(self, parts: ModelParts, checked: bool = True) -> None:
        super().__init__()
        if checked:
            verify_neurons(parts)
        self.parts = parts
        self.n_layers, self.d_model = len(parts.layers), parts.config.d_model
        self._counts = [self.mlp(layer).n_neurons for layer in range(self.n_layers)]
        self.d_transcoder = 2 * max(self._counts)
        self.feature_input_hook, self.feature_output_hook = "mlp.hook_in", "mlp.hook_out"
        self.scan = NEURONS
        self.skip_connection = False

    def mlp(self, layer: int) -> Mlp:
        """The neurons of a layer, as its weights are now."""
        self._require_layer(layer)
        return read_mlp(self.parts, layer)

    def rebound(self, parts: ModelParts) -> Neurons:
        return Neurons(parts)

    # ---- what a kind must provide

    def matrix_shape(self, name: str) -> tuple[int, ...]:
        _no_encoder()

    def target_layers(self, layer: int) -> range:
        return range(layer, layer + 1)

    def n_features(self, layer: int) -> int:
        return 2 * self._counts[layer]

    def encoder(self, layer: int) -> WeightRows:
        _no_encoder()

    def encoder_bias(self, layer: int) -> Tensor:
        _no_encoder()

    def encoder_rows(self, layer: int, index: Tensor) -> tuple[Tensor, Tensor]:
        _no_encoder()

    def decoder(self, layer: int) -> WeightRows:
        return _Writes(self.mlp(layer))

    def decoder_bias(self, layer: int) -> Tensor:
        """(D,), where it is no matter which experts a token is sent to; `output_bias` says it for tokens."""
        units = self.mlp(layer).units
        if len(units) > 1 and any(each.write_bias is not None for each in units):
            raise InputError(f"layer {layer}: the bias depends on the experts a token is sent to; ask output_bias")
        bias = units[0].write_bias
        return units[0].write.new_zeros(self.d_model) if bias is None else bias

    def output_bias(self, layer: int, x_PD: Callable[[], Tensor]) -> Tensor:
        return self.mlp(layer).bias(x_PD())

    def skip_matrix(self, layer: int) -> Tensor | None:
        return None

    def activation(self, layer: int) -> Activation:
        """Of `encode_layer`'s pre-activations, which are ± a neuron's activation."""
        return ReLU()

    def require_native(self) -> None:
        raise InputError("neurons are the model's own weights, and no dictionary to write into files")

    def to_safetensors(self, save_path: str | Path) -> None:
        self.require_native()

    @property
    def device(self) -> torch.device:
        return self.parts.device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = next(self.parts.model.parameters()).dtype
        return dtype

    # ---- the engine's interface

    @torch.no_grad()
    def encode_positions(self, layer: int, x_PD: Tensor) -> Selected:
        value = self._activations(layer, x_PD)
        position, neuron = value.nonzero(as_tuple=True)
        value = value[position, neuron]
        return position, 2 * neuron + (value < 0), value.abs()

    @torch.no_grad()
    def encode_layer(self, x: Tensor, layer_id: int, apply_activation_function: bool = True) -> Tensor:
        value = self._activations(layer_id, x.flatten(0, -2)).unflatten(0, x.shape[:-1])
        pre = torch.stack([value, -value], dim=-1).flatten(-2)
        return pre.relu() if apply_activation_function else pre

    @torch.no_grad()
    def reads(self, layer: int, index: Tensor, position: Tensor, x_PD: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        self._require_index(layer, index)
        x = x_PD()
        sign = sides(index).to(x)
        read, constant, _ = self.mlp(layer).reads(x, position.to(x.device), index.to(x.device) // 2)
        return read * sign[:, None], constant * sign

    @torch.no_grad()
    def values(self, layer: int, x_PD: Tensor, position: Tensor, index: Tensor) -> Tensor:
        """Activations (n,) of features ``index`` at ``position``, for inputs (P, D)."""
        self._require_index(layer, index)
        _, _, value = self.mlp(layer).reads(x_PD, position.to(x_PD.device), index.to(x_PD.device) // 2)
        return (value * sides(index).to(value)).relu()

    def _activations(self, layer: int, x_nD: Tensor) -> Tensor:
        """(n, F / 2)"""
        wide = torch.promote_types(torch.float32, x_nD.dtype)
        return self.mlp(layer).activations(x_nD.detach().to(wide))


class _Writes:
    """What features write, (F, 1, D)."""

    def __init__(self, mlp: Mlp) -> None:
        self._mlp, self._like = mlp, mlp.units[0].write

    @property
    def shape(self) -> torch.Size:
        return torch.Size((2 * self._mlp.n_neurons, 1, self._like.shape[1]))

    @property
    def dtype(self) -> torch.dtype:
        return self._like.dtype

    @property
    def device(self) -> torch.device:
        return self._like.device

    def rows(self, index: Tensor, slot: int | None = None) -> Tensor:
        rows = self._mlp.write_rows(index // 2)
        rows = rows * sides(index).to(rows)[:, None]
        return rows if slot is not None else rows[:, None]

    def block(self, start: int, stop: int) -> Tensor:
        return self.rows(torch.arange(start, stop))

    def whole(self) -> Tensor:
        return self.block(0, self.shape[0])


def sides(index: Tensor) -> Tensor:
    """+1 or -1 for each feature."""
    return 1 - 2 * (index % 2)


def _no_encoder() -> NoReturn:
    raise InputError(
        "a neuron has no encoder row, because what it reads depends on the prompt. Ask for what it reads on one "
        "(Transcoders.reads), or for what it writes (decoder_rows)"
    )
