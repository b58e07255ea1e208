"""The least time of a training step on a GPU, phase by phase, from what the step's own code does; on a GPU, what it takes.

    python -m benchmarks.training.roofline                      # no GPU: counted operations and bytes over an H200's rates
    python -m benchmarks.training.roofline --device cuda        # the same, and each phase measured: two minutes, 60 GB

Operations and bytes are counted by running the step of GPT-2's preset on tensors without memory (tests/support/counted.py). A
phase takes the longer of its products over the rate of products and its bytes over the rate of memory. Bytes are given twice:
as if no cache held anything (every entry reads a row), and with what is read again in a cache; the truth lies between, and the
first is what the total is held to. The language model's pass is arithmetic on its parameters, in the preset's number format.
Launches are the host's work, beside the device's.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.harness import versions
from benchmarks.common.machine import describe, write_results
from benchmarks.common.places import RESULTS
from benchmarks.training.synthetic import SyntheticActivations
from circuit_tracer.training.config.files import load
from circuit_tracer.training.config.schema import TrainingConfig
from circuit_tracer.training.data.batch import ActivationBatch
from tests.support.counted import Work, counted, loop_on, phases

# An H200 as measured by others: a device copy, read and written together, and a bfloat16 product. Its float32 product is the
# data sheet's. A launch is some microseconds of the host's time.
BYTES_PER_SECOND, LAUNCH_SECONDS = 4.3e12, 5e-6
FLOPS = {"bfloat16": 790e12, "float32": 67e12}
# products of one kind, as native products of another: launch.py splits float32 by bfloat16 into three
AS_NATIVE = {
    "float32 by bfloat16": (3, "bfloat16"),
    "bfloat16 by bfloat16": (1, "bfloat16"),
    "float32 by float32": (6, "bfloat16"),  # TF32 at half the rate, three of them
    "float32": (1, "float32"),
}
GPT2 = {"layers": 12, "width": 768, "multiplied": 84_934_656}  # parameters of the layers, which a pass multiplies with
PHASES = ("batch", "encoders", "selection", "decoders forward", "dead features", "gradients", "adam", "rest")
STEPS = 5


@dataclass
class Case:
    """A moment of a run."""

    name: str
    active: float
    dead: float = 0.0
    changes: dict[str, str] = field(default_factory=dict)


def cases(config: TrainingConfig) -> list[Case]:
    """The step after annealing first: it is the one that is held to the limit."""
    active = config.sparsity.active
    mean = active + (config.active_at_start - active) * config.sparsity.anneal / 2
    return [
        Case("after annealing", active),
        Case("5 % dead", active, 0.05),
        Case("mean k", mean),
        Case("first step", config.active_at_start),
        Case("bfloat16 moments", active, changes={"optimizer.moments": "bfloat16"}),
        Case("8-bit moments", active, changes={"optimizer.moments": "int8"}),
    ]


def rows(work: Work, config: TrainingConfig) -> list[dict[str, Any]]:
    """A row a phase, milliseconds."""
    found = []
    for phase in PHASES:
        product_s = 0.0
        for name, flops in work.flops.items():
            where, _, kind = name.partition("/")
            if where == phase:
                times, native = AS_NATIVE[kind]
                product_s += times * flops / FLOPS[native]
        tera = sum(flops for name, flops in work.flops.items() if name.startswith(f"{phase}/")) / 1e12
        found.append(
            {
                "phase": phase,
                "operations": sum(n for name, n in work.operations.items() if name.startswith(f"{phase}/")),
                "tflop": tera,
                "gb": work.bytes[phase] / 1e9,
                "gb_cached": work.least[phase] / 1e9,
                "ms": 1e3 * max(product_s, work.bytes[phase] / BYTES_PER_SECOND),
                "ms_cached": 1e3 * max(product_s, work.least[phase] / BYTES_PER_SECOND),
            }
        )
    flops = 2.0 * GPT2["multiplied"] * config.run.batch
    ms = 1e3 * flops / FLOPS[config.model.dtype]
    found.append(
        {
            "phase": "language model",
            "operations": 0,
            "tflop": flops / 1e12,
            "gb": 0.0,
            "gb_cached": 0.0,
            "ms": ms,
            "ms_cached": ms,
        }
    )
    return found


class Stopwatch:
    """Seconds by phase; a change of phase waits for the device."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self._phase, self._since = "rest", time.perf_counter()

    @property
    def phase(self) -> str:
        """The one that is running."""
        return self._phase

    @phase.setter
    def phase(self, name: str) -> None:
        torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[self._phase] += now - self._since
        self._phase, self._since = name, now


def measured(config: TrainingConfig) -> dict[str, Any]:
    """Milliseconds of a step on this GPU: of each phase, and of whole steps between which nothing waits more than it must."""
    device = torch.device("cuda")
    source = SyntheticActivations(GPT2["layers"], GPT2["width"], device="cuda")
    made = [ActivationBatch(*next(source.batches(config.run.batch))) for _ in range(2)]
    loop = loop_on(device, config, GPT2["layers"], GPT2["width"], iter(made * (2 * STEPS + 2)))
    for _ in range(4):  # kernels are compiled and tuned
        loop._step()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(STEPS):
        loop._step()
    torch.cuda.synchronize()
    whole = 1e3 * (time.perf_counter() - start) / STEPS
    watch = Stopwatch()
    with phases(watch):
        for _ in range(STEPS):
            loop._step()
        watch.phase = "rest"
    by_phase = {phase: 1e3 * seconds / STEPS for phase, seconds in watch.seconds.items()}
    peak = torch.cuda.max_memory_allocated() / 1e9
    return {"step_ms": whole, "phases_ms": by_phase, "peak_gb": peak, "gpu": torch.cuda.get_device_name()}


def table(case: dict[str, Any], taken: dict[str, Any] | None) -> str:
    """As markdown."""
    lines = [f"{case['name']}: k {case['active']:g}, {case['dead']:.0%} dead"]
    lines.append("| phase | operations | TFLOP | GB | GB, cached | ms | ms, cached | ms measured |")
    lines.append("|---|---|---|---|---|---|---|---|")
    for row in case["phases"]:
        found = (taken or {}).get("phases_ms", {}).get(row["phase"])
        shown = "–" if found is None else f"{found:.1f}"
        lines.append(
            f"| {row['phase']} | {row['operations']} | {row['tflop']:.2f} | {row['gb']:.1f} | {row['gb_cached']:.1f} "
            f"| {row['ms']:.1f} | {row['ms_cached']:.1f} | {shown} |"
        )
    shown = "–" if taken is None else f"{taken['step_ms']:.1f}"
    lines.append(f"| together | {case['operations']} | | | | {case['ms']:.1f} | {case['ms_cached']:.1f} | {shown} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--results", type=Path, default=RESULTS / "training_roofline.json")
    args = parser.parse_args()
    found = []
    for case in cases(load("gpt2")):
        config = load("gpt2", case.changes)
        work = counted(config, GPT2["layers"], GPT2["width"], active=case.active, dead=case.dead)
        parts = rows(work, config)
        found.append(
            {
                "name": case.name,
                "active": case.active,
                "dead": case.dead,
                "operations": work.launches,
                "waits": work.waits,
                "host_bytes": work.host_bytes,
                "host_ms": 1e3 * LAUNCH_SECONDS * work.launches,
                "ms": sum(part["ms"] for part in parts),
                "ms_cached": sum(part["ms_cached"] for part in parts),
                "phases": parts,
            }
        )
    taken = None
    if args.device == "cuda":
        settled = load("gpt2", {"sparsity.anneal": "0.0"})  # k as after annealing
        taken = measured(settled)
    for number, case in enumerate(found):
        print(table(case, taken if number == 0 else None), end="\n\n")
    rates = {"bytes_per_second": BYTES_PER_SECOND, "flops": FLOPS, "launch_seconds": LAUNCH_SECONDS}
    write_results(args.results, describe(versions=versions(), rates=rates, cases=found, measured=taken))


if __name__ == "__main__":
    main()
