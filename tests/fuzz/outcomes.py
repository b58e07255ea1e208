"""One mutation, and what came of it."""

from __future__ import annotations

import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from circuit_tracer.errors import CircuitTracerError
from tests.fuzz import mutations
from tests.fuzz.reader import Reader, digest

Outcome = Literal["refused", "same", "other", "wrong", "failed", "slow", "memory"]
BAD: tuple[Outcome, ...] = ("wrong", "failed", "slow", "memory")
SECONDS, BYTES = 20.0, 2 * 2**30
LONGEST_MESSAGE = 3000


@dataclass(frozen=True)
class Result:
    """A mutation of one file of a reader. said: the error, or why the outcome is bad."""

    reader: str
    number: int
    file: str
    mutation: str
    outcome: Outcome
    said: str
    seconds: float


class TooSlow(BaseException):
    """Not to be caught by what is tested."""


class Bench:
    """A reader with its valid files, on which mutations are tried one by one."""

    def __init__(self, reader: Reader, folder: Path) -> None:
        self.reader, self.folder, self.original = reader, folder / "tried", folder / "original"
        self.original.mkdir(parents=True)
        reader.write(self.original)
        self.files = sorted(path.relative_to(self.original) for path in self.original.rglob("*") if path.is_file())
        self.expected = digest(self._load(self.original))

    def _load(self, folder: Path) -> Any:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(folder, self.folder)
        return self.reader.load(self.folder)

    def attempt(self, seed: int, number: int) -> Result:
        """Mutation ``number`` of this reader; the same for the same seed."""
        rng = random.Random(f"{seed} {self.reader.name} {number}")
        file = rng.choice(self.files)
        table = mutations.of(file.name)
        name = rng.choice([*table, *mutations.PATHS] if rng.random() < 0.1 else list(table))
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.original, self.folder)
        path = self.folder / file
        if name in mutations.PATHS:
            mutations.PATHS[name](path)
        else:
            path.write_bytes(table[name](path.read_bytes(), rng))
        began, before = time.perf_counter(), peak()
        outcome, said = self._outcome(name)
        seconds = time.perf_counter() - began
        if peak() - before > BYTES:
            outcome, said = "memory", f"{(peak() - before) / 2**30:.1f} GiB"
        return Result(self.reader.name, number, str(file), name, outcome, said, seconds)

    def _outcome(self, mutation: str) -> tuple[Outcome, str]:
        try:
            with time_limit(SECONDS):
                loaded = self.reader.load(self.folder)
                found = digest(loaded)
        except CircuitTracerError as error:
            text = str(error)
            return (
                ("refused", text)
                if len(text) <= LONGEST_MESSAGE
                else ("failed", f"a message of {len(text)} characters")
            )
        except TooSlow:
            return "slow", f"more than {SECONDS} s"
        except Exception:
            return "failed", traceback.format_exc(limit=-4)
        if found == self.expected:
            return "same", ""
        if self.reader.sealed and mutation in mutations.ANY:
            return "wrong", "another document, although the format has checksums"
        return self._valid(loaded, found)

    def _valid(self, loaded: Any, found: Any) -> tuple[Outcome, str]:
        """What was loaded must itself be a document: written and read again, it is the same."""
        if self.reader.again is None:
            return "other", ""
        try:
            same = digest(self.reader.again(loaded, self.folder)) == found
        except Exception:
            return "wrong", f"it cannot be written again: {traceback.format_exc(limit=-3)}"
        return ("other", "") if same else ("wrong", "written and read again, it is another one")


def peak() -> int:
    """Bytes that this process has held at most."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TooSlow inside, in the main thread."""

    def late(*_: object) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
