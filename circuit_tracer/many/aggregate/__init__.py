"""What the graphs of many prompts have in common. Method: ../README.md."""

from circuit_tracer.many.aggregate.aggregate import Aggregate, aggregate, aggregate_graphs

__all__ = ["Aggregate", "aggregate", "aggregate_graphs"]
