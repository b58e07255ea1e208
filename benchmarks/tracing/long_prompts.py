"""How time and memory grow with the prompt: 25 to 1,000 tokens, 2,000 features expanded, inside a memory budget.

    python -m benchmarks.tracing.long_prompts --model FOLDER --transcoders CLT_30x2048 --memory 12GB

Each length runs in a process of its own (trace_once.py). Beside the seconds stands what the law predicts from the shortest
prompt: rows x tokens x (layers + attended tokens), attended tokens being half the prompt. And the operations of exactly these
rows (flops.py), over the seconds. About half an hour on two quiet cores.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.common.harness import versions
from benchmarks.common.machine import describe, write_results
from benchmarks.common.places import RESULTS
from benchmarks.common.processes import answer, our_command

PROMPTS = ("long-25", "long-50", "long-100", "long-250", "long-500", "long-1000")


def traced(args: argparse.Namespace, prompt: str) -> dict[str, Any]:
    command = [*our_command("tracing.trace_once"), "--model", str(args.model), "--prompt", prompt]
    command += ["--transcoders", str(args.transcoders), "--rows", str(args.expanded), "--threads", str(args.threads)]
    command += ["--memory", args.memory] if args.memory else []
    return answer(command)


def law(found: dict[str, Any], layers: int) -> float:
    """rows x tokens x (layers + attended tokens)"""
    return found["expanded"] * found["tokens"] * (layers + found["tokens"] / 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--transcoders", type=Path, required=True)
    parser.add_argument("--memory", default=None, help="such as 12GB; default: what is free")
    parser.add_argument("--expanded", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompts", nargs="*", default=list(PROMPTS))
    parser.add_argument("--results", type=Path, default=RESULTS / "long_prompts.json")
    args = parser.parse_args()
    layers = json.loads((args.model / "config.json").read_text())["num_hidden_layers"]
    results: dict[str, Any] = describe(versions=versions(), memory=args.memory, layers=layers, growth=[])
    print("  tokens   active expanded   seconds   by the law   TFLOP  GFLOP/s  planned   actual  resident peak (GB)")
    for prompt in args.prompts:
        found = traced(args, prompt)
        first = (results["growth"] or [found])[0]
        found["seconds_by_the_law"] = first["seconds"] * law(found, layers) / law(first, layers)
        results["growth"].append(found)
        print(
            f"  {found['tokens']:6} {found['active']:8} {found['expanded']:8} {found['seconds']:9.1f} "
            f"{found['seconds_by_the_law']:12.1f} {found['tflop']:7.2f} {1000 * found['tflop'] / found['seconds']:8.0f} "
            f"{found['planned'] / 1e9:8.2f} {found['actual'] / 1e9:8.2f} {found['resident_peak'] / 1e9:8.2f}",
            flush=True,
        )
        write_results(args.results, results)


if __name__ == "__main__":
    main()
