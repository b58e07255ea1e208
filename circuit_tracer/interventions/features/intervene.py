"""Set features to values and see what the model does: circuit-tracer's intervention methods.

`ReplacementModel` has these functions as methods. Letters: L layers, P positions, F features a layer, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from circuit_tracer.arguments import typed
from circuit_tracer.interventions.features.activations import Recorder
from circuit_tracer.interventions.features.passes import Freeze, Pass, require_finite
from circuit_tracer.interventions.features.settings import Intervention, resolve
from circuit_tracer.models import capture
from circuit_tracer.models.capture import check_length, logits_at
from circuit_tracer.models.surroundings import plain_torch
from circuit_tracer.models.tokenization import Prompt

if TYPE_CHECKING:
    from circuit_tracer.attribution.traceable import Traceable


@typed
@plain_torch()
@torch.no_grad()
def get_activations(
    model: Traceable, inputs: Prompt, sparse: bool = False, apply_activation_function: bool = True
) -> tuple[Tensor, Tensor]:
    """(logits (1, P, V), activations (L, P, F)) of a prompt; see `ReplacementModel.get_activations`.

    Args:
        model: The replacement model.
        inputs: The prompt: text, or token ids (P,).
        sparse: Return activations as a sparse tensor.
        apply_activation_function: False: pre-activations instead of activations.

    Returns:
        (logits (1, P, V), activations (L, P, F)).
    """
    logits, activations = feature_intervention(
        model, inputs, [], apply_activation_function=apply_activation_function, sparse=sparse
    )
    assert activations is not None
    return logits, activations


@typed
@plain_torch()
@torch.no_grad()
def feature_intervention(
    model: Traceable,
    inputs: Prompt,
    interventions: Sequence[Intervention],
    constrained_layers: Iterable[int] | None = None,
    freeze_attention: bool = True,
    apply_activation_function: bool = True,
    sparse: bool = False,
    return_activations: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """(logits (1, P, V), activations (L, P, F) or None); see `ReplacementModel.feature_intervention`.

    Args:
        model: The replacement model.
        inputs: The prompt: text, or token ids (P,).
        interventions: (layer, position, feature, value) each.
        constrained_layers: Layers whose MLP outputs stay as they were; None: none.
        freeze_attention: Keep attention patterns as on the clean prompt.
        apply_activation_function: False: pre-activations instead of activations.
        sparse: Return activations as a sparse tensor.
        return_activations: False: None in their place.

    Returns:
        (logits (1, P, V), activations (L, P, F) or None).
    """
    ids = model.ensure_tokenized(inputs)
    check_length(model.parts, ids)
    left_out = model.left_out(ids)
    parts, attention = model.parts, model.attention
    settings = resolve(interventions, model.transcoders, len(ids), parts.device, parts.compute_dtype, attention)
    freeze = freeze_for(model, ids, interventions, constrained_layers, freeze_attention)
    recorder = None
    if return_activations:
        recorder = Recorder(model.transcoders, sparse, apply_activation_function, left_out, attention)
    final = require_finite(Pass(model, settings, freeze, recorder, left_out).run()(ids).final[0])
    return logits_at(model.parts, final)[None], recorder.result() if recorder is not None else None


def freeze_for(
    model: Traceable,
    ids: Tensor,
    interventions: Sequence[Intervention],
    constrained_layers: Iterable[int] | None,
    freeze_attention: bool,
) -> Freeze | None:
    """What a set of interventions holds still; without interventions nothing moves anyway. Held layers imply attention."""
    layers = [] if constrained_layers is None else list(constrained_layers)
    return Freeze(model, ids, layers) if interventions and (freeze_attention or layers) else None


@typed
@plain_torch()
@torch.no_grad()
def setup_intervention_with_freeze(
    model: Traceable, inputs: Prompt, constrained_layers: Iterable[int] | None = None
) -> tuple[Tensor, Freeze]:
    """(activations (L, P, F) of the clean prompt, what to hold); see `ReplacementModel.setup_intervention_with_freeze`.

    Args:
        model: The replacement model.
        inputs: The prompt: text, or token ids (P,).
        constrained_layers: Layers whose MLP outputs stay as they were; None: none.

    Returns:
        (activations (L, P, F) of the clean prompt, what to hold).
    """
    ids = model.ensure_tokenized(inputs)
    _, activations = get_activations(model, ids)
    return activations, Freeze(model, ids, constrained_layers)


def zero_softcap(model: Traceable) -> AbstractContextManager[None]:
    """See `ReplacementModel.zero_softcap`.

    Args:
        model: The replacement model.

    Returns:
        A context manager; outside of it the model is as it was.
    """
    return capture.zero_softcap(model.parts)
