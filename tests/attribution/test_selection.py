"""The selected features are those of the definition, whatever the budget."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.attribution.expansion import compute_rows
from circuit_tracer.attribution.finished_rows import FinishedRows
from circuit_tracer.attribution.reference import reference_graph
from circuit_tracer.attribution.reference_dense import (
    ReferenceGraph,
    influence_through,
    keep_features,
    select_features,
)
from circuit_tracer.attribution.selection import select
from circuit_tracer.attribution.sweep import EdgeBlock
from circuit_tracer.attribution.targets import Aim, CustomTarget, resolve_targets
from circuit_tracer.attribution.task import Options
from circuit_tracer.attribution.trace import begin, encode, make_linear, plan_for
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.scores import graph_scores
from tests.support.tracing_cases import IDS, Case, assert_same_graph, build, one_each

each_case = pytest.mark.parametrize("case", one_each(), ids=str)
LAYERED = Case("llama", "clt", True, "mlp.hook_in")


@pytest.mark.few
@pytest.mark.parametrize("case", one_each(), ids=str)
def test_selection_equals_its_definition_on_dense_matrices(case: Case) -> None:
    model = build(case)
    whole = reference_graph(model, IDS, max_n_logits=3)
    n = len(whole.active)
    for budget in {1, 2, 5, 17, n // 2, n - 2, n - 1}:
        found = attribute(IDS, model, max_n_logits=3, max_feature_nodes=budget)
        assert len(found.selected_features) == budget
        assert_same_graph(found, keep_features(whole, select_features(whole, budget)))


@pytest.mark.few
@pytest.mark.parametrize(("case", "more"), list(product(one_each(), (None, 0, "N", "N+5"))), ids=str)
def test_no_budget_or_a_large_one_keeps_all_active_features(case: Case, more: int | str | None) -> None:
    model = build(case)
    n = len(attribute(IDS, model).active_features)
    budget = {"N": n, "N+5": n + 5}.get(str(more), more)
    graph = attribute(IDS, model, max_feature_nodes=budget)  # type: ignore[arg-type]
    assert torch.equal(graph.selected_features, torch.arange(n))
    assert graph.balance is not None
    assert float(graph.balance.unselected_mass.abs().max()) <= 1e-12


@pytest.mark.few
@each_case
def test_sets_above_a_threshold_are_nested_and_hold_themselves_up(case: Case) -> None:
    model = build(case)
    task = begin(model, IDS, [0], Aim(max_n_logits=3), Options(batch_size=64))
    encoded = encode(task)
    prompt, plan = make_linear(task, encoded, plan_for(task, encoded))
    targets = resolve_targets(model, prompt.network, task.aim)
    store, weight = compute_rows(task, prompt, targets, plan).store, targets.table.weight
    influence = store.influence(weight)
    previous = torch.zeros_like(store.expanded)
    for threshold in torch.linspace(float(influence.max()), 0, 9).tolist():
        members = store.influence(weight, threshold) >= threshold
        assert (members | ~previous).all()
        previous = members
    assert previous.all()


@pytest.mark.few
@pytest.mark.parametrize("budget", [1, 3, 10, 30])
def test_every_feature_that_is_kept_matters_more_than_those_that_are_not(budget: int) -> None:
    model = build(LAYERED)
    whole = reference_graph(model, IDS)
    graph = attribute(IDS, model, max_feature_nodes=budget)
    kept = torch.zeros(len(whole.active), dtype=torch.bool)
    kept[graph.selected_features] = True
    influence = influence_through(whole, kept)
    # what a feature passes on through kept ones cannot fall when more are kept, so only fill-ups may lie below others
    assert float(influence[kept].max()) >= float(influence[~kept].max())
    assert float(influence[kept].sum()) >= 0.5 * float(torch.topk(influence, budget).values.sum())


def test_more_feature_nodes_leave_less_mass_unexplained() -> None:
    model = build(LAYERED)
    left = []
    for budget in (5, 20, 60, None):
        graph = attribute(IDS, model, max_feature_nodes=budget, max_n_logits=2)
        assert graph.balance is not None
        left.append(float(graph.balance.unselected_mass[graph.nodes.layout.targets].sum()))
    assert left == sorted(left, reverse=True)
    assert left[-1] <= 1e-12


def test_signed_targets_select_and_score_by_the_size_of_their_weights() -> None:
    model = build(LAYERED)
    vector = torch.randn(16, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    other = torch.randn(16, generator=torch.Generator().manual_seed(6), dtype=torch.float64)

    def graph_of(first: float, second: float) -> Graph:
        targets = [CustomTarget("a", first, vector), CustomTarget("b", second, other)]
        return attribute(IDS, model, attribution_targets=targets, max_feature_nodes=12)

    signed, plain = graph_of(1.0, -1.0), graph_of(1.0, 1.0)
    assert torch.equal(signed.selected_features, plain.selected_features)
    assert torch.equal(signed.adjacency_matrix, plain.adjacency_matrix)
    scores = graph_scores(signed)
    assert scores == graph_scores(plain)
    assert 0 < scores.replacement < 1
    assert 0 < scores.completeness < 1
    assert not torch.equal(graph_of(1.0, -0.001).selected_features, graph_of(0.001, -1.0).selected_features)


def random_graph(seed: int, counts: list[int], tail: float) -> ReferenceGraph:
    """A layered graph with one position; `tail` makes few edges carry most of the mass, so that what passes it matters."""
    generator = torch.Generator().manual_seed(seed)
    layer = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    n, n_errors, n_targets = len(layer), len(counts), 2
    size = n + n_errors + 1 + n_targets
    level = torch.cat([layer, torch.arange(n_errors), torch.tensor([-1]), torch.full((n_targets,), n_errors)])
    edges = torch.rand(size, size, generator=generator, dtype=torch.float64) ** tail
    edges *= level[:, None] > level[None, :]
    edges[n : n + n_errors + 1] = 0
    active = torch.stack([layer, torch.zeros_like(layer), torch.arange(n)], dim=1)
    nothing = torch.zeros(size, dtype=torch.float64)
    weight = torch.tensor([0.7, 0.2], dtype=torch.float64)
    return ReferenceGraph(edges, nothing, nothing, nothing, active, nothing[:n], torch.arange(n), weight, n_errors, 1)


@pytest.mark.slow("takes 1.9 s")
@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    counts=st.lists(st.integers(1, 12), min_size=2, max_size=6),
    tail=st.sampled_from([1.0, 8.0, 30.0]),
    share=st.floats(0, 1),
)
def test_selection_equals_its_definition_on_random_layered_graphs(
    seed: int, counts: list[int], tail: float, share: float
) -> None:
    graph = random_graph(seed, counts, tail)
    layer, n, n_layers = graph.active[:, 0], len(graph.active), graph.n_layers
    store = FinishedRows(n_layers, 2, layer)
    computed: list[int] = []

    def add(rows: torch.Tensor, nodes: torch.Tensor, depth: torch.Tensor) -> None:
        order = torch.argsort(depth, descending=True, stable=True)
        edges = graph.adjacency[nodes[order], : n + n_layers + 1].contiguous()
        store.add(store.finished(EdgeBlock(rows[order], depth[order], 1, n, edges), rows[order]))

    def expand(columns: torch.Tensor) -> None:
        computed.extend(columns.tolist())
        add(2 + columns, columns, layer[columns])

    targets = torch.arange(2)
    add(targets, n + n_layers + 1 + targets, torch.full((2,), n_layers))
    budget = max(1, round(share * (n - 1)))
    assert torch.equal(select(store, graph.weight, budget, expand), select_features(graph, budget))
    assert len(set(computed)) == len(computed)
