"""No graph with rows that do not add up passes without a word."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.errors import InputError, NumericalError
from circuit_tracer.graph.balance import PROMISED_RESIDUAL
from circuit_tracer.graph.graph import Graph
from tests.support.graph_cases import random_graph
from tests.support.tracing_cases import IDS, Case, build

CASE = Case("llama", "plt")


def broken(graph: Graph, node: int, by: float) -> Graph:
    """One row that misses its pre-activation by this share of its terms, about."""
    assert graph.balance is not None
    bias, scale = graph.balance.bias.clone(), float(graph.balance.pre_activation[node].abs())
    bias[node] += by * scale
    graph.balance = replace(graph.balance, bias=bias)
    return graph


@pytest.mark.parametrize("dtype", PROMISED_RESIDUAL)
def test_each_dtype_has_a_promise_and_a_graph_beyond_it_is_refused(dtype: str) -> None:
    graph = attribute(IDS, build(CASE, getattr(torch, dtype)), max_n_logits=2)
    graph.require_balance()
    node = int(graph.nodes.layout.targets.start)
    broken(graph, node, 50 * PROMISED_RESIDUAL[dtype])
    with pytest.raises(NumericalError, match=dtype):
        graph.require_balance()
    graph.require_balance(max_residual=1.0)


@pytest.mark.parametrize("kind", ["feature", "target"])
def test_the_worst_row_is_named(kind: str) -> None:
    graph = attribute(IDS, build(CASE), max_n_logits=2)
    node = 3 if kind == "feature" else int(graph.nodes.layout.targets.start) + 1
    broken(broken(graph, 1, 1e-7), node, 0.3)
    layer, position, name = int(graph.nodes.layer[node]), int(graph.nodes.position[node]), graph.nodes.ids()[node]
    with pytest.raises(NumericalError) as refused:
        graph.require_balance(remedy="Trace again.")
    for part in (f"{kind} {name} (layer {layer}, position {position})", "at most 1e-10", "2 of", "Trace again."):
        assert part in str(refused.value)


def test_a_residual_that_is_no_number_is_never_let_through() -> None:
    graph = broken(random_graph(), 16, math.nan)
    with pytest.raises(NumericalError, match="nan"):
        graph.require_balance(max_residual=math.inf)


def test_a_trace_hands_out_no_graph_beyond_the_promise_unless_it_is_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(CASE)
    monkeypatch.setitem(PROMISED_RESIDUAL, "float64", 0.0)
    with pytest.raises(NumericalError, match=r"--max-residual"):
        attribute(IDS, model, max_n_logits=2)
    with pytest.raises(NumericalError, match="at most 1e-300"):
        attribute(IDS, model, max_n_logits=2, max_residual=1e-300)
    graph = attribute(IDS, model, max_n_logits=2, max_residual=1e-6)
    assert graph.provenance["residual_allowed"] == graph.residual
    graph.require_balance()  # what was allowed once is allowed where the graph is read again


@pytest.mark.parametrize("value", [-1.0, math.nan])
def test_what_is_no_residual_is_refused(value: float) -> None:
    with pytest.raises(InputError, match="max_residual"):
        attribute(IDS, build(CASE), max_residual=value)
