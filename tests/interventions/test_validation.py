"""Validation of graphs: exact where it must be, right where the truth is known, and clear about what cannot be tested."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from circuit_tracer import Graph, ReplacementModel, attribute, prune_graph
from circuit_tracer.errors import CompatibilityError, InputError
from circuit_tracer.graph.validation import Measures, ValidationReport
from circuit_tracer.interventions import validate
from circuit_tracer.interventions.validation.bench import Bench, Condition, Sources
from circuit_tracer.interventions.validation.circuit import circuit_tests
from circuit_tracer.interventions.validation.effects import CONDITIONS, NodeEffects
from circuit_tracer.interventions.validation.prediction import influences, path_effects
from circuit_tracer.interventions.validation.statistics import agreement, spearman
from circuit_tracer.interventions.validation.target_reads import measurable_targets
from circuit_tracer.interventions.validation.verdict import distrust
from circuit_tracer.transcoders.single_layer import SingleLayerTranscoder
from circuit_tracer.transcoders.transcoder_set import TranscoderSet
from tests.support.tiny import ARCHITECTURES, tiny_model, tiny_transcoder

IDS = torch.tensor([1, 17, 4, 33, 17, 9])
FROZEN = CONDITIONS[0]
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


def traced(
    architecture: str = "llama", dtype: torch.dtype = torch.float64, **transcoder: Any
) -> tuple[ReplacementModel, Graph]:
    parts = tiny_model(architecture, dtype), tiny_transcoder(dtype=dtype, **transcoder)
    model = ReplacementModel.from_model(*parts, None, architecture)
    return model, attribute(IDS, model, max_n_logits=5, desired_logit_prob=1.0)


def bench_of(model: ReplacementModel, graph: Graph, batch_size: int = 16) -> Bench:
    return Bench(model, graph, torch.arange(graph.nodes.layout.n_features), measurable_targets(graph), batch_size)


def exact_pair() -> tuple[ReplacementModel, Graph]:
    """A model whose MLPs are ReLU networks, and the per-layer transcoder that is those MLPs."""
    hf = tiny_model("gpt_neox-sequential", hidden_act="relu")
    layers = {}
    for number, layer in enumerate(hf.gpt_neox.layers):
        up, down = layer.mlp.dense_h_to_4h, layer.mlp.dense_4h_to_h
        one = SingleLayerTranscoder(16, 24, torch.nn.functional.relu, number, dtype=torch.float64)
        one.W_enc, one.b_enc, one.W_dec, one.b_dec = up.weight, up.bias, down.weight.T.contiguous(), down.bias
        layers[number] = one
    model = ReplacementModel.from_model(hf, TranscoderSet(layers, "mlp.hook_in", "mlp.hook_out"), None, "neox")
    return model, attribute(IDS, model)


# ---- exactness


@pytest.mark.few
@pytest.mark.parametrize(
    ("architecture", "kind", "skip", "dtype"),
    [
        (architecture, kind, skip, dtype)
        for architecture in ARCHITECTURES
        for kind, skip in (("clt", False), ("plt", True))
        for dtype in (torch.float64, torch.float32)
    ][::3],
    ids=str,
)
def test_every_feature_error_and_token_does_what_its_edges_say(
    architecture: str, kind: str, skip: bool, dtype: torch.dtype
) -> None:
    """The whole adjacency matrix, column by column: every source is taken out, every feature and logit is read."""
    model, graph = traced(architecture, dtype, kind=kind, skip=skip)
    layout = graph.nodes.layout
    sources = torch.arange(layout.target_start)
    readings = bench_of(model, graph).run([Sources.of_nodes(graph, node[None]) for node in sources], FROZEN)
    expected = -graph.adjacency_matrix[:, : layout.target_start]
    for found, rows in (readings.features, layout.features), (readings.targets, layout.targets):
        limit = TOLERANCE[dtype] * max(1.0, float(expected[rows].abs().max()))
        torch.testing.assert_close(found.T, expected[rows], rtol=TOLERANCE[dtype], atol=limit)


def test_sources_taken_out_together_add_up_with_everything_frozen() -> None:
    model, graph = traced("gemma3")
    nodes = torch.tensor([3, 40, graph.nodes.layout.error_start + 9, graph.nodes.layout.token_start + 2])
    bench = bench_of(model, graph)
    together = bench.run([Sources.of_nodes(graph, nodes)], FROZEN)
    alone = bench.run([Sources.of_nodes(graph, node[None]) for node in nodes], FROZEN)
    torch.testing.assert_close(together.features[0], alone.features.sum(0), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(together.targets[0], alone.targets.sum(0), rtol=1e-9, atol=1e-9)


@pytest.mark.few
@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda condition: condition.name)
def test_results_do_not_depend_on_the_batch(condition: Condition) -> None:
    model, graph = traced("gemma2", skip=True)
    experiments = [
        Sources.of_nodes(graph, torch.tensor([node])) for node in (0, 30, 60, 5, graph.nodes.layout.error_start)
    ]
    one, many = (bench_of(model, graph, size).run(experiments, condition) for size in (1, 4))
    for left, right in zip(one, many, strict=True):
        torch.testing.assert_close(left, right)


# ---- known truth


@pytest.mark.slow("takes 3 s")
def test_a_dictionary_that_is_the_mlps_is_found_to_be_so() -> None:
    model, graph = exact_pair()
    report = validate(graph, model, node_threshold=1.0, edge_threshold=1.0)
    assert report.graph.accounting.errors == pytest.approx(0, abs=1e-9)
    assert report.graph.accounting.explained == pytest.approx(1)
    for curve in report.graph.curves:
        assert curve.count
        for cosine in (*curve.cosine, *curve.mlp_cosine):
            assert cosine == pytest.approx(1)
        for nmse in (*curve.nmse, *curve.mlp_nmse):
            assert nmse == pytest.approx(0, abs=1e-9)
    random = next(curve for curve in report.controls["random"].curves if curve.kind == "random")
    assert random.mlp_cosine[0] is not None
    assert random.mlp_cosine[0] < 0.9


def test_paths_are_the_effects_of_small_changes() -> None:
    """With attention and norms frozen, real MLPs that are the dictionary move along the graph's paths. The change is made so
    small that no feature is switched on or off, for sources that switch none off when they are taken out as a whole.
    """
    model, graph = exact_pair()
    small, bench = 1e-6, bench_of(model, graph)
    features = graph.nodes.layout.features
    every = torch.arange(graph.nodes.layout.target_start)
    switches = (path_effects(graph, every)[features] < -graph.nodes.activation[features, None]).any(0)
    nodes = every[~switches & (graph.nodes.layer[every] < 2)]
    assert {0, 1} <= set(graph.nodes.layer[nodes].tolist())
    sources = [Sources.of_nodes(graph, node[None]) for node in nodes]
    sources = [replace(each, value=each.value * small) for each in sources]
    readings = bench.run(sources, Condition("paths", "none", freeze_attention=True, freeze_norms=True))
    expected = path_effects(graph, nodes) * small
    torch.testing.assert_close(readings.features.T, expected[features], rtol=1e-4, atol=1e-12)
    torch.testing.assert_close(readings.targets.T, expected[graph.nodes.layout.targets], rtol=1e-4, atol=1e-12)


def test_influence_between_nodes_is_the_sum_over_paths() -> None:
    _, graph = traced()
    share = graph.adjacency_matrix.abs()
    share = share / share.sum(1, keepdim=True).clamp_min(1e-10)
    dense = torch.linalg.inv(torch.eye(len(share), dtype=share.dtype) - share) - torch.eye(
        len(share), dtype=share.dtype
    )
    nodes = torch.tensor([0, 12, graph.nodes.layout.error_start + 7, graph.nodes.layout.token_start])
    torch.testing.assert_close(influences(graph, nodes), dense[:, nodes])


def test_attention_that_cannot_move_has_no_share() -> None:
    hf = tiny_model("llama")
    for layer in hf.model.layers:
        layer.self_attn.q_proj.weight.data.zero_()
    still = ReplacementModel.from_model(hf, tiny_transcoder(), None, "llama")
    shares = []
    for model in (still, traced()[0]):
        graph = attribute(IDS, model)
        pruned = prune_graph(graph)
        kept = torch.nonzero(pruned.node_mask[graph.nodes.layout.features]).flatten()
        targets = measurable_targets(graph)
        bench = Bench(model, graph, kept, targets, 16)
        shares.append(NodeEffects(graph, pruned, bench, targets, lambda *_: None).moved_by_attention())
    assert shares[0] == pytest.approx(0, abs=1e-9)
    assert shares[1] is not None
    assert 0.001 < shares[1] < 1


def test_a_circuit_of_everything_is_enough_and_without_it_there_is_nothing() -> None:
    model, graph = exact_pair()
    pruned = prune_graph(graph, 1.0, 1.0)
    everything = replace(pruned, node_mask=torch.ones_like(pruned.node_mask))
    bench = Bench(model, graph, torch.arange(0), measurable_targets(graph), 4)
    for test in circuit_tests(graph, everything, bench).values():
        assert test.only == pytest.approx(test.clean)
        assert test.without == pytest.approx(test.nothing)  # there are no errors
        assert test.without_others is None
        assert test.clean == pytest.approx(float(graph.logit_probabilities[0]))
        assert test.sufficiency == pytest.approx(1)
        assert test.necessity == pytest.approx(1 - test.without / test.clean)


# ---- the report


def test_the_report_holds_together_and_goes_with_the_graph(tmp_path: Any) -> None:
    model, graph = traced("gemma3", skip=True)
    report = validate(graph, model, node_threshold=0.9)
    assert graph.validation is report
    assert Graph.load(graph.save(tmp_path / "graph.safetensors")).validation == report
    assert ValidationReport.from_json(json.loads(json.dumps(report.to_json(), allow_nan=False))) == report
    pruned = prune_graph(graph, 0.9)
    assert report.graph.n_edges == int(pruned.kept_edges.sum()) == len(report.edges.source)
    matrix = graph.adjacency_matrix
    for source, target, predicted, measured in zip(
        report.edges.source,
        report.edges.target,
        report.edges.predicted,
        report.edges.measured["constrained"],
        strict=True,
    ):
        assert predicted == pytest.approx(-float(matrix[target, source]), rel=1e-6)
        assert measured == pytest.approx(predicted, rel=1e-6)
    tokens = torch.tensor(report.nodes.node) >= graph.nodes.layout.token_start
    assert [each is None for each in report.nodes.measured["live"]] == tokens.tolist()
    assert set(report.controls) == {"random"}
    again = next(
        each for each in report.stability.thresholds if (each.node_threshold, each.edge_threshold) == (0.9, 0.98)
    )
    assert (again.nodes, again.edges) == (1.0, 1.0)
    assert report.verdict[0].startswith("This graph explains")


@pytest.mark.slow("takes 2.2 s")
def test_the_same_seed_gives_the_same_report() -> None:
    model, graph = traced()
    one, other = (validate(graph, model, seed=3) for _ in range(2))
    assert replace(one, seconds=0) == replace(other, seconds=0)


@pytest.mark.slow("takes 1.7 s")
def test_a_per_layer_dictionary_stands_beside() -> None:
    model, graph = traced()
    report = validate(graph, model, controls={"per-layer": tiny_transcoder("plt")}, random_control=False)
    assert set(report.controls) == {"per-layer"}
    assert report.controls["per-layer"].effects["constrained"].edges.worst == pytest.approx(0, abs=1e-9)


def test_a_graph_with_few_rows_is_compared_with_more() -> None:
    model, _ = traced()
    graph = attribute(IDS, model, max_feature_nodes=20)
    report = validate(graph, model, random_control=False)
    assert [each.rows for each in report.stability.rows] == [5, 10, 40]
    assert report.graph.accounting.unselected is not None
    assert report.graph.accounting.unselected > 0
    assert report.graph.effects["constrained"].edges.worst == pytest.approx(0, abs=1e-9)


# ---- words


def test_what_is_wrong_is_said() -> None:
    model, graph = traced()
    report = validate(graph, model, random_control=False)
    good = report.graph

    def said(expected: str, measures: Measures = good, stability: Any = report.stability, **controls: Measures) -> bool:
        return any(expected in sentence for sentence in distrust(measures, stability, controls))

    def account(**values: Any) -> Measures:
        return replace(good, accounting=replace(good.accounting, **values))

    def live(**values: Any) -> Measures:
        effects = good.effects["live"]
        return replace(good, effects={**good.effects, "live": replace(effects, edges=replace(effects.edges, **values))})

    def circuit(name: str, **values: Any) -> Measures:
        return replace(good, circuit={**good.circuit, name: replace(good.circuit[name], **values)})

    for wrong, right, expected in (
        (account(residual=0.1), account(residual=1e-6), "sum rule"),
        (account(explained=0.4), account(explained=0.9), "whole story"),
        (account(unselected=0.5), account(unselected=0.0), "given no row"),
        (account(attention=0.5), account(attention=None), "attention moving"),
        (live(spearman=0.1), live(spearman=0.9), "the stronger"),
        (live(slope=-0.1), live(slope=1.1), "sizes of effects"),
        (
            circuit("live", clean=1.0, without=0.9),
            circuit("live", clean=1.0, without=0.0, without_others=0.9),
            "needs this",
        ),
        (
            circuit("live", clean=1.0, without=0.1, without_others=0.15),
            circuit("live", clean=1.0, without=0.1, without_others=0.9),
            "special",
        ),
        (circuit("constrained", clean=1.0, only=0.1), circuit("constrained", clean=1.0, only=0.9), "enough"),
        (circuit("live", clean=0.0, without=0.0), circuit("live", clean=1.0), "no probability at all"),
    ):
        assert said(expected, wrong), expected
        assert not said(expected, right), expected
    assert said("single nodes", stability=replace(report.stability, nodes=0.2))
    assert said("the random one ranks", live(spearman=0.8), random=live(spearman=0.75))
    assert not said("the random one ranks", live(spearman=0.8), random=live(spearman=0.1))


def test_a_target_without_probability_has_no_shares_and_a_report_all_the_same() -> None:
    model, graph = traced()
    model.parts.unembed.weight.data[int(graph.targets.token_id[0])] *= 1e6
    graph = attribute(IDS, model, attribution_targets=torch.tensor([3, 4]))
    report = validate(graph, model, random_control=False)
    for test in report.graph.circuit.values():
        assert test.clean == 0
        assert (test.necessity, test.necessity_of_others, test.sufficiency) == (None, None, None)
    assert any("no probability at all" in sentence for sentence in report.distrust)
    assert any("goes from 0.00 to" in sentence for sentence in report.verdict)
    assert ValidationReport.from_json(json.loads(json.dumps(report.to_json(), allow_nan=False))) == report


def test_statistics() -> None:
    ascending = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert spearman(ascending, ascending.exp()) == pytest.approx(1)
    assert spearman(ascending, -ascending) == pytest.approx(-1)
    assert spearman(torch.tensor([1.0, 1, 2, 3]), torch.tensor([1.0, 2, 3, 4])) == pytest.approx(0.9486833)
    assert spearman(torch.ones(4), ascending) is None
    assert spearman(ascending[:2], ascending[:2]) is None
    found = agreement(ascending, 2 * ascending)
    assert (found.count, found.slope, found.worst) == (4, 2.0, 1.0)
    assert agreement(torch.zeros(2), torch.ones(2)).slope is None


# ---- bad input


def test_bad_input() -> None:
    model, graph = traced()
    with pytest.raises(InputError, match="batch_size is 0"):
        validate(graph, model, batch_size=0)
    with pytest.raises(InputError, match="expected a fraction"):
        validate(graph, model, node_threshold=2.0)
    wrong = ReplacementModel.from_model(tiny_model("llama"), tiny_transcoder(seed=5), None, "llama")
    with pytest.raises(CompatibilityError, match="other transcoders"):
        validate(graph, wrong)
    with pytest.raises(CompatibilityError, match="d_model"):
        validate(graph, model, controls={"wide": tiny_transcoder(d_model=20)})
