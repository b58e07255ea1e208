"""The dictionary of a run is read back from its files and measured on held-out text; card and numbers go beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from circuit_tracer.attribution.prompt import paired
from circuit_tracer.files import atomic_write
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.training.config import files as config_file
from circuit_tracer.training.config.schema import TrainingConfig
from circuit_tracer.training.data.given.source import UnseenModel
from circuit_tracer.training.data.source import open_source
from circuit_tracer.training.evaluation import EvaluationSettings, evaluate, write_report
from circuit_tracer.training.evaluation.given import evaluate_given
from circuit_tracer.training.evaluation.results import DICTIONARY, Evaluation
from circuit_tracer.training.export.export import readers_of
from circuit_tracer.training.export.kept import Batches, Kept, Side, Subject, exported_side
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.transcoders import (
    Transcoders,
    TranscoderSet,
    load_transcoder_from_hub,
    load_transcoder_set,
)
from circuit_tracer.transcoders.autoencoders import load_autoencoders

SECONDS_BETWEEN_LINES = 30.0
CONFIG_NAME = "training.yaml"  # the configuration, beside the weights


def publish(
    subject: Subject,
    folder: Path,
    trained: Side,
    batches: Batches,
    story: dict[str, Any],
    message: Callable[[str], None] = lambda text: None,
) -> tuple[dict[str, Any], Kept]:
    """Evaluate the dictionary in ``folder`` on held-out text; the evaluation, and what the export kept. One rank calls this.

    trained: what the dictionary in training did on ``batches``. story: what the card says of the run: steps, tokens, what it
    started from and how its settings changed. message: told what is being measured. Writes evaluation.json, README.md and
    pictures beside the weights. A dictionary of a model that is not here is measured by its reconstruction alone.
    """
    config = subject.config
    transcoders = _read_back(config, subject.parts, folder, subject.layers)
    evaluation = _evaluated(subject, transcoders, {"training": {"configuration": CONFIG_NAME, **story}}, message)
    replacement = evaluation.results[DICTIONARY].replacement
    kl = None if trained.kl is None or replacement is None else replacement.kl
    exported = exported_side(transcoders, batches, kl)
    kept = Kept(sum(len(x_BSD) for x_BSD, _ in batches), trained, exported)
    said = {"export": kept.to_json() | {"readers": readers_of(config)}}
    evaluation = replace(evaluation, conditions=evaluation.conditions | said)
    with atomic_write(folder / CONFIG_NAME) as path:
        path.write_text(config_file.dump(config), encoding="utf-8")
    write_report(evaluation, folder)
    return evaluation.to_json(), kept


def _evaluated(
    subject: Subject, transcoders: Transcoders, conditions: dict[str, Any], message: Callable[[str], None]
) -> Evaluation:
    config, parts, layers = subject.config, subject.parts, subject.layers
    wanted, sae = config.evaluation, config.dictionary.kind == "sae"
    settings = EvaluationSettings.of(wanted, seed=config.run.seed, max_norm_ratio=config.data.max_norm_ratio)
    if isinstance(parts, UnseenModel):
        rows = open_source(config, parts.alone(), subject.tokenizer, FeatureRanks(), evaluation=True)
        name = config.model.name
        return evaluate_given(transcoders, rows, settings, model=name, layers=layers, conditions=conditions)
    return evaluate(
        parts,
        subject.tokenizer,
        transcoders if sae else _of_the_model(transcoders, layers),
        subject.held_out,
        settings,
        layers=layers if sae else None,
        per_layer=None if wanted.per_layer_baseline is None else _loaded(wanted.per_layer_baseline, parts),
        conditions=conditions,
        progress=_Spoken(message),
    )


class _Spoken:
    """Progress in sentences: when a stage begins, and every half minute."""

    def __init__(self, message: Callable[[str], None]) -> None:
        self._message, self._stage, self._said_at = message, "", 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != self._stage or now - self._said_at >= SECONDS_BETWEEN_LINES:
            self._stage, self._said_at = stage, now
            self._message(f"evaluation: {stage}, {done} of {total}")


def _of_the_model(transcoders: Transcoders, layers: Sequence[int]) -> Transcoders:
    """A set of some layers, numbered as it was trained, by the model's layers."""
    if not isinstance(transcoders, TranscoderSet) or list(layers) == list(range(len(layers))):
        return transcoders
    hooks = transcoders.feature_input_hook, transcoders.feature_output_hook
    return TranscoderSet({layer: transcoders[source] for source, layer in enumerate(layers)}, *hooks)


def _read_back(config: TrainingConfig, parts: ModelParts, folder: Path, layers: Sequence[int]) -> Transcoders:
    if config.dictionary.kind == "clt":
        return _loaded(folder, parts)
    if config.dictionary.kind != "sae":  # numbered as they were trained, as the evaluation has them
        paths = {source: folder / f"layer_{layer}.safetensors" for source, layer in enumerate(layers)}
        hooks = (config.dictionary.input_hook, config.dictionary.output_hook)
        return load_transcoder_set(paths, None, *hooks, device=parts.device, dtype=torch.float32)
    return load_autoencoders(folder, parts.device).dictionary


def require_baseline(config: TrainingConfig, parts: ModelParts) -> None:
    """CircuitTracerError unless the dictionary to measure beside is there and belongs to the model; reads no weights."""
    folder = config.evaluation.per_layer_baseline
    if folder is not None:
        paired(parts, load_transcoder_from_hub(str(folder), lazy_encoder=True, lazy_decoder=True)[0])


def _loaded(folder: Path, parts: ModelParts) -> Transcoders:
    return load_transcoder_from_hub(str(folder), device=parts.device, dtype=torch.float32)[0]
