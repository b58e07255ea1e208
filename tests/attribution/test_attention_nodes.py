"""Dictionaries of attention outputs as nodes: equal to autograd on the model, their rows add up, edges are effects."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import pytest
import torch

from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.attribution.reference import FrozenModel, reference_graph
from tests.support.attention_cases import KINDS, with_attention
from tests.support.tracing_cases import IDS, Case, assert_equal, assert_same_graph, one_each, rotation

TURNS = [(case, kind) for case, kind in zip(one_each(), cycle(KINDS), strict=False)]
HOW: dict[str, Any] = {
    "all layers": {},
    "the middle layer": {"layers": (1,)},
    "topk": {"activation": "topk"},
    "some, jump_relu": {"layers": (0, 2), "activation": "jump_relu"},
}


def possible(case: Case, kind: str) -> bool:
    """OLMo 2 has no norm before its attention, which Lorsa reads behind."""
    return not (case.architecture == "olmo2" and kind == "lorsa")


@pytest.mark.parametrize(
    ("case", "kind"), [(case, kind) for case, kind in TURNS if possible(case, kind)], ids=lambda given: str(given)
)
def test_graphs_equal_the_reference(case: Case, kind: str) -> None:
    model = with_attention(case, kind)
    graph = attribute(IDS, model, max_n_logits=3)
    assert_same_graph(graph, reference_graph(model, IDS, max_n_logits=3))
    assert graph.residual is not None and graph.residual < 1e-10
    assert (graph.nodes.feature[: graph.nodes.layout.n_features] >= graph.parts[-1].first).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
def test_graphs_of_every_kind_equal_the_reference(kind: str, how: dict[str, Any]) -> None:
    model = with_attention(Case("gemma2", "clt", True), kind, **how)
    for budget in (None, 20):
        graph = attribute(IDS, model, max_n_logits=3, max_feature_nodes=budget)
        assert_same_graph(graph, reference_graph(model, IDS, max_n_logits=3, max_feature_nodes=budget))


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
    for node in [0, *of_attention[:: max(1, len(of_attention) // 3)].tolist()]:
        value = 2 * float(graph.activation_values[graph.selected_features[node]])
        with model.zero_softcap():
            logits, changed = model.feature_intervention(IDS, [(*rows[node].tolist(), value)], **options)
        assert clean is not None and changed is not None
        assert_equal((changed - clean)[tuple(rows.T)], matrix[:n, node])
        change = (logits - clean_logits)[0, -1]
        assert_equal((change - change.mean())[graph.logit_token_ids], matrix[-3:, node])
