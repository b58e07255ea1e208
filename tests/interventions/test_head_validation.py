"""Loadings of heads and contrasts of scores against interventions: exact with everything frozen, and measured in the model."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from circuit_tracer import AttentionTarget, Graph, ReplacementModel, attribute
from circuit_tracer.errors import InputError
from circuit_tracer.interventions import HeadEdit, Semantics, apply_each, measure_patterns, set_to
from circuit_tracer.interventions.validation.bench import Bench
from circuit_tracer.interventions.validation.contrasts import ScoreShare, measure_scores
from circuit_tracer.interventions.validation.loadings import PARTS, Loading, measure_loadings
from tests.support.kept import kept
from tests.support.tiny import ARCHITECTURES, tiny_model, tiny_transcoder

IDS = torch.tensor([1, 17, 4, 33, 17, 9])
LAYERS, HEADS = range(3), range(4)


@kept
def traced(name: str, kind: str = "clt") -> tuple[ReplacementModel, Graph]:
    model = ReplacementModel.from_model(tiny_model(name), tiny_transcoder(kind, skip=True), None, name)
    return model, attribute(IDS, model, max_n_logits=2, desired_logit_prob=1.0)


@kept
def bench_of(model: ReplacementModel) -> Bench:
    """With the frozen network and the errors of the prompt."""
    return Bench(model, attribute(IDS, model), torch.arange(0), torch.arange(0), 1)


def some_edges(graph: Graph) -> list[tuple[int, int]]:
    """From the first layer's features, an error and a token, at other positions, to a feature and a logit at the last."""
    layout, nodes = graph.nodes.layout, graph.nodes
    last = int(torch.nonzero((nodes.layer[: layout.n_features] == 2) & (nodes.position[: layout.n_features] == 5))[0])
    early = torch.nonzero((nodes.layer[: layout.n_features] == 0) & (nodes.position[: layout.n_features] == 2))
    sources = [int(early[0]), layout.error_start + 2, layout.token_start + 3]
    return [(source, target) for source in sources for target in (last, layout.target_start + 1)]


def edge_of_heads(model: ReplacementModel, graph: Graph, source: int, target: int, there: Tensor) -> float:
    """The edge in the frozen network, forward, with patterns of heads (L, H) that are not there at 0."""
    network, transcoders = copy.copy(bench_of(model).network), model.transcoders
    network.layers = [
        replace(layer, mixing=replace(layer.mixing, pattern=layer.mixing.pattern * heads[:, None, None]))
        for layer, heads in zip(network.layers, there, strict=True)
    ]
    layout, zero = graph.nodes.layout, torch.zeros_like(network.captured.final)
    written, embedding = torch.zeros(3, *zero.shape, dtype=zero.dtype), zero.clone()
    if source < layout.n_features:
        row = graph.selected_features[source]
        layer, position, index = graph.active_features[row].tolist()
        rows = transcoders.decoder_rows(layer, torch.tensor([index]))[0]
        written[list(transcoders.target_layers(layer)), position] = rows * graph.activation_values[row]
    elif source < layout.token_start:
        layer, position = divmod(source - layout.error_start, len(IDS))
        written[layer, position] = bench_of(model).linear.error[layer, position]
    else:
        embedding[source - layout.token_start] = network.captured.embedding[source - layout.token_start]
    inputs, final = network.propagate(
        embedding, lambda layer, x: written[layer] + x @ (transcoders.skip_matrix(layer)), constants=False
    )
    if target < layout.n_features:
        layer, position, index = graph.active_features[graph.selected_features[target]].tolist()
        return float(inputs[layer][position] @ transcoders.encoder_rows(layer, torch.tensor([index]))[0][0])
    weight = model.parts.unembed.weight
    token = int(graph.targets.token_id[target - layout.target_start])
    return float(final[-1] @ (weight[token] - weight.mean(0)))


def by_definition(
    model: ReplacementModel, graph: Graph, source: int, target: int, head: tuple[int, int]
) -> list[float]:
    """What a head's part in an edge is: over all paths, and over those on which it is the first head, or the last."""
    found = []
    for before, beside, behind in (
        (1, 1, 1),
        (0, 0, 1),
        (1, 0, 0),
    ):  # which other heads there are: below, in its layer, above
        there = torch.full((3, 4), before, dtype=torch.float64)
        there[head[0]], there[head[0] + 1 :] = beside, behind
        there[head] = 1
        whole = edge_of_heads(model, graph, source, target, there)
        there[head] = 0
        found.append(whole - edge_of_heads(model, graph, source, target, there))
    return found


def loadings_of(model: ReplacementModel, graph: Graph) -> list[Loading]:
    found = []
    for number, (source, target) in enumerate(some_edges(graph)):
        head = ((1, 2), (2, 0))[number % 2]
        values = by_definition(model, graph, source, target, head)
        found += [Loading(source, target, *head, part, value) for part, value in zip(PARTS, values, strict=True)]
    return found


# ---- loadings


@pytest.mark.few
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_comes_through_a_head_is_its_loading_with_everything_frozen(name: str) -> None:
    model, graph = traced(name)
    every = torch.ones(3, 4, dtype=torch.float64)
    for source, target in some_edges(graph):
        assert edge_of_heads(model, graph, source, target, every) == pytest.approx(
            float(graph.adjacency_matrix[target, source]), rel=1e-9, abs=1e-9
        )
    loadings = loadings_of(model, graph)
    assert any(abs(each.predicted) > 1e-3 for each in loadings)
    test = measure_loadings(graph, model, loadings, batch_size=5)
    rows = test.rows
    assert rows.source == [each.source for each in loadings]
    assert rows.measured["constrained"] == pytest.approx(rows.predicted, rel=1e-6, abs=1e-7)  # of seven digits
    tokens = [each.source >= graph.nodes.layout.token_start for each in loadings]
    assert [each is None for each in rows.measured["live"]] == tokens
    for part in PARTS:
        frozen, live = test.agreement[part]["constrained"], test.agreement[part]["live"]
        assert (frozen.count, live.count) == (6, 4)
        assert frozen.worst is not None
        assert frozen.worst < 1e-9
        assert frozen.slope == pytest.approx(1)
        assert live.slope is not None
        assert live.slope != pytest.approx(1, rel=1e-3)


def test_a_head_at_zero_takes_as_much_away_as_one_that_is_held() -> None:
    """In the frozen network, a feature's effect with the head at 0, and without the feature, adds up to its loading."""
    model, graph = traced("gemma2")
    source, target = some_edges(graph)[0]
    layer, position, index = graph.active_features[graph.selected_features[source]].tolist()
    out, zero = set_to((layer, position, index), 0.0), HeadEdit(1, 2, "zero")
    outcomes = apply_each(model, graph, [[out], [zero], [zero, out]], "constrained")
    place = graph.active_features[graph.selected_features[target]].tolist()
    alone, head, both = (
        float((each.features.pre_after - each.features.pre_before)[each.features.of(*place)])
        for each in outcomes
        if each.features is not None
    )
    expected = by_definition(model, graph, source, target, (1, 2))[0]
    assert (both - head) - alone == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_with_all_first_heads_the_rest_of_an_edge_is_direct() -> None:
    model, graph = traced("llama", kind="plt")
    source, target = some_edges(graph)[0]
    for part in ("first", "last"):
        every = [Loading(source, target, layer, head, part, 0.0) for layer in LAYERS for head in HEADS]  # type: ignore[arg-type]
        through = measure_loadings(graph, model, every).rows.measured["constrained"]
        direct = edge_of_heads(model, graph, source, target, torch.zeros(3, 4, dtype=torch.float64))
        whole = float(graph.adjacency_matrix[target, source])
        assert direct + sum(each or 0.0 for each in through) == pytest.approx(whole, rel=1e-6)


def test_nothing_to_measure_is_an_empty_table() -> None:
    model, graph = traced("llama", kind="plt")
    test = measure_loadings(graph, model, [])
    assert test.agreement == {}
    assert test.rows.measured == {"constrained": [], "live": []}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"layer": 3}, "there is no head L3H2; the model has layers 0 to 2"),
        ({"head": 4}, "there is no head L1H4"),
        ({"part": "middle"}, "use through, first, last"),
        ({"source": -1}, "sources are nodes 0 to"),
        ({"target": 100_000}, "targets are features"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_loadings_that_cannot_be(change: dict[str, object], expected: str) -> None:
    model, graph = traced("llama", kind="plt")
    loading = Loading(0, graph.nodes.layout.target_start, 1, 2, "through", 0.0)._replace(**change)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=expected):
        measure_loadings(graph, model, [loading])


# ---- shares of scores


TARGETS = [
    AttentionTarget(2, 1, 5, 3, 4),
    AttentionTarget(2, 1, -1, 3, "rest", "key"),
    AttentionTarget(1, 2, 4, 2, side="query"),
]


def shares_of(model: ReplacementModel, graph: Graph) -> list[ScoreShare]:
    """Of features, errors and tokens, as the graph has them: those with edges, of each kind the first, middle and last."""
    layout, found = graph.nodes.layout, []
    for number, target in enumerate(TARGETS):
        row = graph.adjacency_matrix[layout.target_start + number]
        for kind in (layout.features, layout.errors, layout.tokens):
            nodes = torch.nonzero(row[kind]).flatten() + kind.start
            found += [ScoreShare(target, int(node), float(row[node])) for node in nodes[[0, len(nodes) // 2, -1]]]
    return found


@pytest.mark.few
@pytest.mark.parametrize(
    "name", ["llama", "mistral", "qwen3", "gemma2", "gpt_oss", "granite", "cohere-qk-norm", "gpt_neox"]
)
def test_what_a_node_carries_of_a_score_is_lost_without_it_with_everything_frozen(name: str) -> None:
    model, _ = traced(name)
    graph = attribute(IDS, model, attribution_targets=TARGETS)
    shares = shares_of(model, graph)
    test = measure_scores(graph, model, shares, batch_size=4)
    whole = [2 * each.predicted if each.target.side == "both" else each.predicted for each in shares]
    assert test.rows.predicted == pytest.approx(whole, rel=1e-6)
    assert test.rows.measured["constrained"] == pytest.approx(test.rows.predicted, rel=1e-5, abs=1e-7)
    frozen, live = test.agreement["constrained"], test.agreement["live"]
    assert frozen.worst is not None
    assert frozen.worst < 1e-9
    assert (frozen.count, live.count) == (27, 18)
    assert [each is None for each in test.rows.measured["live"]] == [
        each.node >= graph.nodes.layout.token_start for each in shares
    ]
    assert test.rows.query[9] == 5  # from the front


@pytest.mark.few
@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen3", "gpt_oss"])
def test_in_the_real_model_it_is_the_change_of_log_attention(name: str) -> None:
    model, graph = traced(name, kind="plt")
    nodes, layout = graph.nodes, graph.nodes.layout
    row = measure_patterns(model, graph, [], [(2, 1, 5)])
    for layer, position in ((0, 2), (1, 3)):
        here = (nodes.layer[: layout.n_features] == layer) & (nodes.position[: layout.n_features] == position)
        node = int(torch.nonzero(here)[0])
        place = graph.active_features[graph.selected_features[node]].tolist()
        out, live = set_to(tuple(place), 0.0), Semantics("direct", freeze_attention=False)
        after = measure_patterns(model, graph, out, [(2, 1, 5)], live)
        sides = [
            AttentionTarget(2, 1, 5, 3, versus, side) for versus in (4, "rest") for side in ("both", "key", "query")
        ]  # type: ignore[arg-type]
        test = measure_scores(graph, model, [ScoreShare(each, node, 0.0) for each in sides])
        found = test.rows.measured["live"]
        for number, versus in ((0, 4), (3, "rest")):
            changed, same = after.contrast(0, 3, versus), row.contrast(0, 3, versus)  # type: ignore[arg-type]
            assert found[number] == pytest.approx(same[0] - changed[1], rel=1e-5, abs=1e-9)
        if layer == 1:  # writes where the key is, and the query's token does not hear of it before
            assert found[2] == pytest.approx(0, abs=1e-12)
            assert found[0] == pytest.approx(found[1], rel=1e-6)
            assert found[0] != pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("target", "node", "expected"),
    [
        (AttentionTarget(3, 1, 5, 3), 0, "layers 0 to 2"),
        (AttentionTarget(2, 4, 5, 3), 0, "heads 0 to 3"),
        (AttentionTarget(2, 1, 3, 5), 0, "behind query 3"),
        (AttentionTarget(2, 1, 5, 3), 100_000, "node 100000 cannot be taken out"),
    ],
    ids=["layer", "head", "key", "node"],
)
def test_shares_that_cannot_be(target: AttentionTarget, node: int, expected: str) -> None:
    model, graph = traced("llama", kind="plt")
    with pytest.raises(InputError, match=expected):
        measure_scores(graph, model, [ScoreShare(target, node, 0.0)])
