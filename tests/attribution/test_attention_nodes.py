"""Dictionaries of attention outputs as nodes: equal to autograd on the model, their rows add up, edges are effects."""

from __future__ import annotations

from itertools import cycle, product
from pathlib import Path
from typing import Any

import pytest
import torch

from circuit_tracer.attribution import reference_dense, trace
from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.attribution.reference import FrozenModel, reference_graph
from circuit_tracer.attribution.stream_targets import DIRECTION_SITES
from circuit_tracer.attribution.targets import DirectionTarget, FeatureTarget
from circuit_tracer.attribution.together import attribute_together
from circuit_tracer.errors import CompatibilityError, InputError
from circuit_tracer.files import parse_json
from circuit_tracer.graph.balance import ReconstructionWarning
from circuit_tracer.graph.files.native import load_graph
from circuit_tracer.graph.files.networkx import from_networkx, to_networkx
from circuit_tracer.graph.files.validate import validate_document
from circuit_tracer.graph.files.viewer_json import graph_document
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.influence import node_influence
from circuit_tracer.graph.nodes import NodeKind
from circuit_tracer.graph.pruning import prune_graph
from circuit_tracer.graph.scores import fold_into_errors, graph_scores
from circuit_tracer.graph.subgraph import subgraph
from circuit_tracer.interventions import FeatureAt, apply_edits, approximate_edges, set_to
from circuit_tracer.models.parts import bind
from circuit_tracer.replacement_model import ReplacementModel
from circuit_tracer.transcoders import SingleLayerTranscoder, TopK, TranscoderSet
from circuit_tracer.transcoders.neurons import Neurons
from circuit_tracer.transcoders.neurons_elsewhere import with_neurons
from tests.support.attention_cases import KINDS, autoencoders, dictionary, with_attention
from tests.support.kept import kept
from tests.support.tiny import tiny_model, tiny_transcoder
from tests.support.tracing_cases import IDS, Case, assert_equal, assert_same_graph, build, one_each, rotation

TURNS = list(zip(one_each(), cycle(KINDS), strict=False))
HOW: dict[str, dict[str, Any]] = {
    "all layers": {},
    "the middle layer, topk": {"layers": (1,), "activation": "topk"},
    "some, jump_relu": {"layers": (0, 2), "activation": "jump_relu"},
}
GEMMA = Case("gemma2", "clt", True)


def possible(case: Case, kind: str) -> bool:
    """OLMo 2 has no norm before its attention, behind which Lorsa reads."""
    return not (case.architecture == "olmo2" and kind == "lorsa")


@kept
def traced(kind: str) -> tuple[ReplacementModel, Graph]:
    """A model with a dictionary in two of its layers, and a graph."""
    model = with_attention(GEMMA, kind, layers=(0, 2))
    return model, attribute(IDS, model, max_n_logits=3)


@pytest.mark.few
@pytest.mark.parametrize(("case", "kind"), [turn for turn in TURNS if possible(*turn)], ids=str)
def test_graphs_equal_the_reference(case: Case, kind: str) -> None:
    model = with_attention(case, kind)
    graph = attribute(IDS, model, max_n_logits=3)
    assert_same_graph(graph, reference_graph(model, IDS, max_n_logits=3))
    assert graph.residual is not None
    assert graph.residual < 1e-10
    assert (graph.nodes.feature[: graph.nodes.layout.n_features] >= graph.parts[-1].first).any()


@pytest.mark.slow("every architecture and hook, with kinds in turn: 75 graphs by autograd")
@pytest.mark.parametrize(("case", "kind"), [t for t in list(product(rotation(), KINDS))[::3] if possible(*t)], ids=str)
def test_every_graph_equals_the_reference(case: Case, kind: str) -> None:
    model = with_attention(case, kind, layers=(0, 2))
    graph = attribute(IDS, model, max_n_logits=3)
    assert_same_graph(graph, reference_graph(model, IDS, max_n_logits=3))


@pytest.mark.parametrize(("how", "kind"), list(zip(HOW, KINDS, strict=True)))
def test_selections_equal_the_reference(kind: str, how: str) -> None:
    model = with_attention(GEMMA, kind, **HOW[how])
    for budget in (None, 20):
        graph = attribute(IDS, model, max_n_logits=3, max_feature_nodes=budget)
        assert_same_graph(graph, reference_graph(model, IDS, max_n_logits=3, max_feature_nodes=budget))


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_targets_that_read_the_stream_equal_the_reference(architecture: str) -> None:
    model = with_attention(Case(architecture), "attn.hook_z", layers=(0, 2))
    vector = torch.randn(16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sites = DIRECTION_SITES if architecture == "llama" else ("hook_resid_pre", "hook_resid_post")
    targets = [DirectionTarget(vector, site, layer, 4) for site in sites for layer in (1, 2)]
    assert_same_graph(attribute(IDS, model, attribution_targets=targets), reference_graph(model, IDS, targets))


@pytest.mark.parametrize("kind", KINDS)
def test_a_feature_of_attention_as_target_equals_the_reference(kind: str) -> None:
    model = with_attention(GEMMA, kind, layers=(0, 2))
    targets = [FeatureTarget(2, 4, 11), FeatureTarget(2, 3, 1, -1.0), FeatureTarget(0, 5, 10)]
    assert_same_graph(attribute(IDS, model, attribution_targets=targets), reference_graph(model, IDS, targets))
    with pytest.raises(InputError, match="the dictionary of attention has layers 0, 2, with features from 10 to 17"):
        attribute(IDS, model, attribution_targets=[FeatureTarget(1, 4, 11)])


@pytest.mark.parametrize("kind", KINDS)
def test_what_rows_sum_to_is_what_the_dictionary_reads_of_the_model(kind: str) -> None:
    model, graph = traced(kind)
    frozen = FrozenModel(model.parts, model.transcoders, IDS, [0], attention=model.attention)
    of_attention = graph.active_features[:, 2] >= model.transcoders.d_transcoder
    layer, position, index = graph.active_features[of_attention].T
    found = frozen.attention_activations[layer, position, index - model.transcoders.d_transcoder]
    assert graph.balance is not None
    assert_equal(graph.balance.pre_activation[: len(of_attention)][of_attention], found)


@pytest.mark.parametrize("kind", KINDS)
def test_pruning_and_scores_equal_the_reference(kind: str) -> None:
    model, graph = traced(kind)
    dense = reference_graph(model, IDS, max_n_logits=3)
    influence = node_influence(graph.edges, graph.blocks, graph.target_weights)
    assert_equal(influence, reference_dense.node_influence(dense.adjacency, dense.target_weights))
    scores = graph_scores(graph)
    assert (scores.replacement, scores.completeness) == pytest.approx(reference_dense.graph_scores(dense), abs=1e-9)
    for policy in ("circuit-tracer", "paper"):
        pruned = prune_graph(graph, 0.6, 0.9, policy)
        nodes, edges = reference_dense.prune(dense, 0.6, 0.9, policy)
        assert torch.equal(pruned.node_mask, nodes)
        assert torch.equal(pruned.edge_mask, edges)
    nothing = torch.ones(graph.n_nodes, dtype=torch.bool)
    nothing[graph.nodes.layout.features] = False
    folded, nodes = fold_into_errors(graph, nothing), graph.nodes
    of_errors = nodes.feature[folded.source[nodes.kind[folded.source] == NodeKind.ERROR]]
    assert set(of_errors.tolist()) == {-1, -2}


@pytest.mark.few
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ["llama-bias", "gpt_neox"])
def test_edges_are_effects_of_interventions(architecture: str, kind: str) -> None:
    """With every layer held, setting a feature to twice its activation changes what others read by its edges."""
    model = with_attention(Case(architecture), kind, layers=(0, 2))
    graph = attribute(IDS, model, max_n_logits=3)
    rows = graph.active_features[graph.selected_features]
    of_attention = torch.nonzero(rows[:, 2] >= graph.parts[-1].first).flatten()
    matrix, n = graph.adjacency_matrix, len(rows)
    options: dict[str, Any] = {"constrained_layers": range(3), "apply_activation_function": False}
    clean_logits, clean = model.feature_intervention(IDS, [], **options)
    assert clean is not None
    for node in [0, *of_attention[:: max(1, len(of_attention) // 3)].tolist()]:
        value = 2 * float(graph.activation_values[graph.selected_features[node]])
        logits, changed = model.feature_intervention(IDS, [(*rows[node].tolist(), value)], **options)
        assert changed is not None
        assert_equal((changed - clean)[tuple(rows.T)], matrix[:n, node])
        change = (logits - clean_logits)[0, -1]
        assert_equal((change - change.mean())[graph.logit_token_ids], matrix[-3:, node])
        outcome = apply_edits(
            model, graph, set_to(FeatureAt(*rows[node].tolist()[0:2], int(rows[node, 2])), value), "constrained"
        )
        assert outcome.features is not None
        seen = [outcome.features.of(*row) for row in rows.tolist()]
        change_of = outcome.features.pre_after - outcome.features.pre_before
        assert_equal(change_of[seen].double(), matrix[:n, node])


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_that_changes_nothing_and_one_that_reacts(kind: str) -> None:
    model, graph = traced(kind)
    rows = graph.active_features
    first = rows[rows[:, 2] >= graph.parts[-1].first][0].tolist()
    value = float(graph.activation_values[(rows == torch.tensor(first)).all(1)])
    at = FeatureAt(*first)
    assert torch.equal(
        apply_edits(model, graph, set_to(at, value)).final, apply_edits(model, graph, set_to(at, value)).clean.final
    )
    moved = apply_edits(model, graph, set_to(at, 3 * value))
    assert (moved.final - moved.clean.final).abs().max() > 1e-6
    with pytest.raises(InputError, match="iterative semantics"):
        apply_edits(model, graph, set_to(at, 0.0), "iterative")
    with pytest.raises(InputError, match=f"those of attention are 10 to {9 + model.attention.n_features(0)}"):
        apply_edits(model, graph, set_to(FeatureAt(0, 2, 99), 0.0))
    with pytest.raises(InputError, match=r"features reach from 0 to 9$"):
        model.feature_intervention(IDS, [(1, 2, 10, 0.0)])


@pytest.mark.parametrize("kind", KINDS)
def test_how_a_trace_is_cut_does_not_matter(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, expected = traced(kind)
    for options in ({"batch_size": 1}, {"batch_size": 3, "offload": "disk"}):
        assert_equal(
            attribute(IDS, model, max_n_logits=3, **options).adjacency_matrix, expected.adjacency_matrix, 1e-12
        )
    monkeypatch.setattr(trace, "keeps_patterns", lambda *_: False)
    assert_equal(attribute(IDS, model, max_n_logits=3).adjacency_matrix, expected.adjacency_matrix, 1e-9)
    together = attribute_together([IDS, IDS[:4]], model, max_n_logits=3)
    assert isinstance(together[0], Graph)
    assert_equal(together[0].adjacency_matrix, expected.adjacency_matrix, 1e-9)


def test_the_identity_at_the_heads_gives_the_loadings_of_heads() -> None:
    """A dictionary of all that the heads of the last layer give splits an edge as its last head does (attention/)."""
    plain = build(Case("llama"))
    width = plain.cfg.n_heads * plain.cfg.d_head
    one = SingleLayerTranscoder(width, width, TopK(width), 2, dtype=torch.float64)
    one.W_enc = one.W_dec = torch.eye(width, dtype=torch.float64)
    whole = TranscoderSet({2: one}, "attn.hook_z", "attn.hook_z")
    model = ReplacementModel(plain.parts, plain.transcoders, None, attention=whole)
    graph, usual = attribute(IDS, model, max_n_logits=1), attribute(IDS, plain, max_n_logits=1)
    nodes = graph.nodes
    assert (graph.edges.weight[nodes.feature[graph.edges.source] == -2].abs() < 1e-12).all()  # nothing is left over
    heads = torch.nonzero(nodes.feature[: nodes.layout.n_features] >= graph.parts[-1].first).flatten()
    head = (nodes.feature[heads] - graph.parts[-1].first) // plain.cfg.d_head
    matrix, target = graph.adjacency_matrix, graph.n_nodes - 1
    for name in usual.nodes.ids()[:: max(1, len(usual.nodes.ids()) // 8)]:
        source = usual.nodes.numbers([name], "the test")[0]
        if source >= usual.nodes.layout.target_start or not usual.adjacency_matrix[-1, source]:
            continue
        found = usual.explain_edge(source, usual.n_nodes - 1, plain).last[2].double()
        there = nodes.numbers([name], "the test")[0]
        terms = matrix[target, heads] / nodes.activation[heads] * matrix[heads, there]
        assert_equal(torch.zeros_like(found).index_add_(0, head, terms), found, 1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_files_keep_attention_nodes(kind: str, tmp_path: Path) -> None:
    model, graph = traced(kind)
    graph.save(tmp_path / "graph.safetensors")
    back = load_graph(tmp_path / "graph.safetensors")
    assert back.parts == graph.parts
    assert torch.equal(back.adjacency_matrix, graph.adjacency_matrix)
    assert len(set(back.nodes.ids())) == back.n_nodes
    assert apply_edits(model, back, set_to(FeatureAt(0, 2, 10), 1.0)) is not None
    again = from_networkx(to_networkx(graph))
    assert (again.parts, again.nodes.ids()) == (graph.parts, graph.nodes.ids())
    assert_equal(again.adjacency_matrix.double(), graph.adjacency_matrix, 1e-6)
    small = subgraph(graph, prune_graph(graph, 0.5, 0.9))
    assert small.parts == graph.parts
    assert small.residual is not None
    assert small.residual < 1e-10
    with pytest.raises(InputError, match="no place for features and errors of attention"):
        graph.to_pt(tmp_path / "graph.pt")


@pytest.mark.parametrize("kind", KINDS)
def test_viewers_get_attention_nodes_under_the_names_that_they_know(kind: str) -> None:
    _, graph = traced(kind)
    text = graph_document(graph, "slug", "scan", 1.0, 1.0, token_strings=[str(token) for token in IDS.tolist()]).text
    document = parse_json(text, "the test")
    assert validate_document(document) == []
    kinds = {node["node_id"]: node["feature_type"] for node in document["nodes"]}
    first = graph.parts[-1].first
    for node in document["nodes"]:
        feature = node["node_id"].split("_")[1]
        if node["feature_type"] == "lorsa":
            assert int(feature) == first + node["dictionary_index"]
            assert node["dictionary"] == graph.parts[-1].name
        if node["feature_type"] == "lorsa error":
            assert feature == "-2"
    assert {"lorsa", "lorsa error", "cross layer transcoder", "mlp reconstruction error"} <= set(kinds.values())
    assert [part["place"] for part in document["metadata"]["dictionaries"]] == ["mlp", "attention"]


def test_what_does_not_know_such_graphs_says_so() -> None:
    model, graph = traced("attn.hook_z")
    with pytest.raises(InputError, match="in this graph a dictionary \\(attention\\) replaces it"):
        graph.explain_edge(0, graph.n_nodes - 1, model)
    with pytest.raises(InputError, match="estimate of edges by gradients"):
        approximate_edges(model, graph)
    plain = build(GEMMA)
    with pytest.raises(CompatibilityError, match="the model here has none of attention outputs"):
        apply_edits(plain, graph, set_to(FeatureAt(0, 2, 1), 1.0))


WRONG: dict[str, tuple[str, str]] = {
    "elsewhere": ("hook_resid_post", "reads 'hook_resid_post' and writes 'hook_resid_post'"),
    "width": ("attn.hook_z", "has width 16; attn.hook_z of gemma2 has 24"),
    "skip": ("hook_attn_out", "has a skip connection"),
}


@pytest.mark.parametrize(("hook", "said"), WRONG.values(), ids=WRONG)
def test_dictionaries_that_cannot_stand_for_attention_are_refused(hook: str, said: str) -> None:
    parts = build(GEMMA).parts
    given = autoencoders(parts, "hook_attn_out", skip="skip" in said)
    given.feature_input_hook = given.feature_output_hook = hook
    with pytest.raises(CompatibilityError, match=said):
        ReplacementModel(parts, build(GEMMA).transcoders, None, attention=given)


def test_a_layer_that_the_model_does_not_have_is_refused() -> None:
    model = build(GEMMA)
    far = dictionary(model.parts, "hook_attn_out")
    far = TranscoderSet({4: far[0]}, "hook_attn_out", "hook_attn_out")
    with pytest.raises(CompatibilityError, match="has a layer 4, model gemma2 has 3 layers"):
        ReplacementModel(model.parts, model.transcoders, None, attention=far)


@pytest.mark.parametrize("kind", KINDS)
def test_neurons_and_attention_add_up_together(kind: str) -> None:
    parts = build(Case("llama")).parts
    model = ReplacementModel(parts, Neurons(parts), None, attention=dictionary(parts, kind, layers=(0, 2)))
    graph = attribute(IDS, model, max_n_logits=2, max_feature_nodes=60)
    assert graph.residual is not None
    assert graph.residual < 1e-10
    of_attention = graph.active_features[:, 2] >= graph.parts[-1].first
    assert 0 < int(of_attention.sum()) < len(of_attention)


@pytest.mark.parametrize("attention", [False, True], ids=["alone", "with attention"])
def test_transcoders_of_some_layers_with_neurons_in_the_others(attention: bool) -> None:
    """The sum rule holds, and in layers of neurons nothing is left over once all are nodes."""
    parts = build(Case("llama")).parts
    one = tiny_transcoder("plt", n_features=9, input_hook="mlp.hook_in")[1]
    some = TranscoderSet({1: one}, "mlp.hook_in", "hook_mlp_out").covering(3)
    heads = dictionary(parts, "attn.hook_z", layers=(0,)) if attention else None
    model = ReplacementModel(parts, with_neurons(some, parts), None, attention=heads)
    graph = attribute(IDS, model, max_n_logits=2, max_feature_nodes=2000)
    assert graph.residual is not None
    assert graph.residual < 1e-10
    assert [part.name for part in graph.parts] == ["transcoder", "neurons", "attention"][: 2 + attention]
    nodes = graph.nodes
    of_neurons = (graph.active_features[:, 2] >= 9) & (graph.active_features[:, 2] < 9 + 48)
    assert set(graph.active_features[of_neurons, 0].tolist()) == {0, 2}
    left = graph.edges.source[nodes.feature[graph.edges.source] == -1]
    left = left[graph.edges.weight[nodes.feature[graph.edges.source] == -1].abs() > 1e-12]
    assert set(nodes.layer[left].tolist()) == {1}
    rows = graph.active_features
    node = int(torch.nonzero(of_neurons)[0])
    twice = set_to(FeatureAt(*rows[node].tolist()), 2 * float(graph.activation_values[node]))
    found = apply_edits(model, graph, twice, "constrained").features
    assert found is not None
    seen = [found.of(*row) for row in rows.tolist()]
    assert_equal((found.pre_after - found.pre_before)[seen].double(), graph.adjacency_matrix[: len(rows), node])


def test_neurons_stand_at_the_ends_of_the_mlp() -> None:
    parts = build(GEMMA).parts
    some = TranscoderSet({1: tiny_transcoder("plt")[1]}, "hook_resid_mid", "hook_mlp_out").covering(3)
    with pytest.raises(CompatibilityError, match="these transcoders between hook_resid_mid and hook_mlp_out"):
        with_neurons(some, parts)
    with pytest.raises(InputError, match="every layer has transcoders"):
        with_neurons(tiny_transcoder("plt", input_hook="mlp.hook_in", output_hook="mlp.hook_out"), parts)


def test_a_dictionary_that_rebuilds_nothing_of_attention_is_told_of() -> None:
    model, graph = traced("hook_attn_out")
    with pytest.warns(ReconstructionWarning, match="the dictionary of attention rebuilds what attention gives worse"):
        attribute(IDS, model, max_n_logits=1)
    assert any("the dictionary of attention" in each for each in graph.provenance["warnings"])


@pytest.mark.filterwarnings("ignore")
def test_an_interrupted_trace_goes_on_to_the_same_graph(tmp_path: Path) -> None:
    model, whole = traced("lorsa")

    def stop(stage: str, done: int, total: int) -> None:
        if done >= 5:
            raise KeyboardInterrupt

    options: dict[str, Any] = {"max_n_logits": 3, "batch_size": 3}
    part = attribute(IDS, model, progress=stop, **options)
    assert len(part.selected_features) < len(whole.selected_features)
    part.save(tmp_path / "part.safetensors")
    found = attribute(IDS, model, resume=tmp_path / "part.safetensors", **options)
    assert_equal(found.adjacency_matrix, whole.adjacency_matrix, 1e-12)
    with pytest.raises(CompatibilityError, match="attention"):
        attribute(IDS, with_attention(GEMMA, "hook_attn_out"), resume=tmp_path / "part.safetensors", **options)


@pytest.mark.parametrize("kind", KINDS)
def test_the_dictionary_moves_with_its_model(kind: str) -> None:
    parts = bind(tiny_model("llama"), "llama")
    model = ReplacementModel(parts, tiny_transcoder("plt"), None, attention=dictionary(parts, kind))
    model.to(torch.float32)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    graph = attribute(IDS, model, max_n_logits=1)
    assert graph.residual is not None
    assert graph.residual < 1e-5
