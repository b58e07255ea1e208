"""The demo's cross-layer transcoder, held dense: small enough for that, and all that probes and tests need.

Shapes: L layers, T layers written to, F features a layer, D d_model, B rows of activations.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from circuit_tracer.transcoders import CrossLayerTranscoder, load_transcoder_from_hub
from circuit_tracer.transcoders.base import Transcoders


def load_dictionary(folder: str | Path) -> CrossLayerTranscoder:
    """The transcoder of a folder in float32, all of it in memory."""
    transcoder, _ = load_transcoder_from_hub(str(folder), dtype=torch.float32, lazy_decoder=False)
    assert isinstance(transcoder, CrossLayerTranscoder)
    return transcoder


@torch.no_grad()
def write(transcoder: Transcoders, layer: int, activation_BF: Tensor) -> Tensor:
    """What these activations of one layer add to its own and all later layers' MLP outputs: (..., T, D)."""
    decoder_FTD = transcoder.decoder(layer).block(0, transcoder.n_features(layer))
    written: Tensor = (activation_BF @ decoder_FTD.flatten(1)).unflatten(-1, decoder_FTD.shape[1:])
    return written


@torch.no_grad()
def reconstruct(transcoder: CrossLayerTranscoder, x_LBD: Tensor) -> Tensor:
    """The MLP outputs (L, B, D) predicted from the inputs of all layers."""
    y_LBD = transcoder.b_dec[:, None].expand_as(x_LBD).clone()
    for layer in range(transcoder.n_layers):
        y_LBD[layer:] += write(transcoder, layer, transcoder.encode_layer(x_LBD[layer], layer)).movedim(-2, 0)
    return y_LBD
