"""The engine equals the reference, in float64, for every architecture and every kind of transcoder and target."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch

from circuit_tracer.attribution import reference_dense, sweep
from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.attribution.reference import FrozenModel, reference_graph
from circuit_tracer.attribution.stream_targets import DIRECTION_SITES
from circuit_tracer.attribution.targets import CustomTarget, DirectionTarget, FeatureTarget, LogitDifference
from circuit_tracer.graph.influence import node_influence
from circuit_tracer.graph.pruning import prune_graph
from circuit_tracer.graph.scores import graph_scores
from circuit_tracer.models.run import implementation
from circuit_tracer.models.sites import SITES
from circuit_tracer.replacement_model import ReplacementModel
from tests.support.tiny import tiny_model, tiny_transcoder
from tests.support.tracing_cases import (
    ACTIVATIONS,
    IDS,
    INPUT_HOOKS,
    OUTPUT_HOOKS,
    Case,
    assert_equal,
    assert_same_graph,
    build,
    one_each,
    rotation,
)

EVERY_KIND = [
    Case("gemma2", kind, skip, i, o, activation)
    for kind, skip, i, o, activation in product(("clt", "plt"), (False, True), INPUT_HOOKS, OUTPUT_HOOKS, ACTIVATIONS)
]
FEW = [
    Case("gemma3", "clt", True, "mlp.hook_in", "mlp.hook_out"),
    Case("gpt_neox", "plt", True, "ln2.hook_normalized"),
    Case("gpt2"),
]


def direction(seed: int, d_model: int = 16) -> torch.Tensor:
    return torch.randn(d_model, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


TARGETS: dict[str, list[Any]] = {
    "ids": [0, 46, 13],
    "differences": [LogitDifference(3, 8, -0.5), LogitDifference(8, 3)],
    "directions": [CustomTarget("up", 1.0, direction(0)), CustomTarget("down", -1.0, direction(1))],
    "features": [FeatureTarget(2, 5, 4, -2.0), FeatureTarget(0, 3, 0), FeatureTarget(1, 0, 9)],
    "mixed": [FeatureTarget(1, 2, 3), 5, LogitDifference(1, 2), CustomTarget("x", 0.25, direction(2))],
}


@pytest.mark.few
@pytest.mark.parametrize("case", rotation(), ids=str)
def test_engine_equals_reference_for_every_architecture_and_hook(case: Case) -> None:
    model = build(case)
    assert_same_graph(attribute(IDS, model, max_n_logits=3), reference_graph(model, IDS, max_n_logits=3))


@pytest.mark.parametrize("case", FEW, ids=str)
def test_tokens_are_the_same_behind_the_first_attention_and_before_it(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "REACH_BYTES", 0)
    model = build(case)
    assert_same_graph(attribute(IDS, model, max_n_logits=3), reference_graph(model, IDS, max_n_logits=3))


@pytest.mark.few
@pytest.mark.parametrize("case", EVERY_KIND, ids=str)
def test_engine_equals_reference_for_every_kind_of_transcoder(case: Case) -> None:
    model, ids = build(case, n_features=6), IDS[:4]
    assert_same_graph(attribute(ids, model, max_n_logits=2), reference_graph(model, ids, max_n_logits=2))


@pytest.mark.few
@pytest.mark.parametrize(("case", "kind"), list(product(FEW, TARGETS)), ids=str)
def test_engine_equals_reference_for_every_kind_of_target(case: Case, kind: str) -> None:
    model, targets = build(case), TARGETS[kind]
    for position in (-1, 2, 0) if case == FEW[0] else (-1,):
        found = attribute(IDS, model, attribution_targets=targets, position=position)
        assert_same_graph(found, reference_graph(model, IDS, targets, position=position))


@pytest.mark.few
@pytest.mark.parametrize("case", [*rotation()[::3], *FEW], ids=str)
def test_engine_equals_reference_for_directions_at_every_site(case: Case) -> None:
    model = build(case)
    refused = {"hook_attn_out", "hook_mlp_out"} if model.parts.parallel else set()
    there = [site for site in DIRECTION_SITES if not SITES[site].missing(model.parts) and site not in refused]
    places = [(site, layer, place) for site in there for layer, place in ((0, 3), (2, 5), (1, 0))]
    targets = [DirectionTarget(direction(seed), *place) for seed, place in enumerate(places)]
    found = attribute(IDS, model, attribution_targets=[3, *targets, FeatureTarget(1, 2, 3)])
    assert_same_graph(found, reference_graph(model, IDS, [3, *targets, FeatureTarget(1, 2, 3)]))


@pytest.mark.few
@pytest.mark.parametrize(("case", "left_out"), list(product(FEW, ([], [0, 1], [2], [0, 5]))), ids=str)
def test_engine_equals_reference_for_any_positions_left_out(case: Case, left_out: list[int]) -> None:
    model = build(case)
    found = attribute(IDS, model, zero_positions=left_out, max_n_logits=2)
    assert_same_graph(found, reference_graph(model, IDS, left_out=left_out, max_n_logits=2))


@pytest.mark.few
@pytest.mark.parametrize("probability", [0.01, 0.3, 0.6, 0.95, 1.0])
def test_engine_and_reference_choose_the_same_salient_tokens(probability: float) -> None:
    model = build(FEW[0])
    options = {"max_n_logits": 20, "desired_logit_prob": probability}
    assert_same_graph(attribute(IDS, model, **options), reference_graph(model, IDS, **options))


def test_layers_with_different_numbers_of_features_are_traced() -> None:
    from circuit_tracer.transcoders.transcoder_set import TranscoderSet

    layers = {layer: tiny_transcoder("plt", n_features=6 + layer)[layer] for layer in range(3)}
    transcoders = TranscoderSet(layers, "hook_resid_mid", "hook_mlp_out")
    model = ReplacementModel.from_model(tiny_model("llama"), transcoders, None, "llama")
    assert_same_graph(attribute(IDS, model), reference_graph(model, IDS))


@pytest.mark.parametrize("case", one_each(), ids=str)
def test_reference_runs_the_model_itself(case: Case) -> None:
    model = build(case)
    # transformers rounds norms and softmax to float32 even in float64 models
    with torch.no_grad(), implementation(model.parts, "eager"):
        expected = model.hf_model.base_model(input_ids=IDS[None]).last_hidden_state[0]
    frozen = FrozenModel(model.parts, model.transcoders, IDS, [0])
    assert_equal(frozen.final, expected, 1e-5)
    final = frozen.run(frozen.tokens, frozen.writes).final
    assert_equal(final, frozen.final, 1e-12)


@pytest.mark.parametrize("case", one_each(), ids=str)
def test_reference_is_affine_in_its_sources(case: Case) -> None:
    model = build(case)
    frozen = FrozenModel(model.parts, model.transcoders, IDS, [0])
    generator = torch.Generator().manual_seed(0)

    def anything() -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(6, 16, generator=generator).double(), torch.randn(3, 6, 16, generator=generator).double()

    (t1, w1), (t2, w2) = anything(), anything()
    for sum_of, one, two, none in zip(
        frozen.run(t1 - 2 * t2, w1 - 2 * w2)[:2],
        frozen.run(t1, w1)[:2],
        frozen.run(t2, w2)[:2],
        frozen.run(0 * t1, 0 * w1)[:2],
        strict=True,
    ):
        assert_equal(sum_of - none, (one - none) - 2 * (two - none), 1e-12)


@pytest.mark.few
@pytest.mark.parametrize(("case", "budget"), list(product(one_each(), (None, 9))), ids=str)
def test_influence_pruning_and_scores_equal_the_reference(case: Case, budget: int | None) -> None:
    model = build(case)
    graph = attribute(IDS, model, max_n_logits=3, max_feature_nodes=budget)
    dense = reference_graph(model, IDS, max_n_logits=3, max_feature_nodes=budget)
    assert_same_graph(graph, dense)
    influence = node_influence(graph.edges, graph.blocks, graph.target_weights)
    assert_equal(influence, reference_dense.node_influence(dense.adjacency, dense.target_weights))
    scores = graph_scores(graph)
    assert (scores.replacement, scores.completeness) == pytest.approx(reference_dense.graph_scores(dense), abs=1e-9)
    for policy in ("circuit-tracer", "paper"):
        for node_threshold, edge_threshold in ((0.8, 0.98), (0.5, 0.7)):
            pruned = prune_graph(graph, node_threshold, edge_threshold, policy)
            nodes, edges = reference_dense.prune(dense, node_threshold, edge_threshold, policy)
            assert torch.equal(pruned.node_mask, nodes)
            assert torch.equal(pruned.edge_mask, edges)
