"""How long a process takes to answer, to be ready and to trace: the command line beside circuit-tracer 0.5.0's, and a model.

    python -m benchmarks.tracing.startup [--peer PEER_VENV] [--model FOLDER --transcoders FOLDER]

Each call is a process of its own; the median of --runs of them, the files in the system's cache: one before is not counted.
The last call traces a short prompt, from start to exit; circuit-tracer has none that works without a hub. Bytecode of our
sources is written first, as pip does for what it installs.
Ready is the embedded default, and the model and dictionary that are named (`ready_once.py`), counted from the start of the
process; its first and its second trace stand beside. Nothing is reported where a trace breaks its sum rule.
"""

from __future__ import annotations

import argparse
import compileall
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.common.harness import versions
from benchmarks.common.machine import describe, write_results
from benchmarks.common.places import RESULTS, ROOT
from benchmarks.common.processes import answer, our_command
from benchmarks.tracing.ready_once import WORDS

HELP_GOAL, READY_GOAL = 0.3, 1.5  # seconds for --help, and until the embedded default is ready
RESIDUAL = 1e-5  # what a trace promises
CALLS = {
    "--help": ["--help"],
    "attribute --help": ["attribute", "--help"],
    "attribute --demo": ["attribute", "--demo", "--prompt", WORDS, "--json"],
}
OURS_ALONE = ("attribute --demo",)


def command_of(python: Path) -> Path:
    """The command `circuit-tracer` beside an interpreter."""
    return python.parent / "circuit-tracer"


def seconds(command: list[str], runs: int) -> list[float]:
    """What each call took, all but the first. Of the package that is installed there, whatever is on the path here."""
    taken, environment = [], {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for _ in range(runs + 1):
        start = time.perf_counter()
        ended = subprocess.run(command, capture_output=True, text=True, env=environment)
        taken.append(time.perf_counter() - start)
        if ended.returncode:
            raise SystemExit(f"{' '.join(command)} ended with status {ended.returncode}\n{ended.stderr[-2000:]}")
    return taken[1:]


def ready(words: list[str], runs: int) -> dict[str, Any]:
    """Medians of ready_once.py over some processes, all but the first. SystemExit where a trace is wrong."""
    command = [*our_command("tracing.ready_once"), *words]
    found = [answer([*command, "--started", repr(time.time())]) for _ in range(runs + 1)][1:]
    if (worst := max(one["residual"] for one in found)) > RESIDUAL:
        raise SystemExit(f"nothing reported: a trace has a residual of {worst:.1e}, at most {RESIDUAL:.0e} is promised")
    middle: dict[str, Any] = {name: statistics.median(one[name] for one in found) for name in ("imported", "ready")}
    for call in ("first", "second"):
        middle[call] = {name: statistics.median(one[call][name] for one in found) for name in found[0][call]}
    kept = ("dictionary_bytes", "dictionary_mapped", "tokens")
    return middle | {name: found[0][name] for name in kept} | {"all": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="virtual environment of peer/setup_peer.sh")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--model", type=Path, help="Hugging Face folder, to be ready with --transcoders")
    parser.add_argument("--transcoders", type=Path)
    parser.add_argument("--results", type=Path, default=RESULTS / "startup.json")
    args = parser.parse_args()
    engines = {"ours": Path(sys.executable)} | ({"peer": args.peer / "bin" / "python"} if args.peer else {})
    for sources in ("circuit_tracer", "kernels"):
        compileall.compile_dir(ROOT / sources, quiet=1)
    results: dict[str, Any] = describe(versions=versions(), goal=HELP_GOAL, ready_goal=READY_GOAL, calls={}, ready={})
    for name, words in CALLS.items():
        results["calls"][name] = {}
        for engine, python in engines.items():
            if engine != "ours" and name in OURS_ALONE:
                continue
            taken = seconds([str(command_of(python)), *words], args.runs)
            results["calls"][name][engine] = {"median": statistics.median(taken), "all": taken}
            print(f"  circuit-tracer {name:20} {engine:5} {statistics.median(taken):7.3f} s", flush=True)
    models: dict[str, list[str]] = {"the embedded default": []}
    if args.model is not None:
        name = f"{args.model.name} with {args.transcoders.name}"
        models[name] = ["--model", str(args.model), "--transcoders", str(args.transcoders)]
    for name, words in models.items():
        results["ready"][name] = found = ready(words, args.runs)
        print(
            f"  {name}: imported {found['imported']:.2f} s, ready {found['ready']:.2f} s, with "
            f"{found['dictionary_mapped'] / 1e6:.0f} of {found['dictionary_bytes'] / 1e6:.0f} MB of its dictionary; "
            f"first trace {found['first']['seconds']:.2f} s, second {found['second']['seconds']:.2f} s",
            flush=True,
        )
    write_results(args.results, results)


if __name__ == "__main__":
    main()
