"""circuit-tracer's `circuit_tracer.replacement_model.replacement_model_transformerlens`; there is one kind of model here."""

from circuit_tracer.replacement_model.replacement_model import ReplacementModel as TransformerLensReplacementModel

__all__ = ["TransformerLensReplacementModel"]
