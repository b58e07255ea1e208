"""What features mean: where they are active, what they do to the output, and what they are called."""

from circuit_tracer.features.build import BuildSettings, build_features
from circuit_tracer.features.corpus import open_corpus
from circuit_tracer.features.folder import FeatureFolder

__all__ = [
    "BuildSettings",
    "FeatureFolder",
    "build_features",
    "open_corpus",
]
