"""Import paths of circuit-tracer 0.5 that this package lays out differently, and nothing else.

Modules here, in `frontend` and in `transcoder` re-export from the one real home; the few helpers of circuit-tracer's notebooks
that have no other home are in `decode_url_features`, `demo_utils`, `device` and `displays`. Paths that are the same in both
packages (`circuit_tracer.graph`, `circuit_tracer.replacement_model`, `circuit_tracer.attribution.attribute`,
`circuit_tracer.attribution.targets`) need nothing. Left out: what only makes sense with TransformerLens or nnsight.
"""

from circuit_tracer.utils.create_graph_files import create_graph_files
from circuit_tracer.utils.device import get_default_device

__all__ = ["create_graph_files", "get_default_device"]
