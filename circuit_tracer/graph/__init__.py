"""Attribution graphs: nodes, edges, influence, pruning, scores, paths. Files are in ``circuit_tracer.graph.files``."""

from circuit_tracer.graph.balance import Reconstruction, RowBalance
from circuit_tracer.graph.config import GraphConfig
from circuit_tracer.graph.edges import Edges
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.influence import (
    compute_edge_influence,
    compute_influence,
    compute_node_influence,
    compute_partial_influences,
    edge_influence,
    node_influence,
    normalize_matrix,
)
from circuit_tracer.graph.nodes import NodeKind, NodeLayout, NodeTable
from circuit_tracer.graph.pruning import PruneResult, prune_graph
from circuit_tracer.graph.selection import cumulative_ranks, cumulative_threshold, find_threshold
from circuit_tracer.graph.targets import CustomTarget, LogitTarget, TargetTable

__all__ = [
    "CustomTarget",
    "Edges",
    "Graph",
    "GraphConfig",
    "LogitTarget",
    "NodeKind",
    "NodeLayout",
    "NodeTable",
    "PruneResult",
    "Reconstruction",
    "RowBalance",
    "TargetTable",
    "compute_edge_influence",
    "compute_influence",
    "compute_node_influence",
    "compute_partial_influences",
    "cumulative_ranks",
    "cumulative_threshold",
    "edge_influence",
    "find_threshold",
    "node_influence",
    "normalize_matrix",
    "prune_graph",
]
