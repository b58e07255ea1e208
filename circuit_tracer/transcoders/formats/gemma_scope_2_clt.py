"""Gemma Scope 2, cross-layer: safetensors with w_enc (D, F), w_dec (F, L, D), b_enc, b_dec, threshold (F); JumpReLU.

The decoder of layer i has a slot for every layer; slots before i are zero, so [:, i:] is used, as a view of the file.
`affine_skip_connection` (D, D) is applied as x @ affine. Published lists repeat the last shard, because
circuit-tracer's loader drops the last entry: a repetition is removed, nothing else is. A dump with all layers stacked
in one file (w_enc (L, D, F), w_dec (L, F, L, D)) is read too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from circuit_tracer.errors import FileFormatError
from circuit_tracer.files.tensors import TensorFile
from circuit_tracer.transcoders.formats.format import Format
from circuit_tracer.transcoders.formats.gemma_scope_2_plt import KEYS
from circuit_tracer.transcoders.layer_weights import LayerWeights

_SKIP = "affine_skip_connection"
_SAMPLE = 32  # features looked at to see that slots of earlier layers are empty


def detect(file: TensorFile) -> bool:
    return set(file.entries) >= KEYS and len(file.shapes["w_dec"]) in (3, 4)


def read(files: list[TensorFile]) -> list[LayerWeights]:
    layers = [tensors for file in files for tensors in _unstacked(file)]
    n_layers = layers[0][1]["w_dec"].shape[1]
    if len(layers) == n_layers + 1 and _same(layers[-1][1], layers[-2][1]):
        layers.pop()
    if len(layers) != n_layers:
        raise FileFormatError(
            f"{files[0].path}: the decoders write to {n_layers} layers, but {len(layers)} layers were given. "
            "List one file for each layer, in order."
        )
    return [_layer(source, tensors, layer) for layer, (source, tensors) in enumerate(layers)]


def _unstacked(file: TensorFile) -> list[tuple[str, dict[str, Tensor]]]:
    names = [*sorted(KEYS), *([_SKIP] if _SKIP in file else [])]
    tensors = {name: file.tensor(name) for name in names}
    if tensors["w_dec"].ndim == 3:
        return [(str(file.path), tensors)]
    n_layers = tensors["w_dec"].shape[0]
    return [(str(file.path), {name: tensor[layer] for name, tensor in tensors.items()}) for layer in range(n_layers)]


def _same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two shards are one and the same; small tensors decide, real layers differ in all of them."""
    return all(torch.equal(a[name], b[name]) for name in ("b_enc", "b_dec", "threshold"))


def _layer(source: str, tensors: dict[str, Tensor], layer: int) -> LayerWeights:
    if tensors["w_dec"][:_SAMPLE, :layer].any():
        raise FileFormatError(
            f"{source}: taken for layer {layer}, but its decoder writes to earlier layers too. "
            "Check the order of the files."
        )
    return LayerWeights(
        source=source,
        encoder=tensors["w_enc"].T,
        decoder=tensors["w_dec"][:, layer:],
        encoder_bias=tensors["b_enc"],
        decoder_bias=tensors["b_dec"],
        threshold=tensors["threshold"],
        skip=tensors.get(_SKIP),
    )


FORMAT = Format(
    name="Gemma Scope 2 cross-layer",
    kind="cross_layer_transcoder",
    layout="safetensors a layer: w_enc (D, F), w_dec (F, L, D), b_enc (F), b_dec (D), threshold (F) "
    "[, affine_skip_connection (D, D)]",
    detect=detect,
    read=read,
)
