"""circuit-tracer's `circuit_tracer.utils.tl_nnsight_mapping`: its configuration. Its table of where nnsight finds
the parts of a model has no counterpart of that form; ours is in `models/architectures.py`.
"""

from circuit_tracer.graph.config import GraphConfig as UnifiedConfig

convert_nnsight_config_to_transformerlens = UnifiedConfig.of

__all__ = ["UnifiedConfig", "convert_nnsight_config_to_transformerlens"]
