"""A score of attention as a target: its rows sum to it, on either side, for every architecture."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from circuit_tracer import AttentionTarget, DirectionTarget, FeatureTarget, Graph
from circuit_tracer.attribution import attribute, latent_target
from circuit_tracer.attribution.stream_targets import resolve_direction
from circuit_tracer.errors import CircuitTracerError, InputError
from circuit_tracer.models.capture import capture
from circuit_tracer.models.frozen import FrozenNetwork
from circuit_tracer.models.queries_keys import read_scores
from circuit_tracer.models.run import read
from circuit_tracer.models.sites import width_at
from tests.support.autoencoders import random_autoencoders
from tests.support.tracing_cases import IDS, Case, assert_equal, build, one_each

PLACES = [(2, 1, 5, 4), (1, 0, 3, 3), (0, 1, 4, 3), (2, 3, -1, -2)]  # within every window


def values(graph: Graph) -> torch.Tensor:
    """(K,) what the targets' rows add up to."""
    start = graph.nodes.layout.target_start
    assert graph.balance is not None
    return (graph.edges.to_dense().double().sum(1) + graph.balance.bias + graph.balance.unselected)[start:]


SIDES = ("both", "query", "key")
IN_TURN = [(case, SIDES[(place + turn) % 3]) for place, case in enumerate(one_each()) for turn in range(3)]


@pytest.mark.few
@pytest.mark.parametrize(("case", "side"), IN_TURN, ids=str)
def test_rows_sum_to_the_score_and_contrasts_to_the_difference_of_logs(case: Case, side: Any) -> None:
    model = build(case)
    captured = capture(model.parts, IDS)
    scores = read_scores(model.parts, captured, range(3))
    targets = [
        AttentionTarget(*place, versus, side)
        for place in PLACES
        for versus in (None, place[2] - 1 if place[3] != place[2] - 1 else place[2], "rest")
    ]
    found = values(attribute(IDS, model, attribution_targets=targets)).reshape(len(PLACES), 3)
    for (layer, head, query, key), (score, contrast, rest) in zip(PLACES, found, strict=True):
        query, key = query % 6, key % 6
        log = captured.patterns[layer][head, query].log()
        other = query - 1 if key != query - 1 else query
        weight = torch.softmax(log, 0).index_fill(0, torch.tensor(key), 0)[: query + 1]
        assert_equal(score, scores[layer].score(head, query, key))
        assert_equal(contrast, log[key] - log[other])
        others = torch.where(weight > 0, log[: query + 1], 0)
        assert_equal(rest, log[key] - (weight / weight.sum()) @ others)


def test_both_sides_are_the_mean_of_the_two() -> None:
    model = build(Case("gemma3", "clt", True, "mlp.hook_in", "mlp.hook_out"))
    graph = attribute(
        IDS, model, attribution_targets=[AttentionTarget(2, 1, 5, 4, 3, side) for side in ("both", "query", "key")]
    )
    both, query, key = graph.edges.to_dense()[graph.nodes.layout.target_start :]
    assert_equal(both, (query + key) / 2)
    assert query.any()
    assert key.any()
    assert not torch.equal(query, key)


def test_a_direction_that_is_an_encoder_row_is_the_feature() -> None:
    model = build(Case("gemma3", "clt", True, "mlp.hook_in", "mlp.hook_out"))
    row = model.transcoders.encoder_rows(1, torch.tensor([4]))[0][0]
    targets = [FeatureTarget(1, 3, 4), DirectionTarget(row, "mlp.hook_in", 1, 3)]
    graph = attribute(IDS, model, attribution_targets=targets)
    feature, direction = graph.edges.to_dense()[graph.nodes.layout.target_start :]
    assert_equal(direction, feature, 1e-14)


STREAMS = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out")
WITH_HEADS = ("gemma2", "gpt2", "llama-bias", "gpt_oss", "gpt_neox")


@pytest.mark.few
@pytest.mark.parametrize(
    ("architecture", "place"),
    [*(("gemma2", place) for place in STREAMS), *((name, "attn.hook_z") for name in WITH_HEADS)],
)
def test_the_row_of_an_autoencoders_feature_sums_to_its_pre_activation(architecture: str, place: str) -> None:
    torch.manual_seed(1)
    model = build(Case(architecture))
    autoencoders = random_autoencoders(width_at(model.parts, place), place, layers=(0, 1))
    targets = [latent_target(autoencoders, 1, 3, 4), latent_target(autoencoders, 0, -1, 7)]
    found = values(attribute(IDS, model, attribution_targets=targets))
    for value, (layer, position, index) in zip(found, [(1, 3, 4), (0, 5, 7)], strict=True):
        x = read(model.parts, IDS, [(place, layer)])[place, layer][0, position]
        assert_equal(value, autoencoders[layer].W_enc[index] @ x + autoencoders[layer].b_enc[index], 1e-12)
    with pytest.raises(InputError, match="a feature of transcoders is a node"):
        latent_target(model.transcoders, 1, 3, 4)


def test_heads_are_read_the_same_where_patterns_are_made_anew() -> None:
    parts, vector = build(Case("gemma2")).parts, torch.randn(24, dtype=torch.float64)
    hooks = "mlp.hook_in", "mlp.hook_out"
    kept, anew = (
        resolve_direction(
            FrozenNetwork(parts, capture(parts, IDS, keep_patterns=keep), *hooks),
            DirectionTarget(vector, "attn.hook_z", 1),
        )
        for keep in (True, False)
    )
    assert_equal(anew.reads.vector, kept.reads.vector, 1e-12)


def test_a_graph_keeps_what_its_targets_read(tmp_path: Any) -> None:
    model = build(Case("llama"))
    graph = attribute(IDS, model, attribution_targets=[3, AttentionTarget(2, 1, 5, 2, "rest"), FeatureTarget(1, 2, 3)])
    again = Graph.load(graph.save(tmp_path / "graph.safetensors"))
    assert again.targets.kind == ["logit", "attention", "feature"]
    assert again.targets.label == graph.targets.label
    assert graph.targets.reads is not None
    assert again.targets.reads is not None
    for name in ("row", "layer", "entering", "position", "vector"):
        assert torch.equal(getattr(again.targets.reads, name), getattr(graph.targets.reads, name))
    assert again.targets.reads.row.unique().tolist() == [1, 2]


BAD: dict[str, tuple[Any, str]] = {
    "layer": (AttentionTarget(3, 0, 5, 2), "layer 3 does not exist; .*0 to 2"),
    "head": (AttentionTarget(1, 4, 5, 2), "no head L1H4; .*0 to 3"),
    "query": (AttentionTarget(1, 0, 6, 2), "query 6 .*positions 0 to 5"),
    "key": (AttentionTarget(1, 0, 5, -7), "key -7 .*positions 0 to 5"),
    "key after query": (AttentionTarget(1, 0, 2, 3), "key 3 is behind query 2"),
    "versus after query": (AttentionTarget(1, 0, 2, 1, 4), "key 4 is behind query 2"),
    "versus itself": (AttentionTarget(1, 0, 2, 1, 1), "the key itself"),
    "versus a word": (AttentionTarget(1, 0, 2, 1, "others"), "expected another key, or 'rest'"),
    "no rest": (AttentionTarget(1, 0, 0, 0, "rest"), "no rest"),
    "side": (AttentionTarget(1, 0, 2, 1, None, "left"), "side is 'left'"),
    "weight": (AttentionTarget(1, 0, 2, 1, weight=float("nan")), "expected a finite number"),
    "half a head": (AttentionTarget(1, 0.5, 2, 1), "head is 0.5"),
    "site": (DirectionTarget(torch.ones(16), "hook_middle", 1), "'hook_middle' is unknown"),
    "site that is no stream": (DirectionTarget(torch.ones(16), "attn.hook_q", 1), "cannot be read at 'attn.hook_q'"),
    "layer of a direction": (DirectionTarget(torch.ones(16), "hook_resid_mid", 3), "layer 3 does not exist"),
    "width": (DirectionTarget(torch.ones(15), "hook_resid_mid", 1), r"shape \(16,\)"),
    "zero": (DirectionTarget(torch.zeros(16), "hook_resid_mid", 1), "not zero"),
    "position": (DirectionTarget(torch.ones(16), "hook_resid_mid", 1, 6), "position 6 .*positions 0 to 5"),
}


@pytest.mark.parametrize(("target", "said"), BAD.values(), ids=BAD)
def test_what_cannot_be_is_refused(target: Any, said: str) -> None:
    with pytest.raises(CircuitTracerError, match=said):
        attribute(IDS, build(Case("llama")), attribution_targets=[target])


def test_a_key_outside_the_window_is_refused() -> None:
    with pytest.raises(CircuitTracerError, match=r"outside the window of layer 0, whose query 4 sees keys \d to 4"):
        attribute(IDS, build(Case("mistral")), attribution_targets=[AttentionTarget(0, 1, 4, 0)])
