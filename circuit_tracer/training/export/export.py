"""A checkpoint as files that tracers read: means and scales folded in exactly, TopK as TopK, BatchTopK by calibrated thresholds
(training/README.md §9).

Layouts: circuit-tracer's for transcoders (`W_enc_{i}`, `W_dec_{i}` or `layer_{i}` with config.yaml), SAELens's for an SAE.
One layer is in memory at a time, whatever the number of ranks that trained.

Letters: S source layers, T layers a source writes to, F features, D width.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from circuit_tracer.errors import NumericalError
from circuit_tracer.files import atomic_write
from circuit_tracer.training.config.schema import TrainingConfig
from circuit_tracer.training.run import checkpoint as checkpoints
from circuit_tracer.training.run.checkpoint import Checkpoint
from circuit_tracer.training.run.state import AVERAGE
from circuit_tracer.training.sparsity import rule_of
from circuit_tracer.training.step.dictionary import row_norms
from circuit_tracer.training.step.normalisation import Normalisation
from circuit_tracer.transcoders.activations import TopK
from circuit_tracer.transcoders.config import write_config
from circuit_tracer.transcoders.formats import saelens, switch
from circuit_tracer.transcoders.formats.writing import activation_metadata, begin_folder, native_names, save_tensors

CLT_TOPK = (
    "TopK: circuit-tracer has no cross-layer transcoders with TopK and refuses this folder (Unknown model kind). This package "
    "reads it; what is trained with activation batch_topk both read."
)
SET_TOPK = (
    "TopK: circuit-tracer's tag v0.5.0 reads it in config.yaml. The circuit-tracer 0.5.0 of PyPI knows no TopK and would take "
    "these files for ReLU without a word: do not use it with them."
)
SAELENS = "6.0.0"  # the version whose layout an SAE has; without one SAELens takes it for older and drops the metadata


@dataclass(frozen=True)
class FoldedLayer:
    """One source layer in the model's own space: matrices in the number format of the file, the rest float32."""

    encoder_FD: Tensor
    encoder_bias_F: Tensor
    decoder_FTD: Tensor
    decoder_bias_D: Tensor
    threshold_F: Tensor | None
    skip_DD: Tensor | None  # y += skip @ x
    k: int | None = None  # TopK's
    router: tuple[Tensor, Tensor] | None = None  # of a switch: rows (N, D) and biases (N,), float32


def export(
    checkpoint: Checkpoint,
    config: TrainingConfig,
    levels: Sequence[float] | None,
    folder: Path,
    model_name: str,
    layers: Sequence[int],
) -> Path:
    """Write the dictionary of ``checkpoint`` into ``folder``, in ``config.export_dtype``; biases and thresholds float32.

    levels: tau_s of every source for rules that need one (`calibration.level_scores`). layers: the model's layers that the
    sources are. Raises NumericalError if weights are not finite, ResourceError when the disk is full.
    """
    kind = config.dictionary.kind
    if kind == "sae":
        for source, layer in enumerate(layers):
            _write_sae(folded(checkpoint, config, levels, source), config, folder / _stem(layer), model_name, layer)
        return folder
    if kind == "clt":
        model_kind, names = "cross_layer_transcoder", native_names("cross_layer_transcoder", range(len(layers)))
    else:
        # numbered by the model's layers: those of some layers only must not pass for the first ones
        model_kind, names = "transcoder_set", [f"{_stem(layer)}.safetensors" for layer in layers]
    begin_folder(folder, names)
    for source in range(len(layers)):
        one = folded(checkpoint, config, levels, source)
        if kind == "clt":
            _write_cross_layer(one, folder, source)
        else:
            _write_per_layer(one, folder / names[source])
    described = {
        "model_name": model_name,
        "model_kind": model_kind,
        "feature_input_hook": config.dictionary.input_hook,
        "feature_output_hook": config.dictionary.output_hook,
        "activation": "topk" if one.k else "relu" if one.threshold_F is None else None,
        "k": one.k,
    }
    write_config(described, folder)
    return folder


def readers_of(config: TrainingConfig) -> str | None:
    """What users of circuit-tracer must know about the files; None: it computes with them what this package does."""
    if rule_of(config.sparsity).export_k is None or config.dictionary.kind == "sae":
        return None
    return CLT_TOPK if config.dictionary.kind == "clt" else SET_TOPK


def folded(checkpoint: Checkpoint, config: TrainingConfig, levels: Sequence[float] | None, source: int) -> FoldedLayer:
    """One source layer of a checkpoint, folded (§9)."""
    everything = slice(0, checkpoint.content["n_features"])
    space = Normalisation(**{name: checkpoints.shared(checkpoint, name) for name in Normalisation.names()})

    averages = AVERAGE if config.optimizer.averaging else ""

    def rows(name: str) -> Tensor:
        return checkpoints.rows(checkpoint, source, name + averages, everything)

    def whole(name: str) -> Tensor:
        return checkpoints.shared(checkpoint, name)[source].double()

    # Biases are folded for the matrices as the file has them: rounding then errs on deviations from the mean, which are small,
    # and not on the mean.
    dtype = getattr(torch, config.export_dtype)
    scale_x, scale_y, mean_x_D = space.scale_x_S[source], space.scale_y_S[source], whole("mean_x_SD")
    rule = rule_of(config.sparsity)
    own = {name: rows(name) for name in ("b_enc", *rule.own)}
    trained_FD, bias_F = rule.export_encoder(rows("W_enc").float(), own)
    encoder_FD = (trained_FD * scale_x).to(dtype)
    decoder_FC, width = rows("W_dec").float(), encoder_FD.shape[1]
    n_targets = decoder_FC.shape[1] // width
    scale_y_T = space.scale_y_S[source : source + n_targets]
    skip_DD = None
    bias_D = whole("mean_y_SD") + whole("b_dec" + averages) / scale_y
    if config.dictionary.kind == "skip":
        skip_DD = (whole("W_skip" + averages) * (scale_x / scale_y)).to(dtype)
        bias_D = bias_D - skip_DD.double() @ mean_x_D
    level = None if levels is None else levels[source]
    layer = FoldedLayer(
        encoder_FD,
        (bias_F.double() - encoder_FD.double() @ mean_x_D).float(),
        (decoder_FC.view(-1, n_targets, width) / scale_y_T[:, None]).to(dtype),
        bias_D.float(),
        rule.export_thresholds(row_norms(decoder_FC), n_targets, own, level),
        skip_DD,
        rule.export_k,
        None
        if not rule.experts
        else _folded_router(whole("W_router" + averages), whole("b_router" + averages), scale_x, mean_x_D),
    )
    for name, tensor in vars(layer).items():
        if isinstance(tensor, Tensor) and not torch.isfinite(tensor).all():
            raise NumericalError(f"{name} of source layer {source} is not finite; resume from an earlier checkpoint.")
    return layer


def _folded_router(weight_ND: Tensor, bias_N: Tensor, scale_x: Tensor, mean_x_D: Tensor) -> tuple[Tensor, Tensor]:
    weight_ND = weight_ND * scale_x
    return weight_ND.float(), (bias_N - weight_ND @ mean_x_D).float()


def _stem(layer: int) -> str:
    return f"layer_{layer}"


def _write_cross_layer(layer: FoldedLayer, folder: Path, source: int) -> None:
    encoder = {
        f"W_enc_{source}": layer.encoder_FD,
        f"b_enc_{source}": layer.encoder_bias_F,
        f"b_dec_{source}": layer.decoder_bias_D,
    }
    if layer.threshold_F is not None:
        encoder[f"threshold_{source}"] = layer.threshold_F
    save_tensors(encoder, folder / f"W_enc_{source}.safetensors", _metadata(layer))
    save_tensors({f"W_dec_{source}": layer.decoder_FTD}, folder / f"W_dec_{source}.safetensors", _metadata(layer))


def _write_per_layer(layer: FoldedLayer, path: Path) -> None:
    tensors = {
        "W_enc": layer.encoder_FD,
        "W_dec": layer.decoder_FTD[:, 0],
        "b_enc": layer.encoder_bias_F,
        "b_dec": layer.decoder_bias_D,
    }
    if layer.threshold_F is not None:
        tensors["activation_function.threshold"] = layer.threshold_F
    if layer.skip_DD is not None:
        tensors["W_skip"] = layer.skip_DD
    save_tensors(tensors, path, _metadata(layer))


def _metadata(layer: FoldedLayer) -> dict[str, str]:
    return {} if layer.k is None else activation_metadata(TopK(layer.k, nonnegative=True))


def _write_sae(layer: FoldedLayer, config: TrainingConfig, folder: Path, model_name: str, model_layer: int) -> None:
    """SAELens reads the encoder transposed."""
    tensors = {
        "W_enc": layer.encoder_FD.T,
        "W_dec": layer.decoder_FTD[:, 0],
        "b_enc": layer.encoder_bias_F,
        "b_dec": layer.decoder_bias_D,
    }
    if layer.threshold_F is not None:
        tensors["threshold"] = layer.threshold_F
    n_features, width = layer.encoder_FD.shape
    architecture = "topk" if layer.k else "standard" if layer.threshold_F is None else "jumprelu"
    if layer.router is not None:
        architecture = saelens.SWITCH
        tensors |= dict(zip((switch.WEIGHT, switch.BIAS), layer.router, strict=True))
    described = {
        "architecture": architecture,
        **({"k": layer.k, "rescale_acts_by_decoder_norm": False} if layer.k else {}),
        "d_in": width,
        "d_sae": n_features,
        "dtype": config.export_dtype,
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        **({"reshape_activations": "hook_z"} if config.dictionary.point == "attn.hook_z" else {}),
        "metadata": {
            "model_name": model_name,
            "hook_name": f"blocks.{model_layer}.{config.dictionary.point}",
            "prepend_bos": True,
            "context_size": config.data.context_length,
            "sae_lens_version": SAELENS,
        },
    }
    save_tensors(tensors, folder / "sae_weights.safetensors", {})
    with atomic_write(folder / "cfg.json") as path:
        path.write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
