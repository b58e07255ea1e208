"""Testing a graph by the interventions that it predicts."""

from circuit_tracer.interventions.validation.contrasts import ScoreShare, measure_scores
from circuit_tracer.interventions.validation.groups import group_effects, measure_groups
from circuit_tracer.interventions.validation.loadings import Loading, measure_loadings
from circuit_tracer.interventions.validation.validate import validate

__all__ = [
    "Loading",
    "ScoreShare",
    "group_effects",
    "measure_groups",
    "measure_loadings",
    "measure_scores",
    "validate",
]
