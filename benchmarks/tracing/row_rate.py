"""Our rows a second, as a fraction of what the machine's matrix product rate allows. Prints one json object.

    python -m benchmarks.tracing.row_rate --model FOLDER --transcoders FOLDER --prompt long-25 --rows 512 2000 --threads 2

Two warm `attribute()` calls of one process differ in the number of expanded features only: their difference in seconds
against their difference in operations (flops.py) is the rate, from which the fixed part of a call (forward pass,
encoding, reading decoder rows) cancels. The matrix product rate is that of square fp32 products, with as many threads.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from benchmarks.common.harness import read_prompts
from benchmarks.common.places import PROMPTS
from benchmarks.tracing.flops import Sizes, row_flops

FEW = 8
REPEATS = 3


def matrix_product_rate(size: int = 2048, seconds: float = 3.0) -> float:
    """Operations a second of fp32 (size, size) products, the median over about `seconds`."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    torch.mm(a, b)
    rates, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        torch.mm(a, b)
        rates.append(2 * size**3 / (time.perf_counter() - start))
    return statistics.median(rates)


def expanded_flops(model: Any, graph: Any) -> float:
    """Operations for the feature and target rows of a graph."""
    cfg = model.cfg
    sizes = Sizes(cfg.n_layers, cfg.d_model, cfg.d_head, cfg.n_heads, cfg.n_key_value_heads or cfg.n_heads)
    active = graph.active_features.cpu().numpy()
    chosen = active[graph.selected_features.cpu().numpy()]
    n_pos, targets = len(graph.input_tokens), len(graph.logit_targets)
    layer = torch.tensor([*chosen[:, 0].tolist(), *[cfg.n_layers] * targets]).numpy()
    position = torch.tensor([*chosen[:, 1].tolist(), *[n_pos - 1] * targets]).numpy()
    cross_layer = model.transcoders.kind == "cross_layer_transcoder"
    return row_flops(sizes, active, layer, position, cross_layer, n_pos)


def timed(model: Any, prompt: Any, rows: int) -> tuple[float, Any]:
    """Fastest of a few warm calls, and its graph."""
    from circuit_tracer import attribute

    best, graph = float("inf"), None
    for _ in range(REPEATS):
        start = time.perf_counter()
        graph = attribute(prompt, model, max_feature_nodes=rows)
        best = min(best, time.perf_counter() - start)
    return best, graph


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--transcoders", type=Path, required=True)
    parser.add_argument("--prompt", default="long-25")
    parser.add_argument("--rows", type=int, nargs="+", default=[512, 2000])
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    from circuit_tracer import ReplacementModel

    model = ReplacementModel.from_pretrained(str(args.model), str(args.transcoders), dtype=torch.float32)
    prompt = read_prompts(PROMPTS, [args.prompt], model.tokenizer)[args.prompt]
    few_seconds, few_graph = timed(model, prompt, FEW)
    few_flops = expanded_flops(model, few_graph)
    product_rate = matrix_product_rate()
    found = []
    for rows in args.rows:
        seconds, graph = timed(model, prompt, rows)
        flops = expanded_flops(model, graph) - few_flops
        extra, more = seconds - few_seconds, len(graph.selected_features) - len(few_graph.selected_features)
        found.append(
            {
                "rows": len(graph.selected_features),
                "call_seconds": seconds,
                "rows_per_second": more / extra,
                "mflop_per_row": flops / more / 1e6,
                "gflop_per_second": flops / extra / 1e9,
                "fraction": flops / extra / product_rate,
            }
        )
    print(json.dumps({"fixed_seconds": few_seconds, "matrix_product_gflops": product_rate / 1e9, "rows": found}))


if __name__ == "__main__":
    main()
