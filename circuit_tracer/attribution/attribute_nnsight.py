"""circuit-tracer's `circuit_tracer.attribution.attribute_nnsight`."""

from circuit_tracer.attribution.attribute import attribute

__all__ = ["attribute"]
