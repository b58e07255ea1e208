"""Time and memory of whole attribute() calls against circuit-tracer 0.5.0, same machine, same run.

    python -m benchmarks.tracing.speed --model FOLDER --transcoders CLT_30x2048 --peer PEER_VENV --work FOLDER

Every engine runs in processes of their own with the same number of threads; the peak is that process' resident set during
the call, loaded model included. Compared is the first call of a process, which reads the dictionary's rows and touches all
memory for the first time; of ours later calls of the same processes stand beside (warm). No speed is reported unless the two
graphs of exactly these runs agree (comparison/graphs.py).
Also printed: our row rate as a fraction of the machine's matrix product rate (row_rate.py). Keep the machine quiet: the load
at the start is written beside the numbers. The peer needs some 20 GB.

With `--device cuda` both run on the GPU, and the peak is what torch has allocated there.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.harness import load
from benchmarks.common.machine import describe, write_results
from benchmarks.common.places import RESULTS
from benchmarks.common.processes import answer, our_command, peer_command
from benchmarks.comparison.graphs import compare_records, thresholds_of

TIME_GOAL, MEMORY_GOAL, RATE_GOAL = 250, 8, 0.5
CALLS = 3  # of ours in a process: the first, and two warm ones


def traced(
    args: argparse.Namespace, engine: str, prompt: str, rows: int, *, timing_only: bool
) -> tuple[Path, dict[str, Any]]:
    """The record of the first call in a new process, and what it says about itself."""
    command = peer_command(args.peer, "run_peer.py") if engine == "peer" else our_command("comparison.run_ours")
    folder = args.work / "speed" / engine / f"rows-{rows}"
    options = ["--model", str(args.model), "--transcoders", str(args.transcoders), "--threads", str(args.threads)]
    options += ["--max-feature-nodes", str(rows), "--out", str(folder), "--only", prompt, "--device", args.device]
    options += ["--timing-only"] * timing_only + ([] if engine == "peer" else ["--calls", str(CALLS)])
    subprocess.run([*command, *options], check=True)
    return folder / f"{prompt}.npz", load(folder / f"{prompt}.npz")[1]


def gate(theirs: Path, mine: Path, transcoders: Path) -> list[str]:
    """What the two graphs disagree about, beyond known differences; empty when they agree."""
    peer, meta = load(theirs)
    checks = compare_records(peer, load(mine)[0], meta, thresholds_of(transcoders))
    for check in checks:
        verdict = "ok" if check.ok else f"known: {check.known}" if check.known else "FAILED"
        print(f"  {check.name:24} {check.worst:9.1e} (limit {check.limit:.0e})  {verdict}  {check.note}")
    return [check.name for check in checks if not check.passed]


def against_peer(args: argparse.Namespace) -> dict[str, Any]:
    """Times and peaks of both, after the gate; SystemExit when it is red."""
    mine, first = traced(args, "ours", args.prompt, args.rows, timing_only=False)
    theirs, peer = traced(args, "peer", args.prompt, args.rows, timing_only=False)
    failed = gate(theirs, mine, args.transcoders)
    if failed:
        raise SystemExit(f"no speed reported: the engines disagree about {', '.join(failed)}; run benchmarks.agreement")
    ours = [first] + [traced(args, "ours", args.prompt, args.rows, timing_only=True)[1] for _ in range(args.runs - 1)]
    firsts, later = [one["seconds"] for one in ours], [call for one in ours for call in one["later"]]
    seconds, peak = statistics.median(firsts), max(one["peak_gb"] for one in ours)
    warm = [call["seconds"] for call in later]
    found = {
        "prompt": args.prompt,
        "rows": args.rows,
        "threads": args.threads,
        "peer": {name: peer[name] for name in ("seconds", "peak_gb", "process_peak_gb", "versions")},
        "ours": {"seconds": seconds, "all_seconds": firsts, "peak_gb": peak},
        "times_faster": peer["seconds"] / seconds,
        "times_less_memory": peer["peak_gb"] / peak,
    }
    found["ours"] |= {"warm_seconds": statistics.median(warm), "all_warm_seconds": warm}
    found["ours"] |= {"warm_peak_gb": max(call["peak_gb"] for call in later)}
    found["times_faster_warm"] = peer["seconds"] / found["ours"]["warm_seconds"]
    found["ours"] |= {name: first[name] for name in ("process_peak_gb", "versions")}
    print(f"\nattribute(), {args.prompt}, {args.rows} features expanded, {args.threads} threads")
    print(f"  circuit-tracer 0.5.0 {peer['seconds']:9.2f} s {peer['peak_gb']:7.2f} GB")
    print(f"  ours, first call     {seconds:9.2f} s {peak:7.2f} GB   (median and peak of {len(ours)} processes)")
    print(f"  ratio                {found['times_faster']:9.1f}   {found['times_less_memory']:7.1f}")
    print(f"  ours, warm           {found['ours']['warm_seconds']:9.2f} s; ratio {found['times_faster_warm']:.1f}")
    print(f"  goal                 {TIME_GOAL:9}   {MEMORY_GOAL:7}")
    return found


def rate(args: argparse.Namespace) -> dict[str, Any]:
    """row_rate.py in a process of its own."""
    command = [*our_command("tracing.row_rate"), "--model", str(args.model), "--prompt", args.prompt]
    command += ["--transcoders", str(args.transcoders), "--threads", str(args.threads)]
    found = answer(command)
    product = found["matrix_product_gflops"]
    print(f"\nrow rate, warm; fp32 matrix products make {product:.0f} GFLOP/s; goal {RATE_GOAL} of it")
    for line in found["rows"]:
        print(
            f"  {line['rows']:5} rows: {line['rows_per_second']:8.0f} rows/s of {line['mflop_per_row']:.1f} MFLOP "
            f"= {line['gflop_per_second']:.0f} GFLOP/s, {line['fraction']:.2f} of the matrix product rate"
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder (inputs.prepare_models)")
    parser.add_argument("--transcoders", type=Path, required=True, help="inputs.make_random_transcoders, 2048 features")
    parser.add_argument("--peer", type=Path, required=True, help="virtual environment of peer/setup_peer.sh")
    parser.add_argument("--work", type=Path, required=True, help="folder for the records")
    parser.add_argument("--prompt", default="long-25")
    parser.add_argument("--rows", type=int, default=512, help="features expanded by both")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3, help="our processes (the peer runs once)")
    parser.add_argument("--skip", nargs="*", choices=["peer", "rate"], default=[], help="parts to leave out")
    parser.add_argument("--results", type=Path, help="default: results/speed.json or speed_cuda.json")
    args = parser.parse_args()

    results = describe(device=args.device)
    if args.device == "cuda":
        results["gpu"] = torch.cuda.get_device_name()
    if "peer" not in args.skip:
        results["against_peer"] = against_peer(args)
    if "rate" not in args.skip and args.device == "cpu":
        results["row_rate"] = rate(args)
    name = "speed_cuda.json" if args.device == "cuda" else "speed.json"
    write_results(args.results or RESULTS / name, results)


if __name__ == "__main__":
    main()
