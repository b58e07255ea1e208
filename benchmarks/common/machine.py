"""What a number was measured on: machine, versions, commit, command. No paths: results are published."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from benchmarks.common.places import ROOT


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def commit() -> str:
    """The short hash of the checkout, marked when tracked files outside results/ differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
    return git("rev-parse", "--short", "HEAD") + ("-modified" if changed else "")


def command() -> str:
    """The command line with every path cut to its last part."""
    program = Path(sys.argv[0]).resolve()
    ours = program.is_relative_to(ROOT) and ".venv" not in program.parts
    name = (
        [part for part in program.relative_to(ROOT).with_suffix("").parts if part != "__main__"]
        if ours
        else [program.stem]
    )
    return " ".join(["python", "-m", ".".join(name), *(Path(word).name for word in sys.argv[1:])])


class Used(NamedTuple):
    """Processor seconds by a clock: of everybody, and of this process with those of its children that have ended."""

    clock: float
    everybody: float
    ours: float

    @classmethod
    def now(cls) -> Used:
        everybody, ours = psutil.cpu_times(), psutil.Process().cpu_times()
        idle = everybody.idle + getattr(everybody, "iowait", 0.0)
        # a guest's time is in that of its host too
        guests = getattr(everybody, "guest", 0.0) + getattr(everybody, "guest_nice", 0.0)
        return cls(time.perf_counter(), sum(everybody) - guests - idle, sum(ours[:4]))

    def others_since(self, before: Used) -> float:
        """Processors that others kept busy, on average."""
        others = (self.everybody - before.everybody) - (self.ours - before.ours)
        return max(0.0, others / max(self.clock - before.clock, 1e-9))


_begun = Used.now()  # a benchmark is a process of its own


def describe(**more: Any) -> dict[str, Any]:
    """The head of a record."""
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "command": command(),
        "machine": {
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
            "system": f"{platform.system()} {platform.machine()}",
        },
        **more,
    }


def write_results(path: Path, results: dict[str, Any]) -> None:
    """Write a record whole, with what others used of the machine since this process began."""
    if "machine" in results:
        used = Used.now()
        results["machine"] |= {
            "others_busy_cores": round(used.others_since(_begun), 2),
            "seconds": round(used.clock - _begun.clock, 1),
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
