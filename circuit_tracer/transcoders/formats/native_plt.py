"""circuit-tracer's per-layer files: `layer_{i}.safetensors`.

`W_enc` (F, D), `W_dec` (F, D), `b_enc` (F,), `b_dec` (D,); `activation_function.threshold` (F,) means JumpReLU, a
scalar `k` TopK; `W_skip` (D, D) is applied as x @ W_skip.T. With neither threshold nor k the config decides; default
ReLU.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from circuit_tracer.errors import FileFormatError
from circuit_tracer.files.tensors import TensorFile
from circuit_tracer.transcoders.activations import JumpReLU, TopK
from circuit_tracer.transcoders.formats.format import Format, each
from circuit_tracer.transcoders.formats.writing import activation_metadata, native_names, prepare_folder, save_tensors
from circuit_tracer.transcoders.layer_weights import LayerWeights
from circuit_tracer.transcoders.single_layer import SingleLayerTranscoder
from circuit_tracer.transcoders.transcoder_set import TranscoderSet

THRESHOLD = "activation_function.threshold"
_KNOWN = {"W_enc", "W_dec", "b_enc", "b_dec", "W_skip", "k", THRESHOLD}


def detect(file: TensorFile) -> bool:
    shapes = file.shapes
    if not {"W_enc", "W_dec", "b_enc", "b_dec"} <= set(shapes) or "threshold" in shapes:
        return False
    if "architecture" in file.config:  # SAELens
        return False
    return shapes["W_enc"] == shapes["W_dec"] == (*shapes["b_enc"], *shapes["b_dec"])


def read_layer(file: TensorFile) -> LayerWeights:
    unknown = sorted(set(file.entries) - _KNOWN)
    if unknown:
        # A tensor that is not understood may be a threshold or a scale: ignoring it would compute something else.
        raise FileFormatError(
            f"{file.path}: tensors {', '.join(unknown)} are not understood; known are {', '.join(sorted(_KNOWN))}. "
            "Convert the file, or remove what does not matter."
        )
    return LayerWeights(
        source=str(file.path),
        encoder=file.tensor("W_enc"),
        decoder=file.tensor("W_dec"),
        encoder_bias=file.tensor("b_enc"),
        decoder_bias=file.tensor("b_dec"),
        threshold=file.tensor(THRESHOLD) if THRESHOLD in file else None,
        skip=file.tensor("W_skip").T if "W_skip" in file else None,
        k=int(file.scalar("k")) if "k" in file else None,
        nonnegative=file.metadata.get("relu_before_topk") == "true",
    )


def write_layer(transcoder: SingleLayerTranscoder, path: Path) -> None:
    """Write one layer's file; the file appears when it is complete."""
    activation = transcoder.activation_function
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
    if isinstance(activation, TopK):
        tensors["k"] = torch.tensor(activation.k)
    save_tensors(tensors, path, activation_metadata(activation))


def write(transcoders: TranscoderSet, folder: Path) -> None:
    """Write `layer_{i}.safetensors` for every layer into ``folder``, one layer in memory at a time."""
    names = native_names(transcoders.kind, transcoders.n_layers)
    prepare_folder(folder, names)
    for name, transcoder in zip(names, transcoders, strict=True):
        write_layer(transcoder, folder / name)


FORMAT = Format(
    name="circuit-tracer per-layer",
    kind="transcoder_set",
    layout="layer_{i}.safetensors: W_enc (F, D), W_dec (F, D), b_enc (F), b_dec (D) "
    "[, activation_function.threshold (F)] [, k] [, W_skip (D, D)]",
    detect=detect,
    read=each(read_layer),
)
