"""Benchmarks in processes of their own, by either engine, and the tests that must pass before a number is reported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.common.places import PEER, ROOT


def our_command(name: str) -> list[str]:
    """The command that runs a module of benchmarks, "tracing.trace_once" say."""
    return [sys.executable, "-m", f"benchmarks.{name}"]


def peer_command(environment: Path, script: str) -> list[str]:
    """The command that runs a script of benchmarks/peer in a peer's virtual environment.

    Isolated (-I: no PYTHONPATH, no folder put in front), so that the `circuit_tracer` which is installed there is found first;
    the script itself puts this repository last.
    """
    return [str(environment / "bin" / "python"), "-I", str(PEER / script)]


def answer(command: list[str]) -> dict[str, Any]:
    """The JSON object on the last line that a command prints. SystemExit with its errors when it fails."""
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        raise SystemExit(
            f"{' '.join(command)}\nended with status {ended.returncode}; without an error below it was killed (memory?)\n"
            f"{ended.stderr[-3000:]}"
        )
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


def gate(tests: list[str], failed: str) -> str:
    """The last line of some tests; SystemExit, saying what has ``failed``, unless all pass."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if found.returncode:
        raise SystemExit(f"{failed}\n{found.stdout[-3000:]}")
    return found.stdout.strip().splitlines()[-1]
