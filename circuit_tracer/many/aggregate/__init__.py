"""What the graphs of many prompts have in common. Method: ../README.md."""

from circuit_tracer.many.aggregate.aggregate import FOLDER, Aggregate, aggregate, aggregate_graphs

__all__ = ["FOLDER", "Aggregate", "aggregate", "aggregate_graphs"]
