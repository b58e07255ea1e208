"""Two graphs side by side: what differs, and an exact account of the change of a target."""

from circuit_tracer.many.comparison.compare import compare
from circuit_tracer.many.comparison.schema import Comparison

__all__ = ["Comparison", "compare"]
