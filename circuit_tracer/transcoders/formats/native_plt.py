"""circuit-tracer's per-layer files: `layer_{i}.safetensors`.

`W_enc` (F, D), `W_dec` (F, D), `b_enc` (F,), `b_dec` (D,); `activation_function.threshold` (F,) means JumpReLU, `k` in
the file's metadata (of others: a scalar) TopK; `W_skip` (D, D) is applied as x @ W_skip.T. With neither threshold nor k
the config decides; default ReLU.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from circuit_tracer.errors import InputError
from circuit_tracer.transcoders.activations import JumpReLU
from circuit_tracer.transcoders.formats.format import Format, each
from circuit_tracer.transcoders.formats.layer_file import LayerFile
from circuit_tracer.transcoders.formats.writing import (
    activation_metadata,
    native_names,
    prepare_folder,
    save_tensors,
    stored_topk,
)
from circuit_tracer.transcoders.layer_weights import LayerWeights
from circuit_tracer.transcoders.single_layer import SingleLayerTranscoder
from circuit_tracer.transcoders.transcoder_set import TranscoderSet

THRESHOLD = "activation_function.threshold"


def detect(file: LayerFile) -> bool:
    shapes = file.shapes
    if not {"W_enc", "W_dec", "b_enc", "b_dec"} <= file.names or "threshold" in shapes:
        return False
    if file.has_key("architecture"):  # SAELens
        return False
    return shapes["W_enc"] == shapes["W_dec"] == (*shapes["b_enc"], *shapes["b_dec"])


def read_layer(file: LayerFile) -> LayerWeights:
    k, nonnegative = stored_topk(file, "k")
    return LayerWeights(
        source=str(file.path),
        encoder=file.tensor("W_enc"),
        decoder=file.tensor("W_dec"),
        encoder_bias=file.tensor("b_enc"),
        decoder_bias=file.tensor("b_dec"),
        threshold=file.optional(THRESHOLD),
        skip=file.matrix("W_skip").T if "W_skip" in file else None,
        k=k,
        nonnegative=nonnegative,
    )


def write_layer(transcoder: SingleLayerTranscoder, path: Path) -> None:
    """Write one layer's file; the file appears when it is complete."""
    activation = transcoder.activation_function
    if transcoder.router is not None:
        raise InputError(
            "a switch has a router, which circuit-tracer's files have no place for: keep the files it came in."
        )
    tensors: dict[str, Tensor] = {
        "W_enc": transcoder.encoder.whole(),
        "W_dec": transcoder.decoder.whole(),
        "b_enc": transcoder.b_enc,
        "b_dec": transcoder.b_dec,
    }
    if transcoder.W_skip is not None:
        tensors["W_skip"] = transcoder.W_skip
    if isinstance(activation, JumpReLU):
        tensors[THRESHOLD] = activation.threshold.expand(transcoder.d_transcoder)
    save_tensors(tensors, path, activation_metadata(activation))


def write(transcoders: TranscoderSet, folder: Path) -> None:
    """Write `layer_{i}.safetensors` for every layer that has one into ``folder``, one layer in memory at a time."""
    if transcoders.input_shift_unknown:
        raise InputError(
            "these transcoders do not say whether they subtract b_dec from their input, which native files must: give "
            "input_shift (--input-shift or --no-input-shift); a model they are loaded with measures it"
        )
    names = native_names(transcoders.kind, transcoders.layers)
    prepare_folder(folder, names)
    for name, layer in zip(names, transcoders.layers, strict=True):
        write_layer(transcoders[layer], folder / name)


FORMAT = Format(
    name="circuit-tracer per-layer",
    kind="transcoder_set",
    layout="layer_{i}.safetensors: W_enc (F, D), W_dec (F, D), b_enc (F), b_dec (D) "
    "[, activation_function.threshold (F)] [, k] [, W_skip (D, D)]",
    detect=detect,
    read=each(read_layer),
)
