"""Gemma Scope 2, per-layer: safetensors with w_enc (D, F), w_dec (F, D), b_enc, b_dec, threshold (F); JumpReLU.

An optional `affine_skip_connection` (D, D) is applied as x @ affine.
"""

from __future__ import annotations

from circuit_tracer.files.tensors import TensorFile
from circuit_tracer.transcoders.formats.format import Format, each
from circuit_tracer.transcoders.layer_weights import LayerWeights

KEYS = {"w_enc", "w_dec", "b_enc", "b_dec", "threshold"}


def detect(file: TensorFile) -> bool:
    return set(file.entries) >= KEYS and len(file.shapes["w_dec"]) == 2


def read_layer(file: TensorFile) -> LayerWeights:
    return LayerWeights(
        source=str(file.path),
        encoder=file.tensor("w_enc").T,
        decoder=file.tensor("w_dec"),
        encoder_bias=file.tensor("b_enc"),
        decoder_bias=file.tensor("b_dec"),
        threshold=file.tensor("threshold"),
        skip=file.tensor("affine_skip_connection") if "affine_skip_connection" in file else None,
    )


FORMAT = Format(
    name="Gemma Scope 2 per-layer",
    kind="transcoder_set",
    layout="safetensors a layer: w_enc (D, F), w_dec (F, D), b_enc (F), b_dec (D), threshold (F) "
    "[, affine_skip_connection (D, D)]",
    detect=detect,
    read=each(read_layer),
)
