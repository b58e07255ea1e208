"""Scores of attention explained: both sides and all pairs add up to what the model computed, for every architecture."""

from __future__ import annotations

import gc
import json
from itertools import product
from typing import Any
from weakref import ref

import pytest
import torch
from torch import Tensor

from circuit_tracer import AttentionTarget, Graph, ReplacementModel, explain_score
from circuit_tracer.attention import ScoreExplanation, ScorePairs
from circuit_tracer.attention.prompt_scores import PromptScores
from circuit_tracer.attention.score_sources import BIASES
from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.errors import CircuitTracerError, CompatibilityError, InputError
from circuit_tracer.graph.attention_scores import SOURCE_KINDS, AttentionScore
from circuit_tracer.models.capture import capture
from circuit_tracer.models.queries_keys import read_scores
from tests.support.edge_cases import any_architecture, with_scores
from tests.support.induction import FIRST, INDUCTION, PREVIOUS_TOKEN, induction_model, induction_transcoders
from tests.support.kept import kept
from tests.support.tiny import tiny_model, tiny_transcoder
from tests.support.tracing_cases import IDS, Case, assert_equal, build, one_each

GPT2, LLAMA, GEMMA = (
    Case("gpt2", "clt", True, "mlp.hook_in"),
    Case("llama"),
    Case("gemma2", "plt", False, "mlp.hook_in", "mlp.hook_out"),
)
PARALLEL = Case("gpt_neox", "plt", True, "mlp.hook_in", "mlp.hook_out")
SUMMED = [*one_each(), PARALLEL]
PLACES = [(2, 1, 5, 4), (1, 0, 3, 3), (0, 1, 4, 3)]  # within every window


@kept
def traced(case: Case, dtype: torch.dtype = torch.float64) -> tuple[ReplacementModel, Graph]:
    model = build(case, dtype)
    return model, attribute(IDS, model, max_feature_nodes=20)


def versus_of(query: int, key: int) -> tuple[int | str | None, ...]:
    return None, query - 1 if key != query - 1 else query, "rest"


def sums(explained: ScoreExplanation) -> tuple[Tensor, Tensor]:
    return explained.query_side.values, explained.key_side.values


@pytest.mark.few
@pytest.mark.parametrize(("case", "dtype"), list(product(SUMMED, (torch.float64, torch.float32))), ids=str)
def test_both_sides_and_all_pairs_add_up_to_the_score(case: Case, dtype: torch.dtype) -> None:
    """Every contrast at every place: they take turns from case to case."""
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-5}[dtype]
    model, graph = traced(case, dtype)
    captured, turn = capture(model.parts, IDS), SUMMED.index(case)
    for number, (layer, head, query, key) in enumerate(PLACES if dtype == torch.float64 else PLACES[:1]):
        scores = read_scores(model.parts, captured, [layer])[layer]
        log = captured.patterns[layer][head, query].log()
        versus = versus_of(query, key)[(turn + number) % 3]
        found = explain_score(graph, model, layer, head, query, key, versus)
        expected = scores.score(head, query, key)
        if versus == "rest":
            others = torch.tensor([each for each in range(query + 1) if log[each].isfinite() and each != key])
            expected = log[key] - torch.softmax(log[others], 0) @ log[others]
        elif versus is not None:
            expected = log[key] - log[int(versus)]
        for side in (found.query_side, found.key_side):
            scale = max(1.0, sum(side.mass.values()))
            assert abs(sum(side.parts.values()) - float(expected)) < tolerance * scale
        assert found.score == pytest.approx(float(expected), rel=tolerance, abs=tolerance)
        assert found.log_attention == pytest.approx(float(log[key]), rel=10 * tolerance, abs=10 * tolerance)
        assert_equal(found.pattern, captured.patterns[layer][head, query], 10 * tolerance)
        assert found.pairs is not None
        mass = float(found.pairs.query.rows.abs().sum(1) @ found.pairs.key.rows.abs().sum(1))
        assert abs(found.pairs.total() - float(expected)) < tolerance * max(1.0, mass)
        for pairs, values in zip(found.pairs.marginals(), sums(found), strict=True):
            torch.testing.assert_close(pairs, values, rtol=0, atol=tolerance * max(1.0, mass))


def test_scores_that_are_small_by_cancellation_are_no_errors() -> None:
    """In single precision, in the first layer: a token and constants alone, so that nothing else is in the mass."""
    transcoders = tiny_transcoder("plt", torch.float32, d_model=128)
    model = ReplacementModel.from_model(tiny_model("llama", torch.float32, hidden_size=128), transcoders, None, "llama")
    graph = attribute(torch.arange(3, 43), model, max_feature_nodes=5)
    scores = read_scores(model.parts, capture(model.parts, graph.input_tokens), [0])[0]
    raw = torch.stack([torch.stack([scores.raw(head, query) for query in range(40)]) for head in range(4)])
    smallest = raw.abs().flatten().argsort()[:4].tolist()
    for place in smallest:
        head, query, key = place // 1600, place // 40 % 40, place % 40
        found = graph.explain_score(model, 0, head, query, key, pairs=False)
        assert found.residual < 1e-6
        assert abs(sum(found.key_side.parts.values()) - found.score) < 1e-6


@pytest.mark.parametrize("case", [GPT2, GEMMA], ids=str)
def test_marginals_are_the_edges_of_a_target_of_one_side(case: Case) -> None:
    model, graph = traced(case)
    for name in ("query", "key"):
        target = AttentionTarget(2, 1, 5, 4, "rest", name)
        whole = attribute(IDS, model, attribution_targets=[target])
        assert whole.balance is not None
        assert len(whole.selected_features) == len(whole.active_features)
        start = whole.nodes.layout.target_start
        side = getattr(graph.explain_score(model, 2, 1, 5, 4, "rest", pairs=False), f"{name}_side")
        assert_equal(side.values[:start], whole.edges.to_dense()[start, :start])
        assert sum(side.biases.values()) == pytest.approx(float(whole.balance.bias[start]), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("case", [GPT2, GEMMA], ids=str)
def test_all_pairs_by_brute_force(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeroing a source's write on one side and another's on the other, in the bilinear form itself."""
    model, graph = traced(case)
    prompt = PromptScores.of(graph, model)
    scores, layer, head, query, key = prompt.scores(2), 2, 1, 5, 4
    found = graph.explain_score(model, layer, head, query, key)
    assert found.pairs is not None
    raw, capped = scores.raw(head, query, key), scores.score(head, query, key)
    streams = _streams(prompt, layer, len(found.pairs.sources) - len(BIASES))
    each = torch.eye(scores.query.shape[2], dtype=torch.float64)
    (to_query, _), (to_key, _) = scores.query_reads(head, query, each), scores.key_reads(head, key, each)
    expected = (streams[:, query] @ to_query.T) @ (streams[:, key] @ to_key.T).T * scores.scaling * capped / raw
    every = torch.arange(len(streams))
    assert_equal(found.pairs.matrix(every, every), expected)
    monkeypatch.setattr("circuit_tracer.attention.pairs.BLOCK", 7)
    whole = torch.arange(len(found.pairs.sources))
    matrix = found.pairs.matrix(whole, whole)
    strongest = matrix.abs().flatten().sort(descending=True).values
    top = found.pairs.top(40)
    assert_equal(torch.tensor([abs(pair.weight) for pair in top], dtype=torch.float64), strongest[:40])
    assert all(found.pairs.of(pair.query, pair.key) == pytest.approx(pair.weight, rel=1e-12) for pair in top)
    assert len(found.pairs.top(10**6)) == len(found.pairs)


def _streams(prompt: PromptScores, layer: int, n_sources: int) -> Tensor:
    """(S, P, D): what each source alone makes of the stream that enters a layer, pushed forward through the frozen network."""
    linear, network, n_pos = prompt.linear, prompt.network, prompt.linear.n_pos
    active, found = linear.sources.active, torch.zeros(n_sources, n_pos, linear.error.shape[2], dtype=torch.float64)

    def push(number: int, start: Tensor, writes: dict[int, Tensor]) -> None:
        def write(at: int, x_PD: Tensor) -> Tensor:
            skip = linear.skips[at]
            by_skip = torch.zeros_like(start) if skip is None else x_PD @ skip
            return by_skip + writes.get(at, torch.zeros_like(start))

        def seen(at: int, entering: bool, resid_PD: Tensor) -> None:
            if entering and at == layer:
                found[number] = resid_PD

        network.propagate(start, write, constants=False, seen=seen)

    nothing = torch.zeros_like(found[0])
    for number in range(len(active)):
        source, position = int(active.layer[number]), int(active.position[number])
        rows = prompt.transcoders.decoder_rows(source, active.index[number : number + 1])[0] * active.value[number]
        writes = {}
        for row, above in zip(rows, prompt.transcoders.target_layers(source), strict=True):
            writes[above] = nothing.index_fill(0, torch.tensor(position), 0)
            writes[above][position] = row
        push(number, nothing, writes)
    for at in range(network.n_layers):
        for position in range(n_pos):
            only = torch.zeros_like(nothing)
            only[position] = linear.error[at, position]
            push(len(active) + at * n_pos + position, nothing, {at: only})
    for position in range(n_pos):
        only = torch.zeros_like(nothing)
        only[position] = linear.captured.embedding[position]
        push(n_sources - n_pos + position, only, {})
    return found


def test_strongest_name_nodes_as_files_do_and_others_apart() -> None:
    model, graph = traced(LLAMA)
    found = graph.explain_score(model, 2, 1, 5, 4)
    ids = graph.nodes.ids()
    everything = found.key_side.strongest(10**6)
    assert [abs(each.weight) for each in everything] == sorted((abs(each.weight) for each in everything), reverse=True)
    kinds = {kind: [each for each in everything if each.kind == kind] for kind in SOURCE_KINDS}
    for each in everything:
        assert each.node is None or ids[each.node] == each.id
        assert found.key_side.of(each.id) == each.weight
    assert all(each.node is not None for each in kinds["error"] + kinds["token"])
    assert {each.node is None for each in kinds["feature"]} == {True, False}  # 20 of all features are nodes
    assert {each.id for each in found.qk_only(10**6)} >= {each.id for each in kinds["feature"] if each.node is None}
    assert sum(found.key_side.parts.values()) == pytest.approx(sum(each.weight for each in everything), rel=1e-12)


def test_positions_count_from_the_end_and_a_second_question_costs_no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model, graph = traced(LLAMA)
    first = graph.explain_score(model, 2, 1, 5, 4, 3, pairs=False)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the model ran again")

    monkeypatch.setattr(model.parts.model, "forward", refuse)
    again = graph.explain_score(model, 2, 1, -1, -2, -3, pairs=False)
    assert again.label == first.label
    assert again.pairs is None
    assert torch.equal(again.key_side.values, first.key_side.values)


def test_the_prompt_is_forgotten_with_its_graph() -> None:
    model = build(LLAMA)
    graph = attribute(IDS, model)
    graph.explain_score(model, 2, 1, 5, 4, pairs=False)
    gone = ref(PromptScores.of(graph, model))
    del graph
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("layer", [0, 2])
def test_one_token_and_sides_without_features(layer: int) -> None:
    model = build(LLAMA)
    graph = attribute(IDS[:1], model, zero_positions=[])
    found = graph.explain_score(model, layer, 1, 0, 0)
    assert found.pattern.tolist() == [1.0]
    assert found.residual < 1e-12
    assert found.pairs is not None
    assert found.pairs.total() == pytest.approx(found.score, rel=1e-9)
    if layer == 0:
        assert found.query_side.parts["feature"] == found.query_side.parts["error"] == 0
        assert [each.id for each in found.strongest()["key"]] == [f"E_{int(IDS[0])}_0"]
    with pytest.raises(InputError, match="no rest"):
        graph.explain_score(model, layer, 1, 0, 0, "rest")


def test_a_graph_keeps_scores_and_viewers_find_them_on_their_target(tmp_path: Any) -> None:
    model = build(LLAMA)
    targets: list[Any] = [3, AttentionTarget(2, 1, 5, 2, "rest")]
    graph = attribute(IDS, model, attribution_targets=targets, max_feature_nodes=5)
    plain = json.loads(graph.to_json("plain", tmp_path).read_text())
    kept = graph.explain_score(model, 2, 1, 5, 2, "rest").kept()
    graph.scores += [kept, graph.explain_score(model, 1, 0, 3, 1, pairs=False).kept(contributors=3)]
    again = Graph.load(graph.save(tmp_path / "graph.safetensors"))
    assert again.scores == graph.scores
    assert again.scores[0].pairs
    assert not again.scores[1].pairs
    document = json.loads(again.to_json("scores", tmp_path).read_text())
    assert [AttentionScore.from_dict(each) for each in document.pop("attention_scores")] == graph.scores
    nodes, others = {node["node_id"]: node for node in document["nodes"]}, document.pop("qk_only_nodes")
    (target,) = [node for node in nodes.values() if "qk_tracing_results" in node]
    results = target.pop("qk_tracing_results")
    assert target["token"] == kept.label == graph.targets.label[1]
    assert results["pair_wise_contributors"] == [list(pair) for pair in kept.pairs]
    assert results["top_k_marginal_contributors"][0] == list(kept.key_side.top[0])
    named = {name for each in graph.scores for name in each.ids}
    assert set(others) == named - set(nodes)
    assert {each["feature_type"] for each in others.values()} >= {"cross layer transcoder", "bias"}
    for name, each in others.items():
        assert each["node_id"] == each["jsNodeId"] == name
        assert isinstance(each["clerp"], str)
        if each["feature_type"] == "cross layer transcoder":
            layer, index, position = map(int, name.split("_"))
            row = (graph.active_features == torch.tensor([layer, position, index])).all(1).nonzero()
            assert each["activation"] == pytest.approx(float(graph.activation_values[row[0, 0]]), rel=1e-6)
    for name in ("qParams", "nodes", "links"):
        assert document[name] == plain[name]


def test_the_pair_behind_an_induction_head_is_the_token_and_its_like_before_the_key() -> None:
    """The head of layer 0 shows as the way of an embedding from one token back, as no other source is there."""
    model = ReplacementModel.from_model(induction_model(), induction_transcoders(), None, "induction")
    tokens = torch.tensor([FIRST, 3, 7, 5, 9, 3])
    graph = attribute(tokens, model)
    layer, head = INDUCTION
    found = graph.explain_score(model, layer, head, 5, 2, "rest")
    assert found.pattern[2] > 0.99
    assert found.pairs is not None
    pair = found.pairs.top(1)[0]
    assert (pair.query, pair.key) == ("E_3_5", "E_3_1")  # position 1, not the key's own 2
    assert found.strongest(1)["key"][0].id == "E_3_1"
    assert abs(found.key_side.of("E_7_2")) < 0.05 * found.score
    back = graph.explain_score(model, *PREVIOUS_TOKEN, 2, 1, "rest")
    assert back.strongest(1)["key"][0].id == "0_bias_position_1"


DAMAGE: dict[str, Any] = {
    "not a number": lambda score: score.update(score="high"),
    "not finite": lambda score: score.update(residual=float("inf")),
    "lacks a side": lambda score: score.pop("key_side"),
    "unknown kind": lambda score: score["key_side"]["parts"].update(logit=1.0),
    "key behind": lambda score: score.update(key=6),
    "versus a word": lambda score: score.update(versus="others"),
    "foreign id": lambda score: score["key_side"]["top"].append(["<b>", 1.0]),
    "position": lambda score: score["pairs"].append(["E_3_0", "0_4_6", 1.0]),
    "pattern": lambda score: score["pattern"].pop(),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_kept_scores_that_cannot_be_are_refused(damage: Any) -> None:
    model, graph = traced(LLAMA)
    values = json.loads(json.dumps(graph.explain_score(model, 2, 1, 5, 4).to_dict(3, 3)))
    AttentionScore.from_dict(values).check(graph.n_layers, graph.n_pos)
    damage(values)
    with pytest.raises(CircuitTracerError, match="attention score"):
        AttentionScore.from_dict(values).check(graph.n_layers, graph.n_pos)


BAD: dict[str, tuple[tuple[Any, ...], str]] = {
    "layer": ((3, 0, 5, 2), "layer 3 .*0 to 2"),
    "layer below": ((-1, 0, 5, 2), "layer -1 .*0 to 2"),
    "head": ((1, 4, 5, 2), "no head L1H4; .*0 to 3"),
    "query": ((1, 0, 6, 2), "query 6 .*positions 0 to 5"),
    "key": ((1, 0, 5, -7), "key -7 .*positions 0 to 5"),
    "key behind": ((1, 0, 2, 3), "key 3 is behind query 2"),
    "versus itself": ((1, 0, 2, 1, 1), "the key itself"),
    "versus a word": ((1, 0, 2, 1, "others"), "expected another key, or 'rest'"),
}


@pytest.mark.parametrize(("place", "said"), BAD.values(), ids=BAD)
def test_what_cannot_be_is_refused(place: tuple[Any, ...], said: str) -> None:
    model, graph = traced(LLAMA)
    with pytest.raises(InputError, match=said):
        graph.explain_score(model, *place)


def test_sources_and_counts_that_cannot_be_are_refused() -> None:
    model, graph = traced(LLAMA)
    pairs = graph.explain_score(model, 2, 1, 5, 4).pairs
    assert isinstance(pairs, ScorePairs)
    assert pairs.of("own", "E_40_4") == pairs.of("2_bias_own_5", "E_40_4") == 0.0
    with pytest.raises(InputError, match="'9_9_9' is no active feature"):
        pairs.of("9_9_9", 0)
    with pytest.raises(InputError, match="sources 0 to"):
        pairs.of(0, len(pairs.sources))
    with pytest.raises(InputError, match="outside of sources"):
        pairs.matrix(torch.tensor([0]), torch.tensor([-1]))
    with pytest.raises(InputError, match="whole numbers"):
        pairs.matrix(torch.tensor([0.5]), torch.tensor([1]))
    with pytest.raises(InputError, match="k is -1"):
        pairs.top(-1)
    assert pairs.top(0) == []


def test_a_graph_of_another_model_is_refused() -> None:
    _, graph = traced(LLAMA)
    for other in (build(LLAMA, seed=1), build(Case("qwen2"), seed=1)):
        with pytest.raises(CompatibilityError, match="made with another model"):
            graph.explain_score(other, 2, 1, 5, 4)
    graph = Graph(**{name: getattr(graph, name) for name in _PARTS}, adjacency_matrix=graph.edges)
    with pytest.raises(CompatibilityError, match="other activations here"):  # it does not say what it was made with
        graph.explain_score(build(LLAMA, seed=1), 2, 1, 5, 4)
    model, _ = traced(LLAMA)
    assert graph.explain_score(model, 2, 1, 5, 4).residual < 1e-12


_PARTS = ("input_string", "input_tokens", "active_features", "cfg", "selected_features", "activation_values",
          "logit_targets", "logit_probabilities", "vocab_size")  # fmt: skip


ROUNDED = ("cohere", "ernie4_5", "hunyuan_vl", "llama4")  # their own pass rounds rotary embeddings to float32


@pytest.mark.few
@with_scores
def test_sums_pairs_and_contrasts_of_every_architecture(number: int, name: str) -> None:
    model, graph = any_architecture(name, number)
    layer = graph.n_layers - 1
    for versus in (None, "rest"):
        found = graph.explain_score(model, layer, 0, 5, 4, versus)
        expected = torch.tensor(found.score, dtype=torch.float64)
        assert found.pairs is not None
        for total in (*(sum(side.parts.values()) for side in (found.query_side, found.key_side)), found.pairs.total()):
            assert_equal(torch.tensor(float(total), dtype=torch.float64), expected)
    log = capture(model.parts, graph.input_tokens).patterns[layer][0, 5].log()
    others = torch.softmax(log, 0).index_fill(0, torch.tensor(4), 0)
    rest = (others / others.sum()) @ torch.where(others > 0, log, 0)
    assert_equal(expected, log[4] - rest, 1e-6 if name.startswith(ROUNDED) else 1e-9)
