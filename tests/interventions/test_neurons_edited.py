"""Neurons under interventions, steering, validation and on feature pages: two features a neuron, above zero."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.attribution.together import attribute_together
from circuit_tracer.errors import InputError
from circuit_tracer.features import FeatureFolder, build_features
from circuit_tracer.features.wanted import features_of_graphs
from circuit_tracer.graph.graph import Graph
from circuit_tracer.interventions import Edit, FeatureAt, Semantics, ablate, apply_edits, scale, set_to, validate
from circuit_tracer.interventions.features.clean import CleanRun
from circuit_tracer.models.capture import logits_at
from circuit_tracer.models.model_pass import ModelPass, Points
from circuit_tracer.replacement_model import ReplacementModel
from tests.support.feature_cases import LENGTH, SETTINGS, Case
from tests.support.kept import kept
from tests.support.tiny import tiny_model
from tests.support.tracing_cases import assert_equal

IDS = torch.tensor([3, 17, 5, 17, 40, 8])
LIVE = Semantics(freeze_attention=False)


@kept
def model_of(n_layers: int = 3) -> ReplacementModel:
    return ReplacementModel.from_model(tiny_model("llama", num_hidden_layers=n_layers), "neurons", None, "tiny")


@kept
def graph_of() -> Graph:
    return attribute(IDS, model_of(), attribution_targets=[7], max_feature_nodes=60)


def some_node(side: int) -> FeatureAt:
    """A node of layer 1, of a neuron that is above zero (side 0) or below."""
    rows = graph_of().active_features
    layer, position, index = rows[(rows[:, 0] == 1) & (rows[:, 2] % 2 == side)][0].tolist()
    return FeatureAt(layer, position, index)


def by_hand(at: FeatureAt, value: float) -> Tensor:
    """Logits (P, V) of transformers' own pass in which a neuron is set before its projection."""
    model = model_of().hf_model

    def put(_: object, given: tuple[Tensor]) -> Tensor:
        changed = given[0].clone()
        changed[0, at.position, at.feature_idx // 2] = value
        return changed

    hook = model.model.layers[at.layer].mlp.down_proj.register_forward_pre_hook(put)
    try:
        logits: Tensor = model(IDS[None]).logits[0]
    finally:
        hook.remove()
    return logits


def edited(*edits: Edit) -> Tensor:
    model = model_of()
    return logits_at(model.parts, apply_edits(model, IDS, list(edits), LIVE, watch="none").final)


@pytest.mark.parametrize("side", [0, 1], ids=["positive", "negative"])
def test_an_edited_neuron_is_the_neuron_set_before_its_projection(side: int) -> None:
    at, sign = some_node(side), 1 - 2 * side
    clean = float(CleanRun(model_of(), IDS).activations(at.layer, *_at(at)))
    assert clean > 0
    for edit, value in ((ablate(at), 0.0), (scale(at, 3.0), 3 * clean), (set_to(at, 0.7), 0.7)):
        assert_equal(edited(edit), by_hand(at, sign * value), 1e-5)


def test_a_value_of_the_other_sign_is_set_on_the_other_side() -> None:
    at = some_node(1)
    other = FeatureAt(at.layer, at.position, at.feature_idx - 1)
    assert_equal(edited(ablate(at), set_to(other, 0.4)), by_hand(at, 0.4), 1e-5)


def test_with_everything_frozen_an_ablation_is_the_edge() -> None:
    model, graph = model_of(), graph_of()
    source = int(graph.adjacency_matrix[-1, :60].abs().argmax())
    layer, position, index = graph.active_features[source].tolist()
    outcome = apply_edits(model, graph, ablate((layer, position, index)), "constrained")
    before, after = (logits_at(model.parts, final)[-1] for final in (CleanRun(model, graph).final, outcome.final))
    change = (after - after.mean()) - (before - before.mean())
    assert float(change[7]) == pytest.approx(-float(graph.adjacency_matrix[-1, source]), rel=1e-9)
    found = outcome.features
    assert found is not None
    assert len(found) == 60
    for node in range(source + 1, 60):
        place = found.of(*graph.active_features[node].tolist())
        moved = float(found.pre_after[place] - found.pre_before[place])
        assert moved == pytest.approx(-float(graph.adjacency_matrix[node, source]), abs=1e-9)


def test_iterative_semantics_are_refused() -> None:
    with pytest.raises(InputError, match="neurons are the MLPs"):
        apply_edits(model_of(), IDS, ablate(some_node(0)), "iterative")


def test_a_graph_of_neurons_is_validated_and_says_other_neurons() -> None:
    report = validate(graph_of(), model_of())
    worst = report.graph.effects["constrained"].edges.worst
    assert worst is not None
    assert worst < 1e-8
    assert report.graph.curves == []
    said = " ".join([*report.verdict, *report.distrust])
    assert "reconstruction error" not in said
    assert "other neurons" in said


def test_generation_with_a_neuron_set_is_the_pass_with_it_set() -> None:
    at = some_node(0)
    _, logits, _ = model_of().feature_intervention_generate(
        IDS,
        [(*at[:2], at.feature_idx, 0.7)],
        freeze_attention=False,
        max_new_tokens=1,
        do_sample=False,
        return_type="tokens",
    )
    assert_equal(logits[0], by_hand(at, 0.7)[-1], 1e-5)


def test_prompts_together_are_traced_one_by_one() -> None:
    together = attribute_together([IDS, IDS[:4]], model_of(), max_feature_nodes=30)
    for ids, graph in zip((IDS, IDS[:4]), together, strict=True):
        assert isinstance(graph, Graph)
        assert_equal(graph.adjacency_matrix, attribute(ids, model_of(), max_feature_nodes=30).adjacency_matrix, 1e-12)


def test_pages_keep_the_two_signs_of_a_neuron_apart(tmp_path: Path) -> None:
    model, case = model_of(2), Case(packed=False, documents=4)
    with pytest.raises(InputError, match="pages are built for those of graphs"):
        build_features(model, case.corpus(tmp_path), tmp_path / "all", SETTINGS)
    ids = torch.tensor([[3, 4, 5, 6, 7, 8, 3, 5, 7, 4, 6]])
    graph = attribute(ids[0], model, max_feature_nodes=12)
    wanted = features_of_graphs([graph.save(tmp_path / "g.safetensors")])
    pages = FeatureFolder(build_features(model, case.corpus(tmp_path), tmp_path / "pages", SETTINGS, wanted=wanted))
    hook = model.transcoders.feature_input_hook
    corpus, most = case.corpus(tmp_path), dict[tuple[int, int], float]()
    while (sequence := corpus.next()) is not None:
        inputs, _ = ModelPass(model.parts, Points((0, 1), hook, hook), LENGTH).run(torch.from_numpy(sequence)[None])
        for layer, x in enumerate(inputs):
            value = model.transcoders.mlp(layer).activations(x[1:].double())  # type: ignore[attr-defined]
            for index in wanted.get(layer, ()):
                side = (value if index % 2 == 0 else -value)[:, int(index) // 2]
                key = (layer, int(index))
                most[key] = max(most.get(key, 0.0), float(side.max()))
    for place, value in most.items():
        record = pages.get(place)
        assert record["act_min"] >= 0
        assert record["act_max"] == pytest.approx(max(value, 0.0), rel=1e-3)


def _at(at: FeatureAt) -> tuple[Tensor, Tensor]:
    return torch.tensor([at.position]), torch.tensor([at.feature_idx])
