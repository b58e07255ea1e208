"""Gemma Scope 2, per-layer: safetensors with w_enc (D, F), w_dec (F, D), b_enc, b_dec, threshold (F); JumpReLU.

An optional `affine_skip_connection` (D, D) is applied as x @ affine. config.json beside it: gemma_scope_2.py.
"""

from __future__ import annotations

from circuit_tracer.transcoders.formats.format import Format, each
from circuit_tracer.transcoders.formats.gemma_scope_2 import HARMLESS_KEYS, SKIP, TENSORS, said_by
from circuit_tracer.transcoders.formats.layer_file import LayerFile
from circuit_tracer.transcoders.layer_weights import LayerWeights


def detect(file: LayerFile) -> bool:
    return file.names >= TENSORS and len(file.shapes["w_dec"]) == 2


def read_layer(file: LayerFile) -> LayerWeights:
    encoder = file.matrix("w_enc").T
    said = said_by(file, "transcoder", len(encoder))
    return LayerWeights(
        source=str(file.path),
        encoder=encoder,
        decoder=file.tensor("w_dec"),
        encoder_bias=file.tensor("b_enc"),
        decoder_bias=file.tensor("b_dec"),
        threshold=file.tensor("threshold"),
        skip=file.optional(SKIP),
        reads=said.reads,
        writes=said.writes,
    )


FORMAT = Format(
    name="Gemma Scope 2 per-layer",
    kind="transcoder_set",
    layout="safetensors a layer: w_enc (D, F), w_dec (F, D), b_enc (F), b_dec (D), threshold (F) "
    "[, affine_skip_connection (D, D)]",
    detect=detect,
    read=each(read_layer),
    harmless_keys=HARMLESS_KEYS,
)
