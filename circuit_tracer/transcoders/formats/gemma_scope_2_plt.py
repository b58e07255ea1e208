"""Gemma Scope 2, of one layer: safetensors with w_enc (D, F), w_dec (F, D), b_enc, b_dec, threshold (F); JumpReLU.

An optional `affine_skip_connection` (D, D) is applied as x @ affine. config.json beside it: gemma_scope_2.py; its type says
whether it is a transcoder or an autoencoder.
"""

from __future__ import annotations

from dataclasses import replace

from circuit_tracer.transcoders.formats.format import Format, each
from circuit_tracer.transcoders.formats.gemma_scope_2 import HARMLESS_KEYS, SAE, SKIP, TENSORS, said_by
from circuit_tracer.transcoders.formats.layer_file import LayerFile
from circuit_tracer.transcoders.layer_weights import LayerWeights


def detect(file: LayerFile) -> bool:
    return _is_ours(file) and file.value("type") != SAE


def detect_autoencoder(file: LayerFile) -> bool:
    return _is_ours(file) and file.value("type") == SAE


def _is_ours(file: LayerFile) -> bool:
    return file.names >= TENSORS and len(file.shapes["w_dec"]) == 2


def read_layer(file: LayerFile) -> LayerWeights:
    return _read(file, "transcoder")


def read_autoencoder(file: LayerFile) -> LayerWeights:
    return _read(file, SAE)


def _read(file: LayerFile, kind: str) -> LayerWeights:
    encoder = file.matrix("w_enc").T
    said = said_by(file, kind, len(encoder))
    return LayerWeights(
        source=str(file.path),
        encoder=encoder,
        decoder=file.tensor("w_dec"),
        encoder_bias=file.tensor("b_enc"),
        decoder_bias=file.tensor("b_dec"),
        threshold=file.tensor("threshold").clamp(min=0),  # of max(pre, 0)
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
AUTOENCODER = replace(
    FORMAT,
    name="Gemma Scope 2 autoencoder",
    layout="the same, with type sae in config.json",
    detect=detect_autoencoder,
    read=each(read_autoencoder),
)
