"""Feature activations while the model runs: of chosen features, or recorded for all.

Letters: L layers, P positions, D d_model, F features a layer, n chosen features.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from circuit_tracer.kernels.device import sent
from circuit_tracer.transcoders.activations import JumpReLU, TopK, exceeds
from circuit_tracer.transcoders.active import ActiveFeatures
from circuit_tracer.transcoders.base import Transcoders
from circuit_tracer.transcoders.neurons import Neurons
from circuit_tracer.transcoders.stacked import Stacked
from circuit_tracer.transcoders.transcoder_set import TranscoderSet


def activations_of(transcoders: Transcoders, layer: int, x_PD: Tensor, position: Tensor, index: Tensor) -> Tensor:
    """Activations (n,) of features `index` (n,) at `position` (n,), for the layer's inputs x (P, D).

    Only the encoder rows of these features are read, unless features are compared with each other (TopK) or chosen by a
    router.

    Args:
        transcoders: The dictionary.
        layer: The layer.
        x_PD: (P, D) what the layer's features read.
        position: (n,) int64.
        index: (n,) int64, on the host best: of one that a device has, the device is asked.

    Returns:
        (n,) activations, in the dictionary's own units.
    """
    if isinstance(transcoders, Stacked):  # each part chooses among its own features
        found = torch.zeros(len(index), dtype=x_PD.dtype, device=x_PD.device)
        for _, part, first in transcoders.stack():
            own = (index >= first) & (index < first + part.n_features(layer))
            if bool(own.any()):
                found[own] = activations_of(part, layer, x_PD, position[own], index[own] - first)
        return found
    if isinstance(transcoders, Neurons):
        return transcoders.values(layer, x_PD, position, index)
    function = transcoders.activation(layer)
    if isinstance(function, TopK) or transcoders.router(layer) is not None:
        return _look_up(transcoders, layer, x_PD, position, index)
    unique, inverse = torch.unique(index, return_inverse=True)
    rows, bias = transcoders.encoder_rows(layer, unique)
    there = sent(inverse, x_PD.device)
    rows, bias = rows.to(x_PD).index_select(0, there), bias.to(x_PD).index_select(0, there)
    pre = (x_PD[position] * rows).sum(-1) + bias
    if isinstance(function, JumpReLU):
        threshold = function.threshold
        if threshold.ndim:
            threshold = threshold.index_select(0, sent(index, threshold.device))
        return torch.where(exceeds(pre, threshold), pre, 0)
    value: Tensor = function(pre)
    return value


def _look_up(transcoders: Transcoders, layer: int, x_PD: Tensor, position: Tensor, index: Tensor) -> Tensor:
    index = index.to(position.device)
    places, row = torch.unique(position, return_inverse=True)
    found_row, found_index, found_value = transcoders.encode_positions(layer, x_PD[places])
    width = transcoders.n_features(layer)
    key, wanted = found_row * width + found_index, row * width + index  # `key` ascends
    slot = torch.searchsorted(key, wanted).clamp_max(max(len(key) - 1, 0))
    if not len(key):
        return torch.zeros(len(index), dtype=x_PD.dtype, device=x_PD.device)
    return torch.where(key[slot] == wanted, found_value[slot], 0).to(x_PD.dtype)


class Recorder:
    """Collects the activations (L, P, F) of a pass, layer by layer, dense or sparse; zero at `zero_positions`.

    Without the activation function they are pre-activations. Sparse activations are never dense in between; sparse
    pre-activations hold every entry, a layer at a time.
    """

    def __init__(
        self,
        transcoders: Transcoders,
        sparse: bool,
        apply_activation_function: bool,
        zero_positions: list[int],
        attention: TranscoderSet | None = None,
    ) -> None:
        self.transcoders, self.sparse, self.apply = transcoders, sparse, apply_activation_function
        self.zero_positions = zero_positions
        self.layers: list[Tensor] = []
        self._active: list[tuple[Tensor, Tensor, Tensor]] = []
        self._n_pos = 0
        self.attention = attention
        self._of_attention: dict[int, Tensor] = {}  # (P, F) of the features behind those of the transcoders

    def add_attention(self, layer: int, pre_PF: Tensor) -> None:
        """Take the pre-activations of the features of attention of a layer."""
        if self.attention is None:  # nobody asked
            return
        found = self.attention.apply_activation_function(layer, pre_PF) if self.apply else pre_PF
        found = functional.pad(found.detach(), (0, self.attention.d_transcoder - found.shape[-1]))
        found[[position for position in self.zero_positions if position < len(found)]] = 0
        self._of_attention[layer] = found

    def add(self, layer: int, x_PD: Tensor) -> None:
        """Take the inputs of the next layer."""
        self._n_pos = x_PD.shape[0]
        dropped = torch.zeros(self._n_pos, dtype=torch.bool, device=x_PD.device)
        dropped[[position for position in self.zero_positions if position < self._n_pos]] = True
        if self.sparse and self.apply:
            position, index, value = self.transcoders.encode_positions(layer, x_PD)
            keep = ~dropped[position]
            self._active.append((position[keep], index[keep], value[keep]))
            return
        dense = self.transcoders.encode_layer(x_PD, layer, self.apply).detach()
        dense = functional.pad(dense, (0, self.transcoders.d_transcoder - dense.shape[-1]))
        dense[dropped] = 0
        self.layers.append(dense.to_sparse() if self.sparse else dense)

    def result(self) -> Tensor:
        """(L, P, F); features of attention, if there is a dictionary of these, behind the others."""
        if self.attention is None:
            return self._of_mlps()
        mlps, width = self._of_mlps(), self.attention.d_transcoder
        silent = torch.zeros(self._n_pos, width, dtype=mlps.dtype, device=mlps.device)
        layers = [self._of_attention.get(layer, silent).to(mlps.dtype) for layer in range(len(mlps))]
        behind = torch.stack(layers)
        return (
            torch.cat([mlps, behind.to_sparse()], dim=2).coalesce() if mlps.is_sparse else torch.cat([mlps, behind], 2)
        )

    def _of_mlps(self) -> Tensor:
        if self._active:
            shape = (self.transcoders.n_layers, self._n_pos, self.transcoders.d_transcoder)
            return ActiveFeatures.from_layers(self._active).to_sparse(shape)
        stacked = torch.stack(self.layers)
        return stacked.coalesce() if self.sparse else stacked
