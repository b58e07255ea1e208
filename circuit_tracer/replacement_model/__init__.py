"""A language model together with the transcoders that replace its MLPs.

`replacement_model_transformerlens`, `replacement_model_nnsight` and `common` are import paths of circuit-tracer.
"""

from circuit_tracer.replacement_model.replacement_model import Backend, ReplacementModel

__all__ = ["Backend", "ReplacementModel"]
