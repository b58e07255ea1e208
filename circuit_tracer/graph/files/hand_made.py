"""What people put into a viewer's file (pins, supernodes, places, labels) outlives a new graph of the same name.

Node ids name a layer, a feature and a position, so they mean the same in another trace of the same prompt with the same
transcoders. What has no place in the new graph is said, and the file that was stays beside it under another name.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuit_tracer.errors import CircuitTracerError, FileFormatError, warn
from circuit_tracer.files import atomic_write, read_json
from circuit_tracer.files.digests import DIGEST
from circuit_tracer.graph.files.read_json import typed_q_params

SUFFIXES = (".json", ".json.gz")
GROUPED = "grouped"  # in the metadata: digest of the pins and supernodes that came from the graph's own groups
_SHOWN = 5


@dataclass(frozen=True)
class HandMade:
    """Of one file. q_params: typed; scan, tokens: what the ids go by."""

    path: Path
    q_params: dict[str, Any]
    scan: Any
    tokens: Any

    @classmethod
    def of(cls, path: Path) -> HandMade:
        """Of a viewer's file. Raises FileFormatError if it is none."""
        # not by `load_viewer_json`: what was changed by hand need not fit its digest
        document = read_json(path, halves=True)
        if not isinstance(document, dict) or not isinstance(document.get("metadata"), dict):
            raise FileFormatError(f"{path} is no graph: it lacks metadata at its top level")
        metadata, given = document["metadata"], document.get("qParams")
        q_params = typed_q_params(given if isinstance(given, dict) else {})
        q_params.pop(DIGEST, None)
        if metadata.get(GROUPED) == chosen_digest(q_params):
            q_params |= {"pinnedIds": [], "supernodes": []}
        scan = metadata.get("transcoder_list") or metadata.get("scan")
        return cls(path, q_params, scan, metadata.get("prompt_tokens"))

    @property
    def clerps(self) -> list[tuple[str, str]]:
        """Labels that people gave, by node id."""
        found = self.q_params.get("clerps")
        pairs = found if isinstance(found, list) else []
        return [(str(pair[0]), str(pair[1])) for pair in pairs if isinstance(pair, list | tuple) and len(pair) == 2]

    @property
    def nodes(self) -> set[str]:
        """Ids of the nodes that people pinned or grouped."""
        return {*self.q_params["pinnedIds"], *(name for _, *members in self.q_params["supernodes"] for name in members)}

    def __bool__(self) -> bool:
        """Whether there is any of it."""
        return bool(self.nodes or self.clerps)

    def same_graph(self, metadata: Mapping[str, Any]) -> bool:
        """Whether node ids mean the same there."""
        scan = metadata.get("transcoder_list") or metadata.get("scan")
        return (self.scan, self.tokens) == (scan, metadata.get("prompt_tokens"))

    def moved(self, metadata: Mapping[str, Any], names: set[str]) -> tuple[dict[str, Any], list[str]]:
        """(qParams for a graph with nodes of these names, sentences about what has no place there)."""
        if not self.same_graph(metadata):
            return {}, [f"{len(self.nodes)} nodes and {len(self.clerps)} labels of another prompt or other transcoders"]
        pinned = [name for name in self.q_params["pinnedIds"] if name in names]
        groups = [[title, *filter(names.__contains__, members)] for title, *members in self.q_params["supernodes"]]
        clicked = self.q_params["clickedId"]
        kept = {**self.q_params, "pinnedIds": pinned, "supernodes": [group for group in groups if len(group) > 1]}
        kept["clickedId"] = clicked if clicked in names else ""
        return kept, list(self._lost(names))  # labels of nodes that are not there stay: pruning may bring them back

    def _lost(self, names: set[str]) -> Iterator[str]:
        for title, *members in self.q_params["supernodes"]:
            if gone := [name for name in members if name not in names]:
                yield f"{_some(gone)} of the supernode {title!r}"
        if gone := [name for name in self.q_params["pinnedIds"] if name not in names]:
            yield f"{_some(gone)}, pinned"


def chosen_digest(q_params: Mapping[str, Any]) -> str:
    """Of pins and supernodes: another as soon as a person changes them."""
    text = json.dumps([q_params["pinnedIds"], q_params["supernodes"]], ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def existing(folder: Path, slug: str) -> Path | None:
    """The viewer's file of that name, if there is one."""
    paths = (folder / f"{slug}{suffix}" for suffix in SUFFIXES)
    return next((path for path in paths if path.exists()), None)


def hand_made(folder: Path, slug: str) -> HandMade | None:
    """What people put into the graph of that name; None for no such file. One that cannot be read is set aside, and said."""
    path = existing(folder, slug)
    if path is None:
        return None
    try:
        return HandMade.of(path)
    except CircuitTracerError as error:
        warn(f"{path} is replaced; it is kept as {set_aside(path)}, since {error}")
        return None


def set_aside(path: Path) -> Path:
    """Copy a file to a free name beside it, which no viewer lists."""
    number, target = 1, path.with_name(f"{path.name}.before")
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}.before-{number}")
    with atomic_write(target) as temporary:
        shutil.copyfile(path, temporary)
    return target


def set_aside_if_lost(made: HandMade, lost: list[str]) -> None:
    """Keep the file that was, and say so, if something in it has no place in the new one."""
    if lost:
        warn(
            f"{made.path} is replaced, and not all that was made by hand could move to the new graph: {'; '.join(lost)}. The "
            f"file that was is kept as {set_aside(made.path)}"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
