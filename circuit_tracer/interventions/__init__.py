"""Interventions: set features to values and see what the model does, with the semantics of circuit-tracer."""

from circuit_tracer.interventions.activations import activations_of
from circuit_tracer.interventions.generate import GenerationOptions, feature_intervention_generate
from circuit_tracer.interventions.intervene import (
    feature_intervention,
    get_activations,
    setup_intervention_with_freeze,
    zero_softcap,
)
from circuit_tracer.interventions.passes import Freeze
from circuit_tracer.interventions.settings import Intervention

__all__ = [
    "Freeze",
    "GenerationOptions",
    "Intervention",
    "activations_of",
    "feature_intervention",
    "feature_intervention_generate",
    "get_activations",
    "setup_intervention_with_freeze",
    "zero_softcap",
]
