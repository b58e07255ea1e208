"""What a trace without a dictionary costs: seconds and memory on a prompt of 25 tokens with 2,000 neurons as nodes.

    python -m benchmarks.neurons.cost --models FOLDER FILE.gguf [--results neurons_cost.json]

Reported, for each model: seconds of loading it with its neurons (checked to add up) and of one trace after a short one, the
peak of the process, the graph's sizes, the share of all neurons' effects that the nodes hold, scores. Nothing is reported if a
row of a graph misses its sum by more than is promised (`attribute` refuses).
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from benchmarks.common.harness import measure, versions
from benchmarks.common.machine import describe, write_results
from benchmarks.common.places import RESULTS

TEXT = (
    "The keys to the cabinet that the old man had bought at the market last year were lying on the table, and the children "
    "looked at them for a long time"
)


def of_model(path: Path, rows: int, tokens: int) -> dict[str, Any]:
    """The cost of one trace."""
    from circuit_tracer import ReplacementModel, attribute, compute_graph_scores

    start = time.perf_counter()
    model = ReplacementModel.from_pretrained(str(path), "neurons", dtype=torch.float32)
    loading = time.perf_counter() - start
    ids = model.ensure_tokenized(TEXT)[:tokens]
    if len(ids) < tokens:
        raise SystemExit(f"the text has {len(ids)} tokens with this model, {tokens} are wanted")
    attribute(ids[:6], model, max_feature_nodes=20)
    start = time.process_time()
    graph, cost = measure(lambda: attribute(ids, model, max_feature_nodes=rows))
    replacement, completeness = compute_graph_scores(graph)
    return {
        "tokens": len(ids),
        "nodes": len(graph.selected_features),
        "neurons": graph.provenance["neurons"]["of"],
        "share_of_effect": round(graph.provenance["neurons"]["share_of_effect"], 4),
        "edges": len(graph.edges),
        "replacement": round(replacement, 4),
        "completeness": round(completeness, 4),
        "residual": graph.residual,
        "loading_seconds": round(loading, 2),
        "cpu_seconds": round(time.process_time() - start, 2),
        **{name: round(value, 3) for name, value in cost.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, nargs="+", required=True)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--tokens", type=int, default=25)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", help="write this file of benchmarks/results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results: dict[str, Any] = describe(versions=versions(), threads=args.threads, models={})
    for path in args.models:
        found = results["models"][path.name] = of_model(path, args.rows, args.tokens)
        print(path.name, found, flush=True)
    if args.results:
        write_results(RESULTS / args.results, results)


if __name__ == "__main__":
    main()
