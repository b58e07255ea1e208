"""circuit-tracer's `circuit_tracer.utils.create_graph_files`: the steps of it, for programs that take them one by one.

node_mask, edge_mask, cumulative_scores = prune_graph(graph)
nodes = create_nodes(graph, node_mask, tokenizer, cumulative_scores)
used_nodes, used_edges = create_used_nodes_and_edges(graph, nodes, edge_mask)
model = build_model(graph, used_nodes, used_edges, slug, scan, node_threshold, tokenizer)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.errors import InputError
from circuit_tracer.frontend.graph_models import Metadata, Model, Node, QParams
from circuit_tracer.graph.files.native import as_graph
from circuit_tracer.graph.files.node_ids import node_ids
from circuit_tracer.graph.files.viewer_json import create_graph_files, node_dicts, scan_name
from circuit_tracer.graph.graph import Graph

__all__ = [
    "build_graph_model",
    "build_model",
    "create_graph_files",
    "create_nodes",
    "create_used_nodes_and_edges",
    "load_graph_data",
]


def load_graph_data(file_path: str | Path) -> Graph:
    """The graph in a file, native or `.pt`."""
    return as_graph(file_path)


def create_nodes(graph: Graph, node_mask: Tensor, tokenizer: Any, cumulative_scores: Tensor) -> dict[int, Node]:
    """The nodes of a mask (N,), by number. `tokenizer` is not needed: the graph holds the texts of its targets."""
    which = torch.as_tensor(node_mask).to(graph.device).nonzero().flatten()
    ranks = torch.as_tensor(cumulative_scores).to(graph.device)
    rows = node_dicts(graph, which, node_ids(graph, which), ranks, {})
    return {number: Node(**row) for number, row in zip(which.tolist(), rows, strict=True)}


def create_used_nodes_and_edges(
    graph: Graph, nodes: dict[int, Node], edge_mask: Tensor
) -> tuple[list[Node], list[dict[str, Any]]]:
    """The edges of a mask (N, N) among `nodes`, and those of `nodes` that have one, with all tokens and targets."""
    mask = torch.as_tensor(edge_mask)
    if mask.shape != (graph.n_nodes, graph.n_nodes):
        raise InputError(f"edge_mask has shape {tuple(mask.shape)}; the graph has {graph.n_nodes} nodes")
    edges = graph.edges
    kept = edges.select(mask.to(edges.target.device)[edges.target, edges.source])
    used_edges = [
        {"source": nodes[source].node_id, "target": nodes[target].node_id, "weight": weight}
        for target, source, weight in kept
        if source in nodes and target in nodes
    ]
    connected = {edge[end] for edge in used_edges for end in ("source", "target")}
    first_token = graph.nodes.layout.token_start
    used = [node for number, node in nodes.items() if number >= first_token or node.node_id in connected]
    return used, used_edges


def build_model(
    graph: Graph,
    used_nodes: list[Node],
    used_edges: list[dict[str, Any]],
    slug: str,
    scan: str | list[str],
    node_threshold: float,
    tokenizer: Any,
) -> Model:
    """The document of a viewer. `tokenizer` gives the texts of tokens where the graph does not hold them."""
    tokens = graph.token_strings or [tokenizer.decode([token]) for token in graph.input_tokens.tolist()]
    return Model(
        metadata=Metadata(
            slug=slug,
            scan=scan_name(scan) if isinstance(scan, list) else scan,
            transcoder_list=scan if isinstance(scan, list) else [],
            prompt_tokens=tokens,
            prompt=graph.input_string,
            node_threshold=node_threshold,
        ),
        qParams=QParams(),
        nodes=used_nodes,
        links=used_edges,
    )


build_graph_model = build_model
