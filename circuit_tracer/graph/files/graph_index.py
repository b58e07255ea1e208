"""``graph-metadata.json``: the list of graphs in a folder, from which viewers fill their menu."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from circuit_tracer.errors import CircuitTracerError, FileFormatError, shortened
from circuit_tracer.files import atomic_write, locked, read_json
from circuit_tracer.files.digests import as_written, sealed, unsealed

INDEX_NAME = "graph-metadata.json"


def read_index(folder: str | Path) -> list[dict[str, Any]]:
    """The metadata of all graphs of a folder; empty if there is no index.

    Args:
        folder: Of `{slug}.json` files.

    Returns:
        Metadata of a graph each, as in `graph-metadata.json`.

    Raises:
        FileFormatError: If it is damaged.
    """
    graphs, path = _read(Path(folder)), Path(folder) / INDEX_NAME
    return [_entry(entry, path) for entry in graphs]


def usable_entries(folder: str | Path) -> tuple[list[dict[str, Any]], str | None]:
    """(those entries of the index that can be used, what is wrong with it or None): one bad entry costs only itself."""
    try:
        graphs = _read(Path(folder))
    except CircuitTracerError as error:
        return [], str(error)
    usable, problems = list[dict[str, Any]](), list[str]()
    for entry in graphs:
        try:
            usable.append(_entry(entry, Path(folder) / INDEX_NAME))
        except FileFormatError as error:
            problems.append(str(error))
    return usable, f"{len(problems)} entries of {INDEX_NAME} are left out: {problems[0]}" if problems else None


def _entry(entry: Any, path: Path) -> dict[str, Any]:
    """An entry without the digest that notices damage; one by one, because other programs add theirs without."""
    if not isinstance(entry, dict) or not isinstance(entry.get("slug"), str):
        raise FileFormatError(f"an entry of {path} is no object with a slug: {shortened(entry)}")
    return unsealed(entry, f"the entry of {shortened(entry['slug'])} in {path}")


def _read(folder: Path) -> list[Any]:
    path = folder / INDEX_NAME
    if not path.exists():
        return []
    try:
        graphs = read_json(path, halves=True)["graphs"]
    except (FileFormatError, LookupError, TypeError) as error:
        raise FileFormatError(
            f'{path} is not of the form {{"graphs": [...]}} ({error}); mend it, or move it away to start a new one'
        ) from error
    if not isinstance(graphs, list):
        raise FileFormatError(f"{path}: graphs must be a list of objects; mend it, or move it away to start a new one")
    return graphs


def add_to_index(folder: str | Path, metadata: dict[str, Any]) -> None:
    """Add a graph's metadata, in place of the entry of the same slug if there is one; other processes wait meanwhile.

    Args:
        folder: Of `{slug}.json` files.
        metadata: As in the graph's JSON.
    """
    with writing_graphs(folder):
        graphs = read_index(folder)
        slugs = [entry.get("slug") for entry in graphs]
        if metadata["slug"] in slugs:
            graphs[slugs.index(metadata["slug"])] = metadata
        else:
            graphs.append(metadata)
        with atomic_write(Path(folder) / INDEX_NAME) as temporary:
            entries = [sealed(as_written(entry)) for entry in graphs]
            text = json.dumps({"graphs": entries}, allow_nan=False, ensure_ascii=False, indent=1)
            temporary.write_text(text, encoding="utf-8")


def writing_graphs(folder: str | Path) -> AbstractContextManager[None]:
    """Inside, no other process or thread changes the viewer's files of a folder."""
    return locked(folder)
