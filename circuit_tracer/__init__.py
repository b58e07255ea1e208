"""Attribution graphs and circuit tracing with cross-layer transcoders.

Names are imported when they are used, so that `import circuit_tracer` is instant and does not load torch. `utils`,
`frontend` and `transcoder` are import paths of circuit-tracer, and hold nothing else.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from os.path import isfile
from typing import TYPE_CHECKING

from circuit_tracer.garbage import collection_put_off
from circuit_tracer.version import package_version

# How threads of the matrix products wait for each other at the end of each. Left to itself OpenMP spins: on a machine that has
# something else to do a thread then burns the time that the one it waits for would need. It is read when torch is loaded, so
# it is only said before; and not where the user said how to wait, in any of its names.
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
if "torch" not in sys.modules and not any(name in os.environ for name in _WAITING):
    os.environ["OMP_WAIT_POLICY"] = "passive"

if isfile(f"{__path__[0]}/kernels"):
    raise ImportError(
        "circuit_tracer/kernels must be a link to the folder kernels/, and is a file: git wrote it so, because symbolic links "
        "are switched off. Delete it, then run `git config core.symlinks true` and `git checkout -- circuit_tracer/kernels` "
        "(on Windows: in Developer Mode)."
    )

if TYPE_CHECKING:
    from circuit_tracer.attention import explain_edge, explain_edges, explain_score
    from circuit_tracer.attribution.attribute import attribute
    from circuit_tracer.attribution.expert_targets import expert_target
    from circuit_tracer.attribution.targets import (
        AttentionTarget,
        CustomTarget,
        DirectionSum,
        DirectionTarget,
        FeatureTarget,
        LogitDifference,
    )
    from circuit_tracer.attribution.together import attribute_together
    from circuit_tracer.errors import CircuitTracerError
    from circuit_tracer.graph import (
        Graph,
        LogitTarget,
        PruneResult,
        compute_graph_scores,
        graph_scores,
        prune_graph,
        strongest_paths,
    )
    from circuit_tracer.graph.files.viewer_json import create_graph_files
    from circuit_tracer.models.architecture import Architecture, LinearAttention, NormKind, ValueRows
    from circuit_tracer.models.architectures import register_architecture
    from circuit_tracer.replacement_model import ReplacementModel
    from circuit_tracer.transcoders.loading import load_transcoder_from_hub

    __version__: str

_HOME = {
    "Architecture": "circuit_tracer.models.architecture",
    "AttentionTarget": "circuit_tracer.attribution.targets",
    "CircuitTracerError": "circuit_tracer.errors",
    "CustomTarget": "circuit_tracer.attribution.targets",
    "DirectionSum": "circuit_tracer.attribution.targets",
    "DirectionTarget": "circuit_tracer.attribution.targets",
    "FeatureTarget": "circuit_tracer.attribution.targets",
    "Graph": "circuit_tracer.graph",
    "LinearAttention": "circuit_tracer.models.architecture",
    "LogitDifference": "circuit_tracer.attribution.targets",
    "LogitTarget": "circuit_tracer.graph",
    "PruneResult": "circuit_tracer.graph",
    "NormKind": "circuit_tracer.models.architecture",
    "ReplacementModel": "circuit_tracer.replacement_model",
    "ValueRows": "circuit_tracer.models.architecture",
    "attribute": "circuit_tracer.attribution.attribute",
    "attribute_together": "circuit_tracer.attribution.together",
    "compute_graph_scores": "circuit_tracer.graph",
    "create_graph_files": "circuit_tracer.graph.files.viewer_json",
    "explain_edge": "circuit_tracer.attention",
    "explain_edges": "circuit_tracer.attention",
    "explain_score": "circuit_tracer.attention",
    "expert_target": "circuit_tracer.attribution.expert_targets",
    "graph_scores": "circuit_tracer.graph",
    "load_transcoder_from_hub": "circuit_tracer.transcoders.loading",
    "prune_graph": "circuit_tracer.graph",
    "register_architecture": "circuit_tracer.models.architectures",
    "strongest_paths": "circuit_tracer.graph",
}

__all__ = [
    "Architecture",
    "AttentionTarget",
    "CircuitTracerError",
    "CustomTarget",
    "DirectionSum",
    "DirectionTarget",
    "FeatureTarget",
    "Graph",
    "LinearAttention",
    "LogitDifference",
    "LogitTarget",
    "NormKind",
    "PruneResult",
    "ReplacementModel",
    "ValueRows",
    "__version__",
    "attribute",
    "attribute_together",
    "compute_graph_scores",
    "create_graph_files",
    "expert_target",
    "explain_edge",
    "explain_edges",
    "explain_score",
    "graph_scores",
    "load_transcoder_from_hub",
    "prune_graph",
    "register_architecture",
    "strongest_paths",
]


if not TYPE_CHECKING:  # a type checker would take every name as given

    def __getattr__(name):
        if name == "__version__":
            return package_version()
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        with collection_put_off():
            return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
