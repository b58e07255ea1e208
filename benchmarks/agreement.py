"""Does this package agree with circuit-tracer 0.5.0? Both trace the same prompts; everything they produce is compared.

    python -m benchmarks.agreement --model FOLDER --transcoders CLT PLT ... --peer PEER_VENV --work FOLDER

For each transcoder folder: all active features expanded, and once more with --budget features. Compared: token ids,
active features, activations, targets, probabilities, every edge, influence, both pruning masks, both scores, and the
viewer JSON. Besides, our pruning and scores are run on the peer's own graph, where only the graph code can differ.
Differences listed in comparison/known_differences.py are counted and named; any other makes the exit status 1.
Records of the peer that are in --work already are used again (delete them to trace anew): it is slow.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common.harness import load
from benchmarks.common.machine import describe, write_results
from benchmarks.common.places import RESULTS
from benchmarks.common.processes import our_command, peer_command
from benchmarks.comparison.graphs import (
    INFLUENCE_LIMIT,
    SCORE_LIMIT,
    Check,
    Record,
    compare_pruning,
    compare_records,
    dense,
    nodes_of,
    thresholds_of,
    tied_nodes,
)
from benchmarks.comparison.known_differences import KNOWN
from benchmarks.comparison.viewer_json import compare_graph_json

PROMPTS = ["france", "opposite", "dallas", "sport", "contraire", "sum", "code"]


def records(args: argparse.Namespace, transcoders: Path, budget: int | None) -> list[tuple[Path, Path]]:
    """(peer's record, ours) for every prompt; traces what is not there."""
    case = transcoders.name + (f"-budget-{budget}" if budget else "")
    theirs, mine = args.work / "peer" / case, args.work / "ours" / case
    common = ["--model", str(args.model), "--transcoders", str(transcoders), "--threads", str(args.threads)]
    missing = [name for name in args.prompts if not (theirs / f"{name}.npz").exists()]
    # Small batches: circuit-tracer carries out the full batch even for the ten target rows.
    batches = ["--batch-size", "64"]
    if budget:
        # Its greedy choice gets better the more often it ranks anew; 25 features a ranking are a fair setting.
        batches = ["--batch-size", "25", "--update-interval", "1", "--max-feature-nodes", str(budget)]
    if missing:
        command = [*peer_command(args.peer, "run_peer.py"), *common, *batches, "--out", str(theirs), "--only", *missing]
        subprocess.run(command, check=True)
    command = [*our_command("comparison.run_ours"), *common, *batches, "--out", str(mine), "--only", *args.prompts]
    subprocess.run(command, check=True)
    return [(theirs / f"{name}.npz", mine / f"{name}.npz") for name in args.prompts]


def graph_code_on_their_graph(peer: Record, meta: dict[str, Any]) -> list[Check]:
    """Our influence, pruning and scores, given the peer's adjacency."""
    from circuit_tracer.graph import Graph, compute_graph_scores, prune_graph
    from circuit_tracer.graph.targets import LogitTarget

    tokens = json.loads(str(peer["logit_tokens"]))
    adjacency = torch.from_numpy(dense(peer)).float()
    graph = Graph(
        input_string=meta["prompt"],
        input_tokens=torch.from_numpy(peer["ids"]),
        active_features=torch.from_numpy(peer["active"]).long(),
        adjacency_matrix=adjacency,
        cfg={"n_layers": meta["n_layers"], "d_vocab": int(peer["logit_ids"].max()) + 1},
        selected_features=torch.from_numpy(peer["selected"]),
        activation_values=torch.from_numpy(peer["activations"]),
        logit_targets=[LogitTarget(t, int(i)) for t, i in zip(tokens, peer["logit_ids"], strict=True)],
        logit_probabilities=torch.from_numpy(peer["logit_probs"]).float(),
    )
    pruned = prune_graph(graph)
    target, source = pruned.edge_mask.nonzero(as_tuple=True)
    masks = {"node_mask": pruned.node_mask.numpy(), "kept_target": target.numpy(), "kept_source": source.numpy()}
    pruning = compare_pruning(peer, masks, dense(peer), nodes_of(peer, meta["n_layers"]))
    worst = float(np.abs(pruned.influence.numpy() - peer["influence"]).max() / peer["influence"].max())
    scores = float(np.abs(np.array(compute_graph_scores(graph)) - peer["scores"]).max())
    checks = [
        Check("influence", worst <= INFLUENCE_LIMIT, worst, INFLUENCE_LIMIT),
        *pruning,
        Check("scores", scores <= SCORE_LIMIT, scores, SCORE_LIMIT),
    ]
    return [replace(check, name=f"their graph: {check.name}") for check in checks]


def compare_prompt(theirs: Path, mine: Path, thresholds: np.ndarray | None) -> tuple[list[Check], dict[str, Any]]:
    """All checks of one prompt, and what both runs say about themselves."""
    peer, meta = load(theirs)
    ours, our_meta = load(mine)
    checks = [*compare_records(peer, ours, meta, thresholds), *graph_code_on_their_graph(peer, meta)]
    same_nodes = [check for check in checks if check.name in ("node mask", "edge mask")]
    if same_nodes:
        rounded = any(check.known == "rounding" for check in same_nodes)
        texts = [path.with_suffix(".json").read_text() for path in (theirs, mine)]
        tied = tied_nodes(peer, ours, meta["n_layers"])
        checks += compare_graph_json(json.loads(texts[0]), json.loads(texts[1]), rounded, tied)
    summary = {
        "prompt": meta["prompt"],
        "tokens": len(peer["ids"]),
        "active": len(peer["active"]),
        "nodes": len(nodes_of(peer, meta["n_layers"]).keys),
        "peer_seconds": round(meta["seconds"], 2),
        "our_seconds": round(our_meta["seconds"], 2),
    }
    return checks, {"summary": summary, "versions": {"peer": meta["versions"], "ours": our_meta["versions"]}}


def report(case: str, by_prompt: dict[str, list[Check]]) -> list[dict[str, Any]]:
    """One line a check, over all prompts: how many passed, the worst value, what explains the rest."""
    names = list(dict.fromkeys(check.name for checks in by_prompt.values() for check in checks))
    print(f"\n{case}\n  {'check':24} {'prompts':>9} {'worst':>9} {'limit':>9}")
    lines = []
    for name in names:
        found = [(prompt, check) for prompt, checks in by_prompt.items() for check in checks if check.name == name]
        failed = [prompt for prompt, check in found if not check.passed]
        known = sorted({check.known for _, check in found if check.known})
        worst, limit = max(check.worst for _, check in found), max(check.limit for _, check in found)
        passed = f"{len(found) - len(failed)}/{len(found)}"
        line = {"check": name, "passed": passed, "worst": worst, "limit": limit, "known": known, "failed": failed}
        remarks = [f"{word}: {', '.join(line[word])}" for word in ("known", "failed") if line[word]]
        print(f"  {name:24} {passed:>9} {worst:9.1e} {limit:9.0e} {'; '.join(remarks)}")
        lines.append(line)
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder (inputs.prepare_models)")
    parser.add_argument("--transcoders", type=Path, nargs="+", required=True, help="native folders")
    parser.add_argument("--peer", type=Path, required=True, help="virtual environment of peer/setup_peer.sh")
    parser.add_argument("--work", type=Path, required=True, help="folder for the records of both engines")
    parser.add_argument("--prompts", nargs="+", default=PROMPTS, help="names out of prompts.json")
    parser.add_argument("--budget", type=int, default=200, help="features of the budgeted runs; 0: none")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS / "agreement.json")
    args = parser.parse_args()

    results = describe()
    results["cases"], failed = {}, False
    for transcoders in args.transcoders:
        thresholds = thresholds_of(transcoders)
        for budget in [None, args.budget] if args.budget else [None]:
            case = transcoders.name + (f", {budget} features expanded" if budget else ", all features expanded")
            by_prompt, about = {}, {}
            for theirs, mine in records(args, transcoders, budget):
                by_prompt[theirs.stem], about[theirs.stem] = compare_prompt(theirs, mine, thresholds)
            results["versions"] = next(iter(about.values()))["versions"]
            prompts = {
                name: {**about[name]["summary"], "differs": [asdict(check) for check in checks if not check.ok]}
                for name, checks in by_prompt.items()
            }
            results["cases"][case] = {"table": report(case, by_prompt), "prompts": prompts}
            failed |= any(not check.passed for checks in by_prompt.values() for check in checks)
    used = {name for case in results["cases"].values() for line in case["table"] for name in line["known"]}
    results["known_differences"] = {name: asdict(KNOWN[name]) for name in sorted(used)}
    results["agrees"] = not failed
    for name in sorted(used):
        print(f"\nknown difference {name}\n  theirs: {KNOWN[name].theirs}\n  ours:   {KNOWN[name].ours}")
    write_results(args.results, json.loads(json.dumps(results, default=float).replace("Infinity", "1e30")))
    print("\ndisagreement that nothing explains" if failed else "\nthe engines agree")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
