"""circuit-tracer's `circuit_tracer.attribution.context_transformerlens`."""

from circuit_tracer.attribution.context import AttributionContext

__all__ = ["AttributionContext"]
