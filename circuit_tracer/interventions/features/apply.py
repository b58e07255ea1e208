"""Intervene on a prompt, on features and heads: `apply_edits` for one intervention, `apply_each` for many in shared passes.

    outcome = apply_edits(model, graph, [ablate(Supernode.of_nodes("Texas", graph, [12, 40]))], "constrained")
    outcome.tokens()            # top tokens before and after
    outcome.features.largest()  # what changed most

Cost: one pass for the clean run, and one for every `batch_size` interventions. Letters: B experiments, P positions, D d_model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from circuit_tracer.arguments import typed
from circuit_tracer.errors import CompatibilityError, InputError
from circuit_tracer.graph.graph import Graph
from circuit_tracer.interventions.features.attention_changes import pre_activations
from circuit_tracer.interventions.features.clean import CleanRun
from circuit_tracer.interventions.features.edits import Edit
from circuit_tracer.interventions.features.iterative import IterativePass
from circuit_tracer.interventions.features.observe import FeatureChanges, Watch, Watcher, moved
from circuit_tracer.interventions.features.outcome import Outcome
from circuit_tracer.interventions.features.passes import Freeze, Pass, require_finite
from circuit_tracer.interventions.features.resolve import Change, Place, resolve_edits, settings_of
from circuit_tracer.interventions.features.semantics import Kind, Semantics, semantics_of
from circuit_tracer.interventions.heads.edits import HeadEdit
from circuit_tracer.interventions.heads.resolve import HeadChange, resolve_heads
from circuit_tracer.interventions.heads.visits import head_visits
from circuit_tracer.models.run import ModelRun, Visit
from circuit_tracer.models.surroundings import plain_torch
from circuit_tracer.models.tokenization import Prompt
from circuit_tracer.progress import doing

if TYPE_CHECKING:
    from circuit_tracer.attribution.traceable import Traceable

AnyEdit = Edit | HeadEdit


@dataclass(frozen=True)
class Experiment:
    """One intervention, resolved: features by place, and heads."""

    features: dict[Place, Change] = field(default_factory=dict)
    heads: tuple[HeadChange, ...] = ()

    @property
    def moves(self) -> bool:
        """Whether anything is set to what it is not already."""
        return any(c.value != c.clean for c in self.features.values()) or any(c.moves for c in self.heads)


@typed
@doing("intervening")
def apply_edits(
    model: Traceable,
    prompt: Prompt | Graph | CleanRun,
    edits: AnyEdit | Sequence[AnyEdit],
    semantics: Semantics | Kind = "direct",
    watch: Watch = "all",
) -> Outcome:
    """One intervention on a prompt: text, ids, a graph (checked to be of this model), or a clean run done before.

    Several edits act together.

    An intervention that leaves every activation as it is gives the clean run, bitwise.

    Args:
        model: The replacement model.
        prompt: The prompt: text, token ids (P,), a graph, or a clean run done before.
        edits: One edit or several, which act together.
        semantics: What reacts: "direct", "constrained", "iterative", or a `Semantics`.
        watch: Features whose changes are reported: "all" that are active before or after, "none" (then only encoder rows of
            edited features are read, but for TopK), or chosen ones (`FeatureAt`, position None: everywhere).

    Returns:
        Logits, tokens and features beside those of the clean run.

    Raises:
        InputError: For what does not exist, cannot be or contradicts itself.
        CompatibilityError: For a graph or clean run of another model or dictionary.
        ResourceError: When attention is frozen and its patterns do not fit into memory.

    Examples:
        >>> from circuit_tracer.interventions import FeatureAt, apply_edits, scale
        >>> outcome = apply_edits(model, graph, scale(FeatureAt(0, 7, 78), -1))
        >>> outcome.changed_top, outcome.logits.shape
        (True, torch.Size([9, 1099]))
    """
    return apply_each(model, prompt, [[edits] if isinstance(edits, Edit | HeadEdit) else edits], semantics, watch)[0]


@typed
@plain_torch()
@torch.no_grad()
def apply_each(
    model: Traceable,
    prompt: Prompt | Graph | CleanRun,
    experiments: Sequence[Sequence[AnyEdit]],
    semantics: Semantics | Kind = "direct",
    watch: Watch = "all",
    batch_size: int = 16,
) -> list[Outcome]:
    """Interventions on one prompt, each by itself, `batch_size` of them to a pass; results do not depend on it beyond
    rounding. Otherwise as `apply_edits`.

    Args:
        model: The replacement model.
        prompt: The prompt: text, token ids (P,), a graph, or a clean run done before.
        experiments: A sequence of edits each.
        semantics: What reacts: "direct", "constrained", "iterative", or a `Semantics`.
        watch: Features whose changes are reported, as `apply_edits` says.
        batch_size: How many runs share a pass; changes no result beyond rounding.

    Returns:
        An outcome an experiment, in order.

    Raises:
        CircuitTracerError: As `apply_edits`.
    """
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; at least 1 is needed")
    if isinstance(watch, str) and watch not in ("all", "none"):
        raise InputError(f"watch is {watch!r}; use 'all', 'none' or a list of features")
    meaning = semantics_of(semantics)
    if meaning.kind == "iterative" and model.attention is not None:
        raise InputError(
            "iterative semantics encode MLPs anew in every layer, and know no dictionary of attention outputs; use direct or "
            "constrained, or load the model without attention=..."
        )
    if meaning.kind == "iterative" and model.transcoders.exact:
        raise InputError(
            "iterative semantics put the dictionary in the place of the MLPs, and neurons are the MLPs: use 'direct' semantics"
        )
    clean = clean_run(model, prompt, meaning)
    freeze = freeze_of(meaning, clean)
    resolved = resolve_all(experiments, clean, freeze)
    moving = [number for number, each in enumerate(resolved) if each.moves]
    found: dict[int, tuple[Tensor, FeatureChanges | None]] = {}
    for start in range(0, len(moving), batch_size):
        batch = moving[start : start + batch_size]
        final, features = _run([resolved[number] for number in batch], clean, meaning, freeze, watch)
        found |= {number: (final[i], features[i]) for i, number in enumerate(batch)}
    if len(found) < len(resolved):
        unmoved = (clean.final, _unmoved(clean, watch))
        found |= {number: unmoved for number in range(len(resolved)) if number not in found}
    return [
        Outcome(tuple(edits), clean, *found[number], {place: c.value for place, c in resolved[number].features.items()})
        for number, edits in enumerate(experiments)
    ]


def resolve_all(experiments: Sequence[Sequence[AnyEdit]], clean: CleanRun, freeze: Freeze) -> list[Experiment]:
    """What each set of edits comes to on a prompt; see `apply_edits` for errors."""
    heads = [[edit for edit in edits if isinstance(edit, HeadEdit)] for edits in experiments]
    changes = resolve_heads(heads, clean, freeze.attention) if any(heads) else [() for _ in heads]
    found = []
    for edits, each in zip(experiments, changes, strict=True):
        features = resolve_edits([edit for edit in edits if not isinstance(edit, HeadEdit)], clean)
        _require_effect(features, clean, freeze)
        found.append(Experiment(features, each))
    return found


def clean_run(model: Traceable, prompt: Prompt | Graph | CleanRun, meaning: Semantics) -> CleanRun:
    """The clean run of a prompt, or the one that is given, checked to be of this model."""
    if not isinstance(prompt, CleanRun):
        return CleanRun(model, prompt, patterns=meaning.freeze_attention)
    if prompt.model is not model:
        raise CompatibilityError(
            f"the clean run was done on another model object ({prompt.model.parts.config.model_name}) than the one given "
            f"({model.parts.config.model_name}); give clean.model, or make CleanRun(model, prompt) again with this one"
        )
    return prompt


def freeze_of(meaning: Semantics, clean: CleanRun) -> Freeze:
    """What is held still."""
    n_layers = clean.model.parts.config.n_layers
    return Freeze(
        clean.model,
        clean.ids,
        meaning.held(n_layers),
        attention=meaning.freeze_attention,
        norms=meaning.norms_frozen(n_layers),
        network=clean.network,
    )


def _run(
    experiments: list[Experiment], clean: CleanRun, meaning: Semantics, freeze: Freeze, watch: Watch
) -> tuple[Tensor, list[FeatureChanges | None]]:
    """(final-norm outputs (B, P, D), changes of features) of one pass.

    A pass of several carries the clean prompt too: another size of batch adds up in another order, and what that changes is
    no effect. A pass of one adds up as the clean run did.
    """
    watcher = None if watch == "none" else Watcher(clean, watch, len(experiments))
    carried = [Experiment(), *experiments] if len(experiments) > 1 else experiments
    visits = head_visits([each.heads for each in carried], clean.model.parts.config.n_heads)
    run = run_of(carried, clean, meaning, freeze, visits, watcher)
    final = require_finite(run(clean.ids, copies=len(carried)).final).flatten(0, 1)
    features: list[FeatureChanges | None] = [None] * len(experiments) if watcher is None else [*watcher.result()]
    return clean.final + moved(final, clean.final, len(experiments)), features


def run_of(
    carried: Sequence[Experiment],
    clean: CleanRun,
    meaning: Semantics,
    freeze: Freeze,
    visits: Mapping[str, Visit],
    watcher: Watcher | None = None,
) -> ModelRun:
    """The run over as many copies of the prompt as experiments are carried, with features set and `visits` at other sites."""
    left_out = [copy * clean.n_pos + position for copy in range(len(carried)) for position in clean.left_out]
    arguments = (clean.model, settings_of([each.features for each in carried], clean), freeze, watcher, left_out)
    changes = IterativePass(*arguments, clean.active) if meaning.kind == "iterative" else Pass(*arguments)
    return changes.run(visits)


def _unmoved(clean: CleanRun, watch: Watch) -> FeatureChanges | None:
    if watch == "none":
        return None
    watcher = Watcher(clean, watch, 1)
    attention = None if clean.model.attention is None else clean.attention
    for layer in range(clean.model.parts.config.n_layers):
        if attention is not None and layer in attention.layers:
            x = attention.true_input(layer)
            watcher.add_attention(layer, pre_activations(attention.dictionary, layer, x, clean.n_pos, attention))
        watcher.add(layer, clean.network.transcoder_input(layer))
    return watcher.result()[0]


def _require_effect(experiment: dict[Place, Change], clean: CleanRun, freeze: Freeze) -> None:
    """Refuse an edit whose feature writes to no layer of the range."""
    first = clean.model.transcoders.d_transcoder
    for layer, of_attention in {(layer, index >= first) for layer, _, index in experiment}:
        targets = range(layer, layer + 1) if of_attention else clean.model.transcoders.target_layers(layer)
        if freeze.layers and not freeze.layers.intersection(targets):
            raise InputError(
                f"features of layer {layer} write to layers {targets.start} to {targets.stop - 1}, none of which is in the "
                f"range {min(freeze.layers)} to {max(freeze.layers)}; widen the range"
            )
