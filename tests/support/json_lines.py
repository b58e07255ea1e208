"""What commands print with --json is held against the schemas that say so: every run of every test of the command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator

from circuit_tracer.cli.schemas import LINES, schema

PRINTED: set[str] = set()  # commands whose lines were held against their schema in this process


def require_lines(words: Sequence[str], code: int, printed: str) -> None:
    """Raise AssertionError unless a command printed lines of its schema, and an error at the end exactly if it failed."""
    command = next((name for count in (2, 1) if (name := " ".join(words[:count])) in LINES), None)
    if command is None:  # no command, or --debug in front of one
        return
    lines = [json.loads(line, parse_constant=_refuse) for line in printed.splitlines()]
    for line in lines:
        wrong = sorted(_validator(command).iter_errors(line), key=lambda error: -len(error.absolute_path))
        assert not wrong, f"{command} --json: {_said(wrong[0])} in {json.dumps(line)[:2000]}"
    failed = ["error" in line and len(line) == 1 for line in lines]
    assert failed == [False] * (len(lines) - (code != 0)) + [True] * (code != 0), (code, printed[:2000])
    if code == 0:
        PRINTED.add(command)


def _said(error: Any) -> str:
    inner = min(error.context or [error], key=lambda each: -len(each.absolute_path))
    return f"{'.'.join(map(str, inner.absolute_path))}: {inner.message[:500]}"


@cache
def _validator(command: str) -> Draft202012Validator:
    return Draft202012Validator(schema(command))


def _refuse(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")
