"""Every function that runs the model, as a call that gives tensors: what one call gives, any other must give to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from circuit_tracer import ReplacementModel, attribute
from circuit_tracer.graph.graph import Graph
from circuit_tracer.interventions import (
    activation_patching,
    apply_edits,
    approximate_edges,
    attribution_patching,
    logit_difference,
    set_to,
    validate,
)
from circuit_tracer.interventions.features.edits import FeatureAt
from circuit_tracer.interventions.steering.generate import generate_held
from circuit_tracer.models.model_pass import ModelPass, Points
from circuit_tracer.models.run import fast_attention

Call = Callable[[ReplacementModel, Tensor], list[Tensor]]


def tensors_of(graph: Graph) -> list[Tensor]:
    """All numbers of a graph."""
    assert graph.balance is not None
    edges, balance = graph.edges, graph.balance
    columns = [edges.row_ptr, edges.source, edges.weight, graph.active_features, graph.selected_features]
    columns += [graph.activation_values, graph.logit_probabilities, balance.bias, balance.unselected]
    return [*columns, balance.unselected_mass, balance.pre_activation]


def trace(model: ReplacementModel, ids: Tensor) -> list[Tensor]:
    return tensors_of(attribute(ids, model, max_n_logits=3))


def trace_of_few(model: ReplacementModel, ids: Tensor) -> list[Tensor]:
    return tensors_of(attribute(ids, model, max_n_logits=2, max_feature_nodes=9, offload="cpu", keep_edge_mass=0.9))


def activations(model: ReplacementModel, ids: Tensor) -> list[Tensor]:
    return list(model.get_activations(ids))


def intervention(model: ReplacementModel, ids: Tensor) -> list[Tensor]:
    changes: list[Any] = [(0, 2, 3, 2.0), (1, len(ids) - 1, 4, 1.5)]
    logits, after = model.feature_intervention(ids, changes)
    assert after is not None
    return [logits, after]


def held_intervention(model: ReplacementModel, ids: Tensor) -> list[Tensor]:
    layers = range(model.parts.config.n_layers)
    logits, after = model.feature_intervention(
        ids, [(0, 1, 5, 2.0)], constrained_layers=layers, apply_activation_function=False
    )
    assert after is not None
    return [logits, after]


def uncapped(model: ReplacementModel, ids: Tensor) -> list[Tensor]:
    with model.zero_softcap():
        return [model.get_activations(ids)[0], bare(model, ids)[0]]


def frozen(model: ReplacementModel, ids: Tensor) -> list[Tensor]:
    before, freeze = model.setup_intervention_with_freeze(ids, constrained_layers=[0])
    with freeze.applied(), torch.no_grad():
        return [before, model.hf_model(input_ids=ids[None], use_cache=False).logits]


def edits(model: ReplacementModel, ids: Tensor) -> list[Tensor]:
    moved = apply_edits(model, ids, set_to(FeatureAt(0, 1, 2), 3.0), "direct")
    again = apply_edits(model, ids, set_to(FeatureAt(0, 1, 2), 3.0), "iterative")
    assert moved.features is not None
    return [moved.logits, moved.features.after, again.logits]


def generation(model: ReplacementModel, ids: Tensor) -> list[Tensor]:
    changes: list[Any] = [(0, slice(2, None), 3, 2.0)]
    ids, logits, after = generate_held(model, ids, changes, max_new_tokens=4, do_sample=False, stop_at_eos=False)
    assert after is not None
    return [ids, logits, after]


def sampled(model: ReplacementModel, ids: Tensor) -> list[Tensor]:
    ids, logits, _ = generate_held(model, ids, [], max_new_tokens=4, seed=3, stop_at_eos=False)
    return [ids, logits]


def patching(model: ReplacementModel, ids: Tensor) -> list[Tensor]:
    other = ids.clone()
    other[2] = (other[2] + 1) % model.parts.config.d_vocab
    metric = logit_difference(model, 3, 7)
    table = activation_patching(model, ids, other, metric, sites=["resid", "head"], positions=[2, -1])
    guess = attribution_patching(model, ids, other, metric, sites=["mlp_out"], positions="together")
    return [table.value, guess.value]


def validation(model: ReplacementModel, ids: Tensor) -> list[Tensor]:
    graph = attribute(ids, model, max_n_logits=2, max_feature_nodes=12)
    report = validate(graph, model, random_control=False)
    columns = [[-1.0 if change is None else change for change in column] for column in report.nodes.measured.values()]
    return [torch.tensor(columns, dtype=torch.float64, device="cpu"), approximate_edges(model, graph).estimate]


def native_pass(model: ReplacementModel, ids: Tensor) -> list[Tensor]:
    points = Points((0, 2), "hook_resid_mid", "mlp.hook_out")
    with fast_attention(model.parts):
        x, y = ModelPass(model.parts, points, len(ids)).run(ids[None])
    return [*x, *y]


def bare(model: ReplacementModel, ids: Tensor) -> list[Tensor]:
    """The user's own passes: nothing of ours is called."""
    with torch.no_grad():
        out = model.hf_model(input_ids=ids[None], use_cache=True, output_hidden_states=True)
        more = model.hf_model(input_ids=out.logits[:, -1:].argmax(-1), past_key_values=out.past_key_values)
    return [out.logits, *out.hidden_states, more.logits]


CALLS: dict[str, Call] = {
    call.__name__: call
    for call in (
        trace,
        trace_of_few,
        activations,
        intervention,
        held_intervention,
        uncapped,
        frozen,
        edits,
        generation,
        sampled,
        patching,
        validation,
        native_pass,
        bare,
    )
}


def equal(found: list[Tensor], expected: list[Tensor]) -> bool:
    """To the bit, and of the same kind."""
    return len(found) == len(expected) and all(
        a.dtype == b.dtype and a.device == b.device and torch.equal(a, b) for a, b in zip(found, expected, strict=True)
    )
