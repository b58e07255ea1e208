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
from circuit_tracer.graph.paths import Path, strongest_paths
from circuit_tracer.graph.pruning import PruneResult, prune_graph
from circuit_tracer.graph.scores import GraphScores, PathLengths, compute_graph_scores, graph_scores, path_lengths
from circuit_tracer.graph.selection import cumulative_ranks, cumulative_threshold, find_threshold
from circuit_tracer.graph.targets import CustomTarget, LogitTarget, TargetTable

__all__ = [
    "CustomTarget",
    "Edges",
    "Graph",
    "GraphConfig",
    "GraphScores",
    "LogitTarget",
    "NodeKind",
    "NodeLayout",
    "NodeTable",
    "Path",
    "PathLengths",
    "PruneResult",
    "Reconstruction",
    "RowBalance",
    "TargetTable",
    "compute_edge_influence",
    "compute_graph_scores",
    "compute_influence",
    "compute_node_influence",
    "compute_partial_influences",
    "cumulative_ranks",
    "cumulative_threshold",
    "edge_influence",
    "find_threshold",
    "graph_scores",
    "node_influence",
    "normalize_matrix",
    "path_lengths",
    "prune_graph",
    "strongest_paths",
]
