"""Qwen-Scope autoencoders of the residual stream: `SAE-Res-{model}-W{n}K-L0_{k}/layer{n}.sae.pt`, a dict of four tensors.

`W_enc` (F, D), `W_dec` (D, F), `b_enc` (F,), `b_dec` (D,). The k largest pre-activations W_enc x + b_enc are kept, whatever
their sign. k is in the name of the repository, or in a cfg.json beside the files ({"k": 100}).
"""

from __future__ import annotations

import re

from circuit_tracer.errors import FileFormatError
from circuit_tracer.transcoders.formats.format import Format, each
from circuit_tracer.transcoders.formats.layer_file import LayerFile, whole
from circuit_tracer.transcoders.layer_weights import LayerWeights
from circuit_tracer.transcoders.places import require_one_place

_K = re.compile(r"SAE-Res-[^/]*-L0_(\d+)")
_TENSORS = {"W_enc", "W_dec", "b_enc", "b_dec"}


def detect(file: LayerFile) -> bool:
    shapes = file.shapes
    return (
        file.names == _TENSORS
        and not file.has_key("architecture")
        and shapes["W_dec"] == (*shapes["b_dec"], *shapes["b_enc"])
        and shapes["W_enc"] == shapes["W_dec"][::-1]
    )


def read_layer(file: LayerFile) -> LayerWeights:
    source = str(file.path)
    named = _K.search(source)
    k = whole(file.key("k")) or (int(named[1]) if named else None)
    if k is None:
        raise FileFormatError(
            f"{source} does not say how many features are kept; its repository's name does (SAE-Res-...-L0_100). Keep that "
            'name for the folder, or write {"k": 100} into a cfg.json beside it.'
        )
    place = require_one_place("hook_resid_post", source)
    return LayerWeights(
        source=source,
        encoder=file.matrix("W_enc"),
        decoder=file.matrix("W_dec").T,
        encoder_bias=file.tensor("b_enc"),
        decoder_bias=file.tensor("b_dec"),
        k=k,
        reads=place,
        writes=place,
    )


FORMAT = Format(
    name="Qwen-Scope autoencoder",
    kind="transcoder_set",
    layout="layer{n}.sae.pt: W_enc (F, D), W_dec (D, F), b_enc (F), b_dec (D)",
    detect=detect,
    read=each(read_layer),
)
