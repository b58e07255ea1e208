"""The dictionary of a run is read back from its files and measured on held-out text; card and numbers go beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.attribution.prompt import paired
from circuit_tracer.files import atomic_write
from circuit_tracer.files.tensors import open_tensor_file
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.training.config import files as config_file
from circuit_tracer.training.config.schema import TrainingConfig
from circuit_tracer.training.data.given.source import UnseenModel
from circuit_tracer.training.data.source import open_source
from circuit_tracer.training.evaluation import EvaluationSettings, evaluate, write_report
from circuit_tracer.training.evaluation.given import evaluate_given
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.transcoders import (
    SingleLayerTranscoder,
    Transcoders,
    TranscoderSet,
    load_transcoder_from_hub,
    load_transcoder_set,
)
from circuit_tracer.transcoders.layer_weights import LayerWeights

CONFIG_NAME = "training.yaml"  # the configuration, beside the weights


def publish(
    config: TrainingConfig,
    parts: ModelParts,
    tokenizer: Any,
    folder: Path,
    layers: Sequence[int],
    held_out: Sequence[Tensor],
    step: int,
) -> dict[str, Any]:
    """Evaluate the dictionary in ``folder`` on the sequences ``held_out``, each (P,); returns the evaluation.

    Writes evaluation.json, README.md and pictures beside the weights.
    A dictionary that does not replace all MLPs (an SAE, or some layers only) is measured by its reconstruction alone, and so
    is one of a model that is not here.
    """
    wanted = config.evaluation
    replaces = config.dictionary.kind != "sae" and len(layers) == len(parts.layers)  # none are here of an unseen model
    settings = EvaluationSettings(
        tokens=wanted.tokens,
        replacement_tokens=wanted.replacement_tokens if replaces else 0,
        prompts=tuple(wanted.prompts) if replaces and tokenizer is not None else (),
        random_baseline=wanted.random_baseline,
        seed=config.run.seed,
        max_norm_ratio=config.data.max_norm_ratio,
    )
    transcoders = _read_back(config, parts, folder, layers)
    conditions = {"training": {"step": step, "tokens": step * config.run.batch, "configuration": CONFIG_NAME}}
    if isinstance(parts, UnseenModel):
        rows = open_source(config, parts, tokenizer, FeatureRanks(), evaluation=True)
        evaluation = evaluate_given(
            transcoders, rows, settings, model=config.model.name, layers=layers, conditions=conditions
        )
    else:
        evaluation = evaluate(
            parts,
            tokenizer,
            transcoders,
            held_out,
            settings,
            layers=layers,
            per_layer=None
            if wanted.per_layer_baseline is None or not replaces
            else _loaded(wanted.per_layer_baseline, parts),
            conditions=conditions,
        )
    with atomic_write(folder / CONFIG_NAME) as path:
        path.write_text(config_file.dump(config), encoding="utf-8")
    write_report(evaluation, folder)
    return evaluation.to_json()


def _read_back(config: TrainingConfig, parts: ModelParts, folder: Path, layers: Sequence[int]) -> Transcoders:
    if config.dictionary.kind == "clt":
        return _loaded(folder, parts)
    if config.dictionary.kind != "sae":  # numbered as they were trained, as the evaluation has them
        paths = {source: folder / f"layer_{layer}.safetensors" for source, layer in enumerate(layers)}
        hooks = (config.dictionary.input_hook, config.dictionary.output_hook)
        return load_transcoder_set(paths, None, *hooks, device=parts.device, dtype=torch.float32)
    saes = {}
    for source, layer in enumerate(layers):
        file = open_tensor_file(folder / f"layer_{layer}" / "sae_weights.safetensors")
        weights = LayerWeights(
            source=str(file.path),
            encoder=file.tensor("W_enc").T,
            decoder=file.tensor("W_dec"),
            encoder_bias=file.tensor("b_enc"),
            decoder_bias=file.tensor("b_dec"),
            threshold=file.tensor("threshold") if "threshold" in file else None,
        )
        saes[source] = SingleLayerTranscoder.from_weights(
            weights, layer_idx=source, device=parts.device, dtype=torch.float32
        )
    return TranscoderSet(saes, config.dictionary.point, config.dictionary.point)


def require_baseline(config: TrainingConfig, parts: ModelParts) -> None:
    """CircuitTracerError unless the dictionary to measure beside is there and belongs to the model; reads no weights."""
    folder = config.evaluation.per_layer_baseline
    if folder is not None:
        paired(parts, load_transcoder_from_hub(str(folder), lazy_encoder=True, lazy_decoder=True)[0])


def _loaded(folder: Path, parts: ModelParts) -> Transcoders:
    return load_transcoder_from_hub(str(folder), device=parts.device, dtype=torch.float32)[0]
