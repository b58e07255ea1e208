"""Gemma Scope 1: one .npz a layer with W_enc (D, F), W_dec (F, D), b_enc, b_dec, threshold (F); JumpReLU.

(Some re-uploads are safetensors with the same names.) Its transcoders were trained on the normalised residual stream, before
the norm's scale. Its autoencoders of the residual stream, of MLP and of attention outputs have files of the same names and
shapes: nothing in them tells one from the other.
"""

from __future__ import annotations

from circuit_tracer.transcoders.formats.format import Format, each
from circuit_tracer.transcoders.formats.layer_file import LayerFile
from circuit_tracer.transcoders.layer_weights import LayerWeights

_TENSORS = {"W_enc", "W_dec", "b_enc", "b_dec", "threshold"}


def detect(file: LayerFile) -> bool:
    shapes = file.shapes
    if not file.names >= _TENSORS or file.has_key("architecture"):  # SAELens'
        return False
    return shapes["W_enc"] == (*shapes["b_dec"], *shapes["b_enc"])


def read_layer(file: LayerFile) -> LayerWeights:
    return LayerWeights(
        source=str(file.path),
        encoder=file.matrix("W_enc").T,
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
    hooks_note="those of its transcoders; but its autoencoders have files that look the same, and would give numbers that mean "
    "nothing",
)
