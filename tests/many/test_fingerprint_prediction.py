"""Prediction from fingerprints: what is planted is found, what is not gets .5, nothing leaks; and the baselines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.classify.folds import auc_within, group_draws, grouped_folds, interval, outside
from circuit_tracer.classify.linear import Linear
from circuit_tracer.errors import InputError
from circuit_tracer.many.fingerprints import Evidence, Matrix, gather, names, predict
from circuit_tracer.many.fingerprints.classifiers import Probe, Trees
from circuit_tracer.many.fingerprints.random_graphs import with_random_dictionary
from circuit_tracer.many.fingerprints.readings import logit_statistics, read_model
from circuit_tracer.models.parts import bind
from tests.support.tiny import tiny_model, tiny_transcoder

ROWS, GROUPS, PLACES, WIDTH = 160, 40, 3, 6


def drawn(seed: int = 0) -> tuple[Evidence, dict[str, bool], dict[str, str]]:
    """Evidence of noise, labels of noise that rows of a group share by half, and groups."""
    chance = np.random.default_rng(seed)
    ids = [f"row {number}" for number in range(ROWS)]
    group = chance.integers(0, GROUPS, ROWS)
    label = (chance.random(GROUPS)[group] + chance.random(ROWS)) > 1

    def table(columns: list[str]) -> Matrix:
        return Matrix(ids, columns, chance.standard_normal((ROWS, len(columns))))

    evidence = Evidence(table(names(2)), table(["entropy", "gap"]), table(names(2)), np.zeros((ROWS, PLACES, WIDTH)))
    evidence = replace(evidence, stream=chance.standard_normal((ROWS, PLACES, WIDTH)))
    by_id = zip(ids, label.tolist(), group.tolist(), strict=True)
    rows = [(one, said, f"group {number}") for one, said, number in by_id]
    return evidence, {one: said for one, said, _ in rows}, {one: number for one, _, number in rows}


def planted(evidence: Evidence, labels: Mapping[str, bool]) -> Evidence:
    """The label, with noise, in two numbers of the fingerprint, and less of it in the last place of the stream."""
    said = np.array(list(labels.values())).astype(float)
    values, stream = evidence.fingerprints.values.copy(), evidence.stream.copy()
    for name in ("node.influence_max", "topology.density"):
        values[:, evidence.fingerprints.names.index(name)] += 2 * said
    stream[:, 2, 4] += 1.5 * said
    return replace(evidence, fingerprints=replace(evidence.fingerprints, values=values), stream=stream)


@pytest.mark.slow("takes 2.8 s")
def test_what_is_planted_is_found_by_whom_it_is_planted_for() -> None:
    evidence, labels, groups = drawn()
    found = predict(planted(evidence, labels), labels, groups, folds=3, draws=300)
    assert (found.rows, found.groups, found.positive) == (ROWS, len(set(groups.values())), "True")
    assert found.positives == sum(labels.values())
    assert found["fingerprint"].low > 0.8
    assert found["linear probe"].low > 0.6
    assert set(found.places) == {2}
    for name in ("logits alone", "logits alone, linear", "random dictionary"):
        assert found[name].low < 0.5
        assert found[name].ahead_low > 0.1
        assert found[name].ahead == pytest.approx(found["fingerprint"].auc - found[name].auc)
    assert found["fingerprint without node"].ahead_low > 0
    assert found["fingerprint without logits"].ahead == pytest.approx(0, abs=0.05)
    assert found.out_of_fold["fingerprint"].keys() == labels.keys()
    assert len(found.lines()) == 3 + len(found.scores)


@pytest.mark.slow("takes 1.5 s")
def test_permuted_labels_are_at_one_half_and_rows_without_one_are_left_out() -> None:
    evidence, labels, groups = drawn()
    evidence = planted(evidence, labels)
    permuted = np.random.default_rng(5).permutation(list(labels.values()))
    texts = {one: "wrong" if said else "right" for one, said in zip(labels, permuted, strict=True)}
    del texts["row 3"]
    found = predict(evidence, texts, groups, positive="wrong", folds=2, draws=300)
    assert [each.name for each in found.scores if not each.low <= 0.5 <= each.high] == []
    assert (found.rows, found.without_label, found.positive) == (ROWS - 1, 1, "wrong")
    assert "row 3" not in found.out_of_fold["fingerprint"]


@pytest.mark.parametrize(
    ("labels", "groups", "options", "said"),
    [
        pytest.param(lambda one: "a" if int(one[4:]) % 2 else "b", None, {}, "say which of them", id="which value"),
        pytest.param(lambda one: True, None, {}, "there must be two values", id="one value"),
        pytest.param(lambda one: None, None, {}, "there must be two values", id="no label"),
        pytest.param(lambda one: int(one[4:]) % 2, None, {"positive": "2"}, r"positive: '2'", id="unknown value"),
        pytest.param(lambda one: int(one[4:]) % 2, {}, {}, "160 of 160 rows with a label have no group", id="groups"),
        pytest.param(lambda one: int(one == "row 7"), None, {}, "1 positive rows in 1 groups", id="few positives"),
        pytest.param(lambda one: int(one[4:]) % 2, None, {"folds": 1}, "folds is 1", id="folds"),
    ],
)
def test_labels_that_cannot_be_predicted_are_refused(
    labels: Any, groups: Any, options: dict[str, Any], said: str
) -> None:
    evidence, *_ = drawn()
    with pytest.raises(InputError, match=said):
        predict(evidence, {one: labels(one) for one in evidence.ids}, groups, **options)


def test_evidence_of_other_rows_is_refused() -> None:
    evidence, *_ = drawn()
    with pytest.raises(InputError, match="rows of random are not those"):
        replace(evidence, random=replace(evidence.random, ids=evidence.ids[::-1]))


def test_folds_keep_groups_whole_and_have_both_labels() -> None:
    _, labels, groups = drawn()
    positive, group = np.array(list(labels.values())), np.array(list(groups.values()))
    fold = grouped_folds(positive, group, 4, 0)
    assert all(len(set(fold[group == one])) == 1 for one in set(group))
    assert all(0 < positive[fold == one].mean() < 1 for one in range(4))
    train, test = outside(fold, 2)
    assert not set(group[train]) & set(group[test])
    assert len(train) + len(test) == ROWS


def test_auc_is_that_of_pairs_within_a_fold() -> None:
    """Against a loop over pairs, with ties and weights; and with one fold, sklearn's."""
    from sklearn.metrics import roc_auc_score  # a second, which only the worker with this file need wait

    chance = np.random.default_rng(1)
    score, positive, fold = chance.integers(0, 6, 40) / 2, chance.random(40) < 0.4, chance.integers(0, 3, 40)
    weight = np.stack([np.ones(40), chance.integers(0, 3, 40).astype(float)])
    for row, found in enumerate(auc_within(score, positive, fold, weight)):
        pairs = [
            (weight[row, i] * weight[row, j], (score[i] > score[j]) + (score[i] == score[j]) / 2)
            for i in np.flatnonzero(positive)
            for j in np.flatnonzero(~positive)
            if fold[i] == fold[j]
        ]
        assert found == pytest.approx(sum(size * right for size, right in pairs) / sum(size for size, _ in pairs))
    one = auc_within(score, positive, np.zeros(40), weight[:1])
    assert one[0] == pytest.approx(roc_auc_score(positive, score))
    assert np.isnan(auc_within(score, np.ones(40, dtype=bool), fold, weight[:1])[0])


def test_draws_are_of_whole_groups() -> None:
    group = np.array(["a", "b", "a", "c", "c"])
    draws = group_draws(group, 500, 0)
    assert draws.shape == (501, 5)
    assert draws[0].tolist() == [1] * 5
    assert (draws[:, 0] == draws[:, 2]).all()
    assert (draws[:, [0, 1, 3]].sum(1) == 3).all()
    assert (draws[1:, 0].min(), draws[1:, 0].max()) == (0, 3)


def test_intervals_are_quantiles_stretched_about_the_value() -> None:
    draws = np.concatenate([[0.75], np.linspace(0.6, 0.8, 1001)])
    stretch = 1.5  # 1 + 5/4 = 2.25
    assert interval(draws, 5) == pytest.approx((0.75 - stretch * 0.145, 0.75 + stretch * 0.045))


@pytest.mark.parametrize("kind", ["trees", "linear", "probe"])
def test_labels_and_other_rows_to_score_change_no_score(kind: str) -> None:
    """Nothing of the rows to score is learned from: their labels turned, and the rest of them made large."""
    evidence, labels, groups = drawn()
    evidence = planted(evidence, labels)
    positive, group = np.array(list(labels.values())), np.array(list(groups.values()))
    train, test = outside(grouped_folds(positive, group, 4, 0), 1)

    def scores(turned: bool) -> Any:
        said, values, stream = positive.copy(), evidence.fingerprints.values.copy(), evidence.stream.copy()
        if turned:
            said[test] = ~said[test]
            values[test[1:]] *= 100
            stream[test[1:]] *= 100
        if kind == "trees":
            return Trees(values, said, 0)(train, test)[0]
        return (
            Linear(values, said, 0.1)(train, test)[0]
            if kind == "linear"
            else Probe(stream, said, group, 0)(train, test)[0]
        )

    assert scores(turned=True) == pytest.approx(scores(turned=False), rel=1e-9)


def test_logit_statistics_are_what_they_are_called() -> None:
    logits = torch.tensor([2.0, 0.0, 1.0, -3.0, 0.5, 0.25], dtype=torch.float64)
    share = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum()
    ranked = np.sort(share)[::-1]
    assert logit_statistics(logits) == pytest.approx(
        {
            "probability": ranked[0],
            "margin": ranked[0] - ranked[1],
            "first_five": ranked[:5].sum(),
            "entropy": -(share * np.log(share)).sum(),
            "logit": 2.0,
            "gap": 1.0,
            "energy": np.log(np.exp(logits.numpy()).sum()),
            "spread": logits.numpy().std(ddof=1),
        }
    )


@pytest.fixture(scope="module")
def model() -> Traceable:
    return Traceable(bind(tiny_model("llama"), "tiny"), tiny_transcoder(), None)


def test_the_stream_and_the_logits_are_the_models(model: Traceable) -> None:
    ids = torch.tensor([1, 5, 9, 30])
    found = read_model(model.parts, ids, 2)
    theirs = model.parts.model(input_ids=ids[None], output_hidden_states=True)
    assert found.logits == pytest.approx(logit_statistics(theirs.logits[0, 2]), rel=1e-6)
    places = torch.stack([state[0, 2] for state in theirs.hidden_states[:-1]])
    assert found.stream[:-1] == pytest.approx(places.float().numpy(), rel=1e-6)
    normed = model.parts.model.model.norm(torch.tensor(found.stream[-1]).double())
    assert normed.numpy() == pytest.approx(theirs.hidden_states[-1][0, 2].detach().numpy(), rel=1e-5)


def test_evidence_has_a_row_a_graph_and_a_random_dictionary_as_active_as_the_real_one(model: Traceable) -> None:
    prompts = {f"p{number}": torch.tensor([1, 5 + number, 9, 30, 3 + number]) for number in range(4)}
    graphs = [(one, attribute(ids, model)) for one, ids in prompts.items()]
    seen: list[tuple[str, int]] = []
    found = gather(graphs, model, progress=lambda stage, done: seen.append((stage, done)))
    assert found.ids == found.random.ids == found.logits.ids == list(prompts)
    assert found.stream.shape == (4, 4, 16)
    assert seen[-1] == ("graphs with a random dictionary", 4)
    active = [
        matrix.values[:, matrix.names.index("global.active")].sum() for matrix in (found.fingerprints, found.random)
    ]
    assert active[0] == active[1]
    made_up = with_random_dictionary(model, prompts)
    again = attribute(prompts["p0"], made_up)
    assert len(again.active_features) == found.random.values[0, found.random.names.index("global.active")]
    assert made_up.transcoders.n_features(0) == model.transcoders.n_features(0)
