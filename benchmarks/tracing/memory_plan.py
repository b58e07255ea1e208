"""Planned against actual peak memory over ten configurations, and half the memory against all of it.

    python -m benchmarks.tracing.memory_plan --model FOLDER --transcoders FOLDER_OF_FOLDERS

Each configuration runs in a process of its own (trace_once.py). Some run once more with half the memory for the trace itself,
on top of what the process holds before it: the graph must have the same nodes and edges. (In the others more than half is the
frozen prompt or the finished rows, which no plan can do without.) FOLDER_OF_FOLDERS holds the dictionaries of README.md:
clt-256, clt-2048, plt-256, plt-256-skip. About 15 minutes on two quiet cores. Ends with status 1 if a plan is off by more than
20 % or a graph differs.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.harness import versions
from benchmarks.common.machine import describe, write_results
from benchmarks.common.places import RESULTS
from benchmarks.common.processes import answer, our_command

LIMIT = 0.2
# dictionary, prompt, features expanded (0: all), most rows in flight, whether to run once more with half the memory
CONFIGURATIONS = [
    ("clt-2048", "long-25", 512, 512, True),
    ("clt-2048", "long-25", 5000, 512, False),
    ("clt-2048", "long-100", 1000, 512, True),
    ("clt-2048", "long-250", 200, 64, True),
    ("clt-256", "long-100", 0, 512, False),
    ("clt-256", "long-500", 200, 128, False),
    ("clt-256", "long-1000", 100, 64, True),
    ("plt-256", "long-100", 3000, 512, False),
    ("plt-256", "long-1000", 60, 64, False),
    ("plt-256-skip", "long-250", 500, 256, True),
]


def traced(args: argparse.Namespace, chosen: tuple[Any, ...], save: Path, memory: int | None) -> dict[str, Any]:
    """What trace_once.py says about one configuration."""
    dictionary, prompt, rows, batch, _ = chosen
    command = [*our_command("tracing.trace_once"), "--model", str(args.model), "--prompt", prompt]
    command += ["--transcoders", str(args.transcoders / dictionary), "--rows", str(rows), "--batch-size", str(batch)]
    command += ["--save", str(save), "--threads", str(args.threads)] + (["--memory", str(memory)] if memory else [])
    return {"dictionary": dictionary, "prompt": prompt, "rows": rows} | answer(command)


def difference(one: Path, two: Path) -> dict[str, Any]:
    """Whether two graphs have the same nodes, and by how much edges differ, over the largest edge of their row."""
    with np.load(one) as a, np.load(two) as b:
        same = np.array_equal(a["selected"], b["selected"])
        if not same:
            return {"same_nodes": False, "largest_difference": None}
        worst = 0.0
        for row in range(len(a["ptr"]) - 1):
            edges = [
                dict(zip(each["source"][slice(*each["ptr"][row : row + 2])].tolist(),
                         each["weight"][slice(*each["ptr"][row : row + 2])].tolist(), strict=True))
                for each in (a, b)
            ]  # fmt: skip
            if edges[0]:
                scale = max(map(abs, edges[0].values()))
                ends = edges[0].keys() | edges[1].keys()
                worst = max(worst, max(abs(edges[0].get(end, 0) - edges[1].get(end, 0)) for end in ends) / scale)
        return {"same_nodes": True, "largest_difference": worst}


def line(found: dict[str, Any]) -> str:
    own = (found["planned"] - found["held"]) / max(1, found["actual"] - found["held"])
    return (
        f"  {found['dictionary']:13} {found['tokens']:5} {found['active']:7} {found['expanded']:6} "
        f"{found['planned'] / 1e9:8.2f} {found['actual'] / 1e9:8.2f} {found['planned'] / found['actual']:8.2f} {own:10.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--transcoders", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of configurations, from 0")
    parser.add_argument("--results", type=Path, default=RESULTS / "memory_plan.json")
    args = parser.parse_args()
    results: dict[str, Any] = describe(versions=versions(), limit=LIMIT, configurations=[], halves=[])
    print("  dictionary   tokens  active expand  planned   actual    ratio  of the trace")
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        whole, half = Path(folder) / "whole.npz", Path(folder) / "half.npz"
        for number in args.only or range(len(CONFIGURATIONS)):
            chosen = CONFIGURATIONS[number]
            found = traced(args, chosen, whole, None)
            results["configurations"].append(found)
            print(line(found), flush=True)
            if abs(found["planned"] / found["actual"] - 1) > LIMIT:
                failed.append(f"{chosen}: planned {found['planned']}, actual {found['actual']}")
            if chosen[-1]:
                again = traced(args, chosen, half, found["planned"] // 2 + found["held"] // 2)
                again |= difference(whole, half)
                results["halves"].append(again)
                print(f"{line(again)}  half of its own; edges differ by {again['largest_difference']}", flush=True)
                if not again["same_nodes"] or again["largest_difference"] > 1e-4:
                    failed.append(f"{chosen}: the graph of half the memory differs")
    write_results(args.results, results)
    if failed:
        raise SystemExit("\n".join(failed))


if __name__ == "__main__":
    main()
