"""How long the command line takes to answer, beside circuit-tracer 0.5.0's: each call is a process of its own.

    python -m benchmarks.tracing.startup [--peer PEER_VENV]

The median of --runs calls, the files in the system's cache: one call before is not counted.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.common.harness import versions
from benchmarks.common.machine import describe, write_results
from benchmarks.common.places import RESULTS

GOAL = 0.5  # seconds for --help
CALLS = {"--help": ["--help"], "attribute --help": ["attribute", "--help"]}


def command_of(python: Path) -> Path:
    """The command `circuit-tracer` beside an interpreter."""
    return python.parent / "circuit-tracer"


def seconds(command: list[str], runs: int) -> list[float]:
    """What each call took, all but the first."""
    taken = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        ended = subprocess.run(command, capture_output=True, text=True)
        taken.append(time.perf_counter() - start)
        if ended.returncode:
            raise SystemExit(f"{' '.join(command)} ended with status {ended.returncode}\n{ended.stderr[-2000:]}")
    return taken[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="virtual environment of peer/setup_peer.sh")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--results", type=Path, default=RESULTS / "startup.json")
    args = parser.parse_args()
    engines = {"ours": Path(sys.executable)} | ({"peer": args.peer / "bin" / "python"} if args.peer else {})
    results: dict[str, Any] = describe(versions=versions(), goal=GOAL, calls={})
    for name, words in CALLS.items():
        results["calls"][name] = {}
        for engine, python in engines.items():
            taken = seconds([str(command_of(python)), *words], args.runs)
            results["calls"][name][engine] = {"median": statistics.median(taken), "all": taken}
            print(f"  circuit-tracer {name:20} {engine:5} {statistics.median(taken):7.3f} s", flush=True)
    write_results(args.results, results)


if __name__ == "__main__":
    main()
