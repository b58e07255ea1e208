"""Prompts from held-out text, and graphs against ablation in the model: plain statements, and what a score cannot see."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.attribution.sweep import EdgeBlock, Sweep
from circuit_tracer.graph.influence import node_influence
from circuit_tracer.models.capture import logits_at
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.models.run import ModelRun, in_rows
from circuit_tracer.replacement_model import ReplacementModel
from circuit_tracer.training.evaluation import evaluate
from circuit_tracer.training.evaluation.faithfulness import GROUP, SOURCES, _edges, _stratified
from circuit_tracer.training.evaluation.graphs import Named, score_graphs
from circuit_tracer.training.evaluation.results import DICTIONARY
from circuit_tracer.training.evaluation.sequences import Sequences
from circuit_tracer.training.evaluation.snippets import LEAST, LENGTH, as_text, held_out_prompts
from circuit_tracer.transcoders import CrossLayerTranscoder
from tests.support.evaluation_cases import ALL_TOKENS, parts_of, perfect_pair, sequences
from tests.support.tiny import tiny_transcoder


def probabilities(parts: ModelParts, ids: Tensor) -> Tensor:
    return logits_at(parts, ModelRun(parts)(ids).final[0]).softmax(-1)


@pytest.fixture(scope="module")
def sure() -> tuple[ModelParts, list[Tensor]]:
    """A model that is sure now and then, and sequences that often go as it expects."""
    parts = parts_of()
    parts.unembed.weight.data *= 8
    tokens = []
    for ids in sequences(6, 30):
        for place in range(2, len(ids), 2):
            ids[place] = probabilities(parts, ids[:place])[-1].argmax()
        tokens.append(ids)
    return parts, tokens


def test_prompts_end_where_the_model_is_right_and_not_too_sure(sure: tuple[ModelParts, list[Tensor]]) -> None:
    parts, tokens = sure
    found = held_out_prompts(parts, None, Sequences(tokens), 50)
    expected = []
    for start in range(0, 30, LENGTH):
        for ids in tokens:
            window = ids[start : start + LENGTH + 1]
            if len(window) <= LEAST:
                continue
            chance = probabilities(parts, window)
            good = [
                end
                for end in range(LEAST, len(window))
                if chance[end - 1].argmax() == window[end] and 0.2 <= chance[end - 1].max() <= 0.8
            ]
            if good:
                expected.append(window[: good[-1]].tolist())
    unsure = [ids.tolist() for ids in found[: len(expected)]]
    assert sorted(unsure) == sorted(expected)
    assert expected
    for ids in found[len(expected) :]:
        assert probabilities(parts, ids)[-1].max() > 0.8
    assert [ids.tolist() for ids in held_out_prompts(parts, None, Sequences(tokens), 2)] == [
        ids.tolist() for ids in found[:2]
    ]
    assert as_text(found[0], None) == " ".join(map(str, found[0].tolist()))


def test_what_is_not_measured_is_said(sure: tuple[ModelParts, list[Tensor]]) -> None:
    parts, tokens = sure
    settings = replace(ALL_TOKENS, replacement_tokens=0, prompts=("the text",), held_out_prompts=40, faithfulness=False)
    found = evaluate(parts, None, tiny_transcoder("clt"), tokens, settings)
    without_tokenizer, too_few = found.not_measured
    assert "1 named prompt(s): text cannot be read without a tokenizer" in without_tokenizer
    graphs = found.results[DICTIONARY].graphs
    assert f"{40 - len(graphs)} of 40 held-out prompts" in too_few
    assert graphs
    assert all(graph.held_out and math.isnan(graph.edges_live) for graph in graphs)


@pytest.mark.filterwarnings("ignore:interrupted")
def test_an_interrupt_ends_the_evaluation_and_scores_no_half_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ReplacementModel(parts_of(), tiny_transcoder("plt"), None)
    genuine, blocks = Sweep._block, [0]

    def interrupted_later(sweep: Sweep, *arguments: Any) -> EdgeBlock:
        blocks[0] += 1
        if blocks[0] > 1:  # the targets have their rows, features have not
            raise KeyboardInterrupt
        return genuine(sweep, *arguments)

    monkeypatch.setattr(Sweep, "_block", interrupted_later)
    with pytest.raises(KeyboardInterrupt):
        score_graphs(model, [Named("one", torch.tensor([3, 9, 5, 6]))])
    assert blocks == [2]


def test_edges_and_groups_are_compared_with_ablation_in_the_model() -> None:
    """Against a hook that subtracts what features wrote, all else live, and a rank correlation written plainly."""
    parts, transcoders, ids = parts_of(), tiny_transcoder("plt"), torch.tensor([3, 9, 5, 6])
    model = ReplacementModel(parts, transcoders, None)
    graph = attribute(ids, model)
    active, values = graph.active_features.tolist(), graph.activation_values
    features, first = graph.nodes.layout.n_features, graph.nodes.layout.target_start
    seen: dict[int, Tensor] = {}

    def read(layer: int, x_PD: Tensor) -> None:
        seen[layer] = x_PD.clone()

    def without(nodes: list[int]) -> tuple[Tensor, dict[int, Tensor]]:
        def write(layer: int, y_PD: Tensor) -> Tensor:
            for node in nodes:
                at, position, index = active[node]
                if at == layer:
                    y_PD = y_PD.clone()
                    y_PD[position] -= values[node] * transcoders.decoder(layer).whole()[index, 0]
            return y_PD

        final = ModelRun(parts, {"hook_resid_mid": in_rows(parts, read), "hook_mlp_out": in_rows(parts, write)})(
            ids
        ).final
        logits = logits_at(parts, final[0])[-1]
        return logits[graph.targets.token_id[0]] - logits.mean(), dict(seen)

    clean_logit, clean = without([])

    def lost(nodes: list[int], target: int) -> float:
        logit, inputs = without(nodes)
        if target == first:
            return float(clean_logit - logit)
        layer, position, index = active[target]
        return float((clean[layer] - inputs[layer])[position] @ transcoders.encoder(layer).whole()[index])

    (score,) = score_graphs(model, [Named("one", ids)], seed=0)
    generator = torch.Generator().manual_seed(0)
    ranked = node_influence(graph.edges, graph.blocks, graph.target_weights)[:features].argsort(
        descending=True, stable=True
    )
    edges = _edges(graph, _stratified(ranked, SOURCES, generator).sort().values, generator)
    assert (edges.target < features).sum() > 20
    assert (edges.target == first).sum() > 5
    measured = [
        lost([source], target) for source, target in zip(edges.source.tolist(), edges.target.tolist(), strict=True)
    ]
    ranks = torch.stack([edges.share, torch.tensor(measured).double() / edges.mass]).argsort(1).argsort(1).double()
    assert score.edges_live == pytest.approx(float(torch.corrcoef(ranks)[0, 1]), abs=1e-3)
    assert score.top_group_moves == pytest.approx(abs(lost(ranked[:GROUP].tolist(), first)), rel=1e-4)
    assert score.top_group_moves > score.random_group_moves > 0
    assert -1 <= score.groups_live <= 1


def test_strata_give_equally_many_and_what_one_lacks_comes_from_the_next() -> None:
    generator = torch.Generator().manual_seed(0)
    chosen = _stratified(torch.arange(640), 16, generator)
    edges = [0, 10, 40, 160, 640]
    assert [int(((chosen >= a) & (chosen < b)).sum()) for a, b in pairwise(edges)] == [4, 4, 4, 4]
    few = _stratified(torch.arange(32), 16, generator)
    assert len(few.unique()) == 16
    assert _stratified(torch.arange(5), 16, generator).tolist() == [0, 1, 2, 3, 4]


def test_the_replacement_score_rises_without_any_better_dictionary() -> None:
    """A feature as two that fire together and whose writings cancel but for its own: the same function, a higher score."""
    parts, clt = parts_of(), tiny_transcoder("clt")
    generator, split = torch.Generator().manual_seed(0), CrossLayerTranscoder(
        3, 40, 16, clt.activation(0), lazy_decoder=False, dtype=torch.float64, feature_input_hook=clt.feature_input_hook,
        feature_output_hook=clt.feature_output_hook,
    )  # fmt: skip
    split.W_enc, split.b_enc, split.b_dec = clt.W_enc.repeat(1, 2, 1), clt.b_enc.repeat(1, 2), clt.b_dec
    decoders = []
    for layer in range(3):
        half = clt.decoder(layer).whole() / 2
        away = 2 * torch.randn(half.shape, generator=generator, dtype=torch.float64)
        decoders.append(torch.cat([half + away, half - away]))
    split.W_dec = decoders
    settings = replace(ALL_TOKENS, prompts=([3, 4, 5, 6], [8, 9, 10, 4]), faithfulness=False)  # type: ignore[arg-type]
    one, other = (
        evaluate(parts, None, each, sequences(), settings).results[DICTIONARY].estimates for each in (clt, split)
    )
    assert other["mean_nmse"].value == pytest.approx(one["mean_nmse"].value, rel=1e-9)
    assert other["kl"].value == pytest.approx(one["kl"].value, rel=1e-6)
    assert other["replacement"].value > one["replacement"].value + 0.02


def test_a_perfect_dictionary_has_nothing_in_errors() -> None:
    parts, transcoders = perfect_pair("plt")
    (score,) = score_graphs(ReplacementModel(parts, transcoders, None), [Named("one", [3, 4, 5, 6])])
    assert score.replacement == pytest.approx(1, abs=1e-6)
