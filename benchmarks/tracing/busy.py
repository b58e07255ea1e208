"""A trace on a busy machine: the first and later calls of a process, quiet and beside processes that never wait.

    python -m benchmarks.tracing.busy --model FOLDER --transcoders FOLDER

The load is made here: so many processes that only count, started and ended by this one (they end by themselves once it is gone,
however it ended). Each measurement is a process of its own that calls `attribute` a few times. No time is reported unless
all graphs, of all calls, beside any load, are equal to the bit. Other work on the machine falsifies the ratios: what
others used meanwhile is in the record.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import circuit_tracer  # noqa: F401, isort: skip - before torch, as it says how torch's threads are to wait
import torch

from benchmarks.common.harness import read_prompts, reset_peak, resident_peak_gb, versions
from benchmarks.common.machine import describe, write_results
from benchmarks.common.places import PROMPTS, RESULTS
from benchmarks.common.processes import answer, our_command

GOAL = 2.5  # times the quiet time, beside two loops on two cores
LOOPS = (0, 2, 5)
# counts until the process that started it is gone; looks every few milliseconds
LOOP = "import os, sys\nwhile os.getppid() == int(sys.argv[1]):\n    for _ in range(100_000): pass"


@contextmanager
def busy(count: int) -> Iterator[list[int]]:
    """Inside, so many processes count; yields their ids. None is left, whatever happens inside."""
    loops: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            loops.append(subprocess.Popen([sys.executable, "-S", "-c", LOOP, str(os.getpid())]))
        yield [loop.pid for loop in loops]
    finally:
        for loop in loops:
            loop.kill()
        for loop in loops:
            loop.wait()


def fingerprint(graph: Any) -> str:
    """Of all edges and nodes of a graph: the same for the same bits."""
    digest = hashlib.sha256()
    edges = graph.edges
    for tensor in (edges.weight, edges.source, edges.row_ptr, graph.active_features, graph.selected_features):
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()[:16]


def calls(args: argparse.Namespace) -> dict[str, Any]:
    """What some calls in this process take, the first one first."""
    if args.threads:
        torch.set_num_threads(args.threads)
    from circuit_tracer import ReplacementModel, attribute

    model = ReplacementModel.from_pretrained(str(args.model), str(args.transcoders), dtype=torch.float32)
    prompt = read_prompts(PROMPTS, [args.prompt], model.tokenizer)[args.prompt]
    reset_peak()
    seconds, graphs = [], []
    for _ in range(args.calls):
        start = time.perf_counter()
        graph = attribute(prompt, model, max_feature_nodes=args.rows)
        seconds.append(time.perf_counter() - start)
        graphs.append(fingerprint(graph))
    return {"seconds": seconds, "peak_gb": resident_peak_gb(), "graphs": graphs, "threads": torch.get_num_threads()}


def beside(loops: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """`calls` in some processes, one after the other, beside so many busy loops."""
    words = ["--model", args.model, "--transcoders", args.transcoders, "--prompt", args.prompt, "--rows", args.rows]
    words += ["--calls", args.calls, *(["--threads", args.threads] if args.threads else []), "--one"]
    with busy(loops):
        return [answer([*our_command("tracing.busy"), *map(str, words)]) for _ in range(args.runs)]


def summary(loops: int, runs: Sequence[dict[str, Any]], quiet: dict[str, Any] | None) -> dict[str, Any]:
    """Medians of the first and of the later calls, their ratio to those of a quiet machine, and the highest peak."""
    line = {
        "loops": loops,
        "first": statistics.median(run["seconds"][0] for run in runs),
        "warm": statistics.median(second for run in runs for second in run["seconds"][1:]),
        "peak_gb": max(run["peak_gb"] for run in runs),
        "all_seconds": [run["seconds"] for run in runs],
    }
    than = quiet or line
    return line | {f"{name}_ratio": line[name] / than[name] for name in ("first", "warm")}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All loads; SystemExit if a graph differs from another."""
    lines: list[dict[str, Any]] = []
    graphs: set[str] = set()
    print(
        f"{args.prompt}, {args.rows} features expanded; goal beside two loops on two cores: {GOAL} times the quiet time"
    )
    for loops in LOOPS:
        runs = beside(loops, args)
        graphs |= {graph for run in runs for graph in run["graphs"]}
        if len(graphs) > 1:
            raise SystemExit(f"no time reported: beside {loops} busy loops the graphs differ ({sorted(graphs)})")
        lines.append(summary(loops, runs, lines[0] if lines else None))
        print(
            f"  {loops} busy loops: first {lines[-1]['first']:6.2f} s ({lines[-1]['first_ratio']:.2f}), "
            f"later {lines[-1]['warm']:6.2f} s ({lines[-1]['warm_ratio']:.2f}), peak {lines[-1]['peak_gb']:.2f} GB",
            flush=True,
        )
    return {"prompt": args.prompt, "rows": args.rows, "threads": runs[0]["threads"], "goal": GOAL, "lines": lines}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder (inputs.prepare_models)")
    parser.add_argument("--transcoders", type=Path, required=True, help="inputs.make_random_transcoders, 2048 features")
    parser.add_argument("--prompt", default="long-25")
    parser.add_argument("--rows", type=int, default=512, help="features expanded")
    parser.add_argument("--runs", type=int, default=3, help="processes beside each load")
    parser.add_argument("--calls", type=int, default=4, help="calls of a process")
    parser.add_argument("--threads", type=int, help="torch threads (default: torch's own choice)")
    parser.add_argument("--one", action="store_true", help="only the calls of one process, as JSON")
    parser.add_argument("--results", type=Path, default=RESULTS / "busy.json")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(calls(args)))
        return
    results = describe(versions=versions(), **measure(args))
    write_results(args.results, results)


if __name__ == "__main__":
    main()
