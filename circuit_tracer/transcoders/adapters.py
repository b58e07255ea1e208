"""Transcoder adapters (arXiv 2602.20904): a checkpoint of a fine-tuned model with a transcoder beside each MLP.

    model.layers.N.mlp.transcoder_enc.{weight (F, D), bias (F)}   model.layers.N.mlp.transcoder_dec.{weight (D, F), bias (D)}

MLP_tuned(x) is about MLP_base(x) + W_dec relu(W_enc x + b_enc) + b_dec, with x what enters the MLP. Only these tensors are
read.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from circuit_tracer.errors import FileFormatError, InputError
from circuit_tracer.files.tensors import open_tensor_file
from circuit_tracer.transcoders.layer_weights import LayerWeights
from circuit_tracer.transcoders.single_layer import SingleLayerTranscoder
from circuit_tracer.transcoders.transcoder_set import TranscoderSet

READS, WRITES = "mlp.hook_in", "mlp.hook_out"
_NAME = re.compile(r"(?:.*\.)?layers\.(\d{1,6})\.mlp\.transcoder_(enc|dec)\.(weight|bias)")


def is_adapter(folder: str | Path) -> bool:
    """Whether a local folder, or file, is such a checkpoint; only the names of its tensors are looked at."""
    return any(_NAME.fullmatch(name) for file in _files(folder) for name in open_tensor_file(file).entries)


def load_adapter(folder: str | Path, **how: Any) -> TranscoderSet:
    """The adapter of a checkpoint. how: device and dtype, and lazy_... as for `SingleLayerTranscoder.from_weights`.

    Raises FileFormatError for a layer of which a tensor is missing or has another shape.
    """
    found: dict[int, dict[str, Tensor]] = {}
    for file in _files(folder):
        opened = open_tensor_file(file)
        for name in opened.entries:
            if match := _NAME.fullmatch(name):
                found.setdefault(int(match[1]), {})[f"{match[2]}.{match[3]}"] = opened.tensor(name)
    if not found:
        raise InputError(f"{folder} holds no transcoder adapter (tensors ...layers.N.mlp.transcoder_enc.weight)")
    layers = {
        layer: SingleLayerTranscoder.from_weights(_weights(f"{folder}, layer {layer}", own), layer, **how)
        for layer, own in found.items()
    }
    return TranscoderSet(layers, READS, WRITES, Path(folder).name)


def _files(folder: str | Path) -> list[Path]:
    path = Path(folder).expanduser()
    if path.is_file():
        return [path] if path.suffix == ".safetensors" else []
    return sorted(path.glob("*.safetensors")) if path.is_dir() else []


def _weights(source: str, own: dict[str, Tensor]) -> LayerWeights:
    if missing := {"enc.weight", "enc.bias", "dec.weight"} - set(own):
        raise FileFormatError(
            f"{source}: of its adapter, {', '.join(f'transcoder_{name}' for name in sorted(missing))} is missing"
        )
    decoder = own["dec.weight"].T
    bias = own.get("dec.bias")
    return LayerWeights(
        source=source,
        encoder=own["enc.weight"],
        decoder=decoder,
        encoder_bias=own["enc.bias"],
        decoder_bias=decoder.new_zeros(decoder.shape[1]) if bias is None else bias,
    )
