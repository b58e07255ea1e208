"""Gemma Scope 2, cross-layer: safetensors with w_enc (D, F), w_dec (F, L, D), b_enc, b_dec, threshold (F); JumpReLU.

The decoder of layer i has a slot for every layer; slots before i are zero, so [:, i:] is used, as a view of the file.
`affine_skip_connection` (D, D) is applied as x @ affine. Published lists repeat the last shard, because
circuit-tracer's loader drops the last entry: a repetition is removed, nothing else is. A dump with all layers stacked
in one file (w_enc (L, D, F), w_dec (L, F, L, D)) is read too. config.json beside the files: gemma_scope_2.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from circuit_tracer.errors import FileFormatError
from circuit_tracer.transcoders.formats.format import Format
from circuit_tracer.transcoders.formats.gemma_scope_2 import HARMLESS_KEYS, SKIP, TENSORS, Said, said_by
from circuit_tracer.transcoders.formats.layer_file import LayerFile
from circuit_tracer.transcoders.layer_weights import LayerWeights

_READ_WHOLE = 64 * 2**20  # bytes of a decoder's slots of earlier layers up to which all are looked at,
_SAMPLE = 256  # and rows, evenly spread, of larger ones


@dataclass(frozen=True)
class _Shard:
    """The tensors of one layer, and where they come from."""

    source: str
    tensors: dict[str, Tensor]
    said: Said


def detect(file: LayerFile) -> bool:
    return file.names >= TENSORS and len(file.shapes["w_dec"]) in (3, 4)


def read(files: list[LayerFile]) -> list[LayerWeights]:
    layers = [shard for file in files for shard in _unstacked(file)]
    n_layers = layers[0].tensors["w_dec"].shape[1]
    if len(layers) == n_layers + 1 and _same(layers[-1], layers[-2]):
        layers.pop()
    if len(layers) != n_layers:
        raise FileFormatError(
            f"{files[0].path}: the decoders write to {n_layers} layers, but {len(layers)} layers were given. "
            "List one file for each layer, in order."
        )
    return [_layer(shard, layer) for layer, shard in enumerate(layers)]


def _unstacked(file: LayerFile) -> list[_Shard]:
    tensors = {name: file.tensor(name) for name in sorted(TENSORS)}
    if SKIP in file:
        tensors[SKIP] = file.tensor(SKIP)
    said = said_by(file, "clt", tensors["b_enc"].shape[-1])
    if tensors["w_dec"].ndim == 3:
        return [_Shard(str(file.path), tensors, said)]
    n_layers = tensors["w_dec"].shape[0]
    if wrong := {name: tuple(tensor.shape) for name, tensor in tensors.items() if tensor.shape[:1] != (n_layers,)}:
        raise FileFormatError(f"{file.path}: w_dec holds {n_layers} layers, but {wrong} do not. The file is damaged.")
    return [
        _Shard(str(file.path), {name: tensor[layer] for name, tensor in tensors.items()}, said)
        for layer in range(n_layers)
    ]


def _same(one: _Shard, other: _Shard) -> bool:
    """Whether two shards hold the same numbers."""
    if one.source == other.source:
        return True
    return one.tensors.keys() == other.tensors.keys() and all(
        torch.equal(tensor, other.tensors[name]) for name, tensor in sorted(one.tensors.items())
    )


def _layer(shard: _Shard, layer: int) -> LayerWeights:
    tensors = shard.tensors
    earlier = tensors["w_dec"][:, :layer]
    if earlier.numel() * earlier.element_size() > _READ_WHOLE:
        earlier = earlier[:: -(-len(earlier) // _SAMPLE)]
    if earlier.any():
        raise FileFormatError(
            f"{shard.source}: taken for layer {layer}, but its decoder writes to earlier layers too. "
            "Check the order of the files."
        )
    return LayerWeights(
        source=shard.source,
        encoder=tensors["w_enc"].T,
        decoder=tensors["w_dec"][:, layer:],
        encoder_bias=tensors["b_enc"],
        decoder_bias=tensors["b_dec"],
        threshold=tensors["threshold"].clamp(min=0),  # of max(pre, 0)
        skip=tensors.get(SKIP),
        reads=shard.said.reads,
        writes=shard.said.writes,
    )


FORMAT = Format(
    name="Gemma Scope 2 cross-layer",
    kind="cross_layer_transcoder",
    layout="safetensors a layer: w_enc (D, F), w_dec (F, L, D), b_enc (F), b_dec (D), threshold (F) "
    "[, affine_skip_connection (D, D)]",
    detect=detect,
    read=read,
    harmless_keys=HARMLESS_KEYS,
)
