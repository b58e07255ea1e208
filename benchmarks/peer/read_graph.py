"""What circuit-tracer makes of a graph file: in its environment, reads GRAPH.pt, writes it again, prints what it holds.

PEER/bin/python benchmarks/peer/read_graph.py GRAPH.pt AGAIN.pt
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from typing import Any


def seen(path: str, again: str) -> dict[str, Any]:
    from circuit_tracer.graph import Graph, compute_graph_scores, prune_graph

    graph = Graph.from_pt(path)
    graph.to_pt(again)
    node_mask, edge_mask, _ = prune_graph(graph)
    return {
        "version": version("circuit-tracer"),
        "targets": [[target.token_str, target.vocab_idx] for target in graph.logit_targets],
        "token_ids": graph.logit_token_ids.tolist(),
        "tokenizer_name": graph.cfg.tokenizer_name,
        "cfg": {name: str(value) for name, value in graph.cfg.to_dict().items()},
        "n_pos": graph.n_pos,
        "scan": graph.scan,
        "vocab_size": graph.vocab_size,
        "scores": compute_graph_scores(graph),
        "kept": [int(node_mask.sum()), int(edge_mask.sum())],
    }


if __name__ == "__main__":
    print(json.dumps(seen(*sys.argv[1:])))
