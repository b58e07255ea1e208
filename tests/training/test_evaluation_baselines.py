"""The random dictionary, and scores of graphs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.errors import InputError
from circuit_tracer.graph import compute_graph_scores
from circuit_tracer.replacement_model import ReplacementModel
from circuit_tracer.training.evaluation import GivenActivations, evaluate, model_card
from circuit_tracer.training.evaluation.graphs import Named, score_graphs
from circuit_tracer.training.evaluation.reconstruction import measure
from circuit_tracer.training.evaluation.results import GraphScore, mean_scores
from circuit_tracer.transcoders.random_dictionary import RandomRows, random_baseline
from circuit_tracer.transcoders.writes import reconstruct
from tests.support.evaluation_cases import ALL_TOKENS, parts_of, sequences, silent_dictionary
from tests.support.tiny import tiny_transcoder


def sample(n: int = 60) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = 5 + 3 * torch.randn(n, 3, 16, generator=generator, dtype=torch.float64)
    return x, torch.tanh(x @ torch.randn(16, 16, generator=generator, dtype=torch.float64) / 20) + 2


@pytest.mark.parametrize("kind", ["clt", "plt"])
@pytest.mark.parametrize("activation", ["relu", "jump_relu", "topk"])
def test_random_dictionary_is_as_sparse_and_no_scale_or_bias_would_fit_better(kind: str, activation: str) -> None:
    like, (x, y) = tiny_transcoder(kind, activation=activation, skip=True), sample()
    made = random_baseline(like, (x, y), seed=3)
    both, _ = measure({"like": like, "random": made}, GivenActivations(x, y))
    assert both["random"].l0 == both["like"].l0
    assert both["random"].features == both["like"].features
    assert all(nmse <= 1 for nmse in both["random"].nmse)
    assert [made.target_layers(layer) for layer in range(3)] == [like.target_layers(layer) for layer in range(3)]
    # at the best scale and bias the error is zero on average and orthogonal to the reconstruction
    y_hat, _ = reconstruct(made, x)
    error = y_hat - y
    torch.testing.assert_close(error.mean(0), torch.zeros(3, 16, dtype=torch.float64))
    together = (error * (y_hat - y_hat.mean(0))).sum((0, 2))
    torch.testing.assert_close(together, torch.zeros(3, dtype=torch.float64), atol=1e-7, rtol=0)


def test_random_dictionary_of_a_silent_one_is_the_mean() -> None:
    made = random_baseline(silent_dictionary(torch.zeros(3, 16, dtype=torch.float64)), sample(), seed=0)
    found, _ = measure({"random": made}, GivenActivations(*sample()))
    assert found["random"].l0 == [0.0] * 3
    assert found["random"].nmse == pytest.approx([1.0] * 3)


def test_random_dictionary_follows_its_seed_and_layers_differ() -> None:
    like, pair = tiny_transcoder("clt"), sample()
    one, again, other = (random_baseline(like, pair, seed) for seed in (1, 1, 2))
    assert torch.equal(one.encoder(0).whole(), again.encoder(0).whole())
    rows = [one.encoder(0), one.encoder(1), one.decoder(0), other.encoder(0)]
    flat = torch.nn.functional.normalize(torch.stack([each.whole().reshape(20, -1)[:, :16].flatten() for each in rows]))
    assert (flat @ flat.T - torch.eye(4)).abs().max() < 0.3


def test_random_rows_are_the_same_however_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("circuit_tracer.transcoders.random_dictionary.DRAWN_TOGETHER", 4)
    rows = RandomRows((11, 3, 8), 7, torch.empty(0, dtype=torch.float64))
    rows.scale = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    whole, index = rows.whole(), torch.tensor([9, 0, 9, 5])
    assert whole.shape == rows.shape
    assert torch.equal(rows.rows(index), whole[index])
    assert torch.equal(rows.rows(index, slot=2), whole[index, 2])
    assert torch.equal(rows.block(3, 99), whole[3:])
    many = RandomRows((2, 9, 4), 7, torch.empty(0))
    assert torch.equal(many.whole()[:, 6], many.rows(torch.arange(2), slot=6))
    assert torch.equal(whole[:, 1], 2 * whole[:, 0].roll(-1, dims=1))


def test_random_dictionary_says_that_it_cannot_be_saved() -> None:
    made = random_baseline(tiny_transcoder("clt"), sample(), seed=0)
    with pytest.raises(InputError, match="baseline"):
        made.to_safetensors("anywhere")


def test_graph_scores_are_those_of_the_traced_graph() -> None:
    parts, transcoders = parts_of(), tiny_transcoder("clt")
    model = ReplacementModel(parts, transcoders, None)
    prompts = [Named("one", [3, 4, 5, 6]), Named("two", [8, 9, 10], held_out=True)]
    scores = score_graphs(model, prompts)
    assert [(score.prompt, score.held_out) for score in scores] == [("one", False), ("two", True)]
    for named, score in zip(prompts, scores, strict=True):
        graph = attribute(named.prompt, model)
        assert (score.replacement, score.completeness) == pytest.approx(compute_graph_scores(graph))
        assert score.features == len(graph.selected_features)
        assert score.strict_completeness <= score.completeness
    few = score_graphs(model, prompts, max_feature_nodes=5)
    assert all(a.replacement < b.replacement for a, b in zip(few, scores, strict=True))


def test_prompts_that_cannot_be_traced_say_why_and_do_not_count() -> None:
    silent = silent_dictionary(torch.zeros(3, 16, dtype=torch.float64))
    scores = score_graphs(ReplacementModel(parts_of(), silent, None), [Named("silent", [3, 4, 5])])
    assert scores[0].problem is not None
    assert "no transcoder feature is active" in scores[0].problem
    assert mean_scores([GraphScore("a", 0.5, 0.25, 0.2, 3), *scores]) == {
        "graphs": 1, "replacement": 0.5, "completeness": 0.25, "strict_completeness": 0.2, "features": 3,
    }  # fmt: skip
    assert mean_scores([]) == {}


def test_all_baselines_stand_beside_the_dictionary() -> None:
    parts, transcoders = parts_of(), tiny_transcoder("clt")
    prompts: Any = ([3, 4, 5, 6], [3, 9, 5])
    settings = replace(ALL_TOKENS, random_baseline=True, prompts=prompts, random_graphs=1, faithfulness=False)
    evaluation = evaluate(parts, None, transcoders, sequences(), settings, per_layer=tiny_transcoder("plt"))
    assert list(evaluation.results) == ["dictionary", "random", "per_layer"]
    for result in evaluation.results.values():
        assert result.replacement is not None
        assert 0 <= result.graphs[0].replacement <= 1
    assert [len(result.graphs) for result in evaluation.results.values()] == [2, 1, 2]
    own, random = (evaluation.results[name].graphs[0].replacement for name in ("dictionary", "random"))
    assert evaluation.differences["random"]["replacement"].value == pytest.approx(own - random)
    card = model_card(evaluation)
    assert "means over 2 prompts" in card
    assert "all features; of the random dictionary the first 1." in card
    row = next(line for line in card.splitlines() if line.startswith("| [3, 9, 5]"))
    assert row.split(" | ")[4:7] == ["–", "–", "–"]
    assert list(evaluation.ablations) == ["zero", "mean"]
