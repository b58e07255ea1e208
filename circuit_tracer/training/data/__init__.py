"""Training data: text -> tokens -> activations -> shuffled batches, deterministic and resumable at every step."""

from circuit_tracer.training.data.batch import ActivationBatch
from circuit_tracer.training.data.given import serve_activations, write_activations
from circuit_tracer.training.data.held_out import held_out_activations, held_out_tokens
from circuit_tracer.training.data.statistics import Statistics
from circuit_tracer.training.data.stream import BatchStream, open_stream

__all__ = [
    "ActivationBatch",
    "BatchStream",
    "Statistics",
    "held_out_activations",
    "held_out_tokens",
    "open_stream",
    "serve_activations",
    "write_activations",
]
