"""What comparison/run_ours.py and peer/run_peer.py share: arguments, prompts, measuring, and the record they write.

It runs inside both virtual environments, so it imports numpy and torch only. Both engines offer `prune_graph`,
`compute_graph_scores` and `compute_node_influence` under the same names, so `collect` is one function for both.

Record: OUT/NAME.npz, with N nodes (features | errors l*P+p | tokens | targets), E non-zero edges, N_f active features
    meta            json: engine, versions, arguments, prompt, seconds, peak_gb, n_layers, ...
    ids             (P,)   int64    token ids, BOS included
    active          (N_f,3) int32   layer, position, index;     activations (N_f,) float32
    selected        (N_s,) int64    indices into `active`
    row_ptr, source, weight         the adjacency by rows of targets: (N+1,), (E,), (E,) float32
    logit_ids, logit_probs (K,);    logit_tokens: json list of strings
    influence, cumulative (N,)      node influence, and its cumulative share by rank (`cumulative_scores`)
    node_mask (N,) bool;            kept_target, kept_source: the pairs that `edge_mask` keeps
    scores (2,)                     replacement, completeness
OUT/NAME.json is what the engine's own `create_graph_files` wrote (thresholds 0.8 and 0.98).
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common.places import PROMPTS

PACKAGES = ("circuit-tracing", "circuit-tracer", "torch", "transformers", "transformer-lens", "numpy")


def parser(description: str | None) -> argparse.ArgumentParser:
    """The arguments that both runners take."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--model", type=Path, required=True, help="Hugging Face folder")
    made.add_argument("--transcoders", type=Path, required=True, help="folder in a native layout, with config.yaml")
    made.add_argument("--out", type=Path, required=True, help="folder for the records")
    made.add_argument("--prompts", type=Path, default=PROMPTS, help="name -> text, or file and tokens")
    made.add_argument("--only", nargs="*", help="names of prompts (default: all)")
    made.add_argument("--max-feature-nodes", type=int, default=None)
    made.add_argument("--batch-size", type=int, default=512)
    made.add_argument("--update-interval", type=int, default=4)
    made.add_argument("--device", default="cpu", help="cpu or cuda")
    made.add_argument("--threads", type=int, default=None, help="torch threads (default: torch's own choice)")
    made.add_argument("--calls", type=int, default=1, help="traces of each prompt; the record is of the first")
    made.add_argument("--timing-only", action="store_true", help="trace, but do not prune, score or write graph files")
    return made


def read_prompts(path: Path, only: list[str] | None, tokenizer: Any) -> dict[str, str | torch.Tensor]:
    """Prompts by name: text, or for `{"file", "tokens": n}` the ids of BOS and the first n-1 tokens of that file."""
    entries = json.loads(path.read_text())
    missing = set(only or []) - set(entries)
    if missing:
        raise SystemExit(f"no prompt named {sorted(missing)} in {path}; it has {sorted(entries)}")
    prompts: dict[str, str | torch.Tensor] = {}
    for name in only or entries:
        entry = entries[name]
        if isinstance(entry, str):
            prompts[name] = entry
            continue
        ids = tokenizer((path.parent / entry["file"]).read_text(), add_special_tokens=False).input_ids
        if len(ids) < entry["tokens"] - 1:
            raise SystemExit(f"{entry['file']} has {len(ids)} tokens, prompt {name} wants {entry['tokens'] - 1}")
        prompts[name] = torch.tensor([tokenizer.bos_token_id, *ids[: entry["tokens"] - 1]])
    return prompts


def reset_peak() -> bool:
    """Starts a new peak of the resident set (Linux); False where that is not possible."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def resident_peak_gb() -> float:
    """Peak resident set since `reset_peak`, in GB (1e9 bytes); where there is no /proc, since the process started."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e9
    except OSError:
        pass
    return process_peak_gb()


def process_peak_gb() -> float:
    """Peak resident set since the start of the process, in GB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def measure(call: Callable[[], Any], device: str = "cpu") -> tuple[Any, dict[str, float]]:
    """The result of `call()`, its seconds and its peak, the loaded model included but not its loading.

    The peak is the resident set's; on CUDA what torch has allocated there.
    """
    on_gpu = torch.device(device).type == "cuda"
    gc.collect()
    reset_peak()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = call()
    if on_gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    peak_gb = torch.cuda.max_memory_allocated() / 1e9 if on_gpu else resident_peak_gb()
    return result, {"seconds": seconds, "peak_gb": peak_gb, "process_peak_gb": process_peak_gb()}


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def to_numpy(tensor: torch.Tensor, dtype: Any) -> np.ndarray:
    return tensor.detach().cpu().numpy().astype(dtype)


def collect(graph: Any, api: Any) -> dict[str, np.ndarray]:
    """Everything of a graph that is compared, by the engine's own functions."""
    adjacency = graph.adjacency_matrix.detach().cpu()
    K = len(graph.logit_targets)
    weights = torch.zeros(len(adjacency), dtype=adjacency.dtype)
    weights[-K:] = graph.logit_probabilities.detach().cpu().to(adjacency.dtype)
    pruned = api.prune_graph(graph)
    # Ours comes with the influence that decided the pruning; the peer's has to be computed once more.
    influence = getattr(pruned, "influence", None)
    if influence is None:
        influence = api.compute_node_influence(adjacency, weights)
    target, source = adjacency.nonzero(as_tuple=True)
    kept_target, kept_source = pruned.edge_mask.nonzero(as_tuple=True)
    row_ptr = torch.zeros(len(adjacency) + 1, dtype=torch.int64)
    row_ptr[1:] = torch.bincount(target, minlength=len(adjacency)).cumsum(0)
    return {
        "ids": to_numpy(torch.as_tensor(graph.input_tokens), np.int64),
        "active": to_numpy(graph.active_features, np.int32),
        "activations": to_numpy(graph.activation_values, np.float32),
        "selected": to_numpy(graph.selected_features, np.int64),
        "row_ptr": row_ptr.numpy(),
        "source": to_numpy(source, np.int32),
        "weight": to_numpy(adjacency[target, source], np.float32),
        "logit_ids": np.array([t.vocab_idx for t in graph.logit_targets]),
        "logit_tokens": np.array(json.dumps([t.token_str for t in graph.logit_targets])),
        "logit_probs": to_numpy(graph.logit_probabilities, np.float64),
        "influence": to_numpy(influence, np.float64),
        "cumulative": to_numpy(pruned.cumulative_scores, np.float64),
        "node_mask": to_numpy(pruned.node_mask, bool),
        "kept_target": to_numpy(kept_target, np.int32),
        "kept_source": to_numpy(kept_source, np.int32),
        "scores": np.array(api.compute_graph_scores(graph), dtype=np.float64),
    }


def save(path: Path, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, meta=np.array(json.dumps(meta)), **arrays)


def load(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(arrays, meta) of a record."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files if name != "meta"}
        return arrays, json.loads(str(file["meta"]))


def run(engine: str, args: argparse.Namespace, model: Any, tokenizer: Any, api: Any) -> None:
    """Traces every prompt and writes its record. `api` has attribute, prune_graph, compute_graph_scores,
    compute_node_influence and create_graph_files of the engine."""
    for name, prompt in read_prompts(args.prompts, args.only, tokenizer).items():
        options = {
            "max_feature_nodes": args.max_feature_nodes,
            "batch_size": args.batch_size,
            "update_interval": args.update_interval,
        }
        trace = partial(api.attribute, prompt, model, **options)
        graph, measured = measure(trace, args.device)
        text = prompt if isinstance(prompt, str) else tokenizer.decode(prompt)
        meta = {"engine": engine, "name": name, "prompt": text, **options, **measured, "versions": versions()}
        meta |= {"model": args.model.name, "transcoders": args.transcoders.name, "threads": torch.get_num_threads()}
        meta |= {"active": len(graph.active_features), "expanded": len(graph.selected_features)}
        meta |= {"n_layers": graph.cfg.n_layers}
        meta["later"] = [measure(trace, args.device)[1] for _ in range(args.calls - 1)]
        arrays: dict[str, np.ndarray] = {"ids": to_numpy(torch.as_tensor(graph.input_tokens), np.int64)}
        if not args.timing_only:
            arrays = collect(graph, api)
            args.out.mkdir(parents=True, exist_ok=True)
            api.create_graph_files(graph, name, str(args.out.resolve()), scan=args.transcoders.name)
        save(args.out / f"{name}.npz", arrays, meta)
        print(
            f"{engine:5} {name:10} {len(graph.input_tokens):4} tokens {len(graph.active_features):6} active "
            f"{len(graph.selected_features):6} expanded {measured['seconds']:8.2f} s {measured['peak_gb']:6.2f} GB",
            flush=True,
        )
