"""circuit-tracer's `circuit_tracer.utils.tl_nnsight_mapping`, as far as its graph files name it."""

from circuit_tracer.models.config import ModelConfig as UnifiedConfig

__all__ = ["UnifiedConfig"]
