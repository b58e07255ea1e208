"""Tokens a second and memory of a training step against decode-clt 0.0.1, same machine, same run, same activations.

    python -m benchmarks.training.speed --peer DECODE_VENV       # about 8 minutes on two quiet cores, 15 GB for the peer
    python -m benchmarks.training.speed --device cuda            # ours alone, GPT-2 small's shape, 32768 features a layer

BatchTopK with 16 active features a layer, cross-layer, Adam. On a CPU in float32, each engine in a process of its own with the
same number of threads; the peak is that process' resident set, inputs and libraries included. Both train as their trainers do
(step.py, ../peer/decode_clt_step.py); decode-clt is measured too with everything left out that its API lets one leave
out ("lean"). Its dense arrays do not fit into 24 GB at 2048 tokens, so it gets --peer-batch, and ours is measured at both.
On CUDA weights are bfloat16.

No speed is reported unless the tests pass that hold the step and its kernels to the dense reference. Keep the machine quiet:
the load at the start is written beside the numbers.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.common.harness import versions
from benchmarks.common.machine import describe, write_results
from benchmarks.common.places import RESULTS
from benchmarks.common.processes import answer, gate, our_command, peer_command

GATE = [
    "tests/training/test_step.py",
    "tests/training/test_adam.py",
    "tests/kernels/test_kernel_encode.py",
    "tests/kernels/test_kernel_decode.py",
]


@dataclass(frozen=True)
class Case:
    """A size, and how many times faster than decode-clt ours is meant to be."""

    name: str
    layers: int
    width: int
    features: int
    goal: float | None = None


ACTIVE, BATCH = 16, 2048
CPU = [Case("GPT-2 small", 12, 768, 8192, 15), Case("SmolLM2-135M", 30, 576, 2048, 20)]
CUDA, CUDA_BATCHES = Case("GPT-2 small", 12, 768, 32768), [4096, 8192, 16384]

OURS = our_command("training.step")


def run(command: list[str], case: Case, **options: Any) -> dict[str, Any]:
    """What one process measured."""
    sizes = {"layers": case.layers, "width": case.width, "features": case.features, "active": ACTIVE, **options}
    words = [word for name, value in sizes.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return answer([*command, *words])


def on_cpu(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    """Both engines at one size."""
    ours = run(OURS, case, batch=args.batch, threads=args.threads, steps=args.steps)
    record: dict[str, Any] = {"case": asdict(case), "ours": ours}
    print(
        f"\n{case.name}: {case.layers} layers of {case.features} features, width {case.width}, {args.threads} threads"
    )
    print(f"  {'':20} {'batch':>6} {'tokens/s':>9} {'peak GB':>8}")
    show("ours", ours)
    if args.peer:
        batch = args.peer_batch
        same = run(OURS, case, batch=batch, threads=args.threads, steps=args.steps, phase_steps=0)
        show("ours", same)
        decode_clt = peer_command(args.peer, "decode_clt_step.py")
        options = {"batch": batch, "threads": args.threads, "steps": args.peer_steps}
        record |= {"ours_at_peer_batch": same, "peer": {}, "times_faster": {}, "times_faster_same_batch": {}}
        for kind in ("trainer", "lean"):
            peer = run(decode_clt, case, step=kind, **options)
            show(f"decode-clt, {kind}", peer)
            record["peer"][kind] = peer
            record["times_faster"][kind] = ours["tokens_per_second"] / peer["tokens_per_second"]
            record["times_faster_same_batch"][kind] = same["tokens_per_second"] / peer["tokens_per_second"]
        record["times_less_memory"] = record["peer"]["trainer"]["peak_gb"] / ours["peak_gb"]
        faster, at_same = record["times_faster"], record["times_faster_same_batch"]
        print(
            f"  {faster['trainer']:.1f} times as fast as its trainer (goal {case.goal}), {faster['lean']:.1f} as its lean "
            f"step; at the same batch {at_same['trainer']:.1f} and {at_same['lean']:.1f}; "
            f"{record['times_less_memory']:.2f} times less memory"
        )
    show_phases(ours)
    return record


def on_cuda(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Ours at several batches."""
    lines = []
    for batch in CUDA_BATCHES:
        options = {"batch": batch, "device": "cuda", "dtype": "bfloat16", "warmup": 3, "steps": 10, "phase_steps": 3}
        found = run(OURS, CUDA, **options)
        show("ours", found)
        show_phases(found)
        lines.append(found)
    return [{"case": asdict(CUDA), "ours": one} for one in lines]


def show(engine: str, found: dict[str, Any]) -> None:
    """One line of the table."""
    print(f"  {engine:20} {found['batch']:6} {found['tokens_per_second']:9.1f} {found['peak_gb']:8.2f}", flush=True)


def show_phases(found: dict[str, Any]) -> None:
    """Each phase beside its floor."""
    rates = ", ".join(f"{rate:.0f} GFLOP/s {name}" for name, rate in found["gflops"].items())
    print(f"  a step by phase; {rates}, copies {found['copy_gb_per_second']:.1f} GB/s")
    for line in found["phases"]:
        share = f"{line['floor_ms'] / line['ms']:9.2f}" if line["floor_ms"] else ""
        print(f"    {line['phase']:18} {line['ms']:9.1f} ms   floor {line['floor_ms']:9.1f} ms {share}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--peer", type=Path, help="virtual environment of peer/setup_decode_clt.sh; without: ours alone"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--batch", type=int, default=BATCH, help="our tokens a step (CPU)")
    parser.add_argument("--peer-batch", type=int, default=512, help="decode-clt's tokens a step: what memory allows")
    parser.add_argument("--steps", type=int, default=5, help="our steps timed, after two that are not")
    parser.add_argument("--peer-steps", type=int, default=2, help="its steps timed, after one that is not")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--features", type=int, help="another number of features, to try the script")
    parser.add_argument("--results", type=Path, help="default: results/training_speed.json or training_speed_cuda.json")
    args = parser.parse_args()
    if args.peer and args.device != "cpu":
        parser.error("--peer is measured on the CPU only")
    tested = gate(GATE, "no speed reported: the training step is not equal to its reference")
    results = describe(versions={"ours": versions()}, active=ACTIVE, threads=args.threads, gate=tested)
    print(f"tests against the dense reference: {results['gate']}")
    cases = [Case(one.name, one.layers, one.width, args.features or one.features, one.goal) for one in CPU]
    results["cases"] = on_cuda(args) if args.device == "cuda" else [on_cpu(case, args) for case in cases]
    name = "training_speed_cuda.json" if args.device == "cuda" else "training_speed.json"
    write_results(args.results or RESULTS / name, results)


if __name__ == "__main__":
    main()
