"""Quantiles, intervals, AUC, tests and families against their definitions."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from circuit_tracer.classify.intervals import resampled, wilson
from circuit_tracer.many.aggregate.families import find_families, silhouette, weighted_jaccard
from circuit_tracer.many.aggregate.incidence import Incidence
from circuit_tracer.many.aggregate.labels import auc, benjamini_hochberg, mann_whitney, separating
from circuit_tracer.many.aggregate.statistics import bootstrap_means, quantile
from tests.support.aggregate_cases import slow_auc


def incidence(values: np.ndarray) -> Incidence:
    """Of a dense matrix (G, U); zeros are absent."""
    graph, item = values.nonzero()
    order = np.lexsort((graph, item))
    graph, item = graph[order], item[order]
    start = np.concatenate([[0], np.cumsum(np.bincount(item, minlength=values.shape[1]))])
    entries, counts = values[graph, item], np.diff(start)[:, None]
    return Incidence(len(values), start, graph, abs(entries), entries, abs(entries), np.ones(len(item)), counts)


def sparse_values(seed: int, n_graphs: int, n_items: int, density: float = 0.5) -> np.ndarray:
    """Signed, with ties."""
    rng = np.random.default_rng(seed)
    values = np.round(rng.normal(size=(n_graphs, n_items)), 1)
    return values * (rng.random(values.shape) < density)


def test_quantiles_are_numpys_of_the_entries_that_there_are() -> None:
    values = abs(sparse_values(0, 9, 30, 0.3))
    found = quantile(incidence(values), incidence(values).influence, 0.4)
    for column, got in zip(values.T, found, strict=True):
        there = column[column > 0]
        assert got == pytest.approx(np.quantile(there, 0.4)) if len(there) else np.isnan(got)


def test_bootstrap_intervals_are_those_of_means_over_drawn_graphs() -> None:
    values = abs(sparse_values(1, 7, 12, 0.35))
    items = np.where(values.any(0))[0]
    low, high = bootstrap_means(incidence(values), items, 200, seed=3)
    draws = resampled(7, 200, seed=3)
    assert (draws.sum(1) == 7).all()
    for column, *got in zip(values[:, items].T, low, high, strict=True):
        means = [np.repeat(column, times.astype(int)).mean() for times in draws]
        assert got == pytest.approx(np.quantile(means, [0.025, 0.975]).tolist())
    assert (values[:, items] > 0).sum(0).min() == 1  # items of one graph take another way


def test_wilsons_interval_solves_its_equation() -> None:
    for count, total in ((0, 5), (3, 7), (7, 7)):
        for end in wilson(np.array([count]), total):
            gap = abs(count / total - end[0]) - 1.959963984540054 * np.sqrt(end[0] * (1 - end[0]) / total)
            assert gap == pytest.approx(0, abs=1e-9)


def test_auc_and_its_interval_over_all_pairs() -> None:
    values = sparse_values(2, 13, 20)
    inside, outside = values[:5], values[5:]
    area, low, high = auc(inside, outside)
    for column in range(20):
        x, y = inside[:, column], outside[:, column]
        assert area[column] == pytest.approx(slow_auc(x, y))
        by_inside = [slow_auc(np.array([each]), y) for each in x]
        by_outside = [slow_auc(x, np.array([each])) for each in y]
        half = 1.959963984540054 * np.sqrt(np.var(by_inside, ddof=1) / 5 + np.var(by_outside, ddof=1) / 8)
        assert low[column] == pytest.approx(max(0, area[column] - half))
        assert high[column] == pytest.approx(min(1, area[column] + half))


@pytest.mark.parametrize(("m", "n"), [(2, 2), (3, 40), (30, 30)])
def test_groups_that_do_not_overlap_have_an_interval_all_the_same(m: int, n: int) -> None:
    area, low, high = auc(np.ones((m, 1)) * [[1, -1]], np.zeros((n, 2)))
    assert area.tolist() == [1, 0]
    assert (high[0], low[1]) == (1, 0)
    assert low[0] == pytest.approx(1 - high[1])
    t, h = low[0], (m + n) / 2 - 1
    variance = t * (1 - t) * (1 + h * (1 - t) / (2 - t) + h * t / (1 + t)) / (m * n)  # Hanley and McNeil
    assert 1 - t == pytest.approx(1.959963984540054 * variance**0.5)


def test_mann_whitney_is_scipys_one_column_at_a_time_and_1_without_variation() -> None:
    from scipy.stats import mannwhitneyu

    values = sparse_values(3, 12, 8)
    values[:, 0] = 0
    p = mann_whitney(values[:5], values[5:])
    assert p[0] == 1
    for column in range(1, 8):
        assert p[column] == pytest.approx(
            mannwhitneyu(values[:5, column], values[5:, column], method="asymptotic").pvalue
        )


def test_benjamini_hochberg_by_its_definition() -> None:
    """The q of a test is the smallest rate at which the step-up procedure rejects it."""
    p = np.array([0.001, 0.2, 0.013, 0.9, 0.013, 0.04, 1.0])
    q = benjamini_hochberg(p)

    def rejected(rate: float) -> np.ndarray:
        ordered = np.sort(p)
        passes = np.where(ordered <= rate * np.arange(1, len(p) + 1) / len(p) + 1e-15)[0]
        return p <= ordered[passes.max()] if len(passes) else np.zeros(len(p), bool)

    for number, rate in enumerate(q):
        assert rejected(rate)[number]
        assert not rejected(rate - 1e-9)[number]


def test_permuted_labels_separate_nothing() -> None:
    """AUC .5 lies in about 95 % of the intervals, and hardly anything is found."""
    values = sparse_values(4, 60, 600)
    values[:30] += 3 * (values[:30] != 0)  # the halves differ; the labels do not know
    rng = np.random.default_rng(5)
    labels = dict(zip(map(str, range(60)), rng.permutation(["x", "y"] * 30).tolist(), strict=True))
    found = separating(incidence(values), list(labels), labels)
    inside = (found["auc_low"] <= 0.5) & (found["auc_high"] >= 0.5)
    assert 0.9 < inside.mean() < 0.99
    assert (found["q"] < 0.05).mean() < 0.01
    true = {id: "x" if int(id) < 30 else "y" for id in labels}
    assert (separating(incidence(values), list(true), true)["q"] < 0.05).mean() > 0.9


def test_what_few_graphs_have_is_not_tested_whatever_its_labels() -> None:
    values = np.zeros((200, 3))
    values[:3, 0] = values[:4, 1] = values[:100, 2] = 1
    labels = {str(graph): "x" if graph < 4 else "y" for graph in range(200)}
    found = separating(incidence(values), list(labels), labels)
    assert found["items"].tolist() == [1, 2, 1, 2]
    assert found["label"].tolist() == ["x", "x", "y", "y"]


def test_weighted_jaccard_of_all_pairs() -> None:
    values = abs(sparse_values(6, 6, 10))
    values[4:] = 0
    found = weighted_jaccard(incidence(values))
    for one in range(6):
        for other in range(6):
            larger = np.maximum(values[one], values[other]).sum()
            expected = np.minimum(values[one], values[other]).sum() / larger if larger else 1.0
            assert found[one, other] == pytest.approx(expected)


def planted(sizes: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Groups of graphs that share 10 features each, beside some of their own."""
    rng = np.random.default_rng(seed)
    values = np.zeros((sum(sizes), 10 * len(sizes) + 5))
    bounds = np.cumsum([0, *sizes])
    for group, (first, last) in enumerate(pairwise(bounds)):
        values[first:last, 10 * group : 10 * group + 10] = rng.random((last - first, 10)) + 0.5
    values[:, -5:] = 0.2 * rng.random((len(values), 5))
    return values


def test_planted_families_are_found_with_their_medoids() -> None:
    values = planted((4, 9, 6))
    found = find_families(incidence(values))
    assert found.family.tolist() == [2] * 4 + [0] * 9 + [1] * 6
    assert max(found.tried, key=found.tried.__getitem__) == 3
    for family, medoid in enumerate(found.medoid):
        mine = np.where(found.family == family)[0]
        sums = [found.distance[one, mine].sum() for one in mine]
        assert medoid == mine[int(np.argmin(sums))]
        assert found.members(family)[0] == medoid
    for graph in range(19):
        means = [
            found.distance[graph, found.family == other].mean() for other in range(3) if other != found.family[graph]
        ]
        mine = found.family == found.family[graph]
        own = found.distance[graph, mine].sum() / (mine.sum() - 1)
        assert found.silhouette[graph] == pytest.approx((min(means) - own) / max(min(means), own))


def test_many_families_of_many_graphs() -> None:
    found = find_families(incidence(planted((11,) * 70)))
    assert len(found) in found.tried
    assert 63 <= len(found) <= 73  # numbers between are not tried
    assert max(found.tried) <= 77


@pytest.mark.parametrize("n_graphs", [1, 2, 3, 12])
def test_graphs_without_structure_are_one_family(n_graphs: int) -> None:
    found = find_families(incidence(planted((n_graphs,))))
    assert len(found) == 1
    assert np.isnan(found.silhouette).all()
    assert sorted(found.order) == list(range(n_graphs))


def test_as_many_families_as_asked_for() -> None:
    values = planted((5, 5))
    assert [len(find_families(incidence(values), count)) for count in (1, 2, 7, 10)] == [1, 2, 7, 10]
    assert silhouette(np.ones((3, 3)), np.arange(3)).tolist() == [0, 0, 0]
