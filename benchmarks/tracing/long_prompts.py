"""How time and memory grow with the prompt: 25 to 4,000 tokens, inside a memory budget.

    python -m benchmarks.tracing.long_prompts --model FOLDER --transcoders CLT_30x2048 --per-layer PLT --memory 12GB

25 to 1,000 tokens with 2,000 features expanded; 4,000 tokens with 200; and 1,000 tokens with the per-layer dictionary. Each
runs in a process of its own (trace_once.py). Beside the seconds stands what the law predicts from the shortest prompt: rows x
tokens x (layers + attended tokens), attended tokens being half the prompt; what took most of them; and the operations of
exactly these rows (flops.py), over the seconds, beside the rate of square products on this machine. What it has is written
after each prompt. Ends with status 1 if a length takes more than 1.3 times what the law says, or more memory than was given, or
fails; the others run all the same, and the record says so.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.harness import versions
from benchmarks.common.machine import describe, write_results
from benchmarks.common.places import RESULTS
from benchmarks.common.processes import answer, our_command
from benchmarks.tracing.row_rate import matrix_product_rate
from circuit_tracer.sizes import parse_bytes

PROMPTS = ("long-25", "long-50", "long-100", "long-250", "long-500", "long-1000")
LONGEST, LONGEST_EXPANDED = "long-4000", 200
PER_LAYER = "long-1000"
LIMIT = 1.3  # times what the law says
HEAD = "  tokens   active expanded   seconds  by the law   TFLOP  GFLOP/s  planned   actual  resident peak (GB)  most of it"


def traced(args: argparse.Namespace, transcoders: Path, prompt: str, expanded: int) -> dict[str, Any]:
    """What trace_once.py says of one prompt."""
    command = [*our_command("tracing.trace_once"), "--model", str(args.model), "--prompt", prompt]
    command += ["--transcoders", str(transcoders), "--rows", str(expanded), "--threads", str(args.threads)]
    command += ["--memory", args.memory] if args.memory else []
    return {"prompt": prompt} | answer(command)


def law(found: dict[str, Any], layers: int) -> float:
    """rows x tokens x (layers + attended tokens)"""
    return found["expanded"] * found["tokens"] * (layers + found["tokens"] / 2)


def most_of(found: dict[str, Any]) -> str:
    """The stage that took longest, and inside that of the rows the part."""
    stage, seconds = max(found["stages"].items(), key=lambda item: item[1])
    named = f"{stage} {seconds:.1f} s"
    if stage == "rows" and found["parts"]:
        part = max(found["parts"], key=found["parts"].get)
        named += f", {found['parts'][part] / sum(found['parts'].values()):.0%} of it {part}"
    return named


def line(found: dict[str, Any]) -> str:
    predicted = f"{found['seconds_by_the_law']:.1f}" if "seconds_by_the_law" in found else "-"
    return (
        f"  {found['tokens']:6} {found['active']:8} {found['expanded']:8} {found['seconds']:9.1f} {predicted:>11} "
        f"{found['tflop']:7.2f} {1000 * found['tflop'] / found['seconds']:8.0f} {found['planned'] / 1e9:8.2f} "
        f"{found['actual'] / 1e9:8.2f} {found['resident_peak'] / 1e9:19.2f}  {most_of(found)}\n"
        f"          {said(found['stages'])}; in the rows, of all threads: {said(found['parts'])}"
    )


def said(seconds: dict[str, float]) -> str:
    """Names with their seconds."""
    return ", ".join(f"{name} {each:.1f}" for name, each in seconds.items())


def failures(found: dict[str, Any], memory: str | None) -> list[str]:
    """What a prompt took beyond what it may."""
    what = []
    if (predicted := found.get("seconds_by_the_law")) and found["seconds"] > LIMIT * predicted:
        what.append(f"{found['tokens']} tokens: {found['seconds']:.1f} s, by the law {predicted:.1f} s")
    if memory and found["actual"] > parse_bytes(memory):
        what.append(f"{found['tokens']} tokens: {found['actual'] / 1e9:.2f} GB of {memory}")
    return what


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--transcoders", type=Path, required=True)
    parser.add_argument("--per-layer", type=Path, help="a per-layer dictionary, for 1,000 tokens more")
    parser.add_argument("--memory", default=None, help="such as 12GB; default: what is free")
    parser.add_argument("--expanded", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompts", nargs="*", default=list(PROMPTS))
    parser.add_argument("--no-longest", action="store_true", help="without the 4,000 tokens")
    parser.add_argument("--results", type=Path, default=RESULTS / "long_prompts.json")
    args = parser.parse_args()
    layers = json.loads((args.model / "config.json").read_text())["num_hidden_layers"]
    asked = [("growth", args.transcoders, prompt, args.expanded) for prompt in args.prompts]
    if not args.no_longest:
        asked.append(("longest", args.transcoders, LONGEST, LONGEST_EXPANDED))
    if args.per_layer:
        asked.append(("per_layer", args.per_layer, PER_LAYER, args.expanded))
    torch.set_num_threads(args.threads)
    rate = matrix_product_rate()
    results: dict[str, Any] = describe(versions=versions(), memory=args.memory, layers=layers, limit=LIMIT)
    failed: list[str] = []
    results |= {"matrix_product_gflops": rate / 1e9, "failed": failed} | {kind: [] for kind, *_ in asked}
    print(f"square products: {rate / 1e9:.0f} GFLOP/s\n{HEAD}", flush=True)
    for kind, transcoders, prompt, expanded in asked:
        try:
            found = traced(args, transcoders, prompt, expanded)
        except SystemExit as error:
            failed.append(f"{prompt} ({kind}) did not end: {str(error).splitlines()[-1]}")
            print(f"  {error}", flush=True)
        else:
            if kind == "growth":
                first = (results["growth"] or [found])[0]
                found["seconds_by_the_law"] = first["seconds"] * law(found, layers) / law(first, layers)
            results[kind].append(found)
            failed += failures(found, args.memory)
            print(line(found), flush=True)
        write_results(args.results, results)
    if failed:
        raise SystemExit("\n".join(failed))


if __name__ == "__main__":
    main()
