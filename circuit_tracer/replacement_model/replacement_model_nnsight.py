"""circuit-tracer's `circuit_tracer.replacement_model.replacement_model_nnsight`; there is one kind of model here."""

from circuit_tracer.replacement_model.replacement_model import ReplacementModel as NNSightReplacementModel

__all__ = ["NNSightReplacementModel"]
