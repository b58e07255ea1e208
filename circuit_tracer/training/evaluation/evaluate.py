"""One evaluation: a dictionary and its baselines, measured side by side on held-out text (README.md).

Letters: N tokens, S layers of the dictionary, L layers of the model, D width.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.attribution.progress import Progress, silent
from circuit_tracer.attribution.prompt import paired
from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.errors import CompatibilityError, InputError
from circuit_tracer.models.model_pass import Points
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.models.run import fast_attention
from circuit_tracer.models.sources import public_name
from circuit_tracer.models.surroundings import plain_torch
from circuit_tracer.training.evaluation.activations import Activations, ModelActivations
from circuit_tracer.training.evaluation.graphs import score_graphs
from circuit_tracer.training.evaluation.passes import StandIn
from circuit_tracer.training.evaluation.reconstruction import measure
from circuit_tracer.training.evaluation.replacement import Comparison, Constant, Reconstructions, compare
from circuit_tracer.training.evaluation.results import DictionaryResult, Evaluation, HeldOutReconstruction
from circuit_tracer.training.evaluation.sequences import Sequences
from circuit_tracer.training.evaluation.settings import EvaluationSettings
from circuit_tracer.transcoders.base import Transcoders
from circuit_tracer.transcoders.random_dictionary import random_baseline

DICTIONARY, RANDOM, PER_LAYER = "dictionary", "random", "per_layer"  # keys of Evaluation.results
ZERO, MEAN = "zero", "mean"  # keys of Evaluation.ablations


@plain_torch()
@torch.no_grad()
def evaluate(
    parts: ModelParts,
    tokenizer: Any,
    transcoders: Transcoders,
    tokens: Sequence[Tensor],
    settings: EvaluationSettings | None = None,
    *,
    layers: Sequence[int] | None = None,
    activations: Activations | None = None,
    per_layer: Transcoders | None = None,
    conditions: Mapping[str, Any] | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Measure ``transcoders`` on held-out sequences ``tokens``, each (P,) int64, of the model in ``parts``.

    layers: the model's layers that the dictionary's are; None: all of them. activations: read instead of running the model
    on ``tokens`` for reconstruction (`GivenActivations`). per_layer: another dictionary to measure beside. conditions: what the
    report shall say besides, such as names and files. The tokenizer may be None when there are no prompts.

    A dictionary of some layers, or a sparse autoencoder, replaces no model: for it replacement_tokens must be 0 and prompts
    empty. Raises InputError, CompatibilityError or NumericalError for what cannot be measured.
    """
    settings = settings or EvaluationSettings()
    if layers is None:
        transcoders = paired(parts, transcoders)
        per_layer = None if per_layer is None else paired(parts, per_layer)
    subject = _Subject(parts, tokenizer, settings, progress)
    points = _points(parts, transcoders, layers)
    _check(parts, transcoders, points, settings, per_layer)
    chosen = Sequences.of(tokens, parts, tokenizer, settings.tokens) if tokens or activations is None else None
    with fast_attention(parts):
        source = activations or subject.activations(points, chosen)
        dictionaries = {DICTIONARY: transcoders}
        if settings.random_baseline:
            dictionaries[RANDOM] = random_baseline(transcoders, source.sample(), settings.seed)
        reconstructions, mean_SD = measure(dictionaries, source)
        if per_layer is not None:
            dictionaries[PER_LAYER] = per_layer
            other = subject.activations(_points(parts, per_layer, None), chosen)
            reconstructions |= measure({PER_LAYER: per_layer}, other)[0]
        comparison = subject.compare(dictionaries, mean_SD, chosen) if settings.replacement_tokens else None
    results = subject.results(dictionaries, reconstructions, comparison)
    said = _conditions(parts, transcoders, points, settings) | {"data": source.describe()} | dict(conditions or {})
    replacements = comparison.results(ZERO) if comparison else {}
    return Evaluation(
        conditions=said,
        results=results,
        model=comparison.model() if comparison else None,
        ablations={name: replacements[name] for name in (ZERO, MEAN) if name in replacements},
    )


@dataclass(frozen=True)
class _Subject:
    """The model, and how it is read."""

    parts: ModelParts
    tokenizer: Any
    settings: EvaluationSettings
    progress: Progress

    def activations(self, points: Points, chosen: Sequences | None) -> ModelActivations:
        """Those of the model on the chosen sequences."""
        if chosen is None:
            raise InputError("held-out tokens are needed besides activations: give token sequences")
        settings = self.settings
        return ModelActivations(
            self.parts,
            points,
            chosen,
            settings.calibration_tokens,
            settings.batch_tokens,
            settings.max_norm_ratio,
            lambda done, total: self.progress("reconstruction", done, total),
        )

    def compare(self, dictionaries: Mapping[str, Transcoders], mean_LD: Tensor, chosen: Sequences | None) -> Comparison:
        """All dictionaries and both ablations in place of the MLPs."""
        if chosen is None:
            raise InputError("replacement is measured on token sequences: give some, or set replacement_tokens to 0")
        points = {name: _points(self.parts, one, None) for name, one in dictionaries.items()}
        replaced = dictionaries[DICTIONARY].layers
        constants = {ZERO: Constant(torch.zeros_like(mean_LD), replaced), MEAN: Constant(mean_LD, replaced)}
        stand_ins: dict[str, tuple[Points, StandIn]] = {
            name: (points[name], Reconstructions(one)) for name, one in dictionaries.items()
        }
        ablations = {name: (points[DICTIONARY], one) for name, one in constants.items()}
        return compare(
            self.parts,
            {**stand_ins, **ablations},
            chosen.first(self.settings.replacement_tokens),
            self.settings.batch_tokens,
            lambda done, total: self.progress("replacement", done, total),
        )

    def results(
        self,
        dictionaries: Mapping[str, Transcoders],
        reconstructions: Mapping[str, HeldOutReconstruction],
        comparison: Comparison | None,
    ) -> dict[str, DictionaryResult]:
        """Everything about each dictionary; traces the prompts."""
        replacements = comparison.results(ZERO) if comparison else {}
        results = {}
        for name, one in dictionaries.items():
            result = DictionaryResult(describe(one), reconstructions[name], replacements.get(name))
            if self.settings.prompts:
                model = Traceable(self.parts, one, self.tokenizer)
                graphs = score_graphs(
                    model,
                    self.settings.prompts,
                    self.settings.max_feature_nodes,
                    partial(self.progress, f"graphs, {name}"),
                )
                result = replace(result, graphs=graphs)
            results[name] = result
        return results


def describe(transcoders: Transcoders) -> str:
    """One line about a dictionary."""
    kind = {
        "cross_layer_transcoder": "cross-layer transcoder",
        "transcoder_set": "per-layer transcoders",
        "random": "random dictionary",
    }[transcoders.kind]
    if transcoders.feature_input_hook == transcoders.feature_output_hook:
        kind = kind.replace("per-layer transcoders", "sparse autoencoders")
    skip = ", skip connection" if transcoders.skip_connection else ""
    activation = transcoders.activation(transcoders.layers[0]).name
    layers = f"{transcoders.n_layers} layers"
    if len(transcoders.layers) < transcoders.n_layers:
        layers = f"layers {', '.join(map(str, transcoders.layers))} of {transcoders.n_layers}"
    return (
        f"{kind}, {layers} of {transcoders.d_transcoder} features, "
        f"{activation}{skip}, {transcoders.feature_input_hook} to {transcoders.feature_output_hook}"
    )


def _points(parts: ModelParts, transcoders: Transcoders, layers: Sequence[int] | None) -> Points:
    chosen = tuple(range(parts.config.n_layers) if layers is None else layers)
    return Points(chosen, transcoders.feature_input_hook, transcoders.feature_output_hook)


def _check(
    parts: ModelParts,
    transcoders: Transcoders,
    points: Points,
    settings: EvaluationSettings,
    per_layer: Transcoders | None,
) -> None:
    """Refuse what does not belong together, before anything is computed."""
    replaces = not points.same and points.layers == tuple(range(parts.config.n_layers))
    if replaces:
        for one in (transcoders, per_layer):
            if one is not None:
                Traceable(parts, one, None)
        return
    if len(points.layers) != transcoders.n_layers or max(points.layers) >= parts.config.n_layers:
        raise CompatibilityError(
            f"the dictionary has {transcoders.n_layers} layers and was said to belong to layers {list(points.layers)} of a "
            f"model that has {parts.config.n_layers}"
        )
    if transcoders.d_model != parts.config.d_model:
        paired(parts, transcoders)
    if settings.replacement_tokens or settings.prompts or per_layer is not None:
        raise InputError(
            f"{describe(transcoders)}: it does not replace all MLPs of the model, so only its reconstruction can be "
            "measured; set replacement_tokens to 0, prompts to none and leave the per-layer baseline out"
        )


def _conditions(
    parts: ModelParts, transcoders: Transcoders, points: Points, settings: EvaluationSettings
) -> dict[str, Any]:
    return {
        "model": public_name(parts.config.model_name),
        "architecture": parts.config.original_architecture,
        "model_dtype": parts.config.dtype,
        "layers": list(points.layers),
        **measured_with(transcoders, parts.device, settings),
    }


def measured_with(transcoders: Transcoders, device: torch.device, settings: EvaluationSettings) -> dict[str, Any]:
    """Conditions of a measurement that do not come from the model."""
    return {
        "dictionary_dtype": str(transcoders.dtype).removeprefix("torch."),
        "device": device.type,
        "settings": asdict(settings),
        "versions": {
            **{name: version(name) for name in ("circuit-tracing", "torch", "transformers")},
            "python": platform.python_version(),
        },
    }
