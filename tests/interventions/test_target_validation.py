"""Validation of graphs whose targets are scores of attention, directions and features: measured is what the graph explains."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from circuit_tracer import (
    AttentionTarget,
    CustomTarget,
    DirectionTarget,
    FeatureTarget,
    Graph,
    LogitDifference,
    attribute,
)
from circuit_tracer.attention import explain_score
from circuit_tracer.errors import CircuitTracerError, InputError
from circuit_tracer.graph.validation import CircuitTest, ValidationReport
from circuit_tracer.interventions import approximate_edges, validate
from circuit_tracer.interventions.validation.bench import Bench, Sources
from circuit_tracer.interventions.validation.effects import CONDITIONS
from circuit_tracer.interventions.validation.loadings import PARTS, Loading, measure_loadings
from circuit_tracer.interventions.validation.stability import retrace
from circuit_tracer.interventions.validation.target_reads import measurable_targets
from circuit_tracer.interventions.validation.verdict import distrust, verdict
from circuit_tracer.replacement_model import ReplacementModel
from tests.support.kept import kept
from tests.support.tiny import tiny_transcoder
from tests.support.tracing_cases import IDS, Case, assert_equal, build, one_each

VECTOR = torch.linspace(-1, 1, 16, dtype=torch.float64)
ATTENTION = AttentionTarget(2, 1, -1, 3, 4)
MIXED = [
    ATTENTION,
    DirectionTarget(VECTOR, "hook_resid_mid", 1, 3, weight=-0.5),
    7,
    FeatureTarget(2, 4, 3),
    AttentionTarget(1, 2, 4, 3, "rest", "key"),
    DirectionTarget(VECTOR, "hook_resid_post", 2),
    LogitDifference(3, 4),
    FeatureTarget(1, 5, 2),
    DirectionTarget(VECTOR, "hook_resid_pre", 0, 2),
]
LLAMA = Case("llama", "clt", True)


@kept
def traced(case: Case) -> tuple[ReplacementModel, Graph]:
    model = build(case)
    return model, attribute(IDS, model, attribution_targets=MIXED)


def bench_of(model: ReplacementModel, graph: Graph) -> Bench:
    return Bench(model, graph, torch.arange(0), measurable_targets(graph), 64)


# ---- exactness


@pytest.mark.few
@pytest.mark.parametrize("case", one_each(), ids=str)
def test_every_target_loses_what_its_edges_say_with_everything_frozen(case: Case) -> None:
    model, graph = traced(case)
    layout, bench = graph.nodes.layout, bench_of(model, graph)
    sources = torch.arange(layout.target_start)
    found = bench.run([Sources.of_nodes(graph, node[None]) for node in sources], CONDITIONS[0]).targets
    rows = measurable_targets(graph)
    assert rows.tolist() == [2, 0, 1, 3, 4, 5, 6, 7, 8]  # the token first
    expected = -graph.adjacency_matrix[layout.targets][rows][:, sources]
    assert_equal(found.T, expected)
    assert expected.any(1).all()


def test_the_same_targets_are_traced_again_for_another_dictionary() -> None:
    """The values do not depend on the dictionary, and the bench of the new graph reads the same off the stream."""
    model, graph = traced(Case("gemma3", "clt", True, "mlp.hook_in", "mlp.hook_out"))
    bench = bench_of(model, graph)
    own = retrace(bench, model, len(graph.selected_features))
    assert own.targets.label == graph.targets.label
    assert own.targets.kind == [kind if kind != "feature" else "direction" for kind in graph.targets.kind]
    assert_equal(own.targets.weight, graph.targets.weight)
    assert_equal(own.adjacency_matrix, graph.adjacency_matrix)
    other = ReplacementModel(model.parts, tiny_transcoder("plt", seed=3), None)
    again = retrace(bench, other, 10)
    start, there = again.nodes.layout.target_start, graph.nodes.layout.target_start
    assert again.balance is not None
    assert graph.balance is not None
    assert_equal(again.balance.pre_activation[start:], graph.balance.pre_activation[there:])
    assert again.residual is not None
    assert again.residual < 1e-10


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt_neox"])
def test_derivatives_of_targets_are_their_edges_with_everything_frozen(name: str) -> None:
    model, graph = traced(next(case for case in one_each() if case.architecture == name))
    found = approximate_edges(model, graph, semantics="constrained", node_threshold=1.0, edge_threshold=1.0)
    assert_equal(found.estimate, found.weight)
    assert set((found.target - graph.nodes.layout.target_start).tolist()) >= set(
        range(8)
    )  # the last reads tokens alone


def test_loadings_into_targets_add_up_to_what_is_not_direct() -> None:
    model, graph = traced(LLAMA)
    layout, matrix = graph.nodes.layout, graph.adjacency_matrix
    target = layout.target_start
    source = int(torch.nonzero(matrix[target, layout.features]).flatten()[0])
    for part in PARTS[1:]:
        every = [Loading(source, target, layer, head, part, 0.0) for layer in range(3) for head in range(4)]
        rows = measure_loadings(graph, model, every).rows.measured["constrained"]
        direct = _direct(model, graph, source, target)
        assert direct + sum(each or 0.0 for each in rows) == pytest.approx(float(matrix[target, source]), abs=1e-6)


def _direct(model: ReplacementModel, graph: Graph, source: int, target: int) -> float:
    """What the target misses with every head held."""
    held = torch.ones(3, 4, dtype=torch.bool)
    bench = Bench(model, graph, torch.arange(0), torch.tensor([target - graph.nodes.layout.target_start]), 1)
    return -float(bench.run([Sources.of_nodes(graph, torch.tensor([source]), held)], CONDITIONS[0]).targets)


# ---- the report


@kept
def validated(*targets: Any) -> tuple[Graph, ValidationReport]:
    model = build(LLAMA)
    graph = attribute(IDS, model, attribution_targets=targets)
    return graph, validate(graph, model, random_control=False)


@pytest.mark.few
@pytest.mark.parametrize(
    ("targets", "measure", "target"),
    [
        ((ATTENTION,), "score", "L2H1 '<8>'@5 -> '<17>'@3 rather than '<40>'@4"),
        ((FeatureTarget(2, 4, 3), LogitDifference(3, 4)), "pre-activation", "feature 2/3"),
        ((LogitDifference(3, 4), ATTENTION), "value", "<3> - <4>"),
        ((ATTENTION, 7), "probability", "<7>"),
    ],
    ids=["score", "feature", "difference", "token behind a score"],
)
def test_the_report_says_what_is_measured(targets: Any, measure: str, target: str, tmp_path: Any) -> None:
    graph, report = validated(*targets)
    assert (report.measure, report.target) == (measure, target)
    assert any(f"Without the circuit the {measure} of {target!r} goes from" in sentence for sentence in report.verdict)
    assert any("as on the clean prompt" in sentence for sentence in report.verdict) == (measure in ("score", "value"))
    assert f"{measure} without the circuit" in report.summary()["numbers"]
    effects, live = report.graph.effects, report.graph.circuit["live"]
    assert effects["constrained"].edges.worst == pytest.approx(0, abs=1e-9)
    assert effects["constrained"].nodes.worst == pytest.approx(0, abs=1e-9)
    assert (effects["live"].divergence is None) == (measure != "probability")
    assert live.without != live.clean
    row = graph.targets.label.index(target)
    assert graph.balance is not None
    value = graph.logit_probabilities if measure == "probability" else graph.balance.pre_activation[-len(targets) :]
    assert live.clean == pytest.approx(float(value[row]))
    assert ValidationReport.from_json(json.loads(json.dumps(report.to_json(), allow_nan=False))) == report
    assert Graph.load(graph.save(tmp_path / "graph.safetensors")).validation == report


def test_reports_from_before_are_of_probabilities() -> None:
    values = validated(ATTENTION, 7)[1].to_json()
    del values["measure"], values["scores"]
    assert ValidationReport.from_json(values).measure == "probability"


def test_a_control_explains_the_same_feature() -> None:
    model = build(LLAMA)
    report = validate(attribute(IDS, model, attribution_targets=[FeatureTarget(2, 4, 3)]), model)
    random = report.controls["random"]
    assert random.circuit["live"].clean == pytest.approx(report.graph.circuit["live"].clean)
    assert random.circuit["constrained"].nothing != pytest.approx(report.graph.circuit["constrained"].nothing)
    assert random.effects["constrained"].edges.worst == pytest.approx(0, abs=1e-9)


def test_scores_that_a_graph_keeps_are_tested_with_it(tmp_path: Any) -> None:
    model = build(LLAMA)
    graph: Any = attribute(IDS, model, attribution_targets=[7])
    for versus in (None, 4, "rest"):
        graph.scores.append(explain_score(graph, model, 2, 1, 5, 3, versus, pairs=False).kept())
    report = validate(graph, model, random_control=False)
    scores = report.scores
    assert scores is not None
    named = [each for score in graph.scores for side in (score.query_side, score.key_side) for each in side.top]
    sources = graph.nodes.ids()[: graph.nodes.layout.target_start]
    nodes = [(name, weight) for name, weight in named if name in sources]
    assert len(nodes) > 10
    assert [sources[node] for node in scores.rows.node] == [name for name, _ in nodes]
    assert scores.rows.measured["constrained"] == pytest.approx([weight for _, weight in nodes], rel=1e-6)
    assert scores.agreement["live"].slope is not None
    assert any("said to carry of scores of attention" in sentence for sentence in report.verdict)
    assert Graph.load(graph.save(tmp_path / "graph.safetensors")).validation == report


def test_words_fit_what_is_no_probability() -> None:
    _, report = validated(ATTENTION)
    measures = report.graph

    def said(clean: float, without: float, only: float, nothing: float) -> str:
        tests = {name: CircuitTest(clean, without, None, only, nothing) for name in ("live", "constrained")}
        changed = replace(measures, circuit=tests)
        return " ".join(
            [
                *verdict(changed, report.stability, "T", measure="score"),
                *distrust(changed, report.stability, {}, measure="score"),
            ]
        )

    assert "the score of 'T' goes from -2.00 to -1.50" in said(-2.0, -1.5, -1.9, 0.0)
    assert "the score goes from -2 to -1.5: 25% of it is lost" in said(-2.0, -1.5, -1.9, 0.0)
    assert "is lost" not in said(-2.0, 0.5, -1.9, 0.0)
    assert "alone it gives 20% of the score" in said(-2.0, 0.0, -0.4, 0.0)
    assert "is all of it, because alone it gives 300% of the score" in said(2.0, 0.0, 6.0, 0.0)
    assert "95% of the score is there with neither features nor errors" in said(2.0, 0.0, 2.0, 1.9)
    assert "neither features nor errors" not in said(2.0, 0.0, 2.0, 0.5)
    assert "gives the target no score at all" in said(0.0, 0.0, 0.0, 0.0)


# ---- bad input


def test_a_graph_that_does_not_keep_what_its_targets_read_is_to_be_traced_again(tmp_path: Any) -> None:
    model = build(LLAMA)
    custom = attribute(IDS, model, attribution_targets=[CustomTarget("probe", 1.0, VECTOR)])
    custom.to_pt(tmp_path / "graph.pt")
    theirs = Graph.from_pt(tmp_path / "graph.pt")
    assert theirs.targets.reads is None
    for call in (lambda: validate(theirs, model), lambda: approximate_edges(model, theirs)):
        with pytest.raises(InputError, match=r"\(probe\) read is not in this graph.*Trace the prompt again"):
            call()
    loading = Loading(0, theirs.nodes.layout.target_start, 1, 1, "first", 0.0)
    with pytest.raises(InputError, match="what target 'probe' reads is not in this graph"):
        measure_loadings(theirs, model, [loading])


def test_a_graph_without_values_has_no_score_to_measure() -> None:
    model = build(LLAMA)
    graph = attribute(IDS, model, attribution_targets=[ATTENTION])
    graph.balance = None
    with pytest.raises(InputError, match=r"the value of target \"L2H1.*Trace the prompt again"):
        validate(graph, model, random_control=False)


def test_what_cannot_be_traced_again() -> None:
    model, graph = traced(LLAMA)
    aim = bench_of(model, graph).targets.aims()[0]
    assert not isinstance(aim, int)
    far = replace(aim, reads=replace(aim.reads, position=aim.reads.position + 10))
    with pytest.raises(CircuitTracerError, match=r"position must be \d numbers within 0..5"):
        attribute(IDS, model, attribution_targets=[far])
    graph.targets.label[3] = "a feature"
    with pytest.raises(InputError, match="'a feature' names no feature"):
        bench_of(model, graph)
    graph.targets.label[3] = "feature 2/3"
