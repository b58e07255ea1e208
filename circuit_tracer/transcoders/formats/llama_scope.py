"""Llama Scope autoencoders as first published: `<name>/checkpoints/final.safetensors`, with hyperparams.json above.

`encoder.weight` (F, D), `encoder.bias`, `decoder.weight` (D, F), `decoder.bias`. JumpReLU with one threshold for all, or
(Llama-Scope-R1-Distill, `sae_weights.safetensors` and config.json) `log_jumprelu_threshold` (F,). Inputs were scaled to a norm
of sqrt(D) by sqrt(D) / `dataset_average_activation_norm.in`, which is folded into encoder and decoder as SAELens does for these
files; the threshold is compared with pre * |decoder row| where `sparsity_include_decoder_norm`.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.errors import FileFormatError, shortened
from circuit_tracer.transcoders.formats import open_moss
from circuit_tracer.transcoders.formats.beside import computes, settings_above
from circuit_tracer.transcoders.formats.folding import scaled, shifted_bias
from circuit_tracer.transcoders.formats.format import Format, each
from circuit_tracer.transcoders.formats.layer_file import COMMON_KEYS, Harmless, LayerFile, scalar_like
from circuit_tracer.transcoders.layer_weights import LayerWeights
from circuit_tracer.transcoders.places import require_one_place

_TENSORS = {"encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"}
_THRESHOLDS = "log_jumprelu_threshold"
_NORM = "dataset_average_activation_norm"
_USED = ("jump_relu_threshold", "hook_point_in", "hook_point_out", "act_fn", "norm_activation", f"{_NORM}.in", f"{_NORM}.out",
         "apply_decoder_bias_to_pre_encoder", "use_glu_encoder", "sparsity_include_decoder_norm",
         "d_sae", "d_model")  # fmt: skip
HARMLESS_KEYS = (
    *(row for row in open_moss.HARMLESS_KEYS if row.pattern not in _USED),
    Harmless("decoder_exactly_fixed_norm", "of training"),
    Harmless("decoder_bias_init_method", "of training"),
    Harmless("use_decoder_bias", "there is one"),
    Harmless("sae_type", "an autoencoder"),
)


def detect(file: LayerFile) -> bool:
    return file.names >= _TENSORS and (_THRESHOLDS in file or "jump_relu_threshold" in _settings(file))


def _settings(file: LayerFile) -> dict[str, Any]:
    """What hyperparams.json says, above the folder `checkpoints`, or the settings beside the file."""
    beside = {name: file.value(name) for name in _USED if file.has_key(name)}
    return settings_above(file.path, "hyperparams.json") | beside


def read_layer(file: LayerFile) -> LayerWeights:
    source, said = str(file.path), _settings(file)
    for name in _USED:
        file.key(name)
    if strange := [name for name in said if name not in _USED and computes(name) and not _is_harmless(name)]:
        raise FileFormatError(
            f"{source}: {', '.join(strange)} in hyperparams.json are not understood. They may change what is computed; remove "
            "what does not matter."
        )
    read, written = said.get("hook_point_in"), said.get("hook_point_out")
    if read is None or written not in (None, read):
        raise FileFormatError(
            f"{source}: Llama Scope's hyperparams.json says that it reads {read} and writes {written}; only its autoencoders, "
            "with one place, can be read. Convert its transcoders with Language-Model-SAEs, to config.json and "
            "sae_weights.safetensors."
        )
    if said.get("use_glu_encoder") or str(said.get("act_fn", "jumprelu")).lower() != "jumprelu":
        raise FileFormatError(
            f"{source}: hyperparams.json has act_fn {shortened(said.get('act_fn'))}; jumprelu is expected."
        )
    encoder, decoder = file.matrix("encoder.weight"), file.matrix("decoder.weight").T
    bias, decoder_bias = file.tensor("encoder.bias"), file.tensor("decoder.bias")
    _require_sizes(source, said, encoder)
    threshold = _threshold(file, said, decoder)
    if said.get("apply_decoder_bias_to_pre_encoder"):
        bias = shifted_bias(encoder, bias, decoder_bias)
    factor = _factor(source, said, encoder.shape[1])
    place = require_one_place(read, source)
    return LayerWeights(
        source=source,
        encoder=scaled(encoder, factor),
        decoder=scaled(decoder, 1 / factor),
        encoder_bias=bias,
        decoder_bias=scaled(decoder_bias, 1 / factor),
        threshold=threshold,
        reads=place,
        writes=place,
    )


def _require_sizes(source: str, said: dict[str, Any], encoder_FD: Tensor) -> None:
    for name, found in zip(("d_sae", "d_model"), encoder_FD.shape, strict=True):
        if said.get(name) not in (None, found):
            raise FileFormatError(
                f"{source}: hyperparams.json says {name} = {shortened(said[name])}, the tensors {found}."
            )


def _is_harmless(name: str) -> bool:
    return any(fnmatchcase(name, row.pattern) for row in (*COMMON_KEYS, *HARMLESS_KEYS))


def _threshold(file: LayerFile, said: dict[str, Any], decoder_FD: Tensor) -> Tensor:
    """(F,), for pre-activations that no norm of a decoder row is in."""
    if _THRESHOLDS in file:
        threshold = file.shaped(_THRESHOLDS, len(decoder_FD)).float().exp()
    else:
        number = said["jump_relu_threshold"]
        if not scalar_like(number) or not number >= 0:
            raise FileFormatError(f"{file.path}: jump_relu_threshold is {shortened(number)}; a number is expected.")
        threshold = torch.full((len(decoder_FD),), float(number))
    return threshold / decoder_FD.float().norm(dim=1) if said.get("sparsity_include_decoder_norm") else threshold


def _factor(source: str, said: dict[str, Any], width: int) -> float:
    """What inputs were multiplied by."""
    method = said.get("norm_activation", "dataset-wise")
    if method == "inference":
        return 1.0
    norm, behind = said.get(f"{_NORM}.in"), said.get(f"{_NORM}.out")
    if method != "dataset-wise" or not scalar_like(norm) or norm is None or not norm > 0 or behind not in (None, norm):
        raise FileFormatError(
            f"{source}: norm_activation is {shortened(method)} with the norms {shortened(norm)} and {shortened(behind)}; read "
            "are inference, and dataset-wise with one norm."
        )
    return sqrt(width) / float(norm)


FORMAT = Format(
    name="Llama Scope autoencoder",
    kind="transcoder_set",
    layout="<name>/hyperparams.json and checkpoints/final.safetensors",
    detect=detect,
    read=each(read_layer),
    harmless_keys=HARMLESS_KEYS,
)
