"""Supernodes that a person made in a viewer, from the graph file that holds them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from circuit_tracer.errors import InputError
from circuit_tracer.graph.files.read_json import from_json
from circuit_tracer.interventions.features.edits import FeatureAt, Supernode

_FEATURE_ID = re.compile(r"(\d+)_(\d+)_(\d+)")  # layer, feature, position


def saved_supernodes(path: str | Path) -> dict[str, Supernode]:
    """Supernodes by name, from the saved view (`qParams`) of a viewer's JSON file.

    Features are taken at their positions; members that are no features (tokens, errors, outputs) cannot be intervened on
    and are left out, and with them groups that hold nothing else.

    Args:
        path: A viewer's JSON file.

    Returns:
        Supernodes by name.

    Raises:
        InputError: For two supernodes of one name or a file without any.
        FileFormatError: For a file that is no graph.
    """
    graph = from_json(path)
    found: dict[str, Supernode] = {}
    for group in graph.graph["q_params"]["supernodes"]:
        members = [feature for node in group[1:] if (feature := _feature(graph, node)) is not None]
        if not members:
            continue
        if group[0] in found:
            raise InputError(f"{path} has two supernodes named {group[0]!r}; give them different names in the viewer")
        found[group[0]] = Supernode(group[0], members)
    if not found:
        raise InputError(f"{path} holds no supernode of features; group features in the viewer and save the view")
    return found


def _feature(graph: Any, node: str) -> FeatureAt | None:
    match = _FEATURE_ID.fullmatch(node)
    if match is None or (node in graph and graph.nodes[node]["kind"] != "feature"):
        return None
    layer, index, position = (int(number) for number in match.groups())
    return FeatureAt(layer, position, index)
