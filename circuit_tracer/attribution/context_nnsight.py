"""circuit-tracer's `circuit_tracer.attribution.context_nnsight`."""

from circuit_tracer.attribution.context import AttributionContext

__all__ = ["AttributionContext"]
