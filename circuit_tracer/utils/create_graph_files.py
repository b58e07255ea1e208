"""circuit-tracer's `circuit_tracer.utils.create_graph_files`."""

from circuit_tracer.graph.files.native import as_graph as load_graph_data
from circuit_tracer.graph.files.viewer_json import create_graph_files

__all__ = ["create_graph_files", "load_graph_data"]
