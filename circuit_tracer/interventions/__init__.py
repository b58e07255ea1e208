"""Interventions: change features, heads, activations or directions, and see what the model does."""

from circuit_tracer.interventions.features.activations import activations_of
from circuit_tracer.interventions.features.apply import apply_each, apply_edits
from circuit_tracer.interventions.features.clean import CleanRun
from circuit_tracer.interventions.features.edits import (
    Edit,
    FeatureAt,
    Supernode,
    ablate,
    add,
    nodes_of,
    scale,
    set_to,
    take_from,
)
from circuit_tracer.interventions.features.intervene import (
    feature_intervention,
    get_activations,
    setup_intervention_with_freeze,
    zero_softcap,
)
from circuit_tracer.interventions.features.observe import FeatureChanges
from circuit_tracer.interventions.features.outcome import Outcome, TokenChange
from circuit_tracer.interventions.features.passes import Freeze
from circuit_tracer.interventions.features.semantics import Semantics
from circuit_tracer.interventions.features.settings import Intervention
from circuit_tracer.interventions.features.supernodes import saved_supernodes
from circuit_tracer.interventions.features.swap import swap_groups
from circuit_tracer.interventions.features.trace import attribute_edited
from circuit_tracer.interventions.heads.edits import HeadEdit
from circuit_tracer.interventions.heads.patterns import PatternChanges, measure_patterns
from circuit_tracer.interventions.patching.attribution_patching import attribution_patching
from circuit_tracer.interventions.patching.metrics import Metric, log_probability, logit_difference, probability
from circuit_tracer.interventions.patching.patching import activation_patching
from circuit_tracer.interventions.patching.table import PatchTable
from circuit_tracer.interventions.steering.generate import GenerationOptions, feature_intervention_generate
from circuit_tracer.interventions.steering.schedule import Direction
from circuit_tracer.interventions.steering.steer import Continuation, Sampling, Steering, steer
from circuit_tracer.interventions.validation import (
    Loading,
    ScoreShare,
    group_effects,
    measure_groups,
    measure_loadings,
    measure_scores,
    validate,
)
from circuit_tracer.interventions.validation.edge_gradients import EdgeEstimates, approximate_edges

__all__ = [
    "CleanRun",
    "Continuation",
    "Direction",
    "EdgeEstimates",
    "Edit",
    "FeatureAt",
    "FeatureChanges",
    "Freeze",
    "GenerationOptions",
    "HeadEdit",
    "Intervention",
    "Loading",
    "Metric",
    "Outcome",
    "PatchTable",
    "PatternChanges",
    "Sampling",
    "ScoreShare",
    "Semantics",
    "Steering",
    "Supernode",
    "TokenChange",
    "ablate",
    "activation_patching",
    "activations_of",
    "add",
    "apply_each",
    "apply_edits",
    "approximate_edges",
    "attribute_edited",
    "attribution_patching",
    "feature_intervention",
    "feature_intervention_generate",
    "get_activations",
    "group_effects",
    "log_probability",
    "logit_difference",
    "measure_groups",
    "measure_loadings",
    "measure_patterns",
    "measure_scores",
    "nodes_of",
    "probability",
    "saved_supernodes",
    "scale",
    "set_to",
    "setup_intervention_with_freeze",
    "steer",
    "swap_groups",
    "take_from",
    "validate",
    "zero_softcap",
]
