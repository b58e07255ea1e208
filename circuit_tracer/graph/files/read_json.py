"""Reading graph JSON of any viewer and age into networkx."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuit_tracer.errors import FileFormatError, shortened
from circuit_tracer.files import parse_json, read_json
from circuit_tracer.files.digests import digest_of, is_sealed, sealed, unsealed
from circuit_tracer.graph.files.node_ids import cantor_unpair

if TYPE_CHECKING:
    import networkx

_KINDS = {
    "cross layer transcoder": "feature",
    "unexplored node": "feature",
    "lorsa": "attention feature",
    "mlp reconstruction error": "error",
    "lorsa error": "attention error",
    "embedding": "token",
    "logit": "target",
    "bias": "bias",
}
_ROWS_DIGEST = "graph_digest"  # in the metadata: of nodes and links
_OLD_ERROR_ID = re.compile(r"0_(\d+)_(\d+)")


def load_viewer_json(path: str | Path) -> dict[str, Any]:
    """The document in a plain or gzipped JSON file, without its digests.

    Args:
        path: The file.

    Returns:
        The document, plain values.

    Raises:
        InputError: If it cannot be opened.
        FileFormatError: For what is no JSON, and for a document that was changed since it was written with digests
            (`sealed_graph`).
    """
    return viewer_document(read_json(path, halves=True), str(path))


def viewer_document(document: Any, source: str) -> dict[str, Any]:
    """``load_viewer_json`` of what was read already, from ``source``. Raises FileFormatError."""
    if not isinstance(document, dict) or not {"metadata", "nodes", "links"} <= set(document):
        raise FileFormatError(f"{source} is no graph: it lacks metadata, nodes or links at its top level")
    _require_rows(document, source)
    return _unsealed_graph(document, source)


def sealed_graph(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document as a file keeps it, with digests: of nodes and links in the metadata, whose own covers that one and the
    nodes' labels too; and of qParams by themselves, which other viewers replace as a whole.
    """
    metadata = {**document["metadata"], _ROWS_DIGEST: _rows_digest(document)}
    view = {"qParams": sealed(document["qParams"])} if document.get("qParams") else {}
    return {**document, "metadata": sealed(metadata, _labels(document)), **view}


def require_as_written(data: bytes, source: str) -> None:
    """FileFormatError for bytes of a graph that do not fit its digests; what is no graph at all passes."""
    try:
        document = parse_json(data, source, halves=True)
        if not isinstance(document, dict) or not {"metadata", "nodes", "links"} <= set(document):
            return
        _require_rows(document, source)
    except FileFormatError:
        return
    _unsealed_graph(document, source)


def _rows_digest(document: Mapping[str, Any]) -> str:
    """Of nodes but for their labels, of links, and of whether there are qParams, whose name could be damaged."""
    nodes = [{name: value for name, value in node.items() if name != "clerp"} for node in document["nodes"]]
    return digest_of([nodes, document["links"], bool(document.get("qParams"))])


def _labels(document: Mapping[str, Any]) -> list[Any]:
    return [node.get("clerp") for node in document["nodes"]]


def _unsealed_graph(document: dict[str, Any], source: str) -> dict[str, Any]:
    found = document["metadata"]
    metadata = unsealed(found, f"the metadata of {source}, or a label", beside=_labels(document), by_hand=True)
    rows = metadata.pop(_ROWS_DIGEST, None)
    if is_sealed(found, source) and rows != _rows_digest(document):
        raise FileFormatError(
            f"{source} is not what was written: nodes or links differ. Export the graph again; if you changed them yourself, "
            "remove `digest` from its metadata."
        )
    view = {}
    if document.get("qParams"):
        view = {"qParams": unsealed(document["qParams"], f"the view (qParams) of {source}", by_hand=True)}
    return {**document, "metadata": metadata, **view}


def _require_rows(document: dict[str, Any], source: str | Path) -> None:
    """That metadata and qParams are objects, nodes and links lists of objects: what all readers take for granted."""
    for name, kind in (("metadata", dict), ("nodes", list), ("links", list), ("qParams", dict | None)):
        if not isinstance(document.get(name), kind):
            raise FileFormatError(f"{source} is no graph: its {name} are {shortened(document.get(name))}")
    for name in ("nodes", "links"):
        if not all(isinstance(row, dict) for row in document[name]):
            raise FileFormatError(f"{source} is no graph: one of its {name} is no object")


def from_json(document_or_path: dict[str, Any] | str | Path) -> networkx.DiGraph:
    """A viewer's graph as a networkx DiGraph from sources to targets, with edge attribute ``weight``.

    Nodes are named by node_id and keep all fields of the file; added are kind (as in ``to_networkx``), layer as an int (-1
    for tokens), position, and for transcoder features of schema 1 their index. Error ids of the old form ``0_{l}_{p}``
    become ``{l}_-1_{p}``. Graph attributes: metadata, q_params (typed, see ``typed_q_params``), and repairs: sentences
    about everything that was mended, empty for a clean file.

    Args:
        document_or_path: The document, or the path of a file.

    Returns:
        The DiGraph, edges from source to target.

    Raises:
        FileFormatError: If nodes or links lack what makes them nodes or links.
    """
    import networkx as nx

    document = document_or_path if isinstance(document_or_path, dict) else load_viewer_json(document_or_path)
    _require_rows(document, "the document")
    repairs: list[str] = []
    metadata = document["metadata"]
    q_params = typed_q_params(document.get("qParams") or {})
    if q_params != document.get("qParams"):
        repairs.append("qParams were missing or held strings or nulls in place of typed values")
    graph = nx.DiGraph(metadata=metadata, q_params=q_params, repairs=repairs)
    try:
        renamed = _add_nodes(graph, document["nodes"], metadata.get("schema_version") == 1, repairs)
        _add_links(graph, document["links"], renamed, repairs)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise FileFormatError(f"a node or link lacks a field or has one of a wrong type: {str(error)[:200]}") from error
    return graph


def prompt_tokens(metadata: Mapping[str, Any]) -> list[str]:
    """The texts of the prompt's tokens that a viewer's metadata hold; none where they hold none."""
    found = metadata.get("prompt_tokens") or []
    if not isinstance(found, list):
        raise FileFormatError(f"prompt_tokens are {shortened(found)}; expected a list of texts, one a position")
    return [str(token) for token in found]


def features_of(document: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    """(layer, index) of every transcoder feature of a viewer's document, node by node: one at two positions comes twice."""
    paired = document["metadata"].get("schema_version") == 1
    for node in document["nodes"]:
        number = node.get("feature")
        if node.get("feature_type") == "cross layer transcoder" and isinstance(number, int) and number >= 0:
            try:
                yield cantor_unpair(number) if paired else (_whole(node["layer"]), number)
            except (KeyError, TypeError, ValueError) as error:
                raise FileFormatError(f"a feature's layer is {shortened(node.get('layer'))}, not a number") from error


def typed_q_params(q_params: dict[str, Any]) -> dict[str, Any]:
    """A saved view with the types of R9, from what viewers write: comma-joined or JSON strings, and nulls.

    Args:
        q_params: As in a viewer's file.

    Returns:
        The view with lists, numbers and no nulls.
    """
    pinned, groups = q_params.get("pinnedIds"), q_params.get("supernodes")
    if isinstance(pinned, str):
        pinned = [name for name in pinned.split(",") if name]
    if isinstance(groups, str):
        try:
            groups = parse_json(groups, "qParams.supernodes", halves=True) if groups else []
        except FileFormatError as error:
            raise FileFormatError(f"qParams.supernodes is a string but no JSON: {error}") from error
    if not isinstance(pinned or [], list) or not isinstance(groups or [], list):
        raise FileFormatError("qParams: pinnedIds and supernodes must be lists")
    for group in groups or []:
        if not isinstance(group, list) or not group or not all(isinstance(item, str) for item in group):
            raise FileFormatError(
                f"qParams.supernodes must be lists of texts, a name and the ids of nodes; one is {shortened(group)}"
            )
    typed = {
        "pinnedIds": [str(name) for name in pinned or []],
        "supernodes": [list(group) for group in groups or []],
        "linkType": str(q_params.get("linkType") or "both"),
        "clickedId": str(q_params.get("clickedId") or ""),
        "sg_pos": str(q_params.get("sg_pos") or ""),
    }
    return {**{name: value for name, value in q_params.items() if name not in typed and value is not None}, **typed}


def _add_nodes(
    graph: networkx.DiGraph, nodes: list[dict[str, Any]], paired: bool, repairs: list[str]
) -> dict[str, str]:
    """Add all nodes; returns the new names of error nodes whose old name is free of other claims."""
    counts = Counter(node["node_id"] for node in nodes)
    renamed: dict[str, str] = {}
    for node in nodes:
        kind = _KINDS.get(node["feature_type"], "unknown")
        layer = -1 if node["layer"] == "E" else _whole(node["layer"])
        name, position = node["node_id"], _whole(node["ctx_idx"])
        if not isinstance(name, str):
            raise TypeError(f"node_id is {shortened(name)}")
        old = _OLD_ERROR_ID.fullmatch(name) if kind == "error" else None
        if old and old.groups() == (str(layer), str(position)):
            new = f"{layer}_-1_{position}"
            if counts[name] == 1:
                renamed[name] = new
            else:
                repairs.append(f"{name} named both a feature and the error node {new}; its links went to the feature")
            name = new
        if name in graph:
            repairs.append(f"node {name} occurred twice; the first one was kept")
            continue
        extra: dict[str, Any] = {"kind": kind, "layer": layer, "position": position}
        if paired and kind == "feature":
            extra["index"] = cantor_unpair(_whole(node["feature"]))[1]
        known = {field: value for field, value in node.items() if value is not None}
        graph.add_node(name, **{**known, "node_id": name, **extra})
    if renamed:
        repairs.append(f"{len(renamed)} error nodes had ids of the old form 0_layer_position")
    return renamed


def _add_links(
    graph: networkx.DiGraph, links: list[dict[str, Any]], renamed: dict[str, str], repairs: list[str]
) -> None:
    dangling = 0
    for link in links:
        source, target = (renamed.get(link[end], link[end]) for end in ("source", "target"))
        if source in graph and target in graph:
            graph.add_edge(source, target, weight=float(link["weight"]))
        else:
            dangling += 1
    if dangling:
        repairs.append(f"{dangling} links led to or from nodes that are not in the file and were dropped")


def _whole(value: Any) -> int:
    """A whole number, or its digits; what would be rounded is none."""
    number = int(value)
    if isinstance(value, float) and value != number:
        raise ValueError(f"{value} is no whole number")
    return number
