"""Import paths of circuit-tracer 0.5 that this package lays out differently, and nothing else.

`circuit_tracer.utils.create_graph_files` finds `compat/utils/create_graph_files.py`, because `circuit_tracer/__init__.py`
adds this folder to the package's search path. Modules here re-export; the few helpers of circuit-tracer's notebooks that
have no other home are in `utils/demo_utils.py` and `utils/displays.py`. Paths that are the same in both packages
(`circuit_tracer.graph`, `circuit_tracer.replacement_model`, `circuit_tracer.attribution.attribute`,
`circuit_tracer.attribution.targets`) need nothing.

Left out: what only makes sense with TransformerLens or nnsight.
"""
