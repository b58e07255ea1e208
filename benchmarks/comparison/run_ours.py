"""This package's engine on the same inputs as ../peer/run_peer.py; writes the records described in ../common/harness.py.

python -m benchmarks.comparison.run_ours --model FOLDER --transcoders FOLDER --out FOLDER [--only NAME ...]
"""

from __future__ import annotations

import os
from types import SimpleNamespace

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from benchmarks.common.harness import parser, run


def main() -> None:
    args = parser(__doc__).parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    from circuit_tracer import ReplacementModel, attribute
    from circuit_tracer.graph import compute_graph_scores, compute_node_influence, prune_graph
    from circuit_tracer.utils.create_graph_files import create_graph_files

    model = ReplacementModel.from_pretrained(
        str(args.model), str(args.transcoders), device=args.device, dtype=torch.float32
    )
    api = SimpleNamespace(
        attribute=attribute,
        prune_graph=prune_graph,
        compute_graph_scores=compute_graph_scores,
        compute_node_influence=compute_node_influence,
        create_graph_files=create_graph_files,
    )
    run("ours", args, model, model.tokenizer, api)


if __name__ == "__main__":
    main()
