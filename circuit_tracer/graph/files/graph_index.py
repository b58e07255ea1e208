"""``graph-metadata.json``: the list of graphs in a folder, from which viewers fill their menu."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from circuit_tracer.errors import FileFormatError
from circuit_tracer.files import atomic_write, locked

INDEX_NAME = "graph-metadata.json"


def read_index(folder: str | Path) -> list[dict[str, Any]]:
    """The metadata of all graphs of a folder; empty if there is no index. Raises FileFormatError if it is damaged."""
    path = Path(folder) / INDEX_NAME
    if not path.exists():
        return []
    try:
        graphs = json.loads(path.read_text(encoding="utf-8"))["graphs"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise FileFormatError(
            f'{path} is not of the form {{"graphs": [...]}} ({error}); mend it, or move it away to start a new one'
        ) from error
    if not isinstance(graphs, list) or not all(isinstance(entry, dict) for entry in graphs):
        raise FileFormatError(f"{path}: graphs must be a list of objects; mend it, or move it away to start a new one")
    return graphs


def add_to_index(folder: str | Path, metadata: dict[str, Any]) -> None:
    """Add a graph's metadata, in place of the entry of the same slug if there is one; other processes wait meanwhile."""
    with writing_graphs(folder):
        graphs = read_index(folder)
        slugs = [entry.get("slug") for entry in graphs]
        if metadata["slug"] in slugs:
            graphs[slugs.index(metadata["slug"])] = metadata
        else:
            graphs.append(metadata)
        with atomic_write(Path(folder) / INDEX_NAME) as temporary:
            text = json.dumps({"graphs": graphs}, allow_nan=False, ensure_ascii=False, indent=1)
            temporary.write_text(text, encoding="utf-8")


def writing_graphs(folder: str | Path) -> AbstractContextManager[None]:
    """Inside, no other process or thread changes the viewer's files of a folder."""
    return locked(folder)
