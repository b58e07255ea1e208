"""The attribution graph of a prompt under an intervention: what the model does then, traced.

before = attribute(prompt, model, attribution_targets=["Austin"])
after = attribute_edited(prompt, model, [ablate(texas)], attribution_targets=["Austin"])
many.comparison.compare(before, after)          # what the intervention changes, accounted for exactly
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from circuit_tracer.attribution.attribute import attribute, left_out_of
from circuit_tracer.attribution.held import Held
from circuit_tracer.errors import InputError, shortened
from circuit_tracer.graph.graph import Graph
from circuit_tracer.interventions.features.apply import clean_run, freeze_of
from circuit_tracer.interventions.features.edits import Edit
from circuit_tracer.interventions.features.passes import Pass
from circuit_tracer.interventions.features.resolve import resolve_edits, settings_of
from circuit_tracer.interventions.features.semantics import Kind, Semantics, semantics_of
from circuit_tracer.models.surroundings import plain_torch
from circuit_tracer.models.tokenization import Prompt

if TYPE_CHECKING:
    from circuit_tracer.attribution.traceable import Traceable


@plain_torch()
def attribute_edited(
    prompt: Prompt,
    model: Traceable,
    edits: Edit | Sequence[Edit],
    semantics: Semantics | Kind = "direct",
    **options: Any,
) -> Graph:
    """The graph of the pass in which features are set, whose logits are those of `apply_edits` with the same arguments.

    Features that are set have no incoming edges, whatever they would read, and their value as a bias; those set to 0 are no
    nodes. All else is as the model does it there: direct semantics only, attention frozen to the clean prompt's or (by
    `Semantics`) reacting.

    Args:
        prompt: Text or token ids (P,).
        model: The replacement model.
        edits: One edit or several, which act together.
        semantics: Direct only: attention frozen, or (by `Semantics`) reacting.
        **options: Those of `attribute`; `provenance["edits"]` says what was done.

    Returns:
        The graph.

    Raises:
        InputError: For other semantics, edits of heads, and all that `apply_edits` refuses.
    """
    meaning = semantics_of(semantics)
    if meaning.kind != "direct":
        raise InputError(
            f"{meaning.kind} semantics hold MLP outputs that the model does not have then, so that there is no pass to trace; "
            "use direct semantics"
        )
    if model.attention is not None:
        raise InputError(
            "a trace under an intervention knows no dictionary of attention outputs; load the model without attention=..."
        )
    chosen = [edits] if isinstance(edits, Edit) else list(edits)
    clean = clean_run(model, prompt, meaning)
    if (asked := options.pop("zero_positions", None)) is not None:
        clean.left_out = left_out_of(clean.ids, model, asked)  # what the graph leaves out has nothing to edit
    changes = resolve_edits(chosen, clean)
    if not changes:
        raise InputError(
            f"no edit is given: {shortened(edits)}; trace the prompt by attribute, or name features to set"
        )
    settings, freeze = settings_of([changes], clean), freeze_of(meaning, clean)
    layer, position, index = torch.tensor(list(changes), dtype=torch.int64).unbind(1)
    held = Held(
        layer,
        position,
        index,
        torch.tensor([change.value for change in changes.values()], dtype=torch.float64),
        visits=lambda: Pass(model, settings, freeze, zero_positions=clean.left_out).visits(),
        tape=clean.network.captured.replayed if meaning.freeze_attention else None,
        words=[str(edit) for edit in chosen],
    )
    return attribute(clean.ids, model, held=held, zero_positions=clean.left_out, **options)
