"""Goodfire's autoencoders of the residual stream, and others that are two linear layers in a state dict (`.pt`, `.pth`).

`encoder_linear.weight` (F, D) and `.bias`, `decoder_linear.weight` (D, F) and `.bias` (Goodfire); the same as `encoder.` and
`decoder.` (DeepSeek-R1's; dictionary_learning's AutoEncoderNew). max(W x + b, 0), nothing is subtracted. The layer is in the
name of the file (`...-SAE-l19.pth`); where it stands in the layer, only Goodfire's names tell.
"""

from __future__ import annotations

import re

from circuit_tracer.transcoders.formats import dictionary_learning, llama_scope
from circuit_tracer.transcoders.formats.format import Format, each
from circuit_tracer.transcoders.formats.layer_file import LayerFile
from circuit_tracer.transcoders.layer_weights import LayerWeights
from circuit_tracer.transcoders.places import require_one_place

_LAYER = re.compile(r"(?<![A-Za-z0-9])[lL](\d+)(?!\d)")
_GOODFIRE = "encoder_linear"
_PARTS = ((_GOODFIRE, "decoder_linear"), ("encoder", "decoder"))


def detect(file: LayerFile) -> bool:
    return _parts(file) is not None and not file.has_key(*dictionary_learning.SAYS) and not llama_scope.detect(file)


def _parts(file: LayerFile) -> tuple[str, str] | None:
    for pair in _PARTS:
        if file.names == {f"{part}.{name}" for part in pair for name in ("weight", "bias")}:
            return pair
    return None


def read_layer(file: LayerFile) -> LayerWeights:
    source = str(file.path)
    encoder, decoder = _parts(file) or _PARTS[0]
    named = [match for part in reversed(file.path.parts) if (match := _LAYER.search(part))]
    place = require_one_place("hook_resid_post", source) if encoder == _GOODFIRE else None
    return LayerWeights(
        source=source,
        encoder=file.matrix(f"{encoder}.weight"),
        decoder=file.matrix(f"{decoder}.weight").T,
        encoder_bias=file.tensor(f"{encoder}.bias"),
        decoder_bias=file.tensor(f"{decoder}.bias"),
        reads=place,
        writes=place,
        layer=int(named[0][1]) if named else None,
    )


FORMAT = Format(
    name="Goodfire autoencoder",
    kind="transcoder_set",
    layout="<name>-l{n}.pth: encoder_linear.weight (F, D), decoder_linear.weight (D, F) and biases",
    detect=detect,
    read=each(read_layer),
    hooks=("hook_resid_post", "hook_resid_post"),
    hooks_note="where the published ones stand",
)
