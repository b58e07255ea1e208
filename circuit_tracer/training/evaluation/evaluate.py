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

from circuit_tracer.attribution.prompt import paired
from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.errors import CompatibilityError, InputError
from circuit_tracer.models.model_pass import Points
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.models.run import fast_attention
from circuit_tracer.models.sites import width_at
from circuit_tracer.models.sources import public_name
from circuit_tracer.models.surroundings import plain_torch
from circuit_tracer.progress import Progress, silent
from circuit_tracer.training.evaluation.activations import Activations, ModelActivations
from circuit_tracer.training.evaluation.graphs import Named, score_graphs
from circuit_tracer.training.evaluation.passes import StandIn
from circuit_tracer.training.evaluation.reconstruction import measure
from circuit_tracer.training.evaluation.replacement import MEAN, ZERO, compare
from circuit_tracer.training.evaluation.results import DICTIONARY, PER_LAYER, RANDOM, DictionaryResult, Evaluation
from circuit_tracer.training.evaluation.sequences import Sequences
from circuit_tracer.training.evaluation.settings import EvaluationSettings
from circuit_tracer.training.evaluation.snippets import LEAST_PROBABILITY, as_text, held_out_prompts
from circuit_tracer.training.evaluation.splicing import WHOLE_STREAM, splice
from circuit_tracer.training.evaluation.stand_ins import Constant, Reconstructions
from circuit_tracer.transcoders.base import Transcoders
from circuit_tracer.transcoders.random_dictionary import random_baseline
from circuit_tracer.version import package_version

AUTOENCODERS = "sparse autoencoders"


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

    What does not apply (an autoencoder replaces no MLP and has no graphs; text needs a tokenizer) is left out, and the
    result says so (`not_measured`).

    Args:
        parts: Of the model.
        tokenizer: Its tokenizer.
        transcoders: The dictionary.
        tokens: Held-out sequences, each (P,) int64.
        settings: What to measure; None: `EvaluationSettings()`.
        layers: The model's layers that autoencoders are of; None: all, or what transcoders say.
        activations: Read instead of running the model on ``tokens`` for reconstruction (`GivenActivations`).
        per_layer: Another dictionary to measure beside.
        conditions: What the report shall say besides, such as names and files.
        progress: Called with (stage, done, total).

    Returns:
        The measurements, beside their baselines.

    Raises:
        InputError: For what cannot be measured.
        CompatibilityError: For what cannot be measured.
        NumericalError: For what cannot be measured.
    """
    settings = settings or EvaluationSettings()
    if layers is None:
        transcoders = paired(parts, transcoders)
        per_layer = None if per_layer is None else paired(parts, per_layer)
    subject = _Subject(parts, tokenizer, settings, progress)
    points = _points(parts, transcoders, layers)
    _check(parts, transcoders, points, per_layer)
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
        found = Evaluation(
            conditions=_conditions(parts, transcoders, points, settings)
            | {"data": source.describe()}
            | dict(conditions or {}),
            results={
                name: DictionaryResult(describe(one), reconstructions[name]) for name, one in dictionaries.items()
            },
        )
        if points.same:
            return subject.with_splices(found, dictionaries, points, mean_SD, chosen)
        if settings.replacement_tokens:
            found = subject.with_replacement(found, dictionaries, mean_SD, chosen)
        prompts, missing = subject.prompts(chosen)
    return subject.with_graphs(replace(found, not_measured=missing), dictionaries, prompts)


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
            partial(self.progress, "reconstruction"),
        )

    def with_replacement(
        self, found: Evaluation, dictionaries: Mapping[str, Transcoders], mean_LD: Tensor, chosen: Sequences | None
    ) -> Evaluation:
        """All dictionaries and both ablations in place of the MLPs."""
        points = {name: _points(self.parts, one, None) for name, one in dictionaries.items()}
        replaced = dictionaries[DICTIONARY].layers
        constants = {ZERO: Constant(torch.zeros_like(mean_LD), replaced), MEAN: Constant(mean_LD, replaced)}
        stand_ins: dict[str, tuple[Points, StandIn]] = {
            name: (points[name], Reconstructions(one)) for name, one in dictionaries.items()
        }
        ablations = {name: (points[DICTIONARY], one) for name, one in constants.items()}
        comparison = compare(
            self.parts,
            {**stand_ins, **ablations},
            self._replaced(chosen),
            self.settings.batch_tokens,
            partial(self.progress, "replacement"),
        )
        numbers = comparison.results()
        results = {name: replace(one, replacement=numbers[name]) for name, one in found.results.items()}
        ablated = {name: numbers[name] for name in (ZERO, MEAN)}
        return replace(found, results=results, model=comparison.model(), ablations=ablated)

    def with_splices(
        self,
        found: Evaluation,
        dictionaries: Mapping[str, Transcoders],
        points: Points,
        mean_SD: Tensor,
        chosen: Sequences | None,
    ) -> Evaluation:
        """Autoencoders in place of the stream, one layer at a time."""
        missing = []
        if self.settings.prompts or self.settings.held_out_prompts:
            missing.append("Graphs of prompts: an autoencoder replaces no MLP, so no prompt can be traced with it.")
        if points.input not in WHOLE_STREAM:
            missing.append(
                f"Loss with the reconstruction spliced in: {points.input} is not the stream that goes on; it is measured at "
                f"{' and '.join(WHOLE_STREAM)}."
            )
        found = replace(found, not_measured=missing)
        if not self.settings.replacement_tokens or points.input not in WHOLE_STREAM:
            return found
        spliced = splice(
            self.parts,
            dictionaries,
            points,
            mean_SD,
            self._replaced(chosen),
            self.settings.batch_tokens,
            partial(self.progress, "splicing"),
        )
        results = {name: replace(one, spliced=spliced.layers[name]) for name, one in found.results.items()}
        ablated = {name: spliced.layers[name] for name in (ZERO, MEAN)}
        return replace(found, results=results, model=spliced.model, spliced_ablations=ablated)

    def prompts(self, chosen: Sequences | None) -> tuple[list[Named], list[str]]:
        """Those whose graphs are scored, and what is not and why."""
        settings = self.settings
        named, missing = [Named(str(prompt), prompt) for prompt in settings.prompts], list[str]()
        if self.tokenizer is None and (texts := [one for one in named if isinstance(one.prompt, str)]):
            named = [one for one in named if not isinstance(one.prompt, str)]
            missing.append(f"Graphs of {len(texts)} named prompt(s): text cannot be read without a tokenizer.")
        if not settings.held_out_prompts:
            return named, missing
        if chosen is None:
            return named, [
                *missing,
                "Graphs of held-out prompts: activations were given, and no sequences to cut them from.",
            ]
        cut = held_out_prompts(self.parts, self.tokenizer, chosen, settings.held_out_prompts)
        if len(cut) < settings.held_out_prompts:
            missing.append(
                f"Graphs of {settings.held_out_prompts - len(cut)} of {settings.held_out_prompts} held-out prompts: in so much "
                f"text the model is right at a probability of {LEAST_PROBABILITY} or more only in {len(cut)} of the "
                "windows looked at."
            )
        return [*named, *(Named(as_text(ids, self.tokenizer), ids, held_out=True) for ids in cut)], missing

    def with_graphs(
        self, found: Evaluation, dictionaries: Mapping[str, Transcoders], prompts: list[Named]
    ) -> Evaluation:
        """Every prompt traced with every dictionary."""
        if not prompts:
            return found
        results = dict(found.results)
        for name, one in dictionaries.items():
            graphs = score_graphs(
                Traceable(self.parts, one, self.tokenizer),
                prompts[: self.settings.random_graphs] if name == RANDOM else prompts,
                self.settings.max_feature_nodes,
                self.settings.seed if self.settings.faithfulness else None,
                partial(self.progress, f"graphs, {name}"),
            )
            results[name] = replace(results[name], graphs=graphs)
        return replace(found, results=results)

    def _replaced(self, chosen: Sequences | None) -> Sequences:
        if chosen is None:
            raise InputError("replacement is measured on token sequences: give some, or set replacement_tokens to 0")
        return chosen.first(self.settings.replacement_tokens)


def describe(transcoders: Transcoders) -> str:
    """One line about a dictionary."""
    kind = {
        "cross_layer_transcoder": "cross-layer transcoder",
        "transcoder_set": "per-layer transcoders",
        "random": "random dictionary",
    }[transcoders.kind]
    if transcoders.is_autoencoder:
        kind = kind.replace("per-layer transcoders", AUTOENCODERS)
    skip = ", skip connection" if transcoders.skip_connection else ""
    activation = transcoders.activation(transcoders.layers[0]).name
    router = transcoders.router(transcoders.layers[0])
    if router is not None:
        activation += f" of one of {len(router.bias)} experts"
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
    per_layer: Transcoders | None,
) -> None:
    """Refuse what does not belong together, before anything is computed."""
    if not points.same:
        if points.layers != tuple(range(parts.config.n_layers)):
            raise InputError(
                f"layers {list(points.layers)} were given; only those of autoencoders are: transcoders know their own layers"
            )
        for one in (transcoders, per_layer):
            if one is not None:
                Traceable(parts, one, None)
        return
    if len(points.layers) != transcoders.n_layers or max(points.layers) >= parts.config.n_layers:
        raise CompatibilityError(
            f"the dictionary has {transcoders.n_layers} layers and was said to belong to layers {list(points.layers)} of a "
            f"model that has {parts.config.n_layers}"
        )
    if transcoders.d_model != width_at(parts, points.input):
        paired(parts, transcoders)
    if per_layer is not None:
        raise InputError(
            f"{describe(transcoders)}: autoencoders replace no MLP, so no transcoders are measured beside them; leave the "
            "per-layer baseline out"
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
            "circuit-tracing": package_version(),
            **{name: version(name) for name in ("torch", "transformers")},
            "python": platform.python_version(),
        },
    }
