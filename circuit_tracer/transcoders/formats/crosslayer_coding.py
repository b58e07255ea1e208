"""crosslayer-coding: one file with all layers, and cfg.json; with normalised activations, norm_stats.json beside or above it.

`encoder_module.encoders.{s}.weight` (F, D) and `.bias_param` (F,) of layer s, `decoder_module.decoders.{s}->{t}.weight` (D, F)
and `.bias_param` (D,) of what it writes to layer t, and for JumpReLU `theta_manager.log_threshold` (L, F). Inputs and outputs
were normalised in training, (x - mean) / std with the numbers of norm_stats.json, which are folded into the weights.

Letters: L layers, F features a layer, D width.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.errors import FileFormatError, shortened
from circuit_tracer.transcoders.formats.beside import settings_above
from circuit_tracer.transcoders.formats.folding import scaled
from circuit_tracer.transcoders.formats.format import Format
from circuit_tracer.transcoders.formats.layer_file import Harmless, LayerFile
from circuit_tracer.transcoders.layer_weights import LayerWeights
from circuit_tracer.transcoders.places import require_mlp_places

_ENCODER = re.compile(r"encoder_module\.encoders\.(\d+)\.weight")
_LOG_THRESHOLD = "theta_manager.log_threshold"
_STATISTICS = "norm_stats.json"
# Keys that change what is computed, with the only values that are read.
_REFUSED = {
    "decoder_tying": ((None, "none"), "decoders that are shared between layers"),
    "enable_feature_offset": ((None, False), "an offset of each feature"),
    "enable_feature_scale": ((None, False), "a scale of each feature"),
    "skip_connection": ((None, False), "skip connections across layers"),
    "sqrt_d_model_normalize": ((None, False), "an older normalisation"),
}
_NORMALISED = ("mean_std", "auto", "estimated_mean_std")  # one method under the names that it has had

HARMLESS_KEYS = (
    *(
        Harmless(name, "how it was trained")
        for name in (
            "batchtopk_k", "batchtopk_straight_through", "expected_input_dtype", "jumprelu_threshold", "topk_k", "topk_mode",
            "topk_straight_through", "two_stage_batchtopk", "context_size",
        )
    ),
    Harmless("model_name", "config.yaml or the user names the model"),
    Harmless("clt_dtype", "safetensors files say it"),
    Harmless("mlp_input_template", "module paths; the hooks name the same places"),
    Harmless("mlp_output_template", "module paths; the hooks name the same places"),
    Harmless("*.inputs.*", "norm_stats.json: read where activations were normalised"),
    Harmless("*.targets.*", "norm_stats.json: read where activations were normalised"),
)  # fmt: skip


def detect(file: LayerFile) -> bool:
    return "encoder_module.encoders.0.weight" in file


def read(files: list[LayerFile]) -> list[LayerWeights]:
    return [weights for file in files for weights in _read(file)]


def _read(file: LayerFile) -> list[LayerWeights]:
    n_layers = 1 + max(int(match[1]) for match in map(_ENCODER.fullmatch, file.names) if match)
    n_features, width = file.matrix("encoder_module.encoders.0.weight").shape
    for name, found in (("num_layers", n_layers), ("num_features", n_features), ("d_model", width)):
        file.expect(name, found, "the tensors say")
    for name, (read_values, what) in _REFUSED.items():
        if (value := file.key(name)) not in read_values:
            raise FileFormatError(
                f"{file.path}: cfg.json has {name} = {shortened(value)}: {what}, which cannot be read."
            )
    threshold_LF = _thresholds(file, n_layers, n_features)
    inputs, outputs = _statistics(file, n_layers, width)
    bias_LD = _decoder_biases(file, n_layers, width)
    templates = file.key("tl_input_template"), file.key("tl_output_template")
    layers = []
    for layer in range(n_layers):
        mean_D, std_D = inputs[layer]
        encoder_FD = scaled(file.shaped(f"encoder_module.encoders.{layer}.weight", n_features, width), 1 / std_D)
        bias_F = file.shaped(f"encoder_module.encoders.{layer}.bias_param", n_features)
        if mean_D.any():
            bias_F = bias_F.float() - encoder_FD.float() @ mean_D
        out_mean_D, out_std_D = outputs[layer]
        read, written = (None if each is None else str(each).replace("{}", str(layer)) for each in templates)
        reads, writes = require_mlp_places(read, written, str(file.path))
        layers.append(
            LayerWeights(
                source=str(file.path),
                encoder=encoder_FD,
                decoder=_decoder(file, layer, [std for _, std in outputs], (width, n_features)),
                encoder_bias=bias_F,
                decoder_bias=scaled(bias_LD[layer], out_std_D) + out_mean_D,
                threshold=None if threshold_LF is None else threshold_LF[layer],
                reads=reads,
                writes=writes,
            )
        )
    return layers


def _thresholds(file: LayerFile, n_layers: int, n_features: int) -> Tensor | None:
    activation = file.key("activation_fn", default="jumprelu" if _LOG_THRESHOLD in file else "relu")
    if activation not in ("relu", "jumprelu"):
        raise FileFormatError(
            f"{file.path}: cfg.json has activation_fn {shortened(activation)}, which ranks features over a batch or "
            "over layers "
            "and cannot be read. Convert it to JumpReLU with the library that wrote it (convert_batchtopk_to_jumprelu)."
        )
    if (activation == "jumprelu") != (_LOG_THRESHOLD in file):
        raise FileFormatError(
            f"{file.path}: cfg.json has activation_fn {activation}; the tensors are {file.describe()}."
        )
    return file.shaped(_LOG_THRESHOLD, n_layers, n_features).float().exp() if activation == "jumprelu" else None


def _decoder(file: LayerFile, layer: int, out_std: list[Tensor], shape: tuple[int, int]) -> Tensor:
    """(F, T, D): what a layer's features write, in the outputs' own units."""
    rows = [
        scaled(file.shaped(f"decoder_module.decoders.{layer}->{target}.weight", *shape).T, out_std[target])
        for target in range(layer, len(out_std))
    ]
    return torch.stack(rows, dim=1)


def _decoder_biases(file: LayerFile, n_layers: int, width: int) -> Tensor:
    """(L, D): of all decoders that write to a layer, added."""
    pairs = [[f"decoder_module.decoders.{s}->{t}.bias_param" for s in range(t + 1)] for t in range(n_layers)]
    return torch.stack([torch.stack([file.shaped(name, width).float() for name in names]).sum(0) for names in pairs])


def _statistics(
    file: LayerFile, n_layers: int, width: int
) -> tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
    """(mean, std), each (D,), of the inputs and of the outputs of every layer; 0 and 1 where they were not normalised."""
    method = file.key("normalization_method", default="none")
    if method not in ("none", *_NORMALISED):
        raise FileFormatError(
            f"{file.path}: cfg.json has normalization_method {shortened(method)}; none and mean_std can be read."
        )
    if method == "none":
        nothing = [(torch.zeros(width), torch.ones(width))] * n_layers
        return nothing, nothing
    above = {} if file.has_key("0.inputs.mean") else settings_above(file.path, _STATISTICS)

    def of(side: str) -> list[tuple[Tensor, Tensor]]:
        names = [[f"{layer}.{side}.{name}" for name in ("mean", "std")] for layer in range(n_layers)]
        return [(_numbers(file, above, mean, width), _numbers(file, above, std, width)) for mean, std in names]

    return of("inputs"), of("targets")


def _numbers(file: LayerFile, above: dict[str, Any], key: str, width: int) -> Tensor:
    found = above.get(key) if above else file.key(key)
    try:
        numbers_D = torch.tensor(found, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError):
        numbers_D = torch.zeros(0)
    fits = tuple(numbers_D.shape) == (width,) and bool(numbers_D.isfinite().all())
    if not fits or (key.endswith("std") and not bool((numbers_D > 0).all())):
        raise FileFormatError(
            f"{file.path}: activations were normalised in training, and {_STATISTICS}, beside the file or in the folder above, "
            f"does not say how ({key} is {shortened(found)}). Put it there: it comes with the activations it was trained on."
        )
    return numbers_D


FORMAT = Format(
    name="crosslayer-coding",
    kind="cross_layer_transcoder",
    layout="one .safetensors and cfg.json: encoder_module.encoders.{s}.weight (F, D), .bias_param (F), "
    "decoder_module.decoders.{s}->{t}.weight (D, F), .bias_param (D) [, theta_manager.log_threshold (L, F)]",
    detect=detect,
    read=read,
    harmless_keys=HARMLESS_KEYS,
)
