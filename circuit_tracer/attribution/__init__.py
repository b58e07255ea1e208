"""From a prompt to its attribution graph; README.md is the method, reference.py the same as a program."""

from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.attribution.targets import (
    AttentionTarget,
    AttributionTargets,
    CustomTarget,
    DirectionSum,
    DirectionTarget,
    FeatureTarget,
    LogitDifference,
    LogitTarget,
    TargetSpec,
    latent_target,
)
from circuit_tracer.attribution.together import attribute_together

__all__ = [
    "AttentionTarget",
    "AttributionTargets",
    "CustomTarget",
    "DirectionSum",
    "DirectionTarget",
    "FeatureTarget",
    "LogitDifference",
    "LogitTarget",
    "TargetSpec",
    "attribute",
    "attribute_together",
    "latent_target",
]
