"""Import paths of circuit-tracer 0.5 that this package lays out differently, and nothing else.

Modules here, in `frontend` and in `transcoder` re-export from the one real home, as do a few beside ours in `attribution` and
`replacement_model`; some adapt names, arguments and forms, or hold helpers of circuit-tracer's notebooks that have no other
home (tests/compat/test_compat_paths.py lists which). Left out is what only makes sense with TransformerLens or nnsight:
benchmarks/peer/names.py says what that is, name by name.
"""

from circuit_tracer.utils.create_graph_files import create_graph_files
from circuit_tracer.utils.device import get_default_device

__all__ = ["create_graph_files", "get_default_device"]
