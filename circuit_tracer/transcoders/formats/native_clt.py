"""circuit-tracer's cross-layer files: `W_enc_{i}.safetensors` and `W_dec_{i}.safetensors` for every layer i.

The first holds `W_enc_{i}` (F, D), `b_enc_{i}` (F,), `b_dec_{i}` (D,), for JumpReLU `threshold_{i}` (F,), optionally
`W_skip_{i}` (D, D), applied as x @ W_skip. The second holds `W_dec_{i}` (F, L - i, D); slot k writes to layer i + k.
For TopK, which circuit-tracer does not know here, `k` is in the metadata of the first (older files: a scalar `k_{i}`).
"""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from circuit_tracer.errors import FileFormatError
from circuit_tracer.transcoders.activations import JumpReLU
from circuit_tracer.transcoders.cross_layer import CrossLayerTranscoder
from circuit_tracer.transcoders.formats.format import Format
from circuit_tracer.transcoders.formats.layer_file import LayerFile
from circuit_tracer.transcoders.formats.writing import (
    activation_metadata,
    native_names,
    prepare_folder,
    save_tensors,
    stored_topk,
)
from circuit_tracer.transcoders.layer_weights import LayerWeights

_ENCODER = re.compile(r"W_enc_(\d+)")


def detect(file: LayerFile) -> bool:
    return _layer_of(file) is not None


def read(files: list[LayerFile]) -> list[LayerWeights]:
    return [_read_layer(file, layer) for layer, file in enumerate(files)]


def _layer_of(file: LayerFile) -> int | None:
    found = [match for match in map(_ENCODER.fullmatch, file.names) if match]
    return int(found[0][1]) if len(found) == 1 else None


def _read_layer(file: LayerFile, layer: int) -> LayerWeights:
    if _layer_of(file) != layer:
        raise FileFormatError(
            f"{file.path} stands at layer {layer} but holds W_enc_{_layer_of(file)}: check the order of the files."
        )
    k, nonnegative = stored_topk(file, f"k_{layer}")
    return LayerWeights(
        source=str(file.path),
        encoder=file.tensor(f"W_enc_{layer}"),
        decoder=file.tensor(f"W_dec_{layer}"),
        encoder_bias=file.tensor(f"b_enc_{layer}"),
        decoder_bias=file.tensor(f"b_dec_{layer}"),
        threshold=file.optional(f"threshold_{layer}"),
        skip=file.optional(f"W_skip_{layer}"),
        k=k,
        nonnegative=nonnegative,
    )


def write(transcoder: CrossLayerTranscoder, folder: Path) -> None:
    """Write the pair of files of every layer into ``folder``, one matrix in memory at a time."""
    prepare_folder(folder, native_names(transcoder.kind, transcoder.layers))
    metadata = activation_metadata(transcoder.activation_function)
    for layer in range(transcoder.n_layers):
        save_tensors(_encoder_tensors(transcoder, layer), folder / f"W_enc_{layer}.safetensors", metadata)
        decoder = {f"W_dec_{layer}": transcoder.decoder(layer).whole()}
        save_tensors(decoder, folder / f"W_dec_{layer}.safetensors", metadata)


def _encoder_tensors(transcoder: CrossLayerTranscoder, layer: int) -> dict[str, Tensor]:
    tensors = {
        f"W_enc_{layer}": transcoder.encoder(layer).whole(),
        f"b_enc_{layer}": transcoder.encoder_bias(layer),
        f"b_dec_{layer}": transcoder.decoder_bias(layer),
    }
    skip, activation = transcoder.skip_matrix(layer), transcoder.activation(layer)
    if skip is not None:
        tensors[f"W_skip_{layer}"] = skip
    if isinstance(activation, JumpReLU):
        tensors[f"threshold_{layer}"] = activation.threshold.expand(transcoder.d_transcoder)
    return tensors


FORMAT = Format(
    name="circuit-tracer cross-layer",
    kind="cross_layer_transcoder",
    layout="W_enc_{i}.safetensors: W_enc_{i} (F, D), b_enc_{i} (F), b_dec_{i} (D) [, threshold_{i} (F)] "
    "[, W_skip_{i} (D, D)] with W_dec_{i}.safetensors: W_dec_{i} (F, L - i, D)",
    detect=detect,
    read=read,
    hooks=("hook_resid_mid", "hook_mlp_out"),
    hooks_note="circuit-tracer's defaults, which another CLT need not have",
)
