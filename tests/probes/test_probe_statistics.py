"""Rules and thresholds against naive statements; what is planted is found, what is not is at one half."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from circuit_tracer.classify.folds import group_draws
from circuit_tracer.classify.linear import logistic, mean_difference
from circuit_tracer.errors import InputError
from circuit_tracer.probes.compare import Split, measure, split_of
from circuit_tracer.probes.evaluate import (
    alarm,
    at_rate,
    best_threshold,
    by_text,
    f1,
    lowest_alarm,
    rows_within,
    span_hits,
)
from circuit_tracer.probes.examples import Example
from circuit_tracer.probes.learn import MOST_ROWS, learn, sampled
from circuit_tracer.probes.reading import Tokens
from circuit_tracer.probes.table import Table

CHANCE = np.random.default_rng(0)
SCORES = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=40)
RATES = st.sampled_from([0.01, 0.1, 0.25, 0.5])


def columns() -> tuple[Any, Any]:
    values = CHANCE.normal(size=(80, 6)) * [1, 10, 0.1, 3, 1, 0] + [0, 5, 0, -2, 0, 4]
    return values, values[:, 0] + values[:, 1] / 10 + CHANCE.normal(size=80) > 0.5


# ---- rules


@pytest.mark.parametrize("penalty", ["l2", "l1"])
def test_logistic_regression_folds_its_scaling_in(penalty: Any) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    values, positive = columns()
    how: dict[str, Any] = {} if penalty == "l2" else {"l1_ratio": 1.0, "solver": "liblinear", "random_state": 0}
    naive = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=200, class_weight="balanced", **how))
    naive.fit(values, positive)
    rule = logistic(values, positive, 0.1, penalty)
    np.testing.assert_allclose(rule.scores(values), naive.decision_function(values), rtol=1e-6, atol=1e-6)
    assert rule.weight[5] == 0  # it never varies


def test_sparse_rows_are_scaled_and_not_centred() -> None:
    from sklearn.linear_model import LogisticRegression

    values, positive = columns()
    values[values < 0.5] = 0
    rule = logistic(csr_array(values), positive, 0.1)
    std = values.std(0)
    scaled = values / np.where(std > 0, std, np.inf)
    naive = LogisticRegression(C=0.1, max_iter=200, class_weight="balanced").fit(scaled, positive)
    np.testing.assert_allclose(rule.scores(values), naive.decision_function(scaled), rtol=1e-5, atol=1e-5)


def test_the_difference_of_means_is_half_way() -> None:
    values, positive = columns()
    for given_ in (values, csr_array(values)):
        rule = mean_difference(given_, positive)
        up, down = values[positive].mean(0), values[~positive].mean(0)
        np.testing.assert_allclose(rule.weight, up - down, atol=1e-12)
        assert rule.scores((up + down)[None] / 2)[0] == pytest.approx(0, abs=1e-9)


def test_of_many_rows_positive_ones_stay_up_to_half() -> None:
    rows, positive = np.arange(3 * MOST_ROWS), np.arange(3 * MOST_ROWS) % 30 == 0
    chosen = sampled(rows, positive, 0)
    assert len(chosen) == MOST_ROWS
    assert positive[chosen].sum() == positive.sum()
    assert sampled(rows, ~positive, 0).size == MOST_ROWS
    assert (~positive)[sampled(rows, ~positive, 0)].sum() == MOST_ROWS - positive.sum()


def test_a_strength_is_chosen_inside_and_one_group_takes_the_middle() -> None:
    values, positive = columns()
    assert learn(values, positive, np.zeros(80, int), np.arange(80), "l2", 0)[1] == 1e-2
    assert learn(values, positive, np.arange(80), np.arange(80), "mean", 0)[1] is None


# ---- thresholds


@given(SCORES, RATES)
@settings(max_examples=60, deadline=None)
def test_thresholds_are_honest(scores: list[float], rate: float) -> None:
    """Of n + 1 scores in any order, at most k lie above the threshold that the n others set."""
    above = 0
    for number, score in enumerate(scores):
        others = np.array(scores[:number] + scores[number + 1 :])
        found = alarm(others, rate) if len(others) else None
        if found is None:
            assert len(others) + 1 < 1 / rate + 1e-6
            return
        assert found.rate <= rate + 1e-9
        assert (others > found.threshold).mean() <= rate
        above += score > found.threshold
    assert above <= rate * len(scores) + 1e-9


@given(SCORES)
@settings(max_examples=30, deadline=None)
def test_a_rate_that_cannot_be_set_gives_the_lowest_that_can(scores: list[float]) -> None:
    found = lowest_alarm(np.array(scores), 1e-6)
    assert max(scores) <= found.threshold < max(scores) + 1e-3
    assert found.rate == 1 / (len(scores) + 1)


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=25))
@settings(max_examples=60, deadline=None)
def test_the_best_threshold_is_the_best_of_all(rows: list[tuple[int, bool]]) -> None:
    score, positive = np.array([float(each) for each, _ in rows]), np.array([said for _, said in rows])

    def reached(threshold: float) -> float:
        fires = score > threshold
        right = int((fires & positive).sum())
        return f1(int(fires.sum()), int(positive.sum()), right, right)

    most = max(reached(threshold) for threshold in [*(score - 0.5), score.max() + 1])
    if positive.any():
        assert reached(best_threshold(score, positive)) == pytest.approx(most)


def test_too_few_negatives_are_not_measured() -> None:
    score, positive, fold = np.arange(20.0), np.arange(20) > 9, np.arange(20) % 2
    few = at_rate(0.01, score, positive, fold, [np.zeros(98)] * 2, np.ones((3, 20)))
    enough = at_rate(0.01, score, positive, fold, [np.arange(99.0) / 99 + 11] * 2, np.ones((3, 20)))
    assert (few.measured, few.negatives) == (False, 98)
    assert np.isnan(few.recall.value)
    assert enough.measured
    assert enough.recall.value == pytest.approx(0.8)  # 12 to 19 lie above 11.99
    assert enough.false.value == 0


# ---- spans


def naive_hits(fires: list[bool], spans: list[set[int]]) -> tuple[int, int, int, int]:
    runs: list[set[int]] = []
    for at, fired in enumerate(fires):
        if fired and at and fires[at - 1]:
            runs[-1].add(at)
        elif fired:
            runs.append({at})
    return (
        len(runs),
        len(spans),
        sum(any(r & s for s in spans) for r in runs),
        sum(any(r & s for r in runs) for s in spans),
    )


@given(
    st.lists(st.booleans(), min_size=1, max_size=12),
    st.lists(st.tuples(st.integers(0, 11), st.integers(1, 4)), max_size=3),
)
@settings(max_examples=60, deadline=None)
def test_spans_are_hit_by_runs_that_touch_them(fires: list[bool], places: list[tuple[int, int]]) -> None:
    spans = [set(range(at, min(at + size, len(fires)))) for at, size in places if at < len(fires)]
    inside = [np.isin(np.arange(len(fires)), list(span)) for span in spans]
    assert span_hits(np.array(fires), inside, np.arange(1, len(fires) + 1)) == naive_hits(fires, spans)


def test_a_gap_of_tokens_that_are_not_read_ends_a_run() -> None:
    assert span_hits(np.array([True, True, True]), [], np.array([1, 2, 4]))[0] == 2


# ---- the protocol


def made(n_groups: int = 24, planted: float = 2.0, tokens: int = 1, seed: int = 0) -> Table:
    """Texts of noise, four a group; where labelled, planted in one column of the stream."""
    chance = np.random.default_rng(seed)
    n_texts = 4 * n_groups
    label = chance.random(n_texts) < 0.5
    ids = torch.arange(tokens + 1)
    at = np.arange(tokens + 1)
    text = Tokens("x" * (tokens + 1), ids, at, at + 1, at > 0)
    spans = [((2, 3),) if said else () for said in label]
    examples = [
        Example("x", label=bool(said), spans=span if tokens > 1 else None, group=str(number // 4))
        for number, (said, span) in enumerate(zip(label, spans, strict=True))
    ]
    number = np.repeat(np.arange(n_texts), tokens)
    position = np.tile(at[1:], n_texts) if tokens > 1 else np.full(n_texts, -1)
    positive = label[number] & (position == 2) if tokens > 1 else label
    stream = chance.standard_normal((len(number), 5)).astype(np.float32)
    noise = csr_array(np.maximum(chance.standard_normal((len(number), 7)), 0))
    stream[:, 3] += planted * positive
    found = {"stream": stream, "features": noise}
    return Table(
        [text] * n_texts, examples, positive, number, position, found, {"reading": 0.0}, ((0, 7),), stream.mean(0)
    )


def test_what_is_planted_is_found_where_it_is_planted() -> None:
    table = made()
    split = split_of(table, len(table.texts), 4, 0)
    stream, features = (measure(table, split, kind, "l2", 200, 0) for kind in ("stream", "features"))
    assert stream.auc.low > 0.7
    assert features.auc.low < 0.5 < features.auc.high
    assert (stream.texts, stream.f1, stream.f1_spans) == (None, None, None)


@pytest.mark.parametrize("method", ["l2", "l1", "mean"])
def test_permuted_labels_are_at_one_half(method: Any) -> None:
    table = made(planted=0.0, seed=3)
    split = split_of(table, len(table.texts), 3, 0)
    found = measure(table, split, "stream", method, 200, 0)
    assert found.auc.low <= 0.5 <= found.auc.high


def test_tokens_are_measured_as_tokens_texts_and_spans() -> None:
    table = made(planted=30.0, tokens=5)
    found = measure(table, split_of(table, len(table.texts), 4, 0), "stream", "mean", 50, 0)
    assert found.auc.value == 1
    assert found.texts_auc is not None
    assert found.texts_auc.value == 1
    assert found.f1 == found.f1_spans == 1
    assert found.to_json()["at"][1] == {
        "rate": 0.001,
        "measured": False,
        "negatives": found.at[1].negatives,
        **{name: [None, None, None] for name in ("recall", "false")},
    }
    assert [each.measured for each in found.at] == [True, False]
    assert found.at[0].recall.value == 1


def test_no_group_is_learned_from_and_tested_on_and_extra_negatives_only_set_thresholds() -> None:
    table = made()
    split = split_of(table, len(table.texts) - 8, 3, 0)
    assert set(split.fold[-8:]) == {-1}
    assert split.extra.tolist() == list(range(len(table.texts) - 8, len(table.texts)))
    seen: list[int] = []
    for number in range(3):
        parts = [set(table.group[rows].tolist()) for rows in split.parts(number)]
        assert len(set.union(*parts)) == sum(map(len, parts))
        seen += split.parts(number)[2].tolist()
    assert sorted(seen) == list(range(len(table.texts) - 8))


def test_one_class_or_one_group_cannot_be_split() -> None:
    table = made()
    one = Table(**{**vars(table), "positive": np.ones(len(table.positive), bool)})
    with pytest.raises(InputError, match="0 negative rows in 0 groups"):
        split_of(one, len(one.texts), 3, 0)
    same = [Example("x", label=each.label, group="g") for each in table.examples]
    with pytest.raises(InputError, match="in 1 groups; 3 folds need that many"):
        split_of(Table(**{**vars(table), "examples": same}), len(same), 3, 0)


def test_texts_by_their_highest_row_and_features_by_layer() -> None:
    assert by_text(np.array([1.0, 3, 2]), np.array([0, 0, 2]), 3).tolist() == [3, -np.inf, 2]
    table = Table(**{**vars(made()), "layers": ((1, 3), (4, 2))})
    assert [table.feature(column) for column in range(5)] == [(1, 0), (1, 1), (1, 2), (4, 0), (4, 1)]
    assert rows_within(table.texts[0], [(1, 2)], np.array([1]))[0].tolist() == [True]
    assert Split(np.array([0, 1]), 2).parts(0)[0].tolist() == []
    assert group_draws(table.group, 2, 0).shape == (3, len(table.text))
