"""Gemma Scope 1: one .npz a layer with W_enc (D, F), W_dec (F, D), b_enc, b_dec, threshold (F); JumpReLU.

(Some re-uploads are safetensors with the same names.) Its transcoders were trained on the normalised residual stream, before
the norm's scale. Its autoencoders of the residual stream, of MLP outputs and of heads have files of the same names and shapes:
nothing in them tells one from the other, but the name of the repository does (gemma-scope-2b-pt-res, -mlp, -att).
"""

from __future__ import annotations

import re

from circuit_tracer.transcoders.formats.format import Format, each
from circuit_tracer.transcoders.formats.layer_file import LayerFile
from circuit_tracer.transcoders.layer_weights import LayerWeights
from circuit_tracer.transcoders.places import require_one_place

_TENSORS = {"W_enc", "W_dec", "b_enc", "b_dec", "threshold"}
_REPOSITORY = re.compile(r"gemma-scope-\w+-(?:pt|it)-(res|mlp|att)(?![a-z])")
_PLACES = {"res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "attn.hook_z"}  # arXiv 2408.05147, section 3


def detect(file: LayerFile) -> bool:
    shapes = file.shapes
    if not file.names >= _TENSORS or file.has_key(
        "architecture", "trainer.dict_class"
    ):  # SAELens', dictionary_learning's
        return False
    return shapes["W_enc"] == (*shapes["b_dec"], *shapes["b_enc"])


def read_layer(file: LayerFile) -> LayerWeights:
    named = _REPOSITORY.search(str(file.path))
    place = None if named is None else require_one_place(_PLACES[named[1]], str(file.path))
    return LayerWeights(
        source=str(file.path),
        encoder=file.matrix("W_enc").T,
        decoder=file.tensor("W_dec"),
        encoder_bias=file.tensor("b_enc"),
        decoder_bias=file.tensor("b_dec"),
        threshold=file.tensor("threshold").clamp(min=0),  # of max(pre, 0)
        reads=place,
        writes=place,
    )


FORMAT = Format(
    name="Gemma Scope 1",
    kind="transcoder_set",
    layout=".npz a layer: W_enc (D, F), W_dec (F, D), b_enc (F), b_dec (D), threshold (F)",
    detect=detect,
    read=each(read_layer),
    hooks=("ln2.hook_normalized", "hook_mlp_out"),
    hooks_note="those of its transcoders; but its autoencoders have files that look the same, and would give numbers that mean "
    "nothing: of those, give their place for both hooks (hook_resid_post of the residual stream)",
)
