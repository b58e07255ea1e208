"""Features named in the address of a graph viewer."""

from __future__ import annotations

from typing import NamedTuple

from circuit_tracer.errors import InputError
from circuit_tracer.graph.files.view import View


class Feature(NamedTuple):
    """A feature at a position; layer -1 stands for the embedding, and its index is then a token id."""

    layer: int
    pos: int
    feature_idx: int


def decode_url_features(url: str) -> tuple[dict[str, list[Feature]], list[Feature]]:
    """(supernodes by name, pinned features) of a viewer's address.

    Supernodes of the same name are told apart as "name", "name (2)", ... Raises InputError for an address whose
    supernodes cannot be read.
    """
    view = View.from_url(url)
    groups: dict[str, list[Feature]] = {}
    count: dict[str, int] = {}
    try:
        for name, ids in view.supernodes:
            count[name] = count.get(name, 0) + 1
            unique = name if count[name] == 1 else f"{name} ({count[name]})"
            groups[unique] = [_feature(node) for node in ids]
        singles = [_feature(node) for node in view.pinned]
    except ValueError as error:
        raise InputError(
            f"the address does not name features as viewers do (layer_feature_position): {error}"
        ) from error
    return groups, singles


def _feature(node_id: str) -> Feature:
    layer, index, position = node_id.split("_")
    return Feature(-1 if layer == "E" else int(layer), int(position), int(index))
