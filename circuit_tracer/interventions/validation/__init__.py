"""Testing a graph by the interventions that it predicts."""

from circuit_tracer.interventions.validation.validate import validate

__all__ = ["validate"]
