"""circuit-tracer's `circuit_tracer.attribution.attribute_transformerlens`."""

from circuit_tracer.attribution.attribute import attribute

__all__ = ["attribute"]
