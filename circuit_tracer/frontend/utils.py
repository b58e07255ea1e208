"""circuit-tracer's `circuit_tracer.frontend.utils`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from circuit_tracer.graph.files.graph_index import INDEX_NAME, add_to_index

__all__ = ["add_graph_metadata", "process_token"]

_SHOWN = str.maketrans({"\n": "⏎", "\t": "→", "\r": "↵"})


def add_graph_metadata(graph_metadata: dict[str, Any], path: str | Path) -> None:
    """Enter a graph in the list of a folder, which may be named by the list's own file."""
    path = Path(path)
    add_to_index(path.parent if path.name == INDEX_NAME else path, graph_metadata)


def process_token(token: str) -> str:
    """A token with signs for line ends and tabs."""
    return token.translate(_SHOWN)
