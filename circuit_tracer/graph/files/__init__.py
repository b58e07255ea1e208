"""Graphs in files: native (safetensors), circuit-tracer's .pt, networkx, and JSON for viewers."""

from circuit_tracer.graph.files.graph_index import add_to_index, read_index
from circuit_tracer.graph.files.native import as_graph, is_native, load_graph, save_graph
from circuit_tracer.graph.files.networkx import from_networkx, to_networkx
from circuit_tracer.graph.files.pt import load_pt, save_pt
from circuit_tracer.graph.files.read_json import from_json, load_viewer_json, typed_q_params
from circuit_tracer.graph.files.validate import validate_document
from circuit_tracer.graph.files.viewer_json import create_graph_files

__all__ = [
    "add_to_index",
    "as_graph",
    "create_graph_files",
    "from_json",
    "from_networkx",
    "is_native",
    "load_graph",
    "load_pt",
    "load_viewer_json",
    "read_index",
    "save_graph",
    "save_pt",
    "to_networkx",
    "typed_q_params",
    "validate_document",
]
