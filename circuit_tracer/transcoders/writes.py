"""What a dictionary makes of its inputs, sparsely: only decoder rows of active features are read, a block at a time.

Letters: N tokens, S layers, T layers written to, F features a layer, D width, n active entries, u features that are active.
"""

from __future__ import annotations

import torch
from torch import Tensor

from circuit_tracer.kernels.decode import decode_
from circuit_tracer.kernels.sparse_activations import SparseActivations
from circuit_tracer.transcoders.activations import Selected
from circuit_tracer.transcoders.base import Transcoders

BLOCK_BYTES = 128 * 2**20  # decoder rows in hand


def reconstruct(transcoders: Transcoders, x_NSD: Tensor, active_N: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
    """(outputs (N, S, D), how many tokens each feature is active on: S times (F,) int64) for inputs (N, S, D).

    active_N: how many features each token has of all layers is added to it, in place.
    """
    y_NSD = x_NSD.new_zeros(x_NSD.shape)
    counts = []
    for layer in range(transcoders.n_layers):
        selected = transcoders.encode_positions(layer, x_NSD[:, layer])
        counts.append(torch.bincount(selected[1], minlength=transcoders.n_features(layer)))
        if active_N is not None:
            active_N += torch.bincount(selected[0], minlength=len(x_NSD)).to(active_N)
        add_writes_(y_NSD, transcoders, layer, selected)
        y_NSD[:, layer] += constant_writes(transcoders, layer, x_NSD[:, layer])
    return y_NSD, counts


def add_writes_(y_NSD: Tensor, transcoders: Transcoders, layer: int, selected: Selected) -> None:
    """Add what the active features of one layer write to all layers, in place; accumulates in the dtype of ``y_NSD``."""
    position, index, value = selected
    targets, width = transcoders.target_layers(layer), y_NSD.shape[2]
    y_NC = y_NSD.flatten(1)[:, targets.start * width : targets.stop * width]
    features, place = torch.unique(index, return_inverse=True)
    step = max(1, BLOCK_BYTES // (len(targets) * width * y_NSD.element_size()))
    for start in range(0, len(features), step):
        block = features[start : start + step]
        inside: slice | Tensor = (
            slice(None) if len(block) == len(features) else (place >= start) & (place < start + step)
        )
        entries = SparseActivations.from_entries(
            position[inside], place[inside] - start, value[inside], y_NSD.shape[0], len(block)
        )
        decode_(y_NC, entries, transcoders.decoder_rows(layer, block).to(y_NSD.device).flatten(1))


def constant_writes(transcoders: Transcoders, layer: int, x_ND: Tensor) -> Tensor:
    """What a layer's reconstruction has besides features: its bias (D,), with a skip connection (N, D)."""
    bias = transcoders.decoder_bias(layer).to(x_ND)
    skip = transcoders.skip_matrix(layer)
    return bias if skip is None else bias + x_ND @ skip.to(x_ND)
