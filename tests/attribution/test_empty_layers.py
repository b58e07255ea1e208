"""A layer to which no active feature writes is a layer like any other, however decoder rows are read."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch

from circuit_tracer.attribution import trace
from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.attribution.plan import MemoryPlan
from circuit_tracer.attribution.reference import reference_graph
from circuit_tracer.errors import ResourceError
from circuit_tracer.replacement_model import ReplacementModel
from tests.support.tiny import tiny_model, tiny_transcoder
from tests.support.tracing_cases import IDS, assert_same_graph


def silenced(kind: str, layers: list[int]) -> ReplacementModel:
    transcoders = tiny_transcoder(kind[:3], skip="skip" in kind)
    for layer in layers:
        transcoders.encoder_bias(layer).fill_(-100.0)
    return ReplacementModel.from_model(tiny_model("llama"), transcoders, None, "llama")


@pytest.mark.few
@pytest.mark.parametrize(
    ("kind", "silent", "offload"),
    list(product(("plt", "plt-skip", "clt"), ([1], [0, 2]), (None, "cpu", "disk"))),
    ids=str,
)
def test_layers_without_active_features(kind: str, silent: list[int], offload: Any) -> None:
    model = silenced(kind, silent)
    graph = attribute(IDS, model, offload=offload)
    assert set(graph.active_features[:, 0].tolist()) == {0, 1, 2} - set(silent)
    assert_same_graph(graph, reference_graph(model, IDS))


def test_positions_without_active_features() -> None:
    model = silenced("plt", [0, 1])
    model.transcoders.encoder_bias(2).sub_(1.0)
    graph = attribute(IDS, model, offload="disk")
    assert 0 < len(set(graph.active_features[:, 1].tolist())) < len(IDS) - 1
    assert_same_graph(graph, reference_graph(model, IDS))


def test_plans_that_read_rows_again(monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[MemoryPlan] = []
    plan = trace.plan_memory
    monkeypatch.setattr(trace, "held_bytes", lambda device: 0)
    monkeypatch.setattr(trace, "plan_memory", lambda *sizes: plans.append(plan(*sizes)) or plans[-1])
    model = silenced("plt", [1])
    expected = attribute(IDS, model)
    memory = plans[0].peak
    while plans[-1].keep_decoder_rows:
        memory = memory * 9 // 10
        try:
            found = attribute(IDS, model, memory=memory)
        except ResourceError:
            pytest.fail("no plan reads rows again")
    assert torch.allclose(found.adjacency_matrix, expected.adjacency_matrix, atol=1e-12)
