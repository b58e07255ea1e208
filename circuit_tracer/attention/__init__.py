"""What the frozen attention patterns of a graph hide: which heads its edges run through (README.md)."""

from circuit_tracer.attention.edges import explain_edge
from circuit_tracer.attention.explanation import EdgeExplanation, HeadPath, Rest
from circuit_tracer.attention.many_edges import explain_edges

__all__ = ["EdgeExplanation", "HeadPath", "Rest", "explain_edge", "explain_edges"]
