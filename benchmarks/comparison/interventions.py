"""Do interventions agree with circuit-tracer 0.5.0? The same features set on the same prompts, by both engines.

    python -m benchmarks.comparison.interventions --model FOLDER --transcoders CLT PLT ... --peer PEER_VENV --work FOLDER

Compared (`interventions_run.py` says which interventions): logits of `feature_intervention` with frozen and live attention
and with layers held, activations, and generations of `feature_intervention_generate`, greedy, token by token; for live
attention our `steer` besides. Logits may differ by LIMIT, activations by LIMIT of the largest; a feature within LIMIT of its
threshold in one engine may be off in the other (`known_differences.py`, "rounding"). Any other difference makes the exit
status 1. Records of the peer that are in --work already are used again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from benchmarks.common.machine import describe, write_results
from benchmarks.common.places import RESULTS
from benchmarks.common.processes import our_command, peer_command
from benchmarks.comparison.graphs import thresholds_of
from benchmarks.comparison.interventions_run import CASES, GENERATIONS, STEERED
from benchmarks.comparison.known_differences import KNOWN

LIMIT = 1e-3

Tensors = dict[str, Tensor]


def record(engine: str, args: argparse.Namespace, transcoders: Path) -> tuple[Tensors, dict[str, str]]:
    """(tensors, what the engine says of itself); runs it unless the peer's record is there."""
    out = args.work / f"interventions-{engine}-{transcoders.name}.safetensors"
    if engine == "ours" or not out.exists():
        peer = peer_command(args.peer, "run_interventions.py")
        command = peer if engine == "peer" else our_command("comparison.interventions_run")
        command += ["--model", str(args.model), "--transcoders", str(transcoders), "--out", str(out)]
        subprocess.run([*command, "--only", *args.prompts, "--threads", str(args.threads)], check=True)
    with safe_open(out, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def compare(peer: Tensors, ours: Tensors, prompts: list[str], threshold_LF: Tensor) -> dict[str, dict[str, Any]]:
    """For each case the worst differences over the prompts, and how far the intervention moved the logits at all."""
    return {name: _case(peer, ours, prompts, threshold_LF, name) for name in (*CASES, *GENERATIONS)}


def _case(peer: Tensors, ours: Tensors, prompts: list[str], threshold_LF: Tensor, name: str) -> dict[str, Any]:
    logits = activations = moved = 0.0
    rounded = tokens = different = 0
    for prompt in prompts:
        place = f"{prompt}/{name}"
        theirs, mine = (each[f"{place}/logits"] for each in (peer, ours))
        logits = max(logits, float((theirs - mine).abs().max()))
        clean = ours[f"{prompt}/clean/logits"][-1]
        moved = max(moved, float((mine[0 if name in GENERATIONS else -1] - clean).abs().max()))
        worst, flips = _activations(peer[f"{place}/activations"], ours[f"{place}/activations"], threshold_LF)
        activations, rounded = max(activations, worst), rounded + flips
        if name in GENERATIONS:
            ids = peer[f"{place}/ids"]
            ways = [ours[f"{place}/ids"], *([ours[f"{place}/steer ids"]] if name == STEERED else [])]
            tokens += sum(len(way) for way in ways) - len(ways) * len(peer[f"{prompt}/clean/logits"])
            different += sum(int((way != ids).sum()) for way in ways)
    return {
        "logits": logits,
        "logits moved by": moved,
        "activations": activations,
        "features at their threshold": rounded,
        **({"tokens": tokens, "tokens that differ": different} if name in GENERATIONS else {}),
        "agrees": logits <= LIMIT and activations <= LIMIT and different == 0,
    }


def _activations(theirs: Tensor, mine: Tensor, threshold_LF: Tensor) -> tuple[float, int]:
    """(largest difference over the largest activation, features on in one engine only and at their threshold in it).

    The latter are not in the former.
    """
    over = (theirs + mine - threshold_LF[:, None]).abs() <= LIMIT * threshold_LF[:, None]
    rounded = ((theirs == 0) != (mine == 0)) & over
    difference = (theirs - mine).abs().masked_fill(rounded, 0)
    return float(difference.max() / theirs.abs().max()), int(rounded.sum())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder (inputs.prepare_models)")
    parser.add_argument("--transcoders", type=Path, nargs="+", required=True, help="native folders")
    parser.add_argument("--peer", type=Path, required=True, help="virtual environment of peer/setup_peer.sh")
    parser.add_argument("--work", type=Path, required=True, help="folder for the records of both engines")
    parser.add_argument("--prompts", nargs="+", default=["france", "code"], help="names out of prompts.json")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS / "interventions_agreement.json")
    args = parser.parse_args()
    results = describe()
    results |= {"limit": LIMIT, "prompts": args.prompts, "cases": {}}
    for transcoders in args.transcoders:
        peer, about_peer = record("peer", args, transcoders)
        ours, about_ours = record("ours", args, transcoders)
        results["versions"] = {"peer": json.loads(about_peer["versions"]), "ours": json.loads(about_ours["versions"])}
        for prompt in args.prompts:
            if not torch.equal(peer[f"{prompt}/features"], ours[f"{prompt}/features"]):
                raise SystemExit(
                    f"{prompt}: the engines find other features strongest: {transcoders.name} is not the same"
                )
        thresholds = thresholds_of(transcoders)
        if thresholds is None:
            raise SystemExit(f"{transcoders.name} has no thresholds; give JumpReLU transcoders")
        found = compare(peer, ours, args.prompts, torch.from_numpy(thresholds))
        results["cases"][transcoders.name] = found
        print(
            f"\n{transcoders.name}\n  {'':32}{'logits':>10}{'moved by':>10}{'activations':>13}{'flipped':>9}{'tokens':>14}"
        )
        for name, line in found.items():
            tokens = f"{line['tokens'] - line['tokens that differ']}/{line['tokens']} equal" if "tokens" in line else ""
            print(
                f"  {name:32}{line['logits']:10.1e}{line['logits moved by']:10.2f}{line['activations']:13.1e}"
                f"{line['features at their threshold']:9}{tokens:>14}{'' if line['agrees'] else '   differs'}"
            )
    used = ("live-generation", "rounding")
    results["known_differences"] = {name: asdict(KNOWN[name]) for name in used}
    results["agrees"] = all(line["agrees"] for found in results["cases"].values() for line in found.values())
    write_results(args.results, results)
    print("\nthe engines agree" if results["agrees"] else "\ndisagreement that nothing explains")
    return 0 if results["agrees"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
