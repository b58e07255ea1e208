"""Activations made elsewhere: shards of any writer, or rows that another process sends (docs/how-to/activations.md)."""

from circuit_tracer.training.data.given.server import ActivationServer, serve_activations
from circuit_tracer.training.data.given.write import write_activations

__all__ = ["ActivationServer", "serve_activations", "write_activations"]
