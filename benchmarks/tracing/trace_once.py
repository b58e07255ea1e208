"""One attribute() call in a process of its own: what its memory plan said, what it took, and its graph. Prints one json line.

    python -m benchmarks.tracing.trace_once --model FOLDER --transcoders FOLDER --prompt long-25 --rows 512 [--memory 4GB]

`actual` is what the process held before the call plus the growth of its own (anonymous) memory at its highest, sampled every
millisecond. Pages of decoder files that are merely mapped do not count in it: the system takes them back when it needs them.
With them the resident set is `resident_peak`. `planned` is the plan's peak, made before the first row. `stages` are the
seconds of each stage of the trace; `parts` those of what the rows' stage does, added up over threads.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch

from benchmarks.common.harness import read_prompts, reset_peak, resident_peak_gb
from benchmarks.common.places import PROMPTS
from benchmarks.tracing.flops import Sizes, row_flops

PAGE = os.sysconf("SC_PAGE_SIZE")


def own_bytes() -> int:
    """Resident memory that no file backs (Linux)."""
    _, resident, shared = Path("/proc/self/statm").read_text().split()[:3]
    return (int(resident) - int(shared)) * PAGE


class Peak:
    """The largest `own_bytes` while the block runs."""

    def __enter__(self) -> Peak:
        self.most, self._done = own_bytes(), threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.001):
            self.most = max(self.most, own_bytes())

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._watcher.join()


class Watch:
    """Seconds spent in some functions, by name, whichever thread calls them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._lock = threading.Lock()

    def over(self, owner: Any, **names: str) -> None:
        """Time functions of a module or methods of a class: label = name."""
        for label, name in names.items():
            given = inspect.getattr_static(owner, name)
            timed = self._timed(label.replace("_", " "), getattr(given, "__func__", given))
            setattr(owner, name, type(given)(timed) if isinstance(given, classmethod) else timed)

    def _timed(self, label: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                with self._lock:
                    self.seconds[label] = self.seconds.get(label, 0.0) + time.perf_counter() - start

        return timed


def flop_count(model: Any, graph: Any) -> float:
    """Operations of the rows that a graph holds (flops.py)."""
    cfg, active = model.cfg, graph.active_features.numpy()
    chosen, targets = active[graph.selected_features.numpy()], len(graph.logit_targets)
    layer = np.concatenate([chosen[:, 0], np.full(targets, cfg.n_layers)])
    position = np.concatenate([chosen[:, 1], np.full(targets, graph.n_pos - 1)])
    sizes = Sizes(cfg.n_layers, cfg.d_model, cfg.d_head, cfg.n_heads, cfg.n_key_value_heads)
    return row_flops(sizes, active, layer, position, len(model.transcoders.target_layers(0)) > 1, graph.n_pos)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--transcoders", type=Path, required=True)
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--rows", type=int, default=0, help="features expanded; 0: all")
    parser.add_argument("--memory", default=None)
    parser.add_argument("--keep-edge-mass", type=float, default=None)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--save", type=Path, default=None, help="write the graph's numbers here (.npz)")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    from circuit_tracer import ReplacementModel
    from circuit_tracer.attribution import trace
    from circuit_tracer.attribution.attribute import attribute
    from circuit_tracer.attribution.decoder_rows import DecoderRows
    from circuit_tracer.attribution.finished_block import FinishedBlock
    from circuit_tracer.attribution.finished_rows import FinishedRows
    from circuit_tracer.attribution.memory import held_bytes
    from circuit_tracer.models.frozen import FrozenLayer

    model = ReplacementModel.from_pretrained(str(args.model), str(args.transcoders), dtype=torch.float32)
    prompt = read_prompts(PROMPTS, [args.prompt], model.tokenizer)[args.prompt]
    plans, plan_memory = [], trace.plan_memory
    trace.plan_memory = lambda *sizes: plans.append(plan_memory(*sizes)) or plans[-1]
    stages, parts = Watch(), Watch()
    stages.over(trace, encode="encode", linearise="make_linear", rows="compute_rows", graph="make_graph")
    parts.over(FrozenLayer, attention="attend_back_")
    parts.over(DecoderRows, decoder_rows="contract_")
    parts.over(FinishedBlock, finishing_rows="of")
    parts.over(FinishedRows, influence="influence")
    held, own = held_bytes(torch.device("cpu")), own_bytes()
    reset_peak()
    start = time.perf_counter()
    with Peak() as peak:
        graph = attribute(
            prompt,
            model,
            max_feature_nodes=args.rows,
            memory=args.memory,
            batch_size=args.batch_size,
            keep_edge_mass=args.keep_edge_mass,
        )
    seconds = time.perf_counter() - start
    plan = plans[0]
    if args.save:
        edges = graph.edges
        np.savez(
            args.save, selected=graph.selected_features, ptr=edges.row_ptr, source=edges.source, weight=edges.weight
        )
    print(
        json.dumps(
            {
                "tokens": graph.n_pos,
                "active": len(graph.active_features),
                "expanded": len(graph.selected_features),
                "edges": len(graph.edges),
                "seconds": seconds,
                "stages": stages.seconds,
                "parts": parts.seconds,
                "tflop": flop_count(model, graph) / 1e12,
                "held": held,
                "planned": plan.peak,
                "actual": held + peak.most - own,
                "resident_peak": int(resident_peak_gb() * 1e9),
                "plan": str(plan),
                "phases": {name: sum(items.values()) for name, items in plan.phases.items()},
                "residual": graph.residual,
                "dropped_mass": graph.provenance["dropped_mass"],
            }
        )
    )


if __name__ == "__main__":
    main()
