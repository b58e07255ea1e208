"""Graph files of every format, by the ending of their name."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, Literal
from xml.etree.ElementTree import ParseError

from circuit_tracer.errors import FileFormatError, InputError
from circuit_tracer.files import LARGEST_JSON, atomic_write, read_bytes, read_json
from circuit_tracer.files.digests import sealed, unsealed
from circuit_tracer.graph.files.native import as_graph
from circuit_tracer.graph.files.networkx import from_networkx
from circuit_tracer.graph.graph import Graph

GraphFormat = Literal["native", "pt", "graphml", "node-link"]
SUFFIXES: dict[str, GraphFormat] = {
    ".safetensors": "native",
    ".pt": "pt",
    ".graphml": "graphml",
    ".json": "node-link",
}


# what networkx raises about a file that it did not write, besides errors of its own
_UNFIT = (ParseError, LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RecursionError)


def format_of(path: Path) -> GraphFormat:
    """The format that a file's ending stands for; InputError listing the known ones."""
    if path.suffix not in SUFFIXES:
        raise InputError(f"cannot tell the format of {path} from its ending; known are {', '.join(SUFFIXES)}")
    return SUFFIXES[path.suffix]


def read_graph(path: Path) -> Graph:
    """A graph from a native, `.pt`, GraphML or node-link JSON file.

    Raises InputError if there is no such file, FileFormatError if it cannot be read, also for a viewer's JSON, which
    holds a pruned graph without what a `Graph` needs.
    """
    if path.suffix not in (".graphml", ".json"):
        return as_graph(path)
    return from_networkx(_read_graphml(path) if path.suffix == ".graphml" else _read_node_link(path))


def write_graph(graph: Graph, path: Path, kind: GraphFormat | None = None) -> None:
    """Write a graph in the format `kind`, by default the one its ending stands for; an older file is replaced at the
    end.
    """
    kind = kind or format_of(path)
    if kind == "native":
        graph.save(path)
    elif kind == "pt":
        graph.to_pt(path)
    else:
        import networkx as nx

        directed = graph.to_networkx()
        directed.graph |= sealed(directed.graph, beside=_rows(directed))
        with atomic_write(path) as temporary:
            if kind == "graphml":
                nx.write_graphml(directed, temporary)
            else:
                text = json.dumps(nx.node_link_data(directed, edges="edges"), allow_nan=False)
                temporary.write_text(text, encoding="utf-8")


def _rows(directed: Any) -> list[Any]:
    """Nodes and edges, for the digest among the graph's attributes."""
    return [list(directed.nodes(data=True)), list(directed.edges(data=True))]


def _unsealed(directed: Any, path: Path) -> Any:
    """The graph without its digest, which must be right."""
    for made_by_reading in ("node_default", "edge_default"):
        directed.graph.pop(made_by_reading, None)
    directed.graph = unsealed(directed.graph, str(path), beside=_rows(directed))
    return directed


def _read_graphml(path: Path) -> Any:

    import networkx as nx

    data = read_bytes(path, LARGEST_JSON)
    if b"<!" in data.replace(b"<!--", b""):
        raise FileFormatError(f"{path} has a document type or entities, which no GraphML needs; it is not read.")
    try:
        return _unsealed(nx.read_graphml(io.BytesIO(data)), path)
    except (*_UNFIT, nx.NetworkXException) as error:
        raise FileFormatError(f"{path} is no GraphML, or it is cut short: {str(error)[:300]}") from error


def _read_node_link(path: Path) -> Any:
    import networkx as nx

    document = read_json(path)
    if isinstance(document, dict) and {"metadata", "links"} <= set(document):
        raise FileFormatError(
            f"{path} is a viewer's file: it holds a pruned graph, which cannot become a graph file again. Convert the "
            "graph file that it was made from, or read it into networkx with circuit_tracer.graph.files.read_json.from_json."
        )
    try:
        return _unsealed(nx.node_link_graph(document, edges="edges"), path)
    except (*_UNFIT, nx.NetworkXException) as error:
        raise FileFormatError(
            f"{path} is no node-link JSON as networkx writes it: {type(error).__name__} {str(error)[:200]}"
        ) from error
