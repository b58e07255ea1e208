"""Gemma Scope 1: one .npz a layer with W_enc (D, F), W_dec (F, D), b_enc, b_dec, threshold (F); JumpReLU.

(Some re-uploads are safetensors with the same names.) Trained on the normalised residual stream,
before the norm's scale.
"""

from __future__ import annotations

from circuit_tracer.files.tensors import TensorFile
from circuit_tracer.transcoders.formats.format import Format, each
from circuit_tracer.transcoders.layer_weights import LayerWeights


def detect(file: TensorFile) -> bool:
    shapes = file.shapes
    if not {"W_enc", "W_dec", "b_enc", "b_dec", "threshold"} <= set(shapes) or "architecture" in file.config:
        return False
    return shapes["W_enc"] == (*shapes["b_dec"], *shapes["b_enc"])


def read_layer(file: TensorFile) -> LayerWeights:
    return LayerWeights(
        source=str(file.path),
        encoder=file.tensor("W_enc").T,
        decoder=file.tensor("W_dec"),
        encoder_bias=file.tensor("b_enc"),
        decoder_bias=file.tensor("b_dec"),
        threshold=file.tensor("threshold"),
    )


FORMAT = Format(
    name="Gemma Scope 1",
    kind="transcoder_set",
    layout=".npz a layer: W_enc (D, F), W_dec (F, D), b_enc (F), b_dec (D), threshold (F)",
    detect=detect,
    read=each(read_layer),
    hooks=("ln2.hook_normalized", "hook_mlp_out"),
)
