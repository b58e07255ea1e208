"""`python -m tests.fuzz --mutations 10000 --seed 1`: many mutations, in processes of their own, and a table of outcomes.

A process that dies (a segmentation fault, memory beyond the limit) or hangs is an outcome too. Exit 1 if any is bad.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from queue import Empty
from typing import Any

import torch

from benchmarks.common.machine import describe
from tests.fuzz.outcomes import BAD, BYTES, SECONDS, Bench, Result
from tests.fuzz.reader import Reader
from tests.fuzz.readers import READERS

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "fuzz.json"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=10_000, help="of all readers together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 1) // 2))
    parser.add_argument("--readers", nargs="*", help="parts of names; default all")
    parser.add_argument("--only", type=int, help="this mutation of each reader alone")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    readers = [each for each in READERS if not args.readers or any(part in each.name for part in args.readers)]
    began = time.perf_counter()
    results = run(readers, args.seed, -(-args.mutations // len(readers)), args.workers, args.only)
    report(results, args, time.perf_counter() - began)
    return int(any(result.outcome in BAD for result in results))


def run(readers: list[Reader], seed: int, each: int, workers: int, only: int | None = None) -> list[Result]:
    """All mutations of all readers; a process a reader, started anew behind a mutation that it did not survive."""
    context = multiprocessing.get_context("fork")
    torch.set_num_threads(1)
    waiting = [(reader, 0 if only is None else only) for reader in readers]
    stop = each if only is None else only + 1
    running: dict[Any, tuple[Reader, Any, int, float]] = {}
    results: list[Result] = []
    while waiting or running:
        while waiting and len(running) < workers:
            reader, start = waiting.pop(0)
            queue = context.Queue()
            process = context.Process(target=work, args=(reader, seed, start, stop, queue), daemon=True)
            process.start()
            running[process] = (reader, queue, start, time.perf_counter())
        time.sleep(0.02)
        for process, (reader, queue, done, heard) in list(running.items()):
            while (result := _next(queue)) is not None:
                results.append(result)
                done, heard = result.number + 1, time.perf_counter()
            running[process] = (reader, queue, done, heard)
            hangs = time.perf_counter() - heard > 3 * SECONDS
            if process.is_alive() and not hangs:
                continue
            while (result := _next(queue, 0.5)) is not None:
                results.append(result)
                done = result.number + 1
            del running[process]
            if process.is_alive():
                process.kill()
            process.join()
            if done < stop:
                said = "it hangs beyond a signal" if hangs else f"the process died ({process.exitcode})"
                results.append(Result(reader.name, done, "?", "?", "slow" if hangs else "failed", said, 0.0))
                waiting.append((reader, done + 1))
    return results


def work(reader: Reader, seed: int, start: int, stop: int, queue: Any) -> None:
    """The mutations from ``start`` on, in a process that gets no more memory than the limit and some."""
    import resource

    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        bench = Bench(reader, Path(folder))
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2 * BYTES, used + 2 * BYTES))
        for number in range(start, stop):
            queue.put(bench.attempt(seed, number))
    queue.close()
    queue.join_thread()


def _next(queue: Any, seconds: float = 0.0) -> Result | None:
    try:
        found: Result = queue.get(timeout=seconds) if seconds else queue.get_nowait()
    except Empty:
        return None
    return found


def report(results: list[Result], args: argparse.Namespace, seconds: float) -> None:
    """Bad ones in full, a table, and the file of results."""
    for result in results:
        if result.outcome in BAD:
            print(
                f"{result.outcome}: {result.reader} --only {result.number} {result.file} {result.mutation}: {result.said}"
            )
    table = {
        name: dict(sorted(Counter(result.outcome for result in results if result.reader == name).items()))
        for name in dict.fromkeys(result.reader for result in results)
    }
    for name, counts in table.items():
        print(f"{name:<26}" + "  ".join(f"{outcome} {count}" for outcome, count in counts.items()))
    total = dict(sorted(Counter(result.outcome for result in results).items()))
    print(f"{'all':<26}{total} in {seconds:.0f} s; the slowest took {max(result.seconds for result in results):.1f} s")
    if args.only is None and not args.readers:
        bad = [asdict(result) for result in results if result.outcome in BAD]
        facts = {"seed": args.seed, "mutations": len(results), "seconds": round(seconds)}
        args.results.parent.mkdir(parents=True, exist_ok=True)
        args.results.write_text(
            json.dumps({**describe(), **facts, "outcomes": total, "readers": table, "bad": bad}, indent=1) + "\n"
        )


if __name__ == "__main__":
    raise SystemExit(main())
