"""SAELens transcoders: `cfg.json` with `sae_weights.safetensors`.

`W_enc` (D, F), `W_dec` (F, D), `b_enc`, `b_dec`, `threshold` (F,) for JumpReLU, `W_skip` (D, D) as x @ W_skip.T.
Input normalisation and subtraction of b_dec are refused: they must be folded into the weights first.
"""

from __future__ import annotations

from circuit_tracer.errors import FileFormatError
from circuit_tracer.files.tensors import TensorFile
from circuit_tracer.transcoders.formats.format import Format, each
from circuit_tracer.transcoders.layer_weights import LayerWeights

_ARCHITECTURES = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")


def detect(file: TensorFile) -> bool:
    return {"W_enc", "W_dec", "b_enc", "b_dec"} <= set(file.entries) and "architecture" in file.config


def read_layer(file: TensorFile) -> LayerWeights:
    config = file.config
    architecture = config["architecture"]
    if architecture not in _ARCHITECTURES:
        raise FileFormatError(
            f"{file.path}: architecture {architecture!r} is not a transcoder; known are {', '.join(_ARCHITECTURES)}."
        )
    if architecture.startswith("jumprelu") != ("threshold" in file):
        raise FileFormatError(
            f"{file.path}: architecture {architecture!r} does not go with the tensors {file.describe()}."
        )
    for key, harmless in (("normalize_activations", (None, "none")), ("apply_b_dec_to_input", (None, False))):
        if config.get(key) not in harmless:
            raise FileFormatError(
                f"{file.path}: cfg.json has {key} = {config[key]!r}, which changes the input. "
                "Fold it into the weights with SAELens and save again."
            )
    return LayerWeights(
        source=str(file.path),
        encoder=file.tensor("W_enc").T,
        decoder=file.tensor("W_dec"),
        encoder_bias=file.tensor("b_enc"),
        decoder_bias=file.tensor("b_dec"),
        threshold=file.tensor("threshold") if "threshold" in file else None,
        skip=file.tensor("W_skip").T if "W_skip" in file else None,
    )


FORMAT = Format(
    name="SAELens",
    kind="transcoder_set",
    layout="<layer>/sae_weights.safetensors and cfg.json: W_enc (D, F), W_dec (F, D), b_enc (F), b_dec (D) "
    "[, threshold (F)] [, W_skip (D, D)]",
    detect=detect,
    read=each(read_layer),
)
