"""Runs of tiny models over a dozen prompts, whole, or killed at a chosen moment."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from circuit_tracer.many import Row, Run
from circuit_tracer.many.runs.local import run_locally
from circuit_tracer.many.runs.run import run
from circuit_tracer.many.runs.worker import UnitResult
from tests.support.command import TEXT, Folders
from tests.support.process_cases import die

WORDS = TEXT.split()
VARYING = ("times/", "results.parquet")  # hold seconds


def prompts(count: int = 10) -> list[Row]:
    """Rows of three to six words; one asks for an unknown token, one is empty, one is token ids, one a conversation."""
    rows = [Row(f"row {i}", " ".join(WORDS[i % 5 : i % 5 + 3 + i % 4]), label=str(i % 2)) for i in range(count)]
    rows[1] = Row("unknown target", "the capital of", ["nowhere"])
    rows[2] = Row("empty", "")
    rows[3] = Row("ids/of tokens", [4, 5, 6, 7], ["id:9", "Austin"])
    rows[4] = Row("chat", [{"role": "user", "content": "Texas is"}], extra={"note": [1, None]})
    return rows


@dataclass(frozen=True)
class Case:
    """How the runs of a test are made."""

    folders: Folders

    @property
    def asked(self) -> dict[str, dict[str, Any]]:
        """Model and dictionary, and units of three rows."""
        named = {"transcoders": self.folders.transcoder, "model": self.folders.model}
        return {"opening": named, "layout": {"unit_rows": 3}}

    def run(self, address: str | Path, rows: Sequence[Row] | None = None, **options: Any) -> Run:
        """A run, or one that goes on."""
        return run(prompts() if rows is None else rows, address, self.asked, **options)


def by_two(case: Case, folder: Path) -> None:
    """A run with two processes."""
    case.run(folder, engine=partial(run_locally, workers=2))


def killed(case: Case, folder: Path, calls: int) -> None:
    """A run that kills itself right before its calls-th move of a file into its place; work for `process_cases.alone`."""
    left, genuine = iter(range(calls)), os.replace

    def deadly(*paths: Any, **named: Any) -> None:
        if next(left, None) is None:
            die()
        genuine(*paths, **named)

    os.replace = deadly
    case.run(folder)


def die_at_once(*_: Any) -> None:
    """What a process may do instead of working."""
    die()


def breaking_off(after: int) -> Any:
    """An engine that is interrupted after so many units."""

    def engine(address: str, units: Sequence[str]) -> Iterator[UnitResult]:
        for number, result in enumerate(run_locally(address, units)):
            yield result
            if number + 1 == after:
                raise KeyboardInterrupt

    return engine


def contents(folder: Path) -> dict[str, bytes]:
    """Files of a run by name, but for what holds seconds and who worked on it."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {
        name: path.read_bytes() for name, path in sorted(files.items()) if not name.startswith((*VARYING, ".claims"))
    }


def table(found: Run) -> list[dict[str, Any]]:
    """Its table without seconds."""
    return [{name: value for name, value in row.items() if name != "seconds"} for row in found.table]
