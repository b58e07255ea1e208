"""Edges that cannot be explained: what is wrong is said, and no number is given."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any
from weakref import ref

import pytest
import torch

from circuit_tracer.attention import explain_edge, explain_edges, frozen_prompt
from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.attribution.targets import CustomTarget
from circuit_tracer.errors import CompatibilityError, InputError, NumericalError
from circuit_tracer.graph import Graph
from circuit_tracer.replacement_model import ReplacementModel
from tests.support.edge_cases import PLAIN, SEQUENTIAL, some_edges, traced
from tests.support.tiny import tiny_model, tiny_transcoder
from tests.support.tracing_cases import IDS, Case, build


@pytest.fixture
def mine() -> tuple[ReplacementModel, Graph]:
    """To be changed."""
    model = ReplacementModel.from_model(tiny_model("llama"), tiny_transcoder("plt", n_features=10), None, "llama")
    return model, attribute(IDS, model, max_n_logits=2)


Asked = Callable[[Graph], tuple[Any, Any]]

NO_EDGES: dict[str, tuple[Asked, str]] = {
    "a number too large": (lambda graph: (10**6, 0), "nodes 0.."),
    "a number below 0": (lambda graph: (0, -1), "nodes 0.."),
    "an id of no node": (lambda graph: ("99_1_1", 0), "no node '99_1_1'"),
    "no number": (lambda graph: (0.5, 0), "0.5"),
    "the other way round": (lambda graph: some_edges(graph, 1)[0][::-1], "no edge from"),
    "into an error node": (lambda graph: (0, graph.nodes.layout.error_start), "have no inputs"),
    "into itself": (lambda graph: (0, 0), "no edge from"),
}


@pytest.mark.parametrize(("asked", "said"), NO_EDGES.values(), ids=NO_EDGES)
def test_what_is_no_edge(asked: Asked, said: str) -> None:
    model, graph = traced(PLAIN)
    with pytest.raises(InputError, match=said):
        explain_edge(graph, *asked(graph), model)
    with pytest.raises(InputError):
        explain_edges(graph, model, edges=[some_edges(graph, 1)[0], asked(graph)])
    assert graph.edge_heads is None


BAD_ARGUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "no heads": ({"keep": 0}, "keep is 0"),
    "one node": ({"edges": [3]}, "3 is no edge"),
    "three nodes": ({"edges": [(1, 2, 3)]}, "is no edge; give"),
    "text": ({"edges": "all"}, "edges is 'all'"),
}


@pytest.mark.parametrize(("options", "said"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_arguments_that_cannot_be(options: dict[str, Any], said: str) -> None:
    model, graph = traced(PLAIN)
    with pytest.raises(InputError, match=said):
        explain_edges(graph, model, **options)


def test_fewer_paths_than_none() -> None:
    model, graph = traced(PLAIN)
    with pytest.raises(InputError, match="paths is -1"):
        explain_edge(graph, *some_edges(graph, 1)[0], model, paths=-1)


def test_more_heads_than_there_are_are_all_of_them() -> None:
    model, graph = traced(PLAIN)
    found = explain_edges(graph, model, 10**30, some_edges(graph, 1))
    assert found.keep == graph.n_layers * model.parts.config.n_heads
    with pytest.raises(InputError, match="n is"):
        explain_edge(graph, *some_edges(graph, 1)[0], model, paths=0).strongest("all")  # type: ignore[arg-type]


OTHERS: dict[str, Callable[[], ReplacementModel]] = {
    "weights": lambda: build(PLAIN, seed=3),
    "dictionary": lambda: build(Case("llama", "clt")),
    "fewer features": lambda: ReplacementModel.from_model(
        tiny_model("llama"), tiny_transcoder("plt", n_features=4), None, "llama"
    ),
    "width": lambda: ReplacementModel.from_model(
        tiny_model("llama", hidden_size=8), tiny_transcoder("plt", d_model=8), None, "llama"
    ),
}


@pytest.mark.few
@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("fingerprint", [True, False], ids=["with fingerprints", "without"])
def test_another_model(
    mine: tuple[ReplacementModel, Graph], other: Callable[[], ReplacementModel], fingerprint: bool
) -> None:
    _, graph = mine
    if not fingerprint:
        del graph.provenance["fingerprint"]
    source, target = graph.edges.source, graph.edges.target
    from_feature = int((source < graph.nodes.layout.n_features).nonzero()[0])
    model = other()
    with pytest.raises(CompatibilityError):
        explain_edge(graph, int(source[from_feature]), int(target[from_feature]), model)
    with pytest.raises(CompatibilityError):
        explain_edges(graph, model, edges=graph.edges)


def test_weights_written_in_since_the_last_question(mine: tuple[ReplacementModel, Graph]) -> None:
    model, graph = mine
    far = some_edges(graph, 1)[0]
    explain_edge(graph, *far, model)
    model.parts.layers[1].output.weight.mul_(1.5)
    with pytest.raises(CompatibilityError, match="another model"):
        explain_edge(graph, *far, model)


def test_an_edge_that_was_changed(mine: tuple[ReplacementModel, Graph]) -> None:
    """The others of the graph are still what they were."""
    model, graph = mine
    changed, other = some_edges(graph, 2)
    assert changed != other
    graph.adjacency_matrix[changed[1], changed[0]] *= 1.5
    with pytest.raises(CompatibilityError, match="edges were changed after its trace"):
        explain_edge(graph, *changed, model)
    explain_edge(graph, *other, model)
    with pytest.raises(CompatibilityError):
        explain_edges(graph, model, edges=graph.edges)
    assert graph.edge_heads is None


def test_a_model_in_another_number_format() -> None:
    coarse, fine = (
        ReplacementModel.from_model(tiny_model("llama", dtype), tiny_transcoder(dtype=dtype), None, "llama")
        for dtype in (torch.bfloat16, torch.float64)
    )
    graph = attribute(IDS, coarse)
    explain_edges(graph, coarse, edges=graph.edges)
    with pytest.raises(CompatibilityError, match="load the model in bfloat16"):
        explain_edges(graph, fine, edges=graph.edges)


def test_activations_that_were_changed(mine: tuple[ReplacementModel, Graph]) -> None:
    model, graph = mine
    edges = graph.edges
    feature = int((edges.source < graph.nodes.layout.n_features).nonzero()[0])
    pair = int(edges.source[feature]), int(edges.target[feature])
    graph.activation_values[graph.selected_features[pair[0]]] *= 1.01
    with pytest.raises(NumericalError, match="off by"):
        explain_edge(graph, *pair, model)


def test_a_direction_whose_vector_the_graph_has_not(mine: tuple[ReplacementModel, Graph]) -> None:
    model, _ = mine
    graph = attribute(IDS, model, attribution_targets=[CustomTarget("north", 1.0, torch.ones(16, dtype=torch.float64))])
    target = graph.nodes.layout.target_start
    source = int(graph.edges.row(target)[0][0])
    explain_edge(graph, source, target, model)
    graph.targets.reads = None
    frozen_prompt._LATEST.clear()
    with pytest.raises(InputError, match="'north' reads is not in this graph"):
        explain_edge(graph, source, target, model)


def test_what_is_kept_of_a_prompt_goes_with_the_graph_and_with_the_model() -> None:
    model, graph = traced.__wrapped__(SEQUENTIAL)
    explain_edge(graph, *some_edges(graph, 1)[0], model)
    kept = [ref(graph), ref(frozen_prompt._LATEST[model][1].network)]
    explain_edge(other := traced(SEQUENTIAL)[1], *some_edges(other, 1)[0], model)
    del graph
    gc.collect()
    assert [each() for each in kept] == [None, None]
