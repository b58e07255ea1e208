"""One edge of a graph explained."""

from __future__ import annotations

from circuit_tracer.attention.explanation import EdgeExplanation
from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.graph.graph import Graph


def explain_edge(
    graph: Graph, source: int | str, target: int | str, model: Traceable, *, paths: int = 10
) -> EdgeExplanation:
    """The heads that the edge from `source` to `target` runs through.

    source, target: node numbers, or ids such as "3_41_5".
    """
    raise NotImplementedError
