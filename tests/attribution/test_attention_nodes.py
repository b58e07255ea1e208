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
