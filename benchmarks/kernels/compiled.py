"""What compiled kernels take of a GPU, and the least time of their launches, on a machine without one. Nothing runs.

    python -m benchmarks.kernels.compiled          # sm_80, sm_90, sm_100: minutes, half of one the next time

Every kernel is compiled at the shapes of `uses.py` in each of its configurations. From the binaries come registers, spilled
bytes and shared memory, from these the programs that a multiprocessor holds (`occupancy.py`); from the use its operations and
bytes, and from an H200's data sheet the least time. Which configuration is fastest is a GPU's to say.
"""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.common.harness import versions
from benchmarks.common.machine import describe, write_results
from benchmarks.common.places import RESULTS
from benchmarks.kernels.occupancy import BYTES_PER_SECOND, FLOPS, GPUS, least_time, occupancy


def compiled(task: tuple[int, int]) -> list[dict[str, Any]]:
    """A row a kernel and configuration: of a compute capability, and the number of a use."""
    from benchmarks.kernels.uses import uses
    from tests.support.absent_gpu import compiled_for

    capability, number = task
    use = list(uses())[number]
    with compiled_for(capability) as found:
        use.launch()
    rows = []
    for one in found:
        fits = occupancy(capability, one.warps, one.registers, one.shared, one.tensor_columns)
        rows.append({
            "kernel": one.kernel.strip("_"),
            "options": {name: value for name, value in one.options.items() if name.isupper() or name == "num_stages"},
            "warps": one.warps,
            "registers": one.registers,
            "spilled": one.spilled,
            "shared": one.shared,
            "tensor_columns": one.tensor_columns,
            "programs": fits.programs,
            "occupancy": fits.share,
            "limit": fits.limit,
        })  # fmt: skip
    return rows


def record(capabilities: list[int], workers: int) -> list[dict[str, Any]]:
    """Every use, with what its kernels take on each architecture."""
    os.environ["TRITON_INTERPRET"] = "0"  # before the import of triton, here and in the workers
    from benchmarks.kernels.uses import uses

    every = list(uses())
    tasks = [(capability, number) for number in range(len(every)) for capability in capabilities]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        found = dict(zip(tasks, pool.map(compiled, tasks), strict=True))
    made = []
    for number, use in enumerate(every):
        seconds, bound = least_time(use.flops, use.kind, use.bytes)
        made.append({
            "use": use.kernel,
            "where": use.where,
            "shape": use.shape,
            "gflop": use.flops / 1e9,
            "product": use.kind,
            "mb": use.bytes / 1e6,
            "least_ms": 1e3 * seconds,
            "bound": bound,
            "compiled": {f"sm_{capability}": found[capability, number] for capability in capabilities},
        })  # fmt: skip
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capability", type=int, nargs="*", choices=[*GPUS], default=[*GPUS], help="such as 90")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that compile")
    parser.add_argument("--results", type=Path, default=RESULTS / "kernels_compiled.json")
    args = parser.parse_args()
    found = record(args.capability, args.workers)
    for use in found:
        print(f"{use['use']} ({use['where']}; {use['shape']}): {use['least_ms']:.3f} ms of {use['bound']} at least")
        for name, rows in use["compiled"].items():
            for row in rows:
                print(
                    f"  {name} {row['kernel']:20} {row['registers']:4} registers {row['spilled']:5} spilled "
                    f"{row['shared'] / 1024:6.1f} KB {row['warps']} warps x {row['programs']:2} = {row['occupancy']:.2f} "
                    f"({row['limit']}) {row['options']}"
                )
    spilled = sorted({use["use"] for use in found for rows in use["compiled"].values() for r in rows if r["spilled"]})
    if spilled:
        print(f"spill in some configuration: {', '.join(spilled)}")
    rates = {"bytes_per_second": BYTES_PER_SECOND, "flops": FLOPS}
    write_results(args.results, describe(versions=versions(), rates=rates, uses=found))


if __name__ == "__main__":
    main()
