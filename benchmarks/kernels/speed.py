"""Each kernel against what torch offers for the same result, on the device at hand, beside the machine's measured ceilings.

    python -m benchmarks.kernels.speed                     # CPU: the torch paths, about 3 minutes on two quiet cores, 6 GB
    python -m benchmarks.kernels.speed --device cuda       # the Triton kernels too, under 10 minutes, 30 GB of the GPU

Ceilings are a large copy (bytes read and written) and a large matrix product, measured just before. A share is that of the
ceiling an operation is held to: its bytes over the copy, or its operations over the rate of products in its weights' format.
On CUDA, weights are bfloat16, and inputs and gradients float32 (three bfloat16 products each, so a share is at most a third) or
bfloat16 where it says so; the L2 cache is flushed before every repetition.

Nothing is reported unless the kernels' tests pass, and unless every way gives the same result at the sizes measured.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.harness import versions
from benchmarks.common.machine import describe, write_results
from benchmarks.common.places import RESULTS, ROOT
from benchmarks.common.processes import gate
from benchmarks.kernels import cases
from benchmarks.kernels.cases import Problem, Size
from circuit_tracer.kernels.sparse_activations import SparseActivations
from circuit_tracer.training.run import machine as rates

FLUSH_BYTES = 2**28


def differences(problem: Problem) -> dict[str, float]:
    """Relative RMS error of every other way against ours; SystemExit when one is above the tolerance."""
    results = {name: flat(call()) for name, call in problem.ways.items()}
    ours = results.pop("ours")
    errors = {}
    for name, parts in results.items():
        errors[name] = max(relative(part, mine) for part, mine in zip(parts, ours, strict=True))
        if not errors[name] <= problem.tolerance:
            raise SystemExit(
                f"no speed reported: {problem.name} differs from {name} by {errors[name]:.1e} (relative RMS; at most "
                f"{problem.tolerance:.0e})"
            )
    return errors


def flat(result: Any) -> list[torch.Tensor]:
    """The numbers of a result; those of sparse rows as (place, value), which only order makes comparable."""
    if isinstance(result, SparseActivations):
        dense = torch.zeros(result.n_rows, result.n_features, device=result.value.device)
        dense[result.row, result.feature] = result.value.float()
        return [dense]
    return [part.clone() for part in result] if isinstance(result, tuple) else [result.clone()]


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    error = (found.double() - expected.double()).square().mean().sqrt()
    return float(error / expected.double().square().mean().sqrt())


def seconds_of(call: Callable[[], Any], device: torch.device, budget: float) -> dict[str, float]:
    """p20, p50 and p80 of repetitions that fill the budget (seconds), at least five."""
    call()
    taken: list[float] = []
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device) if device.type == "cuda" else None
    end = time.perf_counter() + budget
    while len(taken) < 5 or (time.perf_counter() < end and len(taken) < 200):
        if flush is not None:
            flush.zero_()
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            stop.record()
            torch.cuda.synchronize()
            taken.append(start.elapsed_time(stop) / 1e3)
        else:
            begin = time.perf_counter()
            call()
            taken.append(time.perf_counter() - begin)
    p20, p50, p80 = (statistics.quantiles(taken, n=10)[i] for i in (1, 4, 7))
    return {"p20": p20, "p50": p50, "p80": p80, "repetitions": len(taken)}


def measured(problem: Problem, device: torch.device, ceilings: rates.Machine, budget: float) -> dict[str, Any]:
    """Every way of one operation."""
    errors = differences(problem)
    lines = []
    for name, call in problem.ways.items():
        taken = seconds_of(call, device, budget)
        per_second = {"bytes": problem.bytes / taken["p50"], "flops": problem.flops / taken["p50"]}
        share = (
            per_second["bytes"] / ceilings.bytes_per_second
            if problem.bound == "memory"
            else per_second["flops"] / ceilings.flops[problem.product]
        )
        line = {
            "way": name,
            "seconds": taken,
            "gb_per_second": per_second["bytes"] / 1e9,
            "tflops": per_second["flops"] / 1e12,
            "share": share,
            "difference": errors.get(name),
        }
        lines.append(line)
        print(
            f"  {problem.name:24} {name:28} {1e3 * taken['p50']:10.3f} ms {line['gb_per_second']:9.1f} GB/s "
            f"{line['tflops']:9.3f} TFLOP/s {share:7.2f} of {problem.bound}",
            flush=True,
        )
    faster = min(line["seconds"]["p50"] for line in lines if not line["way"].startswith("ours"))
    return {
        "operation": problem.name,
        "flops": problem.flops,
        "bytes": problem.bytes,
        "bound": problem.bound,
        "product": problem.product,
        "ways": lines,
        "times_faster_than_best_other": faster / lines[0]["seconds"]["p50"],
    }


def at_size(size: Size, device: torch.device, ceilings: rates.Machine, budget: float) -> dict[str, Any]:
    print(f"\n{size.name}: {size}")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    found = [measured(one, device, ceilings, budget) for one in cases.problems(size, device, dtype)]
    return {"size": asdict(size), "weights": str(dtype)[6:], "operations": found}


def tried(size: Size) -> Size:
    """A size small enough to try the script."""
    return Size(size.name, 64, 2, 256, 64, 4, 16, 8, 4, 2, 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=None, help="torch threads (default: torch's own choice)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of repetitions of each way")
    parser.add_argument("--try", action="store_true", dest="small", help="tiny sizes: does the script work?")
    parser.add_argument("--results", type=Path, help="default: results/kernels.json or kernels_cuda.json")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    tested = gate(["tests/kernels"], "no speed reported: a kernel is not equal to its specification")
    record = describe(versions=versions(), threads=torch.get_num_threads(), gate=tested)
    print(f"tests against the specifications: {record['gate']}")
    ceilings = rates.measure(device, ("float32", "bfloat16"), ROOT, args.threads)
    record |= {"copy_gb_per_second": ceilings.bytes_per_second / 1e9}
    record |= {"tflops": {name: rate / 1e12 for name, rate in ceilings.flops.items()}}
    if device.type == "cuda":
        record["gpu"] = torch.cuda.get_device_name(device)
    print(f"copies {record['copy_gb_per_second']:.1f} GB/s, products {record['tflops']} TFLOP/s")
    sizes = cases.CUDA if device.type == "cuda" else cases.CPU
    record["sizes"] = [at_size(tried(size) if args.small else size, device, ceilings, args.seconds) for size in sizes]
    name = "kernels_cuda.json" if device.type == "cuda" else "kernels.json"
    write_results(args.results or RESULTS / name, record)


if __name__ == "__main__":
    main()
