"""Edges split over heads: the sums are the edge, and each part is what the frozen network does with that head and without."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from circuit_tracer.attention import (
    EdgeExplanation,
    edge_set,
    explain_edge,
    explain_edges,
    frozen_prompt,
    head_maps,
    sweeps,
)
from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.attribution.targets import (
    AttentionTarget,
    CustomTarget,
    DirectionTarget,
    FeatureTarget,
    LogitDifference,
)
from circuit_tracer.graph import Graph, prune_graph
from circuit_tracer.replacement_model import ReplacementModel
from tests.attribution.test_any_case import models, prompts, target_lists, trace
from tests.support.edge_cases import (
    PARALLEL,
    PLAIN,
    SEQUENTIAL,
    THREE,
    FrozenEdge,
    any_architecture,
    at_entries,
    between,
    every_architecture,
    only,
    scaled,
    some_edges,
    together,
    traced,
    without,
)
from tests.support.induction import FIRST, INDUCTION, induction_model, induction_transcoders
from tests.support.tiny import tiny_model, tiny_transcoder
from tests.support.tracing_cases import IDS, Case

EXACT = {torch.float64: 1e-9, torch.float32: 1e-5}
each_case = pytest.mark.parametrize("case", THREE, ids=str)


def close(found: float, expected: float, scale: float, tolerance: float = 1e-9) -> None:
    assert abs(found - expected) <= tolerance * max(1.0, abs(scale)), (found, expected)


def sums_are_the_edge(told: EdgeExplanation, tolerance: float = 1e-9) -> None:
    number = torch.arange(len(told.hops))
    mass = float(told.first.abs().sum() + told.last.abs().sum() + told.through.abs().sum() + abs(told.weight))
    for total in (told.direct + told.first.sum(), told.direct + told.last.sum(), told.hops.sum()):
        close(float(total), told.weight, mass, tolerance)
    close(float((number * told.hops).sum()), float(told.through.sum()), mass, tolerance)
    close(told.mean_hops * told.weight, float(told.through.sum()), mass, tolerance)
    close(float(told.hops[0]), told.direct, mass, tolerance)
    close(told.direct + sum(path.weight for path in told.paths) + told.rest.weight, told.weight, mass, tolerance)
    close(float(told.rest.hops.sum()), told.rest.weight, mass, tolerance)
    assert told.residual <= tolerance
    assert told.rest.mass >= abs(told.rest.weight) - tolerance * mass


@pytest.mark.few
@every_architecture
def test_sums_are_the_edge_in_every_architecture(name: str, number: int) -> None:
    model, graph = any_architecture(name, number)
    kept = explain_edges(graph, model, 1, graph.edges)  # compares every sum with its edge, to 1e-10
    assert len(kept) == len(graph.edges)
    source, target = some_edges(graph, 1)[0]
    sums_are_the_edge(explain_edge(graph, source, target, model, paths=3))


@pytest.mark.few
@pytest.mark.parametrize("dtype", EXACT, ids=str)
@each_case
def test_sums_are_the_edge_for_all_kinds_of_nodes(case: Case, dtype: torch.dtype) -> None:
    model, graph = traced(case, dtype)
    for source, target in some_edges(graph, 8):
        sums_are_the_edge(explain_edge(graph, source, target, model), EXACT[dtype])


@pytest.mark.few
@pytest.mark.parametrize("side", ["both", "query", "key"])
@each_case
def test_what_a_target_reads_before_the_source_is_no_part_of_an_edge(case: Case, side: str) -> None:
    """Scores read their keys' tokens, behind which most sources are."""
    model = traced(case)[0]
    targets = [AttentionTarget(2, 1, 5, 3, "rest", side), AttentionTarget(2, 0, 5, 4, 2, side)]
    graph = attribute(IDS, model, attribution_targets=targets)
    start, edges = graph.nodes.layout.target_start, graph.edges
    into = [(int(s), int(t)) for s, t in zip(edges.source, edges.target, strict=True) if t >= start]
    kept = explain_edges(graph, model, 1, into)
    for source, target in into[:: max(1, len(into) // 12)]:
        told = explain_edge(graph, source, target, model, paths=2)
        sums_are_the_edge(told)
        row = int(kept.find(torch.tensor([source]), torch.tensor([target])))
        close(float(kept.direct[row]), told.direct, told.weight)
        close(float(kept.mean_hops[row]) * told.weight, float(told.through.sum()), told.weight)


def test_edges_that_are_small_by_cancellation_are_no_errors() -> None:
    """In single precision: rounding is that of the products, not of their sum."""
    transcoders = tiny_transcoder("plt", torch.float32, n_features=16, d_model=128)
    bound = ReplacementModel.from_model(tiny_model("llama", torch.float32, hidden_size=128), transcoders, None, "llama")
    graph = attribute(torch.arange(3, 43), bound, max_feature_nodes=200, max_n_logits=2)
    told = explain_edges(graph, bound, 1, graph.edges)
    same = graph.nodes.position[told.source] == graph.nodes.position[told.target]
    smallest = torch.nonzero(same).flatten()[graph.edges.weight[same].abs().argsort()[:3]]
    for row in smallest.tolist():
        assert explain_edge(graph, int(told.source[row]), int(told.target[row]), bound, paths=0).residual < 1e-6


@each_case
def test_through_a_head_is_what_the_edge_loses_with_it(case: Case) -> None:
    model, graph = traced(case)
    for source, target in some_edges(graph, 2):
        told, edge = explain_edge(graph, source, target, model, paths=0), FrozenEdge(model, graph, source, target)
        close(edge.effect(), told.weight, told.weight)
        for layer, head in itertools.product(*map(range, told.through.shape)):
            lost = edge.effect() - edge.effect(without((layer, head)))
            close(lost, float(told.through[layer, head]), told.weight)


@each_case
def test_first_heads_come_behind_none_and_last_heads_before_none(case: Case) -> None:
    model, graph = traced(case)
    source, target = some_edges(graph, 1)[0]
    told, edge = explain_edge(graph, source, target, model, paths=0), FrozenEdge(model, graph, source, target)
    n_layers, n_heads = told.first.shape
    for layer, head in itertools.product(range(n_layers), range(n_heads)):
        for part, around in ((told.first, between(layer + 1, n_layers)), (told.last, between(0, layer))):
            alone = edge.effect(together(around, only((layer, head)))) - edge.effect(around)
            close(alone, float(part[layer, head]), told.weight)


def test_hops_are_the_polynomial_in_a_factor_of_all_patterns() -> None:
    model, graph = traced(SEQUENTIAL)
    source, target = some_edges(graph, 1)[0]
    told, edge = explain_edge(graph, source, target, model, paths=0), FrozenEdge(model, graph, source, target)
    for factor in (0.0, 0.5, 2.0):
        polynomial = float((told.hops * factor ** torch.arange(len(told.hops))).sum())
        close(polynomial, edge.effect(scaled(factor)), told.weight)


@each_case
def test_paths_are_all_paths_when_so_many_are_asked_for(case: Case) -> None:
    """By brute force: with a set of heads alone, those of its subsets taken away."""
    model, graph = traced(case)
    source, target = some_edges(graph, 1)[0]
    told, edge = explain_edge(graph, source, target, model, paths=10_000), FrozenEdge(model, graph, source, target)
    n_layers, n_heads = told.first.shape
    choices = itertools.product((None, *range(n_heads)), repeat=n_layers)
    alone = {heads: edge.effect(only(*heads)) for heads in map(_chosen, choices)}
    found = {path.heads: path.weight for path in told.paths}
    for heads in alone:
        subsets = itertools.chain.from_iterable(itertools.combinations(heads, n) for n in range(len(heads) + 1))
        expected = sum((-1) ** (len(heads) - len(some)) * alone[some] for some in subsets)
        close(found.get(heads, 0.0) if heads else told.direct, expected, told.weight)
    assert [abs(path.weight) for path in told.paths] == sorted((abs(path.weight) for path in told.paths), reverse=True)
    close(told.rest.weight, 0, told.weight)
    close(told.rest.mass, 0, told.weight)


def _chosen(choice: tuple[int | None, ...]) -> tuple[tuple[int, int], ...]:
    return tuple((layer, head) for layer, head in enumerate(choice) if head is not None)


def test_a_short_list_of_paths_is_the_strongest_and_what_it_leaves_is_said() -> None:
    model, graph = traced(SEQUENTIAL)
    source, target = some_edges(graph, 1)[0]
    every = explain_edge(graph, source, target, model, paths=10_000)
    few = explain_edge(graph, source, target, model, paths=5)
    assert [path.heads for path in few.paths] == [path.heads for path in every.paths[:5]]
    left = every.paths[5:]
    close(few.rest.weight, sum(path.weight for path in left), few.weight)
    assert few.rest.mass <= sum(abs(path.weight) for path in left) + 1e-9
    for hops in range(len(few.hops)):
        close(float(few.rest.hops[hops]), sum(path.weight for path in left if len(path.heads) == hops), few.weight)


def test_a_path_names_the_position_that_carries_most() -> None:
    model, graph = traced(PLAIN)
    source, target = some_edges(graph, 1)[0]
    told, edge = explain_edge(graph, source, target, model, paths=100), FrozenEdge(model, graph, source, target)
    start, end = int(graph.nodes.position[source]), int(graph.nodes.position[target])
    assert end - start >= 2
    for path in (path for path in told.paths if len(path.heads) == 1):
        assert path.positions == (start, end)
    (first, last), positions, weight = next((p.heads, p.positions, p.weight) for p in told.paths if len(p.heads) == 2)
    assert (positions[0], positions[2]) == (start, end)

    def by_way_of(position: int) -> float:
        one, other = (*first, position, start), (*last, end, position)
        both = edge.effect(at_entries(one, other))
        return both - edge.effect(at_entries(one)) - edge.effect(at_entries(other)) + told.direct

    carried = [by_way_of(position) for position in range(graph.n_pos)]
    close(sum(carried), weight, told.weight)
    assert positions[1] == max(range(graph.n_pos), key=lambda position: abs(carried[position]))


def test_in_a_model_of_one_layer_first_last_and_all_heads_are_the_same() -> None:
    model = tiny_model("llama", num_hidden_layers=1)
    bound = ReplacementModel.from_model(
        model, tiny_transcoder("clt", n_layers=1, n_features=10, skip=True), None, "llama"
    )
    graph = attribute(IDS, bound, max_n_logits=1)
    for source, target in some_edges(graph, 6):
        told = explain_edge(graph, source, target, bound)
        torch.testing.assert_close(told.first, told.last)
        torch.testing.assert_close(told.first, told.through)
        for path in told.paths:
            close(path.weight, float(told.first[path.heads[0]]), told.weight)


@pytest.mark.slow("takes 2.9 s")
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_model_any_targets(data: st.DataObject) -> None:
    model, ids = data.draw(models()), data.draw(prompts)
    targets = data.draw(target_lists(model, len(ids)), label="targets")
    graph = trace(model, ids, attribution_targets=targets, zero_positions=[])
    explain_edges(graph, model, 2, graph.edges)
    for source, target in some_edges(graph, 2):
        sums_are_the_edge(explain_edge(graph, source, target, model, paths=4))


def test_targets_that_are_no_tokens() -> None:
    """What they read is kept by the graph, at several positions for the score of a head."""
    model, _ = traced(SEQUENTIAL)
    vector = torch.randn(16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = [
        5,
        LogitDifference(5, 9),
        CustomTarget("direction", 0.5, vector),
        FeatureTarget(1, 4, 3),
        DirectionTarget(vector, "hook_resid_mid", 1, 3),
        DirectionTarget(vector, "hook_resid_pre", 2, 4),
        AttentionTarget(2, 1, 5, 4),
        AttentionTarget(2, 1, 5, 4, versus="rest"),
    ]
    graph = attribute(IDS, model, attribution_targets=targets)
    rows = graph.edges.select(graph.edges.target >= graph.nodes.layout.target_start)
    kept = explain_edges(graph, model, 2, rows)
    for target in range(graph.nodes.layout.target_start, graph.n_nodes):
        place = int((kept.target == target).nonzero()[0])
        told = explain_edge(graph, int(kept.source[place]), target, model)
        sums_are_the_edge(told)
        close(float(kept.direct[place]), told.direct, told.weight)


def test_sources_behind_some_of_the_keys_that_a_target_reads() -> None:
    """A contrast with the rest reads all keys; what stands behind some of them does not reach those."""
    model, _ = traced(SEQUENTIAL)
    graph = attribute(IDS, model, attribution_targets=[AttentionTarget(2, 1, 5, 4, versus="rest")])
    last = graph.n_nodes - 1
    sources = graph.edges.source[graph.edges.target == last]
    positions = graph.nodes.position[sources]
    for position in range(1, 6):
        behind = sources[positions >= position].tolist()
        told = explain_edge(graph, behind[int((positions[positions >= position]).argmin())], last, model)
        sums_are_the_edge(told)
        row = explain_edges(graph, model, 1, [(told.source, last)]).rows([0])[0]
        close(row.direct, told.direct, told.weight)
        close(row.mean_hops, told.mean_hops, told.mean_hops)


@pytest.mark.parametrize("small", [False, True], ids=["at once", "in small parts"])
@each_case
def test_many_edges_are_told_as_one_by_one(case: Case, small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, graph = traced(case)
    if small:
        monkeypatch.setattr(edge_set, "IN_FLIGHT", 2**15)
        monkeypatch.setattr(sweeps, "GATHERED", 2**9)
    pairs = some_edges(graph, 6)
    kept = explain_edges(graph, model, 3, pairs)
    assert graph.edge_heads is kept
    graph.edge_heads = None
    assert len(kept) == len(set(pairs))
    for source, target, row in zip(
        kept.source.tolist(), kept.target.tolist(), kept.rows(range(len(kept))), strict=True
    ):
        told = explain_edge(graph, source, target, model, paths=0)
        close(row.direct, told.direct, told.weight)
        close(row.mean_hops, told.mean_hops, told.mean_hops)
        for name in ("first", "last"):
            found, expected = getattr(row, name), told.strongest(3)[name]
            assert len(found) == len(expected)
            for one, other in zip(found, expected, strict=True):
                close(abs(one.weight), abs(other.weight), told.weight)
                close(one.weight, float(getattr(told, name)[one.layer, one.head]), told.weight)


@pytest.mark.parametrize("name", ["gpt_oss", "mistral", "gemma2"])
def test_patterns_that_are_not_kept_are_made_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sinks, windows and soft-caps too, tile by tile."""
    model, graph = traced(Case(name, "clt", True))
    monkeypatch.setattr(head_maps, "QUERIES_A_TILE", 2)
    expected = [explain_edge(graph, *pair, model) for pair in some_edges(graph, 3)]
    monkeypatch.setattr(frozen_prompt, "KEPT_PATTERNS", 0)
    frozen_prompt._LATEST.clear()
    for one in expected:
        again = explain_edge(graph, one.source, one.target, model)
        torch.testing.assert_close(again.through, one.through)
        torch.testing.assert_close(again.last, one.last)
        assert [path.heads for path in again.paths] == [path.heads for path in one.paths]
    explain_edges(graph, model, 2, graph.edges)
    graph.edge_heads = None


def test_edges_by_default_are_those_of_the_pruned_graph() -> None:
    model, graph = traced(PARALLEL)
    kept = prune_graph(graph)
    found = explain_edges(graph, model)
    assert torch.equal(found.source, kept.pruned_edges.source)
    assert torch.equal(found.target, kept.pruned_edges.target)
    assert torch.equal(explain_edges(graph, model, edges=kept).first_weight, found.first_weight)
    names = graph.nodes.ids()
    pairs = [(names[int(found.source[0])], names[int(found.target[0])])]
    one = explain_edges(graph, model, edges=[*pairs, *pairs])
    assert len(one) == 1
    assert len(explain_edges(graph, model, edges=[])) == 0
    graph.edge_heads = None


def test_an_explanation_as_plain_values_and_by_names() -> None:
    model, graph = traced(SEQUENTIAL)
    source, target = some_edges(graph, 1)[0]
    names = graph.nodes.ids(torch.tensor([source, target]))
    told = graph.explain_edge(*names, model)
    assert (told.source, told.target, list(told.names)) == (source, target, names)
    plain = told.to_dict()
    assert [plain["source"], plain["target"]] == names
    assert sum(weight for _, _, weight in plain["first"]) == pytest.approx(float(told.first.sum()))
    assert plain["paths"][0]["heads"] == [list(head) for head in told.paths[0].heads]
    assert str(told.paths[0]).count("L") == len(told.paths[0].heads)
    strongest = told.strongest(2)
    assert [abs(one.weight) for one in strongest["last"]] == told.last.abs().flatten().topk(2).values.tolist()


def test_graphs_from_files(tmp_path: Path) -> None:
    """circuit-tracer's hold no fingerprints, and single precision."""
    model, graph = traced(SEQUENTIAL)
    graph.to_pt(tmp_path / "graph.pt")
    source, target = some_edges(graph, 1)[0]
    expected = explain_edge(graph, source, target, model)
    for again in (Graph.load(graph.save(tmp_path / "graph.safetensors")), Graph.from_pt(tmp_path / "graph.pt")):
        found = explain_edge(again, source, target, model)
        torch.testing.assert_close(found.first, expected.first, rtol=1e-5, atol=1e-5)


def test_a_second_question_costs_no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model, graph = traced(PLAIN)
    pair = some_edges(graph, 1)[0]
    explain_edge(graph, *pair, model)
    monkeypatch.setattr(frozen_prompt, "capture", None)
    explain_edge(graph, *pair, model)
    other = replace_graph(graph)
    with pytest.raises(TypeError):
        explain_edge(other, *pair, model)


def replace_graph(graph: Graph) -> Graph:
    """The same as another object."""
    return Graph(
        graph.input_string, graph.input_tokens, graph.active_features, replace(graph.edges), graph.cfg,
        graph.selected_features, graph.activation_values, graph.logit_targets, graph.logit_probabilities,
        graph.scan, provenance=graph.provenance, targets=graph.targets,
    )  # fmt: skip


def test_a_copied_token_comes_by_the_induction_head() -> None:
    """Text ... 3 7 ... 3, continued with 7: what the first 7 contributes runs through that head alone, whole."""
    model = ReplacementModel.from_model(induction_model(), induction_transcoders(), None, "induction")
    graph = attribute(torch.tensor([FIRST, 3, 7, 5, 9, 3]), model, attribution_targets=[7])
    target = graph.n_nodes - 1
    for source in ("E_7_2", "0_7_2"):  # half from the embedding, half from the feature "the token is 7"
        told = explain_edge(graph, source, target, model)
        assert told.weight > 1
        assert told.direct == 0
        for heads in (told.first, told.last, told.through):
            close(float(heads[INDUCTION]), told.weight, told.weight)
            close(float(heads.abs().sum()), told.weight, told.weight)
        assert told.paths[0].heads == (INDUCTION,)
        assert told.paths[0].positions == (2, 5)
