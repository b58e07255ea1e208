"""Switch autoencoders of our trainer: SAELens's file of an autoencoder with a router beside it.

`cfg.json` says architecture "switch" and k; beside `W_enc` (D, F), `W_dec` (F, D), `b_enc` (F,) and `b_dec` (D,) stand
`W_router` (N, D) and `b_router` (N,). Of a token x, p = softmax(W_router x + b_router), and its expert i, of the largest of
these, owns features i F/N ... (i + 1) F/N - 1: the k largest of their positive pre-activations are active, times p_i. SAELens
itself knows no such architecture, and refuses the file.
"""

from __future__ import annotations

from circuit_tracer.errors import FileFormatError, shortened
from circuit_tracer.transcoders.formats.format import Format, each
from circuit_tracer.transcoders.formats.layer_file import LayerFile, whole
from circuit_tracer.transcoders.formats.saelens import HARMLESS_KEYS, SWITCH, encoder_of, layer_of
from circuit_tracer.transcoders.layer_weights import LayerWeights
from circuit_tracer.transcoders.places import require_one_place

WEIGHT, BIAS = "W_router", "b_router"


def detect(file: LayerFile) -> bool:
    return {WEIGHT, BIAS} <= file.names and file.has_key("architecture") and file.key("architecture") == SWITCH


def read_layer(file: LayerFile) -> LayerWeights:
    encoder, weight, k = encoder_of(file), file.matrix(WEIGHT), whole(file.key("k"))
    n_features, n_experts = len(encoder), len(weight)
    if k is None or not 0 < k <= n_features // n_experts or n_features % n_experts:
        raise FileFormatError(
            f"{file.path}: k is {shortened(file.key('k'))} of {n_features} features that {n_experts} experts share; a whole "
            "number is expected, at most the features of an expert, which are equally many. Export it again."
        )
    for name in ("apply_b_dec_to_input", "normalize_activations"):
        if file.key(name) not in (None, False, "none"):
            raise FileFormatError(f"{file.path}: cfg.json has {name}, which a switch does not know. Export it again.")
    place = require_one_place(file.key("hook_name", "metadata.hook_name"), str(file.path))
    model_name = file.key("metadata.model_name", "model_name")
    return LayerWeights(
        source=str(file.path),
        encoder=encoder,
        decoder=file.tensor("W_dec"),
        encoder_bias=file.tensor("b_enc"),
        decoder_bias=file.tensor("b_dec"),
        k=k,
        nonnegative=True,
        router=(weight, file.tensor(BIAS)),
        reads=place,
        writes=place,
        layer=layer_of(file),
        model_name=model_name if isinstance(model_name, str) else None,
    )


FORMAT = Format(
    name="switch autoencoder",
    kind="transcoder_set",
    layout="<layer>/sae_weights.safetensors and cfg.json (architecture switch): W_enc (D, F), W_dec (F, D), b_enc (F), "
    "b_dec (D), W_router (N, D), b_router (N)",
    detect=detect,
    read=each(read_layer),
    harmless_keys=HARMLESS_KEYS,
)
