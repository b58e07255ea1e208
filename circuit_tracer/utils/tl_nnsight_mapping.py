"""circuit-tracer's `circuit_tracer.utils.tl_nnsight_mapping`: its configuration. Its table of where nnsight finds the parts of
a model has no counterpart of that form; ours is in `models/architectures.py`.
"""

from __future__ import annotations

from typing import Any

from circuit_tracer.graph.config import GraphConfig as UnifiedConfig

__all__ = ["UnifiedConfig", "convert_nnsight_config_to_transformerlens"]


def convert_nnsight_config_to_transformerlens(config: Any) -> UnifiedConfig:
    """The sizes and names of any configuration, of transformers, of TransformerLens, or of a graph."""
    return UnifiedConfig.of(config)
