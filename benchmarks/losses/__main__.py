"""Is work ever lost? Real processes are interrupted, ended and killed at random moments, run into full and read-only disks, and
several write into one folder: a table of tries and losses.

A loss is: a file that is neither what it was nor whole; work that a run said it kept and a resumed one does not end with, to
the bit; an entry of an index that is gone; a file left that no process will finish; an error without a word on what to do.

    python -m benchmarks.losses --tries 20
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from benchmarks.common.machine import commit, describe, write_results
from benchmarks.common.places import RESULTS
from benchmarks.losses.bench import ENDINGS, Bench, Line
from benchmarks.losses.interruptions import (
    interrupted_builds,
    interrupted_runs,
    interrupted_traces,
    interrupted_training,
    interrupted_writers,
)
from benchmarks.losses.places import full_disks, one_folder, one_run, read_only, writers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=20, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="rows whose name holds this")
    parser.add_argument("--out", type=Path, default=RESULTS / "losses.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        bench = Bench(Path(work), args.tries, args.seed)
        kinds: dict[str, Callable[[], Line]] = {}
        for how in ENDINGS:
            kinds[f"attribute {how}"] = lambda how=how: interrupted_traces(bench, how)
            kinds[f"write {how}"] = lambda how=how: interrupted_writers(bench, how)
            kinds[f"features build {how}"] = lambda how=how: interrupted_builds(bench, how)
            kinds[f"train {how}"] = lambda how=how: interrupted_training(bench, how)
        for how in (*ENDINGS, "SIGKILL of a worker"):
            kinds[f"run {how}"] = lambda how=how: interrupted_runs(bench, how)
        kinds["several in one folder"] = lambda: one_folder(bench)
        kinds["two of a run"] = lambda: one_run(bench)
        kinds["read-only"] = lambda: read_only(bench)
        for name in writers(bench, bench.work):
            kinds[f"full disk {name}"] = lambda name=name: full_disks(bench, name)
        lines = []
        for name, kind in kinds.items():
            if args.only in name:
                lines.append(line := kind())
                print(
                    f"{line.what:52} {line.how:60} {line.tries:4} tries {line.kept:4} {len(line.losses):3} lost",
                    flush=True,
                )
                for loss in line.losses[:3]:
                    print(f"    {loss}", flush=True)
    _write(args.out, lines)
    sys.exit(any(line.losses for line in lines))


def _write(path: Path, lines: list[Line]) -> None:
    """Write the table; rows of an earlier run that was of others stay."""
    rows = {(line.what, line.how): asdict(line) | {"commit": commit()} for line in lines}
    before = json.loads(path.read_text())["lines"] if path.is_file() else []
    table = [row for row in before if (row["what"], row["how"]) not in rows] + list(rows.values())
    total = {"tries": sum(row["tries"] for row in table), "losses": sum(len(row["losses"]) for row in table)}
    print(f"{total['tries']} tries, {total['losses']} losses")
    write_results(path, describe(total=total, lines=table))


if __name__ == "__main__":
    main()
